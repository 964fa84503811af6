"""AUROC, FPR95 and AUPR of one method's scores on ID images against its scores on one OOD set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError, did_you_mean

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

AT95 = ("first", "nearest", "interpolate")
AUPR = ("average_precision", "trapezoid")


@dataclass(frozen=True, eq=False)
class Sorted:
    """Scores of one image set in ascending order, with their ties: level i is `values[starts[i]:starts[i + 1]]`."""

    values: Floats
    levels: Floats
    starts: Counts


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


def sort_scores(scores: np.ndarray, what: str, names: Sequence[str] | None = None) -> Sorted:
    """Check and sort one image set's scores, infinite ones included; `what` and image `names` are for the refusals."""
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise UserError(f"{what}: one real number per image is needed, not {scores.dtype} of shape {scores.shape}")
    if names is not None and len(names) != scores.size:
        raise UserError(f"{what}: {scores.size} scores for {len(names)} images")
    if not scores.size:
        raise UserError(f"{what}: no scores; is its image list empty?")
    # Sorted as stored, then widened: half the time for float32, and the order is the same.
    values = np.sort(scores).astype(np.float64, copy=False)
    if np.isnan(values[-1]):  # sorting puts NaN last
        raise UserError(f"{what}: {_first_nan(scores, names)}")
    is_start = np.ones(values.size + 1, dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_start[1:-1])
    starts = np.flatnonzero(is_start)
    return Sorted(values, values[starts[:-1]], starts)


def _first_nan(scores: np.ndarray, names: Sequence[str] | None) -> str:
    found = np.flatnonzero(np.isnan(scores))
    where = f"{found[0] + 1} of {scores.size}"
    image = f"score {where}" if names is None else f"score of image '{names[found[0]]}' ({where})"
    return f"{image} is NaN" + (f", and {found.size - 1} more" if found.size > 1 else "")


def evaluate(id: Sorted, ood: Sorted, at95: str = "first", aupr: str = "average_precision") -> Metrics:
    """Compare ID with OOD scores, of which higher ones mean more in-distribution; tied scores are accepted together.

    `at95` applies to both FPR95s (see `fpr_at_tpr`). `aupr` is scikit-learn's `average_precision`, or the `trapezoid`
    under its precision-recall curve (OpenOOD, pytorch-ood), which gives 75 % rather than 50 % to constant scores.
    """
    _check_option("at95", at95, AT95)
    _check_option("aupr", aupr, AUPR)
    n_id, n_ood = id.values.size, ood.values.size

    # One search, of levels in levels; what the ID side has below each OOD level follows by counting. Temporaries are
    # few on purpose: in a young process each costs more in page faults than its arithmetic does.
    place = np.searchsorted(ood.levels, id.levels)
    shared = np.take(ood.levels, place, mode="clip") == id.levels
    shared_place = place[shared]
    ood_below = ood.starts[place]
    place_up_to = np.cumsum(np.bincount(place, minlength=ood.levels.size)[: ood.levels.size])

    id_counts, ood_counts = np.diff(id.starts), np.diff(ood.starts)
    pairs_won, pairs_tied = id_counts @ ood_below, id_counts[shared] @ ood_counts[shared_place]
    ood_shared = np.zeros(ood.levels.size, dtype=np.bool_)
    ood_shared[shared_place] = True
    tied = id_counts[shared | (id_counts > 1)].sum() + ood_counts[ood_shared | (ood_counts > 1)].sum()

    false_in = false_out = None
    if aupr == "trapezoid":
        false_in, false_out = n_ood - ood.starts[place + shared], id.starts[place_up_to - ood_shared]
    return Metrics(
        auroc=float((2 * pairs_won + pairs_tied) / (2 * n_id * n_ood)),
        fpr95=_fpr(id.values, ood.values, 0.95, at95),
        fpr95_ood=_fpr(-ood.values[::-1], -id.values[::-1], 0.95, at95),
        aupr_in=_area(id_counts, n_id - id.starts[:-1], n_ood - ood_below, false_in),
        aupr_out=_area(ood_counts, ood.starts[1:], id.starts[place_up_to], false_out),
        tied=float(tied / (n_id + n_ood)),
        n_id=n_id,
        n_ood=n_ood,
    )


def threshold_at_tpr(id: Sorted, tpr: float = 0.95) -> float:
    """The highest score such that calling everything at or above it ID keeps at least `tpr` of the ID images."""
    return float(id.values[-fewest(id.values.size, tpr)])


def fpr_at_tpr(id: Sorted, ood: Sorted, tpr: float = 0.95, rule: str = "first") -> float:
    """Share of OOD accepted where the share `tpr` of ID is.

    Few curves have a point at exactly `tpr`. `first`: the smallest FPR of all points whose TPR is no less. `nearest`
    (MCM, NegLabel, GL-MCM, LoCoOp): the point of the nearest TPR, which may be a lower one; of two as near the higher
    TPR, of several with that TPR the highest FPR (but the lowest when it is 1). `interpolate` (CLIPN): on the line
    between the two points around `tpr`; where points have exactly `tpr`, the highest FPR of these.
    """
    _check_option("rule", rule, AT95)
    return _fpr(id.values, ood.values, tpr, rule)


def _fpr(positive: Floats, negative: Floats, tpr: float, rule: str) -> float:
    n, m = positive.size, negative.size
    threshold = positive[n - fewest(n, tpr)]
    first = (m - int(np.searchsorted(negative, threshold))) / m
    if rule == "first":
        return first
    start, stop = (int(np.searchsorted(positive, threshold, side)) for side in ("left", "right"))
    low, high = (n - stop) / n, (n - start) / n
    # The highest FPR before the threshold's own level is accepted, and that before the next lower one is.
    before = (m - int(np.searchsorted(negative, threshold, "right"))) / m
    last = (m - int(np.searchsorted(negative, positive[start - 1], "right"))) / m if start else first
    if rule == "nearest":
        exists = low > 0 or before > 0  # accepting nothing at all is no point of that curve
        return before if exists and abs(low - tpr) < abs(high - tpr) else last
    return last if high == tpr else float(np.interp(tpr, (low, high), (before, first)))


def fewest(n: int, tpr: float) -> int:
    """Smallest k with k / n >= tpr in floating point, which `ceil(tpr * n)` can miss by one."""
    if not 0 < tpr <= 1:
        raise UserError(f"tpr {tpr}: a share above 0 and up to 1 is needed, such as 0.95")
    k = max(math.ceil(tpr * n) - 1, 1)
    while k / n < tpr:
        k += 1
    return k


def _area(counts: Counts, found: Counts, false: Counts, false_before: Counts | None) -> float:
    """Area under precision over recall, from every level of the positives: how many it has, and what is accepted.

    With a level, `found` positives and `false` negatives are accepted; just before it, `false_before` negatives
    were, those of levels without positives included. With these it is the area by trapezoids, without by steps.
    """
    precision = found / (found + false)
    if false_before is not None:
        found_before = found - counts
        called = found_before + false_before
        # scikit-learn starts the curve, where nothing is accepted, at precision 1.
        precision += np.divide(found_before, called, out=np.ones_like(precision), where=called > 0)
        precision /= 2
    precision *= counts  # summed by numpy: a float dot product would wake the threads of BLAS
    return float(precision.sum() / counts.sum())


def _check_option(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"{option} '{given}' does not exist{did_you_mean(given, known)}")
