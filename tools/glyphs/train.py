"""Trains the encoder of the glyph world from a seed: python -m tools.glyphs.train --out FILE."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from oodbench.data.glyphs import captions, render, weights, world
from oodbench.data.glyphs.concepts import concepts
from tools.glyphs import evaluation

Ids = npt.NDArray[np.int64]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="weight file to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=256)
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
    templates = (*captions.PLAIN, *captions.COLOURED, *captions.NOISY)
    texts = [template.format("", fore="", back="", word="") for template in templates]
    texts += [concept.name for concept in concepts()] + list(captions.COLOURS) + list(captions.words())
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
    images = evaluation.normalised(np.stack([render.image(world.STREAM, index) for index in places]))
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
            reached = evaluation.accuracy(load(options.out), tokenizer)
            save(model, tokens, options.out, record | {"accuracy": f"{reached:.4f}"})
            print(f"saved {options.out}: accuracy {reached:.4f} after {time.monotonic() - start:.0f} s", flush=True)
    for line in evaluation.report(load(options.out), tokenizer):
        print(line)


if __name__ == "__main__":
    main()
