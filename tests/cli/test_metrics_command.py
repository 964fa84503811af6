"""`oodbench metrics`: metrics and intervals of plain score files, in memory and streamed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodbench.metrics import files, score_files
from oodbench.results import read
from tests.conftest import Cli

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "glyphs" / "glyphs"


@pytest.fixture
def scores(tmp_path: Path) -> dict[str, np.ndarray]:
    """Scores with ties, in files of three formats."""
    random = np.random.default_rng(5)
    found = {
        name: np.round(random.normal(mean, 1, n), 1) for name, mean, n in (("id", 1, 90), ("a", 0, 70), ("b", -1, 80))
    }
    np.save(tmp_path / "id.npy", found["id"].astype(np.float32))
    found["id"] = found["id"].astype(np.float32).astype(float)
    np.savetxt(tmp_path / "a.txt", found["a"], fmt="%.17g")
    pd.DataFrame({"image": [f"{i}.png" for i in range(80)], "score": found["b"]}).to_csv(
        tmp_path / "b=1.csv", index=False
    )
    return found


def expected(on_id: np.ndarray, on_ood: np.ndarray) -> dict[str, float]:
    truth, values = np.r_[np.ones(on_id.size), np.zeros(on_ood.size)], np.r_[on_id, on_ood]
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(truth, values),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "aupr_in": average_precision_score(truth, values),
        "aupr_out": average_precision_score(1 - truth, -values),
    }


def call(cli: Cli, folder: Path, *words: str) -> dict[str, Any]:
    done = cli("metrics", *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_metrics_equal_scikit_learn_in_memory_and_streamed(
    scores: dict[str, np.ndarray], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("id.npy", "a.txt", "Bee=b=1.csv", "--bootstrap", "20")
    found = call(cli, tmp_path, *words)
    assert [one["name"] for one in found["ood"]] == ["a", "Bee"] and found["id"]["n"] == 90
    for one, name in zip(found["ood"], "ab", strict=True):
        own = expected(scores["id"], scores[name])
        assert {metric: one[metric] for metric in own} == pytest.approx(own, abs=1e-12)
        assert all(one["intervals"][m][0] <= one[m] <= one["intervals"][m][1] for m in own)
    assert found["mean"]["auroc"] == pytest.approx(np.mean([one["auroc"] for one in found["ood"]]))
    monkeypatch.setattr(files, "IN_MEMORY", 200)
    monkeypatch.setattr(score_files, "ROWS", 16)
    done = cli("metrics", *words, "--json", cwd=tmp_path)
    assert done.stderr == "note: more than 200 scores: no intervals\n"
    streamed = json.loads(done.stdout)["ood"]
    assert [one["auroc"] for one in streamed] == [one["auroc"] for one in found["ood"]] and "intervals" not in streamed[
        0
    ]
    assert call(cli, tmp_path, *words, "--no-intervals")["ood"] == streamed


def test_sign_and_rules(scores: dict[str, np.ndarray], tmp_path: Path, cli: Cli) -> None:
    for name, values in scores.items():
        np.save(tmp_path / f"minus_{name}.npy", -values)
    usual = call(cli, tmp_path, "id.npy", "a.txt", "--no-intervals", "--at95", "nearest", "--aupr", "trapezoid")["ood"][
        0
    ]
    words = ("minus_id.npy", "minus_a.npy", "--no-intervals")
    other = call(cli, tmp_path, *words, "--higher", "ood", "--at95", "nearest", "--aupr", "trapezoid")["ood"][0]
    assert {k: v for k, v in usual.items() if k not in ("name", "file")} == {
        k: v for k, v in other.items() if k not in ("name", "file")
    }
    done = cli("metrics", *words, cwd=tmp_path)
    assert done.returncode == 0 and "add --higher ood" in done.stderr and "minus_a (n = 70)" in done.stdout


def test_sets_of_one_file(tmp_path: Path, cli: Cli) -> None:
    file, own = REFERENCE / "mcm.parquet", read(REFERENCE / "mcm.json")
    found = call(cli, tmp_path, str(file), "--no-intervals")
    assert [(s["name"], s["auroc"], s["fpr95"]) for s in found["ood"]] == [
        (s.dataset, s.auroc, s.fpr95) for s in own.ood
    ]
    one = call(cli, tmp_path, f"glyphs={file}", f"glyphs-near={file}", "--no-intervals")["ood"]
    assert one == found["ood"][:1]


@pytest.mark.parametrize(("order", "on_id"), [("b x a", "b"), ("b id a", "id"), ("b ID a", "ID")])
def test_the_id_set_of_one_file_is_named_id_or_the_first(order: str, on_id: str, tmp_path: Path, cli: Cli) -> None:
    names = order.split()
    arrays: dict[str, Any] = {name: np.arange(3.0) + i for i, name in enumerate(names)}
    np.savez(tmp_path / "all.npz", **arrays)
    found = call(cli, tmp_path, "all.npz", "--no-intervals")
    assert (found["id"]["name"], [one["name"] for one in found["ood"]]) == (on_id, [n for n in names if n != on_id])


def test_files_of_one_name_are_named_by_their_paths(tmp_path: Path, cli: Cli) -> None:
    for i, name in enumerate(("iid", "sun", "pl")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "scores.npy", np.arange(20.0) - i)
    (tmp_path / "pl" / "scores.npy").rename(tmp_path / "pl" / "scores.NPY")
    found = call(cli, tmp_path, "iid/scores.npy", "sun/scores.npy", "pl/scores.NPY", "--no-intervals")
    assert [one["name"] for one in found["ood"]] == ["sun/scores.npy", "pl/scores.NPY"]
    assert found["id"]["name"] == "iid/scores.npy"


def test_sets_of_the_other_sign_are_noted(scores: dict[str, np.ndarray], tmp_path: Path, cli: Cli) -> None:
    np.save(tmp_path / "c.npy", -scores["b"])
    done = cli("metrics", "id.npy", "a.txt", "c.npy", "--no-intervals", cwd=tmp_path)
    auroc = 100 * expected(scores["id"], -scores["b"])["auroc"]
    assert 0 < auroc < 50
    assert done.stderr.startswith(f"note: the AUROC is below 50 % for c ({auroc:.2f} %); if only these scores")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["id.npy"], r"id\.npy: no OOD scores; name their files"),
        (["id.npy", "c.npy"], r"c\.npy: this score file does not exist"),
        (["id.npy", "bad.txt"], r"bad\.txt, line 2: 'x' is not a number"),
        (["id.npy", str(REFERENCE / "mcm.parquet")], r"holds scores of glyphs, .*; name one, as in glyphs="),
        (["id.npy", f"glyph={REFERENCE / 'mcm.parquet'}"], r"no scores of 'glyph'; did you mean 'glyphs'"),
        (["id.npy", "a.txt", "--higher", "up"], r"--higher up; known: id, ood"),
        (["id.npy", "a.txt", "--at95", "best"], r"at95 'best' does not exist"),
        (["id.npy", "none.csv"], r"none\.csv holds no scores"),
        (["id.npy", "a.txt", "--bootstrap", "-1"], r"--bootstrap must be at least 0, not -1"),
    ],
)
def test_bad_input(words: list[str], message: str, scores: dict[str, np.ndarray], tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "bad.txt").write_text("1\nx\n")
    (tmp_path / "none.csv").write_text("score\n")
    done = cli("metrics", *words, cwd=tmp_path)
    assert done.returncode == 2 and re.match(f"error: .*{message}", done.stderr), done.stderr
