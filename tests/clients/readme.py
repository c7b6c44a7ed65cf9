"""Runs the README's snippets as they stand, with the names in them replaced by those of the gateway under test."""

import os
import pathlib
import re
import subprocess
import sys

from checks import CLAUDE_MODEL, MODEL, PURPOSE, TEXT, URL, Checks, expect

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
NODE_MODULES = pathlib.Path(os.environ.get("CLIENTS", ".")).resolve()
checks = Checks("README.md")


def snippets(language):
    section = README.read_text().split("## Using it as a partner", 1)[1].split("### When you are refused", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def here(snippet):
    for written, meant in [
        ("https://gateway.example:8443", URL),
        ("ca.pem", os.environ["CA"]),
        ("acme.pem", os.environ["CERT"]),
        ("acme.key", os.environ["KEY"]),
        ("vulnerability-research", PURPOSE),
        ("gpt-4.1-mini", MODEL),
        ("claude-opus-4-1", CLAUDE_MODEL),
    ]:
        snippet = snippet.replace(written, meant)
    return snippet


def run(command, snippet, **more):
    done = subprocess.run([*command, here(snippet)], capture_output=True, text=True, timeout=60, check=False, **more)
    expect(done.returncode == 0, done.stderr or done.stdout)
    return done.stdout


@checks.check(needs=["PURPOSE", "CERT"])
def python():
    said = [run([sys.executable, "-c"], snippet) for snippet in snippets("python")]
    expect(said == [TEXT, TEXT], said)
    return f"{len(said)} snippets"


@checks.check(needs=["PURPOSE", "CERT"])
def node():
    module = ["node", "--input-type=module", "--eval"]
    said = [run(module, snippet, cwd=NODE_MODULES) for snippet in snippets("js")]
    expect(said == [TEXT, TEXT], said)
    return f"{len(said)} snippets"


@checks.check(needs=["PURPOSE", "CERT"])
def curl():
    streamed, *about = [snippet for snippet in snippets("sh") if snippet.startswith("curl")]
    expect(run(["bash", "-euc"], streamed).endswith("data: [DONE]\n\n"), "the stream")
    expect(all('"organization"' in run(["bash", "-euc"], snippet) for snippet in about), "whoami and usage")
    return f"{1 + len(about)} snippets"


checks.done()
