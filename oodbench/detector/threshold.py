"""The threshold of a detector: which ID images set it, and what it promises of new ones.

Images that a method has learnt from score higher than new ones do (the nearest neighbour of a stored image is that
image), so a threshold set on them rejects most new ID images. A method that calibrates therefore learns from one part
of the images, and the other part sets the threshold: split conformal prediction (Papadopoulos et al., ECML 2002; Vovk
et al., 2005). If new images come from where the held-out ones do, the share of them that is kept is at least `tpr` on
average, whatever the method. Folds whose scores are pooled promise no such thing of the method fitted on all images:
Mahalanobis distances, for one, grow with the number of images as long as it is below the number of dimensions.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.decode import decoding
from oodbench.data.imageset import ImageSet, SubsetOf
from oodbench.detector.images import in_memory
from oodbench.errors import UserError
from oodbench.metrics import detection as metrics

log = logging.getLogger(__name__)

NOISE = 1e-6  # relative: equal images differ by as much, for matrix products in float32 depend on the batch
SURPLUS = 0.01  # share of the images that a tie at the threshold may keep besides without a warning
HELD_OUT = 0.25  # share of the images that sets the threshold, unless `tpr` takes more


@dataclass(frozen=True)
class Parts:
    """Images that the method learns from, and those that set the threshold."""

    learnt: ImageSet
    held_out: ImageSet


def least(tpr: float) -> int | None:
    """How many ID images it takes at least to promise that `tpr` of new ones are kept: 19 for 0.95; None for 1.

    n images split the scores into n + 1 ranges that a new one falls into with equal probability, so that the lowest of
    their scores keeps n / (n + 1).
    """
    if tpr >= 1:
        return None
    n = max(math.floor(tpr / (1 - tpr)) - 1, 1)
    while n / (n + 1) < tpr:
        n += 1
    return n


def threshold(scores: npt.NDArray[np.float64], tpr: float) -> float:
    """The highest score of ID images [n] that keeps at least `tpr` of new ones on average; too few are a warning.

    This is the r-th highest with the smallest r such that r / (n + 1) >= tpr; images that score exactly it are kept.
    """
    known = metrics.score_set(scores, "the images that set the threshold").values
    n, rank = len(known), metrics.min_accepted(len(known) + 1, tpr)
    if rank > n:
        needed = least(tpr)
        promised = f"which takes at least {needed} images" if needed else "which no number of images can promise"
        log.warning(
            "the threshold is the lowest score of %d ID images, which keeps %.1f %% of new ID images on average, "
            "not the %.6g %% asked for, %s",
            n,
            100 * n / (n + 1),
            100 * tpr,
            promised,
        )
    limit = float(known[-min(rank, n)])
    kept = n - int(np.searchsorted(known, limit))
    if n > 1 and known[-1] - known[0] <= NOISE * np.abs(known).max():
        log.warning("all %d ID images score %.6g, which tells nothing; every image that scores so is kept", n, limit)
    elif kept - rank > max(SURPLUS * n, 1):
        log.warning(
            "%d of %d ID images score at least %.6g, the threshold, for many score exactly that: %.1f %% are kept, "
            "not the %.6g %% asked for",
            kept,
            n,
            limit,
            100 * kept / n,
            100 * tpr,
        )
    return limit


def parts(images: ImageSet, tpr: float, seed: int, labels: Sequence[Any] | None = None) -> Parts:
    """Draw a quarter of the images, or as many as `tpr` takes but at most half, to set the threshold.

    Files of equal content count as one image: no copy of a held-out image is learnt from. With labels [n] the held-out
    part has every label's share. UserError when there is only one image.
    """
    copies: dict[str, list[int]] = {}
    for position, content in enumerate(_contents(images, pixels=in_memory(images))):
        copies.setdefault(content, []).append(position)
    distinct = list(copies.values())
    if len(distinct) < 2:
        raise UserError(
            f"a method that calibrates learns from some ID images and sets its threshold on others, but there is only "
            f"one ({images.names[0]}); give more, or the threshold itself"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(distinct)).tolist()
    if labels is not None:
        ranks = {label: rank for rank, label in enumerate(dict.fromkeys(labels))}
        order.sort(key=lambda one: ranks[labels[distinct[one][0]]])
    n = min(max(math.ceil(len(distinct) * HELD_OUT), least(tpr) or 0), len(distinct) // 2)
    steps = (np.arange(n) + generator.random()) * len(distinct) / n
    chosen = {order[int(step)] for step in steps}
    learnt = [position for one, those in enumerate(distinct) if one not in chosen for position in those]
    log.info("of %d images %d are learnt from, and %d are held out to set the threshold", len(images), len(learnt), n)
    return Parts(_part(images, sorted(learnt)), _part(images, sorted(distinct[one][0] for one in chosen)))


def check_apart(learnt: ImageSet, validation: ImageSet, label: str) -> None:
    """UserError when images for validation are, by content, among those that the method learns from."""
    pixels = _kind(learnt) != _kind(validation)
    known = set(_contents(learnt, pixels))
    contents = _contents(validation, pixels)
    both = [name for name, content in zip(validation.names, contents, strict=True) if content in known]
    if both:
        raise UserError(
            f"{label} learns from {len(both)} of the {len(validation)} images that are to set the threshold, {both[0]} "
            "first: it would reject new ID images; give others, or none, and some are held out"
        )


def label_sequence(y: Any, images: ImageSet) -> list[Any] | None:
    """Labels of the images as a list, or None. UserError when there are not as many of them."""
    if y is None:
        return None
    if isinstance(y, str) or not isinstance(y, Iterable):
        raise UserError(f"y takes one label per image, not {y!r}")
    labels = [one.item() if isinstance(one, np.generic) else one for one in y]
    if len(labels) != len(images):
        raise UserError(f"y has {len(labels)} labels for {len(images)} images")
    if not all(isinstance(one, str | int | float) for one in labels):
        raise UserError("y takes one class name or number per image")
    return labels


def _part(images: ImageSet, positions: list[int]) -> ImageSet:
    """Some of the images, whose embeddings are taken from those of all."""
    here, there = np.arange(len(positions)), np.array(positions, np.int64)
    return replace(images.select(positions), total=len(positions), origins=(SubsetOf(images, here, there),))


def _kind(images: ImageSet) -> str:
    """What the digests of contents are of: arrays and drawn images have other ones than files."""
    return "memory" if in_memory(images) else images.dataset.loader if images.content else "files"


def _contents(images: ImageSet, pixels: bool) -> list[str]:
    """What every image holds, as a digest; its name where it cannot be read, which its decoding will tell.

    pixels  of the decoded image in RGB, which takes decoding all, rather than of what is stored
    """
    if images.content and not pixels:
        return list(images.fingerprints)

    def content(index: int) -> str:
        try:
            if not pixels:
                return images.reader.content(images.names[index])
            image = images.read(index).convert("RGB")
            return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()
        except UserError:
            raise
        except Exception:  # Pillow raises many kinds
            return f"unreadable: {images.names[index]}"

    with decoding(), ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(content, range(len(images))))
