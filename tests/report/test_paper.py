"""The style of papers: metrics, one panel, encoders in one table, own methods last, renaming, short captions."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import oodbench.report as report
from oodbench.errors import UserError
from oodbench.method import Access
from oodbench.report.formats.paper import COLUMN, LAYOUTS, PAGE, layout, paper, width
from oodbench.report.options import TableOptions, parse
from oodbench.report.output import OutputOptions, build_tables, check_request, render_text
from oodbench.report.tables.table import Table, transposed
from oodbench.results import Result, SetRow
from tests.report.stream_rows import shifted
from tests.report.test_imported import imported
from tests.report.test_report_shapes import HOSTILE, call, lay, ood, row

B16 = {"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "b" * 64, "architecture": "ViT-B-16"}
L14 = {"name": "ViT-L-14/openai", "slug": "ViT-L-14-openai", "weights": "d" * 64, "architecture": "ViT-L-14"}
GROUPED = (("ssb-hard", "near"), ("ninco", "near"), ("inaturalist", "far"), ("textures", "far"), ("openimage-o", "far"))
MOS = (("inaturalist", ""), ("sun", ""), ("places", ""), ("textures", ""))


def rows(
    sets: Sequence[tuple[str, str]], methods: int = 3, encoder: dict[str, str] = B16, **changes: Any
) -> list[Result]:
    """Results of methods m0, m1, ...: the first has the best numbers on every set."""

    def values(i: int) -> list[SetRow]:
        return [ood(name, 0.95 - 0.01 * i - 0.001 * s, 0.2 + 0.02 * i, group) for s, (name, group) in enumerate(sets)]

    return [row(f"m{i}", *values(i), encoder=encoder, **changes) for i in range(methods)]


def text_of(
    results: Sequence[Result],
    *,
    form: str = "latex",
    caption: str = "",
    label: str = "",
    quotes: tuple[str, ...] = (),
    **options: Any,
) -> str:
    """The text of a report in the style of papers."""
    table_options = TableOptions(**{"style": "paper", **options})
    request = OutputOptions(form=form, tests=False, caption=caption, label=label, quotes=quotes)
    check_request(request, table_options, results)
    return render_text(build_tables(results, {}, table_options, request), table_options, request)


def plain(latex: str) -> str:
    """LaTeX without comments."""
    return "\n".join(line for line in latex.splitlines() if not line.startswith("%"))


def test_fpr95_comes_before_auroc_in_every_format(tmp_path: Path) -> None:
    results = lay(tmp_path, *rows(MOS))
    for form in ("latex", "markdown", "terminal", "csv"):
        lines = call("--results", results, "--style", "paper", "--format", form, "--no-tests").stdout.splitlines()
        head = next(line for line in lines if line.count("FPR95") > 3 or line.count("fpr95") > 3)
        assert 0 < head.lower().index("fpr95") < head.lower().index("auroc"), form
    assert TableOptions(style="paper", metrics=("auroc", "fpr95")).metrics == ("auroc", "fpr95")
    assert TableOptions(metrics=("fpr95", "auroc", "accuracy", "seconds")).default_metrics is False
    (streams,) = report.tables([shifted("tanl", "shuffled", 0, 0.0)], TableOptions(style="paper"))
    assert [c.name for c in streams.column_groups[0].columns] == ["fpr95", "fpr95_ood", "auroc"]


@pytest.mark.parametrize(
    ("sets", "methods", "environment", "has_seconds"),
    [
        (MOS[:1], 1, "table", True),
        (MOS[:2], 3, "table", False),
        (MOS, 25, "table*", False),
        (GROUPED, 3, "table*", False),
        (GROUPED, 40, "table*", False),
    ],
)
def test_one_panel_in_a_column_or_across_the_page(sets: Any, methods: int, environment: str, has_seconds: bool) -> None:
    found = text_of(rows(sets, methods))
    assert f"\\begin{{{environment}}}" in found and found.count(r"\begin{tabular}") == 1
    assert len(re.findall(r"^M\d+ &", found, re.MULTILINE)) == methods
    assert ("Seconds" in plain(found)) is has_seconds
    assert ("% Without Seconds, to fit." in found) is not has_seconds
    average = re.findall(r"\{(\w*)\s?[Aa]verage\}", plain(found))
    assert average == [""] * (3 if sets == GROUPED else len(sets) > 1)
    assert (r"{Near OOD}" in found and r"{Far OOD}" in found) is (sets == GROUPED)


def test_a_table_wider_than_a_page_is_split_into_panels_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = text_of(rows([(f"set-{i}", "near" if i < 8 else "far") for i in range(20)]))
    assert found.count(r"\begin{tabular}") > 1 and "\n% Panels: the table is wider than 496pt" in found
    assert "wider than a page" in caplog.text and "--ood" in caplog.text
    caplog.clear()
    assert text_of(rows(MOS, 60), transpose=True).count(r"\begin{tabular}") > 1
    assert "--methods or --top" in caplog.text and "--ood" not in caplog.text
    few = text_of(rows([("ssb-hard", "near"), *((f"set-{i}", "far") for i in range(12))]))
    heads = [re.findall(r"(Near|Far) OOD", part) for part in few.split(r"\begin{tabular}")[1:]]
    assert heads[0] == ["Near", "Far"] and all(head == ["Far"] for head in heads[1:]) and len(heads) > 1


def test_fonts_get_smaller_before_names_get_shorter_and_never_below_scriptsize() -> None:
    steps = [one for one in LAYOUTS if one.environment == "table*"]
    assert {one.font for one in LAYOUTS} == {"footnotesize", "scriptsize"}
    assert [one.short for one in steps] == sorted(one.short for one in steps)
    wide = text_of(rows(GROUPED))
    assert r"FPR$\downarrow$ & AUC$\uparrow$" in wide and "FPR: FPR95, AUC: AUROC." in plain(wide)
    assert "FPR: FPR95, AUC: AUROC." in plain(text_of(rows(GROUPED), caption="full"))
    renamed = text_of(rows(GROUPED), rename=(("auroc", "AUR"),))
    assert r"AUR$\uparrow$" in renamed and "AUC" not in renamed
    for one, following in pairwise(steps):
        assert one.short < following.short or one.size >= following.size


def test_letter_widths_equal_computer_modern() -> None:
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts/afm/cmr10.afm"
    found = re.findall(r"^C \d+ ; WX ([\d.]+) ; N (\w+) ;", file.read_text(errors="replace"), re.MULTILINE)
    widths = {name: float(points) / 1000 for points, name in found}
    digits = "zero one two three four five six seven eight nine period parenleft hyphen".split()
    letters = {c: c for c in map(chr, [*range(65, 91), *range(97, 123)])} | dict(
        zip("0123456789.(-", digits, strict=True)
    )
    for letter, name in letters.items():
        assert widths[name] - 0.003 <= width(letter, 1.0) <= widths[name] + 0.1, letter


@pytest.mark.parametrize("style", ["paper", "full"])
def test_the_comment_names_fontenc_for_letters_that_need_it(style: str) -> None:
    plain_name, polish = (text_of(rows(MOS, 1, title=title), style=style) for title in ("Müller", "Zając"))
    assert polish.startswith("% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs}\n") and "fontenc" not in plain_name


def test_encoders_share_a_table_with_marks_per_encoder(caplog: pytest.LogCaptureFixture) -> None:
    ours = row("m9", *(ood(name, 0.99, 0.9) for name, _ in MOS), encoder=L14)
    found = text_of([*rows(MOS), *rows(MOS, encoder=L14), ours])
    assert found.count(r"\begin{tabular}") == 1 == found.count(r"\caption{\textbf{Toy} (\%).")
    first, second = re.split(r"\\textbf\{ViT-L-14/openai\}", plain(found))
    assert r"\textbf{ViT-B-16/openai}" in first
    assert (
        re.findall(r"^M(\d) & \\textbf", first, re.MULTILINE)
        == re.findall(r"^M(\d) & \\textbf", second, re.MULTILINE)
        == ["0"]
    )
    assert r"\textbf{95.00}" in first and r"\textbf{99.00}" in second and r"\textbf{95.00}" not in second
    assert "Best within each encoder in" in found
    assert "ViT-B-16/openai: Encoder weights: bbbbbbbbbbbb." in found and "dddddddddddd" not in plain(found)
    best = plain(text_of([*rows(MOS), *rows(MOS, encoder=L14)], top=1))
    assert best.count("the best 1 by average FPR95.") == 1  # of both, unlike the number of lines left out
    assert all(f"{one['name']}: 2 of 3 lines are left out" in best for one in (B16, L14))


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"seed": 0, "precision": "bf16", "limit": None, "device": "cpu"}},
        {"conventions": {"at95": "interpolate"}},
        {"classes": {"name": "cats", "count": 2, "digest": "e" * 64}},
        {"benchmark": "other", "benchmark_title": "Other"},
    ],
)
def test_only_the_encoder_may_differ_in_a_table_of_several(change: dict[str, Any]) -> None:
    found = text_of([*rows(MOS), *rows(MOS, encoder=L14, **change)])
    assert found.count(r"\begin{tabular}") == 2
    labels = re.findall(r"\\label\{(.*)\}", found)
    assert labels == (["tab:toy", "tab:other"] if "benchmark" in change else ["tab:toy", "tab:toy-2"])


def test_other_sets_or_images_are_another_table() -> None:
    assert text_of([*rows(MOS), *rows(MOS[:3], encoder=L14)]).count(r"\begin{tabular}") == 2
    fewer = [
        dataclasses.replace(one, ood=(dataclasses.replace(one.ood[0], list_digest="x"),))
        for one in rows(MOS[:1], encoder=L14)
    ]
    assert text_of([*rows(MOS[:1]), *fewer]).count(r"\begin{tabular}") == 2


def test_captions_of_tables_with_other_sets_say_which_are_missing() -> None:
    fewer, others = (row(f"n{i}", *rows(sets)[0].ood, encoder=B16) for i, sets in enumerate((MOS[:3], MOS[1:])))
    failed = dataclasses.replace(row("m7", encoder=B16), ood=(), status="failed", error="none")
    found = text_of([*rows(MOS), fewer, others, failed], rename=(("textures", "DTD"),))
    captions = re.findall(r"^\\caption\{\\textbf\{Toy, ViT-B-16/openai\} \(\\%\)\.(.*)\}$", found, re.MULTILINE)
    assert [re.sub(r" Best.*", "", caption) for caption in captions] == ["", " Without DTD.", " Without INATURALIST."]


def test_a_table_longer_than_a_page_continues_on_the_next() -> None:
    found = text_of([*rows(MOS, 40), *rows(MOS, 40, encoder=L14)])
    assert found.count(r"\begin{table*}") == 2 == found.count(r"\toprule")
    assert found.count(r"\label{") == 1 and found.count(r"\caption{Continued.}") == 1
    assert found.count(r"\setlength{\belowcaptionskip}{6pt}") == 2  # the rule does not touch a caption
    for part in found.split(r"\end{table*}")[:2]:  # each has an encoder, as both do not fit
        assert len(re.findall(r"^M\d+ &", part, re.MULTILINE)) == 40
    (table,) = report.tables(rows(MOS[:1], 120))
    full = report.latex(table)  # also in the full style
    assert full.count(r"\begin{tabular}") == 3 == full.count(r"\begin{table*}")
    assert len(re.findall(r"^M\d+ &", full, re.MULTILINE)) == 120
    long = text_of(rows(MOS[:1], 125))
    assert long.count(r"\begin{table}") == 3 and len(set(re.findall(r"^M\d+ &", long, re.MULTILINE))) == 125


def test_captions_are_short_and_the_full_ones_comments() -> None:
    failed = dataclasses.replace(row("m7", encoder=B16), ood=(), status="failed", error="no weights_here")
    results = [*rows(MOS), failed, imported("m8", 0.9, 0.8, access=Access())]
    found = text_of(results)
    caption = re.search(r"^\\caption\{(.*)\}$", found, re.MULTILINE)
    assert caption and len(re.sub(r"\\\w+|[{}]", "", caption[1])) < 110
    assert re.search(r"^% \\caption\{\\textbf\{Toy, .*ID positive.*\}$", found, re.MULTILINE)
    assert "\n% M7 failed: no weights\\_here\n" in found and "Failed: M7." in plain(found)
    assert "Failed: M7." in plain(text_of(results, transpose=True))
    assert "Failed: M7 (ViT-B-16/openai)." in plain(text_of([*results[:4], *rows(MOS, encoder=L14)]))
    assert "Imported scores: M8." in plain(text_of([*results[3:], *rows((*MOS[1:2], ("dtd", "")))]))
    full = text_of(results, caption="full", label="tab:mine")
    assert r"\caption{\textbf{Toy, encoder ViT-B-16/openai.} FPR95" in full and "no weights" in plain(full)
    assert r"\label{tab:mine}" in full and r"\label{tab:toy}" in found
    table = report.tables(results[:3])[0]
    assert r"\label" not in report.latex(table) and r"\label{a}" in report.latex(table, label="a")
    assert r"% \caption{" in report.latex(table, caption="short")


@pytest.mark.parametrize(
    ("results", "options", "note"),
    [
        (
            [row("mcm", ood("sun", v), seed=i) for i, v in enumerate((0.9, 0.95))],
            {"seeds": True},
            "standard deviation over seeds.",
        ),
        (
            [row("mcm", ood("sun", intervals={"auroc": (0.88, 0.93)}))],
            {"intervals": "half"},
            r"half the 95 \% interval.",
        ),
        (
            [row("mcm", ood("sun", intervals={"auroc": (0.88, 0.93)}))],
            {"intervals": "range"},
            r"In brackets: the 95 \% interval.",
        ),
        ([row("mcm")], {"sets": ("sun",)}, "1 of 2 OOD sets."),
        ([shifted("tanl", "shuffled", i, i / 100) for i in range(2)], {"metrics": ("auroc",)}, "over stream seeds."),
        (
            [shifted("tanl", "shuffled", i, i / 100) for i in range(2)],
            {"intervals": "half", "metrics": ("auroc",)},
            r"In brackets: the 95 \% interval of the first stream seed.",
        ),
        ([shifted("tanl", "shuffled", 0, 0)], {"intervals": "half"}, r"In brackets: the 95 \% interval."),
        (rows(MOS, 4), {"top": 2, "sort": "auroc"}, "Shown: the best 2 by average AUROC."),
    ],
)
def test_notes_are_short(results: list[Result], options: dict[str, Any], note: str) -> None:
    found = text_of(results, **options)
    (last,) = re.findall(r"\\parbox\{\\linewidth\}\{\\raggedright (.*)\}", found)
    assert note in last and len(last) < 130


def test_own_methods_are_the_last_rows_of_the_last_group_and_shaded() -> None:
    seen = Access(id_images=True).plain()
    results = [*rows(MOS, 2), row("knn", *rows(MOS)[0].ood, encoder=B16, access=seen)]
    (before,) = report.tables(results)
    (after,) = report.tables(results, TableOptions(ours=("m0",)))
    assert [line.name for line in before.lines] == ["M0", "M1", "KNN"]
    assert [(line.section, line.name, line.ours) for line in after.lines] == [
        ("Uses ID images", "KNN", False),
        ("Zero-shot", "M1", False),
        ("Zero-shot", "M0", True),
    ]
    assert {line.name: line.cells for line in before.lines} == {line.name: line.cells for line in after.lines}
    found = text_of(results, ours=("m0",))
    assert found.startswith("% \\usepackage{booktabs,colortbl}\n") and found.count(r"\rowcolor[gray]{.92} M0 &") == 1
    assert "colortbl" not in text_of(results) and r"\rowcolor" not in text_of(results)
    quoted = [dataclasses.replace(one, benchmark="mos", encoder=B16) for one in rows(MOS)]
    lines = [x for x in text_of(quoted, ours=("m1",), quotes=("neglabel:paper",)).splitlines() if x.endswith(r"\\")]
    assert lines[-1].startswith(r"\rowcolor[gray]{.92} M1")
    shade = r">{\columncolor[gray]{.92}}r"
    for text in (text_of(results, ours=("m0",), transpose=True), report.latex(transposed(after))):
        columns = next(x for x in text.splitlines() if r"\begin{tabular}" in x)
        assert columns.endswith(f"{shade}}}") and columns.count("columncolor") == 1 and "colortbl" in text
        assert r"\rowcolor" not in text
    assert r"\label{tab:toy}" in text_of(results, transpose=True)
    assert next(i for i, x in enumerate(lines) if "(quoted: paper)" in x) < lines.index(
        next(x for x in lines if "M0 &" in x)
    )


@pytest.mark.parametrize("form", ["latex", "markdown", "terminal"])
def test_names_are_replaced_in_every_format(form: str) -> None:
    results = [row("mcm", *rows(MOS[1:3])[0].ood, title="MCM"), row("gl_mcm", *rows(MOS[1:3])[1].ood, title="GL-MCM")]
    pairs = (
        ("mcm", "Ours & co"),
        ("sun", "S1"),
        ("PLACES", "P_2"),
        ("fpr95", "FPR"),
        ("Average", "Avg."),
        ("Method", "Model"),
    )
    found = " ".join(text_of(results, form=form, rename=pairs).split())
    amp, score = (r"\&", r"\_") if form == "latex" else ("&", "_") if form == "terminal" else (r"\&", r"\_")
    for shown in (f"Ours {amp} co", "GL-MCM", "S1", f"P{score}2", "Avg.", "Model", "FPR"):
        assert shown in found, shown
    for gone in ("SUN", "PLACES", "Average", "Ours & co-", "GL-Ours", "Method "):
        assert gone not in found, gone


def test_names_of_variants_groups_encoders_and_near_sets_are_changed() -> None:
    variant = dataclasses.replace(row("energy", *rows(GROUPED)[0].ood), label="energy[scale=1]", title="Energy")
    known = dataclasses.replace(
        row("energy", *rows(GROUPED)[1].ood), title="Energy", access=Access(id_images=True).plain()
    )
    pairs = (("energy[scale=1]", "E1"), ("zero-shot", "No training"), ("ViT-B-16/openai", "CLIP-B"), ("near", "Hard"))
    found = text_of([variant, known], rename=(*pairs, ("mean", "Avg.")), caption="full")
    for shown in (
        "\nE1 &",
        "\nEnergy &",
        r"\textit{No training}",
        "encoder CLIP-B.",
        r"{Hard OOD}",
        "Hard OOD: ",
        "{Avg.}",
    ):
        assert shown in found, shown


@pytest.mark.parametrize(
    ("pair", "shown", "hidden"),
    [
        ("energy[scale=1]=E", ("| E (seed 0) |", "| E (seed 1) |", "E (seed 1): low."), "Energy (scale=1, seed"),
        ("energy[scale=1]=E", ("| Energy (scale=1, t=2) |",), "E (t=2)"),
        ("energy[scale=1,t=2]=E", ("| E |", "| Energy (scale=1, seed 0) |"), "t=2"),
        ("Energy (scale=1, t=2)=E=2", ("| E=2 |",), "t=2"),
        ("energy=E", ("| E (scale=1, seed 0) |", "| E (scale=1, t=2) |"), "Energy"),
        ("near=Hard", ("Hard OOD: ", "Hard average"), "Near"),
        ("near=Hard OOD", ("Hard OOD: ", "Hard average"), "OOD OOD"),
    ],
)
def test_other_names_of_variants_and_groups(pair: str, shown: tuple[str, ...], hidden: str) -> None:
    sets = rows(GROUPED)[0].ood
    labels = [("energy[scale=1]", 0), ("energy[scale=1]", 1), ("energy[scale=1,t=2]", 0)]
    found = [
        row("energy", *sets, label=label, title="Energy", run={"seed": seed}, warnings=("low",) * seed)
        for label, seed in labels
    ]
    text = text_of(found, form="markdown", rename=parse({"rename": pair}).rename)
    assert all(one in text for one in shown) and hidden not in text, text


def test_a_label_may_hold_a_sign_of_equality(tmp_path: Path) -> None:
    variant = dataclasses.replace(row("energy"), label="energy[scale=1]", title="Energy")
    results = lay(tmp_path, variant, row("mcm"))
    done = call("--results", results, "--rename", "energy[scale=1]=E (T=1)", "--rename", "mcm=M=1", "--no-tests")
    assert done.exit_code == 0 and "E (T=1)" in done.stdout and "M=1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "papr"], "no style 'papr'; did you mean 'paper'?"),
        (["--ours", "m22"], "--ours: no results of method 'm22'; did you mean"),
        (["--ours", "m1", "--methods", "m0,m2"], "--ours m1 is not shown: --methods, --encoder or --id excludes it"),
        (["--rename", "SNU=S"], "nothing is named 'SNU'; did you mean 'SUN'?"),
        (["--rename", "SUN="], "--rename SUN= has no text"),
        (["--rename", "SUN=a", "--rename", "SUN=b"], "--rename SUN= is given twice"),
        (["--rename", "SUN"], "--rename 'SUN' is not NAME=TEXT"),
        (["--label", "tab:a b"], "--label 'tab:a b' is not a valid LaTeX label"),
        (["--label", "tab:a", "--format", "csv"], "--label requires --format latex"),
        (["--caption", "short", "--format", "markdown"], "--caption requires --format latex"),
        (["--caption", "shrt"], "no caption 'shrt'; did you mean 'short'?"),
    ],
)
def test_wrong_options_say_what_exists(arguments: list[str], message: str, tmp_path: Path) -> None:
    form = [] if "--format" in arguments else ["--format", "latex"]
    done = call("--results", lay(tmp_path, *rows(MOS)), *form, *arguments)
    assert done.exit_code == 2 and message in done.stderr, done.stderr


def test_names_are_cited_and_comparisons_of_methods_share_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("keys_of_method", "keys_of_dataset", "keys_of_benchmark"):
        monkeypatch.setattr(sys.modules["oodbench.report.tables.build"], function, lambda name: (f"key-{name}",))
    measured = [
        dataclasses.replace(
            row(name, *rows(MOS)[i].ood), benchmark="mos", encoder=B16 | {"tag": "openai"}, title=name.upper()
        )
        for i, name in enumerate(("energy", "neglabel"))
    ]
    found = text_of(measured, cite=True)
    assert r"ENERGY~\cite{key-energy,key-} &" in found and "Data: " not in plain(found)
    request = OutputOptions(form="latex", tests=False, compare=True)
    options = TableOptions(style="paper")
    tables = build_tables(measured, {}, options, request)
    text = plain(render_text(tables, options, request))
    assert len(tables) == 2 and text.count(r"\begin{tabular}") == 1
    for shown in (
        r"{c}{\textbf{ENERGY}}",
        r"{c}{\textbf{NEGLABEL}}",
        "\ndifference &",
        "measured minus published, in points.",
    ):
        assert shown in text, shown


def hostile() -> dict[str, list[Result]]:
    """Results of every kind, by name."""
    sets = [
        ood(name, 0.9, 0.3, group, intervals={"auroc": (0.85, 0.93), "fpr95": (0.3, 0.5)}) for name, group in GROUPED
    ]
    failed = dataclasses.replace(row("clipn", encoder=B16), ood=(), status="failed", error=f"no weights: {HOSTILE}")
    names = ["Müller–Łoś αβ", HOSTILE, "A name that is so long that no paper would print it in one line of a table"]
    return {
        "grouped": [*rows(GROUPED, 12), failed, *rows(GROUPED, 12, L14)],
        "names": [row(f"n{i}", title=name, encoder=B16) for i, name in enumerate(names)],
        "intervals": [
            row(f"m{i}", *sets[:2], encoder=B16, mean_intervals={"": {"auroc": (0.8, 0.9)}}) for i in range(3)
        ],
        "streams": [shifted("tanl", order, s, s / 300) for order in ("shuffled", "id-first") for s in range(3)],
        "one": rows(MOS[:1], 1),
        "column": rows(MOS[:2], 40),
        "wide": rows([(f"set-{i}", "") for i in range(20)], 20),
        "long": [*rows(MOS, 40), *rows(MOS, 40, encoder=L14)],
    }


@pytest.mark.slow
def test_every_table_compiles_within_its_width(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    parts, estimates = [], []
    for name, results in hostile().items():
        options: dict[str, Any] = {
            "ours": (results[0].method,),
        }
        options |= {"intervals": "half"} if name == "intervals" else {}
        body = text_of(results, **options)
        found = layout(_joined(results, **options)) if name != "wide" else None
        estimates.append((name, found[0].width if found else None))
        measured = body.replace(r"\begin{tabular}", r"\setbox0=\hbox\bgroup\begin{tabular}")
        told = rf"\end{{tabular}}\egroup\typeout{{width {name} \the\wd0}}\box0 %"
        parts.append(measured.replace(r"\end{tabular}%", told))
    head = r"\documentclass[10pt,twocolumn,letterpaper]{article}" + "\n" + r"\usepackage[utf8]{inputenc}"
    geometry = (
        r"\usepackage[textwidth=6.875in,textheight=8.875in,columnsep=0.3125in]{geometry}\usepackage{booktabs,colortbl}"
    )
    text = "\n".join([head, geometry, r"\begin{document}", "\\clearpage\n".join(parts), r"\end{document}"])
    (tmp_path / "page.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert made.returncode == 0, made.stdout[-3000:]
    assert "Overfull" not in made.stdout and "too large" not in made.stdout
    natural = re.findall(r"width (\w+) ([\d.]+)pt", made.stdout)
    assert {name for name, _ in natural} == {name for name, _ in estimates}
    for name, points in natural:
        limit = dict(estimates)[name]
        assert limit is None or float(points) <= limit, name
    assert dict(estimates)["column"] == COLUMN and dict(estimates)["grouped"] == PAGE


def _joined(results: Sequence[Result], **options: Any) -> Table:
    from oodbench.report.formats.paper import joined

    request = OutputOptions(form="latex", tests=False)
    return joined(build_tables(results, {}, TableOptions(style="paper", **options), request))[0]


def test_other_shapes_do_not_break_the_style() -> None:
    for options in ({"transpose": True}, {"group": "none"}, {"metrics": ("seconds",)}, {"metrics": ("accuracy",)}):
        assert text_of(rows(MOS), **options).count(r"\begin{tabular}") == 1
    assert paper([]) == ""
    with pytest.raises(UserError, match="--cite cannot be combined with --transpose"):
        text_of(rows(MOS), transpose=True, cite=True)
    with pytest.raises(UserError):
        text_of(rows(MOS), rename=(("nobody", "x"),))
