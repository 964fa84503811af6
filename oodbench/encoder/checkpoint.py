"""Read checkpoints without running their code, and compare them with an architecture."""

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

from oodbench.encoder.card import EMBEDDED, weight_files, weights_digest
from oodbench.encoder.pretrained import error_text
from oodbench.encoder.transformers_models import open_clip_names
from oodbench.errors import UserError

# OpenAI's archives hold the first three next to the weights; the last comes from an older transformers.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
_INNER = ("state_dict", "model_state_dict", "model")  # the names under which training loops save the weights
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and torch.compile
_POSITIONS = ("positional_embedding", "pos_embed")
StateDict = dict[str, Tensor]


def load_weights(name: str, path: Path, digest: str = "") -> StateDict:
    """Return the weights of an encoder, from a file or embedded. Raise UserError if the sha256 differs."""
    if digest and weights_digest(path) != digest:
        raise UserError(f"checkpoint {path} is not the one that encoder '{name}' was found with; run again")
    if name == EMBEDDED:
        from oodbench.data.glyphs import weights

        return weights.state_dict()
    files = weight_files(path)
    parts = [read_checkpoint(file) for file in files[1:] or files]  # the first of several files is their index
    return {key: tensor for part in parts for key, tensor in part.items()}


def read_checkpoint(path: Path) -> StateDict:
    """Return the state dict in a safetensors or torch file; the name of the file does not matter.

    It may be inside a training loop's checkpoint (`state_dict`, `model_state_dict`, `model`). The prefixes of
    DataParallel and torch.compile are removed. Raises UserError if the file has another format or no weights.
    """
    content: Any = _safetensors(path) if _kind(path) == "safetensors" else _torch(path)
    state = _inner(path, content)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dictionary of weights")
    tensors = [(_bare(str(k)), v) for k, v in state.items() if isinstance(v, Tensor)]
    if not tensors:
        names = ", ".join(map(str, list(content)[:5])) or "nothing"
        below = " nor ".join(f"'{key}'" for key in _INNER)
        raise UserError(f"checkpoint {path} holds no weights, neither at the top level nor in {below}; it has: {names}")
    found = dict(tensors)
    if len(found) != len(tensors):
        raise UserError(f"checkpoint {path} holds weights twice, with and without {' or '.join(_WRAPPERS)}")
    return {k: v for k, v in found.items() if k not in _NOT_WEIGHTS}


def _inner(path: Path, state: Any) -> Any:
    """Return the weights in the checkpoint of a training loop."""
    while isinstance(state, dict) and not any(isinstance(value, Tensor) for value in state.values()):
        found = [key for key in _INNER if isinstance(state.get(key), dict) and state[key]]
        if len(found) > 1:
            raise UserError(f"checkpoint {path} holds several sets of weights, {' and '.join(found)}; save only one")
        if not found:
            break
        state = state[found[0]]
    return state


def _bare(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers, which may be anywhere in the name."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")


def _kind(path: Path) -> str:
    """Return `safetensors` or `torch`, by the first bytes. Raise UserError for any other file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if not size:
        raise UserError(f"checkpoint {path} is empty")
    head = start.lstrip()[:15].lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"checkpoint {path} is a web page: the download perhaps needs a login; fetch it again")
    if head.startswith(b"version https:/"):
        raise UserError(f"checkpoint {path} is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        raise UserError(f"checkpoint {path} is compressed; unpack it first")
    header = int.from_bytes(start[:8], "little")
    return "safetensors" if start[8:9] == b"{" and 2 <= header <= 100_000_000 else "torch"


def match_names(model: Any, state: StateDict, what: str) -> StateDict:
    """Return the weights under the parameter names of `model`. Raise UserError if the architecture differs.

    open_clip would interpolate position embeddings of another resolution without a warning; here this is an error.
    """
    try:
        state = dict(open_clip.convert.convert_state_dict(model, open_clip_names(dict(state))))
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = open_clip.model.convert_to_custom_text_state_dict(state)
    except (RuntimeError, KeyError, AttributeError) as error:  # open_clip's conversion of MobileCLIP's first files
        raise UserError(f"{what} is of another architecture: {error_text(error)}") from error
    own: StateDict = model.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in own and key in state and state[key].numel() == 1:
            state[key] = state[key].reshape(own[key].shape)
    for key, value in own.items():
        if key.endswith("num_batches_tracked") or key == "logit_bias":  # used only in training and by SigLIP's loss
            state.setdefault(key, torch.zeros(value.shape, dtype=value.dtype))
    if difference := _difference(own, state):
        raise UserError(f"{what} is of another architecture: {difference}")
    return state


def _difference(own: StateDict, state: StateDict) -> str:
    """Return how the names and shapes of two state dicts differ, or ""."""
    missing = [key for key in own if key not in state]
    more = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    parts = [f"it lacks {_first(missing)}"] if missing else []
    parts += [f"it also has {_first(more)}"] if more else []
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
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint {path} cannot be read as safetensors: {error_text(error)}") from error


def _torch(path: Path) -> Any:
    archive = zipfile.is_zipfile(path)
    if archive and _is_torchscript(path):
        target = path.with_name(f"{path.stem}-weights.pt")
        code = (
            f'import torch; torch.save(torch.jit.load({json.dumps(str(path))}, map_location="cpu").state_dict(), '
            f"{json.dumps(str(target))})"
        )
        raise UserError(
            f"checkpoint {path} is a TorchScript archive, which is code; if you trust it, convert it to weights with\n"
            f"  python -c {shlex.quote(code)}"
        )
    try:
        if archive and path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # with a path, torch.load would choose the format by suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything for other files
        if archive and not _has_pickle(path):
            raise UserError(f"checkpoint {path} is a zip archive of other files; unpack it first") from error
        objects = re.search(r"GLOBAL ([\w.]+)", str(error))
        if objects:
            detail = f"it holds Python objects ({objects[1]}), which are code; save only its state_dict"
        elif isinstance(error, PermissionError):
            detail = "permission denied"
        else:
            detail = "it is truncated, or neither a torch nor a safetensors file"
        raise UserError(f"checkpoint {path} cannot be read: {detail}") from error


def _is_torchscript(path: Path) -> bool:
    return any("/code/" in name or name.endswith("constants.pkl") for name in _members(path))


def _has_pickle(path: Path) -> bool:
    names = _members(path)
    return not names or any(name.endswith("data.pkl") for name in names)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []  # torch.load reports the error
