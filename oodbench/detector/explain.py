"""Explanation of an image's scores: every method's score, its rank among stored ID scores, and the method's details."""

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
from oodbench.pipeline import evaluate, extract
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Watch
from oodbench.pipeline.extract import EmbeddedSet
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest, command
from oodbench.pipeline.run import load_methods
from oodbench.pipeline.score import Scorer
from oodbench.pipeline.task import encoder_loader, make_task, method_resources, pick_device
from oodbench.report.verify import read_scores

DEFAULT_PROMPTS = "simple"  # prompts of the nearest class names


@dataclass(frozen=True)
class Verdict:
    """The result of one method for an image.

    percentile  percentage of the stored ID scores that are at most this score; None without stored scores
    accepted    the decision by the paper's rule; None for a method that only ranks
    details     lists of (name, value) from the method's explain()
    error       why score() or explain() failed, or ""
    """

    method: str
    score: float
    prediction: str
    percentile: float | None
    accepted: bool | None
    details: dict[str, list[tuple[str, float]]]
    error: str = ""


@dataclass(frozen=True)
class NearestClass:
    """A class name, its cosine with the image, and its softmax probability at the encoder's scale."""

    name: str
    cosine: float
    softmax: float


@dataclass(frozen=True)
class Explanation:
    """The results of all methods for one image."""

    image: str
    encoder: str
    id: str
    prompts: str
    nearest: tuple[NearestClass, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()


def explain(request: RunRequest, images: Any, top: int = 5, watch: Watch | None = None) -> list[Explanation]:
    """Explain images one by one, with `top` names of each list; raise UserError as a run of the same request does."""
    watch = watch or Watch()
    plan = make_plan(request, needs_ood=False)
    store = DetectorStore(plan.store)
    plan = dataclasses.replace(plan, store=store)
    device = pick_device(request.device)
    encoder = encoder_loader(plan, device)
    scorer = Scorer(plan, make_task(plan, encoder, device, watch), device)
    methods, broken = load_methods(plan, plan.jobs)
    running = [dataclasses.replace(one, resources=method_resources(plan, one.job, device)) for one in methods]
    scorer.fit(running)  # embeddings of calibration images may be stored, those of explained images are not
    known, unreadable = id_scores(plan)
    notes = [plan.encoder_note] if plan.encoder_note else []
    notes += [f"skipped: {name}: {reason}" for name, reason in (*plan.skipped_methods, *broken)]
    notes += unreadable
    if absent := ", ".join(one.job.label for one in running if one.job.label not in known):
        again = command(request, allow_partial=False, skip_missing=False)
        notes.append(f"no stored ID scores below {request.out} for {absent}; to rank the image: {again}")
    store.keep = False
    image_set, explanations = listed(images, store), []
    for number in range(len(image_set)):
        image = image_set.select([number])
        part = EmbeddedSet(image, (extract.extract_shard(plan.extraction_job(image), (0, 1), encoder),), (0,))
        if part.skipped:
            raise UserError(f"image {part.skipped[0]}")
        verdicts = tuple(_verdict(scorer, each, part, known.get(each.job.label), top) for each in running)
        nearest = _nearest(scorer, part, request.templates or DEFAULT_PROMPTS, top)
        head = (image.names[0], plan.card.row()["name"], plan.id.dataset.title, request.templates or DEFAULT_PROMPTS)
        explanations.append(Explanation(*head, nearest, verdicts, tuple(notes)))
    return explanations


def id_scores(plan: Plan) -> tuple[dict[str, npt.NDArray[np.float64]], list[str]]:
    """Return the sorted ID scores of the newest matching results, by method, and the errors of unreadable files."""
    newest: dict[str, tuple[str, Any]] = {}
    jobs = {job.label: job for job in plan.jobs}
    rows = result.rows(plan.request.out) if plan.request.out.is_dir() else ()
    for path, row in rows:
        job = jobs.get(row.label)
        fits = job is not None and row.status == "ok" and row.id.dataset == plan.id.dataset.name
        fits = fits and job is not None and _same(row, job, plan)
        same_images = row.id.list_digest == plan.id.digest
        comparable = row.run.get("lists") == evaluate.lists(plan) and not (row.run.get("limit") or plan.request.limit)
        fits = fits and (same_images or not comparable)
        fits = fits and row.encoder["identity"] == plan.card.identity and row.classes["digest"] == plan.classes.digest
        if fits and path.with_suffix(".parquet").is_file() and newest.get(row.label, ("", None))[0] <= row.created:
            newest[row.label] = (row.created, path.with_suffix(".parquet"))
    name = plan.id.dataset.name
    scores: dict[str, npt.NDArray[np.float64]] = {}
    unreadable = []
    for label, (_, path) in newest.items():
        try:
            images = read_scores(path)
        except UserError as error:
            unreadable.append(str(error))
            continue
        if name in images:
            scores[label] = np.sort(images[name].scores)
    return scores, unreadable


def _same(row: result.Result, job: Job, plan: Plan) -> bool:
    """Return whether a result has the weights, prompts, files, calibration images, seed and precision of a job.

    --limit may differ, unless it changed the calibration images.
    """
    weights = job.weights.digest if job.weights else None
    templates = job.templates.digest if job.templates else None
    calibration = row.run.get("calibration")
    theirs = (calibration["dataset"], calibration["n"], calibration.get("list")) if calibration else None
    images = plan.calibration_of(job)
    ours = (images.dataset.name, len(images), images.list_digest if job.reads_labels else None) if images else None
    stored = (row.weights.get("digest"), row.templates.get("digest"), row.files, row.source, theirs)
    requested = (weights, templates, job.files, job.info.source, ours)
    run = (row.run.get("seed"), row.run.get("precision"))
    return stored == requested and run == (plan.request.seed, plan.request.precision)


def _verdict(
    scorer: Scorer, one: FittedMethod, part: EmbeddedSet, known: npt.NDArray[np.float64] | None, top: int
) -> Verdict:
    if one.error:
        return Verdict(one.job.label, math.nan, "", None, None, {}, one.error)
    try:
        values = scorer.values(one, part)
    except UserError as error:
        return Verdict(one.job.label, math.nan, "", None, None, {}, str(error))
    details, accepted, why = _explain(scorer, one, scorer.first_batch(one, part))
    score = float(values.scores[0])
    rank = None if known is None else 100 * float(np.searchsorted(known, score, "right")) / len(known)
    names = scorer.plan.classes.lines
    prediction = "" if values.predictions is None else names[int(values.predictions[0])]
    short = {what: pairs[:top] for what, pairs in details.items()}
    return Verdict(one.job.label, score, prediction, rank, accepted, short, why)


def _explain(
    scorer: Scorer, one: FittedMethod, batch: Any
) -> tuple[dict[str, list[tuple[str, float]]], bool | None, str]:
    """Return the method's explanation and decision, or why they failed, which does not affect the score."""
    import torch

    needs, task = one.method.needs, scorer.task.for_method(one.method.needs, one.resources)
    try:
        with torch.no_grad():
            explained = one.method.explain(batch.for_method(needs), task, one.state)
            accepted = one.method.decide(batch.for_method(needs), task, one.state)
        details = {str(what): [(str(name), float(value)) for name, value in pairs] for what, pairs in explained.items()}
        return details, None if accepted is None else bool(accepted[0]), ""
    except Exception as error:  # of a user's method
        return {}, None, f"explain() or decide() raised {type(error).__name__}: {error}"


def _nearest(scorer: Scorer, part: EmbeddedSet, templates: str, top: int) -> tuple[NearestClass, ...]:
    batch = next(scorer.batches(part, False))
    cosines = scorer.task.logits(batch.features, templates, 1.0)[0].double()
    softmax = (scorer.task.scale * cosines).softmax(-1)
    names = scorer.plan.classes.lines
    best = cosines.argsort(descending=True, stable=True)[:top].tolist()
    return tuple(NearestClass(names[k], float(cosines[k]), float(softmax[k])) for k in best)


def plain(one: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON, infinite numbers and NaN as text."""
    converted: dict[str, Any] = _finite(dataclasses.asdict(one))
    return converted


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def text(one: Explanation) -> str:
    """Return an explanation as text for a terminal, control characters in names escaped."""
    head = f"  encoder {printable(one.encoder)}, ID {printable(one.id)}"
    lines = [printable(one.image), head, "", f"  nearest class names (prompts: {printable(one.prompts)})"]
    lines += [f"    {n.cosine:8.4f} {100 * n.softmax:6.2f} %  {printable(n.name)}" for n in one.nearest]
    width = max(len(printable(v.method)) for v in one.verdicts)
    lines += ["", f"  {'method':{width}}  {'score':>11}  {'of ID':>7}  {'decides':7}  class"]
    for v in one.verdicts:
        rank = "" if v.percentile is None else f"{v.percentile:.1f} %"
        decides = "" if v.accepted is None else "id" if v.accepted else "ood"
        result = f"{v.score:11.5g}  {rank:>7}  {decides:7}  {v.prediction}"
        if v.error:
            result = f"failed: {v.error}" if math.isnan(v.score) else f"{result}  ({v.error})"
        lines.append(f"  {printable(v.method):{width}}  {printable(result)}".rstrip())
    lines.append("  of ID: stored ID images that score at most as high")
    for v in one.verdicts:
        for what, pairs in v.details.items():
            lines += ["", f"  {printable(v.method)}: {printable(what)}"]
            lines += [f"    {value:9.4f}  {printable(name)}" for name, value in pairs]
    lines += ["", *(f"  note: {printable(note)}" for note in one.notes)] if one.notes else []
    return "\n".join(lines)
