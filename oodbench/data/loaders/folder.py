"""Image files below a folder: one folder per class, or any nesting without classes."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, empty_error, folder_classes, missing_error
from oodbench.data.loaders.layout import Classes, ignored_remarks, is_annotation, is_hidden, is_image, repeated_remarks
from oodbench.errors import UserError
from oodbench.storage.files import irregular
from oodbench.storage.fingerprints import stat_fingerprint


@dataclass
class _Contents:
    """The contents of a folder: images as (name, fingerprint), other files, FIFOs and devices, and folders."""

    images: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    files: array[int] = field(default_factory=lambda: array("Q"))  # device and inode of every image

    def repeated(self) -> list[tuple[str, str]]:
        """Return (name, other name) of images that are the same file, through links to files or folders."""
        devices, inodes = np.array(self.files, np.uint64).reshape(-1, 2).T
        order = np.lexsort((devices, inodes))
        same = (np.diff(devices[order]) == 0) & (np.diff(inodes[order]) == 0) & (inodes[order][1:] > 0)
        pairs = (sorted(self.images[order[i + k]][0] for k in (0, 1)) for i in np.flatnonzero(same))
        return sorted((name, other) for other, name in pairs)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List every image below the folder, sorted by path; if labelled, with the classes of `layout.classes_by_folder`.

    Raise UserError if the folder is missing, empty or unreadable, or (labelled) if an image is not in a class folder.
    """
    folder = dataset.folder(data)
    if not folder.is_dir():
        raise missing_error(dataset, folder)
    contents = _Contents()
    try:
        _walk(folder, "", (), contents)
    except OSError as error:
        raise UserError(
            f"dataset '{dataset.name}': {error.filename or folder} cannot be read: {error.strerror}"
        ) from error
    if not contents.images:
        raise empty_error(dataset, folder, contents.others)
    names, fingerprints = (tuple(column) for column in zip(*sorted(contents.images), strict=True))
    classes = Classes(np.full(len(names), -1), ())
    if labelled:
        classes = folder_classes(dataset, folder, names, contents.others, contents.folders)
    remarks = (
        *ignored_remarks(contents.others, contents.irregular),
        *repeated_remarks(contents.repeated()),
        *classes.remarks,
    )
    return ImageSet(dataset, folder, names, fingerprints, classes.labels, classes.folders, remarks=remarks)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], contents: _Contents) -> None:
    """Add the contents of a folder. `above` are its parents; links to them are skipped."""
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
                contents.folders.append(name)
                _walk(Path(entry.path), f"{name}/", (*above, here), contents)
            elif is_image(name):
                stat = entry.stat()  # raises OSError for a broken link
                if irregular(stat.st_mode):
                    contents.irregular.append(name)
                else:
                    contents.images.append((name, stat_fingerprint(stat)))
                    contents.files.extend((stat.st_dev, stat.st_ino))
            else:
                if entry.is_symlink() and not is_annotation(name):
                    entry.stat()  # raises OSError for a broken link, which may have been a class folder
                contents.others.append(name)
