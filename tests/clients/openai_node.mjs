// The OpenAI SDK for Node, used as its own documentation says: plain, streamed, refused, limited, cut.

import OpenAI from 'openai';
import { VERSION } from 'openai/version';
import { checks, expect, headers, mock, MODEL, PURPOSE, raises, SAY, shown, TEXT, transport, URL } from './checks.mjs';

const env = process.env;
const { check, done } = checks(`openai-node ${VERSION}`);

const client = (purpose = PURPOSE, { retries = 0, ...more } = {}) =>
  new OpenAI({
    baseURL: `${URL}/v1`,
    apiKey: 'unused',
    defaultHeaders: headers(purpose),
    maxRetries: retries,
    ...transport(more),
  });

const ai = client();
const ask = (one = ai, more = {}) => one.chat.completions.create({ model: MODEL, messages: SAY, ...more });

async function said(stream, got = []) {
  for await (const chunk of await stream) got.push(...chunk.choices.map((choice) => choice.delta.content ?? ''));
  return got.join('');
}

await check('plain', [], async () => {
  const { data, response, request_id } = await ask().withResponse();
  expect(data.choices[0].message.content === TEXT, data);
  expect(data.usage.completion_tokens === 16, data.usage);
  expect(request_id && request_id === response.headers.get('x-request-id'), 'no request id');
  return data.choices[0].message.content;
});

await check('streamed', [], async () => {
  const chunks = [];
  for await (const chunk of await ask(ai, { stream: true })) chunks.push(chunk);
  expect(chunks.every((chunk) => chunk.choices.length && !chunk.usage), 'a usage chunk that nobody asked for');
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join('');
  expect(text === TEXT, text);
  return `${chunks.length} chunks`;
});

await check('streamed_with_usage', [], async () => {
  const usage = [];
  const more = { stream: true, stream_options: { include_usage: true }, n: 2, max_tokens: 4 };
  for await (const chunk of await ask(ai, more)) if (chunk.usage) usage.push(chunk.usage);
  expect(usage.length === 1 && usage[0].completion_tokens === 8, usage);
  return `${usage[0].total_tokens} tokens`;
});

await check('responses', [], async () => {
  const answer = await ai.responses.create({ model: MODEL, input: 'Who may pass?' });
  expect(answer.output_text === TEXT && answer.usage.output_tokens === 16, answer);
  const final = await ai.responses.stream({ model: MODEL, input: 'Who may pass?' }).finalResponse();
  expect(final.output_text === TEXT, final);
  return final.id;
});

await check('embeddings', [], async () => {
  const { data } = await ai.embeddings.create({ model: MODEL, input: ['a', 'b'] });
  expect(data.length === 2 && data[0].embedding[0] === 0.5, data);
  return `${data[0].embedding.length} numbers`;
});

await check('models', [], async () => {
  const names = [];
  for await (const model of ai.models.list()) names.push(model.id);
  expect(names.includes(MODEL), names);
  return names;
});

await check('upstream_error_unchanged', [], async () => {
  const call = () => ask(ai, { model: mock('fail-429') });
  return shown(await raises(OpenAI.RateLimitError, call, { code: 'rate_limit_exceeded', says: 'as it was told to' }));
});

await check('upstream_error_mid_stream', [], async () => {
  const call = () => said(ask(ai, { model: mock('error-5'), stream: true }));
  return shown(await raises(OpenAI.APIError, call, { says: 'had an error' }));
});

await check('upstream_dies_mid_stream', [], async () => {
  const got = [];
  const call = () => said(ask(ai, { model: mock('die-5'), stream: true }), got);
  const error = await raises(PURPOSE ? OpenAI.APIError : Error, call, PURPOSE ? { code: 'upstream_invalid' } : {});
  expect(got.join('') === 'The gate opens for those', got);
  return shown(error);
});

await check('purpose_missing', ['PURPOSE'], async () => {
  const call = () => ask(client(null));
  const error = await raises(OpenAI.BadRequestError, call, { code: 'purpose_missing', says: 'portcullis-purpose' });
  expect(error.type === 'invalid_request_error' && error.requestID, error);
  expect(error.headers.get('portcullis-reason') === 'purpose_missing', 'portcullis-reason');
  return shown(error);
});

await check('purpose_not_permitted', ['PURPOSE', 'PURPOSE_DENIED'], async () => {
  const call = () => ask(client(env.PURPOSE_DENIED), { stream: true });
  const error = await raises(OpenAI.PermissionDeniedError, call, { code: 'purpose_not_permitted' });
  expect(error.type === 'permission_error', error.type);
  return shown(error);
});

await check('model_not_permitted', ['PURPOSE', 'MODEL_DENIED'], async () => {
  const call = () => ask(ai, { model: env.MODEL_DENIED });
  return shown(await raises(OpenAI.PermissionDeniedError, call, { code: 'model_not_permitted' }));
});

await check('rate_limited', ['PURPOSE', 'PURPOSE_LIMITED'], async () => {
  await ask(client(env.PURPOSE_LIMITED, { retries: 3 }));
  const call = () => ask(client(env.PURPOSE_LIMITED));
  const error = await raises(OpenAI.RateLimitError, call, { code: 'rate_limit_exceeded' });
  const wait = Number(error.headers.get('retry-after'));
  expect(wait >= 1 && wait <= 5, `retry-after ${wait}`);
  await ask(client(env.PURPOSE_LIMITED, { retries: 1 }));
  return shown(error);
});

await check('budget_spent', ['PURPOSE', 'PURPOSE_SPENT'], async () => {
  const spent = client(env.PURPOSE_SPENT, { retries: 2 });
  const began = performance.now();
  const call = async () => {
    await ask(spent);
    await ask(spent);
  };
  const error = await raises(OpenAI.RateLimitError, call, { code: 'insufficient_quota' });
  expect(error.headers.get('x-should-retry') === 'false', 'x-should-retry');
  expect(performance.now() - began < 2000, 'the SDK slept or tried again');
  return shown(error);
});

await check('certificate_missing', ['PURPOSE', 'CERT'], async () =>
  shown(await raises(OpenAI.APIConnectionError, () => ask(client(PURPOSE, { withCertificate: false })))),
);

done();
