// The page of `weft serve` in Debian's chromium: a chat is typed, streamed and stopped; text of a model stays
// text; the live view shows the engine; no error on the console, no breach of the content policy.
// usage: node page_test.mjs PATH_OF_WEFT [FOLDER_FOR_SCREENSHOTS]      ends with "N passed, N failed"
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {dirname, resolve} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import assert from 'node:assert/strict';
import {chromium} from 'playwright-core';
import {MOVING} from './media.mjs';

const [weft, shots] = process.argv.slice(2);
const picture = resolve(dirname(weft), '../../models/demo/eval/images/picture_color-0-0.png');
let passed = 0, failed = 0;

async function serve(...flags) {
  const server = spawn(weft, ['serve', '--port', '0', ...flags], {stdio: ['ignore', 'ignore', 'pipe']});
  let log = '';
  server.stderr.on('data', (d) => { log += d; });
  for (let i = 0; i < 300; i++) {
    const ready = log.match(/Application startup complete\..* (http:\S+)/);
    if (ready) return {server, url: ready[1]};
    await sleep(50);
  }
  throw new Error(`the server did not start:\n${log}`);
}

async function stop({server}) {
  const ended = once(server, 'exit');
  server.kill('SIGTERM');
  const [code] = await ended;
  assert.equal(code, 0);
}

async function metric(url, name) {
  const all = await (await fetch(`${url}/metrics`)).text();
  const line = all.split('\n').find((l) => l.startsWith(name));
  return Number(line.split(' ').at(-1));
}

async function test(name, body) {
  try {
    await body();
    passed++;
    console.log(`ok ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAILED ${name}: ${e.stack}`);
  }
}

const browser = await chromium.launch({executablePath: '/usr/bin/chromium', args: ['--no-sandbox']});

async function open(url, options = {}) {
  const context = await browser.newContext({viewport: {width: 1280, height: 800}, ...options});
  const page = await context.newPage();
  page.problems = [];
  page.on('console', (m) => { if (m.type() === 'error') page.problems.push(m.text()); });
  page.on('pageerror', (e) => page.problems.push(String(e)));
  await page.goto(url);
  return page;
}

/// Polls from here: the page's content policy allows no evaluation of strings inside of it.
async function until(condition, what) {
  for (let i = 0; i < 400; i++) {
    if (await condition()) return;
    await sleep(50);
  }
  throw new Error(`${what} did not come`);
}
const text = (page, where) => page.locator(where).innerText();

async function send(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
}

const demo = await serve();
await test('a chat is typed and answered', async () => {
  const page = await open(demo.url);
  await send(page, 'What is 3 plus 4?');
  await until(async () => /\b7\b/.test(await text(page, '#log')), 'the answer');
  assert.match(await page.textContent('#log'), /What is 3 plus 4/);
  if (shots) await page.screenshot({path: `${shots}/chat-light.png`});
  await page.click('#tab-live');
  await until(async () => /\d/.test(await text(page, '#live-view')), 'a number in the live view');
  await sleep(2500);
  if (shots) await page.screenshot({path: `${shots}/live-light.png`});
  assert.deepEqual(page.problems, []);
  await page.reload();
  await page.waitForSelector('#chats li');
  await page.context().close();
});
await test('a picture is attached and seen', async () => {
  const page = await open(demo.url);
  await page.setInputFiles('#file', picture);
  await page.waitForSelector('.thumb img');
  await send(page, 'Which color does the diamond have?');
  await until(async () => /\bwhite\b/.test(await text(page, '#log')), 'the color');
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await test('a video is attached and seen', async () => {
  const page = await open(demo.url);
  await page.setInputFiles('#file', {name: 'moving.gif', mimeType: 'image/gif', buffer: MOVING});
  await page.waitForSelector('.thumb img[alt="Attached video 1"]');
  await send(page, 'How many shapes are in the picture?');
  await until(async () => /\d/.test(await text(page, '#log .answer')), 'a number');
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await test('dark and narrow', async () => {
  const page = await open(demo.url, {colorScheme: 'dark', viewport: {width: 390, height: 800}});
  await send(page, 'Write a short story about a cat.');
  await until(async () => (await text(page, '#log')).length > 60, 'the story');
  if (shots) await page.screenshot({path: `${shots}/phone-dark.png`});
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  assert.equal(wide, false, 'the page scrolls sideways');
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await stop(demo);

const fake = await serve('--device', 'fake', '--fake-tokens-per-second', '20');
await test('stop ends the request in the engine', async () => {
  const page = await open(fake.url);
  const long = 'word '.repeat(400);
  await send(page, `<<<${long}>>>`);
  await until(async () => (await text(page, '#log')).match(/word/g)?.length > 410, 'ten words');
  assert.equal(await metric(fake.url, 'vllm:num_requests_running'), 1);
  await page.press('#prompt', 'Escape');
  for (let i = 0; i < 40 && await metric(fake.url, 'vllm:num_requests_running') > 0; i++) await sleep(50);
  assert.equal(await metric(fake.url, 'vllm:num_requests_running'), 0);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await stop(fake);

const quick = await serve('--device', 'fake');
await test('text of a model stays text', async () => {
  const page = await open(quick.url);
  const evil = '<img src=x onerror="document.title=1"> <script>document.title=2</script> [x](javascript:alert(1)) **bold**';
  const title = await page.title();
  await send(page, `<<<${evil}>>>`);
  await page.waitForSelector('#log strong', {timeout: 20000});
  await sleep(300);
  assert.equal(await page.title(), title);
  assert.equal(await page.locator('#log img, #log script').count(), 0);
  assert.equal(await page.locator('#log a[href^="javascript"]').count(), 0);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await test('thoughts are folded, code is shown', async () => {
  const page = await open(quick.url, {colorScheme: 'dark'});
  await send(page, '<<<<think>\nLet me think.\n</think>\n\nHere:\n\n```python\nprint("hi")\n```\n\n| a | b |\n| - | - |\n| 1 | 2 |\n>>>');
  await page.waitForSelector('#log details', {timeout: 20000});
  await page.waitForSelector('#log pre', {timeout: 20000});
  await page.waitForSelector('#log table', {timeout: 20000});
  if (shots) await page.screenshot({path: `${shots}/rich-dark.png`});
  assert.deepEqual(page.problems, []);
  await page.context().close();
});
await stop(quick);

const locked = await serve('--device', 'fake', '--api-key', 'secret-key-1');
await test('a key is asked for', async () => {
  assert.equal((await fetch(locked.url)).status, 401);
  const page = await open(locked.url, {httpCredentials: {username: '', password: 'secret-key-1'}});
  await send(page, '<<<all is well>>>');
  await until(async () => (await text(page, '#log')).match(/all is well/g)?.length > 1, 'the answer');
  await page.context().close();
});
await stop(locked);

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
