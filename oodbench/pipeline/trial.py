"""One method on the toy dataset, fitted and scoring batches, or begun and scoring streams, for the contract checks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from oodbench.errors import UserError
from oodbench.method import (
    Batch,
    FewShotMethod,
    Method,
    MethodResources,
    Needs,
    StreamMethod,
    Task,
    TrainedMethod,
    Weights,
    check_predictions,
    check_scores,
    registry,
)
from oodbench.method.method import make_module
from oodbench.method.registry import MethodInfo
from oodbench.method.toy import CLASSES, ToyWorld
from oodbench.method.views import keyed_views
from oodbench.metrics import detection as metrics
from oodbench.pipeline.batches import differing, rounding_tolerance

TOY_STEPS, TOY_RATE = 100, 3e-2
LEAST_AUROC = 0.7  # on the toy dataset, where a working method reaches 0.9 and more
STEP = 32  # images of a stream that a method scores at once
ANEW = object()  # in place of a state, which may be None


@dataclass(frozen=True)
class StreamOutput:
    """The output of a method for a stream.

    scores       [n] in float64, copied after each step
    predictions  [n] class indices; [0] if step() returned none
    returned     the tensor of scores of each step, as it is after the last step
    batches      the batch of each step
    state        the state that the last step returned
    """

    scores: Tensor
    predictions: Tensor
    returned: list[Tensor]
    batches: list[Batch]
    state: Any


@dataclass
class Trial:
    """One method on the toy dataset; `state` is what fit() returned, or begin() of a StreamMethod."""

    info: MethodInfo
    parameters: Mapping[str, Any]
    method: Method[Any]
    world: ToyWorld
    task: Task
    state: Any = None

    def begin(self) -> Any:
        """Return what fit() or begin() returns; raise UserError if it changes its inputs."""
        torch.manual_seed(0)
        streams = isinstance(self.method, StreamMethod)
        with torch.no_grad():
            state = (
                self.method.begin(self.task) if isinstance(self.method, StreamMethod) else self.method.fit(self.task)
            )
        if not self.task.intact():
            raise UserError(f"{'begin' if streams else 'fit'}() changes its inputs in place; clone them first")
        return state

    def scores(self, images: Tensor) -> Tensor:
        """Return the scores of images as one batch, or as a stream of their own, on the CPU."""
        if isinstance(self.method, StreamMethod):
            return self.stream(images).scores
        with torch.no_grad():
            scores = self.method.score(self.batch(images), self.task, self.state)
        return scores.cpu() if isinstance(scores, Tensor) else scores

    def scores_one_by_one(self, images: Tensor) -> Tensor:
        """Return the scores of images, each in a batch of its own, in float64."""
        return torch.cat([self.scores(image[None]) for image in images]).double()

    def stream(self, images: Tensor, steps: int | list[int] = STEP, state: Any = ANEW) -> StreamOutput:
        """Score images with a StreamMethod.

        `steps` are the images of each step. The stream continues from `state`, or starts at begin(). torch's generator
        gets a new seed, so that random numbers of step() that do not follow from task.seed are detected.
        """
        method, state = cast(StreamMethod[Any], self.method), self.begin() if state is ANEW else state
        torch.seed()
        scores, predictions, returned, batches = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)], [], []
        for part in torch.split(images, steps):
            batch = self.batch(part)
            with torch.no_grad():
                given = method.step(batch, self.task, state)
            if not isinstance(given, tuple) or len(given) not in (2, 3):
                raise UserError("step() must return (scores, state), or (scores, state, class indices)")
            scores.append(torch.from_numpy(check_scores(given[0], batch.size, "step()").copy()))
            if len(given) == 3 and given[2] is not None:
                check_predictions(given[2], batch.size, len(CLASSES), "step()")
                predictions.append(given[2].cpu())
            returned.append(given[0])
            batches.append(batch)
            state = given[1]
        return StreamOutput(torch.cat(scores), torch.cat(predictions), returned, batches, state)

    def batch(self, images: Tensor) -> Batch:
        """Return images as the method reads them, with the scores of MCM in place of the method that `base` names."""
        batch = self.world.batch(images, self.method.needs)
        named = {**self.info.defaults(), **self.parameters}.get("base")
        return dataclasses.replace(batch, _base=self.world.base(images)) if named else batch

    def predictions(self, batch: Batch) -> Tensor | None:
        """Return what predict() returns for a batch."""
        with torch.no_grad():
            return self.method.predict(batch.for_method(self.method.needs | Needs.FEATURES), self.task, self.state)

    def again(self) -> Trial:
        """Return the same method, constructed and fitted again."""
        return trial(self.info, self.parameters, self.world.encoder.device)

    def same(self, first: Tensor, second: Tensor) -> bool:
        """Return whether scores are equal up to rounding, since products may be divided among threads differently."""
        tolerance = rounding_tolerance(self.world.encoder.device)
        return not differing(first.double().numpy(), second.double().numpy(), tolerance).any()


def trial(info: MethodInfo, parameters: Mapping[str, Any] | None = None, device: str = "cpu") -> Trial:
    """Construct a method with some hyper-parameters and fit or begin it; raise UserError if either fails."""
    parameters = dict(parameters or {})
    method = registry.make(info, parameters)
    world = ToyWorld(device=device, views=len(keyed_views(method, info.source, 0)))
    resources = MethodResources(functools.cache(lambda: _trained(method, world)), lambda depends_on, compute: compute())
    made = Trial(info, parameters, method, world, world.task().for_method(method.needs, resources))
    return dataclasses.replace(made, state=made.begin())


def auroc_problem(id: Tensor, ood: Tensor) -> str:
    """Return a problem if the AUROC of the toy dataset's ID and OOD scores is too low, or ""."""
    sets = [metrics.score_set(scores.double().numpy(), "the toy dataset") for scores in (id, ood)]
    auroc = metrics.evaluate(sets[0], sets[1]).auroc
    if auroc >= LEAST_AUROC:
        return ""
    return f"AUROC on the toy dataset is {auroc:.2f}" + ("; is the sign right? higher = more ID" if auroc < 0.5 else "")


def _trained(method: Method[Any], world: ToyWorld) -> Weights:
    """Train a method for some steps on the toy dataset's pairs or labelled images and return its weights."""
    if not isinstance(method, TrainedMethod):
        raise UserError("it reads weights but is not a TrainedMethod, so nothing can train it")
    few_shot = isinstance(method, FewShotMethod)
    module, first = make_module(method, world.encoder, CLASSES).train(), math.nan
    optimiser = torch.optim.AdamW(module.parameters(), lr=TOY_RATE)
    for step in range(TOY_STEPS):
        with torch.no_grad():
            pairs = world.labelled_pairs(step) if few_shot else world.pairs(step)
            inputs = method.inputs(pairs, world.encoder)
        with torch.enable_grad():
            loss = torch.stack(list(method.loss(method.embed(module, inputs)).values())).sum()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        first = loss.item() if step == 0 else first
    if not loss.item() < first:
        raise UserError(f"training does not lower its loss: {first:.4g}, then {loss.item():.4g}")
    return Weights({name: tensor.detach().clone() for name, tensor in module.state_dict().items()}, {})
