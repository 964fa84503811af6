"""oodbench: compare CLIP-based out-of-distribution detection methods on embeddings made once.

`oodbench.run(...)` is `oodbench run` in Python, `oodbench.Detector` one method put to use. Importing this package
imports neither torch nor pandas.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from oodbench.detector.detector import Detector

__all__ = ["Detector", "UserError", "run"]

try:
    __version__ = version("oodbench")
except PackageNotFoundError:  # imported from a checkout that was not installed
    __version__ = "0+unknown"


def run(methods: str = "all", id: str = "glyphs", **options: Any) -> pd.DataFrame:
    """Run a benchmark; one line per method, OOD set and metric.

    Options are those of `oodbench run`, with underscores: ood, encoder, data, settings, seed, device, limit, results,
    ... (the fields of oodbench.pipeline.request.RunRequest, whose `out` is `results` here), and `tracking_uri`: ""
    (the default here) records nothing in MLflow.
    Columns: method, label, benchmark, encoder, id, ood, group, metric, value (a fraction), n_id, n_ood, partial,
    digest of the row.
    Raises UserError for bad input; a method that failed has one line with metric "failed" and value NaN.
    """
    from oodbench.api import run_and_record
    from oodbench.pipeline.request import request_from
    from oodbench.results import frame

    if "out" in options:
        if "results" in options:
            raise UserError("out and results are one option; give results=")
        warnings.warn("oodbench.run(out=...) is deprecated; write results=...", DeprecationWarning, stacklevel=2)
    if "results" in options:
        options["out"] = options.pop("results")
    tracking_uri = options.pop("tracking_uri", "")
    outcome = run_and_record(request_from(methods=methods, id=id, **options), tracking_uri=tracking_uri)
    return frame(outcome.results)


def __getattr__(name: str) -> Any:
    """Detector is imported when it is first used."""
    if name == "Detector":
        from oodbench.detector.detector import Detector

        return Detector
    raise AttributeError(f"module 'oodbench' has no attribute '{name}'")
