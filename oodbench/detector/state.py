"""What a method's fit() returned, as JSON and named tensors: plain values, tensors, and dataclasses of these."""

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
    """`tree` is JSON; its leaves may name tensors."""

    tree: Any
    tensors: dict[str, Tensor]


def pack(value: Any, method: type) -> Packed:
    """Take a value apart. Raises Unpackable for anything that cannot be put together again without running code."""
    tensors: dict[str, Tensor] = {}
    return Packed(_packed(value, vars(sys.modules[method.__module__]), tensors), tensors)


def unpack(packed: Packed, method: type, device: str) -> Any:
    """The value again, its tensors on the device; dataclasses are looked up by name beside the method."""
    return _unpacked(packed.tree, vars(sys.modules[method.__module__]), packed.tensors, device)


def _packed(value: Any, known: Mapping[str, Any], tensors: dict[str, Tensor]) -> Any:
    import torch

    if type(value) in _PLAIN:
        return {"plain": value}
    if type(value) is torch.Tensor and value.layout is torch.strided and not value.is_quantized:
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # tensors that share memory are each written
        return {"tensor": name}
    if (isinstance(value, np.generic) or type(value) is np.ndarray) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        return {"array": _packed(torch.from_numpy(array.copy()), known, tensors), "scalar": array.ndim == 0}
    if type(value) in (tuple, list):
        kind = type(value).__name__
        if all(type(one) in _PLAIN for one in value):
            return {kind: list(value), "flat": True}
        return {kind: [_packed(one, known, tensors) for one in value], "flat": False}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(one, known, tensors) for key, one in value.items()}}
    if dataclasses.is_dataclass(value) and known.get(type(value).__name__) is type(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        parts = {name: _packed(one, known, tensors) for name, one in fields.items()}
        return {"dataclass": type(value).__name__, "fields": parts}
    raise Unpackable(type(value).__name__)


def _unpacked(tree: Any, known: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> Any:
    def again(part: Any) -> Any:
        return _unpacked(part, known, tensors, device)

    if "plain" in tree:
        return tree["plain"]
    if "tensor" in tree:
        return tensors[tree["tensor"]].to(device)
    if "array" in tree:
        array = _unpacked(tree["array"], known, tensors, "cpu").numpy()
        return array[()] if tree["scalar"] else array
    for kind in (tuple, list):
        if kind.__name__ in tree:
            parts = tree[kind.__name__]
            return kind(parts if tree["flat"] else map(again, parts))
    if "dict" in tree:
        return {key: again(part) for key, part in tree["dict"].items()}
    found = known[tree["dataclass"]]
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise KeyError(tree["dataclass"])
    return found(**{name: again(part) for name, part in tree["fields"].items()})
