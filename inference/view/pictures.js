"use strict";
// Pictures: curves, the genealogy, trees and graphs of thoughts, the landscape.

function axes(width, height, lo, hi, left, right, pad) {
  return [
    el("path", { d: `M${pad} 8V${height - 22}H${width - 8}`, stroke: "currentColor", "stroke-opacity": 0.35, fill: "none" }),
    el("text", { x: pad - 6, y: 14, "text-anchor": "end", class: "tick" }, show(hi, 3)),
    el("text", { x: pad - 6, y: height - 20, "text-anchor": "end", class: "tick" }, show(lo, 3)),
    el("text", { x: pad, y: height - 6, class: "tick" }, left),
    el("text", { x: width - 8, y: height - 6, "text-anchor": "end", class: "tick" }, right),
  ];
}

function lineChart(caption, series, { lo = null, hi = null, left = "0", right = "", cursor = null, width = 320, height = 140, pad = 46 } = {}) {
  const all = series.flatMap((s) => s.values).filter((v) => v !== null && Number.isFinite(v));
  if (!all.length) return null;
  lo = lo === null ? all.reduce((a, b) => Math.min(a, b)) : lo;
  hi = hi === null ? all.reduce((a, b) => Math.max(a, b)) : hi;
  if (hi - lo < 1e-12) { lo -= 0.5; hi += 0.5; }
  const n = Math.max(...series.map((s) => s.values.length));
  const x = (i) => pad + (width - 8 - pad) * (n > 1 ? i / (n - 1) : 0.5);
  const y = (v) => height - 22 - (height - 30) * (Math.min(Math.max(v, lo), hi) - lo) / (hi - lo);
  const drawn = series.map((s) => {
    let pen = "M", d = "";
    s.values.forEach((v, i) => {
      if (v === null || !Number.isFinite(v)) { pen = "M"; return; }
      d += `${pen}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = "L";
    });
    return el("path", { d, stroke: s.colour, "stroke-width": 1.8, fill: "none", "stroke-linejoin": "round" });
  });
  const stand = cursor === null ? null : el("line", { x1: x(cursor), x2: x(cursor), y1: 6, y2: height - 22, class: "cursor" });
  const key = series.length > 1 ? el("span", null, series.map((s) => [el("i", { class: "dot", style: `background:${s.colour}` }), ` ${s.name}  `])) : null;
  return el("figure", null,
    el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": caption }, axes(width, height, lo, hi, left, right, pad), drawn, stand),
    el("figcaption", null, caption, " ", key));
}

// Weight at each barrier by the answer that the offspring gave.
function flow(width = 320, height = 140, pad = 46) {
  const T = D.T, K = Math.min(S.answers.length, COLOURS.length);
  const shares = [];
  for (let t = 0; t <= T; t++) {
    const w = weights(t);
    if (!w) return null;
    const row = new Array(K + 2).fill(0), of = offspring(t);
    w.forEach((v, i) => { row[of[i] < 0 ? K + 1 : Math.min(of[i], K)] += v || 0; });
    shares.push(row);
  }
  const x = (t) => pad + (width - 8 - pad) * (T ? t / T : 0.5), y = (v) => height - 22 - (height - 30) * v;
  const bands = [];
  const base = new Array(T + 1).fill(0);
  for (let k = 0; k < K + 2; k++) {
    let up = "", down = "";
    for (let t = 0; t <= T; t++) {
      down = `L${x(t).toFixed(1)} ${y(base[t]).toFixed(1)}` + down;
      base[t] += shares[t][k];
      up += `${t ? "L" : "M"}${x(t).toFixed(1)} ${y(base[t]).toFixed(1)}`;
    }
    const fill = k < K ? COLOURS[k] : OTHER;
    bands.push(el("path", { d: up + down + "Z", fill, "fill-opacity": k === K + 1 ? 0.18 : 0.8 },
      el("title", null, k < K ? answerText(k) : k === K ? "other answers" : "left no offspring")));
  }
  return el("figure", null,
    el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "answers through time" },
      axes(width, height, 0, 1, "0", "end", pad), bands,
      el("line", { x1: x(view.step), x2: x(view.step), y1: 6, y2: height - 22, class: "cursor" })),
    el("figcaption", null, "weight by the answer of the offspring; pale: left none"));
}

function weights(t) {
  const lw = S.steps[t].lw;
  if (!lw) return null;
  let top = -Infinity;
  for (const v of lw) if (v !== null && v > top) top = v;
  if (top === -Infinity) return lw.map(() => 0);
  const w = lw.map((v) => (v === null ? 0 : Math.exp(v - top)));
  const sum = w.reduce((a, b) => a + b, 0);
  return w.map((v) => v / sum);
}

// The answer of each particle's offspring at barrier t; -1 where there is none.
function offspring(t) {
  D.offspring = D.offspring || {};
  if (D.offspring[t]) return D.offspring[t];
  const n = S.steps[t].n, best = new Float64Array(n), of = new Int32Array(n).fill(-1);
  for (let i = 0; i < D.E; i++) {
    const a = D.lines[t][i], w = D.end.w[i] || 0;
    if (D.end.answer[i] >= 0 && w > best[a]) { best[a] = w; of[a] = D.end.answer[i]; }
  }
  return (D.offspring[t] = of);
}

function bars(t, width = 320, height = 140, pad = 46) {
  const w = weights(t);
  if (!w) return null;
  const of = offspring(Math.min(t, D.T));
  const ranked = w.map((v, i) => [v, of[i]]).sort((a, b) => b[0] - a[0]).slice(0, 400);
  const top = Math.max(ranked[0][0], 1e-12), step = (width - 8 - pad) / ranked.length;
  const shapes = new Map();
  ranked.forEach(([v, a], k) => {
    const high = (height - 30) * v / top;
    const d = `M${(pad + k * step).toFixed(1)} ${(height - 22).toFixed(1)}v${(-high).toFixed(1)}h${Math.max(step * 0.85, 0.5).toFixed(2)}v${high.toFixed(1)}z`;
    shapes.set(colour(a), (shapes.get(colour(a)) || "") + d);
  });
  return el("figure", null,
    el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "weights" }, axes(width, height, 0, top, "heaviest", `of ${count(w.length)}`, pad),
      [...shapes].map(([fill, d]) => el("path", { d, fill }))),
    el("figcaption", null, t >= D.T ? "final weights" : `weights at barrier ${t}, before resampling`));
}

// -- genealogy ------------------------------------------------------------------------------------

const GENEALOGY = { height: 300, left: 10, right: 14, top: 10, bottom: 24 };

function genealogy(canvas) {
  const g = GENEALOGY, width = Math.max(canvas.parentElement.clientWidth, 300), scale = window.devicePixelRatio || 1;
  canvas.width = width * scale; canvas.height = g.height * scale;
  canvas.style.width = `${width}px`; canvas.style.height = `${g.height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const ink = getComputedStyle(canvas).color;
  const x = (t) => g.left + (width - g.left - g.right) * t / Math.max(D.T, 1);
  const size = (t) => S.steps[t].n, most = Math.max(...S.steps.map((s) => s.n));
  const y = (i, t) => g.top + (g.height - g.top - g.bottom) * (i + 0.5) / size(t);
  const draw = (segments, stroke, thick, alpha) => {
    pen.globalAlpha = alpha; pen.strokeStyle = stroke; pen.lineWidth = thick;
    pen.beginPath();
    for (const [t, a, b] of segments) { pen.moveTo(x(t), y(a, t)); pen.lineTo(x(t + 1), y(b, t + 1)); }
    pen.stroke();
  };
  const seen = new Set(), faint = [], rows = Math.min(most, 300);
  const cell = (i, t) => Math.floor(i * rows / size(t));
  for (let t = 0; t < D.T; t++) {
    const up = S.steps[t].parents;
    for (let i = 0; i < size(t + 1); i++) {
      const a = up ? up[i] : i, key = (t * rows + cell(a, t)) * rows + cell(i, t + 1);
      if (!seen.has(key)) { seen.add(key); faint.push([t, a, i]); }
    }
  }
  draw(faint, OTHER, 0.6, most > 200 ? 0.25 : 0.4);
  const alive = new Map();
  for (const i of [...D.ranked].reverse()) {
    if (D.end.answer[i] < 0) continue;
    const stroke = colour(D.end.answer[i]);
    if (!alive.has(stroke)) alive.set(stroke, new Map());
    const of = alive.get(stroke);
    for (let t = 0; t < D.T; t++) {
      const a = D.lines[t][i], b = D.lines[t + 1][i];
      of.set((t * rows + cell(a, t)) * rows + cell(b, t + 1), [t, a, b]);
    }
  }
  for (const [stroke, of] of alive) draw(of.values(), stroke, most > 200 ? 0.9 : 1.5, 0.75);
  const chosen = view.particle, own = [];
  if (D.own) {
    for (let t = 0; t < D.T; t++) own.push([t, D.lines[t][chosen], D.lines[t + 1][chosen]]);
    draw(own, ink, 2.4, 0.95);
    pen.globalAlpha = 1;
    pen.fillStyle = ink;
    pen.beginPath(); pen.arc(x(D.T), y(chosen, D.T), 4, 0, 7); pen.fill();
  }
  pen.globalAlpha = 0.7; pen.strokeStyle = "#cc5566"; pen.lineWidth = 1.5;
  pen.beginPath(); pen.moveTo(x(view.step), 4); pen.lineTo(x(view.step), g.height - g.bottom + 4); pen.stroke();
  S.steps.forEach((s, t) => { if (s.resampled) pen.fillRect(x(t + 1) - 1, g.height - g.bottom + 2, 2, 5); });
  pen.globalAlpha = 0.75; pen.fillStyle = ink; pen.font = "11px system-ui,sans-serif";
  pen.fillText("first population", g.left, g.height - 5);
  const end = "final particles"; pen.fillText(end, width - g.right - pen.measureText(end).width, g.height - 5);
  return (event) => { // the population and particle under the pointer
    const box = canvas.getBoundingClientRect();
    const t = Math.round((event.clientX - box.left - g.left) / ((width - g.left - g.right) / Math.max(D.T, 1)));
    if (t < 0 || t > D.T) return null;
    const i = Math.floor((event.clientY - box.top - g.top) / ((g.height - g.top - g.bottom) / size(t)));
    return i >= 0 && i < size(t) ? [t, i] : null;
  };
}

// -- the tree of thoughts -------------------------------------------------------------------------

const QUIET = new Set(["observe", "factor", "plate", "call", "loop"]);
const quiet = (node) => QUIET.has(opOf(node)) || S.graphs[node];

// The next nodes below that say something; chains without a choice become one vertex.
function below(node) {
  const out = [], stack = [...D.children[node]].reverse();
  while (stack.length) {
    const at = stack.pop();
    if (quiet(at)) stack.push(...[...D.children[at]].reverse());
    else out.push(at);
  }
  return out;
}

function treeOf(most) {
  const root = { node: 0, kids: null, hidden: 0, chain: [] };
  const queue = [root];
  let leaves = 1;
  while (queue.length) {
    queue.sort((a, b) => D.mass[b.node] - D.mass[a.node]);
    const at = queue.shift();
    let next = below(at.node), chain = [];
    while (next.length === 1 && below(next[0]).length === 1 && at.node !== 0) { chain.push(next[0]); next = below(next[0]); }
    if (!view.died) next = next.filter((k) => D.mass[k] > 0);
    at.chain = chain;
    const room = most - leaves + 1, full = next.length > 1 && room < 2;
    const kept = full ? [] : next.slice(0, room > 0 ? room : 1);
    at.hidden = next.length - kept.length;
    at.kids = kept.map((node) => ({ node, kids: [], hidden: 0, chain: [] }));
    leaves += Math.max(kept.length - 1, 0);
    queue.push(...at.kids);
  }
  return root;
}

function tree() {
  const most = 40, root = treeOf(most), rows = [], links = [], column = 236, row = 26, name = (v) => (flat(textOf(v.node), 27) || "(empty)") + (v.chain.length ? ` +${v.chain.length}` : "");
  let y = 0, far = 0;
  const place = (v, x, up) => {
    v.x = x;
    far = Math.max(far, x);
    if (!v.kids || !v.kids.length) { v.y = y; y += 1; }
    else { v.kids.forEach((k) => place(k, x + 1, v)); v.y = v.kids.reduce((s, k) => s + k.y, 0) / v.kids.length; }
    if (v.hidden && v.kids.length) y += 1;
    if (v.node) rows.push(v);
    if (up && up.node >= 0) links.push([up, v]);
  };
  place(root, 0, null);
  const X = (v) => (v.x - 0.9) * column + 14, Y = (v) => v.y * row + 16;
  const shapes = links.filter(([a]) => a.node > 0).map(([a, b]) => {
    const x0 = X(a) + 18 + 6.4 * name(a).length, x1 = X(b) - 7, mid = x1 - 14, hue = D.mass[b.node] > 0 ? D.hue[b.node] : OTHER;
    return el("path", { d: `M${x0} ${Y(a)}H${mid - 14}C${mid} ${Y(a)} ${mid - 6} ${Y(b)} ${x1} ${Y(b)}`, fill: "none", stroke: hue,
      "stroke-width": Math.max(0.8, 7 * Math.sqrt(D.mass[b.node])).toFixed(1), "stroke-opacity": D.mass[b.node] > 0 ? 0.45 : 0.3, "stroke-dasharray": D.mass[b.node] > 0 ? null : "3 3" });
  });
  for (const v of rows) {
    const hit = view.hit && view.hit[v.node] && !view.hit[D.parent[v.node]];
    const title = `${siteOf(v.node)} = ${cut(textOf(v.node), 600)}\nweight ${show(D.mass[v.node])}, ${count(D.copies[v.node])} particles, log p ${show(S.nodes.logp[v.node])}, ${S.nodes.tokens[v.node]} tokens`;
    shapes.push(el("g", { class: `vertex${hit ? " hit" : ""}${D.mass[v.node] > 0 ? "" : " died"}`, tabindex: 0, on: { click: () => choose(v.node), keydown: (e) => { if (e.key === "Enter") choose(v.node); } } },
      el("title", null, title),
      el("circle", { cx: X(v), cy: Y(v), r: (2.5 + 6 * Math.sqrt(D.mass[v.node])).toFixed(1), fill: D.hue[v.node] }),
      el("text", { x: X(v) + 12, y: Y(v) + 4 }, name(v))));
    if (v.hidden) {
      const last = v.kids[v.kids.length - 1];
      shapes.push(el("text", { x: last ? X(v) + column : X(v) + 22 + 6.4 * name(v).length, y: (last ? Y(last) + row : Y(v)) + 4, class: "tick" }, `… ${count(v.hidden)} more`));
    }
  }
  return el("svg", { viewBox: `0 0 ${(far + 0.1) * column + 40} ${y * row + 14}`, width: (far + 0.1) * column + 40, height: y * row + 14, role: "img", "aria-label": "tree of thoughts" }, shapes);
}
