"""Score image sets with methods, in chunks of the stored embeddings, and store the scores."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.errors import InputMutated, UserError
from oodbench.method.views import ENGINE as VIEWS_ENGINE
from oodbench.pipeline import batches
from oodbench.pipeline.batches import FittedMethod, MethodOutput, Sample, score_batches
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.extract import EmbeddedSet, check_readable, decoded_batches, fractions
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.patches import ENGINE as PATCH_ENGINE
from oodbench.pipeline.patches import PatchPass
from oodbench.pipeline.plan import Plan
from oodbench.results import stamp
from oodbench.storage.store import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.method import Batch, Task

log = logging.getLogger(__name__)

ENGINE = 3  # raise when scoring gives other numbers than before
THREADS = 16  # largest number: each holds a chunk, and Python code runs in one of them at a time
CHUNK = 1024  # images scored at once: with 1000 classes 4 MB of cosines, which stay in the processor's cache


def score_inputs(plan: Plan, job: Job, listing: ImageSet) -> dict[str, Any]:
    """Return everything that the scores of one method on one image set depend on: the key of the stored scores."""
    images = plan.calibration_of(job)
    inputs: dict[str, Any] = {
        "engine": ENGINE,
        "extraction": plan.extraction_job(listing).inputs(0, len(listing)),
        "method": job.info.name,
        "source": job.info.source,
        "parameters": job.parameters,
        "files": job.files,
        "templates": job.templates.digest if job.templates else None,
        "classes": plan.classes.digest,
        "seed": plan.request.seed,
        "calibration": images.fingerprint if images else None,
    }
    if images and job.reads_labels:
        inputs["labels"] = images.list_digest
    if images and plan.request.on_error == "skip":
        inputs["calibration_on_error"] = "skip"
    if job.info.patch_fields:
        inputs["patches"] = [PATCH_ENGINE, "fp16" if plan.request.keep_patches else "fp32"]
    if "VIEWS" in job.info.needs:
        inputs["views"] = VIEWS_ENGINE
    return inputs | ({"weights": job.weights.digest} if job.weights else {})


def find_scores(plan: Plan, job: Job, listing: ImageSet) -> Entry | None:
    """Return the stored scores; None if images were skipped and this run stops at images that cannot be read."""
    entry = plan.store.find("scores", score_inputs(plan, job, listing))
    return None if entry and entry.facts["skipped"] and plan.request.on_error == "stop" else entry


def forget_scores(plan: Plan, job: Job) -> None:
    """Remove the stored scores of a method on all image sets of a plan."""
    for listing in plan.listings:
        plan.store.remove("scores", score_inputs(plan, job, listing))


class Scorer:
    """Fits methods and scores image sets with them; all methods share one task with its text vectors and encoder."""

    def __init__(self, plan: Plan, task: Task, device: str, watch: Watch | None = None) -> None:
        self.plan = plan
        self.task = task
        self.device = device
        self.watch = watch or Watch()

    def score(self, methods: Sequence[FittedMethod], listing: ImageSet, embeddings: Callable[[], EmbeddedSet]) -> None:
        """Score one image set with several methods and store the scores; a method that fails keeps its error.

        `embeddings` returns those of the set, and computes missing ones. Methods that read patches come first: their
        pass computes missing embeddings together with the patches.
        """
        from oodbench.method import Needs

        fitted = [method for method in methods if self._fit(method)]
        with_patches = [method for method in fitted if method.job.info.patch_fields]
        images = self._patch_pass(with_patches, listing, embeddings)
        for method, output in self._outputs(with_patches, images, True):
            self._store(method, embeddings(), output)
        fitted = [method for method in fitted if not method.job.info.patch_fields]
        if not fitted:
            return
        embedded = embeddings()
        # One group for each kind of batch: the digits of a method must not depend on the other methods of a run.
        groups: dict[tuple[bool, str], list[FittedMethod]] = {}
        for method in fitted:
            needs = method.method.needs
            views = method.job.label if Needs.VIEWS in needs else ""
            groups.setdefault((Needs.PIXELS in needs, views), []).append(method)
        for (pixels, _), group in sorted(groups.items(), key=lambda item: item[0]):
            for method, output in self._outputs(group, embedded, pixels):
                self._store(method, embedded, output)

    def fit(self, methods: Sequence[FittedMethod]) -> None:
        """Fit the methods that are not fitted; a method that fails keeps its error."""
        for method in methods:
            self._fit(method)

    def values(self, method: FittedMethod, embedded: EmbeddedSet) -> Values:
        """Return the scores and predictions of one method on an image set, and store nothing.

        Every few hundred images, a check looks for state that the method keeps. Raises UserError if the method fails.
        """
        from oodbench.method import Needs

        decoded = Needs.PIXELS in method.method.needs or bool(method.job.info.patch_fields)
        images = self._images_of(method, embedded)
        for _, output in self._outputs([method], images, decoded, batches.CHECK_EVERY):
            predictions = np.concatenate(output.predictions) if output.predictions else None
            return Values(np.concatenate(output.scores), predictions)
        reason = method.error
        if not method.stateful:
            method.error = ""  # other images may be scored without an error
        raise UserError(f"{method.job.label}: {reason}")

    def with_views(self, method: FittedMethod, embedded: EmbeddedSet) -> EmbeddedSet:
        """Return a set with its embeddings in the views that a method reads, computed and stored if they are missing.

        Raises UserError if one of the method's transforms fails.
        """
        from oodbench.encoder.openclip import load_encoder
        from oodbench.pipeline.views import view_jobs, with_views

        jobs = view_jobs(self.plan, method.job, self.plan.extraction_job(embedded.listing))
        load = functools.partial(load_encoder, self.plan.encoder, self.device, self.plan.request.precision)
        return with_views(embedded, jobs, load, self.watch) if jobs else embedded

    def _patch_pass(
        self, methods: Sequence[FittedMethod], listing: ImageSet, embeddings: Callable[[], EmbeddedSet]
    ) -> PatchPass:
        """Return the pass over an image set for methods that read patches."""
        from oodbench.encoder.openclip import load_encoder
        from oodbench.method import Needs

        request = self.plan.request
        load = functools.partial(load_encoder, self.plan.encoder, self.device, request.precision)
        pixels = any(Needs.PIXELS in method.method.needs for method in methods)
        fields = tuple(sorted({name for method in methods for name in method.job.info.patch_fields}))
        return PatchPass(
            self.plan.extraction_job(listing), embeddings, load, fields, pixels, request.keep_patches, self.watch
        )

    def _images_of(self, method: FittedMethod, embedded: EmbeddedSet) -> EmbeddedSet | PatchPass:
        """Return the source of a method's batches for a set whose embeddings are known."""
        if not method.job.info.patch_fields:
            return embedded
        return self._patch_pass([method], embedded.listing, lambda: embedded)

    def first_batch(self, method: FittedMethod, embedded: EmbeddedSet) -> Batch:
        """Return the first images of a set as a method reads them."""
        from oodbench.method import Needs

        images = self._images_of(method, embedded)
        if not isinstance(images, PatchPass):
            images = self.with_views(method, images)
        return next(self.batches(images, Needs.PIXELS in method.method.needs))

    def batches(self, embedded: EmbeddedSet | PatchPass, pixels: bool) -> Iterator[Batch]:
        """Yield a set's images in batches; with pixels they are decoded again, in the batches of the extraction."""
        if isinstance(embedded, PatchPass):
            yield from embedded.batches()
            return
        if not pixels:
            yield from feature_batches(embedded, self.device)
            return
        transform = self._transform()
        starts = (*embedded.starts, len(embedded.listing))
        for number, (shard, start, stop) in enumerate(zip(embedded.shards, starts, starts[1:], strict=False)):
            stored, read = shard.array("positions") + start, 0
            for batch in decoded_batches(self.plan.extraction_job(embedded.listing), (start, stop), transform):
                if batch.images is not None:
                    rows = slice(read, read + len(batch.positions))
                    read += len(batch.positions)
                    check_readable(embedded.listing, stored[rows], batch.positions)
                    decoded = fractions(batch.images.to(self.device))
                    yield _batch(shard, rows, self.device, decoded, _views(embedded, number))
            check_readable(embedded.listing, stored[read:], [])

    def _outputs(
        self, methods: Sequence[FittedMethod], embedded: EmbeddedSet | PatchPass, pixels: bool, check_every: int = 0
    ) -> list[tuple[FittedMethod, MethodOutput]]:
        """Return the outputs of methods that read the same batches, without those that fail: they keep their error.

        If a method writes into shared tensors, all other methods start again. The check for state that a method keeps
        follows after this set, or after at least `check_every` images.
        """
        threads = self._threads(pixels)
        try:
            if methods and not isinstance(embedded, PatchPass):
                embedded = self.with_views(methods[0], embedded)
        except Exception as error:
            for method in methods:
                fail(method, error)
        while methods := [method for method in methods if self._fit(method)]:
            if not self._score_samples([method for method in methods if not method.images_scored], embedded, pixels):
                continue
            labels = [method.job.label for method in methods]
            count = len(embedded.listing if isinstance(embedded, PatchPass) else embedded.positions)
            done = self.watch.scoring(embedded.listing.dataset.name, labels, count)
            outputs = score_batches(lambda: self.batches(embedded, pixels), methods, self.task, threads, done)
            if self._record_errors(methods, outputs) and self._check(methods, outputs, embedded, pixels, check_every):
                return [pair for pair in zip(methods, outputs, strict=True) if not pair[0].error]
        return []

    def _score_samples(self, methods: Sequence[FittedMethod], embedded: EmbeddedSet | PatchPass, pixels: bool) -> bool:
        """Score a sample of a set with methods that have scored nothing yet; return False if one changed its input."""
        if not methods:
            return True
        sample = embedded.sample() if isinstance(embedded, PatchPass) else self._sample(embedded, pixels)
        outputs = score_batches(sample.copies, methods, self.task, self._threads(pixels))
        if not self._record_errors(methods, outputs):
            return False
        for method, output in zip(methods, outputs, strict=True):
            method.sample, method.first_output = sample, output
        return True

    def _check(
        self,
        methods: Sequence[FittedMethod],
        outputs: Sequence[MethodOutput],
        embedded: EmbeddedSet | PatchPass,
        pixels: bool,
        check_every: int,
    ) -> bool:
        """Let methods fail if their scores of a set are invalid; return False if one changed its input meanwhile."""
        for method, output in zip(methods, outputs, strict=True):
            if not method.error and (reason := _score_error(embedded, output)):
                fail(method, UserError(reason))
        count = len(embedded.positions)
        due = [
            method
            for method in methods
            if not method.error and method.images_scored + count - method.images_checked >= check_every
        ]
        if not self._check_retention(due, pixels):
            return False
        for method, output in zip(methods, outputs, strict=True):
            if not method.error and not method.images_scored and not self._rounds(method, pixels):
                self._reject(method, batches.batch_error(method, output))
            method.images_scored += count
        for method in due:
            method.images_checked = method.images_scored
        return True

    def _check_retention(self, methods: Sequence[FittedMethod], pixels: bool) -> bool:
        """Let methods fail that keep state between images; return False if one changed its input meanwhile."""
        usual = batches.rounding_tolerance(self.device)
        for sample in {id(method.sample): method.sample for method in methods if method.sample}.values():
            group = [method for method in methods if method.sample is sample]
            outputs = score_batches(sample.reversed_copies, group, self.task, self._threads(pixels))
            if not self._record_errors(group, outputs):
                return False
            for method, output in zip(group, outputs, strict=True):
                if not method.error:
                    tolerance = batches.HALF_PRECISION_TOLERANCE if self._rounds(method, pixels) else usual
                    self._reject(method, batches.retention_error(method, output, tolerance))
        return True

    def _rounds(self, method: FittedMethod, pixels: bool) -> bool:
        """Return whether score() runs the model in half precision, where batches affect more than the last digits."""
        return self.plan.request.precision != "fp32" and (pixels or "ENCODER" in method.job.info.needs)

    def _reject(self, method: FittedMethod, reason: str) -> None:
        """If there is a reason, let a method fail that does not score images independently, and remove its scores."""
        if reason:
            fail(method, UserError(f"{reason}; {batches.STREAM_ADVICE}"))
            method.stateful = True
            forget_scores(self.plan, method.job)

    def _record_errors(self, methods: Sequence[FittedMethod], outputs: Sequence[MethodOutput]) -> bool:
        """Let methods fail that raised; return False if one changed its input, so that all outputs are worthless."""
        mutated = any(isinstance(output.error, InputMutated) for output in outputs)
        for method, output in zip(methods, outputs, strict=True):
            if output.error and (not mutated or isinstance(output.error, InputMutated)):
                fail(method, output.error)
        return not mutated

    def _sample(self, embedded: EmbeddedSet, pixels: bool) -> Sample:
        """Return a set's first and last images as two small batches."""
        shards = [i for i, shard in enumerate(embedded.shards) if shard.array("embeddings").shape[0]]
        images, scored = len(embedded.listing), len(embedded.positions)
        samples: list[Batch] = []
        rows: list[npt.NDArray[np.int64]] = []
        for number, last in ((shards[0], False), (shards[-1], True)):
            shard, decoded_pixels = embedded.shards[number], None
            size = shard.array("embeddings").shape[0]
            count = min(batches.SAMPLE_IMAGES, max(1, size // 2))
            if pixels:
                count = min(batches.SAMPLE_PIXEL_IMAGES, count, self.plan.request.batch_size)
                bounds = (images - count, images) if last else (0, count)
                (decoded,) = decoded_batches(self.plan.extraction_job(embedded.listing), bounds, self._transform())
                if decoded.images is None:
                    continue
                count, decoded_pixels = len(decoded.positions), fractions(decoded.images.to(self.device))
            start = size - count if last else 0
            part = slice(start, start + count)
            samples.append(_batch(shard, part, self.device, decoded_pixels, _views(embedded, number)))
            rows.append(np.arange(count) + (scored - count if last else 0))
        return Sample(tuple(samples), tuple(rows))

    def _transform(self) -> Callable[[Any], Tensor]:
        """Return the function from decoded images to pixels."""
        from oodbench.encoder.openclip import transform_of

        return transform_of(self.plan.encoder, self.device, self.plan.request.precision)

    def _threads(self, pixels: bool) -> int | None:
        """Return how many threads score, each on one core; None for this thread alone, with all cores or the GPU."""
        import torch

        return min(torch.get_num_threads(), THREADS) if self.device == "cpu" and not pixels else None

    def _fit(self, method: FittedMethod) -> bool:
        """Fit a method if it is not fitted; return whether it can score."""
        import torch

        if method.error:
            return False
        if not method.fitted:
            name = f"fit[{method.job.label}]"
            self.watch.event(Event("started", "fit", name))
            torch.manual_seed(self.plan.request.seed)
            try:
                if method.job.templates:  # encoded before the clock starts: methods share the text vectors
                    self.task.prepare(method.job.parameters["templates"])
                began = time.perf_counter()
                with torch.no_grad():
                    method.state = method.method.fit(self.task.for_method(method.method.needs, method.resources))
                if not self.task.intact():
                    raise UserError("fit() changes its inputs in place; clone them first")
            except Exception as error:
                self.task.intact()  # restores what fit() may have written before it failed
                return fail(method, error)
            method.fitted, method.fit_seconds = True, time.perf_counter() - began
            self.watch.event(Event("done", "fit", name, seconds=round(method.fit_seconds, 3)))
        if not method.contents:
            method.contents = batches.method_contents(method)
        return True

    def _store(self, method: FittedMethod, embedded: EmbeddedSet, output: MethodOutput) -> None:
        scores, positions = np.concatenate(output.scores), embedded.positions
        arrays: dict[str, npt.NDArray[Any]] = {"scores": scores, "positions": positions}
        if output.predictions:
            arrays["predictions"] = np.concatenate(output.predictions)
        facts = {
            **stamp(self.device),
            "dataset": embedded.listing.dataset.name,
            "skipped": list(embedded.skipped),
            "seconds": round(output.seconds, 6),
            "fit_seconds": round(method.fit_seconds, 6),
            "extract_seconds": embedded.seconds,
            "extracted": embedded.stamps,
        }
        self.plan.store.write("scores", score_inputs(self.plan, method.job, embedded.listing), arrays, facts)


@dataclass(frozen=True)
class Values:
    """Scores [n], and predicted class indices [n] if the method predicts classes."""

    scores: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.int32] | None


def _score_error(embedded: EmbeddedSet | PatchPass, output: MethodOutput) -> str:
    """Return why scores are invalid, or "": none may be NaN or infinite."""
    scores, listing = np.concatenate(output.scores), embedded.listing
    bad = np.flatnonzero(~np.isfinite(scores))
    if not len(bad):
        return ""
    name, kind = listing.names[embedded.positions[bad[0]]], "NaN" if np.isnan(scores).any() else "infinite"
    return f"{len(bad)} of {len(scores)} scores on {listing.dataset.name} are {kind}, that of '{name}' first"


def feature_batches(embedded: EmbeddedSet, device: str, *, labelled: bool = False) -> Iterator[Batch]:
    """Yield embeddings and activations in chunks by list position, so that the digits do not depend on the run.

    `labelled` batches have the labels of the image set, too: those of ID training images, for fit().
    """
    import torch

    chunk = -(-CHUNK // (1 + len(embedded.views)))  # holds as many embeddings as without views
    for number, (shard, first) in enumerate(zip(embedded.shards, embedded.starts, strict=True)):
        labels = torch.from_numpy(embedded.listing.labels[shard.array("positions") + first]).to(device)
        for start in range(0, len(labels), chunk):
            rows = slice(start, min(start + chunk, len(labels)))
            batch = _batch(shard, rows, device, None, _views(embedded, number))
            yield replace(batch, _labels=labels[rows]) if labelled else batch


def _views(embedded: EmbeddedSet, number: int) -> list[Entry]:
    """Return the shard of that number in each view."""
    return [shards[number] for shards in embedded.views]


def _batch(shard: Entry, rows: slice, device: str, pixels: Any, in_views: Sequence[Entry] = ()) -> Batch:
    """Return some rows of a shard as a Batch, with every field that a method may read."""
    import torch

    views = [torch.from_numpy(np.array(view.array("embeddings")[rows])).to(device) for view in in_views]
    stacked = torch.stack([torch.nn.functional.normalize(view, dim=-1) for view in views], 1) if views else None
    batch = batch_of({name: np.array(shard.array(name)[rows]) for name in STORED if name in shard.names}, device)
    return replace(batch, _pixels=pixels, _views=stacked)


STORED = ("embeddings", "activations")  # of every image; activations only if they are not the embeddings


def batch_of(arrays: Mapping[str, npt.NDArray[np.float32]], device: str) -> Batch:
    """Return the Batch of stored embeddings and activations."""
    import torch

    from oodbench.method import Batch, Needs

    embeddings = torch.from_numpy(arrays["embeddings"]).to(device)
    activations = torch.from_numpy(arrays["activations"]).to(device) if "activations" in arrays else embeddings
    features = torch.nn.functional.normalize(embeddings, dim=-1)
    return Batch(~Needs(0), len(embeddings), features, embeddings, activations)


def fail(method: FittedMethod, error: Exception) -> bool:
    """Record why a method failed; return False."""
    method.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    log.info("%s failed", method.job.label, exc_info=error)
    return False
