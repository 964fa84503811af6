"""Sections: training-free methods and trained ones in blocks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oodbench.report.tables.table import Line

FREE, TRAINED = "Training-free", "Trained"


def by_training(lines: Sequence[Line]) -> list[Line]:
    """The lines in two sections, in their order; a row without weights counts as its method says it should."""
    from oodbench.method import registry

    known = registry.methods()
    trained = {name for name, info in known.items() if "WEIGHTS" in info.needs}
    divided = [
        replace(line, section=TRAINED if line.result.weights or line.result.method in trained else FREE)
        for line in lines
        if line.result
    ]
    return [line for section in (FREE, TRAINED) for line in divided if line.section == section]
