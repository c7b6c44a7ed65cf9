"""The shortest way through: one request, one stream, one refusal."""

import os

from stage import Streaming, chat, eventually


def test_a_request_is_answered_and_recorded(stage):
    one = stage()
    answer = one.ask(body=chat())
    assert answer.status == 200, answer.body
    # It is counted, and its closing line is on its way, when the client has its answer.
    eventually(lambda: one.metric("portcullis_requests_total", org="acme", code="200") == 1, what="the count")
    eventually(lambda: [line["kind"] for line in one.audit()][-2:] == ["accepted", "closed"], what="both lines")
    refused = one.ask(body=chat(), portcullis_purpose=None)
    assert (refused.status, refused.headers["portcullis-reason"]) == (400, "purpose_missing")
    assert one.gateway.end() == 0


def test_a_stream_flows(stage):
    one = stage()
    stream = Streaming(one, "mock-tokens-20")
    assert stream.wait() == "complete"
    assert stream.text.endswith("data: [DONE]\n\n")


def test_whatever_the_umask_nobody_else_may_change_what_it_writes(stage):
    one = stage(start=False)
    one.start(preexec_fn=lambda: os.umask(0))
    assert one.ask(body=chat()).status == 200
    one.run("revoke", "--org", "globex", "--admin", one.admin, check=True)
    assert one.gateway.end() == 0
    files = [file for place in ("state", "audit") for file in (one.folder / place).rglob("*") if file.is_file()]
    assert {"revoked.json", "crl-numbers.json"} <= {file.name for file in files}
    assert [file for file in files if file.stat().st_mode & 0o022] == []
