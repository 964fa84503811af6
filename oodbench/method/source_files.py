"""The files that a method is made of, read with `ast`: what it imports of them, and the data that it names.

Followed are relative imports, imports of its own package, of a module beside a plugin file and of `oodbench_methods`,
also by `importlib.import_module` with a literal name; and literal names of files, in folders that are named, too. Not
followed is what is imported from elsewhere on the path, or named by an expression.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

BUILT_IN = "oodbench_methods"
DEPTH = 3  # of named folders in one another


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file, not to be changed. OSError, SyntaxError or ValueError when there is none."""
    return _tree(path.read_text(encoding="utf-8-sig"), path.name)


@functools.lru_cache(maxsize=128)  # methods are looked up several times in a process
def _tree(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


@functools.lru_cache(maxsize=128)
def _references(text: str, name: str) -> tuple[tuple[ast.Import | ast.ImportFrom | ast.Call, ...], frozenset[str]]:
    """The imports and calls of a source, and its literal strings."""
    nodes, texts = [], set()
    for node in ast.walk(_tree(text, name)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            nodes.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return tuple(nodes), frozenset(texts)


def source_digest(path: Path, module: str = "", bases: Iterable[Path] = ()) -> str:
    """sha256 of the names and contents of a method's files; `bases` are those of classes that it inherits from."""
    whole = hashlib.sha256()
    for name, part in sorted((_name(part, path), part) for part in files(path, module, bases)):
        whole.update(name.encode() + b"\0" + part.read_bytes() + b"\0")
    return whole.hexdigest()


def files(path: Path, module: str = "", bases: Iterable[Path] = ()) -> list[Path]:
    """A method's file, and what it is made of besides; `module` is its import name, "" for a plugin file."""
    todo = list(dict.fromkeys((path, *bases, *_packages(path, module))))
    found = dict.fromkeys(todo)
    while todo:
        one = todo.pop()
        if one.suffix == ".py":
            fresh = {part: None for part in _parts(one, path, module) if part not in found}
            found |= fresh
            todo += fresh
    return list(found)


def module_file(name: str) -> Path | None:
    """The file of a module. Only the top package is looked up: looking deeper would import it."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None
    if spec is None or (rest and not spec.submodule_search_locations):
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    return next(
        (file for folder in spec.submodule_search_locations or () for file in _module(Path(folder, *rest))), None
    )


def imported(path: Path, node: ast.Import | ast.ImportFrom, main: Path, module: str) -> list[Path]:
    """Files of the method that an import statement of one of them executes."""
    if isinstance(node, ast.Import):
        return [file for alias in node.names for file in _named(alias.name, path, main, module)]
    names = [node.module or "", *(f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names)]
    return [file for name in names for file in _named("." * node.level + name, path, main, module)]


def _named(name: str, path: Path, main: Path, module: str) -> list[Path]:
    """The files of a dotted name as one of the method's files imports it, packages on the way included."""
    level = len(name) - len(name.lstrip("."))
    parts = [part for part in name.split(".") if part]
    if level:
        folder = path.parent
        for _ in range(level - 1):
            folder = folder.parent
        return _along(folder, parts)
    if not parts:
        return []
    home = _home(main, module)
    if home and parts[0] == (module.partition(".")[0] or main.stem):
        return _along(home, parts[1:])
    if parts[0] == BUILT_IN:
        return [file for folder in _built_in() for file in _along(folder, parts[1:])]
    if not module and _along(main.parent, parts[:1]):
        found = module_file(parts[0])
        return _along(main.parent, parts) if found and main.parent in found.parents else []
    return []


def _along(folder: Path, parts: list[str]) -> list[Path]:
    found = []
    for part in parts:
        folder /= part
        found += _module(folder)
    return found


def _module(path: Path) -> list[Path]:
    return [file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()][:1]


def _home(main: Path, module: str) -> Path | None:
    """The folder of a method's top package; a plugin file is a package, whose folder is its own."""
    up = module.count(".") - (main.name != "__init__.py") if module else 0
    return main.parents[up] if up >= 0 else None


def _packages(path: Path, module: str) -> list[Path]:
    """What importing a module executes first: its packages."""
    folders = path.parents[: module.count(".") + (path.name == "__init__.py")]
    return [file for folder in folders if (file := folder / "__init__.py").is_file()]


@functools.cache
def _built_in() -> tuple[Path, ...]:
    spec = importlib.util.find_spec(BUILT_IN)
    return tuple(map(Path, (spec.submodule_search_locations or ()) if spec else ()))


def built_in_file(name: str) -> Path | None:
    """The file of a built-in method."""
    return next((file for folder in _built_in() for file in _module(folder / name)), None)


def _parts(path: Path, main: Path, module: str) -> Iterator[Path]:
    """The files that one file of a method imports or names."""
    try:
        nodes, texts = _references(path.read_text(encoding="utf-8-sig"), path.name)
    except (SyntaxError, ValueError):  # importing it will say so
        return
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(path, node, main, module)
        elif _called(node) in ("import_module", "__import__"):
            for name in strings(node)[:1]:
                yield from _named(name, path, main, module)
        elif name := loaded(node):
            yield from filter(None, [built_in_file(name)])
    yield from _data(path.parent, texts)


def _called(node: ast.Call) -> str:
    """The last part of a called function's name."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def loaded(node: ast.expr) -> str:
    """The built-in method that `registry.load(registry.methods()["mcm"])` gives, "" for another expression."""
    if not isinstance(node, ast.Call) or _called(node) != "load":
        return ""
    named = [text for text in strings(node) if text.isidentifier() and built_in_file(text)]
    return named[0] if len(named) == 1 else ""


def strings(node: ast.AST) -> list[str]:
    """The literal strings in it."""
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def _data(folder: Path, names: Collection[str], depth: int = 0) -> Iterator[Path]:
    """Files beside a source, and in folders that it names, whose names stand in it."""
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries}
    for name in names:
        first, *_ = name.split("/", 1)
        if first not in present or "\0" in name or ".." in name:
            continue
        path = folder / name
        if path.is_file():
            yield path
        elif depth < DEPTH and path.is_dir():
            yield from _data(path, names, depth + 1)


def _name(part: Path, main: Path) -> str:
    """The same on every machine: seen from the method's own file, or from the built-in methods."""
    for folder in _built_in():
        if folder in part.parents and folder not in main.parents:
            return f"{BUILT_IN}/{part.relative_to(folder).as_posix()}"
    return Path(os.path.relpath(part, main.parent)).as_posix()
