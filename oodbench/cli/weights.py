"""oodbench weights."""

from __future__ import annotations

import json
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, say


@click.command()
@click.argument("file", type=FOLDER)
@click.option(
    "--release", type=FOLDER, help="Write the weights as the method's released code saves them, to this file."
)
@click.option("--encoder", default="", help="With --release: the encoder they were trained for, as for run.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
def weights(file: Path, release: Path | None, encoder: str, plugins: tuple[Path, ...]) -> None:
    """Show the recipe of trained weights, or write them in the release's layout."""
    from oodbench.pipeline import assign_weights
    from oodbench.pipeline import weights as files
    from oodbench.storage.store import Store, default_root

    found = files.examine(file, Store(default_root()))
    if release is None:
        say(f"{found.path.name}  sha256 {found.digest}")
        say(json.dumps(found.recipe, indent=1, sort_keys=True) if found.recipe else "no recipe in its header")
        return
    assign_weights.write_release(found, release, encoder, plugins)
    say(f"wrote {release}")
