"""oodbench import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, OneOf, examples
from oodbench.cli.output import configure_logging, note, print_tables
from oodbench.results import HIGHER


@click.command(
    "import",
    cls=Command,
    epilog=examples(
        "oodbench import --benchmark mos --method mine --encoder ViT-B-16/openai --higher id scores/",
        "oodbench import --benchmark mos --method 'knn[k=50]' --encoder ViT-B-16/openai --higher ood id=val.npy ...",
        "oodbench import --benchmark glyphs --method mcm --encoder glyphs --higher id mcm.parquet",
    ),
)
@click.argument("scores", nargs=-1, required=True)
@click.option(
    "--benchmark", required=True, help="Benchmark or ID set whose images were scored: a name, or folder:PATH."
)
@click.option("--method", required=True, help="Name of the method, with its hyper-parameters if known: mine[k=10].")
@click.option("--encoder", required=True, help="Encoder of the images, as for run; an unknown name is kept.")
@click.option(
    "--higher",
    type=OneOf(*HIGHER),
    default="",
    help="Images with higher scores: id for confidences, ood for distances. Required.",
)
@click.option("--force-sign", is_flag=True, help="Accept a mean AUROC below 50 %.")
@click.option("--title", default="", help="Name of the method in tables. Default: that of --method.")
@click.option("--by", default="", help="Who computed the scores, and with what: 'Doe et al., github.com/doe/mine'.")
@shared.OOD
@click.option(
    "--access",
    default="",
    help="Data that the method sees in addition to class names and the image: id_images,id_labels=16,lm_words, or "
    "none. Default: unknown.",
)
@click.option("--templates", default="", help="Prompt templates, if known: the name of a set, a file, or a template.")
@click.option("--seed", default=0, help="Seed of the scores, for means over seeds.", show_default=True)
@shared.AT95
@shared.AUPR
@shared.BOOTSTRAP
@click.option("--allow-partial", is_flag=True, help="Accept fewer scores than a set has images.")
@shared.DATA
@shared.STORE
@shared.RESULTS
@shared.VERBOSE
def import_(scores: tuple[str, ...], verbose: bool, ood: str, results: Path, **options: Any) -> None:
    """Import the scores of another program as a result.

    SCORES are files, SET=FILE, or a folder of files.

    A file is .npy, .npz, .csv, .tsv, .txt or .parquet with one score per image, either with image names or in the order
    of the image list. Its set is SET, the value of its column `dataset`, or the set that its file name contains; `id`
    is the ID set. The result is marked as imported, and otherwise is like any other.
    """
    configure_logging(verbose)
    from oodbench.method.parameters import parse_names
    from oodbench.pipeline.imported import ImportRequest, import_scores
    from oodbench.report import tables

    found = import_scores(ImportRequest(scores=scores, ood=parse_names(ood), out=results, **options))
    for one in found.sets:
        note(f"{one.dataset.name}: {len(one.scores):,} scores from {one.path}; checked: {one.checked}")
    for remark in found.remarks:
        note(f"note: {remark}")
    print_tables(tables([found.result]))
    note(f"wrote {found.path}")
