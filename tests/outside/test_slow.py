"""Clients that take their time, and a gateway that has none left: stillness ends, movement never does.

The times are small here; what a test waits for is the gateway's end of the connection, never a nap of its own choice.
"""

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import statistics
import threading
import time

import http2
import pytest
from frames import H2, PREFACE, fields
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from stage import H1, Stage, Streaming, chat, eventually, fetch, memory, most_memory

SHORT, LONG = 0.6, 4.0
LISTEN = """\
handshake_timeout = "600ms"
head_timeout = "600ms"
body_idle_timeout = "600ms"
idle_timeout = "600ms"
write_timeout = "600ms"
"""
# What a busy machine may add to a time.
SLACK = 3.0
BODY = json.dumps(chat()).encode()
MODELS = fields("/v1/models")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A gateway whose every patience is 600 ms."""
    one = Stage(tmp_path_factory.mktemp("hasty"), listen=LISTEN)
    yield one
    one.close()
    assert "panicked at" not in one.gateway.log


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A gateway whose every patience is 4 s: who moves four times as often is not still where a machine hesitates."""
    one = Stage(tmp_path_factory.mktemp("patient"), listen=LISTEN.replace("600ms", "4s"))
    yield one
    one.close()
    assert "panicked at" not in one.gateway.log


@contextlib.contextmanager
def lasting(least=SHORT, most=SHORT + SLACK):
    """What happens inside takes at least the patience, and not much more. It begins before what the gateway counts from:
    between the two a machine with other work may stop us, and never the other way round."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert least <= took <= most, f"took {took:.2f} s"


def gone(connection, within=SHORT + SLACK):
    """Reads to the end, however it comes, and returns what was said."""
    connection.settimeout(within)
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            said += piece
    return said


def trickle(connection, data, every=0.1):
    """Sends byte after byte until all is sent or the other side has ended; how many that were."""
    for number, byte in enumerate(data):
        try:
            connection.sendall(bytes([byte]))
            if select.select([connection], [], [], every)[0]:
                return number
        except OSError:
            return number
    return len(data)


def plain(stage, origin="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", stage.port), timeout=10, source_address=(origin, 0))


def timeouts(stage):
    return stage.metric("portcullis_tls_handshakes_total", result="timeout")


# Before the handshake.

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize("said", [b"", b"\x16", HELLO], ids=["nothing", "one byte", "half a hello"])
def test_a_socket_without_a_handshake_is_closed(hasty, said):
    before = timeouts(hasty)
    with lasting(), plain(hasty) as silent:
        silent.sendall(said)
        assert gone(silent) == b""
    eventually(lambda: timeouts(hasty) == before + 1, what="the count")


def test_a_handshake_that_trickles_in_has_no_more_time(hasty):
    before = timeouts(hasty)
    with lasting(), plain(hasty) as slow:
        assert trickle(slow, HELLO + b"\0" * 500) < 100
    # Counted after it is closed: not in the middle of the next test.
    eventually(lambda: timeouts(hasty) == before + 1, what="the count")


def test_a_client_that_never_answers_the_hello_is_closed(hasty):
    """It has seen our certificate and keeps its own back."""
    before, incoming, outgoing = timeouts(hasty), ssl.MemoryBIO(), ssl.MemoryBIO()
    client = hasty.tls().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with lasting(), plain(hasty) as silent:
        silent.sendall(outgoing.read())
        assert gone(silent)
    eventually(lambda: timeouts(hasty) == before + 1, what="the count")


def test_silent_sockets_do_not_hold_the_door(stage):
    """Ten times as many as there is room for: a partner gets in, and every silent socket is gone."""
    one = stage(listen=LISTEN + "max_connections = 10")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(plain(one)) for _ in range(100)]

        def served():
            with contextlib.suppress(OSError, EOFError):
                return one.ask(body=chat()).status == 200

        eventually(served, within=SHORT + SLACK, every=0.05, what="a place")
        for connection in silent:
            gone(connection)
    assert one.metric("portcullis_tls_handshakes_total", result="ok") == 1


def test_beyond_the_most_connections_newcomers_are_turned_away_and_guests_are_not(stage):
    one = stage(listen="max_connections = 3")
    with contextlib.ExitStack() as stack:
        guests = [stack.enter_context(H1(one.connect())) for _ in range(3)]
        assert [guest.ask("/v1/models").status for guest in guests] == [200] * 3
        with pytest.raises((OSError, EOFError)):
            one.ask("/v1/models")
        assert one.metric("portcullis_tls_handshakes_total", result="shed") == 1
        assert [guest.ask("/v1/models").status for guest in guests] == [200] * 3
        guests[0].close()

        def served():
            with contextlib.suppress(OSError, EOFError):
                return one.ask("/v1/models").status == 200

        eventually(served, what="the place of the guest who left")


def rejected(stage, reason):
    return stage.metric("portcullis_connections_rejected_total", listener="partners", reason=reason)


def test_a_flood_of_silent_sockets_from_one_address_crowds_out_only_itself(stage):
    one = stage(listen='max_connections = 80\nhandshake_timeout = "60s"')
    with contextlib.ExitStack() as stack:
        neighbours = [stack.enter_context(plain(one, "127.0.0.3")) for _ in range(5)]
        flood = [stack.enter_context(plain(one, "127.0.0.2")) for _ in range(200)]
        eventually(lambda: rejected(one, "displaced") == 180, what="all but a quarter of the places given up")
        assert [gone(silent) for silent in flood[:180]] == [b""] * 180, "the longest silent first"
        assert one.ask(body=chat()).status == 200
        assert select.select([*neighbours, *flood[180:]], [], [], 0.2)[0] == [], "nobody else had to go"
        assert rejected(one, "full") == 0


def test_silent_sockets_take_no_more_than_the_operators_places(stage):
    """Who comes displaces the longest silent, and is served."""
    one = stage()
    port = int(one.admin.rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(100)]
        assert fetch(one.admin + "/metrics").status == 200
        displaced = one.metric("portcullis_connections_rejected_total", listener="admin", reason="displaced")
        assert displaced >= 100 - 32
        assert [gone(connection) for connection in silent[:68]] == [b""] * 68
        assert one.ask("/v1/models").status == 200
        with lasting(least=0, most=5 + SLACK):
            for connection in silent:
                gone(connection, within=5 + SLACK)


def test_handshakes_of_one_address_are_limited_where_the_operator_says_so(stage):
    one = stage(listen="handshakes_per_address = 1")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        hasty = [stack.enter_context(plain(one, "127.0.0.2")) for _ in range(60)]
        eventually(lambda: one.metric("portcullis_connections_total", listener="partners") + rejected(one, "rate") == 60)
        passed = 60 - rejected(one, "rate")
        assert 10 <= passed <= 10 + (time.monotonic() - began), "ten at once, one a second"
        eventually(lambda: len(select.select(hasty, [], [], 0)[0]) == 60 - passed, what="the end of the others")
        assert one.ask(body=chat()).status == 200, "another address is not concerned"
    one.write_config(listen="")
    assert fetch(one.admin + "/-/reload", method="POST").status == 200
    before = rejected(one, "rate")
    for _ in range(20):
        plain(one, "127.0.0.2").close()
    assert one.ask(body=chat()).status == 200
    assert rejected(one, "rate") == before


# Between and within heads.


def test_a_connection_without_a_request_ends(hasty):
    with lasting(), hasty.connect() as idle:
        assert gone(idle) == b""


def test_a_connection_without_another_request_ends(hasty):
    with H1(hasty.connect()) as connection, lasting():
        assert connection.ask(body=chat()).status == 200
        assert gone(connection.socket) == b""


def test_requests_keep_a_connection_open(patient):
    with H1(patient.connect()) as connection:
        for _ in range(5):
            assert connection.ask("/v1/models").status == 200
            time.sleep(LONG / 4)
        assert connection.ask("/v1/models").status == 200


@pytest.mark.parametrize("before", [0, 1], ids=["the first head", "a later head"])
def test_a_head_that_trickles_in_has_no_more_time(hasty, before):
    with lasting(), H1(hasty.connect()) as connection:
        for _ in range(before):
            assert connection.ask("/v1/models").status == 200
        assert trickle(connection.socket, connection.head(body=BODY)) < 100
        gone(connection.socket)


def test_a_head_that_stops_ends_the_connection(hasty):
    with lasting(), H1(hasty.connect()) as connection:
        connection.send(connection.head(body=BODY)[:40])
        gone(connection.socket)


def test_heads_within_their_time_are_not_hurried(patient):
    with H1(patient.connect()) as connection:
        for _ in range(3):
            whole = connection.head("/v1/models")
            connection.send(whole[:20])
            time.sleep(LONG / 4)
            connection.send(whole[20:])
            status, headers = connection.read_head()
            assert status == 200
            connection.read_body(headers)


@pytest.mark.parametrize("said", [b"", PREFACE[:10]], ids=["nothing", "half the preface"])
def test_whoever_agreed_on_http2_and_does_not_speak_it_ends(hasty, said):
    with lasting(), hasty.connect(alpn=("h2",)) as silent:
        silent.sendall(said)
        gone(silent)


@pytest.mark.parametrize("before", [0, 1], ids=["no request", "no other request"])
def test_an_http2_connection_without_a_request_is_told_to_go(hasty, before):
    with lasting(), H2(hasty.connect(alpn=("h2",))) as wire:
        for _ in range(before):
            assert wire.finish(wire.request(MODELS)).status == 200
        wire.end(within=SHORT + SLACK)
        assert wire.goaway == 0


def test_an_http2_head_that_never_ends_ends_the_connection(hasty):
    with lasting(), H2(hasty.connect(alpn=("h2",))) as wire:
        wire.until(lambda: wire.settings)
        wire.send(HeadersFrame(wire.open(), wire.encoder.encode(MODELS), flags=["END_STREAM"]))
        wire.end(within=SHORT + SLACK)
        assert not wire.goaway


def test_an_http2_head_that_never_ends_ends_also_beside_a_stream(hasty):
    body = json.dumps(chat("mock-tokens-1000.tps-10", stream=True)).encode()
    with H2(hasty.connect(alpn=("h2",))) as wire:
        stream = wire.request(fields(body=body), body)
        wire.until(lambda: stream.frames)
        wire.manners = False
        with lasting():
            wire.send(HeadersFrame(wire.open(), wire.encoder.encode(MODELS), flags=["END_STREAM"]))
            wire.end(within=SHORT + SLACK)


def bare(kind, flags, stream, length, payload=b""):
    """A frame whose payload need not be as long as it says."""
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


TRICKLES = {
    "the preface": (b"", PREFACE, 0.1),
    "a head that its header ends": (bare(1, 5, 1, 1_000), b"a" * 100, 0.1),
    "a frame's header": (b"", bare(1, 5, 1, 1_000), 0.3),
    "an unknown frame": (bare(0xBB, 0, 0, 16_384), b"a" * 100, 0.1),
}


@pytest.mark.parametrize("which", TRICKLES)
def test_an_http2_frame_that_trickles_in_has_no_more_time(stage, which):
    one = stage(listen=LISTEN.replace('\nidle_timeout = "600ms"', '\nidle_timeout = "60s"'))
    whole, pieces, every = TRICKLES[which]
    with lasting(), one.connect(alpn=("h2",)) as wire:
        if which != "the preface":
            wire.sendall(PREFACE + bare(4, 0, 0, 0) + whole)
        trickle_all(wire, pieces, every)
        gone(wire, within=SHORT + SLACK)


CHEAP = {"ping": bare(6, 0, 0, 8, b"12345678"), "priority": bare(2, 0, 3, 5, b"\0\0\0\0\x10")}


@pytest.mark.parametrize("which", CHEAP)
def test_an_http2_connection_without_a_request_ends_whatever_else_it_says(hasty, which):
    with lasting(), hasty.connect(alpn=("h2",)) as wire:
        wire.sendall(PREFACE + bare(4, 0, 0, 0))
        trickle_all(wire, [CHEAP[which]] * 30, 0.2)
        gone(wire, within=SHORT + SLACK)


def test_an_http2_connection_with_a_stream_may_say_what_it_likes(hasty):
    body = json.dumps(chat("mock-tokens-12.tps-6", stream=True)).encode()
    with H2(hasty.connect(alpn=("h2",))) as wire:
        stream = wire.request(fields(body=body), body)
        while not stream.over:
            wire.send(CHEAP["ping"], WindowUpdateFrame(0, 1))
            frames = stream.frames
            assert wire.until(lambda: stream.over or stream.frames > frames)  # noqa: B023
        assert stream.data.endswith(b"data: [DONE]\n\n")


def trickle_all(connection, pieces, every):
    """Sends piece after piece until the other side has ended, whatever it says before."""
    connection.settimeout(0.01)
    for piece in pieces:
        with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
            try:
                if not connection.recv(65_536):
                    return
            except ConnectionError:
                return
        try:
            connection.sendall(bytes([piece]) if isinstance(piece, int) else piece)
        except OSError:
            return
        time.sleep(every)


def unfinished(framing):
    """A request whose body has begun."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nportcullis-purpose: research\r\ncontent-type: application/json\r\n"
    if framing == "chunks":
        return head + b"transfer-encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY[:5]


def test_half_a_record_of_tls_is_no_movement(hasty):
    """A client may be silent below HTTP, too: what it has begun to encrypt is not a byte of a request."""
    with lasting(), hasty.connect() as idle, socket.socket(fileno=os.dup(idle.fileno())) as below:
        below.settimeout(10)
        trickle(below, b"\x17\x03\x03\x20\x00" + b"a" * 100)


@pytest.mark.parametrize("model", ["mock-hang", "mock-tokens-100000.tps-20"], ids=["before the head", "mid-stream"])
def test_a_connection_whose_request_was_taken_back_is_idle(hasty, model):
    """Over HTTP/2 a client resets a request and keeps the connection: then nothing is under way on it any more."""
    body = json.dumps(chat(model, stream=True)).encode()
    with H2(hasty.connect(alpn=("h2",))) as wire:
        wire.request(fields(body=body), body)
        eventually(lambda: hasty.metric("portcullis_streams_active") == 1, what="the stream")
        with lasting():
            wire.send(RstStreamFrame(1, 8))
            wire.end(SHORT + SLACK)


# Bodies.


def test_a_client_that_may_continue_and_does_not_is_refused(hasty):
    with lasting(), H1(hasty.connect()) as connection:
        connection.send(connection.head(body=BODY, expect="100-continue")[:-len(BODY)])
        assert connection.read_head()[0] == 100
        status, headers = connection.read_head()
        assert (status, headers["portcullis-reason"]) == (400, "request_invalid")


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_a_body_that_stands_still_is_refused_and_forgotten(hasty, framing):
    before = hasty.ledger()["totals"]["requests"]
    with H1(hasty.connect()) as connection:
        with lasting():
            connection.send(unfinished(framing))
            status, headers = connection.read_head()
        assert (status, headers["portcullis-reason"]) == (400, "request_invalid")
        connection.read_body(headers)
        gone(connection.socket)
    assert hasty.ledger()["totals"]["requests"] == before


@pytest.mark.parametrize("purpose, code", [("research", "request_invalid"), (None, "purpose_missing")])
def test_an_http2_body_that_stands_still_is_refused_and_the_connection_serves_on(patient, purpose, code):
    """It is waited for once, whether it was to be read or to be thrown away."""
    before = patient.ledger()["totals"]["requests"]
    with H2(patient.connect(alpn=("h2",))) as wire:
        with lasting(LONG, LONG + SLACK):
            stream = wire.request(fields(body=BODY, portcullis_purpose=purpose), BODY[:5], end=False)
            wire.until(lambda: stream.over, within=LONG + SLACK)
        assert (stream.status, stream.reason) == (400, code)
        assert wire.finish(wire.request(MODELS)).status == 200
    assert patient.ledger()["totals"]["requests"] == before


def test_an_http2_body_that_stands_still_ends_also_while_others_move(hasty):
    body = json.dumps(chat("mock-tokens-100.tps-20", stream=True)).encode()
    with H2(hasty.connect(alpn=("h2",))) as wire:
        moving = wire.request(fields(body=body), body)
        wire.until(lambda: moving.frames)
        with lasting():
            still = wire.request(fields(body=BODY), BODY[:5], end=False)
            wire.until(lambda: still.over, within=SHORT + SLACK)
        assert wire.finish(moving).data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_a_body_that_moves_is_never_hurried(patient, framing):
    """More than the patience in all, and never still for more than a quarter of it."""
    with H1(patient.connect()) as connection:
        connection.send(unfinished(framing))
        step = len(BODY) // 5 + 1
        for at in range(5, len(BODY), step):
            time.sleep(LONG / 4)
            piece = BODY[at:at + step]
            connection.send(piece if framing == "a length" else b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.send(b"" if framing == "a length" else b"0\r\n\r\n")
        assert connection.read_head()[0] == 200


@pytest.mark.parametrize("purpose, status", [("research", 200), (None, 400)])
def test_an_http2_body_that_moves_is_never_hurried(patient, purpose, status):
    """Nor is one that nobody wants answered in its middle."""
    with H2(patient.connect(alpn=("h2",))) as wire:
        stream = wire.request(fields(body=BODY, portcullis_purpose=purpose), BODY[:5], end=False)
        step = len(BODY) // 5 + 1
        for at in range(5, len(BODY), step):
            time.sleep(LONG / 4)
            wire.send(DataFrame(1, BODY[at:at + step], flags=["END_STREAM"] if at + step >= len(BODY) else []))
        assert (wire.finish(stream).status, stream.reset) == (status, None)


# Answers.


def ended(stage, how):
    return stage.metric("portcullis_streams_total", end=how)


def test_an_answer_that_is_long_in_coming_is_waited_for(hasty):
    assert hasty.ask(body=chat("mock-slow-head-1500")).status == 200


def test_a_stream_that_moves_slowly_is_never_cut(patient):
    stream = Streaming(patient, "mock-tokens-20.tps-4")
    assert stream.wait(20) == "complete"
    assert stream.text.endswith("data: [DONE]\n\n")
    assert stream.ended_at - stream.pieces[0][0] > LONG


def test_an_http2_stream_that_moves_slowly_is_never_cut(patient):
    body = json.dumps(chat("mock-tokens-20.tps-4", stream=True)).encode()
    with H2(patient.connect(alpn=("h2",))) as wire:
        assert wire.finish(wire.request(fields(body=body), body), within=20).data.endswith(b"data: [DONE]\n\n")


FLOWING = "mock-tokens-100000"


def test_a_reader_that_stops_is_let_go_and_so_is_the_model(hasty):
    before, cancelled = ended(hasty, "client_stalled"), hasty.ledger()["totals"]["client_gone"]
    with H1(hasty.connect()) as connection:
        connection.send(connection.head(body=chat(FLOWING, stream=True, max_tokens=90_000)))
        assert connection.read_head()[0] == 200
        eventually(lambda: ended(hasty, "client_stalled") == before + 1, within=SHORT + 2 * SLACK, what="the end")
        eventually(lambda: hasty.ledger()["totals"]["client_gone"] == cancelled + 1, what="the model's end")
        assert not gone(connection.socket).endswith(b"0\r\n\r\n")


def test_an_http2_reader_that_opens_no_window_loses_its_stream_alone(hasty):
    before = ended(hasty, "client_stalled")
    body = json.dumps(chat(FLOWING, stream=True, max_tokens=90_000)).encode()
    with H2(hasty.connect(alpn=("h2",)), manners=False) as wire:
        wire.send(SettingsFrame(flags=["ACK"]), WindowUpdateFrame(0, 1 << 24))
        with lasting():
            stream = wire.request(fields(body=body), body)
            wire.until(lambda: stream.over, within=SHORT + SLACK)
        assert stream.reset is not None and not stream.ended
        assert wire.finish(wire.request(MODELS)).status == 200
    eventually(lambda: ended(hasty, "client_stalled") == before + 1, what="the record's end")


def test_an_http2_reader_that_reads_nothing_loses_its_connection(hasty):
    before = ended(hasty, "client_stalled")
    body = json.dumps(chat(FLOWING, stream=True, max_tokens=90_000)).encode()
    with H2(hasty.connect(alpn=("h2",)), settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 28}) as wire:
        wire.send(WindowUpdateFrame(0, 1 << 28))
        wire.request(fields(body=body), body)
        eventually(lambda: ended(hasty, "client_stalled") == before + 1, within=SHORT + 2 * SLACK, what="the end")


def test_an_http2_reader_that_thinks_between_two_chunks_loses_nothing(stage):
    """Longer than any PING would be waited for: what comes meanwhile lies in the windows, and TCP says that it is there."""
    body = json.dumps(chat("mock-tokens-66.tps-2", stream=True)).encode()
    with H2(stage().connect(alpn=("h2",))) as wire:
        stream = wire.request(fields(body=body), body)
        assert wire.until(lambda: stream.data)
        time.sleep(31)
        assert wire.finish(stream).data.endswith(b"data: [DONE]\n\n")


def test_streams_that_nobody_reads_take_bounded_memory(stage):
    """The windows are shut and the model is fast: what it has said waits with the model, not with us. So many streams
    that what the allocator keeps once for all does not matter; of each comes ten times what it may take, and no more:
    a model that fills the system's own buffers for all of them has no time to tell of its book."""
    one = stage()
    one.ask(body=chat())
    before, body = memory(one), json.dumps(chat("mock-tokens-5000", stream=True, max_tokens=90_000)).encode()
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(3):
            shut = H2(one.connect(alpn=("h2",)), settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}, manners=False)
            wire = stack.enter_context(shut)
            own = [wire.request(fields(body=body), body) for _ in range(80)]
            wire.until(lambda: all(stream.status == 200 for stream in own), within=60)  # noqa: B023
            streams += own
        spoken = -1
        while spoken < (spoken := fetch(one.mock_url + "/mock/ledger", timeout=60).json["totals"]["output_tokens"]):
            time.sleep(0.2)
        assert most_memory(one) - before < len(streams) * 128 * 1024


def test_a_reader_that_reads_slowly_is_never_cut(stage):
    """Sips with pauses below the patience; the pipe is full all the time. The reader's own kernel opens a window only
    when a sixteenth of its buffer is free, so what it has not told of may not be held against it for less than that."""
    one = stage(listen='write_timeout = "2s"')
    with H1(one.connect()) as connection:
        connection.send(connection.head(body=chat("mock-tokens-90000", stream=True, max_tokens=90_000)))
        assert connection.read_head()[0] == 200
        until = time.monotonic() + 6
        while time.monotonic() < until:
            sip = 0
            while sip < 64 * 1024:
                assert connection.more(), "cut"
                sip, connection.buffer = sip + len(connection.buffer), b""
            time.sleep(0.1)


def test_an_http2_reader_that_opens_its_window_slowly_is_never_cut(patient):
    body = json.dumps(chat("mock-tokens-60000", stream=True, max_tokens=90_000)).encode()
    with H2(patient.connect(alpn=("h2",)), manners=False) as wire:
        wire.send(SettingsFrame(flags=["ACK"]), WindowUpdateFrame(0, 1 << 24))
        stream = wire.request(fields(body=body), body)
        wire.until(lambda: len(stream.data) >= 65_000)
        for _ in range(5):
            had = len(stream.data)
            time.sleep(LONG / 4)
            wire.send(WindowUpdateFrame(1, 500))
            wire.until(lambda had=had: stream.over or len(stream.data) > had, within=SHORT + SLACK)
            assert not stream.over, stream.reset
        wire.send(RstStreamFrame(1, 8))


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A gateway whose every patience is 2 s, which the last of a large answer takes longer than."""
    one = Stage(tmp_path_factory.mktemp("brief"), listen=LISTEN.replace("600ms", "2s"))
    yield one
    one.close()
    assert "panicked at" not in one.gateway.log


@pytest.mark.parametrize("behind", [b"", b"GET /v1/mod"], ids=["alone", "before half a head"])
def test_the_last_of_an_answer_has_its_time_from_a_reader_that_is_slow(brief, behind):
    """The gateway has all of it, and the exchange is over there, long before the client has it."""
    with contextlib.closing(socket.socket()) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", brief.port))
        with H1(brief.tls().wrap_socket(plain, server_hostname="localhost")) as connection:
            connection.send(connection.head(body=chat("mock-tokens-30000", max_tokens=40_000)) + behind)
            status, headers = connection.read_head()
            length, got = int(headers["content-length"]), len(connection.buffer)
            assert status == 200 and length > 128 * 1024
            while got < length:
                time.sleep(0.1)
                sip = connection.socket.recv(3000)
                assert sip, f"cut after {got} of {length} bytes"
                got += len(sip)


def test_the_last_of_an_http2_answer_has_its_time_from_a_reader_that_opens_its_window_slowly(brief):
    window = {SettingsFrame.INITIAL_WINDOW_SIZE: 600}
    with H2(brief.connect(alpn=("h2",)), settings=window, manners=False) as wire:
        body = json.dumps(chat("mock-tokens-8000", max_tokens=10_000)).encode()
        stream = wire.request(fields(body=body), body)
        while not stream.over:
            had = len(stream.data)
            time.sleep(0.1)
            wire.send(WindowUpdateFrame(1, 600))
            assert wire.until(lambda had=had: stream.over or len(stream.data) > had), f"cut after {had} bytes"
        assert stream.ended and len(stream.data) == int(stream.headers["content-length"]) > 32 * 1024


def test_an_http2_reader_that_takes_nothing_of_the_rest_loses_its_connection(hasty):
    with H2(hasty.connect(alpn=("h2",)), settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1}) as wire, lasting():
        wire.manners = False
        stream = wire.request(fields(body=BODY), BODY)
        wire.end(within=SHORT + SLACK)
        assert (stream.status, len(stream.data), stream.ended) == (200, 1, False)


UNMETERED = {
    "models": (MODELS, b""),
    "no such route": (fields("/v1/nothing"), b""),
    "no purpose": (fields(body=BODY, portcullis_purpose=None), BODY),
    "a body that is not read": (fields(body=b"{"), b"{"),
}


@pytest.mark.parametrize("which", UNMETERED)
def test_an_http2_reader_that_opens_no_window_loses_the_gateways_own_answers_too(hasty, which):
    headers, body = UNMETERED[which]
    with H2(hasty.connect(alpn=("h2",)), settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}, manners=False) as wire, lasting():
        stream = wire.request(headers, body)
        wire.until(lambda: stream.over, within=SHORT + SLACK)
        assert stream.reset is not None and stream.status


# No room.


def test_bodies_beyond_the_memory_are_refused_until_there_is_room(stage):
    """Two bodies, each more than half of the room, neither of them whole: one of them has to go."""
    one = stage(listen='body_memory = "64KiB"')
    large = json.dumps(chat(user="u" * 40_000)).encode()
    with H1(one.connect()) as first, H1(one.connect("globex")) as second:
        for connection in (first, second):
            connection.send(connection.head(body=large)[:-1])
        readable, _, _ = select.select([first.socket, second.socket], [], [], 10)
        loser, winner = (first, second) if first.socket in readable else (second, first)
        status, headers = loser.read_head()
        assert (status, headers["portcullis-reason"]) == (503, "overloaded")
        assert int(headers["retry-after"]) >= 1 and int(headers["retry-after-ms"]) >= 1
        assert one.ask(body=chat()).status == 200, "a small body has room"
        winner.send(large[-1:])
        assert winner.read_head()[0] == 200
    eventually(lambda: one.ask(body=large).status == 200, what="room")
    assert one.metric("portcullis_request_refusals_total", reason="overloaded") == 1


def test_whoever_does_not_wait_when_told_to_is_made_to(stage):
    """On one connection, one request a minute: the first refusals are told as they come, those after them more slowly."""
    limits = "[limits]\nrequests_per_minute = { limit = 1, burst = 1 }\n"
    one = stage(orgs={"acme": Stage.ACME + limits, "globex": Stage.GLOBEX})
    with H1(one.connect()) as connection:

        def refused():
            began = time.monotonic()
            connection.send(connection.head(body=chat()))
            status, headers = connection.read_head()
            assert status == 429
            connection.read_body(headers)
            return time.monotonic() - began

        connection.send(connection.head(body=chat()))
        status, headers = connection.read_head()
        assert status == 200
        connection.read_body(headers)
        prompt, slowed = ([refused() for _ in range(length)] for length in (8, 20))
        assert sum(slowed) > 13 * 0.05, "from then on, most of them took their 50 ms"
        assert statistics.median(slowed) > statistics.median(prompt)
        with H1(one.connect()) as other:
            other.send(other.head(body=chat()))
            assert other.read_head()[0] == 429


def unready(stage):
    answer = fetch(stage.admin + "/readyz")
    return answer.body.decode() if answer.status == 503 else ""


def test_what_has_no_room_is_refused_before_it_is_sent_and_readyz_says_so(stage):
    one = stage(listen='body_memory = "64KiB"')
    large = json.dumps(chat(user="u" * 63_000)).encode()
    with H1(one.connect()) as holder, H1(one.connect("globex")) as late:
        assert not unready(one)
        holder.send(holder.head(body=large)[:-1])
        assert "[-] memory" in eventually(lambda: unready(one), what="unreadiness")
        late.send(late.head(body=large)[: -len(large)])
        status, headers = late.read_head()
        assert (status, headers["portcullis-reason"], headers["retry-after"]) == (503, "overloaded", "1")
        holder.send(large[-1:])
        assert holder.read_head()[0] == 200
    eventually(lambda: not unready(one), what="readiness")


def few_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def test_no_more_connections_are_taken_than_there_are_descriptors_for(stage):
    """Each has one for its upstream's connection as well: what is under way never lacks any."""
    one = stage(start=False)
    one.start(preexec_fn=few_descriptors)
    eventually(lambda: "max_connections" in one.gateway.log, what="a word about it at the start")
    with contextlib.ExitStack() as stack:
        guests = [stack.enter_context(H1(one.connect())) for _ in range(32)]
        for guest in guests:
            guest.send(guest.head(body=chat("mock-tokens-1000.tps-50", stream=True)))
        assert [guest.read_head()[0] for guest in guests] == [200] * 32
        assert "[-] capacity" in unready(one)
        with pytest.raises((OSError, EOFError)):
            one.ask("/v1/models")
        assert rejected(one, "full") == 1
        assert all(guest.read_chunk() for guest in guests)
    eventually(lambda: not unready(one), what="readiness")


def test_a_call_for_which_there_is_no_descriptor_is_overload_and_not_the_models_fault(stage):
    one = stage(start=False)
    one.start(preexec_fn=few_descriptors)
    with http2.H2(one) as connection:
        asked = chat("mock-tokens-1000.tps-50", stream=True)
        streams = [connection.send(body=asked) for _ in range(100)]
        eventually(lambda: all(stream.status for stream in streams), what="an answer to each")
        refused = [stream for stream in streams if stream.status != 200]
        assert len(refused) > 5 and len(streams) - len(refused) > 30
        for stream in refused:
            assert (stream.status, stream.headers["portcullis-reason"]) == (503, "overloaded")
            assert stream.headers["retry-after"] == "1"
        assert one.metric("portcullis_upstream_healthy", upstream="openai") == 1
        assert one.metric("portcullis_request_refusals_total", reason="overloaded") == len(refused)
        assert fetch(one.admin + "/livez").status == 200, "the operators' side keeps some"
    eventually(lambda: one.ask(body=chat()).status == 200, what="room")


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_client_that_leaves_inside_its_body_leaves_the_room(stage, protocol):
    one = stage(listen='body_memory = "64KiB"')
    large = json.dumps(chat(user="u" * 40_000)).encode()
    for _ in range(3):
        if protocol == "h2":
            with H2(one.connect(alpn=("h2",))) as wire:
                wire.request(fields(body=large), large[:-1], end=False)
        else:
            with H1(one.connect()) as connection:
                connection.send(connection.head(body=large)[:-1])
        eventually(lambda: one.ask(body=large).status == 200, what="room")


def test_a_body_that_nobody_wants_is_held_nowhere(stage):
    """It is taken to its end before its refusal goes out, however long that is."""
    one, body = stage(), b" " * (17 << 20)
    assert one.ask(body=chat()).status == 200
    before = memory(one)
    with H2(one.connect(alpn=("h2",))) as wire:
        for refused, code in (({"portcullis_purpose": None}, "purpose_missing"), ({}, "body_too_large")):
            stream = wire.request(fields(body=body, **refused), body, deaf=True)
            assert (wire.finish(stream).reason, stream.reset) == (code, None)
    assert most_memory(one) - before < 8 << 20


def test_an_organization_has_no_more_connections_than_its_own(stage):
    limited = Stage.ACME + "[limits]\nconnections = 2\n"
    one = stage(orgs={"acme": limited, "globex": Stage.GLOBEX})
    with H1(one.connect()) as first, H2(one.connect(alpn=("h2",))) as second:
        assert first.ask("/v1/models").status == 200
        streams = [second.request(MODELS) for _ in range(10)]
        assert [second.finish(stream).status for stream in streams] == [200] * 10
        refused = one.ask(body=chat())
        assert (refused.status, refused.headers["portcullis-reason"]) == (429, "concurrency_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert one.ask(body=chat(), certificate="globex").status == 200
        assert first.ask("/v1/models").status == 200
    eventually(lambda: one.ask(body=chat()).status == 200, what="a place")


def crowded_out(stage, who, ask):
    """Many of `who` take every place of a small house, and `ask` as long as they may; a partner gets in all the same."""
    with contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(30):
            with contextlib.suppress(OSError, EOFError):  # Some had to make room already.
                crowd.append(stack.enter_context(H1(stage.connect(who))))
                if ask:
                    ask(crowd[-1])
        for _ in range(3):
            assert stage.ask("/v1/models", certificate="globex").status == 200
            for one in crowd if ask else []:
                with contextlib.suppress(OSError, EOFError):
                    ask(one)


def models(connection):
    assert connection.ask("/v1/models").status in (200, 401, 403, 429)


@pytest.mark.parametrize("ask", [None, models], ids=["silent", "asking"])
def test_an_organization_takes_no_places_beyond_its_own_connections(stage, ask):
    limited = Stage.ACME + "[limits]\nconnections = 2\n"
    one = stage(orgs={"acme": limited, "globex": Stage.GLOBEX}, listen="max_connections = 6")
    crowded_out(one, "acme", ask)


@pytest.mark.parametrize("ask", [None, models], ids=["silent", "asking"])
def test_whoever_was_cut_off_takes_no_places(stage, ask):
    one = stage(orgs={"acme": Stage.ACME, "globex": Stage.GLOBEX}, listen="max_connections = 6")
    one.run("revoke", "--org", "acme", check=True)
    crowded_out(one, "acme", ask)


@pytest.mark.parametrize("ask", [None, models], ids=["silent", "asking"])
def test_strangers_whose_missing_certificate_is_explained_take_no_places(stage, ask):
    one = stage(orgs={"acme": Stage.ACME, "globex": Stage.GLOBEX}, listen="max_connections = 6", start=False)
    path = one.folder / "portcullis.toml"
    path.write_text(path.read_text().replace("[client_auth]", '[client_auth]\non_missing = "explain"'))
    one.start()
    with H1(one.connect(None)) as stranger:
        assert stranger.ask("/v1/models").status == 401
    crowded_out(one, None, ask)


def test_the_connections_of_a_parent_are_those_of_all_below_it(stage):
    lead = Stage.ACME.replace('"acme"', '"lead"').replace("Acme", "Lead").replace("partners/acme", "partners/lead")
    below = [org.replace("purposes", 'parent = "lead"\npurposes') for org in (Stage.ACME, Stage.GLOBEX)]
    lead = lead.replace("purposes = ", "purposes = ") + "[limits]\nconnections = 2\n"
    one = stage(orgs={"lead": lead, "acme": below[0], "globex": below[1]})
    with H1(one.connect()) as first, H1(one.connect("globex")) as second:
        assert [each.ask("/v1/models").status for each in (first, second)] == [200, 200]
        refused = one.ask("/v1/models")
        assert (refused.status, refused.headers["portcullis-reason"]) == (429, "concurrency_limit_exceeded")
    eventually(lambda: one.ask("/v1/models").status == 200, what="a place")


def test_one_organization_cannot_hold_all_the_room_for_bodies(stage):
    """Of 64 KiB it has half, or one body; what it takes its time for keeps nobody else out."""
    one = stage(orgs={"acme": Stage.ACME, "globex": Stage.GLOBEX}, listen='body_memory = "64KiB"\nmax_body = "20KiB"')
    large = json.dumps(chat(user="u" * 15_000)).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(H1(one.connect()))
            held.send(held.head(body=large)[:-1])

        def refused():
            answer = one.ask(body=large)
            return (answer.status, answer.headers.get("portcullis-reason")) == (503, "overloaded")

        eventually(refused, what="bodies that are held")
        assert one.ask(body=large, certificate="globex").status == 200
    eventually(lambda: one.ask(body=large).status == 200, what="room")


def test_many_slow_clients_do_not_slow_a_good_one(patient):
    """They share our own interpreter with the good one, which may well be still for the patience of a hasty gateway."""
    stop, opened = threading.Event(), []

    def dawdle():
        while not stop.is_set():
            with contextlib.suppress(OSError), H1(patient.connect("globex")) as connection:
                opened.append(1)
                trickle(connection.socket, connection.head(body=BODY), every=0.05)

    threads = [threading.Thread(target=dawdle, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(opened) >= 20, what="twenty slow clients")
    slowest = 0.0
    with H1(patient.connect()) as good:
        for _ in range(50):
            began = time.monotonic()
            assert good.ask(body=chat()).status == 200
            slowest = max(slowest, time.monotonic() - began)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert slowest < 2
