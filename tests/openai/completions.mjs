// The older completions API.
import assert from 'node:assert/strict';

const base = { model: 'demo', temperature: 0, max_tokens: 8, prompt: 'Luke was a singer who' };

export const completionTests = [
  ['completions', async ({ openai }) => {
    const answer = await openai.completions.create(base);
    assert.match(answer.id, /^cmpl-/);
    assert.equal(answer.object, 'text_completion');
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(answer.usage.completion_tokens, 8);
    assert.equal(answer.choices[0].logprobs, null);
  }],

  ['completions: streamed', async ({ openai }) => {
    const whole = await openai.completions.create(base);
    let text = '';
    let usage;
    const stream = await openai.completions.create({ ...base, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.text ?? '';
      usage = chunk.usage;
    }
    assert.equal(text, whole.choices[0].text);
    assert.deepEqual(usage.completion_tokens, 8);
  }],

  ['completions: several prompts, token ids, n', async ({ demo, openai }) => {
    const one = await openai.completions.create(base);
    const { tokens } = await (await fetch(`${demo.url}/tokenize`, {
      method: 'POST', headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ model: 'demo', prompt: base.prompt }),
    })).json();
    const ids = await openai.completions.create({ ...base, prompt: tokens });
    assert.equal(ids.choices[0].text, one.choices[0].text);
    const several = await openai.completions.create({ ...base, prompt: [base.prompt, 'A friend called'], n: 2 });
    assert.deepEqual(several.choices.map((c) => c.index), [0, 1, 2, 3]);
    assert.equal(several.choices[0].text, one.choices[0].text);
    assert.equal(several.choices[1].text, one.choices[0].text);
  }],

  ['completions: echo and logprobs', async ({ openai }) => {
    const answer = await openai.completions.create({ ...base, echo: true, logprobs: 2 });
    const { logprobs, text } = answer.choices[0];
    assert.ok(text.startsWith(base.prompt));
    assert.equal(logprobs.tokens.join(''), text);
    assert.equal(logprobs.token_logprobs[0], null);
    assert.equal(logprobs.token_logprobs.length, logprobs.tokens.length);
    assert.deepEqual(logprobs.text_offset.slice(0, 2), [0, logprobs.tokens[0].length]);
    assert.ok(logprobs.token_logprobs.slice(1).every((value) => value <= 0));
  }],
];
