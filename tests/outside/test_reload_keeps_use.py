"""Use is kept: whatever becomes of the configuration or of the process, nothing that was used up comes back.

A reload, a restart, `kill -9`, an organization that leaves and returns: each is tried against a count that is known.
"""

import contextlib
import itertools
import resource
import signal
import threading

import pytest
from stage import H1, Stage, Streaming, chat, eventually, fetch, midday

LIMITED = Stage.ACME + "[limits]\n{limits}\n"
BUDGET = "requests_per_day = {n}\ntokens_per_month = 100_000"
TEN = LIMITED.format(limits=BUDGET.format(n=10))
NATION = """\
id = "nation"
name = "Nation"
purposes = ["research", "incident"]
models = ["mock-*", "gpt-*", "claude-*"]
[limits]
requests_per_day = {n}
"""
# 80 × 5 bytes are 100 tokens by the mock model's count; it answers 16.
HUNDRED = [{"role": "user", "content": "word " * 80}]
TOKENS = 100 + 16


@pytest.fixture
def one(stage):
    return stage(quota=f'timezone = "{midday()}"\nextend = 16', orgs={"acme": TEN})


def limited(stage, limits):
    """Puts these limits in force."""
    stage.write_org("acme", LIMITED.format(limits=limits))
    return reloaded(stage)


def reloaded(stage):
    answer = fetch(stage.admin + "/-/reload", method="POST")
    assert answer.status == 200, answer.body
    return answer


def ask(stage, times=1, **more):
    with H1(stage.connect()) as connection:
        return [connection.ask(body=chat(messages=HUNDRED, max_tokens=16, **more)).status for _ in range(times)]


def standing(stage, identifier="requests_per_day"):
    """A limit, once nothing is under way."""
    return eventually(lambda: (now := stage.limit("acme", identifier))["reserved"] == 0 and now, what="settlement")


def used(stage, identifier="requests_per_day"):
    return standing(stage, identifier)["used"]


def all_used(stage):
    (organization,) = stage.status()["organizations"]
    return {limit["id"]: limit["used"] for limit in organization["limits"]}


# Reloads.


def test_an_edited_limit_keeps_its_use(one):
    assert ask(one, 6) == [200] * 6
    for n in (20, 7, 1000, 10):
        limited(one, BUDGET.format(n=n))
        now = standing(one)
        assert (now["limit"], now["used"], now["remaining"]) == (n, 6, n - 6)
        assert used(one, "tokens_per_month") == 6 * TOKENS


def test_a_limit_below_its_use_refuses_and_one_above_goes_on(one):
    assert ask(one, 6) == [200] * 6
    limited(one, BUDGET.format(n=4))
    now = standing(one)
    assert (now["used"], now["remaining"]) == (6, 0)
    assert ask(one, 2) == [429, 429]
    limited(one, BUDGET.format(n=7))
    assert ask(one, 2) == [200, 429]


def test_a_rate_below_its_use_refuses_until_it_has_drained(one):
    limited(one, "requests_per_second = { limit = 2, burst = 20 }")
    assert ask(one, 20).count(200) == 20
    # Eight seconds until so much has drained: a busy machine is no faster than that.
    limited(one, "requests_per_second = { limit = 2, burst = 5 }")
    with H1(one.connect()) as connection:
        refused = connection.ask(body=chat())
        assert refused.headers["portcullis-reason"] == "rate_limit_exceeded"
        eventually(lambda: one.limit("acme", "requests_per_second")["used"] <= 4, within=20, what="drained use")
        assert connection.ask(body=chat()).status == 200


def test_a_raised_rate_gives_nothing_back(one):
    """At 1 an hour nothing drains within a test; a higher rate drains only from its own beginning on."""
    limited(one, "requests_per_hour = { limit = 1, burst = 8 }")
    assert ask(one, 9) == [200] * 8 + [429]
    limited(one, "requests_per_hour = { limit = 2, burst = 8 }")
    assert ask(one, 1) == [429]
    limited(one, "requests_per_hour = { limit = 1, burst = 9 }")
    assert ask(one, 2) == [200, 429], "a larger burst has room for one more, no refill"


def test_a_limit_that_is_taken_away_and_put_back_counted_on(one):
    assert ask(one, 6) == [200] * 6
    limited(one, "concurrent_requests = 10")
    assert ask(one, 3) == [200] * 3
    limited(one, BUDGET.format(n=10))
    assert used(one) == 9
    assert used(one, "tokens_per_month") == 9 * TOKENS
    assert ask(one, 2) == [200, 429]


def test_a_budget_that_is_new_has_seen_the_use_before_it(one):
    limited(one, "concurrent_requests = 10")
    assert ask(one, 5) == [200] * 5
    limited(one, "requests_per_month = 6\ntokens_per_day = 1000\ninput_tokens_per_day = 1000")
    assert used(one, "requests_per_month") == 5
    assert used(one, "tokens_per_day") == 5 * TOKENS
    assert used(one, "input_tokens_per_day") == 5 * 100
    assert ask(one, 2) == [200, 429]


def test_an_organization_that_leaves_and_returns_is_not_refilled(one):
    assert ask(one, 10) == [200] * 10
    for _ in range(2):
        (one.folder / "orgs.d" / "acme.toml").unlink()
        reloaded(one)
        with H1(one.connect()) as connection:
            assert connection.ask(body=chat()).headers["portcullis-reason"] == "organization_unknown"
        limited(one, BUDGET.format(n=10))
        assert used(one) == 10
        assert ask(one, 2) == [429, 429]


def test_a_moved_file_another_order_and_another_name_refill_nothing(one):
    assert ask(one, 10) == [200] * 10
    (one.folder / "orgs.d" / "acme.toml").unlink()
    text = LIMITED.format(limits="tokens_per_month = 100_000\nrequests_per_day = 10")
    one.write_org("zzz", text.replace('name = "Acme CERT"', 'name = "Other"'))
    reloaded(one)
    assert (used(one), ask(one)) == (10, [429])


@pytest.mark.parametrize("place", ["Etc/GMT-14", "Etc/GMT+12", "Europe/Amsterdam", "UTC"])
def test_another_time_zone_opens_no_window_early(one, place):
    assert ask(one, 10) == [200] * 10
    before = standing(one)["resets_at"]
    one.write_config(quota=f'timezone = "{place}"\nextend = 16')
    reloaded(one)
    assert (used(one), standing(one)["resets_at"], ask(one)) == (10, before, [429])
    assert one.gateway.end() == 0
    one.start()
    assert (used(one), standing(one)["resets_at"], ask(one)) == (10, before, [429])


@pytest.mark.parametrize("table", ["purpose.research", "model.some", "purpose.research.model.some"])
def test_a_budget_of_a_purpose_or_a_model_that_is_new_has_seen_the_use_before_it(stage, table):
    one = stage(quota=f'timezone = "{midday()}"', more='[model.some]\nmatch = ["mock-*"]\n', orgs={"acme": Stage.ACME})
    assert ask(one, 5) == [200] * 5
    one.write_org("acme", Stage.ACME + f"[{table}.limits]\nrequests_per_day = 6\ntokens_per_month = 100_000\n")
    reloaded(one)
    assert used(one) == 5
    assert used(one, "tokens_per_month") == 5 * TOKENS
    assert ask(one, 2) == [200, 429]


def test_a_child_that_leaves_its_parent_and_returns_refills_neither(one):
    one.write_org("nation", NATION.format(n=5))
    child = 'parent = "nation"\n' + TEN
    for text, statuses in ((child, [200] * 5 + [429]), (TEN, [200]), (child, [429]), (TEN, [200] * 4 + [429])):
        one.write_org("acme", text)
        reloaded(one)
        assert ask(one, len(statuses)) == statuses


def test_a_limit_that_leaves_the_shadow_has_counted(one):
    limited(one, "requests_per_day = { limit = 3, shadow = true }")
    assert ask(one, 4) == [200] * 4
    limited(one, "requests_per_day = 3")
    assert ask(one) == [429]


def test_a_parent_that_is_put_in_later_counts_from_then_on_and_its_child_goes_on(one):
    assert ask(one, 6) == [200] * 6
    one.write_org("nation", NATION.format(n=2))
    one.write_org("acme", 'parent = "nation"\n' + TEN)
    reloaded(one)
    assert used(one) == 6
    assert ask(one, 3) == [200, 200, 429]
    assert used(one) == 8


def test_a_running_stream_is_settled_against_the_edited_limit(one):
    limited(one, "tokens_per_day = 100_000")
    stream = Streaming(one, "mock-tokens-60.tps-200")
    limited(one, "tokens_per_day = 50")
    assert one.limit("acme", "tokens_per_day")["remaining"] == 0
    assert stream.wait() == "complete", "what was reserved may be used"
    counted = used(one, "tokens_per_day")
    closed = eventually(lambda: [line for line in one.audit() if line["kind"] == "closed"], what="a closing line")[-1]
    assert closed["usage"]["output"] == 60
    assert counted == closed["usage"]["input"] + 60


def test_a_stream_that_is_cut_as_its_organization_leaves_is_charged_to_it(one):
    limited(one, "tokens_per_day = 100_000")
    stream = Streaming(one, "mock-tokens-100000.tps-500")
    eventually(lambda: len(stream.pieces) > 40, what="a flowing stream")
    (one.folder / "orgs.d" / "acme.toml").unlink()
    reloaded(one)
    assert stream.wait() == "cut"
    limited(one, "tokens_per_day = 100_000")
    assert 40 <= stream.text.count('"content"') <= used(one, "tokens_per_day") < 10_000


def test_a_running_stream_grows_under_the_limit_that_is_in_force(one):
    limited(one, "tokens_per_day = 100_000")
    with H1(one.connect()) as connection:
        connection.send(connection.head(body=chat("mock-tokens-100000.tps-500", stream=True)))
        assert connection.read_head()[0] == 200
        limited(one, "tokens_per_day = 2_000")
        while connection.read_chunk() is not None:
            pass
    assert used(one, "tokens_per_day") <= 2_000 + 16


def test_a_storm_of_reloads_loses_no_count(one):
    """Two limits are put in force in turn while requests run; the counts at the end are those of the requests."""
    asked, done = [], threading.Event()

    def traffic():
        with H1(one.connect()) as connection:
            while not done.is_set():
                asked.append(connection.ask(body=chat(messages=HUNDRED, max_tokens=16)).status)

    threads = [threading.Thread(target=traffic) for _ in range(2)]
    for thread in threads:
        thread.start()
    # However many requests there is time for between two of them.
    ample = BUDGET.replace("100_000", "100_000_000")
    for n in range(30):
        limited(one, ample.format(n=(100_000, 200_000)[n % 2]))
    done.set()
    for thread in threads:
        thread.join()
    assert set(asked) == {200}
    assert used(one) == len(asked) == one.ledger()["totals"]["requests"]
    assert used(one, "tokens_per_month") == len(asked) * TOKENS


def test_a_reload_that_is_refused_changes_nothing(one):
    assert ask(one, 6) == [200] * 6
    one.write_org("acme", LIMITED.format(limits="requests_per_day = -1"))
    assert fetch(one.admin + "/-/reload", method="POST").status == 422
    now = standing(one)
    assert (now["limit"], now["used"]) == (10, 6)
    assert ask(one, 5) == [200] * 4 + [429]


# Other names.

GROUP = '[model.{name}]\nmatch = ["mock-*", "gpt-*"]\n'
OF_GROUP = """
[model.{name}.limits]
requests_per_day = 10
requests_per_hour = {{ limit = 1, burst = 9 }}
tokens_per_month = 100_000
[purpose.research.model.{name}.limits]
requests_per_month = 1000
"""


def of_group(name):
    granted = Stage.ACME.replace('"mock-*", "gpt-*", "claude-*"', f'"{name}"')
    return granted + OF_GROUP.format(name=name)


def said(stage):
    """What the last reload that changed anything says; the file watch may have been faster than who asked for one."""
    reloaded(stage)
    return next(past["text"] for past in stage.status()["reloads"] if past["result"] == "applied")


def called(stage, name):
    """Puts the same configuration in force with this name of the group; what the reload says."""
    stage.write_config(more=GROUP.format(name=name))
    stage.write_org("acme", of_group(name))
    return said(stage)


@pytest.fixture
def grouped(stage):
    more = GROUP.format(name="first")
    return stage(quota=f'timezone = "{midday()}"\nextend = 16', orgs={"acme": of_group("first")}, more=more)


def test_a_group_under_another_name_goes_on_with_its_use(grouped):
    assert ask(grouped, 6) == [200] * 6
    wanted = {"requests_per_day": 6, "requests_per_hour": 6, "tokens_per_month": 6 * TOKENS, "requests_per_month": 6}
    for before, name in itertools.pairwise(("first", "second", "first", "third")):
        eventually(lambda: all_used(grouped) == wanted, what=f"settlement before {name}")
        assert called(grouped, name) == f"model group {before}: renamed to {name}\n", "one change, which loosens nothing"
        assert all_used(grouped) == wanted
        (acme,) = grouped.status()["organizations"]
        assert {limit["scope"]["model"] for limit in acme["limits"]} == {name}
    assert ask(grouped, 4) == [200] * 3 + [429], "the burst of the hour"


def test_another_name_survives_a_stop_and_a_kill(grouped):
    assert ask(grouped, 6) == [200] * 6
    called(grouped, "second")
    grouped.gateway.kill()
    grouped.start()
    assert all(used >= 6 for used in all_used(grouped).values()), all_used(grouped)
    called(grouped, "third")
    before = all_used(grouped)
    assert grouped.gateway.end() == 0
    grouped.start()
    assert all_used(grouped) == before
    left = 10 - before["requests_per_day"]
    assert left <= 4 and 429 in ask(grouped, left + 1)


def test_a_stream_under_way_when_its_group_gets_another_name_is_held_to_the_same_budget(grouped):
    limits = "[model.{name}.limits]\ntokens_per_day = 2_000\n"
    granted = Stage.ACME.replace('"mock-*", "gpt-*", "claude-*"', '"{name}"')

    def call(name):
        grouped.write_config(more=GROUP.format(name=name))
        grouped.write_org("acme", granted.replace("{name}", name) + limits.format(name=name))
        reloaded(grouped)

    call("first")
    with H1(grouped.connect()) as connection:
        connection.send(connection.head(body=chat("mock-tokens-100000.tps-400", stream=True)))
        assert connection.read_head()[0] == 200
        pieces = [connection.read_chunk() for _ in range(20)]
        call("second")
        while pieces[-1] not in (b"", None) and len(pieces) < 5_000:
            pieces.append(connection.read_chunk())
    assert pieces[-1] is None, "cut, and not at its end"
    assert 1_900 <= used(grouped, "tokens_per_day") <= 2_000 + 16


def test_a_group_with_other_models_is_another_group(grouped):
    assert ask(grouped, 6) == [200] * 6
    grouped.write_config(more=GROUP.format(name="second").replace('"gpt-*"', '"gpt-4*"'))
    grouped.write_org("acme", of_group("second"))
    told = said(grouped)
    assert "renamed" not in told and "model group first: removed" in told
    assert all_used(grouped)["requests_per_day"] == 0
    # What it used waits under its own name.
    called(grouped, "first")
    assert all_used(grouped)["requests_per_day"] == 6


def test_groups_that_swap_their_names_keep_what_each_of_them_used(stage):
    def more(first, second):
        return f'[model.{first}]\nmatch = ["mock-1*"]\n[model.{second}]\nmatch = ["mock-2*"]\n'

    def org(first, second):
        limits = "[model.{}.limits]\nrequests_per_day = {}\n"
        granted = Stage.ACME.replace('"mock-*", "gpt-*", "claude-*"', '"one", "other"')
        return granted + limits.format(first, 3) + limits.format(second, 5)

    def statuses(model, number):
        with H1(stage.connect()) as connection:
            return [connection.ask(body=chat(model)).status for _ in range(number)]

    stage = stage(quota=f'timezone = "{midday()}"', orgs={"acme": org("one", "other")}, more=more("one", "other"))
    assert statuses("mock-1", 4) == [200] * 3 + [429]
    assert statuses("mock-2", 1) == [200]
    # Between the two files nothing is right: the file watch puts no half of the change in force.
    stage.write_org("acme", "to be written")
    stage.write_config(more=more("other", "one"))
    stage.write_org("acme", org("other", "one"))
    assert said(stage) == "model group one: renamed to other\nmodel group other: renamed to one\n"
    assert statuses("mock-1", 1) == [429]
    stage.gateway.kill()
    stage.start()
    assert statuses("mock-1", 1) == [429]
    assert statuses("mock-2", 4)[:3] == [200] * 3


def test_a_purpose_under_another_name_goes_on_with_its_use(grouped):
    limits = "[purpose.research.limits]\nrequests_per_day = 10\n"
    grouped.write_org("acme", Stage.ACME + limits)
    reloaded(grouped)
    assert ask(grouped, 6) == [200] * 6
    main = grouped.folder / "portcullis.toml"
    main.write_text(main.read_text().replace("research", "studies"))
    grouped.write_org("acme", (Stage.ACME + limits).replace("research", "studies"))
    assert said(grouped) == "purpose research: renamed to studies\n"
    assert ask(grouped, 5) == [400] * 5, "the old name is unknown"
    with H1(grouped.connect()) as connection:
        statuses = [connection.ask(body=chat(), portcullis_purpose="studies").status for _ in range(5)]
    assert statuses == [200] * 4 + [429]


# Restarts.


def test_a_restart_is_exact(one):
    hours = "requests_per_hour = { limit = 1, burst = 9 }\noutput_tokens_per_hour = { limit = 1, burst = 100_000 }"
    limited(one, BUDGET.format(n=10) + "\n" + hours)
    assert ask(one, 6) == [200] * 6
    before = all_used(one)
    for _ in range(2):
        assert one.gateway.end() == 0
        one.start()
        assert all_used(one) == before
    assert before == {
        "requests_per_day": 6, "tokens_per_month": 6 * TOKENS, "requests_per_hour": 6, "output_tokens_per_hour": 6 * 16,
    }  # fmt: skip
    assert ask(one, 4) == [200] * 3 + [429], "the burst of the hour"


def test_what_a_restart_finds_in_use_by_nobody_it_keeps_for_who_returns(one):
    assert ask(one, 10) == [200] * 10
    assert one.gateway.end() == 0
    (one.folder / "orgs.d" / "acme.toml").rename(one.folder / "acme.kept")
    one.write_org("globex", one.GLOBEX)
    one.start()
    assert one.gateway.end() == 0
    (one.folder / "acme.kept").rename(one.folder / "orgs.d" / "acme.toml")
    one.start()
    assert (used(one), ask(one)) == (10, [429])


def test_a_stop_charges_what_is_under_way(one):
    """SIGTERM twice ends the streams; what they had used by then stands after the restart."""
    limited(one, "tokens_per_day = 100_000")
    stream = Streaming(one, "mock-tokens-100000.tps-200")
    eventually(lambda: len(stream.pieces) > 20, what="a flowing stream")
    one.gateway.signal(15)
    one.gateway.printed(r"(?i)(drain|stopping)")
    one.gateway.signal(15)
    assert one.gateway.wait() == 0
    stream.wait()
    (sent,) = one.ledger()["requests"]
    one.start()
    assert used(one, "tokens_per_day") >= sent["input_tokens"] + sent["output_tokens"]


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_kill_never_counts_too_little_and_too_much_by_a_lease_at_most(one, rounds):
    """A lease is twice what is reserved between two looks at the marks: here, at most what a round reserves."""
    hour = "requests_per_hour = { limit = 1, burst = 5_000 }"
    limited(one, "requests_per_day = 10_000\ntokens_per_day = 10_000_000\n" + hour)
    for number in range(1, rounds + 1):
        ask(one, 20)
        one.gateway.kill()
        one.start()
        total = one.ledger()["totals"]
        reserved = max(sum(line["reserved"].values()) for line in one.audit() if line["kind"] == "accepted")
        tokens = total["input_tokens"] + total["output_tokens"]
        for identifier, truly, each in (
            ("requests_per_day", total["requests"], 1),
            ("requests_per_hour", total["requests"], 1),
            ("tokens_per_day", tokens, reserved),
        ):
            assert truly <= used(one, identifier) <= truly + number * 2 * 20 * each, identifier


def test_a_budget_that_was_used_up_is_used_up_after_a_kill(one):
    assert ask(one, 11) == [200] * 10 + [429]
    one.gateway.kill()
    one.start()
    now = standing(one)
    assert (now["used"] >= 10, now["remaining"]) == (True, 0)
    assert ask(one) == [429]


def test_a_stream_under_way_at_a_kill_is_charged_in_full(one):
    limited(one, "tokens_per_day = 100_000")
    with H1(one.connect()) as connection:
        connection.send(connection.head(body=chat("mock-tokens-100000.tps-500", stream=True, max_tokens=5_000)))
        assert connection.read_head()[0] == 200
        one.gateway.kill()
    (sent,) = eventually(lambda: [sent for sent in one.ledger()["requests"] if sent["ended"]], what="the end upstream")
    one.start()
    assert 5_000 <= used(one, "tokens_per_day") <= 4 * 5_200
    assert sent["output_tokens"] < 5_000


def test_what_a_fast_stream_has_delivered_at_a_kill_is_counted(one):
    """It names no maximum and grows faster than marks are written; nothing may pass that no mark allows for."""
    limited(one, "tokens_per_day = 10_000_000")
    for least in (1100, 1200, 1300, 1500, 20_000):
        before, received = used(one, "tokens_per_day"), 0
        with H1(one.connect()) as connection:
            connection.send(connection.head(body=chat("mock-tokens-1000000", stream=True)))
            assert connection.read_head()[0] == 200
            while received < least:
                received += connection.read_chunk().count(b'"content":')
            one.gateway.kill()
            with contextlib.suppress(OSError):
                while piece := connection.read_chunk():
                    received += piece.count(b'"content":')
        one.start()
        assert used(one, "tokens_per_day") - before >= received


def test_an_answer_beyond_its_reservation_is_counted_at_a_kill(one):
    """In one piece, and three times what is reserved for who names no maximum: the client has it, so it must count."""
    limited(one, "tokens_per_day = 10_000_000")
    for _ in range(5):
        before = used(one, "tokens_per_day")
        with H1(one.connect()) as connection:
            answer = connection.ask(body=chat("mock-tokens-3000"))
            one.gateway.kill()
        one.start()
        assert used(one, "tokens_per_day") - before >= answer.json["usage"]["total_tokens"]


def test_marks_that_cannot_be_written_admit_nobody_until_they_can(stage):
    """The state's file may not be written beyond its first pages, as on a disk that fails."""
    org = LIMITED.format(limits="tokens_per_day = 100_000_000")
    one = stage(start=False, quota=f'timezone = "{midday()}"', orgs={"acme": org})
    one.start(preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    assert ask(one, 3) == [200] * 3
    pid, most = one.gateway.process.pid, resource.RLIM_INFINITY
    # More than any lease has room for, so that a mark must be written first.
    large = chat(max_tokens=1_000_000)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, most))
    with H1(one.connect()) as connection:
        for _ in range(2):
            refused = connection.ask(body=large)
            assert (refused.status, refused.headers["portcullis-reason"]) == (503, "quota_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert fetch(one.admin + "/readyz").status == 503
        assert one.metric("portcullis_quota_snapshot_errors_total") > 0
        assert one.ledger()["totals"]["requests"] == 3
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        eventually(lambda: connection.ask(body=large).status == 200, what="an answer")
    assert used(one, "tokens_per_day") >= 3 * TOKENS
    one.gateway.kill()
    one.start()
    assert used(one, "tokens_per_day") >= 3 * TOKENS + 16


def test_a_burst_that_was_used_up_is_used_up_after_a_kill(one):
    limited(one, "requests_per_hour = { limit = 1, burst = 5 }")
    assert ask(one, 6) == [200] * 5 + [429]
    for _ in range(2):
        one.gateway.kill()
        one.start()
        assert ask(one) == [429]
