// The table of a benchmark: sections of rows that may be ranked together, then those that may not; ranks and marks.
"use strict";
// A state has { benchmark, encoders, groups, evidence, view, kind, block, sort, way, words }. An empty selection means all.
function ranking(board) {
  const FAILED = "failed verification", TEST_TIME = "test-time adaptation";
  const METRICS = { auroc: ["AUROC", 1], fpr95: ["FPR95 (i)", -1], fpr95_ood: ["FPR95 (o)", -1] };
  const OTHER = { fpr95: "fpr95_ood", fpr95_ood: "fpr95" }, LETTER = { fpr95: "i", fpr95_ood: "o" };
  const evidences = Object.keys(board.evidence);
  const empty = { scope: "", values: {}, spread: {}, unranked: "", by: "", stated: {}, links: {}, records: [] };
  const rows = board.rows.map((row) => ({ ...empty, ...row }));
  const benchmarks = new Map(board.benchmarks.map((one) => [one.name, one]));
  const architecture = new Map(board.encoders.map((one) => [one.name, one.architecture]));
  const rowsOf = new Map(board.benchmarks.map((one) => [one.name, rows.filter((row) => row.benchmark === one.name)]));
  const counted = (found, field) => {
    const out = new Map();
    for (const row of found) out.set(field(row), (out.get(field(row)) || 0) + 1);
    return out;
  };
  const most = (counts) => [...counts].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
  const collator = new Intl.Collator("en", { numeric: true });
  const upper = (text) => text[0].toUpperCase() + text.slice(1);
  const NONE = "-";  // the selection of no chip

  function choices(benchmark) {
    const own = rowsOf.get(benchmark);
    const used = counted(own, (row) => row.encoder);
    const encoders = board.encoders.filter((one) => used.has(one.name)).map((one) => [one.name, used.get(one.name)]);
    const groups = counted(own, (row) => row.group), evidence = counted(own, (row) => row.evidence);
    const kept = ([name]) => architecture.get(name) === most(counted(own, (row) => architecture.get(row.encoder)));
    return {
      encoders, groups: board.groups.filter((g) => groups.has(g)).map((g) => [g, groups.get(g)]),
      evidence: evidences.filter((e) => evidence.has(e)).map((e) => [e, evidence.get(e)]),
      first: encoders.filter(kept).map(([name]) => name),
    };
  }
  function headline(benchmark) {
    const blocks = benchmarks.get(benchmark).blocks.map((one) => one.name);
    const averages = blocks.filter((name) => name === "mean" || name.endsWith(" mean"));
    return averages.includes("mean") ? "mean" : averages[0] || blocks[0] || "mean";
  }
  function usualKind(benchmark) {  // of FPR95: the one that more rows have
    const having = (metric) => rowsOf.get(benchmark).filter((row) => Object.values(row.values).some((one) => metric in one)).length;
    return having("fpr95_ood") > having("fpr95") ? "fpr95_ood" : "fpr95";
  }
  const encodersShown = (state) => (state.encoders.length ? state.encoders : choices(state.benchmark).first);

  function number(row, block, metric) {
    const values = Object.hasOwn(row.values, block) ? row.values[block] : {}, other = OTHER[metric];
    if (metric in values) return { value: values[metric], other: "", extra: (row.spread[block] || {})[metric] || "" };
    if (other && other in values) return { value: values[other], other, extra: LETTER[other] };
    return null;
  }
  function onlyOther(row, kind) {
    const has = (metric) => Object.values(row.values).some((values) => metric in values);
    return !has(kind) && has(OTHER[kind]);
  }
  function compare(a, b) {
    for (let i = 0; i < Math.max(a.length, b.length); i += 1) {
      if (a[i] !== b[i]) return a[i] === undefined || a[i] < b[i] ? -1 : 1;
    }
    return 0;
  }
  const wanted = (list, value) => !list.length || list.includes(value);
  const NOTHING = Object.freeze({ text: "-", extra: "", mark: "", value: null, other: "" });
  function cell(row, block, metric, more = 0) {
    const found = row && number(row, block, metric);
    const note = more && metric === "auroc" ? `1 of ${more}` : "";
    if (!found) return NOTHING;
    return { text: (100 * found.value).toFixed(2), extra: [found.extra, note].filter(Boolean).join(" "), mark: "",
      value: found.value, other: found.other, key: `${row.id}/${block}/${metric}` };
  }
  function mark(lines, places, metrics) {
    for (let i = 0; i < places; i += 1) {
      const better = METRICS[metrics[i % metrics.length]][1];
      const known = lines.map((line) => line.cells[i]).filter((one) => one.value !== null && !one.other);
      const ranked = [...new Set(known.map((one) => one.text))].sort((a, b) => better * (b - a));
      if (known.length < 2) continue;
      const best = known.filter((one) => one.text === ranked[0]);
      for (const one of best) one.mark = "best";
      if (best.length === 1) for (const one of known) if (one.text === ranked[1]) one.mark = "second";
    }
  }

  function tableOf(state) {
    function sectionOf(row, several) {
      const group = upper(row.group), scope = row.scope ? ` · ${row.scope}` : "", encoder = several ? ` · ${row.encoder}` : "";
      const place = several ? board.encoders.findIndex((one) => one.name === row.encoder) : 0;
      const rank = [board.groups.indexOf(row.group), place, row.scope];
      if (row.evidence === FAILED) return { order: [3], title: "Failed verification: numbers withheld" };
      if (row.unranked) return { order: [2], title: "Not ranked" };
      const plain = { group: row.group, apart: row.group === TEST_TIME };
      if (!onlyOther(row, state.kind)) return { ...plain, order: [0, ...rank], ranked: true, title: `${group}${encoder}${scope}` };
      const kinds = `only FPR95 (${LETTER[OTHER[state.kind]]}) is available, not ranked with FPR95 (${LETTER[state.kind]})`;
      return { ...plain, order: [1, ...rank], title: `${group}${encoder}${scope} · ${kinds}` };
    }
    const visible = (row) => wanted(state.evidence, row.evidence);  // other rows are hidden, but count in ranks and marks
    function chosen() {
      const encoders = new Set(encodersShown(state));
      return rowsOf.get(state.benchmark).filter((row) => encoders.has(row.encoder) && wanted(state.groups, row.group));
    }
    function bySets(found) {
      const has = (block) => found.some((row) => row.values[block]);
      const main = headline(state.benchmark), metrics = ["auroc", state.kind];
      const known = benchmarks.get(state.benchmark).blocks.filter((block) => has(block.name));
      const heads = [...known.filter((one) => one.name === main), ...known.filter((one) => one.name !== main)];
      const several = new Set(found.map((row) => row.encoder)).size > 1;
      const lines = found.map((row) => ({ row, visible: visible(row), section: sectionOf(row, several),
        cells: heads.flatMap((head) => metrics.map((metric) => cell(row, head.name, metric))) }));
      return { heads: heads.map((head) => ({ name: head.name, title: head.title })), metrics, lines };
    }
    function byEncoders(found) {
      const encoders = choices(state.benchmark).encoders.map(([name]) => name).filter((name) => found.some((r) => r.encoder === name));
      const metrics = ["auroc", state.kind], lines = new Map();
      for (const row of found) {
        const section = sectionOf(row, false), key = JSON.stringify([section.title, row.name]);
        if (!lines.has(key)) lines.set(key, { section, own: new Map() });
        const own = lines.get(key).own;
        own.set(row.encoder, [...(own.get(row.encoder) || []), row]);
      }
      const strength = (row) => (visible(row) ? 0 : evidences.length) + evidences.indexOf(row.evidence);
      const made = [...lines.values()].map(({ section, own }) => {
        for (const some of own.values()) some.sort((a, b) => strength(a) - strength(b));  // of equal evidence, the first one
        const first = [...own.values()].map((some) => some[0]).sort((a, b) => strength(b) - strength(a));
        const best = first.find(visible) || first[0];
        const cells = encoders.flatMap((name) => metrics.map((metric) => {
          const some = own.get(name) || [];
          const made = cell(some[0], state.block, metric, some.length > 1 ? some.length : 0);
          return some.length && !visible(some[0]) ? { ...made, hidden: true } : made;
        }));
        return { row: { ...best, by: "", unranked: "" }, visible: first.some(visible), section, cells };
      });
      return { heads: encoders.map((name) => ({ name, title: name })), metrics, lines: made };
    }

    const found = chosen(), { heads, metrics, lines } = state.view === "sets" ? bySets(found) : byEncoders(found);
    const columns = heads.flatMap((head) => metrics.map((metric) => `${head.name}/${metric}`));
    const main = state.view === "sets" ? headline(state.benchmark) : (heads[0] || { name: "" }).name;
    const usual = [`${main}/${state.kind}`, `${main}/auroc`].find((key) => columns.includes(key)) || columns[0] || "name";
    const sort = ["name", "evidence", ...columns].includes(state.sort) ? state.sort : usual;
    const place = columns.indexOf(sort);
    const better = place < 0 ? -1 : METRICS[metrics[place % metrics.length]][1];
    const way = state.way || (better > 0 ? "descending" : "ascending"), sign = way === "ascending" ? 1 : -1;
    const by = place < 0 ? columns.indexOf(usual) : place;
    const sections = new Map();
    for (const line of lines) {
      if (!sections.has(line.section.title)) sections.set(line.section.title, { ...line.section, lines: [] });
      sections.get(line.section.title).lines.push(line);
    }
    const value = (line, i) => (i >= 0 && !line.cells[i].other ? line.cells[i].value : null);
    const named = (a, b) => collator.compare(a.row.name, b.row.name);
    const order = (a, b) => {
      if (sort === "name") return sign * named(a, b);
      if (sort === "evidence") return sign * (evidences.indexOf(a.row.evidence) - evidences.indexOf(b.row.evidence)) || named(a, b);
      const [x, y] = [value(a, place), value(b, place)];
      if (x === null || y === null) return (x === null) - (y === null) || named(a, b);
      return sign * (x - y) || named(a, b);
    };
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const direction = by < 0 ? 1 : METRICS[metrics[by % metrics.length]][1];
    for (const section of sections.values()) {
      if (section.ranked) mark(section.lines, columns.length, metrics);
      const known = section.lines.filter((line) => value(line, by) !== null).map((line) => Number(line.cells[by].text));
      for (const line of section.lines) {
        const own = section.ranked && value(line, by) !== null ? Number(line.cells[by].text) : null;
        line.rank = own === null || line.cells[by].hidden ? "" : 1 + known.filter((each) => direction * each > direction * own).length;
      }
      for (const line of section.lines) line.cells = line.cells.map((one) => (one.hidden ? NOTHING : one));
      section.lines = section.lines.filter((line) => line.visible
        && words.every((word) => line.row.name.toLowerCase().includes(word)));
      section.lines.sort(order);
    }
    const ordered = [...sections.values()].filter((one) => one.lines.length).sort((a, b) => compare(a.order, b.order));
    return { heads, metrics, columns, sections: ordered, sort, way, total: lines.length };
  }

  return { METRICS, FAILED, NONE, rows, benchmarks, rowsOf, choices, headline, usualKind, encodersShown, number, tableOf };
}
