"""Folders: those shipped with oodbench, the user's declarations, and the data.

Shipped folders are inside the package in a wheel, and next to it in a checkout.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from oodbench.errors import UserError
from oodbench.storage.files import expand

_GET = re.compile(r"oodbench datasets get [\w.-]+(?: --from [\w.-]+)?")


def declarations() -> Path:
    """Return the folder datasets/. importlib.resources does not find it in an editable installation."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "datasets", here.parent / "datasets"):
        if (folder / "benchmarks").is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its datasets folder, which belongs next to {here}")


def published() -> Path:
    """Return the folder results/published."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "published", here.parent / "results" / "published"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"oodbench was installed without its published numbers, which belong next to {here}")


def reference() -> Path | None:
    """Return the folder of the project's results on glyphs; None if it was not installed."""
    here = Path(__file__).resolve().parents[1]
    folders = (here / "rows_of_glyphs", here.parent / "results" / "reference" / "glyphs")
    return next((folder for folder in folders if folder.is_dir()), None)


def config_folder() -> Path:
    """Return the folder of the user's declarations.

    It is $OODBENCH_CONFIG, else $XDG_CONFIG_HOME/oodbench, else ~/.config/oodbench. A relative $XDG_CONFIG_HOME is
    ignored, as the XDG specification asks. Raises UserError when the user has no home folder.
    """
    if chosen := os.environ.get("OODBENCH_CONFIG"):
        return expand(chosen, "$OODBENCH_CONFIG")
    if os.path.isabs(xdg := os.environ.get("XDG_CONFIG_HOME", "")):
        return Path(xdg, "oodbench")
    try:
        return Path.home() / ".config" / "oodbench"
    except RuntimeError as error:
        raise UserError("this user has no home folder for declarations; name a folder with $OODBENCH_CONFIG") from error


def config_folder_or_none() -> Path | None:
    """Return config_folder(); None for a user without a home folder, who has no declarations."""
    try:
        return config_folder()
    except UserError:
        if os.environ.get("OODBENCH_CONFIG"):
            raise
        return None


def data_root(given: Path | None) -> Path:
    """Return the folder of the datasets: `given` (--data), else $OODBENCH_DATA, else ./data."""
    chosen = os.environ.get("OODBENCH_DATA")
    return expand(given or "data") if given or not chosen else expand(chosen, "$OODBENCH_DATA")


def data_option(root: Path) -> str:
    """Return ` --data ROOT` for a printed command; "" if ROOT is the default."""
    return "" if root == data_root(None) else f" --data {shlex.quote(str(root))}"


def with_data_option(text: str, root: Path) -> str:
    """Add the data folder to every `oodbench datasets get` command in a text, if it is not the default."""
    return _GET.sub(lambda found: found[0] + data_option(root), text)
