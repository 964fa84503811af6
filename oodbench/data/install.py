"""Install the files of one dataset: download or take them from the user, verify, unpack, and move them atomically."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oodbench.data import imagenet
from oodbench.data.catalog import Archive, Dataset
from oodbench.errors import Damaged, UserError, redact_url
from oodbench.storage.archives import Bounds, is_archive, read_member, unpack
from oodbench.storage.download import Download, RetryPolicy, download, find_mismatch
from oodbench.storage.files import locked, write_text

DOWNLOADS = ".downloads"  # folder below the data root for unfinished downloads

StartProgress = Callable[
    [str, int], Callable[[int], None]
]  # (description, total bytes) -> a function to call with the bytes done


@dataclass(frozen=True)
class GetOptions:
    """Options for getting datasets.

    source   a file, or a folder with files, that the user already has (`--from`)
    watch    shows progress; threads call it
    workers  number of files that are fetched in parallel
    """

    source: Path | None = None
    watch: StartProgress = lambda what, total: lambda n: None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    bounds: Bounds = field(default_factory=Bounds)
    workers: int = 3


def target_of(dataset: Dataset, archive: Archive, data_root: Path) -> Path:
    """Return the file or folder that an archive is installed to; for torchvision, this is the dataset's folder."""
    return data_root / (dataset.path if dataset.loader == "torchvision" else archive.to or dataset.path)


def is_there(path: Path) -> bool:
    """Return whether a path is a file or a nonempty folder."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def given_file(dataset: Dataset, archive: Archive, source: Path | None) -> Path | None:
    """Return the file of an archive given by `--from`, or None.

    In a folder, it is found by name. A file with another name is taken for the dataset's first archive, which has the
    images; further archives are expected next to it.
    """
    if source is None:
        return None
    if source.is_file() and archive == dataset.archives[0]:
        return source
    adjacent = (source if source.is_dir() else source.parent) / archive.file_name
    return adjacent if archive.file_name and adjacent.is_file() else None


def install(dataset: Dataset, archive: Archive, data_root: Path, options: GetOptions) -> str:
    """Install an archive or its content in its place, which must be free, and describe what was done.

    Raises UserError if that fails; the place is then still free, and downloaded or unpacked files are kept.
    """
    target = target_of(dataset, archive, data_root)
    folder = data_root / DOWNLOADS / dataset.name
    given = given_file(dataset, archive, options.source)
    try:
        with locked(folder / ".lock", f"another process is downloading {dataset.name}; wait for it"):
            if is_there(target):  # another process installed it in the meantime
                return "installed by another process"
            file, remark = _file(archive, folder, target, given, options)
            record = "" if archive.has_digest else _facts(archive, file)
            if archive.sort:
                remark += _sort(file, archive.sort, folder, target, options)
            elif is_archive(archive.file_name) and not is_archive(target.name):
                _unpack(file, folder, data_root, target, archive.inside, options)
            else:
                _place(file, target, move=not given)
            if record:  # only after unpacking succeeded
                write_text(record_path(target), record)
            shutil.rmtree(folder, ignore_errors=True)
    except Damaged:
        if not given:
            (folder / archive.file_name).unlink(missing_ok=True)  # the next attempt fetches it again
        raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return f"from {given}{remark}" if given else f"fetched{remark}"


def _file(archive: Archive, folder: Path, target: Path, given: Path | None, options: GetOptions) -> tuple[Path, str]:
    """Return the file of an archive, given or downloaded and verified, and a remark on its digest.

    Without a declared digest, a downloaded file must have the sha256 that is recorded next to the data, if any.
    """
    record = record_path(target)
    recorded = read_record(target).get("sha256", "") if not archive.has_digest else ""
    wanted = Download(archive.url, archive.sha256 or recorded, archive.md5, archive.size)
    if given:
        file = given
        if mismatch := find_mismatch(wanted, file):
            if Path(archive.to).name == archive.file_name:  # torchvision verifies it again, and would fetch it
                raise UserError(f"{file} is not the declared file: {mismatch}; fetch it again")
            return file, f" (not the expected file: {mismatch}; only names and number of its images are checked)"
    else:
        try:
            file = download(wanted, folder / archive.file_name, options.retry, options.watch)
        except UserError as error:
            if recorded and "not what was expected" in str(error):
                raise UserError(
                    f"{error}; the first one is recorded in {record}: delete the record to accept another"
                ) from error
            raise
        _check_page(file, archive)
    if archive.has_digest:
        return file, ""
    return file, f" (no digest is declared; its sha256 {'agrees with' if recorded else 'is recorded in'} {record})"


def _facts(archive: Archive, file: Path) -> str:
    """Return the record of a file without a declared digest."""
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    facts = {"url": redact_url(archive.url), "file": file.name, "size": file.stat().st_size, "sha256": sha256}
    return json.dumps({**facts, "declared": False}, indent=2) + "\n"


def record_path(target: Path) -> Path:
    """Return the record file of a place: the digest of what was installed there, if none is declared."""
    return target.with_name(f".{target.name}.oodbench.json")


def read_record(target: Path) -> dict[str, str]:
    """Return the record of a place; {} if there is none."""
    try:
        record = json.loads(record_path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def undeclared_digests(dataset: Dataset, data_root: Path) -> list[str]:
    """Return a sentence for each archive that was installed below the data root without a declared digest."""
    recorded = [(one, read_record(target_of(dataset, one, data_root)).get("sha256")) for one in dataset.archives]
    return [
        f"no digest is declared for {archive.file_name}; the installed one has sha256 {sha256}"
        for archive, sha256 in recorded
        if sha256
    ]


def _check_page(file: Path, archive: Archive) -> None:
    """Raise UserError if a server sent a web page, such as a login page, instead of an archive."""
    with file.open("rb") as content:
        start = content.read(512).lstrip().lower()
    if is_archive(archive.file_name) and start.startswith((b"<!doctype html", b"<html")):
        file.unlink()
        raise UserError(
            f"{redact_url(archive.url)} sends a web page instead of {archive.file_name}; open it in a browser, save "
            f"the file, and give it with --from {archive.file_name}"
        )


def move_to(source: Path, target: Path) -> None:
    """Rename a file or folder atomically, also to another file system, where a link below the data root may point."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(f".{target.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.move(source, partial)
        os.replace(partial, target)


def _place(file: Path, target: Path, *, move: bool) -> None:
    """Move or copy a file to its place atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move:
        move_to(file, target)
        return
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(file, partial)
    os.replace(partial, target)


def _unpack(file: Path, folder: Path, data_root: Path, target: Path, inside: str, options: GetOptions) -> None:
    """Unpack an archive into a temporary folder, and rename the content for `target`.

    An archive contains the complete path of the target (its top folder is then moved, unless it exists), or only the
    content of that path: in the folder `inside`, in its only folder, or at the top level.
    """
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed process
    advance = options.watch(f"unpack {file.name}", file.stat().st_size)  # images are hardly compressible
    unpack(file, unpacked, options.bounds, advance=advance)
    path = target.relative_to(data_root)
    top = data_root / path.parts[0]
    if inside:
        source = unpacked / inside
        if not source.is_dir():
            raise UserError(f"{file} holds no folder {inside}; it is not the declared archive")
    elif (unpacked / path).is_dir():
        whole = not top.exists()
        source, target = (unpacked / path.parts[0], top) if whole else (unpacked / path, target)
    else:
        entries = [entry for entry in unpacked.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        source = entries[0] if len(entries) == 1 and entries[0].is_dir() else unpacked
    target.parent.mkdir(parents=True, exist_ok=True)
    move_to(source, target)


@dataclass(frozen=True)
class _Sorting:
    """The path of each image in its class folder, by file name or number, and the source of the classes."""

    paths: Mapping[str | int, str]
    origin: str

    def place(self, name: str) -> str | None:
        """Return the path of a member of an archive, None if it is not one of the images."""
        base = name.rpartition("/")[2]
        return self.paths.get(imagenet.image_number(base) or base)


def _sorting(file: Path, sort: str) -> _Sorting:
    """Return the classes of the images in an archive: ImageNet's, or by lines `name folder` of a file in it."""
    if sort == "imagenet1k-val":
        truth = imagenet.ground_truth(file.parent)
        folders = enumerate(truth.folders, 1)
        return _Sorting({number: f"{folder}/{imagenet.image_name(number)}" for number, folder in folders}, truth.origin)
    lines = [line.split() for line in read_member(file, sort).decode().splitlines()]
    return _Sorting({words[0]: f"{words[1]}/{words[0]}" for words in lines if len(words) > 1}, sort)


def _sort(file: Path, sort: str, folder: Path, target: Path, options: GetOptions) -> str:
    """Unpack images into class folders, move them to `target` if complete, and return the source of the classes.

    Images that were unpacked before an interruption are used if the file and the classes are the same.
    """
    sorting = _sorting(file, sort)
    status = file.stat()
    key = repr((str(file), status.st_size, status.st_mtime_ns, sorted(sorting.paths.values())))
    unpacked = folder / f"unpacked-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    unpack(file, unpacked, options.bounds, sorting.place, options.watch(f"unpack {file.name}", status.st_size))
    names = {path.name for path in unpacked.glob("*/*")}
    if absent := [path for path in sorting.paths.values() if path.rpartition("/")[2] not in names]:
        raise UserError(
            f"{file} holds {len(sorting.paths) - len(absent):,} of {len(sorting.paths):,} images (no "
            f"{absent[0].rpartition('/')[2]}); it is a different archive, or incomplete"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    move_to(unpacked, target)
    return f" (classes by {sorting.origin})"


def install_torchvision(dataset: Dataset, data_root: Path, options: GetOptions) -> str:
    """Let torchvision unpack a dataset, from declared archives or its own download, and describe what was done.

    torchvision verifies existing files and keeps them. A new dataset is created in a temporary folder, because
    torchvision takes a partly unpacked dataset for a complete one.
    """
    from oodbench.data.loaders.torchvision import open_torchvision

    root = dataset.folder(data_root)
    # Not DOWNLOADS / dataset.path: the path of a user's set is absolute, and would be the user's folder itself.
    folder = data_root / DOWNLOADS / f"torchvision-{hashlib.sha256(dataset.path.encode()).hexdigest()[:16]}"
    remarks, record = [], ""
    try:
        with locked(folder / ".lock", f"another process is installing {root}; wait for it"):
            is_new = not is_there(root)
            made = folder / "torchvision" if is_new else root
            shutil.rmtree(folder / "torchvision", ignore_errors=True)
            made.mkdir(parents=True, exist_ok=True)
            for archive in dataset.archives:
                target = made / Path(archive.to).relative_to(dataset.path)
                if not target.is_file():
                    given = given_file(dataset, archive, options.source)
                    file, remark = _file(archive, folder, root, given, options)
                    remarks.append(remark)
                    record = record if archive.has_digest else _facts(archive, file)
                    _place(file, target, move=False)
            open_torchvision(dataset, made, download=True)
            if is_new:
                root.parent.mkdir(parents=True, exist_ok=True)
                if root.is_dir():
                    root.rmdir()
                move_to(made, root)
            if record:
                write_text(record_path(root), record)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}") from error
    return f"fetched{''.join(remarks)}"


def torchvision_can_fetch(dataset: Dataset) -> bool:
    """Return whether torchvision can download a dataset; the loader reports an unknown name."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, dataset.source, None)
    return kind is None or "download" in inspect.signature(kind).parameters
