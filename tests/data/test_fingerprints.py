"""Fingerprints: replaced images are detected in every kind of file before their embeddings are used or stored."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Dataset
from oodbench.data.checks.inspection import inspect_images
from oodbench.data.decode import DecodeConfig, batches
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import UserError
from oodbench.storage.store import Store

N = 4
Form = Callable[[Path, int], Dataset]


def fill(folder: Path, shade: int) -> Path:
    """Images with the same number of bytes for every shade, and the same times."""
    for i in range(N):
        path = folder / f"class {i % 2}" / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, i, 0)).save(path)
    return folder


def as_folder(place: Path, shade: int) -> Dataset:
    return catalogue.dataset(f"folder:{fill(place / 'photos', shade)}")


def as_list(place: Path, shade: int) -> Dataset:
    fill(place / "photos", shade)
    (place / "list.txt").write_text("".join(f"class {i % 2}/{i}.ppm {i % 2}\n" for i in range(N)))
    return catalogue.dataset(f"list:{place / 'list.txt'}@{place / 'photos'}")


def as_tar(place: Path, shade: int) -> Dataset:
    fill(place / "photos", shade)
    with tarfile.open(place / "set.tar", "w") as archive:
        archive.add(place / "photos", "")
    shutil.rmtree(place / "photos")
    return catalogue.dataset(f"tar:{place / 'set.tar'}")


def cells(shade: int) -> list[bytes]:
    return [f"P6 1 1 255\n{chr(65 + shade // 10)}{i}0".encode() for i in range(N)]


def as_parquet(place: Path, shade: int) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.table({"image": cells(shade), "label": [i % 2 for i in range(N)]})
    pq.write_table(whole, place / "set.parquet", row_group_size=3, compression="none")
    return catalogue.dataset(f"hf:{place / 'set.parquet'}")


def as_arrow(place: Path, shade: int) -> Dataset:
    import pyarrow as pa

    (place / "saved").mkdir(exist_ok=True)
    (place / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    whole = pa.table({"image": cells(shade), "label": [i % 2 for i in range(N)]})
    with (
        pa.OSFile(str(place / "saved" / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, whole.schema) as writer,
    ):
        writer.write_table(whole)
    return catalogue.dataset(f"hf:{place / 'saved'}")


def as_array(place: Path, shade: int) -> Dataset:
    with (place / "set.npy").open("r+b" if (place / "set.npy").exists() else "wb") as file:
        np.save(file, np.full((N, 8, 8, 3), shade, np.uint8))
    return catalogue.dataset(f"arrays:{place / 'set.npy'}")


def as_arrays(place: Path, shade: int) -> Dataset:
    np.savez(place / "set.npz", images=np.full((N, 8, 8, 3), shade, np.uint8), labels=np.arange(N) % 2)
    return catalogue.dataset(f"arrays:{place / 'set.npz'}")


def as_torchvision(place: Path, shade: int) -> Dataset:
    fill(place / "photos", shade)
    return Dataset("mine", "Mine", "torchvision", str(place / "photos"), source="ImageFolder")


FORMS = (as_folder, as_list, as_tar, as_parquet, as_arrow, as_array, as_arrays, as_torchvision)


def settle(place: Path) -> None:
    """Set one time for all files, so that a replacement has the size and time of the original."""
    for path in place.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def listed(dataset: Dataset, place: Path, strict: bool = False) -> ImageSet:
    return load_images(dataset, LoadOptions(place, Store(place.parent / "store"), strict=strict), labelled=False)


def decoded(found: ImageSet) -> list[int]:
    """One value per image, as read by a run."""

    def first(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.convert("RGB"))[0, 0, :1].reshape(1, 1, 1).copy())

    parts = batches(found, DecodeConfig(2, "skip"), 3, (0, len(found)), first)
    return [int(value) for part in parts if part.images is not None for value in part.images.flatten()]


def made(form: Form, tmp_path: Path, shade: int, name: str = "set") -> tuple[Dataset, Path]:
    place = tmp_path / name
    place.mkdir(exist_ok=True)
    dataset = form(place, shade)
    settle(place)
    return dataset, place


@pytest.mark.parametrize("form", FORMS)
def test_a_set_replaced_with_the_same_size_and_time_is_detected(form: Form, tmp_path: Path) -> None:
    dataset, place = made(form, tmp_path, 10)
    before, strict = listed(dataset, place), listed(dataset, place, strict=True)
    assert listed(dataset, place).fingerprint == before.fingerprint
    values = decoded(before)
    made(form, tmp_path, 90)
    after = listed(dataset, place)
    assert after.digest == before.digest, "the test replaces files by others of the same size and time"
    assert after.fingerprint != before.fingerprint and decoded(after) != values
    assert after.part_fingerprint(0, 2) != before.part_fingerprint(0, 2)
    assert listed(dataset, place, strict=True).digest != strict.digest


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_images_replaced_after_listing_are_rejected(form: Form, strict: bool, tmp_path: Path) -> None:
    dataset, place = made(form, tmp_path, 10)
    found = listed(dataset, place, strict)
    made(form, tmp_path, 90)
    if strict and form is as_arrays:  # an .npz is held in memory since it was listed
        assert decoded(found) == [10] * N
        return
    with pytest.raises(UserError, match=r"changed after it was listed; run again") as error:
        decoded(found)
    assert str(place) in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_copies_have_one_digest(form: Form, tmp_path: Path) -> None:
    """Copies in other places with other times have the same row digest, but never share stored embeddings."""
    dataset, place = made(form, tmp_path, 10)
    other = tmp_path / "elsewhere" / "copy"
    other.mkdir(parents=True)
    copy = form(other, 10)
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, ns=(10**17, 10**17 + number))
    for strict in (False, True):
        here, there = listed(dataset, place, strict), listed(copy, other, strict)
        assert here.digest == there.digest and (strict or here.fingerprint != there.fingerprint)
    assert listed(dataset, place).digest != listed(dataset, place, strict=True).digest


def test_archives_of_the_same_images_in_another_order_have_one_digest(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 10)
    names = [path.relative_to(photos).as_posix() for path in photos.rglob("*.ppm")]
    digests = set()
    for number, order in enumerate((sorted(names), sorted(names, reverse=True))):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for name in order:
                archive.add(tmp_path / "photos" / name, name)
        for strict in (False, True):
            found = listed(catalogue.dataset(f"tar:{tmp_path / f'{number}.tar'}"), tmp_path, strict)
            assert found.names == tuple(order)
            digests.add((strict, found.digest))
    for strict in (False, True):  # nor does it matter that a folder holds them
        digests.add((strict, listed(catalogue.dataset(f"folder:{tmp_path / 'photos'}"), tmp_path, strict).digest))
    assert len(digests) == 2


def test_content_digests_are_cached_while_files_do_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.data import imageset
    from oodbench.data.imageset import ImageFiles

    dataset, place = made(as_folder, tmp_path, 10)
    reads: list[str] = []
    read = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, name: reads.append(name) or read(self, name))  # type: ignore[func-returns-value]
    found = listed(dataset, place, strict=True)
    assert len(reads) == N
    listed(dataset, place, strict=True)
    assert len(reads) == 2 * N, "files changed a moment ago: the clock of their file system may be too coarse"
    monkeypatch.setattr(imageset, "_SETTLED", -1)
    assert listed(dataset, place, strict=True).digest == listed(dataset, place, strict=True).digest == found.digest
    assert len(reads) == 3 * N
    made(as_folder, tmp_path, 90)  # the same sizes and times
    assert listed(dataset, place, strict=True).digest != found.digest and len(reads) == 4 * N


def test_content_digests_of_changing_files_are_not_cached(tmp_path: Path) -> None:
    dataset, place = made(as_folder, tmp_path, 10)
    found = listed(dataset, place)
    made(as_folder, tmp_path, 90)
    with pytest.raises(UserError, match="changed after it was listed"):
        found.by_content(Store(tmp_path / "store"))
    assert not list(Store(tmp_path / "store").entries())


def test_a_shared_store_has_embeddings_by_content_only(tmp_path: Path) -> None:
    """Rows do not depend on it; embeddings that only this machine can identify stay on this machine."""
    from oodbench.data.subsets import union
    from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob
    from oodbench.storage.shared import SharedStore

    dataset, place = made(as_folder, tmp_path, 10)
    shared = SharedStore(tmp_path / "store", f"file://{tmp_path}/bucket")
    plain = listed(dataset, place)
    found = load_images(dataset, LoadOptions(place, shared), labelled=False)
    assert found.content and not found.local and found.digest == plain.digest != found.by_content().fingerprint
    both = union(dataset, [found, dataclasses.replace(found, dataset=dataclasses.replace(dataset, name="b"))])
    assert (
        both.digest
        == union(dataset, [plain, dataclasses.replace(plain, dataset=both.origins[1].source.dataset)]).digest
    )
    assert found.select([1]).digest == plain.select([1]).digest and found.limit(2).digest == plain.limit(2).digest
    config, reading = EmbeddingConfig("encoder", "fp32", 2), DecodeConfig(1, "stop")
    assert ExtractionJob(found, config, reading, shared).store is shared
    own = ExtractionJob(plain, config, reading, shared).store
    assert type(own) is Store and own.root == shared.root
    assert not any(path.is_file() for path in (tmp_path / "bucket").rglob("*")), "nor are digests by size and time sent"


def test_a_temporarily_exchanged_folder_is_detected(tmp_path: Path) -> None:
    dataset, place = made(as_folder, tmp_path, 10)
    _, other = made(as_folder, tmp_path, 90, "other")
    found = listed(dataset, place)
    right = decoded(found)
    place.rename(tmp_path / "aside")
    other.rename(place)
    with pytest.raises(UserError, match=r"0\.ppm changed after it was listed"):
        decoded(found)
    with pytest.raises(UserError, match="changed after it was listed"):  # nor is what `datasets check` sees of it kept
        inspect_images(found, Store(tmp_path / "looks"))
    assert not list(Store(tmp_path / "looks").entries())
    place.rename(other)
    (tmp_path / "aside").rename(place)
    assert decoded(found) == right and listed(dataset, place).fingerprint == found.fingerprint


def test_links_are_identified_by_their_targets(tmp_path: Path) -> None:
    """Links to files of equal size and time, as in deduplicated stores, are redirected to other files."""
    dataset, place = made(as_folder, tmp_path, 10)
    _, other = made(as_folder, tmp_path, 90, "other")
    first = Path("photos/class 0/0.ppm")
    (place / first).rename(tmp_path / "held.ppm")
    (place / first).symlink_to(tmp_path / "held.ppm")
    before = listed(dataset, place)
    (place / first).unlink()
    (place / first).symlink_to(other / first)
    after = listed(dataset, place)
    assert after.digest == before.digest and after.fingerprint != before.fingerprint
    with pytest.raises(UserError, match=r"0\.ppm changed after it was listed"):
        before.read(0)


def test_other_machines_compare_sizes_and_times_only(tmp_path: Path) -> None:
    """A copy that keeps its times (`rsync -t`) on another node has other inodes."""
    dataset, place = made(as_folder, tmp_path, 10)
    found = dataclasses.replace(listed(dataset, place), host="another")
    shutil.copytree(place, tmp_path / "copy")
    shutil.rmtree(place)
    (tmp_path / "copy").rename(place)
    settle(place)
    assert len(decoded(found)) == N
    os.utime(place / "photos/class 0/0.ppm")
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(found)


def test_a_file_truncated_after_listing_is_not_a_broken_image(tmp_path: Path) -> None:
    """With --on-error skip, the omission of a broken image is stored; a file that is being written must not count."""
    dataset, place = made(as_folder, tmp_path, 10)
    found = listed(dataset, place)
    os.truncate(place / "photos/class 0/0.ppm", 20)
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(found)


def test_rows_have_the_fingerprint_of_their_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": cells(10)}), tmp_path / "set" / f"{number}.parquet")
    found = listed(catalogue.dataset(f"hf:{tmp_path / 'set'}"), tmp_path)
    os.utime(tmp_path / "set" / "1.parquet")
    again = listed(catalogue.dataset(f"hf:{tmp_path / 'set'}"), tmp_path)
    same = [a == b for a, b in zip(found.fingerprints, again.fingerprints, strict=True)]
    assert same == [True] * N + [False] * N + [True] * N


def test_a_dataset_of_the_hub_is_identified_by_its_cache_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint of its library does not change when a cached file is replaced."""
    import sys
    from types import SimpleNamespace

    import pyarrow as pa

    (tmp_path / "set").mkdir()
    cache = tmp_path / "cached.arrow"
    cache.write_bytes(b"x" * 100)
    os.utime(cache, ns=(10**18, 10**18))

    def load(name: str, split: str | None) -> object:
        whole = pa.table({"image": cells(10), "label": [i % 2 for i in range(N)]})
        data = SimpleNamespace(table=whole)
        return SimpleNamespace(data=data, _fingerprint="abc", cache_files=[{"filename": str(cache)}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    before = listed(catalogue.dataset("hf:owner/none-such"), tmp_path / "set")
    assert len(decoded(before)) == N
    cache.write_bytes(b"y" * 100)
    os.utime(cache, ns=(10**18, 10**18))
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(before)
    after = listed(catalogue.dataset("hf:owner/none-such"), tmp_path / "set")
    assert after.digest == before.digest and after.fingerprint != before.fingerprint and len(decoded(after)) == N


def test_a_replaced_copy_of_a_url_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.storage.remote import cached_path

    monkeypatch.setenv("OODBENCH_STORE", str(tmp_path / "store"))
    _, place = made(as_tar, tmp_path, 10)
    url = f"file://{place}/set.tar"
    before = listed(catalogue.dataset(f"tar:{url}"), tmp_path)
    assert decoded(before) == [10] * N and not before.local, "it means the same on other machines"
    made(as_tar, tmp_path, 90)
    shutil.copyfile(place / "set.tar", cached_path(url))
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(before)
    after = listed(catalogue.dataset(f"tar:{url}"), tmp_path)
    assert after.fingerprint != before.fingerprint and decoded(after) == [90] * N


def test_reopened_sources_are_compared_with_the_listing(tmp_path: Path) -> None:
    """A worker on Ray lists a torchvision folder again: it must be the folder that the driver listed."""
    from oodbench.distributed.payload import LazySource

    dataset, place = made(as_torchvision, tmp_path, 10)
    found = listed(dataset, place)
    again = dataclasses.replace(found, source=LazySource(dataset, place, tmp_path / "store"))
    assert decoded(again) == [10] * N
    later = LazySource(dataclasses.replace(dataset, title="listed later"), place, tmp_path / "store")
    made(as_torchvision, tmp_path, 90)
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(again)
    with pytest.raises(UserError, match="changed after it was listed"):
        decoded(dataclasses.replace(found, source=later))


def test_a_shard_changed_before_download_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from oodbench.storage import remote as reaching
    from oodbench.training import captions_tar as shards

    def pack(shade: int) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, content in (("0.ppm", cells(shade)[0]), ("0.txt", b"a photo")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def fetch(url: str, place: Path) -> Path:
        pack(90)  # between the request for the fingerprint and the download
        return reaching.fetch(url, place)

    pack(10)
    url, store = f"file://{tmp_path}/a.tar", Store(tmp_path / "store")
    (part,) = shards.read_shards(url, store)
    pack(10)
    (again,) = shards.read_shards(url, store)
    assert again.listing.fingerprint != part.listing.fingerprint
    monkeypatch.setattr(shards, "fetch", fetch)
    with pytest.raises(UserError, match=r"a\.tar changed after they were listed; run again"):
        list(shards.read_shards(url, Store(tmp_path / "another")))


def test_inodes_are_compared_only_where_they_are_stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshfs and similar file systems may assign a new inode to the same file."""
    from oodbench.storage import fingerprints as entry
    from oodbench.storage.fingerprints import copied_part, file_fingerprint, portable_part

    file = tmp_path / "file"
    file.touch()
    stat = file.stat()
    number = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"
    lines = f"21 1 0:99999 / /proc rw - proc proc rw\n22 1 {number} / /mnt rw,noatime shared:1 - KIND host:/x rw\n"
    kept = {"ext4": True, "nfs4": True, "overlay": True, "fuse.sshfs": False, "fuse": False, "cifs": False}
    for kind, keeps in kept.items():
        monkeypatch.setattr(Path, "read_text", lambda self, kind=kind, **_: lines.replace("KIND", kind))
        entry.file_system_type.cache_clear()
        assert entry.file_system_type(stat.st_dev) == kind
        assert file_fingerprint(file).endswith(f":{stat.st_ino}" if keeps else ":0")
        assert entry.file_identity(file)["inode"] == (stat.st_ino if keeps else 0)
        assert portable_part(file_fingerprint(file)) == str(stat.st_size)
        assert copied_part(file_fingerprint(file)) == f"{stat.st_size}\n{stat.st_mtime_ns}"
    monkeypatch.undo()
    entry.file_system_type.cache_clear()
