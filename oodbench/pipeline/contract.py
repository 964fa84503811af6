"""The contract of methods, checked on toy data by `oodbench methods check` and by our tests."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import UserError
from oodbench.method import check_predictions, check_scores, registry
from oodbench.method.registry import MethodInfo
from oodbench.method.toy import CLASSES
from oodbench.method.views import content_of, keyed_views
from oodbench.pipeline import stream_contract
from oodbench.pipeline.batches import STREAM_ADVICE, FittedMethod, difference, method_contents
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.score import CHUNK
from oodbench.pipeline.trial import Trial, auroc_problem, trial

SEEN = 3 * CHUNK  # images that a method scores before it scores the first images again
FEW = 12  # images that are scored one by one
TOLERANCE = 1e-3  # of the standard deviation of scores: the difference allowed for another batch size


def is_frozen(t: Trial) -> str:
    """It is a frozen dataclass: hyper-parameters cannot change while it runs."""
    own = vars(type(t.method)).get("__dataclass_params__")  # not inherited
    return "" if own is not None and own.frozen else "write @dataclass(frozen=True)"


def gives_one_finite_score_per_image(t: Trial) -> str:
    """score() returns [b] finite scores."""
    scores = check_scores(t.scores(t.world.id), len(t.world.id))
    return "" if np.isfinite(scores).all() else "a score is NaN or infinite"


def is_deterministic(t: Trial) -> str:
    """The same images score the same twice, also when it is imported and fitted again and scores other images first.

    The new import scores the first images one by one, and they must score as in the old one, which has scored hundreds:
    this detects a method that counts images, however low its limit is.
    """
    first = t.scores(t.world.id)
    if not t.same(first, t.scores(t.world.id)):
        return f"the same images score differently the second time; {STREAM_ADVICE}"
    with registry.fresh_import(t.info):
        again = t.again()
        few = again.scores_one_by_one(t.world.id[:FEW].flip(0)).flip(0)
        again.scores(t.world.ood)
        if not t.same(first, again.scores(t.world.id)):
            return "scores differ between runs"
    gap = (few - first[:FEW].double()).abs().max().item()
    if gap < _allowed(first[:FEW]):
        return ""
    return f"the first images score differently ({gap:.2g}) after others; {STREAM_ADVICE}"


def keeps_no_state_between_images(t: Trial) -> str:
    """After thousands of images, the state and the scores of the first images are the same as before."""
    fitted = FittedMethod(cast(Job, None), t.method, state=t.state)
    before, first = method_contents(fitted), t.scores(t.world.id)
    both = torch.cat([t.world.ood, t.world.id])
    for _ in range(SEEN // CHUNK):
        t.scores(both[torch.arange(CHUNK) % len(both)])
    if (place := difference(before, method_contents(fitted))) is not None:
        return f"score() changes {place}; learning belongs to fit(); {STREAM_ADVICE}"
    if t.same(first, t.scores(t.world.id)):
        return ""
    return f"the same images score differently after {SEEN:,} others: learning belongs to fit(); {STREAM_ADVICE}"


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
    if gap < _allowed(together):
        return ""
    return f"an image's score changes by {gap:.2g} with the other images of its batch; {STREAM_ADVICE}"


def _allowed(scores: Tensor) -> float:
    """Return the difference allowed for another batch size."""
    return TOLERANCE * max(scores.double().std().item(), 1e-6)


def leaves_its_input_alone(t: Trial) -> str:
    """score() and predict() do not write into their input, by torch or otherwise."""
    batch = t.batch(t.world.id.clone())
    with torch.no_grad():
        t.method.score(batch, t.task, t.state)
    t.predictions(batch)
    if not t.task.intact():
        return "score() changed in place a tensor of task.text() or task.logits()"
    return "" if batch.intact() else "score() changed its input in place"


def predicts_classes(t: Trial) -> str:
    """predict() returns None, or one class index per image."""
    batch = t.batch(t.world.id)
    predictions = t.predictions(batch)
    if predictions is not None:
        check_predictions(predictions, batch.size, len(CLASSES))
    return ""


def has_deterministic_views(t: Trial) -> str:
    """A view gives the same pixels whenever it is given the same image."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    for view in keyed_views(t.method, t.info.source, 0):
        first, second = (view.apply(image, content_of(image)).convert("RGB").tobytes() for _ in range(2))
        if first != second:
            return f"the view {view.view} gives other pixels for the same image; draw from its parameter `rng` alone"
    return ""


def ranks_id_above_ood(t: Trial) -> str:
    """Higher means more in-distribution: ID images of the toy dataset score above OOD images."""
    return auroc_problem(t.scores(t.world.id), t.scores(t.world.ood))


def has_a_picklable_state(t: Trial) -> str:
    """The state can be pickled, and scores the same afterwards."""
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
    keeps_no_state_between_images,
    does_not_depend_on_the_batch,
    leaves_its_input_alone,
    predicts_classes,
    has_deterministic_views,
    ranks_id_above_ood,
    has_a_picklable_state,
)
STREAM_CHECKS = (is_frozen, *stream_contract.CHECKS)
QUICK = (gives_one_finite_score_per_image, leaves_its_input_alone, predicts_classes)  # that `run --plugin` runs first


def checks_of(info: MethodInfo, *, quick: bool = False) -> Sequence[Callable[[Trial], str]]:
    """Return the checks of a method: a StreamMethod has its own."""
    if "STREAM" in info.needs:
        return stream_contract.QUICK if quick else STREAM_CHECKS
    return QUICK if quick else CHECKS


def run_checks(
    info: MethodInfo,
    parameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
    checks: Sequence[Callable[[Trial], str]] | None = None,
) -> list[tuple[str, str]]:
    """Return (check, problem or "") for every check, in order; a method that cannot be fitted only fails the first.

    `parameters` are hyper-parameters that differ from the defaults; `checks` are all of checks_of() by default.
    """
    made = "can be built and begun" if "STREAM" in info.needs else "can be built and fitted"
    try:
        fitted = trial(info, parameters, device)
    except Exception as error:
        return [(made, _message(error))]
    found = [(made, "")]
    for check in checks_of(info) if checks is None else checks:
        try:
            problem = check(fitted)
        except Exception as error:
            problem = _message(error)
        found.append((check.__name__.replace("_", " "), problem))
    return found


def quick_problems(jobs: Sequence[Job], device: str) -> list[str]:
    """Return the problems of methods before images are encoded for them; trained methods are left out.

    They are warnings: a hyper-parameter may not fit the toy dataset, such as more neighbours than it has images.
    """
    found = []
    for job in jobs:
        if "WEIGHTS" in job.info.needs:
            continue
        checks = run_checks(job.info, job.parameters, device, checks_of(job.info, quick=True))
        for check, problem in [(check, problem) for check, problem in checks if problem][:1]:
            found.append(f"{job.label} on the toy dataset: {check}: {problem}; oodbench methods check shows all")
    return found


def citation_problem(info: MethodInfo) -> str:
    """Return what is missing in the file's first line, `Title: description (Authors, Venue Year, URL)`, or "".

    This does not break the contract, because a new method has no paper yet.
    """
    if not re.search(r"\d{4}", info.citation) or not re.search(r"arXiv:\d{4}\.\d{4,5}|doi:|https?://", info.citation):
        return (
            f"its first line does not end with (Authors, Venue Year, arXiv:id or doi or URL); found '{info.citation}'"
        )
    return "" if info.summary else "the class has no docstring"


def other_process_problem(info: MethodInfo, parameters: Mapping[str, Any] | None = None, device: str = "cpu") -> str:
    """Return how the scores of a second process differ, or ""; its PYTHONHASHSEED gives sets another order."""
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
                return f"it fails in another process: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}"
            again = torch.from_numpy(np.load(found))
    except Exception as error:
        return _message(error)
    if here.same(first, again):
        return ""
    return "another process, with another PYTHONHASHSEED, gives other scores: sort the elements of sets"


def write_scores(given: str, found: str) -> None:
    """Write the scores of a method on the toy dataset to a file, for other_process_problem()."""
    fitted = trial(*pickle.loads(Path(given).read_bytes()))
    np.save(found, fitted.scores(fitted.world.id).double().numpy())


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
