"""The words of TANL and AdaNeg: all nouns and adjectives of WordNet that are not class names, in NegLabel's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Task

from ._wordnet import FILES, OWN_LIST, Words, read_words

ADJECTIVES = [name for name in FILES if name.startswith("adj.")]


@dataclass(frozen=True)
class WordFolder:
    """Where words come from, and their prompts.

    words        folder with the 27 released files, or with WordNet's data.noun and data.adj; or "release-wn30"
    nouns        prompt of nouns
    adjectives   prompt of adjectives
    ignore_case  whether a word that is a class name in another case is also left out
    """

    words: str
    nouns: str
    adjectives: str
    ignore_case: bool

    def check(self, least: int) -> None:
        """Raise ValueError, before anything is encoded, if `words` or a prompt is wrong or words are too few."""
        for name, prompt in (("nouns", self.nouns), ("adjectives", self.adjectives)):
            if prompt.count("{}") != 1:
                raise ValueError(f"{name}='{prompt}' must contain {{}} once")
        if self.words != OWN_LIST and "/" not in self.words:  # folders enter the score's key when written as paths
            raise ValueError(f"words={self.words} must be {OWN_LIST}, or a folder written as a path: ./{self.words}")
        if self.count() < least:
            raise ValueError(f"words={self.words} holds {self.count():,} words, which is fewer than {least:,}")

    def count(self) -> int:
        """Return how many words there are, class names included."""
        words = read_words(self.words)
        return len(words.nouns) + len(words.adjectives)

    def read(self, names: Sequence[str]) -> Words:
        """Return the words that are not class names; a word that is both noun and adjective is a noun."""
        nouns = read_words(self.words, exclude=ADJECTIVES).nouns
        adjectives = read_words(self.words).adjectives
        known, both = {self._cased(name) for name in names}, set(nouns)
        return Words(
            tuple(word for word in nouns if self._cased(word) not in known),
            tuple(word for word in adjectives if self._cased(word) not in known and word not in both),
        )

    def vectors(self, words: Words, task: Task) -> Float[Tensor, "n d"]:
        """Return the unit vectors of the nouns and then the adjectives in their prompts."""
        filled = [self.nouns.replace("{}", word) for word in words.nouns]
        return task.words(filled + [self.adjectives.replace("{}", word) for word in words.adjectives])

    def _cased(self, word: str) -> str:
        return word.casefold() if self.ignore_case else word
