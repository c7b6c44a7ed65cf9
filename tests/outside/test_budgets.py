"""What limits promise: how much passes on every route, who is kept out, what cuts a stream, and what is told of it."""

import datetime
import json
import math
import re
import threading
import time

import pytest
from place import (
    HUNDRED, MAXIMUM, ORG, PATHS, STEP, STREAMED, body, crowd, every_flow, every_stream, fresh, place, spent, text_of,
    until_cut, words,
)  # fmt: skip
from stage import chat, eventually, fetch

hard_place, hard = place("hard")
bounded_place, bounded = place("bounded")
post_place, post = place("post")


@pytest.fixture(params=["hard", "bounded"])
def either(request):
    return request.getfixturevalue(request.param)


# A budget, to its end.


@every_flow
def test_a_day_of_2000_tokens_ends_after_2000_tokens(either, route, stream):
    org, model = either.join("tokens_per_day = 2_000"), fresh("tokens-100")
    with either.connect(org) as connection:
        for _ in range(40):
            before = either.settled(org)
            asked = datetime.datetime.now(datetime.timezone.utc)
            answer = either.ask(org, route, connection, model=model, text=HUNDRED, stream=stream, maximum=100)
            answered = datetime.datetime.now(datetime.timezone.utc)
            if answer.status != 200:
                break
    sent = either.sent(model)
    assert len(sent) >= 5
    assert spent(sent) == before["used"] <= 2000
    (limit, used, requested), message = words(answer)
    assert (limit, used) == (2000, before["used"])
    assert used + requested > 2000
    assert "tokens_per_day" in message and "Try again in" in message
    assert answer.status == 429
    error = answer.json["error"]
    assert error["type"] == ("rate_limit_error" if route == "messages" else "insufficient_quota")
    assert error["code"] == answer.headers["portcullis-reason"] == "insufficient_quota"
    ends = datetime.datetime.fromisoformat(before["resets_at"].replace("Z", "+00:00"))
    least, most = (ends - answered).total_seconds(), (ends - asked).total_seconds() + 2
    assert least <= int(answer.headers["retry-after"]) <= most
    assert least * 1000 <= int(answer.headers["retry-after-ms"]) <= most * 1000 * 1.1
    assert answer.headers["x-should-retry"] == "false"
    after = either.settled(org)
    assert after["used"] == before["used"], "a refusal costs nothing"


def test_hard_holds_a_crowd_that_names_no_maximum_to_the_budget(hard):
    org, model = hard.join("tokens_per_day = 2_000"), fresh("tokens-100000")
    asked = [body("chat", model, n=n, stream=n == 2) for n in (1, 2, 3)] * 30
    statuses = crowd(hard.stage, org, asked)
    sent = hard.sent(model)
    assert len(sent) == statuses.count(200) > 3
    assert set(statuses) == {200, 429}
    assert spent(sent) <= hard.settled(org)["used"] <= 2000


def test_hard_clamps_what_is_asked_and_puts_in_what_is_not(hard):
    org, model = hard.join("tokens_per_day = 2_000"), fresh("tokens-100000")
    for route in MAXIMUM:
        for stream in (False, True):
            answer = hard.ask(org, route, model=model, stream=stream)
            assert answer.status == 200, answer.body
    for one in hard.sent(model):
        assert one["output_tokens"] <= 64, one["path"]


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
def test_hard_holds_an_answer_to_its_models_cap(hard, route):
    org, model = hard.join("tokens_per_day = 100_000"), f"gpt-short-{fresh('tokens-1000')}"
    for maximum in (None, 20, 1000):
        assert hard.ask(org, route, model=model, maximum=maximum).status == 200
    assert [one["output_tokens"] for one in hard.sent(model)] == [50, 20, 50]


@pytest.mark.parametrize(("route", "members"), [
    ("responses", {"previous_response_id": "resp_1"}), ("messages", {"thread": {"type": "continue"}}),
    ("responses", {"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]}),
    ("chat", {"enable_search": True}),
])  # fmt: skip
def test_hard_refuses_what_it_cannot_bound(hard, route, members):
    org = hard.join("tokens_per_day = 2_000")
    answer = hard.ask(org, route, **members)
    assert (answer.status, answer.headers["portcullis-reason"]) == (400, "quota_request_too_large")


@pytest.mark.parametrize(("limit", "burst", "ratio"), [(60, 10, 0.4), (10, 80, 0.05)])
def test_a_limit_with_a_burst_is_as_full_as_its_burst_is(bounded, limit, burst, ratio):
    org = bounded.join(f"requests_per_hour = {{ limit = {limit}, burst = {burst} }}")
    assert {bounded.ask(org, maximum=5).status for _ in range(4)} == {200}
    shown = bounded.stage.metric("portcullis_quota_used_ratio", org=org)
    assert 0.7 * ratio <= shown <= ratio


# What is made between a cut and the model's hearing of it is in the model's book: so slowly that it is next to nothing.
@pytest.mark.parametrize("script", ["tokens-100000.tps-300", "tokens-100000"], ids=["paced", "as-fast-as-possible"])
def test_bounded_overspends_a_budget_by_one_extension_a_stream_at_most(bounded, script):
    org, model = bounded.join("tokens_per_day = 3_000"), fresh(script)
    open_streams = [bounded.connect(org) for _ in range(4)]
    for one in open_streams:
        one.send(one.head(PATHS["chat"], body("chat", model, stream=True)))
    got = []
    for one in open_streams:
        with one:
            status, headers = one.read_head()
            text, whole = until_cut(one) if status == 200 else (one.read_body(headers), None)
            got.append((status, whole, len(re.findall(rb'"content":"[^"]', text))))
    assert not any(whole for _, whole, _ in got), got
    used = bounded.settled(org)["used"]
    assert used <= 3000 + 4 * STEP, (used, got)
    assert sum(tokens for *_, tokens in got) <= 3000 + 4 * STEP, got
    if "tps" in script:
        assert spent(bounded.sent(model)) <= 3000 + 4 * STEP


REST = 500 - 64


@pytest.mark.parametrize(("mode", "window", "streams", "beyond", "seen"), [
    ("hard", "day", 1, 0, 0), ("hard", "minute", 1, 0, 0),
    ("bounded", "day", 3, REST, STEP), ("bounded", "minute", 3, REST, REST),
    ("post", "day", 3, REST, REST), ("post", "minute", 3, REST, REST),
])  # fmt: skip
def test_the_exported_bound_of_every_mode_holds_where_answers_are_longer_than_reserved(
    request, mode, window, streams, beyond, seen
):
    """`seen` is by how much a stream may exceed its reservation whose tokens can be seen coming, as these can."""
    one, quota = request.getfixturevalue(mode), f"tokens_per_{window}"
    parent = one.join("tokens_per_day = 1_000_000\n[model.long.limits]\ntokens_per_hour = 1_000_000")
    org = one.join(f"{quota} = 400\nrequests_per_day = 100\nconcurrent_requests = 10", parent=parent)

    def bound(quota, whose=org):
        return one.stage.metric("portcullis_quota_overspend_bound", org=whose, quota=quota)

    def openly():
        return one.stage.metric("portcullis_streams_active", org=org)

    # A stream that is to be cut is made so slowly that next to nothing is, before the model hears of it.
    pace = 50 if seen == STEP else 500
    asked = body("chat", f"gpt-long-{fresh(f'tokens-500.tps-{pace}.ttft-5000')}", stream=True)
    connections = [one.connect(org) for _ in range(3)]
    for connection in connections:
        connection.send(connection.head(PATHS["chat"], asked))
    eventually(lambda: openly() == streams, what="streams that have said nothing yet")
    # Of the input, all but what is reserved of it: a token for each byte, and some for the frame of one message.
    input_reserved = one.stage.limit(parent, "tokens_per_day")["reserved"] / streams - 64
    more = 0 if mode == "hard" else len(json.dumps(asked)) + 32 - input_reserved
    assert bound(quota) == streams * (beyond + more)
    assert bound("requests_per_day") == bound("concurrent_requests") == 0
    assert bound("long/tokens_per_hour", parent) == streams * (0 if mode == "hard" else REST + more)
    for connection in connections:
        with connection:
            status, _ = connection.read_head()
            assert status in (200, 429)
            if status == 200:
                until_cut(connection)
    eventually(lambda: openly() == 0, what="their end")
    real = spent(one.sent(asked["model"]))
    assert real <= 400 + streams * seen
    assert (real > 400 + streams * STEP) == (seen == REST), "a real over-spend, where the mode has one"
    assert bound(quota) == 0


@pytest.mark.parametrize(("mode", "maximum"), [("hard", None), ("bounded", 250), ("bounded", 200)])
def test_an_answer_that_keeps_to_what_it_may_have_is_never_cut(request, mode, maximum):
    """Its tokens are longer than what is assumed of a token: the estimate runs ahead of them, beyond the budget."""
    one = request.getfixturevalue(mode)
    org, model = one.join("tokens_per_day = 400"), f"gpt-long-{fresh('tokens-500')}"
    with one.connect(org) as connection:
        connection.send(connection.head(PATHS["chat"], body("chat", model, stream=True, maximum=maximum)))
        _, headers = connection.read_head()
        text, whole = until_cut(connection)
    assert whole, text[-500:]
    assert (maximum or 200) <= spent(one.sent(model)) == one.settled(org)["used"] <= 400
    assert one.closed(headers)["ending"] == "complete"


def test_an_answer_that_nothing_bounds_is_exported_as_that(post):
    org = post.join('tokens_per_day = 100_000\ncost_per_day = "1.00"', models='"gpt-priced-*"')
    with post.connect(org) as connection:
        asked = body("chat", "gpt-priced-mock-tokens-100000.tps-50", stream=True)
        connection.send(connection.head(PATHS["chat"], asked))
        assert connection.read_head()[0] == 200
        for quota in ("tokens_per_day", "cost_per_day"):
            assert post.stage.metric("portcullis_quota_overspend_bound", org=org, quota=quota) == math.inf


@pytest.mark.parametrize(
    "frames", ["", ".piece-50", ".piece-1000", ".crlf", ".plain"],
    ids=["events", "smaller", "larger", "crlf", "called-plain"],
)
@every_stream
def test_a_stream_that_uses_up_a_budget_is_cut_with_its_dialects_error_event(bounded, route, frames):
    """Whole events only, however the upstream's frames lie: one that is open goes out to its end before ours."""
    org, model = bounded.join("tokens_per_day = 300"), fresh("tokens-100000.tps-3000" + frames)
    with bounded.connect(org) as connection:
        connection.send(connection.head(PATHS[route], body(route, model, stream=True)))
        status, headers = connection.read_head()
        assert status == 200
        text, whole = until_cut(connection)
    assert not whole, "a cut answer must not end like a whole one"
    assert b"[DONE]" not in text and b"message_stop" not in text and b"response.completed" not in text
    *events, last = text.decode().replace("\r\n", "\n").split("\n\n")
    assert len(events) > 20
    for event in events:
        assert re.fullmatch(r"(event: [a-z._]+\n)?data: \{.*\}", event), "an event in pieces"
        json.loads(event.split("data: ", 1)[1])
    assert not last, "half an event"
    last = events.pop()
    data = json.loads(last.rsplit("data: ", 1)[1])
    assert last.startswith("event: error\n") == (route in ("responses", "messages"))
    assert data["error"]["code"] == "insufficient_quota"
    assert data["error"]["type"] == ("rate_limit_error" if route == "messages" else "insufficient_quota")
    assert data["request_id"] == headers["request-id"]
    if route == "responses":
        assert (data["type"], data["code"], data["sequence_number"]) == ("error", "insufficient_quota", len(events))
    if route == "messages":
        assert data["type"] == "error"
    assert bounded.settled(org)["used"] <= 300 + STEP
    line = bounded.closed(headers)
    assert (line["ending"], line["reason"]) == ("quota_cut", "insufficient_quota")


@pytest.mark.parametrize(("limits", "ending"), [
    ("output_tokens_per_day = 200", "quota_cut"),
    ("tokens_per_month = 300", "quota_cut"),
    ('cost_per_day = "0.005"', "quota_cut"),
    ("[purpose.research.limits]\ntokens_per_day = 300", "quota_cut"),
    ("[model.priced.limits]\ntokens_per_day = 300", "quota_cut"),
    ("[purpose.research.model.priced.limits]\ntokens_per_day = 300", "quota_cut"),
    ("input_tokens_per_day = 300", "complete"),
    ("[purpose.incident.limits]\ntokens_per_day = 1", "complete"),
    ("[model.light.limits]\ntokens_per_day = 1", "complete"),
    ("tokens_per_day = { limit = 300, shadow = true }", "complete"),
    ("output_tokens_per_hour = 300", "complete"),
])  # fmt: skip
def test_a_budget_of_whatever_kind_cuts_and_nothing_else_does(bounded, limits, ending):
    org = bounded.join(limits, models='"priced", "light"')
    with bounded.connect(org) as connection:
        asked = body("chat", "gpt-priced-mock-tokens-1000.tps-5000", stream=True)
        connection.send(connection.head(PATHS["chat"], asked))
        status, headers = connection.read_head()
        assert status == 200
        until_cut(connection)
    assert bounded.closed(headers)["ending"] == ending


def test_an_ancestors_budget_cuts_a_childs_stream(bounded):
    parent = bounded.join("tokens_per_day = 300")
    child = bounded.join("tokens_per_day = 100_000", parent=parent)
    with bounded.connect(child) as connection:
        connection.send(connection.head(PATHS["chat"], body("chat", "mock-tokens-1000.tps-5000", stream=True)))
        _, headers = connection.read_head()
        text, whole = until_cut(connection)
    assert not whole and b"insufficient_quota" in text and parent.encode() not in text
    assert bounded.closed(headers)["ending"] == "quota_cut"
    assert bounded.settled(parent)["used"] == bounded.settled(child)["used"] <= 300 + STEP


def frames_that_end_with_an_event(stage):
    """Sizes of frames of which one holds the end of an event and not its beginning; and which event that is."""
    for size in range(100, 150):
        # As long a name as the one that is asked for, so that all bytes lie alike.
        asked = body("chat", f"mock-tokens-100.tps-000.piece-{size}", stream=True)
        asked["stream_options"] = {"include_usage": True}
        ends = [found.end() for found in re.finditer(rb"\n\n", fetch(stage.mock_url + PATHS["chat"], asked).body)]
        # The first event only names the role.
        yield from ((size, tokens) for tokens in range(2, 33) if ends[tokens] % size == 0)


def test_an_error_event_never_stands_in_the_middle_of_an_event(bounded):
    """Where a budget ends with the last byte of an event, that byte goes out before ours, and is what was charged."""
    told = 0
    for size, tokens in frames_that_end_with_an_event(bounded.stage):
        asked = body("chat", f"mock-tokens-100.tps-300.piece-{size}", stream=True)
        inside = math.ceil(len(json.dumps(asked)) / 3)
        org = bounded.join(f"tokens_per_day = {inside + math.ceil(text_of(tokens) / 3)}")
        with bounded.connect(org) as connection:
            connection.send(connection.head(PATHS["chat"], asked))
            assert connection.read_head()[0] == 200
            text, whole = until_cut(connection)
        assert not whole
        *events, rest = text.decode().split("\n\n")
        assert all(re.fullmatch(r'data: \{("id":"[^"]*","object"|"error").*\}', event) for event in events), text[-500:]
        assert '"error"' not in rest, text[-500:]
        told += (ours := '"error"' in events[-1])
        delivered = len(re.findall(rb'"content":"[^"]', text))
        assert delivered >= tokens, "what used the budget up was delivered"
        if ours:
            assert len(events) == 1 + delivered + 1
            assert bounded.settled(org)["used"] == inside + math.ceil(text_of(delivered) / 3)
    assert told


def test_a_rate_never_cuts_and_its_overrun_is_debt(bounded):
    org, model = bounded.join("tokens_per_minute = 300"), fresh("tokens-1000")
    answer = bounded.ask(org, model=model, stream=True)
    assert answer.status == 200 and answer.body.endswith(b"data: [DONE]\n\n")
    standing = eventually(lambda: (now := bounded.stage.limit(org, "tokens_per_minute"))["used"] > 900 and now)
    assert standing["remaining"] == 0
    refused = bounded.ask(org, model=model, maximum=1)
    assert (refused.status, refused.headers["portcullis-reason"]) == (429, "rate_limit_exceeded")
    (limit, used, requested), _ = words(refused)
    wait = (used + requested - limit) * 60 / limit
    assert wait - 0.2 <= int(refused.headers["retry-after"]) <= wait + 1
    assert refused.headers["x-should-retry"] == "false", "longer than a minute"


def test_what_a_settlement_gives_back_nobody_has_had_before(bounded):
    """A reservation drains like any use; what has drained of it must not be given back once more, or within any time
    more passes than the burst and what leaks in that time."""
    org, model = bounded.join("tokens_per_minute = { limit = 60_000, burst = 2_000 }"), fresh("tokens-1")

    def level():
        now = bounded.stage.limit(org, "tokens_per_minute")
        return now["used"] + now["reserved"]

    def spend(connection):
        """Asks until there is no room; what that used."""
        used = 0
        while (answer := bounded.ask(org, "chat", connection, model=model, text=HUNDRED, maximum=1)).status == 200:
            used += answer.json["usage"]["total_tokens"]
        return used

    with bounded.connect(org) as slow, bounded.connect(org) as connection:
        slow.send(slow.head(PATHS["chat"], body("chat", fresh("tokens-1.ttft-1500"), maximum=1800)))
        assert eventually(level) > 500
        eventually(lambda: level() < 500, what="drained use")
        began = time.monotonic()
        used = spend(connection)
        assert slow.read_head()[0] == 200
        used += spend(connection)
        took = time.monotonic() - began
    assert used <= 2_000 + 1_000 * took + 200, took


@pytest.mark.parametrize("route", STREAMED)
def test_a_request_that_can_never_fit_is_told_so_at_once(either, route):
    org = either.join("tokens_per_day = 2_000")
    answer = either.ask(org, route, maximum=90_000)
    assert (answer.status, answer.headers["portcullis-reason"]) == (400, "quota_request_too_large")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert either.settled(org)["used"] == 0


@every_stream
def test_an_estimate_alone_lets_a_request_wait_and_never_refuses_it_for_ever(bounded, route):
    """By its bytes this input is more than the limit holds; by the model's own count it is less."""
    org, text = bounded.join("tokens_per_day = 1_000"), "word " * 700
    first = bounded.ask(org, route, model=fresh("tokens-20"), text=text, maximum=20)
    assert first.status == 200, first.body
    assert bounded.settled(org)["used"] == 875 + 20
    second = bounded.ask(org, route, model=fresh("tokens-20"), text=text, maximum=20)
    assert (second.status, second.headers["portcullis-reason"]) == (429, "insufficient_quota")
    assert int(second.headers["retry-after"]) > 0
    # However sparse, this is more than the limit holds.
    third = bounded.ask(org, route, model=fresh("tokens-20"), text="word " * 1100, maximum=20)
    assert (third.status, third.headers["portcullis-reason"]) == (400, "quota_request_too_large")
    assert bounded.settled(org)["used"] == 875 + 20


def test_hard_still_refuses_what_its_limits_can_not_hold(hard):
    org = hard.join("tokens_per_day = 1_000")
    answer = hard.ask(org, text="word " * 700, maximum=20)
    assert (answer.status, answer.headers["portcullis-reason"]) == (400, "quota_request_too_large")


# Limits of every kind.


@pytest.mark.parametrize(("limits", "reason"), [
    ("requests_per_day = 10", "insufficient_quota"),
    ("requests_per_minute = { limit = 60, burst = 10 }", "rate_limit_exceeded"),
    ("concurrent_requests = 10", "concurrency_limit_exceeded"),
    ("tokens_per_day = 2_000", "insufficient_quota"),
])  # fmt: skip
def test_of_1000_requests_at_once_exactly_10_pass(bounded, limits, reason):
    org, model = bounded.join(limits), fresh("tokens-1000.tps-1")
    # 10 reservations of 199 tokens fit 2,000, 11 do not; input is reserved at a third of a token to the byte.
    one = body("chat", model, stream=True, max_tokens=100)
    one["max_tokens"] = 199 - math.ceil(len(json.dumps(one)) / 3)
    began = time.monotonic()
    statuses = crowd(bounded.stage, org, [one] * 1000, whole=False)
    # What leaked meanwhile, one a second.
    leaked = (time.monotonic() - began) if "minute" in limits else 0
    passed = statuses.count(200)
    assert 10 <= passed <= 10 + leaked
    assert statuses.count(429) == 1000 - passed
    assert len(bounded.sent(model)) == passed
    assert bounded.stage.metric("portcullis_request_refusals_total", org=org, reason=reason) == 1000 - passed


def test_a_place_under_the_concurrency_limit_is_free_again_when_an_answer_ends(bounded):
    org = bounded.join("concurrent_requests = 2")
    holding = [bounded.connect(org) for _ in range(2)]
    for one in holding:
        one.send(one.head(PATHS["chat"], body("chat", fresh("tokens-5000.tps-50"), stream=True)))
        assert one.read_head()[0] == 200
    refused = bounded.ask(org)
    assert (refused.status, refused.headers["portcullis-reason"]) == (429, "concurrency_limit_exceeded")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert words(refused)[0] == [2, 2, 1]
    assert refused.headers["retry-after"] == "1" and "x-should-retry" not in refused.headers
    holding[0].close()
    eventually(lambda: bounded.ask(org).status == 200, what="a free place")
    holding[1].close()
    eventually(lambda: bounded.stage.limit(org, "concurrent_requests")["used"] == 0, what="an empty gauge")


@pytest.mark.parametrize("limit", ["tokens_per_day = 1_000", 'cost_per_month = "0.015"'])
def test_what_requests_under_way_have_reserved_is_told_apart_and_soon_there_again(bounded, limit):
    org, model = bounded.join(limit, models='"priced"'), "gpt-priced-mock-tokens-1000.tps-10"
    with bounded.connect(org) as first:
        first.send(first.head(PATHS["chat"], body("chat", model, stream=True, max_tokens=900)))
        assert first.read_head()[0] == 200
        refused = bounded.ask(org, model="gpt-priced-mock-tokens-5", maximum=500)
        # Which code it is, the kind of limit says; that it is no end of the budget, how long to wait.
        assert (refused.status, refused.headers["portcullis-reason"]) == (429, "insufficient_quota")
        (most, used, reserved, requested), message = words(refused)
        assert used == 0 < requested <= most < reserved + requested, message
        # Nobody knows when it ends, so nobody is sent away until midnight.
        assert refused.headers["retry-after"] == "1" and "x-should-retry" not in refused.headers
        assert 250 <= int(refused.headers["retry-after-ms"]) <= 275
        assert re.fullmatch(r'"[a-z-]+";r=\d+;t=1', refused.headers["ratelimit"])
    eventually(lambda: bounded.ask(org, model="gpt-priced-mock-tokens-5", maximum=500).status == 200, what="its room")


@pytest.mark.parametrize("limit", ["requests_per_minute = { limit = 60", "requests_per_hour = { limit = 3600"])
def test_the_wait_that_a_refusal_names_is_enough_and_no_more(bounded, limit):
    org = bounded.join(limit + ", burst = 1 }")
    with bounded.connect(org) as connection:
        asked = time.monotonic()
        assert bounded.ask(org, connection=connection).status == 200
        refused = bounded.ask(org, connection=connection)
        told = time.monotonic()
        assert (refused.status, refused.headers["portcullis-reason"]) == (429, "rate_limit_exceeded")
        assert "x-should-retry" not in refused.headers
        millis = int(refused.headers["retry-after-ms"])
        assert (1 - (told - asked)) * 1000 <= millis <= 1001 * 1.1
        assert refused.headers["retry-after"] == "1"
        # Obeying it is what a client does.
        time.sleep(max(0, told + millis / 1000 - time.monotonic()))
        assert bounded.ask(org, connection=connection).status == 200
        assert time.monotonic() - asked >= 1


def test_a_chain_of_organizations_is_charged_all_or_nothing(bounded):
    root = bounded.join("requests_per_day = 100\ntokens_per_day = 100_000")
    middle = bounded.join("requests_per_day = 3", parent=root)
    first = bounded.join("requests_per_day = 2", parent=middle)
    second = bounded.join("requests_per_day = 100", parent=middle)

    def used():
        return [bounded.stage.limit(org, "requests_per_day")["used"] for org in (root, middle, first, second)]

    assert [bounded.ask(first, text=HUNDRED).status for _ in range(3)] == [200, 200, 429]
    assert used() == [2, 2, 2, 0], "what the child's own limit refuses costs its ancestors nothing"
    assert bounded.ask(second, text=HUNDRED).status == 200
    refused = bounded.ask(second)
    assert (refused.status, refused.headers["portcullis-reason"]) == (429, "insufficient_quota")
    assert used() == [3, 3, 2, 1], "what an ancestor refuses costs nobody anything"
    assert words(refused)[0] == [3, 3, 1]
    for other in (root, middle, first):
        assert other.encode() not in refused.body
    eventually(lambda: bounded.stage.limit(root, "tokens_per_day")["reserved"] == 0)
    assert bounded.stage.limit(root, "tokens_per_day")["used"] == 3 * 116


def test_two_children_at_once_never_take_more_than_their_parent_has(bounded):
    parent = bounded.join("requests_per_day = 10")
    children = [bounded.join("requests_per_day = 1000", parent=parent) for _ in range(2)]
    one, passed = body("chat", fresh("tokens-1000.tps-1"), stream=True), {}

    def ask(child):
        passed[child] = crowd(bounded.stage, child, [one] * 200, whole=False).count(200)

    threads = [threading.Thread(target=ask, args=(child,)) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(passed.values()) == 10
    for org, admitted in {parent: 10, **passed}.items():
        assert bounded.stage.limit(org, "requests_per_day")["used"] == admitted


def test_of_several_limits_the_one_that_keeps_out_longest_is_named(bounded):
    org = bounded.join("""\
requests_per_minute = { limit = 60, burst = 1 }
requests_per_hour = { limit = 60, burst = 1 }
requests_per_day = 1
""")
    assert bounded.ask(org).status == 200
    refused = bounded.ask(org)
    assert refused.headers["portcullis-reason"] == "insufficient_quota"
    assert "requests_per_day" in words(refused)[1]


def test_purposes_and_models_have_limits_of_their_own(bounded):
    org = bounded.join("""\
[purpose.research.limits]
requests_per_day = 4
[model.light.limits]
requests_per_day = 3
[purpose.research.model.light.limits]
requests_per_day = 2
""")
    incident = {"portcullis_purpose": "incident", "portcullis_case": "C-1"}
    light = {"model": "gpt-light-mock-tokens-1"}
    assert [bounded.ask(org, **light).status for _ in range(3)] == [200, 200, 429]
    assert [bounded.ask(org, **light, headers=incident).status for _ in range(2)] == [200, 429]
    assert [bounded.ask(org).status for _ in range(3)] == [200, 200, 429]
    assert bounded.ask(org, headers=incident).status == 200
    for asked, name in (({}, "research/requests_per_day"), (light | {"headers": incident}, "light/requests_per_day")):
        assert f"for {name}:" in words(bounded.ask(org, **asked))[1]


def test_a_shadow_limit_counts_and_never_refuses(bounded):
    org = bounded.join("""\
requests_per_day = { limit = 2, shadow = true }
tokens_per_minute = { limit = 10, shadow = true }
""")
    answers = [bounded.ask(org) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    standing = bounded.stage.limit(org, "requests_per_day")
    assert (standing["limit"], standing["used"], standing["remaining"], standing["shadow"]) == (2, 4, 0, True)
    for answer in answers:
        assert not any("ratelimit" in name for name in answer.headers), "a limit in shadow is told to nobody"


def test_a_limit_of_zero_lets_nothing_through(either):
    for limits in ("requests_per_day = 0", "tokens_per_minute = 0", "concurrent_requests = 0"):
        org, model = either.join(limits), fresh("tokens-1")
        answer = either.ask(org, model=model)
        assert answer.status in (400, 429), answer.body
        assert not either.sent(model)


# What heads tell.


@every_flow
def test_every_metered_answer_tells_the_limits_in_its_dialect(bounded, route, stream):
    org = bounded.join("""\
requests_per_minute = 600
requests_per_hour = 100
tokens_per_minute = 6_000
tokens_per_day = 50_000
""")
    answer = bounded.ask(org, route, model=fresh("tokens-5"), text=HUNDRED, stream=stream)
    headers = answer.headers
    ours = {name: value for name, value in headers.items() if "ratelimit" in name}
    form = "anthropic-ratelimit-{1}-{0}" if route == "messages" else "x-ratelimit-{0}-{1}"
    names = {form.format(what, unit) for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")}
    assert set(ours) == names | {"ratelimit-policy", "ratelimit"}, "the upstream's own are gone"

    def of(unit, what):
        return ours[form.format(what, unit)]

    if route == "messages":
        for unit in ("requests", "tokens"):
            reset = datetime.datetime.strptime(of(unit, "reset") + "+0000", "%Y-%m-%dT%H:%M:%SZ%z")
            left = (reset - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
            assert -1 <= left <= 61
    else:
        assert of("requests", "reset") == "36s"
        assert re.fullmatch(r"\d+(\.\d+)?m?s", of("tokens", "reset"))
    assert (of("requests", "limit"), of("requests", "remaining")) == ("100", "99"), "the tightest"
    assert of("tokens", "limit") == "6000"
    left = int(of("tokens", "remaining"))
    assert 5000 < left <= 6000 - 100
    policies = dict(re.findall(r'"([a-z-]+)"(;[^,]*)', ours["ratelimit-policy"]))
    assert policies == {
        "requests-per-minute": ";q=600;w=60",
        "requests-per-hour": ";q=100;w=3600",
        "tokens-per-minute": ';q=6000;w=60;portcullis-unit="tokens"',
        "tokens-per-day": ';q=50000;w=86400;portcullis-unit="tokens"',
    }
    states = dict(re.findall(r'"([a-z-]+)";r=(\d+);t=\d+', ours["ratelimit"]))
    assert states.keys() == policies.keys()
    # A tenth of a second after it was admitted it has drained.
    assert states["requests-per-minute"] in ("599", "600") and states["tokens-per-minute"] == str(left)


@pytest.mark.parametrize("route", PATHS)
def test_an_answer_under_no_limit_tells_none(bounded, route):
    org = bounded.join()
    answer = bounded.ask(org, route)
    assert answer.status == 200
    assert not [name for name in answer.headers if "ratelimit" in name]


@pytest.mark.parametrize("route", ["chat", "messages"])
def test_a_refusal_by_a_limit_tells_the_limits_too(bounded, route):
    org = bounded.join("requests_per_minute = { limit = 6, burst = 1 }")
    assert bounded.ask(org, route).status == 200
    refused = bounded.ask(org, route)
    assert refused.status == 429
    name = "anthropic-ratelimit-requests-remaining" if route == "messages" else "x-ratelimit-remaining-requests"
    assert refused.headers[name] == "0"
    assert re.match(r'"requests-per-minute";r=0;t=([1-9]|10)\b', refused.headers["ratelimit"])


UNITS = [f"{unit}_per_{window}" for unit in ("requests", "tokens", "input_tokens", "output_tokens")
         for window in ("second", "minute", "hour", "day", "month")] + ["concurrent_requests"]  # fmt: skip


def many(amount, **others):
    """Every limit of every scope that a request for `gpt-light-*` has, four times twenty-one."""
    scopes = ("", "purpose.research.", "model.light.", "purpose.research.model.light.")
    lines = "".join(f"{unit} = {others.get(unit, amount)}\n" for unit in UNITS)
    return "".join(f"[{scope}limits]\n{lines}" for scope in scopes)


def told_of(answer):
    """The names in `RateLimit-Policy`, and those in `RateLimit` with what is left."""
    return (re.findall(r'"([^"]+)";q=', answer.headers["ratelimit-policy"]),
            dict(re.findall(r'"([^"]+)";r=(\d+)', answer.headers["ratelimit"])))  # fmt: skip


@pytest.mark.parametrize("route", ["chat", "messages"])
def test_the_limit_headers_of_an_answer_are_bounded_and_tell_what_matters_most(bounded, route):
    root = bounded.join(many(1_000_000))
    # The one limit that is nearly used up is the last of the chain, where a cut would fall.
    org = bounded.join(many(900_000, requests_per_month=5, concurrent_requests=7), parent=root)
    model = "gpt-light-mock-tokens-1"
    answer = bounded.ask(org, route, model=model)
    assert answer.status == 200, answer.body

    def size(answer):
        return sum(len(f"{name}: {value}\r\n") for name, value in answer.headers.items() if "ratelimit" in name)

    assert 7000 < size(answer) <= 8 * 1024, size(answer)
    names, left = told_of(answer)
    assert names == list(left) and len(set(names)) == len(names) > 30
    # On the other route the model is of no group.
    groups = ("", "model.light.") if route == "chat" else ("",)
    for scope in (purpose + group for purpose in ("", "purpose.research.") for group in groups):
        assert left[f"{scope}requests-per-month"] == "4" and left[f"{scope}concurrent-requests"] == "6"
    usage = bounded.stage.ask("/portcullis/v1/usage", certificate=org)
    assert len(usage.json["limits"]) == 2 * 4 * len(UNITS), "whoever asks is told all"


def test_each_ancestor_is_told_apart_and_none_by_its_name(bounded):
    root = bounded.join("requests_per_day = 30")
    middle = bounded.join("requests_per_day = 20", parent=root)
    org = bounded.join("requests_per_day = 1", parent=middle)
    answer = bounded.ask(org)
    assert told_of(answer) == (
        ["parent.parent.requests-per-day", "parent.requests-per-day", "requests-per-day"],
        {"parent.parent.requests-per-day": "29", "parent.requests-per-day": "19", "requests-per-day": "0"},
    )
    usage = bounded.stage.ask("/portcullis/v1/usage", certificate=org).json
    told = [(limit["scope"]["organization"], limit["limit"], limit.get("inherited")) for limit in usage["limits"]]
    assert told == [(org, 1, None), ("parent", 20, True), ("parent.parent", 30, True)]
    # The limit that refuses is its own, though every ancestor has one like it.
    refused = bounded.ask(org, headers={"accept": "application/problem+json"})
    assert refused.json["violated-policies"] == ["requests-per-day"]
    other = bounded.join("requests_per_day = 50", parent=middle)
    assert {bounded.ask(other).status for _ in range(19)} == {200}
    refused = bounded.ask(other, headers={"accept": "application/problem+json"})
    assert refused.json["violated-policies"] == ["parent.requests-per-day"]
    assert root.encode() not in refused.body and middle.encode() not in refused.body


def test_where_no_connection_may_be_held_waiting_is_pointless(bounded):
    root = bounded.join("connections = 0")
    for org in (bounded.join("connections = 0"), bounded.join("connections = 5", parent=root)):
        refused = bounded.ask(org)
        assert (refused.status, refused.headers["portcullis-reason"]) == (429, "concurrency_limit_exceeded")
        assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
        assert "retry-after-ms" not in refused.headers
        message = refused.json["error"]["message"]
        assert "no connection" in message and "those that stand" not in message and root not in message


def test_where_a_connection_too_many_is_refused_another_may_end_meanwhile(bounded):
    org = bounded.join("connections = 1")
    with bounded.connect(org) as first:
        assert bounded.ask(org, connection=first).status == 200
        refused = bounded.ask(org)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json["error"]["message"].endswith("Use those that stand, or try again in 1 s.")


def test_a_refusal_for_requests_at_once_says_how_long_to_wait(bounded):
    org = bounded.join("concurrent_requests = 1")
    with bounded.connect(org) as first:
        first.send(first.head(PATHS["chat"], body("chat", fresh("tokens-1000.tps-10"), stream=True)))
        assert first.read_head()[0] == 200
        refused = bounded.ask(org)
        assert refused.headers["portcullis-reason"] == "concurrency_limit_exceeded"
        assert "retry-after" in refused.headers
        assert re.search(r"Try again in \d+ m?s\.$", words(refused)[1])
        # Whoever comes again in vain is told to wait longer, as an SDK would by itself.
        with bounded.connect(org) as other:
            waits = [int(bounded.ask(org, connection=other).headers["retry-after-ms"]) for _ in range(4)]
        for wait, least in zip(waits, [250, 500, 1000, 1000], strict=True):
            assert least <= wait <= least * 1.1, waits


def test_a_problem_document_names_the_violated_policy(bounded):
    org = bounded.join("requests_per_day = 1")
    assert bounded.ask(org).status == 200
    refused = bounded.ask(org, headers={"accept": "application/problem+json"})
    assert (refused.status, refused.headers["content-type"]) == (429, "application/problem+json")
    problem = refused.json
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert (problem["status"], problem["code"]) == (429, "insufficient_quota")
    assert problem["violated-policies"] == ["requests-per-day"]


def test_a_policy_in_debt_of_what_the_request_does_not_take_is_not_violated_by_it(bounded):
    org = bounded.join("requests_per_minute = 1\ntokens_per_minute = 300")
    assert bounded.ask(org, model=fresh("tokens-1000"), stream=True).status == 200
    eventually(lambda: bounded.stage.limit(org, "tokens_per_minute")["used"] > 900, what="the debt")
    with bounded.connect(org) as client:
        counted = client.ask("/v1/messages/count_tokens", chat("claude-mock-1"), accept="application/problem+json")
    assert counted.status == 429
    assert counted.json["violated-policies"] == ["requests-per-minute"]


def test_a_problem_document_names_every_policy_that_the_request_does_not_fit(bounded):
    root = bounded.join("requests_per_month = 1\nrequests_per_day = 9")
    org = bounded.join("requests_per_minute = 1\ntokens_per_day = 150\ntokens_per_hour = 10_000", parent=root)
    assert bounded.ask(org, model=fresh("tokens-100"), maximum=100).status == 200
    bounded.settled(org)
    refused = bounded.ask(org, maximum=100, headers={"accept": "application/problem+json"})
    problem = refused.json
    assert "requests_per_month" in problem["detail"], "the one that keeps out longest"
    assert problem["violated-policies"] == ["parent.requests-per-month", "requests-per-minute", "tokens-per-day"]


# What may be written.


@pytest.mark.parametrize(("limits", "told"), [
    ("requests_per_minute = -1", "negative"),
    ("requests_per_minute = 1.5", "whole number"),
    ('requests_per_minute = "60"', "whole number"),
    ("tokens_per_day = 99999999999999999999", "large"),
    ("requests_per_day = { limit = 1, burst = 1 }", "burst"),
    ("requests_per_minute = { limit = 60, burst = 0 }", "burst"),
    ("requests_per_minute = { limit = 0, burst = 3 }", "burst"),
    ("requests_per_minute = { burst = 1 }", "limit"),
    ("requests_per_fortnight = 1", "requests_per_fortnight"),
    ("cost_per_minute = \"1.00\"", "cost_per_minute"),
    ("cost_per_day = 1.00", "quotes"),
    ('cost_per_day = "-1"', "amount"),
    ('cost_per_day = "1.00"', "price"),
    ("requests_per_day = 1\nrequests_per_day = 2", "duplicate"),
])  # fmt: skip
def test_a_limit_that_makes_no_sense_is_a_mistake_with_its_place(bounded, limits, told):
    stage = bounded.stage
    try:
        stage.write_org("wrong", ORG.format(name="wrong", parent="", models='"mock-*"', limits="[limits]\n" + limits))
        checked = stage.run("check", "-c", "portcullis.toml")
    finally:
        (stage.folder / "orgs.d" / "wrong.toml").unlink()
    said = checked.stdout + checked.stderr
    assert checked.returncode == 1, said
    assert re.search(r"wrong\.toml:\d+:\d+", said), said
    assert told in said.lower(), said


@pytest.mark.parametrize("chain", [
    {"ring-a": "ring-a"},
    {"ring-a": "ring-b", "ring-b": "ring-a"},
    {"ring-a": "ring-b", "ring-b": "ring-c", "ring-c": "ring-a"},
    {"ring-a": "nobody"},
])  # fmt: skip
def test_a_chain_of_parents_that_does_not_end_is_a_mistake(bounded, chain):
    stage = bounded.stage
    try:
        for name, parent in chain.items():
            stage.write_org(name, ORG.format(name=name, parent=f'parent = "{parent}"', models='"mock-*"', limits=""))
        checked = stage.run("check", "-c", "portcullis.toml")
    finally:
        for name in chain:
            (stage.folder / "orgs.d" / f"{name}.toml").unlink()
    assert checked.returncode == 1, checked.stdout
    assert re.search(r"ring-a\.toml:\d+:\d+", checked.stdout + checked.stderr)


def test_limits_beyond_what_json_numbers_hold_do_no_harm(bounded):
    most = 2**63 - 1
    limits = ("requests_per_second", "tokens_per_minute", "tokens_per_month", "concurrent_requests")
    org = bounded.join("\n".join(f"{limit} = {most}" for limit in limits))
    answer = bounded.ask(org)
    assert answer.status == 200, answer.body
    for number in re.findall(r"[qrt]=(\d+)", answer.headers["ratelimit-policy"] + answer.headers["ratelimit"]):
        assert int(number) <= 999_999_999_999_999, "the largest integer of structured fields"
