"""The methods of a request with all their hyper-parameters, checked without importing a method."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.data import prompts
from oodbench.data.prompts import TextList
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method import registry
from oodbench.method.access import Access
from oodbench.method.introspection import MethodInfo
from oodbench.method.parameters import (
    Choice,
    label,
    parse_choices,
    parse_names,
    parse_setting,
    parse_value,
    split,
    written,
)
from oodbench.pipeline.request import RunRequest, command
from oodbench.storage.files import expand
from oodbench.storage.store import content_digest

if TYPE_CHECKING:
    from oodbench.method import Method
    from oodbench.pipeline.weights import WeightsFile

Overrides = dict[str, Any]
NOT_IN_STREAMS = ("PIXELS", "PATCHES", "PATCH_ACTIVATIONS", "VIEWS", "CAPTIONS")


def sweep_variants(
    sweeps: Sequence[str], known: Collection[str], chosen: Collection[str], problems: list[str]
) -> Mapping[str, list[Overrides]]:
    """Return, by method, every combination of the values of its `--sweep METHOD.PARAMETER=A,B,...`.

    `known` are all methods, `chosen` those of the request. Problems are appended to `problems`.
    """
    swept: dict[str, dict[str, list[Any]]] = {}
    for text in sweeps:
        target, equals, rest = text.partition("=")
        method, dot, parameter = (piece.strip() for piece in target.partition("."))
        values = [parse_value(value) for value in split(rest, ",")]
        if not (equals and dot and method and parameter and values):
            problems.append(f"cannot read --sweep {text}; write --sweep method.parameter=value,value,...")
        elif method not in known:
            problems.append(f"--sweep {text}: no method '{method}'{did_you_mean(method, known)}")
        elif method not in chosen:
            problems.append(f"--sweep {text}: {method} is not among --methods")
        elif parameter in swept.get(method, {}):
            problems.append(f"--sweep {text}: {method}.{parameter} is swept twice; write all its values in one")
        else:
            swept.setdefault(method, {})[parameter] = values
    return {
        method: [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
        for method, values in swept.items()
    }


def expand_requests(request: RunRequest, encoders: str, seeds: Sequence[int]) -> list[RunRequest]:
    """Return one request per encoder and seed. Encoders are comma-separated; quote a path that holds a comma."""
    names = list(dict.fromkeys(parse_names(encoders))) or [""]
    numbers = list(dict.fromkeys(seeds)) or [request.seed]
    return [dataclasses.replace(request, encoder=name, seed=seed) for name in names for seed in numbers]


@dataclass(frozen=True)
class Job:
    """One method with all its hyper-parameters: one row of the table.

    templates  the prompts, None for a method without prompts
    given      the hyper-parameters that the user set
    named      whether the user named the method; a method of a group is skipped if it cannot run
    base       label of the job whose scores a stream reads, or ""
    only_base  whether the method is scored for a stream alone, and has no row
    variant    part of the label that distinguishes weights of a folder, as `K=4,seed=2`
    """

    info: MethodInfo
    parameters: dict[str, Any]
    templates: TextList | None
    weights: WeightsFile | None = None
    given: tuple[str, ...] = ()
    named: bool = True
    base: str = ""
    only_base: bool = False
    variant: str = ""

    @cached_property
    def files(self) -> dict[str, str]:
        """Return the digests of the files, folders and prompt sets that hyper-parameters name: scores depend on them.

        A folder counts if it is written with a `/`, a prompt set if its hyper-parameter ends in `_templates`.
        """
        return file_digests(self.parameters)

    @property
    def calibrates(self) -> bool:
        """Return whether fit() reads ID training images: not if the user set the value that it computes from them."""
        return self.info.calibrates(self.parameters)

    def access(self, shots: int | None = None) -> Access:
        """Return the access card of the row; `shots` are the labelled ID images a class that the run draws."""
        if "SHOTS" in self.info.needs:  # those that the weights were trained on
            shots = self.weights.images.get("shots") if self.weights else None
        return self.info.card(self.parameters, shots)

    @property
    def reads_labels(self) -> bool:
        """Return whether fit() reads the classes of ID training images."""
        return self.calibrates and "LABELS" in self.info.needs

    @property
    def is_stream(self) -> bool:
        """Return whether the method learns from the test images."""
        return "STREAM" in self.info.needs

    @property
    def uncalibrated_option(self) -> str:
        """Return the option that makes calibration images unnecessary, "" if there is none."""
        return f"--set {self.info.name}.{self.info.calibrated}=..." if self.info.calibrated else ""

    def build(self) -> Method[Any]:
        """Import the method and return it with its hyper-parameters. Raise UserError for a value that it refuses."""
        return registry.make(self.info, self.parameters, self.label)

    @property
    def label(self) -> str:
        """Return the name of the variant, such as `energy[scale=1]`."""
        plain = label(self.info.name, self.parameters, self.info.defaults())
        if not self.variant:
            return plain
        return f"{plain[:-1]},{self.variant}]" if plain.endswith("]") else f"{plain}[{self.variant}]"


def file_digests(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the files, folders and prompt sets that values name, see Job.files."""
    texts = {name: value for name, value in parameters.items() if isinstance(value, str)}
    sets = {name: prompts.templates(value).digest for name, value in texts.items() if name.endswith("_templates")}
    named = {name: value for name, value in texts.items() if name != "templates" and name not in sets}
    paths = {name: expand(Path(value)) for name, value in named.items() if value.strip("./\0 ")}
    return sets | {
        name: content_digest(path)
        for name, path in paths.items()
        if path.is_file() or ("/" in named[name] and path.is_dir())
    }


@dataclass(frozen=True)
class Jobs:
    """The jobs of a request, and (name, reason) of the methods of its groups that cannot run.

    A job that a stream reads as its base is among them, whether or not it has a row of its own.
    """

    jobs: tuple[Job, ...]
    skipped_methods: tuple[tuple[str, str], ...] = ()

    @property
    def rows(self) -> tuple[Job, ...]:
        """Return the jobs that have rows."""
        return tuple(job for job in self.jobs if not job.only_base)

    def reasons(self, own: Mapping[str, str], joint: str = ": ") -> dict[str, str]:
        """Return why jobs with rows cannot run, by label: their own reasons, or those of their base.

        Reasons in `own` may begin with the label of their job, which is removed.
        """
        own = {label: reason.removeprefix(f"{label}: ") for label, reason in own.items()}
        failed = [job for job in self.rows if job.label in own or job.base in own]
        return {job.label: own.get(job.label) or f"needs its base {job.base}{joint}{own[job.base]}" for job in failed}

    def without(self, failed: Collection[str]) -> tuple[Job, ...]:
        """Return the jobs without some rows, by label, and without bases that no other stream reads."""
        rows = [job for job in self.rows if job.label not in failed]
        bases = {job.base for job in rows}
        return tuple(job for job in self.jobs if job in rows or (job.only_base and job.label in bases))


def make_jobs(request: RunRequest, known: Mapping[str, MethodInfo] | None = None) -> Jobs:
    """Return a job for every method of the request and every variant of it. Raise UserError with all problems.

    `known` are the methods by name, which are looked up if they are not given.
    """
    known = registry.methods(request.plugins) if known is None else known
    problems: list[str] = []
    choices = _without_groups(parse_choices(request.methods), known, problems)
    skipped_methods: list[tuple[str, str]] = []
    settings = _settings(request, known, choices, problems)
    swept = sweep_variants(request.sweeps, known, {choice.name for choice in choices}, problems)
    jobs: dict[str, Job] = {}
    bases: dict[str, Job] = {}
    for choice in choices:
        info = known.get(choice.name)
        if info is None:
            problems.append(f"no method '{choice.name}'{did_you_mean(choice.name, {*known, *registry.NAMED_GROUPS})}")
        elif (problem := info.problem or _needs_problem(info)) and not choice.named:
            skipped_methods.append((info.name, problem))
        elif problem:
            problems.append(f"method '{info.name}' ({info.path}): {problem}")
        else:
            try:
                _check_not_of_weights(info, choice.overrides, request)
                for values in swept.get(info.name, [{}]):
                    overrides = {**settings.get(info.name, {}), **choice.overrides, **values}
                    job = dataclasses.replace(_job(info, overrides, request.templates), named=choice.named)
                    try:
                        base = _base(job, known, request.templates)
                    except UserError as error:
                        if choice.named or "base" in overrides:
                            raise
                        skipped_methods.append((info.name, str(error)))
                        continue
                    if base:
                        parameters = {**job.parameters, "base": base.label}
                        job = dataclasses.replace(job, parameters=parameters, base=base.label)
                        twice = bases.get(base.label)
                        named = choice.named or bool(twice and twice.named)
                        bases[base.label] = dataclasses.replace(base, named=named)
                    twice = jobs.get(job.label)  # the same variant twice is one row
                    jobs[job.label] = dataclasses.replace(job, named=job.named or bool(twice and twice.named))
            except UserError as error:
                if choice.named or info.name in settings or info.name in swept:
                    problems += error.problems
                else:  # a method of a group, whose default base cannot run
                    skipped_methods.append((info.name, error.problems[0]))
    if not jobs and not problems:
        problems.append("no method can run: " + "; ".join(f"{name}: {reason}" for name, reason in skipped_methods))
    raise_all(problems)
    only_bases = [base for label, base in bases.items() if label not in jobs]
    return Jobs((*jobs.values(), *only_bases), tuple(skipped_methods))


def _base(job: Job, known: Mapping[str, MethodInfo], templates: str) -> Job | None:
    """Return the job whose scores a stream reads: the method that its hyper-parameter `base` names, if it has one.

    Raises UserError if that is not one method that scores each image independently.
    """
    text = job.parameters.get("base")
    if not job.is_stream or not isinstance(text, str) or not text:
        return None
    name = job.info.name
    such_as = f"such as {name}[base=mcm] or {name}[base=neglabel[groups=10]]"
    choices = parse_choices(text)
    if len(choices) != 1:
        raise UserError(f"{name}.base is one method, not '{text}'; write one stream for each, {such_as}")
    (choice,) = choices
    info = known.get(choice.name)
    if info is None:
        alike = did_you_mean(choice.name, [other for other, one in known.items() if "STREAM" not in one.needs])
        wrong = f"'{choice.name}' is a group" if choice.name in registry.NAMED_GROUPS else f"no method '{choice.name}'"
        raise UserError(f"{name}.base: {wrong}{alike}; write one method, {such_as}")
    if problem := info.problem or _needs_problem(info):
        raise UserError(f"{name}.base: method '{info.name}' ({info.path}): {problem}")
    if "STREAM" in info.needs:
        raise UserError(
            f"{name}.base: {info.name} learns from the test images itself, and its scores depend on their order; name "
            f"a method that does not, {such_as}"
        )
    return dataclasses.replace(_job(info, choice.overrides, templates), only_base=True)


def stream_problems(jobs: Jobs, request: RunRequest) -> list[str]:
    """Return why named methods cannot score images one by one: they learn from the test images."""
    return [
        f"{job.label} learns from a test stream, in which a score depends on the images before it; use\n  "
        f"{command(request, methods=job.label)}"
        for job in jobs.rows
        if job.is_stream and job.named
    ]


def readable_jobs(jobs: Jobs) -> Jobs:
    """Return the jobs whose lists of texts can be read. Raise UserError for the others that the user named."""
    own = {job.label: problem for job in jobs.jobs if (problem := _list_problem(job))}
    reasons = jobs.reasons(own)
    refused = [job for job in jobs.rows if job.label in reasons and (job.named or job.given)]
    raise_all(list(dict.fromkeys(own.get(job.base) or own[job.label] for job in refused)))
    return Jobs(jobs.without(reasons), (*jobs.skipped_methods, *reasons.items())) if reasons else jobs


def _list_problem(job: Job) -> str:
    """Return why a list of texts that the user named cannot be read, as the method itself finds it, or "".

    The method is imported only if a text was given that may be a file, or none where its `words` must be one.
    """
    texts = {p.name for p in job.info.parameters if p.kind == "str" and not p.name.endswith("templates")}
    if not texts.intersection(job.given) and job.parameters.get("words") != "":
        return ""
    try:
        job.build().text_encodings(1)
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"{job.label}: {error}"
    except Exception:  # of a plugin: the run reports it
        return ""
    return ""


def _without_groups(choices: Sequence[Choice], known: Mapping[str, MethodInfo], problems: list[str]) -> list[Choice]:
    """Return the choices with each group replaced by its methods. Problems are appended to `problems`."""
    out: list[Choice] = []
    for choice in choices:
        if choice.name not in registry.NAMED_GROUPS:
            out.append(choice)
        elif choice.overrides:
            problems.append(f"'{choice.name}' is a group, which has no hyper-parameters; use --set METHOD.NAME=VALUE")
        else:
            try:
                out += [Choice(name, {}, named=False) for name in registry.group(choice.name, known)]
            except UserError as error:
                problems += error.problems
    return out


def _settings(
    request: RunRequest, known: Mapping[str, MethodInfo], choices: Sequence[Choice], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of `--set METHOD.PARAMETER=VALUE` by method. Problems are appended to `problems`."""
    settings: dict[str, dict[str, Any]] = {}
    asked = [known[choice.name] for choice in choices if choice.name in known]
    for text in request.settings:
        try:
            setting = parse_setting(text)
        except UserError as error:
            problems += error.problems
            continue
        if setting.method not in known:
            problems.append(f"--set {text}: no method '{setting.method}'{did_you_mean(setting.method, known)}")
        elif setting.method not in {choice.name for choice in choices}:
            streams = [name for name, info in known.items() if info in asked and "base" in info.defaults()]
            of_base = f"{setting.method}[{setting.parameter}={written(setting.value)}]"
            hint = f"; as the base of a stream, write {streams[0]}[base={of_base}]" if streams else ""
            problems.append(f"--set {text}: {setting.method} is not among --methods {request.methods}{hint}")
        settings.setdefault(setting.method, {})[setting.parameter] = setting.value
    return settings


def _check_not_of_weights(info: MethodInfo, overrides: Mapping[str, Any], request: RunRequest) -> None:
    """Raise UserError if a user writes the label of a row of --weights METHOD=FOLDER, as in `coop[K=4,seed=2]`."""
    given = [name for name in ("K", "seed") if name in overrides and name not in info.defaults()]
    if given and "SHOTS" in info.needs:
        others = {name: value for name, value in overrides.items() if name not in given}
        plain = label(info.name, others, info.defaults())
        weights = request.weights or (
            f"{info.name}=weights/{info.name}-ENCODER-K{overrides.get('K', 16)}-S"
            f"{overrides.get('seed', 0)}.safetensors",
        )
        raise UserError(
            f"{' and '.join(given)} of {info.name} are those of its weights, not hyper-parameters; name the file of "
            f"these weights, or a folder for all: {command(request, methods=plain, weights=weights)}"
        )


def _needs_problem(info: MethodInfo) -> str:
    """Return why no batch has all inputs that a method declares, or ""."""
    if "LABELS" in info.needs and "CALIBRATION" not in info.needs:
        return (
            "it reads labels, which only calibration images have: write needs = Needs.CALIBRATION | Needs.LABELS | ..."
        )
    if info.patch_fields and "VIEWS" in info.needs:
        return "it reads patches and views, which no batch has together: make it two methods"
    if "STREAM" in info.needs and (refused := [need for need in NOT_IN_STREAMS if need in info.needs]):
        return (
            f"it learns from the test images and reads {', '.join(refused)}, which a stream does not have: its images "
            "come from the stored features, in another order for each seed; write needs = Needs.FEATURES | Needs.STREAM"
        )
    return ""


def _job(info: MethodInfo, overrides: Mapping[str, Any], templates: str) -> Job:
    """Return the job of a method. Raise UserError for bad values and for prompt sets that do not exist."""
    parameters = registry.parameters(info, overrides)
    if templates and "templates" in parameters and "templates" not in overrides:
        parameters["templates"] = templates
    named = parameters.get("templates")
    job = Job(info, parameters, prompts.templates(named) if isinstance(named, str) else None, given=tuple(overrides))
    _ = job.files  # raises UserError for a prompt set that does not exist
    return job
