"""oodbench benchmarks: list, show, add, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oodbench.cli import options as shared
from oodbench.cli.group import NamesOrCommands
from oodbench.cli.help import BENCHMARK_NAME, examples
from oodbench.cli.output import say
from oodbench.errors import printable


@click.group(
    cls=NamesOrCommands,
    invoke_without_command=True,
    epilog=examples(
        "oodbench benchmarks",
        "oodbench benchmarks mos",
        "oodbench benchmarks add mine --id food101 --far textures,inaturalist",
    ),
)
@shared.WIDE
@shared.JSON
@click.pass_context
def benchmarks(ctx: click.Context, wide: bool, as_json: bool) -> None:
    """List and show benchmarks, and declare your own.

    Without a command, list all benchmarks, or show NAME in full.
    """
    if ctx.invoked_subcommand is None:
        _list(wide, as_json)


@benchmarks.command("list")
@shared.WIDE
@shared.JSON
def list_(wide: bool, as_json: bool) -> None:
    """List benchmarks."""
    _list(wide, as_json)


def _list(wide: bool, as_json: bool) -> None:
    from oodbench.cli import listings

    say(listings.benchmarks(shared.width(wide), as_json=as_json))


@benchmarks.command()
@click.argument("name", type=BENCHMARK_NAME)
@shared.DATA
def show(name: str, data: Path | None) -> None:
    """Show the sets of a benchmark, and which are in the data folder."""
    from oodbench.cli import listings
    from oodbench.data import catalog
    from oodbench.data.paths import data_root
    from oodbench.errors import UserError, did_you_mean

    if name not in catalog.benchmarks():
        raise UserError(f"no benchmark '{name}'{did_you_mean(name, catalog.benchmarks())}")
    say(listings.benchmark(catalog.protocol(name), data_root(data)))


@benchmarks.command()
@click.argument("name")
@click.option("--id", "id_", required=True, help="ID set: a name, or folder:PATH.")
@click.option("--near", default="", help="Near-OOD sets, separated by commas.")
@click.option("--far", default="", help="Far-OOD sets, separated by commas.")
@click.option("--ood", default="", help="OOD sets of a benchmark without near and far.")
@shared.CALIBRATION
@click.option("--encoder", default="", help="Encoder of a run without --encoder.")
@click.option("--title", default="", help="Name in tables.")
@click.option("--cite", default="", help="Paper, such as 'Doe et al., ICML 2020, arXiv:2001.00001'.")
@shared.DATA
def add(name: str, id_: str, near: str, far: str, ood: str, data: Path | None, **fields: str) -> None:
    """Declare a benchmark of your own; run it with: oodbench run --id NAME."""
    from oodbench.cli import listings
    from oodbench.data import catalog
    from oodbench.data.add import add_benchmark
    from oodbench.data.paths import data_root
    from oodbench.method.parameters import parse_names

    sets = {"near": near, "far": far, "ood": ood}
    groups = {group: tuple(parse_names(text)) for group, text in sets.items()}
    settings: dict[str, Any] = {**groups, **fields}
    file = add_benchmark(name, catalog.Benchmark(name=name, id=id_, **settings))
    say(f"{listings.benchmark(catalog.protocol(name), data_root(data))}\n{printable(f'declared in {file}')}")


@benchmarks.command()
@click.argument("name", type=BENCHMARK_NAME)
def remove(name: str) -> None:
    """Delete the declaration of your benchmark NAME. Datasets and results are kept."""
    from oodbench.data.add import remove_benchmark

    say(printable(f"deleted {remove_benchmark(name)}"))
