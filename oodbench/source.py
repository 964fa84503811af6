"""What the source of a method says about it, read with `ast`: nothing is imported, so listing needs no torch."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.values import conform

NEEDS = (
    "FEATURES",
    "ACTIVATIONS",
    "PIXELS",
    "ENCODER",
    "CALIBRATION",
    "WEIGHTS",
    "CAPTIONS",
)  # the flags of method.Needs, which imports torch
_ONE_CLASS = "it must define one subclass of Method"


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter as the source declares it; `kind` is the annotation's text."""

    name: str
    kind: str
    default: Any


@dataclass(frozen=True)
class MethodInfo:
    """What the source of a method says about it. `problem` is set when it cannot be read as one.

    origin    "built-in", "plugin" or "entry point of NAME"
    module    import name; "" for a file
    source    sha256 of the file and of the `_` parts beside it, taken when it was read
    """

    name: str
    path: Path
    origin: str
    module: str
    source: str = ""
    subclass: str = ""
    title: str = ""
    citation: str = ""
    summary: str = ""
    details: str = ""
    needs: tuple[str, ...] = ("FEATURES",)
    parameters: tuple[Parameter, ...] = ()
    calibrated: str = ""
    trained: tuple[str, ...] = ()  # hyper-parameters that training fixes
    problem: str = ""

    def defaults(self) -> dict[str, Any]:
        """Every hyper-parameter at its default."""
        return {p.name: p.default for p in self.parameters}


def describe(name: str, path: Path, origin: str, module: str, subclass: str = "") -> MethodInfo:
    """Read a method's file. `subclass` names its class when the file holds several."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), path.name)
        node = _subclass(tree, subclass)
        parameters, needs = _fields(node)
        calibrated = _calibrated(node, parameters)
        trained = _trained(node, parameters)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return MethodInfo(name, path, origin, module, problem=f"it cannot be read: {error}")
    except ValueError as error:
        return MethodInfo(name, path, origin, module, problem=str(error))
    first = (ast.get_docstring(tree) or "").split("\n")[0]
    summary, _, details = (ast.get_docstring(node) or "").partition("\n")
    title, colon, _ = first.partition(": ")
    return MethodInfo(
        name=name,
        path=path,
        origin=origin,
        module=module,
        source=source_digest(path),
        subclass=node.name,
        title=title if colon else name,
        citation=first.rpartition("(")[2].rstrip(".").rstrip(")") if "(" in first else "",
        summary=summary,
        details=details.strip(),
        needs=needs,
        parameters=parameters,
        calibrated=calibrated,
        trained=trained,
    )


def source_digest(path: Path) -> str:
    """sha256 of a file and of the files beside it whose name begins with `_` and which it imports or names."""
    parts, todo = {path}, [path]
    while todo:
        for part in _parts(todo.pop()):
            if part not in parts:
                parts.add(part)
                todo.append(part)
    whole = hashlib.sha256()
    for part in sorted(parts):
        whole.update(part.name.encode() + b"\0" + part.read_bytes() + b"\0")
    return whole.hexdigest()


def _parts(path: Path) -> Iterable[Path]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError):  # importing it will say so
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_"):
            data = path.with_name(node.value.rpartition("/")[2][:200])
            if data.is_file():  # named in the text, such as a word list
                yield data
        if isinstance(node, ast.ImportFrom):
            names = [*filter(None, [node.module]), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            part = path.with_name(f"{name.rpartition('.')[2]}.py")
            if part.name.startswith("_") and part.is_file():
                yield part


def _subclass(tree: ast.Module, name: str) -> ast.ClassDef:
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and any(map(_is_method, node.bases))]
    named = [node for node in found if node.name == name] if name else found
    if len(named) == 1:
        return named[0]
    if name:
        raise ValueError(f"it defines no subclass of Method named {name}")
    raise ValueError(f"{_ONE_CLASS}; it defines {', '.join(node.name for node in found) or 'none'}")


def _is_method(base: ast.expr) -> bool:
    return ast.unparse(base).partition("[")[0].rpartition(".")[2] in ("Method", "TrainedMethod")


def _fields(node: ast.ClassDef) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    parameters: list[Parameter] = []
    needs: tuple[str, ...] = ("FEATURES",)
    for item in node.body:
        if isinstance(item, ast.Assign) and _name(item.targets[0]) == "needs":
            needs = _needs(item.value)
        elif isinstance(item, ast.AnnAssign) and _name(item.target) == "needs" and item.value is not None:
            needs = _needs(item.value)
        elif isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            parameters.append(_parameter(_name(item.target), ast.unparse(item.annotation), item.value))
    return tuple(parameters), needs


def _calibrated(node: ast.ClassDef, parameters: tuple[Parameter, ...]) -> str:
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and _name(item.target) == "calibrated"
            and isinstance(item.value, ast.Constant)
        ):
            if item.value.value not in {p.name for p in parameters}:
                raise ValueError(f"calibrated = {ast.unparse(item.value)} must name a hyper-parameter")
            return str(item.value.value)
    return ""


def _trained(node: ast.ClassDef, parameters: tuple[Parameter, ...]) -> tuple[str, ...]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and _name(item.target) == "trained" and item.value is not None:
            named = ast.literal_eval(item.value)
            if not isinstance(named, tuple) or not set(named) <= {p.name for p in parameters}:
                raise ValueError(f"trained = {ast.unparse(item.value)} must name hyper-parameters")
            return named
    return ()


def _name(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else ""


def _needs(value: ast.expr) -> tuple[str, ...]:
    named = {n.attr for n in ast.walk(value) if isinstance(n, ast.Attribute)} - {"Needs", "method"}
    if not named or not named <= set(NEEDS):
        raise ValueError(f"needs = {ast.unparse(value)} must name flags of Needs, joined by |: {', '.join(NEEDS)}")
    return tuple(need for need in NEEDS if need in named)


def _parameter(name: str, kind: str, value: ast.expr | None) -> Parameter:
    if value is None:
        raise ValueError(f"hyper-parameter '{name}' has no default")
    try:
        default = ast.literal_eval(value)
    except (ValueError, TypeError):
        raise ValueError(f"the default of hyper-parameter '{name}' is not a literal: {ast.unparse(value)}") from None
    try:
        return Parameter(name, kind, conform(default, kind))
    except ValueError as error:
        raise ValueError(f"the default of hyper-parameter '{name}' does not fit: it {error}") from None
