"""Folders shipped with oodbench: inside the package in a wheel, one level above it in a checkout."""

from __future__ import annotations

from pathlib import Path


def declarations() -> Path:
    """Return the folder datasets/. importlib.resources does not find it in an editable installation."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "datasets", here.parent / "datasets"):
        if (folder / "benchmarks").is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its datasets folder, looked for next to {here}")


def published() -> Path:
    """Return the folder results/published."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "published", here.parent / "results" / "published"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its published numbers, looked for next to {here}")


def reference() -> Path | None:
    """Return the folder of the project's own results on glyphs; None if it was not installed."""
    here = Path(__file__).resolve().parents[1]
    folders = (here / "rows_of_glyphs", here.parent / "results" / "reference" / "glyphs")
    return next((folder for folder in folders if folder.is_dir()), None)
