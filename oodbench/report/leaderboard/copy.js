// The shown table as LaTeX, CSV and Markdown.
"use strict";
// A table is { title, caption, heads: [{ title, metrics: [title] }], sections: [{ title, lines: [{ rank, name, evidence, by,
// why, cells: [{ text, mark, extra }] }] }] }. `signs` are the characters that LaTeX does not print as they are, with commands;
// "" for those that pdflatex does not have.
function copies(signs) {
  const letters = (text) => text.normalize("NFC").replace(/[\ufe00-\ufe0f]/g, "").match(/.[\u0300-\u036f]*/gsu) || [];
  const sign = (c) => (Object.hasOwn(signs, c) && signs[c]) || c;
  const tex = (text) => letters(text).map(sign).join("").replace(/-(?=-)|'(?=')|`(?=`)|[?!](?=`)/g, "$&{}");
  const md = (text) => text.replace(/[\\|`*_<>[\]~]/g, "\\$&");
  // A spreadsheet evaluates texts that start with one of these.
  const csvText = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const short = (text) => (text.length > 100 ? `${text.slice(0, 97)}...` : text);
  const named = (line) => [line.name, line.by && ` (${line.by})`, line.why && `; not ranked: ${short(line.why)}`].filter(Boolean).join("");

  function latex(table) {
    const count = table.heads.reduce((sum, head) => sum + head.metrics.length, 0);
    const marks = { best: "\\textbf", second: "\\underline" };
    const cell = (one) => {
      const text = tex(one.text), number = marks[one.mark] ? `${marks[one.mark]}{${text}}` : text;
      return one.extra ? `${number} {\\scriptsize ${tex(one.extra)}}` : number;
    };
    let column = 4;
    const rules = table.heads.map((head) => {
      column += head.metrics.length;
      return `\\cmidrule(lr){${column - head.metrics.length}-${column - 1}}`;
    });
    const row = (cells) => `${cells.join(" & ")} \\\\`;
    const lines = [
      "\\begin{table}", "\\centering", `\\caption{${tex(`${table.title}. ${table.caption}`)}}`,
      "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
      `\\begin{tabular}{rll${"r".repeat(count)}}`, "\\toprule",
      row(["", "", "", ...table.heads.map((h) => `\\multicolumn{${h.metrics.length}}{c}{${tex(h.title)}}`)]),
      rules.join(" "),
      row([tex("#"), "Method", "Evidence", ...table.heads.flatMap((h) => h.metrics.map(tex))]),
    ];
    for (const section of table.sections) {
      lines.push("\\midrule", `\\multicolumn{${count + 3}}{l}{\\textit{${tex(section.title)}}} \\\\`);
      for (const line of section.lines) lines.push(row([line.rank, tex(named(line)), tex(line.evidence), ...line.cells.map(cell)]));
    }
    const text = [...lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}", ""].join("\n");
    const lacking = [...new Set(letters(text))].filter((c) => signs[c] === "");
    const remarks = ["% \\usepackage[T1]{fontenc}", "% \\usepackage{booktabs,graphicx}",
      "% A table that is wider than the line is made smaller."];
    if (lacking.length) remarks.push(`% pdflatex lacks ${lacking.join(" ")}: use LuaLaTeX or XeLaTeX with a font that has them.`);
    return [...remarks, text].join("\n");
  }

  function csv(table) {
    const lines = table.sections.flatMap((section) => section.lines.map((line) => ({ ...line, section: section.title })));
    const titles = table.heads.flatMap((h) => h.metrics.map((m) => `${h.title} ${m.replace(/ [↑↓]$/, "")}`));
    const noted = titles.map((title, i) => lines.some((line) => line.cells[i].extra));  // a column of its own: numbers stay numbers
    const columns = (values, notes) => values.flatMap((value, i) => (noted[i] ? [value, notes[i]] : [value]));
    const rows = lines.map((line) => [line.section, line.rank, line.name, line.by, line.evidence, line.why,
      ...columns(line.cells.map((one) => (one.text === "-" ? "" : one.text)), line.cells.map((one) => one.extra))]);
    const head = ["section", "rank", "method", "by", "evidence", "not ranked", ...columns(titles, titles.map((t) => `${t} note`))];
    return [head, ...rows].map((row) => row.map((text) => csvText(String(text))).join(",")).join("\n") + "\n";
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
}
