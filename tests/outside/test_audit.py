"""What an auditor relies on: a line for everything, nothing in it that does not belong there, no change unseen."""

import base64
import concurrent.futures
import contextlib
import datetime
import hashlib
import hmac
import json
import os
import random
import re
import resource
import shutil
import socket
import struct
import subprocess
import time
from csv import DictReader

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from stage import BINARY, H1, KEY, ROOT, Program, Stage, Streaming, chat, eventually, fetch, midday

# 100 tokens by the mock model's count.
LONG = [{"role": "user", "content": "word " * 80}]
SCHEMA = json.loads((ROOT / "config" / "audit.schema.json").read_text())
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool}


def faults(value, schema, where="line"):
    """Where `value` breaks `schema`: the words of JSON Schema that the audit log's own schema uses, and no others."""
    known = {"$schema", "title", "description", "x-ocsf", "type", "enum", "const", "required", "properties", "pattern",
             "minimum", "format", "allOf", "if", "then", "items"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    kind = schema.get("type")
    if kind in KINDS and not isinstance(value, KINDS[kind]):
        return [f"{where} is no {kind}: {value!r}"]
    if kind in ("integer", "number") and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return [f"{where} is no {kind}: {value!r}"]
    found = []
    if kind == "integer" and value != int(value):
        found.append(f"{where} is no integer: {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where} is none of {schema['enum']}: {value!r}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{where} is not {schema['const']!r}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{where} is below {schema['minimum']}: {value!r}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where} does not match {schema['pattern']}: {value!r}")
    if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value):
        found.append(f"{where} is no time in UTC with milliseconds: {value!r}")
    if isinstance(value, dict):
        found += [f"{where} lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                found += faults(value[name], inner, f"{where}.{name}")
    for one in schema.get("allOf", []):
        found += faults(value, one, where)
    if "if" in schema and not faults(value, schema["if"], where):
        found += faults(value, schema["then"], where)
    return found


@pytest.fixture
def one(stage):
    limits = "[limits]\nrequests_per_day = 1000\n[purpose.incident.limits]\nrequests_per_day = 1\n"
    return stage(orgs={"acme": Stage.ACME + limits, "globex": Stage.GLOBEX}, upstream='idle_timeout = "2s"',
                 quota=f'timezone = "{midday()}"')  # fmt: skip


def lines_of(stage, request_id):
    return [line for line in stage.audit() if line.get("request_id") == request_id]


def told(stage, request_id, kinds=("accepted", "closed")):
    """The lines of a request, once all are written."""
    return eventually(lambda: len(found := lines_of(stage, request_id)) == len(kinds) and found, what=f"{kinds}")


def opened(stage, model, **more):
    """A stream, begun."""
    connection = H1(stage.connect())
    connection.send(connection.head(body=chat(model, stream=True), **more))
    status, headers = connection.read_head()
    assert status == 200
    return connection, headers["request-id"]


def admin(stage, path, **body):
    answer = fetch(stage.admin + path, data=body, method="POST")
    assert answer.status == 200, answer.body
    return answer.json


# A line for everything.


def whole(stage):
    return stage.ask(body=chat("mock-tokens-7", messages=LONG)).headers["request-id"]


def streamed(stage):
    return stage.ask(body=chat("mock-tokens-7", messages=LONG, stream=True)).headers["request-id"]


def failed_before(stage):
    answer = stage.ask(body=chat("mock-drop"))
    assert answer.status == 502
    return answer.headers["request-id"]


def failed_midway(stage):
    connection, request_id = opened(stage, "mock-die-5")
    with connection:
        while connection.read_chunk() is not None:
            pass
    return request_id


def fell_silent(stage):
    connection, request_id = opened(stage, "mock-stall-5")
    with connection:
        while connection.read_chunk() is not None:
            pass
    return request_id


def abandoned(stage):
    connection, request_id = opened(stage, "mock-tokens-100000.tps-50")
    connection.read_chunk()
    connection.close()
    return request_id


def severed(stage):
    connection, request_id = opened(stage, "mock-tokens-100000.tps-50")
    with connection:
        connection.read_chunk()
        admin(stage, "/-/revoke", organization="acme", reason="a test")
        while connection.read_chunk() is not None:
            pass
    return request_id


@pytest.mark.parametrize(("play", "expected"), [
    (whole, {"ending": "complete", "status": 200, "settlement": "reported"}),
    (streamed, {"ending": "complete", "status": 200, "settlement": "reported"}),
    (failed_before, {"ending": "upstream_failed", "reason": "upstream_invalid", "status": 502,
                     "settlement": "estimated"}),
    (failed_midway, {"ending": "upstream_failed", "reason": "upstream_invalid", "settlement": "estimated"}),
    (fell_silent, {"ending": "upstream_timeout", "reason": "upstream_timeout", "settlement": "estimated"}),
    (abandoned, {"ending": "client_gone", "status": 200, "settlement": "estimated"}),
    (severed, {"ending": "severed", "reason": "organization_suspended", "severed_by": "organization_suspended"}),
])  # fmt: skip
def test_an_admitted_request_has_an_accepted_line_and_one_that_tells_its_end(one, play, expected):
    request_id = play(one)
    accepted, closed = told(one, request_id)
    assert (accepted["kind"], closed["kind"]) == ("accepted", "closed")
    assert closed["accepted_seq"] == accepted["seq"] < closed["seq"]
    assert {name: closed.get(name) for name in expected} == expected
    for line in (accepted, closed):
        assert line["organization"] == "acme"
        assert line["authority"] == "partners"
        assert line["certificate"]["sha256"] == one.acme.fingerprint(hashes.SHA256()).hex()
        assert (line["purpose"], line["route"], line["decision"]) == ("research", "chat", "accepted")
        assert line["upstream"] == "openai"
        assert line["peer"].startswith("127.0.0.1:")
        assert line["bytes_in"] > 0
    assert closed["duration_ms"] >= 0
    assert {"input", "cached_input", "cache_write", "output", "reasoning"} == closed["usage"].keys()
    if closed["status"] == 200:
        assert closed["upstream_request_id"].startswith("req_mock")
        assert closed["bytes_out"] > 0


NAMED = {"x_client_request_id": "mine-1", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}


def refuse(stage, reason):
    """A refusal for this reason."""
    headers, body = {
        "purpose_missing": ({"portcullis_purpose": None}, chat()),
        "purpose_unknown": ({"portcullis_purpose": "leisure"}, chat()),
        "purpose_not_permitted": ({"portcullis_purpose": "forbidden"}, chat()),
        "case_missing": ({"portcullis_purpose": "incident"}, chat()),
        "model_not_permitted": ({}, chat("kept-back")),
        "model_missing": ({}, {"messages": []}),
        "body_invalid": ({}, b"{"),
        "media_type_not_supported": ({"content_type": "text/plain"}, chat()),
        "route_not_found": ({}, chat()),
        "insufficient_quota": ({"portcullis_purpose": "incident", "portcullis_case": "C-1"}, chat()),
    }[reason]
    headers |= NAMED
    path = "/v1/nothing" if reason == "route_not_found" else "/v1/chat/completions"
    if reason == "insufficient_quota":
        assert stage.ask(path, body, **headers).status == 200
    return stage.ask(path, body, **headers)


@pytest.mark.parametrize("reason", ["purpose_missing", "purpose_unknown", "purpose_not_permitted", "case_missing",
                                    "model_not_permitted", "model_missing", "body_invalid", "media_type_not_supported",
                                    "route_not_found", "insufficient_quota"])  # fmt: skip
def test_a_refused_request_has_one_line_with_its_reason(one, reason):
    answer = refuse(one, reason)
    assert answer.headers["portcullis-reason"] == reason, answer.body
    (line,) = told(one, answer.headers["request-id"], ["refused"])
    assert (line["kind"], line["decision"], line["ending"]) == ("refused", "refused", "refused")
    assert (line["reason"], line["status"]) == (reason, answer.status)
    # Whatever is refused is refused to somebody, also what is judged by its shape alone.
    assert line["organization"] == "acme"
    assert line["certificate"]["sha256"] == one.acme.fingerprint(hashes.SHA256()).hex()
    # And is found under what its client calls it.
    assert [line[name] for name in ("client_request_id", "traceparent")] == list(NAMED.values())
    assert "accepted_seq" not in line


def everything(stage):
    """One of each kind of line that can be had without breaking anything."""
    for play in (whole, streamed, failed_before, failed_midway, fell_silent, abandoned):
        play(stage)
    for reason in ("purpose_missing", "route_not_found", "insufficient_quota"):
        refuse(stage, reason)
    stage.ask(body=chat(), **NAMED, portcullis_purpose="research", portcullis_case="C-2024/7")
    with pytest.raises((OSError, EOFError)):
        stage.ask(body=chat(), certificate=None)
    severed(stage)
    assert stage.ask(body=chat()).headers["portcullis-reason"] == "organization_suspended"
    admin(stage, "/-/restore", organization="acme")
    admin(stage, "/-/log", filter="info")
    stage.write_org("globex", stage.GLOBEX + "[limits]\nrequests_per_day = 5\n")
    admin(stage, "/-/reload")
    eventually(lambda: stage.metric("portcullis_streams_active") == 0, what="an empty house")
    assert stage.gateway.end() == 0


def test_whoever_leaves_whenever_is_in_every_book_alike(one):
    """Clients that send a request and are gone: while it is read, while its line is written, while it is sent."""
    model = "mock-hang"

    def hurried(number):
        with H1(one.connect()) as client:
            client.send(client.head(body=chat(model, user=f"n{number}")))
            # Not a wait for anything: one moment after the other is hit.
            time.sleep(number % 40 * 0.0002)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        list(clients.map(hurried, range(200)))
    # A client that has left may not have been heard of yet: a request of it may still be admitted.
    eventually(lambda: one.metric("portcullis_tls_handshakes_total") == 200, what="all that came")
    eventually(lambda: one.metric("portcullis_connections_active", listener="partners") == 0, what="the end of all")
    of_kind = {kind: [] for kind in ("accepted", "closed")}

    def settled():
        lines = one.audit()
        of_kind.update({kind: [line for line in lines if line["kind"] == kind] for kind in of_kind})
        return len(of_kind["accepted"]) == len(of_kind["closed"]) == one.metric("portcullis_streams_total", end="client_gone")

    eventually(settled, what="a line for every end")
    assert of_kind["accepted"], "nobody was admitted in time"
    ids = [[line["request_id"] for line in lines] for lines in of_kind.values()]
    assert len(set(ids[0])) == len(ids[0]) and sorted(ids[0]) == sorted(ids[1])
    for line in of_kind["closed"]:
        assert faults(line, SCHEMA) == []
        assert (line["organization"], line["ending"]) == ("acme", "client_gone")
        assert line["settlement"] == ("estimated" if line["usage"]["input"] else "none")
    assert one.limit("acme", "requests_per_day")["used"] == len(of_kind["closed"])
    input_tokens = sum(line["usage"]["input"] for line in of_kind["closed"])
    assert one.metric("portcullis_input_tokens_total", org="acme") == input_tokens
    # The model reads a request a moment after it was sent; what never came whole was not charged.
    charged = sum(line["settlement"] == "estimated" for line in of_kind["closed"])
    eventually(lambda: len(one.ledger()["requests"]) <= charged, what="the model's book")


def removed(audit):
    (audit / "audit-1.jsonl").unlink()


def cut_short(audit):
    os.truncate(audit / "audit-1.jsonl", 100)


def carried_away(audit):
    audit.rename(audit.with_name("elsewhere"))


def taken_down(audit):
    """All at once: nothing is laid into the directory while it is emptied."""
    carried_away(audit)
    shutil.rmtree(audit.with_name("elsewhere"))


def recorded(stage):
    """A request, once both its lines are written: nothing is on its way to the log any more."""
    answer = stage.ask(body=chat())
    assert answer.status == 200, answer.body
    told(stage, answer.headers["request-id"])


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("taken", [removed, cut_short, taken_down, carried_away])
def test_a_log_that_is_taken_away_takes_no_request_until_it_goes_on_elsewhere(stage, taken, durability):
    """Whoever goes on writing to a file without a name writes for nobody."""
    one = stage(audit=f'durability = "{durability}"')
    audit = one.folder / "audit"
    recorded(one)
    before, forwarded = one.metric("portcullis_audit_records_total", result="written"), one.ledger()["totals"]["requests"]
    taken(audit)
    refused = one.ask(body=chat())
    assert (refused.status, refused.headers["portcullis-reason"]) == (503, "audit_unavailable")
    assert one.ledger()["totals"]["requests"] == forwarded
    eventually(lambda: "taken away" in one.gateway.log, what="the word about it")
    eventually(lambda: one.ask(body=chat()).status == 200, what="an answer")
    eventually(lambda: fetch(one.admin + "/readyz").status == 200, what="readiness")
    first = (audit / "audit-2.jsonl").read_text().partition("\n")[0]
    assert json.loads(first)["seq"] >= before, "the chain goes on"
    second = Program(one.folder, "second", "run", "-c", "portcullis.toml")
    assert second.wait() == 2, "the directory is as locked as before"
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit").returncode == 1, "what is lost is missed"
    one.start()
    assert one.ask(body=chat()).status == 200


def refused_start(stage):
    """What a start says that is refused for the sake of the log, and leaves everything as it is."""
    before = {file: file.read_bytes() for file in (stage.folder / "audit").glob("*.*")}
    program = Program(stage.folder, "refused", "run", "-c", "portcullis.toml")
    try:
        assert program.wait() == 2, program.log
    finally:
        program.kill()
    assert {file: file.read_bytes() for file in (stage.folder / "audit").glob("*.*")} == before
    assert "state/audit.checkpoint" in program.log and "to begin a new log" in program.log
    return program.log


def test_a_log_that_has_no_place_takes_no_request(one):
    audit = one.folder / "audit"
    recorded(one)
    forwarded = one.ledger()["totals"]["requests"]
    taken_down(audit)
    audit.write_text("no directory")
    for _ in range(5):
        assert one.ask(body=chat()).headers["portcullis-reason"] == "audit_unavailable"
    # While it is tried again, it is not known to fail.
    eventually(lambda: "[-] audit" in fetch(one.admin + "/readyz?verbose").body.decode(), what="word that it fails")
    assert one.ledger()["totals"]["requests"] == forwarded
    audit.unlink()
    eventually(lambda: one.ask(body=chat()).status == 200, what="an answer")
    assert one.gateway.end() == 0
    shutil.rmtree(audit)
    assert "is not here" in refused_start(one)
    (one.folder / "state" / "audit.checkpoint").unlink()
    one.start()
    eventually(lambda: "the audit log begins at nothing" in one.gateway.log, what="the word about it")


def test_a_limit_on_the_size_of_files_refuses_and_ends_nothing(one):
    assert one.ask(body=chat()).status == 200
    most = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    size = (one.folder / "audit" / "audit-1.jsonl").stat().st_size
    resource.prlimit(one.gateway.process.pid, resource.RLIMIT_FSIZE, (size + 500, most[1]))
    refused = eventually(lambda: (answer := one.ask(body=chat())).status != 200 and answer, what="a refusal")
    # Whichever file it is that may not grow.
    assert refused.headers["portcullis-reason"] in ("audit_unavailable", "quota_unavailable")
    resource.prlimit(one.gateway.process.pid, resource.RLIMIT_FSIZE, most)
    eventually(lambda: one.ask(body=chat()).status == 200, what="an answer")


def test_a_key_that_was_lost_is_not_replaced_without_a_word(one):
    """Who verifies needs both from then on."""
    key = one.folder / "audit" / "audit.pub"
    before = key.read_text().strip()
    assert one.gateway.end() == 0
    (one.folder / "audit" / "audit.key").unlink()
    one.start()
    both = key.read_text().split()
    assert len(both) == 2 and both[0] == before
    told = one.gateway.printed(r"(.*signed by another key.*)\n")
    assert one.gateway.log.count("signed by another key") == 1
    assert "WARN" in told and both[0] in told and both[1] in told
    assert one.run("audit", "verify", "audit").returncode == 0


def test_every_line_is_as_the_schema_says(one):
    everything(one)
    lines = one.audit()
    kinds = {line["kind"] for line in lines}
    assert kinds == set(SCHEMA["properties"]["kind"]["enum"]) - {"dropped", "repaired"}
    found = sorted({f"{line['kind']}: {fault}" for line in lines for fault in faults(line, SCHEMA)})
    assert not found, "\n".join(found)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    (stop,) = [line for line in lines if line["kind"] == "stop"]
    assert stop["open"] == 0
    (refused,) = [line for line in lines if line["kind"] == "handshake_refused"]
    assert refused["result"] == "no_certificate"
    withdrawn = [line for line in lines if line["kind"] in ("revoke", "restore")]
    assert all("acme" in json.dumps(line) for line in withdrawn)
    assert "a test" in json.dumps(withdrawn[0])
    # The file watch may have been faster than the request.
    assert "requests_per_day" in json.dumps([line for line in lines if line["kind"] == "reload"])
    case = [line for line in lines if line.get("case") == "C-2024/7"]
    assert [line["kind"] for line in case] == ["accepted", "closed"]


def test_every_member_of_a_line_is_in_the_schema(one):
    everything(one)
    known = set(SCHEMA["properties"])
    for extra in SCHEMA["allOf"]:
        known |= extra["then"].get("properties", {}).keys()
    requests = [line for line in one.audit() if line["kind"] in ("accepted", "closed", "refused")]
    strange = {name for line in requests for name in line} - known
    assert not strange


def test_a_line_says_how_the_fullest_limit_moved(stage):
    limits = "[limits]\nrequests_per_day = 1_000_000\ntokens_per_day = 10_000\n"
    one = stage(orgs={"acme": Stage.ACME + limits}, quota=f'timezone = "{midday()}"')
    for _ in range(2):
        accepted, closed = told(one, whole(one))
        moved, settled = accepted["quota"], closed["quota"]
        reserved, used = (sum(line[what].values()) - line[what]["reasoning"]
                          for line, what in ((accepted, "reserved"), (closed, "usage")))  # fmt: skip
        assert {name: moved[name] for name in ("limit", "organization", "of")} == {
            "limit": "tokens_per_day", "organization": "acme", "of": 10_000}  # fmt: skip
        assert moved["after"] - moved["before"] == reserved
        assert settled == moved | {"before": moved["after"], "after": moved["before"] + used}
    assert moved["before"] > 0


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


@pytest.mark.parametrize("own", [True, False], ids=["secret-of-its-own", "signing-key"])
def test_a_line_says_which_body_it_was_to_those_who_hold_the_key(stage, own):
    one = stage(start=False, audit="body_hmac = true" + '\nbody_hmac_secret = "env:UPSTREAM_KEY"' * own)
    one.start(env={"UPSTREAM_KEY": "a secret"})
    body = json.dumps(chat()).encode()
    begun = today()
    answer = one.ask(body=body)
    ended = today()
    pem = (one.folder / "audit" / "audit.key").read_text()
    secret = b"a secret" if own else base64.b64decode("".join(pem.splitlines()[1:-1]))
    for line in told(one, answer.headers["request-id"]):
        day = line["body_hmac"]["day"]
        key = HKDF(hashes.SHA256(), 32, b"portcullis body identity v1", f"acme\n{day}".encode()).derive(secret)
        assert line["body_hmac"]["hmac_sha256"] == hmac.digest(key, body, "sha256").hex()
        assert begun <= day <= ended


# What does not belong there.


def test_neither_content_nor_credentials_are_written_anywhere(stage):
    names = ("prompt", "system", "upstream-key", "bearer", "api-key", "cookie", "broken", "image", "tool", "user")
    secret = {name: f"canary-{name}-{random.Random(name).getrandbits(64):016x}" for name in names}
    # Our log lies where the configuration is watched: without the exception each line would call for another.
    one = stage(start=False, more='[log]\nfilter = "trace,notify=off"')
    one.start(env={"UPSTREAM_KEY": secret["upstream-key"]})
    credentials = {"authorization": "Bearer " + secret["bearer"], "x_api_key": secret["api-key"]}
    credentials["cookie"] = "a=" + secret["cookie"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + secret["image"]}}
    content = {
        "messages": [
            {"role": "system", "content": secret["system"]},
            {"role": "user", "content": [{"type": "text", "text": secret["prompt"]}, image]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": secret["tool"]}}],
        "user": secret["user"],
    }
    for script in ("tokens-7", "fail-500", "fail-429", "drop", "rubbish", "redirect", "die-3", "no-usage"):
        for stream in (False, True):
            with contextlib.suppress(EOFError):
                one.ask(body=chat("mock-" + script, stream=stream) | content, **credentials)
    one.ask(body=chat("kept-back") | content, **credentials)
    one.ask(body=b'{"model": "mock-1", "messages": "' + secret["broken"].encode(), **credentials)
    one.ask(body=chat() | content, portcullis_purpose=None, **credentials)
    stream = Streaming(one, "mock-tokens-100000.tps-100", **credentials)
    eventually(lambda: stream.pieces)
    assert one.ledger()["totals"]["requests"] > 10, "it went upstream"
    assert secret["prompt"] in json.dumps(one.ledger())

    paths = ("/metrics", "/status.json", "/", "/policy.json", "/readyz?verbose")
    seen = {path: fetch(one.admin + path).body for path in paths}
    for command in (("config", "show", "-c", "portcullis.toml"), ("config", "show", "--json", "-c", "portcullis.toml"),
                    ("check", "-c", "portcullis.toml", "--against", one.admin), ("status",)):  # fmt: skip
        ran = one.run(*command, env={"UPSTREAM_KEY": secret["upstream-key"]})
        seen[" ".join(command)] = (ran.stdout + ran.stderr).encode()
    with H1(one.connect()) as connection:
        for path in ("/portcullis/v1/whoami", "/portcullis/v1/usage", "/v1/models"):
            seen[path] = connection.ask(path, **credentials).body
    stream.close()
    eventually(lambda: one.metric("portcullis_streams_active") == 0)
    assert one.gateway.end() == 0
    seen["the log"] = one.gateway.log.encode()
    seen |= {str(file): file.read_bytes() for place in ("audit", "state") for file in (one.folder / place).iterdir()}
    keys = b"".join(key.read_bytes() for key in (*one.folder.glob("*.key"), one.folder / "audit" / "audit.key"))
    private = [line for line in keys.splitlines() if not line.startswith(b"-----")]
    answers = [b"opens for", b"those who say", b"operator-account"]
    assert len(seen["the log"]) > 1000
    for where, bytes_seen in seen.items():
        for name, canary in secret.items():
            for form in (canary.encode(), base64.b64encode(canary.encode())):
                assert form not in bytes_seen, f"{name} in {where}"
        for line in private:
            assert line not in bytes_seen or where.endswith("audit.key"), f"a private key in {where}"
        for answer in answers:
            assert answer not in bytes_seen, f"an answer in {where}"


def test_a_key_written_where_a_reference_belongs_is_not_repeated(stage):
    one = stage(start=False)
    text = (one.folder / "portcullis.toml").read_text()
    (one.folder / "portcullis.toml").write_text(text.replace("env:UPSTREAM_KEY", "sk-canary-1234567890"))
    checked = one.run("check", "-c", "portcullis.toml")
    assert checked.returncode == 1
    assert "canary" not in checked.stdout + checked.stderr
    assert re.search(r"portcullis\.toml:\d+:\d+", checked.stdout + checked.stderr)


# A disk that is full.


@pytest.fixture
def small(tmp_path):
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount the small file system that this test fills")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place):
    """Leaves no byte of room."""
    with (place / "filler").open("wb", buffering=0) as filler:
        for size in (4096, 64, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                pass


LIMITED = Stage.ACME + "[limits]\nrequests_per_day = 1000\ntokens_per_day = 100_000\n"


def on(stage, place, **audit):
    made = stage(start=False, orgs={"acme": LIMITED}, quota=f'timezone = "{midday()}"')
    text = (made.folder / "portcullis.toml").read_text().replace('directory = "audit"', f'directory = "{place}/audit"')
    text = text.replace("[audit]\n", "[audit]\n" + "".join(f'{key} = "{value}"\n' for key, value in audit.items()))
    (made.folder / "portcullis.toml").write_text(text)
    made.start()
    return made


def logged(place):
    # A line that is still being written has no end yet.
    whole = (place / "audit" / "audit-1.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def until_full(stage, place):
    """Fills the disk, and asks until the room that the last page of the log had is used up as well."""
    fill(place)
    return eventually(lambda: (answer := stage.ask(body=chat())).status != 200 and answer, what="a refusal")


def test_a_full_disk_refuses_until_there_is_room_again(stage, small):
    one = on(stage, small)
    assert one.ask(body=chat()).status == 200
    running = Streaming(one, "mock-tokens-100000.tps-100")
    refused = until_full(one, small)
    assert (refused.status, refused.headers["portcullis-reason"]) == (503, "audit_unavailable")
    assert refused.json["error"]["type"] == "api_error"
    assert int(refused.headers["retry-after"]) >= 1
    before = one.ledger()["totals"]["requests"], one.limit("acme", "requests_per_day")["used"]
    for _ in range(3):
        assert one.ask(body=chat()).headers["portcullis-reason"] == "audit_unavailable"
    after = one.ledger()["totals"]["requests"], one.limit("acme", "requests_per_day")["used"]
    assert before == after, "neither forwarded nor counted"
    # While it is tried again, it is not known to fail.
    eventually(lambda: fetch(one.admin + "/readyz").status == 503, what="word that it fails")
    assert one.metric("portcullis_audit_records_total", result="failed") > 0
    assert running.ended is None, "what was accepted goes on"
    running.close()
    eventually(lambda: one.metric("portcullis_streams_active") == 0, what="the end of the stream")

    (small / "filler").unlink()
    eventually(lambda: one.ask(body=chat()).status == 200, what="an answer")
    # A signature that failed meanwhile is made up for a moment later.
    eventually(lambda: fetch(one.admin + "/readyz").status == 200, what="readiness")
    assert one.gateway.end() == 0
    verified = one.run("audit", "verify", small / "audit")
    assert verified.returncode == 0, verified.stderr
    lines = logged(small)
    accepted = {line["seq"] for line in lines if line["kind"] == "accepted"}
    assert accepted == {line["accepted_seq"] for line in lines if line["kind"] == "closed"}, "every one closed"
    assert len(accepted) == one.ledger()["totals"]["requests"]


def test_a_full_disk_that_may_not_stop_anybody_is_told_afterwards(stage, small):
    one = on(stage, small, on_failure="open")
    assert one.ask(body=chat()).status == 200
    fill(small)
    for _ in range(30):
        assert one.ask(body=chat()).status == 200
    (small / "filler").unlink()
    eventually(lambda: [line for line in logged(small) if line["kind"] == "dropped"], what="a dropped line")
    unrecorded = one.metric("portcullis_audit_records_total", result="dropped")
    assert one.metric("portcullis_audit_records_total", result="failed") == 0
    assert one.gateway.end() == 0
    lines = [line for line in logged(small) if line["kind"] == "dropped"]
    counts = {kind: sum(line.get(kind, 0) for line in lines) for kind in ("accepted", "closed")}
    assert 0 < counts["accepted"] <= 30 and sum(counts.values()) == unrecorded
    assert one.ledger()["totals"]["requests"] == counts["accepted"] + sum(line["kind"] == "accepted" for line in logged(small))
    # Whoever reads the log hears it, whichever way it is read.
    audit, words = str(small / "audit"), [f"{kind}={count}" for kind, count in counts.items()]
    whole = one.run("audit", "verify", audit, check=True).stdout
    assert "dropped   " + ", ".join(words) in whole
    assert json.loads(one.run("audit", "verify", audit, "--json", check=True).stdout)["dropped"] == counts
    report = ("audit", "report", "--org", "acme", "--dir", audit, "--format")
    text, told, csv = (one.run(*report, form, check=True) for form in ("text", "json", "csv"))
    assert ", ".join(words) in text.stdout and ", ".join(words) in csv.stderr
    assert json.loads(told.stdout)["report"]["dropped"] == counts
    assert {row["dropped"] for row in DictReader(csv.stdout.splitlines())} == {";".join(words)}


# No change unnoticed.


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A log of some thirty records that was closed in good order, and the book of what was used."""
    one = Stage(tmp_path_factory.mktemp("kept"))
    for number in range(8):
        assert one.ask(body=chat(f"mock-tokens-{number}", messages=LONG)).status == 200
    assert one.ask(body=chat(), portcullis_purpose=None).status == 400
    assert one.ask(body=chat("mock-tokens-9"), certificate="globex").status == 200
    assert one.gateway.end() == 0
    yield one
    one.close()


@pytest.fixture
def copied(kept, tmp_path):
    for file in (kept.folder / "audit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_log_is_verified_by_one_command(kept):
    for extra in ([], ["--key", "audit/audit.pub"], ["--checkpoint", "audit/audit-1.checkpoints"]):
        verified = kept.run("audit", "verify", "audit", *extra)
        assert verified.returncode == 0, verified.stderr
    summary = json.loads(kept.run("audit", "verify", "audit", "--json").stdout)
    lines = kept.audit()
    assert summary["ok"] and summary["summary"]["size"] == len(lines) and summary["unsigned"] == 0


def damage(segment):
    """Every kind of tampering, as (what, changed bytes, the first record that is wrong)."""
    lines = segment.splitlines(keepends=True)
    chance = random.Random(7)
    for place in sorted(chance.sample(range(len(segment)), 25)):
        changed = bytearray(segment)
        changed[place] ^= 1 << chance.randrange(7)
        yield f"bit of byte {place}", bytes(changed), segment[:place].count(b"\n")
    yield "a deletion", b"".join(lines[:4] + lines[5:]), 4
    yield "the first deleted", b"".join(lines[1:]), 0
    yield "a swap", b"".join(lines[:4] + [lines[5], lines[4]] + lines[6:]), 4
    yield "a repetition", b"".join(lines[:5] + lines[4:]), 5
    yield "a truncation", b"".join(lines[:-2]), len(lines) - 2
    yield "a cut line", segment[:-10], len(lines) - 1
    yield "an addition", segment + lines[-1], len(lines)
    yield "emptiness", b"", 0
    yield "an edit of the same length", segment.replace(b'"research"', b'"incident"', 1), next(
        number for number, line in enumerate(lines) if b'"research"' in line)


def test_every_change_is_found_and_located(kept, copied):
    segment = copied / "audit-1.jsonl"
    whole, wrong = segment.read_bytes(), []
    for what, changed, first in damage(whole):
        assert changed != whole, what
        segment.write_bytes(changed)
        verified = kept.run("audit", "verify", copied)
        said = verified.stdout + verified.stderr
        located = re.search(r"audit-1\.jsonl:(\d+)", said)
        # A line feed that was changed joins two lines; either may be named.
        if verified.returncode != 1 or not located or abs(int(located[1]) - 1 - first) > 1:
            wrong.append((what, verified.returncode, first + 1, said))
    assert not wrong


def test_another_key_or_a_changed_checkpoint_is_found(kept, copied):
    stranger = Stage(copied / "stranger")
    assert stranger.gateway.end() == 0
    stranger.close()
    other = stranger.folder / "audit" / "audit.pub"
    assert kept.run("audit", "verify", copied, "--key", other).returncode == 1
    notes = copied / "audit-1.checkpoints"
    text = notes.read_text()
    size = re.search(r"\n(\d+)\n", text)
    notes.write_text(text[: size.start(1)] + str(int(size[1]) + 1) + text[size.end(1):])
    assert kept.run("audit", "verify", copied).returncode == 1


def test_a_log_cut_off_with_its_checkpoints_is_found_by_one_kept_elsewhere(kept, copied):
    elsewhere = copied / "elsewhere"
    elsewhere.write_bytes((copied / "audit-1.checkpoints").read_bytes())
    lines = (copied / "audit-1.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "audit-1.jsonl").write_bytes(b"".join(lines[:3]))
    (copied / "audit-1.checkpoints").write_bytes(b"")
    assert kept.run("audit", "verify", copied, "--checkpoint", elsewhere).returncode == 1
    # What nobody can see from here is not passed over in silence.
    alone = kept.run("audit", "verify", copied)
    assert alone.returncode != 0 or "only with --checkpoint" in alone.stdout, alone.stdout


def test_how_far_a_checkpoint_kept_elsewhere_anchors_the_end_is_told(kept, copied):
    notes = (copied / "audit-1.checkpoints").read_text()
    newest, oldest = copied / "newest", copied / "oldest"
    newest.write_text(notes)
    # A note is a body, an empty line, and its signatures.
    body, signatures = notes.split("\n\n")[:2]
    oldest.write_text(f"{body}\n\n{signatures.splitlines()[0]}\n")
    size = int(body.splitlines()[1])
    told = {file: json.loads(kept.run("audit", "verify", copied, "--checkpoint", file, "--json").stdout) for file in (newest, oldest)}
    whole = told[newest]["summary"]["size"]
    assert size < whole
    assert [(one["end_anchored"], one["anchored_size"]) for one in told.values()] == [(True, whole), (False, size)]
    said = kept.run("audit", "verify", copied, "--checkpoint", oldest).stdout
    assert f"vouched for to record {size - 1} by" in said, said
    assert json.loads(kept.run("audit", "verify", copied, "--json").stdout)["anchored_size"] is None


def test_nothing_written_behind_a_signed_stop_is_signed(kept, copied):
    (copied / "audit.key").chmod(0o600)
    segment = copied / "audit-1.jsonl"
    lines = segment.read_bytes().splitlines()
    assert json.loads(lines[-1])["kind"] == "stop"
    for number, line in enumerate([one for one in lines if b'"kind":"accepted"' in one or b'"kind":"closed"' in one][:2]):
        forged = json.loads(line) | {"seq": len(lines), "prev": hashlib.sha256(b"\0" + lines[-1]).hexdigest()}
        forged |= {"organization": "globex", "time": json.loads(lines[-1])["time"]}
        if number:
            forged["accepted_seq"] = len(lines) - 1
        lines.append(json.dumps(forged, separators=(",", ":")).encode())
    segment.write_bytes(b"".join(line + b"\n" for line in lines))
    verified = kept.run("audit", "verify", copied)
    assert verified.returncode == 1 and f"audit-1.jsonl:{len(lines) - 1}:" in verified.stderr, verified
    assert kept.run("audit", "report", "--org", "globex", "--dir", copied).returncode == 1
    config = kept.folder / "forged.toml"
    config.write_text((kept.folder / "portcullis.toml").read_text().replace('directory = "audit"', f'directory = "{copied}"'))
    started = kept.run("run", "-c", config)
    assert started.returncode == 2 and "had stopped before them" in started.stderr + started.stdout, started
    assert segment.read_bytes().splitlines() == lines


def test_a_log_that_was_put_back_to_an_earlier_day_is_found_by_a_place_outside(stage, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    one = stage(audit=f'checkpoints = ["dir:{elsewhere}"]')
    assert one.gateway.end() == 0
    earlier = {file: file.read_bytes() for file in (one.folder / "audit").iterdir()}
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    newest = max(elsewhere.glob("*/*.checkpoint"), key=lambda note: int(note.stem))
    assert one.run("audit", "verify", "audit", "--checkpoint", newest).returncode == 0
    for file, content in earlier.items():
        file.write_bytes(content)
    assert one.run("audit", "verify", "audit").returncode == 0, "by itself it does not show"
    assert one.run("audit", "verify", "audit", "--checkpoint", newest).returncode == 1


def test_a_log_that_was_put_back_to_an_earlier_day_is_not_continued(stage):
    """What the state knows of it stands where whoever writes beside the log does not write."""
    one = stage()
    audit, known = one.folder / "audit", one.folder / "state" / "audit.checkpoint"
    assert one.gateway.end() == 0
    shutil.copytree(audit, one.folder / "earlier")
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    audit.rename(one.folder / "today")
    shutil.copytree(one.folder / "earlier", audit)
    assert one.run("audit", "verify", "audit").returncode == 0, "by itself it does not show"
    said = refused_start(one)
    assert "records are whole" in said and "portcullis audit verify DIR --checkpoint" in said, said
    assert one.run("audit", "verify", "audit", "--checkpoint", known).returncode == 1
    # The way that it names: the directory and what the state knows, out of the way together.
    shutil.rmtree(audit)
    assert "is not here" in refused_start(one)
    assert "state/audit.checkpoint vouches for is not here" in one.run("check", "-c", "portcullis.toml").stderr
    known.rename(one.folder / "known")
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    # And the other: the log as it was.
    shutil.rmtree(audit)
    (one.folder / "today").rename(audit)
    (one.folder / "known").rename(known)
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.run("audit", "verify", "audit", "--checkpoint", known).returncode == 0


def test_a_state_that_knows_of_no_log_or_of_less_of_it_keeps_nobody_out(stage):
    one = stage()
    known = one.folder / "state" / "audit.checkpoint"
    assert one.gateway.end() == 0
    oldest = known.read_bytes()
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    known.write_bytes(oldest)
    one.start()
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit", "--checkpoint", known).returncode == 0
    shutil.rmtree(one.folder / "state")
    one.start()
    assert one.ask(body=chat()).status == 200
    assert known.exists()


def test_no_kill_at_any_moment_keeps_the_next_start_out(stage):
    one = stage(audit='rotate = { size = "4KiB" }', orgs={"acme": Stage.ACME})
    one.gateway.kill()
    chance = random.Random(12)
    for number in range(15):
        # Some are killed while they start, some when they have written a few segments.
        gateway = Program(one.folder, "gateway", "run", "-c", "portcullis.toml")
        try:
            if number % 3:
                one.port = int(gateway.printed(r"partners on https://\S+:(\d+)"))
                for _ in range(chance.randrange(12)):
                    assert one.ask(body=chat()).status == 200
            with contextlib.suppress(subprocess.TimeoutExpired):
                gateway.process.wait(timeout=chance.random() * 0.3)
            assert gateway.process.poll() is None, gateway.log
        finally:
            gateway.kill()
    one.start()
    assert one.gateway.end() == 0
    known = one.folder / "state" / "audit.checkpoint"
    verified = one.run("audit", "verify", "audit", "--checkpoint", known, "--json")
    summary = json.loads(verified.stdout)
    assert verified.returncode == 0 and summary["unsigned"] == 0 and summary["segments"] > 1, verified


@pytest.mark.parametrize("rotate", ['size = "4KiB"', 'age = "1s"'])
def test_a_rotation_is_no_failed_delivery(stage, rotate):
    one = stage(audit=f'checkpoints = ["dir:worm"]\nrotate = {{ {rotate} }}', start=False)
    (one.folder / "worm").mkdir()
    one.start()

    def packed():
        assert one.ask(body=chat()).status == 200
        return len(list((one.folder / "audit").glob("*.gz"))) >= 3

    # Not as fast as it goes: the stop signs what every rotation ordered, one after the other.
    eventually(packed, within=60, every=0.1, what="three packed segments")
    assert one.metric("portcullis_audit_checkpoints_undelivered_total") == 0
    assert one.gateway.end() == 0
    assert "not delivered" not in one.gateway.log
    newest = max(one.folder.glob("worm/*/*.checkpoint"), key=lambda note: int(note.stem))
    assert one.run("audit", "verify", "audit", "--checkpoint", newest).returncode == 0


def test_a_directory_for_checkpoints_is_where_the_configuration_means_it(stage, tmp_path):
    one = stage(audit='checkpoints = ["dir:worm"]', start=False)
    config = one.folder / "portcullis.toml"
    worm = one.folder / "worm"
    (tmp_path / "worm").mkdir()

    def check():
        env = os.environ | {"UPSTREAM_KEY": KEY}
        return subprocess.run([BINARY, "check", "-c", config], cwd=tmp_path, env=env, capture_output=True, text=True)

    line = 1 + config.read_text().splitlines().index('checkpoints = ["dir:worm"]')
    for make, said in ((lambda: None, "No such file"), (worm.touch, "no directory")):
        make()
        done = check()
        assert done.returncode == 0 and str(worm) in done.stderr and said in done.stderr, done
        assert f"portcullis.toml:{line}:" in done.stderr
    worm.unlink()
    worm.mkdir()
    assert str(worm) not in check().stderr
    gateway = Program(tmp_path, "gateway", "run", "-c", config)
    try:
        gateway.printed("(admin on)")
        assert gateway.end() == 0
    finally:
        gateway.kill()
    assert list(worm.glob("*/*.checkpoint")) and not list((tmp_path / "worm").iterdir())


def test_an_fsync_before_every_answer_is_a_choice(stage):
    one = stage(audit='durability = "power"')
    assert [one.ask(body=chat()).status for _ in range(3)] == [200] * 3
    one.gateway.kill()
    assert one.run("audit", "verify", "audit").returncode == 0
    assert [line["kind"] for line in one.audit()].count("accepted") == 3


def request_id(line):
    return json.loads(line).get("request_id")


def test_one_record_is_proved_to_who_may_not_see_the_others(kept, tmp_path):
    lines = (kept.folder / "audit" / "audit-1.jsonl").read_text().splitlines()
    for seq in (0, 5, len(lines) - 1):
        proof = kept.run("audit", "prove", seq, "--dir", "audit", check=True).stdout
        (tmp_path / "proof.json").write_text(proof)
        checked = kept.run("audit", "prove", "--check", tmp_path / "proof.json", "--key", "audit/audit.pub")
        assert checked.returncode == 0, checked.stderr
        assert lines[seq] in checked.stdout
        own, others = request_id(lines[seq]), {request_id(line) for line in lines} - {None}
        assert not [other for other in others - {own} if other in proof]
        year = lines[seq].index("202")
        other = lines[seq][:year] + "203" + lines[seq][year + 3:]
        forged = proof.replace(json.dumps(lines[seq])[1:-1], json.dumps(other)[1:-1])
        assert forged != proof
        (tmp_path / "proof.json").write_text(forged)
        checked = kept.run("audit", "prove", "--check", tmp_path / "proof.json", "--key", "audit/audit.pub")
        assert checked.returncode == 1
    assert kept.run("audit", "prove", len(lines), "--dir", "audit").returncode == 1


def test_the_last_records_are_shown(kept):
    lines = (kept.folder / "audit" / "audit-1.jsonl").read_text().splitlines()
    shown = kept.run("audit", "tail", "-n", "3", "--json", "--dir", "audit", check=True).stdout.splitlines()
    assert shown == lines[-3:]
    readable = kept.run("audit", "tail", "-n", "30", "--dir", "audit", check=True).stdout
    assert "purpose_missing" in readable and "globex" in readable


def test_a_report_adds_up_to_what_the_model_sent(kept):
    today = datetime.datetime.now(datetime.timezone.utc).date()
    span = ("--from", str(today - datetime.timedelta(1)), "--until", str(today))
    report = ("audit", "report", "--org", "acme", *span, "--dir", "audit")
    told = json.loads(kept.run(*report, "--json", check=True).stdout)
    book = [one for one in kept.ledger()["requests"] if one["model"] != "mock-tokens-9"]
    sums = told["report"]["total"]
    assert (sums["accepted"], sums["open"], sums["refused"]) == (8, 0, 1)
    assert sums["endings"] == {"complete": 8}
    assert sums["refusals"] == {"purpose_missing": 1}
    assert sums["tokens"]["input"] == sum(one["input_tokens"] for one in book)
    assert sums["tokens"]["output"] == sum(one["output_tokens"] for one in book)
    csv = kept.run(*report, "--format", "csv", check=True).stdout
    assert "research" in csv and "globex" not in csv
    text = kept.run(*report, check=True).stdout
    assert "research" in text


def test_a_report_about_nothing_is_not_a_quiet_month(kept):
    backwards = kept.run("audit", "report", "--org", "acme", "--from", "2026-11-27", "--until", "2026-11-20", "--dir", "audit")
    assert (backwards.returncode, backwards.stdout) == (2, "")
    assert "--until is before --from" in backwards.stderr
    nobody = kept.run("audit", "report", "--org", "amce", "--dir", "audit")
    assert nobody.returncode == 0
    assert "no request of amce" in nobody.stderr and "did you mean acme?" in nobody.stderr
    quiet = kept.run("audit", "report", "--org", "acme", "--until", "2020-01-01", "--dir", "audit")
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_a_report_says_where_retention_left_the_log_to_begin(stage):
    one = stage(audit='rotate = { size = "8KiB" }\nkeep = "1s"')

    def retired():
        assert one.ask(body=chat()).status == 200
        return (one.folder / "audit" / "audit.retired").exists() and not (one.folder / "audit" / "audit-1.jsonl.gz").exists()

    eventually(retired, within=60, every=0.05, what="a retired segment")
    assert one.gateway.end() == 0
    here = one.run("audit", "tail", "-n", "100000", "--json", "--dir", "audit", check=True).stdout.splitlines()
    first = json.loads(here[0])
    assert first["seq"] > 0
    year = ("audit", "report", "--org", "acme", "--dir", "audit", "--from", "2020-01-01")
    text, told, csv = (one.run(*year, "--format", form, check=True) for form in ("text", "json", "csv"))
    for said in (text.stderr, told.stderr, csv.stderr, text.stdout):
        assert f"records 0 to {first['seq'] - 1} were retired" in said and first["time"] in said
    assert f"from {len(here)} verified records, {len(here)} of them signed" in text.stdout
    assert json.loads(told.stdout)["report"]["kept_from"] == first["time"]
    (row,) = DictReader(csv.stdout.splitlines())
    assert row["kept_from"] == first["time"]
    since = one.run(*year[:-1], first["time"], "--json", check=True)
    assert (json.loads(since.stdout)["report"]["kept_from"], since.stderr) == (None, "")


def test_an_export_holds_every_record_in_ocsf(kept):
    lines = (kept.folder / "audit" / "audit-1.jsonl").read_text().splitlines()
    exported = kept.run("audit", "export", "--format", "ocsf", "--dir", "audit", check=True).stdout.splitlines()
    events = [json.loads(line) for line in exported]
    assert [event["raw_data"] for event in events] == lines
    for event in events:
        assert (event["class_uid"], event["category_uid"]) == (6003, 6)
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert isinstance(event["time"], int) and event["metadata"]["version"]


def test_no_command_vouches_for_a_changed_log(kept, copied):
    segment = copied / "audit-1.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"acme"', b'"acne"', 1))
    for command in (("prove", "0"), ("report", "--org", "acme"), ("export", "--format", "ocsf")):
        assert kept.run("audit", *command, "--dir", copied).returncode == 1, command


def test_a_running_log_is_verified_as_well(one):
    assert one.ask(body=chat()).status == 200
    for _ in range(3):
        assert one.run("audit", "verify", "audit").returncode == 0
        assert one.ask(body=chat()).status == 200


def test_packed_segments_are_verified_without_unpacking(stage):
    one = stage(audit='rotate = { size = "64KiB" }')
    with H1(one.connect()) as connection:
        while not list((one.folder / "audit").glob("*.gz")):
            assert connection.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    verified = json.loads(one.run("audit", "verify", "audit", "--json").stdout)
    assert verified["ok"] and verified["segments"] >= 2
    packed = min((one.folder / "audit").glob("*.gz"))
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(bytes(content))
    assert one.run("audit", "verify", "audit").returncode in (1, 2)


def test_a_refused_line_says_what_was_refused(stage):
    one = stage(orgs={"acme": re.sub(r"models = .*", 'models = ["mock-1"]', Stage.ACME)})
    incident = {"portcullis_purpose": "incident"}
    for asked, body, code, purpose, case, detail in [
        ({"portcullis_purpose": "forbidden", "portcullis_case": "C-1"}, chat(), "purpose_not_permitted", "forbidden", "C-1", "not granted"),
        ({"portcullis_purpose": "never-heard"}, chat(), "purpose_unknown", None, None, "declared: never-heard"),
        (incident, chat(), "case_missing", "incident", None, None),
        (incident | {"portcullis_case": "a case"}, chat(), "case_invalid", "incident", None, "its line breaks the grammar"),
        ({}, chat(fallbacks=["mock-2"]), "model_not_permitted", "research", None, "named beside the model: mock-2"),
        ({}, chat(models=["mock-9"]), "model_not_permitted", "research", None, "named beside the model: mock-9"),
    ]:  # fmt: skip
        refused = one.ask(body=body, **asked)
        assert refused.headers["portcullis-reason"] == code
        (line,) = told(one, refused.headers["request-id"], ["refused"])
        assert [line.get(name) for name in ("purpose", "case", "detail")] == [purpose, case, detail], code
    assert one.metric("portcullis_purpose_requests_total", purpose="never-heard") == 0
    one.run("revoke", "--purpose", "research", check=True)
    (line,) = told(one, one.ask(body=chat()).headers["request-id"], ["refused"])
    assert (line["purpose"], line["detail"]) == ("research", "revoked by command")


def test_a_first_start_that_failed_leaves_nothing_that_the_next_takes_for_a_loss(stage):
    one = stage(start=False)
    path = one.folder / "portcullis.toml"
    text = path.read_text()
    path.write_text(text.replace('directory = "audit"', 'directory = "/proc/none/audit"'))
    failed = Program(one.folder, "failed", "run", "-c", "portcullis.toml")
    assert failed.wait() == 2, failed.log
    path.write_text(text)
    one.start()
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    assert "ERROR" not in one.gateway.log, one.gateway.log
