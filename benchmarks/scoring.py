"""Scoring against the bare matrix product: python benchmarks/scoring.py [--rounds 7].

The engine's loop scores, and so computes predictions as well.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from measure import Clock, Row, row, side_by_side, write
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.method import Batch, Needs, Sources, Task, registry
from oodbench.pipeline.batches import FittedMethod, score_batches
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.score import CHUNK

IMAGES, DEPTH, CLASSES = 60_000, 512, 1000
NEGATIVES, GROUPS, IMAGES_NEG = 10_000, 100, 10_000
FOUR = ("msp", "maxlogit", "energy", "mcm")
Parts = dict[str, Any]


def unit(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, DEPTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def chunks(features: Tensor) -> Iterator[Tensor]:
    yield from torch.split(features, CHUNK)


def product(features: Tensor, bank: Tensor) -> None:
    for part in chunks(features):
        part @ bank.T


def product_and_pass(features: Tensor, bank: Tensor) -> None:
    """Compute the product, its row maxima and one exponential of each entry."""
    for part in chunks(features):
        cosines = part @ bank.T
        top = cosines.amax(-1, keepdim=True)
        (cosines - top).mul_(100).exp_().sum(-1)


def ours(methods: Parts, features: Tensor, task: Task, states: Parts) -> None:
    """Compute scores and predictions in the engine's loop."""
    group = [FittedMethod(cast(Job, None), method, state=states.get(name)) for name, method in methods.items()]
    found = score_batches(
        lambda: (Batch(Needs.FEATURES, len(part), part) for part in chunks(features)),
        group,
        task,
        torch.get_num_threads(),
    )
    assert not any(one.error for one in found)


def each_alone(features: Tensor, bank: Tensor) -> None:
    """Compute a softmax or logsumexp over all logits for every method: the naive implementation."""
    for part in chunks(features):
        (100 * part @ bank.T).softmax(-1).amax(-1)
        (100 * part @ bank.T).amax(-1)
        (100 * part @ bank.T).logsumexp(-1)
        (part @ bank.T).softmax(-1).amax(-1)


def released_neglabel(features: Tensor, bank: Tensor, words: Tensor) -> None:
    """Compute all similarities at once and a softmax for each group: the naive implementation."""
    known, far = 100 * features @ bank.T, 100 * features @ words.T
    for group in torch.split(far, NEGATIVES // GROUPS, dim=1):
        torch.cat([known, group], dim=1).softmax(-1)[:, :CLASSES].sum(-1)


def neglabel_floor(features: Tensor, both: Tensor) -> None:
    for part in chunks(features):
        (part @ both.T).mul_(100).sub_(30).exp_().sum(-1)


def anonymous() -> float:
    """MiB of this process that no file backs, at most so far."""
    import resource

    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024


def added(part: Any) -> float:
    """By how much a part raises the peak of memory, MiB. Parts that take less come first."""
    before = anonymous()
    part()
    return anonymous() - before


def measured(title: str, parts: Parts, base: str, targets: dict[str, str], rounds: int) -> list[Row]:
    """On one core by CPU time, then on all by the wall clock, as a user has it."""
    torch.set_num_threads(1)
    memory = {name: added(part) for name, part in parts.items()}
    rows = []
    clocks: tuple[tuple[int, Clock], ...] = ((1, time.process_time), (os.cpu_count() or 1, time.perf_counter))
    for threads, clock in clocks:
        torch.set_num_threads(threads)
        found = side_by_side(parts, base, rounds, clock)
        cores = "" if threads == 1 else f", {threads} cores, wall clock"
        for name, ratio in found.items():
            note = "" if cores else f"{memory[name]:.0f} MiB over the inputs"
            rows.append(row(f"{name}, {title}{cores}", base, ratio, targets.get(name, ""), note))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = max(2, parser.parse_args().rounds)
    features, bank, words = unit(IMAGES, 0), unit(CLASSES, 1), unit(NEGATIVES, 2)

    def nothing(*_: object) -> Any:
        raise AssertionError("not asked for")

    task = Task([f"c{i}" for i in range(CLASSES)], 100.0, Sources(lambda t: bank, nothing, nothing, nothing))
    known = registry.methods()
    four = {name: registry.make(known[name], {}) for name in FOUR}
    neglabel = {"neglabel": registry.make(known["neglabel"], {})}
    states = {"neglabel": type("State", (), {"vectors": words})()}
    few, both = features[:IMAGES_NEG], torch.cat([bank, words])
    with torch.no_grad():
        rows = measured(
            f"{IMAGES:,} x {DEPTH}, {CLASSES:,} classes",
            {
                "chunked product": lambda: product(features, bank),
                "product, max and one exp": lambda: product_and_pass(features, bank),
                "MSP + MaxLogit + Energy + MCM": lambda: ours(four, features, task, {}),
                "each method by itself": lambda: each_alone(features, bank),
            },
            "chunked product",
            {"MSP + MaxLogit + Energy + MCM": "<= 1.3"},
            rounds,
        )
        rows += measured(
            f"{IMAGES_NEG:,} images, {CLASSES:,} + {NEGATIVES:,} names, {GROUPS} groups",
            {
                "product and one exp": lambda: neglabel_floor(few, both),
                "NegLabel": lambda: ours(neglabel, few, task, states),
                "naive implementation": lambda: released_neglabel(few, bank, words),
            },
            "product and one exp",
            {"NegLabel": "<= 1.25"},
            rounds,
        )
    write("scoring", rows, "CPU time of one thread; wall clock where cores are named", chunk=CHUNK)


if __name__ == "__main__":
    main()
