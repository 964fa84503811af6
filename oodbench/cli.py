"""The command line: run, report, methods, datasets, store, check, sync. Heavy imports happen inside the commands."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from oodbench.result import Result

FOLDER = click.Path(path_type=Path)


class Group(click.Group):
    """Turns UserError into one line and exit code 2, and suggests commands."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            for problem in str(error).splitlines():
                click.echo(problem if problem.startswith("  ") else f"error: {problem}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("stopped; what is finished is stored, and the same command goes on from there", err=True)
            ctx.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="oodbench")
def main() -> None:
    """Compare CLIP-based out-of-distribution detection methods.

    \b
    oodbench run                                     every method on the embedded benchmark, offline
    oodbench run --methods mcm,energy --id imagenet1k --encoder ViT-B-16/openai --data DIR
    oodbench report --format latex                   the table of what has been run
    """


def _configure(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """--config: a TOML file of flags becomes the defaults; flags on the command line win."""
    if path is None:
        return
    import tomllib

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {path}: {error}") from error
    flags = {p.name or "": p for p in ctx.command.params if p.name != "config"}
    spelled = {max(flag.opts, key=len).lstrip("-").replace("-", "_"): name for name, flag in flags.items()}
    defaults: dict[str, Any] = {}
    for key, value in raw.items():
        name = spelled.get(key.replace("-", "_"))
        if name is None:
            raise UserError(
                f"--config {path}: no flag '{key}'{did_you_mean(key, [s.replace('_', '-') for s in spelled])}"
            )
        if name == "settings" and isinstance(value, dict):
            from oodbench.result import flatten
            from oodbench.values import written

            value = [f"{k}={written(v)}" for k, v in flatten(value).items()]
        elif isinstance(value, list) and not flags[name].multiple:
            quote = '"' if name == "ood" else ""  # a path may have a comma
            value = ",".join(f"{quote}{v}{quote}" for v in value)
        elif flags[name].multiple and not isinstance(value, list):
            value = [value]
        _check_flag(f"--config {path}: '{key}'", flags[name], value)
        defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _check_flag(where: str, flag: click.Parameter, value: Any) -> None:
    """Refuse a TOML value that click would bend to its type, such as 1.7 for a seed."""
    kind = {"integer": int, "boolean": bool}.get(flag.type.name, str)
    for one in value if flag.multiple else [value]:
        if not isinstance(one, kind) or (kind is int and isinstance(one, bool)):
            raise UserError(f"{where} takes a {flag.type.name}, not {one!r}")


@main.command()
@click.option("--methods", default="all", help="mcm,energy[scale=1],... or all.", show_default=True)
@click.option("--id", "id_", default="glyphs", help="ID set or benchmark: a name, or folder:PATH.", show_default=True)
@click.option(
    "--ood", default="", help="OOD sets, comma-separated: names, or folder:PATH. Default: the ID set's protocol."
)
@click.option("--classes", default="", help="Class names of the ID set: a list's name, or a file with one a line.")
@click.option(
    "--encoder", default="", help="glyphs, ARCH/TAG, ARCH/TAG@FILE, ARCH@FILE, CONFIG.json@FILE or hf-hub:OWNER/MODEL."
)
@click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")
@click.option("--set", "settings", multiple=True, help="A hyper-parameter: mcm.temperature=0.01. Repeatable.")
@click.option("--templates", default="", help="Prompts for every method: a set's name, a file, or 'a photo of a {}'.")
@click.option("--resize", help="Resize filter, bicubic or bilinear. Default: that of the weights.")
@click.option(
    "--config", type=FOLDER, is_eager=True, expose_value=False, callback=_configure, help="TOML file of flags."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...", show_default=True)
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16.", show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
@click.option("--limit", type=int, help="A smoke run on N images of each set.")
@click.option(
    "--allow-partial", is_flag=True, help="Run on fewer images than the catalogue counts; stamped in the table."
)
@click.option("--strict", is_flag=True, help="Identify images by content instead of name, size and time.")
@click.option("--on-error", default="stop", help="A broken image: stop or skip.", show_default=True)
@click.option(
    "--at95", default="first", help="FPR95 rule: first, nearest (MCM) or interpolate (CLIPN).", show_default=True
)
@click.option(
    "--aupr", default="average_precision", help="average_precision or trapezoid (OpenOOD).", show_default=True
)
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
@click.option("--out", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option(
    "--store", type=FOLDER, help="Folder of embeddings and scores. Default: $OODBENCH_STORE, else user cache."
)
@click.option("--tracking-uri", help="MLflow server. Default: a sqlite file beside the results; 'none' for no MLflow.")
@click.option("--dry-run", is_flag=True, help="Print the plan: jobs, what is stored, what is missing.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def run(id_: str, tracking_uri: str | None, dry_run: bool, verbose: bool, **options: Any) -> None:
    """Encode the images once, score them with every method, print the table."""
    _log(verbose)
    from oodbench import session
    from oodbench.plan import make_plan

    tracker = session.tracker_of(options["out"], tracking_uri)
    plan = make_plan(session.request_from(id=id_, **options))
    for note in plan.card.notes:
        click.echo(f"note: {note}", err=True)
    if dry_run:
        from oodbench.dryrun import describe

        click.echo(describe(plan))
        return
    from oodbench import runner
    from oodbench.progress import Progress

    with Progress() as progress:
        outcome = runner.run(plan, progress.watch)
    _print_tables(outcome.results)
    for name, reason in outcome.left_out:
        click.echo(f"left out: {name}: {reason}", err=True)
    why = session.record(tracker, outcome)
    if why:
        click.echo(f"note: {why}", err=True)
    click.echo(f"rows: {plan.request.out / 'runs'}", err=True)
    failures = [r for r in outcome.results if r.status == "failed"]
    for result in failures:
        click.echo(f"failed: {result.label}: {result.error}", err=True)
    if failures:
        sys.exit(1)


@main.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--format", "form", default="", help="latex, markdown or csv. Default: a table for the terminal.")
def report(results: Path, form: str) -> None:
    """Print the tables of the rows in a results folder."""
    from oodbench import report as tables_of
    from oodbench.result import rows

    forms = {"latex": tables_of.latex, "markdown": tables_of.markdown, "csv": None, "": None}
    if form not in forms:
        raise UserError(f"no format '{form}'{did_you_mean(form, [f for f in forms if f])}")
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --out {results}")
    found = [result for _, result in rows(results)]
    if not found:
        raise UserError(f"{results} holds no rows; make some with: oodbench run --out {results}")
    writer = forms[form]
    tables = tables_of.tables(found)
    if form == "csv":
        click.echo(tables_of.csv(tables), nl=False)
    elif writer:
        click.echo("\n".join(writer(table) for table in tables))
    else:
        _print_tables(found)


@main.command()
@click.argument("name", required=False)
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
@click.option(
    "--negatives", is_flag=True, help="The words that neglabel mines, and their overlap with ID and OOD names."
)
@click.option("--id", "id_", default="glyphs", help="With --negatives: as for run.", show_default=True)
@click.option("--ood", default="", help="With --negatives: as for run.")
@click.option("--encoder", default="", help="With --negatives: as for run.")
@click.option("--data", type=FOLDER, help="With --negatives: as for run.")
@click.option("--set", "settings", multiple=True, help="With --negatives: as for run.")
def methods(name: str | None, plugins: tuple[Path, ...], negatives: bool, id_: str, **options: Any) -> None:
    """List the methods, or show one in full."""
    from oodbench import listings, registry

    if negatives:
        from oodbench import negatives as mined
        from oodbench import session
        from oodbench.plan import make_plan

        request = session.request_from(
            methods=name or "neglabel", id=id_, plugins=plugins, allow_partial=True, **options
        )
        click.echo(mined.describe(make_plan(request)))
        return
    known = registry.methods(plugins)
    click.echo(listings.method(registry.method_info(name, known)) if name else listings.methods(known.values()))


@main.command()
@click.argument("name", required=False)
@click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")
def datasets(name: str | None, data: Path | None) -> None:
    """List datasets and benchmarks, or show one in full."""
    from oodbench import catalogue, listings

    root = catalogue.data_root(data)
    if name and name in catalogue.benchmarks() and name not in catalogue.datasets():
        click.echo(listings.benchmark(catalogue.benchmarks()[name], root))
    elif name:
        click.echo(listings.dataset(catalogue.dataset(name), root))
    else:
        click.echo(listings.datasets(root))


@main.group(cls=Group)
def store() -> None:
    """Show and bound the store of embeddings and scores."""


@store.command("ls")
@click.option("--store", "root", type=FOLDER, help="Default: $OODBENCH_STORE, else the user's cache folder.")
def store_ls(root: Path | None) -> None:
    """List what is stored, by kind, with sizes."""
    from oodbench import listings
    from oodbench.store import Store, default_root

    click.echo(listings.store(Store(root or default_root())))


@store.command("gc")
@click.option("--store", "root", type=FOLDER, help="Default: $OODBENCH_STORE, else the user's cache folder.")
@click.option("--max-size", help="Keep at most this much, dropping what was used longest ago: 500MB, 20GB.")
@click.option("--unused-days", type=float, help="Drop what has not been used for so many days.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def store_gc(root: Path | None, max_size: str | None, unused_days: float | None, dry_run: bool) -> None:
    """Remove what was used longest ago. Anything removed is made again when it is needed."""
    from oodbench import listings
    from oodbench.store import Store, default_root

    if max_size is None and unused_days is None:
        raise UserError("say what to keep: --max-size 20GB, or --unused-days 30")
    limit = None if max_size is None else listings.parse_bytes(max_size)
    gone = Store(root or default_root()).collect(limit, unused_days, dry=dry_run)
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {len(gone)} entries, {listings.bytes_text(sum(e.bytes for e in gone))}")


@main.command()
@click.argument("file", type=FOLDER)
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
def check(file: Path, verbose: bool) -> None:
    """Run the contract tests on a method of your own and print the verdict."""
    _log(verbose)
    from oodbench import registry

    info = registry.methods([file])[file.stem]
    from oodbench.contract import verdict

    found = verdict(info)
    for name, problem in found:
        click.echo(f"{'FAIL' if problem else 'ok':5}{name}{': ' + problem if problem else ''}")
    bad = sum(bool(problem) for _, problem in found)
    click.echo(
        f"{info.name}: {'keeps the contract' if not bad else f'breaks the contract in {bad} of {len(found)} checks'}"
    )
    if bad:
        sys.exit(1)


@main.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--tracking-uri", help="MLflow server. Default: the sqlite file beside the results.")
def sync(results: Path, tracking_uri: str | None) -> None:
    """Send the rows that have not reached MLflow."""
    from oodbench import tracking

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    sent = tracking.sync(tracking.Tracker(tracking_uri or tracking.default_uri(results), results))
    click.echo(f"{sent.arrived} rows sent, {sent.known} were there, {sent.waiting} wait")
    if sent.waiting:
        click.echo(f"error: {sent.reason}", err=True)
        sys.exit(1)


def _print_tables(results: list[Result] | tuple[Result, ...]) -> None:
    from rich.console import Console

    from oodbench import report as tables_of

    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables_of.tables(results):
        console.print(tables_of.console(table))


def _log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level, stream=sys.stderr)
    if verbose:
        logging.getLogger("oodbench").setLevel(logging.DEBUG)
