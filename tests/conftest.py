"""What tests share: a store of their own, the command line as a process, shape types checked at run time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

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

SHARED = Path(__file__).resolve().parents[2] / "shared"
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True, scope="module")
def _one_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With pytest-xdist, files that start Ray clusters take turns: their time limits are for idle cores."""
    if not request.path.stem.startswith("test_cluster"):
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own store, data or MLflow."""
    os.environ["OODBENCH_STORE"] = str(tmp_path_factory.mktemp("store"))
    os.environ["OODBENCH_CONFIG"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("OODBENCH_DATA", None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("run", "--limit", "3", cwd=...)`: the installed command in a process of its own."""

    def call(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("oodbench")), *map(str, arguments)]
        env = {**os.environ, **environment}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)

    return call


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; skips when it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data in ../shared is not there")
    return SHARED
