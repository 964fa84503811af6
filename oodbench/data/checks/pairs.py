"""What is wrong between an ID set and an OOD set: shared images, and shortcuts such as resolution and colour."""

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

_PLACES = ("/usr/share/wordnet", "~/nltk_data/corpora/wordnet")  # Debian's wordnet-base, NLTK
_NUMBERED = re.compile(r"n(\d{8})")  # a class folder named by its synset, as ImageNet's are


def find_wordnet() -> Path | None:
    """The folder of data.noun and index.noun: $WNSEARCHDIR, $WNHOME/dict, or where Debian and NLTK put it."""
    chosen = [os.environ.get("WNSEARCHDIR", ""), f"{home}/dict" if (home := os.environ.get("WNHOME", "")) else ""]
    places = [c for c in chosen if c] or list(_PLACES)
    for place in places:
        folder = Path(os.path.expanduser(place))
        if (folder / "data.noun").is_file() and (folder / "index.noun").is_file():
            return folder
    return None


class WordNet:
    """Synsets of nouns by name; numbers are offsets into data.noun, and those of ImageNet's folders are 3.0's."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data.noun"
        self._synsets: dict[str, tuple[int, ...]] = {}
        with (folder / "index.noun").open(encoding="latin-1") as lines:
            for line in lines:
                if not line.startswith(" "):  # the licence is indented
                    lemma, _, count, *rest = line.split()
                    self._synsets[lemma] = tuple(map(int, rest[-int(count) :]))

    def synsets(self, name: str) -> frozenset[int]:
        """What a class name or a numbered folder may mean; empty when WordNet does not know it.

        A name such as `tench, Tinca tinca` is read word by word between commas; a plural counts as its singular.
        """
        if numbered := _NUMBERED.fullmatch(name):
            return frozenset((int(numbered[1]),)) if self.words(int(numbered[1])) else frozenset()
        found: set[int] = set()
        for one in re.sub(r"\(.*?\)", "", name).split(","):
            lemma = "_".join(one.casefold().replace("_", " ").split())
            whole = (lemma, lemma.replace("-", "_"))
            spelled = (*whole, *(each.removesuffix("s") for each in whole))
            found.update(next((self._synsets[s] for s in spelled if s in self._synsets), ()))
        return frozenset(found)

    def words(self, synset: int) -> tuple[str, ...]:
        """The words of a synset, () when there is none of that number."""
        with self._data.open("rb") as file:
            file.seek(synset)
            line = file.readline().decode("latin-1")
        fields = line.split(" ")
        if fields[0] != f"{synset:08}":
            return ()
        return tuple(fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16)))


def is_number(folder: str) -> bool:
    """Whether a class folder is named by its synset, as n01440764 is."""
    return _NUMBERED.fullmatch(folder) is not None


_TOLD_APART = 0.9  # AUROC by size alone from which results may be about size
_MORE_GREY = 0.2  # difference of the shares of images without colour
_FEWEST = 10  # images of each set below which shares mean nothing

_FEATURES: dict[str, Callable[[ImageFacts], float]] = {
    "shorter side": lambda one: min(one.width, one.height),
    "number of pixels": lambda one: one.width * one.height,
    "aspect ratio": lambda one: max(one.width, one.height) / min(one.width, one.height),
}


@dataclass(frozen=True)
class ImageSide:
    """A set and the looks at its images."""

    listing: ImageSet
    looks: Sequence[ImageFacts]

    @property
    def name(self) -> str:
        return self.listing.dataset.name


def shared_images(id_set: ImageSide, ood: ImageSide, radius: int) -> Iterator[Finding]:
    """Identical images, and those whose perceptual hashes differ in at most `radius` bits (0: equal hashes)."""
    pair = (id_set.name, ood.name)

    def told(p: duplicates.DuplicatePair) -> str:
        return f"{id_set.listing.names[p.first]} = {ood.listing.names[p.second]}"

    same = duplicates.identical_pairs(id_set.looks, ood.looks)
    if same:
        message = f"{len(same):,} images of the OOD set have the pixels of an ID image"
        yield Finding("error", "identical", pair, message, len(same), first_examples([told(p) for p in same]))
    near = duplicates.similar_pairs(id_set.looks, ood.looks, radius)
    if near.images:
        message = f"{near.images:,} images of the OOD set look like an ID image (hashes within {radius} of 64 bits)"
        examples = [f"{told(p)} ({p.distance} bits)" for p in near.pairs]
        yield Finding("warning", "near-duplicates", pair, message, near.images, first_examples(examples))


def shortcut_features(id_set: ImageSide, ood: ImageSide) -> Iterator[Finding]:
    """Whether size or colour alone tells the sets apart, so that scores may measure that instead of the content."""
    pair = (id_set.name, ood.name)
    ours, theirs = ([one for one in side.looks if not one.problem] for side in (id_set, ood))
    if min(len(ours), len(theirs)) < _FEWEST:
        return
    best = (0.0, "", 0.0, 0.0)
    for what, feature in _FEATURES.items():
        a, b = (np.array([feature(one) for one in looks]) for looks in (ours, theirs))
        area = evaluate(score_set(a, f"{what} of {pair[0]}"), score_set(b, f"{what} of {pair[1]}")).auroc
        best = max(best, (max(area, 1 - area), what, float(np.median(a)), float(np.median(b))))
    area, what, middle, other = best
    if area >= _TOLD_APART:
        message = (
            f"the {what} of the file alone tells ID from OOD with AUROC {area:.1%} (medians {middle:,.5g} and "
            f"{other:,.5g}): a method that sees resolution looks better than it is"
        )
        yield Finding("warning", "resolution", pair, message)
    grey, grey_other = (sum(one.grey for one in looks) / len(looks) for looks in (ours, theirs))
    if abs(grey - grey_other) >= _MORE_GREY:
        message = f"{grey:.1%} of ID and {grey_other:.1%} of OOD images have no colour: colour alone tells some apart"
        yield Finding("warning", "grey", pair, message)


def class_names(listing: ImageSet) -> dict[str, str]:
    """Class name -> what it is looked up by in WordNet: the folder where that is a synset's number, else the name.

    Names are those of the class list, or the folders that hold the images when there are several.
    """
    folders = listing.folders or tuple(sorted({n.rpartition("/")[0].rpartition("/")[2] for n in listing.names}))
    if listing.dataset.classes:
        try:
            named = prompts.class_names(listing.dataset.classes).lines
        except UserError:  # told elsewhere
            named = folders
        if len(named) != len(folders):
            return {name: name for name in named}
        return {n: f if is_number(f) else n for n, f in zip(named, folders, strict=True)}
    if listing.named and len(listing.named) == len(folders):
        return {n: f if is_number(f) else n for n, f in zip(listing.named, folders, strict=True)}
    return {folder: folder for folder in folders if folder} if len(folders) > 1 else {}


def class_overlap(id_set: ImageSet, ood: ImageSet, net: WordNet | None) -> Iterator[Finding]:
    """Findings about class names of both sets; nothing when one of them has no classes."""
    pair = (id_set.dataset.name, ood.dataset.name)
    ours, theirs = class_names(id_set), class_names(ood)
    plain = {normalize_name(name): name for name in ours}
    same = [f"{plain[normalize_name(name)]} = {name}" for name in theirs if normalize_name(name) in plain]
    if same:
        message = f"{len(same):,} class names of the OOD set are ID class names: their images may be ID"
        yield Finding("warning", "names", pair, message, len(same), first_examples(same))
    if net is None:
        if ours and theirs:
            yield Finding("note", "no-wordnet", pair, "WordNet is not installed, so synonyms were not looked at")
        return
    meant: dict[int, str] = {}
    for name, looked_up in ours.items():
        for synset in net.synsets(looked_up):
            meant.setdefault(synset, name)
    alike = []
    for name, looked_up in theirs.items():
        common = sorted(net.synsets(looked_up) & meant.keys())
        if common and normalize_name(name) not in plain:
            alike.append(f"{meant[common[0]]} ~ {name} ({', '.join(net.words(common[0]))})")
    if alike:
        message = f"{len(alike):,} class names of the OOD set mean what an ID class name may mean, says WordNet"
        yield Finding("warning", "synonyms", pair, message, len(alike), first_examples(alike))
