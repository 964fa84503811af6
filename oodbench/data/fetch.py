"""`oodbench datasets get`: fetch and check datasets and all sets of benchmarks, and summarise the outcomes."""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import shlex
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oodbench.data import catalog
from oodbench.data.catalog import UNKNOWN, Archive, Dataset
from oodbench.data.hub import has_token, install_from_hub
from oodbench.data.install import (
    GetOptions,
    given_file,
    install,
    install_torchvision,
    is_there,
    read_record,
    target_of,
    torchvision_can_fetch,
)
from oodbench.data.load import LoadOptions, load_images
from oodbench.data.loaders.imagelist import read_list
from oodbench.data.paths import data_option, with_data_option
from oodbench.data.places import bindings, find_list, find_place
from oodbench.errors import Missing, ProblemList, UserError, is_url, raise_all, redact
from oodbench.storage.download import drive_id
from oodbench.storage.store import Store, default_root

__all__ = ["GetOptions", "Outcome", "Summary", "get", "instructions"]


class ManualDownload(Exception):
    """A dataset cannot be downloaded automatically; the message tells the user what to do."""


@dataclass(frozen=True)
class Outcome:
    """The outcome for one dataset.

    state    "ready", "manual" (the user has to do something), "failed", or "optional" (a training split, which is not
             fetched)
    message  the images that exist, or what to do
    """

    name: str
    state: str
    message: str


@dataclass(frozen=True)
class Summary:
    """The outcomes for all datasets, in the order of the request; `names` and `root` are those of the request."""

    outcomes: tuple[Outcome, ...]
    names: tuple[str, ...]
    root: Path

    @property
    def exit_code(self) -> int:
        """0 if all sets are ready, 1 if one failed, else 3: one must be downloaded manually."""
        states = {outcome.state for outcome in self.outcomes}
        return 1 if "failed" in states else 3 if "manual" in states else 0

    def text(self) -> str:
        """Return one paragraph per dataset, the number of ready sets, and the next command."""
        wide = max(len(outcome.name) for outcome in self.outcomes)
        lines = []
        for outcome in self.outcomes:
            first, *more = outcome.message.split("\n")
            lines.append(f"{outcome.state:8}  {outcome.name:{wide}}  {first.strip()}")
            lines += [f"{'':8}  {'':{wide}}  {line.strip()}" for line in more]
        needed = [outcome for outcome in self.outcomes if outcome.state != "optional"]
        lacking = [outcome.name for outcome in needed if outcome.state != "ready"]
        ready = f"{len(needed) - len(lacking)} of {len(needed)} sets are ready in {self.root}"
        lines += ["", f"{ready}; missing: {', '.join(lacking)}" if lacking else ready]
        if lacking:
            lines.append(f"next: the steps above, then: {command(self.names, self.root)}")
        elif runnable := next((name for name in self.names if name in catalog.benchmarks()), ""):
            lines.append(f"next: oodbench run --id {runnable} --methods mcm{data_option(self.root)}")
        return "\n".join(lines)


def command(names: Sequence[str], root: Path, source: str = "") -> str:
    """Return the command that gets datasets into a data folder."""
    given = f" --from {shlex.quote(source)}" if source else ""
    return f"oodbench datasets get {shlex.join(names)}{given}{data_option(root)}"


def get(names: Sequence[str], root: Path, options: GetOptions | None = None) -> Summary:
    """Get datasets and all sets of benchmarks below a data root, several in parallel, and check their images.

    Existing sets are not touched. The next call resumes an interrupted one.

    Arguments:
        names: datasets and benchmarks
        root: the data folder
        options: see GetOptions

    Returns: the outcome for each set and for the sets that it consists of. The training split of a benchmark's ID set
    is listed but not fetched.

    Raises UserError, before anything is fetched, with every name that does not exist, and if `options.source` has no
    archive of these sets.
    """
    options = options or GetOptions()
    wanted, optional = _plan(names, options.source)
    options = replace(options, source=_checked_source(list(wanted.values()), options.source))
    state = _State(root, options)
    outcomes = {name: state.check(one) for name, one in wanted.items()}
    todo = [one for name, one in wanted.items() if outcomes[name].state != "ready" or state.is_to_be_unpacked(one)]
    done = state.fetch_all(todo)
    for one in todo:
        waits = [name for name in (one.within, *one.parts) if name and outcomes[name].state != "ready"]
        if waits and isinstance(done[one.name], str):
            outcomes[one.name] = Outcome(one.name, "manual", f"consists of {', '.join(waits)}, which is not ready")
        else:
            outcomes[one.name] = state.after(one, done[one.name])
    for one in optional:
        place = find_place(one, root).dataset
        there = "exists" if place and is_there(place.folder(root)) else f"get it with: {command([one.name], root)}"
        outcomes[one.name] = Outcome(one.name, "optional", f"training split, for methods that calibrate; {there}")
    return Summary(tuple(outcomes.values()), tuple(names), root)


def _plan(names: Sequence[str], source: Path | None) -> tuple[dict[str, Dataset], list[Dataset]]:
    """Return the datasets to get, with parts of other sets first, and the training splits of ID sets."""
    problems = ProblemList()
    wanted: dict[str, Dataset] = {}
    training: dict[str, Dataset] = {}

    def add(one: Dataset) -> None:
        for other in filter(None, (one.within, *one.parts)):
            add(catalog.dataset(other))
        # Without a count, an archive of more than the set, such as CUB's training images, would be accepted.
        checkable = one.count and one.loader in ("classes", "images") and not Path(one.path).is_absolute()
        if source and source.is_file() and checkable and not (one.archives or one.within or one.parts):
            one = replace(one, archives=(Archive(name=source.name),))
        wanted.setdefault(one.name, one)

    for name in names:
        if name in catalog.benchmarks() and name not in catalog.datasets():
            protocol = problems.attempt(catalog.protocol, name)
            members = [protocol.id, *(ood for ood, _ in protocol.ood)] if protocol else []
            if protocol and protocol.benchmark.calibration:
                members.append(catalog.dataset(protocol.benchmark.calibration))
            elif protocol and protocol.id.train:
                training[protocol.id.train] = catalog.dataset(protocol.id.train)
        else:
            found = problems.attempt(catalog.dataset, name)
            members = [found] if found else []
        for one in members:
            add(one)
    raise_all(problems.problems)
    return wanted, [one for name, one in training.items() if name not in wanted]


def _checked_source(wanted: Sequence[Dataset], source: Path | None) -> Path | None:
    """Return the file or folder of `--from`; for a file with the name of an archive of these sets, its folder.

    Raise UserError unless it has an archive of one of them.
    """
    if source is None:
        return None
    if not source.exists():
        raise UserError(f"--from {source} does not exist")
    with_archives = [one for one in wanted if one.archives]
    known = [archive.file_name for one in with_archives for archive in one.archives]
    if not with_archives:
        raise UserError(
            "\n  ".join(
                (
                    f"--from {source}: no archive of {', '.join(one.name for one in wanted)} is declared",
                    *(one.obtain for one in wanted if one.obtain),
                )
            )
        )
    if source.is_file() and source.name in known:
        return source.parent
    if source.is_file() and len(with_archives) != 1:
        raise UserError(
            f"--from {source}: which of {', '.join(one.name for one in wanted)} is in that file? "
            f"name one dataset, or a folder with {', '.join(known) or 'archives'}"
        )
    if source.is_dir() and not any((source / name).is_file() for name in known):
        raise UserError(
            f"--from {source}: that folder holds none of {', '.join(known) or 'their archives'}; use unpacked images "
            "in place with: oodbench datasets locate NAME PATH"
        )
    return source


class _State:
    """The data folder while threads fetch datasets; only one thread works on a place at a time."""

    def __init__(self, root: Path, options: GetOptions) -> None:
        self.root, self.options = root, options
        self._stopped = threading.Event()
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._store = Store(default_root())

    def check(self, one: Dataset) -> Outcome:
        """Load a set, and return whether it exists and is complete."""
        if one.loader == "glyphs":
            return Outcome(one.name, "ready", "embedded, nothing to fetch")
        if is_url(one.path) or one.loader == "hf":
            return Outcome(one.name, "ready", f"a run reads it from {redact(one.path)}")
        try:
            images = load_images(one, LoadOptions(self.root, self._store, allow_partial=False), labelled=False)
        except Missing as error:
            return Outcome(one.name, "manual", str(error))
        except UserError as error:
            return Outcome(one.name, "failed", str(error))
        return Outcome(one.name, "ready", f"{len(images):,} images at {images.folder}{self._digest_remark(one)}")

    def is_to_be_unpacked(self, one: Dataset) -> bool:
        """Return whether `--from` has the archives of a set that is read from elsewhere, not from its own path."""
        return bool(one.archives) and self._given(one) and not is_there(one.folder(self.root))

    def _digest_remark(self, one: Dataset) -> str:
        undeclared = [read_record(target_of(one, archive, self.root)) for archive in one.archives]
        recorded = [str(record["sha256"])[:12] for record in undeclared if record.get("sha256")]
        return f" (no digest is declared; sha256 {', '.join(recorded)}... as first fetched)" if recorded else ""

    def fetch_all(self, todo: Sequence[Dataset]) -> dict[str, str | ManualDownload | UserError]:
        """Fetch the files of each dataset, in threads that end with the process, and describe what was done."""
        jobs: queue.SimpleQueue[Dataset] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[str, str | BaseException]] = queue.SimpleQueue()
        for one in todo:
            jobs.put(one)

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not self._stopped.is_set():
                    one = jobs.get_nowait()
                    try:
                        results.put((one.name, "; ".join(self._fetch(one))))
                    except BaseException as error:
                        results.put((one.name, error))

        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(self.options.retry.timeout)  # torchvision sets none
        done: dict[str, str | ManualDownload | UserError] = {}
        try:
            for _ in range(min(self.options.workers, len(todo))):
                threading.Thread(target=work, daemon=True).start()
            for _ in todo:
                name, result = results.get()
                if not isinstance(result, (str, ManualDownload, UserError)):
                    raise result
                done[name] = result
        finally:
            self._stopped.set()
            socket.setdefaulttimeout(timeout)
        return done

    def _fetch(self, one: Dataset) -> Iterator[str]:
        """Fetch the missing files of a dataset, and describe each step. Raise ManualDownload if it is impossible."""
        options = replace(self.options, watch=self._watch)
        bound = bindings().get(one.name)
        if bound and find_place(one, self.root).dataset is None:  # fetched files would not be used
            raise ManualDownload(
                f"it is bound to {bound}, which does not exist: restore it, or bind another path, or, to get it below "
                f"{self.root}: oodbench datasets locate {one.name} --forget && {command([one.name], self.root)}"
            )
        if one.loader == "torchvision" and not (one.archives and self._given(one)) and not torchvision_can_fetch(one):
            raise ManualDownload(instructions(one, self.root))
        if one.loader == "torchvision":
            with self._locks[one.folder(self.root)]:
                try:
                    yield install_torchvision(one, self.root, options)
                except UserError as error:
                    if one.archives or not one.obtain:
                        raise
                    raise ManualDownload(f"{error}\n{instructions(one, self.root)}") from error
            return
        for archive in one.archives:
            target = target_of(one, archive, self.root)
            with self._locks[target]:
                if is_there(target):
                    continue
                if given_file(one, archive, options.source) or (archive.url and _can_request(archive.url)):
                    yield self._install(one, archive, options)
                elif one.hub and has_token():
                    yield install_from_hub(one, self.root, options)
                else:
                    raise ManualDownload(instructions(one, self.root))
        if not one.archives and not one.within and not one.parts and not is_there(one.folder(self.root)):
            raise ManualDownload(instructions(one, self.root))

    def _install(self, one: Dataset, archive: Archive, options: GetOptions) -> str:
        try:
            return install(one, archive, self.root, options)
        except UserError as error:
            if not str(error).startswith(("gave up on", "cannot fetch")):
                raise
            by_browser = command([one.name], self.root, archive.file_name)
            raise UserError(f"{error}\n  or fetch it with a browser, then: {by_browser}") from error

    def _given(self, one: Dataset) -> bool:
        return all(given_file(one, archive, self.options.source) for archive in one.archives)

    def _watch(self, what: str, total: int) -> Callable[[int], None]:
        advance = self.options.watch(what, total)

        def checked(n: int) -> None:
            if self._stopped.is_set():
                raise KeyboardInterrupt  # in a thread: the main thread has stopped
            advance(n)

        return checked

    def after(self, one: Dataset, result: str | ManualDownload | UserError) -> Outcome:
        """Return the outcome for a dataset, given the result of fetching it."""
        if isinstance(result, ManualDownload):
            return Outcome(one.name, "manual", str(result))
        if isinstance(result, UserError):
            return Outcome(one.name, "failed", "\n".join(result.problems))
        outcome = self.check(one)
        if outcome.state == "ready":
            return replace(outcome, message="; ".join(filter(None, (outcome.message, result))))
        if outcome.state == "manual":
            return replace(outcome, message=instructions(one, self.root))
        if not one.archives:
            return outcome
        wrong = target_of(one, one.archives[0], self.root)
        if one.list and one.digest != UNKNOWN and (listed := find_list(one, self.root)).is_file():
            wrong = listed if read_list(listed).digest != one.digest else wrong
        if not is_there(wrong):
            return outcome
        path = shlex.quote(str(wrong))
        again = f"\nto get it again: mv {path} {path}.old && {command([one.name], self.root)}"
        return replace(outcome, message=outcome.message + again)


def _can_request(url: str) -> bool:
    """Return whether a URL can be fetched here: those of Google Drive need gdown."""
    return not drive_id(url) or importlib.util.find_spec("gdown") is not None


def instructions(one: Dataset, root: Path) -> str:
    """Return the steps for the user to get a dataset that cannot be downloaded automatically."""
    steps = one.obtain or (f"see {one.url}" if one.url else "no source is declared")
    lines = [with_data_option(steps, root)]
    drive = [
        archive for archive in one.archives if drive_id(archive.url) and not is_there(target_of(one, archive, root))
    ]
    if drive and not _can_request(drive[0].url):
        again = command([one.name], root)
        lines.append(f"Google Drive needs gdown: pip install gdown, then: {again}")
        for archive in drive:
            lines.append(f"or open {archive.url}, and then: {command([one.name], root, archive.file_name)}")
    count = f", {one.count:,} images" if one.count else ""
    lines.append(
        f"it belongs at {one.folder(root)}{count}; then: oodbench datasets check {one.name}{data_option(root)}"
    )
    return redact("\n".join(lines))
