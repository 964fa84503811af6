"""oodbench: compare CLIP-based out-of-distribution detection methods on embeddings that are computed once.

`oodbench.run(...)` is `oodbench run` in Python, `oodbench.report(...)` is `oodbench report`, and `oodbench.Detector`
applies one method to images. Importing this package imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    import pandas as pd

    from oodbench.detector.detector import Detector
    from oodbench.method import Method
    from oodbench.pipeline.run_options import RunOptions
    from oodbench.report.api import report

__all__ = ["Detector", "UserError", "report", "run"]

try:
    __version__ = version("oodbench")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def run(
    methods: str | Method[Any] | type[Method[Any]] | Sequence[str | Method[Any] | type[Method[Any]]] = "core",
    id: str = "glyphs",
    **options: Unpack[RunOptions],
) -> pd.DataFrame:
    """Run a benchmark and return its results as a table with one row per method, OOD set and metric.

    Arguments:
        methods  the methods, comma-separated, such as "mcm,energy[scale=1]", and groups of them: "core" (the nine that
                 most papers compare), "zero-shot", "post-hoc", "trained", "few-shot", "test-time", "all"; or a class of
                 Method, or an instance with its hyper-parameters, which may be defined in a notebook; or several of
                 these
        id       the ID set or benchmark: a name of the catalogue, or "folder:PATH"
        options  options of `oodbench run` with underscores: ood, encoder, data, settings, seed, device, limit, results
                 and so on (the fields of oodbench.pipeline.request.RunRequest, whose `out` is `results` here), and
                 `tracking_uri`, the MLflow server; by default nothing is sent to MLflow

    Returns:
        A DataFrame with the columns method, label, benchmark, encoder, id, ood, group, metric, value, n_id, n_ood,
        partial and digest. `value` is a fraction; `n_id` and `n_ood` are numbers of images. A method that failed has
        one row with the metric "failed" and the value NaN. ID accuracy has an empty `ood`.

    Raises:
        UserError  for unknown options, bad values and missing data; it lists all problems
    """
    from oodbench.api import run_and_record
    from oodbench.pipeline.request import request_from
    from oodbench.results import frame

    given: dict[str, Any] = {**options}
    if "out" in given:
        if "results" in given:
            raise UserError("out= is the old name of results=; give only results=")
        warnings.warn("oodbench.run(out=...) is deprecated; write results=...", DeprecationWarning, stacklevel=2)
    if "results" in given:
        given["out"] = given.pop("results")
    tracking_uri = given.pop("tracking_uri", "")
    outcome = run_and_record(request_from(methods=methods, id=id, **given), tracking_uri=tracking_uri)
    return frame(outcome.results)


def __getattr__(name: str) -> Any:
    """Import Detector and report when they are first used; report is a package that can be called."""
    if name == "Detector":
        from oodbench.detector.detector import Detector

        return Detector
    if name == "report":
        return importlib.import_module("oodbench.report")
    raise AttributeError(f"module 'oodbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
