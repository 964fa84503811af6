"""The registry of methods, which are found as files, described without importing them, and imported when chosen.

Built-in methods are the files of `oodbench_methods`; others come from the entry-point group `oodbench.methods` or from
a file given on the command line. A plugin that cannot be imported fails only when it is chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method import source_files
from oodbench.method.access import FAMILIES, FEW_SHOT
from oodbench.method.introspection import MethodInfo, describe
from oodbench.method.parameters import conform
from oodbench.storage.files import expand, real_path

if TYPE_CHECKING:
    from oodbench.method import Method

__all__ = ["GROUP", "MethodInfo", "load", "make", "method_info", "methods", "parameters"]

GROUP = "oodbench.methods"
# The methods of `--methods core`, the default; zoc_coca is ZOC for an encoder that writes captions.
CORE = ("clipn", "energy", "maxlogit", "mcm", "msp", "neglabel", "odin", "react", "zoc", "zoc_coca")
NAMED_GROUPS = ("core", *FAMILIES.values(), "all")  # words of `--methods`


def methods(plugins: Sequence[Path] = ()) -> dict[str, MethodInfo]:
    """Return all methods, sorted by name; raise UserError naming both files if a plugin has the name of another method.

    If an installed package takes the name of a method, that is a problem of the method, reported when it is chosen.
    """
    found: dict[str, MethodInfo] = {}
    problems = [problem for path in plugins if (problem := _plugin_problem(expand(path)))]
    raise_all(problems)
    for info in (*_built_in(), *_from_entry_points(), *map(_from_file, plugins)):
        other = found.setdefault(info.name, info)
        if other is not info and other.path.resolve() != info.path.resolve():
            twice = f"is defined twice: in {other.path} and in {info.path}"
            if info.origin == "plugin":
                problems.append(f"method '{info.name}' {twice}; rename one")
            else:
                found[info.name] = dataclasses.replace(other, problem=f"it {twice} ({info.origin}); uninstall that")
    raise_all(problems)
    return dict(sorted(found.items()))


def method_info(name: str, known: Mapping[str, MethodInfo]) -> MethodInfo:
    """Return a method by name; raise UserError with a suggestion if there is none."""
    if name not in known:
        raise UserError(f"no method '{name}'{did_you_mean(name, known)}")
    return known[name]


def group(name: str, known: Mapping[str, MethodInfo]) -> list[str]:
    """Return the methods of a group of `--methods`; raise UserError if it is empty.

    A method is in the group of its access card and in that of its `family`; a file of --plugin also in `core`.
    """
    members = [one for one, info in known.items() if name in groups_of(info)]
    if not members:
        labelled = ", ".join(one for one, info in known.items() if "LABELS" in info.needs)
        few = name == FAMILIES[FEW_SHOT] and labelled
        shots = f"name a method that reads labels ({labelled}) with --shots K, " if few else ""
        raise UserError(
            f"--methods {name}: no method of this group is installed; {shots}add one with --plugin FILE, or choose "
            f"among {', '.join(NAMED_GROUPS)} and the names that `oodbench methods` lists"
        )
    return members


def groups_of(info: MethodInfo) -> tuple[str, ...]:
    """Return the groups of `--methods` that a method is in."""
    core = ("core",) if info.name in CORE or info.origin == "plugin" else ()
    own = () if info.problem else (FAMILIES[info.card().group], info.family)
    return (*core, *dict.fromkeys(filter(None, own)), "all")


def load(info: MethodInfo) -> type[Method[Any]]:
    """Import a method's class; raise UserError naming the file for any failure."""
    from oodbench.method import Method

    where = f"method '{info.name}' ({info.path})"
    if info.problem:
        raise UserError(f"{where}: {info.problem}")
    try:
        module = (
            importlib.import_module(info.module)
            if info.module
            else import_file(f"oodbench_plugin_{info.name}_{info.source[:8]}", info.path)
        )
        found = vars(module)[info.subclass]
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"{where} does not import: {reason}; -v shows where") from error
    if not isinstance(found, type) or not issubclass(found, Method):
        raise UserError(f"{where}: {info.subclass} is not a subclass of oodbench.method.Method")
    if problem := _undeclared(info, found):
        raise UserError(f"{where}: {problem}")
    return found


def _undeclared(info: MethodInfo, found: type[Method[Any]]) -> str:
    """Return what a class has that its source does not state, or "": keys of stored scores follow from the source."""
    from oodbench.method import FewShotMethod, Needs, StreamMethod

    hidden = [field.name for field in dataclasses.fields(found) if field.init and field.name not in info.defaults()]
    if hidden:
        return f"hyper-parameters that cannot be read from its source: {', '.join(hidden)}; write them in the class"
    needs = tuple(str(need.name) for need in Needs if need in found.needs)
    if needs != info.needs:
        return (
            f"its needs are {' | '.join(needs)}, of its source {' | '.join(info.needs)}; write needs = ... in the class"
        )
    for kind, need in ((StreamMethod, "STREAM"), (FewShotMethod, "SHOTS")):
        if issubclass(found, kind) != (need in info.needs):
            return f"only a subclass of {kind.__name__} needs {need}, and each names Needs.{need} in its `needs`"
    if getattr(found, "sees_itself", False) != info.sees_itself:
        return f"its sees_itself is {not info.sees_itself}, of its source {info.sees_itself}; write it in the class"
    if {**found.access.plain(), "test_gradient": info.access.test_gradient} != info.access.plain():
        return f"its access is {found.access}, of its source {info.access}; write access = Access(...) in the class"
    return ""


@contextlib.contextmanager
def fresh_import(info: MethodInfo) -> Iterator[None]:
    """Within the context, load() imports a method's modules again, without the module state of earlier imports."""
    own = set(map(str, source_files.files(info.path, info.module)))
    before = {name: module for name, module in sys.modules.items() if getattr(module, "__file__", None) in own}
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(before)


def make(info: MethodInfo, parameters: dict[str, Any], label: str = "") -> Method[Any]:
    """Construct a method with hyper-parameters; raise UserError for a value that it refuses."""
    from oodbench.method.views import keyed_views

    cls = load(info)
    try:
        method = cls(**parameters)
        keyed_views(method, info.source, 0)  # raises ValueError for views that do not fit
        return method
    except (ValueError, TypeError) as error:
        raise UserError(f"{label or info.name}: {error}") from error


def parameters(info: MethodInfo, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyper-parameters, with what a user set; raise UserError for unknown names and wrong types."""
    known = {p.name: p for p in info.parameters}
    values, problems = info.defaults(), []
    for name, value in overrides.items():
        if name not in known:
            have = ", ".join(f"{p.name} ({p.default!r})" for p in info.parameters) or "none"
            close = did_you_mean(name, known)
            hint = close if "did you mean" in close else ""
            problems.append(f"{info.name} has no hyper-parameter '{name}'; it has: {have}{hint}")
            continue
        try:
            values[name] = conform(value, known[name].kind)
        except ValueError as error:
            problems.append(f"{info.name}.{name} {error}")
    raise_all(problems)
    return values


def _built_in() -> Iterable[MethodInfo]:
    spec = importlib.util.find_spec("oodbench_methods")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.py")):
            if not path.name.startswith("_"):
                yield describe(path.stem, path, "built-in", f"oodbench_methods.{path.stem}")


def _from_entry_points() -> Iterable[MethodInfo]:
    for point in entry_points(group=GROUP):
        owner = f"entry point of {point.dist.name}" if point.dist else "entry point"
        path = source_files.module_file(point.module)
        if path is None:
            problem = f"its module {point.module} does not exist"
            yield MethodInfo(point.name, Path(point.module), owner, point.module, problem=problem)
        else:
            yield describe(point.name, path, owner, point.module, point.attr)


def _plugin_problem(path: Path) -> str:
    """Return why a path cannot be a plugin, or ""."""
    if not path.is_file():
        return f"plugin file {path} does not exist" if not path.exists() else f"plugin {path} is not a file"
    if path.suffix != ".py" or path.stem in NAMED_GROUPS or not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        return (
            f"plugin file {path} names no method: its name must be letters, digits, - and _, then .py, and not that of "
            f"a group ({', '.join(NAMED_GROUPS)})"
        )
    return ""


def _from_file(path: Path) -> MethodInfo:
    return describe(path.stem, real_path(path), "plugin", "")


def import_file(name: str, path: Path) -> ModuleType:
    """Import a file under a name, as a package, so that `from ._part import x` works; its errors are raised."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec and spec.loader  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
