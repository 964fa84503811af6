"""oodbench datasets: list, show, add; `check` and `get` are registered at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, NamesOrCommands, check_output, note, say, tell, write_output
from oodbench.errors import printable

_DATA = click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--id", "id_", default="", help="ID set; the named sets are then OOD sets, held against it.")
@_DATA
@click.option(
    "--store", type=FOLDER, help="Folder of what is known already. Default: $OODBENCH_STORE, else user cache."
)
@click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
@click.option("--hamming", type=click.IntRange(0, 16), default=4, show_default=True, help="Bits of near-duplicates.")
@click.option("--limit", type=click.IntRange(1), help="A quick look at N images of each set.")
@click.option("--format", "kind", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("-o", "--output", type=FOLDER, help="Also write the findings to this JSON file.")
def check(
    names: tuple[str, ...],
    id_: str,
    data: Path | None,
    store: Path | None,
    workers: int,
    hamming: int,
    limit: int | None,
    kind: str,
    output: Path | None,
) -> None:
    """Look at every image of datasets and benchmarks: counts, broken images, images shared by ID and OOD, shortcuts.

    NAME is a dataset, a benchmark or folder:PATH; without any it is all that lies in the data folder. A check that was
    stopped goes on where it was; images are looked at again when they change. Exit code 1 when there are errors.
    """
    from oodbench.cli.progress import ProgressBars
    from oodbench.data.checks.findings import format_report
    from oodbench.data.checks.run import CheckSettings, check_sets
    from oodbench.data.checks.scope import select_sets
    from oodbench.data.paths import data_root
    from oodbench.errors import UserError
    from oodbench.storage.store import Store, default_root

    if workers < 0:
        raise UserError(f"--workers takes a number of threads, not {workers}")
    check_output(output)
    settings = CheckSettings(data_root(_inherited(data)), Store(store or default_root()), workers, hamming, limit)
    with ProgressBars("images") as bars:
        report = check_sets(select_sets(names, id_), settings, bars.count)
    plain = json.dumps(report.as_dict(), indent=2)
    if output:
        write_output(output, plain + "\n")
    say(plain if kind == "json" else format_report(report))
    if not report.ok:
        sys.exit(1)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_DATA
def get(names: tuple[str, ...], data: Path | None) -> None:
    """Fetch datasets that may be fetched, and say how to get the others.

    NAME is a dataset or a benchmark. A download that was stopped goes on where it was. Exit code 1 when a set that may
    be fetched could not be; 3 when one has to be got by hand.
    """
    from oodbench.cli.progress import ProgressBars
    from oodbench.data import catalog as catalogue
    from oodbench.data.fetch import fetch
    from oodbench.data.paths import data_root
    from oodbench.errors import UserError, raise_all

    root = data_root(_inherited(data))
    problems: list[str] = []
    wanted: dict[str, catalogue.Dataset] = {}
    for name in names:
        try:
            if name in catalogue.benchmarks():
                protocol = catalogue.protocol(name)
                wanted |= {found.name: found for found in (protocol.id, *(one for one, _ in protocol.ood))}
            else:
                found = catalogue.dataset(name)
                wanted[found.name] = found
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    failed = by_hand = False
    with ProgressBars("bytes") as bars:
        for dataset in wanted.values():
            try:
                outcome = fetch(dataset, root, bars.count)
                by_hand |= outcome.by_hand
                say(f"{dataset.name}: {outcome.message}")
            except UserError as error:
                failed = True
                tell(*(f"{dataset.name}: {one}" for one in error.problems))
    if failed or by_hand:
        sys.exit(1 if failed else 3)


def _inherited(data: Path | None) -> Path | None:
    """--data of the command, else that of the group before it."""
    context = click.get_current_context()
    return data or (context.obj if isinstance(context.obj, Path) else None)


DATA = click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")


@click.group(cls=NamesOrCommands, invoke_without_command=True)
@DATA
@click.pass_context
def datasets(ctx: click.Context, data: Path | None) -> None:
    """List datasets and benchmarks, or show one in full: oodbench datasets [NAME]."""
    ctx.obj = data
    if ctx.invoked_subcommand is None:
        from oodbench.cli import listings
        from oodbench.data.paths import data_root

        say(listings.datasets(data_root(data)))


@datasets.command()
@click.argument("name")
@DATA
@click.pass_obj
def show(outer: Path | None, name: str, data: Path | None) -> None:
    """Show a dataset or benchmark in full."""
    from oodbench.cli import listings
    from oodbench.data import catalog as catalogue
    from oodbench.data.paths import data_root

    root = data_root(data or outer)
    if name in catalogue.benchmarks() and name not in catalogue.datasets():
        say(listings.benchmark(catalogue.protocol(name), root))
    else:
        say(listings.dataset(catalogue.dataset(name), root))


@datasets.command()
@click.argument("name")
@click.option("--loader", required=True, help="classes, images, list, tar, parquet, hf, arrays or torchvision.")
@click.option("--path", required=True, help="Folder, file, pattern, URL or hub name of the images.")
@click.option("--list", "list_", default="", help="Loader list: the file of `path label` lines; --path is their root.")
@click.option("--source", default="", help="Loader torchvision: its class, such as CIFAR10.")
@click.option("--split", default="", help="Split of a set or an array file; tar: ending of its images (main.png).")
@click.option("--classes", default="", help="Class names: a list's name, or a file with one a line.")
@click.option("--title", default="", help="The name in tables.")
@click.option("--licence", default="")
@click.option("--cite", default="")
@click.option("--url", default="")
def add(name: str, list_: str, **fields: str) -> None:
    """Declare a dataset of your own, after checking that it can be listed."""
    from oodbench.data.add import add_dataset
    from oodbench.storage.store import Store, default_root

    added = add_dataset(name, {**fields, "list": list_}, Store(default_root()))
    say(printable(f"{name}: {len(added.images):,} images at {added.images.folder}, declared in {added.file}"))
    for remark in added.images.remarks:
        note(f"note: {remark.message}")
    if added.only_ood:
        note(f"note: as an OOD set only: {added.only_ood}")


# Further subcommands live in files of their own.
for command in (check, get):
    datasets.add_command(command)
