"""Extraction: every image of a list through the image tower once, into the store, shard by shard.

A shard is a few thousand consecutive images, a multiple of the batch size; its key is made of its own images, the
encoder, precision and batch size. A killed run leaves whole shards; the next run makes the missing ones, with the
same batch boundaries and therefore the same digits. A list that is part of others, or several as one, is not encoded:
its shards are taken from theirs, which are made first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data import decode
from oodbench.data.decode import DecodeConfig, Decoded
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.results import distinct, stamp
from oodbench.storage.store import Entry, Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
    import torch

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
    import numpy as np

    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


__all__ = ["Decoded", "Embedded", "EmbeddingConfig", "ExtractionJob", "decoded_batches", "extract", "shard"]

ENGINE = 2  # raise when extraction gives other numbers than before
SHARD = 2048  # images, rounded up to whole batches


@dataclass(frozen=True)
class EmbeddingConfig:
    """What embeddings depend on besides the images."""

    encoder: str  # identity of the card
    precision: str
    batch_size: int


@dataclass(frozen=True)
class ExtractionJob:
    """One list to be embedded: which images, how, and where the embeddings go."""

    listing: ImageSet
    recipe: EmbeddingConfig
    reading: DecodeConfig
    store: Store

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """The store key's inputs for the embeddings of a part of the list."""
        inputs = {"engine": ENGINE, **asdict(self.recipe), "items": self.listing.part_stamp(start, stop)}
        if self.listing.origins:  # digits follow the batches of the lists that they are taken from
            inputs["of"] = [one.source.stamp for one in self.listing.origins]
        return inputs

    def shards(self) -> list[tuple[int, int]]:
        """(start, stop) of every shard."""
        batch = self.recipe.batch_size
        step = -(-SHARD // batch) * batch
        return [(start, min(start + step, len(self.listing))) for start in range(0, len(self.listing), step)]

    def missing(self) -> int:
        """How many images would have to be encoded. Looks, does not verify."""
        own = sum(b - a for a, b in self.shards() if not self.store.has("embeddings", self.inputs(a, b)))
        return sum(one.missing() for one in self.origins()) if own and self.listing.origins else own

    def origins(self) -> list[ExtractionJob]:
        """The lists that a derived one takes its embeddings from."""
        return [replace(self, listing=one.source) for one in self.listing.origins]

    def images(self) -> int:
        """How many images extraction goes through: those of the origins of a derived list."""
        return sum(one.images() for one in self.origins()) or len(self.listing)


@dataclass(frozen=True)
class Embedded:
    """A list's embeddings, still on disk: `shards` in list order."""

    listing: ImageSet
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


def extract(
    work: ExtractionJob, encoder: Callable[[], OpenClip], done: Callable[[int], None] = lambda n: None
) -> Embedded:
    """Embeddings of a whole list, from the store where they are there. `done` is told how many images are ready.

    Raises UserError naming the image when one cannot be read and `reading.on_error` is "stop".
    """
    listing = work.listing
    entries = []
    origins: list[Embedded] | None = None
    for start, stop in work.shards():
        entry = work.store.find("embeddings", work.inputs(start, stop))
        if entry is None and listing.origins:
            origins = origins or [extract(one, encoder, done) for one in work.origins()]
            entry = _take(work, (start, stop), origins)
        elif entry is None:
            entry = _encode(work, (start, stop), encoder(), done)
        elif listing.origins:
            pass  # `done` counts the images of the origins
        else:
            done(stop - start)
        if entry.facts["skipped"] and work.reading.on_error == "stop":
            raise decode.unreadable(listing, *entry.facts["skipped"][0])
        entries.append(entry)
    embedded = Embedded(listing, tuple(entries), tuple(start for start, _ in work.shards()))
    if len(embedded.skipped) == len(listing):
        raise UserError(f"dataset '{listing.dataset.name}': not one of its {len(listing)} images can be read")
    return embedded


def shard(work: ExtractionJob, bounds: tuple[int, int], encoder: Callable[[], OpenClip]) -> Entry:
    """One shard of a list that is not derived, from the store where it is there. UserError as `extract` raises it."""
    return work.store.find("embeddings", work.inputs(*bounds)) or _encode(work, bounds, encoder(), lambda n: None)


def _take(work: ExtractionJob, bounds: tuple[int, int], origins: list[Embedded]) -> Entry:
    """A shard of a derived list: rows of its origins' shards."""
    start, stop = bounds
    names: list[str] = [""] * (stop - start)
    rows: dict[int, tuple[Entry, int]] = {}  # position in the list -> row of a stored shard
    skipped: dict[str, str] = {}
    for origin, embedded in zip(work.listing.origins, origins, strict=True):
        inside = (origin.rows >= start) & (origin.rows < stop)
        wanted = {
            int(there): int(here) for there, here in zip(origin.source_rows[inside], origin.rows[inside], strict=True)
        }
        for shard, first in zip(embedded.shards, embedded.starts, strict=True):
            for row, position in enumerate(shard.array("positions") + first):
                if (here := wanted.pop(int(position), None)) is not None:
                    rows[here] = (shard, row)
            skipped |= dict(shard.facts["skipped"])
        for there, here in wanted.items():  # what no shard has was skipped
            names[here - start] = origin.source.names[there]
    positions = sorted(rows)
    arrays: dict[str, npt.NDArray[Any]] = {"positions": np.array(positions, np.int64) - start}
    used = list({id(shard): shard for shard, _ in rows.values()}.values()) or [origins[0].shards[0]]
    for name in [name for name in ("embeddings", "activations") if name in used[0].names]:
        taken = np.zeros((len(positions), used[0].array(name).shape[1]), np.float32)
        for shard in used:
            mine = [i for i, position in enumerate(positions) if rows[position][0] is shard]
            taken[mine] = shard.array(name)[[rows[positions[i]][1] for i in mine]]
        arrays[name] = taken
    facts = {
        "dataset": work.listing.dataset.name,
        "skipped": [(work.listing.names[i + start], skipped[name]) for i, name in enumerate(names) if name],
        "seconds": 0.0,
        "stamp": used[0].facts["stamp"],
    }
    return work.store.write("embeddings", work.inputs(start, stop), arrays, facts)


def decoded_batches(
    work: ExtractionJob, bounds: tuple[int, int], transform: Callable[[Any], Tensor]
) -> Generator[Decoded, None, None]:
    """The images of a part of the list, decoded in the batches that the model sees."""
    return decode.batches(work.listing, work.reading, work.recipe.batch_size, bounds, transform)


def _encode(work: ExtractionJob, bounds: tuple[int, int], encoder: OpenClip, done: Callable[[int], None]) -> Entry:
    import time

    from oodbench.encoder.openclip import transform

    pass

    began = time.perf_counter()
    with contextlib.closing(decoded_batches(work, bounds, transform(encoder.card))) as parts:
        found = encoded(parts, encoder, done)
    arrays: dict[str, npt.NDArray[Any]] = {"positions": np.array(found.positions, np.int64) - bounds[0]}
    bad = np.flatnonzero(~np.isfinite(found.arrays["embeddings"]).all(1))
    if len(bad):
        name = work.listing.names[found.positions[bad[0]]]
        raise encoder.not_finite(f"{len(bad)} images, '{name}' first")
    facts = {
        "dataset": work.listing.dataset.name,
        "skipped": found.skipped,
        "seconds": round(time.perf_counter() - began, 3),
        "stamp": stamp(str(encoder.device)),
    }
    return work.store.write("embeddings", work.inputs(*bounds), {**found.arrays, **arrays}, facts)
