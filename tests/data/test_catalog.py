"""The catalogue: every declaration is complete, and sets are found by name, alias and folder."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from oodbench.cli import listings
from oodbench.data import catalog as catalogue
from oodbench.data import prompts
from oodbench.data.catalog import Benchmark, Dataset, benchmarks, dataset, datasets, protocol
from oodbench.data.paths import data_root, declarations
from oodbench.errors import UserError


@pytest.mark.parametrize("name", sorted(datasets()))
def test_a_dataset_is_complete(name: str) -> None:
    one = datasets()[name]
    assert one.title and one.path and one.licence and one.cite and one.obtain
    assert not Path(one.path).is_absolute()
    assert not one.classes or one.classes in prompts.names("classes")
    assert one.digest == "unknown" or (one.list and re.fullmatch("[0-9a-f]{64}", one.digest))
    assert not one.train or labelled_alike(one, datasets()[one.train])
    assert not one.benchmark or benchmarks()[one.benchmark].id == name
    assert not one.url or one.url.startswith("http")
    if one.loader == "glyphs":
        from oodbench.data.glyphs import world

        assert one.path in world.SPLITS
    elif one.loader == "part":
        assert datasets()[one.within].path == one.path
    else:
        assert one.path in one.obtain, "says which folder is expected"
    assert one.list in one.obtain and one.keep_file in one.obtain
    assert all(n in datasets() for n in (*one.parts, *filter(None, (one.within, one.like))))
    if one.classes and one.keep:
        assert len(prompts.class_names(one.classes).lines) == len(one.keep) == len(set(one.keep))


def labelled_alike(one: Dataset, train: Dataset) -> bool:
    """Whether a training split has the classes of its set in the same order."""
    return (one.classes, one.keep) == (train.classes, train.keep)


@pytest.mark.parametrize("name", sorted(benchmarks()))
def test_a_benchmark_is_complete(name: str) -> None:
    one = benchmarks()[name]
    sets = [one.id, *(n for n, _ in one.sets()), *([one.calibration] if one.calibration else [])]
    assert one.title and one.cite and len(sets) > 1 and len(set(sets)) == len(sets)
    assert all(dataset(n).title for n in sets)
    assert not (one.ood and (one.near or one.far)), "distinguished, or not"
    assert name not in datasets() or one.id == name, "a name means one thing"


def test_names_and_aliases_mean_one_thing() -> None:
    names = [*datasets(), *(alias for d in datasets().values() for alias in d.aliases)]
    assert [n for n, times in Counter(names).items() if times > 1] == []
    assert not {a for d in datasets().values() for a in d.aliases} & set(benchmarks())
    assert all(re.fullmatch(r"[a-z0-9-]+", n) for n in (*names, *benchmarks()))


def test_titles_of_sets_are_distinct() -> None:
    for one in benchmarks().values():
        titles = [dataset(n).title for n in (one.id, *(name for name, _ in one.sets()))]
        assert len(set(titles)) == len(titles)


def test_counts_match_the_protocols() -> None:
    counts = {name: datasets()[name].count for name, _ in benchmarks()["mos"].sets()}
    assert counts == {"inaturalist": 10_000, "sun": 10_000, "places": 10_000, "textures": 5640}
    counts = {name: datasets()[name].count for name, _ in benchmarks()["openood"].sets()}
    assert counts == {
        "ssb-hard": 49_000, "ninco": 5879, "inaturalist": 10_000, "textures-5160": 5160, "openimage-o": 15_869
    }  # fmt: skip
    assert sum(n or 0 for n in counts.values()) == 85_908
    assert (datasets()["imagenet1k-test-openood"].count, datasets()["imagenet1k-val-openood"].count) == (45_000, 5000)
    assert datasets()["imagenet1k"].count == 50_000 and datasets()["imagenet1k-train"].count == 1_281_167


def test_datasets_is_no_package() -> None:
    """With an __init__.py it would shadow Hugging Face's `datasets` once the checkout is on sys.path."""
    assert not list(declarations().rglob("*.py"))


def test_a_set_has_a_name_and_aliases() -> None:
    assert dataset("dtd") == dataset("textures") and dataset("textures").declared
    assert dataset("imagenet1k", "mine.txt").classes == "mine.txt"
    with pytest.raises(UserError, match="no dataset 'texture'; did you mean 'textures'"):
        dataset("texture")
    with pytest.raises(UserError, match="no dataset 'moss'; did you mean 'mos'"):
        dataset("moss")


def test_a_folder_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    one = dataset("folder:photos/mine", "names.txt")
    assert (one.title, one.path, one.classes) == ("mine", str(tmp_path / "photos/mine"), "names.txt")
    assert not one.declared and one.folder(Path("data")) == tmp_path / "photos/mine"
    assert dataset("folder:~/x").path == str(tmp_path / "x")
    with pytest.raises(UserError, match="folder: needs a path"):
        dataset("folder:")


def test_an_id_set_selects_its_protocol() -> None:
    mos = protocol("mos")
    assert protocol("imagenet1k").benchmark is mos.benchmark is benchmarks()["mos"]
    assert mos.id == dataset("imagenet1k") and [(one.name, group) for one, group in mos.ood] == mos.benchmark.sets()
    assert protocol("imagenet1k", ("inaturalist", "sun", "places", "dtd")) == mos
    with pytest.raises(UserError, match="'dtd' has no benchmark of its own; name its OOD sets with --ood"):
        protocol("dtd")
    with pytest.raises(UserError) as error:
        protocol("imagnet1k", ("textures", "sunn", "mos"))
    assert sum("no dataset" in line for line in str(error.value).splitlines()) == 3


def test_a_custom_pairing_has_a_name() -> None:
    own = protocol("mos", ("dtd", "textures", "glyphs-near"))
    assert own.benchmark == Benchmark(
        name="imagenet1k-vs-textures+glyphs-near",
        title="ImageNet-1k against Textures, Other symbols",
        id="imagenet1k",
        ood=("textures", "glyphs-near"),
        encoder="ViT-B-16/openai",
    )
    assert protocol("glyphs", ("glyphs-near",)).benchmark.encoder == "glyphs"


def test_folders_with_the_same_name_get_distinct_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = protocol("folder:p/a/x", ("folder:q/a/x", "folder:b/x", "folder:./b/x/", "folder:y"))
    assert [one.title for one in (own.id, *(one for one, _ in own.ood))] == ["p/a/x", "q/a/x", "b/x", "y"]
    assert own.benchmark.name == "p/a/x-vs-q/a/x+b/x+y"
    assert own.benchmark.title == "p/a/x against q/a/x, b/x, y"
    assert own.benchmark.ood == ("folder:q/a/x", "folder:b/x", "folder:y")
    shared = catalogue.titled([dataset("textures"), dataset("folder:mine/Textures")])
    assert [d.title for d in shared] == ["Textures", "mine/Textures"]


def test_the_data_root_is_the_flag_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OODBENCH_DATA", "")
    assert data_root(None) == Path("data")
    monkeypatch.setenv("OODBENCH_DATA", "~/d")
    assert data_root(None) == Path.home() / "d"
    assert data_root(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('titel = "x"', "no key 'titel'; did you mean 'title'"),
        ('name = "x"', "no key 'name'"),
        ("title = 3", "'title' takes str, not 3"),
        ('title = "x"\nloader = "images"\npath = "x"\ncount = true', "'count' takes"),
        ('title = "x"\nloader = "images"\npath = "x"\naliases = [1]', "'aliases' takes"),
        ('title = "x"\nloader = "images"\npath = "x"\naliases = "y"', "'aliases' takes"),
        ('title = "x"', "is not complete"),
        ('title = "x"\nloader = "list"\npath = "x"', "loader 'list' needs 'list'"),
        ('title = "x"\nloader = "part"\npath = "x"\nwithin = "y"', "needs 'list', 'keep' or 'keep_file'"),
        ('title = "x"\nloader = "image"\npath = "x"', "no loader 'image'; did you mean 'images'"),
        ("title =", "Invalid value"),
    ],
)
def test_declarations_are_strict(text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setattr(catalogue, "declarations", lambda: tmp_path)
    with pytest.raises(UserError) as error:
        catalogue.datasets.__wrapped__()
    assert problem in str(error.value)


def test_a_name_is_declared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.setenv("OODBENCH_CONFIG", str(tmp_path))
    (tmp_path / "datasets" / "dtd.toml").write_text('title = "x"\nloader = "images"\npath = "x"')
    with pytest.raises(UserError, match=r"'dtd' is declared twice: in .*textures\.toml and in .*dtd\.toml"):
        catalogue.datasets.__wrapped__()
    (tmp_path / "datasets" / "dtd.toml").rename(tmp_path / "datasets" / "mine.toml")
    assert "mine" in catalogue.datasets.__wrapped__()


def test_classes_of_a_set_are_a_set() -> None:
    one = dataset("cifar10[0,1 5-7]")
    assert (one.within, one.keep, one.title) == ("cifar10", ("0", "1", "5-7"), "CIFAR-10 [0 1 5-7]")
    assert one.name == "cifar10[0 1 5-7]" and dataset(one.name) == one
    assert dataset("cifar10[!0 1]").keep == dataset("cifar10[! 0 1]").keep == ("!", "0", "1")
    with pytest.raises(UserError, match="names no class"):
        dataset("cifar10[]")
    with pytest.raises(UserError, match="no dataset 'cifar1'"):
        dataset("cifar1[0]")


def test_zoc_s_splits_are_those_of_the_paper() -> None:
    """6 against 4, 20 against 80 and 20 against 180 classes; four vehicles against ten or fifty others."""
    zoc = {name: one for name, one in benchmarks().items() if name.startswith("zoc-")}
    assert len(zoc) == 5 + 5 + 5 + 5 + 1
    for name, one in zoc.items():
        seen, unseen = dataset(one.id), dataset(one.ood[0])
        if "plus" in name:
            assert seen.keep == ("0", "1", "8", "9") and len(set(unseen.keep)) == (50 if "50" in name else 10)
        else:
            assert unseen.keep == ("!", *seen.keep) and seen.within == unseen.within
            size = {"cifar10": 6, "cifar100": 1, "tiny-imagenet": 20}[seen.within]
            assert len(set(seen.keep)) == size


def test_listings_name_every_set(tmp_path: Path) -> None:
    (tmp_path / "dtd/images").mkdir(parents=True)
    out = listings.datasets(tmp_path)
    assert all(name in out for name in (*datasets(), *benchmarks()))
    assert re.search(r"^textures .* found$", out, re.MULTILINE) and re.search(r"^sun .* not found$", out, re.MULTILINE)
    for name in datasets():
        assert datasets()[name].obtain in listings.dataset(datasets()[name], tmp_path)
    assert str(tmp_path) in listings.dataset(dataset(f"folder:{tmp_path}"), tmp_path)
    shown = listings.dataset(datasets()["ninco"], tmp_path)
    assert datasets()["ninco"].digest in shown and "unknown" in listings.dataset(datasets()["places365"], tmp_path)
    for one in benchmarks().values():
        assert all(name in listings.benchmark(protocol(one.name), tmp_path) for name, _ in one.sets())


@pytest.mark.parametrize(("text", "size"), [("20GB", 20 * 10**9), ("1.5 kb", 1500), ("7", 7), ("3M", 3 * 10**6)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert listings.parse_bytes(text) == size


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="cannot read the size 'much'"):
        listings.parse_bytes("much")
    assert listings.bytes_text(12_345_678) == "12.3 MB" and listings.bytes_text(0) == "0 B"


def test_two_lists_over_one_folder_are_two_sets() -> None:
    made = catalogue.protocol("glyphs", ["list:im/a.txt", "list:im/b.txt", "list:im/a.txt"])
    assert made.benchmark.ood == ("list:im/a.txt", "list:im/b.txt")


def test_a_protocol_without_a_set_says_so() -> None:
    openood = protocol("openood")
    without = openood.without(["ninco", "textures-5160"])
    assert without.benchmark.name == "openood-without-ninco+textures-5160"
    assert without.benchmark.title == f"{openood.benchmark.title}, without NINCO, Textures (OpenOOD)"
    assert [(one.name, group) for one, group in without.ood] == without.benchmark.sets()
    assert without.benchmark.near == ("ssb-hard",) and without.benchmark.far == ("inaturalist", "openimage-o")
    with pytest.raises(UserError, match="none of the OOD sets of 'openood' exists: ssb-hard, ninco"):
        openood.without(openood.benchmark.near + openood.benchmark.far)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of look-ups per name."""
    names: Counter[str] = Counter()
    real = catalogue.dataset

    def counted(reference: str, classes: str = "") -> Dataset:
        names[reference] += 1
        return real(reference, classes)

    monkeypatch.setattr(catalogue, "dataset", counted)
    return names


def test_each_name_of_a_protocol_is_looked_up_once(asked: Counter[str]) -> None:
    protocol("imagenet1k", ("dtd", "sun"))
    assert asked == {"imagenet1k": 1, "dtd": 1, "sun": 1}
    asked.clear()
    assert asked.total() == 0 and len(protocol("mos").ood) == 4
    assert asked == {name: 1 for name in ("imagenet1k", "inaturalist", "sun", "places", "textures")}


@pytest.mark.slow  # imports torch and open_clip
def test_each_name_of_a_request_is_looked_up_once(asked: Counter[str], tmp_path: Path) -> None:
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import RunRequest

    sets = [f"folder:{tmp_path / name}" for name in ("birds", "cars", "boats")]
    for name in ("birds/owl/1.png", "birds/kite/2.png", "cars/3.png", "boats/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), f"#{name[-5]}00000").save(tmp_path / name)
    request = RunRequest(id=sets[0], ood=tuple(sets[1:]), encoder="glyphs", methods="mcm", store=tmp_path / "store")
    plan = make_plan(request)
    assert asked == {name: 1 for name in sets}
    assert [one.listing.dataset.name for one in plan.ood] == sets[1:] == [name for name, _ in plan.benchmark.sets()]
