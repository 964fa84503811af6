"""Feed: the pairs of a step as the method reads them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oodbench.method import Pairs

if TYPE_CHECKING:
    from oodbench.encoder.openclip import OpenClip
    from oodbench.method import TrainedMethod
    from oodbench.training.crops import Crops
    from oodbench.training.material import Material
    from oodbench.training.processes import World
    from oodbench.training.schedule import Schedule


@dataclass(frozen=True)
class Feed:
    """Gives a step's pairs: stored embeddings, or random crops through the encoder."""

    material: Material
    schedule: Schedule
    encoder: OpenClip
    chunk: int
    crops: Crops | None = None

    def chunks(self, step: int, world: World) -> Iterator[Pairs]:
        """This process's pairs of a step, `chunk` at a time."""
        spans = self._spans(world)
        for number, span in enumerate(spans):
            if self.crops:
                self.crops.ahead(self._of(step, span), self.schedule.epoch(step))
                following = (step, spans[number + 1]) if number + 1 < len(spans) else (step + 1, spans[0])
                if following[0] < self.schedule.steps:
                    self.crops.ahead(self._of(*following), self.schedule.epoch(following[0]))
            yield self._pairs(step, span)

    def _spans(self, world: World) -> list[range]:
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
