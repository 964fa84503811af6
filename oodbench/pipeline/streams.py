"""Score streams: methods that learn from the test images see those of a pair in the order of a protocol.

Streams share nothing with each other or between methods. The features are read from the stored shards, a batch at a
time, and the method runs in one thread without gradient. Its scores are stored for each pair, order and seed, so that a
killed run resumes with the next pair. After a stream, begin() is called again and the first two steps must give the
same scores: this detects a method that keeps something outside its state, and so would carry it from one pair to the
next.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.errors import UserError
from oodbench.pipeline import batches
from oodbench.pipeline.batches import FittedMethod, MethodOutput
from oodbench.pipeline.extract import EmbeddedSet
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.score import STORED, Scorer, Values, batch_of, fail, find_scores, score_inputs
from oodbench.pipeline.stream_order import Positions, StreamProtocol
from oodbench.results import distinct, stamp
from oodbench.storage.store import Entry

ENGINE = 1  # raise when a stream gives other numbers than before
REPEATED = 2  # steps that are repeated after a stream


def stream_inputs(plan: Plan, job: Job, ood: ImageSet, protocol: StreamProtocol) -> dict[str, Any]:
    """Return everything that the scores of a stream depend on: the key of the stored scores."""
    pair, base = (plan.id, ood), plan.base_of(job)
    return {
        "engine": ENGINE,
        "protocol": protocol.plain(),
        "sets": [score_inputs(plan, job, listing) for listing in pair],
        "base": [plan.store.key("scores", score_inputs(plan, base, listing)) for listing in pair] if base else None,
    }


def find_stream(plan: Plan, job: Job, ood: ImageSet, protocol: StreamProtocol) -> Entry | None:
    """Return the stored scores of a stream; None if images were skipped and this run stops at such images."""
    entry = plan.store.find("streams", stream_inputs(plan, job, ood, protocol))
    skipped = entry and (entry.facts["skipped"] or entry.facts["skipped_id"])
    return None if skipped and plan.request.on_error == "stop" else entry


def find_streams(plan: Plan, job: Job, protocol: StreamProtocol) -> dict[str, Entry]:
    """Return the stored scores of a method under a protocol, by OOD set."""
    found = {one.listing.dataset.name: find_stream(plan, job, one.listing, protocol) for one in plan.ood}
    return {name: entry for name, entry in found.items() if entry}


def is_stored(plan: Plan, job: Job) -> bool:
    """Return whether all scores of a job are stored: those of every stream if it learns from the test images."""
    if job.is_stream:
        return all(len(find_streams(plan, job, protocol)) == len(plan.ood) for protocol in plan.protocols)
    return all(find_scores(plan, job, listing) for listing in plan.listings)


def forget_streams(plan: Plan, job: Job) -> None:
    """Remove the stored scores of a method on all streams of a plan."""
    for protocol, one in itertools.product(plan.protocols, plan.ood):
        plan.store.remove("streams", stream_inputs(plan, job, one.listing, protocol))


def run_stream(
    scorer: Scorer,
    method: FittedMethod,
    protocol: StreamProtocol,
    number: int,
    embeddings: Callable[[int], EmbeddedSet],
) -> None:
    """Score one stream and store the scores; a method that fails keeps its error.

    `number` is the index of the OOD set among the plan's image sets, and `embeddings` takes such an index.
    The scores of the base must be stored. Raises UserError if an image cannot be read.
    """
    plan, job = scorer.plan, method.job
    pair = (embeddings(0), embeddings(number))
    name = pair[1].listing.dataset.name
    try:
        stream = _Stream(pair, protocol, _base_values(plan, job, pair), scorer.device)
        if not len(stream.order):
            raise UserError(
                f"--stream-ratio {protocol.ratio} leaves no image of the {stream.sizes[0]:,} of "
                f"{plan.id.dataset.name} and {stream.sizes[1]:,} of {name} that can be read; name a ratio that they "
                "allow, or all"
            )
        done = scorer.watch.scoring(name, [job.label], len(stream.order))
        output = _run_stream(scorer, method, stream, None, done)
        reason = _kept_error(scorer, method, stream, output)
        if reason:
            method.stateful = True
            forget_streams(plan, job)
            raise UserError(reason)
    except Exception as error:
        scorer.task.intact()  # restores what the method may have written before it failed
        fail(method, error)
        return
    facts = {
        **stamp(scorer.device),
        "dataset": name,
        "images": [len(one.positions) for one in pair],
        "skipped_id": list(pair[0].skipped),
        "skipped": list(pair[1].skipped),
        "seconds": round(output.seconds, 6),
        "fit_seconds": round(method.fit_seconds, 6),
        "extract_seconds": [one.seconds for one in pair],
        "extracted": distinct(each for one in pair for each in one.stamps),
    }
    plan.store.write("streams", stream_inputs(plan, job, pair[1].listing, protocol), stream.arrays(output), facts)


class _Stream:
    """The images of a pair in the order of a stream. Rows count the ID images and then the OOD images.

    order  [n] the row of each image of the stream
    base   scores and classes of the base by row, if the method has one
    """

    def __init__(
        self,
        pair: tuple[EmbeddedSet, EmbeddedSet],
        protocol: StreamProtocol,
        base: Values | None,
        device: str,
    ) -> None:
        self.pair, self.protocol, self.base, self.device = pair, protocol, base, device
        self.sizes = tuple(len(one.positions) for one in pair)
        self.order = protocol.positions(*self.sizes)
        shards = [shard for one in pair for shard in one.shards]
        # Memory-mapped: a batch reads only its rows.
        self._stored = {
            name: [shard.array(name) for shard in shards]
            for name in STORED
            if all(name in shard.names for shard in shards)
        }
        self._starts = np.cumsum([0, *(len(part) for part in self._stored["embeddings"])])

    def batches(self) -> Iterator[Any]:
        """Yield the images of the stream in batches, each a Batch, with the score of the base if there is one."""
        import dataclasses

        import torch

        for start in range(0, len(self.order), self.protocol.batch):
            rows = self.order[start : start + self.protocol.batch]
            batch = batch_of({name: self._read(parts, rows) for name, parts in self._stored.items()}, self.device)
            base = None if self.base is None else torch.from_numpy(self.base.scores[rows]).to(self.device)
            yield dataclasses.replace(batch, _base=base)

    def _read(self, parts: Sequence[npt.NDArray[Any]], rows: Positions) -> npt.NDArray[Any]:
        """Return some rows of an array that is in shards."""
        found = np.empty((len(rows), parts[0].shape[1]), parts[0].dtype)
        shards = np.searchsorted(self._starts, rows, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = parts[shard][rows[here] - self._starts[shard]]
        return found

    @property
    def is_id(self) -> npt.NDArray[np.bool_]:
        """Return [n] whether each image of the stream is one of the ID set."""
        return self.order < self.sizes[0]

    @property
    def positions(self) -> Positions:
        """Return [n] the position of each image of the stream in the list of its set."""
        return np.concatenate([one.positions for one in self.pair])[self.order]

    def name(self, place: int) -> str:
        """Return the name of the image at a place of the stream, and its set."""
        listing = self.pair[0 if self.is_id[place] else 1].listing
        return f"'{listing.names[self.positions[place]]}' of {listing.dataset.name}"

    def arrays(self, output: MethodOutput) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to store for a stream, in its order."""
        arrays = {"scores": np.concatenate(output.scores), "positions": self.positions, "is_id": self.is_id}
        return arrays | ({"predictions": np.concatenate(output.predictions)} if output.predictions else {})


def _base_values(plan: Plan, job: Job, pair: Sequence[EmbeddedSet]) -> Values | None:
    """Return the base's scores and classes of every row of a pair; None for a method without a base."""
    base = plan.base_of(job)
    if base is None:
        return None
    entries = []
    for embedded in pair:
        entry, name = find_scores(plan, base, embedded.listing), embedded.listing.dataset.name
        if entry is None or not np.array_equal(entry.array("positions"), embedded.positions):
            raise UserError(f"the scores of its base {base.label} on {name} are not in the store; run again")
        entries.append(entry)
    classes = [entry.array("predictions") for entry in entries if "predictions" in entry.names]
    scores = np.concatenate([entry.array("scores") for entry in entries])
    return Values(scores, np.concatenate(classes) if len(classes) == len(entries) else None)


def _run_stream(
    scorer: Scorer,
    method: FittedMethod,
    stream: _Stream,
    steps: int | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> MethodOutput:
    """Return the output of a method for a stream, or for its first steps, from begin() on; its errors are raised."""
    import torch

    from oodbench.method import Needs

    needs, output, seen = method.method.needs, MethodOutput(), 0
    if method.job.templates:  # encoded before the clock starts: methods share the text vectors
        scorer.task.prepare(method.job.parameters["templates"])
    task = scorer.task.for_method(needs, method.resources)
    torch.manual_seed(scorer.plan.request.seed)
    with torch.no_grad():
        began = time.perf_counter()
        state = method.method.begin(task)  # type: ignore[attr-defined]  # a StreamMethod
        if not scorer.task.intact():
            raise UserError("begin() changes its inputs in place; clone them first")
        if steps is None:  # begin() may keep what all streams share in an attribute
            method.contents = batches.contents(vars(method.method))
        method.fit_seconds = max(method.fit_seconds, time.perf_counter() - began)  # the first time, texts are encoded
        for batch in itertools.islice(stream.batches(), steps):
            began = time.perf_counter()
            returned = method.method.step(batch.for_method(needs), task, state)  # type: ignore[attr-defined]
            if not isinstance(returned, tuple) or len(returned) not in (2, 3):
                raise UserError(
                    f"step() must return (scores, state) or (scores, state, classes), not {_kind(returned)}"
                )
            state = returned[1]
            found = _checked(returned[0], stream, seen, batch.size)
            classes = returned[2] if len(returned) == 3 else None
            if classes is None:
                classes = method.method.predict(batch.for_method(needs | Needs.FEATURES), task, state)
            if classes is None and stream.base and stream.base.predictions is not None:
                classes = torch.from_numpy(stream.base.predictions[stream.order[seen : seen + batch.size]])
            output.add(MethodOutput([found], _classes(classes, batch.size, len(task.classes))))
            output.seconds += time.perf_counter() - began
            if not (scorer.task.intact() and batch.intact()):
                raise UserError("step() changes its inputs in place; clone them first")
            if len(output.predictions) not in (0, len(output.scores)):
                raise UserError("step() must return classes in every step, or in none")
            seen += batch.size
            done(batch.size)
    return output


def _kind(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__


def _checked(scores: object, stream: _Stream, place: int, images: int) -> npt.NDArray[np.float64]:
    """Return a copy of the scores of a step, whose first image is at `place`: they may be a view of the method's state.

    Raises UserError unless they are one finite real number per image.
    """
    from oodbench.method import check_scores

    found = np.array(check_scores(scores, images, "step()"))
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        kind = "NaN" if np.isnan(found).any() else "infinite"
        where = f"in the batch from place {place:,} of the stream, that of {stream.name(place + int(bad[0]))} first"
        raise UserError(f"{len(bad)} of {images} scores are {kind} {where}")
    return found


def _classes(classes: Any, images: int, known: int) -> list[npt.NDArray[np.int32]]:
    """Return predicted classes in the form in which they are stored, in a list; empty if the method predicts none."""
    from oodbench.method import check_predictions

    if classes is None:
        return []
    check_predictions(classes, images, known)
    return [np.array(classes.cpu().numpy(), np.int32)]


def _kept_error(scorer: Scorer, method: FittedMethod, stream: _Stream, output: MethodOutput) -> str:
    """Repeat the first steps of a stream from begin() on; return what a method keeps outside its state, or ""."""
    after = batches.contents(vars(method.method))
    if (place := batches.difference(method.contents, after)) is not None:
        return f"step() changes self{place}: learning belongs to the state that step() returns"
    again = np.concatenate(_run_stream(scorer, method, stream, REPEATED).scores)
    first = np.concatenate(output.scores)[: len(again)]
    changed = batches.differing(first, again, batches.rounding_tolerance(scorer.device))
    if not changed.any():
        return ""
    index = int(changed.argmax())
    return (
        f"it keeps something outside its state: {stream.name(index)} scores {first[index]:.9g} at the beginning of a "
        f"stream and {again[index]:.9g} when begin() starts it again; learning belongs to the state that step() "
        "returns, and random numbers must follow from task.seed"
    )
