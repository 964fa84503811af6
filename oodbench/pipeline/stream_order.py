"""The protocol of streams: the order and the mixture in which a method that learns from the test images sees them.

For each pair of the ID set and an OOD set, the images of the pair are those of the ID set and then those of the OOD
set, in list order; images that could not be read are left out. A ratio A:B keeps the largest numbers of ID and OOD
images whose ratio is A:B: the first permutation of `numpy.random.RandomState(seed)` draws the ID images and the second
the OOD images, and the drawn images stay in list order. Then `numpy.random.RandomState(seed).permutation(n)` is the
order "shuffled" of the n images that are left. "id-first" and "ood-first" move the images of one kind to the front and
keep the rest of that order. "blocks=N" divides the ID images and the OOD images in that order into N nearly equal
blocks each, the larger ones first, and alternates them: ID, OOD, ID, and so on.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError, did_you_mean

ORDERS = ("shuffled", "id-first", "ood-first", "blocks=N")
MAX_SEED = 2**32 - 1  # of numpy.random.RandomState
ALL = "all"

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamProtocol:
    """The stream of a pair: `order`, `seed`, images per `batch`, and ID:OOD `ratio` ("all", or such as 1:2)."""

    order: str = "shuffled"
    seed: int = 0
    batch: int = 256
    ratio: str = ALL

    @property
    def name(self) -> str:
        """Return the settings that distinguish the streams of a run."""
        return f"{self.order}, seed {self.seed}"

    def plain(self) -> dict[str, Any]:
        """Return the protocol in the form of keys and results; `reset` says that the method is reset for each pair."""
        return {**asdict(self), "reset": "pair"}

    def kept(self, n_id: int, n_ood: int) -> tuple[Positions, Positions]:
        """Return the positions of the ID and of the OOD images that the ratio keeps, ascending."""
        random, sizes = np.random.RandomState(self.seed), kept_sizes(n_id, n_ood, self.ratio)
        drawn = [random.permutation(n)[:size] for n, size in zip((n_id, n_ood), sizes, strict=True)]
        return np.sort(drawn[0]), np.sort(drawn[1])

    def positions(self, n_id: int, n_ood: int) -> Positions:
        """Return the stream [n]: indices into the ID images (0 to n_id - 1) and then the OOD images."""
        kept_id, kept_ood = self.kept(n_id, n_ood)
        pair = np.concatenate([kept_id, n_id + kept_ood])
        shuffled = pair[np.random.RandomState(self.seed).permutation(len(pair))]
        of_id, of_ood = shuffled[shuffled < n_id], shuffled[shuffled >= n_id]
        if self.order == "shuffled":
            return shuffled
        if self.order == "ood-first":
            return np.concatenate([of_ood, of_id])
        blocks = 1 if self.order == "id-first" else int(self.order.partition("=")[2])
        # With more blocks than images, some would be empty.
        parts = (np.array_split(side, min(blocks, max(len(side), 1))) for side in (of_id, of_ood))
        alternating = itertools.zip_longest(*parts, fillvalue=pair[:0])
        return np.concatenate([block for blocks_of_both in alternating for block in blocks_of_both])


def protocols(orders: Sequence[str], seeds: Sequence[int], batch: int, ratio: str) -> tuple[StreamProtocol, ...]:
    """Return the protocol of every order and seed, each once."""
    pairs = itertools.product(dict.fromkeys(map(canonical_order, orders)), dict.fromkeys(seeds))
    return tuple(StreamProtocol(order, seed, batch, canonical_ratio(ratio)) for order, seed in pairs)


def canonical_order(text: str) -> str:
    """Return an order in its canonical spelling. Raise UserError if there is no such order."""
    name, equals, number = text.strip().partition("=")
    if name.strip() == "blocks" and equals and re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", number):
        return f"blocks={int(number)}"
    if text.strip() in ORDERS[:3]:
        return text.strip()
    if name.strip() == "blocks":
        raise UserError(f"--stream-order {text}: write blocks=N with N from 1 to 999999999, such as blocks=10")
    raise UserError(f"--stream-order {text}{did_you_mean(text, ORDERS)}")


def canonical_ratio(text: str) -> str:
    """Return "all", or ID:OOD in lowest terms. Raise UserError if it is neither."""
    if text.strip() == ALL:
        return ALL
    found = re.fullmatch(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", text)
    numbers = [int(number) for number in found.groups()] if found else [0]
    if not all(numbers):
        raise UserError(f"--stream-ratio {text}: write all, or ID:OOD as two numbers above 0, such as 1:1 or 10:1")
    divisor = math.gcd(*numbers)
    return ":".join(str(number // divisor) for number in numbers)


def kept_sizes(n_id: int, n_ood: int, ratio: str) -> tuple[int, int]:
    """Return how many ID and OOD images a ratio keeps; (0, 0) if there are too few images for it."""
    if ratio == ALL:
        return n_id, n_ood
    a, b = map(int, ratio.split(":"))
    times = min(n_id // a, n_ood // b)
    return a * times, b * times
