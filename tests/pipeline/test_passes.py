"""Scoring on several threads: the digits of one thread, in order, and errors of the right method."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.errors import InputMutated
from oodbench.method import Batch, Method, Needs, Sources, Task, registry
from oodbench.pipeline.batches import FittedMethod, map_in_order, score_batches
from oodbench.pipeline.jobs import Job

CLASSES = 300


def task() -> Task:
    bank = normalize(torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(1)), dim=-1)

    def nothing(*_: Any) -> Any:
        raise AssertionError("not asked for")

    return Task(["c"] * CLASSES, 100.0, Sources(lambda templates: bank.clone(), nothing, nothing, nothing))


def batches(count: int = 23, rows: int = 70) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        embeddings = torch.randn(rows, 16, generator=generator)
        yield Batch(~Needs(0), rows, normalize(embeddings, dim=-1), embeddings, embeddings.clone())


@dataclass(frozen=True)
class Probe(Method[None]):
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.ACTIVATIONS
    body: Callable[[Batch, Task], Tensor] = lambda batch, task: batch.features[:, 0]

    def score(self, batch: Batch, task: Task, state: None) -> Tensor:
        return self.body(batch, task)


def running(method: Method[Any]) -> FittedMethod:
    return FittedMethod(cast(Job, None), method)


def shipped() -> list[FittedMethod]:
    known = registry.methods()
    return [running(registry.make(known[name], {})) for name in ("mcm", "msp", "maxlogit", "energy")]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_digits_do_not_depend_on_the_threads(threads: int) -> None:
    several = score_batches(batches, shipped(), task(), threads)
    for method, given in zip(shipped(), several, strict=True):
        alone = task()
        with torch.no_grad():
            plain = [method.method.score(batch, alone, None).double().numpy() for batch in batches()]
            best = [(batch.features @ alone.text("simple").T).argmax(-1).numpy() for batch in batches()]
        assert np.array_equal(np.concatenate(given.scores), np.concatenate(plain))
        assert np.array_equal(np.concatenate(given.predictions), np.concatenate(best))
        assert given.error is None and given.seconds > 0


def test_each_thread_computes_on_one_core() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        both = threading.Barrier(2, timeout=60)  # so that no thread does it all

        def look(_: int) -> tuple[int, int]:
            both.wait()
            return torch.get_num_threads(), threading.get_ident()

        found = list(map_in_order(look, range(8), 2))
        assert {count for count, _ in found} == {1} and len({thread for _, thread in found}) == 2
        later: list[int] = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert (torch.get_num_threads(), later) == (3, [3])
    finally:
        torch.set_num_threads(before)


def test_results_are_in_order_and_few_items_are_in_memory() -> None:
    out = 0

    def items() -> Iterator[int]:
        nonlocal out
        for i in range(40):
            out += 1
            yield i

    def late(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i

    taken = 0
    for i, made in enumerate(map_in_order(late, items(), 3)):
        assert made == i
        taken += 1
        assert out - taken <= 3


def test_an_error_stops_the_threads() -> None:
    begun: list[int] = []

    def fail(i: int) -> None:
        begun.append(i)
        if i == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_in_order(fail, range(10_000), 2))
    assert len(begun) < 20
    assert not [one for one in threading.enumerate() if "ThreadPool" in one.name]


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_the_first_error_is_kept_and_other_methods_continue(threads: int | None) -> None:
    calls: list[int] = []

    def fails(batch: Batch, task: Task) -> Tensor:
        calls.append(1)
        if batch.features[0, 0] > 0:
            raise ValueError(f"at {float(batch.features[0, 0]):.6f}")
        return batch.features[:, 0]

    which, first = next((i, float(b.features[0, 0])) for i, b in enumerate(batches()) if b.features[0, 0] > 0)
    failed, good = score_batches(batches, [running(Probe(fails)), shipped()[0]], task(), threads)
    assert str(failed.error) == f"at {first:.6f}"
    assert good.error is None and len(good.scores) == 23
    ahead = 0 if threads is None else threads + 1
    assert len(calls) <= which + 1 + ahead < 23  # not asked again, but threads are ahead of what is known


def scaled(array: np.ndarray) -> None:
    array *= -1


def flipped(array: np.ndarray) -> None:
    array[:] = array[::-1].copy()


# Writes of a method into its inputs; torch counts only the first three.
WRITES: dict[str, Callable[[Batch, Task], Any]] = {
    "text": lambda batch, task: task.text("simple").mul_(0.5),
    "logits": lambda batch, task: task.logits(batch.features, "simple", 1.0).zero_(),
    "features": lambda batch, task: batch.features.neg_(),
    "text past torch": lambda batch, task: scaled(task.text("simple").numpy()),
    "text of another order": lambda batch, task: flipped(task.text("simple").numpy()),
    "logits past torch": lambda batch, task: task.logits(batch.features, "simple", 1.0).numpy().sort(-1),
    "features past torch": lambda batch, task: scaled(batch.features.numpy()),
    "features sorted": lambda batch, task: batch.features.numpy().sort(0),
    "features of another order": lambda batch, task: flipped(batch.features.numpy()),
    "signs of every second column": lambda batch, task: scaled(batch.features.numpy()[:, 1::2]),
    "one bit": lambda batch, task: batch.features.numpy().view(np.int32).__setitem__((3, 5), 0),
    "data": lambda batch, task: batch.features.data.add_(0.5),
    "embeddings": lambda batch, task: scaled(batch.embeddings.numpy()),
    "activations": lambda batch, task: scaled(batch.activations.numpy()),
}


@pytest.mark.parametrize("threads", [None, 1, 4])
@pytest.mark.parametrize("what", WRITES)
def test_only_the_method_that_changes_its_input_fails(threads: int | None, what: str) -> None:
    def changes(batch: Batch, task: Task) -> Tensor:
        WRITES[what](batch, task)
        return batch.features[:, 0]

    def slow(batch: Batch, task: Task) -> Tensor:
        time.sleep(0.001)
        return task.largest(batch.features, "simple", None)

    group = [running(Probe(slow)), shipped()[0], running(Probe(changes)), shipped()[1]]
    given_task = task()
    found = score_batches(batches, group, given_task, threads)
    assert [isinstance(one.error, InputMutated) for one in found] == [False, False, True, False]
    assert all(one.error is None for one in (found[0], found[1], found[3]))
    # The rest start again with the same task, and get what they would have got.
    rest = [group[0], group[1], group[3]]
    again, fresh = score_batches(batches, rest, given_task, threads), score_batches(batches, rest, task(), threads)
    for one, other in zip(again, fresh, strict=True):
        assert np.array_equal(np.concatenate(one.scores), np.concatenate(other.scores))


def test_text_is_encoded_once_for_all_threads() -> None:
    asked: list[str] = []

    def bank(templates: str) -> Tensor:
        asked.append(templates)
        time.sleep(0.05)
        return torch.eye(16)

    def nothing(*_: Any) -> Any:
        raise AssertionError("not asked for")

    shared = Task(["c"] * 16, 100.0, Sources(bank, nothing, nothing, nothing))
    probe = Probe(lambda batch, task: task.largest(batch.features, "late", None))
    score_batches(batches, [running(probe)], shared, 4)
    assert asked == ["late"]
