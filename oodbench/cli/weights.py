"""oodbench weights."""

from __future__ import annotations

import json
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, say


@click.command()
@click.argument("file", type=FOLDER)
@click.option(
    "-o", "--output", type=FOLDER, help="Write the weights in the layout of the method's released code to this file."
)
@click.option("--encoder", default="", help="With --output: the encoder they were trained for, as for run.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
def weights(file: Path, output: Path | None, encoder: str, plugins: tuple[Path, ...]) -> None:
    """Show the recipe of trained weights, or write them in the release's layout."""
    from oodbench.pipeline import assign_weights
    from oodbench.pipeline import weights as files
    from oodbench.storage.store import Store, default_root

    found = files.examine(file, Store(default_root()))
    if output is None:
        say(f"{found.path.name}  sha256 {found.digest}")
        say(json.dumps(found.recipe, indent=1, sort_keys=True) if found.recipe else "no recipe in its header")
        return
    assign_weights.write_release(found, output, encoder, plugins)
    say(f"wrote {output}")
