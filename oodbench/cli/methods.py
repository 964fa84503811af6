"""oodbench methods and oodbench check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from oodbench.cli.common import FOLDER, log, say
from oodbench.printable import printable
from oodbench.storage.urls import hidden


@click.command()
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
    from oodbench.cli import listings
    from oodbench.method import registry

    if negatives:
        from oodbench import api as session
        from oodbench.cli import negatives as mined
        from oodbench.pipeline.plan import make_plan

        request = session.request_from(
            methods=name or "neglabel", id=id_, plugins=plugins, allow_partial=True, **options
        )
        say(mined.describe(make_plan(request)))
        return
    known = registry.methods(plugins)
    say(listings.method(registry.method_info(name, known)) if name else listings.methods(known.values()))


@click.command()
@click.argument("file", type=FOLDER)
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
def check(file: Path, verbose: bool) -> None:
    """Run the contract tests on a method of your own and print the verdict."""
    log(verbose)
    from oodbench.method import registry

    info = registry.methods([file])[file.stem]
    from oodbench.method.contract import verdict

    found = verdict(info)
    for name, problem in found:
        say(printable(hidden(f"{'FAIL' if problem else 'ok':5}{name}{': ' + problem if problem else ''}")))
    bad = sum(bool(problem) for _, problem in found)
    say(f"{info.name}: {'keeps the contract' if not bad else f'breaks the contract in {bad} of {len(found)} checks'}")
    if bad:
        sys.exit(1)
