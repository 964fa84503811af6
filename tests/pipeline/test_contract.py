"""Every method that the registry finds keeps the contract; and the contract catches methods that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from oodbench.cli import main
from oodbench.method import registry
from oodbench.pipeline.contract import CHECKS, run_checks

METHODS = registry.methods()

GOOD = '''"""Good: a method (Doe et al., ICML 2020, arXiv:2001.00001)."""
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
import torch
from oodbench.method import Batch, Method, Needs, Task, View

CALLS = []

def noisy(image):
    return np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8)

@dataclass(frozen=True)
class Good(Method[object]):
    """The largest cosine."""

    templates: str = "simple"

    def fit(self, task):
        return None

    def score(self, batch, task, state):
        return task.logits(batch.features, self.templates, None).amax(-1)
'''
SCORE = "return task.logits(batch.features, self.templates, None).amax(-1)"

# What to change in GOOD so that one check fails.
BROKEN = {
    "cites_its_paper": ("(Doe et al., ICML 2020, arXiv:2001.00001)", ""),
    "is_frozen": ("@dataclass(frozen=True)\n", ""),
    "gives_one_finite_score_per_image": (SCORE, SCORE.replace(".amax(-1)", "")),
    "is_deterministic": (SCORE, SCORE + " + torch.rand(batch.size)"),
    "keeps_nothing_of_what_it_sees": (SCORE, f"CALLS.append(batch.size); {SCORE} - 0.1 * (sum(CALLS) > 2000)"),
    "does_not_depend_on_the_batch": (SCORE, SCORE + " + batch.features.mean()"),
    "leaves_its_input_alone": (SCORE, "batch.features.add_(0.1); " + SCORE),
    "predicts_classes": (
        "    def fit",
        "    def predict(self, batch, task, state):\n        return batch.features.argmax(0)\n\n    def fit",
    ),
    "repeats_its_views": (
        "    def fit",
        "    needs = Needs.FEATURES | Needs.VIEWS\n    views = (View(noisy),)\n\n    def fit",
    ),
    "tells_id_from_ood": (SCORE, SCORE.replace("return ", "return -")),
    "has_a_state_that_travels": ("return None", "return lambda x: x"),
}


def failed(path: Path, source: str) -> set[str]:
    path.write_text(source)
    return {name.replace(" ", "_") for name, problem in run_checks(registry.methods([path])[path.stem]) if problem}


# NegLabel encodes 70,000 words for every fit; the others are trained, or write captions, in the toy world.
LONG = {"clipn", "neglabel", "zoc", "zoc_coca"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in METHODS]


@pytest.mark.parametrize("name", NAMES)
def test_method_keeps_the_contract(name: str) -> None:
    assert not {check: problem for check, problem in run_checks(METHODS[name]) if problem}


def test_no_method_is_overlooked() -> None:
    here = Path(__file__).resolve().parents[2] / "methods"
    assert set(METHODS) >= {path.stem for path in here.glob("*.py") if not path.name.startswith("_")}


def test_a_sound_method_passes(tmp_path: Path) -> None:
    assert failed(tmp_path / "good.py", GOOD) == set()


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_method_fails_the_check_it_breaks(check: str, tmp_path: Path) -> None:
    old, new = BROKEN[check]
    assert old in GOOD
    assert check in failed(tmp_path / "bad.py", GOOD.replace(old, new))


def test_every_check_has_a_method_that_breaks_it() -> None:
    assert {check.__name__ for check in CHECKS} == set(BROKEN)


@pytest.mark.parametrize("limit", [1, 5, 12, 60, 90, 100, 200, 400, 2000])
def test_a_method_that_counts_images_is_found_at_any_limit(limit: int, tmp_path: Path) -> None:
    counts = f"CALLS.append(batch.size); {SCORE} - 0.1 * (sum(CALLS) > {limit})"
    assert failed(tmp_path / "counts.py", GOOD.replace(SCORE, counts)) & {
        "is_deterministic",
        "keeps_nothing_of_what_it_sees",
    }


# Where a method may hide what it keeps, and the check that finds it there.
HIDDEN = {
    "the first batch's mean, in a module": (
        "global MEAN\n        MEAN = batch.features.mean(0) if MEAN is None else MEAN\n"
        "        return task.logits(batch.features - MEAN, self.templates, None).amax(-1)",
        "is_deterministic",
    ),
    "a count on the method": (
        "object.__setattr__(self, 'n', getattr(self, 'n', 0) + 1); " + SCORE,
        "keeps_nothing_of_what_it_sees",
    ),
    "a write past torch": (
        "f = batch.features.numpy(); f += 0.5; " + SCORE,
        "leaves_its_input_alone",
    ),
    "a write into class vectors": (
        "f = task.text('simple').numpy(); f *= 2; " + SCORE,
        "leaves_its_input_alone",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_is_hidden_is_found(what: str, tmp_path: Path) -> None:
    body, check = HIDDEN[what]
    assert check in failed(tmp_path / "bad.py", GOOD.replace("CALLS = []", "MEAN = None").replace(SCORE, body))


def test_reading_what_was_not_declared_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peeks.py"
    path.write_text(GOOD.replace(SCORE, "return batch.pixels.mean((1, 2, 3))"))
    problems = " ".join(problem for _, problem in run_checks(registry.methods([path])["peeks"]))
    assert "batch.pixels was read but not declared: add Needs.PIXELS" in problems


def test_what_a_method_says_keeps_to_its_line_and_hides_credentials(tmp_path: Path) -> None:
    fails = "raise ValueError('a\\n\\x1b[31mb http://me:secret@host/x')"
    file = tmp_path / "good.py"
    file.write_text(
        GOOD.replace("    def score(self, batch, task, state):\n", f"    def score(self, *given):\n        {fails}\n")
    )
    assert fails in file.read_text()
    done = CliRunner().invoke(main, ["methods", "check", str(file)])
    assert done.exit_code == 1 and "secret" not in done.output
    lines = done.output.splitlines()
    assert r"FAIL gives one finite score per image: ValueError: a\n\x1b[31mb http://host/x" in lines
    assert all(line.startswith(("ok ", "FAIL ", "good: ")) for line in lines), done.output
