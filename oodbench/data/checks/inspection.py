"""Inspect every image of a set in threads, and store the results in parts.

The hash of an image's name determines where a part ends, about every 64 images. The bounds of a part do not move when
images are added or removed elsewhere, so that after a change only the changed parts are inspected again.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data import decode
from oodbench.data.decode import DEEP_MODES, becomes_constant
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = frozenset(("L", "1", "LA", "La")) | DEEP_MODES
_ORIENTATION = 0x0112  # EXIF's tag
_SIDE = 32  # pixels of the thumbnail that is hashed
_COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
_FLAT = 2.0  # standard deviation in grey levels below which an image has no structure to hash


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image.

    problem   why it cannot be decoded, "" if it can
    grey      whether it has no colour, in any mode
    pixels    digest of size and RGB pixels, independent of metadata and lossless format
    hash      64-bit perceptual hash in hexadecimal, "" for an image without structure
    flat      whether it has more than 8 bits and conversion to RGB makes it nearly constant
    turned    whether its EXIF orientation would rotate or mirror it
    frames    whether it has several frames or pages, of which only the first is read
    """

    problem: str
    mode: str = ""
    width: int = 0
    height: int = 0
    grey: bool = False
    pixels: str = ""
    hash: str = ""
    flat: bool = False
    turned: bool = False
    frames: bool = False

    def row(self) -> tuple[Any, ...]:
        """Return the fields as they are stored: ImageFacts(*row)."""
        return astuple(self)


def inspect_image(image: Image) -> ImageFacts:
    """Return the properties of a decoded image."""
    deep = image.mode in DEEP_MODES
    colour = _eight_bits(image) if deep else image if image.mode == "RGB" else image.convert("RGB")
    exact = hashlib.sha256(f"{image.mode if deep else 'RGB'} {image.size}".encode())
    exact.update((image if deep else colour).tobytes())
    small = np.asarray(colour.resize((_SIDE, _SIDE), 2, reducing_gap=2.0), np.float64)  # 2: bilinear, antialiased
    grey = image.mode in _GREY or bool(np.ptp(small, 2).max() <= 8)  # JPEG keeps channels equal up to rounding
    image_hash = perceptual_hash(small @ (0.299, 0.587, 0.114))
    digest = exact.hexdigest()[:32]
    return ImageFacts(
        "", image.mode, image.width, image.height, grey, digest, image_hash, becomes_constant(image), _turned(image)
    )


def _turned(image: Image) -> bool:
    """Return whether the EXIF orientation is not the normal one."""
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # damaged metadata raise many kinds of errors
        return False


def perceptual_hash(grey: npt.NDArray[np.float64]) -> str:
    """Return the perceptual hash of a grey thumbnail [32 32] as 16 hexadecimal digits, "" for one without structure.

    The bits compare the 8x8 lowest DCT coefficients with their median. Scaling, recompression and small changes of
    brightness preserve nearly all bits; mirroring and cropping do not.
    """
    if grey.std() < _FLAT:
        return ""
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean brightness
    return np.packbits(bits).tobytes().hex()


def _eight_bits(image: Image) -> Image:
    """Convert a deep image to RGB, scaling its range of values to 8 bits."""
    from PIL import Image as images

    values = np.nan_to_num(np.asarray(image, np.float64))
    least, span = values.min(), np.ptp(values) or 1.0
    return images.fromarray(((values - least) * (255 / span)).astype(np.uint8)).convert("RGB")


ENGINE = 2  # increment when the properties of an image are computed differently
PART_SIZE = 64  # images on average

Done = Callable[[int], None]


def inspect_images(images: ImageSet, store: Store, workers: int = 0, done: Done = lambda n: None) -> list[ImageFacts]:
    """Return the properties of every image in order; those of unchanged images are read from the store.

    `done` is called with the number of images that are ready. An image that the system refuses to read (no permission,
    a removed drive) counts as unreadable, and its part is not stored.
    """
    from PIL import Image  # noqa: F401  the first import must not be in a thread

    workers = workers or min(os.cpu_count() or 1, 16)
    results: dict[int, list[ImageFacts]] = {}
    waiting: collections.deque[tuple[tuple[int, int], list[Future[tuple[ImageFacts, bool]]]]] = collections.deque()
    ahead = 0

    def finish() -> None:
        nonlocal ahead
        bounds, futures = waiting.popleft()
        part = []
        for future in futures:
            part.append(future.result())
            done(1)
        ahead -= len(futures)
        results[bounds[0]] = [facts for facts, _ in part]
        if all(permanent for _, permanent in part):
            rows = {"looks": [facts.row() for facts in results[bounds[0]]]}
            store.try_write("looks", _inputs(images, bounds), rows)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="inspect")
    try:
        with decode.pillow_in_threads():
            for start, stop in split_parts(images.names):
                entry = store.find("looks", _inputs(images, (start, stop)))
                if entry is not None:
                    results[start] = [ImageFacts(*row) for row in entry.facts["looks"]]
                    done(stop - start)
                    continue
                waiting.append(((start, stop), [pool.submit(_inspect, images, i) for i in range(start, stop)]))
                ahead += stop - start
                while waiting and ahead - len(waiting[0][1]) >= 4 * workers:
                    finish()
            while waiting:
                finish()
    finally:
        pool.shutdown(cancel_futures=True)
    return [facts for start in sorted(results) for facts in results[start]]


def split_parts(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return (start, stop) of every part of a set."""
    hashes = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    ends = [i + 1 for i, name_hash in enumerate(hashes) if int.from_bytes(name_hash[:4], "big") % PART_SIZE == 0]
    if not ends or ends[-1] != len(names):
        ends.append(len(names))
    return list(zip([0, *ends], ends, strict=False))


def _inputs(images: ImageSet, bounds: tuple[int, int]) -> dict[str, object]:
    dataset = images.dataset  # splits of a torchvision folder have the same names, sizes and times
    return {
        "engine": ENGINE,
        "items": images.part_fingerprint(*bounds),
        "of": [dataset.loader, dataset.source, dataset.split, dataset.within],
    }


def _inspect(images: ImageSet, index: int) -> tuple[ImageFacts, bool]:
    """Return the properties of an image, and whether the next inspection will return the same."""
    try:
        image = images.read(index)
        return replace(inspect_image(image), frames=_has_frames(image)), True
    except UserError:  # it changed after it was listed
        raise
    except Exception as error:
        return ImageFacts(decode.describe_error(error)), decode.is_broken(error)


def _has_frames(image: Image) -> bool:
    """Return whether there are several frames. (The preview in a photograph in the MPO format is not a frame.)"""
    if image.format not in ("GIF", "TIFF", "WEBP", "PNG"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged after the first frame
        return False
