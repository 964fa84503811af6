"""Verification of results against their scores per image, and against the project's own results."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.data.paths import reference
from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.report.tables.access import access_problem
from oodbench.report.tables.streams import MEASURED
from oodbench.results import DIGITS, METRICS, PART, Interval, Result, SetRow, flatten, read, row_files, rows

Floats = NDArray[np.float64]

_NUMBERS = {"label": np.int64, "score": np.float64, "prediction": np.int64, "place": np.int64}


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of one image set of a result, in the order of its list; a prediction of -1 means none.

    `places` are the positions of the images in their stream, from 0; None for a method without a stream.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    predictions: NDArray[np.int64]
    places: NDArray[np.int64] | None = None


def read_scores(path: Path) -> dict[str, ImageScores]:
    """Read the scores of each dataset. Raise UserError if the file does not exist, is damaged or lacks a column."""
    columns = read_columns(path, ("dataset", "label", "score", "prediction"))
    return {name: _images(columns, columns["dataset"] == name) for name in dict.fromkeys(columns["dataset"].tolist())}


def read_pairs(path: Path) -> dict[str, dict[str, ImageScores]]:
    """Read the scores of a stream's result: OOD set -> dataset of its pair -> scores. Raise UserError as above."""
    columns = read_columns(path, ("dataset", "label", "score", "prediction", "pair", "place"))
    pairs: dict[str, dict[str, ImageScores]] = {}
    for pair, name in dict.fromkeys(zip(columns["pair"].tolist(), columns["dataset"].tolist(), strict=True)):
        mask = (columns["pair"] == pair) & (columns["dataset"] == name)
        pairs.setdefault(pair, {})[name] = _images(columns, mask)
    return pairs


def read_columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read columns of scores per image. Raise UserError if the file does not exist, is damaged or lacks a column."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if not path.is_file():  # reading from a pipe would block
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise UserError(f"{path} {problem}: the result has no scores per image")
        table = parquet.read_table(path, columns=list(names))
        return {
            name: table[name].to_numpy().astype(_NUMBERS[name], casting="same_kind")
            if name in _NUMBERS
            else np.array(table[name].to_pylist(), dtype=np.str_)
            for name in names
        }
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:200]}") from error


def _images(columns: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> ImageScores:
    return ImageScores(*(columns[name][mask] for name in _NUMBERS if name in columns))


def checked_scores(row: Result, path: Path) -> dict[str, ImageScores]:
    """Read the scores of a result. Raise UserError if they do not match its images or its AUROC."""
    found = read_scores(path)
    remedy = "check it with: oodbench report --verify"
    if {name: len(one.scores) for name, one in found.items()} != sizes(row):
        raise UserError(f"{path}: its scores do not match its images; {remedy}")
    on_id = metrics.score_set(found[row.id.dataset].scores, f"{path}: {row.id.dataset}")
    for one in row.ood:
        on_ood = metrics.score_set(found[one.dataset].scores, f"{path}: {one.dataset}")
        if not math.isclose(metrics.evaluate(on_id, on_ood).auroc, one.auroc, abs_tol=1e-9):
            raise UserError(f"{path}: its scores do not give its AUROC on {one.dataset}; {remedy}")
    return found


def sizes(row: Result) -> dict[str, int]:
    """Return the number of scored images of each dataset, the ID set first."""
    return {row.id.dataset: row.id.n} | {s.dataset: s.n for s in row.ood}


Bounds = dict[str, Interval]


@dataclass(frozen=True)
class VerifiedResult:
    """A verified result, with its problems if there are any."""

    path: Path
    label: str
    cells: int  # recomputed numbers
    problems: tuple[str, ...] = ()
    failed: bool = False  # a failed result, which has no numbers


def verify(results: Path, chosen: Callable[[Result], bool] = lambda row: True) -> Iterator[VerifiedResult]:
    """Verify one result, or the chosen ones of a folder in order of path.

    A problem states the number as stored and as recomputed. Unreadable files are always reported.
    """
    for path in [results] if results.is_file() else row_files(results):
        try:
            row = read(path)
        except UserError as error:
            yield VerifiedResult(path, path.stem, 0, (str(error),))
        else:
            if chosen(row):
                yield _verified(path, row)


def recomputed(row: Result, images: dict[str, ImageScores]) -> Result:
    """Return the result with numbers computed from the scores. Raise UserError if the sets are not the result's."""
    sets = [row.id.dataset, *(s.dataset for s in row.ood)]
    if set(images) != set(sets):
        raise UserError(f"its scores are for {', '.join(sorted(images))}, the result is for {', '.join(sets)}")
    on_id = images[row.id.dataset]
    ood = tuple(_evaluated(row, stored, on_id.scores, images[stored.dataset].scores) for stored in row.ood)
    id_row = dataclasses.replace(row.id, n=len(on_id.scores), accuracy=_accuracy(on_id))
    return _with_intervals(dataclasses.replace(row, id=id_row, ood=ood), images)


def recomputed_streams(row: Result, pairs: dict[str, dict[str, ImageScores]]) -> Result:
    """Return the result of streams with numbers computed from the scores of each pair, as `recomputed` does."""
    expected = {one.dataset: {row.id.dataset, one.dataset} for one in row.ood}
    if {pair: set(images) for pair, images in pairs.items()} != expected:
        raise UserError(f"its scores are for the streams {', '.join(pairs)}, the result is for {', '.join(expected)}")
    ood: list[SetRow] = []
    for stored in row.ood:
        images = pairs[stored.dataset]
        on_id, on_ood = images[row.id.dataset], images[stored.dataset]
        one = _evaluated(row, stored, on_id.scores, on_ood.scores)
        stream = {"n_id": len(on_id.scores), "accuracy": _accuracy(on_id), **_parts(row, on_id, on_ood)}
        alone = dataclasses.replace(row, ood=(dataclasses.replace(one, stream=stream),))
        ood += _with_intervals(alone, images).ood if stored.intervals else alone.ood
    known = [one.stream["accuracy"] for one in ood if one.stream["accuracy"] is not None]
    id_row = dataclasses.replace(row.id, accuracy=sum(known) / len(known) if known else None)
    return dataclasses.replace(row, id=id_row, ood=tuple(ood))


def _evaluated(row: Result, stored: SetRow, on_id: Floats, on_ood: Floats) -> SetRow:
    """Return the row of an OOD set with metrics computed from scores."""
    values = metrics.evaluate(
        metrics.score_set(on_id, row.id.dataset),
        metrics.score_set(on_ood, stored.dataset),
        at95=row.conventions.get("at95", "first"),
        aupr=row.conventions.get("aupr", "average_precision"),
    )
    return dataclasses.replace(stored, n=values.n_ood, **{name: getattr(values, name) for name in (*METRICS, "tied")})


def _accuracy(on_id: ImageScores) -> float | None:
    predicted = on_id.predictions >= 0
    return float((on_id.predictions == on_id.labels).mean()) if predicted.any() else None


def _parts(row: Result, on_id: ImageScores, on_ood: ImageScores) -> dict[str, Any]:
    """Return the metrics of the first 1,000 images of a stream, of the rest, and of each 1,000 images."""
    places = np.concatenate([one.places for one in (on_id, on_ood) if one.places is not None])
    if not np.array_equal(np.sort(places), np.arange(len(places))):
        raise UserError("the positions of its images in their stream are not 0, 1, 2, ...")
    order = np.argsort(places)
    scores = np.concatenate([on_id.scores, on_ood.scores])[order]
    is_id = order < len(on_id.scores)

    def part(chosen: slice) -> dict[str, Any]:
        kept, kind = scores[chosen], is_id[chosen]
        found: dict[str, Any] = {"n": len(kept), "n_id": int(kind.sum())}
        if kind.all() or not kind.any():
            return found | dict.fromkeys(MEASURED)
        one = _evaluated(row, row.ood[0], kept[kind], kept[~kind])
        return found | {name: round(getattr(one, name), DIGITS) for name in MEASURED}

    thousands = [part(slice(start, start + PART)) for start in range(0, len(scores), PART)]
    return {"first": part(slice(PART)), "rest": part(slice(PART, None)), "thousands": thousands}


def _with_intervals(row: Result, images: dict[str, ImageScores]) -> Result:
    """Recompute the intervals of a result, if it has any; those equal up to rounding stay as stored.

    Intervals that an older version computed by another method are kept, too.
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
        raise UserError(f"the settings of its intervals cannot be read: {error!r}") from error
    if any(row.uncertainty.get(metric, how) != how for metric, how in methods(settings).items()):
        return row
    scores = {s.dataset: images[s.dataset].scores for s in row.ood}
    groups = {s.dataset: s.group for s in row.ood}
    found = intervals(Scores(images[row.id.dataset].scores, scores, groups), settings)
    ood = tuple(dataclasses.replace(s, intervals=_near(s.intervals, found.sets[s.dataset])) for s in row.ood)
    means = {group: _near(stored, found.means.get(group, {})) for group, stored in row.mean_intervals.items()}
    return dataclasses.replace(row, ood=ood, mean_intervals=means)


def _near(stored: Bounds, found: Bounds) -> Bounds:
    """Return the recomputed intervals, or the stored ones where these agree up to rounding."""

    def same(metric: str) -> bool:
        pairs = zip(stored[metric], found.get(metric, (math.nan, math.nan)), strict=True)
        return all(math.isclose(a, b, abs_tol=1e-8) for a, b in pairs)

    return {metric: stored[metric] if same(metric) else found.get(metric, (math.nan, math.nan)) for metric in stored}


def _verified(path: Path, row: Result) -> VerifiedResult:
    if row.status != "ok":
        return VerifiedResult(path, row.label, 0, failed=True)
    try:
        scores = path.with_suffix(".parquet")
        again = recomputed_streams(row, read_pairs(scores)) if row.stream else recomputed(row, read_scores(scores))
    except UserError as error:
        return VerifiedResult(path, row.label, 0, (str(error),))
    problems = [
        *_differing(f"ID {row.id.dataset}", row.id, again.id, ("n", "accuracy")),
        *(
            problem
            for one, other in zip(row.ood, again.ood, strict=True)
            for problem in _differing(one.dataset, one, other, ("n", *METRICS, "tied", "intervals"))
        ),
        *_differing("mean", row, again, ("mean_intervals",)),
    ]
    stored, found = _stream_numbers(row), _stream_numbers(again)
    problems += [
        f"{name} is {stored.get(name)!r} in the result, {found.get(name)!r} from its scores"
        for name in {**found, **stored}
        if stored.get(name) != found.get(name)
    ]
    cells = 2 + len(row.ood) * (len(METRICS) + 2) + len(found)
    problems += [problem] if (problem := access_problem(row)) else []
    if not problems and again.digest != row.digest:
        problems = [f"its digest is {row.digest[:12]} as stored, {again.digest[:12]} when recomputed"]
    return VerifiedResult(path, row.label, cells, tuple(problems))


def _stream_numbers(row: Result) -> dict[str, Any]:
    """Return the numbers of the parts of streams by name: `sun: thousands.2.auroc`."""
    parts = {one.dataset: {**one.stream} for one in row.ood if one.stream}
    for one in parts.values():
        one["thousands"] = dict(enumerate(one.get("thousands", ()), 1))
    return {f"{name}: {key}": v for name, one in parts.items() for key, v in flatten(one).items()}


def _differing(where: str, one: object, other: object, fields: tuple[str, ...]) -> list[str]:
    out = []
    for name in fields:
        stored, found = getattr(one, name), getattr(other, name)
        if stored != found and not (_nan(stored) and _nan(found)):
            out.append(f"{where}: {name} is {stored!r} in the result, {found!r} from its scores")
    return out


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


SHOWN = ("auroc", "fpr95")  # the metrics in README's table


def deviation(results: Sequence[Result]) -> str:
    """Return the methods whose printed digits differ from the project's own results, and by how much, or "".

    Only results with the same settings, encoder, image lists and source of the method are compared. Remaining
    differences come from the rounding of processors and library versions.
    """
    found = []
    for row in results:
        own = _own().get(_computation(row)) if row.status == "ok" and row.benchmark == "glyphs" else None
        if own is None:
            continue
        here = _printed(row)
        differences = [abs(here[name] - value) for name, value in _printed(own).items() if here[name] != value]
        if differences:
            found.append(f"{row.title} by up to {max(differences) / 100:.2f}")
    if not found:
        return ""
    return (
        f"printed digits differ from the project's own results, in points: {', '.join(found)}; processors and library "
        "versions round differently"
    )


@functools.cache
def _own() -> dict[str, Result]:
    folder = reference()
    return {_computation(row): row for _, row in rows(folder)} if folder else {}


def _computation(row: Result) -> str:
    """Return everything that the numbers of a result depend on, except the processor and the libraries."""
    run = {name: row.run.get(name) for name in ("seed", "precision", "batch_size", "limit")}
    lists = [row.id.list_digest, *(one.list_digest for one in row.ood)]
    parts: list[Any] = [row.method, row.parameters, row.files, row.encoder.get("identity"), row.conventions, lists]
    parts += [row.classes.get("digest"), row.templates.get("digest"), row.weights.get("digest"), run, row.source]
    parts += [row.stream]
    return repr(parts)


def _printed(row: Result) -> dict[str, int]:
    """Return the printed numbers, in hundredths of a point."""
    values = {f"{one.dataset} {metric}": getattr(one, metric) for one in row.ood for metric in SHOWN}
    values |= {f"{group} {metric}": row.mean(metric, group or None) for group in ("", *row.groups) for metric in SHOWN}
    if row.id.accuracy is not None:
        values["accuracy"] = row.id.accuracy
    return {name: round(float(f"{100 * value:.2f}") * 100) for name, value in values.items()}
