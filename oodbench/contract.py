"""The contract that every method keeps, checked in a toy world: what `oodbench check FILE` runs, and our own tests."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oodbench import metrics, prompts, registry
from oodbench.errors import UserError
from oodbench.method import (
    Batch,
    Method,
    Needs,
    Own,
    Pairs,
    Sources,
    Task,
    TrainedMethod,
    Weights,
    check_predictions,
)
from oodbench.registry import MethodInfo

CLASSES = ("anchor", "bell", "cactus", "drum", "eagle", "fern", "globe", "harp")
WIDTH, DEPTH, SIDE = 24, 16, 8
TOKENS = 4096  # of the toy vocabulary; the last two are start and end
TOY_STEPS, TOY_RATE = 100, 3e-2
LEAST_AUROC = 0.7  # in a world where a method that works reaches 0.9 and more


class ToyEncoder:
    """A linear CLIP whose classes are known: an image of class i is one that embeds near the text of class i."""

    scale = 100.0
    std = torch.ones(3, 1, 1)

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self._to_width = _tensor(rng.normal(size=(3 * SIDE * SIDE, WIDTH)) / SIDE)
        self._to_depth = _tensor(rng.normal(size=(WIDTH, DEPTH)) / WIDTH**0.5)

    def activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b w"]:
        return (images - 0.5).flatten(1) @ self._to_width

    def project(self, activations: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        return activations @ self._to_depth

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        return self.project(self.activations(images))

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        with torch.no_grad():
            embedded: Tensor = self.text_tower()(self.tokenize(prompts))
            return embedded

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Start, subject, the prompt as a whole, end; the first tokens are the classes."""
        return torch.tensor([[TOKENS - 2, _token(self._subject(p)), _token(p), TOKENS - 1] for p in prompts])

    def detokenize(self, token: int) -> str:
        return CLASSES[token] if token < len(CLASSES) else f"word{token}"

    def text_tower(self) -> ToyTower:
        return ToyTower()

    def captioner(self) -> ToyCaptioner:
        return ToyCaptioner(self)

    def images(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 height width"]:
        """The smallest change of a grey image that embeds as asked."""
        back: Tensor = torch.linalg.pinv(self._to_width @ self._to_depth)
        return 0.5 + (embeddings @ back).view(-1, 3, SIDE, SIDE)

    @staticmethod
    def _subject(prompt: str) -> str:
        return next((name for name in CLASSES if name in prompt), prompt)


class ToyTower(nn.Module):
    """The subject's vector and a tenth of the prompt's, under the names of CLIP's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(TOKENS, DEPTH, _weight=_tokens().clone())
        self.text_projection = nn.Parameter(torch.eye(DEPTH))

    def forward(self, tokens: Int64[Tensor, "k n"], offset: Tensor | None = None) -> Float[Tensor, "k d"]:
        x = self.token_embedding(tokens) + (0 if offset is None else offset)
        projected: Tensor = (x[:, 1] + 0.1 * x[:, 2]) @ self.text_projection
        return projected


class ToyCaptioner:
    """Says the tokens nearest to the image, none twice."""

    vocabulary = TOKENS

    def __init__(self, encoder: ToyEncoder) -> None:
        self._encoder = encoder

    def look(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 d"]:
        return self._encoder.pixels(images)[:, None]

    def follow(self, looked: Float[Tensor, "b 1 d"], tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        logits = looked[:, 0] @ torch.nn.functional.normalize(_tokens(), dim=-1).T
        return logits.scatter(1, tokens, -torch.inf)


class World:
    """ID images of eight classes, OOD images of none, and the task that goes with them."""

    def __init__(self, seed: int = 0) -> None:
        self.encoder = ToyEncoder()
        rng = np.random.default_rng(seed)
        centres = torch.nn.functional.normalize(self.encoder.text(CLASSES), dim=-1)
        labels = torch.arange(96) % len(CLASSES)
        spread = _tensor(rng.normal(size=(192, DEPTH)) * 0.15)
        elsewhere = _tensor(rng.normal(size=(96, DEPTH)))
        elsewhere[:, -1] = 0
        self.id = self.images(centres[labels] + spread[:96])
        self.train = self.images(centres[labels] + spread[96:])
        self.ood = self.images(torch.nn.functional.normalize(elsewhere, dim=-1))

    def images(self, near: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 height width"]:
        """Images that embed near texts, all of them set apart by one direction."""
        return self.encoder.images(0.3 * (near + _apart()))

    def task(self) -> Task:
        def text(templates: str) -> Tensor:
            parts = [[t.replace("{}", c) for c in CLASSES] for t in prompts.templates(templates).lines]
            units = [torch.nn.functional.normalize(self.encoder.text(part), dim=-1) for part in parts]
            return torch.nn.functional.normalize(torch.stack(units).mean(0), dim=-1)

        def words(prompts: tuple[str, ...]) -> Tensor:
            return torch.nn.functional.normalize(self.encoder.text(prompts), dim=-1)

        def calibration() -> list[Batch]:
            return [dataclasses.replace(self.batch(self.train, ~Needs(0)), _pixels=None)]

        return Task(CLASSES, self.encoder.scale, Sources(text, words, lambda: self.encoder, calibration))

    def pairs(self, step: int) -> Pairs:
        """Captions of the classes and of as many other things, with images that embed near them."""
        rng = np.random.default_rng(step)
        names = [*CLASSES, *(f"thing{i}" for i in rng.choice(1000, size=120, replace=False))]
        captions = tuple(f"a photo of a {name}" for name in names)
        text = torch.nn.functional.normalize(self.encoder.text(captions), dim=-1)
        near = 0.3 * (text + 0.15 * _tensor(rng.normal(size=text.shape)) + _apart())
        return Pairs(near, captions, torch.arange(len(names)), step, seed=0, size=len(names))

    def batch(self, images: Tensor, needs: Needs) -> Batch:
        activations = self.encoder.activations(images)
        embeddings = self.encoder.project(activations)
        features = torch.nn.functional.normalize(embeddings, dim=-1)
        return Batch(needs, len(images), features, embeddings, activations, images)


@dataclass
class Trial:
    """One method in the world, fitted."""

    info: MethodInfo
    method: Method[Any]
    world: World
    task: Task
    state: Any

    def scores(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.method.score(self.world.batch(images, self.method.needs), self.task, self.state)


def trial(info: MethodInfo) -> Trial:
    """Construct a method without arguments and fit it. UserError when that cannot be done."""
    try:
        method = registry.load(info)()
    except TypeError as error:
        raise UserError(f"it cannot be constructed without arguments: {error}") from error
    world = World()
    torch.manual_seed(0)
    own = Own(functools.cache(lambda: _trained(method, world)), lambda depends, make: make())
    task = world.task().seen_by(method.needs, own)
    with torch.no_grad():
        return Trial(info, method, world, task, method.fit(task))


def _trained(method: Method[Any], world: World) -> Weights:
    """A trained method's weights after some steps on the toy world's pairs."""
    if not isinstance(method, TrainedMethod):
        raise UserError("it reads weights but is no TrainedMethod, so nothing can train it")
    module, first = method.module(world.encoder).train(), math.nan
    optimiser = torch.optim.AdamW(module.parameters(), lr=TOY_RATE)
    for step in range(TOY_STEPS):
        with torch.no_grad():
            inputs = method.inputs(world.pairs(step), world.encoder)
        with torch.enable_grad():
            loss = torch.stack(list(method.loss(method.embed(module, inputs)).values())).sum()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        first = loss.item() if step == 0 else first
    if not loss.item() < first:
        raise UserError(f"training does not lower its loss: {first:.4g}, then {loss.item():.4g}")
    return Weights({name: tensor.detach().clone() for name, tensor in module.state_dict().items()}, {})


def cites_its_paper(t: Trial) -> str:
    """The first docstring line reads `Title: what it is (Authors, Venue Year, arXiv:...)`."""
    if not re.search(r"\d{4}", t.info.citation) or not re.search(
        r"arXiv:\d{4}\.\d{4,5}|doi:|https?://", t.info.citation
    ):
        return f"the first line must end with (Authors, Venue Year, arXiv:id or doi or URL); found '{t.info.citation}'"
    return "" if t.info.summary else "the class has no docstring"


def is_frozen(t: Trial) -> str:
    """It is a frozen dataclass: parameters cannot change between fit and score."""
    own = vars(type(t.method)).get("__dataclass_params__")  # its own, not one that it inherits
    return "" if own is not None and own.frozen else "write @dataclass(frozen=True)"


def gives_one_finite_score_per_image(t: Trial) -> str:
    """score() returns [b], finite."""
    scores = t.scores(t.world.id)
    if scores.shape != (len(t.world.id),):
        return f"score() returned {list(scores.shape)} for {len(t.world.id)} images"
    return "" if torch.isfinite(scores).all() else "a score is NaN or infinite"


def is_deterministic(t: Trial) -> str:
    """The same images score the same twice, also after fitting anew with the same seed."""
    first = t.scores(t.world.id)
    again = trial(t.info).scores(t.world.id)
    return (
        "" if torch.equal(first, t.scores(t.world.id)) and torch.equal(first, again) else "scores differ between runs"
    )


def does_not_depend_on_the_batch(t: Trial) -> str:
    """An image scores the same alone, in company, and in another order."""
    whole = t.scores(t.world.id[:12]).double()
    alone = torch.cat([t.scores(image[None]) for image in t.world.id[:12]]).double()
    turned = t.scores(t.world.id[:12].flip(0)).double().flip(0)
    gap = max((whole - alone).abs().max().item(), (whole - turned).abs().max().item())
    spread = max(whole.std().item(), 1e-6)
    return "" if gap < 1e-3 * spread else f"an image's score changes by {gap:.2g} with the other images of its batch"


def leaves_its_input_alone(t: Trial) -> str:
    """score() does not write into what it was given."""
    batch = t.world.batch(t.world.id.clone(), ~Needs(0))
    before = [x.clone() for x in (batch.features, batch.embeddings, batch.activations, batch.pixels)]
    with torch.no_grad():
        t.method.score(batch.seen_by(t.method.needs), t.task, t.state)
    if not t.task.intact():
        return "score() changed in place what task.text() or task.logits() gave it"
    after = (batch.features, batch.embeddings, batch.activations, batch.pixels)
    return (
        ""
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        else "score() changed its input in place"
    )


def predicts_classes(t: Trial) -> str:
    """predict() returns None, or one class index per image."""
    batch = t.world.batch(t.world.id, t.method.needs | Needs.FEATURES)
    with torch.no_grad():
        predictions = t.method.predict(batch, t.task, t.state)
    if predictions is not None:
        check_predictions(predictions, batch.size, len(CLASSES))
    return ""


def tells_id_from_ood(t: Trial) -> str:
    """Higher means more in-distribution: ID images of the toy world score above OOD ones."""
    id, ood = (metrics.sort_scores(t.scores(x).double().numpy(), "toy world") for x in (t.world.id, t.world.ood))
    auroc = metrics.evaluate(id, ood).auroc
    if auroc >= LEAST_AUROC:
        return ""
    return f"AUROC in the toy world is {auroc:.2f}" + ("; is the sign right? higher = more ID" if auroc < 0.5 else "")


def has_a_state_that_travels(t: Trial) -> str:
    """What fit() returns can be pickled, and scores the same afterwards."""
    try:
        back = pickle.loads(pickle.dumps(t.state))
    except Exception as error:
        return f"the state cannot be pickled: {error}"
    copy = dataclasses.replace(t, state=back)
    return (
        ""
        if torch.equal(copy.scores(t.world.id), t.scores(t.world.id))
        else "the state scores differently after pickling"
    )


CHECKS: tuple[Callable[[Trial], str], ...] = (
    cites_its_paper,
    is_frozen,
    gives_one_finite_score_per_image,
    is_deterministic,
    does_not_depend_on_the_batch,
    leaves_its_input_alone,
    predicts_classes,
    tells_id_from_ood,
    has_a_state_that_travels,
)


def verdict(info: MethodInfo) -> list[tuple[str, str]]:
    """(check, what is wrong or "") for every check, in order; a method that cannot be made fails the first alone."""
    try:
        made = trial(info)
    except Exception as error:
        return [("can be made and fitted", _said(error))]
    found = [("can be made and fitted", "")]
    for check in CHECKS:
        try:
            problem = check(made)
        except Exception as error:
            problem = _said(error)
        found.append((check.__name__.replace("_", " "), problem))
    return found


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


@functools.cache
def _tokens() -> Float[Tensor, "n d"]:
    table = _tensor(np.random.default_rng(11).normal(size=(TOKENS, DEPTH)) / DEPTH**0.5)
    table[:, -1] = 0  # where all images lie apart from all texts, as they do in CLIP
    return table


def _apart() -> Float[Tensor, " d"]:
    return torch.nn.functional.one_hot(torch.tensor(DEPTH - 1), DEPTH).float()


def _token(text: str) -> int:
    """The classes are the first tokens; any other text falls on one of the rest."""
    if text in CLASSES:
        return CLASSES.index(text)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return len(CLASSES) + number % (TOKENS - 2 - len(CLASSES))
