"""Evaluate stored scores: metrics, confidence intervals and warnings of a method become one Result."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.errors import redact
from oodbench.method.access import Access, both
from oodbench.metrics import detection as metrics
from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.delong import Scores
from oodbench.metrics.intervals import ENGINE, Intervals, intervals, methods
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import OodSet, Plan
from oodbench.results import DIGITS, IdRow, Interval, Result, SetRow, commit, distinct, versions
from oodbench.storage.store import Entry


def metric_settings(plan: Plan) -> Settings:
    """Return the settings of the metrics that the request asks for."""
    return Settings(plan.request.at95, plan.request.aupr, plan.request.bootstrap)


def add_intervals(plan: Plan, result: Result, job: Job, entries: Mapping[str, Entry]) -> Result:
    """Return the result with intervals for every OOD set and mean; they are computed once for the same scores."""
    settings = metric_settings(plan)
    found = _intervals(plan, settings, job, entries)
    sets = tuple(dataclasses.replace(ood, intervals=found.sets[ood.dataset]) for ood in result.ood)
    return dataclasses.replace(result, ood=sets, mean_intervals=found.means, uncertainty=uncertainty(settings))


def uncertainty(settings: Settings) -> dict[str, Any]:
    """Return how intervals are computed, as a result stores it."""
    return {
        "level": settings.level,
        "replicates": settings.replicates,
        "seed": settings.seed,
        **methods(settings),
    }


def _intervals(plan: Plan, settings: Settings, job: Job, entries: Mapping[str, Entry]) -> Intervals:
    """Return the intervals of a method."""
    groups = {ood.listing.dataset.name: ood.group for ood in plan.ood}
    inputs: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "id": entries[plan.id.dataset.name].key,
        "ood": [[name, entries[name].key, group] for name, group in groups.items()],
    }

    def scores() -> Scores:
        ood = {name: np.array(entries[name].array("scores")) for name in groups}
        return Scores(np.array(entries[plan.id.dataset.name].array("scores")), ood, groups)

    return stored_intervals(plan, job, inputs, scores)


def stored_intervals(plan: Plan, job: Job, inputs: Mapping[str, Any], scores: Callable[[], Scores]) -> Intervals:
    """Return the intervals of scores; they are computed and stored if those for the inputs are missing."""
    known = {"engine": ENGINE, **inputs}
    entry = plan.store.find("intervals", known)
    facts = entry.facts if entry else {}
    if not facts:
        computed = intervals(scores(), metric_settings(plan), job.label)
        found = {"sets": rounded(computed.sets), "means": rounded(computed.means)}
        facts = plan.store.try_write("intervals", known, {"method": job.info.name, **found})
    return Intervals(rounded(facts["sets"]), rounded(facts.get("means", {})))  # entries of streams had no means


def rounded(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    """Return intervals by name and metric as results store them."""
    return {
        name: {metric: (round(low, DIGITS), round(high, DIGITS)) for metric, (low, high) in metrics.items()}
        for name, metrics in found.items()
    }


def evaluate(plan: Plan, job: Job, entries: Mapping[str, Entry]) -> Result:
    """Return the result of a job from its stored scores of every dataset."""
    id_entry = entries[plan.id.dataset.name]
    id_scores = _score_set(job, plan.id, id_entry)
    rows = []
    for ood in plan.ood:
        entry = entries[ood.listing.dataset.name]
        scores = _score_set(job, ood.listing, entry)
        rows.append(set_row(ood, compare(plan, id_scores, scores), len(entry.facts["skipped"])))
    found = [entries[listing.dataset.name] for listing in plan.listings]
    seconds = {
        "extract": sum(e.facts["extract_seconds"] for e in found),
        "fit": max(e.facts["fit_seconds"] for e in found),
        "score": sum(e.facts["seconds"] for e in found),
    }
    devices = dict.fromkeys(e.facts["device"] for e in found)
    extracted = distinct(stamp for e in found for stamp in e.facts["extracted"])
    result = dataclasses.replace(
        head(plan, job),
        id=dataclasses.replace(
            id_row(plan.id),
            n=id_scores.given.size,
            skipped=len(id_entry.facts["skipped"]),
            accuracy=_accuracy(plan, id_entry),
        ),
        ood=tuple(rows),
        run={**run_settings(plan, job), "device": ", ".join(devices), "extracted": extracted},
        versions=id_entry.facts["versions"],
        commit=id_entry.facts["commit"],
        scores={listing.dataset.name: entries[listing.dataset.name].key for listing in plan.listings},
        seconds={k: round(v, 6) for k, v in seconds.items()},
        warnings=warnings(
            plan, [(one.dataset.title, entries[one.dataset.name].array("scores")) for one in plan.listings]
        ),
    )
    return add_intervals(plan, result, job, entries)


def warnings(plan: Plan, scores: Iterable[tuple[str, npt.NDArray[np.float64]]]) -> tuple[str, ...]:
    """Return a warning if the metrics may mislead because all images of a set have the same score.

    `scores` are those of each set, with its title.
    """
    same = [(title, len(of_set)) for title, of_set in scores if len(of_set) > 1 and of_set.min() == of_set.max()]
    constant = [f"{title} (n = {count:,})" for title, count in dict.fromkeys(same)]
    if not constant:
        return ()
    alone = len(plan.classes.lines) == 1
    reason = "; with one class name every softmax over the classes is 1" if alone else ""
    return (f"all images of a set have the same score, in {', '.join(constant)}{reason}",)


def failed(plan: Plan, job: Job, error: str) -> Result:
    """Return the result of a job that failed."""
    return dataclasses.replace(head(plan, job), status="failed", error=redact(error))


def head(plan: Plan, job: Job) -> Result:
    """Return a result without metrics: method, encoder, image sets, versions and settings."""
    request = plan.request
    trained = next((one.weights for one in (job, plan.base_of(job)) if one and one.weights), None)
    return Result(
        method=job.info.name,
        label=job.label,
        title=job.info.title,
        parameters=job.parameters,
        benchmark=plan.benchmark.name,
        benchmark_title=plan.benchmark.title,
        encoder=json.loads(json.dumps(plan.card.row())),
        id=id_row(plan.id),
        ood=(),
        conventions={"headline": "fpr95: ID positive", "at95": request.at95, "aupr": request.aupr},
        classes={**plan.classes.card(), "duplicates": plan.classes.duplicates()},
        templates=job.templates.card() if job.templates else {},
        files=job.files,
        weights=trained.card() if trained else {},
        run=run_settings(plan, job),
        source=job.info.source,
        versions=versions(),
        commit=commit(),
        scores={},
        access=access_of(plan, job).plain(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def access_of(plan: Plan, job: Job) -> Access:
    """Return the access card of a row; that of a stream includes the access of its base."""
    own, base = job.access(plan.draw.shots), plan.base_of(job)
    return both(own, base.access(plan.draw.shots)) if base else own


def run_settings(plan: Plan, job: Job) -> dict[str, Any]:
    """Return the settings of the run as a result stores them."""
    request = plan.request
    cut = any(len(listing) < listing.total for listing in plan.listings)
    return {
        "seed": request.seed,
        "device": request.device,
        "precision": request.precision,
        "batch_size": request.batch_size,
        "limit": request.limit if cut else None,
        "lists": lists(plan),
        "calibration": _calibration(plan, job),
        **({"patches": "fp16"} if request.keep_patches and job.info.patch_fields else {}),
        **({"base": _base(plan, base)} if (base := plan.base_of(job)) else {}),
    }


def _base(plan: Plan, job: Job) -> dict[str, Any]:
    """Return everything that the scores of a stream's base depend on, as a result stores it."""
    return {
        "label": job.label,
        "parameters": job.parameters,
        "templates": job.templates.digest if job.templates else None,
        "files": job.files,
        "weights": job.weights.digest if job.weights else None,
        "calibration": _calibration(plan, job),
        "source": job.info.source,
    }


def lists(plan: Plan) -> str:
    """Return what the digests of the images are computed from."""
    if plan.request.strict:
        return "content"
    if all(listing.content and not listing.sizes for listing in plan.listings):
        return "name, size, time"  # rendered images are hashed by content, but all results of glyphs have these words
    return "name, size"


def _calibration(plan: Plan, job: Job) -> dict[str, Any] | None:
    """Return the calibration images of a method as a result stores them; None if it reads none.

    For a method that reads labels they have `labels`, "all" or the number of images of each class, and the digest of
    the list with labels.
    """
    listing = plan.calibration_of(job)
    if listing is None:
        return None
    count = listing.dataset.count or listing.total
    facts = {"dataset": listing.dataset.name, "n": len(listing), "of": count, "digest": listing.digest}
    if skipped := _skipped(plan, listing):
        facts["skipped"] = skipped
    if not job.reads_labels:
        return facts
    shots = plan.draw.shots
    drawn = {"shot_seed": plan.draw.shot_seed} if shots else {}
    return {**facts, "labels": shots or "all", "list": listing.list_digest, **drawn}


def _skipped(plan: Plan, listing: ImageSet) -> int:
    """Return how many images of a set could not be read when it was encoded."""
    if plan.request.on_error != "skip":
        return 0
    work = plan.extraction_job(listing)
    entries = [work.store.find("embeddings", work.inputs(*bounds)) for bounds in work.shards()]
    return sum(len(entry.facts["skipped"]) for entry in entries if entry)


def id_row(listing: ImageSet) -> IdRow:
    """Return the ID set of a result that has no scores yet."""
    return IdRow(
        dataset=listing.dataset.name,
        title=listing.dataset.title,
        n=len(listing),
        expected=expected(listing),
        skipped=0,
        list_digest=listing.digest,
        accuracy=None,
    )


def compare(plan: Plan, id_scores: metrics.ScoreSet, ood_scores: metrics.ScoreSet) -> metrics.Metrics:
    """Return the metrics under the conventions of the request."""
    return metrics.evaluate(id_scores, ood_scores, at95=plan.request.at95, aupr=plan.request.aupr)


def set_row(ood: OodSet, values: metrics.Metrics, skipped: int) -> SetRow:
    """Return the row of an OOD set; `skipped` images of it could not be read."""
    listing = ood.listing
    return SetRow(
        dataset=listing.dataset.name,
        title=listing.dataset.title,
        group=ood.group,
        n=values.n_ood,
        expected=expected(listing),
        skipped=skipped,
        list_digest=listing.digest,
        auroc=values.auroc,
        fpr95=values.fpr95,
        fpr95_ood=values.fpr95_ood,
        aupr_in=values.aupr_in,
        aupr_out=values.aupr_out,
        tied=values.tied,
    )


def expected(listing: ImageSet) -> int | None:
    """Return the number of images that the catalogue counts; for a set of unknown size, the number before a limit."""
    return listing.dataset.count or listing.total


def _score_set(job: Job, listing: ImageSet, entry: Entry) -> metrics.ScoreSet:
    names = [listing.names[i] for i in entry.array("positions")]
    return metrics.score_set(np.array(entry.array("scores")), f"{job.label} on {listing.dataset.name}", names)


def _accuracy(plan: Plan, entry: Entry) -> float | None:
    """Return the ID accuracy as a fraction; None for a method that predicts no classes."""
    if "predictions" not in entry.names:
        return None
    labels = plan.id.labels[entry.array("positions")]
    return float((entry.array("predictions") == labels).mean())
