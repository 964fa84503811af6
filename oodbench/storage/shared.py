"""A store that many machines share: a folder of this one before object storage or another place fsspec can name.

There, an entry is URL/KIND/KK/KEY/{NAME-SHA256.npy, entry.json}. Arrays are named by content and entry.json comes last,
so that two writers of one entry never mix, and what is not whole is not there. A reader fetches an entry into the
folder, verifies it, and maps it from disk.
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
from oodbench.storage import remote as reaching
from oodbench.storage.files import expand
from oodbench.storage.store import DAMAGE, Array, Entry, Store, beside, default_root, place, verified

log = logging.getLogger(__name__)
T = TypeVar("T")
_ARRAY = re.compile(r"[\w.-]+-[0-9a-f]{64}\.npy")


def opened(folder: Path | None, url: str = "") -> Store:
    """The store in a folder (None: the default), before a shared one (`url` or $OODBENCH_SHARED) if there is one.

    UserError when the shared one cannot be reached.
    """
    root = expand(folder or default_root())
    url = url or os.environ.get("OODBENCH_SHARED", "")
    if not url:
        return Store(root)
    shared = Shared(root, url)
    shared.check()
    return shared


def root_here(root: Path, url: str) -> Path:
    """The folder of a driver's store on this node: its own, if it names one and only the shared one must agree."""
    own = os.environ.get("OODBENCH_STORE")
    return expand(own) if url and own else root


class Shared(Store):
    """Entries below one folder, each copied to, and fetched from, a place that other machines reach."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return errors.redact_url(self.url)

    def at(self, root: Path) -> Shared:
        return Shared(root, self.url)

    def check(self) -> None:
        """UserError unless the other side takes a file."""
        if not errors.is_url(self.url):
            raise UserError(
                f"--shared or $OODBENCH_SHARED: {self.url} is no URL; write for example s3://bucket/oodbench"
            )
        probe = f"{self._base}/.probe-{secrets.token_hex(8)}"
        self._put(functools.partial(self._system.pipe_file, probe, b""), probe, tries=1)
        with contextlib.suppress(UserError, FileNotFoundError):  # who may not remove leaves an empty file
            self._ask(lambda: self._system.rm_file(probe), tries=1)

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        """The entry for these inputs, here or fetched, verified; None when it is in neither place."""
        found = super().find(kind, inputs)
        if found is None:
            return self._fetch(kind, self.key(kind, inputs))
        if not self._mark(found.path).exists():  # made before it was shared, or its maker was killed
            self._send(kind, found)
        return found

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether other machines have it or can fetch it."""
        key = self.key(kind, inputs)
        if super().has(kind, inputs) and self._mark(self.path(kind, key)).exists():
            return True
        there = f"{self._there(kind, key)}/entry.json"
        self._system.invalidate_cache()
        return bool(self._ask(lambda: self._system.exists(there)))

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        """Write an entry here, then there. UserError when either cannot be written; what is here stays."""
        entry = super().write(kind, inputs, arrays, facts)
        self._send(kind, entry)
        return entry

    def forget(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove an entry in both places."""
        super().forget(kind, inputs)
        there = self._there(kind, self.key(kind, inputs))
        with contextlib.suppress(FileNotFoundError):
            self._ask(lambda: self._system.rm(there, recursive=True))

    @functools.cached_property
    def _reached(self) -> tuple[Any, str]:
        return reaching.open_filesystem(self.url)

    @property
    def _system(self) -> Any:
        return self._reached[0]

    @property
    def _base(self) -> str:
        return self._reached[1]

    def _there(self, kind: str, key: str) -> str:
        return f"{self._base}/{kind}/{key[:2]}/{key}"

    def _mark(self, path: Path) -> Path:
        """The file that says of an entry here that it is there, too."""
        return path / f".shared-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def _send(self, kind: str, entry: Entry) -> None:
        there = self._there(kind, entry.key)
        text = (entry.path / "entry.json").read_bytes()
        for name, facts in json.loads(text)["arrays"].items():
            goal = f"{there}/{_named(name, facts)}"
            self._put(functools.partial(self._system.put_file, str(entry.path / f"{name}.npy"), goal), goal)
        goal = f"{there}/entry.json"
        self._put(functools.partial(self._system.pipe_file, goal, text), goal)
        with contextlib.suppress(OSError):  # a store that this user may only read
            self._mark(entry.path).touch()

    def _fetch(self, kind: str, key: str) -> Entry | None:
        """Bring an entry here, verified; None when there is none, or none that is whole."""
        there, path = self._there(kind, key), self.path(kind, key)
        try:
            text = self._ask(lambda: self._system.cat_file(f"{there}/entry.json"))
        except FileNotFoundError:
            return None
        temporary = beside(path)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise self.unwritable(error) from error
        try:
            for name, facts in json.loads(text)["arrays"].items():
                source, file = f"{there}/{_named(name, facts)}", temporary / f"{name}.npy"
                self._ask(functools.partial(self._system.get_file, source, str(file)))
            (temporary / "entry.json").write_bytes(text)
            self._mark(temporary).touch()
            found = verified(temporary, key)
            return place(temporary, path) or dataclasses.replace(found, key=key, path=path)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno in reaching.FULL:
                raise self.unwritable(error) from error
            log.warning("shared entry %s/%s is damaged (%s) and will be made again", kind, key[:12], error)
            return None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _ask(self, call: Callable[[], T], tries: int = reaching.TRIES) -> T:
        """What a call to the other side gives, tried again when it fails."""
        kept = f"what was made is kept in {self.root}; run the same command again"
        return reaching.retry(self.url, f"the shared store {self} does not answer", call, kept, tries)

    def _put(self, call: Callable[[], None], goal: str, tries: int = reaching.TRIES) -> None:
        """A call that writes to `goal`, whose folder is made where there are folders; never a bucket."""

        def put() -> None:
            try:
                call()
            except FileNotFoundError:
                if not self._system.exists(goal.partition("/")[0] or "/"):
                    raise
                self._system.makedirs(goal.rpartition("/")[0], exist_ok=True)
                call()

        try:
            self._ask(put, tries)
        except FileNotFoundError as error:
            raise UserError(
                f"the shared store {self} cannot be written: {errors.redact_error(self.url, error)}"
            ) from error


def _named(name: str, facts: Mapping[str, Any]) -> str:
    """An array's name there; ValueError for one that no store of ours has written, such as ../x."""
    found = f"{name}-{facts['sha256']}.npy"
    if not _ARRAY.fullmatch(found):
        raise ValueError(f"{found!r} is no array of an entry")
    return found
