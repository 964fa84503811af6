"""Train a method's weights: train() prepares the data, runs the steps and writes the file of weights.

It runs alone or as one of several processes, from the first step or from the last checkpoint of the same request.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from oodbench.encoder.openclip import load_encoder
from oodbench.errors import UserError
from oodbench.method import Pairs
from oodbench.method.method import make_module
from oodbench.pipeline import weights
from oodbench.pipeline.extract import EmbeddingConfig
from oodbench.pipeline.text_embeddings import PromptEmbeddings
from oodbench.results import commit, versions
from oodbench.storage.files import write_text
from oodbench.training.batches import Crops, PairBatches, random_crop, reads_text
from oodbench.training.checkpoints import Checkpoints
from oodbench.training.data import (
    BATCH,
    EncoderLoader,
    StartProgress,
    TrainingData,
    embed_captions,
    prepare_data,
    truncation_note,
)
from oodbench.training.labelled import crop_of, labelled_data
from oodbench.training.loop import StepReport, Trainer
from oodbench.training.losses import LossLog
from oodbench.training.plan import TrainPlan, TrainRequest, make_plan
from oodbench.training.processes import ProcessGroup, process_group
from oodbench.training.schedule import build_schedule
from oodbench.training.shots import GLYPHS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """The state of a training before the first step.

    pairs, images   number of pairs that are used, and of their distinct images; both are those of labelled images
    skipped         one line per pair or image that cannot be used
    done            steps of earlier calls, of `steps`; each has `batch` pairs
    folder          folder of the checkpoints
    crops           number of stored crops of every image
    """

    plan: TrainPlan
    pairs: int
    images: int
    skipped: tuple[str, ...]
    done: int
    steps: int
    batch: int
    folder: Path
    crops: int


@dataclass(frozen=True)
class TrainWatch:
    """Callbacks that report the progress of a training."""

    extracting: Callable[[str, int], Callable[[int], None]] = lambda what, count: lambda n: None
    ready: Callable[[Ready], None] = lambda ready: None
    step: Callable[[StepReport], None] = lambda report: None


@dataclass(frozen=True)
class TrainOutcome:
    """The result of a training.

    out       the file of weights
    done      steps done in total, of `steps`
    made      steps done by this call
    signal    number of the signal that stopped it; 0 if none did
    is_main   whether this process reports for all processes
    terms     terms of the loss, averaged over the last steps
    """

    out: Path
    done: int
    steps: int
    made: int
    signal: int = 0
    is_main: bool = True
    terms: dict[str, float] = field(default_factory=dict)


def train(request: TrainRequest, watch: TrainWatch | None = None) -> TrainOutcome:
    """Train a method's weights, resuming where the same request stopped.

    Raise UserError for invalid input, and Diverged if the loss or its gradient is not finite.
    """
    plan = make_plan(request)
    with process_group(request.device) as processes:
        return _train(plan, processes, (watch if processes.is_main else None) or TrainWatch())


def _train(plan: TrainPlan, processes: ProcessGroup, watch: TrainWatch) -> TrainOutcome:
    """Prepare the data, find the last checkpoint, and run the remaining steps."""
    request, checkpoints = plan.request, Checkpoints(plan.out)
    if not request.restart:
        checkpoints.check(plan.identity())
    check_batch(plan.optimiser.batch, processes)
    load = functools.cache(lambda: load_encoder(plan.encoder, processes.device, request.compute))
    if request.restart or not checkpoints.latest_step():
        check_hyper_parameters(plan, load)
    if plan.shots:
        data = labelled_data(plan, load, processes, watch.extracting, decoding_threads(plan, processes))
        read: dict[str, Any] = {"skipped": len(data.skipped), "images": data.digest}
    else:
        config = EmbeddingConfig(plan.encoder.card.identity, request.compute, BATCH)
        data = prepare_data(request, config, plan.store, load, processes, watch.extracting)
        read = {"captions": describe_captions(plan, data)}
    schedule = build_schedule(plan, len(data))
    check_batch(schedule.optimiser.batch, processes)
    identity = {**plan.identity(), **read, "steps": schedule.steps}
    if request.restart:  # only now, after every problem of the request would have been reported
        if processes.is_main:
            checkpoints.clear()
        processes.barrier()
    checkpoints.check(identity)
    done = processes.broadcast(checkpoints.latest_step())
    last = min(schedule.steps, request.max_steps or schedule.steps)
    processes.barrier()  # every process has read the folder before the main one writes to it
    if processes.is_main:
        checkpoints.write_identity(identity)
    skipped, batch = tuple(data.skipped), schedule.optimiser.batch
    watch.ready(
        Ready(plan, len(data), data.image_count, skipped, done, schedule.steps, batch, checkpoints.folder, data.crops)
    )
    if done >= last and is_finished(plan.out, identity, done):
        return TrainOutcome(plan.out, done, schedule.steps, 0, is_main=processes.is_main)
    if data.captions:
        if processes.is_main and (note := truncation_note(data.captions, load())):
            log.warning("%s", note)
        if reads_text(plan.method, load(), data.captions):
            embed_texts(plan, data, processes, load, watch.extracting)
    crops = build_crops(plan, data, processes)
    try:
        batches = PairBatches(data, schedule, load(), request.chunk, crops, plan.patch_fields)
        trainer = Trainer(plan.method, batches, processes, request.compute)
        return _run_steps(plan, trainer, checkpoints, (done, last), watch, identity)
    finally:
        if crops:
            crops.close()


def _run_steps(
    plan: TrainPlan,
    trainer: Trainer,
    checkpoints: Checkpoints,
    span: tuple[int, int],
    watch: TrainWatch,
    identity: dict[str, Any],
) -> TrainOutcome:
    """Run the steps of `span` with regular checkpoints, and write the file of weights after the last one."""
    done, last = span
    processes = trainer.processes
    if done:
        checkpoints.restore(trainer, done)
    processes.barrier()
    number = saved = done
    with GracefulStop() as stop, LossLog(checkpoints.folder, done, processes.is_main) as log:
        while number < last:
            report = trainer.step(number)
            number += 1
            log.add(report)
            watch.step(report)
            stopped = processes.max_over_ranks(stop.signal)
            due = number % plan.request.checkpoint_every == 0 or number == last or stopped
            if processes.is_main and due:
                checkpoints.save(trainer, number)
                saved = number
            if stopped:
                break
    stopped = processes.max_over_ranks(stop.signal)
    steps = trainer.schedule.steps
    outcome = TrainOutcome(plan.out, number, steps, number - done, 0, processes.is_main, log.means())
    if number < last:
        return dataclasses.replace(outcome, signal=stopped)
    if processes.is_main:
        assert saved == number
        recipe = weights_recipe(plan, identity, trainer, outcome)
        if plan.shots:
            write_text(plan.out.with_suffix(".shots.txt"), plan.shots.images.list_text)
        weights.write(plan.out, trainer.module.state_dict(), recipe)
    processes.barrier()
    return outcome


def check_hyper_parameters(plan: TrainPlan, load: EncoderLoader) -> None:
    """Embed two pairs, so that hyper-parameters that do not fit the encoder are reported before the corpus is read."""
    encoder = load()
    embeddings = torch.ones(2, plan.encoder.card.embed_dim, device=encoder.device)
    numbers = torch.arange(2, device=encoder.device)
    try:
        module = make_module(plan.method, encoder, plan.shots.classes.lines if plan.shots else ()).to(encoder.device)
        with torch.no_grad():
            if plan.shots:
                image = torch.zeros(1, 3, *encoder.size, device=encoder.device)
                seen = {f"_{name}": getattr(encoder, name)(image).expand(2, -1, -1) for name in plan.patch_fields}
                labels = numbers % len(plan.shots.classes.lines)
                pairs = Pairs(embeddings, (), numbers, 0, plan.request.seed, 2, _labels=labels, **seen)
            else:
                pairs = Pairs(embeddings, ("a", "b"), numbers, 0, plan.request.seed, 2)
            plan.method.embed(module, plan.method.inputs(pairs, encoder))
    except ValueError as error:
        raise UserError(f"{plan.job.label}: {error}") from error


def check_batch(batch: int, processes: ProcessGroup) -> None:
    """Raise UserError unless a batch can be divided evenly among the processes."""
    if left := batch % processes.size:
        advice = f"; use --batch-size {batch - left}" if batch > left else ""
        raise UserError(f"a batch of {batch} cannot be divided evenly among {processes.size} processes{advice}")


def embed_texts(
    plan: TrainPlan, data: TrainingData, processes: ProcessGroup, load: EncoderLoader, progress: StartProgress
) -> None:
    """Add the caption embeddings to the data: the main process computes them, the others read them from the store."""
    parts = PromptEmbeddings(plan.encoder.card.identity, plan.request.compute, plan.store)
    if processes.is_main:
        embed_captions(data, parts, load, progress)
    processes.barrier()
    if not processes.is_main:
        embed_captions(data, parts, load, progress)


def build_crops(plan: TrainPlan, data: TrainingData, processes: ProcessGroup) -> Crops | None:
    """Return the random crops of the images with --augment, else None."""
    if not plan.request.augment:
        return None
    crop = crop_of(plan) if plan.shots else lambda image, rng: random_crop(image, plan.encoder.card.size, rng)
    return Crops(data, crop, plan.request.seed, decoding_threads(plan, processes))


def decoding_threads(plan: TrainPlan, processes: ProcessGroup) -> int:
    """Return --workers, or this process's fraction of the cores, at most 16."""
    return plan.request.workers or min(max((os.cpu_count() or 1) // processes.size, 1), 16)


def describe_captions(plan: TrainPlan, data: TrainingData) -> dict[str, Any]:
    """Return the description of the corpus in the recipe."""
    return {
        "source": Path(plan.request.captions or GLYPHS).name,
        "pairs": len(data),
        "images": data.image_count,
        "digest": data.digest,
        "skipped": len(data.skipped),
    }


def is_finished(out: Path, identity: dict[str, Any], done: int) -> bool:
    """Return whether the file of weights is that of this training after `done` steps."""
    try:
        recipe = weights.recipe_of(out)
    except UserError:
        return False
    return recipe.get("training") == json.loads(json.dumps(identity)) and recipe.get("steps") == done


def weights_recipe(
    plan: TrainPlan, identity: dict[str, Any], trainer: Trainer, outcome: TrainOutcome
) -> dict[str, Any]:
    """Return the recipe in the header of the file of weights: everything that the weights depend on."""
    if plan.shots:
        facts = {**plan.shots.facts(), "skipped": identity["skipped"]}
        data = {"id": facts, "class_names": plan.shots.classes.lines, "crops": plan.request.crops}
    else:
        captions = dict(identity["captions"])
        data = {"captions": {"name": captions.pop("source"), **captions}}
    optimiser = trainer.schedule.optimiser
    return {
        "method": plan.job.info.name,
        "parameters": plan.job.parameters,
        "encoder": plan.encoder.card.row(),
        "source": plan.job.info.source,
        **data,
        "augment": plan.request.augment,
        "optimiser": optimiser.as_recorded(),
        "batch": optimiser.batch,
        "epochs": optimiser.epochs if plan.request.steps is None else None,
        "steps": outcome.done,
        "schedule": identity["steps"],
        "seed": plan.request.seed,
        "precision": plan.request.compute,
        "chunk": plan.request.chunk,
        "processes": trainer.processes.size,
        "loss": outcome.terms,
        "training": identity,
        "versions": versions(),
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class GracefulStop:
    """Within this context, SIGTERM and Ctrl-C only set `signal`; a second Ctrl-C raises KeyboardInterrupt.

    Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
