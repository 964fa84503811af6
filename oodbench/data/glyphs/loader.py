"""Loader of the embedded benchmark, whose images are rendered when they are read."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet
from oodbench.storage.fingerprints import ReadImage
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image


class RenderedGlyphs:
    """Renders images by name, `split/number-name`."""

    def read(self, name: str) -> ReadImage:
        """Render one image; its fingerprint is the sha256 of its pixels."""
        image = self._render(name)
        content = hashlib.sha256(image.tobytes()).hexdigest()
        return ReadImage(content, lambda: image, lambda: content)

    def content(self, name: str) -> str:
        """Return the sha256 of the pixels."""
        return self.read(name).content()

    def _render(self, name: str) -> Image:
        from PIL import Image

        from oodbench.data.glyphs import render

        split, _, number = name.partition("/")
        return Image.fromarray(render.image(split, int(number.partition("-")[0])))


def load(dataset: Dataset, store: Store) -> ImageSet:
    """List a split. Digests of the pixels are kept in the store until sources, fonts or libraries change."""
    from oodbench.data.glyphs import render, world

    split = dataset.path
    inputs: dict[str, Any] = {"split": split, "n": world.length(split), **render.recipe()}
    entry = store.find("glyphs", inputs)
    facts = entry.facts if entry else {}
    if not facts:
        facts = _listing(split)
        store.try_write("glyphs", inputs, facts)
    labels = np.array(facts["labels"])
    folders = tuple(world.CLASSES) if labels.max() >= 0 else ()
    names, fingerprints = tuple(facts["names"]), tuple(facts["prints"])
    return ImageSet(dataset, Path(), names, fingerprints, labels, folders, source=RenderedGlyphs(), content=True)


@functools.cache
def _listing(split: str) -> dict[str, Any]:
    """Return names, digests of the pixels and labels of a split: all of its images are rendered, once per process."""
    from oodbench.data.glyphs import render, world

    images = range(world.length(split))
    return {
        "names": [world.name(split, i) for i in images],
        "prints": [hashlib.sha256(render.image(split, i).tobytes()).hexdigest() for i in images],
        "labels": [world.label(split, i) for i in images],
    }
