"""The header of a file of weights: all that they depend on, and what was seen of the training."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.pipeline import weights
from oodbench.provenance import commit, versions
from oodbench.training.plan import TrainPlan


def written(out: Path, identity: dict[str, Any], done: int) -> bool:
    """Whether the file holds what this training gave so far."""
    try:
        found = weights.recipe_of(out)
    except UserError:
        return False
    return found.get("training") == json.loads(json.dumps(identity)) and found.get("steps") == done


def recipe(plan: TrainPlan, identity: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """What the header says; `made` is what only the end of a training knows."""
    captions = dict(identity["captions"])
    return {
        "method": plan.job.info.name,
        "parameters": plan.job.parameters,
        "encoder": plan.encoder.card.row(),
        "source": plan.job.info.source,
        "captions": {"name": captions.pop("source"), **captions},
        "augment": plan.request.augment,
        "optimiser": dataclasses.asdict(plan.optimiser),
        "batch": plan.optimiser.batch,
        "epochs": plan.optimiser.epochs if plan.request.steps is None else None,
        "steps": made["done"],
        "schedule": identity["steps"],
        "seed": plan.request.seed,
        "precision": plan.request.compute,
        "chunk": made["chunk"],
        "processes": made["world"],
        "loss": made["loss"],
        "training": identity,
        "versions": versions(),
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
