"""Changing the configuration while everything runs: whole or nothing, however it is asked for; nothing is refilled."""

import base64
import contextlib
import mmap
import os
import pathlib
import re
import selectors
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import H1, Program, Stage, Streaming, chat, eventually, fetch, midday, replace

LIMITED = (
    Stage.ACME
    + """
[limits]
requests_per_minute = 600
requests_per_day = 5
"""
)


# How long files must have said what cuts somebody off before they are believed (src/reload/doubted.rs). A machine that
# stops us for longer between two writes makes of a moment what is meant.
SECOND_LOOK, SETTLED = 0.5, 1.0


def limited(per_minute=600, per_day=5):
    return LIMITED.replace("600", str(per_minute)).replace("day = 5", f"day = {per_day}")


def quietly(path, old, new):
    """Changes bytes of a file through a memory map: no file event tells of it, so the file watch cannot be first."""
    with pathlib.Path(path).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        assert len(old) == len(new) and content.find(old) >= 0
        at = content.find(old)
        content[at : at + len(new)] = new


def reload(one):
    return fetch(one.admin + "/-/reload", data={}, method="POST")


def per_minute(one):
    """The limit in force; None while there is none, or no organization."""
    limits = [limit for org in one.status()["organizations"] if org["id"] == "acme" for limit in org["limits"]]
    return next((limit["limit"] for limit in limits if limit["id"] == "requests_per_minute"), None)


def remembered(one):
    """The status, once what is in force is in its history too."""
    status = one.status()
    return status if [past["hash"] for past in status["reloads"][:1]] == [status["config_hash"]] else None


def reloads(one, **labels):
    return one.metric("portcullis_config_reloads_total", **labels)


def ask_by_signal(one):
    one.gateway.signal(signal.SIGHUP)
    return None


def ask_by_http(one):
    answer = reload(one)
    assert answer.status == 200, answer.body
    return answer.json["text"]


def ask_by_command(one):
    done = one.run("reload")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("ask", "trigger", "by"),
    [(ask_by_signal, "signal", "signal"), (ask_by_http, "http", "127.0.0.1"), (ask_by_command, "http", "127.0.0.1")],
)
def test_whoever_asks_gets_the_new_limits_and_is_on_record(stage, ask, trigger, by):
    one = stage(orgs={"acme": limited()})
    was, change = 600, None
    # The watch looks by itself now and then: what counts is a change that it did not come upon first.
    for wanted in range(900, 910):
        before = one.status()
        quietly(one.folder / "orgs.d/acme.toml", b"%d" % was, b"%d" % wanted)
        said, change, was = ask(one), f"acme: requests_per_minute {was} → {wanted}", wanted
        eventually(lambda wanted=wanted: per_minute(one) == wanted, what="the new limit")
        after = eventually(lambda: remembered(one), what="the history")
        latest = after["reloads"][0]
        if (latest["trigger"], latest["result"]) == (trigger, "applied"):
            break
    assert said is None or change in said
    assert after["generation"] == before["generation"] + 1
    assert after["config_hash"] != before["config_hash"]
    assert reloads(one, trigger=trigger, result="applied") == 1
    assert (latest["trigger"], latest["result"], latest["generation"]) == (trigger, "applied", after["generation"])
    assert latest["hash"] == after["config_hash"]
    assert change in latest["text"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", latest["at"])

    def records():
        return [line for line in one.audit() if line["kind"] == "reload" and line["generation"] == after["generation"]]

    told = eventually(records, what="the record")
    assert [(line["trigger"], line["result"]) for line in told] == [(trigger, "applied")]
    assert told[0]["by"].startswith(by)
    assert change in told[0]["text"]


def by_rename(path, text):
    replace(path, text)


def by_sed(path, text):
    wanted = re.search(r"requests_per_minute = (\d+)", text).group(1)
    subprocess.run(["sed", "-i", f"s/^requests_per_minute = .*/requests_per_minute = {wanted}/", path], check=True)


def by_overwriting(path, text):
    path.write_text(text)


def as_vim_does(path, text):
    """The old file becomes a backup, the new one is written under its name, the backup goes."""
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()


@pytest.mark.parametrize("edit", [by_rename, by_sed, by_overwriting, as_vim_does])
def test_an_edited_file_is_live_without_being_asked_for(stage, edit):
    one = stage(orgs={"acme": limited()})
    for wanted in (900, 700):
        edit(one.folder / "orgs.d/acme.toml", limited(wanted))
        # Sooner than the poll for file systems without events, which comes after five seconds.
        eventually(lambda wanted=wanted: per_minute(one) == wanted, within=4, what="the new limit")
    assert reloads(one, trigger="watch", result="applied") >= 2
    if edit in (by_rename, by_sed):  # The others can be seen half done.
        assert reloads(one, result="rejected") == 0


def test_an_editor_that_takes_the_file_away_for_a_moment_cuts_nobody(stage):
    """Editors and checkouts remove the name before they write it again; a busy machine makes that moment long."""
    one = stage(orgs={"acme": limited()})
    stream = Streaming(one)
    path, began = one.folder / "orgs.d/acme.toml", time.monotonic()
    path.rename(one.folder / "orgs.d/acme.toml~")
    time.sleep(0.15)  # The moment itself, not a wait for something.
    path.write_text(limited(900))
    moment = time.monotonic() - began
    eventually(lambda: per_minute(one) == 900, what="the new limit")
    assert stream.ended is None or moment >= SECOND_LOOK, stream.text[-300:]


def test_half_a_file_that_parses_lifts_no_limit(stage):
    """Whoever writes a file in two goes may stop between the identity and the limits."""
    one = stage(orgs={"acme": limited()})
    whole = limited(900)
    head, rest = whole.split("[limits]")
    path, began = one.folder / "orgs.d/acme.toml", time.monotonic()
    with path.open("w") as file:
        file.write(head)
        file.flush()
        time.sleep(0.15)  # The moment itself, not a wait for something: well within the second look.
        file.write("[limits]" + rest)
    moment = time.monotonic() - began
    eventually(lambda: per_minute(one) == 900, what="the new limit")
    history = fetch(one.admin + "/status.json").json["reloads"]
    assert moment >= SECOND_LOOK or not any("unlimited" in reload["text"] for reload in history), history


@pytest.mark.parametrize("between", ["", 'contact = "soc@acme.example"\n'], ids=["two", "three"])
def test_a_file_that_is_written_in_several_goes_cuts_nobody(stage, between):
    """Its first half is a whole one of a partner without certificates; so is what a second write adds to it."""
    one = stage()
    head, identity = Stage.ACME.split("[[identity]]")
    stream, written = Streaming(one), [time.monotonic()]
    with (one.folder / "orgs.d/acme.toml").open("w") as file:
        file.write(head)
        file.flush()
        time.sleep(0.7 if between else 0.4)  # The moment itself, not a wait for something.
        if between:
            before = time.monotonic()
            file.write(between)
            file.flush()
            # What stood there stood until now at the latest, and what stands there now from before at the earliest.
            written += [time.monotonic(), before]
        eventually(lambda: "acme: every identity would go" in one.gateway.log, what="the doubt")
        time.sleep(0.7 if between else 0)
        file.write("[[identity]]" + identity + "[limits]\nrequests_per_minute = 900\n")
    written.append(time.monotonic())
    still = max(until - since for since, until in zip(written[::2], written[1::2]))
    eventually(lambda: per_minute(one) == 900, what="the whole file")
    assert stream.ended is None or still >= SETTLED, stream.text[-300:]


def test_a_file_that_loses_its_identities_is_believed_in_the_end_and_at_once_when_asked(stage):
    one = stage()
    for asked in (False, True):
        stream, other = Streaming(one), Streaming(one, certificate="globex")
        began = time.monotonic()
        one.write_org("acme", Stage.ACME.split("[[identity]]")[0])
        if asked:
            said = reload(one).json["text"]
            # Later, the watch may have believed it already.
            late = time.monotonic() - began >= SETTLED
            assert late or "acme: identity partners spiffe://partners/acme removed" in said
        assert stream.wait() != "complete"
        assert '"organization_unknown"' in stream.text
        assert one.ask(body=chat()).headers["portcullis-reason"] == "organization_unknown"
        seen = len(other.pieces)
        eventually(lambda: len(other.pieces) > seen + 3, what="more of the other stream")  # noqa: B023
        one.write_org("acme", Stage.ACME)
        eventually(lambda: one.ask(body=chat()).status == 200, what="the identity that is back")


def test_a_swapped_mount_of_kubernetes_is_live_again_and_again(tmp_path, stage):
    """The configuration's directory holds only links through `..data`, which is replaced by a rename."""
    one = stage(orgs={"acme": limited()}, start=False)
    place = one.folder
    files = ["portcullis.toml", "server.pem", "server.key", "partners.pem", "partners.crl"]
    mount, partners = tmp_path / "mount", tmp_path / "mount-orgs"
    (place / "portcullis.toml").write_text(
        (place / "portcullis.toml")
        .read_text()
        .replace('orgs = "orgs.d"', f'orgs = "{partners}"')
        .replace('"state"', f'"{place}/state"')
        .replace('"audit"', f'"{place}/audit"')
    )

    def publish(directory, names, version, change):
        fresh = directory / f"..{version}"
        fresh.mkdir(parents=True)
        for name, source in names.items():
            (fresh / name).write_bytes(source.read_bytes())
            (fresh / name).chmod(0o600)
        change(fresh)
        link = directory / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(directory / "..data")
        for name in names:
            if not (directory / name).is_symlink():
                (directory / name).symlink_to(f"..data/{name}")
        for old in directory.glob("..[0-9]*"):
            if old.name != fresh.name:
                shutil.rmtree(old)

    main = {name: place / name for name in files}
    acme = {"acme.toml": place / "orgs.d/acme.toml"}
    publish(mount, main, 1, lambda _: None)
    publish(partners, acme, 1, lambda _: None)
    one.gateway = Program(place, "gateway", "run", "-c", mount / "portcullis.toml")
    one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
    one.admin = "http://" + one.gateway.printed(r"admin on (?:http://)?(127\.0\.0\.1:\d+)")
    eventually(lambda: fetch(one.admin + "/readyz").status == 200, what="readiness")
    for version, wanted in ((2, 900), (3, 700)):
        publish(partners, acme, version, lambda new, wanted=wanted: (new / "acme.toml").write_text(limited(wanted)))
        eventually(lambda wanted=wanted: per_minute(one) == wanted, within=4, what="the new limit")
    text = (place / "portcullis.toml").read_text()
    fresh = text.replace("[purpose.catalog]", '[purpose.catalog]\nfresh = "New"')
    publish(mount, main, 2, lambda new: (new / "portcullis.toml").write_text(fresh))
    eventually(lambda: "purpose fresh: added" in one.status()["reloads"][0]["text"], within=4, what="the new purpose")
    assert one.ask(body=chat()).status == 200


def test_a_whole_directory_that_is_swapped_behind_a_link_is_live(tmp_path, stage):
    """As releases are switched: no event comes from the new directory, so this is the poll's work, once."""
    one = stage(orgs={"acme": limited()}, start=False)
    link = tmp_path / "current"
    link.symlink_to(one.folder)
    one.gateway = Program(one.folder, "gateway", "run", "-c", link / "portcullis.toml")
    one.port = int(one.gateway.printed(r"partners on https://\S+:(\d+)"))
    one.admin = "http://" + one.gateway.printed(r"admin on (?:http://)?(127\.0\.0\.1:\d+)")
    assert per_minute(one) == 600
    fresh = tmp_path / "fresh"
    shutil.copytree(one.folder, fresh, ignore=shutil.ignore_patterns("state", "audit"))
    (fresh / "orgs.d/acme.toml").write_text(limited(900))
    (tmp_path / "next").symlink_to(fresh)
    (tmp_path / "next").replace(link)
    eventually(lambda: per_minute(one) == 900, within=8, what="the new release")
    began = time.monotonic()
    (fresh / "orgs.d/acme.toml").write_text(limited(700))
    eventually(lambda: per_minute(one) == 700, within=8, what="an edit in the new release")
    # Sooner than the next poll: the last was what found the new release.
    assert time.monotonic() - began < 4, "the watch still looks at the old directory"


@pytest.mark.parametrize("file", ["portcullis.toml", "server.key", "partners.crl"])
def test_a_file_that_vanishes_changes_nothing_and_is_forgiven_when_it_returns(stage, file):
    one = stage(orgs={"acme": limited()})
    generation = one.status()["generation"]
    (one.folder / file).rename(one.folder / "elsewhere")
    eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 0, what="the failed reload")
    assert file in one.status()["reloads"][0]["text"]
    assert one.ask(body=chat()).status == 200
    (one.folder / "elsewhere").rename(one.folder / file)
    eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 1, within=7, what="the all-clear")
    assert one.status()["generation"] == generation


def test_a_fifo_in_the_place_of_a_file_holds_up_nothing(stage):
    """Nobody writes into it: whoever waited for that would never read a revocation again."""
    one = stage()
    generation = one.status()["generation"]
    (one.folder / "partners.crl").unlink()
    os.mkfifo(one.folder / "partners.crl")
    refused = reload(one)
    assert refused.status == 422 and "no regular file" in refused.body.decode(), refused.body
    assert one.ask(body=chat()).status == 200 and one.status()["generation"] == generation
    one.partners.crl(revoked=[one.globex])
    eventually(lambda: one.status()["generation"] > generation, what="the list in the FIFO's place")
    assert one.run("check", "-c", "portcullis.toml").returncode == 0
    (one.folder / "orgs.d" / "odd.toml").symlink_to("/dev/zero")
    odd = reload(one)
    assert odd.status == 422 and "no regular file" in odd.body.decode()


def test_files_that_are_none_of_ours_are_not_looked_at(stage):
    one = stage(orgs={"acme": limited()})
    before = one.status()
    for name in (".acme.toml.swp", "acme.toml~", "acme.toml.bak", ".hidden.toml", "README"):
        (one.folder / "orgs.d" / name).write_text("no toml at all")
    (one.folder / "notes.txt").write_text("none of your business")
    assert reload(one).json["result"] == "unchanged"
    after = one.status()
    assert after["generation"] == before["generation"]
    assert reloads(one, trigger="watch") == 0


def test_a_partner_is_taken_in_by_adding_a_file_and_goes_with_it(stage):
    one = stage(orgs={"acme": limited()})
    assert one.ask(body=chat(), certificate="globex").headers["portcullis-reason"] == "organization_unknown"
    one.write_org("globex", Stage.GLOBEX)
    eventually(lambda: one.ask(body=chat(), certificate="globex").status == 200, what="the new partner")
    stream, other = Streaming(one, certificate="globex"), Streaming(one)
    (one.folder / "orgs.d/globex.toml").unlink()
    assert stream.wait() != "complete"
    assert '"organization_suspended"' in stream.text
    seen = len(other.pieces)
    eventually(lambda: len(other.pieces) > seen + 3, what="more of the other stream")


def test_a_rotated_upstream_key_is_used_from_the_next_request_on(stage):
    one = stage(start=False)
    key, path = one.folder / "key", one.folder / "portcullis.toml"
    key.touch(0o600)
    key.write_text("first-key")
    path.write_text(path.read_text().replace('"env:UPSTREAM_KEY"', '"file:key"'))
    one.start()

    def sent():
        assert one.ask(body=chat()).status == 200
        return dict(one.ledger()["requests"][-1]["headers"])["authorization"]

    assert sent() == "Bearer first-key"
    with key.open("w") as file:
        file.write("second-key")
    eventually(lambda: sent() == "Bearer second-key", what="the second key")
    assert "first-key" not in str(one.status()) + str(one.audit()) + one.gateway.log


def test_an_upstream_that_moves_is_followed_by_new_requests_alone(stage):
    one = stage()
    stream = Streaming(one)
    other = Program(one.folder, "other", "mock", "--listen", "127.0.0.1:0", "--ttft", "0ms", "--tps", "0")
    try:
        url = "http://" + other.printed(r"(127\.0\.0\.1:\d+)")
        path = one.folder / "portcullis.toml"
        replace(path, path.read_text().replace(one.mock_url, url))
        assert reload(one).status == 200
        assert one.ask(body=chat()).status == 200
        assert fetch(url + "/mock/ledger").json["totals"]["requests"] == 1
        seen = len(stream.pieces)
        eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream")
    finally:
        other.kill()


def test_a_hail_of_signals_is_no_harm(stage):
    one = stage(orgs={"acme": limited()})
    stream = Streaming(one)
    for number in range(200):
        if number % 20 == 0:
            one.write_org("acme", limited(1000 + number))
        one.gateway.signal(signal.SIGHUP)
    eventually(lambda: per_minute(one) == 1180, what="the last limit")
    assert one.ask(body=chat()).status == 200
    seen = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream")


def test_a_half_written_file_changes_nothing_until_it_is_whole(stage):
    one = stage(orgs={"acme": limited()})
    path, text = one.folder / "orgs.d/acme.toml", limited(900)
    with path.open("w") as file:
        file.write(text[: text.index("900") - 5])
        file.flush()
        eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 0, what="the refusal")
        assert per_minute(one) == 600
        assert one.ask(body=chat()).status == 200
        file.write(text[text.index("900") - 5 :])
    eventually(lambda: per_minute(one) == 900, what="the whole file")
    assert one.metric("portcullis_config_last_reload_successful") == 1


def test_a_mistake_beside_a_good_change_leaves_both_out(stage):
    one = stage(orgs={"acme": limited(), "globex": Stage.GLOBEX})
    generation = one.status()["generation"]
    one.write_org("globex", Stage.GLOBEX.replace('status = "active"', "") + 'colour = "red"\n')
    quietly(one.folder / "orgs.d/acme.toml", b"600", b"900")
    answer = reload(one)
    assert answer.status == 422
    assert per_minute(one) == 600
    assert one.status()["generation"] == generation
    assert one.metric("portcullis_config_generation") == generation


# Ten mistakes, each with where it stands and a word of what is told about it.
MAIN_MISTAKES = """\
handshake_timeout = "5 parsecs"
max_bdy = "1MiB"
"""
ACME_MISTAKES = """\
id = "acme"
name = "Acme CERT"
statsu = "active"
purposes = ["reserch", "incident"]
models = ["mock-*"]
[[identity]]
authority = "partnres"
uri = "spiffe://partners/acme"
[limits]
tokens_per_minut = 5
requests_per_second = "twenty"
"""
GLOBEX_MISTAKES = """\
id = "globex"
name = "Globex"
parent = "acmee"
purposes = ["research"]
models = ["unserved-model"]
valid = { from = "2026-13-01" }
[[identity]]
authority = "partners"
"""
MISTAKES = [
    ("portcullis.toml", '"5 parsecs"', None),
    ("portcullis.toml", "max_bdy", "max_body"),
    ("acme.toml", "statsu", "status"),
    ("acme.toml", "reserch", "research"),
    ("acme.toml", "partnres", "partners"),
    ("acme.toml", "tokens_per_minut ", "tokens_per_minute"),
    ("acme.toml", '"twenty"', None),
    ("globex.toml", "acmee", "acme"),
    ("globex.toml", "unserved-model", None),
    ("globex.toml", "2026-13-01", None),
]


def make_mistakes(one):
    one.write_config(listen=MAIN_MISTAKES)
    one.write_org("acme", ACME_MISTAKES)
    one.write_org("globex", GLOBEX_MISTAKES)


def test_ten_mistakes_are_told_at_once_with_their_places_and_change_nothing(stage):
    one = stage(orgs={"acme": limited(), "globex": Stage.GLOBEX})
    before = one.status()
    make_mistakes(one)
    answer = reload(one)
    assert answer.status == 422
    mistakes = answer.json["mistakes"]
    for file, word, meant in MISTAKES:
        path = next(path for path in [one.folder / file, one.folder / "orgs.d" / file] if path.exists())
        lines = path.read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if word in text)
        told = [one for one in mistakes if one["file"] and one["file"].endswith(file) and one["line"] == line]
        assert told, (file, word, line, mistakes)
        if meant:
            assert any(meant in f"{one['message']} {one['hint']}" for one in told), (word, told)
        column = lines[line - 1].index(word.strip()) + 1
        # The mistake is at the word or at the value that holds it.
        assert any(0 < one["column"] <= column for one in told), (word, told)
        assert re.search(rf"{re.escape(file)}:{line}:\d+", answer.json["text"]), word
    assert answer.json["text"].count("^") >= len(MISTAKES)
    after = one.status()
    for one_time in (before, after):
        for organization in one_time["organizations"]:
            for limit in organization["limits"]:
                del limit["resets_at"]  # of a limit that nobody used, it is now
    for same in ("generation", "config_hash", "organizations", "certificates"):
        assert after[same] == before[same]
    assert after["reloads"][0]["result"] == "rejected"
    assert "statsu" in after["reloads"][0]["text"]
    assert one.metric("portcullis_config_last_reload_successful") == 0
    assert one.metric("portcullis_config_generation") == before["generation"]
    assert reloads(one, result="rejected") >= 1
    record = eventually(lambda: [line for line in one.audit() if line["kind"] == "reload"], what="the record")[-1]
    assert record["result"] == "rejected" and record["generation"] == before["generation"]
    command = one.run("reload")
    assert command.returncode == 1
    assert "statsu" in command.stderr and not command.stdout
    assert one.ask(body=chat()).status == 200


CHANGES = [
    ('status = "active"', 'status = "suspended"', "acme: status active → suspended"),
    ("requests_per_minute = 600", "requests_per_minute = 900", "acme: requests_per_minute 600 → 900"),
    ("requests_per_minute = 600\n", "", "acme: requests_per_minute 600 → unlimited"),
    ("requests_per_day = 5", "requests_per_day = 5\ntokens_per_day = 70", "acme: tokens_per_day unlimited → 70"),
    ("requests_per_minute = 600", "requests_per_minute = { limit = 600, burst = 700 }", "600 → 600 (burst 700)"),
    ('"research", "incident"', '"research"', "acme: purpose incident removed"),
    ('"claude-*"', '"kept-back", "claude-*"', "acme: model kept-back added"),
    ("partners/acme", "partners/acme-two", "acme-two added"),
    ('id = "acme"', 'id = "acme2"', "acme2: added"),
]


def test_a_log_that_lies_among_partners_files_holds_up_nobody(stage):
    one = stage()
    lines, longest = 5_000, 0.0
    replace(one.folder / "orgs.d/x.toml", "".join(f'2026-11-26T12:24:55Z  WARN there {n} = "x"\n' for n in range(lines)))

    def rejected():
        nonlocal longest
        began = time.monotonic()
        count = reloads(one, trigger="watch", result="rejected")
        longest = max(longest, time.monotonic() - began)
        return count

    eventually(rejected, within=30, what="the rejection")
    assert longest < 2, "the admin side waited for the mistakes"
    assert one.run("revoke", "--org", "acme").returncode == 0
    record = eventually(lambda: [line for line in one.audit() if line["kind"] == "reload"], what="the record")[0]
    assert "more in ./orgs.d/x.toml" in record["text"]
    assert len(record["text"]) < 100_000, "the record is bounded"
    answer = reload(one).json
    assert (len(answer["mistakes"]), answer["result"]) == (100, "rejected")
    assert answer["number"] >= lines
    assert len(fetch(one.admin + "/status.json").body) < 1_000_000
    told = one.run("check", "-c", "portcullis.toml")
    assert (told.returncode, f"{answer['number']} mistakes" in told.stderr) == (1, True)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """One stage for many small changes: each test puts back what it changed."""
    one = Stage(
        tmp_path_factory.mktemp("lasting"), orgs={"acme": limited().replace("name =", 'status = "active"\nname =')}
    )
    yield one
    one.close()


@pytest.mark.parametrize(("old", "new", "told"), CHANGES)
def test_the_answer_says_in_words_what_changed(lasting, old, new, told):
    path = lasting.folder / "orgs.d/acme.toml"
    before = path.read_text()
    assert old in before
    try:
        # What the watch sees first is told in the history instead.
        seen = len(lasting.status()["reloads"])
        replace(path, before.replace(old, new))
        answer = reload(lasting)
        assert answer.status == 200, answer.body
        history = lasting.status()["reloads"]
        fresh = [past["text"] for past in history[: len(history) - seen]]
        assert any(told in text for text in fresh), fresh
    finally:
        replace(path, before)
        assert reload(lasting).status == 200


def test_nothing_to_change_is_said_as_such(lasting):
    assert reload(lasting).status == 200
    generation = lasting.status()["generation"]
    answer = reload(lasting)
    assert (answer.status, answer.json["result"], answer.json["changes"]) == (200, "unchanged", [])
    assert lasting.status()["generation"] == generation
    assert reloads(lasting, trigger="http", result="unchanged") >= 1


def rename_file(one):
    (one.folder / "orgs.d/acme.toml").rename(one.folder / "orgs.d/zz-acme.toml")


def reorder(one):
    text = limited()
    lines = text.splitlines()
    first, last = lines.index("requests_per_minute = 600"), lines.index("requests_per_day = 5")
    lines[first], lines[last] = lines[last], lines[first]
    one.write_org("acme", "\n".join(lines) + "\n# another order\n")


def remove_and_return(one):
    (one.folder / "orgs.d/acme.toml").unlink()
    assert reload(one).status == 200
    assert all(org["id"] != "acme" for org in one.status()["organizations"])
    one.write_org("acme", limited())


def lift_and_limit_again(one):
    one.write_org("acme", limited().replace("requests_per_day = 5\n", ""))
    assert reload(one).status == 200
    one.write_org("acme", limited())


def suspend_and_restore(one):
    one.write_org("acme", limited().replace("name =", 'status = "suspended"\nname ='))
    assert reload(one).status == 200
    one.write_org("acme", limited())


@pytest.mark.parametrize("change", [rename_file, reorder, remove_and_return, lift_and_limit_again, suspend_and_restore])
def test_no_reload_refills_what_was_used(stage, change):
    one = stage(orgs={"acme": limited(), "globex": Stage.GLOBEX}, quota=f'timezone = "{midday()}"')
    for _ in range(3):
        assert one.ask(body=chat()).status == 200
    change(one)
    assert reload(one).status == 200
    assert one.limit("acme", "requests_per_day")["used"] == 3
    assert [one.ask(body=chat()).status for _ in range(3)] == [200, 200, 429]


def test_a_lowered_budget_counts_what_was_used_before(stage):
    one = stage(orgs={"acme": limited()}, quota=f'timezone = "{midday()}"')
    for _ in range(3):
        assert one.ask(body=chat()).status == 200
    one.write_org("acme", limited(per_day=3))
    reload(one)
    refused = one.ask(body=chat())
    assert (refused.status, refused.headers["portcullis-reason"]) == (429, "insufficient_quota")
    one.write_org("acme", limited(per_day=4))
    reload(one)
    assert [one.ask(body=chat()).status for _ in range(2)] == [200, 429]


def open_streams(one, count, model):
    """That many streams on connections of their own, read by one selector: `{connection: bytes}` that fills itself. All
    are connected before any is asked for: no stream is over before the last begins, however long handshakes take."""
    context = one.tls()
    chosen = selectors.DefaultSelector()
    for _ in range(count):
        plain = socket.create_connection(("127.0.0.1", one.port), timeout=10)
        secured = context.wrap_socket(plain, server_hostname="localhost")
        chosen.register(secured, selectors.EVENT_READ, bytearray())
    request = H1(None).head("/v1/chat/completions", chat(model, stream=True))
    for key in chosen.get_map().values():
        key.fileobj.sendall(request)
        key.fileobj.setblocking(False)
    return chosen


def read_streams(chosen, until, within=30.0):
    """Reads what comes until `until(bodies)`; connections that ended are left out of the selector."""
    bodies = [key.data for key in chosen.get_map().values()]
    deadline = time.monotonic() + within
    while not until(bodies):
        assert time.monotonic() < deadline, f"{sum(map(len, bodies))} bytes came"
        for key, _ in chosen.select(0.1):
            while True:
                try:
                    got = key.fileobj.recv(65536)
                except (ssl.SSLWantReadError, BlockingIOError):
                    break
                if not got:
                    chosen.unregister(key.fileobj)
                    break
                key.data.extend(got)
    return bodies


def test_two_hundred_open_streams_lose_no_frame_when_the_configuration_changes(stage):
    one = stage(orgs={"acme": limited(per_day=1000)}, listen='head_timeout = "60s"')
    streams = open_streams(one, 200, "mock-tokens-120.tps-20")
    read_streams(streams, lambda bodies: all(b"data: " in body for body in bodies))
    assert one.metric("portcullis_streams_active", org="acme") == 200
    for wanted in (900, 500, 700):
        one.write_org("acme", limited(wanted, per_day=1000))
        assert reload(one).status == 200
    assert per_minute(one) == 700
    bodies = read_streams(streams, lambda bodies: all(body.endswith(b"0\r\n\r\n") for body in bodies), within=60)
    for key in list(streams.get_map().values()):
        key.fileobj.close()
    texts = {b"".join(re.findall(rb'"content":"([^"]*)"', body)) for body in bodies}
    assert len(texts) == 1, "streams of one request differ"
    assert {(body.count(b'"content":"'), body.count(b"data: [DONE]")) for body in bodies} == {
        (121, 1)
    }  # The first is the role's.
    eventually(lambda: one.metric("portcullis_streams_total", org="acme", end="complete") == 200, what="200 endings")


def test_a_storm_of_reloads_loses_no_request_and_no_count(stage):
    one = stage(orgs={"acme": limited(per_minute=500_000, per_day=400_000)}, quota=f'timezone = "{midday()}"')
    over, statuses = threading.Event(), []

    def load():
        try:
            with H1(one.connect()) as connection:
                while not over.is_set():
                    statuses.append(connection.ask(body=chat()).status)
        except (OSError, EOFError) as lost:
            statuses.append(repr(lost))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    answers, began = [], time.monotonic()
    for number in range(200):
        one.write_org("acme", limited(per_minute=500_000 + number % 7, per_day=400_000))
        answers.append(reload(one))
        time.sleep(max(0.0, began + (number + 1) / 100 - time.monotonic()))
    over.set()
    for thread in threads:
        thread.join(10)
    assert {answer.status for answer in answers} == {200}
    assert set(statuses) == {200}
    assert one.limit("acme", "requests_per_day")["used"] == len(statuses)
    assert one.metric("portcullis_requests_total", org="acme", code="200") == len(statuses)


def test_the_last_fifty_reloads_are_remembered_the_latest_first(stage):
    one = stage(orgs={"acme": limited()})
    for number in range(53):
        one.write_org("acme", limited(per_minute=1000 + number))
        assert reload(one).status == 200
    history = one.status()["reloads"]
    assert len(history) == 50
    # The last is the answer to the last question, unless the watch was quicker: then it is the one before.
    assert any("→ 1052" in past["text"] for past in history[:2])
    assert [past["at"] for past in history] == sorted((past["at"] for past in history), reverse=True)
    assert all(set(past) >= {"at", "trigger", "by", "result", "generation", "hash", "text"} for past in history)


def test_the_metrics_tell_the_truth_about_reloads(stage):
    one = stage(orgs={"acme": limited()})
    assert one.metric("portcullis_config_last_reload_successful") == 1
    started = one.metric("portcullis_config_last_reload_success_timestamp_seconds")
    assert abs(started - time.time()) < 60
    one.write_org("acme", "no toml")
    assert reload(one).status == 422
    assert one.metric("portcullis_config_last_reload_successful") == 0
    assert one.metric("portcullis_config_last_reload_success_timestamp_seconds") == started
    one.write_org("acme", limited(900))
    assert reload(one).status == 200
    status = one.status()
    assert one.metric("portcullis_config_last_reload_successful") == 1
    assert one.metric("portcullis_config_last_reload_success_timestamp_seconds") >= started
    assert one.metric("portcullis_config_generation") == status["generation"]
    assert one.metric("portcullis_config_info", hash=status["config_hash"]) == 1
    assert fetch(one.admin + "/metrics").body.decode().count("\nportcullis_config_info{") == 1


def test_the_labels_of_reloads_are_a_closed_set(lasting):
    text = fetch(lasting.admin + "/metrics").body.decode()
    series = re.findall(r'portcullis_config_reloads_total\{result="(\w+)",trigger="(\w+)"\}', text)
    assert series
    assert {result for result, _ in series} <= {"applied", "unchanged", "rejected"}
    assert {trigger for _, trigger in series} <= {"signal", "http", "watch"}


def test_files_put_back_as_they_were_are_a_success(stage):
    """The alarm of a failed reload must not ring on when the mistake is gone."""
    one = stage(orgs={"acme": limited()})
    path = one.folder / "orgs.d/acme.toml"
    before = path.read_text()
    replace(path, "no toml")
    eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 0, what="the refusal")
    replace(path, before)
    eventually(lambda: one.metric("portcullis_config_last_reload_successful") == 1, within=7, what="the all-clear")


def server_certificate(one):
    with one.connect() as connection:
        return connection.getpeercert(binary_form=True)


def test_a_new_server_certificate_is_shown_to_new_connections_and_old_ones_go_on(stage):
    one = stage()
    stream = Streaming(one)
    before, standing = server_certificate(one), H1(one.connect())
    assert standing.ask(body=chat()).status == 200
    one.servers.leaf("next", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
    replace(one.folder / "server.key", (one.folder / "next.key").read_bytes())
    (one.folder / "server.key").chmod(0o600)
    replace(one.folder / "server.pem", (one.folder / "next.pem").read_bytes())
    eventually(lambda: server_certificate(one) != before, what="the new certificate")
    assert standing.ask(body=chat()).status == 200
    seen = len(stream.pieces)
    eventually(lambda: len(stream.pieces) > seen + 3, what="more of the stream")
    assert stream.ended is None
    texts = [past["text"] for past in one.status()["reloads"] if past["result"] == "applied"]
    assert any("server certificate" in text for text in texts)


def in_memory(pid, texts):
    """Which of some texts stand anywhere in a process's memory."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(edge, 16) for edge in span.split("-"))
            if "r" not in rights or "[v" in line:
                continue
            # What was given back meanwhile cannot be read, and holds nothing.
            with contextlib.suppress(OSError):
                memory.seek(start)
                content = memory.read(end - start)
                found |= {name for name, text in texts.items() if text in content}
    return found


def test_of_a_private_key_no_text_stays_in_memory(stage):
    """In force it is the library's alone, in a form of its own; of one that was replaced nothing is left."""
    one = stage()

    def texts():
        lines = (one.folder / "server.key").read_bytes().splitlines()[1:-1]
        joined = b"".join(lines)
        return {"a line of the file": lines[0], "base64": joined, "DER": base64.b64decode(joined)}

    def gone(names):
        # The watch may be reading the file just now: what it has read goes within a moment, what stays stays.
        eventually(lambda: not in_memory(one.gateway.process.pid, names), within=2, what="a memory without the key")

    old = texts()
    try:
        gone(old)
    except PermissionError:
        pytest.skip("only root may look into the gateway's memory")
    one.servers.leaf("server", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
    assert reload(one).status == 200
    gone(old | {f"new {name}": text for name, text in texts().items()})


def test_a_key_that_does_not_fit_its_certificate_changes_nothing(stage):
    one = stage()
    before = server_certificate(one)
    one.servers.leaf("next", dns=["localhost"], use=ExtendedKeyUsageOID.SERVER_AUTH)
    replace(one.folder / "server.pem", (one.folder / "next.pem").read_bytes())
    answer = reload(one)
    assert answer.status == 422
    assert "portcullis.toml:" in answer.json["text"]
    assert server_certificate(one) == before


HOT = [
    ("listen", 'drain = { deadline = "7s" }'),
    ("audit", 'on_failure = "open"'),
    ("audit", 'keep = "30d"'),
    ("admin", 'token = "env:UPSTREAM_KEY"'),
    ("more", '[log]\nfilter = "debug"'),
]


@pytest.mark.parametrize(("place", "setting"), HOT)
def test_what_is_not_an_address_a_thread_count_or_a_path_needs_no_restart(stage, place, setting):
    one = stage()
    one.write_config(**{place: setting})
    one.gateway.signal(signal.SIGHUP)  # a POST could come too late for a token that the watch has put in force already
    told = lambda: [past["text"] for past in one.status()["reloads"] if past["result"] == "applied"]
    applied = eventually(told, what="the reload")
    assert not any("restart" in text for text in applied), applied


def test_the_log_filter_of_the_files_is_applied(stage):
    one = stage()
    one.write_config(more='[log]\nfilter = "off"')
    reload(one)
    eventually(lambda: any(past["result"] == "applied" for past in one.status()["reloads"]), what="the reload")
    size = one.gateway.log_file.stat().st_size
    one.write_org("acme", Stage.ACME.replace("Acme", "ACME") + "\n[limits]\nrequests_per_minute = 5\n")
    reload(one)
    assert one.gateway.log_file.stat().st_size == size


def test_a_rotated_admin_token_replaces_the_old_one(stage):
    one = stage(start=False, admin='token = "file:token"')
    token = one.folder / "token"

    def write(value):
        replace(token, value)
        token.chmod(0o600)

    def act(value):
        return fetch(
            one.admin + "/-/reload", data={}, method="POST", headers={"authorization": f"Bearer {value}"}
        ).status

    token.touch(0o600)
    token.write_text("first")
    one.start()
    assert (act("first"), act("second")) == (200, 401)
    write("second")
    eventually(lambda: act("second") == 200, what="the new token")
    assert act("first") == 401


@pytest.mark.parametrize(
    ("place", "setting"),
    [("listen", "max_streams = 7\n#"), ("quota", "extend = 99"), ("more", '[model.m]\nmatch = ["gpt-4"]')],
)
def test_hot_settings_make_a_new_generation(stage, place, setting):
    one = stage()
    generation = one.status()["generation"]
    one.write_config(**{place: setting})
    assert reload(one).status == 200
    assert one.status()["generation"] == generation + 1


def test_a_changed_address_is_named_as_needing_a_restart_and_the_rest_is_applied(stage):
    one = stage(orgs={"acme": limited()})
    text = (one.folder / "portcullis.toml").read_text()
    one.write_org("acme", limited(900))
    replace(one.folder / "portcullis.toml", text.replace("workers = 2", "workers = 3"))
    reload(one)
    eventually(lambda: per_minute(one) == 900, what="the new limit")
    said = "".join(past["text"] for past in one.status()["reloads"])
    assert "restart" in said
    assert one.ask(body=chat()).status == 200
