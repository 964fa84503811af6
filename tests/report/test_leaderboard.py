"""The leaderboard: evidence, ranking, and the page in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.metrics import roc_auc_score

from oodbench.data import catalog
from oodbench.errors import UserError
from oodbench.method import Access, registry
from oodbench.metrics.detection import evaluate, score_set
from oodbench.report.formats.latex_text import escape
from oodbench.report.leaderboard import CollectedResults, collect, sources, write
from oodbench.report.leaderboard import page as page_of_board
from oodbench.report.leaderboard.evidence import MEASURED
from oodbench.report.leaderboard.rows import agreeing, several
from oodbench.report.leaderboard.sources import CollectedResult
from oodbench.report.submission import place
from oodbench.report.tables.published import PublishedValue, Quote, quotes
from oodbench.results import METRICS, IdRow, Result, SetRow, _digest
from tests.report.panel import close_panel
from tests.report.stream_rows import stream
from tests.report.test_report_shapes import row as plain_row

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "a_b & 50% <script>alert(1)</script></script><!-- \"q\" 'x' <img src=x onerror=alert(2)> $x$ | =1"
STATED: dict[str, object] = {
    "authors": "Ann, Somewhere",
    "paper": "none",
    "code": "https://example.org/code",
    "licence": "CC0-1.0",
}
STATED |= {"hardware": "1 GPU", "tuned_on_test_data": False, "created": "2026-11-28", "oodbench": "0.1.0"}
Cli = Callable[..., subprocess.CompletedProcess[str]]
Open = Callable[..., "Page"]
Scores = dict[str, np.ndarray[Any, Any]]


def row(method: str = "mcm", **changes: Any) -> Result:
    return plain_row(method, **{"access": Access().plain(), **changes})


MOS = {"ood": tuple(dataclasses.replace(row().ood[0], dataset=n) for n in ("inaturalist", "sun", "places", "textures"))}


def scored(seed: int = 0) -> tuple[Result, Scores]:
    """A result and the scores per image that give its numbers."""
    draw = np.random.default_rng(seed)
    scores = {"cats": draw.normal(1, 1, 40), "sun": draw.normal(0, 1, 30), "dtd": draw.normal(-1, 1, 20)}
    on_id = score_set(scores["cats"], "cats")
    sets = []
    for name in ("sun", "dtd"):
        found = evaluate(on_id, score_set(scores[name], name))
        values = {metric: getattr(found, metric) for metric in (*METRICS, "tied")}
        n = len(scores[name])
        sets.append(SetRow(name, name.upper(), "", n, n, 0, f"list of {name}", **values))
    return row(ood=tuple(sets), id=IdRow("cats", "Cats", 40, 40, 0, "list of cats", None)), scores


def save(path: Path, result: Result, scores: Scores | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.to_json())
    if scores:
        n = sum(map(len, scores.values()))
        columns = {
            "dataset": [name for name, found in scores.items() for _ in found],
            "score": np.concatenate(list(scores.values())),
            "label": np.zeros(n, dtype=np.int64),
            "prediction": np.full(n, -1),
        }
        parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path


def submit(folder: Path, result: Result, handle: str, **stated: object) -> Path:
    path = save(folder / place(handle, result) / "result.json", result)
    facts = {**STATED, "handle": handle, **stated}
    lines = [f"{name} = {json.dumps(value)}" for name, value in facts.items()]
    lines += ["[files]", f'"result.json" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"']
    path.with_name("submission.toml").write_text("\n".join(["[submission]", *lines]))
    return path


def board(folder: Path, *folders: Path, published: list[Quote] | None = None, **options: Any) -> dict[str, Any]:
    """The data of the page of some folders."""
    write(folder, collect(folders, folder), published or [], **options)
    found: dict[str, Any] = json.loads((folder / "leaderboard.json").read_text())
    return found


def names(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["rows"]}


def test_evidence_of_checks(tmp_path: Path) -> None:
    results = tmp_path / "results" / "runs"
    one, scores = scored()
    save(results / "good.json", dataclasses.replace(one, title="GOOD"), scores)
    save(results / "bare.json", dataclasses.replace(one, title="BARE"))
    read_in = {**one.run, "imported": {"files": {}, "by": ""}}
    save(results / "other.json", dataclasses.replace(one, title="OTHER", run=read_in), scores)
    changed = {**scores, "sun": scores["sun"] + 0.5}
    save(results / "wrong.json", dataclasses.replace(one, title="WRONG"), changed)
    save(results / "torn.json", dataclasses.replace(one, title="TORN"), scores)
    results.joinpath("torn.parquet").write_bytes(b"PAR1")
    edited = save(results / "edited.json", dataclasses.replace(one, title="EDITED"), scores)
    edited.write_text(edited.read_text().replace('"n": 40', '"n": 41'))
    found = collect([tmp_path / "results"])
    page = board(tmp_path / "site", tmp_path / "results")
    rows = names(page)
    assert {name: one["evidence"] for name, one in rows.items()} == {
        "GOOD": "verified",
        "BARE": "measured",
        "OTHER": "imported",
        "WRONG": "failed verification",
        "TORN": "failed verification",
    }
    expected = {
        name: roc_auc_score([1] * 40 + [0] * len(scores[name]), np.concatenate([scores["cats"], scores[name]]))
        for name in ("sun", "dtd")
    }
    shown = {name: rows["GOOD"]["values"][name]["auroc"] for name in (*expected, "mean")}
    assert shown == pytest.approx({**expected, "mean": (expected["sun"] + expected["dtd"]) / 2})
    for name in ("WRONG", "TORN"):
        assert "values" not in rows[name] and rows[name]["unranked"], "a wrong number is never shown"
    assert "sun: auroc is" in rows["WRONG"]["unranked"] and "torn.parquet cannot be read" in rows["TORN"]["unranked"]
    assert len(page["unreadable"]) == 1 and page["unreadable"][0].startswith("runs/edited.json was changed")
    assert len(found.failures) == 3
    text = (tmp_path / "site/index.html").read_text()
    assert str(tmp_path) not in text, "no path of this machine"


@pytest.mark.parametrize("source", ["its own", "0" * 64])
def test_access_of_a_measured_row_is_checked(tmp_path: Path, source: str) -> None:
    """The access card is in no digest: a changed one would put a trained method among the zero-shot ones."""
    source = registry.methods()["react"].source if source == "its own" else source
    save(tmp_path / "results" / "react.json", row("react", source=source))
    (one,) = board(tmp_path / "site", tmp_path / "results")["rows"]
    assert one["evidence"] == "failed verification" and "values" not in one and "its access is" in one["unranked"]


@pytest.mark.parametrize("value", [7.0, -0.1, math.nan, math.inf])
def test_numbers_that_cannot_be_are_refused_without_scores(tmp_path: Path, value: float) -> None:
    save(tmp_path / "results" / "a.json", row(ood=(dataclasses.replace(row().ood[0], fpr95=value),)))
    (one,) = board(tmp_path / "site", tmp_path / "results")["rows"]
    assert "values" not in one and f"sun: fpr95 is {value}, not between 0 and 1" in one["unranked"]


def forge(path: Path, part: str, key: str, value: object) -> None:
    """Change a value inside a result, and its digest."""
    raw = json.loads(path.read_text())
    raw.pop("digest")
    raw[part][key] = value
    path.write_text(json.dumps({**raw, "digest": _digest(raw)}))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("run", "calibration", 5),
        ("run", "imported", [1]),
        ("run", "seed", {"a": 1}),
        ("stream", "seed", "x"),
        ("weights", "recipe", "x"),
    ],
)
def test_values_of_another_type_are_not_read(tmp_path: Path, part: str, key: str, value: object) -> None:
    path = save(tmp_path / "results" / "a.json", row(weights={"digest": "d"}))
    forge(path, part, key, value)
    found = board(tmp_path / "site", tmp_path / "results")
    assert not found["rows"] and f"{part}.{key} is of another type" in found["unreadable"][0]


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "results" / "a.json", row())
    os.mkfifo(tmp_path / "results" / "b.json")
    found = collect([tmp_path / "results"])
    assert len(found.results) == 1 and [*found.unreadable.values()] == ["b.json is not a regular file"]


def test_what_is_wrong_with_a_submission_is_seen_without_check(tmp_path: Path) -> None:
    """The page may be built without `submit --check`: theft, changed files, and a handle such as `runs`."""
    submissions = tmp_path / "submissions"
    for number, handle in enumerate(("jane", "runs", "ann", "bob", "JANE", "aaron")):
        ood = tuple(
            dataclasses.replace(s, auroc=0.9 - number % 5 / 100) for s in row().ood
        )  # aaron's are those of jane
        submit(submissions, row(ood=ood), handle, created=f"2026-11-2{number}")
    changed = next((submissions / "ann").rglob("submission.toml"))
    changed.write_text(re.sub(r'"[0-9a-f]{64}"', f'"{"0" * 64}"', changed.read_text()))
    moved = next((submissions / "bob").rglob("mcm"))
    moved.rename(moved.with_name("energy"))
    found = board(tmp_path / "site", submissions)
    assert {one["by"]: one.get("unranked", "") for one in found["rows"]} == {
        "@jane": "",
        "@runs": "",
        "@ann": "result.json was changed: its sha256 differs from that in submission.toml",
        "@bob": "it belongs in the folder bob/toy/ViT-B-16-openai/mcm",
    }
    case, theft = sorted(found["unreadable"])
    assert case.endswith("the handle @JANE differs from @jane in case only")
    assert "@aaron submits the result of @jane in jane/toy/" in theft


def test_titles_are_those_of_the_catalogue(tmp_path: Path) -> None:
    ood = (
        dataclasses.replace(row().ood[0], dataset="sun", title="Textures"),
        dataclasses.replace(row().ood[1], title="Own"),
    )
    save(tmp_path / "results" / "a.json", row(benchmark="mos", benchmark_title="Mine", ood=ood, created="tomorrow"))
    save(
        tmp_path / "results" / "b.json",
        row(benchmark="mine", benchmark_title="Mine", created="2026-11-02T01:02:03+00:00"),
    )
    found = board(tmp_path / "site", tmp_path / "results")
    titles = {
        one["name"]: {"": one["title"], **{b["name"]: b["title"] for b in one["blocks"]}} for one in found["benchmarks"]
    }
    assert titles["mos"][""] == catalog.benchmarks()["mos"].title and titles["mos"]["sun"] == "SUN"
    assert titles["mine"][""] == "Mine" and titles["mine"]["dtd"] == "DTD" and titles["mos"]["dtd"] == "Own"
    assert found["created"] == "2026-11-02"


def test_exit_codes(cli: Cli, tmp_path: Path) -> None:
    one, scores = scored()
    results, site = tmp_path / "results", tmp_path / "site"
    call = ("leaderboard", results, "--no-quoted", "--no-reference", "--output", site)
    save(results / "good.json", one, scores)
    done = cli(*call)
    assert done.returncode == 0 and "index.html with 1 rows" in done.stderr, done.stderr
    save(results / "wrong.json", dataclasses.replace(one, title="WRONG"), {**scores, "sun": -scores["sun"]})
    done = cli(*call)
    assert done.returncode == 1 and "wrong.json: mcm: sun: auroc is" in done.stderr
    assert cli(*call, "--allow-failed").returncode == 0
    assert names(json.loads((site / "leaderboard.json").read_text()))["WRONG"]["evidence"] == "failed verification"
    done = cli("leaderboard", tmp_path, "--no-quoted", "--no-reference", "--output", site, "--allow-failed")
    assert "leaderboard.json" not in done.stderr, "its own output is not a damaged result"


def test_refusals(cli: Cli, tmp_path: Path) -> None:
    results = save(tmp_path / "results" / "one.json", row()).parent
    (tmp_path / "empty").mkdir()
    for arguments, remedy in (
        (("missing", "--output", "site"), "make one with: oodbench run --results missing"),
        (("results/one.json", "--output", "site"), "name the folder: oodbench leaderboard results"),
        (("empty", "--output", "site"), "empty has no results; create some with: oodbench run --results empty"),
        (("--no-quoted", "--no-reference", "--output", "site"), "leave out --no-quoted"),
        (("results", "--output", "results/one.json"), "is a file; name a folder"),
        (("results", "--output", "results/one.json/site"), "cannot be written"),
        (("results", "--output", "site", "--repository", "javascript:alert(1)"), "is not an address such as https://"),
        (("results", "--output", "site", "--repository", "https://"), "is not an address such as https://"),
        (("results", "--output", "site", "--repository", "https://u:secret@host/x"), "has a user or password"),
        (("results", "--output", "results"), "all results of results are below --output; name another folder"),
        (("results",), "--output"),
    ):
        given = arguments if "--no-quoted" in arguments else (*arguments, "--no-quoted", "--no-reference")
        done = cli("leaderboard", *given, cwd=tmp_path)
        assert done.returncode == 2 and remedy in done.stderr and "secret" not in done.stderr, (arguments, done.stderr)
        assert not (tmp_path / "site").exists() and results.is_dir()


def test_a_new_leaderboard_has_no_submissions(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "submissions").mkdir()
    done = cli("leaderboard", "submissions", "--no-reference", "--output", "site", cwd=tmp_path)
    assert done.returncode == 0 and "note: submissions has no results; create some with" in done.stderr
    assert json.loads((tmp_path / "site" / "leaderboard.json").read_text())["rows"]


def test_unranked_rows_state_the_reason(tmp_path: Path) -> None:
    whole = row()
    part = dataclasses.replace(whole.ood[0], n=100)
    skipping = dataclasses.replace(whole.ood[0], skipped=3)
    submissions = tmp_path / "submissions"
    for handle, one in {
        "whole": whole,
        "part": row(ood=(part, whole.ood[1])),
        "id": row(id=dataclasses.replace(whole.id, n=10)),
        "limit": row(run={**whole.run, "limit": 20}),
        "skipped": row(ood=(skipping, whole.ood[1])),
        "sets": row(benchmark="mos", ood=(dataclasses.replace(whole.ood[0], dataset="sun"),)),
        "failed": row(status="failed", error="out of memory"),
        "nobody": row("nobody", access={}),
    }.items():
        submit(submissions, one, handle)
    found = {one["by"]: one.get("unranked", "") for one in board(tmp_path / "site", submissions)["rows"]}
    assert found == {
        "@whole": "",
        "@part": "SUN: partial 100/200",
        "@id": "Cats: partial 10/1000",
        "@limit": "--limit 20",
        "@skipped": "SUN: 3 images skipped",
        "@sets": "OOD sets are missing: inaturalist, places, textures",
        "@failed": "the method failed: out of memory",
        "@nobody": "the access of the method is unknown",
    }


def test_seeds_are_averaged_within_one_source(tmp_path: Path) -> None:
    """Equal seeds of two labs are two rows, so that no lab can change another's average."""
    for handle, seeds, value in (("ann", (0, 1), 0.9), ("bob", (0, 1), 0.5)):
        for seed in seeds:
            ood = tuple(dataclasses.replace(s, auroc=value + seed / 100) for s in row().ood)
            submit(tmp_path / "submissions" / str(seed), row(seed=seed, ood=ood), handle)
    found = board(tmp_path / "site", tmp_path / "submissions")["rows"]
    means = {one["by"]: (one["name"], one["values"]["mean"]["auroc"]) for one in found}
    assert means == {"@ann": ("MCM, 2 seeds", pytest.approx(0.905)), "@bob": ("MCM, 2 seeds", pytest.approx(0.505))}


def test_settings_and_streams_have_separate_scopes(tmp_path: Path) -> None:
    results = tmp_path / "results" / "runs"
    save(results / "a.json", row("mcm"))
    save(results / "b.json", row("msp", run={**row().run, "precision": "bf16"}))
    save(results / "c.json", stream("tanl", seed=0))
    save(results / "d.json", stream("oodd", protocol={"batch": 64}, base="mcm"))
    found = names(board(tmp_path / "site", tmp_path / "results"))
    assert {one["group"] for one in found.values()} == {"zero-shot", "test-time adaptation"}
    assert len({one["scope"] for one in found.values()}) == 4, "nothing here is ranked with anything else"
    assert found["MCM"]["scope"] == "precision fp32" and found["MSP"]["scope"] == "precision bf16"


def test_other_sizes_sets_and_groups_are_not_ranked_together(tmp_path: Path) -> None:
    one, other = (dataclasses.replace(s, expected=None) for s in row().ood)
    sets = [
        (one, other),
        (dataclasses.replace(one, n=5), other),
        (one, other, dataclasses.replace(one, dataset="easy")),
    ]
    sets += [(one, dataclasses.replace(other, group="far"))]
    for number, ood in enumerate(sets):
        save(tmp_path / "results" / f"{number}.json", row("mcm", title=str(number), ood=ood))
    save(tmp_path / "results" / "part.json", row("msp", ood=(dataclasses.replace(row().ood[0], n=7), row().ood[1])))
    found = names(board(tmp_path / "site", tmp_path / "results"))
    scopes = [found[str(number)]["scope"] for number in range(4)]
    assert len({*scopes}) == 4 and "OOD sun: 5 images" in scopes[1] and "OOD dtd: group far" in scopes[3]


def test_published_rows_of_several_settings_and_streams_stand_apart(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        one = row("mcm", benchmark="mos", run={**row().run, "precision": precision}, **MOS)
        save(tmp_path / "results" / f"{precision}.json", one)
    openai: dict[str, Any] = {"architecture": "ViT-B-16", "weights": "openai"}
    published = [quoted("a", **openai)]
    published += [quoted(k, fpr95=ord(k), source=k, access={"stream": True}, **openai) for k in "bc"]
    found = board(tmp_path / "site", tmp_path / "results", published=published)["rows"]
    scopes = [one["scope"] for one in found if one["evidence"].startswith("quoted")]
    assert scopes == [
        "settings of the publications",
        "protocol of b; order not stated",
        "protocol of c; order not stated",
    ]


def test_own_results_and_recomputed_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, scores = scored()
    imported = {**one.run, "imported": {"files": {}, "by": "Ann"}}
    save(tmp_path / "own" / "a.json", one, scores)
    save(tmp_path / "results" / "b.json", dataclasses.replace(one, title="WITH", run=imported), scores)
    save(tmp_path / "results" / "c.json", dataclasses.replace(one, title="WITHOUT", run=imported))
    submit(tmp_path / "submissions", one, "thief")
    monkeypatch.setattr(sources, "reference", lambda: tmp_path / "own")
    found = board(tmp_path / "site", *(tmp_path / name for name in ("submissions", "results", "own")))
    rows = {one["name"]: (one.get("by", ""), one.get("recomputed", False)) for one in found["rows"]}
    assert rows == {"MCM": ("oodbench", True), "WITH": ("", True), "WITHOUT": ("", False)}
    assert "@thief submits the result of oodbench in a.json" in found["unreadable"][0]


def test_published_rows_are_ranked_with_measured_ones_of_their_encoder(tmp_path: Path) -> None:
    own = {"benchmark": "mos", **MOS}
    save(tmp_path / "results" / "a.json", row("mcm", run={**row().run, "precision": "bf16", "limit": 9}, **own))
    save(tmp_path / "results" / "b.json", row("mcm", **own))
    published = [
        quoted("a", architecture="ViT-B-16", weights="openai"),
        quoted("b", architecture="ViT-B-16"),
        quoted("c", architecture="ViT-B-16", weights="openai", access={"stream": True}),
    ]
    found = board(tmp_path / "site", tmp_path / "results", published=published)["rows"]
    here, *_ = (one["scope"] for one in found if one["evidence"] == "measured" and "unranked" not in one)
    openai, unstated, adapts = (one for one in found if one["evidence"].startswith("quoted"))
    assert openai["scope"] == here and "scope" not in unstated and adapts["scope"] != here
    assert unstated["encoder"] == "ViT-B-16 (weights not stated)" != openai["encoder"]


def test_other_json_files_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "results" / "a.json", row())
    for name, text in (("speed", '{"seconds": 1}'), ("list", "[1]")):
        (tmp_path / "results" / f"{name}.json").write_text(text)
    (tmp_path / "results" / "torn.json").write_text('{"digest":')
    found = collect([tmp_path / "results"])
    assert len(found.results) == 1 and next(iter(found.unreadable.values())).startswith("torn.json is not JSON")
    assert sorted(message.split("/")[-1] for message in caplog.messages) == [
        "list.json is JSON, but not a result: skipped",
        "speed.json is JSON, but not a result: skipped",
    ]


def test_rows_have_the_statement_of_a_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = submit(Path("submissions"), row(), "ann", paper="2211.13445")
    (one,) = board(tmp_path / "site", Path("submissions"), repository="https://example.org/tree/main/")["rows"]
    assert one["by"] == "@ann" and one["stated"]["hardware"] == "1 GPU" and one["stated"]["tuned on test data"] == "no"
    assert one["links"] == {
        "paper": "https://arxiv.org/abs/2211.13445",
        "code": "https://example.org/code",
        "submission": "https://example.org/tree/main/submissions/ann/toy/ViT-B-16-openai/mcm",
    }
    good = path.with_name("submission.toml").read_text()
    for text in ("[submission", good.replace('"ann"', '""'), good.replace("false", "true")):
        path.with_name("submission.toml").write_text(text)
        found = collect([Path("submissions")])
        assert not found.results and len(found.unreadable) == 1, "no number of a submission that states too little"


def quoted(key: str, cite: str = "", fpr95: float = 30.0, **changes: Any) -> Quote:
    value = PublishedValue(fpr95 / 100, "s", "c")
    plain = Quote(key, "mcm", "MCM", "mos", "s", "read", {"mean": {"fpr95": value}}, {}, cite=(cite or key,))
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("other", "agree"),
    [
        (quoted("b", fpr95=30.1), True),
        (quoted("b", fpr95=30.11), False),
        (quoted("b", cite="a"), False),
        (quoted("b", weights="openai"), False),
        (quoted("b", title="MCM, fine-tuned"), False),
        (quoted("b", access={"id_images": True}), False),
        (quoted("b", settings={"temperature": 2.0}), False),
        (quoted("b", benchmark="openood"), False),
        (quoted("b", cells={"sun": {"fpr95": PublishedValue(0.3, "s", "c")}}), False),
        (quoted("b", cells={"mean": {"fpr95_ood": PublishedValue(0.3, "s", "c")}}), False),
    ],
)
def test_which_publications_agree(other: Quote, agree: bool) -> None:
    groups = agreeing([quoted("a"), other])
    assert (len(groups) == 1) == agree and several(groups[0]) == agree


def test_a_third_publication_agrees_with_all_or_none() -> None:
    keys = [
        [one.key for one in same] for same in agreeing([quoted("a"), quoted("b", fpr95=30.1), quoted("c", fpr95=30.2)])
    ]
    assert keys == [["a", "b"], ["c"]]
    assert several([quoted("a", confidence="high: three papers' tables agree")]) and not several([quoted("a")])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of published numbers and the project's own results, without scores."""
    folder = tmp_path_factory.mktemp("leaderboard")
    for path in (ROOT / "results/reference/glyphs/glyphs").glob("*.json"):
        (folder / "glyphs").mkdir(exist_ok=True)
        (folder / "glyphs" / path.name).write_bytes(path.read_bytes())
    (folder / "site").mkdir()
    write(folder / "site", collect([folder / "glyphs"]), list(quotes().values()))
    return folder / "site"


def stated() -> dict[str, dict[str, Any]]:
    """The published rows as their files have them, by key."""
    out: dict[str, dict[str, Any]] = {}
    for path in (ROOT / "results/published").glob("*.toml"):
        raw = tomllib.loads(path.read_text())
        out |= {one["key"]: {**raw.get("defaults", {}), **one} for one in raw["rows"]}
    return out


def test_every_published_number_is_there_once(site: Path) -> None:
    found = json.loads((site / "leaderboard.json").read_text())
    rows = [one for one in found["rows"] if one["evidence"].startswith("quoted")]
    files = stated()
    addresses = Counter(address for one in rows for address in one["records"])
    assert len(addresses) == len(files) > 100 and set(addresses.values()) == {1}
    for one in rows:
        published = files[next(key for key in files if f"quote-{key.replace(':', '-')}" == one["id"])]
        cells = {n: {m: v for m, v in cell.items() if m in METRICS} for n, cell in published["cells"].items()}
        shown = {n: {m: pytest.approx(100 * v) for m, v in cell.items()} for n, cell in one["values"].items()}
        assert cells == shown, one["id"]
    by_name = {(one["name"], one["by"]): one for one in rows}
    mcm, cover = files["mcm:paper"]["source"], files["mcm:cover"]["source"]
    assert by_name["MCM", f"{mcm}; {cover}"]["evidence"] == "quoted: several sources"
    assert by_name["MCM", files["mcm:neglabel"]["source"]]["evidence"] == "quoted: one source", (
        "its FPR95 is another one"
    )
    assert by_name["ZOC", files["zoc:neglabel"]["source"]]["evidence"] == "quoted: several sources", (
        "two reprints agree"
    )
    encoders = {one["encoder"] for one in rows if one["benchmark"] == "mos"}
    assert {"ViT-B-16/openai", "ViT-B-16/laion2b_s34b_b88k", "ViT-B-16 (weights not stated)"} <= encoders


def copied(form: str, **changes: Any) -> str:
    """A table with one row as copied from the page, by Node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    cells = [{"text": "90.50", "mark": "best", "extra": "± 0.71"}, {"text": "-", "mark": "", "extra": ""}]
    line = {"rank": 1, "name": "M", "by": "", "why": "", "evidence": "measured", "cells": cells, **changes}
    heads = [{"title": "SUN", "metrics": ["AUROC ↑", "FPR95 (i) ↓"]}]
    table = {"title": "T", "caption": "C", "heads": heads, "sections": [{"title": "Zero-shot", "lines": [line]}]}
    signs = page_of_board._signs(json.dumps(table, ensure_ascii=False))
    code = (ROOT / "oodbench/report/leaderboard/copy.js").read_text()
    code += f"process.stdout.write(copies({json.dumps(signs)}).{form}({json.dumps(table)}));"
    return subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, encoding="utf-8").stdout


@pytest.mark.parametrize("name", [HOSTILE, r"[x] α‑Method* ≥ 1 ~^\{}", "e\u0301 --a", "中文"])
def test_copied_latex_has_the_text_that_python_escapes(name: str) -> None:
    text = copied("latex", name=name, why="--limit 20")
    assert f"\n1 & {escape(name)}; not ranked: -{{}}-limit 20 & measured &" in text
    assert "\\textbf{90.50} {\\scriptsize $\\pm$ 0.71} & - \\\\" in text and "\\resizebox" in text
    assert ("% pdflatex lacks 中 文: use LuaLaTeX" in text) == (name == "中文")


def test_copied_csv_and_markdown() -> None:
    head, line = csv.reader(copied("csv", name="=1", why="--limit 20", by="@jane").splitlines())
    assert dict(zip(head, line, strict=True)) == {
        "section": "Zero-shot",
        "rank": "1",
        "method": "'=1",  # a spreadsheet would compute it
        "by": "'@jane",
        "evidence": "measured",
        "not ranked": "'--limit 20",
        "SUN AUROC": "90.50",
        "SUN AUROC note": "± 0.71",
        "SUN FPR95 (i)": "",
    }
    text = copied("markdown", name="M", why="x" * 200)
    assert f"| 1 | M; not ranked: {'x' * 97}... | measured | **90.50** ± 0.71 | - |" in text


def line_names(page: Page) -> list[str]:
    found: list[str] = page.locator("#table tbody th[scope=row] > a").all_inner_texts()
    return found


def sections(page: Page) -> list[str]:
    found: list[str] = page.locator("#table tr.section span").all_inner_texts()
    return found


def head(page: Page, block: str, metric: str) -> Any:
    return page.locator(f'button[data-focus="sort {block}/{metric}"]')


@pytest.mark.slow
def test_the_page_ranks_within_sections(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    assert page.get_by_role("tab", selected=True).inner_text().startswith("ImageNet-1k, MOS protocol")
    files = stated()
    on_mos = [one for one in files.values() if one["benchmark"] == "mos" and one["architecture"] == "ViT-B-16"]
    only_o = [one for one in on_mos if all("fpr95" not in cell for cell in one["cells"].values())]
    only_o = [one for one in only_o if any("fpr95_ood" in cell for cell in one["cells"].values())]
    apart = page.locator("#table tbody", has=page.locator("tr.section", has_text="not ranked with FPR95 (i)"))
    below = apart.locator("th[scope=row] > a").all_inner_texts()
    assert sorted(below) == sorted(one["title"] for one in only_o) and len(below) > 3
    ranks = apart.locator("td.number").all_inner_texts()
    assert set(ranks) == {""} and not apart.locator("b, u").count(), "the other kind has neither rank nor mark"
    assert "o" in apart.locator("td small").all_inner_texts()
    streams = page.locator("#table tbody", has=page.locator("tr.section", has_text="Test-time adaptation"))
    adapting = [one["title"] for one in on_mos if one["access"].get("stream")]
    assert sorted(streams.locator("th[scope=row] > a").all_inner_texts()) == sorted(adapting) and len(adapting) > 5
    per_source = [one for one in sections(page) if one.startswith("Test-time adaptation")]
    assert len(per_source) == len(adapting) and all("order not stated" in one for one in per_source)
    title = page.get_by_text("Zero-shot · ViT-B-16/openai", exact=True)
    first = page.locator("#table tbody", has=title)
    more = {"stream", "id_images", "id_labels", "other_data", "generated"}  # than names, words and the image
    openai = [one for one in on_mos if one.get("weights") == "openai" and not more & set(one["access"])]
    zero_shot = [one for one in openai if "fpr95" in one["cells"].get("mean", {})]
    merged = [one for one in zero_shot if one["key"] != "mcm:cover"]  # agrees with mcm:paper
    ranked = sorted(merged, key=lambda one: one["cells"]["mean"]["fpr95"])
    rows = first.locator("tr:not(.section)")
    values = rows.locator("td:nth-child(5)").all_inner_texts()
    assert values[: len(ranked)] == [f"{one['cells']['mean']['fpr95']:.2f}" for one in ranked]
    assert first.locator("td:nth-child(5) b").all_inner_texts() == [values[0]]
    assert first.locator("td.number").all_inner_texts()[:3] == ["1", "2", "3"]
    head(page, "mean", "auroc").click()
    ranked.sort(key=lambda one: -one["cells"]["mean"]["auroc"])
    assert rows.locator("td:nth-child(4)").all_inner_texts()[0] == f"{ranked[0]['cells']['mean']['auroc']:.2f}"
    page.locator("#kind").select_option("fpr95_ood")
    assert not [s for s in sections(page) if "not ranked with FPR95 (i)" in s]
    assert [s for s in sections(page) if "not ranked with FPR95 (o)" in s]
    page.locator("#kind").select_option("fpr95")
    page.locator('label.chip input[value="quoted: several sources"]').press(" ")
    places = [int(rank) for rank in first.locator("td.number").all_inner_texts() if rank]
    assert places and places != list(range(1, len(places) + 1)), "rows of hidden evidence keep their ranks"
    page.locator('label.chip input[value="quoted: several sources"]').press(" ")
    page.locator("#view").select_option("encoders")
    page.get_by_role("button", name="all", exact=True).click()
    mcm = page.locator("#table tbody tr", has=page.get_by_role("link", name="MCM", exact=True))
    text = mcm.inner_text()
    for key in ("mcm:paper", "mcm:paper-l14", "mcm:cover-rn50", "mcm:cover-altclip"):
        assert f"{files[key]['cells']['mean']['fpr95']:.2f}" in text, key


@pytest.mark.slow
def test_the_address_has_the_state_and_the_keyboard_suffices(site: Path, visit: Open) -> None:
    page = visit(site / "index.html")
    page.locator("#words").fill("neg")
    assert line_names(page) and all("neg" in name.lower() for name in line_names(page))
    page.locator("label.chip", has_text="few-shot").click()
    page.locator('label.chip input[value="trained"]').press(" ")
    head(page, "textures", "auroc").press("Enter")
    assert page.evaluate("document.activeElement.dataset.focus") == "sort textures/auroc", "the focus stays"
    link = page.locator('a[data-cell="quote-neglabel-paper/textures/fpr95"]')
    link.press("Enter")
    dialog = page.get_by_role("dialog", name="NegLabel: Textures FPR95 (i)")
    assert dialog.is_visible()
    published = stated()["neglabel:paper"]
    assert f"({published['cells']['textures']['fpr95']:.2f} %)" in page.locator("#panel .exact").inner_text()
    assert published["source"] in dialog.inner_text() and published["confidence"] in dialog.inner_text()
    again = visit(site / "index.html", page.evaluate("location.hash"))
    assert again.get_by_role("dialog", name="NegLabel: Textures FPR95 (i)").is_visible()
    close_panel(again)
    assert again.evaluate("document.activeElement.dataset.cell") == "quote-neglabel-paper/textures/fpr95"
    assert line_names(again) == line_names(page) and sections(again) == sections(page)
    assert again.locator("#words").input_value() == "neg"
    assert not again.locator('label.chip input[value="trained"]').is_checked()
    assert again.locator("[aria-sort]").evaluate_all("all => all.map((th) => th.ariaSort)") == ["descending"]
    page.go_back()
    dialog.wait_for(state="hidden")
    page.get_by_role("tab", selected=True).press("ArrowRight")
    assert page.get_by_role("tab", selected=True).inner_text().startswith("Glyphs benchmark")
    assert page.evaluate("document.activeElement.id") == "tab"
    page.locator("#words").fill("")
    clipn = json.loads((ROOT / "results/reference/glyphs/glyphs/clipn.json").read_text())
    page.get_by_role("link", name="CLIPN", exact=True).click()
    assert clipn["digest"] in page.locator("#panel").inner_text()
    close_panel(page)
    page.go_back()
    page.locator("[role=tab][aria-selected=true]", has_text="ImageNet-1k, MOS protocol").wait_for()
    for form, start in (
        ("LaTeX", "% \\usepackage[T1]{fontenc}"),
        ("CSV", "section,rank,method"),
        ("Markdown", "**ImageNet"),
    ):
        page.get_by_role("button", name=form).click()
        text = page.locator("#text").input_value()
        assert text.startswith(start) and "NegLabel" in text
        assert ("GL-MCM" in text) == ("GL-MCM" in line_names(page)), "what is shown"
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
    openood = visit(site / "index.html", "#benchmark=openood")
    assert openood.locator("#kind").input_value() == "fpr95_ood", "the kind that its rows have"
    assert visit(site / "index.html", "#cell=constructor").locator("#table thead").is_visible()
    for bad in ("#%E0%A4%A", "#benchmark=no&encoder=no&cell=no/no/no&sort=no", "#cell=row-no", "#encoder=-&access=-"):
        assert visit(site / "index.html", bad).locator("#table thead").is_visible(), bad


def compiles(latex: str, folder: Path) -> None:
    """Compile a copied table with the packages that it names, if LaTeX is installed."""
    packages = "\n".join(line[2:] for line in latex.splitlines() if line.startswith("% \\usepackage"))
    text = f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{latex}\\end{{document}}\n"
    (folder / "t.tex").write_text(text)
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0 and "Overfull \\hbox" not in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
def test_two_thousand_rows_and_hostile_names(tmp_path: Path, visit: Open) -> None:
    weights, found = [f"w{i}" for i in range(4)], []
    for i, tag in enumerate(weights):
        encoder = {"name": f"ViT-B-16/{tag}", "architecture": "ViT-B-16", "slug": tag, "weights": f"{i:064d}"}
        for m in range(500):
            ood = tuple(dataclasses.replace(s, auroc=0.5 + m / 1001, fpr95=0.9 - m / 1001) for s in row().ood)
            title = f"M{m} {HOSTILE}" if m == 499 else f"M{m}"
            one = row(f"m{m}", encoder=encoder, ood=ood, title=title, parameters={HOSTILE: HOSTILE})
            place = Path("results", tag, f"{m}.json")
            found.append(CollectedResult(one, place, Path("results"), MEASURED))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    write(tmp_path / "site", CollectedResults(tuple(found), {}), [], title=HOSTILE)
    took = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    path = tmp_path / "site/index.html"
    assert took < 60 and path.stat().st_size < 6e6, (took, path.stat().st_size)
    page = visit(path)
    assert page.title() == HOSTILE and page.locator("#table tbody tr:not(.section)").count() == 2000
    took = page.evaluate(
        """() => { const before = performance.now();
        document.querySelector('button[data-focus="sort mean/auroc"]').click(); return performance.now() - before; }"""
    )
    assert took < 20_000, f"{took:.0f} ms"
    assert line_names(page)[0] == f"M499 {HOSTILE}"
    page.locator("#words").fill("m499 <script> =1")
    assert line_names(page) == [f"M499 {HOSTILE}"] * 4
    page.locator("#table tbody td a").first.click()
    assert HOSTILE in (page.locator("#panel").text_content() or "")
    close_panel(page)
    for form in ("LaTeX", "CSV", "Markdown"):
        page.get_by_role("button", name=form).click()
        text = page.locator("#text").input_value()
        if form == "LaTeX":
            assert not re.search(r"(?<!\\)[&%$#_](?![^\n]*\\usepackage)", text.partition("M499")[2].partition(" & ")[0])
            compiles(text, tmp_path)
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy


@pytest.mark.slow
def test_narrow_dark_and_on_paper(site: Path, visit: Open, tmp_path: Path) -> None:
    page = visit(site / "index.html", viewport={"width": 390, "height": 844}, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the table scrolls, not the page"
    for chosen in ("light", "dark", "system"):
        page.locator("#theme").click()
        assert page.locator("#theme").inner_text() == f"Theme: {chosen}"
        assert (page.evaluate(ground) == dark) == (chosen != "light")
    page.locator("#view").select_option("encoders")
    page.locator("#filters summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#table tbody td a").first.click()
    box = page.locator("#panel").bounding_box()
    assert box and box["x"] == 0 and box["width"] == 390
    close_panel(page)
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible() and not page.locator("#tabs").is_visible()
    assert page.locator(".box").evaluate("box => getComputedStyle(box).overflowX") == "visible"
    assert page.pdf(path=tmp_path / "page.pdf", landscape=True).startswith(b"%PDF")
    plain = visit(site / "index.html", java_script_enabled=False)
    assert "leaderboard.json" in plain.locator("noscript").inner_text()


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who can read everything
    with pytest.raises(UserError, match="cannot be read: permission denied"):
        collect([tmp_path])
