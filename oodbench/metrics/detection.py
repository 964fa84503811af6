"""AUROC, FPR95 and AUPR of one method's scores on ID images against its scores on one OOD set."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError, did_you_mean
from oodbench.metrics import counts as merged
from oodbench.metrics.counts import Counts as Counts  # statistics takes it from here
from oodbench.metrics.counts import ThresholdCounts

Floats = NDArray[np.float64]

INTEGERS = 1 << 53  # up to here every integer is a float64
AT95 = ("first", "nearest", "interpolate")
AUPR = ("average_precision", "trapezoid")


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Scores of one image set, checked, to be sorted when that is needed: `given` must not be changed meanwhile.

    values          ascending, float64
    levels, starts  its ties: level i is `values[starts[i]:starts[i + 1]]`
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
    """How well one method's scores separate ID from OOD, as shares between 0 and 1.

    "FPR95" is two numbers: `fpr95` (CLIP papers) is the share of OOD accepted where 95 % of ID are, `fpr95_ood`
    (OpenOOD, pytorch-ood) the share of ID rejected where 95 % of OOD are. `aupr_in` has ID as its positive class,
    `aupr_out` OOD. `tied` is the share of all scores that some other image, ID or OOD, has as well.
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
    """Check one image set's scores, which may be infinite; `what` and image `names` are for the refusals.

    UserError for what float64 cannot rank, see `exact`.
    """
    given = exact(np.asarray(scores), what)
    if not isinstance(scores, np.ndarray) and (whole := [one for one in scores if isinstance(one, int)]):
        exact(np.array(whole), what)  # beside a float an integer has become one
    if names is not None and len(names) != given.size:
        raise UserError(f"{what}: {given.size} scores for {len(names)} images")
    if not given.size:
        raise UserError(f"{what}: no scores; is its image list empty?")
    if np.isnan(given.max()):  # which NaN goes through
        raise UserError(f"{what}: {_first_nan(given, names)}")
    return ScoreSet(given)


def exact(scores: NDArray[Any], what: str) -> NDArray[Any]:
    """Scores [n] of which float64 keeps every one as it is. UserError for others; NaN and infinity are not looked at.

    Integers of more than 2^53 and wider floats would be rounded, and tie or lose their order by it.
    """
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise UserError(f"{what}: one real number per image is needed, not {scores.dtype} of shape {scores.shape}")
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
    """Compare ID with OOD scores, of which higher ones mean more in-distribution; tied scores are accepted together.

    `at95` applies to both FPR95s (see `fpr_at_tpr`). `aupr` is scikit-learn's `average_precision`, or the `trapezoid`
    under its precision-recall curve (OpenOOD, pytorch-ood), which gives 75 % rather than 50 % to constant scores.
    """
    check_options(at95, aupr)
    n_id, n_ood = id.given.size, ood.given.size
    tally = tally_of(n_id, n_ood, aupr)
    # By levels alone for what it takes the points beside the thresholds, or before each level.
    merged.count(merged.keys(id.given, ood.given), tally, plain=at95 != "first" or aupr == "trapezoid")
    return metrics_of(tally, at95)


def tally_of(n_id: int, n_ood: int, aupr: str = "average_precision") -> ThresholdCounts:
    """An empty tally of so many images, with its thresholds where 95 % of ID, and of OOD, are called that."""
    return ThresholdCounts(
        n_id, n_ood, n_id - min_accepted(n_id, 0.95), min_accepted(n_ood, 0.95) - 1, aupr == "trapezoid"
    )


def metrics_of(tally: ThresholdCounts, at95: str = "first") -> Metrics:
    """The metrics of a tally that has seen all images."""
    n_id, n_ood, id, ood = tally.n_id, tally.n_ood, tally.at_id, tally.at_ood
    assert id and ood and (tally.id, tally.ood) == (n_id, n_ood)
    # Accepted of the other kind: with the threshold's level, before it, and at the next point without more positives.
    accepted = _Accepted(n_ood - id.ood_below, n_ood - id.ood_below - id.ood, _less(n_ood, id.beside))
    rejected = _Accepted(ood.id_below + ood.id, ood.id_below, ood.beside)
    return Metrics(
        auroc=tally.won / (2 * n_id * n_ood),
        fpr95=_at(0.95, at95, (n_id - id.id_below - id.id, n_id - id.id_below, n_id), accepted, n_ood),
        fpr95_ood=_at(0.95, at95, (ood.ood_below, ood.ood_below + ood.ood, n_ood), rejected, n_id),
        aupr_in=tally.area_in / n_id,
        aupr_out=tally.area_out / n_ood,
        tied=tally.tied / (n_id + n_ood),
        n_id=n_id,
        n_ood=n_ood,
    )


def threshold_at_tpr(id: ScoreSet, tpr: float = 0.95) -> float:
    """The highest score such that calling everything at or above it ID keeps at least `tpr` of the ID images."""
    return float(id.values[-min_accepted(id.values.size, tpr)])


def fpr_at_tpr(id: ScoreSet, ood: ScoreSet, tpr: float = 0.95, rule: str = "first") -> float:
    """Share of OOD accepted where the share `tpr` of ID is.

    Few curves have a point at exactly `tpr`. `first`: the smallest FPR of all points whose TPR is no less. `nearest`
    (MCM, NegLabel, GL-MCM, LoCoOp): the point of the nearest TPR, which may be a lower one; of two as near the higher
    TPR, of several with that TPR the highest FPR (but the lowest when it is 1). `interpolate` (CLIPN): on the line
    between the two points around `tpr`; where points have exactly `tpr`, the highest FPR of these.
    """
    _check_option("rule", rule, AT95)
    positive, negative = id.values, ood.values
    n, m = positive.size, negative.size
    threshold = positive[n - min_accepted(n, tpr)]
    start, stop = (int(np.searchsorted(positive, threshold, side)) for side in ("left", "right"))
    upto = None if not start else int(np.searchsorted(negative, positive[start - 1], "right"))
    below, through = (int(np.searchsorted(negative, threshold, side)) for side in ("left", "right"))
    return _at(tpr, rule, (n - stop, n - start, n), _Accepted(m - below, m - through, _less(m, upto)), m)


@dataclass(frozen=True)
class _Accepted:
    """Negatives accepted: with the threshold's level, before it, and just before the next level of positives."""

    with_it: int
    before: int
    last: int | None  # None: no positives are left


def _less(m: int, upto: int | None) -> int | None:
    return None if upto is None else m - upto


def _at(tpr: float, rule: str, positives: tuple[int, int, int], accepted: _Accepted, m: int) -> float:
    """The rules of `fpr_at_tpr`; `positives` accepted before the threshold's level, with it, and all; m negatives."""
    few, many, n = positives
    first = accepted.with_it / m
    if rule == "first":
        return first
    low, high, before = few / n, many / n, accepted.before / m
    last = first if accepted.last is None else accepted.last / m
    if rule == "nearest":
        exists = low > 0 or before > 0  # accepting nothing at all is no point of that curve
        return before if exists and abs(low - tpr) < abs(high - tpr) else last
    return last if high == tpr else float(np.interp(tpr, (low, high), (before, first)))


def min_accepted(n: int, tpr: float) -> int:
    """Smallest k with k / n >= tpr in floating point, which `ceil(tpr * n)` can miss by one."""
    if not 0 < tpr <= 1:
        raise UserError(f"tpr {tpr}: a share above 0 and up to 1 is needed, such as 0.95")
    k = max(math.ceil(tpr * n) - 1, 1)
    while k / n < tpr:
        k += 1
    return k


def check_options(at95: str, aupr: str) -> None:
    """UserError for rules that do not exist."""
    _check_option("at95", at95, AT95)
    _check_option("aupr", aupr, AUPR)


def _check_option(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"{option} '{given}' does not exist{did_you_mean(given, known)}")
