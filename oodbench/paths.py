"""Where the shipped declarations lie: beside the package in a wheel, one level up in a checkout. And `~`."""

from __future__ import annotations

from pathlib import Path

from oodbench.errors import UserError


def declarations() -> Path:
    """The folder datasets/. Found by path: importlib.resources fails on editable mappings."""
    here = Path(__file__).resolve().parent
    for folder in (here / "datasets", here.parent / "datasets"):
        if (folder / "benchmarks").is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its datasets folder, looked for beside {here}")


def published() -> Path:
    """The folder results/published, found in the same way."""
    here = Path(__file__).resolve().parent
    for folder in (here / "published", here.parent / "results" / "published"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its published numbers, looked for beside {here}")


def reference() -> Path | None:
    """The folder of the project's own rows on glyphs, found in the same way; None where it is left out."""
    here = Path(__file__).resolve().parent
    folders = (here / "rows_of_glyphs", here.parent / "results" / "reference" / "glyphs")
    return next((folder for folder in folders if folder.is_dir()), None)


def expand(path: Path | str, given: str = "the path") -> Path:
    """A path of the user's with `~` read as the home folder; UserError when there is no such home.

    given  the flag or the variable that the path comes from, for the message
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{given} {path} cannot be read: {error}") from error
