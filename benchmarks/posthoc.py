"""Methods that read ID images against their own matrix products: python benchmarks/posthoc.py [--rounds 5] [--bank N].

The engine's loop scores on one core. KNN is measured with banks of several sizes, to show the growth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import Row, row, side_by_side, write
from scoring import CLASSES, DEPTH, added, chunks, ours, product_and_pass, unit
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Sources, Task, registry
from oodbench.pipeline.score import CHUNK

IMAGES, CALIBRATION, K = 4_096, 20_000, 50
BANK_CHUNK = (1 << 24) // CHUNK  # rows of the bank whose products are in memory at once


def make_task(bank: Tensor, calibration: Tensor) -> Task:
    """Return a task with random class vectors, and calibration images that cycle through the classes."""
    labels = torch.arange(len(calibration)) % CLASSES

    def batches() -> Any:
        for x, y in zip(chunks(calibration), chunks(labels), strict=True):
            yield Batch(~Needs(0), len(x), x, x, _labels=y)

    def nothing(*_: object) -> Any:
        raise AssertionError("not asked for")

    return Task([f"c{i}" for i in range(CLASSES)], 100.0, Sources(lambda t: bank, nothing, nothing, batches))


def product_and_selection(features: Tensor, bank: Tensor) -> None:
    """Compute the products in chunks of both, and the k largest of each chunk."""
    for part in chunks(features):
        torch.cat([(part @ rows.T).topk(K).values for rows in bank.split(BANK_CHUNK)], dim=1).topk(K)


def knn(rounds: int, banks: list[int]) -> list[Row]:
    """Measure KNN with growing banks, and its memory in addition to the bank."""
    rows, features = [], unit(IMAGES, 0)
    for size in banks:
        bank = unit(size, 3)
        method = registry.make(registry.methods()["knn"], {"k": K})
        task = make_task(bank[:1], bank)
        state = method.fit(task.for_method(method.needs))

        def scored(method: Method[Any] = method, task: Task = task, state: Any = state) -> None:
            ours({"knn": method}, features, task, {"knn": state})

        memory = added(scored)
        name = f"KNN, {IMAGES:,} x {size:,} x {DEPTH}"
        parts: dict[str, Callable[[], object]] = {
            "product and selection": lambda bank=bank: product_and_selection(features, bank),  # type: ignore[misc]
            name: scored,
        }
        ratio = side_by_side(parts, "product and selection", rounds)[name]
        note = f"{memory:.0f} MiB in addition to the bank, {ratio.seconds:.2f} s"
        rows.append(row(name, "product and selection", ratio, "<= 1.3", note))
    return rows


def others(rounds: int) -> list[Row]:
    """Measure Mahalanobis, RMD, ViM and GEN against the products that each needs, in the same precision."""
    features, bank = unit(IMAGES * 4, 0), unit(CLASSES, 1)
    task, rows = make_task(bank, unit(CALIBRATION, 2)), []
    square, centres = torch.randn(DEPTH, DEPTH).double(), torch.randn(CLASSES, DEPTH).double()

    def whitened() -> None:
        for part in chunks(features):
            (part.double() @ square) @ centres.T

    def whitened_twice() -> None:
        for part in chunks(features):
            (part.double() @ square) @ centres.T
            part.double() @ square

    def logits_and_residual() -> None:
        for part in chunks(features):
            product_and_pass(part, bank)
            part.double() @ square[:, : DEPTH // 2]

    def logits_and_largest() -> None:
        for part in chunks(features):
            logits = 100 * (part @ bank.T)
            (logits - logits.amax(-1, keepdim=True)).exp_().sum(-1)
            logits.topk(100, sorted=False).values.exp_().pow_(0.1)

    bases: dict[str, tuple[str, Callable[[], None]]] = {
        "mahalanobis": ("its two products, float64", whitened),
        "rmd": ("its three products, float64", whitened_twice),
        "vim": ("logits, largest, one exp, residual in float64", logits_and_residual),
        "gen": ("logits, largest, one exp, powers of the top 100", logits_and_largest),
    }
    for name, (what, base) in bases.items():
        method: Method[Any] = registry.make(registry.methods()[name], {})
        state = method.fit(task.for_method(method.needs))

        def scored(name: str = name, method: Method[Any] = method, state: Any = state) -> None:
            ours({name: method}, features, task, {name: state})

        label = f"{name}, {len(features):,} x {DEPTH}, {CLASSES:,} classes"
        ratio = side_by_side({what: base, label: scored}, what, rounds)[label]
        rows.append(row(label, what, ratio, "<= 1.3", f"{ratio.seconds:.2f} s"))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bank", type=int, default=160_000, help="largest bank; 1.28 million takes 2.6 GB and minutes")
    arguments = parser.parse_args()
    rounds, banks = max(2, arguments.rounds), [arguments.bank // 16, arguments.bank // 4, arguments.bank]
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = knn(rounds, banks) + others(rounds)
    write("posthoc", rows, "CPU time of one thread", chunk=CHUNK)


if __name__ == "__main__":
    main()
