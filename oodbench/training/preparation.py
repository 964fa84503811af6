"""What a training needs before its first step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.pipeline.text_embeddings import WordParts
from oodbench.training.crops import Crops
from oodbench.training.material import Encoders, Material, Tell, add_texts
from oodbench.training.plan import TrainPlan
from oodbench.training.processes import World
from oodbench.training.schedule import Schedule


def try_out(plan: TrainPlan, load: Encoders) -> None:
    """Embed two pairs, so that hyper-parameters that do not fit are told before a corpus is embedded."""
    import torch

    from oodbench.method import Pairs

    encoder = load()
    embeddings = torch.ones(2, plan.encoder.card.embed_dim, device=encoder.device)
    try:
        module = plan.method.module(encoder).to(encoder.device)
        with torch.no_grad():
            pairs = Pairs(embeddings, ("a", "b"), torch.arange(2), 0, plan.request.seed, 2)
            plan.method.embed(module, plan.method.inputs(pairs, encoder))
    except ValueError as error:
        raise UserError(f"{plan.job.label}: {error}") from error


def schedule(plan: TrainPlan, material: Material) -> Schedule:
    """Which pairs each step reads, and its learning rate. UserError for fewer pairs than a batch has."""
    batch = plan.optimiser.batch
    if len(material) < batch:
        raise UserError(
            f"the corpus {plan.request.captions} has {len(material):,} pairs, fewer than one batch of {batch:,}; "
            f"use a smaller one, as in --batch {max(1, len(material) // 2)}"
        )
    steps = plan.request.steps or plan.optimiser.epochs * (len(material) // batch)
    if plan.optimiser.warmup >= steps:
        raise UserError(f"--warmup {plan.optimiser.warmup} leaves none of {steps} steps for learning; use less")
    return Schedule(plan.optimiser, len(material), steps, plan.request.seed)


def captions(plan: TrainPlan, material: Material) -> dict[str, Any]:
    """What identifies the corpus, for the recipe."""
    return {
        "source": Path(plan.request.captions).name,
        "pairs": len(material),
        "images": material.distinct,
        "digest": material.digest,
        "skipped": len(material.skipped),
    }


def embed_texts(plan: TrainPlan, material: Material, world: World, load: Encoders, tell: Tell) -> None:
    """Add the captions' embeddings, which one process makes and the others read."""
    kept = WordParts(plan.encoder.card.identity, plan.request.compute, plan.store)
    if world.first:
        add_texts(material, kept, load, tell)
    world.wait()
    if not world.first:
        add_texts(material, kept, load, tell)


def crops(plan: TrainPlan, material: Material, world: World) -> Crops | None:
    """Random crops of the images, with --augment."""
    if not plan.request.augment:
        return None
    workers = plan.request.workers or min(max((os.cpu_count() or 1) // world.size, 1), 16)
    return Crops(material, plan.encoder.card.size, plan.request.seed, workers)
