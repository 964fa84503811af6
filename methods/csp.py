"""CSP: negative labels from a conjugated semantic pool (Chen et al., NeurIPS 2024, arXiv:2410.08611)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from oodbench.method import Batch, Method, Task, logsumexp, templates

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
from ._wordnet import FILES, OWN_LIST, Words, read_selected, read_words


@dataclass(frozen=True)
class Pool:
    """The nouns and adjective phrases with their unit vectors [n d] and similarities [n], and how many are chosen.

    selected  whether they are used as they are, not mined
    """

    nouns: tuple[str, ...]
    phrases: tuple[str, ...]
    vectors: Tensor
    similarity: Float64[Tensor, " n"]
    counts: tuple[int, int]
    selected: bool

    @property
    def words(self) -> tuple[str, ...]:
        """Return the nouns, and then the phrases."""
        return (*self.nouns, *self.phrases)


@dataclass(frozen=True)
class CSP(Method[Negatives]):
    """NegLabel's score with a pool in which each adjective precedes a superclass: "gooey landscape".

    The score is the log-odds of S(x), as in `neglabel`. The pool is NegLabel's words without some lexicographer files;
    a superclass is drawn for each adjective. The embedding of a text is the mean of its embeddings under several
    prompts as the text tower gives them, normalised only afterwards. Words whose largest cosine with an ID class is
    above `near` count as nearest and are not chosen.

    The 27 released files give 46,560 nouns and 10,060 phrases, of which 8,493 are chosen and 8,400 used; the shipped
    list of WordNet 3.0 gives 46,421 and 11,046, of which 8,619 are chosen and 8,600 used. That is 412,720
    (released files) or 415,552 (shipped list) prompts to encode; their embeddings are stored.

    With exclude=(), superclasses=(), near=1, average=normalised and NegLabel's prompts the score is NegLabel's.

    Released code: it chooses 15 % of the nouns and of the phrases, those whose 0.95 quantile of the cosines is
    smallest; words beyond a multiple of `groups` are cut from the nearest phrases. It draws superclasses word by word
    in the order in which the file system lists the word files, which is not known elsewhere. Here Python's generator
    draws them in the order of (lexicographer file, word), so that they depend on the words and on `draw` alone; several
    values of `draw` show how much they matter. Groups and near ties are as in neglabel. The released code computes the
    vectors of the words in half precision. For ImageNet-Sketch as ID it has templates=csp-sketch and
    noun_templates=csp-sketch.

    words             as in neglabel: a folder, or "release-wn30", the shipped list; or words that are used as they are:
                      a folder with NegRefine's two files, whose adjectives are phrases already (`oodbench get words
                      negrefine`), or a file with one noun a line
    templates         prompts of ID names
    noun_templates    prompts of nouns
    adjective_templates  prompts of adjective phrases
    average           "raw": embeddings are averaged over the prompts, then normalised; "normalised": they are also
                      normalised before
    exclude           lexicographer files that are left out
    superclasses      superclasses, one of which follows each adjective; () for adjectives alone
    draw              seed of the draw of superclasses
    near              cosine with an ID class above which a word is not chosen; 1 chooses by the quantile alone
    drop_names        whether nouns that are ID names, in the same case, are left out, as in NegRefine's code
    scale             factor on the cosines; None takes the encoder's own
    quantile          quantile of a word's cosines with the ID classes by which words are chosen
    share             fraction of the nouns, and of the phrases, that is chosen
    groups            number of groups; 1 means no grouping
    permutation       seed of the permutation that makes the groups
    """

    formula: ClassVar[str] = r"""
    \text{score}(x) = \log \frac{S(x)}{1 - S(x)}, \qquad
    S(x) = \frac{1}{G} \sum_{g=1}^{G}
    \frac{\sum_{i=1}^{K} e^{\cos(h, e_i) / \tau}}
    {\sum_{i=1}^{K} e^{\cos(h, e_i) / \tau} + \sum_{j \in \mathcal{N}_g} e^{\cos(h, \tilde e_j) / \tau}}

    h              embedding of image x
    e_i            text embedding of ID class i of K, a mean over prompts
    \tilde e_j     text embedding of word or phrase j of the pool, a mean over prompts
    \mathcal{N}_g  chosen words of group g: those of the smallest 0.95 quantile of the cosines with the classes; G is
                   `groups`
    \tau           1 / `scale`, 0.01
    """
    words: str = "release-wn30"
    templates: str = "csp"
    noun_templates: str = "csp"
    adjective_templates: str = "csp-adjectives"
    average: Literal["raw", "normalised"] = "raw"
    exclude: tuple[str, ...] = ("noun.person", "noun.quantity", "noun.group", "adj.pert")
    superclasses: tuple[str, ...] = (
        "area",
        "creature",
        "environment",
        "item",
        "landscape",
        "object",
        "pattern",
        "place",
        "scene",
        "space",
        "structure",
        "thing",
        "view",
        "vista",
    )
    draw: int = 0
    near: float = 0.95
    drop_names: bool = False
    scale: float | None = 100.0
    quantile: float = 0.95
    share: float = 0.15
    groups: int = 100
    permutation: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1 or not 0 < self.share <= 1:
            raise ValueError(f"quantile={self.quantile} and share={self.share} must lie between 0 and 1")
        if self.groups < 1:
            raise ValueError(f"groups={self.groups} must be at least 1")
        if unknown := [name for name in self.exclude if name not in FILES]:
            raise ValueError(f"exclude: no lexicographer file {', '.join(unknown)}; there are {', '.join(FILES)}")
        if set(FILES) <= set(self.exclude):
            raise ValueError("exclude names all lexicographer files, which leaves no word")
        if self.words != OWN_LIST:
            if "/" not in self.words:  # folders enter the score's key when they are written as paths
                raise ValueError(f"words={self.words} must be written as a path: ./{self.words}")
            self._words()

    def text_encodings(self, classes: int) -> int:
        words = self._words()
        prompts = (len(templates(name)) for name in (self.noun_templates, self.adjective_templates))
        return sum(len(part) * n for part, n in zip((words.nouns, words.adjectives), prompts, strict=True))

    def fit(self, task: Task) -> Negatives:
        return self._grouped(self._pool(task))

    def score(self, batch: Batch, task: Task, state: Negatives) -> Float[Tensor, " b"]:
        id_side, negative_side = self._log_odds(batch, task, state).unbind()
        return id_side - negative_side

    def predict(self, batch: Batch, task: Task, state: Negatives) -> Int64[Tensor, " b"]:
        return (batch.features @ task.text(self.templates, self.average).T).argmax(-1)

    def explain(self, batch: Batch, task: Task, state: Negatives) -> dict[str, list[tuple[str, float]]]:
        """Return the nearest negative words with their cosines, and the softmax mass of both sides."""
        return explanation(batch.features, self._classes(batch, task), state, self.groups, self._scale(task))

    def _log_odds(self, batch: Batch, task: Task, state: Negatives) -> Float64[Tensor, "2 b"]:
        """Return log S and log(1 - S), both up to log(groups)."""
        return log_odds(batch.features, self._classes(batch, task), state.vectors, self.groups, self._scale(task))

    def _classes(self, batch: Batch, task: Task) -> Float64[Tensor, " b"]:
        """Return the logsumexp of the scaled cosines with the ID classes."""
        return logsumexp(self._scale(task) * (batch.features @ task.text(self.templates, self.average).T))

    def _scale(self, task: Task) -> float:
        return task.scale if self.scale is None else self.scale

    def _words(self) -> Words:
        return read_selected(self.words) or read_words(self.words, self.exclude)

    def _pool(self, task: Task) -> Pool:
        """Return the pool with the similarities of its texts."""
        words = self._words()
        phrases = words.adjectives if words.selected else self._phrases(words)
        parts = ((words.nouns, self.noun_templates), (phrases, self.adjective_templates))
        vectors = torch.cat([task.words(texts, name, self.average) for texts, name in parts if texts])
        similarity = similarities(vectors, task.text(self.templates, self.average), self._similarity)
        candidates = [len(words.nouns), len(phrases)]
        if self.drop_names:
            names = set(task.classes)
            dropped = [i for i, word in enumerate(words.nouns) if word in names]
            similarity[dropped] = 1.0
            candidates[0] -= len(dropped)  # the release does not count them in the share either
        first, second = candidates if words.selected else (int(self.share * n) for n in candidates)
        return Pool(words.nouns, phrases, vectors, similarity, (first, second), words.selected)

    def _phrases(self, words: Words) -> tuple[str, ...]:
        """Return every adjective with a superclass, drawn in the order of (lexicographer file, word)."""
        if not self.superclasses:
            return words.adjectives
        generator = random.Random(self.draw)
        ordered = sorted(words.adjectives, key=lambda word: (words.files[word], word))
        superclass = {word: generator.choice(self.superclasses) for word in ordered}
        return tuple(f"{word} {superclass[word]}" for word in words.adjectives)

    def _similarity(self, cosines: Float64[Tensor, "n k"]) -> Float64[Tensor, " n"]:
        similarity = cosines.quantile(self.quantile, dim=-1)
        return similarity if self.near >= 1 else similarity.masked_fill(cosines.amax(-1) > self.near, 1.0)

    def _grouped(self, pool: Pool) -> Negatives:
        """Return the words that are used, in the order of the permutation."""
        count = sum(pool.counts)
        excess = count - whole_groups(count, self.groups)
        words = pool.words
        if pool.selected:
            m = count - excess
            used = torch.ones(m, dtype=torch.bool)
            corpus = Corpus(words[:m], pool.vectors[:m], pool.similarity[:m], used)
        else:
            counts = without_excess(*pool.counts, excess=excess)
            used = farthest_of_both(pool.similarity, pool.nouns, pool.phrases, counts)
            corpus = Corpus(words, pool.vectors, pool.similarity, used)
        return corpus.grouped(self.permutation)
