"""Notes on results at chance: if the encoder does not know the classes, every number of a table is meaningless."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from oodbench.report.tables.table import TableLine
from oodbench.results import Result

_UNKNOWN = "the encoder does not seem to know these classes"
_ERRORS = 3  # standard errors above chance that an accuracy must reach
_IN_NOTE = 4  # names in a note


def chance_limit(classes: int, images: int) -> float:
    """Return the ID accuracy below which a result is at chance: max(2/K, 1/K + 3 standard errors), at most 1.

    2/K is capped at one half, because no accuracy is twice the chance of two classes.
    """
    chance = 1 / classes
    return min(max(_twice_chance(classes), chance + _ERRORS * math.sqrt(chance * (1 - chance) / images)), 1.0)


def _twice_chance(classes: int) -> float:
    return min(2 / classes, 0.5)


def at_chance(row: Result) -> bool:
    """Return whether the ID accuracy of a result is no better than guessing; False for a result without one."""
    classes = row.classes.get("count")
    if row.id.accuracy is None or row.id.n < 1 or not isinstance(classes, int) or classes < 2:
        return False
    return row.id.accuracy < chance_limit(classes, row.id.n)


def warnings(lines: Sequence[TableLine], sets: Sequence[str]) -> Iterator[str]:
    """Yield the warnings of the results of some lines, and the notes of `chance_notes`."""
    found = ((line.name, warning) for line in lines for row in line.results for warning in row.warnings)
    yield from dict.fromkeys(f"{name}: {warning}." for name, warning in found)
    yield from chance_notes(lines, sets)


def chance_notes(lines: Sequence[TableLine], sets: Sequence[str]) -> Iterator[str]:
    """Yield notes on lines with ID accuracy at chance, and on lines with AUROC below 50 %.

    AUROC counts as below 50 % if the upper bound of its interval is; `sets` are the OOD sets shown, () for all.
    """
    finished = [(line.name, row) for line in lines for row in line.results if row.status == "ok"]
    low = [(name, row) for name, row in finished if at_chance(row)]
    if low:
        best = max((row for _, row in low), key=lambda row: row.id.accuracy or 0)
        classes, n = int(best.classes["count"]), best.id.n
        everyone = len(low) == len([row for _, row in finished if row.id.accuracy is not None])
        whose = "ID accuracy" if everyone else f"ID accuracy of {_listed([name for name, _ in low])}"
        few_images = chance_limit(classes, n) > _twice_chance(classes)
        few = " or there are too few images to tell" if few_images else ""
        yield (
            f"{whose} is at most {100 * (best.id.accuracy or 0):.2f} %, and guessing among {classes:,} classes gives "
            f"{100 / classes:.2f} % (limit for {n:,} images: {100 * chance_limit(classes, n):.2f} %): {_UNKNOWN}{few}; "
            "the other numbers then say nothing about the methods."
        )
    reversed_sets = [
        (name, row, one.title)
        for name, row in finished
        for one in row.ood
        if (not sets or one.dataset in sets) and "auroc" in one.intervals and one.intervals["auroc"][1] < 0.5
    ]
    if reversed_sets:
        measured = all(row.id.accuracy is not None and row.classes.get("count") != 1 for _, row, _ in reversed_sets)
        knows = measured and not any(at_chance(row) for _, row, _ in reversed_sets)
        streams = any(row.stream for _, row, _ in reversed_sets)
        if any(row.imported for _, row, _ in reversed_sets):
            why = f"the scores of these sets may have the other sign in their files, or {_UNKNOWN}"
        elif streams:
            why = (
                "adaptation to a stream can reverse the scores (for example, a queue that is long compared with the "
                "stream), or the encoder does not know these classes"
            )
        elif knows:
            why = (
                "although the ID accuracy is above chance: these OOD sets look more like the classes than ID images do"
            )
        else:
            why = _UNKNOWN if measured else "the encoder may not know these classes (there is no ID accuracy to tell)"
        pairs = _listed([f"{name} on {title}" for name, _, title in reversed_sets])
        yield f"AUROC below 50 % with its whole interval, so that OOD images score above ID images ({pairs}): {why}."


def _listed(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _IN_NOTE} more" if len(distinct) > _IN_NOTE else ""
    return ", ".join(distinct[:_IN_NOTE]) + more
