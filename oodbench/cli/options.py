"""Options shared by several commands, --config files, and option names of earlier versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from oodbench.cli.help import SET_NAME, EncoderNames, Names, OneOf, method_names, set_names
from oodbench.errors import UserError, did_you_mean, redact
from oodbench.storage.files import read_text

FOLDER = click.Path(path_type=Path)


class Integers(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs only
    """One integer, or several separated by commas."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor a list such as 0,1,2", param, ctx)


class IntegerOrAll(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs only
    """An integer; None for `all`."""

    name = "integer or all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        try:
            return "all" if value == "all" else int(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor all", param, ctx)


def read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the options in the TOML file of --config the defaults; those on the command line take precedence."""
    if path is None:
        return
    import tomllib

    try:
        raw = tomllib.loads(read_text(path, "--config").replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"--config {path}: {error}") from error
    options = {p.name or "": p for p in ctx.command.params if p.name != "config"}
    names = {max(option.opts, key=len).lstrip("-").replace("-", "_"): name for name, option in options.items()}
    defaults: dict[str, Any] = {}
    for key, value in raw.items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            current = RENAMED.get(ctx.command_path.partition(" ")[2], {}).get(f"--{key.replace('_', '-')}", "")
            hint = did_you_mean(key, [spelled.replace("_", "-") for spelled in names])
            problem = f"'{key}' is now '{current.lstrip('-')}'; write {current.lstrip('-')} = ..."
            raise UserError(f"--config {path}: {problem if current else f'no option {key!r}{hint}'}")
        if name == "settings" and isinstance(value, dict):
            from oodbench.method.parameters import written
            from oodbench.results import flatten

            value = [f"{k}={written(v)}" for k, v in flatten(value).items()]
        elif isinstance(value, list) and not options[name].multiple:
            paths = name in ("ood", "encoder")  # which may contain commas and quotes
            value = ",".join('"{}"'.format(str(v).replace('"', '""')) if paths else str(v) for v in value)
        elif options[name].multiple and not isinstance(value, list):
            value = [value]
        _check_type(f"--config {path}: '{key}'", options[name], value)
        defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _check_type(where: str, option: click.Parameter, value: Any) -> None:
    """Raise UserError for a TOML value that click would convert, such as 1.7 for a seed."""
    kinds = {
        "integer": int,
        "boolean": bool,
        "float": (int, float),
        "integers": (int, str),
        "integer or all": (int, str),
    }
    kind: Any = kinds.get(option.type.name, str)
    for item in value if option.multiple else [value]:
        if not isinstance(item, kind) or (kind is not bool and isinstance(item, bool)):
            raise UserError(f"{where} takes a {option.type.name}, not {item!r}")


# Command -> option of an earlier version -> what to write now.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "run": {"--out": "--results"},
    "train": {"--out": "--output", "--batch": "--batch-size"},
    "score": {"--out": "--output"},
    "explain": {"--json": "--format json"},
    "report": {
        "--sets": "--ood",
        "--figures": "--format figures --output",
        "--pictures": "--with-figures",
        "--no-pictures": "--no-figures",
    },
    "weights": {"--release": "--output"},
    "datasets check": {"--json": "--output"},
}
RENAMED_COMMANDS: Mapping[str, str] = {"check": "methods check"}
_NEGATIVES = "--negatives"  # `oodbench methods neglabel --negatives` became a command


def renamed(command: str, arguments: Sequence[str]) -> str:
    """Return the error for arguments with names of an earlier version, with the command to paste; "" if none has one.

    `command` is the command that click parsed before it failed, without the program: "train", "datasets check", "".
    """
    changes: dict[str, str] = {}
    current: list[str] = []
    if arguments and not command and arguments[0] in RENAMED_COMMANDS:
        changes[f"oodbench {arguments[0]}"] = f"oodbench {RENAMED_COMMANDS[arguments[0]]}"
        current = [*RENAMED_COMMANDS[arguments[0]].split(), *arguments[1:]]
    elif command in ("methods", "methods show") and _NEGATIVES in arguments:
        changes[f"oodbench methods {_NEGATIVES}"] = "oodbench methods negatives"
        current = ["methods", "negatives", *(w for w in arguments if w not in (_NEGATIVES, "methods", "show"))]
    else:
        for word in arguments:
            option, equals, value = word.partition("=")
            if option in RENAMED.get(command, {}):
                changes[option] = RENAMED[command][option]
                current += changes[option].split()
                current[-1] += equals + value
            else:
                current.append(word)
    reasons = ", ".join(f"{old} is now {new}" for old, new in changes.items())
    return redact(f"{reasons}; write\n  {shlex.join(['oodbench', *current])}") if changes else ""


METHODS = click.option(
    "--methods",
    type=Names(method_names),
    default="core",
    help="mcm,energy[scale=1],... and groups: core, zero-shot, post-hoc, trained, few-shot, test-time, all.",
    show_default=True,
)
CONFIG = click.option(
    "--config", type=FOLDER, is_eager=True, expose_value=False, callback=read_config, help="TOML file of options."
)
ID = click.option(
    "--id",
    "id_",
    type=SET_NAME,
    default="glyphs",
    help="ID set or benchmark: a name, or folder:PATH.",
    show_default=True,
)
OOD = click.option(
    "--ood",
    type=Names(set_names),
    default="",
    help="OOD sets, separated by commas: names, or folder:PATH. Default: those of the ID set's benchmark.",
)
CLASSES = click.option(
    "--classes", default="", help="Class names: the name of a list, or a file with one name per line."
)
CLEAN_NAMES = click.option(
    "--clean-names", is_flag=True, help='Split class names into words, AnnualCrop into "annual crop", and print them.'
)
CALIBRATION = click.option(
    "--calibration",
    type=SET_NAME,
    default="",
    help="ID training images for methods that calibrate. Default: those of the benchmark, else of the ID set.",
)
CALIBRATION_LIMIT = click.option(
    "--calibration-limit",
    type=IntegerOrAll(),
    default=50_000,
    help="Maximum number of ID training images for calibration, drawn with --seed; or all.",
    show_default=True,
)
SHOTS = click.option(
    "--shots",
    type=int,
    help="ID training images per class for methods that read labels. Default: the benchmark's, else "
    "--calibration-limit images.",
)
SHOT_SEED = click.option("--shot-seed", type=int, help="Seed that draws --shots. Default: --seed.")
_ENCODER_FORMS = (
    "glyphs, ARCH/TAG, ARCH/TAG@FILE, ARCH@FILE, CONFIG.json@FILE, hf-hub:OWNER/MODEL, local-dir:FOLDER or "
    "plugin:FILE.py{}. Default: that of the methods' weights, else the benchmark's."
)
ENCODER = click.option("--encoder", type=EncoderNames(several=False), default="", help=_ENCODER_FORMS.format(""))
ENCODERS = click.option(
    "--encoder",
    type=EncoderNames(),
    default="",
    help=_ENCODER_FORMS.format("; several are separated by commas"),
)
DATA = click.option("--data", type=FOLDER, help="Folder of the datasets. Default: $OODBENCH_DATA, else ./data.")
SETTINGS = click.option(
    "--set", "settings", multiple=True, help="Value of a hyper-parameter: mcm.temperature=0.01. Repeatable."
)
TEMPLATES = click.option(
    "--templates",
    default="",
    help="Prompt templates for every method: the name of a set, a file, or 'a photo of a {}'.",
)
RESIZE = click.option(
    "--resize", type=OneOf("bicubic", "bilinear"), help="Resize filter. Default: the one the weights came with."
)
PLUGINS = click.option(
    "--plugin", "plugins", multiple=True, type=FOLDER, help="Python file with a method of your own. Repeatable."
)
WEIGHTS = click.option(
    "--weights",
    multiple=True,
    help="Trained weights of a method: clipn=FILE, or coop=FOLDER for all files of a few-shot method. Repeatable.",
)
DEVICE = click.option(
    "--device",
    type=Names(lambda: ("auto", "cpu", "cuda", "cuda:0", "cuda:1"), several=False),
    default="auto",
    help="auto, cpu, cuda, cuda:1, ...",
    show_default=True,
)
PRECISION = click.option(
    "--precision",
    type=OneOf("fp32", "bf16", "fp16"),
    default="fp32",
    help="Number format of the model's computations.",
    show_default=True,
)
BATCH_SIZE = click.option("--batch-size", default=128, help="Images encoded at once.", show_default=True)
WORKERS = click.option("--workers", default=0, help="Threads that decode images. Default: one per core, at most 16.")
ON_ERROR = click.option(
    "--on-error",
    type=OneOf("stop", "skip"),
    default="stop",
    help="Stop at an unreadable image, or skip it.",
    show_default=True,
)
AT95 = click.option(
    "--at95",
    type=OneOf("first", "nearest", "interpolate"),
    default="first",
    help="Rule of FPR95: nearest is MCM's, interpolate CLIPN's.",
    show_default=True,
)
AUPR = click.option(
    "--aupr",
    type=OneOf("average_precision", "trapezoid"),
    default="average_precision",
    help="Rule of AUPR: trapezoid is OpenOOD's.",
    show_default=True,
)
BOOTSTRAP = click.option(
    "--bootstrap",
    default=1000,
    help="Bootstrap resamples for confidence intervals; with 0, only AUROC has an interval.",
    show_default=True,
)
STORE = click.option(
    "--store",
    type=FOLDER,
    help="Folder of stored embeddings and scores. Default: $OODBENCH_STORE, else in the user's cache folder.",
)
SHARED = click.option(
    "--shared",
    default="",
    help="URL of a second store for all machines, such as s3://bucket/oodbench. Default: $OODBENCH_SHARED.",
)
RESULTS = click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
TRACKING_URI = click.option(
    "--tracking-uri", help="MLflow server. Default: $MLFLOW_TRACKING_URI, else a SQLite file in the results folder."
)
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Log every step, and show the traceback of an error.")
WIDE = click.option("--wide", is_flag=True, help="Show all columns in full.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON with all columns.")


def width(wide: bool) -> int | None:
    """Return the maximum number of characters in a line of a list: the terminal's width, or None for no limit."""
    import shutil

    return None if wide else max(shutil.get_terminal_size().columns, 80)
