"""oodbench datasets: list, show, add, remove, locate, check, get."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from oodbench.cli import options as shared
from oodbench.cli.group import NamesOrCommands
from oodbench.cli.help import DATASET_NAME, SET_NAME, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import check_output, note, say, write_output
from oodbench.errors import UserError, printable

FOUND = click.option("--found", is_flag=True, help="Only datasets that are in the data folder or bound.")


@click.group(
    cls=NamesOrCommands,
    invoke_without_command=True,
    epilog=examples(
        "oodbench datasets",
        "oodbench datasets imagenet1k",
        "oodbench datasets --found --wide --data /data",
        "oodbench datasets locate imagenet1k /data/ImageNet",
        "oodbench datasets check textures",
    ),
)
@FOUND
@shared.WIDE
@shared.JSON
@shared.DATA
@click.pass_context
def datasets(ctx: click.Context, found: bool, wide: bool, as_json: bool, data: Path | None) -> None:
    """List, show, find, check and get image sets.

    Without a command, list all datasets, or show NAME in full.
    """
    ctx.obj = data
    if ctx.invoked_subcommand is None:
        _list(found, wide, as_json, data)


@datasets.command("list")
@FOUND
@shared.WIDE
@shared.JSON
@shared.DATA
def list_(found: bool, wide: bool, as_json: bool, data: Path | None) -> None:
    """List datasets and benchmarks."""
    _list(found, wide, as_json, data)


def _list(found: bool, wide: bool, as_json: bool, data: Path | None) -> None:
    from oodbench.cli import listings

    say(listings.datasets(_data_root(data), shared.width(wide), found=found, as_json=as_json))


def _data_root(data: Path | None) -> Path:
    """Return the --data of the command, else that of its group, else the default folder."""
    from oodbench.data.paths import data_root

    context = click.get_current_context()
    return data_root(data or (context.obj if isinstance(context.obj, Path) else None))


@datasets.command()
@click.argument("name", type=SET_NAME)
@shared.DATA
def show(name: str, data: Path | None) -> None:
    """Show a dataset or benchmark in full."""
    from oodbench.cli import listings
    from oodbench.data import catalog as catalogue

    root = _data_root(data)
    if name in catalogue.benchmarks() and name not in catalogue.datasets():
        say(listings.benchmark(catalogue.protocol(name), root))
    else:
        say(listings.dataset(catalogue.dataset(name), root))


@datasets.command()
@click.argument("name")
@click.option("--loader", required=True, help="classes, images, list, tar, parquet, hf, arrays or torchvision.")
@click.option("--path", required=True, help="Folder, file, pattern, URL or hub name of the images.")
@click.option(
    "--list", "list_", default="", help="Loader list: the file of `path label` lines; paths are relative to --path."
)
@click.option("--source", default="", help="Loader torchvision: the class, such as CIFAR10.")
@click.option("--split", default="", help="Split of a set or an array file; tar: suffix of its images (main.png).")
@shared.CLASSES
@shared.CLEAN_NAMES
@click.option("--train", default="", help="Training set of an ID set, for methods that calibrate.")
@click.option("--title", default="", help="Name in tables.")
@click.option("--licence", default="", help="Licence of the images.")
@click.option("--cite", default="", help="Paper, such as 'Doe et al., ICML 2020, arXiv:2001.00001'.")
@click.option("--url", default="", help="Web page of the dataset.")
def add(name: str, list_: str, clean_names: bool, **fields: str) -> None:
    """Declare a dataset of your own, after checking that its images can be listed."""
    from oodbench.data.add import add_dataset
    from oodbench.storage.store import Store, default_root

    added = add_dataset(name, {**fields, "list": list_}, Store(default_root()), clean_names=clean_names)
    images = added.images
    say(printable(f"{name}: {len(images):,} images at {images.folder}, declared in {added.file}"))
    for remark in images.remarks:
        note(f"note: {remark.message}")
    if added.only_ood:
        note(f"note: as an OOD set only: {added.only_ood}")


@datasets.command()
@click.argument("name", type=DATASET_NAME)
def remove(name: str) -> None:
    """Delete the declaration of your dataset NAME. Images and results are kept."""
    from oodbench.data.add import remove_dataset

    say(printable(f"deleted {remove_dataset(name)}"))


@datasets.command()
@click.argument("name", type=DATASET_NAME, required=False)
@click.argument("path", required=False)
@click.option("--forget", is_flag=True, help="Unbind NAME, so that it is searched for in the data folder again.")
@click.option("--allow-partial", is_flag=True, help="Bind NAME even if the number of images is not the declared one.")
@shared.DATA
def locate(name: str | None, path: str | None, forget: bool, allow_partial: bool, data: Path | None) -> None:
    """Show where a dataset is, or bind its name to a path: oodbench datasets locate imagenet1k /data/ImageNet.

    PATH is the folder or archive of the images, or a folder above it in a known layout; it is checked at once.
    Without PATH, show the path that a run would read; without NAME, all bound paths.
    """
    from oodbench.data import places
    from oodbench.data.locate import check_place, describe_place

    if name is None:
        bound = places.bindings()
        say("\n".join(f"{one}: {place}" for one, place in sorted(bound.items())) or "no dataset is bound")
        return
    if forget and path is not None:
        raise UserError("--forget takes no PATH")
    if forget:
        dataset = places.forgettable(name)
        places.bind(dataset, None)
        say(f"{dataset}: binding removed; it is now searched for in the data folder")
        return
    one = places.bindable(name)
    if path is None:
        say("\n".join(map(printable, describe_place(one, _data_root(data)))))
        return
    images = check_place(one, places.absolute_place(path), _data_root(data), allow_partial=allow_partial)
    say(printable(f"{one.name}: {len(images):,} images at {images.folder}; bound to {places.bindings()[one.name]}"))
    for remark in images.remarks:
        note(f"note: {remark.message}")


@datasets.command()
@click.argument("names", type=SET_NAME, nargs=-1, metavar="[NAME]...")
@click.option("--id", "id_", default="", help="ID set; NAMEs are then OOD sets that are compared with it.")
@shared.DATA
@shared.STORE
@shared.WORKERS
@click.option(
    "--hamming",
    type=click.IntRange(0, 16),
    default=4,
    help="Near-duplicates differ in at most this many bits of a 64-bit perceptual hash.",
    show_default=True,
)
@click.option("--limit", type=click.IntRange(1), help="Check a subset of N images of each set.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", help="text or json.", show_default=True
)
@click.option("-o", "--output", type=FOLDER, help="Also write the findings to this JSON file.")
def check(
    names: tuple[str, ...],
    id_: str,
    data: Path | None,
    store: Path | None,
    workers: int,
    hamming: int,
    limit: int | None,
    form: str,
    output: Path | None,
) -> None:
    """Check every image of datasets and benchmarks.

    Report wrong counts, broken images, images in both ID and OOD sets, and shortcuts such as the image size.

    NAME is a dataset, a benchmark or folder:PATH; by default, everything in the data folder is checked. Rerun the same
    command to resume a check; images are checked again when they change. Exit code 1 if there are errors.
    """
    from oodbench.cli.progress import ProgressBars
    from oodbench.data.checks.findings import format_report
    from oodbench.data.checks.run import CheckSettings, check_sets
    from oodbench.data.checks.scope import select_sets
    from oodbench.data.load import check_exist
    from oodbench.storage.store import Store, default_root

    check_exist([*names, id_])
    if workers < 0:
        raise UserError(f"--workers takes a number of threads, not {workers}")
    check_output(output)
    settings = CheckSettings(_data_root(data), Store(store or default_root()), workers, hamming, limit)
    with ProgressBars("images") as bars:
        report = check_sets(select_sets(names, id_), settings, bars.count)
    as_json = json.dumps(report.as_dict(), indent=2)
    if output:
        write_output(output, as_json + "\n")
    say(as_json if form == "json" else format_report(report))
    if not report.ok:
        sys.exit(1)


@datasets.command()
@click.argument("names", type=SET_NAME, nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="An archive that you already have, or a folder of archives.",
)
@shared.DATA
def get(names: tuple[str, ...], source: Path | None, data: Path | None) -> None:
    """Download datasets, or all datasets of benchmarks, and print how to get those that cannot be downloaded.

    NAME is a dataset or a benchmark. Existing files are kept; rerun the same command to resume. ImageNet's validation
    images are unpacked from your copy: oodbench datasets get imagenet1k --from ILSVRC2012_img_val.tar. Exit code 0 if
    all datasets are ready, 1 if one failed, 3 if one must be downloaded manually.
    """
    get_datasets(names, source, data)


def get_datasets(names: tuple[str, ...], source: Path | None, data: Path | None) -> None:
    """Get datasets with progress bars, print the summary, and exit with its code unless all are ready."""
    from oodbench.cli.progress import ProgressBars
    from oodbench.data.fetch import GetOptions, get
    from oodbench.storage.files import expand

    with ProgressBars("bytes") as bars:
        options = GetOptions(expand(source, "--from") if source else None, bars.count)
        summary = get(names, _data_root(data), options)
    say("\n".join(printable(line) for line in summary.text().split("\n")))
    if summary.exit_code:
        sys.exit(summary.exit_code)
