"""Values as users write them: `mcm.temperature=0.01`, `energy[scale=1]`, TOML; read, and compared with a type."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from oodbench.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A method as asked for: its name and the hyper-parameters set in brackets."""

    name: str
    overrides: dict[str, Any]


def parse_value(text: str) -> Any:
    """A Python or TOML literal, or else the text itself: `0.01`, `true`, `none`, `"a b"`, `a photo of a {}`."""
    plain = {"true": True, "false": False, "none": None}
    if text.strip().lower() in plain:
        return plain[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def matches(value: Any, kind: str) -> bool:
    """Whether a value fits an annotation such as `float | None` or `Literal["atd", "ctw"]`; an int fits a float."""
    for part in _split(kind, "|"):
        if part == "None" and value is None:
            return True
        if part == "bool" and isinstance(value, bool):
            return True
        if part == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if part == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if part == "str" and isinstance(value, str):
            return True
        if part.startswith("Literal[") and value in ast.literal_eval(f"({part[8:-1]},)"):
            return True
        if part.partition("[")[0] in ("tuple", "list") and isinstance(value, tuple | list):
            return True
    return False


def parse_choices(text: str) -> list[Choice]:
    """`mcm,energy[scale=1],energy[scale=100]` -> three choices."""
    choices = []
    for part in _split(text, ","):
        name, bracket, rest = part.partition("[")
        if bracket and not rest.endswith("]"):
            raise UserError(f"cannot read method '{part}'; write name[parameter=value,...]")
        overrides = {}
        for setting in _split(rest[:-1], ",") if bracket else ():
            key, equals, value = setting.partition("=")
            if not equals:
                raise UserError(f"cannot read '{setting}' in '{part}'; write name[parameter=value,...]")
            overrides[key.strip()] = parse_value(value)
        choices.append(Choice(name.strip(), overrides))
    if not choices:
        raise UserError("no method was named; write e.g. --methods mcm,energy, or --methods all")
    return choices


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter of one method, as --set gives it."""

    method: str
    parameter: str
    value: Any


def parse_setting(text: str) -> Setting:
    """`mcm.temperature=0.01` -> Setting("mcm", "temperature", 0.01)."""
    target, equals, value = text.partition("=")
    method, dot, name = target.strip().partition(".")
    if not equals or not dot or not method or not name:
        raise UserError(f"cannot read --set {text}; write --set method.parameter=value")
    return Setting(method, name, parse_value(value))


def label(name: str, parameters: dict[str, Any], defaults: dict[str, Any]) -> str:
    """`energy`, or `energy[scale=1]` when something is not the default."""
    changed = [f"{k}={_plain(v)}" for k, v in parameters.items() if v != defaults.get(k)]
    return f"{name}[{','.join(changed)}]" if changed else name


def _plain(value: Any) -> str:
    """A value as it would be typed: 1 for 1.0, quotes only where they are needed."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, str) and any(char in value for char in "[](),=\"' "):
        return repr(value)
    return str(value)


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that stands outside brackets and quotes."""
    parts, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and depth:
            quote = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        if char == separator and depth == 0 and not quote:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    parts.append(current.strip())
    return [part for part in parts if part]
