"""Training on labelled images: drawing, encoding, the loss against a reference, resuming, weights of a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from oodbench.data.prompts import TextList
from oodbench.detector.registration import model_of
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip, load_encoder
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.pipeline import plan as run_plan
from oodbench.pipeline.contract import run_checks
from oodbench.pipeline.request import request_from
from oodbench.pipeline.weights import WeightsFile, recipe_of
from oodbench.results import rows
from oodbench.storage.store import Store
from oodbench.tracking.connection import quiet_mlflow
from oodbench.training import labelled
from oodbench.training.batches import CAPTION_CROPS, LABELLED_CROPS, PairBatches, random_crop, random_crop_box
from oodbench.training.checkpoints import Checkpoints
from oodbench.training.loop import Trainer
from oodbench.training.losses import read_losses
from oodbench.training.plan import TrainRequest, expand_requests, make_plan
from oodbench.training.processes import ProcessGroup
from oodbench.training.schedule import Schedule
from oodbench.training.train import Ready, TrainWatch, build_crops, train
from tests.processes import Command
from tests.training.few_shot_toy import SOURCE

Cli = Callable[..., subprocess.CompletedProcess[str]]

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
EACH = 5  # training images of a class


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "heads.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID set of three colours, its training images, and OOD images, 40 pixels wide and 36 high."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("id", 4), ("train", EACH), ("ood", 2)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                base = np.array(colour if split != "ood" else (128, 128, 128))
                pixels = np.clip(base + rng.normal(0, 40, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def ask(place: Path, plugin: Path, tmp_path: Path) -> Callable[..., TrainRequest]:
    def make(**options: Any) -> TrainRequest:
        plain = TrainRequest(
            "heads", plugins=(plugin,), id=f"folder:{place}/id", calibration=f"folder:{place}/train", encoder="glyphs",
            shots=2, seed=1, batch=4, device="cpu", out=tmp_path / "heads.safetensors",
        )  # fmt: skip
        return dataclasses.replace(plain, **options)

    return make


@pytest.fixture(scope="module")
def encoder() -> OpenClip:
    resolved = resolve(parse_encoder("glyphs"), None, Store(Path(os.environ["OODBENCH_STORE"])))
    found = load_encoder(resolved, "cpu", "fp32")
    assert isinstance(found, OpenClip)
    return found


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The number of images in every call of the image tower; what other tests have stored is not found."""
    monkeypatch.setattr(labelled, "ENGINE", str(tmp_path))
    calls: list[int] = []
    both = OpenClip.activations_and_patches

    def counted(self: OpenClip, images: Tensor, fields: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(len(images))
        return both(self, images, fields)

    monkeypatch.setattr(OpenClip, "activations_and_patches", counted)
    return calls


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def reference_draw(place: Path, shots: int, seed: int) -> list[tuple[str, int]]:
    """Return the documented rule: of each class the names with the smallest sha256 of seed and name, in list order."""
    chosen = []
    for label, colour in enumerate(COLOURS):
        names = [f"{colour}/{path.name}" for path in (place / "train" / colour).iterdir()]
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        chosen += [(name, label) for name in sorted(ranked[:shots])]
    return chosen


# The data and the loss


@pytest.mark.parametrize("augment", [False, True])
def test_patch_activations_come_from_the_pass_of_the_patches(
    place: Path, ask: Callable[..., TrainRequest], encoder: OpenClip, tower: list[int], augment: bool
) -> None:
    """They are stored in half precision or computed in every step; those of a method on patches are other entries."""
    plain, alone = make_plan(ask(augment=augment)), ProcessGroup(0, 1, "cpu")
    info = dataclasses.replace(plain.job.info, needs=(*plain.job.info.needs, "PATCH_ACTIVATIONS"))
    plan = dataclasses.replace(plain, job=dataclasses.replace(plain.job, info=info))
    data = labelled.labelled_data(plan, lambda: encoder, alone, lambda what, n: lambda k: None, 1)
    crops = build_crops(plan, data, alone)
    batches = PairBatches(data, Schedule(plan.optimiser, 6, 4, 1), encoder, 4, crops, plan.patch_fields)
    (pairs,) = batches.chunks(0, alone)
    assert sum(tower) == (4 if augment else 6)
    joint = torch.nn.functional.normalize(encoder.project(pairs.patch_activations), dim=-1)
    assert pairs.patch_activations.shape[-1] == encoder.card.width
    assert float((joint - pairs.patches).abs().max()) < (1e-6 if augment else 2e-3)
    for stored in (plain, plan):
        key = labelled.StoredCrops(stored, data, plain.shots.images).key(0, (0, 6))  # type: ignore[union-attr]
        assert key["patches"] is True
        assert key.get("patch_activations") == (True if stored is plan else None)


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_first_step_equals_a_reference_computation(
    place: Path, ask: Callable[..., TrainRequest], encoder: OpenClip, tower: list[int], chunk: int
) -> None:
    """Loss and gradient against cross-entropy in float64, of images that are read and encoded here."""
    plan, alone = make_plan(ask(chunk=chunk)), ProcessGroup(0, 1, "cpu")
    data = labelled.labelled_data(plan, lambda: encoder, alone, lambda what, n: lambda k: None, 2)
    assert sum(tower) == 6
    schedule = Schedule(plan.optimiser, len(data), 4, 1)
    trainer = Trainer(plan.method, PairBatches(data, schedule, encoder, chunk, patches=("patches",)), alone, "fp32")
    terms = trainer._backward(0, trainer._inputs(0))
    found = dict(trainer.module.named_parameters())["vectors"].grad
    drawn = reference_draw(place, 2, 1)
    chosen = [drawn[i] for i in np.random.default_rng((1, 0)).permutation(6)[:4]]
    pixels = torch.stack([encoder.transform(Image.open(place / "train" / name)) for name, _ in chosen]).float() / 255
    labels = torch.tensor([label for _, label in chosen])
    with torch.no_grad():
        image = torch.nn.functional.normalize(encoder.pixels(pixels).double(), dim=-1)
        patches = torch.nn.functional.normalize(encoder.patches(pixels), dim=-1).half().double()  # as they are stored
        text = encoder.text([f"a photo of a {colour}" for colour in COLOURS]).double()
    patch = torch.nn.functional.normalize(patches, dim=-1).mean(1)
    vectors = torch.nn.functional.normalize(text, dim=-1).requires_grad_()
    expected = {}
    for name, weight, features in (("global", 1.0, image), ("local", 0.5, patch)):
        logits = 10 * features @ vectors.T
        chance = logits.exp() / logits.exp().sum(1, keepdim=True)
        expected[name] = -weight * chance[torch.arange(4), labels].log().mean()
    torch.autograd.backward(torch.stack(list(expected.values())).sum())
    assert terms == pytest.approx({name: float(value.detach()) for name, value in expected.items()}, rel=1e-6)
    assert found is not None and vectors.grad is not None
    assert (found.double() - vectors.grad).abs().max() < 1e-6 * vectors.grad.abs().max()


def test_the_images_are_those_of_run_shots(place: Path, ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    for shots, seed in ((2, 1), (2, 2), (4, 1)):
        plan = make_plan(ask(shots=shots, seed=seed))
        images: dict[str, Any] = {"id": f"folder:{place}/id", "calibration": f"folder:{place}/train"}
        images |= {"ood": (f"folder:{place}/ood",), "shots": shots, "shot_seed": seed}
        run = run_plan.make_plan(request_from(methods="mahalanobis", encoder="glyphs", out=tmp_path, **images))
        assert plan.shots and run.labelled
        assert plan.shots.images.list_text == run.labelled.list_text
        lines = [f"{name} {label}" for name, label in reference_draw(place, shots, seed)]
        assert plan.shots.images.list_text.splitlines() == lines


@pytest.mark.parametrize(
    ("options", "encoded"),
    # Six images, three epochs of one step of four.
    [({}, 6), ({"crops": 2}, 12), ({"crops": 50}, 18), ({"augment": True}, 12)],
)
def test_each_crop_is_encoded_once_and_training_resumes_exactly(
    ask: Callable[..., TrainRequest], tmp_path: Path, tower: list[int], options: dict[str, Any], encoded: int
) -> None:
    whole = train(ask(**options, epochs=3))
    assert sum(tower) == encoded + 1  # hyper-parameters are tried on one grey image
    tower.clear()
    first = ask(**options, epochs=3, out=tmp_path / "pieces.safetensors")
    assert train(dataclasses.replace(first, max_steps=2)).done == 2
    second = train(first)
    assert (second.done, second.made) == (3, 1) and same(whole.out, second.out)
    assert sum(tower) == (encoded + 1 if options.get("augment") else 1)
    assert train(first).made == 0
    listed = second.out.with_suffix(".shots.txt").read_text()
    recipe = recipe_of(second.out)
    assert hashlib.sha256(listed.encode()).hexdigest() == recipe["id"]["list"]


def test_stored_crops_are_those_of_augment(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    """With as many crops as epochs both train on the same pixels; another seed has others."""
    stored = load_file(train(ask(crops=3, epochs=3)).out)["vectors"]
    made = load_file(train(ask(augment=True, epochs=3, out=tmp_path / "a.safetensors")).out)["vectors"]
    centre = load_file(train(ask(epochs=3, out=tmp_path / "c.safetensors")).out)["vectors"]
    more = load_file(train(ask(crops=4, epochs=3, out=tmp_path / "m.safetensors")).out)["vectors"]
    assert torch.equal(stored, more)
    torch.testing.assert_close(stored, made, rtol=0, atol=1e-4)  # patches are stored in half precision
    assert (centre - made).abs().max() > 1e-3


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomResizedCrop

    image, rng = Image.new("RGB", (120, 100)), np.random.default_rng(0)
    torch.manual_seed(0)
    ours = [random_crop_box(120, 100, rng, LABELLED_CROPS.scale) for _ in range(3000)]
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    for mine, other in (
        ([box.width * box.height for box in ours], [height * width for _, _, height, width in theirs]),
        ([box.width / box.height for box in ours], [width / height for _, _, height, width in theirs]),
        ([box.left for box in ours], [left for _, left, _, _ in theirs]),
    ):
        error = np.std(other) / np.sqrt(3000)
        assert abs(np.mean(mine) - np.mean(other)) < 5 * error
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    mirrored = {True: 0, False: 0}
    for number in range(200):
        pixels = random_crop(ramp, (16, 16), np.random.default_rng(number), LABELLED_CROPS).float()
        mirrored[bool(pixels[0, 0, 0] > pixels[0, 0, -1])] += 1
        captioned = random_crop(ramp, (16, 16), np.random.default_rng(number), CAPTION_CROPS).float()
        assert captioned[0, 0, 0] < captioned[0, 0, -1]
    assert 70 < mirrored[True] < 130


def test_images_that_cannot_be_read(
    place: Path, ask: Callable[..., TrainRequest], tmp_path: Path, tower: list[int]
) -> None:
    asked = ask(shots=EACH)
    plan = make_plan(asked)
    assert plan.shots
    broken = tmp_path / "train"
    for name in plan.shots.images.names:
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes((place / "train" / name).read_bytes())
    (broken / "green/2.png").write_bytes(b"no image")
    asked = dataclasses.replace(asked, calibration=f"folder:{broken}", batch=100)
    words = r"green/2.png cannot be read \(not an image format that Pillow supports\); .*--on-error skip"
    for augment in (False, True):
        with pytest.raises(UserError, match=words):
            train(dataclasses.replace(asked, augment=augment, out=tmp_path / f"{augment}.safetensors"))
    tower.clear()
    with pytest.raises(UserError, match="--warmup 9 must be less than the 8 steps"):  # 12 with all 15 images
        train(dataclasses.replace(asked, on_error="skip", batch=5, warmup=9))
    assert sum(tower) == 1
    told: list[Ready] = []
    outcome = train(dataclasses.replace(asked, on_error="skip", steps=2), TrainWatch(ready=told.append))
    assert (told[0].images, told[0].batch) == (14, 14) and told[0].skipped[0].startswith("green/2.png: ")
    recipe = recipe_of(outcome.out)
    assert (recipe["id"]["skipped"], recipe["batch"]) == (1, 14)
    (broken / "green/2.png").write_bytes((place / "train/green/2.png").read_bytes())
    (broken / "green/3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="holds another training: images was"):
        train(dataclasses.replace(asked, on_error="skip", steps=2))
    for path in broken.glob("green/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 5 images of class 'green'"):
        train(dataclasses.replace(asked, on_error="skip", out=tmp_path / "other.safetensors"))


@pytest.mark.parametrize("changed", ["folder", "image"])
def test_other_images_of_the_same_names_are_another_training(
    place: Path, ask: Callable[..., TrainRequest], tmp_path: Path, changed: str
) -> None:
    folders = [tmp_path / "a", tmp_path / ("b" if changed == "folder" else "a")]
    shutil.copytree(place / "train", folders[0])
    first = train(ask(calibration=f"folder:{folders[0]}", shots=EACH, max_steps=1))
    if changed == "folder":
        shutil.copytree(place / "id", folders[1])
        shutil.copytree(place / "train", folders[1], dirs_exist_ok=True)
    else:
        Image.new("RGB", (40, 36)).save(folders[0] / "red/0.png")
    with pytest.raises(UserError, match="holds another training: images was"):
        train(ask(calibration=f"folder:{folders[1]}", shots=EACH, max_steps=1))
    assert first.out.is_file()


def test_hyper_parameters_of_the_score_do_not_make_another_training(ask: Callable[..., TrainRequest]) -> None:
    train(ask(max_steps=1))
    assert train(ask(settings=("heads.sharpness=3",))).made == 3
    for setting in ("local=0.3", "templates=mcm"):  # module() may read the prompts
        name = setting.partition("=")[0]
        with pytest.raises(UserError, match=f"holds another training: parameters.{name} was"):
            train(ask(settings=(f"heads.{setting}",)))


# Requests


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"captions": "words.csv"},
            "heads is trained on labelled images, and --captions is for methods that are trained on captions; "
            "leave it out: oodbench train heads --encoder glyphs --id folder:.*/id",
        ),
        (
            {"method": "clipn"},
            "clipn is trained on captions, and --id, --shots, --calibration are for methods that are trained on "
            "labelled images; leave them out: oodbench train clipn --encoder glyphs",
        ),
        ({"crops": 2, "augment": True}, "give one of them"),
        ({"shots": EACH + 1}, r"--shots 6 needs 6 images of each class, but 3 of 3 classes .* blue \(5\)"),
        ({"shots": 0}, "--shots must be at least 1"),
        ({"crops": 0}, "--crops must be at least 1"),
        ({"calibration": ""}, "has no training split in the catalogue; name its training images with --calibration"),
        ({"encoder": ""}, "needs an encoder; name one, e.g. --encoder ViT-B-16/openai"),
        ({"warmup": 40}, "--warmup 40 must be less than the 4 steps"),
    ],
)
def test_bad_requests(ask: Callable[..., TrainRequest], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(ask(**options))


def test_a_warm_up_that_is_too_long_is_found_by_the_plan(ask: Callable[..., TrainRequest]) -> None:
    with pytest.raises(UserError, match="--warmup 4 must be less than the 4 steps"):
        make_plan(ask(warmup=4))


def test_equal_names_and_divergence_among_several_trainings(
    cli: Cli, place: Path, plugin: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("blue\ngreen\nGreen\n")
    done = cli(
        "train", "heads", "--plugin", plugin, "--id", f"folder:{place}/id", "--calibration", f"folder:{place}/train",
        "--classes", "names.txt", "--encoder", "glyphs", "--tracking-uri", "none", "--lr", "1e30", "--shots", "1",
        "--seed", "1,2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "class names with equal prompts, which no method can distinguish: 'green' = 'Green'" in (done.stderr)
    advice = re.search("try --restart with a lower --lr: oodbench (.*)", done.stderr)
    assert advice and all(f" {flag}" in advice[1] for flag in ("--seed 1", "--shots 1", "--restart", "--lr 1e+29"))


def test_several_shots_and_seeds(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    asked = ask(out=tmp_path / "w")
    found = expand_requests(asked, (1, 2, 1), (3, 4))
    assert [(one.shots, one.seed) for one in found] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert make_plan(found[1]).out == tmp_path / "w/heads-glyphs-K1-S4.safetensors"
    assert make_plan(ask(out=None)).out == Path.cwd() / "weights/heads-glyphs-K2-S1.safetensors"
    with pytest.raises(
        UserError, match=r"--seed must be at least 0, not -1\n--shots must be at least 1, not 0"
    ) as raised:
        expand_requests(asked, (1, 0), (1, -1))
    assert len(raised.value.problems) == 2
    with pytest.raises(UserError, match="is one file, and there are 2 trainings; name a folder: .*--output .*/heads"):
        expand_requests(ask(), (1, 2), (3,))
    with pytest.raises(UserError, match="clipn is trained with one seed at a time: oodbench train clipn --seed 1"):
        expand_requests(TrainRequest("clipn"), (), (1, 2))
    with pytest.raises(UserError, match="clipn is trained on captions, and --shots is for"):
        expand_requests(TrainRequest("clipn"), (1, 2), (0,))


# Weights of a folder


@pytest.fixture(scope="module")
def trained(place: Path, plugin: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which heads was trained with 1 and 2 shots and two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    common = ("train", "heads", "--plugin", plugin, "--id", f"folder:{place}/id", "--calibration")
    done = cli(
        *common, f"folder:{place}/train", "--encoder", "glyphs", "--shots", "1,2", "--seed", "1,2", "--epochs", "3",
        "--tracking-uri", "none", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 labelled images, 1 of each of 3 classes of " in done.stderr and "(seed 2); 3 steps of 3" in done.stderr
    assert "note: a batch is all 3 images, as there are fewer than 16" in done.stderr
    start = "oodbench run --methods heads --weights heads=weights --id "
    assert done.stdout == f"{start}folder:{place}/id --encoder glyphs --plugin {plugin}\n"
    names = {path.name for path in (folder / "weights").glob("*.safetensors")}
    assert names == {f"heads-glyphs-K{k}-S{seed}.safetensors" for k in (1, 2) for seed in (1, 2)}
    return folder


def run_words(place: Path, plugin: Path, *words: str | Path) -> tuple[str | Path, ...]:
    usual = ("--encoder", "glyphs", "--bootstrap", "0", "--tracking-uri", "none", "--ray", "no")
    return ("run", "--plugin", plugin, "--id", f"folder:{place}/id", "--ood", f"folder:{place}/ood", *usual, *words)


def test_a_folder_gives_a_row_for_each_file(cli: Cli, place: Path, plugin: Path, trained: Path) -> None:
    done = cli(*run_words(place, plugin, "--methods", "mcm,heads", "--weights", "heads=weights"), cwd=trained)
    assert done.returncode == 0, done.stderr
    found = {row.label: row for _, row in rows(trained / "results")}
    labels = [f"heads[K={k},seed={seed}]" for k in (1, 2) for seed in (1, 2)]
    assert sorted(found) == [*labels, "mcm"]
    assert [found[label].access["id_labels"] for label in labels] == [1, 1, 2, 2]
    assert found[labels[0]].access["group"] == "few-shot" and not found[labels[0]].access["other_data"]
    assert "class_names" not in json.dumps(found[labels[0]].weights)
    assert len({row.ood[0].auroc for row in found.values()}) > 1
    table = cli("report", "--seeds", "--format", "markdown", cwd=trained)
    assert table.returncode == 0, table.stderr
    for k in (1, 2):
        both = [100 * found[f"heads[K={k},seed={seed}]"].ood[0].auroc for seed in (1, 2)]
        (line,) = [line for line in table.stdout.splitlines() if f"Heads (K={k}), 2 seeds" in line and "|" in line]
        average, deviation = (re.escape(f"{of(both):.2f}") for of in (statistics.fmean, statistics.stdev))
        assert re.search(rf"{average}\S* ± *{deviation}", line)
    verified = cli("report", "--verify", cwd=trained)
    assert verified.returncode == 0 and "5 of 5 results OK" in verified.stdout, verified.stdout
    alone = trained / "weights/heads-glyphs-K2-S1.safetensors"
    words = ("--methods", "heads", "--weights", f"heads={alone}", "--results", "alone")
    assert cli(*run_words(place, plugin, *words), cwd=trained).returncode == 0
    ((_, row),) = rows(trained / "alone")
    assert row.label == "heads" and row.ood == found["heads[K=2,seed=1]"].ood
    assert (row.weights["recipe"]["id"]["shots"], row.weights["recipe"]["seed"]) == (2, 1)


def test_weights_that_do_not_fit(cli: Cli, place: Path, plugin: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("blue\ngreen\nyellow\n")
    (tmp_path / "empty").mkdir()
    one = trained / "weights/heads-glyphs-K2-S1.safetensors"
    (tmp_path / "twice").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"twice/{name}.safetensors").write_bytes(one.read_bytes())
    others = "3 class names of '.*', not for these 3: it lacks yellow; it also has red"
    again = "train some for these: oodbench train heads --id .* --shots {} .* --seed 1"
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("heads", f"heads={one}", "--classes", tmp_path / "names.txt"), f"{others}\n +{again.format(2)}"),
        (("heads", "heads=weights", "--classes", tmp_path / "names.txt"), f"no weights in weights fit: .*{others}"),
        (("heads", f"heads={tmp_path}/empty"), "holds no weights of heads; train some: oodbench train heads --id"),
        (("heads", f"heads={tmp_path}/twice"), r"heads\[K=2,seed=1\] is the name of .*a.safetensors and .*b.safetens"),
        (("heads[K=2,seed=1]", "heads=weights"), "K and seed of heads are those of its weights, not hyper"),
        (("clipn", "clipn=weights"), "weights is not a file"),
        (("heads", "heads=weights", "--set", "heads.local=0.3"), "was trained with local=0.5, not with local=0.3"),
    ]  # fmt: skip
    for (methods, weights, *words), expected in cases:
        done = cli(*run_words(place, plugin, "--methods", methods, "--weights", weights, *words), cwd=trained)
        assert done.returncode != 0 and re.search(expected, done.stderr, re.DOTALL), (expected, done.stderr)
    done = cli(*run_words(place, plugin, "--methods", "heads"), cwd=trained)
    advice = f"train them: oodbench train heads --id folder:{place}/id --shots 16 --encoder glyphs --plugin"
    assert done.returncode != 0 and advice in done.stderr and "--weights heads=FILE" in done.stderr
    grouped = cli(*run_words(place, plugin, "--methods", "mcm,few-shot", "--dry-run"), cwd=trained)
    assert grouped.returncode == 0, grouped.stderr


def test_files_that_cannot_be_read_are_left_out(
    cli: Cli, place: Path, plugin: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained / "weights", tmp_path / "weights", ignore=shutil.ignore_patterns("*.training"))
    content = (folder / "heads-glyphs-K1-S1.safetensors").read_bytes()
    damaged = {"header": content[:40], "tensors": content[:-8], "empty": b"", "text": b"no weights at all"}
    damaged["format"] = content.replace(b'\\"format\\": 1', b'\\"format\\": 7')
    damaged["recipe"] = content.replace(b'\\"class_names\\"', b'\\"other_names\\"')
    for name, part in damaged.items():
        (folder / f"{name}.safetensors").write_bytes(part)
    (folder / "link.safetensors").symlink_to(folder / "gone")
    (folder / "folder.safetensors").mkdir()
    request = request_from(
        methods="heads", weights=[f"heads={folder}"], plugins=[plugin], id=f"folder:{place}/id",
        ood=(f"folder:{place}/ood",), out=tmp_path,
    )  # fmt: skip
    plan = run_plan.make_plan(request)
    assert len(plan.jobs) == 4
    left_out = [note for note in plan.notes if note.startswith(f"left out: weights {folder}/")]
    assert {note.rpartition("/")[2].partition(".")[0] for note in left_out} == {*damaged, "link", "folder"}
    score: tuple[str | Path, ...] = ("score", place / "ood/red", "--id", f"folder:{place}/id", "--plugin", plugin)
    score = (*score, "--method", "heads", "--weights", f"heads={folder}")
    several = cli(*score)
    assert several.returncode != 0 and "a detector has one file of weights, not 4; name one, as" in several.stderr
    for path in folder.glob("heads*[KS]2*"):
        path.unlink()
    one = cli(*score)
    assert one.returncode == 0 and one.stderr.count("left out: weights") == len(left_out), one.stderr
    for path in folder.glob("heads*"):
        path.unlink()
    with pytest.raises(UserError, match=r"(?s)holds no weights of heads; train some: .*/empty.safetensors cannot be"):
        run_plan.make_plan(request)


@pytest.mark.parametrize(
    ("names", "how"),
    [("b a", "in another order"), ("a b b", "names occur more than once"), ("a c", "it lacks c; it also has b")],
)
def test_class_names_that_differ(names: str, how: str) -> None:
    images = {"set": "letters", "shots": 1, "classes": {"digest": ""}}
    file = WeightsFile(Path("w"), "", {"id": images, "class_names": ["a", "b"]})
    assert file.class_misfit(TextList("", tuple(names.split()))).endswith(how)


def test_a_registered_file_has_its_class_names(trained: Path, tmp_path: Path) -> None:
    path = trained / "weights/heads-glyphs-K2-S1.safetensors"
    model = model_of(path)
    assert model.classes == tuple(COLOURS) and model.tags["shots"] == "2"
    (tmp_path / "names.txt").write_text("blue\ngreen\nyellow\n")
    with pytest.raises(UserError, match="was trained for 3 class names, which --classes must not change"):
        model_of(path, str(tmp_path / "names.txt"))


def test_another_id_set_of_the_same_classes_is_noted(place: Path, plugin: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        (folder / colour / "0.png").write_bytes((place / "id" / colour / "0.png").read_bytes())
    request = request_from(
        methods="heads", weights=[f"heads={trained}/weights"], plugins=[plugin], id=f"folder:{folder}",
        ood=(f"folder:{place}/ood",), out=tmp_path,
    )  # fmt: skip
    plan = run_plan.make_plan(request)
    assert plan.card.name == "glyphs" and len(plan.jobs) == 4  # the encoder of the weights
    assert any("were trained on images of" in note and "heads[K=1,seed=1]" in note for note in plan.notes)


def test_the_contract_trains_it_on_labelled_images(plugin: Path) -> None:
    found = run_checks(registry.methods((plugin,))["heads"])
    assert [(check, problem) for check, problem in found if problem] == []


# Curves, and several processes


@pytest.mark.slow
def test_the_curve_and_its_tags(cli: Cli, place: Path, plugin: Path, tmp_path: Path) -> None:
    words = ("--id", f"folder:{place}/id", "--calibration", f"folder:{place}/train", "--encoder", "glyphs")
    done = cli("train", "heads", "--plugin", plugin, *words, "--shots", "2", "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with quiet_mlflow():
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{tmp_path}/weights/mlflow.db")
        (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
        steps = [one.step for one in client.get_metric_history(run.info.run_id, "loss/global")]
    assert steps == [1, 2, 3] and run.data.params["id.shots"] == "2"
    assert [run.data.tags[name] for name in ("method", "shots", "seed")] == ["heads", "2", "0"]
    assert "id" in run.data.tags["id_set"]


WORKER = """
import pickle, sys
from pathlib import Path
import torch.distributed as dist
from oodbench.training.train import train

asked, rank = pickle.loads(Path(sys.argv[1]).read_bytes()), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}.rendezvous", rank=rank, world_size=2)
assert train(asked).done == 3
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(ask: Callable[..., TrainRequest], tmp_path: Path) -> None:
    import pickle

    options: dict[str, Any] = {"crops": 2, "epochs": 3, "chunk": 1}
    alone = train(ask(**options))
    pair = tmp_path / "pair.safetensors"
    asked = ask(**options, out=pair, store=tmp_path / "pair")
    (tmp_path / "asked").write_bytes(pickle.dumps(asked))
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [Command(tmp_path / "asked", str(rank), program=tmp_path / "worker.py") for rank in range(2)]
    for worker in workers:
        _, told = worker.communicate(timeout=240)
        assert worker.returncode == 0, told
    curves = [read_losses(Checkpoints(path).folder / "losses.jsonl") for path in (alone.out, pair)]
    assert [line["loss"] for line in curves[1]] == pytest.approx([line["loss"] for line in curves[0]], rel=1e-5)
    one, other = (load_file(path)["vectors"] for path in (alone.out, pair))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
