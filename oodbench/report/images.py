"""Images: a row's stored scores, one per image, as they lie beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError

COLUMNS = ("dataset", "name", "label", "score", "prediction")


@dataclass(frozen=True, eq=False)
class Images:
    """One image set of a row, in the order of its list; a prediction of -1 is none."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    predictions: NDArray[np.int64]


def by_dataset(path: Path) -> dict[str, Images]:
    """Dataset -> its images. UserError for a file that is not there, cannot be read or lacks a column."""
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise UserError(f"{path} is not there: the row has no scores per image")
    try:
        table = parquet.read_table(path, columns=[c for c in COLUMNS if c != "name"])
        names: Any = table["dataset"].to_pylist()
        columns = {c: table[c].to_numpy() for c in ("label", "score", "prediction")}
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    sets = np.array(names)
    out = {}
    for name in dict.fromkeys(names):
        chosen = sets == name
        out[name] = Images(*(columns[c][chosen] for c in ("label", "score", "prediction")))
    return out
