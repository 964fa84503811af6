"""oodbench datasets check and get."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, say, tell

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
@click.option("--json", "file", type=FOLDER, help="Write the report to a JSON file, too.")
def check(
    names: tuple[str, ...],
    id_: str,
    data: Path | None,
    store: Path | None,
    workers: int,
    hamming: int,
    limit: int | None,
    kind: str,
    file: Path | None,
) -> None:
    """Look at every image of datasets and benchmarks: counts, broken images, images shared by ID and OOD, shortcuts.

    NAME is a dataset, a benchmark or folder:PATH; without any it is all that lies in the data folder. A check that was
    stopped goes on where it was; images are looked at again when they change. Exit code 1 when there are errors.
    """
    from oodbench.data import catalog as catalogue
    from oodbench.data.checks.run import Settings, examine
    from oodbench.data.checks.scope import scope
    from oodbench.data.checks.text import text
    from oodbench.errors import UserError
    from oodbench.storage.store import Store, default_root

    if workers < 0:
        raise UserError(f"--workers takes a number of threads, not {workers}")
    settings = Settings(catalogue.data_root(_inherited(data)), Store(store or default_root()), workers, hamming, limit)
    with bars("images") as watch:
        report = examine(scope(names, id_), settings, watch)
    plain = json.dumps(report.as_dict(), indent=2)
    if file:
        try:
            file.write_text(plain + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {file} cannot be written: {error.strerror}") from error
    say(plain if kind == "json" else text(report))
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
    from oodbench.data import catalog as catalogue
    from oodbench.data.fetch import get as fetch
    from oodbench.errors import UserError, raise_all

    root = catalogue.data_root(_inherited(data))
    problems: list[str] = []
    wanted: dict[str, catalogue.Dataset] = {}
    for name in names:
        protocol = catalogue.benchmarks().get(name)
        try:
            for one in [protocol.id, *(n for n, _ in protocol.sets())] if protocol else [name]:
                found = catalogue.dataset(one)
                wanted[found.name] = found
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    failed = by_hand = False
    with bars("bytes") as watch:
        for dataset in wanted.values():
            try:
                outcome = fetch(dataset, root, watch)
                by_hand |= outcome.by_hand
                say(f"{dataset.name}: {outcome.message}")
            except UserError as error:
                failed = True
                tell(*(f"{dataset.name}: {one}" for one in error.problems))
    if failed or by_hand:
        sys.exit(1 if failed else 3)


@contextmanager
def bars(unit: str) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Progress bars on stderr, a new one per (what, total in units); nothing at all when not in a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, total: lambda n: None
        return
    from rich import progress
    from rich.console import Console

    from oodbench.printable import printable

    amount = progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn()
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        amount,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as live:

        def begin(what: str, total: int) -> Callable[[int], None]:
            task = live.add_task(printable(what), total=total or None)
            return lambda n: live.advance(task, n)

        yield begin


def _inherited(data: Path | None) -> Path | None:
    """--data of the command, else that of the group before it."""
    context = click.get_current_context()
    return data or (context.obj if isinstance(context.obj, Path) else None)
