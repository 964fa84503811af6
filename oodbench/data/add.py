"""Declaring a dataset of one's own: checked, then written as a TOML file into the user's config folder."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oodbench.data import catalog as catalogue
from oodbench.data.catalog import LOADERS, Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names, load_images
from oodbench.errors import UserError, did_you_mean, is_url
from oodbench.storage.files import expand, real_path, write_text
from oodbench.storage.store import Store

ADDABLE = tuple(loader for loader in LOADERS if loader not in ("part", "union", "glyphs"))


@dataclass(frozen=True)
class Declared:
    """A file that was written: the listing that it gives, and why the set cannot be an ID set ("" if it can).

    The listing has the remarks on its classes, too.
    """

    file: Path
    listing: ImageSet
    only_ood: str


def declare(name: str, fields: Mapping[str, str], store: Store) -> Declared:
    """Write `<config>/datasets/NAME.toml` after listing it. UserError when the name is taken or no image is found."""
    one = _dataset(name, fields)
    found = load_images(one, LoadOptions(Path(), store), labelled=False)
    only_ood = ""
    try:
        labelled = load_images(one, LoadOptions(Path(), store), labelled=True)
        found = dataclasses.replace(found, remarks=labelled.remarks)
        class_names(labelled)
    except UserError as error:
        only_ood = str(error)
        if one.loader == "classes" or one.classes:  # it was meant to have classes
            raise
    place = catalogue.config_folder() / "datasets" / f"{name}.toml"
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in _written(one, len(found)).items()]
    try:
        write_text(place, "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror}; name another folder by $OODBENCH_CONFIG") from error
    catalogue.datasets.cache_clear()
    return Declared(place, found, only_ood)


def _dataset(name: str, fields: Mapping[str, str]) -> Dataset:
    """The dataset as declared, with paths made absolute."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"a dataset's name is made of a-z, 0-9, - and ., not '{name}'")
    taken = {
        *catalogue.datasets(),
        *catalogue.benchmarks(),
        *(a for d in catalogue.datasets().values() for a in d.aliases),
    }
    if name in taken:
        mine = catalogue.config_folder() / "datasets" / f"{name}.toml"
        raise UserError(f"'{name}' is declared already{f', in {mine}' if mine.is_file() else ''}; take another name")
    loader, path = fields["loader"], fields["path"]
    if loader not in ADDABLE:
        raise UserError(f"no loader '{loader}'{did_you_mean(loader, ADDABLE)}")
    for kind, key in (("list", "list"), ("torchvision", "source")):
        if loader == kind and not fields.get(key):
            raise UserError(f"loader '{kind}' needs --{key}")
    remote = is_url(path) or (loader == "hf" and not expand(path).exists())
    return Dataset(
        name=name,
        title=fields.get("title") or name,
        loader=loader,
        path=path if remote else str(real_path(path)),
        list=_absolute(fields.get("list", "")),
        source=fields.get("source", ""),
        split=fields.get("split", ""),
        classes=_absolute(fields.get("classes", "")),
        licence=fields.get("licence", ""),
        cite=fields.get("cite", ""),
        url=fields.get("url", ""),
    )


def _absolute(text: str) -> str:
    """A file of the user's by its whole path; other text (the name of a class list) as it is."""
    return str(real_path(text)) if text and expand(text).is_file() else text


def _written(one: Dataset, count: int) -> dict[str, str | int]:
    """The keys of the file, in the catalogue's order."""
    keys = ("title", "loader", "path", "list", "source", "split", "classes", "licence", "cite", "url")
    return {**{key: getattr(one, key) for key in keys if getattr(one, key)}, "count": count}
