"""What a method keeps of the images it has seen is found, wherever it keeps it; nothing wrong is stored."""

from __future__ import annotations

import functools
import itertools
import random
import re
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import BallTree
from sklearn.preprocessing import StandardScaler

from oodbench.guards import contents, difference
from oodbench.plan import make_plan
from oodbench.runner import run
from oodbench.store import Store
from tests.test_engine import HEAD, images, request, results, scores_of

__all__ = ["images"]  # the fixture


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> None:
        self.count += 1


@dataclass
class Node:
    values: dict[str, Any] = field(default_factory=dict)
    inner: Any = None


def counter() -> Callable[[], int]:
    count = 0

    def add() -> int:
        nonlocal count
        count += 1
        return count

    return add


def batch_norm() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.BatchNorm1d(3))


# What is held, and a change of it.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "tensor": (lambda: torch.zeros(5), lambda x: x[3:4].fill_(1)),
    "tensor of another order": (lambda: torch.arange(9.0), lambda x: x.copy_(x.flip(0))),
    "half": (lambda: torch.zeros(5, dtype=torch.bfloat16), lambda x: x[4:].fill_(1)),
    "view": (lambda: torch.arange(20.0)[1::3], lambda x: x[-1:].fill_(0)),
    "array": (lambda: np.zeros((3, 4)), lambda x: x.__setitem__((2, 1), 1)),
    "objects": (lambda: np.array([{}, "a"], object), lambda x: x[0].setdefault("n", 1)),
    "dict": (dict, lambda x: x.setdefault("n", 1)),
    "default": (lambda: defaultdict(int), lambda x: x["n"]),
    "ordered": (lambda: OrderedDict(a=[1]), lambda x: x["a"].append(1)),
    "list": (lambda: [1, [2, {"a": 3}]], lambda x: x[1][1].update(a=4)),
    "set": (lambda: {1, 2}, lambda x: x.add(3)),
    "deque": (lambda: deque([1], maxlen=2), lambda x: x.append(1)),
    "dataclass": (lambda: Node({"a": torch.zeros(2)}, Node()), lambda x: x.inner.values.update(b=1)),
    "slots": (Slotted, lambda x: x.add()),
    "closure": (counter, lambda x: x()),
    "partial": (lambda: functools.partial(max, [1]), lambda x: x.args[0].append(2)),
    "method": (lambda: Slotted().add, lambda x: x()),
    "attribute of a function": (counter, lambda x: setattr(x, "n", 1)),
    "module": (batch_norm, lambda x: x(torch.ones(4, 3))),
    "mode of a module": (batch_norm, lambda x: x.eval()),
    "torch generator": (torch.Generator, lambda x: torch.rand(1, generator=x)),
    "numpy generator": (np.random.default_rng, lambda x: x.random()),
    "numpy's old generator": (np.random.RandomState, lambda x: x.rand()),
    "python's generator": (random.Random, lambda x: x.random()),
    "scaler": (lambda: StandardScaler().fit(np.eye(3)), lambda x: x.partial_fit(np.ones((2, 3)))),
    "words": (lambda: ["a"] * 1000, lambda x: x.__setitem__(999, "b")),
    "NaN": (lambda: [float("nan"), 1], lambda x: x.append(2)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_what_is_held_is_found(kind: str) -> None:
    make, change = CHANGES[kind]
    held = make()
    before = contents(held, "state")
    assert difference(before, contents(held, "state")) is None
    change(held)
    place = difference(before, contents(held, "state"))
    assert place is not None and place.startswith("state")


def test_the_place_is_named() -> None:
    held = Node({"mean": [torch.zeros(2), torch.zeros(3)]})
    before = contents(held, "state")
    held.values["mean"][1] += 1
    assert difference(before, contents(held, "state")) == "state.values['mean'][1]"


def test_what_holds_itself_and_what_cannot_be_read_have_contents() -> None:
    ring: list[Any] = [threading.Lock(), (i for i in range(3)), itertools.count(), BallTree(np.eye(4)), open]
    ring.append(ring)
    before = contents(ring)
    assert difference(before, contents(ring)) is None


COUNTS = {
    "a dict that fit() returned": (
        "",
        "return {'n': 0}",
        "state['n'] += batch.size; n = state['n']",
        r"score\(\) changes state\['n'\]",
    ),
    "a module": ("SEEN = [0]\n", "return None", "SEEN[0] += batch.size; n = SEEN[0]", "score.. keeps something"),
    "a closure": ("", "return counting()", "n = state(batch.size)", r"score\(\) changes state\.n"),
    "a closure of the module": (
        "",
        "return None",
        "n = COUNTING(batch.size)",
        r"score\(\) keeps something of the images it has seen: one of them scores .* at first and .* after a set",
    ),
    "the method": (
        "",
        "return None",
        "n = getattr(self, 'n', 0) + batch.size; object.__setattr__(self, 'n', n)",
        r"score\(\) changes self\['n'\]",
    ),
    "the class": (
        "",
        "return None",
        "n = getattr(type(self), 'n', 0) + batch.size; type(self).n = n",
        "score.. keeps something",
    ),
    "the class vectors' object": (
        "",
        "return None",
        "bank = task.text('simple'); n = getattr(bank, 'n', 0) + batch.size; bank.n = n",
        "score.. keeps something",
    ),
    "torch's own generator": ("", "return None", "n = 200 * torch.rand(batch.size)", "score.. keeps something"),
}
COUNTING = """
def counting():
    n = 0
    def add(m):
        nonlocal n
        n += m
        return n
    return add
COUNTING = counting()
"""


@pytest.mark.parametrize("where", COUNTS)
def test_a_method_that_counts_is_refused_and_nothing_of_it_is_kept(where: str, images: Path, tmp_path: Path) -> None:
    """Later images score less: with OOD after ID everything seems told apart."""
    module, learnt, count, said = COUNTS[where]
    (tmp_path / "r").mkdir()
    (tmp_path / "r/probe.py").write_text(
        HEAD.replace("@dataclass", module + COUNTING + "@dataclass")
        + f"    def fit(self, task):\n        {learnt}\n    def score(self, batch, task, state):\n"
        f"        {count}\n        return batch.features[:, 0] - (n > 100) * .1\n"
    )
    store = tmp_path / "store"
    wanted = request(images, tmp_path / "r", methods="probe,mcm", store=store, plugins=[tmp_path / "r/probe.py"])
    probe, mcm = results(wanted)
    assert probe.status == "failed" and probe.error is not None
    assert re.search(said, probe.error), probe.error
    scored = [entry.inputs["method"] for entry in Store(store).entries() if entry.kind == "scores"]
    assert scored == ["mcm", "mcm"]
    (alone,) = results(request(images, tmp_path / "alone", methods="mcm", store=tmp_path / "other"))
    assert mcm.digest == alone.digest
