"""Captions from a CSV file with the header `filepath,caption`; other columns are ignored."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodbench.errors import UserError
from oodbench.storage.fingerprints import file_fingerprint
from oodbench.training.corpus import CorpusPart, unlabelled_images

COLUMNS = ("filepath", "caption")


@dataclass(frozen=True)
class CaptionRow:
    """One row of the file: its line number with the image path and caption, or with the reason it cannot be used."""

    line: int
    file: str = ""
    caption: str = ""
    problem: str = ""


def read_csv(path: Path, data: Path | None) -> CorpusPart:
    """Read the pairs of a CSV file. Image paths are relative to `data`, or else to the folder of the file.

    Every row that cannot be used gets a line in `skipped`. Raise UserError if the file is missing or empty or has no
    header.
    """
    folder = data.expanduser() if data else path.parent
    positions: dict[str, int] = {}
    bad_images: dict[str, str] = {}
    fingerprints: list[str] = []
    image_of_pair: list[int] = []
    captions: list[str] = []
    skipped: list[str] = []
    for row in read_rows(path):
        problem = row.problem
        if not problem and row.file not in positions:
            problem = bad_images.get(row.file, "")
            if not problem:
                try:
                    fingerprints.append(file_fingerprint(folder / row.file))
                    positions[row.file] = len(positions)
                except FileNotFoundError:
                    problem = bad_images[row.file] = f"no image {folder / row.file}"
                except (OSError, ValueError) as error:
                    problem = bad_images[row.file] = f"image {row.file!r} cannot be read ({error})"
        if problem:
            skipped.append(f"line {row.line}: {problem}")
            continue
        image_of_pair.append(positions[row.file])
        captions.append(row.caption)
    if not captions:
        first = f"; {skipped[0]}" if skipped else ""
        raise UserError(f"captions {path}: no usable pair ({len(skipped)} cannot be used{first})")
    listing = unlabelled_images(path.name, folder, tuple(positions), fingerprints, None)
    return CorpusPart(listing, np.array(image_of_pair, np.int64), tuple(captions), tuple(skipped))


def read_rows(path: Path) -> Iterator[CaptionRow]:
    """Read the rows of a CSV file. Raise UserError if it cannot be read or its header lacks a column."""
    check_csv(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise UserError(f"captions {path}: its header cannot be read ({error})") from error
        columns = [header.index(name) for name in COLUMNS]
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield CaptionRow(line, problem=f"no CSV ({error})")
                continue
            if cells:
                yield _parse_row(line, cells, len(header), columns)


def check_csv(path: Path) -> None:
    """Raise UserError unless the file exists and its header has both columns."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
    except OSError as error:
        raise UserError(f"captions {path} cannot be read: {error.strerror}") from error
    header = [name.strip().strip('"') for name in first.split("\t" if path.suffix.lower() == ".tsv" else ",")]
    if not set(COLUMNS) <= set(header):
        stated = f"it begins with {first.strip()[:80]!r}" if first.strip() else "it is empty"
        raise UserError(f"captions {path} need a first line `filepath,caption`; {stated}")


def _parse_row(line: int, cells: list[str], width: int, columns: list[int]) -> CaptionRow:
    if len(cells) != width:
        return CaptionRow(line, problem=f"{len(cells)} fields instead of {width}")
    file, caption = (cells[column].strip() for column in columns)
    if not file or "\0" in file:
        return CaptionRow(line, problem="no file path")
    if any("\udc80" <= char <= "\udcff" for char in caption):
        return CaptionRow(line, problem="its caption is no UTF-8")
    if not caption or "\0" in caption:
        return CaptionRow(line, problem="no caption")
    return CaptionRow(line, file, caption)
