"""oodbench explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import check_output, configure_logging, note, say, write_output


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench explain photo.jpg --id imagenet1k --methods mcm,neglabel",
    ),
)
@click.argument("images", nargs=-1, required=True, type=FOLDER)
@shared.METHODS
@shared.ID
@shared.OOD
@shared.CALIBRATION
@shared.CALIBRATION_LIMIT
@shared.SHOTS
@shared.SHOT_SEED
@shared.CLASSES
@shared.CLEAN_NAMES
@shared.ENCODER
@shared.DATA
@shared.SETTINGS
@shared.WEIGHTS
@shared.TEMPLATES
@shared.DEVICE
@shared.PLUGINS
@shared.STORE
@shared.SHARED
@click.option(
    "--results",
    type=FOLDER,
    default="results",
    help="Folder of the results in which the image is ranked.",
    show_default=True,
)
@click.option("--top", default=5, type=click.IntRange(min=1), help="Names per list.", show_default=True)
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", help="text or json.", show_default=True
)
@click.option("-o", "--output", type=FOLDER, help="Write to this file. Default: stdout.")
@shared.VERBOSE
def explain(
    images: tuple[Path, ...],
    id_: str,
    results: Path,
    top: int,
    form: str,
    output: Path | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Explain the scores of images.

    Print the score and rank of each image under every method, and the classes and words that the score depends on.
    """
    configure_logging(verbose)
    check_output(output)
    from oodbench.cli.progress import text_progress
    from oodbench.data.load import check_exist

    check_exist([id_, options["calibration"]])
    from oodbench.detector import explain as explanation
    from oodbench.pipeline.request import request_from

    request = request_from(id=id_, out=results, allow_partial=True, skip_missing=True, **options)
    with text_progress() as watch:
        explained = explanation.explain(request, images[0] if len(images) == 1 else images, top, watch)
    if form == "json":
        text = json.dumps([explanation.plain(image) for image in explained], indent=1, allow_nan=False)
    else:
        text = "\n\n".join(explanation.text(image) for image in explained)
    if output:
        write_output(output, text + "\n")
        note(f"wrote {output}")
    else:
        say(text)
