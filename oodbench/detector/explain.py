"""Why an image scores as it does: every method's score, its rank among stored ID scores, and what the method saw."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench import results as result
from oodbench.detector.images import listed
from oodbench.detector.store import DetectorStore
from oodbench.errors import UserError, printable
from oodbench.pipeline import extract
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Watch
from oodbench.pipeline.extract import Embedded
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.run import load_methods
from oodbench.pipeline.score import Scorer
from oodbench.pipeline.task import encoder_loader, make_task, method_resources, pick_device

USUAL = "simple"  # the prompts of the nearest class names, unless others are given


@dataclass(frozen=True)
class Verdict:
    """What one method says of an image.

    percentile  share of the stored ID scores that are at most this one, in percent; None without stored scores
    accepted    the paper's own decision; None for a method that only ranks
    details     lists of (name, value) that the method gives
    """

    method: str
    score: float
    prediction: str
    percentile: float | None
    accepted: bool | None
    details: dict[str, list[tuple[str, float]]]
    error: str = ""


@dataclass(frozen=True)
class Nearest:
    """A class name, its cosine with the image and its softmax at the encoder's scale."""

    name: str
    cosine: float
    softmax: float


@dataclass(frozen=True)
class Explanation:
    """All that is said of one image."""

    image: str
    encoder: str
    id: str
    prompts: str
    nearest: tuple[Nearest, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()


def explain(request: RunRequest, images: Any, top: int = 5) -> list[Explanation]:
    """Explain images one by one; `top` names of each list. UserError as a run of the same request raises it."""
    plan = make_plan(request)
    store = DetectorStore(plan.store)
    plan = dataclasses.replace(plan, store=store)
    device = pick_device(request.device)
    encoder = encoder_loader(plan, device)
    scorer = Scorer(plan, make_task(plan, encoder, device, Watch()), device)
    methods, broken = load_methods(plan, plan.jobs)
    running = [dataclasses.replace(one, resources=method_resources(plan, one.job, device)) for one in methods]
    scorer.fit(running)  # calibration images may be stored, those to explain are not
    known = id_scores(plan)
    notes = [f"left out: {name}: {reason}" for name, reason in (*plan.skipped_methods, *broken)]
    if absent := ", ".join(one.job.label for one in running if one.job.label not in known):
        notes.append(f"no stored ID scores below {request.out} for {absent}; to rank the image: oodbench run")
    store.keep = False
    whole, found = listed(images, store), []
    for number in range(len(whole)):
        one = whole.select([number])
        part = Embedded(one, (extract.shard(plan.work(one), (0, 1), encoder),), (0,))
        if part.skipped:
            raise UserError(f"image {part.skipped[0]}")
        verdicts = tuple(_verdict(scorer, each, part, known.get(each.job.label), top) for each in running)
        nearest = _nearest(scorer, part, request.templates or USUAL, top)
        head = (one.names[0], plan.card.row()["name"], plan.id.dataset.title, request.templates or USUAL)
        found.append(Explanation(*head, nearest, verdicts, tuple(notes)))
    return found


def id_scores(plan: Plan) -> dict[str, npt.NDArray[np.float64]]:
    """Sorted stored scores of the ID set, by label of the method: of the newest fitting row below the results."""
    from pyarrow import parquet

    newest: dict[str, tuple[str, Any]] = {}
    jobs = {job.label: job for job in plan.jobs}
    rows = result.rows(plan.request.out) if plan.request.out.is_dir() else ()
    for path, row in rows:
        job = jobs.get(row.label)
        fits = job is not None and row.status == "ok" and row.id.dataset == plan.id.dataset.name
        fits = fits and job is not None and _same(row, job, plan)
        fits = fits and row.encoder["identity"] == plan.card.identity and row.classes["digest"] == plan.classes.digest
        if fits and path.with_suffix(".parquet").is_file() and newest.get(row.label, ("", None))[0] <= row.created:
            newest[row.label] = (row.created, path.with_suffix(".parquet"))
    name = plan.id.dataset.name
    tables = {
        label: parquet.read_table(path, columns=["dataset", "score"], filters=[("dataset", "==", name)])
        for label, (_, path) in newest.items()
    }
    return {label: np.sort(table["score"].to_numpy()) for label, table in tables.items() if len(table)}


def _same(row: result.Result, job: Job, plan: Plan) -> bool:
    """Whether a row was made with the weights, prompts, files, calibration images, seed and precision of a job.

    --limit may differ, unless it changed what the method learnt from.
    """
    weights = job.weights.digest if job.weights else None
    templates = job.templates.digest if job.templates else None
    stated = row.run.get("calibration")
    known = (stated["dataset"], stated["n"]) if stated else None
    images = plan.calibration if job.calibrates else None
    learnt = (images.dataset.name, len(images)) if images else None
    made = (row.weights.get("digest"), row.templates.get("digest"), row.files, row.source, known)
    wanted = (weights, templates, job.files, job.info.source, learnt)
    run = (row.run["seed"], row.run["precision"])
    return made == wanted and run == (plan.request.seed, plan.request.precision)


def _verdict(
    scorer: Scorer, one: FittedMethod, part: Embedded, known: npt.NDArray[np.float64] | None, top: int
) -> Verdict:
    from oodbench.method import Needs

    if one.error:
        return Verdict(one.job.label, math.nan, "", None, None, {}, one.error)
    try:
        values = scorer.values(one, part)
    except UserError as error:
        return Verdict(one.job.label, math.nan, "", None, None, {}, str(error))
    details, accepted, why = _said(scorer, one, next(scorer.batches(part, Needs.PIXELS in one.method.needs)))
    score = float(values.scores[0])
    rank = None if known is None else 100 * float(np.searchsorted(known, score, "right")) / len(known)
    names = scorer.plan.classes.lines
    prediction = "" if values.predictions is None else names[int(values.predictions[0])]
    short = {what: pairs[:top] for what, pairs in details.items()}
    return Verdict(one.job.label, score, prediction, rank, accepted, short, why)


def _said(scorer: Scorer, one: FittedMethod, batch: Any) -> tuple[dict[str, list[tuple[str, float]]], bool | None, str]:
    """The method's own explanation and decision; nothing and why when it fails, which leaves the score as it is."""
    import torch

    needs, task = one.method.needs, scorer.task.for_method(one.method.needs, one.resources)
    try:
        with torch.no_grad():
            details = one.method.explain(batch.for_method(needs), task, one.state)
            accepted = one.method.decide(batch.for_method(needs), task, one.state)
        told = {str(what): [(str(name), float(value)) for name, value in pairs] for what, pairs in details.items()}
        return told, None if accepted is None else bool(accepted[0]), ""
    except Exception as error:  # of a method of the user's own
        return {}, None, f"explain() or decide() raised {type(error).__name__}: {error}"


def _nearest(scorer: Scorer, part: Embedded, templates: str, top: int) -> tuple[Nearest, ...]:
    batch = next(scorer.batches(part, False))
    cosines = scorer.task.logits(batch.features, templates, 1.0)[0].double()
    softmax = (scorer.task.scale * cosines).softmax(-1)
    names = scorer.plan.classes.lines
    best = cosines.argsort(descending=True, stable=True)[:top].tolist()
    return tuple(Nearest(names[k], float(cosines[k]), float(softmax[k])) for k in best)


def plain(one: Explanation) -> dict[str, Any]:
    """As JSON; a number that is not finite is text."""
    found: dict[str, Any] = _finite(dataclasses.asdict(one))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def text(one: Explanation) -> str:
    """For a terminal, names made printable."""
    head = f"  encoder {printable(one.encoder)}, ID {printable(one.id)}"
    lines = [printable(one.image), head, "", f"  nearest class names (prompts: {printable(one.prompts)})"]
    lines += [f"    {n.cosine:8.4f} {100 * n.softmax:6.2f} %  {printable(n.name)}" for n in one.nearest]
    width = max(len(printable(v.method)) for v in one.verdicts)
    lines += ["", f"  {'method':{width}}  {'score':>11}  {'of ID':>7}  {'decides':7}  class"]
    for v in one.verdicts:
        rank = "" if v.percentile is None else f"{v.percentile:.1f} %"
        decides = "" if v.accepted is None else "id" if v.accepted else "ood"
        said = f"{v.score:11.5g}  {rank:>7}  {decides:7}  {v.prediction}"
        if v.error:
            said = f"failed: {v.error}" if math.isnan(v.score) else f"{said}  ({v.error})"
        lines.append(f"  {printable(v.method):{width}}  {printable(said)}".rstrip())
    lines.append("  of ID: stored ID images that score at most as high")
    for v in one.verdicts:
        for what, pairs in v.details.items():
            lines += ["", f"  {printable(v.method)}: {printable(what)}"]
            lines += [f"    {value:9.4f}  {printable(name)}" for name, value in pairs]
    lines += ["", *(f"  note: {printable(note)}" for note in one.notes)] if one.notes else []
    return "\n".join(lines)
