// The panel of a cell, opened by its address. Names are only ever set as text.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const at = (id) => document.getElementById(id);
  const panel = at("panel");

  const known = (address) => JSON.parse(at(address).textContent);
  const { body, element, percent } = provenance(known, (address) => at(address).previousElementSibling.textContent);
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
    panel.append(...body(row, head && head.dataset));
    panel.scrollTop = 0;
    if (panel.open) close.focus();
    else panel.showModal();
  }
  // The address of a cell, #cell-..., opens its panel; the browser's back button closes it.
  let before = null;
  function fragment() {
    try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }  // a % that is not an escape
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
