"""Counts of ID and OOD images level by level, in ascending order of score: all that every metric follows from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class At:
    """The level of a threshold: images below it, images that have it, and the point next to it on the curve.

    beside    of the other kind: up to the next lower ID level (threshold on ID), or below the next higher OOD level
              (on OOD); None where there is no such level
    """

    id_below: int
    id: int
    ood_below: int
    ood: int
    beside: int | None


@dataclass
class Tally:
    """What is known after some levels, the lowest first; `n_id` and `n_ood` images are in all.

    id_rank, ood_rank   the thresholds: those of the ID and OOD images with so many of their kind before them
    trapezoid           AUPR by trapezoids, not by steps
    id, ood             images so far
    won                 twice the pairs so far in which ID is above OOD, ties counted half: an integer, exact
    area_in, area_out   sums of precision over ID, over OOD images
    tied                images that share their score with another
    """

    n_id: int
    n_ood: int
    id_rank: int
    ood_rank: int
    trapezoid: bool = False
    id: int = 0
    ood: int = 0
    won: int = 0
    area_in: float = 0.0
    area_out: float = 0.0
    tied: int = 0
    at_id: At | None = None
    at_ood: At | None = None
    _ood_upto: int | None = field(default=None, repr=False)  # OOD images up to the last ID level so far

    def add(self, id_upto: Counts, upto: Counts) -> None:
        """Take the next levels, above all before: ID images, and all images, up to each of them [levels], from here."""
        ood_upto = upto - id_upto
        id, ood = _differences(id_upto), _differences(ood_upto)
        id_upto, ood_upto = id_upto + self.id, ood_upto + self.ood
        id_below, ood_below = id_upto - id, ood_upto - ood
        self.won += int((id * (ood_below + ood_upto)).sum())
        self.tied += int(upto[-1]) - int(np.count_nonzero(id + ood == 1))
        right_in, false_in = self.n_id - id_below, self.n_ood - ood_below
        self.area_in += _area(id, right_in, false_in, self.n_ood - ood_upto if self.trapezoid else None)
        self.area_out += _area(ood, ood_upto, id_upto, id_below if self.trapezoid else None)
        self._thresholds(id, ood, id_upto, ood_upto)
        self.id, self.ood = int(id_upto[-1]), int(ood_upto[-1])

    def _thresholds(self, id: Counts, ood: Counts, id_upto: Counts, ood_upto: Counts) -> None:
        of_id, of_ood = np.flatnonzero(id), np.flatnonzero(ood)

        def at(level: int, beside: int | None) -> At:
            own, other = int(id[level]), int(ood[level])
            return At(int(id_upto[level]) - own, own, int(ood_upto[level]) - other, other, beside)

        if self.id <= self.id_rank < id_upto[-1]:
            level = int(np.searchsorted(id_upto, self.id_rank, "right"))
            lower = of_id[: np.searchsorted(of_id, level)]
            self.at_id = at(level, int(ood_upto[lower[-1]]) if lower.size else self._ood_upto)
        if self.at_ood is not None and self.at_ood.beside is None and of_ood.size:
            self.at_ood = replace(self.at_ood, beside=int(id_upto[of_ood[0]] - id[of_ood[0]]))
        if self.ood <= self.ood_rank < ood_upto[-1]:
            level = int(np.searchsorted(ood_upto, self.ood_rank, "right"))
            higher = of_ood[np.searchsorted(of_ood, level, "right") :]
            self.at_ood = at(level, int(id_upto[higher[0]] - id[higher[0]]) if higher.size else None)
        if of_id.size:
            self._ood_upto = int(ood_upto[of_id[-1]])


def _differences(upto: Counts) -> Counts:
    out = upto.copy()
    out[1:] -= upto[:-1]
    return out


def _area(counts: Counts, found: Counts, false: Counts, false_before: Counts | None) -> float:
    """Sum of precision over the positives of these levels.

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
    return float(precision.sum())
