"""All that the author of a method reads: Method, TrainedMethod, Needs, Batch, Task, Encoder.

Legend of shapes: b images or pairs, d embedding width, w activation width, k class names, n tokens.

The registry lies beside it and loads no torch: these names are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.errors import Undeclared
    from oodbench.method.batch import Batch, Needs
    from oodbench.method.encoder import Captioner, Encoder, TextTower
    from oodbench.method.method import Method, check_predictions, check_scores, logsumexp
    from oodbench.method.task import MethodResources, Sources, Task
    from oodbench.method.trained import Optimiser, Pairs, TrainedMethod, Weights

_HOMES = {
    "batch": "Batch Needs Undeclared",
    "encoder": "Captioner Encoder TextTower",
    "method": "Method check_predictions check_scores logsumexp",
    "task": "MethodResources Sources Task",
    "trained": "Optimiser Pairs TrainedMethod Weights",
}


def templates(name: str) -> tuple[str, ...]:
    """The lines of a prompt set, of a file of templates, or the one template itself."""
    from oodbench.data import prompts

    return prompts.templates(name).lines


if not TYPE_CHECKING:  # to mypy, a name that is not there is an error

    def __getattr__(name: str) -> Any:
        """A name of the interface, from its module."""
        for module, names in _HOMES.items():
            if name in names.split():
                return getattr(importlib.import_module(f"oodbench.method.{module}"), name)
        raise AttributeError(f"module 'oodbench.method' has no attribute '{name}'")


__all__ = [
    "Batch",
    "Captioner",
    "Encoder",
    "Method",
    "MethodResources",
    "Needs",
    "Optimiser",
    "Pairs",
    "Sources",
    "Task",
    "TextTower",
    "TrainedMethod",
    "Undeclared",
    "Weights",
    "check_predictions",
    "check_scores",
    "logsumexp",
    "templates",
]
