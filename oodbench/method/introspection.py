"""The description of a method, read from its source with `ast` without importing it, so that listing needs no torch."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oodbench.method import source_files
from oodbench.method.access import FAMILIES, Access, complete, from_mapping
from oodbench.method.parameters import conform

NEEDS = (
    "FEATURES",
    "ACTIVATIONS",
    "PIXELS",
    "ENCODER",
    "CALIBRATION",
    "WEIGHTS",
    "CAPTIONS",
    "LABELS",
    "PATCHES",
    "VIEWS",
    "STREAM",
    "SHOTS",
    "PATCH_ACTIVATIONS",
)  # the flags of method.Needs, which imports torch
_LISTED = re.compile(r"(\w+(?:, \w+)*) {2,}(\S.*)")  # `templates    prompts of the class names`
_ONE_CLASS = "it must define one subclass of Method"
_KINDS = {  # the classes that methods inherit from -> their `needs`
    "Method": ("FEATURES",),
    "TrainedMethod": ("FEATURES",),
    "StreamMethod": ("FEATURES", "STREAM"),
    "FewShotMethod": ("FEATURES", "WEIGHTS", "SHOTS"),
}
_GRADIENTS = {"enable_grad", "set_grad_enabled"}  # score() runs without a gradient unless it calls one of these


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter as the source declares it; `kind` is the text of its annotation.

    meaning   its description in the docstring of the class, or ""
    """

    name: str
    kind: str
    default: Any
    meaning: str = ""


@dataclass(frozen=True)
class MethodInfo:
    """The description of a method.

    details   the docstring without its first line and without its list of hyper-parameters
    formula   LaTeX of the score, and a list of its symbols, or ""
    origin    "built-in", "plugin" or "entry point of NAME"
    module    import name; "" for a plugin file
    source    sha256 of the method's files (oodbench/method/source_files.py) when they were read
    trained   hyper-parameters that training fixes
    access    the declared access, and a gradient at test time; card() adds the fields that follow from the needs
    family    a group of `--methods` in addition to that of the card, or ""
    sees_itself  whether a StreamMethod may learn from an image before it scores that image
    problem   why the source cannot be read as a method, or ""
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
    formula: str = ""
    needs: tuple[str, ...] = ("FEATURES",)
    parameters: tuple[Parameter, ...] = ()
    calibrated: str = ""
    trained: tuple[str, ...] = ()
    access: Access = field(default_factory=Access)
    family: str = ""
    sees_itself: bool = False
    problem: str = ""

    def defaults(self) -> dict[str, Any]:
        """Return the default of every hyper-parameter."""
        return {p.name: p.default for p in self.parameters}

    @property
    def formulas(self) -> tuple[str, ...]:
        """Return the LaTeX of `formula`, each formula for itself, without the list of symbols."""
        return tuple(self.formula.split("\n\n")[: -1 if self.symbols else None]) if self.formula else ()

    @property
    def symbols(self) -> dict[str, str]:
        """Return what each symbol of `formula` means, {} if it has no list of them; the symbols are LaTeX."""
        _, separator, listed = self.formula.rpartition("\n\n")
        lines = [line.partition("  ") for line in re.sub(r"\n {2,}", " ", listed).splitlines()]
        is_list = separator and all(two_spaces for _, two_spaces, _ in lines)
        return {symbol: meaning.strip() for symbol, _, meaning in lines} if is_list else {}

    @property
    def patch_fields(self) -> tuple[str, ...]:
        """Return the names of the patch features that it reads: fields of Batch and Pairs, methods of an encoder."""
        return tuple(need.lower() for need in ("PATCHES", "PATCH_ACTIVATIONS") if need in self.needs)

    def calibrates(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether fit() reads ID training images: not if the user gave the value that it computes from them."""
        is_given = self.calibrated and parameters.get(self.calibrated) is not None
        return "CALIBRATION" in self.needs and not is_given

    def card(self, parameters: Mapping[str, Any] | None = None, shots: int | None = None) -> Access:
        """Return the access card for some hyper-parameters, by default the defaults."""
        calibrates = self.calibrates(self.defaults() if parameters is None else parameters)
        return complete(self.access, self.needs, calibrates=calibrates, shots=shots)


@dataclass(frozen=True)
class _Class:
    """A class definition, with its file."""

    node: ast.ClassDef
    path: Path
    tree: ast.Module


def describe(name: str, path: Path, origin: str, module: str, subclass: str = "") -> MethodInfo:
    """Describe the method in a file; `subclass` is the name of its class if the file has several.

    Attributes may be inherited from a class of the same file, of its package or of another method.
    """
    try:
        lineage = _chosen(path, module, subclass)
        parameters = _parameters(lineage)
        needs = _inherited_needs(lineage)
        calibrated = _calibrated(lineage, parameters)
        trained = _trained(lineage, parameters)
        access = _access(lineage)
        family = _family(lineage)
        sees_itself = _sees_itself(lineage)
        formula = _formula(lineage[0])
    except (OSError, SyntaxError, UnicodeDecodeError, RecursionError) as error:
        return MethodInfo(name, path, origin, module, problem=f"it cannot be read: {error}")
    except ValueError as error:
        return MethodInfo(name, path, origin, module, problem=str(error))
    summary, details, meanings = "", "", dict[str, str]()
    for one in reversed(lineage):
        text, described = _described(ast.get_docstring(one.node) or "", {p.name for p in parameters})
        meanings |= described
        summary, _, details = text.partition("\n") if text else (summary, "", details)
    title, citation = "", ""
    for one in lineage:
        first = (ast.get_docstring(one.tree) or "").split("\n")[0]
        if one.path == path:
            title = first.partition(": ")[0] if ": " in first else ""
        if not citation and "(" in first:
            citation = first.rpartition("(")[2].rstrip(".").rstrip(")")
    if {"PIXELS", "STREAM"} & set(needs) and _GRADIENTS & source_files.attributes(path, module):
        access = replace(access, test_gradient=True)
    return MethodInfo(
        name=name,
        path=path,
        origin=origin,
        module=module,
        source=source_files.source_digest(path, module, [one.path for one in lineage]),
        subclass=lineage[0].node.name,
        title=title or name,
        citation=citation,
        summary=summary,
        details=details.strip(),
        formula=formula,
        needs=needs,
        parameters=tuple(replace(p, meaning=meanings.get(p.name, "")) for p in parameters),
        calibrated=calibrated,
        trained=trained,
        access=access,
        family=family,
        sees_itself=sees_itself,
    )


def _chosen(path: Path, module: str, name: str) -> list[_Class]:
    """Return the method's class and its base classes that can be read, nearest first."""
    tree = source_files.tree_of(path)
    classes = [_Class(node, path, tree) for node in tree.body if isinstance(node, ast.ClassDef)]
    lineages = [lineage for cls in classes if (lineage := _lineage(cls, path, module))]
    # A base class of another class of the file is not the method.
    bases = {id(base.node) for lineage in lineages for base in lineage[1:]}
    leaves = [lineage for lineage in lineages if id(lineage[0].node) not in bases]
    chosen = [lineage for lineage in lineages if lineage[0].node.name == name] if name else leaves
    if len(chosen) == 1:
        return chosen[0]
    if name:
        raise ValueError(f"it defines no subclass of Method named {name}")
    have = ", ".join(lineage[0].node.name for lineage in leaves) or "none"
    unread = [f"{cls.node.name}({', '.join(map(ast.unparse, cls.node.bases))})" for cls in classes if cls.node.bases]
    hint = (
        f"; no base of {', '.join(unread)} is one that can be found without importing it"
        if unread and not leaves
        else ""
    )
    raise ValueError(f"{_ONE_CLASS}; it defines {have}{hint}")


def _lineage(one: _Class, main: Path, module: str, below: tuple[ast.ClassDef, ...] = ()) -> list[_Class]:
    """Return a class and its base classes, or an empty list unless it inherits from Method."""
    if one.node in below:  # a class that inherits from itself; reported when it is imported
        return []
    found: list[_Class] = []
    is_method = False
    for base in one.node.bases:
        own = any(isinstance(node, ast.ClassDef) and node.name == ast.unparse(base) for node in one.tree.body)
        above = _base(base, one, main, module) if own or not _kind(base, one.tree) else None
        inherited = _lineage(above, main, module, (*below, one.node)) if above else []
        found += inherited
        is_method = is_method or (not inherited and _kind(base, one.tree) != "")
    return [one, *found] if is_method or found else []


def _kind(base: ast.expr, tree: ast.Module) -> str:
    """Return which of `_KINDS` a base is, perhaps imported under another name; "" if it is none."""
    name = ast.unparse(base).partition("[")[0]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "oodbench.method":
            name = next((alias.name for alias in node.names if alias.asname == name), name)
    kind = name.rpartition(".")[2]
    return kind if kind in _KINDS else ""


def _base(base: ast.expr, one: _Class, main: Path, module: str) -> _Class | None:
    """Return the definition of a base class: in the same file, imported by name, or loaded from the registry."""
    expression = base.value if isinstance(base, ast.Subscript) else base
    if isinstance(expression, ast.Name):
        for node in reversed(one.tree.body):
            if isinstance(node, ast.ClassDef) and node.name == expression.id:
                return _Class(node, one.path, one.tree)
            if isinstance(node, ast.Assign) and expression.id in map(_name, node.targets):
                return _base(node.value, one, main, module)
    if built_in := source_files.loaded(expression):
        path = source_files.built_in_file(built_in)
        return _chosen(path, f"{source_files.BUILT_IN}.{built_in}", "")[0] if path else None
    owner, _, name = ast.unparse(expression).rpartition(".")
    for line in ast.walk(one.tree):
        if not isinstance(line, ast.Import | ast.ImportFrom):
            continue
        for alias in line.names:
            known = alias.asname or alias.name
            if isinstance(line, ast.ImportFrom) and not owner and known == name:
                files = source_files.imported(one.path, line, main, module) or _elsewhere(line.module)
                return _defined(files, alias.name, main, module)
            if known == owner:
                dotted = alias.name if isinstance(line, ast.Import) else f"{line.module}.{alias.name}"
                files = source_files.imported(one.path, line, main, module) or _elsewhere(dotted)
                return _defined(files, name, main, module)
    return None


def _elsewhere(module: str | None) -> list[Path]:
    """Return the file of a module of another package, except the standard library and torch, which are large."""
    top = (module or "").partition(".")[0]
    file = source_files.module_file(module) if module and top not in {*sys.stdlib_module_names, "torch"} else None
    return [file] if file and file.suffix == ".py" else []


def _defined(files: list[Path], name: str, main: Path, module: str) -> _Class | None:
    """Return the class of that name that is defined or imported in one of the files."""
    for path in reversed(files):
        tree = source_files.tree_of(path)
        stand_in = _Class(ast.ClassDef("", [ast.Name(name)], [], [], []), path, tree)
        if (found := _base(ast.Name(name), stand_in, main, module)) is not None:
            return found
    return None


def _parameters(lineage: list[_Class]) -> tuple[Parameter, ...]:
    """Return the fields in the order of the dataclass: inherited ones first, an overridden one in its old place."""
    found: dict[str, Parameter] = {}
    for one in reversed(lineage):
        for item in one.node.body:
            if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
                name = _name(item.target)
                if name == "sees_itself":
                    raise ValueError("sees_itself is not a hyper-parameter; write sees_itself: ClassVar[bool] = ...")
                if name not in ("needs", "access", "family"):
                    found[name] = _parameter(name, ast.unparse(item.annotation), item.value)
    return tuple(found.values())


def _inherited_needs(lineage: list[_Class]) -> tuple[str, ...]:
    """Return the flags of `needs`, which may add to those of a base class."""
    kinds = [kind for one in lineage for base in one.node.bases if (kind := _kind(base, one.tree))]
    needs = _KINDS[kinds[0]]
    for one in reversed(lineage):
        if (value := _class_variable(one, "needs")) is not None:
            needs = _needs(value, needs)
    return needs


def _calibrated(lineage: list[_Class], parameters: tuple[Parameter, ...]) -> str:
    """Return the value of `calibrated`; raise ValueError unless it names a hyper-parameter."""
    value = next((found for one in lineage if (found := _class_variable(one, "calibrated")) is not None), None)
    if not isinstance(value, ast.Constant) or value.value == "":
        return ""
    if value.value not in {p.name for p in parameters}:
        raise ValueError(f"calibrated = {ast.unparse(value)} must name a hyper-parameter")
    return str(value.value)


def _trained(lineage: list[_Class], parameters: tuple[Parameter, ...]) -> tuple[str, ...]:
    """Return the value of `trained`; raise ValueError unless it names hyper-parameters."""
    value = next((found for one in lineage if (found := _class_variable(one, "trained")) is not None), None)
    if value is None:
        return ()
    named = ast.literal_eval(value)
    if not isinstance(named, tuple) or not set(named) <= {p.name for p in parameters}:
        raise ValueError(f"trained = {ast.unparse(value)} must name hyper-parameters")
    return named


def _access(lineage: list[_Class]) -> Access:
    """Return the value of `access` of the nearest class that has one; raise ValueError unless it can be read."""
    value = next((found for one in lineage if (found := _class_variable(one, "access")) is not None), None)
    if value is None:
        return Access()
    if not isinstance(value, ast.Call) or value.args or ast.unparse(value.func).rpartition(".")[2] != "Access":
        raise ValueError(f"access = {ast.unparse(value)} must be Access(NAME=VALUE, ...)")
    try:
        return from_mapping({str(part.arg): ast.literal_eval(part.value) for part in value.keywords})
    except (ValueError, TypeError) as error:
        raise ValueError(f"access = {ast.unparse(value)}: {error}") from None


def _family(lineage: list[_Class]) -> str:
    """Return the value of `family`; raise ValueError unless it names a group of `--methods`."""
    value = next((found for one in lineage if (found := _class_variable(one, "family")) is not None), None)
    if value is None:
        return ""
    if not isinstance(value, ast.Constant) or value.value not in ("", *FAMILIES.values()):
        raise ValueError(f"family = {ast.unparse(value)} must be one of {', '.join(FAMILIES.values())}")
    return str(value.value)


def _sees_itself(lineage: list[_Class]) -> bool:
    """Return the value of `sees_itself`; raise ValueError unless it is True or False."""
    value = next((found for one in lineage if (found := _class_variable(one, "sees_itself")) is not None), None)
    if value is None:
        return False
    if not isinstance(value, ast.Constant) or not isinstance(value.value, bool):
        raise ValueError(f"sees_itself = {ast.unparse(value)} must be True or False")
    return value.value


def _formula(one: _Class) -> str:
    """Return the class's own `formula`, as that of a base class is of another score; raise ValueError for no string."""
    for item in one.node.body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            continue  # a hyper-parameter of this name
        value = _value(item, "formula")
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return inspect.cleandoc(value.value)
        if value is not None:
            raise ValueError(f"formula = {ast.unparse(value)} must be a string")
    return ""


def _described(docstring: str, names: set[str]) -> tuple[str, dict[str, str]]:
    """Return a docstring without its list of hyper-parameters, and the description of each.

    A line of the list is `NAME  MEANING`, with two spaces or more between them, or `NAME, NAME  MEANING`; continuation
    lines are indented.
    """
    text: list[str] = []
    meanings: dict[str, str] = {}
    described: list[str] = []
    for line in docstring.splitlines():
        item = _LISTED.match(line)
        if item and names.issuperset(item[1].split(", ")):
            described = item[1].split(", ")
            meanings |= dict.fromkeys(described, item[2])
        elif described and line.startswith("  "):
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in described}
        else:
            described = []
            text.append(line)
    return "\n".join(text).strip(), meanings


def _class_variable(one: _Class, name: str) -> ast.expr | None:
    """Return the value of a class variable, or None."""
    return next((value for item in one.node.body if (value := _value(item, name)) is not None), None)


def _value(item: ast.stmt, name: str) -> ast.expr | None:
    """Return what a statement assigns to a name, or None."""
    if isinstance(item, ast.Assign | ast.AnnAssign):
        targets = item.targets if isinstance(item, ast.Assign) else [item.target]
        return item.value if name in map(_name, targets) else None
    return None


def _name(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else ""


def _needs(value: ast.expr, inherited: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags of `Needs.A | Needs.B`; `Base.needs | Needs.B` adds to the inherited ones."""
    named = {n.attr for n in ast.walk(value) if isinstance(n, ast.Attribute)} - {"Needs", "method"}
    if "needs" in named:
        named = named - {"needs"} | set(inherited)
    if not named or not named <= set(NEEDS):
        raise ValueError(f"needs = {ast.unparse(value)} must name flags of Needs, joined by |: {', '.join(NEEDS)}")
    return tuple(need for need in NEEDS if need in named)


def _parameter(name: str, kind: str, value: ast.expr | None) -> Parameter:
    """Return a hyper-parameter; raise ValueError unless its default is a literal of its type."""
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
