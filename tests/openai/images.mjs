// Pictures: data: URIs in user messages, their limits and errors, the prefix cache behind them.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import OpenAI from 'openai';

const uri = (bytes, type = 'image/png') => `data:${type};base64,${Buffer.from(bytes).toString('base64')}`;
const file = (model, name) => readFileSync(`${model}/eval/images/${name}.png`);
const part = (url) => ({ type: 'image_url', image_url: { url } });
const ask = (question, ...urls) => ({
  model: 'demo', temperature: 0,
  messages: [{ role: 'user', content: [...urls.map(part), { type: 'text', text: question }] }],
});
const kColor = 'Which color does the diamond have?';

async function answer(openai, request) {
  return (await openai.chat.completions.create(request)).choices[0].message.content;
}

async function refused(promise, pattern) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, `${error.constructor.name}: ${error.message}`);
    assert.match(error.message, pattern);
    return true;
  });
}

export const imageTests = [
  ['images: the model says that it takes them', async ({ openai }) => {
    assert.deepEqual((await openai.models.retrieve('demo')).modalities.input, ['text', 'image', 'video']);
  }],

  ['images: a question about a picture', async ({ openai, model }) => {
    const white = uri(file(model, 'picture_color-0-0')), yellow = uri(file(model, 'picture_color-1-0'));
    for (let i = 0; i < 2; ++i) {  // the second time from the caches
      assert.equal(await answer(openai, ask(kColor, white)), 'white');
      assert.equal(await answer(openai, ask(kColor, yellow)), 'yellow');
    }
  }],

  ['images: the same text behind another picture is another prefix', async ({ openai, model }) => {
    // The picture lies in the first block of the prompt: behind another one, nothing may be reused.
    const question = `${'Look well. '.repeat(60)}${kColor}`;
    for (const name of ['picture_color-2-0', 'picture_color-3-0']) {
      const first = await openai.chat.completions.create(ask(question, uri(file(model, name))));
      const second = await openai.chat.completions.create(ask(question, uri(file(model, name))));
      assert.equal(first.usage.prompt_tokens_details.cached_tokens, 0);
      assert.ok(second.usage.prompt_tokens_details.cached_tokens >= 128);
      assert.equal(first.choices[0].message.content, second.choices[0].message.content);
    }
  }],

  ['images: earlier turns keep their pictures', async ({ openai, model }) => {
    const request = ask(kColor, uri(file(model, 'picture_color-0-0')));
    request.messages.push({ role: 'assistant', content: 'white' },
      { role: 'user', content: [part(uri(file(model, 'picture_color-1-0'))), { type: 'text', text: kColor }] });
    assert.equal(await answer(openai, request), 'yellow');
  }],

  ['images: in system messages and tool results', async ({ openai, model }) => {
    const picture = part(uri(file(model, 'picture_color-0-0')));
    const tokens = async (...messages) =>
      (await openai.chat.completions.create({ model: 'demo', max_tokens: 1, messages })).usage.prompt_tokens;
    const call = { role: 'assistant', content: null,
      tool_calls: [{ id: 'c', type: 'function', function: { name: 'look', arguments: '{}' } }] };
    const user = { role: 'user', content: 'Look.' };
    const result = (content) => ({ role: 'tool', tool_call_id: 'c', content });
    const system = (content) => ({ role: 'system', content });
    const text = [{ type: 'text', text: 'x' }];
    const one = await tokens({ role: 'user', content: [picture, ...text] }) - await tokens({ role: 'user', content: 'x' });
    assert.ok(one > 3);  // the picture's tokens and the marks around it
    assert.equal(await tokens(system([picture, ...text]), user) - await tokens(system('x'), user), one);
    assert.equal(await tokens(user, call, result([picture, ...text])) - await tokens(user, call, result('x')), one);
    assert.equal(await tokens(system([picture, picture, ...text]), user, call, result([picture, ...text])) -
      await tokens(system('x'), user, call, result('x')), 3 * one);
  }],

  ['images: streams and choices', async ({ openai, model }) => {
    const request = { ...ask(kColor, uri(file(model, 'picture_color-0-0'))), n: 2 };
    const whole = await openai.chat.completions.create(request);
    assert.deepEqual(whole.choices.map((c) => c.message.content), ['white', 'white']);
    let text = '';
    for await (const chunk of await openai.chat.completions.create({ ...request, n: 1, stream: true })) {
      text += chunk.choices[0]?.delta.content ?? '';
    }
    assert.equal(text, 'white');
  }],

  ['videos: frames in the forms of vLLM\'s and Qwen\'s clients', async ({ openai, model }) => {
    const bytes = ['picture_color-0-0', 'picture_color-1-0'].map((name) => file(model, name).toString('base64'));
    const [white, yellow] = bytes;
    const text = { type: 'text', text: kColor };
    const video = (...frames) =>
      ({ type: 'video_url', video_url: { url: `data:video/jpeg;base64,${frames.join(',')}` } });
    const list = (...frames) => ({ type: 'video', video: frames.map((frame) => `data:image/png;base64,${frame}`) });
    const send = (...content) => openai.chat.completions.create(
      { model: 'demo', temperature: 0, max_tokens: 8, messages: [{ role: 'user', content: [...content, text] }] });
    const one = await send(video(white, white)), other = await send(list(white, white));
    assert.equal(one.usage.prompt_tokens, other.usage.prompt_tokens);
    assert.equal(one.choices[0].message.content, other.choices[0].message.content);
    // Every two frames have a time as text: more of them make a longer prompt, at any speed.
    const longer = await send({ ...list(yellow, yellow, yellow, yellow), fps: 0.5 });
    assert.ok(longer.usage.prompt_tokens > (await send(list(yellow, yellow))).usage.prompt_tokens);
    await send(part(uri(file(model, 'picture_color-0-0'))), video(white), list(yellow, yellow, yellow));
    await refused(send(video(white, white), video(white), video(white), video(white), video(white)),
      /5 videos; allowed: at most 4/);
    await refused(send(video(white, 'AAAA')), /messages\[0\]\.content\[0\]\.frames\[1\]: .*not a PNG, JPEG, WebP or GIF/);
    await refused(send({ type: 'video_url', video_url: { url: 'data:video/mp4;base64,AAAAIGZ0eXA=' } }),
      /video files can't be decoded/);
    await refused(send({ type: 'video_url', video_url: { url: `data:video/jpeg;base64${','.repeat(1_000_000)}` } }),
      /too many frames; allowed: at most 768/);
    await refused(send({ type: 'video_url', video_url: { url: 'http://169.254.169.254/' } }), /fetches no URLs/);
    await refused(send({ ...list(white), fps: 0 }), /content\[0\]\.fps/);
  }],

  ['images: what is no image is refused by name', async ({ openai, model }) => {
    const png = file(model, 'picture_color-0-0');
    const at = /messages\[0\]\.content\[0\]/;
    const cases = [
      [uri('GIF88a'), /not a PNG, JPEG, WebP or GIF/],
      [uri(png.subarray(0, png.length / 2)), /damaged or cut off/],
      ['data:image/png;base64,????', /base64 of the data: URI is not valid/],
      [`data:image/png;base64${','.repeat(1_000_000)}`, /data: URI/],
      ['file:///etc/passwd', /must be a data: URI/],
      ['gopher://127.0.0.1/', /must be a data: URI/],
      ['', /must be a data: URI/],
    ];
    for (const url of ['http://127.0.0.1', 'http://0', 'http://0x7f.1', 'http://2130706433', 'http://[::1]',
      'http://[::ffff:a9fe:a9fe]', 'http://169.254.169.254', 'http://ok.com\\@127.0.0.1', 'http://ok.com#@x',
      'https://user:pass@example.com/a.png', 'HTTP://EXAMPLE.COM']) {
      cases.push([url, /fetches no URLs/]);
    }
    for (const [url, pattern] of cases) {
      await refused(openai.chat.completions.create(ask('x', url)), at);
      await refused(openai.chat.completions.create(ask('x', url)), pattern);
    }
    const many = Array.from({ length: 17 }, () => uri(png));
    await refused(openai.chat.completions.create(ask('x', ...many)), /17 images; allowed: at most 16/);
  }],

  ['images: every truncation is refused or answered', async ({ openai, model }) => {
    const png = file(model, 'picture_color-0-0');
    for (let i = 0; i < 40; ++i) {
      const cut = png.subarray(0, Math.floor(png.length * i / 40));
      const request = { ...ask('x', uri(cut)), max_tokens: 1 };
      await openai.chat.completions.create(request).catch((error) =>
        assert.ok(error instanceof OpenAI.BadRequestError, String(error)));
    }
  }],

  ['images: a placeholder in a text stands for nothing', async ({ openai, model }) => {
    const request = ask('<|image_pad|> Which color does the diamond have?', uri(file(model, 'picture_color-0-0')));
    assert.ok((await answer(openai, request)).length > 0);
  }],
];
