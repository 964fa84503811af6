"""Where the shipped declarations lie: beside the package in a wheel, one level up in a checkout. And users' paths."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from oodbench.errors import UserError


def declarations() -> Path:
    """The folder datasets/. Found by path: importlib.resources fails on editable mappings."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "datasets", here.parent / "datasets"):
        if (folder / "benchmarks").is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its datasets folder, looked for beside {here}")


def published() -> Path:
    """The folder results/published, found in the same way."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "published", here.parent / "results" / "published"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its published numbers, looked for beside {here}")


def reference() -> Path | None:
    """The folder of the project's own rows on glyphs, found in the same way; None where it is left out."""
    here = Path(__file__).resolve().parents[1]
    folders = (here / "rows_of_glyphs", here.parent / "results" / "reference" / "glyphs")
    return next((folder for folder in folders if folder.is_dir()), None)


def expand(path: Path | str, given: str = "the path") -> Path:
    """A path of the user's with `~` read as the home folder; UserError when there is no such home.

    given  the flag or the variable that the path comes from, for the message
    """
    try:
        if "\0" in str(path):
            raise RuntimeError("no name of a file has a NUL byte in it")
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{given} {path} cannot be read: {error}") from error


def real(path: Path | str) -> Path:
    """`expand`, absolute and without links; a link that leads to itself stays, where Path.resolve raises."""
    return Path(os.path.realpath(expand(path)))


def text_of(path: Path, given: str) -> str:
    """The text of a user's file in UTF-8, with or without a mark, or in UTF-16 with one.

    UserError, which begins with `given`, for what is no such text, is no file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file() and not str(path).startswith("/dev/fd/"):  # `<(...)` of a shell
            raise UserError(f"{given} {path} is no file")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{given} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{given} {path} is no text in UTF-8 (byte {error.start + 1}); save it in UTF-8") from error
