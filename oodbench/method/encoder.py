"""What a method sees of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn


class TextTower(Protocol):
    """A trainable copy of a text tower; an nn.Module with CLIP's own parameter names."""

    def __call__(
        self, tokens: Int64[Tensor, "k n"], offset: Float[Tensor, "*k n width"] | None = None
    ) -> Float[Tensor, "k d"]:
        """Embed tokens, not normalised; `offset` is added to the token and position embeddings."""
        ...


@runtime_checkable
class Captioner(Protocol):
    """A language model that writes captions of images."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: 0 to vocabulary - 1."""
        ...

    def look(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b m width"]:
        """What captions of images in [0, 1] are written from; once per image."""
        ...

    def follow(self, looked: Float[Tensor, "b m width"], tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Logits of the token that follows. UserError for more tokens than the context holds."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A frozen CLIP, differentiable in its input. Embeddings are as the towers give them, not normalised."""

    scale: float  # exp(logit_scale), 100 for most CLIPs
    size: tuple[int, int]  # height and width of the images that it reads
    std: Tensor  # [3 1 1]: what normalised pixels were divided by, for steps in normalised units

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        """Embed images in [0, 1]; normalises them by the model's own mean and std."""
        ...

    def project(self, activations: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """The image tower's last linear map, as stored activations need it."""
        ...

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Embed prompts with the text tower."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        """Token ids as the text tower reads them, padded to its context."""
        ...

    def detokenize(self, token: int) -> str:
        """The text of one token."""
        ...

    def text_tower(self) -> nn.Module:
        """A trainable copy of the text tower, see TextTower. UserError for a tower without offsets to add."""
        ...

    def captioner(self) -> Captioner:
        """What writes captions, see Needs.CAPTIONS. UserError for an encoder that cannot."""
        ...
