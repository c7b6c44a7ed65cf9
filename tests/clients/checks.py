"""What the Python client checks share: the environment, one JSON line a check, the exit code.

Environment: GATEWAY_URL (without /v1); CA, CERT, KEY (PEM files) for https; PURPOSE. Without PURPOSE the mock model
itself is addressed, and the checks that need a gateway are skipped. MODEL and CLAUDE_MODEL name well-behaved mock
models ("mock-1", "claude-mock-1"); misbehaving ones are made from them. More checks run where these are set:
PURPOSE_DENIED (in the catalogue, not granted), MODEL_DENIED, CLAUDE_MODEL_DENIED, PURPOSE_LIMITED (its limit admits
one request, and the next one a second or two later), PURPOSE_SPENT (its daily budget of requests is one).
CHECK_ALL=1 makes a skipped check a failure.
"""

import json
import os
import ssl
import sys
import time

URL = os.environ["GATEWAY_URL"].rstrip("/")
PURPOSE = os.environ.get("PURPOSE")
MODEL = os.environ.get("MODEL", "mock-1")
CLAUDE_MODEL = os.environ.get("CLAUDE_MODEL", "claude-mock-1")
TEXT = "The gate opens for those who say what for, and stays shut for all others."


def headers(purpose=PURPOSE):
    return {"portcullis-purpose": purpose} if purpose else {}


def tls(with_certificate=True):
    """The context that a partner's program would make; for plain http it does nothing."""
    if not URL.startswith("https://"):
        return True
    context = ssl.create_default_context(cafile=os.environ["CA"])
    if with_certificate:
        context.load_cert_chain(os.environ["CERT"], os.environ["KEY"])
    return context


def mock(words, model=MODEL):
    """A mock model that misbehaves: mock("die-5") is "mock-die-5"."""
    return model.removesuffix("1") + words


class Wrong(Exception):
    """A check's own finding."""


def expect(condition, what):
    if not condition:
        raise Wrong(what)


def raises(kind, call, code=None, says=None):
    """Calls, and returns the exception of that class that a user would see."""
    try:
        call()
    except kind as error:
        expect(code is None or code_of(error) == code, f"code {code_of(error)!r}, not {code!r}: {error}")
        expect(says is None or says in str(error), f"{says!r} is not in what the user reads: {error}")
        return error
    except Exception as error:
        raise Wrong(f"{type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise Wrong(f"no {kind.__name__}")


def code_of(error):
    body = getattr(error, "body", None)
    error_member = body.get("error", body) if isinstance(body, dict) else {}
    return error_member.get("code") if isinstance(error_member, dict) else None


def shown(error):
    return f"{type(error).__name__}: {error}"


class Checks:
    """Runs checks one after the other and remembers whether all of them held."""

    def __init__(self, client):
        self.client = client
        self.failed = False

    def check(self, needs=()):
        """Runs the decorated function at once; it returns what a user would see. `needs` names the environment."""

        def run(function):
            name = function.__name__
            missing = [variable for variable in needs if not os.environ.get(variable)]
            line = {"client": self.client, "check": name}
            began = time.monotonic()
            if missing:
                line |= {"ok": os.environ.get("CHECK_ALL") != "1", "skipped": f"{', '.join(missing)} not set"}
            else:
                try:
                    line |= {"ok": True, "seen": function()}
                except Exception as error:  # noqa: BLE001: whatever it is, it is this check's result
                    line |= {"ok": False, "error": shown(error)}
            line["seconds"] = round(time.monotonic() - began, 3)
            self.failed |= not line["ok"]
            print(json.dumps(line, ensure_ascii=False), flush=True)
            return function

        return run

    def done(self):
        sys.exit(1 if self.failed else 0)
