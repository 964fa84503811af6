"""The labelled ID images that a FewShotMethod is trained on: K of each class, drawn with the seed as in a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oodbench.data import catalog
from oodbench.data.calibration import Draw, draw_labelled
from oodbench.data.catalog import Benchmark
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names_of, load_images
from oodbench.data.paths import data_root
from oodbench.data.prompts import TextList
from oodbench.pipeline.plan import training_split
from oodbench.storage.store import Store

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest

GLYPHS = "glyphs"
SHOTS = 16  # images of each class, as most tables of few-shot methods have


@dataclass(frozen=True)
class Shots:
    """The training images of a FewShotMethod.

    id       name of the ID set
    classes  its class names, in label order
    images   the images; labels are indices into `classes`
    number   images of each class
    """

    id: str
    classes: TextList
    images: ImageSet
    number: int

    def facts(self) -> dict[str, Any]:
        """Return the description of the images in the header of a weights file."""
        return {
            "set": self.id,
            "shots": self.number,
            "classes": {"count": len(self.classes.lines), "digest": self.classes.digest},
            "images": len(self.images),
            "list": self.images.list_digest,
        }


def benchmark_of(request: TrainRequest) -> Benchmark:
    """Return the benchmark of the ID set that a request names."""
    return catalog.protocol(request.id or GLYPHS, (), request.classes, needs_ood=False).benchmark


def find_shots(request: TrainRequest, store: Store) -> Shots:
    """Draw the images of a request, the same as `oodbench run --shots K --shot-seed SEED`; none is decoded.

    Raises UserError if the ID set or its training images are missing, or a class has fewer images than asked for.
    """
    protocol = catalog.protocol(request.id or GLYPHS, (), request.classes, needs_ood=False)
    dataset = dataclasses.replace(protocol.id, clean_names=protocol.id.clean_names or request.clean_names)
    options = LoadOptions(data_root(request.data), store, allow_partial=request.allow_partial)
    id_set = load_images(dataset, options, labelled=True)
    classes = class_names_of(id_set)
    split = training_split(request.calibration or protocol.benchmark.calibration, id_set, options)
    number = request.shots or SHOTS
    images = draw_labelled(split, id_set, options, Draw(None, shots=number, shot_seed=request.seed))
    return Shots(id_set.dataset.name, classes, images, number)
