"""Growth from 10^3 to 10^5 images: python benchmarks/growth.py. Time per image, memory, size on disk; one thread.

The store has random embeddings and activations of ViT-B-32's sizes, as after extraction; methods score them chunk by
chunk. Memory-mapped files are counted separately, because the system can reclaim their pages.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import Ratio, Row, row, write
from torch.nn.functional import normalize

from oodbench.method import Sources, Task, registry
from oodbench.pipeline.extract import SHARD, EmbeddedSet
from oodbench.pipeline.score import feature_batches
from oodbench.storage.store import Store

DEPTH, WIDTH, CLASSES, WORDS = 512, 768, 1000, 2000
NAMES = ("msp", "maxlogit", "energy", "mcm", "neglabel")


def resident(kind: str) -> float:
    """Return the MiB in memory: "RssAnon" is this process's own memory, "RssFile" pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def stored(store: Store, images: int) -> EmbeddedSet:
    """Return stored embeddings as after extraction."""
    entries, starts = [], list(range(0, images, SHARD))
    for start in starts:
        n = min(SHARD, images - start)
        torch.manual_seed(start)
        arrays = {
            "embeddings": torch.randn(n, DEPTH).numpy(),
            "activations": torch.randn(n, WIDTH).numpy(),
            "positions": torch.arange(n).numpy(),
        }
        entries.append(store.write("embeddings", {"images": images, "start": start}, arrays, {}))
    nothing: Any = None  # the list itself is not read
    return EmbeddedSet(nothing, tuple(entries), tuple(starts))


def main() -> None:
    """Measure, print, write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    bank, words = normalize(torch.randn(CLASSES, DEPTH), dim=-1), normalize(torch.randn(WORDS, DEPTH), dim=-1)
    task = Task([f"c{i}" for i in range(CLASSES)], 100.0, Sources(lambda t: bank, *[lambda *_: None] * 3))  # type: ignore
    known = registry.methods()
    methods = {name: registry.make(known[name], {}) for name in NAMES}
    state = type("State", (), {"vectors": words})()
    per_image: dict[int, list[float]] = {}
    memory: dict[int, float] = {}
    disk: dict[int, float] = {}
    with TemporaryDirectory() as folder, torch.no_grad():
        for images in (1_000, 10_000, 100_000):
            root = Path(folder) / str(images)
            embedded = stored(Store(root), images)
            disk[images] = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
            per_image[images], peak = [], 0.0
            for _ in range(max(3, 30_000 // images)):
                began = time.process_time()
                for batch in feature_batches(embedded, "cpu"):
                    for name, method in methods.items():
                        method.score(batch, task, state if name == "neglabel" else None)
                    peak = max(peak, resident("RssAnon"))
                per_image[images].append((time.process_time() - began) / images)
            memory[images] = peak
    write("growth", rows(per_image, memory, disk), "CPU time of the process, one thread", methods=NAMES)


def rows(per_image: dict[int, list[float]], memory: dict[int, float], disk: dict[int, float]) -> list[Row]:
    found = []
    for images in (10_000, 100_000):
        base = sorted(per_image[1_000])[len(per_image[1_000]) // 2]
        ratios = sorted(one / base for one in per_image[images])
        spread = Ratio(ratios[len(ratios) // 2], ratios[0], ratios[-1], per_image[images][0])
        found.append(row(f"time per image, {images:,} images, five methods", "1,000 images", spread, "<= 1.1"))
        grown = memory[images] / memory[1_000]
        what = f"resident memory (anonymous), {images:,} images"
        note = f"{memory[images] - memory[1_000]:+.0f} MiB"
        found.append(row(what, "1,000 images", Ratio(grown, grown, grown, 0), "<= 1.1", note))
    size = disk[100_000] / (100_000 * (DEPTH + WIDTH) * 4)
    note = "positions and one entry.json a shard"
    found.append(row("store, 100,000 images", "n x (d + w) x 4 bytes", Ratio(size, size, size, 0), "<= 1.02", note))
    return found


if __name__ == "__main__":
    main()
