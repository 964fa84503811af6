"""The catalogue: reads datasets/*.toml as Dataset and datasets/benchmarks/*.toml as Benchmark, by name.

The user's declarations, in the folders datasets/ and benchmarks/ of paths.config_folder(), are read as well.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from oodbench.data.paths import config_folder_or_none, declarations
from oodbench.errors import ProblemList, UserError, did_you_mean, has_credentials, is_url, raise_all, redact_url
from oodbench.storage.files import expand, read_text, real_path

LOADERS = (
    *("classes", "images", "list", "tar", "torchvision", "parquet", "hf", "arrays", "part", "union", "glyphs"),
    "imagenet",
)
UNKNOWN = "unknown"
_REFERENCES = {  # prefix of a reference to a dataset that is not declared -> the rest of the reference
    "folder": "a path, as in folder:photos",
    "list": "a file, as in list:test.txt or list:test.txt@images",
    "tar": "a file or pattern, as in tar:shards/test-{000..012}.tar",
    "hf": "a name, a saved folder or a parquet file, as in hf:uoft-cs/cifar10",
    "arrays": "a file, as in arrays:images.npz",
}
_PREFIXES = tuple(f"{kind}:" for kind in _REFERENCES)
_CLASS_SELECTION = re.compile(r"(?P<name>[\w.-]+)\[(?P<keep>[^\[\]]*)\]")
_LONGEST_SELECTION = 24  # characters of a class selection in a title


@dataclass(frozen=True)
class Archive:
    """A file that `oodbench datasets get` downloads, or takes from `--from`, and moves or unpacks to its place.

    url     its URL; "": it cannot be downloaded, and the dataset's `obtain` describes how to get it
    name    its file name; "": the last part of the URL
    to      the place below the data root of the file, or of an archive's content if this is a folder; "": the dataset's
            path
    inside  the folder in the archive with the content for `to`; "": found by name, or the only folder
    sort    "imagenet1k-val": data/imagenet.py sorts its images into class folders; else a file in the archive with
            lines `name folder` that sorts them
    size    in bytes; None: unknown
    sha256  of the file, or its `md5`; "": unknown
    source  the page or the released code with the URL, and the digest if there is one
    """

    url: str = ""
    name: str = ""
    to: str = ""
    inside: str = ""
    sort: str = ""
    size: int | None = None
    sha256: str = ""
    md5: str = ""
    source: str = ""

    @property
    def file_name(self) -> str:
        """The name of the file: the declared one, else the last part of the URL."""
        return self.name or Path(unquote(re.split("[?#]", self.url)[0])).name

    @property
    def has_digest(self) -> bool:
        """Whether a sha256 or md5 is declared."""
        return bool(self.sha256 or self.md5)


@dataclass(frozen=True)
class Dataset:
    """A dataset: where its images are stored, how they are read, and what they show.

    loader      "classes": one folder per class (loaders/layout.py); "images": every image below path, no labels;
                "list": the lines of `list`; "tar": archives (path is a pattern); "torchvision", "hf", "parquet";
                "arrays": .npz or .npy; "part": some images of the set `within`; "union": the sets `parts` in
                order; "glyphs": the embedded benchmark, path is a split; "imagenet": the validation images of
                ImageNet-1k in any form
    path        below the data root; absolute for a user's dataset; for "classes", `/*` at the end means that the class
                folders are one folder deeper
    layouts     other common paths below the data root, tried in this order after `path` (places.py); `*` matches any
                name
    rename      (pattern, replacement) for file names in a flattened set without folders: the results are the names of
                the set with folders
    list        the list file below the data root: `path label` per line, paths from `path` (or found in `within`)
    digest      sha256 of the list file, or "unknown"
    source      the torchvision class that reads it
    split       split of a torchvision or Hugging Face dataset or an array file; for archives, the suffix of the images
                (`main.png`)
    within      the set that a part is taken from; its stored embeddings are used
    keep        class folders or class numbers (`3`, `20-99`) of `within` that a part keeps, in label order; with `!`
                first, all others
    keep_file   file below the data root with more of them, one per line
    like        a set with these and more class folders: class names are taken from its class list, by folder
    classes     name or file of a class-name list; "" means the folder names (or, for an OOD set, none)
    clean_names whether class names are converted to words (prompts.clean_names)
    count       number of images of the complete set; None: unknown
    resolution  native size in pixels, in words
    archives    files that `oodbench datasets get` fetches
    hub         a gated dataset on the Hugging Face Hub with the same images, and a pattern of its parquet files
    train       the dataset's training split, for methods that calibrate: a name or a reference
    benchmark   the benchmark that `--id NAME` runs when no --ood is given
    """

    name: str
    title: str
    loader: str
    path: str
    aliases: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
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
    clean_names: bool = False
    count: int | None = None
    resolution: str = UNKNOWN
    train: str = ""
    benchmark: str = ""
    licence: str = ""
    cite: str = ""
    url: str = ""
    obtain: str = ""
    archives: tuple[Archive, ...] = ()
    hub: str = ""

    @property
    def declared(self) -> bool:
        """Whether it is declared in the catalogue, not given on the command line (`folder:PATH`)."""
        return not self.name.startswith(_PREFIXES)

    def folder(self, data_root: Path) -> Path:
        """Return the folder or file that holds the images."""
        return data_root / self.path[: len(self.path) - len("/*") * (self.depth - 1)]

    @property
    def depth(self) -> int:
        """Depth of the class folders: 1 directly in the folder, plus 1 for every `/*` at the end of its path."""
        stars = re.search(r"(/\*)*$", self.path) if self.loader == "classes" else None
        return 1 + len(stars[0]) // len("/*") if stars else 1


@dataclass(frozen=True)
class Benchmark:
    """An ID set and its OOD sets, by name.

    near, far    OOD sets, if the benchmark distinguishes near from far OOD
    ood          OOD sets, if it does not
    calibration  dataset for fit(); "": the ID set's training split
    shots        default of --shots: images of each class for methods that read labels; 0 is all
    encoder      default of --encoder
    """

    name: str
    title: str
    id: str
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    calibration: str = ""
    shots: int = 0
    encoder: str = ""
    cite: str = ""

    def sets(self) -> list[tuple[str, str]]:
        """Return (name, group) of every OOD set, in the order of the table."""
        return [(n, "near") for n in self.near] + [(n, "far") for n in self.far] + [(n, "") for n in self.ood]


@dataclass(frozen=True)
class Protocol:
    """A benchmark with its datasets.

    benchmark  its name, title, calibration set and encoder
    id         the ID set
    ood        the OOD sets, each with its group ("near", "far" or ""), in the order of the table
    """

    benchmark: Benchmark
    id: Dataset
    ood: tuple[tuple[Dataset, str], ...]

    def without(self, names: Collection[str]) -> Protocol:
        """Return the protocol without some OOD sets. Its name and title list them, because its averages differ."""
        kept = tuple((one, group) for one, group in self.ood if one.name not in names)
        if not kept:
            raise UserError(f"none of the OOD sets of '{self.benchmark.name}' exists: {', '.join(names)}")
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
    """Read the declaration of a dataset. Raises UserError if it is incomplete or has an unknown key or loader."""
    declared = _read(path, Dataset)
    if declared.loader not in LOADERS:
        raise UserError(
            f"dataset '{declared.name}': no loader '{declared.loader}'{did_you_mean(declared.loader, LOADERS)}"
        )
    for loader, key in (("list", "list"), ("torchvision", "source"), ("part", "within"), ("union", "parts")):
        if declared.loader == loader and not getattr(declared, key):
            raise UserError(f"{path} is not complete: loader '{loader}' needs '{key}'")
    if declared.rename and len(declared.rename) != 2:
        raise UserError(f"{path}: 'rename' takes a pattern and its replacement, not {len(declared.rename)} strings")
    if declared.loader == "part" and not (declared.list or declared.keep or declared.keep_file):
        raise UserError(f"{path} is not complete: loader 'part' needs 'list', 'keep' or 'keep_file'")
    return declared


def read_benchmark(path: Path) -> Benchmark:
    """Read the declaration of a benchmark. Raises UserError when it is incomplete or has unknown keys."""
    return _read(path, Benchmark)


T = TypeVar("T", Dataset, Benchmark)


def _read(path: Path, kind: type[T]) -> T:
    """Read a TOML file with the fields of `kind` as keys, except `name`, which is the name of the file."""
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path, "the declaration"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    problems: list[str] = []
    checked = _checked(values, kind, str(path), problems)
    raise_all(problems)
    return kind(name=path.stem, **checked)


def _checked(values: dict[str, Any], kind: type, where: str, problems: list[str]) -> dict[str, Any]:
    """Return the values of a table as arguments of `kind`; add errors in its keys and types to `problems`."""
    named = kind is not Archive  # an archive has `name` as a key
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "name" or not named}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key == "download" and key not in fields:
            problems.append(f"{where}: 'download' is now the key 'url' of a table [[archives]]")
        elif key not in fields:
            problems.append(f"{where}: no key '{key}'{did_you_mean(key, fields)}")
        elif key == "archives" and isinstance(value, list) and all(isinstance(table, dict) for table in value):
            tables = (_checked(table, Archive, f"{where}, archives", problems) for table in value)
            checked[key] = tuple(Archive(**table) for table in tables)
        else:
            expected = str(fields[key].type).split(" ")[0].partition("[")[0]  # str, int or tuple
            fits = type(value).__name__ == {"tuple": "list"}.get(expected, expected)
            if not fits or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
                problems.append(f"{where}: '{key}' takes {fields[key].type}, not {value!r}")
            checked[key] = tuple(value) if isinstance(value, list) else value
    required = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    if absent := [f"'{key}'" for key in required if key not in values]:
        problems.append(f"{where} is not complete: it needs {', '.join(absent)}")
    return checked


@functools.cache
def datasets() -> dict[str, Dataset]:
    """Return every declared dataset by name, sorted. Raises UserError when two files declare one name."""
    by_name: dict[str, Dataset] = {}
    files: dict[str, Path] = {}
    for path in _files(declarations(), "datasets"):
        declared = read_dataset(path)
        for name in (declared.name, *declared.aliases):
            if name in files:
                raise UserError(f"'{name}' is declared twice: in {files[name]} and in {path}; rename one of them")
            files[name] = path
        by_name[declared.name] = declared
    return by_name


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Return every declared benchmark by name: first the shipped ones, then the user's, each sorted.

    Raises UserError when two files declare one name, or when a benchmark has the name of a set that is not its ID set.
    """
    files: dict[str, Path] = {}
    found: dict[str, Benchmark] = {}
    for path in _files(declarations() / "benchmarks", "benchmarks"):
        one = read_benchmark(path)
        if one.name in files:
            raise UserError(f"'{one.name}' is declared twice: in {files[one.name]} and in {path}; rename one of them")
        same_name = _declared().get(one.name)
        if same_name and one.id not in (same_name.name, *same_name.aliases):
            raise UserError(f"{path}: '{one.name}' is a dataset, but not the ID set of this benchmark; rename the file")
        files[one.name], found[one.name] = path, one
    return found


def _files(shipped: Path, own: str) -> list[Path]:
    """Return the declarations in a shipped folder, then those in the folder `own` of the user's configuration."""
    config = config_folder_or_none()
    folders = [shipped, *([config / own] if config else [])]
    # Hidden files of editors and operating systems are skipped.
    return [path for folder in folders for path in sorted(folder.glob("*.toml")) if not path.name.startswith(".")]


def dataset(reference: str, classes: str = "") -> Dataset:
    """Return a dataset by name, alias, `NAME[classes]`, or reference (`folder:PATH`, `list:FILE`, `tar:PATTERN`, ...).

    `classes` names a class list to use instead of its own. Raises UserError when there is no such dataset.
    """
    found = _from_reference(reference) or _from_selection(reference) or _declared().get(reference)
    if found is None:
        hint = did_you_mean(reference, {*_declared(), *benchmarks()} - {reference})
        raise UserError(
            f"no dataset '{reference}'{hint}\n  a folder of your own is given as folder:PATH "
            "(also list:FILE, tar:PATTERN, hf:NAME), or declared by: oodbench datasets add"
        )
    return dataclasses.replace(found, classes=classes) if classes else found


def absolute(reference: str) -> str:
    """Return a name or reference with its path, if any, made absolute, so that a file can contain it."""
    one = dataset(reference)
    kind, colon, _ = reference.partition(":")
    if one.declared or not colon:
        return one.name
    return f"list:{one.list}@{one.path}" if kind == "list" else f"{kind}:{one.path}"


def is_reference(text: str) -> bool:
    """Return whether a text has the form of a reference to a dataset, or is the name or alias of a declared one."""
    return text.startswith(_PREFIXES) or "[" in text or text in _declared()


def _declared() -> dict[str, Dataset]:
    """Return every declared dataset by name and by alias."""
    return {name: declared for declared in datasets().values() for name in (declared.name, *declared.aliases)}


def _from_reference(reference: str) -> Dataset | None:
    """Return the dataset that `folder:PATH` and the like describe, with absolute paths; None for other texts."""
    kind, colon, rest = reference.partition(":")
    if not colon or kind not in _REFERENCES:
        return None
    if not rest:
        raise UserError(f"{kind}: needs {_REFERENCES[kind]}")
    if kind == "list":
        file, at, root = rest.rpartition("@")
        if not at or os.path.exists(expand(rest)):
            file, root = rest, ""
        path = real_path(file)
        folder = real_path(root) if root else path.parent
        return Dataset(reference, _stem(path), "list", str(folder), list=str(path))
    loader = "classes" if kind == "folder" else kind
    if is_url(rest):
        if has_credentials(rest):  # they would appear in result rows and tables
            raise UserError(f"{kind}:{redact_url(rest)}: results contain the URL: leave out password and signature")
        return Dataset(reference, _stem(Path(rest)), loader, rest)
    path = real_path(rest)
    if kind == "hf" and not path.exists():
        return Dataset(reference, rest, loader, rest)
    title = Path(str(path).rstrip("/*")).name if kind == "folder" else _stem(path)
    return Dataset(reference, title, loader, str(path))


def _stem(path: Path) -> str:
    """Return the file name without its suffixes; braces and stars of a pattern are kept."""
    return re.sub(r"(\.(tar|txt|gz|parquet|npz|npy|csv|lst))+$", "", path.name)


def _from_selection(reference: str) -> Dataset | None:
    """Return the dataset of a class selection such as `cifar10[0 1 5-7]`; None for other texts."""
    match = _CLASS_SELECTION.fullmatch(reference)
    if not match:
        return None
    keep = tuple(match["keep"].replace("!", "! ").replace(",", " ").split())
    if not keep or keep == ("!",):
        raise UserError(f"'{reference}' names no class; write {match['name']}[0 1 5-7], or [!0 1] for all others")
    source = dataset(match["name"])
    shown = " ".join(keep)
    if len(shown) > _LONGEST_SELECTION:
        shown = f"{'all but ' if keep[0] == '!' else ''}{len(keep) - (keep[0] == '!')} given"
    return Dataset(
        name=f"{source.name}[{' '.join(keep)}]",
        title=f"{source.title} [{shown}]",
        loader="part",
        path=source.path,
        within=source.name,
        keep=keep,
        resolution=source.resolution,
        licence=source.licence,
        cite=source.cite,
        url=source.url,
        obtain=source.obtain,
    )


def protocol(
    id_reference: str, ood_references: Sequence[str] = (), classes: str = "", *, needs_ood: bool = True
) -> Protocol:
    """Return the benchmark of an ID set with its datasets: the declared one, or one of the given OOD sets.

    `id_reference` may also be the name of a benchmark. `classes` names a class list to use instead of the ID set's own.
    Raises UserError with every name that does not exist and, with `needs_ood`, if there is no OOD set.
    """
    known = benchmarks()
    if id_reference in known and not ood_references:
        return _with_datasets(known[id_reference], classes)
    named = known.get(id_reference)
    if named and id_reference not in datasets():
        id_reference = named.id
    problems = ProblemList()
    id_set = problems.attempt(dataset, id_reference, classes)
    found = [problems.attempt(dataset, reference) for reference in ood_references]
    raise_all(problems.problems)
    assert id_set
    declared = named or _declared_benchmark(id_set)
    if not found:
        if declared:
            return _with_datasets(declared, classes)
        if needs_ood:
            raise _no_benchmark(id_reference, id_set)
        return Protocol(Benchmark(id_set.name, id_set.title, id_set.name), id_set, ())
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
        shots=declared.shots if declared else 0,
        encoder=declared.encoder if declared else "",
    )
    return Protocol(made, id_set, tuple((one, "") for one in ood))


def _no_benchmark(given: str, id_set: Dataset) -> UserError:
    """Return the error for an ID set without OOD sets, with the benchmarks that use it as ID set."""
    having = [one.name for one in benchmarks().values() if one.id == id_set.name]
    runs = f"\n  or run a benchmark that has it: {', '.join(f'--id {name}' for name in having)}" if having else ""
    return UserError(
        f"'{given}' has no benchmark of its own; name its OOD sets with --ood{runs}\n  or declare them once: "
        f"oodbench benchmarks add NAME --id {shlex.quote(given)} --ood SET,SET"
    )


def _with_datasets(found: Benchmark, classes: str) -> Protocol:
    """Return a declared benchmark with its datasets."""
    sets = found.sets()
    id_set, *ood = titled([dataset(found.id, classes), *(dataset(name) for name, _ in sets)])
    return Protocol(found, id_set, tuple((one, group) for one, (_, group) in zip(ood, sets, strict=True)))


def _declared_benchmark(id_set: Dataset) -> Benchmark | None:
    """Return the benchmark that an ID set names, with that set as ID set: it may be declared for another one."""
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
        calibration="",  # declared for the other ID set; this one has its own `train`
    )


def titled(sets: Sequence[Dataset]) -> list[Dataset]:
    """Return the same sets with distinct titles: folders with the same name get as much of their paths as needed."""
    result = list(sets)
    for depth in range(2, 2 + max((len(Path(d.path).parts) for d in sets), default=0)):
        count = Counter(d.title for d in result)
        for i, d in enumerate(result):
            if count[d.title] > 1 and not d.declared:
                result[i] = dataclasses.replace(d, title="/".join(Path(d.path).parts[-depth:]))
    return result
