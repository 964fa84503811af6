"""Imports between the packages of oodbench follow the layer order, and no two modules import each other."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "errors storage results metrics data tracking method encoder pipeline report detector training distributed api cli"
).split()
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("oodbench/**/*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
ALIASES = {
    "oodbench",
    "oodbench.__main__",
    "oodbench.statistics",
    "oodbench.streaming",
    "oodbench.pictures",
}  # old names, public names


def imported(path: Path) -> set[str]:
    """The modules of oodbench that a file imports, also inside functions, except for annotations only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(MODULES)


@functools.cache
def imports() -> dict[str, set[str]]:
    """The imports of every module, cached because reading all files takes a second."""
    return {name: imported(path) - {name} for name, path in MODULES.items() if name not in ALIASES}


def place(module: str) -> int:
    """The position of a module's package in the layer order; ValueError for an unknown package."""
    return ORDER.index(module.split(".")[1])


@pytest.fixture(autouse=True, scope="module")
def _read_all() -> None:
    imports()


def test_imports_follow_the_layer_order() -> None:
    upward = {
        f"{name} -> {other}"
        for name, others in imports().items()
        for other in others - ALIASES
        if place(other) > place(name)
    }
    assert not upward


def test_there_are_no_circular_imports() -> None:
    left = {name: others - ALIASES for name, others in imports().items()}
    while leaves := [name for name, others in left.items() if not others & set(left)]:
        for name in leaves:
            del left[name]
    assert not left, sorted(left)


def test_no_worker_imports_what_its_version_check_leaves_out() -> None:
    """Driver and worker may differ in these modules, so no worker may run them."""
    from oodbench.distributed.payload import DRIVER_ONLY

    known, reached = imports(), set[str]()
    todo = {"oodbench.distributed.worker", "oodbench.distributed.training", "oodbench.method", "oodbench.results"}
    while todo:
        reached |= todo
        todo = {other for name in todo for other in known.get(name, ())} - reached
    paths = {MODULES[name].relative_to(ROOT / "oodbench").as_posix() for name in reached}
    assert len(paths) > 60 and not {path for path in paths if path.startswith(DRIVER_ONLY)}
    for prefix in DRIVER_ONLY:
        assert (ROOT / "oodbench" / prefix).exists(), prefix
