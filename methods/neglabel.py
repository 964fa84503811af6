"""NegLabel: class names against negative labels mined from WordNet (Jiang et al., ICLR 2024, arXiv:2403.20078)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import Batch, Method, Task, logsumexp

from ._negatives import (
    Corpus,
    Negatives,
    explanation,
    farthest_of_both,
    log_odds,
    similarities,
    whole_groups,
    without_excess,
)
from ._wordnet import OWN_LIST, Words, read_lines, read_words

CLEAN_NEGATIVES = 10_000  # M of the paper


@dataclass(frozen=True)
class NegLabel(Method[Negatives]):
    """Softmax probability of the ID class names against negative labels, averaged over groups of negative labels.

    The negative labels are the words of WordNet that are farthest from the ID class names. The score is the log-odds of
    the paper's S(x): it gives the same ranking, and S = sigmoid(score). S itself rounds to 0 or 1 for confident images,
    which then tie; the log-odds do not.

    The distance of a word is the 0.05 quantile of its negative cosines with the ID classes, here the equivalent 0.95
    quantile of its cosines, interpolated linearly as in the released code. The nearest 5 % of the classes are thus
    ignored, so that a word that equals a class name can be chosen: 32 nouns of the released files are ImageNet names.

    The groups must not depend on the processor, whose rounding changes cosines by about 1e-7. Cosines of words are
    therefore computed in float64. At both cuts, words whose cosines are within 5e-6 of that of the last chosen word are
    chosen in alphabetical order. The permutation is drawn over all words in the order of their files, and then
    restricted to the chosen words. If a cosine is within rounding of the end of that range, another processor can still
    choose one other word; then at most one word of each group changes. A file of selected prompts is used in its own
    order, as in the released code.

    With preset=clean the words are sorted, class names are removed (ignoring case), exactly M words are chosen, and
    none is cut: group sizes may differ by one.

    Released code: it keeps 15 % of the nouns and 15 % of the adjectives, 10,499 words, where the paper says M = 10,000.
    Nouns come first, farthest first; words beyond a multiple of `groups` are cut from the end, the nearest adjectives,
    so that 10,400 are used; then a permutation makes the groups. That permutation is drawn by the GPU's generator and
    cannot be reproduced elsewhere; here the CPU's generator draws it. A word that is both noun and adjective counts as
    an adjective; in the released code the file system decides. With one group the released code has no softmax; here it
    has one.

    preset         "release" or "clean"
    words          folder with the 27 released word files, or with WordNet's data.noun and data.adj, or the released
                   file of selected prompts (used as it is, not mined); "release-wn30" is the shipped list: the released
                   rule on WordNet 3.0 (the released words are those of WordNet 3.1)
    templates      prompts of ID names; the code's has no period, the paper's does: "The nice {}."
    nouns          prompt of nouns
    adjectives     prompt of adjectives
    scale          factor on the cosines, 1 / tau of the paper; None takes the encoder's own
    quantile       1 - eta of the paper
    share          fraction of the nouns, and of the adjectives, that is kept; not used with num_negatives or
                   preset=clean
    groups         number of groups, 100 in the paper; 1 means no grouping
    num_negatives  M, split between nouns and adjectives in proportion; None takes `share` (release) or 10,000 (clean)
    permutation    seed of the permutation
    """

    formula: ClassVar[str] = r"""
    \text{score}(x) = \log \frac{S(x)}{1 - S(x)}, \qquad
    S(x) = \frac{1}{G} \sum_{g=1}^{G}
    \frac{\sum_{i=1}^{K} e^{\cos(h, e_i) / \tau}}
    {\sum_{i=1}^{K} e^{\cos(h, e_i) / \tau} + \sum_{j \in \mathcal{N}_g} e^{\cos(h, \tilde e_j) / \tau}}

    d_j = \operatorname{percentile}_\eta \bigl(\{-\cos(\tilde e_j, e_k)\}_{k=1}^{K}\bigr)

    h              embedding of image x
    e_i            text embedding of ID class i of K
    \tilde e_j     text embedding of word j
    d_j            distance of word j from the ID classes; the words of largest distance are the negative labels
    \mathcal{N}_g  negative labels of group g; G is `groups`
    \tau           1 / `scale`, 0.01
    \eta           1 - `quantile`, 0.05
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

    def text_encodings(self, classes: int) -> int:
        self._check()
        if self._is_selection:
            return len(read_lines(Path(self.words).expanduser()))
        words = read_words(self.words)
        return len(words.nouns) + len(words.adjectives)

    def fit(self, task: Task) -> Negatives:
        self._check()
        corpus = self._selected(task) if self._is_selection else self._mined(task, read_words(self.words))
        return corpus.grouped(self.permutation)

    def score(self, batch: Batch, task: Task, state: Negatives) -> Float[Tensor, " b"]:
        scale = self._scale(task)
        odds = log_odds(batch.features, self._classes(batch, task), state.vectors, self.groups, scale)
        id_side, negative_side = odds.unbind()
        return id_side - negative_side

    def explain(self, batch: Batch, task: Task, state: Negatives) -> dict[str, list[tuple[str, float]]]:
        """Return the nearest negative words with their cosines, and the softmax mass of both sides."""
        return explanation(batch.features, self._classes(batch, task), state, self.groups, self._scale(task))

    def _classes(self, batch: Batch, task: Task) -> Float64[Tensor, " b"]:
        """Return the logsumexp of the scaled cosines with the ID classes."""
        return logsumexp(task.logits(batch.features, self.templates, self._scale(task)))

    def _scale(self, task: Task) -> float:
        return task.scale if self.scale is None else self.scale

    @property
    def _is_selection(self) -> bool:
        return self.words != OWN_LIST and Path(self.words).expanduser().is_file()

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

    def _mined(self, task: Task, words: Words) -> Corpus:
        """Return all words, of which the farthest nouns and adjectives are marked as used."""
        nouns, adjectives = words.nouns, words.adjectives
        if self.preset == "clean":
            names = {name.casefold() for name in task.classes}
            nouns, adjectives = (
                tuple(sorted(word for word in part if word.casefold() not in names)) for part in (nouns, adjectives)
            )
        filled = [self.nouns.replace("{}", word) for word in nouns]
        vectors = task.words(filled + [self.adjectives.replace("{}", word) for word in adjectives])
        similarity = self._similarity(vectors, task)
        counts = self._counts(len(nouns), len(adjectives))
        counts = without_excess(*counts, excess=sum(counts) - self._whole_groups(sum(counts)))
        used = farthest_of_both(similarity, nouns, adjectives, counts)
        return Corpus((*nouns, *adjectives), vectors, similarity, used)

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
        filled = whole_groups(words, self.groups)
        return filled if self.preset == "release" else words

    def _selected(self, task: Task) -> Corpus:
        """Return the prompts of a file, in their order."""
        if self.preset == "clean" or self.num_negatives is not None:
            raise ValueError(f"words={self.words} is already selected: name a folder for preset=clean or num_negatives")
        prompts = read_lines(Path(self.words).expanduser())
        prompts = prompts[: self._whole_groups(len(prompts))]
        vectors = task.words(prompts)
        words = tuple(_without(prompt, (self.nouns, self.adjectives)) for prompt in prompts)
        return Corpus(words, vectors, self._similarity(vectors, task), torch.ones(len(words), dtype=torch.bool))

    def _similarity(self, vectors: Float[Tensor, "n d"], task: Task) -> Float64[Tensor, " n"]:
        """Return the quantile of each word's cosines with the classes."""
        classes = task.text(self.templates)
        return similarities(vectors, classes, lambda cosines: cosines.quantile(self.quantile, dim=-1))


def _without(prompt: str, templates: Sequence[str]) -> str:
    """Return the word of a prompt that one of the templates made; the prompt itself if none did."""
    for template in templates:
        before, _, after = template.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt.removeprefix(before).removesuffix(after)
    return prompt
