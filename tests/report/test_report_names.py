"""Names of any kind in every format: no control characters, no broken lines, no lost letters."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pyarrow import parquet

import oodbench.report as report
from oodbench.report.formats.latex_text import BASIC, as_codes, escape, preamble, unsupported
from oodbench.results import Result
from tests.report.test_report_shapes import call, lay, ood, row

HOSTILE = "a\x1b[31mb\x1b]0;t\x07c\nd\re\tf\x00g\x85h\u2028i\u202ej\u2066k\u200bl\x9bm"
SEEN = r"a\x1b[31mb\x1b]0;t\x07c\nd\re\tf\x00g\x85h\u2028i\u202ej\u2066k\u200bl\x9bm"
SCRIPTS = (
    "Жук",
    "ελιά λ",
    "雪豹",
    "naïve Łódź",
    "e\u0301 x\u0302 q\u0329",
    "🐕 ⚠\ufe0f",
    "عربي",
    "हिन्दी",
    "≥ ≤ × ∞ x₁ ŧ",
)


def hostile() -> list[Result]:
    sets = [ood(f"{HOSTILE} {i}", title=HOSTILE, group=HOSTILE) for i in range(2)]
    named: dict[str, Any] = {"title": HOSTILE, "benchmark_title": HOSTILE}
    templates = {"name": HOSTILE, "count": 1, "digest": "d" * 64}
    return [
        row("mcm", *sets, **named, templates=templates, label=f"mcm[templates={HOSTILE}]"),
        row("zoc", *sets, **named, templates=templates, parameters={"words": HOSTILE}),
        row("clipn", *sets, **named, status="failed", error=HOSTILE),
    ]


def hidden(text: str) -> set[str]:
    """Characters, but for the line feed, that control a terminal, turn text or break lines."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--format", "terminal"),
        ("--format", "markdown"),
        ("--format", "latex"),
        ("--format", "latex", "--standalone", "--cite"),
        ("--format", "latex", "--transpose"),
        ("--format", "csv"),
        ("--bib",),
        ("--explain", "zoc", HOSTILE),
        ("--verify",),
        ("--quote", "mcm:paper"),
        ("--metrics", f"auroc,{HOSTILE}"),
        ("--ood", "a\x1b[31m\u202e"),
        ("--methods", HOSTILE),
        ("--format", HOSTILE),
        ("--explain", HOSTILE, HOSTILE),
    ],
    ids=lambda flags: " ".join(flags)[:24],
)
def test_control_characters_of_names_are_escaped_in_a_terminal(flags: tuple[str, ...], tmp_path: Path) -> None:
    done = call("--results", lay(tmp_path, *hostile()), *flags)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not hidden(done.stdout)


def test_hostile_names_in_every_file(tmp_path: Path) -> None:
    results = lay(tmp_path / "r", *hostile())
    for form, name in (
        ("html", "p.html"),
        ("csv", "t.csv"),
        ("markdown", "t.md"),
        ("latex", "t.tex"),
        ("terminal", "t"),
    ):
        done = call("--results", results, "--format", form, "--output", tmp_path / name)
        assert done.exit_code == 0, done.output
        text = (tmp_path / name).read_bytes().decode()
        assert not hidden(text.replace("\r\n", "\n")), (form, hidden(text))
        assert r"u202ej" in re.sub(r"\s", "", text), form
    page = (tmp_path / "p.html").read_text()
    assert r"\u202ej" in page and "\\\\u202ej" in page  # as text, and in the records' JSON as that text
    assert call("--results", results, "--format", "parquet", "--output", tmp_path / "t.parquet").exit_code == 0
    assert HOSTILE in parquet.read_table(tmp_path / "t.parquet")["prompts"].to_pylist()  # as it is, for programs


def test_a_csv_row_is_one_line(tmp_path: Path) -> None:
    text = call("--results", lay(tmp_path, *hostile()), "--format", "csv").stdout
    assert len(text.splitlines()) == 4 == text.count("\n")
    records = list(csv.DictReader(io.StringIO(text)))
    assert all(record["name"].startswith(SEEN) for record in records)
    assert {record["error"] for record in records} == {SEEN, ""} and {record["prompts"] for record in records} == {
        SEEN,
        "",
    }
    assert f"ood.{SEEN} 0.auroc" in records[0]


def test_formulas_stay_texts_and_control_characters_before_them_are_seen(tmp_path: Path) -> None:
    rows = [row(f"m{i}", title=title) for i, title in enumerate(("=1+1", "\t=1+1", "\r\n@x", "-2", "+3", "ok"))]
    text = call("--results", lay(tmp_path, *rows), "--format", "csv").stdout
    names = [record["name"] for record in csv.DictReader(io.StringIO(text))]
    assert names == ["'=1+1", r"\t=1+1", r"\r\n@x", "'-2", "'+3", "ok"]


def test_names_and_notes_in_markdown_are_no_headings_and_lists() -> None:
    titles = [
        "# Heading",
        "## Two",
        "#1",
        "- dash",
        "+ plus",
        "+plus",
        "1. one",
        "12) twelve",
        "1.5x",
        "* star",
        "3-way",
    ]
    rows = [row(f"m{i}", title=title, status="failed", error="none", ood=()) for i, title in enumerate(titles)]
    tokens = MarkdownIt("commonmark").enable("table").parse(report.markdown(*report.tables([row(), *rows])))
    blocks = {token.type for token in tokens if token.block} - {"inline"}
    assert {name.rpartition("_")[0] for name in blocks} == {"paragraph", "table", "thead", "tbody", "tr", "th", "td"}
    seen = ["".join(part.content for part in token.children or ()) for token in tokens if token.type == "inline"]
    assert set(titles) <= set(seen) and {f"{title} failed: none" for title in titles} <= set(seen)


# LaTeX


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("e\u0301", "é"),
        ("x\u0302 n\u0323 ế", r"\^{x} \d{n} \'{\^{e}}"),
        ("-\u0302", "-\u0302"),
        ("≥ ≤ → ∞", r"\ensuremath{\geq} \ensuremath{\leq} \ensuremath{\rightarrow} \ensuremath{\infty}"),
        ("λά", r"\ensuremath{\lambda}\ensuremath{\acute{\alpha}}"),
        ("Ωσς", r"\ensuremath{\Omega}\ensuremath{\sigma}\ensuremath{\varsigma}"),
        ("x₁⁴", r"x\ensuremath{_1}\ensuremath{^4}"),
        ("Łódź Ș № €", "Łódź Ș № €"),
        ("⚠\ufe0f", "⚠"),
        ("a\nb\x1b", r"a\textbackslash{}nb\textbackslash{}x1b"),
        ("Жук", "Жук"),
    ],
)
def test_escapes(text: str, latex: str) -> None:
    assert escape(text) == latex


def test_letters_that_pdflatex_lacks_become_codes() -> None:
    assert as_codes("a Жу к é \\textbf{雪}") == r"a \oodrun{0416,0443} \oodrun{043A} é \textbf{\oodrun{96EA}}"
    assert unsupported("aé≥Жу Ж") == "≥Жу" and unsupported("".join(sorted(BASIC))) == ""
    assert preamble("plain") == r"\usepackage[utf8]{inputenc}"
    assert "oodrun" not in preamble("é") and "T1" in preamble("é") and "oodrun" in preamble("Ж")


def test_a_document_states_the_engine_it_needs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = lay(tmp_path, row("mcm", title="Жук 雪豹"))
    text = call("--results", results, "--format", "latex", "--standalone").stdout
    assert text.startswith("% Compile with lualatex or xelatex: this contains 5 letters that pdflatex lacks (Жук雪豹)")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "prints their codes: compile it with lualatex or xelatex" in said
    body = text[text.index(r"\begin{document}") :]
    assert r"\oodrun{0416,0443,043A}" in body and not unsupported(body) and "The table contains" not in text
    caplog.clear()
    fragment = call("--results", results, "--format", "latex").stdout
    assert fragment.startswith("% The table contains 5 letters") and "Жук 雪豹" in fragment and len(caplog.records) == 1
    caplog.clear()
    plain = call(
        "--results", lay(tmp_path / "p", row("mcm", title="λ ≥ é")), "--format", "latex", "--standalone"
    ).stdout
    assert plain.startswith(r"\documentclass") and not caplog.records


def compiled(engine: str, file: Path) -> str:
    """The log of a compilation, which must end well."""
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", file.name]
    made = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, errors="replace", timeout=300)
    assert made.returncode == 0, made.stdout[-3000:]
    return file.with_suffix(".log").read_text(errors="replace")


def said(file: Path) -> str:
    done = subprocess.run(
        ["pdftotext", "-raw", file.with_suffix(".pdf"), "-"], capture_output=True, text=True, check=True
    )
    return unicodedata.normalize("NFC", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pdflatex", "lualatex"])
def test_names_in_any_script_compile_and_no_letter_is_lost(engine: str, tmp_path: Path) -> None:
    probe = ["kpsewhich", "luaotfload-main.lua" if engine == "lualatex" else "article.cls"]
    if (
        not shutil.which(engine)
        or subprocess.run(probe, capture_output=True).returncode
        or not shutil.which("pdftotext")
    ):
        pytest.skip(f"{engine} or pdftotext is not installed")
    rows = [row(f"m{i}", ood("sun"), ood("dtd", title="≥0.5 Жук"), title=text) for i, text in enumerate(SCRIPTS)]
    rows += [row(f"h{i}", ood("sun"), ood("dtd", title="≥0.5 Жук"), title=one.title) for i, one in enumerate(hostile())]
    file = tmp_path / "t.tex"
    done = call("--results", lay(tmp_path / "r", *rows), "--format", "latex", "--standalone", "--output", file)
    assert done.exit_code == 0, done.output
    log = compiled(engine, file)
    assert "Missing character" not in log
    text = said(file)
    assert "≥0.5" in text
    if engine == "lualatex":  # the fonts that a small installation makes for pdflatex do not tell their letters
        assert "Łódź" in text and "naïve" in text and "é" in text
    for letter in "Жук雪豹🐕عह":
        assert letter in text or f"U+{ord(letter):04X}" in text, (letter, text)
    assert engine == "lualatex" or "U+0416" in text


@pytest.mark.slow
def test_every_letter_that_is_said_to_be_basic_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    from oodbench.report.formats.latex_text import MATH

    lines = [escape(c) for c in (*sorted(BASIC), *MATH, "ά", "ϋ", "x\u0302")]
    assert not unsupported("".join(lines))
    text = "\n\n".join(f"x{line}x" for line in lines)
    file = tmp_path / "t.tex"
    file.write_text(f"\\documentclass{{article}}\n{preamble(text)}\n\\begin{{document}}\n{text}\n\\end{{document}}\n")
    assert "Missing character" not in compiled("pdflatex", file)
