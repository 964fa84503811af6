"""What ZOC's caption decoders have in common, and the small one: a causal transformer without extra dependencies."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ._candidates import best as best_of
from ._token_loss import token_loss

PADDING = -1  # after a caption's end token
_FASTER = 10  # the bias moves as much faster than the rest, so that words no caption has fall out in a few steps


@dataclass(frozen=True)
class Shape:
    """Size of a decoder. `length` is the longest caption in tokens, start and end among them."""

    width: int
    layers: int
    heads: int
    length: int


@dataclass(frozen=True)
class Voice:
    """The tokens that a decoder may say: logits = hidden @ matrix.T + bias.

    ids      [m] tokens
    matrix   [m w]
    bias     [m]
    """

    ids: Int64[Tensor, " m"]
    matrix: Float[Tensor, "m w"]
    bias: Float[Tensor, " m"]

    def only(self, which: Bool[Tensor, " m"]) -> Voice:
        """Some of the tokens."""
        return Voice(self.ids[which], self.matrix[which], self.bias[which])


class Decoder(nn.Module):
    """A language model that continues captions of one image embedding."""

    start: int

    @abstractmethod
    def hidden(
        self,
        embeddings: Float[Tensor, "b d"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, " n"],
        memory: list[Any] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """The last layer at every token, which sees those before it.

        With a memory, `tokens` follow the tokens of earlier calls with the same list, which is changed in place.
        """

    @abstractmethod
    def losses(self, hidden: Float[Tensor, "m w"], targets: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Negative log-likelihood of each target among all tokens of the vocabulary."""

    @abstractmethod
    def voice(self) -> Voice:
        """The tokens that may be said."""


def surprise(decoder: Decoder, embeddings: Float[Tensor, "b d"], tokens: Int64[Tensor, "b n"]) -> dict[str, Tensor]:
    """Each caption's summed negative log-likelihood `nll`, in nats, and its number of predicted tokens `count`.

    Padding stands behind what is predicted, so its length changes nothing.
    """
    targets = tokens[:, 1:]
    real = targets != PADDING
    positions = torch.arange(targets.shape[1], device=tokens.device)
    hidden = decoder.hidden(embeddings, tokens[:, :-1].clamp(min=0), positions)
    losses = decoder.losses(hidden[real], targets[real])
    rows = real.nonzero()[:, 0]
    nll = torch.zeros(len(tokens), device=losses.device).index_add(0, rows, losses)
    return {"nll": nll, "count": real.sum(-1).float()}


@dataclass(frozen=True)
class Walk:
    """How captions are continued: `steps` tokens, each the most probable one; the k best of each step are kept."""

    steps: int
    k: int
    one_position: bool = False  # every token at position 0


def best(decoder: Decoder, voice: Voice, embeddings: Float[Tensor, "b d"], walk: Walk) -> Int64[Tensor, "b c"]:
    """The k best tokens of every step, as places in voice.ids: c = steps * k. The end token does not end it."""
    memory: list[Any] = []

    def following(tokens: Tensor) -> Tensor:
        position = torch.tensor([0 if walk.one_position else tokens.shape[1] - 1], device=tokens.device)
        hidden = decoder.hidden(embeddings, tokens[:, -1:], position, memory)[:, -1]
        return hidden @ voice.matrix.T + voice.bias

    start = torch.full((len(embeddings), 1), decoder.start, device=embeddings.device)
    return best_of(following, voice.ids, start, walk.steps, walk.k)


class SmallDecoder(Decoder):
    """A causal transformer over CLIP's own byte pairs; the image is added to every token.

    Adding is all that attention over a sequence of one item can do. Tokens are read and predicted through CLIP's frozen
    token table and two maps, so that a file holds neither the table nor a row per word, but two numbers.

    table   [v t] CLIP's token embeddings, scaled to a root mean square of 1; not saved
    seen    [v] above 0 for tokens that captions have. It is a parameter, moved by a gradient that changes no loss,
            because parameters are what every process, chunk and checkpoint of a training agrees on
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "v t"], embedding: int, start: int, shape: Shape) -> None:
        super().__init__()
        self.start = start
        table = table.detach().float()
        self.register_buffer("table", table / table.square().mean().sqrt(), persistent=False)
        vocabulary, width = table.shape
        self.image = nn.Sequential(nn.LayerNorm(embedding), nn.Linear(embedding, shape.width))
        self.reads = nn.Linear(width, shape.width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(shape.length, shape.width))
        self.blocks = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.says = nn.Linear(shape.width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.seen = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.says.weight, std=width**-0.5 * shape.width**-0.5)

    def hidden(
        self,
        embeddings: Float[Tensor, "b d"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, " n"],
        memory: list[Any] | None = None,
    ) -> Float[Tensor, "b n w"]:
        x = self.reads(self.table[tokens]) + self.position[positions] + self.image(embeddings)[:, None]
        if memory is not None and not memory:
            memory += [[] for _ in self.blocks]
        for number, block in enumerate(self.blocks):
            x = block(x, None if memory is None else memory[number])
        normed: Tensor = self.norm(x)
        return normed

    def losses(self, hidden: Float[Tensor, "m w"], targets: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        losses = token_loss(self.says(hidden), self.table, _FASTER * self.bias, targets)
        mark = self.seen[targets]
        return losses + (mark.detach() - mark)  # adds 0, and a gradient

    def voice(self) -> Voice:
        ids = (self.seen > 0).nonzero()[:, 0]
        return Voice(ids, self.table[ids] @ self.says.weight, _FASTER * self.bias[ids])


class _Block(nn.Module):
    """One pre-norm transformer layer; its memory is [keys, values] of the tokens before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b n w"], memory: list[Tensor] | None) -> Float[Tensor, "b n w"]:
        b, n, width = x.shape
        parts = self.attention(self.before_attention(x)).view(b, n, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if memory:
            key, value = torch.cat([memory[0], key], dim=2), torch.cat([memory[1], value], dim=2)
        if memory is not None:
            memory[:] = [key, value]
        mask = torch.ones(n, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - n)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.after_attention(mixed.transpose(1, 2).reshape(b, n, width))
        fed: Tensor = x + self.feed(x)
        return fed
