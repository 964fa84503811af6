"""Scoring against the bare matrix product: `python benchmarks/scoring.py [--json]`. Only ratios mean something.

Everything runs in this process, the parts in turn, round after round, so that other work on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from oodbench import registry
from oodbench.method import Batch, Needs, Sources, Task
from oodbench.score import CHUNK

FOLDER = Path(__file__).parents[1] / "results" / "speed"
IMAGES, DEPTH, CLASSES = 60_000, 512, 1000
NEGATIVES, GROUPS, IMAGES_NEG = 10_000, 100, 10_000


def unit(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, DEPTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def chunks(features: Tensor) -> Iterator[Tensor]:
    yield from torch.split(features, CHUNK)


def product(features: Tensor, bank: Tensor) -> None:
    for part in chunks(features):
        part @ bank.T


def product_and_pass(features: Tensor, bank: Tensor) -> None:
    """The floor: the product, its largest entry and one exponential of each."""
    for part in chunks(features):
        cosines = part @ bank.T
        top = cosines.amax(-1, keepdim=True)
        (cosines - top).mul_(100).exp_().sum(-1)


def ours(methods: dict[str, Any], features: Tensor, task: Task, states: dict[str, Any]) -> None:
    for part in chunks(features):
        batch = Batch(Needs.FEATURES, len(part), part)
        for name, method in methods.items():
            method.score(batch, task, states.get(name))


def released_neglabel(features: Tensor, bank: Tensor, words: Tensor) -> None:
    """As it is usually written: all similarities at once, a softmax for each group."""
    known, far = 100 * features @ bank.T, 100 * features @ words.T
    for group in torch.split(far, NEGATIVES // GROUPS, dim=1):
        torch.cat([known, group], dim=1).softmax(-1)[:, :CLASSES].sum(-1)


def neglabel_floor(features: Tensor, both: Tensor) -> None:
    for part in chunks(features):
        (part @ both.T).mul_(100).sub_(30).exp_().sum(-1)


def measure(parts: dict[str, Callable[[], None]], rounds: int, base: str) -> list[dict[str, Any]]:
    """Medians over rounds, as ratios to one of the parts, with the spread of the ratio."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    growth: dict[str, float] = {}
    for name, part in parts.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        part()
        growth[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for _ in range(rounds):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - began)
    rows = []
    for name, taken in times.items():
        ratios = sorted(a / b for a, b in zip(taken, times[base], strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        rows.append({"part": name, "ratio": statistics.median(ratios), "low": low, "high": high, "mib": growth[name]})
    return rows


def main() -> None:
    """Measure and print; with --json also write the figures to results/speed/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    features, bank, words = unit(IMAGES, 0), unit(CLASSES, 1), unit(NEGATIVES, 2)

    def nothing(*_: object) -> Any:
        raise AssertionError("not asked for")

    task = Task([f"c{i}" for i in range(CLASSES)], 100.0, Sources(lambda t: bank, nothing, nothing, nothing))
    known = registry.methods()
    four = {name: registry.make(known[name], {}) for name in ("msp", "maxlogit", "energy", "mcm")}
    neglabel = registry.make(known["neglabel"], {})
    state = type("State", (), {"vectors": words})()
    few = features[:IMAGES_NEG]
    both = torch.cat([bank, words])
    found: dict[str, list[dict[str, Any]]] = {}
    with torch.no_grad():
        # Memory before times: what was once the peak stays the peak.
        found["four methods, 60,000 x 512, 1000 classes"] = measure(
            {
                "chunked product": lambda: product(features, bank),
                "product, max and one exp": lambda: product_and_pass(features, bank),
                "MSP + MaxLogit + Energy + MCM": lambda: ours(four, features, task, {}),
            },
            options.rounds,
            "chunked product",
        )
        found["NegLabel, 10,000 images, 1000 + 10,000 words, 100 groups"] = measure(
            {
                "product and one exp": lambda: neglabel_floor(few, both),
                "NegLabel": lambda: ours({"neglabel": neglabel}, few, task, {"neglabel": state}),
                "as it is usually written": lambda: released_neglabel(few, bank, words),
            },
            options.rounds,
            "product and one exp",
        )
    for title, rows in found.items():
        print(f"\n{title}\n| part | ratio | 10-90 % | peak memory added, MiB |\n|---|---|---|---|")
        for row in rows:
            print(f"| {row['part']} | {row['ratio']:.2f} | {row['low']:.2f}-{row['high']:.2f} | {row['mib']:.0f} |")
    if options.json:
        FOLDER.mkdir(parents=True, exist_ok=True)
        about = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        (FOLDER / "scoring.json").write_text(json.dumps({**about, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
