"""Checks of an ID and an OOD set: shared images, synonymous classes, shortcuts such as resolution and colour."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodbench.data import prompts
from oodbench.data.checks import duplicates
from oodbench.data.checks.findings import Finding, first_examples
from oodbench.data.checks.inspection import ImageFacts
from oodbench.data.checks.single import normalize_name
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.metrics.detection import evaluate, score_set

_FOLDERS = ("/usr/share/wordnet", "~/nltk_data/corpora/wordnet")  # Debian's wordnet-base, NLTK
_SYNSET = re.compile(r"n(\d{8})")  # a class folder named by its synset, as in ImageNet


def find_wordnet() -> Path | None:
    """Return the folder of data.noun and index.noun: $WNSEARCHDIR, $WNHOME/dict, or the one of Debian or NLTK."""
    chosen = [os.environ.get("WNSEARCHDIR", ""), f"{home}/dict" if (home := os.environ.get("WNHOME", "")) else ""]
    folders = [c for c in chosen if c] or list(_FOLDERS)
    for name in folders:
        folder = Path(os.path.expanduser(name))
        if (folder / "data.noun").is_file() and (folder / "index.noun").is_file():
            return folder
    return None


class WordNet:
    """Synsets of nouns by name. A synset is its offset in data.noun; ImageNet's folders use WordNet 3.0."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data.noun"
        self._synsets: dict[str, tuple[int, ...]] = {}
        with (folder / "index.noun").open(encoding="latin-1") as lines:
            for line in lines:
                if not line.startswith(" "):  # the licence is indented
                    lemma, _, count, *rest = line.split()
                    self._synsets[lemma] = tuple(map(int, rest[-int(count) :]))

    def synsets(self, name: str) -> frozenset[int]:
        """Return the possible synsets of a class name or a folder such as n01440764; empty if WordNet has none.

        Each part of a name such as `tench, Tinca tinca` is looked up, a plural also as its singular.
        """
        if match := _SYNSET.fullmatch(name):
            return frozenset((int(match[1]),)) if self.words(int(match[1])) else frozenset()
        synsets: set[int] = set()
        for part in re.sub(r"\(.*?\)", "", name).split(","):
            lemma = "_".join(part.casefold().replace("_", " ").split())
            given = (lemma, lemma.replace("-", "_"))
            spellings = (*given, *(text.removesuffix("s") for text in given))
            synsets.update(next((self._synsets[s] for s in spellings if s in self._synsets), ()))
        return frozenset(synsets)

    def words(self, synset: int) -> tuple[str, ...]:
        """Return the words of a synset, () if there is no such synset."""
        with self._data.open("rb") as file:
            file.seek(synset)
            line = file.readline().decode("latin-1")
        fields = line.split(" ")
        if fields[0] != f"{synset:08}":
            return ()
        return tuple(fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16)))


def is_synset(folder: str) -> bool:
    """Return whether a class folder is named by its synset, such as n01440764."""
    return _SYNSET.fullmatch(folder) is not None


_SIZE_AUROC = 0.9  # AUROC by size alone, above which results may depend on size
_GREY_DIFFERENCE = 0.2  # difference between the fractions of images without colour
_MIN_IMAGES = 10  # images of each set that a comparison of sizes and colours needs

_FEATURES: dict[str, Callable[[ImageFacts], float]] = {
    "shorter side": lambda image: min(image.width, image.height),
    "number of pixels": lambda image: image.width * image.height,
    "aspect ratio": lambda image: max(image.width, image.height) / min(image.width, image.height),
}


@dataclass(frozen=True)
class InspectedSet:
    """An image set and the properties of its images."""

    listing: ImageSet
    images: Sequence[ImageFacts]

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.listing.dataset.name


def shared_images(id_set: InspectedSet, ood: InspectedSet, radius: int) -> Iterator[Finding]:
    """Yield the findings on identical images, and on those whose hashes differ in at most `radius` bits."""
    pair = (id_set.name, ood.name)

    def names(p: duplicates.DuplicatePair) -> str:
        return f"{id_set.listing.names[p.first]} = {ood.listing.names[p.second]}"

    same = duplicates.identical_pairs(id_set.images, ood.images)
    if same:
        message = f"{len(same):,} images of the OOD set have the pixels of an ID image"
        yield Finding("error", "identical", pair, message, len(same), first_examples([names(p) for p in same]))
    near = duplicates.similar_pairs(id_set.images, ood.images, radius)
    if near.images:
        message = f"{near.images:,} images of the OOD set look like an ID image (hashes within {radius} of 64 bits)"
        examples = [f"{names(p)} ({p.distance} bits)" for p in near.pairs]
        yield Finding("warning", "near-duplicates", pair, message, near.images, first_examples(examples))


def shortcut_features(id_set: InspectedSet, ood: InspectedSet) -> Iterator[Finding]:
    """Yield the findings on sets that differ in image size or colour, which scores may measure instead of content."""
    pair = (id_set.name, ood.name)
    id_images, ood_images = ([image for image in s.images if not image.problem] for s in (id_set, ood))
    if min(len(id_images), len(ood_images)) < _MIN_IMAGES:
        return
    best = (0.0, "", 0.0, 0.0)
    for name, feature in _FEATURES.items():
        a, b = (np.array([feature(image) for image in images]) for images in (id_images, ood_images))
        area = evaluate(score_set(a, f"{name} of {pair[0]}"), score_set(b, f"{name} of {pair[1]}")).auroc
        best = max(best, (max(area, 1 - area), name, float(np.median(a)), float(np.median(b))))
    area, name, id_median, ood_median = best
    if area >= _SIZE_AUROC:
        message = (
            f"the {name} of the file alone separates ID from OOD with AUROC {area:.1%} (medians {id_median:,.5g} and "
            f"{ood_median:,.5g}): a method that depends on resolution looks better than it is"
        )
        yield Finding("warning", "resolution", pair, message)
    id_grey, ood_grey = (sum(image.grey for image in images) / len(images) for images in (id_images, ood_images))
    if abs(id_grey - ood_grey) >= _GREY_DIFFERENCE:
        message = f"{id_grey:.1%} of ID and {ood_grey:.1%} of OOD images have no colour: colour alone separates some"
        yield Finding("warning", "grey", pair, message)


def class_names(listing: ImageSet) -> dict[str, str]:
    """Return the text to look up in WordNet for each class name: its folder if that is a synset, else the name.

    Names are from the class list, else the folders that contain the images if there are several.
    """
    folders = listing.folders or tuple(sorted({n.rpartition("/")[0].rpartition("/")[2] for n in listing.names}))
    if listing.dataset.classes:
        try:
            named = prompts.class_names(listing.dataset.classes).lines
        except UserError:  # another check reports it
            named = folders
        if len(named) != len(folders):
            return {name: name for name in named}
        return {n: f if is_synset(f) else n for n, f in zip(named, folders, strict=True)}
    if listing.named and len(listing.named) == len(folders):
        return {n: f if is_synset(f) else n for n, f in zip(listing.named, folders, strict=True)}
    return {folder: folder for folder in folders if folder} if len(folders) > 1 else {}


def class_overlap(id_set: ImageSet, ood: ImageSet, net: WordNet | None) -> Iterator[Finding]:
    """Yield the findings on class names that both sets have, or that are synonyms."""
    pair = (id_set.dataset.name, ood.dataset.name)
    id_names, ood_names = class_names(id_set), class_names(ood)
    plain = {normalize_name(name): name for name in id_names}
    same = [f"{plain[normalize_name(name)]} = {name}" for name in ood_names if normalize_name(name) in plain]
    if same:
        message = f"{len(same):,} class names of the OOD set are ID class names: their images may be ID"
        yield Finding("warning", "names", pair, message, len(same), first_examples(same))
    if net is None:
        if id_names and ood_names:
            yield Finding("note", "no-wordnet", pair, "WordNet is not installed, so synonyms were not checked")
        return
    meanings: dict[int, str] = {}
    for name, text in id_names.items():
        for synset in net.synsets(text):
            meanings.setdefault(synset, name)
    synonyms = []
    for name, text in ood_names.items():
        common = sorted(net.synsets(text) & meanings.keys())
        if common and normalize_name(name) not in plain:
            synonyms.append(f"{meanings[common[0]]} ~ {name} ({', '.join(net.words(common[0]))})")
    if synonyms:
        message = f"{len(synonyms):,} class names of the OOD set may be synonyms of an ID class name (WordNet)"
        yield Finding("warning", "synonyms", pair, message, len(synonyms), first_examples(synonyms))
