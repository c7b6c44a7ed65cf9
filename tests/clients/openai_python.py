"""The OpenAI SDK for Python, used as its own documentation says: plain, streamed, refused, limited, cut."""

import os
import time

import openai
from checks import MODEL, PURPOSE, TEXT, URL, Checks, expect, headers, mock, raises, shown, tls
from openai import DefaultHttpx2Client, OpenAI

checks = Checks(f"openai-python {openai.__version__}")


def client(purpose=PURPOSE, retries=0, with_certificate=True):
    return OpenAI(
        base_url=f"{URL}/v1",
        api_key="unused",
        default_headers=headers(purpose),
        max_retries=retries,
        http_client=DefaultHttpx2Client(verify=tls(with_certificate), follow_redirects=False),
    )


ai = client()
SAY = [{"role": "user", "content": "Who may pass?"}]


def ask(client=ai, model=MODEL, **more):
    return client.chat.completions.create(model=model, messages=SAY, **more)


def said(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@checks.check()
def plain():
    raw = ai.chat.completions.with_raw_response.create(model=MODEL, messages=SAY)
    answer = raw.parse()
    expect(answer.choices[0].message.content == TEXT, answer)
    expect(answer.usage.completion_tokens == 16, answer.usage)
    expect(answer._request_id and answer._request_id == raw.headers["x-request-id"], "no request id")
    expect("x-ratelimit-limit-requests" in raw.headers or not PURPOSE, "no limit headers")
    return answer.choices[0].message.content


@checks.check()
def streamed():
    chunks = list(ask(stream=True))
    expect(said(chunks) == TEXT, said(chunks))
    expect(all(chunk.usage is None and chunk.choices for chunk in chunks), "a usage chunk that nobody asked for")
    return f"{len(chunks)} chunks"


@checks.check()
def streamed_with_usage():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}, n=2, max_tokens=4))
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    expect(len(usage) == 1 and usage[0].completion_tokens == 8 and not chunks[-1].choices, usage)
    return f"{usage[0].total_tokens} tokens"


@checks.check()
def responses():
    answer = ai.responses.create(model=MODEL, input="Who may pass?")
    expect(answer.output_text == TEXT and answer.usage.output_tokens == 16, answer)
    events = list(ai.responses.create(model=MODEL, input="Who may pass?", stream=True, max_output_tokens=4))
    expect(events[0].type == "response.created" and events[-1].type == "response.incomplete", events[-1].type)
    expect(events[-1].response.usage.output_tokens == 4, events[-1])
    with ai.responses.stream(model=MODEL, input="Who may pass?") as stream:
        expect(stream.get_final_response().output_text == TEXT, "the helper's final response")
    return f"{len(events)} events"


@checks.check()
def completions_and_embeddings():
    expect(ai.completions.create(model=MODEL, prompt="Who?").choices[0].text == TEXT, "completions")
    parts = ai.completions.create(model=MODEL, prompt="Who?", stream=True)
    expect("".join(part.choices[0].text for part in parts if part.choices) == TEXT, "completions, streamed")
    vectors = ai.embeddings.create(model=MODEL, input=["a", "b"]).data
    expect(len(vectors) == 2 and vectors[0].embedding[:2] == [0.5, -0.25], vectors)
    return f"{len(vectors[0].embedding)} numbers"


@checks.check()
def models():
    names = [model.id for model in ai.models.list()]
    expect(MODEL in names, names)
    return names


@checks.check()
def upstream_error_unchanged():
    error = raises(openai.RateLimitError, lambda: ask(model=mock("fail-429")), code="rate_limit_exceeded")
    expect("as it was told to" in str(error), error)
    return shown(error)


@checks.check()
def upstream_error_mid_stream():
    return shown(raises(openai.APIError, lambda: said(ask(model=mock("error-5"), stream=True)), says="had an error"))


@checks.check()
def upstream_dies_mid_stream():
    got = []

    def read():
        for chunk in ask(model=mock("die-5"), stream=True):
            got.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    error = raises(openai.APIError, read, code="upstream_invalid" if PURPOSE else None)
    expect("".join(got) == "The gate opens for those", got)
    return shown(error)


@checks.check(needs=["PURPOSE"])
def purpose_missing():
    error = raises(openai.BadRequestError, lambda: ask(client(None)), code="purpose_missing", says="portcullis-purpose")
    expect(error.type == "invalid_request_error" and error.request_id, error)
    expect(error.response.headers["portcullis-reason"] == "purpose_missing", "portcullis-reason")
    return shown(error)


@checks.check(needs=["PURPOSE", "PURPOSE_DENIED"])
def purpose_not_permitted():
    refused = client(os.environ["PURPOSE_DENIED"])
    error = raises(openai.PermissionDeniedError, lambda: ask(refused), code="purpose_not_permitted")
    expect(error.type == "permission_error", error.type)
    raises(openai.PermissionDeniedError, lambda: ask(refused, stream=True), code="purpose_not_permitted")
    return shown(error)


@checks.check(needs=["PURPOSE", "MODEL_DENIED"])
def model_not_permitted():
    denied = os.environ["MODEL_DENIED"]
    error = raises(openai.PermissionDeniedError, lambda: ask(model=denied), code="model_not_permitted")
    expect(error.param == "model", error.param)
    return shown(error)


@checks.check(needs=["PURPOSE", "PURPOSE_LIMITED"])
def rate_limited():
    limited = os.environ["PURPOSE_LIMITED"]
    ask(client(limited, retries=3))
    error = raises(openai.RateLimitError, lambda: ask(client(limited)), code="rate_limit_exceeded")
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

    error = raises(openai.RateLimitError, twice, code="insufficient_quota")
    expect(error.type == "insufficient_quota", error.type)
    expect(error.response.headers["x-should-retry"] == "false", "x-should-retry")
    expect(time.monotonic() - began < 2, "the SDK slept or tried again")
    return shown(error)


@checks.check(needs=["PURPOSE", "CERT"])
def certificate_missing():
    return shown(raises(openai.APIConnectionError, lambda: ask(client(with_certificate=False))))


checks.done()
