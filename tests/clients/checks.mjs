// What the Node client checks share: the environment (see checks.py), one JSON line a check, the exit code.

import { readFileSync } from 'node:fs';
import { Agent, fetch } from 'undici';

const env = process.env;
export const URL = env.GATEWAY_URL.replace(/\/+$/, '');
export const PURPOSE = env.PURPOSE;
export const MODEL = env.MODEL ?? 'mock-1';
export const CLAUDE_MODEL = env.CLAUDE_MODEL ?? 'claude-mock-1';
export const TEXT = 'The gate opens for those who say what for, and stays shut for all others.';
export const SAY = [{ role: 'user', content: 'Who may pass?' }];

export const headers = (purpose) => (purpose ? { 'portcullis-purpose': purpose } : {});

/** What a partner's program hands to an SDK: fetch and dispatcher from the same undici. */
export function transport({ withCertificate = true, h2 = false } = {}) {
  if (!URL.startsWith('https:')) return { fetch };
  const pem = (name) => readFileSync(env[name]);
  const certificate = withCertificate ? { cert: pem('CERT'), key: pem('KEY') } : {};
  return { fetch, fetchOptions: { dispatcher: new Agent({ allowH2: h2, connect: { ca: pem('CA'), ...certificate } }) } };
}

/** A mock model that misbehaves: mock('die-5') is "mock-die-5". */
export const mock = (words, model = MODEL) => model.replace(/1$/, '') + words;

export function expect(condition, what) {
  if (!condition) throw new Error(typeof what === 'string' ? what : JSON.stringify(what));
}

export const codeOf = (error) => error.error?.error?.code ?? error.error?.code ?? error.code;
export const shown = (error) => `${error.constructor.name}: ${error.message}`;

/** Calls, and returns the exception of that class that a user would see. */
export async function raises(kind, call, { code, says } = {}) {
  let error;
  try {
    await call();
  } catch (caught) {
    error = caught;
  }
  expect(error, `no ${kind.name}`);
  expect(error instanceof kind, `${shown(error)} instead of ${kind.name}`);
  expect(code === undefined || codeOf(error) === code, `code ${codeOf(error)}, not ${code}: ${error.message}`);
  expect(says === undefined || error.message.includes(says), `'${says}' is not in what the user reads: ${error.message}`);
  return error;
}

export function checks(client) {
  let failed = false;
  return {
    /** Runs one check at once; it returns what a user would see. `needs` names the environment. */
    async check(name, needs, body) {
      const missing = needs.filter((variable) => !env[variable]);
      const line = { client, check: name };
      const began = performance.now();
      if (missing.length) {
        Object.assign(line, { ok: env.CHECK_ALL !== '1', skipped: `${missing.join(', ')} not set` });
      } else {
        try {
          Object.assign(line, { ok: true, seen: await body() });
        } catch (error) {
          Object.assign(line, { ok: false, error: shown(error) });
        }
      }
      line.seconds = Math.round(performance.now() - began) / 1000;
      failed ||= !line.ok;
      console.log(JSON.stringify(line));
    },
    done: () => process.exit(failed ? 1 : 0),
  };
}
