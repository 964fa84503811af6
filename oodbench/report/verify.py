"""Verification: every metric of every row computed again from the stored scores per image."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.data.paths import reference
from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.results import METRICS, Interval, Result, read, row_files, rows

COLUMNS = ("dataset", "name", "label", "score", "prediction")


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One image set of a row, in the order of its list; a prediction of -1 is none."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    predictions: NDArray[np.int64]


def by_dataset(path: Path) -> dict[str, ImageScores]:
    """Dataset -> its images. UserError for a file that is not there, cannot be read or lacks a column."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if not path.is_file():  # a pipe would never end
            there = "is no regular file" if path.exists() else "is not there"
            raise UserError(f"{path} {there}: the row has no scores per image")
        table = parquet.read_table(path, columns=[c for c in COLUMNS if c != "name"])
        names = np.array(table["dataset"].to_pylist(), dtype=np.str_)
        label, score, prediction = (
            table[c].to_numpy().astype(kind, casting="same_kind")
            for c, kind in (("label", np.int64), ("score", np.float64), ("prediction", np.int64))
        )
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:200]}") from error
    chosen = {str(name): names == name for name in dict.fromkeys(names.tolist())}
    return {name: ImageScores(label[those], score[those], prediction[those]) for name, those in chosen.items()}


def of_row(row: Result, path: Path) -> dict[str, ImageScores]:
    """The images of a row, in the file of its scores. UserError for scores that are not of its images."""
    found = by_dataset(path)
    remedy = "look at it with: oodbench report --verify"
    if {name: len(one.scores) for name, one in found.items()} != sizes(row):
        raise UserError(f"{path}: its scores are not of its images; {remedy}")
    on_id = metrics.score_set(found[row.id.dataset].scores, f"{path}: {row.id.dataset}")
    for one in row.ood:
        on_ood = metrics.score_set(found[one.dataset].scores, f"{path}: {one.dataset}")
        if not math.isclose(metrics.evaluate(on_id, on_ood).auroc, one.auroc, abs_tol=1e-9):
            raise UserError(f"{path}: its scores do not give its AUROC on {one.dataset}; {remedy}")
    return found


def sizes(row: Result) -> dict[str, int]:
    """Dataset -> images scored, the ID set first."""
    return {row.id.dataset: row.id.n} | {s.dataset: s.n for s in row.ood}


Bounds = dict[str, Interval]


@dataclass(frozen=True)
class Mismatch:
    """One row that was looked at, and what is wrong with it: nothing when `problems` is empty."""

    path: Path
    label: str
    cells: int  # numbers computed again
    problems: tuple[str, ...] = ()
    failed: bool = False  # a failed row, which has no numbers


def verify(results: Path) -> Iterator[Mismatch]:
    """Look at every row below a results folder, in order of path; problems say which cell, what is stored and found."""
    for path in row_files(results):
        yield _verified(path)


def recomputed(row: Result, images: dict[str, ImageScores]) -> Result:
    """The row with its numbers as the scores give them. UserError when the sets differ from the row's."""
    sets = [row.id.dataset, *(s.dataset for s in row.ood)]
    if set(images) != set(sets):
        raise UserError(f"its scores are of {', '.join(sorted(images))}, its row is of {', '.join(sets)}")
    on_id = images[row.id.dataset]
    id_scores = metrics.score_set(on_id.scores, row.id.dataset)
    predicted = on_id.predictions >= 0
    accuracy = float((on_id.predictions == on_id.labels).mean()) if predicted.any() else None
    at95, aupr = row.conventions.get("at95", "first"), row.conventions.get("aupr", "average_precision")
    ood = []
    for stored in row.ood:
        scores = metrics.score_set(images[stored.dataset].scores, stored.dataset)
        values = metrics.evaluate(id_scores, scores, at95=at95, aupr=aupr)
        found = {name: getattr(values, name) for name in (*METRICS, "tied")}
        ood.append(dataclasses.replace(stored, n=values.n_ood, **found))
    id_row = dataclasses.replace(row.id, n=len(on_id.scores), accuracy=accuracy)
    return _with_intervals(dataclasses.replace(row, id=id_row, ood=tuple(ood)), images)


def _with_intervals(row: Result, images: dict[str, ImageScores]) -> Result:
    """Intervals again, for rows that have them; those within rounding of the stored ones count as equal.

    Intervals that were made otherwise than now, by an older version, stay as they are.
    """
    if not row.uncertainty:
        return row
    from oodbench.metrics import Scores, Settings, intervals
    from oodbench.metrics.intervals import methods

    try:
        settings = Settings(
            at95=row.conventions.get("at95", "first"),
            aupr=row.conventions.get("aupr", "average_precision"),
            replicates=int(row.uncertainty["replicates"]),
            level=float(row.uncertainty["level"]),
            seed=int(row.uncertainty["seed"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"how its intervals were made cannot be read: {error!r}") from error
    made = methods(settings)
    if any(row.uncertainty.get(metric, how) != how for metric, how in made.items()):
        return row
    scores = {s.dataset: images[s.dataset].scores for s in row.ood}
    groups = {s.dataset: s.group for s in row.ood}
    found = intervals(Scores(images[row.id.dataset].scores, scores, groups), settings)
    ood = tuple(dataclasses.replace(s, intervals=_near(s.intervals, found.sets[s.dataset])) for s in row.ood)
    means = {group: _near(stored, found.means.get(group, {})) for group, stored in row.mean_intervals.items()}
    return dataclasses.replace(row, ood=ood, mean_intervals=means)


def _near(stored: Bounds, found: Bounds) -> Bounds:
    """What was found, or what is stored where the two agree but for rounding."""

    def same(metric: str) -> bool:
        pairs = zip(stored[metric], found.get(metric, (math.nan, math.nan)), strict=True)
        return all(math.isclose(a, b, abs_tol=1e-8) for a, b in pairs)

    return {metric: stored[metric] if same(metric) else found.get(metric, (math.nan, math.nan)) for metric in stored}


def _verified(path: Path) -> Mismatch:
    try:
        row = read(path)
    except UserError as error:
        return Mismatch(path, path.stem, 0, (str(error),))
    if row.status != "ok":
        return Mismatch(path, row.label, 0, failed=True)
    try:
        again = recomputed(row, by_dataset(path.with_suffix(".parquet")))
    except UserError as error:
        return Mismatch(path, row.label, 0, (str(error),))
    problems = [
        *_differing(f"ID {row.id.dataset}", row.id, again.id, ("n", "accuracy")),
        *(
            problem
            for one, other in zip(row.ood, again.ood, strict=True)
            for problem in _differing(one.dataset, one, other, ("n", *METRICS, "tied", "intervals"))
        ),
        *_differing("mean", row, again, ("mean_intervals",)),
    ]
    cells = 2 + len(row.ood) * (len(METRICS) + 2)
    if not problems and again.digest != row.digest:
        problems = [f"its digest is {again.digest[:12]} when computed again, {row.digest[:12]} as stored"]
    return Mismatch(path, row.label, cells, tuple(problems))


def _differing(where: str, one: object, other: object, fields: tuple[str, ...]) -> list[str]:
    out = []
    for name in fields:
        stored, found = getattr(one, name), getattr(other, name)
        if stored != found and not (_nan(stored) and _nan(found)):
            out.append(f"{where}: {name} is {stored!r} in the row, {found!r} from its scores")
    return out


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


SHOWN = ("auroc", "fpr95")  # what README's table prints


def deviation(results: Sequence[Result]) -> str:
    """The methods whose printed digits differ from the project's own rows, and by how much; "" where none does.

    Only rows of the same work are compared: settings, encoder, lists of images, the method's source and more. What
    is left to differ is how processors and versions of libraries round.
    """
    found = []
    for row in results:
        own = _own().get(_work(row)) if row.status == "ok" and row.benchmark == "glyphs" else None
        if own is None:
            continue
        here = _printed(row)
        apart = [abs(here[name] - value) for name, value in _printed(own).items() if here[name] != value]
        if apart:
            found.append(f"{row.title} by up to {max(apart) / 100:.2f}")
    if not found:
        return ""
    return (
        f"printed digits differ from the project's own rows, in points: {', '.join(found)}; processors and versions of "
        "libraries round differently"
    )


@functools.cache
def _own() -> dict[str, Result]:
    folder = reference()
    return {_work(row): row for _, row in rows(folder)} if folder else {}


def _work(row: Result) -> str:
    """All that the numbers of a row depend on, besides the processor and the libraries."""
    run = {name: row.run.get(name) for name in ("seed", "precision", "batch_size", "limit")}
    lists = [row.id.list_digest, *(one.list_digest for one in row.ood)]
    parts: list[Any] = [row.method, row.parameters, row.files, row.encoder.get("identity"), row.conventions, lists]
    parts += [row.classes.get("digest"), row.templates.get("digest"), row.weights.get("digest"), run, row.source]
    return repr(parts)


def _printed(row: Result) -> dict[str, int]:
    """What is printed, in hundredths of a point."""
    values = {f"{one.dataset} {metric}": getattr(one, metric) for one in row.ood for metric in SHOWN}
    values |= {f"{group} {metric}": row.mean(metric, group or None) for group in ("", *row.groups) for metric in SHOWN}
    if row.id.accuracy is not None:
        values["accuracy"] = row.id.accuracy
    return {name: round(float(f"{100 * value:.2f}") * 100) for name, value in values.items()}
