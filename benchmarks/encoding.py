"""Extraction and a whole run against bare passes of the same encoder: python benchmarks/encoding.py [--images 200].

ViT-B-32 with random weights, in this process, on all cores; the wall clock, because decoding and the model share them.
Text is encoded before the timing, because it is encoded once per encoder and stored. Scaled down: few images per set,
1,000 negative words and one prompt for CLIPN; ODIN and the extraction of ViT-B-16 use a tenth of the images.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip  # noqa: TID251 (what ours is compared with)
import torch
from measure import Ratio, Row, row, side_by_side, write
from PIL import Image

from oodbench import api
from oodbench.encoder.openclip import OpenClip, transform
from oodbench.pipeline import run as runner
from oodbench.pipeline.extract import extract
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import request_from

ARCHITECTURE, LARGER = "ViT-B-32", "ViT-B-16"
EIGHT = ("msp", "maxlogit", "energy", "mcm", "react", "neglabel", "clipn[templates=simple]", "zoc")
BATCH = 32


SETS = ("id", "near", "far", "other", "last", "train")


def pictures(folder: Path, images: int, sets: Sequence[str] = SETS) -> None:
    """Write JPEGs of ImageNet's mean size: an ID set with ten classes, four OOD sets, and a calibration split."""
    rng = np.random.default_rng(0)
    for name in sets:
        for i in range(images):
            small = Image.fromarray(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8))
            place = folder / name / (f"thing {i % 10}" if name in ("id", "train") else "")
            place.mkdir(parents=True, exist_ok=True)
            small.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{i:04}.jpg", quality=90)


def trained(folder: Path, encoder: str) -> list[str]:
    """Return weights files for CLIPN and ZOC after one step on eight pairs, as speed does not depend on the values."""
    lines = [f"id/thing {i}/{i:04}.jpg,a photo of a red thing number {i} on a table" for i in range(8)]
    (folder / "captions.csv").write_text("\n".join(["filepath,caption", *lines]) + "\n")
    files = []
    for name in ("clipn", "zoc"):
        out = folder / f"{name}.safetensors"
        options = (
            "--batch-size",
            "8",
            "--steps",
            "1",
            "--captions",
            str(folder / "captions.csv"),
            "--tracking-uri",
            "none",
        )
        code = "from oodbench.cli import main; main()"
        call = [sys.executable, "-c", code, "train", name, "--encoder", encoder, "--output", str(out), *options]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        files.append(f"{name}={out}")
    return files


def request(folder: Path, encoder: str, methods: tuple[str, ...], weights: list[str], limit: int | None = None) -> Any:
    """Return a request with one ID and four OOD sets; without a calibration split, ReAct's threshold is given."""
    words = folder / "words"
    if not words.is_dir():
        words.mkdir()
        lines = [f"{kind} {i}" for i in range(700) for kind in ("noun", "other")]
        (words / "selected.txt").write_text("\n".join(f"the nice {line}" for line in lines) + "\n")
    settings = ("react.threshold=1.0", f"neglabel.words={words / 'selected.txt'}")
    return request_from(
        methods=",".join(methods),
        id=f"folder:{folder / 'id'}",
        ood=[f"folder:{folder / name}" for name in ("near", "far", "other", "last")],
        encoder=encoder,
        weights=[one for one in weights if any(m.startswith(one.partition("=")[0]) for m in methods)],
        settings=[one for one in settings if one.partition(".")[0] in methods],
        out=folder / "out",
        store=folder / "store",
        batch_size=BATCH,
        bootstrap=0,
        limit=limit,
    )


def forget(store: Path, *kinds: str) -> None:
    for kind in kinds:
        shutil.rmtree(store / kind, ignore_errors=True)


def preloaded(plan: Plan) -> list[torch.Tensor]:
    """Return all images of the plan as batches of pixels, normalised for the model."""
    pixels = transform(plan.card)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (plan.card.mean, plan.card.std))
    batches = []
    for listing in plan.listings:
        images = [(pixels(listing.read(i)).float() / 255 - mean) / std for i in range(len(listing))]
        batches += [torch.stack(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="of each set")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OODBENCH_STORE"] = str(folder / "store")
        pictures(folder, asked.images)
        rows = [*measured(folder, asked.images, asked.rounds), larger(folder, asked.images // 10, asked.rounds)]
    method = "wall clock, all cores; text encoded before"
    write("encoding", rows, method, architecture=ARCHITECTURE, batch=BATCH, images=5 * asked.images)


def random_encoder(folder: Path, architecture: str) -> tuple[Any, str]:
    """Return a model with random weights, and its name in a request."""
    model = open_clip.create_model(architecture).eval()
    torch.save(model.state_dict(), folder / f"{architecture}.pt")
    return model, f"{architecture}@{folder / architecture}.pt"


def bare_pass(model: Any, batches: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            model.encode_image(batch)


def extracted(plan: Plan, loaded: OpenClip) -> None:
    """Extract all images of the plan again, from files to the store."""
    forget(plan.store.root, "embeddings")
    for listing in plan.listings:
        extract(plan.extraction_job(listing), lambda: loaded)


def larger(folder: Path, images: int, rounds: int) -> Row:
    """Measure extraction with a larger encoder, for which decoding matters less."""
    model, encoder = random_encoder(folder, LARGER)
    plan = make_plan(request(folder, encoder, ("mcm",), [], images))
    loaded, batches = OpenClip(plan.encoder, "cpu", "fp32"), preloaded(plan)
    parts = {"bare": lambda: bare_pass(model, batches), "extraction": lambda: extracted(plan, loaded)}
    found = side_by_side(parts, "bare", rounds, time.perf_counter)
    return extraction_row(LARGER, images, found["extraction"])


def extraction_row(architecture: str, images: int, found: Ratio) -> Row:
    what = f"images/s of extraction, {architecture}, {5 * images} images in 5 sets"
    return row(what, "bare encode_image", found.inverse(), ">= 0.95", "JPEG 500x375")


def measured(folder: Path, images: int, rounds: int) -> list[Row]:
    model, encoder = random_encoder(folder, ARCHITECTURE)
    store, few = folder / "store", images // 10
    eight = make_plan(request(folder, encoder, EIGHT, trained(folder, encoder)))
    odin = make_plan(request(folder, encoder, ("odin",), [], few))
    loaded = OpenClip(eight.encoder, "cpu", "fp32")
    runner.encoder_loader = lambda plan, device: lambda: loaded  # the model is loaded once, before the clocks start
    batches = preloaded(eight)

    def run(plan: Plan) -> Callable[[], None]:
        def whole() -> None:
            forget(store, "embeddings", "scores", "intervals")
            shutil.rmtree(folder / "out", ignore_errors=True)
            results = api.run(plan).results
            failed = [one.error for one in results if one.status != "ok"]
            assert not failed, failed

        return whole

    def kept() -> None:
        """Load trained weights, fit, score and write rows."""
        forget(store, "scores", "intervals")
        assert all(one.status == "ok" for one in api.run(eight).results)

    parts = {
        "bare": lambda: bare_pass(model, batches),
        "extraction": lambda: extracted(eight, loaded),
        "eight methods": run(eight),
        "kept": kept,
    }
    found = side_by_side(parts, "bare", rounds, time.perf_counter)
    of_odin = preloaded(odin)
    extracted(odin, loaded)  # its predictions read them
    began = time.perf_counter()
    bare_pass(model, of_odin)
    middle = time.perf_counter()
    assert all(one.status == "ok" for one in api.run(odin).results)
    times = (time.perf_counter() - middle) / (middle - began)
    own = Ratio(times, times, times, time.perf_counter() - middle)
    n = f"{5 * images} images in 5 sets"
    scaled = "scaled down: few images; 1,000 negative words, one CLIPN prompt; calibration given, not counted"
    return [
        extraction_row(ARCHITECTURE, images, found["extraction"]),
        row(f"eight methods from JPEG files to rows, {n}", "one bare pass", found["eight methods"], "<= 1.10", scaled),
        row(f"the same, embeddings stored: weights loaded, fits, scores, rows, {n}", "one bare pass", found["kept"]),
        row(
            f"ODIN's own passes, {5 * few} images in 5 sets",
            "one bare pass",
            own,
            "",
            "forward, backward, forward; once",
        ),
    ]


if __name__ == "__main__":
    main()
