"""Fetching a dataset: with torchvision's own download, from a URL, or with instructions for the user."""

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

DOWNLOADS = ".downloads"  # folder below the data root for unfinished downloads
_FILE_LOADERS = ("tar", "arrays", "parquet")  # they read the file itself, which is not unpacked

StartProgress = Callable[
    [str, int], Callable[[int], None]
]  # (what, total in bytes) -> a function to call with bytes done


@dataclass(frozen=True)
class FetchOutcome:
    """A message on the result; `by_hand` when the user has to get the dataset."""

    message: str
    by_hand: bool = False


def fetch(
    dataset: Dataset,
    data_root: Path,
    watch: StartProgress = lambda what, total: lambda n: None,
    retry: RetryPolicy | None = None,
    bounds: Bounds | None = None,
) -> FetchOutcome:
    """Fetch a dataset below the data root unless it exists.

    Raises UserError when that fails; the dataset's path then does not exist.
    """
    if dataset.loader == "glyphs":
        return FetchOutcome("embedded, there is nothing to fetch")
    if dataset.within or dataset.parts:
        others = ", ".join(dict.fromkeys((dataset.within, *dataset.parts))).strip(", ")
        return FetchOutcome(f"made of {others}; get that", by_hand=True)
    path = dataset.folder(data_root)
    if dataset.loader == "torchvision":
        return _fetch_torchvision(dataset, data_root, retry or RetryPolicy())
    if path.exists():
        return FetchOutcome(f"is there already: {path}")
    if not dataset.download:
        return FetchOutcome(instructions(dataset, path), by_hand=True)
    wanted = Download(dataset.download, dataset.sha256, dataset.md5)
    name = Path(unquote(urlsplit(dataset.download).path)).name or dataset.name
    file = download(wanted, data_root / DOWNLOADS / dataset.name / name, retry, watch)
    try:
        if dataset.loader in _FILE_LOADERS or not is_archive(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, path)
        else:
            _unpack(dataset, file, data_root, bounds)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    shutil.rmtree(file.parent, ignore_errors=True)
    unchecked = "" if wanted.sha256 or wanted.md5 else " (no checksum is known; see: oodbench datasets check)"
    return FetchOutcome(f"fetched to {path}{unchecked}")


def instructions(dataset: Dataset, path: Path) -> str:
    """Return what the user has to do to get a dataset that may not be fetched."""
    steps = dataset.obtain or (f"see {dataset.url}" if dataset.url else "nothing is known about where it is to be had")
    count = f", {dataset.count:,} images" if dataset.count else ""
    check = f"then: oodbench datasets check {dataset.name}"
    return redact(f"has to be got by hand: {steps}\n  it belongs at {path}{count}; {check}")


def _unpack(dataset: Dataset, archive: Path, data_root: Path, bounds: Bounds | None) -> None:
    """Unpack an archive into a temporary folder, and rename what the dataset's path names.

    An archive contains the dataset's complete path (its top folder is then moved, unless that exists), or only what
    belongs at that path, directly or in one folder.
    """
    unpacked = archive.parent / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a process that was killed
    try:
        unpack(archive, unpacked, bounds)
    except Damaged:
        archive.unlink()  # the next try fetches it again
        raise
    top = Path(dataset.path).parts[0]
    if (unpacked / dataset.path).is_dir():
        source, target = unpacked / top, data_root / top
        if target.exists():
            source, target = unpacked / dataset.path, data_root / dataset.path
    else:
        entries = list(unpacked.iterdir())
        source = entries[0] if len(entries) == 1 and entries[0].is_dir() else unpacked
        target = data_root / dataset.path
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _fetch_torchvision(dataset: Dataset, data_root: Path, retry: RetryPolicy) -> FetchOutcome:
    """Let torchvision fetch a dataset; it verifies checksums and keeps files that exist.

    A new dataset is fetched into a temporary folder first: torchvision takes a partly unpacked dataset for a complete
    one.
    """
    import inspect

    import torchvision.datasets

    from oodbench.data.loaders.torchvision import open_torchvision

    root = dataset.folder(data_root)
    kind = getattr(torchvision.datasets, dataset.source, None)
    if kind is not None and "download" not in inspect.signature(kind).parameters:
        return FetchOutcome(instructions(dataset, root), by_hand=True)
    is_new = not root.exists() or not any(root.iterdir())
    temporary = data_root / DOWNLOADS / dataset.name
    target = temporary / root.name if is_new else root
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(retry.timeout)  # torchvision sets no timeout
    try:
        if is_new:
            shutil.rmtree(temporary, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        count = len(open_torchvision(dataset, target, download=True))
        if is_new:
            root.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, root)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        if is_new:
            shutil.rmtree(temporary, ignore_errors=True)
    return FetchOutcome(f"{count:,} images in {root}")
