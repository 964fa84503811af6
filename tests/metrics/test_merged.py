"""The fast sort of scores against a plain one: equal counts and metrics for all ties, signs and ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from oodbench.metrics import counts as merged
from oodbench.metrics.detection import Metrics, evaluate, metrics_of, score_set, threshold_counts

Draw = Callable[[np.random.Generator, int], np.ndarray]
TINY = float(np.finfo(np.float64).smallest_subnormal)


def duplicates(rng: np.random.Generator, n: int) -> np.ndarray:
    """No ties, except that one image in fifty has the score of other ID and OOD images."""
    shared = np.random.default_rng(5).normal(size=20)
    return np.where(rng.random(n) < 0.02, rng.choice(shared, n), rng.normal(size=n))


DRAWS: dict[str, Draw] = {
    "untied, both signs": lambda rng, n: rng.normal(0, 3, n),
    "untied, negative": lambda rng, n: -rng.lognormal(3, 1, n),
    "untied, CLIP's scale": lambda rng, n: 0.001 + 0.0002 * rng.beta(3, 2, n),
    "neighbouring doubles": lambda rng, n: 1 + np.finfo(float).eps * rng.integers(0, 10 * n, n),
    "a few duplicates": duplicates,
    "float32": lambda rng, n: rng.normal(25, 2, n).astype(np.float32),
    "a tenth tied": lambda rng, n: rng.normal(0, 1, n).round(5),
    "half tied": lambda rng, n: rng.normal(0, 1, n).round(4),
    "float16": lambda rng, n: rng.normal(0, 1, n).astype(np.float16),
    "bytes": lambda rng, n: rng.integers(0, 255, n).astype(np.uint8),
    "two levels": lambda rng, n: rng.integers(0, 2, n) * 1.0,
    "zeros of both signs": lambda rng, n: rng.choice([0.0, -0.0, 1.0], n),
    "infinite": lambda rng, n: np.where(rng.random(n) < 0.1, np.inf * rng.choice([-1, 1], n), rng.normal(size=n)),
    "one infinite": lambda rng, n: np.where(np.arange(n) == 7, -np.inf, rng.normal(size=n)),
    "all binades": lambda rng, n: rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-1070, 1020, n),
    "subnormal beside large": lambda rng, n: rng.choice([0, TINY, 3 * TINY, -TINY, 2.0, 1e300], n),
}
SIZES = [(1, 1), (2, 40), (40, 2), (700, 900), (30_000, 40_000), (90_000, 20_000)]


def measure(id: np.ndarray, ood: np.ndarray) -> Metrics:
    return evaluate(score_set(id, "id"), score_set(ood, "ood"))


def plain(id: np.ndarray, ood: np.ndarray) -> Metrics:
    """Computed by levels from numpy only."""
    both, where = np.unique(np.concatenate([id, ood]).astype(np.float64), return_inverse=True)
    counts = [np.bincount(part, minlength=both.size) for part in (where[: id.size], where[id.size :])]
    found = threshold_counts(id.size, ood.size)
    found.add(np.cumsum(counts[0]), np.cumsum(counts[0] + counts[1]))
    return metrics_of(found)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_the_fast_sort_gives_the_metrics_of_a_plain_sort(name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[0])
    id, ood = DRAWS[name](rng, size[0]), DRAWS[name](rng, size[1])
    found, expected = measure(id, ood), plain(id, ood)
    counted = ("auroc", "fpr95", "fpr95_ood", "tied", "n_id", "n_ood")
    assert [getattr(found, one) for one in counted] == [getattr(expected, one) for one in counted]
    assert astuple(found) == pytest.approx(astuple(expected), rel=0, abs=1e-14)


@pytest.mark.parametrize("name", ["untied, both signs", "a few duplicates", "float32", "half tied", "float16"])
def test_sets_of_several_blocks_equal_scikit_learn(name: str) -> None:
    rng = np.random.default_rng(1)
    id, ood = DRAWS[name](rng, 50_000) + DRAWS[name](rng, 1).dtype.type(1), DRAWS[name](rng, 35_640)
    labels, scores = np.repeat([1, 0], [id.size, ood.size]), np.concatenate([id, ood]).astype(np.float64)
    found = measure(id, ood)
    assert found.auroc == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert found.aupr_in == pytest.approx(sklearn_metrics.average_precision_score(labels, scores), abs=1e-12)
    assert found.aupr_out == pytest.approx(sklearn_metrics.average_precision_score(1 - labels, -scores), abs=1e-12)
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert found.fpr95 == fpr[np.argmax(tpr >= 0.95)]
    _, counts = np.unique(scores, return_counts=True)
    assert found.tied == counts[counts > 1].sum() / scores.size


@pytest.mark.parametrize("name", DRAWS)
def test_keys_order_and_tie_as_scores_do(name: str) -> None:
    rng = np.random.default_rng(2)
    id, ood = DRAWS[name](rng, 300), DRAWS[name](rng, 200)
    keys = merged.keys(id, ood)
    order = np.lexsort((np.repeat([1, 0], [300, 200]), np.concatenate([id, ood]).astype(np.float64)))
    values = np.concatenate([id, ood]).astype(np.float64)[order]
    assert (keys[1:] >= keys[:-1]).all()
    assert np.array_equal(keys & 1, (order < 300) * 1)
    assert np.array_equal((keys[1:] >> 1) == (keys[:-1] >> 1), values[1:] == values[:-1])
