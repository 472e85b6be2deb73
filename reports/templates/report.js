// Sorting and filtering of the tables marked class="data"; the page reads in full without this script.
(() => {
  "use strict";

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "–" || text.startsWith("n/a") ? null : text.toLowerCase();
  };

  // Numbers before text, cells without a value last, equal cells in their first order.
  const compare = (a, b, direction) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return (a < b ? -1 : a > b ? 1 : 0) * direction;
  };

  const sortBy = (table, column) => {
    const headers = [...table.tHead.rows[0].cells];
    const ascending = headers[column].getAttribute("aria-sort") !== "ascending";
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    headers[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((one, other) =>
      compare(valueOf(one, column), valueOf(other, column), ascending ? 1 : -1));
    body.append(...rows);
  };

  const makeSortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...header.childNodes);
      header.classList.add("sortable");
      button.addEventListener("click", () => sortBy(table, column));
      header.append(button);
    });
  };

  const makeFilter = (table) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const status = document.createElement("span");
    label.className = "filter";
    label.append("Filter rows ", input, status);
    input.type = "search";
    const title = document.getElementById(table.getAttribute("aria-labelledby"));
    input.setAttribute("aria-label", `Filter rows of ${title.textContent}`);
    status.setAttribute("aria-live", "polite");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
      const shown = rows.filter((row) => !row.hidden).length;
      status.textContent = words.length ? ` ${shown} of ${rows.length}` : "";
    });
    table.closest(".scroll").before(label);
  };

  // Says above a table that it goes on beyond the edge.
  const watchWidths = new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach(({ target }) => {
    target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1);
  })));

  // A link to a cell's details opens them.
  const openTarget = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };

  document.querySelectorAll("table.data").forEach((table) => {
    makeSortable(table);
    if (table.tBodies[0].rows.length > 4) makeFilter(table);
  });
  document.querySelectorAll(".scroll").forEach((region) => watchWidths.observe(region));
  // Chromium repeats no header with a button in it on the next page.
  const buttons = [...document.querySelectorAll("thead th button")].map((button) => [button.parentElement, button]);
  window.addEventListener("beforeprint", () => buttons.forEach(([header, button]) => {
    header.replaceChildren(...button.childNodes);
  }));
  window.addEventListener("afterprint", () => buttons.forEach(([header, button]) => {
    button.append(...header.childNodes);
    header.append(button);
  }));
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
