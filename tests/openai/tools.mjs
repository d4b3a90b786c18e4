// Tool calls: chosen by the model, required, named; streamed; answered.
import assert from 'node:assert/strict';

import { Ajv2020 } from 'ajv/dist/2020.js';

const tool = (name, description, properties) => ({
  type: 'function',
  function: { name, description,
    parameters: { type: 'object', properties, required: Object.keys(properties), additionalProperties: false } },
});
const tools = [
  tool('send_message', 'Send a message to a person.', { to: { type: 'string' }, text: { type: 'string' } }),
  tool('get_weather', 'Get the weather of a city.', { city: { type: 'string' } }),
  tool('set_timer', 'Start a timer.', { minutes: { type: 'integer' } }),
  tool('get_time', 'Get the local time of a city.', { city: { type: 'string' } }),
];
const weather = {
  model: 'demo', temperature: 0, seed: 1, tools,  // ids of calls come from the seed
  messages: [{ role: 'user', content: 'What is the weather in Berlin?' }],
};
const ajv = new Ajv2020();

function check(call) {
  assert.match(call.id, /^call_/);
  assert.equal(call.type, 'function');
  const { parameters } = tools.find((t) => t.function.name === call.function.name).function;
  assert.ok(ajv.validate(parameters, JSON.parse(call.function.arguments)), call.function.arguments);
}

/** The message as a client without helpers puts it together. */
async function assemble(stream) {
  const out = { content: '', tool_calls: [], finish: null };
  for await (const chunk of stream) {
    const [choice] = chunk.choices;
    out.content += choice.delta.content ?? '';
    for (const piece of choice.delta.tool_calls ?? []) {
      if (piece.id) {
        assert.equal(piece.index, out.tool_calls.length);
        assert.equal(piece.type, 'function');
        out.tool_calls.push({ id: piece.id, type: 'function', function: { name: piece.function.name, arguments: '' } });
      }
      assert.equal(piece.index, out.tool_calls.length - 1);
      out.tool_calls.at(-1).function.arguments += piece.function.arguments ?? '';
    }
    out.finish ??= choice.finish_reason;
  }
  return out;
}

export const toolTests = [
  ['tools: auto', async ({ openai }) => {
    const answer = await openai.chat.completions.create(weather);
    const { message, finish_reason: reason } = answer.choices[0];
    assert.equal(reason, 'tool_calls');
    assert.equal(message.content, null);
    assert.equal(message.tool_calls.length, 1);
    check(message.tool_calls[0]);
    assert.equal(message.tool_calls[0].function.name, 'get_weather');
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: 'Berlin' });
  }],

  ['tools: streamed is what is given whole', async ({ openai }) => {
    const whole = (await openai.chat.completions.create(weather)).choices[0];
    const pieces = await assemble(await openai.chat.completions.create({ ...weather, stream: true }));
    assert.deepEqual(pieces.tool_calls, whole.message.tool_calls);
    assert.equal(pieces.content, '');
    assert.equal(pieces.finish, 'tool_calls');
  }],

  ["tools: the helper's stream", async ({ openai }) => {
    const stream = openai.chat.completions.stream(weather);
    let seen = '';
    stream.on('tool_calls.function.arguments.delta', ({ arguments_delta: delta }) => (seen += delta));
    const final = await stream.finalChatCompletion();
    const [call] = final.choices[0].message.tool_calls;
    check(call);
    assert.equal(call.function.arguments, seen);
  }],

  ['tools: the answer to a call', async ({ openai }) => {
    const first = (await openai.chat.completions.create(weather)).choices[0].message;
    const answer = await openai.chat.completions.create({ ...weather, messages: [
      ...weather.messages, first,
      { role: 'tool', tool_call_id: first.tool_calls[0].id, content: '{"weather": "windy", "degrees": 12}' },
    ] });
    assert.equal(answer.choices[0].finish_reason, 'stop');
    assert.match(answer.choices[0].message.content, /windy|12/);
  }],

  ['tools: runTools()', async ({ openai }) => {
    const asked = [];
    for (const stream of [false, true]) {
      const runner = openai.chat.completions.runTools({
        ...weather, stream,
        tools: [{ type: 'function', function: { ...tools[1].function, parse: JSON.parse, function: ({ city }) => {
          asked.push(city);
          return '{"weather": "windy", "degrees": 12}';
        } } }],
      });
      assert.ok((await runner.finalContent()).length > 0);
    }
    assert.deepEqual(asked, ['Berlin', 'Berlin']);
  }],

  ['tools: required', async ({ openai }) => {
    const hello = { ...weather, tool_choice: 'required', max_tokens: 1000,
      messages: [{ role: 'user', content: 'Hello.' }] };
    for (const request of [hello, { ...hello, temperature: 1, seed: 3 }, { ...hello, parallel_tool_calls: false }]) {
      const { message, finish_reason: reason } = (await openai.chat.completions.create(request)).choices[0];
      assert.ok(message.tool_calls?.length >= 1, JSON.stringify(message));
      assert.equal(reason, 'tool_calls');
      message.tool_calls.forEach(check);
      const pieces = await assemble(await openai.chat.completions.create({ ...request, stream: true }));
      assert.deepEqual(pieces.tool_calls, message.tool_calls);
    }
  }],

  ['tools: named', async ({ openai }) => {
    for (const { function: { name } } of tools) {
      const request = { ...weather, tool_choice: { type: 'function', function: { name } }, max_tokens: 1000 };
      const { message } = (await openai.chat.completions.create(request)).choices[0];
      assert.equal(message.tool_calls.length, 1);
      assert.equal(message.tool_calls[0].function.name, name);
      check(message.tool_calls[0]);
      const pieces = await assemble(await openai.chat.completions.create({ ...request, stream: true }));
      assert.deepEqual(pieces.tool_calls, message.tool_calls);
    }
  }],

  ['tools: none', async ({ openai }) => {
    const { message } = (await openai.chat.completions.create({ ...weather, tool_choice: 'none' })).choices[0];
    assert.equal(message.tool_calls, undefined);
    assert.doesNotMatch(message.content, /<tool_call>/);
  }],

  ['tools: with reasoning', async ({ openai }) => {
    const request = { ...weather, chat_template_kwargs: { enable_thinking: true }, max_tokens: 500 };
    const { message } = (await openai.chat.completions.create(request)).choices[0];
    const pieces = await assemble(await openai.chat.completions.create({ ...request, stream: true }));
    assert.deepEqual(pieces.tool_calls, message.tool_calls ?? []);
    assert.equal(pieces.content, message.content ?? '');
    assert.doesNotMatch(pieces.content, /tool_call>|think>/);
  }],

  ['tools: cut off at every length', async ({ openai }) => {
    for (let limit = 1; limit <= 20; ++limit) {
      const { message } = (await openai.chat.completions.create({ ...weather, max_tokens: limit })).choices[0];
      assert.doesNotMatch(message.content ?? '', /tool_call|"name"|arguments/);
      for (const call of message.tool_calls ?? []) JSON.parse(call.function.arguments);
    }
  }],
];
