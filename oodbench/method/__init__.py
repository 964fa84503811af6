"""All that the author of a method reads: Method, TrainedMethod, Needs, Batch, Task, Encoder.

Legend of shapes: b images or pairs, d embedding width, w activation width, k class names, n tokens.
"""

from oodbench.method.batch import Batch, Needs, Undeclared
from oodbench.method.encoder import Captioner, Encoder, TextTower
from oodbench.method.scorer import Method, check_predictions, check_scores, logsumexp
from oodbench.method.task import Own, Sources, Task
from oodbench.method.trained import Optimiser, Pairs, TrainedMethod, Weights


def templates(name: str) -> tuple[str, ...]:
    """The lines of a prompt set, of a file of templates, or the one template itself."""
    from oodbench import prompts

    return prompts.templates(name).lines


__all__ = [
    "Batch",
    "Captioner",
    "Encoder",
    "Method",
    "Needs",
    "Optimiser",
    "Own",
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
