"use strict";
// Draws a table again when it is sorted, searched or paged; until then the page stands as it came.
const ROWS = 25;
const LONG = { text: 400, name: 80, word: 24 };
// Where the name of a test may be broken before it is broken anywhere.
const BREAKS = /(?<=::)/;
const SVG = "http://www.w3.org/2000/svg";
const isNumber = (kind) => ["usd", "count", "seconds"].includes(kind);

let loaded;
const data = (key) => {
  loaded ??= JSON.parse(document.getElementById("data").textContent);
  return loaded[key];
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

function bar(value, most) {
  const svg = document.createElementNS(SVG, "svg");
  const rect = document.createElementNS(SVG, "rect");
  const part = Number(value) && Number(most) ? (100 * Number(value)) / Number(most) : 0;
  const width = part && Math.min(Math.max(part, 0.5), 100);
  for (const [name, set] of Object.entries({ viewBox: "0 0 100 1", preserveAspectRatio: "none" }))
    svg.setAttribute(name, set);
  svg.setAttribute("class", "bar");
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("width", width);
  rect.setAttribute("height", 1);
  svg.append(rect);
  return svg;
}

function cell(value, kind, most, texts) {
  const td = document.createElement("td");
  const span = document.createElement("span");
  if (isNumber(kind)) {
    td.className = "n";
    if (kind === "usd" && value !== null)
      td.title = `${exact(BigInt(value))} = ${grouped(String(value))} nano-USD`;
    if (most) td.append(bar(value, most));
    span.textContent = figure(value, kind);
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
      tr.append(...row.map((value, i) => cell(value, table.kinds[i], table.most[i], table.texts)));
      return tr;
    }));
    if (told) {
      const range = rows.length ? `${from + 1} to ${from + page.length} of ` : "";
      told.textContent = `${range}${grouped(String(rows.length))}`;
    }
    for (const step of steps) {
      const next = (state.page + Number(step.dataset.step)) * ROWS;
      step.disabled = next < 0 || next >= rows.length;
    }
  }

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

// --- the timeline: what a part is, by pointer and by arrow keys

for (const row of document.querySelectorAll(".lanes svg")) {
  const said = document.querySelector(".lanes .at");
  const parts = [...row.querySelectorAll("rect")];
  const show = (part) => {
    for (const each of document.querySelectorAll(".lanes .here")) each.classList.remove("here");
    if (!part) return;
    part.classList.add("here");
    said.textContent = part.querySelector("title").textContent;
  };
  row.addEventListener("pointerover", (event) => show(event.target.closest("rect")));
  row.addEventListener("focus", () => row.matches(":focus-visible") && show(parts[0]));
  row.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = parts.findIndex((part) => part.classList.contains("here"));
    show(parts[Math.min(Math.max(at + step, 0), parts.length - 1)]);
  });
}
