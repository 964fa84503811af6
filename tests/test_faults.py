"""What a run survives as a process: being killed at any moment, and a disk that is full."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
    whole = cli(*RUN, "--out", tmp_path / "whole", "--store", tmp_path / "store-whole")
    assert whole.returncode == 0, whole.stderr
    command = [str(Path(sys.executable).with_name("oodbench")), *RUN]
    command += ["--out", str(tmp_path / "killed"), "--store", str(tmp_path / "store-killed")]
    moments, finished = random.Random(0), 0
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        time.sleep(moments.uniform(0.3, 4.5))
        finished += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        for row in rows(tmp_path / "killed").values():  # whatever is there is whole
            assert row["status"] == "ok"
    assert finished < 20  # else nothing was killed
    done = cli(*RUN, "--out", tmp_path / "killed", "--store", tmp_path / "store-killed")
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
    full = cli(*command, "--out", tmp_path / "out")
    assert full.returncode == 2
    assert "cannot be written (No space left on device)" in full.stderr and "oodbench store gc" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    again = cli(*command, "--out", tmp_path / "out")
    assert again.returncode == 0 and "damaged" not in again.stderr, again.stderr
    fresh = cli(*command[:-1], tmp_path / "store", "--out", tmp_path / "fresh")
    assert fresh.returncode == 0 and rows(tmp_path / "fresh") == rows(tmp_path / "out")
