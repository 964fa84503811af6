"""Feed: the pairs of a step as the method reads them, chunk by chunk."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oodbench.data import decode
from oodbench.method import Pairs
from oodbench.training.material import TrainingData

if TYPE_CHECKING:
    from PIL.Image import Image

    from oodbench.encoder.openclip import OpenClip
    from oodbench.method import TrainedMethod
    from oodbench.training.processes import ProcessGroup
    from oodbench.training.schedule import Schedule

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

    def __init__(self, material: TrainingData, size: tuple[int, int], seed: int, workers: int) -> None:
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
            raise decode.unreadable_error(listing, listing.names[index], reason) from error


@dataclass(frozen=True)
class PairBatches:
    """Gives a step's pairs: stored embeddings, or random crops through the encoder."""

    material: TrainingData
    schedule: Schedule
    encoder: OpenClip
    chunk: int
    crops: Crops | None = None

    def chunks(self, step: int, world: ProcessGroup) -> Iterator[Pairs]:
        """This process's pairs of a step, `chunk` at a time."""
        spans = self._spans(world)
        for number, span in enumerate(spans):
            if self.crops:
                self.crops.ahead(self._of(step, span), self.schedule.epoch(step))
                following = (step, spans[number + 1]) if number + 1 < len(spans) else (step + 1, spans[0])
                if following[0] < self.schedule.steps:
                    self.crops.ahead(self._of(*following), self.schedule.epoch(following[0]))
            yield self._pairs(step, span)

    def _spans(self, world: ProcessGroup) -> list[range]:
        """Positions in the global batch of each chunk."""
        own = self.schedule.optimiser.batch // world.size
        start = world.rank * own
        return [range(at, min(at + self.chunk, start + own)) for at in range(start, start + own, self.chunk)]

    def _of(self, step: int, span: range) -> npt.NDArray[np.int64]:
        return self.schedule.batch(step)[span.start : span.stop]

    def _pairs(self, step: int, span: range) -> Pairs:
        pairs = self._of(step, span)
        material, device = self.material, self.encoder.device
        text = None
        if material.texts is not None and material.text is not None:
            text = torch.from_numpy(material.texts.take(material.text[pairs])).to(device)
        return Pairs(
            embeddings=self._embeddings(step, pairs),
            captions=tuple(material.captions[pair] for pair in pairs.tolist()),
            positions=torch.arange(span.start, span.stop, device=device),
            step=step,
            seed=self.schedule.seed,
            size=self.schedule.optimiser.batch,
            _text=text,
        )

    def _embeddings(self, step: int, pairs: npt.NDArray[np.int64]) -> Tensor:
        if self.crops is None:
            return torch.from_numpy(self.material.images.take(self.material.image[pairs])).to(self.encoder.device)
        images = self.crops.take(pairs, self.schedule.epoch(step))
        with torch.no_grad():
            return self.encoder.pixels(images.to(self.encoder.device).float() / 255)


def reads_text(method: TrainedMethod[Any], encoder: OpenClip, captions: list[str]) -> bool:
    """Whether inputs() asks for the captions' frozen features, which are then embedded once for all steps."""
    asked = []

    class Asked(Pairs):
        def text(self, encoder: Any) -> Tensor:
            asked.append(True)
            return super().text(encoder)

    some = tuple(captions[:2])
    embeddings = torch.ones(len(some), encoder.card.embed_dim, device=encoder.device)
    where = torch.arange(len(some), device=encoder.device)
    with torch.no_grad():
        method.inputs(Asked(embeddings, some, where, step=0, seed=0, size=len(some)), encoder)
    return bool(asked)


def autocast(device: torch.device, compute: str) -> AbstractContextManager[Any]:
    """Mixed precision, unless it is fp32."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds[compute]) if compute in kinds else nullcontext()
