"use strict";
// A table that is wider than its place: on a phone each row is a card, else long names are broken.
document.addEventListener("DOMContentLoaded", () => {
  const wrappers = [...document.querySelectorAll(".table-wrapper")];
  for (const wrapper of wrappers) {
    const labels = [...wrapper.querySelectorAll("thead th")].map((th) => th.textContent.trim());
    for (const row of wrapper.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => labels[i] && (cell.dataset.label = labels[i]));
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
