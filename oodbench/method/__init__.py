"""The interface of a method, for its author: Method and its kinds, Needs, Access, Batch, Task, Encoder.

Names in shapes: b images or pairs, d embedding width, w activation width, k class names, n tokens or prompts.

The names are imported at their first use, because the registry, which is part of this package, must not import torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.errors import Undeclared, UserError
    from oodbench.method.access import Access
    from oodbench.method.batch import Batch, Needs
    from oodbench.method.encoder import Captioner, Encoder, TextTower
    from oodbench.method.method import (
        FewShotMethod,
        Method,
        TrainedMethod,
        check_predictions,
        check_scores,
        logsumexp,
    )
    from oodbench.method.stream import StreamMethod
    from oodbench.method.task import MethodResources, Sources, Task
    from oodbench.method.training import Optimiser, Pairs, Weights
    from oodbench.method.views import View

_MODULES = {
    "access": "Access",
    "batch": "Batch Needs Undeclared",
    "encoder": "Captioner Encoder TextTower",
    "method": "FewShotMethod Method TrainedMethod UserError check_predictions check_scores logsumexp",
    "stream": "StreamMethod",
    "task": "MethodResources Sources Task",
    "training": "Optimiser Pairs Weights",
    "views": "View",
}
_OLD_NAMES = {"Own": "MethodResources"}


def templates(name: str) -> tuple[str, ...]:
    """Return the templates of a prompt set.

    Arguments:
        name  name of a prompt set, a file with one template a line, or one template with `{}` in it
    Returns:
        Templates, each with `{}` for the class name.
    """
    from oodbench.data import prompts

    return prompts.templates(name).lines


if not TYPE_CHECKING:  # mypy then reports a name that does not exist

    def __getattr__(name: str) -> Any:
        """Import a name of the interface from its module."""
        if name in _OLD_NAMES:
            new = _OLD_NAMES[name]
            warnings.warn(f"oodbench.method.{name} is now oodbench.method.{new}", DeprecationWarning, stacklevel=2)
            name = new
        for module, names in _MODULES.items():
            if name in names.split():
                return getattr(importlib.import_module(f"oodbench.method.{module}"), name)
        raise AttributeError(f"module 'oodbench.method' has no attribute '{name}'")


__all__ = [
    "Access",
    "Batch",
    "Captioner",
    "Encoder",
    "FewShotMethod",
    "Method",
    "MethodResources",
    "Needs",
    "Optimiser",
    "Pairs",
    "Sources",
    "StreamMethod",
    "Task",
    "TextTower",
    "TrainedMethod",
    "Undeclared",
    "UserError",
    "View",
    "Weights",
    "check_predictions",
    "check_scores",
    "logsumexp",
    "templates",
]
