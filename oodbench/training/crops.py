"""--augment: a random crop of every image at every step, decoded ahead in threads.

What is cropped follows from seed, epoch and the pair's number alone: neither resuming nor processes change it.
"""

from __future__ import annotations

import bisect
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oodbench.data import decode
from oodbench.training.material import Material

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = (0.9, 1.0)  # share of the area that a crop keeps, as CLIP's own training does
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Box:
    """What is cut out, in pixels."""

    left: int
    top: int
    width: int
    height: int


def box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A box of random area and shape within an image, as torchvision's RandomResizedCrop draws it."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def crop(image: Image, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A random crop as pixels [3 height width] in 0..255."""
    from PIL import Image as Images
    from torchvision.transforms.functional import pil_to_tensor

    cut = box(*image.size, rng)
    corners = (cut.left, cut.top, cut.left + cut.width, cut.top + cut.height)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")  # bicubic needs colours, not a palette
    resized = image.crop(corners).resize((size[1], size[0]), Images.Resampling.BICUBIC)
    pixels: Tensor = pil_to_tensor(resized.convert("RGB"))
    return pixels


class Crops:
    """Crops of a corpus's images, some of them on their way already."""

    def __init__(self, material: Material, size: tuple[int, int], seed: int, workers: int) -> None:
        self._material, self._size, self._seed = material, size, seed
        self._ends = np.cumsum([len(part.listing) for part in material.parts]).tolist()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crop")
        self._waiting: dict[tuple[int, int], Future[Tensor]] = {}

    def ahead(self, pairs: npt.NDArray[np.int64], epoch: int) -> None:
        """Begin to decode what will be asked for next."""
        for pair in pairs.tolist():
            if (epoch, pair) not in self._waiting:
                self._waiting[epoch, pair] = self._pool.submit(self._one, pair, epoch)

    def take(self, pairs: npt.NDArray[np.int64], epoch: int) -> Tensor:
        """Crops [b 3 height width] of pairs. UserError naming an image that cannot be read."""
        self.ahead(pairs, epoch)
        return torch.stack([self._waiting.pop((epoch, pair)).result() for pair in pairs.tolist()])

    def close(self) -> None:
        """Stop decoding."""
        self._pool.shutdown(cancel_futures=True)

    def _one(self, pair: int, epoch: int) -> Tensor:
        place = int(self._material.image[pair])
        number = bisect.bisect_right(self._ends, place)
        listing = self._material.parts[number].listing
        index = place - (self._ends[number - 1] if number else 0)
        try:
            return crop(listing.read(index), self._size, np.random.default_rng((self._seed, epoch, pair)))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            raise decode.unreadable(listing, listing.names[index], reason) from error
