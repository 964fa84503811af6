"""Views: their images, what is encoded for them, and the errors of transforms."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image, ImageOps

import oodbench
from oodbench.api import run
from oodbench.cli.run import plan_text
from oodbench.data.imageset import ImageSet, SubsetOf
from oodbench.errors import UserError
from oodbench.method import View, registry
from oodbench.method.views import KeyedView, keyed_views
from oodbench.pipeline.events import Watch
from oodbench.pipeline.extract import EmbeddedSet, extract
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.task import encoder_loader
from oodbench.pipeline.views import view_jobs, with_views
from oodbench.results import Result, rows
from tests.pipeline.test_engine import HEAD, images, request
from tests.pipeline.test_waves import Seen, towered

__all__ = ["images", "towered"]  # fixtures

VIEWS = """
import numpy as np
from PIL import ImageOps
from oodbench.method import View

def mirrored(image):
    assert image.mode == "RGB"
    return ImageOps.mirror(image)

def noisy(image, rng, amount):
    noise = rng.integers(-amount, amount, (image.height, image.width, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)

"""
PROBE = """    needs = Needs.FEATURES | Needs.VIEWS
    views = (View(mirrored), View(noisy, amount=20))
    def score(self, batch, task, state):
        return batch.views[:, 0] @ torch.arange(1.0, 1 + batch.views.shape[-1])
"""
PLAIN = """    def score(self, batch, task, state):
        return batch.features @ torch.arange(1.0, 1 + batch.features.shape[-1])
"""


def wanted(images: Path, out: Path, body: str = PROBE, name: str = "probe", **options: Any) -> RunRequest:
    out.mkdir(exist_ok=True)
    plugin = out / f"{name}.py"
    plugin.write_text(HEAD.replace("@dataclass", VIEWS + "@dataclass", 1).replace("Probe", name.title()) + body)
    base = {"methods": name, "plugins": [plugin], "batch_size": 16, "bootstrap": 0, "store": out / "s", "device": "cpu"}
    return request(images, out, **{**base, **options})


def scores(out: Path, label: str, dataset: str) -> Any:
    (path,) = [path for path, row in rows(out) if row.label == label]
    table = pyarrow.parquet.read_table(path.with_suffix(".parquet")).to_pandas()
    return table[table["dataset"].str.endswith(dataset)].sort_values("name")["score"].to_numpy()


def one(wanted: RunRequest, **options: Any) -> Result:
    (row,) = run(make_plan(wanted), **options).results
    return row


def test_views_are_the_transformed_images(images: Path, tmp_path: Path, towered: list[int]) -> None:
    """The same digits as the mirrored images stored as files, and one pass through the tower per view."""
    broken = tmp_path / "with a broken one"
    broken.mkdir()
    for path in sorted((images / "ood").iterdir())[:20]:
        (broken / path.name).write_bytes(path.read_bytes() if path.name != "03.png" else b"no image")
    options: dict[str, Any] = {"ood": [f"folder:{broken}"], "on_error": "skip"}
    seen = Seen()
    one(wanted(images, tmp_path / "v", **options), watch=seen.watch())
    assert sum(towered) == 3 * (60 + 19) and max(towered) == 16
    assert ("images", 120) in [(name, total) for name, total, _ in seen.bars]
    assert all(sum(steps) == total for _, total, steps in seen.bars)
    mirror = tmp_path / "mirrored"
    for path in [*images.glob("id/*/*.png"), *broken.iterdir()]:
        copy = mirror / path.relative_to(images if path.is_relative_to(images) else tmp_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.parent == broken and path.name == "03.png":
            copy.write_bytes(path.read_bytes())
        else:
            ImageOps.mirror(Image.open(path)).save(copy)
    options["ood"] = [f"folder:{mirror / broken.name}"]
    one(wanted(mirror, tmp_path / "p", PLAIN, "plain", **options))
    for dataset in ("id", broken.name):
        assert np.array_equal(scores(tmp_path / "v", "probe", dataset), scores(tmp_path / "p", "plain", dataset))


@pytest.mark.slow
def test_views_are_stored_per_shard_and_transform(images: Path, tmp_path: Path, towered: list[int]) -> None:
    """Another method with the same transform of oodbench, or another seed, encodes only what is new."""

    def encoded(**options: Any) -> int:
        towered.clear()
        one(wanted(images, tmp_path, **{"limit": 4, **options}))
        return sum(towered)

    asked = wanted(images, tmp_path, limit=4)
    assert "  probe: 2 views of 8 images, 16 to encode\n  24 images to encode" in plan_text(make_plan(asked))
    assert encoded() == 8 + 2 * 8
    plan = make_plan(asked)
    assert "  probe: 2 views of 8 images, stored\n  0 images to encode" in plan_text(plan)
    mirrored, noisy = view_jobs(plan, plan.jobs[0], plan.extraction_job(plan.id))
    assert mirrored.missing() == noisy.missing() == 0
    plan.store.remove("embeddings", noisy.inputs(0, 4))
    (tmp_path / "again").mkdir()
    assert encoded(settings=()) == 0, "scores are stored"
    assert encoded(seed=1) == 8, "only the view that draws is encoded again"
    assert encoded(methods='cover[types=("contrast","brightness"),severities=(1,)]') == 2 * 8
    assert encoded(methods='cover[types=("contrast",),severities=(1,2)]') == 8
    assert encoded(methods='cover[types=("contrast",),severities=(1,2),temperature=0.5]') == 0


def test_views_of_a_subset_are_rows_of_the_whole_set(images: Path, tmp_path: Path, towered: list[int]) -> None:
    plan = make_plan(wanted(images, tmp_path))
    load = encoder_loader(plan, "cpu")

    def embedded(listing: ImageSet) -> EmbeddedSet:
        work = plan.extraction_job(listing)
        return with_views(extract(work, load), view_jobs(plan, plan.jobs[0], work), load, Watch())

    rows = np.array([5, 30, 31, 59])
    subset = embedded(replace(plan.id.select(rows.tolist()), origins=(SubsetOf(plan.id, np.arange(4), rows),)))
    whole = embedded(plan.id)
    for (few,), (everything,) in zip(subset.views, whole.views, strict=True):
        assert np.array_equal(few.array("embeddings"), everything.array("embeddings")[rows])
    assert len(subset.views) == 2 and sum(towered) == 3 * 60
    with pytest.raises(UserError, match="the images that can be read have changed"):
        with_views(
            replace(whole, shards=subset.shards),
            view_jobs(plan, plan.jobs[0], plan.extraction_job(plan.id)),
            load,
            Watch(),
        )


def test_a_detector_encodes_a_view_once(images: Path, tmp_path: Path, towered: list[int]) -> None:
    """It stores no embeddings of the images that it scores, and its scores are those of a run."""
    asked = wanted(images, tmp_path)
    one(asked)
    detector = oodbench.Detector(
        "probe", classes=["blue", "green thing", "red"], plugins=asked.plugins, store=tmp_path / "t", batch_size=16
    ).fit()
    towered.clear()
    found = detector.score_samples(str(images / "ood"))
    assert sum(towered) == 3 * 30
    assert np.array_equal(found, scores(tmp_path, "probe", "ood"))


def test_a_failing_transform_fails_its_method(images: Path, tmp_path: Path) -> None:
    asked = wanted(images, tmp_path, methods="probe,mcm", limit=3)
    asked.plugins[0].write_text(asked.plugins[0].read_text().replace("return ImageOps.mirror(image)", "return 1 / 0"))
    failed, right = run(make_plan(asked)).results
    assert (failed.status, right.status) == ("failed", "ok")
    assert failed.error == "the view mirrored() failed: ZeroDivisionError: division by zero"


def returns_floats(image: Image.Image) -> Any:
    return np.zeros((4, 4))


def returns_nothing(image: Image.Image) -> None:
    image.putpixel((0, 0), (1, 2, 3))


@pytest.mark.parametrize(
    ("function", "said"), [(returns_floats, "an array [4, 4] of float64"), (returns_nothing, "NoneType")]
)
def test_a_view_that_is_not_an_image_is_refused(function: Any, said: str) -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(UserError, match=re.escape(f"must return a PIL image or a uint8 array [h w 3], not {said}")):
        KeyedView(View(function), {}).apply(image, b"")
    assert image.tobytes() == bytes(48)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ("views = (View(lambda image: image),)", "takes a function that is defined with def at the top level"),
        ("views = (View(mirrored, angle=1),)", "mirrored(angle=1) cannot be called: got an unexpected keyword"),
        ("views = (View(noisy),)", "noisy() cannot be called: missing a required argument: 'amount'"),
        ("views = (View(noisy, amount=np.ones(2)),)", "parameters of a View are strings, numbers"),
        ("views = (View(mirrored), View(mirrored))", "names a view twice: mirrored()"),
        ("views = [View(mirrored)]", "views must be a tuple of View"),
        ("pass", "declares Needs.VIEWS but no views"),
        ("needs = Needs.FEATURES\n    views = (View(mirrored),)", "names views but not Needs.VIEWS"),
    ],
)
def test_views_that_do_not_fit_are_refused(views: str, said: str, tmp_path: Path) -> None:
    body = PROBE.replace("views = (View(mirrored), View(noisy, amount=20))", views)
    body = body.split("\n", 1)[1] if "needs" in views else body
    (tmp_path / "probe.py").write_text(HEAD.replace("@dataclass", VIEWS + "@dataclass", 1) + body)
    with pytest.raises(UserError) as raised:
        registry.make(registry.methods([tmp_path / "probe.py"])["probe"], {})
    assert said in str(raised.value)


def test_a_hyper_parameter_may_be_called_views(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(HEAD + "    views: int = 3\n" + PLAIN)
    made: Any = registry.make(registry.methods([tmp_path / "probe.py"])["probe"], {"views": 4})
    assert made.views == 4


def test_functions_of_one_name_in_two_modules_are_two_views(tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / f"{part}.py").write_text("def changed(image):\n    return image\n")
    imports = "from oodbench.method import View\nfrom . import one, two\n"
    body = PROBE.replace("View(mirrored), View(noisy, amount=20)", "View(one.changed), View(two.changed)")
    (tmp_path / "probe.py").write_text(HEAD.replace("@dataclass", imports + "@dataclass", 1) + body)
    info = registry.methods([tmp_path / "probe.py"])["probe"]
    assert len({view.digest for view in keyed_views(registry.make(info, {}), info.source, 0)}) == 2
