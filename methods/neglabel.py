"""NegLabel: class names against negative labels mined from WordNet (Jiang et al., ICLR 2024, arXiv:2403.20078)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from oodbench.method import Batch, Method, Task, logsumexp

from ._wordnet import OWN_LIST, Words, read_lines, read_words

CHUNK = 1 << 22  # similarities in memory while words are mined: 32 MB
CLEAN_NEGATIVES = 10_000  # M of the paper
TIE = 5e-6  # words within this similarity of the last chosen word are chosen in alphabetical order


@dataclass(frozen=True)
class Negatives:
    """The negative labels: words farthest from the ID classes, in the order in which they are grouped.

    vectors      [m d] text embeddings of unit length
    words        m words without their prompt
    similarity   [m] quantile over the ID classes of each word's cosines; small = far
    """

    vectors: Tensor
    words: tuple[str, ...]
    similarity: Tensor


@dataclass(frozen=True)
class _Corpus:
    """Words in the order of their source, their unit vectors [n d] and similarities [n], and which words are used."""

    words: tuple[str, ...]
    vectors: Tensor
    similarity: Tensor
    used: Bool[Tensor, " n"]


@dataclass(frozen=True)
class NegLabel(Method[Negatives]):
    """Softmax probability of the ID class names against negative labels, averaged over groups of negative labels.

    The score is the log-odds log(S / (1 - S)) of the paper's S = mean over groups g of sum_ID e / (sum_ID e + sum_g e):
    it ranks as S does, and S = sigmoid(score). S itself rounds to 0 or 1 for confident images, which then tie; the
    log-odds do not.

    A word's distance in the paper is the 0.05 quantile of its negative similarities to the ID classes; here it is the
    equivalent 0.95 quantile of its similarities, interpolated linearly as in the code. The nearest 5 % of the classes
    are ignored, so a word that equals a class name can be chosen: 32 nouns of the released files are ImageNet names.

    Release: 15 % of the nouns and 15 % of the adjectives (the paper says M = 10,000; the code keeps 10,499), nouns
    first, farthest first; words beyond a multiple of `groups` are cut from the end, the nearest adjectives, so that
    10,400 are used; then a permutation makes the groups. The released permutation is drawn by the GPU's generator and
    cannot be reproduced elsewhere; here the CPU's generator draws it. A word that is noun and adjective counts as an
    adjective; in the released code the file system decides. With one group the released code has no softmax; here it
    has.

    Which words share a group must not depend on the processor, whose rounding changes similarities by about 1e-7. The
    similarities are therefore computed in float64; at both cuts, words whose similarities are within 5e-6 of that of
    the last chosen word are chosen in alphabetical order; and the permutation is drawn over all words in the order of
    their files, and then restricted to the chosen words. If a similarity is within rounding of the end of that range,
    another processor can still choose one other word; then at most one word of each group changes. A file of selected
    prompts is used in its own order, as in the released code.

    Clean: words sorted, class names removed (ignoring case), exactly M words, none cut: group sizes may differ by one.

    preset         "release" or "clean"
    words          folder with the 27 released word files, or with WordNet's data.noun and data.adj, or the released
                   file of selected prompts (used as it is, not mined); "release-wn30" is the shipped list: the
                   released rule on WordNet 3.0 (the released words are of WordNet 3.1)
    templates      prompts of ID names; the code's has no period, the paper's does: "The nice {}."
    nouns          prompt of nouns
    adjectives     prompt of adjectives
    scale          factor on the cosines, 1 / tau of the paper; None is the encoder's own
    quantile       1 - eta of the paper
    share          fraction of the nouns, and of the adjectives, that is kept; not used with num_negatives or clean
    groups         number of groups, 100 in the paper; 1 is no grouping
    num_negatives  M, split between nouns and adjectives in proportion; None: `share` (release), 10,000 (clean)
    permutation    seed of the permutation
    """

    preset: Literal["release", "clean"] = "release"
    words: str = "release-wn30"
    templates: str = "the nice {}"
    nouns: str = "the nice {}"
    adjectives: str = "This is a {} photo"
    scale: float | None = 100.0
    quantile: float = 0.95
    share: float = 0.15
    groups: int = 100
    num_negatives: int | None = None
    permutation: int = 0

    def fit(self, task: Task) -> Negatives:
        self._check()
        if self.words != OWN_LIST and Path(self.words).expanduser().is_file():
            corpus = self._selected(task)
        else:
            corpus = self._mined(task, read_words(self.words))
        order = torch.randperm(len(corpus.words), generator=torch.Generator().manual_seed(self.permutation))
        order = order[corpus.used[order]]
        words = tuple(corpus.words[i] for i in order.tolist())
        return Negatives(corpus.vectors[order.to(corpus.vectors.device)], words, corpus.similarity[order])

    def score(self, batch: Batch, task: Task, state: Negatives) -> Float[Tensor, " b"]:
        features = batch.features
        scale = task.scale if self.scale is None else self.scale
        classes = logsumexp(task.logits(features, self.templates, scale))
        groups = state.vectors.tensor_split(self.groups)
        odds = torch.stack([classes - logsumexp(scale * (features @ group.T)) for group in groups])
        return _log_mean(odds) - _log_mean(-odds)

    def explain(self, batch: Batch, task: Task, state: Negatives) -> dict[str, list[tuple[str, float]]]:
        """Return the nearest negative words with their cosines, and the softmax mass of both sides."""
        cosines = (batch.features @ state.vectors.T)[0]
        scale = task.scale if self.scale is None else self.scale
        classes = logsumexp(task.logits(batch.features, self.templates, scale))
        mass = float((classes - logsumexp(scale * cosines[None])).sigmoid())
        grouped = float(self.score(batch, task, state).sigmoid())
        nearest = cosines.argsort(descending=True).tolist()
        return {
            "nearest negative words, cosines": [(state.words[k], float(cosines[k])) for k in nearest],
            "softmax mass": [
                ("ID names", mass),
                ("negative words", 1 - mass),
                (f"ID names, mean over {self.groups} groups (S)", grouped),
            ],
        }

    def _check(self) -> None:
        if not 0 <= self.quantile <= 1 or not 0 < self.share <= 1:
            raise ValueError(f"quantile={self.quantile} and share={self.share} must lie between 0 and 1")
        if self.groups < 1 or (self.num_negatives is not None and self.num_negatives < 1):
            raise ValueError(f"groups={self.groups} and num_negatives={self.num_negatives} must be at least 1")
        # Folders enter the score's key when they are written as paths.
        if self.words != OWN_LIST and "/" not in self.words and not Path(self.words).is_file():
            raise ValueError(f"words={self.words} must be written as a path: ./{self.words}")
        if any(template.count("{}") != 1 for template in (self.nouns, self.adjectives)):
            raise ValueError(f"nouns='{self.nouns}' and adjectives='{self.adjectives}' must each contain {{}} once")

    def _mined(self, task: Task, words: Words) -> _Corpus:
        """Return all words, of which the farthest nouns and the farthest adjectives are used."""
        nouns, adjectives = words.nouns, words.adjectives
        if self.preset == "clean":
            names = {name.casefold() for name in task.classes}
            nouns, adjectives = (
                tuple(sorted(word for word in part if word.casefold() not in names)) for part in (nouns, adjectives)
            )
        filled = [self.nouns.replace("{}", word) for word in nouns]
        vectors = task.words(filled + [self.adjectives.replace("{}", word) for word in adjectives])
        similarity = self._similarity(vectors, task)
        first, second = self._counts(len(nouns), len(adjectives))
        excess = (first + second) - self._whole_groups(first + second)
        second, first = max(0, second - excess), first - max(0, excess - second)
        used = torch.cat(
            [
                _farthest(similarity[: len(nouns)], nouns, first),
                _farthest(similarity[len(nouns) :], adjectives, second),
            ]
        )
        return _Corpus((*nouns, *adjectives), vectors, similarity, used)

    def _counts(self, nouns: int, adjectives: int) -> tuple[int, int]:
        """Return how many nouns and how many adjectives are chosen."""
        m = CLEAN_NEGATIVES if self.preset == "clean" and self.num_negatives is None else self.num_negatives
        if m is None:
            return int(self.share * nouns), int(self.share * adjectives)
        if m > nouns + adjectives:
            raise ValueError(f"num_negatives={m} of {nouns + adjectives} words; lower it or name more words")
        first = round(m * nouns / (nouns + adjectives))
        return first, m - first

    def _whole_groups(self, words: int) -> int:
        """Return how many of the chosen words are used."""
        m = words - words % self.groups if self.preset == "release" else words
        if m < self.groups:
            raise ValueError(f"{words} negative words cannot fill groups={self.groups}; lower groups")
        return m

    def _selected(self, task: Task) -> _Corpus:
        """Return the prompts of a file, in their order."""
        if self.preset == "clean" or self.num_negatives is not None:
            raise ValueError(f"words={self.words} is already selected: name a folder for preset=clean or num_negatives")
        prompts = read_lines(Path(self.words).expanduser())
        prompts = prompts[: self._whole_groups(len(prompts))]
        vectors = task.words(prompts)
        words = tuple(_without(prompt, (self.nouns, self.adjectives)) for prompt in prompts)
        return _Corpus(words, vectors, self._similarity(vectors, task), torch.ones(len(words), dtype=torch.bool))

    def _similarity(self, vectors: Float[Tensor, "n d"], task: Task) -> Float64[Tensor, " n"]:
        """Return the quantile of each word's cosines, on the CPU; float32 would round by more than encoders differ."""
        text = task.text(self.templates).double()
        rows = max(1, CHUNK // len(text))
        parts = (vectors[i : i + rows].double() @ text.T for i in range(0, len(vectors), rows))
        return torch.cat([part.quantile(self.quantile, dim=-1).cpu() for part in parts])


def _farthest(similarity: Float64[Tensor, " n"], words: Sequence[str], count: int) -> Bool[Tensor, " n"]:
    """Return which `count` words have the smallest similarities; within TIE of the last, in alphabetical order."""
    if count == 0:
        return torch.zeros(len(words), dtype=torch.bool)
    last = similarity.kthvalue(count).values
    chosen = similarity < last - TIE
    tied = (~chosen & (similarity <= last + TIE)).nonzero()[:, 0].tolist()
    chosen[sorted(tied, key=lambda i: words[i])[: count - int(chosen.sum())]] = True
    return chosen


def _log_mean(odds: Float[Tensor, "g b"]) -> Float[Tensor, " b"]:
    """Return the log of the mean over groups of sigmoid(odds), up to a constant."""
    return torch.nn.functional.logsigmoid(odds).logsumexp(0)


def _without(prompt: str, templates: Sequence[str]) -> str:
    """Return the word of a prompt that one of the templates made; the prompt itself if none did."""
    for template in templates:
        before, _, after = template.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt.removeprefix(before).removesuffix(after)
    return prompt
