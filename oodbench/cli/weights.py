"""oodbench weights."""

from __future__ import annotations

import json
from pathlib import Path

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import check_output, say


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench weights weights/clipn-glyphs.safetensors",
    ),
)
@click.argument("file", type=FOLDER)
@click.option(
    "-o", "--output", type=FOLDER, help="Write the weights in the layout of the method's released code to this file."
)
@click.option("--encoder", default="", help="With --output: the encoder that they were trained for, as for run.")
@shared.PLUGINS
def weights(file: Path, output: Path | None, encoder: str, plugins: tuple[Path, ...]) -> None:
    """Show how weights were trained, or convert them.

    With --output they are written in the layout of the method's released code.
    """
    from oodbench.pipeline import assign_weights
    from oodbench.pipeline import weights as files
    from oodbench.storage.store import Store, default_root

    check_output(output, makes_folder=True)
    trained = files.examine(file, Store(default_root()))
    if output is None:
        say(f"{trained.path.name}  sha256 {trained.digest}")
        say(json.dumps(trained.recipe, indent=1, sort_keys=True) if trained.recipe else "no recipe in its header")
        return
    assign_weights.write_release(trained, output, encoder, plugins)
    say(f"wrote {output}")
