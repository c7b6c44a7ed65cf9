"""The Anthropic SDK for Python, used as its own documentation says: plain, streamed, refused, limited, cut."""

import os
import time

import anthropic
from anthropic import Anthropic, DefaultHttpxClient
from checks import CLAUDE_MODEL, PURPOSE, TEXT, URL, Checks, expect, headers, mock, raises, shown, tls

checks = Checks(f"anthropic-python {anthropic.__version__}")


def client(purpose=PURPOSE, retries=0, with_certificate=True):
    return Anthropic(
        base_url=URL,
        api_key="unused",
        default_headers=headers(purpose),
        max_retries=retries,
        http_client=DefaultHttpxClient(verify=tls(with_certificate), follow_redirects=False),
    )


ai = client()
SAY = [{"role": "user", "content": "Who may pass?"}]


def ask(client=ai, model=CLAUDE_MODEL, max_tokens=64, **more):
    return client.messages.create(model=model, max_tokens=max_tokens, messages=SAY, **more)


def said(stream):
    return "".join(event.delta.text for event in stream if event.type == "content_block_delta")


@checks.check()
def plain():
    raw = ai.messages.with_raw_response.create(model=CLAUDE_MODEL, max_tokens=64, messages=SAY)
    answer = raw.parse()
    expect(answer.content[0].text == TEXT and answer.stop_reason == "end_turn", answer)
    expect(answer.usage.output_tokens == 16, answer.usage)
    expect(answer._request_id and answer._request_id == raw.headers["request-id"], "no request id")
    expect("anthropic-ratelimit-requests-limit" in raw.headers or not PURPOSE, "no limit headers")
    return answer.content[0].text


@checks.check()
def streamed():
    expect(said(ask(stream=True)) == TEXT, "the text")
    with ai.messages.stream(model=CLAUDE_MODEL, max_tokens=4, messages=SAY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    expect(text == "The gate opens for" and final.stop_reason == "max_tokens", final)
    expect(final.usage.output_tokens == 4, final.usage)
    return text


@checks.check()
def tokens_counted():
    return ai.messages.count_tokens(model=CLAUDE_MODEL, messages=SAY).input_tokens


@checks.check()
def beta_route():
    answer = ai.beta.messages.create(model=CLAUDE_MODEL, max_tokens=64, messages=SAY, betas=["files-api-2025-04-14"])
    expect(answer.content[0].text == TEXT, answer)
    return answer.id


@checks.check()
def models():
    names = [model.id for model in ai.models.list(limit=1000)]
    expect(CLAUDE_MODEL in names or not PURPOSE, names)
    return names


@checks.check()
def upstream_error_unchanged():
    error = raises(anthropic.APIStatusError, lambda: ask(model=mock("fail-529", CLAUDE_MODEL)), says="overloaded_error")
    expect(error.status_code == 529 and "as it was told to" in str(error), error)
    return shown(error)


@checks.check()
def upstream_error_mid_stream():
    read = lambda: said(ask(model=mock("error-5", CLAUDE_MODEL), stream=True))  # noqa: E731
    return shown(raises(anthropic.APIStatusError, read, says="overloaded_error"))


@checks.check()
def upstream_dies_mid_stream():
    got = []

    def read():
        for event in ask(model=mock("die-5", CLAUDE_MODEL), stream=True):
            got.extend([event.delta.text] if event.type == "content_block_delta" else [])

    kind = anthropic.APIStatusError if PURPOSE else Exception
    error = raises(kind, read, code="upstream_invalid" if PURPOSE else None)
    expect("".join(got) == "The gate opens for those", got)
    return shown(error)


@checks.check(needs=["PURPOSE"])
def purpose_missing():
    refused = client(None)
    error = raises(anthropic.BadRequestError, lambda: ask(refused), code="purpose_missing", says="portcullis-purpose")
    expect(error.type == "invalid_request_error" and error.request_id, error)
    return shown(error)


@checks.check(needs=["PURPOSE", "PURPOSE_DENIED"])
def purpose_not_permitted():
    refused = client(os.environ["PURPOSE_DENIED"])
    error = raises(anthropic.PermissionDeniedError, lambda: ask(refused), code="purpose_not_permitted")
    expect(error.type == "permission_error", error.type)
    raises(anthropic.PermissionDeniedError, lambda: ask(refused, stream=True), code="purpose_not_permitted")
    return shown(error)


@checks.check(needs=["PURPOSE", "CLAUDE_MODEL_DENIED"])
def model_not_permitted():
    denied = os.environ["CLAUDE_MODEL_DENIED"]
    return shown(raises(anthropic.PermissionDeniedError, lambda: ask(model=denied), code="model_not_permitted"))


@checks.check(needs=["PURPOSE", "PURPOSE_LIMITED"])
def rate_limited():
    limited = os.environ["PURPOSE_LIMITED"]
    ask(client(limited, retries=3))
    error = raises(anthropic.RateLimitError, lambda: ask(client(limited)), code="rate_limit_exceeded")
    expect(error.type == "rate_limit_error", error.type)
    wait = float(error.response.headers["retry-after"])
    expect(1 <= wait <= 5, f"retry-after {wait}")
    began = time.monotonic()
    ask(client(limited, retries=1))
    expect(time.monotonic() - began > 0.1, "the limit had room without a wait")
    return shown(error)


@checks.check(needs=["PURPOSE", "PURPOSE_SPENT"])
def budget_spent():
    spent = client(os.environ["PURPOSE_SPENT"], retries=2)
    began = time.monotonic()

    def twice():
        ask(spent)
        ask(spent)

    error = raises(anthropic.RateLimitError, twice, code="insufficient_quota")
    expect(error.type == "rate_limit_error", error.type)
    expect(error.response.headers["x-should-retry"] == "false", "x-should-retry")
    expect(time.monotonic() - began < 2, "the SDK slept or tried again")
    return shown(error)


@checks.check(needs=["PURPOSE", "CERT"])
def certificate_missing():
    return shown(raises(anthropic.APIConnectionError, lambda: ask(client(with_certificate=False))))


checks.done()
