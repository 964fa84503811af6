"""The built wheel, installed next to its dependencies and run from another folder; methods of third parties."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.first_run import first_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("results/published", "results/reference")
SOURCES = ("oodbench", "methods", "datasets", *RESULTS, "pyproject.toml", "README.md", "LICENSE")
THEIRS = '''"""Nearest: the largest cosine (Doe & Roe, ICML 2020, arXiv:2001.00001)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class Nearest(Method[None]):
    """The cosine with the nearest class name, as far as it reaches.

    templates  the prompts
    power      exponent
    """

    templates: str = "simple"
    power: float = 1.0

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        return (task.logits(batch.features, self.templates, 1.0).amax(-1) + 2) ** self.power
'''
PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "oodbench-nearest"
version = "1.0"

[project.entry-points."oodbench.methods"]
nearest = "nearest"

[tool.setuptools]
py-modules = ["nearest"]
"""


def call(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Run a command; return its output, or fail and show it."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Installed:
    """The wheel in a separate environment with this one's dependencies but without the checkout."""

    wheel: Path
    python: Path
    site: Path
    elsewhere: Path

    def run(self, *arguments: str | Path) -> str:
        """The installed command, called from a folder that is not the checkout."""
        return call([self.python.with_name("oodbench"), *arguments], self.elsewhere)

    def pip(self, *arguments: str | Path) -> str:
        """Install without a network and without dependencies."""
        flags = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir")
        return call([sys.executable, "-m", "pip", "install", *flags, *arguments], self.elsewhere)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("packaging")
    source, wheels, elsewhere = home / "source", home / "wheels", home / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in SOURCES:  # built from a copy: a build leaves folders behind, which would get into the next wheel
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    build: list[str | Path] = [
        "pip",
        "wheel",
        source,
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--no-cache-dir",
        "-w",
        wheels,
    ]
    call([sys.executable, "-m", *build], home)
    (wheel,) = wheels.glob("oodbench-*.whl")
    call([sys.executable, "-m", "venv", "--without-pip", home / "venv"], home)
    python = home / "venv/bin/python"
    site = Path(call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    # Dependencies come from this environment by a .pth file, which does not read the .pth of the editable install.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    made = Installed(wheel, python, site, elsewhere)
    made.pip("--prefix", home / "venv", "--ignore-installed", wheel)
    script = python.with_name("oodbench")
    script.write_text(re.sub(r"\A#!.*", f"#!{python}", script.read_text()))
    return made


def test_the_wheel_contains_everything_for_a_run(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    for path in (ROOT / "datasets").rglob("*"):
        if path.suffix in (".toml", ".txt", ".npz"):
            assert f"oodbench/datasets/{path.relative_to(ROOT / 'datasets').as_posix()}" in names
    for path in (ROOT / "results/published").glob("*.toml"):
        assert f"oodbench/published/{path.name}" in names
    for path in (ROOT / "results/reference").rglob("*.json"):
        assert f"oodbench/rows_of_glyphs/{path.name}" in names
    for path in (ROOT / "methods").glob("*.py"):
        assert f"oodbench_methods/{path.name}" in names
    for path in (ROOT / "oodbench").rglob("*"):
        if path.suffix in (".py", ".json", ".safetensors", ".typed", ".txt", ".html", ".css", ".js"):
            assert path.relative_to(ROOT).as_posix() in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"oodbench", "oodbench_methods"}
    assert not {name for name in names if name.startswith("oodbench/datasets/") and name.endswith(".py")}
    assert "oodbench/py.typed" in names and not [name for name in names if Path(name).name.startswith("test_")]


def test_the_installed_package_is_the_wheel_s(installed: Installed) -> None:
    code = (
        "import importlib.util, oodbench, oodbench.data.paths\n"
        "print(oodbench.__file__, oodbench.data.paths.declarations(), oodbench.__version__)\n"
        "print(importlib.util.find_spec('oodbench_methods').submodule_search_locations[0])\n"
    )
    out = call([installed.python, "-c", code], installed.elsewhere)
    assert out.count(str(installed.site)) == 3 and str(ROOT) not in out
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and version[1] in out


def test_the_wheel_lists_and_runs(installed: Installed) -> None:
    listed = installed.run("methods", "--wide")
    assert all(f"{path.stem} " in listed for path in (ROOT / "methods").glob("[!_]*.py"))
    assert "imagenet1k" in installed.run("datasets") and "textures" in installed.run("datasets", "mos")
    if not (ROOT / "oodbench/data/glyphs/encoder.safetensors").is_file():
        pytest.skip("the embedded encoder has not been made")
    out = installed.run("run", "--limit", "40", "--tracking-uri", "none", "--store", first_run() / "store")
    assert "MCM" in out and "Letters" in out and "partial 40/1500" in re.sub(r"\s+", " ", out)
    assert (installed.elsewhere / "results/runs").is_dir()


def test_a_two_file_method_of_a_third_party_is_listed_checked_and_run(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "nearest.py").write_text(THEIRS)
    installed.pip("--target", installed.site, tmp_path)
    listed = installed.run("methods", "--wide")
    assert re.search(r"^nearest .* Nearest .* ready \(entry point of oodbench-nearest\)$", listed, re.MULTILINE)
    assert "power: float = 1" in installed.run("methods", "nearest")
    assert "nearest: keeps the contract" in installed.run("methods", "check", installed.site / "nearest.py")
    arguments = ("--methods", "nearest,nearest[power=2]", "--limit", "40", "--tracking-uri", "none")
    out = installed.run("run", *arguments)
    assert "Nearest" in out and "power" in out


def test_a_method_in_a_file_is_checked_and_run(installed: Installed, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(THEIRS.replace("Nearest", "Mine"))
    assert "mine: keeps the contract" in installed.run("methods", "check", path)
    out = installed.run("run", "--plugin", path, "--methods", "mine", "--limit", "40", "--tracking-uri", "none")
    assert "Mine" in out
