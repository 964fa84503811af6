"""Hyper-parameters for fast runs of methods that encode thousands of words."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

FILES: tuple[str, ...] = importlib.import_module("oodbench_methods._wordnet").FILES  # the released word files


def settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return hyper-parameters by method, of words that are written into a folder."""
    prompts, nouns = folder / "prompts.txt", folder / "nouns.txt"
    prompts.write_text("".join(f"the nice thing number {i}\n" for i in range(500)))
    nouns.write_text("".join(f"thing number {i}\n" for i in range(30)))
    words = folder / "words"
    words.mkdir(exist_ok=True)
    for name in FILES:
        (words / f"{name}.txt").write_text("".join(f"{name.partition('.')[2]} {i}\n" for i in range(9)))
    return {
        "neglabel": {"words": str(prompts), "groups": 5},
        "csp": {"words": str(nouns), "groups": 5},
        "negrefine": {"words": str(nouns), "groups": 5, "top_classes": 2, "top_negatives": 2, "pair_templates": "{}"},
        "eoe": {"words": str(nouns)},  # which has no default
        "adaneg": {"words": str(words), "num_negatives": 60},
        "tanl": {"words": str(words)},
    }
