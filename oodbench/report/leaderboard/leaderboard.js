// The leaderboard: its state is the fragment of the address. Names are only ever set as text.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const parse = (name) => JSON.parse(at(`${name}-data`).textContent);
  const board = parse("board"), records = parse("records"), titles = parse("titles");
  const { body, element, facts, percent } = provenance((address) => records[address], (address) => titles[address]);
  const panel = at("panel"), copy = at("copy");
  const { METRICS, FAILED, NONE, rows, benchmarks, rowsOf, choices, headline, usualKind, encodersShown, number, tableOf } = ranking(board);

  // The state: the selection, and the defaults of a benchmark. An empty selection of chips means all of them.
  function read() {
    const query = new URLSearchParams(location.hash.slice(1));
    const one = (name, allowed, otherwise) => (allowed.includes(query.get(name)) ? query.get(name) : otherwise);
    const benchmark = one("benchmark", [...benchmarks.keys()], board.benchmarks[0].name);
    const known = choices(benchmark);
    const some = (name, found) => query.getAll(name).filter((v) => v === NONE || found.some(([n]) => n === v));
    const blocks = benchmarks.get(benchmark).blocks.map((each) => each.name);
    return {
      benchmark,
      encoders: some("encoder", known.encoders), groups: some("access", known.groups), evidence: some("evidence", known.evidence),
      view: one("view", ["sets", "encoders"], "sets"), kind: one("fpr95", ["fpr95", "fpr95_ood"], usualKind(benchmark)),
      block: one("of", blocks, headline(benchmark)), sort: query.get("sort") || "",
      way: one("way", ["ascending", "descending"], ""), words: query.get("words") || "", cell: query.get("cell") || "",
    };
  }
  function written(state) {
    const query = new URLSearchParams();
    query.append("benchmark", state.benchmark);
    for (const name of state.encoders) query.append("encoder", name);
    for (const name of state.groups) query.append("access", name);
    for (const name of state.evidence) query.append("evidence", name);
    const plain = { view: "sets", fpr95: usualKind(state.benchmark), of: headline(state.benchmark) };
    const values = { view: state.view, fpr95: state.kind, of: state.block, sort: state.sort, way: state.way, words: state.words,
      cell: state.cell };
    for (const [name, value] of Object.entries(values)) if (value && value !== plain[name]) query.append(name, value);
    return `#${query}`;
  }
  let state = null, shown = "", table = null, drawn = "";
  function go(changes, replace = false) {
    state = { ...state, ...changes };
    shown = written(state);
    if (replace) history.replaceState(null, "", shown);
    else if (location.hash !== shown) location.hash = shown;
    show();
  }
  function follow() {
    if (!board.benchmarks.length || (state && location.hash === shown)) return;
    state = read();
    shown = location.hash;
    show();
  }

  // The display.
  function button(text, focus, action) {
    const made = element("button", text);
    made.type = "button";
    made.dataset.focus = focus;
    made.addEventListener("click", action);
    return made;
  }
  function showTabs() {
    at("tabs").replaceChildren(...board.benchmarks.map((one) => {
      const tab = button(one.title, `tab ${one.name}`, () => choose(one.name)), is = one.name === state.benchmark;
      tab.append(element("small", `${rowsOf.get(one.name).length}`));
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-selected", String(is));
      tab.setAttribute("aria-controls", "board");
      tab.tabIndex = is ? 0 : -1;
      if (is) tab.id = "tab";
      return tab;
    }));
    at("board").setAttribute("aria-labelledby", "tab");
  }
  function choose(benchmark) {
    if (benchmark === state.benchmark) return;
    go({ benchmark, encoders: [], groups: [], evidence: [], block: headline(benchmark), kind: usualKind(benchmark),
      sort: "", way: "", cell: "" });
    at("tab").scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  at("tabs").addEventListener("keydown", (event) => {
    const names = [...benchmarks.keys()], here = names.indexOf(state.benchmark), last = names.length - 1;
    const to = { ArrowRight: here === last ? 0 : here + 1, ArrowLeft: here ? here - 1 : last, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(names[to]);
    at("tab").focus();
  });
  function showChips(id, found, checked, all) {
    at(id).replaceChildren(...found.map(([name, count]) => {
      const label = element("label", "", "chip"), box = element("input");
      box.type = "checkbox";
      box.value = name;
      box.checked = checked.includes(name);
      box.dataset.focus = `${id} ${name}`;
      box.addEventListener("change", () => {
        const on = [...at(id).querySelectorAll("input")].filter((each) => each.checked).map((each) => each.value);
        const same = on.length === all.length && on.every((each) => all.includes(each));
        go({ [id]: same ? [] : on.length ? on : [NONE], cell: "" });
      });
      label.append(box, `${name} `, element("small", String(count)));
      return label;
    }));
  }
  function showControls() {
    const known = choices(state.benchmark), names = (found) => found.map(([name]) => name);
    showChips("encoders", known.encoders, encodersShown(state), known.first);
    if (known.encoders.length > encodersShown(state).length) {
      const everything = button("all", "all encoders", () => go({ encoders: names(known.encoders), cell: "" }));
      everything.className = "plain";
      at("encoders").append(everything);
    }
    for (const id of ["groups", "evidence"]) {
      const everything = names(known[id]);
      showChips(id, known[id], state[id].length ? state[id] : everything, everything);
    }
    at("block").replaceChildren(...benchmarks.get(state.benchmark).blocks.map((one) => new Option(one.title, one.name)));
    at("block").value = state.block;
    at("of").hidden = state.view === "sets";
    at("view").value = state.view;
    at("kind").value = state.kind;
    if (at("words").value !== state.words) at("words").value = state.words;
  }
  const slug = (text) => text.replace(/[^a-z]+/g, "-");
  function badge(evidence) {
    const made = element("span", evidence, `badge ${slug(evidence)}`);
    made.title = board.evidence[evidence];
    return made;
  }
  function heading(text, key, first, name, set = "") {
    const th = element("th", "", name);
    th.scope = "col";
    if (key) {
      const sorted = table.sort === key, other = table.way === "ascending" ? "descending" : "ascending";
      const sorts = button(text, `sort ${key}`, () => go({ sort: key, way: sorted ? other : first, cell: "" }));
      sorts.title = `Sort by ${[set, text].filter(Boolean).join(" ")}`;
      th.append(sorts);
      if (sorted) th.setAttribute("aria-sort", table.way);
    } else th.textContent = text;
    return th;
  }
  function showHead() {
    const head = element("thead"), sets = element("tr", "", "blocks"), metrics = element("tr", "", "metrics");
    sets.append(...["", "", "evidence"].map((name) => element("td", "", name)));
    metrics.append(heading("Method", "name", "ascending", ""), heading("#", "", "", "number"),
      heading("Evidence", "evidence", "ascending", "evidence"));
    for (const one of table.heads) {
      const th = element("th", one.title);
      th.scope = "colgroup";
      th.colSpan = table.metrics.length;
      sets.append(th);
      for (const metric of table.metrics) {
        const [title, better] = METRICS[metric];
        const key = `${one.name}/${metric}`, arrow = table.sort === key ? "" : better > 0 ? " ↑" : " ↓";  // sorted: the style has one
        metrics.append(heading(title + arrow, key, better > 0 ? "descending" : "ascending", "number", one.title));
      }
    }
    head.append(sets, metrics);
    return head;
  }
  function opens(key) {
    const a = document.createElement("a");
    a.href = `${drawn}&cell=${encodeURIComponent(key)}`;
    a.dataset.cell = a.dataset.focus = key;
    return a;
  }
  const MARKS = { best: "b", second: "u" };
  function showCell(one) {
    const td = document.createElement("td");
    if (one.value === null) {
      td.textContent = one.text;
      return td;
    }
    const a = opens(one.key);
    a.append(MARKS[one.mark] ? element(MARKS[one.mark], one.text) : one.text);
    if (one.extra) a.append(" ", element("small", one.extra));
    td.append(a);
    return td;
  }
  function showSection(section) {
    const part = element("tbody"), row = element("tr", "", section.apart ? "section apart" : "section"), th = element("th");
    th.scope = "rowgroup";
    th.colSpan = 3 + table.columns.length;
    th.append(element("span", section.title));
    row.append(th);
    part.append(row);
    for (const line of section.lines) {
      const tr = element("tr"), name = element("th"), evidence = element("td", "", "evidence");
      name.scope = "row";
      const a = opens(line.row.id);
      a.textContent = line.row.name;
      name.append(a);
      if (line.row.by) name.append(element("small", line.row.by));
      name.append(element("small", line.row.evidence, "narrow"));
      if (line.row.unranked) name.append(element("small", line.row.unranked, "why"));
      evidence.append(badge(line.row.evidence));
      tr.append(name, element("td", String(line.rank), "number"), evidence, ...line.cells.map(showCell));
      part.append(tr);
    }
    return part;
  }
  function caption() {
    const encoders = encodersShown(state).filter((name) => name !== NONE);
    const block = benchmarks.get(state.benchmark).blocks.find((one) => one.name === state.block);
    const of = state.view === "encoders" && block ? `Columns: ${block.title} with each encoder; of several results, the one with the best evidence.` : "";
    return ["AUROC and FPR95 in %.", ...board.conventions, of, `Encoder${encoders.length === 1 ? "" : "s"}: ${encoders.join(", ")}.`,
      "Best in bold and second underlined within each section; each row is ranked only against rows with the same access, encoder and settings."]
      .filter(Boolean).join(" ");
  }
  function show() {
    const same = written({ ...state, cell: "" });
    if (drawn !== same) {
      drawn = same;
      showTable();
    }
    for (const td of document.querySelectorAll("td.open")) td.classList.remove("open");
    const a = state.cell && focusable(state.cell);
    if (a && a.parentNode.tagName === "TD") a.parentNode.classList.add("open");
    showPanel();
  }
  function showTable() {
    const focus = document.activeElement && document.activeElement.dataset.focus;
    table = tableOf(state);
    showTabs();
    showControls();
    at("board").hidden = false;
    at("heading").textContent = benchmarks.get(state.benchmark).title;
    at("table").replaceChildren(showHead(), ...table.sections.map(showSection));
    const lines = table.sections.reduce((sum, section) => sum + section.lines.length, 0);
    const total = rowsOf.get(state.benchmark).length, hidden = table.total - lines;
    at("count").textContent = `${lines} ${state.view === "sets" ? "rows" : "methods"} shown of ${total} rows of this benchmark.`
      + `${hidden ? " Ranks and marks also count rows that are hidden by their name or evidence." : ""}`;
    at("caption").textContent = caption();
    if (focus) refocus(focus);
  }
  const focusable = (name) => document.querySelector(`[data-focus="${CSS.escape(name)}"]`);
  function refocus(name) {
    const found = focusable(name);
    if (found) found.focus();
  }

  // The panel of a number or a name.
  function address(text) {
    const first = text.indexOf("/"), last = text.lastIndexOf("/");
    return first < 0 ? { id: text } : { id: text.slice(0, first), block: text.slice(first + 1, last), metric: text.slice(last + 1) };
  }
  function submission(row) {
    const pairs = Object.entries(row.stated), out = [];
    if (!pairs.length) return out;
    out.push(element("h3", "The submission"), facts(pairs));
    for (const [name, target] of Object.entries(row.links)) {
      if (!/^https?:\/\//i.test(target)) continue;  // a link of another kind could run a script
      const p = element("p"), a = element("a", `${name}: ${target}`);
      Object.assign(a, { href: target, rel: "noopener noreferrer" });
      p.append(a);
      out.push(p);
    }
    return out;
  }
  function showPanel() {
    const { id, block, metric } = address(state.cell), own = rowsOf.get(state.benchmark);
    const row = own.find((one) => one.id === id), known = row ? row.records : Object.hasOwn(titles, id) ? [id] : [];
    if (!known.length) return void (panel.open && panel.close());
    const found = row && Object.hasOwn(METRICS, metric) ? number(row, block, metric) : null;
    const place = benchmarks.get(state.benchmark).blocks.find((one) => one.name === block);
    const shownMetric = found && found.other ? found.other : metric;
    const what = found && place ? `${place.title} ${METRICS[shownMetric][0]}` : "";
    const name = row ? row.name : records[id].title;
    const bar = element("div", "", "bar"), title = element("h2", what ? `${name}: ${what}` : name);
    title.id = "panel-title";
    const close = button("Close", "", () => panel.close());
    close.className = "close";
    bar.append(title, close);
    panel.replaceChildren(bar);
    if (found) panel.append(element("p", [percent(String(found.value)), row.spread[block] && found.extra].filter(Boolean).join(" "), "exact"));
    if (row) {
      const p = element("p");
      p.append(badge(row.evidence), ` ${board.evidence[row.evidence]}`);
      panel.append(p);
      if (row.unranked) panel.append(element("p", `Not ranked: ${row.unranked}.`, "note"));
      panel.append(facts([["encoder", row.encoder], ["access", row.group], ...(row.scope ? [["settings", row.scope]] : []),
        ...(row.evidence === FAILED || row.evidence.startsWith("quoted") ? [] : [["scores per image", row.recomputed
          ? "here: the numbers were computed again from them" : "not here: the numbers are as stored"]])]));
      panel.append(...submission(row));
    }
    for (const each of known) {
      if (known.length > 1) panel.append(element("h3", titles[each]));
      panel.append(...body(records[each], found ? { block, metric: shownMetric, title: place ? place.title : "" } : null));
    }
    panel.scrollTop = 0;
    if (!panel.open) panel.showModal();
    close.focus();
  }
  let pushed = false;  // whether the previous history entry is this page without the panel
  panel.addEventListener("close", () => {
    const cell = state.cell;
    if (cell) {
      if (pushed) history.back();
      state = { ...state, cell: "" };
      shown = written(state);
      if (!pushed) history.replaceState(null, "", shown);
      show();
      refocus(cell);
    }
    pushed = false;
  });
  document.addEventListener("click", (event) => {
    const a = event.target.closest("a[data-cell], dialog a[href^='#']");
    if (event.target === panel || event.target === copy) event.target.close();
    if (!a || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const inside = panel.open;  // another record in the same panel
    pushed ||= !inside;
    go({ cell: a.dataset.cell || decodeURIComponent(a.hash.slice(1)) }, inside);
  });

  // Copying: the text is also shown, because a browser may deny access to the clipboard.
  for (const one of document.querySelectorAll("[data-copy]")) {
    one.addEventListener("click", async () => {
      const heads = table.heads.map((head) => ({ title: head.title,
        metrics: table.metrics.map((m) => `${METRICS[m][0]} ${METRICS[m][1] > 0 ? "↑" : "↓"}`) }));
      const sections = table.sections.map((section) => ({ title: section.title, lines: section.lines.map((line) => ({
        rank: line.rank, name: line.row.name, by: line.row.by, why: line.row.unranked, evidence: line.row.evidence,
        cells: line.cells })) }));
      const text = copies(board.latex)[one.dataset.copy]({ title: at("heading").textContent, caption: caption(), heads, sections });
      at("copy-title").textContent = `The table as ${one.textContent}`;
      at("text").value = text;
      at("copied").textContent = "";
      copy.showModal();
      at("text").select();
      try {
        await navigator.clipboard.writeText(text);
        at("copied").textContent = "Copied.";
      } catch {
        at("copied").textContent = "The browser denied access to the clipboard: press Ctrl+C.";
      }
    });
  }
  copy.querySelector(".close").addEventListener("click", () => copy.close());

  // Light and dark: by the system's setting, or as chosen. Storage may be denied, as for local files.
  const themes = ["system", "light", "dark"], media = [];
  for (const rule of document.styleSheets[0].cssRules) {
    if (rule.media && rule.media.mediaText.includes("prefers-color-scheme: dark")) media.push(rule.media);
  }
  const darkMedia = media.map((one) => one.mediaText);
  let theme = "system";
  function setTheme(name) {
    theme = themes.includes(name) ? name : "system";
    media.forEach((one, i) => { one.mediaText = { light: "not all", dark: "screen" }[theme] || darkMedia[i]; });
    document.documentElement.style.colorScheme = theme === "system" ? "" : theme;
    at("theme").textContent = `Theme: ${theme}`;
    at("theme").hidden = false;
  }
  at("theme").addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(theme) + 1) % themes.length]);
    try { localStorage.setItem("theme", theme); } catch { /* the choice is not stored */ }
  });
  let stored = "system";
  try { stored = localStorage.getItem("theme") || "system"; } catch { /* no storage */ }
  setTheme(stored);

  // Static parts.
  at("filters").open = innerWidth > 576;
  const verified = rows.filter((row) => row.evidence === "verified").length;
  const made = board.created ? ` Results computed ${board.created}.` : "";
  at("about").textContent = `${rows.length} rows on ${board.benchmarks.length} benchmarks, ${verified} of them verified.${made} `
    + "Click a number for its provenance.";
  for (const [name, text] of Object.entries(board.evidence)) {
    const dt = element("dt");
    dt.append(badge(name));
    at("meaning").append(dt, element("dd", text));
  }
  at("unreadable").hidden = !board.unreadable.length;
  at("unreadable").querySelector("ul").append(...board.unreadable.map((text) => element("li", text)));
  at("view").addEventListener("change", (event) => go({ view: event.target.value, sort: "", way: "", cell: "" }));
  at("block").addEventListener("change", (event) => go({ block: event.target.value, cell: "" }));
  at("kind").addEventListener("change", (event) => go({ kind: event.target.value, sort: "", way: "", cell: "" }));
  at("words").addEventListener("input", (event) => go({ words: event.target.value, cell: "" }, true));
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", follow);
  addEventListener("popstate", follow);
  follow();
})();
