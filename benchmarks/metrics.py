"""Metrics and bootstrap against two sorts: `python benchmarks/metrics.py [--json]`. Only ratios mean something.

Everything runs in this process, the parts in turn, round after round, so that other work on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics as spread
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodbench import metrics
from oodbench.statistics import Scores, Settings, auroc_interval, indistinguishable, intervals

N_ID, N_OOD = 50_000, 35_640
FOLDER = Path(__file__).parents[1] / "results" / "speed"
Floats = NDArray[np.float64]


def clip_scores(ties: bool) -> tuple[Floats, Floats]:
    """Scores in the range of MCM over 1,000 classes; tied ones were rounded to half precision."""
    rng = np.random.default_rng(0)
    draws = rng.beta(3, 2, N_ID), rng.beta(2, 3, N_OOD)
    id, ood = (0.001 + 0.0002 * draw for draw in draws)
    return (id.astype(np.float16).astype(float), ood.astype(np.float16).astype(float)) if ties else (id, ood)


def floor(id: Floats, ood: Floats) -> None:
    np.sort(id)
    np.sort(ood)


def floor_and_search(id: Floats, ood: Floats) -> None:
    """The least that AUROC takes: both sides sorted, one looked up in the other."""
    np.searchsorted(np.sort(ood), np.sort(id))


def all_metrics(id: Floats, ood: Floats) -> None:
    metrics.evaluate(metrics.sort_scores(id, "id"), metrics.sort_scores(ood, "ood"))


def naive(id: Floats, ood: Floats) -> None:
    """One replicate as it is usually written: resample the images, compute the metrics."""
    rng = np.random.default_rng(0)
    all_metrics(id[rng.integers(0, id.size, id.size)], ood[rng.integers(0, ood.size, ood.size)])


def seconds(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(rounds):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            found[name].append(time.perf_counter() - began)
    return found


def measure(ties: bool, rounds: int) -> list[dict[str, object]]:
    id, ood = clip_scores(ties)
    one = Scores(id, {"ood": ood})
    noise = np.random.default_rng(1)
    nine = {
        f"method {i}": Scores(id + noise.normal(0, 2e-5, N_ID), {"ood": ood + noise.normal(0, 2e-5, N_OOD)})
        for i in range(9)
    }
    quick: dict[str, Callable[[], object]] = {
        "two sorts": lambda: floor(id, ood),
        "two sorts and a search": lambda: floor_and_search(id, ood),
        "AUROC, both FPR95, both AUPR": lambda: all_metrics(id, ood),
        "DeLong interval": lambda: auroc_interval(id, ood),
        "naive bootstrap, 1 replicate": lambda: naive(id, ood),
    }
    slow: dict[str, Callable[[], object]] = {
        "all intervals, 1,000 replicates": lambda: intervals(one, Settings()),
        "9 methods tested, AUROC and FPR95": lambda: indistinguishable(nine),
    }
    found = {**seconds(quick, 10 * rounds), **seconds(slow, rounds)}
    base = spread.median(found["two sorts"])
    rows: list[dict[str, object]] = []
    for name, times in found.items():
        low, _, high = spread.quantiles(times, n=4)
        median = spread.median(times)
        ratio, naively = median / base, median / (1000 * spread.median(found["naive bootstrap, 1 replicate"]))
        rows.append({"what": name, "ties": ties, "median": median, "quartiles": [low, high], "ratio": ratio})
        rows[-1]["of_1000_naive_replicates"] = naively
        print(f"{name:36}{'ties' if ties else '':6}{1e3 * median:10.2f} ms{ratio:9.1f} x floor{naively:10.4f} x naive")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the slow parts; ten times as many of the quick ones")
    parser.add_argument("--json", action="store_true", help="write results/speed/metrics.json")
    given = parser.parse_args()
    print(f"{N_ID:,} ID v {N_OOD:,} OOD scores, float64; medians")
    rows = [row for ties in (False, True) for row in measure(ties, max(given.rounds, 2))]
    if given.json:
        about = {"numpy": np.__version__, "python": platform.python_version(), "machine": platform.machine()}
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / "metrics.json"
        path.write_text(json.dumps({"n_id": N_ID, "n_ood": N_OOD, **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
