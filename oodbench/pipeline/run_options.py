"""The options of oodbench.run() with their types, for editors and type checkers; RunRequest documents them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

Texts = str | Sequence[str]


class RunOptions(TypedDict, total=False):
    """Options of oodbench.run() in addition to methods and id: the fields of RunRequest, results and tracking_uri."""

    results: str | Path
    tracking_uri: str | None
    ood: Texts
    calibration: str
    calibration_limit: int | Literal["all"] | None
    shots: int | None
    shot_seed: int | None
    classes: str
    clean_names: bool
    encoder: str
    data: str | Path | None
    settings: Mapping[str, Any] | Texts
    templates: str
    resize: Literal["bicubic", "bilinear"] | None
    seed: int
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    batch_size: int
    workers: int
    limit: int | None
    allow_partial: bool
    skip_missing: bool
    strict: bool
    on_error: Literal["stop", "skip"]
    at95: Literal["first", "nearest", "interpolate"]
    aupr: Literal["average_precision", "trapezoid"]
    bootstrap: int
    weights: Texts
    plugins: str | Path | type | Sequence[str | Path | type]
    keep_patches: bool
    store: str | Path | None
    shared: str
    ray: str
    actors: int
    gpus_per_actor: float
    sweeps: Texts
    stream_order: Texts
    stream_seeds: int | Sequence[int]
    stream_batch: int
    stream_ratio: str
