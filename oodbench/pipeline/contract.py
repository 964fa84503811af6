"""The contract that every method keeps, checked on toy data by `oodbench methods check` and by our own tests."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import UserError
from oodbench.method import (
    FewShotMethod,
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
from oodbench.method.method import make_module
from oodbench.method.registry import MethodInfo
from oodbench.method.toy import CLASSES, ToyWorld
from oodbench.method.views import content_of, keyed_views
from oodbench.metrics import detection as metrics
from oodbench.pipeline.batches import FittedMethod, difference, differing, method_contents, rounding_tolerance
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
    parameters: Mapping[str, Any]
    method: Method[Any]
    world: ToyWorld
    task: Task
    state: Any

    def scores(self, images: Tensor) -> Tensor:
        """Return the scores of images as one batch, on the CPU."""
        with torch.no_grad():
            scores = self.method.score(self.world.batch(images, self.method.needs), self.task, self.state)
        return scores.cpu() if isinstance(scores, Tensor) else scores

    def scores_one_by_one(self, images: Tensor) -> Tensor:
        """Return the scores of images, each in a batch of its own, in float64."""
        return torch.cat([self.scores(image[None]) for image in images]).double()

    def again(self) -> Trial:
        """Return the same method, made and fitted anew."""
        return trial(self.info, self.parameters, self.world.encoder.device)

    def same(self, first: Tensor, second: Tensor) -> bool:
        """Return whether scores are equal but for the rounding of a product that is divided among other threads."""
        tolerance = rounding_tolerance(self.world.encoder.device)
        return not differing(first.double().numpy(), second.double().numpy(), tolerance).any()


def trial(info: MethodInfo, parameters: Mapping[str, Any] | None = None, device: str = "cpu") -> Trial:
    """Construct a method with some hyper-parameters and fit it; raise UserError if either fails."""
    parameters = dict(parameters or {})
    method = registry.make(info, parameters)
    world = ToyWorld(device=device, views=len(keyed_views(method, info.source, 0)))
    torch.manual_seed(0)
    resources = MethodResources(functools.cache(lambda: _trained(method, world)), lambda depends_on, compute: compute())
    task = world.task().for_method(method.needs, resources)
    with torch.no_grad():
        state = method.fit(task)
    if not task.intact():
        raise UserError("fit() changes in place what it was given; clone it first")
    return Trial(info, parameters, method, world, task, state)


def _trained(method: Method[Any], world: ToyWorld) -> Weights:
    """Train a method for some steps on the toy dataset's pairs or labelled images and return its weights."""
    if not isinstance(method, TrainedMethod):
        raise UserError("it reads weights but is no TrainedMethod, so nothing can train it")
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
    if not t.same(first, t.scores(t.world.id)):
        return "the same images score differently the second time"
    with registry.imported_anew(t.info):
        again = t.again()
        few = again.scores_one_by_one(t.world.id[:FEW].flip(0)).flip(0)
        again.scores(t.world.ood)
        if not t.same(first, again.scores(t.world.id)):
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
    if not t.same(first, t.scores(t.world.id)):
        return f"other scores for the same images after {SEEN:,} others: what is learnt belongs to fit()"
    place = difference(before, method_contents(fitted))
    return "" if place is None else f"score() changes {place}; what is learnt belongs to fit()"


def does_not_depend_on_the_batch(t: Trial) -> str:
    """An image scores the same alone, with a few others, in another order, and with a thousand others."""
    few = t.world.id[:FEW]
    together = t.scores(few).double()
    others = (
        t.scores_one_by_one(few),
        t.scores(few.flip(0)).double().flip(0),
        t.scores(torch.cat([few, t.world.train])[:CHUNK]).double()[:FEW],
    )
    gap = max((together - other).abs().max().item() for other in others)
    return (
        "" if gap < _allowed(together) else f"an image's score changes by {gap:.2g} with the other images of its batch"
    )


def _allowed(scores: Tensor) -> float:
    """Return the difference that another batch size may make."""
    return TOLERANCE * max(scores.double().std().item(), 1e-6)


def leaves_its_input_alone(t: Trial) -> str:
    """score() and predict() do not write into their input, by torch or otherwise."""
    batch = t.world.batch(t.world.id.clone(), ~Needs(0))
    with torch.no_grad():
        t.method.score(batch.for_method(t.method.needs), t.task, t.state)
        t.method.predict(batch.for_method(t.method.needs | Needs.FEATURES), t.task, t.state)
    if not t.task.intact():
        return "score() changed in place what task.text() or task.logits() gave it"
    return "" if batch.intact() else "score() changed its input in place"


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
    same = t.same(dataclasses.replace(t, state=state).scores(t.world.id), t.scores(t.world.id))
    return "" if same else "the state scores differently after pickling"


CHECKS: tuple[Callable[[Trial], str], ...] = (
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


QUICK = (gives_one_finite_score_per_image, leaves_its_input_alone, predicts_classes)  # `run --plugin` makes them first


def run_checks(
    info: MethodInfo,
    parameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
    checks: Sequence[Callable[[Trial], str]] = CHECKS,
) -> list[tuple[str, str]]:
    """Return (check, problem or "") for every check, in order; a method that cannot be fitted fails the first alone.

    `parameters` are hyper-parameters that differ from the defaults.
    """
    try:
        fitted = trial(info, parameters, device)
    except Exception as error:
        return [("can be made and fitted", _message(error))]
    found = [("can be made and fitted", "")]
    for check in checks:
        try:
            problem = check(fitted)
        except Exception as error:
            problem = _message(error)
        found.append((check.__name__.replace("_", " "), problem))
    return found


def quick_problems(jobs: Sequence[Job], device: str) -> list[str]:
    """Return what is wrong with methods before images are encoded for them; trained methods are left out.

    It stops no run: a hyper-parameter may not fit the toy dataset, such as more neighbours than it has images.
    """
    found = []
    for job in jobs:
        checks = run_checks(job.info, job.parameters, device, QUICK) if "WEIGHTS" not in job.info.needs else []
        for check, problem in [(check, problem) for check, problem in checks if problem][:1]:
            found.append(f"{job.label} in a toy world: {check}: {problem}; oodbench methods check shows all")
    return found


def citation_problem(info: MethodInfo) -> str:
    """Return what a table would lack, or "": the file's first line is `Title: what it is (Authors, Venue Year, URL)`.

    It breaks no contract: a new method has no paper yet.
    """
    if not re.search(r"\d{4}", info.citation) or not re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|https?://", info.citation):
        return (
            f"its first line does not end with (Authors, Venue Year, arXiv:id or doi or URL); found '{info.citation}'"
        )
    return "" if info.summary else "the class has no docstring"


def other_process_problem(info: MethodInfo, parameters: Mapping[str, Any] | None = None, device: str = "cpu") -> str:
    """Return how a second process scores otherwise, or "": with another PYTHONHASHSEED, its sets have another order."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        here = trial(info, parameters, device)
        first = here.scores(here.world.id)
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "given"), Path(folder, "found.npy")
            given.write_bytes(pickle.dumps((info, parameters, device)))
            code = f"from oodbench.pipeline import contract; contract.write_scores({str(given)!r}, {str(found)!r})"
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if not found.is_file():
                return f"it fails in another process: {(done.stderr.strip().splitlines() or ['it was ended'])[-1]}"
            again = torch.from_numpy(np.load(found))
    except Exception as error:
        return _message(error)
    if here.same(first, again):
        return ""
    return "another process, with another PYTHONHASHSEED, gives other scores: sort what comes out of a set"


def write_scores(given: str, found: str) -> None:
    """Write the scores of a method on the toy dataset as other_process_problem() asks for them."""
    fitted = trial(*pickle.loads(Path(given).read_bytes()))
    np.save(found, fitted.scores(fitted.world.id).double().numpy())


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
