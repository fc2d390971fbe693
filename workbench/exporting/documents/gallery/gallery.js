// Tables of the folder: a header sorts, a box searches. Without this script the tables are as they were written.
const value = (cell) => {
  if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
  const text = cell.textContent.trim().replaceAll(",", "");
  const number = parseFloat(text);
  return text !== "" && Number.isFinite(number) && /^[-+]?[\d.]/.test(text) ? number : text.toLowerCase();
};

const before = (a, b) => {
  const [x, y] = [typeof a === "number", typeof b === "number"];
  if (x && y) return Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : a - b;
  return x !== y ? (x ? -1 : 1) : a < b ? -1 : a > b ? 1 : 0;
};

const sorts = (table, rows) => {
  const heads = [...table.querySelectorAll("thead th")];
  for (const head of heads) {
    const column = head.cellIndex;
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "descending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const keyed = rows.map((row) => [value(row.cells[column]), row]);
      keyed.sort((a, b) => (down ? before(a[0], b[0]) : before(b[0], a[0])));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort();
      }
    });
  }
};

const searches = (box, rows) => {
  const bar = document.createElement("div");
  bar.className = "bar";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "search this table";
  input.setAttribute("aria-label", "Search this table");
  const found = document.createElement("span");
  found.className = "found";
  found.setAttribute("role", "status");
  let texts = null; // read when first searched, so that a long table is there at once
  input.addEventListener("input", () => {
    texts ??= rows.map((row) => row.textContent.toLowerCase());
    const wanted = input.value.toLowerCase();
    let n = 0;
    rows.forEach((row, j) => {
      row.hidden = !texts[j].includes(wanted);
      n += row.hidden ? 0 : 1;
    });
    found.textContent = wanted ? `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  });
  bar.append(input, found);
  box.prepend(bar);
};

for (const box of document.querySelectorAll(".sortable")) {
  const table = box.querySelector("table");
  const rows = [...table.tBodies[0].rows];
  if (table.tHead) sorts(table, rows);
  if (rows.length > 8) searches(box, rows);
}
