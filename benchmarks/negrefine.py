"""Count the texts of pairs that NegRefine encodes: python benchmarks/negrefine.py [--images 400].

Images and encoder are those of glyphs, the negative words every 20th noun of WordNet. An image needs 25 pairs of a
class and a negative word, in 8 prompts each; a pair is encoded once (Task.encode). The clock is the wall clock of one
thread.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import Ratio, Row, row, write

from oodbench.pipeline.events import Watch
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.score import feature_batches
from oodbench.pipeline.task import encoder_loader, extract_images, make_task, method_resources

PAIRS, PROMPTS = 25, 8  # of an image


def measured(folder: Path, images: int, rounds: int) -> list[Row]:
    """Score each image set, and then the first one again, whose pairs are in memory."""
    wordnet: Any = importlib.import_module("oodbench_methods._wordnet")
    words = folder / "nouns.txt"
    words.write_text("\n".join(wordnet.read_words(wordnet.OWN_LIST).nouns[::20]) + "\n")
    settings = (f"negrefine.words={words}",)
    request = RunRequest(methods="negrefine", limit=images, settings=settings, store=folder / "store", out=folder)
    plan, watch = make_plan(request), Watch()
    encoder = encoder_loader(plan, "cpu")
    encoded = [0]
    encode = encoder().text

    def counted(prompts: Any) -> torch.Tensor:
        encoded[0] += len(prompts)
        return encode(prompts)

    task = make_task(plan, encoder, "cpu", watch)
    sets = [list(feature_batches(extract_images(plan, one, encoder, watch), "cpu")) for one in plan.listings]
    (job,) = plan.jobs
    method = job.build()
    task = task.for_method(method.needs, method_resources(plan, job, "cpu"))
    state = method.fit(task)

    def seconds(batches: list[Any]) -> float:
        began = time.perf_counter()
        for batch in batches:
            method.score(batch.for_method(method.needs), task, state)
        return time.perf_counter() - began

    encoder().text = counted  # type: ignore[method-assign]
    first = sum(seconds(batches) for batches in sets)
    count = sum(batch.size for batches in sets for batch in batches)
    texts, asked = encoded[0], count * PAIRS * PROMPTS
    again = sorted(sum(seconds(batches) for batches in sets) / first for _ in range(rounds))
    if encoded[0] != texts:
        raise SystemExit(f"{encoded[0] - texts} texts were encoded again")
    share, again_ratio = texts / asked, Ratio(again[len(again) // 2], again[0], again[-1], again[0] * first)
    what = f"{count:,} images of {len(sets)} sets"
    note = f"{texts:,} of {asked:,}; {first:.0f} s with glyphs' small text tower"
    return [
        row(
            f"NegRefine, texts of pairs encoded, {what}",
            "25 pairs x 8 prompts an image",
            Ratio(share, share, share, first),
            "",
            note,
        ),
        row(
            f"NegRefine, {what} again, all pairs in memory",
            "the first time",
            again_ratio,
            "",
            "no text is encoded again",
        ),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="of each set")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, torch.no_grad():
        rows = measured(Path(folder), arguments.images, max(2, arguments.rounds))
    write("negrefine", rows, "wall clock of one thread")


if __name__ == "__main__":
    main()
