"""Images as a user has them (a folder, files, PIL images, arrays) as a list that the engine reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.data import catalog as catalogue
from oodbench.data import load, prompts
from oodbench.data.catalog import OWN, Dataset
from oodbench.data.decode import reason
from oodbench.data.imageset import ImageFiles, ImageSet
from oodbench.data.loaders.layout import same_prompts
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
    """Images held in memory, by name, beside files."""

    held: Mapping[str, Image]

    def read(self, name: str) -> ReadImage:
        """The image itself, whose print is its sha256, or the file."""
        if name not in self.held:
            return ImageFiles(Path()).read(name)
        return ReadImage.from_image(self.content(name), self.held[name])

    def content(self, name: str) -> str:
        """sha256 of mode, size and pixels, or of the file."""
        if name not in self.held:
            return ImageFiles(Path()).content(name)
        return ReadImage.from_image("", self.held[name]).content()


def listed(images: Any, store: Store, data: Path | None = None) -> ImageSet:
    """The images that were given, in their order; files of a folder sorted by path.

    images  a folder, a file, a data set's name or reference (`glyphs-letters`, `list:FILE`), one image, or several
    UserError when there are none, a file is missing, or something is no image.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, str | os.PathLike):
        path = _path(images)
        if os.path.isdir(path):
            return _whole(Dataset(f"folder:{path.resolve()}", path.name, "images", str(path.resolve())), store, data)
        if not os.path.exists(path) and isinstance(images, str) and _named(images):
            return _whole(catalogue.dataset(images), store, data)
        images = [images]
    elif isinstance(images, Set | Mapping):
        raise UserError(f"a {type(images).__name__} gives images no order; give a list of them")
    elif _is_array(images) and images.ndim in (2, 3) and images.dtype.kind not in "OSU":
        images = [images]  # [height width] or [height width channels]; several are [n height width channels]
    elif isinstance(images, bytes) or not isinstance(images, Iterable) or _is_pil(images):
        images = [images]
    return _several(list(images))


def notes(classes: TextList, *images: ImageSet) -> list[str]:
    """What may mislead about class names that were given and about images, one sentence each, as a run tells it."""
    own = classes.name not in prompts.names("classes")
    told = [one.message for one in same_prompts(classes.lines)] if own else []
    return list(dict.fromkeys([*told, *(note for one in images for note in load.notes(one))]))


def in_memory(images: ImageSet) -> bool:
    """Whether some images are held in memory, so that their embeddings are not worth keeping."""
    return isinstance(images.source, GivenImages) and bool(images.source.held)


def _whole(dataset: Dataset, store: Store, data: Path | None) -> ImageSet:
    return load.load_images(dataset, load.LoadOptions(catalogue.data_root(data), store), labelled=False)


def _named(reference: str) -> bool:
    known = catalogue.datasets()
    alias = any(reference in one.aliases for one in known.values())
    return alias or reference in known or reference.startswith(OWN) or "[" in reference


def _path(given: Any) -> Path:
    """A path of the user's; UserError for one that no file can have."""
    text = os.fspath(given)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UserError(f"{given!r} is no path of an image; give {_KINDS}")
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
            one.load()  # now, for threads may share it
        except Exception as error:  # Pillow raises many kinds
            raise UserError(f"image {number} cannot be read: {reason(error)}") from error
        return one
    fits = isinstance(one, np.ndarray) and one.dtype == np.uint8
    if fits and one.size and (one.ndim == 2 or (one.ndim == 3 and one.shape[2] in (3, 4))):
        return Image.fromarray(one)
    what = f"{one.dtype} array of shape {list(one.shape)}" if isinstance(one, np.ndarray) else type(one).__name__
    raise UserError(f"image {number} is a {what}; give {_KINDS}")
