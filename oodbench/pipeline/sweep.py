"""Sweeps: several values of a hyper-parameter become variants; several encoders and seeds, requests of their own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oodbench.errors import did_you_mean
from oodbench.method.parameters import parse_names, parse_value, split
from oodbench.pipeline.request import RunRequest

Overrides = dict[str, Any]


def variants(
    sweeps: Sequence[str], known: Collection[str], chosen: Collection[str], problems: list[str]
) -> Mapping[str, list[Overrides]]:
    """--sweep METHOD.PARAMETER=A,B,...: by method, every combination of its values. What is wrong joins `problems`."""
    swept: dict[str, dict[str, list[Any]]] = {}
    for text in sweeps:
        target, equals, rest = text.partition("=")
        method, dot, parameter = (piece.strip() for piece in target.partition("."))
        values = [parse_value(one) for one in split(rest, ",")]
        if not (equals and dot and method and parameter and values):
            problems.append(f"cannot read --sweep {text}; write --sweep method.parameter=value,value,...")
        elif method not in known:
            problems.append(f"--sweep {text}: no method '{method}'{did_you_mean(method, known)}")
        elif method not in chosen:
            problems.append(f"--sweep {text}: {method} is not among --methods")
        elif parameter in swept.get(method, {}):
            problems.append(f"--sweep {text}: {method}.{parameter} is swept twice; write all its values in one")
        else:
            swept.setdefault(method, {})[parameter] = values
    return {
        method: [dict(zip(values, chosen_ones, strict=True)) for chosen_ones in itertools.product(*values.values())]
        for method, values in swept.items()
    }


def requests(request: RunRequest, encoders: str, seeds: Sequence[int]) -> list[RunRequest]:
    """One request per encoder and seed. Encoders are comma-separated; double quotes keep a comma of a path."""
    names = list(dict.fromkeys(parse_names(encoders))) or [""]
    numbers = list(dict.fromkeys(seeds)) or [request.seed]
    return [dataclasses.replace(request, encoder=name, seed=seed) for name in names for seed in numbers]
