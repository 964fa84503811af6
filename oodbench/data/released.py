"""What authors released beside code: trained weights and word lists, declared in datasets/weights and datasets/words.

A release lies in DATA/weights/NAME or DATA/words/NAME, DATA being the folder of the datasets.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.data.paths import declarations
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.download import Download, RetryPolicy, download
from oodbench.storage.files import atomic_write, expand, write_text
from oodbench.storage.store import file_digest

KINDS = ("weights", "words")
RECORD = "SHA256SUMS"  # digests of the files as they were got, in the format of sha256sum
_CHECKPOINTS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
_PART = ".part"  # folder of a download from Google Drive that is not complete

StartProgress = Callable[[str, int], Callable[[int], None]]  # as of download()


@dataclass(frozen=True)
class Release:
    """Files that the authors of a method released.

    kind        "weights" or "words"
    method      the method that they belong to
    page        where they were released
    source      what was read: it states the address, and the size and the digest where they are known
    encoder     of weights: the encoder that they were trained for
    repeat      of weights: the number of the training, 0 if there is one
    parameters  of weights: hyper-parameters of the method that they belong to; others may differ
    unread      why oodbench cannot read them, ""
    address     the folder of `files`
    files       name -> {size, sha256} of every file that can be fetched by a plain request
    drive       the page in Google Drive, of a file or of a folder with one checkpoint, if there is no `address`
    """

    name: str
    kind: str
    title: str
    method: str
    page: str
    source: str
    licence: str
    encoder: str = ""
    repeat: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    unread: str = ""
    address: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    drive: str = ""

    def folder(self, data_root: Path) -> Path:
        """Return the folder that holds the files on this machine."""
        return data_root / self.kind / self.name

    def path(self, data_root: Path) -> Path | None:
        """Return the file that was got, or the folder of several; None if it is not complete.

        Raises UserError if it is one checkpoint of any name, and the folder holds several.
        """
        folder = self.folder(data_root)
        if self.files:
            paths = [folder / name for name in self.files]
            return (folder if len(paths) > 1 else paths[0]) if all(path.is_file() for path in paths) else None
        found = sorted(path for path in folder.glob("*") if path.suffix.lower() in _CHECKPOINTS and path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder} is for the one checkpoint of {self.title}, and holds {names}; remove the others")
        return found[0] if found else None

    def command(self) -> str:
        """Return the command that gets it; the first release of a method is got by the name of the method."""
        first = release(self.kind, self.method) is self
        return f"oodbench get {self.kind} {self.method if first else self.name}"


@functools.cache
def releases(kind: str) -> dict[str, Release]:
    """Return everything that is declared of a kind, by name; the repeats of a training in their order."""
    return {
        path.stem: Release(name=path.stem, kind=kind, **tomllib.loads(path.read_text(encoding="utf-8")))
        for path in sorted((declarations() / kind).glob("*.toml"))
    }


def releases_of(method: str, parameters: Mapping[str, Any] | None = None) -> list[Release]:
    """Return the released weights of a method; only those that have its hyper-parameters, if these are given."""
    found = [release for release in releases("weights").values() if release.method == method]
    if parameters is None:
        return found
    return [one for one in found if all(parameters.get(name) == value for name, value in one.parameters.items())]


def release(kind: str, name: str) -> Release:
    """Return a release by its name, or the first one of a method. Raise UserError if there is none."""
    known = releases(kind)
    found = known.get(name) or next((one for one in known.values() if one.method == name), None)
    if found is None:
        everything = {*known, *(one.method for one in known.values())}
        raise UserError(f"no released {kind} '{name}'{did_you_mean(name, everything)}")
    return found


def fetch_release(
    wanted: Release,
    data_root: Path,
    given: str = "",
    watch: StartProgress = lambda what, total: lambda n: None,
    retry: RetryPolicy | None = None,
) -> Path:
    """Fetch a release unless it is there, or copy it from the file or folder `given`, and return its path.

    Every file is checked: by the declared digest, else by that of its first get. Raises Missing with what the user has
    to do if it cannot be fetched, and UserError if that fails or a file is not what it was.
    """
    folder = wanted.folder(data_root)
    try:
        if given:
            _copy(wanted, expand(given), folder)
        elif wanted.path(data_root) is None:
            if wanted.files:
                for name, facts in wanted.files.items():
                    source = Download(f"{wanted.address}/{name}", facts.get("sha256", ""))
                    download(source, folder / name, retry, watch)
            else:
                _from_drive(wanted, folder, watch)
        path = wanted.path(data_root)
        assert path is not None
        _check(wanted, path)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    return path


def instructions(wanted: Release, folder: Path) -> str:
    """Return how a release is got by hand."""
    what = "the checkpoint" if wanted.kind == "weights" else "the files"
    return (
        f"get {wanted.title} by hand: open\n  {wanted.drive or wanted.page}\n  download {what}, and put it in\n"
        f"  {folder}\n  or let oodbench put it there: {wanted.command()} --from FILE"
    )


def _copy(wanted: Release, given: Path, folder: Path) -> None:
    """Copy a file, or the files of a folder, that the user has."""
    if wanted.files:
        paths = [given / name if given.is_dir() else given for name in wanted.files]
        if not given.is_dir() and len(wanted.files) > 1:
            raise UserError(f"--from {given}: name the folder that holds {', '.join(list(wanted.files)[:3])}, ...")
        targets = list(wanted.files)
    else:
        paths, targets = [given], [given.name]
        if given.suffix.lower() not in _CHECKPOINTS:
            raise UserError(f"--from {given}: name the checkpoint, a file that ends in {', '.join(_CHECKPOINTS)}")
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"--from: {', '.join(absent[:3])} {'is' if len(absent) == 1 else 'are'} not there")
    for path, name in zip(paths, targets, strict=True):
        _check_content(wanted, path, name)
        with atomic_write(folder / name) as partial:
            shutil.copyfile(path, partial)


def _from_drive(wanted: Release, folder: Path, watch: StartProgress) -> None:
    """Fetch the one checkpoint of a folder of Google Drive, or a file, with gdown."""
    try:
        import gdown
    except ImportError:
        by_hand = instructions(wanted, folder)
        raise Missing(
            f"{wanted.name} lies in Google Drive; with `pip install 'oodbench[drive]'` it can be fetched; or {by_hand}"
        ) from None
    kind, number = _drive_id(wanted.drive)
    part = folder / _PART
    try:
        name = ""
        if kind == "folders":
            listed = gdown.download_folder(id=number, skip_download=True, quiet=True, use_cookies=False)
            found = [one for one in listed or [] if Path(one.path).suffix.lower() in _CHECKPOINTS]
            if len(found) != 1:
                names = ", ".join(str(one.path) for one in found) or "none"
                raise Missing(
                    f"{wanted.drive} holds several checkpoints or none ({names}); {instructions(wanted, folder)}"
                )
            number, name = found[0].id, Path(found[0].path).name
        part.mkdir(parents=True, exist_ok=True)
        advance, before = None, 0

        def progress(done: int, total: int | None) -> None:
            nonlocal advance, before
            advance = advance or watch(f"fetch {wanted.name}", total or 0)
            advance(done - before)
            before = done

        target = f"{part}{os.sep}{name}"
        fetched = gdown.download(
            id=number, output=target, quiet=True, use_cookies=False, resume=True, timeout=60, progress=progress
        )
    except UserError:
        raise
    except Exception as error:  # of the network, or gdown's own: a quota, a page that has changed
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Google Drive did not give {wanted.name}: {reason}\n  rerun the same command to resume, or "
            f"{instructions(wanted, folder)}"
        ) from error
    path = Path(fetched)
    _check_content(wanted, path, path.name)
    os.replace(path, folder / path.name)
    shutil.rmtree(part, ignore_errors=True)


def _drive_id(url: str) -> tuple[str, str]:
    """Return "folders" or "file", and the identifier, of an address in Google Drive."""
    match = re.search(r"/(folders|file/d)/([\w-]+)", url)
    assert match, url  # a test reads all declarations
    return match[1].partition("/")[0], match[2]


def _check_content(wanted: Release, path: Path, name: str) -> None:
    """Raise UserError if a file that was just got is not what is declared, or is a web page instead of a checkpoint."""
    facts = wanted.files.get(name, {})
    with path.open("rb") as file:
        start = file.read(64)
    if wanted.kind == "weights" and start.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a checkpoint; {instructions(wanted, path.parent)}")
    if facts.get("size") not in (None, size := path.stat().st_size):
        raise UserError(f"{path} is not {name} of {wanted.title}: {size:,} bytes, not {facts['size']:,}")
    if facts.get("sha256") and (found := file_digest(path)) != facts["sha256"]:
        raise UserError(f"{path} is not {name} of {wanted.title}: sha256 {found}, not {facts['sha256']}")


def _check(wanted: Release, path: Path) -> None:
    """Compare the digest of every file with the declared one, else with the recorded one, which is written if new."""
    folder = path if path.is_dir() else path.parent
    record = folder / RECORD
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    recorded = {name: known for known, _, name in (line.partition("  ") for line in lines)}
    found = {name: file_digest(folder / name) for name in (wanted.files or [path.name])}
    for name, actual in found.items():
        expected = wanted.files.get(name, {}).get("sha256") or recorded.get(name, actual)
        if actual != expected:
            raise UserError(
                f"{folder / name} has sha256 {actual}, not {expected} as when it was got; "
                f"remove it, then: {wanted.command()}"
            )
    if not wanted.files and recorded != found:
        write_text(record, "".join(f"{actual}  {name}\n" for name, actual in found.items()))
