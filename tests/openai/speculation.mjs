// Drafts change no bit of an answer: streamed or whole, with log-probabilities, alone or beside others, they are those of
// the server without drafts; and what is told of the drafts adds up.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

export const kDrafts = 5;
export const speculativeConfig = JSON.stringify(
  { method: 'hybrid_mtp_ngram', num_speculative_tokens: kDrafts, num_model_steps: 3, max_ngram_size: 3, min_ngram_size: 1,
    adaptive: false });

const user = (content) => [{ role: 'user', content }];
const text = 'Alice was a pilot who lived in Porto. Alice loved a little duck whose name was Mostose. ' +
  'On a hot Saturday night, Alice went to the theater.';
const chats = [
  { messages: user(`Repeat this: ${text}`), temperature: 0, max_tokens: 60 },
  { messages: user('Write a story about a pilot.'), temperature: 0, max_tokens: 80 },
  { messages: user('Write a story about a singer.'), temperature: 0.8, seed: 11, max_tokens: 80 },
  { messages: user('Write a story about a banker.'), temperature: 1.5, seed: 12, top_p: 0.9, max_tokens: 60, ignore_eos: true },
  { messages: user('Write a story.'), temperature: 0.7, seed: 13, max_tokens: 60, repetition_penalty: 1.2, presence_penalty: 0.5 },
  { messages: user('Write a story about a duck.'), temperature: 0, max_tokens: 80, stop: ['. '] },
  { messages: user('Write a story about a friend.'), temperature: 0.5, seed: 14, max_tokens: 40, min_tokens: 40 },
  { messages: user('Answer with a JSON object with the keys city and day.'), temperature: 1, seed: 15, max_tokens: 90,
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema: {
      type: 'object', properties: { city: { type: 'string', maxLength: 12 }, day: { enum: ['Sunday', 'Monday'] } },
      required: ['city', 'day'], additionalProperties: false } } } },
].map((chat) => ({ model: 'demo', logprobs: true, top_logprobs: 3, ...chat }));

function ofWhole(answer) {
  const [choice] = answer.choices;
  return {
    content: choice.message.content, logprobs: choice.logprobs.content, reason: choice.finish_reason,
    tokens: answer.usage.completion_tokens, metrics: choice.speculate_metrics, details: answer.usage.completion_tokens_details,
  };
}

async function ofStream(stream) {
  const out = { content: '', logprobs: [] };
  for await (const chunk of stream) {
    const [choice] = chunk.choices;
    if (!choice) {
      out.tokens = chunk.usage.completion_tokens;
      out.details = chunk.usage.completion_tokens_details;
      continue;
    }
    // Only the last chunk of the choice has them.
    assert.equal(out.metrics, undefined);
    out.content += choice.delta.content ?? '';
    out.logprobs.push(...(choice.logprobs?.content ?? []));
    out.reason = choice.finish_reason;
    out.metrics = choice.speculate_metrics;
    assert.equal(choice.speculate_metrics !== undefined && choice.speculate_metrics !== null, choice.finish_reason !== null);
  }
  return out;
}

const same = ({ content, logprobs, reason, tokens }) => ({ content, logprobs, reason, tokens });
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/// The definitions of FastDeploy.
function check({ metrics, tokens, details }) {
  const heads = metrics.accepted_tokens_per_head;
  const steps = heads[0];
  assert.equal(heads.length, kDrafts + 1);
  assert.equal(metrics.accept_ratio_per_head.length, kDrafts);
  assert.equal(sum(heads), tokens);
  assert.equal(metrics.accepted_tokens, tokens);
  assert.equal(metrics.rejected_tokens, steps * (kDrafts + 1) - tokens);
  assert.ok(Math.abs(metrics.accept_ratio - (1 - steps / tokens)) < 1e-12);
  assert.ok(Math.abs(metrics.average_accept_length - tokens / steps) < 1e-12);
  metrics.accept_ratio_per_head.forEach((ratio, i) => assert.ok(Math.abs(ratio - (heads[i] ? heads[i + 1] / heads[i] : 0)) < 1e-12));
  const { proposed_drafts: proposed, accepted_drafts: accepted } = metrics;
  for (const source of ['mtp', 'ngram']) assert.ok(accepted[source] <= proposed[source]);
  const given = accepted.mtp + accepted.ngram;
  assert.ok(tokens - steps <= given && given <= tokens);
  assert.equal(details.accepted_prediction_tokens, given);
  assert.equal(details.rejected_prediction_tokens, proposed.mtp + proposed.ngram - given);
}

export const speculationTests = [
  ['speculation: streamed = whole = without drafts, with log-probabilities', async ({ drafting, client, openai }) => {
    const spec = client(drafting);
    const counters = () => Promise.all(['num_draft_tokens', 'num_accepted_tokens', 'num_accepted_tokens_per_pos']
      .map((name) => drafting.metric(`vllm:spec_decode_${name}_total`)));
    const before = await counters();
    const drafted = await Promise.all(chats.flatMap((chat) => [
      spec.chat.completions.create(chat).then(ofWhole),
      spec.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } }).then(ofStream),
    ]));
    const plain = await Promise.all(chats.map((chat) => openai.chat.completions.create(chat).then(ofWhole)));
    const totals = { proposed: 0, accepted: 0 };
    for (const [i, answer] of plain.entries()) {
      assert.equal(answer.metrics, undefined);
      assert.equal(answer.details.accepted_prediction_tokens, undefined);
      for (const other of drafted.slice(2 * i, 2 * i + 2)) {
        assert.deepEqual(same(other), same(answer));
        check(other);
        totals.proposed += sum(Object.values(other.metrics.proposed_drafts));
        totals.accepted += sum(Object.values(other.metrics.accepted_drafts));
      }
    }
    assert.ok(totals.accepted > 100 && totals.accepted < totals.proposed, JSON.stringify(totals));
    // What the answers told is what the counters counted.
    await drafting.reaches('vllm:spec_decode_num_draft_tokens_total', before[0] + totals.proposed);
    const after = await counters();
    assert.deepEqual(after.map((value, i) => value - before[i]), [totals.proposed, totals.accepted, totals.accepted]);
  }],

  ['speculation: completions, n, echo', async ({ drafting, client, openai }) => {
    const request = { model: 'demo', prompt: 'Luke was a singer who', max_tokens: 40, temperature: 0.6, seed: 5, n: 3, logprobs: 2, echo: true };
    const drafted = await client(drafting).completions.create(request);
    const plain = await openai.completions.create(request);
    const told = drafted.choices.map((choice) => choice.speculate_metrics);
    for (const choice of drafted.choices) delete choice.speculate_metrics;
    assert.deepEqual(drafted.choices, plain.choices);
    assert.equal(sum(told.map((metrics) => metrics.accepted_tokens)), drafted.usage.completion_tokens);
  }],

  ['speculation: the live view tells of it', async ({ drafting, demo }) => {
    const live = async (server) => (await fetch(`${server.url}/weft/live`)).json();
    // The view is sampled once a second, so it may not know yet of the requests before.
    const end = Date.now() + 10_000;
    let view = await live(drafting);
    while (view.totals.drafts.proposed.mtp === 0 && Date.now() < end) {
      await sleep(50);
      view = await live(drafting);
    }
    assert.equal(view.limits.speculative_tokens, kDrafts);
    assert.ok(view.totals.drafts.proposed.mtp > 0);
    assert.equal((await live(demo)).totals.drafts, undefined);
  }],
];
