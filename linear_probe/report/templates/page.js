"use strict";

// Tables: sorting and searching.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const inOrder = [...body.rows]; // as they are written
  const heads = [...table.tHead.rows[0].cells];

  const value = (row, i) => {
    const cell = row.cells[i];
    if (i === 0) return cell.querySelector("summary, .label").textContent;
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };

  // A column may hold numbers beside text.
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });

  // Lines without a value stay last in both directions.
  const sorted = (i, way) => {
    const full = inOrder.filter((row) => value(row, i) !== "");
    const empty = inOrder.filter((row) => value(row, i) === "");
    full.sort((a, b) => way * compare(value(a, i), value(b, i)));
    return [...full, ...empty];
  };

  // Numbers: descending, ascending, the order as written. Text: ascending, descending, the order as written.
  const next = (head) => {
    const ways = head.classList.contains("n") ? ["descending", "ascending"] : ["ascending", "descending"];
    return [...ways, "none"][(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
  };

  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      const way = next(head);
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", way);
      body.append(...(way === "none" ? inOrder : sorted(i, way === "ascending" ? 1 : -1)));
    });
  });

  const tools = table.closest(".table").querySelector(".tools");
  if (!tools) continue;
  const search = tools.querySelector("input");
  const count = tools.querySelector(".count");
  const texts = new Map(inOrder.map((row) => [row, row.textContent.toLowerCase()]));
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of inOrder) row.hidden = !words.every((word) => texts.get(row).includes(word));
    const shown = inOrder.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${shown} of ${inOrder.length}` : "";
  });
}

// A checkbox of a table's line shows and hides its curve in every figure.
for (const box of document.querySelectorAll("input[data-series]")) {
  const marks = document.querySelectorAll(`svg [data-series="${box.dataset.series}"]`);
  box.addEventListener("change", () => {
    for (const mark of marks) mark.style.display = box.checked ? "" : "none";
  });
}

// Denoised images: a slider shows one noise level; together, all trials that have that level show it.
(() => {
  const figures = [...document.querySelectorAll(".denoised")];
  const together = document.querySelector("#together");

  const show = (figure, t) => {
    const pictures = [...figure.querySelectorAll("img")];
    const i = pictures.findIndex((picture) => picture.dataset.t === t);
    const slider = figure.querySelector("input");
    if (i < 0 || !slider) return;
    pictures.forEach((picture, j) => (picture.hidden = i !== j));
    slider.value = i;
    slider.setAttribute("aria-valuetext", pictures[i].dataset.level);
    figure.querySelector("output").textContent = pictures[i].dataset.level;
  };

  for (const figure of figures) {
    figure.querySelector("input")?.addEventListener("input", (event) => {
      const t = figure.querySelectorAll("img")[event.target.value].dataset.t;
      for (const one of together.checked ? figures : [figure]) show(one, t);
    });
  }
})();
