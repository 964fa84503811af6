"""Passes with patches against plain passes of the same encoder: python benchmarks/patches.py [--images 16].

Random weights, batches of pixels in memory, one thread; the clock is this process's CPU time. A pass with patches also
computes embeddings and activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from encoding import random_encoder
from measure import Row, row, side_by_side, write

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.method import Batch, Needs, Sources, Task, registry
from oodbench.storage.store import Store

CLASSES, BATCH = 1000, 16
NOTE = "pixels in memory; activations and embeddings from the same pass"


def measured(folder: Path, architecture: str, images: int, rounds: int) -> list[Row]:
    """Measure the pass with patches, and GL-MCM's score of its output."""
    _, name = random_encoder(folder, architecture)
    encoder = OpenClip(resolve(parse_encoder(name), None, Store(folder / "store")), "cpu", "fp32")
    batches = torch.rand(images, 3, *encoder.size).split(BATCH)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, encoder.card.embed_dim), dim=-1)

    def nothing(*_: object) -> torch.Tensor:
        raise AssertionError

    task = Task(tuple(map(str, range(CLASSES))), encoder.scale, Sources(lambda _: text, nothing, nothing, list))
    method = registry.make(registry.methods()["gl_mcm"], {})

    def plain() -> None:
        for batch in batches:
            encoder.project(encoder.activations(batch))

    def with_patches(score: bool = False) -> None:
        for batch in batches:
            activations, patches = encoder.activations_and_patches(batch)
            features = torch.nn.functional.normalize(encoder.project(activations), dim=-1)
            units = torch.nn.functional.normalize(patches, dim=-1)
            if score:
                method.score(Batch(method.needs | Needs.FEATURES, len(batch), features, _patches=units), task, None)

    parts = {"plain": plain, "patches": with_patches, "score": lambda: with_patches(True)}
    found = side_by_side(parts, "plain", rounds)
    what = f"{architecture}, {images} images"
    return [
        row(f"a pass with patches, {what}", "a pass without", found["patches"], "<= 1.15", NOTE),
        row(f"the same and GL-MCM's scores, {CLASSES:,} classes", "a pass without", found["score"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as name, torch.no_grad():
        rows = measured(Path(name), "ViT-B-32", asked.images, asked.rounds)
        rows += measured(Path(name), "ViT-B-16", asked.images // 4, asked.rounds)
    write("patches", rows, "CPU time, one thread", batch=BATCH)


if __name__ == "__main__":
    main()
