"""A copy of a CLIP text tower with an optional offset on the token embeddings, as in CLIPN, and learned context."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oodbench.errors import UserError
from oodbench.method.encoder import Captioner, with_context


class TrainableTextTower(nn.Module):
    """CLIP's text tower under CLIP's own parameter names: token_embedding, positional_embedding, transformer, ...

    attn_mask    causal: tokens after the end token have no effect, so padding beyond the longest prompt is not read
    """

    attn_mask: Tensor

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.token_embedding = copy.deepcopy(text.token_embedding)
        self.positional_embedding = copy.deepcopy(text.positional_embedding)
        self.transformer = copy.deepcopy(text.transformer)
        self.ln_final = copy.deepcopy(text.ln_final)
        self.text_projection = copy.deepcopy(text.text_projection)
        self.register_buffer("attn_mask", text.attn_mask.clone(), persistent=False)
        self.requires_grad_(True)

    def forward(
        self,
        tokens: Int64[Tensor, "k n"],
        offset: Float[Tensor, "*k n width"] | None = None,
        context: Float[Tensor, "*k m width"] | None = None,
    ) -> Float[Tensor, "k d"]:
        """Return the embeddings of tokens, not normalised; implements TextTower.

        `offset` [n width] or [k n width] is added to token and position embeddings; `context` [m width] or [k m width]
        replaces the embeddings of the tokens after the start token.
        """
        ends = tokens.argmax(-1)  # the end token has the largest id
        length = int(ends.max()) + 1
        x = with_context(self.token_embedding(tokens[:, :length]), context) + self.positional_embedding[:length]
        if offset is not None:
            x = x + offset[..., :length, :]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = self.ln_final(x[torch.arange(len(tokens), device=tokens.device), ends])
        projected: Tensor = (
            self.text_projection(x)
            if isinstance(self.text_projection, nn.Linear)
            else (x if self.text_projection is None else x @ self.text_projection)
        )
        return projected


def text_model(model: Any, name: str) -> Any:
    """Return the part of an open_clip model with the text tower. Raise UserError if it is not built like CLIP's."""
    text = getattr(model, "text", model)
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
    causal = getattr(text, "attn_mask", None) is not None
    if pool != "argmax" or not causal or getattr(text, "cls_emb", None) is not None:
        raise UserError(
            f"the text tower of {name} is not built like CLIP's (causal, pooled at the end token); "
            "methods that train a text tower need one like CLIP's"
        )
    return text


class CoCaCaptioner(Captioner):
    """The text decoder of a CoCa, which reads the tokens of its image tower. Splitting the tower does not affect it.

    normalised   function from images in [0, 1] to normalised images
    precision    function that returns the autocast context of the model
    """

    def __init__(
        self, model: Any, normalised: Callable[[Tensor], Tensor], precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._model = model
        self._normalised = normalised
        self._precision = precision

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        return int(self._model.text_decoder.text_projection.shape[1])

    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b m width"]:
        """Return the image tower's tokens."""
        with self._precision():
            encoded: Tensor = self._model(self._normalised(images))["image_embs"].float()
        return encoded

    def next_token_logits(
        self, encoded: Float[Tensor, "b m width"], tokens: Int64[Tensor, "b n"]
    ) -> Float[Tensor, "b v"]:
        """Return the logits of the next token, as open_clip's generate() computes them."""
        longest = self._model.text.context_length
        if tokens.shape[1] > longest:
            raise UserError(f"a caption of {tokens.shape[1]} tokens is longer than the encoder's context of {longest}")
        with self._precision():  # image_latent does not change the logits
            out = self._model(None, tokens, image_latent=encoded, image_embs=encoded, output_labels=False)
        logits: Tensor = out["logits"][:, -1].float()
        return logits
