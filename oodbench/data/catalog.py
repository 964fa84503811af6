"""The catalogue: datasets/*.toml -> Dataset, datasets/benchmarks/*.toml -> Benchmark. Unknown keys are refused.

A user's own declarations lie in $OODBENCH_CONFIG/datasets (default ~/.config/oodbench/datasets) and are read as well.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from oodbench.data.declared import LOADERS, UNKNOWN, Benchmark, Dataset, read_benchmark, read_dataset
from oodbench.data.paths import declarations, expand
from oodbench.data.reference import own_dataset, selection
from oodbench.errors import UserError, did_you_mean, raise_all

__all__ = [
    "LOADERS",
    "UNKNOWN",
    "Benchmark",
    "Dataset",
    "benchmark",
    "benchmarks",
    "config_folder",
    "data_root",
    "dataset",
    "datasets",
    "own_folder",
    "read_dataset",
    "titled",
]


@functools.cache
def datasets() -> dict[str, Dataset]:
    """Every declared dataset by name, sorted. UserError when two files declare one name."""
    found: dict[str, Dataset] = {}
    places: dict[str, Path] = {}
    own = own_folder()
    for path in (*sorted(declarations().glob("*.toml")), *(sorted((own / "datasets").glob("*.toml")) if own else ())):
        if path.name.startswith("."):  # what an editor or another system put beside a declaration
            continue
        one = read_dataset(path)
        for name in (one.name, *one.aliases):
            if name in places:
                raise UserError(f"'{name}' is declared twice: in {places[name]} and in {path}; rename one of them")
            places[name] = path
        found[one.name] = one
    return found


def config_folder() -> Path:
    """$OODBENCH_CONFIG, else ~/.config/oodbench: where a user's own declarations lie. UserError without a home."""
    if chosen := os.environ.get("OODBENCH_CONFIG"):
        return expand(chosen, "$OODBENCH_CONFIG")
    try:
        return Path.home() / ".config" / "oodbench"
    except RuntimeError as error:
        raise UserError("this user has no home folder for declarations; name a folder by $OODBENCH_CONFIG") from error


def own_folder() -> Path | None:
    """`config_folder()`; None for a user without a home folder, who has no declarations."""
    try:
        return config_folder()
    except UserError:
        if os.environ.get("OODBENCH_CONFIG"):
            raise
        return None


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Every declared benchmark by name, sorted."""
    return {p.stem: read_benchmark(p) for p in sorted((declarations() / "benchmarks").glob("*.toml"))}


def dataset(reference: str, classes: str = "") -> Dataset:
    """A dataset by name, alias, `NAME[classes]`, or one of the user's (`folder:PATH`, `list:FILE`, `tar:PATTERN`, ...).

    `classes` names a class list to use instead of its own.
    """
    own = own_dataset(reference)
    if own:
        return Dataset(**own, classes=classes)
    whole, keep = selection(reference)
    if keep:
        return _chosen(dataset(whole), keep, classes)
    known = datasets()
    by_alias = {alias: d for d in known.values() for alias in d.aliases}
    found = known.get(reference) or by_alias.get(reference)
    if found is None:
        hint = did_you_mean(reference, {*known, *by_alias, *benchmarks()} - {reference})
        raise UserError(
            f"no dataset '{reference}'{hint}\n  a folder of your own is given as folder:PATH "
            "(also list:FILE, tar:PATTERN, hf:NAME), or declared by: oodbench datasets add"
        )
    return dataclasses.replace(found, classes=classes) if classes else found


def _chosen(whole: Dataset, keep: tuple[str, ...], classes: str) -> Dataset:
    """Some classes of a dataset, as a dataset."""
    inside = " ".join(keep)
    if len(inside) > 24:
        inside = f"{'all but ' if keep[0] == '!' else ''}{len(keep) - (keep[0] == '!')} given"
    return Dataset(
        name=f"{whole.name}[{' '.join(keep)}]",
        title=f"{whole.title} [{inside}]",
        loader="part",
        path=whole.path,
        within=whole.name,
        keep=keep,
        classes=classes,
        resolution=whole.resolution,
        licence=whole.licence,
        cite=whole.cite,
        url=whole.url,
        obtain=whole.obtain,
    )


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
    declared = _protocol(chosen)
    if not sets:
        if declared is None:
            raise UserError(f"'{id_reference}' has no benchmark of its own; name its OOD sets with --ood")
        return declared
    once: dict[tuple[str, ...], Dataset] = {}
    for one in sets:  # a set given twice is one
        place = (one.loader, one.path, one.list, one.source, one.split)
        once.setdefault((one.name,) if one.declared else place, one)
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


def _protocol(id_set: Dataset) -> Benchmark | None:
    """The benchmark that an ID set declares, with that set as its ID set: a protocol may be declared for another."""
    if not id_set.benchmark:
        return None
    found = benchmarks().get(id_set.benchmark)
    if found is None:
        raise UserError(
            f"dataset '{id_set.name}' declares the benchmark '{id_set.benchmark}'"
            f"{did_you_mean(id_set.benchmark, benchmarks())}"
        )
    if found.id == id_set.name:
        return found
    return dataclasses.replace(
        found,
        name=f"{id_set.name}-vs-{found.name}",
        title=f"{id_set.title} against the OOD sets of {found.title}",
        id=id_set.name,
        calibration="",  # that of the other ID set; this one's is its own `train`
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
    chosen = os.environ.get("OODBENCH_DATA")
    return expand(given or "data") if given or not chosen else expand(chosen, "$OODBENCH_DATA")


def _dataset_or(problems: list[str], reference: str) -> Dataset | None:
    try:
        return dataset(reference)
    except UserError as error:
        problems += error.problems
        return None
