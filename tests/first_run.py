"""One `oodbench run` of every method on glyphs, shared by several test files."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from pathlib import Path

from tests.processes import command


@functools.cache
def first_run() -> Path:
    """Return the folder of that run: store/, results/ and stdout. The first of several test processes creates it."""
    folder = Path(os.environ["OODBENCH_STORE"]).with_name("first-run")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "stdout").exists():
            done = command("run", cwd=folder, OODBENCH_STORE=str(folder / "store"))
            assert done.returncode == 0, done.stderr
            (folder / "stdout").write_text(done.stdout)
    return folder


def after_first_run(folder: Path) -> dict[str, str]:
    """Copy its MLflow file, which takes five seconds to create, to results/. Return the variable with its store."""
    (folder / "results").mkdir(exist_ok=True)
    shutil.copy(first_run() / "results/mlflow.db", folder / "results")
    return {"OODBENCH_STORE": str(first_run() / "store")}
