"""Provenance of numbers: explanation, recomputation from scores, paired tests, and results from MLflow."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet
from sklearn.metrics import average_precision_score, roc_auc_score

from oodbench.cli import main
from oodbench.method import Access
from oodbench.metrics import detection as metrics
from oodbench.report.verify import VerifiedResult, verify
from oodbench.results import IdRow, Result, SetRow, from_json

SETS = ("sun", "dtd")


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def lay(results: Path, method: str = "mcm", shift: float = 1.5, seed: int = 0, n: int = 200, **changes: Any) -> Path:
    """A row with its scores per image as a run leaves them, metrics by scikit-learn where it has them; its path."""
    shared, own = np.random.default_rng(7), np.random.default_rng([seed, len(method)])
    scores = {"cats": shared.normal(size=n) + 0.1 * own.normal(size=n)}
    labels = np.arange(n) % 4
    predicted = np.where(own.random(n) < 0.8, labels, 3)
    ood = []
    for place, name in enumerate(SETS):
        scores[name] = shared.normal(size=n) - shift + 0.2 * place + 0.1 * own.normal(size=n)
        is_id = np.r_[np.ones(n), np.zeros(n)]
        both = np.r_[scores["cats"], scores[name]]
        found = metrics.evaluate(metrics.score_set(scores["cats"], "id"), metrics.score_set(scores[name], name))
        auroc = float(roc_auc_score(is_id, both))
        assert found.auroc == pytest.approx(auroc, abs=1e-12)
        assert found.aupr_in == pytest.approx(average_precision_score(is_id, both), abs=1e-12)
        values = (found.auroc, found.fpr95, found.fpr95_ood, found.aupr_in, found.aupr_out, found.tied)
        ood.append(SetRow(name, name.upper(), "", n, n, 0, f"list of {name}", *values))
    row = Result(
        method=method,
        label=method,
        title=method.upper(),
        parameters={"temperature": 1.0, "templates": "mcm"},
        benchmark="toy",
        benchmark_title="Toy",
        encoder={"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "weights": "a1" * 32},
        id=IdRow("cats", "Cats", n, n, 0, "list of cats", float((predicted == labels).mean())),
        ood=tuple(ood),
        conventions={"at95": "first", "aupr": "average_precision"},
        classes={"name": "cats", "count": 4, "digest": "c1" * 32},
        templates={"name": "mcm", "count": 1, "digest": "p1" * 32},
        files={},
        run={"seed": seed, "precision": "fp32", "device": "cpu"},
        source="5a" * 32,
        versions={"torch": "2.5"},
        commit="c0ffee",
        access=Access().plain(),
        scores={name: f"key of {name}" for name in scores},
        seconds={"extract": 3.0, "score": 0.5},
        created="2026-01-02T03:04:05+00:00",
    )
    row = dataclasses.replace(row, **changes)
    path = results / "runs/toy/ViT-B-16-openai" / f"{row.method}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row.to_json())
    columns: dict[str, list[Any]] = {"dataset": [], "name": [], "label": [], "score": [], "prediction": []}
    for name, those in scores.items():
        columns["dataset"] += [name] * n
        columns["name"] += [f"{i}.png" for i in range(n)]
        columns["label"] += labels.tolist() if name == "cats" else [-1] * n
        columns["score"] += those.tolist()
        columns["prediction"] += predicted.tolist() if name == "cats" else [-1] * n
    table = pa.table({**columns, "dataset": pa.array(columns["dataset"]).dictionary_encode()})
    parquet.write_table(table, path.with_suffix(".parquet"))
    return path


def only(results: Path) -> VerifiedResult:
    (finding,) = verify(results)
    return finding


def test_explained_in_full(tmp_path: Path) -> None:
    path = lay(tmp_path)
    row = from_json(path.read_text())
    text = call("--results", tmp_path, "--explain", "mcm", "sun").stdout
    for part in (
        *("MCM (mcm) on SUN, Toy", str(path), str(path.with_suffix(".parquet")), row.digest, "c0ffee", "5a" * 32),
        *("a1" * 32, "c1" * 32, "p1" * 32, "list of sun", "list of cats", "key of sun", "torch", "temperature"),
        *(repr(row.ood[0].auroc), repr(row.ood[0].fpr95_ood), "2026-01-02T03:04:05+00:00", "extract", "cpu"),
    ):
        assert part in text, part
    assert call("--results", tmp_path, "--explain", "mcm", "SUN").stdout == text
    lay(tmp_path, seed=1)
    assert call("--results", tmp_path, "--explain", "mcm", "sun").stdout.count("MCM (mcm) on SUN") == 2


def test_explain_refuses_unknown_names(tmp_path: Path) -> None:
    lay(tmp_path)
    lay(tmp_path, "zoc", ood=(), status="failed", error="no weights")
    assert (
        "no results of method 'mmc'; did you mean 'mcm'?"
        in call("--results", tmp_path, "--explain", "mmc", "sun").stderr
    )
    assert "has an OOD set 'sum'; did you mean 'sun'?" in call("--results", tmp_path, "--explain", "mcm", "sum").stderr
    assert "zoc failed: no weights" in call("--results", tmp_path, "--explain", "zoc", "sun").stderr


def test_stored_numbers_are_reproduced(tmp_path: Path) -> None:
    lay(tmp_path)
    lay(tmp_path, "zoc", ood=(), status="failed", error="no weights")
    done = call("--results", tmp_path, "--verify")
    assert done.exit_code == 0
    assert (
        "mcm: OK, 16 numbers" in done.stdout and "failed method" in done.stdout and "2 of 2 results OK" in done.stdout
    )


def test_a_changed_score_is_detected(tmp_path: Path) -> None:
    path = lay(tmp_path).with_suffix(".parquet")
    table = parquet.read_table(path).to_pydict()
    table["score"][0] -= 9
    parquet.write_table(pa.table(table), path)
    done = call("--results", tmp_path, "--verify")
    assert done.exit_code == 1 and "DIFFERS" in done.stdout and "0 of 1 results OK" in done.stdout
    assert any(problem.startswith("sun: auroc is ") for problem in only(tmp_path).problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "prediction": [9] * len(t["prediction"])}, "ID cats: accuracy is"),
        (lambda t: {k: v[:-1] for k, v in t.items()}, "dtd: n is 200 in the result, 199"),
        (
            lambda t: {**t, "dataset": ["sum" if d == "sun" else d for d in t["dataset"]]},
            "its scores are for cats, dtd, sum",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "score"}, "cannot be read"),
        (lambda t: {**t, "score": [float("nan"), *t["score"][1:]]}, "is NaN"),
    ],
)
def test_other_changes_of_the_scores_are_detected(change: Any, message: str, tmp_path: Path) -> None:
    path = lay(tmp_path).with_suffix(".parquet")
    parquet.write_table(pa.table(change(parquet.read_table(path).to_pydict())), path)
    assert message in "\n".join(only(tmp_path).problems)


def test_damaged_and_missing_scores_are_detected(tmp_path: Path) -> None:
    path = lay(tmp_path).with_suffix(".parquet")
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in only(tmp_path).problems[0]
    path.unlink()
    assert "does not exist" in only(tmp_path).problems[0]
    assert call("--results", tmp_path, "--verify").exit_code == 1


def test_a_changed_result_is_detected(tmp_path: Path) -> None:
    path = lay(tmp_path)
    plain = json.loads(path.read_text())
    plain["ood"][0]["auroc"] = 0.99
    path.write_text(json.dumps(plain))
    assert "was changed after it was written" in only(tmp_path).problems[0]
    # Whoever mends the digest as well is found by the scores.
    forged = from_json(lay(tmp_path).read_text())
    forged = dataclasses.replace(forged, ood=(dataclasses.replace(forged.ood[0], auroc=0.99), *forged.ood[1:]))
    path.write_text(forged.to_json())
    assert only(tmp_path).problems[0].startswith("sun: auroc is 0.99 in the result, 0.")


def test_intervals_are_recomputed(tmp_path: Path) -> None:
    from oodbench.metrics import Scores, Settings, intervals
    from oodbench.report.verify import read_scores

    path = lay(tmp_path)
    row, images = from_json(path.read_text()), read_scores(path.with_suffix(".parquet"))
    scores = Scores(images["cats"].scores, {name: images[name].scores for name in SETS})
    found = intervals(scores, Settings(replicates=50))
    sets = tuple(dataclasses.replace(s, intervals=found.sets[s.dataset]) for s in row.ood)
    about = {"level": 0.95, "replicates": 50, "seed": 0}
    whole = dataclasses.replace(row, ood=sets, mean_intervals=found.means, uncertainty=about)
    path.write_text(whole.to_json())
    assert not only(tmp_path).problems
    wrong = {**found.sets["sun"], "fpr95": (0.0, 0.5)}
    path.write_text(dataclasses.replace(whole, ood=(dataclasses.replace(sets[0], intervals=wrong), sets[1])).to_json())
    assert only(tmp_path).problems[0].startswith("sun: intervals is ")


def test_results_not_significantly_worse_are_marked(tmp_path: Path) -> None:
    lay(tmp_path, "mcm", 1.5)
    lay(tmp_path, "near", 1.5)
    lay(tmp_path, "poor", 0.2)
    text = call("--results", tmp_path, "--format", "markdown").stdout
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["MCM"].count("†") + lines["NEAR"].count("†") >= 4 and "†" not in lines["POOR"]
    assert "† not significantly different from the best" in text
    assert "†" not in call("--results", tmp_path, "--format", "markdown", "--no-tests").stdout
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    assert "†" not in call("--results", tmp_path, "--format", "markdown").stdout


@pytest.mark.slow
def test_a_report_loads_nothing_heavy(tmp_path: Path) -> None:
    lay(tmp_path)
    for flags in (["--format", "latex", "--cite", "--group", "trained"], ["--verify"], ["--format", "csv"]):
        command = ["report", "--results", str(tmp_path), *flags]
        code = (
            f"import sys\nfrom oodbench.cli import main\ntry:\n    main({command!r})\nexcept SystemExit as end:\n"
            "    assert not end.code\nassert not {'torch', 'mlflow', 'ray', 'open_clip', 'sklearn'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_results_from_mlflow_equal_those_on_disk(tmp_path: Path) -> None:
    from oodbench.tracking import Tracker, default_uri, sync

    results = tmp_path / "results"
    for number, method in enumerate(("mcm", "zoc", "a_b")):
        lay(results, method, 1.0 + number / 3, seed=number)
    lay(results, "failed", ood=(), status="failed", error="no weights")
    lay(results, "mcm", 0.7, seed=5, benchmark="other", n=50)
    uri = default_uri(results)
    assert sync(Tracker(uri, results)).arrived == 5
    for form in ("latex", "markdown", "csv"):
        here = call("--results", results, "--format", form, "--no-tests")
        there = call("--results", tmp_path / "none", "--mlflow", uri, "--format", form, "--no-tests")
        assert (there.exit_code, there.stdout) == (0, here.stdout), there.output
    one = call("--mlflow", uri, "--experiment", "other", "--format", "csv").stdout
    assert one.count("\n") == 2 and ",other," in one
    assert call("--mlflow", uri, "--experiment", "oodbench/other", "--format", "csv").stdout == one
    assert "no experiment 'othr'" in call("--mlflow", uri, "--experiment", "othr").stderr
    assert "does not exist" in call("--mlflow", f"sqlite:///{tmp_path}/gone.db").stderr
    assert not (tmp_path / "gone.db").exists()
    assert "leave out --mlflow" in call("--mlflow", uri, "--verify").stderr
    assert "only in MLflow" in call("--mlflow", uri, "--explain", "mcm", "sun").stdout
