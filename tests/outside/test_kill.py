"""`kill -9` at any moment: what was used is never counted too little, nor was anything forwarded without its record.

The mock model lives on while gateways die, and its book is the judge. PORTCULLIS_ROUNDS asks for more rounds than 5.
"""

import datetime
import hashlib
import itertools
import json
import os
import random
import re
import threading

import pytest
from stage import H1, Program, Stage, chat, eventually, midday

ROUNDS = int(os.environ.get("PORTCULLIS_ROUNDS", "5"))
LIMITS = """\
[limits]
requests_per_day = 1_000_000
tokens_per_day = 100_000_000
requests_per_hour = { limit = 1, burst = 1_000_000 }
"""

# Marks are looked at every 250 ms; this is how long one look may be late on a machine with other work.
BEAT = 0.4


@pytest.fixture
def one(stage):
    return stage(quota=f'timezone = "{midday()}"', orgs={"acme": Stage.ACME + LIMITS, "globex": Stage.GLOBEX + LIMITS},
                 audit='rotate = { size = "256KiB" }')  # fmt: skip


def names(begin):
    return (f"{begin}-{number}" for number in itertools.count())


def load(stage, names, ended, killed):
    """Asks over and over, plain and streamed, until the gateway is gone; adds what was answered whole to `ended`."""
    for number, name in enumerate(names):
        body = chat(f"mock-tokens-{number % 40}.ttft-{number % 3}", stream=number % 2 == 0, max_tokens=40)
        try:
            with H1(stage.connect(("acme", "globex")[number % 2])) as connection:
                for again in range(5):
                    mark = f"{name}-{again}"
                    answer = connection.ask(body=body, idempotency_key=mark, x_client_request_id=mark)
                    assert answer.status == 200, answer.body
                    ended.append(mark)
        except (OSError, EOFError):
            if killed.is_set():
                return
            raise


def at(line):
    return datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp()


def tokens_of(line):
    """What an accepted line has reserved."""
    return sum(line["reserved"][part] for part in ("input", "cached_input", "cache_write", "output"))


def leases(lines, weigh):
    """The most that one death may add: twice the most that was reserved within a beat, and what waited at the end."""
    accepted = sorted((at(line), weigh(line)) for line in lines if line["kind"] == "accepted")
    most, within, first = 0, 0, 0
    for when, amount in accepted:
        within += amount
        while accepted[first][0] <= when - BEAT:
            within -= accepted[first][1]
            first += 1
        most = max(most, within)
    return 2 * most + 8 * max((amount for _, amount in accepted), default=0)


def every_line(stage, last=10_000_000):
    """The whole log, packed segments too, or its last lines."""
    told = stage.run("audit", "tail", "-n", last, "--json", "--dir", "audit", check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


# More than are written between two deaths.
FRESH = 4_000


def test_a_gateway_that_is_killed_under_load_forgets_nothing(one):
    chance = random.Random(0)
    ended, recorded = [], set()
    most = {"requests_per_day": 0, "requests_per_hour": 0, "tokens_per_day": 0}
    seen = 0
    for number in range(ROUNDS):
        killed = threading.Event()
        shares = [names(f"{number}-{thread}") for thread in range(4)]
        threads = [threading.Thread(target=load, args=(one, share, ended, killed)) for share in shares]
        before = len(ended)
        for thread in threads:
            thread.start()
        wanted = before + chance.randint(1, 400)
        eventually(lambda wanted=wanted: len(ended) >= wanted, within=60, every=0.001, what="answers")
        killed.set()
        one.gateway.kill()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        book = eventually(lambda: (book := one.ledger())["totals"]["open"] == 0 and book, what="the end upstream")

        one.start()
        lines = every_line(one, FRESH)
        assert lines[0]["seq"] <= seen, "all that is new"
        fresh, seen = [line for line in lines if line["seq"] >= seen], lines[-1]["seq"] + 1
        recorded |= {line.get("client_request_id") for line in fresh if line["kind"] == "accepted"}
        forwarded = {request["idempotency_key"] for request in book["requests"]}
        assert forwarded <= recorded, "forwarded without an accepted line"
        assert set(ended) <= recorded

        verified = one.run("audit", "verify", "audit", "--json")
        assert verified.returncode == 0, verified.stdout + verified.stderr

        for identifier in most:
            most[identifier] += leases(fresh, tokens_of if "tokens" in identifier else lambda _: 1)
        totals = book["totals"]
        truly = {"requests_per_day": totals["requests"], "requests_per_hour": totals["requests"],
                 "tokens_per_day": totals["input_tokens"] + totals["output_tokens"]}  # fmt: skip
        for identifier, least in truly.items():
            counted = sum(one.limit(org, identifier)["used"] for org in ("acme", "globex"))
            assert least <= counted, f"{identifier}: too little"
            # Two organizations, each with leases of its own scopes.
            assert counted <= least + 2 * most[identifier], f"{identifier}: more than a lease too much"
    assert one.gateway.end() == 0
    assert one.run("audit", "verify", "audit").returncode == 0


def test_no_closing_line_is_written_twice_and_no_number_is_used_twice(one):
    for number in range(2):
        ended, killed = [], threading.Event()
        thread = threading.Thread(target=load, args=(one, names(f"{number}"), ended, killed))
        thread.start()
        eventually(lambda ended=ended: len(ended) >= 20, what="answers")
        killed.set()
        one.gateway.kill()
        thread.join(30)
        one.start()
    lines = every_line(one)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    closed = [line["accepted_seq"] for line in lines if line["kind"] == "closed"]
    assert len(closed) == len(set(closed))
    accepted = {line["seq"] for line in lines if line["kind"] == "accepted"}
    assert set(closed) <= accepted
    assert len({line["boot"] for line in lines}) == 3


def test_a_torn_last_line_is_cut_off_and_the_repair_is_recorded(one):
    assert one.ask(body=chat()).status == 200
    one.gateway.kill()
    segment = one.folder / "audit" / "audit-1.jsonl"
    whole = segment.read_bytes()
    torn = whole.splitlines()[-1][:50]
    segment.write_bytes(whole + torn)
    one.start()
    lines = one.audit()
    (repaired,) = [line for line in lines if line["kind"] == "repaired"]
    assert (repaired["segment"], repaired["bytes"]) == (1, len(torn))
    assert repaired["sha256"] == hashlib.sha256(torn).hexdigest()
    assert segment.read_bytes().startswith(whole)
    assert one.run("audit", "verify", "audit").returncode == 0


def test_a_log_that_lost_signed_records_is_not_continued(one):
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    segment = one.folder / "audit" / "audit-1.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-1]))
    status, said = attempt(one)
    assert status == 2
    assert "audit" in said


# Who may use the state.


def attempt(stage, config="portcullis.toml"):
    """What a start that must fail ends with, and what it says."""
    program = Program(stage.folder, "attempt", "run", "-c", config)
    try:
        return program.wait(), program.log
    finally:
        program.kill()


@pytest.mark.parametrize(("own", "shared"), [("audit", "state"), ("state", "audit")])
def test_a_second_process_on_the_same_files_is_refused(one, own, shared):
    text = (one.folder / "portcullis.toml").read_text()
    (one.folder / "second.toml").write_text(text.replace(f'"{own}"', f'"{own}-2"'))
    status, said = attempt(one, "second.toml")
    assert status == 2
    assert "another process" in said and shared in said, said
    assert one.ask(body=chat()).status == 200, "the first goes on"


def state(stage):
    (file,) = (stage.folder / "state").glob("*.redb")
    return file


WRECKS = {
    "foreign": lambda whole: b"This is somebody else's file.\n" * 1000,
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "headless": lambda whole: bytes(512) + whole[512:],
    "a changed mark": lambda whole: whole.replace(b"acme", b"acne"),
    "a changed figure": lambda whole: flipped(whole, whole.index(b"acme") + 40),
}


def flipped(whole, place):
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:]


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_state_file_that_cannot_be_trusted_is_an_error_and_never_a_new_beginning(one, wreck):
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    file = state(one)
    whole = file.read_bytes()
    wrecked = WRECKS[wreck](whole)
    assert wrecked != whole
    file.write_bytes(wrecked)
    status, said = attempt(one)
    assert status == 2, said
    assert file.name in said and "panicked" not in said, said
    assert file.read_bytes() == wrecked, "it is left for a person to look at"
    file.write_bytes(whole)
    one.start()
    assert one.limit("acme", "requests_per_day")["used"] == 1


def test_a_state_directory_that_cannot_be_written_is_an_error(one):
    assert one.gateway.end() == 0
    (one.folder / "state").rename(one.folder / "kept")
    # Nothing can be made behind a link to where nothing is.
    (one.folder / "state").symlink_to("gone/away")
    status, said = attempt(one)
    assert status == 2 and "state" in said, said
    # What is no directory is a mistake of whoever wrote the path, and has a place.
    (one.folder / "state").unlink()
    (one.folder / "state").write_text("not a directory")
    status, said = attempt(one)
    assert status == 1 and re.search(r"portcullis\.toml:\d+:\d+", said), said


OLDER = "it is an older copy"


@pytest.mark.parametrize("ends", [Program.end, Program.kill], ids=["stopped", "killed"])
def test_an_older_copy_of_the_state_is_told_and_the_state_itself_never(one, ends):
    assert one.ask(body=chat()).status == 200
    assert one.gateway.end() == 0
    older = state(one).read_bytes()
    for _ in range(2):
        one.start()
        assert one.ask(body=chat()).status == 200
        ends(one.gateway)
        assert OLDER not in one.gateway.log
    state(one).write_bytes(older)
    one.start()
    assert OLDER in one.gateway.log, one.gateway.log
    assert one.gateway.end() == 0
    one.start()
    assert OLDER not in one.gateway.log, "it goes on from here"
