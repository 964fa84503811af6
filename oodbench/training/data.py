"""The data of a training: every pair's image and caption as stored embeddings, read from disk row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench.data import decode
from oodbench.data.decode import DecodeConfig
from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob, extract
from oodbench.pipeline.text_embeddings import PromptEmbeddings
from oodbench.storage.store import Entry, Store, digest
from oodbench.training.captions_csv import read_csv
from oodbench.training.captions_tar import read_shards
from oodbench.training.corpus import CorpusPart, glyphs_part, summarize_problems
from oodbench.training.plan import TrainRequest
from oodbench.training.shots import GLYPHS

if TYPE_CHECKING:
    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.training.processes import ProcessGroup

BATCH = 128  # images encoded at once; part of the store's keys, as for `oodbench run`

EncoderLoader = Callable[[], "LoadedEncoder"]
StartProgress = Callable[[str, int], Callable[[int], None]]  # (description, total) -> a function that reports `n` more


@dataclass
class StoredArray:
    """Rows of many arrays on disk, read as one array. Files are opened only to be read, as there may be thousands."""

    files: list[Path] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])

    def append(self, entry: Entry, name: str) -> None:
        """Add the rows of an entry's array."""
        self.files.append(entry.path / f"{name}.npy")
        self.starts.append(self.starts[-1] + len(entry.array(name)))

    def __len__(self) -> int:
        return self.starts[-1]

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the given rows [k ...] in the given order, in float32."""
        file_of_row = np.searchsorted(self.starts, rows, side="right") - 1
        result: npt.NDArray[np.float32] | None = None
        for number in np.unique(file_of_row):
            try:
                array = np.load(self.files[number], mmap_mode="r", allow_pickle=False)
            except FileNotFoundError as error:
                raise UserError(
                    f"{self.files[number]} was removed from the store during training; run again"
                ) from error
            selected = np.flatnonzero(file_of_row == number)
            if result is None:
                result = np.empty((len(rows), *array.shape[1:]), np.float32)
            result[selected] = array[rows[selected] - self.starts[number]]
        assert result is not None  # callers ask for at least one row
        return result


@dataclass
class TrainingData:
    """A corpus that is ready to train on.

    captions      caption of every pair; empty for labelled images
    images        stored image embeddings; empty with --augment
    image         row in `images` of every pair, or position in `parts` with --augment [n]
    texts         stored unit vectors of the distinct captions, if the method reads them
    text          row in `texts` of every pair [n]
    parts         with --augment, the images themselves
    image_count   number of distinct images
    digest        digest of the images and captions that are used
    skipped       one line per pair or image that cannot be used
    classes       class names of labelled images
    labels        class of every labelled image [n]
    patches       stored patch features in half precision by field, with the rows of `images`
    crops         stored crops of every image: the rows of `images` hold the first crop of all images, then the second
    """

    captions: list[str] = field(default_factory=list)
    images: StoredArray = field(default_factory=StoredArray)
    image: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    texts: StoredArray | None = None
    text: npt.NDArray[np.int64] | None = None
    parts: list[CorpusPart] = field(default_factory=list)
    image_count: int = 0
    digest: str = ""
    skipped: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    labels: npt.NDArray[np.int64] | None = None
    patches: dict[str, StoredArray] = field(default_factory=dict)
    crops: int = 1

    def __len__(self) -> int:
        return len(self.image)

    def rows(self, pairs: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return the rows of `images` and `patches` for pairs in an epoch; each epoch reads the next stored crop."""
        return self.image[pairs] + epoch % self.crops * (len(self.images) // self.crops)


def corpus_parts(request: TrainRequest, store: Store) -> Iterator[CorpusPart]:
    """Yield the parts of a request's corpus. Raise UserError for unusable pairs unless --on-error is skip."""
    for part in _read_parts(request, store):
        if part.skipped and request.on_error == "stop":
            problems = summarize_problems(part.listing.dataset.name, part.skipped)
            raise UserError(f"{problems}\n  fix them, or leave them out with --on-error skip")
        yield part


def _read_parts(request: TrainRequest, store: Store) -> Iterable[CorpusPart]:
    name = request.captions or GLYPHS
    if name == GLYPHS:
        return [glyphs_part(store)]
    if name.lower().endswith((".csv", ".tsv")):
        return [read_csv(Path(name).expanduser(), request.data)]
    return read_shards(name, store)


def prepare_data(
    request: TrainRequest,
    config: EmbeddingConfig,
    store: Store,
    load: EncoderLoader,
    processes: ProcessGroup,
    progress: StartProgress,
) -> TrainingData:
    """Embed the images of a corpus into the store, part by part, and return the data of the whole corpus.

    Several processes divide the parts among them; afterwards each reads all of them from the store.
    """
    decoding = DecodeConfig(request.workers or min(os.cpu_count() or 1, 16), request.on_error)
    if processes.size > 1 and not request.augment:
        for number, part in enumerate(corpus_parts(request, store)):
            if number % processes.size == processes.rank and part.captions:
                _embed_images(ExtractionJob(part.listing, config, decoding, store), load, progress)
        processes.barrier()
    data, digests, image_of_pair = TrainingData(), [], []
    for part in corpus_parts(request, store):
        data.skipped += part.skipped
        if not part.captions:
            continue
        job = ExtractionJob(part.listing, config, decoding, store)
        if request.augment:
            rows = _readable_positions(data, part, job, progress)
        else:
            rows = _embedding_rows(data, job, load, progress)
        usable = rows[part.image] >= 0
        image_of_pair.append(rows[part.image][usable])
        captions = [caption for caption, is_usable in zip(part.captions, usable, strict=True) if is_usable]
        data.captions += captions
        data.image_count += len(np.unique(part.image[usable]))
        digests.append([part.digest, len(captions)])
    data.image = np.concatenate(image_of_pair) if image_of_pair else data.image
    data.digest = digest([digests, sorted(data.skipped)])
    return data


def embed_captions(data: TrainingData, parts: PromptEmbeddings, load: EncoderLoader, progress: StartProgress) -> None:
    """Embed the distinct captions into the store and set `texts` and `text` of the data."""
    row_of: dict[str, int] = {}
    data.text = np.array([row_of.setdefault(caption, len(row_of)) for caption in data.captions], np.int64)
    data.texts = StoredArray()
    distinct = tuple(row_of)
    for entry in parts.entries(distinct, load, partial(progress, "captions")):
        data.texts.append(entry, "words")


def truncation_note(captions: Sequence[str], encoder: LoadedEncoder) -> str:
    """Return a note on the distinct captions that the encoder truncates to its context, with the first; "" if none."""
    context = encoder.tokenize([""]).shape[1]
    long = [one for one in dict.fromkeys(captions) if len(one.encode()) + 2 > context]  # a token has at least one byte
    truncated = encoder.truncated(long)
    if not truncated:
        return ""
    count = f"{len(truncated):,} of {len(set(captions)):,} captions are truncated"
    return f'{count} to the context length of {encoder.card.name}, {context} tokens; the first is "{truncated[0]}"'


def _embed_images(job: ExtractionJob, load: EncoderLoader, progress: StartProgress) -> list[tuple[int, Entry]]:
    """Embed a list of images unless it is stored; return the start and the entry of every shard."""
    done = progress(job.listing.dataset.name, len(job.listing)) if job.missing() else (lambda n: None)
    embedded = extract(job, load, done)
    return list(zip(embedded.starts, embedded.shards, strict=True))


def _embedding_rows(
    data: TrainingData, job: ExtractionJob, load: EncoderLoader, progress: StartProgress
) -> npt.NDArray[np.int64]:
    """Add a list's embeddings to the data; return the row of every image, -1 for those that could not be read."""
    rows = np.full(len(job.listing), -1)
    for start, entry in _embed_images(job, load, progress):
        positions = entry.array("positions") + start
        rows[positions] = len(data.images) + np.arange(len(positions))
        data.images.append(entry, "embeddings")
        data.skipped += [f"{name}: {reason}" for name, reason in entry.facts["skipped"]]
    return rows


def _readable_positions(
    data: TrainingData, part: CorpusPart, job: ExtractionJob, progress: StartProgress
) -> npt.NDArray[np.int64]:
    """Add a part's images to the data; return the position of every image, -1 for those that cannot be read.

    Only with --on-error skip, the images are decoded for this, once per corpus, because the pairs of a step must be
    known before the first step.
    """
    positions = sum(len(earlier.listing) for earlier in data.parts) + np.arange(len(part.listing))
    data.parts.append(part)
    if job.reading.on_error == "skip":
        unreadable = unreadable_images(job.listing, job.reading.workers, job.store, progress)
        data.skipped += [f"{part.listing.names[position]}: {reason}" for position, reason in unreadable]
        positions[[position for position, _ in unreadable]] = -1
    return positions


def unreadable_images(
    listing: ImageSet, workers: int, store: Store, progress: StartProgress
) -> Sequence[tuple[int, str]]:
    """Return position and reason for every image of a list that cannot be decoded, from the store if possible."""
    import torch

    key = {"engine": 1, "items": listing.fingerprint}
    entry = store.find("readable", key)
    if entry is None:
        done = progress(f"check {listing.dataset.name}", len(listing))
        unreadable: list[tuple[int, str]] = []
        bounds, reading = (0, len(listing)), DecodeConfig(workers, "skip")
        for batch in decode.batches(listing, reading, BATCH, bounds, lambda image: torch.zeros(3, 1, 1)):
            reasons = dict(batch.skipped)
            unreadable += [(listing.names.index(name), reason) for name, reason in reasons.items()]
            done(len(batch.positions) + len(batch.skipped))
        entry = store.write("readable", key, {}, {"broken": unreadable})
    return [(int(position), str(reason)) for position, reason in entry.facts["broken"]]
