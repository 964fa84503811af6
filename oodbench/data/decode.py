"""Decoding: a part of a list as batches of pixels, by threads, ahead of the model that reads them."""

from __future__ import annotations

import collections
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.data.imageset import ImageSet
from oodbench.data.loaders.layout import Remark
from oodbench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

log = logging.getLogger(__name__)

DEEP = frozenset(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"))  # modes of more than 8 bits
_GLANCE = 4  # images


@dataclass(frozen=True)
class DecodeConfig:
    """How images are read."""

    workers: int
    on_error: str  # "stop" or "skip"


@dataclass(frozen=True)
class Decoded:
    """One batch: positions in the list and pixels [b 3 h w] in 0..255; (name, reason) of images that cannot be read."""

    positions: list[int]
    images: Tensor | None
    skipped: list[tuple[str, str]]


def batches(
    listing: ImageSet,
    reading: DecodeConfig,
    batch: int,
    bounds: tuple[int, int],
    transform: Callable[[Any], Tensor],
) -> Generator[Decoded, None, None]:
    """The images of a part of the list, decoded.

    Threads decode ahead of the model (Pillow works outside the interpreter lock), a bounded number of images. UserError
    when an image is not the one that was listed, and when the system does not hand over a file, even with "skip": which
    images are left out must not depend on the day.
    """

    flat: list[str] = []

    def read(index: int) -> Tensor | Exception:
        try:
            image = listing.read(index)
            if flattened(image):
                flat.append(listing.names[index])
            return transform(image)
        except Exception as error:
            return error

    start, stop = bounds
    ahead = batch + 4 * reading.workers
    pool = ThreadPoolExecutor(reading.workers, thread_name_prefix="decode")
    waiting: collections.deque[Future[Tensor | Exception]] = collections.deque()
    submitted = start
    try:
        listing.check_tree()
        with decoding():
            for begin in range(start, stop, batch):
                positions, images, skipped = [], [], []
                for index in range(begin, min(begin + batch, stop)):
                    while submitted < stop and len(waiting) < ahead:
                        waiting.append(pool.submit(read, submitted))
                        submitted += 1
                    image = waiting.popleft().result()
                    if not isinstance(image, Exception):
                        positions.append(index)
                        images.append(image)
                    elif isinstance(image, UserError):  # an archive at fault, not one image in it
                        raise image
                    elif not broken(image):
                        raise _withheld(listing, listing.names[index], reason(image)) from image
                    elif reading.on_error == "stop":
                        raise unreadable(listing, listing.names[index], reason(image)) from image
                    else:
                        skipped.append((listing.names[index], reason(image)))
                if begin + batch >= stop:
                    listing.check_tree()
                yield Decoded(positions, _stacked(images) if images else None, skipped)
    finally:
        pool.shutdown(cancel_futures=True)
    if flat:
        log.warning("dataset '%s': %s", listing.dataset.name, flat_remark(sorted(flat)).message)


def flat_remark(names: Sequence[str], how_many: str = "") -> Remark:
    """The remark on images that become constant."""
    message = (
        f"{how_many or f'{len(names):,}'} images of more than 8 bits become white or black as RGB, or nearly so "
        f"({names[0]} first); scale them to 8 bits"
    )
    return Remark("flat", message, len(names), tuple(names[:10]))


def glance(listing: ImageSet) -> tuple[Remark, ...]:
    """The remark on the first few images of a list that become constant; images that cannot be read are told later."""
    flat = []
    with decoding():
        for index in range(min(_GLANCE, len(listing))):
            try:
                found = flattened(listing.read(index))
            except Exception:
                continue
            flat += [listing.names[index]] if found else []
    return (flat_remark(flat, f"{len(flat)} of the first {min(_GLANCE, len(listing))}"),) if flat else ()


def flattened(image: Image) -> bool:
    """Whether RGB keeps little of an image of more than 8 bits: most values lie outside 0..255, or in two or three.

    open_clip and torchvision convert in the same way: 16-bit images become white, floats between 0 and 1 black.
    """
    if image.mode not in DEEP:
        return False
    values = np.nan_to_num(np.asarray(image, np.float64))
    span = np.ptp(values)
    kept = np.ptp(np.asarray(image.convert("RGB").convert("L"), np.float64))
    outside = float(((values < 0) | (values > 255)).mean())
    return bool(span > 0 and (kept <= 2 or outside > 0.5))


def _stacked(images: list[Tensor]) -> Tensor:
    """One tensor [b 3 h w] in channels-last memory, which is how Pillow gives images and how towers read them."""
    import torch

    # Stacking them as [3 h w] would transpose each of them in this one thread.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


@contextmanager
def decoding() -> Iterator[None]:
    """Pillow made fit for threads: its plugins are loaded, its warnings (odd EXIF, large images) are off."""
    from PIL import Image

    Image.init()  # a thread that opens an image while another loads plugins may find its format unknown
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def broken(error: Exception) -> bool:
    """Whether the image is at fault, and not the system: no permission, no memory, a network drive that went away."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def unreadable(listing: ImageSet, name: str, reason: str) -> UserError:
    """The error that names a broken image."""
    return UserError(
        f"dataset '{listing.dataset.name}': image {listing.folder / name} cannot be read ({reason}); "
        "mend or remove it, or go on without broken images with --on-error skip"
    )


def _withheld(listing: ImageSet, name: str, reason: str) -> UserError:
    return UserError(
        f"dataset '{listing.dataset.name}': image {listing.folder / name} is withheld by the system ({reason}); "
        "see to that and run again (--on-error skip is for images that are broken)"
    )


def reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its own text shows the open file
        return "no image format that Pillow knows"
    lines = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {lines.splitlines()[0][:160]}" if lines else type(error).__name__
