"""The threshold of a detector: the ID images that set it, and the true positive rate that it guarantees on new ones.

Images that a method is fitted on score higher than new ones (the nearest neighbour of a stored image is that image), so
a threshold set on them rejects most new ID images. A method that calibrates is therefore fitted on one part of the
images, and the held-out part sets the threshold: split conformal prediction (Papadopoulos et al., ECML 2002; Vovk et
al., 2005). If new images are drawn from the same distribution as the held-out ones, the fraction of them that is
accepted is at least `tpr` on average, whatever the method. Cross-validation with pooled scores gives no such guarantee
for the method fitted on all images: Mahalanobis distances, for example, grow with the number of images as long as there
are fewer images than dimensions.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.decode import pillow_in_threads
from oodbench.data.imageset import ImageSet, SubsetOf
from oodbench.detector.images import in_memory
from oodbench.errors import UserError
from oodbench.metrics import detection as metrics

log = logging.getLogger(__name__)

NOISE = 1e-6  # relative difference of the scores of equal images, as float32 matrix products depend on the batch
SURPLUS = 0.01  # additional fraction of the images that a tie at the threshold may accept without a warning
HELD_OUT = 0.25  # fraction of the images that is held out to set the threshold, unless `tpr` needs more


@dataclass(frozen=True)
class Split:
    """Images that the method is fitted on, and held-out images that set the threshold."""

    fitted: ImageSet
    held_out: ImageSet


def min_images(tpr: float) -> int | None:
    """Return how many ID images are needed to guarantee that `tpr` of new ones are accepted: 19 for 0.95; None for 1.

    n images split the scores into n + 1 ranges that a new score falls into with equal probability, so that their lowest
    score accepts n / (n + 1).
    """
    if tpr >= 1:
        return None
    n = max(math.floor(tpr / (1 - tpr)) - 1, 1)
    while n / (n + 1) < tpr:
        n += 1
    return n


def threshold(scores: npt.NDArray[np.float64], tpr: float) -> float:
    """Return the highest score of ID images [n] that accepts at least `tpr` of new ones on average.

    This is the r-th highest with the smallest r such that r / (n + 1) >= tpr; images with exactly this score are
    accepted. A warning is logged if there are too few images.
    """
    known = metrics.score_set(scores, "the images that set the threshold").values
    n, rank = len(known), metrics.min_accepted(len(known) + 1, tpr)
    if rank > n:
        needed = min_images(tpr)
        reason = f"which takes at least {needed} images" if needed else "which no number of images can guarantee"
        log.warning(
            "the threshold is the lowest score of %d ID images, which accepts %.1f %% of new ID images on average "
            "instead of %.6g %%, %s",
            n,
            100 * n / (n + 1),
            100 * tpr,
            reason,
        )
    limit = float(known[-min(rank, n)])
    kept = n - int(np.searchsorted(known, limit))
    if n > 1 and known[-1] - known[0] <= NOISE * np.abs(known).max():
        log.warning("all %d ID images score %.6g; every image with this score is accepted", n, limit)
    elif kept - rank > max(SURPLUS * n, 1):
        log.warning(
            "%d of %d ID images score at least %.6g, the threshold, because many have exactly that score: %.1f %% are "
            "accepted instead of %.6g %%",
            kept,
            n,
            limit,
            100 * kept / n,
            100 * tpr,
        )
    return limit


def split(images: ImageSet, tpr: float, seed: int, labels: Sequence[Any] | None = None) -> Split:
    """Hold out a quarter of the images at random, or as many as `tpr` needs but at most half, to set the threshold.

    Files of equal content count as one image, so that the method is not fitted on a copy of a held-out image. With
    labels [n] the held-out part is stratified. Raise UserError if there is only one image.
    """
    copies: dict[str, list[int]] = {}
    for position, content in enumerate(_contents(images, pixels=in_memory(images))):
        copies.setdefault(content, []).append(position)
    distinct = list(copies.values())
    if len(distinct) < 2:
        raise UserError(
            f"a method that calibrates needs some ID images for fitting and others for its threshold, but there is "
            f"only one ({images.names[0]}); give more, or the threshold itself"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(distinct)).tolist()
    if labels is not None:
        ranks = {label: rank for rank, label in enumerate(dict.fromkeys(labels))}
        order.sort(key=lambda number: ranks[labels[distinct[number][0]]])
        counts = Counter(labels[positions[0]] for positions in distinct)
        order = [number for number in order if counts[labels[distinct[number][0]]] > 1] or order  # a class keeps one
    n = min(max(math.ceil(len(distinct) * HELD_OUT), min_images(tpr) or 0), max(len(order) // 2, 1))
    steps = (np.arange(n) + generator.random()) * len(order) / n
    held_out = {order[int(step)] for step in steps}
    fitted = [i for number, positions in enumerate(distinct) if number not in held_out for i in positions]
    log.info("of %d images %d are fitted on, and %d are held out to set the threshold", len(images), len(fitted), n)
    return Split(_part(images, sorted(fitted)), _part(images, sorted(distinct[number][0] for number in held_out)))


def check_disjoint(fitted: ImageSet, validation: ImageSet, label: str) -> None:
    """Raise UserError if some validation images are, by content, among those that the method is fitted on."""
    pixels = _kind(fitted) != _kind(validation)
    contents = set(_contents(fitted, pixels))
    both = [
        name
        for name, content in zip(validation.names, _contents(validation, pixels), strict=True)
        if content in contents
    ]
    if both:
        raise UserError(
            f"{label} is fitted on {len(both)} of the {len(validation)} images for the threshold, {both[0]} first: it "
            "would reject new ID images; give others, or none, and some images are held out"
        )


def label_sequence(y: Any, images: ImageSet) -> list[Any] | None:
    """Return the labels of the images as a list, or None; raise UserError unless there is one label per image."""
    if y is None:
        return None
    if isinstance(y, str) or not isinstance(y, Iterable):
        raise UserError(f"y takes one label per image, not {y!r}")
    labels = [label.item() if isinstance(label, np.generic) else label for label in y]
    if len(labels) != len(images):
        raise UserError(f"y has {len(labels)} labels for {len(images)} images")
    if not all(isinstance(label, str | int | float) for label in labels):
        raise UserError("y takes one class name or number per image")
    return labels


def _part(images: ImageSet, positions: list[int]) -> ImageSet:
    """Return some of the images, whose embeddings are taken from those of all images."""
    here, there = np.arange(len(positions)), np.array(positions, np.int64)
    return replace(images.select(positions), total=len(positions), origins=(SubsetOf(images, here, there),))


def _kind(images: ImageSet) -> str:
    """Return what the digests of contents are computed from: arrays and rendered images differ from files."""
    return "memory" if in_memory(images) else images.dataset.loader if images.content else "files"


def _contents(images: ImageSet, pixels: bool) -> list[str]:
    """Return a digest of every image's content, or the name of an image that cannot be read.

    pixels  whether to digest the decoded image in RGB, which takes time, instead of the stored bytes
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

    with pillow_in_threads(), ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(content, range(len(images))))
