// How one message looks. Views show the state of a message object and change nothing in it.

import {h, s, icon, iconButton, copyText, count, duration, rate} from "./dom.js";
import {Markdown} from "./markdown.js";

/** Three threads that move while the model works. */
const weaving = () => s("svg", {viewBox: "0 0 24 12", class: "weaving", "aria-hidden": "true"},
  ...[2, 6, 10].map((y) => s("path", {d: `M1 ${y}h22`})));

/** {"a":1} -> indented; what is not JSON (yet) stays as it is. */
function prettyJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A message of the user: text as it was typed, pictures, and ways to copy and edit it. */
export class UserView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.node = h("article", {class: "message user", "aria-label": "You"});
    this.show();
  }

  show() {
    const copy = iconButton("copy", "Copy message", () => copyText(this.message.content, copy));
    this.node.replaceChildren(
      h("div", {class: "bubble"},
        this.message.images?.length ? h("div", {class: "pictures"}, ...this.message.images.map((src) => h("img", {src, alt: "Attached picture"}))) : null,
        this.message.videos?.length ? h("div", {class: "pictures"}, ...this.message.videos.map(({frames}) => h("img", {src: frames[0], alt: "Attached video"}))) : null,
        this.message.content ? h("div", {class: "typed"}, this.message.content) : null),
      h("div", {class: "actions"}, copy, iconButton("pencil", "Edit message", () => this.edit())));
  }

  edit() {
    const area = h("textarea", {"aria-label": "Edit message", value: this.message.content, rows: Math.min(12, this.message.content.split("\n").length + 1)});
    const done = () => {
      if (!area.value.trim() && !this.message.images?.length && !this.message.videos?.length) return;
      this.actions.edit(this.message, area.value);
    };
    const cancel = () => {
      this.show();
      this.node.querySelector("[aria-label='Edit message']").focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        done();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      }
    });
    this.node.replaceChildren(h("form", {class: "edit"}, area,
      h("div", {class: "row"},
        h("p", {class: "hint"}, "What follows this message is replaced."),
        h("button", {type: "button", class: "quiet", onclick: cancel}, "Cancel"),
        h("button", {type: "button", class: "strong", onclick: done}, "Send"))));
    area.focus();
  }
}

/** An answer, complete or growing. */
export class AnswerView {
  /** `actions`: regenerate(message), results(message). */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", {class: "prose"});
    this.markdown = new Markdown(this.body);
    this.tools = h("div", {class: "tools"});
    this.problem = h("div", {class: "problem", role: "alert", hidden: true});
    this.stats = h("p", {class: "stats"});
    this.wait = h("div", {class: "wait"}, weaving(), h("span", {class: "offscreen"}, "Waiting for the answer"));
    this.buttons = h("div", {class: "actions"});
    this.foot = h("footer", null, this.stats, this.buttons);
    this.node = h("article", {class: "message answer", "aria-label": "Answer"}, this.wait, this.body, this.tools, this.problem, this.foot);
    this.cards = [];
  }

  /** Shows the message as it is now; `live`: it is still growing, `last`: nothing comes after it. */
  update(live, last) {
    const {message} = this;
    this.node.classList.toggle("live", live);
    this.thinking(live);
    this.markdown.update(message.content);
    this.toolCards(live, last);
    this.wait.hidden = !live || message.content !== "" || message.toolCalls.length > 0;
    this.problem.hidden = !message.error;
    if (message.error && this.problem.textContent !== message.error) this.problem.replaceChildren(h("p", null, message.error));
    this.stats.textContent = statsLine(message, live);
    if (live !== this.live || last !== this.last) this.makeButtons(live, last);
    this.live = live;
    this.last = last;
  }

  thinking(live) {
    const {message} = this;
    if (!message.reasoning) return;
    if (!this.thought) {
      const body = h("div", {class: "prose"});
      this.thoughtText = new Markdown(body);
      this.thoughtLabel = h("span");
      this.thought = h("details", {class: "thought"}, h("summary", null, weaving(), this.thoughtLabel), body);
      // Folded thoughts cost nothing until somebody looks at them.
      this.thought.addEventListener("toggle", () => this.thought.open && this.thoughtText.update(this.message.reasoning));
      this.node.prepend(this.thought);
    }
    const busy = live && !message.content && !message.toolCalls.length;
    this.thought.classList.toggle("busy", busy);
    const time = message.thinkingSeconds ? ` ${busy ? "·" : "for"} ${duration(message.thinkingSeconds)}` : "";
    this.thoughtLabel.textContent = (busy ? "Thinking" : "Thought") + time;
    if (this.thought.open) this.thoughtText.update(message.reasoning);
    if (busy) this.wait.hidden = true;
  }

  toolCards(live, last) {
    const calls = this.message.toolCalls;
    while (this.cards.length < calls.length) {
      const card = {name: h("span", {class: "name"}), json: h("code"), node: null};
      const copy = iconButton("copy", "Copy arguments", () => copyText(card.json.textContent, copy));
      card.node = h("section", {class: "tool", "aria-label": "Tool call"},
        h("header", null, icon("tool"), card.name, copy), h("pre", {tabindex: "0"}, card.json));
      this.cards.push(card);
      this.tools.append(card.node);
    }
    calls.forEach((call, i) => {
      const card = this.cards[i];
      const text = prettyJson(call.arguments || "{}");
      card.name.textContent = call.name;
      if (card.json.textContent !== text) card.json.textContent = text;
      const open = last && !live;
      if (card.input) {
        card.input.readOnly = !open;
        card.field.hidden = !open && !call.result;
      } else if (open || call.result) {
        card.input = h("textarea", {rows: 2, placeholder: "What the tool returns", "aria-label": `Result of ${call.name}`, spellcheck: "false",
                                    value: call.result ?? "", readonly: !open, oninput: () => (call.result = card.input.value)});
        card.field = h("label", {class: "result"}, h("span", null, "Result"), card.input);
        card.node.append(card.field);
      }
    });
    const answerable = calls.length > 0 && last && !live;
    if (answerable && !this.sendResults) {
      this.sendResults = h("div", {class: "row"},
        h("button", {type: "button", class: "strong", onclick: () => this.actions.results(this.message)}, "Send results"));
      this.tools.append(this.sendResults);
    }
    if (this.sendResults) this.sendResults.hidden = !answerable;
  }

  makeButtons(live, last) {
    if (live) return this.buttons.replaceChildren();
    const copy = iconButton("copy", "Copy answer", () => copyText(this.message.content, copy));
    this.buttons.replaceChildren(this.message.content ? copy : "", last ? iconButton("again", "Regenerate answer", () => this.actions.regenerate(this.message)) : "");
  }
}

/** "41.8 tok/s · first token 120 ms · 18 + 256 tokens", as far as it is known. */
function statsLine({stats, reasoning}, live) {
  if (!stats) return "";
  const parts = [];
  if (stats.rate) parts.push(`${rate(stats.rate)} tok/s`);
  if (stats.firstToken) parts.push(`first token ${duration(stats.firstToken)}`);
  if (stats.prompt !== undefined) {
    const cached = stats.cached ? ` (${count(stats.cached)} cached)` : "";
    const thought = stats.thought ? ` (${count(stats.thought)} thought)` : "";
    parts.push(`${count(stats.prompt)} prompt${cached}`, `${count(stats.completion)} ${stats.completion === 1 ? "token" : "tokens"}${thought}`);
  } else if (stats.chunks) {
    parts.push(`${count(stats.chunks)} ${stats.chunks === 1 ? "token" : "tokens"}`);
  }
  if (!live && stats.finish && stats.finish !== "stop" && stats.finish !== "tool_calls")
    parts.push({length: "cut at the token limit", stopped: "stopped"}[stats.finish] ?? stats.finish);
  return parts.join("  ·  ");
}
