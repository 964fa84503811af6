"""The catalogue: datasets/*.toml -> Dataset, datasets/benchmarks/*.toml -> Benchmark. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import functools
import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.paths import declarations, expand

LOADERS = ("classes", "images", "glyphs")


@dataclass(frozen=True)
class Dataset:
    """Where images lie and what they are.

    loader    "classes": one folder per class, sorted folder = label; "images": every image below path, no labels;
              "glyphs": the embedded benchmark, path is a split
    path      below the data root; absolute for a `folder:` of the user's
    classes   a class-name list's name or file; "" means the folder names (or, for an OOD set, none)
    count     images the full set has; None: not known
    train     name of the dataset's training split, for methods that calibrate
    benchmark the protocol that `--id NAME` runs when no --ood is given
    """

    name: str
    title: str
    loader: str
    path: str
    aliases: tuple[str, ...] = ()
    classes: str = ""
    count: int | None = None
    train: str = ""
    benchmark: str = ""
    licence: str = ""
    cite: str = ""
    url: str = ""
    obtain: str = ""

    @property
    def declared(self) -> bool:
        """Whether it comes from the catalogue rather than from the command line."""
        return not self.name.startswith("folder:")

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


@functools.cache
def datasets() -> dict[str, Dataset]:
    """Every declared dataset by name, sorted."""
    found = {p.stem: _read(p, Dataset) for p in sorted(declarations().glob("*.toml"))}
    for dataset in found.values():
        if dataset.loader not in LOADERS:
            raise UserError(
                f"dataset '{dataset.name}': no loader '{dataset.loader}'{did_you_mean(dataset.loader, LOADERS)}"
            )
    return found


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Every declared benchmark by name, sorted."""
    return {p.stem: _read(p, Benchmark) for p in sorted((declarations() / "benchmarks").glob("*.toml"))}


def dataset(reference: str, classes: str = "") -> Dataset:
    """A dataset by name, alias or `folder:PATH`; `classes` names a class list to use instead of its own."""
    kind, colon, rest = reference.partition(":")
    if colon and kind == "folder":
        if not rest:
            raise UserError("folder: needs a path, as in folder:photos")
        path = expand(rest).resolve()
        return Dataset(name=f"folder:{rest}", title=path.name, loader="classes", path=str(path), classes=classes)
    known = datasets()
    by_alias = {alias: d for d in known.values() for alias in d.aliases}
    found = known.get(reference) or by_alias.get(reference)
    if found is None:
        hint = did_you_mean(reference, {*known, *by_alias, *benchmarks()} - {reference})
        raise UserError(f"no dataset '{reference}'{hint}\n  a folder of your own is given as folder:PATH")
    return dataclasses.replace(found, classes=classes) if classes else found


def benchmark(id_reference: str, ood_references: Sequence[str]) -> Benchmark:
    """The benchmark of an ID set: its declared protocol, or one made of the OOD sets that the user named.

    `id_reference` may also be a benchmark's own name.
    """
    if id_reference in benchmarks() and not ood_references:
        return benchmarks()[id_reference]
    if id_reference in benchmarks() and id_reference not in datasets():
        id_reference = benchmarks()[id_reference].id
    problems: list[str] = []
    found = [_dataset_or(problems, reference) for reference in (id_reference, *ood_references)]
    raise_all(problems)
    chosen, *sets = [d for d in found if d]
    declared = benchmarks().get(chosen.benchmark)
    if not sets:
        if declared is None:
            raise UserError(f"'{id_reference}' has no benchmark of its own; name its OOD sets with --ood")
        return declared
    once: dict[str, Dataset] = {}
    for one in sets:  # a set given twice is one
        once.setdefault(one.name if one.declared else one.path, one)
    sets = list(once.values())
    if declared and [d.name for d in sets] == [name for name, _ in declared.sets()]:
        return declared
    chosen, *sets = titled([chosen, *sets])
    short = [d.name if d.declared else d.title for d in sets]
    return Benchmark(
        name=f"{chosen.name if chosen.declared else chosen.title}-vs-{'+'.join(short)}",
        title=f"{chosen.title} against {', '.join(d.title for d in sets)}",
        id=chosen.name,
        ood=tuple(d.name for d in sets),
        calibration=declared.calibration if declared else "",
        encoder=declared.encoder if declared else "",
    )


def titled(sets: Sequence[Dataset]) -> list[Dataset]:
    """The same sets under titles that differ: folders of one name are called by as much of their paths as it takes."""
    out = list(sets)
    for depth in range(2, 2 + max((len(Path(d.path).parts) for d in sets), default=0)):
        taken = Counter(d.title for d in out)
        for i, d in enumerate(out):
            if taken[d.title] > 1 and not d.declared:
                out[i] = dataclasses.replace(d, title="/".join(Path(d.path).parts[-depth:]))
    return out


def data_root(given: Path | None) -> Path:
    """--data, else $OODBENCH_DATA, else ./data."""
    return expand(given or os.environ.get("OODBENCH_DATA") or "data")


def _dataset_or(problems: list[str], reference: str) -> Dataset | None:
    try:
        return dataset(reference)
    except UserError as error:
        problems.append(str(error))
        return None


T = TypeVar("T", Dataset, Benchmark)


def _read(path: Path, kind: type[T]) -> T:
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
