"""Where the shipped declarations lie: beside the package in a wheel, one level up in a checkout."""

from __future__ import annotations

from pathlib import Path


def declarations() -> Path:
    """The folder datasets/. Found by path: importlib.resources fails on editable mappings."""
    here = Path(__file__).resolve().parent
    for folder in (here / "datasets", here.parent / "datasets"):
        if (folder / "benchmarks").is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its datasets folder, looked for beside {here}")
