"""The loader of MLflow's pyfunc flavour for detectors and weights; models contain neither code nor pickle.

The input has a column `image` of paths, or `bytes` of image files. The output has the columns score, class and, with a
threshold, decision (+1 in-distribution, -1 out-of-distribution), in the order of the images.
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
# Parameters of the machine, which MLflow's model_config can change; by default no embedding is stored.
MACHINE_DEFAULTS: dict[str, Any] = {
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
    """A saved detector as a pyfunc model."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        from oodbench.detector.detector import Detector

        self.detector = Detector.load(folder, **parameters)

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> DataFrame:
        """Score images; raise UserError as Detector does."""
        return _scored(self.detector, data)


class WeightsModel:
    """Trained weights as a pyfunc model: a detector for each set of class names."""

    def __init__(self, file: Path, parameters: Mapping[str, Any]) -> None:
        from oodbench.pipeline import weights

        self.file = file
        self.recipe = weights.recipe_of(file)
        self.parameters = {"encoder": self.recipe["encoder"]["name"], **parameters}
        self._detector = functools.lru_cache(4)(self._fitted)

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> DataFrame:
        """Score images for the class names in `params["classes"]`; raise UserError without them."""
        classes = tuple(map(str, (params or {}).get("classes", ())))
        if not classes:
            raise UserError('these weights need class names: predict(images, params={"classes": ["cat", "dog"]})')
        return _scored(self._detector(classes), data)

    def _fitted(self, classes: tuple[str, ...]) -> Detector:
        from oodbench.detector.detector import Detector

        return Detector(self.recipe["method"], classes=classes, weights=self.file, **self.parameters).fit()


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> DetectorModel | WeightsModel:
    """Load the registered file or folder; MLflow calls this."""
    config = {**MACHINE_DEFAULTS, **(model_config or {})}
    parameters = {name: value for name, value in config.items() if value != ""}
    return (DetectorModel if Path(path).is_dir() else WeightsModel)(Path(path), parameters)


def _scored(detector: Detector, data: DataFrame) -> DataFrame:
    from pandas import DataFrame

    scored = detector.score_images([_image(row) for row in _rows(data)])
    columns = {"score": scored.scores, "class": detector.class_names_of(scored)}
    if detector.threshold_ is not None:
        columns["decision"] = np.where(scored.scores >= detector.threshold_, 1, -1)
    return DataFrame(columns, index=data.index)


def _rows(data: DataFrame) -> list[dict[str, Any]]:
    names = [name for name in INPUTS if name in data.columns]
    if not names:
        raise UserError("no images were given: give a column 'image' of paths, or 'bytes' of image files")
    return [dict(zip(names, values, strict=True)) for values in zip(*(data[name] for name in names), strict=True)]


def _image(row: Mapping[str, Any]) -> Any:
    """Return a path, or the image in bytes."""
    from oodbench.storage.fingerprints import decode

    content = row.get("bytes")
    if not isinstance(content, bytes):
        return row.get("image")
    try:
        return decode(content)
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"the bytes are not an image: {error}") from error
