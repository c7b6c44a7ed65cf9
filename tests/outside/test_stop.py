"""Stopping: nobody is cut who could have finished, everybody knows what comes next, and so does what runs it."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import resource
import signal
import socket
import ssl
import subprocess
import time

import frames
import hpack
import pytest
from hyperframe import frame
from stage import BINARY, H1, KEY, Program, Stage, Streaming, chat, door_closes, eventually, fetch, midday

ENDLESS = "mock-tokens-100000.tps-50"


def drain(delay="0s", deadline="60s"):
    return f'drain = {{ delay = "{delay}", deadline = "{deadline}" }}'


def ends(one, *clients, within=20.0):
    """What the gateway exits with, soon after these clients have left: long before the deadline of a drain."""
    for client in clients:
        client.close()
    return one.gateway.wait(within)


def lines(one, kind):
    return [line for line in one.audit() if line["kind"] == kind]


@pytest.mark.parametrize("ask", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, "command", "post"])
def test_readiness_fails_first_then_the_door_closes_then_it_ends(stage, ask):
    one = stage(listen=drain(delay="3s"))
    # One that ends by itself while all this happens, and one that is there until we let it go.
    stream, lasting = Streaming(one, "mock-tokens-120.tps-30"), Streaming(one, ENDLESS)
    if ask == "command":
        done = one.run("drain")
        assert done.returncode == 0, done.stderr
        assert "2 streams" in done.stdout
    elif ask == "post":
        answer = fetch(one.admin + "/-/drain", data={}, method="POST")
        assert (answer.status, answer.json["streams"]) == (200, 2)
    else:
        one.gateway.signal(ask)
    unready = eventually(lambda: (got := fetch(one.admin + "/readyz")).status == 503 and got, what="unreadiness")
    assert b"serving" in unready.body
    # Load balancers need the time to notice; until then everything is served.
    assert one.ask(body=chat()).status == 200
    assert fetch(one.admin + "/livez").status == 200
    assert one.status()["draining"] is True
    assert one.metric("portcullis_draining") == 1
    door_closes(one)
    assert fetch(one.admin + "/readyz").status == 503
    assert fetch(one.admin + "/livez").status == 200
    assert one.status()["streams"][0]["organization"] == "acme"
    assert stream.wait() == "complete"
    assert stream.text.endswith("data: [DONE]\n\n")
    assert lasting.ended is None
    assert ends(one, stream, lasting) == 0, one.gateway.log
    assert lines(one, "stop") and one.audit()[-1]["kind"] == "stop"
    assert len(lines(one, "drain")) == 1


def test_a_stop_with_nobody_there_waits_for_nothing(stage):
    one = stage(listen=drain(deadline="30s"))
    began = time.monotonic()
    one.gateway.signal(signal.SIGTERM)
    assert ends(one) == 0
    assert time.monotonic() - began < 15, "half of the deadline"


@pytest.mark.parametrize("delay", ["0s", "300ms"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked once", "never asked"])
def test_an_idle_connection_does_not_hold_up_the_stop(stage, delay, asked):
    """It may bring one more request, as no client can be told before it asks, and not for as long as the deadline is."""
    one = stage(listen=drain(delay, deadline="50s"))
    with H1(one.connect()) as idle:
        if asked:
            assert idle.ask(body=chat()).status == 200
        one.gateway.signal(signal.SIGTERM)
        assert ends(one) == 0


def test_who_has_not_even_shaken_hands_does_not_hold_up_the_stop(stage):
    one = stage(listen=drain(deadline="300ms") + '\nhandshake_timeout = "50s"')
    with socket.create_connection(("127.0.0.1", one.port)):
        # Connections are accepted in turn: when the next was served, this one is inside.
        assert one.ask(body=chat()).status == 200
        one.gateway.signal(signal.SIGTERM)
        assert ends(one) == 0


def test_the_second_signal_waits_for_nobody(stage):
    """Neither for who has not shaken hands, nor for who reads nothing, nor for who never closes."""
    one = stage(listen=drain(deadline="50s") + '\nhandshake_timeout = "50s"\nwrite_timeout = "50s"')
    with socket.create_connection(("127.0.0.1", one.port)), H1(one.connect()) as idle, H1(one.connect()) as deaf:
        assert idle.ask(body=chat()).status == 200
        deaf.send(deaf.head(body=chat("mock-tokens-2000000", stream=True)))
        eventually(lambda: one.status()["streams"], what="the stream")
        one.gateway.signal(signal.SIGTERM)
        eventually(lambda: fetch(one.admin + "/readyz").status == 503, what="the drain")
        one.gateway.signal(signal.SIGTERM)
        assert ends(one) == 0


def test_places_outside_that_hang_hold_up_no_stop(stage, tmp_path):
    worm = tmp_path / "worm"
    worm.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        places = [f"http://127.0.0.1:{silent.getsockname()[1]}/", "command:sleep 77", f"dir:{worm}"]
        one = stage(audit=f"checkpoints = {json.dumps(places)}")
        assert one.ask(body=chat()).status == 200
        one.gateway.signal(signal.SIGTERM)
        # Either would take ten seconds, and ten more for another attempt.
        assert ends(one, within=8) == 0
    assert max(int(note.stem) for note in worm.glob("*/*.checkpoint")) == len(one.audit())
    assert one.gateway.log.count("was not delivered in time") == 2


@pytest.mark.parametrize("attempt", range(5))
def test_the_answer_to_a_drain_comes_even_when_there_is_nothing_to_wait_for(stage, attempt):
    one = stage()
    done = one.run("drain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["streams"] == 0
    assert ends(one) == 0


def test_a_standing_connection_is_served_once_more_and_told_to_go(stage):
    one = stage(listen=drain())
    holds = Streaming(one, ENDLESS)
    with H1(one.connect()) as standing:
        assert "close" not in standing.ask(body=chat()).headers.get("connection", "")
        one.gateway.signal(signal.SIGTERM)
        door_closes(one)
        answer = standing.ask(body=chat())
        assert (answer.status, answer.headers.get("connection")) == (200, "close")
        assert standing.socket.recv(1) == b""
    assert holds.ended is None
    assert ends(one, holds) == 0


def test_an_answer_under_way_is_finished_and_closes_its_connection(stage):
    one = stage(listen=drain())
    with H1(one.connect()) as standing:
        standing.send(standing.head(body=chat("mock-slow-head-3000")))
        eventually(lambda: one.status()["streams"], what="the exchange")
        one.gateway.signal(signal.SIGTERM)
        door_closes(one)
        status, headers = standing.read_head()
        assert (status, headers.get("connection")) == (200, "close")
        assert standing.read_body(headers)
        assert standing.socket.recv(1) == b""
    assert ends(one) == 0


class H2:
    """A small HTTP/2 client that goes on after GOAWAY, frame by frame."""

    def __init__(self, one):
        self.socket = one.connect(alpn=("h2",))
        self.buffer, self.frames, self.next, self.ended = b"", [], 1, False
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(frame.SettingsFrame(0))

    def send(self, *frames):
        self.socket.sendall(b"".join(one.serialize() for one in frames))

    def ask(self, body, whole=True):
        stream, self.next = self.next, self.next + 2
        fields = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":scheme", "https"),
            (":authority", "localhost"),
            ("content-type", "application/json"),
            ("portcullis-purpose", "research"),
        ]
        data = json.dumps(body).encode()
        content = frame.DataFrame(stream, data if whole else data[:20], flags=["END_STREAM"] if whole else [])
        self.send(frame.HeadersFrame(stream, hpack.Encoder().encode(fields), flags=["END_HEADERS"]), content)
        return stream

    def read(self, until, within=10.0):
        """Reads frames until `until()` or the connection's end."""
        self.socket.settimeout(within)
        while not until() and not self.ended:
            try:
                got = self.socket.recv(65536)
            except (ConnectionResetError, ssl.SSLEOFError):
                got = b""
            self.ended = not got
            self.buffer += got
            while len(self.buffer) >= 9:
                head, length = frame.Frame.parse_frame_header(memoryview(self.buffer[:9]))
                if len(self.buffer) < 9 + length:
                    break
                head.parse_body(memoryview(self.buffer[9 : 9 + length]))
                self.buffer = self.buffer[9 + length :]
                self.frames.append(head)
                self.answer(head)

    def answer(self, came):
        if isinstance(came, (frame.SettingsFrame, frame.PingFrame)) and "ACK" not in came.flags:
            with contextlib.suppress(OSError):
                content = {"opaque_data": came.opaque_data} if isinstance(came, frame.PingFrame) else {}
                self.send(type(came)(0, flags=["ACK"], **content))

    def of(self, kind, stream=0):
        return [one for one in self.frames if isinstance(one, kind) and one.stream_id == stream]

    def text(self, stream):
        return b"".join(one.data for one in self.of(frame.DataFrame, stream)).decode()

    def is_over(self, stream):
        return any("END_STREAM" in one.flags for one in self.of(frame.DataFrame, stream))


def test_an_http2_connection_is_told_with_goaway_and_its_streams_finish(stage):
    one = stage(listen=drain())
    client = H2(one)
    stream = client.ask(chat("mock-tokens-30.tps-30", stream=True))
    client.read(lambda: client.text(stream))
    one.gateway.signal(signal.SIGTERM)
    client.read(lambda: client.of(frame.GoAwayFrame))
    goaway = client.of(frame.GoAwayFrame)[0]
    assert (goaway.error_code, goaway.last_stream_id >= stream) == (0, True)
    client.read(lambda: client.is_over(stream))
    assert client.text(stream).endswith("data: [DONE]\n\n")
    assert not client.of(frame.RstStreamFrame, stream)
    client.read(lambda: False)
    assert client.ended
    assert ends(one, client.socket) == 0


def test_an_idle_http2_client_that_answers_nothing_holds_up_no_stop(stage):
    one = stage(listen=drain(deadline="60s"))
    client = H2(one)
    stream = client.ask(chat("mock-tokens-3", stream=True))
    client.read(lambda: client.is_over(stream))
    one.gateway.signal(signal.SIGTERM)
    # Neither GOAWAY nor the PING behind it is ever read, let alone answered.
    assert one.gateway.wait(15) == 0


def test_the_last_of_an_http2_answer_is_waited_for(stage):
    """Longer than an idle client is: the gateway has given all of it out, and the client has opened no window for it."""
    one, body = stage(listen=drain(deadline="60s")), json.dumps(chat("mock-tokens-300")).encode()
    with frames.H2(one.connect(alpn=("h2",)), settings={frame.SettingsFrame.INITIAL_WINDOW_SIZE: 100}) as wire:
        stream = wire.request(frames.fields(body=body), body)
        assert wire.until(lambda: stream.data)
        one.gateway.signal(signal.SIGTERM)
        assert wire.until(lambda: wire.goaway is not None)
        time.sleep(6)
        wire.send(frame.WindowUpdateFrame(1, 1 << 20))
        assert wire.finish(stream).ended
        assert len(stream.data) == int(stream.headers["content-length"]) > 100
        wire.end()
    assert ends(one) == 0


def test_what_remains_at_the_deadline_is_cut_and_told_why(stage):
    one = stage(listen=drain(deadline="600ms"))
    stream, clients = Streaming(one, ENDLESS), [H2(one) for _ in range(6)]
    others = [(client, client.ask(chat(ENDLESS, stream=True))) for client in clients for _ in range(2)]
    for client, other in others:
        client.read(lambda client=client, other=other: client.text(other))
    began = time.monotonic()
    one.gateway.signal(signal.SIGTERM)
    assert stream.wait() != "complete"
    assert stream.ended_at - began >= 0.55
    for client, other in others:
        client.read(lambda client=client, other=other: client.of(frame.RstStreamFrame, other))
        assert client.of(frame.RstStreamFrame, other)
    for text in [stream.text] + [client.text(other) for client, other in others]:
        assert '"draining"' in text and "[DONE]" not in text
        assert text.endswith("\n\n")
    assert ends(one) == 0
    assert time.monotonic() - began < 10
    assert len([line for line in lines(one, "closed") if "drained" in str(line)]) == 13


def test_who_is_still_sending_at_the_deadline_is_told_too(stage):
    one = stage(listen=drain(deadline="600ms"))
    body = chat("mock-1")
    plain, framed = H1(one.connect()), H2(one)
    plain.send(plain.head(body=body, expect="100-continue")[: -len(json.dumps(body))])
    assert plain.read_head()[0] == 100
    plain.send(json.dumps(body).encode()[:20])
    unended = framed.ask(body, whole=False)
    # What came behind it on the same connection was read after it.
    framed.ask(chat("mock-1"))
    framed.read(lambda: framed.is_over(unended + 2))
    one.gateway.signal(signal.SIGTERM)
    status, headers = plain.read_head()
    assert (status, headers["portcullis-reason"], headers["connection"]) == (503, "draining", "close")
    assert b"stopping" in plain.read_body(headers)
    framed.read(lambda: framed.is_over(unended))
    assert framed.is_over(unended) and '"draining"' in framed.text(unended)
    assert ends(one) == 0
    told = [(line["reason"], line["status"], line["ending"]) for line in lines(one, "refused")]
    assert told == [("draining", 503, "refused")] * 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGQUIT, signal.SIGQUIT),
    ],
)
def test_the_second_signal_stops_at_once_and_cleanly(stage, first, second):
    one = stage(listen=drain(delay="20s", deadline="30s"))
    stream = Streaming(one, ENDLESS)
    one.gateway.signal(first)
    eventually(lambda: fetch(one.admin + "/readyz").status == 503, what="the drain")
    began = time.monotonic()
    one.gateway.signal(second)
    assert ends(one) == 0
    assert time.monotonic() - began < 15, "neither the delay nor the deadline"
    assert stream.wait() != "complete"
    assert '"draining"' in stream.text
    assert one.audit()[-1]["kind"] == "stop"


def test_the_signal_of_log_rotation_does_nothing_and_says_so(stage):
    one = stage()
    stream = Streaming(one, "mock-tokens-20.tps-20")
    one.gateway.signal(signal.SIGUSR1)
    eventually(lambda: "SIGUSR1 does nothing" in one.gateway.log, what="the line in the log")
    assert stream.wait() == "complete"
    assert one.ask(body=chat()).status == 200


def test_operators_can_still_look_and_revoke_while_it_drains(stage):
    one = stage(listen=drain())
    # The other is there still when the command is answered.
    stream, other = Streaming(one, ENDLESS), Streaming(one, "mock-tokens-150.tps-30", certificate="globex")
    one.gateway.signal(signal.SIGTERM)
    door_closes(one)
    done = one.run("revoke", "--org", "acme")
    assert done.returncode == 0, done.stderr
    assert stream.wait() != "complete" and "organization_suspended" in stream.text
    assert other.wait() == "complete"
    assert ends(one, other) == 0


def test_a_reload_signal_while_it_drains_harms_nothing(stage):
    one = stage(listen=drain())
    stream = Streaming(one, "mock-tokens-30.tps-30")
    one.gateway.signal(signal.SIGTERM)
    door_closes(one)
    one.gateway.signal(signal.SIGHUP)
    assert stream.wait() == "complete"
    assert ends(one, stream) == 0


def test_asking_twice_to_drain_is_not_a_second_signal(stage):
    one = stage(listen=drain())
    # It is there still when the second is asked.
    stream = Streaming(one, "mock-tokens-90.tps-30")
    for _ in range(2):
        assert fetch(one.admin + "/-/drain", data={}, method="POST").status == 200
    assert stream.wait() == "complete"
    assert ends(one, stream) == 0
    assert len(lines(one, "drain")) == 1
    assert lines(one, "drain")[0]["by"].startswith("127.0.0.1")


def test_the_first_signal_after_a_drain_by_hand_cuts_nobody(stage):
    """As in a container whose stop hook drains, and which is then told to stop: only a second signal means at once."""
    one = stage(listen=drain())
    # It is there still when the signal comes.
    stream = Streaming(one, "mock-tokens-90.tps-30")
    assert one.run("drain").returncode == 0
    one.gateway.signal(signal.SIGTERM)
    assert stream.wait() == "complete"
    assert ends(one, stream) == 0


def test_after_a_clean_stop_the_log_verifies_and_nothing_is_refilled(stage):
    limited, day = Stage.ACME + "[limits]\nrequests_per_day = 5\n", f'timezone = "{midday()}"'
    one = stage(orgs={"acme": limited}, listen=drain(deadline="300ms"), quota=day)
    Streaming(one, ENDLESS)
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    verified = one.run("audit", "verify", "audit")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    accepted = {line["request_id"] for line in lines(one, "accepted")}
    assert accepted == {line["request_id"] for line in lines(one, "closed")}
    one.start()
    assert one.limit("acme", "requests_per_day")["used"] == 2


def run_once(one, *arguments):
    return subprocess.run(
        [BINARY, "run", *arguments],
        cwd=one.folder,
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"UPSTREAM_KEY": KEY},
    )


def test_a_start_that_cannot_be_says_why_with_its_exit_code(stage):
    one = stage(start=False)
    missing = run_once(one, "-c", "nowhere.toml")
    assert missing.returncode == 2 and "nowhere.toml" in missing.stderr
    one.write_config(listen="colour = 1")
    invalid = run_once(one, "-c", "portcullis.toml")
    assert invalid.returncode == 1 and "portcullis.toml:" in invalid.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one.write_config(listen="")
        path = one.folder / "portcullis.toml"
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path.write_text(path.read_text().replace('address = "127.0.0.1:0"', f'address = "{address}"', 1))
        busy = run_once(one, "-c", "portcullis.toml")
    assert busy.returncode == 2 and address in busy.stderr
    assert "panicked" not in missing.stderr + invalid.stderr + busy.stderr


def test_a_second_gateway_on_the_same_state_is_refused_and_disturbs_nobody(stage):
    one = stage()
    second = run_once(one, "-c", "portcullis.toml")
    assert second.returncode == 2 and ("state" in second.stderr or "audit" in second.stderr), second
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit").returncode == 0


class Manager:
    """What a service manager listens on."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.said = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def hear_of(self, name, within=10.0):
        """The lines of the first message that has one of this name, heard already or still to come."""
        deadline = time.monotonic() + within
        at = 0
        while True:
            for message in self.said[at:]:
                if any(line.startswith(name + "=") for line in message.splitlines()):
                    return message.splitlines()
            at = len(self.said)
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            self.said.append(self.socket.recv(4096).decode())

    def hear(self, line, within=10.0):
        """Waits for a message with this line; gives its lines as a dictionary."""
        deadline = time.monotonic() + within
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no {line} among {self.said}"
            self.socket.settimeout(left)
            try:
                message = self.socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.said.append(message)
            if line in message.splitlines():
                return dict(part.split("=", 1) for part in message.splitlines())


@pytest.fixture
def manager(tmp_path):
    with Manager(tmp_path / "notify") as listening:
        yield listening


def launch(one, **environment):
    """Starts without waiting for readiness."""
    one.gateway = Program(one.folder, "gateway", "run", "-c", "portcullis.toml", env=environment)


def addresses(one):
    one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
    one.admin = "http://" + one.gateway.printed(r"admin on (?:http://)?(127\.0\.0\.1:\d+)")


def test_the_service_manager_hears_of_readiness_and_of_the_stop(stage, manager):
    one = stage(start=False, listen=drain())
    launch(one, NOTIFY_SOCKET=manager.path)
    manager.hear("READY=1")
    # Ready means ready: no waiting from here on.
    addresses(one)
    assert fetch(one.admin + "/readyz").status == 200
    stream = Streaming(one, "mock-tokens-20.tps-30")
    one.gateway.signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert stream.wait() == "complete"
    assert ends(one, stream) == 0


@pytest.mark.parametrize("attempt", range(3))
def test_a_signal_right_after_readiness_is_heard(stage, manager, attempt):
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path)
    manager.hear("READY=1")
    one.gateway.signal(signal.SIGHUP)
    addresses(one)
    eventually(lambda: one.metric("portcullis_config_reloads_total", trigger="signal") == 1, what="the reload")
    assert one.gateway.end() == 0


def test_a_gateway_that_carries_nothing_ends_after_its_successor_was_announced(stage, manager):
    """A service manager that has heard of no other main process takes the end of this one for the end of the service."""
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path)
    manager.hear("READY=1")
    addresses(one)
    one.gateway.signal(signal.SIGUSR2)
    manager.hear("READY=1")
    successor = next(part for part in (line.split("=", 1) for line in manager.hear_of("MAINPID")) if part[0] == "MAINPID")[1]
    assert one.gateway.process.wait(10) == 0
    assert int(successor) != one.gateway.process.pid
    os.kill(int(successor), signal.SIGTERM)
    eventually(lambda: not pathlib.Path(f"/proc/{successor}").exists(), what="the successor's end")


def test_a_watchdog_is_fed(stage, manager):
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="6000000")
    manager.hear("READY=1")
    for _ in range(3):
        manager.hear("WATCHDOG=1", within=6.0)
    assert one.gateway.end() == 0


def test_a_service_manager_that_reads_nothing_stops_nothing(stage, manager):
    def has_room():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                # What one sender may have under way is limited, too.
                return [sender.sendto(b"STATUS=unread", manager.path) for _ in range(16)]
            except BlockingIOError:
                return False

    while has_room():
        pass
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="20000")
    addresses(one)
    assert one.ask(body=chat()).status == 200
    for _ in range(20):
        assert fetch(one.admin + "/livez").status == 200
    assert fetch(one.admin + "/-/revoke", data={"organization": "acme"}, method="POST").status == 200
    assert one.gateway.end() == 0


def test_a_watchdog_for_another_process_is_not_fed(stage, manager):
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="200000", WATCHDOG_PID="1")
    manager.hear("READY=1")
    one.gateway.end()
    assert not any("WATCHDOG=1" in message for message in manager.said)


def test_a_reload_is_announced_as_notify_reload_wants_it_or_not_at_all(stage, manager):
    """`Type=notify-reload` needs RELOADING=1 with the clock in one message, and READY=1 after it."""
    one = stage(start=False)
    launch(one, NOTIFY_SOCKET=manager.path)
    manager.hear("READY=1")
    addresses(one)
    eventually(lambda: fetch(one.admin + "/readyz").status == 200, what="readiness")
    one.gateway.signal(signal.SIGHUP)
    eventually(lambda: one.metric("portcullis_config_reloads_total", trigger="signal") == 1, what="the reload")
    one.gateway.end()
    manager.socket.setblocking(False)
    while True:
        try:
            manager.said.append(manager.socket.recv(4096).decode())
        except BlockingIOError:
            break
    reloading = [at for at, message in enumerate(manager.said) if "RELOADING=1" in message]
    for at in reloading:
        assert "MONOTONIC_USEC=" in manager.said[at]
        assert any("READY=1" in message.splitlines() for message in manager.said[at + 1 :])


class Activated(Program):
    """The gateway as systemd starts it for a socket unit: the listener is descriptor 3."""

    def __init__(self, one, listener, pid="$$"):
        self.log_file = one.folder / "gateway.log"
        script = f'exec 3<&{listener.fileno()}; LISTEN_PID={pid} LISTEN_FDS=1 exec "$@"'
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", BINARY, "run", "-c", "portcullis.toml"],
                cwd=one.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env=os.environ | {"UPSTREAM_KEY": KEY},
            )


def test_a_socket_that_is_handed_over_is_the_door(stage):
    one = stage(start=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        one.gateway = Activated(one, listener)
        addresses(one)
        assert one.port == port
        assert one.ask(body=chat()).status == 200
        assert one.gateway.end() == 0
        # Whoever comes while it restarts waits in the queue, which is the point of handing it over.
        waiting = socket.create_connection(("127.0.0.1", port), timeout=10)
        one.gateway = Activated(one, listener)
        addresses(one)
        with waiting, one.tls().wrap_socket(waiting, server_hostname="localhost") as secured:
            assert H1(secured).ask(body=chat()).status == 200


def test_a_socket_for_another_process_is_left_alone(stage):
    one = stage(start=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one.gateway = Activated(one, listener, pid="1")
        addresses(one)
        assert one.port != listener.getsockname()[1]


def test_something_else_than_a_listener_is_not_taken_for_one(stage):
    one = stage(start=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        one.gateway = Activated(one, datagrams)
        assert one.gateway.wait(10) == 2
    assert "LISTEN_FDS" in one.gateway.log or "socket" in one.gateway.log, one.gateway.log


def test_a_stale_admin_socket_does_not_hinder_the_next_start(stage):
    one = stage(start=False)
    path = one.folder / "portcullis.toml"
    path.write_text(
        path.read_text().replace('[admin]\naddress = "127.0.0.1:0"', '[admin]\naddress = "unix:admin.sock"')
    )
    one.admin = f"unix:{one.folder}/admin.sock"
    for end in (Program.kill, Program.end):
        launch(one)
        one.gateway.printed(r"(admin on unix:)")
        eventually(lambda: one.run("status", "--json").returncode == 0, what="the socket")
        end(one.gateway)


def test_operators_who_act_when_the_last_stream_of_a_drain_is_cut_are_answered(stage):
    many = {f"org-{n}": f'id = "org-{n}"\nname = "{n}"\npurposes = []\nmodels = []\n' for n in range(1000)}
    one = stage(listen=drain(), orgs={"acme": Stage.ACME} | many)
    stream = Streaming(one, ENDLESS)
    address = one.admin.removeprefix("http://")
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as slow:
        slow.request("GET", "/livez")
        assert slow.getresponse().read() == b"ok\n"
        assert one.run("drain").returncode == 0
        # It reads a thousand files, and the revocation leaves nobody to wait for meanwhile.
        slow.request("POST", "/-/reload", b"{}")
        told = fetch(one.admin + "/-/revoke", data={"organization": "acme"}, method="POST")
        assert (told.status, told.json["streams"]) == (200, 1)
        assert json.load(slow.getresponse())["result"] == "unchanged"
    assert ends(one, stream) == 0
    assert [line["target"] for line in lines(one, "revoke")] == ["acme"]


def test_an_output_that_nobody_reads_holds_up_no_start_and_no_stop(stage, manager):
    one = stage(start=False)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    environment = os.environ | {"UPSTREAM_KEY": KEY, "NOTIFY_SOCKET": manager.path}
    with (one.folder / "stderr.log").open("w") as log:
        run = [BINARY, "run", "-c", "portcullis.toml"]
        program = subprocess.Popen(
            run, cwd=one.folder, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=log
        )
    try:
        manager.hear("READY=1")
        program.send_signal(signal.SIGTERM)
        assert program.wait(20) == 0
    finally:
        program.kill()
        program.wait()
        os.close(reader)
        os.close(writer)


def test_too_few_descriptors_for_one_request_are_no_start_and_as_many_as_it_says_are_enough(stage):
    one = stage(start=False)

    def limited(most):
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    refused = Program(one.folder, "refused", "run", "-c", "portcullis.toml", preexec_fn=limited(64))
    assert refused.wait() == 2
    needed = int(re.search(r"64 open files are too few .* at least (\d+) are needed", refused.log).group(1))
    # What is open for a moment at a start varies by one or two.
    one.start(preexec_fn=limited(needed + 4))
    assert one.ask(body=chat()).status == 200
