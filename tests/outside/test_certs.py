"""`certs` runs a small programme, and every rotation is rehearsed: what should not notice does not."""

import datetime
import json
import os
import pathlib
import re
import ssl
import stat
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import BINARY, H1, Authority, Stage, Streaming, chat, eventually, fetch, replace


@pytest.fixture
def certs(tmp_path):
    """Runs `certs` in a folder of its own."""

    def run(*arguments):
        return subprocess.run(
            [BINARY, "certs", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )

    run.folder = tmp_path
    return run


def done(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def load_crl(path):
    return x509.load_pem_x509_crl(path.read_bytes())


def openssl(folder, *arguments):
    return subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=20)


# The files.


def test_init_makes_what_a_gateway_needs(certs):
    said = done(certs("init", "--server", "localhost", "--server", "gateway.example"))
    assert "localhost, gateway.example" in said
    place = certs.folder / "certs"
    for key in ("partners-ca.key", "server.key"):
        assert stat.S_IMODE((place / key).stat().st_mode) == 0o600
    server = load(place / "server.pem")
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gateway.example"]
    authority = load(place / "partners-ca.pem").extensions
    assert authority.get_extension_for_class(x509.BasicConstraints).critical
    assert authority.get_extension_for_class(x509.KeyUsage).value.crl_sign
    assert load_crl(place / "partners.crl").extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 1
    assert openssl(place, "verify", "-CAfile", "partners-ca.pem", "-purpose", "sslserver", "server.pem").returncode == 0


def test_nothing_that_is_there_is_overwritten(certs):
    done(certs("init"))
    done(certs("issue", "--org", "acme"))
    before = {path.name: path.read_bytes() for path in (certs.folder / "certs").iterdir()}
    for again in (("init",), ("issue", "--org", "acme")):
        refused = certs(*again)
        assert refused.returncode in (1, 2) and "exists" in refused.stderr
    assert before == {path.name: path.read_bytes() for path in (certs.folder / "certs").iterdir()}


@pytest.mark.parametrize("there", ["partners-ca.key", "partners-ca.pem", "server.key", "server.pem", "partners.crl"])
def test_init_makes_all_or_nothing(certs, there):
    place = certs.folder / "certs"
    place.mkdir(exist_ok=True)
    (place / there).write_text("mine")
    refused = certs("init")
    assert refused.returncode in (1, 2) and there in refused.stderr
    assert [path.name for path in place.iterdir()] == [there] and (place / there).read_text() == "mine"
    (place / there).unlink()
    done(certs("init"))


def test_a_partners_certificate_passes_openssl_and_names_its_organization(certs):
    done(certs("init"))
    said = done(certs("issue", "--org", "acme", "--days", "30"))
    assert "acme.pem" in said and "spiffe://partners/acme" in said
    place = certs.folder / "certs"
    verified = openssl(
        place,
        "verify",
        "-CAfile",
        "partners-ca.pem",
        "-crl_check",
        "-CRLfile",
        "partners.crl",
        "-purpose",
        "sslclient",
        "-x509_strict",
        "acme.pem",
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    certificate = load(place / "acme.pem")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://partners/acme"]
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    assert stat.S_IMODE((place / "acme.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("days", ["0", "-1", "soon", "4000000", "99999999999999"])  # 4,000,000: beyond the year 9999.
def test_a_lifetime_that_makes_no_sense_makes_no_certificate(certs, days):
    done(certs("init"))
    result = certs("issue", "--org", "acme", "--days", days)
    assert "panicked" not in result.stderr
    assert result.returncode in (1, 2), result
    assert not (certs.folder / "certs/acme.pem").exists()


@pytest.mark.parametrize("org", ["", "../acme", "Acme", "a b", "a/b"])
def test_a_name_that_is_none_makes_no_certificate(certs, org):
    done(certs("init"))
    before = sorted(os.listdir(certs.folder / "certs"))
    result = certs("issue", "--org", org)
    assert result.returncode in (1, 2) and result.stderr
    assert sorted(os.listdir(certs.folder / "certs")) == before


def test_a_failed_issue_leaves_nothing_in_the_way_of_the_next(certs):
    """A key without its certificate would block the name for ever."""
    done(certs("init"))
    (certs.folder / "certs/acme.pem").mkdir()
    assert certs("issue", "--org", "acme").returncode in (1, 2)
    (certs.folder / "certs/acme.pem").rmdir()
    done(certs("issue", "--org", "acme"))


def test_what_is_no_partners_is_not_said_to_be_renewed_as_one_and_an_open_key_is_told(certs):
    done(certs("init"))
    refused = certs("issue", "--org", "server")
    assert refused.returncode == 2 and "server.pem exists already" in refused.stderr and "renew" not in refused.stderr
    key = certs.folder / "certs/partners-ca.key"
    key.chmod(0o644)
    issued = certs("issue", "--org", "acme", "--json")
    assert json.loads(done(issued))["organization"] == "acme" and "chmod 600 certs/partners-ca.key" in issued.stderr
    key.chmod(0o600)
    assert certs("crl").stderr == ""
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    assert "certs/partners-ca.key" in certs("crl").stderr


def test_renewal_keeps_the_identity_and_the_old_files(certs):
    done(certs("init"))
    done(certs("issue", "--org", "acme", "--uri", "spiffe://elsewhere/acme-production"))
    place = certs.folder / "certs"
    old = (place / "acme.pem").read_bytes()
    said = done(certs("renew", "--org", "acme"))
    fresh = place / re.search(r"(acme-\S+\.pem)", said).group(1)
    assert (place / "acme.pem").read_bytes() == old
    names = load(fresh).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://elsewhere/acme-production"]
    assert load(fresh).public_key() != load(place / "acme.pem").public_key()


def test_revocation_grows_the_list_and_keeps_its_past(certs):
    done(certs("init"))
    for org in ("acme", "globex"):
        done(certs("issue", "--org", org))
    place = certs.folder / "certs"
    done(certs("revoke", "certs/acme.pem"))
    first = load_crl(place / "partners.crl")
    time.sleep(1.1)  # Dates in a list have whole seconds.
    done(certs("revoke", "certs/globex.pem"))
    done(certs("revoke", "certs/globex.pem"))
    said = done(certs("crl"))
    last = load_crl(place / "partners.crl")
    serials = {load(place / f"{org}.pem").serial_number for org in ("acme", "globex")}
    assert {entry.serial_number for entry in last} == serials and len(list(last)) == 2
    assert last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 5
    assert "number 5, 2 revoked" in said
    acme = load(place / "acme.pem").serial_number
    when = [crl.get_revoked_certificate_by_serial_number(acme).revocation_date_utc for crl in (first, last)]
    assert when[0] == when[1], "the day of a revocation is a fact, not the day of the last signature"
    for org, code in (("acme", 2), ("globex", 2)):
        verified = openssl(
            place, "verify", "-CAfile", "partners-ca.pem", "-crl_check", "-CRLfile", "partners.crl", f"{org}.pem"
        )
        assert verified.returncode == code and "revoked" in verified.stderr
    assert openssl(place, "crl", "-in", "partners.crl", "-CAfile", "partners-ca.pem", "-noout").returncode == 0


def test_only_our_own_certificates_can_be_put_on_our_list(certs):
    """Another authority's serial number says nothing here: the operator would believe that it is revoked."""
    done(certs("init"))
    done(certs("--dir", "others", "init"))
    done(certs("--dir", "others", "issue", "--org", "acme"))
    before = (certs.folder / "certs/partners.crl").read_bytes()
    refused = certs("revoke", "others/acme.pem")
    assert refused.returncode == 1 and refused.stderr
    assert (certs.folder / "certs/partners.crl").read_bytes() == before


def test_an_authority_is_not_revoked_by_its_own_list(certs):
    """Nobody asks the list about its signer: the operator would believe that the authority is out."""
    done(certs("init"))
    before = (certs.folder / "certs/partners.crl").read_bytes()
    refused = certs("revoke", "certs/partners-ca.pem")
    assert refused.returncode == 1
    assert "client_auth.authorities" in refused.stderr
    assert (certs.folder / "certs/partners.crl").read_bytes() == before


def test_show_tells_the_truth_about_every_file_that_was_made(certs):
    done(certs("init"))
    done(certs("issue", "--org", "acme"))
    place = certs.folder / "certs"
    for file in ("acme.pem", "server.pem", "partners-ca.pem"):
        shown = json.loads(done(certs("show", f"certs/{file}", "--json")))
        certificate = load(place / file)
        assert shown["sha256"] == certificate.fingerprint(hashes.SHA256()).hex()
        digest = hashes.Hash(hashes.SHA256())
        digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        assert shown["spki_sha256"] == digest.finalize().hex()
        assert shown["not_after"].startswith(certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%S"))
        human = done(certs("show", f"certs/{file}"))
        assert shown["sha256"] in human
    assert "spiffe://partners/acme" in done(certs("show", "certs/acme.pem"))


def test_show_refuses_what_the_gateway_would_refuse(certs):
    authority = Authority(certs.folder, "odd")
    now, hour = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(hours=1)
    policies = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    not_understood = "a critical extension that is not understood"
    for said, odd in [
        ("has no extendedKeyUsage clientAuth", {"use": None}),
        ("has expired", {"not_before": now - 2 * hour, "not_after": now - hour}),
        ("is not valid yet", {"not_before": now + hour}),
        *[(not_understood, {"extensions": [(one, True)]}) for one in (policies, unknown, x509.PrecertPoison())],
    ]:
        authority.leaf("odd-one", uri="spiffe://partners/acme", **odd)
        result = certs("show", "odd-one.pem")
        assert result.returncode == 1 and re.search(f"profile .*{said}", result.stdout), (odd, result)
    authority.leaf("fine", uri="spiffe://partners/acme", extensions=[(policies, False)])
    done(certs("show", "fine.pem"))


# A programme of these files alone, and partners with curl and openssl.


@pytest.fixture
def programme(certs, stage):
    done(certs("init"))
    done(certs("issue", "--org", "acme"))
    done(certs("issue", "--org", "globex"))
    place = certs.folder / "certs"
    one = stage(
        start=False,
        authorities=f'{{ name = "partners", file = "{place}/partners-ca.pem", crl = "{place}/partners.crl" }}',
    )
    path = one.folder / "portcullis.toml"
    path.write_text(
        path.read_text()
        .replace('"server.pem"', f'"{place}/server.pem"')
        .replace('"server.key"', f'"{place}/server.key"')
    )
    for name in ("acme.pem", "acme.key", "globex.pem", "globex.key"):
        (one.folder / name).write_bytes((place / name).read_bytes())
    (one.folder / "servers.pem").write_bytes((place / "partners-ca.pem").read_bytes())
    one.certs, one.place = certs, place
    one.start()
    return one


def curl(one, org, *more):
    return subprocess.run(
        [
            "curl",
            "-sS",
            "--cacert",
            "partners-ca.pem",
            "--cert",
            f"{org}.pem",
            "--key",
            f"{org}.key",
            "-H",
            "portcullis-purpose: research",
            "-H",
            "content-type: application/json",
            "-d",
            json.dumps(chat()),
            "-w",
            "\n%{http_code}",
            *more,
            f"https://localhost:{one.port}/v1/chat/completions",
        ],
        cwd=one.place,
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_curl_and_openssl_get_in_with_these_files(programme):
    answer = curl(programme, "acme")
    assert answer.returncode == 0 and answer.stdout.endswith("\n200"), answer
    assert "choices" in answer.stdout
    shaken = subprocess.run(
        [
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{programme.port}",
            "-servername",
            "localhost",
            "-CAfile",
            "partners-ca.pem",
            "-cert",
            "acme.pem",
            "-key",
            "acme.key",
            "-verify_return_error",
            "-quiet",
        ],
        cwd=programme.place,
        capture_output=True,
        timeout=20,
        input=b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    )
    assert b"HTTP/1.1 200" in shaken.stdout, shaken


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_refusal_reaches_curl_every_time(programme, version, large):
    """It is decided before the body is read, and must not be lost because of that."""
    (programme.place / "large").write_bytes(b"a" * 1_000_000)
    for _ in range(12):
        more = ["--data-binary", "@large"] if large else []
        answer = curl(programme, "acme", version, "-H", "portcullis-purpose;", *more)
        assert answer.returncode == 0, answer.stderr
        assert "purpose_" in answer.stdout and answer.stdout.endswith("\n400")


def test_a_revoked_partner_is_out_at_once_and_the_others_notice_nothing(programme):
    cut, stays = Streaming(programme), Streaming(programme, certificate="globex")
    done(programme.certs("revoke", "certs/acme.pem"))
    assert cut.wait() != "complete"
    assert "certificate_revoked" in cut.text
    assert curl(programme, "acme").returncode != 0
    assert curl(programme, "globex").stdout.endswith("\n200")
    seen = len(stays.pieces)
    eventually(lambda: len(stays.pieces) > seen + 3, what="more of the stream")


def test_a_list_signed_again_is_taken_without_anybody_noticing(programme):
    stream = Streaming(programme)
    before = programme.metric("portcullis_crl_next_update_timestamp_seconds")
    time.sleep(1.1)  # The new list ends a whole second later.
    done(programme.certs("crl"))
    eventually(lambda: programme.metric("portcullis_crl_next_update_timestamp_seconds") > before, what="the new list")
    seen = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream")


def test_a_list_that_goes_back_in_time_is_refused(programme):
    """Whoever could put an older list back would give access back to whom it was taken from."""
    old = (programme.place / "partners.crl").read_bytes()
    done(programme.certs("revoke", "certs/acme.pem"))
    eventually(lambda: curl(programme, "acme").returncode != 0, what="the revocation")
    replace(programme.place / "partners.crl", old)
    answer = fetch(programme.admin + "/-/reload", data={}, method="POST")
    assert answer.status == 422 and "number" in answer.json["text"]
    assert curl(programme, "acme").returncode != 0


def test_a_renewed_partner_overlaps_with_its_old_certificate(programme):
    old = Streaming(programme)
    said = done(programme.certs("renew", "--org", "acme"))
    name = re.search(r"(acme-\S+)\.pem", said).group(1)
    for suffix in (".pem", ".key"):
        (programme.folder / f"next{suffix}").write_bytes((programme.place / f"{name}{suffix}").read_bytes())
    fresh = Streaming(programme, certificate="next")
    assert programme.ask(body=chat()).status == programme.ask(body=chat(), certificate="next").status == 200
    done(programme.certs("revoke", "certs/acme.pem"))
    assert old.wait() != "complete"
    seen = len(fresh.pieces)
    eventually(lambda: len(fresh.pieces) > seen + 3, what="more of the new stream")
    assert programme.ask(body=chat(), certificate="next").status == 200


def test_partners_move_to_another_authority_by_the_commands_of_the_chapter(programme):
    stream = Streaming(programme)
    done(programme.certs("authority", "--authority", "partners-2027"))
    assert programme.certs("authority", "--authority", "partners-2027").returncode == 2
    said = done(programme.certs("renew", "--org", "acme", "--authority", "partners-2027"))
    name = re.search(r"(acme-\S+)\.pem", said).group(1)
    for suffix in (".pem", ".key"):
        (programme.folder / f"next{suffix}").write_bytes((programme.place / f"{name}{suffix}").read_bytes())
    place, config = programme.place, programme.folder / "portcullis.toml"
    both = f'{{ name = "partners-2027", file = "{place}/partners-2027-ca.pem", crl = "{place}/partners-2027.crl" }}]'
    replace(config, re.sub(r"(authorities = .*)\]", rf"\1, {both}", config.read_text()).encode())
    acme = programme.folder / "orgs.d/acme.toml"
    identity = '\n[[identity]]\nauthority = "partners-2027"\nuri = "spiffe://partners/acme"\n'
    replace(acme, (acme.read_text() + identity).encode())
    reload(programme)
    assert programme.ask(body=chat()).status == programme.ask(body=chat(), certificate="next").status == 200
    for issuer in ("CN=Portcullis partners", "CN=Portcullis partners-2027"):
        assert programme.metric("portcullis_crl_next_update_timestamp_seconds", issuer=issuer) > time.time()
    done(programme.certs("revoke", "--authority", "partners-2027", f"certs/{name}.pem"))
    shown = json.loads(done(programme.certs("show", "certs/partners-2027.crl", "--json")))
    assert (shown["kind"], shown["number"], len(shown["revoked"])) == ("revocation list", "2", 1)
    reload(programme)
    with programme.connect("next") as connection, pytest.raises(ssl.SSLError, match="(?i)alert"):
        connection.recv(1)
    seen = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream under the old authority")


# Rotations with other tools' certificates.


def flows_on(stream):
    seen = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream")
    assert stream.ended is None


def reload(one):
    answer = fetch(one.admin + "/-/reload", data={}, method="POST")
    assert answer.status == 200, answer.body


def pinned(*certificates):
    text = Stage.ACME.split("[[identity]]")[0]
    for certificate in certificates:
        text += (
            f'[[identity]]\nauthority = "partners"\nleaf_sha256 = "{certificate.fingerprint(hashes.SHA256()).hex()}"\n'
        )
    return text


def test_a_pinned_certificate_is_replaced_by_way_of_two(stage):
    one = stage(start=False)
    fresh = one.partners.leaf("fresh", uri="spiffe://partners/acme")
    one.write_org("acme", pinned(one.acme))
    one.start()
    old = Streaming(one)
    assert one.ask(body=chat(), certificate="fresh").headers["portcullis-reason"] == "organization_unknown"
    one.write_org("acme", pinned(one.acme, fresh))
    reload(one)
    new = Streaming(one, certificate="fresh")
    flows_on(old)
    one.write_org("acme", pinned(fresh))
    reload(one)
    assert old.wait() != "complete"
    flows_on(new)
    assert one.ask(body=chat()).status == 403


ONLY = '{ name = "next", file = "next.pem", crl = "next.crl" }'
BOTH = '{ name = "partners", file = "partners.pem", crl = "partners.crl" }, ' + ONLY
NEXT = '[[identity]]\nauthority = "next"\nuri = "spiffe://partners/acme"\n'


def test_an_authority_is_replaced_by_way_of_two(stage):
    one = stage()
    old = Streaming(one)
    following = Authority(one.folder, "next")
    following.leaf("fresh", uri="spiffe://partners/acme")
    following.crl()
    # The new one beside the old one: nobody notices.
    one.write_config(authorities=BOTH)
    one.write_org("acme", Stage.ACME + NEXT)
    reload(one)
    flows_on(old)
    new = Streaming(one, certificate="fresh")
    assert one.ask(body=chat()).status == one.ask(body=chat(), certificate="fresh").status == 200
    issuers = one.metric("portcullis_crl_next_update_timestamp_seconds")
    # The old one goes: what it vouched for is cut, the rest goes on.
    one.write_config(authorities=ONLY)
    one.write_org("acme", Stage.ACME.split("[[identity]]")[0] + NEXT)
    one.write_org("globex", Stage.GLOBEX.split("[[identity]]")[0])
    reload(one)
    assert old.wait() != "complete"
    flows_on(new)
    assert one.ask(body=chat(), certificate="fresh").status == 200
    with pytest.raises(OSError):
        one.ask(body=chat())
    eventually(lambda: one.metric("portcullis_tls_handshakes_total", result="unknown_issuer") >= 1, what="the count")
    # A list that nobody needs any more must not alarm anybody when it goes stale.
    assert one.metric("portcullis_crl_next_update_timestamp_seconds") < issuers
    assert {entry["name"] for entry in one.status()["certificates"] if entry["kind"] == "authority"} == {"next"}


def test_an_authority_that_keeps_its_name_and_changes_its_key_cuts_what_the_old_key_vouched_for(stage):
    one = stage()
    old = Streaming(one)
    following = Authority(one.folder, "next")
    following.leaf("fresh", uri="spiffe://partners/acme")
    following.crl()
    one.write_config(authorities='{ name = "partners", file = "next.pem", crl = "next.crl" }')
    reload(one)
    assert old.wait() != "complete"
    assert one.ask(body=chat(), certificate="fresh").status == 200


def test_the_servers_certificate_moves_to_another_authority_under_open_streams(stage):
    one = stage()
    stream, standing = Streaming(one), H1(one.connect())
    assert standing.ask(body=chat()).status == 200
    others = Authority(one.folder, "others")
    others.leaf("other", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
    one.write_config()
    path = one.folder / "portcullis.toml"
    replace(path, path.read_text().replace('"server.pem"', '"other.pem"').replace('"server.key"', '"other.key"'))
    reload(one)
    flows_on(stream)
    assert standing.ask(body=chat()).status == 200
    (one.folder / "servers.pem").write_bytes((one.folder / "others.pem").read_bytes())
    assert one.ask(body=chat()).status == 200
    ends = [entry["ends"] for entry in one.status()["certificates"] if entry["kind"] == "server"]
    gauge = one.metric("portcullis_tls_server_cert_not_after_timestamp_seconds")
    assert len(ends) == 1 and ends[0].startswith(
        datetime.datetime.fromtimestamp(gauge, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    )


# The README, as it stands.


def test_the_readmes_example_and_its_commands_make_a_gateway(certs):
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    files = dict(re.findall(r"```toml\n# (config/[\w./]+)[^\n]*\n(.*?)```", text, re.DOTALL))
    assert len(files) == 2
    for name, content in files.items():
        path = certs.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    done(certs("init", "--server", "gateway.example"))
    done(certs("issue", "--org", "acme", "--days", "90"))
    line = re.search(r"portcullis (explain -c config/portcullis.toml [^`]+)`", text).group(1)
    environment = os.environ | dict.fromkeys(["OPENAI_API_KEY", "ANTHROPIC_API_KEY"], "sk-none")
    for command in ("check -c config/portcullis.toml", line):
        said = subprocess.run(
            [BINARY, *command.split()], cwd=certs.folder, env=environment, capture_output=True, text=True, timeout=20
        )
        assert said.returncode == 0, (command, said.stdout, said.stderr)


def test_programs_are_told_what_was_made(certs):
    def told(*arguments):
        done = certs(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    made = told("init", "--server", "gateway.example")
    assert made["server"]["names"] == ["gateway.example"] and made["server"]["signer"] == "partners"
    files = [made["authority"][name] for name in ("certificate", "key", "crl")] + [made["server"]["certificate"], made["server"]["key"]]
    issued = told("issue", "--org", "acme")
    assert (issued["organization"], issued["uri"], issued["signer"]) == ("acme", "spiffe://partners/acme", "partners")
    shown = told("show", issued["certificate"])
    assert shown["not_after"] == issued["not_after"]
    renewed = told("renew", "--org", "acme", "--days", "30")
    assert renewed["uri"] == issued["uri"] and renewed["certificate"] != issued["certificate"]
    server = told("renew", "--server")
    assert server["names"] == ["gateway.example"] and server["not_after"] > issued["not_after"][:10]
    other = told("--authority", "partners-2027", "authority")
    files += [issued["certificate"], issued["key"], renewed["certificate"], renewed["key"], other["certificate"], other["crl"]]
    assert all((certs.folder / file).exists() for file in files), files
    assert told("revoke", issued["certificate"])["revoked"] == 1
    again = told("crl")
    assert (again["revoked"], again["number"], again["signer"]) == (1, 3, "partners")


@pytest.mark.parametrize("uri", ["not a uri", "acme", "spiffe:", "://acme", "1a://acme", "spiffe://pärtners/acme", "x y:z", ""])
def test_what_is_no_uri_gets_no_certificate(certs, uri):
    assert certs("init").returncode == 0
    done = certs("issue", "--org", "acme", "--uri", uri)
    assert done.returncode == 2 and "spiffe://partners/acme" in done.stderr
    assert not (certs.folder / "certs" / "acme.pem").exists()


@pytest.mark.parametrize("name", ["gw.example,other.example", "https://gw.example:8443/", "", "gw.example:8443", "-gw.example", "a..b"])
def test_what_is_no_name_of_a_server_gets_no_certificate(certs, name):
    refused = certs("init", f"--server={name}")
    assert refused.returncode == 2 and "a host name such as gateway.example" in refused.stderr
    assert not (certs.folder / "certs").exists()
    done(certs("init", "--server", "gw.example", "--server", "*.gw.example", "--server", "2001:db8::1"))
    assert certs("renew", "--server", f"--server-name={name}").returncode == 2
    assert "IPAddress(2001:db8::1)" in done(certs("show", "certs/server.pem"))
