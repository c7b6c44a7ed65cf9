"""What the TLS front makes of hostile HTTP/2: the verdicts of HTTP/1.1 on the same requests, and an end to every flood."""

import contextlib
import json
import random
import select
import ssl
import threading
import time

import hpack
import pytest
import test_door_h1 as h1
from frames import H2, PREFACE, fields
from hyperframe.frame import (
    ContinuationFrame, DataFrame, HeadersFrame, PingFrame, PriorityFrame, PushPromiseFrame,
    RstStreamFrame, SettingsFrame, WindowUpdateFrame,
)  # fmt: skip
from stage import H1, Stage, chat, eventually, memory, most_memory


def unknown(kind, stream=0, body=b""):
    """A frame of a type that nobody defined."""
    return len(body).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + body


BODY = json.dumps(chat()).encode()
MODELS = fields("/v1/models")
HANGING = json.dumps(chat("mock-hang")).encode()
INVALID = (400, "request_invalid")


LISTEN = 'max_body = "1MiB"\nbody_idle_timeout = "2s"\nwrite_timeout = "2s"\nhead_timeout = "2s"'


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """One gateway for all: what one connection does must not matter to the next."""
    stage = Stage(tmp_path_factory.mktemp("door"), listen=LISTEN)
    yield stage
    stage.close()
    assert "panicked at" not in stage.gateway.log


@pytest.fixture
def wire(door):
    with H2(door.connect(alpn=("h2",))) as connection:
        yield connection


def seen(door):
    return door.ledger()["totals"]["requests"]


def translated(data):
    """The same request in HTTP/2: Host becomes :authority, and framing is HTTP/2's own."""
    head, body = data.split(b"\r\n\r\n", 1)
    line, *lines = head.split(b"\r\n")
    method, target, _ = line.split(b" ", 2)
    headers = [(b":method", method), (b":scheme", b"https"), (b":path", target)]
    for line in lines:
        name, value = line.split(b":", 1)
        headers.append((b":authority" if name.lower() == b"host" else name.lower(), value.strip(b" \t")))
    pseudo = [one for one in headers if one[0].startswith(b":")]
    return pseudo + [one for one in headers if not one[0].startswith(b":")], body


# What only HTTP/1.1 can say, or HTTP/2 itself refuses as a matter of frames.
OTHERWISE = {
    "a head without an end", "chunks beyond the most", "another host in both places", "a stated body beyond the most",
    "a stated body of a petabyte", "two purposes in two spellings", "a target of 17 KiB", "65 lines", "2000 lines",
}  # fmt: skip
SAME = {
    name: case for name, case in h1.REFUSED.items()
    if name not in OTHERWISE and (name in h1.LATER or name.startswith("body: "))
}  # fmt: skip


@pytest.mark.parametrize(("data", "verdict"), SAME.values(), ids=SAME.keys())
def test_http2_gets_the_verdict_of_http1(door, wire, data, verdict):
    before = seen(door)
    stream = wire.finish(wire.request(*translated(data)))
    assert (stream.status, stream.reason) == verdict, (stream.headers, stream.reset, wire.goaway)
    assert stream.json["error"]["code"] == stream.reason
    assert seen(door) == before


def refused(wire, stream):
    """An answer that refuses with all its parts, or the protocol's own error; never a success, never silence."""
    wire.finish(stream)
    if stream.status is not None:
        assert 400 <= stream.status < 500, stream.headers
        assert stream.reason and stream.json["error"]["code"] == stream.reason, stream.headers
    else:
        assert stream.reset or wire.goaway, (stream.reset, wire.goaway, wire.closed)


# Over HTTP/2 the library drops a fragment before anybody sees it; nothing of it is forwarded.
TARGETS = {name: data for name, data in h1.TARGETS.items() if name != "a fragment"}


@pytest.mark.parametrize("data", TARGETS.values(), ids=TARGETS.keys())
def test_a_crooked_path_is_refused(door, wire, data):
    before = seen(door)
    refused(wire, wire.request(*translated(data)))
    assert seen(door) == before


CROOKED = {
    "no method": fields("/v1/models", **{":method": None}),
    "no path": fields("/v1/models", **{":path": None}),
    "an empty path": fields(""),
    "a path without a slash": fields("v1/models"),
    "an asterisk": fields("*", **{":method": "OPTIONS"}),
    "a whole URL as path": fields("https://localhost/v1/models"),
    "no scheme": fields("/v1/models", **{":scheme": None}),
    "scheme http": fields("/v1/models", **{":scheme": "http"}),
    "scheme ftp": fields("/v1/models", **{":scheme": "ftp"}),
    "no authority": fields("/v1/models", **{":authority": None}),
    "an empty authority": fields("/v1/models", **{":authority": ""}),
    "userinfo": fields("/v1/models", **{":authority": "user:word@localhost"}),
    "two authorities in one": fields("/v1/models", **{":authority": "localhost,localhost"}),
    "a path in the authority": fields("/v1/models", **{":authority": "localhost/v1"}),
    "a port that is no number": fields("/v1/models", **{":authority": "localhost:x"}),
    "an authority and another Host": fields("/v1/models", host="evil.example"),
    "two methods": [*MODELS[:1], *MODELS],
    "two paths": [*MODELS, *fields("/v1/models")[3:]],
    "two authorities": [*MODELS[:3], *MODELS[2:]],
    "two Hosts": [*MODELS, ("host", "localhost"), ("host", "localhost")],
    "an unknown pseudo-header": [(":note", "a"), *MODELS],
    "a response's pseudo-header": [(":status", "200"), *MODELS],
    "a pseudo-header after a header": [*MODELS[:3], ("x-note", "a"), *MODELS[3:]],
    "an upper-case name": [*MODELS, ("X-Note", "a")],
    "an empty name": [*MODELS, ("", "a")],
    "a space in a name": [*MODELS, ("x note", "a")],
    "a colon in a name": [*MODELS, ("x:note", "a")],
    "an underscore in a name": [*MODELS, ("portcullis_purpose", "research")],
    "a line feed in a value": [*MODELS, ("x-note", "a\r\nx-more: b")],
    "NUL in a value": [*MODELS, ("x-note", "a\0b")],
    "white space before a value": [*MODELS, ("x-note", " a")],
    "white space after a value": [*MODELS, ("x-note", "a\t")],
    "white space around the purpose": fields(body=BODY, portcullis_purpose=" research"),
    "connection": [*MODELS, ("connection", "close")],
    "keep-alive": [*MODELS, ("keep-alive", "timeout=5")],
    "proxy-connection": [*MODELS, ("proxy-connection", "keep-alive")],
    "transfer-encoding": [*MODELS, ("transfer-encoding", "chunked")],
    "upgrade": [*MODELS, ("upgrade", "websocket")],
    "http2-settings": [*MODELS, ("http2-settings", "AAMAAABk")],
    "te: gzip": [*MODELS, ("te", "gzip")],
    "an unknown expectation": [*MODELS, ("expect", "200-ok")],
    "CONNECT": [(":method", "CONNECT"), (":authority", "localhost:443")],
    "extended CONNECT": fields("/v1/models", **{":method": "CONNECT", ":protocol": "websocket"}),
    "a lower-case method": fields("/v1/models", **{":method": "get"}),
    "a method with a space": fields("/v1/models", **{":method": "GET /v1/models HTTP/1.1\r\nx:"}),
    "a line feed in the path": fields("/v1/models HTTP/1.1\r\nx: y"),
    "a body where none belongs": fields("/v1/models", content_length="5"),
    "65 lines": [*MODELS, *((f"x-note-{number}", "a") for number in range(64))],
    "two lengths": [*fields(body=BODY), ("content-length", str(len(BODY)))],
    "a length that is no number": fields(body=BODY, content_length="x"),
}


@pytest.mark.parametrize("headers", CROOKED.values(), ids=CROOKED.keys())
def test_a_crooked_head_is_refused_before_the_model_sees_it(door, wire, headers):
    before = seen(door)
    has_body = ("content-type", "application/json") in headers
    refused(wire, wire.request(headers, BODY if has_body else b""))
    assert seen(door) == before


REASONS = {
    "65 lines": (431, "headers_too_large"), "scheme http": INVALID, "scheme ftp": INVALID, "no authority": INVALID, "userinfo": INVALID,
    "an authority and another Host": INVALID, "two Hosts": INVALID, "an underscore in a name": INVALID,
    "white space before a value": INVALID, "white space around the purpose": INVALID,
}  # fmt: skip


@pytest.mark.parametrize(("name", "verdict"), REASONS.items(), ids=REASONS.keys())
def test_what_only_the_gate_can_see_is_told_with_its_reason(wire, name, verdict):
    body = BODY if "purpose" in name else b""
    stream = wire.finish(wire.request(CROOKED[name], body))
    assert (stream.status, stream.reason) == verdict


def test_a_head_far_beyond_the_most_is_refused_by_the_protocol_itself(door, wire):
    before = seen(door)
    stream = wire.finish(wire.request([*fields(body=BODY), *(("x-note", "a") for _ in range(2000))], BODY))
    assert stream.status == 431 or wire.goaway, (stream.headers, stream.reset)
    assert seen(door) == before


@pytest.mark.parametrize("stated", [len(BODY) - 1, len(BODY) + 1, 0], ids=["less", "more", "none"])
def test_a_length_that_does_not_match_the_frames_is_refused(door, wire, stated):
    before = seen(door)
    refused(wire, wire.request(fields(body=BODY, content_length=str(stated)), BODY))
    assert seen(door) == before


def test_a_stated_body_beyond_the_most_is_refused_before_it_comes(wire):
    stream = wire.request(fields(body=BODY, content_length="1048577"), b" ", end=False)
    wire.finish(stream)
    assert (stream.status, stream.reason) == (413, "body_too_large")


def test_a_body_beyond_the_most_is_refused_while_it_comes(door, wire):
    before = seen(door)
    stream = wire.finish(wire.request(fields(body=BODY, content_length=None), b" " * (2 << 20)))
    assert (stream.status, stream.reason) == (413, "body_too_large")
    assert wire.finish(wire.request(MODELS)).status == 200
    assert seen(door) == before


REFUSED_BY_ITS_HEAD = {
    "no purpose": ({"portcullis_purpose": None}, (400, "purpose_missing")),
    "no such route": ({":path": "/v1/files"}, (404, "route_not_found")),
    "another method": ({":method": "PUT"}, (405, "method_not_allowed")),
    "another kind": ({"content_type": "text/plain"}, (415, "media_type_not_supported")),
    "a stated body beyond the most": ({}, (413, "body_too_large")),
    "a body beyond the most": ({"content_length": None}, (413, "body_too_large")),
}


@pytest.mark.parametrize(("changed", "verdict"), REFUSED_BY_ITS_HEAD.values(), ids=REFUSED_BY_ITS_HEAD.keys())
def test_a_refusal_reaches_a_client_that_reads_nothing_before_its_body_is_sent(door, wire, changed, verdict):
    """Many send as the windows allow and look at the answer then: one that ends the stream before is lost on them."""
    body = b" " * (3 << 20)
    stream = wire.finish(wire.request(fields(**{"body": body, **changed}), body, deaf=True))
    assert (stream.status, stream.reason) == verdict
    assert stream.json["error"]["code"] == stream.reason
    assert (stream.ended, stream.reset) == (True, None)
    assert wire.finish(wire.request(MODELS)).status == 200


def test_a_missing_certificate_is_explained_to_such_a_client_too(stage):
    body = b" " * (3 << 20)
    with H2(stage(client_auth='on_missing = "explain"').connect(None, alpn=("h2",))) as wire:
        stream = wire.finish(wire.request(fields(body=body), body, deaf=True))
    assert (stream.status, stream.reason, stream.reset) == (401, "client_certificate_required", None)


PASSING = {
    "as it should be": (fields(body=BODY), BODY),
    "without a length": (fields(body=BODY, content_length=None), BODY),
    "an authority in odd case and with a port": (fields(body=BODY, **{":authority": "LocalHost:8443"}), BODY),
    "an authority with a colon and no port": (fields(body=BODY, **{":authority": "localhost:"}), BODY),
    "the same Host": (fields(body=BODY, host="localhost"), BODY),
    "te: trailers": (fields(body=BODY, te="trailers"), BODY),
    "the other name of the purpose": (fields(body=BODY, portcullis_purpose=None, x_purpose="research"), BODY),
    "64 lines": ([*fields(body=BODY), *((f"x-note-{number}", "a") for number in range(60))], BODY),
    "cookies in crumbs": ([*fields(body=BODY), *(("cookie", "a=b") for _ in range(20))], BODY),
    "a line of 15 KiB": ([*fields(body=BODY), ("cookie", "a" * 15_000)], BODY),
}


@pytest.mark.parametrize(("headers", "body"), PASSING.values(), ids=PASSING.keys())
def test_what_is_strange_but_legal_passes(door, wire, headers, body):
    before = seen(door)
    stream = wire.finish(wire.request(headers, body))
    assert stream.status == 200, (stream.headers, stream.data, stream.reset)
    ledger = door.ledger()
    assert ledger["totals"]["requests"] == before + 1
    assert {name for name, _ in ledger["requests"][-1]["headers"]} <= h1.CROSSING
    assert ledger["requests"][-1]["body"].encode() == body


@pytest.mark.parametrize("before", [0, 3])
def test_100_continue_is_said_only_to_what_may_continue(door, wire, before):
    for _ in range(before):
        assert wire.finish(wire.request(MODELS)).status == 200
    waits = fields(body=BODY, expect="100-continue")
    number = wire.open()
    stream = wire.stream(number)
    wire.send(*wire.head(number, waits, end=False))
    assert wire.until(lambda: stream.status)
    assert stream.status == 100
    wire.send(DataFrame(number, BODY, flags=["END_STREAM"]))
    assert wire.finish(stream).status == 200
    # Nothing waits for a body that will not come.
    number, began = wire.open(), time.monotonic()
    stream = wire.stream(number)
    wire.send(*wire.head(number, [one for one in waits if one[0] != "portcullis-purpose"], end=False))
    assert wire.until(lambda: stream.status)
    assert (stream.status, stream.reason) == (400, "purpose_missing")
    assert time.monotonic() - began < 0.9
    assert wire.finish(stream).ended


def test_padding_priorities_unknown_frames_and_trailers_pass(door, wire):
    number = wire.open()
    head = wire.head(number, fields(body=BODY), end=False)[0]
    head.flags |= {"PADDED", "PRIORITY"}
    head.pad_length, head.depends_on, head.stream_weight = 17, 0, 15
    pieces = [DataFrame(number, BODY[at:at + 5], pad_length=3, flags=["PADDED"]) for at in range(0, len(BODY), 5)]
    trailers = wire.head(number, [("x-note", "a"), ("authorization", "Bearer x")])[0]
    wire.send(unknown(0xBB, body=b"a"), PriorityFrame(number, depends_on=0), head, *pieces,
              DataFrame(number, b""), unknown(0xBC, number, b"b"), trailers)  # fmt: skip
    assert wire.finish(wire.stream(number)).status == 200
    last = door.ledger()["requests"][-1]
    assert last["body"].encode() == BODY
    assert "x-note" not in dict(last["headers"])


@pytest.mark.parametrize(("size", "length"), [(1, 500), (4, 3000)], ids=["byte by byte", "token by token"])
def test_a_body_passes_in_however_small_frames_it_is_written(door, wire, size, length):
    """As encoders write that yield a token at a time, request after request on one connection."""
    body = json.dumps(chat(padding="x" * length)).encode()
    for _ in range(20):
        number = wire.open()
        pieces = [DataFrame(number, body[at:at + size]) for at in range(0, len(body), size)]
        pieces[-1].flags.add("END_STREAM")
        wire.send(*wire.head(number, fields(body=body), end=False), *pieces)
        assert wire.finish(wire.stream(number)).status == 200
        assert door.ledger()["requests"][-1]["body"].encode() == body


@pytest.mark.parametrize("pseudo", [
    [(":path", "/v1/models")], [(":status", "200")],
    [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/v1/models")],
])  # fmt: skip
def test_trailers_of_pseudo_headers_are_refused(door, wire, pseudo):
    before, number = door.ledger()["totals"]["requests"], wire.open()
    head = wire.head(number, fields(body=BODY), end=False)[0]
    wire.send(head, DataFrame(number, BODY), wire.head(number, pseudo)[0])
    stream = wire.finish(wire.stream(number))
    assert (stream.status, stream.reason) == (400, "request_invalid")
    assert door.ledger()["totals"]["requests"] == before


def test_streams_side_by_side_each_get_their_own_answer(wire):
    streams = [wire.request(fields(body=body, x_client_request_id=str(number)), body) for number, body in enumerate([BODY] * 50)]
    wrong = wire.request(fields(body=BODY, portcullis_purpose=None), BODY)
    for stream in streams:
        assert wire.finish(stream).status == 200 and stream.json["object"] == "chat.completion"
    assert (wire.finish(wrong).status, wrong.reason) == (400, "purpose_missing")
    assert len({stream.headers["x-request-id"] for stream in streams}) == 50


def first(wire):
    """A stream that is open and waits for its answer."""
    number = wire.open()
    return number, wire.head(number, fields(body=HANGING), end=False)


def broken(*frames):
    return lambda wire: frames


FRAMES = {
    "DATA on no stream": broken(DataFrame(1, b"a").serialize().replace(b"\0\0\0\x01", b"\0\0\0\0", 1)),
    "DATA on an idle stream": broken(DataFrame(9, b"a")),
    "HEADERS on an even stream": lambda wire: wire.head(2, MODELS),
    "HEADERS on a stream that is behind": lambda wire: [*wire.head(7, MODELS), *wire.head(5, MODELS)],
    "CONTINUATION of nothing": broken(ContinuationFrame(1, b"", flags=["END_HEADERS"])),
    "another frame within a head": lambda wire: [HeadersFrame(1, wire.encoder.encode(MODELS)), PingFrame(0, b"8" * 8)],
    "another stream within a head": lambda wire: [HeadersFrame(1, wire.encoder.encode(MODELS)), ContinuationFrame(3, b"")],
    "a push from the client": broken(PushPromiseFrame(1, 2, flags=["END_HEADERS"])),
    "a frame beyond the most": broken(b"\0\x80\0\0\0\0\0\0\x01" + b"a" * 32_768),
    "garbage for HPACK": broken(HeadersFrame(1, b"\xff" * 64, flags=["END_HEADERS", "END_STREAM"])),
    "an index beyond the table": broken(HeadersFrame(1, b"\xff\x80\x01", flags=["END_HEADERS", "END_STREAM"])),
    "a table larger than allowed": broken(HeadersFrame(1, b"\x3f\xe1\xff\x03", flags=["END_HEADERS", "END_STREAM"])),
    "SETTINGS on a stream": broken(b"\0\0\0\x04\0\0\0\0\x01"),
    "SETTINGS of an odd length": broken(b"\0\0\x05\x04\0\0\0\0\0" + b"a" * 5),
    "a window beyond 31 bits in SETTINGS": broken(SettingsFrame(settings={4: 1 << 31})),
    "a frame size below the least": broken(SettingsFrame(settings={5: 1})),
    "PING of an odd length": broken(b"\0\0\x07\x06\0\0\0\0\0" + b"a" * 7),
    "PING on a stream": broken(b"\0\0\x08\x06\0\0\0\0\x01" + b"a" * 8),
    "a window that overflows": broken(WindowUpdateFrame(0, (1 << 31) - 1)),
    "a window that grows by nothing": broken(b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"),
    "RST_STREAM of an idle stream": broken(RstStreamFrame(9, 8)),
    "more padding than frame": broken(b"\0\0\x02\0\x08\0\0\0\x01\x09a"),
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_that_breaks_the_protocol_ends_the_connection(door, wire, frames):
    before = seen(door)
    wire.send(*frames(wire))
    wire.end()
    assert wire.goaway, "closed without a word"
    assert seen(door) == before


@pytest.mark.parametrize("said", [b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", PREFACE[:-1] + b"x", b"\0" * 64])
def test_whoever_agreed_on_http2_must_speak_it(door, said):
    with door.connect(alpn=("h2",)) as socket:
        socket.sendall(said)
        socket.settimeout(5)
        while piece := socket.recv(4096):
            assert b"HTTP/1.1 200" not in piece


# Floods. Each gives the frames of one turn; a turn is sent again and again.


def rapid_reset(times, body=b""):
    """Requests that are taken back at once. A burst of them meets the library's own bound; one by one, each is accepted
    before it is taken back."""

    def turn(wire):
        frames = []
        for _ in range(times):
            number = wire.open()
            frames += wire.head(number, fields(body=body) if body else MODELS, end=not body)
            frames += [DataFrame(number, body, flags=["END_STREAM"])] if body else []
            frames.append(RstStreamFrame(number, 8))
        return frames

    return turn


def provoked(frame):
    """MadeYouReset: the client breaks a rule of the stream, and the server resets it."""

    def turn(wire):
        number, head = first(wire)
        return [*head, frame(number)]

    return turn


def again(frame, times=50):
    return lambda wire: [frame] * times


def on_a_stream(frame, times=50):
    """Frames on one stream whose request never ends."""

    def turn(wire):
        if not hasattr(wire, "victim"):
            wire.victim, head = first(wire)
            return head
        return [frame(wire.victim)] * times

    return turn


def endless_head(frame, times):
    def turn(wire):
        if not hasattr(wire, "victim"):
            wire.victim = wire.open()
            return [HeadersFrame(wire.victim, wire.encoder.encode(MODELS))]
        return [ContinuationFrame(wire.victim, frame)] * times

    return turn


FLOODS = {
    "rapid reset": rapid_reset(50),
    "rapid reset one by one": rapid_reset(1),
    "rapid reset of work": rapid_reset(50, HANGING),
    "rapid reset of work one by one": rapid_reset(1, HANGING),
    "MadeYouReset by a window of nothing": provoked(lambda number: b"\0\0\x04\x08\0" + number.to_bytes(4, "big") + b"\0\0\0\0"),
    "MadeYouReset by a window that overflows": provoked(lambda number: WindowUpdateFrame(number, (1 << 31) - 1)),
    "MadeYouReset by a length that lies": provoked(lambda number: DataFrame(number, b"{}", flags=["END_STREAM"])),
    "MadeYouReset by a dependency on itself": provoked(lambda number: PriorityFrame(number, depends_on=number)),
    "CONTINUATION": endless_head(b"\x00\x01x\x01y" * 10, 20),
    "empty CONTINUATION": endless_head(b"", 50),
    "empty DATA": on_a_stream(lambda number: DataFrame(number, b"")),
    "padding alone": on_a_stream(lambda number: DataFrame(number, b"", pad_length=1, flags=["PADDED"])),
    "PING": again(PingFrame(0, b"flooding")),
    "PING answers": again(PingFrame(0, b"flooding", flags=["ACK"])),
    "SETTINGS": again(SettingsFrame(settings={1: 4096})),
    "empty SETTINGS": again(SettingsFrame()),
    "SETTINGS answers": again(SettingsFrame(flags=["ACK"])),
    "WINDOW_UPDATE": again(WindowUpdateFrame(0, 1)),
    "WINDOW_UPDATE on a stream": on_a_stream(lambda number: WindowUpdateFrame(number, 1)),
    "PRIORITY": on_a_stream(lambda number: PriorityFrame(number, depends_on=0)),
    "PRIORITY of idle streams": again(PriorityFrame(1001, depends_on=0)),
    "unknown frames": again(unknown(0xBB)),
    "unknown frames with a body": again(unknown(0xBB, body=b"a" * 100)),
    "RST_STREAM of a closed stream": on_a_stream(lambda number: RstStreamFrame(number, 8)),
}
# What no flood may come to send: thousands of times an honest head.
MOST = 8 << 20
PER_CONNECTION = 2 << 20
# So many at the same time that what the allocator keeps once for all does not matter.
FLOODERS, BOMBED = 12, 20


def flood(wires, turn, reads=True, within=20.0):
    """Sends turn after turn on each of these connections, side by side, until the gateway has said the end to all."""
    flooding, deadline = dict.fromkeys(wires, 0), time.monotonic() + within
    while flooding:
        for wire in list(flooding):
            wire.socket.settimeout(within)
            try:
                flooding[wire] += wire.send(*turn(wire))
                while reads and wire in flooding and select.select([wire.socket], [], [], 0)[0]:
                    if not wire.read():
                        del flooding[wire]
            except TimeoutError:
                raise AssertionError(f"neither taken nor closed after {flooding[wire]} bytes") from None
            except OSError:
                del flooding[wire]
        assert time.monotonic() < deadline, f"still open after {within} s: {list(flooding.values())} bytes"
        assert all(sent < MOST for sent in flooding.values()), "all was taken"


class Good:
    """A client of the other organization that asks, one request after the other, while something else happens."""

    def __init__(self, door):
        self.connection = H1(door.connect("globex"))
        self.slowest, self.wrong, self.served, self.stop = 0.0, [], 0, False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.stop or not self.served:
            began = time.monotonic()
            try:
                answer = self.connection.ask(body=chat())
            except OSError as error:
                self.wrong.append(error)
                return
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.served += 1
            if answer.status != 200:
                self.wrong.append(answer.body)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join(10)
        self.connection.close()

    def was_served(self):
        return not self.wrong and self.served and self.slowest < 2


@pytest.fixture(scope="module")
def flooded(tmp_path_factory):
    """A gateway to which floods come, all of them, and its memory when only honest clients had come."""
    stage = Stage(tmp_path_factory.mktemp("flooded"))
    with contextlib.ExitStack() as stack:
        for _ in range(FLOODERS):
            wire = stack.enter_context(H2(stage.connect(alpn=("h2",))))
            assert wire.finish(wire.request(fields(body=BODY), BODY)).status == 200
        stage.at_rest = memory(stage)
    yield stage
    stage.close()
    assert "panicked at" not in stage.gateway.log


def flood_in_bounds(stage, turn, reads=True):
    """Many floods at the same time: each is ended, others are served meanwhile, and the most memory that the system ever
    saw in use is within what so many connections may take. One connection alone would drown in the allocator's noise."""
    with Good(stage) as good, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(H2(stage.connect(alpn=("h2",)), manners=False)) for _ in range(FLOODERS)]
        flood(wires, turn, reads)
    assert good.was_served(), (good.wrong, good.slowest)
    grown = most_memory(stage) - stage.at_rest
    assert grown < FLOODERS * PER_CONNECTION, f"{grown / FLOODERS / 1024:.0f} KiB a connection"


@pytest.mark.parametrize("turn", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_ends_in_a_close_and_harms_nobody(flooded, turn):
    flood_in_bounds(flooded, turn)
    eventually(lambda: flooded.ledger()["totals"]["open"] == 0, what="the end of all work")
    eventually(lambda: flooded.metric("portcullis_streams_active") == 0, what="the end of all streams")


@pytest.mark.parametrize("name", ["PING", "SETTINGS", "MadeYouReset by a length that lies"])
def test_a_flooder_that_reads_nothing_is_closed_too(flooded, name):
    """The answers to what it sends find no reader: they may neither pile up nor hold the connection."""
    flood_in_bounds(flooded, FLOODS[name], reads=False)


def literal(text):
    """A string of HPACK, shorter than 16 KiB, without Huffman's code."""
    return hpack.hpack.encode_integer(len(text), 7) + text


# GET https://localhost/v1/models and POST …/chat/completions by the static table alone, so that entry 62 is the next made.
PLAIN_GET = b"\x82\x87\x04" + literal(b"/v1/models") + b"\x01" + literal(b"localhost")
PLAIN_POST = (
    b"\x83\x87\x04" + literal(b"/v1/chat/completions") + b"\x01" + literal(b"localhost")
    + b"\x00" + literal(b"portcullis-purpose") + literal(b"research") + b"\x0f\x10" + literal(b"application/json")
)  # fmt: skip
def filled(door, plain, value, times, end):
    """What the memory grows by when connections of a hundred streams each come with heads that refer `times` to one
    entry of the table. A fresh gateway is best: nothing has stretched its memory before."""
    door.ask(body=chat())
    before, entry = memory(door), b"\x40" + literal(b"x-note") + literal(value)
    flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
    with Good(door) as good, contextlib.ExitStack() as stack:
        for _ in range(BOMBED):
            wire = stack.enter_context(H2(door.connect(alpn=("h2",))))
            heads = [HeadersFrame(wire.open(), plain + b"\xbe" * times, flags=flags) for _ in range(100)]
            if times:
                heads[0].data = plain + entry + b"\xbe" * (times - 1)
            with contextlib.suppress(OSError):
                wire.send(*heads, PingFrame(0, b"all read"))
                streams = [wire.stream(head.stream_id) for head in heads]
                wire.until(lambda: all(one.over for one in streams) if end else wire.pongs)
                assert not any(one.status == 200 for one in streams)
        grown = most_memory(door) - before
    assert good.was_served(), (good.wrong, good.slowest)
    return grown


BOMBS = {
    "a large entry, often": (PLAIN_GET, b"a" * 3900, 15_000, True),
    "a small entry, often": (PLAIN_GET, b"a", 15_000, True),
    "a small entry, as often as fits, held open": (PLAIN_POST, b"a", 330, False),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_heads_that_grow_when_unpacked_take_bounded_memory(stage, bomb):
    grown = filled(stage(), *bomb)
    assert grown < BOMBED * PER_CONNECTION, f"{grown / BOMBED / 1024:.0f} KiB a connection"


def test_heads_as_large_as_allowed_take_hardly_more_than_small_ones(stage):
    """All of these requests are legal and wait for their bodies; what their heads unpack to must not wait with them."""
    small = filled(stage(), PLAIN_POST, b"", 0, end=False)
    large = filled(stage(), PLAIN_POST, b"a" * 180, 58, end=False)
    assert large - small < BOMBED * PER_CONNECTION / 4, (small, large)


@pytest.mark.parametrize("window", [0, 1 << 24], ids=["default windows", "a wide window"])
def test_a_reader_of_many_streams_that_acknowledges_every_frame_survives(stage, window):
    """With default windows the streams get in each other's way, and the frames become as small as the acknowledgements:
    a few bytes each. The reader is as honest as before. A stream may wait for its turn in the window that all share for
    longer than `door` is patient, so here that is as long as by default."""
    body = json.dumps(chat("mock-tokens-150", stream=True)).encode()
    with H2(stage().connect(alpn=("h2",))) as wire:
        if window:
            wire.send(WindowUpdateFrame(0, window))
        streams = [wire.request(fields(body=body), body) for _ in range(100)]
        wire.until(lambda: all(stream.over for stream in streams) or wire.acknowledged >= 30_000, within=60)
        assert wire.goaway is None and not wire.closed, wire.acknowledged
        assert all(stream.status == 200 and stream.reset is None for stream in streams)
        assert wire.acknowledged > 8000, "too few frames to prove anything"
        if window:
            assert all(stream.data.endswith(b"data: [DONE]\n\n") for stream in streams)


def test_a_client_that_leaves_every_answer_after_its_beginning_survives(door, wire):
    """More of them than a connection may take back unanswered."""
    body = json.dumps(chat("mock-tokens-1000.tps-20", stream=True)).encode()
    for _ in range(12):
        streams = {wire.next + 2 * number for number in range(100)}
        for _ in streams:
            wire.request(fields(body=body), body)
        wire.until(lambda: all(wire.stream(number).data for number in streams), within=20)  # noqa: B023
        wire.send(*[RstStreamFrame(number, 8) for number in streams])
        assert all(wire.stream(number).status == 200 for number in streams)
    assert wire.finish(wire.request(MODELS)).status == 200
    assert wire.goaway is None


def test_more_streams_than_allowed_are_refused_and_the_rest_served(door, wire):
    wire.until(lambda: wire.settings)
    assert wire.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 100
    streams = [wire.request(fields(body=HANGING), HANGING) for _ in range(100)]
    beyond = wire.request(MODELS)
    assert wire.finish(beyond).reset == 7, (beyond.status, beyond.reset, wire.goaway)
    wire.send(RstStreamFrame(1, 8))
    eventually(lambda: door.metric("portcullis_streams_active") == 99, what="the end of the first stream")
    assert wire.finish(wire.request(MODELS)).status == 200
    assert not any(stream.ended for stream in streams)


def test_an_organization_that_floods_is_still_served_on_its_other_connections(door):
    with H2(door.connect(alpn=("h2",)), manners=False) as wire:
        flood([wire], FLOODS["PING"])
    assert door.ask(body=chat()).status == 200


def test_a_closed_flood_leaves_no_connection_behind(door):
    eventually(lambda: door.metric("portcullis_connections_active") <= 1, what="the end of all connections")


class Written:
    """A socket that only keeps what is written."""

    def __init__(self):
        self.data = b""

    def sendall(self, data):
        self.data += data


def conversation(requests):
    """The bytes of a client that sends these requests."""
    wire = H2(Written())
    for headers, body in requests:
        wire.request(headers, body)
    return wire.socket.data


def mutated(chance, data):
    """A few bytes behind the preface changed, taken out or doubled."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(PREFACE), len(data))
        match chance.randrange(4):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                del data[at:at + chance.randint(1, 4)]
            case 3:
                data[at:at] = data[at:at + chance.randint(1, 20)]
    return bytes(data)


def test_what_mutated_frames_bring_to_the_model_is_well_formed(stage):
    # Between two requests the good client may be held up for longer than what is crooked is waited for.
    one = stage(listen='head_timeout = "300ms"\nbody_idle_timeout = "300ms"\nidle_timeout = "1s"')
    chance, good = random.Random(5309), [*PASSING.values(), (MODELS, b"")]
    with Good(one) as client:
        for _ in range(4):
            sockets = []
            for _ in range(64):
                socket = one.connect(alpn=("h2",), timeout=30)
                sockets.append(socket)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    socket.sendall(mutated(chance, conversation(chance.sample(good, 3))))
            for socket in sockets:
                with contextlib.suppress(ConnectionError, ssl.SSLError), socket:
                    while socket.recv(65_536):
                        pass
    assert client.was_served(), (client.wrong, client.slowest)
    requests = one.ledger()["requests"]
    assert len(requests) > 25
    for one_seen in requests:
        assert one_seen["path"] == "/v1/chat/completions", one_seen
        names = [name for name, _ in one_seen["headers"]]
        assert set(names) <= h1.CROSSING and names.count("content-length") == 1, one_seen
        assert isinstance(json.loads(one_seen["body"])["model"], str)
