"use strict";
// An option is broken nowhere, and a name that is long for a table after its middle underscore.
const LONG = 18;
function breakable(code) {
  const parts = code.textContent.split(/(\s+)/).map((part) => {
    const span = document.createElement("span");
    const ends = [...part.matchAll(/_(?=[^_])/g)].map((found) => found.index + 1);
    const from = (end) => Math.abs(end - part.length / 2);
    const [middle] = ends.sort((one, other) => from(one) - from(other));
    if (part.startsWith("--")) span.className = "whole";
    if (part.length > LONG && middle && code.closest("td"))
      span.append(part.slice(0, middle), document.createElement("wbr"), part.slice(middle));
    else span.append(part);
    return span;
  });
  code.replaceChildren(...parts);
}
// A table that is wider than its place: on a phone each row is a card, else long names are broken.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("code.literal").forEach(breakable);
  const wrappers = [...document.querySelectorAll(".table-wrapper")];
  for (const wrapper of wrappers) {
    const labels = [...wrapper.querySelectorAll("thead th")].map((th) => th.textContent.trim());
    for (const row of wrapper.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => {
        if (labels[i]) cell.dataset.label = labels[i];
        cell.classList.toggle("blank", !cell.textContent.trim());
      });
  }
  const fit = () => {
    for (const wrapper of wrappers) {
      wrapper.classList.remove("stacked", "tight");
      if (wrapper.scrollWidth > wrapper.clientWidth)
        wrapper.classList.add(innerWidth < 640 ? "stacked" : "tight");
    }
  };
  fit();
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), fit()));
});
