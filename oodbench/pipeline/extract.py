"""Extract embeddings: every image of a set goes through the image tower once, and the result is stored in shards.

A shard is a few thousand consecutive images, a multiple of the batch size. Its key depends on its images, the encoder,
the precision and the batch size. A run that is killed leaves complete shards; the next run computes the missing ones,
with the same batch boundaries and therefore the same digits. A subset or union of other sets is not encoded: the rows
of its shards are copied from the shards of those sets, which are computed first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
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

    from oodbench.encoder.card import EncoderCard
    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.method.views import KeyedView

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImages:
    """The embeddings of the n images that could be read, and the names of those that could not.

    arrays     embeddings [n, d], not normalised; activations [n, w] unless they are the embeddings
    positions  [n] positions in the image set
    skipped    (name, reason) of the images that could not be read
    """

    arrays: dict[str, Floats]
    positions: list[int]
    skipped: list[tuple[str, str]]


def encode_batches(batches: Iterable[Decoded], encoder: LoadedEncoder, done: Callable[[int], None]) -> EncodedImages:
    """Encode all batches in their order; `done` is called with the number of images of each batch."""
    import torch

    rows: list[tuple[Floats, Floats]] = []
    pending: list[tuple[Tensor, Tensor]] = []  # a GPU may still be computing them
    positions: list[int] = []
    skipped: list[tuple[str, str]] = []
    with torch.no_grad(), encoder.casting_once():
        for batch in batches:
            if batch.images is not None:
                activations = encoder.activations(_to_device(batch.images, encoder.device))
                pending.append((encoder.project(activations), activations))
                rows += [_to_numpy(pending.pop(0))] if len(pending) > 1 else []
            positions += batch.positions
            skipped += batch.skipped
            done(len(batch.positions) + len(batch.skipped))
        rows += [_to_numpy(batch) for batch in pending]
    return EncodedImages(arrays_of(rows, encoder.card), positions, skipped)


def arrays_of(rows: Sequence[tuple[Floats, Floats]], card: EncoderCard) -> dict[str, Floats]:
    """Return the arrays to store for batches of embeddings and activations."""
    arrays = {"embeddings": _concatenated([row[0] for row in rows], card.embed_dim)}
    if card.activation != "embedding":  # else they are the embeddings, and are not stored twice
        arrays["activations"] = _concatenated([row[1] for row in rows], card.width)
    return arrays


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    """Return pixels as floats in [0, 1] on the device; a GPU copies pinned memory while it computes."""
    images = images.pin_memory() if device.type == "cuda" else images
    return fractions(images.to(device, non_blocking=True))


def fractions(images: Tensor) -> Tensor:
    """Return bytes as floats in [0, 1]; floats, which the preprocessing of a user's encoder may return, unchanged."""
    return images if images.is_floating_point() else images.float() / 255


def _to_numpy(batch: tuple[Tensor, Tensor]) -> tuple[Floats, Floats]:
    embeddings, activations = batch
    return embeddings.cpu().numpy(), activations.cpu().numpy()


def _concatenated(parts: list[Floats], width: int) -> Floats:
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


EncodeShard = Callable[["ExtractionJob", tuple[int, int], "LoadedEncoder", Callable[[int], None]], Entry]

ENGINE = 2  # raise when extraction gives other numbers than before
SHARD = 2048  # images, rounded up to whole batches


@dataclass(frozen=True)
class EmbeddingConfig:
    """Settings that embeddings depend on in addition to the images; `encoder` is the identity of the card."""

    encoder: str
    precision: str
    batch_size: int


@dataclass(frozen=True)
class ExtractionJob:
    """An image set whose embeddings are to be computed: which images, how, and the store of the embeddings.

    view  the transform of the images that is embedded (pipeline/views.py); None for the images themselves
    """

    listing: ImageSet
    config: EmbeddingConfig
    reading: DecodeConfig
    store: Store
    view: KeyedView | None = None

    def __post_init__(self) -> None:
        """Use the local store if keys depend on sizes and times of files: keys of a shared store need contents."""
        if self.store.url and self.listing.local:
            object.__setattr__(self, "store", self.store.local())

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """Return everything that the embeddings of a part of the set depend on: the key of the stored shard."""
        inputs = {"engine": ENGINE, **asdict(self.config), "items": self.listing.part_fingerprint(start, stop)}
        if self.listing.origins:  # the digits depend on the batches of the sets that the rows are copied from
            inputs["of"] = [origin.source.fingerprint for origin in self.listing.origins]
        if self.view:
            inputs["view"] = self.view.key
        return inputs

    def shards(self) -> list[tuple[int, int]]:
        """Return (start, stop) of every shard."""
        batch = self.config.batch_size
        step = -(-SHARD // batch) * batch
        return [(start, min(start + step, len(self.listing))) for start in range(0, len(self.listing), step)]

    def missing(self) -> int:
        """Return how many images have to be encoded. Stored shards are not verified."""
        own = sum(b - a for a, b in self.shards() if not self.store.has("embeddings", self.inputs(a, b)))
        return sum(origin.missing() for origin in self.origins()) if own and self.listing.origins else own

    def origins(self) -> list[ExtractionJob]:
        """Return the jobs of the sets that a derived set copies its embeddings from."""
        return [replace(self, listing=origin.source) for origin in self.listing.origins]

    def images(self) -> int:
        """Return how many images are encoded if none is stored: those of the origins if the set is derived."""
        return sum(origin.images() for origin in self.origins()) or len(self.listing)


@dataclass(frozen=True)
class EmbeddedSet:
    """The embeddings of an image set on disk: its shards in order, and the position of the first image of each.

    views  [views][shards] the embeddings of the same rows in each view, once a method that reads views is scored
    """

    listing: ImageSet
    shards: tuple[Entry, ...]
    starts: tuple[int, ...]
    views: tuple[tuple[Entry, ...], ...] = ()

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Return [n] the position in the set of every row: all positions unless images were skipped."""
        return np.concatenate([s.array("positions") + start for s, start in zip(self.shards, self.starts, strict=True)])

    @property
    def skipped(self) -> tuple[str, ...]:
        """Return `name: reason` of every image that could not be read."""
        return tuple(f"{name}: {reason}" for shard in self.shards for name, reason in shard.facts["skipped"])

    @property
    def seconds(self) -> float:
        """Return the seconds that the encoding took when it ran."""
        return float(sum(shard.facts["seconds"] for shard in self.shards))

    @property
    def stamps(self) -> list[dict[str, Any]]:
        """Return the versions and devices that computed the embeddings: one entry unless the shards differ in them."""
        return distinct(shard.facts["stamp"] for shard in self.shards)


def extract(
    work: ExtractionJob,
    encoder: Callable[[], LoadedEncoder],
    done: Callable[[int], None] = lambda n: None,
    encode: EncodeShard | None = None,
) -> EmbeddedSet:
    """Return the embeddings of an image set; compute and store the shards that are missing.

    `done` is called with the number of images of each shard or batch; `encode` computes a shard, by default of the
    images themselves. Raises UserError with the name of an image that cannot be read if `on_error` is "stop".
    """
    listing = work.listing
    entries = []
    origins: list[EmbeddedSet] | None = None
    for start, stop in work.shards():
        entry = work.store.find("embeddings", work.inputs(start, stop))
        if entry is None and listing.origins:
            origins = origins or [extract(origin, encoder, done, encode) for origin in work.origins()]
            entry = _copy_rows(work, (start, stop), origins)
        elif entry is None:
            entry = (encode or _encode)(work, (start, stop), encoder(), done)
        elif listing.origins:
            pass  # `done` has counted the images of the origins
        else:
            done(stop - start)
        if entry.facts["skipped"] and work.reading.on_error == "stop":
            raise decode.unreadable_error(listing, *entry.facts["skipped"][0])
        entries.append(entry)
    embedded = EmbeddedSet(listing, tuple(entries), tuple(start for start, _ in work.shards()))
    if len(embedded.skipped) == len(listing):
        raise UserError(f"dataset '{listing.dataset.name}': none of its {len(listing)} images can be read")
    return embedded


def extract_shard(work: ExtractionJob, bounds: tuple[int, int], encoder: Callable[[], LoadedEncoder]) -> Entry:
    """Return one shard of a set that is not derived; compute and store it if it is missing."""
    return work.store.find("embeddings", work.inputs(*bounds)) or _encode(work, bounds, encoder(), lambda n: None)


def _copy_rows(work: ExtractionJob, bounds: tuple[int, int], origins: list[EmbeddedSet]) -> Entry:
    """Store a shard of a derived set, whose rows are copied from the shards of its origins, and return it."""
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
    """Yield the images of a part of the set, decoded in the batches that the model sees."""
    return decode.batches(work.listing, work.reading, work.config.batch_size, bounds, transform)


def _encode(work: ExtractionJob, bounds: tuple[int, int], encoder: LoadedEncoder, done: Callable[[int], None]) -> Entry:
    """Encode one shard, store it and return it."""
    began = time.perf_counter()
    with contextlib.closing(decoded_batches(work, bounds, encoder.transform)) as parts:
        found = encode_batches(parts, encoder, done)
    return write_shard(work, bounds, found, encoder, time.perf_counter() - began)


def check_readable(images: ImageSet, stored: npt.NDArray[np.int64], read: Sequence[int]) -> None:
    """Raise UserError unless the images that were read are those of the stored rows, by position in the set."""
    if not np.array_equal(stored, read):
        raise UserError(
            f"dataset '{images.dataset.name}': other images can be read now than when its embeddings were stored; name "
            "another --store, or remove the images that cannot be read"
        )


def write_shard(
    work: ExtractionJob, bounds: tuple[int, int], found: EncodedImages, encoder: LoadedEncoder, seconds: float
) -> Entry:
    """Store the embeddings of one shard and return them. Raise UserError if one of them is not finite."""
    arrays: dict[str, npt.NDArray[Any]] = {"positions": np.array(found.positions, np.int64) - bounds[0]}
    bad = np.flatnonzero(~np.isfinite(found.arrays["embeddings"]).all(1))
    if len(bad):
        name = work.listing.names[found.positions[bad[0]]]
        raise encoder.not_finite(f"{len(bad)} images, '{name}' first")
    facts = {
        "dataset": work.listing.dataset.name,
        "skipped": found.skipped,
        "seconds": round(seconds, 3),
        "stamp": stamp(str(encoder.device)),
    }
    return work.store.write("embeddings", work.inputs(*bounds), {**found.arrays, **arrays}, facts)
