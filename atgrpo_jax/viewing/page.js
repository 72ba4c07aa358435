// Filters and lists, and the place in the page, which its address keeps.

const FILTERS = ["end", "outcome", "role", "signal", "order", "shade"];
const HINTS = {
  logprob: "Tokens are the darker the less likely they were.",
  change: "Tokens that the step's update made more likely are green, those that it made less likely are red.",
  weight: "Tokens that the update was to make more likely are green, those less likely are red.",
};
const CALM_MS = 4000;  // nobody touches the page for so long before it loads itself anew
const MOST_BESIDE = 12;  // trees side by side

const parts = new Map();  // name of a file of episodes -> its episodes
let contents, listed = [], chosen = null, besideShown = false, touched = 0;

async function episodesOf(name) {
  if (!parts.has(name)) parts.set(name, await unpacked(name));
  return parts.get(name);
}

// The place: what is chosen, kept in the address, so that a link or a reload comes back to it

function place() {
  const found = new URLSearchParams({ file: $("file").value });
  for (const id of [...FILTERS, "text", "metric", "smooth"]) {
    const first = $(id).tagName === "SELECT" ? $(id).options[0]?.value : "";
    if ($(id).value !== first) found.set(id, $(id).value);
  }
  if (chosen) { found.set("instance", chosen.instance); found.set("episode", chosen.episode); }
  if (besideShown) found.set("beside", "yes");
  return found;
}

function keep(found = place()) {
  if (!contents.inline) history.replaceState(null, "", `#${found}`);
}

// Chooses a value that an address names, if there is such a one.
function choose(id, value) {
  if ([...$(id).options].some((option) => option.value === value && !option.disabled)) $(id).value = value;
}

async function goTo(found) {
  const wanted = found.get("file"), [, split, step] = /^(.*)-(\d+)$/.exec(wanted ?? "") ?? [];
  const near = contents.files.find((f) => f.name === wanted) ?? contents.files.filter((f) => f.split === split && !f.evaluation)
    .sort((a, b) => Math.abs(a.step - step) - Math.abs(b.step - step))[0];
  if (near) $("file").value = near.name;
  await open(found);
  const at = listed.findIndex((e) => e.instance === Number(found.get("instance")) && e.episode === Number(found.get("episode")));
  if (at >= 0) show(at);
  if (found.get("beside")) await beside();
  const all = [...document.querySelectorAll("details")];
  for (const i of (found.get("turned") ?? "").split(".").filter(Boolean)) if (all[i]) all[i].open = !all[i].open;
  if (found.get("y")) requestAnimationFrame(() => scrollTo(0, Number(found.get("y"))));
}

function follow() {
  $("live").hidden = !contents.reload_s || contents.inline;
  if ($("live").hidden) return;
  for (const event of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"])
    addEventListener(event, () => { touched = Date.now(); }, { passive: true });
  const due = Date.now() + 1000 * contents.reload_s;
  setInterval(() => {
    const calm = Date.now() - touched > CALM_MS && getSelection().isCollapsed;
    if (Date.now() < due || !calm || !$("following").checked) return;
    const found = location.hash.includes("=") ? place() : new URLSearchParams();
    const turned = [...document.querySelectorAll("details")].map((one, i) => [one, i])
      .filter(([one]) => one.open !== (one.dataset.first === "open")).map(([, i]) => i);
    if (turned.length) found.set("turned", turned.join("."));
    found.set("y", Math.round(scrollY));
    keep(found);
    location.reload();
  }, 500);
}

// The list

function choices(id, values, wanted) {
  const select = $(id), before = wanted?.get(id) ?? select.value;
  select.replaceChildren(choice("any", ""), ...[...values].sort().map((value) => choice(value, value)));
  if (values.has(before)) select.value = before;
}

async function open(wanted = null) {
  const file = contents.files.find((f) => f.name === $("file").value);
  const episodes = await episodesOf(file.name);
  $("sample").textContent = `This page has ${contents.files.length} of the run's ${contents.kept} files of ` +
    `episodes. ${file.title}: ${file.problems.length} of ${file.of} episodes. ${contents.missing}`;
  const groups = episodes.flatMap((e) => e.groups);
  choices("end", new Set(episodes.map((e) => e.end)), wanted);
  choices("role", new Set(groups.map((g) => g.role)), wanted);
  choices("outcome", new Set(groups.flatMap((g) => g.candidates.map((c) => c.outcome))), wanted);
  const taught = groups.some((g) => g.candidates.some((c) => c.taught));
  for (const option of $("shade").options) option.disabled = option.value !== "logprob" && !taught;
  if (!taught) $("shade").value = "logprob";
  for (const id of ["signal", "order", "shade"]) choose(id, wanted?.get(id));
  if (wanted?.get("text")) $("text").value = wanted.get("text");
  drawSpeakers(groups);
  list();
}

// Who said what, of all episodes of the file that are here.
function drawSpeakers(groups) {
  const names = [...new Set(groups.map(speaker))].sort();
  const rows = names.map((name) => {
    const own = groups.filter((g) => speaker(g) === name), all = own.flatMap((g) => g.candidates);
    const counts = new Map();
    for (const c of all) counts.set(c.outcome, (counts.get(c.outcome) ?? 0) + 1);
    const outcomes = [...counts].sort((a, b) => b[1] - a[1]).map(([kind, n]) => `${kind} ${percent(n / all.length)}`);
    return [name, String(own.length), own.some((g) => g.candidates.length > 1) ? percent(mean(own.map((g) => Number(hasSignal(g))))) : "",
      number(mean(all.map((c) => c.mixed).filter(given))), number(mean(all.map((c) => c.logprobs.length))), outcomes.join(", ")];
  });
  $("speakers").replaceChildren(table(["speaker", "groups", "with signal", "mean reward", "mean tokens", "outcomes"], rows));
  if (groups.some(hasSignal)) $("speakers").append(ledger(groups));
}

// Where tokens and advantages of a training step are, by turn and role (docs/ledger.md).
function ledger(groups) {
  const mass = (some) => sum(some.flatMap((g) => g.candidates.map((c) => c.trained ? Math.abs(c.advantage) * c.logprobs.length : 0)));
  const drawn = groups.filter((g) => g.policy), whole = mass(drawn), places = new Map();
  for (const g of drawn) places.set(`${g.turn}/${g.role}`, [...(places.get(`${g.turn}/${g.role}`) ?? []), g]);
  const rows = [...places.values()].sort((a, b) => a[0].turn - b[0].turn || a[0].stage - b[0].stage).map((own) => {
    const tokens = sum(own.flatMap((g) => g.candidates.map((c) => c.logprobs.length))), useful = own.filter(hasSignal).length;
    const several = own.filter((g) => g.candidates.length > 1);
    const same = several.filter((g) => new Set(g.candidates.map((c) => c.text)).size === 1).length;
    return [`${own[0].turn} ${own[0].role}`, String(own.length), percent(useful / own.length), String(tokens),
      useful ? number(tokens / useful) : "", several.length ? percent(same / several.length) : "", percent(mass(own) / whole)];
  });
  return table(["turn, role", "groups", "with signal", "tokens", "tokens a group with signal", "all candidates one text", "share of advantage mass"], rows);
}

function wantedBy(episode) {
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
const reward = (episode) => sum(episode.groups.map((g) => g.executed === null ? 0 : g.candidates[g.executed].mixed ?? 0));

function list() {
  const order = $("order").value;
  if (!parts.has($("file").value)) return;  // it is being unpacked, and then listed
  listed = parts.get($("file").value).filter(wantedBy);
  if (order === "advantage") listed.sort((a, b) => advantage(b) - advantage(a));
  if (order === "reward") listed.sort((a, b) => reward(a) - reward(b));
  $("list").replaceChildren(...listed.map((episode, i) => {
    const signal = episode.groups.filter(hasSignal).length;
    return make("li", { onclick: () => { show(i); keep(); } },
      make("span", { text: `instance ${episode.instance}${episode.episode ? `, episode ${episode.episode}` : ""} ` }),
      make("span", { text: episode.solved ? "solved" : episode.end, className: episode.solved ? "solved" : "failed" }),
      make("small", { text: `${episode.turns} turn${episode.turns === 1 ? "" : "s"}, reward ${number(reward(episode))}, signal in ${signal} of ${episode.groups.length} groups`,
        title: "reward: alpha * team + local of what was executed, summed; with counterfactual credit, team holds what came later, too" }));
  }));
  if (listed.length) return show(Math.max(0, listed.indexOf(chosen)));
  chosen = null;
  $("trees").replaceChildren(make("p", { className: "hint", text: "No episode is like that." }));
}

function show(i) {
  chosen = listed[i];
  besideShown = false;
  [...$("list").children].forEach((line, j) => line.classList.toggle("chosen", i === j));
  draw([chosen]);
}

function draw(episodes) {
  $("hint").textContent = HINTS[$("shade").value];
  $("trees").replaceChildren(...episodes.map((episode) => tree(episode, $("shade").value)));
  for (const button of document.querySelectorAll("button.beside")) button.onclick = () => beside().then(() => keep());
  for (const one of $("trees").querySelectorAll("details")) one.dataset.first = one.open ? "open" : "";
}

// The same problem in the other files of its split, the newest ones if there are many.
async function beside() {
  const found = [];
  for (const file of contents.files.filter((f) => f.split === chosen.split && f.problems.includes(chosen.problem))) {
    for (const episode of await episodesOf(file.name)) {
      if (episode.problem === chosen.problem && episode.episode === chosen.episode) found.push(episode);
    }
  }
  besideShown = true;
  draw(found.slice(-MOST_BESIDE));
}

function head() {
  $("title").textContent = contents.title;
  const { before, after, steps } = contents.summary;
  const last = contents.steps[contents.steps.length - 1];
  const far = given(last) ? `step ${last} is the last one` : "no step yet";
  $("summary").textContent = after === undefined ? `not ended; ${far}` :
    `test success ${percent(before.success)} before, ${percent(after.success)} after ${steps} steps ` +
    `(95 % interval ${percent(after.low)} to ${percent(after.high)})`;
  $("findings").replaceChildren(...contents.findings.map((text) => make("li", { text })));
  $("findings").hidden = !contents.findings.length;
  $("gin").textContent = contents.config;
}

async function begin() {
  const address = location.hash.slice(1);
  contents = await unpacked("contents");
  document.body.classList.toggle("inline", Boolean(contents.inline));  // one episode, in a notebook
  const wanted = new URLSearchParams(address.includes("=") ? address : "");
  head();
  $("metric").append(choice("choose", ""), ...metrics().map((name) => choice(name, name)));
  for (const id of ["metric", "smooth"]) choose(id, wanted.get(id));
  const own = tasksOwn().size;
  $("tasks").open = own > 0 && own <= MOST_OPEN;
  $("tasks").dataset.first = $("tasks").open ? "open" : "";
  drawCurves();
  drawSteps(async (name) => {
    $("file").value = name;
    await open();
    keep();
    $("episodes").scrollIntoView();
  });
  $("file").append(...contents.files.map((f) => choice(f.title, f.name)));
  for (const id of FILTERS) $(id).onchange = () => { list(); keep(); };
  $("shade").onchange = async () => { if (chosen) await (besideShown ? beside() : draw([chosen])); keep(); };
  $("text").oninput = () => { list(); keep(); };
  $("file").onchange = () => open().then(() => keep());
  $("metric").onchange = () => { drawMetric(); keep(); };
  $("smooth").onchange = () => { drawCurves(); keep(); };
  for (const link of document.querySelectorAll("nav a")) link.onclick = (event) => {
    event.preventDefault();  // the address keeps the place
    document.querySelector(link.getAttribute("href")).scrollIntoView();
  };
  if (contents.files.length) {
    const trained = contents.files.filter((f) => f.split === "train" && !f.evaluation);
    $("file").value = (trained[trained.length - 1] ?? contents.files[0]).name;
    await goTo(wanted);
  } else $("sample").textContent = "This run has no episodes yet.";
  if (address && !address.includes("=")) $(address)?.scrollIntoView();
  follow();
  document.body.dataset.ready = "yes";
}

begin();
