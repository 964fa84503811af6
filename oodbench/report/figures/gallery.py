"""Gallery: the images and class names behind a row, only if they are those that were scored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodbench.data import catalog as catalogue
from oodbench.data import overlap as sets
from oodbench.data import prompts
from oodbench.data.catalog import Dataset
from oodbench.data.decode import decoding, reason
from oodbench.data.imageset import Listing
from oodbench.data.loaders.tars import expand as expand_pattern
from oodbench.data.paths import expand
from oodbench.errors import UserError
from oodbench.pipeline.request import RunRequest
from oodbench.results import IdRow, Result, SetRow
from oodbench.storage.reading import copy_of
from oodbench.storage.store import Store, default_root
from oodbench.storage.urls import is_url, shown

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # height, width, 3

LARGEST = 192  # pixels of the longer side; larger images are scaled down


@dataclass
class Gallery:
    """Lists of a table's images, each made once. `absent` says of every list that is not to be had why it is not."""

    data: Path | None
    absent: dict[str, str] = field(default_factory=dict)
    _lists: dict[str, Listing] = field(default_factory=dict)
    _names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def images(self, row: Result, of: IdRow | SetRow, names: Sequence[str]) -> list[Pixels] | None:
        """Images of a set by their names in the row's scores; None, which is logged, when they are not to be had."""
        listing = self._listing(row, of)
        if listing is None:
            return None
        where: dict[str, int] = {}
        for i, name in enumerate(listing.names):
            where.setdefault(name.encode("utf-8", "backslashreplace").decode(), i)  # as rows._text writes them
        try:
            if len(where) < len(listing):
                raise UserError("several of its images have one name")
            with decoding():
                return [_pixels(listing, where[name]) for name in names]
        except KeyError as error:
            self._leave_out(of, f"its list has no image {error}")
        except UserError as error:
            self._leave_out(of, str(error))
        except Exception as error:  # whatever a decoder raises
            self._leave_out(of, f"an image cannot be read: {reason(error)}")
        return None

    def classes(self, row: Result) -> tuple[str, ...]:
        """The row's class names in label order; () when they are not to be had, which is logged."""
        digest = str(row.classes.get("digest"))
        if digest not in self._names:
            self._names[digest] = self._found(row, digest)
        return self._names[digest]

    def _found(self, row: Result, digest: str) -> tuple[str, ...]:
        name = str(row.classes.get("name"))
        if name in prompts.names("classes"):
            lines = prompts.class_names(name)
            if lines.digest == digest:
                return lines.lines
        listing = self._listing(row, row.id)
        try:
            if listing is not None and (lines := sets.class_names(listing)).digest == digest:
                return lines.lines
        except UserError as error:
            log.warning("no class names of '%s': %s", row.id.dataset, error)
        log.warning("the class names '%s' of the rows are not to be had; pictures give class numbers", name)
        return ()

    def _listing(self, row: Result, of: IdRow | SetRow) -> Listing | None:
        name = of.dataset
        if name not in self._lists and name not in self.absent:
            try:
                self._lists[name] = self._listed(row, of)
            except UserError as error:
                self._leave_out(of, str(error))
        return self._lists.get(name)

    def _listed(self, row: Result, of: IdRow | SetRow) -> Listing:
        strict = row.run.get("lists") == "content"
        request = RunRequest(data=self.data, strict=strict, limit=row.run.get("limit"), allow_partial=True)
        store = Store(expand(default_root()))
        behind = [url for url in _urls(catalogue.dataset(of.dataset)) if not copy_of(url).is_file()]
        if behind:  # a picture is no reason to fetch gigabytes
            raise UserError(f"{shown(behind[0])} was not fetched on this machine")
        found = sets.listed(catalogue.dataset(of.dataset), request, isinstance(of, IdRow), store)
        if found.digest != of.list_digest:
            raise UserError(
                f"dataset '{of.dataset}': what lies at {found.folder} is not the list of images that was scored "
                f"({len(found):,} images; names, sizes and times count)"
            )
        return found

    def _leave_out(self, of: IdRow | SetRow, why: str) -> None:
        self._lists.pop(of.dataset, None)
        if of.dataset not in self.absent:
            self.absent[of.dataset] = why
            log.warning("images of '%s' are left out: %s", of.dataset, why)


def _urls(dataset: Dataset) -> list[str]:
    """What a set, or those that it is made of, has behind URLs."""
    made_of = [*dataset.parts, *([dataset.within] if dataset.within else [])]
    own = expand_pattern(dataset.path) if is_url(dataset.path) else []
    return [*own, *(url for name in made_of for url in _urls(catalogue.dataset(name)))]


def _pixels(listing: Listing, index: int) -> Pixels:
    """An image in RGB, scaled down when it is larger than LARGEST."""
    image = listing.read(index).convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image)
