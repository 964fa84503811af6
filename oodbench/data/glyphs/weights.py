"""The small CLIP encoder of the embedded benchmark: configuration, preprocessing and weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

SIZE = 32
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
FILE = Path(__file__).parent / "encoder.safetensors"
EMBEDDING = "token_embedding.weight"
TOKENS = "token_embedding.trained"  # ids of the rows of EMBEDDING that the file stores
_STD = 0.02  # standard deviation of open_clip's initial token embeddings


def config() -> dict[str, Any]:
    """Return the keyword arguments of `open_clip.model.CLIP`, in a new dictionary."""
    loaded: dict[str, Any] = json.loads(_config_text())
    return loaded


@lru_cache(maxsize=1)
def _config_text() -> str:
    return (Path(__file__).parent / "encoder.json").read_text(encoding="utf-8")


def header(file: Path = FILE) -> dict[str, str]:
    """Return the metadata of the weight file, which describe its training."""
    with safe_open(file, framework="numpy") as stored:
        return dict(stored.metadata())


def untrained_rows(seed: int, rows: int, width: int) -> npt.NDArray[np.float32]:
    """Return token embeddings [rows, width] before training; the same on every machine and version of torch."""
    # Sums of uniform bits, because NumPy's stream of normal numbers may change between releases.
    bits = np.random.Philox(key=seed).random_raw(rows * width).view(np.uint16).reshape(rows, width, 4)
    total = bits.astype(np.float32).sum(-1) / np.float32(65536) - np.float32(2)
    rounded = (total * np.float32(_STD * 3**0.5)).astype(np.float16)
    return np.asarray(rounded, np.float32)


def state_dict(file: Path = FILE) -> dict[str, torch.Tensor]:
    """Return all weights in float32, to be loaded strictly into `open_clip.model.CLIP(**config())`."""
    with safe_open(file, framework="pt") as stored:
        seed = int(stored.metadata()["seed"])
        state: dict[str, torch.Tensor] = {key: stored.get_tensor(key) for key in stored.keys()}
    tokens = state.pop(TOKENS).long()
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    rows = torch.from_numpy(untrained_rows(seed, config()["text_cfg"]["vocab_size"], state[EMBEDDING].shape[1]))
    rows[tokens] = state[EMBEDDING]
    return state | {EMBEDDING: rows}
