"""The handshake: who is let in, who is turned away and how that is told, and what must not leak or be resumed.

Certificates are real and made here; results are read from `portcullis_tls_handshakes_total`, which must move by exactly
one for each attempt.
"""

import contextlib
import datetime
import json
import os
import re
import socket
import ssl
import struct
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from http2 import H2
from stage import DAY, H1, Authority, Stage, Streaming, chat, eventually, fetch

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
NOW = datetime.datetime.now(datetime.timezone.utc)
ACME = "spiffe://partners/acme"
RESULTS = ["ok", "no_certificate", "unknown_issuer", "expired", "not_yet_valid", "revoked", "bad_certificate",
           "server_name", "version", "timeout", "shed", "other"]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One gateway for every handshake that changes nothing."""
    one = Stage(tmp_path_factory.mktemp("tls"))
    yield one
    one.close()


def results(stage):
    """How handshakes ended so far."""
    metrics = fetch(stage.admin + "/metrics").body.decode()
    found = re.findall(r'^portcullis_tls_handshakes_total\{result="(\w+)"\} (\d+)$', metrics, re.MULTILINE)
    return {name: int(count) for name, count in found if int(count)}


class Counted:
    """Within it, exactly one handshake ends, with this result."""

    def __init__(self, stage, result):
        self.stage, self.result = stage, result

    def __enter__(self):
        self.before = results(self.stage)

    def __exit__(self, kind, *_):
        if kind is None:
            wanted = self.before | {self.result: self.before.get(self.result, 0) + 1}
            eventually(lambda: results(self.stage) != self.before, what=f"a handshake counted as {self.result}")
            assert results(self.stage) == wanted


def alert(stage, certificate="acme", server_name="localhost", context=None):
    """The alert that a handshake ends with."""
    context = context or stage.tls(certificate)
    context.check_hostname = server_name is not None
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as plain, pytest.raises(ssl.SSLError) as refused:
        with context.wrap_socket(plain, server_hostname=server_name) as connection:
            # In TLS 1.3 the client is done before the server has looked at its certificate.
            assert connection.recv(1) == b"", "the gateway spoke first"
            pytest.fail("closed without an alert")
    return refused.value.reason


def write_key(path, key):
    path.touch(0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption()))  # fmt: skip


def minted(authority, file, key=None, drop=(), add=(), signer=None, name=None):
    """A leaf as acme's, except for its key, its extensions, or who signs it and what that one is called."""
    template = authority.leaf(file, uri=ACME)
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder().subject_name(template.subject)
        .issuer_name(name or (template.subject if signer else template.issuer))
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(template.not_valid_before_utc).not_valid_after(template.not_valid_after_utc)
    )  # fmt: skip
    kept = [(one.value, one.critical) for one in template.extensions if not isinstance(one.value, drop)]
    for extension, critical in [*kept, *add]:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer or authority.key, hashes.SHA256())
    (authority.folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_key(authority.folder / f"{file}.key", key)
    return certificate


def usage(**true):
    """A keyUsage with only these bits."""
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]  # fmt: skip
    return x509.KeyUsage(**dict.fromkeys(names, False) | true)


# Every leaf below is acme's but for the one flaw that its name tells.


def expired(stage):
    stage.partners.leaf("tried", uri=ACME, not_before=NOW - 2 * DAY, not_after=NOW - DAY / 24)


def not_yet_valid(stage):
    stage.partners.leaf("tried", uri=ACME, not_before=NOW + DAY, not_after=NOW + 2 * DAY)


def foreign(stage):
    Authority(stage.folder, "strangers").leaf("tried", uri=ACME)


def foreign_with_the_same_name(stage):
    apart = stage.folder / "apart"
    apart.mkdir(exist_ok=True)
    Authority(apart, "partners").leaf("tried", uri=ACME)
    for file in ("tried.pem", "tried.key"):
        os.replace(apart / file, stage.folder / file)


def self_signed(stage):
    key = ec.generate_private_key(ec.SECP256R1())
    minted(stage.partners, "tried", key=key, signer=key)


def with_a_long_name(stage):
    """Whoever signs it may call himself anything."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "acme\nglobex " + "x" * 50)] * 100)
    minted(stage.partners, "tried", key=key, signer=key, name=name)


def under_an_intermediate_of_its_own(stage):
    """The chain is sound and is presented whole, but the operator never saw the intermediate."""
    between = Authority(stage.folder, "between", parent=stage.partners)
    between.leaf("tried", uri=ACME, chain=[between])


def ca_as_leaf(stage):
    stage.partners.leaf("tried", uri=ACME, ca=True)


def for_servers_only(stage):
    stage.partners.leaf("tried", uri=ACME, use=SERVER)


def for_servers_too(stage):
    minted(stage.partners, "tried", drop=x509.ExtendedKeyUsage, add=[(x509.ExtendedKeyUsage([CLIENT, SERVER]), False)])


def for_any_use(stage):
    anything = x509.ExtendedKeyUsage([CLIENT, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    minted(stage.partners, "tried", drop=x509.ExtendedKeyUsage, add=[(anything, False)])


def without_extended_key_usage(stage):
    stage.partners.leaf("tried", uri=ACME, use=None)


def without_key_usage(stage):
    minted(stage.partners, "tried", drop=x509.KeyUsage)


def for_encipherment_only(stage):
    minted(stage.partners, "tried", drop=x509.KeyUsage, add=[(usage(key_encipherment=True), True)])


def that_signs_lists(stage):
    minted(stage.partners, "tried", drop=x509.KeyUsage, add=[(usage(digital_signature=True, crl_sign=True), True)])


def with_a_short_rsa_key(stage):
    minted(stage.partners, "tried", rsa.generate_private_key(65537, 1024))


def on_an_unusual_curve(stage):
    minted(stage.partners, "tried", ec.generate_private_key(ec.SECP521R1()))


def signed_with_sha1(stage):
    """Our library refuses to make one; openssl does not, from a certificate that is still self-signed."""
    self_signed(stage)
    write_key(stage.folder / "partners.key", stage.partners.key)
    openssl(stage, "x509", "-in", "tried.pem", "-CA", "partners.pem", "-CAkey", "partners.key", "-sha1", "-out", "weak.pem")
    assert "ecdsa-with-SHA1" in openssl(stage, "x509", "-in", "weak.pem", "-noout", "-text")
    os.replace(stage.folder / "weak.pem", stage.folder / "tried.pem")


def with_two_uris(stage):
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in (ACME, ACME + "/too")])
    minted(stage.partners, "tried", drop=x509.SubjectAlternativeName, add=[(names, False)])


def with_an_unknown_critical_extension(stage):
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    stage.partners.leaf("tried", uri=ACME, extensions=[(odd, True)])


def with_a_nul_in_its_uri(stage):
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier._init_without_validation(ACME + "\0.else")])
    minted(stage.partners, "tried", drop=x509.SubjectAlternativeName, add=[(names, False)])


def revoked_by_its_authority(stage):
    stage.partners.crl(revoked=[stage.partners.leaf("tried", uri=ACME)])
    assert fetch(stage.admin + "/-/reload", method="POST").status == 200


def revoked_by_hand(stage):
    stage.partners.leaf("tried", uri=ACME)
    stage.run("revoke", "--cert", "tried.pem", check=True)


TURNED_AWAY = [
    (expired, "expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    (not_yet_valid, "not_yet_valid", None),
    (foreign, "unknown_issuer", "TLSV1_ALERT_UNKNOWN_CA"),
    (foreign_with_the_same_name, "unknown_issuer", "TLSV1_ALERT_UNKNOWN_CA"),
    (self_signed, "unknown_issuer", None),
    (with_a_long_name, "unknown_issuer", None),
    (under_an_intermediate_of_its_own, "unknown_issuer", "TLSV1_ALERT_UNKNOWN_CA"),
    (ca_as_leaf, "bad_certificate", None),
    (for_servers_only, "bad_certificate", None),
    (for_servers_too, "bad_certificate", None),
    (for_any_use, "bad_certificate", None),
    (without_extended_key_usage, "bad_certificate", None),
    (without_key_usage, "bad_certificate", None),
    (for_encipherment_only, "bad_certificate", None),
    (that_signs_lists, "bad_certificate", None),
    (with_a_short_rsa_key, "bad_certificate", None),
    (on_an_unusual_curve, "bad_certificate", None),
    (signed_with_sha1, "bad_certificate", None),
    (with_two_uris, "bad_certificate", None),
    (with_an_unknown_critical_extension, "bad_certificate", None),
    (with_a_nul_in_its_uri, "bad_certificate", None),
    (revoked_by_its_authority, "revoked", "SSLV3_ALERT_CERTIFICATE_REVOKED"),
    (revoked_by_hand, "revoked", "SSLV3_ALERT_CERTIFICATE_REVOKED"),
]


@pytest.mark.parametrize("make, result, expected", TURNED_AWAY, ids=[make.__name__ for make, *_ in TURNED_AWAY])
def test_a_flawed_certificate_meets_an_alert_is_counted_and_recorded(shared, make, result, expected):
    make(shared)
    context = shared.tls(None)
    # Our own library must be willing to show what the gateway is to refuse.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(shared.folder / "tried.pem", shared.folder / "tried.key")
    with Counted(shared, result):
        said = alert(shared, context=context)
    assert "ALERT" in said and said == (expected or said)
    tried = x509.load_pem_x509_certificate((shared.folder / "tried.pem").read_bytes())
    # By what was shown: the line of another test's handshake may only come now.
    lines = eventually(lambda: refusals(shared, tried), what="the audit line")
    assert [line["result"] for line in lines] == [result]
    assert lines[0]["peer"].startswith("127.0.0.1:") and "organization" not in lines[0] and "certificate" not in lines[0]
    shown = lines[0]["presented"]
    assert int(shown["serial"], 16) == tried.serial_number
    assert 0 < len(shown["issuer"]) <= 200 and shown["issuer"].isprintable()
    # Whose it is, is said only of what an authority signed.
    known = ("partners", "acme") if result in ("expired", "revoked") else (None, None)
    assert (shown.get("authority"), shown.get("organization")) == known
    report = json.loads(shared.run("audit", "report", "--org", "acme", "--dir", "audit", "--json", check=True).stdout)["report"]
    assert report["handshakes"].get(result, 0) == sum(
        line["result"] == result and line.get("presented", {}).get("organization") == "acme" for line in refusals(shared))
    assert report["total"]["refused"] == 0


def refusals(stage, certificate=None):
    """The audit lines of refused handshakes, or of those in which this certificate was shown."""
    lines = [line for line in stage.audit() if line["kind"] == "handshake_refused"]
    digest = certificate and certificate.fingerprint(hashes.SHA256()).hex()
    return [line for line in lines if not digest or line.get("presented", {}).get("sha256") == digest]


@pytest.mark.parametrize("key", [
    ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1()),
    rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate(),
], ids=["P-256", "P-384", "RSA-2048", "Ed25519"])  # fmt: skip
def test_a_right_certificate_is_let_in(shared, key):
    minted(shared.partners, "right", key)
    with Counted(shared, "ok"):
        answer = shared.ask("/portcullis/v1/whoami", certificate="right")
    assert (answer.status, answer.json["organization"]) == (200, "acme")


def test_a_certificate_without_its_key_is_worth_nothing(shared):
    """A certificate is public. The key file claims acme's public key, so that our own library does not notice."""

    def part(tag, content):
        length = len(content).to_bytes(1, "big") if len(content) < 128 else b"\x81" + len(content).to_bytes(1, "big")
        return tag + length + content

    stolen = shared.acme.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    own = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")
    curve = part(b"\xa0", bytes.fromhex("06082a8648ce3d030107"))
    key = part(b"\x30", part(b"\x02", b"\1") + part(b"\x04", own) + curve + part(b"\xa1", part(b"\x03", b"\0" + stolen)))
    (shared.folder / "stolen.key").write_text(ssl.DER_cert_to_PEM_cert(key).replace("CERTIFICATE", "EC PRIVATE KEY"))
    (shared.folder / "stolen.pem").write_bytes((shared.folder / "acme.pem").read_bytes())

    def owners():
        return [line["presented"]["organization"] for line in refusals(shared, shared.acme)]

    for times in (1, 2):
        with Counted(shared, "other"):
            assert alert(shared, "stolen") == "TLSV1_ALERT_DECRYPT_ERROR"
        eventually(lambda: owners() == ["acme"] * times, what="the certificate that was shown")  # noqa: B023
        # The second time its verdict is known already.
        assert shared.ask("/portcullis/v1/whoami").status == 200


def test_a_longest_lifetime_is_kept_where_it_is_set(stage):
    one = stage(client_auth='max_certificate_lifetime = "2h"')
    now = datetime.datetime.now(datetime.timezone.utc)
    one.partners.leaf("brief", uri=ACME, not_after=now + DAY / 24 / 2)
    assert one.ask("/portcullis/v1/whoami", certificate="brief").status == 200
    with Counted(one, "bad_certificate"):
        assert "ALERT" in alert(one)


def test_an_authority_that_may_certify_servers_too_lets_in_what_spire_issues_and_no_more(stage):
    one = stage()
    for_servers_too(one)
    with Counted(one, "bad_certificate"):
        assert "ALERT" in alert(one, "tried")
    explained = one.run("explain", "-c", "portcullis.toml", "--cert", "tried.pem", "--purpose", "research")
    for told in (explained.stdout, one.run("certs", "show", "tried.pem").stdout):
        assert "serverAuth" in told and "set allow_server_auth" in told, told
    strict = one.config["authorities"]
    one.write_config(authorities=strict.replace(" }", ", allow_server_auth = true }"))
    one.run("reload", check=True)
    assert "client_auth.allow_server_auth.partners = true" in one.run("config", "show", "-c", "portcullis.toml").stdout
    assert one.run("explain", "-c", "portcullis.toml", "--cert", "tried.pem", "--purpose", "research").returncode == 0
    with H1(one.connect("tried")) as kept:
        assert kept.ask("/portcullis/v1/whoami").status == 200
        for_servers_only(one)
        with Counted(one, "bad_certificate"):
            assert "ALERT" in alert(one, "tried")
        one.write_config(authorities=strict)
        one.run("reload", check=True)
        assert not kept.more(), "what let it in is gone"


def test_without_a_certificate_nobody_gets_in(shared):
    with Counted(shared, "no_certificate"):
        assert alert(shared, None) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


@pytest.mark.parametrize("name", [None, "elsewhere.example", "localhost.example", "xn--lcalhost-1ya"])
def test_an_unserved_server_name_is_refused_before_any_certificate_is_shown(shared, name):
    context = shared.tls()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Counted(shared, "server_name"), socket.create_connection(("127.0.0.1", shared.port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False) as connection:
            with pytest.raises(ssl.SSLError, match="(?i)alert|unrecognized"):
                connection.do_handshake()
            with pytest.raises(ValueError, match="handshake not done"):
                connection.getpeercert()


def test_an_address_as_server_name_is_refused(shared):
    with Counted(shared, "server_name"):
        said = s_client(shared, "-servername", "127.0.0.1")
    assert "no peer certificate available" in said and "alert" in said


def test_server_names_are_compared_without_case(shared):
    with Counted(shared, "ok"), H1(shared.connect(server_name="LOCALHOST")) as connection:
        assert connection.ask("/portcullis/v1/whoami").status == 200


def test_tls_1_2_is_not_spoken(shared):
    context = shared.tls()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Counted(shared, "version"), pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
        context.wrap_socket(socket.create_connection(("127.0.0.1", shared.port), timeout=10), server_hostname="localhost")


def test_what_is_not_tls_is_counted_as_other(shared):
    with Counted(shared, "other"), socket.create_connection(("127.0.0.1", shared.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP" not in plain.recv(1000)


@pytest.mark.parametrize("written", [0, 40, 10000], ids=["before", "within", "after"])
def test_a_client_that_leaves_around_its_hello_is_counted_once(shared, written):
    with Counted(shared, "other"), socket.create_connection(("127.0.0.1", shared.port), timeout=10) as plain:
        plain.sendall(hello()[:written])
        if written > 1000:
            plain.recv(1000)
        plain.close()


def test_silence_is_ended_and_counted_as_timeout(stage):
    one = stage(listen='handshake_timeout = "200ms"')
    with Counted(one, "timeout"), socket.create_connection(("127.0.0.1", one.port), timeout=5) as plain:
        assert plain.recv(1) == b""
    with Counted(one, "timeout"), socket.create_connection(("127.0.0.1", one.port), timeout=5) as plain:
        # Whoever is late with it finds a closed door, which resets the connection.
        with contextlib.suppress(ConnectionError):
            plain.sendall(hello()[:40])
            assert plain.recv(1) == b""


def test_more_connections_than_there_is_room_for_are_shed(stage):
    one = stage(listen="max_connections = 1")
    with H1(one.connect()) as held:
        assert held.ask("/portcullis/v1/whoami").status == 200
        with Counted(one, "shed"), socket.create_connection(("127.0.0.1", one.port), timeout=5) as plain:
            assert plain.recv(1) == b""
        assert held.ask("/portcullis/v1/whoami").status == 200


def test_every_result_has_its_series_before_it_happens(shared):
    metrics = fetch(shared.admin + "/metrics").body.decode()
    assert set(re.findall(r'portcullis_tls_handshakes_total\{result="(\w+)"', metrics)) == set(RESULTS)


# What a handshake must not give away, and must not shorten.


def openssl(stage, *arguments):
    return subprocess.run(["openssl", *arguments], cwd=stage.folder, check=True, capture_output=True, text=True).stdout


def s_client(stage, *arguments, certificate="acme", said=""):
    """What openssl's client says about a connection on which `said` is sent."""
    own = ["-cert", f"{certificate}.pem", "-key", f"{certificate}.key"] if certificate else []
    name = [] if "-servername" in arguments else ["-servername", "localhost"]
    ran = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{stage.port}", "-CAfile", "servers.pem", *own, *name,
                          *arguments], cwd=stage.folder, input=said, capture_output=True, text=True, timeout=20)  # fmt: skip
    return ran.stdout + ran.stderr


WHOAMI = "GET /portcullis/v1/whoami HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def test_the_partners_authorities_are_not_told_to_strangers(shared):
    with Counted(shared, "no_certificate"):
        said = s_client(shared, certificate=None)
    assert "No client certificate CA names sent" in said
    assert "partners" not in said


def test_no_session_is_handed_out_and_none_is_taken_back(shared):
    said = s_client(shared, "-sess_out", "session.pem", "-ign_eof", said=WHOAMI)
    assert '"organization":"acme"' in said and "New, TLSv1.3" in said
    assert "Session Ticket arrived" not in said
    session = shared.folder / "session.pem"
    if session.exists():
        again = s_client(shared, "-sess_in", "session.pem", "-ign_eof", said=WHOAMI)
        assert "New, TLSv1.3" in again and "Reused" not in again


def hello(groups=((0x001D, bytes([9]) + bytes(31)),), ticket=False):
    """A ClientHello written by hand, with key shares in these groups and, if asked, a ticket and early data."""

    def vector(data, size):
        return len(data).to_bytes(size, "big") + data

    def extension(kind, data):
        return struct.pack(">H", kind) + vector(data, 2)

    shares = b"".join(struct.pack(">H", group) + vector(share, 2) for group, share in groups)
    extensions = [
        extension(0, vector(b"\0" + vector(b"localhost", 2), 2)),
        extension(10, vector(b"".join(struct.pack(">H", group) for group, _ in groups), 2)),
        extension(13, vector(bytes.fromhex("0403080408070503"), 2)),
        extension(43, vector(bytes.fromhex("0304"), 1)),
        extension(45, vector(b"\1", 1)),
        extension(51, vector(shares, 2)),
    ]
    if ticket:
        identity = vector(b"a ticket of another day".ljust(64, b"."), 2) + bytes(4)
        extensions += [extension(42, b""), extension(41, vector(identity, 2) + vector(vector(bytes(32), 1), 2))]
    body = b"\x03\x03" + os.urandom(32) + vector(os.urandom(32), 1) + vector(bytes.fromhex("13011302"), 2) + vector(b"\0", 1)
    body += vector(b"".join(extensions), 2)
    return b"\x16\x03\x01" + vector(b"\1" + vector(body, 3), 2)


def server_hello(stage, written):
    """The extensions of the ServerHello that answers these bytes."""
    # Who leaves after that is counted, too: before the next handshake, or that one's count is not what it should be.
    with Counted(stage, "other"):
        with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as plain, plain.makefile("rb") as reader:
            plain.sendall(written)
            kind, _, size = struct.unpack(">BHH", reader.read(5))
            message = reader.read(size)
    assert (kind, message[0]) == (22, 2), message[:50]
    # Type and length, version, random, session id, cipher suite, compression; then the extensions.
    rest = message[4 + 2 + 32:]
    rest = rest[1 + rest[0] + 2 + 1 + 2:]
    found = {}
    while rest:
        number, length = struct.unpack(">HH", rest[:4])
        found[number], rest = rest[4:4 + length], rest[4 + length:]
    return found


def test_a_ticket_with_early_data_gets_a_full_handshake(shared):
    """The extension pre_shared_key (41) in the answer would mean that the session is resumed, without any certificate."""
    answered = server_hello(shared, hello(ticket=True))
    assert 51 in answered and 41 not in answered


def test_the_post_quantum_group_is_preferred(shared):
    """X25519MLKEM768 is 0x11ec. Its share: an encapsulation key (all zero is a valid one) and an X25519 key."""
    x25519 = bytes([9]) + bytes(31)
    both = ((0x11EC, bytes(1184) + x25519), (0x001D, x25519))
    group, size = struct.unpack(">HH", server_hello(shared, hello(both))[51][:4])
    assert (hex(group), size) == ("0x11ec", 1088 + 32)
    assert server_hello(shared, hello())[51][:2] == b"\x00\x1d", "X25519 alone is served too"


# A missing certificate, explained.


@pytest.fixture(scope="module")
def explaining(tmp_path_factory):
    one = Stage(tmp_path_factory.mktemp("explain"), client_auth='on_missing = "explain"')
    yield one
    one.close()


@pytest.mark.parametrize("path, body, headers", [
    ("/v1/chat/completions", chat(), {}),
    ("/portcullis/v1/whoami", None, {}),
    ("/nowhere", None, {}),
    ("/v1/chat/completions", chat(), {"host": "elsewhere.example"}),
], ids=["chat", "whoami", "no such route", "another host"])  # fmt: skip
def test_explain_answers_401_whatever_is_asked_and_closes(explaining, path, body, headers):
    asked = explaining.ledger()["totals"]["requests"]
    with Counted(explaining, "no_certificate"), H1(explaining.connect(None)) as connection:
        answer = connection.ask(path, body, **headers)
        assert not connection.more(), "the connection stays open"
    assert_explained(answer)
    assert explaining.ledger()["totals"]["requests"] == asked


def assert_explained(answer):
    assert answer.status == 401
    assert answer.headers["portcullis-reason"] == "client_certificate_required"
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == "authentication_error"
    assert answer.json["error"]["code"] == "client_certificate_required"
    assert answer.json["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]


def test_explain_reads_no_body(explaining):
    with H1(explaining.connect(None)) as connection:
        connection.send(connection.head("/v1/chat/completions", b"", content_length="1000000"))
        status, headers = connection.read_head()
        assert (status, headers["portcullis-reason"]) == (401, "client_certificate_required")


def test_explain_closes_over_http2_too(explaining):
    with H2(explaining, None) as connection:
        assert_explained(connection.ask(body=chat()))
        eventually(lambda: connection.over, what="the end of the connection")


def test_explain_forgives_a_missing_certificate_and_nothing_else(explaining):
    Authority(explaining.folder, "strangers").leaf("stranger", uri=ACME)
    with Counted(explaining, "unknown_issuer"):
        assert alert(explaining, "stranger") == "TLSV1_ALERT_UNKNOWN_CA"
    with Counted(explaining, "server_name"):
        assert "alert" in s_client(explaining, "-servername", "elsewhere.example", certificate=None)
    with Counted(explaining, "ok"):
        assert explaining.ask(body=chat()).status == 200


# The gateway's own certificate.


def shown(stage):
    """The certificate that a new handshake shows."""
    with stage.connect() as connection:
        return connection.getpeercert(binary_form=True)


def der(certificate):
    return certificate.public_bytes(serialization.Encoding.DER)


def test_a_new_server_certificate_takes_effect_without_touching_what_flows(stage):
    one = stage()
    old, new = shown(one), one.servers.leaf("next", dns=["localhost"], use=SERVER)
    with H1(one.connect()) as idle, H2(one) as second:
        assert idle.ask("/portcullis/v1/whoami").status == 200
        streams = [Streaming(one), second.stream(chat("mock-tokens-100000.tps-50", stream=True, max_tokens=90000))]
        for kind in ("key", "pem"):
            os.replace(one.folder / f"next.{kind}", one.folder / f"server.{kind}")
        seen = set()

        def fresh():
            seen.add(shown(one))
            return der(new) in seen

        eventually(fresh, what="the new certificate")
        assert seen <= {old, der(new)}
        assert shown(one) == der(new), "no way back"
        before = [len(stream.pieces) for stream in streams]
        eventually(lambda: all(len(s.pieces) > n + 5 for s, n in zip(streams, before)), what="more of both streams")
        assert idle.ask(body=chat()).status == 200
        assert second.ask(body=chat()).status == 200
        eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 1, what="a successful reload")
        expiry = new.not_valid_after_utc.timestamp()
        # Handshakes have the new policy a moment before its figures are told.
        told = "portcullis_tls_server_cert_not_after_timestamp_seconds"
        eventually(lambda: one.metric(told) == expiry, what="the end of the new certificate")


def test_a_key_of_another_certificate_is_refused_and_nothing_changes(stage):
    one = stage()
    good, generation = shown(one), one.status()["generation"]
    stream = Streaming(one)
    one.servers.leaf("other", dns=["localhost"], use=SERVER)
    os.replace(one.folder / "other.key", one.folder / "server.key")
    refused = fetch(one.admin + "/-/reload", method="POST")
    assert refused.status == 422
    lines = (one.folder / "portcullis.toml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "private_key" in text)
    assert re.search(rf"portcullis\.toml:{line}:\d+", refused.json["text"]), refused.json["text"]
    assert "does not belong to the certificate" in refused.json["text"]
    assert one.metric("portcullis_config_last_reload_successful") == 0
    assert (shown(one), one.status()["generation"]) == (good, generation)
    before = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > before + 5, what="more of the stream")
    assert one.ask(body=chat()).status == 200


def test_an_expired_server_certificate_is_refused_at_the_start(stage):
    one = stage(start=False)
    one.servers.leaf("server", dns=["localhost"], use=SERVER, not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    checked = one.run("check", "-c", "portcullis.toml")
    assert checked.returncode == 1 and "expired" in checked.stdout + checked.stderr
    assert one.run("run", "-c", "portcullis.toml").returncode == 1


def test_an_address_as_configured_server_name_is_a_mistake(stage):
    one = stage(start=False)
    text = (one.folder / "portcullis.toml").read_text().replace('["localhost"]', '["localhost", "127.0.0.1"]')
    (one.folder / "portcullis.toml").write_text(text)
    checked = one.run("check", "-c", "portcullis.toml")
    assert checked.returncode == 1
    assert re.search(r"portcullis\.toml:\d+:\d+", checked.stdout + checked.stderr)
