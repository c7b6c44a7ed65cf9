// undici alone, over HTTP/1.1 and HTTP/2: many streams at once on few connections, and one that is left early.

import { readFileSync } from 'node:fs';
import { checks, expect, headers, mock, MODEL, PURPOSE, SAY, TEXT, transport, URL } from './checks.mjs';

const manifest = new globalThis.URL('./node_modules/undici/package.json', import.meta.url);
const { check, done } = checks(`undici ${JSON.parse(readFileSync(manifest)).version}`);

const post = ({ fetch, fetchOptions }, body, more = {}) =>
  fetch(`${URL}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers(PURPOSE) },
    body: JSON.stringify({ model: MODEL, messages: SAY, stream: true, ...body }),
    ...fetchOptions,
    ...more,
  });

function textOf(stream) {
  const events = stream.split('\n\n').filter(Boolean);
  expect(events.at(-1) === 'data: [DONE]', events.at(-1));
  const chunks = events.slice(0, -1).map((event) => JSON.parse(event.replace(/^data: /, '')));
  return chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
}

for (const h2 of URL.startsWith('https:') ? [false, true] : [false]) {
  const protocol = h2 ? 'h2' : 'h1';
  const way = transport({ h2 });

  await check(`${protocol}_many_streams`, [], async () => {
    const one = async () => textOf(await (await post(way)).text());
    const texts = await Promise.all(Array.from({ length: 50 }, one));
    expect(texts.every((text) => text === TEXT), texts);
    return `${texts.length} streams`;
  });

  await check(`${protocol}_left_early`, [], async () => {
    const leaving = new AbortController();
    const response = await post(way, { model: mock('stall-5') }, { signal: leaving.signal });
    const reader = response.body.getReader();
    const first = await reader.read();
    expect(first.value?.length > 0, 'no first frame');
    leaving.abort();
    expect(textOf(await (await post(way)).text()) === TEXT, 'the next request on the same agent');
    return 'left after the first frame';
  });
}

done();
