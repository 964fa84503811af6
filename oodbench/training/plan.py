"""Make a training plan from a request. All problems that need no model to be found are reported together."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.data.load import check_exist
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import ProblemList, UserError, raise_all
from oodbench.method import registry
from oodbench.pipeline.encoder_choice import choose_encoder, released_encoder
from oodbench.pipeline.jobs import Job, Jobs, file_digests, make_jobs
from oodbench.pipeline.plan import misfit
from oodbench.pipeline.request import (
    MAX_INTEGER,
    MAX_WORKERS,
    PRECISIONS,
    RunRequest,
    choice_problems,
    is_writable,
    option_words,
    range_problems,
)
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store
from oodbench.training.captions_csv import check_csv
from oodbench.training.captions_tar import check_shards
from oodbench.training.schedule import build_schedule
from oodbench.training.shots import GLYPHS, SHOTS, Shots, benchmark_of, find_shots

if TYPE_CHECKING:
    from oodbench.method import Optimiser, TrainedMethod

_FLAGS = {"out": "output", "batch": "batch-size", "settings": "set", "plugins": "plugin"}  # fields with other flags
# Options of methods that are trained on labelled images, and of methods that are trained on captions.
_LABELLED = ("id", "shots", "calibration", "classes", "clean_names", "allow_partial", "crops")
_CAPTIONS = ("captions",)


@dataclass(frozen=True)
class TrainRequest:
    """The options of a training; every field is a flag of `oodbench train`. None means the method's released value.

    method            name of a method with trained weights, as in clipn
    settings          hyper-parameters of the method, as in "clipn.tso=0"
    encoder           name of the encoder; "": that of the method's released weights, or glyphs for glyphs
    resize            bicubic or bilinear; None: as the weights were trained
    captions          `glyphs` (which is None), a CSV file, or a pattern of tar shards
    id                the ID set or benchmark whose labelled training images a few-shot method learns from; "": glyphs
    shots             number of these images per class, drawn with the seed; None: 16
    calibration       other training images, as `id`; "": those of the benchmark or of the ID set
    classes           class names: the name of a list, or a file; "": the set's own
    clean_names       convert class names to words: AnnualCrop to "annual crop"
    allow_partial     draw from sets with fewer images than the catalogue counts
    crops             stored random crops of each labelled image; every epoch reads the next. None: centre crops
    data              folder of the datasets; for a CSV, the folder that its paths are relative to (None: its own)
    out               the file of weights; None: weights/<method>-<encoder>.safetensors. For a few-shot method the name
                      ends in -K<shots>-S<seed>, and `out` may be the folder of that file
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
    captions: str | None = None
    id: str = ""
    shots: int | None = None
    calibration: str = ""
    classes: str = ""
    clean_names: bool = False
    allow_partial: bool = False
    crops: int | None = None
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
        ("--shots", request.shots, 1, MAX_INTEGER),
        ("--crops", request.crops, 1, MAX_INTEGER),
    )
    for name, rate in (("--lr", request.lr), ("--eps", request.eps)):
        if rate is not None and not 0 < rate < math.inf:
            problems.append(f"{name} must be a number above 0, not {rate}")
    if request.betas is not None and (len(request.betas) != 2 or not all(0 <= beta < 1 for beta in request.betas)):
        problems.append(f"--betas takes two numbers below 1, as in 0.9,0.98, not {','.join(map(str, request.betas))}")
    if request.epochs is not None and request.steps is not None:
        problems.append("--epochs and --steps both set the length of the training; give one")
    if request.augment and request.crops:
        problems.append("--crops stores random crops and --augment makes new ones at every step; give one of them")
    if request.augment and "://" in (request.captions or ""):
        problems.append(
            "--augment reads every image again in every epoch, which is not supported over a network; "
            "copy the shards to a disk, or leave --augment out"
        )
    raise_all(problems)


@dataclass(frozen=True)
class TrainPlan:
    """A checked request; the corpus is not read yet. `shots` are the images of a method that needs labelled ones."""

    request: TrainRequest
    job: Job
    method: TrainedMethod[Any]
    optimiser: Optimiser
    encoder: ResolvedEncoder
    out: Path
    store: Store
    shots: Shots | None = None

    @property
    def patch_fields(self) -> tuple[str, ...]:
        """Return the names of the patch features of the training images that are computed."""
        return self.job.info.patch_fields if self.shots else ()

    def identity(self) -> dict[str, Any]:
        """Return everything except the data that the weights depend on; only an equal identity resumes a training."""
        optimiser = self.optimiser.as_recorded()
        parameters, files = self.job.parameters, self.job.files
        if self.shots:  # the other parameters are read by score(), except the prompts, which module() may read
            fixed = self.job.info.trained
            parameters = {key: value for key, value in parameters.items() if key in fixed or key.endswith("templates")}
            files = file_digests(parameters)
        if not self.optimiser.epsilon_hat:
            del optimiser["epsilon_hat"]  # trainings that began before the field existed do not have it
        return {
            "method": self.job.info.name,
            "parameters": parameters,
            "files": files,
            "source": self.job.info.source,
            "encoder": {"name": self.encoder.card.row()["name"], "identity": self.encoder.card.identity},
            "augment": self.request.augment,
            "optimiser": optimiser,
            "seed": self.request.seed,
            "precision": self.request.compute,
            **({"id": self.shots.facts(), "crops": self.request.crops} if self.shots else {}),
        }


def make_plan(request: TrainRequest) -> TrainPlan:
    """Check a request and resolve its method, encoder and paths. Raise UserError with every problem found."""
    collected = ProblemList()
    attempt = collected.attempt
    store = open_store(request.store, request.shared)
    attempt(check_exist, [request.id])
    attempt(check_options, request)
    job = attempt(find_job, request)
    few_shot = job is not None and is_few_shot(job)
    encoder = attempt(encoder_name, request, job)
    spec = attempt(parse_encoder, encoder) if encoder else None
    attempt(_check_kind, request, job) if job else None
    attempt(_check_captions, request) if not few_shot else None
    method = attempt(build_method, job) if job else None
    optimiser = attempt(optimiser_settings, request, method) if method else None
    attempt(_check_output, request, few_shot)
    # Only without problems: images are counted, and glyphs, which are rendered to be listed, take seconds.
    shots = attempt(find_shots, request, store) if few_shot and not collected.problems else None
    raise_all(collected.problems)
    assert job and method and optimiser and encoder and spec
    request = dataclasses.replace(request, encoder=encoder)
    resolved = resolve(spec, request.resize, store)
    if reason := misfit(job, resolved.card):
        raise UserError(f"{job.label}: {reason}")
    if shots:
        optimiser = dataclasses.replace(optimiser, batch=min(optimiser.batch, len(shots.images)))
    out = weights_path(request, f"{job.info.name}-{resolved.card.slug}", few_shot)
    plan = TrainPlan(request, job, method, optimiser, resolved, out, store, shots)
    if shots:
        build_schedule(plan, len(shots.images))  # reports its problems before an image is encoded
    return plan


def command(request: TrainRequest, **changes: Any) -> str:
    """Return the `oodbench train` command of a request, with some fields changed, to be pasted into a shell."""
    request = dataclasses.replace(request, **changes)
    return shlex.join(
        ["oodbench", "train", request.method, *option_words(request, TrainRequest(request.method), _FLAGS)]
    )


def expand_requests(request: TrainRequest, shots: Sequence[int], seeds: Sequence[int]) -> list[TrainRequest]:
    """Return one request for each number of shots and seed. Raise UserError for bad options of any."""
    numbers: list[int | None] = [*dict.fromkeys(shots)] or [request.shots]
    seeds = list(dict.fromkeys(seeds)) or [request.seed]
    requests = [dataclasses.replace(request, shots=number, seed=seed) for number in numbers for seed in seeds]
    if len(requests) == 1:
        return requests
    collected = ProblemList()
    for one in requests:  # before the first is trained
        collected.attempt(check_options, one)
    raise_all(collected.problems)
    job = find_job(request)
    if not is_few_shot(job):
        _check_kind(requests[0], job)
        raise UserError(
            f"{job.info.name} is trained with one seed at a time: {command(requests[0])}\n"
            "  name another --output for each of them"
        )
    if request.out is not None and request.out.suffix == ".safetensors":
        folder = command(requests[0], out=request.out.parent / request.out.stem)
        raise UserError(
            f"--output {request.out} is one file, and there are {len(requests)} trainings; name a folder: {folder}"
        )
    return requests


def is_few_shot(job: Job) -> bool:
    """Return whether a method is trained on labelled images, instead of captions."""
    return "SHOTS" in job.info.needs


def encoder_name(request: TrainRequest, job: Job | None) -> str:
    """Return --encoder; else that of the method's released weights, or the embedded one for its own captions.

    For a few-shot method it is that of the ID set's benchmark. Raises UserError if that has none.
    """
    if request.encoder:
        return request.encoder
    if job and is_few_shot(job):
        run = RunRequest(methods=request.method, id=request.id or GLYPHS)
        return choose_encoder(run, Jobs(()), {}, benchmark_of(request), is_run=False).text
    released = released_encoder(job) if job and request.captions not in (None, GLYPHS) else ""
    return released or GLYPHS


def optimiser_settings(request: TrainRequest, method: TrainedMethod[Any]) -> Optimiser:
    """Return the method's optimiser settings with those of the request in place of the defaults.

    Raise UserError for options of another optimiser.
    """
    recipe = method.optimisation()
    others = [f"--{name}" for name in ("betas", "eps") if getattr(request, name) is not None]
    if recipe.kind == "sgd" and others:
        raise UserError(
            f"{' and '.join(others)}: for AdamW, but {request.method} is trained with SGD, which has --lr, "
            "--weight-decay and --warmup; leave out the options of AdamW"
        )
    names = ("epochs", "batch", "lr", "betas", "eps", "weight_decay", "warmup")
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    if "warmup" in given:
        given["warmup_epochs"] = 0
    return dataclasses.replace(recipe, **given)


def weights_path(request: TrainRequest, name: str, few_shot: bool) -> Path:
    """Return the file of weights: --output, a file of this name in the folder --output, or in weights/."""
    out = request.out or Path("weights")
    if few_shot and out.suffix != ".safetensors":
        out /= f"{name}-K{request.shots or SHOTS}-S{request.seed}.safetensors"
    elif request.out is None:
        out /= f"{name}.safetensors"
    return expand(out).absolute()


def output_folder(request: TrainRequest) -> Path:
    """Return the folder of the file of weights."""
    is_folder = request.out is None or request.out.suffix != ".safetensors"
    out = expand(request.out or Path("weights")).absolute()
    return out if is_folder else out.parent


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


def build_method(job: Job) -> TrainedMethod[Any]:
    """Import the method and return it with its hyper-parameters. Raise UserError if it cannot be trained."""
    from oodbench.method import TrainedMethod

    method = job.build()
    if not isinstance(method, TrainedMethod):
        raise UserError(f"{job.info.name} reads weights but is not a TrainedMethod, so it cannot be trained")
    return method


def _check_kind(request: TrainRequest, job: Job) -> None:
    """Raise UserError for options of methods that are trained on other data than this one."""
    few_shot, usual = is_few_shot(job), TrainRequest(request.method)
    others = _CAPTIONS if few_shot else _LABELLED
    given = [name for name in others if getattr(request, name) != getattr(usual, name)]
    if not given:
        return
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    data, other_data = ("labelled images", "captions") if few_shot else ("captions", "labelled images")
    without = command(request, **{name: getattr(usual, name) for name in given})
    raise UserError(
        f"{job.info.name} is trained on {data}, and {flags} {'is' if len(given) == 1 else 'are'} for methods that are "
        f"trained on {other_data}; leave {'it' if len(given) == 1 else 'them'} out: {without}"
    )


def _check_captions(request: TrainRequest) -> None:
    name = request.captions
    if name is None or name == GLYPHS:
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


def _check_output(request: TrainRequest, few_shot: bool) -> None:
    """Raise UserError if the file of weights could not be written at the end."""
    if request.out is not None and request.out.suffix != ".safetensors" and not few_shot:
        raise UserError(f"--output {request.out} must end in .safetensors")
    folder = output_folder(request)
    if not is_writable(folder):
        raise UserError(f"the folder {folder} is not writable; give another file with --output")
