// Puts the page together: views, drawers, colours, the API key, the list of models.

import {h, s, byId, icon, toast} from "./dom.js";
import {apiKey, getJson} from "./api.js";
import {Chat} from "./chat.js";
import {Live} from "./live.js";
import {Params} from "./params.js";

const narrow = matchMedia("(max-width: 860px)");

// ---------------------------------------------------------------------------------------------- colours

function drawTheme() {
  const root = document.documentElement;
  const current = root.dataset.theme ?? "auto";
  const names = {auto: "As the system", light: "Light", dark: "Dark"};
  const buttons = Object.entries(names).map(([theme, label]) =>
    h("button", {type: "button", role: "radio", "aria-checked": String(theme === current), "aria-label": label, title: label,
                 tabindex: theme === current ? 0 : -1, onclick: () => setTheme(theme)}, icon(theme)));
  byId("theme").replaceChildren(...buttons);
}

function setTheme(theme) {
  const root = document.documentElement;
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    localStorage.setItem("weft.theme", theme);
  } catch {
    // Holds until the page is left.
  }
  drawTheme();
  byId("theme").querySelector("[aria-checked=true]").focus();
}

/** Arrow keys go through the buttons of a group, as in every toolbar. */
function arrows(group) {
  group.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step) return;
    const buttons = [...group.querySelectorAll("button")];
    event.preventDefault();
    const next = buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length);
    next.focus();
    next.click();
  });
}

// ---------------------------------------------------------------------------------------------- the API key

/** Asks for a key; true when one was given. */
function askKey(reason) {
  const dialog = byId("key-dialog");
  if (dialog.open) return Promise.resolve(false);
  byId("key-reason").textContent = reason;
  byId("key-input").value = apiKey.get();
  dialog.returnValue = "";
  dialog.showModal();
  byId("key-input").select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "save";
      if (given) apiKey.set(byId("key-input").value.trim());
      resolve(given);
    }, {once: true});
  });
}

// ---------------------------------------------------------------------------------------------- drawers and views

function showSide(open) {
  byId("side").classList.toggle("open", open);
  byId("veil").hidden = !(open && narrow.matches);
  byId("menu").setAttribute("aria-expanded", String(open));
}

function showPanel(open) {
  byId("panel").hidden = !open;
  byId("params-button").setAttribute("aria-expanded", String(open));
  byId("app").classList.toggle("with-panel", open);
  if (open && narrow.matches) byId("panel-close").focus();
}

function showView(name, live) {
  for (const view of ["chat", "live"]) {
    const on = view === name;
    byId(`${view}-view`).hidden = !on;
    byId(`tab-${view}`).setAttribute("aria-selected", String(on));
    byId(`tab-${view}`).tabIndex = on ? 0 : -1;
  }
  live.show(name === "live");
  if ((location.hash === "#live") !== (name === "live")) history.replaceState(null, "", name === "live" ? "#live" : location.pathname);
}

/** A piece of cloth, one warp thread after the other, for the empty page. */
function drawCloth(svg) {
  const step = 12;
  const parts = {warp: [], weft: [], over: []};
  for (let x = step; x < 240; x += step) parts.warp.push(`M${x} 0v96`);
  for (let row = 1; row < 8; row++) {
    const y = row * step;
    parts.weft.push(`M0 ${y}h240`);
    for (let column = 1; column < 20; column++) {
      // A twill: over two, under two, one further each row.
      if ((column + row) % 4 < 2) parts.over.push([column * step - 6, y, row]);
    }
  }
  svg.append(
    s("path", {class: "weft-thread", d: parts.weft.join("")}),
    s("path", {class: "warp-thread", d: parts.warp.join("")}),
    s("path", {class: "weft-thread", d: parts.over.filter(([, , row]) => row !== 4).map(([x, y]) => `M${x} ${y}h12`).join("")}),
    s("path", {class: "shot-thread", d: "M0 48h6" + parts.over.filter(([, , row]) => row === 4).map(([x, y]) => `M${x} ${y}h12`).join("")}));
}

// ---------------------------------------------------------------------------------------------- start

async function loadModels(params) {
  try {
    params.setModels((await getJson("v1/models")).data ?? []);
  } catch (error) {
    if (error.status === 401) {
      if (await askKey(error.message)) return loadModels(params);
    } else {
      toast(error.message, "Try again", () => loadModels(params));
    }
  }
}

function start() {
  for (const [id, name] of [["menu", "menu"], ["params-button", "sliders"], ["panel-close", "close"], ["attach", "image"], ["send", "send"], ["to-end", "down"], ["key-button", "key"]])
    byId(id).append(icon(name));
  byId("new-chat").append(icon("plus"), "New chat");
  drawTheme();
  drawCloth(byId("cloth"));

  const params = new Params(byId("params"));
  const chat = new Chat(params, askKey);
  const live = new Live(byId("live-view"), askKey);
  chat.drawSuggestions();
  chat.opened = () => {
    showView("chat", live);
    if (narrow.matches) showSide(false);
  };
  params.changed = () => {
    const model = params.model();
    byId("model-name").textContent = model;
    byId("model-name").title = model;
    byId("welcome-model").textContent = model ? `You are talking to ${model}.` : "";
    byId("params-button").classList.toggle("marked", params.count() > 0);
    chat.drawComposer();
  };
  params.changed();

  byId("menu").addEventListener("click", () => {
    if (narrow.matches) showSide(!byId("side").classList.contains("open"));
    else byId("app").classList.toggle("no-side");
  });
  byId("veil").addEventListener("click", () => {
    showSide(false);
    showPanel(false);
  });
  byId("params-button").addEventListener("click", () => showPanel(byId("panel").hidden));
  byId("panel-close").addEventListener("click", () => {
    showPanel(false);
    byId("params-button").focus();
  });
  byId("key-button").addEventListener("click", async () => {
    if (await askKey("Sent with every request, as the servers of this API expect it.")) loadModels(params);
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("tab-chat").addEventListener("click", () => showView("chat", live));
  byId("tab-live").addEventListener("click", () => showView("live", live));
  for (const group of document.querySelectorAll(".tabs, .segments")) arrows(group);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (byId("side").classList.contains("open")) showSide(false);
    else if (!byId("panel").hidden && narrow.matches) showPanel(false);
  });
  addEventListener("hashchange", () => showView(location.hash === "#live" ? "live" : "chat", live));
  showView(location.hash === "#live" ? "live" : "chat", live);
  if (!narrow.matches) byId("prompt").focus();
  loadModels(params);
}

start();
