"""What goes to an upstream, what may come back from it, and what its bad habits do to everybody else: nothing.

The upstream here is a raw socket with a script, because no HTTP library writes what has to be survived. It keeps every
byte that it was sent, and one connection's number, so that a request that was replayed or an answer that went astray
shows.
"""

import concurrent.futures
import contextlib
import gzip
import hashlib
import json
import pathlib
import random
import re
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import H1, KEY, Authority, Reply, Stage, chat, eventually, fetch, memory, midday

JSON = b"content-type: application/json\r\n"
SSE = b"content-type: text/event-stream\r\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ANSWER = json.dumps({"id": "whole", "choices": [{"message": {"content": "hello"}}], "usage": USAGE}).encode()
RAW = ["raw", "hasty", "refused", "deaf", "patient", "mute", "tls", "mutual", "anonymous", "foreign", "misnamed", "downgraded"]


def whole(body=ANSWER, status=b"200 OK", fields=JSON):
    """An answer with a length."""
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(content=None, usage=None):
    """An event of a chat stream: a word, the usage, or the end."""
    if content is None and usage is None:
        return b"data: [DONE]\n\n"
    choices = [] if usage else [{"index": 0, "delta": {"content": content}, "finish_reason": None}]
    more = {"usage": usage} if usage else {}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices} | more).encode() + b"\n\n"


ASKED = {"stream_options": {"include_usage": True}}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\n" + SSE + b"transfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
STREAM = STREAM_HEAD + b"".join(map(chunk, [event("one"), event("two"), event(usage=USAGE), event()])) + LAST_CHUNK


class Call:
    """A request as the upstream got it."""

    def __init__(self, connection, socket, head, body):
        self.connection, self.socket, self.head, self.body = connection, socket, head, body
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.fields = [tuple(line.split(": ", 1)) for line in lines[1:]]
        self.left_at = None

    def field(self, name):
        return [value for key, value in self.fields if key == name]

    def send(self, *pieces):
        for piece in pieces:
            self.socket.sendall(piece)

    def rest(self):
        """Reads the body to its end."""
        missing = int(self.field("content-length")[0]) - len(self.body)
        while missing > 0:
            # Not a byte more: what follows may be the next request.
            got = self.socket.recv(min(65536, missing))
            if not got:
                raise EOFError
            self.body, missing = self.body + got, missing - len(got)

    def left(self, within=10.0):
        """Waits until the other side is gone, and says when that was."""
        self.socket.settimeout(within)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.socket.recv(65536):
                pass
        self.left_at = time.monotonic()
        return self.left_at


class Upstream:
    """A server whose `script` is called with each request: it answers by itself; a true result keeps the connection."""

    def __init__(self, tls=None):
        self.tls, self.calls, self.received, self.failed, self.busy = tls, [], [], [], set()
        self.script = answer(whole())
        self.whole_bodies = True
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                accepted = self.listener.accept()[0]
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.received.append(bytearray())
                threading.Thread(target=self._serve, args=(accepted, len(self.received) - 1), daemon=True).start()

    def _serve(self, accepted, number):
        try:
            if self.tls:
                accepted = self.tls.wrap_socket(accepted, server_side=True)
            with accepted:
                while self._exchange(accepted, number):
                    pass
        except (OSError, EOFError) as error:
            self.failed.append(error)
        self.busy.discard(number)

    def _exchange(self, accepted, number):
        self.busy.discard(number)
        book, buffer = self.received[number], b""
        while b"\r\n\r\n" not in buffer:
            got = accepted.recv(65536)
            if not got:
                raise EOFError
            self.busy.add(number)
            book.extend(got)
            buffer += got
        head, body = buffer.split(b"\r\n\r\n", 1)
        call = Call(number, accepted, head, body)
        if self.whole_bodies:
            call.rest()
            book.extend(call.body[len(body):])
        self.calls.append(call)
        return self.script(call)

    def close(self):
        self.listener.close()


def answer(*pieces, keep=True):
    """A script that writes `pieces`."""

    def script(call):
        call.send(*pieces)
        return keep

    return script


class H2:
    """An HTTP/2 client that shows each frame, and takes nothing unless asked."""

    def __init__(self, socket):
        self.socket, self.streams, self.unread, self.gone = socket, {}, set(), False
        # As given: what is sent may be wrong on purpose.
        config = h2.config.H2Configuration(
            header_encoding="utf-8", normalize_outbound_headers=False, validate_outbound_headers=False
        )
        self.state = h2.connection.H2Connection(config)
        self.state.initiate_connection()
        self._flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def _flush(self):
        self.socket.sendall(self.state.data_to_send())

    def start(self, path="/v1/chat/completions", body=None, **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        fields = {":method": "GET" if body is None else "POST", ":scheme": "https", ":authority": "localhost", ":path": path}
        if body is not None:
            fields |= {"portcullis-purpose": "research", "content-type": "application/json"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        stream = self.state.get_next_available_stream_id()
        fields = [(name, value) for name, value in fields.items() if value is not None]
        self.state.send_headers(stream, fields, end_stream=body is None)
        self.streams[stream] = {"status": None, "headers": {}, "pieces": [], "ended": None}
        self._flush()
        while body is not None:
            room = min(self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size)
            if room == 0 and body:
                if self.streams[stream]["ended"]:
                    break
                self.more()
                continue
            piece, body = body[:room], body[room:]
            self.state.send_data(stream, piece, end_stream=not body)
            self._flush()
            body = body or None
        return stream

    def more(self):
        """Reads once, and returns the streams that moved."""
        got = self.socket.recv(65536)
        moved = set()
        if not got:
            self.gone = True
            for one in self.streams.values():
                one["ended"] = one["ended"] or "gone"
            return set(self.streams)
        for happened in self.state.receive_data(got):
            one = self.streams.get(getattr(happened, "stream_id", None))
            if one is None:
                continue
            moved.add(happened.stream_id)
            if isinstance(happened, h2.events.ResponseReceived):
                headers = dict(happened.headers)
                one["status"], one["headers"] = int(headers.pop(":status")), headers
            elif isinstance(happened, h2.events.DataReceived):
                one["pieces"].append(happened.data)
                if happened.stream_id not in self.unread:
                    self.state.acknowledge_received_data(happened.flow_controlled_length, happened.stream_id)
            elif isinstance(happened, h2.events.StreamEnded):
                one["ended"] = "complete"
            elif isinstance(happened, h2.events.StreamReset):
                one["ended"] = "cut"
        self._flush()
        return moved

    def reset(self, stream):
        self.state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def read(self, stream):
        """The whole answer."""
        one = self.streams[stream]
        while not one["ended"]:
            self.more()
        return Reply(one["status"], one["headers"], b"".join(one["pieces"]))

    def ask(self, path="/v1/chat/completions", body=None, **headers):
        return self.read(self.start(path, body, **headers))


class Wire:
    """One request on a connection of its own, over either protocol, whose body is read piece by piece."""

    def __init__(self, stage, protocol, body, path="/v1/chat/completions", **headers):
        self.protocol = protocol
        if protocol == "h1":
            self.connection = H1(stage.connect())
            self.connection.send(self.connection.head(path, body, **headers))
        else:
            self.connection = H2(stage.connect(alpn=("h2",)))
            self.stream = self.connection.start(path, body, **headers)
        self.socket = self.connection.socket

    def head(self):
        if self.protocol == "h1":
            self.status, self.headers = self.connection.read_head()
            return self.status
        one = self.connection.streams[self.stream]
        while one["status"] is None and not one["ended"]:
            self.connection.more()
        self.status, self.headers = one["status"], one["headers"]
        return self.status

    def piece(self):
        """The next piece; b"" is a clean end, None a cut."""
        if self.protocol == "h1":
            try:
                return self.connection.read_chunk()
            except ConnectionError:
                return None
        one = self.connection.streams[self.stream]
        while not one["pieces"]:
            if one["ended"]:
                return b"" if one["ended"] == "complete" else None
            self.connection.more()
        return one["pieces"].pop(0)

    def rest(self):
        """What comes until the end, and whether that was clean."""
        pieces = []
        while piece := self.piece():
            pieces.append(piece)
        return b"".join(pieces), piece == b""


class Play:
    """A gateway before raw upstreams, for all tests of this file."""

    ACME = """\
id = "acme"
name = "Acme CERT"
purposes = ["research"]
models = [{models}]
[[identity]]
authority = "partners"
uri = "spiffe://partners/acme"
[limits]
tokens_per_day = 1_000_000_000
requests_per_day = 1_000_000_000
"""
    UPSTREAM = """
[[upstream]]
name = "{name}"
url = "{url}"
dialect = "{dialect}"
api_key = "env:UPSTREAM_KEY"
models = ["{name}-*"]
{more}
"""
    HASTY = 'connect_timeout = "300ms"\nhead_timeout = "1s"\nidle_timeout = "1s"'

    def __init__(self, folder):
        pathlib.Path(folder).mkdir(exist_ok=True)
        authority = Authority(folder, "upstreams")
        authority.leaf("upstream", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
        authority.leaf("operator", dns=["gateway"])
        self.raw, self.secure, self.mutual, self.old = (
            Upstream(), Upstream(self.tls(folder)), Upstream(self.tls(folder, mutual=True)),
            Upstream(self.tls(folder, newest=ssl.TLSVersion.TLSv1_2)),
        )  # fmt: skip
        self.refusing, self.deaf, self.mute = socket.socket(), socket.socket(), socket.create_server(("127.0.0.1", 0))
        self.refusing.bind(("127.0.0.1", 0))
        self.deaf.bind(("127.0.0.1", 0))
        # A backlog that is full lets further connections wait for ever.
        self.deaf.listen(0)
        self.fillers = [socket.socket() for _ in range(4)]
        for filler in self.fillers:
            filler.setblocking(False)
            filler.connect_ex(self.deaf.getsockname())
        port = {"refused": self.refusing.getsockname()[1], "deaf": self.deaf.getsockname()[1]}
        ours = 'ca_file = "upstreams.pem"\n'
        identity = 'client_certificate = "operator.pem"\nclient_key = "file:operator.key"\n'
        tables = [
            self.table("raw", f"http://127.0.0.1:{self.raw.port}/base"),
            self.table("hasty", f"http://127.0.0.1:{self.raw.port}", self.HASTY),
            self.table("refused", f"http://127.0.0.1:{port['refused']}"),
            self.table("deaf", f"http://127.0.0.1:{port['deaf']}", self.HASTY),
            self.table("patient", f"http://127.0.0.1:{port['deaf']}", 'connect_timeout = "60s"'),
            self.table("mute", f"https://localhost:{self.mute.getsockname()[1]}", ours + self.HASTY),
            self.table("tls", f"https://localhost:{self.secure.port}", ours),
            self.table("mutual", f"https://localhost:{self.mutual.port}", ours + identity),
            self.table("anonymous", f"https://localhost:{self.mutual.port}", ours),
            self.table("foreign", f"https://localhost:{self.secure.port}", 'ca_file = "servers.pem"'),
            self.table("misnamed", f"https://127.0.0.1:{self.secure.port}", ours),
            self.table("downgraded", f"https://localhost:{self.old.port}", ours),
            self.table("vendor", f"http://127.0.0.1:{self.raw.port}", dialect="anthropic"),
        ]
        models = ", ".join(f'"{name}-*"' for name in [*RAW, "vendor"])
        # No day ends between two looks at what is used.
        self.stage = Stage(folder, start=False, orgs={"acme": self.ACME.format(models=models)}, more="".join(tables),
                           quota=f'timezone = "{midday()}"')  # fmt: skip
        # A proxy in the environment is no business of a gateway's: through this one nothing would be reached.
        proxy = f"http://127.0.0.1:{port['refused']}"
        names = ["http_proxy", "https_proxy", "all_proxy"]
        self.stage.start(env=dict.fromkeys([*names, *map(str.upper, names)], proxy))

    def table(self, name, url, more="", dialect="openai"):
        return self.UPSTREAM.format(name=name, url=url, more=more, dialect=dialect)

    @staticmethod
    def tls(folder, mutual=False, newest=ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = newest
        context.load_cert_chain(folder / "upstream.pem", folder / "upstream.key")
        if mutual:
            context.load_verify_locations(folder / "upstreams.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def used(self):
        """Tokens and requests charged, once nothing is reserved any more."""

        def settled():
            tokens, requests = (self.stage.limit("acme", f"{unit}_per_day") for unit in ("tokens", "requests"))
            return tokens["reserved"] == 0 and (tokens["used"], requests["used"])

        return eventually(settled, what="the settlement")

    def close(self):
        self.stage.close()
        for one in [self.raw, self.secure, self.mutual, self.old, self.refusing, self.deaf, self.mute, *self.fillers]:
            one.close()
        panics = [line for line in self.stage.gateway.log.splitlines() if "panicked at" in line]
        assert not panics, panics


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    one = Play(tmp_path_factory.mktemp("upstream"))
    yield one
    one.close()


@pytest.fixture
def play(scene):
    """The scene with fresh books; afterwards nothing may be under way."""
    upstreams = (scene.raw, scene.secure, scene.mutual)
    for upstream in upstreams:
        upstream.calls, upstream.script, upstream.whole_bodies = [], answer(whole()), True
    yield scene
    eventually(lambda: scene.stage.metric("portcullis_streams_active") == 0, what="the end of every stream")
    eventually(lambda: scene.stage.metric("portcullis_upstream_connections", state="active") == 0, what="their connections' end")
    # A connection that its script ends behind a whole answer may wait in the gateway's pool: no request finds it ending.
    eventually(lambda: not any(upstream.busy for upstream in upstreams), what="the end of every script")


# What goes out.

ALLOWED = {"host", "content-type", "content-length", "accept-encoding", "accept", "anthropic-version", "anthropic-beta",
           "openai-beta", "idempotency-key", "user-agent", "traceparent", "tracestate"}  # fmt: skip
CROSSING = {"accept": "text/event-stream", "anthropic-version": "2023-06-01", "anthropic-beta": "a,b",
            "openai-beta": "assistants=v2", "idempotency-key": "once", "user-agent": "tester/1",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"}  # fmt: skip
STAYING = {"authorization": "Bearer client-secret", "x-api-key": "client-secret", "cookie": "a=client-secret",
           "openai-organization": "org-x", "openai-project": "proj-x", "forwarded": "for=1.2.3.4",
           "x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil", "x-real-ip": "1.2.3.4", "via": "1.1 x",
           "x-request-id": "mine", "x-client-request-id": "mine", "x-stainless-lang": "python", "x-purpose": None,
           "accept-language": "en", "accept-encoding": "gzip, br", "te": "trailers", "origin": "https://x",
           "portcullis-case": "INC-1", "api-key": "client-secret", "cf-connecting-ip": "1.2.3.4", "range": "bytes=0-1",
           "x-forwarded-client-cert": "x", "if-none-match": "x", "proxy-authorization": "x", "priority": "u=1"}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_request_is_built_anew_from_what_may_cross(play, protocol, dialect):
    path, model = {"openai": ("/v1/chat/completions", "raw-1"), "anthropic": ("/v1/messages", "vendor-1")}[dialect]
    body = json.dumps(chat(model, max_tokens=5), indent=1).encode()
    query = "?beta=true" if dialect == "anthropic" else ""
    headers = {name.replace("-", "_"): value for name, value in (CROSSING | STAYING).items()}
    wire = Wire(play.stage, protocol, body, path + query, **headers)
    assert wire.head() == 200
    wire.connection.close()
    (call,) = play.raw.calls
    base = "/base" if dialect == "openai" else ""
    assert call.line == f"POST {base}{path}{query} HTTP/1.1"
    credential = {"openai": ("authorization", f"Bearer {KEY}"), "anthropic": ("x-api-key", KEY)}[dialect]
    ours = {"host": f"127.0.0.1:{play.raw.port}", "content-type": "application/json", "accept-encoding": "identity",
            "content-length": str(len(body))}  # fmt: skip
    assert sorted(call.fields) == sorted((CROSSING | ours | dict([credential])).items())
    assert call.body == body
    assert b"client-secret" not in play.raw.received[call.connection]


def test_a_bare_request_gets_only_ours(play):
    play.stage.ask(body=chat("raw-1"))
    (call,) = play.raw.calls
    assert {name for name, _ in call.fields} == {
        "host", "content-type", "accept-encoding", "content-length", "authorization"}  # fmt: skip


def test_a_chunked_body_is_framed_anew_without_extensions_and_trailers(play):
    body = json.dumps(chat("raw-1")).encode()
    with H1(play.stage.connect()) as client:
        head = client.head(body=b"", content_length=None, transfer_encoding="chunked", trailer="x-late")
        pieces = [b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:9], body[9:])]
        client.send(head + b"".join(pieces) + b"0;last\r\nx-late: authorization\r\n\r\n")
        assert client.read_head()[0] == 200
    (call,) = play.raw.calls
    assert (call.body, call.field("content-length")) == (body, [str(len(body))])
    assert {name for name, _ in call.fields} <= ALLOWED | {"authorization"}
    assert bytes(play.raw.received[call.connection]).endswith(body)


ODD = b' {\t"model" : "raw-1",\r\n"messages":[{"role":"user","content":"\\u00e9\xc3\xa9 \\/ \\"}{"}], "x": [1.0e2, -0], "stop":null}\n '


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_body_without_a_splice_goes_out_byte_for_byte(play, size):
    body = ODD.replace(b'"x"', b'"pad":"' + b"p" * size + b'","x"')
    assert play.stage.ask(body=body).status == 200
    assert play.raw.calls[0].body == body


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b'{"stream":true,', b'{"stream_options":{"include_usage":true},"stream":true,'),
        (b'{"stream":true,"stream_options":{},', b'{"stream":true,"stream_options":{"include_usage":true},'),
        (b'{"stream":true,"stream_options":{ "x":1},', b'{"stream":true,"stream_options":{"include_usage":true, "x":1},'),
        (b'{"stream":true,"stream_options":{"include_usage":true},', b'{"stream":true,"stream_options":{"include_usage":true},'),
        (b'{"stream":true,"stream_options":{"include_usage": false},', b'{"stream":true,"stream_options":{"include_usage": true},'),
        (b'{"stream":false,', b'{"stream":false,'),
    ],
)  # fmt: skip
def test_only_the_wish_for_usage_is_spliced_in(play, given, sent):
    play.raw.script = answer(STREAM)
    assert play.stage.ask(body=given + ODD.lstrip(b" {\t")).status == 200
    assert play.raw.calls[0].body == sent + ODD.lstrip(b" {\t")


# Where it goes.


def test_an_upstream_with_tls_is_reached_by_its_own_authority(play):
    assert play.stage.ask(body=chat("tls-1")).status == 200
    assert play.secure.calls[0].field("host") == [f"localhost:{play.secure.port}"]


def test_an_upstream_that_demands_a_certificate_gets_the_operators(play):
    shown = []

    def script(call):
        shown.append(call.socket.getpeercert()["subject"])
        return answer(whole())(call)

    play.mutual.script = script
    assert play.stage.ask(body=chat("mutual-1")).status == 200
    assert shown == [((("commonName", "operator"),),)]
    # When that ends, is told where everything is that ends.
    told = [entry for entry in play.stage.status()["certificates"] if entry["kind"] == "upstream"]
    assert [entry["name"] for entry in told] == ["mutual"] and told[0]["ends"] > play.stage.status()["time"]


@pytest.mark.parametrize("model", ["refused", "deaf", "mute", "anonymous", "foreign", "misnamed", "downgraded"])
def test_no_connection_is_upstream_unreachable_and_costs_nothing(play, model):
    """Nobody listens, nobody accepts, no TLS comes, or the TLS is not what was configured."""
    before, calls = play.used(), len(play.secure.calls) + len(play.mutual.calls)
    with H1(play.stage.connect()) as client:
        began = time.monotonic()
        refused = client.ask(body=chat(f"{model}-1"))
        expected = (502, "upstream_unreachable")
        # Under TLS 1.3 a client that lacks a certificate learns it only after it has written its request.
        codes = [expected, (502, "upstream_invalid")] if model == "anonymous" else [expected]
        assert (refused.status, refused.headers["portcullis-reason"]) in codes, refused.body
        assert time.monotonic() - began < 3
        assert client.ask(body=chat("raw-1")).status == 200
    tokens, requests = play.used()
    assert (tokens - before[0], requests - before[1]) == (15, 2)
    assert len(play.secure.calls) + len(play.mutual.calls) == calls


@pytest.mark.parametrize("model", ["patient", "raw"])
def test_who_leaves_before_the_model_has_the_request_pays_no_token(play, model):
    """While its connection is made, and while the model takes what it is sent: until then it cannot have worked."""
    before, body = play.used(), chat(f"{model}-1", max_tokens=5, messages=[{"role": "user", "content": "word " * 1_500_000}])
    held = threading.Event()

    def script(call):
        # No more room than for a hundredth: what waits in buffers counts as taken.
        call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        held.wait(10)

    play.raw.script, play.raw.whole_bodies = script, False
    mark = f"leaves-{model}"

    def told(kind):
        return [line for line in play.stage.audit() if (line["kind"], line.get("client_request_id")) == (kind, mark)]

    try:
        with H1(play.stage.connect()) as client:
            client.send(client.head(body=body, x_client_request_id=mark))
            eventually(lambda: told("accepted"), what="the call")
    finally:
        held.set()
    tokens, requests = play.used()
    assert (tokens - before[0], requests - before[1]) == (0, 1)
    (closed,) = eventually(lambda: told("closed"), what="its last line")
    assert (closed["ending"], closed["settlement"], closed["status"]) == ("client_gone", "none", 499)


def test_a_model_goes_to_the_first_upstream_of_its_routes_dialect(play):
    for path, model in (("/v1/messages", "raw-1"), ("/v1/chat/completions", "vendor-1")):
        refused = play.stage.ask(path, chat(model, max_tokens=5))
        assert (refused.status, refused.headers["portcullis-reason"]) == (403, "model_not_permitted")
    assert not play.raw.calls


def test_an_upstream_that_a_reload_changed_is_another_one(tmp_path):
    """Not a request more for the old one, nor with its credential, while what it answers already goes on."""
    old, new = Upstream(), Upstream()

    def table(upstream, key):
        more = Play.UPSTREAM.format(name="raw", url=f"http://127.0.0.1:{upstream.port}", dialect="openai", more="")
        return more.replace("env:UPSTREAM_KEY", f"file:{key}.secret")

    for key in ("first", "second"):
        (tmp_path / f"{key}.secret").write_text(key)
        (tmp_path / f"{key}.secret").chmod(0o600)
    stage = Stage(tmp_path, more=table(old, "first"), orgs={"acme": Play.ACME.format(models='"raw-*"')})
    held = threading.Event()

    def script(call):
        call.send(STREAM_HEAD, chunk(event("one")))
        held.wait(10)
        call.send(chunk(event()) + LAST_CHUNK)

    try:
        with H1(stage.connect()) as client:
            old.script = answer(CLEAN["chunked"])
            assert client.ask(body=chat("raw-1")).status == 200
            old.script = script
            wire = Wire(stage, "h2", chat("raw-1", stream=True))
            assert wire.piece() == event("one")
            for upstream, key in ((old, "second"), (new, "second")):
                stage.write_config(more=table(upstream, key))
                assert fetch(stage.admin + "/-/reload", data=b"", method="POST").status == 200
                upstream.script = answer(CLEAN["chunked"])
                assert client.ask(body=chat("raw-1")).status == 200
                assert upstream.calls[-1].field("authorization") == ["Bearer second"]
            held.set()
            assert wire.rest() == (event(), True)
            wire.connection.close()
        assert (len(old.calls), len(new.calls)) == (3, 1)
        assert old.calls[0].connection != old.calls[2].connection
    finally:
        held.set()
        stage.close()
        old.close()
        new.close()


# Heads that are not acceptable.

FIELDS = b"HTTP/1.1 200 OK\r\n" + JSON
BAD_HEADS = {
    "nothing": b"",
    "half-a-head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "rubbish": b"SSH-2.0-OpenSSH_9.2p1\r\n\x00\xff\r\n\r\n",
    "http-2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "http-0.9": b"{}",
    "no-status": b"HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x02hi",
    "301": whole(b"", b"301 Moved Permanently", b"location: http://127.0.0.1:1/\r\n"),
    "302": whole(b"", b"302 Found", b"location: /v1/elsewhere\r\n"),
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "307": whole(b"", b"307 Temporary Redirect", b"location: http://127.0.0.1:1/\r\n"),
    "308": whole(b"", b"308 Permanent Redirect", b"location: http://127.0.0.1:1/\r\n"),
    "length-and-chunks": FIELDS + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks-and-length": FIELDS + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two-lengths": FIELDS + b"content-length: 2\r\ncontent-length: 4\r\n\r\n{}{}",
    "length-list": FIELDS + b"content-length: 2, 4\r\n\r\n{}{}",
    "signed-length": FIELDS + b"content-length: +2\r\n\r\n{}",
    "negative-length": FIELDS + b"content-length: -2\r\n\r\n{}",
    "hex-length": FIELDS + b"content-length: 0x2\r\n\r\n{}",
    "huge-length": FIELDS + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "space-before-colon": FIELDS + b"content-length : 2\r\n\r\n{}",
    "folded": FIELDS + b"x-folded: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
    "nul": FIELDS + b"x-nul: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "no-colon": FIELDS + b"nonsense\r\ncontent-length: 2\r\n\r\n{}",
    "long-head": FIELDS + b"x-padding: " + b"a" * (2 << 20) + b"\r\ncontent-length: 2\r\n\r\n{}",
    "endless-head": FIELDS + b"x-padding: " + b"a" * (2 << 20),
    "many-lines": FIELDS + b"x-line: 1\r\n" * 1000 + b"content-length: 2\r\n\r\n{}",
    "gzip": whole(gzip.compress(ANSWER), fields=JSON + b"content-encoding: gzip\r\n"),
    "brotli": whole(b"\x0b\x02\x80{}\x03", fields=JSON + b"content-encoding: br\r\n"),
    "gzip-in-second-line": whole(fields=JSON + b"content-encoding: identity\r\ncontent-encoding: gzip\r\n"),
    "gzip-stream": b"HTTP/1.1 200 OK\r\n" + SSE + b"content-encoding: gzip\r\n\r\n" + gzip.compress(event("one")),
    "gzip-transfer": FIELDS + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunk(gzip.compress(ANSWER)) + LAST_CHUNK,
    "chunks-in-1.0": b"HTTP/1.0 200 OK\r\n" + JSON + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}  # fmt: skip


# Their status says that the upstream did nothing for the request.
DECLINES = {"101", "301", "302", "304", "307", "308"}


@pytest.mark.parametrize("bad", BAD_HEADS)
def test_a_bad_head_is_upstream_invalid_costs_the_input_at_most_and_ends_only_its_connection(play, bad):
    before = play.used()
    # The upstream leaves its connection open: that it is not used again is the gateway's doing.
    ends = bad in ("nothing", "half-a-head", "http-0.9", "gzip-stream")
    play.raw.script = answer(BAD_HEADS[bad], keep=not ends)
    with H1(play.stage.connect()) as client:
        refused = client.ask(body=chat("raw-1"))
        assert (refused.status, refused.headers["portcullis-reason"]) == (502, "upstream_invalid"), refused.body
        assert refused.json["error"]["type"] == "api_error"
        assert len(play.raw.calls) == 1, "the request was repeated, or the redirect followed"
        play.raw.script = answer(whole())
        fine = client.ask(body=chat("raw-1"))
        assert (fine.status, fine.body) == (200, ANSWER)
    first, second = play.raw.calls
    assert first.connection != second.connection
    tokens, requests = play.used()
    # Whoever took the whole request and did not decline it may have worked.
    cost = tokens - before[0] - 15
    assert (0 < cost < 100, cost == 0, requests - before[1]) == (bad not in DECLINES, bad in DECLINES, 2)


def test_a_bad_head_is_told_to_operators(play):
    count = play.stage.metric("portcullis_upstream_requests_total", upstream="raw", code="upstream_invalid")
    failed = play.stage.metric("portcullis_streams_total", org="acme", end="upstream_failed")
    play.raw.script = answer(BAD_HEADS["rubbish"])
    refused = play.stage.ask(body=chat("raw-1"))
    assert play.stage.metric("portcullis_upstream_requests_total", upstream="raw", code="upstream_invalid") == count + 1
    assert play.stage.metric("portcullis_streams_total", org="acme", end="upstream_failed") == failed + 1

    def told():
        lines = [line for line in play.stage.audit() if line.get("request_id") == refused.headers["request-id"]]
        return [line for line in lines if line["kind"] == "closed"]

    (closed,) = eventually(told, what="the closing line")
    assert (closed["ending"], closed["reason"], closed["status"]) == ("upstream_failed", "upstream_invalid", 502)
    assert str(play.raw.port) not in refused.body.decode()


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\nx-hint: 1\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-hint: 1\r\n\r\n",
    ],
    ids=["100", "103", "102-103"],
)
def test_an_informational_head_is_passed_over(play, before):
    play.raw.script = answer(before + whole())
    with H1(play.stage.connect()) as client:
        for _ in range(2):
            fine = client.ask(body=chat("raw-1"))
            assert (fine.status, fine.body, fine.headers.get("x-hint")) == (200, ANSWER, None)


# Heads that are.

CROSS_BACK = {"content-type": "application/json", "cache-control": "no-cache", "retry-after": "7", "retry-after-ms": "6500",
              "x-should-retry": "true", "openai-processing-ms": "12", "openai-version": "2020-10-01"}  # fmt: skip
STAY_THERE = {"set-cookie": "session=1", "server": "cloudflare", "alt-svc": "h3=\":443\"", "via": "1.1 x", "cf-ray": "1",
              "strict-transport-security": "max-age=1", "openai-organization": "operators-own", "x-powered-by": "x",
              "x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-project": "1",
              "anthropic-ratelimit-requests-limit": "1", "anthropic-organization-id": "operators-own",
              "ratelimit": '"x";r=1;t=1', "ratelimit-policy": '"x";q=1', "www-authenticate": "Basic", "age": "9",
              "access-control-allow-origin": "*", "etag": "x", "link": "</x>", "location": "/x", "trailer": "x-late",
              "portcullis-reason": "organization_suspended", "x-org-id": "operators-own", "keep-alive": "timeout=1",
              "content-encoding": "identity", "vary": "x", "proxy-authenticate": "Basic", "refresh": "0"}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("id_name", ["x-request-id", "request-id"])
def test_response_headers_cross_only_by_name(play, protocol, status, id_name):
    fields = "".join(f"{name}: {value}\r\n" for name, value in (CROSS_BACK | STAY_THERE | {id_name: "req_theirs"}).items())
    play.raw.script = answer(whole(status=b"%d Whatever" % status, fields=fields.encode()))
    wire = Wire(play.stage, protocol, chat("raw-1"))
    assert wire.head() == status
    wire.connection.close()
    headers = wire.headers
    assert {name: headers.get(name) for name in CROSS_BACK} == CROSS_BACK
    assert headers["portcullis-upstream-request-id"] == "req_theirs"
    assert headers["x-request-id"] == headers["request-id"] != "req_theirs"
    for name in STAY_THERE:
        assert headers.get(name) != STAY_THERE[name], name
    ours = {"x-request-id", "request-id", "portcullis-upstream-request-id", "x-accel-buffering", "content-length", "date",
            "ratelimit", "ratelimit-policy"}  # fmt: skip
    assert set(headers) - set(CROSS_BACK) <= ours
    assert headers["content-length"] == str(len(ANSWER))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529, 599])
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_an_upstreams_error_reaches_the_client_unmodified_and_costs_nothing(play, status, protocol):
    before = play.used()
    body = b'{"error": {"message":"prompt is too long: 200001 tokens > 200000 maximum\\u00e9",\r\n "usage":{"total_tokens":9}}}\n\n'
    for model in ("raw-1", "vendor-1"):
        path = "/v1/messages" if model == "vendor-1" else "/v1/chat/completions"
        for framed in (whole(body, b"%d Odd Reason" % status, b"content-type: text/x-odd\r\n"),
                       b"HTTP/1.1 %d\r\ncontent-type: text/x-odd\r\ntransfer-encoding: chunked\r\n\r\n" % status
                       + chunk(body[:9]) + chunk(body[9:]) + LAST_CHUNK):  # fmt: skip
            play.raw.script = answer(framed)
            with contextlib.closing(Wire(play.stage, protocol, chat(model, stream=True), path).connection) as client:
                reply = client.read(1) if protocol == "h2" else None
                if reply is None:
                    got, headers = client.read_head()
                    reply = Reply(got, headers, client.read_body(headers))
            assert (reply.status, reply.body) == (status, body)
            assert reply.headers["content-type"] == "text/x-odd"
            assert "portcullis-reason" not in reply.headers
    tokens, requests = play.used()
    assert (tokens - before[0], requests - before[1]) == (0, 4)


@pytest.mark.parametrize(
    "form",
    [
        b"HTTP/1.0 200 OK\r\n" + JSON + b"\r\n" + ANSWER,
        b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n" + ANSWER,
        b"HTTP/1.0 200 OK\r\n" + JSON + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER,
        whole(fields=JSON + b"connection: close\r\n"),
        b"HTTP/1.1 200 OK\r\n" + JSON + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(ANSWER) + LAST_CHUNK,
    ],
    ids=["1.0-to-the-end", "1.1-to-the-end", "1.0-with-length", "close", "close-chunked"],
)  # fmt: skip
def test_an_answer_that_ends_its_connection_is_passed_on_and_the_connection_left(play, form):
    before = play.used()
    play.raw.script = answer(form, keep=False)
    with H1(play.stage.connect()) as client:
        for _ in range(2):
            fine = client.ask(body=chat("raw-1"))
            assert (fine.status, fine.body) == (200, ANSWER)
    assert play.raw.calls[0].connection != play.raw.calls[1].connection
    assert play.used() == (before[0] + 30, before[1] + 2)


LEGAL = {
    "extensions": STREAM_HEAD.replace(SSE, JSON) + b"%x;a=b\r\n%s\r\n0;last\r\n\r\n" % (len(ANSWER), ANSWER),
    "trailers": STREAM_HEAD.replace(SSE, JSON + b"trailer: x-late\r\n") + chunk(ANSWER) + b"0\r\nx-late: 1\r\n\r\n",
    "leading-zeros": STREAM_HEAD.replace(SSE, JSON) + b"000%X\r\n%s\r\n00\r\n\r\n" % (len(ANSWER), ANSWER),
    "upper-case": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: Chunked\r\n\r\n"
                  + chunk(ANSWER) + LAST_CHUNK,
    "no-reason": b"HTTP/1.1 200\r\n" + JSON + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER,
    "white-space": b"HTTP/1.1 200 OK\r\ncontent-type:application/json\r\ncontent-length: \t %d \r\n\r\n" % len(ANSWER) + ANSWER,
    "byte-by-byte": None,
}  # fmt: skip


@pytest.mark.parametrize("form", LEGAL)
def test_an_odd_but_legal_answer_is_passed_on(play, form):
    before = play.used()
    play.raw.script = answer(*([LEGAL[form]] if LEGAL[form] else [bytes([byte]) for byte in whole()]))
    with H1(play.stage.connect()) as client:
        for _ in range(2):
            fine = client.ask(body=chat("raw-1"))
            assert (fine.status, fine.body, fine.headers["content-type"]) == (200, ANSWER, "application/json")
            assert not {"trailer", "x-late"} & set(fine.headers)
    assert play.used()[0] - before[0] == 30


def test_an_answer_that_is_nothing_is_complete_whatever_it_is_called(play):
    play.raw.script = answer(b"HTTP/1.1 204 No Content\r\n" + SSE + b"\r\n")
    nothing = play.stage.ask(body=chat("raw-1", stream=True))
    assert (nothing.status, nothing.body) == (204, b"")

    def told():
        lines = [line for line in play.stage.audit() if line.get("request_id") == nothing.headers["request-id"]]
        return [line["ending"] for line in lines if line["kind"] == "closed"]

    assert eventually(told, what="the closing line") == ["complete"]


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("farewell", [True, False])
def test_an_answer_over_tls_is_whole_only_if_its_end_was_said(play, protocol, farewell):
    """To the end of the connection: a cut by somebody in between must not look like the end."""

    def script(call):
        call.send(b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n" + ANSWER)
        if farewell:
            call.socket.unwrap()

    play.secure.script = script
    with contextlib.closing((wire := Wire(play.stage, protocol, chat("tls-1"))).connection):
        try:
            # Cut off before it was passed on, it may also be no answer at all.
            got = wire.rest() if wire.head() == 200 else (b"", False)
        except EOFError:
            got = (b"", False)
    assert got[1] == farewell
    assert got[0] == ANSWER or not farewell


@pytest.mark.parametrize(
    ("path", "body", "input_tokens"),
    [("/v1/chat/completions", chat("raw-1", temperature=0.7, stop=None), 8),
     ("/v1/embeddings", {"model": "raw-1", "input": "hello"}, 1)],
)  # fmt: skip
def test_a_small_true_report_is_believed(play, path, body, input_tokens):
    """What vendors report for `hello`; the braces around it are no text that could have been metered."""
    before, disputed = play.used(), play.stage.metric("portcullis_usage_disputed_total")
    usage = {"prompt_tokens": input_tokens, "completion_tokens": 0, "total_tokens": input_tokens}
    play.raw.script = answer(whole(json.dumps({"data": [], "usage": usage}).encode()))
    assert play.stage.ask(path, body).status == 200
    assert play.used()[0] - before[0] == input_tokens
    assert play.stage.metric("portcullis_usage_disputed_total") == disputed


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("escapes", [False, True], ids=["plain", "escaped"])
def test_an_honest_report_is_believed_however_texts_are_escaped(play, escapes, streams):
    before, disputed = play.used(), play.stage.metric("portcullis_usage_disputed_total")
    text = "\x1b[1m\n" * 200
    usage = {"prompt_tokens": 200, "completion_tokens": 200, "total_tokens": 400}
    written = "".join(f"\\u{ord(one):04x}" for one in text) if escapes else json.dumps(text)[1:-1]
    body = json.dumps(chat("raw-escaped", content="TEXT", stream=streams)).replace("TEXT", written).encode()
    told = json.dumps(message("TEXT") | {"usage": usage}).replace("TEXT", written).encode()
    chunks = [b"data: %s\n\n" % told.replace(b'"message"', b'"delta"'), event(usage=usage), event()]
    stream = STREAM_HEAD + b"".join(chunk(piece) for one in chunks for piece in (one[:77], one[77:]) if piece) + LAST_CHUNK
    play.raw.script = answer(stream if streams else whole(told))
    with H1(play.stage.connect()) as client:
        client.send(client.head("/v1/chat/completions", body))
        assert client.read_head()[0] == 200
    assert play.used()[0] - before[0] == 400
    assert play.stage.metric("portcullis_usage_disputed_total") == disputed


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", chat("raw-1")), ("/v1/embeddings", {"model": "raw-1", "input": "word " * 12})],
)
def test_of_a_report_that_is_a_sum_alone_the_sum_is_charged(play, path, body):
    before = play.used()
    play.raw.script = answer(whole(json.dumps({"data": [], "usage": {"total_tokens": 27}}).encode()))
    assert play.stage.ask(path, body).status == 200
    assert play.used()[0] - before[0] == 27


@pytest.mark.parametrize("choices", ["", '"choices":null,', '"choices":[],'], ids=["none", "null", "empty"])
def test_the_usage_chunk_is_taken_out_however_it_says_that_it_has_no_choices(play, choices):
    extra = b'data: {"id":"c",%s"usage":%s}\n\n' % (choices.encode(), json.dumps(USAGE).encode())
    play.raw.script = answer(STREAM_HEAD + b"".join(map(chunk, [event("one"), extra, event()])) + LAST_CHUNK)
    assert play.stage.ask(body=chat("raw-1", stream=True)).body == event("one") + event()
    assert play.stage.ask(body=chat("raw-1", stream=True, **ASKED)).body == event("one") + extra + event()


def test_an_answer_that_fails_before_it_says_anything_costs_nothing(play):
    before = play.used()
    told = [{"type": f"response.{kind}", "response": {"id": "r", "object": "response"}}
            for kind in ("created", "in_progress", "failed")]  # fmt: skip
    play.raw.script = answer(STREAM_HEAD + b"".join(chunk(event_of(one)) for one in told) + LAST_CHUNK)
    assert play.stage.ask("/v1/responses", {"model": "raw-1", "input": "hello", "stream": True}).status == 200
    assert play.used()[0] == before[0]


# Which connections are used again.

CLEAN = {"length": whole(), "chunked": STREAM_HEAD.replace(SSE, JSON) + chunk(ANSWER) + LAST_CHUNK, "events": STREAM,
         "events-with-length": whole(event("one") + event(usage=USAGE) + event(), fields=SSE), "empty": whole(b""),
         "error": whole(b"{}", b"429 Too Many Requests"), "204": b"HTTP/1.1 204 No Content\r\n\r\n"}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("form", CLEAN)
def test_a_connection_is_used_again_after_a_clean_end(play, protocol, form):
    play.raw.script = answer(CLEAN[form])
    with H1(play.stage.connect()) if protocol == "h1" else H2(play.stage.connect(alpn=("h2",))) as client:
        for _ in range(3):
            assert client.ask(body=chat("raw-1", stream=form.startswith("events"))).status in (200, 204, 429)
    assert len({call.connection for call in play.raw.calls}) == 1


POISON = whole(b'{"id":"poison"}')


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("when", ["with-the-answer", "between-requests"])
def test_an_answer_nobody_asked_for_is_given_to_nobody(play, protocol, when):
    """Response splitting: what follows an answer on its connection is never the answer to the next request."""

    said = threading.Event()

    def script(call):
        call.send(whole() + POISON if when == "with-the-answer" else whole())
        if when == "between-requests":
            call.send(POISON)
        said.set()
        return True

    play.raw.script = script
    with H1(play.stage.connect()) if protocol == "h1" else H2(play.stage.connect(alpn=("h2",))) as client:
        for _ in range(5):
            fine = client.ask(body=chat("raw-1"))
            if fine.status == 200:
                assert fine.body == ANSWER
                # It is there before the next request: HTTP/1.1 cannot tell one that comes after it from its answer.
                assert said.wait(5)
                said.clear()
            else:
                # Between requests the stray answer may arrive just when a request is being written: an error, no mix-up.
                assert (when, fine.headers["portcullis-reason"]) == ("between-requests", "upstream_invalid")
    if when == "with-the-answer":
        assert len({call.connection for call in play.raw.calls}) == 5


@pytest.mark.parametrize("early", [b"413 Too Large", b"200 OK"])
def test_a_connection_is_left_after_an_early_answer(play, early):
    """The upstream answers before it has read the body: the rest of that body must never look like a request."""
    size = 15 << 20  # more than the kernels on both sides take without anybody reading
    answered = threading.Event()

    def script(call):
        call.send(whole(status=early))
        # Who reads on at once may have all of the body before the answer is read: then nothing is early.
        answered.wait(10)
        return False if call.left() else None

    play.raw.script, play.raw.whole_bodies = script, False
    with H1(play.stage.connect()) as client:
        got = client.ask(body=chat("raw-1", pad="p" * size))
        assert (got.status, got.body) == (int(early[:3]), ANSWER)
        answered.set()
        eventually(lambda: play.raw.calls[0].left_at, what="the end of the upstream connection")
        play.raw.script, play.raw.whole_bodies = answer(whole()), True
        assert client.ask(body=chat("raw-1")).status == 200
    assert play.raw.calls[0].connection != play.raw.calls[1].connection


@pytest.mark.parametrize("end", ["answers", "breaks off"])
@pytest.mark.parametrize("early", [b"100 Continue", b"103 Early Hints"])
def test_an_informational_head_before_the_whole_request_changes_nothing(play, early, end):
    before = play.used()

    def script(call):
        call.send(b"HTTP/1.1 %s\r\n\r\n" % early)
        # More than the kernels hold: the gateway comes to read while it still writes.
        call.rest()
        call.send(whole() if end == "answers" else b"")
        return end == "answers"

    play.raw.script, play.raw.whole_bodies = script, False
    with H1(play.stage.connect()) as client:
        for _ in range(2):
            got = client.ask(body=chat("raw-1", pad="p" * (15 << 20)))
            assert got.status == (200 if end == "answers" else 502), got.body
    tokens, _ = play.used()
    if end == "answers":
        assert len({call.connection for call in play.raw.calls}) == 1
        assert tokens - before[0] == 2 * 15
    else:
        assert tokens - before[0] > 1000, "the upstream took the request whole"


def test_an_early_answer_is_delivered_though_the_upstream_closes_at_once(play):
    """What servers do with a body that they do not want: answer, stop reading, close after a moment."""

    def script(call):
        call.send(whole(b'{"error":"too large"}', b"413 Too Large", JSON + b"connection: close\r\n"))
        call.socket.shutdown(socket.SHUT_WR)
        call.left()

    play.raw.script, play.raw.whole_bodies = script, False
    got = play.stage.ask(body=chat("raw-1", pad="p" * (4 << 20)))
    assert (got.status, got.body) == (413, b'{"error":"too large"}')


def reset(call):
    call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_pooled_connection_that_died_while_idle_is_replaced_silently(play, how):
    ended = threading.Event()

    def script(call):
        # Chunked, so that the connection is known to go back to the pool.
        call.send(CLEAN["chunked"])
        if how == "reset":
            reset(call)
        call.socket.close()
        ended.set()

    with H1(play.stage.connect()) as client:
        play.raw.script = script
        assert client.ask(body=chat("raw-1")).status == 200
        assert ended.wait(5)
        play.raw.script = answer(whole())
        assert client.ask(body=chat("raw-1")).status == 200
    assert len(play.raw.calls) == 2


@pytest.mark.parametrize("part", ["after-the-request", "after-half-a-head", "within-the-request"])
def test_a_request_that_was_written_is_never_sent_again(play, part):
    before = play.used()
    body = chat("raw-1", pad="p" * (4 << 20 if part == "within-the-request" else 10))

    def die(call):
        if part == "after-half-a-head":
            call.send(b"HTTP/1.1 200 OK\r\nconte")

    with H1(play.stage.connect()) as client:
        play.raw.script = answer(CLEAN["chunked"])
        assert client.ask(body=chat("raw-1")).status == 200
        # The first request of this connection was read whole; how much of the next is read, is the script's choice.
        play.raw.script, play.raw.whole_bodies = die, part != "within-the-request"
        died = client.ask(body=body)
        assert (died.status, died.headers["portcullis-reason"]) == (502, "upstream_invalid")
        play.raw.script, play.raw.whole_bodies = answer(whole()), True
        assert client.ask(body=chat("raw-1")).status == 200
    connections = [call.connection for call in play.raw.calls]
    assert len(connections) == 3 and connections[0] == connections[1] != connections[2], connections
    tokens, requests = play.used()
    # What had the whole request may have worked before it died.
    cost = tokens - before[0] - 30
    assert ((cost > 0, cost < 100), requests - before[1]) == ((part != "within-the-request", True), 3)


# Answers that break off.

WORDS = chunk(event("one")) + chunk(event("two"))
BROKEN = {
    "dies-mid-stream": (STREAM_HEAD + WORDS, True),
    "dies-within-an-event": (STREAM_HEAD + WORDS + chunk(event("three")[:20]), False),
    "ends-within-an-event": (b"HTTP/1.1 200 OK\r\n" + SSE + b"\r\n" + event("one") + event("two") + event("three")[:20], False),
    "dies-within-a-chunk": (STREAM_HEAD + WORDS + b"ff\r\n" + event("three")[:20], False),
    "bad-chunk-size": (STREAM_HEAD + WORDS + b"zz\r\ndata: {}\n\n\r\n", True),
    "signed-chunk-size": (STREAM_HEAD + WORDS + b"-1\r\nx\r\n", True),
    "huge-chunk-size": (STREAM_HEAD + WORDS + b"fffffffffffffffff\r\nx\r\n", True),
    "chunk-without-its-end": (STREAM_HEAD + WORDS + b"a\r\ndata: {}\n\nmore\r\n0\r\n\r\n", True),
    "short-stream": (b"HTTP/1.1 200 OK\r\n" + SSE + b"content-length: 1000\r\n\r\n" + event("one") + event("two"), True),
    "short-body": (FIELDS + b"content-length: 1000\r\n\r\n" + ANSWER[:40], False),
    "ends-within-a-document": (FIELDS + b"\r\n" + ANSWER[:40], False),
    "bad-chunk-body": (FIELDS + b"transfer-encoding: chunked\r\n\r\n" + chunk(ANSWER[:40]) + b"zz\r\n", False),
}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("broken", BROKEN)
def test_an_answer_that_breaks_off_is_cut_in_whole_events_and_charged_as_metered(play, protocol, broken):
    before = play.used()
    written, says_why = BROKEN[broken]
    play.raw.script = answer(written, keep=False)
    streams = b"text/event-stream" in written
    wire = Wire(play.stage, protocol, chat("raw-1", max_tokens=500) | ({"stream": True} | ASKED if streams else {}))
    try:
        # What broke off before the client got anything may also show as no answer at all.
        assert wire.head() in (200, None)
    except EOFError:
        wire.headers = {"content-length": "1"}
    if protocol == "h1" and "content-length" in wire.headers:
        wire.socket.settimeout(5)
        with contextlib.suppress(ConnectionError):
            while wire.connection.more():
                pass
        got, clean = wire.connection.buffer, len(wire.connection.buffer) == int(wire.headers["content-length"])
    else:
        got, clean = wire.rest()
    wire.connection.close()
    assert not clean
    assert b"[DONE]" not in got
    if says_why:
        assert got.startswith(event("one") + event("two")) and got.endswith(b"\n\n")
        told = [json.loads(line.removeprefix("data: ")) for line in got.decode().split("\n") if line.startswith("data: ")]
        assert told[-1]["error"]["code"] == "upstream_invalid"
    else:
        assert b"upstream_invalid" not in got
        assert (event("one") + event("two") + event("three")).startswith(got) or ANSWER.startswith(got)
    tokens, requests = play.used()
    assert 0 < tokens - before[0] < 500
    assert requests - before[1] == 1
    play.raw.script = answer(whole())
    assert play.stage.ask(body=chat("raw-1")).status == 200


def event_of(data):
    return b"data: " + json.dumps(data).encode() + b"\n\n"


# Streams that have said their end; what is behind it is framing.


def response(kind):
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return event_of({"type": f"response.{kind}", "response": {"id": "r", "output": [], "usage": usage}})


TOLD = event_of({"type": "response.output_text.delta", "delta": "hello"})
ENDED = {
    "chat": ("raw-1", "/v1/chat/completions", ASKED, [event("one"), event(usage=USAGE), event()]),
    "messages": ("vendor-1", "/v1/messages", {"max_tokens": 50}, [
        event_of({"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}),
        event_of({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}}),
        event_of({"type": "message_delta", "usage": {"output_tokens": 5}}), event_of({"type": "message_stop"})]),
    "completed": ("raw-1", "/v1/responses", {"input": "hello"}, [TOLD, response("completed")]),
    "incomplete": ("raw-1", "/v1/responses", {"input": "hello"}, [TOLD, response("incomplete")]),
    "failed": ("raw-1", "/v1/responses", {"input": "hello"}, [TOLD, response("failed")]),
}  # fmt: skip


def closing_line(stage, headers):
    def told():
        lines = [line for line in stage.audit() if line.get("request_id") == headers["request-id"]]
        return [line for line in lines if line["kind"] == "closed"]

    (closed,) = eventually(told, what="the closing line")
    return closed


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("how", ["closed", "reset", "hung"])
@pytest.mark.parametrize("flow", ENDED)
def test_a_stream_that_has_said_its_end_is_whole_whatever_its_upstream_does_then(play, protocol, how, flow):
    """The upstream waits for two minutes before it takes one for silent: here nobody waits so long."""
    before, (model, path, more, events), has = play.used(), ENDED[flow], threading.Event()

    def script(call):
        call.send(STREAM_HEAD, *map(chunk, events))
        if how == "hung":
            call.left(60)
        elif how == "reset":
            # Not before all was read: a reset overtakes it.
            has.wait(10)
            reset(call)

    play.raw.script = script
    with contextlib.closing((wire := Wire(play.stage, protocol, chat(model, stream=True) | more, path)).connection):
        assert wire.head() == 200
        got = b""
        while len(got) < len(b"".join(events)):
            got += wire.piece()
        has.set()
        assert (got, wire.rest()) == (b"".join(events), (b"", True))
    closed = closing_line(play.stage, wire.headers)
    assert (closed["ending"], closed.get("reason"), closed["settlement"]) == ("complete", None, "reported"), closed
    assert play.used()[0] - before[0] == 15


@pytest.mark.parametrize("how", ["closes", "resets", "stays"])
def test_a_client_that_leaves_behind_requests_that_it_sent_ahead_cancels_the_call(play, how):
    """More of them than is read before the first one is answered."""
    came, go_on = threading.Event(), threading.Event()

    def script(call):
        came.set()
        if how == "stays":
            go_on.wait(10)
            call.send(whole())
            return True
        call.left()

    play.raw.script = script
    with H1(play.stage.connect()) as client:
        client.send(client.head(body=chat("raw-1")))
        assert came.wait(10)
        client.send(client.head(body=chat("raw-2", pad="x" * 40_000)))
        if how == "resets":
            reset(Call(0, client.socket, b"", b""))
        if how == "stays":
            go_on.set()
            for _ in range(2):
                status, headers = client.read_head()
                assert (status, client.read_body(headers)) == (200, ANSWER)
    if how != "stays":
        eventually(lambda: play.raw.calls[0].left_at, what="the end of the upstream call")
    assert len(play.raw.calls) == (2 if how == "stays" else 1)


def test_a_connection_whose_last_chunk_comes_after_the_end_is_used_again(play):
    has = threading.Event()

    def script(call):
        call.send(STREAM_HEAD, *map(chunk, [event("one"), event()]))
        has.wait(10)
        call.send(LAST_CHUNK)
        return True

    play.raw.script = script
    with H1(play.stage.connect()) as client:
        for _ in range(2):
            has.clear()
            client.send(client.head(body=chat("raw-1", stream=True)))
            assert client.read_head()[0] == 200
            while event() not in client.read_chunk():
                pass
            has.set()
            assert client.read_chunk() == b""
    assert len({call.connection for call in play.raw.calls}) == 1


@pytest.mark.parametrize("how", ["left", "revoked"])
def test_what_becomes_of_a_stream_behind_its_end_cuts_nothing_and_costs_nothing_more(tmp_path, how):
    """Though `hard` charges all that was reserved where nobody saw the end, and no report told."""
    upstream, told = Upstream(), [event("one"), event()]
    table = Play.UPSTREAM.format(name="raw", url=f"http://127.0.0.1:{upstream.port}", dialect="openai", more="")
    stage = Stage(tmp_path, quota='enforce = "hard"', more=table, orgs={"acme": Play.ACME.format(models='"raw-*"')})

    def script(call):
        call.send(STREAM_HEAD, *map(chunk, told))
        call.left()

    upstream.script = script
    try:
        wire = Wire(stage, "h1", chat("raw-1", stream=True, max_tokens=500))
        assert wire.head() == 200
        got = b""
        while event() not in got:
            got += wire.piece()
        if how == "left":
            wire.connection.close()
        else:
            stage.run("revoke", "--org", "acme", "--reason", "a drill", check=True)
            assert (got, wire.rest()) == (b"".join(told), (b"", True))
        closed = closing_line(stage, wire.headers)
        assert (closed["ending"], closed.get("reason"), closed["settlement"]) == ("complete", None, "estimated"), closed
        assert stage.limit("acme", "tokens_per_day")["used"] < 100
        eventually(lambda: upstream.calls[0].left_at, what="the end of the upstream call")
    finally:
        stage.close()
        upstream.close()


def stream_of(data):
    return STREAM_HEAD + chunk(event_of(data))


def message(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def image_call(size):
    return {"type": "image_generation_call", "result": "A" * size}


PARTIAL = {"type": "response.x.partial_image", "partial_image_b64": "A" * 5120}
ZIPPED = gzip.compress(random.Random(3).randbytes(900))
# What came without a report of usage; the output tokens that it is taken for. Before anything is learned, a byte of text
# is a third of a token.
UNTOLD = {
    "an-image": ("responses", whole(json.dumps({"output": [image_call(102_400)]}).encode()), 200),
    "an-image-that-streams": (
        "responses",
        stream_of({"type": "response.output_item.added", "item": image_call(9000)})
        + chunk(b'data: {"type":"response.x.partial_image","partial_image_b64":"%s"}\n\n' % (b"A" * 5120))
        + chunk(b"data: " + json.dumps({"type": "response.output_item.done", "item": image_call(51_200)}).encode() + b"\n\n"),
        110,
    ),
    # An event that nobody knows is text, but for what is known to be an image.
    "an-image-alone": ("responses", stream_of(PARTIAL), -(-(len(event_of(PARTIAL)) - 5120) // 3) + 10),
    "a-sound": ("chat/completions", whole(b'{"choices":[{"message":{"audio":{"data":"%s"}}}]}' % (b"A" * 5120)), 10),
    "sealed-thoughts": (
        "messages",
        whole(b'{"content":[{"type":"redacted_thinking","data":"%s"}]}' % (b"A" * 400)),
        100,
    ),
    "sealed-thoughts-that-stream": (
        "messages",
        stream_of({"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "A" * 400}}),
        100,
    ),
    "sealed-reasoning": (
        "responses",
        whole(json.dumps({"output": [{"type": "reasoning", "encrypted_content": "A" * 400}]}).encode()),
        100,
    ),
    # The same text, however it is written.
    "escaped-text": ("chat/completions", whole(json.dumps(message("Ж\n" * 100)).encode()), 100),
    "unescaped-text": ("chat/completions", whole(json.dumps(message("Ж\n" * 100), ensure_ascii=False).encode()), 100),
    "escaped-text-that-streams": (
        "responses", stream_of({"type": "response.output_text.delta", "delta": "Ж" * 150}), 100),
    "a-delta-that-nobody-knows": ("chat/completions", stream_of({"choices": [{"delta": {"thought": "A" * 300}}]}), 100),
    "a-block-that-nobody-knows": (
        "messages",
        stream_of({"type": "content_block_delta", "delta": {"type": "new_delta", "stuff": "A" * 300}}),
        100,
    ),
    "compressed-and-not-said": ("chat/completions", whole(ZIPPED), -(-len(ZIPPED) // 3)),
    "compressed-and-broken-off": ("chat/completions", FIELDS + b"content-length: 2000\r\n\r\n" + ZIPPED, -(-len(ZIPPED) // 3)),
    "compressed-events": ("chat/completions", b"HTTP/1.1 200 OK\r\n" + SSE + b"\r\n" + ZIPPED, -(-len(ZIPPED) // 3)),
}  # fmt: skip


@pytest.mark.parametrize("untold", UNTOLD)
def test_an_answer_that_is_no_text_and_reports_nothing_is_charged_by_its_bytes(play, untold):
    route, written, tokens = UNTOLD[untold]
    play.raw.script = answer(written, keep=False)
    model = f"vendor-{untold}" if route == "messages" else f"raw-{untold}"
    body = {"model": model, "input": "hello"} if route == "responses" else chat(model)
    with H1(play.stage.connect()) as client:
        client.send(client.head(f"/v1/{route}", body | ({"stream": True} if SSE in written else {}), connection="close"))
        status, headers = client.read_head()
        assert status == 200
        with contextlib.suppress(ConnectionError):
            while client.more():
                pass
    play.used()

    def told():
        lines = [line for line in play.stage.audit() if line.get("request_id") == headers["request-id"]]
        return [line for line in lines if line["kind"] == "closed"]

    (closed,) = eventually(told, what="the closing line")
    assert (closed["settlement"], closed["usage"]["output"]) == ("estimated", tokens), closed


def ran(kind, read, made):
    return {"type": kind, "input_tokens": read, "output_tokens": made}


# What an answer's usage tells of itself; of the runs of a model behind it; what all of that comes to.
RUNS = {
    "summarized-before": ((23_000, 1000), [ran("compaction", 180_000, 3500), ran("message", 23_000, 1000)], 207_500),
    "tools-of-the-vendor": ((60, 30), [ran("message", 10, 10), ran("message", 50, 20)], 90),
    "advised": ((60, 30), [ran("message", 60, 30), ran("advisor_message", 70, 400)], 560),
    "declined-at-once": ((412, 264), [ran("message", 535, 0), ran("fallback_message", 412, 264)], 676),
    "declined-midway": ((412, 264), [ran("message", 535, 20), ran("fallback_message", 412, 264)], 1231),
}


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("runs", RUNS)
def test_every_run_of_a_model_behind_an_answer_is_charged_once(play, runs, streams):
    before, ((read, made), iterations, tokens) = play.used(), RUNS[runs]
    usage = {"input_tokens": read, "output_tokens": made, "iterations": iterations}
    told = [
        {"type": "message_start", "message": {"usage": {"input_tokens": read, "output_tokens": 1}}},
        {"type": "message_delta", "usage": usage}, {"type": "message_delta", "usage": usage}, {"type": "message_stop"},
    ]  # fmt: skip
    events = b"".join(chunk(b"data: " + json.dumps(one).encode() + b"\n\n") for one in told)
    answered = json.dumps({"type": "message", "content": [], "usage": usage}).encode()
    play.raw.script = answer(STREAM_HEAD + events + LAST_CHUNK if streams else whole(answered))
    asked = chat("vendor-runs", max_tokens=2000, stream=streams)
    assert play.stage.ask("/v1/messages", body=asked).status == 200
    assert play.used()[0] - before[0] == tokens


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("hang", ["nothing", "half-a-head", "drip", "hints"])
def test_a_head_that_does_not_come_is_upstream_timeout_and_costs_the_input(play, protocol, hang):
    """`head_timeout` counts until the head is there: bytes of it, or informational heads, do not move it."""
    before = play.used()

    def script(call):
        if hang == "nothing":
            call.left()
        elif hang == "half-a-head":
            call.send(b"HTTP/1.1 200 OK\r\n")
            call.left()
        else:
            bit = b"a" if hang == "drip" else b"HTTP/1.1 100 Continue\r\n\r\n"
            call.send(b"HTTP/1.1 200 OK\r\nx-slow: " if hang == "drip" else b"")
            with contextlib.suppress(OSError):
                while True:
                    call.send(bit)
                    time.sleep(0.05)
        call.left_at = time.monotonic()

    play.raw.script = script
    client = H1(play.stage.connect()) if protocol == "h1" else H2(play.stage.connect(alpn=("h2",)))
    with client:
        began = time.monotonic()
        late = client.ask(body=chat("hasty-1", max_tokens=500))
        assert (late.status, late.headers["portcullis-reason"]) == (504, "upstream_timeout"), late.body
        left = [int(re.search(r'"requests-per-day";r=(\d+)', late.headers["ratelimit"])[1])]
        assert "ratelimit-policy" in late.headers
        assert 1 <= time.monotonic() - began < 5
        eventually(lambda: play.raw.calls[0].left_at, within=3, what="the end of the upstream call")
        play.raw.script = answer(whole())
        good = client.ask(body=chat("hasty-1"))
        assert good.status == 200
        left += [int(re.search(r'"requests-per-day";r=(\d+)', good.headers["ratelimit"])[1])]
        assert left[0] - left[1] == 1, "its own answer tells the limits, too"
    assert play.raw.calls[0].connection != play.raw.calls[1].connection
    tokens, requests = play.used()
    assert requests - before[1] == 2
    assert 0 < tokens - before[0] - 15 < 100


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("form", ["events", "within-an-event", "json"])
def test_an_answer_that_falls_silent_is_cut_with_upstream_timeout(play, protocol, form):
    before = play.used()
    begun = {"events": STREAM_HEAD + WORDS, "within-an-event": STREAM_HEAD + WORDS + chunk(b'data: {"x'),
             "json": FIELDS + b"transfer-encoding: chunked\r\n\r\n" + chunk(ANSWER[:40])}[form]  # fmt: skip

    def script(call):
        call.send(begun)
        call.left()

    play.raw.script = script
    began = time.monotonic()
    wire = Wire(play.stage, protocol, chat("hasty-1", max_tokens=500) | ({} if form == "json" else {"stream": True} | ASKED))
    assert wire.head() == 200
    got, clean = wire.rest()
    wire.connection.close()
    assert not clean and 1 <= time.monotonic() - began < 5
    assert b"[DONE]" not in got
    assert (b'"upstream_timeout"' in got) == (form == "events"), got
    eventually(lambda: play.raw.calls[0].left_at, within=3, what="the end of the upstream call")
    assert 0 < play.used()[0] - before[0] < 500


# How answers flow.

LINES = [b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}\n\n',
         b": a comment\n\n", b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
         b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
         b'"delta":{"type":"text_delta","text":"a"}}\n\n',
         b"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":5}}\n\n",
         b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"]  # fmt: skip
WHOLE_EVENTS = [event("one"), b": ping\n\n", event("two") + event("three"), b"event: x\r\nid: 1\r\ndata: {}\r\n\r\n"]
FLOWS = {
    # The usage chunk was not asked for: whole events are never kept back.
    "chat": ("raw-1", "/v1/chat/completions", {"stream": True}, [*WHOLE_EVENTS, event()]),
    # Of an unfinished event at most 16 KiB are kept back.
    "chat-long": ("raw-1", "/v1/chat/completions", {"stream": True},
                  [event("y" * 20_000)[:17_000], event("y" * 20_000)[17_000:17_001], event("y" * 20_000)[17_001:], event()]),
    "chat-with-usage": ("raw-1", "/v1/chat/completions", {"stream": True} | ASKED,
                        [*WHOLE_EVENTS, event("x")[:9], event("x")[9:], event(usage=USAGE), event()]),
    "messages": ("vendor-1", "/v1/messages", {"stream": True, "max_tokens": 50},
                 [*LINES[:3], LINES[3][:30], LINES[3][30:], *LINES[4:]]),
    "responses": ("raw-1", "/v1/responses", {"stream": True, "input": "x"},
                  [b"event: response.created\n", b"data: {}\n\n", b"d", b"ata: {}\n", b"\n"]),
    "json": ("raw-1", "/v1/chat/completions", {}, [ANSWER[:9], ANSWER[9:10], ANSWER[10:]]),
}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("flow", FLOWS)
def test_every_frame_is_forwarded_as_it_comes(play, protocol, flow):
    """The upstream sends a frame only when the client has the one before: whatever is kept back stops the whole."""
    model, path, more, frames = FLOWS[flow]
    seen, ended = threading.Semaphore(0), threading.Event()
    delays = []

    def script(call):
        call.send(STREAM_HEAD if more.get("stream") else STREAM_HEAD.replace(SSE, JSON))
        for frame in frames:
            if not seen.acquire(timeout=5):
                return False
            delays.append(time.monotonic())
            call.send(chunk(frame))
        assert seen.acquire(timeout=5)
        call.send(LAST_CHUNK)
        ended.set()
        return True

    play.raw.script = script
    with contextlib.closing((wire := Wire(play.stage, protocol, chat(model) | more, path)).connection):
        assert wire.head() == 200
        for number, frame in enumerate(frames):
            seen.release()
            got = b""
            while len(got) < len(frame):
                piece = wire.piece()
                assert piece, f"the answer ended within frame {number}: {got!r}"
                got += piece
            assert got == frame
            delays[number] = time.monotonic() - delays[number]
        seen.release()
        assert wire.rest() == (b"", True)
    assert ended.wait(5)
    # Not all of them: a machine with other work lets some wait.
    assert sorted(delays)[len(delays) // 4] < 0.1, delays


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_the_head_is_forwarded_before_there_is_a_body(play, protocol):
    seen = threading.Event()

    def script(call):
        call.send(STREAM_HEAD)
        if seen.wait(5):
            call.send(STREAM.removeprefix(STREAM_HEAD))
        return True

    play.raw.script = script
    with contextlib.closing((wire := Wire(play.stage, protocol, chat("raw-1", stream=True))).connection):
        assert wire.head() == 200
        seen.set()
        got, clean = wire.rest()
    # The usage was not asked for.
    assert (got, clean) == (event("one") + event("two") + event(), True)


BIG = 64 << 20


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("form", ["json", "events"])
def test_an_upstream_is_not_drained_faster_than_its_client_reads(play, protocol, form):
    """A client that reads nothing holds up an answer of 64 MiB; then it reads all, and nothing is missing."""
    piece = event("x" * (64 << 10))
    count = BIG // len(piece)
    sent, digest = [0], hashlib.sha256()

    def script(call):
        call.send(STREAM_HEAD if form == "events" else STREAM_HEAD.replace(SSE, JSON))
        for _ in range(count):
            call.send(chunk(piece))
            sent[0] += len(piece)
        call.send(chunk(event()) + LAST_CHUNK)
        return True

    play.raw.script = script
    before = memory(play.stage)
    body = chat("raw-1", max_tokens=100) | ({"stream": True} | ASKED if form == "events" else {})
    with contextlib.closing((wire := Wire(play.stage, protocol, body)).connection):
        assert wire.head() == 200
        halted = [0, time.monotonic()]

        def is_halted():
            if sent[0] != halted[0]:
                halted[:] = [sent[0], time.monotonic()]
            return sent[0] and time.monotonic() - halted[1] > 0.5

        eventually(is_halted, what="the halt")
        # The system's own buffers on the way hold a few MiB; the gateway's share is its memory.
        assert sent[0] < BIG // 3
        assert memory(play.stage) - before < BIG // 4
        size = 0
        while got := wire.piece():
            digest.update(got)
            size += len(got)
        assert got == b""
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(piece)
    expected.update(event())
    assert (size, digest.digest()) == (count * len(piece) + len(event()), expected.digest())


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_client_that_pauses_is_not_taken_for_a_silent_upstream(play, protocol):
    """It takes nothing for longer than `idle_timeout`, and then the rest."""
    piece, count = event("x" * 65536), 256

    def script(call):
        call.send(STREAM_HEAD)
        for _ in range(count):
            call.send(chunk(piece))
        call.send(chunk(event()) + LAST_CHUNK)
        return True

    play.raw.script = script
    body = chat("hasty-1", stream=True) | ASKED
    with contextlib.closing((wire := Wire(play.stage, protocol, body)).connection):
        assert wire.head() == 200
        time.sleep(2)
        got, clean = wire.rest()
    assert (len(got), clean, got[-len(event()):]) == (count * len(piece) + len(event()), True, event())


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_client_that_takes_nothing_is_left_and_its_upstream_call_cancelled(tmp_path, protocol):
    upstream = Upstream()
    table = Play.UPSTREAM.format(name="raw", url=f"http://127.0.0.1:{upstream.port}", dialect="openai", more="")
    stage = Stage(tmp_path, listen='write_timeout = "500ms"', more=table, orgs={"acme": Play.ACME.format(models='"raw-*"')})
    failed = threading.Event()

    def script(call):
        call.send(STREAM_HEAD)
        try:
            while True:
                call.send(chunk(event("x" * 65536)))
        except OSError:
            failed.set()

    upstream.script = script
    try:
        wire = Wire(stage, protocol, chat("raw-1", stream=True))
        assert wire.head() == 200
        assert failed.wait(10)
        eventually(lambda: stage.metric("portcullis_streams_total", org="acme", end="client_stalled") == 1)
        assert stage.metric("portcullis_streams_active") == 0
        wire.socket.close()
    finally:
        stage.close()
        upstream.close()


def test_a_stream_that_is_not_read_holds_up_no_other(play):
    """On one HTTP/2 connection: each stream has a window of its own."""

    def script(call):
        if b"flood" not in call.body:
            return answer(whole())(call)
        call.send(STREAM_HEAD)
        with contextlib.suppress(OSError):
            while True:
                call.send(chunk(event("x" * 65536)))

    play.raw.script = script
    with H2(play.stage.connect(alpn=("h2",))) as client:
        client.state.increment_flow_control_window(8 << 20)
        flood = client.start(body=chat("raw-1", stream=True, user="flood"))
        client.unread.add(flood)
        while client.state.remote_flow_control_window(flood) > 0:
            client.more()
        for _ in range(20):
            assert client.ask(body=chat("raw-1")).body == ANSWER
        assert client.streams[flood]["ended"] is None


def test_a_large_request_body_reaches_an_upstream_that_reads_slowly(play):
    """Longer than `head_timeout` of a second: no timer cuts a request body that still moves."""
    size, slowly = 15 << 20, 12 << 20

    def script(call):
        call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        total, got = int(call.field("content-length")[0]), len(call.body)
        began = time.monotonic()
        while got < total:
            got += len(call.socket.recv(min(256 << 10, total - got)))
            # Fast enough that what the system holds, which moves in large pieces, moves several times a second; and what
            # it holds at the end is read at once: it moves no more for the gateway.
            time.sleep(max(0, began + 2 * got / slowly - time.monotonic()) if got < slowly else 0)
        call.send(whole())
        return True

    play.raw.script, play.raw.whole_bodies = script, False
    answered = play.stage.ask(body=chat("hasty-1", pad="p" * size))
    assert (answered.status, answered.body) == (200, ANSWER)


# Clients that leave.


def leave(wire, how):
    if how == "reset-stream":
        wire.connection.reset(wire.stream)
    elif how == "close-notify":
        wire.socket.settimeout(0.2)
        with contextlib.suppress(OSError):
            wire.socket.unwrap()
    elif how == "reset":
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.socket.close()
    else:
        wire.socket.close()


@pytest.mark.parametrize("when", ["before-the-head", "after-the-head", "mid-stream", "mid-flood"])
@pytest.mark.parametrize(
    ("protocol", "how"),
    [("h1", "close"), ("h1", "reset"), ("h1", "close-notify"), ("h1", "pipelined"),
     ("h2", "close"), ("h2", "reset"), ("h2", "reset-stream")],
)  # fmt: skip
def test_a_client_that_leaves_cancels_the_upstream_call_at_once(play, protocol, how, when):
    """`pipelined` leaves another request behind the one that is answered, `mid-flood` does not read what comes."""
    gone, before = play.stage.metric("portcullis_streams_total", org="acme", end="client_gone"), play.used()
    began = threading.Event()

    def script(call):
        if when != "before-the-head":
            call.send(STREAM_HEAD)
        if when.startswith("mid"):
            call.send(chunk(event("one")))
        if when == "mid-flood":
            call.socket.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    call.send(chunk(event("x" * 65536)))
        began.set()
        call.left()

    play.raw.script = script
    wire = Wire(play.stage, protocol, chat("raw-1", stream=True) | ASKED)
    if when != "before-the-head":
        assert wire.head() == 200
    if when.startswith("mid"):
        assert wire.piece()
    assert began.wait(10)
    if how == "pipelined":
        wire.connection.send(wire.connection.head(body=chat("raw-1")))
    left = time.monotonic()
    leave(wire, how)
    eventually(lambda: play.raw.calls[0].left_at, within=3, what="the end of the upstream call")
    assert play.raw.calls[0].left_at - left < 1
    assert eventually(lambda: play.stage.metric("portcullis_streams_total", org="acme", end="client_gone") - gone) == 1
    tokens, requests = (now - then for now, then in zip(play.used(), before))
    # The input, and what was metered of the answer.
    assert requests == 1 and 0 < tokens
    assert tokens < (BIG // 3 if when == "mid-flood" else 100)
    play.raw.script = answer(whole())
    if how == "reset-stream":
        # The other streams of the connection go on.
        assert wire.connection.ask(body=chat("raw-1")).status == 200
    wire.socket.close()


@pytest.mark.parametrize("size", [0, 15_000, 200_000])
@pytest.mark.parametrize("pieces", [1, 50])
def test_requests_that_wait_behind_another_are_answered_in_their_order(play, size, pieces):
    """Sent at once or in pieces, with lengths and chunks, small and larger than what is read ahead."""

    def script(call):
        time.sleep(0.02)
        call.send(whole(json.dumps({"id": json.loads(call.body)["user"], "usage": USAGE}).encode()))
        return True

    play.raw.script = script
    with H1(play.stage.connect()) as client:
        stream = b""
        for number in range(6):
            body = json.dumps(chat("raw-1", user=f"r-{number}", pad="p" * size)).encode()
            if number % 2:
                framed = b"".join(map(chunk, [body[:10], body[10:]])) + LAST_CHUNK
                stream += client.head(body=b"", content_length=None, transfer_encoding="chunked") + framed
            else:
                stream += client.head(body=body)
        # What the gateway answers by itself is over at once.
        stream += client.head("/v1/models") * 2 + client.head("/v1/nothing") + client.head("/v1/models")
        step = len(stream) // pieces + 1
        for at in range(0, len(stream), step):
            client.send(stream[at:at + step])
        answers = []
        for _ in range(10):
            status, headers = client.read_head()
            answers.append((status, json.loads(client.read_body(headers)).get("id")))
        assert answers == [(200, f"r-{number}") for number in range(6)] + [(200, None), (200, None), (404, None), (200, None)]


def test_a_client_that_leaves_within_its_body_reaches_no_upstream(play):
    with H1(play.stage.connect()) as client:
        head = client.head(body=chat("raw-1", pad="p" * 1000))
        client.send(head[:-100])
    assert play.stage.ask(body=chat("raw-1")).status == 200
    assert len(play.raw.calls) == 1


def test_a_stream_that_moves_outlives_every_timeout(tmp_path):
    """All of them are shorter than the stream; each frame comes long before any is up."""
    upstream = Upstream()
    clocks = ["head_timeout", "body_idle_timeout", "idle_timeout", "write_timeout", "handshake_timeout"]
    listen = "\n".join(f'{clock} = "2s"' for clock in clocks)
    more = "\n".join(f'{clock} = "2s"' for clock in ["connect_timeout", "head_timeout", "idle_timeout"])
    table = Play.UPSTREAM.format(name="raw", url=f"http://127.0.0.1:{upstream.port}", dialect="openai", more=more)
    stage = Stage(tmp_path, listen=listen, more=table, orgs={"acme": Play.ACME.format(models='"raw-*"')})

    def script(call):
        call.send(STREAM_HEAD)
        for number in range(18):
            time.sleep(0.25)
            call.send(chunk(event(f"word {number}")))
        call.send(chunk(event()) + LAST_CHUNK)

    upstream.script = script
    try:
        wires = [Wire(stage, protocol, chat("raw-1", stream=True)) for protocol in ("h1", "h2")]
        for wire in wires:
            assert wire.head() == 200
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for got, clean in pool.map(Wire.rest, wires):
                assert clean and got.count(b"word") == 18 and got.endswith(event())
    finally:
        stage.close()
        upstream.close()


# Everything at once.


class Crowd:
    """Requests of every kind; the upstream's script for all of them, and what each client must see."""

    KINDS = ["json", "json", "json", "stream", "stream", "chunked", "error", "die", "early", "splitter", "cancel", "cancel-stream"]

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.wrong, self.answered = [], 0

    def request(self, number):
        kind = self.random.choice(self.KINDS)
        stream = kind in ("stream", "cancel-stream")
        body = chat("raw-1", user=f"{kind}/{number}", stream=stream)
        if kind == "early":
            body["pad"] = "p" * 100_000
        return kind, number, json.dumps(body).encode()

    @staticmethod
    def script(call):
        name = call.field("idempotency-key")[0]
        kind = name.split("/")[0]
        body = json.dumps({"id": name, "choices": [], "usage": USAGE}).encode()
        ids = JSON + b"x-request-id: %s\r\n" % name.encode()
        if kind == "die":
            return False
        if kind.startswith("cancel"):
            if kind == "cancel-stream":
                call.send(STREAM_HEAD, chunk(event(name)))
            return bool(call.left() and False)
        if kind == "early":
            # Answered before its body was read; the gateway may leave the connection now, or send the body out.
            call.send(whole(body, fields=ids))
            call.rest()
            return True
        if kind == "stream":
            call.send(STREAM_HEAD.replace(SSE, SSE + ids.split(b"\r\n", 1)[1]))
            call.send(*(chunk(event(f"{name} {word}")) for word in range(5)), chunk(event()) + LAST_CHUNK)
        elif kind == "chunked":
            head = b"HTTP/1.1 200 OK\r\n" + ids + b"transfer-encoding: chunked\r\n\r\n"
            call.send(head + chunk(body[:5]), chunk(body[5:]) + LAST_CHUNK)
        elif kind == "error":
            call.send(whole(body, b"429 Slow Down", ids))
        else:
            call.send(whole(body, fields=ids) + (POISON if kind == "splitter" else b""))
        return True

    def judge(self, kind, number, reply):
        name = f"{kind}/{number}"
        expected = {"die": 502, "error": 429}.get(kind, 200)
        right = reply.status == expected
        if kind == "die":
            right = right and reply.headers["portcullis-reason"] == "upstream_invalid"
        else:
            right = right and reply.headers["portcullis-upstream-request-id"] == name
            own = [event(f"{name} {word}") for word in range(5)] + [event()]
            right = right and (reply.body == b"".join(own) if kind == "stream" else json.loads(reply.body)["id"] == name)
        self.answered += 1
        if not right:
            self.wrong.append((name, reply.status, reply.headers, reply.body[:200]))

    def over_h1(self, stage, numbers):
        client = H1(stage.connect(timeout=30))
        for number in numbers:
            kind, number, body = self.request(number)
            client.send(client.head(body=body, idempotency_key=f"{kind}/{number}"))
            if kind.startswith("cancel"):
                if kind == "cancel-stream":
                    client.read_head()
                client.close()
                client = H1(stage.connect(timeout=30))
                continue
            status, headers = client.read_head()
            self.judge(kind, number, Reply(status, headers, client.read_body(headers)))
        client.close()

    def over_h2(self, stage, numbers, at_once=8):
        with H2(stage.connect(alpn=("h2",), timeout=30)) as client:
            open_streams, numbers = {}, iter(numbers)
            while True:
                while len(open_streams) < at_once and (number := next(numbers, None)) is not None:
                    kind, number, body = self.request(number)
                    stream = client.start(body=body, idempotency_key=f"{kind}/{number}")
                    if kind == "cancel":
                        client.reset(stream)
                    else:
                        open_streams[stream] = (kind, number)
                if not open_streams:
                    return
                client.more()
                for stream in list(open_streams):
                    one, (kind, number) = client.streams[stream], open_streams[stream]
                    if kind == "cancel-stream" and one["pieces"]:
                        client.reset(stream)
                    elif one["ended"]:
                        self.judge(kind, number, Reply(one["status"], one["headers"], b"".join(one["pieces"])))
                    else:
                        continue
                    del open_streams[stream], client.streams[stream]


def test_ten_thousand_interleaved_requests_each_get_their_own_answer(play):
    """Errors, deaths, early answers, split answers and clients that leave, over both protocols and one pool."""
    each, before = 500, play.used()

    def script(call):
        if not call.field("idempotency-key")[0].startswith("early"):
            call.rest()
        return Crowd.script(call)

    play.raw.script, play.raw.whole_bodies = script, False
    crowds = [Crowd(seed) for seed in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        runs = []
        for seed, crowd in enumerate(crowds):
            run = crowd.over_h1 if seed % 2 else crowd.over_h2
            runs.append(pool.submit(run, play.stage, range(seed * each, (seed + 1) * each)))
        for run in runs:
            run.result()
    wrong = [one for crowd in crowds for one in crowd.wrong]
    assert not wrong, (len(wrong), wrong[:3])
    assert sum(crowd.answered for crowd in crowds) > 20 * each * 3 // 4
    names = [call.field("idempotency-key")[0] for call in play.raw.calls]
    assert len(names) == len(set(names)), "a request was sent twice"
    # Cancelled before they were forwarded, some never arrive; every request that was admitted is charged once.
    assert len(names) <= play.used()[1] - before[1] <= 20 * each
