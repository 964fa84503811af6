"""ZOC's caption decoders: their common interface, and the small one, a causal transformer without dependencies."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ._candidates import greedy_top_k
from ._token_loss import token_loss

PADDING = -1  # after a caption's end token
_BIAS_FACTOR = 10  # the bias learns faster by this, so that words of no caption get a low logit in a few steps


@dataclass(frozen=True)
class Shape:
    """Size of a decoder. `length` is the longest caption in tokens, with start and end."""

    width: int
    layers: int
    heads: int
    length: int


@dataclass(frozen=True)
class OutputLayer:
    """The last layer, for the tokens that a decoder may generate: logits = hidden @ matrix.T + bias.

    ids      [m] tokens
    matrix   [m w]
    bias     [m]
    """

    ids: Int64[Tensor, " m"]
    matrix: Float[Tensor, "m w"]
    bias: Float[Tensor, " m"]

    def only(self, which: Bool[Tensor, " m"]) -> OutputLayer:
        """Return the layer for some of the tokens."""
        return OutputLayer(self.ids[which], self.matrix[which], self.bias[which])


class Decoder(nn.Module):
    """A language model that writes captions of an image from its embedding."""

    start: int

    @abstractmethod
    def hidden(
        self,
        embeddings: Float[Tensor, "b d"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, " n"],
        memory: list[Any] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """Return the hidden states of the last layer at every token, with causal attention.

        With a memory (cached keys and values), `tokens` follow the tokens of earlier calls with the same list, which is
        changed in place.
        """

    @abstractmethod
    def losses(self, hidden: Float[Tensor, "m w"], targets: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Return the negative log-likelihood of each target among all tokens of the vocabulary."""

    @abstractmethod
    def output_layer(self) -> OutputLayer:
        """Return the last layer, for the tokens that may be generated."""


def caption_nll(decoder: Decoder, embeddings: Float[Tensor, "b d"], tokens: Int64[Tensor, "b n"]) -> dict[str, Tensor]:
    """Return each caption's summed negative log-likelihood `nll`, in nats, and its number of predicted tokens `count`.

    Padding follows the predicted tokens, so that its length changes nothing.
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
class GreedyDecoding:
    """Greedy decoding of `steps` tokens; the k most probable tokens of each step are candidates."""

    steps: int
    k: int
    one_position: bool = False  # every token at position 0


def top_tokens(
    decoder: Decoder, output: OutputLayer, embeddings: Float[Tensor, "b d"], decoding: GreedyDecoding
) -> Int64[Tensor, "b c"]:
    """Return the k most probable tokens of every step, as indices into output.ids: c = steps * k."""
    memory: list[Any] = []

    def next_logits(tokens: Tensor) -> Tensor:
        position = torch.tensor([0 if decoding.one_position else tokens.shape[1] - 1], device=tokens.device)
        hidden = decoder.hidden(embeddings, tokens[:, -1:], position, memory)[:, -1]
        return hidden @ output.matrix.T + output.bias

    start = torch.full((len(embeddings), 1), decoder.start, device=embeddings.device)
    return greedy_top_k(next_logits, output.ids, start, decoding.steps, decoding.k)


class SmallDecoder(Decoder):
    """A causal transformer over CLIP's own byte pairs; the image embedding is added to every token.

    Cross-attention over a sequence of one item amounts to adding it. Tokens are read and predicted with CLIP's frozen
    token table and two linear maps, so that a weight file holds no row of a table per word, only `seen` and `bias`.

    table   [v t] CLIP's token embeddings, scaled to a root mean square of 1; not saved
    seen    [v] above 0 for tokens that occur in captions. It is a parameter, changed by a gradient that changes no
            loss, because parameters are what all processes, chunks and checkpoints of a training share
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
        losses = token_loss(self.says(hidden), self.table, _BIAS_FACTOR * self.bias, targets)
        mark = self.seen[targets]
        return losses + (mark.detach() - mark)  # adds 0, and a gradient

    def output_layer(self) -> OutputLayer:
        ids = (self.seen > 0).nonzero()[:, 0]
        return OutputLayer(ids, self.table[ids] @ self.says.weight, _BIAS_FACTOR * self.bias[ids])


class _Block(nn.Module):
    """One pre-norm transformer layer; its memory is [keys, values] of the tokens so far."""

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
