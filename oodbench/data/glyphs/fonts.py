"""The DejaVu fonts that matplotlib ships: their files, their code points, and masks of their glyphs."""

from __future__ import annotations

import importlib.util
import threading
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
CANVAS = 48  # side of a mask in pixels
FIT = 40  # longest side of a glyph in its mask
_EM = 36  # font size of letters, which are not scaled to FIT: their relative heights carry meaning
_LOCK = threading.Lock()  # a FreeType face may be used by one thread at a time only


@lru_cache(maxsize=1)
def folder() -> Path:
    """Return the folder of matplotlib's fonts without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the glyphs need the DejaVu fonts that matplotlib ships: pip install matplotlib")
    return Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"


def path(face: str) -> Path:
    """Return the file of a face."""
    return folder() / f"{face}.ttf"


@lru_cache(maxsize=len(FACES))
def coverage(face: str) -> frozenset[int]:
    """Return the code points of a face's character map."""
    from fontTools.ttLib import TTFont

    with TTFont(path(face), lazy=True) as font:
        codes = font.getBestCmap()
    if codes is None:
        raise ValueError(f"{path(face)} has no Unicode character map")
    return frozenset(codes)


@lru_cache(maxsize=4096)
def faces_for(code: int) -> tuple[str, ...]:
    """Return the faces that have a glyph for a code point."""
    return tuple(face for face in FACES if code in coverage(face))


@lru_cache(maxsize=64)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine, because Raqm is not in every build of Pillow.
    return ImageFont.truetype(str(path(face)), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def mask(face: str, code: int, fitted: bool) -> Image.Image:
    """Return a grey image [CANVAS, CANVAS] of one centred glyph; `fitted` scales its longest side to FIT pixels."""
    text = chr(code)
    with _LOCK:
        size = _EM
        if fitted:
            left, top, right, bottom = _font(face, 100).getbbox(text)
            size = max(8, min(110, round(100 * FIT / max(right - left, bottom - top, 1))))
        font = _font(face, size)
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("L", (CANVAS, CANVAS))
        origin = ((CANVAS - right - left) / 2, (CANVAS - bottom - top) / 2)
        ImageDraw.Draw(image).text(origin, text, fill=255, font=font)
    return image
