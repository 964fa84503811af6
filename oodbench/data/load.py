"""Load an image set by its declaration: call its loader, build derived sets, and check counts and classes."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from oodbench.data import catalog, decode, prompts, subsets
from oodbench.data.catalog import Dataset
from oodbench.data.imagenet import wnids
from oodbench.data.imageset import ImageSet, ImageSource, missing_error, renamed
from oodbench.data.install import undeclared_digests
from oodbench.data.loaders.layout import (
    Remark,
    empty_class_remarks,
    first_few,
    is_hidden,
    same_prompt_remarks,
    sort_classes,
)
from oodbench.data.paths import data_option, with_data_option
from oodbench.data.places import bindings, describe_looked, find_place
from oodbench.data.prompts import TextList
from oodbench.errors import Missing, UserError, is_url, raise_all
from oodbench.storage.store import Store

_MODULES = {
    **{"classes": "folder", "images": "folder", "list": "imagelist", "tar": "tar", "arrays": "arrays"},
    "imagenet": "imagenet",
    **{"torchvision": "torchvision", "parquet": "parquet", "hf": "parquet"},
}


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading image sets.

    data_root      the folder with the declared sets
    strict         identify images by the sha256 of their contents, also in result rows
    limit          maximum number of images per set (see ImageSet.limit)
    allow_partial  accept a number of images that differs from the catalogue; a limit implies this
    """

    data_root: Path
    store: Store
    strict: bool = False
    limit: int | None = None
    allow_partial: bool = True


def check_exist(references: Iterable[object]) -> None:
    """Raise UserError for each `folder:PATH` that does not exist, before any slow step.

    Other names, and paths without `folder:`, are checked when they are read.
    """
    problems = []
    for reference in references:
        if not (isinstance(reference, str) and reference.startswith("folder:")):
            continue
        folder = reference.removeprefix("folder:")
        if folder and not os.path.isdir(folder):  # otherwise the name is looked up once, when the set is read
            one = catalog.dataset(reference)
            if not is_url(one.path) and not os.path.isdir(one.path):
                problems.append(str(missing_error(one, one.path)))
    raise_all(problems)


def load_images(dataset: Dataset, options: LoadOptions, *, labelled: bool) -> ImageSet:
    """List the images of a dataset without decoding them.

    With `labelled`, for an ID set, every image needs a class; otherwise all images are taken, with the label -1.
    Raises UserError if the dataset is missing or empty, if its number of images is wrong, or (labelled) if an image has
    no class.
    """
    images = _load(dataset, options, labelled)
    if labelled:
        empty = empty_class_remarks(images.labels, images.named or images.folders)
        images = replace(images, remarks=(*images.remarks, *empty))
    if not options.allow_partial and options.limit is None:
        _check_count(images, options.data_root)
    images = images.limit(options.limit)
    return identified(images, options.store, strict=options.strict)


def identified(images: ImageSet, store: Store, *, strict: bool = False) -> ImageSet:
    """Return the images identified by content if `strict`, or if the store is shared with other machines.

    Result rows depend on the contents only with `strict`, so that a shared store does not change them.
    """
    return images.by_content(store.local(), in_rows=strict) if strict or store.url else images


def load_source(dataset: Dataset, data_root: Path, store: Store) -> ImageSource:
    """Return the source of a dataset that is not derived, for a process that received only the list of its images."""
    return _load(dataset, LoadOptions(data_root, store), labelled=False).reader


def _check_count(images: ImageSet, root: Path) -> None:
    """Raise UserError unless the number of images is that of the catalogue; `root` is the data root."""
    dataset = images.dataset
    if dataset.count in (None, images.total):
        return
    fewer = images.total < (dataset.count or 0)
    advice = "complete it, or use it as it is" if fewer else "remove the other images, or use all of them"
    lacking = f" ({images.absent[0]} does not exist)" if images.absent else ""
    elsewhere = ""
    if dataset.declared and dataset.name in catalog.datasets():
        name = dataset.within or dataset.name
        elsewhere = (
            f"\n  get it with: oodbench datasets get {name}{data_option(root)}; "
            f"or give another location with: oodbench datasets locate {name} PATH"
        )
    raise UserError(
        f"dataset '{dataset.name}': {images.folder} holds {images.total} images, but the catalogue "
        f"declares {dataset.count}{lacking}; {advice} with --allow-partial{elsewhere}"
    )


def _load(dataset: Dataset, options: LoadOptions, labelled: bool) -> ImageSet:
    """Return all images of a set; the sources of a derived set are loaded completely."""
    complete = replace(options, limit=None, allow_partial=True)
    if dataset.within:
        by_class = dataset.list == "" or labelled
        source = load_images(catalog.dataset(dataset.within), complete, labelled=by_class)
        return subsets.subset(dataset, source, options.data_root, labelled)
    if dataset.parts:
        parts = [load_images(catalog.dataset(name), complete, labelled=labelled) for name in dataset.parts]
        return subsets.union(dataset, parts)
    place = find_place(dataset, options.data_root)
    if place.dataset is None:
        looked = describe_looked(dataset, place, options.data_root)
        error = Missing(with_data_option(str(missing_error(dataset, place.looked[0], looked[1:])), options.data_root))
        if bound := bindings().get(dataset.name):
            again = f"oodbench datasets locate {dataset.name} PATH binds another path; --forget removes the binding"
            error = Missing(f"{error}\n  it is bound to {bound}: {again}")
        raise error
    images = _renamed(replace(_call_loader(place.dataset, options, labelled), dataset=place.dataset))
    if labelled and dataset.like:
        images = replace(images, named=_names_like(dataset, options.data_root, images.folders))
    if place.others:
        copies, are = ("copy", "is") if len(place.others) == 1 else ("copies", "are")
        others = first_few(list(map(str, place.others)))
        message = f"read from {images.folder}; the {copies} at {others} {are} not used"
        images = replace(images, remarks=(*images.remarks, Remark("places", message, len(place.others))))
    return images


def _renamed(images: ImageSet) -> ImageSet:
    """Return images without folders under the names of their declaration, if it has any (`rename`)."""
    if not images.dataset.rename or any("/" in name for name in images.names):
        return images
    pattern, replacement = images.dataset.rename
    other = next((name for name in images.names if not re.fullmatch(pattern, name)), None)
    if other is not None:
        raise UserError(
            f"dataset '{images.dataset.name}': {images.folder} is not the flattened set: it has no file {other}"
        )
    return renamed(images, [re.sub(pattern, replacement, name) for name in images.names])


def _call_loader(dataset: Dataset, options: LoadOptions, labelled: bool) -> ImageSet:
    """Import the module of the dataset's loader, and call it."""
    if dataset.loader == "glyphs":
        from oodbench.data.glyphs import loader as glyphs

        return glyphs.load(dataset, options.store)
    if dataset.loader == "torchvision":  # the split may also exist as an archive of class folders
        packed = Path(dataset.path, f"{dataset.split}.tar")
        if (options.data_root / packed).is_file():
            dataset = replace(dataset, loader="tar", path=str(packed), split="")
    loader = importlib.import_module(f"oodbench.data.loaders.{_MODULES[dataset.loader]}")
    images: ImageSet = loader.load(dataset, options.data_root, labelled)
    return images


def _names_like(dataset: Dataset, data_root: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of these class folders in the dataset `like`."""
    other = catalog.dataset(dataset.like)
    names = prompts.class_names(other.classes).lines
    home = other.folder(data_root)
    if other.loader == "imagenet":
        all_folders = wnids()
    else:
        paths = home.iterdir() if home.is_dir() else ()
        all_folders = sort_classes(path.name for path in paths if path.is_dir() and not is_hidden(path.name))
    if len(all_folders) != len(names) or not set(folders) <= set(all_folders):
        raise UserError(
            f"dataset '{dataset.name}': its class names are those of '{other.name}' by folder, which needs all "
            f"{len(names)} class folders at {home} ({len(all_folders)} exist); they may be empty"
        )
    name_of = dict(zip(all_folders, names, strict=True))
    return tuple(name_of[folder] for folder in folders)


def class_names_of(id_set: ImageSet) -> TextList:
    """Return the class names of an ID set: from its class list, its source or its class folders.

    Raises UserError if there are only numbers, or if the numbers of names and classes differ.
    """
    given = _given_names(id_set)
    if not id_set.dataset.clean_names:
        return given
    return TextList(f"{given.name}, as words", prompts.clean_names(given.lines))


def _given_names(id_set: ImageSet) -> TextList:
    """Return the class names of an ID set before conversion to words."""
    class_list = id_set.dataset.classes
    if not class_list and id_set.named:
        return TextList(f"of {id_set.dataset.like or id_set.dataset.within or 'the source'}", id_set.named)
    numbered = id_set.dataset.loader not in ("classes", "glyphs") and all(f.isdecimal() for f in id_set.folders)
    if not class_list and numbered:
        raise UserError(
            f"dataset '{id_set.dataset.name}': its {len(id_set.folders)} classes are numbers; name them in that order "
            "with --classes FILE, one name a line"
        )
    if not class_list:
        return TextList("folders", tuple(re.sub("[_/]", " ", folder) for folder in id_set.folders))
    names = prompts.class_names(class_list)
    if len(names.lines) != len(id_set.folders):
        raise UserError(
            f"dataset '{id_set.dataset.name}': class list '{class_list}' has {len(names.lines)} names, "
            f"{id_set.folder if id_set.folder.name else 'it'} has {len(id_set.folders)} classes; "
            "name them in that order with --classes FILE, one name a line"
            + "".join(f"; {remark.message}" for remark in id_set.remarks if remark.kind == "empty-class")
        )
    return names


def notes(images: ImageSet, classes: TextList | None = None) -> list[str]:
    """Return observations that may mislead, one sentence each; with `classes`, also on the class names of an ID set.

    This reads the first few images. Names of a shipped class list are not checked: they belong to the protocol.
    """
    remarks = list(images.remarks)
    if images.dataset.loader != "glyphs":
        remarks += decode.remark_on_first(images)
    if classes and classes.name not in prompts.names("classes"):
        remarks += [*name_remarks(images, classes), *same_prompt_remarks(classes.lines)]
    depth = len(Path(images.dataset.path).parts)
    data_root = (images.folder, *images.folder.parents)[depth:][:1]  # () for a place outside of it
    undeclared = [message for root in data_root for message in undeclared_digests(images.dataset, root)]
    return [f"{images.dataset.name}: {message}" for message in (*(remark.message for remark in remarks), *undeclared)]


def name_remarks(id_set: ImageSet, classes: TextList) -> list[Remark]:
    """Return a remark with the class names that --clean-names converted, or one that recommends it."""
    if id_set.dataset.clean_names:
        pairs = zip(classes.lines, _given_names(id_set).lines, strict=True)
        texts = [new if new == old else f"{new} ({old})" for new, old in pairs]
        return [Remark("class-names", f"class names as words: {', '.join(texts)}", len(texts))]
    cleaned = prompts.clean_names(classes.lines)
    pairs = zip(cleaned, classes.lines, strict=True)
    # Case alone makes no difference: CLIP's tokenizer converts all texts to lower case.
    texts = [f"{old} as {new}" for new, old in pairs if new.lower() != old.lower()]
    if not texts:
        return []
    message = f"{len(texts):,} class names are not words; --clean-names uses {first_few(texts)}"
    return [Remark("class-names", message, len(texts))]
