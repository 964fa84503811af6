"""Datasets that torchvision has laid out on disk: CIFAR10, SVHN, MNIST, StanfordCars, OxfordIIITPet, Food101, ..."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, missing_error, unlabelled_error
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, join_parts, member_fingerprint, portable_part
from oodbench.storage.store import digest

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Torchvision:
    """A torchvision dataset; the name of an image is its index. Only torchvision knows which files it reads for one."""

    images: Any
    dataset: Dataset
    root: Path
    listed_fingerprint: str

    def read(self, name: str) -> ReadImage:
        """The image at an index; its sha256 is that of mode, size and pixels: the stored form differs by set."""
        from PIL.Image import Image

        image = self.images[int(name)][0]
        assert isinstance(image, Image)
        return ReadImage.from_image(member_fingerprint(self.listed_fingerprint, int(name)), image)

    def content(self, name: str) -> str:
        """sha256 of mode, size and pixels."""
        return self.read(name).content()

    def tree_fingerprint(self) -> str:
        """The print of everything below the folder."""
        return _tree(self.dataset, self.root)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """The images of a torchvision dataset in its order. UserError when its files are missing or damaged."""
    root = dataset.folder(data)
    if not root.is_dir():
        raise missing_error(dataset, root)
    whole = _tree(dataset, root)  # before it is opened
    images = opened(dataset, root, download=False)
    n = len(images)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    try:
        labels = np.array(_labels(images)) if labelled else np.full(n, -1)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # attributes, boxes, several labels
        raise unlabelled_error(
            dataset, root, f"torchvision's {dataset.source}, whose targets are no class indices:"
        ) from error
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, root, f"image {int((labels < 0).argmax())}")
    classes = tuple(str(one) for one in getattr(images, "classes", ())) if labelled else ()
    keys = class_keys(dataset, labels, root, classes) if labelled else ()
    prints = tuple(member_fingerprint(whole, i) for i in range(n))
    source = Torchvision(images, dataset, root, whole)
    return ImageSet(dataset, root, names, prints, labels, classes or keys, source=source, named=classes)


def opened(dataset: Dataset, root: Path, download: bool) -> Any:
    """The torchvision dataset that a declaration names (`source`, `split`); download fetches what is not below root."""
    import torchvision.datasets as known

    kind: Any = getattr(known, dataset.source, None)
    if not (inspect.isclass(kind) and issubclass(kind, known.VisionDataset)):
        raise UserError(f"torchvision has no dataset '{dataset.source}'{did_you_mean(dataset.source, known.__all__)}")
    takes = inspect.signature(kind).parameters
    chosen = _arguments(dataset, takes)
    if "download" in takes:
        chosen["download"] = download
    try:
        make: Any = kind
        return make(root, **chosen)
    except (RuntimeError, OSError, ValueError, ImportError) as error:  # what torchvision raises for absent files
        if download:
            raise UserError(f"dataset '{dataset.name}': torchvision cannot fetch it: {error}") from error
        problem = missing_error(dataset, root)
        raise Missing(f"{problem}\n  torchvision's {dataset.source} says: {str(error).splitlines()[0]}") from error


def _arguments(dataset: Dataset, takes: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """How a class is told the split. UserError when it cannot be, or when the class needs more than a folder."""
    chosen: dict[str, Any] = {}
    if "train" in takes:
        if dataset.split not in ("", "train", "test"):
            raise UserError(
                f"dataset '{dataset.name}': torchvision's {dataset.source} has no split '{dataset.split}'; "
                "it has train and test"
            )
        chosen["train"] = dataset.split == "train"
    elif "split" in takes:
        chosen["split"] = dataset.split
    elif dataset.split:
        raise UserError(
            f"dataset '{dataset.name}': torchvision's {dataset.source} has no splits; take '{dataset.split}' away"
        )
    flexible = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, one in takes.items() if one.default is one.empty and one.kind not in flexible]
    further = [name for name in needed if name != "root" and name not in chosen]
    if "root" not in takes or further:
        lacking = f"needs {', '.join(further)}, too" if further else "reads no folder"
        raise UserError(
            f"dataset '{dataset.name}': torchvision's {dataset.source} {lacking}; it cannot be read by its name alone"
        )
    return chosen


def _labels(images: Any) -> list[int]:
    """Class indices, without decoding an image where torchvision keeps them."""
    for name in ("targets", "labels", "_labels"):
        found = getattr(images, name, None)
        if found is not None:
            return [int(label) for label in found]
    samples = getattr(images, "_samples", None)
    if samples:
        return [int(sample[1]) for sample in samples]
    return [int(images[i][1]) for i in range(len(images))]


def _tree(dataset: Dataset, root: Path) -> str:
    """The print of everything below the folder, for one split: those of one folder number their images alike."""
    found = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            found.append(f"{path.relative_to(root).as_posix()}:{file_fingerprint(path)}")
    known = digest([dataset.source, dataset.split, sorted(portable_part(one) for one in found)])
    return join_parts(known, digest(sorted(found)))
