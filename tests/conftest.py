"""What tests share: a store of their own, the command line as a process, shape types checked at run time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shape annotations of the method API are types; here they are checked on every call.
install_import_hook(["oodbench.method", "oodbench.toy", "oodbench.encoder.openclip"], "beartype.beartype")

SHARED = Path(__file__).resolve().parents[2] / "shared"
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, a file's tests run in one process, and so do all that start a Ray cluster."""
    for item in items:
        file = item.path.stem
        item.add_marker(pytest.mark.xdist_group("ray" if file.startswith("test_cluster") else file))


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
