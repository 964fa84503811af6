"""Scoring: every method over every set, chunk by chunk from the stored embeddings, into the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError
from oodbench.extract import Embedded, batches
from oodbench.images import Listing
from oodbench.jobs import Job
from oodbench.passes import Changed, Given, Running, over
from oodbench.plan import Plan
from oodbench.provenance import stamp
from oodbench.store import Entry

if TYPE_CHECKING:
    from oodbench.method import Batch, Task

log = logging.getLogger(__name__)

ENGINE = 2  # raise when scoring gives other numbers than before
THREADS = 16  # at most: each holds a chunk, and Python itself runs in one at a time
CHUNK = 1024  # images scored at once: with 1000 classes 4 MB of cosines, which stay in the processor's cache


def score_inputs(plan: Plan, job: Job, listing: Listing) -> dict[str, Any]:
    """Everything that the scores of one method on one set depend on."""
    inputs = {
        "engine": ENGINE,
        "extraction": plan.work(listing).inputs(0, len(listing)),
        "method": job.info.name,
        "source": job.info.source,
        "parameters": job.parameters,
        "files": job.files,
        "templates": job.templates.digest if job.templates else None,
        "classes": plan.classes.digest,
        "seed": plan.request.seed,
        "calibration": plan.calibration.stamp if plan.calibration and job.calibrates else None,
    }
    return inputs | ({"weights": job.weights.digest} if job.weights else {})


def find_scores(plan: Plan, job: Job, listing: Listing) -> Entry | None:
    """Stored scores, unless images were skipped for them and this run is to stop at such."""
    entry = plan.store.find("scores", score_inputs(plan, job, listing))
    return None if entry and entry.facts["skipped"] and plan.request.on_error == "stop" else entry


class Scorer:
    """Scores methods on sets with one task: class names, text and encoder are shared by all of them."""

    def __init__(self, plan: Plan, task: Task, device: str) -> None:
        self.plan = plan
        self.task = task
        self.device = device

    def score(self, running: Sequence[Running], embedded: Embedded) -> None:
        """Score one set with several methods and store what comes out; a method that fails keeps its error."""
        from oodbench.method import Needs

        fitted = [one for one in running if self._fit(one)]
        # Apart, for batches differ: a method's digits must not depend on which others run beside it.
        for pixels in (False, True):
            group = [one for one in fitted if (Needs.PIXELS in one.method.needs) == pixels]
            while group and not self._pass(group, embedded, pixels):
                group = [one for one in group if not one.error]

    def fit(self, running: Sequence[Running]) -> None:
        """Fit methods that have not been; one that fails keeps its error."""
        for one in running:
            self._fit(one)

    def values(self, one: Running, embedded: Embedded) -> Values:
        """Scores and predictions of one method on a set that is not empty, not stored. UserError when it fails."""
        from oodbench.method import Needs

        if self._fit(one):
            (given,) = self._given([one], embedded, Needs.PIXELS in one.method.needs)
            if given.error is None and not _has_nan(one, embedded, given):
                predictions = np.concatenate(given.predictions) if given.predictions else None
                return Values(np.concatenate(given.scores), predictions)
            if given.error:
                _failed(one, given.error)
        why, one.error = one.error, ""  # the next images may fare better
        raise UserError(f"{one.job.label}: {why}")

    def _pass(self, group: Sequence[Running], embedded: Embedded, pixels: bool) -> bool:
        """Score a set with methods that read the same batches; False when one changed them, and the rest start anew."""
        found = self._given(group, embedded, pixels)
        changed = any(isinstance(given.error, Changed) for given in found)
        for one, given in zip(group, found, strict=True):
            if given.error and (not changed or isinstance(given.error, Changed)):
                _failed(one, given.error)
            elif not changed:
                self._write(one, embedded, given)
        return not changed

    def _given(self, group: Sequence[Running], embedded: Embedded, pixels: bool) -> list[Given]:
        """On CPUs a chunk of embeddings is one core's; the model, and a GPU, are worth all of them at once."""
        import torch

        threads = min(torch.get_num_threads(), THREADS) if self.device == "cpu" and not pixels else None
        return over(lambda: self.batches(embedded, pixels), group, self.task, threads)

    def _fit(self, one: Running) -> bool:
        import torch

        if one.error:
            return False
        if not one.fitted:
            torch.manual_seed(self.plan.request.seed)
            try:
                if one.job.templates:  # encoded before the clock starts: prompts are shared between methods
                    self.task.text(one.job.parameters["templates"])
                began = time.perf_counter()
                with torch.no_grad():
                    one.state = one.method.fit(self.task.seen_by(one.method.needs, one.own))
                if not self.task.intact():
                    raise UserError("fit() changes in place what it was given; clone it first")
            except Exception as error:
                return _failed(one, error)
            one.fitted, one.fit_seconds = True, time.perf_counter() - began
        return True

    def batches(self, embedded: Embedded, pixels: bool) -> Iterator[Batch]:
        """The set's images as methods read them; with pixels, decoded again in the batches of the extraction."""
        from oodbench.encoder.openclip import transform

        if not pixels:
            yield from feature_batches(embedded, self.device)
            return
        starts = (*embedded.starts, len(embedded.listing))
        for shard, start, stop in zip(embedded.shards, starts, starts[1:], strict=False):
            row = 0
            for batch in batches(self.plan.work(embedded.listing), (start, stop), transform(self.plan.card)):
                if batch.images is not None:
                    rows = slice(row, row + len(batch.positions))
                    row += len(batch.positions)
                    yield _batch(shard, rows, self.device, batch.images.to(self.device).float() / 255)

    def _write(self, one: Running, embedded: Embedded, given: Given) -> None:
        if _has_nan(one, embedded, given):
            return
        scores, positions = np.concatenate(given.scores), embedded.positions
        arrays: dict[str, npt.NDArray[Any]] = {"scores": scores, "positions": positions}
        if given.predictions:
            arrays["predictions"] = np.concatenate(given.predictions)
        facts = {
            **stamp(self.device),
            "dataset": embedded.listing.dataset.name,
            "skipped": list(embedded.skipped),
            "seconds": round(given.seconds, 6),
            "fit_seconds": round(one.fit_seconds, 6),
            "extract_seconds": embedded.seconds,
            "extracted": embedded.stamps,
        }
        self.plan.store.write("scores", score_inputs(self.plan, one.job, embedded.listing), arrays, facts)


@dataclass(frozen=True)
class Values:
    """Scores [n], and class indices [n] of a method that predicts classes."""

    scores: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.int32] | None


def _has_nan(one: Running, embedded: Embedded, given: Given) -> bool:
    """Whether a score is NaN, which is the method's failure."""
    scores, listing = np.concatenate(given.scores), embedded.listing
    bad = np.flatnonzero(np.isnan(scores))
    if not len(bad):
        return False
    name = listing.names[embedded.positions[bad[0]]]
    said = f"{len(bad)} of {len(scores)} scores on {listing.dataset.name} are NaN, that of '{name}' first"
    return not _failed(one, UserError(said))


def feature_batches(embedded: Embedded, device: str) -> Iterator[Batch]:
    """Embeddings and activations in chunks that follow list position, so that digits do not depend on the run."""
    for shard in embedded.shards:
        n = shard.array("embeddings").shape[0]
        for start in range(0, n, CHUNK):
            yield _batch(shard, slice(start, min(start + CHUNK, n)), device, None)


def _batch(shard: Entry, rows: slice, device: str, pixels: Any) -> Batch:
    import torch

    from oodbench.method import Batch, Needs

    def rows_of(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(shard.array(name)[rows])).to(device)

    embeddings = rows_of("embeddings")
    activations = rows_of("activations") if "activations" in shard.names else embeddings
    features = torch.nn.functional.normalize(embeddings, dim=-1)
    return Batch(~Needs(0), len(embeddings), features, embeddings, activations, pixels)


def _failed(one: Running, error: Exception) -> bool:
    one.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    log.info("%s failed", one.job.label, exc_info=error)
    return False
