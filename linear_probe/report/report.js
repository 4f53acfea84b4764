"use strict";

// The table: sorting and searching.
(() => {
  const table = document.querySelector("#results");
  const body = table.tBodies[0];
  const given = [...body.rows]; // the order of the grid
  const heads = [...table.tHead.rows[0].cells];

  const value = (row, i) => {
    const cell = row.cells[i];
    if (i === 0) return cell.querySelector("summary").textContent;
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };

  const compare = (a, b) =>
    typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });

  // Lines without a value stay last, whichever way.
  const sorted = (i, way) => {
    const full = given.filter((row) => value(row, i) !== "");
    const empty = given.filter((row) => value(row, i) === "");
    full.sort((a, b) => way * compare(value(a, i), value(b, i)));
    return [...full, ...empty];
  };

  // Numbers: the highest first, then the lowest, then as given. Words: from A, from Z, as given.
  const next = (head) => {
    const ways = head.classList.contains("n") ? ["descending", "ascending"] : ["ascending", "descending"];
    return [...ways, "none"][(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
  };

  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      const way = next(head);
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", way);
      body.append(...(way === "none" ? given : sorted(i, way === "ascending" ? 1 : -1)));
    });
  });

  const search = document.querySelector("#search");
  const count = document.querySelector("#count");
  const texts = new Map(given.map((row) => [row, row.textContent.toLowerCase()]));
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of given) row.hidden = !words.every((word) => texts.get(row).includes(word));
    const shown = given.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${shown} of ${given.length}` : "";
  });
})();

// The strips: a slider shows one noise level; together, all strips that have that level show it.
(() => {
  const strips = [...document.querySelectorAll(".strip")];
  const together = document.querySelector("#together");

  const show = (strip, t) => {
    const pictures = [...strip.querySelectorAll("img")];
    const i = pictures.findIndex((picture) => picture.dataset.t === t);
    const slider = strip.querySelector("input");
    if (i < 0 || !slider) return;
    pictures.forEach((picture, j) => (picture.hidden = i !== j));
    slider.value = i;
    slider.setAttribute("aria-valuetext", `t = ${t}`);
    strip.querySelector("output").textContent = `t = ${t}`;
  };

  for (const strip of strips) {
    strip.querySelector("input")?.addEventListener("input", (event) => {
      const t = strip.querySelectorAll("img")[event.target.value].dataset.t;
      for (const one of together.checked ? strips : [strip]) show(one, t);
    });
  }
})();
