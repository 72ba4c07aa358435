// Curves and the table of steps.

// A panel's metrics are named, or are those that match; what is in brackets is then their name in the panel.
// What comes third is said below its title.
const PANELS = [
  ["Success", ["rollout/success", "validation/success", "test/success"],
    "training: best of K executed (RolloutConfig.select); validation and test: one drawn"],
  ["Groups with signal, and without", ["groups/signal", "groups/zero_variance", "groups/too_small"]],
  ["The curriculum's pool and draws", /^curriculum\/(.+)$/],
  ["How episodes ended", /^end\/(.+)$/],
  ["Outcomes of candidates", /^outcome\/(.+)$/],
  ["Reward of the team, by role", /^role\/([^/]+)\/team$/],
  ["Local reward, by role", /^role\/([^/]+)\/local$/],
  ["Signal, share of the gradient and repetitions, by role", /^role\/([^/]+\/(?:signal|gradient_share|repeats\/[^/]+))$/],
  ["Influence, by role", /^role\/([^/]+\/influence.*)$/],
  ["Tokens of an answer, by role", /^role\/([^/]+)\/tokens$/],
  ["Turns of an episode", ["rollout/turns", "validation/turns", "test/turns"]],
  ["Seconds", ["perf/step_s", "perf/rollout_s", "perf/update_s", "perf/sync_s"]],
];
const UPDATES = [
  ["Entropy (nats a token)", /^policy\/([^/]+)\/entropy$/],
  ["KL to the sampling policy (nats a token)", /^policy\/([^/]+)\/kl_old$/],
  ["KL to the first policy (nats a token)", /^policy\/([^/]+)\/kl_start$/],
  ["Loss", /^policy\/([^/]+)\/loss$/],
  ["Norm of the gradient", /^policy\/([^/]+)\/grad_norm$/],
  ["Share of clipped tokens", /^policy\/([^/]+)\/clip_fraction$/],
  ["Largest gap of logprobs, learner to sampler", /^policy\/([^/]+)\/logprob_gap$/],
  ["Tokens that were trained", /^policy\/([^/]+)\/trained_tokens$/],
];
const PART = /^role\/([^/]+)\/part\/(.+)$/;
const OF_TASK = /^role\/([^/]+)\/task\/(.+)$/;
const MOST_OPEN = 12;  // panels of the task's own numbers that are drawn at once
const COLUMNS = [
  ["step", null], ["success", "rollout/success"], ["validation", "validation/success"],
  ["test", "test/success"], ["groups with signal", "groups/signal"], ["turns", "rollout/turns"],
  ["tokens", "rollout/tokens"], ["seconds", "perf/step_s"],
];
const COLOURS = ["#0b62c4", "#c2410c", "#1a7f37", "#8250df", "#b42318", "#0e7490", "#a16207", "#64748b",
  "#d63384", "#4d7c0f", "#1e3a8a", "#78350f"];
const MOST_ROWS = 400;  // of the table of steps that are drawn at once

const metrics = () => Object.keys(contents.series).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
const plain = (level) => decodeURIComponent(level.replace(/%(?!25|2F)/g, "%25"));  // see common/metric_names.py

// Returns [name, label] of each metric of a panel.
function drawnIn(wanted) {
  if (wanted instanceof RegExp) return metrics().flatMap((name) => {
    const found = wanted.exec(name);
    return found ? [[name, plain(found[1])]] : [];
  });
  return wanted.filter((name) => name in contents.series).map((name) => [name, name]);
}

// Means of each value and those before it, as many as are chosen.
function smoothed(values) {
  const most = Number($("smooth").value), last = [];
  if (most === 1) return values;
  return values.map((value) => {
    if (!given(value)) return null;
    last.push(value);
    if (last.length > most) last.shift();
    return mean(last);
  });
}

// What the metrics of a panel mean, which the mouse on its title shows.
function explained(lines) {
  const found = lines.map(([name]) => [name, contents.meanings[name]]).filter(([, text]) => given(text));
  if (new Set(found.map(([, text]) => text)).size < 2) return found[0]?.[1] ?? "";
  return found.map(([name, text]) => `${name}: ${text}`).join("\n");
}

function panel(into, title, lines, note) {
  // A share of nothing is not recorded: none of the step's episodes ended so.
  const played = contents.series["rollout/success"] ?? [];
  const values = ([name]) => /^(end|outcome)\//.test(name) ?
    contents.series[name].map((value, i) => value ?? (given(played[i]) ? 0 : null)) : contents.series[name];
  const sparse = (line) => values(line).filter(given).length < contents.steps.length / 2;
  const box = make("div", { className: "panel" }, make("h3", { text: title, title: explained(lines) }));
  if (note) box.append(make("p", { className: "hint", text: note }));
  into.append(box);
  const width = () => box.clientWidth - 14;
  const options = {
    width: width(), height: 190, focus: { alpha: 0.25 },
    cursor: { drag: { x: true, y: false }, focus: { prox: lines.length > 3 ? 12 : -1 } },
    scales: { x: { time: false } }, axes: [{ size: 30 }, { size: 60, values: (_, ticks) => ticks.map(number) }],
    series: [{ label: "step" }, ...lines.map((line, i) => ({
      label: line[1], stroke: COLOURS[i % COLOURS.length], width: 1.5, spanGaps: true,
      dash: i < COLOURS.length ? [] : [6, 3],
      points: { show: sparse(line) || contents.steps.length < 3, size: 5 }, value: (_, v) => number(v),
    }))],
  };
  const plot = new uPlot(options, [contents.steps, ...lines.map((line) => smoothed(values(line)))], box);
  new ResizeObserver(() => { if (plot.width !== width()) plot.setSize({ width: width(), height: 190 }); }).observe(box);
}

function drawPanels(into, wanted) {
  for (const [title, pattern, note] of wanted) {
    const lines = drawnIn(pattern);
    if (lines.length) panel(into, title, lines, note);
  }
}

function drawParts(role) {
  const own = metrics().map((name) => [name, PART.exec(name)]).filter(([, found]) => found?.[1] === role);
  panel($("parts"), plain(role), own.map(([name, found]) => [name, plain(found[2])]));
}

// What the task measures: a panel for each number, with a line for each role that has it.
function tasksOwn() {
  const found = new Map();
  for (const metric of metrics()) {
    const [, role, name] = OF_TASK.exec(metric) ?? [];
    if (given(name)) found.set(name, [...found.get(name) ?? [], [metric, plain(role)]]);
  }
  return found;
}

// Draws all curves; those in a part of the page that is closed when it is opened.
function drawCurves() {
  const roles = [...new Set(metrics().map((name) => PART.exec(name)?.[1]).filter(given))];
  const own = tasksOwn();
  const closed = [[$("tasks"), $("own"), () => own.forEach((lines, name) => panel($("own"), plain(name), lines))],
    [$("rewards"), $("parts"), () => roles.forEach(drawParts)],
    [$("updates"), $("learning"), () => drawPanels($("learning"), UPDATES)]];
  $("rewards").hidden = !roles.length;
  $("tasks").hidden = !own.size;
  $("panels").replaceChildren();
  drawPanels($("panels"), PANELS);
  for (const [details, into, fill] of closed) {
    into.replaceChildren();
    details.ontoggle = () => { if (details.open && !into.hasChildNodes()) fill(); };
    details.ontoggle();
  }
  drawMetric();
}

function drawMetric() {
  const name = $("metric").value;
  $("other").replaceChildren();
  if (name) panel($("other"), name, [[name, name]]);
}

function drawSteps(openFile) {
  const present = COLUMNS.filter(([, name]) => name === null || name in contents.series);
  const rows = contents.steps.map((step, i) =>
    present.map(([, name]) => name === null ? step : contents.series[name][i]));
  const files = new Map();
  for (const file of contents.files)
    if ((file.split === "train" && !file.evaluation) || !files.has(file.step)) files.set(file.step, file);
  let by = 0, down = true, most = MOST_ROWS;
  const fill = () => {
    rows.sort((a, b) => ((a[by] ?? -Infinity) - (b[by] ?? -Infinity)) * (down ? -1 : 1));
    const head = make("tr", {}, ...present.map(([title], i) => make("th", {
      text: title + (i === by ? (down ? " ↓" : " ↑") : ""),
      onclick: () => { down = i === by ? !down : true; by = i; fill(); },
    })));
    const body = rows.slice(0, most).map((row) => {
      const file = files.get(row[0]);
      const line = make("tr", { className: file ? "open" : "closed" },
        ...row.map((value) => make("td", { text: number(value) })));
      if (file) line.onclick = () => openFile(file.name);
      return line;
    });
    const more = rows.length > most ? [make("tfoot", {}, make("tr", {}, make("td", { colSpan: present.length },
      make("button", { text: `all ${rows.length} steps`, onclick: () => { most = rows.length; fill(); } }))))] : [];
    $("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body), ...more);
  };
  fill();
}
