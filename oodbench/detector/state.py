"""The state that a method's fit() returned as JSON and named tensors, without pickle."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.errors import Unpackable

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Packed:
    """A state: `tree` is JSON, whose leaves may name tensors."""

    tree: Any
    tensors: dict[str, Tensor]


def pack(value: Any, method: type) -> Packed:
    """Pack plain values, tensors, arrays, and containers or dataclasses of these; raise Unpackable otherwise."""
    tensors: dict[str, Tensor] = {}
    return Packed(_packed(value, vars(sys.modules[method.__module__]), tensors), tensors)


def unpack(packed: Packed, method: type, device: str) -> Any:
    """Return the value, its tensors on the device; dataclasses are looked up by name in the method's module."""
    return _unpacked(packed.tree, vars(sys.modules[method.__module__]), packed.tensors, device)


def _packed(value: Any, module: Mapping[str, Any], tensors: dict[str, Tensor]) -> Any:
    import torch

    if type(value) in _PLAIN:
        return {"plain": value}
    if type(value) is torch.Tensor and value.layout is torch.strided and not value.is_quantized:
        name = str(len(tensors))
        tensors[name] = (
            value.detach().cpu().contiguous().clone()
        )  # a copy of each, because safetensors refuses shared memory
        return {"tensor": name}
    if (isinstance(value, np.generic) or type(value) is np.ndarray) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        return {"array": _packed(torch.from_numpy(array.copy()), module, tensors), "scalar": array.ndim == 0}
    if type(value) in (tuple, list):
        kind = type(value).__name__
        if all(type(item) in _PLAIN for item in value):
            return {kind: list(value), "flat": True}
        return {kind: [_packed(item, module, tensors) for item in value], "flat": False}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(item, module, tensors) for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and module.get(type(value).__name__) is type(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        parts = {name: _packed(field, module, tensors) for name, field in fields.items()}
        return {"dataclass": type(value).__name__, "fields": parts}
    raise Unpackable(type(value).__name__)


def _unpacked(tree: Any, module: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> Any:
    def unpacked(part: Any) -> Any:
        return _unpacked(part, module, tensors, device)

    if "plain" in tree:
        return tree["plain"]
    if "tensor" in tree:
        return tensors[tree["tensor"]].to(device)
    if "array" in tree:
        array = _unpacked(tree["array"], module, tensors, "cpu").numpy()
        return array[()] if tree["scalar"] else array
    for kind in (tuple, list):
        if kind.__name__ in tree:
            parts = tree[kind.__name__]
            return kind(parts if tree["flat"] else map(unpacked, parts))
    if "dict" in tree:
        return {key: unpacked(part) for key, part in tree["dict"].items()}
    cls = module[tree["dataclass"]]
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise KeyError(tree["dataclass"])
    return cls(**{name: unpacked(part) for name, part in tree["fields"].items()})
