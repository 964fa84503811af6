"""Image sets derived from others: a subset of one (by image list or by classes), or the union of several.

A derived set records the source rows of its images, so that stored embeddings of the sources can be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from oodbench.data import prompts
from oodbench.data.imageset import ImageSet, SubsetOf, class_keys, empty_error, unlabelled_error
from oodbench.data.loaders.imagelist import ImageList, declared_list
from oodbench.data.loaders.layout import Remark
from oodbench.data.prompts import split_lines
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.fingerprints import ReadImage

if TYPE_CHECKING:
    from oodbench.data.catalog import Dataset


def subset(dataset: Dataset, source: ImageSet, data_root: Path, labelled: bool) -> ImageSet:
    """Return the images of `source` in an image list, in the list's order, or those of the classes kept.

    Raises UserError if a class does not exist, if labels of list and folders differ, or if no image is left.
    """
    if dataset.list:
        return _by_list(dataset, source, declared_list(dataset, data_root), labelled)
    return _by_classes(dataset, source, data_root, labelled)


def union(dataset: Dataset, parts: Sequence[ImageSet]) -> ImageSet:
    """Return several sets as one, in order. Raises UserError if they have different numbers of classes."""
    if len({len(part.folders) for part in parts}) > 1:
        counts = ", ".join(f"{part.dataset.name} {len(part.folders)}" for part in parts)
        raise UserError(f"dataset '{dataset.name}': its parts differ in classes: {counts}")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return ImageSet(
        dataset,
        parts[0].folder,
        tuple(f"{part.dataset.name}/{name}" for part in parts for name in part.names),
        tuple(text for part in parts for text in part.fingerprints),
        np.concatenate([part.labels for part in parts]),
        parts[0].folders,
        content=all(part.content for part in parts),
        sizes=tuple(size for part in parts for size in part.portable) if any(part.sizes for part in parts) else (),
        source=UnionSource({part.dataset.name: part for part in parts}),
        named=parts[0].named,
        absent=tuple(f"{part.dataset.name}/{name}" for part in parts for name in part.absent),
        remarks=tuple(remark for part in parts for remark in part.remarks),
        origins=tuple(
            SubsetOf(part, np.arange(start, start + len(part)), np.arange(len(part)))
            for part, start in zip(parts, starts, strict=False)
        ),
    )


class UnionSource:
    """Reads the image `set/name` from the image set of that name."""

    def __init__(self, parts: dict[str, ImageSet]) -> None:
        self.parts = parts

    def read(self, name: str) -> ReadImage:
        """Read an image of one of the sets."""
        part, inner = self._part(name)
        return part.reader.read(inner)

    def content(self, name: str) -> str:
        """Return the sha256 of an image of one of the sets."""
        part, inner = self._part(name)
        return part.reader.content(inner)

    def _part(self, name: str) -> tuple[ImageSet, str]:
        first = next(part for part in self.parts if name.startswith(f"{part}/"))
        return self.parts[first], name[len(first) + 1 :]


def _by_classes(dataset: Dataset, source: ImageSet, data_root: Path, labelled: bool) -> ImageSet:
    """Return the images of the classes that a subset keeps, in the source's order."""
    kept = kept_classes(dataset, source, data_root)
    new_label = {label: i for i, label in enumerate(kept)}
    rows = np.flatnonzero(np.isin(source.labels, kept))
    if not len(rows):
        raise empty_error(dataset, f"{source.folder}, in the classes kept,")
    labels = np.array([new_label[int(label)] for label in source.labels[rows]])
    names = prompts.class_names(source.dataset.classes).lines if source.dataset.classes else source.named
    named = tuple(names[i] for i in kept) if len(names) == len(source.folders) else ()
    return replace(
        source.select(rows),
        dataset=dataset,
        labels=labels if labelled else np.full(len(rows), -1),
        folders=tuple(source.folders[i] for i in kept) if labelled else (),
        named=named if labelled else (),
        total=len(rows),
        remarks=_remarks_on_images(source),
        origins=(SubsetOf(source, np.arange(len(rows)), rows),),
    )


def kept_classes(dataset: Dataset, source: ImageSet, data_root: Path) -> list[int]:
    """Return the class numbers of the source that a subset keeps, in the subset's label order."""
    wanted = list(dataset.keep)
    if dataset.keep_file:
        path = data_root / dataset.keep_file
        if not path.is_file():
            raise Missing(f"dataset '{dataset.name}': its class file {path} does not exist\n  {dataset.obtain}")
        try:
            wanted += [line.split()[0] for line in split_lines(path.read_text(encoding="utf-8-sig")) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"dataset '{dataset.name}': its class file {path} cannot be read: {error}") from error
    inverted = wanted[:1] == ["!"]
    numbers: list[int] = []
    for text in wanted[1:] if inverted else wanted:
        first, dash, last = text.partition("-")
        if text in source.folders:
            numbers.append(source.folders.index(text))
        elif first.isdecimal() and (last.isdecimal() if dash else True):
            numbers += _class_range(dataset, source, first, last) if dash else [int(first)]
        else:
            raise UserError(
                f"dataset '{dataset.name}': '{source.dataset.name}' has no class {text}"
                f"{did_you_mean(text, source.folders)}"
            )
    too_large = [n for n in numbers if n >= len(source.folders)]
    if too_large:
        raise UserError(
            f"dataset '{dataset.name}': '{source.dataset.name}' has no class {too_large[0]}, "
            f"it has {len(source.folders)}"
        )
    repeated = [n for n, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise UserError(f"dataset '{dataset.name}': class {repeated[0]} of '{source.dataset.name}' is named twice")
    return [n for n in range(len(source.folders)) if n not in set(numbers)] if inverted else numbers


def _class_range(dataset: Dataset, source: ImageSet, first: str, last: str) -> range:
    """Return the class numbers of `first-last`: class folders if these are numbers, else indices."""
    is_folder = [end in source.folders for end in (first, last)]
    if any(is_folder) and not all(is_folder):
        lacking = last if is_folder[0] else first
        raise UserError(f"dataset '{dataset.name}': '{source.dataset.name}' has no class folder {lacking}")
    start, end = (source.folders.index(text) if is_folder[0] else int(text) for text in (first, last))
    if start > end:
        raise UserError(
            f"dataset '{dataset.name}': {first}-{last} is not a range of classes: the first comes after the last"
        )
    return range(start, end + 1)


def _by_list(dataset: Dataset, source: ImageSet, image_list: ImageList, labelled: bool) -> ImageSet:
    """Return the images in a list; the root of the list's paths does not matter."""
    found = find_rows(dataset, source, image_list)
    repeated = [row for row, count in Counter(found).items() if row is not None and count > 1]
    if repeated:
        one, other = [name for name, row in zip(image_list.names, found, strict=True) if row == repeated[0]][:2]
        raise UserError(
            f"dataset '{dataset.name}': {image_list.path} names {source.names[repeated[0]]} of "
            f"'{source.dataset.name}' twice: as {one} and as {other}"
        )
    kept = [i for i, row in enumerate(found) if row is not None]
    rows = np.array([row for row in found if row is not None], np.int64)
    absent = tuple(name for name, row in zip(image_list.names, found, strict=True) if row is None)
    if not kept:
        raise empty_error(dataset, f"{source.folder} with the names of {image_list.path}, such as {absent[0]}:")
    labels = image_list.labels[kept]
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, image_list.path, image_list.names[kept[int((labels < 0).argmax())]])
    own_labels = bool(labelled and dataset.classes)  # else the list must have the labels of the folders
    if labelled and not own_labels and (labels != source.labels[rows]).any():
        first = int((labels != source.labels[rows]).argmax())
        raise UserError(
            f"dataset '{dataset.name}': {image_list.path} gives {image_list.names[kept[first]]} the label "
            f"{labels[first]}, its folder in {source.folder} is number {source.labels[rows[first]]}; "
            "is a class folder missing?"
        )
    return replace(
        source.select(rows),
        dataset=dataset,
        labels=labels if labelled else np.full(len(kept), -1),
        folders=class_keys(dataset, image_list.labels, image_list.path) if own_labels else source.folders,
        named=() if own_labels else source.named,
        total=len(kept),
        absent=absent,
        remarks=_remarks_on_images(source),
        origins=(SubsetOf(source, np.arange(len(kept)), rows),),
    )


def find_rows(dataset: Dataset, source: ImageSet, image_list: ImageList) -> list[int | None]:
    """Return the source row of each name in a list, None if the source has no such image.

    A name in the list ends with an image's complete path below the source's root. If no name does, the paths have
    another root (ImageNet's lists have no class folders): then the image's path ends with the part of the list's path
    in which the list's folders differ.
    """
    row_of = {name: i for i, name in enumerate(source.names)}
    parts = [PurePosixPath(name).parts for name in image_list.names]
    rows = [next((row_of[t] for k in range(len(p)) if (t := "/".join(p[k:])) in row_of), None) for p in parts]
    if any(row is not None for row in rows):
        return rows
    least, greatest = min(p[:-1] for p in parts), max(p[:-1] for p in parts)
    shared = next((k for k, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), len(least))
    tails = ["/".join(p[shared:]) for p in parts]
    depths = {len(p) - shared for p in parts}
    row_of_tail: dict[str, int] = {}
    ambiguous: set[str] = set()
    for name, i in row_of.items():
        path = PurePosixPath(name).parts
        for tail in ("/".join(path[-depth:]) for depth in depths if depth <= len(path)):
            if row_of_tail.setdefault(tail, i) != i:
                ambiguous.add(tail)
    if not ambiguous.isdisjoint(tails):
        raise UserError(
            f"dataset '{dataset.name}': files of '{source.dataset.name}' share names; a list cannot distinguish them"
        )
    return [row_of_tail.get(tail) for tail in tails]


def _remarks_on_images(source: ImageSet) -> tuple[Remark, ...]:
    """Return the remarks that also hold for a subset; the remark on empty classes is computed again."""
    return tuple(remark for remark in source.remarks if remark.kind != "empty-class")
