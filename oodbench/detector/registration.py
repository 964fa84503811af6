"""A saved detector or trained weights as a model for MLflow's model registry."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from oodbench.detector import pyfunc, saving
from oodbench.detector.engine import text_list
from oodbench.errors import UserError
from oodbench.pipeline import weights
from oodbench.results import flatten, versions
from oodbench.storage.store import file_digest
from oodbench.tracking.models import Model

_LOADER = "oodbench.detector.pyfunc"
_NOTE = """\
{facts}

```python
model = mlflow.pyfunc.load_model({uri!r}, model_config={{"device": "cpu"}})
model.predict(pandas.DataFrame({{"image": paths}}){more})  # {columns}
```
"""


def model_of(path: Path, classes: str = "", encoder: str = "") -> Model:
    """Return the model of a saved detector, or of weights of `oodbench train`; raise UserError for anything else.

    Arguments:
        path     folder of a detector, or file of weights
        classes  default class names for weights: the name of a list, or a file; a detector has its own
        encoder  file of the encoder's weights, if it was moved since the training or fit
    """
    if path.is_dir():
        return _detector(path, classes, encoder)
    if not path.exists():
        raise UserError(f"no {path}; name the folder of a saved detector, or a file of trained weights")
    return _weights(path, classes, encoder)


def _detector(path: Path, classes: str, encoder: str) -> Model:
    recipe = saving.read(path).recipe
    if classes:
        raise UserError(f"the detector in {path} has its class names; leave out --classes")
    threshold, trained, names = recipe["threshold"], recipe["weights"] or {}, recipe["classes"]
    outputs = {name: kind for name, kind in pyfunc.OUTPUTS.items() if name != "decision" or threshold is not None}
    facts = {
        "kind": "detector",
        "method": recipe["method"],
        "encoder": str(recipe["encoder"]["name"]),
        "classes": str(len(names)),
        "threshold": "" if threshold is None else repr(threshold),
    }
    known = {"weights": str(trained.get("digest", "")), "commit": recipe["commit"] or ""}
    model = _model(path, facts | known, recipe, encoder)
    return dataclasses.replace(model, outputs=outputs, note=_note(facts, outputs))


def _weights(path: Path, classes: str, encoder: str) -> Model:
    recipe = weights.recipe_of(path)
    if not recipe:
        raise UserError(
            f"{path} was not written by oodbench train; register a detector that uses it: "
            f"oodbench score IMAGES --method METHOD --classes FILE --weights {path} --save FOLDER"
        )
    trained_for = tuple(recipe.get("class_names", ()))  # of a few-shot method, whose class names are fixed
    names = text_list(classes).lines if classes else trained_for
    if trained_for and names != trained_for:
        raise UserError(
            f"{path} was trained for {len(trained_for)} class names, which --classes must not change: leave it out"
        )
    facts = {
        "kind": "weights",
        "method": recipe["method"],
        "encoder": str(recipe["encoder"]["name"]),
        "classes": str(len(names)) if names else "given to predict",
        "captions": str(recipe.get("captions", {}).get("name", "")),
        "id_set": str(recipe.get("id", {}).get("set", "")),
        "shots": str(recipe.get("id", {}).get("shots", "")),
        "steps": str(recipe.get("steps", "")),
    }
    known = {"weights": file_digest(path), "commit": recipe.get("commit") or ""}
    model = _model(path, facts | known, recipe, encoder)
    outputs = {name: kind for name, kind in pyfunc.OUTPUTS.items() if name != "decision"}
    more = "" if names else ', params={"classes": [...]}'
    return dataclasses.replace(model, outputs=outputs, note=_note(facts, outputs, more), classes=names)


def _model(path: Path, facts: Mapping[str, str], recipe: Mapping[str, Any], encoder: str) -> Model:
    """Return a model with the fields that both kinds have in common."""
    tags = {name: value for name, value in facts.items() if value}
    params = {name: str(value) for name, value in flatten(recipe["parameters"]).items()}
    return Model(
        data=path,
        loader=_LOADER,
        method=recipe["method"],
        requirements=tuple(
            f"{name}=={version}"
            for name, version in sorted(versions().items())
            if name != "python" and version[0].isdigit()
        ),
        config={**pyfunc.MACHINE_DEFAULTS, "encoder": encoder},
        inputs=pyfunc.INPUTS,
        outputs=pyfunc.OUTPUTS,
        weights=facts["weights"],
        params=params,
        tags=tags | {"oodbench": str(recipe["versions"].get("oodbench", ""))},
    )


def _note(facts: Mapping[str, str], columns: Iterable[str], more: str = "") -> Callable[[str], str]:
    """Return a function from a version's URI to its description: the facts, and how to call it."""
    plain = ", ".join(f"{name}: {value}" for name, value in facts.items() if value)
    escaped = re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", plain)
    return lambda uri: _NOTE.format(facts=escaped, uri=uri, more=more, columns=", ".join(columns))
