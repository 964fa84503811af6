"""`oodbench datasets check`: every kind of defect is created and detected; clean data have none."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import shutil
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from oodbench.cli import main
from oodbench.cli.datasets import check
from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Dataset
from oodbench.data.checks import calibration, duplicates, inspection, single
from oodbench.data.checks import pairs as wordnet
from oodbench.data.checks.findings import CheckReport, Finding, SetSummary, format_report
from oodbench.data.checks.inspection import ImageFacts, inspect_image, perceptual_hash
from oodbench.data.checks.run import CheckSettings, check_sets
from oodbench.data.checks.scope import CheckScope, select_sets
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import UserError
from oodbench.storage.store import Store
from tests.processes import Command, command

CLASSES = ("cab", "oak")
EACH = 10  # images of each class


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth coloured image, unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(autouse=True)
def no_wordnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """These tests must not depend on whether WordNet is installed."""
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "none"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Clean data: an ID set of two classes, an OOD set of two others, a training split, all with similar images."""
    root = tmp_path / "data"
    for number in range(EACH):
        for place, name in enumerate(("id/cab", "id/oak", "ood/kelp", "ood/lamp", "train/cab", "train/oak")):
            save(picture(100 * place + number), root / name / f"{number}.png")
    return root


def sets(**changes: Any) -> CheckScope:
    """The scope of the clean data; `changes` are fields of its ID set."""
    names = Dataset(name="train", title="train", loader="classes", path="train")
    id_set = Dataset(name="id", title="id", loader="classes", path="id", count=2 * EACH)
    found = CheckScope(calibrations={"id": names})
    found.add_pair(
        dataclasses.replace(id_set, **changes), Dataset(name="ood", title="ood", loader="images", path="ood")
    )
    return found


def checked(data: Path, what: CheckScope | None = None, **settings: Any) -> CheckReport:
    return check_sets(what or sets(), CheckSettings(data, Store(data.parent / "store"), workers=2, **settings))


def found(report: CheckReport, kind: str, level: str) -> Finding:
    """Return the only finding of a kind, and check its level."""
    (one,) = [f for f in report.findings if f.kind == kind]
    assert one.level == level, format_report(report)
    assert (level == "error") <= (not report.ok)
    return one


def test_clean_data_have_no_errors_or_warnings(data: Path) -> None:
    report = checked(data)
    assert report.ok and report.kinds() == ["no-wordnet"], format_report(report)
    assert [(c.name, c.role, c.images, c.looked) for c in report.sets] == [
        ("id", "ID", 20, 20), ("ood", "OOD", 20, 20), ("train", "calibration", 20, 0),
    ]  # fmt: skip
    assert report.sets[0].modes == {"RGB": 20} and report.sets[0].shorter == (48, 48, 48)


@pytest.mark.parametrize(("count", "told"), [(21, "1 are missing"), (15, "5 too many")])
def test_a_wrong_count(data: Path, count: int, told: str) -> None:
    assert told in found(checked(data, sets(count=count)), "count", "error").message


def test_a_list_with_another_digest_and_missing_images(data: Path) -> None:
    lines = "".join(f"{name}/{i}.png {k}\n" for k, name in enumerate(CLASSES) for i in range(EACH))
    (data / "list.txt").write_text(lines)
    declared: dict[str, Any] = {"loader": "list", "list": "list.txt"}
    clean = checked(data, sets(**declared))
    assert clean.ok, format_report(clean)
    right = clean.sets[0].digest
    assert checked(data, sets(**declared, digest=right)).ok
    (data / "list.txt").write_text(lines.replace("cab/3.png 0", "cab/3.png 1"))
    report = checked(data, sets(**declared, digest=right))
    assert right[:12] in found(report, "digest", "error").message
    assert report.sets[0].looked == 20  # and the check continued
    (data / "list.txt").write_text(lines + "cab/99.png 0\n")
    assert found(checked(data, sets(**declared)), "absent", "error").examples == ("cab/99.png",)


def test_unreadable_and_truncated_images(data: Path) -> None:
    raw = (data / "id/cab/3.png").read_bytes()
    (data / "id/cab/3.png").write_bytes(raw[: len(raw) // 2])
    (data / "id/cab/4.png").write_text("404 not found")
    picture(7).save(data / "id/cab/5.jpg")
    jpeg = (data / "id/cab/5.jpg").read_bytes()
    (data / "id/cab/5.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    finding = found(checked(data, sets(count=21)), "unreadable", "error")
    assert finding.count == 3
    assert [e.split(":")[0] for e in finding.examples] == ["cab/3.png", "cab/4.png", "cab/5.jpg"]


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("L", "png")]
)
def test_modes_are_counted(data: Path, mode: str, kind: str) -> None:
    image = picture(7)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    (data / "id/cab/3.png").unlink()
    save(image if image.mode == mode else image.convert(mode), data / f"id/cab/3.{kind}")
    report = checked(data)
    assert report.sets[0].modes == {"RGB": 19, mode: 1}
    assert report.sets[0].grey == (0.05 if mode in ("L", "I;16") else 0)
    if mode == "L":
        assert report.kinds() == ["no-wordnet"]
    else:
        assert found(report, "modes", "warning").count == 1


def test_class_folders_against_names(data: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("Cab\noak\n")
    assert checked(data, sets(classes=str(names))).ok
    names.write_text("oak\ncab\n")
    assert found(checked(data, sets(classes=str(names))), "classes", "error").examples[0] == "cab is named 'oak'"
    names.write_text("cab\noak\nelm\n")
    assert "has 3 names" in found(checked(data, sets(classes=str(names))), "classes", "error").message
    names.write_text("missile\nmissile\n")
    assert found(checked(data, sets(classes=str(names))), "class-twice", "note").examples == ("missile",)


def test_an_id_image_outside_the_class_folders(data: Path) -> None:
    save(picture(7), data / "id/loose.png")
    report = checked(data, sets(count=21))
    assert "is in none" in found(report, "classes", "error").message
    assert report.sets[0].looked == 21


def test_identical_images_are_found_by_their_pixels(data: Path) -> None:
    again = Image.open(data / "id/oak/4.png")
    again.save(data / "ood/kelp/again.bmp")  # names and bytes differ
    finding = found(checked(data), "identical", "error")
    assert finding.sets == ("id", "ood") and finding.examples == ("oak/4.png = kelp/again.bmp",)


def test_images_of_more_than_8_bits_are_compared_exactly(data: Path) -> None:
    for place, factor in (("id/cab", 200), ("ood/kelp", 90)):
        grey = np.asarray(picture(7).convert("L")).astype(np.uint16) * factor + 300  # all clipped when converted to RGB
        Image.fromarray(grey).save(data / place / "3.png")
    assert "identical" not in checked(data).kinds()


def test_near_duplicates(data: Path) -> None:
    original = Image.open(data / "id/oak/4.png")
    original.resize((300, 225)).save(data / "ood/kelp/large.jpg", quality=60)
    brighter = Image.fromarray((np.asarray(original) * 0.9 + 20).astype(np.uint8))
    brighter.save(data / "ood/kelp/bright.jpg", quality=80)
    report = checked(data)
    finding = found(report, "near-duplicates", "warning")
    assert report.ok and finding.count == 2
    assert {e.split(" (")[0] for e in finding.examples} == {
        "oak/4.png = kelp/bright.jpg", "oak/4.png = kelp/large.jpg",
    }  # fmt: skip


def test_repeated_images_within_a_set(data: Path) -> None:
    shutil.copy(data / "ood/kelp/1.png", data / "ood/kelp/one.png")
    assert found(checked(data), "repeated", "warning").examples == ("kelp/1.png = kelp/one.png",)


def test_class_names_of_both_sets(data: Path) -> None:
    (data / "ood/kelp").rename(data / "ood/OAK")
    finding = found(checked(data), "names", "warning")
    assert finding.examples == ("oak = OAK",)


def test_synonyms_of_a_small_wordnet(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    licence = "  1 a licence  \n"
    cab = f"{len(licence):08} 06 n 03 cab 0 taxi 0 water_taxi 0 000 | a car driven for money\n"
    oak = f"{len(licence + cab):08} 20 n 01 oak 0 000 | a tree\n"
    (folder / "data.noun").write_text(licence + cab + oak)
    at, other = len(licence), len(licence + cab)
    (folder / "index.noun").write_text(
        f"{licence}cab n 1 1 @ 1 1 {at:08}\noak n 1 0 1 1 {other:08}\n"
        f"taxi n 1 1 @ 1 1 {at:08}\nwater_taxi n 1 1 @ 1 1 {at:08}\n"
    )
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    (data / "ood/kelp").rename(data / "ood/Water-taxis")
    (data / "ood/lamp").rename(data / f"ood/n{other:08}")
    finding = found(checked(data), "synonyms", "warning")
    assert finding.examples == (
        "cab ~ Water-taxis (cab, taxi, water taxi)", f"oak ~ n{other:08} (oak)",
    )  # fmt: skip
    assert wordnet.WordNet(folder).synsets("n00000001") == frozenset()
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    assert "not checked" in found(checked(data), "no-wordnet", "note").message


def test_the_installed_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WNSEARCHDIR")
    place = wordnet.find_wordnet()
    if place is None:
        pytest.skip("WordNet is not installed")
    net = wordnet.WordNet(place)
    assert net.words(1440764) == ("tench", "Tinca tinca")
    assert net.synsets("n01440764") == net.synsets("Tench") == net.synsets("Tinca tinca")
    assert net.synsets("taxi") & net.synsets("cab")
    assert not net.synsets("taxi") & net.synsets("oak")


@pytest.mark.parametrize("how", ["same list", "one link to a file", "one copy", "one folder link"])
def test_calibration_images_among_test_images(data: Path, how: str) -> None:
    what = sets()
    if how == "same list":
        what.calibrations["id"] = dataclasses.replace(what.sets["id"], name="train")
    elif how == "one copy":
        shutil.copy(data / "id/oak/4.png", data / "train/oak/other.png")
    elif how == "one link to a file":
        (data / "train/oak/other.png").symlink_to(data / "id/oak/4.png")
    else:
        (data / "train/elm").symlink_to(data / "id/oak")
    finding = found(checked(data, what), "calibration", "error")
    assert finding.count == {"same list": 20, "one folder link": 10}.get(how, 1)
    assert finding.sets == ("id", "train")


def test_calibration_images_of_archives_are_compared_by_content(data: Path, tmp_path: Path) -> None:
    def arrays(name: str, seeds: range) -> ImageSet:
        images = np.stack([np.asarray(picture(seed)) for seed in seeds])
        np.savez(data / name, images=images, labels=np.arange(len(images)) % 2)
        one = Dataset(name=name, title=name, loader="arrays", path=name)
        return load_images(one, LoadOptions(data, Store(tmp_path / "store")), labelled=True)

    test = arrays("test.npz", range(5))
    assert not list(calibration.calibration_overlap(test, arrays("other.npz", range(5, 10))))
    (finding,) = calibration.calibration_overlap(test, arrays("some.npz", range(3, 8)))
    assert finding.count == 2 and finding.examples == ("3", "4")


def test_resolution_and_colour_separate_the_sets(data: Path) -> None:
    for path in (data / "ood").rglob("*.png"):
        Image.open(path).convert("L").resize((32, 24)).save(path)
    report = checked(data, hamming=0)
    assert "AUROC 100.0%" in found(report, "resolution", "warning").message
    assert "0.0% of ID and 100.0% of OOD" in found(report, "grey", "warning").message
    assert report.ok


def test_a_set_that_is_missing(data: Path) -> None:
    shutil.rmtree(data / "ood")
    assert "was not found at" in found(checked(data), "missing", "error").message
    shutil.rmtree(data / "train")
    assert "was not found at" in found(checked(data), "no-calibration", "note").message


def test_near_hashes_finds_exactly_the_close_pairs() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, k, replace=False)) for k in range(12)], np.uint64)
    second = np.concatenate([rng.integers(0, 2**64, 9000, dtype=np.uint64), first[:12] ^ flips])
    for radius in (0, 4, 10):
        result = duplicates.near_hashes(first, second, radius)
        assert result.images == radius + 1
        assert {p.distance for p in result.pairs} == set(range(radius + 1))
    pairs = [(i, j) for i in range(300) for j in range(8900, 9012)]
    close = {(i, j) for i, j in pairs if (int(first[i]) ^ int(second[j])).bit_count() <= 10}
    assert {(p.first, p.second) for p in result.pairs} == close
    capped = duplicates.near_hashes(np.zeros(500, np.uint64), np.zeros(700, np.uint64), 4, keep=50)
    assert len(capped.pairs) == 50 and capped.images == 700


@pytest.mark.slow
def test_fifty_thousand_against_thirty_five_thousand() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (50_000, 35_000))
    second[7] = first[49_999] ^ np.uint64(0b1011)
    began = time.perf_counter()
    assert [(p.first, p.second, p.distance) for p in duplicates.near_hashes(first, second, 4).pairs] == [(49_999, 7, 3)]
    assert time.perf_counter() - began < 60


def test_perceptual_hashes() -> None:
    assert perceptual_hash(np.full((32, 32), 90.0)) == ""
    marks = [int(inspect_image(picture(seed)).hash, 16) for seed in range(60)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(marks) for b in marks[:i]]
    assert min(apart) > 8 and 24 < np.mean(apart) < 40


def listed(folder: Path, store: Store) -> ImageSet:
    return load_images(catalogue.dataset(f"folder:{folder}"), LoadOptions(Path(), store), labelled=False)


def test_a_second_check_inspects_changed_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        save(Image.new("RGB", (8, 8), (i % 256, 0, 0)), tmp_path / "many" / f"{i}.png")
    store, seen = Store(tmp_path / "store"), []

    def counted(image: Image.Image) -> ImageFacts:
        seen.append(1)
        return inspect_image(image)

    monkeypatch.setattr(inspection, "inspect_image", counted)
    first = inspection.inspect_images(listed(tmp_path / "many", store), store)
    assert len(seen) == len(first) == 300
    seen.clear()
    assert inspection.inspect_images(listed(tmp_path / "many", store), store) == first and not seen
    Image.new("RGB", (9, 9)).save(tmp_path / "many" / "7.png")
    again = inspection.inspect_images(listed(tmp_path / "many", store), store)
    assert sum(a != b for a, b in zip(first, again, strict=True)) == 1
    assert 1 <= len(seen) < 300
    parts = inspection.split_parts(tuple(str(i) for i in range(20_000)))
    assert parts[0][0] == 0 and parts[-1][1] == 20_000 and 200 < len(parts) < 450
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


def test_splits_of_one_file_are_distinguished(tmp_path: Path) -> None:
    """Two splits of one torchvision folder have the same names, sizes and times."""
    one = Dataset(name="a", title="a", loader="torchvision", path="x", source="CIFAR10", split="test")
    lists = [
        ImageSet(dataclasses.replace(one, split=split), tmp_path, ("0",), ("s:0",), np.array([0]))
        for split in ("test", "train")
    ]
    assert len({json.dumps(inspection._inputs(each, (0, 1))) for each in lists}) == 2


def test_an_unreadable_image_is_inspected_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def withheld(image: Image.Image) -> ImageFacts:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "inspect_image", withheld)
        assert "Input/output error" in checked(data).findings[0].examples[0]
    assert checked(data).ok


def test_scopes(tmp_path: Path) -> None:
    mos = select_sets(["mos"])
    assert [a for a, _ in mos.pairs] == ["imagenet1k"] * len(mos.pairs) and len(mos.pairs) == 4
    assert mos.calibrations["imagenet1k"].name == "imagenet1k-train"
    assert select_sets(["textures"], "imagenet1k").pairs == [("imagenet1k", "textures")]
    assert select_sets(["textures"]).pairs == []
    assert not select_sets([]).required and ("imagenet1k", "textures") in select_sets([]).pairs
    with pytest.raises(UserError, match="no dataset 'texture'(?s:.)*no dataset 'nowhere'"):
        select_sets(["texture", "nowhere"])
    with pytest.raises(UserError, match="no dataset of the catalogue is in"):
        check_sets(select_sets([]), CheckSettings(tmp_path, Store(tmp_path / "store")))


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(check, [str(a) for a in arguments])


def test_the_command(data: Path, tmp_path: Path) -> None:
    arguments = ["--id", f"folder:{data / 'id'}", f"folder:{data / 'ood'}", "--store", str(tmp_path / "store")]
    clean = call(*arguments, "--output", tmp_path / "report.json")
    assert clean.exit_code == 0, clean.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] and [s["role"] for s in report["sets"]] == ["ID", "OOD"]
    shutil.copy(data / "id/oak/4.png", data / "ood/kelp/again.png")
    broken = call(*arguments, "--format", "json")
    assert broken.exit_code == 1
    assert [f["kind"] for f in json.loads(broken.stdout)["findings"]] == ["identical", "no-wordnet"]
    assert "error: identical: " in call(*arguments).output


@pytest.mark.slow
def test_a_killed_check_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(0, (500, 400)).save(tmp_path / "a" / "0.jpg")
    for i in range(1, 500):
        shutil.copy(tmp_path / "a" / "0.jpg", tmp_path / "a" / f"{i}.jpg")
    store = tmp_path / "store"
    words = ("datasets", "check", f"folder:{tmp_path / 'a'}")
    process = Command(*words, "--store", store, "--workers", "1")
    while sum(1 for _ in store.glob("looks/*/[0-9a-f]*/entry.json")) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_ino for path in store.glob("looks/*/[0-9a-f]*/entry.json")}
    whole = listed(tmp_path / "a", Store(store))
    parts = inspection.split_parts(whole.names)
    assert 2 <= len(kept) < len(parts)
    done = command(*words, "--store", store, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sets"][0]["looked"] == 500
    assert len(set(store.glob("looks/*/[0-9a-f]*/entry.json"))) == len(parts)
    assert all(path.stat().st_ino == inode for path, inode in kept.items())  # used, not computed again
    fresh = command(*words, "--store", tmp_path / "new", "--format", "json")
    assert fresh.stdout == done.stdout


def test_real_images(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the real sets: known defects and one planted copy are detected."""
    monkeypatch.delenv("WNSEARCHDIR")
    source = shared / "data"
    for folder in sorted((source / "imagenet1k/val").iterdir())[::10]:
        (tmp_path / "id").mkdir(exist_ok=True)
        (tmp_path / "id" / folder.name).symlink_to(folder)
    for name, every in (("Places", 10), ("dtd", 4)):
        for path in sorted((source / name / "images").rglob("*.jpg"))[::every]:
            place = tmp_path / name / path.relative_to(source / name / "images")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    (copy,) = (tmp_path / "id").glob("n01440764/*")
    Image.open(copy).resize((128, 128)).save(tmp_path / "Places" / "tench.jpg", quality=70)
    id_name, names = f"folder:{tmp_path / 'id'}", [f"folder:{tmp_path / n}" for n in ("Places", "dtd")]
    report = checked(tmp_path, select_sets(names, id_name))
    assert report.ok, format_report(report)
    assert [c.looked for c in report.sets] == [100, 101, 100]
    assert report.sets[0].modes.get("L", 0) == 0 or report.sets[0].grey > 0
    near = found(report, "near-duplicates", "warning")
    assert near.count == 1 and "tench.jpg" in near.examples[0]
    resolutions = [f.sets[1] for f in report.findings if f.kind == "resolution"]
    assert names[0] in resolutions  # Places is 128x128
    assert single.list_digest(listed(tmp_path / "dtd", Store(tmp_path / "store"))) == report.sets[2].digest


@pytest.mark.slow
def test_an_image_that_cifar10_and_cifar100_share(shared: Path, tmp_path: Path) -> None:
    """A test image of CIFAR-10, re-encoded as JPEG, occurs in CIFAR-100, and CIFAR-100 contains two images twice."""
    ours, theirs = (f"tar:{shared}/data/cifar/{name}-test.tar" for name in ("cifar100", "cifar10"))
    what = select_sets([theirs], ours)
    report = checked(tmp_path, what)
    assert found(report, "near-duplicates", "warning").examples == (
        "bus/bus_s_000146.png = automobile/0932.jpg (0 bits)",
    )
    assert found(report, "repeated", "warning").count == 2
    lists = [load_images(one, LoadOptions(tmp_path, Store(tmp_path)), labelled=True) for one in what.sets.values()]
    first, second = (
        np.asarray(one.read(one.names.index(name)).convert("RGB"), float)
        for one, name in zip(lists, ("bus/bus_s_000146.png", "automobile/0932.jpg"), strict=True)
    )
    assert np.abs(first - second).mean() < 8


def test_remarks_are_findings(data: Path) -> None:
    """Also for a set without a role: it may be used as an ID set."""
    picture(7).save(data / "ood/kelp/0.jpg")
    (data / "ood/kelp/0.jpg").rename(data / "ood/kelp/0.heic")
    (data / "ood/Kelp/deep").mkdir(parents=True)
    picture(999).save(data / "ood/Kelp/deep/0.png")
    (data / "ood/moss").mkdir()
    report = checked(data, select_sets([f"folder:{data / 'ood'}"]))
    assert found(report, "left-out", "warning").examples == ("kelp/0.heic",)
    assert found(report, "nested", "warning").examples == ("Kelp/deep/0.png",)
    assert found(report, "empty-class", "warning").examples == ("moss (empty)",)
    assert found(report, "one-prompt", "note").examples == ("'Kelp' = 'kelp'",)
    assert report.sets[0].looked == 21
    report = checked(data)  # as an OOD set it has no classes
    assert {"left-out"} == set(report.kinds()) - {"no-wordnet"}, format_report(report)
    shutil.move(data / "ood/kelp", data / "ood/train")
    shutil.rmtree(data / "ood/Kelp")
    shutil.move(data / "ood/lamp", data / "ood/val")
    assert (
        "are splits or parts of a set"
        in found(checked(data, select_sets([f"folder:{data / 'ood'}"])), "classes", "warning").message
    )


def test_images_that_become_constant_are_an_error(data: Path) -> None:
    grey = np.asarray(picture(7).convert("L"))
    (data / "id/cab/3.png").unlink()
    Image.fromarray(grey.astype(np.uint16) * 257 + 300).save(data / "id/cab/3.png")
    assert found(checked(data), "flat", "error").examples == ("cab/3.png",)
    Image.fromarray(grey.astype(np.uint16)).save(data / "id/cab/3.png")  # 16 bits of which RGB keeps all
    assert "flat" not in checked(data).kinds()
    Image.fromarray((grey / 255).astype(np.float32)).save(data / "id/cab/3.tif")
    assert found(checked(data, sets(count=21)), "flat", "error").examples == ("cab/3.tif",)


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, True), (6, True), (2, True), (9, False)])
def test_an_orientation_that_is_not_applied(data: Path, orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (data / "id/cab/3.png").unlink()
    picture(7).save(data / "id/cab/3.jpg", exif=exif)
    report = checked(data)
    assert ("orientation" in report.kinds()) == turned
    if turned:
        assert found(report, "orientation", "warning").examples == ("cab/3.jpg",)


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_frames_and_pages(data: Path, tmp_path: Path, kind: str) -> None:
    """In a folder and in an archive: the first is taken."""
    path = data / f"id/cab/3.{kind}"
    (data / "id/cab/3.png").unlink()
    picture(3).save(path, save_all=True, append_images=[picture(50), picture(51)])
    picture(52).save(data / f"ood/kelp/one.{kind}")  # of one frame
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(data / "id", ".")
    assert found(checked(data), "frames", "note").examples == (f"cab/3.{kind}",)
    assert found(checked(data, select_sets([f"tar:{tmp_path / 'x.tar'}"])), "frames", "note").count == 1
    with Image.open(path) as image:
        first = np.asarray(image.convert("RGB"))
    assert np.abs(first.astype(float) - np.asarray(picture(3))).mean() < 12


def test_names_with_line_breaks_are_escaped() -> None:
    """A line break, an escape or a line separator in a name starts no line in the report or in `datasets add`."""
    name = "folder:a\n\x1b[31mb\u2028c"
    report = CheckReport(
        [SetSummary(name, "")], [Finding("warning", "odd", (name,), f"{name} is odd\n  so", 1, (name,))]
    )
    seen = r"folder:a\n\x1b[31mb\u2028c"
    lines = format_report(report).split("\n")
    assert lines[1].startswith(f"{seen}  ")
    assert lines[3:6] == [f"warning: odd: {seen}: {seen} is odd", "  so", f"  {seen}"]


def test_a_declared_folder_with_line_breaks_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OODBENCH_STORE", str(tmp_path / "store"))
    folder = tmp_path / "a\nb"
    folder.mkdir()
    picture(1).save(folder / "1.png")
    done = CliRunner().invoke(main, ["datasets", "add", "own", "--loader", "images", "--path", str(folder)])
    assert done.stdout.startswith(f"own: 1 images at {tmp_path}/a\\nb, declared in "), done.output
    assert done.stdout.count("\n") == 1
