"""Images as files below a folder: one folder per class, or any nesting without classes."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, empty_error, folder_classes, missing_error
from oodbench.data.loaders.layout import Classes, is_beside, is_hidden, is_image, left_out, twice
from oodbench.errors import UserError
from oodbench.storage.files import irregular
from oodbench.storage.fingerprints import stat_fingerprint


@dataclass
class _Found:
    """What lies below a folder: images as (name, print), other files, what is no file, and folders."""

    images: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    files: array[int] = field(default_factory=lambda: array("Q"))  # device and inode of every image

    def again(self) -> list[tuple[str, str]]:
        """(name, other name) of images that are one file: links, or below a folder that is a link."""
        devices, inodes = np.array(self.files, np.uint64).reshape(-1, 2).T
        order = np.lexsort((devices, inodes))
        same = (np.diff(devices[order]) == 0) & (np.diff(inodes[order]) == 0) & (inodes[order][1:] > 0)
        pairs = (sorted(self.images[order[i + k]][0] for k in (0, 1)) for i in np.flatnonzero(same))
        return sorted((name, other) for other, name in pairs)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """Every image below the folder, sorted by path; labelled, with the classes of `layout.by_folder`.

    UserError when the folder is missing, empty or cannot be read, or (labelled) an image lies in no class folder.
    """
    folder = dataset.folder(data)
    if not folder.is_dir():
        raise missing_error(dataset, folder)
    found = _Found()
    try:
        _walk(folder, "", (), found)
    except OSError as error:
        raise UserError(
            f"dataset '{dataset.name}': {error.filename or folder} cannot be read: {error.strerror}"
        ) from error
    if not found.images:
        raise empty_error(dataset, folder, found.others)
    names, prints = (tuple(column) for column in zip(*sorted(found.images), strict=True))
    classes = Classes(np.full(len(names), -1), ())
    if labelled:
        classes = folder_classes(dataset, folder, names, found.others, found.folders)
    remarks = (*left_out(found.others, found.irregular), *twice(found.again()), *classes.remarks)
    return ImageSet(dataset, folder, names, prints, classes.labels, classes.folders, remarks=remarks)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], found: _Found) -> None:
    """Add what lies below a folder. `above`: the folders on the way here, so that a link to one is left out."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                found.folders.append(name)
                _walk(Path(entry.path), f"{name}/", (*above, here), found)
            elif is_image(name):
                stat = entry.stat()  # raises for a link to nothing
                if irregular(stat.st_mode):
                    found.irregular.append(name)
                else:
                    found.images.append((name, stat_fingerprint(stat)))
                    found.files.extend((stat.st_dev, stat.st_ino))
            else:
                if entry.is_symlink() and not is_beside(name):
                    entry.stat()  # the same: it may have been a class folder
                found.others.append(name)
