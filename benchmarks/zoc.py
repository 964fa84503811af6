"""Images per second of ZOC's score: ours beside the released way, in one process on the same weights and images.

The released way takes one image at a time: nine passes of the decoder over the whole sequence, every candidate and
every class name through the text tower. Ours captions a batch with cached keys and encodes every token's prompt once;
that one-off time is told and counted in. The decoder is untrained and may say `--tokens` tokens (captions of glyphs
have 2,104): speed does not depend on which. `python benchmarks/zoc.py [--images 1000] [--slow 20] [--tokens 2000]`
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch.nn.functional import normalize

from oodbench import registry
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.glyphs.world import CLASSES
from oodbench.method import Batch, Needs, Own, Sources, Task, Weights
from oodbench.store import Store

PROMPT = "This is a photo of a {}"


def released(method: Any, state: Any, embedding: torch.Tensor, encoder: OpenClip) -> float:
    """The mass on the seen names of one image."""
    decoder, voice, tokens = state.decoder, state.voice, [state.decoder.start]
    found: list[int] = []
    for _ in range(method.steps):
        hidden = decoder.hidden(embedding[None], torch.tensor([tokens]), torch.arange(len(tokens)))[0, -1]
        top = voice.ids[(voice.matrix @ hidden + voice.bias).topk(method.k).indices].tolist()
        found += top
        tokens.append(top[0])
    names = {encoder.detokenize(token).strip() for token in found} - set(CLASSES)
    text = encoder.text([PROMPT.replace("{}", name) for name in (*CLASSES, *sorted(names))])
    shares = (100 * normalize(text, dim=-1) @ normalize(embedding, dim=-1)).softmax(0)
    return float(shares[: len(CLASSES)].sum())


def main() -> None:
    """Time both and write the figures to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=20, help="images for the released way")
    parser.add_argument("--tokens", type=int, default=2000, help="that the decoder may say")
    asked = parser.parse_args()
    encoder = OpenClip(resolve(parse_encoder("glyphs"), None, Store(Path(mkdtemp()))), "cpu", "fp32")
    method: Any = registry.make(registry.methods()["zoc"], {"specials": True})
    torch.manual_seed(0)
    module = method.module(encoder)
    with torch.no_grad():
        module.seen[torch.randperm(len(module.seen))[: asked.tokens]] = 1
        module.bias.normal_(std=0.1)

    def text(template: str) -> torch.Tensor:
        return normalize(encoder.text([template.replace("{}", name) for name in CLASSES]), dim=-1)

    def words(prompts: tuple[str, ...]) -> torch.Tensor:
        return normalize(encoder.text(prompts), dim=-1)

    sources = Sources(text, words, lambda: encoder, list)
    own = Own(lambda: Weights(module.state_dict(), {}), lambda depends, make: make())
    task = Task(CLASSES, encoder.scale, sources).seen_by(method.needs, own)
    embeddings = 10 * torch.randn(asked.images, 128)
    with torch.no_grad():
        began = time.perf_counter()
        state = method.fit(task)
        once = time.perf_counter() - began
        began = time.perf_counter()
        needs = Needs.FEATURES
        scores = method.score(Batch(needs, len(embeddings), normalize(embeddings, dim=-1), embeddings), task, state)
        ours = (time.perf_counter() - began) / asked.images
        began = time.perf_counter()
        theirs_scores = [released(method, state, embedding, encoder) for embedding in embeddings[: asked.slow]]
        theirs = (time.perf_counter() - began) / asked.slow
    gap = (scores[: asked.slow].sigmoid() - torch.tensor(theirs_scores)).abs().max().item()
    whole = once + ours * asked.images
    sys.stdout.write(
        f"released way   {1000 * theirs:8.1f} ms per image\n"
        f"oodbench       {1000 * ours:8.1f} ms per image, {theirs / ours:.0f} times as fast\n"
        f"prompts of {len(state.names.strings)} names once: {once:.1f} s; "
        f"{asked.images} images with them: {whole:.1f} s, "
        f"{theirs * asked.images / whole:.0f} times as fast\n"
        f"largest difference in the mass on seen names: {gap:.1e}\n"
    )


if __name__ == "__main__":
    main()
