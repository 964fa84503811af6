"""oodbench datasets."""

from __future__ import annotations

from pathlib import Path

import click

from oodbench.cli.group import FOLDER


@click.command()
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
