"""Candidate names of ZOC and ZOC (CoCa): top-k decoding of a captioner, and the names that the tokens decode to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.method import Encoder, Task, logsumexp, templates


@dataclass(frozen=True)
class Names:
    """Every name that a captioner can generate.

    strings   m distinct names
    vectors   [m d] text embeddings of the names in their prompts, of unit length
    lookup    [n] index of each token's name; m for a token whose string is excluded
    """

    strings: tuple[str, ...]
    vectors: Float[Tensor, "m d"]
    lookup: Int64[Tensor, " n"]

    def mask(self, tokens: Int64[Tensor, "b c"]) -> Bool[Tensor, "b m"]:
        """Return which names the tokens, given as indices into lookup, decode to."""
        mask = torch.zeros(len(tokens), len(self.strings) + 1, dtype=torch.bool, device=tokens.device)
        return mask.scatter(1, self.lookup[tokens], True)[:, :-1]

    def candidate_logsumexp(
        self, features: Float[Tensor, "b d"], candidates: Bool[Tensor, "b m"], scale: float
    ) -> Float64[Tensor, " b"]:
        """Return logsumexp over an image's candidates; an image without any gets -scale, that of one of cosine -1."""
        logits = (scale * features @ self.vectors.T).masked_fill(~candidates, -torch.inf)
        opposite = torch.where(candidates.any(-1, keepdim=True), -torch.inf, -scale).to(logits)
        return logsumexp(torch.cat([logits, opposite], dim=-1))


def candidate_names(strings: Sequence[str], excluded: Collection[str], prompts: str, task: Task) -> Names | None:
    """Return the names of tokens that decode to `strings`, in the templates `prompts`; None if all are excluded.

    Excluded names are encoded as well, so that the stored vectors serve every list of class names.
    """
    distinct, lines = tuple(dict.fromkeys(strings)), templates(prompts)
    included = [number for number, name in enumerate(distinct) if name not in excluded]
    if not included:
        return None
    filled = [line.replace("{}", name) for line in lines for name in distinct]
    vectors = task.words(filled).view(len(lines), len(distinct), -1)
    names = tuple(distinct[number] for number in included)
    index = {name: number for number, name in enumerate(names)}
    lookup = torch.tensor([index.get(name, len(names)) for name in strings], device=vectors.device)
    return Names(names, normalize(vectors.mean(0)[included], dim=-1), lookup)


def greedy_top_k(
    next_logits: Callable[[Tensor], Tensor],
    ids: Int64[Tensor, " m"],
    start: Int64[Tensor, "b 1"],
    steps: int,
    k: int,
) -> Int64[Tensor, "b c"]:
    """Return the k most probable tokens of every step, as indices into ids: c = steps * k.

    `next_logits` maps tokens [b n] to the logits [b m] of the next token; the most probable token is appended. The end
    token does not stop the decoding.
    """
    tokens, steps_top = start, []
    for _ in range(steps):
        top = next_logits(tokens).topk(min(k, len(ids)), dim=-1).indices
        steps_top.append(top)
        tokens = torch.cat([tokens, ids[top[:, :1]]], dim=1)
    return torch.cat(steps_top, dim=1)


def start_and_end(encoder: Encoder) -> tuple[int, int]:
    """Return CLIP's start and end tokens."""
    empty = encoder.tokenize([""])[0]
    return int(empty[0]), int(empty.max())
