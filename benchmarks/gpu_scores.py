"""Scores of all methods on a GPU against those on the CPU: python benchmarks/gpu_scores.py. Not part of `make bench`.

Glyphs is run twice, on the CPU and on the GPU, each with its own store, so that images and words are encoded on both.
For every method and set it prints the largest difference of a score, and the largest difference of AUROC and FPR95 in
percentage points. Seconds are those in the rows: the time that each method added.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from measure import FOLDER, machine

from oodbench import api
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from
from oodbench.results import Result

TOLERANCE = 1e-4  # of a score: float32 products in another order of summation

Scores = dict[str, dict[str, npt.NDArray[np.float64]]]


def run(folder: Path, device: str, limit: int | None) -> tuple[dict[str, Result], Scores]:
    """Return the rows of glyphs by method, and the scores by method and set."""
    store = folder / "store"
    request = request_from(
        methods="all", device=device, out=folder / "out", store=store, bootstrap=0, precision="fp32", limit=limit
    )
    rows = {row.label: row for row in api.run(make_plan(request)).results}
    failed = [f"{row.label}: {row.error}" for row in rows.values() if row.error]
    if failed:
        raise SystemExit(f"on {device}: " + "; ".join(failed))
    scores: Scores = {}
    for file in (store / "scores").rglob("entry.json"):
        entry = json.loads(file.read_text())
        (array,) = file.parent.glob("scores*.npy")
        if torch.device(entry["facts"]["device"]).type != torch.device(device).type:
            raise SystemExit(f"requested {device}, scored on {entry['facts']['device']}")
        scores.setdefault(entry["inputs"]["method"], {})[entry["facts"]["dataset"]] = np.load(array)
    return rows, scores


def compare(
    cpu: tuple[Mapping[str, Result], Scores], gpu: tuple[Mapping[str, Result], Scores]
) -> list[dict[str, object]]:
    """Return one line per method: largest differences, and seconds on both devices."""
    lines: list[dict[str, object]] = []
    for method, sets in cpu[1].items():
        others = gpu[1][method]
        gaps = np.concatenate([np.abs(values - others[name]) for name, values in sets.items()])
        here, there = cpu[0][method], gpu[0][method]
        points = [
            100 * max(abs(one.auroc - other.auroc), abs(one.fpr95 - other.fpr95))
            for one, other in zip(here.ood, there.ood, strict=True)
        ]
        lines.append(
            {
                "method": method,
                "images": len(gaps),
                "largest difference of a score": float(gaps.max()),
                "median difference of a score": float(np.median(gaps)),
                "images beyond the tolerance": int((gaps > TOLERANCE).sum()),
                "largest difference of AUROC or FPR95, points": max(points),
                "seconds on the CPU": here.seconds,
                "seconds on the GPU": there.seconds,
            }
        )
    return sorted(lines, key=lambda line: str(line["method"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=None, help="images per set; all by default")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: nothing was compared")
    with TemporaryDirectory() as name:
        lines = compare(run(Path(name) / "cpu", "cpu", asked.limit), run(Path(name) / "gpu", asked.device, asked.limit))
    card = torch.cuda.get_device_name() if asked.device == "cuda" else asked.device
    kept = {"benchmark": "gpu_scores", "device": card, "tolerance": TOLERANCE, "machine": machine(), "methods": lines}
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = "gpu_scores" if asked.device == "cuda" else "gpu_scores-rehearsal"
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    for line in lines:
        print(json.dumps(line), flush=True)
    if any(line["images beyond the tolerance"] for line in lines):
        raise SystemExit(f"a score differs by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
