"""What all loaders agree on: which files are images, what is hidden, which folder is the class, what a label means.

Pure functions of names and labels; docs/adding-a-dataset.md has the rules as a table.
"""

from __future__ import annotations

import html
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from oodbench.errors import Unlabelled, UserError

# Suffixes of the formats of photographs and rasters that Pillow decodes without further software. The set is fixed, so
# that a folder has the same listing on every machine; what an older Pillow cannot decode is an error when it is read.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .webp .avif .tif .tiff .gif .ppm .pgm .pbm .pnm "
    ".jp2 .j2k .jpf .jpx .tga".split()
)
# Text and annotations that commonly lie beside images: left out without a word.
_BESIDE = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .html .htm .log .pdf .py .ipynb .sh .lst .names .cls "
    ".sha256 .md5".split()
)
_BESIDE_NAMES = frozenset(("readme", "license", "licence", "copying", "copyright", "authors", "changelog"))
# Folders and files that operating systems and file servers make.
_OF_SYSTEMS = frozenset(
    (
        "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "lost+found", "$recycle.bin",
        "system volume information", "__pycache__", "thumbs.db", "desktop.ini",
    )
)  # fmt: skip
# Folders that split a set or hold parts of it: as the only ones they are no classes. (A train may be one.)
_SPLITS = frozenset(
    "train training val valid validation test testing dev eval unlabeled unlabelled "
    "image images img imgs mask masks label labels annotations segmentation".split()
)
_MOST = 1_000_000  # classes; a greater label is an identifier or a mistake
_SHOWN = 5  # names in a message
_EXAMPLES = 10  # names that a remark keeps


@dataclass(frozen=True)
class Remark:
    """Something that was seen while a set was listed, and may mislead: `run` notes it, `datasets check` warns.

    kind      one word, that of the finding
    message   one sentence without the name of the set
    count     how many files, classes or images
    examples  some of them
    """

    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """Class index per image [n], the class folders in label order, and what was seen on the way."""

    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...]
    remarks: tuple[Remark, ...] = ()


def is_image(name: str) -> bool:
    """Whether a name ends like that of an image, in upper or lower case."""
    return posixpath.splitext(name)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a part of a path below the root is hidden (`.x`) or made by a system (`__MACOSX`, `@eaDir`)."""
    return name.startswith(".") or "/." in name or not _OF_SYSTEMS.isdisjoint(name.lower().split("/"))


def is_beside(name: str) -> bool:
    """Whether a name is that of text or annotations, which nobody takes for an image or a folder."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _BESIDE or path.stem.lower() in _BESIDE_NAMES


def left_out(names: Iterable[str], irregular: Sequence[str] = ()) -> tuple[Remark, ...]:
    """The remark on files that are no images, by suffix, without text and annotations; () when there are none.

    irregular  what has an image's name and is a FIFO, a socket or a device: those are never opened
    """
    told = sorted(name for name in names if not is_image(name) and not is_beside(name))
    found = []
    if told:
        found.append(Remark("left-out", f"left out {by_suffix(told)}", len(told), tuple(told[:_EXAMPLES])))
    if irregular:
        message = f"left out {len(irregular):,} FIFOs, sockets or devices: {some(sorted(irregular))}"
        found.append(Remark("left-out", message, len(irregular), tuple(sorted(irregular)[:_EXAMPLES])))
    return tuple(found)


def by_suffix(names: Iterable[str]) -> str:
    """How many files have which suffix, the most frequent first: `30 .heic, 1 without suffix`."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return some([f"{n:,} {suffix}" for suffix, n in counts.most_common()])


def some(texts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def twice(pairs: Sequence[tuple[str, str]]) -> tuple[Remark, ...]:
    """The remark on images that a set has more than once, as (link or repeated line, the image): each counts."""
    if not pairs:
        return ()
    name, other = pairs[0]
    message = f"{len(pairs):,} images are there more than once, and count each time: {name} = {other}"
    return (Remark("listed-twice", message, len(pairs), tuple(f"{a} = {b}" for a, b in pairs[:_EXAMPLES])),)


def ordered(classes: Iterable[str]) -> tuple[str, ...]:
    """Classes in label order: by code points, or by value when all are numbers; equal numbers (`1`, `01`) by text."""
    known = set(classes)
    if all(one.isdecimal() for one in known):
        return tuple(sorted(known, key=lambda one: (int(one), one)))
    return tuple(sorted(known))


def by_folder(names: Sequence[str], others: Sequence[str] = (), folders: Sequence[str] = ()) -> Classes:
    """The classes of images that lie in class folders.

    The class is the first folder below the root, whatever lies below that; where one folder holds all images in folders
    of its own, those are the classes.

    names    paths of the images below the root
    others   paths of files that are no images; `folders` of folders, which may be empty: for the remarks
    UserError when an image lies in no folder, or when the folders are splits of a set (train, test).
    """
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise Unlabelled(f"an ID set needs one folder per class, but {loose} lies in none")
    root: list[str] = []
    parts = [name.partition("/") for name in names]
    while len({top for top, _, _ in parts}) == 1 and all("/" in rest for _, _, rest in parts):
        root.append(parts[0][0])
        parts = [rest.partition("/") for _, _, rest in parts]
    tops = [top for top, _, _ in parts]
    found = ordered(tops)
    splits = [one for one in found if re.sub(r"[-_ ]?\d*$", "", one).lower() in _SPLITS]
    if len(splits) == len(found):
        problem = UserError if len(splits) > 1 else Unlabelled
        raise problem(
            f"the folders {some(splits)} are splits or parts of a set, not classes; name one that holds class folders, "
            f"such as folder:PATH/{splits[0]}, or pack an archive of it"
        )
    remarks = []
    if root:
        message = f"all images lie in {'/'.join(root)}: the folders in that ({some(found)}) are the classes"
        remarks.append(Remark("class-folders", message))
    if len(splits) > 1:
        message = f"{some(splits)} are taken for classes, and are named as splits or parts of a set are"
        remarks.append(Remark("class-folders", message, len(splits), tuple(splits)))
    deep = [i for i, (_, _, rest) in enumerate(parts) if "/" in rest]
    if deep:
        message = (
            f"{len(deep):,} images lie in folders within their class folder: {names[deep[0]]} is of class "
            f"{tops[deep[0]]}"
        )
        remarks.append(Remark("nested", message, len(deep), tuple(names[i] for i in deep[:_EXAMPLES])))
    index = {folder: i for i, folder in enumerate(found)}
    labels = np.array([index[top] for top in tops])
    return Classes(labels, found, (*remarks, *_imageless(found, root, others, folders)))


def _imageless(
    found: Sequence[str], root: Sequence[str], others: Sequence[str], folders: Sequence[str]
) -> tuple[Remark, ...]:
    """The remark on folders beside the class folders in which no image lies: they are no classes."""
    depth, classes = len(root), set(found)
    held: dict[str, list[str]] = {}
    for path, file in [*((one, False) for one in folders), *((one, True) for one in others)]:
        parts = path.split("/")
        if parts[:depth] == list(root) and len(parts) > depth + file and parts[depth] not in classes:
            held.setdefault(parts[depth], []).extend([path] * file)
    if not held:
        return ()
    told = [f"{folder} ({by_suffix(inside) if inside else 'empty'})" for folder, inside in sorted(held.items())]
    message = f"folders without an image, which are no classes then: {some(told)}"
    return (Remark("empty-class", message, len(held), tuple(told[:_EXAMPLES])),)


def label_keys(
    labels: npt.NDArray[np.int64], names: int | None, what: str, named: str = "class names"
) -> tuple[str, ...]:
    """One key per class: "0" up to the last of `names` classes, else (None) up to the greatest label.

    A label is the index of its class, counted from 0. UserError, beginning with `what`, when a label has no name.
    """
    greatest = int(labels.max(initial=-1))
    if names is not None and greatest >= names:
        raise UserError(f"{what} has the label {greatest}, but there are {names} {named}; labels count from 0")
    if greatest >= _MOST:
        raise UserError(f"{what} has the label {greatest}, which is no class index: more than {_MOST:,} classes")
    return tuple(str(i) for i in range(greatest + 1 if names is None else names))


def without_images(labels: npt.NDArray[np.int64], keys: Sequence[str]) -> tuple[Remark, ...]:
    """The remark on classes that are prompts and have no image."""
    counts = np.bincount(labels[labels >= 0], minlength=len(keys))
    empty = [key for key, n in zip(keys, counts, strict=False) if not n]
    if not empty:
        return ()
    message = f"{len(empty):,} of {len(keys):,} classes have no image and stay prompts: {some(empty)}"
    return (Remark("empty-class", message, len(empty), tuple(empty[:_EXAMPLES])),)


def as_tokenized(name: str) -> str:
    """A class name as CLIP's tokenizer reads it: entities and mended Unicode in NFC, lower case, single spaces."""
    if not name.isascii():
        import ftfy  # comes with open_clip, whose tokenizer calls it

        name = unicodedata.normalize("NFC", ftfy.fix_text(name))
    return " ".join(html.unescape(html.unescape(name)).lower().split())


def same_prompts(names: Sequence[str]) -> tuple[Remark, ...]:
    """The remark on class names that the tokenizer does not tell apart; those that look alike are shown as ASCII."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(as_tokenized(name), []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return ()
    shown = [" = ".join(repr(one) if one.isascii() else ascii(one) for one in group) for group in alike]
    message = f"class names that give one prompt, which no method can tell apart: {some(shown)}"
    return (Remark("one-prompt", message, len(alike), tuple(shown[:_EXAMPLES])),)
