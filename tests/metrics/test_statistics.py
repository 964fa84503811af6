"""Intervals and tests against plain formulas, resampled images, and simulations with known true values."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from oodbench.errors import UserError
from oodbench.metrics import (
    Scores,
    Settings,
    auroc_interval,
    auroc_variance,
    compare,
    holm,
    indistinguishable,
    intervals,
)
from oodbench.metrics import detection as metrics
from oodbench.metrics.bootstrap import Resampler, observed, replicates
from oodbench.metrics.delong import (
    SCALES,
    interval,
    logistic_aupr,
    logistic_constant,
    mean_placements,
    on_logit_scale,
    pairs,
    placements,
    score_interval,
)
from oodbench.metrics.intervals import fpr_interval, methods
from oodbench.results import METRICS, IdRow, Result, SetRow, from_json

Floats = np.ndarray
RULES = [(at95, aupr) for at95 in metrics.AT95 for aupr in metrics.AUPR]
NORMAL = NormalDist()


def near(expected: float | tuple[float, float], within: float = 1e-12) -> Any:
    return pytest.approx(expected, rel=0, abs=within)


def evaluated(id: Floats, ood: Floats, at95: str = "first", aupr: str = "average_precision") -> metrics.Metrics:
    return metrics.evaluate(metrics.score_set(id, "id"), metrics.score_set(ood, "ood"), at95, aupr)


def smooth(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return rng.normal(1, 1, rng.integers(20, 90)), rng.normal(0, 1, rng.integers(20, 90))


def tied(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return rng.integers(3, 12, 70) / 10, rng.integers(0, 9, 50) / 10


def half_tied(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Ties within each side only."""
    return rng.integers(0, 20, 60) + 0.5, rng.integers(-5, 12, 41) * 1.0


def twenties(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A TPR of 95 % is reached exactly."""
    return rng.permutation(40) + 0.5, rng.integers(0, 30, 60) * 1.0


def perfect(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return rng.uniform(2, 3, 30), rng.uniform(0, 1, 20)


def constant(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return np.full(30, 0.5), np.full(20, 0.5)


def infinite(rng: np.random.Generator) -> tuple[Floats, Floats]:
    id, ood = smooth(rng)
    id[:3], ood[:2] = [np.inf, np.inf, -np.inf], [np.inf, -np.inf]
    return id, ood


def tiny(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return rng.integers(0, 4, rng.integers(1, 4)) * 1.0, rng.integers(0, 4, rng.integers(1, 4)) * 1.0


SHAPES = [smooth, tied, half_tied, twenties, perfect, constant, infinite, tiny]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request: pytest.FixtureRequest) -> Callable[[np.random.Generator], tuple[Floats, Floats]]:
    found: Callable[[np.random.Generator], tuple[Floats, Floats]] = request.param
    return found


# AUROC by DeLong


def structural(id: Floats, ood: Floats) -> tuple[Floats, Floats]:
    """DeLong's components by definition, from every pair of images."""
    wins = (id[:, None] > ood[None, :]) + 0.5 * (id[:, None] == ood[None, :])
    return wins.mean(axis=1), wins.mean(axis=0)


def test_delong_equals_the_plain_formula(shape: Callable[[np.random.Generator], tuple[Floats, Floats]]) -> None:
    for seed in range(8):
        id, ood = shape(np.random.default_rng(seed))
        of_id, of_ood = structural(id, ood)
        placed = placements(pairs(Scores(id, {"x": ood}))["x"])
        np.testing.assert_allclose(placed.id, of_id, rtol=0, atol=1e-12)
        np.testing.assert_allclose(placed.ood[0], of_ood, rtol=0, atol=1e-12)
        assert placed.auroc == near(evaluated(id, ood).auroc)
        if min(id.size, ood.size) > 1:
            expected = np.cov(of_id) / id.size + np.cov(of_ood) / ood.size
            assert auroc_variance(id, ood) == near(float(expected))
        else:
            assert math.isnan(auroc_variance(id, ood))


def test_delong_of_a_worked_example() -> None:
    """ID 3, 2, 1 and OOD 0, 2: placements are 1, 3/4, 1/2 and, from the other side, 1, 1/2."""
    variance = (1 / 16) / 3 + (1 / 8) / 2
    id, ood = np.array([3.0, 2.0, 1.0]), np.array([0.0, 2.0])
    assert auroc_variance(id, ood) == near(variance)
    half = 1.959963984540054 * math.sqrt(variance)
    assert auroc_interval(id, ood, scale="plain") == near((0.75 - half, 1.0))
    logit, half = math.log(3), half / (0.75 * 0.25)
    ends = [1 / (1 + math.exp(-x)) for x in (logit - half, logit + half)]
    assert auroc_interval(id, ood) == near((ends[0], ends[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "n_id", "n_ood"), [(0.7, 200, 150), (2.0, 300, 200)])
def test_auroc_intervals_cover_the_truth_in_95_percent(shift: float, n_id: int, n_ood: int) -> None:
    truth = NORMAL.cdf(shift / math.sqrt(2))
    rng = np.random.default_rng(0)
    found = [auroc_interval(rng.normal(shift, 1, n_id), rng.normal(0, 1, n_ood)) for _ in range(3000)]
    assert 0.93 < np.mean([low <= truth <= high for low, high in found]) < 0.97


@pytest.mark.parametrize(("shift", "n_id", "n_ood"), [(3.0, 300, 100), (3.29, 1000, 50)])
def test_auroc_intervals_cover_the_truth_where_few_are_lost(shift: float, n_id: int, n_ood: int) -> None:
    """DeLong's alone cover 86 % of the second."""
    truth = NORMAL.cdf(shift / math.sqrt(2))
    rng = np.random.default_rng(0)
    found = [auroc_interval(rng.normal(shift, 1, n_id), rng.normal(0, 1, n_ood)) for _ in range(400)]
    assert stats.binom.ppf(0.001, 400, 0.95) / 400 < np.mean([low <= truth <= high for low, high in found])
    assert np.mean([high - low for low, high in found]) < 0.035


def test_auroc_intervals_cover_the_truth_with_ties() -> None:
    grid = np.arange(6)
    p, q = stats.binom.pmf(grid, 5, 0.6), stats.binom.pmf(grid, 5, 0.4)
    truth = float(sum(p[i] * (q[:i].sum() + q[i] / 2) for i in grid))
    rng = np.random.default_rng(1)
    found = [auroc_interval(rng.binomial(5, 0.6, 150), rng.binomial(5, 0.4, 100)) for _ in range(3000)]
    assert 0.93 < np.mean([low <= truth <= high for low, high in found]) < 0.97


@pytest.mark.slow
def test_the_mean_over_sets_counts_the_shared_id_images_once() -> None:
    """With few ID images, AUROCs of the sets are correlated, and intervals that assume independence would fail."""
    truth = float(np.mean([NORMAL.cdf(shift / math.sqrt(2)) for shift in (1.0, 1.5, 2.0)]))
    rng = np.random.default_rng(2)
    hits, independent = [], []
    for _ in range(2000):
        id = rng.normal(0, 1, 60)
        scores = Scores(id, {str(shift): rng.normal(-shift, 1, 300) for shift in (1.0, 1.5, 2.0)})
        placed = [placements(pair) for pair in pairs(scores).values()]
        low, high = interval(mean_placements(placed))
        hits.append(low <= truth <= high)
        error = math.sqrt(sum(one.variance for one in placed)) / 3
        independent.append(abs(mean_placements(placed).auroc - truth) < 1.96 * error)
    assert 0.93 < np.mean(hits) < 0.97
    assert np.mean(independent) < 0.9


@pytest.mark.parametrize("scale", SCALES)
def test_auroc_intervals_stay_within_0_and_1(
    shape: Callable[[np.random.Generator], tuple[Floats, Floats]], scale: str
) -> None:
    for seed in range(8):
        id, ood = shape(np.random.default_rng(seed))
        low, high = auroc_interval(id, ood, scale=scale)
        assert 0 <= low <= evaluated(id, ood).auroc + 1e-12 and evaluated(id, ood).auroc - 1e-12 <= high <= 1
        upside_down = auroc_interval(-id, -ood, scale=scale)
        assert upside_down == (near(1 - high), near(1 - low))


# Few errors


def logistic_moments(shift: float) -> tuple[float, float]:
    """AUROC of logistic(shift) v logistic(0) scores, and the variance of a placement, by numerical integration."""
    law = stats.logistic
    won = [quad(lambda u, k=k: law.cdf(law.ppf(u) + shift) ** k, 0, 1, epsabs=1e-13)[0] for k in (1, 2)]
    return won[0], won[1] - won[0] ** 2


@pytest.mark.parametrize(
    ("value", "n", "m"), [(1.0, 50, 50), (0.99, 100, 20), (0.7, 5, 6), (0.5, 50, 30), (0.002, 40, 60)]
)
def test_score_interval_ends_are_1_96_of_their_standard_errors_away(value: float, n: int, m: int) -> None:
    low, high = score_interval(value, n, m, 1.96)
    assert low <= value <= high and (high == 1) == (value == 1)
    for end in {low, high} - {1.0}:
        auroc, spread = logistic_moments(logistic_constant(end))
        assert auroc == near(end, 1e-9)
        variance = (end * (1 - end) + (n + m - 2) * spread) / (n * m)
        assert abs(end - value) == near(1.96 * math.sqrt(variance), 1e-7)
    assert score_interval(1 - value, n, m, 1.96) == (near(1 - high), near(1 - low))


@pytest.mark.parametrize("auroc", [0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("ratio", [0.05, 1.0, 20.0])
def test_aupr_of_logistic_scores(auroc: float, ratio: float) -> None:
    shift, law = logistic_constant(auroc), stats.logistic
    expected = quad(lambda u: u / (u + ratio * law.sf(law.isf(u) + shift)), 0, 1, epsabs=1e-12, limit=500)[0]
    assert logistic_aupr(auroc, ratio) == near(expected, 1e-6)
    assert logistic_aupr(1.0, ratio) == near(1.0)


def test_perfect_separation_has_an_interval_that_narrows_with_more_images() -> None:
    ends = [
        auroc_interval(np.arange(1000.0, 1000 + n), np.arange(float(m))) for n, m in ((50, 40), (50, 60), (500, 400))
    ]
    assert [high for _, high in ends] == [1, 1, 1]
    assert 0.9 < ends[0][0] < ends[1][0] < 0.98 < ends[2][0] < 1


def test_many_errors_leave_the_logit_interval_and_few_only_widen_it() -> None:
    rng = np.random.default_rng(0)
    for shift, n, m, few in ((1.0, 300, 200, False), (2.5, 100, 80, True)):
        id, ood = rng.normal(shift, 1, n), rng.normal(0, 1, m)
        value, error = evaluated(id, ood).auroc, math.sqrt(auroc_variance(id, ood))
        assert (min(n, m) * (1 - value) < 5) == few
        low, high = on_logit_scale(value, error, 0.95)
        found = auroc_interval(id, ood)
        score = score_interval(value, n, m, NORMAL.inv_cdf(0.975))
        assert found == (near(min(low, score[0])), near(max(high, score[1]))) if few else found == (low, high)


# Thresholds


def test_an_fpr95_independent_of_the_threshold_has_a_clopper_pearson_interval() -> None:
    """30 of 100 OOD images score above all ID images, the others below: only their number is uncertain."""
    id = np.linspace(1, 2, 400)
    for accepted in (0, 1, 30, 99, 100):
        ood = np.repeat([0.0, 3.0], [100 - accepted, accepted])
        found = fpr_interval(pairs(Scores(id, {"x": ood})), "fpr95", Settings())
        low = stats.beta.ppf(0.025, accepted, 101 - accepted) if accepted else 0.0
        high = stats.beta.ppf(0.975, accepted + 1, 100 - accepted) if accepted < 100 else 1.0
        assert found[0] == pytest.approx(low, rel=0.04, abs=1e-3) and found[1] == pytest.approx(high, rel=0.04)
        if accepted == 0:
            assert high == near(1 - 0.025 ** (1 / 100))
        turned = fpr_interval(pairs(Scores(-ood, {"x": -id})), "fpr95_ood", Settings())  # the same with roles exchanged
        assert turned[0] == pytest.approx(low, rel=0.04, abs=1e-3) and turned[1] == pytest.approx(high, rel=0.04)


@pytest.mark.parametrize("rule", metrics.AT95)
def test_an_fpr95_on_countless_ood_images_is_as_uncertain_as_the_threshold(rule: str) -> None:
    """FPR equals TPR at any threshold, and the number of ID images below the true threshold is binomial."""
    n = 400
    id, ood = np.arange(n) * 100.0, np.arange(n * 100.0)
    low, high = fpr_interval(pairs(Scores(id, {"x": ood})), "fpr95", Settings(at95=rule))
    beyond = stats.binom.ppf([0.025, 0.975], n, 0.05)
    assert low == near(1 - beyond[1] / n, 0.006)
    assert high == near(1 - beyond[0] / n, 0.006)


def test_a_threshold_possibly_below_all_images_is_extrapolated() -> None:
    """With 71 images, the true threshold is below all of them in 0.95 ** 71 = 2.6 % of cases."""
    rng = np.random.default_rng(0)
    ood = np.linspace(0, 1, 1000)
    for n in (20, 71):
        id = np.linspace(0.5, 1.5, n)
        of_value = int((ood >= np.sort(id)[n - metrics.min_accepted(n, 0.95)]).sum())
        share = rng.beta(of_value + 1, 1000 - of_value, 200_000)
        tpr = rng.beta(metrics.min_accepted(n, 0.95), n - metrics.min_accepted(n, 0.95) + 1, 200_000)
        ratio = (share / (1 - share)) / (tpr / (1 - tpr))
        expected = float(np.quantile(19 * ratio / (1 + 19 * ratio), 0.975))
        found = fpr_interval(pairs(Scores(id, {"x": ood})), "fpr95", Settings())
        assert found[1] == near(expected, 0.03) or (n == 71 and found[1] > expected)
    high = fpr_interval(pairs(Scores(np.linspace(0.5, 1.5, 72), {"x": ood})), "fpr95", Settings())[1]
    assert high <= float((ood >= 0.5).mean()) + 2 * math.sqrt(0.25 / 1000)  # no more than pass all of them


# Draws


def test_draws_sum_to_n_and_do_not_depend_on_the_chunks() -> None:
    for n in (1, 2, 3, 5, 17, 400, 4001):
        together = Resampler("id", n).draw(24)
        split = Resampler("id", n)
        apart = np.concatenate([split.draw(k) for k in (1, 7, 2, 14)])
        assert together.shape == (24, n)
        assert (together.sum(axis=1, dtype=int) == n).all()
        assert np.array_equal(together, apart)
    other, seeded = Resampler("ood x", 400).draw(24), Resampler("id", 400, seed=1).draw(24)
    assert not np.array_equal(other, Resampler("id", 400).draw(24)) and not np.array_equal(seeded, other)


@pytest.mark.parametrize("n", [3, 20, 300])
def test_draws_are_multinomial(n: int) -> None:
    rows = 3_000_000 // n
    times = Resampler("id", n).draw(rows).astype(int)
    # One image: binomial(n, 1 / n).
    counts = np.bincount(times.ravel(), minlength=n + 1)[: n + 1]
    expected = stats.binom.pmf(np.arange(n + 1), n, 1 / n) * times.size
    few = int(np.argmax(expected < 50)) if (expected < 50).any() else n + 1
    seen = np.append(counts[:few], counts[few:].sum())
    wanted = np.append(expected[:few], expected[few:].sum())
    kept = wanted > 5
    # Rows sum to n, so counts in a row are slightly dependent: not an exact chi-square, hence the wide bound.
    assert ((seen - wanted)[kept] ** 2 / wanted[kept]).sum() < 40
    # Every image alike, and two images: variance 1 - 1 / n, covariance -1 / n.
    assert times.mean(axis=0) == pytest.approx(np.ones(n), abs=6 / math.sqrt(rows))
    halves = times[:, : n // 2].sum(axis=1), times[:, n // 2 :].sum(axis=1)
    assert np.cov(*halves)[0, 1] == pytest.approx(-(n // 2) * (n - n // 2) / n, rel=0.1)


# Bootstrap


@pytest.mark.parametrize(("at95", "aupr"), RULES)
def test_all_images_drawn_once_give_the_metrics(
    shape: Callable[[np.random.Generator], tuple[Floats, Floats]], at95: str, aupr: str
) -> None:
    for seed in range(12):
        id, ood = shape(np.random.default_rng(seed))
        expected = evaluated(id, ood, at95, aupr)
        found = observed(pairs(Scores(id, {"x": ood}))["x"], Settings(at95, aupr))
        assert found == {metric: near(getattr(expected, metric)) for metric in METRICS}


@pytest.mark.parametrize(("at95", "aupr"), RULES)
def test_replicates_equal_metrics_of_resampled_images(
    shape: Callable[[np.random.Generator], tuple[Floats, Floats]], at95: str, aupr: str
) -> None:
    settings = Settings(at95, aupr, replicates=25, seed=3)
    for seed in range(3):
        id, ood = shape(np.random.default_rng(seed))
        drawn = Resampler("id", id.size, 3).draw(25), Resampler("ood x", ood.size, 3).draw(25)
        found = replicates([pairs(Scores(id, {"x": ood}))], settings)
        single = replicates([pairs(Scores(id, {"x": ood}))], settings, ("fpr95", "fpr95_ood"))
        for row, (of_id, of_ood) in enumerate(zip(*drawn, strict=True)):
            expected = evaluated(np.repeat(id, of_id), np.repeat(ood, of_ood), at95, aupr)
            for metric in METRICS:
                assert found[metric][0, 0, row] == near(getattr(expected, metric)), metric
            for metric in single:
                assert single[metric][0, 0, row] == near(getattr(expected, metric)), metric


@pytest.mark.parametrize("decimals", [1, 12])
@pytest.mark.parametrize("at95", metrics.AT95)
def test_replicates_of_many_images_equal_metrics_of_resampled_images(decimals: int, at95: str) -> None:
    """More images than fit into one block of sums."""
    rng = np.random.default_rng(0)
    id, ood = rng.normal(1, 1, 3000).round(decimals), rng.normal(0, 1, 2111).round(decimals)
    found = replicates([pairs(Scores(id, {"x": ood}))], Settings(at95, replicates=9), ("fpr95", "fpr95_ood"))
    full = replicates([pairs(Scores(id, {"x": ood}))], Settings(at95, replicates=9))
    drawn = zip(Resampler("id", 3000).draw(9), Resampler("ood x", 2111).draw(9), strict=True)
    for row, (of_id, of_ood) in enumerate(drawn):
        expected = evaluated(np.repeat(id, of_id), np.repeat(ood, of_ood), at95)
        assert found["fpr95"][0, 0, row] == near(expected.fpr95)
        assert found["fpr95_ood"][0, 0, row] == near(expected.fpr95_ood)
        for metric in METRICS:
            assert full[metric][0, 0, row] == near(getattr(expected, metric))


def truth_of(shift: float, n_id: int, n_ood: int) -> dict[str, float]:
    """Metrics of the population: ID N(shift, 1), OOD N(0, 1), in the ratio of the sample."""
    z = np.linspace(-9, 9, 20001)
    share = n_id / (n_id + n_ood)
    kept, wrong = stats.norm.sf(z), stats.norm.sf(z + shift)  # at the threshold z + shift
    precision_in = share * kept / (share * kept + (1 - share) * wrong)
    caught, lost = stats.norm.cdf(z), stats.norm.cdf(z - shift)  # at the threshold z
    precision_out = (1 - share) * caught / ((1 - share) * caught + share * lost)
    density = stats.norm.pdf(z)
    return {
        "fpr95": float(stats.norm.sf(shift - stats.norm.ppf(0.95))),
        "fpr95_ood": float(stats.norm.cdf(stats.norm.ppf(0.95) - shift)),
        "aupr_in": float(np.trapezoid(precision_in * density, z)),
        "aupr_out": float(np.trapezoid(precision_out * density, z)),
    }


def covered(shifts: Sequence[float], n_id: int, n_ood: int, simulations: int) -> dict[str, tuple[float, float]]:
    """Metric -> fraction of simulations in which the interval of the mean covers the true value, and the mean width."""
    truths = [{"auroc": NORMAL.cdf(shift / math.sqrt(2)), **truth_of(shift, n_id, n_ood)} for shift in shifts]
    truth = {metric: float(np.mean([one[metric] for one in truths])) for metric in METRICS}
    rng = np.random.default_rng(0)
    ends: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for simulation in range(simulations):
        sets = {str(i): rng.normal(-shift, 1, n_ood) for i, shift in enumerate(shifts)}
        found = intervals(Scores(rng.normal(0, 1, n_id), sets), Settings(replicates=200, seed=simulation)).means[""]
        for metric in METRICS:
            ends[metric].append(found[metric])
    return {
        metric: (
            float(np.mean([low <= truth[metric] <= high for low, high in known])),
            float(np.mean([high - low for low, high in known])),
        )
        for metric, known in ends.items()
    }


@pytest.mark.slow
def test_intervals_cover_the_truth_in_95_percent() -> None:
    found = covered([1.5], 900, 700, 900)
    assert all(0.93 < share < 0.98 for share, _ in found.values()), found


def shift_of(auroc: float) -> float:
    return math.sqrt(2) * NORMAL.inv_cdf(auroc)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auroc", "n_id", "n_ood"), [(0.999, 50, 50), (0.99, 20, 20), (0.9999, 500, 500), (0.9, 20, 20), (0.99, 1000, 50)]
)
def test_intervals_cover_the_truth_where_little_or_nothing_is_lost(auroc: float, n_id: int, n_ood: int) -> None:
    """At least 93 % with an allowance for 400 simulations, which 56.9, 54.2 and 11.6 % would not pass."""
    allowed = stats.binom.ppf(0.001, 400, 0.93) / 400
    found = covered([shift_of(auroc)], n_id, n_ood, 400)
    assert all(share >= allowed > 0.88 for share, _ in found.values()), found
    assert found["auroc"][1] < 0.25  # and no interval covers it by being trivial
    assert found["aupr_in"][1] < 0.3 and found["fpr95"][1] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aurocs", "n_id", "n_ood"), [((0.76, 0.86, 0.92), 150, 400), ((0.999, 0.99, 0.995), 60, 50), ((0.9,) * 3, 20, 20)]
)
def test_intervals_of_means_cover_the_truth(aurocs: tuple[float, ...], n_id: int, n_ood: int) -> None:
    found = covered([shift_of(auroc) for auroc in aurocs], n_id, n_ood, 400)
    assert all(share >= stats.binom.ppf(0.001, 400, 0.93) / 400 for share, _ in found.values()), found


def test_bootstrap_and_delong_agree_on_auroc() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(1, 1, 900), {k: rng.normal(0, 1, 700).round(1) for k in "ab"})
    found = pairs(scores)
    drawn = replicates([found], Settings(replicates=4000), ("auroc",))["auroc"][0]
    placed = [placements(pair) for pair in found.values()]
    for values, one in [*zip(drawn, placed, strict=True), (drawn.mean(axis=0), mean_placements(placed))]:
        assert values.mean() == near(one.auroc, 0.001)
        assert values.std() == pytest.approx(math.sqrt(one.variance), rel=0.05)


# Intervals of a row


def test_intervals_hold_the_value_repeat_and_do_not_depend_on_other_sets() -> None:
    rng = np.random.default_rng(0)
    id, sets = rng.normal(1, 1, 300), {k: rng.normal(0, 1, 200) for k in ("sun", "dtd", "ssb")}
    groups = {"sun": "far", "dtd": "far", "ssb": "near"}
    found = intervals(Scores(id, sets, groups), Settings(replicates=200))
    assert found == intervals(Scores(id, sets, groups), Settings(replicates=200))
    turned = intervals(Scores(id, dict(reversed(sets.items())), groups), Settings(replicates=200))
    assert found.sets == turned.sets and found.means[""].keys() == turned.means[""].keys()
    for metric, both in found.means[""].items():
        assert both == near(turned.means[""][metric])
    assert found.sets["dtd"] == intervals(Scores(id, {"dtd": sets["dtd"]}), Settings(replicates=200)).sets["dtd"]
    assert set(found.means) == {"", "far", "near"}
    for metric, alone in found.sets["ssb"].items():
        assert found.means["near"][metric] == near(alone)
    for name, ood in sets.items():
        for metric, (low, high) in found.sets[name].items():
            assert low < getattr(evaluated(id, ood), metric) < high
    assert found != intervals(Scores(id, sets, groups), Settings(replicates=200, seed=1))


def test_without_replicates_only_auroc_has_intervals() -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.normal(1, 1, 30), {"x": rng.normal(0, 1, 20)})
    found = intervals(scores, Settings(replicates=0))
    assert list(found.sets["x"]) == list(found.means[""]) == ["auroc"] == list(methods(Settings(replicates=0)))
    assert list(intervals(scores).sets["x"]) == list(METRICS) == list(methods(Settings()))


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (1, 5), (5, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize(("at95", "aupr"), RULES)
def test_tiny_sets(n_id: int, n_ood: int, at95: str, aupr: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        one, other = (Scores(rng.integers(0, 3, n_id) * 1.0, {"x": rng.integers(0, 3, n_ood) * 1.0}) for _ in range(2))
        found = intervals(one, Settings(at95, aupr, replicates=50))
        for low, high in found.sets["x"].values():
            assert 0 <= low <= high <= 1
            assert min(n_id, n_ood) > 1 or (low, high) == (0, 1)
        for metric in METRICS:
            assert 0 <= compare(one, other, metric, Settings(at95, aupr, replicates=50)).sets["x"].p <= 1


def test_constant_scores_claim_no_certainty() -> None:
    found = intervals(Scores(np.full(50, 0.5), {"x": np.full(30, 0.5)}), Settings(replicates=500)).sets["x"]
    for metric, value in {"auroc": 0.5, "aupr_in": 0.625, "aupr_out": 0.375}.items():
        low, high = found[metric]
        assert low < value - 0.05 and value + 0.05 < high
    # All are accepted in every resample: Clopper and Pearson.
    for metric, n in (("fpr95", 30), ("fpr95_ood", 50)):
        low, high = found[metric]
        assert low == pytest.approx(0.025 ** (1 / n), abs=0.01) and high == 1


def test_memory_does_not_grow_with_the_replicates() -> None:
    rng = np.random.default_rng(0)
    found = [pairs(Scores(rng.normal(1, 1, 50_000), {"x": rng.normal(0, 1, 35_640)}))]

    def peak(count: int) -> int:
        tracemalloc.start()
        replicates(found, Settings(replicates=count))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(20) < peak(5) + 10_000 < 8e6


# Paired tests


def correlated(rng: np.random.Generator, n: int, shift: float, better: float = 0.0) -> tuple[Floats, Floats]:
    """Two methods' scores of the same n images, correlated 0.8; the second has `better` more shift."""
    common = rng.normal(shift, 1, n)
    one, other = common + rng.normal(0, 0.5, n), common + better + rng.normal(0, 0.5, n)
    return one, other


def two_methods(rng: np.random.Generator, better: float, n_id: int, n_ood: int) -> tuple[Scores, Scores]:
    id = correlated(rng, n_id, 1.5, better)
    ood = correlated(rng, n_ood, 0)
    return Scores(id[0], {"x": ood[0]}), Scores(id[1], {"x": ood[1]})


def test_paired_delong_equals_the_plain_formula() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a, b = two_methods(rng, 0.3, 60, 40)
        if seed % 2:
            a, b = (Scores(one.id.round(1), {"x": one.ood["x"].round(1)}) for one in (a, b))
        (a_id, a_ood), (b_id, b_ood) = structural(a.id, a.ood["x"]), structural(b.id, b.ood["x"])
        of_id, of_ood = np.cov(a_id, b_id) / 60, np.cov(a_ood, b_ood) / 40
        covariance = of_id + of_ood
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        value = a_id.mean() - b_id.mean()
        found = compare(a, b).sets["x"]
        assert found.value == near(value)
        assert found.error == near(math.sqrt(variance))
        assert found.p == near(2 * stats.norm.sf(abs(value) / math.sqrt(variance)))


def test_paired_bootstrap_equals_resampling_the_images() -> None:
    rng = np.random.default_rng(0)
    a, b = two_methods(rng, 0.3, 80, 60)
    of_id, of_ood = Resampler("id", 80).draw(40), Resampler("ood x", 60).draw(40)
    differences = []
    for p, q in zip(of_id, of_ood, strict=True):
        values = [evaluated(np.repeat(one.id, p), np.repeat(one.ood["x"], q)).fpr95 for one in (a, b)]
        differences.append(values[0] - values[1])
    value = evaluated(a.id, a.ood["x"]).fpr95 - evaluated(b.id, b.ood["x"]).fpr95
    found = compare(a, b, "fpr95", Settings(replicates=40)).sets["x"]
    assert found.value == near(value)
    assert found.error == near(float(np.std(differences, ddof=1)))
    assert found.p == near(2 * stats.norm.sf(abs(value) / found.error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "simulations"), [("auroc", 2000), pytest.param("fpr95", 800, marks=pytest.mark.slow)]
)
def test_paired_tests_reject_5_percent_of_equal_methods(metric: str, simulations: int) -> None:
    rng = np.random.default_rng(0)
    p = []
    for simulation in range(simulations):
        a, b = two_methods(rng, 0, 400, 300)
        p.append(compare(a, b, metric, Settings(replicates=200, seed=simulation)).sets["x"].p)
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07, np.mean(np.array(p) < 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "better"), [("auroc", 0.15), ("fpr95", 0.35)])
def test_paired_tests_detect_real_differences(metric: str, better: float) -> None:
    """Pairing matters: the intervals of the two methods overlap."""
    rng = np.random.default_rng(0)
    found, overlap = [], []
    for simulation in range(100):
        a, b = two_methods(rng, better, 600, 500)
        settings = Settings(replicates=200, seed=simulation)
        found.append(compare(a, b, metric, settings).sets["x"].p < 0.05)
        first, second = (intervals(one, settings).sets["x"][metric] for one in (a, b))
        overlap.append(first[0] < second[1] and second[0] < first[1])
    assert min(np.mean(found), np.mean(overlap)) > 0.75, (np.mean(found), np.mean(overlap))


@pytest.mark.parametrize("metric", METRICS)
def test_a_method_equals_itself(metric: str) -> None:
    rng = np.random.default_rng(0)
    a, _ = two_methods(rng, 0, 50, 40)
    same = Scores(3 * a.id + 1, {"x": 3 * a.ood["x"] + 1})  # another scale, the same ranks
    found = compare(a, same, metric, Settings(replicates=50))
    assert (found.sets["x"].p, found.means[""].p) == (1.0, 1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_exchanging_the_methods_changes_the_sign(metric: str) -> None:
    a, b = two_methods(np.random.default_rng(0), 0.2, 90, 80)
    one, other = (compare(*both, metric, Settings(replicates=50)).sets["x"] for both in ((a, b), (b, a)))
    assert (one.value, one.error, one.p) == (near(-other.value), near(other.error), near(other.p))


def test_holm_of_a_worked_example() -> None:
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == [near(0.03), near(0.06), near(0.06), near(0.02)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """Rejected at alpha if Bonferroni rejects every set of hypotheses that contains it."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.beta(0.5, 2, 5).tolist()
        for i, adjusted in enumerate(holm(p)):
            others = [j for j in range(5) if j != i]
            sets = [(i, *rest) for size in range(5) for rest in combinations(others, size)]
            assert adjusted == near(max(min(1.0, len(one) * min(p[j] for j in one)) for one in sets))


def test_methods_not_significantly_different_from_the_best() -> None:
    rng = np.random.default_rng(0)
    id, ood = {}, {}
    base_id, base_ood = rng.normal(0, 1, 900), {k: rng.normal(0, 1, 700) for k in ("sun", "dtd")}
    for label, shift in {"best": 1.6, "twin": 1.59, "far": 0.6, "worst": 0.1}.items():
        id[label] = base_id + shift + rng.normal(0, 0.2, 900)
        ood[label] = {k: v + rng.normal(0, 0.2, 700) for k, v in base_ood.items()}
    methods = {label: Scores(id[label], ood[label], {"sun": "far", "dtd": "far"}) for label in id}
    found = indistinguishable(methods, Settings(replicates=200))
    every = [*found.sets.values(), *found.means.values()]
    assert set(found.sets) == {"sun", "dtd"} and set(found.means) == {"", "far"}
    assert all(one == dict.fromkeys(("auroc", "fpr95"), frozenset({"best", "twin"})) for one in every)
    assert found == indistinguishable(dict(reversed(methods.items())), Settings(replicates=200))
    only = indistinguishable({"best": methods["best"]}, Settings(replicates=50), metrics=("fpr95_ood",))
    assert only.sets["sun"] == {"fpr95_ood": frozenset({"best"})}
    assert indistinguishable({}).sets == {}


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auroc", "fpr95"])
def test_an_equally_good_method_is_left_out_in_at_most_5_percent(metric: str) -> None:
    """Six equal methods, with the best chosen on the same images; Holm's correction alone would leave out 9 to 11 %."""
    rng = np.random.default_rng(0)
    left_out = 0
    for seed in range(500):
        id, ood = rng.normal(1, 1, 200), rng.normal(0, 1, 150)
        methods = {str(i): Scores(id + rng.normal(0, 1, 200), {"x": ood + rng.normal(0, 1, 150)}) for i in range(6)}
        found = indistinguishable(methods, Settings(replicates=200, seed=seed), (metric,)).sets["x"][metric]
        left_out += len(found) < 6
    assert left_out <= stats.binom.ppf(0.999, 500, 0.05)


def test_the_bonferroni_factor_is_the_number_of_pairs() -> None:
    rng = np.random.default_rng(1)
    a, b = two_methods(rng, 0.2, 300, 200)
    p = compare(a, b).sets["x"].p
    third = Scores(a.id, {"x": a.ood["x"]})  # as good as the first
    for chosen, pairs_of in (({"a": a, "b": b}, 1), ({"a": a, "b": b, "c": third}, 3)):
        for alpha, kept in ((pairs_of * p * 0.99, True), (pairs_of * p * 1.01, False)):
            found = indistinguishable(chosen, metrics=("auroc",), alpha=alpha).sets["x"]["auroc"]
            assert ("a" in found and "b" in found) == kept


# Refusals


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def test_what_is_refused() -> None:
    a = Scores(np.arange(5.0), {"x": np.arange(4.0)})
    other = Scores(np.arange(5.0), {"x": np.arange(3.0)})
    message = refusal(lambda: indistinguishable({"mcm": a, "msp": other}))
    assert message.startswith("mcm and msp were not scored on the same images") and "x 4; ID 5, x 3" in message
    assert "metric 'auroq' does not exist; did you mean" in refusal(lambda: compare(a, a, "auroq"))
    assert "at95 'last'" in refusal(lambda: intervals(a, Settings(at95="last")))
    assert "level 95" in refusal(lambda: intervals(a, Settings(level=95)))
    assert "level 95" in refusal(lambda: auroc_interval(a.id, a.ood["x"], 95))
    assert "scale 'probit'" in refusal(lambda: auroc_interval(a.id, a.ood["x"], scale="probit"))
    assert "-1 replicates" in refusal(lambda: intervals(a, Settings(replicates=-1)))
    assert "no OOD set" in refusal(lambda: intervals(Scores(np.arange(5.0), {})))
    assert "mcm on x: score 1 of 2 is NaN" in refusal(
        lambda: intervals(Scores(np.arange(5.0), {"x": np.array([np.nan, 1])}), what="mcm")
    )


# Rows


def row(**changes: Any) -> Result:
    sets = (SetRow("sun", "SUN", "far", 9, 9, 0, "list", 0.9, 0.4, 0.5, 0.6, 0.7, 0.0),)
    plain: dict[str, Any] = {key: {} for key in ("parameters", "encoder", "conventions", "classes", "templates")}
    plain |= {key: {} for key in ("files", "run", "versions", "scores")}
    plain |= dict.fromkeys(("method", "label", "title", "benchmark", "benchmark_title", "source"), "x")
    id = IdRow("glyphs", "Glyphs", 9, 9, 0, "list", None)
    return Result(**{**plain, "id": id, "ood": sets, "commit": None, **changes})


def test_rows_with_intervals_are_read_as_they_were_written() -> None:
    bare = row()
    full = row(
        ood=(replace(bare.ood[0], intervals={"auroc": (0.8, 0.95), "fpr95": (0.3, 0.5)}),),
        mean_intervals={"": {"auroc": (0.8, 0.95)}},
        uncertainty={"level": 0.95, "replicates": 1000, "seed": 0, "auroc": "DeLong, logit"},
    )
    assert from_json(full.to_json()) == full
    assert from_json(full.to_json()).digest == full.digest != bare.digest
    assert "was changed" in refusal(lambda: from_json(full.to_json().replace("0.95", "0.96")))


def test_rows_of_older_versions_are_read_and_keep_their_digest() -> None:
    bare = row()
    text = bare.to_json()
    for name in ("mean_intervals", "uncertainty"):
        assert f' "{name}": {{}},\n' in text
        text = text.replace(f' "{name}": {{}},\n', "")
    assert '   "intervals": {},\n' in text
    older = text.replace('   "intervals": {},\n', "")
    assert "intervals" not in older
    assert from_json(older) == bare and from_json(older).digest == bare.digest
    for path in sorted(Path(__file__).parents[2].glob("results/reference/**/*.json")):
        from_json(path.read_text(encoding="utf-8"), str(path))


def test_broken_intervals_are_refused_as_rows_are() -> None:
    for broken in ('{"auroc": 3}', '{"auroc": [1]}', "[1]", '"x"'):
        text = row().to_json().replace('"intervals": {}', f'"intervals": {broken}')
        assert "not a complete row" in refusal(lambda text=text: from_json(text))  # type: ignore[misc]


@pytest.mark.slow
def test_a_run_stores_intervals_and_does_not_resample_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    from oodbench.api import run
    from oodbench.pipeline import evaluate
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    def once(**options: object) -> Result:
        (made,) = run(
            make_plan(request_from(**{"methods": "mcm", "limit": 16, "out": tmp_path / "out", **options}))
        ).results
        return made

    first = once()
    (path,) = tmp_path.rglob("*.parquet")
    table = parquet.read_table(path).to_pandas()
    scores = {name: part["score"].to_numpy() for name, part in table.groupby("dataset")}
    groups = {one.dataset: one.group for one in first.ood}
    expected = intervals(Scores(scores.pop("glyphs"), {name: scores[name] for name in groups}, groups))
    for one in first.ood:
        assert one.intervals == pytest.approx({k: near(v, 1e-9) for k, v in expected.sets[one.dataset].items()})
    assert set(first.mean_intervals) == {"", "near", "far"}
    assert first.mean_intervals[""]["auroc"] == near(expected.means[""]["auroc"], 1e-9)
    assert (first.uncertainty["replicates"], first.uncertainty["fpr95"]) == (
        1000,
        "binomial threshold, Clopper-Pearson",
    )

    def fail(*_: object) -> None:
        raise AssertionError("resampled again")

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "intervals", fail)
        assert once() == first
    none = once(bootstrap=0, out=tmp_path / "none")
    assert list(none.ood[0].intervals) == ["auroc"] and none.ood[0].auroc == first.ood[0].auroc
    assert none.ood[0].intervals["auroc"] == first.ood[0].intervals["auroc"]
    assert "--bootstrap must be at least 0, not -1" in refusal(lambda: once(bootstrap=-1))
