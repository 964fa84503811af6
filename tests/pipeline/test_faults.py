"""Faults that a run survives: a kill at any moment, and a full disk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Command

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


def test_a_run_killed_at_twenty_moments_loses_and_duplicates_nothing(
    cli: Cli, new_store: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Each moment is a number of files after the start and a short delay, so that a busy machine has little effect."""
    whole = cli(*RUN, "--results", tmp_path / "whole", "--store", tmp_path / "store-whole")
    assert whole.returncode == 0, whole.stderr
    out, store = tmp_path / "killed", new_store(tmp_path / "store-killed")
    words = (*RUN, "--results", out, "--store", store)
    moments, finished = random.Random(0), 0

    def files() -> int:
        return sum(len(names) for place in (out, store) for _, _, names in os.walk(place))

    for _ in range(20):
        last, pause = files() + moments.randrange(8), moments.uniform(0, 0.2)
        process = Command(*words)
        while files() < last and process.poll() is None:
            time.sleep(0.005)
        time.sleep(pause)
        finished += process.poll() is not None
        process.kill()
        for row in rows(out).values():  # whatever is there is whole
            assert row["status"] == "ok"
    assert finished < 20  # else nothing was killed
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert rows(out) == rows(tmp_path / "whole")
    assert cli("report", "--results", out, "--verify").returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_reported_and_the_store_stays_valid(cli: Cli, disk: Path, tmp_path: Path) -> None:
    command = ("run", "--methods", "msp,mcm", "--limit", "400", "--tracking-uri", "none", "--store", disk / "store")
    full = cli(*command, "--results", tmp_path / "out")
    assert full.returncode == 2
    assert "cannot be written (No space left on device)" in full.stderr and "oodbench store gc" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    again = cli(*command, "--results", tmp_path / "out")
    assert again.returncode == 0 and "damaged" not in again.stderr, again.stderr
    fresh = cli(*command[:-1], tmp_path / "store", "--results", tmp_path / "fresh")
    assert fresh.returncode == 0 and rows(tmp_path / "fresh") == rows(tmp_path / "out")
