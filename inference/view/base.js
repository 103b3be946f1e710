"use strict";
// The data of a report, and the few pieces that everything is made of. Text from a run only ever
// becomes a text node (`el`, `mark`): never markup, never code, never an attribute that acts.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set("svg g path rect circle line text tspan title".split(" "));
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"];
const OTHER = "#8a94a0";

function el(tag, attributes, ...children) {
  const node = SHAPES.has(tag) && !(attributes && attributes.html)
    ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false || name === "html") continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child.nodeType ? child : document.createTextNode(String(child)));
  }
  return node;
}

const $ = (id) => document.getElementById(id);
const put = (where, ...children) => { const box = typeof where === "string" ? $(where) : where; box.replaceChildren(...children.flat(Infinity).filter((c) => c)); return box; };
const cut = (text, most) => (text.length <= most ? text : text.slice(0, most - 1) + "…");
const flat = (text, most) => cut(text.replace(/\s+/g, " ").trim(), most);
const count = (n) => n.toLocaleString("en-US");

function show(value, digits = 4) {
  if (value === null || value === undefined) return "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return count(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-4 || size >= 1e7) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

// Text with what was searched for in marks.
function mark(text) {
  const query = view.query;
  if (!query) return [document.createTextNode(text)];
  const out = [], low = text.toLowerCase();
  let at = 0;
  for (let found = low.indexOf(query); found >= 0 && out.length < 200; found = low.indexOf(query, at)) {
    out.push(document.createTextNode(text.slice(at, found)), el("mark", null, text.slice(found, found + query.length)));
    at = found + query.length;
  }
  out.push(document.createTextNode(text.slice(at)));
  return out;
}

async function read() {
  const island = $("state");
  if (island.dataset.encoding === "plain") return JSON.parse(island.textContent);
  const bytes = Uint8Array.from(atob(island.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

let S = null;
const view = { particle: 0, step: 0, answer: -2, query: "", graph: 0, died: true, rows: 100 };
const D = {}; // what follows from S

function derive() {
  const nodes = S.nodes, n = nodes.up.length, P = S.particles, N = P.leaf.length;
  const parent = new Int32Array(n), depth = new Int32Array(n), mass = new Float64Array(n), copies = new Int32Array(n);
  for (let i = 1; i < n; i++) { parent[i] = i - nodes.up[i]; depth[i] = depth[parent[i]] + 1; }
  parent[0] = -1;
  const K = COLOURS.length + 1, by = new Float64Array(n * K);
  for (let i = 0; i < N; i++) {
    const leaf = P.leaf[i];
    mass[leaf] += P.w[i] || 0;
    copies[leaf] += 1;
    if (P.answer[i] >= 0) by[leaf * K + Math.min(P.answer[i], K - 1)] += P.w[i] || 0;
  }
  const children = Array.from({ length: n }, () => []);
  for (let i = n - 1; i > 0; i--) {
    mass[parent[i]] += mass[i];
    copies[parent[i]] += copies[i];
    for (let k = 0; k < K; k++) by[parent[i] * K + k] += by[i * K + k];
    children[parent[i]].push(i);
  }
  const hue = new Array(n);
  for (let i = 0; i < n; i++) {
    let best = -1, most = 0;
    for (let k = 0; k < K; k++) if (by[i * K + k] > most) { most = by[i * K + k]; best = k; }
    hue[i] = best < 0 ? OTHER : best < COLOURS.length ? COLOURS[best] : OTHER;
    children[i].sort((a, b) => mass[b] - mass[a] || a - b);
  }
  const order = Array.from({ length: N }, (_, i) => i).sort((a, b) => (P.w[b] || 0) - (P.w[a] || 0) || a - b);
  // the barriers' final population, and the ancestor of each of its particles in every one before
  const end = S.last || P, E = end.leaf.length, ranked = S.last ? Array.from({ length: E }, (_, i) => i).sort((a, b) => (end.w[b] || 0) - (end.w[a] || 0) || a - b) : order;
  const T = Math.max(S.steps.length - 1, 0), lines = new Array(T + 1), told = S.told && S.steps.length > 0; // the last step is the end
  if (told) {
    lines[T] = Int32Array.from({ length: E }, (_, i) => i);
    for (let t = T - 1; t >= 0; t--) {
      const up = S.steps[t].parents;
      lines[t] = up ? Int32Array.from(lines[t + 1], (i) => up[i]) : lines[t + 1];
    }
  }
  Object.assign(D, { n, N, T, K, E, end, ranked, parent, depth, mass, copies, children, hue, order, lines, told, own: told && !S.last });
}

const textOf = (node) => S.strings[S.nodes.text[node]];
const opOf = (node) => S.sites[S.nodes.site[node]][0];
const siteOf = (node) => S.sites[S.nodes.site[node]][1];
const colour = (answer) => (answer >= 0 && answer < COLOURS.length ? COLOURS[answer] : OTHER);
const answerText = (answer) => (answer < 0 ? "none: weight zero" : S.strings[S.answers[answer][0]]);

function path(node) {
  const out = [];
  for (; node > 0; node = D.parent[node]) out.push(node);
  return out.reverse();
}

// Which particles the search and the answer filter leave.
function matching() {
  const P = S.particles;
  let hit = null;
  if (view.query) {
    const found = S.strings.map((s) => s.toLowerCase().includes(view.query));
    const names = S.sites.map((s) => s[1].toLowerCase().includes(view.query));
    hit = new Uint8Array(D.n);
    for (let i = 1; i < D.n; i++) hit[i] = hit[D.parent[i]] || found[S.nodes.text[i]] || names[S.nodes.site[i]] ? 1 : 0;
  }
  view.hit = hit;
  return D.order.filter((i) => (view.answer === -2 || P.answer[i] === view.answer) &&
    (!hit || hit[P.leaf[i]] || (P.answer[i] >= 0 && answerText(P.answer[i]).toLowerCase().includes(view.query))));
}
