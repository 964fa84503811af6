"""Results of test-time adaptation as a run writes them, with values that the tests choose."""

from __future__ import annotations

import dataclasses
from typing import Any

from oodbench.method import Access
from oodbench.results import Result, SetRow
from tests.report.test_report_shapes import ood, row

Values = tuple[float, float, float]  # AUROC, FPR95, FPR95-OOD
NONE = {"auroc": None, "fpr95": None, "fpr95_ood": None}


def part(values: Values | None, n: int = 1000, n_id: int = 500) -> dict[str, Any]:
    """A part of a stream; without values it has only ID or only OOD images."""
    found = dict(zip(NONE, values, strict=True)) if values else NONE
    return {"n": n, "n_id": n_id if values else n, **found}


def on(name: str, values: Values, thousands: tuple[Values | None, ...] = (), **changes: Any) -> SetRow:
    """The row of an OOD set; the first part is the first thousand, the rest has the values of the whole."""
    parts = thousands or (values, values)
    found = [part(v, 200 if number == len(parts) - 1 else 1000) for number, v in enumerate(parts)]
    stream = {"n_id": 1000, "accuracy": 0.66, "first": found[0], "rest": part(values, 200, 60), "thousands": found}
    plain = ood(name, values[0], values[1], stream=stream)
    return dataclasses.replace(plain, fpr95_ood=values[2], **changes)


def stream(
    method: str = "tanl", order: str = "shuffled", seed: int = 0, *sets: SetRow, base: str = "", **changes: Any
) -> Result:
    """A row of a stream of 1,200 images; `protocol` replaces parts of its protocol."""
    protocol = {"order": order, "seed": seed, "batch": 256, "ratio": "all", "reset": "pair", "sees_itself": False}
    protocol |= changes.pop("protocol", {}) | ({"base": base} if base else {})
    sets = sets or (on("sun", (0.98, 0.1, 0.12)), on("dtd", (0.9, 0.3, 0.36)))
    found = row(method, *sets, stream=protocol, access=Access(stream=True).plain())
    return dataclasses.replace(found, **changes)


def shifted(method: str, order: str, seed: int, by: float, **changes: Any) -> Result:
    """A row whose AUROCs are 0.98 and 0.9 plus, whose FPR95s are 0.1 and 0.3, 0.12 and 0.36 minus a number."""
    sets = (on("sun", (0.98 + by, 0.1 - by, 0.12 - by)), on("dtd", (0.9 + by, 0.3 - by, 0.36 - by)))
    return stream(method, order, seed, *sets, **changes)
