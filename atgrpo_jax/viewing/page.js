"use strict";
// All that a run said goes into the page as text (textContent), never as HTML.

const PANELS = [
  ["Success", ["rollout/success", "validation/success", "test/success"]],
  ["Share of groups", ["groups/signal", "groups/zero_variance"]],
  ["Reward of the team", /^role\/[^/]+\/team$/],
  ["Local reward", /^role\/[^/]+\/local$/],
  ["Tokens of an answer", /^role\/[^/]+\/tokens$/],
  ["Entropy (nats a token)", /^policy\/[^/]+\/entropy$/],
  ["KL to the sampling policy", /^policy\/[^/]+\/kl_old$/],
  ["Seconds", ["perf/rollout_s", "perf/update_s", "perf/step_s"]],
];
const COLUMNS = [
  ["step", null], ["success", "rollout/success"], ["validation", "validation/success"],
  ["test", "test/success"], ["groups with signal", "groups/signal"], ["turns", "rollout/turns"],
  ["tokens", "rollout/tokens"], ["seconds", "perf/step_s"],
];
const COLOURS = ["#0b62c4", "#c2410c", "#1a7f37", "#8250df", "#b42318", "#0e7490", "#a16207", "#64748b"];

const $ = (id) => document.getElementById(id);
const parts = new Map();  // name of a file of episodes -> its episodes
let contents, listed = [], chosen = null;

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function episodesOf(name) {
  if (!parts.has(name)) parts.set(name, await unpacked(name));
  return parts.get(name);
}

function make(tag, options = {}, ...children) {
  const { text, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

const number = (value) => value === null || value === undefined ? "" :
  Number.isInteger(value) ? String(value + 0) : Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const speaker = (group) => group.seat === null ? group.role : `${group.role}${group.seat}`;
const hasSignal = (group) => group.candidates.some((c) => c.trained);

// Curves

function panel(title, names) {
  const sparse = (name) => contents.series[name].filter((v) => v !== null).length < contents.steps.length / 2;
  const box = make("div", { className: "panel" }, make("h3", { text: title }));
  const options = {
    width: 440, height: 210, cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false } }, axes: [{}, { size: 54 }],
    series: [{ label: "step" }, ...names.map((name, i) => ({
      label: name, stroke: COLOURS[i % COLOURS.length], width: 1.5, spanGaps: true,
      points: { show: sparse(name) || contents.steps.length < 3 }, value: (_, v) => number(v),
    }))],
  };
  const plot = new uPlot(options, [contents.steps, ...names.map((name) => contents.series[name])], box);
  new ResizeObserver(() => plot.setSize({ width: box.clientWidth - 14, height: 210 })).observe(box);
  return box;
}

function drawCurves() {
  const all = Object.keys(contents.series);
  for (const [title, wanted] of PANELS) {
    const names = wanted instanceof RegExp ? all.filter((n) => wanted.test(n)) : wanted.filter((n) => all.includes(n));
    if (names.length) $("panels").append(panel(title, names));
  }
  $("metric").append(...all.map((name) => make("option", { text: name })));
  $("metric").onchange = () => $("other").replaceChildren(panel($("metric").value, [$("metric").value]));
}

// Steps

function drawSteps() {
  const present = COLUMNS.filter(([, name]) => name === null || name in contents.series);
  const rows = contents.steps.map((step, i) =>
    present.map(([, name]) => name === null ? step : contents.series[name][i]));
  let by = 0, down = false;
  const fill = () => {
    rows.sort((a, b) => ((a[by] ?? -Infinity) - (b[by] ?? -Infinity)) * (down ? -1 : 1));
    const head = make("tr", {}, ...present.map(([title], i) => make("th", {
      text: title + (i === by ? (down ? " ↓" : " ↑") : ""),
      onclick: () => { down = i === by ? !down : i !== 0; by = i; fill(); },
    })));
    const body = rows.map((row) => {
      const file = contents.files.find((f) => f.step === row[0] && f.split === "train")
        ?? contents.files.find((f) => f.step === row[0]);
      const line = make("tr", { className: file ? "open" : "closed" },
        ...row.map((value) => make("td", { text: number(value) })));
      if (file) line.onclick = () => { $("file").value = file.name; open(); $("episodes").scrollIntoView(); };
      return line;
    });
    $("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  };
  fill();
}

// Episodes

function choices(select, values) {
  const before = select.value;
  select.replaceChildren(make("option", { text: "any", value: "" }),
    ...[...values].sort().map((value) => make("option", { text: value, value })));
  if (values.has(before)) select.value = before;
}

async function open() {
  const file = contents.files.find((f) => f.name === $("file").value);
  const episodes = await episodesOf(file.name);
  $("sample").textContent = `This page has ${contents.files.length} of the run's ${contents.kept} files of ` +
    `episodes. ${file.split}, step ${file.step}: ${file.shown} of ${file.of} episodes. ${contents.missing}`;
  const groups = episodes.flatMap((e) => e.groups);
  choices($("end"), new Set(episodes.map((e) => e.end)));
  choices($("role"), new Set(groups.map((g) => g.role)));
  choices($("outcome"), new Set(groups.flatMap((g) => g.candidates.map((c) => c.outcome))));
  list();
}

function wanted(episode) {
  const role = $("role").value, outcome = $("outcome").value, signal = $("signal").value;
  const text = $("text").value.toLowerCase();
  const groups = episode.groups.filter((g) => !role || g.role === role);
  if ($("end").value && episode.end !== $("end").value) return false;
  if (!groups.length) return false;
  if (outcome && !groups.some((g) => g.candidates.some((c) => c.outcome === outcome))) return false;
  if (signal && groups.some(hasSignal) !== (signal === "signal")) return false;
  return !text || `${episode.instance} ${episode.problem}`.toLowerCase().includes(text) || groups.some((g) =>
    g.prompt.toLowerCase().includes(text) || g.candidates.some((c) => c.text.toLowerCase().includes(text)));
}

const advantage = (episode) => Math.max(0, ...episode.groups.flatMap((g) =>
  g.candidates.map((c) => Math.abs(c.advantage ?? 0))));
const reward = (episode) => episode.groups.reduce((sum, g) =>
  sum + (g.executed === null ? 0 : g.candidates[g.executed].mixed ?? 0), 0);

function list() {
  const episodes = parts.get($("file").value);
  const order = $("order").value;
  listed = episodes.filter(wanted);
  if (order === "advantage") listed.sort((a, b) => advantage(b) - advantage(a));
  if (order === "reward") listed.sort((a, b) => reward(a) - reward(b));
  $("list").replaceChildren(...listed.map((episode, i) => {
    const signal = episode.groups.filter(hasSignal).length;
    const line = make("li", { onclick: () => show(i) },
      make("span", { text: `instance ${episode.instance}${episode.episode ? `, episode ${episode.episode}` : ""} ` }),
      make("span", { text: episode.solved ? "solved" : episode.end, className: episode.solved ? "solved" : "failed" }),
      make("small", { text: `${episode.turns} turns, reward ${number(reward(episode))}, signal in ${signal} of ${episode.groups.length} groups` }));
    return line;
  }));
  if (listed.length) show(0);
  else $("trees").replaceChildren(make("p", { className: "hint", text: "No episode is like that." }));
}

function show(i) {
  chosen = listed[i];
  [...$("list").children].forEach((line, j) => line.classList.toggle("chosen", i === j));
  $("trees").replaceChildren(tree(chosen));
}

// The same instance in the other files of its split (of any split, for training: it comes once).
async function beside() {
  const files = contents.files.filter((f) => f.split === chosen.split);
  const trees = [];
  for (const file of files) {
    for (const episode of await episodesOf(file.name)) {
      if (episode.instance === chosen.instance && episode.episode === chosen.episode) trees.push(tree(episode));
    }
  }
  $("trees").replaceChildren(...trees);
}

function tree(episode) {
  const place = `${episode.split}, step ${episode.step}, instance ${episode.instance}`;
  const title = make("h3", {},
    make("span", { text: `${place}: ` }),
    make("span", { text: episode.solved ? "solved" : episode.end, className: episode.solved ? "solved" : "failed" }),
    " ", make("button", { text: "beside its other steps", onclick: beside, title: "the same instance at other steps" }));
  const problem = make("p", { className: "note", text: `problem ${episode.problem}` });
  return make("div", { className: "tree" }, title, problem, ...episode.groups.map(groupBox));
}

function groupBox(group) {
  const told = group.candidates.length === 1 ? "" : hasSignal(group) ? "" : "no signal";
  const turn = `turn ${group.turn}, stage ${group.stage}`;
  const head = make("h4", { text: speaker(group) },
    make("span", { text: `${turn}, policy ${group.policy}, weights ${group.version}, temperature ${group.temperature} ${told}` }));
  const prompt = make("details", { open: group.turn === 0 }, make("summary", { text: "prompt" }), make("pre", { text: group.prompt }));
  const candidates = group.candidates.map((c, k) => candidateBox(c, k, k === group.executed));
  return make("div", { className: hasSignal(group) || candidates.length === 1 ? "group" : "group none" },
    head, prompt, make("div", { className: "candidates" }, ...candidates));
}

function candidateBox(candidate, k, executed) {
  const what = make("div", { className: "what" },
    make("b", { text: executed ? `${k} executed` : String(k) }), make("span", { text: candidate.outcome }));
  const box = make("div", { className: executed ? "candidate executed" : "candidate" }, what, said(candidate));
  if (candidate.advantage !== null && candidate.advantage !== undefined) box.append(scale(candidate.advantage));
  const rows = [["reward", candidate.mixed], ["team", candidate.team], ["local", candidate.local],
    ...Object.entries(candidate.parts ?? {}).map(([name, value]) => [`· ${name}`, value]),
    ["advantage", candidate.advantage], ["logprob", candidate.logprobs.reduce((a, b) => a + b, 0)]];
  box.append(make("dl", {}, ...rows.filter(([, v]) => v !== null && v !== undefined).flatMap(([name, value]) =>
    [make("dt", { text: name }), make("dd", { text: number(value) })])));
  if (candidate.note) box.append(make("p", { className: "note", text: candidate.note }));
  for (const ran of candidate.programs) {
    box.append(make("details", {}, make("summary", { text: `program: ${ran.end}` }),
      make("pre", { text: [ran.stdout, ran.stderr].filter(Boolean).join("\n--- stderr\n") })));
  }
  return box;
}

// Tokens are the darker the less likely they were.
function said(candidate) {
  const pre = make("pre", {});
  if (!candidate.pieces) return Object.assign(pre, { textContent: candidate.text });
  candidate.pieces.forEach((piece, i) => {
    const surprise = Math.min(1, -candidate.logprobs[i] / 5);
    const token = make("span", { text: piece, title: `logprob ${number(candidate.logprobs[i])}` });
    token.style.background = `rgba(234, 138, 0, ${(0.7 * surprise).toFixed(3)})`;
    pre.append(token);
  });
  return pre;
}

function scale(value) {
  const bar = make("i"), size = Math.min(1, Math.abs(value) / 3) * 50;
  bar.style.cssText = `width:${size}%;left:${value < 0 ? 50 - size : 50}%;background:${value < 0 ? "var(--bad)" : "var(--good)"}`;
  return make("div", { className: "scale", title: `advantage ${number(value)}` }, bar);
}

async function begin() {
  contents = await unpacked("contents");
  document.body.classList.toggle("inline", Boolean(contents.inline));  // one episode, in a notebook
  $("title").textContent = contents.title;
  const { before, after, steps } = contents.summary;
  const last = contents.steps[contents.steps.length - 1] ?? 0;
  $("summary").textContent = after === undefined ? `not ended; step ${last} is the last one` :
    `test success ${percent(before.success)} before, ${percent(after.success)} after ${steps} steps ` +
    `(95 % interval ${percent(after.low)} to ${percent(after.high)})`;
  $("gin").textContent = contents.config;
  drawCurves();
  drawSteps();
  $("file").append(...contents.files.map((f) => make("option", { text: `${f.split}, step ${f.step}`, value: f.name })));
  for (const id of ["end", "outcome", "role", "signal", "order"]) $(id).onchange = list;
  $("text").oninput = list;
  $("file").onchange = open;
  if (contents.files.length) {
    const trained = contents.files.filter((f) => f.split === "train");
    $("file").value = (trained[trained.length - 1] ?? contents.files[0]).name;
    await open();
  } else $("sample").textContent = "This run has no episodes yet.";
  if (location.hash) $(location.hash.slice(1))?.scrollIntoView();
  document.body.dataset.ready = "yes";
}

begin();
