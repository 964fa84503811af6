"""Decoding: threads read and transform images in batches ahead of the model."""

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

DEEP_MODES = frozenset(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"))  # Pillow's modes of more than 8 bits
_FIRST = 4  # images that are decoded before a run, for a remark
_LONGEST_REASON = 160  # characters of an error message


@dataclass(frozen=True)
class DecodeConfig:
    """Number of decoding threads, and "stop" or "skip" for images that cannot be read."""

    workers: int
    on_error: str


@dataclass(frozen=True)
class Decoded:
    """One batch: positions in the set, pixels [b 3 h w] in 0..255, and (name, reason) of skipped images."""

    positions: list[int]
    images: Tensor | None
    skipped: list[tuple[str, str]]


def batches(
    images: ImageSet,
    config: DecodeConfig,
    batch_size: int,
    bounds: tuple[int, int],
    transform: Callable[[Any], Tensor],
) -> Generator[Decoded, None, None]:
    """Yield the images from bounds[0] to before bounds[1] in batches.

    Threads decode a bounded number of images ahead of the model (Pillow releases the GIL). Raises UserError if an image
    changed after it was listed, if one cannot be read (with "stop"), or if the system refuses a file, even with "skip":
    the skipped images must be reproducible.
    """
    constant: list[str] = []

    def decode(index: int) -> Tensor | Exception:
        try:
            image = images.read(index)
            if becomes_constant(image):
                constant.append(images.names[index])
            return transform(image)
        except Exception as error:
            return error

    start, stop = bounds
    ahead = batch_size + 4 * config.workers
    pool = ThreadPoolExecutor(config.workers, thread_name_prefix="decode")
    waiting: collections.deque[Future[Tensor | Exception]] = collections.deque()
    submitted = start
    try:
        images.check_tree()
        with pillow_in_threads():
            for begin in range(start, stop, batch_size):
                positions, tensors, skipped = [], [], []
                for index in range(begin, min(begin + batch_size, stop)):
                    while submitted < stop and len(waiting) < ahead:
                        waiting.append(pool.submit(decode, submitted))
                        submitted += 1
                    result = waiting.popleft().result()
                    if not isinstance(result, Exception):
                        positions.append(index)
                        tensors.append(result)
                    elif isinstance(result, UserError):  # a changed file or a damaged archive
                        raise result
                    elif config.on_error == "stop" or not is_broken(result):
                        raise read_error(images, images.names[index], result) from result
                    else:
                        skipped.append((images.names[index], describe_error(result)))
                if begin + batch_size >= stop:
                    images.check_tree()
                yield Decoded(positions, _stack(tensors) if tensors else None, skipped)
    finally:
        pool.shutdown(cancel_futures=True)
    if constant:
        log.warning("dataset '%s': %s", images.dataset.name, constant_remark(sorted(constant)).message)


def constant_remark(names: Sequence[str], how_many: str = "") -> Remark:
    """Return the remark on images that conversion to RGB makes constant."""
    message = (
        f"{how_many or f'{len(names):,}'} images of more than 8 bits become white or black as RGB, or nearly so "
        f"({names[0]} first); scale them to 8 bits"
    )
    return Remark("flat", message, len(names), tuple(names[:10]))


def remark_on_first(images: ImageSet) -> tuple[Remark, ...]:
    """Return the remark on the first few images that become constant; images that cannot be read are ignored."""
    constant = []
    with pillow_in_threads():
        for index in range(min(_FIRST, len(images))):
            try:
                if becomes_constant(images.read(index)):
                    constant.append(images.names[index])
            except Exception:  # reported when the image is needed
                continue
    if not constant:
        return ()
    return (constant_remark(constant, f"{len(constant)} of the first {min(_FIRST, len(images))}"),)


def becomes_constant(image: Image) -> bool:
    """Return whether an image of more than 8 bits loses its content as RGB.

    This is so if most values are outside 0..255, or differ by at most two after conversion. open_clip and torchvision
    convert in the same way: 16-bit images become white, floats between 0 and 1 become black.
    """
    if image.mode not in DEEP_MODES:
        return False
    values = np.nan_to_num(np.asarray(image, np.float64))
    span = np.ptp(values)
    converted_span = np.ptp(np.asarray(image.convert("RGB").convert("L"), np.float64))
    outside = float(((values < 0) | (values > 255)).mean())
    return bool(span > 0 and (converted_span <= 2 or outside > 0.5))


def _stack(tensors: list[Tensor]) -> Tensor:
    """Return one tensor [b 3 h w] in channels-last memory: Pillow's layout, and the fastest for image towers."""
    import torch

    # Stacking them as [3 h w] would transpose each in this single thread.
    return torch.stack([tensor.permute(1, 2, 0) for tensor in tensors]).permute(0, 3, 1, 2)


@contextmanager
def pillow_in_threads() -> Iterator[None]:
    """Load Pillow's plugins, and ignore its warnings (about EXIF data and large images)."""
    from PIL import Image

    Image.init()  # a thread that opens an image while another loads plugins may not find its format
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def is_broken(error: Exception) -> bool:
    """Return whether an error is due to the image, not to the system (permissions, memory, a network drive)."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def read_error(images: ImageSet, name: str, error: Exception) -> UserError:
    """Return the UserError for a decoding error: the image is broken, or the system refused to read it."""
    return (unreadable_error if is_broken(error) else _refused_error)(images, name, describe_error(error))


def unreadable_error(images: ImageSet, name: str, reason: str) -> UserError:
    """Return the error for a broken image."""
    return UserError(
        f"dataset '{images.dataset.name}': image {images.folder / name} cannot be read ({reason}); "
        "repair or remove it, or skip broken images with --on-error skip"
    )


def _refused_error(images: ImageSet, name: str, reason: str) -> UserError:
    """Return the error for an image that the system refuses to read."""
    return UserError(
        f"dataset '{images.dataset.name}': the system refused to read image {images.folder / name} ({reason}); "
        "resolve this and run again (--on-error skip is for broken images)"
    )


def describe_error(error: Exception) -> str:
    """Return the type and the first line of an error that a decoder raised."""
    if type(error).__name__ == "UnidentifiedImageError":  # its message is the repr of the open file
        return "not an image format that Pillow supports"
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text.splitlines()[0][:_LONGEST_REASON]}" if text else type(error).__name__
