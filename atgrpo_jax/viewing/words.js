"use strict";
// All that a run said goes into the page as text (textContent), never as HTML.

const given = (value) => value !== null && value !== undefined;
const $ = (id) => document.getElementById(id);

function make(tag, options = {}, ...children) {
  const { text, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}


// Three digits of a number; nothing if there is none.
function number(value) {
  if (!given(value)) return "";
  if (Number.isInteger(value)) return String(value + 0);
  if (Math.abs(value) >= 100) return value.toFixed(0);
  const short = Number(value.toPrecision(3));
  return Math.abs(short) < 1e-3 ? short.toExponential() : String(short);
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mean = (values) => values.length ? sum(values) / values.length : null;
const speaker = (group) => group.seat === null ? group.role : `${group.role}${group.seat}`;
const hasSignal = (group) => group.candidates.some((c) => c.trained);
const choice = (text, value) => make("option", { text, value });

// A table with a head and rows of texts; the first column is a name, the others are numbers.
function table(head, rows) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((text) => make(tag, { text })));
  return make("table", { className: "small" }, make("thead", {}, line(head, "th")),
    make("tbody", {}, ...rows.map((row) => line(row, "td"))));
}
