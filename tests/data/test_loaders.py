"""Loaders: the same images from every kind of place have the same pixels, labels and errors."""

from __future__ import annotations

import dataclasses
import gzip
import http.server
import io
import json
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data import load
from oodbench.data import overlap as sets
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.data.loaders.imagelist import read_list
from oodbench.data.loaders.tar import Member, expand_pattern, list_members, read_member
from oodbench.errors import Missing, UserError
from oodbench.storage.store import Store, default_root

LISTS = {
    "test_imagenet": 45_000, "val_imagenet": 5_000, "test_ssb_hard": 49_000, "test_ninco": 5_879,
    "test_inaturalist": 10_000, "test_textures": 5_160, "test_openimage_o": 15_869, "val_openimage_o": 1_763,
    "test_imagenet_v2": 10_000, "test_imagenet_r": 30_000, "test_imagenet_c": 10_000,
}  # fmt: skip


def listed(dataset: str | Dataset, labelled: bool = False, data: Path = Path(), strict: bool = False) -> ImageSet:
    one = catalogue.dataset(dataset) if isinstance(dataset, str) else dataset
    return load_images(one, LoadOptions(data, Store(default_root()), strict=strict), labelled=labelled)


def pixels(found: ImageSet) -> list[Any]:
    """Every image as RGB, read by threads as in a run."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda i: np.asarray(found.read(i).convert("RGB")), range(len(found))))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """Four classes of ten real images of 128x128 pixels."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for number, source in enumerate(sorted((shared / "data/Places/images").iterdir())[:40]):
        target = root / f"class {number // 10}" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return root


def as_list(photos: Path, out: Path) -> str:
    found = listed(f"folder:{photos}", labelled=True)
    lines = [f"{name} {label}" for name, label in zip(found.names, found.labels, strict=True)]
    (out / "test.txt").write_text("\n".join(lines))
    return f"list:{out / 'test.txt'}@{photos}"


def as_tar(photos: Path, out: Path) -> str:
    with tarfile.open(out / "plain.tar", "w") as archive:
        for path in sorted(photos.rglob("*.jpg")):
            archive.add(path, path.relative_to(photos).as_posix())
    return f"tar:{out / 'plain.tar'}"


def as_shards(photos: Path, out: Path) -> str:
    """webdataset: four shards of key.jpg with key.cls and a caption."""
    found = listed(f"folder:{photos}", labelled=True)
    for shard in range(4):
        with tarfile.open(out / f"part-{shard:03}.tar", "w") as archive:
            for i in range(shard * len(found) // 4, (shard + 1) * len(found) // 4):
                image = (photos / found.names[i]).read_bytes()
                for ending, content in (("jpg", image), ("cls", str(found.labels[i]).encode()), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{i:05}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"tar:{out}/part-{{000..003}}.tar"


def table(photos: Path) -> Any:
    import pyarrow as pa

    found = listed(f"folder:{photos}", labelled=True)
    images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in found.names]
    about = {"info": {"features": {"label": {"names": list(found.folders), "_type": "ClassLabel"}}}}
    made = pa.table({"image": images, "label": pa.array(found.labels), "id": [str(i) for i in range(len(images))]})
    return made.replace_schema_metadata({"huggingface": json.dumps(about)})


def as_parquet(photos: Path, out: Path) -> str:
    import pyarrow.parquet as pq

    pq.write_table(table(photos), out / "test.parquet", row_group_size=7)
    return f"hf:{out / 'test.parquet'}"


def as_saved(photos: Path, out: Path) -> str:
    """The output of Hugging Face's save_to_disk: a folder with arrow streams per split."""
    import pyarrow as pa

    (out / "saved/test").mkdir(parents=True)
    (out / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    whole = table(photos)
    for part, rows in enumerate((slice(0, 25), slice(25, len(whole)))):
        piece = whole.slice(rows.start, rows.stop - rows.start)
        with pa.OSFile(str(out / f"saved/test/data-{part:05}-of-00002.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, piece.schema) as writer:
                writer.write_table(piece)
    return f"hf:{out / 'saved'}"


def as_arrays(photos: Path, out: Path) -> str:
    found = listed(f"folder:{photos}", labelled=True)
    images = np.stack([np.asarray(found.read(i).convert("RGB")) for i in range(len(found))])
    np.savez(out / "images.npz", images=images, labels=found.labels[:, None].astype(np.uint8))
    return f"arrays:{out / 'images.npz'}"


FORMS = (as_list, as_tar, as_shards, as_parquet, as_saved, as_arrays)


@pytest.mark.parametrize("form", FORMS)
def test_every_loader_gives_the_same_images(photos: Path, tmp_path: Path, form: Callable[[Path, Path], str]) -> None:
    reference = form(photos, tmp_path)
    expected = listed(f"folder:{photos}", labelled=True)
    for labelled in (True, False):
        found = listed(reference, labelled)
        assert len(found) == found.total == 40
        assert found.labels.tolist() == (expected.labels.tolist() if labelled else [-1] * 40)
        assert len(found.folders) == (4 if labelled else 0)
        for one, other in zip(pixels(found), pixels(expected), strict=True):
            assert np.array_equal(one, other)
    again = listed(reference)
    assert (found.digest, found.names) == (again.digest, again.names)
    strict = listed(reference, strict=True)
    assert strict.content and len(set(strict.fingerprints)) == 40 and strict.digest != found.digest
    assert len(found.limit(7)) == 7 and found.limit(7).read(1).size == (128, 128)


def test_torchvision_datasets_are_read(photos: Path, tmp_path: Path) -> None:
    one = Dataset("mine", "Mine", "torchvision", "photos", source="ImageFolder")
    found = listed(one, labelled=True, data=photos.parent)
    expected = listed(f"folder:{photos}", labelled=True)
    assert found.labels.tolist() == expected.labels.tolist() and found.folders == expected.folders == found.named
    assert all(np.array_equal(a, b) for a, b in zip(pixels(found), pixels(expected), strict=True))
    assert len(set(listed(one, data=photos.parent, strict=True).fingerprints)) == 40
    with pytest.raises(Missing, match=r"dataset 'svhn' was not found at \$OODBENCH_DATA/svhn"):
        listed("svhn", data=tmp_path)
    (tmp_path / "svhn").mkdir()
    with pytest.raises(Missing, match=r"torchvision's SVHN says: "):
        listed("svhn", data=tmp_path)
    with pytest.raises(UserError, match="no dataset 'CIFAR11'; did you mean 'CIFAR10'"):
        listed(Dataset("x", "X", "torchvision", "svhn", source="CIFAR11"), data=tmp_path)


def test_splits_in_one_folder_are_distinguished(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both number images from 0 in the same files: their embeddings must not be confused."""
    import torchvision.datasets as known

    class Halves(known.ImageFolder):  # type: ignore[misc]
        def __init__(self, root: Path, split: str) -> None:
            super().__init__(root)

    monkeypatch.setattr(known, "Halves", Halves, raising=False)
    train, test = (
        listed(Dataset("mine", "Mine", "torchvision", "photos", source="Halves", split=split), data=photos.parent)
        for split in ("train", "test")
    )
    assert train.names == test.names and train.digest != test.digest


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("ImageFolder", "test", "ImageFolder has no splits; remove 'test'"),
        ("MNIST", "validation", "MNIST has no split 'validation'; it has train and test"),
        ("CocoDetection", "", "CocoDetection also needs annFile"),
        ("FakeData", "", "FakeData does not read a folder"),
    ],
)
def test_a_split_that_torchvision_does_not_know_is_refused(photos: Path, source: str, split: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        listed(Dataset("x", "X", "torchvision", "photos", source=source, split=split), data=photos.parent)


def test_arrays_in_one_file_are_distinguished(tmp_path: Path) -> None:
    """Two splits of a file are two sets, which may be ID and OOD; the same array is the same images."""
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    np.savez(tmp_path / "two.npz", train_images=images[0], test_images=images[1], train_labels=np.array([0, 1, -1]))
    train, test = (Dataset(n, n, "arrays", str(tmp_path / "two.npz"), split=n) for n in ("train", "test"))
    assert listed(train).names == listed(test).names and listed(train).digest != listed(test).digest
    sets.check_folders(listed(train), [listed(test)])
    with pytest.raises(UserError, match="'train' and 'again' share images"):
        sets.check_folders(listed(train), [listed(dataclasses.replace(train, name="again"))])
    with pytest.raises(UserError, match=r"needs a class for every image, but image 2 of .*two\.npz has none"):
        listed(train, labelled=True)
    with (tmp_path / "bare.bin").open("wb") as file:
        np.save(file, images[0])
    assert len(listed(f"arrays:{tmp_path / 'bare.bin'}")) == 3


def test_archives_in_one_folder_are_not_one_set(photos: Path, tmp_path: Path) -> None:
    as_shards(photos, tmp_path)
    first, last, over = (listed(f"tar:{tmp_path}/part-{{{n}}}.tar") for n in ("000..001", "002..003", "001..002"))
    third = listed(f"tar:{tmp_path}/part-003.tar")
    sets.check_folders(first, [last])
    for id_set, ood in ((first, over), (over, last), (last, third), (third, last)):
        with pytest.raises(UserError, match="share images"):
            sets.check_folders(id_set, [ood])


def test_splits_of_tables_are_found_by_file_and_folder(photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    whole = table(photos)
    for name, rows in (("default/test", 10), ("default/train", 30)):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(whole.slice(0 if rows == 10 else 10, rows), tmp_path / name / "0000.parquet", row_group_size=7)
    one = Dataset("mine", "Mine", "parquet", str(tmp_path))
    train, test = (listed(dataclasses.replace(one, name=n, split=n)) for n in ("train", "test"))
    assert (len(train), len(test), len(listed(one))) == (30, 10, 10)
    sets.check_folders(train, [test])
    with pytest.raises(UserError, match="share images"):
        sets.check_folders(test, [listed(one)])
    with pytest.raises(UserError, match="belongs to split 'validation'"):
        listed(dataclasses.replace(one, split="validation"))


def test_a_saved_dataset_is_read_without_its_caches(photos: Path, tmp_path: Path) -> None:
    reference = as_saved(photos, tmp_path)
    saved = tmp_path / "saved/test"
    shutil.copyfile(saved / "data-00000-of-00002.arrow", saved / "cache-1.arrow")
    assert len(listed(reference)) == 40
    for text, said in (("{}", "lists no data files"), ("{", "state.json cannot be read")):
        (saved / "state.json").write_text(text)
        with pytest.raises(UserError, match=said):
            listed(reference)
    state = {"_data_files": [{"filename": "data-00001-of-00002.arrow"}], "split": "test"}
    (saved / "state.json").write_text(json.dumps(state))
    assert len(listed(reference)) == 15
    with pytest.raises(UserError, match="has no split 'train'; it has test"):
        listed(Dataset("x", "X", "parquet", str(saved), split="train"))
    for text, said in (("{", "dataset_dict.json cannot be read"), ('{"splits": []}', "names no splits")):
        (tmp_path / "saved/dataset_dict.json").write_text(text)
        with pytest.raises(UserError, match=said):
            listed(reference)


def test_rows_without_image_or_label_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array([{"bytes": b"x"}, {"bytes": None}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": images, "label": pa.array([0, None], pa.int64())}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="but row 1 of .* has none"):
        listed(f"hf:{tmp_path / 'x.parquet'}", labelled=True)
    with pytest.raises(UserError, match=r"x\.parquet cannot be read: row 1 holds no image"):
        listed(f"hf:{tmp_path / 'x.parquet'}", strict=True)


@pytest.mark.slow
def test_cifar_as_torchvision_lays_it_out(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real images as pickled batches; and the same set as the archive `test.tar`."""
    from torchvision.datasets import CIFAR100

    archive = shared / "data/cifar/cifar100-test.tar"
    packed = listed(f"tar:{archive}", labelled=True)
    some = packed.select(range(0, 10_000, 50))
    rows = np.stack([np.asarray(some.read(i)).transpose(2, 0, 1).ravel() for i in range(len(some))])
    root = tmp_path / "cifar100/cifar-100-python"
    root.mkdir(parents=True)
    (root / "test").write_bytes(pickle.dumps({"data": rows, "fine_labels": some.labels.tolist()}))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": list(packed.folders)}))
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR100, "_load_meta", lambda self: setattr(self, "classes", list(packed.folders)))
    found = listed("cifar100", labelled=True, data=tmp_path)
    assert len(found) == 200 and found.labels.tolist() == some.labels.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(pixels(found), pixels(some), strict=True))
    (tmp_path / "cifar100/test.tar").symlink_to(archive)
    whole = listed("cifar100", labelled=True, data=tmp_path)
    assert len(whole) == 10_000 and whole.labels.tolist() == packed.labels.tolist()
    assert len(load.class_names_of(whole).lines) == 100


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("list:none.txt", "its image list .*none.txt does not exist"),
        ("list:empty.txt", "image list .*empty.txt is empty"),
        ("list:outside.txt", "line 1: '../x.png' leaves the list's root"),
        ("list:half.txt", "line 2: the label of 'b.png 0.5' is not an integer"),
        ("list:dashes.txt", r"no .*b\.png --5"),
        ("list:nul.txt", "line 1: .* is not a path"),
        ("list:gone.txt", r"holds no images|gone\.png"),
        ("list:partly.txt", r"gone\.png does not exist \(1 of 2 images"),
        ("tar:none.tar", "was not found at .*none.tar"),
        ("tar:none-*.tar", "no file matches"),
        ("tar:a{1.tar", "braces do not match"),
        ("tar:a{x..y}.tar", "is not a range of numbers"),
        ("tar:hollow.tar", "holds no images"),
        ("hf:none.parquet", "is not a folder or parquet file here; .*pip install"),
        ("hf:torn.parquet", "torn.parquet cannot be read"),
        ("hf:empty", "holds no .parquet or .arrow file"),
        ("hf:words.parquet", r"no column of .* holds images .*; it has word \(string\)"),
        ("arrays:none.npz", "was not found at"),
        ("arrays:torn.npz", "torn.npz cannot be read"),
        ("arrays:floats.npz", r"must hold one array of uint8 images .*it holds x float64\[2, 3\]"),
        ("list:", "list: needs a file"),
        ("tar:", "tar: needs a file or pattern"),
    ],
)
def test_what_cannot_be_listed_is_named(
    reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("b.png")
    for name, text in (
        ("empty", ""), ("outside", "../x.png 1"), ("half", "b.png 0\nb.png 0.5"), ("gone", "gone.png 1"),
        ("partly", "b.png 1\ngone.png 1"), ("dashes", "b.png --5"), ("nul", "b\0.png 1"),
    ):  # fmt: skip
        Path(f"{name}.txt").write_text(text)
    tarfile.open("hollow.tar", "w").close()
    Path("torn.parquet").write_bytes(b"PAR1 no table")
    Path("torn.npz").write_bytes(b"PK no archive")
    Path("empty").mkdir()
    pq.write_table(pa.table({"word": ["a"]}), "words.parquet")
    np.savez("floats.npz", x=np.zeros((2, 3)))
    with pytest.raises(UserError, match=said):
        listed(reference)


def test_an_id_set_needs_labels(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "bare.txt").write_text("\n".join(str(p.relative_to(photos)) for p in photos.rglob("*.jpg")))
    reference = f"list:{tmp_path / 'bare.txt'}@{photos}"
    assert len(listed(reference)) == 40  # a path with spaces, no label
    with pytest.raises(UserError, match=r"an ID set needs a class for every image, but class \d/.*bare.txt has none"):
        listed(reference, labelled=True)
    numbers = listed(as_list(photos, tmp_path), labelled=True)
    with pytest.raises(UserError, match="its 4 classes are numbers; name them in that order with --classes"):
        load.class_names_of(numbers)
    assert load.class_names_of(listed(as_parquet(photos, tmp_path), labelled=True)).lines[0] == "class 0"
    assert load.class_names_of(listed(as_tar(photos, tmp_path), labelled=True)).lines[3] == "class 3"


def test_openood_s_lists_are_those_of_the_catalogue(shared: Path) -> None:
    known = {one.digest: one for one in catalogue.datasets().values() if one.digest != "unknown"}
    for name, count in LISTS.items():
        found = read_list(shared / f"data/lists/openood/{name}.txt.gz")
        assert len(found.names) == count == len(set(found.names))
        if name != "test_inaturalist":  # the set of the MOS protocol, which is read without a list
            assert Path(known[found.digest].list).name == f"{name}.txt" and known[found.digest].count == count
    assert len(known) == len(LISTS) - 1
    test, val = (set(read_list(shared / f"data/lists/openood/{n}_imagenet.txt.gz").names) for n in ("test", "val"))
    assert len(test | val) == 50_000


def test_a_list_is_the_protocol_s_or_refused(shared: Path, tmp_path: Path) -> None:
    place = tmp_path / "benchmark_imglist/imagenet/test_textures.txt"
    place.parent.mkdir(parents=True)
    shutil.copytree(shared / "data/dtd", tmp_path / "dtd")
    with pytest.raises(
        Missing, match="dataset 'textures-5160': its image list .* does not exist\n  oodbench datasets get textures"
    ):
        listed("textures-5160", data=tmp_path)
    raw = gzip.decompress((shared / "data/lists/openood/test_textures.txt.gz").read_bytes())
    place.write_bytes(raw.replace(b"\n", b"\r\n"))  # line endings do not matter
    found = listed("textures-5160", data=tmp_path)
    assert 0 < len(found) < 400 and len(found) + len(found.absent) == 5160
    assert found.origins[0].source.dataset.name == "textures" and found.folder == tmp_path / "dtd/images"
    wanted = [line.split()[0].removeprefix("texture/") for line in raw.decode().splitlines()]
    assert [name for name in wanted if (tmp_path / "dtd/images" / name).is_file()] == list(found.names)
    place.write_bytes(raw + b"texture/banded/banded_0002.jpg -1\n")
    with pytest.raises(UserError, match=r"\(5161 lines, sha256 .*\) is not the list of the protocol"):
        listed("textures-5160", data=tmp_path)


def test_patterns_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "bac":
        (tmp_path / f"{name}.tar").touch()
    assert expand_pattern("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expand_pattern("{a,b}-{1..2}.tar") == ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]
    assert expand_pattern("[ab].tar") == ["a.tar", "b.tar"] and expand_pattern("*.tar") == ["a.tar", "b.tar", "c.tar"]
    assert expand_pattern("http://x/{0..1}.tar") == ["http://x/0.tar", "http://x/1.tar"]
    assert expand_pattern("c.tar::a.tar") == ["c.tar", "a.tar"]


def test_a_damaged_archive_is_named_with_its_last_good_member(shared: Path, tmp_path: Path) -> None:
    whole = (shared / "data/cifar/cifar10-test.tar").read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    good = list_members(path)
    assert len(good) == 10_000 and good[0].name == "airplane/0000.jpg"
    at, last = good[50].offset, good[49].name

    def refused(content: bytes, said: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            list_members(path)

    for end in (at - 512, at - 300, at, at + 100):  # before a header, within it, behind it, within its file
        refused(whole[:end], rf"x\.tar is truncated or corrupt after member ({last}|{good[50].name})")
    damaged = bytearray(whole)
    damaged[at - 500] ^= 255  # in a header, whose checksum finds it
    refused(bytes(damaged), f"truncated or corrupt after member {last}")
    refused(b"", "before its first member")
    refused(b"no archive at all" * 100, "before its first member")
    refused(gzip.compress(whole[:10_000]), "is compressed, so it does not allow random access; unpack it")
    path.write_bytes(whole[: at + 10])
    with pytest.raises(UserError, match=rf"x\.tar ends within member {good[50].name}"):
        read_member(path, good[50])
    with pytest.raises(UserError, match=r"y\.tar cannot be read: No such file"):
        read_member(tmp_path / "y.tar", Member("a", 0, 1))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local server of a folder."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_port}", root
        one.shutdown()
        thread.join()


def test_archives_behind_urls_are_fetched_once(
    server: tuple[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = server
    monkeypatch.setenv("OODBENCH_STORE", str(tmp_path / "store"))
    as_shards(photos, root)
    reference = f"tar:{address}/part-{{000..003}}.tar"
    found = listed(reference, labelled=True)
    expected = listed(f"folder:{photos}", labelled=True)
    assert found.labels.tolist() == expected.labels.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(pixels(found), pixels(expected), strict=True))
    shutil.rmtree(root)
    root.mkdir()
    assert listed(reference, labelled=True).digest == found.digest
    with pytest.raises(UserError, match=r"cannot fetch http.*/none\.tar: "):
        listed(f"tar:{address}/none.tar")
    assert not list((tmp_path / "store").rglob("*.part"))
