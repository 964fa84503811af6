"""Figures of a given width: exact width, text of at least 6 points, without clipping or overlaps."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import oodbench.report as report
from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.report.figures import FigureOptions, Heading, Plot, encoder_plots, plots
from oodbench.report.figures.options import parse_width
from oodbench.report.tables.grouping import from_folder
from tests.report import stream_rows, test_shots
from tests.report.test_figures import HOSTILE, lay, scores_of, toy
from tests.report.test_report_shapes import ood, row

DPI = 150


def drawn_texts(plot: Plot) -> list[tuple[Text, Any]]:
    """Texts that matplotlib draws, with their boxes in pixels of a figure of DPI."""
    found: list[Text] = []
    original = Text.draw

    def draw(self: Text, renderer: Any) -> None:
        found.append(self)
        original(self, renderer)

    plot.figure.set_dpi(DPI)
    renderer = FigureCanvasAgg(plot.figure).get_renderer()
    with patch.object(Text, "draw", draw):
        plot.figure.draw(renderer)
    return [
        (text, text.get_window_extent(renderer)) for text in found if text.get_visible() and text.get_text().strip()
    ]


def problems(plot: Plot) -> list[str]:
    """Texts that are smaller than 6 points, clipped by the edge of the figure, or overlap."""
    texts = drawn_texts(plot)
    wide, high = plot.figure.get_size_inches() * DPI
    out = [f"{text.get_text()}: {text.get_fontsize()} points" for text, _ in texts if float(text.get_fontsize()) < 6]
    for text, box in texts:
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > wide + 0.5 or box.y1 > high + 0.5:
            out.append(f"{text.get_text()!r} is cut off: {box}")
    for (one, box), (other, another) in itertools.combinations(texts, 2):
        if box.padded(-1).overlaps(another.padded(-1)):
            out.append(f"{one.get_text()!r} covers {other.get_text()!r}")
    return [f"{plot.name}: {line}" for line in out]


def font_sizes(pdf: bytes) -> Iterator[float]:
    """Font sizes of a PDF's content; matplotlib writes them in points, and scales no text by a matrix."""
    for compressed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(compressed)
        except zlib.error:
            continue
        for size in re.findall(rb"/F\S+ ([\d.]+) Tf", content):
            yield float(size)


def media_box(pdf: bytes) -> list[float]:
    found = re.search(rb"/MediaBox \[([^\]]*)\]", pdf)
    assert found
    return [float(number) for number in found[1].split()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six methods on five OOD sets, one with values of a hyper-parameter, with long names and unusual letters."""
    folder = tmp_path_factory.mktemp("results")
    names = ["sun", "dtd", "inaturalist-with-a-long-name", "places", "openimage-o"]
    for i in range(6):
        scores = scores_of(i, 120, names)
        changes: dict[str, Any] = {"parameters": {"k": 10.0**i}, "title": "A method with a very long name"}
        lay(folder, f"m{i}", scores, **({"title": f"Method {i}" if i else HOSTILE} if i < 4 else changes))
        if i == 5:
            lay(folder, f"m{i}", scores_of(8, 120, names), **changes | {"parameters": {"k": 3.0}, "label": "m5[k=3]"})
    return folder


def one_by_one(folder: Path, kinds: Sequence[str], width: float | None, **options: Any) -> Iterator[Plot]:
    """The figures of a results folder, as the command draws them."""
    found = from_folder(folder)
    tables = [table.results for table in report.tables(found.results)]
    for rows in tables:
        yield from plots(rows, found.paths, kinds=kinds, width=width, **options)
    yield from encoder_plots(tables, FigureOptions(kinds=("encoders",), width=width)) if "encoders" in kinds else ()


@pytest.mark.parametrize("kind", ["overview", "densities", "histogram"])
def test_figures_have_their_width_and_legible_text(kind: str, results: Path) -> None:
    plot = next(one_by_one(results, [kind], 3.25))
    pdf = plot.pdf()
    assert media_box(pdf)[2] == pytest.approx(72 * 3.25)
    assert min(font_sizes(pdf)) >= 6
    assert not problems(plot)
    assert not plot.figure.texts, "no heading"


@pytest.mark.slow
@pytest.mark.parametrize("width", [2.0, 6.875])
def test_many_methods_and_sets_at_any_width(width: float, results: Path, tmp_path: Path) -> None:
    for i in range(25):
        scores = scores_of(i % 7, 60, [f"set{j}" for j in range(6)])
        lay(tmp_path, f"a method called {i}", {k: v - 0.01 * i * (k != "cats") for k, v in scores.items()})
    for folder in (results, tmp_path):
        for plot in one_by_one(folder, ["overview", "sweep", "roc", "densities", "ranks"], width):
            pdf = plot.pdf()
            assert media_box(pdf)[2] == pytest.approx(72 * width) and min(font_sizes(pdf)) >= 6
            assert media_box(pdf)[3] <= 72 * 9, "the text of a page of CVPR, ICML or NeurIPS"
            assert not problems(plot)


def test_points_have_numbers_where_names_have_no_room(tmp_path: Path) -> None:
    for i in range(8):
        scores = scores_of(0, 60, ["sun"])
        lay(tmp_path, f"a method with a long name {i}", scores | {"sun": scores["sun"] + 0.4 * i})
    (plot,) = one_by_one(tmp_path, ["overview"], 3.25)
    panel, legend = plot.figure.axes
    points: dict[Any, Any] = {
        line.get_gid(): line for line in panel.lines if str(line.get_gid()).startswith("a method")
    }
    said = dict(text.get_text().split("  ") for text in legend.texts)
    assert list(said) == [str(i) for i in range(1, 9)] and set(said.values()) == set(points)
    for text in panel.texts[1:]:
        at = panel.transAxes.transform(text.get_position())
        distance = {name: np.hypot(*(panel.transData.transform(p.get_xydata()[0]) - at)) for name, p in points.items()}
        assert min(distance, key=lambda name: distance[name]) == said[text.get_text()]
    for (_, name), mark in zip(said.items(), legend.lines, strict=True):
        assert (mark.get_color(), mark.get_marker()) == (points[name].get_color(), points[name].get_marker())


def variants(method: str, *settings: str) -> list[dict[str, Any]]:
    """Settings of results whose names differ in the middle only."""
    known = [f"first=one,{setting},features=projected" for setting in settings]
    return [{"label": f"{method}[{one}]", "parameters": dict(x.split("=") for x in one.split(","))} for one in known]


@pytest.mark.parametrize("kind", ["overview", "roc", "densities", "ranks", "sweep", "shots", "encoders"])
@pytest.mark.parametrize("width", [3.25, None])
def test_names_that_are_cut_to_equal_text_have_numbers(kind: str, width: float | None, tmp_path: Path) -> None:
    names = [f"M0 (first=one, t={i}, features=projected)" for i in range(3)]
    if kind in ("sweep", "shots", "encoders"):
        rows = [row("m0", **one) for one in variants("m0", "t=0", "t=1", "t=2")]
        if kind == "sweep":
            rows = [dataclasses.replace(r, parameters=r.parameters | {"k": k}) for r in rows for k in (1.0, 2.0)]
        elif kind == "shots":
            rows = [*rows[:2], *(test_shots.labelled("m0", k, 0, 0.7, **variants("m0", "t=2")[0]) for k in (1, 2))]
        encoders = [{"name": name, "slug": name, "weights": name} for name in "ab"] if kind == "encoders" else []
        tables = [[dataclasses.replace(r, encoder=encoder) for r in rows] for encoder in encoders]
        found = (
            encoder_plots(tables, FigureOptions(width=width)) if tables else plots(rows, {}, kinds=[kind], width=width)
        )
    else:
        for i, one in enumerate(variants("m0", "t=0", "t=1", "t=2")):
            lay(tmp_path, "m0", scores_of(i, 30, ["sun", "dtd"]), title="M0", **one)
        found = one_by_one(tmp_path, [kind], width)
    plot = next(iter(found))
    order = dict(re.findall(r"(M0 \[\d\]): (M0 \([^)]*\))", plot.caption))
    assert list(order) == ["M0 [1]", "M0 [2]", "M0 [3]"] and sorted(order.values()) == names
    seen = [match[0] for text, _ in drawn_texts(plot) if (match := re.search(r"M0 \[\d\]$", text.get_text()))]
    assert set(seen) == set(order), "each is drawn under the name that the caption explains"
    assert not [text.get_text() for text, _ in drawn_texts(plot) if text.get_text().startswith("M0 (")]


def test_names_in_a_narrow_legend_are_not_cut() -> None:
    rows = [row(f"m{i}", ood("sun"), title=f"A method called {i}") for i in range(9)]
    (plot,) = plots(rows, {}, kinds=["overview"], width=2)
    legend = plot.figure.axes[-1].texts
    assert [text.get_text() for text in legend] == [f"{i + 1}  A method called {i}" for i in range(9)]
    assert "Equal points coincide; the one higher in the table is on top." in plot.caption


def test_figures_of_a_width_are_no_taller_than_a_page() -> None:
    """Of as many panels as a figure of the kind has, with a long legend."""
    kinds: dict[str, Any] = {
        kind: importlib.import_module(f"oodbench.report.figures.{kind}")
        for kind in ("densities", "roc", "sweep", "histogram", "stream", "shots", "overview")
    }
    for (kind, module), wide in itertools.product(kinds.items(), (2.0, 3.25, 6.875)):
        data: Any = SimpleNamespace(width=wide)
        legend: list[tuple[str, Any]] = [(f"A method called {i}", {}) for i in range(25 if kind == "overview" else 15)]
        if kind == "overview":
            assert module._layout(data, 3, 25, legend).height(3, legend) <= 9
            continue
        most = module._layout(data, module.PANELS).most(module.PANELS, legend)
        heights = [module._layout(data, panels).height(panels, legend) for panels in (1, most // 2 + 1, most)]
        assert len(heights) >= 2 and max(heights) <= 9, (kind, wide)


@pytest.mark.parametrize("width", [2.0, 3.25, 6.875])
def test_figures_of_mistakes_are_no_taller_than_a_page(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.report.figures import mistakes

    image = mistakes.ShownImage(np.zeros((4, 4, 3), np.uint8), ("is a cat", "CLIP: dog", "0.12345", "1.png"), True)
    subtitle = "OOD, highest scores; 1,234 of 10,000 accepted where 95 % of ID are accepted"
    strips = [mistakes.ImageStrip(f"Set {i}", subtitle, (image,)) for i in range(7)]
    monkeypatch.setattr(mistakes, "_strips", lambda *_: strips)
    result = row(title="M")
    one = SimpleNamespace(name="M", result=result)
    data: Any = SimpleNamespace(scored=[one], sets=result.ood, width=width, heading=Heading("toy", "Toy"))
    data.above, data.missing = (lambda title: []), str
    found = list(mistakes.draw(data))
    titles = [text.get_text() for plot in found for axes in plot.figure.axes for text in axes.texts]
    assert all(titles.count(strip.title) == 1 for strip in strips)
    assert all(plot.figure.get_size_inches()[1] <= 9 for plot in found), "the text of a page"
    assert not problems(found[-1])


@pytest.mark.parametrize("width", [2.0, 3.25, None])
def test_scores_that_differ_in_late_digits_have_legible_ticks(width: float | None, tmp_path: Path) -> None:
    centre, scale = -34567.1234567, 1e-7
    scores = {name: centre + scale * values for name, values in scores_of(0, 60, ["sun", "dtd"]).items()}
    lay(tmp_path, "m", scores)
    (plot,) = one_by_one(tmp_path, ["histogram"], width)
    assert not problems(plot)
    last = [axes for axes in plot.figure.axes if axes.get_label() != "legend"][-1]

    def number(text: str) -> float:
        return float(text.replace("\N{MINUS SIGN}", "-"))

    shared = re.fullmatch(r"(1e.\d)(.*)", last.xaxis.offsetText.get_text())
    assert shared
    for tick in last.xaxis.get_major_ticks():
        score = number(tick.label1.get_text()) * number(shared[1]) + number(shared[2])
        assert score == pytest.approx(tick.get_loc(), abs=scale / 10)


def test_streams_and_shots_have_widths(tmp_path: Path) -> None:
    streams = [stream_rows.stream("tanl", "shuffled", seed) for seed in (0, 1)] + [
        stream_rows.stream("oodd", "id-first", 0)
    ]
    labelled = [test_shots.labelled("probe", shots, 0, 0.7) for shots in (1, 2, 4, 8, 16)]
    for rows, kind in ((streams, "stream"), ([*test_shots.ROWS, *labelled], "shots")):
        plot = next(plots(rows, {}, kinds=[kind], width=3.25))
        assert not problems(plot) and media_box(plot.pdf())[2] == pytest.approx(234)


@pytest.mark.parametrize(
    ("text", "inches"),
    [("column", 3.25), ("page", 6.875), ("3.3", 3.3), ("5in", 5), ("127mm", 5), ("12.7 cm", 5), ("361.35pt", 5)],
)
def test_lengths(text: str, inches: float) -> None:
    assert parse_width(text) == pytest.approx(inches)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--width", "wide"],
            "--width 'wide' is not a width; known: column (3.25 inches), page (6.875 inches), and lengths",
        ),
        (["--width", "-3"], "is not a width"),
        (["--width", "1"], "--width 1 is 1 inches; figures are 2 to 30 inches wide"),
        (["--width", "900mm"], "is 35.4 inches"),
        (["--kind", "rok,overview"], "no figure 'rok'; did you mean 'roc'"),
        (["--kind", "shots"], "no figure 'shots': it needs results with two numbers of labelled images per class"),
        (["--kind", "encoders,stream"], "no figure 'encoders': it needs results of two encoders"),
    ],
)
def test_options_of_figures_that_are_refused(flags: list[str], said: str, tmp_path: Path) -> None:
    toy(tmp_path, methods=1, n=30)
    command = ["report", "--results", str(tmp_path), "--format", "figures", "-o", str(tmp_path / "out"), *flags]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "out").exists()
    if flags[0] == "--width":
        done = CliRunner().invoke(main, ["report", "--results", str(tmp_path), "--width", "column"])
        assert done.exit_code == 2 and "--width requires --format figures" in done.stderr


def test_one_kind_in_one_command(tmp_path: Path) -> None:
    toy(tmp_path, methods=2, n=30)
    command = ["report", "--results", str(tmp_path), "--format", "figures", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--width", "column", "--kind", "ranks,shots"])
    assert done.exit_code == 0, done.stderr
    assert "no figure 'shots'" in done.stderr and "wrote 1 figures" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "toy-ranks.pdf", "toy-ranks.png", "captions.txt",
    }  # fmt: skip
    assert media_box((tmp_path / "out/toy-ranks.pdf").read_bytes())[2] == 234
    with pytest.raises(UserError, match="2 to 30 inches wide, not 1"):
        list(plots([], {}, width=1))
