// A stand-in for `weft serve`: the files of web/ under the page's own policy, and canned answers for what the demo
// model cannot be made to say: long Markdown, thoughts, tool calls, refusals, errors in mid-stream, pictures, a busy
// engine. Which one comes is the first word of the last message.
import http from 'node:http';
import {readFileSync} from 'node:fs';
import {once} from 'node:events';
import {setTimeout as sleep} from 'node:timers/promises';

export const MARKDOWN = `## A plain weave

The **weft** passes *over* one warp thread and \`under\` the next; see [the article](https://example.org/weave_(textile)) or
https://example.org/loom.

1. Wind the warp.
2. Throw the shuttle:
   - left to right,
   - and back.
3. Beat.

> A cloth is a conversation
> between two sets of threads.

| Weave | Over | Under |
|:------|-----:|------:|
| plain | 1 | 1 |
| twill | 2 | 2 |
| satin | 4 | 1 |

\`\`\`python
def weave(warp, weft, over=1, under=1):
    for row, thread in enumerate(weft):
        yield [thread if (i + row) % (over + under) < over else w
               for i, w in enumerate(warp)]
\`\`\`

- [x] thread the heddles
- [ ] cut the cloth

***

~~Felt~~ is not woven.
`;

const TYPES = {html: 'text/html; charset=utf-8', css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml'};

/// Ten minutes of an engine that has had work, as GET /weft/live says it.
export function liveAnswer(now, uptime = 600) {
  const time = [], columns = {};
  const put = (name, value) => (columns[name] ??= []).push(value);
  for (let i = Math.min(600, uptime) - 1; i >= 0; i--) {
    const t = uptime - i, wave = Math.sin(t / 47) + Math.sin(t / 13) / 3, load = Math.max(0, wave + 0.6);
    time.push(now - i);
    put('running', Math.round(load * 14));
    put('waiting', Math.max(0, Math.round((load - 1.2) * 20)));
    put('blocks_used', Math.round(load * 380));
    put('blocks_cached', Math.round(Math.min(360, t * 0.7)));
    put('slots_used', Math.round(load * 14));
    put('slots_cached', Math.round(Math.min(30, t / 15)));
    put('prompt_tokens_per_s', t % 9 < 3 ? load * 2100 : load * 160);
    put('generation_tokens_per_s', load * 310 + 14 * Math.sin(t));
    put('kv_hit_rate', load > 0.2 ? 0.55 + 0.2 * Math.sin(t / 31) : null);
    put('reuse_rate', load > 0.2 ? 0.48 + 0.2 * Math.sin(t / 31) : null);
    put('draft_acceptance', load > 0.2 ? 0.7 + 0.15 * Math.sin(t / 23) : null);
    put('accepted_length', load > 0.2 ? 2.6 + 0.5 * Math.sin(t / 23) : null);
    put('state_hit_rate', load > 0.2 ? 0.7 + 0.2 * Math.sin(t / 53) : null);
  }
  const steps = [];
  for (let i = 0; i < 200; i++) {
    const prompt = i % 23 < 3 ? 512 - (i % 23) * 160 : 0, decode = 8 + Math.round(6 * Math.sin(i / 17));
    steps.push({step: 48200 + i, start: now - (200 - i) * 0.03, ms: 7 + decode * 0.4 + prompt * 0.21, sequences: decode + (prompt ? 1 : 0),
      prompt_rows: prompt, decode_rows: decode, running: decode + 1, waiting: 0, preempted: i === 140 ? 1 : 0});
  }
  return {
    now, uptime, state: 'ready', model: 'mock-model',
    limits: {blocks: 1024, block_size: 64, slots: 64, max_num_seqs: 64, max_model_len: 32768, speculative_tokens: 5},
    totals: {prompt_tokens: 812345, generated_tokens: 123456, finished: 1832, preemptions: 4, steps: 48400, computed_tokens: 700000,
      looked_up_tokens: 812345, kv_hit_tokens: 510000, reused_tokens: 462000, state_lost_tokens: 48000, state_hits: 977,
      heads: {full: 240, streaming: 560, blocks: 0, computed_blocks: 4200, causal_blocks: 12000, layer_steps: 9},
      drafts: {sequence_steps: 50000, draft_steps: 48000, proposed: {mtp: 140000, ngram: 30000}, accepted: {mtp: 92400, ngram: 9600}, emitted: 130000,
        accepted_at: [39000, 31000, 22000, 7000, 3000]}},
    samples: {period: 1, time, ...columns}, steps,
  };
}

export class Mock {
  /// `root`: the repository. `key`: the API key that every request needs, if any.
  constructor(root, {key = '', images = false, videos = false, live = liveAnswer} = {}) {
    this.root = root;
    Object.assign(this, {key, images, videos, live});
    this.requests = [];  // bodies, as they came
    this.closed = 0;     // streams that the client left
    this.policy = readFileSync(`${root}/src/server/page.cc`, 'utf8').match(/kPolicy =\s*((?:"[^"]*"\s*)+);/)[1].replaceAll(/"\s*"|"/g, '').trim();
  }

  async start() {
    this.server = http.createServer((request, response) => this.answer(request, response).catch((e) => response.destroy(e)));
    await once(this.server.listen(0, '127.0.0.1'), 'listening');
    this.url = `http://127.0.0.1:${this.server.address().port}/`;
    return this;
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }

  async answer(request, response) {
    const path = new URL(request.url, this.url).pathname;
    const json = (status, value, headers = {}) => response.writeHead(status, {'content-type': 'application/json', ...headers}).end(JSON.stringify(value));
    const refuse = (status, message, headers) => json(status, {error: {message, type: 'invalid_request_error', param: null, code: status}}, headers);
    const file = path === '/' ? 'index.html' : path.startsWith('/assets/') ? path.slice(8) : '';
    if (file) {
      return response.writeHead(200, {'content-type': TYPES[file.split('.').pop()], 'content-security-policy': this.policy, 'cache-control': 'no-cache'})
        .end(readFileSync(`${this.root}/web/${file}`));
    }
    if (this.key && request.headers.authorization !== `Bearer ${this.key}`) return refuse(401, 'Give the API key, please.');
    if (path === '/v1/models') {
      const entry = {id: 'mock-model', object: 'model', max_model_len: 32768};
      return json(200, {object: 'list', data: [this.images ? {...entry, modalities: ['text', 'image', ...(this.videos ? ['video'] : [])]} : entry]});
    }
    if (path === '/weft/live') return json(200, this.live(Date.now() / 1000));
    let text = '';
    for await (const part of request) text += part;
    const body = JSON.parse(text);
    this.requests.push(body);
    const last = body.messages.at(-1);
    const said = typeof last.content === 'string' ? last.content : last.content.find((part) => part.type === 'text').text;
    if (said.startsWith('busy')) return refuse(429, 'All places are taken.', {'retry-after': '7'});
    if (said.startsWith('refuse')) return refuse(400, 'max_tokens must be at least 1, got 0.');
    await this.stream(response, last.role === 'tool' ? 'tool-answer' : said, body);
  }

  async stream(response, said, body) {
    let gone = false;
    response.on('close', () => {
      gone = !response.writableFinished;
      if (gone) this.closed++;
    });
    response.writeHead(200, {'content-type': 'text/event-stream'});
    const write = (value) => response.write(`data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`);
    const delta = (value, finish = null) => write({id: 'x', object: 'chat.completion.chunk', model: 'mock-model', choices: [{index: 0, delta: value, finish_reason: finish}]});
    let tokens = 0;
    const say = async (name, text, pause) => {
      for (const part of text.match(/[\s\S]{1,5}/gu) ?? []) {
        if (gone) return;
        delta({[name]: part});
        tokens++;
        if (pause) await sleep(pause);
      }
    };
    delta({role: 'assistant', content: ''});
    let finish = 'stop';
    if (said.startsWith('markdown')) await say('content', MARKDOWN, 1);
    else if (said.startsWith('exactly')) await say('content', said.slice(8), 0);
    else if (said.startsWith('think')) {
      await say('reasoning_content', 'The question has *two* parts.\n\n1. First this.\n2. Then that.\n', 8);
      await sleep(300);
      await say('content', 'It is **42**.', 4);
    } else if (said.startsWith('tool-answer')) await say('content', `The tool said: ${body.messages.at(-1).content}`, 1);
    else if (said.startsWith('tool')) {
      delta({tool_calls: [{index: 0, id: 'call_1', type: 'function', function: {name: 'get_weather', arguments: ''}}]});
      for (const part of ['{"city": "Ber', 'lin", "days": [1, 2]', '}']) delta({tool_calls: [{index: 0, function: {arguments: part}}]});
      delta({tool_calls: [{index: 1, id: 'call_2', type: 'function', function: {name: 'get_time', arguments: '{}'}}]});
      finish = 'tool_calls';
      tokens = 31;
    } else if (said.startsWith('broken')) {
      await say('content', 'This begins well', 1);
      write({error: {message: 'The engine stopped.', type: 'server_error', code: 500}});
      return response.end('data: [DONE]\n\n');
    } else if (said.startsWith('cut')) {
      await say('content', 'Half an ans', 1);
      await sleep(200);
      return response.destroy();
    } else if (said.startsWith('endless')) {
      while (!gone) await say('content', 'thread ', 10);
      return;
    } else await say('content', 'Good day to you.', 2);
    delta({}, finish);
    write({choices: [], usage: {prompt_tokens: 24, completion_tokens: tokens, total_tokens: 24 + tokens, prompt_tokens_details: {cached_tokens: 16}}});
    write('[DONE]');
    response.end();
  }
}
