"""The limit of tests that are not marked slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.timing import LIMIT, NOISE, UNIT, over_limit

FILE = """
import time
import pytest
from tests import timing

timing.LIMIT = 0.1


def compute() -> None:
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass


def test_long() -> None:
    compute()


def test_waiting() -> None:
    time.sleep(0.3)


@pytest.mark.slow
def test_marked() -> None:
    compute()
"""


def test_the_limit_is_longer_on_a_slow_core() -> None:
    limit = LIMIT * NOISE
    assert over_limit(1.1 * limit, unit=UNIT) and not over_limit(0.9 * limit, unit=UNIT)
    assert over_limit(1.1 * limit, unit=UNIT / 2) and not over_limit(0.9 * limit, unit=UNIT / 2)
    assert over_limit(3.1 * limit, unit=3 * UNIT) and not over_limit(2.9 * limit, unit=3 * UNIT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"), [(["-m", "not slow"], "1 failed, 1 passed, 1 deselected"), ([], "3 passed")]
)
def test_a_long_test_fails_unless_it_is_marked(tmp_path: Path, options: list[str], expected: str) -> None:
    (tmp_path / "test_some.py").write_text(FILE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: a long test\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.timing",
        "-p",
        "no:cacheprovider",
        "-q",
        *options,
        str(tmp_path),
    ]
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert expected in done.stdout, done.stdout
    failed = "s of CPU time; make it faster, or mark it slow" in done.stdout and "::test_long" in done.stdout
    assert failed == bool(options)
