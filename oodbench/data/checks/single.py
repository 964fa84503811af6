"""Checks of a single image set: count, missing and unreadable images, modes, class folders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from oodbench.data import prompts
from oodbench.data.catalog import UNKNOWN, Dataset
from oodbench.data.checks import duplicates
from oodbench.data.checks.findings import Finding, SetSummary, first_examples
from oodbench.data.checks.inspection import ImageFacts
from oodbench.data.decode import constant_remark
from oodbench.data.imageset import ImageSet
from oodbench.data.install import undeclared_digests
from oodbench.data.loaders.imagelist import read_list
from oodbench.data.loaders.layout import same_prompt_remarks
from oodbench.data.places import find_list
from oodbench.errors import UserError
from oodbench.storage.store import digest

_PLAIN = ("RGB", "L")  # modes that need no warning


def list_digest(listing: ImageSet) -> str:
    """Return the sha256 of names and labels in order, independent of the folder of the images."""
    return digest([list(listing.names), listing.labels.tolist()])


def summarize_list(listing: ImageSet, role: str) -> SetSummary:
    """Return the summary of a set whose images were not inspected."""
    return SetSummary(
        name=listing.dataset.name,
        role=role,
        folder=str(listing.folder),
        images=listing.total,
        expected=listing.dataset.count,
        digest=list_digest(listing),
    )


def summarize_images(summary: SetSummary, inspected: Sequence[ImageFacts]) -> None:
    """Add the properties of the images to the summary of a set."""
    readable = [facts for facts in inspected if not facts.problem]
    sides = sorted(min(facts.width, facts.height) for facts in readable)
    summary.looked = len(inspected)
    summary.unreadable = len(inspected) - len(readable)
    summary.modes = dict(Counter(facts.mode for facts in readable).most_common())
    summary.grey = round(sum(facts.grey for facts in readable) / len(readable), 4) if readable else 0.0
    summary.shorter = (sides[0], sides[len(sides) // 2], sides[-1]) if sides else None


def list_findings(summary: SetSummary, listing: ImageSet) -> Iterator[Finding]:
    """Yield the findings that need no image to be read: count, missing files, class folders."""
    name = (summary.name,)
    if summary.expected is not None and summary.images != summary.expected:
        off = summary.images - summary.expected
        difference = f"{-off:,} are missing" if off < 0 else f"{off:,} too many"
        message = f"{summary.images:,} images, but the catalogue declares {summary.expected:,}: {difference}"
        yield Finding("error", "count", name, message, abs(off))
    if listing.absent:
        message = f"{len(listing.absent):,} images in the list do not exist"
        yield Finding("error", "absent", name, message, len(listing.absent), first_examples(list(listing.absent)))
    for remark in listing.remarks:
        yield Finding("warning", remark.kind, name, remark.message, remark.count, remark.examples)
    if listing.folders or listing.dataset.classes:
        yield from _classes(listing)
        yield from class_name_findings(listing)


def image_findings(listing: ImageSet, inspected: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Yield the findings on the images: unreadable ones, modes, orientation, frames, repeated ones."""
    name = (listing.dataset.name,)
    broken = [f"{n}: {facts.problem}" for n, facts in zip(listing.names, inspected, strict=True) if facts.problem]
    if broken:
        message = f"{len(broken):,} of {len(inspected):,} images cannot be decoded"
        yield Finding("error", "unreadable", name, message, len(broken), first_examples(broken))
    modes = zip(listing.names, (facts.mode for facts in inspected), strict=True)
    lossy = [(n, mode) for n, mode in modes if mode not in ("", *_PLAIN)]
    if lossy:
        counts = Counter(mode for _, mode in lossy).most_common()
        message = f"images that lose information as RGB: {', '.join(f'{n:,} {mode}' for mode, n in counts)}"
        examples = first_examples([f"{n}: {mode}" for n, mode in lossy])
        yield Finding("warning", "modes", name, message, len(lossy), examples)
    flat = [n for n, facts in zip(listing.names, inspected, strict=True) if facts.flat]
    if flat:
        remark = constant_remark(flat)
        yield Finding("error", remark.kind, name, remark.message, remark.count, remark.examples)
    turned = [n for n, facts in zip(listing.names, inspected, strict=True) if facts.turned]
    if turned:
        message = (
            f"{len(turned):,} images have an EXIF orientation, which is not applied (as in open_clip): "
            "they are encoded rotated or mirrored, as their pixels are stored"
        )
        yield Finding("warning", "orientation", name, message, len(turned), first_examples(turned))
    frames = [n for n, facts in zip(listing.names, inspected, strict=True) if facts.frames]
    if frames:
        message = f"{len(frames):,} images have several frames or pages; only the first is used"
        yield Finding("note", "frames", name, message, len(frames), first_examples(frames))
    repeated = duplicates.repeated_images(inspected)
    if repeated:
        message = f"{len(repeated):,} images have the pixels of another image of the set"
        examples = first_examples([f"{listing.names[p.first]} = {listing.names[p.second]}" for p in repeated])
        yield Finding("warning", "repeated", name, message, len(repeated), examples)


def archive_findings(dataset: Dataset, data: Path) -> Iterator[Finding]:
    """Yield the findings on archives without a declared digest."""
    for message in undeclared_digests(dataset, data):
        yield Finding("note", "archive", (dataset.name,), message)


def class_name_findings(listing: ImageSet) -> Iterator[Finding]:
    """Yield the finding on class names that are equal for the tokenizer, unless the list is shipped."""
    classes, names = listing.dataset.classes, listing.named or listing.folders
    try:
        names = prompts.class_names(classes).lines if classes else tuple(name.replace("_", " ") for name in names)
    except UserError:  # another check reports it
        return
    for remark in same_prompt_remarks(names) if classes not in prompts.names("classes") else ():
        yield Finding("note", remark.kind, (listing.dataset.name,), remark.message, remark.count, remark.examples)


def _classes(listing: ImageSet) -> Iterator[Finding]:
    """Yield the findings on class folders that do not match the class list."""
    dataset, folders = listing.dataset, listing.folders
    if not dataset.classes:
        return
    try:
        names = prompts.class_names(dataset.classes)
    except UserError as error:
        yield Finding("error", "classes", (dataset.name,), str(error))
        return
    if names.duplicates():
        message = f"the class list '{names.name}' contains a name twice"
        yield Finding(
            "note", "class-twice", (dataset.name,), message, len(names.duplicates()), first_examples(names.duplicates())
        )
    if not folders:
        return
    if len(names.lines) != len(folders):
        message = f"{len(folders):,} class folders, but the class list '{names.name}' has {len(names.lines):,} names"
        yield Finding("error", "classes", (dataset.name,), message, abs(len(names.lines) - len(folders)))
        return
    # Folders with other names (n01440764) cannot be compared; if most are class names, the rest are out of order.
    plain, named = [[normalize_name(text) for text in texts] for texts in (folders, names.lines)]
    wrong = [f"{f} is named '{n}'" for f, n, a, b in zip(folders, names.lines, plain, named, strict=True) if a != b]
    if wrong and len(set(plain) & set(named)) > len(folders) / 2:
        message = (
            f"{len(wrong):,} class folders are not in the order of the class list '{names.name}': labels are wrong"
        )
        yield Finding("error", "classes", (dataset.name,), message, len(wrong), first_examples(wrong))


def normalize_name(text: str) -> str:
    """Return a class name in lower case without underscores and hyphens, for comparisons."""
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def check_list_digest(dataset: Dataset, data: Path) -> tuple[Dataset, tuple[str, str] | None, Finding | None]:
    """Return the dataset to check, the digests of its list file (actual, declared or ""), and a finding if they differ.

    Loaders reject a list with a wrong digest; the check reports it and continues with a dataset without one.
    """
    path = find_list(dataset, data)
    if not dataset.list or not path.is_file():  # no list, or reported when the set is loaded
        return dataset, None, None
    try:
        image_list = read_list(path)
    except UserError:
        return dataset, None, None
    declared = "" if dataset.digest == UNKNOWN else dataset.digest
    if declared in ("", image_list.digest):
        return dataset, (image_list.digest, declared), None
    message = (
        f"{path} has the sha256 {image_list.digest[:12]} ({len(image_list.names):,} lines), but the catalogue declares "
        f"{declared[:12]}: other images, another order or other labels"
    )
    finding = Finding("error", "digest", (dataset.name,), message)
    return dataclasses.replace(dataset, digest=UNKNOWN), (image_list.digest, declared), finding
