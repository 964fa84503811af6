"""Task: all that is known before a test image."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from oodbench.errors import Undeclared
from oodbench.method.batch import Batch, Needs
from oodbench.method.checksum import Lent
from oodbench.method.encoder import Encoder

if TYPE_CHECKING:
    from oodbench.method.trained import Weights

BLOCK = 1 << 16  # logits at once: 256 KB


def scaled_logsumexp(cosines: Float[Tensor, "b k"], factor: float, top: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """logsumexp(factor * cosines), digit for digit; `top` is their largest. Summed in float64.

    A few rows at a time, so that they stay in the processor's cache.
    """
    # Fewer rows than threads, and torch would divide a row among them: another order of summation.
    rows = max(2 * torch.get_num_threads(), BLOCK // max(cosines.shape[1], 1))
    count = -(-len(cosines) // rows) if cosines.device.type == "cpu" else 1
    sums = []
    parts = (torch.tensor_split(one, max(count, 1)) for one in (cosines, top[:, None]))
    for part, highest in zip(*parts, strict=True):
        # In place on what is new here, which gradients allow: none of these needs what it was given.
        below = part - highest if factor == 1 else (part * factor).sub_(highest)
        sums.append(below.exp_().sum(-1, dtype=torch.float64))
    return top.double() + torch.cat(sums).log()


def first_largest(cosines: Float[Tensor, "b k"]) -> Int64[Tensor, " b"]:
    """argmax(-1), the first of equals."""
    if cosines.device.type != "cpu":
        return cosines.argmax(-1)
    return torch.from_numpy(cosines.detach().numpy().argmax(-1))  # ten times as fast as torch's there


@dataclass(frozen=True)
class Sources:
    """Where a task's answers come from; the harness fills them in."""

    text: Callable[[str], Tensor]  # templates -> class vectors
    words: Callable[[tuple[str, ...]], Tensor]  # prompts -> vectors
    encoder: Callable[[], Encoder]
    calibration: Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class MethodResources:
    """What one method alone is given: its trained weights, and the store for what it makes of them."""

    weights: Callable[[], Weights]
    keep: Callable[[Mapping[str, object], Callable[[], Tensor]], Tensor]


class Task:
    """All that is known before a test image: class names, text, encoder, calibration images. Holds no OOD sample.

    classes      the ID class names, in label order (duplicates are kept)
    scale        the encoder's own logit scale
    seed         the run's seed, for methods that draw
    """

    def __init__(self, classes: Sequence[str], scale: float, sources: Sources, seed: int = 0) -> None:
        self.classes = tuple(classes)
        self.scale = scale
        self.seed = seed
        self._sources = sources
        self._needs = ~Needs(0)
        self._own: MethodResources | None = None
        self._banks: dict[str, Tensor] = {}  # templates -> class vectors
        self._last: dict[str, tuple[Tensor, Tensor]] = {}  # templates -> features, their cosines
        self._passes: dict[tuple[str, ...], Tensor] = {}  # what a pass over the last cosines gave, templates first
        self._lent, self._lent_last = Lent(copies=True), Lent()  # of class vectors and cosines, what methods were given
        self._one = threading.RLock()  # the encoder is asked by one thread at a time, and once

    def seen_by(self, needs: Needs, own: MethodResources | None = None) -> Task:
        """The same task for a method with other needs; what is remembered is shared."""
        view = copy.copy(self)
        view._needs = needs
        view._own = own
        return view

    def apart(self) -> Task:
        """The same task for another thread: text is shared, what is remembered of the last batch is its own."""
        view = copy.copy(self)
        view._last, view._passes, view._lent_last = {}, {}, Lent()
        return view

    def intact(self) -> bool:
        """Whether no method wrote into what it was given; if one did, class vectors are put right again."""
        sound = self._lent.intact() and self._lent_last.intact()
        if not sound:
            self._last.clear()
            self._passes.clear()
            self._lent_last.forget()
            self._lent.restore()
        return sound

    @property
    def encoder(self) -> Encoder:
        """The model itself, loaded when first asked for. Declare Needs.ENCODER to run it in score()."""
        with self._one:
            encoder = self._sources.encoder()
            self._lent.out(encoder.std)  # what it normalises by
            return encoder

    @property
    def weights(self) -> Weights:
        """What was trained for this encoder: --weights METHOD=FILE, or what ships for the embedded one."""
        if Needs.WEIGHTS not in self._needs or self._own is None:
            raise Undeclared("trained weights were read but not declared: add Needs.WEIGHTS to the method's `needs`")
        return self._own.weights()

    def prepare(self, templates: str) -> None:
        """Have class vectors encoded that will be asked for."""
        self._bank(templates)

    def keep(self, make: Callable[[], Tensor], **depends: object) -> Tensor:
        """What make() gives, made once and kept in the store.

        `depends` names the hyper-parameters it depends on. Encoder, precision, class names, weights, seed, calibration
        images, the files that hyper-parameters name and the method's source always count.
        """
        return self._own.keep(depends, make) if self._own else make()

    def calibration(self) -> Iterable[Batch]:
        """ID training images of the split that the protocol names, for fit()."""
        if Needs.CALIBRATION not in self._needs:
            raise Undeclared(
                "calibration images were read but not declared: add Needs.CALIBRATION to the method's `needs`"
            )
        return (batch.seen_by(self._needs) for batch in self._sources.calibration())

    def words(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """One unit vector per prompt, of any number of prompts; encoded once per encoder and kept in the store."""
        with self._one:
            return self._sources.words(tuple(prompts))

    def text(self, templates: str) -> Float[Tensor, "k d"]:
        """One unit vector per class: prompts normalised, averaged over the templates, normalised again.

        `templates` is a prompt set's name, a file with one template a line, or a single template with `{}` in it.
        """
        with self._one:
            return self._lent.out(self._bank(templates))

    def logits(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float[Tensor, "b k"]:
        """`scale` times the cosine of every image with every class; scale None is the encoder's own (mostly 100).

        The cosines of the last batch are remembered, so that methods with the same prompts share one product. Do not
        change the result in place.
        """
        cosines = self._cosines(features, templates)
        factor = self.scale if scale is None else scale
        return self._lent_last.out(cosines) if factor == 1 else cosines * factor

    def largest(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float[Tensor, " b"]:
        """logits(...).amax(-1), in a pass over the cosines that all methods share."""
        factor = self.scale if scale is None else scale
        if factor <= 0:
            return self.logits(features, templates, scale).amax(-1)
        where = self.best(features, templates)[:, None]
        return self._cosines(features, templates).gather(-1, where).squeeze(-1) * factor  # rounds as the logits do

    def logsumexp(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float64[Tensor, " b"]:
        """logsumexp(logits(...)), in a pass over the cosines that all methods with the same prompts and scale share."""
        factor = self.scale if scale is None else scale
        top = self.largest(features, templates, scale)
        what = (templates, "logsumexp", repr(factor))
        return self._once(features, what, lambda cosines: scaled_logsumexp(cosines, factor, top))

    def best(self, features: Float[Tensor, "b d"], templates: str) -> Int64[Tensor, " b"]:
        """The nearest class of every image, the first of several as near; shared as well."""
        return self._once(features, (templates, "best"), first_largest)

    def _once(self, features: Tensor, what: tuple[str, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """What make() gives of the cosines with the templates what[0], made once for all methods; each gets its own."""
        cosines = self._cosines(features, what[0])
        if what not in self._passes:
            self._passes[what] = make(cosines)
        return self._passes[what].clone()

    def _bank(self, templates: str) -> Tensor:
        """Class vectors; what only this file reads is not looked at again after every batch."""
        with self._one:
            if templates not in self._banks:
                self._banks[templates] = self._sources.text(templates)
            return self._banks[templates]

    def _cosines(self, features: Tensor, templates: str) -> Tensor:
        last = self._last.get(templates)
        if last is None or last[0] is not features:
            if last is not None:
                self._lent_last.forget(last[1])
            del last  # its memory first, which is still in the processor's cache
            self._last.pop(templates, None)
            for what in [what for what in self._passes if what[0] == templates]:
                del self._passes[what]
            last = self._last[templates] = (features, features @ self._bank(templates).T)
        return last[1]
