"""oodbench score."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli.common import FOLDER, check_output, log, note, stoppable
from oodbench.errors import UserError
from oodbench.storage.files import atomic_write, expand

if TYPE_CHECKING:
    from oodbench.data.imageset import ImageSet
    from oodbench.detector.engine import Scored

SUFFIXES = (".csv", ".parquet")


@dataclass
class Written:
    """What a table holds: images, how many of them are in-distribution, those that could not be read, the range."""

    images: int = 0
    accepted: int = 0
    skipped: tuple[str, ...] = ()
    least: float = math.inf
    most: float = -math.inf


def check(out: Path | None) -> None:
    """Raise UserError for a file that is neither CSV nor parquet, or cannot be written."""
    if out is None:
        return
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {out}: the name must end in .csv or .parquet")
    check_output(out)


def write(parts: Iterable[Scored], classes: Sequence[str], threshold: float | None, out: Path | None) -> Written:
    """Columns image, score, class, and with a threshold decision ("id" or "ood"); None writes CSV to stdout.

    A file appears when it is whole. An image that could not be read is left out. In CSV texts are made safe by
    `csv_text`; parquet has them as they are, but for bytes of file names that are not UTF-8, which become escapes.
    """
    import numpy as np

    names = ["image", "score", "class", *(["decision"] if threshold is not None else [])]
    found = Written()
    with _writer(out, names) as put:
        for part in parts:
            read = np.flatnonzero(~np.isnan(part.scores))
            columns: list[list[Any]] = [
                [part.names[i] for i in read],
                part.scores[read].tolist(),
                [classes[k] if k >= 0 else "" for k in part.predictions[read]],
            ]
            if threshold is not None:
                accepted = part.scores[read] >= threshold
                columns.append(["id" if one else "ood" for one in accepted])
                found.accepted += int(accepted.sum())
            found.images += len(read)
            found.least = float(part.scores[read].min(initial=found.least))
            found.most = float(part.scores[read].max(initial=found.most))
            found.skipped += part.skipped
            put(columns)
    return found


@contextmanager
def _writer(out: Path | None, names: list[str]) -> Iterator[Any]:
    """Takes columns, as often as there are some."""
    if out is None:
        try:
            yield _rows(sys.stdout, names)
            sys.stdout.flush()
        except BrokenPipeError:  # of `| head`, which click ends quietly
            raise
        except OSError as error:
            raise UserError(f"the table cannot be written to standard output: {error.strerror or error}") from error
        return
    try:
        with atomic_write(out) as partial:
            if out.suffix.lower() == ".csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    yield _rows(file, names)
            else:
                import pyarrow as pa
                from pyarrow import parquet

                kinds = {"score": pa.float64()}
                schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
                with parquet.ParquetWriter(partial, schema) as file:
                    yield lambda columns: file.write_table(_table(dict(zip(names, columns, strict=True)), schema))
    except OSError as error:
        raise UserError(f"--output {out} cannot be written: {error.strerror or error}") from error


def _rows(file: Any, names: list[str]) -> Any:
    from oodbench.report.formats.csv import csv_text

    table = csv.writer(file, lineterminator="\n")
    table.writerow(names)
    return lambda columns: table.writerows(map(csv_text, row) for row in zip(*columns, strict=True))


def _table(columns: dict[str, list[Any]], schema: Any) -> Any:
    import pyarrow as pa

    columns["image"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["image"]]
    return pa.table(columns, schema)


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--method", help="One method: clipn, energy[scale=1], ...")
@click.option("--classes", default="", help="Class names: a list's name, or a file with one a line.")
@click.option("--detector", type=FOLDER, help="A detector that was saved, instead of --method and --classes.")
@click.option("--threshold-from", help="ID images: a decision at the threshold that keeps --tpr of new ID images.")
@click.option("--calibration", help="ID images for a method that calibrates. Default: a part of --threshold-from.")
@click.option("--tpr", default=0.95, help="Share of new ID images that is kept.", show_default=True)
@click.option("--threshold", type=float, help="The threshold itself: images that score at least this are ID.")
@click.option("-o", "--output", "out", type=FOLDER, help="A .csv or .parquet file. Default: CSV to stdout.")
@click.option("--save", type=FOLDER, help="Also save the detector into this folder.")
@click.option("--encoder", default="", help="As for run. Default: glyphs.")
@click.option("--weights", default="", help="Trained weights of the method.")
@click.option("--set", "settings", multiple=True, help="A hyper-parameter: mcm.temperature=0.01. Repeatable.")
@click.option("--templates", default="", help="Prompts: a set's name, a file, or 'a photo of a {}'.")
@click.option("--resize", help="Resize filter, bicubic or bilinear. Default: that of the weights.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...", show_default=True)
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16.", show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
@click.option("--on-error", default="stop", help="A broken image: stop or skip.", show_default=True)
@click.option("--no-store", is_flag=True, help="Do not keep embeddings of images.")
@click.option("--store", type=FOLDER, help="Folder of embeddings. Default: $OODBENCH_STORE, else user cache.")
@click.option("--shared", default="", help="URL of a store behind it that all machines reach. $OODBENCH_SHARED.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, help="File with a method of your own. Repeatable.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def score(images: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Score IMAGES (a folder, files, or the name of a data set) with one method, and decide."""
    log(verbose)
    pass
    from oodbench.data.load import notes
    from oodbench.detector import saving as folder
    from oodbench.detector.images import listed
    from oodbench.storage.store import Store, default_root

    out, threshold, save = options["out"], options["threshold"], options["save"]
    check(out)
    _check_thresholds(options)
    if save:
        folder.check(expand(save))
    given = listed(images[0] if len(images) == 1 else list(images), Store(expand(options["store"] or default_root())))
    for one in notes(given):
        note(f"note: {one}")
    with stoppable():
        if options["detector"]:
            detector = _loaded(options)
        else:
            detector = _fitted(options)
        if threshold is not None:
            detector.threshold_ = threshold
        if save:
            detector.save(save)
        limit = detector.threshold_ if threshold is None else threshold
        found = write(_parts(detector, given), list(detector.classes_), limit, out)
    for reason in found.skipped:
        note(f"skipped: {reason}")
    if found.images > 1 and found.least == found.most:
        alone = len(detector.classes_) == 1
        reason = "; with one class name every softmax over the classes is 1" if alone else ""
        note(f"note: all images have the same score, {found.least:.6g}{reason}")
    decided = f", {found.accepted:,} of them ID at threshold {limit:.6g}" if limit is not None else ""
    note(f"{found.images:,} images{decided}" + (f": {out}" if out else ""))


def _fitted(options: dict[str, Any]) -> Any:
    from oodbench.detector.detector import Detector
    from oodbench.errors import UserError
    from oodbench.method.parameters import parse_setting

    if not options["method"] or not options["classes"]:
        raise UserError("name --method and --classes (class names, one a line), or a saved --detector FOLDER")
    name = options["method"].partition("[")[0].strip()
    settings = [parse_setting(text) for text in options["settings"]]
    other = next((one for one in settings if one.method != name), None)
    if other:
        raise UserError(f"--set {other.method}.{other.parameter}: the method is {name}")
    passed = ("classes", "weights", "templates", "threshold", "device", "precision", "batch_size", "workers", "shared")
    detector = Detector(
        options["method"],
        encoder=options["encoder"] or "glyphs",
        settings={one.parameter: one.value for one in settings},
        tpr=options["tpr"] if options["threshold_from"] else None,
        seed=options["seed"],
        resize=options["resize"],
        on_error=options["on_error"],
        store=options["store"],
        keep=not options["no_store"],
        plugins=options["plugins"],
        **{key: options[key] for key in passed},
    )
    if options["calibration"]:
        return detector.fit(options["calibration"], validation=options["threshold_from"])
    return detector.fit(options["threshold_from"])


def _check_thresholds(options: dict[str, Any]) -> None:
    """UserError for a threshold that is none, for two of them, and for flags that would have no effect."""
    from oodbench.detector.engine import finite
    from oodbench.errors import UserError

    if options["threshold"] is not None and options["threshold_from"]:
        raise UserError("--threshold-from and --threshold are two thresholds; give one")
    if options["threshold"] is not None and not finite(options["threshold"]):
        raise UserError(f"--threshold {options['threshold']}: a finite number is needed")
    if _given("tpr") and not options["threshold_from"] and not options["detector"]:
        raise UserError("--tpr is the share of new ID images that --threshold-from DIR keeps; give that, too")


def _given(name: str) -> bool:
    from click.core import ParameterSource

    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def _loaded(options: dict[str, Any]) -> Any:
    """The saved detector; what it fixes cannot be given beside it."""
    from oodbench.detector.detector import Detector
    from oodbench.errors import UserError

    places = ("device", "workers", "store", "shared", "on_error", "plugins", "encoder")
    able = {*places, "detector", "threshold", "out", "save", "no_store"}
    given = [name for name in options if _given(name)]
    flags = {param.name: param.opts[0] for param in click.get_current_context().command.params}
    fixed = [flags[name] for name in given if name not in able]
    if fixed:
        raise UserError(f"--detector fixes {', '.join(fixed)}; leave it out")
    changes = {name: options[name] for name in places if name in given}
    return Detector.load(options["detector"], keep=not options["no_store"], **changes)


def _parts(detector: Any, images: ImageSet) -> Iterator[Scored]:
    from oodbench.cli.progress import ProgressBars

    with ProgressBars("images") as bars:
        yield from detector.stream(images, bars.count("encode images", len(images)))
