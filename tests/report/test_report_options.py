"""Selection and order of results in a report, and its numbers one per line."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import oodbench.report as report
from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.method import Access
from oodbench.report.options import TableOptions, check, parse
from oodbench.report.output import OutputOptions, build_tables, check_request
from oodbench.report.tables.published import PublishedValue, Quote, with_quotes
from oodbench.results import IdRow, Result, SetRow, frame
from tests.report.stream_rows import on, stream


def ood(name: str, auroc: float, fpr95: float = 0.4, group: str = "") -> SetRow:
    intervals = {"auroc": (auroc - 0.01, auroc + 0.01)}
    return SetRow(name, name.upper(), group, 200, 200, 0, name, auroc, fpr95, 0.5, 0.6, 0.7, 0.0, intervals)


def row(method: str, *aurocs: float, **changes: Any) -> Result:
    """A result on the sets a, b, ... with these AUROCs; FPR95 is half of what is missing."""
    sets = tuple(ood(chr(97 + i), auroc, (1 - auroc) / 2) for i, auroc in enumerate(aurocs))
    plain = Result(
        method=method,
        label=method,
        title=method.upper(),
        parameters={},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "architecture": "ViT-B-16"},
        id=IdRow("cats", "Cats", 100, 100, 0, "cats", 0.5),
        ood=sets,
        conventions={"at95": "first"},
        classes={"name": "cats", "count": 2},
        templates={},
        files={},
        run={"seed": 0, "precision": "fp32"},
        source="s",
        versions={},
        commit=None,
        scores={},
        access=Access().plain(),
        seconds={"score": 1.5},
    )
    return dataclasses.replace(plain, **changes)


def failed(method: str) -> Result:
    return dataclasses.replace(row(method), status="failed", error="no weights")


def trained(one: Result) -> Result:
    return dataclasses.replace(one, access=Access(other_data=True).plain())


def names(table: report.Table) -> list[str]:
    return [line.name for line in table.lines]


EVERY = (
    row("m1", 0.7, 0.9),
    failed("m2"),
    row("m3", 0.9, 0.8),
    row("m4", 0.5, 0.99, id=IdRow("cats", "Cats", 100, 100, 0, "cats", None), seconds={"score": 9.0}),
    row("m5", 0.9, 0.8, id=IdRow("cats", "Cats", 100, 100, 0, "cats", 0.9), seconds={"score": 0.1}),
    trained(row("m6", 0.6, 0.6)),
)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"sort": "auroc"}, ["M3", "M5", "M1", "M4", "M2"]),  # equal averages keep their order; failed last
        ({"sort": "fpr95"}, ["M3", "M5", "M1", "M4", "M2"]),
        ({"sort": "auroc", "sets": "b"}, ["M4", "M1", "M3", "M5", "M2"]),
        ({"sort": "auroc", "metrics": "fpr95"}, ["M3", "M5", "M1", "M4", "M2"]),  # a metric that is not shown
        ({"sort": "accuracy"}, ["M5", "M1", "M3", "M4", "M2"]),
        ({"sort": "seconds"}, ["M5", "M1", "M3", "M4", "M2"]),  # the fastest first
        ({"sort": "fpr95", "percent": False, "decimals": 0}, ["M3", "M5", "M1", "M4", "M2"]),  # not by printed digits
        ({"methods": "m4,m3", "sort": "auroc"}, ["M3", "M4"]),
        ({"methods": "m4,m3"}, ["M4", "M3"]),
        ({"top": 2}, ["M3", "M5"]),
        ({"top": 1, "sort": "accuracy"}, ["M5"]),
        ({"top": 5, "sort": "seconds"}, ["M5", "M1", "M3", "M4", "M2"]),
        ({"top": 1}, ["M3", "M5"]),  # equal to the last one
    ],
)
def test_lines_are_sorted_by_the_average_over_the_sets_shown(options: dict[str, Any], shown: list[str]) -> None:
    (table,) = report.tables(EVERY[:5], parse(options))
    assert names(table) == shown


def test_the_best_of_each_group_stay_and_marks_are_those_of_the_whole_table() -> None:
    (whole,) = report.tables(EVERY)
    (table,) = report.tables(EVERY, TableOptions(top=1, sort="auroc"))
    assert [(line.section, line.name) for line in table.lines] == [
        ("Zero-shot", "M3"),
        ("Zero-shot", "M5"),
        ("Trained", "M6"),
    ]
    assert table.lines[0].cells == next(line.cells for line in whole.lines if line.name == "M3")
    assert not any(cell.mark == "best" for cell in table.lines[0].cells[1])  # M4 is the best on b, and left out
    shown = "Shown: the best 1 of each group by average AUROC, with all that equal the last of these."
    for sentences in (table.caption, table.brief):
        assert {shown, "3 of 6 lines are left out, but count for best and second."} <= set(sentences)
    (alone,) = report.tables(EVERY[:5], TableOptions(top=9, sort="accuracy", sets=("a",)))
    assert "Sorted by ID accuracy." in alone.caption


def test_the_own_method_is_always_shown() -> None:
    (table,) = report.tables(EVERY, TableOptions(top=2, sort="auroc", ours=("m1",)))
    assert names(table) == ["M6", "M3", "M5", "M1"]  # its group is the last one
    assert "Shown: the best 2 of each group by average AUROC and our own method." in table.caption


def test_a_value_that_is_not_a_number_comes_last() -> None:
    (table,) = report.tables([row("nan", math.nan, 0.9), *EVERY[:1]], TableOptions(sort="auroc"))
    assert names(table) == ["M1", "NAN"]


def test_published_lines_are_sorted_among_themselves() -> None:
    def quote(key: str, **mean: float) -> Quote:
        cells = {"mean": {metric: PublishedValue(value, "paper", "high") for metric, value in mean.items()}}
        key += ":x"
        return Quote(key, key, key, "toy", "paper", "high", cells, {}, architecture="ViT-B-16")

    options = TableOptions(sort="fpr95", top=1)
    quotes = [quote("none", auroc=0.99), quote("worse", fpr95=0.3), quote("other", fpr95_ood=0.1)]
    tables = with_quotes(report.tables(EVERY[:5], options), [*quotes, quote("better", fpr95=0.2)], options)
    assert [name.partition(":")[0] for name in names(tables[0])] == ["M3", "M5", "better", "worse", "none", "other"]


def test_parts_of_streams_have_the_lines_of_their_table() -> None:
    rows = [
        stream(f"s{i}", "shuffled", 0, on("sun", (value, 0.1, 0.1), ((1 - value, 0.1, 0.1), (0.5, 0.1, 0.1))))
        for i, value in enumerate((0.7, 0.9, 0.8))
    ]
    tables = report.tables(rows, TableOptions(stream_parts=True, top=2))
    assert len(tables) == 3
    assert len({tuple(names(table)) for table in tables}) == 1 and names(tables[0])[0].startswith("S1")
    by = [text for table in tables for text in table.caption if text.startswith("Shown: ")]
    assert by == [f"Shown: the best 2 by AUROC{x}." for x in ("", *[" over all images of the streams"] * 2)]


OTHERS = (
    EVERY[0],
    row("m3", 0.5, 0.5, encoder={"name": "RN50/openai", "slug": "RN50-openai", "architecture": "RN50"}),
    row("m4", 0.5, 0.5, benchmark="other", id=IdRow("dogs", "Dogs", 100, 100, 0, "dogs", 0.5)),
)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"encoders": "RN50/openai"}, {"M3"}),
        ({"encoders": "RN50-openai"}, {"M3"}),
        ({"encoders": "RN50"}, {"M3"}),
        ({"encoders": "ViT-B/16"}, {"M1", "M4"}),  # OpenAI's spelling
        ({"encoders": ["RN50", "ViT-B-16"]}, {"M1", "M3", "M4"}),
        ({"ids": "other"}, {"M4"}),
        ({"ids": "dogs, toy"}, {"M1", "M3", "M4"}),
        ({"ids": "cats", "encoders": "ViT-B-16/openai"}, {"M1"}),
    ],
)
def test_encoders_and_benchmarks_are_chosen(options: dict[str, Any], shown: set[str]) -> None:
    chosen = parse(options)
    check(chosen, OTHERS)
    assert {name for table in report.tables(OTHERS, chosen) for name in names(table)} == shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoders": "RN5O"}, "no results of encoder 'RN5O'; did you mean 'RN50'"),
        ({"ids": "dgos"}, "no results with ID set or benchmark 'dgos'; did you mean 'dogs'"),
        ({"sort": "auroc_"}, "no metric 'auroc_'; did you mean 'auroc'"),
        ({"top": 0}, "--top must be a whole number of at least 1, not 0"),
        (
            {"methods": "m4", "encoders": "RN50"},
            "no result matches --methods m4 --encoder RN50; there are: m4 on other, Vi",
        ),
        ({"metrics": ""}, "--metrics is empty"),
    ],
)
def test_names_without_results_are_reported(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="^" + said.replace("(", r"\(")):
        check(parse(options), OTHERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, one in enumerate((*EVERY, *OTHERS[1:])):
        path = tmp_path / "runs" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(one.to_json())
    return tmp_path


def call(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["report", "--results", str(folder), *arguments])


@pytest.mark.parametrize("form", ["", "latex", "markdown", "csv", "html"])
def test_every_format_shows_the_same_lines_in_the_same_order(folder: Path, form: str, tmp_path: Path) -> None:
    file = tmp_path / "out"
    where = ("--format", form, *(("--output", str(file), "--no-figures") if form == "html" else ())) if form else ()
    done = call(folder, "--id", "toy", "--encoder", "ViT-B-16", "--sort", "auroc", "--top", "3", "--no-tests", *where)
    assert done.exit_code == 0, done.output
    text = file.read_text().partition("<tbody")[2] if form == "html" else done.output
    places = [text.find(name) for name in ("M3", "M5", "M1", "M6")]
    assert places == sorted(places) and -1 not in places
    assert "M4" not in text and "M2" not in text


def test_explain_and_verify_use_the_selection(folder: Path) -> None:
    both = call(folder, "--explain", "m3", "a").output
    one = call(folder, "--explain", "m3", "a", "--encoder", "RN50").output
    assert both.count("The cell: a") == 2 and one.count("The cell: a") == 1 and "RN50/openai" in one
    assert len(call(folder, "--verify", "--id", "other").output.splitlines()) == 3  # a result, its problem, the sum
    for more, said in (
        (("--id", "othr"), "did you mean 'other'"),
        (("--ood", "q"), "no results with OOD set 'q'"),
        (("--format", "x", "--cite"), "leave out --format, --cite"),
        (("--sort", "auroc"), "leave out --sort"),
    ):
        for single in (("--verify",), ("--explain", "m3", "a")):
            assert said in call(folder, *single, *more).stderr
    assert "leave out --explain" in call(folder, "--verify", "--explain", "m3", "a").stderr


def test_a_missing_folder_is_reported_first(tmp_path: Path) -> None:
    for more in ((), ("--format", "figures"), ("--verify", "--sort", "x"), ("--compare", "x", "--explain", "a", "b")):
        done = call(tmp_path / "none", *more)
        assert done.stderr.startswith("error: no results folder ") and len(done.stderr.splitlines()) == 1


def test_long_csv_has_each_number_once(folder: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(call(folder, "--format", "csv", "--long").output)))
    of_m1 = [line for line in lines if line["method"] == "m1"]
    known = {(line["set"], line["group"], line["metric"]): line for line in of_m1}
    assert len(known) == len(of_m1) == 5 * 3 + 2  # two sets and their mean, accuracy, seconds
    assert float(known["mean", "", "auroc"]["value"]) == pytest.approx(0.8) and known["mean", "", "auroc"]["low"] == ""
    cell = known["a", "", "auroc"]
    assert [float(cell[k]) for k in ("value", "low", "high", "n", "seed")] == [0.7, 0.69, 0.71, 200, 0]
    assert known["cats", "", "accuracy"]["n"] == "100" and known["", "", "seconds.score"]["value"] == "1.5"
    assert cell["row.digest"] == EVERY[0].digest and cell["encoder"] == "ViT-B-16/openai"
    (of_failed,) = [line for line in lines if line["method"] == "m2"]
    assert (of_failed["metric"], of_failed["value"], of_failed["status"]) == ("failed", "", "failed")
    assert "--long requires --format csv" in call(folder, "--long").stderr


def test_long_and_wide_records_and_the_frame_of_a_run_agree(tmp_path: Path) -> None:
    near = dataclasses.replace(EVERY[0], ood=(ood("a", 0.7, group="near"), ood("b", 0.9, group="far")))
    (wide,) = csv.DictReader(io.StringIO(report.csv(report.tables([near]))))
    report.parquet(report.tables([near]), tmp_path / "long.parquet", long=True)
    long = pd.read_parquet(tmp_path / "long.parquet")
    for one in long[long.metric.isin(["auroc", "fpr95", "fpr95_ood", "aupr_in", "aupr_out"])].itertuples():
        place = ".".join(reversed(one.set.split())) if "mean" in one.set else f"ood.{one.set}"
        assert float(wide[f"{place}.{one.metric}"]) == one.value
    ran = frame([near])
    sets = long[long.set.isin(["a", "b"])]
    assert list(sets.value) == list(ran[ran.ood != ""].value) and list(sets.group) == list(ran[ran.ood != ""].group)


def test_lines_of_a_transposed_table_name_near_and_far() -> None:
    grouped = dataclasses.replace(
        EVERY[0], ood=tuple(ood(name, 0.5, group=g) for name, g in (("a", "near"), ("b", "far")))
    )
    (table,) = report.tables([grouped], TableOptions(metrics=("auroc",)))
    sections = [line.section for line in report.transposed(table).lines]
    assert sections == ["Near OOD: A", "Far OOD: B", "Average"]


def seeds(method: str, *values: float, **changes: Any) -> list[Result]:
    runs = ({"seed": seed, "precision": "fp32"} for seed in range(len(values)))
    return [row(method, x, x, run=run, **changes) for x, run in zip(values, runs, strict=True)]


def test_averages_over_seeds_are_sorted_in_every_format(tmp_path: Path) -> None:
    lucky, steady = seeds("lucky", 0.95, 0.7, 0.7), seeds("steady", 0.9, 0.9, 0.9)
    for number, one in enumerate((*lucky, *steady)):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / f"{number}.json").write_text(one.to_json())
    options = ("--seeds", "--sort", "auroc", "--top", "1", "--no-tests")
    for form in (("--format", "csv"), ("--format", "csv", "--long"), ("--format", "markdown"), ()):
        text = call(tmp_path, *options, *form).output
        assert "LUCKY" not in text and ("STEADY, 3 seeds" in text) is ("csv" not in form), form
    names = {
        flags: [
            record["name"] for record in csv.DictReader(io.StringIO(call(tmp_path, "--format", "csv", *flags).stdout))
        ]
        for flags in ((), options[:1], options[:3], (*options[:3], "--rename", "steady=Ours"))
    }
    each = [f"LUCKY (seed {i})" for i in range(3)] + [f"STEADY (seed {i})" for i in range(3)]
    assert names[()] == names["--seeds",] == each and names[options[:3]] == each[3:] + each[:3]
    assert [*names.values()][3][:3] == [f"Ours (seed {i})" for i in range(3)]


def test_averages_that_differ_by_rounding_are_equal() -> None:
    rows = [row("m1", 0.1, 0.2, 0.3), row("m2", 0.3, 0.2, 0.1), row("m3", 0.2, 0.1, 0.3), row("m4", 0.1, 0.1, 0.1)]
    assert sum((0.1, 0.2, 0.3)) != sum((0.3, 0.2, 0.1))  # as floats
    (table,) = report.tables(rows, TableOptions(top=1, sort="auroc"))
    assert names(table) == ["M1", "M2", "M3"]
    zero = [row("m1", 1.0), row("m2", 1.0), row("m3", 0.9), failed("m4"), failed("m5")]
    for top, shown in ((1, ["M1", "M2"]), (2, ["M1", "M2"]), (4, ["M1", "M2", "M3", "M4"])):  # FPR95 of 0; failed ones
        (table,) = report.tables(zero, TableOptions(top=top, sort="fpr95"))
        assert names(table) == shown


def test_measured_lines_are_not_below_the_heading_of_quoted_ones() -> None:
    one = Quote("q:x", "q", "Q", "toy", "paper", "high", {}, {}, architecture="ViT-B-16")
    options = TableOptions(group="none", ours=("m1",), top=2, metrics=("seconds",))
    (table,) = with_quotes(report.tables(EVERY[:5], options), [one], options)
    assert [(line.section, line.ours) for line in table.lines] == [
        *[("", False)] * 2,
        ("", True),
        ("Quoted, not run here", False),
    ]
    assert "2 of 5 lines are left out." in table.caption  # nothing is marked in seconds
    assert not [text for text in table.caption if text.startswith("Nothing")]


@pytest.mark.parametrize(
    ("ours", "said"),
    [("coop[K=4]", "method."), ("coop[K=4,seed=1]", "method."), ("coop[K=4], m1", "methods.")],
)
def test_own_methods_may_be_named_without_the_seed_of_their_training(ours: str, said: str) -> None:
    weights = [{"digest": f"d{seed}", "recipe": {"seed": seed, "id": {"shots": 4}}} for seed in (1, 2)]
    coop = [row("coop", 0.8, label=f"coop[K=4,seed={seed}]", weights=w) for seed, w in enumerate(weights, 1)]
    rows = [*coop, row("m1", 0.5), row("m3", 0.7), row("m4", 0.6)]
    request, chosen = OutputOptions(tests=False), parse({"ours": ours, "top": 1, "seeds": True, "group": "none"})
    check_request(request, chosen, rows)
    (table,) = build_tables(rows, {}, chosen, request)
    assert next(line.name for line in table.lines if line.ours) == "COOP (K=4), 2 seeds"
    assert [text for text in table.brief if text.endswith(f"by AUROC and our own {said}")]
