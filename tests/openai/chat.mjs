// Chats: whole, streamed, aborted; reasoning, logprobs, n, stop, limits.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

const hello = { model: 'demo', temperature: 0, messages: [{ role: 'user', content: 'Hello.' }] };
const story = {
  model: 'demo', messages: [{ role: 'user', content: 'Write a short story with Luke and a ball.' }],
};
const sum = {
  model: 'demo', temperature: 0, chat_template_kwargs: { enable_thinking: true },
  messages: [{ role: 'user', content: 'There are 9 boxes with 3 coins in each. How many coins are there in all?' }],
};
const endless = { ...story, temperature: 1, ignore_eos: true, max_tokens: 8000 };

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}
const joined = (chunks, field, index = 0) =>
  chunks.flatMap((c) => c.choices).filter((c) => c.index === index).map((c) => c.delta[field] ?? '').join('');

export const chatTests = [
  ['models', async ({ openai }) => {
    const list = await openai.models.list();
    assert.deepEqual(list.data.map((model) => model.id), ['demo']);
    assert.equal(list.data[0].object, 'model');
    assert.equal((await openai.models.retrieve('demo')).id, 'demo');
  }],

  ['chat', async ({ openai }) => {
    const answer = await openai.chat.completions.create(hello);
    assert.match(answer.id, /^chatcmpl-/);
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.model, 'demo');
    assert.ok(Math.abs(answer.created - Date.now() / 1000) < 60);
    assert.equal(answer.choices.length, 1);
    const [choice] = answer.choices;
    assert.equal(choice.index, 0);
    assert.equal(choice.finish_reason, 'stop');
    assert.equal(choice.message.role, 'assistant');
    assert.match(choice.message.content, /^Hello! /);
    assert.equal(choice.message.tool_calls, undefined);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.equal(answer.usage.completion_tokens_details.reasoning_tokens, 0);
  }],

  ['chat: messages of several parts and roles', async ({ openai }) => {
    const answer = await openai.chat.completions.create({
      ...hello,
      messages: [
        { role: 'system', content: 'You are kind.' },
        { role: 'user', content: [{ type: 'text', text: 'Hello.' }] },
        { role: 'assistant', content: 'Hello! How can I help you?' },
        { role: 'user', content: 'Hello.' },
      ],
    });
    assert.ok(answer.choices[0].message.content.length > 0);
  }],

  ['chat: request id and headers', async ({ openai }) => {
    const { data, response, request_id: id } = await openai.chat.completions
      .create(hello, { headers: { 'X-Request-Id': 'req-7' } }).withResponse();
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('content-type').split(';')[0], 'application/json');
    assert.equal(id, 'req-7');
    assert.equal(data._request_id, 'req-7');
  }],

  ['stream', async ({ openai }) => {
    const whole = await openai.chat.completions.create(hello);
    const chunks = await collect(await openai.chat.completions.create(
      { ...hello, stream: true, stream_options: { include_usage: true } }));
    assert.equal(new Set(chunks.map((c) => c.id)).size, 1);
    assert.ok(chunks.every((c) => c.object === 'chat.completion.chunk' && c.model === 'demo'));
    assert.equal(chunks[0].choices[0].delta.role, 'assistant');
    assert.ok(chunks.slice(1).every((c) => c.choices[0]?.delta.role === undefined));
    const last = chunks.pop();
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
    assert.equal(last.usage.prompt_tokens, whole.usage.prompt_tokens);
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
    assert.ok(chunks.slice(0, -1).every((c) => c.choices[0].finish_reason === null && c.usage == null));
    assert.equal(joined(chunks, 'content'), whole.choices[0].message.content);
    assert.ok(chunks.length > 4);
  }],

  ['stream: usage in every chunk', async ({ openai }) => {
    const chunks = await collect(await openai.chat.completions.create(
      { ...hello, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } }));
    assert.ok(chunks.every((c) => c.usage.total_tokens >= c.usage.prompt_tokens));
    const counts = chunks.map((c) => c.usage.completion_tokens);
    assert.deepEqual(counts, [...counts].sort((a, b) => a - b));
  }],

  ["stream: the client's helper", async ({ openai }) => {
    const whole = await openai.chat.completions.create(hello);
    const stream = openai.chat.completions.stream({ ...hello, stream_options: { include_usage: true } });
    let seen = '';
    stream.on('content', (delta, snapshot) => {
      seen += delta;
      assert.equal(seen, snapshot);
    });
    const final = await stream.finalChatCompletion();
    assert.equal(seen, whole.choices[0].message.content);
    assert.equal(final.choices[0].message.content, seen);
    assert.equal(final.choices[0].finish_reason, 'stop');
    assert.equal((await stream.totalUsage()).total_tokens, whole.usage.total_tokens);
  }],

  ['stream: pieces come one by one', async ({ openai }) => {
    const times = [];
    const stream = await openai.chat.completions.create({ ...story, stream: true, max_tokens: 40, ignore_eos: true });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) times.push(performance.now());
    assert.ok(new Set(times.map((t) => Math.round(t * 10))).size > times.length / 6, 'the pieces came in bulk');
  }],

  ['reasoning', async ({ openai }) => {
    const whole = await openai.chat.completions.create(sum);
    const { message } = whole.choices[0];
    assert.match(message.reasoning_content, /9/);
    assert.equal(message.reasoning, message.reasoning_content);
    assert.match(message.content, /^27/);
    assert.doesNotMatch(message.content + message.reasoning, /think>/);
    const thought = whole.usage.completion_tokens_details.reasoning_tokens;
    assert.ok(thought > 0 && thought < whole.usage.completion_tokens);
    const chunks = await collect(await openai.chat.completions.create({ ...sum, stream: true }));
    assert.equal(joined(chunks, 'reasoning_content'), message.reasoning_content);
    assert.equal(joined(chunks, 'reasoning'), message.reasoning);
    assert.equal(joined(chunks, 'content'), message.content);
  }],

  ['logprobs', async ({ openai }) => {
    const request = { ...hello, logprobs: true, top_logprobs: 3 };
    const whole = await openai.chat.completions.create(request);
    const { content } = whole.choices[0].logprobs;
    assert.equal(content.map((entry) => entry.token).join(''), whole.choices[0].message.content);
    for (const entry of content) {
      assert.ok(entry.logprob <= 0);
      assert.equal(entry.top_logprobs.length, 3);
      assert.equal(entry.top_logprobs[0].token, entry.token);  // greedy
      assert.equal(Buffer.from(entry.bytes).toString(), entry.token);
      const values = entry.top_logprobs.map((top) => top.logprob);
      assert.deepEqual(values, [...values].sort((a, b) => b - a));
    }
    const chunks = await collect(await openai.chat.completions.create({ ...request, stream: true }));
    assert.deepEqual(chunks.flatMap((c) => c.choices[0]?.logprobs?.content ?? []), content);
    const plain = await openai.chat.completions.create({ ...hello, logprobs: true });
    assert.deepEqual(plain.choices[0].logprobs.content[0].top_logprobs, []);
  }],

  ['n', async ({ openai }) => {
    const request = { ...story, n: 3, temperature: 1, seed: 5, max_tokens: 40 };
    const whole = await openai.chat.completions.create(request);
    assert.deepEqual(whole.choices.map((c) => c.index), [0, 1, 2]);
    const texts = whole.choices.map((c) => c.message.content);
    assert.equal(new Set(texts).size, 3);
    const chunks = await collect(await openai.chat.completions.create({ ...request, stream: true }));
    for (const index of [0, 1, 2]) {
      assert.equal(joined(chunks, 'content', index), texts[index]);
      const own = chunks.flatMap((c) => c.choices).filter((c) => c.index === index);
      assert.equal(own[0].delta.role, 'assistant');
      assert.equal(own.filter((c) => c.finish_reason !== null).length, 1);
    }
  }],

  ['seed', async ({ openai }) => {
    const request = { ...story, temperature: 1, seed: 11, max_tokens: 30 };
    const text = async (seed) =>
      (await openai.chat.completions.create({ ...request, seed })).choices[0].message.content;
    const [a, b, c] = await Promise.all([text(11), text(11), text(12)]);
    assert.equal(a, b);
    assert.notEqual(a, c);
  }],

  ['stop', async ({ openai }) => {
    const free = (await openai.chat.completions.create(hello)).choices[0].message.content;
    const stop = free.slice(8, 11);
    for (const given of [stop, ['never there', stop]]) {
      const answer = await openai.chat.completions.create({ ...hello, stop: given });
      assert.equal(answer.choices[0].finish_reason, 'stop');
      assert.equal(answer.choices[0].message.content, free.slice(0, 8));
      const chunks = await collect(await openai.chat.completions.create({ ...hello, stop: given, stream: true }));
      assert.equal(joined(chunks, 'content'), free.slice(0, 8));
    }
  }],

  ['length', async ({ openai }) => {
    for (const limit of ['max_tokens', 'max_completion_tokens']) {
      const answer = await openai.chat.completions.create({ ...story, [limit]: 5 });
      assert.equal(answer.choices[0].finish_reason, 'length');
      assert.equal(answer.usage.completion_tokens, 5);
    }
  }],

  ['logit bias', async ({ openai }) => {
    const free = await openai.chat.completions.create(
      { ...hello, max_tokens: 1, return_token_ids: true });
    const [first] = free.choices[0].token_ids;
    const other = await openai.chat.completions.create({ ...hello, max_tokens: 1, logit_bias: { [first]: -100 } });
    assert.notEqual(other.choices[0].message.content, free.choices[0].message.content);
  }],

  ['abort: a stream', async ({ demo, openai }) => {
    const controller = new AbortController();
    const stream = await openai.chat.completions.create({ ...endless, stream: true }, { signal: controller.signal });
    let count = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content && ++count === 3) {
        assert.equal(await demo.metric('vllm:num_requests_running'), 1);
        controller.abort();
      }
    }
    assert.ok(await demo.reaches('vllm:num_requests_running', 0) < 500);
  }],

  ['abort: leaving the loop', async ({ demo, openai }) => {
    for await (const chunk of await openai.chat.completions.create({ ...endless, stream: true })) {
      if (chunk.choices[0].delta.content) break;
    }
    assert.ok(await demo.reaches('vllm:num_requests_running', 0) < 500);
  }],

  ["abort: the helper's stream", async ({ demo, openai }) => {
    const stream = openai.chat.completions.stream(endless);
    stream.once('content', () => stream.abort());
    await assert.rejects(stream.done(), (error) => error.constructor.name === 'APIUserAbortError');
    assert.ok(await demo.reaches('vllm:num_requests_running', 0) < 500);
  }],

  ['abort: a whole answer', async ({ demo, openai }) => {
    const controller = new AbortController();
    const answer = openai.chat.completions.create(endless, { signal: controller.signal });
    await demo.reaches('vllm:num_requests_running', 1);
    await sleep(50);
    controller.abort();
    await assert.rejects(answer, (error) => error.constructor.name === 'APIUserAbortError');
    assert.ok(await demo.reaches('vllm:num_requests_running', 0) < 500);
  }],

  ["abort: the client's timeout", async ({ demo, client }) => {
    await assert.rejects(client(demo, { timeout: 300 }).chat.completions.create(endless),
      (error) => error.constructor.name === 'APIConnectionTimeoutError');
    assert.ok(await demo.reaches('vllm:num_requests_running', 0) < 500);
  }],

  ['many at once give what each gives alone', async ({ openai }) => {
    const request = (i) => ({ ...story, temperature: 1, seed: i, max_tokens: 10 + i });
    const text = async (i) => (await openai.chat.completions.create(request(i))).choices[0].message.content;
    const alone = [];
    for (let i = 0; i < 8; ++i) alone.push(await text(i));
    assert.deepEqual(await Promise.all(alone.map((_, i) => text(i))), alone);
  }],
];
