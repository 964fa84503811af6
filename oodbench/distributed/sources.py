"""Lists of images made fit to travel: what holds files open is found anew where it arrives."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.data import imageset as images
from oodbench.data.catalog import Dataset
from oodbench.data.catalog import dataset as declared
from oodbench.data.imageset import Listing
from oodbench.data.items import Tree
from oodbench.data.subsets import Several
from oodbench.storage.store import Store
from oodbench.storage.urls import is_url

if TYPE_CHECKING:
    from oodbench.data.items import Source
    from oodbench.data.prints import Taken

_OPENING = threading.Lock()


@dataclass(frozen=True)
class Again:
    """Reads a set's images after looking for it once more, at the first image."""

    dataset: Dataset
    data: Path
    root: Path

    def take(self, name: str) -> Taken:
        """Read one image."""
        return self._found().take(name)

    def content(self, name: str) -> str:
        """sha256 of what is stored for an image."""
        return self._found().content(name)

    def tree_print(self) -> str:
        """The print of all its files now; "" of a source that looks at them image by image."""
        source = self._found()
        return source.tree_print() if isinstance(source, Tree) else ""

    @property
    def listed_print(self) -> str:
        """The print of all its files before they were opened here."""
        source = self._found()
        return source.listed_print if isinstance(source, Tree) else ""

    def _found(self) -> Source:
        with _OPENING:  # threads ask for their first image at once
            return _source(self)


@functools.cache
def _source(again: Again) -> Source:
    return images.source(again.dataset, again.data, Store(again.root))


def portable(listing: Listing, data: Path, store: Store) -> Listing:
    """The same list with a source that can be pickled, in its origins, too."""
    origins = tuple(dataclasses.replace(one, listing=portable(one.listing, data, store)) for one in listing.origins)
    source = listing.source if _travels(listing) else _anew(listing, data, store)
    made = dataclasses.replace(listing, source=source, origins=origins)
    made.__dict__.update(digest=listing.digest, stamp=listing.stamp)  # known already
    return made


def _travels(listing: Listing) -> bool:
    """Whether the source means the same elsewhere: it can be pickled, and is no copy that this machine has fetched."""
    if isinstance(listing.source, Several):
        return all(_travels(one) for one in listing.source.parts.values())
    if is_url(_whole(listing.dataset).path):
        return False
    try:
        pickle.dumps(listing.source)
    except (TypeError, AttributeError, pickle.PicklingError):
        return False
    return True


def _anew(listing: Listing, data: Path, store: Store) -> Source:
    """What finds the images once more: those of a part in its whole, those of several sets in each."""
    if isinstance(listing.source, Several):
        return Several({name: portable(one, data, store) for name, one in listing.source.parts.items()})
    return Again(_whole(listing.dataset), data, store.root)


def _whole(dataset: Dataset) -> Dataset:
    """The set that a part is taken from, or the set itself."""
    while dataset.within:
        dataset = declared(dataset.within)
    return dataset
