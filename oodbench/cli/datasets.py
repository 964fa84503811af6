"""oodbench datasets: list, show, add; `check` and `get` are registered at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oodbench.cli.common import FOLDER, note, say
from oodbench.cli.datasets_check import check, get
from oodbench.printable import printable

DATA = click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")


class Datasets(click.Group):
    """A group whose first word may also be the name of a dataset or benchmark."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            return "show", self.commands["show"], args
        return super().resolve_command(ctx, args)


@click.group(cls=Datasets, invoke_without_command=True)
@DATA
@click.pass_context
def datasets(ctx: click.Context, data: Path | None) -> None:
    """List datasets and benchmarks, or show one in full: oodbench datasets [NAME]."""
    ctx.obj = data
    if ctx.invoked_subcommand is None:
        from oodbench.cli import listings
        from oodbench.data import catalog as catalogue

        say(listings.datasets(catalogue.data_root(data)))


@datasets.command()
@click.argument("name")
@DATA
@click.pass_obj
def show(outer: Path | None, name: str, data: Path | None) -> None:
    """Show a dataset or benchmark in full."""
    from oodbench.cli import listings
    from oodbench.data import catalog as catalogue

    root = catalogue.data_root(data or outer)
    if name in catalogue.benchmarks() and name not in catalogue.datasets():
        say(listings.benchmark(catalogue.benchmarks()[name], root))
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
    from oodbench.data.add import declare
    from oodbench.storage.store import Store, default_root

    made = declare(name, {**fields, "list": list_}, Store(default_root()))
    say(printable(f"{name}: {len(made.listing):,} images at {made.listing.folder}, declared in {made.file}"))
    for remark in made.listing.remarks:
        note(f"note: {remark.message}")
    if made.only_ood:
        note(f"note: as an OOD set only: {made.only_ood}")


# Further subcommands live in files of their own.
for command in (check, get):
    datasets.add_command(command)
