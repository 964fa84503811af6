"""The contract that every method keeps, checked on toy data by `oodbench methods check FILE` and by our own tests."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import UserError
from oodbench.method import (
    Method,
    MethodResources,
    Needs,
    Task,
    TrainedMethod,
    Weights,
    check_predictions,
    check_scores,
    registry,
)
from oodbench.method.registry import MethodInfo
from oodbench.method.toy import CLASSES, ToyWorld
from oodbench.method.views import content_of, keyed_views
from oodbench.metrics import detection as metrics
from oodbench.pipeline.batches import CPU_TOLERANCE, FittedMethod, difference, differing, method_contents
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.score import CHUNK

TOY_STEPS, TOY_RATE = 100, 3e-2
SEEN = 3 * CHUNK  # images that a method scores before it scores the first ones again
FEW = 12  # images that are scored one by one
TOLERANCE = 1e-3  # of the standard deviation of scores: the difference that another batch size may make
LEAST_AUROC = 0.7  # on the toy dataset, where a working method reaches 0.9 and more


@dataclass
class Trial:
    """One method, fitted on the toy dataset."""

    info: MethodInfo
    method: Method[Any]
    world: ToyWorld
    task: Task
    state: Any

    def scores(self, images: Tensor) -> Tensor:
        """Return the scores of images as one batch."""
        with torch.no_grad():
            return self.method.score(self.world.batch(images, self.method.needs), self.task, self.state)

    def scores_one_by_one(self, images: Tensor) -> Tensor:
        """Return the scores of images, each in a batch of its own, in float64."""
        return torch.cat([self.scores(image[None]) for image in images]).double()


def trial(info: MethodInfo) -> Trial:
    """Construct a method without arguments and fit it; raise UserError if either fails."""
    try:
        method = registry.load(info)()
    except TypeError as error:
        raise UserError(f"it cannot be constructed without arguments: {error}") from error
    world = ToyWorld(views=len(keyed_views(method, info.source, 0)))
    torch.manual_seed(0)
    resources = MethodResources(functools.cache(lambda: _trained(method, world)), lambda depends_on, compute: compute())
    task = world.task().for_method(method.needs, resources)
    with torch.no_grad():
        state = method.fit(task)
    if not task.intact():
        raise UserError("fit() changes in place what it was given; clone it first")
    return Trial(info, method, world, task, state)


def _trained(method: Method[Any], world: ToyWorld) -> Weights:
    """Train a method for some steps on the toy dataset's pairs and return its weights."""
    if not isinstance(method, TrainedMethod):
        raise UserError("it reads weights but is no TrainedMethod, so nothing can train it")
    module, first = method.module(world.encoder).train(), math.nan
    optimiser = torch.optim.AdamW(module.parameters(), lr=TOY_RATE)
    for step in range(TOY_STEPS):
        with torch.no_grad():
            inputs = method.inputs(world.pairs(step), world.encoder)
        with torch.enable_grad():
            loss = torch.stack(list(method.loss(method.embed(module, inputs)).values())).sum()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        first = loss.item() if step == 0 else first
    if not loss.item() < first:
        raise UserError(f"training does not lower its loss: {first:.4g}, then {loss.item():.4g}")
    return Weights({name: tensor.detach().clone() for name, tensor in module.state_dict().items()}, {})


def cites_its_paper(t: Trial) -> str:
    """The first docstring line reads `Title: what it is (Authors, Venue Year, arXiv:...)`."""
    if not re.search(r"\d{4}", t.info.citation) or not re.search(
        r"arXiv:\d{4}\.\d{4,5}|doi:|https?://", t.info.citation
    ):
        return f"the first line must end with (Authors, Venue Year, arXiv:id or doi or URL); found '{t.info.citation}'"
    return "" if t.info.summary else "the class has no docstring"


def is_frozen(t: Trial) -> str:
    """It is a frozen dataclass: hyper-parameters cannot change between fit and score."""
    own = vars(type(t.method)).get("__dataclass_params__")  # not inherited
    return "" if own is not None and own.frozen else "write @dataclass(frozen=True)"


def gives_one_finite_score_per_image(t: Trial) -> str:
    """score() returns [b], finite."""
    scores = check_scores(t.scores(t.world.id), len(t.world.id))
    return "" if np.isfinite(scores).all() else "a score is NaN or infinite"


def is_deterministic(t: Trial) -> str:
    """The same images score the same twice, also when it is imported and fitted again and scores other images first.

    The first images of all that the new import scores, one by one, score as they do in the old one, which has scored
    hundreds: a method that counts images is found however low its limit is.
    """
    first = t.scores(t.world.id)
    if not _same(first, t.scores(t.world.id)):
        return "the same images score differently the second time"
    with registry.imported_anew(t.info):
        again = trial(t.info)
        few = again.scores_one_by_one(t.world.id[:FEW].flip(0)).flip(0)
        again.scores(t.world.ood)
        if not _same(first, again.scores(t.world.id)):
            return "scores differ between runs"
    gap = (few - first[:FEW].double()).abs().max().item()
    return "" if gap < _allowed(first[:FEW]) else f"the first images score differently ({gap:.2g}) after others"


def keeps_nothing_of_what_it_sees(t: Trial) -> str:
    """After thousands of images, what fit() returned and the scores of the first images are the same as before."""
    fitted = FittedMethod(cast(Job, None), t.method, state=t.state)
    before, first = method_contents(fitted), t.scores(t.world.id)
    both = torch.cat([t.world.ood, t.world.id])
    for _ in range(SEEN // CHUNK):
        t.scores(both[torch.arange(CHUNK) % len(both)])
    if not _same(first, t.scores(t.world.id)):
        return f"other scores for the same images after {SEEN:,} others: what is learnt belongs to fit()"
    place = difference(before, method_contents(fitted))
    return "" if place is None else f"score() changes {place}; what is learnt belongs to fit()"


def does_not_depend_on_the_batch(t: Trial) -> str:
    """An image scores the same alone, with others, and in another order."""
    together = t.scores(t.world.id[:FEW]).double()
    alone = t.scores_one_by_one(t.world.id[:FEW])
    reversed_order = t.scores(t.world.id[:FEW].flip(0)).double().flip(0)
    gap = max((together - alone).abs().max().item(), (together - reversed_order).abs().max().item())
    return (
        "" if gap < _allowed(together) else f"an image's score changes by {gap:.2g} with the other images of its batch"
    )


def _allowed(scores: Tensor) -> float:
    """Return the difference that another batch size may make."""
    return TOLERANCE * max(scores.double().std().item(), 1e-6)


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether scores are equal but for the rounding of a product that is divided among other threads."""
    return not differing(first.double().numpy(), second.double().numpy(), CPU_TOLERANCE).any()


def leaves_its_input_alone(t: Trial) -> str:
    """score() and predict() do not write into their input, by torch or otherwise."""
    batch = t.world.batch(t.world.id.clone(), ~Needs(0))
    views = [batch.views] if t.world.views else []
    before = [x.clone() for x in (batch.features, batch.embeddings, batch.activations, batch.pixels, *views)]
    with torch.no_grad():
        t.method.score(batch.for_method(t.method.needs), t.task, t.state)
        t.method.predict(batch.for_method(t.method.needs | Needs.FEATURES), t.task, t.state)
    if not t.task.intact():
        return "score() changed in place what task.text() or task.logits() gave it"
    after = (batch.features, batch.embeddings, batch.activations, batch.pixels, *views)
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return "" if same else "score() changed its input in place"


def predicts_classes(t: Trial) -> str:
    """predict() returns None, or one class index per image."""
    batch = t.world.batch(t.world.id, t.method.needs | Needs.FEATURES)
    with torch.no_grad():
        predictions = t.method.predict(batch, t.task, t.state)
    if predictions is not None:
        check_predictions(predictions, batch.size, len(CLASSES))
    return ""


def repeats_its_views(t: Trial) -> str:
    """A view gives the same pixels whenever it is given the same image."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    for view in keyed_views(t.method, t.info.source, 0):
        first, second = (view.apply(image, content_of(image)).convert("RGB").tobytes() for _ in range(2))
        if first != second:
            return f"the view {view.view} gives other pixels for the same image; draw from its parameter `rng` alone"
    return ""


def tells_id_from_ood(t: Trial) -> str:
    """Higher means more in-distribution: ID images of the toy dataset score above OOD images."""
    id, ood = (metrics.score_set(t.scores(x).double().numpy(), "toy world") for x in (t.world.id, t.world.ood))
    auroc = metrics.evaluate(id, ood).auroc
    if auroc >= LEAST_AUROC:
        return ""
    return f"AUROC in the toy world is {auroc:.2f}" + ("; is the sign right? higher = more ID" if auroc < 0.5 else "")


def has_a_state_that_travels(t: Trial) -> str:
    """What fit() returns can be pickled, and scores the same afterwards."""
    try:
        state = pickle.loads(pickle.dumps(t.state))
    except Exception as error:
        return f"the state cannot be pickled: {error}"
    same = _same(dataclasses.replace(t, state=state).scores(t.world.id), t.scores(t.world.id))
    return "" if same else "the state scores differently after pickling"


CHECKS: tuple[Callable[[Trial], str], ...] = (
    cites_its_paper,
    is_frozen,
    gives_one_finite_score_per_image,
    is_deterministic,
    keeps_nothing_of_what_it_sees,
    does_not_depend_on_the_batch,
    leaves_its_input_alone,
    predicts_classes,
    repeats_its_views,
    tells_id_from_ood,
    has_a_state_that_travels,
)


def run_checks(info: MethodInfo) -> list[tuple[str, str]]:
    """Return (check, problem or "") for every check, in order; a method that cannot be fitted fails the first alone."""
    try:
        fitted = trial(info)
    except Exception as error:
        return [("can be made and fitted", _message(error))]
    found = [("can be made and fitted", "")]
    for check in CHECKS:
        try:
            problem = check(fitted)
        except Exception as error:
            problem = _message(error)
        found.append((check.__name__.replace("_", " "), problem))
    return found


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
