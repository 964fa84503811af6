"""Streams on a real Ray cluster: the digits and rows of one process, lost workers, killed drivers, failing methods."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from oodbench.api import run
from oodbench.pipeline.events import Event
from oodbench.results import rows
from oodbench.storage.store import Store
from tests.distributed.test_cluster import entries, images, plan, start, told

__all__ = ["images"]  # the fixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

# Less the cosine with the mean of the images before, so that the digits depend on the order and on the base.
STREAM = '''"""{name}: for this test (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import time
import torch
from oodbench.method import StreamMethod

SEEN = []

@dataclass(frozen=True)
class Probe(StreamMethod):
    """A probe."""

    base: str = "mcm"

    def begin(self, task):
        return torch.zeros_like(task.text("simple")[0])

    def step(self, batch, task, state):
        {first}
        time.sleep(0.005)
        return batch.base - batch.features @ state, 0.9 * state + 0.1 * batch.features.mean(0)
'''
ORDERS = {"stream_order": "shuffled,id-first", "stream_seeds": "0,1"}


def plugin(folder: Path, name: str, first: str = "pass") -> Path:
    path = folder / f"{name}.py"
    path.write_text(STREAM.format(name=name, first=first))
    return path


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plugin(tmp_path_factory.mktemp("plugin"), "probe")


def asked(images: Path, probe: Path) -> dict[str, object]:
    ood = [f"folder:{images}/{name}" for name in ("few", "ood")]
    return {"ood": ood, "methods": "probe,probe[base=energy],energy", "plugins": [probe], **ORDERS}


def found(out: Path) -> list[tuple[str, str, str]]:
    """Label, stream and digest of every row."""
    return sorted((row.label, str(row.stream), row.digest) for _, row in rows(out))


@pytest.fixture(scope="module")
def here(images: Path, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows and the store of a run in one process."""
    out = tmp_path_factory.mktemp("here")
    run(plan(images, out, ray="no", **asked(images, probe)))
    assert len(found(out)) == 9, "four streams of two methods, and energy"
    assert len({digest for *_, digest in found(out)}) == 9
    return out


def same(out: Path, here: Path) -> None:
    """Assert that rows and arrays equal those of the run in one process bit by bit, and that there are no others."""
    assert found(out) == found(here)
    for kind in ("embeddings", "scores", "streams"):
        assert entries(out / "s", kind) == entries(here / "s", kind) != {}, kind


def test_streams_are_equal_on_ray_when_a_worker_is_killed(
    cluster: str, images: Path, probe: Path, tmp_path: Path, here: Path
) -> None:
    events: list[Event] = []
    killed: list[str] = []

    def kill(event: Event) -> None:
        if (event.what, event.stage) == ("started", "stream") and not killed:
            killed.append(event.name)
            os.kill(int(event.worker.rpartition("/")[2]), signal.SIGKILL)

    run(plan(images, tmp_path, **asked(images, probe)), told(events, then=kill))
    same(tmp_path, here)
    assert [event.name for event in events if event.what == "retried"] == killed
    done = [event for event in events if (event.what, event.stage) == ("done", "stream")]
    assert {event.name for event in done} == {
        f"stream[folder:{images}/{name}: {label}; {order}, seed {seed}]"
        for name in ("few", "ood")
        for label in ("probe", "probe[base=energy]")
        for order in ("shuffled", "id-first")
        for seed in (0, 1)
    }
    assert len(done) == 16
    events.clear()
    run(plan(images, tmp_path, **asked(images, probe)), told(events))
    assert {event.stage for event in events} == {"row"}, "a warm run asks nothing of the cluster"


def test_a_stream_that_fails_fails_alone_by_name(cluster: str, images: Path, tmp_path: Path) -> None:
    """It raises, it kills its worker, it keeps something outside its state, or its base fails."""
    firsts = {
        "raises": "raise ValueError('no luck')",
        "deadly": "import os; os._exit(3)",
        "counts": "SEEN.append(batch.size); state = state + len(SEEN)",
        "sound": "pass",
    }
    broken = tmp_path / "broken.py"
    broken.write_text(
        STREAM.replace("StreamMethod", "Method")
        .replace("def begin", "def fit")
        .replace('base: str = "mcm"', "n: int = 0")
        .replace("def step", "def score")
        .format(name="broken", first="raise ValueError('no base')")
    )
    plugins = [broken, *(plugin(tmp_path, name, first) for name, first in firsts.items())]
    methods = "raises,deadly,counts,sound[base=broken],sound"
    outcome = run(
        plan(images, tmp_path, methods=methods, plugins=plugins, ood=[f"folder:{images}/few"], stream_seeds="0,1,2")
    )
    errors = [(result.label, result.error or "") for result in outcome.results]
    assert [label for label, _ in errors] == ["raises", "deadly", "counts", "sound[base=broken]", *["sound"] * 3]
    assert errors[0][1] == "ValueError: no luck"
    assert "stream[" in errors[1][1] and "failed 3 times, the last time: its worker died" in errors[1][1]
    assert "it keeps something outside its state" in errors[2][1]
    assert errors[3][1] == "its base broken failed: ValueError: no base"
    assert [error for _, error in errors[4:]] == ["", "", ""]
    stored = [entry for entry in Store(tmp_path / "s").entries() if entry.kind == "streams"]
    assert [entry.inputs["sets"][0]["method"] for entry in stored] == ["sound"] * 3


def test_a_driver_killed_in_its_streams_loses_and_duplicates_nothing(
    cluster: str, images: Path, probe: Path, tmp_path: Path, here: Path
) -> None:
    """Twice, a moment after a stream is done."""
    moments, log, killed = random.Random(2), tmp_path / "events.jsonl", 0
    more: list[str] = ["--methods", "probe,probe[base=energy],energy", "--plugin", str(probe)]
    more += ["--ood", f"folder:{images}/few,folder:{images}/ood", "--stream-order", "shuffled,id-first"]
    for _ in range(2):
        driver = start(cluster, images, tmp_path, *more, "--stream-seeds", "0,1")
        while '"done", "stage": "stream"' not in (log.read_text() if log.is_file() else "") and driver.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        killed += driver.poll() is None
        driver.kill()
        assert set(found(tmp_path)) <= set(found(here)), "what is there is whole"
        log.unlink()
    assert killed and entries(tmp_path / "s", "streams")
    run(plan(images, tmp_path, **asked(images, probe)))
    same(tmp_path, here)
