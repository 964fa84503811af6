"""One method's scores on ID images beside its scores on one OOD set, as ranks: all that the statistics need of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.detection import Counts, Floats, Sorted, sort_scores


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's scores, higher for ID: [images] of the ID set and of each OOD set, in the order of the image lists.

    `groups` names the group ("near", "far") of the OOD sets that have one.
    """

    id: NDArray[Any]
    ood: Mapping[str, NDArray[Any]]
    groups: Mapping[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, list[str]]:
        """Group -> its OOD sets; group "" is all of them."""
        named = {group: [name for name in self.ood if self.groups.get(name) == group] for group in self._named()}
        return {"": list(self.ood), **named}

    def _named(self) -> list[str]:
        return list(dict.fromkeys(group for name in self.ood if (group := self.groups.get(name, ""))))


@dataclass(frozen=True, eq=False)
class Side:
    """Scores of one image set in ascending order: sorted position -> image, and the levels of tied ones."""

    sorted: Sorted
    order: Counts

    @property
    def n(self) -> int:
        return self.order.size

    def cells(self, times: NDArray[np.uint8]) -> NDArray[Any]:
        """Times drawn per image [replicates, n] as those per level [replicates, levels], ascending."""
        ascending = np.take(times, self.order, axis=1)
        if self.sorted.levels.size < self.n:
            return np.add.reduceat(ascending, self.sorted.starts[:-1], axis=1, dtype=np.uint32)
        return ascending

    def by_image(self, of_levels: Floats) -> Floats:
        """One number per level as one per image, in the order of the image list."""
        out = np.empty(self.n)
        out[self.order] = np.repeat(of_levels, np.diff(self.sorted.starts))
        return out


@dataclass(frozen=True, eq=False)
class Pair:
    """ID and OOD sides, and for each level of one side how many levels of the other lie below it, or not above it."""

    id: Side
    ood: Side
    id_over: Counts  # [ID levels]: OOD levels below
    id_upto: Counts  # OOD levels below or equal
    ood_over: Counts  # [OOD levels]: ID levels below
    ood_upto: Counts


def side(scores: NDArray[Any], what: str) -> Side:
    """Sort one image set's scores. UserError when they are none, not numbers of one dimension, or NaN."""
    found = sort_scores(scores, what)
    return Side(found, np.argsort(found.given))


def pair(id: Side, ood: Side) -> Pair:
    """Place the levels of each side among those of the other."""
    a, b = id.sorted.levels, ood.sorted.levels
    id_over, ood_over = np.searchsorted(b, a), np.searchsorted(a, b)
    shared = np.take(b, id_over, mode="clip") == a
    if not shared.any():  # the same objects: no level is tied, and sums up to one are sums below it
        return Pair(id, ood, id_over, id_over, ood_over, ood_over)
    return Pair(id, ood, id_over, id_over + shared, ood_over, ood_over + (np.take(a, ood_over, mode="clip") == b))


def pairs(scores: Scores, what: str = "scores") -> dict[str, Pair]:
    """OOD set -> its pair; the ID side is sorted once. UserError without OOD sets or for scores that are refused."""
    if not scores.ood:
        raise UserError(f"{what}: no OOD set to compare with")
    id = side(scores.id, f"{what} on ID")
    return {name: pair(id, side(values, f"{what} on {name}")) for name, values in scores.ood.items()}
