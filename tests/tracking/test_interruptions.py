"""A tracking server that stops while a run or a sync sends to it, and starts again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oodbench.results import rows
from tests.conftest import Cli
from tests.processes import Command
from tests.servers import forwarding, unused_port

pytestmark = pytest.mark.slow
SWEEP = ("msp,energy,mcm", "--limit", "80", "--batch-size", "16", "--sweep", "energy.scale=1,2,3,4")


def test_a_tracking_server_stopped_and_started_again_gets_every_row_once(
    cli: Cli, server: str, new_store: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Down at the end of a run, and gone while rows are being sent."""
    from mlflow import MlflowClient

    port = unused_port()
    out, store, uri = tmp_path / "out", new_store(tmp_path / "store"), f"http://127.0.0.1:{port}"
    with forwarding(port, server):
        run = Command("run", "--methods", *SWEEP, "--results", out, "--store", store, "--tracking-uri", uri)
        while not list((out / "runs").rglob("*.json")) and run.poll() is None:
            time.sleep(0.02)
    _, said = run.communicate(timeout=300)  # the server is gone before the last row is made
    assert run.returncode == 0 and "send them later with: oodbench sync" in said, said
    wanted = sorted(row.digest for _, row in rows(out))
    assert len(wanted) == 6
    moments = random.Random(2)
    for _ in range(3):
        with forwarding(port, server) as requests:
            sync = Command("sync", "--results", out, "--tracking-uri", uri)
            last = moments.randrange(5, 60)
            while len(requests) < last and sync.poll() is None:
                time.sleep(0.005)
        sync.wait(timeout=300)
    with forwarding(port, server):
        done = cli("sync", "--results", out, "--tracking-uri", uri)
        assert done.returncode == 0, done.stderr
        client = MlflowClient(tracking_uri=uri)
        [home] = client.search_experiments(filter_string="name = 'oodbench/glyphs'")
        found = client.search_runs([home.experiment_id], "attributes.status = 'FINISHED'", max_results=1000)
        digests = [run.data.tags.get("oodbench.digest") for run in found]
        assert sorted(one for one in digests if one in wanted) == wanted
        assert "6" in cli("sync", "--results", out, "--tracking-uri", uri).stdout
