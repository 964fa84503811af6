"""A pytest plugin: with -m "not slow", a test fails when it takes over LIMIT seconds of CPU time, and NOISE.

A run of all tests has no limit: other processes run at the same time, and a correct program would fail by its time
alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest

LIMIT = 2.0  # seconds
NOISE = 1.5  # variation of a test's CPU time on a machine with other processes
UNIT = 0.06  # seconds that `work` takes on an idle core of the machine that the limit was chosen on
WORK = 1_000_000  # steps of its loop
IMPORTS = 20  # modules: the first test of a process that needs a library imports it, and is not measured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Measure the test itself; neither fixtures that several tests share nor imports of libraries count."""
    before, modules = cpu_seconds(), len(sys.modules)
    result = yield
    spent = cpu_seconds() - before
    imported = len(sys.modules) - modules >= IMPORTS
    if item.config.option.markexpr == "not slow" and not imported and over_limit(spent):
        pytest.fail(f"took {spent:.1f} s of CPU time; make it faster, or mark it slow", pytrace=False)
    return result


def cpu_seconds() -> float:
    """CPU time of this process, its threads, and the processes that it started and has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def work() -> float:
    """Seconds of CPU time of a fixed amount of work: the same loop takes longer on a slow or busy core."""
    before = time.thread_time()
    sum(i * i for i in range(WORK))
    return time.thread_time() - before


def over_limit(spent: float, unit: float | None = None) -> bool:
    """Whether a test took too long; the limit is longer on a core that takes more than UNIT for `work`."""
    if spent <= LIMIT * NOISE:
        return False
    return spent > LIMIT * NOISE * max(1.0, (work() if unit is None else unit) / UNIT)
