"""Methods by name: found as files, described without importing them, loaded when chosen.

Built-in methods are the files of `oodbench_methods`; others come from the entry-point group `oodbench.methods` or from
a file given on the command line. Listing reads the source with `ast`, so `oodbench methods` imports no torch and a
plugin that does not import fails only when it is chosen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError, did_you_mean
from oodbench.values import matches

if TYPE_CHECKING:
    from oodbench.method import Method

GROUP = "oodbench.methods"


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter as the source declares it; `kind` is the annotation's text."""

    name: str
    kind: str
    default: Any


@dataclass(frozen=True)
class MethodInfo:
    """What the source of a method says about it. `problem` is set when it cannot be read as one."""

    name: str
    path: Path
    origin: str  # "built-in", "plugin" or "entry point of NAME"
    module: str  # import name; "" for a file
    title: str = ""
    citation: str = ""
    summary: str = ""
    details: str = ""
    needs: tuple[str, ...] = ("FEATURES",)
    parameters: tuple[Parameter, ...] = ()
    problem: str = ""

    @property
    def source(self) -> str:
        """sha256 of the file and of the `_` parts beside it that it imports."""
        return source_digest(self.path)

    def defaults(self) -> dict[str, Any]:
        return {p.name: p.default for p in self.parameters}


def methods(plugins: Sequence[Path] = ()) -> dict[str, MethodInfo]:
    """Every method that can be named, sorted by name. Two definitions of one name are an error naming both places."""
    found: dict[str, MethodInfo] = {}
    for info in (*_built_in(), *_from_entry_points(), *(_from_file(path) for path in plugins)):
        other = found.setdefault(info.name, info)
        if other is not info and other.path.resolve() != info.path.resolve():
            raise UserError(f"method '{info.name}' is defined twice: in {other.path} and in {info.path}; rename one")
    return dict(sorted(found.items()))


def method_info(name: str, known: dict[str, MethodInfo]) -> MethodInfo:
    """One method by name; UserError with a suggestion when there is none."""
    if name not in known:
        raise UserError(f"no method '{name}'{did_you_mean(name, known)}")
    return known[name]


def load(info: MethodInfo) -> type[Method[Any]]:
    """Import a method's class. Any failure is a UserError naming the file."""
    from oodbench.method import Method

    if info.problem:
        raise UserError(f"method '{info.name}' ({info.path}): {info.problem}")
    try:
        module = importlib.import_module(info.module) if info.module else _import_file(info.path)
    except Exception as error:
        raise UserError(
            f"method '{info.name}' ({info.path}) does not import: {type(error).__name__}: {error}"
        ) from error
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise UserError(f"method '{info.name}' ({info.path}) must define one subclass of Method; found {names}")
    return classes[0]


def make(info: MethodInfo, parameters: dict[str, Any]) -> Method[Any]:
    """A method with hyper-parameters set, ready to fit and score."""
    return load(info)(**parameters)


def check_parameters(info: MethodInfo, overrides: dict[str, Any]) -> list[str]:
    """What is wrong with hyper-parameters that a user set: unknown names, wrong types."""
    known = {p.name: p for p in info.parameters}
    problems = []
    for name, value in overrides.items():
        if name not in known:
            have = ", ".join(f"{p.name} ({p.default!r})" for p in info.parameters) or "none"
            hint = did_you_mean(name, known) if known else ""
            hint = hint if "did you mean" in hint else ""
            problems.append(f"{info.name} has no hyper-parameter '{name}'; it has: {have}{hint}")
        elif not matches(value, known[name].kind):
            problems.append(f"{info.name}.{name} takes {known[name].kind}, not {value!r}")
    return problems


def source_digest(path: Path) -> str:
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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else []
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            part = path.with_name(f"{name.rsplit('.', 1)[-1]}.py")
            if part.name.startswith("_") and part.is_file():
                yield part


def _built_in() -> Iterable[MethodInfo]:
    spec = importlib.util.find_spec("oodbench_methods")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.py")):
            if not path.name.startswith("_"):
                yield _describe(path.stem, path, "built-in", f"oodbench_methods.{path.stem}")


def _from_entry_points() -> Iterable[MethodInfo]:
    for point in entry_points(group=GROUP):
        owner = f"entry point of {point.dist.name}" if point.dist else "entry point"
        try:
            spec = importlib.util.find_spec(point.module)
        except Exception as error:  # a parent package that does not import
            yield MethodInfo(point.name, Path(point.module), owner, point.module, problem=str(error))
            continue
        if spec is None or spec.origin is None:
            yield MethodInfo(point.name, Path(point.module), owner, point.module, problem="its module does not exist")
        else:
            yield _describe(point.name, Path(spec.origin), owner, point.module)


def _from_file(path: Path) -> MethodInfo:
    if not path.is_file():
        raise UserError(f"plugin file {path} does not exist")
    return _describe(path.stem, path.resolve(), "plugin", "")


def _import_file(path: Path) -> ModuleType:
    name = f"oodbench_plugin_{path.stem}_{source_digest(path)[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _describe(name: str, path: Path, origin: str, module: str) -> MethodInfo:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return MethodInfo(name, path, origin, module, problem=f"it cannot be read: {error}")
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and any("Method" in ast.unparse(b) for b in n.bases)]
    if len(classes) != 1:
        return MethodInfo(name, path, origin, module, problem="it must define one subclass of Method")
    about = ast.get_docstring(tree) or ""
    first = about.split("\n")[0]
    summary, _, details = (ast.get_docstring(classes[0]) or "").partition("\n")
    try:
        parameters, needs = _fields(classes[0])
    except ValueError as error:
        return MethodInfo(name, path, origin, module, problem=str(error))
    return MethodInfo(
        name=name,
        path=path,
        origin=origin,
        module=module,
        title=first.partition(":")[0] if ":" in first else name,
        citation=first.rpartition("(")[2].rstrip(".").rstrip(")") if "(" in first else "",
        summary=summary,
        details=details.strip(),
        needs=needs,
        parameters=parameters,
    )


def _fields(node: ast.ClassDef) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    parameters: list[Parameter] = []
    needs: tuple[str, ...] = ("FEATURES",)
    for item in node.body:
        if isinstance(item, ast.Assign):
            target, value = item.targets[0], item.value
        elif isinstance(item, ast.AnnAssign):
            target, value = item.target, item.value  # type: ignore[assignment]
        else:
            continue
        if isinstance(target, ast.Name) and target.id == "needs" and value is not None:
            needs = tuple(n.attr for n in ast.walk(value) if isinstance(n, ast.Attribute))
        elif (
            isinstance(item, ast.AnnAssign)
            and isinstance(target, ast.Name)
            and "ClassVar" not in ast.unparse(item.annotation)
        ):
            if value is None:
                raise ValueError(f"hyper-parameter '{target.id}' has no default")
            try:
                default = ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"the default of hyper-parameter '{target.id}' is not a literal") from None
            parameters.append(Parameter(target.id, ast.unparse(item.annotation), default))
    return tuple(parameters), needs
