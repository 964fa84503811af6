"""The CLIP model as a method sees it: image and text towers, tokens, and the caption decoder of a CoCa."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class TextTower(Protocol):
    """A trainable copy of a text tower: an nn.Module with CLIP's own parameter names."""

    def __call__(
        self,
        tokens: Int64[Tensor, "k n"],
        offset: Float[Tensor, "*k n width"] | None = None,
        context: Float[Tensor, "*k m width"] | None = None,
    ) -> Float[Tensor, "k d"]:
        """Embed tokens.

        Arguments:
            tokens   [k n] token ids, padded
            offset   [n width] or [k n width], added to the token and position embeddings; None adds nothing
            context  [m width] or [k m width], which replaces the embeddings of tokens 1 to m, after the start token;
                     positions are added to it as to tokens. None replaces nothing
        Returns:
            [k d] embeddings, not normalised.
        """
        ...


def with_context(
    embedded: Float[Tensor, "k n width"], context: Float[Tensor, "*k m width"] | None
) -> Float[Tensor, "k n width"]:
    """Return token embeddings in which context replaces those of tokens 1 to m, as text towers do.

    Arguments:
        embedded  [k n width] token embeddings, without positions
        context   [m width] for all prompts, or [k m width]; None changes nothing
    Returns:
        [k n width]
    Raises:
        ValueError  if the prompts have no m tokens after the start token
    """
    if context is None:
        return embedded
    k, n, width = embedded.shape
    after = context.shape[-2] + 1
    if after >= n:
        raise ValueError(f"{after - 1} context vectors do not fit into prompts of {n} tokens")
    return torch.cat([embedded[:, :1], context.to(embedded).expand(k, -1, width), embedded[:, after:]], 1)


@runtime_checkable
class Captioner(Protocol):
    """A language model that generates captions of images token by token.

    A subclass that defines the old names `look` and `follow` gets `encode` and `next_token_logits` from them.
    """

    @property
    def vocabulary(self) -> int:
        """Number of tokens; their ids are 0 to vocabulary - 1."""
        ...

    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b m width"]:
        """Encode images for next_token_logits(); call it once for each image.

        Arguments:
            images  [b 3 height width] pixels in [0, 1]
        Returns:
            [b m width] image tokens.
        """
        ...

    def next_token_logits(
        self, encoded: Float[Tensor, "b m width"], tokens: Int64[Tensor, "b n"]
    ) -> Float[Tensor, "b v"]:
        """Predict the token that follows.

        Arguments:
            encoded  [b m width] image tokens from encode()
            tokens   [b n] the caption so far, with its start token
        Returns:
            [b v] logits over the vocabulary.
        Raises:
            UserError  if the context of the model holds fewer than n tokens
        """
        ...

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a class that defines a method under its old or its new name have the other name as well."""
        super().__init_subclass__(**options)
        defined = dict(vars(cls))
        for old, new in (("look", "encode"), ("follow", "next_token_logits")):
            if old in defined and new not in defined:
                warnings.warn(f"Captioner.{old} is now {new}: rename it", DeprecationWarning, stacklevel=2)
                setattr(cls, new, defined[old])
            elif new in defined and old not in defined:
                setattr(cls, old, _old_name(defined[new], f"Captioner.{old} is now {new}"))


def _old_name(method: Callable[..., Tensor], message: str) -> Callable[..., Tensor]:
    """Return a method that calls another one, after a DeprecationWarning."""

    def renamed(self: Any, *arguments: Any, **named: Any) -> Tensor:
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return method(self, *arguments, **named)

    return renamed


@runtime_checkable
class Encoder(Protocol):
    """A frozen CLIP, differentiable with respect to its input. Embeddings are not normalised.

    Arguments:
        scale  exp(logit_scale): 100 for most CLIPs
        size   (height, width) of the images that the model reads, in pixels
        std    [3 1 1] standard deviation by which pixels are normalised, for steps in normalised units
    """

    scale: float
    size: tuple[int, int]
    std: Tensor

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        """Embed images.

        Arguments:
            images  [b 3 height width] pixels in [0, 1]; the model's own mean and std are applied here
        Returns:
            [b d] image embeddings, not normalised.
        """
        ...

    def project(self, activations: Float[Tensor, "*b w"]) -> Float[Tensor, "*b d"]:
        """Apply the last linear map of the image tower, for example to stored activations.

        Arguments:
            activations  [b w] penultimate activations, see Batch.activations, or [b n w] those of patches
        Returns:
            [b d] image embeddings, or [b n d] features of patches; not normalised.
        """
        ...

    def patches(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Compute features of image patches in the joint space: the image tower without its pooling.

        For a VisionTransformer: with x the input of the last block without its class token, the values of its attention
        without mixing, y = x + out_proj(value_proj(ln_1(x))), then ln_post(y + mlp(ln_2(y))) and the last linear map
        (with LayerScale where the block has it). For a ModifiedResNet: c_proj(v_proj(.)) of the attention pool at every
        cell, without positions. Needs.PATCHES reads them without another pass.

        Arguments:
            images  [b 3 height width] pixels in [0, 1]
        Returns:
            [b n d] features of n patches, row by row, not normalised.
        Raises:
            UserError  for another image tower: a CoCa's, or timm's
        """
        ...

    def patch_activations(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n w"]:
        """Compute the input of the image tower's last linear map for every patch, from which project() gives patches().

        For a VisionTransformer: ln_post(y + mlp(ln_2(y))), see patches(). For a ModifiedResNet: v_proj(.) of the
        attention pool. Needs.PATCH_ACTIVATIONS reads them without another pass.

        Arguments:
            images  [b 3 height width] pixels in [0, 1]
        Returns:
            [b n w] features of n patches, row by row, not normalised.
        Raises:
            UserError  for another image tower: a CoCa's, or timm's
        """
        ...

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Embed k prompts with the text tower.

        Returns:
            [k d] text embeddings, not normalised.
        """
        ...

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Tokenize k prompts.

        Returns:
            [k n] token ids as the text tower reads them, padded to its context.
        """
        ...

    def detokenize(self, token: int) -> str:
        """Return the text of one token."""
        ...

    def text_tower(self) -> nn.Module:
        """Return a trainable copy of the text tower.

        Returns:
            A module that is called as a TextTower.
        Raises:
            UserError  if the text tower cannot take offsets and context
        """
        ...

    def captioner(self) -> Captioner:
        """Return the model's caption decoder, see Needs.CAPTIONS.

        Raises:
            UserError  if the model is not a CoCa, and so has none
        """
        ...
