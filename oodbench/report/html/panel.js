// The panel behind a cell, reached by its address. Names are only ever set as text.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const at = (id) => document.getElementById(id);
  const panel = at("panel");

  // The panel: made when it is opened, from the text of its result.
  const known = (address) => JSON.parse(at(address).textContent);
  const METRICS = { auroc: "AUROC", fpr95: "FPR95", fpr95_ood: "FPR95-OOD", aupr_in: "AUPR-in", aupr_out: "AUPR-out" };
  const element = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = name;
    return made;
  };
  const link = (text, target) => Object.assign(element("a", text), { href: `#${encodeURIComponent(target)}` });
  const percent = (text) => (Number.isFinite(Number(text)) ? `${text} (${(100 * Number(text)).toFixed(2)} %)` : text);
  const range = (pair) => (pair ? ` [${pair[0]}, ${pair[1]}]` : "");
  function interval(row, bounds, metric) {  // facts of the cell's own interval, none where the result has none
    const how = part(row, "uncertainty"), pair = (bounds || {})[metric];
    const level = `${+(100 * Number(how.level || "0.95")).toFixed(6)} % interval`;
    return pair ? [[level, `${range(pair).trim()}${how[metric] ? ` (${how[metric]})` : ""}`]] : [];
  }
  function facts(pairs) {
    const list = element("dl");
    for (const [name, value] of pairs) {
      const dd = element("dd", value, /^[0-9a-f]{40,}$/.test(value) ? "code" : "");
      list.append(element("dt", name), dd);
    }
    return list;
  }
  function fold(title, pairs, open = false) {
    const details = element("details");
    details.open = open;
    details.append(element("summary", title), facts(pairs));
    return details;
  }
  // A cell's address, cell-<row>-<column>, is the same in every page that has the result and the column.
  const column = (td) => all("tr.metrics th", td.closest("table"))[[...td.parentNode.children].indexOf(td)];
  const named = (td) => td.parentNode.cells[0].querySelector("a");
  const key = (a) => `cell-${a.hash.slice(1).replace(/^[a-z]+-/, "")}-`;
  function opened(id) {
    if (/^(row|quote|seeds)-/.test(id) && at(id)) return { address: id, td: null, head: null };
    for (const a of id.startsWith("cell-") ? all("main tbody th a") : []) {
      const place = id.startsWith(key(a)) ? all("tr.metrics th", a.closest("table"))
        .findIndex((th) => th.dataset.column === id.slice(key(a).length)) : -1;
      const td = a.closest("tr").children[place];
      if (td && "v" in td.dataset) return { address: a.hash.slice(1), td, head: column(td) };
    }
    return null;
  }
  function render({ address, td, head }) {
    const row = known(address);
    const bar = element("div", "", "bar"), close = element("button", "Close", "close");
    const what = head ? [head.dataset.title, head.textContent.replace(/ [↑↓]$/, "")].filter(Boolean).join(" ") : "";
    const name = td ? named(td).textContent : row.title;
    const title = element("h2", what ? `${name}: ${what}` : name);
    title.id = "panel-title";
    close.type = "button";
    close.addEventListener("click", () => panel.close());
    bar.append(title, close);
    panel.replaceChildren(bar);
    if (td) {
      const seconds = head.dataset.metric === "seconds";
      panel.append(element("p", seconds ? `${td.dataset.v} s` : percent(td.dataset.v), "exact"));
    }
    if (row.rows) panel.append(...several(row));
    else if (row.quote) panel.append(...quoted(row, head));
    else panel.append(...measured(row, head));
    panel.scrollTop = 0;
    if (panel.open) close.focus();
    else panel.showModal();
  }
  function several(row) {
    const list = element("ul");
    for (const address of row.rows) {
      const item = element("li");
      item.append(link(at(address).previousElementSibling.textContent, address));
      list.append(item);
    }
    return [element("p", `The average over ${row.rows.length} results, each of which links to its own provenance:`), list];
  }
  function quoted(row, head) {
    const cells = (head && (row.cells || {})[head.dataset.block]) || {}, metric = head && head.dataset.metric;
    const other = { fpr95: "fpr95_ood", fpr95_ood: "fpr95" }[metric];
    const shown = cells[metric] ? metric : other;
    const out = [element("p", "Quoted, not run here.")];
    if (cells[shown]) out.push(element("h3", "The cell"), facts([["metric", METRICS[shown]], ...Object.entries(cells[shown])]));
    out.push(element("h3", "The published result"), element("p", row.about));
    out.push(facts(Object.entries({ quote: row.quote, ...row.stated, ...row.settings })));
    return [...out, element("h3", "What the method sees"), facts(seen(row.access))];
  }
  function seen(access) {
    const cards = (access || {}).group !== undefined;  // of a card only what the method sees
    return Object.entries(access || {}).filter(([, value]) => !cards || !["false", "null"].includes(value));
  }
  function part(row, name) {
    const found = (row.parts || {})[name];
    return typeof found === "string" ? known(found) : found || {};
  }
  function measured(row, head) {
    const out = [], sets = row.sets || {}, images = part(row, "images"), block = head ? head.dataset.block : "";
    const about = (name, what) => [[what, `${images[name].title} (${name})`],
      ["stored scores", (row["stored scores"] || {})[name] || "unknown"],
      ...Object.entries(images[name]).filter(([fact]) => fact !== "title")];
    if (Object.hasOwn(sets, block)) {
      const one = sets[block], numbers = one.metrics || {}, bounds = one.intervals || {};
      out.push(element("h3", "The cell"), facts([
        ...interval(row, bounds, head.dataset.metric),
        ...Object.entries(numbers).map(([m, v]) => [METRICS[m], percent(v) + range(bounds[m])]),
        ["tied", one.tied], ...about(block, "OOD set"),
      ]));
      const parts = Object.entries(one.stream || {});
      if (parts.length) out.push(fold("parts of the stream", parts.map(([name, v]) => [name.replaceAll(".", " "), v])));
    } else if (block === "mean" || block.endsWith(" mean")) {
      const group = block.slice(0, -5), bounds = row.shown ? {} : (row.means || {})[group];
      const members = Object.entries(sets).filter(([n]) => (!group || images[n].group === group)
        && (!row.shown || row.shown.includes(n)));
      out.push(element("h3", `The average of ${members.length} OOD sets`), facts([
        ...interval(row, bounds, head.dataset.metric),
        ...members.map(([n, s]) => [images[n].title, percent(s.metrics[head.dataset.metric])]),
      ]));
    } else if (!block && head && head.dataset.metric === "seconds") {
      out.push(element("h3", "Seconds"), facts(Object.entries(row.seconds || {})));
    }
    const id = row.id;
    out.push(element("h3", "The result"), facts([["method", `${row.title} (${row.label})`], ["benchmark", row.benchmark],
      ...Object.entries(row.row)]));
    const set = Object.hasOwn(sets, block) ? block : (row.shown || Object.keys(sets))[0];
    if (set !== undefined) {
      const quote = row.quoted || {};
      out.push(element("h3", "Print and verify"), element("pre", `${row.explain} ${quote[set] || set}`));
      if (document.body.dataset.verify) out.push(element("pre", document.body.dataset.verify));
    }
    out.push(element("h3", "What it depends on"));
    for (const name of ["access", "stream", "parameters", "templates", "weights", "encoder", "classes"]) {
      const pairs = seen(part(row, name));
      const called = { access: "what the method sees", stream: "protocol of the stream", templates: "prompts", weights: "trained weights",
        classes: "class names" }[name] || name;
      if (pairs.length) out.push(fold(called, pairs, ["access", "stream", "parameters", "templates"].includes(name)));
    }
    out.push(fold(`ID side: ${id.title}`, [["accuracy", percent(id.accuracy)],
      ...about(id.dataset, "dataset")]));
    if (Object.keys(sets).length) {
      out.push(fold("OOD sets", Object.keys(sets).flatMap((n) => about(n, "dataset"))));
    }
    for (const name of ["files", "conventions", "uncertainty", "run", "versions"]) {
      const pairs = Object.entries(part(row, name));
      if (pairs.length) out.push(fold(name, pairs));
    }
    if (row.seconds) out.push(fold("seconds", Object.entries(row.seconds)));
    return out;
  }

  // A cell has an address, #cell-..., which opens its panel; the browser's back closes it again.
  let before = null;
  function fragment() {
    try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }  // a % that is no escape
  }
  function follow() {
    const found = opened(fragment());
    all("td.open").forEach((td) => td.classList.remove("open"));
    if (!found) return void (panel.open && panel.close());
    if (found.td) found.td.classList.add("open");
    before = found.td ? found.td.querySelector("a") : before || document.querySelector(`main a[href="#${found.address}"]`);
    render(found);
  }
  panel.addEventListener("close", () => {
    if (opened(fragment())) history.replaceState(null, "", location.href.split("#")[0]);
    all("td.open").forEach((td) => td.classList.remove("open"));
    if (before && before.checkVisibility()) before.focus();
  });
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  document.addEventListener("click", (event) => {
    const a = event.target.closest("main a[href^='#']");
    if (!a || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    before = a;
    const td = a.closest("td");
    const target = `#${encodeURIComponent(td ? key(a) + column(td).dataset.column : a.hash.slice(1))}`;
    if (location.hash === target) follow();
    else location.hash = target;
  });
  addEventListener("hashchange", follow);
  follow();
})();
