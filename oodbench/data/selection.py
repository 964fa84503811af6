"""What a part keeps of a set: the images that a list names, or the classes that a dataset declares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from oodbench.data.imageset import Listing
from oodbench.data.lines import lines
from oodbench.data.loaders.imagelist import ImageList
from oodbench.errors import Missing, UserError, did_you_mean

if TYPE_CHECKING:
    from oodbench.data.catalog import Dataset


def positions(dataset: Dataset, whole: Listing, wanted: ImageList) -> list[int | None]:
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


def classes(dataset: Dataset, whole: Listing, data: Path) -> list[int]:
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


def _range(dataset: Dataset, whole: Listing, first: str, last: str) -> range:
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
