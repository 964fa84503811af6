"""What a detector's arguments ask for, as the request of a run; and the check that they are what they should be."""

from __future__ import annotations

import math
import numbers
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oodbench.errors import UserError
from oodbench.method.parameters import written
from oodbench.pipeline.request import RunRequest

_SAME = (
    "encoder",
    "templates",
    "device",
    "precision",
    "batch_size",
    "workers",
    "seed",
    "resize",
    "on_error",
    "plugins",
    "shared",
)


class InvalidParameter(UserError, ValueError):
    """A constructor's argument of a wrong type or outside its range."""


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, NumPy scalars among them and in `settings` as plain ones. InvalidParameter for all wrong ones."""
    plain = _plain(params)
    if isinstance(plain["settings"], Mapping):
        plain["settings"] = _plain(plain["settings"])
    problems = [
        f"{name} takes {takes}, not {plain[name]!r}" for name, (fits, takes) in _TAKES.items() if not fits(plain[name])
    ]
    if problems:
        raise InvalidParameter(*problems)
    return plain


def finite(value: object) -> bool:
    """Whether a value is a real number that can be a threshold."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def request_of(params: Mapping[str, Any]) -> RunRequest:
    """The request of one method, of arguments that are checked; `store` must be a folder."""
    from oodbench.api import request_from

    name = params["method"].partition("[")[0].strip()
    return request_from(
        methods=params["method"],
        settings=[f"{name}.{key}={written(value)}" for key, value in (params["settings"] or {}).items()],
        weights=[f"{name}={params['weights']}"] if params["weights"] else [],
        store=params["store"],
        out=tempfile.gettempdir(),  # nothing is written there
        **{name: params[name] for name in _SAME},
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _share(value: object) -> bool:
    return value is None or (finite(value) and 0 < float(value) <= 1)  # type: ignore[arg-type]


def _path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _named(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


def _paths(value: object) -> bool:
    return _path(value) or (isinstance(value, list | tuple) and all(map(_path, value)))


_TAKES: dict[str, tuple[Callable[[object], bool], str]] = {
    "method": (lambda value: isinstance(value, str) and bool(value.strip()), "the name of a method"),
    "encoder": (_text, "text, such as 'ViT-B-16/openai'"),
    "settings": (_named, "a dictionary of hyper-parameters, or None"),
    "weights": (_path, "a path"),
    "templates": (_text, "text: a prompt set's name, a file, or 'a photo of a {}'"),
    "tpr": (_share, "a share above 0 and up to 1, such as 0.95, or None"),
    "threshold": (lambda value: value is None or finite(value), "a finite number, or None"),
    "device": (_text, "text, such as 'auto' or 'cuda:1'"),
    "precision": (_text, "text: fp32, bf16 or fp16"),
    "batch_size": (_whole(1), "a whole number from 1 upwards"),
    "workers": (_whole(0), "a whole number from 0 upwards"),
    "seed": (_whole(0), "a whole number from 0 upwards"),
    "resize": (lambda value: value is None or isinstance(value, str), "text: bicubic or bilinear, or None"),
    "on_error": (_text, "text: stop or skip"),
    "store": (lambda value: value is None or _path(value), "a path, or None"),
    "shared": (_text, "a URL"),
    "keep": (lambda value: isinstance(value, bool), "True or False"),
    "plugins": (_paths, "paths of files"),
}
