"""TrainRequest: what a user asked to be trained, and the checks that need nothing but the request itself."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import did_you_mean, raise_all
from oodbench.pipeline.request import MOST, PRECISIONS, WORKERS, beyond

GLYPHS = "glyphs"


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked; every field is a flag of `oodbench train` (see its help). None: the method's released value.

    captions    `glyphs`, a CSV file, or a pattern of tar shards
    data        folder that the paths in a CSV start from; None: that of the CSV
    out         the file of weights; None: weights/<method>-<encoder>.safetensors
    batch       pairs in one step, over all processes
    chunk       pairs that go through the trained part at once; the loss is over the whole batch all the same
    max_steps   stop after so many steps of the schedule, which stays that of the whole run
    """

    method: str
    settings: tuple[str, ...] = ()
    encoder: str = GLYPHS
    resize: str | None = None
    captions: str = GLYPHS
    data: Path | None = None
    out: Path | None = None
    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    betas: tuple[float, ...] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    warmup: int | None = None
    chunk: int = 256
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    augment: bool = False
    on_error: str = "stop"
    checkpoint_every: int = 500
    max_steps: int | None = None
    workers: int = 0
    restart: bool = False
    plugins: tuple[Path, ...] = ()
    store: Path | None = None
    shared: str = ""

    @property
    def compute(self) -> str:
        """What the towers compute in: fp32, bf16 or fp16."""
        return self.precision.removeprefix("amp-")


def check_options(request: TrainRequest) -> None:
    """Raise UserError for values that no training could use."""
    problems = []
    for name, value, options in (
        ("--precision", request.precision, (*PRECISIONS, "amp-bf16", "amp-fp16")),
        ("--on-error", request.on_error, ("stop", "skip")),
    ):
        if value not in options:
            problems.append(f"{name} {value}{did_you_mean(value, options)}")
    for name, number, least, most in (
        ("--epochs", request.epochs, 1, MOST),
        ("--steps", request.steps, 1, MOST),
        ("--batch", request.batch, 1, MOST),
        ("--chunk", request.chunk, 1, MOST),
        ("--warmup", request.warmup, 0, MOST),
        ("--weight-decay", request.weight_decay, 0, sys.float_info.max),
        ("--seed", request.seed, 0, MOST),
        ("--checkpoint-every", request.checkpoint_every, 1, MOST),
        ("--max-steps", request.max_steps, 1, MOST),
        ("--workers", request.workers, 0, WORKERS),
    ):
        problems += beyond(name, number, least, most)
    for name, rate in (("--lr", request.lr), ("--eps", request.eps)):
        if rate is not None and not 0 < rate < math.inf:
            problems.append(f"{name} must be a number above 0, not {rate}")
    if request.betas is not None and (len(request.betas) != 2 or not all(0 <= beta < 1 for beta in request.betas)):
        problems.append(f"--betas takes two numbers below 1, as in 0.9,0.98, not {','.join(map(str, request.betas))}")
    if request.epochs is not None and request.steps is not None:
        problems.append("--epochs and --steps both say how long to train; give one")
    if request.augment and "://" in request.captions:
        problems.append(
            "--augment reads every image anew at every epoch, which is not done over a network; "
            "copy the shards to a disk, or leave --augment out"
        )
    if request.out is not None and request.out.suffix != ".safetensors":
        problems.append(f"--out {request.out} must end in .safetensors")
    raise_all(problems)
