"""Corpora: images with captions, part by part, so that millions of pairs need little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, ImageSource
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import UserError
from oodbench.storage.store import Store, digest
from oodbench.training.plan import GLYPHS, TrainRequest

SHOWN = 5  # problems that are named; all are counted


@dataclass(frozen=True)
class Part:
    """Some pairs of a corpus.

    listing    the distinct images
    image      the image of every pair, as position in the listing [n]
    captions   n of them
    skipped    what could not be used, each with its place and the reason
    """

    listing: ImageSet
    image: npt.NDArray[np.int64]
    captions: Sequence[str]
    skipped: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of the images, the captions, and which belong together."""
        return digest([self.listing.digest, self.image.tolist(), list(self.captions)])


def parts(request: TrainRequest, store: Store) -> Iterator[Part]:
    """The parts of a request's corpus; what cannot be used is an error with --on-error stop, named and counted."""
    for part in _all_parts(request, store):
        if part.skipped and request.on_error == "stop":
            raise UserError(told(part.listing.dataset.name, part.skipped) + "\n  mend it, or go on: --on-error skip")
        yield part


def _all_parts(request: TrainRequest, store: Store) -> Iterable[Part]:
    if request.captions == GLYPHS:
        return [glyphs(store)]
    if request.captions.lower().endswith((".csv", ".tsv")):
        from oodbench.training.captions_csv import read

        return [read(Path(request.captions).expanduser(), request.data)]
    from oodbench.training.captions_tar import read_all

    return read_all(request.captions, store)


def glyphs(store: Store) -> Part:
    """The rendered pairs of the embedded world."""
    from oodbench.data.glyphs import world

    dataset = Dataset(name="glyphs-pairs", title="Glyphs", loader="glyphs", path="pairs")
    found = load_images(dataset, LoadOptions(Path(), store), labelled=False)
    return Part(found, np.arange(len(found)), tuple(world.caption(i) for i in range(len(found))))


def listed(name: str, place: Path, files: Sequence[str], prints: Sequence[str], source: ImageSource | None) -> ImageSet:
    """A list of images with captions: they have no labels."""
    dataset = Dataset(name=name, title=name, loader="images", path=str(place))
    labels: npt.NDArray[Any] = np.full(len(files), -1)
    return ImageSet(dataset, place, tuple(files), tuple(prints), labels, source=source)


def told(where: str, problems: Sequence[str]) -> str:
    """One text that counts problems and names the first of them."""
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    what = "thing" if len(problems) == 1 else "things"
    return f"{where}: {len(problems):,} {what} cannot be used: {'; '.join(problems[:SHOWN])}{more}"
