"""Ray clusters on this machine, whose workers are forked by a server that has imported their modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import processes

VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 by default
    "RAY_worker_niceness": "0",
}
LOG_LINES = 20


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last lines of Ray's logs with a test that fails."""
    report = yield
    if report.failed and "ray" in sys.modules:
        from ray._private.worker import _global_node

        logs = Path(_global_node.get_logs_dir_path()).glob("worker-*.err") if _global_node else ()
        for file in sorted((file for file in logs if file.stat().st_size), key=lambda file: file.stat().st_mtime)[-4:]:
            last = file.read_text(errors="replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"end of {file}", "\n".join(last)))
    return report


@pytest.fixture(scope="session")
def node_options() -> dict[str, Any]:
    """Options of a node of a Cluster: its workers are forked."""
    os.environ.update(VARIABLES)
    os.environ[processes.VARIABLE] = processes.server()
    return {"include_dashboard": False, "include_log_monitor": False, "setup_worker_path": processes.RAY_WORKER}


@pytest.fixture(scope="session")
def two_cpus(node_options: dict[str, Any]) -> Iterator[str]:
    """The address of a cluster of one node with two CPUs."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **node_options})
    yield made.address
    made.shutdown()


@pytest.fixture(scope="module")
def cluster(two_cpus: str) -> Iterator[str]:
    """The address of a cluster of two CPUs, to which this process is connected."""
    import ray

    ray.init(address=two_cpus, log_to_driver=False, logging_level="ERROR")
    yield two_cpus
    ray.shutdown()
