// The panel of parameters. What is left empty is not sent: the server's default holds.

import {h, byId} from "./dom.js";
import {readJson} from "./store.js";

const KEY = "weft.params";

const NUMBERS = [
  {name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, hint: "0 always takes the likeliest token"},
  {name: "max_tokens", label: "Max tokens", min: 1, step: 1, hint: "Length of the answer, thinking included"},
  {name: "top_p", label: "Top p", min: 0, max: 1, step: 0.01, hint: "Only the likeliest tokens that together have this probability"},
  {name: "top_k", label: "Top k", min: -1, step: 1, hint: "Only so many of the likeliest tokens"},
  {name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, hint: "Only tokens this likely, measured against the likeliest"},
  {name: "seed", label: "Seed", step: 1, hint: "The same seed gives the same answer"},
  {name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, hint: "Against tokens that have come up"},
  {name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, hint: "Against tokens by how often they came up"},
  {name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 2, step: 0.05, hint: "Above 1: against repeating prompt and answer"},
];

const EXAMPLE_TOOL = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: {type: "object", properties: {city: {type: "string"}}, required: ["city"]},
  },
}];

/** The form, its values, and the part of a request that they make. */
export class Params {
  constructor(form) {
    this.values = readJson(KEY, {});
    this.form = form;
    this.models = [];
    this.build();
  }

  build() {
    const area = (name, label, rows, hint, placeholder) =>
      h("div", {class: "field wide"},
        h("label", {for: `p-${name}`}, label),
        h("textarea", {id: `p-${name}`, name, rows, placeholder, spellcheck: "false", "aria-describedby": `p-${name}-hint`}),
        h("p", {class: "hint", id: `p-${name}-hint`}, hint));
    const choice = (name, label, options) =>
      h("div", {class: "field wide"},
        h("label", {for: `p-${name}`}, label),
        h("select", {id: `p-${name}`, name}, ...options.map(([value, text]) => h("option", {value}, text))));
    this.form.replaceChildren(
      choice("model", "Model", []),
      area("system", "System prompt", 3, "Comes before every conversation", "You are a helpful assistant."),
      choice("thinking", "Thinking", [["", "The model’s default"], ["on", "On"], ["off", "Off"]]),
      h("div", {class: "numbers"}, ...NUMBERS.map((p) =>
        h("div", {class: "field", title: p.hint},
          h("label", {for: `p-${p.name}`}, p.label),
          h("input", {id: `p-${p.name}`, name: p.name, type: "number", min: p.min, max: p.max, step: p.step, placeholder: "default",
                      inputmode: p.step === 1 ? "numeric" : "decimal"})))),
      area("stop", "Stop strings", 2, "One a line; the answer ends before the first that comes up", ""),
      area("tools", "Tools", 5, "A JSON array of functions, as in the OpenAI API", "[ ]"),
      choice("tool_choice", "Tool choice", [["", "Auto"], ["required", "Required"], ["none", "None"]]),
      h("div", {class: "row"},
        h("button", {type: "button", class: "quiet", onclick: () => this.set("tools", JSON.stringify(EXAMPLE_TOOL, null, 2))}, "Example tool"),
        h("button", {type: "button", class: "quiet", onclick: () => this.reset()}, "Reset all")));
    this.show();
    this.form.addEventListener("input", (event) => this.take(event.target));
    this.form.addEventListener("submit", (event) => event.preventDefault());
  }

  show() {
    for (const field of this.form.elements) if (field.name) field.value = this.values[field.name] ?? "";
    this.form.elements.model.value = this.model();
    this.check();
  }

  take(field) {
    if (field.value === "") delete this.values[field.name];
    else this.values[field.name] = field.value;
    this.check();
    try {
      localStorage.setItem(KEY, JSON.stringify(this.values));
    } catch {
      // No room or no storage: the values hold until the page is left.
    }
    this.changed?.();
  }

  set(name, value) {
    this.form.elements[name].value = value;
    this.take(this.form.elements[name]);
  }

  reset() {
    this.values = {};
    localStorage.removeItem(KEY);
    this.show();
    this.changed?.();
  }

  /** Marks the tools box when it holds no array. */
  check() {
    const field = this.form.elements.tools;
    const bad = this.tools() === null;
    field.setAttribute("aria-invalid", bad);
    byId("p-tools-hint").textContent = bad ? "This is not a JSON array yet: it will not be sent." : "A JSON array of functions, as in the OpenAI API";
  }

  /** The tools, undefined for none, null where the text is not an array. */
  tools() {
    const text = (this.values.tools ?? "").trim();
    if (!text) return undefined;
    try {
      const tools = JSON.parse(text);
      return Array.isArray(tools) ? (tools.length ? tools : undefined) : null;
    } catch {
      return null;
    }
  }

  setModels(models) {
    this.models = models;
    this.form.elements.model.replaceChildren(...models.map((model) => h("option", {value: model.id}, model.id)));
    this.form.elements.model.value = this.model();
    this.changed?.();
  }

  /** The chosen model, as long as the server has it. */
  model() {
    const chosen = this.values.model;
    return this.models.some((model) => model.id === chosen) ? chosen : this.models[0]?.id ?? "";
  }

  /** Whether the chosen model takes pictures, from what its entry of /v1/models says. */
  takesImages() {
    return this.takes(/^(image|vision)$/i);
  }

  takesVideos() {
    return this.takes(/^video$/i);
  }

  takes(kind) {
    const entry = this.models.find((model) => model.id === this.model());
    const says = (value) =>
      Array.isArray(value) ? value.some((x) => kind.test(x))
      : value && typeof value === "object" ? says(value.input) || Object.keys(value).some((x) => kind.test(x) && value[x] === true)
      : false;
    return !!entry && [entry.modalities, entry.input_modalities, entry.capabilities, entry.architecture?.input_modalities].some(says);
  }

  /** How many values are set, for the badge of the button. */
  count() {
    return Object.keys(this.values).filter((name) => name !== "model").length;
  }

  system() {
    return (this.values.system ?? "").trim();
  }

  /** The fields of a request. */
  request() {
    const body = {model: this.model()};
    for (const {name} of NUMBERS) {
      const value = Number(this.values[name]);
      if ((this.values[name] ?? "") !== "" && Number.isFinite(value)) body[name] = value;
    }
    if (this.values.thinking) body.chat_template_kwargs = {enable_thinking: this.values.thinking === "on"};
    const stop = (this.values.stop ?? "").split("\n").filter((line) => line !== "");
    if (stop.length) body.stop = stop;
    const tools = this.tools();
    if (tools) {
      body.tools = tools;
      if (this.values.tool_choice) body.tool_choice = this.values.tool_choice;
    }
    return body;
  }
}
