"""The parts of a training corpus: images with captions, one part at a time, so that millions of pairs fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, ImageSource
from oodbench.data.load import LoadOptions, load_images
from oodbench.storage.store import Store, digest

SHOWN = 5  # problems that a message quotes; all are counted


@dataclass(frozen=True)
class CorpusPart:
    """A part of the pairs of a corpus.

    listing    the distinct images
    image      index into the listing of every pair's image [n]
    captions   one per pair [n]
    skipped    one line per pair that cannot be used: where it is and why. They are hashed into the digest of the
               training data, so their wording must not change.
    """

    listing: ImageSet
    image: npt.NDArray[np.int64]
    captions: Sequence[str]
    skipped: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the images, the captions, and their pairing."""
        return digest([self.listing.digest, self.image.tolist(), list(self.captions)])


def glyphs_part(store: Store) -> CorpusPart:
    """Return the image-caption pairs of the embedded glyphs data set."""
    from oodbench.data.glyphs import world

    dataset = Dataset(name="glyphs-pairs", title="Glyphs", loader="glyphs", path="pairs")
    images = load_images(dataset, LoadOptions(Path(), store), labelled=False)
    return CorpusPart(images, np.arange(len(images)), tuple(world.caption(i) for i in range(len(images))))


def unlabelled_images(
    name: str, folder: Path, files: Sequence[str], fingerprints: Sequence[str], source: ImageSource | None
) -> ImageSet:
    """Return an image set without class labels, as the images of a corpus have none."""
    dataset = Dataset(name=name, title=name, loader="images", path=str(folder))
    labels: npt.NDArray[Any] = np.full(len(files), -1)
    return ImageSet(dataset, folder, tuple(files), tuple(fingerprints), labels, source=source)


def summarize_problems(name: str, problems: Sequence[str]) -> str:
    """Return one message that counts the problems and quotes the first few."""
    more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    what = "thing" if len(problems) == 1 else "things"
    return f"{name}: {len(problems):,} {what} cannot be used: {'; '.join(problems[:SHOWN])}{more}"
