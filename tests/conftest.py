"""Shared fixtures: an isolated store, commands as functions and as processes, real data."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from jaxtyping import install_import_hook

from tests.processes import command
from tests.timing import pytest_runtest_call

__all__ = ["pytest_runtest_call"]  # the limit of tests that are not marked slow

# Shape annotations of the method API are types; here they are checked on every call.
install_import_hook(
    [
        "oodbench.method.batch",
        "oodbench.method.checksum",
        "oodbench.method.encoder",
        "oodbench.method.method",
        "oodbench.method.task",
        "oodbench.method.toy",
        "oodbench.method.training",
        "oodbench.encoder.openclip",
    ],
    "beartype.beartype",
)

# Some environments forbid it, and each of the processes that tests start would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SHARED = Path(__file__).resolve().parents[2] / "shared"
Cli = Callable[..., subprocess.CompletedProcess[str]]

# Packages whose tests run in one process each, one after the other: they share an MLflow server, or a Ray cluster.
TOGETHER = ("tests/distributed/", "tests/tracking/")
# With several processes these start first, so that all end at about the same time.
LONGEST = (
    *TOGETHER,
    "tests/training/",
    "tests/pipeline/test_elsewhere.py",
    "tests/pipeline/test_faults.py",
    "tests/detector/test_detector.py",
    "tests/test_packaging.py",
    "tests/docs/test_docs_commands.py",
    "tests/cli/",
    "tests/pipeline/test_contract.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to the processes of pytest-xdist, and each package of TOGETHER to one of them."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return next((package for package in TOGETHER if file.startswith(package)), file)

    config.option.loadscopereorder = False  # keep the order of pytest_collection_modifyitems
    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, prefix in enumerate(LONGEST) if item.nodeid.startswith(prefix)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own store, data or MLflow. The processes of pytest-xdist share one store."""
    root = tmp_path_factory.getbasetemp()
    store = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "store"
    store.mkdir(exist_ok=True)
    os.environ["OODBENCH_STORE"] = str(store)
    os.environ["OODBENCH_CONFIG"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("OODBENCH_DATA", None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("run", "--limit", "3", cwd=folder, NAME="value")`: the command in this process, which has loaded torch."""
    from click.testing import CliRunner

    from oodbench.cli import main

    def call(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        words, before = list(map(str, arguments)), Path.cwd()
        loggers = [logging.getLogger(name) for name in (None, "oodbench", "oodbench.training")]
        levels = [logger.level for logger in loggers]
        # Without pytest's handlers, so that the command sets up its own, and warnings of others reach standard error.
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(loggers[0], "handlers", []),
            warnings.catch_warnings(),
        ):
            warnings.resetwarnings()  # as in a process of its own, where a warning of a library is not an error
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            os.chdir(cwd or before)
            try:
                done = CliRunner().invoke(main, words, prog_name="oodbench")
            finally:
                os.chdir(before)
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def process() -> Cli:
    """The same in a separate process, for tests that need one."""
    return command


@pytest.fixture(scope="session")
def new_store() -> Callable[[Path], Path]:
    """Copy the listings of the embedded benchmark to a store; computing them renders all images, in seconds."""
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    make_plan(request_from(methods="react"))

    def give(store: Path) -> Path:
        shutil.copytree(Path(os.environ["OODBENCH_STORE"]) / "glyphs", store / "glyphs")
        return store

    return give


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data next to the checkout; skips when it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data in ../shared is not there")
    return SHARED
