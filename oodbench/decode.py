"""Decoding: a part of a list as batches of pixels, by threads, ahead of the model that reads them."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError
from oodbench.images import Listing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reading:
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
    listing: Listing,
    reading: Reading,
    batch: int,
    bounds: tuple[int, int],
    transform: Callable[[Any], Tensor],
) -> Generator[Decoded, None, None]:
    """The images of a part of the list, decoded.

    Threads decode ahead of the model (Pillow works outside the interpreter lock), a bounded number of images. UserError
    when an image is not the one that was listed, and when the system does not hand over a file, even with "skip": which
    images are left out must not depend on the day.
    """

    def read(index: int) -> Tensor | Exception:
        try:
            return transform(listing.read(index))
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


def _stacked(images: list[Tensor]) -> Tensor:
    """One tensor [b 3 h w] in channels-last memory, which is how Pillow gives images and how towers read them."""
    import torch

    # Stacking them as [3 h w] would transpose each of them in this one thread, at 1.5 ms an image of 224 x 224.
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


def unreadable(listing: Listing, name: str, reason: str) -> UserError:
    """The error that names a broken image."""
    return UserError(
        f"dataset '{listing.dataset.name}': image {listing.folder / name} cannot be read ({reason}); "
        "mend or remove it, or go on without broken images with --on-error skip"
    )


def _withheld(listing: Listing, name: str, reason: str) -> UserError:
    return UserError(
        f"dataset '{listing.dataset.name}': image {listing.folder / name} is withheld by the system ({reason}); "
        "see to that and run again (--on-error skip is for images that are broken)"
    )


def reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its own text shows the open file
        return "no image format that Pillow knows"
    lines = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {lines.splitlines()[0][:160]}" if lines else type(error).__name__
