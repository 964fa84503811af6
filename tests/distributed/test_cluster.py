"""Runs on real Ray clusters on this machine: the same digits and rows, lost workers and nodes, drivers that end."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.api import run
from oodbench.data.imageset import ImageFiles
from oodbench.distributed import cluster as connection
from oodbench.distributed import payload
from oodbench.distributed.cluster import Placement, ResourceRequest, place_workers
from oodbench.errors import UserError
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import request_from
from oodbench.results import rows
from oodbench.storage.store import Store
from tests.processes import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

PLUGIN = '''"""Probe: for this test (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import os
import torch
from oodbench.method import Method, Needs

@dataclass(frozen=True)
class Probe(Method):
    """A probe."""

    turn: float = 1.0
    needs = Needs.{needs}
    def score(self, batch, task, state):
        {body}
'''


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """id/{red,green,blue}: 20 images each; few: 9; ood: 4,100 names of 8, three shards."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for folder, n in (("id/red", 20), ("id/green", 20), ("id/blue", 20), ("few", 9), ("ood", 8)):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / folder / f"{i:04}.png")
    for i in range(8, 4100):
        os.link(root / f"ood/{i % 8:04}.png", root / f"ood/{i:04}.png")
    return root


def plan(images: Path, out: Path, **options: Any) -> Plan:
    asked = {"id": f"folder:{images}/id", "ood": [f"folder:{images}/ood"], "methods": "mcm,energy", "device": "cpu"}
    return make_plan(
        request_from(**{"encoder": "glyphs", "ray": "auto", "out": out, "store": out / "s"} | asked | options)
    )


def probe(folder: Path, body: str, needs: str = "FEATURES") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe.py"
    path.write_text(PLUGIN.format(needs=needs, body=body))
    return path


def told(events: list[Event], *, then: Callable[[Event], None] = lambda event: None) -> Watch:
    def tell(event: Event) -> None:
        events.append(event)
        then(event)

    return Watch(event=tell)


def digests(out: Path) -> dict[str, str]:
    return {row.label: row.digest for _, row in rows(out)}


def entries(root: Path, kind: str) -> dict[str, dict[str, bytes]]:
    """Key -> array -> bytes of every entry of a kind."""
    found = [one for one in Store(root).entries() if one.kind == kind]
    return {one.key: {file.name: file.read_bytes() for file in one.path.glob("*.npy")} for one in found}


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows and the store of a run in one process."""
    out = tmp_path_factory.mktemp("here")
    run(plan(images, out, ray="no"))
    return out


def same(out: Path, undisturbed: Path) -> None:
    """Assert that rows and arrays equal those of the run in one process bit by bit, and that there are no others."""
    assert digests(out) == digests(undisturbed) and digests(out)
    for kind in ("embeddings", "scores"):
        assert entries(out / "s", kind) == entries(undisturbed / "s", kind)
    assert not entries(out / "s", "cluster")


def test_ray_gives_the_same_digits_as_one_process(
    cluster: str, images: Path, tmp_path: Path, undisturbed: Path
) -> None:
    events: list[Event] = []
    outcome = run(plan(images, tmp_path), told(events))
    assert [r.label for r in outcome.results] == ["mcm", "energy"]
    same(tmp_path, undisturbed)
    done = [event for event in events if event.what == "done"]
    ood = f"folder:{images}/ood"
    assert {e.name for e in done if e.stage == "extract"} == {
        f"extract[folder:{images}/id 1/1]",
        *(f"extract[{ood} {i}/3]" for i in (1, 2, 3)),
    }
    assert {e.images for e in done if e.stage == "extract"} == {60, 2048, 4}
    assert {e.name for e in done if e.stage == "score"} == {
        f"score[{name}: mcm, energy]" for name in (f"folder:{images}/id", ood)
    }
    events.clear()
    run(plan(images, tmp_path), told(events))
    assert {event.stage for event in events} == {"row"}, "a warm run asks nothing of the cluster"


VIEWS = """        return (batch.views @ batch.features[:, :, None]).mean((1, 2))

    views = (View(noisy, amount=30), View(noisy, amount=60))
"""
NOISY = """import numpy as np
from oodbench.method import View

def noisy(image, rng, amount):
    noise = rng.integers(-amount, amount, (image.height, image.width, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)

@dataclass"""


def test_views_are_encoded_by_shard_and_equal(cluster: str, images: Path, tmp_path: Path) -> None:
    plugin = probe(tmp_path, VIEWS.strip(), "FEATURES | Needs.VIEWS")
    plugin.write_text(plugin.read_text().replace("@dataclass", NOISY, 1))
    events: list[Event] = []
    asked: dict[str, Any] = {"plugins": [plugin], "methods": "probe,mcm", "ood": [f"folder:{images}/few"]}
    outcome = run(plan(images, tmp_path / "ray", **asked), told(events))
    assert [row.status for row in outcome.results] == ["ok", "ok"]
    run(plan(images, tmp_path / "here", ray="no", **asked))
    same(tmp_path / "ray", tmp_path / "here")
    done = [event for event in events if (event.what, event.stage) == ("done", "views")]
    assert sorted(event.name.rpartition("/")[2] for event in done) == ["few 0-9: probe]", "id 0-60: probe]"]
    plugin.write_text(plugin.read_text().replace("return np.clip", "return 1 / 0 + np.clip"))
    failed, right = run(plan(images, tmp_path / "ray", **asked)).results
    assert (failed.status, right.status) == ("failed", "ok")
    assert failed.error == "the view noisy(amount=30) failed: ZeroDivisionError: division by zero"


def test_the_embedded_benchmark_is_equal_on_ray(cluster: str, tmp_path: Path) -> None:
    """Calibration with and without labels, patches, derived sets, pixels, gradients and trained weights."""
    asked: dict[str, Any] = {
        "id": "glyphs",
        "ood": [],
        "limit": 40,
        "methods": "react,odin,clipn,mcm,gl_mcm,knn[k=5],mahalanobis,nnguide",
        "shots": 2,
        "batch_size": 16,
    }
    run(plan(tmp_path, tmp_path / "here", ray="no", **asked))
    run(plan(tmp_path, tmp_path / "there", **asked))
    same(tmp_path / "there", tmp_path / "here")


def test_a_killed_worker_is_replaced(cluster: str, images: Path, tmp_path: Path, undisturbed: Path) -> None:
    events: list[Event] = []
    killed: list[str] = []

    def kill(event: Event) -> None:
        if (event.what, event.stage) == ("started", "extract") and "ood 2/3" in event.name and not killed:
            killed.append(event.worker)
            os.kill(int(event.worker.rpartition("/")[2]), signal.SIGKILL)

    run(plan(images, tmp_path), told(events, then=kill))
    same(tmp_path, undisturbed)
    assert [e.worker for e in events if e.what == "lost"] == killed
    assert [e.name for e in events if e.what == "retried"] == [f"extract[folder:{images}/ood 2/3]"]


class Deadly(ImageFiles):
    """Kills whoever reads one of the images."""

    def read(self, name: str) -> Any:
        if name == "2100.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name)


def test_a_shard_that_kills_its_worker_fails_alone(cluster: str, images: Path, tmp_path: Path) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    whole = plan(images, tmp_path)
    listing = dataclasses.replace(whole.ood[0].listing, source=Deadly(images / "ood"))
    poisoned = dataclasses.replace(whole, ood=(dataclasses.replace(whole.ood[0], listing=listing),))
    events: list[Event] = []
    with pytest.raises(UserError, match=r"^extract\[.*ood 2/3\] failed 3 times, the last time: its worker died"):
        run(poisoned, told(events))
    assert len(entries(tmp_path / "s", "embeddings")) == 3, "the other shards stay"
    assert sum(event.what == "lost" for event in events) == 3
    assert digests(tmp_path) == {}
    run(plan(images, tmp_path))
    assert set(digests(tmp_path)) == {"mcm", "energy"}


def test_a_method_that_kills_its_worker_fails_alone(cluster: str, images: Path, tmp_path: Path) -> None:
    plugin = probe(tmp_path, "os._exit(3)")
    outcome = run(plan(images, tmp_path, methods="mcm,probe", ood=[f"folder:{images}/few"], plugins=[plugin]))
    mcm, deadly = outcome.results
    assert (mcm.status, deadly.status) == ("ok", "failed")
    assert "score[" in (deadly.error or "") and "failed 3 times" in (deadly.error or "")


def test_a_method_that_fails_keeps_its_message(cluster: str, images: Path, tmp_path: Path) -> None:
    plugin = probe(tmp_path, "raise ValueError('no luck')", "PIXELS")
    outcome = run(plan(images, tmp_path, methods="mcm,probe", ood=[f"folder:{images}/few"], plugins=[plugin]))
    assert [(r.status, r.error) for r in outcome.results] == [("ok", None), ("failed", "ValueError: no luck")]


def test_a_method_that_counts_is_refused_and_none_of_its_scores_stay(
    cluster: str, images: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """It counts in its third thousand of images, when the smaller set is scored, on the same or another worker."""
    counts = "state['n'] = state.get('n', 0) + batch.size; return batch.features[:, 0] - (state['n'] > 2000) * 0.1"
    plugin = probe(tmp_path, counts.replace("state", "SEEN"))
    plugin.write_text(plugin.read_text().replace("@dataclass", "SEEN = {}\n\n@dataclass", 1))
    outcome = run(plan(images, tmp_path, methods="mcm,probe,energy", plugins=[plugin]))
    assert [r.status for r in outcome.results] == ["ok", "failed", "ok"]
    assert "score() keeps state from one image to the next" in (outcome.results[1].error or "")
    assert entries(tmp_path / "s", "scores") == entries(undisturbed / "s", "scores")


def test_a_broken_image_is_reported_as_in_one_process(cluster: str, images: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_text("no image")
    said = []
    for ray in ("no", "auto"):
        with pytest.raises(UserError) as error:
            run(plan(images, tmp_path / ray, ray=ray, ood=[f"folder:{bad}"]))
        said.append(str(error.value))
    assert said[0] == said[1] and "a.png cannot be read" in said[0]


def test_other_code_is_refused_with_both_versions(
    cluster: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = payload.code_version()
    monkeypatch.setattr(payload, "code_version", lambda: dataclasses.replace(own, commit="f" * 40, sources="0" * 64))
    with pytest.raises(
        UserError, match=r"driver runs oodbench .*ffffffffffff.* the worker on .* runs oodbench|same on"
    ):
        run(plan(images, tmp_path))
    other = dataclasses.replace(own, versions=own.versions | {"torch": "1.0"})
    monkeypatch.setattr(payload, "code_version", lambda: other)
    with pytest.raises(UserError, match=r"differ in torch 1\.0 and .*, which may change results"):
        run(plan(images, tmp_path))


def test_methods_and_stores_that_are_not_the_drivers_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OODBENCH_CONFIG", os.environ["OODBENCH_CONFIG"])  # unpack() names another
    monkeypatch.chdir(tmp_path)
    sent = payload.pack(plan(images, tmp_path))
    changed = dataclasses.replace(sent.plan.jobs[0].info, source="f" * 64)
    jobs = (dataclasses.replace(sent.plan.jobs[0], info=changed),)
    with pytest.raises(UserError, match=r"method 'mcm': the driver has source ffffffffffff .* the worker on .*mcm\.py"):
        payload.unpack(dataclasses.replace(sent, plan=dataclasses.replace(sent.plan, jobs=jobs)), tmp_path)
    payload.remove_token(sent)
    with pytest.raises(UserError, match=r"the store .* is not the driver's; name a folder that every node sees"):
        payload.unpack(sent, tmp_path)


def test_plugins_and_declarations_are_sent_to_workers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    (config / "datasets").mkdir(parents=True)
    text = f'name = "mine"\ntitle = "Mine"\nloader = "images"\npath = "{images}/ood"\n'
    (config / "datasets/mine.toml").write_text(text)
    monkeypatch.setenv("OODBENCH_CONFIG", str(config))
    plugin = probe(tmp_path / "p", "return batch.features.sum(-1) + PART")
    plugin.write_text(plugin.read_text().replace("import os\n", "import os\nfrom probe._part import PART\n"))
    (tmp_path / "p/_part.py").write_text("PART = 1\n")
    made = plan(images, tmp_path, methods="probe", plugins=[plugin], ood=[f"folder:{images}/ood"])
    sent = payload.pack(made)
    for file in (plugin, plugin.with_name("_part.py"), config / "datasets/mine.toml"):
        file.unlink()
    there = payload.unpack(sent, tmp_path)
    assert there.jobs[0].info.source == made.jobs[0].info.source and there.jobs[0].info.path.is_file()
    assert (Path(os.environ["OODBENCH_CONFIG"]) / "datasets/mine.toml").read_text() == text
    assert [job.label for job in there.jobs] == [job.label for job in made.jobs]


def start(address: str, images: Path, out: Path, *more: str) -> Command:
    """Start a driver in its own process."""
    words = ["run", "--id", f"folder:{images}/id", "--ood", f"folder:{images}/ood", "--methods", "mcm,energy"]
    words += ["--encoder", "glyphs", "--device", "cpu", "--ray", address, "--tracking-uri", "none"]
    return Command(*words, "--results", out, "--store", out / "s", *more)


def await_line(path: Path, *words: str) -> None:
    """Wait until a line of the log of events has all of these words."""
    for _ in range(2400):  # two minutes: a worker takes its time on a busy machine
        if path.is_file() and any(all(word in line for word in words) for line in path.read_text().splitlines()):
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never told {words}")


def test_a_killed_driver_resumes(cluster: str, images: Path, tmp_path: Path, undisturbed: Path) -> None:
    driver = start(cluster, images, tmp_path)
    await_line(tmp_path / "events.jsonl", '"done"', "extract[")
    driver.kill()
    assert entries(tmp_path / "s", "embeddings") and digests(tmp_path) == {}
    events: list[Event] = []
    run(plan(images, tmp_path), told(events))
    assert digests(tmp_path) == digests(undisturbed)
    assert len({e.name for e in events if e.stage == "extract"}) < 4, "what was finished is not made again"
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {"time", "what", "stage", "name"} <= set(lines[0]) and lines[0]["what"] == "joined"


def test_a_driver_killed_at_twenty_moments_loses_and_duplicates_nothing(
    cluster: str, images: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Each moment is a number of events after the start and a delay, so that a busy machine has little effect."""
    moments, finished, log = random.Random(1), 0, tmp_path / "out/events.jsonl"

    def told_so_far() -> int:
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    for _ in range(20):
        driver = start(cluster, images, tmp_path / "out")
        last, pause = told_so_far() + moments.randrange(5), moments.uniform(0, 0.3)
        while told_so_far() < last and driver.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        finished += driver.poll() is not None
        driver.kill()
        assert set(digests(tmp_path / "out").values()) <= set(digests(undisturbed).values())  # what is there is whole
    assert finished < 20  # else nothing was killed
    driver = start(cluster, images, tmp_path / "out")
    assert driver.wait(300) == 0, driver.communicate()[1]
    out = tmp_path / "out"
    assert digests(out) == digests(undisturbed) and len(list(rows(out))) == 2
    for kind in ("embeddings", "scores"):
        assert entries(out / "s", kind) == entries(undisturbed / "s", kind)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_reports_that_it_was_stopped(
    number: signal.Signals, code: int, cluster: str, images: Path, tmp_path: Path
) -> None:
    driver = start(cluster, images, tmp_path)
    await_line(tmp_path / "events.jsonl", '"started"', "extract[")
    driver.send_signal(number)
    returned, said = driver.wait(60), driver.communicate()[1]
    assert returned == code, said
    *before, last = said.strip().splitlines()
    assert last == "stopped. Finished work is saved; rerun the same command to resume."
    expected = (
        "note: ",
        "WARNING oodbench.distributed.pool: still waiting",
    )  # links to one image; a machine that is busy
    assert all(line.startswith(expected) for line in before), said


def test_two_drivers_share_a_store(cluster: str, images: Path, tmp_path: Path, undisturbed: Path) -> None:
    drivers = [start(cluster, images, tmp_path, "--actors", "1") for _ in range(2)]
    assert [driver.wait(300) for driver in drivers] == [0, 0], [driver.communicate()[1] for driver in drivers]
    same(tmp_path, undisturbed)


def test_tasks_have_little_overhead(cluster: str, images: Path, tmp_path: Path) -> None:
    """A thousand tasks that do nothing: under 10 ms of the driver's CPU each, and the driver does not grow."""
    from oodbench.distributed.pool import Pool, PoolTask

    made = plan(images, tmp_path, ood=[f"folder:{images}/few"])
    run(made)
    sent = payload.pack(made)
    pool = Pool(Placement(2, 0.0, 1.0, 2, "cpu", 1), sent)
    began: list[float] = []
    resident: list[int] = []

    def note(done: Any) -> None:
        began.append(time.process_time())
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    for i in range(1000):
        pool.add(PoolTask(f"extract[{i}]", "extract", (0, 0, 60), note))
    pool.run()
    payload.remove_token(sent)
    assert len(began) == 1000
    assert (began[-1] - began[0]) / 1000 < 0.010
    assert max(resident[200:]) - resident[200] < 8 * 2**20, "bytes that 800 tasks left behind"


@pytest.mark.parametrize(
    ("demand", "offered", "expected"),
    [
        (ResourceRequest("auto", 0, 1.0), [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}], (8, 1.0, 4, "cuda")),
        (ResourceRequest("auto", 0, 0.5), [{"CPU": 16, "GPU": 2}], (4, 0.5, 4, "cuda")),
        (ResourceRequest("cuda", 3, 0.3), [{"CPU": 16, "GPU": 1}, {"CPU": 4}], (3, 0.3, 3, "cuda")),
        (ResourceRequest("auto", 0, 2.0), [{"CPU": 16, "GPU": 5}], (2, 2.0, 2, "cuda")),
        (ResourceRequest("auto", 0, 1.0), [{"CPU": 2}], (2, 0.0, 2, "cpu")),
        (ResourceRequest("cpu", 5, 1.0), [{"CPU": 4, "GPU": 1}, {"CPU": 4}], (5, 0.0, 3, "cpu")),
    ],
)
def test_workers_are_placed_by_the_resources_of_nodes(
    demand: ResourceRequest, offered: list[dict[str, float]], expected: tuple[object, ...]
) -> None:
    found = place_workers(demand, offered)
    assert (found.actors, found.gpus, found.max_per_node, found.device) == expected


@pytest.mark.parametrize(
    ("demand", "offered", "said"),
    [
        (ResourceRequest("cuda", 0, 1.0), [{"CPU": 4}], "the Ray cluster has no GPU"),
        (ResourceRequest("cuda:1", 0, 1.0), [{"CPU": 4, "GPU": 2}], "names one GPU"),
        (ResourceRequest("auto", 0, 4.0), [{"CPU": 4, "GPU": 2}], "no node of the Ray cluster has 4 GPU and 1 CPU"),
    ],
)
def test_a_cluster_that_is_too_small_is_an_error(
    demand: ResourceRequest, offered: list[dict[str, float]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        place_workers(demand, offered)


def test_the_cluster_address_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [connection.cluster_address(asked, "auto") for asked in ("local", "1.2.3.4:6379", "no")] == [
        "local",
        "1.2.3.4:6379",
        "",
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [connection.cluster_address("", device) for device in ("auto", "cuda", "cpu", "cuda:1")] == [
        "local",
        "local",
        "",
        "",
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert connection.cluster_address("", "auto") == ""
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:6379")
    assert connection.cluster_address("", "cpu") == "auto" and connection.cluster_address("no", "cpu") == ""


def test_a_dry_run_prints_the_placement(cluster: str, images: Path, tmp_path: Path) -> None:
    from oodbench.cli.run import plan_text

    said = plan_text(plan(images, tmp_path))
    assert "auto: 1 nodes with 2 CPU and 0 GPU" in said
    assert "2 workers with 1 CPU each, at most 2 on a node" in said
    assert "4 shards to encode" in said and "sent to every worker" in said
    assert not entries(tmp_path / "s", "cluster")


def test_sources_with_open_files_are_loaded_again(images: Path, tmp_path: Path) -> None:
    import pickle
    import threading

    from oodbench.distributed.payload import LazySource, portable

    made = plan(images, tmp_path)
    source: Any = ImageFiles(images / "ood")
    object.__setattr__(source, "lock", threading.Lock())
    sent = portable(dataclasses.replace(made.ood[0].listing, source=source), tmp_path, made.store)
    assert isinstance(sent.source, LazySource) and sent.digest == made.ood[0].listing.digest
    there = pickle.loads(pickle.dumps(sent))
    assert there.read(3).tobytes() == made.ood[0].listing.read(3).tobytes()
    assert there.reader.content(there.names[3]) == ImageFiles(images / "ood").content(there.names[3])
