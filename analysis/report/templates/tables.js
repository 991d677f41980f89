"use strict";
// Tables: sorting by a heading, filtering by words, and the records behind a row.
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;  // never as HTML: names come from files
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}

function toNumber(text) {
  return text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
}

function shownNumber(value, digits) {
  const number = toNumber(value);
  if (!Number.isFinite(number)) return String(value);
  return number.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
}

function compareKeys(x, y) {
  const [p, q] = [toNumber(x), toNumber(y)];
  if (Number.isNaN(p) || Number.isNaN(q)) return x.localeCompare(y);
  return p < q ? -1 : p > q ? 1 : 0;
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const key = row => row.cells[column].dataset.key;
    body.append(...[...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // unknown values stay last
      return down ? -compareKeys(x, y) : compareKeys(x, y);
    }));
  }));
}

document.querySelectorAll("main table.sortable").forEach(makeSortable);

document.querySelectorAll("input[type=search]").forEach(box => {
  const rows = [...box.parentElement.nextElementSibling.querySelectorAll("tbody tr")];
  const count = box.parentElement.querySelector("output");
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  box.addEventListener("input", filter);
  filter();
});

document.querySelectorAll(".overview").forEach(part => {
  const rows = [...part.querySelectorAll("tbody tr")];
  const [backbone, scheme] = part.querySelectorAll("select");
  const filter = () => {
    for (const row of rows) {
      const {backbone: name, kind, family} = row.dataset;
      row.hidden = !(["", name].includes(backbone.value) && ["", kind, family].includes(scheme.value));
    }
    part.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  [backbone, scheme].forEach(select => select.addEventListener("change", filter));
  part.querySelectorAll("input[data-column]").forEach(box => box.addEventListener("change", () => {
    part.querySelectorAll(`table [data-column="${box.dataset.column}"]`).forEach(cell => cell.hidden = !box.checked);
  }));
  filter();
});

const dialog = document.getElementById("record");
const cells = new Map(data.cells.map(cell => [cell.key, cell]));

function showRecord(cell) {
  const names = [cell.backbone, cell.scheme, `x${cell.scale}`, cell.dataset, `mode ${cell.mode}`];
  document.getElementById("record-title").textContent = names.join(" \u00b7 ");
  const facts = [
    ["record", `records/${cell.key}.parquet`], ["weights (SHA-256 of their files)", cell.weights],
    ["parameters", cell.params.toLocaleString("en")], ["storage", `${shownNumber(cell.storage, 3)} MB`], ["points that count", cell.points],
  ];
  document.getElementById("record-facts").replaceChildren(
    ...facts.flatMap(([name, text]) => [make("dt", name), make("dd", text)]));
  const images = cell.images || data.images[cell.dataset];
  const columns = data.columns.map(([head, digits], i) => {
    const value = cell.values[i], values = value?.list === undefined ? images.map(() => value) : data.lists[value.list];
    return {head, digits, values};
  });
  const table = make("table", undefined, {id: "record-rows", class: "sortable"});
  const head = table.createTHead().insertRow();
  for (const name of ["Image", ...columns.map(column => column.head)]) {
    const cellOf = make("th", undefined, {scope: "col", class: name === "Image" ? "" : "number"});
    cellOf.append(make("button", name, {type: "button"}));
    head.append(cellOf);
  }
  const body = table.createTBody();
  images.forEach((image, i) => {
    const row = body.insertRow();
    row.append(make("td", image, {"data-key": image}));
    for (const {digits, values} of columns) {
      row.append(make("td", shownNumber(values[i], digits), {class: "number", "data-key": String(values[i])}));
    }
  });
  const foot = table.createTFoot().insertRow();
  foot.append(make("th", "mean", {scope: "row"}));
  for (const {digits, values} of columns) {
    const mean = values.reduce((sum, value) => sum + toNumber(value), 0) / values.length;
    foot.append(make("td", shownNumber(mean, digits), {class: "number"}));
  }
  document.getElementById("record-rows").replaceWith(table);
  makeSortable(table);
  if (!dialog.open) dialog.showModal();
}

function followHash() {
  const cell = location.hash.startsWith("#cell-") && cells.get(decodeURIComponent(location.hash.slice(6)));
  if (cell) showRecord(cell);
}

document.querySelectorAll("tr[data-cell]").forEach(row => row.addEventListener("click", event => {
  if (event.target.closest("a") || String(getSelection())) return;  // a link does it itself; selecting is no click
  location.hash = `cell-${row.dataset.cell}`;
}));
dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
addEventListener("hashchange", followHash);
followHash();
