// An episode as a tree: groups with their boards, candidates with their tokens.

// Boards

function cellText(cell) {
  const space = cell.indexOf(" ");
  const kind = space < 0 ? cell : cell.slice(0, space);
  return { kind, label: space < 0 ? contents.signs[kind] ?? kind : cell.slice(space + 1) };
}

// A picture of a state; cells that were otherwise in the one before are marked.
function board(drawn, before = null) {
  if (typeof drawn === "string") return make("pre", { className: "drawn", text: drawn });
  const rows = drawn.map((row, r) => make("tr", {}, ...row.map((cell, c) => {
    if (cell === "") return make("td", { className: "gap" });
    const { kind, label } = cellText(cell);
    const changed = before !== null && typeof before !== "string" && before[r]?.[c] !== cell;
    const known = Object.hasOwn(contents.signs, kind) ? ` is-${kind}` : "";
    return make("td", { text: kind === "floor" && label === "." ? "" : label, title: cell, className: `cell${known}${changed ? " changed" : ""}` });
  })));
  return make("table", { className: "board" }, make("tbody", {}, ...rows));
}

function boards(group, then, last) {
  if (!given(group.board) && !given(then)) return [];
  const same = JSON.stringify(group.board) === JSON.stringify(then);
  const after = last ? "at the end" : "then";
  const figure = (drawn, before, caption) => given(drawn) ?
    [make("figure", {}, board(drawn, before), make("figcaption", { text: caption }))] : [];
  return [make("div", { className: "boards" },
    ...figure(group.board, null, same ? `state, and ${after} the same` : "state"),
    ...(same ? [] : figure(then, group.board, after)))];
}

// Tokens

const LARGEST = { change: "change of logprob", weight: "weight" };  // what a shade says, by its name

// What a token is shaded by: numbers, or nothing if the candidate has none.
function shadesOf(candidate, by) {
  if (by === "logprob") return candidate.logprobs;
  const taught = candidate.taught;
  if (!taught) return null;
  if (by === "weight") return taught.weight ?? null;
  return taught.after ? taught.after.map((after, i) => after - candidate.logprobs[i]) : null;
}

// The largest shade of a group, of which all others are a share.
const largestOf = (group, by) => by === "logprob" ? 0 :
  Math.max(0, ...group.candidates.flatMap((c) => (shadesOf(c, by) ?? []).map(Math.abs)));

function colour(value, by, largest) {
  if (by === "logprob") return `rgba(234, 138, 0, ${(0.7 * Math.min(1, -value / 5)).toFixed(3)})`;
  const share = largest ? 0.7 * Math.abs(value) / largest : 0;
  return `rgba(${value < 0 ? "203, 36, 23" : "26, 140, 60"}, ${share.toFixed(3)})`;
}

function said(candidate, by, largest) {
  const pre = make("pre", {}), shades = shadesOf(candidate, by);
  if (!candidate.pieces) return Object.assign(pre, { textContent: candidate.text });
  candidate.pieces.forEach((piece, i) => {
    const about = [`logprob ${number(candidate.logprobs[i])}`];
    if (candidate.taught?.after) about.push(`afterwards ${number(candidate.taught.after[i])}`);
    if (candidate.taught?.weight) about.push(`weight ${number(candidate.taught.weight[i])}`);
    const token = make("span", { text: piece, title: about.join(", ") });
    if (given(shades?.[i])) token.style.background = colour(shades[i], by, largest);
    pre.append(token);
  });
  return pre;
}

// Probabilities of a whole answer; their logarithms where they are tiny.
function chance(logprobs, after) {
  const all = [logprobs, after].filter(given).map(sum);
  const tiny = all.some((one) => one < Math.log(1e-3));
  return (tiny ? "log " : "") + all.map((one) => tiny ? one.toFixed(2) : number(Math.exp(one))).join(" → ");
}

// Groups

function tree(episode, by) {
  const later = episode.evaluation ? `, evaluation ${episode.evaluation}` : "";
  const place = `${episode.split}, step ${episode.step}${later}, instance ${episode.instance}`;
  const title = make("h3", {},
    make("span", { text: `${place}: ` }),
    make("span", { text: episode.solved ? "solved" : episode.end, className: episode.solved ? "solved" : "failed" }),
    " ", make("button", { className: "beside", text: "beside its other steps", title: "the same problem at other steps" }));
  const problem = make("p", { className: "note", text: `problem ${episode.problem}` });
  const changed = episode.replay ? [make("ul", { className: "note replay" },
    ...[`replay of ${episode.replay.node}`, ...changes(episode.replay), ...episode.replay.findings].map((text) => make("li", { text })))] : [];
  const stage = (group) => `${group.turn}/${group.stage}`;
  return make("div", { className: "tree" }, title, problem, ...changed, ...episode.groups.map((group, i) => {
    const next = episode.groups.slice(i + 1).find((other) => stage(other) !== stage(group));
    return groupBox(group, next ? next.board : episode.board, !next, by);
  }));
}

// What a replay did otherwise than the run.
function changes({ temperature, executes, says }) {
  return [temperature !== null && `drawn at temperature ${number(temperature)}`, executes !== null && `candidate ${executes} is executed`,
    says !== null && `this text is executed: ${says}`].filter(Boolean);
}

function groupBox(group, then, last, by) {
  const largest = largestOf(group, by), alone = group.candidates.length === 1;
  const about = [`turn ${group.turn}, stage ${group.stage}`,
    group.policy ? `policy ${group.policy}, weights ${group.version}` : "a partner", `temperature ${group.temperature}`];
  if (!alone && !hasSignal(group) && group.candidates.some((c) => given(c.advantage))) about.push("no signal");
  if (largest) about.push(`full colour is a ${LARGEST[by]} of ${number(largest)}`);
  const head = make("h4", { text: speaker(group) }, make("span", { text: about.join(", ") }));
  const executed = group.executed === null ? null : group.candidates[group.executed];
  if (executed?.taught?.after) head.append(make("span", { className: "taught",
    text: `taught: probability of the executed one ${chance(executed.logprobs, executed.taught.after)}` }));
  const prompt = make("details", { open: group.turn === 0 }, make("summary", { text: "prompt" }), make("pre", { text: group.prompt }));
  const candidates = group.candidates.map((c, k) => candidateBox(c, k, k === group.executed, by, largest));
  return make("div", { className: alone || hasSignal(group) ? "group" : "group none" },
    head, ...boards(group, then, last), prompt, make("div", { className: "candidates" }, ...candidates));
}

const pairs = (rows) => make("dl", {}, ...rows.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })]));

function candidateBox(candidate, k, executed, by, largest) {
  const what = make("div", { className: "what" },
    make("b", { text: executed ? `${k} executed` : String(k) }),
    make("span", { text: candidate.outcome, className: candidate.outcome === "ok" ? "" : "failed" }));
  const box = make("div", { className: executed ? "candidate executed" : "candidate" }, what, said(candidate, by, largest));
  if (given(candidate.advantage)) box.append(scale(candidate.advantage));
  const rows = [["reward", candidate.mixed], ["team", candidate.team], ["local", candidate.local],
    ...Object.entries(candidate.parts ?? {}).map(([name, value]) => [`· ${name}`, value]),
    ["advantage", candidate.advantage]].filter(([, value]) => given(value)).map(([name, value]) => [name, number(value)]);
  if (candidate.logprobs.length) rows.push(["probability", chance(candidate.logprobs, candidate.taught?.after)]);
  box.append(pairs(rows));
  const measured = Object.entries(candidate.metrics ?? {});
  if (measured.length) box.append(make("div", { className: "measured" }, make("small", { text: "measured by the task" }),
    pairs(measured.map(([name, value]) => [name, number(value)]))));
  if (candidate.note) box.append(make("p", { className: "note", text: candidate.note }));
  for (const ran of candidate.programs) {
    box.append(make("details", {}, make("summary", { text: `program: ${ran.end}` }),
      make("pre", { text: [ran.stdout, ran.stderr].filter(Boolean).join("\n--- stderr\n") })));
  }
  return box;
}

function scale(value) {
  const bar = make("i"), size = Math.min(1, Math.abs(value) / 3) * 50;
  bar.style.cssText = `width:${size}%;left:${value < 0 ? 50 - size : 50}%;background:${value < 0 ? "var(--bad)" : "var(--good)"}`;
  return make("div", { className: "scale", title: `advantage ${number(value)}` }, bar);
}
