"""The image sets of a request: found, counted, named, and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.data import catalog as catalogue
from oodbench.data import decode, prompts
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import CALIBRATION_LIMIT, ImageSet, Placed, listing
from oodbench.data.loaders.layout import same_prompts
from oodbench.data.loaders.tar import Archives
from oodbench.data.prompts import TextList
from oodbench.errors import UserError, raise_all
from oodbench.pipeline.request import RunRequest
from oodbench.storage.store import Store


def listed(dataset: Dataset, request: RunRequest, labelled: bool, store: Store) -> ImageSet:
    """The images of a set, as many as the catalogue counts unless the request allows for less."""
    data = catalogue.data_root(request.data)
    found = listing(dataset, data, labelled=labelled, strict=request.strict, store=store, limit=request.limit)
    if dataset.count not in (None, found.total) and not request.allow_partial and request.limit is None:
        fewer = found.total < (dataset.count or 0)
        todo = "complete it, or run on what is there" if fewer else "take away what is not of it, or run on it all"
        lacking = f" ({found.absent[0]} is not there)" if found.absent else ""
        raise UserError(
            f"dataset '{dataset.name}': {found.folder} holds {found.total} images, the catalogue counts "
            f"{dataset.count}{lacking}; {todo} with --allow-partial"
        )
    return found


def listed_sample(dataset: Dataset, request: RunRequest, store: Store) -> ImageSet:
    """ID training images to calibrate on: at most CALIBRATION_LIMIT, drawn with the run's seed."""
    whole = listed(dataset, replace(request, strict=False), True, store)
    drawn = whole.sample(CALIBRATION_LIMIT, request.seed)
    return drawn.by_content() if request.strict else drawn


def class_names(id_set: ImageSet) -> TextList:
    """The class names of an ID set: a list as long as its class folders, or the folders' own names."""
    named = id_set.dataset.classes
    if not named and id_set.named:
        return TextList(f"of {id_set.dataset.like or id_set.dataset.within or 'the source'}", id_set.named)
    if not named and id_set.dataset.loader not in ("classes", "glyphs") and all(f.isdecimal() for f in id_set.folders):
        raise UserError(
            f"dataset '{id_set.dataset.name}': its {len(id_set.folders)} classes are numbers; name them in that order "
            "with --classes FILE, one name a line"
        )
    if not named:
        return TextList("folders", tuple(folder.replace("_", " ") for folder in id_set.folders))
    lines = prompts.class_names(named)
    if len(lines.lines) != len(id_set.folders):
        raise UserError(
            f"dataset '{id_set.dataset.name}': class list '{named}' has {len(lines.lines)} names, "
            f"{id_set.folder if id_set.folder.name else 'it'} has {len(id_set.folders)} classes; "
            "name them in that order with --classes FILE, one name a line"
            + "".join(f"; {one.message}" for one in id_set.remarks if one.kind == "empty-class")
        )
    return lines


def notes(found: ImageSet, classes: TextList | None = None) -> list[str]:
    """What may mislead about a set, one sentence each; with `classes` that of an ID set's class names, too.

    Looks at the first few images. The names of shipped class lists are those of their protocols.
    """
    seen = list(found.remarks)
    if found.dataset.loader != "glyphs":
        seen += decode.glance(found)
    if classes and classes.name not in prompts.names("classes"):
        seen += same_prompts(classes.lines)
    return [f"{found.dataset.name}: {one.message}" for one in seen]


def check_folders(id_set: ImageSet, ood: Sequence[ImageSet]) -> None:
    """Two sets in one folder, or ID and OOD one inside the other, would share images."""
    problems = []
    home = id_set.folder.resolve()
    seen: dict[Path, list[ImageSet]] = {}
    for one in ood:
        name, other = one.dataset.name, one.folder.resolve()
        if one.dataset.loader == "glyphs" or name == id_set.dataset.name:
            continue
        if id_set.dataset.loader != "glyphs" and _near(id_set, one) and _share(id_set, one):
            problems.append(
                f"'{id_set.dataset.name}' and '{name}' share images: {other} is, holds or lies in {home}; "
                "ID and OOD must differ"
            )
        before = seen.setdefault(other, [])
        first = next((two for two in before if two.dataset.name != name and _share(two, one)), None)
        if first:
            problems.append(f"'{first.dataset.name}' and '{name}' are one folder, {other}; name one of them")
        before.append(one)
    raise_all(problems)


def _near(one: ImageSet, other: ImageSet) -> bool:
    """Whether folders of two sets are one, or one inside the other."""
    pairs = [(a, b) for a in _folders(one) for b in _folders(other)]
    return any(a == b or a in b.parents or b in a.parents for a, b in pairs)


def _folders(listing: ImageSet) -> set[Path]:
    if listing.dataset.loader == "union":
        return set().union(*(_folders(one.listing) for one in listing.origins))
    if isinstance(listing.source, Archives):
        return {path.resolve() for path in {path for path, _ in listing.source.where.values()}}
    return {listing.folder.resolve()}


def _share(one: ImageSet, other: ImageSet) -> bool:
    """Whether two sets in one place share images: folders hold all in them, all others are compared by name."""
    if not any(
        two.dataset.loader in ("part", "union", "list") or isinstance(two.source, Placed) for two in (one, other)
    ):
        return True
    return not _images(one).isdisjoint(_images(other))


def _images(listing: ImageSet) -> set[str]:
    """The paths of a list's images, under the same names whichever list they are in."""
    if listing.dataset.loader == "union":
        return set().union(*(_images(one.listing) for one in listing.origins))
    if isinstance(listing.source, Placed):
        return {listing.source.place(name) for name in listing.names}
    return {str(listing.folder.resolve() / name) for name in listing.names}
