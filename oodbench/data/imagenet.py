"""The class of every ImageNet-1k validation image: from the devkit, from val.txt, or from the shipped index."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oodbench.data.paths import declarations
from oodbench.errors import UserError
from oodbench.storage.archives import read_member
from oodbench.storage.files import read_text

IMAGES, CLASSES, PER_CLASS = 50_000, 1000, 50
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.JPEG", re.IGNORECASE)  # the Hub adds the class folder


@dataclass(frozen=True)
class GroundTruth:
    """The class folder (wnid) of every validation image [50000], in the order of file names, and its source."""

    folders: tuple[str, ...]
    origin: str


def image_number(name: str) -> int | None:
    """Return the number of a validation image, from 1, by its file name; None for another file."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    number = int(match[1]) if match else 0
    return number if 1 <= number <= IMAGES else None


def image_name(number: int) -> str:
    """Return the file name of a validation image by its number, from 1."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@functools.cache
def wnids() -> tuple[str, ...]:
    """Return the class folders of ImageNet-1k in label order."""
    return tuple(wnid.decode() for wnid in _index()["wnids"])


@functools.cache
def validation_classes() -> npt.NDArray[np.int64]:
    """Return the class number of every validation image [50000], in the order of file names, from the shipped index."""
    classes: npt.NDArray[np.int64] = _index()["classes"].astype(np.int64)
    classes.flags.writeable = False
    return classes


def ground_truth(folder: Path | None = None) -> GroundTruth:
    """Return the classes of the validation images, from the devkit or val.txt in `folder`, else from the shipped index.

    The numbers in val.txt are indices of the sorted class folders; a list in another order is refused, because its
    labels would be wrong.
    """
    names = wnids()
    shipped = GroundTruth(tuple(names[i] for i in validation_classes().tolist()), "the shipped index")
    if folder and (folder / DEVKIT).is_file():
        return _checked(_devkit_folders(folder / DEVKIT), folder / DEVKIT)
    if folder and (folder / "val.txt").is_file():
        return _checked(_listed_folders(folder / "val.txt", shipped.folders), folder / "val.txt")
    return shipped


def _index() -> dict[str, npt.NDArray[np.generic]]:
    with np.load(declarations() / "imagenet1k-val.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def _checked(folders: Sequence[str], origin: Path) -> GroundTruth:
    """Return a ground truth. Raise UserError unless it has 50 images of each of the 1,000 classes."""
    counts = Counter(folders)
    if set(counts) != set(wnids()) or set(counts.values()) != {PER_CLASS}:
        raise UserError(
            f"{origin} does not assign {PER_CLASS} images to each of ImageNet-1k's {CLASSES:,} classes "
            f"({len(folders):,} images, {len(counts):,} classes); fetch it again, or move it away: an index is shipped"
        )
    return GroundTruth(tuple(folders), str(origin))


def _devkit_folders(path: Path) -> list[str]:
    """Return the class folders from the devkit, which defines class numbers in its meta.mat."""
    from scipy.io import loadmat

    try:
        data = f"{DEVKIT.removesuffix('.tar.gz')}/data"
        numbers = read_member(path, f"{data}/ILSVRC2012_validation_ground_truth.txt").decode().split()
        synsets = loadmat(io.BytesIO(read_member(path, f"{data}/meta.mat")), squeeze_me=True)["synsets"]
        folder_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [folder_of[int(number)] for number in numbers]
    except (UserError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} is not the devkit, or is damaged ({error}); fetch it again, or move it away"
        ) from error


def _listed_folders(path: Path, shipped: Sequence[str]) -> list[str]:
    """Return the class folders from lines `name number` or `wnid/name number`."""
    folders, names = [""] * IMAGES, wnids()
    for line in read_text(path, "the list").split("\n"):
        name, _, label = line.strip().rpartition(" ")
        number = image_number(name.strip()) if label.isdecimal() else None
        if number:
            wnid = re.search(r"(?:^|/)(n\d{8})/", name)
            folders[number - 1] = wnid[1] if wnid else names[int(label)] if int(label) < CLASSES else ""
    if wrong := sum(a != b for a, b in zip(folders, shipped, strict=True)):
        raise UserError(
            f"{path} and the lists of OpenOOD and MOS disagree on the class of {wrong:,} of {IMAGES:,} validation "
            "images; perhaps it does not count the sorted class folders from 0. Move it away: an index is shipped"
        )
    return folders
