// Refusals, as the client's error classes.
import assert from 'node:assert/strict';

import OpenAI from 'openai';

const hello = { model: 'demo', messages: [{ role: 'user', content: 'Hello.' }] };

/** Expects `promise` to fail with the class, status and texts. */
async function refused(promise, Class, { status, message, param, code }) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof Class, `${error.constructor.name}: ${error.message}`);
    assert.equal(error.status, status);
    if (message) assert.match(error.message, message);
    if (param !== undefined) assert.equal(error.param, param);
    if (code !== undefined) assert.equal(error.code, code);
    assert.equal(typeof error.type, 'string');
    return true;
  });
}

export const errorTests = [
  ['errors: 400', async ({ openai }) => {
    const chat = (fields) => openai.chat.completions.create({ ...hello, ...fields });
    const bad = (fields, message, param) =>
      refused(chat(fields), OpenAI.BadRequestError, { status: 400, message, param });
    await bad({ temperature: -1 }, /temperature/, 'temperature');
    await bad({ temperature: 'hot' }, /temperature/, 'temperature');
    await bad({ top_p: 2 }, /top_p/, 'top_p');
    await bad({ n: 0 }, /n/, 'n');
    await bad({ max_tokens: 0 }, /max_tokens/);
    await bad({ top_logprobs: 3 }, /logprobs/);
    await bad({ messages: [] }, /messages/);
    await bad({ messages: [{ role: 'wizard', content: 'x' }] }, /role/);
    await bad({ stop: ['a', ''] }, /stop/);
    await bad({ response_format: { type: 'json_schema' } }, /json_schema/);
    await bad({ tool_choice: 'required' }, /tool/);
    await bad({ temperature: -1, stream: true }, /temperature/, 'temperature');
  }],

  ['errors: a prompt that is too long', async ({ openai }) => {
    const content = 'word '.repeat(20_000);
    await refused(openai.chat.completions.create({ ...hello, messages: [{ role: 'user', content }] }),
      OpenAI.BadRequestError, { status: 400, message: /16384/ });
  }],

  ['errors: 401', async ({ busy, client }) => {
    await refused(client(busy, { apiKey: 'sk-wrong' }).models.list(), OpenAI.AuthenticationError,
      { status: 401, code: 'invalid_api_key' });
    assert.equal((await client(busy).models.list()).data.length, 1);
    assert.equal((await fetch(`${busy.url}/health`)).status, 200);
  }],

  ['errors: 404', async ({ openai }) => {
    await refused(openai.chat.completions.create({ ...hello, model: 'gpt-17' }), OpenAI.NotFoundError,
      { status: 404, message: /gpt-17/, code: 'model_not_found' });
    await refused(openai.embeddings.create({ model: 'demo', input: 'x' }), OpenAI.NotFoundError, { status: 404 });
    await refused(openai.models.retrieve('gpt-17'), OpenAI.NotFoundError, { status: 404 });
  }],

  ['errors: 413', async ({ openai }) => {
    const content = 'x'.repeat(80 << 20);
    await refused(openai.chat.completions.create({ ...hello, messages: [{ role: 'user', content }] }),
      OpenAI.APIError, { status: 413 });
  }],

  ['errors: 429 and retrying', async ({ busy, key, client }) => {
    const slow = { ...hello, stream: true, ignore_eos: true, max_tokens: 4000 };
    const controller = new AbortController();
    const headers = { Authorization: `Bearer ${key}` };
    const first = await client(busy).chat.completions.create(slow, { signal: controller.signal });
    await busy.reaches('vllm:num_requests_running', 1, { headers });
    const waiting = Promise.allSettled(
      [client(busy).chat.completions.create(slow, { signal: controller.signal })]);
    await busy.reaches('vllm:num_requests_waiting', 1, { headers });
    const begin = performance.now();
    await assert.rejects(client(busy).chat.completions.create(hello), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError, `${error.constructor.name}: ${error.message}`);
      assert.ok(Number(error.headers.get('retry-after')) >= 1);
      return true;
    });
    assert.ok(performance.now() - begin < 1000);
    // Told to come again, the client does, and is served once there is room.
    const retried = client(busy, { maxRetries: 5 }).chat.completions.create(
      { ...hello, ignore_eos: true, max_tokens: 3 });
    setTimeout(() => controller.abort(), 300);
    const ended = (async () => { for await (const _ of first); })();
    assert.equal((await retried).usage.completion_tokens, 3);
    await Promise.all([ended, waiting]);
    await busy.reaches('vllm:num_requests_running', 0, { headers });
  }],
];
