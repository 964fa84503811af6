"""The data that the driver sends to workers: the plan, files on the driver's disk, and its code version."""

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

from oodbench.data.catalog import Dataset
from oodbench.data.catalog import dataset as declared
from oodbench.data.imageset import ImageSet, TreeSource
from oodbench.data.load import load_source
from oodbench.data.paths import config_folder_or_none, data_root
from oodbench.data.subsets import UnionSource
from oodbench.encoder.card import EMBEDDED, parse_encoder
from oodbench.encoder.resolve import GLYPHS_FOLDER, ResolvedEncoder, resolve
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

_LOADING = threading.Lock()


@dataclass(frozen=True)
class LazySource:
    """An image source that is sent by name: the worker loads the dataset again when it reads the first image."""

    dataset: Dataset
    data: Path
    root: Path

    def read(self, name: str) -> ReadImage:
        """Read one image."""
        return self._loaded().read(name)

    def content(self, name: str) -> str:
        """Return the sha256 of the stored bytes of an image."""
        return self._loaded().content(name)

    def tree_fingerprint(self) -> str:
        """Return the fingerprint of all its files now; "" for a source that checks them image by image."""
        source = self._loaded()
        return source.tree_fingerprint() if isinstance(source, TreeSource) else ""

    @property
    def listed_fingerprint(self) -> str:
        """Return the fingerprint of all its files before they were opened here."""
        source = self._loaded()
        return source.listed_fingerprint if isinstance(source, TreeSource) else ""

    def _loaded(self) -> ImageSource:
        with _LOADING:  # several threads read their first image at the same time
            return _load_source(self)


@functools.cache
def _load_source(lazy: LazySource) -> ImageSource:
    return load_source(lazy.dataset, lazy.data, Store(lazy.root))


def portable(images: ImageSet, data: Path, store: Store) -> ImageSet:
    """Return the same image set with picklable sources, including those of its origins."""
    origins = tuple(
        dataclasses.replace(origin, source=portable(origin.source, data, store)) for origin in images.origins
    )
    source = images.source if _can_be_sent(images) else _reloading_source(images, data, store)
    result = dataclasses.replace(images, source=source, origins=origins)
    # Cached properties that are expensive to compute.
    result.__dict__.update(digest=images.digest, fingerprint=images.fingerprint, list_digest=images.list_digest)
    return result


def _can_be_sent(images: ImageSet) -> bool:
    """Return whether the source works on other machines: it can be pickled, and is not a local copy of a download."""
    if isinstance(images.source, UnionSource):
        return all(_can_be_sent(part) for part in images.source.parts.values())
    if is_url(_parent_dataset(images.dataset).path):
        return False
    try:
        pickle.dumps(images.source)
    except (TypeError, AttributeError, pickle.PicklingError):
        return False
    return True


def _reloading_source(images: ImageSet, data: Path, store: Store) -> ImageSource:
    """Return a source that loads the dataset again, or every part of a union of datasets."""
    if isinstance(images.source, UnionSource):
        return UnionSource({name: portable(part, data, store) for name, part in images.source.parts.items()})
    return LazySource(_parent_dataset(images.dataset), data, store.root)


def _parent_dataset(dataset: Dataset) -> Dataset:
    """Return the dataset that a subset is taken from, or the dataset itself."""
    while dataset.within:
        dataset = declared(dataset.within)
    return dataset


_MAX_FILE_BYTES = 1_000_000  # of a file that is sent; declarations of datasets are short
# Modules that no worker imports: they may differ between driver and worker.
DRIVER_ONLY = ("api.py", "cli/", "data/checks/", "detector/", "report/", "tracking/")


@dataclass(frozen=True)
class CodeVersion:
    """The version of oodbench that a process runs.

    versions   of oodbench and its libraries
    commit     of its checkout, if it is one
    sources    sha256 of the source files that workers run
    """

    versions: dict[str, str]
    commit: str | None
    sources: str

    def describe(self) -> str:
        """Return version, commit and sources for a message."""
        return f"{self.versions['oodbench']}, commit {(self.commit or 'none')[:12]}, sources {self.sources[:12]}"


@dataclass(frozen=True)
class FileBundle:
    """Names and contents of files that a worker writes to its own folder."""

    contents: tuple[tuple[str, bytes], ...]

    def write(self, parent: Path) -> Path:
        """Write the files into a new folder in `parent`; return that folder."""
        folder = Path(tempfile.mkdtemp(dir=parent))
        for name, content in self.contents:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass(frozen=True)
class WorkerPayload:
    """A plan in the form that is sent to workers.

    plan               with picklable image sources
    code_version       of the driver; workers must run the same
    plugins            the files of the methods that the user gave by path
    config             the user's own declarations of datasets
    encoder            the files of an encoder that the user gave by path; None for others
    working_directory  of the driver, for relative paths
    token              an entry in the driver's store: a worker that does not find it uses another store
    """

    plan: Plan
    code_version: CodeVersion
    plugins: tuple[FileBundle, ...]
    config: FileBundle
    encoder: FileBundle | None
    working_directory: str
    token: dict[str, str]


def code_version() -> CodeVersion:
    """Return the code version of this process."""
    package = Path(__file__).parents[1]
    files = [path for path in package.rglob("*.py") if not path.relative_to(package).as_posix().startswith(DRIVER_ONLY)]
    sources = hashlib.sha256()
    for path in sorted(files):
        sources.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return CodeVersion(versions(), commit(), sources.hexdigest())


def pack(plan: Plan) -> WorkerPayload:
    """Return the payload of a plan and write its token to the store; call `remove_token` when the workers are done."""
    store = plan.store.with_root(plan.store.root.absolute())
    token = {"token": secrets.token_hex(8)}
    store.write("cluster", token, {}, {"host": socket.gethostname()})
    data = data_root(plan.request.data).absolute()
    calibration, labelled = (
        portable(images, data, store) if images else None for images in (plan.calibration, plan.labelled)
    )
    ood = tuple(dataclasses.replace(ood_set, listing=portable(ood_set.listing, data, store)) for ood_set in plan.ood)
    id_set = portable(plan.id, data, store)
    sent = dataclasses.replace(plan, store=store, id=id_set, ood=ood, calibration=calibration, labelled=labelled)
    plugins = tuple(bundle_plugin(expand(path)) for path in plan.request.plugins)
    encoder = bundle_plugin(plan.encoder.path) if plan.card.plugin and plan.card.name.endswith(".py") else None
    return WorkerPayload(sent, code_version(), plugins, _bundle_config(), encoder, os.getcwd(), token)


def remove_token(payload: WorkerPayload) -> None:
    """Remove the token from the store."""
    payload.plan.store.remove("cluster", payload.token)


def unpack(payload: WorkerPayload, folder: Path) -> Plan:
    """Return the plan for this process; write the driver's files to `folder`.

    Raise UserError if code, methods, files or store are not those of the driver.
    """
    check_code_version(payload.code_version)
    if os.path.isdir(payload.working_directory):
        os.chdir(payload.working_directory)
    plan = payload.plan
    plan = dataclasses.replace(plan, store=plan.store.with_root(local_root(plan.store.root, plan.store.url)))
    if not plan.store.has("cluster", payload.token):
        raise UserError(
            f"the store {plan.store.root} on {socket.gethostname()} is not the driver's; "
            "name a folder that every node sees with --store or $OODBENCH_STORE, or a URL with --shared"
        )
    os.environ["OODBENCH_CONFIG"] = str(payload.config.write(folder))
    plugins = [bundle.write(folder) / bundle.contents[0][0] for bundle in payload.plugins]
    known = registry.methods(plugins)
    jobs = tuple(_local_job(job, known.get(job.info.name)) for job in plan.jobs)
    sent = payload.encoder.write(folder) / payload.encoder.contents[0][0] if payload.encoder else None
    return dataclasses.replace(plan, jobs=jobs, encoder=_local_encoder(plan, sent))


def check_code_version(driver: CodeVersion) -> None:
    """Raise UserError with both versions if the driver runs other code than this process."""
    own = code_version()
    libraries = {name: version for name, version in own.versions.items() if name != "python"}
    driver_libraries = {name: driver.versions.get(name, "") for name in libraries}
    host = socket.gethostname()
    # The commit is not compared: a commit during a run does not change the code that the workers run.
    if (driver.versions["oodbench"], driver.sources) != (own.versions["oodbench"], own.sources):
        raise UserError(
            f"the driver runs oodbench {driver.describe()}; the worker on {host} runs {own.describe()}; "
            "install the same on every node"
        )
    differing = [
        f"{name} {driver_libraries[name]} and {version}"
        for name, version in libraries.items()
        if driver_libraries[name] != version
    ]
    if differing:
        raise UserError(
            f"driver and worker on {host} differ in {', '.join(differing)}, which may change results; "
            "install the same on every node"
        )


def _local_job(job: Job, own: registry.MethodInfo | None) -> Job:
    """Return the job with this machine's method. Raise UserError if method or files differ from the driver's."""
    host = socket.gethostname()
    if own is None or own.source != job.info.source:
        has = f"{own.source[:12]} ({own.path})" if own else "no such method"
        raise UserError(
            f"method '{job.info.name}': the driver has source {job.info.source[:12]} ({job.info.path}), "
            f"the worker on {host} {has}; install the same on every node, or give the file with --plugin"
        )
    local = dataclasses.replace(job, info=own)
    if local.files != job.files:
        names = sorted(name for name in {*local.files, *job.files} if local.files.get(name) != job.files.get(name))
        differing = ", ".join(f"{name} = {job.parameters.get(name)}" for name in names)
        raise UserError(
            f"{job.label}: files on {host} differ from the driver's: {differing}; name files that every node sees"
        )
    return local


def _local_encoder(plan: Plan, sent: Path | None = None) -> ResolvedEncoder:
    """Return the encoder with the local path of its weights: shipped, the driver's path, or resolved again.

    A plugin is the driver's file if it exists here, else the file that was `sent`, without files above a megabyte.
    """
    card = plan.card
    if card.plugin:
        here = plan.encoder.path if plan.encoder.path.is_file() else sent
        local = resolve(parse_encoder(card.name), None, plan.store, sent=here)
        if local.card.identity != card.identity:
            raise UserError(
                f"encoder {card.name} on {socket.gethostname()} differs from the driver's: its source or its identity()"
            )
        return ResolvedEncoder(card, local.path)
    spec = parse_encoder(plan.request.encoder)
    if spec.text == EMBEDDED:
        return ResolvedEncoder(card, GLYPHS_FOLDER / "encoder.safetensors")
    if plan.encoder.path.is_file() and not card.text_files:  # loading verifies its digest
        return plan.encoder
    local = resolve(spec, plan.request.resize, plan.store)
    if local.card.identity != card.identity:
        raise UserError(
            f"encoder {card.name} on {socket.gethostname()} differs from the driver's: weights "
            f"{local.card.weights[:12]} instead of {card.weights[:12]}, or another tokenizer"
        )
    return local


def bundle_plugin(path: Path) -> FileBundle:
    """Return the file of a method, followed by the files below its folder that it imports."""
    files = [file for file in source_files.files(path) if path.parent in file.parents]
    small = [file for file in files if file.stat().st_size <= _MAX_FILE_BYTES]
    return FileBundle(tuple((file.relative_to(path.parent).as_posix(), file.read_bytes()) for file in small))


def _bundle_config() -> FileBundle:
    """Return the user's own declarations of datasets."""
    root = config_folder_or_none()
    if root is None:
        return FileBundle(())
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in (".toml", ".txt")]
    small = [path for path in files if path.stat().st_size <= _MAX_FILE_BYTES]
    return FileBundle(tuple((path.relative_to(root).as_posix(), path.read_bytes()) for path in small))
