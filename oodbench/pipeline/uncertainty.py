"""Uncertainty of a row: the intervals of its metrics, from the store or computed from its scores and stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.intervals import ENGINE, Intervals, intervals, methods
from oodbench.metrics.pairs import Scores
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.results import Result
from oodbench.storage.store import Entry

DIGITS = 9  # of the intervals as stored: the bootstrap's own noise is in the fourth


def settings_of(plan: Plan) -> Settings:
    return Settings(plan.request.at95, plan.request.aupr, plan.request.bootstrap)


def with_intervals(plan: Plan, result: Result, job: Job, entries: Mapping[str, Entry]) -> Result:
    """The row with intervals for every set and mean; scores that were seen before are not resampled again."""
    settings = settings_of(plan)
    found = _stored(plan, settings, job, entries)
    sets = tuple(dataclasses.replace(one, intervals=found.sets[one.dataset]) for one in result.ood)
    about = {"level": settings.level, "replicates": settings.replicates, "seed": settings.seed, **methods(settings)}
    return dataclasses.replace(result, ood=sets, mean_intervals=found.means, uncertainty=about)


def _stored(plan: Plan, settings: Settings, job: Job, entries: Mapping[str, Entry]) -> Intervals:
    groups = {one.listing.dataset.name: one.group for one in plan.ood}
    inputs: dict[str, Any] = {
        "engine": ENGINE,
        "settings": dataclasses.asdict(settings),
        "id": entries[plan.id.dataset.name].key,
        "ood": [[name, entries[name].key, group] for name, group in groups.items()],
    }
    entry = plan.store.find("intervals", inputs)
    facts = entry.facts if entry else {}
    if not facts:
        ood = {name: np.array(entries[name].array("scores")) for name in groups}
        scores = Scores(np.array(entries[plan.id.dataset.name].array("scores")), ood, groups)
        made = intervals(scores, settings, job.label)
        made_of = {"method": job.info.name, "sets": _rounded(made.sets), "means": _rounded(made.means)}
        facts = plan.store.remember("intervals", inputs, made_of)
    return Intervals(_rounded(facts["sets"]), _rounded(facts["means"]))


def _rounded(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        name: {metric: (round(low, DIGITS), round(high, DIGITS)) for metric, (low, high) in metrics.items()}
        for name, metrics in found.items()
    }
