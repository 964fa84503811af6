"""train(): one training from request to file, alone or as one of many processes, from the start or where it stopped."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from oodbench.encoder.openclip import load_encoder
from oodbench.errors import Diverged, UserError
from oodbench.pipeline import weights
from oodbench.pipeline.extract import EmbeddingConfig
from oodbench.pipeline.text_embeddings import PromptEmbeddings
from oodbench.results import commit, versions
from oodbench.training.batches import Crops, PairBatches, reads_text
from oodbench.training.checkpoints import Checkpoints
from oodbench.training.loop import StepReport, Trainer
from oodbench.training.losses import Curves
from oodbench.training.material import BATCH, Encoders, Tell, TrainingData, add_texts, gather
from oodbench.training.plan import TrainPlan, TrainRequest, make_plan
from oodbench.training.processes import ProcessGroup, joined
from oodbench.training.schedule import Schedule


def is_finished(out: Path, identity: dict[str, Any], done: int) -> bool:
    """Whether the file holds what this training gave so far."""
    try:
        found = weights.recipe_of(out)
    except UserError:
        return False
    return found.get("training") == json.loads(json.dumps(identity)) and found.get("steps") == done


def recipe(plan: TrainPlan, identity: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """What the header says; `made` is what only the end of a training knows."""
    captions = dict(identity["captions"])
    return {
        "method": plan.job.info.name,
        "parameters": plan.job.parameters,
        "encoder": plan.encoder.card.row(),
        "source": plan.job.info.source,
        "captions": {"name": captions.pop("source"), **captions},
        "augment": plan.request.augment,
        "optimiser": dataclasses.asdict(plan.optimiser),
        "batch": plan.optimiser.batch,
        "epochs": plan.optimiser.epochs if plan.request.steps is None else None,
        "steps": made["done"],
        "schedule": identity["steps"],
        "seed": plan.request.seed,
        "precision": plan.request.compute,
        "chunk": made["chunk"],
        "processes": made["world"],
        "loss": made["loss"],
        "training": identity,
        "versions": versions(),
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class GracefulStop:
    """Within it, the first signal is only noted; a second Ctrl-C stops at once. Outside the main thread: nothing."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


def try_out(plan: TrainPlan, load: Encoders) -> None:
    """Embed two pairs, so that hyper-parameters that do not fit are told before a corpus is embedded."""
    import torch

    from oodbench.method import Pairs

    encoder = load()
    embeddings = torch.ones(2, plan.encoder.card.embed_dim, device=encoder.device)
    try:
        module = plan.method.module(encoder).to(encoder.device)
        with torch.no_grad():
            pairs = Pairs(embeddings, ("a", "b"), torch.arange(2), 0, plan.request.seed, 2)
            plan.method.embed(module, plan.method.inputs(pairs, encoder))
    except ValueError as error:
        raise UserError(f"{plan.job.label}: {error}") from error


def build_schedule(plan: TrainPlan, material: TrainingData) -> Schedule:
    """Which pairs each step reads, and its learning rate. UserError for fewer pairs than a batch has."""
    batch = plan.optimiser.batch
    if len(material) < batch:
        raise UserError(
            f"the corpus {plan.request.captions} has {len(material):,} pairs, fewer than one batch of {batch:,}; "
            f"use a smaller one, as in --batch {max(1, len(material) // 2)}"
        )
    steps = plan.request.steps or plan.optimiser.epochs * (len(material) // batch)
    if plan.optimiser.warmup >= steps:
        raise UserError(f"--warmup {plan.optimiser.warmup} leaves none of {steps} steps for learning; use less")
    return Schedule(plan.optimiser, len(material), steps, plan.request.seed)


def describe_captions(plan: TrainPlan, material: TrainingData) -> dict[str, Any]:
    """What identifies the corpus, for the recipe."""
    return {
        "source": Path(plan.request.captions).name,
        "pairs": len(material),
        "images": material.distinct,
        "digest": material.digest,
        "skipped": len(material.skipped),
    }


def embed_texts(plan: TrainPlan, material: TrainingData, world: ProcessGroup, load: Encoders, tell: Tell) -> None:
    """Add the captions' embeddings, which one process makes and the others read."""
    kept = PromptEmbeddings(plan.encoder.card.identity, plan.request.compute, plan.store)
    if world.first:
        add_texts(material, kept, load, tell)
    world.wait()
    if not world.first:
        add_texts(material, kept, load, tell)


def build_crops(plan: TrainPlan, material: TrainingData, world: ProcessGroup) -> Crops | None:
    """Random crops of the images, with --augment."""
    if not plan.request.augment:
        return None
    workers = plan.request.workers or min(max((os.cpu_count() or 1) // world.size, 1), 16)
    return Crops(material, plan.encoder.card.size, plan.request.seed, workers)


__all__ = ["Diverged", "TrainOutcome", "TrainWatch", "train"]


@dataclass(frozen=True)
class Ready:
    """What is known when the first step can be made: `done` steps of `steps` are there from before."""

    plan: TrainPlan
    pairs: int
    images: int
    skipped: tuple[str, ...]
    done: int
    steps: int
    folder: Path


@dataclass(frozen=True)
class TrainWatch:
    """What a training tells while it goes on."""

    extracting: Callable[[str, int], Callable[[int], None]] = lambda what, count: lambda n: None
    ready: Callable[[Ready], None] = lambda ready: None
    step: Callable[[StepReport], None] = lambda report: None


@dataclass(frozen=True)
class TrainOutcome:
    """What became of a training.

    out      the file of weights
    done     steps that were made, of `steps`
    made     of them now
    signal   number of the signal that stopped it; 0
    first    whether this is the process that speaks for all
    """

    out: Path
    done: int
    steps: int
    made: int
    signal: int = 0
    first: bool = True
    terms: dict[str, float] = field(default_factory=dict)


def train(request: TrainRequest, watch: TrainWatch | None = None) -> TrainOutcome:
    """Train a method's part, going on where the same request stopped. UserError for bad input; Diverged for NaN."""
    plan = make_plan(request)
    with joined(request.device) as world:
        return _train(plan, world, (watch if world.first else None) or TrainWatch())


def _train(plan: TrainPlan, world: ProcessGroup, watch: TrainWatch) -> TrainOutcome:
    request, state = plan.request, Checkpoints(plan.out)
    if not request.restart:
        state.check(plan.identity())
    if plan.optimiser.batch % world.size:
        raise UserError(f"a batch of {plan.optimiser.batch} cannot be shared evenly among {world.size} processes")
    load = functools.cache(lambda: load_encoder(plan.encoder, world.device, request.compute))
    how = EmbeddingConfig(plan.encoder.card.identity, request.compute, BATCH)
    if request.restart or not state.newest():
        try_out(plan, load)
    material = gather(request, how, plan.store, load, world, watch.extracting)
    schedule = build_schedule(plan, material)
    identity = {**plan.identity(), "captions": describe_captions(plan, material), "steps": schedule.steps}
    if request.restart:  # all that can be wrong with the request is known by now
        if world.first:
            state.clear()
        world.wait()
    state.check(identity)
    done = world.told(state.newest())
    ready = Ready(plan, len(material), material.distinct, tuple(material.skipped), done, schedule.steps, state.folder)
    last = min(schedule.steps, request.max_steps or schedule.steps)
    world.wait()  # all have looked before one writes
    if world.first:
        state.begin(identity)
    watch.ready(ready)
    if done >= last and is_finished(plan.out, identity, done):
        return TrainOutcome(plan.out, done, schedule.steps, 0, first=world.first)
    if reads_text(plan.method, load(), material.captions):
        embed_texts(plan, material, world, load, watch.extracting)
    crops = build_crops(plan, material, world)
    try:
        feed = PairBatches(material, schedule, load(), request.chunk, crops)
        return _steps(plan, Trainer(plan.method, feed, world, request.compute), state, (done, last), watch, identity)
    finally:
        if crops:
            crops.close()


def _steps(
    plan: TrainPlan,
    trainer: Trainer,
    state: Checkpoints,
    span: tuple[int, int],
    watch: TrainWatch,
    identity: dict[str, Any],
) -> TrainOutcome:
    done, last = span
    world = trainer.world
    if done:
        state.take_up(trainer, done)
    world.wait()
    number = saved = done
    with GracefulStop() as halt, Curves(state.folder, done, world.first) as curves:
        while number < last:
            report = trainer.step(number)
            number += 1
            curves.add(report)
            watch.step(report)
            stopped = world.most(halt.signal)
            if world.first and (number % plan.request.checkpoint_every == 0 or number == last or stopped):
                state.save(trainer, number)
                saved = number
            if stopped:
                break
    stopped = world.most(halt.signal)
    outcome = TrainOutcome(plan.out, number, trainer.schedule.steps, number - done, 0, world.first, curves.means())
    if number < last:
        return dataclasses.replace(outcome, signal=stopped)
    if world.first:
        assert saved == number
        made = {"loss": outcome.terms, "done": number, "world": world.size, "chunk": plan.request.chunk}
        weights.write(plan.out, trainer.module.state_dict(), recipe(plan, identity, made))
    world.wait()
    return outcome
