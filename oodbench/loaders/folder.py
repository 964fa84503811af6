"""Images as files below a folder: one folder per class, or any nesting without classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.loaders.items import EXTENSIONS, Files, Items, empty, missing
from oodbench.loaders.prints import stat_print


def items(dataset: Dataset, data: Path, labelled: bool) -> Items:
    """Every image below the folder, sorted by path; labelled, the sorted top folders are the classes.

    UserError when the folder is missing, empty or cannot be read, or (labelled) an image lies in no class folder.
    """
    folder = dataset.folder(data)
    if not folder.is_dir():
        raise missing(dataset, folder)
    try:
        files = sorted(_walk(folder, "", ()))
    except OSError as error:
        raise UserError(
            f"dataset '{dataset.name}': {error.filename or folder} cannot be read: {error.strerror}"
        ) from error
    if not files:
        raise empty(dataset, folder)
    labels = np.full(len(files), -1)
    folders: tuple[str, ...] = ()
    if labelled:
        tops = [name.partition("/")[0] if "/" in name else "" for name, _ in files]
        if "" in tops:
            raise UserError(
                f"dataset '{dataset.name}': an ID set needs one folder per class, "
                f"but {folder / files[tops.index('')][0]} lies in none"
            )
        folders = ordered(set(tops))
        index = {name: i for i, name in enumerate(folders)}
        labels = np.array([index[top] for top in tops])
    names, prints = (tuple(column) for column in zip(*files, strict=True))
    return Items(folder, names, prints, labels, Files(folder), folders)


def ordered(folders: set[str]) -> tuple[str, ...]:
    """Class folders in label order: sorted, by value when all are numbers (ImageNet-V2's are 0 to 999)."""
    return tuple(sorted(folders, key=int if all(f.isdecimal() for f in folders) else None))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> list[tuple[str, str]]:
    """(name, print) of every image. `above`: the folders on the way here, so that a link to one is left out."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return []
    found: list[tuple[str, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and (entry.is_file() or entry.is_symlink()):
                found.append((prefix + entry.name, stat_print(entry.stat())))  # raises for a link to nothing
    return found
