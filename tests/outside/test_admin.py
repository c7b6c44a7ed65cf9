"""The operators' side: who may look, who may act, and that nothing of it is open by mistake."""

import contextlib
import datetime
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import Authority, Program, Stage, Streaming, chat, eventually, fetch

ADMIN = '[admin]\naddress = "127.0.0.1:0"'


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One gateway for all questions that change nothing."""
    one = Stage(
        tmp_path_factory.mktemp("shared"),
        orgs={
            "acme": Stage.ACME
            + "[limits]\nrequests_per_minute = 600\nconcurrent_requests = 9\ntokens_per_day = 900000\n",
            "globex": Stage.GLOBEX.replace('"Globex CERT"', '"<script>alert(1)</script>"'),
        },
    )
    assert one.ask(body=chat()).status == 200
    assert one.ask(body=chat(), portcullis_purpose="forbidden").status == 403
    eventually(lambda: one.metric("portcullis_streams_active") == 0, what="the end of all streams")
    yield one
    one.close()


def host_of(one):
    return one.admin.removeprefix("http://")


def raw(one, request):
    """The status of a request as it is written."""
    name, port = host_of(one).split(":")
    with socket.create_connection((name, int(port)), timeout=10) as plain:
        plain.sendall(request)
        answer = plain.recv(65536)
    return int(answer.split(b" ", 2)[1]), answer.decode("latin-1")


def generation(one):
    return one.status()["generation"]


# Host, sites, methods.


THEIRS = ["evil.example", "evil.example:9443", "127.0.0.1.evil.example", "localhost.evil.example:80"]
THEIRS += ["evil", "wpad:80", "a@localhost", "localhost,evil", "2130706433", ""]


@pytest.mark.parametrize("host", [*THEIRS, "localhost\r\nhost: evil.example"])
@pytest.mark.parametrize("request_line", ["GET /status.json", "GET /", "GET /metrics", "POST /-/reload"])
def test_a_page_that_has_our_address_under_its_own_name_gets_nothing(shared, host, request_line):
    status, answer = raw(
        shared, f"{request_line} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
    )
    assert status in (400, 421), answer
    assert "acme" not in answer


@pytest.mark.parametrize("request_line", ["GET http://evil.example/status.json", "POST http://evil/-/reload"])
def test_a_target_names_us_as_a_host_does(shared, request_line):
    asked = f"{request_line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    status, answer = raw(shared, asked.encode())
    assert status == 421 and "acme" not in answer
    assert raw(shared, asked.replace("evil.example", "localhost").replace("evil", "127.0.0.1").encode())[0] == 200


@pytest.mark.parametrize("header", ["origin: http://localhost", "sec-fetch-site: same-origin"])
def test_of_two_lines_that_name_a_site_none_is_believed(shared, header):
    asked = "POST /-/reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n{}\r\n\r\n"
    assert raw(shared, asked.format(header).encode())[0] == 200
    assert raw(shared, asked.format(f"{header}\r\n{header}").encode())[0] == 403


WITHOUT = [("GET /status.json HTTP/1.1", 400), ("POST /-/reload HTTP/1.1", 400), ("POST /-/reload HTTP/1.0", 421)]


@pytest.mark.parametrize("request_line, status", WITHOUT)
def test_a_request_without_a_host_gets_nothing(shared, request_line, status):
    assert raw(shared, f"{request_line}\r\ncontent-length: 0\r\n\r\n".encode())[0] == status


@pytest.mark.parametrize("request_line", ["GET /livez", "HEAD /readyz", "GET /metrics"])
def test_a_probe_that_is_too_old_for_a_host_is_served(shared, request_line):
    """As load balancers write it; no browser asks without a Host."""
    assert raw(shared, f"{request_line} HTTP/1.0\r\n\r\n".encode())[0] == 200
    assert raw(shared, f"{request_line} HTTP/1.0\r\nhost: evil.example\r\n\r\n".encode())[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9443", "localhost", "LOCALHOST:9443", "[::1]:9443"])
def test_addresses_and_localhost_are_ours(shared, host):
    assert raw(shared, f"GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())[0] == 200


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["/-/reload", "/-/drain", "/-/revoke", "/-/restore", "/-/log"])
def test_a_post_of_another_site_does_nothing(shared, headers, path):
    body = {"organization": "globex"}
    answer = fetch(shared.admin + path, data=body, method="POST", headers=headers)
    assert answer.status == 403, answer.body
    status = shared.status()
    assert status["draining"] is False and status["revoked"] == []


def test_a_post_of_our_own_page_is_served(shared):
    headers = {"origin": shared.admin, "sec-fetch-site": "same-origin"}
    assert fetch(shared.admin + "/-/reload", data={}, method="POST", headers=headers).status == 200


@pytest.mark.parametrize("path", ["/-/reload", "/-/drain", "/-/revoke", "/-/restore", "/-/log"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_a_post_acts(shared, path, method):
    answer = fetch(shared.admin + path, method=method)
    assert answer.status in (404, 405)
    assert shared.status()["draining"] is False
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/status.json", "/-/reload"])
def test_a_method_that_is_not_served_is_told_which_are(shared, path, method):
    answer = fetch(shared.admin + path, method=method)
    assert answer.status == 405 and answer.headers.get("allow"), dict(answer.headers)


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/"])
def test_a_head_request_is_a_get_without_a_body(shared, path):
    answer = fetch(shared.admin + path, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/v1/models"),
        ("POST", "/-/nothing"),
        ("POST", "/status.json"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/../status.json"),
        ("GET", "//status.json"),
    ],
)
def test_what_is_not_there_is_not_found(shared, method, path):
    assert fetch(shared.admin + path, data=b"" if method == "POST" else None, method=method).status in (404, 405)


def test_partners_never_reach_the_operators_side(shared):
    for path in ("/metrics", "/status.json", "/-/reload", "/livez", "/readyz", "/policy.json", "/"):
        assert shared.ask(path).status in (404, 405)


# What there is to see.


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
def test_probes_answer_shortly(shared, path):
    answer = fetch(shared.admin + path)
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert answer.headers["cache-control"] == "no-store"


def test_readiness_can_be_verbose(shared):
    body = fetch(shared.admin + "/readyz?verbose").body.decode()
    for part in ("[+] serving", "[+] certificate", "[+] crl", "[+] audit", "[+] quota"):
        assert part in body
    assert body.endswith("ok\n")


def test_readiness_fails_with_its_reason_when_the_revocation_list_goes_stale(stage):
    one = stage(start=False)
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=6)
    one.partners.crl(upcoming=soon)
    one.start()
    answer = eventually(lambda: (got := fetch(one.admin + "/readyz")).status == 503 and got, what="unreadiness")
    assert b"[-] crl" in answer.body and b"[+]" not in answer.body
    assert fetch(one.admin + "/livez").status == 200


def test_the_page_is_a_table_without_scripts_and_strict_with_them(shared):
    answer = fetch(shared.admin + "/")
    page, policy = answer.body.decode(), answer.headers["content-security-policy"]
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    without = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    for part in ("acme", "requests_per_minute", "tokens_per_day", "purpose_not_permitted", "server", "openai"):
        assert part in without
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert not re.search(r'\bon\w+="|(?:src|href)="(?:https?:)?//', page)


LIMIT = {"id", "scope", "unit", "window", "limit", "used", "reserved", "remaining", "resets_at"}
STATUS = {
    "version",
    "generation",
    "config_hash",
    "started_at",
    "draining",
    "organizations",
    "streams",
    "refusals",
    "certificates",
    "revoked",
    "upstreams",
    "reloads",
}


def test_the_status_has_the_shape_that_programs_rely_on(shared):
    stream = Streaming(shared)
    try:
        status = eventually(lambda: (got := shared.status())["streams"] and got, what="the stream")
        assert STATUS <= set(status)
        acme = next(org for org in status["organizations"] if org["id"] == "acme")
        assert {"id", "name", "parent", "status", "streams", "limits"} <= set(acme)
        assert (acme["parent"], acme["status"], acme["streams"]) == (None, "active", 1)
        limits = {limit["id"]: limit for limit in acme["limits"]}
        assert all(LIMIT <= set(limit) for limit in limits.values())
        assert limits["tokens_per_day"]["scope"] == {"organization": "acme", "purpose": None, "model": None}
        assert (limits["tokens_per_day"]["unit"], limits["tokens_per_day"]["window"]) == ("tokens", "day")
        assert limits["concurrent_requests"]["window"] is None and limits["concurrent_requests"]["resets_at"] is None
        assert limits["concurrent_requests"]["used"] + limits["concurrent_requests"]["reserved"] == 1
        again = lambda quota: shared.metric("portcullis_quota_reset_timestamp_seconds", org="acme", quota=quota)
        assert again("tokens_per_day") > time.time() and not again("concurrent_requests")
        assert {"request_id", "organization", "purpose", "model", "age_seconds", "output_tokens"} <= set(
            status["streams"][0]
        )
        assert status["refusals"]["purpose_not_permitted"] >= 1
        assert {"server", "authority", "crl"} <= {certificate["kind"] for certificate in status["certificates"]}
    finally:
        stream.close()


def test_prometheus_finds_no_fault_with_the_metrics(shared):
    metrics = fetch(shared.admin + "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    if not shutil.which("promtool"):
        pytest.skip("promtool is not here")
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.body, capture_output=True, timeout=30)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_build_is_told_truthfully(shared):
    text = fetch(shared.admin + "/metrics").body.decode()
    labels = dict(re.findall(r'(\w+)="([^"]*)"', re.search(r"^portcullis_build_info\{(.*)\} 1$", text, re.M)[1]))
    assert labels["version"] == shared.status()["version"]
    assert set(labels) == {"version", "revision", "rustc", "tls_provider", "fips"}
    assert all(labels.values()), f"an empty label tells nobody anything: {labels}"


def test_no_secret_is_shown_anywhere(shared):
    for path in ("/", "/status.json", "/policy.json", "/metrics", "/readyz?verbose"):
        assert b"operator-key" not in fetch(shared.admin + path).body
    assert "operator-key" not in shared.gateway.log


def test_who_says_nothing_holds_up_nobody(shared):
    name, port = host_of(shared).split(":")
    silent = [socket.create_connection((name, int(port))) for _ in range(20)]
    began = time.monotonic()
    assert fetch(shared.admin + "/livez").status == 200
    assert time.monotonic() - began < 3
    for one in silent:
        one.close()


# What is asked for is read strictly.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"no json",
        b'{"organization": "acme"',
        b'{"organization": 5}',
        b'{"organization": null}',
        b'{"organization": "globex", "purpose": "research"}',
        b'{"organisation": "globex"}',
        b'{"organization": "globex", "extra": 1}',
        b'{"organization": "No Id!"}',
        b'{"certificate_sha256": "abc"}',
        b'{"organization": "\xff"}',
        b'{"reason": "none"}',
    ],
)
@pytest.mark.parametrize("path", ["/-/revoke", "/-/restore"])
def test_a_withdrawal_that_is_not_clear_is_refused_whole(shared, path, body):
    answer = fetch(shared.admin + path, data=body, method="POST")
    assert answer.status == 400 and len(answer.body) > 5
    assert shared.status()["revoked"] == []


def test_who_sends_too_much_learns_that_it_was_too_much(shared):
    """In pieces, of which the first are already too much: a connection that is closed over unread bytes is reset."""
    name, port = host_of(shared).split(":")
    with socket.create_connection((name, int(port)), timeout=10) as plain:
        plain.sendall(f"POST /-/revoke HTTP/1.1\r\nhost: localhost\r\ncontent-length: {1 << 20}\r\n\r\n".encode())
        for _ in range(16):
            plain.sendall(b"x" * (1 << 16))
        assert plain.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_end_is_not_read_to_its_end(shared):
    name, port = host_of(shared).split(":")
    with socket.create_connection((name, int(port)), timeout=10) as plain:
        plain.sendall(b"POST /-/revoke HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                plain.sendall(b"x" * (1 << 16))


def test_the_log_says_nothing_of_a_request_until_it_is_asked_to(stage):
    one = stage()
    for filter, told in (("info", False), ("portcullis::record=debug", True), ("info", False)):
        assert fetch(one.admin + "/-/log", data={"filter": filter}, method="POST").status == 200
        served, refused = one.ask(body=chat()), one.ask(body=chat(), portcullis_purpose="gardening")
        assert (served.status, refused.status) == (200, 400)
        for answer, sign in ((served, "complete"), (refused, "purpose_unknown")):
            line = re.compile(rf".*{answer.headers['x-request-id']}.*{sign}.*")
            if told:
                eventually(lambda: line.search(one.gateway.log), what="the line")  # noqa: B023
            else:
                assert answer.headers["x-request-id"] not in one.gateway.log


def test_the_log_can_be_made_to_say_more_and_less(stage):
    one = stage()
    answer = fetch(one.admin + "/-/log", data={"filter": "trace"}, method="POST")
    assert answer.status == 200, answer.body
    assert one.ask(body=chat()).status == 200
    eventually(lambda: re.search(r"\b(TRACE|DEBUG)\b", one.gateway.log), what="more of the log")
    assert "operator-key" not in one.gateway.log
    assert fetch(one.admin + "/-/log", data={"filter": "off"}, method="POST").status == 200
    unsaid = one.ask(body=chat())
    assert unsaid.status == 200
    assert fetch(one.admin + "/-/log", data={"filter": "info"}, method="POST").status == 200
    one.gateway.signal(signal.SIGUSR1)
    eventually(lambda: "SIGUSR1 does nothing" in one.gateway.log, what="a later line")
    assert unsaid.headers["x-request-id"] not in one.gateway.log
    for wrong in (b"", b"{}", b'{"filter": 5}', b'{"filter": "portcullis=loud"}', b'{"filter": "[[["}', b'{"filter": ""}', b'{"filter": "inof"}', b'{"filter": "info", "filter": "off"}'):
        answer = fetch(one.admin + "/-/log", data=wrong, method="POST")
        assert answer.status == 400 and len(answer.body) > 3, wrong


def test_every_post_is_on_record_with_who_asked(stage):
    one = stage()
    fetch(one.admin + "/-/revoke", data={"purpose": "incident", "reason": "a drill"}, method="POST")
    fetch(one.admin + "/-/restore", data={"purpose": "incident"}, method="POST")
    fetch(one.admin + "/-/reload", data={}, method="POST")
    fetch(one.admin + "/-/log", data={"filter": "info"}, method="POST")
    one.gateway.end()
    told = {line["kind"]: line for line in one.audit()}
    for kind in ("revoke", "restore", "reload"):
        assert told[kind]["by"].startswith("127.0.0.1"), told[kind]
    assert (told["revoke"]["target"], told["revoke"]["reason"]) == ("incident", "a drill")
    text = json.dumps(one.audit()) + one.gateway.log
    assert re.search(r"filter.*127\.0\.0\.1|127\.0\.0\.1.*filter", text), "who changed the log's filter is nowhere"


def test_a_wish_that_was_begun_is_carried_out_though_nobody_waits_for_it(stage):
    """A reload that ended halfway could leave names changed and the policy that knows them not in force."""
    one = stage()
    host, port = host_of(one).split(":")
    for number in range(20):
        one.write_org("acme", Stage.ACME.replace("Acme", f"Acme {number}"))
        with socket.create_connection((host, int(port)), timeout=10) as operator:
            operator.sendall(b"POST /-/reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
        eventually(
            lambda: sum(line.get("trigger") == "http" for line in one.audit()) == number + 1,
            what=f"reload {number} on record",
        )


# Token.


def test_with_a_token_every_post_needs_it_and_looking_does_not(stage):
    one = stage(start=False, admin='token = "file:token"')
    token = one.folder / "token"
    token.touch(0o600)
    token.write_text("hush-1234\n")
    one.start()

    def post(**headers):
        return fetch(one.admin + "/-/reload", data={}, method="POST", headers=headers)

    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "hush-1234"},
        {"authorization": "Basic hush-1234"},
        {"authorization": "Bearer hush-1234x"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer hush-123"},
    ):
        answer = post(**headers)
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer")
    assert post(authorization="Bearer hush-1234").status == 200
    # The scheme is compared without case (RFC 9110, 11.1).
    assert post(authorization="bearer hush-1234").status == 200
    for path in ("/-/drain", "/-/revoke", "/-/restore", "/-/log"):
        assert fetch(one.admin + path, data={"organization": "acme"}, method="POST").status == 401
    assert one.status()["revoked"] == [] and one.status()["draining"] is False
    refused = one.run("reload")
    assert refused.returncode == 1 and "token" in refused.stderr
    assert one.run("reload", "--admin-token", "token").returncode == 0
    assert one.run("reload", env={"PORTCULLIS_ADMIN_TOKEN_FILE": "token"}).returncode == 0
    assert "hush-1234" not in one.gateway.log + json.dumps(one.status()) + json.dumps(one.audit())


def test_who_is_refused_is_told_in_the_log_and_not_with_a_line_each(stage):
    one = stage(start=False, admin='token = "file:token"')
    token = one.folder / "token"
    token.touch(0o600)
    token.write_text("hush-1234\n")
    one.start()
    for number in range(50):
        headers = {"authorization": f"Bearer guess-{number}"}
        assert fetch(one.admin + "/-/revoke", data={"organization": "acme"}, method="POST", headers=headers).status == 401
    headers = {"authorization": "Bearer hush-1234", "origin": "http://evil.example"}
    assert fetch(one.admin + "/-/reload", data={}, method="POST", headers=headers).status == 403
    assert fetch(one.admin + "/", headers={"host": "rebound.example"}).status == 421

    def told(what):
        return [line for line in one.gateway.log.splitlines() if "WARN" in line and what in line]

    def guesses():
        return sum(int(more[1]) if (more := re.search(r"more=(\d+)", line)) else 1 for line in told("bearer token"))

    eventually(lambda: guesses() == 50, within=20, what="the number of guesses")
    assert re.search(r"by=127\.0\.0\.1:\d+ path=\"/-/revoke\"", told("bearer token")[0])
    assert len(told("bearer token")) < 25
    assert "evil.example" in told("another site")[0] and "rebound.example" in told("Host")[0]
    assert "guess-" not in one.gateway.log and "hush-1234" not in one.gateway.log


# Unix socket.


def launch(one, admin):
    """Starts with another [admin] than the stage's, and gives what it says the admin side is."""
    path = one.folder / "portcullis.toml"
    path.write_text(path.read_text().replace(ADMIN, f"[admin]\n{admin}"))
    one.gateway = Program(one.folder, "gateway", "run", "-c", "portcullis.toml")
    one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
    one.admin = one.gateway.printed(r"admin on (\S+)")
    return one.admin


def test_a_unix_socket_is_for_its_owner_alone(stage):
    one = stage(start=False)
    url = launch(one, 'address = "unix:admin.sock"')
    path = one.folder / "admin.sock"
    eventually(path.exists, what="the socket")
    assert url.startswith("unix:") and url.endswith("admin.sock")
    eventually(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600, what="the mode")
    assert stat.S_ISSOCK(path.stat().st_mode)
    told = one.run("status", "--json", "--admin", f"unix:{path}", env={})
    assert told.returncode == 0 and json.loads(told.stdout)["generation"] == 1
    assert one.run("reload", "--admin", f"unix:{path}").returncode == 0
    assert one.run("revoke", "--org", "acme", "--admin", f"unix:{path}").returncode == 0
    line = eventually(lambda: [line for line in one.audit() if line["kind"] == "revoke"], what="the record")[0]
    assert line["by"].startswith(f"uid {os.getuid()}")
    assert one.run("drain", "--admin", f"unix:{path}").returncode == 0
    assert one.gateway.wait() == 0


def test_a_socket_that_cannot_be_made_is_told_with_its_path_before_anything_runs(stage):
    one = stage(start=False)
    path = one.folder / "portcullis.toml"
    path.write_text(path.read_text().replace(ADMIN, '[admin]\naddress = "unix:nowhere/admin.sock"'))
    one.gateway = Program(one.folder, "gateway", "run", "-c", "portcullis.toml")
    assert one.gateway.wait() == 2
    assert "nowhere/admin.sock" in one.gateway.log
    assert "partners on" not in one.gateway.log


def test_a_file_that_is_no_socket_is_not_deleted(stage):
    one = stage(start=False)
    (one.folder / "precious").write_text("do not touch")
    path = one.folder / "portcullis.toml"
    path.write_text(path.read_text().replace(ADMIN, '[admin]\naddress = "unix:precious"'))
    assert one.run("check", "-c", "portcullis.toml").returncode == 1
    one.gateway = Program(one.folder, "gateway", "run", "-c", "portcullis.toml")
    assert one.gateway.wait() == 1
    assert "precious is a file, not a socket" in one.gateway.log
    assert (one.folder / "precious").read_text() == "do not touch"


# Metrics alone.


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    one = Stage(tmp_path_factory.mktemp("scraped"), admin='metrics = "127.0.0.1:0"')
    one.scrape = "http://" + one.gateway.printed(r"metrics on http://(127\.0\.0\.1:\d+)")
    yield one
    one.close()


def test_the_metrics_listener_knows_metrics_and_probes(scraped):
    for path in ("/metrics", "/livez", "/readyz", "/readyz?verbose"):
        assert fetch(scraped.scrape + path).status == 200
    assert b"portcullis_build_info" in fetch(scraped.scrape + "/metrics").body


ELSEWHERE = ["/", "/status.json", "/policy.json", "/healthz", "/-/reload", "/-/revoke", "/-/drain", "/-/log"]


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_the_metrics_listener_knows_nothing_else(scraped, path, method):
    answer = fetch(scraped.scrape + path, data=b"{}" if method != "GET" else None, method=method)
    assert answer.status in (404, 405)
    assert b"acme" not in answer.body
    assert scraped.status()["draining"] is False


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
def test_the_metrics_listener_is_found_by_any_name(scraped, path):
    """Prometheus scrapes `gateway.example:9464`, as its target is written."""
    answer = fetch(scraped.scrape + path, headers={"host": "gateway.example:9464"})
    assert answer.status == 200, answer.body


def test_every_metric_of_the_catalogue_is_there_from_the_start(scraped):
    """Before anybody asked for anything: a rate needs the zero it began with."""
    text = fetch(scraped.admin + "/metrics").body.decode()
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    wanted = (
        "build_info request_refusals_total gateway_overhead_seconds streams_active streams_total revocation_seconds "
        "tls_handshakes_total tls_server_cert_not_after_timestamp_seconds crl_next_update_timestamp_seconds draining "
        "connections_active connections_total audit_records_total audit_queue_records config_reloads_total "
        "config_last_reload_successful config_last_reload_success_timestamp_seconds config_generation config_info"
    ).split()
    # What has a status or a model for a label cannot be known before it comes.
    assert sorted({f"portcullis_{name}" for name in wanted} - declared) == []
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= declared
    assert all(name.startswith(("portcullis_", "process_")) for name in declared)


@contextlib.contextmanager
def keep_alive(port, source):
    """Somebody at that address who asks and stays: gives what asks once more, and the answer's head (empty: cut off)."""
    with socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)) as one:

        def ask():
            answer = b""
            with contextlib.suppress(ConnectionError):
                one.sendall(b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n")
                while not answer.endswith(b"ok\n") and (more := one.recv(4096)):
                    answer += more
            return answer.decode().lower()

        yield ask


def test_polite_strangers_keep_nobody_from_metrics_and_probes(stage):
    """Every place is taken by one who asks again and again: who comes gets that of the one that has been idle longest."""
    one = stage(admin='metrics = "127.0.0.1:0"')
    port = int(one.gateway.printed(r"metrics on http://127\.0\.0\.1:(\d+)"))
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(keep_alive(port, f"127.0.0.{2 + number % 4}")) for number in range(31)]
        for ask in strangers:
            assert " 200 " in (answer := ask()) and "connection: close" not in answer
        last = stack.enter_context(keep_alive(port, "127.0.0.9"))
        assert "connection: close" in last(), "a full house keeps nobody whom it need not keep"
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert fetch(f"http://127.0.0.1:{port}/metrics").status == 200
        assert strangers[0]() == "", "the one that was idle longest had to go"
        assert all(" 200 " in ask() for ask in strangers[1:]), "and nobody else"
        for reason, count in (("displaced", 1), ("full", 0)):
            assert one.metric("portcullis_connections_rejected_total", listener="admin", reason=reason) == count


# TLS with operators' certificates.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    one = Stage(tmp_path_factory.mktemp("guarded"), start=False)
    operators = Authority(one.folder, "operators")
    certificate = operators.leaf("olga", uri="spiffe://operators/olga")
    operators.leaf(
        "admin", dns=["localhost", "gateway.example"], use=ExtendedKeyUsageOID.SERVER_AUTH, addresses=["127.0.0.1"]
    )
    one.olga = certificate.fingerprint(hashes.SHA256()).hex()
    tls = 'tls = { certificate = "admin.pem", private_key = "admin.key", client_authority = "operators.pem" }'
    one.url = launch(one, f'address = "127.0.0.1:0"\n{tls}')
    yield one
    one.close()


def over_tls(one, certificate, path="/livez", host=None, method="GET", body=None):
    context = ssl.create_default_context(cafile=one.folder / "operators.pem")
    if certificate:
        context.load_cert_chain(one.folder / f"{certificate}.pem", one.folder / f"{certificate}.key")
    address = one.url.removeprefix("https://")
    connection = http.client.HTTPSConnection(address, context=context, timeout=10)
    connection.request(method, path, body=body, headers={"host": host or address})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_url_says_https(guarded):
    assert guarded.url.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("certificate", [None, "acme"])
def test_who_is_no_operator_gets_no_answer(guarded, certificate):
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        over_tls(guarded, certificate)


def test_without_tls_there_is_no_answer(guarded):
    name, port = guarded.url.removeprefix("https://").split(":")
    with socket.create_connection((name, int(port)), timeout=5) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in plain.recv(4096)


def test_an_operator_looks_and_acts_and_is_on_record_by_certificate(guarded):
    assert over_tls(guarded, "olga", "/status.json")[0] == 200
    assert over_tls(guarded, "olga", "/-/reload", method="POST", body="{}")[0] == 200
    told = [
        "--admin",
        guarded.url,
        "--admin-ca",
        "operators.pem",
        "--admin-cert",
        "olga.pem",
        "--admin-key",
        "olga.key",
    ]
    done = guarded.run("revoke", "--purpose", "incident", *told)
    assert done.returncode == 0, done.stderr
    line = eventually(lambda: [line for line in guarded.audit() if line["kind"] == "revoke"], what="the record")[-1]
    assert guarded.olga in line["by"]
    assert guarded.run("restore", "--purpose", "incident", *told).returncode == 0
    for given, wanted in [
        (["--admin-ca", "operators.pem"], "it wants an operator's certificate: --admin-cert and --admin-key"),
        (["--admin-cert", "olga.pem", "--admin-key", "olga.key"], "--admin-ca names the authority"),
    ]:
        done = guarded.run("status", "--admin", guarded.url, *given)
        assert done.returncode == 2 and wanted in done.stderr, done.stderr


def is_let_in(one, certificate):
    try:
        return over_tls(one, certificate)[0] == 200
    except OSError:
        return False


def test_the_operators_certificates_are_rotated_without_a_restart(guarded):
    """Everything but addresses, thread counts and paths is hot."""
    operators = Authority(guarded.folder, "operators-next")
    operators.leaf("oskar", uri="spiffe://operators/oskar")
    operators.leaf("admin-next", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH, addresses=["127.0.0.1"])
    kept = {name: (guarded.folder / name).read_bytes() for name in ("operators.pem", "admin.pem", "admin.key")}
    try:
        for name, fresh in (
            ("operators.pem", "operators-next.pem"),
            ("admin.pem", "admin-next.pem"),
            ("admin.key", "admin-next.key"),
        ):
            (guarded.folder / name).write_bytes((guarded.folder / fresh).read_bytes())

        eventually(lambda: is_let_in(guarded, "oskar"), within=7, what="the new operator")
        with pytest.raises(OSError):
            over_tls(guarded, "olga")
    finally:
        for name, content in kept.items():
            (guarded.folder / name).write_bytes(content)
        eventually(lambda: is_let_in(guarded, "olga"), within=7, what="the operator of before")


def test_an_operator_may_use_the_name_that_the_certificate_has(guarded):
    """Over TLS the certificate has settled whose page it is."""
    assert over_tls(guarded, "olga", "/livez", host="gateway.example:9443")[0] == 200


@pytest.mark.parametrize("arguments", [["check", "--against"], ["status", "--admin"]])
def test_every_command_can_come_with_a_certificate(guarded, arguments):
    environment = {
        "PORTCULLIS_ADMIN_CA": "operators.pem",
        "PORTCULLIS_ADMIN_CERT": "olga.pem",
        "PORTCULLIS_ADMIN_KEY": "olga.key",
    }
    config = ["-c", "portcullis.toml"] if arguments[0] == "check" else []
    done = guarded.run(*arguments, guarded.url, *config, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:9443"])
def test_an_open_address_without_tls_is_a_mistake_that_says_what_to_do(stage, address):
    one = stage(start=False)
    path = one.folder / "portcullis.toml"
    path.write_text(path.read_text().replace(ADMIN, f'[admin]\naddress = "{address}"'))
    done = one.run("check", "-c", "portcullis.toml")
    assert done.returncode == 1
    assert "admin.tls" in done.stderr and "portcullis.toml:" in done.stderr


def test_one_is_told_as_one(stage):
    one = stage()
    stream = Streaming(one)
    told = fetch(one.admin + "/-/revoke", data={"organization": "acme"}, method="POST").json["text"]
    assert "1 stream and 1 connection cut" in told
    stream.wait(10)
