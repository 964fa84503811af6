"""Convert the images that users give (a folder, files, PIL images, arrays) to an ImageSet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.data import catalog as catalogue
from oodbench.data import load, prompts
from oodbench.data.catalog import Dataset
from oodbench.data.decode import describe_error
from oodbench.data.imageset import ImageFiles, ImageSet
from oodbench.data.loaders.layout import same_prompt_remarks
from oodbench.data.paths import data_root
from oodbench.data.prompts import TextList
from oodbench.errors import UserError
from oodbench.storage.files import expand
from oodbench.storage.fingerprints import ReadImage, file_fingerprint
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

_KINDS = "a folder, paths of images, PIL images, or uint8 arrays [height width 3]"
_WIDE = ("I", "F")  # modes with more than 8 bits a channel, and I;16


@dataclass(frozen=True)
class GivenImages:
    """Images in memory, by name; all other names are files."""

    held: Mapping[str, Image]

    def read(self, name: str) -> ReadImage:
        """Return the image itself, whose fingerprint is its sha256, or the file."""
        if name not in self.held:
            return ImageFiles(Path()).read(name)
        return ReadImage.from_image(self.content(name), self.held[name])

    def content(self, name: str) -> str:
        """Return the sha256 of mode, size and pixels, or of the file."""
        if name not in self.held:
            return ImageFiles(Path()).content(name)
        return ReadImage.from_image("", self.held[name]).content()


def listed(images: Any, store: Store, data: Path | None = None) -> ImageSet:
    """Return the images in their order; files of a folder are sorted by path.

    Arguments:
        images  a folder, a file, a dataset's name or reference (`glyphs-letters`, `list:FILE`), one image, or several
        store   where the lists of datasets are stored
        data    folder of the datasets; None is the default one
    Raises:
        UserError  if there are no images, a file is missing, or something is not an image
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, str | os.PathLike):
        path = _path(images)
        if os.path.isdir(path):
            return _load(Dataset(f"folder:{path.resolve()}", path.name, "images", str(path.resolve())), store, data)
        if not os.path.exists(path) and isinstance(images, str) and catalogue.is_reference(images):
            return _load(catalogue.dataset(images), store, data)
        images = [images]
    elif isinstance(images, Set | Mapping):
        raise UserError(f"a {type(images).__name__} has no order; give a list of images")
    elif _is_array(images) and images.ndim in (2, 3) and images.dtype.kind not in "OSU":
        images = [images]  # [height width] or [height width channels]; several are [n height width channels]
    elif isinstance(images, bytes) or not isinstance(images, Iterable) or _is_pil(images):
        images = [images]
    return load.identified(_several(list(images)), store)


def notes(classes: TextList, *images: ImageSet) -> list[str]:
    """Return warnings about class names and images, one sentence each, as in a run."""
    own = classes.name not in prompts.names("classes")
    warnings = [finding.message for finding in same_prompt_remarks(classes.lines)] if own else []
    return list(dict.fromkeys([*warnings, *(note for each in images for note in load.notes(each))]))


def in_memory(images: ImageSet) -> bool:
    """Return whether some images are in memory, so that their embeddings are not stored."""
    return isinstance(images.source, GivenImages) and bool(images.source.held)


def _load(dataset: Dataset, store: Store, data: Path | None) -> ImageSet:
    return load.load_images(dataset, load.LoadOptions(data_root(data), store), labelled=False)


def _path(given: Any) -> Path:
    """Return a path of the user's; raise UserError for one that no file can have."""
    text = os.fspath(given)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UserError(f"{given!r} is not the path of an image; give {_KINDS}")
    return expand(Path(text))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _is_pil(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _several(images: list[Any]) -> ImageSet:
    names: list[str] = []
    prints: list[str] = []
    held: dict[str, Image] = {}
    for number, one in enumerate(images):
        if isinstance(one, str | os.PathLike):
            name, mark = _file(_path(one))
        else:
            name = f"image {number}"
            held[name] = _image(one, number)
            mark = name
        names.append(name)
        prints.append(mark)
    if not names:
        raise UserError(f"no images were given; give {_KINDS}")
    source = GivenImages(held)
    prints = [source.content(name) if name in held else mark for name, mark in zip(names, prints, strict=True)]
    dataset = Dataset("images", "images", "images", "")
    labels = np.full(len(names), -1)
    return ImageSet(dataset, Path(), tuple(names), tuple(prints), labels, source=source)


def _file(path: Path) -> tuple[str, str]:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder among images; give the folder alone")
    try:
        return str(path.absolute()), file_fingerprint(path)
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror}; give {_KINDS}") from error


def _image(one: Any, number: int) -> Image:
    from PIL import Image

    if isinstance(one, Image.Image):
        if one.mode.partition(";")[0] in _WIDE:
            raise UserError(f"image {number} is a PIL image of mode {one.mode}; give one of 8 bits a channel")
        try:
            one.load()  # now, because threads may share it
        except Exception as error:  # Pillow raises many kinds
            raise UserError(f"image {number} cannot be read: {describe_error(error)}") from error
        return one
    fits = isinstance(one, np.ndarray) and one.dtype == np.uint8
    if fits and one.size and (one.ndim == 2 or (one.ndim == 3 and one.shape[2] in (3, 4))):
        return Image.fromarray(one)
    what = f"{one.dtype} array of shape {list(one.shape)}" if isinstance(one, np.ndarray) else type(one).__name__
    raise UserError(f"image {number} is a {what}; give {_KINDS}")
