"""Images as uint8 arrays in .npz or .npy files: `images` [n h w] or [n h w 3], labels [n] beside them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, empty_error, missing_error, unlabelled_error
from oodbench.errors import UserError
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, member_fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pixels:
    """An array of images; the name of an image is its index. A .npy file stays on disk, an .npz is held."""

    array: npt.NDArray[np.uint8]
    path: Path
    key: str  # name of the array in the file, "" in a .npy file

    def read(self, name: str) -> ReadImage:
        """The image at an index: greyscale, RGB or RGBA; its sha256 is that of shape and pixels."""
        pixels = np.array(self.array[int(name)], order="C")
        now = member_fingerprint(
            file_fingerprint(self.path), *filter(None, (self.key,)), int(name)
        )  # after the pixels are read

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)

        def content() -> str:
            return hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).hexdigest()

        return ReadImage(now, image, content)

    def content(self, name: str) -> str:
        """sha256 of shape and pixels."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """The file, the array and the index."""
        return f"{self.path.resolve()}/{self.key}/{int(name)}"


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """The images of an array file in its order.

    The arrays are named by `split` (`test_images`, `test_labels`), else they are the only ones that fit. UserError when
    the file is missing or damaged, or holds no or several arrays of images, or (labelled) no labels.
    """
    path = data / dataset.path
    if not path.is_file():
        raise missing_error(dataset, path)
    try:
        whole = file_fingerprint(path)  # before it is opened
        key, images, labels = _arrays(dataset, path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"dataset '{dataset.name}': {path} cannot be read: {error}") from error
    n = len(images)
    if not n:
        raise empty_error(dataset, path)
    if labelled and labels is None:
        raise unlabelled_error(
            dataset, path, "the array (labels are one array [n] of whole numbers in the same .npz file)"
        )
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    known = labels.reshape(-1).astype(np.int64) if labelled and labels is not None else np.full(n, -1)
    if labelled and (known < 0).any():
        raise unlabelled_error(dataset, path, f"image {int((known < 0).argmax())}")
    place = (key,) if key else ()  # arrays of one file number their images alike
    prints = tuple(member_fingerprint(whole, *place, i) for i in range(n))
    keys = class_keys(dataset, known, path) if labelled else ()
    return ImageSet(dataset, path, names, prints, known, keys, source=Pixels(images, path, key))


def _arrays(dataset: Dataset, path: Path) -> tuple[str, npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
    """The name of the array of images ("" in a .npy file), the array, and the labels beside it."""
    loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)  # content counts, not the suffix
    if isinstance(loaded, np.ndarray):
        found: dict[str, Any] = {"": loaded}
    else:
        with loaded as archive:
            wanted = [key for key in archive.files if not dataset.split or key.startswith(dataset.split)]
            found = {key: one for key in wanted if isinstance(one := archive[key], np.ndarray)}
    stacks = [key for key, one in found.items() if _is_stack(one)]
    pictures = [key for key in stacks if found[key].dtype == np.uint8]
    coloured = [key for key in stacks if found[key].ndim == 4 and key not in pictures]  # images of another type
    if len(pictures) != 1 or coloured:
        shapes = ", ".join(f"{key} {one.dtype}{list(one.shape)}".strip() for key, one in found.items()) or "nothing"
        raise UserError(
            f"dataset '{dataset.name}': {path} must hold one array of uint8 images [n h w] or [n h w 3]"
            f"{f' whose name begins with {dataset.split}' if dataset.split else ''}, it holds {shapes}"
            f"{_mistaken(list(found.values()))}"
        )
    images = found[pictures[0]]
    if images.ndim == 3 and images.shape[1] > 4 and {images.shape[0], images.shape[2]} & {3, 4}:
        raise UserError(
            f"dataset '{dataset.name}': {path} is {list(images.shape)}: one colour image, or grey images? "
            "Write one image as [1 h w 3], grey images as [n h w 1]"
        )
    able = [one for one in found.values() if one.dtype.kind in "iu" and one.ndim]
    fitting = [one for one in able if one.size == len(images) == len(one)]
    return pictures[0], images, fitting[0] if len(fitting) == 1 else None


def _mistaken(arrays: list[npt.NDArray[Any]]) -> str:
    """What arrays that are no stack of images seem to be."""
    if any(one.ndim == 4 and one.shape[1] in (1, 3) and one.shape[-1] not in (1, 3, 4) for one in arrays):
        return "; [n 3 h w] is written as [n h w 3]: array.transpose(0, 2, 3, 1)"
    if any(one.dtype.kind == "f" or one.dtype.itemsize > 1 for one in arrays if one.ndim >= 3):
        return "; values are whole numbers from 0 to 255, as uint8"
    return ""


def _is_stack(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3, 4))
