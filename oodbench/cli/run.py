"""oodbench run."""

from __future__ import annotations

import dataclasses
import pickle
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.group import sigterm_raises
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER, Integers
from oodbench.cli.output import configure_logging, note, print_tables, say
from oodbench.cli.tracking import mlflow_steps
from oodbench.errors import redact

if TYPE_CHECKING:
    from oodbench.pipeline.events import Watch
    from oodbench.pipeline.jobs import Job
    from oodbench.pipeline.plan import Plan
    from oodbench.results import Result
    from oodbench.tracking import Tracker


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench run",
        "oodbench run --methods mcm,energy --id imagenet1k --dry-run",
        "oodbench run --methods core,knn --id imagenet1k --shots 16 --encoder ViT-B-16/openai",
        "oodbench run --id folder:my-animals --ood folder:other-photos --encoder ViT-B-32/openai",
        "oodbench run --sweep neglabel.num_negatives=1000,5000,10000",
    ),
)
@shared.METHODS
@shared.ID
@shared.OOD
@shared.CALIBRATION
@shared.CALIBRATION_LIMIT
@shared.SHOTS
@shared.SHOT_SEED
@shared.CLASSES
@shared.CLEAN_NAMES
@shared.ENCODERS
@shared.DATA
@shared.SETTINGS
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    help="Several values of a hyper-parameter: neglabel.num_negatives=1000,5000. Repeatable.",
)
@shared.TEMPLATES
@shared.RESIZE
@shared.CONFIG
@click.option(
    "--seed",
    type=Integers(),
    default="0",
    help="Random seed; several, such as 0,1,2, give one result each.",
    show_default=True,
)
@shared.DEVICE
@shared.PRECISION
@shared.BATCH_SIZE
@click.option(
    "--keep-patches",
    is_flag=True,
    help="Store patch features, which some methods read, in half precision: 200 or 300 KB per image for ViT-B-16.",
)
@shared.WORKERS
@click.option("--limit", type=int, help="Use a subset of N images of each set, for a quick test.")
@click.option(
    "--allow-partial", is_flag=True, help="Run on sets with fewer images than the catalogue declares; tables say so."
)
@click.option(
    "--skip-missing", is_flag=True, help="Skip missing OOD sets, and methods whose weights are missing, and list them."
)
@click.option("--strict", is_flag=True, help="Identify images and weights by their content, not by name and size.")
@shared.ON_ERROR
@shared.AT95
@shared.AUPR
@shared.BOOTSTRAP
@click.option(
    "--stream-order",
    default="shuffled",
    help="Orders of the test images for methods that learn from them, separated by commas: shuffled, id-first, "
    "ood-first, blocks=N.",
    show_default=True,
)
@click.option(
    "--stream-seeds",
    type=Integers(),
    default="0,1,2",
    help="Seeds that shuffle the test images; each gives a result.",
    show_default=True,
)
@click.option("--stream-batch", default=256, help="Test images per batch of a stream.", show_default=True)
@click.option(
    "--stream-ratio", default="all", help="All test images of a pair, or a ratio ID:OOD such as 1:1.", show_default=True
)
@shared.WEIGHTS
@shared.PLUGINS
@shared.RESULTS
@shared.STORE
@shared.SHARED
@click.option(
    "--ray",
    default="",
    help="Run on Ray: local, auto, an address, or no. Default: Ray if there are several GPUs or RAY_ADDRESS is set.",
)
@click.option("--actors", default=0, help="Workers on Ray. Default: one per GPU, or two without a GPU.")
@click.option("--gpus-per-actor", default=1.0, help="GPUs per worker, such as 0.5.", show_default=True)
@click.option(
    "--events",
    type=FOLDER,
    help="Append events to this file as JSON lines. Default: with --ray, events.jsonl in --results.",
)
@click.option(
    "--tracking-uri",
    help="MLflow server, or 'none'. Default: $MLFLOW_TRACKING_URI, else a SQLite file in the results folder.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan: methods, and what is stored or missing.")
@shared.VERBOSE
def run(
    id_: str,
    encoder: str,
    seed: tuple[int, ...],
    results: Path,
    tracking_uri: str | None,
    events: Path | None,
    dry_run: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Score image sets with methods, and print the table.

    Every image is encoded once. Rerun the same command to resume.
    """
    configure_logging(verbose)
    from oodbench import api
    from oodbench.cli.progress import spinner
    from oodbench.pipeline import jobs
    from oodbench.pipeline.plan import make_plans
    from oodbench.pipeline.request import request_from
    from oodbench.report import tables
    from oodbench.report.verify import deviation
    from oodbench.results import elsewhere

    tracker = api.tracker_of(results, tracking_uri)
    requests = jobs.expand_requests(request_from(id=id_, out=results, **options), encoder, seed)
    with spinner("reading image sets and weights"):
        plans = make_plans(requests)
    for remark in dict.fromkeys(remark for plan in plans for remark in (*plan.card.notes, *plan.notes)):
        note(f"note: {remark}")
    if dry_run:
        say("\n\n".join(plan_text(plan) for plan in plans))
        return
    for problem in api.plugin_problems(plans):
        note(f"warning: {problem}")
    with sigterm_raises(), _watching(plans, events) as watch:
        outcomes = [api.run(plan, watch) for plan in plans]
    rows = [result for outcome in outcomes for result in outcome.results]
    print_tables(tables(rows))
    if difference := deviation(rows):
        note(f"note: {difference}")
    for name, reason in dict.fromkeys(skipped for outcome in outcomes for skipped in outcome.skipped_methods):
        note(f"skipped: {name}: {reason}")
    devices = elsewhere(requests[0].device, rows)
    for reason in dict.fromkeys([devices, *(api.record(tracker, outcome) for outcome in outcomes)]):
        if reason:
            note(f"note: {reason}")
    note(f"results: {plans[0].request.out / 'runs'}")
    for step in _next_steps(rows, plans[0].request.out, tracker):
        note(f"next: {step}")
    failures = [row for row in rows if row.status == "failed"]
    for row in failures:
        note(f"failed: {row.label}: {row.error}")
    if failures:
        sys.exit(1)


def _next_steps(rows: Sequence[Result], results: Path, tracker: Tracker | None) -> list[str]:
    """Return commands that show the results of a run as a page, in LaTeX and in MLflow; [] without results."""
    if all(row.status == "failed" for row in rows):
        return []
    report = ["oodbench", "report", *(["--results", str(results)] if results != Path("results") else [])]
    page = [*report, "--format", "html", "--output", str(results / "report.html")]
    steps = [redact(shlex.join(page)), redact(shlex.join([*report, "--format", "latex"]))]
    return steps if tracker is None else [*steps, *mlflow_steps(tracker, rows)]


@contextmanager
def _watching(plans: Sequence[Plan], events: Path | None) -> Iterator[Watch]:
    """Show the progress of runs, and write their events to a file if one is named or they run on Ray."""
    from oodbench.cli.progress import RunProgress
    from oodbench.distributed.cluster import cluster_address
    from oodbench.pipeline.events import Event, log_to

    request = plans[0].request
    if events is None and request.ray and cluster_address(request.ray, request.device):
        events = request.out / "events.jsonl"
    with RunProgress(sum(_row_count(plan) for plan in plans)) as progress, log_to(events) as write:

        def show_and_write(event: Event) -> None:
            progress.watch.event(event)
            write(event)

        yield dataclasses.replace(progress.watch, event=show_and_write)


def _row_count(plan: Plan) -> int:
    """Return the number of results of a plan: one per method, and one per order and seed for streams."""
    return sum(len(plan.protocols) if job.is_stream else 1 for job in plan.rows)


def plan_text(plan: Plan) -> str:
    """Describe a plan for --dry-run. Only stored entries are looked up, and the time per prompt is measured."""
    from oodbench.cli.listings import bytes_text
    from oodbench.errors import printable
    from oodbench.pipeline.evaluate import access_of
    from oodbench.pipeline.score import find_scores
    from oodbench.pipeline.views import view_jobs

    card = plan.card
    lines = [
        f"benchmark  {plan.benchmark.name}: {plan.benchmark.title}",
        f"encoder    {card.name}, weights {card.weights[:12]}, {card.size[0]}x{card.size[1]} {card.interpolation} "
        f"{card.resize_mode}, scale {card.scale:.4g}, {plan.request.precision}",
        f"classes    {len(plan.classes.lines)} (list: {plan.classes.name})",
        f"store      {plan.store.root}",
        "",
        "images",
    ]
    total = 0
    for images in plan.listings:
        missing = plan.extraction_job(images).missing()
        total += missing
        state = "stored" if not missing else f"{missing:,} to encode"
        of = f" of {images.dataset.count:,}" if images.dataset.count and images.dataset.count != len(images) else ""
        lines.append(f"  {images.dataset.name}: {len(images):,}{of} images, {state}")
    size = total * _embedding_bytes(plan)
    for job in plan.jobs:
        in_views = [view_jobs(plan, job, plan.extraction_job(images)) for images in plan.listings]
        if in_views[0]:
            count = sum(view.missing() for views in in_views for view in views)
            views = f"{len(in_views[0])} view{'s' * (len(in_views[0]) > 1)}"
            state = f"{count:,} to encode" if count else "stored"
            lines.append(f"  {job.label}: {views} of {sum(map(len, plan.listings)):,} images, {state}")
            total, size = total + count, size + count * 4 * plan.card.embed_dim
    patched = [job for job in plan.jobs if job.info.patch_fields]
    again = [images for images in plan.listings if any(not find_scores(plan, job, images) for job in patched)]
    if count := sum(len(images) for images in again if not plan.extraction_job(images).missing()):
        names = ", ".join(job.label for job in patched)
        lines.append(f"  {names}: patches of {count:,} images: one more pass, unless --keep-patches stored them")
    lines += [
        f"  {total:,} images to encode, about {bytes_text(size)} to store",
        "",
        "methods",
    ]
    counted = []  # methods with scores missing, and whether they were fitted for another set
    for job in plan.jobs:
        state, fitted = _method_state(plan, job)
        counted += [] if state == "stored" else [(job, fitted)]
        values = ", ".join(f"{name}={value}" for name, value in job.parameters.items())
        readers = ", ".join(one.label for one in plan.rows if one.base == job.label) if job.only_base else ""
        lines.append(f"  {job.label} ({values}){f', base of {readers}' if readers else ''}: {state}")
        if not readers and (seen := access_of(plan, job).facts):
            lines.append(f"    sees {'; '.join(seen)}")
    for name, reason in (*plan.skipped_methods, *plan.incompatible_methods):
        lines += f"  skipped: {name}: {reason}".replace("\n  ", "\n    ").split("\n")
    lines += [*_stream_lines(plan), *_text_lines(plan, counted)]
    placement = [_placement_text(plan)] if plan.request.ray else []
    return "\n".join([*map(printable, lines), *placement]).rstrip()


def _method_state(plan: Plan, job: Job) -> tuple[str, bool]:
    """Return which scores of a method are missing, and whether it was fitted for another image set."""
    from oodbench.pipeline.score import find_scores
    from oodbench.pipeline.streams import find_streams, is_stored

    if job.is_stream:
        count = len(plan.ood) * len(plan.protocols)
        missing = count - sum(len(find_streams(plan, job, protocol)) for protocol in plan.protocols)
        return f"{missing:,} of {count:,} streams to score" if missing else "stored", False
    if job.only_base and all(is_stored(plan, one) for one in plan.rows if one.base == job.label):
        return "stored", False
    missing_sets = [images.dataset.name for images in plan.listings if not find_scores(plan, job, images)]
    state = f"to score: {', '.join(missing_sets)}" if missing_sets else "stored"
    return state, len(missing_sets) < len(plan.listings)


def _stream_lines(plan: Plan) -> list[str]:
    """Describe the protocol of the streams, if a method of the plan learns from the test images."""
    if not any(job.is_stream for job in plan.jobs):
        return []
    request, protocols = plan.request, plan.protocols
    orders = ", ".join(dict.fromkeys(protocol.order for protocol in protocols))
    seeds = ", ".join(dict.fromkeys(str(protocol.seed) for protocol in protocols))
    ratio = "all images" if protocols[0].ratio == "all" else f"ID:OOD {protocols[0].ratio}"
    return [
        "",
        "streams",
        f"  order {orders}; seed {seeds}; batch {request.stream_batch:,}; {ratio}; the method is reset for each pair",
        f"  {len(plan.ood)} pairs x {len(protocols)} = {len(plan.ood) * len(protocols)} streams for each method",
    ]


def _text_lines(plan: Plan, jobs: Sequence[tuple[Job, bool]]) -> list[str]:
    """Describe the prompts that methods have to encode, and estimate the time."""
    from oodbench.pipeline.text_counts import WORTH_TIMING, seconds_per_prompt, text_counts

    counts = [count for count in text_counts(plan, jobs) if count.total]
    if not counts:
        return []
    total = sum(count.total for count in counts)
    seconds = seconds_per_prompt(plan) if total >= WORTH_TIMING else None
    lines = ["", "texts"]
    for count in counts:
        parts = [f"{count.classes:,} prompts of class names"] if count.classes else []
        parts += [f"{count.others:,} other texts"] if count.others else []
        lines.append(f"  {count.label}: {' and '.join(parts)}{_estimate(count.total, seconds)}")
    speed = f", at {1 / seconds:,.0f} per second on this machine" if seconds else ""
    kept = "stored texts are not encoded again, and new ones are stored for later runs with this encoder"
    return [*lines, f"  at most {total:,} to encode{_estimate(total, seconds)}{speed}; {kept}"]


def _estimate(texts: int, seconds: float | None) -> str:
    return f", about {_duration(texts * seconds)}" if seconds else ""


def _duration(seconds: float) -> str:
    """Return `40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _placement_text(plan: Plan) -> str:
    """Describe where a plan runs on Ray; "" if in this process. Raise UserError for a missing or too small cluster."""
    from oodbench.cli.listings import bytes_text
    from oodbench.distributed import cluster
    from oodbench.distributed.payload import pack, remove_token
    from oodbench.distributed.worker import extraction_jobs

    request = plan.request
    address = cluster.cluster_address(request.ray, request.device)
    if not address:
        return ""
    if address == "local":
        nodes = cluster.local_nodes()
    else:
        with cluster.connect(address):
            nodes = cluster.cluster_nodes()
    wanted = cluster.ResourceRequest(request.device, request.actors, request.gpus_per_actor)
    placement = cluster.place_workers(wanted, nodes)
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    jobs = extraction_jobs(plan)
    missing = [shard for job in jobs for shard in job.shards() if not job.store.has("embeddings", job.inputs(*shard))]
    size = sum(stop - start for start, stop in missing) * _embedding_bytes(plan)
    payload = pack(plan)
    remove_token(payload)
    return "\n".join(
        (
            "",
            f"ray        {address}: {len(nodes)} nodes with {cpus:g} CPU and {gpus:g} GPU",
            f"  {placement.describe()}",
            f"  {len(missing):,} shards to encode, about {bytes_text(size)} to the store",
            f"  {bytes_text(len(pickle.dumps(payload)))} sent to every worker; scores and embeddings use the store",
        )
    )


def _embedding_bytes(plan: Plan) -> int:
    """Return the number of bytes that the store keeps per image."""
    card = plan.card
    return 4 * (card.embed_dim + (0 if card.activation == "embedding" else card.width))
