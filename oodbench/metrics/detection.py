"""AUROC, FPR95 and AUPR of one method's scores on ID images against its scores on one OOD set.

`auroc` and `false_positive_rate` are the only definitions of these metrics; resamples, shards and reports call them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError, did_you_mean
from oodbench.metrics.counts import Counts, ThresholdCounts, ThresholdPoint, count, keys

Floats = NDArray[np.float64]
Number = Any  # an int, a float, or an array with one number for each resample

INTEGERS = 1 << 53  # every integer up to here is exact in float64
TPR = 0.95  # of "FPR95"
AT95 = ("first", "nearest", "interpolate")
AUPR = ("average_precision", "trapezoid")


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Checked scores of one image set [n], sorted on first use: `given` must not change until then.

    values          the scores in ascending order, float64
    levels, starts  the distinct scores and their first positions: level i is `values[starts[i]:starts[i + 1]]`
    """

    given: NDArray[Any]

    @functools.cached_property
    def values(self) -> Floats:
        # Sorted as stored, then widened: half the time for float32, and the order is the same.
        return np.sort(self.given).astype(np.float64, copy=False)

    @functools.cached_property
    def starts(self) -> Counts:
        is_start = np.ones(self.values.size + 1, dtype=np.bool_)
        np.not_equal(self.values[1:], self.values[:-1], out=is_start[1:-1])
        return np.flatnonzero(is_start)

    @functools.cached_property
    def levels(self) -> Floats:
        return self.values[self.starts[:-1]]


@dataclass(frozen=True)
class Metrics:
    """How well one method's scores separate ID from OOD, as fractions between 0 and 1.

    "FPR95" is two numbers: `fpr95` (CLIP papers) is the fraction of OOD images accepted where 95 % of ID images are
    accepted, `fpr95_ood` (OpenOOD, pytorch-ood) the fraction of ID images rejected where 95 % of OOD images are
    rejected. `aupr_in` has ID as its positive class, `aupr_out` OOD. `tied` is the fraction of all images that have the
    score of another image, ID or OOD.
    """

    auroc: float
    fpr95: float
    fpr95_ood: float
    aupr_in: float
    aupr_out: float
    tied: float
    n_id: int
    n_ood: int


def score_set(scores: NDArray[Any] | Sequence[float], what: str, names: Sequence[str] | None = None) -> ScoreSet:
    """Check the scores [n] of one image set, which may be infinite.

    Arguments: `what` (the name of the set) and `names` [n] (of the images) are for error messages. Raises UserError
    for no scores, NaN, and scores that float64 cannot rank (see `exact`).
    """
    given = exact(np.asarray(scores), what)
    if not isinstance(scores, np.ndarray) and (integers := [score for score in scores if isinstance(score, int)]):
        exact(np.array(integers), what)  # np.asarray converts integers to floats if the list has floats
    if names is not None and len(names) != given.size:
        raise UserError(f"{what}: {given.size} scores for {len(names)} images")
    if not given.size:
        raise UserError(f"{what}: no scores; is its image list empty?")
    if np.isnan(given.max()):  # max() propagates NaN
        raise UserError(f"{what}: {_first_nan(given, names)}")
    return ScoreSet(given)


def check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    """Raise UserError unless an array has one real number per image."""
    if len(shape) != 1 or dtype.kind not in "fiu":
        flat = "; flatten it with .ravel()" if len(shape) > 1 and max(shape) == math.prod(shape) else ""
        raise UserError(f"{what}: one real number per image is needed, not {dtype} of shape {shape}{flat}")


def exact(scores: NDArray[Any], what: str) -> NDArray[Any]:
    """Return scores [n] that float64 represents exactly; raise UserError for others. NaN and infinity are not checked.

    Integers above 2^53 and wider floats would be rounded, which creates ties or changes their order.
    """
    check_shape(scores.shape, scores.dtype, what)
    if scores.dtype.kind in "iu" and scores.dtype.itemsize == 8 and scores.size:
        rounded = next((n for n in (int(scores.max()), int(scores.min())) if abs(n) > INTEGERS), None)
    else:
        with np.errstate(over="ignore"):
            wide = scores.dtype.itemsize > 8 and (scores != scores.astype(np.float64)) & ~np.isnan(scores)
        rounded = scores[np.argmax(wide)] if np.any(wide) else None
    if rounded is not None:
        raise UserError(
            f"{what}: the score {rounded} has more digits than float64 keeps, so that others would tie with it; "
            "give float64, or integers of at most 2^53"
        )
    return scores


def _first_nan(scores: np.ndarray, names: Sequence[str] | None) -> str:
    found = np.flatnonzero(np.isnan(scores))
    where = f"{found[0] + 1} of {scores.size}"
    image = f"score {where}" if names is None else f"score of image '{names[found[0]]}' ({where})"
    return f"{image} is NaN" + (f", and {found.size - 1} more" if found.size > 1 else "")


def evaluate(id: ScoreSet, ood: ScoreSet, at95: str = "first", aupr: str = "average_precision") -> Metrics:
    """Compare ID with OOD scores: higher means more in-distribution, and tied scores are accepted together.

    Arguments: `id` and `ood` are checked scores (see `score_set`). `at95` applies to both FPR95s (see `fpr_at_tpr`).
    `aupr` is scikit-learn's `average_precision`, or the `trapezoid` under its precision-recall curve (OpenOOD,
    pytorch-ood), which is 75 % rather than 50 % for constant scores. Returns the metrics as fractions. Raises UserError
    for an unknown `at95` or `aupr`.
    """
    check_options(at95, aupr)
    counts = threshold_counts(id.given.size, ood.given.size, aupr)
    # Only counting by level finds the points next to the thresholds and before each level.
    count(keys(id.given, ood.given), counts, by_level=at95 != "first" or aupr == "trapezoid")
    return metrics_of(counts, at95)


def threshold_counts(n_id: int, n_ood: int, aupr: str = "average_precision") -> ThresholdCounts:
    """Return empty counts, with thresholds that accept 95 % of the ID images and reject 95 % of the OOD images."""
    return ThresholdCounts(
        n_id, n_ood, n_id - min_accepted(n_id, TPR), min_accepted(n_ood, TPR) - 1, aupr == "trapezoid"
    )


def metrics_of(counts: ThresholdCounts, at95: str = "first") -> Metrics:
    """Return the metrics from counts of all images."""
    n_id, n_ood, on_id, on_ood = counts.n_id, counts.n_ood, counts.at_id, counts.at_ood
    assert on_id and on_ood and (counts.id, counts.ood) == (n_id, n_ood)
    return Metrics(
        auroc=float(auroc(counts.concordant_pairs_x2, n_id, n_ood)),
        fpr95=float(false_positive_rate(_id_positive(on_id, n_id, n_ood), TPR, at95)),
        fpr95_ood=float(false_positive_rate(_ood_positive(on_ood, n_id, n_ood), TPR, at95)),
        aupr_in=counts.area_in / n_id,
        aupr_out=counts.area_out / n_ood,
        tied=counts.tied / (n_id + n_ood),
        n_id=n_id,
        n_ood=n_ood,
    )


def _id_positive(point: ThresholdPoint, n_id: int, n_ood: int) -> RocPoint:
    negatives = n_ood - point.ood_below
    return RocPoint(
        n_id,
        n_ood,
        negatives,
        positives=n_id - point.id_below,
        positives_before=n_id - point.id_below - point.id,
        negatives_before=negatives - point.ood,
        negatives_after=negatives if point.neighbour is None else n_ood - point.neighbour,
    )


def _ood_positive(point: ThresholdPoint, n_id: int, n_ood: int) -> RocPoint:
    negatives = point.id_below + point.id
    return RocPoint(
        n_ood,
        n_id,
        negatives,
        positives=point.ood_below + point.ood,
        positives_before=point.ood_below,
        negatives_before=point.id_below,
        negatives_after=negatives if point.neighbour is None else point.neighbour,
    )


def threshold_at_tpr(id: ScoreSet, tpr: float = 0.95) -> float:
    """Return the highest threshold that accepts at least the fraction `tpr` of ID images (score >= threshold)."""
    return float(id.values[-min_accepted(id.values.size, tpr)])


def auroc(concordant_pairs_x2: Number, n_id: int, n_ood: int) -> Number:
    """Return the AUROC: the fraction of ID-OOD pairs in which ID has the higher score, ties counted half.

    Every other computation of AUROC calls this definition. `concordant_pairs_x2` is twice the number of these pairs,
    one number or one for each resample [r].
    """
    return concordant_pairs_x2 / (2 * n_id * n_ood)


@dataclass(frozen=True)
class RocPoint:
    """Images accepted at a threshold and next to it; each count is one number, or one for each resample [r].

    n_positive, n_negative              all positives and all negatives
    negatives, positives                accepted at the threshold, including images with exactly this score
    negatives_before, positives_before  accepted above the threshold, excluding images with exactly this score
    negatives_after                     accepted just before the next positive: the highest FPR with this TPR

    The rule "first" takes `negatives` only.
    """

    n_positive: int
    n_negative: int
    negatives: Number
    positives: Number = 0
    positives_before: Number = 0
    negatives_before: Number = 0
    negatives_after: Number = 0


def false_positive_rate(point: RocPoint, tpr: Floats | float, rule: str) -> Number:
    """Return the FPR at `tpr` by a rule of `fpr_at_tpr`; `point` has the first TPR >= `tpr`. Each is a number or [r].

    Every other computation of FPR95 calls this definition: ID is positive for `fpr95`, OOD for `fpr95_ood`.
    """
    first = point.negatives / point.n_negative
    if rule == "first":
        return first
    low, high = point.positives_before / point.n_positive, point.positives / point.n_positive
    before, last = point.negatives_before / point.n_negative, point.negatives_after / point.n_negative
    if rule == "nearest":
        exists = (low > 0) | (before > 0)  # this rule's curve has no point at which nothing is accepted
        return np.where(exists & (np.abs(low - tpr) < np.abs(high - tpr)), before, last)
    return np.where(high == tpr, last, (first - before) / (high - low) * (tpr - low) + before)


def fpr_at_tpr(id: ScoreSet, ood: ScoreSet, tpr: float = 0.95, rule: str = "first") -> float:
    """Return the fraction of OOD images accepted at the threshold that accepts the fraction `tpr` of ID images.

    Few curves have a point at exactly `tpr`. `first`: the smallest FPR with a TPR of at least `tpr`. `nearest` (MCM,
    NegLabel, GL-MCM, LoCoOp): the point with the nearest TPR, which may be lower than `tpr`; ties go to the higher TPR,
    then to the highest FPR (to the lowest if that TPR is 1). `interpolate` (CLIPN): linear between the two points
    around `tpr`; if points have exactly `tpr`, their highest FPR. Raises UserError for an unknown `rule` and for a
    `tpr` that is not above 0 and at most 1.
    """
    _check_option("rule", rule, AT95)
    positive, negative = id.values, ood.values
    n, m = positive.size, negative.size
    threshold = positive[n - min_accepted(n, tpr)]
    start, stop = (int(np.searchsorted(positive, threshold, side)) for side in ("left", "right"))
    below, through = (int(np.searchsorted(negative, threshold, side)) for side in ("left", "right"))
    next_lower = int(np.searchsorted(negative, positive[start - 1], "right")) if start else below
    point = RocPoint(
        n,
        m,
        m - below,
        positives=n - start,
        positives_before=n - stop,
        negatives_before=m - through,
        negatives_after=m - next_lower,
    )
    return float(false_positive_rate(point, tpr, rule))


def min_accepted(n: int, tpr: float) -> int:
    """Return the smallest k with k / n >= tpr in floating point, which `ceil(tpr * n)` can miss by one."""
    if not 0 < tpr <= 1:
        raise UserError(f"tpr {tpr}: a fraction above 0 and up to 1 is needed, such as 0.95")
    k = max(math.ceil(tpr * n) - 1, 1)
    while k / n < tpr:
        k += 1
    return k


def check_options(at95: str, aupr: str) -> None:
    """Raise UserError for rules that do not exist."""
    _check_option("at95", at95, AT95)
    _check_option("aupr", aupr, AUPR)


def _check_option(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"{option} '{given}' does not exist{did_you_mean(given, known)}")
