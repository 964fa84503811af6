"""What is wrong between an ID set and an OOD set: shared images, and shortcuts such as resolution and colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oodbench.data.checks import duplicates
from oodbench.data.checks.findings import Finding, some
from oodbench.data.checks.look import Look
from oodbench.data.imageset import Listing

_TOLD_APART = 0.9  # AUROC by size alone from which results may be about size
_MORE_GREY = 0.2  # difference of the shares of images without colour
_FEWEST = 10  # images of each set below which shares mean nothing

_FEATURES: dict[str, Callable[[Look], float]] = {
    "shorter side": lambda one: min(one.width, one.height),
    "number of pixels": lambda one: one.width * one.height,
    "aspect ratio": lambda one: max(one.width, one.height) / min(one.width, one.height),
}


@dataclass(frozen=True)
class Side:
    """A set and the looks at its images."""

    listing: Listing
    looks: Sequence[Look]

    @property
    def name(self) -> str:
        return self.listing.dataset.name


def shared(id_set: Side, ood: Side, radius: int) -> Iterator[Finding]:
    """Identical images, and those whose perceptual hashes differ in at most `radius` bits (0: equal hashes)."""
    pair = (id_set.name, ood.name)

    def told(p: duplicates.Pair) -> str:
        return f"{id_set.listing.names[p.first]} = {ood.listing.names[p.second]}"

    same = duplicates.identical(id_set.looks, ood.looks)
    if same:
        message = f"{len(same):,} images of the OOD set have the pixels of an ID image"
        yield Finding("error", "identical", pair, message, len(same), some([told(p) for p in same]))
    near = duplicates.similar(id_set.looks, ood.looks, radius)
    if near.images:
        message = f"{near.images:,} images of the OOD set look like an ID image (hashes within {radius} of 64 bits)"
        examples = [f"{told(p)} ({p.distance} bits)" for p in near.pairs]
        yield Finding("warning", "near-duplicates", pair, message, near.images, some(examples))


def shortcuts(id_set: Side, ood: Side) -> Iterator[Finding]:
    """Whether size or colour alone tells the sets apart, so that scores may measure that instead of the content."""
    pair = (id_set.name, ood.name)
    ours, theirs = ([one for one in side.looks if not one.problem] for side in (id_set, ood))
    if min(len(ours), len(theirs)) < _FEWEST:
        return
    best = (0.0, "", 0.0, 0.0)
    for what, feature in _FEATURES.items():
        a, b = (np.array([feature(one) for one in looks]) for looks in (ours, theirs))
        area = auroc(a, b)
        best = max(best, (max(area, 1 - area), what, float(np.median(a)), float(np.median(b))))
    area, what, middle, other = best
    if area >= _TOLD_APART:
        message = (
            f"the {what} of the file alone tells ID from OOD with AUROC {area:.1%} (medians {middle:,.5g} and "
            f"{other:,.5g}): a method that sees resolution looks better than it is"
        )
        yield Finding("warning", "resolution", pair, message)
    grey, grey_other = (sum(one.grey for one in looks) / len(looks) for looks in (ours, theirs))
    if abs(grey - grey_other) >= _MORE_GREY:
        message = f"{grey:.1%} of ID and {grey_other:.1%} of OOD images have no colour: colour alone tells some apart"
        yield Finding("warning", "grey", pair, message)


def auroc(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """The probability that a value of the first is greater than one of the second, ties counting half."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    return float(below.mean() / (2 * len(second)))
