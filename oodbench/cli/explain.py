"""oodbench explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from oodbench.cli.common import FOLDER, check_output, log, note, say, write_output


@click.command()
@click.argument("images", nargs=-1, required=True, type=FOLDER)
@click.option("--methods", default="all", help="As for run.", show_default=True)
@click.option("--id", "id_", default="glyphs", help="As for run.", show_default=True)
@click.option("--ood", default="", help="As for run: an ID set of your own has no protocol.")
@click.option("--classes", default="", help="As for run.")
@click.option("--encoder", default="", help="As for run.")
@click.option("--data", type=FOLDER, help="As for run.")
@click.option("--set", "settings", multiple=True, help="As for run.")
@click.option("--weights", multiple=True, help="As for run.")
@click.option("--templates", default="", help="As for run.")
@click.option("--device", default="auto", help="As for run.", show_default=True)
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="As for run.")
@click.option("--store", type=FOLDER, help="As for run.")
@click.option("--shared", default="", help="As for run.")
@click.option("--results", "out", type=FOLDER, default="results", help="Rows to rank the image in.", show_default=True)
@click.option("--top", default=5, type=click.IntRange(min=1), help="Names per list.", show_default=True)
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("-o", "--output", type=FOLDER, help="Write to this file.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def explain(
    images: tuple[Path, ...], id_: str, top: int, form: str, output: Path | None, verbose: bool, **options: Any
) -> None:
    """Say why images score as they do: every method's score and rank among stored ID scores, and what it saw."""
    log(verbose)
    check_output(output)
    from oodbench.detector import explain as explanation
    from oodbench.pipeline.request import request_from

    request = request_from(id=id_, allow_partial=True, skip_missing=True, **options)
    found = explanation.explain(request, images[0] if len(images) == 1 else images, top)
    if form == "json":
        text = json.dumps([explanation.plain(one) for one in found], indent=1, allow_nan=False)
    else:
        text = "\n\n".join(explanation.text(one) for one in found)
    if output:
        write_output(output, text + "\n")
        note(f"wrote {output}")
    else:
        say(text)
