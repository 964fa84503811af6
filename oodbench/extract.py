"""Extraction: every image of a list through the image tower once, into the store, shard by shard.

A shard is a few thousand consecutive images, a multiple of the batch size; its key is made of its own images, the
encoder, precision and batch size. A killed run leaves whole shards; the next run makes the missing ones, with the
same batch boundaries and therefore the same digits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench import decode
from oodbench.decode import Decoded, Reading
from oodbench.errors import UserError
from oodbench.images import Listing
from oodbench.provenance import distinct, stamp
from oodbench.store import Entry, Store

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.encoder.openclip import OpenClip

__all__ = ["Decoded", "Embedded", "Reading", "Recipe", "Work", "batches", "extract"]

ENGINE = 1  # raise when extraction gives other numbers than before
SHARD = 2048  # images, rounded up to whole batches


@dataclass(frozen=True)
class Recipe:
    """What embeddings depend on besides the images."""

    encoder: str  # identity of the card
    precision: str
    batch_size: int


@dataclass(frozen=True)
class Work:
    """One list to be embedded: which images, how, and where the embeddings go."""

    listing: Listing
    recipe: Recipe
    reading: Reading
    store: Store

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """The store key's inputs for the embeddings of a part of the list."""
        return {"engine": ENGINE, **asdict(self.recipe), "items": self.listing.items_digest(start, stop)}

    def shards(self) -> list[tuple[int, int]]:
        """(start, stop) of every shard."""
        batch = self.recipe.batch_size
        step = -(-SHARD // batch) * batch
        return [(start, min(start + step, len(self.listing))) for start in range(0, len(self.listing), step)]

    def missing(self) -> int:
        """How many images would have to be encoded. Looks, does not verify."""
        return sum(b - a for a, b in self.shards() if not self.store.has("embeddings", self.inputs(a, b)))


@dataclass(frozen=True)
class Embedded:
    """A list's embeddings, still on disk: `shards` in list order."""

    listing: Listing
    shards: tuple[Entry, ...]
    starts: tuple[int, ...]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Position in the list of every row: all of them unless images were skipped."""
        return np.concatenate([s.array("positions") + start for s, start in zip(self.shards, self.starts, strict=True)])

    @property
    def skipped(self) -> tuple[str, ...]:
        """`name: reason` of every image that could not be read."""
        return tuple(f"{name}: {reason}" for shard in self.shards for name, reason in shard.facts["skipped"])

    @property
    def seconds(self) -> float:
        return float(sum(shard.facts["seconds"] for shard in self.shards))

    @property
    def stamps(self) -> list[dict[str, Any]]:
        """What made the embeddings: one stamp unless shards were made by different versions or devices."""
        return distinct(shard.facts["stamp"] for shard in self.shards)


def extract(work: Work, encoder: Callable[[], OpenClip], done: Callable[[int], None] = lambda n: None) -> Embedded:
    """Embeddings of a whole list, from the store where they are there. `done` is told how many images are ready.

    Raises UserError naming the image when one cannot be read and `reading.on_error` is "stop".
    """
    listing = work.listing
    entries = []
    for start, stop in work.shards():
        entry = work.store.find("embeddings", work.inputs(start, stop))
        if entry is None:
            entry = _encode(work, (start, stop), encoder(), done)
        else:
            done(stop - start)
        if entry.facts["skipped"] and work.reading.on_error == "stop":
            raise decode.unreadable(listing, *entry.facts["skipped"][0])
        entries.append(entry)
    embedded = Embedded(listing, tuple(entries), tuple(start for start, _ in work.shards()))
    if len(embedded.skipped) == len(listing):
        raise UserError(f"dataset '{listing.dataset.name}': not one of its {len(listing)} images can be read")
    return embedded


def batches(work: Work, bounds: tuple[int, int], transform: Callable[[Any], Tensor]) -> Generator[Decoded, None, None]:
    """The images of a part of the list, decoded in the batches that the model sees."""
    return decode.batches(work.listing, work.reading, work.recipe.batch_size, bounds, transform)


def _encode(work: Work, bounds: tuple[int, int], encoder: OpenClip, done: Callable[[int], None]) -> Entry:
    import time

    import torch

    from oodbench.encoder.openclip import transform

    began = time.perf_counter()
    rows: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    positions: list[int] = []
    skipped: list[tuple[str, str]] = []
    decoded = contextlib.closing(batches(work, bounds, transform(encoder.card)))
    with torch.no_grad(), decoded as parts:
        for batch in parts:
            if batch.images is not None:
                activations = encoder.activations(batch.images.to(encoder.device).float() / 255)
                embeddings = encoder.project(activations)
                rows.append((embeddings.cpu().numpy(), activations.cpu().numpy()))
            positions += batch.positions
            skipped += batch.skipped
            done(len(batch.positions) + len(batch.skipped))
    card = encoder.card
    arrays = {
        "embeddings": np.concatenate([r[0] for r in rows]) if rows else np.zeros((0, card.embed_dim), np.float32),
        "positions": np.array(positions, np.int64) - bounds[0],
    }
    if card.activation != "embedding":  # else they are the embeddings, and are not stored twice
        arrays["activations"] = np.concatenate([r[1] for r in rows]) if rows else np.zeros((0, card.width), np.float32)
    bad = np.flatnonzero(~np.isfinite(arrays["embeddings"]).all(1))
    if len(bad):
        name = work.listing.names[positions[bad[0]]]
        raise UserError(f"the encoder gave NaN or infinity for {len(bad)} images, '{name}' first; try --precision fp32")
    facts = {
        "dataset": work.listing.dataset.name,
        "skipped": skipped,
        "seconds": round(time.perf_counter() - began, 3),
        "stamp": stamp(str(encoder.device)),
    }
    return work.store.write("embeddings", work.inputs(*bounds), arrays, facts)
