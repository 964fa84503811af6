"""How far a run on the embedded benchmark deviates from the project's own rows, which README prints."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from oodbench.data.paths import reference
from oodbench.results import Result, rows

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
