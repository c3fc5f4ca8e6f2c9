"use strict";
// Sort a table by the column whose heading is pressed: by the value of each cell, the largest one first.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const rises = head.getAttribute("aria-sort") === "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rises ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b)) : a - b);
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (rises ? 1 : -1));
    table.tBodies[0].append(...rows);
  }));
}
// Put the rows and the columns of a confusion matrix into one of its orders.
for (const control of document.querySelectorAll("fieldset.choices")) {
  control.hidden = false;
  const table = document.getElementById(control.dataset.table);
  const orders = JSON.parse(table.dataset.orders);
  const rows = [...table.tBodies[0].rows];
  const cells = [...table.rows].map((row) => [...row.cells].slice(1));
  control.addEventListener("change", (event) => {
    const places = orders[event.target.value];
    const arranged = (items) => items.map((item, number) => [places[number], item]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
    [...table.tHead.rows, ...rows].forEach((row, number) => row.append(...arranged(cells[number])));
    table.tBodies[0].append(...arranged(rows));
  });
}
