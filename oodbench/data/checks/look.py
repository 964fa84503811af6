"""A look at one image: whether it decodes, its mode and size, a digest of its pixels and a perceptual hash."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.decode import DEEP, flattened

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = frozenset(("L", "1", "LA", "La")) | DEEP
_ORIENTATION = 0x0112  # EXIF's tag
_SIDE = 32  # pixels of the thumbnail that is hashed
_COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
_FLAT = 2.0  # standard deviation in grey levels below which an image has no structure to hash


@dataclass(frozen=True)
class Look:
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


def look(image: Image) -> Look:
    """What a decoded image is."""
    deep = image.mode in DEEP
    colour = _eight_bits(image) if deep else image if image.mode == "RGB" else image.convert("RGB")
    exact = hashlib.sha256(f"{image.mode if deep else 'RGB'} {image.size}".encode())
    exact.update((image if deep else colour).tobytes())
    small = np.asarray(colour.resize((_SIDE, _SIDE), 2, reducing_gap=2.0), np.float64)  # 2: bilinear, antialiased
    grey = image.mode in _GREY or bool(np.ptp(small, 2).max() <= 8)  # JPEG keeps channels equal up to rounding
    mark = perceptual(small @ (0.299, 0.587, 0.114))
    digest = exact.hexdigest()[:32]
    return Look("", image.mode, image.width, image.height, grey, digest, mark, flattened(image), _turned(image))


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
