"""Answers that are odd, and honest: what was not made is not charged, and what was made is, whatever shape it has.

The upstream here answers to a model's name with the bytes that a test has put there.
"""

import base64
import http.server
import itertools
import json
import math
import threading

import pytest
from place import Place, body

TEXT = "The quick brown fox jumps. " * 150
JSON, SSE = "application/json", "text/event-stream"
MODELS = """
[model.capped]
match = ["odd-capped-*"]
nontext_tokens = 150_000
[[upstream]]
name = "odd-openai"
url = "http://127.0.0.1:{port}"
dialect = "openai"
api_key = "env:UPSTREAM_KEY"
models = ["odd-*"]
[[upstream]]
name = "odd-anthropic"
url = "http://127.0.0.1:{port}"
dialect = "anthropic"
api_key = "env:UPSTREAM_KEY"
models = ["odd-*"]
"""
numbers = itertools.count(1)


class Odd:
    """A place with an upstream that answers what it is told to."""

    def __init__(self, folder, enforce):
        answers = self.answers = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                kind, answer = answers[asked["model"]]
                self.send_response(200)
                if kind:
                    self.send_header("content-type", kind)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.place = Place(folder, enforce, MODELS.format(port=self.server.server_port))

    def close(self):
        self.place.close()
        self.server.shutdown()

    def join(self, limits="tokens_per_day = 1_000_000"):
        return self.place.join(limits, models='"odd-*"')

    def ask(self, org, route, answer, kind=JSON, model="plain", **asked):
        """The answer, and its closing line, if it has one."""
        model = f"odd-{model}-{next(numbers)}"
        self.answers[model] = (kind, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        asked = body(route, model, **{"text": TEXT} | asked) | {"model": model}
        with self.place.connect(org) as connection:
            reply = connection.ask(f"/v1/{PATHS.get(route, route)}", asked)
        return reply, self.place.closed(reply.headers) if reply.status == 200 else None


PATHS = {"chat": "chat/completions"}


def place(enforce):
    @pytest.fixture(scope="module", name=enforce)
    def made(tmp_path_factory):
        odd = Odd(tmp_path_factory.mktemp(enforce), enforce)
        yield odd
        log = odd.place.stage.gateway.log
        odd.close()
        assert "panicked at" not in log, log

    return made


bounded, hard = place("bounded"), place("hard")


def events(*said, done=True):
    said = [f"data: {json.dumps(one)}\n\n" for one in said] + ["data: [DONE]\n\n"] * done
    return "".join(said).encode()


def usage(given, made):
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def completion(text):
    return {"object": "text_completion", "choices": [{"index": 0, "text": text}]}


ECHO = events(completion(TEXT), completion(" a b c"), {"choices": [], "usage": usage(900, 5)})
FOUND = "word " * 8000


@pytest.mark.parametrize(("route", "asked", "kind", "answer", "output"), [
    ("completions", {"echo": True, "maximum": 5}, JSON, completion(TEXT + " a b c") | {"usage": usage(900, 5)}, 5),
    ("completions", {"echo": True, "maximum": 5, "stream": True}, SSE, ECHO, 5),
    ("completions", {"echo": True, "stream": True}, SSE, ECHO, 5),
    ("messages", {"maximum": 50_000}, JSON, {"type": "message", "content": [
        {"type": "mcp_tool_use", "id": "1", "name": "a", "input": {}, "server_name": "e"},
        {"type": "mcp_tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": FOUND}]},
        {"type": "text", "text": "Yes."}], "usage": {"input_tokens": 9000, "output_tokens": 60}}, 60),
    ("responses", {"include": ["file_search_call.results"]}, JSON, {"object": "response", "output": [
        {"type": "file_search_call", "id": "f", "results": [{"file_id": "a", "text": FOUND}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]}],
        "usage": {"input_tokens": 9000, "output_tokens": 60, "total_tokens": 9060}}, 60),
    # A tool's result in a shape that nobody knows, after an answer that says it kept to its maximum.
    ("responses", {"maximum": 200}, JSON, {"object": "response", "output": [
        {"type": "odd_call", "content": [{"text": FOUND}]}],
        "usage": {"input_tokens": 9000, "output_tokens": 60, "total_tokens": 9060}}, 60),
    ("chat", {}, JSON, {"choices": [{"message": {"content": "-" * 4000}}], "usage": usage(900, 64)}, 64),
    ("chat", {"text": " " * 4000}, JSON, {"choices": [{"message": {"content": "ok"}}], "usage": usage(60, 2)}, 2),
], ids=["echo", "echo-stream", "echo-no-maximum", "mcp", "file-search", "unknown-tool", "dashes", "spaces"])  # fmt: skip
def test_an_honest_report_is_charged_as_it_stands(bounded, route, asked, kind, answer, output):
    org = bounded.join()
    reply, line = bounded.ask(org, route, answer, kind, **asked)
    assert reply.status == 200, reply.body
    assert (line["settlement"], line["ending"], line["usage"]["output"]) == ("reported", "complete", output)
    assert bounded.place.stage.metric("portcullis_usage_disputed_total", org=org) == 0


def test_hard_cuts_nothing_that_keeps_to_its_maximum(hard):
    """The budget has room for the input's bound and five tokens, and for nothing else."""
    text = "The quick brown fox jumps. " * 40
    echo = events(completion(text), completion(" a b c"), {"choices": [], "usage": usage(250, 5)})
    org = hard.join("tokens_per_day = 1400")
    reply, line = hard.ask(org, "completions", echo, SSE, text=text, echo=True, maximum=5, stream=True)
    assert (reply.status, line["ending"], line["settlement"]) == (200, "complete", "reported")
    assert hard.place.settled(org)["used"] == 255


PDF = base64.b64encode(b"%PDF-1.7" + b"0123456789abcdef" * 60_000).decode()
FILE = [{"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}]}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + PDF}}]}]
ANSWER = {"choices": [{"message": {"content": "ok"}}]}


def test_hard_refuses_files_and_images_whose_cap_nobody_set(hard):
    org = hard.join()
    for messages in (FILE, IMAGE):
        answer = ANSWER | {"usage": usage(150_000, 1)}
        refused, _ = hard.ask(org, "chat", answer, messages=messages, maximum=5)
        assert (refused.status, refused.headers["portcullis-reason"]) == (400, "quota_request_too_large")
        assert "`nontext_tokens`" in refused.json["error"]["message"]
    assert hard.place.settled(org)["used"] == 0
    roomy = hard.join("tokens_per_day = 2_000_000")
    _, line = hard.ask(roomy, "chat", ANSWER | {"usage": usage(150_000, 1)}, model="capped", messages=IMAGE, maximum=5)
    assert line["usage"]["input"] == 150_000


def test_a_file_is_estimated_as_what_is_no_text(bounded):
    inputs = [bounded.ask(bounded.join(), "chat", ANSWER, messages=messages)[1]["usage"]["input"]
              for messages in (FILE, IMAGE)]  # fmt: skip
    assert all(2000 < one < 2100 for one in inputs), inputs


SAID = "word " * 500
ITEM = {"type": "message", "content": [{"type": "output_text", "text": SAID}]}
ITEM_DONE = {"type": "response.output_item.done", "item": ITEM}
COMPLETED = {"type": "response.completed", "response": {"output": [ITEM]}}


@pytest.mark.parametrize(("route", "kind", "answer"), [
    ("responses", SSE, events(ITEM_DONE, COMPLETED, done=False)),
    ("responses", SSE, events(COMPLETED, done=False)),
    ("responses", SSE, events({"type": "response.output_text.delta", "delta": SAID}, ITEM_DONE, COMPLETED, done=False)),
    ("chat", SSE, events({"odd": SAID})),
    ("chat", SSE, events({"odd": SAID}, done=False)),
    ("chat", JSON, [{"choices": [{"message": {"content": SAID}}]}]),
    ("chat", JSON, {"odd": SAID}),
    ("chat", SSE, {"choices": [{"message": {"content": SAID}}]}),
], ids=["item", "completed", "told-thrice", "odd", "odd-not-done", "in-an-array", "odd-whole", "called-a-stream"])  # fmt: skip
def test_text_without_usage_is_charged_once_in_every_shape(bounded, route, kind, answer):
    _, line = bounded.ask(bounded.join(), route, answer, kind, stream=kind == SSE)
    assert line["settlement"] == "estimated"
    text = math.ceil(len(SAID) / 3)
    assert text <= line["usage"]["output"] <= text + 30


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n"], ids=["plain", "mark", "white-space"])
@pytest.mark.parametrize("kind", [SSE, JSON, None])
def test_a_report_in_json_in_place_of_a_stream_is_read(bounded, kind, mark):
    answer = mark + json.dumps(ANSWER | {"usage": usage(900, 20)}).encode()
    for options in ({}, {"stream_options": {"include_usage": True}}):
        reply, line = bounded.ask(bounded.join(), "chat", answer, kind, stream=True, **options)
        assert (reply.body, reply.headers.get("content-type")) == (answer, kind)
        assert (line["settlement"], line["usage"]["input"], line["usage"]["output"]) == ("reported", 900, 20)
        assert reply.headers.get("content-length") == (None if kind == SSE else str(len(answer)))


@pytest.mark.parametrize("kind", [None, "text/plain; charset=utf-8", JSON, "application/octet-stream"])
def test_a_stream_is_one_whatever_its_head_says(bounded, kind):
    said = [{"choices": [{"delta": {"content": "word"}}]}] * 20
    answer = events(*said, {"choices": [], "usage": usage(900, 20)})
    reply, line = bounded.ask(bounded.join(), "chat", answer, kind, stream=True)
    assert (reply.body, reply.headers.get("content-type")) == (events(*said), kind)
    assert (line["settlement"], line["ending"], line["usage"]["output"]) == ("reported", "complete", 20)
    reply, _ = bounded.ask(bounded.join(), "chat", answer, kind, stream=True, stream_options={"include_usage": True})
    assert (reply.body, reply.headers.get("content-length")) == (answer, None)


def test_a_message_that_goes_on_behind_what_looked_like_its_last_report_is_disputed_by_nobody(bounded):
    """Its upstream broke off: what it had reported by then is old, and no lie."""
    begun = [{"type": "message_start", "message": {"usage": {"input_tokens": 900, "output_tokens": 1}}},
             {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
             {"type": "content_block_delta", "delta": {"type": "text_delta", "text": SAID}}]  # fmt: skip
    org = bounded.join()
    _, line = bounded.ask(org, "messages", events(*begun, done=False), SSE, stream=True, maximum=5000)
    assert line["settlement"] == "estimated"
    assert bounded.place.stage.metric("portcullis_usage_disputed_total", org=org) == 0


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
DELTA = {"choices": [{"delta": {"content": SAID}}]}
SEALED = {"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "A" * 2 * len(SAID)}}


@pytest.mark.parametrize(("route", "kind", "answer", "free"), [
    ("chat", JSON, {"error": {"message": "overloaded", "type": "server_error"}}, True),
    ("chat", SSE, events({"error": {"message": "overloaded"}}, done=False), True),
    ("messages", SSE, events(OVERLOADED, done=False), True),
    ("responses", SSE, events({"type": "response.created", "response": {"output": []}},
                              {"type": "response.failed", "response": {"error": {"code": "x"}}}, done=False), True),
    ("chat", SSE, events(DELTA, {"error": {"message": "overloaded"}}, done=False), False),
    ("chat", SSE, events({"odd": SAID}, {"error": {"message": "overloaded"}}, done=False), False),
    ("messages", SSE, events(SEALED, OVERLOADED, done=False), False),
], ids=["whole", "chat", "messages", "responses", "after-content", "after-odd-content", "after-thoughts"])  # fmt: skip
def test_an_error_instead_of_an_answer_costs_no_tokens_whatever_the_status(bounded, route, kind, answer, free):
    org = bounded.join("tokens_per_day = 1_000_000\nrequests_per_day = 10")
    _, line = bounded.ask(org, route, answer, kind, maximum=2000, stream=kind == SSE)
    assert bounded.place.stage.limit(org, "requests_per_day")["used"] == 1
    used = bounded.place.settled(org)["used"]
    assert used == 0 if free else used > len(SAID) / 3 + len(TEXT) / 3, line


def test_hard_charges_nothing_for_an_error_instead_of_an_answer_though_nobody_saw_its_end(hard):
    org = hard.join()
    answer = events({"error": {"message": "overloaded"}}, done=False)
    hard.ask(org, "chat", answer, SSE, maximum=2000, stream=True)
    assert hard.place.settled(org)["used"] == 0
    answer = events(DELTA, {"error": {"message": "overloaded"}}, done=False)
    hard.ask(org, "chat", answer, SSE, maximum=2000, stream=True)
    assert hard.place.settled(org)["used"] > 2000 + len(TEXT), "all that was reserved"
