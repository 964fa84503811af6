"""Class folders that are not directly in the root are recognised, or refused with references to paste."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data.load import LoadOptions, class_names_of, load_images
from oodbench.data.loaders.layout import ClassPlace, classes_by_folder, is_hidden
from oodbench.errors import Unlabelled, UserError
from oodbench.storage.store import Store

PLACE = ClassPlace("folder:/data/x")


def classes(*names: str) -> dict[str, str]:
    """The class of every image."""
    found = classes_by_folder(names, place=PLACE)
    return {name: found.folders[label] for name, label in zip(names, found.labels, strict=True)}


def remarks(*names: str) -> str:
    return " ".join(one.message for one in classes_by_folder(names, place=PLACE).remarks)


def test_folders_by_letter_are_not_classes() -> None:
    assert classes("a/abbey/1.jpg", "a/attic/2.jpg", "b/bar/3.jpg", "a/abbey/4.jpg") == {
        "a/abbey/1.jpg": "abbey", "a/attic/2.jpg": "attic", "b/bar/3.jpg": "bar", "a/abbey/4.jpg": "abbey",
    }  # fmt: skip
    places = ("a/abbey/1.jpg", "c/church/indoor/2.jpg", "c/church/outdoor/3.jpg")
    assert list(classes(*places).values()) == ["abbey", "church/indoor", "church/outdoor"]
    assert "the folders a, c sort the class folders by letter: abbey, church/indoor" in remarks(*places)
    both = ("A/abbey/1.jpg", "C/Church/2.jpg", "C/Church/indoor/3.jpg")  # images next to a folder that is not a class
    assert list(classes(*both).values()) == ["abbey", "Church", "Church"]
    assert list(classes("data/a/abbey/1.jpg", "data/b/bar/2.jpg").values()) == ["abbey", "bar"]


def test_letters_may_be_classes() -> None:
    """Letters as classes: they contain images, or folders with other initials."""
    for names in (("a/1.jpg", "b/2.jpg"), ("a/v/1.jpg", "b/w/2.jpg"), ("a/a1/1.jpg", "b/w/2.jpg")):
        assert list(classes(*names).values()) == ["a", "b"]
    with pytest.raises(Unlabelled, match=r"a, b sort class folders by letter, but b/2\.jpg is in none \(1 of 2 images"):
        classes("a/abbey/1.jpg", "b/2.jpg")


@pytest.mark.parametrize(
    ("names", "pasted"),
    [
        (("Training/cat/1.png", "Testing/cat/2.png"), ["Testing", "Training", "*"]),
        (("train/cat/1.png", "val/cat/1.png", "test/3.png"), ["train", "val"]),  # Kaggle's test has no classes
        (("seg_train/seg_train/sea/1.png", "seg_test/seg_test/sea/1.png"), ["seg_test", "seg_train"]),
        (("training_set/cat/1.png", "test_set/cat/1.png", "notes/cat/1.png"), ["test_set", "training_set"]),
        (("TrainSet/cat/1.png", "TestSet/cat/1.png"), ["TestSet", "TrainSet", "*"]),
        (("x/train/cat/1.png", "x/test/cat/1.png"), ["x/test", "x/train", "x/*"]),
        (("images/cat/1.png", "masks/cat/1.png"), ["images", "masks"]),  # not both as one set
        (("train/cat/1.png", "test/dog/1.png"), ["test", "train"]),
    ],
)
def test_splits_are_refused_with_a_reference_to_paste(names: tuple[str, ...], pasted: list[str]) -> None:
    with pytest.raises(UserError, match="are splits or parts of a set, not classes; name one of them: ") as refused:
        classes(*names)
    said = str(refused.value).partition("name one of them: ")[2]
    assert re.findall(r"folder:/data/x/(\S+?)'?(?=\s|;|$)", said) == pasted
    assert ("all of them as one set" in said) == pasted[-1].endswith("*")


def test_splits_without_folders_and_in_archives_are_refused() -> None:
    with pytest.raises(UserError, match="the folders test, train are splits .*; no folder in them holds images"):
        classes("train/1.png", "test/2.png")
    with pytest.raises(UserError, match="pack an archive of one of them, such as test"):
        classes_by_folder(("train/cat/1.png", "test/cat/2.png"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("1.png", "2.png"), r"1\.png is in none \(2 of 2 images\); without classes it can be an OOD set"),
        (("images/a/1.png", "x.png"), r"x\.png is in none .*name the folder .*: folder:/data/x/images$"),
        (("cat/1.png", "dog/1.png", "x.png"), r"x\.png is in none \(1 of 3 images\); move such images away"),
        (("cat/1.png", "x.png"), r"move such images away, or into class folders"),
    ],
)
def test_images_outside_folders_are_refused_with_advice(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unlabelled, match=said):
        classes(*names)


def test_deeper_class_folders_are_suggested_with_a_reference() -> None:
    superclasses = ("animals/cat/1.png", "animals/dog/2.png", "cars/van/3.png")
    assert list(classes(*superclasses).values()) == ["animals", "animals", "cars"]
    assert "if the classes are one folder deeper, name them 'folder:/data/x/*'" in remarks(*superclasses)
    assert "deeper" not in remarks("cat/1.png", "cat/v/2.png", "dog/3.png")
    said = remarks("ill/images/1.png", "ill/masks/1.png", "well/images/2.png", "well/masks/2.png")
    assert "images in images, masks all count, even masks and labels" in said and "/*" not in said


def test_splits_are_not_classes_at_any_depth() -> None:
    with pytest.raises(UserError, match=r"\(test, train\) are splits or parts of a set, .* are higher: folder:/data/x"):
        classes_by_folder(("cat/train/1.png", "dog/test/2.png"), place=ClassPlace("folder:/data/x", 2))


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A folder with a blank in its name, splits, hidden folders of several systems, and an empty class folder."""
    names = ["Training/no_tumor/1", "Training/glioma/2", "Testing/glioma/3", "Testing/no_tumor/4"]
    hidden = ["__MACOSX/Training/glioma/._2", ".ipynb_checkpoints/5", "Testing/glioma/.ipynb_checkpoints/6"]
    for number, name in enumerate([*names, *hidden]):
        path = tmp_path / "brain scans" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (tmp_path / "brain scans/.DS_Store").write_bytes(b"\0")
    (tmp_path / "brain scans/Testing/pituitary").mkdir()
    return tmp_path / "brain scans"


def test_a_pasted_reference_is_read(merged: Path) -> None:
    def listed(reference: str) -> tuple[tuple[str, ...], list[str]]:
        options = LoadOptions(Path(), Store(merged / "store"))
        found = load_images(catalogue.dataset(reference), options, labelled=True)
        return class_names_of(found).lines, [found.folders[label] for label in found.labels]

    with pytest.raises(UserError) as refused:
        listed(f"folder:{merged}")
    pasted = [word for word in shlex.split(str(refused.value).rpartition("one of them: ")[2]) if "folder:" in word]
    assert pasted == [f"folder:{merged}/Testing", f"folder:{merged}/Training;", f"folder:{merged}/*"]
    assert listed(pasted[0]) == (("glioma", "no tumor"), ["glioma", "no_tumor"])
    assert listed(pasted[2]) == (("glioma", "no tumor"), ["glioma", "no_tumor", "glioma", "no_tumor"])
    assert catalogue.dataset(pasted[2]).title == "brain scans"
    with pytest.raises(Unlabelled, match=r"the class folders are folder:.*/\*/\*, but Testing/glioma/3\.png is in no"):
        listed(f"folder:{merged}/*/*")
    assert len(load_images(catalogue.dataset(pasted[2]), LoadOptions(Path(), Store(merged)), labelled=False)) == 4


@pytest.mark.parametrize(
    "name", [".DS_Store", "a/._1.jpg", "__MACOSX/a/1.jpg", "a/.ipynb_checkpoints/1.jpg", "Thumbs.db"]
)
def test_files_of_systems_are_hidden(name: str) -> None:
    assert is_hidden(name)
