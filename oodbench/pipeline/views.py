"""Views: the transformed images of a set go through the image tower, and their embeddings are stored like the set's.

The shards of a view are those of the image set, under a key that also names the transform (method/views.py), so that
a killed run resumes per shard and view. An image is decoded once for several of its views.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.errors import UserError
from oodbench.method.views import KeyedView, content_of, keyed_views
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.extract import (
    EmbeddedSet,
    EncodedImages,
    ExtractionJob,
    decoded_batches,
    encode_batches,
    extract,
    write_shard,
)
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from oodbench.data.decode import Decoded
    from oodbench.encoder.openclip import LoadedEncoder
    from oodbench.storage.store import Entry

DECODED_VIEWS = 16  # of one image at once: a batch of 128 images of 224 x 224 pixels takes 300 MB


def view_jobs(plan: Plan, job: Job, work: ExtractionJob) -> list[ExtractionJob]:
    """Return the extraction job of a set for each view that a method declares; this imports the method."""
    if "VIEWS" not in job.info.needs:
        return []
    return [replace(work, view=view) for view in keyed_views(job.build(), job.info.source, plan.request.seed)]


def with_views(
    embedded: EmbeddedSet, jobs: Sequence[ExtractionJob], encoder: Callable[[], LoadedEncoder], watch: Watch
) -> EmbeddedSet:
    """Return a set with its embeddings in some views; compute and store the shards that are missing.

    Raises UserError if a transform fails, or if the images that can be read have changed.
    """
    name, missing, done = embedded.listing.dataset.name, sum(job.missing() for job in jobs), lambda n: None
    task, began, made = f"extract[{name}: {len(jobs)} views]", time.perf_counter(), {}
    if missing:
        watch.event(Event("started", "extract", task))
        done = watch.extracting(f"{name}, {len(jobs)} views", sum(job.images() for job in jobs))
        made = _encode_missing(jobs, encoder, done)

    def encode(job: ExtractionJob, bounds: tuple[int, int], *_: object) -> Entry:
        found = made.get(job.store.key("embeddings", job.inputs(*bounds)))
        return found or _encode([job], bounds, encoder(), lambda n: None)[0]

    sets = [extract(job, encoder, encode=encode) for job in jobs]
    if missing:
        watch.event(Event("done", "extract", task, missing, round(time.perf_counter() - began, 3)))
    positions = embedded.positions
    if not all(np.array_equal(found.positions, positions) for found in sets):
        raise UserError(f"dataset '{name}': the images that can be read have changed since the first pass; run again")
    return replace(embedded, views=tuple(found.shards for found in sets))


def _encode_missing(
    jobs: Sequence[ExtractionJob], encoder: Callable[[], LoadedEncoder], done: Callable[[int], None]
) -> dict[str, Entry]:
    """Encode the missing shards, of a derived set those of its origins; return them by key.

    The store of a detector may keep no embeddings, so they are not looked up there.
    """
    made: dict[str, Entry] = {}
    if any(job.missing() for job in jobs):
        for parts in zip(*(job.origins() for job in jobs), strict=True):
            made |= _encode_missing(parts, encoder, done)
        for bounds in [] if jobs[0].listing.origins else jobs[0].shards():
            made |= {entry.key: entry for entry in encode_shard(jobs, bounds, encoder, done)}
    return made


def missing_views(jobs: Sequence[ExtractionJob], bounds: tuple[int, int]) -> list[ExtractionJob]:
    """Return the views of a set in which a shard is not stored."""
    return [job for job in jobs if not job.store.has("embeddings", job.inputs(*bounds))]


def encode_shard(
    jobs: Sequence[ExtractionJob],
    bounds: tuple[int, int],
    encoder: Callable[[], LoadedEncoder],
    done: Callable[[int], None] = lambda n: None,
) -> list[Entry]:
    """Encode a shard of a set that is not derived, in the views that are missing; store and return them."""
    missing = missing_views(jobs, bounds)
    done((bounds[1] - bounds[0]) * (len(jobs) - len(missing)))
    groups = [missing[start : start + DECODED_VIEWS] for start in range(0, len(missing), DECODED_VIEWS)]
    return [entry for group in groups for entry in _encode(group, bounds, encoder(), done)]


def _encode(
    jobs: Sequence[ExtractionJob], bounds: tuple[int, int], encoder: LoadedEncoder, done: Callable[[int], None]
) -> list[Entry]:
    """Encode one shard in several views, store it and return it; a batch has images of one view."""
    began = time.perf_counter()
    views = [job.view for job in jobs if job.view]
    view_of_row: list[int] = []

    def by_view(batches: Iterator[Decoded]) -> Iterator[Decoded]:
        for batch in batches:
            parts = [None] * len(views) if batch.images is None else batch.images.chunk(len(views), 2)
            for number, images in enumerate(parts):
                view_of_row.extend([number] * len(batch.positions))
                yield replace(batch, images=None if images is None else images.clone())  # as dense as other batches

    with contextlib.closing(decoded_batches(jobs[0], bounds, stacked(views, encoder.transform))) as batches:
        found = encode_batches(by_view(batches), encoder, done)
    seconds = (time.perf_counter() - began) / len(views)
    entries = []
    for number, job in enumerate(jobs):
        rows = np.flatnonzero(np.array(view_of_row, int) == number)
        part = EncodedImages(
            {"embeddings": found.arrays["embeddings"][rows]},
            [found.positions[row] for row in rows],
            list(dict.fromkeys(found.skipped)),
        )
        entries.append(write_shard(job, bounds, part, encoder, seconds))
    return entries


def stacked(views: Sequence[KeyedView], transform: Callable[[Any], Tensor]) -> Callable[[Image], Tensor]:
    """Return a function from an image to the pixels of its views, one below the other: [3, views x height, width]."""

    def pixels(image: Image) -> Tensor:
        import torch

        rgb = image.convert("RGB")
        content = content_of(rgb) if any(view.view.draws for view in views) else b""
        return torch.cat([transform(view.apply(rgb, content)) for view in views], 1)

    return pixels
