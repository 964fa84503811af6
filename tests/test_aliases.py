"""Names of before that stay importable, and say what they are called now."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("statistics", "metrics"),
        ("streaming", "metrics.streaming"),
        ("pictures", "report.figures"),
    ],
)
def test_old_modules_warn_and_give_the_same_objects(old: str, new: str) -> None:
    sys.modules.pop(f"oodbench.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"oodbench.{old} is now oodbench.{new}$"):
        alias = importlib.import_module(f"oodbench.{old}")
    home = importlib.import_module(f"oodbench.{new}")
    assert alias.__all__ and all(getattr(alias, name) is getattr(home, name) for name in alias.__all__)


def test_what_was_a_module_of_metrics_is_a_package_with_the_same_names() -> None:
    from oodbench import metrics
    from oodbench.metrics import detection

    assert metrics.evaluate is detection.evaluate and metrics.score_set is detection.score_set
