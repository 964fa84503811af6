"""oodbench run."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli.common import FOLDER, Integers, configure, log, note, print_tables, say, stoppable

if TYPE_CHECKING:
    from oodbench.pipeline.events import Watch
    from oodbench.pipeline.plan import Plan
    from oodbench.pipeline.request import RunRequest


def describe_placement(plan: Plan) -> str:
    """The placement in words; "" for a run in this process. UserError when the cluster is not there or too small."""
    from oodbench.cli.listings import bytes_text
    from oodbench.distributed.cluster import (
        ResourceRequest,
        cluster_address,
        cluster_nodes,
        connect,
        local_nodes,
        place_workers,
    )
    from oodbench.distributed.payload import pack, remove_token
    from oodbench.distributed.worker import extraction_jobs

    request = plan.request
    where = cluster_address(request.ray, request.device)
    if not where:
        return ""
    if where == "local":
        offered = local_nodes()
    else:
        with connect(where):
            offered = cluster_nodes()
    found = place_workers(ResourceRequest(request.device, request.actors, request.gpus_per_actor), offered)
    cpus, gpus = (sum(node.get(kind, 0) for node in offered) for kind in ("CPU", "GPU"))
    works = extraction_jobs(plan)
    missing = [s for work in works for s in work.shards() if not work.store.has("embeddings", work.inputs(*s))]
    card = plan.card
    width = card.embed_dim + (0 if card.activation == "embedding" else card.width)
    images = sum(stop - start for start, stop in missing)
    parcel = pack(plan)
    remove_token(parcel)
    return "\n".join(
        (
            "",
            f"ray        {where}: {len(offered)} nodes with {cpus:g} CPU and {gpus:g} GPU",
            f"  {found.describe()}",
            f"  {len(missing):,} shards to encode, about {bytes_text(images * width * 4)} to the store",
            f"  {bytes_text(len(pickle.dumps(parcel)))} sent to every worker; scores and embeddings go by the store",
        )
    )


def describe(plan: Plan) -> str:
    """The plan in words; looks into the store, computes nothing."""
    from oodbench.cli import listings
    from oodbench.pipeline.score import find_scores

    pass
    from oodbench.errors import printable

    card = plan.card
    lines = [
        f"benchmark  {plan.benchmark.name}: {plan.benchmark.title}",
        f"encoder    {card.name}, weights {card.weights[:12]}, {card.size[0]}x{card.size[1]} {card.interpolation} "
        f"{card.resize_mode}, scale {card.scale:.4g}, {plan.request.precision}",
        f"classes    {len(plan.classes.lines)} from '{plan.classes.name}'",
        f"store      {plan.store.root}",
        "",
        "images",
    ]
    total = 0
    for listing in plan.listings:
        missing = plan.work(listing).missing()
        total += missing
        state = "stored" if not missing else f"{missing:,} to encode"
        of = f" of {listing.dataset.count:,}" if listing.dataset.count and listing.dataset.count != len(listing) else ""
        lines.append(f"  {listing.dataset.name}: {len(listing):,}{of} images, {state}")
    width = card.embed_dim + (0 if card.activation == "embedding" else card.width)
    lines += [f"  {total:,} images to encode, about {listings.bytes_text(total * width * 4)} to store", "", "jobs"]
    for job in plan.jobs:
        have = [x.dataset.name for x in plan.listings if find_scores(plan, job, x)]
        lacking = [x.dataset.name for x in plan.listings if x.dataset.name not in have]
        state = "stored" if not lacking else f"to score: {', '.join(lacking)}"
        values = ", ".join(f"{k}={v}" for k, v in job.parameters.items())
        lines.append(f"  {job.label} ({values}): {state}")
    lines += [f"  left out: {name}: {reason}" for name, reason in (*plan.skipped_methods, *plan.incompatible_methods)]
    placed = [describe_placement(plan)] if plan.request.ray else []
    return "\n".join([*map(printable, lines), *placed]).rstrip()


@click.command()
@click.option("--methods", default="all", help="mcm,energy[scale=1],... or all.", show_default=True)
@click.option("--id", "id_", default="glyphs", help="ID set or benchmark: a name, or folder:PATH.", show_default=True)
@click.option(
    "--ood", default="", help="OOD sets, comma-separated: names, or folder:PATH. Default: the ID set's protocol."
)
@click.option("--classes", default="", help="Class names of the ID set: a list's name, or a file with one a line.")
@click.option(
    "--encoder",
    default="",
    help="glyphs, ARCH/TAG, ARCH/TAG@FILE, ARCH@FILE, CONFIG.json@FILE or hf-hub:OWNER/MODEL; several with commas.",
)
@click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")
@click.option("--set", "settings", multiple=True, help="A hyper-parameter: mcm.temperature=0.01. Repeatable.")
@click.option("--sweep", "sweeps", multiple=True, help="Several values: neglabel.num_negatives=1000,5000. Repeatable.")
@click.option("--templates", default="", help="Prompts for every method: a set's name, a file, or 'a photo of a {}'.")
@click.option("--resize", help="Resize filter, bicubic or bilinear. Default: that of the weights.")
@click.option(
    "--config", type=FOLDER, is_eager=True, expose_value=False, callback=configure, help="TOML file of flags."
)
@click.option("--seed", type=Integers(), default="0", help="Several as 0,1,2: a row for each.", show_default=True)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...", show_default=True)
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16.", show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
@click.option("--limit", type=int, help="A smoke run on N images of each set.")
@click.option(
    "--allow-partial", is_flag=True, help="Run on fewer images than the catalogue counts; stamped in the table."
)
@click.option("--skip-missing", is_flag=True, help="Go on without OOD sets that are not there; each is named.")
@click.option("--strict", is_flag=True, help="Identify images and weights by content, not by name, size and times.")
@click.option("--on-error", default="stop", help="A broken image: stop or skip.", show_default=True)
@click.option(
    "--at95", default="first", help="FPR95 rule: first, nearest (MCM) or interpolate (CLIPN).", show_default=True
)
@click.option(
    "--aupr", default="average_precision", help="average_precision or trapezoid (OpenOOD).", show_default=True
)
@click.option(
    "--bootstrap", default=1000, help="Resamples behind the intervals; 0: only AUROC has one.", show_default=True
)
@click.option("--weights", multiple=True, help="Trained weights of a method: clipn=FILE. Repeatable.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
@click.option("--results", "out", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option(
    "--store", type=FOLDER, help="Folder of embeddings and scores. Default: $OODBENCH_STORE, else user cache."
)
@click.option(
    "--shared",
    default="",
    help="URL of a store behind it that all machines reach: s3://bucket/oodbench. $OODBENCH_SHARED.",
)
@click.option(
    "--ray", default="", help="local, auto, an address, or no. Default: Ray with several GPUs or RAY_ADDRESS."
)
@click.option("--actors", default=0, help="Workers on Ray. Default: one per GPU, or two where there is none.")
@click.option("--gpus-per-actor", default=1.0, help="GPUs of each, such as 0.5.", show_default=True)
@click.option(
    "--events", type=FOLDER, help="Log of what happened, JSON lines. Default: with --ray, events.jsonl in --results."
)
@click.option(
    "--tracking-uri",
    help="MLflow server. Default: $MLFLOW_TRACKING_URI, else a sqlite file beside the results; 'none' for no MLflow.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan: jobs, what is stored, what is missing.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def run(
    id_: str, encoder: str, seed: tuple[int, ...], tracking_uri: str | None, events: Path | None, **options: Any
) -> None:
    """Encode the images once, score them with every method, print the table."""
    dry_run, verbose = options.pop("dry_run"), options.pop("verbose")
    log(verbose)
    from oodbench import api as session
    from oodbench import results as provenance
    from oodbench.pipeline import jobs
    from oodbench.pipeline.plan import make_plans
    from oodbench.pipeline.request import request_from
    from oodbench.report.verify import deviation

    tracker = session.tracker_of(options["out"], tracking_uri)
    requests = jobs.expand_requests(request_from(id=id_, **options), encoder, seed)
    plans = make_plans(requests)
    for told in dict.fromkeys(told for plan in plans for told in (*plan.card.notes, *plan.notes)):
        note(f"note: {told}")
    if dry_run:
        pass

        say("\n\n".join(describe(plan) for plan in plans))
        return
    with stoppable(), _watching(plans[0].request, events) as watch:
        outcomes = [session.run(plan, watch) for plan in plans]
    results = [result for outcome in outcomes for result in outcome.results]
    print_tables(results)
    if apart := deviation(results):
        note(f"note: {apart}")
    for name, reason in dict.fromkeys(one for outcome in outcomes for one in outcome.skipped_methods):
        note(f"left out: {name}: {reason}")
    devices = provenance.elsewhere(requests[0].device, results)
    for why in dict.fromkeys([devices, *(session.record(tracker, outcome) for outcome in outcomes)]):
        if why:
            note(f"note: {why}")
    note(f"rows: {plans[0].request.out / 'runs'}")
    failures = [r for r in results if r.status == "failed"]
    for result in failures:
        note(f"failed: {result.label}: {result.error}")
    if failures:
        sys.exit(1)


@contextmanager
def _watching(request: RunRequest, events: Path | None) -> Iterator[Watch]:
    """Show the progress of runs, and write their events to a file if one is named or they run on Ray."""
    from oodbench.cli.progress import RunProgress
    from oodbench.distributed.cluster import cluster_address
    from oodbench.pipeline.events import Event, log_to

    if events is None and request.ray and cluster_address(request.ray, request.device):
        events = request.out / "events.jsonl"
    with RunProgress() as progress, log_to(events) as write:

        def told(event: Event) -> None:
            progress.watch.told(event)
            write(event)

        yield dataclasses.replace(progress.watch, told=told)
