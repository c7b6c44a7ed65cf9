"""curl over HTTP/1.1 and HTTP/2: plain, streamed, refused, and what a partner asks about itself."""

import json
import os
import re
import subprocess

from checks import MODEL, PURPOSE, TEXT, URL, Checks, Wrong, expect

VERSION = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
checks = Checks(f"curl {VERSION}")
TLS = URL.startswith("https://")


class Answer:
    """What curl said: its exit code, and the last response's status, headers and body."""

    def __init__(self, done):
        self.code = done.returncode
        head, _, self.body = done.stdout.decode().partition("\r\n\r\n")
        while re.match(r"HTTP/\S+ 1\d\d", head):
            head, _, self.body = self.body.partition("\r\n\r\n")
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1]) if self.code == 0 else None
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)

    def refused(self, status, code):
        expect(self.status == status, f"{self.status} {self.body}, not {status}")
        expect(self.headers.get("portcullis-reason") == code, f"{self.headers.get('portcullis-reason')}, not {code}")
        expect(self.headers.get("x-request-id") == self.headers.get("request-id"), "request ids differ")
        error = json.loads(self.body)["error"]
        expect(error["code"] == code, error)
        return error["message"]


def curl(path, *more, body=None, purpose=PURPOSE, version="--http1.1", certificate=True):
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", version, *more]
    if TLS:
        command += ["--cacert", os.environ["CA"]]
    if TLS and certificate:
        command += ["--cert", os.environ["CERT"], "--key", os.environ["KEY"]]
    if purpose:
        command += ["--header", f"portcullis-purpose: {purpose}"]
    if body is not None:
        command += ["--header", "content-type: application/json", "--data-binary", json.dumps(body)]
    return Answer(subprocess.run([*command, f"{URL}{path}"], capture_output=True, check=False))


def ask(**more):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Who may pass?"}], **more}


CHAT = "/v1/chat/completions"


def both(function):
    """Over both protocols where there is TLS to agree on one."""
    for version in ["--http1.1", "--http2"] if TLS else ["--http1.1"]:
        named = lambda version=version: function(version)  # noqa: E731
        named.__name__ = f"{function.__name__}_{version.strip('-').replace('.', '_')}"
        checks.check()(named)


@both
def plain(version):
    answer = curl(CHAT, body=ask(), version=version)
    expect(answer.status == 200 and json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT, answer.body)
    expect("set-cookie" not in answer.headers or not PURPOSE, "the upstream's cookie came through")
    expect("openai-organization" not in answer.headers or not PURPOSE, "the operator's account came through")
    return answer.headers.get("ratelimit", "no limit headers")


@both
def streamed(version):
    answer = curl(CHAT, "--no-buffer", body=ask(stream=True), version=version)
    expect(answer.headers["content-type"].startswith("text/event-stream"), answer.headers)
    expect(answer.body.endswith("data: [DONE]\n\n"), answer.body[-200:])
    return f"{answer.body.count('data: ')} events"


@checks.check(needs=["PURPOSE"])
def about_oneself():
    me = json.loads(curl("/portcullis/v1/whoami", purpose=None).body)
    expect(any(purpose["id"] == PURPOSE for purpose in me["purposes"]), me)
    usage = json.loads(curl("/portcullis/v1/usage", purpose=None).body)
    expect(usage["organization"] == me["organization"] and usage["limits"], usage)
    return f"{me['organization']}: {len(usage['limits'])} limits"


@checks.check(needs=["PURPOSE"])
def refusals():
    def sent(*headers, **more):
        return curl(CHAT, *[part for header in headers for part in ("--header", header)], **{"body": ask(), **more})

    return [
        sent(purpose=None).refused(400, "purpose_missing"),
        sent(purpose="Not-A-Purpose").refused(400, "purpose_invalid"),
        sent(f"portcullis-purpose: {PURPOSE}").refused(400, "purpose_invalid"),
        sent(purpose="never-heard-of").refused(400, "purpose_unknown"),
        sent(body={"messages": []}).refused(400, "model_missing"),
        sent(body=[]).refused(400, "body_invalid"),
        sent("host: elsewhere.example").refused(421, "host_not_served"),
        curl("/v1/nothing", body=ask()).refused(404, "route_not_found"),
        curl(CHAT).refused(405, "method_not_allowed"),
        curl(CHAT, "--data-binary", "x", "--header", "content-type: text/plain").refused(415, "media_type_not_supported"),
    ]


@checks.check(needs=["PURPOSE"])
def problem_json():
    answer = curl(CHAT, "--header", "accept: application/problem+json", body=ask(), purpose=None)
    expect(answer.headers["content-type"].startswith("application/problem+json"), answer.headers)
    problem = json.loads(answer.body)
    expect(problem["status"] == 400, problem)
    return problem["detail"]


@checks.check(needs=["PURPOSE", "CERT"])
def certificate_missing():
    answer = curl("/v1/models", certificate=False)
    if answer.code == 0:
        raise Wrong(f"answered {answer.status}")
    return f"curl's exit code is {answer.code}"


@checks.check(needs=["PURPOSE", "STRANGER_CERT", "STRANGER_KEY"])
def certificate_foreign():
    stranger = ("--cert", os.environ["STRANGER_CERT"], "--key", os.environ["STRANGER_KEY"])
    answer = curl("/v1/models", *stranger, certificate=False)
    if answer.code == 0:
        raise Wrong(f"answered {answer.status}")
    return f"curl's exit code is {answer.code}"


checks.done()
