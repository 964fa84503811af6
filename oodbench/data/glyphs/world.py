"""The splits of the glyph world: how many images each has, what they show, and what the pairs say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from oodbench.data.glyphs import captions
from oodbench.data.glyphs.concepts import CLASSES as _CODES
from oodbench.data.glyphs.concepts import Concept, concepts, group

CLASSES: tuple[str, ...] = tuple(_CODES)
_LENGTHS = {
    "id-test": 1500,
    "id-train": 2000,
    "near": 1500,
    "letters": 1500,
    "textures": 1200,
    "digits": 1797,
    "pairs": 40_000,
}
SPLITS: tuple[str, ...] = tuple(_LENGTHS)
STREAM = "stream"  # endless pairs from which the encoder learns; no split of the benchmark
_STREAMS = {name: number for number, name in enumerate((*SPLITS, STREAM))}
# The blocks of the classes are drawn twice as often as other symbols, and so are the few digits and textures.
_WEIGHTS = {"id": 2.0, "near": 2.0, "textures": 2.0, "digits": 2.0, "letters": 1.0, "latin": 1.0, "other": 1.0}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Scene:
    """What one image shows: a concept (None: a handwritten digit) in two named colours."""

    concept: Concept | None
    fore: str
    back: str


def generator(split: str, index: int, words: bool = False) -> np.random.Generator:
    """Random numbers of one image, or of its caption, independent of all others."""
    return np.random.Generator(np.random.Philox(key=((2 * _STREAMS[split] + words) << 64) + index))


def length(split: str) -> int:
    """Number of images of a split."""
    return _LENGTHS[split]


def label(split: str, index: int) -> int:
    """Class of an image of the ID splits, -1 in all others."""
    check(split, index)
    return index % len(CLASSES) if split.startswith("id-") else -1


def name(split: str, index: int) -> str:
    """Stable readable name of an image, such as "id-test/0007-telephone"."""
    check(split, index)
    if split == "digits":
        # The bundled digits are not in the order of their labels, and naming must not import scikit-learn.
        return f"{split}/{index:04d}-handwritten"
    concept = scene(split, index, generator(split, index)).concept
    assert concept is not None
    return f"{split}/{index:0{5 if split == 'pairs' else 4}d}-{concept.name.replace(' ', '-')}"


def caption(index: int) -> str:
    """Caption of one image of the split `pairs`."""
    check("pairs", index)
    return describe("pairs", index)


def describe(split: str, index: int) -> str:
    """Caption of image `index` of the pairs or of the endless training stream."""
    shown = scene(split, index, generator(split, index))
    assert shown.concept is not None
    return captions.write(shown.concept.name, shown.fore, shown.back, generator(split, index, words=True))


def scene(split: str, index: int, rng: np.random.Generator) -> Scene:
    """Concept and colours of an image; takes the first numbers of its generator."""
    fore, back = _contrasts()[int(rng.integers(len(_contrasts())))]
    if split == "digits":
        return Scene(None, fore, back)
    if split in ("pairs", STREAM):
        bounds = _cumulated()
        return Scene(concepts()[int(np.searchsorted(bounds, rng.random(), side="right"))], fore, back)
    known = group("id" if split.startswith("id-") else split)
    return Scene(known[index % len(known)], fore, back)


def check(split: str, index: int) -> None:
    """Raises IndexError for an image which the split does not have; the training stream has no end."""
    if index < 0 or (split != STREAM and index >= _LENGTHS[split]):
        raise IndexError(f"{split} has no image {index}")


@lru_cache(maxsize=1)
def _cumulated() -> npt.NDArray[np.float64]:
    weights = np.array([_WEIGHTS[concept.group] for concept in concepts()])
    bounds: npt.NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    bounds[-1] = 1.0
    return bounds


@lru_cache(maxsize=1)
def _contrasts() -> tuple[tuple[str, str], ...]:
    """Ordered pairs of colour names which differ enough in brightness for a shape to be seen."""
    light = {key: 0.30 * r + 0.59 * g + 0.11 * b for key, (r, g, b) in captions.COLOURS.items()}
    return tuple((a, b) for a in light for b in light if abs(light[a] - light[b]) > 60)
