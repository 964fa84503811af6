"""Images that methods calibrate on and are then tested on: the same files, or the same bytes under other names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from oodbench.data.checks.findings import Finding, first_examples
from oodbench.data.imageset import ImageFiles, ImageSet
from oodbench.storage.store import file_digest

_TAIL = 1024  # bytes at the end of a file: unlike the headers, they differ between images


def calibration_overlap(test: ImageSet, calibration: ImageSet) -> Iterator[Finding]:
    """The finding about test images that are calibration images, too.

    Files are compared by place, then by size and last kilobyte, and only where those agree by all their bytes: a
    training set of a million images is not read whole. Images that are not files of their own are read, all of them;
    UserError when that fails.
    """
    pair = (test.dataset.name, calibration.dataset.name)
    files = isinstance(test.reader, ImageFiles) and isinstance(calibration.reader, ImageFiles)
    common = sorted(
        {*_by_place(test, calibration), *_by_bytes(test, calibration)} if files else _by_content(test, calibration)
    )
    if not common:
        return
    if len(common) == len(test):
        message = f"all {len(test):,} test images are in the calibration list: methods that calibrate have seen them"
    else:
        message = f"{len(common):,} of {len(test):,} test images are in the calibration list, too"
    yield Finding("error", "calibration", pair, message, len(common), first_examples([test.names[i] for i in common]))


def _by_content(test: ImageSet, other: ImageSet) -> list[int]:
    """Positions in `test` of what is stored for an image of `other`, too; reads both."""
    prints = set(other.by_content().fingerprints)
    return [i for i, one in enumerate(test.by_content().fingerprints) if one in prints]


def _by_place(test: ImageSet, other: ImageSet) -> list[int]:
    known = set(_places(other))
    return [i for i, place in enumerate(_places(test)) if place in known]


def _places(listing: ImageSet) -> Iterator[str]:
    """Where every image lies, with links in the folders resolved (a link per image is found by its bytes)."""
    real: dict[str, str] = {}
    root = str(listing.folder)
    for name in listing.names:
        folder, _, file = name.rpartition("/")
        if folder not in real:
            real[folder] = os.path.realpath(os.path.join(root, folder))
        yield f"{real[folder]}/{file}"


def _by_bytes(test: ImageSet, other: ImageSet) -> list[int]:
    """Positions in `test` of files whose bytes are those of a file of `other`."""
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
    """Size and last bytes of a file; None when it is none or cannot be read, which is told elsewhere."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _TAIL, 0))
            return size, file.read(_TAIL)
    except OSError:
        return None
