"""Trains the encoder of the glyph world from a seed: python -m tools.glyphs.train --output FILE."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from oodbench.data.glyphs import render, weights, world
from oodbench.data.glyphs.world import concepts

OOD = ("near", "letters", "textures", "digits")
Scores = npt.NDArray[np.float64]
Tokenizer = Callable[[list[str]], torch.Tensor]


class Encoder(Protocol):
    """What is used of open_clip's CLIP."""

    logit_scale: torch.Tensor

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of images [n, 3, 32, 32]."""

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of token ids [n, 16]."""


def normalised(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels [n, 32, 32, 3] as the encoder wants them: float [n, 3, 32, 32]."""
    scaled = (torch.from_numpy(pixels).float() / 255 - torch.tensor(weights.MEAN)) / torch.tensor(weights.STD)
    return scaled.permute(0, 3, 1, 2)


@torch.inference_mode()
def embed(model: Encoder, split: str, count: int | None = None) -> torch.Tensor:
    """Unit image features [n, d] of the first images of a split."""
    length = world.length(split) if count is None else count
    parts = []
    for first in range(0, length, 250):
        pixels = np.stack([render.image(split, index) for index in range(first, min(first + 250, length))])
        parts.append(F.normalize(model.encode_image(normalised(pixels)), dim=-1))
    return torch.cat(parts)


@torch.inference_mode()
def classify(model: Encoder, tokenizer: Tokenizer, names: Sequence[str] = world.CLASSES) -> torch.Tensor:
    """Unit text features [classes, d] of the prompt "a photo of a {}"."""
    return F.normalize(model.encode_text(tokenizer([f"a photo of a {name}" for name in names])), dim=-1)


def accuracy(model: Encoder, tokenizer: Tokenizer, count: int | None = None) -> float:
    """Zero-shot accuracy on the ID test images."""
    found = (embed(model, "id-test", count) @ classify(model, tokenizer).T).argmax(1)
    wanted = torch.tensor([world.label("id-test", index) for index in range(len(found))])
    return float((found == wanted).float().mean())


def scores(cosines: torch.Tensor, scale: float) -> dict[str, Scores]:
    """Four scores [n] of cosines [n, classes], each larger for images that look like a class."""
    logits = cosines * scale
    found = {
        "MSP": logits.softmax(1).amax(1),
        "MCM": cosines.softmax(1).amax(1),
        "MaxLogit": logits.amax(1),
        "Energy": logits.logsumexp(1),
    }
    return {key: value.double().numpy() for key, value in found.items()}


def auroc(inside: Scores, outside: Scores) -> float:
    """Chance that an ID image scores higher than an OOD image, ties counted half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left") + np.searchsorted(ordered, inside, side="right")
    return float(below.mean() / 2 / len(outside))


def fpr95(inside: Scores, outside: Scores) -> float:
    """Share of OOD images accepted where 95 % of ID images are."""
    return float((outside >= np.quantile(inside, 0.05, method="lower")).mean())


def report(model: Encoder, tokenizer: Tokenizer) -> Iterator[str]:
    """Lines with the accuracy and, per score and OOD set, AUROC / FPR95 in percent."""
    text, scale = classify(model, tokenizer).double(), model.logit_scale.exp().item()
    yield f"accuracy {100 * accuracy(model, tokenizer):.2f} %, logit scale {scale:.1f}"
    inside = scores(embed(model, "id-test").double() @ text.T, scale)
    outside = {split: scores(embed(model, split).double() @ text.T, scale) for split in OOD}
    for key, values in inside.items():
        cells = [(auroc(values, outside[split][key]), fpr95(values, outside[split][key])) for split in OOD]
        mean = np.mean(cells, axis=0)
        row = [f"{split} {100 * a:.2f}/{100 * f:.2f}" for split, (a, f) in zip(OOD, cells, strict=True)]
        yield f"{key:9s} " + "  ".join(row) + f"  mean {100 * mean[0]:.2f}/{100 * mean[1]:.2f}"


Ids = npt.NDArray[np.int64]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", dest="out", type=Path, required=True, help="weight file to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", dest="batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--warmup", type=int, default=200, help="steps until the highest learning rate")
    parser.add_argument("--smooth", type=float, default=0.1, help="label smoothing of the contrastive loss")
    parser.add_argument("--resume", type=Path, help="weight file of an earlier stage to start from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="shorten the schedule to fit this time")
    return parser.parse_args()


def vocabulary(tokenizer: SimpleTokenizer) -> Ids:
    """Sorted ids of all tokens which can occur in a caption, those of start and end included."""
    templates = (*world.PLAIN, *world.COLOURED, *world.NOISY)
    texts = [template.format("", fore="", back="", word="") for template in templates]
    texts += [concept.name for concept in concepts()] + list(world.COLOURS) + list(world.words())
    found = {token for text in texts for token in tokenizer.encode(text)}
    return np.array(sorted(found | {0, tokenizer.sot_token_id, tokenizer.eot_token_id}), np.int64)


def build(seed: int, tokens: Ids) -> CLIP:
    """Fresh model whose token table has only the rows of `tokens`; their order keeps the end token the largest."""
    torch.manual_seed(seed)
    config = weights.config()
    model = CLIP(**config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(tokens)}})
    start = weights.untrained_rows(seed, config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    model.token_embedding.weight.data.copy_(torch.from_numpy(start[tokens]))
    return model.to(memory_format=torch.channels_last)


def load(file: Path = weights.FILE) -> CLIP:
    """The model of a weight file, for inference in float32."""
    model = CLIP(**weights.config())
    model.load_state_dict(weights.state_dict(file), strict=True)
    return model.eval()


def batch(first: int, size: int, tokenizer: SimpleTokenizer, tokens: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 32, 32] and compact token ids [n, longest] of fresh pairs from the endless stream."""
    places = range(first, first + size)
    images = normalised(np.stack([render.image(world.STREAM, index) for index in places]))
    full = np.asarray(tokenizer([world.describe(world.STREAM, index) for index in places]))
    full = full[:, : int((full != 0).sum(1).max())]
    return images, torch.from_numpy(np.searchsorted(tokens, full))


def encode_text(model: CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Text features [n, d] of ids [n, length]; leaves out the positions which are padding everywhere."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)]
    features: torch.Tensor = x @ model.text_projection
    return features


def restore(model: CLIP, tokens: Ids, file: Path) -> tuple[int, str]:
    """Fills a model from an earlier stage; returns the images it has seen and how it was trained."""
    state = weights.state_dict(file)
    state[weights.EMBEDDING] = state[weights.EMBEDDING][torch.from_numpy(tokens)]
    model.load_state_dict(state, strict=True)
    record = weights.header(file)
    return int(record["images"]), f"{record['stages']}; "


def groups(model: CLIP, decay: float) -> list[dict[str, object]]:
    """Parameters with and without weight decay."""
    named = list(model.named_parameters())
    plain = [p for key, p in named if p.ndim < 2 or "embedding" in key]
    return [
        {"params": [p for key, p in named if not (p.ndim < 2 or "embedding" in key)], "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def save(model: CLIP, tokens: Ids, file: Path, record: dict[str, object]) -> None:
    """Half-precision weights with the trained token rows only; replaces the file at once."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    state = {key: value.contiguous() for key, value in state.items()}
    state[weights.TOKENS] = torch.from_numpy(tokens).int()
    partial = file.with_suffix(".partial")
    save_file(state, partial, {key: str(value) for key, value in record.items()})
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    partial.replace(file)


def learn(
    model: CLIP, optimizer: torch.optim.Optimizer, images: torch.Tensor, ids: torch.Tensor, smooth: float
) -> float:
    """One step on images and the token ids of their captions; returns the loss before it."""
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.visual(images)
    said = F.normalize(encode_text(model, ids), dim=-1)
    logits = model.logit_scale.exp() * F.normalize(seen.float(), dim=-1) @ said.T
    target = torch.arange(len(logits))
    # Smoothing keeps the cosines of wrong captions close to each other. Without it they scatter so widely in a model
    # this small that an image of anything else looks like some class, and the softmax scores are of little use.
    losses = [F.cross_entropy(side, target, label_smoothing=smooth) for side in (logits, logits.T)]
    loss = torch.stack(losses).mean()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.logit_scale.data.clamp_(0.0, math.log(100))
    return loss.item()


def main() -> None:
    """Trains, saving checkpoints on the way, then prints accuracy and AUROCs."""
    options = parse()
    tokenizer = SimpleTokenizer(context_length=weights.config()["text_cfg"]["context_length"])
    tokenizer.clean_fn = str.lower  # captions are ASCII, and the full cleaning is slow
    tokens = vocabulary(tokenizer)
    model, done, history = build(options.seed, tokens), 0, ""
    if options.resume:
        done, history = restore(model, tokens, options.resume)
    optimizer = torch.optim.AdamW(groups(model, 0.05), lr=options.rate, betas=(0.9, 0.98), eps=1e-6)
    start, mean, step, progress = time.monotonic(), math.log(options.batch), 0, 0.0
    while progress < 1.0:
        progress = max((step + 1) / options.steps, (time.monotonic() - start) / 60 / options.minutes)
        # Linear warm-up, then half a cosine down to nothing.
        warm = min(1.0, (step + 1) / options.warmup)
        for part in optimizer.param_groups:
            part["lr"] = options.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        first = options.seed * 10**9 + done + step * options.batch
        images, ids = batch(first, options.batch, tokenizer, tokens)
        mean += 0.02 * (learn(model, optimizer, images, ids, options.smooth) - mean)
        step += 1
        if step % 50 == 0:
            scale, speed = model.logit_scale.exp().item(), step * options.batch / (time.monotonic() - start)
            print(f"step {step} of {progress:.0%} loss {mean:.3f} scale {scale:.1f} {speed:.0f} images/s", flush=True)
        if step % options.every == 0 or progress >= 1.0:
            stage = f"{history}{step} steps of {options.batch}, rate {options.rate}, smoothing {options.smooth}"
            record: dict[str, object] = {"seed": options.seed, "stages": stage, "concepts": len(concepts())}
            record |= {"steps": done // options.batch + step, "images": done + step * options.batch}
            record |= {"tokens": len(tokens), "loss": f"{mean:.4f}"}
            save(model, tokens, options.out, record)
            reached = accuracy(load(options.out), tokenizer)
            save(model, tokens, options.out, record | {"accuracy": f"{reached:.4f}"})
            print(f"saved {options.out}: accuracy {reached:.4f} after {time.monotonic() - start:.0f} s", flush=True)
    for line in report(load(options.out), tokenizer):
        print(line)


if __name__ == "__main__":
    main()
