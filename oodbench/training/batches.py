"""The image-caption pairs, or labelled images, of a step as the method reads them, chunk by chunk.

A crop depends only on the seed, the epoch and the number of the pair, not on resuming or the number of processes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oodbench.data import decode
from oodbench.errors import UserError
from oodbench.method import Pairs
from oodbench.pipeline.extract import fractions
from oodbench.pipeline.patches import as_read
from oodbench.training.data import TrainingData

if TYPE_CHECKING:
    from PIL.Image import Image

    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.method import TrainedMethod
    from oodbench.training.processes import ProcessGroup
    from oodbench.training.schedule import Schedule

RATIO = (3 / 4, 4 / 3)  # width : height of a crop


@dataclass(frozen=True)
class Augmentation:
    """Random crops: the smallest and largest fraction of the area of the image, and the probability of mirroring."""

    scale: tuple[float, float]
    flip: float = 0.0


CAPTION_CROPS = Augmentation((0.9, 1.0))  # as in CLIP's own training; a mirror image may contradict its caption
LABELLED_CROPS = Augmentation((0.08, 1.0), flip=0.5)  # as in the released code of CoOp and LoCoOp


@dataclass(frozen=True)
class CropBox:
    """The rectangle of a crop, in pixels."""

    left: int
    top: int
    width: int
    height: int


def random_crop_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float] = CAPTION_CROPS.scale
) -> CropBox:
    """Draw a rectangle of random area and shape within an image, as torchvision's RandomResizedCrop does."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return CropBox(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return CropBox((width - w) // 2, (height - h) // 2, w, h)


def random_crop(
    image: Image, size: tuple[int, int], rng: np.random.Generator, augmentation: Augmentation = CAPTION_CROPS
) -> Tensor:
    """Return a random crop resized to `size` (height, width): pixels [3 height width] in 0..255."""
    from PIL import Image as Images
    from torchvision.transforms.functional import pil_to_tensor

    box = random_crop_box(*image.size, rng, augmentation.scale)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")  # bicubic resampling needs colours, not a palette
    resized = image.crop(corners).resize((size[1], size[0]), Images.Resampling.BICUBIC)
    pixels: Tensor = pil_to_tensor(resized.convert("RGB"))
    return pixels.flip(-1) if augmentation.flip and rng.random() < augmentation.flip else pixels


class Crops:
    """Crops of a corpus's images, decoded ahead of time by a pool of threads.

    `crop` returns the pixels of an image's crop; its generator is seeded by seed, epoch and pair.
    """

    def __init__(
        self, data: TrainingData, crop: Callable[[Image, np.random.Generator], Tensor], seed: int, workers: int
    ) -> None:
        self._data, self._crop, self._seed = data, crop, seed
        self._ends = np.cumsum([len(part.listing) for part in data.parts]).tolist()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="crop")
        self._pending: dict[tuple[int, int], Future[Tensor]] = {}

    def prefetch(self, pairs: npt.NDArray[np.int64], epoch: int) -> None:
        """Start decoding the crops of pairs that will be requested soon."""
        for pair in pairs.tolist():
            if (epoch, pair) not in self._pending:
                self._pending[epoch, pair] = self._pool.submit(self._decode, pair, epoch)

    def take(self, pairs: npt.NDArray[np.int64], epoch: int) -> Tensor:
        """Return the crops [b 3 height width] of pairs. Raise UserError for an image that cannot be read."""
        self.prefetch(pairs, epoch)
        return torch.stack([self._pending.pop((epoch, pair)).result() for pair in pairs.tolist()])

    def close(self) -> None:
        """Stop decoding and cancel pending crops."""
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, pair: int, epoch: int) -> Tensor:
        position = int(self._data.image[pair])
        part = bisect.bisect_right(self._ends, position)
        listing = self._data.parts[part].listing
        index = position - (self._ends[part - 1] if part else 0)
        try:
            return self._crop(listing.read(index), np.random.default_rng((self._seed, epoch, pair)))
        except UserError:  # the file changed after it was listed
            raise
        except Exception as error:
            raise decode.read_error(listing, listing.names[index], error) from error


@dataclass(frozen=True)
class PairBatches:
    """Yields the pairs of a step: stored embeddings, or random crops through the encoder if `crops` is given.

    `patches` are the names of the patch features of labelled images that the method reads.
    """

    data: TrainingData
    schedule: Schedule
    encoder: LoadedEncoder
    chunk: int
    crops: Crops | None = None
    patches: tuple[str, ...] = ()

    def chunks(self, step: int, processes: ProcessGroup) -> Iterator[Pairs]:
        """Yield this process's pairs of a step, `chunk` at a time."""
        spans = self._spans(processes)
        for number, span in enumerate(spans):
            if self.crops:
                self.crops.prefetch(self._pair_numbers(step, span), self.schedule.epoch(step))
                next_step, next_span = (step, spans[number + 1]) if number + 1 < len(spans) else (step + 1, spans[0])
                if next_step < self.schedule.steps:
                    self.crops.prefetch(self._pair_numbers(next_step, next_span), self.schedule.epoch(next_step))
            yield self._pairs(step, span)

    def _spans(self, processes: ProcessGroup) -> list[range]:
        """Return the positions in the global batch of each of this process's chunks."""
        count = self.schedule.optimiser.batch // processes.size
        start = processes.rank * count
        stop = start + count
        return [range(first, min(first + self.chunk, stop)) for first in range(start, stop, self.chunk)]

    def _pair_numbers(self, step: int, span: range) -> npt.NDArray[np.int64]:
        return self.schedule.batch(step)[span.start : span.stop]

    def _pairs(self, step: int, span: range) -> Pairs:
        pairs = self._pair_numbers(step, span)
        data, device = self.data, self.encoder.device
        embeddings, patches = self._images(step, pairs)
        text = None
        if data.texts is not None and data.text is not None:
            text = torch.from_numpy(data.texts.take(data.text[pairs])).to(device)
        return Pairs(
            embeddings=embeddings,
            captions=tuple(data.captions[pair] for pair in pairs.tolist()) if data.captions else (),
            positions=torch.arange(span.start, span.stop, device=device),
            step=step,
            seed=self.schedule.seed,
            size=self.schedule.optimiser.batch,
            _text=text,
            _labels=None if data.labels is None else torch.from_numpy(data.labels[pairs]).to(device),
            _patches=patches.get("patches"),
            _patch_activations=patches.get("patch_activations"),
        )

    def _images(self, step: int, pairs: npt.NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the embeddings of pairs, and the patch features that the method reads, by name."""
        epoch = self.schedule.epoch(step)
        if self.crops is not None:
            return embed(self.encoder, self.crops.take(pairs, epoch), self.patches)
        rows, device = self.data.rows(pairs, epoch), self.encoder.device
        embeddings = torch.from_numpy(self.data.images.take(rows)).to(device)
        stored = {name: torch.from_numpy(array.take(rows)).to(device) for name, array in self.data.patches.items()}
        return embeddings, {name: as_read(name, values) for name, values in stored.items()}


def embed(encoder: LoadedEncoder, pixels: Tensor, patches: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the embeddings of images and, by name, the requested patch features, from one forward pass."""
    with torch.no_grad():
        images = fractions(pixels.to(encoder.device))
        if not patches:
            return encoder.pixels(images), {}
        activations, found = encoder.activations_and_patches(images, patches)
        return encoder.project(activations), {name: as_read(name, values) for name, values in found.items()}


def reads_text(method: TrainedMethod[Any], encoder: LoadedEncoder, captions: list[str]) -> bool:
    """Return whether the method's inputs() calls pairs.text(), so that the captions are embedded once for all steps."""
    calls = []

    class RecordedPairs(Pairs):
        def text(self, encoder: Any) -> Tensor:
            calls.append(True)
            return super().text(encoder)

    sample = tuple(captions[:2])
    embeddings = torch.ones(len(sample), encoder.card.embed_dim, device=encoder.device)
    positions = torch.arange(len(sample), device=encoder.device)
    with torch.no_grad():
        method.inputs(RecordedPairs(embeddings, sample, positions, step=0, seed=0, size=len(sample)), encoder)
    return bool(calls)


def autocast(device: torch.device, compute: str) -> AbstractContextManager[Any]:
    """Return a context of mixed precision; for fp32 it does nothing."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[compute]) if compute in dtypes else nullcontext()
