"""`oodbench datasets get`: whole benchmarks from a local server, archives of the user, the Hub, Google Drive."""

from __future__ import annotations

import errno
import functools
import hashlib
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data import fetch, imagenet
from oodbench.data.catalog import Archive, Dataset
from oodbench.data.checks.single import archive_findings
from oodbench.data.fetch import GetOptions, get
from oodbench.data.install import DOWNLOADS, record_path
from oodbench.data.load import LoadOptions, load_images, notes
from oodbench.errors import UserError
from oodbench.storage.archives import Bounds
from oodbench.storage.download import RetryPolicy, drive_id
from oodbench.storage.files import locked
from oodbench.storage.store import Store
from tests.file_server import FileServer, file_server

HASTE = RetryPolicy(timeout=0.3, tries=3, pause=0.01)
QUICK = GetOptions(retry=HASTE)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server(b"") as started:
        yield started


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add declarations to the catalogue."""

    def add(*sets: Dataset) -> None:
        known = {**catalogue.datasets(), **{one.name: one for one in sets}}
        monkeypatch.setattr(catalogue, "datasets", lambda: known)

    return add


def image(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(out, "png")
    return out.getvalue()


def packed(*names: str, kind: str = "tgz", files: dict[str, bytes] | None = None) -> bytes:
    """An archive of images, and of other files."""
    contents = {name: image(shade) for shade, name in enumerate(names)} | (files or {})
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:gz" if kind == "tgz" else "w") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


def pets(**changes: Any) -> Dataset:
    return replace(
        Dataset(name="pets", title="Pets", loader="images", path="pets/images", obtain="ask the vet"), **changes
    )


def files(root: Path) -> set[str]:
    """All files below a data folder except locks."""
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


MOS = {"inaturalist": "iNaturalist", "sun": "SUN", "places": "Places", "textures": "dtd"}


@pytest.fixture
def mos(server: FileServer, declare: Callable[..., None]) -> FileServer:
    """The MOS protocol in miniature: a dozen images per set, in archives like the original ones."""
    sets = [replace(catalogue.datasets()["imagenet1k"], count=12, archives=(), hub="")]
    for name, top in MOS.items():
        content = packed(*(f"{top}/images/{'banded/' * (top == 'dtd')}{i}.png" for i in range(12)))
        server.files[f"/{top}.tar.gz"] = content
        sha256 = hashlib.sha256(content).hexdigest() if name == "textures" else ""
        archive = Archive(url=f"{server.url}/{top}.tar.gz", sha256=sha256, size=len(content))
        sets.append(replace(catalogue.datasets()[name], count=12, archives=(archive,)))
    declare(*sets)
    return server


def wnid_folders(root: Path) -> None:
    for i in range(12):
        path = root / "imagenet1k/val" / imagenet.wnids()[i] / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(image(i))


@pytest.mark.slow
def test_all_sets_of_a_benchmark_are_fetched(mos: FileServer, tmp_path: Path) -> None:
    summary = get(["mos"], tmp_path, QUICK)
    states = {outcome.name: outcome.state for outcome in summary.outcomes}
    assert states == {
        "imagenet1k": "manual", **dict.fromkeys(MOS, "ready"), "imagenet1k-train": "optional"
    }  # fmt: skip
    assert summary.exit_code == 3
    assert "4 of 5 sets are ready" in summary.text() and "missing: imagenet1k\n" in summary.text()
    assert f"oodbench datasets get mos --data {tmp_path}" in summary.text()
    for top in MOS.values():
        assert len(list((tmp_path / top / "images").rglob("*.png"))) == 12
    assert not any((tmp_path / DOWNLOADS).iterdir())
    asked = len(mos.asked)
    wnid_folders(tmp_path)
    done = get(["mos"], tmp_path, QUICK)
    assert done.exit_code == 0 and "5 of 5 sets are ready" in done.text()
    assert f"oodbench run --id mos --methods mcm --data {tmp_path}" in done.text()
    assert len(mos.asked) == asked  # existing sets are not requested again


@pytest.mark.slow
def test_sets_are_fetched_at_the_same_time(mos: FileServer, tmp_path: Path) -> None:
    meeting = threading.Barrier(3, timeout=20)
    met: list[int] = []

    def watch(what: str, total: int) -> Callable[[int], None]:
        if what.startswith("fetch") and len(met) < 3:
            met.append(meeting.wait())  # times out, and fails the set, unless three are fetched in parallel
        return lambda n: None

    summary = get(list(MOS), tmp_path, replace(QUICK, watch=watch, workers=3))
    assert summary.exit_code == 0, summary.text()
    assert sorted(met)[:3] == [0, 1, 2]


@pytest.mark.slow
def test_one_bad_server_does_not_stop_the_others(mos: FileServer, tmp_path: Path) -> None:
    content = mos.files["/dtd.tar.gz"]
    mos.files["/dtd.tar.gz"] = content[:-1] + b"x"  # other content of the same size
    mos.files["/SUN.tar.gz"] += b"x"
    mos.files["/Places.tar.gz"] = b"<!DOCTYPE html><p>Please log in".ljust(len(mos.files["/Places.tar.gz"]))
    summary = get(["mos"], tmp_path, QUICK)
    assert summary.exit_code == 1
    text = {outcome.name: (outcome.state, outcome.message) for outcome in summary.outcomes}
    assert text["inaturalist"][0] == "ready"
    assert text["textures"][0] == "failed" and "is not what was expected: sha256" in text["textures"][1]
    assert text["sun"][0] == "failed" and "bytes, not" in text["sun"][1]
    assert (
        "sends a web page instead of Places.tar.gz" in text["places"][1] and "--from Places.tar.gz" in text["places"][1]
    )
    assert not any((tmp_path / top).exists() for top in ("dtd", "SUN", "Places"))
    mos.files["/dtd.tar.gz"] = content
    assert get(["textures"], tmp_path, QUICK).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_partial_downloads_are_resumed(
    server: FileServer, declare: Callable[..., None], tmp_path: Path, fault: str
) -> None:
    server.content = packed(*(f"{i}.png" for i in range(12)))
    declare(pets(count=12, archives=(Archive(url=f"{server.url}/pets.tgz"),)))
    setattr(server, fault, 100)
    failed = get(["pets"], tmp_path, QUICK)
    assert failed.exit_code == 1 and "rerun the same command to resume" in failed.text()
    assert not (tmp_path / "pets").exists()
    setattr(server, fault, None)
    server.asked.clear()
    assert get(["pets"], tmp_path, QUICK).exit_code == 0
    assert server.asked == ["bytes=300-"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "there"),
    [
        (["pets/images/1.png", "pets/README.png"], {"pets/images/1.png", "pets/README.png"}),
        (["whatever-1.0/1.png"], {"pets/images/1.png"}),
        (["whatever-1.0/1.png", "__MACOSX/._1.png"], {"pets/images/1.png"}),
        (["1.png", "2.png"], {"pets/images/1.png", "pets/images/2.png"}),
    ],
)
def test_a_set_is_moved_into_place(
    server: FileServer, declare: Callable[..., None], tmp_path: Path, inside: list[str], there: set[str]
) -> None:
    server.content = packed(*inside)
    sha256 = hashlib.sha256(server.content).hexdigest()
    declare(pets(archives=(Archive(url=f"{server.url}/pets.tar.gz", sha256=sha256),)))
    assert get(["pets"], tmp_path, QUICK).exit_code == 0
    assert files(tmp_path) == there


@pytest.mark.slow
def test_folders_in_an_archive_and_list_files(server: FileServer, declare: Callable[..., None], tmp_path: Path) -> None:
    listed = b"ninco/a/1.png -1\nninco/b/2.png -1\n"
    server.files["/all.zip"] = packed("NINCO/OOD/a/1.png", "NINCO/OOD/b/2.png", "NINCO/other/3.png", kind="zip")
    server.files["/list.txt"] = listed
    images = Archive(url=f"{server.url}/all.zip", to="large/ninco", inside="NINCO/OOD")
    lists = Archive(url=f"{server.url}/list.txt", to="lists/ninco.txt", sha256=hashlib.sha256(listed).hexdigest())
    near = pets(name="near", loader="list", path="large", list="lists/ninco.txt", count=2, archives=(images, lists))
    part = pets(name="some", loader="part", path="large", within="near", keep=("a",), archives=())
    declare(near, part)
    summary = get(["some"], tmp_path, QUICK)  # the set that it is a part of is also fetched
    assert {o.name: o.state for o in summary.outcomes}["near"] == "ready", summary.text()
    assert files(tmp_path) == {
        "large/ninco/a/1.png", "large/ninco/b/2.png", "lists/ninco.txt", "large/.ninco.oodbench.json"
    }  # fmt: skip
    wrong = pets(name="wrong", path="wrong", archives=(replace(images, to="", inside="NINCO/none"),))
    declare(wrong)
    assert "holds no folder NINCO/none" in get(["wrong"], tmp_path, QUICK).text()


@pytest.mark.slow
def test_without_a_digest_the_first_one_is_recorded(
    server: FileServer, declare: Callable[..., None], tmp_path: Path
) -> None:
    server.content = packed("1.png", "2.png")[:-60]
    one = pets(archives=(Archive(url=f"{server.url}/pets.tgz"),))
    declare(one)
    assert get(["pets"], tmp_path, QUICK).exit_code == 1
    assert not record_path(tmp_path / "pets/images").exists()  # what could not be unpacked is not recorded
    server.content = packed("1.png", "2.png")
    first = get(["pets"], tmp_path, QUICK)
    record = record_path(tmp_path / "pets/images")
    sha256 = hashlib.sha256(server.content).hexdigest()
    assert json.loads(record.read_text())["sha256"] == sha256
    assert f"no digest is declared; its sha256 is recorded in {record}" in first.text()
    assert f"sha256 {sha256[:12]}" in get(["pets"], tmp_path, QUICK).text()  # also reported for existing sets
    (finding,) = archive_findings(one, tmp_path)
    assert (finding.level, finding.kind) == ("note", "archive") and sha256 in finding.message
    images = load_images(one, LoadOptions(tmp_path, Store(tmp_path / "store")), labelled=False)
    assert [note for note in notes(images) if "digest" in note] == [f"pets: {finding.message}"]  # reported by a run
    shutil.rmtree(tmp_path / "pets/images")
    server.content = packed("1.png", "3.png")
    other = get(["pets"], tmp_path, QUICK)
    assert other.exit_code == 1 and f"recorded in {record}: delete the record" in other.text()
    record.unlink()
    assert get(["pets"], tmp_path, QUICK).exit_code == 0


@pytest.mark.slow
def test_nothing_incomplete_is_left(server: FileServer, declare: Callable[..., None], tmp_path: Path) -> None:
    whole = packed(*(f"pets/images/{i}.png" for i in range(50)))
    server.content = whole[: len(whole) // 2]  # complete according to the server
    one = pets(count=50, archives=(Archive(url=f"{server.url}/pets.tgz"),))
    declare(one)
    damaged = get(["pets"], tmp_path, QUICK)
    assert damaged.exit_code == 1 and "is damaged" in damaged.text() and not (tmp_path / "pets/images").exists()
    assert not record_path(tmp_path / "pets/images").exists()
    bounded = get(["pets"], tmp_path, replace(QUICK, bounds=Bounds(size=100)))
    assert "unpacks to more than 100 bytes" in bounded.text() or "is damaged" in bounded.text()
    server.content = whole
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    shutil.rmtree(tmp_path / DOWNLOADS)
    assert get(["pets"], tmp_path, QUICK).exit_code == 0


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_the_next_call_resumes(server: FileServer, process: Any, tmp_path: Path) -> None:
    server.content = packed("1.png", files={"notes.txt": os.urandom(200_000)})
    server.stall = 100_000
    config = tmp_path / "config/datasets"
    config.mkdir(parents=True)
    (config / "pets.toml").write_text(
        f'title = "Pets"\nloader = "images"\npath = "pets"\n[[archives]]\nurl = "{server.url}/pets.tgz"\n'
    )
    environment = {"OODBENCH_CONFIG": str(tmp_path / "config")}
    words = ["datasets", "get", "pets", "--data", str(tmp_path / "data")]
    command = [str(Path(sys.executable).with_name("oodbench")), *words]
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background shell ignores SIGINT
    options: dict[str, Any] = {"env": {**os.environ, **environment}, "preexec_fn": default}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    part = tmp_path / "data" / DOWNLOADS / "pets/.pets.tgz.part"
    end = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size >= 100_000):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=25)  # before the 30 s of the stalled download
    assert running.returncode == 130 and "rerun the same command to resume" in said and "Traceback" not in said
    server.stall = None
    server.asked.clear()
    done = process(*words, **environment)
    assert done.returncode == 0 and "1 images at" in done.stdout, done.stderr
    assert server.asked == ["bytes=100000-"]


def test_an_incomplete_set_is_reported_and_not_touched(declare: Callable[..., None], tmp_path: Path) -> None:
    declare(pets(count=12, archives=(Archive(url="http://127.0.0.1:9/pets.tgz"),)))
    (tmp_path / "pets/images").mkdir(parents=True)
    (tmp_path / "pets/images/1.png").write_bytes(image(1))
    summary = get(["pets"], tmp_path, QUICK)
    assert summary.exit_code == 1 and "holds 1 images, but the catalogue declares 12" in summary.text()
    assert f"mv {tmp_path}/pets/images {tmp_path}/pets/images.old && oodbench datasets get pets" in summary.text()
    assert files(tmp_path) == {"pets/images/1.png"}


def test_names_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        get(["mos", "sunn", "texturez"], tmp_path, QUICK)
    assert "did you mean 'sun'" in str(error.value) and "did you mean 'textures'" in str(error.value)
    assert not any(tmp_path.iterdir())


def test_from_needs_a_file_of_these_sets(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for source, told in (("none.tar", "does not exist"), ("x.tar", "which of"), ("empty", "holds none of iNat")):
        with pytest.raises(UserError, match=told):
            get(["inaturalist", "sun"], tmp_path / "data", GetOptions(source=tmp_path / source))


def test_an_archive_that_the_user_has(declare: Callable[..., None], tmp_path: Path) -> None:
    declare(
        pets(count=2, archives=(Archive(url="http://127.0.0.1:9/pets.tgz", md5="0" * 32),)),
        pets(name="cats", path="cats", count=2),
        pets(name="dogs", path="dogs"),
    )
    mine = tmp_path / "mine.tar"
    mine.write_bytes(packed("pets/images/1.png", "pets/images/2.png", kind="tar"))
    summary = get(["pets"], tmp_path / "data", GetOptions(source=mine))
    assert summary.exit_code == 0, summary.text()
    assert "not the expected file: md5" in summary.text() and mine.is_file()
    again = get(["cats"], tmp_path / "data", GetOptions(source=mine))  # no archive is declared for it
    assert again.exit_code == 0 and (tmp_path / "data/cats/images/1.png").is_file()
    with pytest.raises(UserError, match=r"no archive of dogs is declared\n  ask the vet"):  # its count is not known
        get(["dogs"], tmp_path / "data", GetOptions(source=mine))


def test_a_folder_of_archives(declare: Callable[..., None], tmp_path: Path) -> None:
    sets = [
        pets(name=n, path=f"{n}/images", count=2, archives=(Archive(url=f"http://127.0.0.1:9/{n}.tgz"),)) for n in "abc"
    ]
    declare(*sets)
    for name in "ab":
        (tmp_path / f"{name}.tgz").write_bytes(packed("x/1.png", "x/2.png"))
    summary = get(["a", "b", "c"], tmp_path / "data", replace(QUICK, source=tmp_path))
    assert [outcome.state for outcome in summary.outcomes] == ["ready", "ready", "failed"]


def test_a_file_of_one_of_several_sets(declare: Callable[..., None], tmp_path: Path) -> None:
    declare(*(pets(name=n, path=n, archives=(Archive(url=f"http://127.0.0.1:9/{n}.tgz"),)) for n in "ab"))
    (tmp_path / "b.tgz").write_bytes(packed("1.png"))
    summary = get(["a", "b"], tmp_path / "data", replace(QUICK, source=tmp_path / "b.tgz"))
    assert [outcome.state for outcome in summary.outcomes] == ["failed", "ready"]


def test_two_processes_do_not_unpack_the_same_set(declare: Callable[..., None], tmp_path: Path) -> None:
    declare(pets(archives=(Archive(name="pets.tgz"),)))
    (tmp_path / "pets.tgz").write_bytes(packed("1.png"))
    with locked(tmp_path / "data" / DOWNLOADS / "pets/.lock", "another test"):
        assert (
            "another process is downloading pets"
            in get(["pets"], tmp_path / "data", GetOptions(source=tmp_path)).text()
        )
    assert get(["pets"], tmp_path / "data", GetOptions(source=tmp_path)).exit_code == 0


def test_gdown_takes_these_arguments() -> None:
    gdown = pytest.importorskip("gdown")
    parameters = inspect.signature(gdown.download).parameters
    assert {"id", "output", "quiet", "resume", "use_cookies", "progress"} <= set(parameters)
    assert issubclass(gdown.exceptions.FileURLRetrievalError, Exception)


def val_tar(path: Path, numbers: range, turn: bool = False) -> Path:
    """A miniature of ILSVRC2012_img_val.tar: the real names, one tiny JPEG for all images."""
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "jpeg")
    with tarfile.open(path, "w") as file:
        for number in reversed(numbers) if turn else numbers:
            member = tarfile.TarInfo(imagenet.image_name(number))
            member.size = out.tell()
            out.seek(0)
            file.addfile(member, out)
    return path


@pytest.fixture
def small_imagenet(monkeypatch: pytest.MonkeyPatch, declare: Callable[..., None]) -> list[str]:
    """ImageNet-1k with the first 24 validation images only; returns their class folders."""
    truth = imagenet.ground_truth().folders[:24]
    monkeypatch.setattr(imagenet, "ground_truth", lambda folder=None: imagenet.GroundTruth(truth, "the shipped index"))
    declare(replace(catalogue.datasets()["imagenet1k"], loader="classes", count=24))
    return list(truth)


def test_imagenet_is_sorted_into_class_folders(small_imagenet: list[str], tmp_path: Path) -> None:
    tar = val_tar(tmp_path / "ILSVRC2012_img_val.tar", range(1, 25), turn=True)
    summary = get(["imagenet1k"], tmp_path / "data", GetOptions(source=tmp_path))  # the folder that holds it
    assert summary.exit_code == 0 and "classes by the shipped index" in summary.text()
    expected = {f"imagenet1k/val/{f}/{imagenet.image_name(i)}" for i, f in enumerate(small_imagenet, 1)}
    assert files(tmp_path / "data") == expected and tar.is_file()


def test_imagenet_that_lacks_an_image_is_not_moved(small_imagenet: list[str], tmp_path: Path) -> None:
    val_tar(tmp_path / "ILSVRC2012_img_val.tar", range(1, 24))
    summary = get(["imagenet1k"], tmp_path / "data", GetOptions(source=tmp_path))
    assert summary.exit_code == 1 and "holds 23 of 24 images (no ILSVRC2012_val_00000024.JPEG)" in summary.text()
    assert not (tmp_path / "data/imagenet1k").exists()
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    val_tar(tmp_path / "other.tar", range(1, 25))
    assert get(["imagenet1k"], tmp_path / "data", GetOptions(source=tmp_path / "other.tar")).exit_code == 0


def test_unpacking_resumes_after_an_interruption(
    small_imagenet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val_tar(tmp_path / "ILSVRC2012_img_val.tar", range(1, 25))
    seen = 0

    def watch(what: str, total: int) -> Callable[[int], None]:
        def advance(n: int) -> None:
            nonlocal seen
            seen += 1
            if seen == 10:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        get(["imagenet1k"], tmp_path / "data", GetOptions(tmp_path, watch))
    assert not (tmp_path / "data/imagenet1k").exists()
    (kept,) = (tmp_path / "data" / DOWNLOADS / "imagenet1k").glob("unpacked-*")
    times = {path.name: path.stat().st_mtime_ns for path in kept.rglob("*.JPEG")}
    assert len(times) == 10
    assert get(["imagenet1k"], tmp_path / "data", GetOptions(tmp_path)).exit_code == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data/imagenet1k/val").rglob("*.JPEG")}
    assert len(now) == 24 and all(now[name] == time for name, time in times.items())


def test_a_full_disk_gives_advice(small_imagenet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val_tar(tmp_path / "ILSVRC2012_img_val.tar", range(1, 25))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("oodbench.storage.archives.shutil.disk_usage", lambda path: usage._replace(free=1000))
    full = get(["imagenet1k"], tmp_path / "data", GetOptions(tmp_path))
    assert full.exit_code == 1 and "1,000 bytes, which is the limit or the free disk space" in full.text()
    monkeypatch.setattr("oodbench.storage.archives.shutil.disk_usage", lambda path: usage)
    opened, path_open = 0, Path.open

    def nearly_full(path: Path, mode: str = "r", **more: Any) -> Any:
        nonlocal opened
        opened += mode == "wb" and path.suffix == ".JPEG"
        if opened > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return path_open(path, mode, **more)

    monkeypatch.setattr(Path, "open", nearly_full)
    full = get(["imagenet1k"], tmp_path / "data", GetOptions(tmp_path))
    assert full.exit_code == 1 and "No space left on device; unpacked files are kept: rerun" in full.text()
    monkeypatch.setattr(Path, "open", path_open)
    assert get(["imagenet1k"], tmp_path / "data", GetOptions(tmp_path)).exit_code == 0


@pytest.mark.slow
def test_the_whole_validation_tar_is_sorted(cli: Any, tmp_path: Path) -> None:
    val_tar(tmp_path / "ILSVRC2012_img_val.tar", range(1, 50_001))
    done = cli(
        "datasets", "get", "imagenet1k", "--from", tmp_path / "ILSVRC2012_img_val.tar", "--data", tmp_path / "data"
    )
    assert done.returncode == 0 and "50,000 images" in done.stdout
    root = tmp_path / "data/imagenet1k/val"
    assert sorted(p.name for p in root.iterdir()) == list(imagenet.wnids())
    assert {len(list(folder.iterdir())) for folder in root.iterdir()} == {50}
    for number in (1, 2, 25_000, 50_000):
        assert (root / imagenet.ground_truth().folders[number - 1] / imagenet.image_name(number)).is_file()


def test_images_are_sorted_by_a_file_of_the_archive(declare: Callable[..., None], tmp_path: Path) -> None:
    lines = b"val_0.png\tn2\t0\t0\nval_1.png\tn1\t0\t0\n"
    content = packed("tin/val/images/val_0.png", "tin/val/images/val_1.png", "tin/train/n1/t.png", kind="zip",
                     files={"tin/val/notes.txt": lines})  # fmt: skip
    (tmp_path / "tin.zip").write_bytes(content)
    declare(
        pets(
            name="tin", loader="classes", path="tin/val", archives=(Archive(name="tin.zip", sort="tin/val/notes.txt"),)
        )
    )
    summary = get(["tin"], tmp_path / "data", GetOptions(source=tmp_path / "tin.zip"))
    assert summary.exit_code == 0, summary.text()
    assert files(tmp_path / "data") - {"tin/.val.oodbench.json"} == {"tin/val/n2/val_0.png", "tin/val/n1/val_1.png"}


def parquet(path: Path, rows: list[tuple[str, int]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image(i), "path": name} for i, (name, _) in enumerate(rows)]
    table = pyarrow.table({"image": images, "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A fake Hub with 24 validation images; tests have no network."""
    import huggingface_hub

    numbers = range(1, 25)
    rows = [(f"ILSVRC2012_val_{i:08d}_n01751748.JPEG", int(imagenet.validation_classes()[i - 1])) for i in numbers]

    files = {f"data/validation-0000{i}-of-00002.parquet": rows[12 * i : 12 * i + 12] for i in range(2)}

    def listing(repository: str, *, repo_type: str) -> list[str]:
        assert (repository, repo_type) == ("ILSVRC/imagenet-1k", "dataset")
        return ["README.md", "data/train-00000-of-00294.parquet", *files]

    def download(repository: str, name: str, *, repo_type: str, local_dir: Path) -> str:
        parquet(local_dir / name, files[name])
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(imagenet, "IMAGES", 24)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield files


def test_imagenet_from_the_hub(hub: dict[str, Any], small_imagenet: list[str], tmp_path: Path) -> None:
    summary = get(["imagenet1k"], tmp_path, QUICK)
    assert summary.exit_code == 0, summary.text()
    assert "hf_secret" not in summary.text() and "Hugging Face Hub" in summary.text()
    assert files(tmp_path) == {f"imagenet1k/val/{f}/{imagenet.image_name(i)}" for i, f in enumerate(small_imagenet, 1)}


def test_wrong_rows_from_the_hub_are_refused(hub: dict[str, Any], small_imagenet: list[str], tmp_path: Path) -> None:
    hub["data/validation-00001-of-00002.parquet"][3] = ("ILSVRC2012_val_00000016.JPEG", 0)
    summary = get(["imagenet1k"], tmp_path, QUICK)
    assert summary.exit_code == 1 and "it is another dataset" in summary.text()
    assert not (tmp_path / "imagenet1k").exists()


def test_the_hub_refuses_a_token(hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*arguments: Any, **more: Any) -> str:
        raise GatedRepoError.__new__(GatedRepoError, "403")  # its constructor needs a response of the Hub's HTTP client

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    summary = get(["imagenet1k"], tmp_path, QUICK)
    assert (
        summary.exit_code == 1
        and "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k" in summary.text()
    )


def test_without_a_token_both_alternatives_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "has_token", lambda: False)
    summary = get(["imagenet1k"], tmp_path, QUICK)
    assert summary.exit_code == 3
    assert "oodbench datasets get imagenet1k --from ILSVRC2012_img_val.tar" in summary.text()
    assert "HF_TOKEN=... oodbench datasets get imagenet1k" in summary.text()
    assert get(["imagenet100"], tmp_path / "b", GetOptions(retry=replace(HASTE, tries=1))).exit_code in (1, 3)


@pytest.mark.parametrize(
    ("url", "number"),
    [
        ("https://drive.google.com/uc?id=1PzkA-WGG8", "1PzkA-WGG8"),
        ("https://drive.google.com/file/d/1PzkA_x/view?usp=sharing", "1PzkA_x"),
        ("https://drive.google.com/open?id=1Mj0i5", "1Mj0i5"),
        ("https://zenodo.org/record/1?id=2", ""),
        ("https://drive.google.com.example.org/uc?id=1", ""),
    ],
)
def test_addresses_of_google_drive(url: str, number: str) -> None:
    assert drive_id(url) == number


def drive_set() -> Dataset:
    return pets(count=2, archives=(Archive(url="https://drive.google.com/uc?id=1abc", name="pets.zip", inside="."),))


def fake_gdown(monkeypatch: pytest.MonkeyPatch, download: Callable[..., Any]) -> None:
    module: Any = types.ModuleType("gdown")
    module.exceptions = types.SimpleNamespace(
        DownloadError=type("DownloadError", (Exception,), {}),
        FileURLRetrievalError=type("FileURLRetrievalError", (Exception,), {}),
    )
    module.download = download
    monkeypatch.setitem(sys.modules, "gdown", module)
    monkeypatch.setattr(fetch, "_can_request", lambda url: True)


def test_google_drive_by_gdown(declare: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed("images/1.png", "images/2.png", kind="zip")
    told: list[int] = []

    def download(*, id: str, output: str, quiet: bool, resume: bool, use_cookies: bool, progress: Any) -> str:
        assert (id, quiet, resume, use_cookies) == ("1abc", True, True, False)
        progress(10, len(content))
        progress(len(content), len(content))
        Path(output).write_bytes(content)
        return output

    fake_gdown(monkeypatch, download)
    declare(drive_set())
    summary = get(["pets"], tmp_path, replace(QUICK, watch=lambda what, total: told.append))
    assert summary.exit_code == 0, summary.text()
    assert told[:2] == [10, len(content) - 10]
    assert (tmp_path / "pets/images/images/1.png").is_file()  # `inside = "."`: everything is moved


def test_google_drive_s_quota(declare: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> str:
        raise sys.modules["gdown"].exceptions.FileURLRetrievalError("Too many users\nhave viewed it")

    fake_gdown(monkeypatch, refuse)
    declare(drive_set())
    summary = get(["pets"], tmp_path, QUICK)
    assert summary.exit_code == 1 and "Too many users have viewed it; the bytes received are kept" in summary.text()


def test_google_drive_without_gdown(
    declare: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    monkeypatch.setattr(fetch, "_can_request", lambda url: False)
    declare(drive_set())
    summary = get(["pets"], tmp_path, QUICK)
    assert (
        summary.exit_code == 3
        and f"pip install gdown, then: oodbench datasets get pets --data {tmp_path}" in summary.text()
    )
    assert "open https://drive.google.com/uc?id=1abc" in summary.text() and "--from pets.zip" in summary.text()


@pytest.mark.slow  # imports torchvision
def test_torchvision_unpacks_what_was_fetched(
    declare: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets as known

    calls: list[tuple[Path, bool]] = []

    class Shapes(known.VisionDataset):  # type: ignore[misc]
        def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
            calls.append((Path(root), download))
            if not (Path(root) / "shapes.bin").is_file():
                raise RuntimeError("Dataset not found")
            self.targets = [0] * 12

        def __len__(self) -> int:
            return 12

    class Closed(known.VisionDataset):  # type: ignore[misc]
        def __init__(self, root: Path, split: str = "train") -> None:
            raise RuntimeError("Dataset not found")

    monkeypatch.setattr(known, "Shapes", Shapes, raising=False)
    monkeypatch.setattr(known, "Closed", Closed, raising=False)
    archive = Archive(url="http://127.0.0.1:9/shapes.bin", to="shapes/shapes.bin")
    one = Dataset(
        name="s", title="S", loader="torchvision", path="shapes", source="Shapes", split="test", archives=(archive,)
    )
    closed = replace(one, name="closed", path="closed", source="Closed", obtain="ask the authors", archives=())
    declare(one, closed, replace(closed, name="wrong", source="Shpes"))
    (tmp_path / "shapes.bin").write_bytes(b"there")
    summary = get(["s"], tmp_path / "data", GetOptions(source=tmp_path / "shapes.bin"))
    assert summary.exit_code == 0 and "12 images at" in summary.text()
    record = json.loads(record_path(tmp_path / "data/shapes").read_text())
    assert record["sha256"] == hashlib.sha256(b"there").hexdigest()
    filled, download = calls[0]
    assert download and filled != tmp_path / "data/shapes" and not filled.exists()  # filled elsewhere, then moved
    own = tmp_path / "own"  # a user's set has an absolute path
    (own / "other").mkdir(parents=True)
    (own / "other/thesis.txt").write_text("mine")
    declare(replace(one, name="own", path=str(own), archives=()))
    assert get(["own"], tmp_path / "data", QUICK).exit_code != 0
    assert (own / "other/thesis.txt").read_text() == "mine"
    assert get(["closed"], tmp_path / "data", QUICK).exit_code == 3
    cars = get(["stanford-cars"], tmp_path / "data", QUICK)  # torchvision's error is only that the URL does not exist
    assert cars.exit_code == 3 and "cars_test_annos_with_labels.mat" in cars.text()
    assert "torchvision has no dataset 'Shpes'" in get(["wrong"], tmp_path / "data", QUICK).text()


def test_the_command(cli: Any, declare: Callable[..., None], tmp_path: Path) -> None:
    declare(pets(count=2, archives=(Archive(url="http://127.0.0.1:9/pets.tgz"),)))
    (tmp_path / "pets.tgz").write_bytes(packed("1.png", "2.png"))
    data = ("--data", tmp_path / "data")
    manual = cli("datasets", "get", "glyphs", "imagenet1k-train", *data)
    assert manual.returncode == 3
    assert "embedded" in manual.stdout and "1 of 2 sets are ready" not in manual.stdout.splitlines()[0]
    assert f"it belongs at {tmp_path}/data/imagenet1k/train, 1,281,167 images" in manual.stdout
    done = cli("datasets", "get", "pets", "--from", tmp_path / "pets.tgz", *data)
    assert done.returncode == 0 and "1 of 1 sets are ready" in done.stdout
    assert cli("datasets", "get", "glyphs", *data).returncode == 0


@pytest.mark.parametrize(
    "one", [one for one in catalogue.datasets().values() if one.archives], ids=lambda one: one.name
)
def test_declared_archives_have_a_source(one: Dataset) -> None:
    for archive in one.archives:
        assert archive.source, "the page that states the address and the digest"
        assert archive.url.startswith(("https://", "http://")) or (archive.name and not archive.url)
        assert archive.file_name and "/" not in archive.file_name
        assert len(archive.sha256) in (0, 64) and len(archive.md5) in (0, 32)
        assert not Path(archive.to).is_absolute() and ".." not in Path(archive.to).parts
        assert archive.to == one.list or not archive.to.endswith(".txt") or archive.to == one.keep_file
        assert one.digest in ("unknown", archive.sha256) or archive.to != one.list
