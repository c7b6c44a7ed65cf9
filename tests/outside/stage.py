"""The stage that the tests of this folder play on: certificates, a mock model and a gateway, all made anew for a test.

Nothing here judges. Ports are the system's choice and read from what the programs print; waiting is asking again until
a deadline. Every program that is started is ended by its own id when the stage closes.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("PORTCULLIS", TARGET / "release" / "portcullis")).resolve()
KEY = "operator-key"
DAY = datetime.timedelta(days=1)

CONFIG = """\
orgs = "orgs.d"
[listen]
address = "127.0.0.1:0"
certificate = "server.pem"
private_key = "server.key"
server_names = ["localhost"]
workers = 2
{listen}
[client_auth]
authorities = [{authorities}]
{client_auth}
[admin]
address = "127.0.0.1:0"
{admin}
[purpose.catalog]
research = "Work on own systems"
forbidden = "Granted to nobody"
incident = {{ text = "A live incident", case = "required" }}
[[upstream]]
name = "openai"
url = "http://127.0.0.1:{mock}"
dialect = "openai"
api_key = "env:UPSTREAM_KEY"
models = ["mock-*", "gpt-*", "kept-back"]
{upstream}
[[upstream]]
name = "anthropic"
url = "http://127.0.0.1:{mock}"
dialect = "anthropic"
api_key = "env:UPSTREAM_KEY"
models = ["claude-*"]
{upstream}
[quota]
state = "state"
{quota}
[audit]
directory = "audit"
{audit}
{more}
"""


def eventually(ask, within=10.0, every=0.01, what="it"):
    """What `ask` returns once that is true; fails loudly after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come within {within} s; the last answer was {answer!r}"
        time.sleep(every)


def replace(path, content):
    """Writes a file as careful tools do: beside it, as private as it was, then renamed over it."""
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    if path.exists():
        beside.chmod(path.stat().st_mode & 0o777)
    beside.replace(path)


class Authority:
    """A certificate authority in memory. `leaf` and `crl` write PEM files into its folder."""

    def __init__(self, folder, name, parent=None, path_length=None, key=None, digest=None):
        self.folder, self.name = pathlib.Path(folder), name
        self.key, self.digest = key or ec.generate_private_key(ec.SECP256R1()), digest or hashes.SHA256()
        signer = parent or self
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only", "digital_signature"], False)  # fmt: skip
        self.certificate = (
            x509.CertificateBuilder().subject_name(subject)
            .issuer_name(subject if parent is None else parent.certificate.subject)
            .public_key(self.key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY).not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(True, path_length), True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .sign(signer.key, signer.digest)
        )  # fmt: skip
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        (self.folder / f"{name}.pem").write_bytes(self.pem)
        self.revoked, self.number = [], 0

    def leaf(self, file, uri=None, dns=(), use=ExtendedKeyUsageOID.CLIENT_AUTH, not_before=None, not_after=None,
             ca=False, extensions=(), chain=(), common_name=None, addresses=()):  # fmt: skip
        """A certificate and its key: FILE.pem (with `chain` after it) and FILE.key (mode 0600)."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        names = [x509.UniformResourceIdentifier(uri)] if uri else []
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or file)]))
            .issuer_name(self.certificate.subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - DAY / 24).not_valid_after(not_after or now + 7 * DAY)
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )  # fmt: skip
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only", "crl_sign"], False)  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=ca, **usage), True)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self.key, self.digest)
        own = certificate.public_bytes(serialization.Encoding.PEM)
        (self.folder / f"{file}.pem").write_bytes(own + b"".join(one.pem for one in chain))
        secret = self.folder / f"{file}.key"
        secret.touch(0o600)
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()))  # fmt: skip
        secret.chmod(0o600)
        return certificate

    def crl(self, file=None, revoked=None, number=None, last=None, upcoming=None, key=None):
        """Writes the list of what is revoked, by a rename; numbers go up by themselves. Returns its path."""
        now = datetime.datetime.now(datetime.timezone.utc)
        self.number = number if number is not None else self.number + 1
        self.revoked += revoked or []
        builder = (
            x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
            .last_update(last or now - DAY / 24).next_update(upcoming or now + 7 * DAY)
            .add_extension(x509.CRLNumber(self.number), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )  # fmt: skip
        for certificate in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        path = self.folder / (file or f"{self.name}.crl")
        signed = builder.sign(key or self.key, self.digest)
        replace(path, signed.public_bytes(serialization.Encoding.PEM))
        return path


class Program:
    """A program of ours in the background. Its two outputs stand in one file, in the order written, but for a `stderr`."""

    def __init__(self, folder, name, *arguments, env=None, preexec_fn=None, stderr=None):
        self.log_file = pathlib.Path(folder) / f"{name}.log"
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [BINARY, *map(str, arguments)], cwd=folder, env=os.environ | {"UPSTREAM_KEY": KEY} | (env or {}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=stderr or log, preexec_fn=preexec_fn,
            )  # fmt: skip

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def printed(self, pattern, within=20.0):
        """The first group of `pattern` in what it printed, as soon as it is there."""

        def ask():
            found = re.search(pattern, self.log)
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            return found

        return eventually(ask, within, what=f"{pattern!r} in {self.log_file}").group(1)

    def signal(self, what):
        self.process.send_signal(what)

    def wait(self, within=30.0):
        return self.process.wait(timeout=within)

    def end(self):
        """SIGTERM, and what it exited with."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not stop within 30 s:\n{self.log[-4000:]}") from None

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


class Reply:
    """What a plain HTTP request got."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


def fetch(url, data=None, method=None, headers=None, timeout=10):
    """A request to the admin listener or the mock model; an error status is an answer like any other."""
    if isinstance(data, (dict, list)):
        data, headers = json.dumps(data).encode(), {"content-type": "application/json"} | (headers or {})
    asked = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return Reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return Reply(refused.code, refused.headers, refused.read())


class Stage:
    """A mock model and a gateway in `folder`, with the organizations `acme` and `globex`.

    `config` fills the places of CONFIG (`listen`, `quota`, `audit`, `more`, …); `orgs` maps a file's stem to its TOML.
    """

    ACME = """\
id = "acme"
name = "Acme CERT"
purposes = ["research", "incident"]
models = ["mock-*", "gpt-*", "claude-*"]
[[identity]]
authority = "partners"
uri = "spiffe://partners/acme"
"""
    GLOBEX = ACME.replace("acme", "globex").replace("Acme", "Globex")

    def __init__(self, folder, orgs=None, start=True, mock=("--ttft", "0ms", "--tps", "0"), **config):
        self.folder = pathlib.Path(folder)
        (self.folder / "orgs.d").mkdir(parents=True, exist_ok=True)
        self.servers, self.partners = Authority(self.folder, "servers"), Authority(self.folder, "partners")
        self.servers.leaf("server", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
        self.acme = self.partners.leaf("acme", uri="spiffe://partners/acme")
        self.globex = self.partners.leaf("globex", uri="spiffe://partners/globex")
        self.partners.crl()
        self.mock = Program(self.folder, "mock", "mock", "--listen", "127.0.0.1:0", *mock)
        self.mock_url = "http://" + self.mock.printed(r"(127\.0\.0\.1:\d+)")
        self.config = {"authorities": '{ name = "partners", file = "partners.pem", crl = "partners.crl" }'} | config
        self.write_config()
        for name, text in (orgs or {"acme": self.ACME, "globex": self.GLOBEX}).items():
            self.write_org(name, text)
        self.gateway = None
        if start:
            self.start()

    def write_config(self, **changed):
        self.config |= changed
        places = dict.fromkeys(re.findall(r"(?<!{){(\w+)}", CONFIG), "")
        places |= {"mock": self.mock_url.rsplit(":", 1)[1]} | self.config
        replace(self.folder / "portcullis.toml", CONFIG.format(**places))

    def write_org(self, name, text):
        replace(self.folder / "orgs.d" / f"{name}.toml", text)

    def start(self, **how):
        self.gateway = Program(self.folder, "gateway", "run", "-c", "portcullis.toml", **how)
        self.port = int(self.gateway.printed(r"partners on https://\S+:(\d+)"))
        self.admin = "http://" + self.gateway.printed(r"admin on (?:http://)?(127\.0\.0\.1:\d+)")
        eventually(lambda: fetch(self.admin + "/readyz").status == 200, what="readiness")
        return self.gateway

    def close(self):
        for program in (self.gateway, self.mock):
            if program is not None:
                program.kill()

    # What the operator sees.

    def metric(self, name, **labels):
        """The sum of a metric's series that carry these labels."""
        total = 0.0
        for line in fetch(self.admin + "/metrics").body.decode().splitlines():
            found = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                own = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
                if all(own.get(key) == value for key, value in labels.items()):
                    total += float(found[3])
        return total

    def status(self):
        return fetch(self.admin + "/status.json").json

    def limit(self, organization, identifier):
        """One limit of an organization, as status.json tells it."""
        found = [org for org in self.status()["organizations"] if org["id"] == organization]
        return next(one for one in found[0]["limits"] if one["id"] == identifier)

    def audit(self):
        """Every line of the log that is not yet compressed."""
        files = sorted((self.folder / "audit").glob("audit-*.jsonl"))
        # A line that is still being written has no end yet.
        whole = (file.read_text().rpartition("\n")[0] for file in files)
        return [json.loads(line) for text in whole for line in text.splitlines()]

    def ledger(self):
        """What the mock model saw."""
        return fetch(self.mock_url + "/mock/ledger").json

    def run(self, *arguments, check=False, env=None):
        """A command of ours to its end, against this gateway's admin listener."""
        admin = {"PORTCULLIS_ADMIN": self.admin} if self.gateway else {}
        return subprocess.run([BINARY, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True,
                              env=os.environ | admin | {"UPSTREAM_KEY": KEY} | (env or {}), check=check, timeout=60)  # fmt: skip

    # What a partner does.

    def tls(self, certificate="acme", alpn=("http/1.1",)):
        context = ssl.create_default_context(cafile=self.folder / "servers.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate:
            context.load_cert_chain(self.folder / f"{certificate}.pem", self.folder / f"{certificate}.key")
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def connect(self, certificate="acme", alpn=("http/1.1",), server_name="localhost", timeout=10):
        """A TLS connection whose handshake is over on our side; a refusal shows at the first read."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return self.tls(certificate, alpn).wrap_socket(plain, server_hostname=server_name)
        except BaseException:
            plain.close()
            raise

    def ask(self, path="/v1/chat/completions", body=None, certificate="acme", connection=None, **headers):
        """One request over HTTP/1.1, answered whole. Keywords are headers (`_` for `-`); None leaves a default out."""
        with contextlib.ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(H1(self.connect(certificate)))
            return connection.ask(path, body, **headers)


def door_is_open(one):
    """Whether the partners' listener lets anybody in."""
    try:
        socket.create_connection(("127.0.0.1", one.port), timeout=2).close()
    except (ConnectionRefusedError, ConnectionResetError):  # or it closed while we stood before it
        return False
    return True


def door_closes(one):
    """Waits until it lets nobody in: the log's word that a drain begins comes before that."""
    eventually(lambda: not door_is_open(one), what="the closed door")


def chat(model="mock-1", **more):
    """A small chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]} | more


class H1:
    """An HTTP/1.1 connection that hides nothing: heads are written as given, frames are seen as they come."""

    def __init__(self, socket):
        self.socket, self.buffer = socket, b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def head(self, path="/v1/chat/completions", body=None, **headers):
        """The bytes of a proper request."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        fields = {"host": "localhost"}
        if body is not None:
            fields |= {"portcullis-purpose": "research", "content-type": "application/json"}
            fields["content-length"] = str(len(body))
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        method = fields.pop(":method", None) or ("GET" if body is None else "POST")
        lines = [f"{method} {path} HTTP/1.1"] + [f"{name}: {value}" for name, value in fields.items() if value is not None]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")

    def more(self):
        """Reads once; false at the end."""
        got = self.socket.recv(65536)
        self.buffer += got
        return bool(got)

    def read_head(self):
        """Status and headers (lower case, the last of equal names wins), leaving the body in the buffer."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                raise EOFError(f"the connection ended within a head: {self.buffer!r}")
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in headers.items()}

    def read_chunk(self):
        """One chunk of a chunked body; b"" is the last one, None an end without it."""
        while b"\r\n" not in self.buffer:
            if not self.more():
                return None
        size, rest = self.buffer.split(b"\r\n", 1)
        wanted = int(size, 16)
        while len(rest) < wanted + 2:
            self.buffer = rest
            if not self.more():
                return None
            rest = self.buffer
        self.buffer = rest[wanted + 2:]
        return rest[:wanted]

    def read_body(self, headers):
        if headers.get("transfer-encoding") == "chunked":
            pieces = []
            while (piece := self.read_chunk()) != b"":
                if piece is None:
                    raise EOFError(f"no last chunk after {b''.join(pieces)[-200:]!r}")
                pieces.append(piece)
            return b"".join(pieces)
        while len(self.buffer) < int(headers.get("content-length", 0)):
            if not self.more():
                raise EOFError("the body was cut short")
        size = int(headers.get("content-length", 0))
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return body

    def ask(self, path="/v1/chat/completions", body=None, **headers):
        self.send(self.head(path, body, **headers))
        status, fields = self.read_head()
        return Reply(status, fields, self.read_body(fields))


class Streaming:
    """An open stream on a connection of its own, read by a thread: `events` with the times they came, `ended` how."""

    def __init__(
        self, stage, model="mock-tokens-100000.tps-50", certificate="acme", path="/v1/chat/completions", maximum=90000,
        **headers,
    ):  # fmt: skip
        self.connection = H1(stage.connect(certificate))
        most = {"max_tokens": maximum} if maximum else {}
        self.connection.send(self.connection.head(path, chat(model, stream=True, **most), **headers))
        self.status, self.headers = self.connection.read_head()
        assert self.status == 200, (self.status, self.connection.read_body(self.headers))
        self.pieces, self.ended, self.ended_at = [], None, None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            while (piece := self.connection.read_chunk()) not in (b"", None):
                self.pieces.append((time.monotonic(), piece))
            self.ended = "complete" if piece == b"" else "cut"
        except OSError as error:
            self.ended = type(error).__name__
        self.ended_at = time.monotonic()

    @property
    def text(self):
        return b"".join(piece for _, piece in self.pieces).decode()

    def wait(self, within=10.0):
        self.thread.join(within)
        assert self.ended, "the stream is still open"
        return self.ended

    def close(self):
        # The reader must be gone first: the next socket gets the same descriptor, and the reader would read from it.
        with contextlib.suppress(OSError):
            self.connection.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.connection.close()


def midday():
    """A time zone in which it is about noon now: no test's day or month ends while it runs."""
    ahead = 12 - datetime.datetime.now(datetime.timezone.utc).hour
    return f"Etc/GMT{-ahead:+d}"


def memory(stage):
    """Resident bytes of the gateway."""
    return _told(stage, "VmRSS")


def most_memory(stage):
    """The most that ever was resident, by the kernel's own account: no peak falls between two looks."""
    return _told(stage, "VmHWM")


def _told(stage, name):
    status = pathlib.Path(f"/proc/{stage.gateway.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) << 10
