"""What a TOML declaration says: Dataset and Benchmark, read with strict keys."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oodbench.data.paths import text_of
from oodbench.data.reference import OWN
from oodbench.errors import UserError, did_you_mean

LOADERS = ("classes", "images", "list", "tar", "torchvision", "parquet", "hf", "arrays", "part", "union", "glyphs")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Dataset:
    """Where images lie and what they are.

    loader     "classes": one folder per class (loaders/layout.py); "images": every image below path, no labels;
               "list": the lines of `list`; "tar": archives (path is a pattern); "torchvision", "hf", "parquet";
               "arrays": .npz or .npy; "part": some images of the set `within`; "union": the sets `parts`, one after the
               other; "glyphs": the embedded benchmark, path is a split
    path       below the data root; absolute for a set of the user's
    list       the list file below the data root: `path label` per line, paths from `path` (or found in `within`)
    digest     sha256 of the list file; "unknown": not known
    source     the torchvision class that reads it
    split      the split of it, or of a Hugging Face set or array file; of archives the ending of images (`main.png`)
    within     the set that a part is taken from; its stored embeddings are used
    keep       class folders or class numbers (`3`, `20-99`) of `within` that a part keeps, in label order; with `!`
               first, all others
    keep_file  file below the data root with more of them, one a line
    like       the set whose class folders these are some of: names are taken from its class list, by folder
    classes    a class-name list's name or file; "" means the folder names (or, for an OOD set, none)
    count      images the full set has; None: not known
    resolution native size in pixels, in words
    download   an archive or file that `oodbench datasets get` may fetch; sha256 or md5 of it where known
    train      name of the dataset's training split, for methods that calibrate
    benchmark  the protocol that `--id NAME` runs when no --ood is given
    """

    name: str
    title: str
    loader: str
    path: str
    aliases: tuple[str, ...] = ()
    list: str = ""
    digest: str = UNKNOWN
    source: str = ""
    split: str = ""
    within: str = ""
    parts: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    keep_file: str = ""
    like: str = ""
    classes: str = ""
    count: int | None = None
    resolution: str = UNKNOWN
    train: str = ""
    benchmark: str = ""
    licence: str = ""
    cite: str = ""
    url: str = ""
    obtain: str = ""
    download: str = ""
    sha256: str = ""
    md5: str = ""

    @property
    def declared(self) -> bool:
        """Whether it comes from the catalogue rather than from the command line."""
        return not self.name.startswith(OWN)

    def folder(self, data: Path) -> Path:
        return data / self.path


@dataclass(frozen=True)
class Benchmark:
    """An ID set and its OOD sets. `ood` is set when the protocol does not tell near from far."""

    name: str
    title: str
    id: str
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    calibration: str = ""  # dataset for fit(); "": the ID set's own training split
    encoder: str = ""  # the encoder that a run without --encoder takes
    cite: str = ""

    def sets(self) -> list[tuple[str, str]]:
        """(dataset, group) of every OOD set, in the order of the table."""
        return [(n, "near") for n in self.near] + [(n, "far") for n in self.far] + [(n, "") for n in self.ood]


def read_dataset(path: Path) -> Dataset:
    """The dataset that a file declares. UserError when it is not complete, or has unknown keys or loader."""
    one = _read(path, Dataset)
    if one.loader not in LOADERS:
        raise UserError(f"dataset '{one.name}': no loader '{one.loader}'{did_you_mean(one.loader, LOADERS)}")
    for loader, key in (("list", "list"), ("torchvision", "source"), ("part", "within"), ("union", "parts")):
        if one.loader == loader and not getattr(one, key):
            raise UserError(f"{path} is not complete: loader '{loader}' needs '{key}'")
    if one.loader == "part" and not (one.list or one.keep or one.keep_file):
        raise UserError(f"{path} is not complete: loader 'part' needs 'list', 'keep' or 'keep_file'")
    return one


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark that a file declares. UserError when it is not complete or has unknown keys."""
    return _read(path, Benchmark)


T = TypeVar("T", Dataset, Benchmark)


def _read(path: Path, kind: type[T]) -> T:
    try:
        raw: dict[str, Any] = tomllib.loads(text_of(path, "the declaration"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in fields or key == "name":
            raise UserError(f"{path}: no key '{key}'{did_you_mean(key, [f for f in fields if f != 'name'])}")
        expected = str(fields[key].type).split(" ")[0].partition("[")[0]
        fits = type(value).__name__ == {"tuple": "list"}.get(expected, expected)
        if not fits or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise UserError(f"{path}: '{key}' takes {fields[key].type}, not {value!r}")
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    try:
        return kind(name=path.stem, **lists)
    except TypeError as error:
        raise UserError(f"{path} is not complete: {error}") from error
