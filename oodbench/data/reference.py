"""Sets as the command line names them: `folder:PATH`, `list:FILE@ROOT`, `tar:PATTERN`, `hf:NAME`, `NAME[classes]`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from oodbench.data.paths import expand, real
from oodbench.errors import UserError
from oodbench.storage.urls import is_secret, is_url, shown

OWN = ("folder:", "list:", "tar:", "hf:", "arrays:")
_EXAMPLES = {
    "folder": "a path, as in folder:photos",
    "list": "a file, as in list:test.txt or list:test.txt@images",
    "tar": "a file or pattern, as in tar:shards/test-{000..012}.tar",
    "hf": "a name, a saved folder or a parquet file, as in hf:uoft-cs/cifar10",
    "arrays": "a file, as in arrays:images.npz",
}
_SELECTED = re.compile(r"(?P<whole>[\w.-]+)\[(?P<keep>[^\[\]]*)\]")


def own_dataset(reference: str) -> dict[str, Any] | None:
    """The fields of a dataset of the user's own, paths absolute; None for the name of a declared one."""
    kind, colon, rest = reference.partition(":")
    if not colon or kind not in _EXAMPLES:
        return None
    if not rest:
        raise UserError(f"{kind}: needs {_EXAMPLES[kind]}")
    fields = {"name": reference, "loader": {"folder": "classes"}.get(kind, kind)}
    if kind == "list":
        file, at, root = rest.rpartition("@")
        if not at or os.path.exists(expand(rest)):
            file, root = rest, ""
        path = real(file)
        return {
            **fields,
            "title": _bare(path),
            "path": str(real(root) if root else path.parent),
            "list": str(path),
        }
    if is_url(rest):
        if is_secret(rest):  # it would stand in rows and tables
            raise UserError(f"{kind}:{shown(rest)}: a set is named by its URL: leave out password and signature")
        return {**fields, "title": _bare(Path(rest)), "path": rest}
    path = real(rest)
    if kind == "hf" and not path.exists():
        return {**fields, "title": rest, "path": rest}
    return {**fields, "title": path.name if kind == "folder" else _bare(path), "path": str(path)}


def selection(reference: str) -> tuple[str, tuple[str, ...]]:
    """`cifar10[0 1 5-7]` as ("cifar10", ("0", "1", "5-7")); other names with ()."""
    found = _SELECTED.fullmatch(reference)
    if not found:
        return reference, ()
    keep = tuple(found["keep"].replace("!", "! ").replace(",", " ").split())
    if not keep or keep == ("!",):
        raise UserError(f"'{reference}' names no class; write {found['whole']}[0 1 5-7], or [!0 1] for all others")
    return found["whole"], keep


def _bare(path: Path) -> str:
    """The file name without its endings; braces and stars stay."""
    return re.sub(r"(\.(tar|txt|gz|parquet|npz|npy|csv|lst))+$", "", path.name)
