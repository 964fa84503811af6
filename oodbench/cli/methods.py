"""oodbench methods: list, show, check, negatives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.group import NamesOrCommands
from oodbench.cli.help import METHOD_NAME, Names, examples, group_names
from oodbench.cli.output import configure_logging, print_contract, say
from oodbench.errors import UserError

if TYPE_CHECKING:
    from oodbench.data.imageset import ImageSet
    from oodbench.pipeline.events import Watch
    from oodbench.pipeline.jobs import Job
    from oodbench.pipeline.plan import Plan


GROUP = click.option("--group", default="", type=Names(group_names, several=False), help="Only methods of this group.")


@click.group(
    cls=NamesOrCommands,
    invoke_without_command=True,
    epilog=examples(
        "oodbench methods",
        "oodbench methods neglabel",
        "oodbench methods --group post-hoc --wide",
        "oodbench methods check my_method.py",
    ),
)
@GROUP
@shared.WIDE
@shared.JSON
@shared.PLUGINS
@click.pass_context
def methods(ctx: click.Context, group: str, wide: bool, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """List, show and check methods.

    Without a command, list all methods, or show NAME in full.
    """
    ctx.obj = plugins
    if ctx.invoked_subcommand is None:
        _list(group, wide, as_json, plugins)


@methods.command("list")
@GROUP
@shared.WIDE
@shared.JSON
@shared.PLUGINS
@click.pass_obj
def list_(outer: tuple[Path, ...], group: str, wide: bool, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """List the methods."""
    _list(group, wide, as_json, (*outer, *plugins))


def _list(group: str, wide: bool, as_json: bool, plugins: tuple[Path, ...]) -> None:
    from oodbench.cli import listings
    from oodbench.method import registry

    known = registry.methods(plugins)
    names = registry.group(group, known) if group else list(known)
    say(listings.methods([known[name] for name in names], shared.width(wide), as_json=as_json))


@methods.command()
@click.argument("name", type=METHOD_NAME)
@shared.PLUGINS
@click.pass_obj
def show(outer: tuple[Path, ...], name: str, plugins: tuple[Path, ...]) -> None:
    """Show a method in full."""
    from oodbench.cli import listings
    from oodbench.method import registry

    say(listings.method(registry.method_info(name, registry.methods((*outer, *plugins)))))


@methods.command()
@click.argument("method", type=METHOD_NAME)
@shared.SETTINGS
@shared.DEVICE
@shared.PLUGINS
@shared.VERBOSE
@click.pass_obj
def check(
    outer: tuple[Path, ...],
    method: str,
    settings: tuple[str, ...],
    device: str,
    plugins: tuple[Path, ...],
    verbose: bool,
) -> None:
    """Run the contract tests on a method of your own: FILE.py, or a NAME, optionally with [parameter=value].

    The method runs on a toy dataset of 1,024 calibration images; a StreamMethod has streams of 192. Exit code 1 if a
    test fails.
    """
    configure_logging(verbose)
    from oodbench.cli.progress import spinner

    job = _checked_job(method, settings, (*outer, *plugins))
    with spinner("importing torch"):
        from oodbench.pipeline import contract
        from oodbench.pipeline.task import pick_device

        where = pick_device(device)
    with spinner(f"checking {job.label}"):
        checks = contract.run_checks(job.info, job.parameters, where)
        if len(checks) > 1:  # it can be created
            problem = contract.other_process_problem(job.info, job.parameters, where)
            checks.append(("scores the same in another process", problem))
    print_contract(job.label, checks, contract.citation_problem(job.info))


def _checked_job(method: str, settings: tuple[str, ...], plugins: tuple[Path, ...]) -> Job:
    """Return the one method that `oodbench methods check` names; raise UserError for others."""
    from oodbench.method import registry
    from oodbench.pipeline.jobs import make_jobs
    from oodbench.pipeline.request import RunRequest

    known = registry.methods(plugins)
    if method.partition("[")[0].strip() not in known and (Path(method).suffix or os.sep in method):
        known, method = registry.methods((*plugins, Path(method))), Path(method).stem
    jobs = make_jobs(RunRequest(methods=method, settings=settings), known).rows
    if len(jobs) != 1:
        raise UserError(f"check one method at a time, not {method}: oodbench methods check {jobs[0].label}")
    return jobs[0]


@methods.command()
@click.argument("name", type=METHOD_NAME, default="neglabel")
@shared.PLUGINS
@shared.ID
@shared.OOD
@shared.ENCODER
@shared.DATA
@shared.SETTINGS
@click.pass_obj
def negatives(outer: tuple[Path, ...], /, name: str, plugins: tuple[Path, ...], id_: str, **options: Any) -> None:
    """Show the negative words that NAME mines.

    NAME is neglabel by default. Words that are class names of the ID or OOD sets are marked.
    """
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    request = request_from(methods=name, id=id_, plugins=(*outer, *plugins), allow_partial=True, **options)
    say(describe_negatives(make_plan(request)))


def describe_negatives(plan: Plan) -> str:
    """List the words that the plan's first method mines, farthest first, and their overlap with the class names.

    A negative word that names an ID class lowers the scores of that class; one that names an OOD class gives away what
    is to be detected.
    """
    from oodbench.cli.progress import text_progress

    job = plan.jobs[0]
    with text_progress() as watch:
        state = _fit(plan, watch)
    words: Sequence[str] = getattr(state, "words", ())
    if not words:
        raise UserError(f"{job.label} mines no words; neglabel does")
    similarity = [float(value) for value in state.similarity]
    known = {"ID": plan.classes.lines, **{one.listing.dataset.title: class_names(one.listing) for one in plan.ood}}
    lines = [
        f"{job.label}: {len(words):,} negative words for {plan.id.dataset.title}, encoder {plan.card.name}",
        f"similarity to the ID names: {min(similarity):.4f} to {max(similarity):.4f} (quantile "
        f"{job.parameters['quantile']:g} over {len(plan.classes.lines):,} classes)",
        "",
        "words that are class names, ignoring case",
        *(f"  {title}: {_overlap(words, names)}" for title, names in known.items()),
        "",
    ]
    folded = {title: {name.casefold() for name in names} for title, names in known.items()}
    for value, word in _farthest_first(similarity, words):
        of = ", ".join(title for title, names in folded.items() if word.casefold() in names)
        lines.append(f"{value:7.4f}  {word}" + (f"  [{of}]" if of else ""))
    return "\n".join(lines)


def _farthest_first(similarity: Sequence[float], words: Sequence[str]) -> list[tuple[float, str]]:
    """Sort by similarity, rounded to the four digits shown, then by word: later digits differ between processors."""
    return sorted((round(value, 4) + 0.0, word) for value, word in zip(similarity, words, strict=True))  # -0 + 0 is 0


def class_names(images: ImageSet) -> tuple[str, ...]:
    """Return the class names of an OOD set: its class list, else its folders; () if it is a single folder."""
    from oodbench.data import prompts

    if images.dataset.classes:
        return prompts.class_names(images.dataset.classes).lines
    if images.dataset.loader == "glyphs":  # split/number-name-of-the-concept
        folders = {name.partition("-")[2] for name in images.names}
    else:
        folders = {PurePosixPath(name).parent.name for name in images.names}
    if len(folders) < 2:
        return ()
    return tuple(sorted(name.replace("-", " ").replace("_", " ") for name in folders))


def _overlap(words: Sequence[str], names: Iterable[str]) -> str:
    """Describe how many class names are among the words."""
    mined = {word.casefold() for word in words}
    distinct = {name.casefold(): name for name in names}
    if not distinct:
        return "class names are unknown"
    common = sorted(name for folded, name in distinct.items() if folded in mined)
    return f"{len(common)} of {len(distinct):,}" + (f": {', '.join(common)}" if common else "")


def _fit(plan: Plan, watch: Watch) -> Any:
    """Fit the first method of a plan. Raise UserError for a ValueError of the method."""
    import torch

    from oodbench.pipeline.task import encoder_loader, make_task, method_resources, pick_device

    job = plan.jobs[0]
    method = job.build()
    device = pick_device(plan.request.device)
    task = make_task(plan, encoder_loader(plan, device), device, watch)
    torch.manual_seed(plan.request.seed)
    try:
        with torch.no_grad():
            return method.fit(task.for_method(method.needs, method_resources(plan, job, device)))
    except ValueError as error:
        raise UserError(f"{job.label}: {error}") from error
