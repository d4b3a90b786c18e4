// usage: node main.mjs WEFT MODEL_DIR [NAME...]
import OpenAI from 'openai';

import { Server } from './server.mjs';
import { chatTests } from './chat.mjs';
import { completionTests } from './completions.mjs';
import { errorTests } from './errors.mjs';
import { imageTests } from './images.mjs';
import { speculationTests, speculativeConfig } from './speculation.mjs';
import { structuredTests } from './structured.mjs';
import { toolTests } from './tools.mjs';

const kTestMs = 60_000;
const kKey = 'sk-of-the-test';

const [binary, model, ...wanted] = process.argv.slice(2);
const servers = [];

async function context() {
  const demo = await Server.start(binary, [model]);
  servers.push(demo);
  const drafting = await Server.start(binary, [model, '--speculative-config', speculativeConfig]);
  servers.push(drafting);
  // One request runs, one may wait, slowly: where queueing and keys matter.
  const busy = await Server.start(binary, [
    model, '--device', 'fake', '--fake-tokens-per-second', '20', '--max-num-seqs', '1', '--max-waiting', '1',
    '--api-key', kKey, '--served-model-name', 'demo',
  ]);
  servers.push(busy);
  const client = (server, options = {}) =>
    new OpenAI({ baseURL: `${server.url}/v1`, apiKey: kKey, maxRetries: 0, timeout: 30_000, ...options });
  return { model, demo, drafting, busy, key: kKey, client, openai: client(demo) };
}

function within(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

let passed = 0;
let failed = 0;
function report(name, error) {
  if (error) {
    failed += 1;
    console.log(`FAILED ${name}\n${error.stack ?? error}`);
  } else {
    passed += 1;
    console.log(`ok ${name}`);
  }
}

try {
  const shared = await context();
  const tests = [...chatTests, ...completionTests, ...structuredTests, ...toolTests, ...imageTests, ...speculationTests, ...errorTests];
  for (const [name, test] of tests) {
    if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue;
    await within(test(shared), kTestMs).then(() => report(name), (error) => report(name, error));
  }
} catch (error) {
  report('start', error);
}
for (const server of servers) {
  const code = await within(server.stop(), 30_000).catch((error) => error.message);
  if (code !== 0) report('exit', new Error(`SIGTERM: ${code}\n${server.log.slice(-4000)}`));
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
