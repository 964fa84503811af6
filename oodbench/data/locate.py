"""Bind a declared set to a place, after listing its images there."""

from __future__ import annotations

from pathlib import Path

from oodbench.data import places
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import UserError
from oodbench.storage.store import Store, default_root


def check_place(dataset: Dataset, place: Path, data_root: Path, *, allow_partial: bool = False) -> ImageSet:
    """Bind a set to a place and return its images. Raises UserError, without binding it, for other images."""
    found = places.find_place(dataset, data_root, place).dataset
    if found is None:
        raise UserError(f"{place} has no images of '{dataset.name}'")
    options = LoadOptions(data_root, Store(default_root()), allow_partial=allow_partial)
    try:
        images = load_images(found, options, labelled=bool(dataset.classes))
    except UserError as error:
        raise UserError(f"{error}\n  '{dataset.name}' is not bound to {place}") from error
    places.bind(dataset.name, place)
    return images


def describe_place(dataset: Dataset, data_root: Path) -> list[str]:
    """Return the place where a run would read a set, and the places that were searched."""
    place = places.find_place(dataset, data_root)
    bound = " (bound)" if dataset.name in places.bindings() else ""
    used = place.dataset.folder(data_root) if place.dataset else None
    lines = [f"{dataset.name}: {used or 'not found'}{bound}"]
    lines += [f"the copy at {path} is not used" for path in place.others]
    return [
        *lines,
        "searched, in this order:",
        *(f"  {one}" for one in places.describe_looked(dataset, place, data_root)),
    ]
