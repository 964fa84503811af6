"""Assign weights files to methods: which file a method gets, whether it fits its encoder, and its tensors."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.data.paths import data_root
from oodbench.data.prompts import TextList, templates
from oodbench.data.released import Release, releases, releases_of
from oodbench.encoder.card import EMBEDDED, EncoderCard, EncoderSpec
from oodbench.encoder.resolve import ResolvedEncoder
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method import registry
from oodbench.method.introspection import MethodInfo
from oodbench.pipeline.jobs import Job, Jobs, file_digests
from oodbench.pipeline.request import RunRequest, command
from oodbench.pipeline.weights import SHIPPED, WeightsFile, damaged_files, examine, files_of, in_float32, read
from oodbench.storage.files import atomic_write, expand
from oodbench.storage.store import Store, default_root, digest

if TYPE_CHECKING:
    from oodbench.method import TrainedMethod, Weights

log = logging.getLogger(__name__)


def translated_weights(job: Job, file: WeightsFile, encoder: ResolvedEncoder, store: Store) -> Mapping[str, Any]:
    """Return the arrays of a released checkpoint under our names; they are translated once and stored.

    Raises UserError if it does not fit the method or the encoder.
    """
    inputs = {
        "file": file.digest,
        "encoder": encoder.card.identity,
        "source": job.info.source,
        "trained": {name: job.parameters[name] for name in job.info.trained},
    }
    entry = store.find("weights", inputs)
    if entry is None:
        from oodbench.encoder import checkpoint
        from oodbench.encoder.resolve import load_state_dict

        file.check()
        state = checkpoint.read_checkpoint(file.path)
        method: TrainedMethod[Any] = job.build()  # type: ignore[assignment]
        try:
            tensors = method.translate(state, load_state_dict(encoder))
        except ValueError as error:
            raise UserError(f"weights {file.path}: {error}") from error
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        entry = store.write("weights", inputs, arrays, {"file": file.path.name})
    return {name: entry.array(name) for name in entry.names}


def write_release(file: WeightsFile, path: Path, encoder: str, plugins: Sequence[Path] = ()) -> None:
    """Write weights of `oodbench train` in the format of the method's released code. Raise UserError if it has none."""
    import torch

    from oodbench.encoder.card import parse_encoder
    from oodbench.encoder.openclip import load_encoder
    from oodbench.encoder.resolve import load_state_dict, resolve
    from oodbench.method import TrainedMethod, Weights
    from oodbench.method.method import make_module

    if not file.recipe:
        raise UserError(f"{file.path} was not written by oodbench train")
    resolved = resolve(parse_encoder(encoder or file.recipe["encoder"]["name"]), None, Store(default_root()))
    info = registry.method_info(file.recipe["method"], registry.methods(plugins))
    known = {name: value for name, value in file.recipe["parameters"].items() if name in info.defaults()}
    if problem := file.misfit(resolved.card):
        raise UserError(problem)
    method = registry.make(info, registry.parameters(info, known))
    assert isinstance(method, TrainedMethod)
    tensors = read(file.path)
    try:
        if any(
            name.endswith(".rows") for name in tensors
        ):  # only the rows that training changed; the others are the encoder's
            model = load_encoder(resolved, "cpu", "fp32")
            module = make_module(method, model, file.recipe.get("class_names", ()))
            tensors = dict(Weights(tensors, file.recipe).load(module).state_dict())
        state = method.release(tensors, load_state_dict(resolved))
    except ValueError as error:
        raise UserError(f"weights {file.path}: {error}") from error
    try:
        with atomic_write(path) as partial:
            torch.save({"name": file.path.stem, "state_dict": state}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def weights_files(request: RunRequest, known: Mapping[str, MethodInfo]) -> dict[str, Path]:
    """Return the file of every `--weights METHOD=FILE` by method; FILE may name a release, such as clipn-2.

    For a method that is trained on labelled images it may be a folder, which stands for all its files of the method.

    Raises UserError for options that cannot be read and for missing files.
    """
    if not request.weights:
        return {}
    found: dict[str, Path] = {}
    problems = []
    for text in request.weights:
        name, equals, file = text.partition("=")
        path = expand(file)
        known_release = releases("weights").get(file)
        if known_release and known_release.method == name and not path.is_file():
            path = known_release.path(data_root(request.data)) or path
        if not equals or not file:
            problems.append(f"--weights {text}: write METHOD=FILE, as in clipn=clipn.safetensors")
        elif name not in known:
            problems.append(f"--weights {text}: no method '{name}'{did_you_mean(name, known)}")
        elif "WEIGHTS" not in known[name].needs:
            problems.append(f"--weights {text}: {name} reads no weights")
        elif known_release and not path.is_file():
            problems.append(
                f"--weights {text}: not downloaded yet; get it with\n  {known_release.command(data_root(request.data))}"
            )
        elif path.is_dir() and "SHOTS" in known[name].needs:
            found[name] = path
            if not files_of(path, name):
                trained = train_command(name, request, output=path)
                damaged = "".join(f"\n  {reason}" for reason in damaged_files(path))
                problems.append(f"--weights {text}: {path} holds no weights of {name}; train some: {trained}{damaged}")
        elif not path.is_file():
            problems.append(f"--weights {text}: {path} {'is not a file' if path.exists() else 'does not exist'}")
        else:
            found[name] = path
    raise_all(problems)
    return found


def locate(jobs: Jobs, request: RunRequest, files: Mapping[str, Path], spec: EncoderSpec) -> dict[str, Path]:
    """Return the weights file of every job that has one, by label.

    It is the file that the user named (`files`, by method), the one shipped for the embedded encoder, or released
    weights for this encoder that `oodbench get weights` downloaded to the folder of the datasets.
    """
    located: dict[str, Path] = {}
    for job in jobs.jobs:
        if "WEIGHTS" not in job.info.needs:
            continue
        shipped = SHIPPED / f"{job.info.name}.safetensors"
        if job.info.name in files:
            located[job.label] = files[job.info.name]
        elif spec.text == EMBEDDED:
            if job.info.origin == "built-in" and shipped.is_file():
                located[job.label] = shipped
        else:
            root = data_root(request.data)
            found = (release.path(root) for release in _releases(job, spec))
            if path := next(filter(None, found), None):
                located[job.label] = path
    return located


def select_jobs(jobs: Jobs, request: RunRequest, located: Mapping[str, Path], spec: EncoderSpec) -> Jobs:
    """Return the jobs that have weights or need none.

    A named method without weights raises UserError; with `--skip-missing`, and in a group, it is skipped.
    """
    missing = [job for job in jobs.jobs if "WEIGHTS" in job.info.needs and job.label not in located]
    reasons = jobs.reasons({job.label: _missing_reason(job, request, spec) for job in missing}, ", which ")
    others = jobs.without(reasons)
    named = {job.label for job in jobs.rows if job.named and not request.skip_missing}
    without = f"\n  or leave it out: {command(request, skip_missing=True)}" if others else ""
    raise_all([f"{label} {reason}{without}" for label, reason in reasons.items() if not others or label in named])
    return Jobs(others, (*jobs.skipped_methods, *reasons.items()))


def attach_weights(
    jobs: Jobs,
    located: Mapping[str, Path],
    encoder: ResolvedEncoder,
    classes: TextList,
    request: RunRequest,
    store: Store,
) -> Jobs:
    """Return the jobs with their weights, checked against the encoder, the hyper-parameters and the class names.

    `located` are the files by label; for a folder, there is a job for every file that fits. With `--strict` the digests
    of the files are computed again. Raises UserError with the problems of all jobs.
    """
    complete: list[Job] = []
    problems: list[str] = []
    labels: dict[str, str] = {}  # label without weights -> label with weights
    for job in jobs.jobs:
        path = located.get(job.label)
        if path is None:
            complete.append(job)
            continue
        try:
            if path.is_dir():
                if streams := [one.label for one in jobs.jobs if one.base == job.label]:
                    raise UserError(f"it is the base of {', '.join(streams)}; name one file of {path}")
                complete += _jobs_of_folder(job, path, encoder.card, classes, request, store)
                continue
            file = examine(path, store, request.strict)
            trained = _with_weights(job, file, encoder.card, classes, request)
            if not file.recipe:
                translated_weights(trained, file, encoder, store)
            complete.append(trained)
            labels[job.label] = trained.label
        except UserError as error:
            problems.append(f"{job.label}: {error}")
    complete = [dataclasses.replace(job, base=labels.get(job.base, job.base)) for job in complete]
    rows = [job for job in complete if not job.only_base]
    for label in [label for label, count in Counter(job.label for job in rows).items() if count > 1]:
        files = [str(job.weights.path) for job in rows if job.label == label and job.variant and job.weights]
        if len(set(files)) > 1:
            problems.append(f"{label} is the name of {' and '.join(files)}; move one of them to another folder")
        else:
            problems.append(f"{label} is requested twice: its weights fix what distinguishes the variants")
    raise_all(problems)
    by_label = {job.label: job for job in rows}
    for job in complete:
        by_label.setdefault(job.label, job)  # a base whose label with weights is that of a row is that row
    return Jobs(tuple(by_label.values()), jobs.skipped_methods)


def _jobs_of_folder(
    job: Job, folder: Path, card: EncoderCard, classes: TextList, request: RunRequest, store: Store
) -> list[Job]:
    """Return a job for each file of a folder that fits, by shots and seed. Raise UserError if none does."""
    fitting, reasons = [], []
    for path in files_of(folder, job.info.name):
        file = examine(path, store, request.strict)
        try:
            fitting.append(_with_weights(job, file, card, classes, request))
        except UserError as error:
            reasons.append(str(error))
    for reason in reasons:
        log.info("left out: %s", reason)
    if not fitting:
        others = f"\n  nor do {len(reasons) - 1} others" if len(reasons) > 1 else ""
        raise UserError(f"no weights in {folder} fit: {reasons[0]}{others}")
    named = [dataclasses.replace(one, variant=one.weights.variant) for one in fitting if one.weights]
    return sorted(named, key=lambda one: (one.weights.images["shots"], one.weights.recipe["seed"]))  # type: ignore[union-attr]


def _with_weights(job: Job, file: WeightsFile, card: EncoderCard, classes: TextList, request: RunRequest) -> Job:
    """Return the job with a file of weights. Raise UserError if they do not fit."""
    trained = _with_trained_parameters(job, file, card)
    if problem := file.class_misfit(classes):
        shots, seed = file.images["shots"], file.recipe["seed"]
        again = train_command(job.info.name, request, encoder=card.name, shots=shots, seed=seed)
        raise UserError(f"{problem}\n  train some for these: {again}")
    return dataclasses.replace(trained, weights=file)


def train_command(name: str, request: RunRequest, **options: object) -> str:
    """Return the `oodbench train` command of a method for labelled images of a run's ID set."""
    asked = {"id": request.id, "shots": 16, "classes": request.classes, "calibration": request.calibration}
    asked |= {"encoder": request.encoder, "data": request.data, **options}
    words = [word for flag, value in asked.items() if value not in ("", None) for word in (f"--{flag}", str(value))]
    words += ["--clean-names"] * request.clean_names + ["--allow-partial"] * request.allow_partial
    words += [word for plugin in request.plugins for word in ("--plugin", str(plugin))]
    return shlex.join(["oodbench", "train", name, *words])


def load_weights(job: Job, encoder: ResolvedEncoder, store: Store, device: str) -> Weights:
    """Return the tensors of a job's weights, in float32 on the device."""
    import numpy as np
    import torch

    from oodbench.method import Weights

    file = job.weights
    assert file is not None  # attach_weights() gives weights to every method that declares Needs.WEIGHTS
    if file.recipe:
        file.check()
        tensors = read(file.path)
    else:
        arrays = translated_weights(job, file, encoder, store)
        tensors = in_float32({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return Weights({name: tensor.to(device) for name, tensor in tensors.items()}, file.recipe)


def cache_inputs(job: Job, classes: str, depends: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that an array in a method's cache depends on: its job, and what the method declares."""
    sets = {name: templates(value).digest for name, value in depends.items() if name.endswith("templates")}
    return {
        "method": job.info.name,
        "source": job.info.source,
        "weights": job.weights.digest if job.weights else None,
        "files": job.files,
        "classes": classes,
        "depends": digest({**depends, **sets, "files": file_digests(depends)}),
    }


def _releases(job: Job, spec: EncoderSpec) -> list[Release]:
    """Return the released weights that a method can read with an encoder, which may be a file of the user."""
    named = f"{spec.architecture}/{spec.tag}".lower().replace("-", "_")  # open_clip reads a tag with dashes, too
    known = [one for one in releases_of(job.info.name, job.parameters) if not one.unread]
    return [one for one in known if one.encoder.lower().replace("-", "_") == named]


def _missing_reason(job: Job, request: RunRequest, spec: EncoderSpec) -> str:
    """Return why a method cannot run without weights, and how to get some."""
    name = job.info.name
    captions = "glyphs" if spec.text == EMBEDDED else "FILE"
    others = {one.encoder for one in releases_of(name, job.parameters) if not one.unread}
    lines = [f"has no weights for {spec.text}"]
    if fitting := _releases(job, spec):
        lines += [f"get the released ones: {fitting[0].command(data_root(request.data))}"]
    elif spec.text != EMBEDDED:
        lines += [
            f"the released ones are for {other}: {command(request, methods=job.label, encoder=other)}"
            for other in sorted(others)
        ]
    if "SHOTS" in job.info.needs:
        trained, place = train_command(name, request, encoder=spec.text), "file or folder"
    else:
        trained = f"oodbench train {name} --encoder {shlex.quote(spec.text)} --captions {captions}"
        place = "file"
    lines += [f"train them: {trained}", f"or name a {place}: --weights {name}=FILE"]
    return "\n  ".join(lines)


def _with_trained_parameters(job: Job, file: WeightsFile, card: EncoderCard) -> Job:
    """Return the job with the hyper-parameters that its weights were trained with. Raise UserError if they do not fit.

    The default prompts are those of the training, because the weights may need them; unlike the other trained
    hyper-parameters, the user can change them.
    """
    recipe = file.recipe
    if not recipe:
        return job
    problems = []
    if recipe["method"] != job.info.name:
        problems.append(f"{file.path} holds weights of {recipe['method']}, not of {job.info.name}")
    if problem := file.misfit(card):
        problems.append(problem)
    raise_all(problems)
    defaults, values = job.info.defaults(), dict(job.parameters)
    for name in job.info.trained:
        stated = recipe["parameters"].get(name, defaults[name])
        if values[name] != stated and (name in job.given or values[name] != defaults[name]):
            problems.append(f"{file.path} was trained with {name}={stated}, not with {name}={values[name]}")
        values[name] = stated
    raise_all(problems)
    for name in [name for name in values if name.endswith("templates")]:
        if name not in job.given and values[name] == defaults[name]:
            values[name] = recipe["parameters"].get(name, values[name])
    named = values.get("templates")
    return dataclasses.replace(job, parameters=values, templates=templates(named) if named else job.templates)
