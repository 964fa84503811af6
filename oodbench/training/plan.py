"""From a request to a training plan. All problems that can be found without loading a model are reported together."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import ProblemList, UserError, raise_all
from oodbench.method import registry
from oodbench.pipeline.encoder_choice import released_encoder
from oodbench.pipeline.jobs import Job, make_jobs
from oodbench.pipeline.request import (
    MAX_INTEGER,
    MAX_WORKERS,
    PRECISIONS,
    RunRequest,
    choice_problems,
    is_writable,
    range_problems,
)
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store
from oodbench.training.captions_csv import check_csv
from oodbench.training.captions_tar import check_shards

if TYPE_CHECKING:
    from oodbench.method import Optimiser, TrainedMethod

GLYPHS = "glyphs"


@dataclass(frozen=True)
class TrainRequest:
    """The options of a training; every field is a flag of `oodbench train`. None means the method's released value.

    method            name of a method with trained weights, as in clipn
    settings          hyper-parameters of the method, as in "clipn.tso=0"
    encoder           name of the encoder; "": that of the method's released weights, or glyphs for glyphs
    resize            bicubic or bilinear; None: as the weights were trained
    captions          `glyphs`, a CSV file, or a pattern of tar shards
    data              folder that the paths in a CSV are relative to; None: the folder of the CSV
    out               the file of weights; None: weights/<method>-<encoder>.safetensors
    epochs, steps     length of the training; give one of them
    batch             pairs in one step, over all processes
    lr                peak learning rate
    betas, eps        of AdamW
    weight_decay      of AdamW or SGD
    warmup            steps of warm-up, instead of the method's steps or epochs
    chunk             pairs that pass through the trained module at once; the loss is that of the whole batch
    precision         fp32, or bf16 or fp16 for mixed precision
    augment           train on random crops, which are encoded at every step
    on_error          stop or skip, for pairs that cannot be used
    checkpoint_every  steps between checkpoints
    max_steps         stop after this step; the learning rate follows the schedule of the whole training
    workers           threads that decode images; 0: one per core, at most 16
    restart           discard the checkpoints of an earlier training
    store, shared     folder of the store, and URL of the store behind it
    """

    method: str
    settings: tuple[str, ...] = ()
    encoder: str = ""
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
        """Return the data type that the towers compute in: fp32, bf16 or fp16."""
        return self.precision.removeprefix("amp-")


def check_options(request: TrainRequest) -> None:
    """Raise UserError for invalid values of options."""
    problems = choice_problems(
        ("--precision", request.precision, (*PRECISIONS, "amp-bf16", "amp-fp16")),
        ("--on-error", request.on_error, ("stop", "skip")),
    )
    problems += range_problems(
        ("--epochs", request.epochs, 1, MAX_INTEGER),
        ("--steps", request.steps, 1, MAX_INTEGER),
        ("--batch-size", request.batch, 1, MAX_INTEGER),
        ("--chunk", request.chunk, 1, MAX_INTEGER),
        ("--warmup", request.warmup, 0, MAX_INTEGER),
        ("--weight-decay", request.weight_decay, 0, sys.float_info.max),
        ("--seed", request.seed, 0, MAX_INTEGER),
        ("--checkpoint-every", request.checkpoint_every, 1, MAX_INTEGER),
        ("--max-steps", request.max_steps, 1, MAX_INTEGER),
        ("--workers", request.workers, 0, MAX_WORKERS),
    )
    for name, rate in (("--lr", request.lr), ("--eps", request.eps)):
        if rate is not None and not 0 < rate < math.inf:
            problems.append(f"{name} must be a number above 0, not {rate}")
    if request.betas is not None and (len(request.betas) != 2 or not all(0 <= beta < 1 for beta in request.betas)):
        problems.append(f"--betas takes two numbers below 1, as in 0.9,0.98, not {','.join(map(str, request.betas))}")
    if request.epochs is not None and request.steps is not None:
        problems.append("--epochs and --steps both say how long to train; give one")
    if request.augment and "://" in request.captions:
        problems.append(
            "--augment reads every image again in every epoch, which is not supported over a network; "
            "copy the shards to a disk, or leave --augment out"
        )
    if request.out is not None and request.out.suffix != ".safetensors":
        problems.append(f"--output {request.out} must end in .safetensors")
    raise_all(problems)


@dataclass(frozen=True)
class TrainPlan:
    """A checked request; the corpus is not read yet."""

    request: TrainRequest
    job: Job
    method: TrainedMethod[Any]
    optimiser: Optimiser
    encoder: ResolvedEncoder
    out: Path
    store: Store

    def identity(self) -> dict[str, Any]:
        """Return what the weights depend on besides the corpus; a training resumes only with an equal identity."""
        optimiser = self.optimiser.as_recorded()
        if not self.optimiser.epsilon_hat:
            del optimiser["epsilon_hat"]  # trainings that began before the field existed do not have it
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
    """Check a request and resolve its method, encoder and paths. Raise UserError with every problem found."""
    collected = ProblemList()
    attempt = collected.attempt
    store = open_store(request.store, request.shared)
    attempt(check_options, request)
    job = attempt(find_job, request)
    request = dataclasses.replace(request, encoder=encoder_name(request, job))
    spec = attempt(parse_encoder, request.encoder)
    attempt(_check_captions, request)
    method = attempt(_build_method, job) if job else None
    optimiser = attempt(optimiser_settings, request, method) if method else None
    attempt(_check_output, request)
    raise_all(collected.problems)
    assert job and method and optimiser and spec
    encoder = resolve(spec, request.resize, store)
    out = request.out or Path("weights") / f"{job.info.name}-{encoder.card.slug}.safetensors"
    return TrainPlan(request, job, method, optimiser, encoder, expand(out).absolute(), store)


def encoder_name(request: TrainRequest, job: Job | None) -> str:
    """Return --encoder; else that of the method's released weights, or the embedded one for its own captions."""
    released = released_encoder(job) if job and request.captions != GLYPHS else ""
    return request.encoder or released or GLYPHS


def optimiser_settings(request: TrainRequest, method: TrainedMethod[Any]) -> Optimiser:
    """Return the method's optimiser settings with those of the request in place of the defaults.

    Raise UserError for options of another optimiser.
    """
    recipe = method.optimisation()
    others = [f"--{name}" for name in ("betas", "eps") if getattr(request, name) is not None]
    if recipe.kind == "sgd" and others:
        raise UserError(
            f"{' and '.join(others)}: of AdamW, but {request.method} is trained with SGD, which has --lr, "
            "--weight-decay and --warmup; leave out what is AdamW's"
        )
    names = ("epochs", "batch", "lr", "betas", "eps", "weight_decay", "warmup")
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    if "warmup" in given:
        given["warmup_epochs"] = 0
    return dataclasses.replace(recipe, **given)


def output_folder(request: TrainRequest) -> Path:
    """Return the folder of the file of weights."""
    return expand(request.out or Path("weights") / "file").absolute().parent


def find_job(request: TrainRequest) -> Job:
    """Return the method to train with its hyper-parameters. Raise UserError if it is not one trained method."""
    asked = RunRequest(methods=request.method, settings=request.settings, plugins=request.plugins)
    jobs = make_jobs(asked).jobs
    if len(jobs) != 1 or not jobs[0].named:
        raise UserError(f"name one method to train, as in: oodbench train clipn, not {request.method}")
    if "WEIGHTS" not in jobs[0].info.needs:
        known = registry.methods(request.plugins).values()
        trained = ", ".join(info.name for info in known if "WEIGHTS" in info.needs) or "none"
        raise UserError(f"{jobs[0].info.name} has nothing to train; methods that are trained: {trained}")
    return jobs[0]


def _build_method(job: Job) -> TrainedMethod[Any]:
    from oodbench.method import TrainedMethod

    method = job.build()
    if not isinstance(method, TrainedMethod):
        raise UserError(f"{job.info.name} reads weights but is not a TrainedMethod, so it cannot be trained")
    return method


def _check_captions(request: TrainRequest) -> None:
    name = request.captions
    if name == GLYPHS:
        return
    if not name.strip():
        raise UserError("--captions is empty; give a CSV file, a pattern of tar shards, or glyphs")
    if name.lower().endswith((".csv", ".tsv")):
        check_csv(Path(name).expanduser())
    elif name.lower().rstrip("}").endswith(".tar"):
        check_shards(name)
    else:
        raise UserError(
            f"--captions {name}: give glyphs, a .csv file (filepath,caption), or shards name-{{000..331}}.tar"
        )
    if request.data is not None and not expand(request.data).is_dir():
        raise UserError(f"--data {request.data} is not a folder")


def _check_output(request: TrainRequest) -> None:
    """Raise UserError if the file of weights could not be written at the end."""
    folder = output_folder(request)
    if not is_writable(folder):
        raise UserError(f"the folder {folder} is not writable; give another file with --output")
