"""WordNet's nouns, read from the files of the database where they are installed: which names mean the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PLACES = ("/usr/share/wordnet", "~/nltk_data/corpora/wordnet")  # Debian's wordnet-base, NLTK
_NUMBERED = re.compile(r"n(\d{8})")  # a class folder named by its synset, as ImageNet's are


def find() -> Path | None:
    """The folder of data.noun and index.noun: $WNSEARCHDIR, $WNHOME/dict, or where Debian and NLTK put it."""
    chosen = [os.environ.get("WNSEARCHDIR", ""), f"{home}/dict" if (home := os.environ.get("WNHOME", "")) else ""]
    places = [c for c in chosen if c] or list(_PLACES)
    for place in places:
        folder = Path(os.path.expanduser(place))
        if (folder / "data.noun").is_file() and (folder / "index.noun").is_file():
            return folder
    return None


class WordNet:
    """Synsets of nouns by name; numbers are offsets into data.noun, and those of ImageNet's folders are 3.0's."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data.noun"
        self._synsets: dict[str, tuple[int, ...]] = {}
        with (folder / "index.noun").open(encoding="latin-1") as lines:
            for line in lines:
                if not line.startswith(" "):  # the licence is indented
                    lemma, _, count, *rest = line.split()
                    self._synsets[lemma] = tuple(map(int, rest[-int(count) :]))

    def synsets(self, name: str) -> frozenset[int]:
        """What a class name or a numbered folder may mean; empty when WordNet does not know it.

        A name such as `tench, Tinca tinca` is read word by word between commas; a plural counts as its singular.
        """
        if numbered := _NUMBERED.fullmatch(name):
            return frozenset((int(numbered[1]),)) if self.words(int(numbered[1])) else frozenset()
        found: set[int] = set()
        for one in re.sub(r"\(.*?\)", "", name).split(","):
            lemma = "_".join(one.casefold().replace("_", " ").split())
            whole = (lemma, lemma.replace("-", "_"))
            spelled = (*whole, *(each.removesuffix("s") for each in whole))
            found.update(next((self._synsets[s] for s in spelled if s in self._synsets), ()))
        return frozenset(found)

    def words(self, synset: int) -> tuple[str, ...]:
        """The words of a synset, () when there is none of that number."""
        with self._data.open("rb") as file:
            file.seek(synset)
            line = file.readline().decode("latin-1")
        fields = line.split(" ")
        if fields[0] != f"{synset:08}":
            return ()
        return tuple(fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16)))


def is_number(folder: str) -> bool:
    """Whether a class folder is named by its synset, as n01440764 is."""
    return _NUMBERED.fullmatch(folder) is not None
