"""Scores per image of streams: every number is recomputed, by pair and position, and changes are detected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodbench.report.verify import read_pairs, recomputed_streams, verify
from oodbench.results import METRICS, SetRow, read
from tests.report.stream_rows import stream
from tests.report.test_report_shapes import call

N_ID, N_OOD = 700, 600  # 1,300 images: the second part has 300


def rates(on_id: NDArray[np.float64], on_ood: NDArray[np.float64]) -> tuple[float, float, float]:
    """AUROC, FPR95 with ID positive and with OOD positive, by scikit-learn."""
    is_id, both = np.r_[np.ones(len(on_id)), np.zeros(len(on_ood))], np.r_[on_id, on_ood]
    fpr, tpr, _ = roc_curve(is_id, both, drop_intermediate=False)
    fpr_ood, tpr_ood, _ = roc_curve(1 - is_id, -both, drop_intermediate=False)
    auroc = float(roc_auc_score(is_id, both))
    return auroc, float(fpr[np.argmax(tpr >= 0.95)]), float(fpr_ood[np.argmax(tpr_ood >= 0.95)])


def rounded_part(scores: NDArray[np.float64], is_id: NDArray[np.bool_]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": len(scores),
        "n_id": int(is_id.sum()),
        "auroc": None,
        "fpr95": None,
        "fpr95_ood": None,
    }
    if is_id.any() and not is_id.all():
        values = rates(scores[is_id], scores[~is_id])
        found |= {name: round(v, 9) for name, v in zip(("auroc", "fpr95", "fpr95_ood"), values, strict=True)}
    return found


def lay(folder: Path, order: str = "shuffled") -> Path:
    """A row of a stream and its scores per image, with metrics by scikit-learn; the path of the row."""
    random = np.random.default_rng(3)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("dataset", "name", "label", "score", "prediction", "pair", "place")
    }
    sets, accuracies = [], []
    for shift, dataset in ((1.5, "sun"), (2.0, "dtd")):
        is_id = np.arange(N_ID + N_OOD) < N_ID
        place = np.argsort(~is_id, kind="stable") if order == "id-first" else random.permutation(N_ID + N_OOD)
        scores = random.normal(size=N_ID + N_OOD) - np.where(is_id, 0.0, shift)
        labels, predicted = np.arange(N_ID) % 4, random.integers(0, 4, N_ID)
        in_order = np.argsort(place)
        parts = [rounded_part(scores[i], is_id[i]) for i in (in_order[:1000], in_order[1000:])]
        accuracies.append(float(np.mean(labels == predicted)))
        sets.append(
            SetRow(
                *(dataset, dataset.upper(), "", N_OOD, N_OOD, 0, f"list of {dataset}"),
                *rates(scores[is_id], scores[~is_id]),
                float(average_precision_score(is_id, scores)),
                float(average_precision_score(~is_id, -scores)),
                0.0,
                stream={
                    "n_id": N_ID,
                    "accuracy": accuracies[-1],
                    "first": parts[0],
                    "rest": parts[1],
                    "thousands": parts,
                },
            )
        )
        columns["dataset"] += ["cats"] * N_ID + [dataset] * N_OOD
        columns["name"] += [f"{i}.png" for i in range(N_ID + N_OOD)]
        columns["label"] += [*labels.tolist(), *[-1] * N_OOD]
        columns["score"] += scores.tolist()
        columns["prediction"] += [*predicted.tolist(), *random.integers(0, 4, N_OOD).tolist()]
        columns["pair"] += [dataset] * (N_ID + N_OOD)
        columns["place"] += place.tolist()
    row = stream("tanl", order, 0, *sets)
    accuracy = sum(accuracies) / 2
    row = dataclasses.replace(row, id=dataclasses.replace(row.id, n=N_ID, expected=N_ID, accuracy=accuracy))
    row = dataclasses.replace(row, conventions={"at95": "first", "aupr": "average_precision"})
    path = folder / "runs/toy/x/tanl.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row.to_json())
    parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path


@pytest.mark.parametrize("order", ["shuffled", "id-first"])
def test_streams_are_recomputed_by_pair_and_part(tmp_path: Path, order: str) -> None:
    path = lay(tmp_path, order)
    row = read(path)
    again = recomputed_streams(row, read_pairs(path.with_suffix(".parquet")))
    for stored, found in zip(row.ood, again.ood, strict=True):
        assert found.stream == stored.stream
        for metric in METRICS:
            assert getattr(found, metric) == pytest.approx(getattr(stored, metric), abs=1e-12)
    assert again.id == row.id and row.ood[0].auroc < row.ood[1].auroc
    assert (row.ood[0].stream["thousands"][0]["n_id"] == N_ID) is (order == "id-first")
    path.write_text(again.to_json())
    done = call("--results", tmp_path, "--verify")
    # 2 of ID, and of both pairs 7 metrics and counts, size and accuracy, and 5 numbers of each of 4 parts.
    assert "tanl: OK, 60 numbers" in done.stdout and done.exit_code == 0, done.stdout


Columns = dict[str, list[Any]]


def exchange_places(columns: Columns) -> None:
    """One image of the first thousand and one of the rest, of the same kind and pair, change their places."""
    places = columns["place"]
    early, late = (next(i for i in range(N_ID) if (places[i] < 1000) is first) for first in (True, False))
    places[early], places[late] = places[late], places[early]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["score"].__setitem__(0, -9.0), "sun: auroc is"),
        (exchange_places, "sun: first.auroc is"),
        (lambda c: c["place"].__setitem__(0, 5000), "positions of its images in their stream"),
        (lambda c: c.pop("pair"), "cannot be read"),
        (lambda c: c.update(pair=["sun"] * len(c["pair"])), "its scores are for the streams sun"),
        (lambda c: c["prediction"].__setitem__(slice(0, 100), [0] * 100), "sun: accuracy is"),
        (lambda c: [column.pop(0) for column in c.values()], "positions of its images"),
    ],
)
def test_a_changed_stream_is_detected(tmp_path: Path, edit: Callable[[Columns], object], message: str) -> None:
    file = lay(tmp_path).with_suffix(".parquet")
    columns = parquet.read_table(file).to_pydict()
    edit(columns)
    parquet.write_table(pa.table(columns), file)
    done = call("--results", tmp_path, "--verify")
    assert done.exit_code == 1 and message in done.stdout, done.stdout


def test_changed_parts_are_refused(tmp_path: Path) -> None:
    path = lay(tmp_path)
    raw = json.loads(path.read_text())
    raw["ood"][0]["stream"]["rest"]["fpr95_ood"] = 0.123
    path.write_text(json.dumps(raw))
    (found,) = verify(tmp_path)
    assert "changed after it was written" in found.problems[0]
