"""Results of streams: the metrics of each pair and of the parts of a stream by position, and the scores per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.metrics import detection as metrics
from oodbench.metrics.delong import Scores
from oodbench.pipeline import evaluate as common
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import OodSet, Plan
from oodbench.pipeline.stream_order import StreamProtocol
from oodbench.results import DIGITS, PART, Interval, Result, SetRow, distinct
from oodbench.storage.store import Entry

_OF_PARTS = ("auroc", "fpr95", "fpr95_ood")


def evaluate(plan: Plan, job: Job, protocol: StreamProtocol, entries: Mapping[str, Entry]) -> Result:
    """Return the result of a method from its stored scores of every pair, by OOD set.

    The ID images are scored again in each pair, so that each OOD set has its own ID scores, and no interval of a mean
    over sets is computed.
    """
    found = [entries[one.listing.dataset.name] for one in plan.ood]
    rows = [_set_row(plan, job, one, entry) for one, entry in zip(plan.ood, found, strict=True)]
    accuracies = [row.stream["accuracy"] for row in rows if row.stream["accuracy"] is not None]
    first = found[0]
    seconds = {
        "extract": first.facts["extract_seconds"][0] + sum(entry.facts["extract_seconds"][1] for entry in found),
        "fit": max(entry.facts["fit_seconds"] for entry in found),
        "score": sum(entry.facts["seconds"] for entry in found),
    }
    head = _head(plan, job, protocol)
    settings = common.metric_settings(plan)
    return dataclasses.replace(
        head,
        id=dataclasses.replace(
            head.id,
            n=first.facts["images"][0],
            skipped=len(first.facts["skipped_id"]),
            accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        ),
        ood=tuple(rows),
        run={
            **head.run,
            "device": ", ".join(dict.fromkeys(entry.facts["device"] for entry in found)),
            "extracted": distinct(stamp for entry in found for stamp in entry.facts["extracted"]),
        },
        versions=first.facts["versions"],
        commit=first.facts["commit"],
        scores={row.dataset: entry.key for row, entry in zip(rows, found, strict=True)},
        seconds={name: round(value, 6) for name, value in seconds.items()},
        warnings=common.warnings(plan, _sides(plan, found)),
        uncertainty=common.uncertainty(settings),
    )


def failed(plan: Plan, job: Job, protocol: StreamProtocol, error: str) -> Result:
    """Return the result of a method that failed under a protocol."""
    result = common.failed(plan, job, error)
    return dataclasses.replace(result, stream=_head(plan, job, protocol).stream)


def columns(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, list[Any]]:
    """Return the columns of a row's scores per image: those of any method, and `pair` and `place`.

    Each pair has its ID images and then its OOD images, in list order; `pair` is the OOD set of the stream, and `place`
    is the position in the stream, from 0.
    """
    found: dict[str, list[Any]] = {
        name: [] for name in ("dataset", "name", "label", "score", "prediction", "pair", "place")
    }
    for one in plan.ood:
        entry = entries[one.listing.dataset.name]
        is_id, positions = np.array(entry.array("is_id")), np.array(entry.array("positions"))
        order = np.lexsort((positions, ~is_id))
        none = np.full(len(order), -1)
        predictions = entry.array("predictions") if "predictions" in entry.names else none
        sides = [plan.id if side else one.listing for side in is_id[order]]
        found["dataset"] += [side.dataset.name for side in sides]
        found["name"] += [side.names[i] for side, i in zip(sides, positions[order], strict=True)]
        found["label"] += [int(side.labels[i]) for side, i in zip(sides, positions[order], strict=True)]
        found["score"] += entry.array("scores")[order].tolist()
        found["prediction"] += predictions[order].tolist()
        found["pair"] += [one.listing.dataset.name] * len(order)
        found["place"] += order.tolist()
    return found


def _head(plan: Plan, job: Job, protocol: StreamProtocol) -> Result:
    """Return a result without metrics, with the protocol of its streams."""
    stream = {**protocol.plain(), "sees_itself": job.info.sees_itself}
    return dataclasses.replace(common.head(plan, job), stream=stream | ({"base": job.base} if job.base else {}))


def _scores(entry: Entry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the scores of the ID images and of the OOD images of a stream, in list order."""
    scores, is_id = np.array(entry.array("scores")), np.array(entry.array("is_id"))
    by_list = np.argsort(entry.array("positions"), kind="stable")
    return scores[by_list][is_id[by_list]], scores[by_list][~is_id[by_list]]


def _sides(plan: Plan, found: list[Entry]) -> list[tuple[str, npt.NDArray[np.float64]]]:
    """Return the scores of both sets of every pair, with the title of the set."""
    titles = [(plan.id.dataset.title, one.listing.dataset.title) for one in plan.ood]
    return [
        pair for entry, names in zip(found, titles, strict=True) for pair in zip(names, _scores(entry), strict=True)
    ]


def _set_row(plan: Plan, job: Job, ood: OodSet, entry: Entry) -> SetRow:
    """Return the row of a pair: the metrics of the whole stream, and of its parts."""
    what = f"{job.label} on {ood.listing.dataset.name}"
    sides = _scores(entry)
    on_id, on_ood = (metrics.score_set(side, what) for side in sides)
    row = common.set_row(ood, common.compare(plan, on_id, on_ood), len(entry.facts["skipped"]))
    if entry.facts["images"][1] == row.expected:
        row = dataclasses.replace(row, expected=row.n)  # a ratio leaves images out, and the row names it
    scores, is_id = np.array(entry.array("scores")), np.array(entry.array("is_id"))
    parts = [slice(start, start + PART) for start in range(0, len(scores), PART)]
    stream = {
        "n_id": len(sides[0]),
        "accuracy": _accuracy(plan, entry, is_id),
        "first": _part(plan, scores[:PART], is_id[:PART]),
        "rest": _part(plan, scores[PART:], is_id[PART:]),
        "thousands": [_part(plan, scores[part], is_id[part]) for part in parts],
    }
    return dataclasses.replace(row, stream=stream, intervals=_intervals(plan, job, ood, entry))


def _part(plan: Plan, scores: npt.NDArray[np.float64], is_id: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the metrics of consecutive images of a stream; None if they are all ID, or all OOD."""
    counts = {"n": len(scores), "n_id": int(is_id.sum())}
    if not 0 < counts["n_id"] < counts["n"]:
        return {**counts, **dict.fromkeys(_OF_PARTS)}
    values = common.compare(plan, *(metrics.score_set(side, "a part") for side in (scores[is_id], scores[~is_id])))
    return {**counts, **{name: round(getattr(values, name), DIGITS) for name in _OF_PARTS}}


def _accuracy(plan: Plan, entry: Entry, is_id: npt.NDArray[np.bool_]) -> float | None:
    """Return the ID accuracy in a stream; None for a method that predicts no classes."""
    if "predictions" not in entry.names:
        return None
    labels = plan.id.labels[entry.array("positions")[is_id]]
    return float((entry.array("predictions")[is_id] == labels).mean())


def _intervals(plan: Plan, job: Job, ood: OodSet, entry: Entry) -> dict[str, Interval]:
    """Return the intervals of a pair."""
    name = ood.listing.dataset.name
    inputs = {"settings": dataclasses.asdict(common.metric_settings(plan)), "stream": entry.key, "ood": name}

    def scores() -> Scores:
        on_id, on_ood = _scores(entry)
        return Scores(on_id, {name: on_ood})

    return common.stored_intervals(plan, job, inputs, scores).sets[name]
