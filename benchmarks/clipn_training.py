"""CLIPN's training step against the released loop: python benchmarks/clipn_training.py [--batch-size N] [--device D].

Both train the "no" tower of ViT-B-16 (random weights) on the same captions. The released loop, written again from its
description, runs the frozen image tower and the frozen text tower at every step, on all 77 positions of both texts; its
decoding and augmentation are not counted. Ours reads stored embeddings and runs only the "no" tower, up to the longest
caption. On a CPU, where batch 2048 would take hours, the batch is small and the CPU time of this process is measured;
on a GPU the wall clock, with both loops in the same precision (`--precision bf16` is autocast).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip  # noqa: TID251 (what ours is compared with)
import torch
from measure import Row, row, side_by_side, write
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.method import registry
from oodbench.storage.store import Store
from oodbench.training.batches import PairBatches, autocast
from oodbench.training.data import StoredArray, TrainingData
from oodbench.training.loop import Trainer
from oodbench.training.processes import ProcessGroup
from oodbench.training.schedule import Schedule

ARCHITECTURE = "ViT-B-16"
CHUNK = 256  # pairs that go through the "no" tower at once, the default of `oodbench train`
# As long as alt texts on the web: 5 to 20 words.
CAPTIONS = (
    "a very typical bus station",
    "the player celebrates with his team mate after the second goal of the match",
    "interior design of a modern living room with a grey sofa and large windows",
    "illustration of a cat on a white background",
    "tourists walk along the promenade of the old harbour on a sunny day in late summer",
    "the crew of the ship during a storm",
    "actor attends the premiere of the film at the theatre in the centre of the city",
    "a red car parked in front of the house",
)


def training_data(folder: Path, pairs: int, depth: int) -> TrainingData:
    """Return stored embeddings of a number of pairs."""
    rng = np.random.default_rng(0)
    for name in ("images", "texts"):
        rows = rng.normal(size=(pairs, depth)).astype(np.float32)
        np.save(folder / f"{name}.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    every = np.arange(pairs)
    return TrainingData(
        captions=[CAPTIONS[i % len(CAPTIONS)] for i in range(pairs)],
        images=StoredArray([folder / "images.npy"], [0, pairs]),
        image=every,
        texts=StoredArray([folder / "texts.npy"], [0, pairs]),
        text=every,
    )


class Release:
    """The step of the released loop."""

    def __init__(self, model: Any, method: Any, encoder: OpenClip, batch: int, precision: str) -> None:
        self.encoder, self.batch, self.precision = encoder, batch, precision
        self.device = encoder.device
        self.model = model.to(self.device)
        self.module = method.module(encoder).to(self.device).train()
        self.method = method
        recipe = method.optimiser
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
        self.images = torch.randn(batch, 3, 224, 224, device=self.device)
        self.which = torch.arange(batch, device=self.device) % 17

    def step(self) -> None:
        tokens = self.encoder.tokenize([CAPTIONS[i % len(CAPTIONS)] for i in range(self.batch)]).to(self.device)
        with autocast(self.device, self.precision):
            with torch.no_grad():
                image = normalize(self.model.encode_image(self.images).float(), dim=-1)
                yes = normalize(self.model.encode_text(tokens).float(), dim=-1)
            no = normalize(whole_context(self.module, tokens, self.which).float(), dim=-1)
        scale = torch.full((self.batch,), 100.0, device=self.device)
        terms = self.method.loss({"image": image, "yes": yes, "no": no, "scale": scale})
        self.optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self.optimiser.step()


def whole_context(module: Any, tokens: Tensor, which: Tensor) -> Tensor:
    """Run the "no" tower on all positions, including padding."""
    tower = module.tower
    choices = torch.cat([module.prompt_no, module.prompt_no.mean(0, keepdim=True)])
    x = tower.token_embedding(tokens) + tower.positional_embedding + choices[which]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    found: Tensor = x[torch.arange(len(tokens)), tokens.argmax(-1)] @ tower.text_projection
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", dest="batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: nothing was measured")
    torch.manual_seed(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = open_clip.create_model(ARCHITECTURE).eval().requires_grad_(False)
        torch.save(model.state_dict(), folder / "random.pt")
        resolved = resolve(parse_encoder(f"{ARCHITECTURE}@{folder / 'random.pt'}"), None, Store(folder / "store"))
        rows = measured(OpenClip(resolved, asked.device, asked.precision), model, folder, asked)
    about: dict[str, object] = {"architecture": ARCHITECTURE, "batch": asked.batch, "precision": asked.precision}
    if asked.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
        write(f"gpu_training_{asked.precision}", rows, "wall clock", **about)
    else:
        write("clipn_training", rows, "CPU time of the process", **about)


def measured(encoder: OpenClip, model: Any, folder: Path, asked: argparse.Namespace) -> list[Row]:
    method: Any = registry.make(registry.methods()["clipn"], {})
    batch, on_cpu = asked.batch, asked.device == "cpu"
    pairs = 16 * batch
    recipe = type(method.optimiser)(**{**vars(method.optimiser), "batch": batch})
    schedule = Schedule(recipe, pairs, 1000, 0)
    feed = PairBatches(training_data(folder, pairs, encoder.card.embed_dim), schedule, encoder, min(batch, CHUNK))
    trainer = Trainer(method, feed, ProcessGroup(0, 1, asked.device), asked.precision)
    release = Release(model, method, encoder, batch, asked.precision)
    tokens = encoder.tokenize(feed.data.captions[:batch]).to(encoder.device)
    which = torch.arange(batch, device=encoder.device) % 17
    steps = iter(range(1000))

    def tower() -> None:
        """Run only forward and backward of the "no" tower: the lower bound."""
        trainer.optimiser.zero_grad()
        with autocast(encoder.device, asked.precision):
            embedded = trainer.module(tokens, which)
        normalize(embedded.float(), dim=-1).sum().backward()

    parts = {"ours": lambda: trainer.step(next(steps)), "release": release.step, "tower": tower}
    found = side_by_side(parts, "ours", asked.rounds, time.process_time if on_cpu else clock)
    note = "no decoding or augmentation in the released loop"
    if on_cpu:
        note = f"batch {batch} for 2048; {note}"
    what = f"CLIPN training, {ARCHITECTURE}" + ("" if on_cpu else f" {asked.precision}, batch {batch}")
    ours = found["release"].seconds / found["release"].median
    if not on_cpu:
        note += f"; oodbench {batch / ours:,.0f} samples/s"
    return [
        row(f"samples/s of {what}", "released loop", found["release"], ">= 3", note),
        row(f"step of {what}", '"no" tower forward and backward', found["tower"].inverse(), "", "with AdamW"),
    ]


def clock() -> float:
    """Return the wall clock once the GPU is idle."""
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
