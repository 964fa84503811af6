"""Methods and hyper-parameters as users write them (`mcm.temperature=0.01`, `energy[scale=1]`): parsing and types."""

from __future__ import annotations

import ast
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

from oodbench.errors import UserError, raise_all

_PLAIN = {"true": True, "false": False, "none": None}
_TYPES = {"None": type(None), "bool": bool, "int": int, "float": float, "str": str}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|((?!\s*")[^,]*))(?:,|$)')  # a quoted or an unquoted name
_SYNTAX = "write name[parameter=value,...]"


@dataclass(frozen=True)
class Choice:
    """A requested method: its name and the hyper-parameters in brackets; `named` is False if a group stood for it."""

    name: str
    overrides: dict[str, Any]
    named: bool = True


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter of one method, as in `--set`."""

    method: str
    parameter: str
    value: Any


def parse_value(text: str) -> Any:
    """Return a Python or TOML literal (`0.01`, `true`, `none`, `"a b"`), or else the text itself."""
    text = text.strip()
    if text.lower() in _PLAIN:
        return _PLAIN[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | tuple | list | None) else text  # {} is a template


def conform(value: Any, kind: str) -> Any:
    """Convert a value to a type such as `float | None` or `Literal["atd", "ctw"]`; raise ValueError if it does not fit.

    An int becomes a float, and a list a tuple, if the type says so: equal values then have one key in the store.
    """
    kinds = [part.strip("\"'").removeprefix("typing.") for part in split(kind.strip("\"'"), "|")]
    for part in kinds:
        if type(value) is _TYPES.get(part):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"takes a finite number, not {value!r}")
            return value
        if part.startswith("Literal["):
            for option in ast.literal_eval(f"({part[8:-1]},)"):
                # parse_value() reads `none` as None, but it may be an option.
                if (type(value) is type(option) and value == option) or (value is None and option == "none"):
                    return option
    for part in kinds:
        head, _, inner = part.partition("[")
        if part == "float" and type(value) is int:
            if abs(value) > sys.float_info.max:
                raise ValueError(f"takes {kind}, not {value!r}")
            return float(value)
        if head == "Optional":
            return None if value is None else conform(value, inner[:-1])
        if head in ("tuple", "list") and isinstance(value, tuple | list):
            return _sequence(value, tuple if head == "tuple" else list, inner[:-1])
        if head not in (*_TYPES, "Literal", "tuple", "list"):
            return value  # any other type is checked by the method itself
    raise ValueError(f"takes {kind}, not {value!r}")


def _sequence(value: Any, into: type[tuple[Any, ...]] | type[list[Any]], inner: str) -> Any:
    kinds = split(inner, ",")
    if into is list or kinds[1:] == ["..."]:
        kinds = kinds[:1] * len(value)
    if inner and len(kinds) != len(value):
        raise ValueError(f"takes {into.__name__}[{inner}], not {value!r}")
    return into(conform(v, k) for v, k in zip(value, kinds, strict=True)) if inner else into(value)


def parse_choices(text: str) -> list[Choice]:
    """Parse `mcm,energy[scale=1],energy[scale=100]`; raise UserError with every part that cannot be parsed."""
    choices: list[Choice] = []
    problems: list[str] = []
    for part in split(text, ","):
        try:
            choices.append(_choice(part))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    if not choices:
        raise UserError("no method was named; write e.g. --methods mcm,energy, or --methods core")
    return choices


def _choice(text: str) -> Choice:
    name, bracket, rest = text.partition("[")
    if not name or (bracket and not rest.endswith("]")):
        raise UserError(f"cannot read method '{text}'; {_SYNTAX}")
    overrides: dict[str, Any] = {}
    for setting in split(rest[:-1], ",") if bracket else ():
        key, equals, value = (piece.strip() for piece in setting.partition("="))
        if not equals or not key:
            raise UserError(f"cannot read '{setting}' in '{text}'; {_SYNTAX}")
        if key in overrides:
            raise UserError(f"'{key}' is set twice in '{text}'")
        overrides[key] = parse_value(value)
    return Choice(name.strip(), overrides)


def parse_setting(text: str) -> Setting:
    """Parse `mcm.temperature=0.01` into Setting("mcm", "temperature", 0.01); raise UserError if it cannot be parsed."""
    target, equals, value = text.partition("=")
    method, dot, name = (piece.strip() for piece in target.partition("."))
    if not equals or not dot or not method or not name:
        raise UserError(f"cannot read --set {text}; write --set method.parameter=value")
    return Setting(method, name, parse_value(value))


def parse_names(text: str) -> tuple[str, ...]:
    """Parse `textures,"folder:a,b"` into two names; double quotes protect commas and blanks of a path.

    Raise UserError for a quote that is not closed.
    """
    names, rest = [], text.strip()
    while rest:
        found = _NAME.match(rest)
        if found is None:
            raise UserError(f"cannot read the names {text!r}: a quote is not closed, or a comma is missing after it")
        names.append(found[2].strip() if found[1] is None else found[1].replace('""', '"'))
        rest = rest[found.end() :]
    return tuple(filter(None, names))


def label(name: str, parameters: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return `energy`, or `energy[scale=1]` if a value is not the default; parse_choices() parses it."""
    changed = [f"{k}={written(v)}" for k, v in parameters.items() if v != defaults.get(k)]
    return f"{name}[{','.join(changed)}]" if changed else name


def written(value: Any) -> str:
    """Return a value as a user would type it: 1 for 1.0, quotes only where they are needed."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, str):
        plain = not any(char in value for char in "[](){},=\"' \\") and parse_value(value) == value
        return value if plain or _is_choice(value) else repr(value)
    return str(value)


def _is_choice(value: str) -> bool:
    """Return whether a value is a method with hyper-parameters in brackets, which needs no quotes."""
    if not re.fullmatch(r"[\w-]+\[\w+=.*\]", value, re.DOTALL):
        return False
    try:
        return parse_choices(f"x[y={value},z=1],w") == [Choice("x", {"y": value, "z": 1}), Choice("w", {})]
    except UserError:
        return False


def split(text: str, separator: str) -> list[str]:
    """Split at a separator outside of brackets and quotes; empty parts are dropped."""
    parts, open_brackets, quote, start, skip = [], "", "", 0, False
    for i, char in enumerate(text):
        if skip or (quote and char == "\\"):
            skip = not skip
        elif quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and text[:i].rstrip()[-1:] in ("", *"=,|([{"):  # not an apostrophe
            quote = char
        elif char in _CLOSING:
            open_brackets += char
        elif open_brackets and char == _CLOSING[open_brackets[-1]]:
            open_brackets = open_brackets[:-1]
        elif char == separator and not open_brackets:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
