"""Where the tests of budgets, charges and bodies play: a gateway that organizations join one by one.

A file of tests shares it, and every test has organizations, and with them counters, of its own. The mock model's own
book is the judge.
"""

import contextlib
import itertools
import json
import re
import socket
import threading

import h2.config
import h2.connection
import h2.events
import pytest
from stage import H1, Stage, eventually, fetch, midday

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
MAXIMUM = {
    "chat": "max_completion_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
}
STREAMED = ["chat", "completions", "responses", "messages"]
FLOWS = [(route, stream) for route in PATHS for stream in (False, True) if (route, stream) != ("embeddings", True)]
every_flow = pytest.mark.parametrize(("route", "stream"), FLOWS, ids=[f"{r}{'-stream' * s}" for r, s in FLOWS])
every_stream = pytest.mark.parametrize("route", STREAMED)

# 80 × 5 bytes: 100 tokens by the mock model's count.
HUNDRED = "word " * 80
STEP = 16

MODELS = """\
[model.priced]
match = ["gpt-priced-*"]
price_per_mtok = { input = "2.50", cached_input = "0.25", cache_write = "3.125", output = "15.00" }
[model.short]
match = ["gpt-short-*"]
max_output_tokens = 50
[model.long]
match = ["gpt-long-*"]
max_output_tokens = 500
[model.light]
match = ["gpt-light-*"]
weights = { cached_input = 0, cache_write = 2 }
price_per_mtok = { input = "1.00", output = "1.00" }
[[upstream]]
name = "nowhere"
url = "http://127.0.0.1:%d"
dialect = "openai"
api_key = "env:UPSTREAM_KEY"
models = ["nowhere"]
"""

ORG = """\
id = "{name}"
name = "{name}"
{parent}
purposes = ["research", "incident"]
models = [{models}]
[[identity]]
authority = "partners"
uri = "spiffe://partners/{name}"
{limits}
"""


class Place:
    """A gateway that organizations join one by one."""

    def __init__(self, folder, enforce, more=""):
        # Bound and not listening: a connection to it is refused as long as we hold it.
        self.nowhere = socket.socket()
        self.nowhere.bind(("127.0.0.1", 0))
        quota = f'enforce = "{enforce}"\ndefault_output_reserve = 64\nextend = {STEP}\ntimezone = "{midday()}"'
        self.stage = Stage(folder, quota=quota, more=MODELS % self.nowhere.getsockname()[1] + more)
        self.numbers = itertools.count(1)

    def close(self):
        self.stage.close()
        self.nowhere.close()

    def join(self, limits="", models='"mock-*", "gpt-*", "claude-*", "nowhere"', parent=""):
        """A new organization under `limits` (lines of `[limits]`, or tables of their own); its id."""
        name = f"org-{next(self.numbers)}"
        self.stage.partners.leaf(name, uri=f"spiffe://partners/{name}")
        self.write(name, limits, models, parent)
        return name

    def write(self, name, limits="", models='"mock-*", "gpt-*", "claude-*", "nowhere"', parent=""):
        limits = limits if limits.startswith("[") else "[limits]\n" + limits
        parent = f'parent = "{parent}"' if parent else ""
        self.stage.write_org(name, ORG.format(name=name, parent=parent, models=models, limits=limits))
        reloaded = fetch(self.stage.admin + "/-/reload", method="POST")
        assert reloaded.status == 200, reloaded.body

    def connect(self, org):
        return H1(self.stage.connect(org))

    def ask(self, org, route="chat", connection=None, headers=None, **asked):
        with contextlib.ExitStack() as stack:
            connection = connection or stack.enter_context(self.connect(org))
            return connection.ask(PATHS[route], body(route, **asked), **(headers or {}))

    def settled(self, org, identifier="tokens_per_day"):
        """A limit, once nothing is under way."""
        return eventually(
            lambda: (now := self.stage.limit(org, identifier))["reserved"] == 0 and now, what="settlement"
        )

    def closed(self, headers):
        """The closing audit line of the answer with these headers."""

        def ask():
            lines = (one for one in self.stage.audit() if one.get("request_id") == headers["request-id"])
            return next((one for one in lines if one["kind"] == "closed"), None)

        return eventually(ask, what="a closing line")

    def sent(self, mark):
        """What the mock model's book holds of the requests whose body holds `mark`."""
        return [one for one in self.stage.ledger()["requests"] if mark in one["body"]]


def place(enforce):
    """Two fixtures: a place for a whole file, and the same for one test, after which its organizations are gone."""

    @pytest.fixture(scope="module", name=f"{enforce}_place")
    def whole(tmp_path_factory):
        made = Place(tmp_path_factory.mktemp(enforce), enforce)
        yield made
        log = made.stage.gateway.log
        made.close()
        assert "panicked at" not in log, log

    @pytest.fixture(name=enforce)
    def one(request):
        made = request.getfixturevalue(f"{enforce}_place")
        yield made
        for file in (made.stage.folder / "orgs.d").glob("org-*.toml"):
            file.unlink()

    return whole, one


marks = itertools.count(1)


def fresh(script):
    """A script's model under a name that no test used before, so that nothing is learned of it yet."""
    return f"mock-{script}.v{next(marks)}"


def body(route, model="mock-1", text="hello", stream=False, maximum=None, **more):
    asked = {"model": ("claude-" if route == "messages" else "") + model}
    asked |= {"prompt": text} if route == "completions" else {}
    asked |= {"input": text} if route in ("responses", "embeddings") else {}
    asked |= {"messages": [{"role": "user", "content": text}]} if route in ("chat", "messages") else {}
    if stream:
        asked["stream"] = True
    if maximum is not None and route in MAXIMUM:
        asked[MAXIMUM[route]] = maximum
    return asked | more


def spent(requests):
    return sum(one["input_tokens"] + one["output_tokens"] for one in requests)


def words(answer):
    """The figures of a refusal's sentence."""
    message = answer.json["error"]["message"]
    held = r"(?:, reserved by requests under way (\S*\d))?"
    found = re.search(rf"limit (\S*\d), used (\S*\d){held}, requested (\S*\d)\b", message)
    assert found, message
    return [float(one) for one in found.groups() if one], message


def until_cut(connection):
    """The text of a streamed body, and whether it ended as streams should."""
    pieces = []
    while (piece := connection.read_chunk()) not in (b"", None):
        pieces.append(piece)
    return b"".join(pieces), piece == b""


def text_of(tokens):
    """The bytes of the mock model's first words."""
    words = "The| gate| opens| for| those| who| say| what| for,| and| stays| shut| for| all| others|.".split("|")
    return sum(len(words[k % 16]) for k in range(tokens))


def crowd(stage, org, bodies, whole=True):
    """The statuses of chat requests that are all sent before an answer is read, 100 to an HTTP/2 connection.

    Not `whole`: no answer is left before all have begun, and none is waited for.
    """
    groups = [bodies[at: at + 100] for at in range(0, len(bodies), 100)]
    statuses, lines = [], [stage.connect(org, alpn=("h2",), timeout=30) for _ in groups]
    begun = threading.Barrier(len(groups), timeout=60)

    def take(line, group):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        for asked in group:
            number = connection.get_next_available_stream_id()
            connection.send_headers(number, [
                (":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", PATHS["chat"]),
                ("content-type", "application/json"), ("portcullis-purpose", "research"),
            ])  # fmt: skip
            connection.send_data(number, json.dumps(asked).encode(), end_stream=True)
        line.sendall(connection.data_to_send())
        awaited = h2.events.StreamEnded if whole else h2.events.ResponseReceived
        left = len(group)
        while left:
            got = line.recv(65536)
            assert got, "the connection ended early"
            for event in connection.receive_data(got):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses.append(int(dict(event.headers)[":status"]))
                if isinstance(event, h2.events.DataReceived):
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                left -= isinstance(event, awaited)
            line.sendall(connection.data_to_send())
        begun.wait()
        line.close()

    threads = [threading.Thread(target=take, args=one) for one in zip(lines, groups)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(statuses) == len(bodies)
    return statuses
