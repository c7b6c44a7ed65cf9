"""What is charged is what the model says it sent; and whoever did not ask how much that was, is not told."""

import json
import math
import re

import pytest
from place import (
    FLOWS, HUNDRED, PATHS, body, every_flow, every_stream, fresh, place, spent, text_of, until_cut, words,
)  # fmt: skip
from stage import eventually, fetch

bounded_place, bounded = place("bounded")
hard_place, hard = place("hard")


# What is charged.


@pytest.mark.parametrize("also", ["", ".usage-every-chunk", ".piece-7"], ids=["once", "in-every-chunk", "in-pieces"])
@every_flow
def test_what_is_charged_is_what_the_model_says_it_used(bounded, route, stream, also):
    org, model = bounded.join("tokens_per_day = 100_000"), fresh("tokens-7.cached-30.cache-write-20" + also)
    answer = bounded.ask(org, route, model=model, text=HUNDRED, stream=stream)
    assert answer.status == 200, answer.body
    (sent,) = bounded.sent(model)
    assert bounded.settled(org)["used"] == sent["input_tokens"] + sent["output_tokens"]
    line = bounded.closed(answer.headers)
    usage = line["usage"]
    assert (line["settlement"], line["ending"]) == ("reported", "complete")
    assert sum(usage[part] for part in ("input", "cached_input", "cache_write")) == sent["input_tokens"] == 100
    assert usage["output"] == sent["output_tokens"]
    if route != "embeddings":
        assert (usage["cached_input"], usage["cache_write"]) == (30, 20)
    with bounded.connect(org) as connection:
        totals = connection.ask("/portcullis/v1/usage").json["totals"]
    for window in ("day", "month"):
        assert totals[window]["requests"] == 1
        assert totals[window]["input_tokens"] == sent["input_tokens"]
        assert totals[window]["output_tokens"] == sent["output_tokens"]
    assert bounded.stage.metric("portcullis_input_tokens_total", org=org) == sent["input_tokens"]
    assert bounded.stage.metric("portcullis_output_tokens_total", org=org) == sent["output_tokens"]


@every_flow
def test_an_honest_report_of_a_short_prompt_is_believed(bounded, route, stream):
    """What surrounds the text (names, options) is not input: a small count of it is no lie."""
    org, model = bounded.join("tokens_per_day = 100_000"), fresh("tokens-5")
    options = {"temperature": 0.2, "top_p": 0.9, "user": "somebody", "metadata": {"project": "one-of-many", "run": "7"}}
    text = "Name three rivers in Europe."
    answer = bounded.ask(org, route, model=model, text=text, stream=stream, maximum=256, **options)
    assert answer.status == 200, answer.body
    (sent,) = bounded.sent(model)
    line = bounded.closed(answer.headers)
    assert (line["settlement"], line["usage"]["input"]) == ("reported", sent["input_tokens"])
    assert bounded.stage.metric("portcullis_usage_disputed_total", org=org) == 0


@every_stream
def test_a_stream_that_its_client_leaves_is_charged_what_had_passed(bounded, route):
    """More than the client has seen, less than the model has sent, at a third of a token to the byte; never nothing."""
    org, model = bounded.join("tokens_per_day = 100_000"), fresh("tokens-5000.tps-200")
    with bounded.connect(org) as connection:
        connection.send(connection.head(PATHS[route], asked := body(route, model, HUNDRED, stream=True)))
        status, headers = connection.read_head()
        assert status == 200
        seen = b""
        while seen.count(b"data: ") < 30:
            seen += connection.read_chunk()
    used = bounded.settled(org)["used"]
    (sent,) = eventually(lambda: [one for one in bounded.sent(model) if one["ended"]], what="the end upstream")
    assert sent["ended"] == "client_gone"
    # Input: the body's bytes at the same rate, or what the model has said by then.
    inputs = {sent["input_tokens"], math.ceil(len(json.dumps(asked)) / 3)}
    least = text_of(30 - 6) / 3
    most = math.ceil(text_of(sent["output_tokens"]) / 3)
    assert any(least <= used - given <= most for given in inputs), (used, inputs, least, most)
    line = bounded.closed(headers)
    assert (line["ending"], line["settlement"]) == ("client_gone", "estimated")


@pytest.mark.parametrize("script", ["die-20.tokens-40", "error-20.tokens-40", "no-done.tokens-20"])
@every_stream
def test_a_stream_that_its_upstream_breaks_off_is_charged_what_had_passed(bounded, route, script):
    org, model = bounded.join("tokens_per_day = 100_000"), fresh(script)
    with bounded.connect(org) as connection:
        connection.send(connection.head(PATHS[route], asked := body(route, model, HUNDRED, stream=True)))
        status, headers = connection.read_head()
        assert status == 200
        until_cut(connection)
    (sent,) = bounded.sent(model)
    assert sent["output_tokens"] == 20
    usage = bounded.closed(headers)["usage"]
    # Input: as the model said at its beginning (messages), at its end (no-done), or by the bytes of the body.
    assert usage["input"] in (100, math.ceil(len(json.dumps(asked)) / 3))
    assert usage["output"] in (20, math.ceil(text_of(20) / 3))
    assert bounded.settled(org)["used"] == usage["input"] + usage["output"]


def test_a_client_that_leaves_before_the_head_is_charged_its_input(bounded):
    org, model = bounded.join("tokens_per_day = 100_000\nrequests_per_day = 10\nconcurrent_requests = 1"), fresh("hang")
    with bounded.connect(org) as connection:
        connection.send(connection.head(PATHS["chat"], asked := body("chat", model, HUNDRED)))
        eventually(lambda: bounded.sent(model), what="the request upstream")
        assert bounded.ask(org).headers["portcullis-reason"] == "concurrency_limit_exceeded"
    assert bounded.settled(org)["used"] == math.ceil(len(json.dumps(asked)) / 3)
    assert bounded.stage.limit(org, "requests_per_day")["used"] == 1
    assert bounded.ask(org, text=HUNDRED).status == 200, "its place is free again"
    (sent,) = eventually(lambda: [one for one in bounded.sent(model) if one["ended"]], what="the end upstream")
    assert sent["ended"] == "client_gone"


@pytest.mark.parametrize("script", ["hang", "tokens-60.tps-10", "tokens-60.tps-10.plain", "die-20.tokens-40",
                                    "die-20.tokens-40.plain", "no-done.no-usage.tokens-20"])  # fmt: skip
def test_hard_charges_all_that_was_reserved_where_nobody_saw_the_end(hard, script):
    """What a model thought and would have reported in the end is in no byte that passed."""
    org, model = hard.join("tokens_per_day = 100_000"), fresh(script)
    with hard.connect(org) as connection:
        connection.send(connection.head(PATHS["chat"], body("chat", model, HUNDRED, stream=True, maximum=5000)))
        eventually(lambda: hard.sent(model), what="the request upstream")
        reserved = hard.stage.limit(org, "tokens_per_day")
        if script.startswith("tokens"):
            connection.read_head()
            connection.read_chunk()
        elif script != "hang":
            connection.read_head()
            until_cut(connection)
    used = hard.settled(org)["used"]
    assert used == reserved["reserved"] + reserved["used"] > 5000
    line = eventually(lambda: next((one for one in hard.stage.audit() if one["kind"] == "closed"
                                    and one["organization"] == org), None), what="a closing line")  # fmt: skip
    assert (line["settlement"], line["usage"]["output"]) == ("estimated", 5000)


def test_hard_charges_nothing_beyond_what_the_model_was_told(hard):
    """The text so far is estimated at all that it may be: there is no further step to reserve."""
    org, model = hard.join("output_tokens_per_day = 100_000"), fresh("die-15.tokens-40")
    with hard.connect(org) as connection:
        connection.send(connection.head(PATHS["chat"], body("chat", model, HUNDRED, stream=True, maximum=16)))
        _, headers = connection.read_head()
        until_cut(connection)
    assert hard.closed(headers)["usage"]["output"] == 16
    assert hard.settled(org, "output_tokens_per_day")["used"] == 16


@pytest.mark.parametrize("how", ["bounded", "hard"])
def test_counting_tokens_costs_none_either_where_no_answer_can_be_read(request, how):
    place = request.getfixturevalue(how)
    org = place.join('tokens_per_day = 10\nrequests_per_day = 10\n[model.priced.limits]\ncost_per_day = "0.00"')
    route = "/v1/messages/count_tokens"
    with place.connect(org) as connection:
        answer = connection.ask(route, body("messages", fresh("gzip"), HUNDRED))
    assert answer.headers["portcullis-reason"] == "upstream_invalid"
    model = fresh("hang")
    with place.connect(org) as connection:
        connection.send(connection.head(route, body("messages", model, HUNDRED)))
        eventually(lambda: place.sent(model), what="the request upstream")
    assert place.settled(org)["used"] == 0
    assert place.settled(org, "requests_per_day")["used"] == 2
    closed = lambda: [line for line in place.stage.audit() if line["kind"] == "closed" and line["organization"] == org]  # noqa: E731
    for line in eventually(lambda: len(closed()) == 2 and closed(), what="two closing lines"):
        assert (line["settlement"], set(line["usage"].values()), line["cost"]) == ("none", {0}, "0.00")


def test_counting_tokens_is_a_request_without_tokens(bounded):
    org = bounded.join("tokens_per_day = 100_000\nrequests_per_day = 2")
    asked = body("messages", fresh("tokens-9"), HUNDRED)
    with bounded.connect(org) as connection:
        statuses = [connection.ask("/v1/messages/count_tokens", asked).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert bounded.settled(org)["used"] == 0


def test_what_the_gateway_answers_itself_costs_nothing(bounded):
    org = bounded.join("requests_per_day = 0\nconcurrent_requests = 0")
    with bounded.connect(org) as connection:
        for path in ("/v1/models", "/portcullis/v1/whoami", "/portcullis/v1/usage"):
            assert connection.ask(path).status == 200
    assert bounded.stage.limit(org, "requests_per_day")["used"] == 0


@pytest.mark.parametrize("script", ["fail-400", "fail-429", "fail-500", "fail-503", "page-502"])
@pytest.mark.parametrize("route", PATHS)
def test_an_upstreams_error_costs_no_tokens(bounded, route, script):
    org = bounded.join("tokens_per_day = 2_000\nrequests_per_day = 10")
    answer = bounded.ask(org, route, model=fresh(script), text=HUNDRED)
    assert answer.status == int(script.rsplit("-", 1)[1])
    assert "portcullis-reason" not in answer.headers, "the upstream's own answer"
    assert bounded.settled(org)["used"] == 0
    assert bounded.stage.limit(org, "requests_per_day")["used"] == 1


def test_an_upstream_that_cannot_be_reached_costs_no_tokens(bounded):
    org = bounded.join("tokens_per_day = 2_000")
    answer = bounded.ask(org, model="nowhere")
    assert (answer.status, answer.headers["portcullis-reason"]) == (502, "upstream_unreachable")
    assert bounded.settled(org)["used"] == 0


@every_flow
def test_an_answer_without_usage_is_charged_an_estimate_and_counted(bounded, route, stream):
    org, model = bounded.join("tokens_per_day = 100_000"), fresh("no-usage.tokens-20")
    answer = bounded.ask(org, route, model=model, text=HUNDRED, stream=stream)
    assert answer.status == 200
    (sent,) = bounded.sent(model)
    line = bounded.closed(answer.headers)
    assert line["settlement"] == "estimated"
    asked = len(json.dumps(body(route, model, HUNDRED, stream)))
    output = math.ceil(text_of(sent["output_tokens"]) / 3)
    assert (line["usage"]["input"], line["usage"]["output"]) == (math.ceil(asked / 3), output)
    assert bounded.settled(org)["used"] == math.ceil(asked / 3) + output > spent([sent])
    assert bounded.stage.metric("portcullis_usage_missing_total", org=org) == 1


@pytest.mark.parametrize(("route", "stream"), [one for one in FLOWS if one[0] != "embeddings"])
def test_usage_that_lies_low_is_disputed(bounded, route, stream):
    org, model = bounded.join("tokens_per_day = 100_000"), fresh("usage-low.tokens-50")
    answer = bounded.ask(org, route, model=model, text=HUNDRED, stream=stream)
    assert answer.status == 200
    (sent,) = bounded.sent(model)
    line = bounded.closed(answer.headers)
    assert line["settlement"] == "disputed"
    assert bounded.settled(org)["used"] >= spent([sent])
    assert bounded.stage.metric("portcullis_usage_disputed_total", org=org) == 1
    assert bounded.stage.metric("portcullis_usage_missing_total", org=org) == 0


def test_cached_tokens_count_by_their_weight(bounded):
    org = bounded.join("tokens_per_day = 2_000")
    answer = bounded.ask(org, model="gpt-light-mock-tokens-7.cached-30.cache-write-20", text=HUNDRED)
    assert answer.status == 200
    assert bounded.settled(org)["used"] == 50 + 0 * 30 + 2 * 20 + 7


def test_money_is_charged_by_the_price_list_and_runs_out(bounded):
    org = bounded.join('cost_per_day = "0.02"', models='"priced"')
    model = "gpt-priced-mock-tokens-100.cached-30.cache-write-20"
    price = 50 * 2.50 + 30 * 0.25 + 20 * 3.125 + 100 * 15.00
    for passed in range(1, 20):
        answer = bounded.ask(org, model=model, text=HUNDRED, maximum=100)
        if answer.status != 200:
            break
        standing = eventually(lambda: (now := bounded.stage.limit(org, "cost_per_day"))["reserved"] == "0.00" and now)
        assert float(standing["used"]) == pytest.approx(passed * price / 1e6)
        assert float(bounded.closed(answer.headers)["cost"]) == pytest.approx(price / 1e6)
    assert 8 <= passed <= 12
    assert (answer.status, answer.headers["portcullis-reason"]) == (429, "insufficient_quota")
    (limit, used, requested), message = words(answer)
    assert limit == 0.02 and used + requested > 0.02
    assert used == pytest.approx((passed - 1) * price / 1e6)
    assert "cost_per_day" in message
    assert bounded.stage.metric("portcullis_cost_total", org=org) == pytest.approx(used)


# The extra usage chunk.


def plain(stream):
    """A stream without what differs from one answer to the next."""
    return re.sub(rb'("id":"(?:chat)?cmpl-mock)\d+|("created":)\d+', rb"\1\2", stream)


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("script", [
    "tokens-5", "piece-1.tokens-3", "piece-7.tokens-5", "crlf.tokens-3", "crlf.piece-1.tokens-3", "comments.tokens-3",
    "no-done.tokens-3", "usage-every-chunk.tokens-3", "big-event-40000", "tokens-5.plain",
])  # fmt: skip
def test_who_did_not_ask_for_the_usage_chunk_sees_everything_but_it(bounded, route, script):
    org, model = bounded.join(), fresh(script)
    got = bounded.ask(org, route, model=model, stream=True).body
    asked = bounded.ask(org, route, model=model, stream=True, stream_options={"include_usage": True}).body
    direct = fetch(bounded.stage.mock_url + PATHS[route],
                   body(route, model, stream=True, stream_options={"include_usage": True})).body  # fmt: skip
    assert plain(asked) == plain(direct), "who asked sees it all"
    chunk = rb'(?:: keepalive(?:\r?\n){2})?data: [^\n]*"choices":\[\],"usage":\{[^\n]*\n\r?\n'
    assert len(re.findall(chunk, direct)) == 1
    without = re.sub(chunk, lambda found: found[0][: found[0].index(b"data: ")], direct)
    assert plain(got) == plain(without)


@pytest.mark.parametrize(("options", "became"), [
    ("", '"stream_options":{"include_usage":true},'),
    ('"stream_options":null,', '"stream_options":{"include_usage":true},'),
    ('"stream_options": {},', '"stream_options": {"include_usage":true},'),
    ('"stream_options":{"include_usage":false},', '"stream_options":{"include_usage":true},'),
    ('"stream_options":{"include_usage":null},', '"stream_options":{"include_usage":true},'),
    ('"stream_options":{ "x":false},', '"stream_options":{"include_usage":true, "x":false},'),
    ('"stream_options":{"include_usage":true},', '"stream_options":{"include_usage":true},'),
])  # fmt: skip
def test_a_body_goes_on_byte_for_byte_but_for_the_splice(bounded, options, became):
    org, model = bounded.join(), fresh("tokens-3")
    rest = f'"model" : "{model}", "stream":true,"messages":[{{"role":"user","content":"\\u00e4 ä"}}], "x":1.50}}\n'
    with bounded.connect(org) as connection:
        answer = connection.ask(PATHS["chat"], ("{" + options + rest).encode())
    assert answer.status == 200, answer.body
    (sent,) = bounded.sent(model)
    assert sent["body"] == "{" + became + rest
    assert (b'"choices":[]' in answer.body) == ('"include_usage":true' in options)
