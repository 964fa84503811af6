"""A Ray cluster of several nodes on this machine that loses one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodbench.cluster.connection import nodes
from oodbench.events import Event
from oodbench.plan import Plan, make_plan
from oodbench.result import rows
from oodbench.runner import Watch, run
from oodbench.session import request_from

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes with one CPU each; this process is connected."""
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def plan(root: Path, out: Path, ray: str) -> Plan:
    asked = {"id": f"folder:{root}/id", "ood": [f"folder:{root}/ood"], "methods": "mcm,energy", "device": "cpu"}
    return make_plan(request_from(**asked, encoder="glyphs", ray=ray, out=out, store=out / "s"))


def test_a_node_that_goes_away_takes_nothing_with_it(cluster: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("id/red", "id/green", "ood"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / folder / f"{i:04}.png")
    for i in range(9, 5000):
        os.link(tmp_path / f"ood/{i % 9:04}.png", tmp_path / f"ood/{i:04}.png")
    events: list[Event] = []
    gone: list[str] = []

    def tell(event: Event) -> None:
        events.append(event)
        busy = [e for e in events if (e.what, e.stage) == ("started", "extract")]
        if len(busy) == 3 and not gone:  # both nodes have been at work
            gone.append(event.name)
            cluster.remove_node(cluster.workers[1], allow_graceful=False)

    run(plan(tmp_path, tmp_path / "there", "auto"), Watch(told=tell))
    assert gone and [e.what for e in events].count("lost") >= 1
    for _ in range(60):  # Ray notices by and by
        if sum(node.get("CPU", 0) for node in nodes()) == 1:
            break
        time.sleep(0.5)
    else:
        raise AssertionError("the node is still there")
    run(plan(tmp_path, tmp_path / "here", "no"))
    there, here = ({row.label: row.digest for _, row in rows(tmp_path / out)} for out in ("there", "here"))
    assert there == here and set(here) == {"mcm", "energy"}
