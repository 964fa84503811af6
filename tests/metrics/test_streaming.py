"""Streaming metrics of shards on disk against metrics of all scores at once; memory; invalid input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from oodbench.errors import UserError
from oodbench.metrics import streaming
from oodbench.metrics.detection import AT95, AUPR, evaluate, score_set

HOSTILE = "a_b & 50% <script>alert(1)"


def scores(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Scores of one of several kinds: no ties, few or many ties, infinite, constant."""
    kind = rng.integers(0, 6)
    drawn = rng.normal(mean, 1, n)
    if kind < 3:
        drawn = drawn.round(int(3 * kind))
    elif kind == 3:
        drawn = np.where(rng.random(n) < 0.2, rng.choice([-np.inf, np.inf, -0.0, 0.0], n), drawn)
    elif kind == 4:
        drawn = np.full(n, rng.integers(0, 2) * 1.0)
    return drawn


def shards(rng: np.random.Generator, values: np.ndarray, folder: Path) -> list[Any]:
    """The values in ascending shards of any sizes, overlapping or one after the other, in .npy, .parquet and memory."""
    folder.mkdir(parents=True)
    values = np.sort(values) if rng.integers(0, 2) else rng.permutation(values)
    parts = np.split(values, np.sort(rng.integers(0, values.size + 1, rng.integers(0, 7))))
    out: list[Any] = []
    for i, part in enumerate(np.sort(one) for one in parts):
        kind = rng.integers(0, 3)
        path = folder / f"{i}-{HOSTILE}.{['npy', 'parquet'][kind % 2]}"
        if kind == 0:
            np.save(path, part)
        elif kind == 1:
            pd.DataFrame({"score": part}).to_parquet(path)
        out.append(part if kind == 2 else path)
    return out


@pytest.mark.parametrize("seed", range(60))
def test_shards_give_the_metrics_of_all_scores_at_once(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    id, ood = scores(rng, int(rng.integers(1, 800)), 1.0), scores(rng, int(rng.integers(1, 800)), 0.0)
    rules: dict[str, Any] = {"at95": AT95[seed % 3], "aupr": AUPR[seed % 2]}
    sides = shards(rng, id, tmp_path / "id"), shards(rng, ood, tmp_path / "ood")
    found = streaming.evaluate_shards(*sides, memory=int(rng.choice([1, 2000, 50_000, 1 << 27])), **rules)
    expected = evaluate(score_set(id, "id"), score_set(ood, "ood"), **rules)
    assert astuple(found) == pytest.approx(astuple(expected), rel=0, abs=1e-12)
    for counted in ("auroc", "fpr95", "fpr95_ood", "tied", "n_id", "n_ood"):
        assert getattr(found, counted) == getattr(expected, counted)


def test_unsorted_scores_are_sorted_into_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    id, ood = rng.normal(1, 1, 5000).round(2), rng.normal(0, 1, 7000)
    np.save(tmp_path / "id.npy", id)
    row = pd.DataFrame({"dataset": ["x"] * 7000 + [HOSTILE] * 5, "score": np.append(ood, np.full(5, 9.0))})
    row.sample(frac=1, random_state=0).to_parquet(tmp_path / "row.parquet")
    sorted_id = streaming.sort(tmp_path / "id.npy", tmp_path / "sorted id", rows=999)
    sorted_ood = streaming.sort([tmp_path / "row.parquet"], tmp_path / "sorted ood", rows=1000, dataset="x")
    assert [np.load(path).size for path in sorted_id] == [999] * 5 + [5]
    assert len(sorted_ood) == 7
    expected = evaluate(score_set(id, "id"), score_set(ood, "ood"))
    found = streaming.evaluate_shards(sorted_id, sorted_ood, memory=10_000)
    assert astuple(found) == pytest.approx(astuple(expected), rel=0, abs=1e-12)


def test_the_parquet_of_a_real_row_is_read() -> None:
    """The project's own results: metrics are stored next to the scores."""
    path = Path(__file__).parents[2] / "results" / "reference" / "glyphs" / "glyphs" / "mcm.json"
    row = json.loads(path.read_text())
    table = pd.read_parquet(path.with_suffix(".parquet"))
    of = {name: np.sort(part["score"].to_numpy()) for name, part in table.groupby("dataset", observed=True)}
    for one in row["ood"]:
        found = streaming.evaluate_shards([of[row["id"]["dataset"]]], np.array_split(of[one["dataset"]], 3))
        metrics = ("auroc", "fpr95", "fpr95_ood", "aupr_in", "aupr_out", "tied")
        assert [getattr(found, metric) for metric in metrics] == pytest.approx([one[m] for m in metrics], abs=1e-12)


MEMORY = """
import resource, sys
import numpy as np
from oodbench.metrics import streaming
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
n, folder = int(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
kept = []
for side in ("id", "ood"):
    for i in range(n // 100_000):
        path = f"{folder}/{side}{i}.npy"
        np.save(path, np.sort(rng.normal(side == "id", 1, 50_000)))
        kept.append(path)
half = len(kept) // 2
streaming.evaluate_shards(kept[:1], kept[half : half + 1], memory=1 << 22)
before = peak()
found = streaming.evaluate_shards(kept[:half], kept[half:], memory=1 << 22)
print(found.n_id + found.n_ood, found.auroc, peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scores(tmp_path: Path) -> None:
    """10^7 scores are 80 MB; a process that streams them takes a few MB more than for 10^5."""
    call = [sys.executable, "-c", MEMORY, "10000000", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=300)
    n, auroc, grown = (float(part) for part in done.stdout.split())
    assert n == 1e7
    assert auroc == pytest.approx(0.7602, abs=0.001)  # Phi(1 / sqrt(2))
    assert grown < 20


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def test_what_is_refused(tmp_path: Path) -> None:
    good = np.arange(5.0)
    path = tmp_path / f"{HOSTILE}.npy"

    def against(values: np.ndarray, **options: Any) -> str:
        np.save(path, values)
        return refusal(lambda: streaming.evaluate_shards([good], [path], **options))

    assert f"{path}: score 3 is NaN or below the score before it; shards must ascend" in against(np.array([1, 2, 1.5]))
    assert "score 1 is NaN" in against(np.array([np.nan]))
    assert "score 3 is NaN" in against(np.array([1, 2, np.nan]))
    assert "score 3 is NaN or below" in against(np.array([1, 2, 0.0]), memory=1)
    assert "one real number per image is needed, not float64 of shape (2, 2)" in against(np.ones((2, 2)))
    assert f"{path}: the score {2**60 + 4} has more digits than float64 keeps" in against(2**60 + np.arange(5))
    assert "no OOD scores in 1 shards" in against(np.zeros(0))
    assert "at95 'frist' does not exist" in against(good, at95="frist")
    np.save(path, good)
    path.write_bytes(path.read_bytes()[:-8])
    assert "4 scores, but its header says 5" in refusal(lambda: streaming.evaluate_shards([good], [path]))
    path.write_bytes(b"nonsense")
    assert "not an .npy file" in refusal(lambda: streaming.evaluate_shards([good], [path]))
    table = tmp_path / "row.parquet"
    pd.DataFrame({"value": good}).to_parquet(table)
    assert "no column 'score', its columns are value" in refusal(lambda: streaming.evaluate_shards([good], [table]))
    table.write_bytes(b"nonsense")
    assert "cannot be read as parquet" in refusal(lambda: streaming.evaluate_shards([good], [table]))
    assert "this score file does not exist" in refusal(
        lambda: streaming.evaluate_shards([good], [tmp_path / "none.npy"])
    )
    pd.DataFrame({"score": 2**60 + np.arange(5)}).to_parquet(table)
    assert "has more digits than float64" in refusal(lambda: streaming.evaluate_shards([good], [table]))
    pd.DataFrame({"score": ["1", "2"]}).to_parquet(table)
    assert "is needed, not a column of" in refusal(lambda: streaming.evaluate_shards([good], [table]))
    assert "than float64 keeps" in refusal(lambda: streaming.evaluate_shards([good], [2**60 + np.arange(5)]))
    text = tmp_path / "scores.txt"
    text.write_text("1")
    assert "read from .npy and .parquet" in refusal(lambda: streaming.evaluate_shards([good], [text]))


def test_sorting_refuses_invalid_input(tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.array([3, np.nan, 1]))
    assert "score 2 is NaN" in refusal(lambda: streaming.sort(tmp_path / "nan.npy", tmp_path / "out"))
    assert "is not empty: name a new folder" in refusal(lambda: streaming.sort(np.ones(3), tmp_path))
    pd.DataFrame({"score": [1.0], "dataset": ["x"]}).to_parquet(tmp_path / "row.parquet")
    found = refusal(lambda: streaming.sort(tmp_path / "row.parquet", tmp_path / "no", dataset=HOSTILE))
    assert f"no scores to sort of image set '{HOSTILE}'" in found
