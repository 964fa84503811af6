// The shown table as LaTeX, CSV and Markdown.
"use strict";
// A table is { title, caption, heads: [{ title, metrics: [title] }], sections: [{ title, lines: [{ rank, name, evidence, by,
// cells: [{ text, mark, extra }] }] }] }.
const copies = (() => {
  const ARROWS = { "↑": "$\\uparrow$", "↓": "$\\downarrow$", "±": "$\\pm$", "×": "$\\times$", "·": "$\\cdot$" };
  const TEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}" };
  const tex = (text) => text.replace(/[\\~^<>|{}$&#_%↑↓±×·]/g, (c) => ARROWS[c] || TEX[c] || `\\${c}`);
  const md = (text) => text.replace(/[\\|`*_<>[\]~]/g, "\\$&");
  // A spreadsheet evaluates texts that start with one of these.
  const csvText = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const whole = (cell) => [cell.text, cell.extra].filter(Boolean).join(" ");
  const named = (line) => (line.by ? `${line.name} (${line.by})` : line.name);

  function latex(table) {
    const count = table.heads.reduce((sum, head) => sum + head.metrics.length, 0);
    const marks = { best: "\\textbf", second: "\\underline" };
    const cell = (one) => {
      const text = tex(one.text), number = marks[one.mark] ? `${marks[one.mark]}{${text}}` : text;
      return one.extra ? `${number} {\\scriptsize ${tex(one.extra)}}` : number;
    };
    let column = 3;
    const rules = table.heads.map((head) => {
      column += head.metrics.length;
      return `\\cmidrule(lr){${column - head.metrics.length}-${column - 1}}`;
    });
    const lines = [
      "% \\usepackage{booktabs}", "\\begin{table}", "\\centering", `\\caption{${tex(`${table.title}. ${table.caption}`)}}`,
      `\\begin{tabular}{ll${"r".repeat(count)}}`, "\\toprule",
      `${["", "", ...table.heads.map((h) => `\\multicolumn{${h.metrics.length}}{c}{${tex(h.title)}}`)].join(" & ")} \\\\`,
      rules.join(" "),
      `${["Method", "Evidence", ...table.heads.flatMap((h) => h.metrics.map(tex))].join(" & ")} \\\\`,
    ];
    for (const section of table.sections) {
      lines.push("\\midrule", `\\multicolumn{${count + 2}}{l}{\\textit{${tex(section.title)}}} \\\\`);
      for (const line of section.lines) {
        lines.push(`${[tex(named(line)), tex(line.evidence), ...line.cells.map(cell)].join(" & ")} \\\\`);
      }
    }
    return [...lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""].join("\n");
  }

  function csv(table) {
    const heads = table.heads.flatMap((h) => h.metrics.map((m) => `${h.title} ${m.replace(/ [↑↓]$/, "")}`));
    const rows = table.sections.flatMap((section) => section.lines.map((line) =>
      [section.title, line.rank, line.name, line.by, line.evidence, ...line.cells.map((c) => (c.text === "-" ? "" : whole(c)))]));
    return [["section", "rank", "method", "by", "evidence", ...heads], ...rows]
      .map((row) => row.map((text) => csvText(String(text))).join(",")).join("\n") + "\n";
  }

  function markdown(table) {
    const heads = table.heads.flatMap((h) => h.metrics.map((m) => md(`${h.title} ${m}`)));
    const row = (cells) => `| ${cells.join(" | ")} |`;
    const cell = (one) => {
      const text = one.mark === "best" ? `**${md(one.text)}**` : one.mark === "second" ? `<u>${md(one.text)}</u>` : md(one.text);
      return one.extra ? `${text} ${md(one.extra)}` : text;
    };
    const out = [`**${md(table.title)}**`, ""];
    for (const section of table.sections) {
      out.push(md(section.title), "", row(["#", "Method", "Evidence", ...heads]), row(["--:", "---", "---", ...heads.map(() => "--:")]));
      out.push(...section.lines.map((l) => row([String(l.rank), md(named(l)), md(l.evidence), ...l.cells.map(cell)])), "");
    }
    return [...out, md(table.caption), ""].join("\n");
  }
  return { latex, csv, markdown };
})();
