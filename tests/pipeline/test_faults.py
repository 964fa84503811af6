"""What a run survives as a process: being killed at any moment, a disk that is full, an MLflow server that goes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Command
from tests.servers import serving, unused_port

pytestmark = pytest.mark.slow
Cli = Callable[..., subprocess.CompletedProcess[str]]
RUN = (
    "run",
    "--methods",
    "msp,energy,mcm,react,clipn",
    "--limit",
    "80",
    "--batch-size",
    "16",
    "--tracking-uri",
    "none",
)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Rows by file, without what may differ between two runs."""
    found = {path.name: json.loads(path.read_text()) for path in (out / "runs").rglob("*.json")}
    return {name: {k: v for k, v in row.items() if k not in ("created", "seconds")} for name, row in found.items()}


def test_killed_at_twenty_moments_a_run_loses_and_doubles_nothing(cli: Cli, tmp_path: Path) -> None:
    whole = cli(*RUN, "--results", tmp_path / "whole", "--store", tmp_path / "store-whole")
    assert whole.returncode == 0, whole.stderr
    words = (*RUN, "--results", tmp_path / "killed", "--store", tmp_path / "store-killed")
    moments, finished = random.Random(0), 0
    for _ in range(20):
        process = Command(*words)
        time.sleep(moments.uniform(0.1, 2.5))
        finished += process.poll() is not None
        process.kill()
        process.wait()
        for row in rows(tmp_path / "killed").values():  # whatever is there is whole
            assert row["status"] == "ok"
    assert finished < 20  # else nothing was killed
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert cli("report", "--results", tmp_path / "killed", "--verify").returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_told_and_the_store_stays_sound(cli: Cli, disk: Path, tmp_path: Path) -> None:
    command = ("run", "--methods", "msp,mcm", "--tracking-uri", "none", "--store", disk / "store")
    full = cli(*command, "--results", tmp_path / "out")
    assert full.returncode == 2
    assert "cannot be written (No space left on device)" in full.stderr and "oodbench store gc" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    again = cli(*command, "--results", tmp_path / "out")
    assert again.returncode == 0 and "damaged" not in again.stderr, again.stderr
    fresh = cli(*command[:-1], tmp_path / "store", "--results", tmp_path / "fresh")
    assert fresh.returncode == 0 and rows(tmp_path / "fresh") == rows(tmp_path / "out")


def test_a_tracking_server_stopped_and_started_again_gets_every_row_once(cli: Cli, tmp_path: Path) -> None:
    """Down at the end of a run, and killed while rows are being sent."""
    from mlflow import MlflowClient

    port = unused_port()
    out, uri = tmp_path / "out", f"http://127.0.0.1:{port}"
    words = (*RUN[:-1], uri, "--sweep", "energy.scale=1,2,3,4,5,6", "--results", out, "--store", tmp_path / "store")
    with serving(tmp_path / "server", port):
        run = Command(*words)
        while not rows(out) and run.poll() is None:
            time.sleep(0.02)
    _, said = run.communicate(timeout=300)  # the server is gone before the last row is made
    assert run.returncode == 0 and "send them later with: oodbench sync" in said, said
    wanted = sorted(row["digest"] for row in rows(out).values())
    assert len(wanted) == 10
    moments = random.Random(2)
    for _ in range(3):
        with serving(tmp_path / "server", port) as running:
            sync = Command("sync", "--results", out, "--tracking-uri", uri)
            time.sleep(moments.uniform(0.5, 3.0))
            os.killpg(running.group, signal.SIGKILL)
            sync.wait(timeout=120)
    with serving(tmp_path / "server", port):
        done = cli("sync", "--results", out, "--tracking-uri", uri)
        assert done.returncode == 0, done.stderr
        client = MlflowClient(tracking_uri=uri)
        [home] = client.search_experiments(filter_string="name = 'oodbench/glyphs'")
        found = client.search_runs([home.experiment_id], "attributes.status = 'FINISHED'", max_results=1000)
        assert sorted(run.data.tags["oodbench.digest"] for run in found if "oodbench.digest" in run.data.tags) == wanted
        assert "10" in cli("sync", "--results", out, "--tracking-uri", uri).stdout
