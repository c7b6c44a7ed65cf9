"""Answers that are odd, and honest: what was not made is not charged, and what was made is, whatever shape it has.

The upstream here answers to a model's name with the bytes that a test has put there.
"""

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


bounded = place("bounded")


def events(*said, done=True):
    said = [f"data: {json.dumps(one)}\n\n" for one in said] + ["data: [DONE]\n\n"] * done
    return "".join(said).encode()


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
