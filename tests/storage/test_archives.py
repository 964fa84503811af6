"""Unpacking archives: bounds on headers, names and links; truncated and corrupt archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oodbench.errors import Damaged, UserError
from oodbench.storage.archives import unpack

HUGE = 100_000_000  # bytes, packed to a few hundred thousand
PEAK = 20_000_000


def header(name: str, kind: bytes, size: int) -> bytes:
    one = tarfile.TarInfo(name)
    one.type, one.size = kind, size
    return one.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


END = bytes(1024)
FILE = header("a.txt", tarfile.REGTYPE, 5) + padded(b"hello")


def long_name(kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    return header("././@LongLink", kind, HUGE) + padded(b"a" * HUGE) + FILE + END


def pax(kind: bytes = tarfile.XHDTYPE) -> bytes:
    record = f"{HUGE} comment=".encode()
    return header("pax", kind, HUGE) + padded(record + b"a" * (HUGE - len(record))) + FILE + END


def many_pax() -> bytes:
    """Global records, each within the bound: tarfile keeps them for all following members."""
    parts = []
    for i in range(200):
        value = b"a" * 500_000
        record = f" key{i}=".encode() + value + b"\n"
        record = str(len(record) + 6).encode() + record
        parts += [header("pax", tarfile.XGLTYPE, len(record)), padded(record), header(f"{i}", tarfile.REGTYPE, 0)]
    return b"".join(parts) + END


def sparse() -> bytes:
    """A sparse-file map with an endless chain of blocks."""
    one = tarfile.TarInfo("sparse")
    one.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(one.tobuf(tarfile.GNU_FORMAT))
    raw[482] = 1
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    block = (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0")
    return bytes(raw) + block * (HUGE // 512) + END


def sparse_in_pax() -> bytes:
    records = b"".join(
        str(len(text) + 3).encode() + b" " + text for text in (b"GNU.sparse.major=1\n", b"GNU.sparse.minor=0\n")
    )
    numbers = b"99999999999\n" + b"1\n" * (HUGE // 2)
    head = header("pax", tarfile.XHDTYPE, len(records)) + padded(records)
    return head + header("a.txt", tarfile.REGTYPE, len(numbers)) + padded(numbers) + END


BOMBS: list[Callable[[], bytes]] = [
    long_name,
    lambda: long_name(tarfile.GNUTYPE_LONGLINK),
    pax,
    lambda: pax(tarfile.XGLTYPE),
    many_pax,
    sparse,
    sparse_in_pax,
]


def refused(archive: Path, out: Path, told: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=told) as error:
            unpack(archive, out)
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()
    assert str(archive) in str(error.value) and len(str(error.value)) < 500
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_headers_are_bounded_before_they_are_read(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(gzip.compress(bomb(), 1))
    assert archive.stat().st_size < 2_000_000
    refused(archive, tmp_path / "out", "the headers of a member are longer than 1,048,576 bytes; it was not unpacked")


@pytest.mark.slow
def test_links_of_a_zip_file_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        one = zipfile.ZipInfo("a")
        one.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(one, b"a" * HUGE)
    refused(archive, tmp_path / "out", "the name or link of member 'a...' has 4,097 bytes, more than 4,096")


@pytest.mark.slow
def test_decompressing_is_bounded_in_memory(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    archive.write_bytes(lzma.compress(FILE + END, filters=filters))
    refused(archive, tmp_path / "out", "takes more than 268,435,456 bytes of memory to unpack")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a", b"x" * 1000)
    refused(tmp_path / "bomb.zip", tmp_path / "out", "member 'a' uses a compression method that is not supported")


def test_names_are_bounded(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(tarfile.TarInfo("b/" * 2100 + "c"))
    refused(tmp_path / "a.tar", tmp_path / "out", "has 4,201 bytes, more than 4,096")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_valid_archives_are_unpacked(compress: Callable[[bytes], bytes], form: int, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as file:
        for number in range(5):
            one = tarfile.TarInfo(f"{'long' * 20}/{'name' * 20}/ä{number}")
            one.size = 1000 * number
            file.addfile(one, io.BytesIO(bytes([number]) * one.size))
    (tmp_path / "a.tar.any").write_bytes(compress(raw.getvalue()))
    unpack(tmp_path / "a.tar.any", tmp_path / "out")
    found = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [path.read_bytes() for path in found] == [bytes([number]) * 1000 * number for number in range(5)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_archive_truncated_between_members_is_damaged(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """tarfile takes a damaged header and a missing end marker for the end.

    Without a check, half a dataset would be installed without an error.
    """
    other = header("b.txt", tarfile.REGTYPE, 5) + padded(b"hello")
    broken = bytearray(other)
    broken[0] ^= 1
    archive = tmp_path / "a.tar"
    for content in (FILE, FILE + other, FILE + bytes(broken) + other + END, FILE + other[:100]):
        archive.write_bytes(compress(content))
        with pytest.raises(Damaged, match="is damaged"):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    archive.write_bytes(compress(FILE + other + END))
    unpack(archive, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.txt", "b.txt"}


def test_a_link_through_an_unresolvable_path_is_rejected(tmp_path: Path) -> None:
    """os.path.realpath fails at 4,096 bytes and takes the target for one inside; the system resolves it outside."""
    depth, name = 16, "d" * 240
    short = [chr(ord("a") + i) for i in range(depth)]
    (tmp_path / "secret").write_text("outside")
    entries: list[tuple[str, bytes, str]] = []
    for i, letter in enumerate(short):
        entries.append(("/".join([name] * i + [letter]), tarfile.SYMTYPE, name))
    entries.append(("/".join([name] * depth), tarfile.DIRTYPE, ""))
    deep = "/".join([*short, "l" * 254])
    entries.append((deep, tarfile.SYMTYPE, "../" * depth))
    entries.append(("/".join([name] * depth + ["secret"]), tarfile.REGTYPE, ""))
    entries.append(("escape", tarfile.SYMTYPE, f"{deep}/../secret"))
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for path, kind, target in entries:
            one = tarfile.TarInfo(path)
            one.type, one.linkname = kind, target
            file.addfile(one)
    with pytest.raises(UserError, match="link 'escape' points outside the folder"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "secret").read_text() == "outside"
