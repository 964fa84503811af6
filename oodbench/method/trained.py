"""TrainedMethod: a method with a part that is trained once per encoder, on images and captions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oodbench.method.encoder import Encoder
from oodbench.method.method import Method

State = TypeVar("State")


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up and cosine to 0, and how long it runs: a method's released recipe.

    `bare` parameters, those with fewer than two axes or with one of these parts in their name, are not decayed.
    `epsilon_hat` says where `eps` is added: to the root of the second moment after its bias is corrected, as torch
    does, or before, as transformers' AdamW did (Kingma and Ba call it epsilon hat). At step t the second is the first
    with eps / sqrt(1 - betas[1] ** t): 32 times eps at the first step of betas[1] = 0.999.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: int = 0  # steps
    epochs: int = 10
    batch: int = 2048  # pairs in one step, over all processes
    cosine: bool = True
    bare: tuple[str, ...] = ("bn", "ln", "bias", "logit_scale")
    epsilon_hat: bool = False


@dataclass(frozen=True)
class Pairs:
    """Some of a step's image-caption pairs.

    embeddings   [b d] of the images, as the encoder gave them
    captions     b of them
    positions    [b] places in the step's global batch: what is drawn depends on them, never on chunks or processes
    step         the optimiser's step, from 0
    seed         the training's seed
    size         pairs in the global batch
    """

    embeddings: Float[Tensor, "b d"]
    captions: tuple[str, ...]
    positions: Int64[Tensor, " b"]
    step: int
    seed: int
    size: int
    _text: Float[Tensor, "b d"] | None = None

    @property
    def features(self) -> Float[Tensor, "b d"]:
        """Image embeddings of unit length."""
        return nn.functional.normalize(self.embeddings, dim=-1)

    def text(self, encoder: Encoder) -> Float[Tensor, "b d"]:
        """Captions through the frozen text tower, of unit length; stored ones where the corpus has them."""
        if self._text is not None:
            return self._text
        return nn.functional.normalize(encoder.text(self.captions), dim=-1)

    def draw(self, below: int, stream: int = 0) -> Int64[Tensor, " b"]:
        """One number in 0..below-1 per pair; `stream` tells draws of one step apart."""
        whole = np.random.default_rng((self.seed, self.step, stream)).integers(below, size=self.size)
        return torch.from_numpy(whole)[self.positions.cpu()].to(self.embeddings.device)


@dataclass(frozen=True)
class Weights:
    """What training gave: tensors by name, and the recipe of the file's header."""

    tensors: Mapping[str, Tensor]
    recipe: Mapping[str, object]

    def load(self, module: nn.Module) -> nn.Module:
        """Fill a module strictly; it comes back frozen and in evaluation mode.

        A tensor `x` beside an `x.rows` holds only those rows; the others are the module's own, times recipe["decay"].
        ValueError when names or shapes are not the module's.
        """
        own, state = module.state_dict(), dict(self.tensors)
        for name in [name for name in state if name.endswith(".rows")]:
            rows, whole = state.pop(name).long(), name.removesuffix(".rows")
            filled = own[whole] * float(str(self.recipe.get("decay", 1)))
            filled[rows] = state[whole].to(filled)
            state[whole] = filled
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit: {error}") from error
        return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class TrainedMethod(Method[State]):
    """A method with a trainable part. Declare Needs.WEIGHTS; fit() finds what was trained in task.weights.

    The loop (oodbench/training) calls inputs() once per chunk of a step, embed() with and without gradient, and loss()
    once for the whole global batch, whatever the chunks and processes: the loss may compare every pair with every
    other, and its gradient is that of the whole batch.
    """

    optimiser: ClassVar[Optimiser] = Optimiser()
    trained: ClassVar[tuple[str, ...]] = ()  # the hyper-parameters that training fixes

    def optimisation(self) -> Optimiser:
        """The optimiser for these hyper-parameters: the released one, unless a variant needs another."""
        return self.optimiser

    @abstractmethod
    def module(self, encoder: Encoder) -> nn.Module:
        """The trainable part before the first step; its state_dict is what is saved. Draw from torch's generator."""

    @abstractmethod
    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """All that embed() reads, without gradient: [b ...] tensors on the encoder's device."""

    @abstractmethod
    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What loss() reads of each pair: [b ...] tensors, small enough to be kept for the whole global batch.

        Called under torch.no_grad() first, then with gradient: it must give the same both times, draws included.
        """

    @abstractmethod
    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalar terms of the loss over the whole global batch, weighted: the loss is their sum."""

    def translate(self, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A released checkpoint's tensors under the names of module().state_dict().

        `state` is the checkpoint without `module.` prefixes, `frozen` the encoder's own. ValueError says why it does
        not fit; by default no release is known.
        """
        raise ValueError("only weights written by `oodbench train` are known, not this checkpoint")

    def release(self, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of translate(): a state dict as the released code saves it."""
        raise ValueError("the method has no released layout")
