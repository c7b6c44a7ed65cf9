"""What the TLS front makes of hostile and of strange HTTP/1.1 bytes.

Every crooked request is answered with its documented refusal and the mock model's ledger stays as it was; everything
that is merely unusual passes, and reaches the model as one plain request.
"""

import contextlib
import json
import random
import re
import ssl

import pytest
from stage import H1, Stage, chat, eventually

BODY = json.dumps(chat()).encode()
CHAT = b"/v1/chat/completions"
STANDARD = {
    b"host": b"localhost",
    b"portcullis-purpose": b"research",
    b"content-type": b"application/json",
    b"content-length": None,
}
CHUNKED = b"transfer-encoding: chunked"
# What the gateway may tell an upstream, all of it.
CROSSING = {
    "content-type", "accept", "anthropic-version", "anthropic-beta", "openai-beta", "idempotency-key", "user-agent",
    "traceparent", "tracestate", "host", "authorization", "accept-encoding", "content-length",
}  # fmt: skip


def post(*lines, target=CHAT, method=b"POST", version=b"HTTP/1.1", body=BODY, **changed):
    """A proper chat request, then changed: keywords replace a standard header (None drops it), `lines` are added."""
    fields = STANDARD | {b"content-length": b"%d" % len(body)}
    fields |= {name.replace("_", "-").encode(): value for name, value in changed.items()}
    head = [b"%s %s %s" % (method, target, version)]
    head += [b"%s: %s" % (name, value) for name, value in fields.items() if value is not None]
    return b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + body


def chunked(framed, *lines, **changed):
    """A proper chat request whose body is framed by hand."""
    return post(CHUNKED, *lines, body=framed, content_length=None, **changed)


def get(target=b"/v1/models", *lines):
    return b"\r\n".join([b"GET %s HTTP/1.1" % target, b"host: localhost", *lines]) + b"\r\n\r\n"


def chunk(data, after_size=b""):
    return b"%x%s\r\n%s\r\n" % (len(data), after_size, data)


WHOLE = chunk(BODY) + b"0\r\n\r\n"


def body(text, **changed):
    return post(body=text if isinstance(text, bytes) else json.dumps(text).encode(), **changed)


def text(inside):
    """A body whose JSON is written by hand: what follows the model and the messages."""
    return post(body=BODY[:-1] + inside + b"}")


INVALID, BODY_INVALID, LARGE = (400, "request_invalid"), (400, "body_invalid"), (431, "headers_too_large")
NOT_SERVED, NO_ROUTE, NO_METHOD = (421, "host_not_served"), (404, "route_not_found"), (405, "method_not_allowed")
MEDIA, TOO_LARGE, PURPOSE = (415, "media_type_not_supported"), (413, "body_too_large"), (400, "purpose_invalid")

FRAMING = {
    "length and chunks": post(CHUNKED, body=WHOLE),
    "chunks and length": post(b"content-length: 5", content_length=None, content_type=b"application/json\r\n" + CHUNKED, body=WHOLE),
    "two lengths": post(b"content-length: 5"),
    "two equal lengths": post(b"content-length: %d" % len(BODY)),
    "a list of lengths": post(content_length=b"%d, %d" % (len(BODY), len(BODY))),
    "a signed length": post(content_length=b"+%d" % len(BODY)),
    "a negative length": post(content_length=b"-1"),
    "a hexadecimal length": post(content_length=b"0x10"),
    "an empty length": post(content_length=b""),
    "a length with a space inside": post(content_length=b"4 2"),
    "a length beyond 64 bits": post(content_length=b"18446744073709551658"),
    "two codings": post(b"transfer-encoding: gzip, chunked", content_length=None, body=WHOLE),
    "chunked twice in a line": post(b"transfer-encoding: chunked, chunked", content_length=None, body=WHOLE),
    "chunked twice in two lines": post(CHUNKED, CHUNKED, content_length=None, body=WHOLE),
    "chunked, then identity": post(CHUNKED, b"transfer-encoding: identity", content_length=None, body=WHOLE),
    "identity": post(b"transfer-encoding: identity"),
    "an empty coding": post(b"transfer-encoding:"),
    "an unknown coding": post(b"transfer-encoding: xchunked"),
    "chunked with a parameter": post(b"transfer-encoding: chunked;q=1", content_length=None, body=WHOLE),
    "chunked in quotes": post(b'transfer-encoding: "chunked"', content_length=None, body=WHOLE),
    "chunked after a vertical tab": post(b"transfer-encoding: \x0bchunked", content_length=None, body=WHOLE),
    "a space before the colon": post(b"transfer-encoding : chunked", body=WHOLE),
    "a coding on a folded line": post(b"transfer-encoding:\r\n chunked", content_length=None, body=WHOLE),
    "a body where none belongs": get(b"/v1/models", b"content-length: %d" % len(BODY)) + BODY,
    "chunks where none belong": get(b"/portcullis/v1/whoami", CHUNKED) + WHOLE,
}
CHUNKS = {
    "no size": b"\r\n" + BODY,
    "a size that is no number": b"zz\r\n" + BODY,
    "a prefixed size": b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a signed size": b"+%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a negative size": b"-1\r\n" + BODY,
    "a space before the size": b" %x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a space after the size": chunk(BODY, b" ") + b"0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000001\r\n" + BODY,
    "a bare LF after the size": b"%x\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a bare CR after the size": b"%x\r%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a bare LF in an extension": chunk(BODY, b";a\nb") + b"0\r\n\r\n",
    "a bare LF after data": b"%x\r\n%s\n0\r\n\r\n" % (len(BODY), BODY),
    "no line end after data": b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY),
    "more data than the size": b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 2, BODY),
    "an endless extension": chunk(BODY, b";" + b"x" * 70_000) + b"0\r\n\r\n",
    "endless trailers": chunk(BODY) + b"0\r\n" + b"x-more: yes\r\n" * 8000 + b"\r\n",
    "a bare LF in the trailers": chunk(BODY) + b"0\r\nx-more: yes\n\r\n\r\n",
}
LINES = {
    "a folded header": post(b"x-note: one\r\n two"),
    "a header folded with a tab": post(b"x-note: one\r\n\ttwo"),
    "a folded first header": b"POST /v1/chat/completions HTTP/1.1\r\n x: y\r\nhost: localhost\r\n\r\n",
    "bare line feeds": post().replace(b"\r\n", b"\n"),
    "one bare line feed": post(b"x-note: one\nx-more: two"),
    "a bare carriage return": post(b"x-note: one\rtwo"),
    "a blank line before the request line": b"\r\n" + post(),
    "a bare line feed before the request line": b"\n" + post(),
    "NUL in a value": post(b"x-note: a\0b"),
    "NUL in a name": post(b"x-no\0te: a"),
    "DEL in a value": post(b"x-note: a\x7fb"),
    "ESC in a value": post(b"cookie: a\x1bb"),
    "a header without a colon": post(b"x-note"),
    "a header without a name": post(b": a"),
    "a name with a parenthesis": post(b"x(note): a"),
    "a name with a space": post(b"x note: a"),
    "a name outside ASCII": post(b"x-n\xc3\xb6te: a"),
    "an underscore in a name": post(b"portcullis_purpose: research"),
    "a forwarded value outside ASCII": post(b"user-agent: caf\xe9"),
    "HTTP/1.0": post(version=b"HTTP/1.0"),
    "HTTP/1.2": post(version=b"HTTP/1.2"),
    "HTTP/2.0 without its preface": post(version=b"HTTP/2.0"),
    "http/1.1": post(version=b"http/1.1"),
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces in the request line": b"GET  /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a tab in the request line": b"GET\t/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a space after the version": b"GET /v1/models HTTP/1.1 \r\nhost: localhost\r\n\r\n",
    "a space in the target": get(b"/v1/models x"),
    "a lower-case method": post(method=b"post"),
    "a TLS hello inside TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
TARGETS = {
    "a fragment": post(target=CHAT + b"#x"),
    "an encoded slash": post(target=b"/v1/chat%2fcompletions"),
    "an encoded letter": post(target=b"/v1/ch%61t/completions"),
    "encoded dots": post(target=b"/v1/%2e%2e/v1/chat/completions"),
    "dots": post(target=b"/v1/../v1/chat/completions"),
    "one dot": post(target=b"/v1/./chat/completions"),
    "two slashes": post(target=b"/v1//chat/completions"),
    "two slashes at the front": post(target=b"//v1/chat/completions"),
    "a parameter": post(target=b"/v1/chat;x/completions"),
    "a backslash": post(target=b"/v1\\chat\\completions"),
    "an encoded NUL": post(target=CHAT + b"%00"),
    "an encoded line feed": post(target=CHAT + b"%0d%0ax: y"),
    "an overlong encoding": post(target=b"/v1/%c0%af/completions"),
    "bytes outside ASCII": post(target=b"/v1/chat/completi\xc3\xb6ns"),
    "no slash at the front": post(target=b"v1/chat/completions"),
    "no scheme": post(target=b"://localhost/v1/chat/completions"),
    "another scheme": post(target=b"ftp://localhost/v1/chat/completions"),
    "no authority": post(target=b"https:///v1/chat/completions"),
    "an authority that is no name": post(target=b"https://[localhost/v1/chat/completions"),
    "an authority with a crooked port": post(target=b"https://localhost:x/v1/chat/completions"),
    "a scheme that is no word": post(target=b"ht!tps://localhost/v1/chat/completions"),
    "an address alone": post(target=b"localhost"),
    "a question mark alone": post(target=b"?"),
    "quotes": post(target=b'/v1/"chat"/completions'),
    "braces": post(target=b"/v1/{chat}/completions"),
    "angle brackets": post(target=b"/v1/<chat>/completions"),
    "a caret": post(target=b"/v1/^chat/completions"),
    "quotes in a query": get(b'/v1/models?limit="1"'),
    "an unknown query": post(target=CHAT + b"?debug=1"),
    "another route's query": post(target=CHAT + b"?beta=true"),
    "a query member twice": get(b"/v1/models?limit=1&limit=2"),
    "an encoded query": get(b"/v1/models?li%6dit=1"),
    "an asterisk": post(target=b"*", method=b"OPTIONS"),
    "userinfo": post(target=b"https://user:word@localhost/v1/chat/completions"),
    "another host in absolute form": post(target=b"https://evil.example/v1/chat/completions"),
    "CONNECT": post(target=b"localhost:443", method=b"CONNECT"),
}
HOSTS = {
    "no Host": post(host=None),
    "two Hosts": post(b"host: evil.example"),
    "two equal Hosts": post(b"host: localhost"),
    "an empty Host": post(host=b""),
    "a list": post(host=b"localhost, localhost"),
    "userinfo in Host": post(host=b"user@localhost"),
    "a path in Host": post(host=b"localhost/v1"),
    "a port that is no number": post(host=b"localhost:https"),
    "a space in Host": post(host=b"local host"),
    "Host outside ASCII": post(host=b"l\xc3\xb6calhost"),
}
CHANGES = {
    "websocket": post(b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13"),
    "h2c": post(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    "h2c without a Connection": post(b"upgrade: h2c"),
    "an unknown expectation": post(b"expect: 200-ok"),
} | {
    f"Connection names {name}": post(b"connection: close, " + name.encode(), b"authorization: Bearer x")
    for name in ["host", "content-length", "content-type", "transfer-encoding", "authorization", "portcullis-purpose",
                 "Portcullis-Purpose", "portcullis-case", "x-purpose", "forwarded", "upgrade"]
}  # fmt: skip
LATER = {
    "another host": (post(host=b"evil.example"), NOT_SERVED),
    "another host in both places": (post(target=b"https://evil.example/v1/chat/completions", host=b"evil.example"), NOT_SERVED),
    "a name that ends alike": (post(host=b"notlocalhost"), NOT_SERVED),
    "the address": (post(host=b"127.0.0.1"), NOT_SERVED),
    "a slash at the end": (post(target=CHAT + b"/"), NO_ROUTE),
    "an upper-case path": (post(target=b"/V1/chat/completions"), NO_ROUTE),
    "the root": (get(b"/"), NO_ROUTE),
    "the operators' side": (get(b"/metrics"), NO_ROUTE),
    "the guard's own word": (get(b"/-withheld"), NO_ROUTE),
    "an upstream's other route": (post(target=b"/v1/files"), NO_ROUTE),
    "GET where POST belongs": (get(CHAT), NO_METHOD),
    "POST where GET belongs": (post(target=b"/v1/models"), NO_METHOD),
    "OPTIONS": (post(method=b"OPTIONS"), NO_METHOD),
    "PUT": (post(method=b"PUT"), NO_METHOD),
    "an unknown method": (post(method=b"BREW"), NO_METHOD),
    "65 lines": (post(*(b"x-note-%d: a" % number for number in range(61))), LARGE),
    "2000 lines": (post(*(b"x-note: a" for _ in range(2000))), LARGE),
    "a line of 17 KiB": (post(b"x-note: " + b"a" * 17_000), LARGE),
    "a target of 17 KiB": (post(target=b"/" + b"a" * 17_000), LARGE),
    "a head without an end": (b"POST " + b"a" * 40_000, LARGE),
    "no purpose": (post(portcullis_purpose=None), (400, "purpose_missing")),
    "two purposes": (post(b"portcullis-purpose: incident"), PURPOSE),
    "two equal purposes": (post(b"portcullis-purpose: research"), PURPOSE),
    "two purposes in two spellings": (post(b"PORTCULLIS-PURPOSE: research"), PURPOSE),
    "both names of the purpose": (post(b"x-purpose: research"), PURPOSE),
    "a list of purposes": (post(portcullis_purpose=b"research, incident"), PURPOSE),
    "an upper-case purpose": (post(portcullis_purpose=b"Research"), PURPOSE),
    "a purpose outside ASCII": (post(portcullis_purpose=b"rese\xc3\xa4rch"), PURPOSE),
    "a purpose with obsolete text": (post(portcullis_purpose=b"research\xff"), PURPOSE),
    "a purpose in quotes": (post(portcullis_purpose=b'"research"'), PURPOSE),
    "a purpose with a parameter": (post(portcullis_purpose=b"research;q=1"), PURPOSE),
    "a purpose of 65 letters": (post(portcullis_purpose=b"r" * 65), PURPOSE),
    "a purpose of 9000 letters": (post(portcullis_purpose=b"r" * 9000), PURPOSE),
    "a purpose of 64 letters that nobody knows": (post(portcullis_purpose=b"r" * 64), (400, "purpose_unknown")),
    "a purpose that is granted to nobody": (post(portcullis_purpose=b"forbidden"), (403, "purpose_not_permitted")),
    "no case": (post(portcullis_purpose=b"incident"), (400, "case_missing")),
    "a crooked case": (post(b"portcullis-case: ../1", portcullis_purpose=b"incident"), (400, "case_invalid")),
    "two cases": (post(b"portcullis-case: 1", b"portcullis-case: 1", portcullis_purpose=b"incident"), (400, "case_invalid")),
    "no media type": (post(content_type=None), MEDIA),
    "another media type": (post(content_type=b"text/plain"), MEDIA),
    "a form": (post(content_type=b"multipart/form-data; boundary=x"), MEDIA),
    "two media types": (post(b"content-type: text/plain"), MEDIA),
    "another charset": (post(content_type=b"application/json; charset=utf-16"), MEDIA),
    "a compressed body": (post(b"content-encoding: gzip"), MEDIA),
    "a stated body beyond the most": (post(content_length=b"1048577"), TOO_LARGE),
    "a stated body of a petabyte": (post(content_length=b"999999999999999"), TOO_LARGE),
    "chunks beyond the most": (chunked(chunk(b" " * 65_536) * 17 + WHOLE), TOO_LARGE),
    "no model": (body({"messages": []}), (400, "model_missing")),
    "a model that is not granted": (body(chat("other-1")), (403, "model_not_permitted")),
    "a request in the background": (body(chat(background=True)), INVALID),
}
BODIES = {
    "nothing": body(b""),
    "white space": body(b"  \r\n"),
    "an array": body([chat()]),
    "a string": body("hello"),
    "half an object": body(BODY[:-1]),
    "an object and a half": body(BODY + b"{"),
    "two objects": body(BODY + BODY),
    "a trailing comma": text(b","),
    "a comment": text(b"/* */"),
    "a name without quotes": text(b",n:1"),
    "NaN": text(b',"temperature":NaN'),
    "a leading zero": text(b',"temperature":01'),
    "a number beyond a double": text(b',"temperature":1e999'),
    "a control character in a string": text(b',"user":"a\x01"'),
    "half a surrogate pair": body(b'{"model":"mock-1\\ud800","messages":[]}'),
    "invalid UTF-8": text(b',"user":"\xff"'),
    "an overlong encoding": text(b',"user":"\xc0\xaf"'),
    "an encoded surrogate": text(b',"user":"\xed\xa0\x80"'),
    "a byte-order mark": body(b"\xef\xbb\xbf" + BODY),
    "UTF-16": body(json.dumps(chat()).encode("utf-16")),
    "two models": text(b',"model":"mock-2"'),
    "two models, one escaped": text(b',"mod\\u0065l":"mock-2"'),
    "two maxima": text(b',"max_tokens":1,"max_tokens":100000'),
    "two streams": text(b',"stream":false,"stream":true'),
    "a model in another spelling": text(b',"Model":"mock-2"'),
    "a model that is a number": body(chat(1)),
    "65 levels": text(b',"metadata":' + b"[" * 64 + b"]" * 64),
    "100,000 levels": text(b',"metadata":' + b"[" * 100_000 + b"]" * 100_000),
    "100,000 open objects": text(b',"metadata":' + b'{"a":' * 100_000),
    "a maximum of none": body(chat(max_tokens=0)),
    "a negative maximum": body(chat(max_tokens=-1)),
    "a broken maximum": body(chat(max_tokens=1.5)),
    "a maximum in quotes": body(chat(max_tokens="5")),
    "a maximum beyond 64 bits": body(chat(max_tokens=1 << 64)),
    "129 answers": body(chat(n=129)),
    "no answer": body(chat(n=0)),
    "a stream that is a word": body(chat(stream="yes")),
}


def group(cases, verdict):
    return {name: (data, verdict) for name, data in cases.items()}


REFUSED = (
    group(FRAMING, INVALID)
    | group({f"chunks: {name}": chunked(framed) for name, framed in CHUNKS.items()}, INVALID)
    | group(LINES, INVALID)
    | group({f"target: {name}": data for name, data in TARGETS.items()}, INVALID)
    | group(HOSTS, INVALID)
    | group(CHANGES, INVALID)
    | LATER
    | group({f"body: {name}": data for name, data in BODIES.items()}, BODY_INVALID)
)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """One gateway for all: a refusal leaves nothing behind that the next case could meet."""
    stage = Stage(tmp_path_factory.mktemp("door"), listen='max_body = "1MiB"')
    yield stage
    stage.close()
    assert "panicked at" not in stage.gateway.log


@pytest.fixture
def wire(door):
    with H1(door.connect()) as connection:
        yield connection


def seen(door):
    return door.ledger()["totals"]["requests"]


def refusal(connection):
    """Reads one refusal whole: status, reason, and that all its parts tell the same."""
    status, headers = connection.read_head()
    assert "portcullis-reason" in headers, (status, headers)
    told = json.loads(connection.read_body(headers))
    assert told["type"] == "error" and told["error"]["message"], told
    assert told["error"]["code"] == headers.get("portcullis-reason"), (told, headers)
    assert headers["x-request-id"] == headers["request-id"] == told["request_id"]
    return (status, headers["portcullis-reason"]), headers


def ends(connection):
    """The connection is closed, by an end and not by a reset, and nothing more is said on it."""
    while connection.more():
        pass
    assert connection.buffer == b"", connection.buffer


@pytest.mark.parametrize(("data", "verdict"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_crooked_is_refused_before_the_model_sees_it(door, wire, data, verdict):
    before, counted = seen(door), door.metric("portcullis_request_refusals_total", reason=verdict[1])
    wire.send(data)
    said, headers = refusal(wire)
    assert said == verdict
    if headers.get("connection") == "close":
        ends(wire)
    assert seen(door) == before
    assert door.metric("portcullis_request_refusals_total", reason=verdict[1]) == counted + 1


@pytest.mark.parametrize("cases", [FRAMING, LINES, HOSTS, CHANGES], ids=["framing", "lines", "hosts", "changes"])
def test_what_follows_a_crooked_head_is_never_a_request(door, cases):
    before = seen(door)
    for name, data in cases.items():
        with H1(door.connect()) as wire:
            wire.send(data + post() + post())
            assert refusal(wire)[0] == INVALID, name
            ends(wire)
    assert seen(door) == before


@pytest.mark.parametrize("head", [b"HEAD / HTTP/1.0\r\n", b"HEAD / HTTP/1.1\r\nhost: localhost\r\n x: folded\r\n"])
def test_what_is_withheld_of_head_is_answered_without_a_body(wire, head):
    wire.send(head + b"\r\n")
    assert wire.read_head()[0] == 400
    ends(wire)


@pytest.mark.parametrize("method", [b"TRACE", b"HEAD"])
def test_methods_that_answer_with_the_request_or_without_a_body_are_refused(door, wire, method):
    before = seen(door)
    wire.send(post(method=method))
    status, headers = wire.read_head()
    assert status in (400, 405) and headers["portcullis-reason"] in ("request_invalid", "method_not_allowed")
    assert seen(door) == before


REJECTED_EARLY = {
    "no purpose": {"portcullis_purpose": None},
    "an unknown route": {"target": b"/v1/files"},
    "another host": {"host": b"evil.example"},
    "a media type": {"content_type": b"text/plain"},
}


@pytest.mark.parametrize("changed", REJECTED_EARLY.values(), ids=REJECTED_EARLY.keys())
def test_a_body_that_is_not_read_is_never_the_next_request(door, wire, changed):
    before = seen(door)
    wire.send(post(body=post(), **changed) + get())
    _, headers = refusal(wire)
    if headers.get("connection") != "close":
        status, fields = wire.read_head()
        assert status == 200
        assert json.loads(wire.read_body(fields))["object"] == "list"
    assert seen(door) == before


LARGE_BODIES = {
    "no purpose": (post(body=b" " * (4 << 20), portcullis_purpose=None), "purpose_missing"),
    "too large": (post(body=b" " * (4 << 20)), "body_too_large"),
    "chunks, too large": (chunked(chunk(b" " * (1 << 20)) * 4 + WHOLE), "body_too_large"),
    "another host": (post(body=b" " * (4 << 20), host=b"evil.example"), "host_not_served"),
    "a crooked head": (post(b"content-length: 1", body=b" " * (4 << 20)), "request_invalid"),
    "broken chunks": (chunked(b"zz\r\n" + b" " * (4 << 20)), "request_invalid"),
}


@pytest.mark.parametrize(("data", "reason"), LARGE_BODIES.values(), ids=LARGE_BODIES.keys())
def test_a_client_that_sends_its_whole_body_first_can_still_read_the_refusal(door, wire, data, reason):
    """A socket that is closed over unread bytes is reset, and the reset overtakes the answer."""
    before = seen(door)
    wire.send(data)
    said, headers = refusal(wire)
    assert said[1] == reason
    if headers.get("connection") == "close":
        ends(wire)
    assert seen(door) == before


def test_an_answer_says_that_the_connection_ends(wire):
    """A client that keeps connections would send its next request into one that is about to close."""
    wire.send(post(body=b" " * (4 << 20), portcullis_purpose=None))
    _, headers = refusal(wire)
    assert headers.get("connection") == "close"


def test_a_client_that_reads_while_it_sends_gets_the_refusal_at_once(door, wire):
    """Half of the body is never sent: the refusal may not wait for it."""
    wire.send(post(content_length=b"8388608", body=b" " * (1 << 16), portcullis_purpose=None))
    assert refusal(wire)[0] == (400, "purpose_missing")


PASSING = {
    "as it should be": post(),
    "header names in odd case": post(b"X-NOTE: a", b"aCCept: application/json"),
    "values between white space": post(portcullis_purpose=b" \tresearch\t ", content_type=b"   application/json\t"),
    "no space after the colon": post(b"accept:application/json"),
    "an empty value": post(b"x-note:"),
    "64 lines": post(*(b"x-note-%d: a" % number for number in range(60))),
    "a line of 15 KiB": post(b"cookie: " + b"a" * 15_000),
    "obsolete text where nobody reads it": post(b"cookie: caf\xe9"),
    "Host in odd case": post(host=b"LocalHost"),
    "Host with a port": post(host=b"localhost:8443"),
    "Host with another port": post(host=b"localhost:1"),
    "Host with a colon and no port": post(host=b"localhost:"),
    "absolute form": post(target=b"https://localhost/v1/chat/completions"),
    "absolute form in odd case and with a port": post(target=b"HTTPS://LOCALHOST:8443/v1/chat/completions"),
    "a charset": post(content_type=b'Application/JSON; charset="UTF-8"'),
    "identity": post(b"content-encoding: identity"),
    "te: trailers": post(b"te: trailers", b"connection: te"),
    "TE for what is not done here": post(b"TE: deflate,gzip;q=0.3", b"Connection: TE, close"),
    "lists of nothing": post(b"te:", b"expect:", b"content-encoding:", b"upgrade:"),
    "Connection names what does not matter": post(b"connection: keep-alive, x-note", b"x-note: a"),
    "connection: close": post(b"connection: close"),
    "the other name of the purpose": post(b"x-purpose: research", portcullis_purpose=None),
    "a case where none is needed": post(b"portcullis-case: CERT-2026/11.1"),
    "chunks": chunked(WHOLE),
    "Chunked": post(b"Transfer-Encoding: \tChunked ", content_length=None, body=WHOLE),
    "chunks of one byte": chunked(b"".join(chunk(bytes([byte])) for byte in BODY) + b"0\r\n\r\n"),
    "chunk extensions": chunked(chunk(BODY, b";a;b=c;d=\"e\"") + b"0;last\r\n\r\n"),
    "a size in capitals with zeros": chunked(b"000%X\r\n%s\r\n000\r\n\r\n" % (len(BODY), BODY)),
    "trailers": chunked(chunk(BODY) + b"0\r\nx-note: a\r\nauthorization: Bearer x\r\n\r\n", b"trailer: x-note"),
    "a maximum as large as readers agree on": body(chat(max_tokens=1)),
    "64 levels": text(b',"metadata":' + b"[" * 63 + b"]" * 63),
    "a query that is allowed": post(target=b"/v1/messages?beta=true", body=json.dumps(chat("claude-mock-1", max_tokens=5)).encode()),
}  # fmt: skip


@pytest.mark.parametrize("data", PASSING.values(), ids=PASSING.keys())
def test_what_is_strange_but_legal_passes(door, wire, data):
    before = seen(door)
    wire.send(data)
    status, headers = wire.read_head()
    assert status == 200, wire.read_body(headers)
    assert wire.read_body(headers)
    ledger = door.ledger()
    assert ledger["totals"]["requests"] == before + 1
    names = {name for name, _ in ledger["requests"][-1]["headers"]}
    assert names <= CROSSING | {"x-api-key"}, names


def test_a_body_in_chunks_reaches_the_model_byte_for_byte(door, wire):
    wire.send(chunked(chunk(BODY[:7], b";x") + chunk(BODY[7:]) + b"0\r\nx-note: a\r\n\r\n"))
    assert wire.read_head()[0] == 200
    last = door.ledger()["requests"][-1]
    assert last["body"].encode() == BODY
    assert ("transfer-encoding", "chunked") not in map(tuple, last["headers"])


def test_claims_about_identity_do_not_cross(door, wire):
    canary = "canary-5309"
    names = ["authorization", "x-api-key", "api-key", "openai-organization", "openai-project", "cookie", "forwarded", "via",
             "x-forwarded-for", "x-forwarded-client-cert", "x-real-ip", "x-org-id", "x-client-cert", "ssl-client-verify",
             "x-original-url", "x-http-method-override", "proxy-authorization", "x-note"]  # fmt: skip
    wire.send(post(*(f"{name}: {canary}".encode() for name in names)))
    assert wire.read_head()[0] == 200
    last = door.ledger()["requests"][-1]
    assert canary not in json.dumps(last["headers"])
    assert {name for name, _ in last["headers"]} <= CROSSING


def test_a_request_in_writes_of_one_byte_passes(door, wire):
    for byte in chunked(chunk(BODY, b";x=y") + b"0\r\nx-note: a\r\n\r\n"):
        wire.send(bytes([byte]))
    assert wire.read_head()[0] == 200


def test_requests_one_behind_the_other_are_answered_in_order(door, wire):
    before = seen(door)
    wire.send(get() + post() + post(b"x-note: a", portcullis_purpose=None) + chunked(WHOLE) + get(b"/portcullis/v1/whoami"))
    answers = []
    for _ in range(5):
        status, headers = wire.read_head()
        answers.append((status, json.loads(wire.read_body(headers))))
    assert [status for status, _ in answers] == [200, 200, 400, 200, 200]
    assert answers[0][1]["object"] == "list" and answers[4][1]["organization"] == "acme"
    assert answers[2][1]["error"]["code"] == "purpose_missing"
    assert seen(door) == before + 2


def test_more_requests_than_the_gateway_holds_are_answered_in_order(wire):
    """Far more than one head's worth of bytes lies behind the first request."""
    wire.send(b"".join(get(b"/v1/models", b"x-note: %d" % number) + post(b"x-note: a") for number in range(100)))
    for _ in range(100):
        for kind in ("list", "chat.completion"):
            status, headers = wire.read_head()
            assert status == 200
            assert json.loads(wire.read_body(headers))["object"] == kind


def test_a_request_behind_a_stream_waits_for_its_end(wire):
    wire.send(post(body=json.dumps(chat("mock-tokens-20.tps-100", stream=True)).encode()) + get())
    status, headers = wire.read_head()
    assert status == 200 and wire.read_body(headers).endswith(b"data: [DONE]\n\n")
    assert wire.read_head()[0] == 200


def test_a_crooked_request_does_not_take_the_answer_of_the_good_one_before_it(door, wire):
    before = seen(door)
    wire.send(post() + post(b"content-length: 1") + post())
    status, headers = wire.read_head()
    assert status == 200
    wire.read_body(headers)
    assert refusal(wire)[0] == INVALID
    ends(wire)
    assert seen(door) == before + 1


def test_without_alpn_http1_is_spoken(door):
    with H1(door.connect(alpn=())) as wire:
        assert wire.ask(body=chat()).status == 200


def test_100_continue_is_said_only_to_what_may_continue(door, wire):
    head, rest = post(b"expect: 100-Continue").split(b"\r\n\r\n", 1)
    wire.send(head + b"\r\n\r\n")
    assert wire.read_head()[0] == 100
    wire.send(rest)
    status, headers = wire.read_head()
    assert status == 200
    wire.read_body(headers)
    refused, _ = post(b"expect: 100-continue", portcullis_purpose=None).split(b"\r\n\r\n", 1)
    wire.send(refused + b"\r\n\r\n")
    assert refusal(wire)[0] == (400, "purpose_missing")


def test_a_refusal_is_told_as_problem_details_to_whoever_asks(door, wire):
    wire.send(post(b"accept: application/problem+json", portcullis_purpose=None))
    status, headers = wire.read_head()
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(wire.read_body(headers))["status"] == 400


def test_a_client_that_goes_away_inside_a_head_or_a_body_leaves_no_trace(door):
    before = seen(door)
    whole = post()
    for cut in (1, 20, len(whole) - len(BODY) - 2, len(whole) - 1):
        with H1(door.connect()) as wire:
            wire.send(whole[:cut])
    assert door.ask(body=chat()).status == 200
    assert seen(door) == before + 1


@pytest.mark.parametrize("data", [post(), chunked(chunk(BODY, b";x=y") + b"0\r\nx-note: a\r\n\r\n")], ids=["a length", "chunks"])
def test_where_writes_are_cut_makes_no_difference_to_a_good_request(wire, data):
    for at in range(1, len(data)):
        wire.send(data[:at])
        wire.send(data[at:])
        status, headers = wire.read_head()
        assert status == 200, (at, data[:at])
        wire.read_body(headers)


CUT = {
    "one bare line feed": LINES["one bare line feed"],
    "a blank line before the request line": LINES["a blank line before the request line"],
    "a folded header": LINES["a folded header"],
    "two equal lengths": FRAMING["two equal lengths"],
    "length and chunks": FRAMING["length and chunks"],
    "a bare LF after data": chunked(CHUNKS["a bare LF after data"]),
}


@pytest.mark.parametrize("data", CUT.values(), ids=CUT.keys())
def test_where_writes_are_cut_makes_no_difference_to_a_crooked_request(door, data):
    before = seen(door)
    for at in range(1, len(data), 7):
        with H1(door.connect()) as wire:
            wire.send(data[:at])
            wire.send(data[at:])
            assert refusal(wire)[0] == INVALID, (at, data[:at])
    assert seen(door) == before


RECORDED = {
    "a crooked head": (LINES["one bare line feed"], "request_invalid"),
    "a crooked path": (TARGETS["dots"], "request_invalid"),
    "a crooked chunk": (chunked(CHUNKS["a size that is no number"]), "request_invalid"),
    "a large head": (LATER["a head without an end"][0], "headers_too_large"),
    "no purpose": (LATER["no purpose"][0], "purpose_missing"),
    "a crooked body": (BODIES["two models"], "body_invalid"),
}


@pytest.mark.parametrize(("data", "reason"), RECORDED.values(), ids=RECORDED.keys())
def test_every_refusal_is_recorded_under_the_id_that_the_client_has(door, wire, data, reason):
    wire.send(data)
    _, headers = refusal(wire)

    def lines():
        return [line for line in door.audit() if headers["x-request-id"] in json.dumps(line)]

    found = eventually(lines, what="the audit line")
    assert [line["kind"] for line in found] == ["refused"]
    assert reason in json.dumps(found[0])


def mutated(chance, data):
    """The request with a few bytes changed, taken out, doubled, or exchanged for bytes that matter to a parser."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at:at + chance.randint(1, 8)]
            case 2:
                data[at:at] = data[at:at + chance.randint(1, 40)]
            case 3:
                data[at:at] = chance.choice([b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b";", b"0\r\n\r\n", CHUNKED + b"\r\n"])
            case 4:
                data[at:at] = chance.choice([post(), get(), b"content-length: 5\r\n", b"host: localhost\r\n"])
        if not data:
            return post()
    return bytes(data)


def test_what_a_mutated_request_brings_to_the_model_is_well_formed(stage):
    """The mock model is the judge: it saw one of our routes, headers from our list, and a body that is one JSON object."""
    one, chance = stage(listen='head_timeout = "300ms"\nbody_idle_timeout = "300ms"\nidle_timeout = "300ms"'), random.Random(5309)
    good, bad = list(PASSING.values()), [data for data, _ in REFUSED.values() if len(data) < 5000]
    for _ in range(8):
        wires = []
        for _ in range(64):
            wire = H1(one.connect(timeout=30))
            wires.append(wire)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                wire.send(mutated(chance, chance.choice(good)) + mutated(chance, chance.choice(good + bad)))
        for wire in wires:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while wire.more():
                    pass
            statuses = re.findall(rb"(?:^|\r\n|[}\]])HTTP/1\.1 (\d+) ", wire.buffer)
            assert not wire.buffer or statuses, wire.buffer[:200]
            assert not [status for status in statuses if status[:1] not in b"124"], wire.buffer
            wire.close()
    requests = one.ledger()["requests"]
    assert len(requests) > 20, "mutations so wild that nothing passes prove little"
    for seen_one in requests:
        assert seen_one["path"] in {"/v1/chat/completions", "/v1/messages?beta=true", "/v1/messages"}, seen_one
        names = [name for name, _ in seen_one["headers"]]
        assert set(names) <= CROSSING | {"x-api-key"} and names.count("content-length") == 1, seen_one
        assert isinstance(json.loads(seen_one["body"])["model"], str)
