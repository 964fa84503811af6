"""Waves: methods with a fit are scored after those without, and those that read pixels last; digits do not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from oodbench.api import run
from oodbench.distributed.run import _groups
from oodbench.encoder.openclip import OpenClip
from oodbench.pipeline import run as local
from oodbench.pipeline.events import Advance, Event, Watch
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.run import RunOutcome, RunState, waves
from oodbench.results import Result, rows
from tests.pipeline.test_engine import HEAD, images, request

__all__ = ["images"]  # the fixture

WORDS = 300
FITTED = f"""    def fit(self, task):
        return task.words([f"word {{i}}" for i in range({WORDS})])
    def score(self, batch, task, state):
        return (batch.features @ state.T).amax(-1)
"""
PIXELS = """    needs = Needs.FEATURES | Needs.PIXELS
    def score(self, batch, task, state):
        return batch.pixels.mean((1, 2, 3))
"""


def wanted(images: Path, out: Path, **options: Any) -> RunRequest:
    """A request of methods of all three kinds, the costly ones first; batches of 16 images."""
    out.mkdir(exist_ok=True)
    plugins = [out / "bank.py", out / "shade.py"]
    for path, body in zip(plugins, (FITTED, PIXELS), strict=True):
        path.write_text(HEAD.replace("Probe", path.stem.title()) + body)
    base = {"methods": "shade,bank,mcm", "plugins": plugins, "batch_size": 16, "bootstrap": 0, "store": out / "s"}
    return request(images, out, **{**base, **options})


@dataclass
class Seen:
    """The reports of a run: rows in the order in which they were written, events, and the numbers of progress bars."""

    rows: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bars: list[tuple[str, int, list[int]]] = field(default_factory=list)

    def watch(self, then: Callable[[Event], None] = lambda event: None) -> Watch:
        def bar(name: str, total: int) -> Advance:
            self.bars.append((name, total, []))
            return self.bars[-1][2].append

        def finished(result: Result) -> None:
            self.rows.append(result.label)

        def event(event: Event) -> None:
            self.events.append(event)
            then(event)

        return Watch(
            extracting=lambda dataset, images: bar("images", images),
            prompts=lambda count: bar("prompts", count),
            scoring=lambda dataset, methods, images: bar(f"score {','.join(methods)}", images),
            finished=finished,
            event=event,
        )

    def started(self, stage: str) -> list[str]:
        """The names of the tasks of a stage, without the paths of the sets."""
        names = [event.name for event in self.events if (event.what, event.stage) == ("started", stage)]
        return [f"{name.rpartition('/')[2].rstrip(']')}" for name in names]


def scores(outcome: RunOutcome, out: Path) -> dict[str, Any]:
    """The scores of every method and set from the files of the rows."""
    paths = {row.label: path for path, row in rows(out)}
    return {
        row.label: pyarrow.parquet.read_table(paths[row.label].with_suffix(".parquet")).column("score").to_numpy()
        for row in outcome.results
    }


@pytest.fixture
def towered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every call of the image tower."""
    found: list[int] = []
    activations = OpenClip.activations

    def counted(self: OpenClip, images: Any) -> Any:
        found.append(len(images))
        return activations(self, images)

    monkeypatch.setattr(OpenClip, "activations", counted)
    return found


def test_costly_methods_come_last_and_no_digit_changes(
    images: Path, tmp_path: Path, towered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    outcome = run(make_plan(wanted(images, tmp_path / "waves")), seen.watch())
    assert seen.rows == ["mcm", "bank", "shade"]
    assert [row.label for row in outcome.results] == ["shade", "bank", "mcm"], "the order of the table is the plan's"
    assert seen.started("score") == ["id: mcm", "ood: mcm", "id: bank", "ood: bank", "id: shade", "ood: shade"]
    assert towered == [16, 16, 16, 12, 16, 14], "every image goes through the tower once"

    bars = dict.fromkeys(name for name, _, _ in seen.bars)
    assert list(bars) == ["images", "prompts", "score mcm", "score bank", "score shade"]
    assert all(sum(steps) == total for _, total, steps in seen.bars)
    assert ("prompts", WORDS, [256, WORDS - 256]) in seen.bars
    assert ("score shade", 60, [16, 16, 16, 12]) in seen.bars

    monkeypatch.setattr(local, "waves", lambda state: [state.running])
    together = run(make_plan(wanted(images, tmp_path / "one")))
    expected = scores(together, tmp_path / "one")
    for label, found in scores(outcome, tmp_path / "waves").items():
        assert np.array_equal(found, expected[label]), label


def on_ray(state: RunState) -> list[list[str]]:
    """The methods that a Ray worker fits and scores in one task."""
    return [[method.job.label for method in group] for group in _groups(waves(state))]


def test_on_ray_no_method_waits_for_the_fit_of_a_later_wave(images: Path, tmp_path: Path) -> None:
    plan = make_plan(wanted(images, tmp_path, methods="shade,bank,msp,mcm,react[threshold=1]"))
    assert on_ray(RunState(plan)) == [["msp", "mcm"], ["bank"], ["react[threshold=1]"], ["shade"]]


def test_a_run_killed_in_a_later_wave_keeps_the_rows_of_earlier_ones(
    images: Path, tmp_path: Path, towered: list[int]
) -> None:
    def kill(event: Event) -> None:
        if (event.what, event.name) == ("started", "fit[bank]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_plan(wanted(images, tmp_path)), Seen().watch(kill))
    assert [row.label for _, row in rows(tmp_path)] == ["mcm"]
    seen = Seen()
    outcome = run(make_plan(wanted(images, tmp_path)), seen.watch())
    assert seen.started("extract") == [] and sum(towered) == 90
    assert seen.started("score") == ["id: bank", "ood: bank", "id: shade", "ood: shade"]
    assert [row.label for row in outcome.results] == ["shade", "bank", "mcm"]


def test_methods_that_scored_another_set_share_a_wave(images: Path, tmp_path: Path) -> None:
    """What their fit() encodes is stored, and one pass over the features of the new set serves all of them."""
    asked = wanted(images, tmp_path, methods="bank,mcm")
    run(make_plan(asked))
    (tmp_path / "other").mkdir()
    for path in sorted((images / "ood").iterdir())[:5]:
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    seen = Seen()
    plan = make_plan(wanted(images, tmp_path, methods="bank,mcm", ood=[f"folder:{tmp_path}/other"]))
    assert on_ray(RunState(plan)) == [["bank", "mcm"]]
    run(plan, seen.watch())
    assert seen.started("score") == ["other: bank, mcm"]
    assert seen.rows == ["bank", "mcm"] and not [name for name, _, _ in seen.bars if name == "prompts"]


def test_many_class_prompts_wait_for_few(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MANY_PROMPTS", 5)  # of 3 classes: one template is few, two are many
    templates = tmp_path / "two.txt"
    templates.write_text("a {}\na photo of a {}\n")
    seen = Seen()
    run(make_plan(request(images, tmp_path, bootstrap=0, methods=f"mcm[templates={templates}],msp")), seen.watch())
    assert seen.rows[0] == "msp" and len(seen.rows) == 2
