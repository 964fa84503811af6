"""Text banks: the class vectors of a prompt set, encoded once per encoder, prompts and class names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench import prompts
from oodbench.plan import Plan

if TYPE_CHECKING:
    from oodbench.encoder.openclip import OpenClip

ENGINE = 1  # raise when encoding gives other numbers than before


def text_bank(plan: Plan, templates: str, encoder: Callable[[], OpenClip]) -> npt.NDArray[np.float32]:
    """Unit class vectors [k d] under a prompt set: encoded once per encoder, prompts and class names."""
    lines = prompts.templates(templates)
    inputs = {
        "engine": ENGINE,
        "encoder": plan.card.identity,
        "precision": plan.request.precision,
        "templates": lines.digest,
        "classes": plan.classes.digest,
    }
    entry = plan.store.find("text", inputs)
    if entry is None:
        import torch

        total = None
        with torch.no_grad():
            for template in lines.lines:
                encoded = encoder().text([template.replace("{}", name) for name in plan.classes.lines])
                unit = torch.nn.functional.normalize(encoded, dim=-1)
                total = unit if total is None else total + unit
            assert total is not None
            bank = torch.nn.functional.normalize(total, dim=-1).cpu().numpy()
        entry = plan.store.write(
            "text", inputs, {"text": bank}, {"templates": lines.name, "classes": plan.classes.name}
        )
    return np.array(entry.array("text"))
