"""Images: a row's stored scores, one per image, as they lie beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.results import Result

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
