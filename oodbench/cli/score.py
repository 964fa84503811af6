"""oodbench score."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.group import sigterm_raises
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import check_output, configure_logging, note
from oodbench.errors import UserError, raise_all
from oodbench.storage.files import atomic_write, expand

if TYPE_CHECKING:
    from oodbench.data.imageset import ImageSet
    from oodbench.detector.engine import Scored
    from oodbench.pipeline.request import RunRequest
    from oodbench.storage.store import Store

SUFFIXES = (".csv", ".parquet")
Columns = list[list[Any]]


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench score photos/ --method mcm --classes pets.txt --encoder ViT-B-16/openai",
        "oodbench score photos/ --method mcm --id imagenet1k --threshold-from photos-of-pets/ --save detector",
        "oodbench score photos/ --detector detector --output scores.csv",
    ),
)
@click.argument("images", nargs=-1, required=True)
@click.option("--method", help="One method: clipn, energy[scale=1], ...")
@click.option("--id", "id_", default="", help="ID set or benchmark with the class names and training images.")
@shared.CLASSES
@shared.CLEAN_NAMES
@shared.DATA
@click.option("--detector", type=FOLDER, help="Folder of a saved detector, instead of --method, --id and --classes.")
@click.option(
    "--threshold-from", help="ID images. Add a decision at the threshold that accepts --tpr of new ID images."
)
@click.option(
    "--calibration",
    help="ID images for a method that calibrates. Default: the training images of --id, else a part of "
    "--threshold-from.",
)
@shared.CALIBRATION_LIMIT
@shared.SHOTS
@shared.SHOT_SEED
@click.option("--tpr", default=0.95, help="Fraction of new ID images to accept.", show_default=True)
@click.option("--threshold", type=float, help="Threshold: images with at least this score are ID.")
@click.option("-o", "--output", type=FOLDER, help="A .csv or .parquet file. Default: CSV on stdout.")
@click.option("--save", type=FOLDER, help="Also save the detector in this folder.")
@click.option(
    "--encoder", default="", help="As for run. Default: that of the ID set that --classes names, else glyphs."
)
@click.option("--weights", default="", help="Trained weights of the method.")
@shared.SETTINGS
@shared.TEMPLATES
@shared.RESIZE
@click.option("--seed", default=0, help="Random seed.", show_default=True)
@shared.DEVICE
@shared.PRECISION
@shared.BATCH_SIZE
@shared.WORKERS
@shared.ON_ERROR
@click.option("--no-store", is_flag=True, help="Do not store the embeddings of the images.")
@shared.STORE
@shared.SHARED
@shared.PLUGINS
@shared.VERBOSE
def score(images: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Score your own images with one method.

    IMAGES are a folder, files, or the name of a dataset. With a threshold, each image is classified as ID or OOD.
    """
    configure_logging(verbose)
    from oodbench.cli.progress import spinner
    from oodbench.data.load import check_exist, notes

    check_exist([*images, options["id_"], options["calibration"], options["threshold_from"]])
    from oodbench.detector import saving
    from oodbench.detector.images import listed
    from oodbench.storage.shared import open_store

    output, threshold, save = options["output"], options["threshold"], options["save"]
    check_table_file(output)
    _check_thresholds(options)
    if save:
        saving.check(expand(save))
    store = open_store(options["store"], options["shared"])
    image_set = listed(images[0] if len(images) == 1 else list(images), store, options["data"])
    for remark in notes(image_set):
        note(f"note: {remark}")
    with sigterm_raises():
        with spinner("fitting the method"):
            detector = _load_detector(options) if options["detector"] else _fit_detector(options, store)
        if threshold is not None:
            detector.threshold_ = threshold
        if save:
            detector.save(save)
        limit = detector.threshold_ if threshold is None else threshold
        summary = write_scores(_score_parts(detector, image_set), list(detector.classes_), limit, output)
    for reason in summary.skipped:
        note(f"skipped: {reason}")
    if summary.images > 1 and summary.least == summary.most:
        single = len(detector.classes_) == 1
        reason = "; with one class name every softmax over the classes is 1" if single else ""
        note(f"note: all images have the same score, {summary.least:.6g}{reason}")
    decided = f", {summary.accepted:,} of them ID at threshold {limit:.6g}" if limit is not None else ""
    note(f"{summary.images:,} images{decided}" + (f": {output}" if output else ""))


def _with_id_set(options: dict[str, Any], store: Store) -> dict[str, Any]:
    """Add class names, benchmark and calibration images of --id to the options."""
    from oodbench.data import catalog
    from oodbench.data.calibration import draw, draw_labelled, load_split
    from oodbench.data.load import LoadOptions, class_names_of, load_images, notes
    from oodbench.data.overlap import check_calibration
    from oodbench.data.paths import data_root
    from oodbench.method import registry
    from oodbench.pipeline.plan import check_benchmark

    protocol = catalog.protocol(options["id_"], (), options["classes"], needs_ood=False)
    check_benchmark(protocol.benchmark, needs_ood=False)
    dataset = dataclasses.replace(protocol.id, clean_names=options["clean_names"] or protocol.id.clean_names)
    loading = LoadOptions(data_root(options["data"]), store)
    id_set = load_images(dataset, loading, labelled=True)
    classes = class_names_of(id_set)
    for remark in notes(id_set, classes):
        note(f"note: {remark}")
    info = registry.methods(options["plugins"]).get((options["method"] or "").partition("[")[0].strip())
    training = protocol.benchmark.calibration or dataset.train
    labelled = info is not None and "LABELS" in info.needs
    training = (options["calibration"] if labelled else "") or training
    if training and info and "CALIBRATION" in info.needs and (labelled or not options["calibration"]):
        split = load_split(catalog.dataset(training), loading)
        check_calibration(id_set, split)
        how = _draw_request(options).draw(protocol.benchmark.shots)
        images = draw_labelled(split, id_set, loading, how) if labelled else draw(split, loading, how)
        options = {**options, "calibration": images}
    return {**options, "classes": list(classes.lines), "benchmark": protocol.benchmark}


def _draw_request(options: dict[str, Any]) -> RunRequest:
    """Return a request with the options that determine how calibration images are drawn."""
    from oodbench.pipeline.request import check_draw, request_from

    request = request_from(**{name: options[name] for name in ("seed", "calibration_limit", "shots", "shot_seed")})
    raise_all(check_draw(request))
    return request


def _fit_detector(options: dict[str, Any], store: Store) -> Any:
    """Fit the detector that the options describe."""
    from oodbench.detector.detector import Detector
    from oodbench.method.parameters import parse_setting
    from oodbench.pipeline.encoder_choice import benchmark_of_classes, encoder_without_run
    from oodbench.pipeline.request import RunRequest

    if not options["method"] or not (options["classes"] or options["id_"]):
        raise UserError(
            "name --method and --classes (class names, one a line) or --id (an ID set), or a saved --detector FOLDER"
        )
    if options["clean_names"] and not options["id_"]:
        raise UserError("--clean-names is for the class names of an ID set: give --id, or write words in --classes")
    if options["id_"]:
        options = _with_id_set(options, store)
    name = options["method"].partition("[")[0].strip()
    options["weights"] = options["weights"].removeprefix(f"{name}=")  # as run's option is written
    settings = [parse_setting(text) for text in options["settings"]]
    other = next((setting for setting in settings if setting.method != name), None)
    if other:
        raise UserError(f"--set {other.method}.{other.parameter}: the method is {name}")
    weights = (f"{name}={options['weights']}",) if options["weights"] else ()
    asked = RunRequest(
        methods=options["method"], encoder=options["encoder"], plugins=options["plugins"], weights=weights
    )
    choice = encoder_without_run(asked, options.get("benchmark") or benchmark_of_classes(options["classes"]))
    if choice.reason:
        note(f"note: {choice.reason}")
    same = ("classes", "weights", "templates", "threshold", "device", "precision", "batch_size", "workers", "shared")
    detector = Detector(
        options["method"],
        encoder=choice.text,
        settings={setting.parameter: setting.value for setting in settings},
        tpr=options["tpr"] if options["threshold_from"] else None,
        seed=options["seed"],
        resize=options["resize"],
        on_error=options["on_error"],
        store=options["store"],
        keep=not options["no_store"],
        plugins=options["plugins"],
        **{name: options[name] for name in same},
    )
    if options["calibration"]:
        return detector.fit(options["calibration"], validation=options["threshold_from"])
    return detector.fit(options["threshold_from"])


def _check_thresholds(options: dict[str, Any]) -> None:
    """Raise UserError for two thresholds, one that is not finite, and options that would have no effect."""
    from oodbench.detector.engine import finite

    if options["threshold"] is not None and options["threshold_from"]:
        raise UserError("give --threshold-from or --threshold, not both")
    if options["threshold"] is not None and not finite(options["threshold"]):
        raise UserError(f"--threshold {options['threshold']} is not a finite number")
    if _is_given("tpr") and not options["threshold_from"] and not options["detector"]:
        raise UserError("--tpr is the fraction of new ID images to accept; it needs ID images: --threshold-from DIR")


def _is_given(name: str) -> bool:
    """Return whether an option is on the command line."""
    from click.core import ParameterSource

    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def _load_detector(options: dict[str, Any]) -> Any:
    """Load the saved detector. Raise UserError for options that it already fixes."""
    from oodbench.detector.detector import Detector

    changeable = ("device", "workers", "store", "shared", "on_error", "plugins", "encoder")
    allowed = {*changeable, "data", "detector", "threshold", "output", "save", "no_store"}
    given = [name for name in options if _is_given(name)]
    spelled = {param.name: max(param.opts, key=len) for param in click.get_current_context().command.params}
    fixed = [spelled[name] for name in given if name not in allowed]
    if fixed:
        raise UserError(f"--detector fixes {', '.join(fixed)}; leave it out")
    changes = {name: options[name] for name in changeable if name in given}
    return Detector.load(options["detector"], keep=not options["no_store"], **changes)


def _score_parts(detector: Any, images: ImageSet) -> Iterator[Scored]:
    """Score images a few thousand at a time, with a progress bar."""
    from oodbench.cli.progress import ProgressBars

    with ProgressBars("images") as bars:
        yield from detector.stream(images, bars.count("encode images", len(images)))


# The table of scores


@dataclass
class ScoreSummary:
    """Summary of a table of scores.

    images    number of images in the table
    accepted  how many of them are in-distribution
    skipped   one reason for each image that could not be read
    least     smallest score
    most      largest score
    """

    images: int = 0
    accepted: int = 0
    skipped: tuple[str, ...] = ()
    least: float = math.inf
    most: float = -math.inf


def check_table_file(path: Path | None) -> None:
    """Raise UserError for a file that is neither CSV nor parquet, or cannot be written."""
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {path}: the name must end in .csv or .parquet")
    check_output(path)


def write_scores(
    parts: Iterable[Scored], classes: Sequence[str], threshold: float | None, path: Path | None
) -> ScoreSummary:
    """Write the columns image, score, class, and with a threshold decision ("id" or "ood"). Path None: CSV on stdout.

    The file is written atomically. Images that could not be read are skipped. Texts in CSV are made safe for
    spreadsheets (`csv_text`); in parquet they are unchanged, except that bytes that are not UTF-8 are escaped.
    """
    import numpy as np

    names = ["image", "score", "class", *(["decision"] if threshold is not None else [])]
    summary = ScoreSummary()
    with _open_table(path, names) as append:
        for part in parts:
            read = np.flatnonzero(~np.isnan(part.scores))
            columns: Columns = [
                [part.names[i] for i in read],
                part.scores[read].tolist(),
                [classes[k] if k >= 0 else "" for k in part.predictions[read]],
            ]
            if threshold is not None:
                accepted = part.scores[read] >= threshold
                columns.append(["id" if is_id else "ood" for is_id in accepted])
                summary.accepted += int(accepted.sum())
            summary.images += len(read)
            summary.least = float(part.scores[read].min(initial=summary.least))
            summary.most = float(part.scores[read].max(initial=summary.most))
            summary.skipped += part.skipped
            append(columns)
    return summary


@contextmanager
def _open_table(path: Path | None, names: list[str]) -> Iterator[Callable[[Columns], None]]:
    """Yield a function that appends columns to the table."""
    if path is None:
        try:
            yield _csv_appender(sys.stdout, names)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe: click ends quietly
            raise
        except OSError as error:
            raise UserError(f"the table cannot be written to standard output: {error.strerror or error}") from error
        return
    try:
        with atomic_write(path) as partial:
            if path.suffix.lower() == ".csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    yield _csv_appender(file, names)
            else:
                import pyarrow as pa
                from pyarrow import parquet

                kinds = {"score": pa.float64()}
                schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
                with parquet.ParquetWriter(partial, schema) as file:
                    yield lambda columns: file.write_table(_arrow_table(dict(zip(names, columns, strict=True)), schema))
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error


def _csv_appender(file: Any, names: list[str]) -> Callable[[Columns], None]:
    from oodbench.report.formats.csv import csv_text

    table = csv.writer(file, lineterminator="\n")
    table.writerow(names)
    return lambda columns: table.writerows(map(csv_text, row) for row in zip(*columns, strict=True))


def _arrow_table(columns: dict[str, list[Any]], schema: Any) -> Any:
    import pyarrow as pa

    columns["image"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["image"]]
    return pa.table(columns, schema)
