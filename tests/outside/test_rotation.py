"""docs/rotation.md played through: everything that expires is replaced while a stream is open."""

import hashlib
import ssl

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import Authority, Stage, Streaming, chat, eventually, replace

BOTH = Stage.ACME + '[[identity]]\nauthority = "partners-2027"\nuri = "spiffe://partners/acme"\n'
OLD = '{ name = "partners", file = "partners.pem", crl = "partners.crl" }'
NEW = '{ name = "partners-2027", file = "partners-2027.pem", crl = "partners-2027.crl" }'


def served(one):
    """The fingerprint of the certificate that a new connection meets."""
    with one.connect() as connection:
        return hashlib.sha256(connection.getpeercert(True)).hexdigest()


def refused(one, certificate):
    """How a new connection with this certificate ends."""
    with pytest.raises(ssl.SSLError) as alert:
        one.ask(body=chat(), certificate=certificate)
    return alert.value.reason


def last_reload(one):
    past = one.status()["reloads"]
    return past[0] if past else {"result": None, "text": ""}


def test_the_servers_certificate_is_replaced_under_an_open_stream(stage):
    one = stage()
    stream, before = Streaming(one), served(one)
    one.servers.leaf("next", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
    replace(one.folder / "server.pem", (one.folder / "next.pem").read_bytes())
    eventually(lambda: last_reload(one)["result"] == "rejected", what="word that the pair does not fit")
    assert "the key does not belong to the certificate" in last_reload(one)["text"]
    assert served(one) == before
    replace(one.folder / "server.key", (one.folder / "next.key").read_bytes())
    eventually(lambda: "server certificate replaced" in last_reload(one)["text"], what="the new pair")
    assert served(one) != before
    assert stream.ended is None


def test_a_partner_changes_its_certificate_and_the_old_one_is_revoked(stage):
    one = stage()
    one.partners.leaf("acme-next", uri="spiffe://partners/acme")
    old, new = Streaming(one), Streaming(one, certificate="acme-next")
    one.partners.crl(revoked=[one.acme])
    assert old.wait() == "cut" and "certificate_revoked" in old.text
    assert "REVOKED" in refused(one, "acme")
    assert one.ask(body=chat(), certificate="acme-next").status == 200
    assert new.ended is None


def test_an_authority_is_followed_by_another(stage):
    one = stage(orgs={"acme": Stage.ACME})
    later = Authority(one.folder, "partners-2027")
    later.crl()
    later.leaf("acme-2027", uri="spiffe://partners/acme")
    assert "UNKNOWN_CA" in refused(one, "acme-2027")
    old = Streaming(one)
    one.write_config(authorities=f"{OLD}, {NEW}")
    one.write_org("acme", BOTH)
    one.run("reload", check=True)
    assert [one.ask(body=chat(), certificate=name).status for name in ("acme", "acme-2027")] == [200, 200]
    new = Streaming(one, certificate="acme-2027")
    assert old.ended is None
    one.write_org("acme", Stage.ACME.replace('"partners"', '"partners-2027"'))
    one.run("reload", check=True)
    assert old.wait() == "cut"
    one.write_config(authorities=NEW)
    one.run("reload", check=True)
    assert "UNKNOWN_CA" in refused(one, "acme")
    assert one.ask(body=chat(), certificate="acme-2027").status == 200
    assert new.ended is None


def test_an_authority_whose_key_was_stolen_is_cut_off_at_once(stage):
    one = stage()
    stream = Streaming(one)
    one.run("revoke", "--authority", "partners", "--reason", "INC-7", check=True)
    assert stream.wait() == "cut"
    assert "REVOKED" in refused(one, "globex")
    one.run("restore", "--authority", "partners", check=True)
    assert one.ask(body=chat()).status == 200


def test_the_upstreams_key_is_replaced_by_replacing_its_file(stage):
    one = stage(start=False)
    secret = one.folder / "upstream.key"
    secret.write_text("first")
    secret.chmod(0o600)
    main = one.folder / "portcullis.toml"
    replace(main, main.read_text().replace("env:UPSTREAM_KEY", "file:upstream.key"))
    one.start()
    stream = Streaming(one)
    upcoming = one.folder / "upcoming"
    upcoming.write_text("second")
    upcoming.chmod(0o600)
    upcoming.replace(secret)
    one.run("reload", check=True)
    assert one.ask(body=chat()).status == 200
    used = [dict(request["headers"])["authorization"] for request in one.ledger()["requests"]]
    assert used[-1] == "Bearer second" and "Bearer first" in used
    assert stream.ended is None


def test_our_own_authority_renews_revokes_and_signs_again(stage, tmp_path):
    one = stage(start=False)
    one.run("certs", "--dir", "certs", "init", check=True)
    one.run("certs", "--dir", "certs", "issue", "--org", "acme", check=True)
    one.run("certs", "--dir", "certs", "renew", "--org", "acme", check=True)
    (renewed,) = (one.folder / "certs").glob("acme-*.pem")
    one.write_config(authorities='{ name = "partners", file = "certs/partners-ca.pem", crl = "certs/partners.crl" }')
    one.start()
    names = ["certs/acme", f"certs/{renewed.stem}"]
    streams = [Streaming(one, certificate=name) for name in names]
    one.run("certs", "--dir", "certs", "revoke", "certs/acme.pem", check=True)
    assert streams[0].wait() == "cut"
    one.run("certs", "--dir", "certs", "crl", check=True)
    one.run("reload", check=True)
    assert "REVOKED" in refused(one, names[0])
    assert one.ask(body=chat(), certificate=names[1]).status == 200
    assert streams[1].ended is None
