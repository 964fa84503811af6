"""The labelled images of a FewShotMethod's training, encoded into the store: once, or as several random crops.

Embeddings and patches of an image come from one forward pass, and patches are kept in half precision on disk. Several
processes divide the batches among them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from oodbench.data.decode import pillow_in_threads
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.pipeline.patches import to_half
from oodbench.storage.store import Entry, Store, digest
from oodbench.training.batches import LABELLED_CROPS, Crops, embed, random_crop
from oodbench.training.corpus import CorpusPart
from oodbench.training.data import BATCH, EncoderLoader, StartProgress, StoredArray, TrainingData, unreadable_images
from oodbench.training.plan import TrainPlan
from oodbench.training.schedule import build_schedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.training.processes import ProcessGroup

ENGINE = 1  # raise when the stored crops have other numbers than before

Crop = Callable[["Image", np.random.Generator], Tensor]
Bounds = tuple[int, int]


def labelled_data(
    plan: TrainPlan, load: EncoderLoader, processes: ProcessGroup, progress: StartProgress, workers: int
) -> TrainingData:
    """Return the data of a training on labelled images; without --augment, encode images that are not stored.

    Raises UserError if an image cannot be read, or with --on-error skip if no image of a class is left or too few are.
    """
    assert plan.shots
    listing, skipped = plan.shots.images, []
    if plan.request.on_error == "skip":
        broken = unreadable_images(listing, workers, _store(plan, listing), progress)
        skipped = [f"{listing.names[position]}: {reason}" for position, reason in broken]
        listing = listing.select(np.setdiff1d(np.arange(len(listing)), [position for position, _ in broken]))
        counts = np.bincount(listing.labels, minlength=len(plan.shots.classes.lines))
        if empty := [name for name, count in zip(plan.shots.classes.lines, counts, strict=True) if not count]:
            raise UserError(
                f"none of the {plan.shots.number} images of class '{empty[0]}' of '{listing.dataset.name}' can be "
                "read; repair them, or take more with --shots"
            )
    epochs = build_schedule(plan, len(listing)).epochs
    data = TrainingData(
        image=np.arange(len(listing)),
        parts=[CorpusPart(listing, np.arange(len(listing)), ())],
        image_count=len(listing),
        digest=digest([listing.dataset.name, listing.digest, listing.list_digest]),
        skipped=skipped,
        classes=plan.shots.classes.lines,
        labels=listing.labels,
        crops=min(plan.request.crops or 1, epochs),  # an epoch reads one
    )
    if not plan.request.augment:
        _encode(StoredCrops(plan, data, listing), load, processes, progress, workers)
    return data


def _store(plan: TrainPlan, listing: ImageSet) -> Store:
    """Return the store, without the shared one if keys depend on sizes and times of files on this machine."""
    return plan.store.local() if plan.store.url and listing.local else plan.store


def crop_of(plan: TrainPlan) -> Crop:
    """Return the function that crops an image at random."""
    return functools.partial(_random_crop, size=plan.encoder.card.size)


def _random_crop(image: Image, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
    return random_crop(image, size, rng, LABELLED_CROPS)


@dataclasses.dataclass(frozen=True)
class StoredCrops:
    """Where the crops of a training's images are stored: an entry for each batch of each crop."""

    plan: TrainPlan
    data: TrainingData
    listing: ImageSet

    @property
    def patches(self) -> tuple[str, ...]:
        """Return the names of the patch features that are stored, too."""
        return self.plan.patch_fields

    @property
    def store(self) -> Store:
        """Return the store that holds the crops."""
        return _store(self.plan, self.listing)

    def batches(self) -> Iterator[tuple[int, Bounds]]:
        """Yield (number of the crop, (start, stop) of the images) for every entry."""
        n = len(self.listing)
        for crop in range(self.data.crops):
            for start in range(0, n, BATCH):
                yield crop, (start, min(start + BATCH, n))

    def key(self, crop: int, bounds: Bounds) -> dict[str, Any]:
        """Return everything that an entry depends on; a centre crop does not depend on the seed."""
        request = self.plan.request
        augmentation = dataclasses.asdict(LABELLED_CROPS)
        drawn = {"seed": request.seed, "crop": crop, "start": bounds[0], **augmentation} if request.crops else None
        return {
            "engine": ENGINE,
            "encoder": self.plan.encoder.card.identity,
            "precision": request.compute,
            "items": self.listing.part_fingerprint(*bounds),
            "drawn": drawn,
            "patches": "patches" in self.patches,
            **({"patch_activations": True} if "patch_activations" in self.patches else {}),
        }

    def find(self, batch: tuple[int, Bounds]) -> Entry | None:
        """Return the entry of a batch, None if it is not stored or damaged."""
        return self.store.find("shots", self.key(*batch))

    def missing(self) -> list[tuple[int, Bounds]]:
        """Return the batches that are not stored."""
        return [one for one in self.batches() if not self.store.has("shots", self.key(*one))]

    def write(self, crop: int, bounds: Bounds, encoder: LoadedEncoder, pixels: Tensor) -> Entry:
        """Encode the pixels of a batch and store it. Raise UserError if an embedding is not finite."""
        with torch.no_grad(), encoder.casting_once():
            embeddings, patches = embed(encoder, pixels, self.patches)
        if bad := int((~torch.isfinite(embeddings).all(1)).sum()):
            raise encoder.not_finite(f"{bad} images, '{self.listing.names[bounds[0]]}' or one after it first")
        arrays = {"embeddings": embeddings.cpu().numpy()}
        arrays |= {name: to_half(name, values).cpu().numpy() for name, values in patches.items()}
        return self.store.write("shots", self.key(crop, bounds), arrays, {"dataset": self.listing.dataset.name})


def _encode(
    crops: StoredCrops, load: EncoderLoader, processes: ProcessGroup, progress: StartProgress, workers: int
) -> None:
    """Encode the batches that are not stored, this process's part first, and add all to the data."""
    numbered = {one: number for number, one in enumerate(crops.batches())}
    own = [one for one in crops.missing() if numbered[one] % processes.size == processes.rank]
    _encode_batches(crops, own, load, progress, workers)
    processes.barrier()
    _encode_batches(crops, crops.missing(), load, progress, workers)  # those of processes with another store
    data = crops.data
    data.patches = {name: StoredArray() for name in crops.patches}
    for one in crops.batches():
        entry = crops.find(one)
        if entry is None:  # the stored entry is damaged
            _encode_batches(crops, [one], load, progress, workers)
            entry = crops.find(one)
        if entry is None:
            raise UserError(f"the store {crops.store.root} does not keep the training images; name another --store")
        data.images.append(entry, "embeddings")
        for name, array in data.patches.items():
            array.append(entry, name)


def _encode_batches(
    crops: StoredCrops, batches: list[tuple[int, Bounds]], load: EncoderLoader, progress: StartProgress, workers: int
) -> None:
    """Encode and store batches, and decode the images of the next batch meanwhile."""
    if not batches:
        return
    encoder = load()
    crop: Crop = crop_of(crops.plan) if crops.plan.request.crops else lambda image, rng: encoder.transform(image)
    done = progress(crops.listing.dataset.name, sum(stop - start for _, (start, stop) in batches))
    decoded = Crops(crops.data, crop, crops.plan.request.seed, workers)
    rows = [np.arange(*bounds) for _, bounds in batches]
    try:
        with pillow_in_threads():
            for number, (epoch, bounds) in enumerate(batches):
                decoded.prefetch(rows[number], epoch)
                if number + 1 < len(batches):
                    decoded.prefetch(rows[number + 1], batches[number + 1][0])
                crops.write(epoch, bounds, encoder, decoded.take(rows[number], epoch))
                done(len(rows[number]))
    finally:
        decoded.close()
