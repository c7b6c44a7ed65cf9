"""The shortest way through: one request, one stream, one refusal."""

from stage import Streaming, chat, eventually


def test_a_request_is_answered_and_recorded(stage):
    one = stage()
    answer = one.ask(body=chat())
    assert answer.status == 200, answer.body
    assert one.metric("portcullis_requests_total", org="acme", code="200") == 1
    # The closing line is on its way when the client has its answer.
    eventually(lambda: [line["kind"] for line in one.audit()][-2:] == ["accepted", "closed"], what="both lines")
    refused = one.ask(body=chat(), portcullis_purpose=None)
    assert (refused.status, refused.headers["portcullis-reason"]) == (400, "purpose_missing")
    assert one.gateway.end() == 0


def test_a_stream_flows(stage):
    one = stage()
    stream = Streaming(one, "mock-tokens-20")
    assert stream.wait() == "complete"
    assert stream.text.endswith("data: [DONE]\n\n")
