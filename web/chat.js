// Conversations: the list beside, the messages, the box to write in, and the requests behind them.

import {h, byId, iconButton, icon, toast, announce, duration} from "./dom.js";
import {stream, ApiError} from "./api.js";
import * as store from "./store.js";
import {AnswerView, UserView} from "./message.js";

const SUGGESTIONS = [
  "Write a short story about a weaver.",
  "There are 9 boxes with 3 coins in each. How many coins are there in all?",
  "Turn this table into JSON:\n\nname,age,pet\nAda,36,cat\nNoah,41,owl",
];
const PICTURE_SIDE = 1536;        // larger pictures are reduced before they are sent and stored
const PICTURE_BYTES = 600 * 1024; // smaller files go as they are
const VIDEO_SIDE = 448, VIDEO_FRAMES = 32, VIDEO_FPS = 2; // of the frames that are taken of a video
const PICTURES = "image/png,image/jpeg,image/webp,image/gif";

/** One answer on its way. */
class Session {
  constructor(chat, message) {
    this.chat = chat;
    this.message = message;
    this.controller = new AbortController();
    this.begun = performance.now();
    this.first = this.latest = this.thoughtEnd = 0;
    this.saved = this.begun;
  }

  /** Takes one chunk of the stream into the message. */
  take(chunk) {
    const {message} = this;
    const {stats} = message;
    const now = performance.now();
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning ?? "";
    if (thought || delta.content || delta.tool_calls?.length) {
      if (!this.first) {
        this.first = now;
        stats.firstToken = (now - this.begun) / 1000;
      }
      this.latest = now;
      stats.chunks++;
      if (thought) {
        message.reasoning += thought;
        message.thinkingSeconds = (now - this.first) / 1000;
      }
      message.content += delta.content ?? "";
      for (const part of delta.tool_calls ?? []) this.takeTool(part);
    }
    if (choice?.finish_reason) stats.finish = choice.finish_reason;
    if (chunk.usage) {
      stats.prompt = chunk.usage.prompt_tokens;
      stats.completion = chunk.usage.completion_tokens;
      stats.cached = chunk.usage.prompt_tokens_details?.cached_tokens;
      stats.thought = chunk.usage.completion_tokens_details?.reasoning_tokens;
    }
    const tokens = stats.completion ?? stats.chunks;
    // Less than a few frames is no measurement.
    if (tokens > 1 && this.latest - this.first > 50) stats.rate = (tokens - 1) / ((this.latest - this.first) / 1000);
  }

  takeTool({index = 0, id, function: call}) {
    const tool = (this.message.toolCalls[index] ??= {id: "", name: "", arguments: ""});
    tool.id ||= id ?? "";
    tool.name += call?.name ?? "";
    tool.arguments += call?.arguments ?? "";
  }
}

/** The messages of a request: what the API calls them, results of tools as messages of their own. */
function toMessages(chat, system) {
  const out = system ? [{role: "system", content: system}] : [];
  const lastUser = chat.messages.findLastIndex((message) => message.role === "user");
  chat.messages.forEach((message, i) => {
    if (message.role === "user") {
      const pictures = (message.images ?? []).map((url) => ({type: "image_url", image_url: {url}}));
      const videos = (message.videos ?? []).map(({frames, fps}) =>
        frames.length === 1 ? {type: "video_url", video_url: {url: frames[0]}} : {type: "video", video: frames, fps});
      const media = [...pictures, ...videos];
      out.push({role: "user", content: media.length ? [...media, {type: "text", text: message.content}] : message.content});
      return;
    }
    const calls = message.toolCalls ?? [];
    if (!message.content && !calls.length) return;  // an error, or stopped before anything came
    const said = {role: "assistant", content: message.content};
    if (calls.length) said.tool_calls = calls.map(({id, name, arguments: args}) => ({id, type: "function", function: {name, arguments: args || "{}"}}));
    if (i > lastUser && message.reasoning) said.reasoning_content = message.reasoning;
    out.push(said);
    for (const call of calls) out.push({role: "tool", tool_call_id: call.id, content: call.result ?? ""});
  });
  return out;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 57)}…` : line || "Picture";
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

/** What a picture or a frame shows as JPEG, no side longer than `side`. */
function jpegOf(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const sized = (length) => Math.max(1, Math.round(length * scale));
  const canvas = h("canvas", {width: sized(width), height: sized(height)});
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.88);
}

async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  const small = Math.max(bitmap.width, bitmap.height) <= PICTURE_SIDE && file.size <= PICTURE_BYTES;
  return small ? dataUrl(file) : jpegOf(bitmap, bitmap.width, bitmap.height, PICTURE_SIDE);
}

/** Whether a file is a GIF or WebP that moves; false where the browser can't tell. */
async function moves(file) {
  if (!globalThis.ImageDecoder || !/^image\/(gif|webp)$/.test(file.type)) return false;
  const decoder = new ImageDecoder({data: await file.arrayBuffer(), type: file.type});
  try {
    await Promise.all([decoder.tracks.ready, decoder.completed]);
    return (decoder.tracks.selectedTrack?.frameCount ?? 1) > 1;
  } catch {
    return false;
  } finally {
    decoder.close();
  }
}

/** Frames of a video that the browser can play, evenly spread over it. */
async function readVideo(file) {
  const video = h("video", {muted: true, preload: "auto"});
  const url = URL.createObjectURL(file);
  const after = (event, begin) => new Promise((resolve, reject) => {
    video.addEventListener(event, resolve, {once: true});
    video.addEventListener("error", () => reject(video.error), {once: true});
    begin();
  });
  try {
    await after("loadeddata", () => { video.src = url; });
    // A recording may not know how long it is until its end was seen.
    if (!Number.isFinite(video.duration)) await after("seeked", () => { video.currentTime = 1e9; });
    const seconds = Number.isFinite(video.duration) ? Math.max(video.duration, 0.01) : Math.max(video.currentTime, 0.01);
    const count = Math.min(VIDEO_FRAMES, Math.max(2, Math.ceil(seconds * VIDEO_FPS)));
    const frames = [];
    for (let i = 0; i < count; i++) {
      await after("seeked", () => { video.currentTime = seconds * (i + 0.5) / count; });
      frames.push(jpegOf(video, video.videoWidth, video.videoHeight, VIDEO_SIDE));
    }
    return {frames, fps: count / seconds};
  } finally {
    video.removeAttribute("src");
    URL.revokeObjectURL(url);
  }
}

export class Chat {
  /** `askKey(reason)`: lets the user type an API key, true when one was given. */
  constructor(params, askKey) {
    this.params = params;
    this.askKey = askKey;
    this.sessions = new Map();  // conversation id -> Session: one may go on while another is looked at
    this.views = [];
    this.pictures = [];
    this.videos = [];
    this.scroller = byId("scroll");
    this.log = byId("log");
    this.prompt = byId("prompt");
    this.stick = true;
    this.listen();
    this.drawList();
    this.open(null);
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.session()) this.stop();
      else this.submit();
    });
    this.prompt.addEventListener("input", () => this.grow());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.session()) this.submit();
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.session() && !document.querySelector("dialog[open]")) this.stop();
    });
    this.scroller.addEventListener("scroll", () => {
      const {scrollTop, scrollHeight, clientHeight} = this.scroller;
      this.stick = scrollHeight - scrollTop - clientHeight < 48;
      byId("to-end").hidden = this.stick;
    }, {passive: true});
    byId("to-end").addEventListener("click", () => this.toEnd(true));
    byId("new-chat").addEventListener("click", () => {
      this.open(null);
      this.prompt.focus();
    });
    const file = byId("file");
    byId("attach").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      this.attach([...file.files]);
      file.value = "";
    });
    this.prompt.addEventListener("paste", (event) => this.takeFiles(event, event.clipboardData));
    byId("chat-view").addEventListener("dragover", (event) => this.params.takesImages() && event.preventDefault());
    byId("chat-view").addEventListener("drop", (event) => this.takeFiles(event, event.dataTransfer));
    addEventListener("pagehide", () => this.sessions.forEach((session) => store.save(session.chat)));
    store.onOtherTab(() => this.drawList());
  }

  session() {
    return this.chat && this.sessions.get(this.chat.id);
  }

  // ------------------------------------------------------------------------------------------ the list

  drawList() {
    const chats = store.list();
    byId("chats").replaceChildren(...chats.map((entry) => this.listItem(entry)));
    byId("no-chats").hidden = chats.length > 0;
  }

  listItem({id, title}) {
    const current = this.chat?.id === id;
    const item = h("li", {class: current ? "current" : null},
      h("button", {type: "button", class: "open", "aria-current": current ? "page" : null, onclick: () => this.open(id)},
        this.sessions.has(id) ? h("span", {class: "pulse", "aria-label": "answering"}) : null, title),
      h("span", {class: "actions"},
        iconButton("pencil", `Rename “${title}”`, () => this.rename(item, id, title)),
        iconButton("trash", `Delete “${title}”`, () => this.remove(id))));
    return item;
  }

  rename(item, id, title) {
    const input = h("input", {value: title, "aria-label": "Name of the conversation", maxlength: 80});
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const chat = this.chat?.id === id ? this.chat : store.load(id);
      if (keep && input.value.trim() && chat) {
        chat.title = input.value.trim();
        store.save(chat);
      }
      this.drawList();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener("blur", () => finish(true));
    item.replaceChildren(input);
    input.select();
  }

  remove(id) {
    const chat = this.chat?.id === id ? this.chat : store.load(id);
    this.sessions.get(id)?.controller.abort();
    this.sessions.delete(id);
    store.remove(id);
    if (this.chat?.id === id) this.open(null);
    else this.drawList();
    if (!chat) return;
    toast(`“${chat.title}” is deleted.`, "Undo", () => {
      store.save(chat);
      this.drawList();
    });
  }

  /** Shows the conversation `id`; null: an empty one that is stored with its first message. */
  open(id) {
    this.chat = (id && (this.sessions.get(id)?.chat ?? store.load(id))) || null;
    this.draw();
    this.drawList();
    this.toEnd(true);
    this.opened?.();
  }

  // ------------------------------------------------------------------------------------------ messages

  draw() {
    const actions = {
      edit: (message, text) => this.edit(message, text),
      regenerate: (message) => this.regenerate(message),
      results: (message) => this.run(),
    };
    const messages = this.chat?.messages ?? [];
    const known = new Map(this.views.map((view) => [view.message, view]));
    this.views = messages.map((message) =>
      known.get(message) ?? (message.role === "user" ? new UserView(message, actions) : new AnswerView(message, actions)));
    this.log.replaceChildren(...this.views.map((view) => view.node));
    this.views.forEach((view, i) => view.update?.(this.session()?.message === view.message, i === messages.length - 1));
    byId("welcome").hidden = messages.length > 0;
    this.drawComposer();
  }

  drawComposer() {
    const busy = !!this.session();
    const button = byId("send");
    button.replaceChildren(icon(busy ? "stop" : "send"));
    button.setAttribute("aria-label", busy ? "Stop" : "Send");
    button.title = busy ? "Stop (Esc)" : "Send (Enter)";
    button.classList.toggle("busy", busy);
    byId("attach").hidden = !this.params.takesImages();
    byId("file").accept = this.params.takesVideos() ? `${PICTURES},video/*` : PICTURES;
    const thumbs = (list, kind, source) => list.map((item, i) =>
      h("span", {class: "thumb"}, h("img", {src: source(item), alt: `Attached ${kind} ${i + 1}`}),
        iconButton("close", `Remove ${kind} ${i + 1}`, () => {
          list.splice(i, 1);
          this.drawComposer();
        })));
    byId("thumbs").replaceChildren(...thumbs(this.pictures, "picture", (src) => src), ...thumbs(this.videos, "video", (video) => video.frames[0]));
  }

  drawSuggestions() {
    byId("suggestions").replaceChildren(...SUGGESTIONS.map((text) =>
      h("button", {type: "button", onclick: () => this.submit(text)}, text)));
  }

  grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${Math.min(this.prompt.scrollHeight, innerHeight * 0.4)}px`;
  }

  toEnd(always) {
    if (!always && !this.stick) return;
    this.stick = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  takeFiles(event, transfer) {
    const files = [...(transfer?.files ?? [])].filter((file) => /^(image|video)\//.test(file.type));
    if (!files.length || !this.params.takesImages()) return;
    event.preventDefault();
    this.attach(files);
  }

  async attach(files) {
    for (const file of files) {
      try {
        const film = file.type.startsWith("video/");
        if (film && !this.params.takesVideos()) toast("This model takes no videos.");
        else if (film) this.videos.push(await readVideo(file));
        else if (this.params.takesVideos() && await moves(file)) this.videos.push({frames: [await dataUrl(file)]});
        else this.pictures.push(await readPicture(file));
      } catch {
        toast(`${file.name} is no picture or video that can be read.`);
      }
    }
    this.drawComposer();
    this.prompt.focus();
  }

  // ------------------------------------------------------------------------------------------ requests

  submit(text = this.prompt.value) {
    if (!text.trim() && !this.pictures.length && !this.videos.length) return;
    const message = {role: "user", content: text.trimEnd()};
    if (this.pictures.length) message.images = this.pictures;
    if (this.videos.length) message.videos = this.videos;
    this.pictures = [];
    this.videos = [];
    this.prompt.value = "";
    this.grow();
    if (!this.chat) this.chat = {id: store.newId(), title: titleOf(text), messages: []};
    this.chat.messages.push(message);
    this.run();
  }

  edit(message, text) {
    this.stop();
    const at = this.chat.messages.indexOf(message);
    const changed = {...message, content: text.trimEnd()};
    this.chat.messages.splice(at, Infinity, changed);
    this.run();
  }

  regenerate(message) {
    this.chat.messages.splice(this.chat.messages.indexOf(message), Infinity);
    this.run();
  }

  stop() {
    const session = this.session();
    if (!session) return;
    session.controller.abort();
    this.end(session, "stopped");
  }

  /** Asks for the next answer of the conversation on show and streams it in. */
  async run() {
    const {chat} = this;
    if (this.sessions.has(chat.id)) return;
    const body = {
      ...this.params.request(),
      messages: toMessages(chat, this.params.system()),
      stream: true,
      stream_options: {include_usage: true},
    };
    const message = {role: "assistant", content: "", reasoning: "", toolCalls: [], stats: {chunks: 0}};
    chat.messages.push(message);
    const session = new Session(chat, message);
    this.sessions.set(chat.id, session);
    this.save(chat);
    this.stick = true;
    this.draw();
    this.drawList();
    this.toEnd(true);
    try {
      for await (const chunk of stream("v1/chat/completions", body, session.controller.signal)) {
        session.take(chunk);
        this.changed(session);
      }
      this.end(session);
    } catch (error) {
      if (error.name === "AbortError" || session.controller.signal.aborted) return this.end(session, "stopped");
      if (!(error instanceof ApiError)) console.error(error);
      message.error = error instanceof ApiError ? error.message : "The page could not read the server’s answer.";
      if (error.retryAfter) message.error += ` Try again in ${duration(error.retryAfter)}.`;
      this.end(session, "failed");
      if (error.status === 401 && (await this.askKey(error.message))) {
        if (this.chat === chat) this.regenerate(message);
      }
    }
  }

  /** Draws what has changed with the next frame, and stores it once a second. */
  changed(session) {
    if (!session.frame) {
      session.frame = requestAnimationFrame(() => {
        session.frame = 0;
        if (this.sessions.get(session.chat.id) === session) this.drawAnswer(session, true);
      });
    }
    if (performance.now() - session.saved > 1000) {
      session.saved = performance.now();
      store.save(session.chat);
    }
  }

  drawAnswer(session, live) {
    const view = this.views.at(-1);
    if (view?.message !== session.message) return;
    view.update(live, true);
    this.toEnd(false);
  }

  end(session, finish) {
    if (this.sessions.get(session.chat.id) !== session) return;
    this.sessions.delete(session.chat.id);
    if (finish) session.message.stats.finish = finish === "failed" ? undefined : finish;
    this.save(session.chat);
    this.drawAnswer(session, false);
    this.drawComposer();
    this.drawList();
    announce(finish === "stopped" ? "Answer stopped" : finish === "failed" ? "The answer failed" : "Answer complete");
  }

  save(chat) {
    chat.updated = Date.now();
    if (!store.save(chat)) toast("The browser has no room left for this conversation. Delete older ones to keep it.");
  }
}
