"""Weights that were trained: files with their recipe in the header, and which file a job is given.

Ours are safetensors whose header holds the recipe (method, hyper-parameters, encoder, captions, steps, versions) as
JSON. Anything else is taken for a release, translated once by the method and kept in the store.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench import registry
from oodbench.encoder.card import EMBEDDED, EncoderCard, EncoderSpec
from oodbench.encoder.resolve import Resolved
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.jobs import Job, Jobs
from oodbench.paths import expand
from oodbench.prompts import templates
from oodbench.request import RunRequest
from oodbench.store import Store, default_root, digest, file_digest
from oodbench.whole import whole

if TYPE_CHECKING:
    from torch import Tensor

    from oodbench.method import TrainedMethod, Weights

FORMAT = 1
HEADER = "oodbench"
SHIPPED = Path(__file__).parent / "glyphs"


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, known without reading its tensors. `recipe` is empty for a release."""

    path: Path
    digest: str
    recipe: dict[str, Any]

    def card(self) -> dict[str, Any]:
        """What a row keeps: file name, digest and recipe."""
        recipe = {key: value for key, value in self.recipe.items() if key not in ("encoder", "training")}
        return {"name": self.path.name, "digest": self.digest, "recipe": recipe}


def write(path: Path, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> None:
    """Write weights with their recipe, whole or not at all."""
    from safetensors.torch import save_file

    header = {HEADER: json.dumps({"format": FORMAT, **recipe}, sort_keys=True)}
    with whole(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, header)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe in a file's header; {} when it is not one of ours. Reads no tensor."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100_000_000:
                raise ValueError("its header has no end")
            header = json.loads(file.read(size))
        recipe = json.loads(header.get("__metadata__", {}).get(HEADER, "{}"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"weights {path} cannot be read as safetensors: {error}") from error
    if recipe and recipe.get("format") != FORMAT:
        raise UserError(f"weights {path} are of format {recipe.get('format')!r}; this oodbench reads {FORMAT}")
    return dict(recipe)


def examine(path: Path, store: Store) -> WeightsFile:
    """Digest and recipe of a file; the digest is remembered for as long as the file keeps its size and time."""
    try:
        stat = path.stat()
        known = {"path": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}
        entry = store.find("weights-file", known)
        found = entry.facts["digest"] if entry else file_digest(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from error
    if entry is None:
        store.write("weights-file", known, {}, {"digest": found})
    return WeightsFile(path, found, recipe_of(path))


def given(request: RunRequest) -> dict[str, Path]:
    """--weights METHOD=FILE, by method. UserError for what is not of this form and for files that are not there."""
    found: dict[str, Path] = {}
    problems = []
    known = registry.methods(request.plugins)
    for text in request.weights:
        name, equals, file = text.partition("=")
        path = expand(file)
        if not equals or not file:
            problems.append(f"--weights {text}: write METHOD=FILE, as in clipn=clipn.safetensors")
        elif name not in known:
            problems.append(f"--weights {text}: no method '{name}'{did_you_mean(name, known)}")
        elif "WEIGHTS" not in known[name].needs:
            problems.append(f"--weights {text}: {name} reads no weights")
        elif not path.is_file():
            problems.append(f"--weights {text}: {path} is {'no file' if path.exists() else 'not there'}")
        else:
            found[name] = path
    raise_all(problems)
    return found


def check(jobs: Jobs, request: RunRequest, spec: EncoderSpec) -> Jobs:
    """The jobs that have weights, or need none. One without is an error if named, and left out of `all`."""
    files = given(request)
    lacking = {job.label: job for job in jobs.jobs if "WEIGHTS" in job.info.needs and not _file(job, files, spec)}
    reasons = [(label, _lacks(job.info.name, spec)) for label, job in lacking.items()]
    if request.methods.strip() != "all":
        raise_all([f"{label} {reason}" for label, reason in reasons])
    return Jobs(tuple(job for job in jobs.jobs if job.label not in lacking), (*jobs.left_out, *reasons))


def attach(jobs: Jobs, request: RunRequest, encoder: Resolved, spec: EncoderSpec, store: Store) -> Jobs:
    """The jobs with their weights, checked against encoder and hyper-parameters."""
    files = given(request)
    out: list[Job] = []
    problems: list[str] = []
    for job in jobs.jobs:
        path = _file(job, files, spec) if "WEIGHTS" in job.info.needs else None
        if path is None:
            out.append(job)
            continue
        try:
            file = examine(path, store)
            fitted = _adopted(job, file, encoder.card)
            if not file.recipe:
                released(fitted, file, encoder, store)
            out.append(dataclasses.replace(fitted, weights=file))
        except UserError as error:
            problems.append(f"{job.label}: {error}")
    twice = [label for label, count in Counter(job.label for job in out).items() if count > 1]
    problems += [f"{label} is asked for twice: its weights fix what the variants differ in" for label in twice]
    raise_all(problems)
    return Jobs(tuple(out), jobs.left_out)


def _file(job: Job, files: Mapping[str, Path], spec: EncoderSpec) -> Path | None:
    shipped = SHIPPED / f"{job.info.name}.safetensors"
    if job.info.name in files:
        return files[job.info.name]
    return shipped if spec.text == EMBEDDED and job.info.origin == "built-in" and shipped.is_file() else None


def _lacks(name: str, spec: EncoderSpec) -> str:
    captions = "glyphs" if spec.text == EMBEDDED else "FILE"
    return (
        f"has no weights for {spec.text}; train them with\n"
        f"  oodbench train {name} --encoder {spec.text} --captions {captions}\n"
        f"  or name a file: --weights {name}=FILE"
    )


def _adopted(job: Job, file: WeightsFile, card: EncoderCard) -> Job:
    """The job with the hyper-parameters that its weights were trained with; UserError when they do not fit."""
    recipe = file.recipe
    if not recipe:
        return job
    problems = []
    if recipe["method"] != job.info.name:
        problems.append(f"{file.path} holds weights of {recipe['method']}, not of {job.info.name}")
    theirs = recipe["encoder"]
    if (theirs["weights"], theirs["config"]) != (card.weights, json.loads(json.dumps(card.config))):
        problems.append(
            f"{file.path} was trained for {theirs['name']} (weights {theirs['weights'][:12]}), "
            f"not for {card.name} (weights {card.weights[:12]})"
        )
    raise_all(problems)
    defaults, values = job.info.defaults(), dict(job.parameters)
    for name in job.info.trained:
        stated = recipe["parameters"].get(name, defaults[name])
        if values[name] != stated and (name in job.given or values[name] != defaults[name]):
            problems.append(f"{file.path} was trained with {name}={stated}, not with {name}={values[name]}")
        values[name] = stated
    raise_all(problems)
    return dataclasses.replace(job, parameters=values)


def released(job: Job, file: WeightsFile, encoder: Resolved, store: Store) -> Mapping[str, Any]:
    """Arrays of a release under our names, translated by the method once; UserError says why it does not fit."""
    inputs = {
        "file": file.digest,
        "encoder": encoder.card.identity,
        "source": job.info.source,
        "trained": {name: job.parameters[name] for name in job.info.trained},
    }
    entry = store.find("weights", inputs)
    if entry is None:
        from oodbench.encoder import checkpoint
        from oodbench.encoder.frozen import frozen

        state = checkpoint.read(file.path)
        method: TrainedMethod[Any] = job.made()  # type: ignore[assignment]
        try:
            tensors = method.translate(state, frozen(encoder))
        except ValueError as error:
            raise UserError(f"weights {file.path}: {error}") from error
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        entry = store.write("weights", inputs, arrays, {"file": file.path.name})
    return {name: entry.array(name) for name in entry.names}


def load(job: Job, encoder: Resolved, store: Store, device: str) -> Weights:
    """The tensors of a job's weights, in float32 on the device."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from oodbench.method import Weights

    file = job.weights
    assert file is not None  # a plan gives weights to every method that declares them
    if file.recipe:
        if file_digest(file.path) != file.digest:
            raise UserError(f"weights {file.path} changed while they were in use; run again")
        tensors = dict(load_file(file.path))
    else:
        arrays = released(job, file, encoder, store)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return Weights({name: t.to(device) for name, t in floats.items()}, file.recipe)


def write_release(file: WeightsFile, path: Path, encoder: str, plugins: Sequence[Path] = ()) -> None:
    """Write our weights as the method's released code saves them. UserError when they are not ours, or it has none."""
    import torch
    from safetensors.torch import load_file

    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.frozen import frozen
    from oodbench.encoder.openclip import OpenClip
    from oodbench.encoder.resolve import resolve
    from oodbench.method import TrainedMethod, Weights

    if not file.recipe:
        raise UserError(f"{file.path} was not written by oodbench train")
    resolved = resolve(parse_encoder(encoder or file.recipe["encoder"]["name"]), None, Store(default_root()))
    info = registry.method_info(file.recipe["method"], registry.methods(plugins))
    known = {name: value for name, value in file.recipe["parameters"].items() if name in info.defaults()}
    job = _adopted(Job(info, registry.parameters(info, known), None), file, resolved.card)
    method = job.made()
    assert isinstance(method, TrainedMethod)
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in load_file(file.path).items()}
    try:
        if any(name.endswith(".rows") for name in tensors):  # packed: the rest is the encoder's
            model = OpenClip(resolved, "cpu", "fp32")
            tensors = dict(Weights(tensors, file.recipe).load(method.module(model)).state_dict())
        state = method.release(tensors, frozen(resolved))
    except ValueError as error:
        raise UserError(f"weights {file.path}: {error}") from error
    try:
        with whole(path) as partial:
            torch.save({"name": file.path.stem, "state_dict": state}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def kept_inputs(job: Job, classes: str, depends: Mapping[str, Any]) -> dict[str, Any]:
    """What an array depends on that a method makes of its weights (Task.keep)."""
    sets = {name: templates(v).digest for name, v in depends.items() if name.endswith("templates")}
    return {
        "method": job.info.name,
        "source": job.info.source,
        "weights": job.weights.digest if job.weights else None,
        "classes": classes,
        "depends": digest({**depends, **sets}),
    }
