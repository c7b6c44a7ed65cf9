"""A binary replaced under load: no request is lost, no stream is cut, nothing is counted twice or not at all.

The same binary takes over from itself, by `run --replace` or on SIGUSR2; what it takes over is the running state.
"""

import json
import pathlib
import re
import resource
import signal
import subprocess
import threading
import time

import pytest
from stage import BINARY, H1, Program, Stage, Streaming, chat, eventually, fetch, midday

STREAM = "mock-tokens-240.tps-40"
LIMITS = """\
[limits]
tokens_per_month = 100000000
requests_per_day = 1000000
concurrent_requests = 1000
"""


@pytest.fixture
def one(stage):
    return stage(
        orgs={"acme": Stage.ACME + LIMITS, "globex": Stage.GLOBEX},
        listen='drain = { delay = "0s", deadline = "60s" }',
        quota=f'timezone = "{midday()}"\ndefault_output_reserve = 5000',
    )


def replace(one, how="--replace", meanwhile=lambda: None, **successor):
    """Another process takes over; returns the one before, which still finishes what it carries. `meanwhile` is done when
    that one has handed everything over, and the other may not serve yet."""
    before, number = one.gateway, getattr(one, "replaced", 0) + 1
    one.replaced = number
    if how == "--replace":
        one.gateway = Program(one.folder, f"gateway-{number}", "run", "-c", "portcullis.toml", "--replace",
                              **successor)  # fmt: skip
        before.printed(r"(draining)")
        meanwhile()
        one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
        one.admin = "http://" + one.gateway.printed(r"admin on (?:http://)?(127\.0\.0\.1:\d+|unix:\S+)")
    else:
        before.signal(signal.SIGUSR2)
        eventually(lambda: before.log.count("partners on https://") > number, what="the successor")
    return before


class Load(threading.Thread):
    """Requests one after the other on a connection that is made anew whenever the gateway said it would close it."""

    def __init__(self, one):
        super().__init__(daemon=True)
        self.one, self.over, self.done, self.slowest, self.failed = one, threading.Event(), 0, 0.0, []

    def run(self):
        connection = None
        while not self.over.is_set():
            began = time.monotonic()
            try:
                connection = connection or H1(self.one.connect())
                answer = connection.ask(body=chat("mock-3"))
                if answer.status != 200:
                    self.failed.append((answer.status, answer.body))
                self.done += 1
            except (OSError, EOFError) as error:
                self.failed.append(repr(error))
                connection = None
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = None

    def finish(self):
        self.over.set()
        self.join(20)
        assert not self.is_alive()


def used(one, unit):
    return one.limit("acme", unit)["used"]


def closed_once(one):
    """Every accepted line of the log has one closing line; returns how many there are."""

    def both():
        lines = one.audit()
        accepted = sorted(line["seq"] for line in lines if line["kind"] == "accepted")
        return accepted, sorted(line["accepted_seq"] for line in lines if line["kind"] == "closed")

    # A closing line is gathered for a moment before it is written.
    eventually(lambda: len(both()[0]) == len(both()[1]), what="the last closing line")
    accepted, closed = both()
    assert closed == accepted
    return len(accepted)


def test_a_binary_replaced_twice_under_load_loses_no_request_and_cuts_no_stream(one):
    load = [Load(one) for _ in range(4)]
    for thread in load:
        thread.start()
    streams, replaced = [Streaming(one, STREAM)], []
    for _ in range(2):
        enough = sum(thread.done for thread in load) + 40
        eventually(lambda: sum(thread.done for thread in load) > enough or any(t.failed for t in load), what="load")
        replaced.append(replace(one))
        streams.append(Streaming(one, STREAM))
    enough = sum(thread.done for thread in load) + 40
    eventually(lambda: sum(thread.done for thread in load) > enough or any(t.failed for t in load), what="load")
    for thread in load:
        thread.finish()
    assert [thread.failed for thread in load] == [[]] * 4
    # The first stream began two processes ago.
    assert [stream.wait(30) for stream in streams] == ["complete"] * 3
    assert all(stream.text.endswith("data: [DONE]\n\n") for stream in streams)
    for stream in streams:
        stream.close()
    for program in replaced:
        assert program.wait(20) == 0, program.log
    requests = sum(thread.done for thread in load) + 3
    book = one.ledger()
    assert book["totals"]["requests"] == requests
    spent = sum(entry["input_tokens"] + entry["output_tokens"] for entry in book["requests"])
    assert closed_once(one) == requests
    assert used(one, "tokens_per_month") == spent
    assert used(one, "requests_per_day") == requests
    eventually(lambda: used(one, "concurrent_requests") == 0, what="the end of what the old processes carried")
    assert one.gateway.end() == 0, one.gateway.log
    assert one.run("audit", "verify", "audit").returncode == 0
    assert len({line["boot"] for line in one.audit()}) == 3
    print(f"slowest request: {max(thread.slowest for thread in load):.3f} s")


def test_sigusr2_starts_what_lies_in_the_program_s_place_by_now(one):
    stream = Streaming(one, "mock-tokens-400.tps-40")
    before = replace(one, "SIGUSR2")
    assert before.process.poll() is None
    pid = before.printed(r"a successor starts pid=(\d+)")
    with H1(one.connect()) as new:
        assert new.ask(body=chat()).headers.get("connection") != "close", "it is not the one that drains"
    assert stream.wait(20) == "complete"
    stream.close()
    assert before.wait(20) == 0, before.log
    # It is nobody's child by now, and ends as it is told.
    assert one.run("drain", "--wait").returncode == 0
    # Its ports are closed; the end of its log is written after that.
    eventually(lambda: not pathlib.Path(f"/proc/{pid}").exists(), what="the successor's end")
    assert closed_once(one) == 2
    assert one.run("audit", "verify", "audit").returncode == 0


def test_a_successor_that_cannot_start_disturbs_nobody(one):
    stream = Streaming(one, STREAM)
    one.write_config(more="nonsense = true")
    done = one.run("run", "-c", "portcullis.toml", "--replace")
    assert (done.returncode, "nonsense" in done.stderr) == (1, True), done.stderr
    one.write_config(more="", admin='metrics = "192.0.2.1:1"')
    done = one.run("run", "-c", "portcullis.toml", "--replace")
    assert (done.returncode, "192.0.2.1:1" in done.stderr) == (2, True), done.stderr
    one.write_config(admin="")
    with H1(one.connect()) as connection:
        assert "close" not in connection.ask(body=chat()).headers.get("connection", "")
    assert fetch(one.admin + "/readyz").status == 200
    assert stream.wait(20) == "complete"
    stream.close()
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit").returncode == 0


def test_with_nobody_to_replace_it_is_an_ordinary_start(one):
    one.gateway.end()
    replace(one)
    assert one.ask(body=chat()).status == 200
    assert one.run("run", "-c", "portcullis.toml").returncode == 2, "without --replace the state is taken"
    assert one.gateway.end() == 0


def test_a_connection_of_the_old_process_is_served_once_more_and_counts_at_the_new_one(one):
    with H1(one.connect()) as standing:
        assert standing.ask(body=chat("mock-3")).status == 200
        answers = []
        # At once: it stands for two seconds, and a start may take as long.
        before = replace(one, meanwhile=lambda: answers.append(standing.ask(body=chat("mock-3"))))
        (answer,) = answers
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert before.wait(20) == 0, before.log
    assert used(one, "requests_per_day") == 2
    spent = sum(entry["input_tokens"] + entry["output_tokens"] for entry in one.ledger()["requests"])
    assert used(one, "tokens_per_month") == spent
    assert closed_once(one) == 2
    stop, start = [line["seq"] for line in one.audit() if line["kind"] in ("stop", "start")][1:]
    seqs = [line["seq"] for line in one.audit() if line["kind"] == "accepted"]
    assert seqs[0] < stop < start < seqs[1], "the second one is written by the new process"


def test_two_processes_do_not_grant_what_is_there_once(stage):
    hard = f'timezone = "{midday()}"\nenforce = "hard"\ndefault_output_reserve = 100'
    one = stage(orgs={"acme": Stage.ACME + "[limits]\nrequests_per_day = 6\n"}, quota=hard)
    standing = [H1(one.connect()) for _ in range(4)]
    assert [connection.ask(body=chat()).status for connection in standing] == [200] * 4
    # Who has begun to ask is not idle, and stays for longer than the others have to ask; it is judged when it has ended.
    asked = [connection.head(body=chat()) for connection in standing]
    for connection, request in zip(standing, asked):
        connection.send(request[:-1])
    replace(one)
    with H1(one.connect()) as new:
        assert [new.ask(body=chat()).status for _ in range(3)] == [200, 200, 429]
    # The old process knew of two that were left.
    for connection, request in zip(standing, asked):
        connection.send(request[-1:])
    assert {connection.read_head()[0] for connection in standing} <= {429, 503}
    assert used(one, "requests_per_day") == one.ledger()["totals"]["requests"] == 6
    for connection in standing:
        connection.close()


def test_a_budget_spent_at_the_new_process_cuts_the_old_one_s_stream_and_costs_its_lead_nothing_more(stage):
    lead = 'id = "lead"\nname = "Lead"\npurposes = ["research", "incident"]\nmodels = ["mock-*", "gpt-*", "claude-*"]\n'
    member = Stage.ACME.replace("purposes", 'parent = "lead"\npurposes', 1)
    one = stage(
        orgs={
            "acme": member + "[limits]\ntokens_per_day = 3000\n",
            "lead": lead + "[limits]\ntokens_per_hour = { limit = 3600, burst = 1000000 }\n",
        },
        quota=f'timezone = "{midday()}"',
        listen='drain = { delay = "0s", deadline = "60s" }',
    )
    # Five seconds until there is no room for the other.
    stream = Streaming(one, "mock-tokens-6000.tps-400", maximum=None)
    before = replace(one)
    assert one.ask(body=chat("mock-tokens-800", max_tokens=850)).status == 200
    assert stream.wait(30) == "cut"
    assert '"code":"insufficient_quota"' in stream.text
    stream.close()
    assert before.wait(20) == 0, before.log
    spent, meter = used(one, "tokens_per_day"), one.limit("lead", "tokens_per_hour")
    assert 2000 < spent <= 3000
    assert meter["used"] + meter["reserved"] <= spent
    (cut,) = eventually(lambda: [line for line in one.audit() if line.get("ending") == "quota_cut"], what="its line")
    assert cut["reason"] == "insufficient_quota"


def test_what_is_revoked_at_the_new_process_is_cut_at_the_old_one(one):
    mine, other = Streaming(one), Streaming(one, "mock-tokens-400.tps-40", certificate="globex")
    before = replace(one)
    assert one.run("revoke", "--org", "acme").returncode == 0
    answered = time.monotonic()
    assert mine.wait() == "cut"
    assert mine.ended_at - answered < 2
    assert other.wait(20) == "complete"
    mine.close(), other.close()
    assert before.wait(20) == 0, before.log
    assert closed_once(one) == 2
    (cut,) = [line for line in one.audit() if line.get("severed_by")]
    assert cut["organization"] == "acme"


def test_a_successor_that_has_too_few_descriptors_serves_all_the_same(one):
    """Nobody else does any more: the process before it has handed everything over."""
    stream = Streaming(one, STREAM)
    before = replace(one, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    assert stream.wait(20) == "complete"
    stream.close()
    assert before.wait(20) == 0, before.log
    assert fetch(one.admin + "/livez").status == 200
    eventually(lambda: "64 open files are too few" in one.gateway.log, what="a loud word in the log")


def test_the_deadline_of_the_old_process_holds_and_its_last_word_is_counted(stage):
    month = f'timezone = "{midday()}"'
    one = stage(listen='drain = { delay = "0s", deadline = "1s" }', orgs={"acme": Stage.ACME + LIMITS}, quota=month)
    stream = Streaming(one)
    before = replace(one)
    assert stream.wait() == "cut"
    assert "stopping" in stream.text
    stream.close()
    assert before.wait(20) == 0, before.log
    assert closed_once(one) == 1
    (line,) = [line for line in one.audit() if line["kind"] == "closed"]
    assert line["ending"] == "drained"
    assert used(one, "tokens_per_month") == line["usage"]["input"] + line["usage"]["output"]


def test_whoever_stops_the_new_process_at_once_stops_the_old_one_too(one):
    stream = Streaming(one)
    before = replace(one)
    one.gateway.signal(signal.SIGTERM)
    eventually(lambda: fetch(one.admin + "/readyz").status == 503, what="the drain")
    assert stream.ended is None, "it waits for the other's streams as for its own"
    one.gateway.signal(signal.SIGTERM)
    assert one.gateway.wait(20) == 0, one.gateway.log
    assert before.wait(20) == 0, before.log
    assert stream.wait() == "cut"
    stream.close()
    assert closed_once(one) == 1
    assert one.run("audit", "verify", "audit").returncode == 0


def test_a_new_process_that_is_killed_takes_no_stream_with_it_and_forgets_no_use(one):
    stream = Streaming(one, STREAM)
    reserved = one.limit("acme", "tokens_per_month")
    reserved = reserved["used"] + reserved.get("reserved", 0)
    before = replace(one)
    one.gateway.kill()
    assert stream.wait(20) == "complete"
    stream.close()
    # A failure where it had not heard yet that the new one served: then somebody has to start another.
    assert before.wait(20) in (0, 2), before.log
    one.start()
    assert used(one, "tokens_per_month") >= reserved > 0
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit").returncode == 0


def test_an_old_process_that_is_killed_leaves_what_it_carried_open_as_after_a_crash(one):
    with H1(one.connect()) as standing:
        assert standing.ask(body=chat("mock-3")).status == 200
        asked = standing.head(body=chat("mock-hang"))
        # Who has begun to ask is not idle, and is served by the old process.
        standing.send(asked[:-1])
        before = replace(one)
        standing.send(asked[-1:])
        carried = eventually(lambda: [line for line in one.audit() if line.get("model") == "mock-hang"], what="its line")
        before.kill()
        eventually(lambda: used(one, "concurrent_requests") == 0, what="word that it is gone")
    assert one.gateway.end() == 0
    lines = one.audit()
    (accepted,) = carried
    first, second = [line["boot"] for line in lines if line["kind"] == "start"]
    assert (accepted["boot"], accepted["served_by"]) == (second, first)
    assert not [line for line in lines if line.get("accepted_seq") == accepted["seq"]]
    assert [line["open"] for line in lines if line["kind"] == "stop"] == [0, 1]
    told = one.run("audit", "report", "--org", "acme", "--dir", "audit", "--json", check=True)
    assert json.loads(told.stdout)["report"]["total"]["open"] == 1


@pytest.mark.parametrize("beside", [False, True], ids=["started-afterwards", "started-beside-it"])
def test_what_a_stream_uses_that_outlives_the_process_that_took_over_is_counted_and_held_to_the_budget(stage, beside):
    one = stage(
        orgs={"acme": Stage.ACME + "[limits]\ntokens_per_day = 3000\n"},
        quota=f'timezone = "{midday()}"\ndefault_output_reserve = 100',
        listen='drain = { delay = "0s", deadline = "60s" }',
    )
    stream = Streaming(one, "mock-tokens-20000.tps-400", maximum=None)
    before = replace(one)
    one.gateway.kill()
    if beside:
        one.start()
    assert stream.wait(30) == "cut", "nobody grants it more than the budget"
    assert '"code":"insufficient_quota"' in stream.text
    stream.close()
    before.wait(20)
    if not beside:
        one.start()
    sent = sum(one.ledger()["totals"][tokens] for tokens in ("input_tokens", "output_tokens"))
    eventually(lambda: used(one, "tokens_per_day") >= sent, what="what it used")
    assert sent > 1000
    eventually(lambda: not list((one.folder / "state").glob("untold-*")), what="the notes to be taken away")


def test_the_admin_socket_changes_hands_as_well(one):
    one.gateway.end()
    one.write_config(admin="")
    config = (one.folder / "portcullis.toml").read_text()
    path = "unix:admin.sock"
    (one.folder / "portcullis.toml").write_text(re.sub(r'(\[admin\]\naddress = )"[^"]*"', rf'\1"{path}"', config))
    one.gateway = Program(one.folder, "gateway-unix", "run", "-c", "portcullis.toml")
    one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
    status = [BINARY, "status", "--admin", path]
    assert subprocess.run(status, cwd=one.folder).returncode == 0
    before = replace(one)
    assert before.wait(20) == 0, before.log
    assert (one.folder / "admin.sock").exists(), "the old process leaves it to the new one"
    assert subprocess.run(status, cwd=one.folder).returncode == 0
    assert one.gateway.end() == 0
    assert not (one.folder / "admin.sock").exists()
