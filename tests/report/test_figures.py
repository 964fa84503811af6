"""Figures: drawn values against independent formulas, names of any kind, reproducible files."""

from __future__ import annotations

import dataclasses
import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from pyarrow import parquet
from scipy.stats import spearmanr
from sklearn.metrics import roc_curve

import oodbench
from oodbench.cli import main
from oodbench.data.glyphs import render, world
from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.report.figures import KINDS, Plot, plots
from oodbench.report.figures.histogram import bins
from oodbench.report.figures.roc import vertices
from oodbench.report.figures.style import printable_text, shortened, width, wrapped
from oodbench.report.tables.grouping import from_folder
from oodbench.results import IdRow, Result, SetRow
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results/reference/glyphs"
HOSTILE = "a_b & 50% <script>alert(1)</script> $x_1^2$ \\frac \u4e00\u202e"
DRAWN = tuple(kind for kind in KINDS if kind != "mistakes")

Scores = dict[str, np.ndarray]


def scores_of(seed: int, n: int, sets: Sequence[str]) -> Scores:
    """Scores on the ID set `cats` and on OOD sets, with ties."""
    random = np.random.default_rng(seed)
    found = {"cats": random.normal(size=n)}
    found |= {name: random.normal(size=n + 50) - 1 - 0.2 * i - 0.05 * seed for i, name in enumerate(sets)}
    return {name: np.round(values, 2) for name, values in found.items()}


def lay(results: Path, method: str, scores: Scores, **changes: Any) -> Result:
    """A row with its scores per image on disk, as a run leaves them."""
    on_id = metrics.score_set(scores["cats"], "id")
    ood = []
    for name in list(scores)[1:]:
        found = metrics.evaluate(on_id, metrics.score_set(scores[name], name))
        values = (found.auroc, found.fpr95, found.fpr95_ood, found.aupr_in, found.aupr_out, found.tied)
        ood.append(SetRow(name, name.upper(), "", len(scores[name]), None, 0, f"list of {name}", *values))
    row = Result(
        method=method,
        label=method,
        title=method,
        parameters={},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "a1" * 32},
        id=IdRow("cats", "Cats", len(scores["cats"]), None, 0, "list of cats", None),
        ood=tuple(ood),
        conventions={"at95": "first", "aupr": "average_precision"},
        classes={"name": "cats", "count": 4, "digest": "c1" * 32},
        templates={},
        files={},
        run={"seed": 0, "precision": "fp32"},
        source="5a" * 32,
        versions={},
        commit=None,
        scores={},
    )
    row = dataclasses.replace(row, **changes)
    path = results / f"runs/toy/vit/{len(list(results.rglob('*.json')))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row.to_json())
    parts = [
        pa.table(
            {
                "dataset": [name] * len(values),
                "name": [f"{i}.png" for i in range(len(values))],
                "label": np.full(len(values), -1),
                "score": values.astype(np.float64),
                "prediction": np.full(len(values), -1),
            }
        )
        for name, values in scores.items()
    ]
    parquet.write_table(pa.concat_tables(parts), path.with_suffix(".parquet"))
    return row


def toy(results: Path, methods: int = 3, sets: Sequence[str] = ("sun", "dtd"), n: int = 400) -> list[Scores]:
    """Rows m0, m1, ... below a results folder; their scores."""
    all_scores = [scores_of(i, n, sets) for i in range(methods)]
    for i, scores in enumerate(all_scores):
        lay(results, f"m{i:02d}", scores)
    return all_scores


def drawn(results: Path, **options: Any) -> list[Plot]:
    found = from_folder(results)
    return list(plots(found.results, found.paths, **options))


def curves(panel: Any) -> list[Any]:
    return list(panel.lines)


def artists(figure: Figure, gid: str) -> list[Any]:
    return [one for axes in figure.axes for one in axes.get_children() if one.get_gid() == gid]


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image.get_array())


def texts(figure: Figure) -> list[str]:
    return [one.get_text() for one in figure.findobj(Text) if one.get_text()]


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


# What is drawn


def test_roc_curves_equal_scikit_learn(tmp_path: Path) -> None:
    all_scores = toy(tmp_path)
    (picture,) = drawn(tmp_path, kinds=["roc"])
    rows = from_folder(tmp_path).results
    assert len(picture.figure.axes) == 2 and picture.name == "toy-roc"
    for m, scores in enumerate(all_scores):
        for panel, name in zip(artists(picture.figure, f"m{m:02d}"), ("sun", "dtd"), strict=True):
            fpr, tpr = panel.get_data()
            labels = np.r_[np.ones(400), np.zeros(450)]
            all_fpr, all_tpr, _ = roc_curve(labels, np.r_[scores["cats"], scores[name]], drop_intermediate=False)
            points = set(zip(all_fpr, all_tpr, strict=True))
            assert {*zip(fpr, tpr, strict=True)} <= points and len(fpr) < len(points)
            # The points left out lie on the lines between those that are drawn, of which none could be left out.
            length = np.cumsum(np.r_[0, np.diff(fpr) + np.diff(tpr)])
            np.testing.assert_allclose(np.interp(all_fpr + all_tpr, length, tpr), all_tpr, atol=1e-12)
            slope = np.arctan2(np.diff(tpr), np.diff(fpr))
            assert (np.abs(np.diff(slope)) > 1e-9).all()
            assert np.trapezoid(tpr, fpr) == pytest.approx(rows[m].ood[("sun", "dtd").index(name)].auroc)
    marks = artists(picture.figure, "fpr95")
    found = sorted(float(one.get_xdata()[0]) for one in marks)
    assert found == sorted(s.fpr95 for row in rows for s in row.ood)
    assert all(0.95 <= one.get_ydata()[0] < 0.97 for one in marks)


@pytest.mark.parametrize("n", [1, 7, 30, 100])
def test_the_marker_is_the_first_point_that_keeps_95_percent(n: int, tmp_path: Path) -> None:
    random = np.random.default_rng(n)
    scores = {"cats": np.round(random.normal(size=n), 1), "sun": np.round(random.normal(size=20), 1)}
    lay(tmp_path, "m", scores)
    (picture,) = drawn(tmp_path, kinds=["roc"])
    (mark,) = artists(picture.figure, "fpr95")
    fpr, tpr, _ = roc_curve(
        np.r_[np.ones(n), np.zeros(20)], np.concatenate(list(scores.values())), drop_intermediate=False
    )
    first = int((tpr >= 0.95).argmax())
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((fpr[first], tpr[first]))


def test_a_roc_curve_with_infinite_and_constant_scores() -> None:
    fpr, tpr = vertices(np.array([-np.inf, 1.0, np.inf]), np.array([-np.inf, -np.inf, 0.0, np.inf]))
    assert fpr.tolist() == [0, 0.25, 0.25, 0.5, 1] and np.allclose(tpr, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    fpr, tpr = vertices(np.zeros(5), np.zeros(7))
    assert fpr.tolist() == tpr.tolist() == [0, 1]


def test_histograms_count_as_numpy_does(tmp_path: Path) -> None:
    scores = scores_of(0, 4000, ("sun", "dtd"))
    scores["sun"][:3] = (-np.inf, np.inf, 1e6)
    lay(tmp_path, "m", scores)
    (picture,) = drawn(tmp_path, kinds=["histogram"])
    edges = artists(picture.figure, "ID")[0].get_data().edges
    finite = [values[np.isfinite(values)] for values in scores.values()]
    assert edges[0] == min(np.sort(v)[int(0.001 * (len(v) - 1))] for v in finite)
    assert edges[-1] == max(np.sort(v)[-1 - int(0.001 * (len(v) - 1))] for v in finite) < 10
    for gid, names in (("ID", ("cats", "cats")), ("OOD", ("sun", "dtd"))):
        for bars, name in zip(artists(picture.figure, gid), names, strict=True):
            counts = bars.get_data().values * len(scores[name]) / 100
            np.testing.assert_allclose(counts, np.histogram(scores[name], edges)[0], atol=1e-9)
    lost = {name: int(((v < edges[0]) | (v > edges[-1])).sum()) for name, v in scores.items()}
    assert f"outside: {lost['cats']} ID, {lost['sun']} OOD" in texts(picture.figure)
    assert f"{lost['cats']} of Cats, {lost['sun']} of SUN, {lost['dtd']} of DTD" in picture.caption and lost["sun"] >= 3
    (first, _) = artists(picture.figure, "threshold")
    kept = (scores["cats"] >= first.get_xdata()[0]).mean()
    assert kept >= 0.95 > (scores["cats"] > first.get_xdata()[0]).mean()


@pytest.mark.parametrize("values", [np.zeros(20), np.full(20, -np.inf), np.full(20, 1e300)])
def test_constant_scores_are_drawn(values: np.ndarray, tmp_path: Path) -> None:
    lay(tmp_path, "m", {"cats": values, "sun": values})
    lay(tmp_path, "other", scores_of(0, 20, ("sun",)) | {"sun": np.arange(20.0)})
    found = {picture.kind: picture for picture in drawn(tmp_path, kinds=DRAWN) if picture.png()}
    assert "–" in texts(found["ranks"].figure) and "has no ranks" in found["ranks"].caption


def test_rank_correlations_equal_scipy(tmp_path: Path) -> None:
    all_scores = toy(tmp_path)
    (picture,) = drawn(tmp_path, kinds=["ranks"])
    both = np.stack([np.concatenate(list(scores.values())) for scores in all_scores])
    expected = spearmanr(both, axis=1).statistic
    shown = [text for text in texts(picture.figure) if text[-3:-2] == "." and len(text) <= 5]
    assert shown[:9] == [f"{value:.2f}" for value in expected.ravel()] and len(set(shown[:9])) > 2
    from oodbench.report.figures.ranks import spearman

    np.testing.assert_allclose(spearman(list(both)), expected, atol=1e-12)
    (one,) = drawn(tmp_path, kinds=["ranks"], sets=["dtd"])
    cut = spearmanr(np.stack([np.concatenate([s["cats"], s["dtd"]]) for s in all_scores]), axis=1).statistic
    assert f"{cut[0, 1]:.2f}" in texts(one.figure) and "850 ID and OOD images" in one.caption


@pytest.mark.slow
def test_the_overview_has_means_and_their_intervals() -> None:
    found = from_folder(REFERENCE)
    (picture,) = plots(found.results, found.paths, kinds=["overview"])
    everything, near, far = picture.figure.axes
    for panel, group in ((everything, None), (near, "near"), (far, "far")):
        for row in found.results:
            (dot,) = [one for one in curves(panel) if one.get_gid() == row.title]
            assert dot.get_xdata()[0] == pytest.approx(100 * row.mean("auroc", group))
            assert dot.get_ydata()[0] == pytest.approx(100 * row.mean("fpr95", group))
        spans = [tuple(one.get_xdata() / 100) for one in curves(panel) if one.get_gid() == "auroc interval"]
        stated = [row.mean_intervals[group or ""]["auroc"] for row in found.results]
        np.testing.assert_allclose(sorted(spans), sorted(stated), atol=1e-12)
    (cut,) = plots(found.results, found.paths, kinds=["overview"], sets=["glyphs-letters", "glyphs-near"])
    assert "No intervals" not in cut.caption  # each group has one set here, but their mean is none of the row's
    assert not [one for one in curves(cut.figure.axes[0]) if one.get_gid() == "auroc interval"]


@pytest.mark.slow
def test_labels_of_many_methods_do_not_overlap(tmp_path: Path) -> None:
    for i in range(40):
        scores = scores_of(i % 5, 60, ("sun",))
        lay(tmp_path, f"a method called {i}", scores | {"sun": scores["sun"] - 0.01 * i})
    (picture,) = drawn(tmp_path, kinds=["overview"])
    renderer = FigureCanvasAgg(picture.figure).get_renderer()
    picture.figure.draw(renderer)
    (panel,) = picture.figure.axes
    labels = [text for text in panel.texts if text.get_text().startswith("a method")]
    boxes = [text.get_window_extent(renderer) for text in labels]
    assert len(boxes) == 40
    assert not [(i, j) for i in range(40) for j in range(i) if boxes[i].overlaps(boxes[j])]
    dots = [panel.transData.transform(one.get_xydata()[0]) for one in curves(panel) if one.get_marker() in "os^D"]
    assert len(dots) == 40 and not [dot for dot in dots for box in boxes if box.contains(*dot)]


# What a method gets most wrong


@pytest.mark.slow
def test_mistakes_are_the_worst_images_themselves(tmp_path: Path) -> None:
    # Not the project's own row: processors draw a few pixels of the textures differently.
    oodbench.run("mcm", results=str(tmp_path), bootstrap=0)
    found = from_folder(tmp_path)
    (row,) = found.results
    (picture,) = plots([row], found.paths, kinds=["mistakes"])
    table = parquet.read_table(found.paths[row.digest].with_suffix(".parquet")).to_pandas()
    strips = [axes for axes in picture.figure.axes if axes.images]
    assert len(strips) == 5
    for axes, (name, part) in zip(strips, table.groupby("dataset", sort=False), strict=True):
        worst = part.sort_values("score", ascending=name == "glyphs", kind="stable").head(8)
        said = [text.get_text() for text in axes.texts]
        for image, (_, one) in zip(axes.images, worst.iterrows(), strict=True):
            split, _, number = one["name"].partition("/")
            assert np.array_equal(pixels(image), render.image(split, int(number.partition("-")[0])))
            assert f"CLIP: {list(world.CLASSES)[one['prediction']].replace('_', ' ')}" in said or "…" in str(said)
            assert f"{one['score']:#.5g}" in said
    frames = len(artists(picture.figure, "wrong"))
    assert frames == 40, "MCM is wrong about each of them"
    wrong = (table[table.dataset == "glyphs-near"].score >= np.sort(table[table.dataset == "glyphs"].score)[75]).sum()
    assert f"{wrong} of 1,500 accepted" in " ".join(texts(picture.figure))


@pytest.mark.slow
def test_images_of_another_list_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    found = from_folder(REFERENCE)
    row = next(one for one in found.results if one.method == "mcm")
    others = tuple(dataclasses.replace(s, list_digest="0" * 64) for s in row.ood)
    changed = dataclasses.replace(row, ood=others, id=dataclasses.replace(row.id, list_digest="0" * 64))
    paths = {changed.digest: found.paths[row.digest]}
    assert not list(plots([changed], paths, kinds=["mistakes"]))
    assert caplog.text.count("are not the list of images that was scored") == 5
    changed = dataclasses.replace(row, ood=(*others[:3], row.ood[3]), classes={**row.classes, "digest": "1" * 64})
    (picture,) = plots([changed], {changed.digest: found.paths[row.digest]}, kinds=["mistakes"])
    assert "not shown: Other symbols, Letters, Textures." in picture.caption
    assert [text for text in texts(picture.figure) if text.startswith("CLIP: class ")], "not names of other classes"
    assert "are not available; figures show class numbers" in caplog.text


@pytest.mark.slow
def test_missing_images_are_reported(tmp_path: Path) -> None:
    toy(tmp_path, methods=2)
    done = call("--results", tmp_path, "--format", "figures", "-o", tmp_path / "out", "--data", tmp_path / "nowhere")
    assert done.exit_code == 0 and done.stderr.count("wrote 6 figures to ") == 1
    assert not list((tmp_path / "out").glob("*mistakes*"))


# Rows that cannot be drawn


def test_results_with_other_scores_are_omitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    all_scores = toy(tmp_path, methods=5)
    files = sorted(tmp_path.rglob("*.parquet"))
    files[0].unlink()
    files[1].write_bytes(b"damaged")
    lay(tmp_path / "other", "m02", {name: values[::-1] ** 2 for name, values in all_scores[2].items()})
    next((tmp_path / "other").rglob("*.parquet")).replace(files[2])
    next((tmp_path / "other").rglob("*.json")).unlink()
    found = {picture.kind: picture for picture in drawn(tmp_path, kinds=DRAWN)}
    for kind in ("roc", "ranks", "histogram"):
        assert "not shown: m00, m01, m02." in found[kind].caption and not artists(found[kind].figure, "m00")
    assert "not shown" not in found["overview"].caption
    assert "m00 is missing from figures of scores" in caplog.text and "cannot be read" in caplog.text
    assert "its scores do not give its AUROC on sun; check it with: oodbench report --verify" in caplog.text


def test_failed_rows_and_no_rows(tmp_path: Path) -> None:
    row = lay(tmp_path, "m", scores_of(0, 50, ("sun",)), status="failed", error="no")
    assert not drawn(tmp_path)
    assert not list(plots([], {}))
    fine = lay(tmp_path, "n", scores_of(0, 50, ("sun",)))
    (picture,) = drawn(tmp_path, kinds=["roc"])
    assert picture.caption.endswith("Failed, so not shown: m.")
    assert [one.kind for one in plots([row, fine], {})] == ["overview"], "rows of an MLflow store alone"
    with pytest.raises(UserError, match="no figure 'rocs'; did you mean 'roc'"):
        drawn(tmp_path, kinds=["rocs"])
    with pytest.raises(UserError, match="have different OOD sets"):
        list(plots([fine, lay(tmp_path, "o", scores_of(0, 50, ("dtd",)))], {}))


# Names and files


@pytest.mark.slow
def test_names_of_any_kind_are_literal(tmp_path: Path) -> None:
    scores = scores_of(0, 50, ("sun",))
    for method in (HOSTILE, "_hidden", "$\\notacommand{$", "\n\t", "x" * 500):
        row = lay(tmp_path, "m", scores, label=f"m[a={method}]", title=method, benchmark_title=method)
        ood = (dataclasses.replace(row.ood[0], title=method),)
        changed = dataclasses.replace(row, ood=ood, id=dataclasses.replace(row.id, title=method))
        path = from_folder(tmp_path).paths[row.digest]
        other = dataclasses.replace(changed, method="n", label="n", title="n")
        for picture in plots([changed, other], {changed.digest: path, other.digest: path}, kinds=DRAWN):
            assert (
                picture.png()
                and (method != HOSTILE or picture.pdf())
                and picture.name.isascii()
                and len(picture.name) < 150
            )
            assert not [one for one in picture.figure.findobj(Text) if one.get_parse_math() and "$" in one.get_text()]
            assert method in picture.title and method in picture.caption
            said = " ".join(texts(picture.figure)).replace(" ", "")
            assert printable_text(method).replace(" ", "")[:20] in said
    assert (
        printable_text(HOSTILE).endswith("\\frac \\u4e00\\u202e")
        and printable_text("\n\U0010ffff é→") == "\\u000a\\U0010ffff é→"
    )


def test_text_fits_its_place() -> None:
    for text in ("short", HOSTILE, "i" * 300, "W" * 300, "word " * 50):
        assert width(shortened(text, 1.0, 7), 7) <= 1.0
        lines = wrapped(text, 1.0, 7)
        assert all(width(line, 7) <= 1.0 for line in lines)
        assert "".join(lines).replace(" ", "") == printable_text(text).replace(" ", "")
    assert shortened("short", 1.0, 7) == "short" and shortened("a" * 200 + "z", 1.0, 7)[-1] == "z"


@pytest.mark.slow
def test_many_methods_and_sets_go_on_several_pages(tmp_path: Path) -> None:
    toy(tmp_path, methods=45, sets=[f"set{i}" for i in range(14)], n=30)
    found = drawn(tmp_path, kinds=("overview", "roc", "ranks"))
    pages = [picture for picture in found if picture.kind == "roc"]
    assert len(pages) == 3 * 3 and len({picture.name for picture in found}) == len(found)
    shown = [line.get_gid() for page in pages for axes in page.figure.axes for line in axes.lines]
    assert all(shown.count(f"m{i:02d}") == 14 for i in range(45))
    for page in pages:
        lines = [line for line in curves(page.figure.axes[0]) if str(line.get_gid()).startswith("m")]
        looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}
        assert len(looks) == 15, "no two methods of a page look alike"
    assert "the 40 methods with the highest average AUROC" in found[-1].caption and "all but the 40" in found[0].caption


@pytest.mark.slow
def test_files_are_the_same_whatever_the_users_settings(tmp_path: Path) -> None:
    toy(tmp_path, methods=2)
    plain = [(one.png(), one.pdf()) for one in drawn(tmp_path, kinds=DRAWN)]
    with rc_context({"text.usetex": True, "font.size": 30, "axes.grid": False, "pdf.fonttype": 3, "figure.dpi": 300}):
        again = [(one.png(), one.pdf()) for one in drawn(tmp_path, kinds=DRAWN)]
    assert plain == again
    assert all(b"/CreationDate" not in pdf and b"/FontFile2" in pdf and b"/Type3" not in pdf for _, pdf in plain)


@pytest.mark.slow
def test_figures_are_freed(tmp_path: Path) -> None:
    toy(tmp_path, methods=4)
    found = from_folder(tmp_path)
    alive: list[Any] = []
    for picture in plots(found.results, found.paths, kinds=DRAWN):
        picture.png()
        gc.collect()
        assert not [figure for figure in alive if figure() is not None]
        alive.append(weakref.ref(picture.figure))
        del picture
    assert len(alive) == 8 and "matplotlib.pyplot" not in sys.modules


@pytest.mark.slow
def test_curves_of_many_images_make_small_files(tmp_path: Path) -> None:
    toy(tmp_path, methods=3, n=50_000)
    for path in tmp_path.rglob("*.json"):  # no ties
        path.unlink()
    random = np.random.default_rng(0)
    for i in range(8):
        lay(tmp_path, f"n{i}", {"cats": random.normal(size=50_000), "sun": random.normal(size=10_000) - i / 3})
    (picture,) = drawn(tmp_path, kinds=["roc"])
    assert len(picture.pdf()) < 400_000 and len(artists(picture.figure, "n0")[0].get_xdata()) > 10_000


@pytest.mark.slow
def test_the_command_writes_the_same_files_twice(process: Cli, tmp_path: Path) -> None:
    toy(tmp_path, methods=2)
    for out, seed in (("one", "1"), ("two", "2")):
        done = process(
            "report", "--results", tmp_path, "--format", "figures", "-o", tmp_path / out, PYTHONHASHSEED=seed
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "" and done.stderr.splitlines()[-1] == f"wrote 6 figures to {tmp_path / out}"
        assert "images of 'cats' are not shown: no dataset 'cats'" in done.stderr
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in ("one", "two"))
    names = {"toy-overview", "toy-roc", "toy-densities", "toy-ranks", "toy-histogram-m00", "toy-histogram-m01"}
    assert set(one) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")} | {"captions.txt"}
    assert one == two


@pytest.mark.slow
def test_tables_of_one_benchmark_have_distinct_names(tmp_path: Path) -> None:
    for i, encoder in enumerate(("ViT-B-16/openai", "ViT-L-14/openai", "ViT-L-14/openai")):
        card = {"name": encoder, "slug": encoder.replace("/", "-"), "weights": str(i)}
        lay(tmp_path, "m", scores_of(i, 50, ("sun", "dtd")), encoder=card)
    done = call("--results", tmp_path, "--format", "figures", "-o", tmp_path / "out", "--methods", "m", "--ood", "dtd")
    assert "wrote 13 figures" in done.stderr and done.exit_code == 0
    names = {path.stem for path in (tmp_path / "out").glob("*-roc.pdf")}
    assert names == {"toy-ViT-B-16-openai-roc", "toy-ViT-L-14-openai-roc", "toy-ViT-L-14-openai-2-roc"}
    text = (tmp_path / "out/captions.txt").read_text()
    assert text.count("ROC curves on DTD:") == 3 and "SUN" not in text


def test_figures_have_new_names_of_methods_variants_sets_benchmarks_and_encoders(tmp_path: Path) -> None:
    for i, label in enumerate(("m0", "m0[t=1]")):
        lay(tmp_path, "m0", scores_of(i, 30, ["sun"]), label=label, parameters={"t": i})
    known = from_folder(tmp_path).results[0]
    new = {
        "m0": "Ours",
        "m0[t=1]": "Variant",
        "sun": "Places",
        "cats": "Dogs",
        "toy": "Bench",
        "ViT-B-16/openai": "CLIP",
    }
    seen = set()
    for plot in oodbench.report(tmp_path).figures(["roc", "histogram", "overview"], rename=new):
        seen |= {plot.caption, *texts(plot.figure)}
    every = "\n".join(seen)
    for text in (*new.values(), "Bench, encoder CLIP"):
        assert text in every, text
    old = (known.title, known.id.title, known.ood[0].title, known.benchmark_title, "ViT-B-16", "t=1")
    assert not [text for text in old if re.search(rf"\b{text}\b", every)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "figures", "-o", "{tmp}/file"], "cannot write figures to {tmp}/file"),
        (
            ["--format", "figures", "-o", "{tmp}/out", "--cite", "--bib"],
            "use --bib, --cite in a separate command",
        ),
        (["--format", "figures", "-o", "{tmp}/out", "--verify"], "use --verify in a separate command"),
        (
            ["--format", "figures", "-o", "{tmp}/out", "--metrics", "fpr95", "--decimals", "1", "--no-tests"],
            "use --metrics, --decimals, --tests in a separate command",
        ),
        (["--format", "html", "--no-figures", "--data", "{tmp}"], "use it with --format figures"),
        (["--format", "figures", "-o", "{tmp}/out", "--methods", "m9"], "no results of method 'm9'; known: m00"),
        (
            ["--format", "figures", "-o", "{tmp}/out", "--ood", "sum"],
            "no results with OOD set 'sum'; did you mean 'sun'",
        ),
        (["--data", "{tmp}"], "use it with --format figures"),
    ],
)
def test_invalid_requests_are_refused(flags: list[str], said: str, tmp_path: Path) -> None:
    toy(tmp_path, methods=1)
    (tmp_path / "file").write_text("")
    done = call("--results", tmp_path, *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.exit_code == 2 and said.format(tmp=tmp_path) in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))


def test_tables_do_not_import_matplotlib(tmp_path: Path) -> None:
    toy(tmp_path, methods=1)
    code = (
        "import sys\nimport oodbench.report.figures\nfrom oodbench.cli import main\n"
        f"try:\n    main(['report', '--results', {str(tmp_path)!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'matplotlib', 'torch', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_hostile_names_on_real_files(cli: Cli, process: Cli, tmp_path: Path) -> None:
    from PIL import Image

    evil = "a_b & 50% <script>alert(1)<"
    for folder, split in (("known", "id-test"), ("other", "textures")):
        for i in range(24):
            place = tmp_path / f"{folder} {evil}" / f"$c_{i % 3}$ {evil}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render.image(split, i)).save(place / f"{i:02d} {evil} \u4e00.png")
    known, other = (f"folder:{tmp_path}/{folder} {evil}" for folder in ("known", "other"))
    run = cli("run", "--id", known, "--ood", other, "--encoder", "glyphs", "--methods", "mcm,energy", "--tracking-uri",
              "none", "--results", tmp_path / "results")  # fmt: skip
    assert run.returncode == 0, run.stderr
    done = process(
        "report",
        "--results",
        tmp_path / "results",
        "--format",
        "figures",
        "--output",
        tmp_path / "out",
        PYTHONWARNINGS="error",
    )
    assert done.returncode == 0 and "wrote 8 figures" in done.stderr, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 17
    text = (tmp_path / "out/captions.txt").read_text()
    assert f"known {evil}" in text and f"other {evil}" in text
    found = from_folder(tmp_path / "results")
    sheet, _ = plots(found.results, found.paths, kinds=["mistakes"])
    said = texts(sheet.figure)
    assert f"known {evil}" in said and [s for s in said if s.startswith("CLIP: $c ")]
    rows = parquet.read_table(found.paths[found.results[0].digest].with_suffix(".parquet")).to_pandas()
    worst = rows[rows.dataset == other].sort_values("score", ascending=False, kind="stable").iloc[0]
    first = next(axes for axes in sheet.figure.axes[1:] if axes.images).images[0]
    assert np.array_equal(pixels(first), np.asarray(Image.open(tmp_path / f"other {evil}" / worst["name"])))
    # A file that was changed since is another image, and is not shown.
    image = tmp_path / f"other {evil}" / worst["name"]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    again = cli(
        "report",
        "--results",
        tmp_path / "results",
        "--format",
        "figures",
        "--output",
        tmp_path / "out",
        "--methods",
        "mcm",
    )
    assert "are not the list of images that was scored" in again.stderr
    assert "not available, so not shown: other" in (tmp_path / "out/captions.txt").read_text()


def test_scores_of_any_size_have_bins() -> None:
    rng = np.random.default_rng(0)
    small = [rng.normal(5e-8, 1e-8, 1000), rng.normal(1e-8, 1e-8, 1000)]
    edges, plain = bins(small), bins([one * 1e8 for one in small])
    np.testing.assert_allclose(edges * 1e8, plain)
    assert len(np.unique(bins([np.full(9, -3.0)]))) == len(edges)
