"""What a worker is sent: the plan, the files that only the driver has, and what both must agree in."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pickle
import secrets
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Dataset
from oodbench.data.catalog import dataset as declared
from oodbench.data.imageset import ImageSet, TreeSource
from oodbench.data.load import load_source
from oodbench.data.subsets import UnionSource
from oodbench.encoder.card import EMBEDDED, parse_encoder
from oodbench.encoder.resolve import GLYPHS, Resolved, resolve
from oodbench.errors import UserError, is_url
from oodbench.method import registry, source_files
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.results import commit, versions
from oodbench.storage.files import expand
from oodbench.storage.shared import local_root
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from oodbench.data.imageset import ImageSource
    from oodbench.storage.fingerprints import ReadImage

_OPENING = threading.Lock()


@dataclass(frozen=True)
class LazySource:
    """Reads a set's images after looking for it once more, at the first image."""

    dataset: Dataset
    data: Path
    root: Path

    def read(self, name: str) -> ReadImage:
        """Read one image."""
        return self._found().read(name)

    def content(self, name: str) -> str:
        """sha256 of what is stored for an image."""
        return self._found().content(name)

    def tree_fingerprint(self) -> str:
        """The fingerprint of all its files now; "" of a source that looks at them image by image."""
        source = self._found()
        return source.tree_fingerprint() if isinstance(source, TreeSource) else ""

    @property
    def listed_fingerprint(self) -> str:
        """The fingerprint of all its files before they were opened here."""
        source = self._found()
        return source.listed_fingerprint if isinstance(source, TreeSource) else ""

    def _found(self) -> ImageSource:
        with _OPENING:  # threads ask for their first image at once
            return _source(self)


@functools.cache
def _source(again: LazySource) -> ImageSource:
    return load_source(again.dataset, again.data, Store(again.root))


def portable(listing: ImageSet, data: Path, store: Store) -> ImageSet:
    """The same list with a source that can be pickled, in its origins, too."""
    origins = tuple(dataclasses.replace(one, source=portable(one.source, data, store)) for one in listing.origins)
    source = listing.source if _travels(listing) else _anew(listing, data, store)
    made = dataclasses.replace(listing, source=source, origins=origins)
    made.__dict__.update(digest=listing.digest, stamp=listing.stamp)  # known already
    return made


def _travels(listing: ImageSet) -> bool:
    """Whether the source means the same elsewhere: it can be pickled, and is no copy that this machine has fetched."""
    if isinstance(listing.source, UnionSource):
        return all(_travels(one) for one in listing.source.parts.values())
    if is_url(_whole(listing.dataset).path):
        return False
    try:
        pickle.dumps(listing.source)
    except (TypeError, AttributeError, pickle.PicklingError):
        return False
    return True


def _anew(listing: ImageSet, data: Path, store: Store) -> ImageSource:
    """What finds the images once more: those of a part in its whole, those of several sets in each."""
    if isinstance(listing.source, UnionSource):
        return UnionSource({name: portable(one, data, store) for name, one in listing.source.parts.items()})
    return LazySource(_whole(listing.dataset), data, store.root)


def _whole(dataset: Dataset) -> Dataset:
    """The set that a part is taken from, or the set itself."""
    while dataset.within:
        dataset = declared(dataset.within)
    return dataset


_LARGEST = 1_000_000  # bytes of a file that travels; a user's catalogue is text
# The driver's own rooms; workers run the rest of the package.
_DRIVERS = ("cli/", "data/checks/", "report/", "tracking/")


@dataclass(frozen=True)
class Code:
    """Which oodbench a process runs: versions of it and its libraries, commit, sha256 of its sources."""

    versions: dict[str, str]
    commit: str | None
    sources: str

    def words(self) -> str:
        """For a message: version, commit and sources."""
        return f"{self.versions['oodbench']}, commit {(self.commit or 'none')[:12]}, sources {self.sources[:12]}"


@dataclass(frozen=True)
class SentFiles:
    """Files by name, to be written below a folder of the worker's own."""

    contents: tuple[tuple[str, bytes], ...]

    def write(self, below: Path) -> Path:
        """Write them into a new folder, which is given back."""
        folder = Path(tempfile.mkdtemp(dir=below))
        for name, content in self.contents:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass(frozen=True)
class WorkerPayload:
    """A plan on its way. `token` is in the driver's store: a worker that does not find it sees another one."""

    plan: Plan
    code: Code
    plugins: tuple[SentFiles, ...]
    config: SentFiles
    folder: str
    token: dict[str, str]


def code() -> Code:
    """The code of this process."""
    here = Path(__file__).parents[1]
    files = [path for path in here.rglob("*.py") if not path.relative_to(here).as_posix().startswith(_DRIVERS)]
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return Code(versions(), commit(), whole.hexdigest())


def pack(plan: Plan) -> WorkerPayload:
    """What workers need to carry out a plan. The token is to be forgotten with `unmark` when they are done."""
    store = plan.store.with_root(plan.store.root.absolute())
    token = {"token": secrets.token_hex(8)}
    store.write("cluster", token, {}, {"host": socket.gethostname()})
    data = catalogue.data_root(plan.request.data).absolute()
    calibration = portable(plan.calibration, data, store) if plan.calibration else None
    ood = tuple(dataclasses.replace(one, listing=portable(one.listing, data, store)) for one in plan.ood)
    sent = dataclasses.replace(plan, store=store, id=portable(plan.id, data, store), ood=ood, calibration=calibration)
    plugins = tuple(plugin_files(expand(path)) for path in plan.request.plugins)
    return WorkerPayload(sent, code(), plugins, _config(), os.getcwd(), token)


def unmark(parcel: WorkerPayload) -> None:
    """Remove the token from the store."""
    parcel.plan.store.remove("cluster", parcel.token)


def unpack(parcel: WorkerPayload, scratch: Path) -> Plan:
    """The plan as this process can carry it out, with the driver's files below `scratch`.

    UserError when code, methods, files or store are not the driver's.
    """
    check_code(parcel.code)
    if os.path.isdir(parcel.folder):
        os.chdir(parcel.folder)  # paths that a user wrote may start there
    plan = parcel.plan
    plan = dataclasses.replace(plan, store=plan.store.with_root(local_root(plan.store.root, plan.store.url)))
    if not plan.store.has("cluster", parcel.token):
        raise UserError(
            f"the store {plan.store.root} on {socket.gethostname()} is not the driver's; "
            "name a folder that every node sees with --store or $OODBENCH_STORE, or a URL with --shared"
        )
    os.environ["OODBENCH_CONFIG"] = str(parcel.config.write(scratch))
    plugins = [folder.write(scratch) / folder.contents[0][0] for folder in parcel.plugins]
    known = registry.methods(plugins)
    jobs = tuple(_job(job, known.get(job.info.name)) for job in plan.jobs)
    return dataclasses.replace(plan, jobs=jobs, encoder=_encoder(plan))


def check_code(theirs: Code) -> None:
    """UserError with both versions when the driver runs other code than this process."""
    own = code()
    libraries = {name: value for name, value in own.versions.items() if name != "python"}
    other = {name: theirs.versions.get(name, "") for name in libraries}
    place = socket.gethostname()
    # Not by the commit alone: one that is made while a run goes on changes nothing that workers run.
    if (theirs.versions["oodbench"], theirs.sources) != (own.versions["oodbench"], own.sources):
        raise UserError(
            f"the driver runs oodbench {theirs.words()}; the worker on {place} runs {own.words()}; "
            "install the same on every node"
        )
    differing = [f"{name} {other[name]} and {libraries[name]}" for name in libraries if other[name] != libraries[name]]
    if differing:
        raise UserError(
            f"driver and worker on {place} differ in {', '.join(differing)}, which changes digits; "
            "install the same on every node"
        )


def _job(job: Job, own: registry.MethodInfo | None) -> Job:
    place = socket.gethostname()
    if own is None or own.source != job.info.source:
        has = f"{own.source[:12]} ({own.path})" if own else "no such method"
        raise UserError(
            f"method '{job.info.name}': the driver has source {job.info.source[:12]} ({job.info.path}), "
            f"the worker on {place} {has}; install the same on every node, or give the file with --plugin"
        )
    found = dataclasses.replace(job, info=own)
    if found.files != job.files:
        names = sorted(name for name in {*found.files, *job.files} if found.files.get(name) != job.files.get(name))
        named = ", ".join(f"{name} = {job.parameters.get(name)}" for name in names)
        raise UserError(f"{job.label}: not the driver's on {place}: {named}; name what every node sees")
    return found


def _encoder(plan: Plan) -> Resolved:
    """The encoder with the path of its weights here: shipped, in the same place, or found anew."""
    card = plan.card
    spec = parse_encoder(plan.request.encoder or plan.benchmark.encoder or EMBEDDED)
    if spec.text == EMBEDDED:
        return Resolved(card, GLYPHS / "encoder.safetensors")
    if plan.encoder.path.is_file() and not card.text_files:  # its digest is looked at when it is loaded
        return plan.encoder
    found = resolve(spec, plan.request.resize, plan.store)
    if found.card.identity != card.identity:
        raise UserError(
            f"encoder {card.name} is another on {socket.gethostname()}: weights {found.card.weights[:12]}, "
            f"the driver's {card.weights[:12]}; or its tokenizer is"
        )
    return found


def plugin_files(path: Path) -> SentFiles:
    """A method's file first, and its parts below the same folder."""
    found = [one for one in source_files.files(path) if path.parent in one.parents and one.stat().st_size <= _LARGEST]
    return SentFiles(tuple((one.relative_to(path.parent).as_posix(), one.read_bytes()) for one in found))


def _config() -> SentFiles:
    """The user's own declarations."""
    root = catalogue.own_folder()
    if root is None:
        return SentFiles(())
    files = [one for one in sorted(root.rglob("*")) if one.is_file() and one.stat().st_size <= _LARGEST]
    kept = [one for one in files if one.suffix in (".toml", ".txt")]
    return SentFiles(tuple((one.relative_to(root).as_posix(), one.read_bytes()) for one in kept))
