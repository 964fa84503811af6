"""CLIPN's "no" text tower, and the names of its tensors in the released checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oodbench.method import Encoder

TEXT = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
# A checkpoint may have been saved in half precision; towers that were trained differ by far more.
RELATIVE, ABSOLUTE = 2e-3, 1e-4


class NoText(nn.Module):
    """A copy of the text tower, and `offsets` learnable prompts [n width] that are added to its embeddings; 0 for none.

    An offset covers every position of the context, start, end and padding included.
    """

    def __init__(self, encoder: Encoder, offsets: int) -> None:
        super().__init__()
        self.tower = encoder.text_tower()
        if offsets:
            embedding: Tensor = self.tower.get_parameter("token_embedding.weight")
            context = encoder.tokenize(["a"]).shape[1]
            shape = (offsets, context, embedding.shape[1])
            self.prompt_no = nn.Parameter(torch.zeros(shape, device=embedding.device))

    def forward(self, tokens: Int64[Tensor, "b n"], which: Int64[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
        """Embed tokens, each with the offset of its index; the index after the last is the mean of all offsets."""
        if which is None:
            embedded: Tensor = self.tower(tokens)
            return embedded
        choices = torch.cat([self.prompt_no, self.prompt_no.mean(0, keepdim=True)])
        length = int(tokens.argmax(-1).max()) + 1  # what follows the longest prompt is not read
        drawn: Tensor = self.tower(tokens[:, :length], choices[:, :length][which])
        return drawn

    def evaluate(self, tokens: Int64[Tensor, "b n"], prompt: str) -> Float[Tensor, "b d"]:
        """Embed tokens as at test time: with the mean of the offsets, or average the embeddings with each offset."""
        if not hasattr(self, "prompt_no"):
            embedded: Tensor = self.tower(tokens)
            return embedded
        if prompt == "mean_offset":
            mean: Tensor = self.tower(tokens, self.prompt_no.mean(0))
            return mean
        return torch.stack([self.tower(tokens, offset) for offset in self.prompt_no]).mean(0)


def translate(
    state: Mapping[str, Tensor], frozen: Mapping[str, Tensor], *, learnable: bool, offsets: int
) -> dict[str, Tensor]:
    """Rename the tensors of a released checkpoint as NoText names them; raise ValueError if it does not fit.

    A checkpoint holds one model: CLIP's names for the frozen towers, the same with `_no` after the first part for the
    "no" tower, and prompt_no. No tensor may be missing or unexpected, and the frozen ones must equal the encoder's.
    """
    ours = {_name(key): value for key, value in state.items() if key.partition(".")[0].endswith("_no")}
    prompt = ours.pop("prompt_no", None)
    rest = {key: value for key, value in state.items() if not key.partition(".")[0].endswith("_no")}
    if not ours:
        raise ValueError('it has no "no" tower (keys such as transformer_no.*): it is not a checkpoint of CLIPN')
    if learnable and prompt is None:
        raise ValueError("it is of the hand-crafted variant (no prompt_no); use --set clipn.prompt=handcrafted")
    if not learnable and prompt is not None:
        raise ValueError("it is of the learnable variant (it has prompt_no); use --set clipn.prompt=learnable")
    texts = {key for key in frozen if key.startswith(TEXT)}
    _compare("the frozen towers", set(rest) - {"logit_scale"}, set(frozen) - {"logit_scale"})
    _compare('the "no" tower', {key.removeprefix("tower.") for key in ours}, texts)
    for key, value in rest.items():
        if key in frozen and not _close(value, frozen[key]):
            side = "image" if key.startswith("visual.") else "text"
            raise ValueError(f"its frozen {side} tower is not the encoder's: {key} differs; name the encoder it is for")
    for key, value in ours.items():
        if value.shape != frozen[key.removeprefix("tower.")].shape:
            raise ValueError(f"{key} has shape {list(value.shape)}, the encoder's text tower is of another size")
    if prompt is None:
        return ours
    context, width = frozen["positional_embedding"].shape
    if prompt.shape != (offsets, context, width):
        raise ValueError(f"prompt_no has shape {list(prompt.shape)}, not {[offsets, context, width]}")
    return ours | {"prompt_no": prompt}


def to_release(tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert translate(): return a state dict as the released code saves it, without `module.` prefixes."""
    out = dict(frozen)
    for key, value in tensors.items():
        first, dot, rest = key.removeprefix("tower.").partition(".")
        out[key if key == "prompt_no" else f"{first}_no{dot}{rest}"] = value
    return out


def _name(key: str) -> str:
    first, dot, rest = key.partition(".")
    return key if key == "prompt_no" else f"tower.{first.removesuffix('_no')}{dot}{rest}"


def _compare(what: str, found: set[str], expected: set[str]) -> None:
    lacking, more = sorted(expected - found), sorted(found - expected)
    if lacking or more:
        parts = [f"{what} lack {lacking[0]} and {len(lacking) - 1} more"] if lacking else []
        parts += [f"{what} have {more[0]} and {len(more) - 1} more that the encoder does not have"] if more else []
        raise ValueError("; ".join(parts) + "; name the encoder it was trained for")


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), RELATIVE, ABSOLUTE)
