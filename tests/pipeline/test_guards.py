"""State that a method keeps between images is detected wherever it is kept, and no wrong score is stored."""

from __future__ import annotations

import functools
import itertools
import random
import re
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.neighbors import BallTree
from sklearn.preprocessing import StandardScaler

from oodbench.errors import UserError
from oodbench.pipeline.batches import (
    CPU_TOLERANCE,
    FittedMethod,
    MethodOutput,
    contents,
    difference,
    method_contents,
    retention_error,
)
from oodbench.storage.store import Store
from tests.pipeline.test_engine import HEAD, images, request, results, scores_of

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
def test_a_change_of_contents_is_detected(kind: str) -> None:
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


def test_cyclic_and_unreadable_objects_have_contents() -> None:
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
    "a module": ("SEEN = [0]\n", "return None", "SEEN[0] += batch.size; n = SEEN[0]", "score.. keeps state"),
    "a closure": ("", "return counting()", "n = state(batch.size)", r"score\(\) changes state\.n"),
    "a closure of the module": (
        "",
        "return None",
        "n = COUNTING(batch.size)",
        r"score\(\) keeps state from one image to the next: an image scores .* at first and .* after a set",
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
        "score.. keeps state",
    ),
    "the class vectors' object": (
        "",
        "return None",
        "bank = task.text('simple'); n = getattr(bank, 'n', 0) + batch.size; bank.n = n",
        "score.. keeps state",
    ),
    "torch's own generator": ("", "return None", "n = 200 * torch.rand(batch.size)", "score.. keeps state"),
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


QUICK = ("a dict that fit() returned", "a module")


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [where if where in QUICK else pytest.param(where, marks=pytest.mark.slow) for where in COUNTS]
)
def test_a_method_that_counts_images_fails_and_none_of_its_scores_stay(
    where: str, images: Path, tmp_path: Path
) -> None:
    """Later images score less, so that OOD images after ID images would seem to be separated."""
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
    assert probe.error.endswith("; write a StreamMethod if it is meant to learn from the test images")
    scored = [entry.inputs["method"] for entry in Store(store).entries() if entry.kind == "scores"]
    assert scored == ["mcm", "mcm"]
    (alone,) = results(request(images, tmp_path / "alone", methods="mcm", store=tmp_path / "other"))
    assert mcm.digest == alone.digest


def test_a_stream_that_keeps_state_elsewhere_fails(images: Path, tmp_path: Path) -> None:
    """State in the state is allowed. The count changes scores at the end of the stream, or from the next one on."""
    keeps = {
        "state": ("state['n'] += batch.size; n = state['n']", ""),
        "module": ("SEEN[0] += batch.size; n = SEEN[0]", "it keeps something outside its state: '"),
        "closure": ("n = COUNTING(batch.size)", "it keeps something outside its state: '"),
        "attribute": (COUNTS["the method"][2], "step() changes self['n']"),
        "class": (COUNTS["the class"][2], "it keeps something outside its state: '"),
    }
    for name, (count, _) in keeps.items():
        (tmp_path / f"{name}.py").write_text(
            HEAD.replace("import Method", "import StreamMethod")
            .replace("(Method)", "(StreamMethod)")
            .replace("@dataclass", "SEEN = [0]\n" + COUNTING + "@dataclass")
            + "    def begin(self, task):\n        return {'n': 0}\n    def step(self, batch, task, state):\n"
            f"        {count}\n        return batch.features[:, 0] - (n > 70) * .1, state\n"
        )
    plugins = [tmp_path / f"{name}.py" for name in keeps]
    wanted = request(
        images, tmp_path / "r", methods=",".join(keeps), store=tmp_path / "s", plugins=plugins, stream_batch=16
    )
    found = {row.label: row.error or "" for row in results(wanted)}
    assert all(found[name].startswith(said) and bool(found[name]) == bool(said) for name, (_, said) in keeps.items())
    stored = {entry.inputs["sets"][0]["method"] for entry in Store(tmp_path / "s").entries() if entry.kind == "streams"}
    assert stored == {"state"}


WRITES = {
    "features": ("", "f = batch.features.numpy(); f += .5"),
    "a scaler that copies nothing": (
        "",
        "from sklearn.preprocessing import StandardScaler\n"
        "        StandardScaler(copy=False).fit_transform(batch.features.numpy())",
    ),
    "class vectors": ("", "bank = task.text('simple').numpy(); bank *= -1"),
    "class vectors kept from fit()": ("return task.text('simple').numpy()[1:]", "state *= -1"),
    "logits": ("", "task.logits(batch.features, 'simple', 1.0).numpy()[:] = 0"),
    "what the encoder normalises by": ("", "task.encoder.std.numpy()[:] = 9"),
    "class vectors in a fit() that fails": ("task.text('simple').numpy()[:] = 0; raise ValueError", "pass"),
    "class vectors in fit()": ("bank = task.text('simple').numpy(); bank *= -1", "pass"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRITES)
def test_a_write_through_numpy_does_not_affect_other_methods(what: str, images: Path, tmp_path: Path) -> None:
    """This includes a method whose state is in the written memory, in any order of the methods."""
    learn, write = WRITES[what]
    for name, fit, score in (("probe", learn or "pass", write), ("keeps", "return task.text('simple')", "pass")):
        (tmp_path / f"{name}.py").write_text(
            HEAD + f"    def fit(self, task):\n        {fit}\n"
            f"    def score(self, batch, task, state):\n        {score}\n"
            "        return (batch.features @ task.text('simple').T if state is None or not torch.is_tensor(state)\n"
            "                else batch.features @ state.T).amax(-1)\n"
        )
    plugins = [tmp_path / "probe.py", tmp_path / "keeps.py"]
    found = results(
        request(images, tmp_path / "r", methods="keeps,mcm,probe,msp", store=tmp_path / "s", plugins=plugins)
    )
    assert [row.label for row in found if row.status == "failed"] == ["probe"]
    assert re.search("changes its inputs in place|ValueError", found[2].error or "")
    others = request(images, tmp_path / "alone", methods="keeps,mcm,msp", store=tmp_path / "t", plugins=plugins[1:])
    assert [row.digest for row in results(others)] == [row.digest for row in found if row.status == "ok"]


@pytest.mark.slow
def test_word_vectors_and_calibration_images_are_not_shared(tmp_path: Path) -> None:
    """Each method gets its own word vectors and calibration images: a write into them affects no other method."""
    for name, write in (("probe", "x *= -1"), ("reads", "pass")):
        (tmp_path / f"{name}.py").write_text(
            HEAD + "    needs = Needs.FEATURES | Needs.CALIBRATION\n    def fit(self, task):\n"
            "        parts = [task.words(['a', 'b']), *(batch.features for batch in task.calibration())]\n"
            f"        for part in parts:\n            x = part.numpy()\n            {write}\n"
            "        return torch.cat(parts)\n"
            "    def score(self, batch, task, state):\n        return (batch.features @ state.T).amax(-1)\n"
        )
    plugins = [tmp_path / "probe.py", tmp_path / "reads.py"]
    options: dict[str, Any] = {"id": "glyphs", "ood": [], "limit": 40, "store": tmp_path / "s"}
    together = request(Path(), tmp_path / "r", methods="probe,reads", plugins=plugins, **options)
    alone = request(
        Path(), tmp_path / "t", methods="reads", plugins=plugins[1:], **{**options, "store": tmp_path / "u"}
    )
    assert results(together)[1].digest == results(alone)[0].digest


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("batch.features[:, 0] - batch.features[:, 0].mean()", "score.. depends on the other images of the batch"),
        ("batch.features[:, 0].argsort().argsort().double()", "score.. depends on the other images of the batch"),
        ("torch.rand(batch.size, generator=torch.Generator().manual_seed(task.seed))", "depends on the other images"),
    ],
)
def test_an_image_is_scored_independently(score: str, said: str, images: Path, tmp_path: Path) -> None:
    (row,) = results(
        request(
            images, tmp_path, f"    def score(self, batch, task, state):\n        return {score}\n", methods="probe"
        )
    )
    assert re.search(said, row.error or "")


@pytest.mark.parametrize(
    "score",
    [
        "(batch.features @ torch.randn(batch.features.shape[1], generator=torch.Generator().manual_seed(task.seed)))",
        "(100 * batch.features[:, 0]).round()",
        "(batch.features @ task.text('simple').T).softmax(-1).amax(-1)",
        "torch.ones(batch.size)",
    ],
)
def test_random_rounding_and_tied_methods_pass(score: str, images: Path, tmp_path: Path) -> None:
    (row,) = results(
        request(
            images, tmp_path, f"    def score(self, batch, task, state):\n        return {score}\n", methods="probe"
        )
    )
    assert row.status == "ok", row.error


KEEPS = """    needs = Needs.FEATURES | Needs.CALIBRATION
    words: str = ""
    def fit(self, task):
        def bank():
            sign = pathlib.Path(self.words).read_text() if self.words else "1"
            return float(sign) * torch.cat([batch.features for batch in task.calibration()])
        return task.cached(bank)
    def score(self, batch, task, state):
        return (batch.features @ state.T).amax(-1)
"""


@pytest.mark.slow
def test_the_cache_of_a_method_depends_on_the_calibration_images(tmp_path: Path) -> None:
    """A short run leaves its bank in the store; the next run must not use it."""
    options: dict[str, Any] = {"methods": "probe", "id": "glyphs", "ood": ["glyphs-digits"]}
    for limit in (40, 60):
        wanted = request(Path(), tmp_path / "r", KEEPS, limit=limit, store=tmp_path / "s", **options)
        (row,) = results(wanted)
    fresh = request(Path(), tmp_path / "t", KEEPS, limit=60, store=tmp_path / "u", **options)
    assert row.digest == results(fresh)[0].digest
    kept = [entry for entry in Store(tmp_path / "s").entries() if entry.kind == "kept"]
    assert len({entry.key for entry in kept}) == 2


@pytest.mark.slow
def test_the_cache_of_a_method_depends_on_files_of_hyper_parameters(tmp_path: Path) -> None:
    words = tmp_path / "sign.json"
    options: dict[str, Any] = {"methods": "probe", "id": "glyphs", "ood": ["glyphs-digits"], "limit": 40}
    found = []
    for sign in ("1", "-1"):
        words.write_text(sign)
        wanted = request(
            Path(), tmp_path / "r", KEEPS, settings=[f"probe.words={words}"], store=tmp_path / "s", **options
        )
        found.append(results(wanted)[0])
    assert found[0].ood[0].auroc != found[1].ood[0].auroc


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            "torch.full((batch.size,), float('inf'))",
            "60 of 60 scores on folder:.*id are infinite, that of 'blue/00.png'",
        ),
        ("batch.features[:, 0] - torch.inf", "are infinite"),
        ("2**60 + torch.arange(batch.size)", "integers beyond 2.53"),
        ("batch.features[:, 0] > 0", "real numbers, not torch.bool"),
        ("batch.features[:, 0] * 1j", "real numbers, not torch.complex64"),
        ("batch.features[:, 0].numpy()", "a tensor .60., not ndarray"),
    ],
)
def test_invalid_scores_are_refused(score: str, said: str, images: Path, tmp_path: Path) -> None:
    (row,) = results(
        request(
            images, tmp_path, f"    def score(self, batch, task, state):\n        return {score}\n", methods="probe"
        )
    )
    assert row.status == "failed" and re.search(said.replace("60.", r"\d+."), row.error or ""), row.error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64"])
def test_scores_are_stored_unchanged(dtype: str, images: Path, tmp_path: Path) -> None:
    body = f"    def score(self, batch, task, state):\n        return (100 * batch.features[:, 0]).to(torch.{dtype})\n"
    (row,) = results(request(images, tmp_path, body, methods="probe"))
    assert row.status == "ok", row.error
    found = torch.from_numpy(scores_of(tmp_path, f"folder:{images}/ood"))
    assert torch.equal(found, found.to(getattr(torch, dtype)).double())


@pytest.mark.slow
def test_a_detector_refuses_a_method_that_counts(images: Path, tmp_path: Path) -> None:
    """Its images come a few at a time; it is checked after enough of them, and then refused permanently."""
    from oodbench import Detector

    path = tmp_path / "probe.py"
    path.write_text(
        HEAD.replace("@dataclass", "SEEN = [0]\n@dataclass", 1) + "    def score(self, batch, task, state):\n"
        "        SEEN[0] += batch.size\n        return batch.features[:, 0] - (SEEN[0] > 100) * .1\n"
    )
    made = Detector("probe", classes=["a", "b"], plugins=[path], threshold=0.0, store=str(tmp_path / "s"))
    made.fit()
    scored = 0
    with pytest.raises(UserError, match=r"probe: score\(\) keeps state from one image to the next"):
        while scored < 600:
            made.score_samples(images / "ood")
            scored += 30
    assert scored < 300
    with pytest.raises(UserError, match="keeps state"):
        made.score_samples(images / "ood")
    fine = Detector("mcm", classes=["a", "b"], threshold=0.0, store=str(tmp_path / "s")).fit()
    first = fine.score_samples(images / "ood")
    assert all(np.array_equal(first, fine.score_samples(images / "ood")) for _ in range(10))


@pytest.mark.parametrize(("change", "found"), [(2.2e-7, False), (1e-3, True)])
def test_rounding_is_not_reported_as_state(change: float, found: bool) -> None:
    """On a busy CPU a product may be divided among fewer threads, which changes the last digits."""
    scores = np.random.default_rng(0).normal(-0.68, 0.01, 64)
    first = MethodOutput([scores[:32], scores[32:]], [np.arange(32, dtype=np.int32)] * 2)
    other = scores.copy()
    other[7] *= 1 + change
    again = MethodOutput([other[32:], other[:32]], first.predictions[::-1])
    method = FittedMethod(cast(Any, None), cast(Any, types.SimpleNamespace()), first_output=first)
    method.contents = method_contents(method)
    assert ("keeps state" in retention_error(method, again, CPU_TOLERANCE)) is found
    again.predictions[0] = 31 - again.predictions[0]
    assert "keeps state" in retention_error(method, again, CPU_TOLERANCE)
