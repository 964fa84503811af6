"""Scoring: every method over every set, chunk by chunk from the stored embeddings, into the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.errors import InputMutated, UserError
from oodbench.pipeline import batches as guards
from oodbench.pipeline.batches import FittedMethod, MethodOutput, over
from oodbench.pipeline.extract import Embedded, batches
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.results import stamp
from oodbench.storage.store import Entry

if TYPE_CHECKING:
    from oodbench.method import Batch, Task

log = logging.getLogger(__name__)

ENGINE = 3  # raise when scoring gives other numbers than before
THREADS = 16  # at most: each holds a chunk, and Python itself runs in one at a time
CHUNK = 1024  # images scored at once: with 1000 classes 4 MB of cosines, which stay in the processor's cache


def score_inputs(plan: Plan, job: Job, listing: ImageSet) -> dict[str, Any]:
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


def find_scores(plan: Plan, job: Job, listing: ImageSet) -> Entry | None:
    """Stored scores, unless images were skipped for them and this run is to stop at such."""
    entry = plan.store.find("scores", score_inputs(plan, job, listing))
    return None if entry and entry.facts["skipped"] and plan.request.on_error == "stop" else entry


def forget_scores(plan: Plan, job: Job) -> None:
    """Remove a method's scores of all sets of a plan."""
    for listing in plan.listings:
        plan.store.forget("scores", score_inputs(plan, job, listing))


class Scorer:
    """Scores methods on sets with one task: class names, text and encoder are shared by all of them."""

    def __init__(self, plan: Plan, task: Task, device: str) -> None:
        self.plan = plan
        self.task = task
        self.device = device

    def score(self, running: Sequence[FittedMethod], embedded: Embedded) -> None:
        """Score one set with several methods and store what comes out; a method that fails keeps its error."""
        from oodbench.method import Needs

        fitted = [one for one in running if self._fit(one)]
        # Apart, for batches differ: a method's digits must not depend on which others run beside it.
        for pixels in (False, True):
            group = [one for one in fitted if (Needs.PIXELS in one.method.needs) == pixels]
            for one, given in self._given(group, embedded, pixels):
                self._write(one, embedded, given)

    def fit(self, running: Sequence[FittedMethod]) -> None:
        """Fit methods that have not been; one that fails keeps its error."""
        for one in running:
            self._fit(one)

    def values(self, one: FittedMethod, embedded: Embedded) -> Values:
        """Scores and predictions of one method on a set that is not empty, not stored. UserError when it fails.

        Whether it keeps something of the images that it has seen is looked at every few hundred images.
        """
        from oodbench.method import Needs

        for _, given in self._given([one], embedded, Needs.PIXELS in one.method.needs, guards.EVERY):
            predictions = np.concatenate(given.predictions) if given.predictions else None
            return Values(np.concatenate(given.scores), predictions)
        why = one.error
        if not one.stateful:
            one.error = ""  # the next images may fare better
        raise UserError(f"{one.job.label}: {why}")

    def _given(
        self, group: Sequence[FittedMethod], embedded: Embedded, pixels: bool, every: int = 0
    ) -> list[tuple[FittedMethod, MethodOutput]]:
        """What methods that read the same batches give of a set; those that fail keep their error and are left out.

        `every`: so many images lie between two looks at whether a method keeps something of what it has seen.
        """
        while group := [one for one in group if self._fit(one)]:
            found = self._attempt(group, embedded, pixels, every)
            if found is not None:
                return [(one, given) for one, given in zip(group, found, strict=True) if not one.error]
        return []

    def _attempt(
        self, group: Sequence[FittedMethod], embedded: Embedded, pixels: bool, every: int
    ) -> list[MethodOutput] | None:
        """The same once; None when a method changed what others read: it has failed, and the rest start anew."""
        fresh = [one for one in group if not one.seen]
        if fresh:
            sample = self._sample(embedded, pixels)
            first = self._over(sample.copies, fresh, pixels)
            if not self._settled(fresh, first):
                return None
            for one, given in zip(fresh, first, strict=True):
                one.sample, one.first = sample, given
        found = self._over(lambda: self.batches(embedded, pixels), group, pixels)
        if not self._settled(group, found):
            return None
        for one, given in zip(group, found, strict=True):
            if not one.error and (why := _unfit(embedded, given)):
                _failed(one, UserError(why))
        count = len(embedded.positions)
        due = [one for one in group if not one.error and one.seen + count - one.looked >= every]
        if not self._steady(due, pixels):
            return None
        for one, given in zip(group, found, strict=True):
            if not one.error and not one.seen and not (pixels and self._halved):
                self._keep_out(one, guards.mixed(one, given))
            one.seen += count
        for one in due:
            one.looked = one.seen
        return found

    def _steady(self, group: Sequence[FittedMethod], pixels: bool) -> bool:
        """Let methods fail that keep something of what they have seen; False when one changed what others read."""
        close = 0.0 if self.device == "cpu" else guards.LOW_CLOSE if pixels and self._halved else guards.CLOSE
        for sample in {id(one.sample): one.sample for one in group if one.sample}.values():
            some = [one for one in group if one.sample is sample]
            again = self._over(sample.turned, some, pixels)
            if not self._settled(some, again):
                return False
            for one, given in zip(some, again, strict=True):
                if not one.error:
                    self._keep_out(one, guards.kept(one, given, close))
        return True

    @property
    def _halved(self) -> bool:
        """Whether the model computes in half precision, where another batch size changes more than the last digits."""
        return self.plan.request.precision != "fp32"

    def _keep_out(self, one: FittedMethod, why: str) -> None:
        """Refuse a method that does not score each image on its own, if there is a reason; nothing of it stays."""
        if why:
            _failed(one, UserError(why))
            one.stateful = True
            forget_scores(self.plan, one.job)

    def _settled(self, group: Sequence[FittedMethod], found: Sequence[MethodOutput]) -> bool:
        """Let methods fail that raised; False when one changed what others read: nothing of it holds then."""
        changed = any(isinstance(given.error, InputMutated) for given in found)
        for one, given in zip(group, found, strict=True):
            if given.error and (not changed or isinstance(given.error, InputMutated)):
                _failed(one, given.error)
        return not changed

    def _sample(self, embedded: Embedded, pixels: bool) -> guards.Sample:
        """A set's first and last images, as two small batches."""
        from oodbench.encoder.openclip import transform

        shards = [shard for shard in embedded.shards if shard.array("embeddings").shape[0]]
        n, total, made, rows = len(embedded.listing), len(embedded.positions), [], []
        for shard, behind in ((shards[0], False), (shards[-1], True)):
            size, images = shard.array("embeddings").shape[0], None
            count = min(guards.ROWS, max(1, size // 2))
            if pixels:
                count = min(guards.PIXEL_ROWS, count, self.plan.request.batch_size)
                bounds = (n - count, n) if behind else (0, count)
                (decoded,) = batches(self.plan.work(embedded.listing), bounds, transform(self.plan.card))
                if decoded.images is None:
                    continue
                count, images = len(decoded.positions), decoded.images.to(self.device).float() / 255
            start = size - count if behind else 0
            made.append(_batch(shard, slice(start, start + count), self.device, images))
            rows.append(np.arange(count) + (total - count if behind else 0))
        return guards.Sample(tuple(made), tuple(rows))

    def _over(
        self, batches: Callable[[], Iterable[Batch]], group: Sequence[FittedMethod], pixels: bool
    ) -> list[MethodOutput]:
        """On CPUs a chunk of embeddings is one core's; the model, and a GPU, are worth all of them at once."""
        import torch

        threads = min(torch.get_num_threads(), THREADS) if self.device == "cpu" and not pixels else None
        return over(batches, group, self.task, threads)

    def _fit(self, one: FittedMethod) -> bool:
        import torch

        if one.error:
            return False
        if not one.fitted:
            torch.manual_seed(self.plan.request.seed)
            try:
                if one.job.templates:  # encoded before the clock starts: prompts are shared between methods
                    self.task.prepare(one.job.parameters["templates"])
                began = time.perf_counter()
                with torch.no_grad():
                    one.state = one.method.fit(self.task.seen_by(one.method.needs, one.own))
                if not self.task.intact():
                    raise UserError("fit() changes in place what it was given; clone it first")
            except Exception as error:
                self.task.intact()  # puts right what it may have written before it failed
                return _failed(one, error)
            one.fitted, one.fit_seconds = True, time.perf_counter() - began
        if not one.held:
            one.held = guards.held(one)
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

    def _write(self, one: FittedMethod, embedded: Embedded, given: MethodOutput) -> None:
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


def _unfit(embedded: Embedded, given: MethodOutput) -> str:
    """Why scores are no scores, or "": NaN and infinity are the method's failure."""
    scores, listing = np.concatenate(given.scores), embedded.listing
    bad = np.flatnonzero(~np.isfinite(scores))
    if not len(bad):
        return ""
    name, kind = listing.names[embedded.positions[bad[0]]], "NaN" if np.isnan(scores).any() else "infinite"
    return f"{len(bad)} of {len(scores)} scores on {listing.dataset.name} are {kind}, that of '{name}' first"


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


def _failed(one: FittedMethod, error: Exception) -> bool:
    one.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    log.info("%s failed", one.job.label, exc_info=error)
    return False
