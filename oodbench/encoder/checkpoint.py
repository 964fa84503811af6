"""Checkpoints: read without running code in them, checked against an architecture before anything else is done."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from oodbench.errors import UserError

# OpenAI's archives carry these beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
StateDict = dict[str, Tensor]


def read(path: Path) -> StateDict:
    """The state dict of a .safetensors or torch file, with `state_dict` unpacked and `module.` stripped."""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if _is_torchscript(path):
        raise UserError(
            f"checkpoint {path} is a TorchScript archive, which is code; turn it into weights with\n"
            f"  python -c \"import torch; torch.save(torch.jit.load('{path.name}', map_location='cpu').state_dict(), "
            f"'{path.stem}-weights.pt')\""
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"checkpoint {path} cannot be read as weights alone: {reason}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not state:
        raise UserError(f"checkpoint {path} holds {type(state).__name__}, not a dictionary of weights")
    weights = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    return {k: v for k, v in weights.items() if k not in _NOT_WEIGHTS}


def fill(model: Any, state: StateDict, what: str) -> None:
    """Load weights into a model, strictly. On a model of the meta device this only compares keys and shapes.

    open_clip would interpolate position embeddings of another resolution in silence; here that is an error.
    """
    for key in ("positional_embedding", "visual.positional_embedding", "text.positional_embedding"):
        own = dict(model.named_parameters()).get(key)
        if own is not None and key in state and own.shape != state[key].shape:
            raise UserError(
                f"{what} is of another architecture: {key} is {list(state[key].shape)}, not {list(own.shape)}"
            )
    state = dict(state)
    try:
        state = open_clip.convert.convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = open_clip.model.convert_to_custom_text_state_dict(state)
        for key in ("logit_scale", "logit_bias"):
            if key in state and getattr(model, key, None) is not None:
                state[key] = state[key].reshape(getattr(model, key).shape)
        if getattr(model, "logit_bias", None) is not None:
            state.setdefault("logit_bias", torch.zeros_like(state["logit_scale"]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no-op.*")  # the meta device takes no values: that is the use
            model.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = next((line for line in lines[1:] if "key(s)" in line or "mismatch" in line), lines[0] if lines else "")
        raise UserError(f"{what} is of another architecture: {detail[:300]}") from error


def _safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {k.removeprefix("module."): v for k, v in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
