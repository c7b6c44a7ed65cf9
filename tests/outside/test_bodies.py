"""Bodies that two readers could read differently, or that nobody can meter, are not forwarded."""

import json

import pytest
from place import PATHS, STREAMED, body, fresh, place, words

bounded_place, bounded = place("bounded")

MAXIMA = ("-1", "0", "-0", "1.5", '"10"', "true", "[]", "{}", "9007199254740992", "1" + "0" * 400)
WRONG = [
    *[f'"max_tokens":{value}' for value in MAXIMA],
    *[f'"{name}":0' for name in ("max_completion_tokens", "max_output_tokens", "n", "best_of")],
    *[f'"n":{value}' for value in ("1000000", "129", "-1", "1.5", '"2"')],
    *[f'"stream":{value}' for value in ('"true"', "1", "[]")],
    *[f'"stream":true,"stream_options":{value}' for value in ("false", "[]", '"x"', '{"include_usage":1}')],
    '"stream":true,"stream_options":{"include_usage":false,"include_usage":true}',
    '"max_tokens":1,"max_tokens":100000',
    '"max_tokens":1,"max\\u005ftokens":100000',
    '"n":1,"n":2',
    '"stream":false,"stream":true',
    '"stream_options":{},"stream_options":{}',
    '"model":"mock-1"',
    '"Max_Tokens":1',
    '"x":' + "[" * 64 + "]" * 64,
    '"x":"\\ud800',
]


@pytest.mark.parametrize("route", STREAMED)
def test_what_two_readers_could_read_differently_is_not_forwarded(bounded, route):
    org, model = bounded.join("requests_per_day = 100\ntokens_per_day = 1000"), fresh("tokens-1")
    whole = json.dumps(body(route, model))
    wrong = {}
    with bounded.connect(org) as connection:
        for one in WRONG:
            answer = connection.ask(PATHS[route], (whole[:-1] + "," + one + "}").encode())
            if (answer.status, answer.headers.get("portcullis-reason")) != (400, "body_invalid"):
                wrong[one] = (answer.status, answer.headers.get("portcullis-reason"))
        answer = connection.ask(PATHS[route], whole.encode()[:-1] + b',"x":"\xff"}')
        assert (answer.status, answer.headers["portcullis-reason"]) == (400, "body_invalid")
    assert not wrong
    assert not bounded.sent(model)
    assert bounded.stage.limit(org, "requests_per_day")["used"] == 0


def test_a_background_request_is_refused(bounded):
    org, model = bounded.join("requests_per_day = 100"), fresh("tokens-1")
    answer = bounded.ask(org, "responses", model=model, background=True)
    assert (answer.status, answer.headers["portcullis-reason"]) == (400, "request_invalid")
    assert answer.json["error"]["param"] == "background"
    assert bounded.ask(org, "responses", model=model, background=False).status == 200
    assert len(bounded.sent(model)) == 1


@pytest.mark.parametrize(
    "more", ['"stream_options":null', '"n":null', '"max_tokens":null', '"n":128', '"x":' + "[" * 63 + "]" * 63]
)
def test_what_is_odd_and_clear_is_forwarded(bounded, more):
    org, model = bounded.join(), fresh("tokens-1")
    with bounded.connect(org) as connection:
        answer = connection.ask(PATHS["chat"], (json.dumps(body("chat", model))[:-1] + "," + more + "}").encode())
    assert answer.status == 200, answer.body


def test_the_largest_of_several_maxima_is_reserved(bounded):
    org = bounded.join("tokens_per_day = 1000")
    answer = bounded.ask(org, max_tokens=1, max_completion_tokens=5000)
    assert answer.headers["portcullis-reason"] == "quota_request_too_large"
    assert words(answer)[0][2] > 5000
