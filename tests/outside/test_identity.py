"""Who somebody is: one authority and one name that it vouches for, judged anew for every request, in a fixed order."""

import datetime
import hashlib
import json
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import DAY, H1, Authority, Stage, Streaming, chat, eventually, fetch, midday, replace

WHOAMI, USAGE = "/portcullis/v1/whoami", "/portcullis/v1/usage"
PARTNERS, BOTH = (
    ", ".join(f'{{ name = "{name}", file = "{name}.pem", crl = "{name}.crl" }}' for name in names)
    for names in (["partners"], ["partners", "others"])
)
# The day that it is in that zone, and will be for hours: midnight may come between here and the last test.
TODAY, ZONE = datetime.datetime.now(datetime.timezone.utc).date(), f'timezone = "{midday()}"'
ONE_DAY = datetime.timedelta(days=1)


def organization(name="acme", identity=None, before="", after="", purposes=("research", "incident")):
    """An organization's file; `before` stands above the identities, `after` below."""
    identity = identity or f'uri = "spiffe://partners/{name}"'
    listed = ", ".join(f'"{purpose}"' for purpose in purposes)
    return f"""\
id = "{name}"
name = "{name.title()} CERT"
purposes = [{listed}]
models = ["mock-*", "gpt-*", "claude-*"]
{before}
[[identity]]
authority = "partners"
{identity}
{after}
"""


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def der(certificate):
    return certificate.public_bytes(serialization.Encoding.DER)


def spki(certificate):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return certificate.public_key().public_bytes(serialization.Encoding.DER, form)


def who(stage, certificate):
    """The organization that a certificate is here, or the code of the refusal."""
    answer = stage.ask(WHOAMI, certificate=certificate)
    if answer.status == 200:
        return answer.json["organization"]
    assert answer.status == 403
    assert answer.json["error"]["code"] == answer.headers["portcullis-reason"]
    return answer.headers["portcullis-reason"]


def reload(stage):
    return fetch(stage.admin + "/-/reload", method="POST")


def renewed(authority, file, old):
    """Another certificate for the key of `old`."""
    certificate = authority.leaf(file, uri="spiffe://partners/renewed")
    builder = (
        x509.CertificateBuilder().subject_name(certificate.subject).issuer_name(certificate.issuer)
        .public_key(serialization.load_pem_private_key((authority.folder / f"{old}.key").read_bytes(), None).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificate.not_valid_before_utc).not_valid_after(certificate.not_valid_after_utc)
    )  # fmt: skip
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (authority.folder / f"{file}.key").write_bytes((authority.folder / f"{old}.key").read_bytes())
    signed = builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (authority.folder / f"{file}.pem").write_bytes(signed)


# What a certificate has to show.


@pytest.mark.parametrize("kind, own, renewal", [
    ("uri", "acme", "organization_unknown"), ("dns", "acme", "organization_unknown"),
    ("leaf_sha256", "acme", "organization_unknown"), ("spki_sha256", "acme", "acme"),
])  # fmt: skip
def test_one_mark_makes_the_organization_and_nothing_else_does(stage, kind, own, renewal):
    one = stage(start=False)
    leaf = one.partners.leaf("marked", uri="spiffe://partners/marked", dns=["acme.partners.example"])
    mark = {"uri": "spiffe://partners/marked", "dns": "acme.partners.example",
            "leaf_sha256": sha256(der(leaf)), "spki_sha256": sha256(spki(leaf))}[kind]  # fmt: skip
    one.write_org("acme", organization(identity=f'{kind} = "{mark}"'))
    renewed(one.partners, "renewed", "marked")
    one.start()
    assert who(one, "marked") == own
    assert who(one, "renewed") == renewal
    assert who(one, "acme") == "organization_unknown"


@pytest.mark.parametrize("names", [
    {"common_name": "spiffe://partners/acme"},
    {"common_name": "acme"},
    {"common_name": "acme.partners.example", "uri": "spiffe://partners/else"},
    {"uri": "spiffe://partners/acme/"}, {"uri": "spiffe://partners/ACME"}, {"uri": "spiffe://partners/acme2"},
    {"dns": ["acme.partners.example", "else.partners.example"]},
    {"dns": ["*.partners.example"]}, {"dns": ["acme.partners.example.else"]},
    {"dns": ["spiffe://partners/acme"]},
])  # fmt: skip
def test_what_only_looks_like_an_identity_is_none(stage, names):
    """Not the common name; not a name beside the name; not one of two DNS names; not a wildcard."""
    one = stage(orgs={"acme": organization(), "globex": organization("globex", 'dns = "acme.partners.example"')})
    one.partners.leaf("tried", **names)
    assert who(one, "tried") == "organization_unknown"
    assert one.metric("portcullis_requests_total", org="unknown", code="403") == 1
    line = eventually(lambda: [line for line in one.audit() if line["kind"] == "refused"], what="the record")[0]
    assert (line["reason"], line.get("organization")) == ("organization_unknown", None)
    assert re.fullmatch("[0-9a-f]{64}", line["certificate"]["sha256"])


def test_another_partners_authority_cannot_mint_an_identity(stage):
    one = stage(start=False, authorities=BOTH)
    others = Authority(one.folder, "others")
    others.crl()
    others.leaf("minted", uri="spiffe://partners/acme", dns=["acme.partners.example"])
    one.write_org("globex", organization("globex", 'dns = "acme.partners.example"'))
    one.start()
    assert who(one, "acme") == "acme"
    assert who(one, "minted") == "organization_unknown"


def test_a_chain_that_two_authorities_vouch_for_belongs_to_neither(stage):
    """`others` has cross-signed `partners`: its file holds the key of `partners` as an intermediate."""
    one = stage(start=False, authorities=BOTH)
    others = Authority(one.folder, "others")
    theirs = one.partners.certificate
    builder = (
        x509.CertificateBuilder().subject_name(theirs.subject).issuer_name(others.certificate.subject)
        .public_key(theirs.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(theirs.not_valid_before_utc).not_valid_after(theirs.not_valid_after_utc)
    )  # fmt: skip
    for extension in theirs.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    crossed = builder.sign(others.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    replace(one.folder / "others.pem", others.pem + crossed)
    replace(one.folder / "others.crl", others.crl("own.crl").read_bytes() + (one.folder / "partners.crl").read_bytes())
    one.start()
    with one.connect() as connection, pytest.raises(OSError, match="(?i)alert"):
        connection.recv(1)
    # The alert is on its way before it is counted.
    eventually(lambda: one.metric("portcullis_tls_handshakes_total", result="bad_certificate") == 1, what="the count")


# Where from, when, and whether at all.


@pytest.mark.parametrize("networks, expected", [
    ('["192.0.2.0/24"]', "network_not_permitted"), ('["192.0.2.0/24", "127.0.0.0/8"]', "acme"),
    ('["127.0.0.1"]', "acme"), ('["::1"]', "network_not_permitted"),
])  # fmt: skip
def test_networks_bind_an_identity(stage, networks, expected):
    one = stage(orgs={"acme": organization(after=f"networks = {networks}")})
    assert who(one, "acme") == expected


def test_who_comes_by_ipv4_to_a_listener_of_both_is_written_down_as_told(stage):
    one = stage(start=False, orgs={"acme": organization(after='networks = ["192.0.2.0/24"]')})
    text = (one.folder / "portcullis.toml").read_text()
    (one.folder / "portcullis.toml").write_text(text.replace("127.0.0.1:0", "[::]:0", 1))
    one.start()
    answer = one.ask(body=chat())
    assert answer.status == 403 and "127.0.0.1" in answer.json["error"]["message"]
    refused = eventually(lambda: [line for line in one.audit() if "peer" in line], what="the refusal on record")
    assert all(line["peer"].startswith("127.0.0.1:") for line in refused)


@pytest.mark.parametrize("pinned, named, expected", [
    ("192.0.2.0/24", "127.0.0.0/8", "network_not_permitted"), ("192.0.2.0/24", None, "network_not_permitted"),
    ("::ffff:127.0.0.0/104", "192.0.2.0/24", "acme"), (None, "192.0.2.0/24", "acme"),
])  # fmt: skip
def test_a_pinned_certificate_is_held_to_its_own_networks_and_not_to_those_of_its_name(stage, pinned, named, expected):
    one = stage(start=False)
    mark = f'leaf_sha256 = "{sha256(der(one.acme))}"'
    bound = lambda network: f'networks = ["{network}"]\n' if network else ""
    entries = f'[[identity]]\nauthority = "partners"\n{mark}\n{bound(pinned)}'
    one.write_org("acme", organization(after=bound(named) + entries))
    one.start()
    assert who(one, "acme") == expected
    told = one.run("explain", "-c", "portcullis.toml", "--cert", "acme.pem", "--path", WHOAMI).stdout
    assert (", from " in told) is bool(pinned), told


@pytest.mark.parametrize("first, last, expected", [
    (None, TODAY - ONE_DAY, "grant_expired"), (TODAY + ONE_DAY, None, "grant_expired"), (TODAY, TODAY, "acme"),
    (TODAY - ONE_DAY, None, "acme"), (None, TODAY, "acme"), (TODAY - 9 * ONE_DAY, TODAY - ONE_DAY, "grant_expired"),
])  # fmt: skip
@pytest.mark.parametrize("whose", ["own", "parent's"])
def test_a_grant_holds_from_its_first_to_its_last_day(stage, whose, first, last, expected):
    dates = ", ".join(f'{key} = "{day}"' for key, day in [("from", first), ("until", last)] if day)
    valid = f"valid = {{ {dates} }}"
    child = organization(before=valid if whose == "own" else 'parent = "lead"')
    lead = organization("lead", before="" if whose == "own" else valid)
    one = stage(orgs={"acme": child, "lead": lead}, quota=ZONE)
    assert who(one, "acme") == expected


@pytest.mark.parametrize("suspended", ["acme", "lead", "crown"])
def test_a_suspended_ancestor_suspends_the_whole_line_below_it(stage, suspended):
    line = [("acme", 'parent = "lead"'), ("lead", 'parent = "crown"'), ("crown", "")]

    def files(suspended):
        status = {suspended: '\nstatus = "suspended"'}
        return {name: organization(name, before=parent + status.get(name, "")) for name, parent in line}

    one = stage(orgs=files(None))
    one.partners.leaf("crown", uri="spiffe://partners/crown")
    assert (who(one, "acme"), who(one, "crown")) == ("acme", "crown")
    for name, text in files(suspended).items():
        one.write_org(name, text)
    assert reload(one).status == 200
    assert who(one, "acme") == "organization_suspended"
    assert who(one, "crown") == ("organization_suspended" if suspended == "crown" else "crown")


@pytest.mark.parametrize("beyond", [
    'purposes = ["research", "incident"]', 'models = ["mock-*", "kept-back"]',
    f'valid = {{ until = "{TODAY + 30 * ONE_DAY}" }}',
], ids=["purposes", "models", "valid"])  # fmt: skip
def test_a_grant_beyond_the_parents_is_a_mistake_with_its_place(stage, beyond):
    child = organization(before='parent = "lead"', purposes=["research"])
    key = beyond.split(" = ")[0]
    child = re.sub(rf"^{key} = .*\n", "", child, flags=re.MULTILINE).replace("\n\n", f"\n{beyond}\n\n", 1)
    child = child.replace('parent = "lead"\n', "", 1).replace("name =", 'parent = "lead"\nname =', 1)
    lead = organization("lead", purposes=["research"], before=f'valid = {{ until = "{TODAY + 9 * ONE_DAY}" }}')
    one = stage(start=False, orgs={"acme": child, "lead": lead})
    checked = one.run("check", "-c", "portcullis.toml")
    line = next(number for number, text in enumerate(child.splitlines(), 1) if text.startswith(key))
    assert checked.returncode == 1
    assert re.search(rf"acme\.toml:{line}:\d+", checked.stdout + checked.stderr), checked.stdout + checked.stderr


# Mistakes that would make somebody somebody else.


AMBIGUOUS = {
    "the same uri": organization("globex", 'uri = "spiffe://partners/acme"'),
    "the same uri as a second identity": organization(
        "globex", after='[[identity]]\nauthority = "partners"\nuri = "spiffe://partners/acme"'),
}  # fmt: skip
WRONG = AMBIGUOUS | {
    "the common name": organization("globex", 'cn = "globex"'),
    "two marks": organization("globex", 'uri = "spiffe://partners/globex"\ndns = "globex.example"'),
    "no mark": organization("globex", 'networks = ["192.0.2.0/24"]'),
    "networks that are none": organization("globex", 'uri = "spiffe://partners/globex"\nnetworks = []'),
    "an unknown authority": organization("globex").replace('authority = "partners"', 'authority = "partner"'),
    "a digest cut short": organization("globex", 'leaf_sha256 = "abcd"'),
    "no network": organization("globex", after='networks = ["192.0.2.0/33"]'),
    "an unknown status": organization("globex", before='status = "paused"'),
    "no date": organization("globex", before='valid = { until = "tomorrow" }'),
    "the end before the beginning": organization("globex", before='valid = { from = "2026-11-02", until = "2026-11-01" }'),
    "an unknown parent": organization("globex", before='parent = "nobody"'),
    "itself as parent": organization("globex", before='parent = "globex"'),
    "the id of another": organization("acme", 'uri = "spiffe://partners/globex"'),
}


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    one = Stage(tmp_path_factory.mktemp("identity"))
    yield one
    one.close()


@pytest.mark.parametrize("what", WRONG)
def test_a_mistaken_identity_is_refused_with_its_place_and_changes_nothing(steady, what):
    steady.write_org("globex", WRONG[what])
    checked = steady.run("check", "-c", "portcullis.toml")
    assert checked.returncode == 1
    assert re.search(r"globex\.toml:\d+:\d+", checked.stdout + checked.stderr), checked.stdout + checked.stderr
    found = json.loads(steady.run("check", "-c", "portcullis.toml", "--format", "json").stdout)
    assert "globex.toml" in json.dumps(found)
    refused = reload(steady)
    assert refused.status == 422 and "globex.toml" in refused.json["text"]
    assert (who(steady, "acme"), who(steady, "globex")) == ("acme", "globex")


def test_an_ambiguity_points_at_the_identity_that_came_second(stage):
    one = stage(start=False, orgs={"acme": organization(), "globex": AMBIGUOUS["the same uri as a second identity"]})
    lines = AMBIGUOUS["the same uri as a second identity"].splitlines()
    second = max(number for number, line in enumerate(lines, 1) if line == "[[identity]]")
    checked = one.run("check", "-c", "portcullis.toml")
    places = [int(line) for line in re.findall(r"globex\.toml:(\d+):\d+", checked.stdout + checked.stderr)]
    assert places and all(second <= line <= second + 2 for line in places), checked.stdout + checked.stderr
    assert "acme" in checked.stdout + checked.stderr, "with whom"
    assert one.run("run", "-c", "portcullis.toml").returncode == 1


def test_an_ambiguity_that_shows_only_at_run_time_is_nobody_and_loud(stage):
    one = stage(orgs={"acme": organization(), "globex": organization("globex", 'dns = "globex.example"')})
    one.partners.leaf("both", uri="spiffe://partners/acme", dns=["globex.example"])
    assert who(one, "both") == "organization_unknown"
    eventually(lambda: re.search(r"(WARN|ERROR).*(identit|organization)", one.gateway.log), what="a loud word in the log")
    assert who(one, "acme") == "acme"


def test_an_identity_that_moves_takes_its_open_streams_down(stage):
    """A certificate that is globex's from now on must not go on as acme."""
    one = stage()
    stream = Streaming(one)
    one.write_org("acme", organization(identity='uri = "spiffe://partners/elsewhere"'))
    one.write_org("globex", organization("globex", 'uri = "spiffe://partners/acme"'))
    assert reload(one).status == 200
    assert stream.wait() == "cut"
    assert who(one, "acme") == "globex"


# The order of judgement: the first that fails answers.


STATES = {
    "suspended": ("organization_suspended", 'status = "suspended"'),
    "dates": ("grant_expired", f'valid = {{ until = "{TODAY - ONE_DAY}" }}'),
    "network": ("network_not_permitted", 'networks = ["192.0.2.0/24"]'),
}
# Each step: its name, and the code of its refusal.
ORDER = [
    ("shape", "request_invalid"), ("host", "host_not_served"), ("route", "route_not_found"),
    ("method", "method_not_allowed"), ("media type", "media_type_not_supported"),
    ("organization", "organization_unknown"), *((name, code) for name, (code, _) in STATES.items()),
    ("purpose", "purpose_missing"), ("purpose known", "purpose_unknown"), ("purpose granted", "purpose_not_permitted"),
    ("case", "case_missing"), ("size", "body_too_large"), ("JSON", "body_invalid"), ("model named", "model_missing"),
    ("model granted", "model_not_permitted"), ("quota", "insufficient_quota"),
]  # fmt: skip
STEPS = [name for name, _ in ORDER]
BY_HEAD = STEPS[:STEPS.index("case") + 1]


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """Acme has used up its day."""
    limits = "[limits]\nrequests_per_day = 1"
    options = {"listen": 'max_body = "2KiB"', "quota": ZONE}
    one = Stage(tmp_path_factory.mktemp("order"), orgs={"acme": organization(after=limits)}, **options)
    one.partners.leaf("stranger", uri="spiffe://partners/stranger")
    assert one.ask(body=chat()).status == 200
    yield one
    one.close()


def wrong_from(step):
    """A request, and acme's file, in which this step and all that follow fail."""
    place = STEPS.index(step)

    def fails(name):
        return STEPS.index(name) >= place

    headers = {"x_odd": "1"} if fails("shape") else {}
    if fails("host"):
        headers["host"] = "elsewhere.example"
    if fails("method"):
        headers[":method"] = "PUT"
    if fails("media type"):
        headers["content-type"] = "text/plain"
    purposes = {"purpose": None, "purpose known": "unheard-of", "purpose granted": "forbidden", "case": "incident"}
    headers["portcullis-purpose"] = next((purposes[name] for name in purposes if fails(name)), "research")
    bodies = {"size": b"{" + b" " * 5000, "JSON": b"{", "model named": b'{"messages": []}',
              "model granted": json.dumps(chat("kept-back")).encode()}  # fmt: skip
    body = next((bodies[name] for name in bodies if fails(name)), json.dumps(chat()).encode())
    suspended, dates, network = (text if fails(name) else "" for name, (_, text) in STATES.items())
    limits = "[limits]\nrequests_per_day = 1"
    file = organization(before=f"{suspended}\n{dates}", after=f"{network}\n{limits}")
    path = "/nowhere" if fails("route") else "/v1/chat/completions"
    return path, body, headers, "stranger" if fails("organization") else "acme", file


@pytest.mark.parametrize("step, code", ORDER, ids=STEPS)
def test_the_first_that_fails_answers_and_leaves_no_trace(spent, step, code):
    path, body, headers, certificate, file = wrong_from(step)
    spent.write_org("acme", file)
    assert reload(spent).status == 200
    used = spent.limit("acme", "requests_per_day")
    with H1(spent.connect(certificate)) as connection:
        written = head(path, body, headers)
        if step in BY_HEAD:
            # What the head decides is refused before the body is read: here the body never comes.
            written = written[:written.index(b"\r\n\r\n") + 4]
        connection.send(written)
        status, answered = connection.read_head()
        assert answered["portcullis-reason"] == code
        assert json.loads(connection.read_body(answered))["error"]["code"] == code
    assert spent.limit("acme", "requests_per_day") == used
    assert spent.ledger()["totals"]["requests"] == 1


def head(path, body, headers):
    """`H1.head`, but for names with an underscore."""
    odd = headers.pop("x_odd", None)
    written = H1(None).head(path, body, **headers)
    return written.replace(b"\r\nhost:", b"\r\nx_odd: 1\r\nhost:", 1) if odd else written


# What a partner may ask about itself.


def test_whoami_has_the_shape_that_is_promised(stage):
    valid = f'valid = {{ from = "{TODAY}", until = "{TODAY + 9 * ONE_DAY}" }}'
    one = stage(orgs={"acme": organization(before=valid).replace('"mock-*"', '"mock-*", "gpt-4.1-mini"')})
    answer = one.ask(WHOAMI)
    told = answer.json
    assert answer.headers["content-type"].startswith("application/json")
    assert list(told) == ["organization", "name", "authority", "certificate", "purposes", "models", "valid", "generation",
                          "model_patterns"]  # fmt: skip
    assert (told["organization"], told["name"], told["authority"]) == ("acme", "Acme CERT", "partners")
    assert told["certificate"].keys() == {"sha256", "uri", "not_after"}
    assert told["certificate"]["sha256"] == sha256(der(one.acme))
    assert told["certificate"]["uri"] == "spiffe://partners/acme"
    assert datetime.datetime.fromisoformat(told["certificate"]["not_after"]) == one.acme.not_valid_after_utc
    assert told["purposes"] == [{"id": "research", "text": "Work on own systems", "case": told["purposes"][0]["case"]},
                                {"id": "incident", "text": "A live incident", "case": "required"}]  # fmt: skip
    assert told["purposes"][0]["case"] != "required"
    assert told["models"] == ["gpt-4.1-mini"], "names, not patterns"
    assert told["model_patterns"] == ["mock-*", "gpt-*", "claude-*"], "only where there are some"
    assert set(told["valid"]) == {"from", "until"}
    assert told["valid"]["from"].startswith(str(TODAY))
    assert told["generation"] == one.status()["generation"]
    gauge = one.metric("portcullis_client_cert_not_after_timestamp_seconds", org="acme")
    assert gauge == one.acme.not_valid_after_utc.timestamp()


def test_whoami_tells_the_patterns_of_granted_groups_too(stage):
    granted = organization().replace('"mock-*", "gpt-*", "claude-*"', '"frontier", "claude-*", "mock-1", "gpt-5*"')
    groups = '[model.frontier]\nmatch = ["gpt-5*", "gpt-named"]\n[model.small]\nmatch = ["gpt-4*"]\n'
    told = stage(orgs={"acme": granted}, more=groups).ask(WHOAMI).json
    assert told["models"] == ["gpt-named", "mock-1"]
    assert told["model_patterns"] == ["claude-*", "gpt-5*"], "each once"


LIMIT = ["id", "scope", "unit", "window", "limit", "used", "reserved", "remaining", "resets_at"]


def test_usage_has_the_shape_that_is_promised_and_tells_the_truth(stage):
    own = """
[limits]
requests_per_minute = 600
tokens_per_day = 100_000
cost_per_month = "2500.00"
concurrent_requests = 20
[purpose.incident.limits]
tokens_per_day = 5_000
[model.mocks.limits]
tokens_per_minute = 50_000
"""
    more = '[model.mocks]\nmatch = ["mock-*"]\nprice_per_mtok = { input = "2.50", output = "15.00" }'
    acme = organization(before='parent = "lead"', after=own).replace('"mock-*", "gpt-*", "claude-*"', '"mocks"')
    lead = organization("lead", after="[limits]\nrequests_per_day = 1000\n").replace('"mock-*", "gpt-*", "claude-*"', '"mocks"')
    one = stage(orgs={"acme": acme, "lead": lead}, more=more)
    one.partners.leaf("lead", uri="spiffe://partners/lead")
    today = datetime.datetime.now(datetime.timezone.utc).date()
    # Long enough for the model's own count to be near the gateway's, which disputes one far below it.
    body = chat("mock-tokens-10", messages=[{"role": "user", "content": "a question of some length " * 20}])
    assert one.ask(body=body).status == 200
    seen = eventually(lambda: one.ledger()["totals"]["complete"] and one.ledger()["totals"], what="the answer at the model")
    tokens = seen["input_tokens"] + seen["output_tokens"]

    def told():
        answer = one.ask(USAGE)
        assert answer.status == 200
        mine = next(limit for limit in answer.json["limits"] if limit["id"] == "tokens_per_day")
        return answer.json if mine["used"] == tokens and mine["reserved"] == 0 else None

    usage = eventually(told, what="the settled use")
    assert list(usage) == ["organization", "limits", "totals"] and usage["organization"] == "acme"
    assert usage["totals"].keys() == {"day", "month"}
    mine = [limit for limit in usage["limits"] if limit["scope"]["organization"] == "acme"]
    theirs = [limit for limit in usage["limits"] if limit not in mine]
    assert all(list(limit)[:len(LIMIT)] == LIMIT for limit in usage["limits"])
    assert all(limit["scope"].keys() == {"organization", "purpose", "model"} for limit in usage["limits"])
    assert [limit["id"] for limit in theirs] == ["requests_per_day"] and theirs[0]["used"] == 1
    by_scope = {(limit["id"], limit["scope"]["purpose"], limit["scope"]["model"]): limit for limit in mine}
    assert len(by_scope) == len(mine) == 6
    plain = {limit["id"]: limit for limit in mine if limit["scope"] == {"organization": "acme", "purpose": None, "model": None}}
    day = plain["tokens_per_day"]
    assert (day["unit"], day["window"], day["limit"], day["remaining"]) == ("tokens", "day", 100_000, 100_000 - tokens)
    resets = datetime.datetime.fromisoformat(day["resets_at"])
    assert resets == datetime.datetime.combine(today + ONE_DAY, datetime.time(), datetime.timezone.utc)
    assert (plain["concurrent_requests"]["window"], plain["concurrent_requests"]["resets_at"]) == (None, None)
    assert plain["concurrent_requests"]["used"] == 0
    cost = plain["cost_per_month"]
    assert (cost["unit"], cost["window"]) == ("cost", "month")
    assert all(isinstance(cost[key], str) and re.fullmatch(r"\d+\.\d+", cost[key]) for key in ("limit", "used", "remaining"))
    assert float(cost["used"]) == pytest.approx((seen["input_tokens"] * 2.5 + seen["output_tokens"] * 15) / 1e6, rel=1e-6)
    assert by_scope["tokens_per_day", "incident", None]["used"] == 0
    assert by_scope["tokens_per_minute", None, "mocks"]["limit"] == 50_000
    assert plain["requests_per_minute"]["limit"] == 600
    assert "lead" not in json.dumps(usage) or theirs[0]["scope"]["organization"] == "lead"
    # status.json tells the same, in the same form.
    assert one.limit("acme", "tokens_per_day") == day
    # Asking is free.
    for _ in range(3):
        one.ask(WHOAMI), one.ask(USAGE), one.ask("/v1/models")
    after = {limit["id"]: limit for limit in one.ask(USAGE).json["limits"] if limit["scope"]["organization"] != "acme"}
    assert after["requests_per_day"]["used"] == 1


@pytest.mark.parametrize("path", [WHOAMI, USAGE, "/v1/models"])
def test_self_service_needs_an_identity_and_no_purpose(stage, path):
    one = stage(orgs={"acme": organization()})
    assert one.ask(path).status == 200
    refused = one.ask(path, certificate="globex")
    assert (refused.status, refused.headers["portcullis-reason"]) == (403, "organization_unknown")
    posted = one.ask(path, body=b"{}", **{":method": "POST"})
    assert (posted.status, posted.headers["portcullis-reason"]) == (405, "method_not_allowed")


def test_who_is_kept_out_keeps_its_name_in_every_book(stage):
    """Each comes on a connection of its own, on which nothing was ever asked."""
    lead = organization("lead", identity='uri = "spiffe://partners/nobody"')
    one = stage(orgs={"acme": organization(before='parent = "lead"'), "lead": lead})
    seen = {}

    def refused(code, **asked):
        answer = one.ask(**({"path": WHOAMI} | asked))
        assert answer.headers["portcullis-reason"] == code
        seen[code] = seen.get(code, 0) + 1

    for name in ("acme", "lead"):
        one.run("revoke", "--org", name, check=True)
        refused("organization_suspended")
        refused("route_not_found", path="/nowhere")
        one.run("restore", "--org", name, check=True)
    for code, text in STATES.values():
        before, after = ("", text) if code == "network_not_permitted" else (text, "")
        one.write_org("acme", organization(before=f'parent = "lead"\n{before}', after=after))
        assert reload(one).status == 200
        refused(code)
    lines = eventually(
        lambda: (found := [line for line in one.audit() if line["kind"] == "refused"])[sum(seen.values()) - 1:] and found,
        what="the records",
    )
    assert [line.get("organization") for line in lines] == ["acme"] * len(lines)
    for code, times in seen.items():
        assert one.metric("portcullis_request_refusals_total", org="acme", reason=code) == times
    report = one.run("audit", "report", "--org", "acme", "--dir", "audit", "--json", check=True)
    assert json.loads(report.stdout)["report"]["total"]["refusals"] == seen


def test_who_declares_no_purpose_of_its_own_is_told_which_are(stage):
    own = {"acme": organization(), "globex": organization("globex", purposes=())}
    one = stage(orgs=own, more='[purpose]\nheader = "x-what-for"\n')
    given = {"portcullis_purpose": None}

    def told(code, certificate="acme", **headers):
        error = one.ask(body=chat(), certificate=certificate, **(given | headers)).json["error"]
        assert (error["code"], error["param"]) == (code, "x-what-for")
        return error["message"]

    wrong = [("purpose_missing", {}), ("purpose_invalid", {"x_what_for": "a,b"}), ("purpose_unknown", {"x_what_for": "other"}),
             ("purpose_not_permitted", {"x_what_for": "forbidden"})]  # fmt: skip
    for code, headers in wrong:
        assert told(code, **headers).endswith(" Yours are: research, incident.")
        assert told(code, "globex", **headers).endswith(" None is granted to this organization: ask the operator.")
    one.run("revoke", "--purpose", "research", check=True)
    assert told("purpose_missing").endswith(" Yours are: incident.")
