"""Patches in a run: one pass of the image tower for all inputs, and digits that do not depend on other methods."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from oodbench.api import run
from oodbench.detector.detector import Detector
from oodbench.detector.explain import explain
from oodbench.encoder.build import ImageTower
from oodbench.errors import UserError
from oodbench.pipeline.patches import to_half
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest, request_from
from oodbench.results import Result
from oodbench.storage.store import Store
from tests.pipeline.test_engine import HEAD, images

__all__ = ["images"]  # the fixture

SCORES = "    def score(self, batch, task, state):\n"
MEAN = "    needs = Needs.FEATURES | Needs.PATCHES\n" + SCORES + "        return batch.patches.mean(1).norm(dim=-1)\n"
BEFORE = MEAN.replace("PATCHES", "PATCH_ACTIVATIONS").replace(".patches", ".patch_activations")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images went through the image tower."""
    count: Counter[str] = Counter()
    whole = ImageTower.activations

    def counted(self: ImageTower, images: Tensor) -> Tensor:
        count["images"] += 0 if images.is_meta else len(images)  # a plan asks a tower without weights for its width
        return whole(self, images)

    monkeypatch.setattr(ImageTower, "activations", counted)
    return count


def request(images: Path, out: Path, **options: Any) -> RunRequest:
    sets = {"id": f"folder:{images}/id", "ood": [f"folder:{images}/ood"], "encoder": "glyphs", "bootstrap": 0}
    return request_from(**{**sets, "out": out, "store": out / "store", "batch_size": 16, **options})


def results(wanted: RunRequest) -> dict[str, Result]:
    return {row.label: row for row in run(make_plan(wanted)).results}


def scores(out: Path, label: str) -> dict[str, np.ndarray]:
    (path,) = [path for path in out.rglob("*.parquet") if path.name.startswith(label)]
    table = pyarrow.parquet.read_table(path).to_pydict()
    names = np.array(table["dataset"])
    return {name: np.array(table["score"])[names == name] for name in dict.fromkeys(table["dataset"])}


def expected(images: Path, sets: str, formula: Any, part: str = "patches") -> np.ndarray:
    """A formula of the patches that the encoder gives for the images of a folder, one by one."""
    from PIL import Image

    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.openclip import load_encoder
    from oodbench.encoder.resolve import resolve

    encoder = load_encoder(resolve(parse_encoder("glyphs"), None, Store(images / "cards")), "cpu", "fp32")
    values = []
    for path in sorted((images / sets).rglob("*.png")):
        pixels = encoder.transform(Image.open(path))[None].float() / 255
        with torch.no_grad():
            (found,) = getattr(encoder, part)(pixels)
            values.append(float(formula(torch.nn.functional.normalize(found, dim=-1) if part == "patches" else found)))
    return np.array(values)


@pytest.mark.slow
def test_one_pass_computes_embeddings_activations_and_patches(
    images: Path, tmp_path: Path, passes: Counter[str]
) -> None:
    """90 images go through the tower once; alone the other methods have the same scores, to the last digit."""
    plugins = [tmp_path / "probe.py", tmp_path / "before.py"]
    for plugin, body in zip(plugins, (MEAN, BEFORE), strict=True):
        plugin.write_text(HEAD + body)
    named: dict[str, Any] = {"methods": "mcm,probe,before,gl_mcm,energy", "plugins": plugins}
    together = results(request(images, tmp_path / "a", **named))
    assert passes["images"] == 90
    assert {row.status for row in together.values()} == {"ok"}
    results(request(images, tmp_path / "b", methods="mcm,energy"))
    assert passes["images"] == 180
    for label in ("mcm", "energy"):
        ours, alone = scores(tmp_path / "a", label), scores(tmp_path / "b", label)
        assert all(np.array_equal(ours[name], alone[name]) for name in alone)
    found = scores(tmp_path / "a", "probe")
    for name, folder in zip(found, ("id", "ood"), strict=True):
        want = expected(images, folder, lambda patches: patches.mean(0).norm())
        np.testing.assert_allclose(found[name], want, rtol=1e-5)
        want = expected(images, folder, lambda patches: patches.mean(0).norm(), "patch_activations")
        np.testing.assert_allclose(scores(tmp_path / "a", "before")[name], want, rtol=1e-5)
    stored = [path.name for path in (tmp_path / "a/store").rglob("*") if "patches" in path.parts]
    assert not stored

    passes.clear()
    results(request(images, tmp_path / "a", **named))  # all scores are stored
    assert passes["images"] == 0


@pytest.mark.slow
def test_stored_embeddings_take_a_pass_for_the_patches_with_the_same_digits(
    images: Path, tmp_path: Path, passes: Counter[str]
) -> None:
    results(request(images, tmp_path / "a", methods="gl_mcm"))
    assert passes["images"] == 90
    results(request(images, tmp_path / "b", methods="mcm"))
    passes.clear()
    results(request(images, tmp_path / "b", methods="gl_mcm"))
    assert passes["images"] == 90
    ours, theirs = scores(tmp_path / "a", "gl_mcm"), scores(tmp_path / "b", "gl_mcm")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_kept_patches_are_read_again_in_half_precision(images: Path, tmp_path: Path, passes: Counter[str]) -> None:
    first = results(request(images, tmp_path, methods="gl_mcm", keep_patches=True))["gl_mcm"]
    exact = results(request(images, tmp_path / "b", methods="gl_mcm"))["gl_mcm"]
    assert (first.run["patches"], exact.run.get("patches")) == ("fp16", None)
    rounded = scores(tmp_path / "runs", "gl_mcm")
    for name, full in scores(tmp_path / "b", "gl_mcm").items():
        assert 0 < np.abs(full - rounded[name]).max() < 1e-3 * full.std()
    passes.clear()
    (tmp_path / "probe.py").write_text(HEAD + MEAN)
    options = {"methods": "gl_mcm[preset=release],probe", "plugins": [tmp_path / "probe.py"], "keep_patches": True}
    again = results(request(images, tmp_path, **options))
    assert {row.status for row in again.values()} == {"ok"}
    assert passes["images"] == 0
    found = scores(tmp_path / "runs", "probe")
    want = expected(images, "ood", lambda patches: torch.nn.functional.normalize(patches.half().float()).mean(0).norm())
    np.testing.assert_allclose(found[f"folder:{images}/ood"], want, rtol=1e-4)

    for methods, tower, edit in (("before", 90, ""), ("before,gl_mcm[lam=0.5]", 0, "# an edit: scored again\n")):
        (tmp_path / "before.py").write_text(HEAD + BEFORE + edit)
        passes.clear()
        options |= {"methods": methods, "plugins": [tmp_path / "before.py"], "store": tmp_path / "store"}
        again = results(request(images, tmp_path / f"images-{tower}", **options))
        assert {(row.status, row.run["patches"]) for row in again.values()} == {("ok", "fp16")}
        assert passes["images"] == tower
    want = expected(images, "ood", lambda patches: patches.half().float().mean(0).norm(), "patch_activations")
    np.testing.assert_allclose(scores(tmp_path / "images-0", "before")[f"folder:{images}/ood"], want, rtol=1e-4)


@pytest.mark.slow
def test_a_broken_image_and_a_resumed_shard(images: Path, tmp_path: Path, passes: Counter[str]) -> None:
    """Batches with a skipped image keep their rows together, in the first pass and where all is stored."""
    broken = tmp_path / "ood"
    broken.mkdir()
    for path in sorted((images / "ood").iterdir()):
        (broken / path.name).symlink_to(path)
    (broken / "05.png").unlink()
    (broken / "05.png").write_bytes(b"none")
    options = {"methods": "gl_mcm", "ood": [f"folder:{broken}"], "on_error": "skip", "keep_patches": True}
    results(request(images, tmp_path / "a", **options, batch_size=4))
    passes.clear()
    again = options | {"methods": "gl_mcm[lam=0.5]", "store": tmp_path / "a/store"}
    results(request(images, tmp_path / "c", **again, batch_size=4))
    assert passes["images"] == 0
    results(request(images, tmp_path / "b", methods="gl_mcm", keep_patches=True, batch_size=4))
    here, kept = (scores(tmp_path / name / "runs", "gl_mcm")[f"folder:{broken}"] for name in ("a", "c"))
    whole = scores(tmp_path / "b", "gl_mcm")[f"folder:{images}/ood"]
    assert len(here) == 29
    np.testing.assert_array_equal(here, kept)
    np.testing.assert_allclose(here, np.delete(whole, 5), rtol=1e-6)


@pytest.mark.slow
def test_patches_on_another_device(images: Path, tmp_path: Path) -> None:
    from tests.elsewhere import elsewhere

    results(request(images, tmp_path / "a", methods="gl_mcm", device="cpu"))
    for name, options in (("b", {}), ("c", {"keep_patches": True}), ("d", {"keep_patches": True})):
        where = {"store": tmp_path / "c/store"} if name == "d" else {}
        with elsewhere() as device:
            assert results(request(images, tmp_path / name, methods="gl_mcm", device=device, **options, **where))
        here, there = scores(tmp_path / "a/runs", "gl_mcm"), scores(tmp_path / name / "runs", "gl_mcm")
        for images_of, values in there.items():
            assert np.abs(values - here[images_of]).max() < 1e-3


FAULTS = {
    "batch.patches.numpy()[:] += 1; return batch.features[:, 0]": "it changes its inputs in place",
    "return batch.patches.mean((0, 1)).sum() + batch.features[:, 0]": "depends on the other images of the batch",
    "self.__dict__['n'] = len(vars(self)) + getattr(self, 'n', 0); return batch.features[:, 0]": "score() changes self",
    "raise ValueError('no')": "ValueError: no",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_method_does_not_affect_others(fault: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(
        HEAD + "    needs = Needs.FEATURES | Needs.PATCHES\n" + SCORES + f"        {fault}\n"
    )
    named = {"methods": "probe,gl_mcm,mcm", "plugins": [tmp_path / "probe.py"]}
    found = results(request(images, tmp_path, **named))
    assert FAULTS[fault] in str(found["probe"].error)
    for label in ("gl_mcm", "mcm"):
        assert found[label].status == "ok"
    results(request(images, tmp_path / "alone", methods="gl_mcm"))
    ours, alone = scores(tmp_path / "runs", "gl_mcm"), scores(tmp_path / "alone", "gl_mcm")
    assert all(np.array_equal(ours[name], alone[name]) for name in alone)


def test_patches_with_pixels_and_those_of_calibration_images(images: Path, tmp_path: Path) -> None:
    body = "    needs = Needs.FEATURES | Needs.PATCHES | Needs.PIXELS | Needs.CALIBRATION\n    def fit(self, task):\n"
    learn = "        return sum(b.size for b in task.calibration())\n"
    seen = SCORES + "        return state + 0 * batch.patches[:, 0, 0] + batch.pixels.mean((1, 2, 3))\n"
    plugin = tmp_path / "probe.py"
    options: dict[str, Any] = {
        "methods": "probe",
        "plugins": [plugin],
        "calibration": f"folder:{images}/id",
        "ood": ["glyphs-digits"],
    }
    options |= {"ood": [f"folder:{images}/ood"], "limit": 6}
    options["calibration"] = f"list:{train_list(images, tmp_path)}@{images}/id"
    plugin.write_text(HEAD + body + learn + seen)
    assert results(request(images, tmp_path, **options))["probe"].status == "ok"
    assert (scores(tmp_path, "probe")[f"folder:{images}/ood"] > 6).all()
    plugin.write_text(HEAD + body + "        next(iter(task.calibration())).patches\n" + seen)
    error = results(request(images, tmp_path / "b", **options))["probe"].error
    assert error == "Undeclared: batch.patches was read, but calibration images come without patches"


def train_list(images: Path, folder: Path) -> Path:
    """A list of images of each class that a --limit of 6 leaves out of the ID set."""
    lines = [f"{name}/{i:02}.png {k}\n" for k, name in enumerate(("blue", "green_thing", "red")) for i in (3, 4)]
    (folder / "train.txt").write_text("".join(lines))
    return folder / "train.txt"


@pytest.mark.parametrize(
    ("method", "lacking"),
    [("gl_mcm", "patches()"), ("before", "activations() and no patch_activations() and no project()")],
)
def test_an_encoder_without_patches_is_refused_in_the_plan(
    method: str, lacking: str, images: Path, tmp_path: Path
) -> None:
    from tests.encoder.test_plugin import SMALL

    (tmp_path / "local.py").write_text(SMALL)
    (tmp_path / "before.py").write_text(HEAD + BEFORE)
    named: dict[str, Any] = {"methods": f"mcm,{method}", "plugins": [tmp_path / "before.py"]}
    with pytest.raises(UserError, match=rf"{method}: plugin:.*local.py has no {re.escape(lacking)}"):
        make_plan(request(images, tmp_path, **named, encoder=f"plugin:{tmp_path}/local.py"))


def test_overflow_in_half_precision_is_refused() -> None:
    with pytest.raises(UserError, match="patch_activations of this encoder exceed 65504"):
        to_half("patch_activations", torch.tensor([1.0, 7e4]))
    assert to_half("patch_activations", torch.tensor([1.0, torch.inf])).tolist() == [1.0, torch.inf]


def test_a_detector_and_an_explanation_read_patches(images: Path, tmp_path: Path) -> None:
    results(request(images, tmp_path, methods="gl_mcm"))
    classes = ["blue", "green thing", "red"]
    detector = Detector("gl_mcm", classes=classes, store=tmp_path / "store", batch_size=16, tpr=None).fit()
    found = detector.score_samples(images / "ood")
    np.testing.assert_array_equal(found, scores(tmp_path / "runs", "gl_mcm")[f"folder:{images}/ood"])
    wanted = request(images, tmp_path, methods="gl_mcm", ood=())
    (shown,) = explain(wanted, images / "ood/00.png")
    assert shown.verdicts[0].score == pytest.approx(found[0], rel=1e-6)
    ((heading, patches),) = [item for item in shown.verdicts[0].details.items() if item[0].startswith("patches")]
    assert patches[0][1] == pytest.approx(max(p for _, p in patches))
    assert heading == "patches by their probability at scale 1"
