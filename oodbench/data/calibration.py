"""ID training images that methods calibrate on: the number drawn, and their classes in the ID set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench.data import prompts
from oodbench.data.catalog import Dataset
from oodbench.data.load import LoadOptions, identified, load_images
from oodbench.data.loaders.layout import first_few, tokenizer_text
from oodbench.errors import UserError

if TYPE_CHECKING:
    from oodbench.data.imageset import ImageSet

CALIBRATION_LIMIT = 50_000  # default number of training images that methods calibrate on


@dataclass(frozen=True)
class Draw:
    """Which images of a training split methods calibrate on.

    limit      maximum number, drawn with `seed`; None takes all
    shots      number per class for the methods that read labels, drawn with `shot_seed`; None: as for the others
    """

    limit: int | None = CALIBRATION_LIMIT
    seed: int = 0
    shots: int | None = None
    shot_seed: int = 0


@dataclass(frozen=True)
class CalibrationImages:
    """The images that methods calibrate on; `labelled` are those for methods that read labels.

    The labels of `labelled` are indices into the classes of the ID set. Both have the same images without `shots`.
    """

    unlabelled: ImageSet | None = None
    labelled: ImageSet | None = None


def load_split(dataset: Dataset, options: LoadOptions) -> ImageSet:
    """List all images of a training split, identified by names and times until some are drawn."""
    partial = options.allow_partial or options.limit is not None
    local = replace(options, strict=False, store=options.store.local(), limit=None, allow_partial=partial)
    return load_images(dataset, local, labelled=True)


def draw(split: ImageSet, options: LoadOptions, how: Draw) -> ImageSet:
    """Return the images of a split that methods without labels calibrate on."""
    drawn = split.limit(options.limit).sample(len(split) if how.limit is None else how.limit, how.seed)
    return identified(drawn, options.store, strict=options.strict)


def draw_labelled(split: ImageSet, id_set: ImageSet, options: LoadOptions, how: Draw) -> ImageSet:
    """Return the images of a split that methods with labels calibrate on; labels are classes of the ID set.

    Raises UserError unless the split has the classes of the ID set, and an image of each (or `shots` images).
    """
    index = class_indices(id_set, split)
    split = replace(split, labels=index[split.labels], folders=id_set.folders, named=id_set.named)
    if how.shots is not None:
        drawn = identified(draw_shots(split, how.shots, how.shot_seed), options.store, strict=options.strict)
    else:
        drawn = draw(split, options, how)
    counts = np.bincount(drawn.labels, minlength=len(id_set.folders))
    if empty := [folder for folder, n in zip(id_set.folders, counts, strict=True) if not n]:
        raise UserError(
            f"{len(empty):,} of {len(counts):,} classes have no image among the {len(drawn):,} calibration images of "
            f"'{split.dataset.name}': {first_few(empty)}; use more images (--calibration-limit all, no --limit), or "
            "--shots 2"
        )
    return drawn


def draw_shots(split: ImageSet, shots: int, seed: int) -> ImageSet:
    """Return `shots` images of each class, in the order of the split.

    They have the smallest sha256 of seed and name. The choice is therefore the same on every machine, does not depend
    on other images, and is nested: 16 shots contain the 8 shots. An image that is listed twice counts once. Raises
    UserError for a class with fewer images.
    """
    ranked = sorted(
        {name: row for row, name in reversed(list(enumerate(split.names)))}.items(),
        key=lambda item: hashlib.sha256(f"{seed} {item[0]}".encode("utf-8", "surrogatepass")).digest(),
    )
    rows: list[list[int]] = [[] for _ in split.folders]
    for _, row in ranked:
        rows[split.labels[row]].append(row)
    few = [f"{folder} ({len(own)})" for folder, own in zip(split.folders, rows, strict=True) if len(own) < shots]
    if few:
        raise UserError(
            f"--shots {shots} needs {shots} images of each class, but {len(few):,} of {len(rows):,} classes of "
            f"'{split.dataset.name}' have fewer: {first_few(few)}; use fewer shots, or complete the set"
        )
    return split.select(sorted(row for own in rows for row in own[:shots]))


def check_classes(id_set: ImageSet, calibration: ImageSet) -> None:
    """Raise UserError unless calibration images have the classes of the ID set."""
    ours, theirs = id_set.folders, calibration.folders
    numbered = any(all(one.isdecimal() for one in folders) for folders in (ours, theirs))
    if len(ours) == len(theirs) and (ours == theirs or numbered or id_set.named or calibration.named):
        return
    raise _other_classes(id_set, calibration)


def class_indices(id_set: ImageSet, calibration: ImageSet) -> npt.NDArray[np.int64]:
    """Return the ID set's class index [k] of each class of the calibration images.

    Classes match if their names or folders do (`Apple pie` is `apple_pie`), in any order, or by number if one of the
    sets has only numbers. Raises UserError with the classes that differ.
    """
    for ours in (_names(id_set), id_set.folders):
        for theirs in (_names(calibration), calibration.folders):
            if not ours or not theirs or _numbers(ours) or _numbers(theirs):
                continue
            if ours == theirs:  # also for names that occur twice
                return np.arange(len(ours))
            number = {_key(name): i for i, name in enumerate(ours)}
            if len(number) == len(ours) == len(theirs) and set(map(_key, theirs)) == set(number):
                return np.array([number[_key(name)] for name in theirs])
    pairs = ((id_set, calibration), (calibration, id_set))
    if len(id_set.folders) == len(calibration.folders) and any(_by_number(*pair) for pair in pairs):
        return np.arange(len(id_set.folders))
    raise _other_classes(id_set, calibration)


def _names(images: ImageSet) -> Sequence[str]:
    """Return the class names of a set: its own, or those of its class list."""
    return images.named or (prompts.class_names(images.dataset.classes).lines if images.dataset.classes else ())


def _numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _by_number(one: ImageSet, other: ImageSet) -> bool:
    """Return whether the classes of one set are only numbers, or numbers in the order of the other's WordNet ids."""
    wordnet = all(re.fullmatch(r"n\d{8}", folder) for folder in other.folders)
    if _numbers(one.folders) and _numbers(other.folders):
        first, second = ([int(folder) for folder in images.folders] for images in (one, other))
        counted = all(numbers == list(range(numbers[0], numbers[0] + len(numbers))) for numbers in (first, second))
        if first != second and not (counted and first[0] < 2 and second[0] < 2):  # 0 to k-1 and 1 to k are equivalent
            return False
    return _numbers(one.folders) and (wordnet or not _names(one) or _numbers(_names(one)))


def _key(name: str) -> str:
    """Return the normal form of a class name, equal for all its spellings."""
    return tokenizer_text(name.replace("_", " ").replace("-", " ").replace("/", " "))


def _other_classes(id_set: ImageSet, calibration: ImageSet) -> UserError:
    ours, theirs = (one.named if one.named and _numbers(one.folders) else one.folders for one in (id_set, calibration))
    lacking, more = (sorted(set(a) - set(b)) for a, b in ((ours, theirs), (theirs, ours)))
    differences = [f"lacks {first_few(lacking)}"] if lacking else []
    differences += [f"also has {first_few(more)}"] if more else []
    return UserError(
        f"calibration images '{calibration.dataset.name}' have other classes than '{id_set.dataset.name}': "
        f"{len(theirs)} instead of {len(ours)}{''.join(f'; it {one}' for one in differences)}"
    )
