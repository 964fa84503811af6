"""The nouns and adjectives that NegLabel and CSP mine: of the shipped list, the authors' files, or WordNet itself.

WordNet keeps its synsets in lexicographer files (noun.plant, adj.all, ...). The authors took the first word of every
synset of 27 of them: three of adjectives and 24 of nouns; noun.animal, noun.food, verbs and adverbs are missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

OWN_LIST = "release-wn30"  # name of the shipped list; in a label it says that the released words were not used
SHIPPED = "_wordnet30.txt"  # made by _make_wordnet.py from Debian's wordnet-base (WordNet 3.0)

# WordNet 3.0 has 80,356 lines, 58,488 distinct nouns and 14,005 distinct adjectives, 1,725 words in both: 70,768.
# The released files (WordNet 3.1) have 79,455 lines, 58,546 + 13,091, 1,637 in both: 70,000, of which 69,770 are in
# WordNet 3.0.

# Column 2 of data.noun and data.adj is the number of the lexicographer file.
_ADJECTIVES = {0: "adj.all", 1: "adj.pert", 44: "adj.ppl"}
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
)
_LEFT_OUT = ("noun.animal", "noun.food")
_NUMBERS = {**_ADJECTIVES, **{number: f"noun.{name}" for number, name in enumerate(_NOUNS.split(), start=3)}}
REFINED = ("neg_labels_noun.txt", "neg_labels_adj.txt")  # of NegRefine
FILES = tuple(sorted(set(_NUMBERS.values()) - set(_LEFT_OUT)))


@dataclass(frozen=True)
class Words:
    """Distinct words by part of speech, in the order in which they are read.

    files     word -> its lexicographer file, such as noun.plant; the first one of a word that is in several
    selected  whether they are used as they are, not mined
    """

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict, repr=False)
    selected: bool = False


def read_words(path: str, exclude: Collection[str] = ()) -> Words:
    """Read the words of a folder, or the shipped list "release-wn30", without those of some lexicographer files.

    Raises ValueError if the folder has no word files.

    A folder holds either the 27 released files (adj.all.txt, ..., noun.time.txt) or WordNet's own data.noun and
    data.adj, as /usr/share/wordnet or NLTK's corpora/wordnet do.
    """
    if path == OWN_LIST:
        return distinct(read_list(Path(__file__).with_name(SHIPPED)), exclude)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"words: {path} is not a folder; name one with the released files (adj.all.txt, ...), or {OWN_LIST}"
        )
    if (folder / "data.noun").is_file() and (folder / "data.adj").is_file():
        return distinct(from_database(folder), exclude)
    missing = [name for name in FILES if not (folder / f"{name}.txt").is_file()]
    if missing:
        raise ValueError(
            f"words: {path} lacks {', '.join(missing[:3])}{', ...' if missing[3:] else ''} (.txt): {len(missing)} of "
            f"{len(FILES)} released word files; nor does it hold WordNet's data.noun and data.adj"
        )
    return distinct({name: read_lines(folder / f"{name}.txt") for name in FILES}, exclude)


def read_selected(path: str) -> Words | None:
    """Read words that are used as they are; return None if the path names words to be mined, as read_words() reads.

    They are NegRefine's two files in a folder, or the nouns of a file, one a line.
    """
    place = Path(path).expanduser()
    if path != OWN_LIST and place.is_file():
        return Words(tuple(read_lines(place)), (), selected=True)
    nouns, adjectives = (place / name for name in REFINED)
    if path == OWN_LIST or not (nouns.is_file() and adjectives.is_file()):
        return None
    return Words(tuple(read_lines(nouns)), tuple(read_lines(adjectives)), selected=True)


def distinct(files: dict[str, list[str]], exclude: Collection[str] = ()) -> Words:
    """Return every word once. Files are read in alphabetical order, so a word that is both is an adjective.

    The released code reads files in the order of the file system, which depends on the machine.
    """
    seen: dict[str, str] = {}
    for name in sorted(set(files) - set(exclude)):
        for word in files[name]:
            seen.setdefault(word, name)
    return Words(
        nouns=tuple(word for word, name in seen.items() if not name.startswith("adj.")),
        adjectives=tuple(word for word, name in seen.items() if name.startswith("adj.")),
        files=seen,
    )


def from_database(folder: Path) -> dict[str, list[str]]:
    """Read the first word of every synset, by lexicographer file, from WordNet's data.noun and data.adj.

    Words are lower-cased, underscores become spaces, and adjectives lose their position mark `(p)`, `(a)` or `(ip)`;
    words of one character and repetitions within a file are dropped.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in FILES}
    for part in ("data.adj", "data.noun"):
        for line in (folder / part).read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            _, number, _, _, lemma, *_ = line.split(" ", 5)
            name = _NUMBERS[int(number)]
            word = re.sub(r"\((p|a|ip)\)$", "", lemma).lower().replace("_", " ")
            if name in found and len(word) > 1:
                found[name].setdefault(word)
    return {name: list(words) for name, words in found.items()}


def read_lines(path: Path, option: str = "words") -> list[str]:
    """Read the stripped, non-empty lines of a text file; raise ValueError if there are none or it is not text."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}: cannot read {path}: {error}") from error
    if not any(lines):
        raise ValueError(f"{option}: {path} is empty")
    return [line for line in lines if line]


def read_list(path: Path) -> dict[str, list[str]]:
    """Read the shipped list: `# noun.plant`, then its words, one a line."""
    files: dict[str, list[str]] = {}
    for line in read_lines(path):
        if line.startswith("# "):
            current = files[line[2:]] = []
        else:
            current.append(line)
    return files


def written(files: dict[str, list[str]]) -> str:
    """Return the text that read_list() reads."""
    lines: Iterable[str] = (line for name in sorted(files) for line in (f"# {name}", *files[name]))
    return "\n".join(lines) + "\n"
