"""Every command as a person or a script meets it: exit codes, JSON, hints, and no secret on any screen."""

import base64
import datetime
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from stage import BINARY, KEY, ROOT, Authority, Program, Stage, Streaming, chat, eventually, fetch

ORGS = {
    "acme": Stage.ACME.replace("name =", 'status = "active"\nname =') + "[limits]\nrequests_per_minute = 600\n",
    "globex": Stage.GLOBEX + "[limits]\nrequests_per_minute = 60\n",
}
PRICED = '[model.frontier]\nmatch = ["gpt-5*"]\nprice_per_mtok = { input = "2.50", output = "15.00" }\n'


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One gateway for all commands that ask it something."""
    one = Stage(tmp_path_factory.mktemp("running"), orgs=ORGS, more=PRICED)
    yield one
    one.close()


@pytest.fixture
def place(running, tmp_path):
    """A copy of the running gateway's files, to be spoilt."""
    copy = tmp_path / "place"
    shutil.copytree(running.folder, copy, ignore=shutil.ignore_patterns("state", "audit", "*.log"))
    return Place(copy)


class Place:
    """A folder with a configuration that nobody runs."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments, **environment):
        return subprocess.run(
            [BINARY, *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"UPSTREAM_KEY": KEY} | environment,
        )

    def edit(self, file, old, new):
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def check(self, *arguments, **environment):
        return self.run("check", "-c", "portcullis.toml", *arguments, **environment)

    def warnings(self):
        done = self.check("--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["warnings"]

    def explain(self, *arguments, cert="acme.pem"):
        return self.run("explain", "-c", "portcullis.toml", "--cert", cert, *arguments)

    def line(self, file, word):
        lines = (self.folder / file).read_text().splitlines()
        return next(number for number, text in enumerate(lines, 1) if word in text)


# Usage.


@pytest.mark.parametrize(
    "arguments",
    [
        ["--colour"],
        ["frobnicate"],
        ["check", "--nope"],
        ["status", "--watch=maybe"],
        ["explain"],
        ["check", "--format", "xml"],
        ["certs", "issue"],
        ["revoke", "--org", "acme", "--purpose", "research"],
        ["completions", "klingon"],
        ["config"],
    ],
)
def test_what_is_not_understood_is_exit_2_on_stderr(place, arguments):
    done = place.run(*arguments)
    assert done.returncode == 2, done
    assert done.stderr and not done.stdout


def test_no_command_at_all_shows_the_help(place):
    done = place.run()
    assert done.returncode == 2 and "Usage:" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["check"],
        ["explain"],
        ["reload"],
        ["status"],
        ["drain"],
        ["revoke"],
        ["restore"],
        ["certs"],
        ["audit"],
        ["config"],
        ["mock"],
        ["completions"],
        ["version"],
        ["demo"],
    ],
)
def test_every_command_has_help_on_stdout(place, command):
    done = place.run(*command, "--help")
    assert done.returncode == 0 and "Usage: portcullis" in done.stdout and not done.stderr


def test_version_is_the_same_everywhere(place, running):
    plain = place.run("version")
    assert plain.returncode == 0
    number = re.fullmatch(r"portcullis (\d+\.\d+\.\d+) .*\n", plain.stdout).group(1)
    assert json.loads(place.run("version", "--json").stdout)["version"] == number
    for command in ([], ["run"], ["certs", "issue"]):
        assert place.run(*command, "--version").stdout == f"portcullis {number}\n"
    assert running.status()["version"] == number


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -F"), ("zsh", "#compdef portcullis"), ("fish", "complete -c portcullis")]
)
def test_completions_know_the_commands(place, shell, sign):
    done = place.run("completions", shell)
    assert done.returncode == 0 and sign in done.stdout and "explain" in done.stdout
    if shutil.which(shell):
        parsed = subprocess.run([shell, "-n"], input=done.stdout, text=True, capture_output=True, timeout=20)
        assert parsed.returncode == 0, parsed.stderr


def every_command(place, *above):
    """The words of every command, and what its help says."""
    text = place.run(*above, "--help").stdout
    below = re.search(r"^Commands:\n((?:  .*\n)+)", text, re.M)
    yield above, text
    for name in re.findall(r"^  (\w+)", below[1], re.M) if below else []:
        if name != "help":
            yield from every_command(place, *above, name)


def readable_page(page):
    """What `man` makes of it; its warnings are faults."""
    shown = subprocess.run(["man", "--warnings", "-l", "-P", "cat", page], capture_output=True, text=True, timeout=20,
                           env=os.environ | {"MANWIDTH": "400", "LC_ALL": "C.UTF-8"})  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout


def test_the_manual_holds_every_command_and_option(place):
    done = place.run("man")
    assert done.returncode == 0 and done.stdout.lstrip().startswith((".ie", ".TH")), done.stdout[:80]
    if not shutil.which("man"):
        pytest.skip("man is not here")
    page = place.folder / "portcullis.1"
    page.write_text(done.stdout)
    shown = readable_page(page)
    commands = list(every_command(place))
    assert len(commands) > 25
    for words, text in commands[1:]:
        heading = " ".join(["portcullis", *words]).upper()
        assert f"\n{heading}\n" in shown, heading
        own = shown.split(f"\n{heading}\n")[1].split("\nPORTCULLIS ")[0]
        missing = [option for option in re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.M) if option not in own]
        assert not missing, (heading, missing)
    for heading in ("ENVIRONMENT", "FILES", "EXIT STATUS"):
        assert f"\n{heading}\n" in shown
    assert "portcullis-run(1)" not in shown, "a page that is not there"


def test_the_manual_can_be_a_page_for_each_command(place):
    assert place.run("man", "--dir", "pages").returncode == 0
    pages = {page.name for page in (place.folder / "pages").iterdir()}
    assert {"portcullis.1", "portcullis-run.1", "portcullis-certs-issue.1"} <= pages
    root = (place.folder / "pages/portcullis.1").read_text()
    named = {name.replace("\\-", "-") + ".1" for name in re.findall(r"(portcullis\\?-[\w\\-]+)\(1\)", root)}
    assert named and named <= pages
    if shutil.which("man"):
        for page in pages:
            readable_page(place.folder / "pages" / page)


MANY_LINES = [
    ["config", "default"],
    ["config", "schema"],
    ["man"],
    ["completions", "bash"],
    ["check", "-c", "portcullis.toml"],
    ["config", "show", "-c", "portcullis.toml"],
    ["check", "--json", "-c", "portcullis.toml"],
    ["status"],
    ["status", "--json"],
    ["certs", "show", "acme.pem"],
    ["version"],
    ["revoke", "--list"],
    ["--help"],
]


@pytest.mark.parametrize("arguments", MANY_LINES)
def test_a_reader_who_leaves_early_is_no_panic(place, running, arguments):
    """`| head -1`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [BINARY, *arguments],
        cwd=place.folder,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        env=os.environ | {"UPSTREAM_KEY": KEY, "PORTCULLIS_ADMIN": running.admin},
    )
    os.close(writing)
    assert "panicked" not in done.stderr, done.stderr
    assert done.returncode in (0, -13), done


def test_errors_go_to_stderr_even_when_nobody_reads_them(place):
    reading, writing = os.pipe()
    os.close(reading)
    place.edit("orgs.d/acme.toml", "acme", "Not an id!")
    done = subprocess.run(
        [BINARY, "check", "-c", "portcullis.toml"],
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=writing,
        timeout=20,
        env=os.environ | {"UPSTREAM_KEY": KEY},
    )
    os.close(writing)
    assert done.returncode in (1, -13) and not done.stdout


# check


def test_a_right_configuration_is_said_to_be_right(place):
    done = place.check()
    assert done.returncode == 0, done.stderr
    assert "valid: 2 organizations" in done.stdout
    assert re.search(r"^acme: any purpose, any model\n  requests_per_minute  600$", done.stdout, re.M), done.stdout
    assert "listen." not in done.stdout, "the settings are for `config show`"


def test_limits_of_every_ancestor_are_told(place):
    place.edit("orgs.d/globex.toml", 'id = "globex"', 'id = "globex"\nparent = "acme"')
    place.edit("orgs.d/globex.toml", "[limits]", '[purpose.research.limits]\ncost_per_day = "9.50"\n[limits]')
    place.edit("orgs.d/acme.toml", "[limits]", "[limits]\nconnections = 9")
    for file in ("acme", "globex"):
        text = (place.folder / f"orgs.d/{file}.toml").read_text()
        text = re.sub(r"models = \[.*\]", 'models = ["frontier"]', text)
        text = re.sub(r"purposes = \[.*\]", 'purposes = ["research", "incident"]', text)
        (place.folder / f"orgs.d/{file}.toml").write_text(text)
    done = place.check()
    assert done.returncode == 0, done.stderr
    block = done.stdout.split("globex: research × any model\n")[1].split("\n\n")[0]
    rows = [line.split() for line in block.splitlines()]
    assert rows == [
        ["requests_per_minute", "60"],
        ["research/cost_per_day", "9.50"],
        ["requests_per_minute", "600", "of", "acme"],
        ["connections", "9", "of", "acme"],
    ]
    assert "globex: incident × any model\n" in done.stdout
    told = json.loads(place.check("--json").stdout)["limits"]
    held = next(one for one in told if (one["organization"], one["purposes"]) == ("globex", ["research"]))
    assert held["models"] == ["frontier"]
    assert held["limits"][1]["scope"] == {"organization": "globex", "purpose": "research", "model": None}
    assert (held["limits"][1]["limit"], held["limits"][1]["window"]) == ("9.50", "day")
    assert held["limits"][2]["scope"]["organization"] == "acme" and held["limits"][2]["limit"] == 600
    explained = place.explain("--purpose", "research", "--model", "gpt-5", cert="globex.pem")
    assert explained.returncode == 0, explained.stdout
    assert "held against:\n" + block in explained.stdout
    asked = place.explain("--purpose", "research", "--model", "gpt-5", "--json", cert="globex.pem")
    assert json.loads(asked.stdout)["limits"] == held["limits"]


def test_one_organization_is_counted_as_one(place):
    (place.folder / "orgs.d/globex.toml").unlink()
    assert "valid: 1 organization, 3 purposes" in place.check().stdout


@pytest.mark.parametrize("form", [["--json"], ["--format", "json"]])
def test_json_of_a_right_configuration(place, form):
    done = place.check(*form)
    told = json.loads(done.stdout)
    assert (done.returncode, told["valid"], told["changes"]) == (0, True, None)
    assert told["rules"]["acme: requests_per_minute"] == "600"


def spoil(place):
    place.edit("orgs.d/acme.toml", "requests_per_minute", "requests_per_minit")
    place.edit("orgs.d/globex.toml", '"research"', '"reserch"')
    place.edit("portcullis.toml", "workers = 2", "wrokers = 2")
    return [
        ("orgs.d/acme.toml", "minit", "requests_per_minute"),
        ("orgs.d/globex.toml", "reserch", "research"),
        ("portcullis.toml", "wrokers", "workers"),
    ]


def test_all_mistakes_are_shown_with_carets_and_hints(place):
    mistakes = spoil(place)
    done = place.check()
    assert done.returncode == 1 and not done.stdout
    for file, word, meant in mistakes:
        assert re.search(rf"{re.escape(file)}:{place.line(file, word)}:\d+", done.stderr), done.stderr
        assert re.search(rf"did you mean .{meant}", done.stderr), done.stderr
    assert done.stderr.count("^^") >= 3
    assert "\x1b" not in done.stderr
    assert done.stderr.endswith("3 mistakes\n"), "nobody asked for a change"


def test_all_mistakes_are_in_the_json(place):
    mistakes = spoil(place)
    done = place.check("--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["valid"], len(told["mistakes"]), done.stderr) == (1, False, 3, "")
    for file, word, meant in mistakes:
        found = [one for one in told["mistakes"] if one["file"].endswith(file)]
        assert found[0]["line"] == place.line(file, word) and found[0]["column"] >= 1
        assert meant in found[0]["hint"]


def test_one_mistake_is_counted_as_one(place):
    place.edit("portcullis.toml", "workers = 2", "wrokers = 2")
    assert re.search(r"\b1 mistake\b", place.check().stderr)


def test_a_file_that_cannot_be_read_is_exit_2(place):
    for command in (["check"], ["config", "show"], ["run"]):
        done = place.run(*command, "-c", "nowhere.toml")
        assert (done.returncode, done.stdout) == (2, ""), (command, done)
        assert "nowhere.toml" in done.stderr


@pytest.mark.parametrize("command", [["check"], ["config", "show"], ["run"]])
def test_a_directory_is_no_configuration(place, command):
    done = place.run(*command, "-c", "orgs.d")
    assert (done.returncode, done.stdout) == (2, "") and "orgs.d" in done.stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\x00", b"[", b"orgs = 1", b"\xef\xbb\xbf# a mark"])
def test_what_is_no_configuration_is_told_and_harms_nothing(place, content):
    (place.folder / "portcullis.toml").write_bytes(content)
    done = place.check()
    assert done.returncode == 1 and "portcullis.toml" in done.stderr and "panicked" not in done.stderr
    told = json.loads(place.check("--json").stdout)
    assert told["valid"] is False and told["mistakes"]


def two_lines(place):
    (place.folder / "key").write_text("sk-one\nsk-two\n")
    (place.folder / "key").chmod(0o600)
    place.edit("portcullis.toml", '"env:UPSTREAM_KEY"', '"file:key"')
    return "api_key"


def no_signing_key(place):
    place.edit("portcullis.toml", 'directory = "audit"', 'directory = "audit"\nsigning_key = "file:server.key"')
    return "signing_key"


def no_name_of_a_log(place):
    place.edit("portcullis.toml", 'directory = "audit"', 'directory = "audit"\norigin = "a b"')
    return "origin"


def no_directory(place):
    place.edit("portcullis.toml", 'state = "state"', 'state = "server.pem"')
    return "state = "


@pytest.mark.parametrize("spoil", [two_lines, no_signing_key, no_name_of_a_log, no_directory])
def test_what_could_not_run_is_a_mistake_for_check_and_for_run_alike(place, spoil):
    at = f"portcullis.toml:{place.line('portcullis.toml', spoil(place))}:"
    checked, ran = place.check(), place.run("run", "-c", "portcullis.toml")
    assert (checked.returncode, ran.returncode) == (1, 1)
    assert at in checked.stderr and at in ran.stderr


def test_a_referenced_file_that_is_not_there_is_a_mistake_with_its_place(place):
    (place.folder / "partners.crl").unlink()
    done = place.check()
    assert done.returncode == 1
    assert f"portcullis.toml:{place.line('portcullis.toml', 'partners.crl')}:" in done.stderr
    assert "partners.crl" in done.stderr


def above_the_parent(place):
    place.edit("orgs.d/globex.toml", 'id = "globex"', 'id = "globex"\nparent = "acme"')
    place.edit("orgs.d/globex.toml", "requests_per_minute = 60", "requests_per_minute = 6000")
    return "parent acme"


def nobody_can_be_it(place):
    text = (place.folder / "orgs.d/globex.toml").read_text()
    (place.folder / "orgs.d/globex.toml").write_text(
        text.split("[[identity]]")[0] + "[limits]\nrequests_per_minute = 6\n"
    )
    return "globex has no identity"


def unlimited(place):
    place.edit("orgs.d/globex.toml", "[limits]\nrequests_per_minute = 60\n", "")
    return "globex has no limits"


def connections_alone(place):
    place.edit("orgs.d/globex.toml", "requests_per_minute = 60", "connections = 60")
    return "globex has no limits but that of its connections"


def of_another_purpose(place):
    place.edit("orgs.d/acme.toml", "[limits]", "[purpose.forbidden.limits]\nrequests_per_day = 5\n[limits]")
    return 'a limit of the purpose "forbidden", which acme is not granted'


def nobody_may(place):
    return "nobody may use the purpose forbidden"


def expires_soon(place, file, use, **names):
    authority = Authority(place.folder, "fresh")
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    authority.leaf(file, use=use, not_after=soon, **names)


def server_expires_soon(place):
    expires_soon(place, "server", ExtendedKeyUsageOID.SERVER_AUTH, dns=["localhost"])
    return "the server's certificate"


def not_for_that_name(place):
    place.edit("portcullis.toml", '["localhost"]', '["localhost", "gateway.example"]')
    return "gateway.example"


def admin_expires_soon(place):
    expires_soon(place, "admin", ExtendedKeyUsageOID.SERVER_AUTH, dns=["localhost"])
    tls = 'tls = { certificate = "admin.pem", private_key = "admin.key", client_authority = "partners.pem" }'
    place.edit("portcullis.toml", "[admin]", f"[admin]\n{tls}")
    return "the admin side's certificate expires in 2 days"


def the_next_list_is_late(place):
    authority = Authority(place.folder, "partners")
    now = datetime.datetime.now(datetime.timezone.utc)
    authority.crl(last=now - datetime.timedelta(days=5), upcoming=now + datetime.timedelta(days=2))
    return "the next CRL of CN=partners is due in 47 hours"


def the_grant_ends(place):
    until = datetime.date.today() + datetime.timedelta(days=9)
    place.edit("orgs.d/acme.toml", "purposes", f'valid = {{ until = "{until}" }}\npurposes')
    return "the grant of acme expires in"


ODD = [
    above_the_parent,
    nobody_can_be_it,
    unlimited,
    connections_alone,
    of_another_purpose,
    nobody_may,
    server_expires_soon,
    not_for_that_name,
    admin_expires_soon,
    the_next_list_is_late,
    the_grant_ends,
]


@pytest.mark.parametrize("oddity", ODD)
def test_what_is_legal_but_odd_is_a_warning(place, oddity):
    said = oddity(place)
    assert any(said in warning["message"] for warning in place.warnings()), place.warnings()
    assert all(warning["line"] for warning in place.warnings()), place.warnings()
    human = place.check()
    assert human.returncode == 0 and "warning" in human.stderr and said in human.stderr


def test_what_is_in_order_gives_no_warning(place):
    assert place.run("certs", "init").returncode == 0
    for old, new in (
        ("server.pem", "certs/server.pem"),
        ("server.key", "certs/server.key"),
        ("partners.pem", "certs/partners-ca.pem"),
        ("partners.crl", "certs/partners.crl"),
    ):
        place.edit("portcullis.toml", f'"{old}"', f'"{new}"')
    place.edit("portcullis.toml", 'forbidden = "Granted to nobody"\n', "")
    assert place.warnings() == []
    assert place.check().stderr == ""


def test_the_difference_to_what_runs(place, running):
    place.edit("orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minute = 900")
    place.edit("orgs.d/globex.toml", '"research", ', "")
    done = place.check("--against", running.admin)
    assert done.returncode == 0, done.stderr
    assert "acme: requests_per_minute 600 → 900" in done.stdout
    would_change = done.stdout.split("would change:")[1]
    assert "acme: requests_per_minute 600 → 900  (loosens)\n" in would_change
    assert "globex: purpose research removed\n" in would_change
    assert "acme: model" not in would_change
    told = json.loads(place.check("--json", "--against", running.admin).stdout)
    assert {"text": "acme: requests_per_minute 600 → 900", "loosens": True, "restart": False} in told["changes"]
    assert {"text": "globex: purpose research removed", "loosens": False, "restart": False} in told["changes"]


def test_a_new_organization_loosens_and_an_address_waits_for_a_restart(place, running):
    place.edit("orgs.d/globex.toml", 'id = "globex"', 'id = "initech"')
    place.edit("portcullis.toml", "workers = 2", "workers = 3")
    would_change = place.check("--against", running.admin).stdout.split("would change:")[1].splitlines()
    for line in ("globex: removed", "initech: added  (loosens)", "listen.workers 2 → 3  (needs a restart: not applied)"):
        assert f"  {line}" in would_change, would_change
    assert not any("initech: name" in line for line in would_change), would_change


def test_what_waits_for_a_restart_does_not_run(tmp_path):
    one = Stage(tmp_path, orgs=ORGS, more=PRICED)
    try:
        text = (one.folder / "portcullis.toml").read_text()
        (one.folder / "portcullis.toml").write_text(text.replace("workers = 2", 'workers = 3\nmax_body = "1KiB"'))
        path = one.folder / "orgs.d/acme.toml"
        path.write_text(path.read_text().replace("requests_per_minute = 600", "requests_per_minute = 900"))
        assert one.run("reload").returncode == 0
        # The file watch may have seen one file and not yet the other, or half of one.
        said = "\n".join(past["text"] for past in one.status()["reloads"])
        waits = "listen.workers 2 → 3  (needs a restart: not applied)"
        for line in ("acme: requests_per_minute 600 → 900  (loosens)", "listen.max_body 16MiB → 1KiB", waits):
            assert line in said.splitlines(), said
        checked = one.run("check", "-c", "portcullis.toml", "--against", one.admin)
        assert f"would change:\n  {waits}\n\nvalid" in checked.stdout, checked.stdout
        rules = fetch(one.admin + "/policy.json").json["rules"]
        assert (rules["listen.workers"], rules["listen.max_body"]) == ("2", "1KiB")
        # Whoever asks again, because the file watch was faster, is told of it again, and so is whoever looks.
        waits = "listen.workers 2 → 3"
        assert one.run("reload").stdout == f"nothing changed\nstill waiting for a restart: {waits}\n"
        assert one.status()["waiting_for_restart"] == [waits]
        assert f"\nWAITING FOR A RESTART: {waits}\n" in one.run("status").stdout
        assert f"Waiting for a restart</small> <strong>{waits}</strong>" in fetch(one.admin + "/").body.decode()
    finally:
        one.close()


def test_no_difference_to_what_runs(place, running):
    assert "nothing would change" in place.check("--against", running.admin).stdout
    assert json.loads(place.check("--json", "--against", running.admin).stdout)["changes"] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("globex", "[purpose.research.limits]\ntokens_per_day = 5\n"),
        ("acme", '[[identity]]\nauthority = "partners"\nuri = "spiffe://partners/acme-2"\n'),
    ],
)
def test_every_change_that_matters_shows_against_what_runs(place, running, old, new):
    path = place.folder / f"orgs.d/{old}.toml"
    path.write_text(path.read_text() + new)
    assert json.loads(place.check("--json", "--against", running.admin).stdout)["changes"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('output = "15.00"', 'output = "1.50"'),
        ('models = ["mock-*"', 'idle_timeout = "7s"\nmodels = ["mock-*"'),
        ("workers = 2", 'workers = 2\nmax_body = "1KiB"'),
        ('dialect = "openai"', 'dialect = "openai"\nhead_timeout = "1s"'),
        ("[quota]", '[quota]\nenforce = "post"'),
    ],
)
def test_changes_of_the_place_show_against_what_runs(place, running, old, new):
    place.edit("portcullis.toml", old, new)
    told = json.loads(place.check("--json", "--against", running.admin).stdout)
    assert told["changes"], "nothing would change, it says"


# Secrets and keys.

SECRET = "sk-live-0123456789abcdef"
LITERALS = [
    f'api_key = "{SECRET}"',
    f"api_key = '{SECRET}'",
    f'"api_key" = "{SECRET}"',
    f'api_key = """{SECRET}"""',
    f'api_key = """\n{SECRET}"""',
    f"api_key = '''\n{SECRET}\n'''",
    f'api_key = ["{SECRET}"]',
    f'api_key = [\n"{SECRET}"]',
    f'api_key = {{ value = "{SECRET}" }}',
    f'api_key = "{SECRET}',
    f'api_kye = "{SECRET}"',
    f'api-key = "{SECRET}"',
    f'apikey = "{SECRET}"',
    f'API_KEY = "{SECRET}"',
    f'api_key = "ENV:{SECRET}"',
    f'client_key = "{SECRET}"',
    f'token = "{SECRET}"',
    f'secret = "{SECRET}"',
    f'api_key.value = "{SECRET}"',
    f'api_key = "env:{SECRET}"',
    f'api_key =\n"{SECRET}"',
    f'api_key: "{SECRET}"',
    f'api_key = "file:-----BEGIN PRIVATE KEY-----\\n{SECRET}"',
    f'ca_file = """-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"""',
]


@pytest.mark.parametrize("literal", LITERALS)
def test_a_literal_secret_is_refused_and_never_shown(place, literal):
    place.edit("portcullis.toml", 'api_key = "env:UPSTREAM_KEY"', literal)
    for done in (
        place.check(),
        place.check("--json"),
        place.run("run", "-c", "portcullis.toml"),
        place.run("config", "show", "-c", "portcullis.toml"),
        place.explain("--purpose", "research"),
    ):
        assert done.returncode in (1, 2), done
        assert SECRET not in done.stdout + done.stderr
        assert SECRET[8:20] not in done.stdout + done.stderr


PASTED = [
    ('private_key = "server.key"', 'private_key = """-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----"""'),
    ('private_key = "server.key"', 'private_key = "-----BEGIN PRIVATE KEY-----\\n{}\\n-----END PRIVATE KEY-----"'),
    ('private_key = "server.key"', 'private_key = """-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----'),
    ("[audit]", '[audit]\nbody_hmac_secret = "{}"'),
    ('api_key = "env:UPSTREAM_KEY"', 'api_key "{}"'),
    ('api_key = "env:UPSTREAM_KEY"', "{}"),
    ("[admin]", '[admin]\ntls = {{ certificate = "a", client_authority = "b", private_key = "-----BEGIN-----{}" }}'),
]


@pytest.mark.parametrize("old, new", PASTED)
def test_a_secret_that_was_pasted_is_refused_and_never_shown(place, old, new):
    place.edit("portcullis.toml", old, new.format(SECRET))
    for command in (["check"], ["check", "--json"], ["run"], ["config", "show"]):
        done = place.run(*command, "-c", "portcullis.toml")
        assert done.returncode in (1, 2), done
        assert SECRET not in done.stdout + done.stderr


def test_a_key_for_a_place_of_checkpoints_is_not_shown(place):
    place.edit("portcullis.toml", "[audit]", f'[audit]\ncheckpoints = ["https://worm.example/x?sig={SECRET}"]')
    for command in (["check"], ["check", "--json"], ["config", "show"], ["config", "show", "--json"]):
        done = place.run(*command, "-c", "portcullis.toml")
        assert done.returncode == 0 and SECRET not in done.stdout + done.stderr, done


def test_a_literal_secret_is_told_what_belongs_there(place):
    place.edit("portcullis.toml", 'api_key = "env:UPSTREAM_KEY"', f'api_key = "{SECRET}"')
    done = place.check()
    assert "env:NAME" in done.stderr and "file:PATH" in done.stderr
    assert f"portcullis.toml:{place.line('portcullis.toml', SECRET)}:" in done.stderr


@pytest.mark.parametrize("new", ['api_key = "{}"', 'api_key "{}"', "{}"], ids=["literal", "no_sign", "alone"])
def test_a_secret_in_a_refused_reload_is_not_shown_either(running, new):
    text = (running.folder / "portcullis.toml").read_text()
    try:
        broken = text.replace('api_key = "env:UPSTREAM_KEY"', new.format(SECRET), 1)
        assert broken != text
        (running.folder / "portcullis.toml").write_text(broken)
        done = running.run("reload")
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr + running.gateway.log + json.dumps(running.status())
        assert SECRET not in json.dumps(running.audit())
    finally:
        (running.folder / "portcullis.toml").write_text(text)
        assert running.run("reload").returncode == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(place, mode):
    (place.folder / "key").write_text(KEY)
    (place.folder / "key").chmod(mode)
    place.edit("portcullis.toml", '"env:UPSTREAM_KEY"', '"file:key"')
    done = place.check()
    assert done.returncode == 1 and "chmod 600" in done.stderr and KEY not in done.stderr
    (place.folder / "key").chmod(0o600)
    assert place.check().returncode == 0


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_private_key_that_others_may_read_is_refused(place, mode):
    (place.folder / "server.key").chmod(mode)
    done = place.check()
    assert done.returncode == 1 and "server.key" in done.stderr
    assert f"portcullis.toml:{place.line('portcullis.toml', 'server.key')}:" in done.stderr


@pytest.mark.parametrize("value", ["", "\n"])
def test_an_empty_secret_is_refused(place, value):
    assert place.check(UPSTREAM_KEY=value).returncode == 1


# config


def test_the_default_configuration_is_right_as_it_is(place):
    """With the certificates that `certs init` makes and the shipped organizations."""
    (place.folder / "config").mkdir()
    default = place.run("config", "default")
    assert default.returncode == 0
    (place.folder / "config/portcullis.toml").write_text(default.stdout)
    assert place.run("certs", "init", "--server", "gateway.example").returncode == 0
    shutil.copytree(ROOT / "config/orgs.d", place.folder / "config/orgs.d")
    done = place.run("check", OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr


def test_the_schema_is_json_and_knows_every_table(place):
    done = place.run("config", "schema")
    schema = json.loads(done.stdout)
    assert done.returncode == 0 and schema["$schema"].startswith("http")
    assert {"orgs", "listen", "client_auth", "admin", "purpose", "upstream", "model", "quota", "audit", "log"} <= set(
        schema["properties"]
    )


def test_a_wrong_configuration_is_told_to_programs_as_check_tells_it(place):
    spoil(place)
    told = [json.loads(place.run(*command, "-c", "portcullis.toml", "--json").stdout)
            for command in (["check"], ["config", "show"], ["explain", "--cert", "acme.pem"])]  # fmt: skip
    assert told[0]["mistakes"] and told[0]["valid"] is False
    assert told[1] == told[0] and told[2] == told[0]


def test_show_gives_the_resolved_rules_and_no_secret(place):
    (place.folder / "key").write_text(SECRET)
    (place.folder / "key").chmod(0o600)
    place.edit("portcullis.toml", '"env:UPSTREAM_KEY"', '"file:key"')
    place.edit("portcullis.toml", "[admin]", '[admin]\ntoken = "file:key"')
    for form in ([], ["--json"]):
        done = place.run("config", "show", "-c", "portcullis.toml", *form)
        assert done.returncode == 0, done.stderr
        assert "requests_per_minute" in done.stdout
        assert SECRET not in done.stdout and KEY not in done.stdout
    assert json.loads(done.stdout)["rules"]["globex: requests_per_minute"] == "60"


@pytest.mark.parametrize("setting", ["handshake_timeout", "max_body", "enforce", "idle_timeout", "on_failure", "drain"])
def test_show_holds_the_defaults_that_nobody_wrote(place, setting):
    """The resolved form is more than what stands in the files."""
    assert setting in place.run("config", "show", "-c", "portcullis.toml").stdout


# explain


def test_an_allowed_request_is_explained_with_its_line(place):
    done = place.explain("--purpose", "research", "--model", "mock-1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("allowed")
    assert f"orgs.d/acme.toml:{place.line('orgs.d/acme.toml', 'models')}:" in done.stdout, done.stdout
    told = json.loads(place.explain("--json", "--purpose", "research", "--model", "mock-1").stdout)
    assert told["allowed"] is True and "orgs.d/acme.toml" in told["place"]


def revoked(place):
    authority = Authority(place.folder, "partners")
    certificate = authority.leaf("acme", uri="spiffe://partners/acme")
    authority.crl(revoked=[certificate])


def expired(place):
    authority = Authority(place.folder, "partners")
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    authority.leaf("acme", uri="spiffe://partners/acme", not_before=now - 3 * day, not_after=now - day)
    authority.crl()


def stranger(place):
    Authority(place.folder, "strangers").leaf("acme", uri="spiffe://partners/acme")


def org(old, new, file="orgs.d/acme.toml"):
    return lambda place: place.edit(file, old, new)


def suspended_parent(place):
    place.edit("orgs.d/acme.toml", 'id = "acme"', 'id = "acme"\nparent = "globex"')
    place.edit("orgs.d/globex.toml", 'id = "globex"', 'id = "globex"\nstatus = "suspended"')


def closed_parent(place):
    place.edit("orgs.d/acme.toml", 'id = "acme"', 'id = "acme"\nparent = "globex"')
    place.edit("orgs.d/globex.toml", "[limits]", "[limits]\nconnections = 0")


def untouched(_):
    pass


FULL = ["--purpose", "research", "--model", "mock-1"]
REFUSED = [
    # What is spoilt, the arguments, the code, and the line that decides.
    (stranger, FULL, "unknown_issuer", None),
    (expired, FULL, "expired", None),
    (revoked, FULL, "revoked", None),
    (org("partners/acme", "partners/other"), FULL, "organization_unknown", None),
    (org('status = "active"', 'status = "suspended"'), FULL, "organization_suspended", ("orgs.d/acme.toml", "status")),
    (suspended_parent, FULL, "organization_suspended", ("orgs.d/globex.toml", "status")),
    (
        org('id = "acme"', 'id = "acme"\nvalid = { until = "2020-01-01" }'),
        FULL,
        "grant_expired",
        ("orgs.d/acme.toml", "valid"),
    ),
    (untouched, ["--model", "mock-1"], "purpose_missing", None),
    (untouched, ["--purpose", "Re search", "--model", "mock-1"], "purpose_invalid", None),
    (untouched, ["--purpose", "gardening", "--model", "mock-1"], "purpose_unknown", None),
    (
        untouched,
        ["--purpose", "forbidden", "--model", "mock-1"],
        "purpose_not_permitted",
        ("orgs.d/acme.toml", "purposes"),
    ),
    (untouched, ["--purpose", "incident", "--model", "mock-1"], "case_missing", ("portcullis.toml", "incident")),
    (untouched, ["--purpose", "incident", "--case", "!!", "--model", "mock-1"], "case_invalid", None),
    (
        untouched,
        ["--purpose", "research", "--model", "kept-back"],
        "model_not_permitted",
        ("orgs.d/acme.toml", "models"),
    ),
    (untouched, [*FULL, "--path", "/v1/nothing"], "route_not_found", None),
    *[
        (org("requests_per_minute = 600", f"{limit} = 0"), FULL, code, ("orgs.d/acme.toml", limit))
        for limit, code in (
            ("requests_per_day", "quota_request_too_large"),
            ("tokens_per_minute", "quota_request_too_large"),
            ("concurrent_requests", "concurrency_limit_exceeded"),
            ("connections", "concurrency_limit_exceeded"),
        )
    ],
    (closed_parent, FULL, "concurrency_limit_exceeded", ("orgs.d/globex.toml", "connections")),
]


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "where"), REFUSED, ids=[f"{row[2]}-{at}" for at, row in enumerate(REFUSED)]
)
def test_a_refusal_is_explained_with_its_code_and_the_line_that_decides(place, spoil, arguments, code, where):
    spoil(place)
    done = place.explain(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("refused") and code in done.stdout
    told = json.loads(place.explain("--json", *arguments).stdout)
    assert (told["allowed"], told["code"]) == (False, code)
    if where:
        file, word = where
        wanted = f"{file}:{place.line(file, word)}:"
        assert wanted in done.stdout and wanted in told["place"]


@pytest.mark.parametrize(
    "limit",
    ["requests_per_minute", "requests_per_day", "output_tokens_per_day", "concurrent_requests", "connections", None],
)
def test_what_no_limit_ever_lets_through_is_refused_offline_as_the_gateway_refuses_it(place, running, limit):
    kept = (running.folder / "orgs.d/acme.toml").read_text()
    spoilt = kept.replace("requests_per_minute = 600", f"{limit} = 0" if limit else "requests_per_minute = 1")
    try:
        for folder in (running.folder, place.folder):
            (folder / "orgs.d/acme.toml").write_text(spoilt)
        assert running.run("reload").returncode == 0
        answer = running.ask(body=chat("mock-1"))
        told = json.loads(place.explain("--json", *FULL).stdout)
        assert (told["allowed"], answer.status == 200) == (limit is None, limit is None), told
        assert limit is None or told["code"] == answer.headers["portcullis-reason"]
    finally:
        (running.folder / "orgs.d/acme.toml").write_text(kept)
        assert running.run("reload").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        (FULL, 200),
        (["--purpose", "forbidden", "--model", "mock-1"], 403),
        (["--purpose", "research", "--model", "kept-back"], 403),
        (["--purpose", "gardening", "--model", "mock-1"], 400),
    ],
)
def test_explain_and_the_gateway_agree(place, running, arguments, outcome):
    answer = running.ask(body=chat(arguments[3]), portcullis_purpose=arguments[1])
    assert answer.status == outcome
    told = json.loads(place.explain("--json", *arguments).stdout)
    assert told["allowed"] is (outcome == 200)
    assert outcome == 200 or told["code"] == answer.headers["portcullis-reason"]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/messages?beta=true", "claude-1"),
        ("/v1/messages?x=1", "claude-1"),
        ("/v1/chat/completions?x=1", "mock-1"),
        ("/v1/chat/%63ompletions", "mock-1"),
        ("/v1//chat/completions", "mock-1"),
        ("/v1/../v1/chat/completions", "mock-1"),
        ("/v1/chat/completions/", "mock-1"),
        ("/v1/chat/completions", "mock-" + "x" * 300),
        ("/v1/chat/completions", ""),
        ("/v1/chat/completions", "a b"),
        ("/v1/models?limit=1000", None),
        ("/v1/models?foo=1", None),
        ("/portcullis/v1/usage?x=1", None),
    ],
)
def test_paths_and_models_are_read_by_the_gateways_own_rules(place, running, path, model):
    body = None if model is None else chat(model, max_tokens=5)
    answer = running.ask(path, body, anthropic_version="2023-06-01")
    named = [] if model is None else ["--purpose", "research", "--model", model]
    told = json.loads(place.explain("--json", "--path", path, *named).stdout)
    assert told["allowed"] is (answer.status == 200), told
    assert told["code"] == (answer.headers["portcullis-reason"] if answer.status != 200 else "ok")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (["--cert", "acme.pem"], "revoked"),
        (["--authority", "partners"], "revoked"),
        (["--org", "acme"], "organization_suspended"),
        (["--purpose", "research"], "purpose_not_permitted"),
        (["--model", "mock-1"], "model_not_permitted"),
    ],
)
def test_what_was_revoked_by_command_is_refused_offline_too(running, target, code):
    explain = lambda: running.run("explain", "-c", "portcullis.toml", "--cert", "acme.pem", "--json", *FULL)
    assert json.loads(explain().stdout)["allowed"]
    try:
        assert running.run("revoke", *target).returncode == 0
        told = json.loads(explain().stdout)
        assert (told["allowed"], told["code"], told["place"]) == (False, code, None), "no line of the files decides"
        assert target[0] == "--cert" or f"{target[1]} was revoked by command" in told["text"]
        remedy = re.search("`portcullis (restore [^`]+)`", told["text"]).group(1).split()
        assert target[0] == "--cert" or f" {target[1]} since " in running.run("status").stdout
        running.run(*remedy, check=True)
        assert json.loads(explain().stdout)["allowed"], "the command that it names ends it"
    finally:
        running.run("restore", *target)


def test_a_model_that_is_revoked_with_its_group_is_told_with_the_groups_name(running):
    try:
        running.run("revoke", "--model", "frontier", check=True)
        asked = ["--purpose", "research", "--model", "gpt-5"]
        told = running.run("explain", "-c", "portcullis.toml", "--cert", "acme.pem", *asked).stdout
        assert "the model frontier was revoked by command; `portcullis restore --model frontier`" in told
        assert "gpt-5 stays out: the model frontier was" in running.run("restore", "--model", "gpt-5").stdout
    finally:
        running.run("restore", "--model", "frontier")


def test_the_route_is_judged_before_the_organization(place):
    place.edit("orgs.d/acme.toml", "partners/acme", "partners/other")
    told = json.loads(place.explain("--json", *FULL, "--path", "/v1/nothing").stdout)
    assert told["code"] == "route_not_found"


def test_where_the_partner_connects_from_is_not_held_against_it_offline(place):
    place.edit(
        "orgs.d/acme.toml",
        'uri = "spiffe://partners/acme"',
        'uri = "spiffe://partners/acme"\nnetworks = ["192.0.2.0/24"]',
    )
    done = place.explain(*FULL)
    assert done.returncode == 0, done.stdout
    assert "192.0.2.0/24" in done.stdout, "it should say on what it depends"


def test_the_dialect_of_the_path_chooses_the_upstream(place):
    assert place.explain("--purpose", "research", "--model", "claude-1", "--path", "/v1/messages").returncode == 0
    assert place.explain("--purpose", "research", "--model", "claude-1").returncode == 1
    assert place.explain("--purpose", "incident", "--case", "INC-1", "--model", "gpt-4").returncode == 0


@pytest.mark.parametrize("path", ["/v1/models", "/portcullis/v1/whoami", "/portcullis/v1/usage"])
def test_free_routes_need_no_purpose(place, path):
    done = place.explain("--path", path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("cert", ["nowhere.pem", "server.key", "portcullis.toml"])
def test_a_certificate_that_cannot_be_read_is_exit_2(place, cert):
    done = place.explain(*FULL, cert=cert)
    assert done.returncode == 2 and cert in done.stderr and not done.stdout


# What asks a running gateway.


@pytest.fixture
def nowhere():
    """Bound and not listened on: a connection to it is refused, and nobody else gets it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["status", "--watch"],
        ["reload"],
        ["drain"],
        ["revoke", "--org", "acme"],
        ["revoke", "--list"],
        ["restore", "--org", "acme"],
    ],
)
def test_a_gateway_that_is_not_there_is_exit_2_and_named(place, nowhere, arguments):
    done = place.run(*arguments, "--admin", nowhere)
    assert done.returncode == 2 and not done.stdout
    assert nowhere in done.stderr and "refused" in done.stderr
    assert place.run(*arguments, PORTCULLIS_ADMIN=nowhere).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["reload"],
        ["drain"],
        ["drain", "--json"],
        ["revoke", "--org", "acme"],
        ["revoke", "--list"],
        ["restore", "--org", "acme"],
    ],
)
def test_what_answers_and_is_no_gateways_admin_side_is_exit_2_and_named(running, arguments):
    done = running.run(*arguments, "--admin", running.mock_url)
    assert done.returncode == 2 and not done.stdout
    assert running.mock_url in done.stderr and "admin side" in done.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://127.0.0.1", "unix:/nowhere/admin.sock", "http://", ""])
def test_an_odd_admin_address_is_exit_2_with_a_sentence(place, url):
    done = place.run("status", "--admin", url)
    assert done.returncode == 2 and len(done.stderr) > 20 and "panicked" not in done.stderr


def test_status_shows_who_there_is(running):
    stream = Streaming(running)
    try:
        done = running.run("status")
        assert done.returncode == 0
        for part in ("acme", "globex", "requests_per_minute", "STREAM", "research", "server localhost ends"):
            assert part in done.stdout, part
        told = json.loads(running.run("status", "--json").stdout)
        assert told["streams"][0]["organization"] == "acme"
        assert {
            "version",
            "generation",
            "config_hash",
            "started_at",
            "draining",
            "organizations",
            "streams",
            "refusals",
            "certificates",
            "revoked",
            "upstreams",
            "reloads",
        } <= set(told)
    finally:
        stream.close()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_status_can_be_watched(running, form):
    with subprocess.Popen(
        [BINARY, "status", "--watch", *form, "--admin", running.admin], stdout=subprocess.PIPE, text=True
    ) as watching:
        seen = []
        while sum(line.startswith("portcullis ") or "generation" in line for line in seen) < 2 and len(seen) < 500:
            line = watching.stdout.readline()
            assert line, "it ended"
            seen.append(line)
        assert "\x1b" not in "".join(seen)
        watching.stdout.close()
        # The next painting finds nobody to read it.
        assert watching.wait(20) in (0, -13)


def test_status_shows_what_the_page_shows(running):
    """Upstreams, what is revoked, what was refused, clocks, bars, and how the last reloads went."""
    for _ in range(9):
        running.ask(body=chat(), certificate="globex")
    running.ask(body=chat(), portcullis_purpose="forbidden")
    running.run("revoke", "--purpose", "incident", "--reason", "a drill", check=True)
    try:
        text = running.run("status").stdout
    finally:
        running.run("restore", "--purpose", "incident", check=True)
    now = running.status()
    assert "openai answers" in text and "revoked: purpose incident since" in text and "purpose_not_permitted" in text
    assert re.search(r"\[#+\.+\] +\d+ % requests_per_minute +\d of 60, whole again in \d+ s", text)
    assert re.search(rf"reload \S+ .* policy {now['generation']} \({now['config_hash'][:12]}\)", text) or not now["reloads"]
    assert "partner acme ends" in text


def watched(one, rows, columns):
    """`status --watch` on a terminal of that size, and the end at which it is read."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [BINARY, "status", "--watch", "--admin", one.admin],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        # A shell starts what it puts in the background deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    return process, controller


def painted(controller, wanted, within=15):
    """The first whole painting that `wanted` is true of."""
    deadline, shown = time.monotonic() + within, b""
    while time.monotonic() < deadline:
        # A read may end within a character.
        shown += os.read(controller, 65536)
        for screen in (whole.decode() for whole in shown.split(b"\x1b[H\x1b[J")[1:-1]):
            if wanted(screen):
                return screen.replace("\r\n", "\n")
    raise AssertionError(shown[-2000:])


def test_watching_fits_the_screen_shows_the_fullest_first_and_outlives_a_restart(stage):
    orgs = {f"org-{number:02}": Stage.ACME.replace("acme", f"org-{number:02}") + "[limits]\nrequests_per_minute = 9\n"
            for number in range(40)}  # fmt: skip
    orgs["zulu"] = Stage.GLOBEX.replace("globex", "zulu") + "[limits]\nrequests_per_hour = 2\n"
    one = stage(orgs=orgs, start=False)
    # Held, and not listened on, beside the gateway: nobody else gets the port between its end and its next start.
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    path, port = one.folder / "portcullis.toml", held.getsockname()[1]
    path.write_text(path.read_text().replace('[admin]\naddress = "127.0.0.1:0"', f'[admin]\naddress = "127.0.0.1:{port}"'))
    one.start()
    one.partners.leaf("zulu", uri="spiffe://partners/zulu")
    for _ in range(3):
        one.ask(body=chat(), certificate="zulu")
    process, controller = watched(one, 20, 90)
    try:
        screen = painted(controller, lambda screen: "ORGANIZATION" in screen)
        lines = screen.rstrip("\n").split("\n")
        assert len(lines) <= 19 and max(map(len, lines)) <= 90, screen
        first = lines[[line.startswith("ORGANIZATION") for line in lines].index(True) + 1]
        assert first.startswith("zulu"), screen
        assert re.search(r"… and \d+ more organizations", screen) and "rate_limit_exceeded" in screen
        one.gateway.end()
        lost = painted(controller, lambda screen: "NOT REACHABLE, TRYING AGAIN" in screen)
        assert "zulu" in lost, "what it said last is still there"
        one.start()
        painted(controller, lambda screen: screen.startswith("portcullis "))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(controller)
        held.close()


def in_a_terminal(arguments, folder, **environment):
    """The exit code and everything a terminal would have shown."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [BINARY, *arguments],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"UPSTREAM_KEY": KEY, "TERM": "xterm"} | environment,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            got = os.read(controller, 65536)
        except OSError:
            break
        if not got:
            break
        shown += got
    os.close(controller)
    return process.wait(10), shown.decode()


def test_colours_are_for_terminals_and_for_those_who_want_them(place):
    spoil(place)
    code, shown = in_a_terminal(["check", "-c", "portcullis.toml"], place.folder)
    assert code == 1 and "\x1b[" in shown
    code, shown = in_a_terminal(["check", "-c", "portcullis.toml"], place.folder, NO_COLOR="1")
    assert code == 1 and "\x1b[" not in shown
    # no-color.org: an empty value means nothing.
    code, shown = in_a_terminal(["check", "-c", "portcullis.toml"], place.folder, NO_COLOR="")
    assert code == 1 and "\x1b[" in shown
    code, shown = in_a_terminal(["check", "-c", "portcullis.toml"], place.folder, TERM="dumb")
    assert code == 1 and "\x1b[" not in shown
    code, shown = in_a_terminal(["check", "--nope"], place.folder, NO_COLOR="1")
    assert code == 2 and "\x1b[" not in shown


def test_revocations_are_listed_and_given_back(running):
    assert running.run("revoke", "--list").stdout == "nothing is revoked\n"
    done = running.run("revoke", "--org", "globex", "--reason", "a drill")
    assert done.returncode == 0 and "revoked organization globex" in done.stdout
    try:
        listed = running.run("revoke", "--list")
        assert listed.returncode == 0 and "globex" in listed.stdout and "a drill" in listed.stdout
        told = json.loads(running.run("revoke", "--list", "--json").stdout)
        assert (told[0]["target"], told[0]["reason"]) == ("globex", "a drill")
        assert "already" in running.run("revoke", "--org", "globex").stdout
        assert running.ask(body=chat(), certificate="globex").headers["portcullis-reason"] == "organization_suspended"
    finally:
        done = running.run("restore", "--org", "globex", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["changed"] is True
    assert running.ask(body=chat(), certificate="globex").status == 200


def test_what_a_reason_holds_is_shown_and_does_nothing_to_a_terminal(running):
    reason = "it's\na fake line\x1b[31m\u202e"
    running.run("revoke", "--purpose", "incident", "--reason", reason, check=True)
    try:
        # A revocation is in force before its line is written.
        eventually(lambda: [line for line in running.audit() if line.get("reason") == reason], what="its line")
        shown = [running.run(*told).stdout for told in (["status"], ["revoke", "--list"], ["audit", "tail", "--dir", "audit"])]
    finally:
        running.run("restore", "--purpose", "incident", check=True)
    for text in shown:
        assert r"it's\na fake line\u{1b}[31m\u{202e}" in text
        assert "\x1b" not in text and "\u202e" not in text and "\na fake line" not in text


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:0", "ftp://127.0.0.1", "http://"])
def test_an_admin_address_that_is_none_is_told_and_nobody_is_asked(place, url):
    done = place.run("status", "--admin", url)
    assert done.returncode == 2 and f"{url}: not an admin address" in done.stderr, done


def test_a_variable_that_is_set_to_nothing_is_as_good_as_unset(running, place):
    names = ("PORTCULLIS_ADMIN", "_CA", "_CERT", "_KEY", "_TOKEN_FILE")
    empty = {name if name == names[0] else names[0] + name: "" for name in names}
    told = place.run("status", "--admin", running.admin, **empty)
    assert told.returncode == 0, told
    # Who is there on this machine, if anybody, is not ours to know.
    told = place.run("status", **empty)
    assert told.returncode == 0 or "http://127.0.0.1:9443: " in told.stderr, told


def test_a_certificate_is_revoked_by_file_or_by_digest(running):
    digest = json.loads(running.run("certs", "show", "globex.pem", "--json").stdout)["sha256"]
    try:
        for target in ("globex.pem", digest):
            assert running.run("revoke", "--cert", target).returncode == 0
            listed = json.loads(running.run("revoke", "--list", "--json").stdout)
            assert [entry["target"] for entry in listed] == [digest]
    finally:
        assert running.run("restore", "--cert", digest).returncode == 0


def test_a_certificate_is_revoked_by_a_file_that_holds_its_chain_and_an_authority_by_none(running):
    digest = json.loads(running.run("certs", "show", "globex.pem", "--json").stdout)["sha256"]
    leaf, chain = running.folder / "globex.pem", running.folder / "chain.pem"
    chain.write_bytes((running.folder / "partners.pem").read_bytes() + leaf.read_bytes())
    der = running.folder / "globex.der"
    der.write_bytes(x509.load_pem_x509_certificate(leaf.read_bytes()).public_bytes(serialization.Encoding.DER))
    for file in (chain, der):
        try:
            assert running.run("revoke", "--cert", file).returncode == 0
            listed = json.loads(running.run("revoke", "--list", "--json").stdout)
            assert [entry["target"] for entry in listed] == [digest]
        finally:
            assert running.run("restore", "--cert", file).returncode == 0
    done = running.run("revoke", "--cert", "partners.pem")
    assert done.returncode == 2 and "--authority" in done.stderr
    assert running.run("revoke", "--list").stdout == "nothing is revoked\n"


@pytest.mark.parametrize("target", [[], ["--cert", "nowhere.pem"], ["--cert", "portcullis.toml"]])
def test_a_revocation_of_nothing_is_exit_2(running, target):
    done = running.run("revoke", *target)
    assert done.returncode == 2 and done.stderr and not done.stdout


def test_a_name_that_cannot_be_one_is_refused(running):
    done = running.run("revoke", "--org", "No Such Thing!")
    assert done.returncode == 1 and "No Such Thing!" in done.stderr


def test_a_name_that_nobody_has_is_said_to_be_unknown(running):
    """A misspelt name must not look like a success: the operator believes that somebody is cut off."""
    try:
        done = running.run("revoke", "--org", "acmee")
        assert "acmee" in done.stdout + done.stderr
        assert re.search(r"unknown|no organization|not configured|nobody|did you mean", done.stdout + done.stderr), done
        assert done.returncode == 1, "a script must not go on"
    finally:
        running.run("restore", "--org", "acmee")


@pytest.mark.parametrize(
    "arguments",
    [
        ["reload", "--json"],
        ["restore", "--org", "globex", "--json"],
        ["audit", "verify", "audit", "--json"],
        ["audit", "report", "--org", "acme", "--dir", "audit", "--json"],
        ["certs", "show", "acme.pem", "--json"],
        ["version", "--json"],
        ["revoke", "--list", "--json"],
        ["config", "show", "--json", "-c", "portcullis.toml"],
    ],
)
def test_json_is_there_wherever_a_person_reads(running, arguments):
    done = running.run(*arguments)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


@pytest.mark.parametrize("arguments", [["reload", "--json"], ["check", "--json", "-c", "portcullis.toml"]])
def test_json_is_there_for_what_is_refused_too(running, arguments):
    text = (running.folder / "orgs.d/acme.toml").read_text()
    try:
        (running.folder / "orgs.d/acme.toml").write_text(text + "\ncolour = 1\n")
        done = running.run(*arguments)
        assert done.returncode == 1, done
        assert json.loads(done.stdout)["mistakes"], done
    finally:
        (running.folder / "orgs.d/acme.toml").write_text(text)
        assert running.run("reload").returncode == 0


def test_certs_and_audit_say_what_is_missing(place):
    for arguments in (
        ["certs", "issue", "--org", "acme"],
        ["certs", "show", "nowhere.pem"],
        ["certs", "show", "acme.key"],
        ["certs", "crl"],
        ["audit", "verify", "nowhere"],
    ):
        done = place.run(*arguments)
        assert done.returncode == 2 and len(done.stderr) > 10 and not done.stdout, (arguments, done)
    assert place.run("certs", "show", "acme.key").stderr == "portcullis: acme.key: it holds no certificate in PEM or DER\n"
    assert "server.pem" in place.run("demo", "--dir", "server.pem").stderr


def test_a_certificate_in_der_is_read_and_a_refusal_is_in_words(place):
    expired(place)
    for name, kind in (("acme", "CERTIFICATE"), ("partners", "X509 CRL")):
        pem = (place.folder / f"{name}.{'pem' if name == 'acme' else 'crl'}").read_text()
        body = pem.split(f"-----BEGIN {kind}-----")[1].split("-----END")[0]
        (place.folder / f"{name}.der").write_bytes(base64.b64decode(body))
    told = place.explain("--purpose", "research").stdout
    assert re.search(r"partners: it has expired \(valid until 20\d\d-\d\d-\d\dT", told) and "{" not in told, told
    assert place.explain("--purpose", "research", cert="acme.der").stdout == told
    for pem, der in (("acme.pem", "acme.der"), ("partners.crl", "partners.der")):
        assert place.run("certs", "show", der).stdout == place.run("certs", "show", pem).stdout != ""


# The commands that bring something up.


@pytest.fixture
def started(tmp_path):
    """Starts commands that run until they are ended."""
    programs = []

    def start(*arguments):
        programs.append(Program(tmp_path, f"program-{len(programs)}", *arguments))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def test_the_demo_plays_its_story_and_can_be_told_twice(tmp_path):
    for form in ([], ["--json"]):
        done = subprocess.run(
            [BINARY, "demo", "--check", "--dir", tmp_path / "demo", *form], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for act in (
            "allowed",
            "streamed",
            "purpose missing",
            "purpose not permitted",
            "stranger",
            "request limit",
            "token budget",
            "edited",
            "suspended",
            "audit",
        ):
            assert act in done.stdout, act
    assert all(json.loads(line) for line in done.stdout.splitlines())


def test_a_second_demo_in_the_same_folder_says_so_and_leaves_the_first_as_it_is(started, tmp_path):
    demo = started("demo", "--dir", tmp_path / "demo")
    demo.printed(r"(Ctrl-C stops)")
    allowed = next(line.strip() for line in demo.log.splitlines() if line.strip().startswith("curl"))
    written = (tmp_path / "demo/portcullis.toml").read_bytes()
    second = started("demo", "--dir", tmp_path / "demo")
    assert second.wait() == 2 and "a demo runs here already" in second.log
    assert (tmp_path / "demo/portcullis.toml").read_bytes() == written
    done = subprocess.run(["bash", "-c", allowed], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["choices"], done


def test_a_demo_takes_no_folder_with_keys_or_a_configuration_of_somebody_else(started, tmp_path):
    def run(*arguments):
        return subprocess.run([BINARY, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert run("certs", "init").returncode == 0 and run("certs", "issue", "--org", "acme").returncode == 0
    (tmp_path / "config").mkdir()
    (tmp_path / "config/portcullis.toml").write_text("# my own\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, named in ((".", "./certs"), ("config", "config/portcullis.toml")):
        done = run("demo", "--dir", folder)
        assert done.returncode == 2 and named in done.stderr and "--dir" in done.stderr, done
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_check_removes_nothing_but_what_it_made_and_several_go_beside_a_demo(started, tmp_path):
    place = tmp_path / "demo"
    started("demo", "--dir", place).printed(r"(Ctrl-C stops)")
    kept = [place / name / "notes" for name in ("check", "check-1")]
    for notes in kept:
        notes.parent.mkdir()
        notes.write_text("precious")
    checks = [started("demo", "--check", "--dir", place) for _ in range(2)]
    for check in checks:
        assert check.wait(60) == 0, check.log
    assert sorted(place.glob("check*/**/*")) == kept and all(notes.read_text() == "precious" for notes in kept)


def test_what_the_demo_prints_can_be_pasted(started, tmp_path):
    demo = started("demo", "--dir", tmp_path / "Anna's demo")
    demo.printed(r"(Ctrl-C stops)")
    lines = [line.strip() for line in demo.log.splitlines() if line.strip().startswith("curl")]
    allowed, streamed, refused, usage, revoke, restore = lines

    def paste(line):
        done = subprocess.run(
            ["bash", "-c", line.replace("curl", "curl -sS", 1)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done
        return done.stdout

    assert json.loads(paste(allowed))["choices"]
    assert paste(streamed).endswith("data: [DONE]\n\n")
    assert json.loads(paste(refused))["error"]["code"] == "purpose_missing"
    assert json.loads(paste(usage))["organization"] == "acme"
    assert "revoked" in paste(revoke)
    assert json.loads(paste(allowed))["error"]["code"] == "organization_suspended"
    assert "restored" in paste(restore)
    assert json.loads(paste(allowed))["choices"]
    status = re.search(r"Status: (http://\S+)", demo.log).group(1)
    assert b"acme" in fetch(status + "/").body
    demo.signal(signal.SIGINT)
    assert demo.wait() == 0, demo.log


def test_another_partner_is_taken_into_the_demo_by_the_readmes_commands(started, tmp_path):
    place = tmp_path / "demo"
    demo = started("demo", "--dir", place)
    demo.printed(r"(Ctrl-C stops)")
    readme = (ROOT / "README.md").read_text()
    issue = re.search(r"portcullis (certs issue --org acme[^`]*)`", readme).group(1).replace("acme", "initech")
    issued = subprocess.run(
        [BINARY, *issue.split(), "--dir", place / "certs"], capture_output=True, text=True, timeout=20
    )
    assert issued.returncode == 0, issued
    (place / "orgs.d" / "new").write_text((place / "orgs.d/globex.toml").read_text().replace("globex", "initech"))
    (place / "orgs.d" / "new").rename(place / "orgs.d/initech.toml")
    status = re.search(r"Status: (http://\S+)", demo.log).group(1)
    assert fetch(status + "/-/reload", data={}, method="POST").status == 200
    ask = next(line.strip() for line in demo.log.splitlines() if line.strip().startswith("curl") and "/usage" in line)
    ask = ask.replace("acme.", "initech.").replace("curl", "curl -sS", 1)
    answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert json.loads(answer.stdout)["organization"] == "initech", answer


def test_every_metric_that_the_readme_praises_is_there_after_one_plain_and_one_streamed_request(started, tmp_path):
    demo = started("demo", "--dir", tmp_path / "demo")
    demo.printed(r"(Ctrl-C stops)")
    plain, streamed = [line.strip() for line in demo.log.splitlines() if line.strip().startswith("curl")][:2]
    for line in (plain, streamed):
        subprocess.run(["bash", "-c", line.replace("curl", "curl -sS", 1)], check=True, capture_output=True, timeout=30)
    status = re.search(r"Status: (http://\S+)", demo.log).group(1)
    readme = (ROOT / "README.md").read_text().split("### Metrics")[1].split("###")[0]
    praised = set(re.findall(r"`(portcullis_\w+)", "".join(re.findall(r"^\| .*", readme, re.M))))
    assert len(praised) > 30

    def absent():
        text = fetch(status + "/metrics").body.decode()
        # A family without a sample is as good as none.
        return {name for name in praised if not re.search(rf"^{name}(_bucket)?(\{{|\s)", text, re.M)}

    deadline = time.monotonic() + 10
    while absent() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert absent() == set()


def test_a_demo_reloads_and_drains_by_the_gateways_signals(started, tmp_path):
    demo = started("demo", "--dir", tmp_path / "demo")
    demo.printed(r"(Ctrl-C stops)")
    status = re.search(r"Status: (http://\S+)", demo.log).group(1)
    demo.signal(signal.SIGHUP)
    reloaded = 'portcullis_config_reloads_total{result="applied",trigger="signal"}'
    eventually(lambda: reloaded in fetch(status + "/metrics").body.decode(), what="the reload")
    demo.signal(signal.SIGTERM)
    assert demo.wait() == 0, demo.log


def test_a_demo_goes_with_its_terminal(tmp_path):
    pid, controller = pty.fork()
    if pid == 0:
        os.execv(BINARY, [BINARY, "demo", "--dir", str(tmp_path / "demo")])
    shown = b""
    while b"Ctrl-C stops" not in shown:
        shown += os.read(controller, 65536)
    os.close(controller)
    ended = eventually(lambda: (done := os.waitpid(pid, os.WNOHANG))[0] and done, what="the demo's end")
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_demos_do_not_get_in_each_others_way(started, tmp_path):
    # All at once: each holds its ports from the moment it found them free.
    demos = [started("demo", "--dir", tmp_path / str(number)) for number in range(8)]
    for demo in demos:
        demo.printed(r"(Ctrl-C stops)")


def test_the_mock_model_answers_until_it_is_told_to_stop(started):
    mock = started("mock", "--listen", "127.0.0.1:0", "--ttft", "0ms", "--tps", "0", "--fail", "503:1")
    url = mock.printed(r"(http://127\.0\.0\.1:\d+)")
    assert fetch(url + "/v1/chat/completions", data=chat()).status == 503
    mock.signal(signal.SIGINT)
    assert mock.wait() == 0


@pytest.mark.parametrize(
    "argument", [["--fail", "often"], ["--fail", "500:2"], ["--ttft", "soon"], ["--ttft", "5"], ["--tps", "-1"], ["--listen", "here"]]
)
def test_the_mock_model_does_not_guess(place, argument):
    done = place.run("mock", "--listen", "127.0.0.1:0", *argument)
    assert done.returncode == 2 and done.stderr


def test_an_address_that_is_taken_is_named(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = place.run("mock", "--listen", address)
    assert done.returncode == 2 and address in done.stderr
