"""What ZOC's generators have in common: the tokens they say, the names these stand for, and the mass on such names."""

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
    """Every name that a generator can propose.

    strings   m distinct ones, none of them to be left out
    vectors   [m d] of the names under the prompts, of unit length
    lookup    for every token its name's place; m when its string is left out
    """

    strings: tuple[str, ...]
    vectors: Float[Tensor, "m d"]
    lookup: Int64[Tensor, " n"]

    def said(self, tokens: Int64[Tensor, "b c"]) -> Bool[Tensor, "b m"]:
        """Which names the tokens, given as places in lookup, stand for."""
        said = torch.zeros(len(tokens), len(self.strings) + 1, dtype=torch.bool, device=tokens.device)
        return said.scatter(1, self.lookup[tokens], True)[:, :-1]

    def rivalry(self, features: Float[Tensor, "b d"], said: Bool[Tensor, "b m"], scale: float) -> Float64[Tensor, " b"]:
        """log of the sum of exponentials over an image's names; -scale, a name opposite to it, where it has none."""
        logits = (scale * features @ self.vectors.T).masked_fill(~said, -torch.inf)
        opposite = torch.where(said.any(-1, keepdim=True), -torch.inf, -scale).to(logits)
        return logsumexp(torch.cat([logits, opposite], dim=-1))


def names(strings: Sequence[str], left_out: Collection[str], prompts: str, task: Task) -> Names | None:
    """The names of tokens that decode to `strings`, under the templates `prompts`; None when all are left out.

    All are encoded, also those left out: stored vectors then serve every list of class names.
    """
    distinct, lines = tuple(dict.fromkeys(strings)), templates(prompts)
    stay = [number for number, name in enumerate(distinct) if name not in left_out]
    if not stay:
        return None
    filled = [line.replace("{}", name) for line in lines for name in distinct]
    vectors = task.words(filled).view(len(lines), len(distinct), -1)
    kept = tuple(distinct[number] for number in stay)
    place = {name: number for number, name in enumerate(kept)}
    lookup = torch.tensor([place.get(name, len(kept)) for name in strings], device=vectors.device)
    return Names(kept, normalize(vectors.mean(0)[stay], dim=-1), lookup)


def best(
    following: Callable[[Tensor], Tensor],
    ids: Int64[Tensor, " m"],
    start: Int64[Tensor, "b 1"],
    steps: int,
    k: int,
) -> Int64[Tensor, "b c"]:
    """The k best tokens of every step, as places in ids: c = steps * k. The end token does not end it.

    `following` gives the logits [b m] of what follows tokens [b n]; the most probable one is appended.
    """
    tokens, found = start, []
    for _ in range(steps):
        top = following(tokens).topk(min(k, len(ids)), dim=-1).indices
        found.append(top)
        tokens = torch.cat([tokens, ids[top[:, :1]]], dim=1)
    return torch.cat(found, dim=1)


def ends(encoder: Encoder) -> tuple[int, int]:
    """CLIP's start and end tokens."""
    empty = encoder.tokenize([""])[0]
    return int(empty[0]), int(empty.max())
