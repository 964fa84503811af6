"""Encoding on a GPU in bf16: python benchmarks/gpu.py [--images 4096]. Not part of `make bench`; needs a GPU.

Random weights. Ours from JPEG files against an eager open_clip loop with autocast and a DataLoader, against ours on
preloaded tensors (the time that the GPU waits), and against the card's measured bf16 product. On a machine without
open_clip, install it from a wheel; Ray and MLflow are not needed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip  # noqa: TID251 (what ours is compared with)
import torch
from encoding import pictures
from measure import Ratio, Row, row, side_by_side, write
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from oodbench.data.decode import Decoded
from oodbench.encoder.openclip import OpenClip, transform
from oodbench.pipeline.extract import decoded_batches, encode_batches
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from


class Files(Dataset[torch.Tensor]):
    """JPEG files through open_clip's transform, as in an ordinary loop."""

    def __init__(self, files: list[Path], pixels: Any) -> None:
        self.files, self.pixels = files, pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        found: torch.Tensor = self.pixels(Image.open(self.files[index]).convert("RGB"))
        return found


def peak(device: str, size: int) -> float:
    """Return the FLOP/s of a bf16 product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    began, rounds = clock(), 10
    for _ in range(rounds):
        a @ b
    return rounds * 2 * size**3 / (clock() - began)


def clock() -> float:
    """Return the wall clock once the GPU is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measured(folder: Path, architecture: str, asked: argparse.Namespace) -> list[Row]:
    model, _, pixels = open_clip.create_model_and_transforms(architecture)
    torch.save(model.state_dict(), folder / "random.pt")
    request = request_from(
        methods="mcm",
        id=f"folder:{folder / 'id'}",
        ood=[f"folder:{folder / 'near'}"],
        encoder=f"{architecture}@{folder / 'random.pt'}",
        out=folder / "out",
        store=folder / "store",
        precision="bf16",
        batch_size=asked.batch,
        device=asked.device,
        bootstrap=0,
    )
    plan = make_plan(request)
    ours, exact = (OpenClip(plan.encoder, asked.device, precision) for precision in ("bf16", "fp32"))
    model = model.to(asked.device).eval()
    work, n = plan.extraction_job(plan.id), len(plan.id)
    held: list[Decoded] = list(decoded_batches(work, (0, n), transform(plan.card)))
    files = sorted((folder / "id").rglob("*.jpg"))
    threads = work.reading.workers

    def from_files() -> Any:
        return encode_batches(decoded_batches(work, (0, n), transform(plan.card)), ours, lambda n: None)

    def eager() -> None:
        pin = asked.device == "cuda"
        with torch.no_grad(), torch.autocast(asked.device, torch.bfloat16):
            for images in DataLoader(Files(files, pixels), asked.batch, num_workers=threads, pin_memory=pin):
                model.encode_image(images.to(asked.device, non_blocking=True)).float().cpu()

    def decode() -> int:
        return sum(len(batch.positions) for batch in decoded_batches(work, (0, n), transform(plan.card)))

    parts = {
        "files": from_files,
        "held": lambda: encode_batches(held, ours, lambda n: None),
        "eager": eager,
        "decode": decode,
    }
    against = side_by_side(parts, "files", asked.rounds, clock)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model.encode_image(torch.zeros(1, 3, *_size(plan.card.size), device=asked.device))
    share = flops.get_total_flops() * n / against["held"].seconds / peak(asked.device, asked.product)
    one, other = (encode_batches(held[:1], tower, lambda n: None).arrays["embeddings"] for tower in (ours, exact))
    gap = float(abs(one - other).max() / abs(other).max())
    what = f"{architecture} bf16, {n:,} JPEG files of 500x375, {threads} threads"
    return [
        row(f"images/s of {what}", "eager amp loop with a DataLoader", against["eager"], ">= 2"),
        row(
            f"images/s of {what}",
            "preloaded batches",
            against["held"],
            ">= 0.9",
            f"{n / against['held'].seconds:,.0f} images/s",
        ),
        row(
            f"images/s of {what}",
            "decoding alone",
            against["decode"],
            "",
            f"{n / against['decode'].seconds:,.0f} images/s",
        ),
        row(f"preloaded, {architecture} bf16", "measured bf16 product", Ratio(share, share, share, 0.0), ">= 0.5"),
        row(f"bf16 embeddings, {architecture}", "fp32, relative to the largest", Ratio(gap, gap, gap, 0.0), "<= 0.01"),
    ]


def _size(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch-size", dest="batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--product", type=int, default=8192, help="rows of the square product")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: nothing was measured")
    torch.manual_seed(0)
    rows: list[Row] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OODBENCH_STORE"] = str(folder / "store")
        pictures(folder, asked.images, ("id",))
        pictures(folder, 2, ("near",))
        for architecture in asked.architectures:
            rows += measured(folder, architecture, asked)
    card = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    write("gpu" if asked.device == "cuda" else "gpu-rehearsal", rows, "wall clock", device=card, batch=asked.batch)


if __name__ == "__main__":
    main()
