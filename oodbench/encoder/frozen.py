"""The encoder's own weights under the names of its model, for comparing a checkpoint that holds them too."""

from __future__ import annotations

import torch

from oodbench.encoder import build, checkpoint
from oodbench.encoder.checkpoint import StateDict
from oodbench.encoder.resolve import Resolved


def frozen(resolved: Resolved) -> StateDict:
    """State dict as the model has it; no model is built in memory."""
    model = build.model(resolved.card, torch.device("meta"))
    state = checkpoint.weights(resolved.card.name, resolved.path, resolved.card.weights)
    return checkpoint.fit(model, state, f"checkpoint {resolved.path}")
