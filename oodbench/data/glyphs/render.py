"""Rendering: the pixels of every image of the embedded benchmark, as a pure function of split and index."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from oodbench.data.glyphs import fonts, textures, world
from oodbench.data.glyphs.world import Concept

SIZE = 32
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]
_SOURCES = ("fonts.py", "render.py", "textures.py", "words.txt", "world.py")
_COLOURS = {key: np.array(value, np.float32) for key, value in world.COLOURS.items()}
_RAMP = np.linspace(-1, 1, SIZE, dtype=np.float32)
_LETTERS = frozenset({"letters", "latin", "digits"})


def image(split: str, index: int) -> Pixels:
    """Return image [32, 32, 3] number `index` of a split; the same on every machine."""
    world.check_index(split, index)
    rng = world.generator(split, index)
    scene = world.scene(split, index, rng)
    if scene.concept is None:
        shape = _transform(_handwritten(index), rng)
    elif scene.concept.group == "textures":
        shape = textures.mask(scene.concept.name, rng)
    else:
        shape = _transform(_glyph(scene.concept, rng), rng)
    return _paint(shape, _COLOURS[scene.fore], _COLOURS[scene.back], rng)


def recipe() -> dict[str, str]:
    """Return everything that determines the pixels: sha256 of fonts and source files, versions of libraries."""
    here = Path(__file__).parent
    files = {f"font/{face}": fonts.path(face) for face in fonts.FACES}
    files |= {f"source/{file}": here / file for file in _SOURCES}
    recipe = {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
    recipe |= {f"version/{key}": metadata.version(key) for key in ("pillow", "numpy", "scikit-learn")}
    # Which code points have names, and are thus concepts, depends on the version of Unicode.
    recipe["version/unicode"] = unicodedata.unidata_version
    return recipe | {"version/freetype2": features.version_module("freetype2") or "unknown"}


def _glyph(concept: Concept, rng: np.random.Generator) -> Image.Image:
    """Return the mask of one of the concept's code points in one of the faces that have it."""
    code = concept.codes[int(rng.integers(len(concept.codes)))]
    faces = fonts.faces_for(code)
    return fonts.mask(faces[int(rng.integers(len(faces)))], code, concept.group not in _LETTERS)


def _transform(mask: Image.Image, rng: np.random.Generator) -> Mask:
    """Return a mask [32, 32] in [0, 1]: the glyph scaled, rotated by at most 12 degrees and shifted at random."""
    side, turn = rng.uniform(19.0, 29.0), math.radians(rng.uniform(-12.0, 12.0))
    play = (SIZE - side) / 2
    x, y = SIZE / 2 + play * rng.uniform(-0.7, 0.7), SIZE / 2 + play * rng.uniform(-0.7, 0.7)
    scale = fonts.FIT / side
    a, b = scale * math.cos(turn), scale * math.sin(turn)
    middle = fonts.CANVAS / 2
    matrix = (a, b, middle - a * x - b * y, -b, a, middle + b * x - a * y)
    moved = mask.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(moved, np.float32) * np.float32(1 / 255)


def _paint(shape: Mask, fore: Mask, back: Mask, rng: np.random.Generator) -> Pixels:
    """Return pixels: foreground over background, with random colour offsets, a brightness gradient and noise."""
    draws = rng.standard_normal(6, dtype=np.float32) * np.float32(14.0)
    foreground, background = fore + draws[:3], back + draws[3:]
    slopes = rng.uniform(-18.0, 18.0, 2).astype(np.float32)
    light = _RAMP[:, None] * slopes[0] + _RAMP * slopes[1]
    noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(rng.uniform(2.0, 14.0))
    pixels = background + shape[..., None] * (foreground - background) + light[..., None] + noise
    return np.asarray(np.clip(pixels, 0.0, 255.0), np.uint8)


@lru_cache(maxsize=1)
def _digits() -> Pixels:
    """Return the 1,797 handwritten digits of scikit-learn, [1797, 8, 8] in 0..255."""
    from sklearn.datasets import load_digits

    return np.asarray(np.round(load_digits().images * (255 / 16)), np.uint8)


def _handwritten(index: int) -> Image.Image:
    """Return a grey image [CANVAS, CANVAS] of one handwritten digit, as large as a glyph."""
    enlarged = Image.fromarray(_digits()[index]).resize((fonts.FIT, fonts.FIT), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (fonts.CANVAS, fonts.CANVAS))
    canvas.paste(enlarged, ((fonts.CANVAS - fonts.FIT) // 2,) * 2)
    return canvas
