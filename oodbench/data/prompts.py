"""Prompt templates and class names: text files of datasets/ by name, or files of the user."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from oodbench.data.paths import declarations
from oodbench.errors import UserError, did_you_mean
from oodbench.storage.files import expand
from oodbench.storage.store import digest


@dataclass(frozen=True)
class TextList:
    """A named list of texts: templates or class names."""

    name: str
    lines: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 of the texts in order, without the name."""
        return digest(list(self.lines))

    def card(self) -> dict[str, object]:
        """Return name, count and digest for a result row."""
        return {"name": self.name, "count": len(self.lines), "digest": self.digest}

    def duplicates(self) -> list[str]:
        """Return the texts that occur more than once, in order."""
        return [line for line, n in Counter(self.lines).items() if n > 1]


def templates(name: str) -> TextList:
    """Return prompt templates: a shipped set, a file with one template per line, or one template with `{}` in it.

    Raises UserError unless every template contains `{}` exactly once.
    """
    if "{}" in name:
        result = TextList(name, (name,))
    else:
        result = _read(name, "prompts", "prompt set", ", nor a template with {} in it")
    wrong = [line for line in result.lines if line.count("{}") != 1]
    if wrong:
        where = "" if "{}" in name else f"prompt set '{name}': "
        raise UserError(f"{where}template {wrong[0]!r} must contain {{}} once, for the class name")
    return result


def class_names(name: str) -> TextList:
    """Return class names in label order: a shipped list, or a file with one name per line. Duplicates are kept."""
    return _read(name, "classes", "class list", "")


def clean_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names as words: `annual crop` for `AnnualCrop`, `golden retriever` for `golden_retriever`.

    Underscores, slashes and changes of case separate words. Words become lower case, except acronyms (`MRI`). Names
    with blanks but without these separators are unchanged. A number or wnid before every name (`001.Albatross`) is
    removed.
    """
    bare = [_NUMBER.sub("", name) for name in names]
    numbered = all(len(short) < len(name) for short, name in zip(bare, names, strict=True))
    if not numbered or len(set(map(_as_words, bare))) < len(set(map(_as_words, names))):  # 2_wheeler, 4_wheeler
        bare = list(names)
    return tuple(_as_words(name) or name for name in bare)


_NUMBER = re.compile(
    r"^(n\d{8}|\d+)[-._ ]+(?=.*[^\W\d_])"
)  # before a name: 001.Black_footed_Albatross, n02085620-Chihuahua


def _as_words(name: str) -> str:
    """Return one name as words."""
    text = re.sub(r"[_/]+", " ", name)
    pairs = zip(text, text[1:], f"{text[2:]} ", strict=False)
    # A word begins at a capital after a lower-case letter (`sea|Lake`), and at the last of several (`MRI|Scan`).
    ends = [i for i, (a, b, c) in enumerate(pairs, 1) if b.isupper() and (a.islower() or (a.isupper() and c.islower()))]
    parts = [text[start:end] for start, end in zip([0, *ends], [*ends, None], strict=True)]
    words = " ".join(parts).split()
    if " " in name.strip() and words == name.split():
        return " ".join(words)
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)


def names(kind: str) -> list[str]:
    """Return the names of the shipped lists of a kind, "prompts" or "classes"."""
    return sorted(path.stem for path in (declarations() / kind).glob("*.txt"))


def split_lines(text: str) -> list[str]:
    """Return the lines of a text. Unlike str.splitlines, do not split at form feeds, U+0085 or U+2028."""
    parts = re.split(r"\r\n|\n|\r", text)
    return parts[:-1] if parts[-1] == "" else parts


def _read(name: str, kind: str, what: str, alternative: str) -> TextList:
    """Return the lines of a shipped list or of a file, stripped, without empty lines and comments.

    A comment is a line that begins with # and a space: `#1 fan` is a name.
    """
    shipped = names(kind)
    path = declarations() / kind / f"{name}.txt" if name in shipped else expand(name)
    if not os.path.isfile(path):  # Path.is_file raises OSError when the name is too long
        raise UserError(f"no {what} '{name}', neither shipped nor a file{alternative}{did_you_mean(name, shipped)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what} {path}: {error}") from error
    kept = tuple(line.strip() for line in split_lines(text) if line.strip() and not re.match(r"#(\s|$)", line))
    if not kept:
        raise UserError(f"{what} {path} is empty")
    return TextList(name if name in shipped else path.name, kept)
