"""What is wrong with one image set by itself: count, absent and broken images, modes, class folders."""

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
from oodbench.data.loaders.imagelist import read_list
from oodbench.data.loaders.layout import same_prompt_remarks
from oodbench.errors import UserError
from oodbench.storage.store import digest

_PLAIN = ("RGB", "L")  # modes that nobody needs to think about


def list_digest(listing: ImageSet) -> str:
    """sha256 of the names in list order and their labels: the same wherever the images lie."""
    return digest([list(listing.names), listing.labels.tolist()])


def summarize_list(listing: ImageSet, role: str) -> SetSummary:
    """What a list says without a look at its images."""
    return SetSummary(
        name=listing.dataset.name,
        role=role,
        folder=str(listing.folder),
        images=listing.total,
        expected=listing.dataset.count,
        digest=list_digest(listing),
    )


def add_looks(seen: SetSummary, looks: Sequence[ImageFacts]) -> None:
    """Add to a card what its images are."""
    whole = [one for one in looks if not one.problem]
    sides = sorted(min(one.width, one.height) for one in whole)
    seen.looked = len(looks)
    seen.unreadable = len(looks) - len(whole)
    seen.modes = dict(Counter(one.mode for one in whole).most_common())
    seen.grey = round(sum(one.grey for one in whole) / len(whole), 4) if whole else 0.0
    seen.shorter = (sides[0], sides[len(sides) // 2], sides[-1]) if sides else None


def list_findings(seen: SetSummary, listing: ImageSet) -> Iterator[Finding]:
    """Findings that take no look at an image: count, absent files, class folders."""
    name = (seen.name,)
    if seen.expected is not None and seen.images != seen.expected:
        off = seen.images - seen.expected
        much = f"{-off:,} are missing" if off < 0 else f"{off:,} too many"
        yield Finding(
            "error", "count", name, f"{seen.images:,} images, the catalogue counts {seen.expected:,}: {much}", abs(off)
        )
    if listing.absent:
        message = f"{len(listing.absent):,} images that the list names are not there"
        yield Finding("error", "absent", name, message, len(listing.absent), first_examples(list(listing.absent)))
    for one in listing.remarks:
        yield Finding("warning", one.kind, name, one.message, one.count, one.examples)
    if listing.folders or listing.dataset.classes:
        yield from _classes(listing)
        yield from class_name_findings(listing)


def image_findings(listing: ImageSet, looks: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Findings about the images: broken ones, modes, repetitions."""
    name = (listing.dataset.name,)
    broken = [f"{n}: {one.problem}" for n, one in zip(listing.names, looks, strict=True) if one.problem]
    if broken:
        message = f"{len(broken):,} of {len(looks):,} images cannot be decoded"
        yield Finding("error", "unreadable", name, message, len(broken), first_examples(broken))
    odd = [f"{n}: {one.mode}" for n, one in zip(listing.names, looks, strict=True) if one.mode not in ("", *_PLAIN)]
    if odd:
        modes = Counter(one.mode for one in looks if one.mode not in ("", *_PLAIN))
        told = ", ".join(f"{n:,} {mode}" for mode, n in modes.most_common())
        yield Finding(
            "warning", "modes", name, f"images that become RGB with a loss: {told}", len(odd), first_examples(odd)
        )
    flat = [n for n, one in zip(listing.names, looks, strict=True) if one.flat]
    if flat:
        told_flat = constant_remark(flat)
        yield Finding("error", told_flat.kind, name, told_flat.message, told_flat.count, told_flat.examples)
    turned = [n for n, one in zip(listing.names, looks, strict=True) if one.turned]
    if turned:
        message = (
            f"{len(turned):,} images have an EXIF orientation, which is not applied (as in open_clip): "
            "they are encoded as their pixels lie, turned or mirrored"
        )
        yield Finding("warning", "orientation", name, message, len(turned), first_examples(turned))
    frames = [n for n, one in zip(listing.names, looks, strict=True) if one.frames]
    if frames:
        message = f"{len(frames):,} images have several frames or pages, of which the first is taken"
        yield Finding("note", "frames", name, message, len(frames), first_examples(frames))
    again = duplicates.repeated_images(looks)
    if again:
        message = f"{len(again):,} images have the pixels of another of the set"
        told_pairs = [f"{listing.names[p.first]} = {listing.names[p.second]}" for p in again]
        yield Finding("warning", "repeated", name, message, len(again), first_examples(told_pairs))


def class_name_findings(listing: ImageSet) -> Iterator[Finding]:
    """The finding about class names that the tokenizer does not tell apart, unless the list is a shipped one."""
    classes, names = listing.dataset.classes, listing.named or listing.folders
    try:
        names = prompts.class_names(classes).lines if classes else tuple(name.replace("_", " ") for name in names)
    except UserError:  # told elsewhere
        return
    for one in same_prompt_remarks(names) if classes not in prompts.names("classes") else ():
        yield Finding("note", one.kind, (listing.dataset.name,), one.message, one.count, one.examples)


def _classes(listing: ImageSet) -> Iterator[Finding]:
    """Class folders against the class-name list."""
    dataset, folders = listing.dataset, listing.folders
    if not dataset.classes:
        return
    try:
        names = prompts.class_names(dataset.classes)
    except UserError as error:
        yield Finding("error", "classes", (dataset.name,), str(error))
        return
    if names.duplicates():
        message = f"the class list '{names.name}' has a name twice"
        yield Finding(
            "note", "class-twice", (dataset.name,), message, len(names.duplicates()), first_examples(names.duplicates())
        )
    if not folders:
        return
    if len(names.lines) != len(folders):
        message = f"{len(folders):,} class folders, but the class list '{names.name}' has {len(names.lines):,} names"
        yield Finding("error", "classes", (dataset.name,), message, abs(len(names.lines) - len(folders)))
        return
    # Folders named otherwise (n01440764) cannot be compared; where most are the names, the rest are out of place.
    plain, named = [[normalize_name(text) for text in side] for side in (folders, names.lines)]
    wrong = [f"{f} is named '{n}'" for f, n, a, b in zip(folders, names.lines, plain, named, strict=True) if a != b]
    if wrong and len(set(plain) & set(named)) > len(folders) / 2:
        message = (
            f"{len(wrong):,} class folders are not in the order of the class list '{names.name}': labels are wrong"
        )
        yield Finding("error", "classes", (dataset.name,), message, len(wrong), first_examples(wrong))


def normalize_name(text: str) -> str:
    """A class name without case, underscores and hyphens, to compare by."""
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def check_list_digest(dataset: Dataset, data: Path) -> tuple[Dataset, tuple[str, str] | None, Finding | None]:
    """The dataset to go on with, digests of its list file (found, declared or ""), and a finding when they differ.

    Loaders refuse a list of another digest; a check tells it and goes on, with a dataset that declares none.
    """
    path = data / dataset.list
    if dataset.list and not path.is_file():
        path = path.with_name(path.name + ".gz")
    if not dataset.list or not path.is_file():  # no list, or told when the set is listed
        return dataset, None, None
    try:
        found = read_list(path)
    except UserError:
        return dataset, None, None
    declared = "" if dataset.digest == UNKNOWN else dataset.digest
    if declared in ("", found.digest):
        return dataset, (found.digest, declared), None
    message = (
        f"{path} has the sha256 {found.digest[:12]} ({len(found.names):,} lines), the catalogue declares "
        f"{declared[:12]}: other images, another order or other labels"
    )
    finding = Finding("error", "digest", (dataset.name,), message)
    return dataclasses.replace(dataset, digest=UNKNOWN), (found.digest, declared), finding
