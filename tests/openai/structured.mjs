// Structured output: every answer validates.
import assert from 'node:assert/strict';

import { Ajv2020 } from 'ajv/dist/2020.js';

const schema = {
  type: 'object',
  properties: {
    city: { type: 'string', maxLength: 20 },
    degrees: { type: 'integer', minimum: -50, maximum: 60 },
    weather: { enum: ['warm', 'cold', 'windy'] },
    tags: { type: 'array', items: { type: 'string', maxLength: 8 }, minItems: 1, maxItems: 3 },
  },
  required: ['city', 'degrees', 'weather', 'tags'],
  additionalProperties: false,
};
const format = { type: 'json_schema', json_schema: { name: 'forecast', strict: true, schema } };
const request = {
  model: 'demo', temperature: 1, max_tokens: 400,
  messages: [{ role: 'user', content: 'Answer with a JSON object with the keys city, day and weather: ' +
    'Quito will be warm on Sunday, 22 degrees.' }],
};
const validate = new Ajv2020().compile(schema);

function check(text) {
  assert.ok(validate(JSON.parse(text)), `${text}: ${JSON.stringify(validate.errors)}`);
}

export const structuredTests = [
  ['JSON schema', async ({ openai }) => {
    const answers = await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map((seed) =>
      openai.chat.completions.create({ ...request, seed, response_format: format })));
    for (const answer of answers) {
      assert.equal(answer.choices[0].finish_reason, 'stop');
      check(answer.choices[0].message.content);
    }
  }],

  ["JSON schema: the client's parse()", async ({ openai }) => {
    const answer = await openai.chat.completions.parse({ ...request, response_format: format });
    check(answer.choices[0].message.content);
  }],

  ['JSON schema: streamed', async ({ openai }) => {
    const stream = openai.chat.completions.stream({ ...request, seed: 3, response_format: format });
    check(await stream.finalContent());
  }],

  ['JSON schema: after reasoning', async ({ openai }) => {
    const answer = await openai.chat.completions.create({
      ...request, temperature: 0, response_format: format, max_tokens: 1500,
      chat_template_kwargs: { enable_thinking: true },
    });
    const { message, finish_reason: reason } = answer.choices[0];
    assert.ok(message.reasoning_content !== null);
    if (reason === 'stop') check(message.content);
  }],

  ['JSON object', async ({ openai }) => {
    for (const seed of [1, 2, 3]) {
      const answer = await openai.chat.completions.create(
        { ...request, seed, temperature: 0, response_format: { type: 'json_object' } });
      assert.equal(typeof JSON.parse(answer.choices[0].message.content), 'object');
    }
  }],

  ['choice and regex', async ({ openai }) => {
    const choice = await openai.chat.completions.create(
      { ...request, structured_outputs: { choice: ['red', 'green'] } });
    assert.match(choice.choices[0].message.content, /^(red|green)$/);
    const regex = await openai.chat.completions.create(
      { ...request, structured_outputs: { regex: '[a-f]{3}-\\d{2}' } });
    assert.match(regex.choices[0].message.content, /^[a-f]{3}-\d{2}$/);
  }],

  ['JSON schema: an unknown keyword is refused by name', async ({ openai }) => {
    await assert.rejects(
      openai.chat.completions.create({ ...request, response_format: { type: 'json_schema', json_schema: {
        name: 'x', schema: { type: 'object', unevaluatedProperties: false, not: { type: 'string' } } } } }),
      (error) => error.status === 400 && /not|unevaluatedProperties/.test(error.message));
  }],
];
