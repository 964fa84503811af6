"""Make datasets/imagenet1k-val.npz: the class of every ImageNet-1k validation image, in the order of file names.

    python tools/imagenet_index.py test_imagenet.txt val_imagenet.txt --wnids imagenet1k/val --check mos_val_list.txt

The two lists are OpenOOD's (`path label` per line; also gzipped), which divide the 50,000 images. `--wnids` is a folder
with the 1,000 class folders. `--check` names a list from elsewhere whose paths hold the class folder, such as
val/n01751748/ILSVRC2012_val_00000001.JPEG of MOS: all 50,000 folders must agree. Only the numbers are written.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from oodbench.data.imagenet import CLASSES, IMAGES, PER_CLASS, image_number
from oodbench.data.loaders.imagelist import read_list


def read_classes(lists: list[Path]) -> np.ndarray:
    """Return the class number of every image [50000]; exit unless each is listed once and each class has 50."""
    classes = np.full(IMAGES, -1)
    for path in lists:
        found = read_list(path)
        for name, label in zip(found.names, found.labels, strict=True):
            number = image_number(name)
            if number is None or classes[number - 1] != -1:
                raise SystemExit(f"{path}: {name} is not a validation image, or is listed twice")
            classes[number - 1] = label
    if (np.bincount(classes[classes >= 0], minlength=CLASSES) != PER_CLASS).any():
        raise SystemExit(f"the lists do not have {PER_CLASS} images of each of {CLASSES} classes")
    return classes


def check(path: Path, folders: list[str]) -> None:
    """Exit unless a list has every image in the same class folder."""
    found = {}
    for name in read_list(path).names:
        wnid = re.search(r"n\d{8}(?=/)", name)
        found[image_number(name)] = wnid[0] if wnid else ""
    wrong = [i for i, folder in enumerate(folders, 1) if found.get(i) != folder]
    if wrong:
        raise SystemExit(
            f"{path}: {len(wrong):,} of {IMAGES:,} images are in another class folder, first number {wrong[0]}"
        )
    print(f"{path}: all {IMAGES:,} class folders agree")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", type=Path)
    parser.add_argument("--wnids", type=Path, required=True)
    parser.add_argument("--check", type=Path, action="append", default=[])
    parser.add_argument("--output", type=Path, default=Path("datasets/imagenet1k-val.npz"))
    given = parser.parse_args()
    wnids = sorted(path.name for path in given.wnids.iterdir() if re.fullmatch(r"n\d{8}", path.name))
    if len(wnids) != CLASSES:
        raise SystemExit(f"{given.wnids} has {len(wnids)} class folders, not {CLASSES}")
    classes = read_classes(given.lists)
    for other in given.check:
        check(other, [wnids[i] for i in classes])
    np.savez_compressed(given.output, wnids=np.array(wnids, "S9"), classes=classes.astype(np.uint16))
    print(f"{given.output}: {given.output.stat().st_size:,} bytes")
