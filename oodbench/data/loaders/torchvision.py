"""Datasets in the format of torchvision: CIFAR10, SVHN, MNIST, StanfordCars, OxfordIIITPet, Food101, ..."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, missing_error, unlabelled_error
from oodbench.data.loaders.layout import is_hidden
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.fingerprints import (
    ReadImage,
    combine_fingerprints,
    file_fingerprint,
    member_fingerprint,
    portable_part,
)
from oodbench.storage.store import digest

# The files that each class reads below a root that several may share: files of other sets are ignored.
_OWN = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "MNIST": "MNIST",
    "SVHN": "{split}_32x32.mat",
    "OxfordIIITPet": "oxford-iiit-pet",
    "Food101": "food-101",
    "StanfordCars": "stanford_cars",
}
_ARCHIVES = (".tar", ".gz", ".tgz", ".xz", ".bz2", ".zip")


@dataclass(frozen=True)
class TorchvisionSource:
    """Reads images of a torchvision dataset by index. Only torchvision knows the files of an image."""

    images: Any
    dataset: Dataset
    root: Path
    listed_fingerprint: str

    def read(self, name: str) -> ReadImage:
        """Read the image at an index; its sha256 is that of mode, size and pixels, because file formats differ."""
        from PIL.Image import Image

        image = self.images[int(name)][0]
        assert isinstance(image, Image)
        return ReadImage.from_image(member_fingerprint(self.listed_fingerprint, int(name)), image)

    def content(self, name: str) -> str:
        """Return the sha256 of mode, size and pixels."""
        return self.read(name).content()

    def tree_fingerprint(self) -> str:
        """Return the fingerprint of all files below the folder."""
        return _tree_fingerprint(self.dataset, self.root)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the images of a torchvision dataset in its order. Raise UserError if its files are missing or damaged."""
    root = dataset.folder(data)
    if not root.is_dir():
        raise missing_error(dataset, root)
    tree = _tree_fingerprint(dataset, root)  # before it is opened
    images = open_torchvision(dataset, root, download=False)
    n = len(images)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    try:
        labels = np.array(_labels(images)) if labelled else np.full(n, -1)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # attributes, boxes, several labels
        raise unlabelled_error(
            dataset, root, f"torchvision's {dataset.source}, which does not have class indices as targets:"
        ) from error
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, root, f"image {int((labels < 0).argmax())}")
    classes = tuple(str(one) for one in getattr(images, "classes", ())) if labelled else ()
    keys = class_keys(dataset, labels, root, classes) if labelled else ()
    fingerprints = tuple(member_fingerprint(tree, i) for i in range(n))
    source = TorchvisionSource(images, dataset, root, tree)
    return ImageSet(dataset, root, names, fingerprints, labels, classes or keys, source=source, named=classes)


def open_torchvision(dataset: Dataset, root: Path, download: bool) -> Any:
    """Open the torchvision dataset of a declaration (`source`, `split`), after a download if `download`."""
    import torchvision.datasets as known

    kind: Any = getattr(known, dataset.source, None)
    if not (inspect.isclass(kind) and issubclass(kind, known.VisionDataset)):
        raise UserError(f"torchvision has no dataset '{dataset.source}'{did_you_mean(dataset.source, known.__all__)}")
    parameters = inspect.signature(kind).parameters
    arguments = _arguments(dataset, parameters)
    if "download" in parameters:
        arguments["download"] = download
    try:
        make: Any = kind
        return make(root, **arguments)
    except (RuntimeError, OSError, ValueError, ImportError) as error:  # torchvision's errors for missing files
        if download:
            raise UserError(f"dataset '{dataset.name}': torchvision cannot fetch it: {error}") from error
        problem = missing_error(dataset, root)
        raise Missing(f"{problem}\n  torchvision's {dataset.source} says: {str(error).splitlines()[0]}") from error


def _arguments(dataset: Dataset, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the arguments of a torchvision class for the split.

    Raise UserError if it has no such split, or if it needs more than a folder.
    """
    arguments: dict[str, Any] = {}
    if "train" in parameters:
        if dataset.split not in ("", "train", "test"):
            raise UserError(
                f"dataset '{dataset.name}': torchvision's {dataset.source} has no split '{dataset.split}'; "
                "it has train and test"
            )
        arguments["train"] = dataset.split == "train"
    elif "split" in parameters:
        arguments["split"] = dataset.split
    elif dataset.split:
        raise UserError(
            f"dataset '{dataset.name}': torchvision's {dataset.source} has no splits; remove '{dataset.split}'"
        )
    flexible = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind not in flexible]
    further = [name for name in required if name != "root" and name not in arguments]
    if "root" not in parameters or further:
        lacking = f"also needs {', '.join(further)}" if further else "does not read a folder"
        raise UserError(
            f"dataset '{dataset.name}': torchvision's {dataset.source} {lacking}; it cannot be read by its name alone"
        )
    return arguments


def _labels(images: Any) -> list[int]:
    """Return the class indices, without decoding images if torchvision has them separately."""
    for name in ("targets", "labels", "_labels"):
        labels = getattr(images, name, None)
        if labels is not None:
            return [int(label) for label in labels]
    samples = getattr(images, "_samples", None)
    if samples:
        return [int(sample[1]) for sample in samples]
    return [int(images[i][1]) for i in range(len(images))]


def _tree_fingerprint(dataset: Dataset, root: Path) -> str:
    """Return the fingerprint of all files below the folder and of the split, because all splits have the same indices.

    Its portable part ignores hidden files and the archives of the files, which may be removed.
    """
    files: dict[str, str] = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            files[path.relative_to(root).as_posix()] = file_fingerprint(path)
    own = _OWN.get(dataset.source, "").format(split=dataset.split)
    prefix = f"{own}/" if own else ""
    sizes = {
        name: portable_part(text)
        for name, text in files.items()
        if not is_hidden(name) and not name.lower().endswith(_ARCHIVES) and f"{name}/".startswith(prefix)
    }
    return combine_fingerprints(files, digest([dataset.source, dataset.split, sorted(sizes.items())]))
