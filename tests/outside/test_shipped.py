"""What an operator rolls out beside the binary must fit it: rules, dashboard, units and manifests name only what exists.

A dashboard with a misspelt metric shows an empty panel, and an alert with one never fires; nobody notices either.
"""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess

import pytest
from stage import ROOT, Stage, Streaming, chat, eventually, fetch

CONFIG = ROOT / "config"
PROMETHEUS = CONFIG / "prometheus"
RUNBOOK = "https://portcullis.example/docs/"
DASHBOARD = CONFIG / "grafana" / "portcullis.json"

# What Prometheus adds to every series, and what it records itself.
OF_PROMETHEUS = {"up": {"job", "instance"}}
WORDS = set(
    "sum max min avg count rate increase absent time histogram_quantile label_replace clamp_min sort_desc topk changes"
    " by on ignoring without group_left group_right and or unless bool offset".split()
)
PRICED = """
[model.priced]
match = ["mock-*", "gpt-*", "claude-*"]
price_per_mtok = { input = "2.50", cached_input = "0.25", output = "15.00" }
"""
LIMITS = """
[limits]
requests_per_minute = 1000
tokens_per_day = 1_000_000
cost_per_month = "100.00"
"""


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """What /metrics holds after a bit of everything: each sample's name and the labels it was seen with."""
    one = Stage(tmp_path_factory.mktemp("shipped"), orgs={"acme": Stage.ACME + LIMITS, "globex": Stage.GLOBEX}, more=PRICED)
    try:
        for model in ["gpt-mock-tokens-5", "mock-no-usage", "mock-usage-low.tokens-100", "mock-fail-500", "mock-redirect"]:
            one.ask(body=chat(model))
        one.ask("/v1/messages", chat("claude-mock-1", max_tokens=10))
        one.ask(body=chat(), portcullis_purpose="forbidden")
        one.ask(body=chat(), portcullis_purpose=None)
        one.servers.leaf("stranger")
        with contextlib.suppress(OSError):
            one.connect("stranger").recv(1)
        stream = Streaming(one)
        one.run("revoke", "--org", "acme", check=True)
        stream.wait()
        eventually(lambda: one.metric("portcullis_revocation_seconds_count") == 1)
        one.run("reload", check=True)
        found = {}
        for line in fetch(one.admin + "/metrics").body.decode().splitlines():
            sample = re.match(r"([a-z_]+)(?:\{(.*)\})? ", line)
            if sample:
                labels = re.findall(r'(\w+)="', sample[2] or "")
                found.setdefault(sample[1], {"job", "instance"}).update(labels)
        return found
    finally:
        one.close()


def rules(file):
    """(name, expression) of each rule. promtool has read the file as YAML; here only two keys matter."""
    text = (PROMETHEUS / file).read_text()
    found = re.findall(r"^ +- (?:alert|record): (\S+)\n +expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)", text, re.M)
    assert len(found) == len(re.findall(r"^ +- (?:alert|record):", text, re.M))
    return [(name, block or line) for name, block, line in found]


def dashboard():
    return json.loads(DASHBOARD.read_text())


def queries():
    """(panel, expression) of each query, with Grafana's variables filled in."""
    board = dashboard()
    asked = [("annotation", one["expr"]) for one in board["annotations"]["list"]]
    asked += [("variable", one["query"]["query"]) for one in board["templating"]["list"] if one["type"] == "query"]
    asked += [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    filled = {"$__rate_interval": "5m", "$__range": "6h", "$instance": ".*", "$org": ".*"}
    for name, expression in asked:
        for variable, value in filled.items():
            expression = expression.replace(variable, value)
        yield name, expression


def unknown(expression, known):
    """The names and labels of an expression that do not exist."""
    wrong = []
    for name, matchers in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expression):
        used = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers)
        wrong += [f"{name}{{{label}}}" for label in used if label not in known.get(name, ())]
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    labels = {label for listed in known.values() for label in listed} | {"le"}
    for listed in re.findall(r"\b(?:by|on|ignoring|without|group_left|group_right) *\(([^)]*)\)", bare):
        wrong += [label for label in re.findall(r"\w+", listed) if label not in labels and not label.startswith("gen_ai_")]
    bare = re.sub(r"\b(?:by|on|ignoring|without|group_left|group_right) *\([^)]*\)", " ", bare)
    return wrong + [name for name in re.findall(r"[A-Za-z_:][\w:]*", bare) if name not in WORDS and name not in known]


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["alerts.yml", "recording.yml"])
def test_rules_ask_only_for_what_a_gateway_exports(file, families):
    recorded = {name: set() for name, _ in rules("recording.yml")}
    known = families | OF_PROMETHEUS | recorded
    wrong = {name: unknown(expression, known) for name, expression in rules(file)}
    assert not {name: found for name, found in wrong.items() if found}


def test_the_dashboard_asks_only_for_what_a_gateway_exports(families):
    wrong = []
    for panel, expression in queries():
        listed = re.fullmatch(r"label_values\((\w+), (\w+)\)", expression)
        if listed:
            wrong += [] if listed[2] in families.get(listed[1], ()) else [(panel, expression)]
        else:
            wrong += [(panel, one) for one in unknown(expression, families)]
    assert not wrong


@pytest.mark.parametrize("file", ["alerts", "recording"])
def test_rules_behave_as_their_cases_say(file):
    promtool("check", "rules", PROMETHEUS / f"{file}.yml")
    promtool("test", "rules", PROMETHEUS / f"{file}_test.yml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = (PROMETHEUS / "alerts_test.yml").read_text()
    for name, _ in rules("alerts.yml"):
        outcomes = re.findall(rf"alertname: {name}\n +exp_alerts:( \[\])?", cases)
        assert " []" in outcomes and "" in outcomes, name


def test_every_alert_says_how_bad_it_is_and_where_its_runbook_stands():
    text = (PROMETHEUS / "alerts.yml").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^#+ (\S+)$", (ROOT / "docs/alerts.md").read_text(), re.M)}
    alerts = re.split(r"^ +- alert: ", text, flags=re.M)[1:]
    for alert in alerts:
        name = alert.split("\n", 1)[0]
        assert re.search(r"severity: (critical|warning|info) ", alert), name
        assert all(re.search(rf"^ +{key}: \S", alert, re.M) for key in ("summary", "description")), name
        assert f"runbook_url: {RUNBOOK}alerts.md#{name.lower()}\n" in alert, name
        assert name.lower() in anchors, name
    told = {anchor for anchor in anchors if anchor.startswith("portcullis")}
    assert told == {name.lower() for name, _ in rules("alerts.yml")}, "the runbook tells of alerts that do not exist"


def test_one_line_of_the_book_points_every_runbook_elsewhere(tmp_path):
    line = re.search(r"^sed -i .*$", (ROOT / "docs/alerts.md").read_text(), re.M)[0]
    for name in ("alerts.yml", "alerts_test.yml"):
        shutil.copy(PROMETHEUS / name, tmp_path)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    urls = re.findall(r"runbook_url: (\S+)", (tmp_path / "alerts.yml").read_text())
    assert urls and all(url.startswith("https://wiki.yours.example/portcullis/alerts.md#") for url in urls)
    promtool("test", "rules", tmp_path / "alerts_test.yml")


def test_the_dashboard_can_be_imported(tmp_path):
    board = dashboard()
    panels = board["panels"]
    assert board["schemaVersion"] >= 38, "Grafana 10"
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {one["name"]: one["type"] for one in board["templating"]["list"]}
    assert variables["datasource"] == "datasource" and "org" in variables
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"], panel["title"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == [
        "Traffic", "Refusals", "Quotas", "Tokens and cost", "Latency", "TLS and certificates", "Revocation", "Audit",
        "Upstream", "Process",
    ]  # fmt: skip
    cells = [(panel["gridPos"], cell) for panel in panels for cell in covered(panel["gridPos"])]
    assert len({cell for _, cell in cells}) == len(cells), "panels overlap"


def covered(place):
    return [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]


def test_every_query_of_the_dashboard_is_promql(tmp_path):
    asked = [expression for _, expression in queries() if not expression.startswith("label_values")]
    written = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(asked)]
    # JSON is YAML, too.
    file = pathlib.Path(tmp_path) / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": written}]}))
    promtool("check", "rules", file)
