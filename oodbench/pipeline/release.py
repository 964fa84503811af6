"""Weights as a method's released code saves them: translated to ours, once, and written from ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.resolve import Resolved
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.weights import WeightsFile, read
from oodbench.storage.files import whole
from oodbench.storage.store import Store, default_root

if TYPE_CHECKING:
    from oodbench.method import TrainedMethod


def translated(job: Job, file: WeightsFile, encoder: Resolved, store: Store) -> Mapping[str, Any]:
    """Arrays of a release under our names, translated by the method once; UserError says why it does not fit."""
    inputs = {
        "file": file.digest,
        "encoder": encoder.card.identity,
        "source": job.info.source,
        "trained": {name: job.parameters[name] for name in job.info.trained},
    }
    entry = store.find("weights", inputs)
    if entry is None:
        from oodbench.encoder import checkpoint
        from oodbench.encoder.frozen import frozen

        file.check()
        state = checkpoint.read(file.path)
        method: TrainedMethod[Any] = job.made()  # type: ignore[assignment]
        try:
            tensors = method.translate(state, frozen(encoder))
        except ValueError as error:
            raise UserError(f"weights {file.path}: {error}") from error
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        entry = store.write("weights", inputs, arrays, {"file": file.path.name})
    return {name: entry.array(name) for name in entry.names}


def write(file: WeightsFile, path: Path, encoder: str, plugins: Sequence[Path] = ()) -> None:
    """Write our weights as the method's released code saves them. UserError when they are not ours, or it has none."""
    import torch

    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.frozen import frozen
    from oodbench.encoder.openclip import OpenClip
    from oodbench.encoder.resolve import resolve
    from oodbench.method import TrainedMethod, Weights

    if not file.recipe:
        raise UserError(f"{file.path} was not written by oodbench train")
    resolved = resolve(parse_encoder(encoder or file.recipe["encoder"]["name"]), None, Store(default_root()))
    info = registry.method_info(file.recipe["method"], registry.methods(plugins))
    known = {name: value for name, value in file.recipe["parameters"].items() if name in info.defaults()}
    if problem := file.misfit(resolved.card):
        raise UserError(problem)
    method = registry.make(info, registry.parameters(info, known))
    assert isinstance(method, TrainedMethod)
    tensors = read(file.path)
    try:
        if any(name.endswith(".rows") for name in tensors):  # packed: the rest is the encoder's
            model = OpenClip(resolved, "cpu", "fp32")
            tensors = dict(Weights(tensors, file.recipe).load(method.module(model)).state_dict())
        state = method.release(tensors, frozen(resolved))
    except ValueError as error:
        raise UserError(f"weights {file.path}: {error}") from error
    try:
        with whole(path) as partial:
            torch.save({"name": file.path.stem, "state_dict": state}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
