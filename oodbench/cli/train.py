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
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, note, print_errors, say

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainOutcome, TrainWatch

SKIPPED_SHOWN = 5  # pairs or shards that are named one by one


@click.command()
@click.argument("method")
@click.option(
    "--encoder", default="", help="As for run. Default: that of the method's released weights; glyphs for glyphs."
)
@shared.RESIZE
@click.option(
    "--captions",
    default="glyphs",
    help="glyphs, a CSV file (filepath,caption), or tar shards: cc3m-{00000..00331}.tar, also as URL.",
    show_default=True,
)
@click.option("--data", type=FOLDER, help="Folder that paths in the CSV are relative to. Default: that of the CSV.")
@click.option(
    "-o", "--output", type=FOLDER, help="File of weights to write. Default: weights/METHOD-ENCODER.safetensors."
)
@shared.SETTINGS
@shared.CONFIG
@click.option("--epochs", type=int, help="Passes over the captions. Default here and below: the method's own.")
@click.option("--steps", type=int, help="Length of the schedule in steps, instead of --epochs.")
@click.option("--batch-size", type=int, help="Pairs in one step, over all processes; the loss compares all of them.")
@click.option("--chunk", default=256, help="Pairs computed at once; fewer need less memory.", show_default=True)
@click.option("--lr", type=float, help="Highest learning rate.")
@click.option("--betas", help="Of AdamW: 0.9,0.98.")
@click.option("--eps", type=float, help="Of AdamW.")
@click.option("--weight-decay", type=float, help="Of AdamW or SGD.")
@click.option("--warmup", type=int, help="Steps until the highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@shared.DEVICE
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16 (mixed precision).", show_default=True)
@click.option("--augment", is_flag=True, help="Encode random crops at every step, as CLIPN's release does.")
@click.option("--on-error", default="stop", help="On an unreadable pair: stop or skip.", show_default=True)
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
    **options: Any,
) -> None:
    """Train the weights of METHOD on captions: clipn, zoc. Rerun the same command to resume a training.

    Several GPUs or machines: --ray, or torchrun --nproc-per-node 4 --no-python oodbench train ...
    """
    configure_logging(verbose)
    if not verbose and not sys.stderr.isatty():  # a line every few steps takes the place of the bar
        logging.getLogger("oodbench.training").setLevel(logging.INFO)
    from oodbench.errors import Diverged
    from oodbench.training.plan import TrainRequest

    request = TrainRequest(out=output, batch=batch_size, betas=_numbers(betas), **options)
    try:
        if ray:
            from oodbench.distributed.training import train as train_on_ray

            with sigterm_raises():
                outcome = train_and_track(
                    request,
                    tracking_uri,
                    lambda request, watch: train_on_ray(request, ray, num_workers, watch),
                )
        else:
            outcome = train_and_track(request, tracking_uri)
    except Diverged as error:
        advice = "a lower --lr" + (", or --precision fp32" if request.compute != "fp32" else "")
        print_errors(f"{error}; the last good checkpoint stays; try {advice}")
        sys.exit(1)
    if outcome.is_main:
        _print_outcome(outcome, request)
    if outcome.signal:
        sys.exit(128 + outcome.signal)


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
        raise click.BadParameter(f"{text!r} are not numbers, as 0.9,0.98 are", param_hint="--betas") from error


def _print_ready(ready: Ready, request: TrainRequest) -> None:
    """Print what is trained, on what, and from which step."""
    from oodbench.encoder.card import EMBEDDED

    plan = ready.plan
    images = "random crops, encoded at every step (--augment)" if request.augment else "centre crops, encoded once"
    for remark in plan.encoder.card.notes:
        note(f"note: {remark}")
    chosen = plan.request.encoder not in (request.encoder, EMBEDDED)
    why = ", the encoder of its released weights (--encoder names another)" if chosen else ""
    note(f"{plan.job.label} for {plan.encoder.card.name}{why}; images: {images}")
    note(f"{ready.pairs:,} pairs of {ready.images:,} images; {ready.steps:,} steps of {plan.optimiser.batch:,}")
    for reason in ready.skipped[:SKIPPED_SHOWN]:
        note(f"skipped: {reason}")
    if ready.skipped:
        note(f"skipped: {len(ready.skipped):,} in all")
    if ready.done:
        note(f"resuming after step {ready.done:,}")


def _print_outcome(outcome: TrainOutcome, request: TrainRequest) -> None:
    """Print how a training ended, and the command that uses its weights."""
    from oodbench.training.plan import encoder_name, find_job

    if outcome.signal:
        note(f"stopped after step {outcome.done:,} of {outcome.steps:,}. {RESUME}")
        return
    if outcome.done < outcome.steps:
        note(f"stopped by --max-steps after step {outcome.done:,} of {outcome.steps:,}")
    elif not outcome.made:
        note(f"already finished: all {outcome.steps:,} steps are made (--restart trains again)")
    for name, value in outcome.terms.items():
        note(f"{name} {value:.4f}")
    path = Path(outcome.out)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    name = request.method.strip().partition("[")[0]
    command = ["oodbench", "run", "--methods", request.method.strip(), "--weights", f"{name}={shown}"]
    command += ["--encoder", encoder_name(request, find_job(request))]
    command += [word for setting in request.settings for word in ("--set", setting)]
    command += [word for plugin in request.plugins for word in ("--plugin", str(plugin))]
    command += ["--resize", request.resize] if request.resize else []
    say(shlex.join(command))
