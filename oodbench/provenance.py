"""What made a number: versions of the libraries it depends on, and the commit of this code."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.results import Result

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


def elsewhere(asked: str, results: Iterable[Result]) -> str:
    """A note on rows that came from the store and were made on another device than was asked for; "" without such."""
    made: dict[str, list[str]] = {}
    for result in results:
        if result.status == "ok" and asked != "auto":
            devices = [*result.run["device"].split(", "), *(one["device"] for one in result.run["extracted"])]
            others = sorted({one for one in devices if not _is(one, asked)})
            if others:
                made.setdefault(" and ".join(others), []).append(result.label)
    parts = [f"{', '.join(dict.fromkeys(labels))}: from the store, made on {device}" for device, labels in made.items()]
    return f"{'; '.join(parts)}; --device {asked} was asked for" if parts else ""


def _is(device: str, asked: str) -> bool:
    """Whether a device is the one asked for: `cuda` is any GPU, and of its own is `cuda:0`."""
    kind, _, number = asked.partition(":")
    its_kind, _, its_number = device.partition(":")
    return kind == its_kind and (not number or number == (its_number or "0"))


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
