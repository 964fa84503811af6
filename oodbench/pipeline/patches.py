"""One pass over an image set for the methods that read patches, which also stores the embeddings that are missing.

Features of patches are `patches` in the joint space, or `patch_activations` before the last linear map. They are stored
only with --keep-patches (200 or 300 KB per image in half precision for ViT-B-16): methods are scored while the images
are encoded. Every image goes through the image tower once, for embeddings, activations and patches together; if the
embeddings are stored already, it goes through it again for the patches. The embeddings of a derived set are computed
before the pass, with those of the sets that it is derived from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.decode import Decoded
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.pipeline.batches import SAMPLE_PIXEL_IMAGES, Sample
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.extract import (
    EmbeddedSet,
    EncodedImages,
    ExtractionJob,
    arrays_of,
    check_readable,
    decoded_batches,
    fractions,
    write_shard,
)
from oodbench.storage.store import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.method import Batch

ENGINE = 1  # raise when patches have other numbers than before
Bounds = tuple[int, int]


@dataclass
class PatchPass:
    """The batches of an image set with patches; the set's embeddings are stored once all batches have been read.

    images    the set, and how it is encoded
    embedded  returns its stored embeddings, and computes those that are missing
    encoder   returns the loaded encoder
    fields    features of patches in the batches: `patches`, `patch_activations` or both
    pixels    whether the batches have pixels, too
    keep      whether patches are stored in half precision, and read if they are stored
    """

    images: ExtractionJob
    embedded: Callable[[], EmbeddedSet]
    encoder: Callable[[], LoadedEncoder]
    fields: tuple[str, ...]
    pixels: bool
    keep: bool
    watch: Watch = field(default_factory=Watch)
    _begun: Iterator[Batch] | None = None

    @property
    def listing(self) -> ImageSet:
        """Return the image set."""
        return self.images.listing

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Return [n] the position in the set of every row, after the pass."""
        return self.embedded().positions

    def sample(self) -> Sample:
        """Return the first images as two small batches; this begins the pass that batches() continues."""
        batches = self._encode()
        first = next(batches, None)
        if first is None:  # no image can be read, which embedded() reports
            self.embedded()
            raise AssertionError("an image set without images has embeddings")
        self._begun = chain([first], batches)
        count = min(SAMPLE_PIXEL_IMAGES, max(1, first.size // 2))
        rows = [np.arange(start, start + count) for start in (0, count) if start < first.size]
        return Sample(tuple(first.part(slice(own[0], own[-1] + 1)).copy() for own in rows), tuple(rows))

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the set in a new pass, or in the one that sample() began."""
        begun, self._begun = self._begun, None
        return begun or self._encode()

    def _encode(self) -> Iterator[Batch]:
        copied = self.embedded().shards if self.listing.origins else ()
        missing = 0 if copied else self.images.missing()
        name, began = self.listing.dataset.name, time.perf_counter()
        if missing:
            self.watch.event(Event("started", "extract", f"extract[{name}]"))
        done = (self.watch if missing else Watch()).extracting(name, len(self.listing))
        for number, bounds in enumerate(self.images.shards()):
            entry = copied[number] if copied else self.images.store.find("embeddings", self.images.inputs(*bounds))
            kept = self._kept(bounds) if entry and self.keep and not self.pixels else []
            if entry and kept:
                yield from _stored_batches(entry, kept, self.encoder().device)
            else:
                yield from self._shard(bounds, entry, done)
        if missing:
            self.watch.event(
                Event("done", "extract", f"extract[{name}]", missing, round(time.perf_counter() - began, 3))
            )

    def _shard(self, bounds: Bounds, entry: Entry | None, done: Callable[[int], None]) -> Iterator[Batch]:
        """Yield the batches of a shard, encoded now; store its embeddings if they are not stored."""
        encoder, size = self.encoder(), self.images.config.batch_size
        rows: list[tuple[Any, Any]] = []
        positions: list[int] = []
        skipped: list[tuple[str, str]] = []
        seconds, began = 0.0, time.perf_counter()
        with contextlib.closing(decoded_batches(self.images, bounds, encoder.transform)) as parts:
            for number, part in enumerate(parts):
                if part.images is not None:
                    own = slice(len(positions), len(positions) + len(part.positions))
                    if entry:
                        check_readable(self.listing, entry.array("positions")[own] + bounds[0], part.positions)
                    stored = _rows(entry, own, encoder.device) if entry else None
                    batch = self._batch(part, stored, encoder)
                    if self.keep:
                        start = bounds[0] + number * size
                        self._store(batch, (start, min(start + size, bounds[1])))
                    if entry is None:
                        rows.append((batch._embeddings.cpu().numpy(), batch._activations.cpu().numpy()))  # type: ignore[union-attr]
                    seconds += time.perf_counter() - began
                    yield batch
                    began = time.perf_counter()
                positions += part.positions
                skipped += part.skipped
                done(len(part.positions) + len(part.skipped))
        if entry:
            check_readable(self.listing, entry.array("positions") + bounds[0], positions)
        else:
            found = EncodedImages(arrays_of(rows, encoder.card), positions, skipped)
            write_shard(self.images, bounds, found, encoder, seconds + time.perf_counter() - began)

    def _batch(self, part: Decoded, stored: tuple[Tensor, Tensor] | None, encoder: LoadedEncoder) -> Batch:
        """Encode a batch; stored embeddings are used if there are any."""
        import torch

        assert part.images is not None
        images = fractions(part.images.to(encoder.device))
        with torch.no_grad(), encoder.casting_once():
            if stored:
                embeddings, activations = stored
                found = encoder.activations_and_patches(images, self.fields)[1]
            else:
                activations, found = encoder.activations_and_patches(images, self.fields)
                embeddings = encoder.project(activations)
        found = {name: as_read(name, values) for name, values in found.items()}
        if self.keep:
            found = {name: as_read(name, to_half(name, values)) for name, values in found.items()}
        return _batch(embeddings, activations, images if self.pixels else None, found)

    def _store(self, batch: Batch, bounds: Bounds) -> None:
        for name in self.fields:
            arrays = {name: getattr(batch, f"_{name}").half().cpu().numpy()}
            self.images.store.write("patches", self._key(bounds, name), arrays, {"dataset": self.listing.dataset.name})

    def _kept(self, bounds: Bounds) -> list[dict[str, Entry]]:
        """Return the stored patches of a shard by batch and field, [] unless all are stored."""
        size = self.images.config.batch_size
        kept = []
        for start in range(bounds[0], bounds[1], size):
            keys = {name: self._key((start, min(start + size, bounds[1])), name) for name in self.fields}
            found = {name: self.images.store.find("patches", key) for name, key in keys.items()}
            kept.append({name: entry for name, entry in found.items() if entry})
        return kept if all(len(entries) == len(self.fields) for entries in kept) else []

    def _key(self, bounds: Bounds, name: str) -> dict[str, Any]:
        return {**self.images.inputs(*bounds), name: ENGINE}


def as_read(name: str, values: Tensor) -> Tensor:
    """Return features of patches in single precision as methods read them: `patches` are unit vectors."""
    import torch

    return torch.nn.functional.normalize(values.float(), dim=-1) if name == "patches" else values.float()


def to_half(name: str, values: Tensor) -> Tensor:
    """Round features of patches to half precision. Raise UserError for numbers that it cannot hold."""
    half = values.half()
    if bool((half.isinf() & values.isfinite()).any()):
        raise UserError(
            f"{name} of this encoder exceed 65504, the largest number of half precision, in which they are stored"
        )
    return half


def _stored_batches(entry: Entry, kept: list[dict[str, Entry]], device: Any) -> Iterator[Batch]:
    """Yield the batches of a shard whose embeddings and patches are stored."""
    import torch

    start = 0
    for one in kept:
        arrays = {name: torch.from_numpy(np.array(stored.array(name))).to(device) for name, stored in one.items()}
        count = len(next(iter(arrays.values())))
        embeddings, activations = _rows(entry, slice(start, start + count), device)
        start += count
        yield _batch(embeddings, activations, None, {name: as_read(name, values) for name, values in arrays.items()})


def _rows(entry: Entry, rows: slice, device: Any) -> tuple[Tensor, Tensor]:
    """Return stored embeddings and activations."""
    import torch

    names = ("embeddings", "activations" if "activations" in entry.names else "embeddings")
    embeddings, activations = (torch.from_numpy(np.array(entry.array(name)[rows])).to(device) for name in names)
    return embeddings, activations


def _batch(embeddings: Tensor, activations: Tensor, pixels: Tensor | None, of_patches: Mapping[str, Tensor]) -> Batch:
    import torch

    from oodbench.method import Batch, Needs

    features = torch.nn.functional.normalize(embeddings, dim=-1)
    fields: dict[str, Any] = {f"_{name}": values for name, values in of_patches.items()}
    return Batch(~Needs(0), len(features), features, embeddings, activations, pixels, **fields)
