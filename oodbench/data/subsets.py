"""Sets made of other sets: a part of one (by image list or by classes), or several as one.

Their images are those of their origins, at known positions: embeddings are taken from what is stored for the origins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from oodbench.data import prompts
from oodbench.data.imageset import ImageSet, SubsetOf, empty, keys_of, unlabelled
from oodbench.data.loaders.imagelist import ImageList, declared_list
from oodbench.data.loaders.layout import Remark
from oodbench.data.prompts import lines
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.fingerprints import ReadImage

if TYPE_CHECKING:
    from oodbench.data.catalog import Dataset


def positions_of(dataset: Dataset, whole: ImageSet, wanted: ImageList) -> list[int | None]:
    """Where each name of a list is in the whole; None: not there.

    A name of the list ends with all of an image's name below its root, whichever images are there. Where no name does,
    the paths start elsewhere (ImageNet's lists know no class folders): then the image's name ends with all that
    differs among the folders of the list.
    """
    known = {name: i for i, name in enumerate(whole.names)}
    parts = [PurePosixPath(name).parts for name in wanted.names]
    found = [next((known[t] for k in range(len(p)) if (t := "/".join(p[k:])) in known), None) for p in parts]
    if any(position is not None for position in found):
        return found
    least, most = min(p[:-1] for p in parts), max(p[:-1] for p in parts)
    shared = next((k for k, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    tails = ["/".join(p[shared:]) for p in parts]
    depths = {len(p) - shared for p in parts}
    ends: dict[str, int] = {}
    unclear: set[str] = set()
    for name, i in known.items():
        path = PurePosixPath(name).parts
        for end in ("/".join(path[-depth:]) for depth in depths if depth <= len(path)):
            if ends.setdefault(end, i) != i:
                unclear.add(end)
    if not unclear.isdisjoint(tails):
        raise UserError(
            f"dataset '{dataset.name}': files of '{whole.dataset.name}' share names; a list cannot tell them"
        )
    return [ends.get(tail) for tail in tails]


def classes(dataset: Dataset, whole: ImageSet, data: Path) -> list[int]:
    """Class numbers of the whole that a part keeps, in the part's label order."""
    wanted = list(dataset.keep)
    if dataset.keep_file:
        path = data / dataset.keep_file
        if not path.is_file():
            raise Missing(f"dataset '{dataset.name}': its class file {path} is not there\n  {dataset.obtain}")
        try:
            wanted += [line.split()[0] for line in lines(path.read_text(encoding="utf-8-sig")) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"dataset '{dataset.name}': its class file {path} cannot be read: {error}") from error
    others = wanted[:1] == ["!"]
    numbers: list[int] = []
    for one in wanted[1:] if others else wanted:
        first, dash, last = one.partition("-")
        if one in whole.folders:
            numbers.append(whole.folders.index(one))
        elif first.isdecimal() and (last.isdecimal() if dash else True):
            numbers += _range(dataset, whole, first, last) if dash else [int(first)]
        else:
            raise UserError(
                f"dataset '{dataset.name}': '{whole.dataset.name}' has no class {one}{did_you_mean(one, whole.folders)}"
            )
    wrong = [n for n in numbers if n >= len(whole.folders)]
    if wrong:
        raise UserError(
            f"dataset '{dataset.name}': '{whole.dataset.name}' has no class {wrong[0]}, it has {len(whole.folders)}"
        )
    twice = [n for n, times in Counter(numbers).items() if times > 1]
    if twice:
        raise UserError(f"dataset '{dataset.name}': class {twice[0]} of '{whole.dataset.name}' is named twice")
    return [n for n in range(len(whole.folders)) if n not in set(numbers)] if others else numbers


def _range(dataset: Dataset, whole: ImageSet, first: str, last: str) -> range:
    """Class numbers from one to another; both are class folders where these are numbers, as single classes are."""
    folders = [end in whole.folders for end in (first, last)]
    if any(folders) and not all(folders):
        lacking = last if folders[0] else first
        raise UserError(f"dataset '{dataset.name}': '{whole.dataset.name}' has no class folder {lacking}")
    start, end = (whole.folders.index(one) if folders[0] else int(one) for one in (first, last))
    if start > end:
        raise UserError(
            f"dataset '{dataset.name}': {first}-{last} is no range of classes; the first comes after the last"
        )
    return range(start, end + 1)


def part(dataset: Dataset, whole: ImageSet, data: Path, labelled: bool) -> ImageSet:
    """Some images of a set: those of an image list, in its order, or those of the classes kept, in the set's order.

    UserError when a class is not there, when labels of list and folders differ, or when nothing is left.
    """
    if dataset.list:
        return _by_list(dataset, whole, declared_list(dataset, data), labelled)
    chosen = classes(dataset, whole, data)
    place = {label: i for i, label in enumerate(chosen)}
    positions = np.flatnonzero(np.isin(whole.labels, chosen))
    if not len(positions):
        raise empty(dataset, f"{whole.folder}, in the classes kept,")
    labels = np.array([place[int(label)] for label in whole.labels[positions]])
    names = prompts.class_names(whole.dataset.classes).lines if whole.dataset.classes else whole.named
    named = tuple(names[i] for i in chosen) if len(names) == len(whole.folders) else ()
    return replace(
        whole.select(positions),
        dataset=dataset,
        labels=labels if labelled else np.full(len(positions), -1),
        folders=tuple(whole.folders[i] for i in chosen) if labelled else (),
        named=named if labelled else (),
        total=len(positions),
        remarks=_of_images(whole),
        origins=(SubsetOf(whole, np.arange(len(positions)), positions),),
    )


def union(dataset: Dataset, parts: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one, in order. UserError when they are labelled by different numbers of classes."""
    widths = {len(one.folders) for one in parts}
    if len(widths) > 1:
        counts = ", ".join(f"{one.dataset.name} {len(one.folders)}" for one in parts)
        raise UserError(f"dataset '{dataset.name}': its parts differ in classes: {counts}")
    starts = np.cumsum([0, *(len(one) for one in parts)])
    names = [f"{one.dataset.name}/{name}" for one in parts for name in one.names]
    return ImageSet(
        dataset,
        parts[0].folder,
        tuple(names),
        tuple(text for one in parts for text in one.prints),
        np.concatenate([one.labels for one in parts]),
        parts[0].folders,
        len(names),
        content=all(one.content for one in parts),
        source=Several({one.dataset.name: one for one in parts}),
        named=parts[0].named,
        absent=tuple(f"{one.dataset.name}/{name}" for one in parts for name in one.absent),
        remarks=tuple(remark for one in parts for remark in one.remarks),
        origins=tuple(
            SubsetOf(one, np.arange(start, start + len(one)), np.arange(len(one)))
            for one, start in zip(parts, starts, strict=False)
        ),
    )


class Several:
    """Reads `set/name` from the set."""

    def __init__(self, parts: dict[str, ImageSet]) -> None:
        self.parts = parts

    def _found(self, name: str) -> tuple[ImageSet, str]:
        first = next(one for one in self.parts if name.startswith(f"{one}/"))
        return self.parts[first], name[len(first) + 1 :]

    def take(self, name: str) -> ReadImage:
        """Read an image of one of the sets."""
        listing, inner = self._found(name)
        return listing.reader.take(inner)

    def content(self, name: str) -> str:
        """sha256 of an image of one of the sets."""
        listing, inner = self._found(name)
        return listing.reader.content(inner)


def _by_list(dataset: Dataset, whole: ImageSet, wanted: ImageList, labelled: bool) -> ImageSet:
    """The images of a set that a list names, wherever the list's paths start from."""
    found = positions_of(dataset, whole, wanted)
    twice = [position for position, times in Counter(found).items() if position is not None and times > 1]
    if twice:
        one, other = [name for name, position in zip(wanted.names, found, strict=True) if position == twice[0]][:2]
        raise UserError(
            f"dataset '{dataset.name}': {wanted.path} names {whole.names[twice[0]]} of '{whole.dataset.name}' twice: "
            f"as {one} and as {other}"
        )
    kept = [i for i, position in enumerate(found) if position is not None]
    positions = np.array([position for position in found if position is not None], np.int64)
    absent = tuple(name for name, position in zip(wanted.names, found, strict=True) if position is None)
    if not kept:
        raise empty(dataset, f"{whole.folder} with the names of {wanted.path}, such as {absent[0]}:")
    labels = wanted.labels[kept]
    if labelled and (labels < 0).any():
        raise unlabelled(dataset, wanted.path, wanted.names[kept[int((labels < 0).argmax())]])
    own = bool(labelled and dataset.classes)  # then the list's labels count, else they must be the folders'
    if labelled and not own and (labels != whole.labels[positions]).any():
        first = int((labels != whole.labels[positions]).argmax())
        raise UserError(
            f"dataset '{dataset.name}': {wanted.path} gives {wanted.names[kept[first]]} the label {labels[first]}, its "
            f"folder in {whole.folder} is number {whole.labels[positions[first]]}; is a class folder missing?"
        )
    return replace(
        whole.select(positions),
        dataset=dataset,
        labels=labels if labelled else np.full(len(kept), -1),
        folders=keys_of(dataset, wanted.labels, wanted.path) if own else whole.folders,
        named=() if own else whole.named,
        total=len(kept),
        absent=absent,
        remarks=_of_images(whole),
        origins=(SubsetOf(whole, np.arange(len(kept)), positions),),
    )


def _of_images(whole: ImageSet) -> tuple[Remark, ...]:
    """The remarks that hold for a part, too: which of the classes have no image is asked anew."""
    return tuple(remark for remark in whole.remarks if remark.kind != "empty-class")
