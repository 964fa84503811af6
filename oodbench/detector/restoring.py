"""A saved detector put to use again: its engine as it was fitted, from the files of its folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from oodbench.data import prompts
from oodbench.detector.engine import Engine, lines
from oodbench.detector.saving import LEARNT, TOKENIZER, Saved
from oodbench.detector.state import Packed, unpack
from oodbench.detector.store import Keeping
from oodbench.encoder.card import card_from, parse_encoder
from oodbench.encoder.resolve import Resolved, resolve
from oodbench.errors import UserError, did_you_mean
from oodbench.method import registry
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.weights import WeightsFile
from oodbench.provenance import versions
from oodbench.storage.store import Store

log = logging.getLogger(__name__)

SAVED = "(saved)"  # weights of which the folder keeps what fit() made of them, not the file
_CHANGEABLE = ("device", "workers", "store", "shared", "keep", "on_error", "plugins", "encoder")


def parameters(saved: Saved, changes: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The constructor's arguments, those of this place changed. UserError for any other change, and unknown ones."""
    for name in changes:
        if name not in _CHANGEABLE:
            raise UserError(f"'{name}' of a saved detector cannot be changed{did_you_mean(name, _CHANGEABLE)}")
    if unknown := sorted(set(saved.params) - set(known)):
        raise _newer(saved, f"parameters {', '.join(unknown)}")
    return {**saved.params, **({"weights": SAVED} if saved.recipe["weights"] else {}), **changes}


def store(saved: Saved) -> Store:
    """The entries that were saved."""
    return Store(saved.folder / "store")


def engine(saved: Saved, request: RunRequest, kept: Keeping) -> Engine:
    """The fitted engine of a saved detector."""
    recipe = saved.recipe
    known = registry.methods(request.plugins)
    if recipe["method"] not in known:
        raise UserError(
            f"the detector in {saved.folder} is of the method '{recipe['method']}', which is not known here; install "
            "its package, or name its file: --plugin FILE, plugins=[FILE]"
        )
    info = known[recipe["method"]]
    if info.problem:
        raise UserError(f"method '{info.name}' ({info.path}): {info.problem}")
    now = {"source": info.source, "versions": versions()}
    if now != {name: recipe[name] for name in now}:
        what = "method" if info.source != recipe["source"] else "libraries"
        log.warning("the %s of the detector in %s changed since it was saved; scores may differ", what, saved.folder)
    judged = _judged(saved)
    if judged and judged.get("learnt_from"):
        log.warning(
            "the threshold of the detector in %s was set on images that it learnt from, and rejects more new ID images "
            "than it promises; fit and save it anew",
            saved.folder,
        )
    texts = {name: str(saved.folder / file) for name, file in recipe["prompts"].items()}
    parameters = registry.parameters(info, {**recipe["parameters"], **texts})
    named = parameters.get("templates")
    templates = prompts.templates(named) if isinstance(named, str) else None
    job = Job(info, parameters, templates, _weights(saved))
    made = Engine(request, job, _encoder(saved, request, kept), lines(recipe["classes"]), kept)
    if recipe["learnt"] is None:
        made.fit(None)
    else:
        from safetensors.torch import load_file

        file = saved.folder / LEARNT
        tensors = load_file(file) if file.is_file() else {}
        try:
            made.adopt(unpack(Packed(recipe["learnt"], tensors), type(made.method), made.device))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"what the detector in {saved.folder} learnt does not fit this version of {info.name}: {error}; "
                "fit and save it anew"
            ) from error
    made.facts = {"calibration": recipe["calibration"], "threshold": judged}
    return made


def _judged(saved: Saved) -> dict[str, Any] | None:
    """The images that set the threshold; folders that do not name them were written when they were learnt from, too."""
    recipe = saved.recipe
    given = recipe["threshold"] is None or saved.params.get("threshold") is not None
    if "threshold_images" in recipe or given or not recipe["calibration"]:
        found: dict[str, Any] | None = recipe.get("threshold_images")
        return found
    return {**recipe["calibration"], "learnt_from": True, "value": recipe["threshold"]}


def _newer(saved: Saved, what: str) -> UserError:
    made, here = saved.recipe["versions"].get("oodbench", "unknown"), versions()["oodbench"]
    return UserError(
        f"the detector in {saved.folder} names {what} that this oodbench ({here}) does not know; it was saved by "
        f"{made}: use that, or fit and save it anew"
    )


def _weights(saved: Saved) -> WeightsFile | None:
    card = saved.recipe["weights"]
    if not card:
        return None
    return WeightsFile(saved.folder / "weights" / card["name"], card["digest"], card["recipe"])


def _encoder(saved: Saved, request: RunRequest, kept: Keeping) -> Resolved:
    """The encoder that was saved, or one with the same identity."""
    stated = dict(saved.recipe["encoder"])
    spec, identity = stated.pop("spec"), stated.pop("identity")
    try:
        card = card_from(stated)
    except TypeError as error:
        raise _newer(saved, "an encoder") from error
    if saved.recipe["encoder_file"]:
        tokenizer = saved.folder / TOKENIZER
        file = saved.folder / saved.recipe["encoder_file"]
        return Resolved(card, file, tokenizer if tokenizer.is_dir() else None)
    found = resolve(parse_encoder(request.encoder or spec), request.resize, kept)
    if found.card.identity != identity:
        raise UserError(
            f"the detector in {saved.folder} was saved for {card.row()['name']} (weights {stated['weights'][:12]}); "
            f"{found.path} has other weights or preprocessing ({found.card.weights[:12]})"
        )
    return found
