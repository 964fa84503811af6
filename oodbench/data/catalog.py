"""The catalogue: datasets/*.toml -> Dataset, datasets/benchmarks/*.toml -> Benchmark. Unknown keys are refused.

A user's own declarations lie in $OODBENCH_CONFIG/datasets (default ~/.config/oodbench/datasets) and are read as well.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oodbench.data.paths import declarations
from oodbench.errors import ProblemList, UserError, did_you_mean, has_credentials, is_url, raise_all, redact_url
from oodbench.storage.files import expand, read_text, real_path

OWN = ("folder:", "list:", "tar:", "hf:", "arrays:")
_EXAMPLES = {
    "folder": "a path, as in folder:photos",
    "list": "a file, as in list:test.txt or list:test.txt@images",
    "tar": "a file or pattern, as in tar:shards/test-{000..012}.tar",
    "hf": "a name, a saved folder or a parquet file, as in hf:uoft-cs/cifar10",
    "arrays": "a file, as in arrays:images.npz",
}
_SELECTED = re.compile(r"(?P<whole>[\w.-]+)\[(?P<keep>[^\[\]]*)\]")


def own_dataset(reference: str) -> dict[str, Any] | None:
    """The fields of a dataset of the user's own, paths absolute; None for the name of a declared one."""
    kind, colon, rest = reference.partition(":")
    if not colon or kind not in _EXAMPLES:
        return None
    if not rest:
        raise UserError(f"{kind}: needs {_EXAMPLES[kind]}")
    fields = {"name": reference, "loader": {"folder": "classes"}.get(kind, kind)}
    if kind == "list":
        file, at, root = rest.rpartition("@")
        if not at or os.path.exists(expand(rest)):
            file, root = rest, ""
        path = real_path(file)
        return {
            **fields,
            "title": _bare(path),
            "path": str(real_path(root) if root else path.parent),
            "list": str(path),
        }
    if is_url(rest):
        if has_credentials(rest):  # it would stand in rows and tables
            raise UserError(f"{kind}:{redact_url(rest)}: a set is named by its URL: leave out password and signature")
        return {**fields, "title": _bare(Path(rest)), "path": rest}
    path = real_path(rest)
    if kind == "hf" and not path.exists():
        return {**fields, "title": rest, "path": rest}
    return {**fields, "title": path.name if kind == "folder" else _bare(path), "path": str(path)}


def selection(reference: str) -> tuple[str, tuple[str, ...]]:
    """`cifar10[0 1 5-7]` as ("cifar10", ("0", "1", "5-7")); other names with ()."""
    found = _SELECTED.fullmatch(reference)
    if not found:
        return reference, ()
    keep = tuple(found["keep"].replace("!", "! ").replace(",", " ").split())
    if not keep or keep == ("!",):
        raise UserError(f"'{reference}' names no class; write {found['whole']}[0 1 5-7], or [!0 1] for all others")
    return found["whole"], keep


def _bare(path: Path) -> str:
    """The file name without its endings; braces and stars stay."""
    return re.sub(r"(\.(tar|txt|gz|parquet|npz|npy|csv|lst))+$", "", path.name)


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


@dataclass(frozen=True)
class Protocol:
    """A benchmark whose datasets were found.

    benchmark  its name, title, calibration set and encoder
    id         the ID set
    ood        the OOD sets, each with its group ("near", "far" or ""), in the order of the table
    """

    benchmark: Benchmark
    id: Dataset
    ood: tuple[tuple[Dataset, str], ...]

    def without(self, names: Collection[str]) -> Protocol:
        """Return the protocol without some OOD sets. Its name and title say so, because its averages differ."""
        kept = tuple((one, group) for one, group in self.ood if one.name not in names)
        if not kept:
            raise UserError(f"none of the OOD sets of '{self.benchmark.name}' is there: {', '.join(names)}")
        titles = [one.title for one, _ in self.ood if one.name in names]
        near, far, ood = (tuple(one.name for one, group in kept if group == wanted) for wanted in ("near", "far", ""))
        benchmark = dataclasses.replace(
            self.benchmark,
            name=f"{self.benchmark.name}-without-{'+'.join(names)}",
            title=f"{self.benchmark.title}, without {', '.join(titles)}",
            near=near,
            far=far,
            ood=ood,
        )
        return Protocol(benchmark, self.id, kept)


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
        raw: dict[str, Any] = tomllib.loads(read_text(path, "the declaration"))
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


__all__ = [
    "LOADERS",
    "UNKNOWN",
    "Benchmark",
    "Dataset",
    "Protocol",
    "benchmarks",
    "config_folder",
    "data_root",
    "dataset",
    "datasets",
    "own_folder",
    "protocol",
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


def protocol(id_reference: str, ood_references: Sequence[str] = (), classes: str = "") -> Protocol:
    """Return the benchmark of an ID set with its datasets: the declared one, or one made of the given OOD sets.

    `id_reference` may also be the name of a benchmark. `classes` names a class list to use instead of the ID set's own.
    Raises UserError with every name that does not exist.
    """
    known = benchmarks()
    if id_reference in known and not ood_references:
        return _with_datasets(known[id_reference], classes)
    if id_reference in known and id_reference not in datasets():
        id_reference = known[id_reference].id
    problems = ProblemList()
    id_set = problems.attempt(dataset, id_reference, classes)
    found = [problems.attempt(dataset, reference) for reference in ood_references]
    raise_all(problems.problems)
    assert id_set
    declared = _declared_benchmark(id_set)
    if not found:
        if declared is None:
            raise UserError(f"'{id_reference}' has no benchmark of its own; name its OOD sets with --ood")
        return _with_datasets(declared, classes)
    distinct: dict[tuple[str, ...], Dataset] = {}
    for one in filter(None, found):  # a set given twice counts once
        location = (one.loader, one.path, one.list, one.source, one.split)
        distinct.setdefault((one.name,) if one.declared else location, one)
    ood = list(distinct.values())
    if declared and [one.name for one in ood] == [name for name, _ in declared.sets()]:
        groups = [group for _, group in declared.sets()]
        return Protocol(declared, id_set, tuple(zip(ood, groups, strict=True)))
    id_set, *ood = titled([id_set, *ood])
    names = [one.name if one.declared else one.title for one in (id_set, *ood)]
    made = Benchmark(
        name=f"{names[0]}-vs-{'+'.join(names[1:])}",
        title=f"{id_set.title} against {', '.join(one.title for one in ood)}",
        id=id_set.name,
        ood=tuple(one.name for one in ood),
        calibration=declared.calibration if declared else "",
        encoder=declared.encoder if declared else "",
    )
    return Protocol(made, id_set, tuple((one, "") for one in ood))


def _with_datasets(found: Benchmark, classes: str) -> Protocol:
    """Return a declared benchmark with its datasets."""
    sets = found.sets()
    id_set, *ood = titled([dataset(found.id, classes), *(dataset(name) for name, _ in sets)])
    return Protocol(found, id_set, tuple((one, group) for one, (_, group) in zip(ood, sets, strict=True)))


def _declared_benchmark(id_set: Dataset) -> Benchmark | None:
    """Return the benchmark that an ID set names, with that set as ID set, as it may be declared for another one."""
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
