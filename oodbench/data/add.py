"""Adding a dataset of the user's own: it is checked, then declared by a TOML file in the user's config folder."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oodbench.data import catalog
from oodbench.data.catalog import LOADERS, Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names_of, load_images
from oodbench.data.paths import config_folder
from oodbench.errors import UserError, did_you_mean, is_url
from oodbench.storage.files import expand, real_path, write_text
from oodbench.storage.store import Store

ADDABLE = tuple(loader for loader in LOADERS if loader not in ("part", "union", "glyphs"))
_WRITTEN = ("title", "loader", "path", "list", "source", "split", "classes", "licence", "cite", "url")


@dataclass(frozen=True)
class AddedDataset:
    """The declaration that was written, the images of the dataset, and why it cannot be an ID set ("" if it can).

    The images have the remarks on classes, too.
    """

    file: Path
    images: ImageSet
    only_ood: str


def add_dataset(name: str, fields: Mapping[str, str], store: Store) -> AddedDataset:
    """Write `<config>/datasets/NAME.toml`. Raises UserError when the name is in use or no image is found."""
    dataset = _dataset(name, fields)
    options = LoadOptions(Path(), store)
    images = load_images(dataset, options, labelled=False)
    only_ood = ""
    try:
        labelled = load_images(dataset, options, labelled=True)
        images = dataclasses.replace(images, remarks=labelled.remarks)
        class_names_of(labelled)
    except UserError as error:
        only_ood = str(error)
        if dataset.loader == "classes" or dataset.classes:  # it is meant to have classes
            raise
    file = config_folder() / "datasets" / f"{name}.toml"
    values = {key: getattr(dataset, key) for key in _WRITTEN if getattr(dataset, key)} | {"count": len(images)}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    try:
        write_text(file, "".join(lines))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; name another folder by $OODBENCH_CONFIG") from error
    catalog.datasets.cache_clear()
    return AddedDataset(file, images, only_ood)


def _dataset(name: str, fields: Mapping[str, str]) -> Dataset:
    """Return the dataset that is to be declared, with absolute paths."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"a dataset's name is made of a-z, 0-9, - and ., not '{name}'")
    known = catalog.datasets()
    if name in {*known, *catalog.benchmarks(), *(alias for d in known.values() for alias in d.aliases)}:
        file = config_folder() / "datasets" / f"{name}.toml"
        raise UserError(f"'{name}' is declared already{f', in {file}' if file.is_file() else ''}; take another name")
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
        licence=fields.get("licence", ""),
        cite=fields.get("cite", ""),
        url=fields.get("url", ""),
    )


def _absolute(text: str) -> str:
    """Return the absolute path of a file; other text (the name of a class list) is returned as it is."""
    return str(real_path(text)) if text and expand(text).is_file() else text
