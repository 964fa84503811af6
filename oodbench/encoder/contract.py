"""The contract of user-defined encoders, checked on noise and a few prompts by `oodbench encoders check`."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oodbench.encoder import plugin
from oodbench.encoder.card import PLUGIN_PREFIX, EncoderCard, parse_encoder
from oodbench.encoder.plugin import PluginEncoder
from oodbench.errors import UserError

PROMPTS = ("a photo of a cat", "a much longer prompt about two dogs in the snow", "x")
TOLERANCE = 1e-4  # maximum difference between batches, relative to the largest value
_MODES = ("RGB", "L", "RGBA", "P", "I;16")
_SIZES = ((50, 70), (301, 40), (33, 32))


@dataclass
class Trial:
    """An encoder on the CPU, and images from its preprocess()."""

    text: str
    card: EncoderCard
    path: Path
    encoder: PluginEncoder
    images: Tensor


def trial(text: str) -> Trial:
    """Create an encoder, and preprocess three images of noise. Raise UserError if either fails."""
    spec = parse_encoder(text)
    if not spec.plugin:
        raise UserError(f"'{text}' is not a plugin; write plugin:FILE.py or plugin:NAME")
    card, path = plugin.describe(spec)
    if plugin.describe(spec)[0].weights != card.weights:
        raise UserError("identity() differs between two objects; compute it from the weights, not addresses or times")
    encoder = plugin.load(card, path, "cpu", torch.float32)
    images = [encoder.transform(noise_image("RGB", size)) for size in _SIZES]
    stacked = torch.stack(images)
    return Trial(text, card, path, encoder, stacked if stacked.is_floating_point() else stacked.float() / 255)


def noise_image(mode: str, size: tuple[int, int]) -> Image.Image:
    """Return an image of noise."""
    noise = Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 200)
    return noise.convert(mode)


def preprocesses_every_mode(t: Trial) -> str:
    """preprocess() takes colour, grey, transparent and palette images of any size, and returns [3 h w] in [0, 1]."""
    for mode in _MODES:
        for size in _SIZES:
            pixels = t.encoder.transform(noise_image(mode, size))
            if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() <= 1):
                return (
                    f"numbers from {pixels.min():.3g} to {pixels.max():.3g}, not bytes or numbers in [0, 1]; "
                    "subtract the mean in pixels()"
                )
    return ""


def leaves_its_input_alone(t: Trial) -> str:
    """pixels() does not write into its input."""
    before = t.images.clone()
    _images(t, t.images)
    return "" if torch.equal(before, t.images) else "pixels() changed its input in place"


def gives_finite_embeddings_that_differ(t: Trial) -> str:
    """Embeddings are finite, and those of different images and of different prompts differ."""
    for name, found in (("pixels()", _images(t, t.images)), ("text()", _texts(t, PROMPTS))):
        if not bool(torch.isfinite(found).all()):
            return f"{name} returns NaN or infinity"
        if float(found.std(0).max()) <= 1e-6 * float(found.abs().max()):
            return f"{name} returns the same for all"
    return ""


def does_not_depend_on_the_batch(t: Trial) -> str:
    """The embedding of an image or a prompt does not depend on the rest of the batch or the order."""
    images, texts = _images(t, t.images), _texts(t, PROMPTS)
    alone = torch.cat([_images(t, image[None]) for image in t.images])
    parts = {
        "pixels()": (images, alone, _images(t, t.images.flip(0)).flip(0)),
        "text()": (texts, torch.cat([_texts(t, (one,)) for one in PROMPTS]), _texts(t, PROMPTS[::-1]).flip(0)),
    }
    for name, (together, *others) in parts.items():
        gap = max(float((together - other).abs().max()) for other in others)
        if gap > TOLERANCE * float(together.abs().max()):
            return f"{name} changes by {gap:.2g} with the rest of the batch; call eval() on the model"
    return ""


def is_deterministic(t: Trial) -> str:
    """The same images and prompts have the same embeddings twice, also after the encoder is created again."""
    if not torch.equal(_images(t, t.images), _images(t, t.images)):
        return "the embeddings of the same images differ the second time; call eval() on the model"
    return "" if fingerprint(t.text) == fingerprint(t.text) else "embeddings differ after it is created again"


def is_the_same_in_another_process(t: Trial) -> str:
    """identity() and all embeddings are equal in two processes, bit for bit."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            there = pool.submit(fingerprint, t.text).result()
    except BrokenProcessPool:
        return "the other process that created it ended"
    here = fingerprint(t.text)
    if there[0] != here[0]:
        return "identity() differs in another process; compute it from the weights, not addresses, times or hash()"
    return "" if there == here else "embeddings differ in another process; seed random weights, or load them"


def is_differentiable(t: Trial) -> str:
    """pixels() has gradients, which odin needs."""
    images = t.images.clone().requires_grad_(True)
    with torch.enable_grad():
        total = t.encoder.pixels(images).square().sum()
    if not total.requires_grad:
        return "pixels() has no gradients; remove torch.no_grad()"
    [gradient] = torch.autograd.grad(total, images)
    return "" if bool(gradient.any()) else "the gradients of pixels() are all zero"


def activations_and_project_match_pixels(t: Trial) -> str:
    """project(activations(x)) equals pixels(x), if the encoder has these parts."""
    if t.card.activation == "embedding":
        return ""
    own = t.encoder._own
    with torch.no_grad():
        whole, split = own.pixels(t.images), own.project(own.activations(t.images))
    gap = float((whole - split).abs().max())
    return (
        ""
        if gap <= TOLERANCE * float(whole.abs().max())
        else f"project(activations(x)) differs from pixels(x) by {gap:.2g}"
    )


def has_patches_in_the_joint_space(t: Trial) -> str:
    """patches() is [b n d] and finite, the same in any batch, and has gradients, if the encoder has it."""
    if t.card.lacks("patches"):
        return ""
    images = t.images.clone().requires_grad_(True)
    with torch.enable_grad():
        together = t.encoder.patches(images)
    if not bool(torch.isfinite(together).all()):
        return "patches() returns NaN or infinity"
    with torch.no_grad():
        alone = torch.cat([t.encoder.patches(image[None]) for image in t.images])
    gap = float((together.detach() - alone).abs().max())
    if gap > TOLERANCE * float(alone.abs().max()):
        return f"patches() changes by {gap:.2g} with the rest of the batch; call eval() on the model"
    return "" if together.requires_grad else "patches() has no gradients; remove torch.no_grad()"


def patch_activations_match_patches(t: Trial) -> str:
    """project(patch_activations(x)) equals patches(x), if the encoder has these parts."""
    if t.card.lacks("patch_activations"):
        return ""
    if t.card.activation == "embedding":
        return "it has patch_activations(), but not activations() and project()"
    with torch.no_grad():
        found = t.encoder.project(t.encoder.patch_activations(t.images))
        if not bool(torch.isfinite(found).all()):
            return "project(patch_activations()) returns NaN or infinity"
        whole = found if t.card.lacks("patches") else t.encoder.patches(t.images)
    if whole.shape != found.shape:
        return f"patches() returns {list(whole.shape)}, project(patch_activations(x)) {list(found.shape)}"
    gap = float((whole - found).abs().max())
    if gap <= TOLERANCE * float(whole.abs().max()):
        return ""
    return f"project(patch_activations(x)) differs from patches(x) by {gap:.2g}"


def text_tower_matches_text(t: Trial) -> str:
    """text_tower() is trainable and maps tokenize() to text(), if the encoder has it."""
    if t.card.lacks("text_tower"):
        return ""
    tower, texts = t.encoder.text_tower(), _texts(t, PROMPTS)
    with torch.no_grad():
        found = tower(t.encoder.tokenize(PROMPTS))
    if found.shape != texts.shape:
        return f"text_tower() returns {list(found.shape)}, text() {list(texts.shape)}"
    gap = float((found - texts).abs().max())
    if gap > TOLERANCE * float(texts.abs().max()):
        return f"text_tower()(tokenize(prompts)) differs from text(prompts) by {gap:.2g}"
    return (
        "" if any(weight.requires_grad for weight in tower.parameters()) else "no weight of text_tower() is trainable"
    )


CHECKS: tuple[Callable[[Trial], str], ...] = (
    preprocesses_every_mode,
    leaves_its_input_alone,
    gives_finite_embeddings_that_differ,
    does_not_depend_on_the_batch,
    is_deterministic,
    is_the_same_in_another_process,
    is_differentiable,
    activations_and_project_match_pixels,
    has_patches_in_the_joint_space,
    patch_activations_match_patches,
    text_tower_matches_text,
)


def run_checks(text: str) -> list[tuple[str, str]]:
    """Return (check, problem or "") for every check; if the encoder cannot be created, only for the first."""
    try:
        made = trial(text)
    except UserError as error:
        return [("can be created", str(error))]
    found = [("can be created", "")]
    for check in CHECKS:
        try:
            problem = check(made)
        except Exception as error:  # code of the user may raise anything
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        found.append((check.__name__.replace("_", " "), problem))
    return found


def fingerprint(text: str) -> tuple[str, str]:
    """Create an encoder again, and return its identity and the sha256 of some embeddings."""
    made = trial(text)
    embeddings = torch.cat([_images(made, made.images), _texts(made, PROMPTS)])
    return made.card.identity, hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()


def _images(t: Trial, images: Tensor) -> Tensor:
    with torch.no_grad():
        return t.encoder.pixels(images)


def _texts(t: Trial, prompts: tuple[str, ...]) -> Tensor:
    with torch.no_grad():
        return t.encoder.text(prompts)


def spec_of(argument: str) -> str:
    """Return the spec of a file or entry point, given with or without `plugin:`."""
    return argument if argument.startswith(PLUGIN_PREFIX) else f"{PLUGIN_PREFIX}{argument}"
