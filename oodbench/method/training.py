"""The inputs and outputs of the training of a method: optimiser settings, image-caption pairs, weights."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oodbench.errors import Undeclared
from oodbench.method.encoder import Encoder

Settings = TypeVar("Settings")


def _with_old_keyword(cls: type[Settings]) -> type[Settings]:
    """Let the constructor take `no_decay` by its old name, `bare`, with a DeprecationWarning."""
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **settings: Any) -> None:
        if "bare" in settings:  # dataclasses.replace(optimiser, bare=...) passes both; the one that was written counts
            warnings.warn("Optimiser(bare=...) is now Optimiser(no_decay=...)", DeprecationWarning, stacklevel=2)
            settings["no_decay"] = settings.pop("bare")
        construct(self, *args, **settings)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_with_old_keyword
@dataclass(frozen=True)
class Optimiser:
    """Settings of AdamW or SGD with a warm-up and cosine decay to 0: a method's released recipe.

    Arguments:
        lr            peak learning rate
        betas         decay rates of AdamW's first and second moment
        eps           AdamW's epsilon
        weight_decay  AdamW's weight decay, or that of torch.optim.SGD, which adds it to the gradient
        warmup        steps of warm-up
        epochs        passes over the training pairs
        batch         pairs per step, over all processes
        cosine        whether the learning rate decays to 0 along a cosine; if not it stays at `lr` after the warm-up
        no_decay      parts of parameter names: parameters whose name has one of them are not decayed, nor are those
                      with fewer than two axes
        epsilon_hat   where `eps` is added: to the root of the bias-corrected second moment, as torch does (False), or
                      before the correction, as transformers' AdamW did (True; Kingma and Ba call it epsilon hat). True
                      equals False with eps / sqrt(1 - betas[1] ** t) at step t: 32 times eps at step 1 for
                      betas[1] = 0.999
        kind          "adamw" or "sgd", which reads neither betas nor eps
        momentum      of SGD
        warmup_lr     learning rate throughout the warm-up; None rises linearly to `lr`
        warmup_epochs  epochs of warm-up, instead of `warmup` steps
        per_epoch     whether the cosine changes once an epoch, as in Dassl (CoOp, LoCoOp): the e-th epoch after the
                      warm-up, from 0, has lr * (1 + cos(pi * e / E)) / 2, where E is the number of all epochs
    Raises:
        ValueError  for another kind, a momentum without SGD, or a warm-up in steps and epochs
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: int = 0
    epochs: int = 10
    batch: int = 2048
    cosine: bool = True
    no_decay: tuple[str, ...] = ("bn", "ln", "bias", "logit_scale")
    epsilon_hat: bool = False
    kind: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0
    warmup_lr: float | None = None
    warmup_epochs: int = 0
    per_epoch: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "sgd"):
            raise ValueError(f'kind is "adamw" or "sgd", not {self.kind!r}')
        if self.kind == "adamw" and self.momentum:
            raise ValueError(f'momentum={self.momentum} is for SGD: write kind="sgd"; AdamW has betas')
        if self.warmup and self.warmup_epochs:
            raise ValueError(f"warmup={self.warmup} steps and warmup_epochs={self.warmup_epochs}: give one of them")

    @property
    def bare(self) -> tuple[str, ...]:
        """The old name of `no_decay`."""
        warnings.warn("Optimiser.bare is now Optimiser.no_decay", DeprecationWarning, stacklevel=2)
        return self.no_decay

    def as_recorded(self) -> dict[str, Any]:
        """Return the settings under the names that weight files and checkpoints record, where `no_decay` is `bare`.

        Fields that were added later are left out if they have their defaults, as in older files.
        """
        usual = Optimiser()
        later = ("kind", "momentum", "warmup_lr", "warmup_epochs", "per_epoch")
        settings = dataclasses.asdict(self).items()
        return {
            "bare" if name == "no_decay" else name: value
            for name, value in settings
            if name not in later or value != getattr(usual, name)
        }


@dataclass(frozen=True)
class Pairs:
    """Image-caption pairs of one training step, or labelled images if a FewShotMethod is trained.

    Arguments:
        embeddings  [b d] image embeddings, not normalised
        captions    b captions; empty for labelled images
        positions   [b] positions in the step's global batch; draws depend on them, never on chunks or processes
        step        step of the optimiser, from 0
        seed        seed of the training
        size        pairs in the global batch
    """

    embeddings: Float[Tensor, "b d"]
    captions: tuple[str, ...]
    positions: Int64[Tensor, " b"]
    step: int
    seed: int
    size: int
    _text: Float[Tensor, "b d"] | None = None
    _labels: Int64[Tensor, " b"] | None = None
    _patches: Float[Tensor, "b n d"] | None = None
    _patch_activations: Float[Tensor, "b n w"] | None = None

    @property
    def labels(self) -> Int64[Tensor, " b"]:
        """[b] class indices of labelled images."""
        if self._labels is None:
            raise Undeclared("pairs.labels was read, but image-caption pairs have none: subclass FewShotMethod")
        return self._labels

    @property
    def patches(self) -> Float[Tensor, "b n d"]:
        """[b n d] features of n image patches in the joint space, of unit length, float32. Needs.PATCHES."""
        return self._of_patches(self._patches, "patches")

    @property
    def patch_activations(self) -> Float[Tensor, "b n w"]:
        """[b n w] features of n image patches before the last linear map, float32. Needs.PATCH_ACTIVATIONS."""
        return self._of_patches(self._patch_activations, "patch_activations")

    def _of_patches(self, value: Tensor | None, name: str) -> Tensor:
        if value is None:
            need = f"Needs.{name.upper()}"
            raise Undeclared(f"pairs.{name} was read but not declared: add {need} to a FewShotMethod's `needs`")
        return value

    @property
    def features(self) -> Float[Tensor, "b d"]:
        """Image embeddings of unit length."""
        return nn.functional.normalize(self.embeddings, dim=-1)

    def text(self, encoder: Encoder) -> Float[Tensor, "b d"]:
        """Return the frozen text tower's embeddings of the captions; stored ones are read if there are any.

        Arguments:
            encoder  the frozen CLIP
        Returns:
            [b d] text embeddings of unit length.
        """
        if self._text is not None:
            return self._text
        return nn.functional.normalize(encoder.text(self.captions), dim=-1)

    def draw(self, below: int, stream: int = 0) -> Int64[Tensor, " b"]:
        """Draw one random integer for each pair.

        Arguments:
            below   draws are 0 to below - 1, uniformly
            stream  number of the draw, where a step needs several independent ones
        Returns:
            [b] integers, which depend on seed, step, stream and position alone.
        """
        import numpy as np

        drawn = np.random.default_rng((self.seed, self.step, stream)).integers(below, size=self.size)
        return torch.from_numpy(drawn)[self.positions.cpu()].to(self.embeddings.device)


@dataclass(frozen=True)
class Weights:
    """Trained weights of a method.

    Arguments:
        tensors  tensors by name
        recipe   how they were trained, as the header of their file records it
    """

    tensors: Mapping[str, Tensor]
    recipe: Mapping[str, object]

    def load(self, module: nn.Module) -> nn.Module:
        """Load the weights into a module, strictly.

        Where there is a tensor `x.rows`, the tensor `x` holds only those rows; the other rows are the module's own,
        multiplied by recipe["decay"].

        Arguments:
            module  the module to fill in place
        Returns:
            The same module, frozen and in evaluation mode.
        Raises:
            ValueError  if names or shapes are not those of the module
        """
        own, state = module.state_dict(), dict(self.tensors)
        for key in [key for key in state if key.endswith(".rows")]:
            rows, name = state.pop(key).long(), key.removesuffix(".rows")
            filled = own[name] * float(str(self.recipe.get("decay", 1)))
            filled[rows] = state[name].to(filled)
            state[name] = filled
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit: {error}") from error
        return module.eval().requires_grad_(False)
