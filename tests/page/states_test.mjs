// The page against the stand-in of mock.mjs: Markdown, thoughts, tools, pictures, errors, keys, parameters, the list of
// conversations, the live view. Every page must end without an error on the console and without a breach of its policy.
// usage: node states_test.mjs REPOSITORY [FOLDER_FOR_SCREENSHOTS]      ends with "N passed, N failed"
import {setTimeout as sleep} from 'node:timers/promises';
import assert from 'node:assert/strict';
import {chromium} from 'playwright-core';
import {MOVING} from './media.mjs';
import {Mock, liveAnswer} from './mock.mjs';

const [root, shots] = process.argv.slice(2);
let passed = 0, failed = 0;
const browser = await chromium.launch({executablePath: '/usr/bin/chromium', args: ['--no-sandbox']});

/// Runs `body(page, mock)` on a page of its own. A refusal on purpose (4xx) is logged by the browser: that line is allowed.
async function test(name, body, {mock: options, ...context} = {}) {
  const mock = await new Mock(root, options).start();
  const opened = await browser.newContext({viewport: {width: 1280, height: 860}, ...context});
  opened.setDefaultTimeout(15000);
  const page = await opened.newPage();
  const problems = [];
  page.on('console', (m) => { if (m.type() === 'error' && !/status of 4\d\d|ERR_INCOMPLETE|ERR_CONNECTION_REFUSED/.test(m.text())) problems.push(m.text()); });
  page.on('pageerror', (e) => problems.push(String(e)));
  page.on('dialog', (dialog) => { problems.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  try {
    await page.goto(mock.url);
    await until(async () => await page.textContent('#model-name') !== '' || options?.key, 'the list of models');
    await body(page, mock);
    assert.deepEqual(problems, []);
    passed++;
    console.log(`ok ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAILED ${name}: ${e.stack}\n  on the console: ${problems.join(' | ')}`);
  }
  await opened.close();
  mock.stop();
}

async function until(condition, what) {
  for (let i = 0; i < 300; i++) {
    if (await condition()) return;
    await sleep(50);
  }
  throw new Error(`${what} did not come`);
}

/// Sends a message and waits for the end of the answer.
async function say(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
  await done(page);
}
const done = (page) => until(async () => !(await page.getAttribute('#send', 'class')).includes('busy'), 'the end of the answer');
const answer = (page) => page.locator('#log .answer').last();
const shoot = async (page, name) => shots && page.screenshot({path: `${shots}/${name}.png`});

await test('Markdown becomes what it means', async (page) => {
  await say(page, 'markdown');
  const log = answer(page);
  assert.equal(await log.locator('.h2').innerText(), 'A plain weave');
  assert.deepEqual([await log.locator('strong').innerText(), await log.locator('em').innerText(), await log.locator('p > code').innerText()], ['weft', 'over', 'under']);
  const links = await log.locator('a').evaluateAll((nodes) => nodes.map((a) => [a.href, a.rel]));
  assert.deepEqual(links, [['https://example.org/weave_(textile)', 'noopener noreferrer nofollow'], ['https://example.org/loom', 'noopener noreferrer nofollow']]);
  assert.equal(await log.locator('ol > li').count(), 3);
  assert.equal(await log.locator('ol > li ul > li').count(), 2);
  assert.deepEqual(await log.locator('td').allInnerTexts(), ['plain', '1', '1', 'twill', '2', '2', 'satin', '4', '1']);
  assert.match(await log.locator('.code code').textContent(), /^def weave[\s\S]* enumerate\(warp\)\]$/);
  assert.equal(await log.locator('blockquote').count(), 1);
  assert.deepEqual(await log.locator('li.task').evaluateAll((nodes) => nodes.map((n) => n.className)), ['task done', 'task']);
  assert.equal(await log.locator('s').innerText(), 'Felt');
  assert.match(await log.locator('.stats').innerText(), /tok\/s.*first token.*24 prompt \(16 cached\).*tokens/);
  await shoot(page, 'markdown-light');
});

await test('a text that streams looks like the text at once, wherever it is cut', async (page) => {
  const bad = await page.evaluate(async () => {
    const {Markdown} = await import('/assets/markdown.js');
    let state = 1;
    const random = (n) => (state = (state * 48271) % 2147483647) % n;
    const pieces = ['# ', '## x', '\n', '\n', '\n\n', '- ', '* ', '1. ', '2) ', '  - ', '   ', '    ', '> ', '>', '```', '```js\n', '~~~', '|a|b|\n', '|-|-|\n', '| c | d', '---', '***', '**', '*', '_', '~~',
      '`', '``', '[a](https://e.org)', '[', '](', ')', 'https://e.org/x', '<https://e.org>', '<b>', '\\', '&amp;', 'word', ' ', 'two words', '[ ] ', '[x] ', '\t', '\r\n', 'é', '漢', '😀'];
    const whole = (text) => {
      const root = document.createElement('div');
      new Markdown(root).update(text);
      return root;
    };
    // Settled blocks stand before the tail, open ones in it: the order of blocks is what counts.
    const shape = (root) => [...root.childNodes].flatMap((node) => (node.className === 'tail' ? [...node.childNodes] : [node])).map((node) => node.outerHTML.replaceAll(' class=""', '')).join('\n');
    const bad = [];
    for (let round = 0; round < 1500; round++) {
      let text = '';
      for (let i = random(40); i >= 0; i--) text += pieces[random(pieces.length)];
      const root = document.createElement('div');
      const markdown = new Markdown(root);
      for (let at = 0; at < text.length; at += 1 + random(6)) markdown.update(text.slice(0, at));
      markdown.update(text);
      if (shape(root) !== shape(whole(text))) bad.push(text);
    }
    return bad.sort((a, b) => a.length - b.length).slice(0, 3);
  });
  assert.deepEqual(bad, []);
});

await test('a frame at 20 kB costs little', async (page) => {
  const took = await page.evaluate(async () => {
    const {Markdown} = await import('/assets/markdown.js');
    const sample = {
      prose: 'The weft passes **over** one thread and `under` the next, as [the book](https://example.org) says.\n\n',
      list: '- The weft passes **over** one thread\n',
      table: '| plain | **1** | `2` |\n',
      code: 'for (const thread of weft) shuttle.pass(thread);\n',
    };
    const begin = {prose: '', list: '', table: '| a | b | c |\n|---|---|---|\n', code: '```js\n'};
    const out = {};
    for (const name of Object.keys(sample)) {
      const root = document.createElement('div');
      root.className = 'prose';
      document.getElementById('log').replaceChildren(root);
      const markdown = new Markdown(root);
      let text = begin[name];
      while (text.length < 20000) text += sample[name];
      markdown.update(text);
      document.body.offsetHeight;
      const times = [];
      for (let i = 0; i < 60; i++) {
        const begun = performance.now();
        text += sample[name].slice(i % 4 * 10, i % 4 * 10 + 10) || '\n';
        markdown.update(text);
        document.getElementById('scroll').scrollTop = document.getElementById('scroll').scrollHeight;
        document.body.offsetHeight;
        times.push(performance.now() - begun);
      }
      out[name] = times.sort((a, b) => a - b)[30];
    }
    document.getElementById('log').replaceChildren();
    return out;
  });
  console.log(`   median ms a frame, layout included: ${Object.entries(took).map(([name, ms]) => `${name} ${ms.toFixed(2)}`).join(', ')}`);
  for (const [name, ms] of Object.entries(took)) assert.ok(ms < 16, `${name}: ${ms} ms`);  // a frame of 60 a second; 4 ms on a quiet machine
});

await test('text of a model never becomes code', async (page) => {
  const title = await page.title();
  const evil = [
    '<img src=x onerror="document.title=1">', '<script>document.title=2</script>', '[x](javascript:document.title=3)', '<javascript:alert(1)>', '[x](data:text/html,<script>alert(1)</script>)',
    '[x](JaVaScRiPt:alert(1))', '[x]( javascript:alert(1))', '[x](//evil.example)', '![x](https://evil.example/track.png)', '<svg onload=alert(1)>', '```"><img src=x onerror=alert(1)>\ncode\n```',
    '| <b>x</b> |\n|---|\n| <iframe src=javascript:alert(1)> |', '[<img src=x onerror=alert(1)>](https://example.org/"onmouseover="alert(1))', '&lt;script&gt;', 'http://javascript:alert(1)@', '<https://x" onclick="alert(1)>',
  ];
  for (const text of evil) await say(page, `exactly${text}`);
  await sleep(200);
  assert.equal(await page.title(), title);
  assert.equal(await page.locator('#log :is(img, script, iframe, svg:not(.icon, .weaving), b)').count(), 0);
  const links = await page.locator('#log a').evaluateAll((nodes) => nodes.map((a) => [new URL(a.href).protocol, a.getAttributeNames().sort().join()]));
  for (const [protocol, names] of links) {
    assert.match(protocol, /^https?:$/);
    assert.equal(names, 'href,rel,target');
  }
  assert.match(await page.locator('#log').innerText(), /<script>document\.title=2<\/script>/);
  // A tool's name and arguments, an error and a title of a conversation are texts as well.
  assert.equal(await page.locator('#chats img').count(), 0);
});

await test('thoughts are folded, with their time, and not sent again', async (page, mock) => {
  await say(page, 'think');
  const thought = answer(page).locator('details');
  assert.equal(await thought.evaluate((node) => node.open), false);
  assert.match(await thought.locator('summary').innerText(), /^Thought for [\d.]+ m?s$/);
  await thought.locator('summary').click();
  assert.equal(await thought.locator('em').innerText(), 'two');
  assert.equal(await answer(page).locator('> .prose').innerText(), 'It is 42.');
  await say(page, 'good');
  assert.deepEqual(mock.requests[1].messages, [{role: 'user', content: 'think'}, {role: 'assistant', content: 'It is **42**.'}, {role: 'user', content: 'good'}]);
});

await test('tool calls are cards, and take results', async (page, mock) => {
  await say(page, 'tool');
  assert.deepEqual(await page.locator('.tool .name').allInnerTexts(), ['get_weather', 'get_time']);
  assert.equal(await page.locator('.tool code').first().textContent(), '{\n  "city": "Berlin",\n  "days": [\n    1,\n    2\n  ]\n}');
  await page.fill('textarea[aria-label="Result of get_weather"]', '{"weather": "sunny"}');
  await page.fill('textarea[aria-label="Result of get_time"]', '12:30');
  await shoot(page, 'tools-light');
  await page.click('text=Send results');
  await done(page);
  assert.deepEqual(mock.requests[1].messages.slice(1), [
    {role: 'assistant', content: '', tool_calls: [
      {id: 'call_1', type: 'function', function: {name: 'get_weather', arguments: '{"city": "Berlin", "days": [1, 2]}'}},
      {id: 'call_2', type: 'function', function: {name: 'get_time', arguments: '{}'}}]},
    {role: 'tool', tool_call_id: 'call_1', content: '{"weather": "sunny"}'},
    {role: 'tool', tool_call_id: 'call_2', content: '12:30'}]);
  assert.match(await answer(page).innerText(), /The tool said: 12:30/);
  assert.equal(await page.locator('text=Send results').isVisible(), false);
});

await test('errors are told in the words of the server', async (page) => {
  await say(page, 'refuse');
  assert.equal(await answer(page).locator('.problem').innerText(), 'max_tokens must be at least 1, got 0.');
  await say(page, 'busy');
  assert.equal(await answer(page).locator('.problem').innerText(), 'All places are taken. Try again in 7.0 s.');
  await say(page, 'broken');
  assert.match(await answer(page).innerText(), /This begins well[\s\S]*The engine stopped\./);
  await say(page, 'cut');
  assert.match(await answer(page).innerText(), /Half an ans[\s\S]*The connection broke/);
  await say(page, 'hello');
  assert.match(await answer(page).innerText(), /Good day/);
  await shoot(page, 'errors-light');
});

await test('a server that is gone is said to be gone', async (page, mock) => {
  mock.stop();
  await page.fill('#prompt', 'hello');
  await page.press('#prompt', 'Enter');
  await until(async () => /cannot be reached/.test(await page.innerText('#log')), 'the error');
});

await test('Esc and the button stop, and the connection closes', async (page, mock) => {
  for (const how of [() => page.keyboard.press('Escape'), () => page.click('#send')]) {
    const closed = mock.closed;
    await page.fill('#prompt', 'endless');
    await page.press('#prompt', 'Enter');
    await until(async () => /(thread ){5}/.test(await answer(page).innerText()), 'five threads');
    assert.equal(await page.getAttribute('#send', 'aria-label'), 'Stop');
    await how();
    await until(() => mock.closed === closed + 1, 'the end of the stream');
    assert.match(await answer(page).locator('.stats').innerText(), /stopped$/);
    assert.equal(await page.getAttribute('#send', 'aria-label'), 'Send');
  }
});

await test('Shift+Enter is a new line; a message is edited; an answer is made again', async (page, mock) => {
  await page.click('#prompt');
  await page.keyboard.type('first');
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.type('second');
  await page.keyboard.press('Enter');
  await done(page);
  assert.equal(mock.requests[0].messages[0].content, 'first\nsecond');
  await say(page, 'more');
  await page.locator('.user').first().hover();
  await page.click('[aria-label="Edit message"] >> nth=0');
  await page.fill('.edit textarea', 'changed');
  await page.keyboard.press('Enter');
  await done(page);
  assert.deepEqual(mock.requests[2].messages, [{role: 'user', content: 'changed'}]);
  assert.equal(await page.locator('.message').count(), 2);
  await page.click('[aria-label="Regenerate answer"]');
  await until(() => mock.requests.length === 4, 'the request');
  await done(page);
  assert.deepEqual(mock.requests[3].messages, [{role: 'user', content: 'changed'}]);
  assert.equal(await page.locator('.message').count(), 2);
});

await test('conversations stay, are renamed, deleted and brought back', async (page) => {
  await say(page, 'the first');
  await page.click('#new-chat');
  await say(page, 'the second');
  await page.reload();
  assert.deepEqual(await page.locator('#chats .open').allInnerTexts(), ['the second', 'the first']);
  await page.click('#chats .open >> text=the first');
  assert.match(await page.innerText('#log'), /the first[\s\S]*Good day/);
  await page.hover('#chats li >> nth=1');
  await page.click('[aria-label="Rename “the first”"]');
  await page.fill('#chats input', 'renamed');
  await page.keyboard.press('Enter');
  assert.deepEqual(await page.locator('#chats .open').allInnerTexts(), ['the second', 'renamed']);
  await page.hover('#chats li >> nth=1');
  await page.click('[aria-label="Delete “renamed”"]');
  assert.deepEqual(await page.locator('#chats .open').allInnerTexts(), ['the second']);
  await page.click('#toast button');
  assert.deepEqual(await page.locator('#chats .open').allInnerTexts(), ['the second', 'renamed']);
});

await test('parameters are sent where they are set, and only there', async (page, mock) => {
  await say(page, 'plain');
  assert.deepEqual(Object.keys(mock.requests[0]).sort(), ['messages', 'model', 'stream', 'stream_options']);
  await page.click('#params-button');
  const set = {system: 'Be brief.', temperature: '0', top_p: '0.9', top_k: '40', min_p: '0.05', max_tokens: '64', seed: '7', presence_penalty: '0.5',
    frequency_penalty: '-0.5', repetition_penalty: '1.1', stop: 'END\n###', tools: '[{"type": "function", "function": {"name": "f"}}]'};
  for (const [name, value] of Object.entries(set)) await page.fill(`#p-${name}`, value);
  await page.selectOption('#p-thinking', 'on');
  await page.selectOption('#p-tool_choice', 'required');
  await page.reload();  // they are kept
  await say(page, 'again');
  const {messages, model, stream, stream_options, ...rest} = mock.requests[1];
  assert.deepEqual(messages.slice(0, 2), [{role: 'system', content: 'Be brief.'}, {role: 'user', content: 'again'}]);
  assert.deepEqual(rest, {temperature: 0, top_p: 0.9, top_k: 40, min_p: 0.05, max_tokens: 64, seed: 7, presence_penalty: 0.5, frequency_penalty: -0.5, repetition_penalty: 1.1,
    stop: ['END', '###'], tools: [{type: 'function', function: {name: 'f'}}], tool_choice: 'required', chat_template_kwargs: {enable_thinking: true}});
  await page.click('#params-button');
  await page.fill('#p-tools', '[{');
  assert.equal(await page.getAttribute('#p-tools', 'aria-invalid'), 'true');
  await say(page, 'once more');
  assert.equal('tools' in mock.requests[2], false);
  await shoot(page, 'parameters-light');
  await page.click('text=Reset all');
  await say(page, 'plain');
  assert.deepEqual(Object.keys(mock.requests[3]).sort(), ['messages', 'model', 'stream', 'stream_options']);
});

const PIXEL = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==', 'base64');
await test('pictures go along where the model takes them', async (page, mock) => {
  await page.setInputFiles('#file', {name: 'a.png', mimeType: 'image/png', buffer: PIXEL});
  await page.waitForSelector('.thumb img');
  await page.setInputFiles('#file', {name: 'b.png', mimeType: 'image/png', buffer: Buffer.from('no picture')});
  await until(async () => /b\.png is no picture or video/.test(await page.innerText('#toast')), 'the note');
  await say(page, 'what is this');
  assert.deepEqual(mock.requests[0].messages[0].content, [
    {type: 'image_url', image_url: {url: `data:image/png;base64,${PIXEL.toString('base64')}`}}, {type: 'text', text: 'what is this'}]);
  assert.equal(await page.locator('.user .pictures img').count(), 1);
  assert.equal(await page.locator('.thumb').count(), 0);
}, {mock: {images: true}});

await test('videos go along where the model takes them', async (page, mock) => {
  await page.setInputFiles('#file', {name: 'a.gif', mimeType: 'image/gif', buffer: MOVING});
  await page.waitForSelector('.thumb img[alt="Attached video 1"]');
  const film = await page.evaluate(async () => {  // a second of a red square
    const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 48});
    const recorder = new MediaRecorder(canvas.captureStream(20), {mimeType: 'video/webm'});
    const parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    const stopped = new Promise((resolve) => { recorder.onstop = resolve; });
    recorder.start();
    for (let i = 0; i < 20; i++) {
      canvas.getContext('2d').fillStyle = `rgb(${200 + i},0,0)`;
      canvas.getContext('2d').fillRect(0, 0, 64, 48);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    recorder.stop();
    await stopped;
    return [...new Uint8Array(await new Blob(parts).arrayBuffer())];
  });
  await page.setInputFiles('#file', {name: 'b.webm', mimeType: 'video/webm', buffer: Buffer.from(film)});
  await page.waitForSelector('.thumb img[alt="Attached video 2"]');
  await page.setInputFiles('#file', {name: 'c.mp4', mimeType: 'video/mp4', buffer: Buffer.from('no film')});
  await until(async () => /c\.mp4 is no picture or video/.test(await page.innerText('#toast')), 'the note');
  await say(page, 'what is this');
  const [moving, frames, text] = mock.requests[0].messages[0].content;
  assert.deepEqual(moving, {type: 'video_url', video_url: {url: `data:image/gif;base64,${MOVING.toString('base64')}`}});
  assert.deepEqual([frames.type, text.type], ['video', 'text']);
  assert.ok(frames.video.length >= 2 && frames.video.length <= 4, `${frames.video.length} frames`);
  assert.ok(frames.fps > 1 && frames.fps < 4, `${frames.fps} a second`);
  for (const frame of frames.video) assert.match(frame, /^data:image\/jpeg;base64,/);
  assert.equal(await page.locator('.user .pictures img').count(), 2);
}, {mock: {images: true, videos: true}});

await test('no button for pictures where the model takes none', async (page) => {
  assert.equal(await page.isVisible('#attach'), false);
});

await test('a key is asked for, sent as Bearer, and forgotten with the tab', async (page, mock) => {
  await page.waitForSelector('#key-dialog[open]');
  assert.match(await page.innerText('#key-reason'), /Give the API key/);
  await page.fill('#key-input', 'sesame');
  await page.keyboard.press('Enter');
  await until(async () => await page.textContent('#model-name') === 'mock-model', 'the model');
  await say(page, 'hello');
  assert.match(await answer(page).innerText(), /Good day/);
  assert.deepEqual(await page.evaluate(() => [JSON.stringify(localStorage).includes('sesame'), JSON.stringify(sessionStorage).includes('sesame')]), [false, true]);
}, {mock: {key: 'sesame'}});

await test('the live view shows the engine', async (page) => {
  await page.click('#tab-live');
  await until(async () => /\d/.test(await page.innerText('#live-generation')), 'a number');
  const text = await page.innerText('#live-view');
  for (const wanted of [/ready/, /up 10 min/, /running/, /waiting/, /of 1,024/, /of 64/, /57%/, /32,768 tokens/, /median/]) assert.match(text, wanted);
  assert.ok(await page.locator('#live-view .chart path').count() > 20);
  const box = await page.locator('#live-view .chart').last().boundingBox();
  await page.mouse.move(box.x + box.width - 20, box.y + box.height / 2);
  assert.match(await page.innerText('.tip'), /step \d+\n[\d.]+ ms/);
  await shoot(page, 'live-dark');
}, {colorScheme: 'dark', viewport: {width: 1280, height: 1420}});

await test('the live view shows how drafts fare', async (page) => {
  await page.click('#tab-live');
  await until(async () => /\d/.test(await page.innerText('#live-drafts')), 'a number');
  const card = page.locator('.card', {has: page.locator('#live-drafts')});
  const text = await card.innerText();
  // 130,000 tokens in 50,000 steps; 102,000 of 170,000 drafts; 39,000 of 48,000 at the first place.
  for (const wanted of [/2\.60\s*tokens a step/, /60% of the drafts accepted/, /MTP: 66% of 140,000 drafts; n-gram: 32% of 30,000 drafts/, /Draft 1\s*81%/, /Draft 5\s*6\.3%/]) assert.match(text, wanted);
  assert.equal(await card.locator('[role=meter]').count(), 5);
});

await test('the live view shows what heads of prompts saw', async (page) => {
  await page.click('#tab-live');
  await until(async () => /\d/.test(await page.innerText('#live-heads')), 'a number');
  const text = await page.locator('.card', {has: page.locator('#live-heads')}).innerText();
  for (const wanted of [/35%\s*of the attention of prompts computed/, /30% full, 70% streaming; 9 steps/]) assert.match(text, wanted);
});

await test('the live view of a server that does not draft says nothing of drafts', async (page) => {
  await page.click('#tab-live');
  await until(async () => /\d/.test(await page.innerText('#live-generation')), 'a number');
  assert.equal(await page.locator('#live-drafts').isVisible(), false);
}, {mock: {live: (now) => { const answer = liveAnswer(now); answer.limits.speculative_tokens = 0; delete answer.totals.drafts; return answer; }}});

let polls = 0;
await test('the live view rests while nobody looks', async (page) => {
  await page.click('#tab-live');
  await until(() => polls >= 2, 'two looks');
  await page.click('#tab-chat');
  await sleep(300);
  const before = polls;
  await sleep(2500);
  assert.equal(polls, before);
}, {mock: {live: (now) => { polls++; return liveAnswer(now); }}});

for (const [what, answer] of [['nothing', {}], ['only a state', {state: 'loading'}], ['no samples', {now: 5, uptime: 1, state: 'ready', limits: {slots: 0}, samples: {time: []}, steps: []}],
  ['null everywhere', {now: 5, uptime: 1, samples: {time: [4], running: [null], kv_hit_rate: [null]}, steps: [{step: 1}], totals: {looked_up_tokens: 0}}]]) {
  await test(`the live view takes ${what}`, async (page) => {
    await page.click('#tab-live');
    await page.waitForSelector('.badge');
    await sleep(1300);
    assert.doesNotMatch(await page.innerText('#live-view'), /NaN|undefined|Infinity/);
    assert.doesNotMatch(await page.innerHTML('#live-view'), /NaN|undefined|Infinity/);
  }, {mock: {live: () => answer}});
}

await test('keys go through tabs and colours; everything has a name', async (page) => {
  await page.focus('#tab-chat');
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.getAttribute('#tab-live', 'aria-selected'), 'true');
  await page.keyboard.press('ArrowLeft');
  await page.click('#theme [aria-label=Dark]');
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), 'rgb(20, 23, 29)');
  await page.reload();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await say(page, 'markdown');
  await page.click('#params-button');
  const nameless = await page.evaluate(() => [...document.querySelectorAll('button, input, textarea, select, a')]
    .filter((node) => !node.hidden && !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML));
  assert.deepEqual(nameless, []);
});

for (const colorScheme of ['light', 'dark']) {
  await test(`a phone, ${colorScheme}`, async (page) => {
    const sideways = () => page.evaluate(() => [...document.querySelectorAll('html, #scroll, #live-view, #params')].filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.id));
    await say(page, 'markdown');
    assert.deepEqual(await sideways(), []);
    await shoot(page, `phone-${colorScheme}`);
    await page.click('#params-button');
    assert.deepEqual(await sideways(), []);
    await page.click('#panel-close');
    await page.click('#menu');
    await page.click('#new-chat');
    await until(async () => !await page.locator('#side').evaluate((node) => node.classList.contains('open')), 'the closed drawer');
    await page.click('#tab-live');
    await until(async () => /\d/.test(await page.innerText('#live-generation')), 'a number');
    assert.deepEqual(await sideways(), []);
    await shoot(page, `phone-live-${colorScheme}`);
  }, {colorScheme, viewport: {width: 375, height: 720}, hasTouch: true});
}

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
