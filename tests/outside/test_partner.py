"""What partners' programs read: refusals in the form they asked for, ids, the models list, and routes that end at the list.

The codes' tables and orders are contracts with tools that nobody here can change any more.
"""

import json
import re
from urllib.parse import quote

import pytest
from stage import H1, Stage, chat, eventually, midday
from test_upstream import H2

ACME = """\
id = "acme"
name = "Acme CERT"
purposes = ["research", "incident"]
models = ["mock-*", "gpt-*", "claude-*"]
[[identity]]
authority = "partners"
uri = "spiffe://partners/acme"
"""
# Refused by its budget, its rate and its concurrency, by models that are limited apart.
LIMITED = ACME.replace("acme", "globex").replace("Acme", "Globex") + """\
[model.day.limits]
requests_per_day = 1
[model.minute.limits]
requests_per_minute = 1
[model.small.limits]
tokens_per_minute = 10
"""
MODELS = """
[model.day]
match = ["gpt-day", "claude-day"]
[model.minute]
match = ["gpt-minute", "claude-minute"]
[model.small]
match = ["gpt-small", "claude-small"]
[model.listed]
match = ["gpt-listed", "claude-listed", "kept-back", "elsewhere-1", "gpt-glob-*"]
"""
DIALECTS = {"openai": ("/v1/chat/completions", "gpt"), "anthropic": ("/v1/messages", "claude")}
ID = re.compile(r"req_[0-9a-zA-Z]{8,64}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    orgs = {"acme": ACME + "[limits]\nrequests_per_day = 1_000_000\n", "globex": LIMITED}
    one = Stage(tmp_path_factory.mktemp("partner"), orgs=orgs, more=MODELS, quota=f'timezone = "{midday()}"')
    one.partners.leaf("stranger", uri="spiffe://partners/stranger")
    yield one
    one.close()


def ask(one, protocol="h1", path="/v1/chat/completions", body=None, certificate="acme", **headers):
    if protocol == "h1":
        return one.ask(path, body, certificate, **headers)
    if ":method" not in headers and body is None:
        headers[":method"] = "GET"
    with H2(one.connect(certificate, alpn=("h2",))) as client:
        return client.ask(path, body, **headers)


def lines(one, reply):
    """The two audit lines of an answer that was forwarded; the second is written when the answer has ended."""

    def both():
        found = [line for line in one.audit() if line.get("request_id") == reply.headers["x-request-id"]]
        return found if len(found) == 2 else None

    accepted, closed = eventually(both, what="the closing line")
    assert (accepted["kind"], closed["kind"]) == ("accepted", "closed")
    return accepted, closed


def refused(reply):
    return reply.status, reply.headers["portcullis-reason"]


# Refusals.

# Code: status, type, how to earn it (with a model's suffix), and the param.
REFUSALS = {
    "purpose_missing": (400, "invalid_request_error", {"portcullis_purpose": None}, "portcullis-purpose"),
    "purpose_invalid": (400, "invalid_request_error", {"portcullis_purpose": "a,b"}, "portcullis-purpose"),
    "purpose_unknown": (400, "invalid_request_error", {"portcullis_purpose": "unheard-of"}, "portcullis-purpose"),
    "purpose_not_permitted": (403, "permission_error", {"portcullis_purpose": "forbidden"}, "portcullis-purpose"),
    "case_missing": (400, "invalid_request_error", {"portcullis_purpose": "incident"}, "portcullis-case"),
    "case_invalid": (400, "invalid_request_error", {"portcullis_case": "a b"}, "portcullis-case"),
    "model_not_permitted": (403, "permission_error", {"body": {"model": "kept-back"}}, "model"),
    "model_missing": (400, "invalid_request_error", {"body": {"model": None}}, "model"),
    "body_invalid": (400, "invalid_request_error", {"body": b"{"}, None),
    "media_type_not_supported": (415, "invalid_request_error", {"content_type": "text/plain"}, "content-type"),
    "host_not_served": (421, "invalid_request_error", {"host": "elsewhere.example"}, "host"),
    "method_not_allowed": (405, "invalid_request_error", {":method": "PUT"}, None),
    "organization_unknown": (403, "permission_error", {"certificate": "stranger"}, None),
    "insufficient_quota": (429, None, {"certificate": "globex", "model": "day"}, None),
    "quota_request_too_large": (400, "invalid_request_error", {"certificate": "globex", "model": "small"}, None),
    "rate_limit_exceeded": (429, "rate_limit_error", {"certificate": "globex", "model": "minute"}, None),
}


def earn(one, code, dialect, protocol="h1", **more):
    path, family = DIALECTS[dialect]
    how = dict(REFUSALS[code][2]) | more
    model = how.pop("model", "x")
    body = chat(f"{family}-{model}", max_tokens=5)
    given = how.pop("body", {})
    if isinstance(given, dict):
        body = {name: value for name, value in (body | given).items() if value is not None}
    else:
        body = given
    if protocol == "h2" and "host" in how:
        how[":authority"] = how.pop("host")
    if code in ("insufficient_quota", "rate_limit_exceeded"):
        # Uses up the one that there is.
        ask(one, protocol, path, body, **how)
    return ask(one, protocol, path, body, **how)


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_refusal_is_one_envelope_that_both_vendors_sdks_read(scene, code, dialect, protocol):
    status, kind, _, param = REFUSALS[code]
    if code == "insufficient_quota":
        kind = {"openai": "insufficient_quota", "anthropic": "rate_limit_error"}[dialect]
    reply = earn(scene, code, dialect, protocol)
    assert refused(reply) == (status, code)
    assert reply.headers["content-type"] == "application/json"
    body = reply.json
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message", "code", "param"}
    assert (body["error"]["type"], body["error"]["code"], body["error"]["param"]) == (kind, code, param)
    assert len(body["error"]["message"]) > 10 and "globex" not in body["error"]["message"]
    assert ID.fullmatch(body["request_id"])
    assert reply.headers["x-request-id"] == reply.headers["request-id"] == body["request_id"]
    waits = status == 429
    assert ("retry-after" in reply.headers, "retry-after-ms" in reply.headers) == (waits, waits)
    # Waiting is pointless, or longer than a minute.
    pointless = not waits or int(reply.headers["retry-after"]) > 60
    assert reply.headers.get("x-should-retry") == ("false" if pointless else None)
    if waits:
        exact, rounded = int(reply.headers["retry-after-ms"]), int(reply.headers["retry-after"])
        assert 0 < rounded and rounded - 1 < exact / 1000 <= rounded * 1.1 + 0.001


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("code", ["purpose_missing", "insufficient_quota", "body_invalid", "method_not_allowed"])
def test_a_refusal_is_a_problem_where_that_is_accepted(scene, code, dialect):
    reply = earn(scene, code, dialect, accept="application/problem+json")
    status = REFUSALS[code][0]
    assert refused(reply) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json
    assert (body["status"], body["code"], body["request_id"]) == (status, code, reply.headers["x-request-id"])
    assert body["title"] and body["detail"] and body["type"]
    assert "error" not in body


@pytest.mark.parametrize(
    ("accept", "problem"),
    [
        (None, False), ("*/*", False), ("application/json", False), ("application/problem+json", True),
        ("application/json, application/problem+json", True), ("application/problem+json;q=0.5, application/json", True),
        ("Application/Problem+JSON", True), ("application/problem+json;q=0", False), ("application/problem+jsonx", False),
        ("text/event-stream", False), ("application/problem+xml", False),
    ],
)  # fmt: skip
def test_accept_asks_for_a_problem_only_where_it_names_one(scene, accept, problem):
    kind = earn(scene, "purpose_missing", "openai", accept=accept).headers["content-type"]
    assert kind == ("application/problem+json" if problem else "application/json")


def test_an_answer_is_no_problem_whatever_is_accepted(scene):
    assert scene.ask(body=chat(), accept="application/problem+json").headers["content-type"] == "application/json"


# Ids.


def test_every_answer_has_an_id_of_its_own_that_the_record_has_too(scene):
    replies = [scene.ask(body=chat(), x_request_id="mine", request_id="mine", x_client_request_id="their-own") for _ in range(3)]
    replies += [scene.ask("/v1/models"), scene.ask("/portcullis/v1/whoami"), scene.ask("/v1/files")]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(ids)) == len(ids) and all(map(ID.fullmatch, ids))
    assert [reply.headers["request-id"] for reply in replies] == ids
    (refusal,) = eventually(lambda: [line for line in scene.audit() if line.get("request_id") == ids[5]])
    assert (refusal["kind"], refusal["reason"]) == ("refused", "route_not_found")
    seen = {call["request_id"]: dict(call["headers"]) for call in scene.ledger()["requests"]}
    for reply in replies[:3]:
        theirs = reply.headers["portcullis-upstream-request-id"]
        assert not {"x-request-id", "request-id", "x-client-request-id"} & set(seen[theirs])
        closed = lines(scene, reply)[1]
        assert (closed["client_request_id"], closed["upstream_request_id"]) == ("their-own", theirs)


@pytest.mark.parametrize("sent", ["x" * 5000, "a\tb", "{}"])
def test_a_clients_own_id_is_kept_short(scene, sent):
    reply = scene.ask(body=chat(), x_client_request_id=sent)
    assert reply.status == 200
    assert lines(scene, reply)[1]["client_request_id"] == sent[:128]


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_trace_goes_on_and_none_is_invented(scene, protocol):
    for headers in ({"traceparent": TRACE, "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}, {}):
        reply = ask(scene, protocol, body=chat(), **headers)
        assert reply.status == 200
        theirs = reply.headers["portcullis-upstream-request-id"]
        (call,) = [call for call in scene.ledger()["requests"] if call["request_id"] == theirs]
        assert {name: value for name, value in call["headers"] if name.startswith("trace")} == headers
        assert lines(scene, reply)[1].get("traceparent") == headers.get("traceparent")


# The models list.

LISTED = {"gpt-day", "claude-day", "gpt-minute", "claude-minute", "gpt-small", "claude-small", "gpt-listed", "claude-listed"}


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_the_models_list_is_in_both_vendors_shapes_and_holds_what_is_granted(scene, protocol):
    """Concrete names that are granted and served: no globs, nothing that no upstream has, nothing of others."""
    calls = scene.ledger()["totals"]["requests"]
    reply = ask(scene, protocol, "/v1/models")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    listed = reply.json
    assert set(listed) == {"object", "data", "has_more", "first_id", "last_id"}
    assert {item["id"] for item in listed["data"]} == LISTED
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])
    for item in listed["data"]:
        assert set(item) == {"id", "object", "type", "created", "created_at", "owned_by", "display_name"}
        assert (item["object"], item["type"], item["display_name"]) == ("model", "model", item["id"])
        assert isinstance(item["created"], int) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", item["created_at"])
    assert scene.ledger()["totals"]["requests"] == calls


@pytest.mark.parametrize("after", ["after", "after_id"])
def test_the_models_list_can_be_read_page_by_page(scene, after):
    seen, query = [], "limit=3"
    while True:
        page = scene.ask(f"/v1/models?{query}").json
        seen += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
        assert len(page["data"]) == 3
        query = f"limit=3&{after}={page['last_id']}"
    whole = [item["id"] for item in scene.ask("/v1/models").json["data"]]
    assert seen == whole
    assert [item["id"] for item in scene.ask("/v1/models?order=desc&limit=1000").json["data"]] == whole[::-1]
    before = scene.ask(f"/v1/models?before_id={whole[3]}&limit=2").json
    assert [item["id"] for item in before["data"]] == whole[1:3]
    gone = scene.ask(f"/v1/models?{after}={whole[2]}.gone").json
    assert [item["id"] for item in gone["data"]] == whole[3:], "a name that is withdrawn keeps its place"


# What a model id may hold beside letters and digits, and every cursor is a name of it.
ODD = sorted(["gpt-ft:4.1:org::id", "gpt-org/model", "gpt-a@2025", "gpt-a+b", "gpt-a=b", "gpt-a&b", "gpt-50%", "gpt-%2f", "gpt-a#b", "gpt-a?b"])


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_every_model_that_is_listed_is_a_place_to_go_on_from(stage, protocol):
    one = stage(orgs={"acme": Stage.ACME.replace('"mock-*"', f'"mock-*", {", ".join(map(json.dumps, ODD))}')})
    whole = [item["id"] for item in ask(one, protocol, "/v1/models").json["data"]]
    assert set(ODD) <= set(whole)
    for at, name in enumerate(whole):
        # As httpx writes it, and as curl's --data-urlencode does.
        for written in {quote(name, safe="/:"), quote(name, safe=""), "".join(f"%{ord(letter):02x}" for letter in name)}:
            for cursor, wanted in (("after", whole[at + 1:]), ("after_id", whole[at + 1:]), ("before_id", whole[:at])):
                reply = ask(one, protocol, f"/v1/models?{cursor}={written}")
                assert [item["id"] for item in reply.json["data"]] == wanted, (cursor, written)


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("cursor", ["after", "after_id", "before_id"])
def test_a_cursor_that_is_no_models_name_is_told_so(scene, protocol, cursor):
    for value in ("%20", "%00", "%c3%a9", "%2a", "%", "%6", "%zz", "a%22", "a" * 129):
        reply = ask(scene, protocol, f"/v1/models?{cursor}={value}")
        assert refused(reply) == (400, "request_invalid"), value
        assert reply.json["error"]["message"].startswith(f"The query's {cursor} must be the id of a model"), value


def test_what_the_models_list_holds_can_be_asked_and_what_it_lacks_cannot(scene):
    for name in LISTED | {"kept-back", "elsewhere-1", "nowhere"}:
        path, _ = DIALECTS["anthropic" if name.startswith("claude") else "openai"]
        reply = scene.ask(path, chat(name, max_tokens=5))
        assert (reply.status == 200) == (name in LISTED), (name, reply.body)


def test_a_model_on_the_other_vendors_route_is_told_where_it_is_served(scene):
    """One that is granted; of others nothing is told but that."""
    for name, here, there in (("claude-listed", "openai", "anthropic"), ("gpt-listed", "anthropic", "openai")):
        reply = scene.ask(DIALECTS[here][0], chat(name, max_tokens=5))
        assert refused(reply) == (403, "model_not_permitted")
        said = reply.json["error"]["message"]
        elsewhere = re.fullmatch(rf"The model {name} is not served on {DIALECTS[here][0]}, but on (.*)\.", said).group(1)
        assert DIALECTS[there][0] in elsewhere.split(", ")
    assert "whoami" in scene.ask(DIALECTS["anthropic"][0], chat("kept-back", max_tokens=5)).json["error"]["message"]


# Routes.

WRONG_TARGETS = {
    "/": 404, "/v1": 404, "/v1/": 404, "/v1/files": 404, "/v1/models/gpt-listed": 404, "/v1/chat/completions/": 404,
    "/V1/chat/completions": 404, "/v1/Chat/Completions": 404, "/v1/messages/batches": 404, "/v1/images/generations": 404,
    "/v1/chat": 404, "/chat/completions": 404, "/metrics": 404, "/livez": 404, "/status.json": 404, "/-/reload": 404,
    "/portcullis/v1": 404, "/portcullis/v1/whoami/": 404, "/v1/responses/resp_1": 404, "/v1/audio/speech": 404,
    "//v1/chat/completions": 400, "/v1//chat/completions": 400, "/v1/../v1/chat/completions": 400, "/./v1/chat/completions": 400,
    "/v1/chat%2fcompletions": 400, "/v1/chat/completions%00": 400, "/v1/chat/completions;a=b": 400, "/v1/chat\\completions": 400,
    "/v1/%63hat/completions": 400, "/v1/chat/completions/..": 400, "*": 400,
}  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_what_is_no_route_is_refused_and_reaches_nobody(scene, protocol):
    calls = scene.ledger()["totals"]["requests"]
    for target, status in WRONG_TARGETS.items():
        for method in ("POST", "GET"):
            reply = ask(scene, protocol, target, chat() if method == "POST" else None, **{":method": method})
            code = {404: "route_not_found", 400: "request_invalid"}[status]
            assert refused(reply) == (status, code), (target, method)
    assert scene.ledger()["totals"]["requests"] == calls


POSTS = ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"]
GETS = ["/v1/models", "/portcullis/v1/whoami", "/portcullis/v1/usage"]


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_a_route_has_one_method_and_a_405_names_it(scene, protocol, method):
    calls = scene.ledger()["totals"]["requests"]
    for path in POSTS + GETS:
        right = "POST" if path in POSTS else "GET"
        if method == right:
            continue
        with H1(scene.connect()) if protocol == "h1" else H2(scene.connect(alpn=("h2",))) as client:
            if protocol == "h2":
                reply = client.ask(path, **{":method": method})
                status, headers = reply.status, reply.headers
            else:
                client.send(client.head(path, **{":method": method}))
                status, headers = client.read_head()
        assert (status, headers["portcullis-reason"], headers.get("allow")) == (405, "method_not_allowed", right), path
    assert scene.ledger()["totals"]["requests"] == calls


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_connect_and_trace_are_no_methods_here(scene, method):
    reply = scene.ask("/v1/chat/completions" if method == "TRACE" else "localhost:443", **{":method": method})
    assert refused(reply) == (400, "request_invalid")


QUERIES = [
    ("/v1/messages", "beta=true", True), ("/v1/messages/count_tokens", "beta=true", True), ("/v1/messages", "beta", True),
    ("/v1/messages", "beta=true&beta=true", False), ("/v1/messages", "beta=true&x=1", False), ("/v1/messages", "limit=1", False),
    ("/v1/messages", "BETA=true", False), ("/v1/messages", "beta=%2e", False), ("/v1/messages", "", False),
    ("/v1/chat/completions", "beta=true", False), ("/v1/chat/completions", "api-version=1", False), ("/v1/responses", "x", False),
    ("/v1/embeddings", "a=b", False), ("/v1/models", "limit=5", True), ("/v1/models", "order=asc&limit=1", True),
    ("/v1/models", "before_id=gpt-day&after_id=claude-day", True), ("/v1/models", "beta=true", False), ("/v1/models", "x=1", False),
    ("/portcullis/v1/whoami", "limit=1", False), ("/portcullis/v1/usage", "x", False),
]  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize(("path", "query", "allowed"), QUERIES)
def test_a_query_holds_only_what_the_route_lists(scene, path, query, allowed, protocol):
    body = None if path in GETS else chat("claude-x" if "messages" in path else "gpt-x", max_tokens=5)
    calls = scene.ledger()["totals"]["requests"]
    reply = ask(scene, protocol, f"{path}?{query}", body)
    if allowed:
        assert reply.status == 200, reply.body
        if body:
            assert scene.ledger()["requests"][-1]["path"] == f"{path}?{query}"
    else:
        assert refused(reply) == (400, "request_invalid")
        assert scene.ledger()["totals"]["requests"] == calls


@pytest.mark.parametrize("path", GETS)
def test_self_service_needs_an_identity_and_no_purpose_and_counts_nothing(scene, path):
    def used():
        return scene.limit("acme", "requests_per_day")["used"]

    before = used()
    assert scene.ask(path).status == 200
    assert scene.ask(path, portcullis_purpose="unheard-of").status == 200
    assert refused(scene.ask(path, certificate="stranger")) == (403, "organization_unknown")
    assert refused(scene.ask(path, body=b"{}", **{":method": "GET"})) == (400, "request_invalid")
    assert used() == before


# count_tokens.


def test_count_tokens_is_a_request_without_tokens(stage):
    orgs = {"acme": ACME + "[limits]\nrequests_per_day = 10\ntokens_per_day = 1000\n"}
    one = stage(orgs=orgs, quota=f'timezone = "{midday()}"')
    body = json.dumps(chat("claude-x"), indent=3).encode()
    reply = one.ask("/v1/messages/count_tokens", body)
    assert reply.status == 200 and reply.json["input_tokens"] > 0
    assert one.ledger()["requests"][-1]["body"] == body.decode()
    used = {unit: eventually(lambda u=unit: (one.limit("acme", f"{u}_per_day"),))[0] for unit in ("requests", "tokens")}
    assert (used["requests"]["used"], used["tokens"]["used"], used["tokens"]["reserved"]) == (1, 0, 0)
    assert refused(one.ask("/v1/messages/count_tokens", chat("claude-x"), portcullis_purpose=None)) == (400, "purpose_missing")
    assert refused(one.ask("/v1/messages/count_tokens", {"messages": []})) == (400, "model_missing")
    assert refused(one.ask("/v1/messages/count_tokens", chat("kept-back"))) == (403, "model_not_permitted")
    assert one.limit("acme", "requests_per_day")["used"] == 1
    for _ in range(9):
        assert one.ask("/v1/messages/count_tokens", body).status == 200
    assert refused(one.ask("/v1/messages/count_tokens", body)) == (429, "insufficient_quota")
    assert one.limit("acme", "tokens_per_day")["used"] == 0


# Models that a body names beside its own.


@pytest.mark.parametrize("enforce", ["hard", "bounded", "post"])
def test_whatever_names_a_model_names_one_that_is_granted(stage, enforce):
    one = stage(quota=f'enforce = "{enforce}"\n', orgs={"acme": ACME})
    named = {
        "fallbacks": lambda model: {"fallbacks": [{"model": model}]},
        "tools": lambda model: {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": model}]},
    }
    for member, naming in named.items():
        reply = one.ask("/v1/messages", chat("claude-x") | naming("kept-back"))
        assert refused(reply) == (403, "model_not_permitted"), member
        assert refused(one.ask("/v1/messages", chat("claude-x") | naming(7))) == (400, "body_invalid"), member
        served = (400, "quota_request_too_large") if enforce == "hard" else None
        reply = one.ask("/v1/messages", chat("claude-x") | naming("claude-y"))
        assert refused(reply) == served if served else reply.status == 200, member


@pytest.mark.parametrize("enforce", ["hard", "bounded", "post"])
def test_who_may_answer_in_a_models_place_is_held_to_its_limits(stage, enforce):
    models = '[model.dear]\nmatch = ["claude-dear*"]\n[model.cheap]\nmatch = ["claude-cheap*", "gpt-cheap*"]\n'
    one = stage(quota=f'enforce = "{enforce}"\n', orgs={"acme": ACME}, more=models)
    for model, other in (("claude-cheap", "claude-dear"), ("claude-cheap", "claude-x"), ("claude-x", "claude-dear")):
        reply = one.ask("/v1/messages", chat(model) | {"fallbacks": [{"model": "claude-cheap-2"}, {"model": other}]})
        assert refused(reply) == (400, "request_invalid")
        named = (model, other) if model == "claude-cheap" else (model, "claude-cheap-2")
        assert all(name in reply.json["error"]["message"] for name in named), reply.json
    assert refused(one.ask("/v1/chat/completions", chat("gpt-cheap") | {"models": ["gpt-x"]})) == (400, "request_invalid")
    # One of the same group may; and so may whoever only works for the answer.
    tool = {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-dear"}]}
    for members in ({"fallbacks": [{"model": "claude-cheap-2"}]}, tool):
        reply = one.ask("/v1/messages", chat("claude-cheap") | members)
        served = refused(reply) == (400, "quota_request_too_large") if enforce == "hard" else reply.status == 200
        assert served, reply.body


# Purposes and cases.

PURPOSES = [
    ({"portcullis_purpose": "research"}, None), ({"portcullis_purpose": None, "x_purpose": "research"}, None),
    ({"x_purpose": "research"}, "purpose_invalid"), ({"portcullis_purpose": None}, "purpose_missing"),
    ({"portcullis_purpose": None, "purpose": "research"}, "purpose_missing"), ({"portcullis_purpose": ""}, "purpose_invalid"),
    ({"portcullis_purpose": "Research"}, "purpose_invalid"), ({"portcullis_purpose": "research,incident"}, "purpose_invalid"),
    ({"portcullis_purpose": "research; q=1"}, "purpose_invalid"), ({"portcullis_purpose": '"research"'}, "purpose_invalid"),
    ({"portcullis_purpose": "r" * 64}, "purpose_unknown"), ({"portcullis_purpose": "r" * 65}, "purpose_invalid"),
    ({"portcullis_purpose": "-research"}, "purpose_invalid"), ({"portcullis_purpose": "rese\xe4rch"}, "purpose_invalid"),
    ({"portcullis_purpose": None, "x_purpose": "forbidden"}, "purpose_not_permitted"),
    ({"portcullis_purpose": "incident"}, "case_missing"),
    ({"portcullis_purpose": "incident", "portcullis_case": "INC-2026/11"}, None),
    ({"portcullis_purpose": "incident", "portcullis_case": ""}, "case_invalid"), ({"portcullis_case": "/x"}, "case_invalid"),
    ({"portcullis_purpose": "incident", "portcullis_case": "c" * 64}, None), ({"portcullis_case": "c" * 65}, "case_invalid"),
    ({"portcullis_case": "a,b"}, "case_invalid"), ({"portcullis_case": "INC-1"}, None),
    # The purpose is judged first.
    ({"portcullis_purpose": "unheard-of", "portcullis_case": "a b"}, "purpose_unknown"),
    ({"portcullis_purpose": "forbidden", "portcullis_case": "a b"}, "purpose_not_permitted"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize(("headers", "code"), PURPOSES)
def test_a_purpose_and_its_case_follow_their_grammar_and_their_order(scene, protocol, headers, code):
    calls = scene.ledger()["totals"]["requests"]
    reply = ask(scene, protocol, body=chat(), **headers)
    assert reply.headers.get("portcullis-reason") == code
    assert reply.status == (200 if code is None else REFUSALS[code][0])
    assert scene.ledger()["totals"]["requests"] == calls + (code is None)
    if code is None:
        sent = dict(scene.ledger()["requests"][-1]["headers"])
        assert not {"portcullis-purpose", "x-purpose", "portcullis-case"} & set(sent)
        for line in lines(scene, reply):
            assert line["purpose"] == (headers.get("portcullis_purpose") or headers.get("x_purpose") or "research")
            assert line.get("case") == headers.get("portcullis_case")


@pytest.mark.parametrize("second", ["portcullis-purpose: research", "portcullis-purpose: incident", "x-purpose: research"])
def test_two_purposes_are_none(scene, second):
    with H1(scene.connect()) as client:
        head = client.head(body=chat())
        client.send(head.replace(b"\r\n", b"\r\n" + second.encode() + b"\r\n", 1))
        status, headers = client.read_head()
    assert (status, headers["portcullis-reason"]) == (400, "purpose_invalid")


def test_white_space_around_a_purpose_is_http_1s_own(scene):
    assert scene.ask(body=chat(), portcullis_purpose="  research \t").status == 200
    assert refused(ask(scene, "h2", body=chat(), portcullis_purpose=" research")) == (400, "request_invalid")


def test_the_purpose_header_can_have_another_name(stage):
    one = stage(more='[purpose]\nheader = "x-agency-purpose"\n')
    assert one.ask(body=chat(), portcullis_purpose=None, x_agency_purpose="research").status == 200
    assert one.ask(body=chat(), portcullis_purpose=None, x_purpose="research").status == 200
    assert refused(one.ask(body=chat(), x_purpose="research")) == (400, "purpose_invalid")
    missing = one.ask(body=chat(), portcullis_purpose=None)
    assert refused(missing) == (400, "purpose_missing")
    assert "x-agency-purpose" in missing.json["error"]["message"]


# The order of judgement: what comes first, answers.

FAULTS = [
    ("host_not_served", {"host": "elsewhere.example"}),
    ("route_not_found", {"path": "/v1/nothing"}),
    ("media_type_not_supported", {"content_type": "text/plain"}),
    ("organization_unknown", {"certificate": "stranger"}),
    ("purpose_missing", {"portcullis_purpose": None}),
    ("case_invalid", {"portcullis_case": "a b"}),
    ("body_invalid", {"body": b"{"}),
    ("model_not_permitted", {"body": json.dumps({"model": "kept-back", "messages": []}).encode()}),
]


@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_of_many_faults_the_first_in_order_answers(scene, first):
    wrong = {}
    for _, fault in FAULTS[:first - 1 if first else None:-1] if first else FAULTS[::-1]:
        wrong |= fault
    wrong.setdefault("body", chat())
    assert scene.ask(**wrong).headers["portcullis-reason"] == FAULTS[first][0]


def test_what_the_head_decides_is_refused_before_the_body_is_read(scene):
    with H1(scene.connect()) as client:
        client.send(client.head(body=b"", content_length="1000000", portcullis_purpose="forbidden"))
        status, headers = client.read_head()
    assert (status, headers["portcullis-reason"]) == (403, "purpose_not_permitted")
