"""Images as uint8 arrays in .npz or .npy files: images [n h w] or [n h w 3], and labels [n]."""

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
class ArraySource:
    """Reads images of an array by index. A .npy file is memory-mapped, an .npz file is held in memory."""

    array: npt.NDArray[np.uint8]
    path: Path
    key: str  # name of the array in an .npz file, "" for a .npy file

    def read(self, name: str) -> ReadImage:
        """Read the image at an index (greyscale, RGB or RGBA); its sha256 is that of shape and pixels."""
        pixels = np.array(self.array[int(name)], order="C")
        file = file_fingerprint(self.path)  # after the pixels are read
        fingerprint = member_fingerprint(file, *filter(None, (self.key,)), int(name))

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)

        def content() -> str:
            return hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).hexdigest()

        return ReadImage(fingerprint, image, content)

    def content(self, name: str) -> str:
        """Return the sha256 of shape and pixels."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """Return the file, the array and the index."""
        return f"{self.path.resolve()}/{self.key}/{int(name)}"


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the images of an array file in order.

    Array names begin with `split` (`test_images`, `test_labels`); without a split, the file has one array of images.
    Raise UserError if the file is missing or damaged, if it does not have exactly one array of images, or (labelled)
    if it has no labels.
    """
    path = data / dataset.path
    if not path.is_file():
        raise missing_error(dataset, path)
    try:
        fingerprint = file_fingerprint(path)  # before it is opened
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
    classes = labels.reshape(-1).astype(np.int64) if labelled and labels is not None else np.full(n, -1)
    if labelled and (classes < 0).any():
        raise unlabelled_error(dataset, path, f"image {int((classes < 0).argmax())}")
    position = (key,) if key else ()  # indices are the same in all arrays of a file
    fingerprints = tuple(member_fingerprint(fingerprint, *position, i) for i in range(n))
    keys = class_keys(dataset, classes, path) if labelled else ()
    return ImageSet(dataset, path, names, fingerprints, classes, keys, source=ArraySource(images, path, key))


def _arrays(dataset: Dataset, path: Path) -> tuple[str, npt.NDArray[np.uint8], npt.NDArray[Any] | None]:
    """Return the name of the array of images ("" in a .npy file), the array, and the labels if there are any."""
    loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)  # the format is detected by content, not suffix
    if isinstance(loaded, np.ndarray):
        arrays: dict[str, Any] = {"": loaded}
    else:
        with loaded as archive:
            keys = [key for key in archive.files if not dataset.split or key.startswith(dataset.split)]
            arrays = {key: array for key in keys if isinstance(array := archive[key], np.ndarray)}
    stacks = [key for key, array in arrays.items() if _is_image_stack(array)]
    image_keys = [key for key in stacks if arrays[key].dtype == np.uint8]
    wrong_type = [key for key in stacks if arrays[key].ndim == 4 and key not in image_keys]
    if len(image_keys) != 1 or wrong_type:
        shapes = [f"{key} {array.dtype}{list(array.shape)}".strip() for key, array in arrays.items()]
        raise UserError(
            f"dataset '{dataset.name}': {path} must hold one array of uint8 images [n h w] or [n h w 3]"
            f"{f' with a name that begins with {dataset.split}' if dataset.split else ''}, it holds "
            f"{', '.join(shapes) or 'nothing'}"
            f"{_hint(list(arrays.values()))}"
        )
    images = arrays[image_keys[0]]
    if images.ndim == 3 and images.shape[1] > 4 and {images.shape[0], images.shape[2]} & {3, 4}:
        raise UserError(
            f"dataset '{dataset.name}': {path} is {list(images.shape)}: one colour image, or grey images? "
            "Write one image as [1 h w 3], grey images as [n h w 1]"
        )
    integers = [array for array in arrays.values() if array.dtype.kind in "iu" and array.ndim]
    labels = [array for array in integers if array.size == len(images) == len(array)]
    return image_keys[0], images, labels[0] if len(labels) == 1 else None


def _hint(arrays: list[npt.NDArray[Any]]) -> str:
    """Return advice for arrays that look like images in another layout or type, else ""."""
    if any(a.ndim == 4 and a.shape[1] in (1, 3) and a.shape[-1] not in (1, 3, 4) for a in arrays):
        return "; convert [n 3 h w] to [n h w 3]: array.transpose(0, 2, 3, 1)"
    if any(a.dtype.kind == "f" or a.dtype.itemsize > 1 for a in arrays if a.ndim >= 3):
        return "; values must be integers from 0 to 255, as uint8"
    return ""


def _is_image_stack(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3, 4))
