// Building DOM nodes. Text always becomes a text node: nothing here, or in any other module of the page, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** h("button", {class: "x", onclick: f}, "text", node...): an HTML element. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** The same for SVG. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

// 20 x 20, drawn with a stroke of 1.6; "|" parts two paths.
const ICONS = {
  plus: "M10 4v12M4 10h12",
  menu: "M3.5 6h13M3.5 10h13M3.5 14h8",
  sliders: "M3 6.5h7M14 6.5h3M3 13.5h3M10 13.5h7M12 4.5v4M8 11.5v4",
  send: "M10 16V4.5M5 9.2 10 4.2l5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7.5 7.5h8v8h-8zM4.5 12.5v-8h8",
  check: "m4.5 10.5 3.6 3.6 7.4-8",
  pencil: "m4.5 15.5.8-3.3 8-8 2.5 2.5-8 8zM11.5 6l2.5 2.5",
  trash: "M4.5 6h11M8 6V4.2h4V6M6 6l.7 9.8h6.6L14 6",
  again: "M15.8 8.2A6.2 6.2 0 1 0 16 11.4M16 4.4v4h-4",
  image: "M3.5 4.5h13v11h-13zM3.5 13l3.8-3.6 3.4 3.2 2.2-1.9 3.6 3M12.9 8.1h.1",
  close: "m5.5 5.5 9 9M14.5 5.5l-9 9",
  auto: "M10 3.5a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13|M10 3.5a6.5 6.5 0 0 0 0 13z",
  light: "M10 6.8a3.2 3.2 0 1 1 0 6.4 3.2 3.2 0 0 1 0-6.4M10 2.5v1.4M10 16.1v1.4M2.5 10h1.4M16.1 10h1.4M4.7 4.7l1 1M14.3 14.3l1 1M15.3 4.7l-1 1M5.7 14.3l-1 1",
  dark: "M16 11.6A6.6 6.6 0 0 1 8.4 4a6.4 6.4 0 1 0 7.6 7.6",
  key: "M7 9.2a3.4 3.4 0 1 1 0 6.8 3.4 3.4 0 0 1 0-6.8M9.5 10.2l6-6M13 6.7l2 2",
  tool: "M12.6 3.8a4 4 0 0 0-3.9 5.3l-5 5 2.2 2.2 5-5a4 4 0 0 0 5.2-4.9l-2.4 2.3-2.2-.2-.2-2.2 2.3-2.4z",
  down: "M10 4v11.5M5 10.8l5 5 5-5",
};

/** One of the icons above; decoration only, so hidden from assistive technology. */
export function icon(name) {
  return s("svg", {viewBox: "0 0 20 20", class: `icon icon-${name}`, "aria-hidden": "true"}, ...ICONS[name].split("|").map((d) => s("path", {d})));
}

/** A button that shows an icon and is named by `label`. */
export function iconButton(name, label, onclick, extra = "") {
  return h("button", {type: "button", class: `icon-button ${extra}`, "aria-label": label, title: label, onclick}, icon(name));
}

/** Puts `text` on the clipboard, also where the page is not served from a secure origin, and shows on `button` that it did. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", {class: "offscreen", value: text});
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const was = [...button.childNodes];
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(...was), 1200);
}

/** Says `text` to assistive technology. */
export function announce(text) {
  byId("status").textContent = text;
}

/** A short note at the foot of the window, with a button where there is something to do about it. */
export function toast(text, action, onclick) {
  const box = byId("toast");
  const hide = () => (box.hidden = true);
  box.replaceChildren(h("span", null, text));
  if (action) {
    box.append(h("button", {type: "button", onclick: () => {
      hide();
      onclick();
    }}, action));
  }
  box.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(hide, action ? 8000 : 5000);
}

const whole = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});
/** 1234567 -> "1,234,567". */
export const count = (n) => whole.format(n);
/** Seconds as a person says them: 0.12 -> "120 ms", 3.21 -> "3.2 s", 75 -> "1 min 15 s". */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = units.findIndex(([size]) => seconds >= size);
  const [[big, name], [small, rest]] = [units[at], units[at + 1]];
  const over = Math.floor((seconds % big) / small);
  return `${Math.floor(seconds / big)} ${name}${over ? ` ${over} ${rest}` : ""}`;
}
/** A rate with three digits that mean something: 3.14, 31.4, 314. */
export const rate = (x) => (x >= 100 ? count(x) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
