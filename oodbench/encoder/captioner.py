"""Captions that open_clip's CoCa writes, one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from oodbench.errors import UserError


class CoCaCaptioner:
    """A CoCa's text decoder over the tokens of its image tower; that the tower's projection is cut off changes neither.

    normalised   from images in [0, 1] to what the tower takes
    precision    the context in which it computes
    """

    def __init__(
        self, model: Any, normalised: Callable[[Tensor], Tensor], precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._model = model
        self._normalised = normalised
        self._precision = precision

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._model.text_decoder.text_projection.shape[1])

    def look(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b m width"]:
        """The image tower's tokens."""
        with self._precision():
            looked: Tensor = self._model(self._normalised(images))["image_embs"].float()
        return looked

    def follow(self, looked: Float[Tensor, "b m width"], tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Logits of the token that follows, as open_clip's own generate() has them."""
        longest = self._model.text.context_length
        if tokens.shape[1] > longest:
            raise UserError(f"a caption of {tokens.shape[1]} tokens is longer than the encoder's context of {longest}")
        with self._precision():  # the latent is read by nothing that the logits depend on
            out = self._model(None, tokens, image_latent=looked, image_embs=looked, output_labels=False)
        logits: Tensor = out["logits"][:, -1].float()
        return logits
