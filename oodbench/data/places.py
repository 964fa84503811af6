"""The place of a declared set: the one that the user bound to its name, or one below the data root.

Layouts are declared as `path` and `layouts` in datasets/*.toml, in the order in which they are tried. Bindings are
stored in places.toml in the config folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from oodbench.data import catalog
from oodbench.data.catalog import Dataset
from oodbench.data.paths import config_folder, config_folder_or_none
from oodbench.errors import UserError, is_url
from oodbench.storage.files import expand, read_text, write_text

# Data folders of released code: --data may name them or the checkout that has them.
_BELOW = ("", "data", "datasets")
_FILE = "places.toml"
_PATTERNS = ("tar", "parquet", "arrays")  # their paths may be patterns; the loader reports missing files
_NO_FOLDER = ("glyphs", "hf", "part", "union")


@dataclass(frozen=True)
class Place:
    """The place of a set.

    dataset  the set with the path of the layout that was found; None if none was
    looked   all places that were tried, in order
    others   further places that are not empty, except those above or below the one that is used
    """

    dataset: Dataset | None
    looked: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def find_place(dataset: Dataset, data_root: Path, bound: Path | None = None) -> Place:
    """Return the place of a set: the bound place if there is one, else below the data root; a user's set has one path.

    bound  the bound place; by default, the one that the user bound to its name
    The first place that exists and is not an empty folder is used. Links to one place count once.
    """
    bound = bound or bindings().get(dataset.name)
    fixed = (
        dataset.loader in _NO_FOLDER or is_url(dataset.path) or Path(dataset.path).is_absolute() or dataset.depth > 1
    )
    if fixed or (dataset.loader in _PATTERNS and not bound):
        return Place(dataset, (dataset.folder(data_root),))
    looked = tuple(dict.fromkeys(_candidates(dataset, data_root, bound)))
    found: dict[str, Path] = {}
    for path in looked:
        if _holds_something(path):
            found.setdefault(os.path.realpath(path), path)
    if not found and not looked[0].exists():
        return Place(None, looked)
    found = found or {"": looked[0]}  # an empty folder, which the loader reports
    first = next(iter(found.values()))
    here = Path(next(iter(found)))
    apart = [path for real, path in found.items() if not (here.is_relative_to(real) or Path(real).is_relative_to(here))]
    root = Path(os.path.abspath(data_root)) if first.is_absolute() else data_root
    own = str(first.relative_to(root)) if first.is_relative_to(root) else str(first)
    return Place(dataclasses.replace(dataset, path=own, layouts=()), looked, tuple(apart))


def describe_looked(dataset: Dataset, place: Place, data_root: Path) -> list[str]:
    """Return one line for each place that was tried; folders with the same layouts are named once."""
    direct = 1 + len(dataset.layouts)
    if dataset.layouts and len(place.looked) > direct and place.looked[0] == data_root / dataset.path:
        below = " and ".join(str(data_root / name) for name in _BELOW[1:])
        shown = [path for path in place.looked if not any(path.is_relative_to(data_root / name) for name in _BELOW[1:])]
        return [*map(str, shown), f"and the same below {below}"]
    return list(map(str, place.looked))


def find_list(dataset: Dataset, data_root: Path) -> Path:
    """Return the list file of a set, gzipped or not: below the data root, else near a bound place. It may not exist."""
    roots = [data_root / below for below in _BELOW]
    for bound in (bindings().get(dataset.name), bindings().get(dataset.within), dataset.folder(data_root)):
        roots += [bound, *list(bound.parents)[:3]] if bound else []
    for root in roots:
        for path in (root / dataset.list, root / f"{dataset.list}.gz"):
            if path.is_file():
                return path
    return data_root / dataset.list


def bindings() -> dict[str, Path]:
    """Return the bound places by the name of the set."""
    folder = config_folder_or_none()
    if folder is None or not (folder / _FILE).is_file():
        return {}
    try:
        bound = tomllib.loads(read_text(folder / _FILE, "the file of bound places"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{folder / _FILE}: {error}; repair it, or remove it and bind again") from error
    return {name: Path(str(path)) for name, path in bound.items()}


def bind(name: str, path: Path | None) -> None:
    """Bind the name of a set to a place, or remove its binding (None)."""
    bound = {**bindings(), name: path}
    lines = [
        f"{json.dumps(one)} = {json.dumps(str(to), ensure_ascii=False)}\n" for one, to in sorted(bound.items()) if to
    ]
    file = config_folder() / _FILE
    try:
        write_text(file, "".join(lines))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; name another folder with $OODBENCH_CONFIG") from error


def bindable(name: str) -> Dataset:
    """Return a set of the catalogue that can be bound. Raises UserError, with advice, for any other name."""
    if name in catalog.benchmarks() and name not in catalog.datasets():
        sets = [catalog.benchmarks()[name].id, *(one for one, _ in catalog.benchmarks()[name].sets())]
        raise UserError(f"'{name}' is a benchmark; bind its sets: " + _commands(sets))
    dataset = catalog.dataset(name)
    if sources := [one for one in (dataset.within, *dataset.parts) if one]:
        raise UserError(f"'{dataset.name}' consists of other sets; bind them: {_commands(sources)}")
    if dataset.loader in _NO_FOLDER or is_url(dataset.path):
        raise UserError(
            f"'{dataset.name}' cannot be bound: it is {'embedded' if dataset.loader == 'glyphs' else 'remote'}"
        )
    if not dataset.declared or Path(dataset.path).is_absolute():
        raise UserError(f"'{dataset.name}' is your own set, at {dataset.path}: it cannot be bound to another path")
    return dataset


def forgettable(name: str) -> str:
    """Return the name of a bound set, given its name or alias. Raises UserError if it is not bound."""
    known = catalog.datasets()
    name = next((one.name for one in known.values() if name in one.aliases), name)
    if name not in bindings():
        bound = ", ".join(sorted(bindings())) or "none"
        raise UserError(f"'{name}' is not bound; bound datasets: {bound}")
    return name


def absolute_place(path: str) -> Path:
    """Return the absolute path of an existing place, without resolving links, which may change later."""
    place = Path(os.path.abspath(expand(path)))
    if not place.exists():
        raise UserError(f"{place} does not exist")
    return place


def _commands(names: list[str]) -> str:
    return "; ".join(f"oodbench datasets locate {name} PATH" for name in names)


def _candidates(dataset: Dataset, data_root: Path, bound: Path | None) -> Iterator[Path]:
    layouts = (dataset.path, *dataset.layouts)
    if bound:
        for layout in layouts:  # the bound place may be above the images: ImageNet for ImageNet/val
            parts = PurePosixPath(layout).parts
            for k in (k for k, part in enumerate(parts) if part != "*"):
                yield from _expanded(bound, "/".join(parts[k:]))
        yield bound
        return
    for below in _BELOW:
        for layout in layouts:
            yield from _expanded(data_root / below, layout)


def _expanded(root: Path, layout: str) -> Iterator[Path]:
    """Yield a path, or the matches of a pattern, or the pattern itself if nothing matches."""
    matches = sorted(root.glob(layout)) if "*" in layout else []
    yield from matches or [root / layout]


def _holds_something(path: Path) -> bool:
    """Return whether a path is a file or a nonempty folder."""
    try:
        if not os.path.isdir(path):
            return os.path.exists(path)
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
