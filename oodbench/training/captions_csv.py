"""Captions from a CSV file with the header `filepath,caption`; further columns are allowed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodbench.errors import UserError
from oodbench.storage.fingerprints import file_fingerprint
from oodbench.training.corpus import Part, listed

COLUMNS = ("filepath", "caption")


@dataclass(frozen=True)
class Row:
    """A line with its number, and what it says or why it says nothing."""

    line: int
    file: str = ""
    caption: str = ""
    problem: str = ""


def read(path: Path, data: Path | None) -> Part:
    """The pairs of a CSV file. Paths start from `data`, else from the folder of the file.

    Every row that cannot be used is named in `skipped`. UserError when the file is missing, empty or without header.
    """
    folder = data.expanduser() if data else path.parent
    positions: dict[str, int] = {}
    absent: dict[str, str] = {}
    prints: list[str] = []
    images: list[int] = []
    captions: list[str] = []
    skipped: list[str] = []
    for row in rows(path):
        problem = row.problem
        if not problem and row.file not in positions:
            problem = absent.get(row.file, "")
            if not problem:
                try:
                    prints.append(file_fingerprint(folder / row.file))
                    positions[row.file] = len(positions)
                except FileNotFoundError:
                    problem = absent[row.file] = f"no image {folder / row.file}"
                except (OSError, ValueError) as error:
                    problem = absent[row.file] = f"image {row.file!r} cannot be read ({error})"
        if problem:
            skipped.append(f"line {row.line}: {problem}")
            continue
        images.append(positions[row.file])
        captions.append(row.caption)
    if not captions:
        first = f"; {skipped[0]}" if skipped else ""
        raise UserError(f"captions {path} hold not one pair that can be used ({len(skipped)} cannot{first})")
    listing = listed(path.name, folder, tuple(positions), prints, None)
    return Part(listing, np.array(images, np.int64), tuple(captions), tuple(skipped))


def rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file. UserError when it cannot be read or its header lacks a column."""
    check(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise UserError(f"captions {path}: its header cannot be read ({error})") from error
        places = [header.index(name) for name in COLUMNS]
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(line, problem=f"no CSV ({error})")
                continue
            if cells:
                yield _row(line, cells, len(header), places)


def check(path: Path) -> None:
    """UserError unless there is a file with the header that is needed."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
    except OSError as error:
        raise UserError(f"captions {path} cannot be read: {error.strerror}") from error
    header = [name.strip().strip('"') for name in first.split("\t" if path.suffix.lower() == ".tsv" else ",")]
    if not set(COLUMNS) <= set(header):
        stated = f"it begins with {first.strip()[:80]!r}" if first.strip() else "it is empty"
        raise UserError(f"captions {path} need a first line `filepath,caption`; {stated}")


def _row(line: int, cells: list[str], width: int, places: list[int]) -> Row:
    if len(cells) != width:
        return Row(line, problem=f"{len(cells)} fields instead of {width}")
    file, caption = (cells[place].strip() for place in places)
    if not file or "\0" in file:
        return Row(line, problem="no file path")
    if any("\udc80" <= char <= "\udcff" for char in caption):
        return Row(line, problem="its caption is no UTF-8")
    if not caption or "\0" in caption:
        return Row(line, problem="no caption")
    return Row(line, file, caption)
