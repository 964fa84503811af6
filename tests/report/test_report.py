"""Reports: hand-written results with their expected cells."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import oodbench.report as report
from oodbench.method import Access
from oodbench.results import IdRow, Result, SetRow

ROOT = Path(__file__).parents[2]
NASTY = r"A&B %c $d #e f_g {h} ~i ^j \k <l> [m] *n* |o| --p ``q'' é"


def ood(title: str = "SUN", auroc: float = 0.9, fpr95: float = 0.4, **changes: Any) -> SetRow:
    row = SetRow(title.lower(), title, "", 200, 200, 0, f"list of {title}", auroc, fpr95, 0.5, 0.6, 0.7, 0.0)
    return dataclasses.replace(row, **changes)


def result(title: str = "MCM", *sets: SetRow, accuracy: float | None = 0.6673, **changes: Any) -> Result:
    row = Result(
        method=title.lower(),
        label=title.lower(),
        title=title,
        parameters={"scale": None},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "0123456789abcdef" * 4},
        id=IdRow("cats", "Cats", 1000, 1000, 0, "list of cats", accuracy),
        ood=sets or (ood(),),
        conventions={"at95": "first"},
        classes={"name": "cats", "count": 2, "digest": "c" * 64},
        templates={},
        files={},
        run={"seed": 0, "precision": "fp32", "limit": None, "device": "cpu"},
        source="s",
        versions={},
        commit=None,
        scores={},
        access=Access().plain(),
        seconds={"extract": 60.0, "score": 1.5},
    )
    return dataclasses.replace(row, **changes)


def failed(title: str = "ZOC", error: str = "no weights", **changes: Any) -> Result:
    return dataclasses.replace(result(title), ood=(), status="failed", error=error, seconds={}, **changes)


def only(*rows: Result) -> report.Table:
    (table,) = report.tables(rows)
    return table


def cells(table: report.Table) -> list[list[str]]:
    """Markdown's rows without their header, cell by cell."""
    lines = [line for line in report.markdown(table).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def header(table: report.Table) -> list[str]:
    line = next(line for line in report.markdown(table).splitlines() if line.startswith("| "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def printed(table: report.Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(report.console(table))
    return capture.get()


THREE = (
    result("MSP", ood("SUN", 0.92345, 0.5), ood("DTD", 0.8, 0.6), seconds={"score": 0.25}),
    result("MCM", ood("SUN", 0.95, 0.3), ood("DTD", 0.7, 0.5), seconds={"score": 12}),
    result("Energy", ood("SUN", 0.5, 1.0), ood("DTD", 0.9, 0.7), label="energy[scale=1]"),
)


def test_markdown_cells() -> None:
    table = only(*THREE)
    assert header(table) == [
        *("Method", "SUN AUROC ↑", "SUN FPR95 ↓", "DTD AUROC ↑", "DTD FPR95 ↓"),
        *("Average AUROC ↑", "Average FPR95 ↓", "ID Acc. ↑", "Seconds"),
    ]
    same = ["66.73"]
    assert cells(table) == [
        [
            "MSP",
            "<u>92.34</u>",
            "<u>50.00</u>",
            "<u>80.00</u>",
            "<u>60.00</u>",
            "**86.17**",
            "<u>55.00</u>",
            *same,
            "0.25",
        ],
        ["MCM", "**95.00**", "**30.00**", "70.00", "**50.00**", "<u>82.50</u>", "**40.00**", *same, "12.00"],
        ["Energy (scale=1)", "50.00", "100.00", "**90.00**", "70.00", "70.00", "85.00", *same, "1.50"],
    ]


def test_caption_states_conventions_and_sets() -> None:
    text = report.markdown(only(result("MCM", ood(skipped=3))))
    assert text.splitlines()[0] == (
        "**Toy, encoder ViT-B-16/openai.** AUROC, FPR95 and ID accuracy in %. FPR95 (i): fraction of OOD images "
        "accepted when at least 95 % of ID images are accepted (ID positive). ID: Cats (n = 1,000, 2 classes). "
        "OOD: SUN (n = 200, 3 skipped). Encoder weights: 0123456789ab. Seconds: scoring only."
    )
    nearest = report.markdown(only(result(conventions={"at95": "nearest"})))
    assert "accepted when 95 % of ID images are accepted (ID positive; at95 rule: nearest)." in nearest


def test_latex_cells() -> None:
    text = report.latex(only(*THREE))
    assert r"MCM & \textbf{95.00} & \textbf{30.00} & 70.00 & \textbf{50.00} & \underline{82.50} & " in text
    assert r" & \multicolumn{2}{c}{SUN} & \multicolumn{2}{c}{DTD} & \multicolumn{2}{c}{Average} & " in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}\cmidrule(lr){6-7}" in text
    assert r"\scriptsize AUROC$\uparrow$ & \scriptsize FPR95$\downarrow$ & " in text
    assert r"accepted when at least 95~\% of ID images are accepted (ID positive)." in text
    assert text.startswith("% \\usepackage{booktabs}\n\\begin{table*}")


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ((0.90001, 0.90004, 0.8), ["best", "best", ""]),  # alike in print; two bests leave no second
        ((0.9, 0.8, 0.80001), ["best", "second", "second"]),
        ((0.9, 0.9, 0.9), ["best", "best", "best"]),
        ((0.9, float("nan"), 0.8), ["best", "", "second"]),
        ((0.9, float("nan"), float("nan")), ["", "", ""]),
    ],
)
def test_marks_follow_the_printed_values(values: tuple[float, ...], marks: list[str]) -> None:
    table = only(*(result(f"M{i}", ood(auroc=value)) for i, value in enumerate(values)))
    assert [line.cells[0][0].mark for line in table.lines] == marks


def test_lower_fpr95_is_better() -> None:
    table = only(result("A", ood(fpr95=0.2)), result("B", ood(fpr95=0.1)))
    assert [line.cells[0][1].mark for line in table.lines] == ["second", "best"]


def test_accuracy_is_marked_only_where_it_differs() -> None:
    assert [row[3] for row in cells(only(result("A"), result("B"), result("C", accuracy=None)))] == [
        "66.73",
        "66.73",
        "-",
    ]
    assert [row[3] for row in cells(only(result("A"), result("B", accuracy=0.7)))] == ["<u>66.73</u>", "**70.00**"]


def test_one_row_has_no_marks() -> None:
    for rows in ([result()], [result(), failed()]):
        table = only(*rows)
        assert cells(table)[0] == ["MCM", "90.00", "40.00", "66.73", "1.50"]
        assert "bold" not in report.latex(table) + report.markdown(table) + printed(table, 80)


def test_group_means() -> None:
    sets = [("NINCO", "near", 0.7), ("SSB", "near", 0.8), ("DTD", "far", 0.9), ("SUN", "far", 0.98)]
    table = only(result("MCM", *(ood(title, auroc, 0.1, group=group) for title, group, auroc in sets)))
    titles = ["NINCO", "SSB", "Near average", "DTD", "SUN", "Far average", "Average", "ID", ""]
    assert [block.title for block in table.column_groups] == titles
    assert cells(table)[0][1::2][:7] == ["70.00", "80.00", "75.00", "90.00", "98.00", "94.00", "84.50"]
    assert r"\multicolumn{6}{c}{Near OOD}" in report.latex(table)
    assert "Near OOD: NINCO (n = 200), SSB (n = 200). Far OOD: DTD (n = 200), SUN (n = 200)." in report.markdown(table)


def test_a_mean_over_a_single_set_is_omitted() -> None:
    assert [block.title for block in only(result()).column_groups] == ["SUN", "ID", ""]
    sets = (ood("NINCO", group="near"), ood("DTD", group="far"), ood("SUN", group="far"))
    titles = ["NINCO", "DTD", "SUN", "Far average", "Average", "ID", ""]
    assert [block.title for block in only(result("MCM", *sets)).column_groups] == titles
    one_group = only(result("MCM", ood("DTD", group="far"), ood("SUN", group="far")))
    assert [block.title for block in one_group.column_groups] == ["DTD", "SUN", "Average", "ID", ""]


def test_partial_sets_are_stamped() -> None:
    id_part = IdRow("cats", "Cats", 50, 1000, 0, "part of cats", 0.5)
    table = only(result("MCM", ood(n=20), ood("DTD", n=7, expected=None), id=id_part))
    assert header(table)[1] == "SUN (partial 20/200) AUROC ↑"
    assert header(table)[7] == "ID (partial 50/1000) Acc. ↑"
    assert "ID: Cats (partial 50/1000, 2 classes). OOD: SUN (partial 20/200), DTD (n = 7)." in report.markdown(table)
    assert r" & \multicolumn{2}{c}{\scriptsize partial 20/200} & \multicolumn{2}{c}{} & " in report.latex(table)
    lines = printed(table, 120).splitlines()
    assert any(line.split() == ["20/200", "50/1000"] for line in lines)


@pytest.mark.parametrize(
    "change",
    [
        {"benchmark": "other"},
        {"encoder": {"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "f" * 64}},
        {"id": IdRow("cats", "Cats", 1000, 1000, 0, "another list", 0.6673)},
        {"id": IdRow("dogs", "Dogs", 1000, 1000, 0, "list of cats", 0.6673)},
        {"id": IdRow("cats", "Cats", 999, 1000, 1, "list of cats", 0.6673)},
        {"ood": (ood(list_digest="another list"),)},
        {"ood": (ood(n=199, skipped=1),)},
        {"ood": (ood("DTD"),)},
        {"ood": (ood(), ood("DTD"))},
        {"classes": {"name": "cats", "count": 2, "digest": "d" * 64}},
        {"conventions": {"at95": "nearest"}},
        {"run": {"seed": 0, "precision": "bf16"}},
        {"run": {"seed": 0, "precision": "fp32", "limit": 50}},
    ],
    ids=lambda change: "-".join(change),
)
def test_incomparable_rows_never_share_a_table(change: dict[str, Any]) -> None:
    rows = [result("A"), dataclasses.replace(result("B"), **change), result("C")]
    assert [[line.name for line in table.lines] for table in report.tables(rows)] == [["A", "C"], ["B"]]


def test_captions_of_similar_tables_state_the_differences() -> None:
    rows = [result("A"), result("B", run={"seed": 0, "precision": "bf16"}), result("C", ood(list_digest="e" * 64))]
    captions = [table.caption[-1] for table in report.tables(rows)]
    assert [text.partition("here: ")[2] for text in captions] == [
        "precision fp32; OOD sun images list of SUN.",
        "precision bf16; OOD sun images list of SUN.",
        "precision fp32; OOD sun images eeeeeeeeeeee.",
    ]


def test_results_of_one_name_are_distinguished() -> None:
    seeds = [result("A", run={"seed": seed, "precision": "fp32"}) for seed in (1, 2)]
    assert [line.name for line in only(*seeds).lines] == ["A (seed 1)", "A (seed 2)"]
    variants = [dataclasses.replace(row, label="a[k=1,t=a, b]") for row in seeds]
    assert [line.name for line in only(*variants).lines] == ["A (k=1, t=a, b, seed 1)", "A (k=1, t=a, b, seed 2)"]
    sources = [result("A", source="x"), result("A", source="y")]
    assert [line.name for line in only(*sources).lines] == ["A (source x)", "A (source y)"]
    prompts = [result("A", templates={"digest": "x"}), result("A", templates={"digest": "y"})]
    assert all(re.fullmatch(r"A \(result [0-9a-f]{8}\)", line.name) for line in only(*prompts).lines)


def test_a_row_repeated_counts_once_and_the_newest_stays() -> None:
    rows = [
        result("A", created="2024-01-02", seconds={"score": 2.0}),
        result("A", created="2024-01-01"),
        result("B", created="2024-01-01"),
    ]
    assert [(row[0], row[-1]) for row in cells(only(*rows))] == [("A", "2.00"), ("B", "1.50")]


def test_failed_results_are_in_their_table_with_the_reason() -> None:
    table = only(result("MCM"), failed("ZOC", "no\n weights_%"), result("MSP"))
    assert cells(table)[1] == ["ZOC", "-", "-", "-", "-"]
    assert report.markdown(table).endswith("\nZOC failed: no weights\\_%\n")
    assert r"ZOC failed: no weights\_\%" in report.latex(table)
    assert "ZOC failed: no weights_%" in printed(table, 80)
    assert "ZOC & -- & -- & -- & --" in report.latex(table)


def test_failed_results_with_other_facts_have_a_separate_table() -> None:
    rows = [result("MCM"), failed("ZOC", run={"seed": 0, "precision": "bf16"}), failed("ODIN", benchmark="other")]
    assert [[line.name for line in table.lines] for table in report.tables(rows)] == [["MCM"], ["ZOC"], ["ODIN"]]
    assert cells(only(failed())) == [["ZOC", "-", "-"]]


def test_a_failure_followed_by_success_is_omitted() -> None:
    then, now = "2024-01-01T00:00:00", "2024-01-02T00:00:00"
    assert [line.name for line in only(failed("A", created=then), result("A", created=now)).lines] == ["A"]
    assert len(only(result("A", created=then), failed("A", created=now)).notes) == 1


def test_nine_sets_are_cut_into_panels() -> None:
    sets = [ood(f"ImageNet-{i}", 0.9, i / 100) for i in range(1, 10)]
    table = only(result("A", *sets), result("B", *sets))
    text = report.latex(table)
    assert text.count(r"\begin{tabular}") == 2
    assert [len(re.findall(rf"{{c}}{{ImageNet-{i}}}", text)) for i in range(1, 10)] == [1] * 9
    assert len(header(table)) == 1 + 18 + 2 + 2
    for width in (40, 80, 120, 200):
        lines = printed(table, width).splitlines()
        assert max(map(len, lines)) <= width
        rows = [line.split() for line in lines if re.match(r"A +[0-9]", line)]
        numbers = [number for row in rows for number in row[1:]]
        assert numbers[1:18:2] == [f"{i}.00*" for i in range(1, 10)]  # equal numbers are all the best
        assert numbers[18:] == ["90.00*", "5.00*", "66.73", "1.50"]


def test_narrow_terminal_folds_names_not_numbers() -> None:
    table = only(result("Energy", label="energy[scale=1,templates=a long name of a prompt set]"))
    lines = printed(table, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.split()[-4:] == ["90.00", "40.00", "66.73", "1.50"] for line in lines)


def test_special_characters_in_latex() -> None:
    row = next(line for line in report.latex(only(result(NASTY))).splitlines() if r"A\&B" in line)
    assert row.startswith(
        r"\raggedright A\&B \%c \$d \#e f\_g \{h\} \textasciitilde{}i \textasciicircum{}j \textbackslash{}k "
        r"\textless{}l\textgreater{} {[}m{]} {*}n{*} \textbar{}o\textbar{} -{}-p `{}`q'{}' é & 90.00"
    )


def test_special_characters_in_markdown() -> None:
    assert r"| a\|b \*c\* \_d\_\\n\<e\> \`f\` \\g |" in report.markdown(only(result("a|b *c* _d_\n<e> `f` \\g")))


def test_csv_has_the_exact_fractions() -> None:
    first = result("MCM", ood("SUN", 1 / 3, 0.1 + 0.2), ood("DTD", 2 / 3, 1e-17), parameters={"text": 'é, "x"', "k": 1})
    second = result("MSP", benchmark="other", accuracy=None)
    text = report.csv(report.tables([first, second, failed("ZOC", "a,\nb", benchmark="other")]))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["mcm", "msp", "zoc"]
    assert [row["table"] for row in rows] == ["1", "2", "2"]
    assert float(rows[0]["ood.sun.auroc"]) == 1 / 3
    assert float(rows[0]["ood.sun.fpr95"]) == 0.1 + 0.2
    assert float(rows[0]["ood.dtd.fpr95"]) == 1e-17
    assert float(rows[0]["mean.auroc"]) == (1 / 3 + 2 / 3) / 2
    assert json.loads(rows[0]["parameters"]) == first.parameters
    assert rows[0]["row.digest"] == first.digest
    assert (rows[0]["encoder"], rows[0]["weights"]) == ("ViT-B-16/openai", "0123456789abcdef" * 4)
    assert (rows[1]["id.accuracy"], rows[1]["ood.dtd.auroc"]) == ("", "")
    assert (rows[2]["status"], rows[2]["error"], rows[2]["ood.sun.auroc"]) == ("failed", r"a,\nb", "")


def test_no_rows() -> None:
    assert report.tables([]) == []


def test_importing_is_light() -> None:
    code = "import oodbench.report, sys; assert not {'torch','pandas','numpy','rich','mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    sets = [ood(f"{NASTY} {i}", n=3, group="near" if i % 2 else "far") for i in range(4)]
    documents = [
        only(
            result(NASTY, *sets, benchmark_title=NASTY), result("[x]", *sets), result("*", *sets), failed(NASTY, NASTY)
        ),
        only(*THREE),
        only(result("MCM", *(ood(f"ImageNet-{i}") for i in range(9)))),
    ]
    body = "\n".join(report.latex(table) for table in documents)
    source = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "report.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
