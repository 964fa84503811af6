"""AUROC and FPR95 are defined once: every computation returns the same bits, with and without ties."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from oodbench.metrics import Scores, Settings
from oodbench.metrics import counts as level_counts
from oodbench.metrics.bootstrap import BlockSums, Resampler, fpr95, fpr95_ood, fprs, observed, replicates
from oodbench.metrics.delong import pairs, placements
from oodbench.metrics.detection import (
    AT95,
    AUPR,
    TPR,
    evaluate,
    fpr_at_tpr,
    metrics_of,
    min_accepted,
    score_set,
    threshold_counts,
)
from oodbench.metrics.intervals import ObservedCounts
from oodbench.metrics.streaming import evaluate_shards

SEEDS = range(60)


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random scores [n_id] and [n_ood]: of few values, of many, with ties on one side, or of one or two images."""
    rng = np.random.default_rng(seed)
    n, m = ((1, 2), (2, 1), (20, 7), (40, 60), (137, 90), (700, 900))[seed % 6]
    id, ood = rng.normal(1, 1, n), rng.normal(0, 1, m)
    if seed % 5 == 0:
        return id, ood
    if seed % 5 == 1:
        return np.full(n, 0.5), np.full(m, 0.5)
    decimals = seed % 5 - 2
    return id.round(decimals), ood.round(decimals + (seed % 2))


def exact_auroc(id: np.ndarray, ood: np.ndarray) -> float:
    concordant_x2 = 2 * int((id[:, None] > ood).sum()) + int((id[:, None] == ood).sum())
    return float(Fraction(concordant_x2, 2 * id.size * ood.size))


def exact_fpr(positive: np.ndarray, negative: np.ndarray) -> float:
    """The rule "first", computed from every threshold in exact fractions."""
    rates = [
        (Fraction(int((negative >= threshold).sum()), negative.size), (positive >= threshold).mean())
        for threshold in np.unique(np.concatenate([positive, negative]))
    ]
    return float(min(fpr for fpr, tpr in rates if tpr >= TPR))


@pytest.mark.parametrize("at95", AT95)
def test_every_computation_gives_the_same_bits(at95: str) -> None:
    ties = 0
    for seed in SEEDS:
        id, ood = case(seed)
        sets = score_set(id, "id"), score_set(ood, "ood")
        found = evaluate(*sets, at95)
        ties += found.tied > 0
        values = found.auroc, found.fpr95, found.fpr95_ood
        if at95 == "first":
            assert values == (exact_auroc(id, ood), exact_fpr(id, ood), exact_fpr(-ood, -id)), seed

        assert fpr_at_tpr(*sets, TPR, at95) == found.fpr95
        assert fpr_at_tpr(score_set(-ood, "ood"), score_set(-id, "id"), TPR, at95) == found.fpr95_ood

        for aupr in AUPR:  # counted level by level or image by image
            counts = threshold_counts(id.size, ood.size, aupr)
            level_counts.count(level_counts.keys(id, ood), counts, by_level=True)
            other = metrics_of(counts, at95)
            assert (other.auroc, other.fpr95, other.fpr95_ood) == values, seed
        halves = [np.sort(part) for part in (id[::2], id[1::2]) if part.size]
        shards = evaluate_shards(halves, [np.sort(ood)], at95=at95, memory=3000)
        assert (shards.auroc, shards.fpr95, shards.fpr95_ood) == values, seed

        pair = pairs(Scores(id, {"x": ood}))["x"]
        resampled = observed(pair, Settings(at95))
        assert (resampled["auroc"], resampled["fpr95"], resampled["fpr95_ood"]) == values, seed
        sides = [BlockSums(side, np.ones((1, side.n), np.uint8)) for side in (pair.id, pair.ood)]
        rates = fprs(pair, sides[0], sides[1], at95, ("fpr95", "fpr95_ood"))
        assert (float(rates["fpr95"][0]), float(rates["fpr95_ood"][0])) == values[1:], seed
        plain = ObservedCounts(pair.id), ObservedCounts(pair.ood)
        accepted = [np.array([min_accepted(n, TPR)]) for n in (id.size, ood.size)]
        assert float(fpr95(pair, *plain, at95, accepted[0], TPR)[0]) == found.fpr95
        assert float(fpr95_ood(pair, *plain, at95, accepted[1], TPR)[0]) == found.fpr95_ood
        assert placements(pair).auroc == pytest.approx(found.auroc, rel=0, abs=1e-14)  # a mean: rounded once more
    assert 30 < ties < len(SEEDS)  # some cases have no ties


@pytest.mark.parametrize("at95", AT95)
def test_every_resample_has_the_bits_of_its_images(at95: str) -> None:
    for seed in SEEDS:
        id, ood = case(seed)
        found = replicates([pairs(Scores(id, {"x": ood}))], Settings(at95, replicates=5))
        drawn = zip(Resampler("id", id.size).draw(5), Resampler("ood x", ood.size).draw(5), strict=True)
        for row, (of_id, of_ood) in enumerate(drawn):
            images = score_set(np.repeat(id, of_id), "id"), score_set(np.repeat(ood, of_ood), "ood")
            expected = evaluate(*images, at95)
            for metric in ("auroc", "fpr95", "fpr95_ood"):
                assert found[metric][0, 0, row] == getattr(expected, metric), (seed, metric)


def test_the_two_definitions_are_called_wherever_the_metrics_are_computed() -> None:
    calls: dict[str, set[str]] = {"auroc": set(), "false_positive_rate": set()}
    for path in Path(evaluate.__code__.co_filename).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls:
                calls[node.func.id].add(path.stem)
    assert calls == {"auroc": {"bootstrap", "detection"}, "false_positive_rate": {"bootstrap", "detection"}}
