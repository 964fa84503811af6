"""From a request to what will be trained; every problem that can be known before a model is loaded is told at once."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import ProblemList, UserError, did_you_mean, raise_all
from oodbench.method import registry
from oodbench.pipeline.jobs import Job, make_jobs
from oodbench.pipeline.request import MAX_INTEGER, MAX_WORKERS, PRECISIONS, RunRequest, is_writable, range_problems
from oodbench.storage.files import expand
from oodbench.storage.shared import opened
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from oodbench.method import Optimiser, TrainedMethod

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
        ("--epochs", request.epochs, 1, MAX_INTEGER),
        ("--steps", request.steps, 1, MAX_INTEGER),
        ("--batch", request.batch, 1, MAX_INTEGER),
        ("--chunk", request.chunk, 1, MAX_INTEGER),
        ("--warmup", request.warmup, 0, MAX_INTEGER),
        ("--weight-decay", request.weight_decay, 0, sys.float_info.max),
        ("--seed", request.seed, 0, MAX_INTEGER),
        ("--checkpoint-every", request.checkpoint_every, 1, MAX_INTEGER),
        ("--max-steps", request.max_steps, 1, MAX_INTEGER),
        ("--workers", request.workers, 0, MAX_WORKERS),
    ):
        problems += range_problems(name, number, least, most)
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


@dataclass(frozen=True)
class TrainPlan:
    """A request that can be carried out, as far as is known before the corpus is read."""

    request: TrainRequest
    job: Job
    method: TrainedMethod[Any]
    optimiser: Optimiser
    encoder: ResolvedEncoder
    out: Path
    store: Store

    def identity(self) -> dict[str, Any]:
        """What the weights depend on besides the corpus: two trainings with the same may go on from one another."""
        optimiser = dataclasses.asdict(self.optimiser)
        if not self.optimiser.epsilon_hat:
            del optimiser["epsilon_hat"]  # as trainings have it that began before there was one
        return {
            "method": self.job.info.name,
            "parameters": self.job.parameters,
            "files": self.job.files,
            "source": self.job.info.source,
            "encoder": {"name": self.encoder.card.row()["name"], "identity": self.encoder.card.identity},
            "augment": self.request.augment,
            "optimiser": optimiser,
            "seed": self.request.seed,
            "precision": self.request.compute,
        }


def make_plan(request: TrainRequest) -> TrainPlan:
    """Check a request. Raises UserError with every problem that was found."""
    collected = ProblemList()
    attempt = collected.attempt
    store = opened(request.store, request.shared)
    attempt(check_options, request)
    job = attempt(_job, request)
    spec = attempt(parse_encoder, request.encoder)
    attempt(_check_captions, request)
    method = attempt(_method, job) if job else None
    attempt(_check_folder, request)
    raise_all(collected.problems)
    assert job and method and spec
    encoder = resolve(spec, request.resize, store)
    out = request.out or Path("weights") / f"{job.info.name}-{encoder.card.slug}.safetensors"
    return TrainPlan(request, job, method, optimiser(request, method), encoder, expand(out).absolute(), store)


def optimiser(request: TrainRequest, method: TrainedMethod[Any]) -> Optimiser:
    """The method's optimiser with what the user set."""
    names = ("epochs", "batch", "lr", "betas", "eps", "weight_decay", "warmup")
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    return dataclasses.replace(method.optimisation(), **given)


def place(request: TrainRequest) -> Path:
    """The folder that the weights go to."""
    return expand(request.out or Path("weights") / "file").absolute().parent


def _job(request: TrainRequest) -> Job:
    if request.method.strip() == "all":
        raise UserError("name one method to train, as in: oodbench train clipn")
    asked = RunRequest(methods=request.method, settings=request.settings, plugins=request.plugins)
    jobs = make_jobs(asked).jobs
    if len(jobs) != 1:
        raise UserError(f"name one method to train, not {request.method}")
    if "WEIGHTS" not in jobs[0].info.needs:
        known = registry.methods(request.plugins).values()
        trained = ", ".join(info.name for info in known if "WEIGHTS" in info.needs) or "none"
        raise UserError(f"{jobs[0].info.name} has nothing to train; methods that are trained: {trained}")
    return jobs[0]


def _method(job: Job) -> TrainedMethod[Any]:
    from oodbench.method import TrainedMethod

    method = job.build()
    if not isinstance(method, TrainedMethod):
        raise UserError(f"{job.info.name} reads weights but is no TrainedMethod: it cannot be trained here")
    return method


def _check_captions(request: TrainRequest) -> None:
    name = request.captions
    if name == GLYPHS:
        return
    if not name.strip():
        raise UserError("--captions names no file; write a CSV, a pattern of tar shards, or glyphs")
    if name.lower().endswith((".csv", ".tsv")):
        from oodbench.training.captions_csv import check as check_table

        check_table(Path(name).expanduser())
    elif name.lower().rstrip("}").endswith(".tar"):
        from oodbench.training.captions_tar import check as check_shards

        check_shards(name)
    else:
        raise UserError(
            f"--captions {name}: write glyphs, a file .csv (filepath,caption), or shards name-{{000..331}}.tar"
        )
    if request.data is not None and not expand(request.data).is_dir():
        raise UserError(f"--data {request.data} is no folder")


def _check_folder(request: TrainRequest) -> None:
    """Whether the file of weights can be written, known before hours of work."""
    folder = place(request)
    if not is_writable(folder):
        raise UserError(f"the folder {folder} cannot be written; name another file with --out")
