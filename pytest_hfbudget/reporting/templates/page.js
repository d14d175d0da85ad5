"use strict";
// Draws a table again when it is sorted, searched or paged; until then the page stands as it came.
const ROWS = 25;
const LONG = { text: 400, name: 120, word: 80 };
// So many calls of a test are shown below it.
const DETAILS = 100;
// Where the name of a test may be broken before it is broken anywhere.
const BREAKS = /(?<=::|\/)|(?=\[)/;
const SVG = "http://www.w3.org/2000/svg";
const isNumber = (kind) => ["usd", "count", "seconds"].includes(kind);

let loaded;
const data = (key) => {
  loaded ??= JSON.parse(document.getElementById("data").textContent);
  const table = loaded[key];
  // Amounts that are told from those beside them by more digits.
  if (table)
    table.apart ??= new Map(Object.entries(table.shown).map(([n, texts]) => [table.rows[n], texts]));
  return table;
};

// --- figures, as in money.py; amounts may be beyond what a Number holds exactly

const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

const CENT = 10n ** 7n;
const LEAST = 10n ** 5n;

function show(amount) {
  const nano = BigInt(amount);
  if (nano > 0n && nano < LEAST) return `<${exact(LEAST)}`;
  const unit = nano >= CENT ? CENT : 10n ** BigInt(Math.max(String(nano).length - 3, 0));
  return exact(((nano + unit / 2n) / unit) * unit);
}

function exact(nano) {
  const rest = String(nano % 10n ** 9n).padStart(9, "0").replace(/0+$/, "");
  return `$${grouped(String(nano / 10n ** 9n))}.${rest.padEnd(2, "0")}`;
}

function figure(value, kind) {
  if (value === null) return "";
  if (kind === "usd") return show(value);
  if (kind !== "seconds") return grouped(String(value));
  const [whole, part] = value.toFixed(2).split(".");
  return `${grouped(whole)}.${part}`;
}

// --- cells

function svg(name, attributes, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [each, value] of Object.entries(attributes)) made.setAttribute(each, value);
  made.append(...inside);
  return made;
}

function percent(part, whole) {
  if (!part || whole <= 0) return 0;
  return Math.min(Math.max((100 * part) / whole, 2), 100);
}

// All that was spent, and the part of it that is uptime, of an amount; as fill() in html.py.
function bar([most, uptime = 0], whole) {
  const all = percent(most, whole);
  const calls = most ? (all * (most - uptime)) / most : 0;
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: calls, height: 1 }),
    svg("rect", { class: "uptime", x: calls, width: all - calls, height: 1 }),
  );
}

function cell(row, i, { kinds, labels, wholes, filled, texts, apart }) {
  const [value, kind] = [row[i], kinds[i]];
  const td = document.createElement("td");
  const span = document.createElement("span");
  td.dataset.label = labels[i];
  if (isNumber(kind)) {
    const cap = filled[i].length && value !== null;
    const known = apart.get(row)?.[i];
    td.className = filled[i].length ? "n filled" : "n";
    if (kind === "usd" && value !== null)
      td.title = `${exact(BigInt(value))} = ${grouped(String(value))} nano-USD`;
    if (cap) td.append(bar(filled[i].map((n) => Number(row[n])), Number(value)));
    if (Number(wholes[i])) td.append(bar([Number(value)], Number(wholes[i])));
    span.textContent = known ?? (cap ? exact(BigInt(value)) : figure(value, kind));
    td.append(span);
    return td;
  }
  const text = value === null ? "" : texts[value];
  text.split(BREAKS).forEach((part, n) => {
    if (n) span.append(document.createElement("wbr"));
    span.append(part);
  });
  if (text.length > LONG[kind]) {
    span.className = "long";
    span.title = text;
  }
  td.className = text === "failed" || text.startsWith("NOT ") ? `${kind} bad` : kind;
  td.append(span);
  return td;
}

// --- one table

function order(rows, column, kind, texts, up) {
  const value = isNumber(kind) ? (cell) => (cell === null ? -1 : Number(cell)) : undefined;
  const rank = value ? null : ranks(texts);
  const key = value ?? ((cell) => (cell === null ? -1 : rank[cell]));
  const sign = up ? 1 : -1;
  return [...rows].sort((a, b) => sign * (key(a[column]) - key(b[column])));
}

function ranks(texts) {
  const { compare } = new Intl.Collator("en", { numeric: true });
  const sorted = [...texts.keys()].sort((a, b) => compare(texts[a], texts[b]));
  const rank = [];
  sorted.forEach((index, position) => (rank[index] = position));
  return rank;
}

function matching(table, words) {
  const lower = table.texts.map((text) => text.toLowerCase());
  const columns = table.kinds.flatMap((kind, index) => (isNumber(kind) ? [] : [index]));
  return words.reduce((rows, word) => {
    const hit = lower.map((text) => text.includes(word));
    return rows.filter((row) => columns.some((column) => hit[row[column]]));
  }, table.rows);
}

function bring(section) {
  const headings = [...section.querySelectorAll("th")];
  const body = section.querySelector("tbody");
  const search = section.querySelector("input");
  const steps = [...section.querySelectorAll("[data-step]")];
  const told = section.querySelector(".pages span");
  const state = { column: null, up: false, words: [], page: 0 };

  function draw() {
    const table = data(section.id);
    let rows = matching(table, state.words);
    if (state.column !== null)
      rows = order(rows, state.column, table.kinds[state.column], table.texts, state.up);
    const from = state.page * ROWS;
    const page = rows.slice(from, from + ROWS);
    body.replaceChildren(...page.map((row) => {
      const tr = document.createElement("tr");
      tr.append(...row.map((_, i) => cell(row, i, table)));
      return tr;
    }));
    if (section.id === "tests") body.querySelectorAll("tr").forEach(opens);
    if (told) {
      const range = rows.length ? `${from + 1} to ${from + page.length} of ` : "";
      told.textContent = `${range}${grouped(String(rows.length))}`;
    }
    for (const step of steps) {
      const next = (state.page + Number(step.dataset.step)) * ROWS;
      step.disabled = next < 0 || next >= rows.length;
    }
  }

  if (section.id === "tests") body.querySelectorAll("tr").forEach(opens);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const number = heading.classList.contains("n");
      state.up = state.column === column ? !state.up : !number;
      Object.assign(state, { column, page: 0 });
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      draw();
    });
  });
  if (search) {
    search.hidden = false;
    search.addEventListener("input", () => {
      state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      state.page = 0;
      draw();
    });
  }
  for (const step of steps) {
    step.hidden = false;
    step.addEventListener("click", () => {
      state.page += Number(step.dataset.step);
      draw();
    });
  }
}

// --- from a test to its calls

function opens(tr) {
  const span = tr.querySelector("td.name span");
  const test = span.title || span.textContent;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "opens";
  button.setAttribute("aria-expanded", "false");
  span.replaceWith(button);
  button.append(span);
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) return tr.nextElementSibling.remove();
    const detail = document.createElement("tr");
    const td = document.createElement("td");
    detail.className = "detail";
    td.colSpan = tr.cells.length;
    for (const [key, title] of [["refusals", "Refused calls"], ["shares", "Uptime"], ["calls", "Calls"]])
      td.append(...part(key, title, test));
    if (!td.childNodes.length) td.append("No call and no endpoint.");
    detail.append(td);
    tr.after(detail);
  });
}

// The rows of a table that are of one test, without the column that says so.
function part(key, title, test) {
  const table = data(key);
  if (!table) return [];
  const tests = data("tests");
  const named = new Set(tests.rows.map((row) => tests.texts[row[0]]));
  const at = table.labels.indexOf("test");
  const own = (text) => text === test || (test === "(no test)" && !named.has(text));
  const found = table.rows.filter((row) => own(table.texts[row[at]]));
  if (!found.length) return [];
  const columns = table.labels
    .map((_, i) => i)
    .filter((i) => i !== at && found.some((row) => row[i] !== null && (isNumber(table.kinds[i]) || table.texts[row[i]])));
  const made = document.createElement("table");
  made.createCaption().textContent = `${title} (${grouped(String(found.length))})`;
  const head = made.createTHead().insertRow();
  for (const i of columns) {
    const th = document.createElement("th");
    th.textContent = table.labels[i];
    if (isNumber(table.kinds[i])) th.className = "n";
    head.append(th);
  }
  const body = made.createTBody();
  const plain = { ...table, wholes: table.wholes.map(() => 0) };
  for (const row of found.slice(0, DETAILS))
    body.insertRow().append(...columns.map((i) => cell(row, i, plain)));
  const left = found.length - DETAILS;
  return left > 0 ? [made, `and ${grouped(String(left))} more: search the table of calls for this test`] : [made];
}

// --- light and dark

function theme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  // A page that is opened as a file may have no storage; then the choice lasts as long as it does.
  const kept = (write) => {
    try {
      return write ? localStorage.setItem("hfbudget-theme", write) : localStorage.getItem("hfbudget-theme");
    } catch {
      return null;
    }
  };
  const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const say = () => (button.textContent = isDark() ? "Light" : "Dark");
  const before = kept();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept(root.dataset.theme);
    say();
  });
  prefersDark.addEventListener("change", say);
  button.hidden = false;
  say();
}

theme();
document.querySelectorAll("section[data-rows]").forEach(bring);

// --- what a part of a chart is, by pointer and by arrow keys; and long texts

for (const chart of document.querySelectorAll(".reads")) {
  const said = chart.querySelector(".at");
  const show = (part) => {
    for (const each of chart.querySelectorAll(".here")) each.classList.remove("here");
    if (!part) return;
    part.classList.add("here");
    said.textContent = part.querySelector("title").textContent;
  };
  for (const row of chart.querySelectorAll("svg")) {
    const parts = [...row.querySelectorAll(".part")];
    row.addEventListener("pointerover", (event) => show(event.target.closest(".part")));
    row.addEventListener("focus", () => row.matches(":focus-visible") && show(parts[0]));
    row.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = parts.findIndex((part) => part.classList.contains("here"));
      show(parts[Math.min(Math.max(at + step, 0), parts.length - 1)]);
    });
  }
}

document.addEventListener("click", (event) => event.target.closest(".long")?.classList.toggle("whole"));
