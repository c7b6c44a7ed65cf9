"""Runs the README's snippets as they stand, with the names in them replaced by those of the gateway under test."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

from checks import CLAUDE_MODEL, MODEL, PURPOSE, TEXT, URL, Checks, expect, mock

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


@contextlib.contextmanager
def forwarder():
    """Codex CLI's way in, on a port that is free; yields its address."""
    snippet = re.search(r"```\n(listen portcullis\n.*?)```", README.read_text(), re.DOTALL)[1]
    at = urllib.parse.urlsplit(URL)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as door:
        both, config = pathlib.Path(folder, "acme-both.pem"), pathlib.Path(folder, "haproxy.cfg")
        both.write_text(pathlib.Path(os.environ["CERT"]).read_text() + pathlib.Path(os.environ["KEY"]).read_text())
        for written, meant in [
            ("127.0.0.1:8787", f"fd@{door.fileno()}"),
            ("gateway.example:8443", at.netloc),
            ("gateway.example", at.hostname),
            ("ca.pem", os.environ["CA"]),
            ("acme-both.pem", str(both)),
        ]:
            expect(written in snippet, f"{written} in the snippet")
            snippet = snippet.replace(written, meant)
        config.write_text(snippet)
        running = subprocess.Popen(
            ["haproxy", "-db", "-f", config], pass_fds=[door.fileno()], stderr=subprocess.PIPE, text=True
        )
        try:
            yield door.getsockname()
        finally:
            runs = running.poll() is None
            running.terminate()
            said = running.communicate(timeout=20)[1]
            expect(runs, said)


def asking(address, **asked):
    """A connection on which that was asked."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **asked}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nportcullis-purpose: {PURPOSE}\r\n"
    connection = socket.create_connection(address, timeout=20)
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@checks.check(needs=["PURPOSE", "CERT"])
def forwarder_passes_a_stream_on_as_it_comes():
    with forwarder() as address, asking(address, model=mock("tokens-40.tps-20"), stream=True) as connection:
        came, pieces = b"", []
        while b"[DONE]" not in came:
            piece = connection.recv(65_536)
            expect(piece, came)
            came += piece
            pieces += [time.monotonic()] * piece.count(b"data: ")
    together = sum(later - earlier < 0.005 for earlier, later in zip(pieces, pieces[1:], strict=False))
    expect(len(pieces) > 40 and together < len(pieces) / 4, f"{together} of {len(pieces)} events came with another")
    return f"{together} of {len(pieces)} events came with another"


@checks.check(needs=["PURPOSE", "CERT"])
def forwarder_tells_of_a_client_that_leaves_while_the_model_is_silent():
    def reserved():
        (usage,) = [line for snippet in snippets("sh") for line in snippet.splitlines() if line.endswith("/usage")]
        limits = json.loads(run(["bash", "-euc"], usage))["limits"]
        return sum(limit["reserved"] for limit in limits if limit["unit"] == "tokens")

    def within(seconds, done, what):
        began = time.monotonic()
        while not done():
            expect(time.monotonic() - began < seconds, what)
        return time.monotonic() - began

    with forwarder() as address:
        with asking(address, model=mock("hang")):
            within(20, reserved, "nothing is under way")
        took = within(10, lambda: not reserved(), "what nobody waits for is still under way")
    return f"{took:.2f} s"


checks.done()
