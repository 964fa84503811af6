"""A detector or weights as MLflow's pyfunc flavour loads and calls them; neither code nor pickle is in the model.

Images are a column `image` of paths, or `bytes` of files; the answer has the columns score, class and, with a
threshold, decision (+1 in-distribution, -1 not), in the order of the images.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from oodbench.detector.detector import Detector

INPUTS = {"image": "string", "bytes": "binary"}
OUTPUTS = {"score": "double", "class": "string", "decision": "long"}
# What the place of use decides, with MLflow's model_config; embeddings are kept nowhere unless asked for.
PLACES: dict[str, Any] = {
    "device": "auto",
    "workers": 0,
    "on_error": "stop",
    "encoder": "",
    "store": "",
    "shared": "",
    "keep": False,
    "plugins": [],
}


class DetectorModel:
    """A saved detector."""

    def __init__(self, folder: Path, places: Mapping[str, Any]) -> None:
        from oodbench.detector.detector import Detector

        self.detector = Detector.load(folder, **places)

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> DataFrame:
        """Scores of images. UserError as Detector raises it."""
        return _scored(self.detector, data)


class WeightsModel:
    """Trained weights: a detector for each set of class names that is asked for."""

    def __init__(self, file: Path, places: Mapping[str, Any]) -> None:
        from oodbench.pipeline import weights

        self.file = file
        self.recipe = weights.recipe_of(file)
        self.places = {"encoder": self.recipe["encoder"]["name"], **places}
        self._detector = functools.lru_cache(4)(self._fitted)

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> DataFrame:
        """Scores of images for the class names in `params["classes"]`. UserError without them."""
        classes = tuple(map(str, (params or {}).get("classes", ())))
        if not classes:
            raise UserError('these weights need class names: predict(images, params={"classes": ["cat", "dog"]})')
        return _scored(self._detector(classes), data)

    def _fitted(self, classes: tuple[str, ...]) -> Detector:
        from oodbench.detector.detector import Detector

        return Detector(self.recipe["method"], classes=classes, weights=self.file, **self.places).fit()


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> DetectorModel | WeightsModel:
    """Called by MLflow with the file or folder that was registered."""
    asked = {**PLACES, **(model_config or {})}
    places = {name: value for name, value in asked.items() if value != ""}
    return (DetectorModel if Path(path).is_dir() else WeightsModel)(Path(path), places)


def _scored(detector: Detector, data: DataFrame) -> DataFrame:
    from pandas import DataFrame

    found = detector.score_images([_image(row) for row in _rows(data)])
    columns = {"score": found.scores, "class": detector.named(found)}
    if detector.threshold_ is not None:
        columns["decision"] = np.where(found.scores >= detector.threshold_, 1, -1)
    return DataFrame(columns, index=data.index)


def _rows(data: DataFrame) -> list[dict[str, Any]]:
    names = [name for name in INPUTS if name in data.columns]
    if not names:
        raise UserError("no images were given: give a column 'image' of paths, or 'bytes' of image files")
    return [dict(zip(names, values, strict=True)) for values in zip(*(data[name] for name in names), strict=True)]


def _image(row: Mapping[str, Any]) -> Any:
    """A path, or the image that bytes hold."""
    from oodbench.storage.fingerprints import decode

    content = row.get("bytes")
    if not isinstance(content, bytes):
        return row.get("image")
    try:
        return decode(content)
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"bytes that are no image: {error}") from error
