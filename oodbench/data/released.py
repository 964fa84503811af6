"""Trained weights and word lists released by authors, declared in datasets/weights and datasets/words.

A release is stored in DATA/weights/NAME or DATA/words/NAME, where DATA is the folder of the datasets.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.data.paths import data_option, declarations
from oodbench.errors import Missing, UserError, did_you_mean
from oodbench.storage.download import Download, RetryPolicy, download, gdown_progress
from oodbench.storage.files import atomic_write, expand, write_text
from oodbench.storage.store import file_digest

KINDS = ("weights", "words")
RECORD = "SHA256SUMS"  # digests of the files when they were fetched, in the format of sha256sum
_CHECKPOINTS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
_PART = ".part"  # folder of an incomplete download from Google Drive

StartProgress = Callable[[str, int], Callable[[int], None]]  # as in download()


@dataclass(frozen=True)
class Release:
    """Files that the authors of a method released.

    kind        "weights" or "words"
    method      the method that uses them
    page        the page of the release
    source      the source of the address, and of the size and digest if known
    encoder     for weights: the encoder that they were trained for
    repeat      for weights: the number of the training, 0 if there is only one
    parameters  for weights: hyper-parameters of the method that must have these values
    unread      why oodbench cannot read them, "" if it can
    address     the URL of the folder with `files`
    files       name -> {size, sha256} of every file that can be downloaded automatically
    drive       the Google Drive page of a file, or of a folder with one checkpoint, if there is no `address`
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

    def folder(self, root: Path) -> Path:
        """Return the local folder of the files."""
        return root / self.kind / self.name

    def path(self, root: Path) -> Path | None:
        """Return the local file, or the folder of several; None if it is not complete.

        Raises UserError if the release is one checkpoint with any name, but the folder has several.
        """
        folder = self.folder(root)
        if self.files:
            paths = [folder / name for name in self.files]
            return (folder if len(paths) > 1 else paths[0]) if all(path.is_file() for path in paths) else None
        found = sorted(path for path in folder.glob("*") if path.suffix.lower() in _CHECKPOINTS and path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder} is for the one checkpoint of {self.title}, and holds {names}; remove the others")
        return found[0] if found else None

    def command(self, root: Path) -> str:
        """Return the command that gets the release; the first release of a method has the name of the method."""
        first = release(self.kind, self.method) is self
        return f"oodbench get {self.kind} {self.method if first else self.name}{data_option(root)}"


@functools.cache
def releases(kind: str) -> dict[str, Release]:
    """Return all declared releases of a kind by name, with repeated trainings in order."""
    return {
        path.stem: Release(name=path.stem, kind=kind, **tomllib.loads(path.read_text(encoding="utf-8")))
        for path in sorted((declarations() / kind).glob("*.toml"), key=lambda path: path.stem)
    }


def releases_of(method: str, parameters: Mapping[str, Any] | None = None) -> list[Release]:
    """Return the released weights of a method; with `parameters`, only those that match."""
    found = [release for release in releases("weights").values() if release.method == method]
    if parameters is None:
        return found
    return [one for one in found if all(parameters.get(name) == value for name, value in one.parameters.items())]


def release(kind: str, name: str) -> Release:
    """Return a release by name, or the first release of a method. Raise UserError if there is none."""
    known = releases(kind)
    found = known.get(name) or next((one for one in known.values() if one.method == name), None)
    if found is None:
        everything = {*known, *(one.method for one in known.values())}
        raise UserError(f"no released {kind} '{name}'{did_you_mean(name, everything)}")
    return found


def fetch_release(
    wanted: Release,
    root: Path,
    given: Path | None = None,
    watch: StartProgress = lambda what, total: lambda n: None,
    retry: RetryPolicy | None = None,
) -> Path:
    """Fetch a release to the folder of the datasets unless it exists, and return its path.

    `given` is a file or folder of the user, which is copied instead. Every file is verified by the declared digest,
    else by the digest that was recorded at the first fetch. Raises Missing with instructions if it cannot be downloaded
    automatically, and UserError if fetching fails or a file changed.
    """
    folder = wanted.folder(root)
    try:
        if given:
            _copy(wanted, expand(given), root)
        elif wanted.path(root) is None and wanted.files:
            for name, facts in wanted.files.items():
                download(Download(f"{wanted.address}/{name}", facts["sha256"]), folder / name, retry, watch)
        elif wanted.path(root) is None:
            _fetch_from_drive(wanted, root, watch)
        path = wanted.path(root)
        assert path is not None
        _check_digests(wanted, root, path)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    return path


def instructions(wanted: Release, root: Path) -> str:
    """Return instructions for getting a checkpoint from Google Drive manually."""
    return (
        f"open {wanted.drive}\n  download the checkpoint of {wanted.title}\n"
        f"  and put it in {wanted.folder(root)}, or: {wanted.command(root)} --from FILE"
    )


def _copy(wanted: Release, given: Path, root: Path) -> None:
    """Copy a file, or the files of a folder, of the user."""
    if wanted.files:
        if not given.is_dir() and len(wanted.files) > 1:
            raise UserError(f"--from {given}: name the folder that holds {', '.join(list(wanted.files)[:3])}, ...")
        paths = {name: given / name if given.is_dir() else given for name in wanted.files}
    else:
        paths = {given.name: given}
        if given.suffix.lower() not in _CHECKPOINTS:
            raise UserError(f"--from {given}: name the checkpoint, a file that ends in {', '.join(_CHECKPOINTS)}")
    if absent := [str(path) for path in paths.values() if not path.is_file()]:
        raise UserError(f"--from: {', '.join(absent[:3])} {'does' if len(absent) == 1 else 'do'} not exist")
    for name, path in paths.items():
        _check_content(wanted, root, path, name)
    present = None if wanted.files else wanted.path(root)
    if present and (present.name, file_digest(present)) != (given.name, file_digest(given)):
        raise UserError(f"--from {given}: {present} exists and is another file; remove it first")
    for name, path in paths.items():
        with atomic_write(wanted.folder(root) / name) as partial:
            shutil.copyfile(path, partial)


def _fetch_from_drive(wanted: Release, root: Path, watch: StartProgress) -> None:
    """Fetch a file, or the only checkpoint of a folder, from Google Drive with gdown; partial downloads are kept."""
    try:
        import gdown
    except ImportError:
        steps = instructions(wanted, root)
        raise Missing(
            f"it is in Google Drive, which the package gdown can read: pip install gdown\n  or {steps}"
        ) from None
    match = re.search(r"/(folders|file/d)/([\w-]+)", wanted.drive)
    assert match, wanted.drive  # a test reads all declarations
    kind, number = match.groups()
    part, name = wanted.folder(root) / _PART, ""
    progress = gdown_progress(watch, f"fetch {wanted.name}")
    try:
        if kind == "folders":
            listed = gdown.download_folder(id=number, skip_download=True, quiet=True, use_cookies=False)
            found = [one for one in listed or [] if Path(one.path).suffix.lower() in _CHECKPOINTS]
            if len(found) != 1:
                names = ", ".join(str(one.path) for one in found) or "none"
                raise Missing(
                    f"the folder in Drive should hold one checkpoint ({names})\n  {instructions(wanted, root)}"
                )
            number, name = found[0].id, Path(found[0].path).name
        part.mkdir(parents=True, exist_ok=True)
        target = f"{part}{os.sep}{name}"
        options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": 60, "progress": progress}
        path = Path(gdown.download(id=number, output=target, **options))
    except UserError:
        raise
    except Exception as error:  # of the network, or of gdown: a quota, a changed page
        if isinstance(error, OSError) and error.errno:  # a disk error
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Google Drive refused it: {reason}\n  rerun the same command to resume, or {instructions(wanted, root)}"
        ) from error
    try:
        _check_content(wanted, root, path, path.name)
        os.replace(path, wanted.folder(root) / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_content(wanted: Release, root: Path, path: Path, name: str) -> None:
    """Raise UserError if a file is not the declared one, or is a web page instead of a checkpoint."""
    facts = wanted.files.get(name, {})
    with path.open("rb") as file:
        start = file.read(64)
    if wanted.kind == "weights" and start.lstrip()[:1] in (b"<", b""):
        raise UserError(f"{path} is a web page, not a checkpoint\n  {instructions(wanted, root)}")
    known = facts["sha256"] if facts else _recorded(wanted.folder(root)).get(name, "")
    if known and (found := file_digest(path)) != known:
        record = shlex.quote(str(wanted.folder(root) / RECORD))
        hint = "" if facts else f" as at the first download; to accept this file: rm {record}, and rerun"
        raise UserError(f"{path} is not {name} of {wanted.title}: sha256 {found}, not {known}{hint}")


def _recorded(folder: Path) -> dict[str, str]:
    """Return the recorded sha256 of each file of a release."""
    record = folder / RECORD
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    return {name: known for known, _, name in (line.partition("  ") for line in lines)}


def _check_digests(wanted: Release, root: Path, path: Path) -> None:
    """Compare the digest of every file with the declared one, else with the recorded one; record new files."""
    folder = wanted.folder(root)
    record = folder / RECORD
    expected = _recorded(folder)
    expected |= {name: facts["sha256"] for name, facts in wanted.files.items()}
    found = {name: file_digest(folder / name) for name in (wanted.files or [path.name])}
    for name, actual in found.items():
        if actual != (known := expected.get(name, actual)):
            raise UserError(
                f"{folder / name} has sha256 {actual}, not {known} as at the first download; remove it, then: "
                f"{wanted.command(root)}"
            )
    if found.keys() != expected.keys():
        write_text(record, "".join(f"{actual}  {name}\n" for name, actual in found.items()))
