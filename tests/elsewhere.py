"""A second device without the hardware: tensors say they are on `lazy:0`, compute on the CPU, and meet no CPU tensor.

This checks the devices of tensors as a GPU would: a tensor left on the CPU is an error. `lazy` is the device type of
torch that autograd supports without a driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

KIND = "lazy"
DEVICE = f"{KIND}:0"
aten: Any = torch.ops.aten
# These copy between devices, or take indices from the CPU, on a GPU as well.
BETWEEN = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default}
BETWEEN |= {aten.index_put.default, aten._index_put_impl_.default}


class There(Tensor):
    """A tensor on the other device; `held` is the CPU tensor with its values."""

    held: Tensor
    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        made.held = held
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Also intercepts operations that create tensors: torch.zeros(3, device=DEVICE)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, There)]
    here = [one for one in tensors if not isinstance(one, There) and one.dim()]  # single numbers go anywhere
    if there and here and (func not in BETWEEN or (func is aten.index.Tensor and not isinstance(args[0], There))):
        raise RuntimeError(f"{func}: {list(there[0].shape)} is on {DEVICE}, {list(here[0].shape)} on cpu")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        stays = torch.device(asked).type == KIND
    else:
        stays = isinstance(args[0], There) if func is aten.copy_.default else bool(there)
    known = {id(one.held): one for one in there}  # operations in place give back what they were given
    args, kwargs = tree_map_only(There, lambda one: one.held, (args, kwargs))
    guard = torch._C._DisableTorchDispatch()
    try:
        found = func(*args, **kwargs)
    finally:
        del guard
    return (
        tree_map_only(Tensor, lambda one: known[id(one)] if id(one) in known else There(one), found) if stays else found
    )


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """Make the device available under its name, which is yielded, in this thread only."""
    lists, storage, casting, cast = Tensor.tolist, Tensor.untyped_storage, torch.is_autocast_enabled, torch.autocast

    def real(tensor: Tensor) -> Tensor:
        return tensor.held if isinstance(tensor, There) else tensor

    def autocast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if kind == KIND else cast(kind, *args, **kwargs)

    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(Tensor, "tolist", lambda self: lists(real(self))),
            mock.patch.object(Tensor, "untyped_storage", lambda self: storage(real(self))),
            mock.patch.object(torch, "is_autocast_enabled", lambda *kind: kind != (KIND,) and casting(*kind)),
            mock.patch.object(torch, "autocast", autocast),
            _Everywhere(),  # type: ignore[no-untyped-call]
        ):
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
