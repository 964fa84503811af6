"""Methods that learn from the stream against their own matrix products: python benchmarks/streams.py [--rounds 5].

Random vectors in the sizes of ImageNet-1k with WordNet's words; one step of 256 images, with full queues.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch
from measure import Row, row, side_by_side, write
from scoring import CLASSES, DEPTH, product_and_pass, unit
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.method import Batch, Needs, Sources, StreamMethod, Task, registry

BATCH, STEPS, CHOSEN, NEGATIVES = 256, 4, 1_000, 10_000
RELEASED = (CLASSES + NEGATIVES) * 11 * DEPTH * 4  # bytes of AdaNeg's memory in the released code
PRODUCTS = "its products, and one exp of each cosine"


class Noise:
    """An encoder that embeds images of noise at random."""

    scale, size = 100.0, (224, 224)
    mean = std = torch.ones(3, 1, 1)

    def pixels(self, images: Tensor) -> Tensor:
        return unit(len(images), 5)


def make_task() -> Task:
    """Return a task with random vectors of class names and words."""
    names, encoder = unit(CLASSES, 1), Noise()
    sources = Sources(lambda templates: names, lambda words: unit(len(words), 2), lambda: encoder, list)  # type: ignore[arg-type, return-value]
    return Task([f"c{i}" for i in range(CLASSES)], 100.0, sources)


def made(name: str, **parameters: Any) -> StreamMethod[Any]:
    """Return a method with these hyper-parameters."""
    method = registry.make(registry.methods()[name], parameters)
    assert isinstance(method, StreamMethod)
    return method


def played(
    method: StreamMethod[Any], task: Task, state: Any, features: Tensor
) -> tuple[StreamMethod[Any], list[Batch], Any]:
    """Return the method, the batches of a stream and the state after it."""
    base = torch.rand(len(features), dtype=torch.float64, generator=torch.Generator().manual_seed(4)).log()
    parts = zip(features.split(BATCH), base.split(BATCH), strict=True)
    batches = [Batch(~Needs(0), len(x), x, x, _base=s) for x, s in parts]
    for batch in batches:
        state = method.step(batch, task, state)[1]
    return method, batches, state


def compared(name: str, what: str, banks: list[Tensor], stream: Any, task: Task, rounds: int) -> Row:
    """Return the line of a method's step against the products with its banks."""
    method, batches, state = stream

    def products() -> None:
        for batch in batches[-2:]:
            for bank in banks:
                product_and_pass(batch.features, bank)

    def steps() -> None:
        current = state
        for batch in batches[-2:]:
            current = method.step(batch, task, current)[1]

    label = f"{name}, {what}"
    ratio = side_by_side({PRODUCTS: products, label: steps}, PRODUCTS, rounds)[label]
    return row(label, PRODUCTS, ratio, "<= 2", f"{1e3 * ratio.seconds / (2 * BATCH):.2f} ms an image")


def oodd(task: Task, rounds: int) -> Row:
    method = made("oodd")
    stream = played(method, task, method.begin(task), unit(BATCH * 16, 3))
    return compared("oodd", "2,048 queued", [stream[2].vectors], stream, task, rounds)


def tanl(task: Task, rounds: int) -> list[Row]:
    """TANL's step when every image is admitted, and S_aa alone against the loop of softmaxes."""
    method = made("tanl", gap=0.0)
    stream = played(method, task, method.begin(task), unit(BATCH * STEPS, 3))
    words, names = stream[2].words, task.text("simple")
    rows = [compared("tanl", f"{len(words):,} words", [words, names, *(words[:CHOSEN],) * 2], stream, task, rounds)]
    module = sys.modules[type(method).__module__]
    logits = 100 * unit(BATCH, 6) @ torch.cat([names, words[:CHOSEN]]).T

    def loop() -> Tensor:
        ends = range(CLASSES + 1, CLASSES + CHOSEN + 1)
        return torch.stack([logits[:, :end].softmax(-1)[:, :CLASSES].sum(-1) for end in ends]).mean(0)

    def one_sum() -> Tensor:
        odds: Tensor = module.activation_aware(logits[:, :CLASSES].double().logsumexp(-1), logits[:, CLASSES:])
        return odds.sigmoid()

    torch.testing.assert_close(one_sum().float(), loop(), rtol=1e-6, atol=1e-6)
    what, loop_name = f"S_aa, one cumulative sum, {BATCH} x {CHOSEN:,}", "1,000 softmaxes"
    ratio = side_by_side({loop_name: loop, what: one_sum}, loop_name, rounds)[what].inverse()
    rows.append(row(what, loop_name, ratio, ">= 50", f"{1e3 * ratio.seconds:.1f} ms a batch; equal to 1e-6"))
    return rows


def adaneg(task: Task, rounds: int) -> list[Row]:
    """AdaNeg's step, and its memory after a stream of images near class names and negative labels."""
    begun = made("adaneg").begin(task)
    texts = torch.cat([task.text("simple"), begun.negatives])
    random = torch.Generator().manual_seed(7)
    near = torch.cat(
        [
            torch.randint(CLASSES, (9 * BATCH,), generator=random),
            torch.randint(len(texts), (3 * BATCH,), generator=random),
        ]
    )
    near = near[torch.randperm(len(near), generator=random)]
    features = normalize(texts[near] + 0.05 * torch.randn(len(near), DEPTH, generator=random), dim=-1)
    rows = []
    for replacement in ("entropy", "never"):
        method = made("adaneg", replacement=replacement)
        stream = played(method, task, copy.deepcopy(begun), features)
        state = stream[2]
        sums = torch.stack(list(state.sums.values()))
        slots = sum(s.entropies.nbytes + s.vectors.nbytes for s in state.slots.values())
        held, kept = state.negatives.nbytes + sums.nbytes + slots, sum(state.counts.values())
        what = f"adaneg's memory, {len(texts):,} x {DEPTH}, replacement={replacement}"
        share = held / RELEASED
        note = (
            f"{held / 1e6:.1f} MB (at most 30): {state.negatives.nbytes / 1e6:.1f} of them the negative labels' text, "
            f"which the released code also has; {kept:,} of {len(features):,} images kept, by {len(sums):,} classes"
        )
        target = f"<= {30e6 / RELEASED:.3f}" if replacement == "never" else ""
        rows.append(Row(what, f"11 slots a class, {RELEASED / 1e6:.0f} MB", share, share, share, target, note))
        name = f"adaneg, replacement={replacement}"
        # The base is that of a memory with images of every class; here fewer proxies differ from their texts.
        rows.append(compared(name, f"{len(texts):,} classes", [texts, texts], stream, task, rounds))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = max(2, parser.parse_args().rounds)
    torch.set_num_threads(1)
    with torch.no_grad():
        task = make_task()
        rows = [oodd(task, rounds), *tanl(task, rounds), *adaneg(task, rounds)]
    write("streams", rows, "CPU time of one thread", batch=BATCH)


if __name__ == "__main__":
    main()
