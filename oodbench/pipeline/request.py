"""The request of a run, and the checks of its values."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.data.calibration import CALIBRATION_LIMIT, Draw
from oodbench.encoder.card import RESIZE_FILTERS
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method.class_file import class_file
from oodbench.method.parameters import Choice, conform, label, parse_choices, parse_names, split, written
from oodbench.metrics import detection as metrics
from oodbench.pipeline.stream_order import MAX_SEED, StreamProtocol, canonical_order, canonical_ratio, protocols
from oodbench.storage.files import expand, real_path
from oodbench.storage.store import default_root

PRECISIONS = ("fp32", "bf16", "fp16")
MAX_INTEGER = 2**63 - 1  # of PyTorch and NumPy
MAX_REPLICATES = 10**7  # of the bootstrap
MAX_WORKERS = 4096  # threads or processes


@dataclass(frozen=True)
class RunRequest:
    """The request of a run. Every field is an option of `oodbench run`, and of oodbench.run() in Python."""

    # The methods, comma-separated, such as mcm,energy[scale=1], and groups of them: core, zero-shot, post-hoc, trained,
    # few-shot, test-time, all.
    methods: str = "core"
    # The ID set or benchmark: a name of the catalogue, or folder:PATH and the like.
    id: str = "glyphs"
    # The OOD sets; if empty, those of the ID set's protocol.
    ood: tuple[str, ...] = ()
    # ID training images for methods that calibrate, as `id`; "" takes those of the benchmark or of the ID set.
    calibration: str = ""
    # The largest number of ID training images that methods calibrate on, drawn with the seed; None takes all.
    calibration_limit: int | None = CALIBRATION_LIMIT
    # ID training images of each class for methods that read labels; None takes those of the benchmark, else as above.
    shots: int | None = None
    # The seed that draws the shots; None is `seed`.
    shot_seed: int | None = None
    # The class names of the ID set: the name of a list or a file with one name a line; "" takes the set's own.
    classes: str = ""
    # Whether class names are taken as words: AnnualCrop as "annual crop".
    clean_names: bool = False
    # The encoder, such as ViT-B-16/openai; "" takes the benchmark's, or the embedded one.
    encoder: str = ""
    # The folder of the datasets; None takes $OODBENCH_DATA, else ./data.
    data: Path | None = None
    # Hyper-parameters, each as "method.parameter=value".
    settings: tuple[str, ...] = ()
    # The prompts of every method: the name of a set, a file, or one template; "" leaves each method its own.
    templates: str = ""
    # The resize filter, bicubic or bilinear; None takes the one that the weights name.
    resize: str | None = None
    # The seed of everything that is drawn.
    seed: int = 0
    # The device, such as cpu, cuda or cuda:1; "auto" is the GPU if there is one.
    device: str = "auto"
    # What the encoder computes in: fp32, bf16 or fp16.
    precision: str = "fp32"
    # Images per batch of the encoder.
    batch_size: int = 128
    # Whether patch features are stored (half precision), for methods that read them.
    keep_patches: bool = False
    # Threads that decode images; 0 is one per core, at most 16.
    workers: int = 0
    # The number of images of each set in a trial run; None takes all.
    limit: int | None = None
    # Whether a set may hold fewer images than the catalogue counts.
    allow_partial: bool = False
    # Whether OOD sets that are missing are skipped.
    skip_missing: bool = False
    # Whether images and weights are identified by content instead of names and sizes.
    strict: bool = False
    # What happens if an image cannot be read: the run stops ("stop"), or the image is skipped ("skip").
    on_error: str = "stop"
    # The rule of FPR95: first, nearest or interpolate.
    at95: str = "first"
    # The rule of AUPR: average_precision or trapezoid.
    aupr: str = "average_precision"
    # Resamples of the confidence intervals; with 0 only AUROC has one.
    bootstrap: int = 1000
    # Files of trained weights, each as "method=file".
    weights: tuple[str, ...] = ()
    # Python files with methods of the user's own.
    plugins: tuple[Path, ...] = ()
    # The folder of the results.
    out: Path = Path("results")
    # The folder of stored embeddings and scores; None takes $OODBENCH_STORE, else the user's cache.
    store: Path | None = None
    # The URL of a store that all machines reach; "" takes $OODBENCH_SHARED, if it is set.
    shared: str = ""
    # The Ray cluster: local, auto, an address, or "no"; "" takes Ray with several GPUs or if RAY_ADDRESS is set.
    ray: str = ""
    # Workers on Ray; 0 is one per GPU, or two without a GPU.
    actors: int = 0
    # GPUs of each worker.
    gpus_per_actor: float = 1.0
    # Hyper-parameters with several values, each as "method.parameter=value,value".
    sweeps: tuple[str, ...] = ()
    # Orders in which methods that learn from the test images see them: shuffled, id-first, ood-first, blocks=N.
    stream_order: tuple[str, ...] = ("shuffled",)
    # The seeds that shuffle the streams; each gives a result of its own.
    stream_seeds: tuple[int, ...] = (0, 1, 2)
    # Images per batch of a stream.
    stream_batch: int = 256
    # ID to OOD images of a stream: "all" images, or the largest numbers in the ratio A:B.
    stream_ratio: str = "all"

    def draw(self, benchmark_shots: int = 0) -> Draw:
        """Return how ID training images are drawn; `benchmark_shots` are those of the benchmark, 0 for none."""
        shot_seed = self.seed if self.shot_seed is None else self.shot_seed
        return Draw(self.calibration_limit, self.seed, self.shots or benchmark_shots or None, shot_seed)

    def protocols(self) -> tuple[StreamProtocol, ...]:
        """Return the protocol of every stream of a pair. Raise UserError for orders and ratios that do not exist."""
        return protocols(self.stream_order, self.stream_seeds, self.stream_batch, self.stream_ratio)


def request_from(**options: Any) -> RunRequest:
    """Return a RunRequest for keyword options. Raise UserError with every unknown option and wrong type.

    A path may be a string, a list with one element may be that element, `ood` a comma-separated string, and `settings`
    a dictionary such as {"mcm.temperature": 0.01}. Methods may be classes and instances of Method, and plugins classes.
    """
    fields = {f.name: str(f.type) for f in dataclasses.fields(RunRequest)}
    values: dict[str, Any] = {}
    problems = []
    if not isinstance(methods := options.get("methods", ""), str):
        given = GivenMethods.of(methods)
        options |= {"methods": given.text, "plugins": (*several(options.get("plugins")), *given.plugins)}
    for name, value in options.items():
        if name not in fields:
            problems.append(f"no option '{name}'{did_you_mean(name, fields)}")
            continue
        try:
            values[name] = _option(name, fields[name], value)
        except (ValueError, TypeError):
            problems.append(f"option '{name}' takes {fields[name]}, not {value!r}")
    raise_all(problems)
    return RunRequest(**values)


@dataclass(frozen=True)
class GivenMethods:
    """Methods that were given in Python, in the form of a request: `text` as in --methods, and plugin files."""

    text: str
    plugins: tuple[Path, ...]

    @classmethod
    def of(cls, methods: Any) -> GivenMethods:
        """Convert a name, an instance or a class of Method, or several; raise UserError for anything else."""
        several = methods if isinstance(methods, list | tuple) else [methods]
        found = [cls(one, ()) if isinstance(one, str) else cls._of_object(one) for one in several]
        return cls(",".join(one.text for one in found), tuple(dict.fromkeys(p for one in found for p in one.plugins)))

    @classmethod
    def _of_object(cls, given: Any) -> GivenMethods:
        """Return the name of an instance or class, its hyper-parameters in brackets, and its file unless it has one."""
        from oodbench.method import Method, registry

        kind = given if isinstance(given, type) else type(given)
        if not issubclass(kind, Method):
            raise UserError(f"methods takes names, and classes and instances of oodbench.method.Method, not {given!r}")
        known = [
            info
            for info in registry.methods().values()
            if (info.module, info.subclass) == (kind.__module__, kind.__qualname__)
        ]
        plugins = () if known else (class_file(kind),)
        info = known[0] if known else registry.methods(plugins)[kind.__name__]
        if given is kind or info.problem:  # make_jobs() reports a problem
            return cls(info.name, plugins)
        values = {p.name: getattr(given, p.name) for p in info.parameters}
        values = {name: v.item() if getattr(v, "shape", None) == () else v for name, v in values.items()}  # of NumPy
        text = label(info.name, values, info.defaults())
        if parse_choices(text) != [Choice(info.name, {k: v for k, v in values.items() if v != info.defaults()[k]})]:
            raise UserError(f"a hyper-parameter is a number, text, None or a tuple of these, unlike in {given}")
        return cls(text, plugins)


def several(value: Any) -> tuple[Any, ...]:
    """Return one path or class, or several, as a tuple."""
    return tuple(value or ()) if isinstance(value, list | tuple | None) else (value,)


def _option(name: str, kind: str, value: Any) -> Any:
    """Return a value in the type of its field. Raise ValueError or TypeError if it cannot be converted."""
    if name == "calibration_limit" and value == "all":
        return None
    if name in _LISTS and isinstance(value, str):
        value = [int(one) if "int" in kind else one for one in parse_names(value)]
    if name == "settings" and isinstance(value, dict):
        value = [f"{key}={written(setting)}" for key, setting in value.items()]
    if kind.startswith("tuple"):
        element_kind = kind.removeprefix("tuple[").partition(",")[0]
        return tuple(_option("", element_kind, element) for element in several(value))
    if kind.startswith("Path") and value is not None:
        return class_file(value) if isinstance(value, type) else Path(value)
    return None if value is None and kind.endswith("| None") else conform(value, kind)


_LISTS = ("ood", "stream_order", "stream_seeds")  # fields that are one comma-separated list
_FLAGS = {"out": "results", "settings": "set", "sweeps": "sweep", "plugins": "plugin"}  # fields with other flags


def command(request: RunRequest, **changes: Any) -> str:
    """Return the `oodbench run` command of a request, with some fields changed, to be pasted into a shell."""
    request, usual = dataclasses.replace(request, **changes), RunRequest()
    if "methods" in changes:  # --set and --sweep of others would be refused
        kept = {choice.partition("[")[0].strip() for choice in split(request.methods, ",")}
        settings, sweeps = (
            tuple(text for text in texts if text.partition(".")[0].strip() in kept)
            for texts in (request.settings, request.sweeps)
        )
        request = dataclasses.replace(request, settings=settings, sweeps=sweeps)
    return shlex.join(["oodbench", "run", *option_words(request, usual, _FLAGS)])


def option_words(request: Any, usual: Any, flags: Mapping[str, str]) -> list[str]:
    """Return the options in which a request differs from the defaults; `flags` are those with another name."""
    words: list[str] = []
    for field in dataclasses.fields(request):
        value, flag = getattr(request, field.name), f"--{flags.get(field.name, field.name).replace('_', '-')}"
        if value == getattr(usual, field.name):
            continue
        if field.name in _LISTS:  # quoted as in CSV where a name holds a comma
            texts = map(str, value)
            value = ",".join('"{}"'.format(one.replace('"', '""')) if set(one) & set(',"') else one for one in texts)
        if value is True:
            words.append(flag)
        else:
            values = value if isinstance(value, tuple) else ("all" if value is None else value,)
            words += [word for one in values for word in (flag, str(one))]
    return words


def check_options(request: RunRequest) -> None:
    """Raise UserError for unknown choices, numbers out of range, and folders that cannot be written."""
    problems = choice_problems(
        ("--precision", request.precision, PRECISIONS),
        ("--on-error", request.on_error, ("stop", "skip")),
        ("--resize", request.resize or "bicubic", RESIZE_FILTERS),
        ("--at95", request.at95, metrics.AT95),
        ("--aupr", request.aupr, metrics.AUPR),
    )
    problems += range_problems(
        ("--batch-size", request.batch_size, 1, MAX_INTEGER),
        ("--workers", request.workers, 0, MAX_WORKERS),
        ("--limit", request.limit, 1, MAX_INTEGER),
        ("--seed", request.seed, 0, MAX_INTEGER),
        ("--actors", request.actors, 0, MAX_WORKERS),
        ("--bootstrap", request.bootstrap, 0, MAX_REPLICATES),
    )
    problems += [*check_draw(request), *check_streams(request)]
    if not 0 < request.gpus_per_actor < math.inf:
        problems.append(f"--gpus-per-actor must be a number above 0, not {request.gpus_per_actor}")
    if not is_writable(expand(request.out)):
        problems.append(f"the results folder {request.out} cannot be written; name another with --results")
    store = expand(request.store or default_root())
    # A read-only store is enough if every score is stored: see RunState.
    if not store.is_dir() and not is_writable(store):
        problems.append(_unwritable(store))
    raise_all(problems)


def check_draw(request: RunRequest) -> list[str]:
    """Return the problems of the options that draw calibration images."""
    return range_problems(
        ("--calibration-limit", request.calibration_limit, 1, MAX_INTEGER),
        ("--shots", request.shots, 1, MAX_INTEGER),
        ("--shot-seed", request.shot_seed, 0, MAX_INTEGER),
    )


def check_streams(request: RunRequest) -> list[str]:
    """Return the problems of the stream options."""
    problems = range_problems(("--stream-batch", request.stream_batch, 1, MAX_INTEGER))
    for seed in request.stream_seeds:
        problems += range_problems(("--stream-seeds", seed, 0, MAX_SEED))
    problems += [] if request.stream_seeds else ["--stream-seeds names no seed; write at least one, such as 0"]
    problems += [] if request.stream_order else ["--stream-order names no order; write at least one, such as shuffled"]
    checks = [(canonical_order, order) for order in request.stream_order]
    for check, text in (*checks, (canonical_ratio, request.stream_ratio)):
        try:
            check(text)
        except UserError as error:
            problems += error.problems
    return problems


def check_store(store: Path) -> None:
    """Raise UserError if a store cannot be written, before hours of work are done."""
    if not is_writable(store):
        raise UserError(_unwritable(store))


def _unwritable(store: Path) -> str:
    return f"the store {store} cannot be written; name another with --store or $OODBENCH_STORE"


def choice_problems(*choices: tuple[str, str, Collection[str]]) -> list[str]:
    """Return a problem for every option (name, value, known values) whose value is unknown."""
    return [f"{name} {value}{did_you_mean(value, known)}" for name, value, known in choices if value not in known]


def range_problems(*bounds: tuple[str, float | None, float, float]) -> list[str]:
    """Return a problem for every option (name, number, least, most) outside [least, most]; None is not checked."""
    problems = []
    for name, number, least, most in bounds:
        if number is None or least <= number <= most:  # False for NaN
            continue
        asked = f"at least {least}" if number < least else f"a number of at most {most}"
        problems.append(f"{name} must be {asked}, not {number}")
    return problems


def is_writable(folder: Path) -> bool:
    """Return whether a file can be written to a folder, or to its nearest parent that exists."""
    import tempfile

    nearest = next((p for p in (folder, *real_path(folder).parents) if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False
