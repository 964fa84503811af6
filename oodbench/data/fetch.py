"""Getting a dataset: torchvision's own download, a plain URL, or what a person has to do."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oodbench.data.catalog import Dataset
from oodbench.errors import Damaged, UserError, redact
from oodbench.storage.archives import Bounds, is_archive, unpack
from oodbench.storage.download import Download, RetryPolicy, download

WORK = ".downloads"  # folder below the data root for what is not whole yet
_WHOLE = ("tar", "arrays", "parquet")  # loaders that read the file itself

Watch = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class FetchOutcome:
    """What became of it; `by_hand` when a person has to get it."""

    message: str
    by_hand: bool = False


def get(
    dataset: Dataset,
    data: Path,
    watch: Watch = lambda what, total: lambda n: None,
    patience: RetryPolicy | None = None,
    bounds: Bounds | None = None,
) -> FetchOutcome:
    """Fetch a dataset below the data folder unless it is there. UserError when that fails; nothing half is in place."""
    if dataset.loader == "glyphs":
        return FetchOutcome("embedded, there is nothing to fetch")
    if dataset.within or dataset.parts:
        others = ", ".join(dict.fromkeys((dataset.within, *dataset.parts))).strip(", ")
        return FetchOutcome(f"made of {others}; get that", by_hand=True)
    place = dataset.folder(data)
    if dataset.loader == "torchvision":
        return _torchvision(dataset, data, patience or RetryPolicy())
    if place.exists():
        return FetchOutcome(f"is there already: {place}")
    if not dataset.download:
        return FetchOutcome(instructions(dataset, place), by_hand=True)
    wanted = Download(dataset.download, dataset.sha256, dataset.md5)
    name = Path(unquote(urlsplit(dataset.download).path)).name or dataset.name
    whole = download(wanted, data / WORK / dataset.name / name, patience, watch)
    try:
        if dataset.loader in _WHOLE or not is_archive(name):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(whole, place)
        else:
            _unpacked(dataset, whole, data, bounds)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error
    shutil.rmtree(whole.parent, ignore_errors=True)
    unchecked = "" if wanted.sha256 or wanted.md5 else " (no checksum is known; see: oodbench datasets check)"
    return FetchOutcome(f"fetched to {place}{unchecked}")


def instructions(dataset: Dataset, place: Path) -> str:
    """What a person has to do to get a set that may not be fetched."""
    steps = dataset.obtain or (f"see {dataset.url}" if dataset.url else "nothing is known about where it is to be had")
    counted = f", {dataset.count:,} images" if dataset.count else ""
    after = f"then: oodbench datasets check {dataset.name}"
    return redact(f"has to be got by hand: {steps}\n  it belongs at {place}{counted}; {after}")


def _unpacked(dataset: Dataset, archive: Path, data: Path, bounds: Bounds | None) -> None:
    """Unpack beside the archive and move what the dataset's path names into place, at one stroke.

    An archive either holds the path from the data root (its top folder then comes whole, unless that is there), or what
    belongs at the path, alone or in one folder.
    """
    folder = archive.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        unpack(archive, folder, bounds)
    except Damaged:
        archive.unlink()  # the next try fetches it anew
        raise
    top = Path(dataset.path).parts[0]
    if (folder / dataset.path).is_dir():
        source, place = folder / top, data / top
        if place.exists():
            source, place = folder / dataset.path, data / dataset.path
    else:
        inside = list(folder.iterdir())
        source = inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
        place = data / dataset.path
    place.parent.mkdir(parents=True, exist_ok=True)
    source.rename(place)


def _torchvision(dataset: Dataset, data: Path, patience: RetryPolicy) -> FetchOutcome:
    """Let torchvision fetch, which checks what it fetches and leaves alone what is there.

    A folder that is not there yet is filled elsewhere and moved: torchvision takes a half unpacked set for a whole one.
    """
    import inspect

    import torchvision.datasets as known

    from oodbench.data.loaders.torchvision import open_torchvision

    root = dataset.folder(data)
    kind = getattr(known, dataset.source, None)
    if kind is not None and "download" not in inspect.signature(kind).parameters:
        return FetchOutcome(instructions(dataset, root), by_hand=True)
    new = not root.exists() or not any(root.iterdir())
    work = data / WORK / dataset.name
    place = work / root.name if new else root
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(patience.timeout)  # torchvision waits for ever
    try:
        if new:
            shutil.rmtree(work, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        number = len(open_torchvision(dataset, place, download=True))
        if new:
            root.parent.mkdir(parents=True, exist_ok=True)
            os.replace(place, root)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}") from error
    finally:
        socket.setdefaulttimeout(waited)
        if new:
            shutil.rmtree(work, ignore_errors=True)
    return FetchOutcome(f"{number:,} images in {root}")
