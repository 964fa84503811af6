"""Downloads from a local server that truncates, stalls, redirects and ignores ranges; unpacking."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodbench.errors import Damaged, UserError
from oodbench.storage.archives import Bounds, unpack
from oodbench.storage.download import Download, RetryPolicy, download
from tests.file_server import FileServer, file_server

pytestmark = pytest.mark.slow  # servers

CONTENT = np.random.default_rng(0).bytes(600_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTE = RetryPolicy(timeout=0.3, tries=3, pause=0.01)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server(CONTENT) as started:
        yield started


def fetch(server: FileServer, folder: Path, path: str = "/a.bin", sha256: str = SHA256) -> Path:
    return download(Download(server.url + path, sha256), folder / "a.bin", HASTE)


def left(folder: Path) -> set[str]:
    """The contents of the folder, without locks."""
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


def test_a_complete_file(server: FileServer, tmp_path: Path) -> None:
    told: list[int] = []
    totals: list[int] = []

    def watch(what: str, total: int) -> Callable[[int], None]:
        totals.append(total)
        return told.append

    place = download(Download(f"{server.url}/a.bin", SHA256), tmp_path / "a.bin", HASTE, watch)
    assert place.read_bytes() == CONTENT and left(tmp_path) == {"a.bin"}
    assert totals == [len(CONTENT)] and sum(told) == len(CONTENT)
    fetch(server, tmp_path)
    assert server.asked == [""]  # not requested again


def test_a_truncating_server_is_resumed(server: FileServer, tmp_path: Path) -> None:
    server.cut = 150_000
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=150000-", "bytes=300000-", "bytes=450000-"]


def test_received_bytes_are_kept_for_the_next_call(server: FileServer, tmp_path: Path) -> None:
    server.stall = 30_000  # too little to count as progress
    began = time.perf_counter()
    with pytest.raises(UserError, match="nothing was received for 0.3 s.* 90,000 bytes received are kept"):
        fetch(server, tmp_path)
    assert time.perf_counter() - began < 30
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / ".a.bin.part").read_bytes() == CONTENT[:90_000]
    server.stall = None
    server.asked.clear()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=90000-"]
    assert left(tmp_path) == {"a.bin"}


def test_a_server_without_ranges_starts_again(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".a.bin.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_part_of_another_version_is_not_continued(server: FileServer, tmp_path: Path) -> None:
    server.cut = 1000
    with pytest.raises(UserError, match="ended after 3,000 of 600,000 bytes"):
        fetch(server, tmp_path)
    server.cut, server.tag, server.content = None, '"two"', CONTENT[::-1]
    assert fetch(server, tmp_path, sha256="").read_bytes() == CONTENT[::-1]


def test_a_part_of_another_file_is_detected_by_the_checksum(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(b"x" * 1000)  # the server continues from byte 1000
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", ""]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_as_long_as_the_file_or_longer(server: FileServer, tmp_path: Path, size: int) -> None:
    (tmp_path / ".a.bin.part").write_bytes((CONTENT + b"12345")[:size])
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is not what was expected: sha256 {SHA256}, not 0000"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert left(tmp_path) == set()
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    download(Download(f"{server.url}/a.bin", md5=md5), tmp_path / "a.bin", HASTE)
    with pytest.raises(UserError, match="md5"):
        download(Download(f"{server.url}/a.bin", md5="0" * 32), tmp_path / "b.bin", HASTE)


def test_redirects(server: FileServer, tmp_path: Path) -> None:
    server.cut = 300_000
    assert fetch(server, tmp_path, "/moved/a.bin").read_bytes() == CONTENT
    with pytest.raises(UserError, match="cannot fetch .*/loop"):
        download(Download(f"{server.url}/loop"), tmp_path / "b.bin", HASTE)


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/a.bin", "file:///etc/hostname", "FTP://x/a", "gopher://x/a"])
def test_redirects_to_other_schemes_are_rejected(server: FileServer, tmp_path: Path, to: str) -> None:
    server.away = to
    with pytest.raises(UserError, match="cannot fetch .*/away") as error:
        download(Download(f"{server.url}/away"), tmp_path / "b.bin", HASTE)
    assert to.partition(":")[0].lower() in str(error.value).lower() and len(server.asked) == 1
    assert left(tmp_path) == set()


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "9" * 40, "\u00b2", ""])
def test_an_invalid_length_is_a_one_line_error(server: FileServer, tmp_path: Path, length: str) -> None:
    server.length = length
    if not length:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
        return
    with pytest.raises(UserError, match="gave up on .*Content-Length is not a number"):
        fetch(server, tmp_path)


def test_a_compressed_answer_is_rejected(server: FileServer, tmp_path: Path) -> None:
    server.encoding = "gzip"
    with pytest.raises(UserError, match="the server sends it encoded as 'gzip'"):
        download(Download(f"{server.url}/a.bin"), tmp_path / "a.bin", HASTE)
    server.encoding = "identity"
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_not_retried(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.storage import download as downloading

    write = downloading._write

    def full(file: Any, block: bytes) -> None:
        if file.tell() > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, block)

    monkeypatch.setattr(downloading, "_write", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device; the bytes received are kept"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 and not (tmp_path / "a.bin").exists()
    monkeypatch.setattr(downloading, "_write", write)
    assert fetch(server, tmp_path).read_bytes() == CONTENT and server.asked[1].startswith("bytes=")


def test_status_codes(server: FileServer, tmp_path: Path) -> None:
    server.states = [503, 429]
    assert fetch(server, tmp_path).is_file()
    server.states = [404]
    with pytest.raises(UserError, match="404"):
        download(Download(f"{server.url}/b.bin"), tmp_path / "b.bin", HASTE)
    assert len(server.asked) == 4  # 404 is not asked again
    server.states = [503] * 3
    with pytest.raises(UserError, match="gave up on .* after 3 tries: 503"):
        download(Download(f"{server.url}/b.bin"), tmp_path / "b.bin", HASTE)
    assert left(tmp_path) == {"a.bin"}


def test_no_server_and_no_url(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"):
        download(Download("http://127.0.0.1:9/a.bin"), tmp_path / "a.bin", HASTE)
    with pytest.raises(UserError, match="only http"):
        download(Download(f"file://{tmp_path}/x"), tmp_path / "a.bin", HASTE)


def test_two_processes_do_not_write_the_same_part(server: FileServer, tmp_path: Path) -> None:
    server.stall = 1000

    def give_up() -> None:
        with contextlib.suppress(UserError):
            fetch(server, tmp_path)

    other = threading.Thread(target=give_up)
    other.start()
    while not (tmp_path / ".a.bin.part").exists():
        time.sleep(0.005)
    with pytest.raises(UserError, match="another process is fetching"):
        fetch(server, tmp_path)
    other.join()


def tar(path: Path, *members: tuple[str, bytes, str], kind: bytes = tarfile.REGTYPE) -> Path:
    """An archive of (name, content, link target)."""
    with tarfile.open(path, "w:gz") as file:
        for name, content, target in members:
            one = tarfile.TarInfo(name)
            one.size, one.linkname = len(content), target
            one.type = kind if target else tarfile.REGTYPE
            file.addfile(one, io.BytesIO(content))
    return path


SYMBOLIC, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "kind", "told"),
    [
        ([("../x", b"1", "")], b"", "points outside the folder"),
        ([("a/../../x", b"1", "")], b"", "points outside the folder"),
        ([("/tmp/x", b"1", "")], b"", "points outside the folder"),
        ([("..\\x", b"1", "")], b"", "points outside the folder"),
        ([("a", b"", "../x")], SYMBOLIC, "points outside the folder, to '../x'"),
        ([("a", b"", "/etc/passwd")], SYMBOLIC, "points outside the folder, to '/etc/passwd'"),
        ([("a", b"", "../x")], HARD, "points outside the folder, to '../x'"),
        ([("a", b"", "/etc/passwd")], HARD, "points outside"),
        ([("d/1", b"1", ""), ("a", b"", "d"), ("a/b", b"", "../../x")], SYMBOLIC, "points outside"),
        ([("a", b"", "b"), ("b", b"", "a")], SYMBOLIC, "is not in the archive"),
        ([("a", b"", "..")], SYMBOLIC, "points outside"),
        ([("a", b"", "..."), ("a/x", b"1", "")], SYMBOLIC, "name of another member"),
        ([("pipe", b"", "x")], tarfile.FIFOTYPE, "is not a file, a folder or a link"),
        ([("disk", b"", "x")], tarfile.BLKTYPE, "is not a file, a folder or a link"),
    ],
)
def test_archives_with_paths_outside_the_folder(tmp_path: Path, members: Any, kind: bytes, told: str) -> None:
    (tmp_path / "x").write_text("outside")
    archive = tar(tmp_path / "a.tar.gz", ("fine.txt", b"fine", ""), *members, kind=kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=told):
        unpack(archive, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "x").read_text() == "outside"


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("a", b"", str(tmp_path)), ("a/x", b"1", ""), kind=SYMBOLIC)
    with pytest.raises(UserError):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_links_within_the_archive_are_created(tmp_path: Path) -> None:
    symbolic = tar(tmp_path / "a.tar.gz", ("l/b", b"", "../d/1"), ("d/1", b"one", ""), kind=SYMBOLIC)
    unpack(symbolic, tmp_path / "out")
    assert (tmp_path / "out/l/b").read_bytes() == b"one" and (tmp_path / "out/l/b").is_symlink()
    hard = tar(tmp_path / "b.tar.gz", ("d/1", b"one", ""), ("e", b"", "d/1"), kind=HARD)
    unpack(hard, tmp_path / "out2")
    assert (tmp_path / "out2/e").read_bytes() == b"one"


def test_zip_files(tmp_path: Path) -> None:
    def made(name: str, link: bool = False) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            one = zipfile.ZipInfo(name)
            if link:
                one.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(one, "../outside" if link else "text")
        return tmp_path / "a.zip"

    unpack(made("a/b.txt"), tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_text() == "text"
    for name, link in (("../x", False), ("/x", False), ("a", True)):
        with pytest.raises(UserError, match="points outside"):
            unpack(made(name, link), tmp_path / "no")
    assert not (tmp_path / "no").exists() and not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_decompression_bombs(tmp_path: Path, kind: str) -> None:
    zeros = bytes(5_000_000)  # packed they are a few kB
    if kind == "tar":
        archive = tar(tmp_path / "bomb.tar.gz", ("zeros", zeros, ""))
    else:
        archive = tmp_path / "bomb.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros", zeros)
    assert archive.stat().st_size < 20_000
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        unpack(archive, tmp_path / "out", Bounds(size=1_000_000))
    many = tar(tmp_path / "many.tar.gz", *[(str(i), b"", "") for i in range(30)])
    with pytest.raises(UserError, match="more than 20 members"):
        unpack(many, tmp_path / "out", Bounds(members=20))
    assert not (tmp_path / "out").exists()


def test_damaged_archives(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar.gz", ("a", CONTENT, "")).read_bytes()
    for number, raw in enumerate((whole[: len(whole) // 2], b"<html>not here</html>", b"", b"PK\x03\x04" + whole)):
        (tmp_path / f"{number}.tar.gz").write_bytes(raw)
        with pytest.raises(Damaged, match="is damaged"):
            unpack(tmp_path / f"{number}.tar.gz", tmp_path / "out")
        assert not (tmp_path / "out").exists()
