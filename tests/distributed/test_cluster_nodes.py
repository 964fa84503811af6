"""A Ray cluster of several nodes on this machine that loses one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.api import run
from oodbench.distributed.cluster import cluster_nodes
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import request_from
from oodbench.results import rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def cluster(node_options: dict[str, Any]) -> Iterator[Any]:
    """A head without CPUs and two nodes with one CPU each, of which tests remove one; this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node_options})
    for _ in range(2):
        made.add_node(num_cpus=1, **node_options)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def lose_node(cluster: Any, node_options: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Removes a node at once; another takes its place after the test, if not before."""

    def lose() -> None:
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.node_id), allow_graceful=False)

    yield lose
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, **node_options)


def plan(root: Path, out: Path, ray: str) -> Plan:
    asked = {"id": f"folder:{root}/id", "ood": [f"folder:{root}/ood"], "methods": "mcm,energy", "device": "cpu"}
    return make_plan(request_from(**asked, encoder="glyphs", ray=ray, out=out, store=out / "s"))


def test_a_lost_node_loses_no_results(lose_node: Callable[[], None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("id/red", "id/green", "ood"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / folder / f"{i:04}.png")
    for i in range(9, 4100):
        os.link(tmp_path / f"ood/{i % 9:04}.png", tmp_path / f"ood/{i:04}.png")
    events: list[Event] = []
    gone: list[str] = []

    def tell(event: Event) -> None:
        events.append(event)
        busy = [e for e in events if (e.what, e.stage) == ("started", "extract")]
        if len(busy) == 3 and not gone:  # both nodes have been at work
            gone.append(event.name)
            lose_node()

    run(plan(tmp_path, tmp_path / "there", "auto"), Watch(event=tell))
    assert gone and [e.what for e in events].count("lost") >= 1
    for _ in range(60):  # Ray notices by and by
        if sum(node.get("CPU", 0) for node in cluster_nodes()) == 1:
            break
        time.sleep(0.5)
    else:
        raise AssertionError("the node is still there")
    run(plan(tmp_path, tmp_path / "here", "no"))
    there, here = ({row.label: row.digest for _, row in rows(tmp_path / out)} for out in ("there", "here"))
    assert there == here and set(here) == {"mcm", "energy"}


def test_a_node_lost_in_training_costs_the_steps_since_the_checkpoint(
    cluster: Any, node_options: dict[str, Any], lose_node: Callable[[], None], tmp_path: Path
) -> None:
    """CLIPN: the weights are those of an undisturbed training, to the last bit."""
    from safetensors.torch import load_file

    from oodbench.data.glyphs import render, world
    from oodbench.distributed.training import train
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainWatch

    (tmp_path / "images").mkdir()
    lines = ["filepath,caption"]
    for i in range(64):
        Image.fromarray(render.image("pairs", i)).save(tmp_path / f"images/{i}.png")
        lines.append(f'images/{i}.png,"{world.caption(i)}"')
    (tmp_path / "captions.csv").write_text("\n".join(lines))

    def asked(name: str) -> TrainRequest:
        return TrainRequest(
            "clipn",
            encoder="glyphs",
            captions=str(tmp_path / "captions.csv"),
            batch=16,
            epochs=8,
            chunk=8,
            checkpoint_every=5,
            device="cpu",
            out=tmp_path / f"{name}.safetensors",
            store=tmp_path / "s",
        )

    calm = train(asked("calm"), "auto", 2)
    started: list[Ready] = []
    steps: list[int] = []
    watch = TrainWatch(ready=started.append, step=lambda report: steps.append(report.step))
    with ThreadPoolExecutor(1) as aside:  # nodes are added and removed by the main thread alone
        waiting = aside.submit(train, asked("lost"), "auto", 2, watch)
        while not steps and not waiting.done():
            time.sleep(0.05)
        assert not waiting.done(), waiting.result()
        lose_node()
        cluster.add_node(num_cpus=1, **node_options)  # takes its place
        lost = waiting.result()
    done = [one.done for one in started]
    assert (lost.done, calm.done) == (32, 32) and done[0] == 0 and len(done) >= 2, done
    assert all(one % 5 == 0 for one in done) and steps[-1] == 32 and set(steps) == set(range(1, 33))
    one, other = load_file(calm.out), load_file(lost.out)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
