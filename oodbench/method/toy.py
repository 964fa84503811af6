"""A toy dataset with a linear CLIP, its captioner, and images near and far from the texts of the classes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from oodbench.data import prompts
from oodbench.method import Batch, Captioner, Needs, Pairs, Sources, Task
from oodbench.method.averages import averages
from oodbench.method.encoder import with_context

CLASSES = ("anchor", "bell", "cactus", "drum", "eagle", "fern", "globe", "harp")
WIDTH, DEPTH, SIDE = 24, 16, 8
TOKENS, CONTEXT = 4096, 77  # of the vocabulary, whose last two are start and end, and of a prompt, as in CLIP
TRAIN = 1024  # calibration images: more than the neighbours, components or images of a class that methods ask for
THINGS = 4  # different objects in the OOD images of a stream


class ToyEncoder:
    """A linear CLIP; an image of class i has an embedding near the text embedding of class i."""

    scale = 100.0
    size = (SIDE, SIDE)

    def __init__(self, device: str = "cpu") -> None:
        rng = np.random.default_rng(7)
        self.device = device
        self.std, self.mean = torch.ones(3, 1, 1, device=device), torch.full((3, 1, 1), 0.5, device=device)
        self._to_width = _tensor(rng.normal(size=(3 * SIDE * SIDE, WIDTH)) / SIDE).to(device)
        self._to_depth = _tensor(rng.normal(size=(WIDTH, DEPTH)) / WIDTH**0.5).to(device)

    def activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b w"]:
        return (images - 0.5).flatten(1) @ self._to_width

    def project(self, activations: Float[Tensor, "*b w"]) -> Float[Tensor, "*b d"]:
        return activations @ self._to_depth

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        return self.project(self.activations(images))

    def patches(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 4 d"]:
        """Return the embeddings of the four quarters; their mean is the embedding."""
        return self.project(self.patch_activations(images))

    def patch_activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 4 w"]:
        quarters = torch.eye(4, device=images.device).view(4, 1, 2, 2).repeat_interleave(SIDE // 2, -1)
        masks = quarters.repeat_interleave(SIDE // 2, -2)
        return 4 * ((images - 0.5)[:, None] * masks).flatten(2) @ self._to_width

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        with torch.no_grad():
            embedded: Tensor = self.text_tower()(self.tokenize(prompts))
            return embedded

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Return start, subject, the entire prompt, end and zeros; the first tokens are the classes."""
        rows = [[TOKENS - 2, _token(self._subject(p)), _token(p), TOKENS - 1] for p in prompts]
        return nn.functional.pad(torch.tensor(rows, device=self.device).view(-1, 4), (0, CONTEXT - 4))

    def detokenize(self, token: int) -> str:
        return CLASSES[token] if token < len(CLASSES) else f"word{token}"

    def text_tower(self) -> ToyTower:
        return ToyTower().to(self.device)

    def captioner(self) -> ToyCaptioner:
        return ToyCaptioner(self)

    def images(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 height width"]:
        """Return images with these embeddings: the smallest changes of a grey image."""
        inverse: Tensor = torch.linalg.pinv(self._to_width @ self._to_depth)
        return 0.5 + (embeddings @ inverse).view(-1, 3, SIDE, SIDE)

    @staticmethod
    def _subject(prompt: str) -> str:
        return next((name for name in CLASSES if name in prompt), prompt)


class ToyTower(nn.Module):
    """A text tower with the names of CLIP's parameters: the subject's vector plus a tenth of the prompt's.

    Both are tokens before the end token. A tenth of the mean of the context vectors is added, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(TOKENS, DEPTH, _weight=_tokens().clone())
        self.text_projection = nn.Parameter(torch.eye(DEPTH))

    def forward(
        self, tokens: Int64[Tensor, "k n"], offset: Tensor | None = None, context: Tensor | None = None
    ) -> Float[Tensor, "k d"]:
        x = with_context(self.token_embedding(tokens), context) + (0 if offset is None else offset)
        rows, ends = torch.arange(len(x), device=x.device), tokens.argmax(-1)
        pooled = x[rows, ends - 2] + 0.1 * x[rows, ends - 1]
        if context is not None:
            pooled = pooled + 0.1 * x[:, 1 : context.shape[-2] + 1].mean(1)
        projected: Tensor = pooled @ self.text_projection
        return projected


class ToyCaptioner(Captioner):
    """A captioner that generates the tokens nearest to the image, none twice."""

    vocabulary = TOKENS

    def __init__(self, encoder: ToyEncoder) -> None:
        self._encoder = encoder

    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 d"]:
        return self._encoder.pixels(images)[:, None]

    def next_token_logits(self, encoded: Float[Tensor, "b 1 d"], tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        logits = encoded[:, 0] @ torch.nn.functional.normalize(_tokens(), dim=-1).T.to(encoded.device)
        return logits.scatter(1, tokens, -torch.inf)


class ToyWorld:
    """ID images of eight classes, calibration images with labels, OOD images of other things, and their task.

    `views` is the number of views of each image.
    """

    def __init__(self, seed: int = 0, device: str = "cpu", views: int = 0) -> None:
        self.encoder, self.views = ToyEncoder(device), views
        rng = np.random.default_rng(seed)
        centres = torch.nn.functional.normalize(self.encoder.text(CLASSES), dim=-1)
        noise, other = (_tensor(rng.normal(size=(n, DEPTH))).to(device) for n in (96 + TRAIN, 96))
        other[:, -1] = 0
        near = centres.repeat(len(noise) // len(CLASSES), 1) + 0.15 * noise
        self.id, self.train = self.images(near[:96]), self.images(near[96:])
        self.labels = torch.arange(TRAIN, device=device) % len(CLASSES)  # of `train`
        self.ood = self.images(torch.nn.functional.normalize(other, dim=-1))
        things = torch.nn.functional.normalize(other[:THINGS], dim=-1).repeat(len(self.id) // THINGS, 1)
        of_things = things + 0.15 * _tensor(rng.normal(size=things.shape)).to(device)
        self._stream_ood = self.images(of_things)  # as in a real set, earlier images resemble later ones

    def images(self, near: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 height width"]:
        """Return images that embed near texts, offset by one direction as in CLIP (the modality gap)."""
        return self.encoder.images(0.3 * (near + _modality_gap().to(near.device)))

    def task(self) -> Task:
        def text(templates: str, average: str = "normalised") -> Tensor:
            return words(CLASSES, templates, average)

        encode = functools.cache(lambda *texts: averages(self.encoder.text, texts[0], texts[1]))

        def words(names: tuple[str, ...], templates: str = "{}", average: str = "normalised") -> Tensor:
            vectors = encode(prompts.templates(templates).lines, names)[average]  # once, as a run stores them
            return vectors.clone()

        def calibration() -> list[Batch]:
            unread: dict[str, Any] = dict.fromkeys(("_pixels", "_patches", "_patch_activations", "_views"))
            parts = zip(self.train.chunk(2), self.labels.chunk(2), strict=True)
            return [dataclasses.replace(self.batch(x, ~Needs(0)), **unread, _labels=y) for x, y in parts]

        return Task(CLASSES, self.encoder.scale, Sources(text, words, lambda: self.encoder, calibration))

    def pairs(self, step: int) -> Pairs:
        """Return captions of the classes and of 120 other things, with embeddings near them."""
        rng = np.random.default_rng(step)
        names = [*CLASSES, *(f"thing{i}" for i in rng.choice(1000, size=120, replace=False))]
        captions = tuple(f"a photo of a {name}" for name in names)
        text = torch.nn.functional.normalize(self.encoder.text(captions), dim=-1)
        noise = _tensor(rng.normal(size=text.shape)).to(text.device)
        near = 0.3 * (text + 0.15 * noise + _modality_gap().to(text.device))
        return Pairs(near, captions, torch.arange(len(names)), step, seed=0, size=len(names))

    def labelled_pairs(self, step: int) -> Pairs:
        """Return 64 of the labelled images, as a FewShotMethod is trained on them.

        They are shifted towards another text, so that they are hard enough for the loss to decrease.
        """
        rows = torch.from_numpy(np.random.default_rng(step).permutation(TRAIN)[:64])
        shift = self.images(torch.nn.functional.normalize(self.encoder.text(["thing"]), dim=-1)) - 0.5
        seen = self.batch(self.train[rows] + 2 * shift, ~Needs(0))
        numbers = torch.arange(len(rows), device=self.labels.device)
        return Pairs(
            seen.embeddings,
            (),
            numbers,
            step,
            0,
            len(rows),
            _labels=self.labels[rows],
            _patches=seen.patches,
            _patch_activations=seen.patch_activations,
        )

    def batch(self, images: Tensor, needs: Needs) -> Batch:
        activations = self.encoder.activations(images)
        embeddings = self.encoder.project(activations)
        features = torch.nn.functional.normalize(embeddings, dim=-1)
        of_patches = self.encoder.patch_activations(images)
        return Batch(
            needs,
            len(images),
            features,
            embeddings,
            activations,
            images,
            _patches=torch.nn.functional.normalize(self.encoder.project(of_patches), dim=-1),
            _views=self._views(images),
            _patch_activations=of_patches,
        )

    def base(self, images: Tensor) -> Float64[Tensor, " b"]:
        """Return the scores of MCM, which stands for any method that a StreamMethod names as its `base`."""
        centres = torch.nn.functional.normalize(self.encoder.text(CLASSES), dim=-1)
        features = torch.nn.functional.normalize(self.encoder.pixels(images), dim=-1)
        return (features @ centres.T).double().log_softmax(-1).amax(-1)

    def stream(self) -> tuple[Tensor, Bool[Tensor, " n"]]:
        """Return ID images and as many of a few other things, shuffled, and which of them are ID images."""
        order = np.random.RandomState(0).permutation(2 * len(self.id))
        return torch.cat([self.id, self._stream_ood])[order], torch.from_numpy(order < len(self.id))

    def _views(self, images: Tensor) -> Tensor | None:
        """Return the embeddings of each image laid over its mirror image, which grows fainter from view to view."""
        parts = [images + (images.flip(-1) - images) / (4 + number) for number in range(self.views)]
        units = [torch.nn.functional.normalize(self.encoder.pixels(part), dim=-1) for part in parts]
        return torch.stack(units, 1) if units else None


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


@functools.cache
def _tokens() -> Float[Tensor, "n d"]:
    table = _tensor(np.random.default_rng(11).normal(size=(TOKENS, DEPTH)) / DEPTH**0.5)
    table[:, -1] = 0  # the direction of the modality gap
    return table


def _modality_gap() -> Float[Tensor, " d"]:
    return torch.nn.functional.one_hot(torch.tensor(DEPTH - 1), DEPTH).float()


def _token(text: str) -> int:
    """Return the token of a text: the first tokens are the classes, any other text is hashed to one of the rest."""
    if text in CLASSES:
        return CLASSES.index(text)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return len(CLASSES) + number % (TOKENS - 2 - len(CLASSES))
