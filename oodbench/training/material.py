"""What a training reads: every pair's image and caption as stored embeddings, mapped from disk row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench.data.decode import DecodeConfig
from oodbench.errors import UserError
from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob, extract
from oodbench.pipeline.text_embeddings import PromptEmbeddings
from oodbench.storage.store import Entry, Store, digest
from oodbench.training import corpus
from oodbench.training.corpus import Part
from oodbench.training.plan import TrainRequest

if TYPE_CHECKING:
    from oodbench.encoder.openclip import OpenClip
    from oodbench.training.processes import ProcessGroup

BATCH = 128  # images encoded at once; part of the store's keys, so that of `oodbench run`

Encoders = Callable[[], "OpenClip"]
Tell = Callable[[str, int], Callable[[int], None]]


@dataclass
class Rows:
    """Rows of many arrays on disk as one array; files are opened when read, for thousands would run out of handles."""

    files: list[Path] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])

    def append(self, entry: Entry, name: str) -> None:
        """Add the rows of an entry's array."""
        self.files.append(entry.path / f"{name}.npy")
        self.starts.append(self.starts[-1] + len(entry.array(name)))

    def __len__(self) -> int:
        return self.starts[-1]

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Some rows [k d], in the order asked for."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        found: npt.NDArray[np.float32] | None = None
        for number in np.unique(which):
            try:
                array = np.load(self.files[number], mmap_mode="r", allow_pickle=False)
            except FileNotFoundError as error:
                raise UserError(
                    f"{self.files[number]} was removed from the store during training; run again"
                ) from error
            mine = np.flatnonzero(which == number)
            if found is None:
                found = np.empty((len(rows), array.shape[1]), np.float32)
            found[mine] = array[rows[mine] - self.starts[number]]
        assert found is not None  # nobody asks for no rows
        return found


@dataclass
class TrainingData:
    """A corpus that is ready.

    captions   of every pair
    images     stored embeddings; none of them with --augment
    image      of every pair, its row of `images`, or its place in `parts` with --augment [n]
    texts      stored unit vectors of distinct captions, when the method reads them
    text       of every pair, its row of `texts` [n]
    parts      with --augment, the images themselves
    digest     of images and captions, those left out not counted
    skipped    what could not be used
    """

    captions: list[str] = field(default_factory=list)
    images: Rows = field(default_factory=Rows)
    image: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    texts: Rows | None = None
    text: npt.NDArray[np.int64] | None = None
    parts: list[Part] = field(default_factory=list)
    distinct: int = 0
    digest: str = ""
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)


def gather(
    request: TrainRequest, recipe: EmbeddingConfig, store: Store, load: Encoders, world: ProcessGroup, tell: Tell
) -> TrainingData:
    """Embed the images of a corpus into the store, part by part; processes share the parts among them."""
    reading = DecodeConfig(request.workers or min(os.cpu_count() or 1, 16), request.on_error)
    if world.size > 1 and not request.augment:  # each process makes its parts; afterwards all are there for all
        for number, part in enumerate(corpus.parts(request, store)):
            if number % world.size == world.rank and part.captions:
                _embedded(ExtractionJob(part.listing, recipe, reading, store), load, tell)
        world.wait()
    material, digests, places = TrainingData(), [], []
    for part in corpus.parts(request, store):
        material.skipped += part.skipped
        if not part.captions:
            continue
        work = ExtractionJob(part.listing, recipe, reading, store)
        rows = _looked_at(material, part, work, tell) if request.augment else _rows(material, work, load, tell)
        usable = rows[part.image] >= 0
        places.append(rows[part.image][usable])
        kept = [caption for caption, fine in zip(part.captions, usable, strict=True) if fine]
        material.captions += kept
        material.distinct += len(np.unique(part.image[usable]))
        digests.append([part.digest, len(kept)])
    material.image = np.concatenate(places) if places else material.image
    material.digest = digest([digests, sorted(material.skipped)])
    return material


def add_texts(material: TrainingData, parts: PromptEmbeddings, load: Encoders, tell: Tell) -> None:
    """Embed the distinct captions into the store."""
    number: dict[str, int] = {}
    material.text = np.array([number.setdefault(one, len(number)) for one in material.captions], np.int64)
    material.texts = Rows()
    done = tell("captions", len(number)) if parts.missing(tuple(number)) else (lambda n: None)
    for entry in parts.entries(tuple(number), load):
        material.texts.append(entry, "words")
        done(int(entry.facts["count"]))


def _embedded(work: ExtractionJob, load: Encoders, tell: Tell) -> list[tuple[int, Entry]]:
    name = work.listing.dataset.name
    done = tell(name, len(work.listing)) if work.missing() else (lambda n: None)
    found = extract(work, load, done)
    return list(zip(found.starts, found.shards, strict=True))


def _rows(material: TrainingData, work: ExtractionJob, load: Encoders, tell: Tell) -> npt.NDArray[np.int64]:
    """The stored row of every image of a list, -1 for one that could not be read."""
    rows = np.full(len(work.listing), -1)
    for start, entry in _embedded(work, load, tell):
        positions = entry.array("positions") + start
        rows[positions] = len(material.images) + np.arange(len(positions))
        material.images.append(entry, "embeddings")
        material.skipped += [f"{name}: {reason}" for name, reason in entry.facts["skipped"]]
    return rows


def _looked_at(material: TrainingData, part: Part, work: ExtractionJob, tell: Tell) -> npt.NDArray[np.int64]:
    """The place of every image behind those of earlier parts, -1 for one that cannot be read.

    Only with --on-error skip are the images decoded for it, once per corpus: what a step sees must be known before.
    """
    places = sum(len(one.listing) for one in material.parts) + np.arange(len(part.listing))
    material.parts.append(part)
    if work.reading.on_error == "skip":
        broken = _broken(work, tell)
        material.skipped += [f"{part.listing.names[position]}: {reason}" for position, reason in broken]
        places[[position for position, _ in broken]] = -1
    return places


def _broken(work: ExtractionJob, tell: Tell) -> Sequence[tuple[int, str]]:
    import torch

    from oodbench.data import decode

    known = {"engine": 1, "items": work.listing.stamp}
    entry = work.store.find("readable", known)
    if entry is None:
        done = tell(f"look at {work.listing.dataset.name}", len(work.listing))
        found: list[tuple[int, str]] = []
        bounds = (0, len(work.listing))
        for batch in decode.batches(work.listing, work.reading, BATCH, bounds, lambda image: torch.zeros(3, 1, 1)):
            reasons = dict(batch.skipped)
            found += [(work.listing.names.index(name), reason) for name, reason in reasons.items()]
            done(len(batch.positions) + len(batch.skipped))
        entry = work.store.write("readable", known, {}, {"broken": found})
    return [(int(position), str(reason)) for position, reason in entry.facts["broken"]]
