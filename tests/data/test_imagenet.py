"""The class of every ImageNet-1k validation image."""

from __future__ import annotations

import io
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from oodbench.data import imagenet
from oodbench.data.imagenet import ground_truth, image_name, image_number, validation_classes, wnids
from oodbench.errors import UserError


def test_the_shipped_index() -> None:
    assert len(wnids()) == len(set(wnids())) == 1000 and list(wnids()) == sorted(wnids())
    assert (np.bincount(validation_classes(), minlength=1000) == 50).all()
    # The first lines of the labels that TensorFlow's models publish.
    assert ground_truth().folders[:5] == ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729")


def test_file_names() -> None:
    assert image_name(7) == "ILSVRC2012_val_00000007.JPEG"
    assert image_number("val/n01751748/ILSVRC2012_val_00050000.JPEG") == 50_000
    assert image_number("ILSVRC2012_val_00000001_n01751748.JPEG") == 1
    for other in ("ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG", "n01440764_18.JPEG", ""):
        assert image_number(other) is None


@pytest.mark.slow
def test_the_index_is_built_from_two_lists_and_checked_by_a_third(shared: Path, tmp_path: Path) -> None:
    lists = [str(shared / f"data/lists/openood/{split}_imagenet.txt.gz") for split in ("test", "val")]
    third = tmp_path / "third.txt"
    third.write_text("\n".join(f"val/{f}/{image_name(i)} 0" for i, f in enumerate(ground_truth().folders, 1)))
    out = tmp_path / "made.npz"
    script = Path(__file__).parents[2] / "tools/imagenet_index.py"
    before = sys.argv
    sys.argv = [str(script), *lists, "--wnids", str(shared / "data/imagenet1k/val"), "--check", str(third)]
    sys.argv += ["--output", str(out)]
    try:
        runpy.run_path(str(script), run_name="__main__")
        assert out.read_bytes() == (Path(__file__).parents[2] / "datasets/imagenet1k-val.npz").read_bytes()
        third.write_text(third.read_text().replace("n01751748", "n09193705", 1))
        with pytest.raises(SystemExit, match="1 of 50,000 images are in another class folder, first number 1$"):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def devkit(path: Path, folders: list[str], order: list[str]) -> None:
    """A devkit with class numbers in `order`, because ILSVRC does not number the sorted folders."""
    kinds = [("ILSVRC2012_ID", np.float64), ("WNID", object), ("words", object)]
    synsets = np.array([(i, wnid, "a thing") for i, wnid in enumerate(order, 1)], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    number = {wnid: i for i, wnid in enumerate(order, 1)}
    truth = "".join(f"{number[folder]}\n" for folder in folders).encode()
    with tarfile.open(path, "w:gz") as file:
        for name, content in (("ILSVRC2012_validation_ground_truth.txt", truth), ("meta.mat", meta.getvalue())):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_the_devkit_has_its_own_class_numbers(tmp_path: Path) -> None:
    turned = list(ground_truth().folders)[::-1]  # differs from the shipped index, so it can only be from the devkit
    devkit(tmp_path / imagenet.DEVKIT, turned, list(wnids())[500:] + list(wnids())[:500] + ["n00001740"])
    found = ground_truth(tmp_path)
    assert found.folders == tuple(turned) and imagenet.DEVKIT in found.origin


@pytest.mark.parametrize("broken", ["missing", "cut", "uneven"])
def test_an_invalid_devkit_is_refused(tmp_path: Path, broken: str) -> None:
    path = tmp_path / imagenet.DEVKIT
    folders = list(ground_truth().folders)
    if broken == "uneven":
        folders[0] = folders[1]
    devkit(path, folders, list(wnids()))
    if broken == "missing":
        with tarfile.open(path, "w:gz"):
            pass
    elif broken == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="is (no|not the) devkit|does not assign 50 images"):
        ground_truth(tmp_path)


def test_val_txt(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    lines = [f"{image_name(i)} {c}" for i, c in enumerate(validation_classes().tolist(), 1)]
    path.write_text("\n".join(lines) + "\n")
    found = ground_truth(tmp_path)
    assert found.folders == ground_truth().folders and str(path) == found.origin
    path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(UserError, match="class of 1 of 50,000 validation images"):
        ground_truth(tmp_path)
    path.write_text("\n".join(f"{line}0" for line in lines))
    with pytest.raises(UserError, match="class of 49,[0-9]+ of 50,000 validation images"):
        ground_truth(tmp_path)
