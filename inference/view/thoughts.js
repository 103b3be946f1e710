"use strict";
// The graph of thoughts of one particle, and the landscape of all of them.

// The graphs that a particle recorded; without any, its sites joined by the program's edges.
function graphsOf(particle) {
  const nodes = path(S.particles.leaf[particle]);
  const recorded = nodes.filter((n) => S.graphs[n]).map((n) => {
    const g = S.graphs[n], str = (k) => S.strings[k];
    const thoughts = g.rows.map((r) => ({
      id: str(r[0]), text: str(r[1]), parents: r[2], kind: str(r[3]), status: str(r[4]), spawned: r[5], becomes: r[6],
      reason: str(r[7]), attempts: r[8], weight: r[9], logp: r[10], calls: r[11], tokens: r[12], effects: r[13], critical: r[14],
    }));
    const [total, critical, sequential, rounds] = g.totals;
    return { name: g.name, thoughts, say: `${count(total)} tokens, ${count(critical)} on the critical path; ${count(rounds)} ${rounds === 1 ? "round" : "rounds"} in place of ${count(sequential)}` };
  });
  const place = new Map();
  const sites = nodes.filter((n) => !["plate", "call", "loop"].includes(opOf(n)) && !S.graphs[n]);
  sites.forEach((n, k) => place.set(siteOf(n), k));
  const thoughts = sites.map((n) => ({
    id: siteOf(n), text: textOf(n), parents: [], kind: opOf(n), status: "done", spawned: -1, becomes: -1, reason: "", attempts: 1,
    weight: S.nodes.logw[n], logp: S.nodes.logp[n], calls: 0, tokens: S.nodes.tokens[n], effects: 0, node: n,
  }));
  for (const [u, v] of S.edges) if (place.has(u) && place.has(v)) thoughts[place.get(v)].parents.push(place.get(u));
  const whole = { name: "the program's sites", thoughts, say: S.edges.length ? "edges: whose value went into whose prompt or law" : S.graph_note };
  return [...recorded.reverse(), whole];
}

function levels(thoughts) {
  const level = new Array(thoughts.length).fill(-1);
  const before = (k) => [...thoughts[k].parents, ...(thoughts[k].spawned >= 0 ? [thoughts[k].spawned] : [])];
  const visit = (start) => {
    const stack = [start], entered = new Set();
    while (stack.length) {
      const k = stack[stack.length - 1], missing = before(k).filter((p) => level[p] < 0);
      if (level[k] >= 0) stack.pop();
      else if (missing.length && !entered.has(k)) { entered.add(k); stack.push(...missing); }
      else { level[k] = 1 + Math.max(-1, ...before(k).map((p) => level[p])); stack.pop(); }
    }
  };
  thoughts.forEach((_, k) => visit(k));
  const rows = [];
  level.forEach((l, k) => (rows[l] = rows[l] || []).push(k));
  const at = new Array(thoughts.length).fill(0);
  const settle = () => rows.forEach((row) => row.forEach((k, i) => (at[k] = i - (row.length - 1) / 2)));
  settle();
  const after = thoughts.map(() => []);
  thoughts.forEach((_, k) => before(k).forEach((p) => after[p].push(k)));
  for (let sweep = 0; sweep < 6; sweep++) {
    const down = sweep % 2 === 0, near = down ? before : (k) => after[k];
    for (const row of down ? rows : [...rows].reverse()) {
      const mean = new Map(row.map((k) => [k, near(k).length ? near(k).reduce((s, p) => s + at[p], 0) / near(k).length : at[k]]));
      row.sort((a, b) => mean.get(a) - mean.get(b));
      row.forEach((k, i) => (at[k] = i - (row.length - 1) / 2));
    }
  }
  return { rows, at, level };
}

const KIND = { sample: "#4477aa", thought: "#4477aa", observe: "#8a94a0", factor: "#8a94a0", effect: "#b8860b", deterministic: "#228833" };

function thoughtGraph(graph) {
  const W = 190, H = 50, gx = 18, gy = 34, thoughts = graph.thoughts;
  if (!thoughts.length) return el("p", { class: "sub" }, "no site");
  const { rows, at, level } = levels(thoughts);
  const wide = Math.max(...rows.map((r) => r.length)), width = wide * (W + gx) + gx, height = rows.length * (H + gy) + 10;
  const x = (k) => width / 2 + at[k] * (W + gx), y = (k) => 8 + level[k] * (H + gy);
  const lines = [];
  thoughts.forEach((v, k) => {
    const draw = (p, dash) => {
      const y0 = y(p) + H, y1 = y(k), bend = (y0 + y1) / 2;
      lines.push(el("path", { d: `M${x(p)} ${y0}C${x(p)} ${bend} ${x(k)} ${bend} ${x(k)} ${y1}`, fill: "none", class: "edge", "stroke-dasharray": dash,
        "stroke-width": v.critical && thoughts[p].critical ? 2.6 : 1.3 }));
    };
    v.parents.forEach((p) => draw(p, null));
    if (v.spawned >= 0 && !v.parents.includes(v.spawned)) draw(v.spawned, "4 3");
  });
  const boxes = thoughts.map((v, k) => {
    const gone = ["failed", "replaced", "skipped", "cancelled", "unneeded"].includes(v.status);
    const factor = v.weight === null ? "×0" : Math.abs(v.weight) > 5e-5 ? `×${show(Math.exp(v.weight), 3)}` : "";
    const price = [v.tokens ? `${count(v.tokens)} tok` : "", factor, v.attempts > 1 ? `${v.attempts} tries` : "", v.status === "done" ? "" : v.status].filter(Boolean).join(" · ");
    const title = `${v.id} (${v.kind}, ${v.status})\n${cut(v.text, 800)}\nparents: ${v.parents.map((p) => thoughts[p].id).join(", ") || "none"}\nlog p ${show(v.logp)}, log weight ${show(v.weight)}, ${v.tokens} tokens, ${v.calls} strings${v.reason ? `\n${v.reason}` : ""}`;
    return el("g", { class: `thought${gone ? " gone" : ""}${view.query && v.text.toLowerCase().includes(view.query) ? " hit" : ""}`, tabindex: 0,
      on: { click: () => thoughtDetail(graph, k), keydown: (e) => { if (e.key === "Enter") thoughtDetail(graph, k); } } },
    el("title", null, title),
    el("rect", { x: x(k) - W / 2, y: y(k), width: W, height: H, rx: 7, stroke: KIND[v.kind] || "#4477aa", class: "box" }),
    el("text", { x: x(k) - W / 2 + 8, y: y(k) + 14, class: "name" }, cut(v.id, 17)),
    el("text", { x: x(k) + W / 2 - 8, y: y(k) + 14, class: "tick", "text-anchor": "end" }, cut(price, 18)),
    el("text", { x: x(k) - W / 2 + 8, y: y(k) + 29, class: "say" }, flat(v.text, 29)),
    el("text", { x: x(k) - W / 2 + 8, y: y(k) + 43, class: "say" }, flat(v.text.replace(/\s+/g, " ").trim().slice(28), 29)));
  });
  return el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "graph of thoughts" }, lines, boxes);
}

function thoughtDetail(graph, k) {
  const v = graph.thoughts[k], name = (p) => graph.thoughts[p].id;
  put("thought-detail", el("div", { class: "card" },
    el("h3", null, v.id, " ", el("span", { class: "sub" }, `${v.kind}, ${v.status}`)),
    el("pre", { class: "mono" }, mark(v.text)),
    el("div", { class: "sub" }, `log p ${show(v.logp)} · weight ×${show(v.weight === null ? 0 : Math.exp(v.weight))} · ${count(v.tokens)} tokens · ${count(v.calls)} strings · ${v.attempts} ${v.attempts === 1 ? "attempt" : "attempts"}`),
    el("div", null, "parents: ", v.parents.map(name).join(", ") || "none", v.spawned >= 0 ? `; made by ${name(v.spawned)}` : "", v.becomes >= 0 ? `; its value is that of ${name(v.becomes)}` : ""),
    v.reason && el("div", { class: "bad" }, v.reason)));
}

function landscapeMap() {
  const L = S.landscape, size = 420, at = (v) => size / 2 + v * (size / 2 - 30);
  const shapes = L.xy.map(([x, y], k) => {
    const best = L.p[k].indexOf(Math.max(...L.p[k]));
    const hit = view.hit && view.hit[L.nodes[k]];
    return el("circle", { cx: at(x), cy: at(y), r: (2 + 9 * Math.sqrt(L.mass[k])).toFixed(1), fill: colour(best), "fill-opacity": (0.15 + 0.6 * L.progress[k]).toFixed(2),
      stroke: hit ? "currentColor" : colour(best), "stroke-opacity": hit ? 1 : 0.5, class: "vertex", on: { click: () => choose(L.nodes[k]) } },
    el("title", null, `${L.nodes[k] ? `${siteOf(L.nodes[k])} = ${cut(textOf(L.nodes[k]), 300)}` : "the start"}\n${L.answers.map((a, j) => `${cut(a, 40)}: ${show(L.p[k][j], 3)}`).join("\n")}`));
  });
  const path_ = path(S.particles.leaf[view.particle]), place = new Map(L.nodes.map((n, k) => [n, k]));
  const line = [0, ...path_].filter((n) => place.has(n)).map((n) => L.xy[place.get(n)]);
  const own = line.length > 1 ? el("path", { d: line.map(([x, y], i) => `${i ? "L" : "M"}${at(x).toFixed(1)} ${at(y).toFixed(1)}`).join(""), fill: "none", stroke: "currentColor", "stroke-width": 1.4, "stroke-opacity": 0.8 }) : null;
  const marks = L.axy.map(([x, y], k) => {
    const right = x > 0.2;
    return [el("rect", { x: at(x) - 6, y: at(y) - 6, width: 12, height: 12, fill: colour(k), stroke: "currentColor", transform: `rotate(45 ${at(x)} ${at(y)})` }),
      el("text", { x: at(x) + (right ? -12 : 12), y: at(y) + 4, "text-anchor": right ? "end" : "start", class: "name" }, flat(L.answers[k], 24))];
  });
  return el("figure", null, el("svg", { viewBox: `0 0 ${size} ${size}`, width: size, height: size, role: "img", "aria-label": "landscape of thoughts" }, shapes, own, marks),
    el("figcaption", null, "states (darker: further on their way, larger: more weight), answers as diamonds, the chosen particle as a line"));
}
