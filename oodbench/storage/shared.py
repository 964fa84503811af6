"""A store that several machines share: a local folder in front of object storage or another fsspec file system.

The remote path of an entry is URL/KIND/KK/KEY/{NAME-SHA256.npy, entry.json}. Arrays are named by their content and
entry.json is uploaded last, so that two writers of the same entry never mix and an incomplete entry does not exist. A
reader downloads an entry into the local folder, verifies it, and maps it from disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from oodbench import errors
from oodbench.errors import UserError
from oodbench.storage import remote
from oodbench.storage.files import expand
from oodbench.storage.store import DAMAGE, Array, Entry, Store, commit, default_root, read_entry, temporary_name

log = logging.getLogger(__name__)
T = TypeVar("T")
_ARRAY = re.compile(r"[\w.-]+-[0-9a-f]{64}\.npy")


def open_store(folder: Path | None, url: str = "") -> Store:
    """Return the store in a folder (None: the default one), shared if `url` or $OODBENCH_SHARED is set.

    Raise UserError if the shared store cannot be reached.
    """
    root = expand(folder or default_root())
    url = url or os.environ.get("OODBENCH_SHARED", "")
    if not url:
        return Store(root)
    shared = SharedStore(root, url)
    shared.check()
    return shared


def local_root(root: Path, url: str) -> Path:
    """Return the store's folder on this node: its own $OODBENCH_STORE if a shared store is used, else the driver's."""
    own = os.environ.get("OODBENCH_STORE")
    return expand(own) if url and own else root


class SharedStore(Store):
    """A local store that uploads entries to, and downloads them from, storage that other machines can reach."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return errors.redact_url(self.url)

    def local(self) -> Store:
        return Store(self.root)

    def with_root(self, root: Path) -> SharedStore:
        return SharedStore(root, self.url)

    def check(self) -> None:
        """Raise UserError unless a file can be written to the shared store."""
        if not errors.is_url(self.url):
            raise UserError(
                f"--shared or $OODBENCH_SHARED: {self.url} is not a URL; write for example s3://bucket/oodbench"
            )
        probe = f"{self._base}/.probe-{secrets.token_hex(8)}"
        self._write(functools.partial(self._system.pipe_file, probe, b""), probe, tries=1)
        with contextlib.suppress(
            UserError, FileNotFoundError
        ):  # without the permission to remove it, an empty file stays
            self._retry(lambda: self._system.rm_file(probe), tries=1)

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        """Return the verified entry for these inputs, downloaded if necessary; None if neither store has it."""
        entry = super().find(kind, inputs)
        if entry is None:
            return self._download(kind, self.key(kind, inputs))
        if not self._mark(entry.path).exists():  # written without a shared store, or its writer was killed
            self._upload(kind, entry)
        return entry

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether other machines have the entry or can download it."""
        key = self.key(kind, inputs)
        if super().has(kind, inputs) and self._mark(self.path(kind, key)).exists():
            return True
        file = f"{self._remote_path(kind, key)}/entry.json"
        self._system.invalidate_cache()
        return bool(self._retry(lambda: self._system.exists(file)))

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        """Write an entry locally, then upload it. Raise UserError if either fails; the local entry stays."""
        entry = super().write(kind, inputs, arrays, facts)
        self._upload(kind, entry)
        return entry

    def remove(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove the local and the remote entry."""
        super().remove(kind, inputs)
        folder = self._remote_path(kind, self.key(kind, inputs))
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self._system.rm(folder, recursive=True))

    @functools.cached_property
    def _connection(self) -> tuple[Any, str]:
        return remote.open_filesystem(self.url)

    @property
    def _system(self) -> Any:
        return self._connection[0]

    @property
    def _base(self) -> str:
        return self._connection[1]

    def _remote_path(self, kind: str, key: str) -> str:
        return f"{self._base}/{kind}/{key[:2]}/{key}"

    def _mark(self, path: Path) -> Path:
        """Return the path of the marker file of a local entry that was uploaded."""
        return path / f".shared-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def _upload(self, kind: str, entry: Entry) -> None:
        folder = self._remote_path(kind, entry.key)
        text = (entry.path / "entry.json").read_bytes()
        for name, facts in json.loads(text)["arrays"].items():
            destination = f"{folder}/{_remote_name(name, facts)}"
            self._write(
                functools.partial(self._system.put_file, str(entry.path / f"{name}.npy"), destination), destination
            )
        destination = f"{folder}/entry.json"
        self._write(functools.partial(self._system.pipe_file, destination, text), destination)
        with contextlib.suppress(OSError):  # a store that this user may only read
            self._mark(entry.path).touch()

    def _download(self, kind: str, key: str) -> Entry | None:
        """Download and verify an entry; return None if it does not exist or is damaged."""
        folder, path = self._remote_path(kind, key), self.path(kind, key)
        try:
            text = self._retry(lambda: self._system.cat_file(f"{folder}/entry.json"))
        except FileNotFoundError:
            return None
        temporary = temporary_name(path)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise self.write_error(error) from error
        try:
            for name, facts in json.loads(text)["arrays"].items():
                source, file = f"{folder}/{_remote_name(name, facts)}", temporary / f"{name}.npy"
                self._retry(functools.partial(self._system.get_file, source, str(file)))
            (temporary / "entry.json").write_bytes(text)
            self._mark(temporary).touch()
            entry = read_entry(temporary, key)
            return commit(temporary, path) or dataclasses.replace(entry, key=key, path=path)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno in remote.DISK_ERRORS:
                raise self.write_error(error) from error
            log.warning("shared entry %s/%s is damaged (%s) and will be computed again", kind, key[:12], error)
            return None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _retry(self, call: Callable[[], T], tries: int = remote.TRIES) -> T:
        """Return the result of a remote call, retried if it fails."""
        advice = f"computed entries are kept in {self.root}; run the same command again"
        return remote.retry(self.url, f"the shared store {self} does not answer", call, advice, tries)

    def _write(self, call: Callable[[], None], destination: str, tries: int = remote.TRIES) -> None:
        """Call a function that writes to `destination`, creating its folder if necessary, but never a bucket."""

        def write() -> None:
            try:
                call()
            except FileNotFoundError:
                if not self._system.exists(destination.partition("/")[0] or "/"):
                    raise
                self._system.makedirs(destination.rpartition("/")[0], exist_ok=True)
                call()

        try:
            self._retry(write, tries)
        except FileNotFoundError as error:
            raise UserError(
                f"the shared store {self} cannot be written: {errors.redact_error(self.url, error)}"
            ) from error


def _remote_name(name: str, facts: Mapping[str, Any]) -> str:
    """Return the remote file name of an array. Raise ValueError for a name that no store writes, such as ../x."""
    file = f"{name}-{facts['sha256']}.npy"
    if not _ARRAY.fullmatch(file):
        raise ValueError(f"{file!r} is not the name of an array")
    return file
