"""Labels of calibration images, shots, and the number of calibration images."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.api import run
from oodbench.data.calibration import class_indices, draw_shots
from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.detector.detector import Detector
from oodbench.errors import Undeclared, UserError
from oodbench.method import Needs, Task
from oodbench.pipeline.events import Watch
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest, command, request_from
from oodbench.pipeline.score import score_inputs
from oodbench.pipeline.task import encoder_loader, make_task
from oodbench.results import Result
from tests.conftest import Cli

CENTROIDS = '''"""Centroids: for this test (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import torch
from oodbench.method import Method, Needs

@dataclass(frozen=True)
class Centroids(Method):
    """Nearest class mean."""
    needs = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS

    def fit(self, task):
        parts = [(batch.features, batch.labels) for batch in task.calibration()]
        features, labels = (torch.cat(column) for column in zip(*parts))
        return torch.stack([features[labels == k].mean(0) for k in range(len(task.classes))])

    def score(self, batch, task, state):
        return (batch.features @ state.T).amax(-1)

    def predict(self, batch, task, state):
        return (batch.features @ state.T).argmax(-1)
'''
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
LABELLED = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """test/{red,green,blue}: 2 images each; train/{red,green,blue}: 5, 6 and 7; ood: 4; train.txt, centroids.py."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)

    def write(folder: Path, colour: tuple[int, ...], n: int) -> None:
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")

    for n, (name, colour) in enumerate(COLOURS.items()):
        write(root / "test" / name, colour, 2)
        write(root / "train" / name, colour, 5 + n)
    write(root / "ood", (128, 128, 128), 4)
    # A list names classes by their number: of the folders of the test set in alphabetical order, blue, green, red.
    lines = [
        f"{path.relative_to(root / 'train').as_posix()} {sorted(COLOURS).index(path.parent.name)}\n"
        for path in sorted((root / "train").rglob("*.png"), reverse=True)
    ]
    (root / "train.txt").write_text("".join(lines))
    (root / "centroids.py").write_text(CENTROIDS)
    return root


def request(place: Path, **options: Any) -> RunRequest:
    sets = {"id": f"folder:{place}/test", "ood": [f"folder:{place}/ood"], "calibration": f"folder:{place}/train"}
    base = {"methods": "centroids", "plugins": [place / "centroids.py"], "encoder": "glyphs", "bootstrap": 0}
    return request_from(**{**sets, **base, **options})


def task_of(plan: Plan) -> Task:
    return make_task(plan, encoder_loader(plan, "cpu"), "cpu", Watch())


def test_labels_are_classes_of_the_id_set_and_no_other_method_sees_them(place: Path, tmp_path: Path) -> None:
    for calibration in (f"folder:{place}/train", f"list:{place}/train.txt@{place}/train"):
        plan = make_plan(request(place, methods="centroids,react", calibration=calibration))
        assert plan.labelled
        assert plan.calibration
        task = task_of(plan)
        (batch,) = task.for_method(LABELLED).calibration()
        named = [task.classes[k] for k in batch.labels.tolist()]
        assert named == [name.split("/")[0] for name in plan.labelled.names]
        assert named != sorted(named) or calibration.startswith("folder")
        with pytest.raises(Undeclared, match=r"batch\.labels was read but not declared: add Needs\.LABELS"):
            _ = next(iter(task.for_method(LABELLED ^ Needs.LABELS).calibration())).labels
    (row,) = run(make_plan(request(place, out=tmp_path))).results
    assert row.id.accuracy == 1.0
    assert row.run["calibration"]["labels"] == "all"


@pytest.mark.slow  # draws glyphs if no other test has
def test_glyphs_have_labels() -> None:
    plan = make_plan(request_from(methods="react", limit=40))
    plan = dataclasses.replace(plan, labelled=plan.calibration)
    task = task_of(plan)
    assert plan.labelled
    labels = [k for batch in task.for_method(LABELLED).calibration() for k in batch.labels.tolist()]
    assert [task.classes[k] for k in labels] == [name.rpartition("-")[2] for name in plan.labelled.names]


def test_test_images_have_no_labels(place: Path, tmp_path: Path) -> None:
    (tmp_path / "centroids.py").write_text(
        CENTROIDS.replace("return (batch.features @", "batch.labels; return (batch.features @")
    )
    (row,) = run(make_plan(request(place, plugins=[tmp_path / "centroids.py"], out=tmp_path))).results
    assert row.error == "Undeclared: batch.labels was read, but test images have none: labels are for fit()"


def reference_shots(names: list[str], k: int, seed: int) -> set[str]:
    """Return the documented rule: of each folder the k names with the smallest sha256 of seed and name."""
    chosen = set()
    for folder in {name.split("/")[0] for name in names}:
        own = [name for name in names if name.startswith(folder + "/")]
        chosen |= set(sorted(own, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())[:k])
    return chosen


def test_shots_are_drawn_by_seed_and_listed_beside_the_result(place: Path, tmp_path: Path) -> None:
    names = [path.relative_to(place / "train").as_posix() for path in (place / "train").rglob("*.png")]
    rows: dict[tuple[int, int], Result] = {}
    for k, seed in ((2, 1), (2, 2), (4, 1)):
        plan = make_plan(request(place, methods="centroids,react", shots=k, shot_seed=seed, out=tmp_path))
        assert plan.calibration
        assert len(plan.calibration) == len(names)  # of methods without labels
        rows[k, seed] = run(plan).results[0]
        (listed,) = [
            path
            for path in tmp_path.rglob("*.shots.txt")
            if hashlib.sha256(path.read_bytes()).hexdigest() == rows[k, seed].run["calibration"]["list"]
        ]
        lines = [line.rpartition(" ") for line in listed.read_text().splitlines()]
        assert {name for name, _, _ in lines} == reference_shots(names, k, seed)
        assert all(sorted(COLOURS)[int(label)] == name.split("/")[0] for name, _, label in lines)
        assert listed.with_name(listed.name.replace(".shots.txt", ".json")).is_file()
    facts = rows[2, 1].run["calibration"]
    assert (facts["labels"], facts["shot_seed"], facts["n"]) == (2, 1, 6)
    assert [rows[2, 1].access[name] for name in ("group", "id_labels", "id_images")] == ["few-shot", 2, True]
    assert len({row.run["calibration"]["list"] for row in rows.values()}) == 3
    assert len({frozenset(row.scores.items()) for row in rows.values()}) == 3  # their keys in the store
    assert reference_shots(names, 2, 1) < reference_shots(names, 4, 1)


def test_labels_are_in_the_keys(place: Path, tmp_path: Path) -> None:
    """Another label for the same image of a list is another key, of scores and of what a method keeps."""
    lists = {}
    for name, change in (("a", ""), ("b", "0")):
        lines = (place / "train.txt").read_text().splitlines()
        lines[0] = lines[0][:-1] + (change or lines[0][-1])
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        plan = make_plan(request(place, calibration=f"list:{tmp_path}/{name}.txt@{place}/train"))
        lists[name] = score_inputs(plan, plan.jobs[0], plan.id)
    assert lists["a"]["labels"] != lists["b"]["labels"]


def image_set(folders: str, named: str = "") -> ImageSet:
    keys = tuple(folders.split(","))
    names = tuple(named.split(",")) if named else ()
    dataset = Dataset("set", "set", "classes", "set")
    return ImageSet(dataset, Path(), ("a", "b"), ("", ""), np.array([0, 1]), keys, named=names)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (("a,b",), ("a,b",), [0, 1]),
        (("a,b",), ("0,1", "b,a"), [1, 0]),  # a hub set with names
        (("0,1", "a,b"), ("0,1", "b,a"), [1, 0]),  # two of them, in different orders
        (("0,1", "b,a"), ("a,b",), [1, 0]),
        (("apple_pie,hot-dog",), ("0,1", "Hot dog,Apple pie"), [1, 0]),  # spellings
        (("n01440764,n01443537",), ("0,1",), [0, 1]),  # a list of ImageNet
        (("0,1", "tench,goldfish"), ("n01440764,n01443537",), [0, 1]),
        (("n01440764,n01443537", "crane,crane"), ("n01440764,n01443537", "crane,crane"), [0, 1]),
        (("n01440764,n01443537", "crane,crane"), ("n01440764,n01443537", "crane bird,crane"), [0, 1]),
        (("10,2",), ("10,2",), [0, 1]),
        (("a,b",), ("a,c",), "2 instead of 2; it lacks b; it also has c"),
        (("a,b",), ("a,b,c",), "3 instead of 2; it also has c"),
        (("a,b,c",), ("a,b",), "2 instead of 3; it lacks c"),
        (("0,1", "a,b"), ("c,d",), "lacks a, b; it also has c, d"),
        (("0,1", "a,b"), ("0,1", "c,b"), "lacks a; it also has c"),
        (("0,1,2",), ("0,1",), "2 instead of 3; it lacks 2"),
    ],
)
def test_classes_are_matched_by_name(ours: tuple[str, ...], theirs: tuple[str, ...], expected: list[int] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f"'set' have other classes than 'set': .*{expected}"):
            class_indices(image_set(*ours), image_set(*theirs))
    else:
        assert class_indices(image_set(*ours), image_set(*theirs)).tolist() == expected


def test_shots_do_not_depend_on_the_order_of_the_list_and_count_an_image_once() -> None:
    names = ["a/1", "b/1", "a/2", "b/2", "a/3", "a/3"]
    labels = np.array([0, 1, 0, 1, 0, 0])
    one = dataclasses.replace(image_set("a,b"), names=tuple(names), fingerprints=tuple("123455"), labels=labels)
    drawn = {name for name in draw_shots(one, 2, 7).names}
    assert (
        drawn
        == reference_shots(sorted(set(names)), 2, 7)
        == set(draw_shots(one.select([5, 3, 1, 0, 2, 4]), 2, 7).names)
    )
    with pytest.raises(UserError, match=r"1 of 2 classes of 'set' have fewer: b \(2\)"):
        draw_shots(one, 3, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 6}, r"--shots 6 needs 6 images of each class, but 1 of 3 classes of .* have fewer: red \(5\)"),
        ({"shots": 0}, "--shots must be at least 1, not 0"),
        ({"shot_seed": -1}, "--shot-seed must be at least 0, not -1"),
        ({"calibration_limit": 0}, "--calibration-limit must be at least 1, not 0"),
        ({"calibration_limit": 2}, "1 of 3 classes have no image among the 2 calibration images .*--shots 2"),
        ({"calibration": "PLACE/other"}, "have other classes than .*: 2 instead of 3; it lacks blue"),
        ({"calibration": "PLACE/more"}, "have other classes than .*: 4 instead of 3; it also has zebra"),
    ],
)
def test_impossible_draws_are_reported_before_anything_is_encoded(
    options: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    for folder, names in (("other", ("red", "green")), ("more", COLOURS)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).symlink_to(place / "train" / name)
    (tmp_path / "more/zebra").symlink_to(place / "train/red")
    if "calibration" in options:
        options = {"calibration": options["calibration"].replace("PLACE", f"folder:{tmp_path}")}
    with pytest.raises(UserError, match=said):
        make_plan(request(place, **options))


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ("LABELS", "it reads labels, which only calibration images have: write needs = Needs.CALIBRATION"),
        ("PATCHES | Needs.VIEWS", "it reads patches and views, which no batch has together"),
    ],
)
def test_needs_that_no_batch_meets_are_refused(needs: str, said: str, place: Path, tmp_path: Path) -> None:
    both = "Needs.CALIBRATION | Needs.LABELS"
    (tmp_path / "centroids.py").write_text(CENTROIDS.replace(both, f"Needs.{needs}"))
    with pytest.raises(UserError, match=rf"method 'centroids' \(.*centroids\.py\): {said}"):
        make_plan(request(place, plugins=[tmp_path / "centroids.py"]))


def test_the_number_of_calibration_images(place: Path, cli: Cli, tmp_path: Path) -> None:
    def count(*options: str) -> str:
        words = ["--id", f"folder:{place}/test", "--ood", f"folder:{place}/ood", "--results", str(tmp_path)]
        words += ["--calibration", f"folder:{place}/train", "--methods", "react", "--encoder", "glyphs", "--dry-run"]
        done = cli("run", *words, *options)
        return done.stdout if done.returncode == 0 else done.stderr

    assert "react" in count("--calibration-limit", "all")
    assert "'some' is neither an integer nor all" in count("--calibration-limit", "some")
    ignored = make_plan(request(place, methods="react", shots=2)).notes
    assert "--shots 2 is ignored: no method of this run reads labels" in ignored
    for value, n in (("all", 18), (None, 18), (4, 4), (50_000, 18)):
        wanted = request(place, methods="react", calibration_limit=value)
        plan = make_plan(wanted)
        assert plan.calibration
        assert len(plan.calibration) == n
        assert ("--calibration-limit all" in command(wanted)) == (value in ("all", None))
    drawn = [make_plan(request(place, methods="react", calibration_limit=4, seed=seed)).calibration for seed in (0, 1)]
    assert drawn[0]
    assert drawn[1]
    assert drawn[0].names != drawn[1].names


def test_a_detector_takes_labels(place: Path) -> None:
    detector = Detector("centroids", classes=list(COLOURS), plugins=[place / "centroids.py"], tpr=None)
    with pytest.raises(UserError, match="reads the class of every image: fit"):
        detector.fit(place / "train")
    paths = sorted((place / "train").rglob("*.png"))
    with pytest.raises(UserError, match="y holds 'pink', which is neither a class name nor a number below 3"):
        detector.fit(paths, ["pink"] * len(paths))
    for y in ([path.parent.name for path in paths], [list(COLOURS).index(path.parent.name) for path in paths]):
        detector.fit(paths, y)
        found = detector.classify(sorted((place / "test").rglob("*.png")))
        assert found.tolist() == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2


def test_a_score_command_draws_shots(place: Path, cli: Cli, tmp_path: Path) -> None:
    words = ["--method", "centroids", "--plugin", place / "centroids.py", "--id", f"folder:{place}/test"]
    words += ["--encoder", "glyphs"]
    done = cli(
        "score",
        place / "test",
        *words,
        "--calibration",
        f"folder:{place}/train",
        "--shots",
        "3",
        "-o",
        tmp_path / "s.csv",
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[2] for line in (tmp_path / "s.csv").read_text().splitlines()[1:]] == [
        name for name in sorted(COLOURS) for _ in range(2)
    ]
    done = cli("score", place / "test", *words, "--calibration", f"folder:{place}/train", "--shots", "9")
    assert "3 of 3 classes" in done.stderr
