"use strict";
// Tables of the class sortable: a click on a heading, or Enter, sorts by that column. Without scripts they stay as they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent;
    return cell.dataset.value === "" ? -Infinity : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const sort = () => {
      const isText = !("value" in table.tBodies[0].rows[0].cells[column].dataset);
      const before = head.getAttribute("aria-sort");
      const order = (before ? before === "ascending" : !isText) ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const a = valueOf(one, column), b = valueOf(other, column);
        return a === b ? 0 : a > b ? sign : -sign;
      });
      table.tBodies[0].append(...rows);
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
