"""Checks that the sets of a run share no images, and that calibration images have the classes of the ID set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oodbench.data.calibration import check_classes
from oodbench.data.imageset import ContainerSource, ImageSet
from oodbench.data.loaders.tar import TarSource
from oodbench.errors import UserError, raise_all


def check_folders(id_set: ImageSet, ood: Sequence[ImageSet]) -> None:
    """Raise UserError if ID and OOD share images, or if two OOD sets are the same folder."""
    problems = []
    home = id_set.folder.resolve()
    seen: dict[Path, list[ImageSet]] = {}
    for images in ood:
        name, folder = images.dataset.name, images.folder.resolve()
        if images.dataset.loader == "glyphs" or name == id_set.dataset.name:
            continue
        if id_set.dataset.loader != "glyphs" and _nested(id_set, images) and _share_images(id_set, images):
            problems.append(
                f"'{id_set.dataset.name}' and '{name}' share images: {folder} is, contains or is inside {home}; "
                "ID and OOD must differ"
            )
        same_folder = seen.setdefault(folder, [])
        first = next((o for o in same_folder if o.dataset.name != name and _share_images(o, images)), None)
        if first:
            problems.append(f"'{first.dataset.name}' and '{name}' are one folder, {folder}; name one of them")
        same_folder.append(images)
    raise_all(problems)


def check_calibration(id_set: ImageSet, calibration: ImageSet) -> None:
    """Raise UserError if calibration images are images of the ID set, or have other classes."""
    if id_set.dataset.loader != "glyphs" and _nested(id_set, calibration) and _share_images(id_set, calibration):
        raise UserError(
            f"'{id_set.dataset.name}' and its calibration images '{calibration.dataset.name}' share images: "
            "methods that calibrate would have seen their test images"
        )
    check_classes(id_set, calibration)


def _nested(a: ImageSet, b: ImageSet) -> bool:
    """Return whether a folder of one set equals, contains or is inside a folder of the other."""
    pairs = [(x, y) for x in _folders(a) for y in _folders(b)]
    return any(x == y or x in y.parents or y in x.parents for x, y in pairs)


def _folders(images: ImageSet) -> set[Path]:
    """Return the folders or archives that hold the images."""
    if images.dataset.loader == "union":
        return set().union(*(_folders(origin.source) for origin in images.origins))
    if isinstance(images.source, TarSource):
        return {path.resolve() for path in {path for path, _ in images.source.where.values()}}
    return {images.folder.resolve()}


def _share_images(a: ImageSet, b: ImageSet) -> bool:
    """Return whether two sets in one place share images.

    Sets that are folders contain all images below them; images of other sets are compared by location.
    """
    if not any(
        images.dataset.loader in ("part", "union", "list") or isinstance(images.source, ContainerSource)
        for images in (a, b)
    ):
        return True
    return not _locations(a).isdisjoint(_locations(b))


def _locations(images: ImageSet) -> set[str]:
    """Return the location of each image, in the same form for every set."""
    if images.dataset.loader == "union":
        return set().union(*(_locations(origin.source) for origin in images.origins))
    if isinstance(images.source, ContainerSource):
        return {images.source.location(name) for name in images.names}
    return {str(images.folder.resolve() / name) for name in images.names}
