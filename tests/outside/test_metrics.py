"""What Prometheus scrapes: every family that the catalogue names, figures that are true, and no label a client can mint."""

import contextlib
import datetime
import http.client
import json
import random
import re
import shutil
import socket
import statistics
import string
import struct
import subprocess
import threading
import time

import pytest
from frames import H2, fields
from hyperframe.frame import RstStreamFrame
from stage import H1, Authority, Stage, Streaming, chat, eventually, fetch, midday

SERIES = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Scrape:
    """One exposition: `types`, `helps`, and `series` by name and labels."""

    def __init__(self, admin):
        self.reply = fetch(admin + "/metrics")
        assert self.reply.status == 200
        self.text = self.reply.body.decode()
        self.types, self.helps, self.series = {}, {}, {}
        for line in self.text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name not in self.types, f"{name} is declared twice"
                self.types[name] = kind
            elif line.startswith("# HELP "):
                _, _, name, text = line.split(" ", 3)
                self.helps[name] = text
            else:
                name, labels, value = SERIES.fullmatch(line).groups()
                key = (name, frozenset(LABEL.findall(labels or "")))
                assert key not in self.series, f"{line} is there twice"
                self.series[key] = float(value)

    def of(self, name, **labels):
        """The sum of the series of this name that carry these labels; None without any."""
        wanted = set(labels.items())
        found = [value for (own, has), value in self.series.items() if own == name and wanted <= has]
        return sum(found) if found else None

    def by(self, family, *keys):
        """What is not zero, by the values of these labels."""
        own = [(dict(has), value) for (name, has), value in self.series.items() if name == family]
        return {tuple(has[key] for key in keys): value for has, value in own if value}

    def labels(self, family):
        """The sets of label names of a family, without a bucket's own."""
        names = {family, family + "_count"} if self.types.get(family) == "histogram" else {family}
        return {frozenset(key for key, _ in has) for name, has in self.series if name in names}

    def buckets(self, family):
        """The upper ends of a histogram's buckets."""
        ends = {dict(has)["le"] for name, has in self.series if name == family + "_bucket"}
        return sorted(float(end) for end in ends)


LATENCY = [round(0.01 * 2**n, 2) for n in range(14)]
CATALOGUE = {
    "portcullis_build_info": ("gauge", "version revision rustc tls_provider fips"),
    "portcullis_requests_total": ("counter", "org route code"),
    "portcullis_request_refusals_total": ("counter", "org reason"),
    "portcullis_purpose_requests_total": ("counter", "org purpose decision"),
    "portcullis_request_duration_seconds": ("histogram", "route code_class", 0.005, 600),
    "portcullis_gateway_overhead_seconds": ("histogram", "route", 0.00005, 0.05),
    "portcullis_time_to_first_token_seconds": ("histogram", "model", 0.01, 81.92),
    "portcullis_stream_gap_seconds": ("histogram", "model"),
    "portcullis_streams_active": ("gauge", "org"),
    "portcullis_streams_total": ("counter", "org end"),
    "portcullis_severed_streams_total": ("counter", "org cause"),
    "portcullis_revocation_seconds": ("histogram", ""),
    "portcullis_input_tokens_total": ("counter", "org model"),
    "portcullis_output_tokens_total": ("counter", "org model"),
    "portcullis_cached_input_tokens_total": ("counter", "org model"),
    "portcullis_reasoning_output_tokens_total": ("counter", "org model"),
    "portcullis_cost_total": ("counter", "org model"),
    "portcullis_usage_missing_total": ("counter", "org model"),
    "portcullis_usage_disputed_total": ("counter", "org model"),
    "portcullis_request_body_bytes_total": ("counter", "route"),
    "portcullis_response_body_bytes_total": ("counter", "route"),
    "portcullis_quota_used_ratio": ("gauge", "org quota"),
    "portcullis_quota_overspend_bound": ("gauge", "org quota"),
    "portcullis_quota_shadow_refusals_total": ("counter", "org quota"),
    "portcullis_quota_requests_limit": ("gauge", "org window"),
    "portcullis_quota_requests_used": ("gauge", "org window"),
    "portcullis_quota_tokens_limit": ("gauge", "org window"),
    "portcullis_quota_tokens_used": ("gauge", "org window"),
    "portcullis_quota_tokens_reserved": ("gauge", "org window"),
    "portcullis_quota_reset_timestamp_seconds": ("gauge", "org quota"),
    "portcullis_quota_settled_tokens_total": ("counter", "org direction"),
    "portcullis_quota_snapshot_errors_total": ("counter", ""),
    "portcullis_quota_snapshot_timestamp_seconds": ("gauge", ""),
    "portcullis_tls_handshakes_total": ("counter", "result"),
    "portcullis_tls_handshake_duration_seconds": ("histogram", "resumed"),
    "portcullis_tls_server_cert_not_after_timestamp_seconds": ("gauge", "name"),
    "portcullis_client_cert_not_after_timestamp_seconds": ("gauge", "org"),
    "portcullis_crl_next_update_timestamp_seconds": ("gauge", "issuer"),
    "portcullis_connections_active": ("gauge", "listener"),
    "portcullis_connections_total": ("counter", "listener"),
    "portcullis_connections_rejected_total": ("counter", "listener reason"),
    "portcullis_upstream_requests_total": ("counter", "upstream code"),
    "portcullis_upstream_time_to_headers_seconds": ("histogram", "upstream"),
    "portcullis_upstream_connect_duration_seconds": ("histogram", "upstream"),
    "portcullis_upstream_connections": ("gauge", "upstream state"),
    "portcullis_upstream_healthy": ("gauge", "upstream"),
    "portcullis_config_last_reload_successful": ("gauge", ""),
    "portcullis_config_last_reload_success_timestamp_seconds": ("gauge", ""),
    "portcullis_config_reloads_total": ("counter", "trigger result"),
    "portcullis_config_generation": ("gauge", ""),
    "portcullis_config_info": ("gauge", "hash"),
    "portcullis_audit_records_total": ("counter", "result"),
    "portcullis_audit_queue_records": ("gauge", ""),
    "portcullis_log_lines_dropped_total": ("counter", ""),
    "portcullis_draining": ("gauge", ""),
    "process_cpu_seconds_total": ("counter", ""),
    "process_resident_memory_bytes": ("gauge", ""),
    "process_open_fds": ("gauge", ""),
    "process_start_time_seconds": ("gauge", ""),
}

MODELS = """
[model.priced]
match = ["mock-tokens-20", "mock-tokens-7.cached-3", "mock-ttft-300.tokens-3", "mock-tps-20.tokens-9",
         "mock-no-usage", "mock-die-2", "mock-tokens-100000.tps-50", "claude-mock-tokens-5"]
price_per_mtok = { input = "2.50", cached_input = "0.25", output = "15.00" }
"""
ORG = """\
id = "{id}"
name = "{id}"
purposes = ["research", "incident"]
models = ["mock-*", "gpt-*", "claude-*", "priced"]
[[identity]]
authority = "partners"
uri = "spiffe://partners/{certificate}"
[limits]
tokens_per_day = 1_000_000
requests_per_day = {requests}
requests_per_hour = {{ limit = 1, shadow = true }}
"""


# Long enough that what the mock reports is near what anybody would estimate.
TALK = "A sentence of nine words that says nothing much. " * 10


def talk(model="mock-1", **more):
    return chat(model) | {"messages": [{"role": "user", "content": TALK}]} | more


def org(identifier, requests=1_000_000, certificate=None):
    return ORG.format(id=identifier, requests=requests, certificate=certificate or identifier)


def post(stage, path, body=None):
    return fetch(stage.admin + path, data=body if body is not None else b"", method="POST")


class Run:
    """A little of everything, done once; the books before and after."""

    def __init__(self, folder):
        orgs = {"acme": org("acme"), "globex": org("globex", requests=2)}
        self.stage = stage = Stage(folder, orgs=orgs, more=MODELS, quota=f'timezone = "{midday()}"')
        stage.partners.leaf("stranger", uri="spiffe://partners/stranger")
        self.before = Scrape(stage.admin)
        self.done, self.took = {}, {}
        with H1(stage.connect()) as acme:
            self.ask(acme, "chat", 3, 200, talk("mock-tokens-20"))
            self.ask(acme, "chat", 2, 200, talk("mock-tokens-20", stream=True))
            self.ask(acme, "chat", 1, 200, talk("mock-tokens-7.cached-3"))
            self.ask(acme, "chat", 1, 200, talk("mock-ttft-300.tokens-3", stream=True))
            self.ask(acme, "chat", 1, 200, talk("mock-tps-20.tokens-9", stream=True))
            self.ask(acme, "chat", 1, 200, talk("mock-no-usage"))
            self.ask(acme, "chat", 2, 429, talk("mock-fail-429"))
            self.ask(acme, "chat", 1, 200, talk("mock-unheard-of"))
            self.ask(acme, "responses", 1, 200, {"model": "mock-tokens-20", "input": TALK})
            self.ask(acme, "completions", 1, 200, {"model": "mock-tokens-20", "prompt": TALK})
            self.ask(acme, "embeddings", 1, 200, {"model": "mock-tokens-20", "input": TALK})
            self.ask(acme, "messages", 2, 200, talk("claude-mock-tokens-5", max_tokens=9))
            self.ask(acme, "count_tokens", 1, 200, talk("claude-mock-tokens-5"))
            self.ask(acme, "models", 2, 200)
            self.ask(acme, "self", 1, 200)
            self.ask(acme, "chat", 2, 400, chat(), portcullis_purpose=None)
            self.ask(acme, "chat", 3, 403, chat(), portcullis_purpose="forbidden")
            self.ask(acme, "chat", 1, 400, chat(), portcullis_purpose="unheard-of")
            self.ask(acme, "chat", 1, 400, chat(), portcullis_purpose="incident")
            self.ask(acme, "chat", 1, 200, talk("mock-tokens-20"), portcullis_purpose="incident", portcullis_case="INC-1")
            self.ask(acme, "chat", 1, 403, talk("kept-back"))
        self.ask(None, "chat", 1, 502, talk("mock-rubbish"))
        self.ask(None, "other", 1, 404, chat(), path="/v1/files")
        self.ask(None, "chat", 1, 405, None)
        self.die()
        self.ask(None, "chat", 2, 200, talk("mock-tokens-20"), certificate="globex")
        self.ask(None, "chat", 3, 429, talk("mock-tokens-20"), certificate="globex")
        self.ask(None, "chat", 2, 403, chat(), certificate="stranger")
        self.leave()
        self.reloads()
        self.sever()
        eventually(lambda: stage.metric("portcullis_streams_active") == 0)
        self.after = Scrape(stage.admin)

    PATHS = {"chat": "/v1/chat/completions", "count_tokens": "/v1/messages/count_tokens", "self": "/portcullis/v1/whoami"}

    def ask(self, connection, route, times, status, body=None, certificate="acme", path=None, **headers):
        began = time.monotonic()
        for _ in range(times):
            path = path or self.PATHS.get(route, f"/v1/{route}")
            reply = self.stage.ask(path, body, certificate, connection, **headers)
            assert reply.status == status, (route, body, reply.status, reply.body)
        name = {"stranger": "unknown"}.get(certificate, certificate)
        self.done[name, route, str(status)] = self.done.get((name, route, str(status)), 0) + times
        self.took[body and body.get("model")] = time.monotonic() - began

    def die(self):
        stream = Streaming(self.stage, "mock-die-2")
        assert stream.wait() == "cut"
        stream.close()
        self.done["acme", "chat", "200"] += 1

    def leave(self):
        stream = Streaming(self.stage)
        eventually(lambda: stream.pieces)
        stream.close()
        # Seen before anything else ends it.
        eventually(lambda: self.stage.metric("portcullis_streams_total", end="client_gone") == 1, what="the client's leaving")
        self.done["acme", "chat", "200"] += 1

    def reloads(self):
        stage = self.stage
        assert post(stage, "/-/reload").json["result"] == "unchanged"
        stage.write_org("globex", org("globex", requests=3))
        assert post(stage, "/-/reload").status == 200
        stage.write_org("globex", org("globex", requests='"x"'))
        assert post(stage, "/-/reload").status == 422
        stage.write_org("globex", org("globex", requests=3))

    def sever(self):
        stream = Streaming(self.stage)
        began = time.monotonic()
        assert post(self.stage, "/-/revoke", {"organization": "acme"}).status == 200
        assert stream.wait() == "cut"
        # It is measured a moment after the last stream has gone.
        eventually(lambda: self.stage.metric("portcullis_revocation_seconds_count") == 1, what="the measurement")
        self.took["sever"] = time.monotonic() - began
        stream.close()
        assert post(self.stage, "/-/restore", {"organization": "acme"}).status == 200
        self.done["acme", "chat", "200"] += 1

    def moved(self, name, **labels):
        return (self.after.of(name, **labels) or 0) - (self.before.of(name, **labels) or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    one = Run(tmp_path_factory.mktemp("metrics"))
    yield one
    one.stage.close()


# Form.


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_has_nothing_to_say(run):
    for scrape in (run.before, run.after):
        checked = subprocess.run(["promtool", "check", "metrics"], input=scrape.text, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_exposition_says_what_it_is(run):
    kind = run.after.reply.headers["content-type"]
    assert kind.startswith("text/plain; version=0.0.4")
    assert run.after.text.endswith("\n")
    assert set(run.after.helps) == set(run.after.types)


@pytest.mark.parametrize("family", CATALOGUE)
def test_a_family_of_the_catalogue_has_its_type_labels_and_buckets(run, family):
    kind, labels, *ends = CATALOGUE[family]
    if family in ("portcullis_connections_rejected_total", "portcullis_usage_disputed_total"):
        # Nothing was rejected here: the family may be without series, and then is not in the text.
        if family not in run.after.types:
            pytest.skip("without an event")
    assert run.after.types.get(family) == kind
    assert run.after.labels(family) == {frozenset(labels.split())}
    if ends:
        buckets = run.after.buckets(family)
        assert (buckets[0], buckets[-2]) == tuple(ends)
        assert buckets[-1] == float("inf")
    if family.endswith(("first_token_seconds", "gap_seconds")):
        assert run.after.buckets(family)[:-1] == LATENCY


def test_no_label_is_empty(run):
    empty = {(name, key) for name, has in run.after.series for key, value in has if not value}
    assert not empty


def test_histograms_are_whole(run):
    for name, has in run.after.series:
        if name.endswith("_count") and run.after.types.get(family := name.removesuffix("_count")) == "histogram":
            labels = dict(has)
            buckets = [(float(dict(own)["le"]), value) for (other, own), value in run.after.series.items()
                       if other == family + "_bucket" and has <= own]  # fmt: skip
            values = [value for _, value in sorted(buckets)]
            assert values == sorted(values), (family, labels)
            assert values[-1] == run.after.of(name, **labels), (family, labels)


def test_what_alerts_ask_for_is_there_before_it_happens(run):
    """Zeros exist from the start: a rate over a series that is born with its first event misses that event."""
    before = run.before
    for name in ("acme", "globex"):
        assert before.of("portcullis_streams_active", org=name) == 0
        assert before.of("portcullis_streams_total", org=name, end="severed") == 0
        for reason in ("rate_limit_exceeded", "insufficient_quota", "purpose_not_permitted", "model_not_permitted"):
            assert before.of("portcullis_request_refusals_total", org=name, reason=reason) == 0
    for family in ("input_tokens", "output_tokens", "cost", "usage_missing", "usage_disputed"):
        assert before.of(f"portcullis_{family}_total", org="acme", model="other") == 0
        assert before.of(f"portcullis_{family}_total", org="acme", model="mock-no-usage") == 0
    for code in ("200", "upstream_unreachable", "upstream_timeout", "upstream_invalid"):
        assert before.of("portcullis_upstream_requests_total", upstream="openai", code=code) == 0
    assert before.of("portcullis_config_last_reload_successful") == 1
    assert before.of("portcullis_draining") == 0
    assert before.of("portcullis_audit_records_total", result="failed") == 0


# Truth.


def test_what_a_limit_in_shadow_would_have_refused_is_counted(run):
    counter = {"name": "portcullis_quota_shadow_refusals_total", "quota": "requests_per_hour"}
    for org, admitted in (("acme", None), ("globex", 2)):
        before, after = run.before.of(org=org, **counter), run.after.of(org=org, **counter)
        assert before == 0 and after > 0
        assert admitted is None or after == admitted - 1, "all but the first"


def test_requests_are_counted_by_organization_route_and_code(run):
    counted = run.after.by("portcullis_requests_total", "org", "route", "code")
    assert counted == run.done


def test_refusals_are_counted_by_organization_and_reason(run):
    counted = run.after.by("portcullis_request_refusals_total", "org", "reason")
    assert counted == {
        ("acme", "purpose_missing"): 2, ("acme", "purpose_not_permitted"): 3, ("acme", "purpose_unknown"): 1,
        ("acme", "case_missing"): 1, ("acme", "model_not_permitted"): 1, ("globex", "insufficient_quota"): 3,
        ("unknown", "organization_unknown"): 2, ("acme", "route_not_found"): 1, ("acme", "method_not_allowed"): 1,
    }  # fmt: skip
    assert {code: count for code, count in run.stage.status()["refusals"].items() if count} == {
        reason: sum(value for (_, other), value in counted.items() if other == reason) for _, reason in counted}  # fmt: skip


def test_purposes_are_counted_with_what_the_purpose_step_decided(run):
    """The step alone: a missing case, a model that is not granted or an empty quota come after it."""
    counted = run.after.by("portcullis_purpose_requests_total", "org", "purpose", "decision")
    forwarded = sum(value for (name, route, code), value in run.done.items()
                    if name == "acme" and route not in ("models", "self") and code in ("200", "429", "502"))  # fmt: skip
    assert counted == {
        ("acme", "research", "allow"): forwarded, ("acme", "incident", "allow"): 2,
        ("acme", "forbidden", "deny"): 3, ("globex", "research", "allow"): 5,
    }  # fmt: skip


def test_streams_are_counted_by_their_ends_and_none_is_left(run):
    ends = {end: run.moved("portcullis_streams_total", org="acme", end=end) for end in
            ("complete", "client_gone", "upstream_failed", "severed", "upstream_timeout", "quota_cut", "panicked")}  # fmt: skip
    admitted = sum(value for (name, route, code), value in run.done.items()
                   if name == "acme" and route not in ("models", "self") and code in ("200", "429", "502"))  # fmt: skip
    assert ends == {"complete": admitted - 4, "client_gone": 1, "upstream_failed": 2, "severed": 1, "upstream_timeout": 0,
                    "quota_cut": 0, "panicked": 0}  # fmt: skip
    assert run.moved("portcullis_severed_streams_total", org="acme", cause="organization_suspended") == 1
    assert run.moved("portcullis_revocation_seconds_count") == 1
    # How fast it has to be is held where nothing else runs beside it.
    assert 0 < run.moved("portcullis_revocation_seconds_sum") < run.took["sever"]
    assert run.after.of("portcullis_streams_active") == 0


TRUE_MODELS = ["mock-tokens-20", "mock-tokens-7.cached-3", "mock-ttft-300.tokens-3", "mock-tps-20.tokens-9", "claude-mock-tokens-5"]


@pytest.mark.parametrize("model", TRUE_MODELS)
def test_tokens_are_those_of_the_models_own_book(run, model):
    calls = [call for call in run.stage.ledger()["requests"] if call["model"] == model and "count_tokens" not in call["path"]]
    assert calls
    for unit in ("input", "output"):
        counted = run.after.of(f"portcullis_{unit}_tokens_total", model=model)
        assert counted == sum(call[f"{unit}_tokens"] for call in calls), unit
    assert run.after.of("portcullis_usage_disputed_total", model=model) == 0
    assert run.after.of("portcullis_cached_input_tokens_total", model=model) == (3 if "cached-3" in model else 0)


def test_cost_is_tokens_times_prices(run):
    tokens = {unit: run.after.of(f"portcullis_{unit}_tokens_total", model="mock-tokens-20") for unit in ("input", "output")}
    assert run.after.of("portcullis_cost_total", model="mock-tokens-20") == pytest.approx(
        (tokens["input"] * 2.5 + tokens["output"] * 15) / 1e6)  # fmt: skip
    assert run.after.of("portcullis_cost_total", model="other") == 0


def test_missing_usage_and_unconfigured_models_are_told(run):
    assert run.after.of("portcullis_usage_missing_total", org="acme", model="mock-no-usage") == 1
    assert run.after.of("portcullis_output_tokens_total", org="acme", model="other") > 0
    assert "unheard-of" not in run.after.text


def test_quota_gauges_say_what_status_says(run):
    limits = {one["id"]: one for one in
              next(each for each in run.stage.status()["organizations"] if each["id"] == "acme")["limits"]}  # fmt: skip
    now = Scrape(run.stage.admin)
    for unit in ("tokens", "requests"):
        limit = limits[f"{unit}_per_day"]
        assert now.of(f"portcullis_quota_{unit}_limit", org="acme", window="day") == 1_000_000
        assert now.of(f"portcullis_quota_{unit}_used", org="acme", window="day") == limit["used"]
        ratio = now.of("portcullis_quota_used_ratio", org="acme", quota=f"{unit}_per_day")
        assert ratio == pytest.approx((limit["used"] + limit["reserved"]) / 1_000_000)
    assert now.of("portcullis_quota_tokens_reserved", org="acme", window="day") == 0
    charged = sum(now.of(f"portcullis_{unit}_tokens_total", org="acme") for unit in ("input", "output"))
    assert charged == limits["tokens_per_day"]["used"]


def test_durations_are_whole_requests_and_overhead_is_our_own_alone(run):
    total = sum(value for (_, route, _), value in run.done.items() if route == "chat")
    assert run.moved("portcullis_request_duration_seconds_count", route="chat") == total
    waited = 0.3 + 0.35  # for the model, at least
    assert run.moved("portcullis_request_duration_seconds_sum", route="chat", code_class="2xx") > waited
    forwarded = sum(value for (_, route, code), value in run.done.items() if route == "chat" and code in ("200", "502"))
    forwarded += run.done["acme", "chat", "429"]
    assert run.moved("portcullis_gateway_overhead_seconds_count", route="chat") == forwarded
    whole = run.moved("portcullis_request_duration_seconds_sum", route="chat")
    assert 0 < run.moved("portcullis_gateway_overhead_seconds_sum", route="chat") < whole - waited


def test_first_tokens_and_gaps_are_those_of_the_stream(run):
    late, paced = "mock-ttft-300.tokens-3", "mock-tps-20.tokens-9"
    assert run.after.of("portcullis_time_to_first_token_seconds_count", model=late) == 1
    # No longer than the client by its own clock had waited for the end.
    assert 0.3 <= run.after.of("portcullis_time_to_first_token_seconds_sum", model=late) < run.took[late]
    gaps, sum_of_gaps = (run.after.of(f"portcullis_stream_gap_seconds_{part}", model=paced) for part in ("count", "sum"))
    assert gaps >= 8
    assert 0.1 < sum_of_gaps < run.took[paced]


def test_upstreams_are_counted_by_what_they_answered(run):
    assert run.moved("portcullis_upstream_requests_total", upstream="openai", code="429") == 2
    assert run.moved("portcullis_upstream_requests_total", upstream="openai", code="upstream_invalid") == 1
    assert run.moved("portcullis_upstream_requests_total", upstream="anthropic", code="200") == 3
    heads = run.moved("portcullis_upstream_time_to_headers_seconds_count", upstream="openai")
    assert heads == run.moved("portcullis_upstream_requests_total", upstream="openai") - 1
    assert run.moved("portcullis_upstream_requests_total") == run.stage.ledger()["totals"]["requests"]


def test_bodies_are_counted_in_bytes(run):
    sent = sum(call["body_bytes"] for call in run.stage.ledger()["requests"] if call["path"] == "/v1/embeddings")
    assert run.moved("portcullis_request_body_bytes_total", route="embeddings") == sent
    assert run.moved("portcullis_response_body_bytes_total", route="embeddings") > 0


def test_handshakes_and_certificates_are_told(run):
    stage = run.stage
    accepted = run.after.of("portcullis_connections_total", listener="partners")
    assert run.after.of("portcullis_tls_handshakes_total", result="ok") == accepted
    ends = {name: getattr(stage, name).not_valid_after_utc.timestamp() for name in ("acme", "globex")}
    for name, end in ends.items():
        assert run.after.of("portcullis_client_cert_not_after_timestamp_seconds", org=name) == end
    assert run.after.of("portcullis_tls_server_cert_not_after_timestamp_seconds") > time.time()
    assert run.after.of("portcullis_crl_next_update_timestamp_seconds") > time.time()


def test_reloads_are_told(run):
    # The watch of the files may have been faster than the request.
    assert run.moved("portcullis_config_reloads_total", trigger="http") == 3
    assert run.moved("portcullis_config_reloads_total", trigger="http", result="unchanged") in (1, 2)
    assert run.moved("portcullis_config_reloads_total", trigger="http", result="rejected") == 1
    assert run.moved("portcullis_config_reloads_total", result="applied") == 1
    assert len([name for name, _ in run.after.series if name == "portcullis_config_info"]) == 1
    assert run.after.of("portcullis_config_generation") > run.before.of("portcullis_config_generation")


def test_audit_records_are_as_many_as_there_are(run):
    eventually(lambda: run.stage.metric("portcullis_audit_records_total", result="written") == len(run.stage.audit()))
    assert run.stage.metric("portcullis_audit_records_total", result="failed") == 0
    eventually(lambda: run.stage.metric("portcullis_audit_queue_records") == 0, what="an empty queue")


# Things that go up and come down.


def test_connections_and_streams_are_counted_while_they_stand(stage):
    one = stage()
    before = one.metric("portcullis_connections_total", listener="partners")
    idle = [one.connect() for _ in range(3)]
    streams = [Streaming(one), Streaming(one), Streaming(one, certificate="globex")]
    eventually(lambda: one.metric("portcullis_connections_active", listener="partners") == 6)
    assert one.metric("portcullis_connections_total", listener="partners") - before == 6
    assert (one.metric("portcullis_streams_active", org="acme"), one.metric("portcullis_streams_active", org="globex")) == (2, 1)
    assert one.metric("portcullis_upstream_connections", state="active") == 3
    for each in idle + streams:
        each.close()
    eventually(lambda: one.metric("portcullis_connections_active", listener="partners") == 0)
    eventually(lambda: one.metric("portcullis_streams_active") == 0)
    eventually(lambda: one.metric("portcullis_upstream_connections", state="active") == 0)


def test_a_connection_beyond_the_most_is_counted_as_rejected(stage):
    one = stage(listen="max_connections = 2")
    standing = [H1(one.connect()) for _ in range(2)]
    for each in standing:
        # Who has not proved yet whose it is would leave its place to the third.
        assert each.ask("/portcullis/v1/whoami").status == 200
    with pytest.raises(OSError), one.connect(timeout=5) as third:
        # The handshake of TLS 1.3 is over for a client before it is over for the server.
        assert third.recv(1) == b""
        raise ConnectionError
    eventually(lambda: one.metric("portcullis_tls_handshakes_total", result="shed") == 1)
    assert one.metric("portcullis_connections_rejected_total", listener="partners") == 1
    assert one.metric("portcullis_connections_active", listener="partners") == 2
    for each in standing:
        each.close()


HANDSHAKES = {
    "no_certificate": {"certificate": None},
    "unknown_issuer": {"certificate": "foreign"},
    "expired": {"certificate": "expired"},
    "not_yet_valid": {"certificate": "future"},
    "revoked": {"certificate": "revoked"},
    "server_name": {"server_name": "elsewhere"},
}


def test_handshakes_are_counted_by_their_result(stage):
    one = stage(start=False)
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.timezone.utc)
    Authority(one.folder, "others").leaf("foreign", uri="spiffe://partners/acme")
    one.partners.leaf("expired", uri="spiffe://partners/acme", not_before=now - 2 * day, not_after=now - day)
    one.partners.leaf("future", uri="spiffe://partners/acme", not_before=now + day, not_after=now + 2 * day)
    one.partners.crl(revoked=[one.partners.leaf("revoked", uri="spiffe://partners/acme")])
    one.start()
    for result, how in HANDSHAKES.items():
        with contextlib.suppress(OSError):
            certificate, name = how.get("certificate", "acme"), how.get("server_name", "localhost")
            context = one.tls(certificate)
            context.check_hostname = False
            with socket.create_connection(("127.0.0.1", one.port), timeout=5) as plain, \
                    context.wrap_socket(plain, server_hostname=name) as client:  # fmt: skip
                client.recv(1)
        eventually(lambda r=result: one.metric("portcullis_tls_handshakes_total", result=r) == 1, what=result)
    # A connection is gone a moment after its handshake was counted, and by then that is all there is to count.
    eventually(lambda: one.metric("portcullis_connections_active", listener="partners") == 0, what="the end of all")
    assert one.metric("portcullis_tls_handshakes_total", result="ok") == 0
    assert one.metric("portcullis_tls_handshakes_total") == len(HANDSHAKES)
    assert one.metric("portcullis_tls_handshake_duration_seconds_count") == len(HANDSHAKES)


def test_a_client_that_left_before_its_answer_is_no_failure_of_ours(stage):
    """Nobody was sent a status: it counts neither as a 5xx nor as an answer."""
    one = stage()
    with H1(one.connect()) as client:
        client.send(client.head(body=chat("mock-hang")))
        eventually(lambda: one.metric("portcullis_streams_active") == 1)
    eventually(lambda: one.metric("portcullis_streams_total", end="client_gone") == 1)
    assert one.metric("portcullis_request_duration_seconds_count", code_class="5xx") == 0
    assert one.metric("portcullis_requests_total", code="499") == 1


@pytest.mark.parametrize("protocol, how", [("h1", "close"), ("h1", "reset"), ("h2", "close"), ("h2", "reset"), ("h2", "cancel")])
def test_a_client_that_left_inside_its_body_is_no_refusal(stage, protocol, how):
    """It is refused nothing: it counts as gone, in figures and on record."""
    one = stage()
    body = json.dumps(chat()).encode()
    if protocol == "h1":
        client = H1(one.connect())
        client.send(client.head(body=body, expect="100-continue")[: -len(body)])
        assert client.read_head()[0] == 100
        client.send(body[:20])
    else:
        client = H2(one.connect(alpn=("h2",)))
        unended = client.request(fields(body=body), body[:20], end=False)
        # What came behind it on the same connection was read after it.
        assert client.finish(client.request(fields("/v1/models"))).status == 200
        if how == "cancel":
            client.send(RstStreamFrame(1, 8))
            assert client.finish(client.request(fields("/v1/models"))).status == 200
            assert not unended.over
    if how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "cancel":
        client.socket.close()
    (line,) = eventually(lambda: [line for line in one.audit() if line["kind"] == "refused"], what="the record")
    assert (line["reason"], line["ending"], line["status"]) == ("client_gone", "client_gone", 499)
    assert one.metric("portcullis_requests_total", code="499", org="acme") == 1
    assert one.metric("portcullis_request_refusals_total") == one.metric("portcullis_requests_total", code="400") == 0
    client.socket.close()


def test_an_upstream_that_was_never_called_is_not_said_to_be_ill(stage):
    one = stage()
    assert all(upstream["healthy"] for upstream in one.status()["upstreams"])
    scrape = Scrape(one.admin)
    assert scrape.of("portcullis_upstream_healthy", upstream="anthropic") in (None, 1)


# Labels.

ALPHABET = string.ascii_lowercase + string.digits


def word(length=12):
    return "".join(random.choices(ALPHABET, k=length))


def oddities(one):
    """A little of everything that a client can choose, with fresh words."""
    asks = [
        dict(path="/" + word()), dict(path=f"/v1/{word()}/{word()}", body=chat()), dict(path=f"/v1/models?limit={word()}"),
        dict(path=f"/v1/models?{word()}=1"), dict(path=f"/v1/chat/completions?{word()}={word()}", body=chat()),
        dict(body=chat(f"mock-{word()}")), dict(body=chat(f"mock-{word()}", stream=True)), dict(body=chat(word())),
        dict(path="/v1/messages", body=chat(f"claude-mock-{word()}", max_tokens=3)),
        dict(body=chat(), portcullis_purpose=word()), dict(body=chat(), portcullis_purpose=word(80)),
        dict(body=chat(), portcullis_purpose=None, x_purpose=word()), dict(body=chat(), portcullis_case=word()),
        dict(body=chat(), **{":method": "M" + re.sub(r"\d", "X", word()).upper()}),
        dict(body=chat(), **{":method": word().upper() + "1"}), dict(body=chat(), host=word()),
        dict(body=chat(), user_agent=word()),
        dict(body=chat(), x_client_request_id=word()), dict(body=chat(), **{f"x-{word()}": word()}),
        dict(body=word().encode()), dict(body=chat(), content_type=word()), dict(body=chat(), anthropic_beta=word()),
    ]  # fmt: skip
    for ask in asks:
        with contextlib.suppress(EOFError, ConnectionError):
            one.ask(**ask)
    for name in (word(), word() + ".example"):
        context = one.tls()
        context.check_hostname = False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", one.port)) as plain:
            context.wrap_socket(plain, server_hostname=name).close()
    one.partners.leaf("any", uri=f"spiffe://partners/{word()}", common_name=word())
    one.ask(body=chat(), certificate="any")
    with contextlib.suppress(OSError), one.connect(alpn=(word(),)) as client:
        client.recv(1)


def test_no_client_can_mint_a_series(stage):
    one = stage()
    oddities(one)
    first = set(Scrape(one.admin).series)
    for _ in range(8):
        oddities(one)
    assert set(Scrape(one.admin).series) == first


def test_no_upstream_can_mint_a_series(stage):
    """Statuses that nobody knows share a label."""
    one = stage()
    for status in (520, 521):
        one.ask(body=chat(f"mock-fail-{status}"))
    first = set(Scrape(one.admin).series)
    for status in range(522, 540):
        if status != 529:
            assert one.ask(body=chat(f"mock-fail-{status}")).status == status
    assert set(Scrape(one.admin).series) - first == set()


def test_an_organization_cannot_take_the_name_of_nobody(stage):
    """`unknown` stands for peers that belong to nobody: a partner of that name would be counted among strangers."""
    one = stage(start=False, orgs={"unknown": org("unknown", certificate="acme")})
    checked = one.run("check", "-c", "portcullis.toml")
    assert checked.returncode == 1, "accepted: its figures and those of strangers are one series"
    assert "unknown" in checked.stdout + checked.stderr


def test_odd_but_allowed_names_keep_their_figures_apart(stage):
    """Names that are words elsewhere: labels are apart by their places, not by their values."""
    names = {"other": "acme", "total": "globex"}
    group = '[model.m]\nmatch = ["mock-other", "other", "mock-le"]\n'
    upstream = '[[upstream]]\nname = "other"\ndialect = "openai"\napi_key = "env:UPSTREAM_KEY"\nmodels = ["other"]\n'
    one = stage(start=False, orgs={name: org(name, certificate=leaf).replace('"priced"', '"m"') for name, leaf in names.items()})
    one.write_config(more=f'{group}{upstream}url = "{one.mock_url}"\n', quota=f'timezone = "{midday()}"')
    one.start()
    for leaf, times in (("acme", 2), ("globex", 3)):
        for model in ("mock-other", "other", "mock-le", "mock-" + word()):
            for _ in range(times):
                assert one.ask(body=chat(model), certificate=leaf).status == 200
    scrape = Scrape(one.admin)
    for name, times in (("other", 2), ("total", 3)):
        assert scrape.of("portcullis_requests_total", org=name, code="200") == 4 * times
        used = one.limit(name, "tokens_per_day")["used"]
        assert sum(scrape.of(f"portcullis_{unit}_tokens_total", org=name) for unit in ("input", "output")) == used
    calls = one.ledger()["requests"]
    for model in ("mock-other", "mock-le"):
        counted = scrape.of("portcullis_output_tokens_total", model=model)
        assert counted == sum(call["output_tokens"] for call in calls if call["model"] == model)


def test_a_model_that_is_configured_later_gets_its_own_label(stage):
    one = stage()
    assert one.ask(body=chat("mock-late")).status == 200
    assert "mock-late" not in Scrape(one.admin).text
    one.write_config(more='[model.late]\nmatch = ["mock-late"]\n')
    assert post(one, "/-/reload").status == 200
    assert one.ask(body=chat("mock-late")).status == 200
    sent = [call["output_tokens"] for call in one.ledger()["requests"] if call["model"] == "mock-late"]
    scrape = Scrape(one.admin)
    assert scrape.of("portcullis_output_tokens_total", model="mock-late") == sent[1]
    assert scrape.of("portcullis_output_tokens_total", model="other") == sent[0]


def test_what_a_removal_causes_is_told_and_who_returns_goes_on(stage):
    """The removed organization's series stay for some minutes, unlike its limits and certificates."""
    one = stage()
    for leaf in ("acme", "globex"):
        assert one.ask(body=chat(), certificate=leaf).status == 200
    with contextlib.closing(Streaming(one, certificate="globex")) as stream:
        eventually(lambda: len(stream.pieces) > 3, what="flow")
        (one.folder / "orgs.d" / "globex.toml").unlink()
        assert post(one, "/-/reload").status == 200
        stream.wait()
    cut = lambda: Scrape(one.admin).of("portcullis_severed_streams_total", org="globex")
    eventually(lambda: cut() == 1, what="the count of the cut")
    scrape = Scrape(one.admin)
    assert scrape.of("portcullis_streams_active", org="globex") == 0
    assert scrape.of("portcullis_streams_total", org="globex", end="severed") == 1
    assert scrape.of("portcullis_quota_used_ratio", org="globex") is None
    assert scrape.of("portcullis_client_cert_not_after_timestamp_seconds", org="globex") is None
    one.write_org("globex", one.GLOBEX)
    assert post(one, "/-/reload").status == 200
    assert one.ask(body=chat(), certificate="globex").status == 200
    eventually(lambda: Scrape(one.admin).of("portcullis_requests_total", org="globex", code="200") == 3, what="the count")
    assert cut() == 1
    assert Scrape(one.admin).of("portcullis_requests_total", org="acme", code="200") == 1


# Scraping.


def test_a_group_and_a_purpose_of_one_name_have_limits_of_two_names(stage):
    """Wherever limits are told: to Prometheus, by `check`, `explain` and `status`, in heads and in refusals."""
    limits = """
[purpose.research.limits]
tokens_per_day = 1_000
requests_per_day = 2
[model.research.limits]
tokens_per_day = 500
requests_per_day = 1
[model.other.limits]
tokens_per_day = 400
"""
    more = '[model.research]\nmatch = ["mock-*"]\n[model.other]\nmatch = ["gpt-*"]'
    acme = Stage.ACME.replace('"mock-*", "gpt-*", "claude-*"', '"research", "other"') + limits
    one = stage(orgs={"acme": acme}, more=more)
    names = {"research/tokens_per_day", "research/requests_per_day", "model:research/tokens_per_day",
             "model:research/requests_per_day", "other/tokens_per_day"}  # fmt: skip
    assert {quota for org, quota in Scrape(one.admin).by("portcullis_quota_reset_timestamp_seconds", "org", "quota")} == names
    answer = one.ask(body=chat())
    assert answer.status == 200
    told = set(re.findall(r'"([^"]+)";r=', answer.headers["ratelimit"]))
    assert told == {"purpose.research.tokens-per-day", "purpose.research.requests-per-day",
                    "model.research.tokens-per-day", "model.research.requests-per-day"}  # fmt: skip
    refused = one.ask(body=chat())
    assert "for model:research/requests_per_day:" in refused.json["error"]["message"]
    checked = one.run("check", "-c", "portcullis.toml").stdout
    explained = one.run("explain", "-c", "portcullis.toml", "--cert", "acme.pem", "--purpose", "research", "--model", "mock-1")
    shown = one.run("config", "show", "-c", "portcullis.toml").stdout
    for text in (checked, explained.stdout, shown):
        for name in names - ({"other/tokens_per_day"} if text == explained.stdout else set()):
            assert len(re.findall(rf"(?<![\w:/]){name}\b", text)) >= 1, (name, text)
    status = one.run("status").stdout
    assert "model:research / tokens_per_day" in status and " research / tokens_per_day" in status
    assert "model:other" not in status + checked


def test_a_scrape_waits_for_nothing(stage):
    """A hundred of them under load, each about as fast as the others; and a scraper that reads nothing is left waiting."""
    one = stage()
    stop, answered = threading.Event(), []

    def load():
        with H1(one.connect()) as client:
            while not stop.is_set():
                answered.append(client.ask(body=chat("mock-tokens-5")).status)

    host = one.admin.removeprefix("http://")
    lazy = socket.create_connection(host.split(":"))
    lazy.sendall(b"GET /metrics HTTP/1.1\r\nhost: " + host.encode() + b"\r\n\r\n")
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: answered, what="load")
    took, scraper = [], http.client.HTTPConnection(host, timeout=5)
    for _ in range(100):
        began = time.monotonic()
        scraper.request("GET", "/metrics")
        assert b"portcullis_up 1" in scraper.getresponse().read()
        took.append(time.monotonic() - began)
    stop.set()
    for thread in threads:
        thread.join(10)
    lazy.close()
    assert set(answered) == {200}
    assert sorted(took)[95] < 5 * statistics.median(took) + 1, sorted(took)[-10:]


def test_the_listener_for_prometheus_shows_the_same_and_nothing_else(stage):
    one = stage(admin='metrics = "127.0.0.1:0"')
    address = one.gateway.printed(r"metrics on (?:http://)?(127\.0\.0\.1:\d+)")
    apart = Scrape("http://" + address)
    assert set(apart.types) == set(Scrape(one.admin).types)
    assert fetch(f"http://{address}/livez").status == fetch(f"http://{address}/readyz").status == 200
    for path in ("/", "/status.json", "/policy.json", "/-/reload"):
        assert fetch(f"http://{address}{path}").status in (404, 405)
    assert fetch(f"http://{address}/-/reload", data=b"", method="POST").status in (404, 405)
