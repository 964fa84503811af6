"""Saving and loading a detector: one folder with its recipe, its state and everything else that its scores depend on.

detector.json       the recipe, a digest of every other file, and its own digest; all are verified when it is loaded
learnt.safetensors  the tensors of the state. If the state is more than tensors and plain values, weights/ and store/
                    have the inputs of fit() instead, and it is called again
prompts/            the templates
store/              class vectors (and tensors of Task.cached()), as entries of the store
encoder/            the encoder's weights, if requested, and its tokenizer if it is a folder
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.data import prompts
from oodbench.detector.engine import Engine, text_list
from oodbench.detector.state import Packed, pack, unpack
from oodbench.detector.store import DetectorStore
from oodbench.encoder.card import EMBEDDED, PLUGIN_PREFIX, card_from, parse_encoder, weight_files
from oodbench.encoder.resolve import ResolvedEncoder, TextFiles, resolve
from oodbench.errors import Unpackable, UserError, did_you_mean
from oodbench.method import registry
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.weights import WeightsFile
from oodbench.results import commit, versions
from oodbench.storage.files import write_text
from oodbench.storage.store import Store, digest, file_digest

log = logging.getLogger(__name__)

FORMAT = 1
RECIPE = "detector.json"
STATE = "learnt.safetensors"
TOKENIZER = "encoder/tokenizer"
SAVED = "(saved)"  # the parameter `weights` of a loaded detector, whose folder has the state
_MACHINE = ("device", "workers", "store", "shared", "keep", "plugins", "weights")  # parameters that are not saved
_CHANGEABLE = ("device", "workers", "store", "shared", "keep", "on_error", "plugins", "encoder")


@dataclass(frozen=True)
class FittedDetector:
    """A fitted detector, the argument of save()."""

    engine: Engine
    params: dict[str, Any]
    threshold: float | None


@dataclass(frozen=True)
class SavedDetector:
    """A folder that was read and verified."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.recipe["params"])


def check(folder: Path) -> None:
    """Raise UserError for a folder that holds something other than a detector."""
    if folder.exists() and not (folder / RECIPE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no detector; name another folder")


def save(fitted: FittedDetector, folder: Path, *, with_encoder: bool) -> Path:
    """Write the folder atomically and return it."""
    from safetensors import SafetensorError

    check(folder)
    card = fitted.engine.plan.card
    if with_encoder and card.plugin:
        raise UserError(
            f"{card.name} is code, which a saved detector does not hold; save it without the encoder, and keep the file"
        )
    temporary = folder.with_name(f".{folder.name}.{digest(str(folder))[:8]}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        recipe = _recipe(fitted, temporary, with_encoder)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        recipe["contents"] = {path.relative_to(temporary).as_posix(): file_digest(path) for path in files}
        write_text(temporary / RECIPE, json.dumps({**recipe, "digest": digest(recipe)}, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors raises the latter if the disk is full
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the detector cannot be written to {folder}: {why}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read(folder: Path) -> SavedDetector:
    """Read and verify a folder; raise UserError if a file is missing or changed, or of another format."""
    path = folder / RECIPE
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        recipe = json.loads(path.read_text(encoding="utf-8"))
        stated = recipe.pop("digest")
        sound = stated == digest(recipe)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no detector: {path} does not exist") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a detector's recipe: {error}") from error
    if not sound:
        raise UserError(f"{path} was changed after it was written; save the detector again")
    if recipe["format"] != FORMAT:
        raise UserError(f"{path} is of format {recipe['format']!r}; this oodbench reads {FORMAT}")
    for name, expected in recipe["contents"].items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path} names a file outside of its folder: {name}")
        if not file.is_file():
            raise UserError(f"the detector in {folder} is not complete: {file} is missing; copy the folder again")
        if file_digest(file) != expected:
            raise UserError(f"{file} is not what was saved (sha256 {expected[:12]}); copy the folder again")
    used = [*recipe["prompts"].values(), *filter(None, [recipe["encoder_file"]])]
    if not set(used) <= set(recipe["contents"]):
        raise UserError(f"{path} names files that are not part of the detector: {', '.join(used)}")
    return SavedDetector(folder, recipe)


def _recipe(fitted: FittedDetector, folder: Path, with_encoder: bool) -> dict[str, Any]:
    """Write all files except the recipe, and return the recipe."""
    plan = fitted.engine.plan
    job = plan.jobs[0]
    texts = {
        name: value
        for name, value in job.parameters.items()
        if isinstance(value, str) and (name == "templates" or name.endswith("_templates")) and "{}" not in value
    }
    for name, value in texts.items():
        write_text(folder / "prompts" / f"{name}.txt", "\n".join(prompts.templates(value).lines) + "\n")
    state = _write_state(fitted.engine, folder)
    if with_encoder and plan.card.name != EMBEDDED:
        (folder / "encoder").mkdir()
        for path in weight_files(plan.encoder.path):
            shutil.copyfile(path, folder / "encoder" / path.name)
        if plan.encoder.tokenizer:
            (folder / TOKENIZER).mkdir()
            for path in TextFiles(plan.encoder.tokenizer).files():
                shutil.copyfile(path, folder / TOKENIZER / path.name)
    plain = {name: value for name, value in fitted.params.items() if name not in _MACHINE}
    plain |= {"classes": list(plan.classes.lines), "settings": dict(fitted.params["settings"] or {}) or None}
    parameters = {name: value for name, value in job.parameters.items() if name not in texts}
    threshold_images = fitted.engine.facts["threshold"]  # not used if the threshold was changed since
    return {
        "format": FORMAT,
        "method": job.info.name,
        "parameters": parameters,
        "prompts": {name: f"prompts/{name}.txt" for name in texts},
        "classes": list(plan.classes.lines),
        "encoder": {"spec": plan.request.encoder, "identity": plan.card.identity, **_plain(plan.card)},
        "encoder_file": f"encoder/{plan.encoder.path.name}" if (folder / "encoder").is_dir() else "",
        "precision": plan.request.precision,
        "threshold": fitted.threshold,
        "learnt": state,
        "source": job.info.source,
        "files": job.files,
        "weights": {**job.weights.card(), "recipe": job.weights.recipe} if job.weights else None,
        "calibration": fitted.engine.facts["calibration"],
        "threshold_images": (
            threshold_images if threshold_images and threshold_images["value"] == fitted.threshold else None
        ),
        "versions": versions(),
        "commit": commit(),
        "params": _plain_params(plain),
    }


def _write_state(engine: Engine, folder: Path) -> Any:
    """Write the tensors of the state and return its tree as JSON; None if fit() is to be called again."""
    job, store = engine.plan.jobs[0], engine.store
    try:
        packed = pack(engine.fitted.state, type(engine.method))
    except Unpackable as error:
        if job.calibrates:
            raise UserError(
                f"{job.label} cannot be saved: its fit() returns a {error}, and calibration images are not kept; "
                "let it return tensors and plain values, or a dataclass of these"
            ) from None
        if job.weights:
            (folder / "weights").mkdir()
            shutil.copyfile(job.weights.path, folder / "weights" / job.weights.path.name)
        store.copy(folder / "store")
        return None
    store.copy(folder / "store", ("text",))
    if packed.tensors:
        from safetensors.torch import save_file

        save_file(packed.tensors, folder / STATE)
    return packed.tree


def _plain(card: Any) -> dict[str, Any]:
    """Return a dataclass as it is after a JSON round trip."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(card)))
    return plain


def _plain_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as they are after a JSON round trip, paths as text."""
    plain: dict[str, Any] = json.loads(json.dumps(params, default=os.fspath))
    return plain


def parameters(saved: SavedDetector, changes: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the constructor's arguments with changes; raise UserError for unknown or fixed ones."""
    for name in changes:
        if name not in _CHANGEABLE:
            raise UserError(f"'{name}' of a saved detector cannot be changed{did_you_mean(name, _CHANGEABLE)}")
    encoder = str(saved.params.get("encoder") or "")
    if encoder.startswith(PLUGIN_PREFIX) and encoder.endswith(".py") and not changes.get("encoder"):
        raise UserError(
            f"the encoder of the detector in {saved.folder} is code, {encoder}, which is run only if you name it: "
            f"--encoder {encoder}, encoder='{encoder}'"
        )
    if unknown := sorted(set(saved.params) - set(known)):
        raise _newer(saved, f"parameters {', '.join(unknown)}")
    return {**saved.params, **({"weights": SAVED} if saved.recipe["weights"] else {}), **changes}


def saved_store(saved: SavedDetector) -> Store:
    """Return the store in the folder of a saved detector."""
    return Store(saved.folder / "store")


def load_engine(saved: SavedDetector, request: RunRequest, store: DetectorStore) -> Engine:
    """Restore the fitted engine of a saved detector."""
    recipe = saved.recipe
    known = registry.methods(request.plugins)
    if recipe["method"] not in known:
        raise UserError(
            f"the detector in {saved.folder} is of the method '{recipe['method']}', which is not known here; install "
            "its package, or name its file: --plugin FILE, plugins=[FILE], or give its class: plugins=[CLASS]"
        )
    info = known[recipe["method"]]
    if info.problem:
        raise UserError(f"method '{info.name}' ({info.path}): {info.problem}")
    now = {"source": info.source, "versions": versions()}
    if now != {name: recipe[name] for name in now}:
        what = "method" if info.source != recipe["source"] else "libraries"
        log.warning("the %s of the detector in %s changed since it was saved; scores may differ", what, saved.folder)
    threshold_images = _threshold_images(saved)
    if threshold_images and threshold_images.get("learnt_from"):
        log.warning(
            "the threshold of the detector in %s was set on images that it was fitted on, and rejects more new ID "
            "images than `tpr` says; fit and save it again",
            saved.folder,
        )
    texts = {name: str(saved.folder / file) for name, file in recipe["prompts"].items()}
    parameters = registry.parameters(info, {**recipe["parameters"], **texts})
    named = parameters.get("templates")
    templates = prompts.templates(named) if isinstance(named, str) else None
    job = Job(info, parameters, templates, _weights(saved))
    engine = Engine(request, job, _encoder(saved, request, store), text_list(recipe["classes"]), store)
    if recipe["learnt"] is None:
        engine.fit(None)
    else:
        from safetensors.torch import load_file

        file = saved.folder / STATE
        tensors = load_file(file) if file.is_file() else {}
        try:
            engine.restore(unpack(Packed(recipe["learnt"], tensors), type(engine.method), engine.device))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the state of the detector in {saved.folder} does not fit this version of {info.name}: {error}; "
                "fit and save it again"
            ) from error
    engine.facts = {"calibration": recipe["calibration"], "threshold": threshold_images}
    return engine


def _threshold_images(saved: SavedDetector) -> dict[str, Any] | None:
    """Return the images that set the threshold; older folders do not name them, and used the calibration images."""
    recipe = saved.recipe
    given = recipe["threshold"] is None or saved.params.get("threshold") is not None
    if "threshold_images" in recipe or given or not recipe["calibration"]:
        found: dict[str, Any] | None = recipe.get("threshold_images")
        return found
    return {**recipe["calibration"], "learnt_from": True, "value": recipe["threshold"]}


def _newer(saved: SavedDetector, what: str) -> UserError:
    made, here = saved.recipe["versions"].get("oodbench", "unknown"), versions()["oodbench"]
    return UserError(
        f"the detector in {saved.folder} names {what} that this oodbench ({here}) does not know; it was saved by "
        f"{made}: use that version, or fit and save it again"
    )


def _weights(saved: SavedDetector) -> WeightsFile | None:
    card = saved.recipe["weights"]
    if not card:
        return None
    return WeightsFile(saved.folder / "weights" / card["name"], card["digest"], card["recipe"])


def _encoder(saved: SavedDetector, request: RunRequest, store: DetectorStore) -> ResolvedEncoder:
    """Return the encoder that was saved, or one with the same identity."""
    stated = dict(saved.recipe["encoder"])
    spec, identity = stated.pop("spec"), stated.pop("identity")
    try:
        card = card_from(stated)
    except TypeError as error:
        raise _newer(saved, "an encoder") from error
    if saved.recipe["encoder_file"]:
        tokenizer = saved.folder / TOKENIZER
        file = saved.folder / saved.recipe["encoder_file"]
        return ResolvedEncoder(card, file, tokenizer if tokenizer.is_dir() else None)
    found = resolve(parse_encoder(request.encoder or spec), request.resize, store)
    if found.card.identity != identity:
        raise UserError(
            f"the detector in {saved.folder} was saved for {card.row()['name']} (weights {stated['weights'][:12]}); "
            f"{found.path} has other weights or preprocessing ({found.card.weights[:12]})"
        )
    return found
