"""Prompt sets and class-name lists, by name (text files in datasets/) or file, each with a digest."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass

from oodbench.data.paths import declarations
from oodbench.errors import UserError, did_you_mean
from oodbench.storage.files import expand
from oodbench.storage.store import digest


def lines(text: str) -> list[str]:
    """The lines of a text, without their ends; str.splitlines also splits at form feeds, U+0085 and U+2028."""
    found = re.split(r"\r\n|\n|\r", text)
    return found[:-1] if found[-1] == "" else found


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
        """Name, count and digest, as a row keeps them."""
        return {"name": self.name, "count": len(self.lines), "digest": self.digest}

    def duplicates(self) -> list[str]:
        """Texts that occur more than once, in order."""
        return [line for line, n in Counter(self.lines).items() if n > 1]


def templates(name: str) -> TextList:
    """Prompt templates: a set's name, a file with one template a line, or a single template with `{}` in it."""
    if "{}" in name:
        lines = TextList(name, (name,))
    else:
        lines = _lines(name, "prompts", "prompt set", ", nor a template with {} in it")
    wrong = [line for line in lines.lines if line.count("{}") != 1]
    if wrong:
        where = "" if "{}" in name else f"prompt set '{name}': "
        raise UserError(f"{where}template {wrong[0]!r} must contain {{}} once, for the class name")
    return lines


def class_names(name: str) -> TextList:
    """Class names in label order: a shipped list's name, or a file with one name a line. Duplicates are kept."""
    return _lines(name, "classes", "class list", "")


def names(kind: str) -> list[str]:
    """Names of the shipped lists of a kind, `prompts` or `classes`."""
    return sorted(path.stem for path in (declarations() / kind).glob("*.txt"))


def _lines(name: str, kind: str, what: str, alternative: str) -> TextList:
    """The lines of a shipped list or of a file, stripped, without empty ones and comments.

    A comment is a line that begins with # and a space: `#1 fan` is a name.
    """
    path = declarations() / kind / f"{name}.txt" if name in names(kind) else expand(name)
    if not os.path.isfile(path):  # pathlib's raises when the name is too long for one
        raise UserError(f"no {what} '{name}', neither shipped nor a file{alternative}{did_you_mean(name, names(kind))}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {what} {path}: {error}") from error
    kept = tuple(line.strip() for line in lines(text) if line.strip() and not re.match(r"#(\s|$)", line))
    if not kept:
        raise UserError(f"{what} {path} is empty")
    return TextList(name if name in names(kind) else path.name, kept)
