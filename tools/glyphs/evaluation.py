"""Textbook scores of the encoder on the splits, with which training checks what it has made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from oodbench.data.glyphs import render, weights, world

OOD = ("near", "letters", "textures", "digits")
Scores = npt.NDArray[np.float64]
Tokenizer = Callable[[list[str]], torch.Tensor]


class Encoder(Protocol):
    """What is used of open_clip's CLIP."""

    logit_scale: torch.Tensor

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of images [n, 3, 32, 32]."""

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of token ids [n, 16]."""


def normalised(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels [n, 32, 32, 3] as the encoder wants them: float [n, 3, 32, 32]."""
    scaled = (torch.from_numpy(pixels).float() / 255 - torch.tensor(weights.MEAN)) / torch.tensor(weights.STD)
    return scaled.permute(0, 3, 1, 2)


@torch.inference_mode()
def embed(model: Encoder, split: str, count: int | None = None) -> torch.Tensor:
    """Unit image features [n, d] of the first images of a split."""
    length = world.length(split) if count is None else count
    parts = []
    for first in range(0, length, 250):
        pixels = np.stack([render.image(split, index) for index in range(first, min(first + 250, length))])
        parts.append(F.normalize(model.encode_image(normalised(pixels)), dim=-1))
    return torch.cat(parts)


@torch.inference_mode()
def classify(model: Encoder, tokenizer: Tokenizer, names: Sequence[str] = world.CLASSES) -> torch.Tensor:
    """Unit text features [classes, d] of the prompt "a photo of a {}"."""
    return F.normalize(model.encode_text(tokenizer([f"a photo of a {name}" for name in names])), dim=-1)


def accuracy(model: Encoder, tokenizer: Tokenizer, count: int | None = None) -> float:
    """Zero-shot accuracy on the ID test images."""
    found = (embed(model, "id-test", count) @ classify(model, tokenizer).T).argmax(1)
    wanted = torch.tensor([world.label("id-test", index) for index in range(len(found))])
    return float((found == wanted).float().mean())


def scores(cosines: torch.Tensor, scale: float) -> dict[str, Scores]:
    """Four scores [n] of cosines [n, classes], each larger for images that look like a class."""
    logits = cosines * scale
    found = {
        "MSP": logits.softmax(1).amax(1),
        "MCM": cosines.softmax(1).amax(1),
        "MaxLogit": logits.amax(1),
        "Energy": logits.logsumexp(1),
    }
    return {key: value.double().numpy() for key, value in found.items()}


def auroc(inside: Scores, outside: Scores) -> float:
    """Chance that an ID image scores higher than an OOD image, ties counted half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left") + np.searchsorted(ordered, inside, side="right")
    return float(below.mean() / 2 / len(outside))


def fpr95(inside: Scores, outside: Scores) -> float:
    """Share of OOD images accepted where 95 % of ID images are."""
    return float((outside >= np.quantile(inside, 0.05, method="lower")).mean())


def report(model: Encoder, tokenizer: Tokenizer) -> Iterator[str]:
    """Lines with the accuracy and, per score and OOD set, AUROC / FPR95 in percent."""
    text, scale = classify(model, tokenizer).double(), model.logit_scale.exp().item()
    yield f"accuracy {100 * accuracy(model, tokenizer):.2f} %, logit scale {scale:.1f}"
    inside = scores(embed(model, "id-test").double() @ text.T, scale)
    outside = {split: scores(embed(model, split).double() @ text.T, scale) for split in OOD}
    for key, values in inside.items():
        cells = [(auroc(values, outside[split][key]), fpr95(values, outside[split][key])) for split in OOD]
        mean = np.mean(cells, axis=0)
        row = [f"{split} {100 * a:.2f}/{100 * f:.2f}" for split, (a, f) in zip(OOD, cells, strict=True)]
        yield f"{key:9s} " + "  ".join(row) + f"  mean {100 * mean[0]:.2f}/{100 * mean[1]:.2f}"
