"""Metrics and bootstrap against two sorts: python benchmarks/metrics.py [--rounds 9]. CPU time of one thread."""

from __future__ import annotations

import argparse

import numpy as np
from measure import Ratio, Row, row, side_by_side, write
from numpy.typing import NDArray

from oodbench.metrics import Scores, Settings, auroc_interval, indistinguishable, intervals
from oodbench.metrics import detection as metrics

N_ID, N_OOD = 50_000, 35_640
METHODS, SETS, REPLICATES = 9, 9, 1000
SIZE = f"{N_ID:,} v {N_OOD:,}"
Floats = NDArray[np.float64]


def clip_scores(kind: str) -> tuple[Floats, Floats]:
    """Return scores in the range of MCM over 1,000 classes, also in half precision, or log-odds with four decimals."""
    rng = np.random.default_rng(0)
    id, ood = rng.beta(3, 2, N_ID), rng.beta(2, 3, N_OOD)
    if kind == "four decimals":
        return np.round(np.log(id / (1 - id)), 4), np.round(np.log(ood / (1 - ood)), 4)
    width = np.float16 if kind == "half-precision ties" else np.float64
    return (0.001 + 0.0002 * id).astype(width).astype(float), (0.001 + 0.0002 * ood).astype(width).astype(float)


def floor(id: Floats, ood: Floats) -> None:
    np.sort(id)
    np.sort(ood)


def all_metrics(id: Floats, ood: Floats) -> None:
    metrics.evaluate(metrics.score_set(id, "id"), metrics.score_set(ood, "ood"))


def as_usually_written(id: Floats, ood: Floats) -> None:
    """Compute scikit-learn's three curves and search one of them, as in published code."""
    from sklearn import metrics as sklearn_metrics

    labels, scores = np.repeat([1, 0], [id.size, ood.size]), np.concatenate([id, ood])
    sklearn_metrics.roc_auc_score(labels, scores)
    for sign, positive in ((1, labels), (-1, 1 - labels)):
        sklearn_metrics.average_precision_score(positive, sign * scores)
        fpr, tpr, _ = sklearn_metrics.roc_curve(positive, sign * scores)
        float(fpr[np.argmax(tpr >= 0.95)])


def measure(what: str, rounds: int) -> list[Row]:
    id, ood = clip_scores(what)
    one = Scores(id, {"ood": ood})
    quick = side_by_side(
        {
            "two sorts": lambda: floor(id, ood),
            "metrics": lambda: all_metrics(id, ood),
            "usual": lambda: as_usually_written(id, ood),
            "DeLong": lambda: auroc_interval(id, ood),
        },
        "two sorts",
        10 * rounds,
    )
    rng = np.random.default_rng(0)
    draws = [(rng.integers(0, N_ID, N_ID), rng.integers(0, N_OOD, N_OOD)) for _ in range(10)]

    def naive() -> None:
        """Compute ten replicates."""
        for of_id, of_ood in draws:
            as_usually_written(id[of_id], ood[of_ood])

    slow = side_by_side({"naive": naive, "ours": lambda: intervals(one, Settings())}, "naive", max(2, rounds // 3))
    share = scaled(slow["ours"], 10 / REPLICATES)
    seconds = f"{slow['ours'].seconds:.2f} s of CPU here, target 1.5 s a pair"
    return [
        row(f"AUROC, both FPR95, both AUPR, {SIZE}, {what}", "two sorts", quick["metrics"], "<= 2"),
        row(f"the same by scikit-learn, {what}", "two sorts", quick["usual"]),
        row(f"DeLong interval of AUROC, {what}", "two sorts", quick["DeLong"]),
        row(
            f"one pair with all intervals, {REPLICATES:,} replicates, {what}",
            f"{REPLICATES:,} resamples through scikit-learn",
            share,
            f"<= {1.5 / 41:.3f}",
            f"naive: 10 replicates timed; {seconds}",
        ),
    ]


def scaled(ratio: Ratio, factor: float) -> Ratio:
    return Ratio(ratio.median * factor, ratio.low * factor, ratio.high * factor, ratio.seconds)


def nine() -> Row:
    """Compare nine methods on nine sets once: AUROC by DeLong, FPR95 by the paired bootstrap, the best marked."""
    id, ood = clip_scores("no ties")
    noise = np.random.default_rng(1)
    several = {
        f"method {i}": Scores(
            id + noise.normal(0, 2e-5, N_ID),
            {f"set {j}": ood + noise.normal(0, 2e-5, N_OOD) for j in range(SETS)},
        )
        for i in range(METHODS)
    }
    found = side_by_side(
        {
            "one pair": lambda: intervals(Scores(id, {"ood": ood}), Settings()),
            "all": lambda: indistinguishable(several),
        },
        "one pair",
        1,
    )
    per_pair = scaled(found["all"], 1 / (METHODS * SETS))
    what = f"{METHODS} methods x {SETS} sets compared in pairs, {REPLICATES:,} replicates, per method and set"
    return row(what, "one pair with all intervals", per_pair, "<= 1", "once; the draws are shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of the slow parts three times fewer, of the quick ten")
    rounds = max(2, parser.parse_args().rounds)
    kinds = ("no ties", "half-precision ties", "four decimals")
    rows = [one for kind in kinds for one in measure(kind, rounds)]
    write("metrics", [*rows, nine()], "CPU time of the process, one thread", n_id=N_ID, n_ood=N_OOD)


if __name__ == "__main__":
    main()
