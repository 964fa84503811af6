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

from oodbench.cli.common import FOLDER, configure, log, note, say, stoppable, tell

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainOutcome, TrainWatch


def followed(
    request: TrainRequest,
    tracking_uri: str | None,
    ready: Callable[[Ready], None],
    carry_out: Callable[[TrainRequest, TrainWatch], TrainOutcome] | None = None,
) -> TrainOutcome:
    """Train and show. `tracking_uri` None: the sqlite file beside the weights; "" or "none": no MLflow.

    `carry_out` trains elsewhere than in this process.
    """
    from oodbench import api as session
    from oodbench.cli.progress import TrainProgress
    from oodbench.tracking.curves import Sender, following
    from oodbench.training.plan import output_folder
    from oodbench.training.train import TrainWatch
    from oodbench.training.train import train as in_this_process

    tracker = session.tracker_of(output_folder(request), tracking_uri)
    if os.environ.get("RANK", "0") != "0":
        return in_this_process(request)
    with TrainProgress() as progress, ExitStack() as stack:
        sender = Sender()

        def begin(one: Ready) -> None:
            nonlocal sender
            ready(one)
            progress.begin(one.done, one.steps)
            if tracker is not None:
                sender = stack.enter_context(following(tracker, one.folder))

        outcome = (carry_out or in_this_process)(request, TrainWatch(progress.extracting, begin, progress.step))
        sender.status = "KILLED" if outcome.signal else "FINISHED"
    if sender.reason:
        logging.getLogger("oodbench.training").warning("%s", sender.reason)
    return outcome


SHOWN = 5  # things that were left out


@click.command()
@click.argument("method")
@click.option("--encoder", default="glyphs", help="As for run.", show_default=True)
@click.option("--resize", help="Resize filter, bicubic or bilinear. Default: that of the weights.")
@click.option(
    "--captions",
    default="glyphs",
    help="glyphs, a CSV file (filepath,caption), or tar shards: cc3m-{00000..00331}.tar, also as URL.",
    show_default=True,
)
@click.option("--data", type=FOLDER, help="Folder that the paths in the CSV start from. Default: that of the CSV.")
@click.option(
    "-o", "--output", "out", type=FOLDER, help="File of weights. Default: weights/METHOD-ENCODER.safetensors."
)
@click.option("--set", "settings", multiple=True, help="A hyper-parameter: clipn.tso=0. Repeatable.")
@click.option(
    "--config", type=FOLDER, is_eager=True, expose_value=False, callback=configure, help="TOML file of flags."
)
@click.option("--epochs", type=int, help="Passes over the captions. Default here and below: the method's own.")
@click.option("--steps", type=int, help="Length of the schedule in steps, instead of --epochs.")
@click.option(
    "--batch-size", "batch", type=int, help="Pairs in one step, over all processes; the loss compares all of them."
)
@click.option("--chunk", default=256, help="Pairs computed at once; less needs less memory.", show_default=True)
@click.option("--lr", type=float, help="Highest learning rate.")
@click.option("--betas", help="Of AdamW: 0.9,0.98.")
@click.option("--eps", type=float, help="Of AdamW.")
@click.option("--weight-decay", type=float, help="Of AdamW.")
@click.option("--warmup", type=int, help="Steps until the highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...", show_default=True)
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16 (mixed precision).", show_default=True)
@click.option("--augment", is_flag=True, help="Random crops through the encoder at every step, as CLIPN's release.")
@click.option("--on-error", default="stop", help="Broken pairs: stop or skip.", show_default=True)
@click.option("--checkpoint-every", default=500, help="Steps between checkpoints.", show_default=True)
@click.option("--max-steps", type=int, help="Stop after so many steps of the schedule; the same command goes on.")
@click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
@click.option("--restart", is_flag=True, help="Throw away a training that is kept beside --output.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
@click.option("--store", type=FOLDER, help="Folder of embeddings. Default: $OODBENCH_STORE, else user cache.")
@click.option("--shared", default="", help="URL of a store behind it that all machines reach. $OODBENCH_SHARED.")
@click.option("--ray", default="", help="local, auto or an address: Ray starts the processes, and again when one dies.")
@click.option("--num-workers", default=0, help="Processes on Ray. Default: one per GPU, or two where there is none.")
@click.option(
    "--tracking-uri",
    help="MLflow server. Default: $MLFLOW_TRACKING_URI, else a sqlite file beside --output; 'none' for no MLflow.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def train(
    tracking_uri: str | None, verbose: bool, betas: str | None, ray: str, num_workers: int, **options: Any
) -> None:
    """Train a method's part on captions: clipn, zoc. The same command goes on where it was stopped.

    Several GPUs or machines: --ray, or torchrun --nproc-per-node 4 --no-python oodbench train ...
    """
    log(verbose)
    _quiet_unless_told(verbose)
    pass
    from oodbench.errors import Diverged
    from oodbench.training.plan import TrainRequest

    request = TrainRequest(betas=_numbers(betas), **options)
    try:
        if ray:
            from oodbench.distributed.training import train as on_ray

            with stoppable():
                outcome = followed(request, tracking_uri, _tell_ready, lambda r, w: on_ray(r, ray, num_workers, w))
        else:
            outcome = followed(request, tracking_uri, _tell_ready)
    except Diverged as error:
        todo = "a lower --lr" + (", or --precision fp32" if request.compute != "fp32" else "")
        tell(f"{error}; the last good checkpoint stays; try {todo}")
        sys.exit(1)
    if outcome.is_main:
        _tell(outcome, request)
    if outcome.signal:
        sys.exit(128 + outcome.signal)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} are no numbers, as 0.9,0.98 are", param_hint="--betas") from error


def _quiet_unless_told(verbose: bool) -> None:
    """Outside a terminal, a line every few steps takes the place of the bar."""
    if not verbose and not sys.stderr.isatty():
        logging.getLogger("oodbench.training").setLevel(logging.INFO)


def _tell_ready(ready: Ready) -> None:
    """What is trained, on what, from where."""
    plan, request = ready.plan, ready.plan.request
    images = "random crops, encoded at every step (--augment)" if request.augment else "centre crops, encoded once"
    for told in plan.encoder.card.notes:
        note(f"note: {told}")
    note(f"{plan.job.label} for {plan.encoder.card.name}; images: {images}")
    say(
        f"{ready.pairs:,} pairs of {ready.images:,} images; {ready.steps:,} steps of {plan.optimiser.batch:,}", err=True
    )
    for one in ready.skipped[:SHOWN]:
        note(f"left out: {one}")
    if ready.skipped:
        note(f"left out: {len(ready.skipped):,} in all")
    if ready.done:
        note(f"going on after step {ready.done:,}")


def _tell(outcome: TrainOutcome, request: TrainRequest) -> None:
    if outcome.signal:
        say(
            f"stopped and saved after step {outcome.done:,} of {outcome.steps:,}; the same command goes on from there",
            err=True,
        )
        return
    if outcome.done < outcome.steps:
        note(f"stopped by --max-steps after step {outcome.done:,} of {outcome.steps:,}")
    elif not outcome.made:
        note(f"finished before: all {outcome.steps:,} steps are made (--restart trains anew)")
    for name, value in outcome.terms.items():
        note(f"{name} {value:.4f}")
    weights = Path(outcome.out)
    shown = weights.relative_to(Path.cwd()) if weights.is_relative_to(Path.cwd()) else weights
    name = request.method.strip().partition("[")[0]
    command = ["oodbench", "run", "--methods", request.method.strip(), "--weights", f"{name}={shown}"]
    command += ["--encoder", request.encoder]
    command += [word for one in request.settings for word in ("--set", one)]
    command += [word for one in request.plugins for word in ("--plugin", str(one))]
    command += ["--resize", request.resize] if request.resize else []
    say(shlex.join(command))
