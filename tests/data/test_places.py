"""Places of sets: all common layouts are the same set, and a place can be bound to a name."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from oodbench.data import catalog
from oodbench.data.imagenet import image_name, validation_classes, wnids
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.data.places import bindings, find_place
from oodbench.errors import Missing, UserError
from oodbench.storage.store import Store
from tests.conftest import Cli

N = 12  # images of a miniature


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    catalog.datasets.cache_clear()
    yield
    catalog.datasets.cache_clear()


def jpeg(i: int) -> bytes:
    """An image that is identified by its size in bytes and pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8 + i), (i, 0, 0)).save(file, "JPEG", comment=b"x" * i)
    return file.getvalue()


def put(folder: Path, *names: str) -> None:
    for i, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(i))


FLAT = tuple(image_name(i) for i in range(1, N + 1))
SORTED = tuple(f"{wnids()[validation_classes()[i - 1]]}/{image_name(i)}" for i in range(1, N + 1))


def pack(path: Path) -> None:
    """The archive with members in an order other than that of the names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i in range(N, 0, -1):
            member = tarfile.TarInfo(image_name(i))
            member.size = len(jpeg(i))
            archive.addfile(member, io.BytesIO(jpeg(i)))


def table(folder: Path, shift: int = 0, split: str = "validation") -> None:
    """As on the Hub: parquet files of several splits, file names with the class folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    labels = validation_classes()[:N].tolist()
    rows = [
        {"bytes": jpeg(i), "path": f"ILSVRC2012_val_{i:08d}_{wnids()[labels[i - 1]]}.JPEG"} for i in range(1, N + 1)
    ]
    columns = pa.table({"image": rows[::-1], "label": [label + shift for label in labels[::-1]]})
    pq.write_table(columns, folder / f"{split}-00000-of-00001.parquet", row_group_size=5)
    for other in ("train", "test"):
        (folder / f"{other}-00000-of-00001.parquet").write_bytes(b"not looked at")


IMAGENET: dict[str, Callable[[Path], None]] = {
    "class folders": lambda data: put(data / "imagenet1k/val", *SORTED),
    "flat": lambda data: put(data / "imagenet1k/val", *FLAT),
    "archive": lambda data: pack(data / "ILSVRC2012_img_val.tar"),
    "archive in its folder": lambda data: pack(data / "imagenet1k/ILSVRC2012_img_val.tar"),
    "MCM's": lambda data: put(data / "ImageNet/val", *SORTED),
    "MCM's checkout": lambda data: put(data / "datasets/ImageNet/val", *SORTED),
    "OpenOOD's": lambda data: put(data / "images_largescale/imagenet_1k/val", *FLAT),
    "OpenOOD's checkout": lambda data: put(data / "data/images_largescale/imagenet_1k/val", *FLAT),
    "NegLabel's": lambda data: put(data / "id_data/imagenet_val", *FLAT),
    "Kaggle's": lambda data: put(data / "ILSVRC/Data/CLS-LOC/val", *FLAT),
    "the hub's": lambda data: table(data / "imagenet-1k/data"),
    "the hub's cache": lambda data: table(data / "datasets--ILSVRC--imagenet-1k/snapshots/abc/data", split="val"),
}


def listed(name: str, data: Path, *, strict: bool = False, labelled: bool = False) -> ImageSet:
    options = LoadOptions(data, Store(data / ".store"), strict=strict)
    return load_images(catalog.dataset(name), options, labelled=labelled)


@pytest.mark.parametrize("layout", IMAGENET)
def test_imagenet_is_one_set_in_every_layout(layout: str, tmp_path: Path) -> None:
    IMAGENET[layout](tmp_path / "data")
    put(tmp_path / "reference/imagenet1k/val", *SORTED)
    found, reference = (listed("imagenet1k", tmp_path / one, labelled=True) for one in ("data", "reference"))
    assert found.names == reference.names == tuple(sorted(SORTED))
    assert [found.folders[label] for label in found.labels] == [name[:9] for name in found.names]
    assert found.folders == wnids() and (found.labels == reference.labels).all()
    heights = [found.read(i).height - 8 for i in range(N)]
    assert [image_name(i) for i in heights] == [name[10:] for name in found.names], "each name has its image"
    assert listed("imagenet1k", tmp_path / "data").names == found.names
    if "hub" not in layout:  # its tables do not record file sizes
        assert found.digest == reference.digest
    strict = [listed("imagenet1k", tmp_path / one, strict=True).digest for one in ("data", "reference")]
    assert strict[0] == strict[1] != found.digest


OOD = {
    "inaturalist": ("a.jpg", "b.jpg"),
    "sun": ("a.jpg", "b.jpg"),
    "places": ("a.jpg", "b.jpg"),
    "textures": ("banded/banded_0001.jpg", "polka-dotted/polka-dotted_0012.jpg"),
}
LAYOUTS = [
    *((name, f"ImageNet_OOD_dataset/{folder}/images") for name, folder in (("sun", "SUN"), ("places", "Places"))),
    ("inaturalist", "datasets/ImageNet_OOD_dataset/iNaturalist/images"),
    ("inaturalist", "images_largescale/inaturalist/images"),
    ("inaturalist", "data/ood_data/iNaturalist/images"),
    ("inaturalist", "iNaturalist"),
    ("textures", "ImageNet_OOD_dataset/dtd/images"),
    ("textures", "images_largescale/texture"),
    ("textures", "ood_data/Textures/dtd/images_collate"),
    ("textures", "ood_data/Textures/images"),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_ood_sets_are_one_set_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    flat = "Textures" in layout
    put(tmp_path / "data" / layout, *(one.rpartition("/")[2] if flat else one for one in OOD[name]))
    put(tmp_path / "reference" / catalog.dataset(name).path, *OOD[name])
    found, reference = (listed(name, tmp_path / one) for one in ("data", "reference"))
    assert found.names == OOD[name] and found.digest == reference.digest
    assert [found.read(i).height for i in range(2)] == [9, 10]
    assert found.dataset.name == name and found.dataset.count == catalog.dataset(name).count


def test_a_part_is_found_in_a_flattened_set(tmp_path: Path) -> None:
    """OpenOOD's list of Textures has class folders, which NegLabel's copy does not have."""
    part = dataclasses.replace(catalog.dataset("textures-5160"), digest="unknown")
    put(tmp_path / "ood_data/Textures/dtd/images_collate", "banded_0001.jpg", "polka-dotted_0012.jpg", "lined_0003.jpg")
    (tmp_path / "data/benchmark_imglist/imagenet").mkdir(parents=True)
    (tmp_path / "data" / part.list).write_text("texture/lined/lined_0003.jpg -1\ntexture/banded/banded_0001.jpg -1\n")
    found = load_images(part, LoadOptions(tmp_path, Store(tmp_path / ".store")), labelled=False)
    assert found.names == ("lined/lined_0003.jpg", "banded/banded_0001.jpg")
    assert [found.read(i).height - 8 for i in range(2)] == [3, 1]


def test_a_flattened_set_has_its_own_files_only(tmp_path: Path) -> None:
    put(tmp_path / "Textures", "banded_0001.jpg", "holiday.jpg")
    with pytest.raises(UserError, match=r"Textures is not the flattened set: it has no file holiday\.jpg"):
        listed("textures", tmp_path)


@pytest.mark.parametrize("layout", ["class folders", "flat", "archive", "MCM's", "OpenOOD's", "the hub's"])
def test_a_miscounted_set_is_refused_with_commands(layout: str, tmp_path: Path) -> None:
    IMAGENET[layout](tmp_path)
    options = LoadOptions(tmp_path, Store(tmp_path / ".store"), allow_partial=False)
    with pytest.raises(UserError, match="holds 12 images, but the catalogue declares 50000; complete it") as error:
        load_images(catalog.dataset("imagenet1k"), options, labelled=True)
    assert f"get it with: oodbench datasets get imagenet1k --data {tmp_path};" in str(error.value)
    assert "oodbench datasets locate imagenet1k PATH" in str(error.value) and "--allow-partial" in str(error.value)


def test_a_missing_set_lists_the_places_tried(tmp_path: Path) -> None:
    with pytest.raises(Missing) as error:
        listed("sun", tmp_path)
    said = str(error.value)
    for layout in (catalog.dataset("sun").path, *catalog.dataset("sun").layouts):
        assert str(tmp_path / layout) in said
    assert f"{tmp_path / 'data'} and {tmp_path / 'datasets'}" in said and "SUN.tar.gz" in said
    assert f"oodbench datasets get sun --data {tmp_path} (or" in said and "oodbench datasets locate sun PATH" in said


def test_the_first_of_several_places_is_used_and_the_others_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "ood_data/SUN/images", "other.jpg")
    put(tmp_path / "SUN/images", "a.jpg")
    found = listed("sun", tmp_path)
    assert found.names == ("a.jpg",) and found.folder == tmp_path / "SUN/images"
    (remark,) = found.remarks
    assert str(tmp_path / "ood_data/SUN/images") in remark.message and "not used" in remark.message
    assert str(tmp_path / "SUN,") not in remark.message, "a folder above is not another place"
    shutil.rmtree(tmp_path / "ood_data/SUN")
    (tmp_path / "ood_data/SUN").symlink_to(tmp_path / "SUN")
    assert not listed("sun", tmp_path).remarks, "nor is a link"


def test_an_empty_folder_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "imagenet1k/val").mkdir(parents=True)
    with pytest.raises(UserError, match="imagenet1k/val holds no images"):
        listed("imagenet1k", tmp_path)
    pack(tmp_path / "ILSVRC2012_img_val.tar")
    assert len(listed("imagenet1k", tmp_path)) == N


def test_labels_of_a_table_must_be_those_of_its_names(tmp_path: Path) -> None:
    table(tmp_path / "imagenet-1k/data", shift=1)
    with pytest.raises(UserError, match=r"labels n\d{8}/ILSVRC2012_val_\d{8}\.JPEG as class \d+, which is class \d+"):
        listed("imagenet1k", tmp_path, labelled=True)


def test_a_table_without_file_names_is_identified_by_its_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "imagenet-1k/data").mkdir(parents=True)
    rows = pa.table({"image": [jpeg(1), jpeg(2), jpeg(3)], "label": [999, 0, 65]})
    pq.write_table(rows, tmp_path / "imagenet-1k/data/validation-0.parquet")
    found = listed("imagenet1k", tmp_path, labelled=True)
    assert found.labels.tolist() == [0, 65, 999] and found.folders == wnids()
    assert [found.read(i).height - 8 for i in range(3)] == [2, 3, 1]
    assert listed("imagenet1k", tmp_path).names == found.names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((*FLAT, "holiday.JPEG"), r"not validation images of ImageNet-1k .* and not in a class folder: holiday\.JPEG"),
        ((*FLAT, "n01440764/x.JPEG"), r"not in a class folder: n01440764/x\.JPEG"),
        ((*FLAT, FLAT[0].replace(".JPEG", "_n01751748.JPEG")), "are the same image, n01751748/"),
    ],
)
def test_other_files_among_flat_images_are_refused(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    put(tmp_path / "imagenet1k/val", *names)
    with pytest.raises(UserError, match=said):
        listed("imagenet1k", tmp_path, labelled=True)


def test_images_in_a_wrong_class_folder_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "imagenet1k/val", *SORTED[:-1], f"{SORTED[0][:9]}/{FLAT[-1]}")
    messages = [remark.message for remark in listed("imagenet1k", tmp_path, labelled=True).remarks]
    assert f"1 validation images are in a wrong class folder: {SORTED[0][:9]}/{FLAT[-1]}" in messages


@pytest.mark.parametrize("beside", ["imagenet1k", "imagenet1k/val"])
def test_the_list_of_flat_images_is_used_and_checked(beside: str, tmp_path: Path) -> None:
    put(tmp_path / "imagenet1k/val", *FLAT)
    lines = [f"{image_name(i)} {label}\n" for i, label in enumerate(validation_classes()[:N], 1)]
    (tmp_path / beside / "val.txt").write_text("".join(lines))
    assert listed("imagenet1k", tmp_path, labelled=True).names == tuple(sorted(SORTED))
    (tmp_path / beside / "val.txt").write_text("".join([lines[0].replace(" 65", " 66"), *lines[1:]]))
    with pytest.raises(UserError, match=r"val\.txt and .* disagree on the class of 1 of 12 .*00000001\.JPEG first"):
        listed("imagenet1k", tmp_path, labelled=True)


def test_a_compressed_archive_is_refused_with_the_command(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "val.tar.gz").write_bytes(b"x")
    done = cli("datasets", "locate", "imagenet1k", tmp_path / "val.tar.gz")
    assert done.returncode == 2 and f"oodbench datasets get imagenet1k --from {tmp_path}/val.tar.gz" in done.stderr


# A place above the images, or the images themselves.
BOUND = [
    ("class folders", ""), ("class folders", "imagenet1k"), ("class folders", "imagenet1k/val"),
    ("flat", "imagenet1k/val"), ("archive", ""), ("archive", "ILSVRC2012_img_val.tar"), ("MCM's", "ImageNet"),
    ("OpenOOD's", "images_largescale"), ("OpenOOD's", "images_largescale/imagenet_1k"), ("the hub's", "imagenet-1k"),
    ("the hub's", "imagenet-1k/data"), ("the hub's cache", "datasets--ILSVRC--imagenet-1k"), ("NegLabel's", "id_data"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "bound"), BOUND)
def test_a_place_is_bound(layout: str, bound: str, tmp_path: Path, cli: Cli) -> None:
    here, away = tmp_path / "somewhere", tmp_path / "data"
    IMAGENET[layout](here)
    refused = cli("datasets", "locate", "imagenet1k", here / bound, "--data", away)
    assert refused.returncode == 2 and "holds 12 images" in refused.stderr, "counted at once"
    assert f"'imagenet1k' is not bound to {here / bound}" in refused.stderr and not bindings()
    done = cli("datasets", "locate", "imagenet1k", here / bound, "--allow-partial", "--data", away)
    assert done.returncode == 0 and "imagenet1k: 12 images at" in done.stdout, done.stderr
    assert bindings() == {"imagenet1k": Path(os.path.abspath(here / bound))}
    found = listed("imagenet1k", away, labelled=True)
    assert found.names == tuple(sorted(SORTED)) and found.dataset.name == "imagenet1k"


def test_bound_places_are_shown_and_forgotten(tmp_path: Path, cli: Cli) -> None:
    put(tmp_path / 'my "photos"', "a.jpg")
    put(tmp_path / "data/SUN/images", "b.jpg")
    data = ("--data", tmp_path / "data")
    assert "no dataset is bound" in cli("datasets", "locate").stdout
    assert f"sun: {tmp_path}/data/SUN/images\n" in cli("datasets", "locate", "sun", *data).stdout
    done = cli("datasets", "locate", "sun", 'my "photos"', "--allow-partial", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert cli("datasets", "locate").stdout == f'sun: {tmp_path}/my "photos"\n'
    assert f'sun: {tmp_path}/my "photos" (bound)' in cli("datasets", "locate", "sun", *data).stdout
    assert "found (bound)" in cli("datasets", "show", "sun", *data).stdout
    assert listed("sun", tmp_path / "data").names == ("a.jpg",), "a bound place goes before the data folder"
    shutil.rmtree(tmp_path / 'my "photos"')
    with pytest.raises(Missing, match="it is bound to .*photos") as error:
        listed("sun", tmp_path / "data")
    assert "oodbench datasets locate sun PATH binds another path; --forget removes the binding" in str(error.value)
    assert cli("datasets", "locate", "sun", "--forget").returncode == 0 and not bindings()
    assert listed("sun", tmp_path / "data").names == ("b.jpg",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mos", "."), "'mos' is a benchmark; bind its sets: oodbench datasets locate imagenet1k PATH; "),
        (("imagenet10", "."), "consists of other sets; bind them: oodbench datasets locate imagenet1k PATH"),
        (("imagenet1k-fs", "."), "oodbench datasets locate imagenet-v2-openood PATH"),
        (("glyphs", "."), "'glyphs' cannot be bound: it is embedded"),
        (("folder:x", "."), "is your own set"),
        (("sunn", "."), "no dataset 'sunn'; did you mean 'sun'"),
        (("sun", "nowhere"), "nowhere does not exist"),
        (("sun", "--forget"), "'sun' is not bound; bound datasets: none"),
        (("sun", ".", "--forget"), "--forget takes no PATH"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound(arguments: tuple[str, ...], said: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("datasets", "locate", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not bindings()


@pytest.mark.parametrize("bound", ["open", "open/images_largescale", "open/images_largescale/ninco"])
def test_a_set_by_list_is_bound_with_its_list_near_it(bound: str, tmp_path: Path, cli: Cli) -> None:
    ninco = catalog.dataset("ninco")
    put(tmp_path / "open/images_largescale/ninco", "a/1.jpg", "b/2.jpg")
    (tmp_path / "open" / ninco.list).parent.mkdir(parents=True)
    (tmp_path / "open" / ninco.list).write_text("ninco/b/2.jpg -1\nninco/a/1.jpg -1\n")
    refused = cli("datasets", "locate", "ninco", tmp_path / bound, "--data", tmp_path / "data")
    assert refused.returncode == 2 and "is not the list of the protocol" in refused.stderr, refused.stderr
    place = find_place(dataclasses.replace(ninco, digest="unknown"), tmp_path / "data", tmp_path / bound)
    assert place.dataset
    found = load_images(place.dataset, LoadOptions(tmp_path / "data", Store(tmp_path / "s")), labelled=False)
    assert found.names == ("ninco/b/2.jpg", "ninco/a/1.jpg") and [found.read(i).height for i in (0, 1)] == [10, 9]


def test_a_missing_bound_place_is_reported_before_any_fetch(tmp_path: Path, cli: Cli) -> None:
    put(tmp_path / "disk/SUN/images", *(f"{i}.jpg" for i in range(3)))
    bound = cli("datasets", "locate", "sun", tmp_path / "disk", "--allow-partial")
    assert bound.returncode == 0, bound.stderr
    (tmp_path / "disk").rename(tmp_path / "away")
    (tmp_path / "SUN.tar.gz").write_bytes(b"not read")
    done = cli("datasets", "get", "sun", "--from", tmp_path / "SUN.tar.gz", "--data", tmp_path / "data")
    assert done.returncode == 3 and f"it is bound to {tmp_path / 'disk'}, which does not exist" in done.stdout
    assert cli("datasets", "locate", "sun", "--forget").returncode == 0


def test_a_damaged_file_of_places_is_reported(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/places.toml").write_text("sun = \n")
    done = cli("datasets", "locate", "sun")
    assert done.returncode == 2 and "places.toml" in done.stderr and "bind again" in done.stderr


def test_layouts_of_the_catalogue_are_relative_and_distinct() -> None:
    declared = [(one.name, layout) for one in catalog.datasets().values() for layout in (one.path, *one.layouts)]
    parts = {one.name for one in catalog.datasets().values() if one.within or one.parts or one.loader == "list"}
    seen: dict[str, str] = {}
    for name, layout in declared:
        assert not Path(layout).is_absolute() and ".." not in layout
        if name not in parts and catalog.dataset(name).loader not in ("torchvision", "glyphs"):
            assert seen.setdefault(layout, name) == name


def test_get_sees_every_layout_and_unpacks_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing sets are not fetched; --from sorts the archive into class folders even if a run reads it in place."""
    from oodbench.data import fetch, install

    pack(tmp_path / "data/ILSVRC2012_img_val.tar")
    one = dataclasses.replace(catalog.dataset("imagenet1k"), count=N)
    monkeypatch.setattr(catalog, "dataset", lambda name: one)

    def sort(file: Path, kind: str, folder: Path, target: Path, options: fetch.GetOptions) -> str:
        put(target, *SORTED)
        return " sorted"

    monkeypatch.setattr(install, "_sort", sort)
    summary = fetch.get(["imagenet1k"], tmp_path / "data")
    assert summary.exit_code == 0 and "12 images at" in summary.text() and not (tmp_path / "data/imagenet1k").exists()
    options = fetch.GetOptions(source=tmp_path / "data/ILSVRC2012_img_val.tar")
    summary = fetch.get(["imagenet1k"], tmp_path / "data", options)
    assert summary.exit_code == 0 and "sorted" in summary.text() and (tmp_path / "data/imagenet1k/val").is_dir()
