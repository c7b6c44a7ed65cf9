// The Anthropic SDK for Node, used as its own documentation says: plain, streamed, refused, limited, cut.

import Anthropic from '@anthropic-ai/sdk';
import { readFileSync } from 'node:fs';
import { checks, CLAUDE_MODEL, expect, headers, mock, PURPOSE, raises, SAY, shown, TEXT, transport, URL } from './checks.mjs';

const env = process.env;
const manifest = new globalThis.URL('./node_modules/@anthropic-ai/sdk/package.json', import.meta.url);
const { check, done } = checks(`anthropic-node ${JSON.parse(readFileSync(manifest)).version}`);

const client = (purpose = PURPOSE, { retries = 0, ...more } = {}) =>
  new Anthropic({
    baseURL: URL,
    apiKey: 'unused',
    defaultHeaders: headers(purpose),
    maxRetries: retries,
    ...transport(more),
  });

const ai = client();
const ask = (one = ai, more = {}) => one.messages.create({ model: CLAUDE_MODEL, max_tokens: 64, messages: SAY, ...more });

async function said(stream, got = []) {
  for await (const event of await stream) if (event.type === 'content_block_delta') got.push(event.delta.text);
  return got.join('');
}

await check('plain', [], async () => {
  const { data, response, request_id } = await ask().withResponse();
  expect(data.content[0].text === TEXT && data.stop_reason === 'end_turn', data);
  expect(data.usage.output_tokens === 16, data.usage);
  expect(request_id && request_id === response.headers.get('request-id'), 'no request id');
  return data.content[0].text;
});

await check('streamed', [], async () => {
  expect((await said(ask(ai, { stream: true }))) === TEXT, 'the text');
  const final = await ai.messages.stream({ model: CLAUDE_MODEL, max_tokens: 4, messages: SAY }).finalMessage();
  expect(final.content[0].text === 'The gate opens for' && final.usage.output_tokens === 4, final);
  return final.content[0].text;
});

await check('tokens_counted', [], async () => {
  const { input_tokens } = await ai.messages.countTokens({ model: CLAUDE_MODEL, messages: SAY });
  expect(input_tokens === 4, input_tokens);
  return input_tokens;
});

await check('models', [], async () => {
  const names = [];
  for await (const model of ai.models.list({ limit: 1000 })) names.push(model.id);
  expect(names.includes(CLAUDE_MODEL) || !PURPOSE, names);
  return names;
});

await check('upstream_error_unchanged', [], async () => {
  const call = () => ask(ai, { model: mock('fail-529', CLAUDE_MODEL) });
  const error = await raises(Anthropic.APIError, call, { says: 'as it was told to' });
  expect(error.status === 529, error.status);
  return shown(error);
});

await check('upstream_error_mid_stream', [], async () => {
  const call = () => said(ask(ai, { model: mock('error-5', CLAUDE_MODEL), stream: true }));
  return shown(await raises(Anthropic.APIError, call, { says: 'overloaded_error' }));
});

await check('upstream_dies_mid_stream', [], async () => {
  const got = [];
  const call = () => said(ask(ai, { model: mock('die-5', CLAUDE_MODEL), stream: true }), got);
  const error = await raises(PURPOSE ? Anthropic.APIError : Error, call, PURPOSE ? { code: 'upstream_invalid' } : {});
  expect(got.join('') === 'The gate opens for those', got);
  return shown(error);
});

await check('purpose_missing', ['PURPOSE'], async () => {
  const call = () => ask(client(null));
  const error = await raises(Anthropic.BadRequestError, call, { code: 'purpose_missing', says: 'portcullis-purpose' });
  expect(error.requestID, 'no request id');
  return shown(error);
});

await check('purpose_not_permitted', ['PURPOSE', 'PURPOSE_DENIED'], async () => {
  const call = () => ask(client(env.PURPOSE_DENIED), { stream: true });
  return shown(await raises(Anthropic.PermissionDeniedError, call, { code: 'purpose_not_permitted' }));
});

await check('model_not_permitted', ['PURPOSE', 'CLAUDE_MODEL_DENIED'], async () => {
  const call = () => ask(ai, { model: env.CLAUDE_MODEL_DENIED });
  return shown(await raises(Anthropic.PermissionDeniedError, call, { code: 'model_not_permitted' }));
});

await check('rate_limited', ['PURPOSE', 'PURPOSE_LIMITED'], async () => {
  await ask(client(env.PURPOSE_LIMITED, { retries: 3 }));
  const call = () => ask(client(env.PURPOSE_LIMITED));
  const error = await raises(Anthropic.RateLimitError, call, { code: 'rate_limit_exceeded' });
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
  const error = await raises(Anthropic.RateLimitError, call, { code: 'insufficient_quota' });
  expect(error.headers.get('x-should-retry') === 'false', 'x-should-retry');
  expect(performance.now() - began < 2000, 'the SDK slept or tried again');
  return shown(error);
});

await check('certificate_missing', ['PURPOSE', 'CERT'], async () =>
  shown(await raises(Anthropic.APIConnectionError, () => ask(client(PURPOSE, { withCertificate: false })))),
);

done();
