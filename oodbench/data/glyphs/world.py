"""The content of the embedded benchmark: concepts with their names, captions, and what each image of a split shows."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oodbench.data.glyphs import fonts, textures

# Colour names, and the sRGB values around which images are drawn.
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
# As in captions from the web, a word that the image does not show.
NOISY = ("{}, {word}", "{word} {}", "a {}, {word}", "{} and {word}", "a {} {word}")
_COLOURED_FRACTION, _NOISY_FRACTION = 0.42, 0.15


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Return the words that captions mention at random: names of things, from WordNet 3.0."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="ascii").split())


def compose_caption(name: str, fore: str, back: str, rng: np.random.Generator) -> str:
    """Return a caption of the named concept: plain, with its two colours, or with an unrelated word."""
    kind = rng.random()
    templates = COLOURED if kind < _COLOURED_FRACTION else NOISY if kind > 1 - _NOISY_FRACTION else PLAIN
    word = words()[int(rng.integers(len(words())))]
    return templates[int(rng.integers(len(templates)))].format(name, fore=fore, back=back, word=word)


CLASS_CODES: dict[str, tuple[int, ...]] = {
    "umbrella": (0x2602, 0x2614),
    "snowman": (0x2603,),
    "anchor": (0x2693,),
    "cloud": (0x2601,),
    "comet": (0x2604,),
    "telephone": (0x260E, 0x260F),
    "hot beverage": (0x2615,),
    "skull and crossbones": (0x2620,),
    "radioactive sign": (0x2622,),
    "biohazard sign": (0x2623,),
    "ankh": (0x2625,),
    "star and crescent": (0x262A,),
    "peace symbol": (0x262E,),
    "yin yang": (0x262F,),
    "wheel of dharma": (0x2638,),
    "sun with rays": (0x2600, 0x263C),
    "crescent moon": (0x263D, 0x263E),
    "chess king": (0x2654, 0x265A),
    "chess rook": (0x2656, 0x265C),
    "chess knight": (0x2658, 0x265E),
    "heart": (0x2661, 0x2665, 0x2764),
    "spade suit": (0x2660, 0x2664),
    "club suit": (0x2663, 0x2667),
    "hot springs": (0x2668,),
    "musical notes": (0x266B, 0x266C),
    "recycling symbol": (0x2672, 0x267B),
    "wheelchair symbol": (0x267F,),
    "flag": (0x2690, 0x2691),
    "hammer and pick": (0x2692,),
    "crossed swords": (0x2694,),
    "scales": (0x2696,),
    "alembic": (0x2697,),
    "gear": (0x2699,),
    "atom symbol": (0x269B,),
    "fleur-de-lis": (0x269C,),
    "warning sign": (0x26A0,),
    "high voltage sign": (0x26A1,),
    "coffin": (0x26B0,),
    "funeral urn": (0x26B1,),
    "keyboard": (0x2328,),
    "house": (0x2302,),
    "scissors": (0x2701, 0x2702, 0x2703, 0x2704),
    "airplane": (0x2708,),
    "envelope": (0x2709,),
    "victory hand": (0x270C,),
    "writing hand": (0x270D,),
    "pencil": (0x270E, 0x270F, 0x2710),
    "check mark": (0x2713, 0x2714),
    "star of david": (0x2721,),
    "snowflake": (0x2744, 0x2745, 0x2746),
}

# Unicode blocks of the ID classes; their other symbols are the near-OOD set.
_NEAR = ((0x2300, 0x23FF), (0x2600, 0x26FF), (0x2701, 0x2767), (0x2794, 0x27BE))
# Code points left out: too close in meaning to a class, parts of brackets, or too small to be distinguished.
_DROPPED = {0x2320, 0x2321, 0x2388, 0x2605, 0x2606, 0x2607, 0x2609, 0x2616, 0x2617, 0x2619, 0x267A, 0x267C, 0x267D}
_DROPPED |= {0x26AC, 0x2758, 0x2759, 0x2763, 0x2765, 0x2766, 0x2767, *range(0x2673, 0x267A), *range(0x239B, 0x23AF)}
_OTHER = (
    *((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xA1, 0xBF), (0x20A0, 0x20BF), (0x2190, 0x21B5)),
    *((0x21BA, 0x21BB), (0x21D0, 0x21DD), (0x21E6, 0x21E9), (0x2200, 0x222E), (0x2234, 0x2237), (0x223C, 0x223F)),
    *((0x2248, 0x224B), (0x2260, 0x2265), (0x226A, 0x226B), (0x2282, 0x2283), (0x2293, 0x22A5), (0x22C8, 0x22C8)),
    *((0x22EE, 0x22F1), (0x25A0, 0x25E5), (0x25E7, 0x25E8), (0x2B12, 0x2B13), (0x2B16, 0x2B23)),
    *((0x1F42D, 0x1F435), (0x1F600, 0x1F640)),
)
_LATIN = ((0x41, 0x5A), (0x61, 0x7A), (0x60, 0x60))
_LETTERS = (
    *((0x391, 0x3A9), (0x3B1, 0x3C9), (0x410, 0x44F), (0x531, 0x556), (0x561, 0x586), (0x10A0, 0x10C5)),
    *((0x10D0, 0x10F0), (0x5D0, 0x5EA), (0x621, 0x64A), (0xE81, 0xEAE), (0x2D30, 0x2D65)),
)
_STYLE = re.compile(r"(?<![\w-])(black|white|heavy|medium|light|small|large|outlined|capital|ornament)(?![\w-])")
# Words of long names, mostly of dialects and arrows.
_SKIPPED = re.compile(
    r"\b(apl|tuareg|ahaggar|academy|tawellemet|ayer|tatweel|crop|tilted|teardrop|concave|feathered|open-outlined|tip)\b"
)
_LONGEST = 34  # characters of a name; longer names exceed the context length of the text tower


@dataclass(frozen=True)
class Concept:
    """A name with the code points that show it; a texture has none, and is drawn by its name."""

    name: str
    group: str
    codes: tuple[int, ...]


def clean(name: str) -> str:
    """Return a lower-case name without words for style, so that solid and outlined variants share it."""
    words = _STYLE.sub(" ", name.lower())
    return " ".join(words.replace("-pointing", " pointing").split())


def _concepts_in(ranges: tuple[tuple[int, int], ...], group: str, taken: set[str], used: set[int]) -> list[Concept]:
    """Return the concepts of ranges of code points: named characters that a font has and that are not in use."""
    codes_of: dict[str, list[int]] = {}
    for first, last in ranges:
        for code in range(first, last + 1):
            raw = unicodedata.name(chr(code), "")
            if code in used or not raw or unicodedata.combining(chr(code)) or not fonts.faces_for(code):
                continue
            name = clean(raw)
            if len(name.split()) > 5 or _SKIPPED.search(name):
                continue
            if 2 < len(name) <= _LONGEST and name not in taken:
                codes_of.setdefault(name, []).append(code)
    return [Concept(name, group, tuple(codes)) for name, codes in codes_of.items()]


@lru_cache(maxsize=1)
def concepts() -> tuple[Concept, ...]:
    """Return all concepts in a fixed order: ID classes, then near, letters, textures, digits, latin, other."""
    known = [Concept(name, "id", codes) for name, codes in CLASS_CODES.items()]
    taken, used = set(CLASS_CODES), {code for codes in CLASS_CODES.values() for code in codes} | _DROPPED
    digits = [Concept(clean(unicodedata.name(chr(48 + d))), "digits", (48 + d,)) for d in range(10)]
    taken |= set(textures.NAMES) | {concept.name for concept in digits}
    drawn = [Concept(name, "textures", ()) for name in textures.NAMES]
    for ranges, group in ((_NEAR, "near"), (_LETTERS, "letters"), (_LATIN, "latin"), (_OTHER, "other")):
        part = _concepts_in(ranges, group, taken, used)
        taken |= {concept.name for concept in part}
        used |= {code for concept in part for code in concept.codes}
        known += part
        if group == "letters":
            known += drawn + digits
    return tuple(known)


@lru_cache(maxsize=16)
def group(name: str) -> tuple[Concept, ...]:
    """Return the concepts of one group, in order."""
    return tuple(concept for concept in concepts() if concept.group == name)


CLASSES: tuple[str, ...] = tuple(CLASS_CODES)
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
STREAM = "stream"  # unlimited image-caption pairs that the encoder is trained on; no split of the benchmark
_STREAMS = {name: number for number, name in enumerate((*SPLITS, STREAM))}
# Sampling weights of the pairs: ID and near symbols, digits and textures are drawn twice as often as others.
_WEIGHTS = {"id": 2.0, "near": 2.0, "textures": 2.0, "digits": 2.0, "letters": 1.0, "latin": 1.0, "other": 1.0}


@dataclass(frozen=True)
class Scene:
    """What an image shows: a concept (None: a handwritten digit) in two named colours."""

    concept: Concept | None
    fore: str
    back: str


def generator(split: str, index: int, words: bool = False) -> np.random.Generator:
    """Return the random generator of one image, or (`words`) of its caption, independent of all others."""
    return np.random.Generator(np.random.Philox(key=((2 * _STREAMS[split] + words) << 64) + index))


def length(split: str) -> int:
    """Return the number of images of a split."""
    return _LENGTHS[split]


def label(split: str, index: int) -> int:
    """Return the class of an image of an ID split, -1 for other splits."""
    check_index(split, index)
    return index % len(CLASSES) if split.startswith("id-") else -1


def name(split: str, index: int) -> str:
    """Return the name of an image, such as "id-test/0007-telephone"."""
    check_index(split, index)
    if split == "digits":
        # The digits are not sorted by label, and naming an image must not import scikit-learn.
        return f"{split}/{index:04d}-handwritten"
    concept = scene(split, index, generator(split, index)).concept
    assert concept is not None
    return f"{split}/{index:0{5 if split == 'pairs' else 4}d}-{concept.name.replace(' ', '-')}"


def caption(index: int) -> str:
    """Return the caption of an image of the split "pairs"."""
    check_index("pairs", index)
    return describe("pairs", index)


def describe(split: str, index: int) -> str:
    """Return the caption of an image of the pairs or of the training stream."""
    shown = scene(split, index, generator(split, index))
    assert shown.concept is not None
    return compose_caption(shown.concept.name, shown.fore, shown.back, generator(split, index, words=True))


def scene(split: str, index: int, rng: np.random.Generator) -> Scene:
    """Return concept and colours of an image, from the first numbers of its generator."""
    fore, back = _colour_pairs()[int(rng.integers(len(_colour_pairs())))]
    if split == "digits":
        return Scene(None, fore, back)
    if split in ("pairs", STREAM):
        bounds = _cumulative_weights()
        return Scene(concepts()[int(np.searchsorted(bounds, rng.random(), side="right"))], fore, back)
    known = group("id" if split.startswith("id-") else split)
    return Scene(known[index % len(known)], fore, back)


def check_index(split: str, index: int) -> None:
    """Raise IndexError for an image that the split does not have; the training stream is unlimited."""
    if index < 0 or (split != STREAM and index >= _LENGTHS[split]):
        raise IndexError(f"{split} has no image {index}")


@lru_cache(maxsize=1)
def _cumulative_weights() -> npt.NDArray[np.float64]:
    """Return the cumulative sampling weights of the concepts, up to 1."""
    weights = np.array([_WEIGHTS[concept.group] for concept in concepts()])
    bounds: npt.NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    bounds[-1] = 1.0
    return bounds


@lru_cache(maxsize=1)
def _colour_pairs() -> tuple[tuple[str, str], ...]:
    """Return ordered pairs of colour names with enough difference in brightness for a shape to be visible."""
    light = {key: 0.30 * r + 0.59 * g + 0.11 * b for key, (r, g, b) in COLOURS.items()}
    return tuple((a, b) for a in light for b in light if abs(light[a] - light[b]) > 60)
