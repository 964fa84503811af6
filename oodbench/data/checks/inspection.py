"""Inspection: a look at every image of a list, by threads, kept in the store part by part.

A part ends where the hash of an image's name says so, about every 64 images. So a part's bounds do not move when images
come or go elsewhere in the list, and after a change only the parts that changed are looked at again.
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
    """What one image is.

    problem   why it cannot be decoded, "" when it can
    grey      whether it has no colour, whatever its mode
    pixels    digest of size and pixels as RGB, so that metadata and lossless containers do not count
    mark      64-bit perceptual hash as hex, "" for an image without structure
    flat      whether it has more than 8 bits and becomes nearly constant as RGB
    turned    whether its EXIF orientation would turn or mirror it
    frames    whether it has several frames or pages, of which the first is read
    """

    problem: str
    mode: str = ""
    width: int = 0
    height: int = 0
    grey: bool = False
    pixels: str = ""
    mark: str = ""
    flat: bool = False
    turned: bool = False
    frames: bool = False

    def row(self) -> tuple[Any, ...]:
        """As it is stored: Look(*row)."""
        return astuple(self)


def inspect_image(image: Image) -> ImageFacts:
    """What a decoded image is."""
    deep = image.mode in DEEP_MODES
    colour = _eight_bits(image) if deep else image if image.mode == "RGB" else image.convert("RGB")
    exact = hashlib.sha256(f"{image.mode if deep else 'RGB'} {image.size}".encode())
    exact.update((image if deep else colour).tobytes())
    small = np.asarray(colour.resize((_SIDE, _SIDE), 2, reducing_gap=2.0), np.float64)  # 2: bilinear, antialiased
    grey = image.mode in _GREY or bool(np.ptp(small, 2).max() <= 8)  # JPEG keeps channels equal up to rounding
    mark = perceptual(small @ (0.299, 0.587, 0.114))
    digest = exact.hexdigest()[:32]
    return ImageFacts(
        "", image.mode, image.width, image.height, grey, digest, mark, becomes_constant(image), _turned(image)
    )


def _turned(image: Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # damaged metadata, of whatever kind
        return False


def perceptual(grey: npt.NDArray[np.float64]) -> str:
    """The signs of the 8x8 lowest frequencies [32 32] about their median, as 16 hex digits; "" without structure.

    Scaling, recompression and small changes of brightness leave nearly all bits; mirroring and cropping do not.
    """
    if grey.std() < _FLAT:
        return ""
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean brightness
    return np.packbits(bits).tobytes().hex()


def _eight_bits(image: Image) -> Image:
    """A deep image stretched to 8 bits between its least and greatest value, as RGB."""
    from PIL import Image as images

    values = np.nan_to_num(np.asarray(image, np.float64))
    least, span = values.min(), np.ptp(values) or 1.0
    return images.fromarray(((values - least) * (255 / span)).astype(np.uint8)).convert("RGB")


ENGINE = 2  # raise when a look gives something else than before
PART_SIZE = 64  # images, on average

Done = Callable[[int], None]


def inspect_images(listing: ImageSet, store: Store, workers: int = 0, done: Done = lambda n: None) -> list[ImageFacts]:
    """A look at every image in list order; those of earlier runs come from the store unless the image changed.

    `done` is told how many images are ready. An image that the system withholds (no permission, a drive that went away)
    counts as unreadable, and its part is not stored.
    """
    from PIL import Image  # noqa: F401  not for the first time in a thread

    workers = workers or min(os.cpu_count() or 1, 16)
    looks: dict[int, list[ImageFacts]] = {}
    waiting: collections.deque[tuple[tuple[int, int], list[Future[tuple[ImageFacts, bool]]]]] = collections.deque()
    ahead = 0

    def finish() -> None:
        nonlocal ahead
        bounds, futures = waiting.popleft()
        found = []
        for future in futures:
            found.append(future.result())
            done(1)
        ahead -= len(futures)
        looks[bounds[0]] = [one for one, _ in found]
        if all(lasting for _, lasting in found):
            facts = {"looks": [one.row() for one in looks[bounds[0]]]}
            store.try_write("looks", _inputs(listing, bounds), facts)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="look")
    try:
        with decode.pillow_in_threads():
            for start, stop in split_parts(listing.names):
                entry = store.find("looks", _inputs(listing, (start, stop)))
                if entry is not None:
                    looks[start] = [ImageFacts(*row) for row in entry.facts["looks"]]
                    done(stop - start)
                    continue
                waiting.append(((start, stop), [pool.submit(_look, listing, i) for i in range(start, stop)]))
                ahead += stop - start
                while waiting and ahead - len(waiting[0][1]) >= 4 * workers:
                    finish()
            while waiting:
                finish()
    finally:
        pool.shutdown(cancel_futures=True)
    return [one for start in sorted(looks) for one in looks[start]]


def split_parts(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """(start, stop) of every part of a list."""
    hashes = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    ends = [i + 1 for i, one in enumerate(hashes) if int.from_bytes(one[:4], "big") % PART_SIZE == 0]
    if not ends or ends[-1] != len(names):
        ends.append(len(names))
    return list(zip([0, *ends], ends, strict=False))


def _inputs(listing: ImageSet, bounds: tuple[int, int]) -> dict[str, object]:
    one = listing.dataset  # splits of one torchvision folder have the same names, sizes and times
    return {
        "engine": ENGINE,
        "items": listing.part_stamp(*bounds),
        "of": [one.loader, one.source, one.split, one.within],
    }


def _look(listing: ImageSet, index: int) -> tuple[ImageFacts, bool]:
    """The look, and whether it will be the same next time."""
    try:
        image = listing.read(index)
        return replace(inspect_image(image), frames=_has_frames(image)), True
    except UserError:  # not the image that was listed
        raise
    except Exception as error:
        return ImageFacts(decode.describe_error(error)), decode.is_broken(error)


def _has_frames(image: Image) -> bool:
    """Whether there are several frames. (Photographs in the MPO format have a preview beside them: that is none.)"""
    if image.format not in ("GIF", "TIFF", "WEBP", "PNG"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged behind the first frame, in whatever way
        return False
