"use strict";
// The page: fills its sections from the state, and again what depends on the search, the filter,
// the step and the chosen particle.

function summary() {
  const interval = S.exact ? "exact" : S.interval.every((v) => v !== null) ? `95 %: ${show(S.interval[0])} … ${show(S.interval[1])}` : "no interval";
  const tiles = [
    [show(S.log_evidence), `log evidence, ${interval}`],
    [show(S.ess), `effective sample size of ${count(S.size)} ${S.exact ? "traces" : "particles"}`],
    S.exact ? null : [count(S.ancestors), "first ancestors left"],
    [`${count(S.tokens[0])} + ${count(S.tokens[1])}`, "tokens in + out"],
    [`${show(S.seconds, 3)} s`, "wall time"],
    [count(D.n - 1), "distinct thoughts"],
  ];
  put("tiles", tiles.filter(Boolean).map(([big, small]) => el("div", { class: "tile" }, el("b", null, big), el("span", null, small))));
  const limits = [
    S.cut && `texts are cut at ${count(S.cut)} characters, so that this page keeps to its size`,
    D.N < S.size && `the ${count(D.N)} heaviest of ${count(S.size)} particles are told; all count in the answers`,
  ].filter(Boolean);
  put("warnings", limits.map((line) => el("p", { class: "sub" }, line)), S.warnings.length && el("div", { class: "warn" }, S.warnings.map((w) => el("p", null, "⚠ ", w))),
    S.deaths.length && el("details", { open: S.dead }, el("summary", null, S.dead ? "All particles have weight zero" : "Particles killed"),
      el("table", null, S.deaths.map(([site, n]) => el("tr", null, el("td", null, site), el("td", { class: "n" }, count(n))))),
      S.death_examples.map((e) => el("pre", { class: "mono" }, e))));
}

function answers() {
  const most = Math.max(...S.answers.map((a) => Math.min(1, (a[1] || 0) + 2 * (a[2] || 0))), 1e-12);
  const all = view.answers ? S.answers : S.answers.slice(0, 12);
  put("answers", el("div", { class: "rows" }, all.map(([text, p, se], k) => {
    const spread = se ? `± ${show(se, 2)}` : S.exact ? "exact" : "";
    return el("button", { class: `answer${view.answer === k ? " on" : ""}`, "aria-pressed": view.answer === k, on: { click: () => { view.answer = view.answer === k ? -2 : k; update(); } } },
      el("span", { class: "text" }, mark(cut(S.strings[text], 300))),
      el("span", { class: "meter" }, el("i", { style: `width:${(100 * p / most).toFixed(1)}%;background:${colour(k)}` }),
        se ? el("u", { style: `left:${(100 * Math.max(p - 2 * se, 0) / most).toFixed(1)}%;width:${(100 * Math.min(4 * se, p + 2 * se) / most).toFixed(1)}%` }) : null),
      el("b", null, p.toFixed(4)), el("span", { class: "sub" }, spread));
  })), S.answers.length > all.length && el("button", { class: "more", on: { click: () => { view.answers = true; answers(); } } }, `all ${count(S.answers.length)} answers`));
}

function through() {
  const has = D.told && D.T > 0;
  $("through-section").hidden = !S.steps.length;
  if (!S.steps.length) return;
  const values = (key) => S.steps.map((s) => s[key]), right = "end", cursor = view.step, most = Math.max(...values("n"));
  put("whose", S.whose && `the barriers of ${S.whose}`);
  put("curves", S.steps.length > 1 && [
    lineChart(`ESS of ${count(most)}`, [{ values: values("ess"), colour: COLOURS[0] }], { lo: 0, hi: most, right, cursor }),
    lineChart("first ancestors left", [{ values: values("eves"), colour: COLOURS[2] }], { lo: 0, hi: S.steps[0].n, right, cursor }),
    lineChart("log evidence so far", [{ values: values("logz"), colour: COLOURS[1] }], { right, cursor }),
  ], D.told && bars(view.step), has && flow());
  $("genealogy-box").hidden = !has;
  if (has) D.under = genealogy($("genealogy"));
}

function stepLabel() {
  const s = S.steps[view.step];
  $("step-label").textContent = !S.steps.length ? "no barriers" : view.step >= D.T ? `end: ESS ${show(s.ess, 3)}` :
    `barrier ${view.step} of ${D.T}: ESS ${show(s.ess, 3)}${s.resampled ? ", resampled" : ""}`;
}

function particles() {
  const found = view.found, P = S.particles, top = Math.max(P.w[D.order[0]] || 0, 1e-12);
  $("found").textContent = `${count(found.length)} of ${count(D.N)} ${S.exact ? "traces" : "particles"}`;
  const rows = found.slice(0, view.rows).map((i) => el("tr", { class: i === view.particle ? "on" : null, tabindex: 0, on: { click: () => select(i), keydown: (e) => { if (e.key === "Enter") select(i); } } },
    el("td", { class: "n" }, P.index[i]),
    el("td", null, el("span", { class: "meter small" }, el("i", { style: `width:${(100 * (P.w[i] || 0) / top).toFixed(1)}%;background:${colour(P.answer[i])}` }))),
    el("td", { class: "n" }, show(P.w[i] || 0)), el("td", { class: "n" }, show(P.lw[i])), el("td", { class: "n" }, P.eve[i]),
    el("td", { class: "v" }, mark(flat(answerText(P.answer[i]), 120)))));
  put("particles", el("table", null, el("thead", null, el("tr", null, ["particle", "", "weight", "log weight", "first ancestor", "answer"].map((h, k) => el("th", { class: k === 0 || (k > 1 && k < 5) ? "n" : null }, h)))), el("tbody", null, rows)),
    found.length > view.rows && el("button", { class: "more", on: { click: () => { view.rows += 200; particles(); } } }, `${count(found.length - view.rows)} more`));
}

// One particle as a story: what was drawn, observed and weighed, in order.
function story() {
  const i = view.particle, P = S.particles, nodes = path(P.leaf[i]), at = new Map();
  if (D.own) S.steps.forEach((s, t) => {
    if (!s.at || t === D.T) return;
    const node = s.at[D.lines[t][i]];
    const children = s.parents ? s.parents.reduce((n, a) => n + (a === D.lines[t][i]), 0) : null;
    at.set(node, [...(at.get(node) || []), [t, s, children]]);
  });
  let total = 0, passed = true;
  const limit = D.own && view.step < D.T && S.steps[view.step].at ? S.steps[view.step].at[D.lines[view.step][i]] : -1;
  const stops = (n) => (at.get(n) || []).map(([t, s, k]) => el("li", { class: `stop${view.step === t ? " on" : ""}` },
    el("button", { on: { click: () => { view.step = t; update(); } } }, `barrier ${t}`),
    ` ESS ${show(s.ess, 3)}${k === null ? "" : k === 1 ? ", resampled: one child" : `, resampled: ${count(k)} children`}`));
  if (limit === 0) passed = false;
  const shown = nodes.slice(0, 400).map((n) => {
    const op = opOf(n), logp = S.nodes.logp[n], logw = S.nodes.logw[n], tokens = S.nodes.tokens[n];
    total = total === null || logw === null ? null : total + logw;
    const verb = { sample: "drew", observe: "observed", factor: "weighed", effect: "did", deterministic: "derived", cached: "did", plate: "gathered", call: "called", param: "used" }[op] || op;
    const p = op === "sample" || op === "observe" ? `p = ${show(logp === null ? 0 : Math.exp(logp), 3)}${tokens ? `, ${count(tokens)} tokens` : ""}` : "";
    const w = logw !== 0 ? `weight ×${show(logw === null ? 0 : Math.exp(logw), 3)}` : "";
    const item = el("li", { class: `event ${["sample", "observe", "factor", "effect"].includes(op) ? op : "other"}${passed ? "" : " later"}` },
      el("div", { class: "what" }, el("b", null, verb), " ", el("span", { class: "site" }, mark(siteOf(n))), el("span", { class: "sub" }, [p, w].filter(Boolean).join(" · "))),
      el("div", { class: "value" }, mark(textOf(n) || "(empty)")));
    if (n === limit) passed = false;
    return [item, stops(n)];
  });
  put("story", el("div", { class: "answerline" }, el("i", { class: "dot", style: `background:${colour(P.answer[i])}` }),
    ` particle ${P.index[i]} answers `, el("b", null, mark(cut(answerText(P.answer[i]), 400))), el("span", { class: "sub" }, `  weight ${show(P.w[i] || 0)}, log weight ${show(P.lw[i])}`)),
  el("ol", { class: "events" }, stops(0), shown), nodes.length > 400 && el("p", { class: "sub" }, `${count(nodes.length - 400)} more sites`));
  $("which").textContent = `particle ${P.index[i]}`;
}

function costs() {
  const most = Math.max(...S.costs.map((c) => c[2] + c[3]), 1), time = Math.max(...S.costs.map((c) => c[4] || 0), 1e-12);
  const meter = (share, hue) => el("span", { class: "meter small" }, el("i", { style: `width:${(100 * share).toFixed(1)}%;background:${hue}` }));
  put("costs", S.costs.length ? el("table", null,
    el("thead", null, el("tr", null, ["site", "strings", "tokens in", "tokens out", "", "seconds", ""].map((h, k) => el("th", { class: [1, 2, 3, 5].includes(k) ? "n" : null }, h)))),
    el("tbody", null, S.costs.map(([site, calls, tin, tout, seconds]) => el("tr", null, el("td", null, site || "(outside of a site)"), el("td", { class: "n" }, count(calls)), el("td", { class: "n" }, count(tin)), el("td", { class: "n" }, count(tout)),
      el("td", null, meter((tin + tout) / most, COLOURS[0])), el("td", { class: "n" }, show(seconds, 3)), el("td", null, meter((seconds || 0) / time, COLOURS[3])))))) : el("p", { class: "sub" }, "no language model was asked"),
  S.models.length ? el("table", null, el("thead", null, el("tr", null, ["model", "strings", "passes", "tokens in", "tokens out"].map((h, k) => el("th", { class: k ? "n" : null }, h)))),
    el("tbody", null, S.models.map((m) => el("tr", null, m.map((v, k) => el("td", { class: k ? "n" : null }, k ? count(v) : v)))))) : null,
  el("p", { class: "sub" }, `${count(S.effects[0])} effects in ${show(S.effects[1], 3)} s, ${count(S.effects[2])} tape entries replayed`));
}

function thoughts() {
  const graphs = graphsOf(view.particle);
  view.graph = Math.min(view.graph, graphs.length - 1);
  put("graph-pick", graphs.length > 1 && graphs.map((g, k) => el("button", { class: k === view.graph ? "on" : null, on: { click: () => { view.graph = k; thoughts(); } } }, g.name)));
  const graph = graphs[view.graph];
  put("thought-graph", el("p", { class: "sub" }, graph.say), el("div", { class: "scroll" }, thoughtGraph(graph)));
  if (graph.thoughts.length) thoughtDetail(graph, graph.thoughts.length - 1);
  else put("thought-detail");
}

function land() {
  $("landscape-section").hidden = !S.landscape;
  if (!S.landscape) return;
  const L = S.landscape, far = Math.max(...L.heat.flatMap((h) => h[1].map((v) => v || 0)), 1e-9), opts = { left: "start", right: "end" };
  put("landscape", landscapeMap(), el("div", { class: "charts column" },
    lineChart("consistency: nearest answer is the final one", [{ values: L.consistency, colour: COLOURS[2] }], { ...opts, lo: 0, hi: 1 }),
    lineChart("uncertainty: entropy of the answers, bits", [{ values: L.uncertainty, colour: COLOURS[1] }], { ...opts, lo: 0 }),
    lineChart("perplexity of the thoughts", [{ values: L.perplexity, colour: COLOURS[0] }], opts)),
  el("div", { class: "scroll" }, el("table", { class: "heat" }, el("thead", null, el("tr", null, el("th", null, "mean distance, by progress"), L.answers.map((a, k) => el("th", null, el("i", { class: "dot", style: `background:${colour(k)}` }), " ", flat(a, 20))))),
    el("tbody", null, L.heat.map(([name, row]) => el("tr", null, el("td", null, name), row.map((v) => el("td", { class: "n", style: v === null ? null : `background:rgba(68,119,170,${(0.7 * (1 - v / far)).toFixed(2)})` }, v === null ? "" : show(v, 2)))))))));
}

function select(i) { view.particle = i; update(); }

// The heaviest particle that passes through a node; for one that died out, the node itself.
function choose(node) {
  const up = (n) => { for (; n > node; n = D.parent[n]); return n === node; };
  const found = D.order.find((i) => up(S.particles.leaf[i]));
  put("node-detail", el("div", { class: "card" }, el("h3", null, siteOf(node), " ", el("span", { class: "sub" }, opOf(node))), el("pre", { class: "mono" }, mark(textOf(node))),
    el("div", { class: "sub" }, `weight ${show(D.mass[node])} · ${count(D.copies[node])} final particles · log p ${show(S.nodes.logp[node])} · log weight ${show(S.nodes.logw[node])} · ${count(S.nodes.tokens[node])} tokens`),
    found === undefined && el("div", { class: "bad" }, "no final particle descends from it"),
    el("details", null, el("summary", null, "what came before"), el("ol", null, path(D.parent[node]).map((n) => el("li", null, el("b", null, siteOf(n)), " ", cut(textOf(n), 300)))))));
  if (found !== undefined) select(found);
}

function update() {
  view.found = matching();
  if (view.query && view.found.length && !view.found.includes(view.particle)) view.particle = view.found[0];
  particles(); stepLabel(); answers(); through(); story(); thoughts(); put("tree", tree()); land();
  $("answer").value = String(view.answer);
  $("step").value = String(view.step);
}

async function start() {
  S = await read();
  derive();
  view.particle = D.order[0] || 0;
  view.step = D.T;
  $("step").max = String(D.T);
  $("step").disabled = !D.T;
  put("answer", el("option", { value: -2 }, "all answers"), S.answers.slice(0, 60).map((a, k) => el("option", { value: k }, flat(S.strings[a[0]], 40))), el("option", { value: -1 }, "weight zero"));
  let soon = 0;
  const later = (f) => { clearTimeout(soon); soon = setTimeout(f, 120); };
  $("query").addEventListener("input", () => later(() => { view.query = $("query").value.trim().toLowerCase(); view.rows = 100; update(); }));
  $("answer").addEventListener("change", () => { view.answer = Number($("answer").value); view.rows = 100; update(); });
  $("step").addEventListener("input", () => { view.step = Number($("step").value); stepLabel(); later(() => { through(); story(); }); });
  $("before").addEventListener("click", () => turn(-1));
  $("after").addEventListener("click", () => turn(1));
  $("died").addEventListener("change", () => { view.died = $("died").checked; put("tree", tree()); });
  $("genealogy").addEventListener("click", (e) => {
    const hit = D.under && D.under(e);
    if (!hit) return;
    const [t, i] = hit;
    view.step = t;
    const child = D.own ? D.order.find((k) => D.lines[t][k] === i && S.particles.answer[k] >= 0) : undefined;
    if (child !== undefined) select(child);
    else { update(); if (S.steps[t].at && (t < D.T || !D.own)) choose(S.steps[t].at[i]); }
  });
  window.addEventListener("resize", () => later(through));
  summary(); costs(); update();
  document.body.dataset.ready = String(Math.round(performance.now()));
}

function turn(by) {
  const list = view.found.length ? view.found : D.order, k = list.indexOf(view.particle);
  select(list[(k + by + list.length) % list.length]);
}

start();
