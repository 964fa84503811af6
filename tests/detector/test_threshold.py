"""The guarantee of a detector's threshold: it accepts the fraction `tpr` of new ID images for every method."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import betabinom

from oodbench import Detector, UserError
from oodbench.data import catalog as catalogue
from oodbench.data.glyphs import render, world
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.detector import threshold
from oodbench.detector.images import listed
from oodbench.method import registry
from oodbench.storage.store import Store, default_root, digest
from tests.methods import small

NAMES = list(world.CLASSES)
# zoc_coca takes an encoder that writes captions; the views of cover take 0.2 s an image (tests/pipeline/test_views.py).
# Streams are refused, and few-shot methods have no weights that are shipped.
OTHERS = {name for name, info in registry.methods().items() if {"STREAM", "SHOTS"} & set(info.needs)}
SHIPPED = sorted(set(registry.methods()) - {"zoc_coca", "cover"} - OTHERS)
CHANCE = 1e-3  # of a draw outside of the bounds
LEARNERS = '''
"""Learners: methods that memorise their calibration images (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
from typing import ClassVar
import torch
from oodbench.method import Method, Needs


@dataclass(frozen=True)
class {name}(Method):
    """{name}."""

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION

    def fit(self, task):
        seen = torch.cat([batch.features for batch in task.calibration()]).double()
        return {state}

    def score(self, batch, task, state):
        new = batch.features.double()
        return {score}
'''
METHODS = {
    "one_nn": ("OneNN", "seen", "-torch.cdist(new, state).amin(-1)"),
    "covariance": (
        "Covariance",
        "(seen.mean(0), torch.linalg.pinv(seen.T.cov()))",
        "-((new - state[0]) @ state[1] * (new - state[0])).sum(-1)",
    ),
    "total": ("Total", "seen", "-torch.cdist(new, state).sum(-1)"),  # grows with the number of images
}


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("learners")
    for name, (kind, state, score) in METHODS.items():
        (folder / f"{name}.py").write_text(LEARNERS.format(name=kind, state=state, score=score).lstrip())
    return sorted(folder.iterdir())


def images_of(name: str, n: int) -> ImageSet:
    """Images of all classes, drawn at random."""
    whole = load_images(catalogue.dataset(name), LoadOptions(Path(), Store(default_root())), labelled=True)
    return whole.sample(n, seed=0)


def bounds(held_out: int, new: int, tpr: float = 0.95) -> tuple[float, float]:
    """Bounds on the number of new images that the r-th highest of exchangeable continuous scores accepts."""
    rank = next(r for r in range(1, held_out + 1) if Fraction(r, held_out + 1) >= Fraction(str(tpr)))
    kept = betabinom(new, rank, held_out + 1 - rank)
    return float(kept.ppf(CHANCE)), float(kept.ppf(1 - CHANCE))


def held_out(one: Detector) -> int:
    facts = one._engine.facts["threshold"]
    assert facts
    return int(facts["n"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_new_images_are_accepted_although_the_method_has_memorised_its_own(method: str, learners: list[Path]) -> None:
    """With 128 images for 128 dimensions, pooled scores of five folds would keep 1 % of Mahalanobis distances."""
    one = Detector(method, classes=NAMES, plugins=learners).fit(images_of("glyphs-train", 128))
    kept = int((one.predict(images_of("glyphs", 120)) == 1).sum())
    low, high = bounds(held_out(one), 120)
    assert held_out(one) == 32 and low <= kept <= high
    assert (one.predict(images_of("glyphs-train", 128)) == 1).mean() > 0.95, "fitted images are also accepted"


@pytest.mark.slow
@pytest.mark.parametrize("method", [*SHIPPED, *sorted(METHODS)])
def test_every_method_accepts_its_fraction(method: str, learners: list[Path], tmp_path: Path) -> None:
    settings = small.settings(tmp_path).get(method, {})
    info, images = registry.methods(learners)[method], images_of("glyphs-train", 600)
    one = Detector(method, classes=NAMES, settings=settings, plugins=learners).fit(images, y=images.labels)
    assert held_out(one) == (150 if info.calibrates(info.defaults()) else 600)
    kept = int((one.predict(images_of("glyphs", 600)) == 1).sum())
    low, high = bounds(held_out(one), 600)
    assert low <= kept <= high


@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.7, 0.9, 0.95, 0.99])
def test_the_fraction_is_exact_on_average_over_exchangeable_images(
    tpr: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Exactly: each of n + 1 images is in turn the new one."""
    least = threshold.min_images(tpr)
    assert least == next(n for n in itertools.count(1) if Fraction(n, n + 1) >= Fraction(str(tpr)))
    for n in sorted({least, least + 1, 40, 173}):
        everyone = np.random.default_rng(n).normal(size=n + 1)
        kept = sum(bool(new >= threshold.threshold(np.delete(everyone, i), tpr)) for i, new in enumerate(everyone))
        if n >= least:
            assert Fraction(str(tpr)) <= Fraction(kept, n + 1) < Fraction(str(tpr)) + Fraction(1, n + 1)
    assert "lowest score" not in caplog.text or least > 40


def test_too_few_images_and_ties_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert threshold.threshold(np.array([3.0, 1.0, 2.0]), 0.95) == 1
    assert "lowest score of 3 ID images, which accepts 75.0 % of new ID images on average" in caplog.text
    assert "instead of 95 %, which takes at least 19 images" in caplog.text
    caplog.clear()
    assert threshold.threshold(np.arange(30.0), 1.0) == 0 and threshold.min_images(1.0) is None
    assert "instead of 100 %, which no number of images can guarantee" in caplog.text
    caplog.clear()
    assert threshold.threshold(np.full(30, 2.5) + 1e-7 * (np.arange(30) > 9), 0.95) == 2.5
    assert "all 30 ID images score 2.5; every image with this score is accepted" in caplog.text
    caplog.clear()
    assert threshold.threshold(np.repeat([1.0, 2.0, 3.0], 10), 0.5) == 2
    assert "20 of 30 ID images" in caplog.text and "66.7 % are accepted instead of 50 %" in caplog.text
    caplog.clear()
    pair = np.append(np.arange(99.0), 3.0)  # two images score exactly the threshold: 97 rather than 96 are kept
    assert threshold.threshold(pair, 0.95) == 3 and not caplog.text


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for i in range(48):
        Image.fromarray(render.image("id-train", i)).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.slow
def test_some_images_are_held_out(files: Path, tmp_path: Path) -> None:
    whole = listed(files, Store(tmp_path))
    for tpr, n in ((0.5, 12), (0.95, 19), (0.99, 24), (1.0, 12)):  # a quarter; what tpr takes; at most half
        split = threshold.split(whole, tpr, 0)
        assert len(split.held_out) == n and len(split.fitted) == 48 - n
        assert sorted(split.fitted.names + split.held_out.names) == sorted(whole.names)
        assert threshold.split(whole, tpr, 0).held_out.names == split.held_out.names
        assert threshold.split(whole, tpr, 1).held_out.names != split.held_out.names
    labels = [name for name, n in (("a", 24), ("b", 16), ("c", 8)) for _ in range(n)]
    for seed in range(5):
        chosen = threshold.split(whole, 0.5, seed, labels).held_out.names
        assert Counter(labels[whole.names.index(name)] for name in chosen) == {"a": 6, "b": 4, "c": 2}
    often = Counter(name for seed in range(400) for name in threshold.split(whole, 0.5, seed, labels).held_out.names)
    assert len(often) == 48 and all(60 < n < 140 for n in often.values()), "each with probability 1/4"
    with pytest.raises(UserError, match="there is only one"):
        threshold.split(whole.select([0]), 0.95, 0)


def test_copies_of_held_out_images_are_not_fitted_on(files: Path, tmp_path: Path) -> None:
    twice = shutil.copytree(files, tmp_path / "twice")
    for path in files.iterdir():
        shutil.copy(path, twice / f"copy-{path.name}")
    split = threshold.split(listed(twice, Store(tmp_path)), 0.95, 0)
    seen = [{(twice / name).read_bytes() for name in part.names} for part in (split.fitted, split.held_out)]
    assert not seen[0] & seen[1] and len(seen[1]) == len(split.held_out) == 19
    arrays = [np.asarray(Image.open(path)) for path in sorted(files.iterdir())] * 2
    held = threshold.split(listed(arrays, Store(tmp_path)), 0.95, 0)
    assert {int(name.split()[1]) % 48 for name in held.fitted.names}.isdisjoint(
        int(name.split()[1]) % 48 for name in held.held_out.names
    )


@pytest.mark.slow
def test_validation_images_set_the_threshold(learners: list[Path]) -> None:
    train, other, new = images_of("glyphs-train", 128), images_of("glyphs", 120), images_of("glyphs-letters", 30)
    one = Detector("one_nn", classes=NAMES, plugins=learners).fit(train, validation=other)
    scores = np.sort(one.score_samples(other))
    assert one.threshold_ == scores[120 - 115] and held_out(one) == 120  # 115 / 121 >= .95 > 114 / 121
    given = Detector("one_nn", classes=NAMES, plugins=learners, threshold=-1.0).fit(train)
    assert (given.score_samples(new) == one.score_samples(new)).all(), "all images were learnt from"
    rank = Detector("one_nn", classes=NAMES, plugins=learners, tpr=None).fit(train)
    assert rank.threshold_ is None and (rank.score_samples(new) == one.score_samples(new)).all()
    plain = Detector("mcm", classes=NAMES).fit(train, validation=other)
    assert plain.threshold_ == Detector("mcm", classes=NAMES).fit(other).threshold_
    with pytest.raises(UserError, match="one_nn is fitted on 128 of the 128 images for"):
        Detector("one_nn", classes=NAMES, plugins=learners).fit(train, validation=train)
    with pytest.raises(UserError, match="calibrates on ID images"):
        Detector("one_nn", classes=NAMES, plugins=learners).fit(validation=other)
    with pytest.raises(ValueError, match="leave them out"):
        Detector("mcm", classes=NAMES, threshold=0.0).fit(train, validation=other)
    for y, said in (([1], "y has 1 labels for 128 images"), ("ab", "one label per image"), ([None] * 128, "number")):
        with pytest.raises(UserError, match=said):
            Detector("mcm", classes=NAMES).fit(train, y)


def test_the_same_images_in_another_form_are_refused_for_validation(files: Path, learners: list[Path]) -> None:
    arrays = [np.asarray(Image.open(path)) for path in sorted(files.iterdir())[:20]]
    drawn = load_images(
        catalogue.dataset("glyphs-train"), LoadOptions(Path(), Store(default_root())), labelled=False
    ).select(range(20))
    one = Detector("one_nn", classes=NAMES, plugins=learners)
    for learnt, validation in ((files, arrays), (arrays, files), (files, drawn), (drawn, arrays)):
        with pytest.raises(UserError, match="one_nn is fitted on 20 of the"):
            one.fit(learnt, validation=validation)
    mixed = threshold.split(listed([*arrays, *sorted(files.iterdir())[:20]], Store(default_root())), 0.95, 0)
    assert len(mixed.held_out) == 10 and len(mixed.fitted) == 20


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.slow
def test_images_are_encoded_once(
    keep: bool, files: Path, learners: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    before = ImageSet.read

    def noted(self: ImageSet, index: int) -> Any:
        read.append(self.names[index])
        return before(self, index)

    monkeypatch.setattr("oodbench.data.load.decode.remark_on_first", lambda listing: ())  # which looks at the first few
    monkeypatch.setattr(ImageSet, "read", noted)
    one = Detector("one_nn", classes=NAMES, plugins=learners, store=tmp_path, keep=keep).fit(files)
    assert sorted(read) == sorted(path.name for path in files.iterdir())
    again = Detector("one_nn", classes=NAMES, plugins=learners, store=tmp_path, keep=not keep).fit(files)
    assert again.threshold_ == one.threshold_
    mcm = Detector("mcm", classes=NAMES, store=tmp_path).fit(files)
    assert len(read) == 96 and mcm.threshold_ is not None, "the list as a whole is in the store"


@pytest.mark.slow
def test_broken_images_are_ignored_by_fit_and_threshold(files: Path, learners: list[Path], tmp_path: Path) -> None:
    mixed = shutil.copytree(files, tmp_path / "mixed")
    for i in range(12):
        (mixed / f"broken-{i}.png").write_text(f"nothing {i}")
    one = Detector("one_nn", classes=NAMES, plugins=learners, on_error="skip").fit(mixed)
    facts = one._engine.facts["threshold"]
    assert facts and facts["n"] == 19 and facts["read"] < 19 and one.threshold_ is not None
    with pytest.raises(UserError, match=r"broken-\d+\.png cannot be read"):
        Detector("one_nn", classes=NAMES, plugins=learners).fit(mixed)
    with pytest.raises(UserError, match="none of the"):
        Detector("mcm", classes=NAMES, on_error="skip").fit([mixed / f"broken-{i}.png" for i in range(12)])


@pytest.mark.slow
def test_a_folder_of_an_older_version_gives_the_same_scores(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not name the images that set its threshold: those that it was fitted on."""
    one = Detector("react", classes=NAMES).fit(files)
    path = one.save(tmp_path / "saved") / "detector.json"
    recipe = json.loads(path.read_text())
    assert recipe["threshold_images"]["n"] == 19 and recipe["calibration"]["n"] == 29
    again = Detector.load(path.parent)
    assert json.loads((again.save(tmp_path / "again") / "detector.json").read_text()) == recipe
    older = {name: value for name, value in recipe.items() if name not in ("threshold_images", "digest")}
    path.write_text(json.dumps({**older, "digest": digest(older)}))
    assert "was set on images" not in caplog.text
    found = Detector.load(path.parent)
    assert "was set on images that it was fitted on" in caplog.text and "fit and save it again" in caplog.text
    caplog.clear()
    Detector.load(found.save(tmp_path / "older"))
    assert "was set on images that it was fitted on" in caplog.text, "nor does saving it again without fitting help"
    assert found.threshold_ == one.threshold_
    assert (found.score_samples(files) == one.score_samples(files)).all()
