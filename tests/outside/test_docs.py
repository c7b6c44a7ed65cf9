"""What is written for people is held to the binary: links lead somewhere, commands exist, exit codes are true, and the
tests that SECURITY.md names are there."""

import re
import shutil
import subprocess

import pytest
from stage import BINARY, ROOT, Stage, chat, eventually, fetch

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "SECURITY.md"]


def anchors(file):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", file.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_test_that_a_promise_rests_on_exists():
    named = re.findall(r"`((?:src/[\w/.]+|\w+)::\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 100
    for reference in named:
        place, name = reference.split("::")
        file = ROOT / (place if place.startswith("src/") else f"tests/outside/test_{place}.py")
        assert file.exists() and re.search(rf"\b(?:def|fn) {name}\(", file.read_text()), reference


def test_the_catalogue_of_metrics_is_what_is_exposed(stage):
    """Each family with its type and labels; what appears only with its first event has its name in the source."""
    told = {}
    for names, kind, labels in re.findall(r"^\| (`.+?`) \| (\w+) \|(.*?)\|", (ROOT / "docs" / "metrics.md").read_text(), re.M):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in told, name
            told[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
    one = stage(orgs={"acme": Stage.ACME + "[limits]\nrequests_per_minute = 60\ntokens_per_minute = 60000\n"})
    assert one.ask(body=chat(stream=True)).status == one.ask(body=chat()).status == 200
    # What an exchange comes to is counted when the client has its end already.
    eventually(lambda: one.metric("portcullis_streams_total", end="complete") == 2, what="the end of both")
    text = fetch(one.admin + "/metrics").body.decode()
    families = dict(re.findall(r"^# TYPE portcullis_(\w+) (\w+)$", text, re.M))
    source = "".join(path.read_text() for path in (ROOT / "src" / "metrics").glob("*.rs"))
    for name, kind in families.items():
        assert told[name][0] == kind, name
        part = "(?:_bucket|_sum|_count)?"
        for braces in re.findall(rf"^portcullis_{name}{part}(?:\{{(.*)\}})? ", text, re.M):
            assert set(re.findall(r'(\w+)="', braces)) - {"le"} == told[name][1], name
    for name in told.keys() - families.keys():
        assert f'"{name}"' in source, name
    assert len(told.keys() - families.keys()) <= 6, told.keys() - families.keys()


def commands():
    """Every command line of ours in the pages' code."""
    found = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        code = re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(r"`([^`\n]+)`", text)
        for line in "\n".join(code).splitlines():
            for piece in re.split(r"\||&&|;", line.split("  #")[0]):
                piece = re.sub(r"^.*? -- ", "", piece.strip())
                if piece.startswith("portcullis ") and re.match(r"portcullis [a-z]", piece):
                    found.add(piece)
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_pages_is_understood(line, tmp_path):
    words = line.replace("…", "").split()[1:]
    verbs = []
    for word in words:
        if not re.fullmatch("[a-z]+", word):
            break
        verbs.append(word)
    while verbs:
        asked = subprocess.run([BINARY, *verbs, "--help"], capture_output=True, text=True)
        if asked.returncode == 0:
            break
        verbs.pop()
    assert verbs, line
    options = {word.split("=")[0] for word in words if word.startswith("-")}
    unknown = [option for option in options if not re.search(rf"(?:^|[ ,]){re.escape(option)}\b", asked.stdout, re.M)]
    assert not unknown, f"{line}: {asked.stdout}"


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """A running gate, a copy of its log that was tampered with, and a configuration with a mistake."""
    one = Stage(tmp_path_factory.mktemp("codes"))
    one.ask(body=chat())
    eventually(lambda: one.run("audit", "prove", "1", "--dir", "audit").returncode == 0, what="a checkpoint over it")
    shutil.copytree(one.folder / "audit", one.folder / "tampered")
    (log,) = (one.folder / "tampered").glob("*.jsonl")
    log.write_bytes(log.read_bytes().replace(b"start", b"strat", 1))
    (one.folder / "wrong.toml").write_text((one.folder / "portcullis.toml").read_text() + "\n[odd]\n")
    one.run("certs", "--dir", "certs", "init", check=True)
    yield one
    one.close()


NOBODY = {"PORTCULLIS_ADMIN": "http://127.0.0.1:1"}
SAID = [
    (0, "check -c portcullis.toml"),
    (1, "check -c wrong.toml"),
    (2, "check -c absent.toml"),
    (2, "check --odd"),
    (2, "check -c portcullis.toml --against http://127.0.0.1:1"),
    (1, "run -c wrong.toml"),
    (2, "run -c absent.toml"),
    (2, "run -c portcullis.toml"),
    (0, "explain -c portcullis.toml --cert acme.pem --purpose research --model mock-1"),
    (1, "explain -c portcullis.toml --cert acme.pem --purpose forbidden --model mock-1"),
    (1, "explain -c wrong.toml --cert acme.pem"),
    (2, "explain -c portcullis.toml --cert absent.pem"),
    (0, "reload"),
    (0, "status"),
    (0, "revoke --org globex"),
    (0, "restore --org globex"),
    (0, "revoke --list"),
    (2, "revoke"),
    (2, "revoke --cert absent.pem"),
    (0, "certs show acme.pem"),
    (0, "certs show partners.pem"),
    (2, "certs show absent.pem"),
    (0, "certs --dir certs issue --org acme"),
    (0, "certs --dir certs crl"),
    (2, "certs --dir certs init"),
    (2, "certs --dir absent crl"),
    (0, "audit verify audit"),
    (1, "audit verify tampered"),
    (2, "audit verify absent"),
    (0, "audit report --org acme --dir audit"),
    (1, "audit report --org acme --dir tampered"),
    (0, "audit prove 1 --dir audit"),
    (1, "audit prove 999 --dir audit"),
    (0, "config show -c portcullis.toml"),
    (1, "config show -c wrong.toml"),
    (2, "config show -c absent.toml"),
    (2, "odd"),
    (2, ""),
]


@pytest.mark.parametrize(("code", "line"), SAID, ids=lambda one: str(one))
def test_exit_codes_are_as_told(gate, code, line):
    done = gate.run(*line.split())
    assert done.returncode == code, done.stdout + done.stderr
    if code == 2:
        assert done.stderr and not done.stdout


@pytest.mark.parametrize("verb", ["reload", "status", "drain", "revoke --org acme", "restore --org acme"])
def test_nobody_at_the_admin_address_is_two(gate, verb):
    done = gate.run(*verb.split(), env=NOBODY)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr


def test_a_refused_reload_is_one(stage):
    one = stage()
    one.write_org("acme", "id = 7")
    done = one.run("reload")
    assert done.returncode == 1 and "orgs.d/acme.toml:1" in done.stderr + done.stdout


def test_every_command_that_says_no_is_in_the_table():
    table = (ROOT / "docs/exit-codes.md").read_text()
    named = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.M) for name in re.findall(r"`([^`]+)`", row)}
    for code, line in SAID:
        words = [word for word in line.split() if not word.startswith("-") and word not in ("certs", "audit", "config")]
        if code == 1:
            assert any(name.split()[-1] == words[0] for name in named), line
