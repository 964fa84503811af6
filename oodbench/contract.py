"""The contract that every method keeps, checked in a toy world: what `oodbench check FILE` runs, and our own tests."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oodbench import metrics, prompts, registry
from oodbench.errors import UserError
from oodbench.method import Batch, Method, Needs, Sources, Task, check_predictions
from oodbench.registry import MethodInfo

CLASSES = ("anchor", "bell", "cactus", "drum", "eagle", "fern", "globe", "harp")
WIDTH, DEPTH, SIDE = 24, 16, 8
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
        return torch.stack([_word(self._subject(p)) + 0.1 * _word(p) for p in prompts])

    def images(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 height width"]:
        """The smallest change of a grey image that embeds as asked."""
        back: Tensor = torch.linalg.pinv(self._to_width @ self._to_depth)
        return 0.5 + (embeddings @ back).view(-1, 3, SIDE, SIDE)

    @staticmethod
    def _subject(prompt: str) -> str:
        return next((name for name in CLASSES if name in prompt), prompt)


class World:
    """ID images of eight classes, OOD images of none, and the task that goes with them."""

    def __init__(self, seed: int = 0) -> None:
        self.encoder = ToyEncoder()
        rng = np.random.default_rng(seed)
        centres = torch.nn.functional.normalize(self.encoder.text(CLASSES), dim=-1)
        labels = torch.arange(96) % len(CLASSES)
        spread = _tensor(rng.normal(size=(192, DEPTH)) * 0.15)
        self.id = self.encoder.images(0.3 * (centres[labels] + spread[:96]))
        self.train = self.encoder.images(0.3 * (centres[labels] + spread[96:]))
        self.ood = self.encoder.images(
            0.3 * torch.nn.functional.normalize(_tensor(rng.normal(size=(96, DEPTH))), dim=-1)
        )

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
        method = registry.make(info, {})
    except TypeError as error:
        raise UserError(f"it cannot be constructed without arguments: {error}") from error
    world = World()
    task = world.task().seen_by(method.needs)
    torch.manual_seed(0)
    with torch.no_grad():
        return Trial(info, method, world, task, method.fit(task))


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
def _word(text: str) -> Float[Tensor, " d"]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return _tensor(np.random.default_rng(seed).normal(size=DEPTH))
