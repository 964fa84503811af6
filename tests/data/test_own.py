"""A user's sets and benchmarks: declared by a command, found by every other, refused if they are invalid."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data.add import add_benchmark, add_dataset
from oodbench.data.catalog import Benchmark
from oodbench.data.checks.scope import select_sets
from oodbench.data.load import LoadOptions, class_names_of, load_images
from oodbench.data.overlap import check_calibration
from oodbench.data.paths import config_folder
from oodbench.data.prompts import clean_names
from oodbench.errors import UserError
from oodbench.storage.store import Store

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with land/test, land/train (River, Forest), others/ and far/, and an empty configuration."""
    names = [f"land/{split}/{name}/{i}" for split in ("test", "train") for name in ("River", "Forest") for i in "ab"]
    for number, name in enumerate([*names, "others/1", "others/2", "far/1"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 90, 20)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path / "config"))
    for cache in (catalogue.datasets, catalogue.benchmarks):
        cache.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    for cache in (catalogue.datasets, catalogue.benchmarks):
        cache.cache_clear()


def land(place: Path, **fields: str) -> None:
    add_dataset("land", {"loader": "classes", "path": "land/test", **fields}, Store(place / "store"))


def test_a_training_set_is_declared_with_its_id_set(place: Path) -> None:
    land(place, train="folder:land/train")
    one = catalogue.dataset("land")
    assert one.train == f"folder:{place}/land/train"
    assert select_sets(["land"]).calibrations["land"].path == f"{place}/land/train"
    (place / "land/train/Forest").rename(place / "land/train/Wood")
    with pytest.raises(UserError, match="other classes than 'town': 2 instead of 2; it lacks Forest; it also has Wood"):
        add_dataset(
            "town", {"loader": "classes", "path": "land/test", "train": "folder:land/train"}, Store(place / "s")
        )
    assert "town" not in catalogue.datasets() and not (place / "config/datasets/town.toml").exists()


def test_a_user_benchmark_is_found_like_a_shipped_one(place: Path) -> None:
    land(place)
    sets = Benchmark("", "Land", "land", near=("folder:others",), far=("dtd",), calibration="folder:land/train")
    file = add_benchmark("land-use", sets)
    assert tomllib.loads(file.read_text()) == {
        "title": "Land",
        "id": "land",
        "near": [f"folder:{place}/others"],
        "far": ["textures"],
        "calibration": f"folder:{place}/land/train",
    }
    assert list(catalogue.benchmarks())[-1] == "land-use" and "mos" in catalogue.benchmarks()
    found = catalogue.protocol("land-use")
    assert found.id == catalogue.dataset("land") and found.benchmark.calibration == f"folder:{place}/land/train"
    assert [(one.title, group) for one, group in found.ood] == [("others", "near"), ("Textures", "far")]
    scope = select_sets(["land-use"])
    assert scope.roles["land"] == "ID" and scope.calibrations["land"].path == f"{place}/land/train"
    with pytest.raises(
        UserError, match=r"no benchmark of its own; .*--ood\n.*: --id land-use\n.*add NAME --id land --o"
    ):
        catalogue.protocol("land")
    add_benchmark("land", Benchmark("", "", "land", ood=("folder:far",)))
    assert catalogue.protocol("land").benchmark.title == "land"  # the name of an ID set runs its benchmark


@pytest.mark.parametrize(
    ("name", "sets", "said"),
    [
        ("mos", {"ood": ("dtd",)}, "'mos' is declared already; take another name"),
        ("sun", {"ood": ("dtd",)}, "'sun' is declared already"),
        ("new", {"ood": ()}, "needs an OOD set; name some with --ood, or with --near and --far"),
        ("new", {"ood": ("dtd",), "near": ("textures",)}, "names 'textures' twice"),
        ("new", {"ood": ("folder:land/test",), "id": "folder:land/test"}, "names 'folder:.*' twice; ID and OOD sets"),
        ("new", {"near": ("sunn",), "calibration": "lands"}, "no dataset 'sunn'; did you mean 'sun'(.|\n)*'lands'"),
        ("New", {"ood": ("dtd",)}, "a benchmark's name is made of a-z, 0-9, - and ., not 'New'"),
    ],
)
def test_benchmarks_that_do_not_fit_are_refused(name: str, sets: dict[str, str], said: str, place: Path) -> None:
    land(place)
    with pytest.raises(UserError, match=said):
        add_benchmark(name, Benchmark("", "", **{"id": "land", **sets}))  # type: ignore[arg-type]
    assert not (place / "config/benchmarks").exists()


def test_names_cannot_be_redefined(place: Path) -> None:
    folder = place / "config/benchmarks"
    folder.mkdir(parents=True)
    for name, said in (("mos", r"'mos' is declared twice: in .*mos\.toml and"), ("sun", "'sun' is a dataset, but not")):
        (folder / f"{name}.toml").write_text('title = "x"\nid = "glyphs"\nood = ["dtd"]\n')
        with pytest.raises(UserError, match=said):
            catalogue.benchmarks()
        (folder / f"{name}.toml").unlink()
    (folder / ".mos.toml").touch()  # of an editor
    assert "mos" in catalogue.benchmarks()


def test_declarations_are_removed_unless_another_one_names_them(place: Path, cli: Cli) -> None:
    land(place)
    add_dataset("other", {"loader": "images", "path": "others"}, Store(place / "store"))
    add_benchmark("land-use", Benchmark("", "", "land[0]", ood=("other",)))
    for name in ("land", "other"):
        refused = cli("datasets", "remove", name)
        assert refused.returncode == 2
        assert refused.stderr == f"error: dataset '{name}' is used by benchmark 'land-use'; remove it first\n"
    for kind, name, said in (
        ("datasets", "mnist", "dataset 'mnist' is shipped with oodbench and cannot be removed"),
        ("benchmarks", "mos", "benchmark 'mos' is shipped with oodbench and cannot be removed"),
        ("datasets", "lend", f"no dataset 'lend' in {place}/config/datasets; did you mean 'land'?"),
        ("datasets", "../benchmarks/land-use", f"no dataset '../benchmarks/land-use' in {place}/config/datasets"),
    ):
        refused = cli(kind, "remove", name)
        assert refused.returncode == 2 and refused.stderr.startswith(f"error: {said}"), refused.stderr
    for kind, name in (("benchmarks", "land-use"), ("datasets", "land"), ("datasets", "other")):
        file = place / f"config/{kind}/{name}.toml"
        assert file.is_file() and cli(kind, "remove", name).stdout == f"deleted {file}\n" and not file.exists()
    assert "land" not in catalogue.datasets() and "land-use" not in catalogue.benchmarks()
    assert (place / "land/test").is_dir()
    land(place)  # the name is free again


def test_calibration_images_are_different_images_of_the_same_classes(place: Path) -> None:
    def listed(reference: str) -> object:
        return load_images(catalogue.dataset(reference), LoadOptions(Path(), Store(place / "store")), labelled=True)

    id_set = listed("folder:land/test")
    check_calibration(id_set, listed("folder:land/train"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="share images: methods that calibrate would have seen"):
        check_calibration(id_set, id_set)  # type: ignore[arg-type]
    (place / "land/train/River").rename(place / "land/River")
    with pytest.raises(UserError, match="have other classes than 'folder:land/test': 1 instead of 2; it lacks"):
        check_calibration(id_set, listed("folder:land/train"))  # type: ignore[arg-type]


def test_the_folder_of_declarations_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.delenv("OODBENCH_CONFIG")
    for xdg, folder in (
        ("", "/home/one/.config/oodbench"),
        ("/etc/one", "/etc/one/oodbench"),
        ("x", "/home/one/.config/oodbench"),
    ):
        monkeypatch.setenv("XDG_CONFIG_HOME", xdg)
        assert config_folder() == Path(folder)
    monkeypatch.setenv("OODBENCH_CONFIG", "/own")
    assert config_folder() == Path("/own")


def test_other_ood_sets_keep_the_encoder_and_calibration_of_a_benchmark(place: Path) -> None:
    sets = Benchmark("", "Land", "folder:land/test", ood=("folder:far",), calibration="folder:land/train")
    add_benchmark("land-use", replace(sets, encoder="glyphs", title="Of\x7fland"))
    asked = catalogue.protocol("land-use", ("folder:others",), "").benchmark
    assert (asked.encoder, asked.calibration) == ("glyphs", f"folder:{place}/land/train")
    assert [name for name, _ in asked.sets()] == ["folder:others"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["AnnualCrop", "Forest", "SeaLake"], ["annual crop", "forest", "sea lake"]),
        (["golden_retriever", "Abyssinian"], ["golden retriever", "abyssinian"]),
        (["MRI", "MRIScan", "PET_CT", "headCT"], ["MRI", "MRI scan", "PET CT", "head CT"]),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["black footed albatross", "laysan albatross"]),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["chihuahua", "japanese spaniel"]),
        (["7-segment display", "T-shirt", "St. Bernard"], ["7-segment display", "t-shirt", "St. Bernard"]),
        (["church/indoor", "2CV", "A320", "35_mm"], ["church indoor", "2CV", "A320", "35 mm"]),
        (["2_wheeler", "4_wheeler"], ["2 wheeler", "4 wheeler"]),
        (["Übergang", "ÉtéIndien", "_"], ["übergang", "été indien", "_"]),
    ],
)
def test_class_names_become_words(names: list[str], words: list[str]) -> None:
    assert list(clean_names(names)) == words
    assert list(clean_names(words)) == words  # nothing is left to do


def test_clean_names_are_suggested_and_printed(place: Path, cli: Cli) -> None:
    (place / "land/test/River").rename(place / "land/test/SeaLake")
    run = (
        "run",
        "--id",
        "folder:land/test",
        "--ood",
        "folder:others",
        "--encoder",
        "glyphs",
        "--methods",
        "mcm",
        "--dry-run",
    )
    offered = cli(*run)
    assert "1 class names are not words; --clean-names uses SeaLake as sea lake" in offered.stderr
    assert "classes    2 (list: folders)\n" in offered.stdout
    taken = cli(*run, "--clean-names")
    assert "note: folder:land/test: class names as words: forest (Forest), sea lake (SeaLake)\n" in taken.stderr
    assert "classes    2 (list: folders, as words)\n" in taken.stdout and "no words" not in taken.stderr
    added = cli("datasets", "add", "land", "--loader", "classes", "--path", "land/test", "--clean-names")
    assert "class names as words: forest (Forest), sea lake (SeaLake)" in added.stderr
    own = load_images(catalogue.dataset("land"), LoadOptions(Path(), Store(place / "store")), labelled=True)
    assert class_names_of(own).lines == ("forest", "sea lake")


def test_calibration_images_are_named_on_the_command_line(place: Path, cli: Cli) -> None:
    sets = ("--id", "folder:land/test", "--ood", "folder:others", "--encoder", "glyphs", "--dry-run")
    lacking = cli("run", "--methods", "react", *sets)
    assert lacking.returncode == 2 and "name its training images with --calibration, such as" in lacking.stderr
    assert cli("run", "--methods", "react", *sets, "--calibration", "folder:land/train").returncode == 0
    same = cli("run", "--methods", "all", *sets, "--calibration", "folder:land/test")  # named, so not left out
    assert same.returncode == 2 and "share images: methods that calibrate would have seen" in same.stderr
    unread = cli("run", "--methods", "mcm", *sets, "--calibration", "folder:land/train")
    assert "--calibration folder:land/train is ignored: no method of this run calibrates" in unread.stderr
