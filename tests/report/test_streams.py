"""Results of test-time adaptation in tables, CSV, figures and DataFrames: separate from others, with their protocol."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import oodbench.report as report
from oodbench.errors import UserError
from oodbench.report.explain import explanation
from oodbench.report.figures import plots
from oodbench.report.figures.write import headings
from oodbench.report.html import FigureSource, render
from oodbench.report.options import TableOptions
from oodbench.report.output import OutputOptions, check_request
from oodbench.report.tables.published import compare_with_published, quote, with_quotes
from oodbench.results import Result, frame, from_json
from tests.report.stream_rows import on, part, shifted, stream
from tests.report.test_report_published import row as mos_row
from tests.report.test_report_shapes import call, lay, names, ood, row, texts

PLAIN = (row("mcm"), row("msp"))
SEEDS = tuple(shifted("tanl", "shuffled", seed, by) for seed, by in enumerate((0.0, 0.01, -0.01)))
HEADINGS = ["AUROC", "FPR95 (i)", "FPR95 (o)"]


def test_streams_have_a_separate_table_after_the_others() -> None:
    results = [SEEDS[0], *PLAIN, *SEEDS[1:], stream("oodd", base="neglabel", label="oodd[base=neglabel]")]
    first, second = report.tables(results)
    assert names(first) == ["MCM", "MSP"] and first.title == "Toy, encoder ViT-B-16/openai"
    assert second.title == "Toy, encoder ViT-B-16/openai, test-time adaptation"
    assert names(second) == [
        "TANL; shuffled, stream seeds 0, 1 and 2",
        "OODD, base NegLabel; shuffled, stream seed 0",
    ]
    assert [c.title for c in first.column_groups[0].columns] == ["AUROC", "FPR95"]
    assert [c.title for c in second.column_groups[0].columns] == HEADINGS
    assert {line.section for line in second.lines} == {""}
    (alone,) = report.tables(results, TableOptions(group="none", methods=("tanl",)))
    assert names(alone) == ["TANL; shuffled"]
    two = [dataclasses.replace(one, benchmark="other") for one in (*PLAIN, *SEEDS)]
    assert [len(t.lines) for t in report.tables([*results, *two])] == [2, 2, 2, 1]


def test_numbers_are_averages_over_seeds_with_their_deviation() -> None:
    """0.98, 0.99, 0.97 have the mean 0.98 and the sample standard deviation 0.01; FPR95s fall as AUROC rises."""
    (table,) = report.tables(SEEDS)
    assert texts(table) == [
        [
            *("98.00 ± 1.00", "10.00 ± 1.00", "12.00 ± 1.00"),
            *("90.00 ± 1.00", "30.00 ± 1.00", "36.00 ± 1.00"),
            *("94.00 ± 1.00", "20.00 ± 1.00", "24.00 ± 1.00"),
            *("66.73", "1.50"),
        ]
    ]
    uneven = [shifted("tanl", "shuffled", seed, by) for seed, by in ((0, 0.0), (1, 0.013))]
    (table,) = report.tables(uneven, TableOptions(metrics=("auroc",), percent=False, decimals=6))
    assert texts(table)[0][0] == f"0.986500 ± {statistics.stdev([0.98, 0.993]):.6f}"
    (one,) = report.tables(SEEDS[:1])
    assert texts(one)[0][:3] == ["98.00", "10.00", "12.00"] and "±" not in " ".join(one.caption)


def test_the_caption_states_the_protocol_and_names_what_differs() -> None:
    (table,) = report.tables(SEEDS)
    said = " ".join(table.caption)
    assert (
        "Streams: all images of the ID set and of one OOD set, order shuffled, batch 256, reset for each pair, "
        "stream seeds 0, 1 and 2, precision fp32. Averages over seeds, ±: sample standard deviation, if it does not "
        "round to 0." in said
    )
    others = [
        shifted("tanl", "id-first", 0, 0.0),
        shifted("tanl", "shuffled", 0, 0.0, protocol={"batch": 64}),
        shifted("tanl", "shuffled", 0, 0.0, protocol={"ratio": "1:4"}),
    ]
    (table,) = report.tables([*SEEDS[:1], *others])
    assert names(table) == [
        "TANL; shuffled, batch 256, ID:OOD all",
        "TANL; id-first, batch 256, ID:OOD all",
        "TANL; shuffled, batch 64, ID:OOD all",
        "TANL; shuffled, batch 256, ID:OOD 1:4",
    ]
    assert (
        "Streams: images of the ID set and of one OOD set, reset for each pair, stream seed 0, precision fp32; order, "
        "batch and ratio as in the names." in table.caption
    )
    assert table.notes == ("ID + OOD images with ID:OOD 1:4: SUN 1,000 + 200, DTD 1,000 + 200.",)
    (half,) = report.tables([dataclasses.replace(SEEDS[0], run={"precision": "fp16"})])
    assert "precision fp16" in " ".join(half.caption)


def test_streams_of_another_ratio_have_fewer_images_in_the_same_table() -> None:
    fewer = stream("tanl", "shuffled", 0, on("sun", (0.9, 0.1, 0.1), n=50), on("dtd", (0.9, 0.1, 0.1), n=50))
    fewer = dataclasses.replace(fewer, stream={**fewer.stream, "ratio": "1:1"})
    assert [len(table.lines) for table in report.tables([SEEDS[0], fewer])] == [2]
    other = dataclasses.replace(fewer, ood=(dataclasses.replace(fewer.ood[0], list_digest="x"), fewer.ood[1]))
    assert [len(table.lines) for table in report.tables([SEEDS[0], other])] == [1, 1]


def test_best_and_second_are_marked_among_rows_of_one_protocol() -> None:
    results = [
        *(shifted(method, "shuffled", 0, by) for method, by in (("tanl", 0.01), ("adaneg", 0.0), ("oodd", -0.01))),
        *(shifted(method, "id-first", 0, by) for method, by in (("tanl", -0.02), ("adaneg", -0.03))),
        shifted("tanl", "ood-first", 0, 0.015),
        shifted("csp", "shuffled", 1, 0.019),
    ]
    (table,) = report.tables(results)
    assert {line.name.partition(", stream")[0]: line.cells[0][0].mark for line in table.lines} == {
        "TANL; shuffled": "best",
        "ADANEG; shuffled": "second",
        "OODD; shuffled": "",
        "TANL; id-first": "best",
        "ADANEG; id-first": "second",
        "TANL; ood-first": "",
        "CSP; shuffled": "",  # of another seed
    }
    assert [line.cells[0][2].mark for line in table.lines][:3] == ["best", "second", ""]
    assert "second <u>underlined</u> among rows of the same protocol." in report.markdown(table)
    assert "among rows" not in report.markdown(report.tables(results[:3])[0])


def test_no_tests_of_significance_across_streams() -> None:
    asked = []

    def test(found: Sequence[Result], sets: Sequence[str]) -> report.NotSignificantlyDifferent:
        asked.append([one.method for one in found])
        return report.NotSignificantlyDifferent()

    first, second = report.tables([*PLAIN, *SEEDS, stream("oodd")], test=test)
    assert asked == [["mcm", "msp"]]
    assert "Not tested for significance" in second.caption[-1] and "Not tested" not in " ".join(first.caption)
    assert "Not tested" not in " ".join(report.tables(SEEDS)[0].caption)


def test_intervals_are_those_of_the_first_seed_beside_the_deviation() -> None:
    bounds = {"auroc": (0.96, 0.99)}
    first = dataclasses.replace(SEEDS[0], ood=tuple(dataclasses.replace(s, intervals=bounds) for s in SEEDS[0].ood))
    for shown in ("half", "range"):
        options = TableOptions(intervals=shown, metrics=("auroc",))
        (table,) = report.tables([first, *SEEDS[1:]], options)
        assert texts(table) == [["98.00 ± 1.00 [96.00, 99.00]", "90.00 ± 1.00 [96.00, 99.00]", "94.00 ± 1.00"]]
        assert (
            "In brackets: the interval over images of the first stream seed, where the result has one." in table.caption
        )
        (one,) = report.tables([first], options)
        assert texts(one)[0][0] == "98.00 [96.00, 99.00]"
        assert r"98.00{\scriptsize\,$\pm$1.00 [96.00,\,99.00]}" in report.latex(table).replace(r"\phantom{}", "")


def test_requested_metrics_are_shown() -> None:
    (table,) = report.tables(SEEDS, TableOptions(metrics=("fpr95_ood", "auroc")))
    assert [c.title for c in table.column_groups[0].columns] == ["FPR95 (o)", "AUROC"]
    (turned,) = map(report.transposed, report.tables([*SEEDS, *(shifted("b", "id-first", s, 0) for s in range(3))]))
    assert [line.name for line in turned.lines][:3] == ["AUROC ↑", "FPR95 (i) ↓", "FPR95 (o) ↓"]


def test_names_of_bases_and_variants() -> None:
    variant = "oodd[base=neglabel[groups=10,mining=x],k=3]"
    results = [
        stream("oodd", base="mcm"),
        stream("oodd", base="neglabel[groups=10,mining=x]", label=variant),
        stream("oodd", base="not_installed", label="oodd[base=not_installed]"),
        stream("tanl", label="tanl[alpha=0]"),
    ]
    assert names(report.tables(results)[0]) == [
        "OODD, base MCM; shuffled",
        "OODD (k=3), base NegLabel (groups=10, mining=x); shuffled",
        "OODD, base not_installed; shuffled",
        "TANL (alpha=0); shuffled",
    ]


def test_runs_of_other_seeds_are_averaged_on_request_only() -> None:
    again = [dataclasses.replace(one, run={**one.run, "seed": 5}) for one in SEEDS]
    (apart,) = report.tables([*SEEDS, *again])
    assert names(apart) == ["TANL; shuffled (seed 0)", "TANL; shuffled (seed 5)"]
    (together,) = report.tables([*SEEDS, *again], TableOptions(seeds=True))
    assert names(together) == ["TANL; shuffled, 2 seeds of the run"] and len(together.lines[0].results) == 6
    (once,) = report.tables(SEEDS)
    assert together.lines[0].cells == once.lines[0].cells  # the same streams twice vary no less
    assert texts(together)[0][0] == f"98.00 ± {100 * statistics.stdev([0.98, 0.99, 0.97]):.2f}"


def test_a_failed_stream_is_one_line_with_its_reason() -> None:
    failed = [
        stream("oodd", seed=seed, status="failed", error="its base mcm failed", ood=(), base="mcm") for seed in range(3)
    ]
    (table,) = report.tables([*SEEDS, *failed])
    assert names(table) == ["TANL; shuffled", "OODD, base MCM; shuffled"]
    assert set(texts(table)[1]) == {"-"}
    assert table.notes == ("OODD, base MCM; shuffled failed: its base mcm failed",)
    partly = [*SEEDS, stream("tanl", seed=3, status="failed", error="killed", ood=())]
    (table,) = report.tables(partly)
    assert texts(table)[0][0] == "98.00 ± 1.00" and len(table.lines) == 2
    later = dataclasses.replace(SEEDS[2], stream={**SEEDS[2].stream, "seed": 3}, created="2026-01-01")
    assert names(report.tables([*partly, later])[0]) == ["TANL; shuffled"]


def test_a_stream_may_reverse_the_scores() -> None:
    sun = dataclasses.replace(on("sun", (0.1, 1.0, 1.0)), intervals={"auroc": (0.05, 0.15)})
    oodd = stream("oodd", "shuffled", 0, sun, base="mcm")
    oodd = dataclasses.replace(oodd, id=dataclasses.replace(oodd.id, accuracy=None))
    (note,) = report.tables([oodd])[0].notes
    assert "(OODD, base MCM; shuffled on SUN): adaptation to a stream can reverse the scores" in note


def test_the_access_of_each_method_is_stated_once() -> None:
    itself = shifted("adaneg", "shuffled", 0, 0.0, protocol={"sees_itself": True})
    (table,) = report.tables([*SEEDS[:1], shifted("tanl", "id-first", 0, 0.0), itself])
    assert table.footnotes == (
        "Access in addition to class names and the image: test stream: TANL, ADANEG.",
        "May learn from an image before scoring it: ADANEG.",
    )
    (unknown,) = report.tables([dataclasses.replace(one, access={}, method="gone") for one in SEEDS])
    assert unknown.title.endswith("test-time adaptation") and len(unknown.lines) == 1


def test_parts_of_streams_are_separate_tables() -> None:
    sun = on("sun", (0.98, 0.1, 0.12), ((0.8, 0.5, 0.6), (0.99, 0.05, 0.06)))
    dtd = on("dtd", (0.9, 0.3, 0.36), (None, (0.9, 0.3, 0.3)))
    rows = [stream("tanl", "shuffled", seed, sun, dtd) for seed in (0, 1)]
    whole, first, rest = report.tables([*rows, stream("x", "shuffled", 0)], TableOptions(stream_parts=True))
    assert [t.title.rpartition("adaptation")[2] for t in (whole, first, rest)] == [
        "",
        ", first 1,000 images of each stream",
        ", images after the first 1,000 of each stream",
    ]
    assert texts(first)[0] == ["80.00", "50.00", "60.00", *["-"] * 6]
    assert [cell.partition(" ")[0] for cell in texts(rest)[0][:6]] == "98.00 10.00 12.00 90.00 30.00 36.00".split()
    assert [b.title for b in rest.column_groups] == ["SUN", "DTD", "Average"] and not rest.notes
    assert len(report.tables(rows, TableOptions(stream_parts=True, metrics=("aupr_in", "accuracy")))) == 1


def test_bad_requests_of_parts_are_refused() -> None:
    parts = TableOptions(stream_parts=True)
    with pytest.raises(UserError, match="no result is from a method that learns from the test stream"):
        check_request(OutputOptions(), parts, PLAIN)
    with pytest.raises(UserError, match="no result is from a method that learns from the test stream"):
        check_request(OutputOptions(), dataclasses.replace(parts, methods=("mcm",)), [*PLAIN, *SEEDS])
    for form in ("html", "csv", "parquet"):
        with pytest.raises(UserError, match=f"--stream-parts cannot be combined with --format {form}"):
            check_request(OutputOptions(form=form, output=Path("x")), parts, SEEDS)
    check_request(OutputOptions(), parts, SEEDS)


def test_csv_has_a_line_for_each_seed() -> None:
    sun = on("sun", (0.98, 0.1, 0.12), (None, (0.5, 0.4, 0.3)))
    tables = report.tables([*PLAIN, *SEEDS, stream("oodd", "id-first", 7, sun, base="mcm")])
    lines = list(csv.DictReader(io.StringIO(report.csv(tables))))
    assert [(x["table"], x["method"], x["stream.order"], x["stream.seed"]) for x in lines] == [
        *(("1", "mcm", "", ""), ("1", "msp", "", "")),
        *(("2", "tanl", "shuffled", str(seed)) for seed in range(3)),
        ("3", "oodd", "id-first", "7"),
    ]
    assert [x["ood.sun.auroc"] for x in lines[2:5]] == ["0.98", "0.99", "0.97"]
    last = lines[-1]
    assert (last["stream.base"], last["stream.batch"], last["stream.ratio"]) == ("mcm", "256", "all")
    assert (last["stream.reset"], last["stream.sees_itself"]) == ("pair", "False")
    assert (last["ood.sun.first.auroc"], last["ood.sun.first.n_id"]) == ("", "1000")
    assert (last["ood.sun.rest.fpr95"], last["ood.sun.rest.n"], last["ood.sun.n_id"]) == ("0.1", "200", "1000")
    assert not [name for name in last if "thousands" in name]
    assert not [
        name for name in csv.DictReader(io.StringIO(report.csv(tables[:1]))).fieldnames or () if "stream." in name
    ]


def test_a_dataframe_has_a_row_for_each_seed_and_part() -> None:
    found = frame([*PLAIN[:1], *SEEDS])
    streams = found[found.method == "tanl"]
    one = streams[(streams.ood == "sun") & (streams.metric == "auroc")]
    assert one[["stream.seed", "value"]].values.tolist() == [[0, 0.98], [1, 0.99], [2, 0.97]]
    rest = streams[(streams.ood == "dtd") & (streams.metric == "rest.fpr95_ood")]
    assert rest["value"].tolist() == [0.36, 0.35, 0.37]
    assert found[found.method == "mcm"]["stream.order"].isna().all()
    assert not [name for name in frame(PLAIN).columns if name.startswith("stream")]


def test_published_numbers_in_tables_of_streams_keep_their_kind() -> None:
    sets = ("inaturalist", "sun", "places", "textures")
    adapted = stream("tanl", "shuffled", 0, *(on(name, (0.97, 0.1, 0.12)) for name in sets))
    model = mos_row("mcm")
    same = {name: getattr(model, name) for name in ("benchmark", "benchmark_title", "encoder", "id", "classes")}
    adapted = dataclasses.replace(adapted, **same, access={"stream": True})
    other = dataclasses.replace(adapted, stream={**adapted.stream, "order": "id-first"})
    tables = report.tables([model, adapted, other])
    inductive, streams = with_quotes(tables, [quote("tanl:paper"), quote("neglabel:paper")], TableOptions())
    assert names(inductive) == ["MCM", "NegLabel (quoted: paper)"]
    assert names(streams)[2:] == ["TANL (quoted: paper; test-time adaptation)"]
    assert streams.lines[2].section == "Test-time adaptation. Quoted, not run here"
    assert [cell.plain for cell in streams.lines[2].cells[0]][1:] == ["-", "0.42"]
    assert not [cell for cell in streams.cells if cell.other]
    compared = compare_with_published(tables, TableOptions())
    assert [one.title.rpartition(": ")[2] for one in compared if "TANL" in one.title] == [
        "TANL; shuffled, measured and published"
    ]


def test_explain_prints_the_protocol_and_the_parts() -> None:
    text = explanation([(None, SEEDS[1])], "tanl", "dtd")
    for line in ("order        shuffled", "seed         1", "sees_itself  false"):
        assert f"  {line}\n" in text
    assert "stream.rest.auroc" in text and '"n_id": 500' in text


def test_the_page_has_a_separate_table_and_the_protocol_of_a_number(tmp_path: Path) -> None:
    results = [*PLAIN, *SEEDS, *(shifted("tanl", "id-first", seed, 0.0) for seed in range(3))]
    html = render(report.tables(results), FigureSource({}, tmp_path), TableOptions(), figures=False)
    assert html.count('<section class="table"') == 2 and "test-time adaptation</h2>" in html
    records = html[html.index('<section id="records">') :]
    assert "shuffled, stream seed 1) on Toy" in records
    (found,) = [
        json.loads(text.partition("</pre>")[0].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        for text in records.split(f'<pre id="row-{SEEDS[1].digest[:12]}">')[1:]
    ]
    assert found["sets"]["sun"]["stream"]["first.auroc"] == "0.99"
    assert found["parts"]["stream"]["order"] == "shuffled" and found["parts"]["stream"]["seed"] == "1"


@pytest.mark.slow
def test_the_page_and_the_command_draw_the_figures(tmp_path: Path) -> None:
    lay(tmp_path, *PLAIN, *SEEDS)
    call("--results", tmp_path, "--format", "html", "--output", tmp_path / "page.html")
    assert "Position in the stream (3 figures" in (tmp_path / "page.html").read_text()
    call("--results", tmp_path, "--format", "figures", "--output", tmp_path / "figures")
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.pdf")) == [
        "toy-overview.pdf",
        "toy-test-time-overview.pdf",
        *(f"toy-test-time-stream-{metric}.pdf" for metric in ("auroc", "fpr95", "fpr95_ood")),
    ]


def curve(figure: Figure, gid: str) -> np.ndarray:
    (line,) = [x for x in figure.axes[0].lines if x.get_gid() == gid]
    return np.array(line.get_xydata())


def test_a_figure_shows_every_thousand_images() -> None:
    gap = ((0.9, 0.2, 0.3), None, (0.8, 0.4, 0.5))
    higher = ((0.94, 0.2, 0.3), None, (0.8, 0.4, 0.5))
    rows = [stream("tanl", "shuffled", s, on("sun", (0.9, 0.1, 0.1), v)) for s, v in ((0, gap), (1, higher))]
    rows += [stream("tanl", "id-first", s, on("sun", (0.9, 0.1, 0.1), (None, None, None))) for s in (0, 1)]
    found = {plot.name: plot for plot in plots(rows, {}, kinds=["stream"])}
    assert list(found) == [f"toy-test-time-stream-{m}" for m in ("auroc", "fpr95", "fpr95_ood")]
    plot = found["toy-test-time-stream-auroc"]
    expected = np.array([[500, 92], [1500, math.nan], [2100, 80]])
    np.testing.assert_allclose(curve(plot.figure, "TANL; shuffled"), expected, rtol=1e-12)
    assert np.isnan(curve(plot.figure, "TANL; id-first")[:, 1]).all()
    np.testing.assert_allclose(curve(found["toy-test-time-stream-fpr95_ood"].figure, "TANL; shuffled")[0], [500, 30])
    (band,) = [x for x in plot.figure.axes[0].collections if x.get_gid() == "TANL; shuffled band"]
    heights = np.concatenate([np.asarray(path.vertices)[:, 1] for path in band.get_paths()])
    assert heights.max() == pytest.approx(92 + statistics.stdev([90, 94]))
    assert "stream seeds 0 and 1" in plot.caption and "band: ± sample standard deviation" in plot.caption
    nothing = [stream("tanl", "id-first", 0, on("sun", (0.9, 0.1, 0.1), (None,)))]
    assert not list(plots(nothing, {}, kinds=["stream", "roc", "ranks"]))
    assert not list(plots(PLAIN, {}, kinds=["stream"]))
    with pytest.raises(UserError, match="some of these are streams"):
        list(plots([*PLAIN, stream("tanl")], {}))


def test_figures_of_streams_have_distinct_names_and_average_over_seeds() -> None:
    assert [one.stem for one in headings(report.tables([*PLAIN, *SEEDS]))] == ["toy", "toy-test-time"]
    (plot,) = plots(SEEDS, {}, kinds=["overview"])
    point = next(line for line in plot.figure.axes[0].lines if line.get_gid() == "TANL; shuffled")
    np.testing.assert_allclose(np.array(point.get_xydata()), [[94.0, 20.0]])


def test_the_command(tmp_path: Path) -> None:
    lay(tmp_path, *PLAIN, *SEEDS)
    text = call("--results", tmp_path, "--stream-parts", "--format", "markdown").output
    assert text.count("test-time adaptation") >= 3 and "first 1,000 images of each stream" in text
    assert "98.00 ± 1.00" in text and "FPR95 (o)" in text
    refused = call("--results", tmp_path, "--stream-parts", "--methods", "mcm", "--format", "csv")
    assert refused.exit_code != 0 and "--stream-parts cannot be combined with --format csv" in refused.output


def test_rows_keep_their_streams_and_their_digests_depend_on_them() -> None:
    again = from_json(SEEDS[1].to_json())
    assert again == SEEDS[1] and again.ood[0].stream["first"] == part((0.99, 0.1 - 0.01, 0.12 - 0.01))
    assert len({one.digest for one in SEEDS}) == 3
    assert ood("sun").stream == {}
