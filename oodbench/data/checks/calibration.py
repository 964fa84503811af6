"""Test images that are also calibration images: the same files, or files with the same bytes and other names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from oodbench.data.checks.findings import Finding, first_examples
from oodbench.data.imageset import ImageFiles, ImageSet
from oodbench.storage.store import file_digest

_TAIL = 1024  # bytes at the end of a file, which differ between images, unlike headers


def calibration_overlap(test: ImageSet, calibration: ImageSet) -> Iterator[Finding]:
    """Yield the finding on test images that are also calibration images.

    Files are compared by path, then by size and last kilobyte, and only if these are equal by all bytes, so that a
    training set of a million images is not read completely. Images that are not separate files are all read. Raise
    UserError if that fails.
    """
    pair = (test.dataset.name, calibration.dataset.name)
    files = isinstance(test.reader, ImageFiles) and isinstance(calibration.reader, ImageFiles)
    common = sorted(
        {*_by_path(test, calibration), *_by_bytes(test, calibration)} if files else _by_content(test, calibration)
    )
    if not common:
        return
    if len(common) == len(test):
        message = f"all {len(test):,} test images are in the calibration list: methods that calibrate have seen them"
    else:
        message = f"{len(common):,} of {len(test):,} test images are also in the calibration list"
    yield Finding("error", "calibration", pair, message, len(common), first_examples([test.names[i] for i in common]))


def _by_content(test: ImageSet, other: ImageSet) -> list[int]:
    """Return the positions in `test` of images with the content of an image of `other`. This reads both sets."""
    contents = set(other.by_content().fingerprints)
    return [i for i, content in enumerate(test.by_content().fingerprints) if content in contents]


def _by_path(test: ImageSet, other: ImageSet) -> list[int]:
    """Return the positions in `test` of files that are files of `other`."""
    paths = set(_paths(other))
    return [i for i, path in enumerate(_paths(test)) if path in paths]


def _paths(listing: ImageSet) -> Iterator[str]:
    """Yield the path of every image, with links to folders resolved; links to images are found by their bytes."""
    resolved: dict[str, str] = {}
    root = str(listing.folder)
    for name in listing.names:
        folder, _, file = name.rpartition("/")
        if folder not in resolved:
            resolved[folder] = os.path.realpath(os.path.join(root, folder))
        yield f"{resolved[folder]}/{file}"


def _by_bytes(test: ImageSet, other: ImageSet) -> list[int]:
    """Return the positions in `test` of files with the bytes of a file of `other`."""
    ends: dict[tuple[int, bytes], list[int]] = {}
    for i, name in enumerate(test.names):
        if end := _end(test.folder / name):
            ends.setdefault(end, []).append(i)
    found: set[int] = set()
    digests: dict[int, str] = {}
    for name in other.names:
        path = other.folder / name
        end = _end(path)
        candidates = [i for i in ends.get(end, []) if i not in found] if end else []
        if not candidates:
            continue
        content = file_digest(path)
        for i in candidates:
            if i not in digests:
                digests[i] = file_digest(test.folder / test.names[i])
            if digests[i] == content:
                found.add(i)
    return sorted(found)


def _end(path: Path) -> tuple[int, bytes] | None:
    """Return the size and the last bytes of a file; None if it cannot be read, which another check reports."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _TAIL, 0))
            return size, file.read(_TAIL)
    except OSError:
        return None
