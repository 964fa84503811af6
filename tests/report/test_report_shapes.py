"""Shapes of a report: options, equal prompts, seeds, sections, data files, BibTeX, and LaTeX that compiles."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import oodbench.report as report
from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.method import Access
from oodbench.report.formats.bibtex import _parsed, bibtex, works
from oodbench.report.options import TableOptions, check
from oodbench.results import IdRow, Result, SetRow

HOSTILE = r"a_b & 50% \input{x} <script> =1+1"
GOLDEN = Path(__file__).parent / "golden"


def ood(name: str, auroc: float = 0.9, fpr95: float = 0.4, group: str = "", **changes: Any) -> SetRow:
    row = SetRow(name, name.upper(), group, 200, 200, 0, f"list of {name}", auroc, fpr95, 0.5, 0.6, 0.7, 0.0)
    return dataclasses.replace(row, **changes)


def row(
    method: str = "mcm", *sets: SetRow, prompts: str = "", given: str = "", seed: int = 0, **changes: Any
) -> Result:
    """A row; `prompts` are its own, `given` those of --templates."""
    name = given or prompts
    plain = Result(
        method=method,
        label=f"{method}[templates={given}]" if given else method,
        title=method.upper(),
        parameters={"templates": name} if name else {},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "0123456789abcdef" * 4},
        id=IdRow("cats", "Cats", 1000, 1000, 0, "list of cats", 0.6673),
        ood=sets or (ood("sun"), ood("dtd")),
        conventions={"at95": "first"},
        classes={"name": "cats", "count": 2, "digest": "c" * 64},
        templates={"name": name, "count": 1, "digest": f"digest of {name}"} if name else {},
        files={},
        run={"seed": seed, "precision": "fp32", "limit": None, "device": "cpu"},
        source="s",
        versions={},
        commit=None,
        scores={},
        access=Access().plain(),
        seconds={"score": 1.5},
    )
    return dataclasses.replace(plain, **changes)


def lay(folder: Path, *rows: Result) -> Path:
    """Rows as files; the results folder."""
    for number, one in enumerate(rows):
        path = folder / "runs" / one.benchmark / "x" / f"{one.method}-{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.to_json())
    return folder


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def names(table: report.Table) -> list[str]:
    return [line.name for line in table.lines]


def texts(table: report.Table) -> list[list[str]]:
    return [[cell.plain for cells in line.cells for cell in cells] for line in table.lines]


ROWS = (
    row("mcm", ood("sun", 0.951, 0.2), ood("dtd", 0.8, 0.5)),
    row("zoc", ood("sun", 0.9, 0.3), ood("dtd", 0.85, 0.6)),
)


def test_methods_sets_and_metrics_are_chosen_and_ordered() -> None:
    options = TableOptions(methods=("zoc", "mcm"), sets=("dtd", "sun"), metrics=("fpr95", "auroc"))
    (table,) = report.tables(ROWS, options)
    assert names(table) == ["ZOC", "MCM"]
    assert [b.title for b in table.column_groups] == ["DTD", "SUN", "Average"]
    assert texts(table)[1] == ["50.00", "80.00", "20.00", "95.10", "35.00", "87.55"]
    (one,) = report.tables(ROWS, TableOptions(sets=("dtd",)))
    assert [b.title for b in one.column_groups] == ["DTD", "ID", ""]
    assert "Shown: 1 of the 2 OOD sets of the benchmark; averages are over these." in one.caption


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        (TableOptions(decimals=1, metrics=("auroc",)), ["95.1", "80.0", "87.5"]),
        (TableOptions(percent=False, metrics=("auroc",)), ["0.9510", "0.8000", "0.8755"]),
        (TableOptions(percent=False, decimals=2, metrics=("auroc",)), ["0.95", "0.80", "0.88"]),
        (TableOptions(metrics=("aupr_out", "aupr_in")), ["70.00", "60.00", "70.00", "60.00", "70.00", "60.00"]),
        (TableOptions(metrics=("accuracy",)), ["66.73"]),
    ],
)
def test_decimals_fractions_and_other_metrics(options: TableOptions, cells: list[str]) -> None:
    (table,) = report.tables(ROWS, options)
    assert texts(table)[0] == cells


def test_captions_name_what_is_shown() -> None:
    (table,) = report.tables(ROWS, TableOptions(metrics=("fpr95_ood", "aupr_in"), percent=False))
    said = " ".join(table.caption)
    assert said.startswith(
        "FPR95 and AUPR-in as fractions. FPR95-OOD (o): fraction of ID images rejected when at least 95 %"
    )
    assert "AUPR-in has ID as its positive class" in said and "Seconds" not in said and "ID positive" not in said


def test_all_wrong_options_are_reported_at_once() -> None:
    options = TableOptions(
        methods=("mmc",), sets=("sum",), metrics=("aroc",), decimals=99, intervals="full", seeds=True
    )
    with pytest.raises(UserError) as error:
        check(options, [row("mcm", ood("sun"))])
    text = str(error.value)
    for part in ("'mmc'; did you mean 'mcm'", "'sum'; did you mean 'sun'", "'auroc'", "not 99", "'full'", "choose one"):
        assert part in text
    assert len(text.splitlines()) == 6


def test_intervals_are_printed_where_a_row_has_them() -> None:
    sets = (ood("sun", intervals={"auroc": (0.88, 0.93)}), ood("dtd"))
    new = row("mcm", *sets, mean_intervals={"": {"auroc": (0.87, 0.94)}}, uncertainty={"level": 0.9})
    rows = [new, row("old")]
    (table,) = report.tables(rows, TableOptions(metrics=("auroc",), intervals="half"))
    assert texts(table) == [["90.00 ± 2.50", "90.00", "90.00 ± 3.50"], ["90.00", "90.00", "90.00"]]
    assert any("90 % interval" in part for part in table.caption)
    (table,) = report.tables(rows, TableOptions(metrics=("auroc",), intervals="range"))
    assert texts(table)[0] == ["90.00 [88.00, 93.00]", "90.00", "90.00 [87.00, 94.00]"]
    (table,) = report.tables(rows, TableOptions(metrics=("auroc",), intervals="half", sets=("sun", "dtd")))
    assert texts(table)[0][2] == "90.00 ± 3.50"
    assert r"$\pm$2.50" in report.latex(table) and "± 2.50" in report.markdown(table)


def test_seeds_become_one_line() -> None:
    values = [0.9, 0.92, 0.97]
    rows = [row("mcm", ood("sun", v), ood("dtd"), seed=i) for i, v in enumerate(values)]
    (table,) = report.tables([*rows, row("zoc")], TableOptions(seeds=True, metrics=("auroc",)))
    assert names(table) == ["MCM, 3 seeds", "ZOC"]
    deviation = 100 * statistics.stdev(values)
    assert texts(table)[0][0] == f"{100 * statistics.fmean(values):.2f} ± {deviation:.2f}" == "93.00 ± 3.61"
    assert texts(table)[1] == ["90.00", "90.00", "90.00"]
    other = [dataclasses.replace(rows[1], parameters={"k": 2})]
    assert len(report.tables([rows[0], *other], TableOptions(seeds=True))[0].lines) == 2
    trained = [
        dataclasses.replace(r, weights={"name": f"{i}.pt", "digest": str(i), "recipe": {"seed": i, "steps": 5}})
        for i, r in enumerate(rows)
    ]
    assert names(report.tables(trained, TableOptions(seeds=True))[0]) == ["MCM, 3 seeds"]


def test_trained_methods_have_a_separate_section() -> None:
    trained = row("mine", weights={"name": "w", "digest": "d", "recipe": {}}, access={})
    failed = row("clipn", access={}, status="failed", error="no weights")
    failed = dataclasses.replace(failed, ood=())
    (table,) = report.tables([trained, row("mcm"), failed], TableOptions(group="trained"))
    assert [(line.section, line.name) for line in table.lines] == [
        ("Training-free", "MCM"),
        ("Trained", "MINE"),
        ("Trained", "CLIPN"),
    ]
    assert r"\multicolumn{9}{l}{\textit{Trained}} \\" in report.latex(table).replace("{7}", "{9}")
    assert "| *Trained* |" in report.markdown(table)


def test_transposed_tables_hold_the_same_cells() -> None:
    (table,) = report.tables(ROWS)
    turned = report.transposed(table)
    assert [c for line in zip(*texts(turned), strict=True) for c in line] == [c for line in texts(table) for c in line]
    assert [(line.section, line.name) for line in turned.lines][:3] == [
        ("SUN", "AUROC ↑"),
        ("SUN", "FPR95 ↓"),
        ("DTD", "AUROC ↑"),
    ]
    assert [b.columns[0].title for b in turned.column_groups] == ["MCM", "ZOC"]
    assert r"AUROC $\uparrow$ & \textbf{95.10}" in report.latex(turned)


def test_equal_prompts_have_a_separate_table() -> None:
    rows = [
        row("mcm", prompts="mcm"),
        row("msp", prompts="simple"),
        row("neglabel", prompts="nice"),
        row("bare"),
        row("mcm", given="simple"),
        row("neglabel", given="simple"),
        dataclasses.replace(row("zoc", prompts="photo"), label="zoc[templates=photo]"),
    ]
    own, equal = report.tables(rows)
    assert own.title.endswith("each method's own prompts")
    assert names(own) == ["MCM", "MSP", "NEGLABEL", "BARE", "ZOC (templates=photo)"]
    assert equal.title.endswith("equal prompts for all methods: simple")
    assert names(equal) == ["MSP", "BARE", "MCM", "NEGLABEL"]
    assert equal.notes == ("Not run with these prompts: ZOC.",)
    assert own.column_groups == equal.column_groups
    (one,) = report.tables([row("mcm", prompts="mcm"), row("mcm", given="simple")])
    assert names(one) == ["MCM", "MCM (templates=simple)"]
    (only,) = report.tables([row("mcm", given="simple"), row("msp", prompts="simple")])
    assert "equal prompts" in only.title


def test_results_not_significantly_different_from_the_best_are_marked() -> None:
    grouped = (ood("sun", group="near"), ood("dtd", group="far"), ood("mnist", group="far"))
    rows = [row("mcm", *grouped), row("zoc", *(dataclasses.replace(s, auroc=0.8) for s in grouped))]
    both = frozenset(r.digest for r in rows)
    alike = report.NotSignificantlyDifferent({"sun": {"auroc": both}}, {"far": {"auroc": both}, "": {"fpr95": both}})
    asked: list[Any] = []
    (table,) = report.tables(rows, TableOptions(), lambda rows, sets: asked.append((rows, sets)) or alike)  # type: ignore[func-returns-value]
    assert [len(rows) for rows, _ in asked] == [2]
    assert texts(table)[1] == [
        *("80.00†", "40.00", "80.00", "40.00", "80.00", "40.00", "80.00†", "40.00", "80.00", "40.00"),
        *("66.73", "1.50"),
    ]
    assert not any("†" in text for text in texts(table)[0])
    assert r"\underline{80.00}\rlap{$^{\dagger}$}" in report.latex(table)
    assert "not significantly different from the best" in report.markdown(table)


def test_hostile_names_are_literal(tmp_path: Path) -> None:
    rows = [row("x", title=HOSTILE, benchmark_title=HOSTILE), row("y", title="=1+1"), row("z", title="@SUM(A1)")]
    (table,) = report.tables(rows)
    assert (
        r"a\_b \& 50\% \textbackslash{}input\{x\} \textless{}script\textgreater{} =1+1 & \textbf{90.00}"
        in report.latex(table)
    )
    assert r"| a\_b \& 50% \\input{x} \<script\> =1+1 |" in report.markdown(table)
    found = [line["name"] for line in csv.DictReader(io.StringIO(report.csv([table])))]
    assert found == [HOSTILE, "'=1+1", "'@SUM(A1)"]
    report.parquet([table], tmp_path / "t.parquet")
    from pyarrow import parquet

    plain = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [line["name"] for line in plain] == [HOSTILE, "=1+1", "@SUM(A1)"]
    assert [line["ood.sun.auroc"] for line in plain] == [0.9] * 3


def test_parquet_and_csv_hold_the_same(tmp_path: Path) -> None:
    failed = dataclasses.replace(row("zoc"), ood=(), status="failed", error="no weights")
    results = lay(
        tmp_path, *ROWS, failed, row("odd", benchmark="other", id=dataclasses.replace(ROWS[0].id, accuracy=None))
    )
    file = tmp_path / "t.parquet"
    assert call("--results", results, "--format", "parquet", "--output", file).exit_code == 0
    from pyarrow import parquet

    out = call("--results", results, "--format", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(out)))
    for line, record in zip(lines, parquet.read_table(file).to_pylist(), strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in record.items()}
    few = call("--results", results, "--format", "csv", "--ood", "dtd", "--metrics", "auroc", "--methods", "mcm").stdout
    (line,) = csv.DictReader(io.StringIO(few))
    assert (line["ood.dtd.auroc"], line["mean.auroc"]) == ("0.8", "0.8")
    assert not [k for k in line if "sun" in k or "fpr95" in k]


@pytest.mark.parametrize(
    ("citation", "key", "parts"),
    [
        (
            "Wang et al., ICCV 2023, arXiv:2308.12213",
            "wang2023-2308.12213",
            ["@inproceedings", "author = {Wang and others}", "{ICCV}", "{2023}", "{2308.12213}", "{{Its title}}"],
        ),
        ("Xiao et al., CVPR 2010", "xiao2010-cvpr", ["{{Its title}}", "booktitle = {CVPR}"]),
        ("Krause et al., 3dRR 2013", "krause2013-3drr", ["booktitle = {3dRR}"]),
        ("LeCun et al., Proc. IEEE 1998", "lecun1998-proc-ieee", ["booktitle = {Proc. IEEE}", "{1998}"]),
        ("Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136", "hendrycks2017-1610.02136", ["{Hendrycks and Gimpel}"]),
        ("Yu et al. (LSUN), arXiv:1506.03365", "yu2015-1506.03365", ["@misc", "{Yu and others}", "year = {2015}"]),
        (
            "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            "krizhevsky2009-learning-multipl",
            ["@misc", "{{Learning Multiple Layers of Features from Tiny Images}}"],
        ),
        ("Van Horn et al., CVPR 2018, arXiv:1707.06642", "vanhorn2018-1707.06642", ["{Van Horn and others}"]),
    ],
)
def test_citations_become_entries(citation: str, key: str, parts: list[str]) -> None:
    work = _parsed(citation, "Its title")  # what a citation says by itself, as that of a user's own method
    text = work.bibtex()
    assert work.key == key and [found.key for found in works(citation)] == [key]
    assert all(part in text for part in parts), text
    assert well_formed(text) == [key]


def well_formed(text: str) -> list[str]:
    """The keys of BibTeX entries; fails when a brace is open or an entry is not a list of fields."""
    keys = []
    for entry in filter(str.strip, re.split(r"^(?=@)", text, flags=re.MULTILINE)):
        depth = 0
        for character in re.sub(r"\\[{}]", "", entry):
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        head, *fields, last = entry.strip().splitlines()
        match = re.fullmatch(r"@(article|inproceedings|misc|techreport)\{([a-z0-9.-]+),", head)
        assert match and last == "}"
        assert all(re.fullmatch(r"  \w+ = \{.+\},", field) for field in fields)
        keys.append(match[2])
    return keys


def test_every_citation_of_the_project_is_well_formed() -> None:
    from oodbench.data import catalog as catalogue
    from oodbench.method import registry

    cited = [d.cite for d in catalogue.datasets().values()] + [m.citation for m in registry.methods().values()]
    found = [work for citation in cited for work in works(citation, "T")]
    assert len(found) > 40
    for work in found:
        assert well_formed(work.bibtex()) == [work.key] and re.fullmatch(r"(19|20)\d\d", work.fields["year"]), work
        assert "others" not in work.fields["author"], work


def test_bib_has_methods_and_datasets_once(tmp_path: Path) -> None:
    sets = (ood("sun"), ood("textures"), ood("places"))
    rows = [row("mcm", *sets), row("mcm", *sets, seed=1), row("msp", *sets)]
    keys = well_formed(bibtex(report.tables(rows)))
    assert keys == [
        *("cimpoi2014-1311.3618", "hendrycks2017-1610.02136", "huang2021-2105.01879"),
        *("ming2022-2211.13445", "xiao2010-cvpr", "zhou2018-tpami"),
    ]
    (table,) = report.tables(rows, TableOptions(cite=True))
    text = report.latex(table)
    assert r"MSP~\cite{hendrycks2017-1610.02136} & " in text
    assert r"SUN~\cite{xiao2010-cvpr,huang2021-2105.01879}" in text
    assert set(re.findall(r"[\w.-]+", " ".join(re.findall(r"\\cite\{([^}]*)\}", text)))) <= set(keys)
    assert call("--results", lay(tmp_path, *rows), "--bib").stdout == bibtex(report.tables(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "latx"], "no format 'latx'; did you mean 'latex'?"),
        (["--format", "parquet"], "name it with --output FILE"),
        (["--standalone"], "--standalone requires --format latex"),
        (["--cite", "--format", "csv"], "--cite requires --format latex"),
        (["--group", "venue"], "--group 'venue' does not exist; known: access, trained, none"),
        (["--quote", "clipn:papr"], "no published result 'clipn:papr'; did you mean 'clipn:paper'?"),
        (["--experiment", "mos"], "give the address with --mlflow URI"),
        (["--output", "/proc/none/x.md"], "cannot write --output"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = call("--results", lay(tmp_path, *ROWS), *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.output


def test_output_equals_the_printed_text(tmp_path: Path) -> None:
    results = lay(tmp_path, *ROWS)
    for form in ("latex", "markdown", "csv"):
        file = tmp_path / f"deep/table.{form}"
        assert call("--results", results, "--format", form, "--output", file).exit_code == 0
        assert file.read_text() == call("--results", results, "--format", form).stdout
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["table.csv", "table.latex", "table.markdown"]


def golden_tables() -> list[report.Table]:
    rows = [
        row("mcm", ood("sun", 0.9457, 0.3759, "near"), ood("dtd", 0.8611, 0.5777, "far"), prompts="mcm"),
        row("zoc", ood("sun", 0.8120, 0.8151, "near"), ood("dtd", 0.7646, 0.989, "far"), title=HOSTILE),
        dataclasses.replace(row("clipn"), ood=(), status="failed", error="no weights_here"),
        row("odin", ood("sun", 0.9, 0.4, "near"), ood("dtd", 0.8, 0.5, "far")),
    ]
    return report.tables([dataclasses.replace(one, access={}) for one in rows])


@pytest.mark.parametrize("form", ["tex", "md"])
def test_golden(form: str) -> None:
    """The whole text. After an intended change, delete the file and run the test again."""
    text = "\n".join((report.latex if form == "tex" else report.markdown)(table) for table in golden_tables())
    file = GOLDEN / f"report.{form}"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        pytest.fail(f"{file} was written: look at it and commit it")
    assert text == file.read_text()


@pytest.mark.slow
def test_the_time_of_a_report_is_in_proportion_to_its_rows(tmp_path: Path) -> None:
    def cpu_seconds(form: str, count: int) -> float:
        rows = (
            row(f"m{i % 100}", ood("sun", (i % 997) / 1000), ood("dtd"), benchmark=f"b{i // 100}", seed=i)
            for i in range(count)
        )
        results = lay(tmp_path / f"{form}-{count}", *rows)
        start = time.process_time()
        done = call("--results", results, "--format", form)
        seconds = time.process_time() - start
        assert done.exit_code == 0 and done.stdout.count(",m99," if form == "csv" else "M99 ") == count // 100
        return seconds

    for form in ("latex", "markdown", "csv"):
        few, many = cpu_seconds(form, 200), cpu_seconds(form, 2000)
        assert many < 20 * few, f"{form}: {few:.2f} s and {many:.2f} s"


@pytest.mark.slow
def test_standalone_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    sets = [ood(name, intervals={"auroc": (0.85, 0.93), "fpr95": (0.3, 0.5)}) for name in ("sun", "textures", "places")]
    rows = [
        row("mcm", *sets, benchmark_title=HOSTILE),
        row("clipn", *sets, title=HOSTILE, weights={"name": "w", "digest": "d", "recipe": {}}),
        row("msp", *sets, seed=3),
        row("zoc", *sets, title="=1+1"),
    ]
    results = lay(tmp_path, *rows)
    shapes: list[list[str]] = [
        ["--cite", "--intervals", "half", "--group", "trained"],
        ["--transpose", "--intervals", "range", "--group", "trained"],
        ["--fraction", "--metrics", "auroc,fpr95,fpr95_ood,aupr_in,aupr_out"],
        ["--seeds", "--decimals", "1"],
    ]
    for number, shape in enumerate(shapes):
        file = tmp_path / f"t{number}.tex"
        done = call("--results", results, "--format", "latex", "--standalone", "--output", file, *shape)
        assert done.exit_code == 0, done.output
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
        made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert made.returncode == 0, made.stdout[-3000:]
        assert "Overfull" not in made.stdout and "too large" not in made.stdout
        if shutil.which("pdftotext"):
            said = subprocess.run(
                ["pdftotext", file.with_suffix(".pdf"), "-"], capture_output=True, text=True, check=True
            )
            plain = re.sub(r"\s+", " ", said.stdout)
            assert r"50% \input{x} <script>" in plain and "=1+1" in plain
        if shutil.which("pdftoppm"):
            subprocess.run(
                ["pdftoppm", "-r", "60", "-png", file.with_suffix(".pdf"), f"t{number}"], cwd=tmp_path, check=True
            )
            assert list(tmp_path.glob(f"t{number}*.png"))


def test_json_of_rows_is_not_touched(tmp_path: Path) -> None:
    results = lay(tmp_path, *ROWS)
    before = {path: path.read_bytes() for path in results.rglob("*.json")}
    call("--results", results, "--format", "latex", "--transpose")
    assert before == {path: path.read_bytes() for path in results.rglob("*.json")}
    assert all(json.loads(text)["digest"] for text in before.values())
