"""One rule per question for all loaders: the same images in every kind of place have the same classes or refusal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodbench import catalogue, sets
from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.images import Listing, listing
from oodbench.store import Store

Tree = Mapping[str, bytes]


def listed(dataset: str | Dataset, labelled: bool = True, classes: str = "") -> Listing:
    one = catalogue.dataset(dataset, classes) if isinstance(dataset, str) else dataset
    return listing(one, Path(), labelled=labelled, strict=False, store=Store(Path("/nowhere")))


def colour(number: int) -> bytes:
    """A PNG file of 8x6 pixels of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 7, 9)).save(file, "png")
    return file.getvalue()


def tree(names: Sequence[str]) -> dict[str, bytes]:
    """A different image for every name that is not that of a text."""
    return {name: colour(i) if not name.endswith((".txt", ".json")) else b"a text" for i, name in enumerate(names)}


def seen(found: Listing) -> list[tuple[str, int]]:
    """(class name, colour) of every image, sorted: what a run would take the images for."""
    names = found.named or found.folders
    colours = [int(np.asarray(found.read(i).convert("RGB"))[0, 0, 0]) for i in range(len(found))]
    return sorted(
        (names[label] if label >= 0 else "", colour) for label, colour in zip(found.labels, colours, strict=True)
    )


def kinds(found: Listing) -> list[str]:
    return [one.kind for one in found.remarks]


# Trees: the class is a folder


def as_folder(files: Tree, out: Path) -> str:
    for name, content in files.items():
        (out / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "tree" / name).write_bytes(content)
    return f"folder:{out / 'tree'}"


def packed(path: Path, members: Sequence[tuple[str, bytes | tuple[bytes, str]]]) -> str:
    """A tar archive; a member's content is bytes, or (type, target) of a link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return f"tar:{path}"


def as_tar(files: Tree, out: Path) -> str:
    return packed(out / "x.tar", sorted(files.items()))


def as_dotted_tar(files: Tree, out: Path) -> str:
    """As `tar cf x.tar .` writes names, in another order."""
    return packed(out / "x.tar", [(f"./{name}", content) for name, content in sorted(files.items(), reverse=True)])


def as_hard_links(files: Tree, out: Path) -> str:
    """Every image a hard link to a file in a hidden folder."""
    members: list[tuple[str, bytes | tuple[bytes, str]]] = []
    for i, (name, content) in enumerate(sorted(files.items())):
        members += [(f".pool/{i}", content), (name, (tarfile.LNKTYPE, f".pool/{i}"))]
    return packed(out / "x.tar", members)


def as_symlinks(files: Tree, out: Path) -> str:
    """Every image a chain of two symbolic links to a file that comes later."""
    links: list[tuple[str, bytes | tuple[bytes, str]]] = []
    pool: list[tuple[str, bytes | tuple[bytes, str]]] = []
    for i, (name, content) in enumerate(sorted(files.items())):
        links.append((name, (tarfile.SYMTYPE, os.path.relpath(f".pool/link {i}", os.path.dirname(name) or "."))))
        pool += [(f".pool/link {i}", (tarfile.SYMTYPE, f"./{i}")), (f".pool/{i}", content)]
    return packed(out / "x.tar", [*links, *pool])


def as_shards(files: Tree, out: Path) -> str:
    """Two archives, the second of which may hold other classes."""
    whole = sorted(files.items())
    for number, part in enumerate((whole[: len(whole) // 2], whole[len(whole) // 2 :])):
        packed(out / f"x-{number}.tar", part)
    return f"tar:{out}/x-{{0..1}}.tar"


TREES: tuple[Callable[[Tree, Path], str], ...] = (
    as_folder, as_tar, as_dotted_tar, as_hard_links, as_symlinks, as_shards,
)  # fmt: skip

# Names of files; the class of each (None: no image), or what the refusal says.
CASES: dict[str, tuple[dict[str, str | None], list[str] | str]] = {
    "class folders": ({"a/1.png": "a", "a/2.png": "a", "b/1.png": "b"}, []),
    "folders in class folders": ({"a/v/1.png": "a", "a/w/1.png": "a", "a/2.png": "a", "b/v/1.png": "b"}, ["nested"]),
    "one folder around them": ({"photos/a/1.png": "a", "photos/b/2.png": "b", "read.txt": None}, ["class-folders"]),
    "two around them": ({"x/y/a/1.png": "a", "x/y/b/2.png": "b", "x/z/1.txt": None}, ["class-folders"]),
    "hidden folders": (
        {
            "a/1.png": "a", "b/2.png": "b", "a/.ipynb_checkpoints/1.png": None, ".git/3.png": None,
            "__MACOSX/a/._1.png": None, "b/._2.png": None, "@eaDir/5.png": None, "b/@eaDir/2.png/x.jpg": None,
            "lost+found/7.png": None,
        },
        [],
    ),
    "numbers, two of them equal": (
        {"0/1.png": "0", "1/2.png": "1", "01/3.png": "01", "10/4.png": "10", "2/5.png": "2", "001/6.png": "001"}, [],
    ),
    "suffixes": (
        {"a/1.JPG": "a", "a/2.jfif": "a", "b/3.avif": "b", "b/4.Tiff": "b", "b/5.jp2": "b", "b/6.jpe": "b"}, [],
    ),
    "files beside": ({"a/1.png": "a", "a/1.txt": None, "b/1.png": "b", "b/x.heic": None, "README": None}, ["left-out"]),
    "a folder without images": ({"a/1.png": "a", "b/1.png": "b", "c/1.heic": None}, ["left-out", "empty-class"]),
    "dots in names": ({"a.b/1.x.png": "a.b", "a.b/1.y.png": "a.b", "c.d/1.png": "c.d"}, []),
    "case and composition": (
        {"A/1.png": "A", "a/2.png": "a", "caf\u00e9/3.png": "caf\u00e9", "cafe\u0301/4.png": "cafe\u0301"}, [],
    ),
    "some named as splits": ({"test/1.png": "test", "train/1.png": "train", "cat/1.png": "cat"}, ["class-folders"]),
    "splits": ({"train/1.png": "", "val/2.png": ""}, "the folders train, val are splits of a set, not classes"),
    "splits with years": ({"Training/a/1.png": "", "test2017/a/2.png": ""}, "are splits of a set, not classes"),
    "a loose image": ({"a/1.png": "", "2.png": ""}, "2.png lies in none"),
}  # fmt: skip


@pytest.mark.parametrize("form", TREES)
@pytest.mark.parametrize("case", CASES)
def test_a_tree_has_the_same_classes_in_every_form(
    case: str, form: Callable[[Tree, Path], str], tmp_path: Path
) -> None:
    names, expected = CASES[case]
    files = tree(list(names))
    reference = form(files, tmp_path)
    images = [name for name, label in names.items() if label is not None]
    numbers = [i for i, label in enumerate(names.values()) if label is not None]
    assert seen(listed(reference, labelled=False)) == [("", i) for i in numbers]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            listed(reference)
        return
    found = listed(reference)
    assert seen(found) == sorted((label, i) for i, label in enumerate(names.values()) if label is not None)
    labels = {label for label in names.values() if label}
    assert list(found.folders) == sorted(labels, key=lambda one: (int(one) if one.isdecimal() else 0, one))
    assert kinds(found) == expected
    if form in (as_folder, as_tar, as_hard_links, as_symlinks):  # in the order of the paths
        assert list(found.names) == sorted(images)


def test_equal_numbers_have_one_order_whatever_the_hash_seed() -> None:
    """An order by value alone depends on PYTHONHASHSEED, which is another one in every process."""
    code = "from oodbench.loaders.conventions import ordered; print(ordered({'0', '1', '01', '001', '10'}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert told == {"('0', '001', '01', '1', '10')\n"}


# Labels: what a number means


def as_list(labels: Sequence[int], names: Sequence[str], out: Path) -> tuple[str, str]:
    for i in range(len(labels)):
        (out / f"{i}.png").write_bytes(colour(i))
    (out / "x.txt").write_text("".join(f"{i}.png {label}\n" for i, label in enumerate(labels)))
    return f"list:{out / 'x.txt'}", named(names, out)


def as_webdataset(labels: Sequence[int], names: Sequence[str], out: Path) -> tuple[str, str]:
    members = [
        (f"{i}.{end}", part)
        for i, label in enumerate(labels)
        for end, part in (("png", colour(i)), ("CLS", str(label).encode()))
    ]
    return packed(out / "x.tar", members), named(names, out)


def as_parquet(labels: Sequence[int], names: Sequence[str], out: Path) -> tuple[str, str]:
    write_parquet(out / "x.parquet", labels, names, range(len(labels)))
    return f"hf:{out / 'x.parquet'}", ""


def as_arrays(labels: Sequence[int], names: Sequence[str], out: Path) -> tuple[str, str]:
    images = np.stack([np.asarray(Image.open(io.BytesIO(colour(i)))) for i in range(len(labels))])
    np.savez(out / "x.npz", images=images, labels=np.array(labels))
    return f"arrays:{out / 'x.npz'}", named(names, out)


def named(names: Sequence[str], out: Path) -> str:
    (out / "names.txt").write_text("\n".join(names))
    return str(out / "names.txt")


def write_parquet(path: Path, labels: Sequence[int], names: Sequence[str], numbers: Sequence[int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [{"bytes": colour(i)} for i in numbers], "label": pa.array(labels, pa.int64())})
    about = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)} if names else {}), path)


@pytest.mark.parametrize("form", [as_list, as_webdataset, as_parquet, as_arrays])
@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 1, 2, 0], "cat dog elk", []),
        ([2, 0, 2, 0], "cat dog elk", ["empty-class"]),
        ([0, 1, 1, 0], "cat dog elk", ["empty-class"]),
        ([1, 2, 3, 1], "cat dog elk", "label 3|has 4 classes"),
        ([0, 1, 2, 3], "cat dog", "label 3|has 4 classes"),
        ([0, -1, 2, 1], "cat dog elk", "needs a class for every image|is no label"),
        ([0, 10**12, 1, 1], "cat dog elk", "label 1000000000000"),
    ],
)
def test_a_label_means_the_same_in_every_form(
    labels: list[int], names: str, expected: list[str] | str, form: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """A label is the index of a class name, from 0; one without a name is refused, a name without images is told."""
    reference, classes = form(labels, names.split(), tmp_path)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            sets.class_names(listed(reference, classes=classes))
        return
    found = listed(reference, classes=classes)
    lines = sets.class_names(found).lines
    assert [lines[label] for label in found.labels] == [names.split()[label] for label in labels]
    assert kinds(found) == expected and seen(listed(reference, labelled=False)) == [("", i) for i in range(4)]
