// Markdown as DOM nodes, safe by construction: text becomes text nodes, the only attribute taken from the source is the
// href of a link, and that only for http and https. What is not understood stays text.
//
// Text grows while it streams. `Markdown.update` parses from the start of the last open block only and keeps the nodes
// of every block, list item and table row whose source has not changed, so a frame costs as much as is new.

import {h, iconButton, copyText} from "./dom.js";

const MAX_DEPTH = 8;  // quotes and lists inside each other; deeper ones are paragraphs

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const BLANK = /^[ \t]*$/;

/** Columns of white space that a line begins with; a tab counts as four. */
function indentOf(line) {
  let columns = 0;
  for (let i = 0; line[i] === " " || line[i] === "\t"; i++) columns += line[i] === " " ? 1 : 4;
  return columns;
}

/** The line without up to `columns` of them. */
function dedent(line, columns) {
  let i = 0;
  for (; columns > 0 && (line[i] === " " || line[i] === "\t"); i++) columns -= line[i] === " " ? 1 : 4;
  return line.slice(i);
}

/** Splits `text` into blocks {type, src, start, ...}; what is known of all but the last never changes as text grows. */
function parseBlocks(text, depth = 0) {
  const lines = text.split("\n");
  const starts = new Array(lines.length);
  for (let i = 0, at = 0; i < lines.length; at += lines[i].length + 1, i++) starts[i] = at;
  const blocks = [];
  let paragraph = -1;  // its first line
  const add = (type, from, to, more) =>
    blocks.push({type, start: starts[from], src: lines.slice(from, to).join("\n"), ...more});
  const endParagraph = (to) => {
    if (paragraph >= 0) add("p", paragraph, to);
    paragraph = -1;
  };
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (BLANK.test(line)) {
      endParagraph(i++);
      continue;
    }
    let match;
    if ((match = FENCE.exec(line))) {
      endParagraph(i);
      const close = new RegExp(`^ {0,3}${match[1][0]}{${match[1].length},}[ \\t]*$`);
      let end = i + 1;
      while (end < lines.length && !close.test(lines[end])) end++;
      const closed = end < lines.length;
      add("code", i, closed ? end + 1 : end, {lang: match[2].trim().split(/\s/)[0], body: lines.slice(i + 1, end).join("\n"), closed});
      i = closed ? end + 1 : end;
    } else if ((match = HEADING.exec(line))) {
      endParagraph(i);
      add("h", i, i + 1, {level: match[1].length, body: match[2] ?? ""});
      i++;
    } else if (RULE.test(line)) {
      endParagraph(i);
      add("hr", i, i + 1);
      i++;
    } else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      endParagraph(i);
      let end = i;
      const inner = [];
      while (end < lines.length && !BLANK.test(lines[end]) && (QUOTE.test(lines[end]) || !startsBlock(lines[end])))
        inner.push(QUOTE.exec(lines[end])?.[1] ?? lines[end]), end++;
      add("quote", i, end, {blocks: parseBlocks(inner.join("\n"), depth + 1)});
      i = end;
    } else if (depth < MAX_DEPTH && (match = ITEM.exec(line)) && (paragraph < 0 || (match[4] && !/^\d/.test(match[2])) || /^1[.)]/.test(match[2]))) {
      endParagraph(i);
      i = parseList(lines, i, depth, add);
    } else if (line.includes("|") && i + 1 < lines.length && lines[i + 1].includes("|") && TABLE_RULE.test(lines[i + 1]) &&
               cells(line).length === cells(lines[i + 1]).length) {
      endParagraph(i);
      let end = i + 2;
      while (end < lines.length && !BLANK.test(lines[end]) && !startsBlock(lines[end])) end++;
      add("table", i, end, {head: line, rule: lines[i + 1], rows: lines.slice(i + 2, end)});
      i = end;
    } else {
      if (paragraph < 0) paragraph = i;
      i++;
    }
  }
  endParagraph(lines.length);
  return blocks;
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line);

function parseList(lines, from, depth, add) {
  const first = ITEM.exec(lines[from]);
  const ordered = /\d/.test(first[2]);
  const kind = first[2].at(-1);
  const items = [];
  let i = from;
  let loose = false;
  let end = from;
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || match[2].at(-1) !== kind || /\d/.test(match[2]) !== ordered || RULE.test(lines[i])) break;
    if (items.length && BLANK.test(lines[i - 1])) loose = true;
    const space = (match[3] ?? " ").length;
    const indent = match[1].length + match[2].length + (space > 4 ? 1 : space);
    const body = [lines[i].slice(Math.min(indent, lines[i].length))];
    let blank = 0;
    let fence = null;
    for (i++; i < lines.length; i++) {
      const line = lines[i];
      if (BLANK.test(line)) {
        blank++;
        continue;
      }
      const inside = indentOf(line) >= Math.min(indent, 2 + match[1].length);
      if (!inside && (blank || fence || startsBlock(line))) break;
      if (blank && !fence) loose = true;
      for (; blank > 0; blank--) body.push("");
      const own = dedent(line, indent);
      if (!fence) fence = FENCE.exec(own)?.[1] ?? null;
      else if (own.trim().startsWith(fence) && own.trim().replaceAll(fence[0], "") === "") fence = null;
      body.push(own);
    }
    end = i - blank;
    items.push(body.join("\n"));
  }
  add("list", from, end, {ordered, first: ordered ? parseInt(first[2], 10) : 1, items, loose, depth});
  return Math.max(i, from + 1);
}

/** The cells of a table row; a bar behind a backslash or within backticks is no border. */
function cells(line) {
  const row = line.trim();
  const out = [];
  let cell = "";
  let code = false;
  for (let i = row.startsWith("|") ? 1 : 0; i < row.length; i++) {
    if (row[i] === "\\" && row[i + 1] === "|") {
      cell += "|";
      i++;
    } else if (row[i] === "|" && !code) {
      out.push(cell.trim());
      cell = "";
    } else {
      if (row[i] === "`") code = !code;
      cell += row[i];
    }
  }
  if (cell.trim() !== "" || !row.endsWith("|")) out.push(cell.trim());
  return out;
}

// ---------------------------------------------------------------------------------------------------- inline

const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /\s/u;
const URL_END = /[.,;:!?'"*_~]+$/;

/** The URL when it is a plain web address, null otherwise. */
function webAddress(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  try {
    return new URL(text).href;
  } catch {
    return null;
  }
}

function link(url, children) {
  return h("a", {href: url, target: "_blank", rel: "noopener noreferrer nofollow"}, ...children);
}

/** Inline Markdown as nodes. One pass over the text, then one over its emphasis marks: linear in its length. */
export function inline(text) {
  const out = [];  // nodes, and {mark, count, open, close} for runs that may become emphasis
  const brackets = [];
  const noCloser = new Map();  // backtick run length -> known to have no closer from here on
  let plain = "";
  const flush = () => {
    if (plain) out.push(document.createTextNode(plain));
    plain = "";
  };
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && i + 1 < text.length) {
      const next = text[i + 1];
      if (next === "\n") {
        flush();
        out.push(h("br"));
      } else if (/[!-/:-@[-`{-~]/.test(next)) {
        plain += next;
      } else {
        plain += c + next;
      }
      i += 2;
    } else if (c === "`") {
      let n = 1;
      while (text[i + n] === "`") n++;
      const end = noCloser.get(n) ? -1 : closingTicks(text, i + n, n);
      if (end < 0) {
        noCloser.set(n, true);
        plain += "`".repeat(n);
        i += n;
      } else {
        flush();
        let body = text.slice(i + n, end).replaceAll("\n", " ");
        if (body.startsWith(" ") && body.endsWith(" ") && body.trim()) body = body.slice(1, -1);
        out.push(h("code", null, body));
        i = end + n;
      }
    } else if (c === "*" || c === "_" || (c === "~" && text[i + 1] === "~")) {
      let n = 1;
      while (text[i + n] === c) n++;
      flush();
      out.push(delimiter(text, i, n, c));
      i += n;
    } else if (c === "[" || (c === "!" && text[i + 1] === "[")) {
      flush();
      brackets.push(out.length);
      out.push(document.createTextNode(c === "!" ? "![" : "["));
      i += c === "!" ? 2 : 1;
    } else if (c === "]" && brackets.length) {
      flush();
      const open = brackets.pop();
      const target = text[i + 1] === "(" ? linkTarget(text, i + 2) : null;
      const url = target && webAddress(target.url);
      if (url) {
        const label = emphasise(out.splice(open).slice(1));
        out.push(link(url, label.length ? label : [url]));
        brackets.length = 0;  // no links inside links
        i = target.end;
      } else {
        plain += "]";
        i++;
      }
    } else if (c === "<") {
      const match = /^<(https?:\/\/[^\s<>]{1,2000})>/i.exec(text.slice(i, i + 2010));
      const url = match && webAddress(match[1]);
      if (url) {
        flush();
        out.push(link(url, [match[1]]));
        i += match[0].length;
      } else {
        plain += c;
        i++;
      }
    } else if ((c === "h" || c === "H") && !/\w/.test(text[i - 1] ?? "") && /^https?:\/\//i.test(text.slice(i, i + 8))) {
      const raw = /^[^\s<>"`\]]{1,2000}/.exec(text.slice(i, i + 2000))[0];
      let found = raw.replace(URL_END, "");
      if (found.endsWith(")") && !found.includes("(")) found = found.slice(0, -1);
      const url = brackets.length ? null : webAddress(found);
      if (url) {
        flush();
        out.push(link(url, [found]));
        i += found.length;
      } else {
        plain += c;
        i++;
      }
    } else if (c === "\n") {
      const hard = plain.endsWith("  ");
      plain = plain.trimEnd();
      if (hard) {
        flush();
        out.push(h("br"));
      } else {
        plain += "\n";
      }
      i++;
    } else {
      plain += c;
      i++;
    }
  }
  flush();
  return emphasise(out);
}

function closingTicks(text, from, n) {
  for (let i = text.indexOf("`", from); i >= 0; i = text.indexOf("`", i)) {
    let run = 1;
    while (text[i + run] === "`") run++;
    if (run === n) return i;
    i += run;
  }
  return -1;
}

/** The address between "(" and ")" (with an optional title), or null. */
function linkTarget(text, from) {
  const match = /^\s*(?:<([^<>\n]{0,2000})>|([^\s<>]{1,2000}?))(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)/.exec(text.slice(from, from + 3000));
  if (!match) return null;
  let url = match[1] ?? match[2];
  let end = from + match[0].length;
  // A closing bracket that belongs to the address: (https://example.org/a_(b)).
  if (match[1] === undefined && url.split("(").length > url.split(")").length && text[end] === ")") {
    url += ")";
    end++;
  }
  return {url, end};
}

function delimiter(text, at, n, mark) {
  const before = text[at - 1] ?? " ";
  const after = text[at + n] ?? " ";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  const inWord = mark === "_";
  return {
    mark,
    count: n,
    open: left && (!inWord || !right || PUNCTUATION.test(before)),
    close: right && (!inWord || !left || PUNCTUATION.test(after)),
  };
}

/** Pairs emphasis marks from the inside out; what finds no partner is text again. */
function emphasise(items) {
  const stack = [];  // frames: {mark, count, nodes}; frame 0 is the result
  const top = () => stack[stack.length - 1];
  stack.push({mark: "", count: 0, nodes: []});
  const open = {"*": 0, "_": 0, "~": 0};  // how many frames of each mark wait
  const give = (frame) => {
    open[frame.mark]--;
    if (frame.count) top().nodes.push(document.createTextNode(frame.mark.repeat(frame.count)));
    for (const node of frame.nodes) top().nodes.push(node);
  };
  for (const item of items) {
    if (item instanceof Node) {
      top().nodes.push(item);
      continue;
    }
    let left = item.count;
    if (item.close) {
      while (left > 0 && open[item.mark] > 0) {
        while (top().mark !== item.mark) give(stack.pop());
        const frame = top();
        const take = item.mark === "~" ? 2 : left >= 2 && frame.count >= 2 ? 2 : 1;
        if (frame.count < take || left < take) break;
        const node = h(item.mark === "~" ? "s" : take === 2 ? "strong" : "em", null, ...frame.nodes);
        frame.nodes = [node];
        frame.count -= take;
        left -= take;
        if (frame.count === 0) give(stack.pop());
      }
    }
    if (left > 0 && item.open && stack.length < 200) {
      open[item.mark]++;
      stack.push({mark: item.mark, count: left, nodes: []});
    } else if (left > 0) {
      top().nodes.push(document.createTextNode(item.mark.repeat(left)));
    }
  }
  while (stack.length > 1) give(stack.pop());
  return stack[0].nodes;
}

// ---------------------------------------------------------------------------------------------------- nodes

/** Makes the children of `parent` be those of `items` {key, make, grow?}; equal keys keep their node. */
function reconcile(parent, items) {
  const old = parent.weftItems ?? [];
  let same = 0;
  while (same < old.length && same < items.length && old[same].key === items[same].key) same++;
  let at = same;
  if (at < old.length && at < items.length && items[at].grow?.(old[at].node)) {
    items[at].node = old[at].node;
    at++;
  }
  for (let i = at; i < old.length; i++) old[i].node.remove();
  for (let i = 0; i < same; i++) items[i].node = old[i].node;
  for (let i = at; i < items.length; i++) parent.append((items[i].node = items[i].make()));
  parent.weftItems = items;
}

const blockItem = (block) => ({
  key: `${block.type}${block.closed === false ? "+" : ""}${block.src}`,
  make: () => makeBlock(block),
  grow: (node) => growBlock(block, node),
});

function makeBlock(block) {
  const node = KINDS[block.type].make(block);
  node.weftType = block.type + (block.ordered ? "1" : "");
  return node;
}

/** Brings a node of the same kind to the state of `block`; false where it has to be made anew. */
function growBlock(block, node) {
  if (node.weftType !== block.type + (block.ordered ? "1" : "")) return false;
  return KINDS[block.type].grow?.(block, node) ?? false;
}

const CODE_LINES = 32;  // a node of its own for so many lines: a frame lays out the last one only

function setCode(code, body) {
  const lines = body.split("\n");
  const items = [];
  for (let i = 0; i < lines.length; i += CODE_LINES) {
    const part = lines.slice(i, i + CODE_LINES).join("\n") + (i + CODE_LINES < lines.length ? "\n" : "");
    items.push({
      key: part,
      make: () => h("span", null, part),
      grow: (node) => {
        node.textContent = part;
        return true;
      },
    });
  }
  reconcile(code, items);
}

function setTable(block, table) {
  const align = cells(block.rule).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, tag) => {
    const found = cells(line);
    return h("tr", null, ...align.map((side, i) => h(tag, {class: side === "left" ? null : `to-${side}`}, ...inline(found[i] ?? ""))));
  };
  reconcile(table.tHead ?? table.createTHead(), [{key: block.head + block.rule, make: () => row(block.head, "th")}]);
  reconcile(table.tBodies[0] ?? table.createTBody(), block.rows.map((line) => ({key: line, make: () => row(line, "td")})));
}

function setList(block, list) {
  reconcile(list, block.items.map((src) => {
    const set = (node) => {
      let body = src;
      const task = /^\[([ xX])\] /.exec(src);
      if (task) body = src.slice(4);
      let blocks = parseBlocks(body, block.depth + 1).map(blockItem);
      reconcile(node, blocks);
      node.classList.toggle("task", !!task);
      node.classList.toggle("done", !!task && task[1] !== " ");
      return true;
    };
    return {
      key: src,
      make: () => {
        const node = h("li");
        set(node);
        return node;
      },
      grow: set,
    };
  }));
  list.classList.toggle("tight", !block.loose);
}

const KINDS = {
  p: {
    make: (block) => h("p", null, ...inline(block.src.trim())),
  },
  h: {
    // The page itself has the first levels: "#" of an answer is its third.
    make: (block) => h(`h${Math.min(block.level + 2, 6)}`, {class: `h${block.level}`}, ...inline(block.body)),
  },
  hr: {make: () => h("hr")},
  code: {
    make: (block) => {
      const code = h("code");
      const copy = iconButton("copy", "Copy code", () => copyText(code.textContent, copy));
      const node = h("figure", {class: "code"},
        h("figcaption", null, h("span", {class: "lang"}, block.lang || "text"), copy),
        h("pre", {tabindex: "0"}, code));
      setCode(code, block.body);
      return node;
    },
    grow: (block, node) => {
      node.querySelector(".lang").textContent = block.lang || "text";
      setCode(node.querySelector("code"), block.body);
      return true;
    },
  },
  quote: {
    make: (block) => {
      const node = h("blockquote");
      reconcile(node, block.blocks.map(blockItem));
      return node;
    },
    grow: (block, node) => {
      reconcile(node, block.blocks.map(blockItem));
      return true;
    },
  },
  list: {
    make: (block) => {
      const node = h(block.ordered ? "ol" : "ul", block.ordered && block.first !== 1 ? {start: block.first} : null);
      setList(block, node);
      return node;
    },
    grow: (block, node) => {
      setList(block, node);
      return true;
    },
  },
  table: {
    make: (block) => {
      const table = h("table");
      setTable(block, table);
      return h("div", {class: "table", tabindex: "0", role: "region", "aria-label": "Table"}, table);
    },
    grow: (block, node) => {
      setTable(block, node.firstChild);
      return true;
    },
  },
};

/** Whether the lines that tell what this block is are complete: the first, and for a table the rule below it. */
function isSure({type, start}, text) {
  const end = text.indexOf("\n", start);
  return end >= 0 && (type !== "table" || text.indexOf("\n", end + 1) >= 0);
}

/** A text that grows, shown as Markdown below `root`. */
export class Markdown {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.done = 0;   // the text before is shown by nodes that stay
    this.tail = h("div", {class: "tail"});
    root.append(this.tail);
  }

  /** Shows `text`. Cheap where it goes on from what is shown. */
  update(text) {
    text = text.replaceAll("\r\n", "\n");
    if (text === this.text) return;
    if (!text.startsWith(this.text.slice(0, this.done))) {
      this.done = 0;
      this.tail.weftItems = [];
      this.root.replaceChildren(this.tail);
      this.tail.replaceChildren();
    }
    this.text = text;
    const open = text.slice(this.done);
    const blocks = parseBlocks(open);
    const items = blocks.map(blockItem);
    reconcile(this.tail, items);
    // A block is settled once a later one is sure to be one: until then it may still take lines.
    let settled = blocks.length - 1;
    while (settled > 0 && !isSure(blocks[settled], open)) settled--;
    if (settled > 0) {
      this.tail.before(...items.slice(0, settled).map((item) => item.node));
      this.tail.weftItems = items.slice(settled);
      this.done += blocks[settled].start;
    }
  }
}
