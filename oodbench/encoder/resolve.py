"""Resolving an encoder: architecture, preprocessing and weights of a spec, checked against each other -> EncoderCard.

A resolved card is kept in the store for as long as the weights file keeps its size and time, so that a later run needs
neither torch nor open_clip to know which encoder it talks about.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import EMBEDDED, EncoderCard, EncoderSpec, card_from
from oodbench.store import Store, file_digest

if TYPE_CHECKING:
    from oodbench.encoder.checkpoint import StateDict


@dataclass(frozen=True)
class Resolved:
    """A card and the file that holds its weights on this machine."""

    card: EncoderCard
    path: Path


def resolve(spec: EncoderSpec, resize: str | None, store: Store) -> Resolved:
    """The card of a spec. `resize` overrides the filter ("bicubic", "bilinear") that the weights name.

    UserError when the architecture or tag is unknown, the weights cannot be read or fetched, or do not fit.
    """
    known = {"spec": spec.text, "resize": resize, "open_clip": version("open_clip_torch")}
    path = _embedded() if spec.text == EMBEDDED else spec.path or _remembered(store, known)
    if path is not None:
        entry = store.find("encoder", {**known, **_stamp(path)})
        if entry is not None:
            return Resolved(card_from(entry.facts["card"]), path)
    card, path = _examine(spec, resize)
    if spec.path is None:
        store.write("encoder-file", known, {}, {"path": str(path)})
    store.write("encoder", {**known, **_stamp(path)}, {}, {"card": dataclasses.asdict(card)})
    return Resolved(card, path)


def _embedded() -> Path:
    return Path(__file__).parent.parent / "glyphs" / "encoder.safetensors"


def _stamp(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def _remembered(store: Store, known: dict[str, Any]) -> Path | None:
    entry = store.find("encoder-file", known)
    path = Path(entry.facts["path"]) if entry else None
    if path is not None and not path.is_file():
        store.forget("encoder-file", known)
        return None
    return path


def _examine(spec: EncoderSpec, resize: str | None) -> tuple[EncoderCard, Path]:
    """Build the model without storage, compare it with the weights, and write down what was found."""
    import torch

    from oodbench.encoder import build
    from oodbench.encoder.checkpoint import fill, read
    from oodbench.encoder.tower import Tower

    plan = build.plan(spec)
    if spec.text == EMBEDDED:
        from oodbench.glyphs import weights

        state: StateDict = weights.state_dict()
    else:
        state = read(plan.path)
    model = build.model(plan, torch.device("meta"))
    fill(model, state, f"checkpoint {plan.path}")
    tower = Tower(model.visual)
    embed_dim = int(plan.config["embed_dim"])
    preprocess = {**plan.preprocess, **({"interpolation": resize} if resize else {})}
    size = model.visual.image_size
    card = EncoderCard(
        name=spec.text,
        architecture=plan.architecture,
        tag=spec.tag,
        weights=file_digest(plan.path),
        config=json.loads(json.dumps(plan.config)),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        resize_mode=preprocess["resize_mode"],
        interpolation=preprocess["interpolation"],
        fill_color=preprocess["fill_color"],
        tokenizer=plan.tokenizer,
        embed_dim=embed_dim,
        activation=tower.kind,
        width=tower.width or embed_dim,
        scale=float(state["logit_scale"].float().exp()),
        notes=plan.notes,
    )
    return card, plan.path

