"""Colour words and caption templates, as varied as alternative texts in the web are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

# Names which people give to colours, and the sRGB values around which images are drawn.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 35),
    "orange": (240, 135, 25),
    "yellow": (245, 220, 60),
    "green": (40, 150, 60),
    "turquoise": (60, 200, 190),
    "blue": (45, 80, 205),
    "purple": (120, 45, 150),
    "pink": (250, 150, 195),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "gray": (135, 135, 135),
    "white": (245, 245, 245),
}

PLAIN = (
    *("{}", "a {}", "the {}", "a photo of a {}", "a photo of a {}.", "This is a photo of a {}", "the nice {}"),
    *("a picture of a {}", "an image of the {}", "a photo of the {}.", "a drawing of a {}", "an icon of a {}"),
    *("a bad photo of a {}.", "a photo of my {}.", "itap of a {}.", "a closeup photo of a {}", "a small {}"),
    *("a blurry photo of the {}", "{}, icon", "symbol: {}", "a good photo of one {}.", "there is a {}"),
    *("this is a {}", "the cool {}", "a low resolution photo of a {}", "a sketch of a {}.", "clip art of a {}"),
)
COLOURED = (
    *("a {fore} {}", "the {fore} {}", "a photo of a {fore} {}", "{fore} {}", "{} in {fore}", "a {fore} {}."),
    *("a {fore} {} on a {back} background", "a {fore} {} on {back}", "{} in {fore} on {back}"),
    *("{fore} {} on {back}", "a photo of a {} on {back}.", "a {} on a {back} background"),
)
# Captions of the web also hold words which the image does not show.
NOISY = ("{}, {word}", "{word} {}", "a {}, {word}", "{} and {word}", "a {} {word}")
_COLOURED_SHARE, _NOISY_SHARE = 0.42, 0.15


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Words which captions mention at random: names of things, picked from WordNet 3.0."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="ascii").split())


def write(name: str, fore: str, back: str, rng: np.random.Generator) -> str:
    """One caption of the named thing: plain, with its two colours, or with an unrelated word."""
    kind = rng.random()
    templates = COLOURED if kind < _COLOURED_SHARE else NOISY if kind > 1 - _NOISY_SHARE else PLAIN
    word = words()[int(rng.integers(len(words())))]
    return templates[int(rng.integers(len(templates)))].format(name, fore=fore, back=back, word=word)
