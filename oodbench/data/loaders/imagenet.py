"""ImageNet-1k's validation images in class folders, flat, as the original archive, or as the Hub's parquet files.

File names identify the images, so all forms are the same set: names are `n01440764/ILSVRC2012_val_00000293.JPEG`, in
the order of class folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imagenet import image_name, image_number, validation_classes, wnids
from oodbench.data.imageset import ImageSet, RenamedSource, renamed
from oodbench.data.loaders import folder, parquet, tar
from oodbench.data.loaders.imagelist import read_list
from oodbench.data.loaders.layout import Remark, first_few
from oodbench.errors import Unlabelled, UserError
from oodbench.storage.archives import is_archive


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the images, sorted by class folder and name; without class folders, by the index of data/imagenet.py.

    Raise UserError if only some images are in class folders, if a file is not one of the images, or if val.txt or the
    labels of a table disagree.
    """
    path = dataset.folder(data)
    if path.is_file() and path.suffix == ".tar":
        images = tar.load(replace(dataset, loader="tar"), data, labelled=False)
    elif path.is_file() and is_archive(path.name):
        raise UserError(
            f"dataset '{dataset.name}': {path} is compressed and cannot be read in place; unpack it: "
            f"oodbench datasets get {dataset.name} --from {path}"
        )
    elif path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return _of_table(replace(dataset, loader="parquet", split=_split(path)), data, labelled)
    else:
        images = folder.load(replace(dataset, loader="images"), data, labelled=False)
        placed = {name.split("/")[-2] for name in images.names if "/" in name} & set(wnids())
        known = all(map(image_number, images.names))  # by file names, in folders with any other name
        if all("/" in name for name in images.names) and (placed or not known):
            return _all_classes(folder.load(replace(dataset, loader="classes"), data, labelled))
    return _with_truth(images, list(images.names), labelled)


def _all_classes(images: ImageSet) -> ImageSet:
    """Return images of class folders with all classes, some of which may be missing in a part of the set."""
    if not set(images.folders) <= set(wnids()):
        return images
    folders, where = _folders(), [(name.split("/")[-2], image_number(name)) for name in images.names]
    wrong = [name for name, (own, n) in zip(images.names, where, strict=True) if n and own != folders[n - 1]]
    if wrong:
        message = f"{len(wrong):,} validation images are in a wrong class folder: {first_few(wrong)}"
        images = replace(
            images, remarks=(*images.remarks, Remark("class-folders", message, len(wrong), tuple(wrong[:10])))
        )
    if not images.folders:
        return images
    number = np.array([wnids().index(folder) for folder in images.folders])
    return replace(images, labels=number[images.labels], folders=wnids())


def _split(path: Path) -> str:
    """Return the split in the file names of a folder; the Hub's folder has the training images, too."""
    return next((name for name in ("validation", "val") if any(path.glob(f"{name}*.parquet"))), "")


def _of_table(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """Return the rows of parquet files, identified by their file names; labels must match these."""
    images = parquet.load(dataset, data, labelled=True)
    assert isinstance(images.source, parquet.TableSource)
    stored = images.source.stored_names()
    if not any(stored):  # rows are then identified by class and number
        stored = [f"{wnids()[label]}/{name}" for name, label in zip(images.names, images.labels, strict=True)]
        found = replace(renamed(images, stored), folders=wnids(), named=())
        return found if labelled else replace(found, labels=np.full(len(found), -1), folders=())
    found = _with_truth(images, stored, labelled=True)
    assert isinstance(found.source, RenamedSource)
    own = images.labels[[int(row) for row in found.source.inner.values()]]
    if (found.labels != own).any():
        wrong = int((found.labels != own).argmax())
        raise UserError(
            f"dataset '{dataset.name}': {images.folder} labels {found.names[wrong]} as class {own[wrong]}, which is "
            f"class {found.labels[wrong]}: the labels must count the sorted class folders, from 0"
        )
    return found if labelled else replace(found, labels=np.full(len(found), -1), folders=())


def _folders() -> list[str]:
    """Return the class folder of every validation image [50000], in the order of file names."""
    return [wnids()[label] for label in validation_classes().tolist()]


def _check_list(images: ImageSet, folders: Sequence[str]) -> None:
    """Raise UserError if a val.txt in the image folder or next to it has a wrong class for one of the images."""
    for home in (images.folder, images.folder.parent):
        if (home / "val.txt").is_file():
            found = read_list(home / "val.txt")
            pairs = [(image_number(name), label) for name, label in zip(found.names, found.labels, strict=True)]
            wrong = [n for n, label in pairs if n and label >= 0 and wnids()[label : label + 1] != (folders[n - 1],)]
            if wrong:
                raise UserError(
                    f"dataset '{images.dataset.name}': {found.path} and the ground truth disagree on the class of "
                    f"{len(wrong):,} of {len(pairs):,} images, {image_name(wrong[0])} first: its numbers must count "
                    "the sorted class folders from 0. Move it away: the file names determine the classes"
                )


def _with_truth(images: ImageSet, files: list[str], labelled: bool) -> ImageSet:
    """Return images under the class folders of their file names."""
    numbers = [image_number(name) for name in files]
    other = [name for name, number in zip(files, numbers, strict=True) if number is None]
    if other:
        loose = [name for name in other if "/" not in name]
        raise (Unlabelled if labelled else UserError)(
            f"dataset '{images.dataset.name}': {images.folder} has files that are not validation images of ImageNet-1k "
            f"(ILSVRC2012_val_00000001.JPEG) and not in a class folder: {first_few(loose or other)}"
        )
    folders = _folders()
    _check_list(images, folders)
    names = [f"{folders[n - 1]}/{image_name(n)}" for n in numbers if n]
    found = renamed(images, names)
    if not labelled:
        return found
    index = {wnid: i for i, wnid in enumerate(wnids())}
    labels = np.array([index[name.partition("/")[0]] for name in found.names], np.int64)
    return replace(found, labels=labels, folders=wnids(), named=())
