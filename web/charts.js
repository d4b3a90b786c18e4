// Charts as SVG, drawn for the width they have. Colours come from the style sheet.

import {h, s, rate} from "./dom.js";

/** The next round number, one that halves well. */
function roundUp(x) {
  if (!(x > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 3, 4, 6, 8, 10].find((step) => step * size >= x * 0.9999) * size;
}

const short = (x) => (x >= 1e6 ? `${+(x / 1e6).toPrecision(3)}M` : x >= 1e4 ? `${+(x / 1e3).toPrecision(3)}k` : `${+x.toPrecision(3)}`);

export function ago(seconds) {
  if (!Number.isFinite(seconds)) return "";
  return seconds < 1 ? "now" : seconds < 90 ? `${Math.round(seconds)} s ago` : `${Math.round(seconds / 60)} min ago`;
}

/** One tip for all charts, beside the pointer. */
const tip = h("div", {class: "tip", hidden: true});

function hover(svg, textAt) {
  svg.addEventListener("pointermove", (event) => {
    const text = textAt(event.clientX - svg.getBoundingClientRect().left);
    tip.hidden = !text;
    if (!text) return;
    if (!tip.isConnected) document.body.append(tip);
    tip.textContent = text;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${left}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  svg.addEventListener("pointerleave", () => (tip.hidden = true));
}

/** A box with a chart: draw() gets the SVG and its width, and redraws all of it. */
function chart(height, label, draw, textAt) {
  const svg = s("svg", {class: "chart", height, role: "img", "aria-label": label});
  let at = () => "";
  hover(svg, (x) => at(x));
  return {
    node: svg,
    update: (data) => {
      const width = svg.clientWidth;
      if (!width) return;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const shapes = draw(data, width);
      svg.setAttribute("aria-label", shapes.label ?? label);
      svg.replaceChildren(...shapes.nodes);
      at = (x) => textAt(data, x, shapes);
    },
  };
}

const LEFT = 38;
const FOOT = 20;
const TOP = 8;

function axis(width, height, top, yOf, ticks, format) {
  return ticks.flatMap((value) => {
    const y = Math.round(yOf(value)) + 0.5;
    return [s("path", {class: "grid", d: `M${LEFT} ${y}H${width}`}), s("text", {x: LEFT - 7, y: y + 4, "text-anchor": "end"}, format(value))];
  });
}

/**
 * Values over time. data: {now, span (seconds), time: [], lines: [{name, color, values}], max?}; null values are gaps.
 * `unit` follows a value in the tip; `percent`: values are shares.
 */
export function lineChart(height, title, {unit = "", percent = false, whole = false} = {}) {
  const say = (x) => (percent ? `${Math.round(x * 100)}%` : whole ? `${Math.round(x)}` : rate(x)) + unit;
  const draw = (data, width) => {
    const {now, span, time, lines} = data;
    const found = Math.max(0, ...lines.flatMap((line) => line.values.map((value) => value ?? 0)));
    const top = percent ? 1 : Math.max(roundUp(found), whole ? 2 : 1);
    const xOf = (t) => LEFT + (width - LEFT) * Math.max(0, 1 - (now - t) / span);
    const yOf = (value) => TOP + (height - TOP - FOOT) * (1 - value / top);
    const nodes = axis(width, height, top, yOf, [0, top / 2, top], percent ? (x) => `${x * 100}%` : short);
    const begin = time.findIndex((t) => now - t <= span);
    for (const {color, values} of begin < 0 ? [] : lines) {
      let d = "", area = "", open = false, last = 0;
      for (let i = begin; i < time.length; i++) {
        const gap = values[i] == null || (i > begin && time[i] - time[i - 1] > 5);
        if (gap && open) area += `L${last.toFixed(1)} ${yOf(0)}Z`;
        if (gap) open = false;
        if (values[i] == null) continue;
        const x = xOf(time[i]), y = yOf(values[i]).toFixed(1);
        d += `${open ? "L" : "M"}${x.toFixed(1)} ${y}`;
        area += open ? `L${x.toFixed(1)} ${y}` : `M${x.toFixed(1)} ${yOf(0)}L${x.toFixed(1)} ${y}`;
        open = true;
        last = x;
      }
      if (open) area += `L${last.toFixed(1)} ${yOf(0)}Z`;
      // A lone sample would have no length: a dot shows it.
      if (lines.length === 1) nodes.push(s("path", {class: `area ${color}`, d: area}));  // several would mix their colours
      nodes.push(s("path", {class: `line ${color}`, d: d.replace(/(M([\d.]+ [\d.]+))(?=M|$)/g, "$1L$2")}));
    }
    nodes.push(s("text", {x: LEFT, y: height - 4}, ago(span)), s("text", {x: width, y: height - 4, "text-anchor": "end"}, "now"));
    const values = lines.map((line) => `${line.name} ${say(line.values.findLast((x) => x != null) ?? 0)}`).join(", ");
    return {nodes, xOf, label: `${title}: ${values}`};
  };
  return chart(height, title, draw, ({now, time, lines}, x, {xOf}) => {
    let best = -1;
    for (let i = 0; i < time.length; i++) if (best < 0 || Math.abs(xOf(time[i]) - x) < Math.abs(xOf(time[best]) - x)) best = i;
    if (best < 0 || Math.abs(xOf(time[best]) - x) > 12) return "";
    return [ago(now - time[best]), ...lines.map((line) => `${line.name}  ${line.values[best] == null ? "–" : say(line.values[best])}`)].join("\n");
  });
}

/**
 * The last steps of the engine, a bar each: height is its duration (square-root scale: a prompt of half a second and a
 * decode of five milliseconds both show), colours its rows by kind.
 */
export function stepChart(height) {
  const SLOTS = 200;
  const draw = ({steps, now}, width) => {
    const top = roundUp(Math.max(1, ...steps.map((step) => step.ms ?? 0)));
    const room = height - TOP - FOOT;
    const yOf = (ms) => TOP + room * (1 - Math.sqrt(Math.max(0, ms) / top));
    const slot = (width - LEFT) / SLOTS;
    const bar = Math.max(1, slot - (slot > 3 ? 1 : 0.4));
    const first = SLOTS - steps.length;
    const paths = {prompt: "", decode: "", marks: ""};
    steps.forEach((step, i) => {
      const x = LEFT + (first + i) * slot;
      const high = Math.max(1.5, yOf(0) - yOf(step.ms ?? 0));
      const rows = (step.prompt_rows ?? 0) + (step.decode_rows ?? 0);
      const part = rows ? high * (step.decode_rows ?? 0) / rows : high;
      const box = (from, to) => (to - from < 0.1 ? "" : `M${x.toFixed(2)} ${(yOf(0) - from).toFixed(2)}h${bar.toFixed(2)}V${(yOf(0) - to).toFixed(2)}h${(-bar).toFixed(2)}z`);
      paths.decode += box(0, part);
      paths.prompt += box(part, high);
      if (step.preempted) paths.marks += `M${x.toFixed(2)} ${TOP - 6}h${bar.toFixed(2)}v4h${(-bar).toFixed(2)}z`;
    });
    const ticks = [0, top / 10, top / 2, top];
    return {
      nodes: [
        ...axis(width, height, top, yOf, ticks, (ms) => short(ms)),
        s("path", {class: "fill c-weld", d: paths.decode}),
        s("path", {class: "fill c-indigo", d: paths.prompt}),
        s("path", {class: "fill c-madder", d: paths.marks}),
        s("text", {x: LEFT + first * slot, y: height - 4}, steps.length > 20 ? ago(now - steps[0].start) : ""),
        s("text", {x: width, y: height - 4, "text-anchor": "end"}, steps.length ? ago(now - steps.at(-1).start) : ""),
      ],
      first, slot,
      label: `The last ${steps.length} steps of the engine, by duration`,
    };
  };
  return chart(height, "Steps", draw, ({steps}, x, {first, slot}) => {
    const step = steps[Math.floor((x - LEFT) / slot) - first];
    if (!step) return "";
    const lines = [`step ${step.step}`, `${(step.ms ?? 0).toFixed(1)} ms`, `${step.prompt_rows ?? 0} prompt rows`, `${step.decode_rows ?? 0} decode rows`,
                   `${step.sequences ?? step.running ?? 0} sequences`];
    if (step.preempted) lines.push(`${step.preempted} preempted`);
    return lines.join("\n");
  });
}
