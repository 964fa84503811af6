// The tables: sorting and filtering. Names are only ever set as text.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const at = (id) => document.getElementById(id);
  const sections = all("section.table");
  const controls = at("controls"), filter = at("filter");

  // Lines of a section, each with the differences below it, which have no provenance.
  function lines(body) {
    const out = [];
    for (const row of [...body.rows].filter((one) => one.className !== "section")) {
      if (out.length && !row.cells[0].querySelector("a")) out.at(-1).push(row);
      else out.push([row]);
    }
    return out;
  }

  // Sorting: within a section of the table, by exact values; `-` comes last in both directions.
  function sort(th) {
    const other = { ascending: "descending", descending: "ascending" };
    const way = other[th.getAttribute("aria-sort")] || th.dataset.first;
    const sign = way === "ascending" ? 1 : -1;
    const place = [...th.parentNode.children].indexOf(th);
    all("[aria-sort]", th.parentNode).forEach((one) => one.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", way);
    const value = (row) => {
      const cell = row.children[place];
      if (!place) return cell.textContent;
      // An FPR95 of the other kind is not comparable.
      return "v" in cell.dataset && !("other" in cell.dataset) ? Number(cell.dataset.v) : null;
    };
    const order = (a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return sign * (place ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true }));
    };
    for (const body of th.closest("table").tBodies) {
      body.append(...lines(body).map((rows) => ({ rows, value: value(rows[0]) })).sort(order).flatMap((one) => one.rows));
    }
  }
  for (const th of all("tr.metrics th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `Sort by ${[th.dataset.title, th.textContent].filter(Boolean).join(" ")}`;
    button.textContent = th.textContent;
    button.addEventListener("click", () => sort(th));
    th.replaceChildren(button);
  }

  // Filtering: results by words of the method's name, tables by benchmark and encoder, columns by OOD set.
  const boxes = all("input[type=checkbox]", controls);
  const chosen = (name) => (at(name) ? at(name).value : "");
  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, total = 0;
    for (const section of sections) {
      const wanted = ["benchmark", "encoder"].every((n) => !chosen(n) || chosen(n) === section.dataset[n]);
      for (const body of all("tbody", section)) {
        const found = lines(body);
        for (const rows of found) {
          const name = rows[0].cells[0].textContent.toLowerCase();
          const hidden = !words.every((word) => name.includes(word));
          rows.forEach((row) => { row.hidden = hidden; });
        }
        const left = found.filter((rows) => !rows[0].hidden).length;
        body.hidden = !left;
        total += found.length;
        shown += wanted ? left : 0;
      }
      section.hidden = !wanted;
    }
    const out = boxes.filter((box) => !box.checked).length;
    const note = shown < total || out ? " Marks and averages are for the complete tables." : "";
    const sets = out ? ` ${out} of ${boxes.length} OOD sets hidden.` : "";
    at("count").textContent = `${shown} of ${total} results shown.${sets}${note}`;
  }
  function columns() {
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    for (const section of sections) {
      const hidden = all("tr.metrics th", section).map((th) => off.has(th.dataset.set));
      for (const row of all("colgroup, tr.metrics, tbody tr:not(.section)", section)) {
        hidden.forEach((is, i) => { if (row.children[i].hidden !== is) row.children[i].hidden = is; });
      }
      const blocks = all("tr.blocks th", section);
      blocks.forEach((th) => { th.hidden = off.has(th.dataset.set); });
      for (const group of all("tr.groups th", section)) {
        const left = blocks.filter((th) => !th.hidden && th.dataset.run === group.dataset.run);
        const width = left.reduce((sum, th) => sum + th.colSpan, 0);
        group.hidden = !width;
        group.colSpan = width || 1;
      }
    }
    show();
  }
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", show);
  all("select", controls).forEach((select) => select.addEventListener("change", show));
  boxes.forEach((box) => box.addEventListener("change", columns));
  columns();  // a browser keeps the checkboxes when the page is reloaded
})();
