"""Metrics against scikit-learn, the definitions of published rules, and symmetries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import interp1d
from sklearn import metrics as sklearn_metrics

from oodbench.errors import UserError
from oodbench.metrics.detection import AT95, AUPR, Metrics, ScoreSet, evaluate, fpr_at_tpr, score_set, threshold_at_tpr


def near(expected: float | tuple[float, ...]) -> Any:
    return pytest.approx(expected, rel=0, abs=1e-12)


def gaussian(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(1, 1, rng.integers(20, 400)), rng.normal(-0.5, 1.5, rng.integers(20, 400))


def few_levels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.clip(np.round(scores * 3), -10, 10) / 10 for scores in gaussian(rng))  # type: ignore[return-value]


def integers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(3, 40, 200), rng.integers(0, 30, 120).astype(np.uint8)


def constant(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return np.full(rng.integers(1, 60), 0.25), np.full(rng.integers(1, 60), 0.25)


def perfect(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(1, 2, 100), rng.uniform(0, 1, 100)


def inverted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, 1, 40), rng.uniform(1, 2, 60)


def clip_scale(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    draw = rng.beta(3, 2, 300), rng.beta(2, 3, 200)
    return tuple((0.001 + 0.0002 * scores).astype(np.float32) for scores in draw)  # type: ignore[return-value]


def saturated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    draw = rng.exponential(1e-7, 300), rng.exponential(4e-7, 260)
    return tuple((1 - scores).astype(np.float32) for scores in draw)  # type: ignore[return-value]


def half(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return tuple((scores / 50).astype(np.float16) for scores in gaussian(rng))  # type: ignore[return-value]


def infinite(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    id, ood = gaussian(rng)
    id[:4] = [np.inf, np.inf, -np.inf, np.inf]
    ood[:3] = [np.inf, -np.inf, -np.inf]
    return id, ood


def one_each(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 2, 1), rng.integers(0, 2, 1)


def three_and_two(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 4, 3), rng.integers(0, 4, 2)


def twenties(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A TPR of 0.95 is reached exactly, and OOD scores lie between the ID scores around it."""
    return rng.permutation(20 * rng.integers(1, 15)) + 0.5, rng.integers(0, 30, 40)


SHAPES = [gaussian, few_levels, integers, constant, perfect, inverted, clip_scale, saturated, half, infinite]
SHAPES += [one_each, three_and_two, twenties]
Shape = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def pairs(request: pytest.FixtureRequest) -> list[tuple[np.ndarray, np.ndarray]]:
    shape: Shape = request.param
    return [shape(np.random.default_rng(seed)) for seed in range(12)]


def measure(id: np.ndarray, ood: np.ndarray, at95: str = "first", aupr: str = "average_precision") -> Metrics:
    return evaluate(score_set(id, "id"), score_set(ood, "ood"), at95, aupr)


def labelled(id: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (ID 1) and scores for scikit-learn; ranks replace infinite scores, which it refuses."""
    scores = np.concatenate([id.astype(np.float64), ood.astype(np.float64)])
    if not np.isfinite(scores).all():
        scores = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    return np.repeat([1, 0], [id.size, ood.size]), scores


def first_reference(labels: np.ndarray, scores: np.ndarray, tpr: float = 0.95) -> float:
    fprs, tprs, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    return float(fprs[np.argmax(tprs >= tpr)])


def interpolate_reference(labels: np.ndarray, scores: np.ndarray, tpr: float = 0.95) -> float:
    fprs, tprs, _ = sklearn_metrics.roc_curve(labels, scores)
    return float(interp1d(tprs, fprs)(tpr))


def nearest_reference(labels: np.ndarray, scores: np.ndarray, tpr: float = 0.95) -> float:
    """Every distinct score is a threshold, down to the first that accepts all positives; the rest is in the key."""
    id, ood = scores[labels == 1], scores[labels == 0]
    points = [(float(np.mean(id >= t)), float(np.mean(ood >= t))) for t in np.unique(scores)]
    complete = min(fpr for recall, fpr in points if recall == 1)
    points = [point for point in points if point[0] < 1 or point[1] == complete]
    return min(points, key=lambda point: (abs(point[0] - tpr), -point[0], -point[1]))[1]


REFERENCES = {"first": first_reference, "nearest": nearest_reference, "interpolate": interpolate_reference}


def trapezoid_reference(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    return float(sklearn_metrics.auc(recall, precision))


def test_auroc_and_aupr_equal_scikit_learn(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for id, ood in pairs:
        labels, scores = labelled(id, ood)
        steps, trapezoids = measure(id, ood), measure(id, ood, aupr="trapezoid")
        assert steps.auroc == near(sklearn_metrics.roc_auc_score(labels, scores))
        assert steps.aupr_in == near(sklearn_metrics.average_precision_score(labels, scores))
        assert steps.aupr_out == near(sklearn_metrics.average_precision_score(1 - labels, -scores))
        assert trapezoids.aupr_in == near(trapezoid_reference(labels, scores))
        assert trapezoids.aupr_out == near(trapezoid_reference(1 - labels, -scores))
        assert trapezoids == replace(steps, aupr_in=trapezoids.aupr_in, aupr_out=trapezoids.aupr_out)
        assert (steps.n_id, steps.n_ood) == (id.size, ood.size)


@pytest.mark.parametrize("rule", AT95)
def test_both_fpr95s_equal_their_definition(pairs: list[tuple[np.ndarray, np.ndarray]], rule: str) -> None:
    for id, ood in pairs:
        labels, scores = labelled(id, ood)
        found = measure(id, ood, at95=rule)
        assert found.fpr95 == near(REFERENCES[rule](labels, scores))
        assert found.fpr95_ood == near(REFERENCES[rule](1 - labels, -scores))


@pytest.mark.parametrize("rule", AT95)
@pytest.mark.parametrize("tpr", [0.05, 0.3, 0.5, 0.8, 0.9, 0.99])
def test_fpr_at_other_tprs(pairs: list[tuple[np.ndarray, np.ndarray]], rule: str, tpr: float) -> None:
    for id, ood in pairs[:4]:
        found = fpr_at_tpr(score_set(id, "id"), score_set(ood, "ood"), tpr, rule)
        assert found == near(REFERENCES[rule](*labelled(id, ood), tpr))


def test_tied_counts_images_that_share_a_score(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for id, ood in pairs:
        _, counts = np.unique(labelled(id, ood)[1], return_counts=True)
        assert measure(id, ood).tied == near(counts[counts > 1].sum() / counts.sum())


@pytest.mark.parametrize("tpr", [0.55, 0.7, 0.8, 0.9, 0.95, 0.99, 1 / 3, 1.0])
def test_95_percent_is_decided_as_scikit_learn_divides(tpr: float) -> None:
    for n in [*range(1, 2000), 9_000, 45_000, 50_000]:
        fewest = int(np.argmax(np.arange(n + 1) / n >= tpr))
        assert threshold_at_tpr(score_set(np.arange(n), "id"), tpr) == n - fewest


def test_threshold_keeps_tied_images_together() -> None:
    scores = score_set(np.array([0.3] * 4 + [0.7] * 96), "id")
    assert threshold_at_tpr(scores) == 0.7
    assert threshold_at_tpr(scores, 0.97) == 0.3


# The conventions


def test_the_two_fpr95s_are_different_numbers() -> None:
    """Ten ID images score below all OOD images: accepting 95 % of ID accepts all OOD, rejecting OOD rejects few ID."""
    found = measure(np.array([0.1] * 10 + [0.9] * 90), np.full(50, 0.5))
    assert (found.fpr95, found.fpr95_ood) == (1.0, 0.1)


def test_the_two_fpr95s_of_softmax_like_scores_differ_widely() -> None:
    rng = np.random.default_rng(0)
    id, ood = (1 / (1 + np.exp(-rng.normal(mean, sd, 4000))) for mean, sd in [(3, 2.5), (0.2, 1)])
    found = measure(id, ood)
    assert found.fpr95 > found.fpr95_ood + 0.15


@pytest.mark.parametrize(("n_id", "n_ood"), [(100, 100), (30, 10)])
def test_constant_scores(n_id: int, n_ood: int) -> None:
    id, ood = np.full(n_id, 0.5), np.full(n_ood, 0.5)
    share = n_id / (n_id + n_ood)
    assert measure(id, ood) == Metrics(0.5, 1.0, 1.0, share, 1 - share, 1.0, n_id, n_ood)
    assert measure(id, ood, at95="nearest").fpr95 == 1.0
    assert measure(id, ood, at95="interpolate").fpr95 == near(0.95)
    assert measure(id, ood, aupr="trapezoid").aupr_in == near((1 + share) / 2)
    assert measure(id, ood, aupr="trapezoid").aupr_out == near((2 - share) / 2)


@pytest.mark.parametrize("at95", AT95)
@pytest.mark.parametrize("aupr", AUPR)
def test_perfect_and_inverted_scores(at95: str, aupr: str) -> None:
    low, high = np.arange(100), np.arange(100, 200)
    assert measure(high, low, at95, aupr) == Metrics(1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 100, 100)
    worst = measure(low, high, at95, aupr)
    assert (worst.auroc, worst.fpr95, worst.fpr95_ood) == (0.0, 1.0, 1.0)


def test_the_rules_differ_where_no_threshold_keeps_95_percent() -> None:
    """ID 10, 20 ... 100, OOD 5, 15, 25: accepting 9 ID images accepts OOD 25 or 25 and 15, accepting 10 the latter."""
    id, ood = score_set(np.arange(10, 101, 10), "id"), score_set(np.array([5, 15, 25]), "ood")
    assert fpr_at_tpr(id, ood, rule="first") == 2 / 3
    assert fpr_at_tpr(id, ood, 0.94, rule="nearest") == 2 / 3  # the higher FPR of the two points at TPR 0.9
    assert fpr_at_tpr(id, ood, 0.89, rule="first") == 1 / 3
    assert fpr_at_tpr(id, ood, 0.85, rule="interpolate") == near(1 / 3)


def test_nearest_may_keep_less_than_95_percent() -> None:
    """16 of 17 ID images are 94.1 %, nearer to 95 % than all 17; the last one accepts every OOD image."""
    id, ood = np.array([0.0] + [1.0] * 16), np.full(5, 0.5)
    assert measure(id, ood, "first").fpr95 == 1.0
    assert measure(id, ood, "nearest").fpr95 == 1.0  # published code takes the worse of the two points at 94.1 %
    id, ood = np.array([0.0] + [1.0] * 16), np.full(5, 0.0)
    assert measure(id, ood, "first").fpr95 == 1.0
    assert measure(id, ood, "nearest").fpr95 == 0.0


# Symmetries


@pytest.mark.parametrize("at95", AT95)
@pytest.mark.parametrize("aupr", AUPR)
def test_exchanging_the_roles_exchanges_the_columns(
    pairs: list[tuple[np.ndarray, np.ndarray]], at95: str, aupr: str
) -> None:
    for id, ood in pairs:
        found = measure(id, ood, at95, aupr)
        exchanged = measure(-ood.astype(np.float64), -id.astype(np.float64), at95, aupr)
        expected = replace(
            found,
            fpr95=found.fpr95_ood,
            fpr95_ood=found.fpr95,
            aupr_in=found.aupr_out,
            aupr_out=found.aupr_in,
            n_id=found.n_ood,
            n_ood=found.n_id,
        )
        assert astuple(exchanged) == near(astuple(expected))


def test_auroc_of_negated_scores_is_the_complement(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for id, ood in pairs:
        negated = measure(-id.astype(np.float64), -ood.astype(np.float64)).auroc
        assert measure(id, ood).auroc + negated == near(1)


@pytest.mark.parametrize("at95", AT95)
@pytest.mark.parametrize("aupr", AUPR)
def test_only_the_order_of_scores_matters(pairs: list[tuple[np.ndarray, np.ndarray]], at95: str, aupr: str) -> None:
    for id, ood in pairs:
        both = np.concatenate([id.astype(np.float64), ood.astype(np.float64)])
        ranks = np.unique(both, return_inverse=True)[1]
        found = measure(id, ood, at95, aupr)
        shuffled = np.random.default_rng(0).permutation(id)
        assert measure(ranks[: id.size], ranks[id.size :], at95, aupr) == found
        assert measure(shuffled * 1.0, ood * 1.0, at95, aupr) == found


def test_one_sorted_id_side_serves_every_ood_set() -> None:
    rng = np.random.default_rng(0)
    id = rng.normal(1, 1, 300).round(1)
    before = id.copy()
    once = score_set(id, "id")
    for ood in (rng.normal(0, 1, 50).round(1), rng.normal(0, 1, 500)):
        for aupr in AUPR:
            assert evaluate(once, score_set(ood, "ood"), aupr=aupr) == measure(id, ood, aupr=aupr)
    assert np.array_equal(id, before)


def test_sorting_widens_without_changing_a_score() -> None:
    found = score_set(np.array([0.1, np.inf, 0.1, -np.inf, 0.0, -0.0], dtype=np.float32), "id")
    narrow = float(np.float32(0.1))
    assert found.values.dtype == np.float64
    assert found.values.tolist() == [-np.inf, 0, 0, narrow, narrow, np.inf]
    assert found.levels.tolist() == [-np.inf, 0, narrow, np.inf]
    assert found.starts.tolist() == [0, 1, 3, 5, 6]


# Refusals


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def test_nan_is_refused_with_the_image() -> None:
    scores = np.zeros(5640, dtype=np.float32)
    scores[16] = np.nan
    names = [f"banded/{i}.jpg" for i in range(5640)]
    name = "mcm on textures"
    expected = "mcm on textures: score of image 'banded/16.jpg' (17 of 5640) is NaN"
    assert refusal(lambda: score_set(scores, name, names)) == expected
    assert refusal(lambda: score_set(scores, name)) == "mcm on textures: score 17 of 5640 is NaN"
    scores[3000:3004] = np.nan
    assert refusal(lambda: score_set(scores, name)) == "mcm on textures: score 17 of 5640 is NaN, and 4 more"
    assert refusal(lambda: score_set(-scores, name)) == "mcm on textures: score 17 of 5640 is NaN, and 4 more"


@pytest.mark.parametrize(
    ("scores", "names", "message"),
    [
        (np.zeros(0), None, "mcm on textures: no scores; is its image list empty?"),
        (np.zeros((3, 1)), None, "mcm on textures: one real number per image is needed, not float64 of shape (3, 1)"),
        (np.float64(1.0).reshape(()), None, "one real number per image is needed, not float64 of shape ()"),
        (np.ones(2, dtype=bool), None, "one real number per image is needed, not bool of shape (2,)"),
        (np.ones(2, dtype=complex), None, "one real number per image is needed, not complex128 of shape (2,)"),
        (np.zeros(2), ["a", "b", "c"], "mcm on textures: 2 scores for 3 images"),
    ],
)
def test_scores_that_are_refused(scores: np.ndarray, names: list[str] | None, message: str) -> None:
    assert message in refusal(lambda: score_set(scores, "mcm on textures", names))


HUGE = 2**60


@pytest.mark.parametrize(
    "scores",
    [
        HUGE + np.arange(5),
        -HUGE - np.arange(5),
        np.uint64(2**63) + np.arange(5, dtype=np.uint64),
        np.array([1, -(2**63)]),
        np.array([2**53 + 1]),
        np.array([1, 1 + 1e-18], np.longdouble) + np.array([0, np.finfo(np.longdouble).eps], np.longdouble),
        np.array(["1e400"]).astype(np.longdouble),
        [HUGE, HUGE + 1],
        [HUGE + 1, 0.5],
        [2**70],
        np.array([HUGE, HUGE + 1], object),
    ],
)
def test_scores_that_float64_would_round_are_refused(scores: Any) -> None:
    """They would tie: AUROC .5 for `HUGE + arange(5)` against `HUGE - arange(1, 6)`."""
    said = refusal(lambda: score_set(scores, "mcm on textures"))
    assert "mcm on textures: " in said and ("more digits than float64 keeps" in said or "not object" in said)


@pytest.mark.parametrize("base", [0, 2**53 - 9, -(2**53)])
@pytest.mark.parametrize("kind", [np.int64, np.float64, np.longdouble, list])
def test_scores_that_float64_keeps_are_ranked_exactly(base: int, kind: Any) -> None:
    id, ood = (
        kind([base + k for k in some]) if kind is list else np.array([base + k for k in some], kind)
        for some in ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4))
    )
    assert evaluate(score_set(id, "ID"), score_set(ood, "OOD")).auroc == 1.0
    assert evaluate(score_set(ood, "ID"), score_set(id, "OOD")).auroc == 0.0


def test_half_precision_is_ranked_exactly() -> None:
    """All 63,488 finite float16 values are also distinct in float64."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.unique(every[np.isfinite(every)])
    id, ood = score_set(finite[1::2], "ID"), score_set(finite[::2], "OOD")
    n, m = id.given.size, ood.given.size
    assert n + m == 63487  # of 63,488, for 0 and -0 are one
    assert evaluate(id, ood).auroc == sklearn_metrics.roc_auc_score(
        [1] * n + [0] * m, np.concatenate([finite[1::2], finite[::2]]).astype(np.float64)
    )
    assert evaluate(id, ood).tied == 0


@pytest.fixture
def some() -> ScoreSet:
    return score_set(np.arange(4), "id")


def test_unknown_options_are_refused(some: ScoreSet) -> None:
    assert refusal(lambda: evaluate(some, some, at95="frist")) == "at95 'frist' does not exist; did you mean 'first'?"
    assert "; did you mean 'trapezoid'?" in refusal(lambda: evaluate(some, some, aupr="trapez"))
    assert "rule 'x' does not exist; known: first" in refusal(lambda: fpr_at_tpr(some, some, rule="x"))


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.01, 95, float("nan")])
def test_a_tpr_is_a_fraction(some: ScoreSet, tpr: float) -> None:
    assert f"tpr {tpr}: a fraction" in refusal(lambda: threshold_at_tpr(some, tpr))
