"""The HTML page of a results folder, made by the command and opened in a real browser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import resource
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import oodbench.report as report
from oodbench.report.html import FigureSource, render
from oodbench.report.html.page import _address
from oodbench.results import IdRow, Result, SetRow
from tests.report.panel import close_panel
from tests.report.stream_rows import stream

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
GLYPHS = Path("results/reference/glyphs")
HOSTILE = "a_b & 50% <script>alert(1)</script> \"q\" 'x' </pre><img src=x onerror=alert(2)>"
Cli = Callable[..., subprocess.CompletedProcess[str]]
Open = Callable[..., "Page"]
HERE = "document.activeElement.closest('td').innerText"


def row(method: str = "mcm", auroc: float = 0.9, seed: int = 0, **changes: Any) -> Result:
    ood = tuple(
        SetRow(name, name.upper(), group, 200, 200, 0, f"list of {name}", auroc - place / 10, 0.4, 0.5, 0.6, 0.7, 0.0)
        for place, (name, group) in enumerate({"near1": "near", "sun": "far", "dtd": "far"}.items())
    )
    plain = Result(
        method=method,
        label=method,
        title=method.upper(),
        parameters={"temperature": 1.0},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "a1" * 32},
        id=IdRow("cats", "Cats", 1000, 1000, 0, "list of cats", 0.6673),
        ood=ood,
        conventions={"at95": "first"},
        classes={"name": "cats", "count": 2, "digest": "c" * 64},
        templates={"name": "simple", "count": 1, "digest": "p" * 64},
        files={},
        run={"seed": seed, "precision": "fp32", "limit": None, "device": "cpu"},
        source="s",
        versions={"torch": "2.5"},
        commit=None,
        scores={name: f"key of {name}" for name in ("cats", "near1", "sun", "dtd")},
        seconds={"score": 1.5},
        created="2026-01-02T03:04:05+00:00",
    )
    return dataclasses.replace(plain, **changes)


def lay(folder: Path, *rows: Result) -> Path:
    for number, one in enumerate(rows):
        path = folder / "runs" / f"{one.benchmark}-{number % 7}" / f"{one.method}-{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.to_json())
    return folder


@pytest.fixture(scope="module")
def glyphs(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "glyphs.html"
    done = cli("report", "--results", GLYPHS, "--format", "html", "--output", path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return path


def written(cli: Cli, results: Path, *flags: str | Path) -> Path:
    path = results.with_suffix(".html")
    done = cli("report", "--results", results, "--format", "html", "--output", path, *flags)
    assert done.returncode == 0, done.stderr
    return path


def stored() -> dict[str, dict[str, Any]]:
    rows = [json.loads(path.read_text()) for path in (ROOT / GLYPHS).rglob("*.json")]
    return {one["title"]: one for one in rows}


def grouped(titles: list[str]) -> list[str]:
    """The same order within each group: zero-shot, uses ID images, trained."""
    return sorted(titles, key=lambda title: {"ReAct": 1, "CLIPN": 2, "ZOC": 2}.get(title, 0))


def mean(one: dict[str, Any], metric: str, group: str = "") -> float:
    values = [s[metric] for s in one["ood"] if not group or s["group"] == group]
    return float(sum(values) / len(values))


def names(page: Page) -> list[str]:
    """First words of the lines that a reader sees, in order."""
    shown = page.locator("tbody tr:visible th[scope=row]").all_inner_texts()
    return [text.strip() for text in shown]


def head(page: Page, block: str, metric: str) -> Any:
    return page.locator(f'tr.metrics th[data-block="{block}"][data-metric="{metric}"] button').first


def cell(page: Page, title: str, block: str, metric: str) -> Any:
    line = page.locator("tbody tr", has=page.get_by_role("link", name=title, exact=True))
    place = page.locator("tr.metrics th").evaluate_all(
        "(all, [b, m]) => all.findIndex((th) => th.dataset.block === b && th.dataset.metric === m)", [block, metric]
    )
    return line.locator(f":scope > :nth-child({place + 1})")


def fact(page: Page, name: str) -> list[str]:
    return page.locator("dialog dt", has_text=re.compile(f"^{name}$")).locator("+ dd").all_text_contents()


def test_sorts_by_exact_values_both_ways(glyphs: Path, visit: Open) -> None:
    page, rows = visit(glyphs), stored()
    assert len(rows) == 9 and sorted(names(page)) == sorted(rows)
    for block, group in (("mean", ""), ("far mean", "far")):
        for metric, first in (("auroc", True), ("fpr95", False)):
            ranked = sorted(rows, key=lambda t: mean(rows[t], metric, group), reverse=first)
            head(page, block, metric).click()
            assert names(page) == grouped(ranked), (block, metric)
            head(page, block, metric).press("Enter")
            assert names(page) == grouped(ranked[::-1]), "by keyboard the other way round"
            assert page.locator("[aria-sort]").evaluate_all("all => all.map((th) => th.ariaSort)") == [
                "ascending" if first else "descending"
            ]
    page.get_by_role("button", name="Method").press(" ")
    assert names(page) == grouped(sorted(rows, key=str.lower))
    assert cell(page, "MaxLogit", "mean", "auroc").locator("b").inner_text() == "97.85"
    assert cell(page, "ZOC", "mean", "auroc").locator("b").inner_text() == "97.66", "the best of its own group"
    second = f"{100 * mean(rows['Energy'], 'auroc'):.2f}"
    assert cell(page, "Energy", "mean", "auroc").locator("u").inner_text() == second, "marks travel with their rows"
    assert cell(page, "Energy", "far mean", "auroc").inner_text().endswith("†")


def test_filters_rows_and_hides_sets(glyphs: Path, visit: Open) -> None:
    page = visit(glyphs)
    everything = page.locator("tr.metrics th:visible").count()
    page.get_by_label("Methods").fill("m c")
    assert names(page) == ["MCM"] and "1 of 9 results" in page.locator("#count").inner_text()
    page.get_by_label("Methods").fill("nobody")
    assert names(page) == []
    page.get_by_label("Methods").fill("")
    before = cell(page, "ZOC", "glyphs-textures", "fpr95").inner_text()
    page.get_by_label("Letters").uncheck()
    assert page.locator("tr.metrics th:visible").count() == everything - 2 == page.locator("col:visible").count()
    assert not page.locator("tr.blocks th", has_text="Letters").is_visible()
    assert not cell(page, "ZOC", "glyphs-letters", "auroc").is_visible()
    assert cell(page, "ZOC", "glyphs-textures", "fpr95").inner_text() == before
    widths = {
        name: page.locator(".groups th", has_text=name).evaluate("th => th.colSpan") for name in ("Near OOD", "Far OOD")
    }
    assert widths == {"Near OOD": 2, "Far OOD": 6}
    count = page.locator("#count").inner_text()
    assert "1 of 4 OOD sets hidden. Marks and averages are for the complete tables." in count
    page.get_by_label("Other symbols").uncheck()
    assert not page.locator(".groups th", has_text="Near OOD").is_visible()
    head(page, "glyphs-digits", "auroc").click()
    rows = stored()
    assert names(page) == grouped(sorted(rows, key=lambda t: rows[t]["ood"][3]["auroc"], reverse=True))


def test_a_cell_opens_its_result(glyphs: Path, visit: Open, cli: Cli) -> None:
    page, one = visit(glyphs), stored()["CLIPN"]
    letters = next(s for s in one["ood"] if s["dataset"] == "glyphs-letters")
    cell(page, "CLIPN", "glyphs-letters", "auroc").click()
    dialog = page.get_by_role("dialog", name="CLIPN: Letters AUROC")
    assert dialog.is_visible()
    assert page.locator("dialog .exact").inner_text() == f"{letters['auroc']!r} (97.27 %)"
    assert fact(page, "digest")[0] == one["digest"] and fact(page, "commit")[0] == one["commit"]
    assert fact(page, "path") == ["glyphs/clipn.json"] and fact(page, "method's source") == [one["source"]]
    assert fact(page, "stored scores")[0] == one["scores"]["glyphs-letters"]
    assert fact(page, "list digest")[0] == letters["list_digest"]
    low, high = letters["intervals"]["auroc"]
    assert fact(page, "95 % interval") == [f"[{low}, {high}] (DeLong, logit; score interval where few are lost)"]
    text = dialog.text_content() or ""
    for part in (
        *(one["weights"]["digest"], one["templates"]["digest"], one["encoder"]["weights"], one["classes"]["digest"]),
        *(one["files"]["no_templates"], one["versions"]["torch"], "mean_offset", "average_precision", one["created"]),
        *(s["list_digest"] for s in (one["id"], *one["ood"])),
        *one["scores"].values(),
    ):
        assert part in text, part
    explain, check = (shlex.split(t) for t in page.locator("dialog pre").all_inner_texts())
    printed = cli(*explain[1:], cwd=ROOT)
    assert explain[0] == "oodbench" and printed.returncode == 0
    assert printed.stdout.startswith("CLIPN (clipn) on Letters") and one["digest"] in printed.stdout
    assert check == ["oodbench", "report", "--results", str(GLYPHS), "--verify"]


def test_a_cell_has_an_address(glyphs: Path, visit: Open) -> None:
    page, one = visit(glyphs), stored()["ZOC"]
    cell(page, "ZOC", "mean", "fpr95").locator("a").press("Enter")
    at = cell(page, "ZOC", "mean", "fpr95").inner_text()
    fragment = page.evaluate("location.hash")
    assert fragment == f"#cell-{one['digest'][:12]}-mean-fpr95"
    assert page.locator("dialog .exact").inner_text().startswith(repr(mean(one, "fpr95")))
    assert page.evaluate("document.activeElement.textContent") == "Close"
    close_panel(page)
    assert not page.locator("dialog").is_visible() and page.evaluate("location.hash") == ""
    assert page.evaluate(HERE) == at, "the focus is where it was"
    cell(page, "ZOC", "mean", "fpr95").click()
    page.go_back()
    page.locator("dialog").wait_for(state="hidden")
    linked = visit(glyphs, fragment)
    assert linked.get_by_role("dialog", name="ZOC: Average FPR95").is_visible()
    assert one["digest"] in fact(linked, "digest")
    close_panel(linked, button=True)
    assert linked.evaluate(HERE) == at
    linked.get_by_role("link", name="MCM", exact=True).click()
    assert fact(linked, "digest")[0] == stored()["MCM"]["digest"], "a name leads to its row"
    assert not visit(glyphs, "#cell-of-another-page").locator("dialog").is_visible()
    assert not visit(glyphs, "#%E0%A4%A").locator("dialog").is_visible()


def test_figures_are_in_the_page(glyphs: Path, visit: Open) -> None:
    page = visit(glyphs)
    size = glyphs.stat().st_size
    said = re.search(r"(\d+) figures, ([\d.]+) MB of this page", page.locator("header").inner_text())
    assert said and size < 5e6 and size - 4e5 < 1e6 * float(said[2]) < size
    assert [s.split(" (")[0] for s in page.locator("details.figures summary").all_inner_texts()][:2] == [
        "Overview",
        "ROC curves",
    ]
    for summary in page.locator("details.figures summary").all():
        summary.click()
    images = page.locator("details.figures img")
    assert images.count() == int(said[1]) > 3
    for image in images.all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("(img) => img.complete", arg=image.element_handle())
        wide, high, whole = image.evaluate("(i) => [i.naturalWidth, i.naturalHeight, i.width <= innerWidth]")
        assert whole and wide > 500 and "benchmark" in (image.get_attribute("alt") or "")
        kept = int(image.get_attribute("width") or 0) / int(image.get_attribute("height") or 1)
        assert kept == pytest.approx(wide / high, rel=0.01)


def test_hostile_names_are_literal(cli: Cli, tmp_path: Path, visit: Open) -> None:
    sets = [dataclasses.replace(s, title=f"{s.title} {HOSTILE}", dataset=f"{s.dataset} {HOSTILE}") for s in row().ood]
    common: dict[str, Any] = {"benchmark_title": f"Bench {HOSTILE}", "ood": tuple(sets)}
    classes = {"name": HOSTILE, "count": 1, "digest": "c" * 64, "duplicates": [HOSTILE]}
    one = row(
        "one", title=f"One {HOSTILE}", parameters={HOSTILE: HOSTILE, "x": float("nan")}, classes=classes, **common
    )
    one = dataclasses.replace(one, label=f"one[x={HOSTILE}]", commit=HOSTILE)
    two = row("two", classes=classes, **common)
    bad = row("bad", status="failed", error=f"boom {HOSTILE}", classes=classes, **common)
    results = lay(tmp_path / "results", one, two, bad)
    page = visit(written(cli, results))
    assert page.title() == f"Bench {HOSTILE} - oodbench" and page.locator("h1").inner_text() == f"Bench {HOSTILE}"
    text = page.locator("main").inner_text()
    for part in (f"One {HOSTILE} (x={HOSTILE})", f"NEAR1 {HOSTILE}", f"BAD failed: boom {HOSTILE}"):
        assert part in text, part
    page.get_by_label(f"SUN {HOSTILE}").uncheck()
    assert not page.locator("tr.blocks th", has_text=f"SUN {HOSTILE}").is_visible()
    page.get_by_label("Methods").fill("<script> ONE")
    assert names(page) == [f"One {HOSTILE} (x={HOSTILE})"]
    page.locator("td:visible a").first.click()
    said = page.locator("dialog").text_content() or ""
    assert f"NEAR1 {HOSTILE} (near1 {HOSTILE})" in said and fact(page, "commit") == [HOSTILE]
    assert fact(page, "x") == ["nan"] and fact(page, "name")[-1] == HOSTILE
    command = shlex.split(page.locator("dialog pre").first.inner_text())
    assert command[-2:] == [f"one[x={HOSTILE}]", f"near1 {HOSTILE}"]
    assert cli(*command[1:], cwd=tmp_path).stdout.startswith(f"One {HOSTILE}")
    close_panel(page)
    page.get_by_label("Methods").fill("bad")
    page.get_by_role("link", name="BAD").click()
    assert fact(page, "error") == [f"boom {HOSTILE}"]
    assert page.locator("img, script").count() == 3, "the page's own scripts"
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy


def test_dashes_come_last_and_sections_stay(cli: Cli, tmp_path: Path, visit: Open) -> None:
    nan = dataclasses.replace(row("nan", 0.99).ood[0], auroc=float("nan"))
    rows = [row("low", 0.7), row("nan", ood=(nan, *row().ood[1:])), row("high", 0.95), row("bad", status="failed")]
    results = lay(tmp_path / "results", *rows, row("other", benchmark="b2", benchmark_title="Second"))
    page = visit(written(cli, results))
    page.locator("#benchmark").select_option("Toy")
    assert page.locator("h2:visible", has_text="encoder").all_inner_texts() == ["Toy, encoder ViT-B-16/openai"]
    toy = page.locator("section.table:visible")
    button = toy.locator('th[data-block="near1"][data-metric="auroc"] button')
    for order in (["HIGH", "LOW"], ["LOW", "HIGH"]):
        button.click()
        assert [n.split()[0] for n in names(page)] == [*order, "BAD", "NAN"]
    assert "failed" in names(page)[2]
    page.locator("#benchmark").select_option("Second")
    assert names(page) == ["OTHER"]


def test_seeds_and_quotes_have_provenance(cli: Cli, tmp_path: Path, visit: Open) -> None:
    rows = [row("mcm", 0.9, seed, benchmark="mos") for seed in (0, 1)] + [row("clipn", 0.8, benchmark="mos")]
    rows[1] = dataclasses.replace(rows[1], ood=row("mcm", 0.92).ood)
    page = visit(written(cli, lay(tmp_path / "results", *rows), "--seeds", "--quote", "clipn:paper"))
    cell(page, "MCM, 2 seeds", "near1", "auroc").click()
    assert page.locator("dialog .exact").inner_text() == f"{(0.9 + 0.92) / 2!r} (91.00 %)"
    page.locator("dialog li a", has_text="seed 1").click()
    assert fact(page, "digest")[0] == rows[1].digest
    close_panel(page)
    cell(page, "CLIPN (quoted: paper)", "sun", "fpr95").click()
    published = tomllib.loads((ROOT / "results/published/clipn.toml").read_text())
    paper = next(one for one in published["rows"] if one["key"] == "clipn:paper")
    source = {**published.get("defaults", {}), **paper}["source"]
    assert page.locator("dialog .exact").inner_text().endswith(f"({paper['cells']['sun']['fpr95']:.2f} %)")
    assert fact(page, "source") == [paper["cells"]["sun"].get("source", source)]
    close_panel(page)
    head(page, "near1", "auroc").click()
    assert [n.split()[0] for n in names(page)] == ["MCM,", "CLIPN", "CLIPN"], "quoted rows stay in their section"


def test_streams_show_their_protocol(cli: Cli, tmp_path: Path, visit: Open) -> None:
    results = lay(tmp_path / "results", *(stream("tanl", seed=seed) for seed in (0, 1)))
    page = visit(written(cli, results, "--no-figures"))
    assert page.locator("main h2").all_inner_texts() == ["Toy, encoder ViT-B-16/openai, test-time adaptation"]
    cell(page, "TANL; shuffled", "sun", "fpr95_ood").click()
    page.locator("dialog li a").last.click()
    assert fact(page, "order") == ["shuffled"] and fact(page, "seed")[0] == "1" and fact(page, "batch") == ["256"]
    one = visit(written(cli, lay(tmp_path / "one", stream("oodd", "id-first", 7, base="mcm")), "--no-figures"))
    cell(one, "OODD, base MCM; id-first", "dtd", "fpr95").click()
    assert fact(one, "first auroc") == ["0.9"] and fact(one, "base") == ["mcm"]


def test_differences_stay_below_their_line(cli: Cli, tmp_path: Path, visit: Open) -> None:
    encoder = {"name": "ViT-B-16/openai", "architecture": "ViT-B-16", "slug": "x", "weights": "a1" * 32}
    one = row("mcm", benchmark="mos", parameters={"templates": "mcm", "temperature": 1.0}, encoder=encoder)
    page = visit(written(cli, lay(tmp_path / "results", one), "--compare", "published"))
    before = names(page)
    assert before[0] == "MCM, measured" and before[1::2] != before[2::2] == ["difference"] * (len(before) // 2)
    for _ in range(2):
        head(page, "sun", "fpr95").click()
        after = names(page)
        assert sorted(after) == sorted(before)
        assert all("quoted" in a for a, b in itertools.pairwise(after) if b == "difference")


def test_reads_without_javascript(glyphs: Path, visit: Open) -> None:
    page, one = visit(glyphs, java_script_enabled=False), stored()["MCM"]
    assert page.locator("tbody th[scope=row]").count() == 9 and page.locator("tbody td").first.is_visible()
    assert "cannot be sorted or filtered" in page.locator("body").inner_text() and not page.locator("form").is_visible()
    line = page.locator("tbody tr", has=page.get_by_role("link", name="MCM", exact=True))
    line.locator("td a").first.click()
    text = page.locator(f"#row-{one['digest'][:12]}")
    assert text.is_visible() and json.loads(text.inner_text())["row"]["digest"] == one["digest"]


def test_narrow_wide_and_on_paper(glyphs: Path, visit: Open, tmp_path: Path) -> None:
    page = visit(glyphs, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, "the table scrolls, not the page"
    first = page.locator("tbody th[scope=row]").first
    before = first.bounding_box()
    assert page.locator(".box").evaluate("box => { box.scrollLeft = 300; return box.scrollLeft; }") == 300
    assert first.bounding_box() == before, "the names stay"
    cell(page, "MCM", "mean", "auroc").locator("a").press("Enter")
    box = page.locator("dialog").bounding_box()
    assert box and box["x"] == 0 and box["width"] == 400
    close_panel(page)
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.locator(".box").evaluate("box => getComputedStyle(box).overflowX") == "visible"
    assert page.pdf(path=tmp_path / "page.pdf", landscape=True).startswith(b"%PDF")


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` or `#rgb`, as WCAG 2.1 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(glyphs: Path, visit: Open, scheme: str) -> None:
    page = visit(glyphs, color_scheme=scheme)
    names = ("ground", "raised", "hit", "text", "quiet", "accent", "warn")
    found = page.evaluate("n => n.map((k) => getComputedStyle(document.body).getPropertyValue(`--${k}`).trim())", names)
    light = {name: luminance(colour) for name, colour in zip(names, found, strict=True)}
    assert (light["ground"] > 0.5) == (scheme == "light")
    for back in ("ground", "raised", "hit"):
        for front in ("text", "quiet", "accent", "warn"):
            low, high = sorted((light[back], light[front]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{front} on {back}"


def test_two_thousand_rows(process: Cli, tmp_path: Path, visit: Open) -> None:
    encoders = [{"name": f"enc{i}", "slug": f"enc{i}", "weights": f"{i:064d}"} for i in range(20)]
    rows = [
        row(f"m{m}", 0.5 + m / 250, encoder=encoder, parameters={"scale": m / 7}, scores={"sun": f"{m:064d}"})
        for encoder in encoders
        for m in range(100)
    ]
    results = lay(tmp_path / "results", *rows)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    path = written(process, results)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert took < 40 and path.stat().st_size < 10e6, f"{took:.1f} s, {path.stat().st_size / 1e6:.1f} MB"
    page = visit(path)
    assert "more than 12 tables have none unless --with-figures is given" in page.locator("header").inner_text()
    page.locator("#encoder").select_option("enc7")
    page.get_by_label("Methods").fill("m99")
    assert names(page) == ["M99"] and "1 of 2000 results" in page.locator("#count").inner_text()


def test_a_mean_is_over_the_sets_that_are_shown(cli: Cli, tmp_path: Path, visit: Open) -> None:
    page = visit(written(cli, lay(tmp_path / "results", row(auroc=0.9)), "--ood", "near1,dtd", "--metrics", "auroc"))
    cell(page, "MCM", "mean", "auroc").click()
    assert page.locator("dialog .exact").inner_text() == f"{(0.9 + 0.7) / 2!r} (80.00 %)"
    assert page.locator("dialog h3").first.inner_text() == "The average of 2 OOD sets"
    assert fact(page, "NEAR1") == ["0.9 (90.00 %)"] and fact(page, "DTD") == ["0.7 (70.00 %)"] and not fact(page, "SUN")


def test_rows_from_mlflow_have_no_path() -> None:
    text = render(report.tables([row()]), FigureSource({}), report.TableOptions())
    assert '"path":"only in MLflow"' in text and "oodbench report --mlflow URI --explain mcm" in text
    assert "no result has scores per image" in text and "--verify" not in text


def test_refused_options_of_the_page(cli: Cli, tmp_path: Path) -> None:
    results = lay(tmp_path / "results", row())
    for flags, remedy in (
        (("--format", "html"), "name it with --output FILE"),
        (
            ("--format", "html", "--output", "x.html", "--transpose"),
            "--transpose cannot be combined with --format html",
        ),
        (("--format", "markdown", "--no-figures"), "--no-figures requires --format html"),
    ):
        done = cli("report", "--results", results, *flags, cwd=tmp_path)
        assert done.returncode == 2 and remedy in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.html").exists()
    again = [written(cli, results).read_bytes() for _ in range(2)]
    assert again[0] == again[1] and str(tmp_path).encode() not in again[0], "the same page again, without paths of here"


def test_sets_with_equal_slugs_have_distinct_addresses() -> None:
    names = ["sun-auroc", "数据-auroc", "图像-auroc", "folder:/a/b-auroc", "folder:/a-b-auroc"]
    found = [_address(name) for name in names]
    assert len(set(found)) == len(names) and found[0] == "sun-auroc"
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", one) for one in found)
