"""Encoding: decoded batches through the image tower, with one of them under way while the next is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oodbench.data.decode import Decoded
from oodbench.encoder.openclip import OpenClip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Of n images that could be read: arrays, places in the list [n]; of the others name and reason.

    arrays    embeddings [n, d], unnormalised; activations [n, w] unless they are the embeddings
    """

    arrays: dict[str, Floats]
    positions: list[int]
    skipped: list[tuple[str, str]]


def encoded(batches: Iterable[Decoded], encoder: OpenClip, done: Callable[[int], None]) -> Encoded:
    """Encode all batches in their order; `done` is told of every few images more."""
    rows: list[tuple[Floats, Floats]] = []
    ahead: list[tuple[Tensor, Tensor]] = []  # what a GPU may still be at
    positions: list[int] = []
    skipped: list[tuple[str, str]] = []
    with torch.no_grad(), encoder.casting_once():
        for batch in batches:
            if batch.images is not None:
                activations = encoder.activations(_sent(batch.images, encoder.device))
                ahead.append((encoder.project(activations), activations))
                rows += [_fetched(ahead.pop(0))] if len(ahead) > 1 else []
            positions += batch.positions
            skipped += batch.skipped
            done(len(batch.positions) + len(batch.skipped))
        rows += [_fetched(one) for one in ahead]
    card = encoder.card
    arrays = {"embeddings": _joined([row[0] for row in rows], card.embed_dim)}
    if card.activation != "embedding":  # else they are the embeddings, and are not stored twice
        arrays["activations"] = _joined([row[1] for row in rows], card.width)
    return Encoded(arrays, positions, skipped)


def _sent(images: Tensor, device: torch.device) -> Tensor:
    """Bytes as numbers from 0 to 1 on the device; out of pinned memory, which a GPU copies while it computes."""
    held = images.pin_memory() if device.type == "cuda" else images
    return held.to(device, non_blocking=True).float() / 255


def _fetched(batch: tuple[Tensor, Tensor]) -> tuple[Floats, Floats]:
    embeddings, activations = batch
    return embeddings.cpu().numpy(), activations.cpu().numpy()


def _joined(parts: list[Floats], width: int) -> Floats:
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
