"""Shared computations have the digits of the plain form; benchmarks run and write their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from oodbench.method import Sources, Task, logsumexp

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def task(classes: int, bank: torch.Tensor) -> Task:
    def nothing(*_: Any) -> Any:
        raise AssertionError("not asked for")

    return Task(["c"] * classes, 97.3, Sources(lambda templates: bank, nothing, nothing, nothing))


def plain(logits: torch.Tensor) -> torch.Tensor:
    """logsumexp in one piece."""
    top = logits.amax(-1, keepdim=True)
    return top.squeeze(-1).double() + (logits - top).exp().sum(-1, dtype=torch.float64).log()


@pytest.mark.parametrize("classes", [1, 7, 50, 1000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [None, 1.0, 100.0, 0.3])
def test_shared_reductions_equal_those_of_the_logits(classes: int, scale: float | None) -> None:
    torch.manual_seed(0)
    features, bank = (normalize(torch.randn(n, 16), dim=-1) for n in (200, classes))
    shared = task(classes, bank)
    of: Any = (features, "a {}", scale)
    for _ in range(2):  # made, and remembered
        assert torch.equal(shared.logsumexp(*of), plain(shared.logits(*of)))
        assert torch.equal(shared.largest(*of), shared.logits(*of).amax(-1))
        assert torch.equal(shared.best(features, "a {}"), shared.logits(features, "a {}", None).argmax(-1))
    assert torch.equal(logsumexp(shared.logits(*of)), plain(shared.logits(*of)))


def test_task_cache_is_per_batch() -> None:
    torch.manual_seed(0)
    bank = normalize(torch.randn(30, 16), dim=-1)
    shared, batches = task(30, bank), [normalize(torch.randn(5, 16), dim=-1) for _ in range(3)]
    asked: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: shared.logsumexp(x, "a {}", 100.0),
        lambda x: shared.largest(x, "a {}", 1.0),
        lambda x: shared.best(x, "a {}"),
    ]
    for ask in asked:
        for features in batches:
            expected = ask(features).clone()
            ask(features).zero_()  # a method's own copy
            assert torch.equal(ask(features), expected)
            assert torch.equal(expected, ask(features.clone()))
    assert shared.intact()


def test_a_gradient_goes_through_logsumexp() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(logsumexp(logits * 2).sum(), logits)
    assert torch.allclose(gradient, 2 * (2 * logits).softmax(-1))


@pytest.mark.slow
def test_a_benchmark_runs_and_writes_its_results(tmp_path: Path) -> None:
    call = [sys.executable, str(BENCHMARKS / "streaming.py"), "--scores", "100000"]
    environment = {**os.environ, "OODBENCH_SPEED": str(tmp_path)}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment)
    kept = json.loads((tmp_path / "streaming.json").read_text())
    assert {"cpu", "cores", "numpy", "python"} <= set(kept["machine"])
    for one in kept["rows"]:
        assert one["what"] in done.stdout
        assert 0 < one["low"] <= one["ratio"] <= one["high"]
