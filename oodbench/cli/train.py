"""oodbench train."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.group import RESUME, sigterm_raises
from oodbench.cli.help import METHOD_NAME, SET_NAME, Command, EncoderNames, OneOf, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, note, print_errors, say

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainOutcome, TrainWatch

SKIPPED_SHOWN = 5  # skipped pairs or shards that are listed


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench train clipn",
        "oodbench train clipn --encoder ViT-B-16/openai --captions 'cc3m-{00000..00331}.tar' --augment",
        "oodbench train zoc --encoder ViT-B-32/openai --captions captions.csv --max-steps 100",
        "oodbench train coop --id imagenet1k --shots 1,4,16 --seed 1,2,3 --encoder ViT-B-16/openai",
    ),
)
@click.argument("method", type=METHOD_NAME)
@click.option(
    "--encoder",
    type=EncoderNames(several=False),
    default="",
    help="As for run. Default: that of the method's released weights; the embedded encoder for the captions of glyphs.",
)
@shared.RESIZE
@click.option(
    "--captions",
    help="glyphs, a CSV file (filepath,caption), or tar shards: cc3m-{00000..00331}.tar, also as URL. Default: glyphs.",
)
@click.option(
    "--id",
    "id_",
    type=SET_NAME,
    default="",
    help="Few-shot methods learn from training images of this ID set or benchmark. Default: glyphs.",
)
@click.option(
    "--shots", type=shared.Integers(), default=(), help="Images per class, such as 16 or 1,2,4,8,16. Default: 16."
)
@click.option(
    "--calibration",
    type=SET_NAME,
    default="",
    help="Training images instead of those of the ID set, in the form of --id.",
)
@shared.CLASSES
@shared.CLEAN_NAMES
@click.option("--allow-partial", is_flag=True, help="Draw from sets with fewer images than the catalogue declares.")
@click.option(
    "--crops", type=int, help="Store this many random crops of each labelled image; every epoch reads the next."
)
@click.option(
    "--data", type=FOLDER, help="Folder of the datasets; for a CSV, of its paths. Default: the folder of the CSV."
)
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    help="File of weights; for few-shot methods, their folder. Default: weights/METHOD-ENCODER[-K16-S0].safetensors.",
)
@shared.SETTINGS
@shared.CONFIG
@click.option(
    "--epochs", type=int, help="Passes over the data. Default of this and other training options: the method's."
)
@click.option("--steps", type=int, help="Length of the schedule in steps, instead of --epochs.")
@click.option("--batch-size", type=int, help="Pairs per step over all processes; the loss compares all of them.")
@click.option("--chunk", default=256, help="Pairs per forward pass; fewer need less memory.", show_default=True)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--betas", help="Betas of AdamW: 0.9,0.98.")
@click.option("--eps", type=float, help="Epsilon of AdamW.")
@click.option("--weight-decay", type=float, help="Weight decay of AdamW or SGD.")
@click.option("--warmup", type=int, help="Warm-up steps until the peak learning rate.")
@click.option(
    "--seed",
    type=shared.Integers(),
    default="0",
    help="Random seed; few-shot methods take several, such as 1,2,3.",
    show_default=True,
)
@shared.DEVICE
@click.option(
    "--precision",
    type=OneOf("fp32", "bf16", "fp16"),
    default="fp32",
    help="Mixed precision if not fp32.",
    show_default=True,
)
@click.option("--augment", is_flag=True, help="Encode random crops at every step, as released code does.")
@click.option(
    "--on-error",
    type=OneOf("stop", "skip"),
    default="stop",
    help="Stop at an unreadable pair, or skip it.",
    show_default=True,
)
@click.option("--checkpoint-every", default=500, help="Steps between checkpoints.", show_default=True)
@click.option("--max-steps", type=int, help="Stop after this many steps of the schedule. Rerun to resume.")
@shared.WORKERS
@click.option("--restart", is_flag=True, help="Discard an unfinished training of the same --output.")
@shared.PLUGINS
@shared.STORE
@shared.SHARED
@click.option("--ray", default="", help="local, auto or an address: Ray starts the processes, and restarts them.")
@click.option("--num-workers", default=0, help="Processes on Ray. Default: one per GPU, or two without a GPU.")
@click.option(
    "--tracking-uri",
    help="MLflow server, or 'none'. Default: $MLFLOW_TRACKING_URI, else a SQLite file next to --output.",
)
@shared.VERBOSE
def train(
    output: Path | None,
    batch_size: int | None,
    tracking_uri: str | None,
    verbose: bool,
    betas: str | None,
    ray: str,
    num_workers: int,
    shots: tuple[int, ...],
    seed: tuple[int, ...],
    id_: str,
    **options: Any,
) -> None:
    """Train the weights of a method.

    METHOD is trained on captions (clipn, zoc), or on a few labelled ID images (coop, locoop, sct, gallop). Rerun the
    same command to resume. Several GPUs or machines: --ray, or torchrun --nproc-per-node 4 --no-python oodbench train
    ...
    """
    configure_logging(verbose)
    if not verbose and not sys.stderr.isatty():  # a line every few steps takes the place of the bar
        logging.getLogger("oodbench.training").setLevel(logging.INFO)
    from oodbench.data.load import check_exist

    check_exist([id_])
    from oodbench.training.plan import TrainRequest, expand_requests, make_plan
    from oodbench.training.shots import SHOTS

    plain = TrainRequest(out=output, batch=batch_size, betas=_numbers(betas), id=id_, **options)
    requests = expand_requests(plain, shots, seed)
    if len(requests) > 1:  # problems are reported before the first training
        for choose in (max, min):  # the most shots may not exist, the fewest may be too few for the warm-up
            make_plan(choose(requests, key=lambda one: one.shots or SHOTS))
    outcomes = []
    for request in requests:
        outcomes.append(_train_one(request, tracking_uri, ray, num_workers))
        if outcomes[-1].is_main:
            _print_outcome(outcomes[-1], request)
            if len(requests) > 1:
                note(f"{len(outcomes)} of {len(requests)} trainings: {outcomes[-1].out.name}")
        if outcomes[-1].signal:
            sys.exit(128 + outcomes[-1].signal)
    if outcomes[0].is_main:
        files = [outcome.out for outcome in outcomes]
        say(_run_command(requests[0], files[0] if len(files) == 1 else files[0].parent))


def _train_one(request: TrainRequest, tracking_uri: str | None, ray: str, num_workers: int) -> TrainOutcome:
    """Train once, in this process or on Ray; end the command if the loss is not finite."""
    from oodbench.errors import Diverged
    from oodbench.training.plan import build_method, command, find_job, optimiser_settings

    try:
        if not ray:
            return train_and_track(request, tracking_uri)
        from oodbench.distributed.training import train as train_on_ray

        with sigterm_raises():
            return train_and_track(
                request,
                tracking_uri,
                lambda request, watch: train_on_ray(request, ray, num_workers, watch),
            )
    except Diverged as error:
        lr = float(f"{optimiser_settings(request, build_method(find_job(request))).lr / 10:.3g}")
        full = "; or --precision fp32" if request.compute != "fp32" else ""
        again = command(request, restart=True, lr=lr)
        print_errors(f"{error}; the last good checkpoint is kept; try --restart with a lower --lr: {again}{full}")
        sys.exit(1)


def train_and_track(
    request: TrainRequest,
    tracking_uri: str | None,
    train_elsewhere: Callable[[TrainRequest, TrainWatch], TrainOutcome] | None = None,
) -> TrainOutcome:
    """Train with progress bars, and send the curves to MLflow.

    `tracking_uri` None is the SQLite file next to the weights; "" or "none" sends nothing. `train_elsewhere` trains
    outside this process.
    """
    from oodbench import api
    from oodbench.cli.progress import TrainProgress, spinner
    from oodbench.tracking.curves import CurveStatus, sending_curves
    from oodbench.training.plan import output_folder

    with spinner("importing torch"):
        from oodbench.training.train import TrainWatch
        from oodbench.training.train import train as train_here

    tracker = api.tracker_of(output_folder(request), tracking_uri)
    if os.environ.get("RANK", "0") != "0":
        return train_here(request)
    with TrainProgress() as progress, ExitStack() as stack:
        curves = CurveStatus()

        def begin(ready: Ready) -> None:
            nonlocal curves
            _print_ready(ready, request)
            progress.begin(ready.done, ready.steps)
            if tracker is not None:
                curves = stack.enter_context(sending_curves(tracker, ready.folder))

        outcome = (train_elsewhere or train_here)(request, TrainWatch(progress.extracting, begin, progress.step))
        curves.status = "KILLED" if outcome.signal else "FINISHED"
    if curves.reason:
        logging.getLogger("oodbench.training").warning("%s", curves.reason)
    return outcome


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.9,0.98", param_hint="--betas") from error


def _print_ready(ready: Ready, request: TrainRequest) -> None:
    """Print the method, its data and the first step of a training."""
    from oodbench.data.loaders.layout import same_prompt_remarks
    from oodbench.encoder.card import EMBEDDED
    from oodbench.training.plan import optimiser_settings

    plan = ready.plan
    images = "random crops, encoded at every step (--augment)" if request.augment else "centre crops, encoded once"
    if request.crops:
        images = f"{ready.crops} random crops of each, encoded once (--crops)"
        images += "; there are no more epochs" if ready.crops < request.crops else ""
    for remark in plan.encoder.card.notes:
        note(f"note: {remark}")
    chosen = plan.request.encoder not in (request.encoder, EMBEDDED)
    why = ", the encoder of its released weights (--encoder selects another)" if chosen else ""
    note(f"{plan.job.label} for {plan.encoder.card.name}{why}; images: {images}")
    if plan.shots:
        for same in same_prompt_remarks(plan.shots.classes.lines):
            note(f"note: {plan.shots.id}: {same.message}")
        classes = f"{len(plan.shots.classes.lines):,} classes of {plan.shots.id}"
        data = f"{ready.images:,} labelled images, {plan.shots.number} of each of {classes} (seed {request.seed})"
    else:
        data = f"{ready.pairs:,} pairs of {ready.images:,} images"
    note(f"{data}; {ready.steps:,} steps of {ready.batch:,}")
    if ready.batch < (asked := optimiser_settings(request, plan.method).batch):
        note(f"note: a batch is all {ready.batch:,} images, as there are fewer than {asked:,}")
    for reason in ready.skipped[:SKIPPED_SHOWN]:
        note(f"skipped: {reason}")
    if ready.skipped:
        note(f"skipped: {len(ready.skipped):,} in all")
    if ready.done:
        note(f"resuming after step {ready.done:,}")


def _print_outcome(outcome: TrainOutcome, request: TrainRequest) -> None:
    """Print how a training ended."""
    if outcome.signal:
        note(f"stopped after step {outcome.done:,} of {outcome.steps:,}. {RESUME}")
        return
    if outcome.done < outcome.steps:
        note(f"stopped by --max-steps after step {outcome.done:,} of {outcome.steps:,}")
    elif not outcome.made:
        note(f"already finished: all {outcome.steps:,} steps are done (--restart trains again)")
    for name, value in outcome.terms.items():
        note(f"{name} {value:.4f}")


def _run_command(request: TrainRequest, path: Path) -> str:
    """Return the command that runs a method with its weights, a file or a folder."""
    from oodbench.training.plan import encoder_name, find_job

    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    name = request.method.strip().partition("[")[0]
    command = ["oodbench", "run", "--methods", request.method.strip(), "--weights", f"{name}={shown}"]
    command += [
        word for flag in ("id", "classes") if (value := getattr(request, flag)) for word in (f"--{flag}", value)
    ]
    command += ["--clean-names"] if request.clean_names else []
    command += ["--data", str(request.data)] if request.data and request.captions is None else []
    command += ["--encoder", encoder_name(request, find_job(request))]
    command += [word for setting in request.settings for word in ("--set", setting)]
    command += [word for plugin in request.plugins for word in ("--plugin", str(plugin))]
    command += ["--resize", request.resize] if request.resize else []
    return shlex.join(command)
