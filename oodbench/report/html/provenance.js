// Elements with the provenance of a number, from the record of a result. Names are only ever set as text.
"use strict";
// known: address -> record; titled: address -> its title. A head is { block, metric, title } of a column, or null.
function provenance(known, titled) {
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
  function interval(row, bounds, metric) {  // the interval of the cell, if the result has one
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
  function several(row) {
    const list = element("ul");
    for (const address of row.rows) {
      const item = element("li");
      item.append(link(titled(address), address));
      list.append(item);
    }
    return [element("p", `The average over ${row.rows.length} results, each linked to its provenance:`), list];
  }
  function quoted(row, head) {
    const cells = (head && (row.cells || {})[head.block]) || {}, metric = head && head.metric;
    const other = { fpr95: "fpr95_ood", fpr95_ood: "fpr95" }[metric];
    const shown = cells[metric] ? metric : other;
    const out = [element("p", "Quoted, not run here.")];
    if (cells[shown]) out.push(element("h3", "The cell"), facts([["metric", METRICS[shown]], ...Object.entries(cells[shown])]));
    out.push(element("h3", "The published result"), element("p", row.about));
    out.push(facts(Object.entries({ quote: row.quote, ...row.stated, ...row.settings })));
    return [...out, element("h3", "What the method sees"), facts(seen(row.access))];
  }
  function seen(access) {
    const cards = (access || {}).group !== undefined;  // from a card, only the data that the method sees
    return Object.entries(access || {}).filter(([, value]) => !cards || !["false", "null"].includes(value));
  }
  function part(row, name) {
    const found = (row.parts || {})[name];
    return typeof found === "string" ? known(found) : found || {};
  }
  function measured(row, head) {
    const out = [], sets = row.sets || {}, images = part(row, "images"), block = head ? head.block : "";
    const about = (name, what) => [[what, `${images[name].title} (${name})`],
      ["stored scores", (row["stored scores"] || {})[name] || "unknown"],
      ...Object.entries(images[name]).filter(([fact]) => fact !== "title")];
    if (Object.hasOwn(sets, block)) {
      const one = sets[block], numbers = one.metrics || {}, bounds = one.intervals || {};
      out.push(element("h3", "The cell"), facts([
        ...interval(row, bounds, head.metric),
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
        ...interval(row, bounds, head.metric),
        ...members.map(([n, s]) => [images[n].title, percent(s.metrics[head.metric])]),
      ]));
    } else if (!block && head && head.metric === "seconds") {
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
  function body(row, head) {
    if (row.rows) return several(row);
    return row.quote ? quoted(row, head) : measured(row, head);
  }
  return { body, element, facts, percent };
}
