"""Checkpoints: read without running code in them, checked against an architecture before anything else is done."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from oodbench.encoder.card import EMBEDDED
from oodbench.encoder.hub import reason
from oodbench.errors import UserError

# OpenAI's archives carry the first three beside the weights; the last is of an older transformers.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
_POSITIONS = ("positional_embedding", "pos_embed")
StateDict = dict[str, Tensor]


def weights(name: str, path: Path) -> StateDict:
    """The weights of an encoder: those of a file, or the embedded ones."""
    if name == EMBEDDED:
        from oodbench.glyphs import weights

        return weights.state_dict()
    return read(path)


def read(path: Path) -> StateDict:
    """The state dict of a .safetensors or torch file, with `state_dict` unpacked and `module.` stripped."""
    if not path.stat().st_size:
        raise UserError(f"checkpoint {path} is empty")
    state: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds one {type(state).__name__}, not a dictionary of weights")
    found = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if not found:
        held = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise UserError(
            f"checkpoint {path} holds no weights, neither at its top nor below 'state_dict'; it has: {held}"
        )
    return {k: v for k, v in found.items() if k not in _NOT_WEIGHTS}


def fit(model: Any, state: StateDict, what: str) -> StateDict:
    """The weights under the names of `model`, to be loaded strictly; UserError when they are of another architecture.

    open_clip would interpolate position embeddings of another resolution in silence; here that is an error.
    """
    try:
        state = dict(open_clip.convert.convert_state_dict(model, dict(state)))
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = open_clip.model.convert_to_custom_text_state_dict(state)
    except (RuntimeError, KeyError, AttributeError) as error:  # of open_clip's conversion of MobileCLIP's first files
        raise UserError(f"{what} is of another architecture: {reason(error)}") from error
    own: StateDict = model.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in own and key in state and state[key].numel() == 1:
            state[key] = state[key].reshape(own[key].shape)
    for key, value in own.items():
        if key.endswith("num_batches_tracked") or key == "logit_bias":  # training's, and SigLIP's loss's
            state.setdefault(key, torch.zeros(value.shape, dtype=value.dtype))
    if difference := _difference(own, state):
        raise UserError(f"{what} is of another architecture: {difference}")
    return state


def _difference(own: StateDict, state: StateDict) -> str:
    missing = [key for key in own if key not in state]
    more = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    parts = [f"it lacks {_first(missing)}"] if missing else []
    parts += [f"it has {_first(more)} too many"] if more else []
    if shapes:
        positions = all(key.endswith(_POSITIONS) for key in shapes)
        hint = " (another resolution or context length)" if positions else ""
        sizes = f"{list(state[shapes[0]].shape)}, not {list(own[shapes[0]].shape)}"
        parts.append(f"{_first(shapes)} of shape {sizes}{hint}")
    return "; ".join(parts)


def _first(keys: Sequence[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read as safetensors: {reason(error)}") from error


def _torch(path: Path) -> Any:
    archive = zipfile.is_zipfile(path)
    if archive and _is_torchscript(path):
        target = path.with_name(f"{path.stem}-weights.pt")
        code = (
            f'import torch; torch.save(torch.jit.load({json.dumps(str(path))}, map_location="cpu").state_dict(), '
            f"{json.dumps(str(target))})"
        )
        raise UserError(
            f"checkpoint {path} is a TorchScript archive, which is code; if you trust it, turn it into weights with\n"
            f"  python -c {shlex.quote(code)}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a file that is no checkpoint fails anywhere in the unpickler
        objects = re.search(r"GLOBAL ([\w.]+)", str(error))
        if objects:
            detail = f"it holds Python objects ({objects[1]}), which are code; save its state_dict alone"
        elif isinstance(error, PermissionError):
            detail = "permission denied"
        else:
            detail = "it is cut short, or no torch file"
        raise UserError(f"checkpoint {path} cannot be read: {detail}") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # torch.load says what is wrong
