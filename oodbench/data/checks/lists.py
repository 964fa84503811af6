"""List files against the digests that the catalogue declares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from oodbench.data.catalog import UNKNOWN, Dataset
from oodbench.data.checks.findings import Finding
from oodbench.data.loaders.imagelist import read_list
from oodbench.errors import UserError


def compared(dataset: Dataset, data: Path) -> tuple[Dataset, tuple[str, str] | None, Finding | None]:
    """The dataset to go on with, digests of its list file (found, declared or ""), and a finding when they differ.

    Loaders refuse a list of another digest; a check tells it and goes on, with a dataset that declares none.
    """
    path = data / dataset.list
    if dataset.list and not path.is_file():
        path = path.with_name(path.name + ".gz")
    if not dataset.list or not path.is_file():  # no list, or told when the set is listed
        return dataset, None, None
    try:
        found = read_list(path)
    except UserError:
        return dataset, None, None
    declared = "" if dataset.digest == UNKNOWN else dataset.digest
    if declared in ("", found.digest):
        return dataset, (found.digest, declared), None
    message = (
        f"{path} has the sha256 {found.digest[:12]} ({len(found.names):,} lines), the catalogue declares "
        f"{declared[:12]}: other images, another order or other labels"
    )
    finding = Finding("error", "digest", (dataset.name,), message)
    return dataclasses.replace(dataset, digest=UNKNOWN), (found.digest, declared), finding
