"""What made a number: versions of the libraries it depends on, and the commit of this code."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("oodbench", "torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that scores depend on; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def stamp(device: str) -> dict[str, object]:
    """Versions, commit and device, as stored with what was computed."""
    return {"versions": versions(), "commit": commit(), "device": device}


def distinct(stamps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stamps in order, each once."""
    found: list[dict[str, Any]] = []
    for one in stamps:
        if one not in found:
            found.append(one)
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from, with `-dirty` when it differs; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        call = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(call, capture_output=True, text=True, timeout=5, check=True)
        inside = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", "provenance.py"],
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if inside.returncode == 0 else None  # a venv inside some other checkout does not count
