"""ZOC's score against the released code, on the same weights and images: python benchmarks/zoc.py [--images 1000].

The released code takes one image at a time: nine passes of the decoder over the whole sequence, then every candidate
and every class name through the text tower at its full context. Ours captions a batch with cached keys; every token's
prompt is encoded once per encoder and stored. The second lines charge that to these images alone. The decoder is
untrained and has `--tokens` tokens (captions of glyphs have 2,104): speed does not depend on which.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from measure import Ratio, Row, row, side_by_side, write
from torch.nn.functional import normalize

from oodbench.data.glyphs.world import CLASSES
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.method import Batch, MethodResources, Needs, Sources, Task, Weights, registry
from oodbench.storage.store import Store

PROMPT = "This is a photo of a {}"


def released(method: Any, state: Any, embedding: torch.Tensor, encoder: OpenClip) -> float:
    """Return the probability of the seen names for one image."""
    decoder, output, tokens = state.decoder, state.output, [state.decoder.start]
    found: list[int] = []
    for _ in range(method.steps):
        hidden = decoder.hidden(embedding[None], torch.tensor([tokens]), torch.arange(len(tokens)))[0, -1]
        top = output.ids[(output.matrix @ hidden + output.bias).topk(method.k).indices].tolist()
        found += top
        tokens.append(top[0])
    names = {encoder.detokenize(token).strip() for token in found} - set(CLASSES)
    prompts = [PROMPT.replace("{}", name) for name in (*CLASSES, *sorted(names))]
    text = encoder._model.encode_text(encoder.tokenize(prompts))  # all positions and padding, as in the released CLIP
    shares = (100 * normalize(text, dim=-1) @ normalize(embedding, dim=-1)).softmax(0)
    return float(shares[: len(CLASSES)].sum())


def measure(encoder: OpenClip, images: int, slow: int, tokens: int) -> list[Row]:
    method: Any = registry.make(registry.methods()["zoc"], {"specials": True})
    torch.manual_seed(0)
    module = method.module(encoder)
    module.seen[torch.randperm(len(module.seen))[:tokens]] = 1
    module.bias.normal_(std=0.1)

    def text(template: str) -> torch.Tensor:
        return normalize(encoder.text([template.replace("{}", name) for name in CLASSES]), dim=-1)

    def words(prompts: tuple[str, ...]) -> torch.Tensor:
        return normalize(encoder.text(prompts), dim=-1)

    sources = Sources(text, words, lambda: encoder, list)
    own = MethodResources(lambda: Weights(module.state_dict(), {}), lambda depends, make: make())
    task = Task(CLASSES, encoder.scale, sources).for_method(method.needs, own)
    embeddings = 10 * torch.randn(images, 128)
    batch = Batch(Needs.FEATURES, images, normalize(embeddings, dim=-1), embeddings)
    began = time.process_time()
    state = method.fit(task)
    once = time.process_time() - began
    theirs = torch.tensor([released(method, state, embedding, encoder) for embedding in embeddings[:slow]])
    gap = float((method.score(batch, task, state)[:slow].sigmoid() - theirs).abs().max())
    assert gap < 1e-5, f"the two ways differ by {gap}"
    found = side_by_side(
        {
            "ours": lambda: method.score(batch, task, state),
            "released": lambda: [released(method, state, one, encoder) for one in embeddings[:slow]],
        },
        "ours",
        3,
    )["released"]
    each = images / slow
    faster = Ratio(found.median * each, found.low * each, found.high * each, found.seconds)
    ours = faster.seconds * each / faster.median
    counted = faster.median * ours / (ours + once)
    what = f"ZOC's released code, {images:,} images, {tokens:,} tokens"
    note = f"untrained small decoder, glyphs text tower; {slow} images timed; scores equal to {gap:.0e}"
    whole = Ratio(counted, counted * faster.low / faster.median, counted * faster.high / faster.median, once)
    return [
        row(what, "oodbench, stored prompts", faster, ">= 20", note),
        row(what, f"oodbench, with {len(state.names.strings):,} prompts encoded for it", whole, "", "once per encoder"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=5, help="images for the released code")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2000, 20_000], help="vocabulary sizes")
    asked = parser.parse_args()
    encoder = OpenClip(resolve(parse_encoder("glyphs"), None, Store(Path(mkdtemp()))), "cpu", "fp32")
    with torch.no_grad():
        rows = [one for tokens in asked.tokens for one in measure(encoder, asked.images, asked.slow, tokens)]
    write("zoc", rows, "CPU time of the process, one thread")


if __name__ == "__main__":
    main()
