"""Derived sets, protocols on partial data, users' sets: encoded once, named, skipped only on request."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodbench import api
from oodbench.data import catalog as catalogue
from oodbench.data.add import add_dataset
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import UserError
from oodbench.pipeline.extract import EmbeddedSet, extract
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.task import encoder_loader
from oodbench.storage.store import Store
from tests.first_run import after_first_run
from tests.processes import script_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A data root with `photos`: six classes of ten real images; and `others`: twenty images without classes."""
    root = tmp_path_factory.mktemp("data")
    sources = sorted((shared / "data/Places/images").iterdir())
    for number, source in enumerate(sources[:80]):
        folder = root / f"photos/class_{number // 10}" if number < 60 else root / "others"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / source.name)
    return root


@pytest.fixture
def declared(photos: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """`photos` in the catalogue, and sets derived from it: by list, by classes, as unions."""
    names = [f"{p.parent.name}/{p.name}" for p in sorted((photos / "photos").rglob("*.jpg"))]
    odd = [f"elsewhere/{name} {name[6]}" for name in names[::-2]]  # another root, another order
    (photos / "odd.txt").write_text("\n".join(odd))
    rest = [f"{name} {name[6]}" for name in names[::2]]
    (photos / "rest.txt").write_text("\n".join(rest))
    sets = [
        Dataset("photos", "Photos", "classes", "photos", count=60, train="rest"),
        Dataset("others", "Others", "images", "others"),
        Dataset("odd", "Odd", "part", "photos", list="odd.txt", within="photos", count=30, train="rest"),
        Dataset("rest", "Rest", "part", "photos", list="rest.txt", within="photos", count=30),
        Dataset("both", "Both", "union", ".", parts=("rest", "odd"), count=60),
        Dataset("few", "Few", "part", "photos", within="photos", keep=("class_4", "class_1"), like="photos"),
    ]
    known = {one.name: one for one in sets}
    monkeypatch.setattr(catalogue, "datasets", lambda: known)
    return known


def listed(dataset: str, data: Path, labelled: bool = True, **options: Any) -> ImageSet:
    one = catalogue.dataset(dataset)
    return load_images(one, LoadOptions(data, Store(data / "store"), **options), labelled=labelled)


def planned(data: Path, tmp_path: Path, **options: Any) -> Plan:
    fixed: dict[str, Any] = {"encoder": "glyphs", "methods": "mcm", "batch_size": 16, "device": "cpu", "data": data}
    return make_plan(RunRequest(**{**fixed, "out": tmp_path / "out", "store": tmp_path / "store", **options}))


def embedded(plan: Plan, one: ImageSet) -> EmbeddedSet:
    return extract(plan.extraction_job(one), encoder_loader(plan, "cpu"))


def rows(found: EmbeddedSet) -> Any:
    return np.concatenate([np.asarray(shard.array("embeddings")) for shard in found.shards])


def test_a_part_by_list_does_not_depend_on_the_root_of_the_list(declared: dict[str, Dataset], photos: Path) -> None:
    odd, whole = listed("odd", photos), listed("photos", photos)
    assert len(odd) == 30 and odd.folders == whole.folders and odd.names[0] == whole.names[-1]
    assert [odd.folders[label] for label in odd.labels] == [name.split("/")[0] for name in odd.names]
    assert listed("odd", photos, labelled=False).labels.tolist() == [-1] * 30
    assert odd.limit(3).origins == () and len(odd.limit(3)) == 3
    (photos / "odd.txt").write_text("class_0/none.jpg 0\n" + (photos / "odd.txt").read_text())
    assert listed("odd", photos).absent == ("class_0/none.jpg",)
    (photos / "odd.txt").write_text(f"{whole.names[0]} 5")
    with pytest.raises(
        UserError, match=r"gives .* the label 5, its folder in .* is number 0; is a class folder missing"
    ):
        listed("odd", photos)


def test_a_part_by_list_does_not_depend_on_what_is_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet-R has equal image names in all class folders, and only one folder exists."""
    (tmp_path / "r/n01").mkdir(parents=True)
    (tmp_path / "r/n01/art_0.jpg").touch()
    one = Dataset("part", "Part", "part", "r", list="r.txt", within="r")
    monkeypatch.setattr(catalogue, "datasets", lambda: {"r": Dataset("r", "R", "images", "r"), "part": one})
    (tmp_path / "r.txt").write_text("imagenet_r/n02/art_0.jpg 1\nimagenet_r/n01/art_0.jpg 0")
    found = listed("part", tmp_path, labelled=False)
    assert found.names == ("n01/art_0.jpg",) and found.absent == ("imagenet_r/n02/art_0.jpg",)
    (tmp_path / "r.txt").write_text("r/n02/art_0.jpg 1\nr/n03/art_0.jpg 2")
    with pytest.raises(UserError, match=r"holds no images|such as r/n02/art_0\.jpg"):
        listed("part", tmp_path, labelled=False)
    (tmp_path / "r.txt").write_text("a/n01/art_0.jpg 0\nb/n01/art_0.jpg 0")
    with pytest.raises(UserError, match=r"names n01/art_0\.jpg of 'r' twice: as a/n01/art_0\.jpg and as b/n01/"):
        listed("part", tmp_path, labelled=False)


def test_a_range_names_class_folders_where_these_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "123":
        (tmp_path / f"n/{name}").mkdir(parents=True)
        (tmp_path / f"n/{name}/x.jpg").touch()
    monkeypatch.setattr(catalogue, "datasets", lambda: {"n": Dataset("n", "N", "classes", "n")})
    assert listed("n[1-2]", tmp_path).folders == listed("n[1 2]", tmp_path).folders == ("1", "2")
    for reference, said in (("n[0-2]", "has no class folder 0"), ("n[3-1]", "3-1 is not a range of classes")):
        with pytest.raises(UserError, match=said):
            listed(reference, tmp_path)


def test_parts_and_unions_of_open_files_can_be_pickled(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import pickle

    from oodbench.distributed.payload import portable
    from tests.data.test_loaders import as_parquet

    path = as_parquet(photos / "photos", tmp_path).removeprefix("hf:")
    known = {
        "rows": Dataset("rows", "Rows", "parquet", path),
        "some": Dataset("some", "Some", "part", path, within="rows", keep=("5", "1")),
        "more": Dataset("more", "More", "part", path, within="rows", keep=("0", "2")),
        "all": Dataset("all", "All", "union", ".", parts=("some", "more")),
    }
    monkeypatch.setattr(catalogue, "datasets", lambda: known)
    for name in ("some", "all", "some[0]", "all[1]"):
        one = listed(name, photos)
        there = pickle.loads(pickle.dumps(portable(one, photos, Store(tmp_path / "store"))))
        assert there.digest == one.digest and there.read(3).tobytes() == one.read(3).tobytes()


def test_a_part_by_classes_keeps_them_in_their_order(declared: dict[str, Dataset], photos: Path) -> None:
    few = listed("few", photos)
    assert few.folders == ("class_4", "class_1") and len(few) == 20
    assert few.labels.tolist() == [1] * 10 + [0] * 10
    rest = listed("photos[! 1 4]", photos)
    assert rest.folders == ("class_0", "class_2", "class_3", "class_5") and len(rest) == 40
    assert listed("photos[1-3]", photos).folders == ("class_1", "class_2", "class_3")
    assert not set(rest.names) & set(few.names)
    for reference, said in (
        ("photos[class_9]", "'photos' has no class class_9; did you mean 'class_"),
        ("photos[6]", "'photos' has no class 6, it has 6"),
        ("photos[1 0-2]", "class 1 of 'photos' is named twice"),
    ):
        with pytest.raises(UserError, match=said):
            listed(reference, photos)


def test_derived_sets_are_encoded_once(declared: dict[str, Dataset], photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, tmp_path, id="photos", ood=("others",))
    whole = embedded(plan, plan.id)
    vectors = dict(zip(plan.id.names, rows(whole), strict=True))

    def refuse() -> Any:
        raise AssertionError("an image was encoded again")

    for name in ("odd", "rest", "few", "both", "photos[! 3]"):
        one = listed(name, photos)
        assert plan.extraction_job(one).missing() == 0
        taken = extract(plan.extraction_job(one), refuse)
        inner = [n.removeprefix("odd/").removeprefix("rest/") for n in one.names]
        assert np.array_equal(rows(taken), np.stack([vectors[n] for n in inner]))
        assert taken.positions.tolist() == list(range(len(one)))
        assert np.array_equal(np.asarray(one.read(0)), np.asarray(plan.id.read(plan.id.names.index(inner[0]))))


def test_a_part_encodes_its_whole_set_first(declared: dict[str, Dataset], photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, tmp_path, id="odd", ood=("others", "rest"))
    work = plan.extraction_job(plan.id)
    assert (work.missing(), work.images(), len(plan.id)) == (60, 60, 30)
    done: list[int] = []
    extract(work, encoder_loader(plan, "cpu"), done.append)
    assert sum(done) == 60
    assert (
        plan.extraction_job(listed("photos", photos)).missing()
        == plan.extraction_job(listed("rest", photos)).missing()
        == 0
    )


def test_what_is_skipped_in_the_whole_is_skipped_in_the_part(
    declared: dict[str, Dataset], photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(photos, root)
    plan = planned(root, tmp_path, id="photos", ood=("others",), on_error="skip")
    broken = root / "photos" / plan.id.names[-1]
    broken.write_bytes(broken.read_bytes()[:300])
    odd = listed("odd", root)
    job = plan.extraction_job(odd)
    found = extract(job, encoder_loader(plan, "cpu"))
    assert len(rows(found)) == 29 and found.positions[0] == 1
    assert len(found.skipped) == 1 and found.skipped[0].startswith(f"{odd.names[0]}: ")
    with pytest.raises(UserError, match="cannot be read"):
        extract(replace(job, reading=replace(job.reading, on_error="stop")), lambda: None)  # type: ignore[arg-type,return-value]


@pytest.mark.slow
def test_a_run_on_parts(declared: dict[str, Dataset], photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, tmp_path, id="odd", ood=("others", "rest"), methods="mcm,react")
    assert plan.calibration is None or len(plan.calibration) == 30
    outcome = api.run(plan)
    assert [r.status for r in outcome.results] == ["ok"] * len(outcome.results)
    assert {row.dataset: row.n for row in outcome.results[0].ood} == {"others": 20, "rest": 30}
    assert outcome.results[0].id.n == 30 and outcome.results[0].id.accuracy is not None


@pytest.mark.slow
def test_sets_that_share_images_are_refused(declared: dict[str, Dataset], photos: Path, tmp_path: Path) -> None:
    planned(photos, tmp_path, id="photos[0-2]", ood=("photos[3-5]", "others"))
    for id_set, ood in (
        ("photos[0-2]", "photos[2-5]"),
        ("odd", "both"),
        ("photos", "odd"),
        ("odd", "photos"),
        ("both", "odd"),
    ):
        with pytest.raises(UserError, match="share images"):
            planned(photos, tmp_path, id=id_set, ood=(ood,))


@pytest.mark.slow
def test_real_images_embed_alike_from_every_place(photos: Path, tmp_path: Path) -> None:
    from tests.data.test_loaders import FORMS

    (tmp_path / "forms").mkdir()
    references = [form(photos / "photos", tmp_path / "forms") for form in FORMS]
    plan = planned(photos, tmp_path, id=f"folder:{photos / 'photos'}", ood=("glyphs-near",), methods="mcm")
    expected = rows(embedded(plan, plan.id))
    for one in references:
        found = listed(one, photos, labelled=False)
        assert plan.extraction_job(found).missing() == (
            0 if one.startswith("list:") else 60
        )  # a list of the same files in order
        assert np.array_equal(rows(embedded(plan, found)), expected), one


@pytest.mark.slow
def test_cifar_tars_run_as_clipn_s_protocol(shared: Path, tmp_path: Path) -> None:
    """Missing OOD sets are listed, and skipped only on request."""
    for name in ("cifar10", "cifar100"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.tar").symlink_to(shared / f"data/cifar/{name}-test.tar")
    options: dict[str, Any] = {"id": "clipn-cifar-imagenet-resize", "limit": 200}
    with pytest.raises(UserError) as error:
        planned(tmp_path, tmp_path, **options)
    assert "'lsun' was not found" in str(error.value) and "'imagenet-resize' was not found" in str(error.value)
    for name in ("lsun", "imagenet-resize"):  # says how to get it
        assert f"oodbench datasets get {name} --data {tmp_path}" in str(error.value)
    plan = planned(tmp_path, tmp_path, **options, skip_missing=True)
    assert [one.listing.dataset.name for one in plan.ood] == ["cifar10"]
    assert plan.benchmark.name == "clipn-cifar-imagenet-resize-without-lsun+imagenet-resize"
    assert [note.partition(" was")[0] for note in plan.skipped] == [
        "skipped: dataset 'lsun'",
        "skipped: dataset 'imagenet-resize'",
    ]
    assert len(plan.classes.lines) == 100 and plan.classes.name == "cifar100"
    (result,) = api.run(plan).results
    assert result.status == "ok" and result.ood[0].n == 200 and 0 < result.ood[0].auroc < 1
    shutil.rmtree(tmp_path / "cifar10")
    with pytest.raises(UserError, match="none of the OOD sets of 'clipn-cifar-imagenet-resize' exists"):
        planned(tmp_path, tmp_path, **options, skip_missing=True)
    shutil.rmtree(tmp_path / "cifar100")
    with pytest.raises(UserError, match="dataset 'cifar100' was not found"):
        planned(tmp_path, tmp_path, **options, skip_missing=True)


@pytest.mark.slow
def test_zoc_s_split_of_the_cifar_tars(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/test.tar").symlink_to(shared / "data/cifar/cifar10-test.tar")
    plan = planned(tmp_path, tmp_path, id="zoc-cifar10-1")
    assert (len(plan.id), len(plan.ood[0].listing)) == (6000, 4000)
    assert plan.classes.lines == ("airplane", "automobile", "truck", "horse", "cat", "bird")
    assert set(plan.id.names).isdisjoint(plan.ood[0].listing.names)
    first = plan.id.names[int((plan.id.labels == 2).argmax())]
    assert first.startswith("truck/")


@pytest.mark.slow
def test_openood_nests_in_mos(shared: Path, tmp_path: Path) -> None:
    """Parts of 45,000 and 5,000 of the 50,000 images; both protocols share the other sets."""
    mos, openood = catalogue.benchmarks()["mos"], catalogue.benchmarks()["openood"]
    assert catalogue.dataset(openood.id).within == mos.id == catalogue.dataset(openood.calibration).within
    assert "inaturalist" in openood.far and "inaturalist" in mos.ood
    assert catalogue.dataset("textures-5160").within == "textures"
    lists = tmp_path / "benchmark_imglist/imagenet"
    lists.mkdir(parents=True)
    for split in ("test", "val"):
        packed = shared / f"data/lists/openood/{split}_imagenet.txt.gz"
        (lists / f"{split}_imagenet.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    folders = sorted(one.name for one in (shared / "data/imagenet1k/val").iterdir())
    for folder in folders:
        (tmp_path / "imagenet1k/val" / folder).mkdir(parents=True)
    lines = [line.split() for s in ("test", "val") for line in (lists / f"{s}_imagenet.txt").read_text().splitlines()]
    for name, label in lines[::500]:
        (tmp_path / "imagenet1k/val" / folders[int(label)] / Path(name).name).touch()
    test, val = listed("imagenet1k-test-openood", tmp_path), listed("imagenet1k-val-openood", tmp_path)
    assert (len(test), len(val)) == (90, 10) and (len(test.absent), len(val.absent)) == (44_910, 4_990)
    assert len(test.folders) == 1000 and set(test.names).isdisjoint(val.names)
    assert [folders[label] for label in test.labels] == [name.split("/")[0] for name in test.names]


def test_a_user_set_is_declared(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    catalogue.datasets.cache_clear()
    store = Store(tmp_path / "store")
    try:
        made = add_dataset("mine", {"loader": "classes", "path": str(photos / "photos"), "cite": 'Doe "x"'}, store)
        assert made.file == tmp_path / "config/datasets/mine.toml" and len(made.images) == 60 and not made.only_ood
        one = catalogue.dataset("mine")
        assert (one.count, one.cite, one.declared) == (60, 'Doe "x"', True)
        assert len(listed("mine", Path("/elsewhere"))) == 60
        flat = add_dataset("flat", {"loader": "images", "path": str(photos / "others")}, store)
        assert len(flat.images) == 20 and "is in none" in flat.only_ood
        refused: list[tuple[str, dict[str, str], str]] = [
            (
                "mine",
                {"loader": "images", "path": "x"},
                "'mine' is declared already, in .*mine.toml; take another name",
            ),
            ("dtd", {"loader": "images", "path": "x"}, "'dtd' is declared already; take another name"),
            ("Mine!", {"loader": "images", "path": "x"}, "a dataset's name is made of"),
            ("new", {"loader": "image", "path": "x"}, "no loader 'image'; did you mean 'images'"),
            ("new", {"loader": "images", "path": str(tmp_path / "none")}, "'new' was not found at"),
            ("new", {"loader": "classes", "path": str(photos / "others")}, "is in none"),
            ("new", {"loader": "list", "path": str(photos)}, "loader 'list' needs --list"),
        ]
        for name, fields, said in refused:
            with pytest.raises(UserError, match=said):
                add_dataset(name, fields, store)
        assert sorted(p.name for p in (tmp_path / "config/datasets").iterdir()) == ["flat.toml", "mine.toml"]
    finally:
        catalogue.datasets.cache_clear()


@pytest.mark.slow
def test_the_page_on_datasets_can_be_followed(photos: Path, tmp_path: Path) -> None:
    """Every command of docs/adding-a-dataset.md, unchanged, in the folder that the page assumes."""
    page = (ROOT / "docs/adding-a-dataset.md").read_text()
    shutil.copytree(photos / "photos", tmp_path / "photos")
    shutil.copytree(photos / "others", tmp_path / "others")
    own = {"OODBENCH_CONFIG": str(tmp_path / "config"), **after_first_run(tmp_path)}
    env = {**os.environ, **own, "PATH": os.pathsep.join([script_folder(), os.environ["PATH"]])}
    said = ""
    for command in "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines():
        if command:
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            said += done.stdout + done.stderr
    assert "my-photos: 60 images" in said and "note: skipped: dataset 'svhn' was not found" in said
    assert "My photos" in said and "Other photos" in said
    (shipped,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shipped.toml").write_text(shipped)
    assert catalogue.read_dataset(tmp_path / "shipped.toml").count == tomllib.loads(shipped)["count"] == 1200


def protocol_data(shared: Path, root: Path) -> None:
    """OpenOOD's lists and, for their first lines, real images in the folders that the declarations name."""
    lists = root / "benchmark_imglist/imagenet"
    lists.mkdir(parents=True)
    for packed in (shared / "data/lists/openood").glob("*_*.txt.gz"):
        (lists / packed.name.removesuffix(".gz")).write_bytes(gzip.decompress(packed.read_bytes()))
    wnids = sorted((shared / "data/imagenet1k/val").iterdir())
    originals = [next(one.iterdir()) for one in wnids]
    places = sorted((shared / "data/Places/images").iterdir())

    def lines(name: str) -> list[tuple[str, int]]:
        pairs = [line.rsplit(" ", 1) for line in (lists / f"{name}.txt").read_text().splitlines()]
        return [(path, int(label)) for path, label in pairs]

    def put(path: Path, image: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(image)

    for split, step in (("test", 45), ("val", 100)):  # one image of every class, and of every twentieth
        for name, label in lines(f"{split}_imagenet")[::step]:
            put(root / "imagenet1k/val" / wnids[label].name / Path(name).name, originals[label])
    for number, name in enumerate(("ssb_hard", "ninco", "openimage_o", "imagenet_c")):
        for offset, (path, _) in enumerate(lines(f"test_{name}")[:20]):
            put(root / "images_largescale" / path, places[number * 20 + offset])
    for offset, (path, _) in enumerate(lines("test_imagenet_v2")[::500]):
        put(root / "imagenet-v2" / path.removeprefix("imagenet_v2/"), places[100 + offset])
    for offset, (path, _) in enumerate(lines("test_imagenet_r")[::1500]):
        put(root / "imagenet-r" / path.removeprefix("imagenet_r/"), places[120 + offset])
    for offset, (path, _) in enumerate(lines("test_inaturalist")[:20]):
        put(root / "iNaturalist/images" / Path(path).name, places[140 + offset])
    (root / "dtd").symlink_to(shared / "data/dtd")


@pytest.mark.slow
def test_openood_and_mos_run_by_name(shared: Path, tmp_path: Path) -> None:
    """Near, far and full spectrum; a second protocol on the same images encodes only what is new."""
    protocol_data(shared, tmp_path / "data")
    options: dict[str, Any] = {"methods": "mcm,react", "allow_partial": True}

    def encoded() -> int:
        return sum(
            entry.inputs["engine"] > 0 and "of" not in entry.inputs
            for entry in Store(tmp_path / "store").entries()
            if entry.kind == "embeddings"
        )

    plan = planned(tmp_path / "data", tmp_path, **options, id="openood")
    assert (
        plan.calibration and plan.calibration.dataset.name == "imagenet1k-val-openood" and len(plan.calibration) == 50
    )
    (mcm, react) = api.run(plan).results
    assert mcm.status == react.status == "ok" and mcm.id.n == 1000
    assert [(row.dataset, row.group) for row in mcm.ood] == [
        ("ssb-hard", "near"),
        ("ninco", "near"),
        ("inaturalist", "far"),
        ("textures-5160", "far"),
        ("openimage-o", "far"),
    ]
    import oodbench.report as report

    table = "\n".join(report.markdown(one) for one in report.tables([mcm, react]))
    assert "near" in table.lower() and "far" in table.lower() and "SSB-hard" in table
    before = encoded()
    again = planned(tmp_path / "data", tmp_path, **{**options, "methods": "mcm"}, id="mos", skip_missing=True)
    assert [one.listing.dataset.name for one in again.ood] == ["inaturalist", "textures"]
    assert sum(again.extraction_job(one).missing() for one in again.listings) == 0
    assert [one.status for one in api.run(again).results] == ["ok"] and encoded() == before
    spectrum = planned(tmp_path / "data", tmp_path, **options, id="openood-fs")
    assert len(spectrum.id) == 1000 + 20 + 20 + 20 and len(spectrum.classes.lines) == 1000
    assert spectrum.id.labels[1020:1040].tolist() != [-1] * 20 and spectrum.id.labels.max() < 1000
    assert api.run(spectrum).results[0].id.n == 1060 and encoded() == before + 3
