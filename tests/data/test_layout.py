"""All loaders have the same rules: the same images in every kind of place have the same classes or errors."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data import decode, load, prompts
from oodbench.data.add import add_dataset
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.data.loaders import layout
from oodbench.errors import UserError
from oodbench.storage.store import Store, default_root

Tree = Mapping[str, bytes]


def listed(dataset: str | Dataset, labelled: bool = True, classes: str = "") -> ImageSet:
    one = catalogue.dataset(dataset, classes) if isinstance(dataset, str) else dataset
    return load_images(one, LoadOptions(Path(), Store(default_root())), labelled=labelled)


def colour(number: int) -> bytes:
    """A PNG file of 8x6 pixels of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 7, 9)).save(file, "png")
    return file.getvalue()


def tree(names: Sequence[str]) -> dict[str, bytes]:
    """A different image for every name that is not a text file."""
    return {name: colour(i) if not name.endswith((".txt", ".json")) else b"a text" for i, name in enumerate(names)}


def seen(found: ImageSet) -> list[tuple[str, int]]:
    """(class name, colour) of every image, sorted, as a run would see them."""
    names = found.named or found.folders
    colours = [int(np.asarray(found.read(i).convert("RGB"))[0, 0, 0]) for i in range(len(found))]
    return sorted(
        (names[label] if label >= 0 else "", colour) for label, colour in zip(found.labels, colours, strict=True)
    )


def kinds(found: ImageSet) -> list[str]:
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
    """With names as written by `tar cf x.tar .`, in another order."""
    return packed(out / "x.tar", [(f"./{name}", content) for name, content in sorted(files.items(), reverse=True)])


def as_hard_links(files: Tree, out: Path) -> str:
    """Every image is a hard link to a file in a hidden folder."""
    members: list[tuple[str, bytes | tuple[bytes, str]]] = []
    for i, (name, content) in enumerate(sorted(files.items())):
        members += [(f".pool/{i}", content), (name, (tarfile.LNKTYPE, f".pool/{i}"))]
    return packed(out / "x.tar", members)


def as_symlinks(files: Tree, out: Path) -> str:
    """Every image is a chain of two symbolic links to a later file."""
    links: list[tuple[str, bytes | tuple[bytes, str]]] = []
    pool: list[tuple[str, bytes | tuple[bytes, str]]] = []
    for i, (name, content) in enumerate(sorted(files.items())):
        links.append((name, (tarfile.SYMTYPE, os.path.relpath(f".pool/link {i}", os.path.dirname(name) or "."))))
        pool += [(f".pool/link {i}", (tarfile.SYMTYPE, f"./{i}")), (f".pool/{i}", content)]
    return packed(out / "x.tar", [*links, *pool])


def as_shards(files: Tree, out: Path) -> str:
    """Two archives; the second may have other classes."""
    whole = sorted(files.items())
    for number, part in enumerate((whole[: len(whole) // 2], whole[len(whole) // 2 :])):
        packed(out / f"x-{number}.tar", part)
    return f"tar:{out}/x-{{0..1}}.tar"


TREES: tuple[Callable[[Tree, Path], str], ...] = (
    as_folder, as_tar, as_dotted_tar, as_hard_links, as_symlinks, as_shards,
)  # fmt: skip

# Names of files; the class of each (None: not an image), or the error message.
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
    "splits": ({"train/1.png": "", "val/2.png": ""}, "the folders train, val are splits or parts of a set"),
    "splits with years": ({"Training/a/1.png": "", "test2017/a/2.png": ""}, "are splits or parts of a set"),
    "images and masks": ({"images/a/1.png": "", "masks/a/1.png": ""}, "images, masks are splits or parts of a set"),
    "no classes": ({"images/1.png": "", "images/2.png": ""}, "the folders images are splits or parts of a set"),
    "a loose image": ({"a/1.png": "", "2.png": ""}, "2.png is in none"),
}  # fmt: skip


# Forms without folders: the class is a label


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


LABELLED = (as_list, as_webdataset, as_parquet, as_arrays)
PAIRS = [
    (case, form)
    for case, (_, expected) in CASES.items()
    for form in (*TREES, *LABELLED)
    if form in TREES or not isinstance(expected, str)
]


@pytest.mark.parametrize(("case", "form"), PAIRS)
def test_the_same_images_are_read_alike_in_every_form(case: str, form: Callable[..., Any], tmp_path: Path) -> None:
    """Class names, their order, the images and the remarks."""
    names, expected = CASES[case]
    images = {name: label for name, label in names.items() if label is not None}
    order = sorted(set(images.values()), key=lambda one: (int(one) if one.isdecimal() else 0, one))
    if form in LABELLED:
        reference, classes = form([order.index(label) for label in images.values()], order, tmp_path)
        found = listed(reference, classes=classes)
        lines = load.class_names_of(found).lines
        assert [lines[label] for label in found.labels] == list(images.values()) and list(lines) == order
        assert [colour for _, colour in seen(listed(reference, labelled=False))] == list(range(len(images)))
        return
    reference = form(tree(list(names)), tmp_path)
    numbers = [i for i, label in enumerate(names.values()) if label is not None]
    assert seen(listed(reference, labelled=False)) == [("", i) for i in numbers]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            listed(reference)
        return
    found = listed(reference)
    assert seen(found) == sorted((label, i) for i, label in enumerate(names.values()) if label is not None)
    assert list(found.folders) == order and kinds(found) == expected
    if form in (as_folder, as_tar, as_hard_links, as_symlinks):  # in the order of the paths
        assert list(found.names) == sorted(images)


@pytest.mark.slow
def test_equal_numbers_are_ordered_independently_of_the_hash_seed() -> None:
    """An order by value only would depend on PYTHONHASHSEED, which differs between processes."""
    code = "from oodbench.data.loaders.layout import sort_classes; print(sort_classes({'0', '1', '01', '001', '10'}))"
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


# Labels: the meaning of a number


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 1, 2, 0], "cat dog elk", []),
        ([2, 0, 2, 0], "cat dog elk", ["empty-class"]),
        ([0, 1, 1, 0], "cat dog elk", ["empty-class"]),
        ([1, 2, 3, 1], "cat dog elk", "label 3|has 4 classes"),
        ([0, 1, 2, 3], "cat dog", "label 3|has 4 classes"),
        ([0, -1, 2, 1], "cat dog elk", "needs a class for every image|is not a label"),
        ([0, 10**12, 1, 1], "cat dog elk", "label 1000000000000"),
    ],
)
def test_a_label_means_the_same_in_every_form(
    labels: list[int], names: str, expected: list[str] | str, form: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """A label is a class index, from 0; a label without a name is refused, a name without images is reported."""
    reference, classes = form(labels, names.split(), tmp_path)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            load.class_names_of(listed(reference, classes=classes))
        return
    found = listed(reference, classes=classes)
    lines = load.class_names_of(found).lines
    assert [lines[label] for label in found.labels] == [names.split()[label] for label in labels]
    assert kinds(found) == expected and seen(listed(reference, labelled=False)) == [("", i) for i in range(4)]


# Remarks and errors


def told(found: ImageSet, kind: str) -> layout.Remark:
    (one,) = [one for one in found.remarks if one.kind == kind]
    return one


def test_links_in_an_archive_are_followed_as_in_a_folder(tmp_path: Path) -> None:
    """Links to folders, links in linked folders, a folder with a link to itself."""
    plain: list[tuple[str, bytes | tuple[bytes, str]]] = [("a/v/1.png", colour(1)), ("b/2.png", colour(2))]
    links = [
        ("a/up", ".."),
        ("c", "a"),
        ("b/v", "../c/v"),
        ("d", "b"),
        ("b/3.png", "../c/v/1.png"),
        ("a/v/4.png", "/../x.txt"),
    ]
    members = [*plain, *((name, (tarfile.SYMTYPE, target)) for name, target in links[:-1])]
    for name, content in plain:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)  # type: ignore[arg-type]
    for name, target in links[:-1]:
        (tmp_path / "tree" / name).symlink_to(target)
    folder, archive = listed(f"folder:{tmp_path / 'tree'}"), listed(packed(tmp_path / "x.tar", members))
    assert sorted(folder.names) == sorted(archive.names)
    assert seen(folder) == seen(archive) and folder.folders == archive.folders == ("a", "b", "c", "d")
    assert told(folder, "listed-twice").count == told(archive, "listed-twice").count == len(folder) - 2


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (tarfile.SYMTYPE, "gone.png", "is a link to gone.png, which points to nothing in the archive"),
        (tarfile.LNKTYPE, "1.png", "is a link to 1.png, which points to nothing"),
        (tarfile.SYMTYPE, "/a/1.png", "which points outside the archive"),
        (tarfile.SYMTYPE, "../../a/1.png", "which points outside the archive"),
        (tarfile.LNKTYPE, "../a/1.png", "which points outside the archive"),
        (tarfile.SYMTYPE, "z.png", "which is circular"),
        (tarfile.SYMTYPE, "y.png", "which is circular"),
    ],
)
def test_broken_links_are_named(kind: bytes, target: str, said: str, tmp_path: Path) -> None:
    members: list[tuple[str, bytes | tuple[bytes, str]]] = [
        ("a/1.png", colour(1)), ("a/z.png", (kind, target)), ("a/y.png", (tarfile.SYMTYPE, "z.png")),
    ]  # fmt: skip
    with pytest.raises(UserError, match=f"x.tar: member a/.*{said}"):
        listed(packed(tmp_path / "x.tar", members))
    text = [("a/1.png", colour(1)), ("a/notes.txt", (kind, target)), (".old/x", (kind, target))]
    assert len(listed(packed(tmp_path / "x.tar", text))) == 1  # type: ignore[arg-type]


def test_links_to_folders_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodbench.data.loaders.tar_links._MAX_LINKED", 1000)
    members: list[tuple[str, bytes | tuple[bytes, str]]] = [("f0/1.png", colour(1))]
    members += [(f"f{i}/{side}", (tarfile.SYMTYPE, f"../f{i - 1}")) for i in range(1, 30) for side in "ab"]
    with pytest.raises(UserError, match=r"x\.tar: its links to folders add more than 1,000"):
        listed(packed(tmp_path / "x.tar", members))


def test_a_key_of_webdataset_has_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(f"{i}.{end}", colour(i)) for i in range(3) for end in ("main.png", "seg.PNG")]
    members = [*parts, *((f"{i}.cls", b"0") for i in range(3))]
    reference = packed(tmp_path / "x.tar", members)
    for labelled in (True, False):
        with pytest.raises(
            UserError, match=r"several images for 0\.cls: 0\.main\.png and 0\.seg\.PNG .*--split main\.png"
        ):
            listed(reference, labelled)
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    fields = {"loader": "tar", "path": str(tmp_path / "x.tar"), "split": "seg.png"}
    declared = add_dataset("mine", fields, Store(tmp_path / "store"))
    chosen = catalogue.read_dataset(declared.file)
    assert declared.images.names == listed(chosen).names == ("0.seg.PNG", "1.seg.PNG", "2.seg.PNG")
    with pytest.raises(UserError, match=r"no image of .* ends in \.x; they end in main\.png, seg\.png"):
        listed(dataclasses.replace(chosen, split="x"))
    assert len(listed(packed(tmp_path / "plain.tar", parts), labelled=False)) == 6  # nothing says that these are keys
    dots = [(f"im.{i}.{end}", part) for i in range(3) for end, part in (("png", colour(i)), ("cls", b"0"))]
    with pytest.raises(UserError, match=r"a key ends at the first dot: im\.0\.cls belongs to im"):
        listed(packed(tmp_path / "dots.tar", dots))


def test_text_sidecars_are_labels_only_if_all_are_numbers(tmp_path: Path) -> None:
    captions = [
        (f"{c}/{i}.{end}", part) for i, c in enumerate("ab") for end, part in (("png", colour(i)), ("txt", b"a cab"))
    ]
    assert listed(packed(tmp_path / "x.tar", captions)).folders == ("a", "b")
    numbers = [(f"{i}.{end}", part) for i in range(2) for end, part in (("png", colour(i)), ("txt", b" 1\n"))]
    assert listed(packed(tmp_path / "y.tar", numbers)).labels.tolist() == [1, 1]
    assert listed(packed(tmp_path / "z.tar", [("read me.txt", b"hello"), ("a/1.png", colour(0))])).folders == ("a",)


def test_files_with_another_class_order_are_matched_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t/0.parquet", [0, 1, 2], ["cat", "dog", "elk"], [0, 1, 2])
    write_parquet(tmp_path / "t/1.parquet", [0, 1, 2], ["elk", "cat", "dog"], [3, 4, 5])
    found = listed(f"hf:{tmp_path / 't'}")
    assert seen(found) == [("cat", 0), ("cat", 4), ("dog", 1), ("dog", 5), ("elk", 2), ("elk", 3)]
    assert "1.parquet: labels are matched by name" in told(found, "class-order").message
    for names in (["elk", "cat", "cow"], [], ["elk", "cat", "dog", "yak"]):
        write_parquet(tmp_path / "t/1.parquet", [0, 1, 2], names, [3, 4, 5])
        with pytest.raises(UserError, match=r"1\.parquet and the first file have different classes"):
            listed(f"hf:{tmp_path / 't'}")
    write_parquet(tmp_path / "t/1.parquet", [0, 1, 3], ["elk", "cat", "dog"], [3, 4, 5])
    with pytest.raises(UserError, match="has the label 3, but there are 3 class names"):
        listed(f"hf:{tmp_path / 't'}")
    (tmp_path / "t/.old").mkdir()
    (tmp_path / "t/1.parquet").rename(tmp_path / "t/.old/1.parquet")  # hidden, as everywhere
    assert len(listed(f"hf:{tmp_path / 't'}")) == 3


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([[[[0.5] * 3] * 4] * 4], "no column of .* holds images"),
        ([[{"bytes": b"x"}]], "no column of .* holds images"),
        ([{"bytes": None, "path": "far/1.png"}], "row 0 names the file far/1.png but does not contain it"),
    ],
)
def test_cells_without_an_image(cells: list[object], said: str, tmp_path: Path) -> None:
    """Without the check, pixels from 0 to 1 would be black, lists of images one image, and paths would be opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=said):
        load_images(
            catalogue.dataset(f"hf:{tmp_path / 'x.parquet'}"),
            LoadOptions(Path(), Store(tmp_path), strict=True),
            labelled=False,
        )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((9, 8, 3), np.uint8)}, r"\[9, 8, 3\]: one colour image, or grey images\?"),
        ({"x": np.zeros((3, 9, 8), np.uint8)}, r"\[3, 9, 8\]: one colour image, or grey images\?"),
        ({"x": np.zeros((5, 3, 9, 8), np.uint8)}, r"convert \[n 3 h w\] to \[n h w 3\]"),
        ({"x": np.zeros((5, 9, 8, 3), np.float32)}, "values must be integers from 0 to 255"),
        ({"x": np.zeros((5, 9, 8, 3), np.uint16)}, "values must be integers from 0 to 255"),
        ({"x": np.zeros((5, 9, 8, 3), np.float32), "masks": np.zeros((5, 9, 8), np.uint8)}, "must hold one array"),
    ],
)
def test_ambiguous_arrays_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=said):
        listed(f"arrays:{tmp_path / 'x.npz'}", labelled=False)
    np.save(tmp_path / "y.npy", np.zeros((9, 8, 3), np.uint8)[None])
    assert len(listed(f"arrays:{tmp_path / 'y.npy'}", labelled=False)) == 1


def test_images_of_a_list_are_not_taken_from_another_folder(tmp_path: Path) -> None:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name)
    lines = "cat/0.png 0\ncat/1.png 0\ndog/0.png 1\ndog/1.png 1\n"
    (tmp_path / "test.txt").write_text(lines)
    assert listed(f"list:{tmp_path}/test.txt@{tmp_path}/pets").total == 4
    (tmp_path / "whole.txt").write_text(lines.replace("cat/", "pets/cat/").replace("dog/", "pets/dog/"))
    assert listed(f"list:{tmp_path}/whole.txt@{tmp_path}/pets").total == 4  # both may name the folder
    with pytest.raises(UserError, match="none of the 4 images in"):
        listed(f"list:{tmp_path}/test.txt@{tmp_path}/pets/cat")


def test_an_image_listed_twice_is_reported_or_refused(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(colour(i))
    path = tmp_path / "x.txt"
    path.write_text("0.png 0\n1.png 1\n./0.png 0\n1.png 1\n")
    found = listed(f"list:{path}")
    assert len(found) == 4 and told(found, "listed-twice").examples == ("./0.png = 0.png", "1.png = 1.png")
    path.write_text("0.png 0\n1.png 1\n.//0.png 1\n")
    with pytest.raises(UserError, match=r"gives \.//0\.png two labels, 0 and 1"):
        listed(f"list:{path}")
    assert told(listed(f"list:{path}", labelled=False), "listed-twice").count == 1  # labels of an OOD set do not count


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.png\t0", "has a tab"),
        ("1.png,0", "has commas or semicolons"),
        ('"1.png" 0', "has quotes"),
        ("1.png 0 7", "has more than two columns"),
        ("1.png cat", "ends in 'cat', which is not an integer"),
        ("a\\1.png 0", "has backslashes, where paths have /"),
        ("/x/1.png 0", "'/x/1.png' is an absolute path; paths must be relative to a root"),
        ("a/../1.png 0", r"leaves the list's root by '\.\.'"),
        ("2.png 0", r"none of the 1 images in .*x\.txt exists: no .*/2\.png$"),
    ],
)
def test_a_line_in_another_format_is_shown(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(colour(1))
    (tmp_path / "x.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=said):
        listed(f"list:{tmp_path / 'x.txt'}", labelled=False)


def test_unicode_line_separators_do_not_end_lines(tmp_path: Path) -> None:
    """str.splitlines also ends lines at form feeds, U+0085 and U+2028, which file names and class names may hold."""
    odd = ["a\u2028b.png", "c\x85d.png", "e\x0cf.png"]
    for i, name in enumerate(odd):
        (tmp_path / name).write_bytes(colour(i))
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "x.txt").write_text(end.join(f"{name} 0" for name in odd) + end, newline="")
        assert list(listed(f"list:{tmp_path / 'x.txt'}").names) == odd
        (tmp_path / "names.txt").write_text(end.join(odd), newline="")
        assert list(prompts.class_names(str(tmp_path / "names.txt")).lines) == odd


def test_a_class_name_may_begin_with_a_number_sign(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# the names\n#1 fan\n#\n#hashtag\ncat\n")
    assert prompts.class_names(str(tmp_path / "names.txt")).lines == ("#1 fan", "#hashtag", "cat")
    assert len(prompts.class_names("imagenet20").lines) == 20  # its first line is a comment


@pytest.mark.slow
def test_names_that_the_tokenizer_does_not_distinguish() -> None:
    """Compared with open_clip's tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    names = [
        "Anchor",
        "anchor",
        "caf\u00e9",
        "cafe\u0301",
        "a  b",
        "a b",
        "x &amp; y",
        "x & y",
        "\uff21nchor",
        "cafe",
        "ancho r",
    ]
    for one in names:
        for other in names:
            assert (tokenizer.encode(one) == tokenizer.encode(other)) == (
                layout.tokenizer_text(one) == layout.tokenizer_text(other)
            ), (one, other)


def test_class_names_with_equal_prompts_are_reported() -> None:
    names = ["Anchor", "anchor", "cat", "caf\u00e9", "cafe\u0301", "a  b", "a b", "x &amp; y", "x & y", "cafe"]
    (remark,) = layout.same_prompt_remarks(names)
    assert remark.count == 4 and remark.examples[1] == "'caf\\xe9' = 'cafe\\u0301'"
    assert layout.same_prompt_remarks(["cat", "dog"]) == ()


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "link to a device", "socket"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """Opening a FIFO blocks, and a device may be endless."""
    files = as_folder(tree(["a/1.png", "b/2.png"]), tmp_path)
    odd = tmp_path / "tree/a/x.png"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(odd.parent)  # a socket's path has 107 characters at most
            one.bind(odd.name)
            os.chdir(here)
    elif kind == "link to a device":
        odd.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe" if "link" in kind else odd)
        if "link" in kind:
            odd.symlink_to(tmp_path / "pipe")
    found = listed(files)
    assert found.names == ("a/1.png", "b/2.png") and told(found, "left-out").examples == ("a/x.png",)
    (tmp_path / "x.txt").write_text("tree/a/1.png 0\ntree/a/x.png 0\n")
    for reference in (f"list:{tmp_path / 'x.txt'}", f"hf:{odd}", f"arrays:{odd}", f"tar:{odd}", f"list:{odd}"):
        with pytest.raises(UserError, match=r"(is|that is) a (FIFO|socket|character device)|list .* does not exist"):
            listed(reference, labelled=False)
    with pytest.raises(UserError, match="is a"):
        found.reader.read("a/x.png")  # as when it takes the place of an image after the listing
    with pytest.raises(UserError, match="no class list"):
        prompts.class_names(str(odd))
    with pytest.raises(UserError, match=r"x\.png is not a file"):
        catalogue.read_dataset(odd)


def test_the_first_images_are_checked_for_more_than_8_bits(tmp_path: Path) -> None:
    """open_clip converts 16-bit images to white and floats from 0 to 1 to black."""
    ramp = np.arange(64).reshape(8, 8)
    for number, (factor, kind, flat) in enumerate(
        [(1000, np.uint16, True), (1 / 64, np.float32, True), (3, np.uint16, False)]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        Image.fromarray((ramp * factor).astype(kind)).save(place / "1.tif")
        notes = load.notes(listed(f"folder:{place}", labelled=False))
        assert ["1 of the first 1 images of more than 8 bits become white or black" in one for one in notes] == [
            True
        ] * flat


def test_images_that_become_constant_are_logged_when_they_are_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also images beyond the first few, which a plan does not check."""
    import torch

    (tmp_path / "x").mkdir()
    for i in range(6):
        pixels = np.arange(64).reshape(8, 8) * (1 if i < 5 else 1000)
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / f"x/{i}.png")
    found = listed(f"folder:{tmp_path / 'x'}", labelled=False)
    assert load.notes(found) == []
    reading = decode.DecodeConfig(2, "stop")
    assert len(list(decode.batches(found, reading, 4, (0, 6), lambda image: torch.zeros(3, 2, 2)))) == 2
    assert "1 images of more than 8 bits become white or black as RGB, or nearly so (5.png first)" in caplog.text


def test_a_benchmark_of_another_set_runs_the_set_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/mine.toml").write_text('title = "Mine"\nloader = "classes"\npath = "x"\nbenchmark = "mos"\n')
    catalogue.datasets.cache_clear()
    try:
        mos = catalogue.protocol("imagenet1k").benchmark
        assert mos is catalogue.benchmarks()["mos"]
        for ood in ((), tuple(name for name, _ in mos.sets())):
            found = catalogue.protocol("mine", ood).benchmark
            assert (found.id, found.sets(), found.calibration) == ("mine", mos.sets(), "")
            assert found.name not in catalogue.benchmarks()
        (tmp_path / "datasets/mine.toml").write_text(
            'title = "Mine"\nloader = "classes"\npath = "x"\nbenchmark = "moss"\n'
        )
        catalogue.datasets.cache_clear()
        with pytest.raises(UserError, match="'mine' declares the benchmark 'moss'; did you mean 'mos'"):
            catalogue.protocol("mine")
    finally:
        monkeypatch.undo()
        catalogue.datasets.cache_clear()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("folder:nope", r"was not found at .*/nope, which does not exist"),
        ("folder:x.txt", r"was not found at .*/x\.txt: that is a file, not a folder"),
        ("tar:here", r"was not found at .*/here: that is a folder"),
        ("hf:data/*.parquet", "hf: takes a file, a folder or a name on the Hub, not a pattern"),
        ("nope", r"no dataset 'nope'; known: .{20,200} and \d+ more"),
    ],
)
def test_missing_sets_are_reported_in_one_line(
    reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").touch()
    Path("here").mkdir()
    with pytest.raises(UserError, match=said) as caught:
        listed(reference)
    assert len(str(caught.value).splitlines()[0]) < 400


def test_files_of_a_table_need_the_same_two_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "t/test-0.parquet", [0, 1], [], [0, 1])
    more = {"image": [{"bytes": colour(2), "path": "x"}], "label": pa.array([1], pa.int32()), "more": [1]}
    pq.write_table(pa.table(more), tmp_path / "t/test-1.parquet")
    assert listed(f"hf:{tmp_path / 't'}").labels.tolist() == [0, 1, 1]
    for lacking in ({**more, "label": ["cat"]}, {"image": more["image"]}, {"label": more["label"]}):
        pq.write_table(pa.table(lacking), tmp_path / "t/test-1.parquet")
        with pytest.raises(UserError, match=r"test-1\.parquet has other columns than the first file"):
            listed(f"hf:{tmp_path / 't'}")


def test_a_default_split_is_reported(tmp_path: Path) -> None:
    for name in ("test-0", "train-0", "train-1"):
        write_parquet(tmp_path / f"t/{name}.parquet", [0, 1], [], [0, 1])
    found = listed(f"hf:{tmp_path / 't'}")
    assert len(found) == 2 and "took the split test, 1 of 3 files" in told(found, "split").message
    named = Dataset("x", "X", "parquet", str(tmp_path / "t"), split="train")
    assert len(listed(named)) == 4 and not listed(named).remarks


def test_following_the_advice_works(tmp_path: Path) -> None:
    """A list with another digest is refused, with the reference that reads it anyway."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(colour(1))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/x.txt").write_text("1.png 0\n")
    one = Dataset("x", "X", "list", "photos", list="lists/x.txt", digest="0" * 64)
    with pytest.raises(UserError, match="is not the list of the protocol") as caught:
        load_images(one, LoadOptions(tmp_path, Store(tmp_path / "store")), labelled=True)
    assert listed(str(caught.value).rpartition("use it as ")[2]).names == ("1.png",)


def test_a_row_that_is_not_text_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from oodbench.results import rows

    (tmp_path / "row.json").write_bytes(b"\xff{}")
    assert list(rows(tmp_path)) == []
    assert f"skipped: {tmp_path / 'row.json'}" in caplog.text
