"""train(): one training from request to file, alone or as one of many processes, from the start or where it stopped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.encoder.openclip import OpenClip
from oodbench.errors import UserError
from oodbench.pipeline import weights
from oodbench.pipeline.extract import Recipe
from oodbench.training import preparation
from oodbench.training.batches import Feed, reads_text
from oodbench.training.checkpoints import State
from oodbench.training.halt import Halt
from oodbench.training.header import recipe, written
from oodbench.training.loop import Diverged, Report, Trainer
from oodbench.training.losses import Curves
from oodbench.training.material import BATCH, gather
from oodbench.training.plan import TrainPlan, make_plan
from oodbench.training.processes import World, joined
from oodbench.training.request import TrainRequest

__all__ = ["Diverged", "Outcome", "TrainWatch", "train"]


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
    step: Callable[[Report], None] = lambda report: None


@dataclass(frozen=True)
class Outcome:
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


def train(request: TrainRequest, watch: TrainWatch | None = None) -> Outcome:
    """Train a method's part, going on where the same request stopped. UserError for bad input; Diverged for NaN."""
    plan = make_plan(request)
    with joined(request.device) as world:
        return _train(plan, world, (watch if world.first else None) or TrainWatch())


def _train(plan: TrainPlan, world: World, watch: TrainWatch) -> Outcome:
    request, state = plan.request, State(plan.out)
    if not request.restart:
        state.check(plan.identity())
    if plan.optimiser.batch % world.size:
        raise UserError(f"a batch of {plan.optimiser.batch} cannot be shared evenly among {world.size} processes")
    load = functools.cache(lambda: OpenClip(plan.encoder, world.device, request.compute))
    how = Recipe(plan.encoder.card.identity, request.compute, BATCH)
    if request.restart or not state.newest():
        preparation.try_out(plan, load)
    material = gather(request, how, plan.store, load, world, watch.extracting)
    schedule = preparation.schedule(plan, material)
    identity = {**plan.identity(), "captions": preparation.captions(plan, material), "steps": schedule.steps}
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
    if done >= last and written(plan.out, identity, done):
        return Outcome(plan.out, done, schedule.steps, 0, first=world.first)
    if reads_text(plan.method, load(), material.captions):
        preparation.embed_texts(plan, material, world, load, watch.extracting)
    crops = preparation.crops(plan, material, world)
    try:
        feed = Feed(material, schedule, load(), request.chunk, crops)
        return _steps(plan, Trainer(plan.method, feed, world, request.compute), state, (done, last), watch, identity)
    finally:
        if crops:
            crops.close()


def _steps(
    plan: TrainPlan,
    trainer: Trainer,
    state: State,
    span: tuple[int, int],
    watch: TrainWatch,
    identity: dict[str, Any],
) -> Outcome:
    done, last = span
    world = trainer.world
    if done:
        state.take_up(trainer, done)
    world.wait()
    number = saved = done
    with Halt() as halt, Curves(state.folder, done, world.first) as curves:
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
    outcome = Outcome(plan.out, number, trainer.schedule.steps, number - done, 0, world.first, curves.means())
    if number < last:
        return dataclasses.replace(outcome, signal=stopped)
    if world.first:
        assert saved == number
        made = {"loss": outcome.terms, "done": number, "world": world.size, "chunk": plan.request.chunk}
        weights.write(plan.out, trainer.module.state_dict(), recipe(plan, identity, made))
    world.wait()
    return outcome
