// The live view: GET weft/live once a second while somebody looks (docs/server.md has its shape). Every field may be absent.

import {h, count, duration, rate} from "./dom.js";
import {getJson} from "./api.js";
import {lineChart, stepChart} from "./charts.js";

const KEEP_SAMPLES = 600;
const KEEP_STEPS = 200;

/** What the answers of the server add up to: samples by column, and the latest steps. */
export class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.columns = {time: []};
    this.steps = [];
    this.latest = null;
  }

  /** Takes an answer; what is older than what is known is not taken twice. */
  take(answer) {
    if (this.latest && (answer.uptime ?? 0) < (this.latest.uptime ?? 0)) this.clear();  // the server was started anew
    this.latest = answer;
    const samples = answer.samples ?? {};
    const times = samples.time ?? [];
    const known = this.columns.time.at(-1) ?? -Infinity;
    const from = times.findIndex((time) => time > known);
    if (from >= 0) {
      const had = this.columns.time.length;
      for (const [name, values] of Object.entries(samples)) {
        if (!Array.isArray(values)) continue;
        const column = (this.columns[name] ??= new Array(had).fill(null));
        column.push(...values.slice(from));
      }
      for (const column of Object.values(this.columns)) column.splice(0, column.length - KEEP_SAMPLES);
    }
    const last = this.steps.at(-1)?.step ?? -1;
    this.steps.push(...(answer.steps ?? []).filter((step) => step.step > last));
    this.steps.splice(0, this.steps.length - KEEP_STEPS);
  }

  column(name) {
    return this.columns[name] ?? new Array(this.columns.time.length).fill(null);
  }

  now(name) {
    return this.column(name).at(-1) ?? null;
  }

  /** Mean of the known values of the last `seconds`. */
  mean(name, seconds) {
    const since = (this.columns.time.at(-1) ?? 0) - seconds;
    const values = this.column(name).filter((value, i) => value != null && this.columns.time[i] > since);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  }
}

const share = (part, whole) => (whole > 0 && part != null ? part / whole : null);
const percent = (x) => (x == null ? "–" : `${(x * 100).toFixed(x > 0 && x < 0.1 ? 1 : 0)}%`);

function meter(name) {
  const used = h("i");
  const held = h("i", {class: "held"});
  const value = h("span", {class: "value"});
  const track = h("div", {class: "track", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 1}, used, held);
  return {
    node: (color) => h("div", {class: `meter ${color}`}, h("div", {class: "head"}, h("span", null, name), value), track),
    set: (part, kept, text) => {
      used.style.width = `${100 * (part ?? 0)}%`;
      held.style.width = `${100 * (kept ?? 0)}%`;
      value.textContent = text;
      track.setAttribute("aria-valuenow", (part ?? 0).toFixed(3));
      track.setAttribute("aria-valuetext", text);
    },
  };
}

const legend = (...entries) => h("div", {class: "legend"}, ...entries.map(([name, color]) => h("span", {class: color}, h("i"), name)));
const card = (size, title, ...content) => h("section", {class: `card ${size}`}, title ? h("h2", null, title) : null, ...content);

export class Live {
  /** `askKey(reason)`: lets the user type an API key, true when one was given. */
  constructor(root, askKey) {
    this.root = root;
    this.askKey = askKey;
    this.history = new History();
    this.wanted = false;
    this.timer = 0;
    this.build();
    document.addEventListener("visibilitychange", () => this.go());
    new ResizeObserver(() => this.wanted && this.draw()).observe(root);
  }

  build() {
    this.badge = h("span", {class: "badge"}, h("i"), h("span", null, "…"));
    this.title = h("span", {class: "value hint"});
    this.generation = h("p", {class: "big", id: "live-generation"}, "–");
    this.prompt = h("p", {class: "big", id: "live-prompt"}, "–");
    this.requests = h("p", {class: "big", id: "live-requests"}, "–");
    this.charts = {
      generation: lineChart(150, "Generated tokens per second", {unit: " tok/s"}),
      prompt: lineChart(150, "Prompt tokens per second", {unit: " tok/s"}),
      requests: lineChart(156, "Requests", {whole: true}),
      hits: lineChart(118, "Hit rates", {percent: true}),
      drafts: lineChart(118, "Accepted drafts", {percent: true}),
      steps: stepChart(176),
    };
    this.blocks = meter("KV blocks");
    this.slots = meter("State slots");
    this.slotsNode = this.slots.node("c-leaf");
    this.memory = h("p", {class: "big", id: "live-memory"}, "–");
    this.hits = h("p", {class: "big", id: "live-hits"}, "–");
    this.hitFacts = h("p", {class: "hint"});
    this.drafts = h("p", {class: "big", id: "live-drafts"}, "–");
    this.draftFacts = h("p", {class: "hint"});
    this.places = h("div");
    this.draftsNode = card("full", "Speculation", h("div", {class: "drafts"}, h("div", null, this.drafts, this.charts.drafts.node, this.draftFacts), this.places));
    this.heads = h("p", {class: "big", id: "live-heads"}, "–");
    this.headFacts = h("p", {class: "hint"});
    this.headsNode = card("full", "Sparse prompts", this.heads, this.headFacts);
    this.memoryFacts = h("p", {class: "hint"});
    this.stepFacts = h("span", {class: "hint"});
    this.facts = h("dl", {class: "facts"});
    this.note = h("p", {class: "live-note", hidden: true});
    this.grid = h("div", {class: "live"},
      h("div", {class: "live-head"}, this.badge, this.title),
      card("", "Generated", this.generation, this.charts.generation.node),
      card("", "Prompts", this.prompt, this.charts.prompt.node),
      card("third", "Requests", this.requests, legend(["running", "c-indigo"], ["waiting", "c-madder"]), this.charts.requests.node),
      card("third", "Memory", this.memory, this.blocks.node("c-indigo"), this.slotsNode, this.memoryFacts),
      card("third", "Prefix cache", this.hits, legend(["KV found", "c-indigo"], ["reused", "c-weld"], ["state", "c-leaf"]), this.charts.hits.node, this.hitFacts),
      this.draftsNode,
      this.headsNode,
      h("section", {class: "card full"},
        h("div", {class: "head"}, h("h2", null, "Steps, milliseconds each"), legend(["prompt rows", "c-indigo"], ["decode rows", "c-weld"], ["preempted", "c-madder"]), this.stepFacts),
        this.charts.steps.node),
      card("full", "Engine", this.facts));
    this.root.replaceChildren(h("h2", {class: "offscreen"}, "Live view of the engine"), this.note, this.grid);
    this.grid.hidden = true;
  }

  /** Whether the view is on show: it asks the server only then, and only while the page is visible. */
  show(wanted) {
    this.wanted = wanted;
    this.go();
  }

  go() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (this.wanted && !document.hidden && !this.asking) this.poll();
  }

  async poll() {
    this.asking = true;
    let wait = 1000;
    try {
      const since = this.history.latest?.now;
      this.history.take(await getJson(since ? `weft/live?since=${since}` : "weft/live"));
      this.failed = null;
    } catch (error) {
      this.failed = error;
      wait = 3000;
      if (error.status === 401 && (await this.askKey(error.message))) wait = 0;
    }
    this.asking = false;
    if (!this.wanted) return;
    this.draw();
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), wait);
  }

  draw() {
    const {history} = this;
    const {latest} = history;
    if (!latest) {
      this.grid.hidden = true;
      this.note.hidden = !this.failed;
      this.note.textContent = this.failed?.status === 404 ? "This server has no live view." : this.failed?.message ?? "";
      return;
    }
    this.note.hidden = true;
    this.grid.hidden = false;
    this.drawHead(latest);
    this.drawRates();
    this.drawMemory(latest);
    this.drawHits(latest);
    this.drawDrafts(latest);
    this.drawHeads(latest);
    const {steps} = history;
    this.charts.steps.update({steps, now: latest.now ?? 0});
    const middle = steps.map((step) => step.ms ?? 0).sort((a, b) => a - b)[steps.length >> 1];
    this.stepFacts.textContent = steps.length ? `median ${middle < 10 ? middle.toFixed(2) : middle.toFixed(1)} ms` : "no step yet";
    this.drawFacts(latest);
  }

  drawHead({state = "ready", model, uptime}) {
    const shown = this.failed ? "unreachable" : state;
    this.badge.className = `badge ${{ready: "", loading: "waiting", draining: "waiting"}[shown] ?? "bad"}`;
    this.badge.lastChild.textContent = shown;
    this.title.textContent = [model, uptime != null ? `up ${duration(uptime)}` : null].filter(Boolean).join("  ·  ");
  }

  drawRates() {
    const {history} = this;
    const {time} = history.columns;
    const now = time.at(-1) ?? history.latest.now ?? 0;
    const have = time.length ? now - time[0] : 0;
    const span = [60, 120, 300, 600].find((seconds) => have <= seconds) ?? 600;
    const draw = (chart, ...lines) => chart.update({now, span, time, lines: lines.map(([name, column, color]) => ({name, color, values: history.column(column)}))});
    const big = (node, value, unit, more) => node.replaceChildren(value, h("small", null, unit), more ? h("small", null, more) : "");
    const speed = (node, name) => {
      const at = history.now(name);
      const mean = history.mean(name, span);
      big(node, at == null ? "–" : at === 0 ? "0" : rate(at), "tokens/s", mean == null ? "" : `mean ${rate(mean)}`);
    };
    speed(this.generation, "generation_tokens_per_s");
    speed(this.prompt, "prompt_tokens_per_s");
    draw(this.charts.generation, ["generated", "generation_tokens_per_s", "c-weld"]);
    draw(this.charts.prompt, ["prompt", "prompt_tokens_per_s", "c-indigo"]);
    this.requests.replaceChildren(`${history.now("running") ?? "–"}`, h("small", null, "running"), h("small", null, `${history.now("waiting") ?? 0} waiting`));
    draw(this.charts.requests, ["running", "running", "c-indigo"], ["waiting", "waiting", "c-madder"]);
    draw(this.charts.hits, ["KV found", "kv_hit_rate", "c-indigo"], ["reused", "reuse_rate", "c-weld"], ["state", "state_hit_rate", "c-leaf"]);
    draw(this.charts.drafts, ["accepted", "draft_acceptance", "c-leaf"]);
  }

  drawMemory({limits = {}}) {
    const {history} = this;
    const fill = (target, used, cached, total) => {
      const text = used == null ? "–" : `${count(used)} of ${total ? count(total) : "?"}`;
      target.set(share(used, total), share(cached, total), text);
    };
    const used = history.now("blocks_used");
    fill(this.blocks, used, history.now("blocks_cached"), limits.blocks);
    fill(this.slots, history.now("slots_used"), history.now("slots_cached"), limits.slots);
    this.slotsNode.hidden = limits.slots === 0;
    this.memory.replaceChildren(percent(share(used, limits.blocks)), h("small", null, "of the KV blocks in use"));
    const kept = history.now("blocks_cached");
    this.memoryFacts.textContent = kept == null ? "" : `Striped: free for the taking, and holding a prefix (${count(kept)} blocks, ${count(history.now("slots_cached") ?? 0)} slots).`;
  }

  drawHits({totals = {}}) {
    const looked = totals.looked_up_tokens;
    this.hits.replaceChildren(percent(share(totals.reused_tokens, looked)), h("small", null, "of the prompt tokens reused"));
    const parts = [];
    if (looked != null) parts.push(`KV found for ${percent(share(totals.kv_hit_tokens, looked))} of ${count(looked)} tokens`);
    if (totals.state_hits != null) parts.push(`${count(totals.state_hits)} ${totals.state_hits === 1 ? "sequence" : "sequences"} began from a stored state`);
    this.hitFacts.textContent = parts.join("; ");
  }

  /** How drafts fare: only of a server that speculates. */
  drawDrafts({limits = {}, totals = {}}) {
    const drafts = totals.drafts;
    this.draftsNode.hidden = !(limits.speculative_tokens > 0 && drafts);
    if (this.draftsNode.hidden) return;
    const {mtp = 0, ngram = 0} = drafts.proposed ?? {};
    const accepted = drafts.accepted ?? {};
    const length = share(drafts.emitted, drafts.sequence_steps);
    this.drafts.replaceChildren(length == null ? "–" : length.toFixed(2), h("small", null, "tokens a step"),
      h("small", null, `${percent(share((accepted.mtp ?? 0) + (accepted.ngram ?? 0), mtp + ngram))} of the drafts accepted`));
    const from = [["mtp", "MTP", mtp], ["ngram", "n-gram", ngram]].filter(([, , proposed]) => proposed > 0);
    this.draftFacts.textContent = from.map(([key, name, proposed]) => `${name}: ${percent(share(accepted[key] ?? 0, proposed))} of ${count(proposed)} drafts`).join("; ");
    // Of the steps with drafts, those whose n-th draft was accepted.
    if (this.placeMeters?.length !== limits.speculative_tokens) {
      this.placeMeters = Array.from({length: limits.speculative_tokens}, (_, i) => meter(`Draft ${i + 1}`));
      this.places.replaceChildren(...this.placeMeters.map((place) => place.node("c-leaf")));
    }
    this.placeMeters.forEach((place, i) => {
      const part = share(drafts.accepted_at?.[i] ?? 0, drafts.draft_steps);
      place.set(part, 0, percent(part));
    });
  }

  /** What the heads of prompts saw: only where they see less than all keys. */
  drawHeads({totals = {}}) {
    const heads = totals.heads;
    this.headsNode.hidden = !heads;
    if (!heads) return;
    const {full = 0, streaming = 0, blocks = 0} = heads;
    const all = full + streaming + blocks;
    this.heads.replaceChildren(percent(share(heads.computed_blocks, heads.causal_blocks)), h("small", null, "of the attention of prompts computed"));
    const parts = [[full, "full"], [streaming, "streaming"], [blocks, "by blocks"]].filter(([n]) => n > 0);
    this.headFacts.textContent = `Heads: ${parts.map(([n, name]) => `${percent(share(n, all))} ${name}`).join(", ")}` +
      (heads.layer_steps > 0 ? `; ${count(heads.layer_steps)} steps of some layers of one long prompt` : "");
  }

  drawFacts({limits = {}, totals = {}}) {
    const known = [
      ["Longest context", limits.max_model_len, (x) => `${count(x)} tokens`],
      ["Requests at once", limits.max_num_seqs, count],
      ["KV capacity", limits.blocks * limits.block_size || null, (x) => `${count(x)} tokens`],
      ["Block", limits.block_size, (x) => `${count(x)} tokens`],
      ["Steps", totals.steps, count],
      ["Finished requests", totals.finished, count],
      ["Prompt tokens", totals.prompt_tokens, count],
      ["Generated tokens", totals.generated_tokens, count],
      ["Preemptions", totals.preemptions, count],
    ];
    this.facts.replaceChildren(...known.filter(([, value]) => value != null).map(([name, value, say]) => h("div", null, h("dt", null, name), h("dd", null, say(value)))));
  }
}
