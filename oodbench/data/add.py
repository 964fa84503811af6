"""Add a user's dataset or benchmark, declared in a TOML file in the config folder after a check; remove it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oodbench.data import catalog, places
from oodbench.data.calibration import check_classes
from oodbench.data.catalog import LOADERS, Benchmark, Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names_of, load_images, name_remarks
from oodbench.data.paths import config_folder
from oodbench.errors import ProblemList, UserError, did_you_mean, is_url, raise_all
from oodbench.storage.files import expand, real_path, write_text
from oodbench.storage.store import Store

ADDABLE = tuple(loader for loader in LOADERS if loader not in ("part", "union", "glyphs"))
_WRITTEN = (
    "title",
    "loader",
    "path",
    "list",
    "source",
    "split",
    "classes",
    "clean_names",
    "train",
    "licence",
    "cite",
    "url",
)


@dataclass(frozen=True)
class AddedDataset:
    """The declaration file, the images with remarks on classes, and why it cannot be an ID set ("" if it can)."""

    file: Path
    images: ImageSet
    only_ood: str


def add_dataset(name: str, fields: Mapping[str, str], store: Store, *, clean_names: bool = False) -> AddedDataset:
    """Write `<config>/datasets/NAME.toml`.

    Raises UserError when the name is in use, no image is found, or the training set has other classes.
    """
    dataset = dataclasses.replace(_dataset(name, fields), clean_names=clean_names)
    options = LoadOptions(Path(), store)
    images = load_images(dataset, options, labelled=False)
    only_ood = ""
    try:
        labelled = load_images(dataset, options, labelled=True)
        names = name_remarks(labelled, class_names_of(labelled))
        images = dataclasses.replace(images, remarks=(*labelled.remarks, *names))
        if dataset.train:
            check_classes(labelled, load_images(catalog.dataset(dataset.train), options, labelled=True))
    except UserError as error:
        only_ood = str(error)
        if dataset.loader == "classes" or dataset.classes or dataset.train:  # classes are expected
            raise
    values = {key: getattr(dataset, key) for key in _WRITTEN if getattr(dataset, key)} | {"count": len(images)}
    return AddedDataset(_write(Path("datasets", f"{name}.toml"), values), images, only_ood)


def add_benchmark(name: str, sets: Benchmark) -> Path:
    """Write `<config>/benchmarks/NAME.toml`, and return its path; `sets` are names or references, as given.

    Raises UserError if a set does not exist (naming all such sets) or is given twice, or if the name is in use.
    """
    file = Path("benchmarks", f"{name}.toml")
    problems = ProblemList()
    id_set = problems.attempt(catalog.dataset, sets.id)
    _check_name(name, file, id_set)
    ood = {group: [problems.attempt(catalog.absolute, one) for one in getattr(sets, group)] for group in _GROUPS}
    calibration = problems.attempt(catalog.absolute, sets.calibration) if sets.calibration else ""
    raise_all(problems.problems)
    names = [catalog.absolute(sets.id), *(one for group in _GROUPS for one in ood[group])]
    if repeated := [one for one, n in Counter(names).items() if n > 1]:
        raise UserError(f"benchmark '{name}' names '{repeated[0]}' twice; ID and OOD sets must differ")
    if len(names) == 1:
        raise UserError(f"benchmark '{name}' needs an OOD set; name some with --ood, or with --near and --far")
    values = {"title": sets.title or name, "id": names[0], **ood, "calibration": calibration}
    return _write(file, values | {"encoder": sets.encoder, "cite": sets.cite})


_GROUPS = ("near", "far", "ood")


def remove_dataset(name: str) -> Path:
    """Delete `<config>/datasets/NAME.toml`, and return its path; images and results are kept.

    Raises UserError if there is no such file, or if another of the user's declarations names the dataset.
    """
    path = _own_file(name, "datasets", catalog.datasets())
    removed = catalog.datasets()[name]
    fields = [
        *((f"dataset '{d.name}'", (d.within, *d.parts, d.like, d.train)) for d in catalog.datasets().values()),
        *(
            (f"benchmark '{b.name}'", (b.id, *b.near, *b.far, *b.ood, b.calibration))
            for b in catalog.benchmarks().values()
        ),
    ]
    names = {name, *removed.aliases}
    users = [one for one, references in fields if names & {reference.partition("[")[0] for reference in references}]
    if users:
        raise UserError(f"dataset '{name}' is used by {', '.join(users)}; remove {'them' if users[1:] else 'it'} first")
    _delete(path)
    if name in places.bindings():
        places.bind(name, None)
    return path


def remove_benchmark(name: str) -> Path:
    """Delete `<config>/benchmarks/NAME.toml`, and return its path; its sets and results are kept.

    Raises UserError if there is no such file.
    """
    path = _own_file(name, "benchmarks", catalog.benchmarks())
    _delete(path)
    return path


def _own_file(name: str, kind: str, declared: Mapping[str, object]) -> Path:
    """Return the file of a declaration of the user."""
    path = config_folder() / kind / f"{name}.toml"
    if name in declared and path.is_file():
        return path
    if name in declared:
        raise UserError(f"{kind[:-1]} '{name}' is shipped with oodbench and cannot be removed")
    own = [file.stem for file in path.parent.glob("*.toml")]
    raise UserError(f"no {kind[:-1]} '{name}' in {path.parent}{did_you_mean(name, own) if own else ''}")


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f"cannot delete {path}: {error.strerror}") from error
    _forget_declarations()


def _forget_declarations() -> None:
    """Let the catalogue read the declarations again."""
    catalog.datasets.cache_clear()
    catalog.benchmarks.cache_clear()


def _write(file: Path, values: Mapping[str, object]) -> Path:
    """Write a declaration, without empty values, below the config folder. A JSON string is a valid TOML string."""
    path = config_folder() / file
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items() if value}
    lines = [f"{key} = {text}\n".replace("\x7f", "\\u007f") for key, text in texts.items()]  # TOML forbids DEL
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another folder with $OODBENCH_CONFIG") from error
    _forget_declarations()
    return path


def _check_name(name: str, file: Path, id_set: Dataset | None = None) -> None:
    """Raise UserError for an invalid name or one in use; a benchmark may have the name of its ID set."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"a {file.parent.name[:-1]}'s name is made of a-z, 0-9, - and ., not '{name}'")
    known = catalog.datasets()
    names = {*known, *(alias for d in known.values() for alias in d.aliases)} - {id_set.name if id_set else ""}
    if name in {*names, *catalog.benchmarks()}:
        path = config_folder() / file
        raise UserError(f"'{name}' is declared already{f', in {path}' if path.is_file() else ''}; take another name")


def _dataset(name: str, fields: Mapping[str, str]) -> Dataset:
    """Return the dataset to be declared, with absolute paths."""
    _check_name(name, Path("datasets", f"{name}.toml"))
    loader, path = fields["loader"], fields["path"]
    if loader not in ADDABLE:
        raise UserError(f"no loader '{loader}'{did_you_mean(loader, ADDABLE)}")
    for kind, key in (("list", "list"), ("torchvision", "source")):
        if loader == kind and not fields.get(key):
            raise UserError(f"loader '{kind}' needs --{key}")
    is_remote = is_url(path) or (loader == "hf" and not expand(path).exists())
    return Dataset(
        name=name,
        title=fields.get("title") or name,
        loader=loader,
        path=path if is_remote else str(real_path(path)),
        list=_absolute(fields.get("list", "")),
        source=fields.get("source", ""),
        split=fields.get("split", ""),
        classes=_absolute(fields.get("classes", "")),
        train=catalog.absolute(fields["train"]) if fields.get("train") else "",
        licence=fields.get("licence", ""),
        cite=fields.get("cite", ""),
        url=fields.get("url", ""),
    )


def _absolute(text: str) -> str:
    """Return the absolute path of a file; other text (the name of a class list) is returned unchanged."""
    return str(real_path(text)) if text and expand(text).is_file() else text
