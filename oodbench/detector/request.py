"""What a detector's arguments ask for, as the request of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oodbench.request import RunRequest
from oodbench.values import written

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
)


def request_of(params: Mapping[str, Any]) -> RunRequest:
    """The request of one method; `store` must be a folder. UserError for values of a wrong type."""
    from oodbench.session import request_from

    name = params["method"].partition("[")[0].strip()
    return request_from(
        methods=params["method"],
        settings=[f"{name}.{key}={written(value)}" for key, value in (params["settings"] or {}).items()],
        weights=[f"{name}={params['weights']}"] if params["weights"] else [],
        store=params["store"],
        out=params["store"],  # nothing is written there
        **{name: params[name] for name in _SAME},
    )
