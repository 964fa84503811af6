"""The rules of all loaders: image files, hidden files, class folders, and the meaning of labels.

All functions are pure functions of names and labels; docs/adding-a-dataset.md has a table of the rules.
"""

from __future__ import annotations

import html
import posixpath
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from oodbench.errors import Unlabelled, UserError

# Suffixes of raster formats that Pillow decodes without other software. The set is fixed, so that a folder has the same
# images on every machine; a format that an older Pillow cannot decode is an error when it is read.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .webp .avif .tif .tiff .gif .ppm .pgm .pbm .pnm "
    ".jp2 .j2k .jpf .jpx .tga".split()
)
# Text and annotations, which are ignored without a remark.
_ANNOTATIONS = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .html .htm .log .pdf .py .ipynb .sh .lst .names .cls "
    ".sha256 .md5".split()
)
_ANNOTATION_NAMES = frozenset(("readme", "license", "licence", "copying", "copyright", "authors", "changelog"))
# Folders and files that operating systems and file servers create.
_SYSTEM_FILES = frozenset(
    (
        "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "lost+found", "$recycle.bin",
        "system volume information", "__pycache__", "thumbs.db", "desktop.ini",
    )
)  # fmt: skip
# Folders of splits or parts of a set. They are not classes, unless there are other folders (train is also a vehicle).
_PARTS = frozenset("image images img imgs mask masks label labels annotations segmentation".split())
_SPLITS = _PARTS | frozenset(
    "train training val valid validation test testing dev eval unlabeled unlabelled trainset testset valset".split()
)
_SPLIT_WORDS = frozenset("set data dataset split seg pred".split())  # next to one of these: test_set, seg_train
_MAX_CLASSES = 1_000_000  # a greater label is an identifier or a mistake
_IN_MESSAGE = 5  # names in a message
_EXAMPLES = 10  # names that a remark lists


@dataclass(frozen=True)
class Remark:
    """An observation about a set that may mislead: `run` prints it as a note, `datasets check` as a warning.

    kind      the kind of finding, as one word
    message   a sentence without the name of the set
    count     number of files, classes or images
    examples  a few of them
    """

    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """Class index per image [n], the class folders in label order, and remarks."""

    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...]
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class ClassPlace:
    """The location of class folders, for messages and for a depth that the user chose.

    name   the folder as a reference, `folder:PATH`; "" for a place without folders, such as an archive
    depth  depth of the class folders: 1 directly in the folder
    """

    name: str = ""
    depth: int = 1

    def below(self, folders: Sequence[str]) -> ClassPlace:
        """Return the location of a subfolder."""
        return replace(self, name="/".join((self.name, *folders))) if self.name else self

    def reference(self, folder: str) -> str:
        """Return the reference of a subfolder, quoted for a shell."""
        return shlex.quote(f"{self.name}/{folder}")


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image, in upper or lower case."""
    return posixpath.splitext(name)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return whether a path below the root has a hidden part (`.x`) or a system folder (`__MACOSX`, `@eaDir`)."""
    return name.startswith(".") or "/." in name or not _SYSTEM_FILES.isdisjoint(name.lower().split("/"))


def is_annotation(name: str) -> bool:
    """Return whether a file has the suffix of texts or annotations."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _ANNOTATIONS or path.stem.lower() in _ANNOTATION_NAMES


def ignored_remarks(names: Iterable[str], irregular: Sequence[str] = ()) -> tuple[Remark, ...]:
    """Return remarks on ignored files: all that are not images, texts or annotations.

    irregular  FIFOs, sockets and devices with the suffix of an image, which are never opened
    """
    files = sorted(name for name in names if not is_image(name) and not is_annotation(name))
    remarks = []
    if files:
        remarks.append(Remark("left-out", f"ignored {count_by_suffix(files)}", len(files), tuple(files[:_EXAMPLES])))
    if irregular:
        message = f"ignored {len(irregular):,} FIFOs, sockets or devices: {first_few(sorted(irregular))}"
        remarks.append(Remark("left-out", message, len(irregular), tuple(sorted(irregular)[:_EXAMPLES])))
    return tuple(remarks)


def count_by_suffix(names: Iterable[str]) -> str:
    """Return the number of files per suffix, the most frequent first: `30 .heic, 1 without suffix`."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return first_few([f"{n:,} {suffix}" for suffix, n in counts.most_common()])


def first_few(texts: Sequence[str]) -> str:
    """Return the first few texts and the number of further ones, for a message."""
    more = f" and {len(texts) - _IN_MESSAGE:,} more" if len(texts) > _IN_MESSAGE else ""
    return ", ".join(texts[:_IN_MESSAGE]) + more


def repeated_remarks(pairs: Sequence[tuple[str, str]]) -> tuple[Remark, ...]:
    """Return the remark on repeated images of a set, given as pairs (link or repeated line, image)."""
    if not pairs:
        return ()
    name, other = pairs[0]
    message = f"{len(pairs):,} images occur more than once, and each occurrence counts: {name} = {other}"
    return (Remark("listed-twice", message, len(pairs), tuple(f"{a} = {b}" for a, b in pairs[:_EXAMPLES])),)


def sort_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """Return classes in label order: by code points, or by value if all are numbers (`01` before `1`)."""
    known = set(classes)
    if all(one.isdecimal() for one in known):
        return tuple(sorted(known, key=lambda one: (int(one), one)))
    return tuple(sorted(known))


def classes_by_folder(
    names: Sequence[str], others: Sequence[str] = (), folders: Sequence[str] = (), place: ClassPlace | None = None
) -> Classes:
    """Return the classes of images in class folders.

    The class is the first folder below the root. If a single folder contains all images, the classes are its
    subfolders; if the folders are first letters, as in `a/abbey` and `b/bar`, the classes are their subfolders.

    names    paths of the images below the root
    others   paths of files that are not images, for the remarks
    folders  paths of all folders, including empty ones, for the remarks
    Raise UserError if an image is not in a folder, or if the folders are splits of a set (train, test).
    """
    place = place or ClassPlace()
    if place.depth > 1:
        return _classes_at(names, place)
    if loose := [name for name in names if "/" not in name]:
        raise _loose_error(names, loose, place)
    root: list[str] = []
    parts = [name.partition("/") for name in names]
    while len({top for top, _, _ in parts}) == 1 and all("/" in rest for _, _, rest in parts):
        root.append(parts[0][0])
        parts = [rest.partition("/") for _, _, rest in parts]
    tops = [top for top, _, _ in parts]
    inner = _inner_folders(parts)
    place = place.below(root)
    letters = sort_classes(tops)
    remarks = []
    if _sorted_by_letter(inner):
        if loose := [name for name, (_, _, rest) in zip(names, parts, strict=True) if "/" not in rest]:
            raise Unlabelled(
                f"the folders {first_few(letters)} sort class folders by letter, but {loose[0]} is in none "
                f"({len(loose):,} of {len(names):,} images); move such images away, or into class folders"
            )
        keys = _below_letters([rest for _, _, rest in parts])
        message = f"the folders {first_few(letters)} sort the class folders by letter: {first_few(sort_classes(keys))}"
        remarks.append(Remark("class-folders", message))
    else:
        keys = tops
        remarks += _remarks_on_splits(inner, place)
    classes = sort_classes(keys)
    if root and keys is tops:
        message = f"all images are in {'/'.join(root)}: the folders in it ({first_few(classes)}) are the classes"
        remarks.insert(0, Remark("class-folders", message))
    deep = [i for i, (_, _, rest) in enumerate(parts) if "/" in rest] if keys is tops else []
    if deep:
        within = {one for inside in inner.values() for one in inside} - {""}
        parts_of_set = [one for one in sort_classes(within) if _is_split(one)]
        deeper = ""
        if parts_of_set:
            deeper = f"; images in {first_few(parts_of_set)} all count, even masks and labels: if they should not, move"
            deeper += " them away, or give the images as list:FILE"
        elif place.name:
            deeper = f"; if the classes are one folder deeper, name them {place.reference('*')}"
        message = (
            f"{len(deep):,} images are in folders within their class folder: {names[deep[0]]} is of class "
            f"{tops[deep[0]]}{deeper if len(deep) == len(names) else ''}"
        )
        remarks.append(Remark("nested", message, len(deep), tuple(names[i] for i in deep[:_EXAMPLES])))
    index = {folder: i for i, folder in enumerate(classes)}
    labels = np.array([index[key] for key in keys])
    return Classes(labels, classes, (*remarks, *_folders_without_images(letters, root, others, folders)))


def _classes_at(names: Sequence[str], place: ClassPlace) -> Classes:
    """Return the classes of images by the folder at the given depth. Raise UserError if an image has none."""
    parts = [name.split("/") for name in names]
    loose = next((name for name, part in zip(names, parts, strict=True) if len(part) <= place.depth), None)
    if loose is not None:
        raise Unlabelled(f"the class folders are {place.name}{'/*' * place.depth}, but {loose} is in none of them")
    keys = [part[place.depth - 1] for part in parts]
    classes = sort_classes(keys)
    if all(map(_is_split, classes)):
        raise UserError(
            f"the folders {place.name}{'/*' * place.depth} ({first_few(classes)}) are splits or parts of a set, not "
            f"classes; the class folders are higher: {shlex.quote(place.name + '/*' * (place.depth - 2))}"
        )
    index = {folder: i for i, folder in enumerate(classes)}
    return Classes(np.array([index[key] for key in keys]), classes)


def _loose_error(names: Sequence[str], loose: Sequence[str], place: ClassPlace) -> UserError:
    """Return the error for images that are not in a folder, with advice."""
    parts = [name.partition("/") for name in names if "/" in name]
    holding = [top for top, inside in _inner_folders(parts).items() if inside and "" not in inside]
    if not parts:
        advice = "without classes it can be an OOD set; with a file of `path label` lines it is list:FILE"
    elif len(holding) == len({top for top, _, _ in parts}) == 1 and place.name:
        advice = f"name the folder that holds the class folders: {place.reference(holding[0])}"
    else:
        advice = "move such images away, or into class folders"
    return Unlabelled(
        f"an ID set needs one folder per class, but {loose[0]} is in none ({len(loose):,} of {len(names):,} images); "
        f"{advice}"
    )


def _inner_folders(parts: Sequence[tuple[str, str, str]]) -> dict[str, set[str]]:
    """Return the subfolders with images of each folder; "" stands for images directly in it."""
    inner: dict[str, set[str]] = {}
    for top, _, rest in parts:
        inner.setdefault(top, set()).add(rest.rpartition("/")[0].partition("/")[0])
    return inner


def _sorted_by_letter(inner: Mapping[str, set[str]]) -> bool:
    """Return whether all folders are the first letters of their subfolders, as in Places."""
    pairs = [(top, folder) for top, inside in inner.items() for folder in inside if folder]
    letters = all(len(top) == 1 and top.isalpha() for top in inner)
    return letters and bool(pairs) and all(folder[0].lower() == top.lower() for top, folder in pairs)


def _below_letters(paths: Sequence[str]) -> list[str]:
    """Return the class of each path below its letter: `church/indoor`, or `church` if that has images itself."""
    folders = [path.rpartition("/")[0] for path in paths]
    found = set(folders)
    nested = any(str(parent) in found for folder in found for parent in PurePosixPath(folder).parents)
    return [folder.partition("/")[0] for folder in folders] if nested else folders


def _remarks_on_splits(inner: Mapping[str, set[str]], place: ClassPlace) -> list[Remark]:
    """Return the remark on classes with the name of a split. Raise UserError if the folders are splits of a set."""
    splits = [one for one in sort_classes(inner) if _is_split(one)]
    subsets = [one for one in splits if not _words(one) & _PARTS]
    common = set.intersection(*(inner[one] for one in subsets)) - {""} if len(subsets) > 1 else set()
    if not splits or not (len(splits) == len(inner) or common):
        message = f"{first_few(splits)} are used as classes, although these are names of splits or parts of a set"
        return [Remark("class-folders", message, len(splits), tuple(splits))] if len(splits) > 1 else []
    problem = UserError if len(splits) > 1 else Unlabelled
    said = f"the folders {first_few(splits)} are splits or parts of a set, not classes"
    holding = [one for one in splits if inner[one] and "" not in inner[one]]
    if not holding:
        raise problem(f"{said}; no folder in them holds images")
    if not place.name:
        raise problem(f"{said}; pack an archive of one of them, such as {holding[0]}")
    merged = f"; or all of them as one set: {place.reference('*')}" if common and set(holding) == set(inner) else ""
    raise problem(f"{said}; name one of them: {' or '.join(map(place.reference, holding))}{merged}")


def _is_split(name: str) -> bool:
    """Return whether a folder has the name of a split or part of a set."""
    return bool(_words(name) & _SPLITS) and _words(name) <= _SPLITS | _SPLIT_WORDS


def _words(name: str) -> set[str]:
    """Return the words of a folder's name in lower case, without digits: `test2017` becomes `test`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _folders_without_images(
    class_folders: Sequence[str], root: Sequence[str], others: Sequence[str], folders: Sequence[str]
) -> tuple[Remark, ...]:
    """Return the remark on folders next to the class folders that are not classes because they have no image."""
    depth, classes = len(root), set(class_folders)
    files: dict[str, list[str]] = {}
    for path, is_file in [*((folder, False) for folder in folders), *((file, True) for file in others)]:
        parts = path.split("/")
        if parts[:depth] == list(root) and len(parts) > depth + is_file and parts[depth] not in classes:
            files.setdefault(parts[depth], []).extend([path] * is_file)
    if not files:
        return ()
    texts = [f"{folder} ({count_by_suffix(names) if names else 'empty'})" for folder, names in sorted(files.items())]
    message = f"folders without an image, which are not used as classes: {first_few(texts)}"
    return (Remark("empty-class", message, len(files), tuple(texts[:_EXAMPLES])),)


def label_keys(
    labels: npt.NDArray[np.int64], names: int | None, what: str, named: str = "class names"
) -> tuple[str, ...]:
    """Return one key per class: "0" up to the last of `names` classes, or up to the greatest label if that is None.

    A label is a class index, from 0. Raise UserError, with a message that begins with `what`, if a label has no name.
    """
    greatest = int(labels.max(initial=-1))
    if names is not None and greatest >= names:
        raise UserError(f"{what} has the label {greatest}, but there are {names} {named}; labels count from 0")
    if greatest >= _MAX_CLASSES:
        raise UserError(f"{what} has the label {greatest}, not a class index: over {_MAX_CLASSES:,} classes")
    return tuple(str(i) for i in range(greatest + 1 if names is None else names))


def empty_class_remarks(labels: npt.NDArray[np.int64], keys: Sequence[str]) -> tuple[Remark, ...]:
    """Return the remark on classes that have prompts but no image."""
    counts = np.bincount(labels[labels >= 0], minlength=len(keys))
    empty = [key for key, n in zip(keys, counts, strict=False) if not n]
    if not empty:
        return ()
    message = f"{len(empty):,} of {len(keys):,} classes have no image, but are used as prompts: {first_few(empty)}"
    return (Remark("empty-class", message, len(empty), tuple(empty[:_EXAMPLES])),)


def tokenizer_text(name: str) -> str:
    """Return a class name as CLIP's tokenizer reads it: entities and Unicode repaired, lower case, single spaces."""
    if not name.isascii():
        import ftfy  # a dependency of open_clip's tokenizer

        name = unicodedata.normalize("NFC", ftfy.fix_text(name))
    return " ".join(html.unescape(html.unescape(name)).lower().split())


def same_prompt_remarks(names: Sequence[str]) -> tuple[Remark, ...]:
    """Return the remark on class names that are equal for the tokenizer; non-ASCII ones are escaped."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(tokenizer_text(name), []).append(name)
    equal = [group for group in groups.values() if len(group) > 1]
    if not equal:
        return ()
    texts = [" = ".join(repr(one) if one.isascii() else ascii(one) for one in group) for group in equal]
    message = f"class names with equal prompts, which no method can distinguish: {first_few(texts)}"
    return (Remark("one-prompt", message, len(equal), tuple(texts[:_EXAMPLES])),)
