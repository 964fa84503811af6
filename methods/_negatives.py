"""Shared by NegLabel, CSP and NegRefine: mining of negative labels, their groups, and the score over groups.

Which words share a group must not depend on the processor, whose rounding changes similarities by about 1e-7. The
similarities are therefore computed in float64; at both cuts, words whose similarities are within 5e-6 of that of the
last chosen word are chosen in alphabetical order; and the permutation is drawn over all words in the order of their
files, and then restricted to the chosen words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from oodbench.method import logsumexp

CHUNK = 1 << 22  # similarities in memory while words are mined: 32 MB
TIE = 5e-6  # words within this similarity of the last chosen word are chosen in alphabetical order


@dataclass(frozen=True)
class Negatives:
    """The negative labels: words farthest from the ID classes, in the order in which they are grouped.

    vectors      [m d] text embeddings of unit length
    words        m words without their prompt
    similarity   [m] quantile over the ID classes of each word's cosines; small means far
    """

    vectors: Tensor
    words: tuple[str, ...]
    similarity: Tensor


@dataclass(frozen=True)
class Corpus:
    """Words in the order of their source, their unit vectors [n d] and similarities [n], and which words are used."""

    words: tuple[str, ...]
    vectors: Tensor
    similarity: Float64[Tensor, " n"]
    used: Bool[Tensor, " n"]

    def grouped(self, permutation: int) -> Negatives:
        """Return the used words in the order of a permutation, from which `groups` equal parts are cut."""
        order = torch.randperm(len(self.words), generator=torch.Generator().manual_seed(permutation))
        order = order[self.used[order]]
        words = tuple(self.words[i] for i in order.tolist())
        return Negatives(self.vectors[order.to(self.vectors.device)], words, self.similarity[order])


def similarities(
    vectors: Float[Tensor, "n d"],
    classes: Float[Tensor, "k d"],
    reduce: Callable[[Float64[Tensor, "rows k"]], Float64[Tensor, " rows"]],
) -> Float64[Tensor, " n"]:
    """Return reduce() of each word's cosines with the classes, on the CPU.

    They are computed in float64, because float32 would round by more than encoders differ.
    """
    text = classes.double()
    rows = max(1, CHUNK // len(text))
    parts = (vectors[i : i + rows].double() @ text.T for i in range(0, len(vectors), rows))
    return torch.cat([reduce(part).cpu() for part in parts])


def farthest_of_both(
    similarity: Float64[Tensor, " n"], nouns: Sequence[str], adjectives: Sequence[str], counts: tuple[int, int]
) -> Bool[Tensor, " n"]:
    """Return which nouns and adjectives are used: of each part the farthest, as many as `counts` says."""
    parts = similarity[: len(nouns)], similarity[len(nouns) :]
    return torch.cat([_farthest(*each) for each in zip(parts, (nouns, adjectives), counts, strict=True)])


def whole_groups(words: int, groups: int) -> int:
    """Return how many words fill the groups equally; raise ValueError if there is not one for each."""
    if words < groups:
        raise ValueError(f"{words} negative words cannot fill groups={groups}; lower groups")
    return words - words % groups


def without_excess(nouns: int, adjectives: int, excess: int) -> tuple[int, int]:
    """Return the counts when `excess` words are cut from the end: from the adjectives, and then from the nouns."""
    return nouns - max(0, excess - adjectives), max(0, adjectives - excess)


def log_odds(
    features: Float[Tensor, "b d"],
    classes: Float64[Tensor, " b"],
    negatives: Float[Tensor, "m d"],
    groups: int,
    scale: float,
) -> Float64[Tensor, "2 b"]:
    """Return log S and log(1 - S), each plus log(groups), of S = mean over groups of sum_ID / (sum_ID + sum_group).

    `classes` is the logsumexp of the scaled cosines with the ID classes.
    """
    parts = negatives.tensor_split(groups)
    odds = torch.stack([classes - logsumexp(scale * (features @ part.T)) for part in parts])
    return torch.stack([torch.nn.functional.logsigmoid(each).logsumexp(0) for each in (odds, -odds)])


def explanation(
    features: Float[Tensor, "1 d"], classes: Float64[Tensor, " 1"], negatives: Negatives, groups: int, scale: float
) -> dict[str, list[tuple[str, float]]]:
    """Return the negative words nearest to one image with their cosines, and the softmax mass of both sides."""
    cosines = (features @ negatives.vectors.T)[0]
    mass = float((classes - logsumexp(scale * cosines[None])).sigmoid())
    id_side, negative_side = log_odds(features, classes, negatives.vectors, groups, scale).unbind()
    order = cosines.argsort(descending=True).tolist()
    return {
        "nearest negative words, cosines": [(negatives.words[k], float(cosines[k])) for k in order],
        "softmax mass": [
            ("ID names", mass),
            ("negative words", 1 - mass),
            (f"ID names, mean over {groups} groups (S)", float((id_side - negative_side).sigmoid())),
        ],
    }


def _farthest(similarity: Float64[Tensor, " n"], words: Sequence[str], count: int) -> Bool[Tensor, " n"]:
    """Return which `count` words have the smallest similarities; ties, within TIE of the last, go by the alphabet."""
    if count == 0:
        return torch.zeros(len(words), dtype=torch.bool)
    last = similarity.kthvalue(count).values
    chosen = similarity < last - TIE
    tied = (~chosen & (similarity <= last + TIE)).nonzero()[:, 0].tolist()
    chosen[sorted(tied, key=lambda i: words[i])[: count - int(chosen.sum())]] = True
    return chosen
