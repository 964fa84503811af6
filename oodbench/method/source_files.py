"""The source files and data files of a method, found with `ast`: their digest is part of the key of its scores.

The files are those of relative imports, of imports from the method's own package, from the folder of a plugin file and
from `oodbench_methods`, including `importlib.import_module` with a literal name; and data files whose names are
literals in the source, including those in named folders. Imports from elsewhere on sys.path and computed names are not
followed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

BUILT_IN = "oodbench_methods"
DEPTH = 3  # of nested named folders


def tree_of(path: Path) -> ast.Module:
    """Parse a file; raise OSError, SyntaxError or ValueError if it has no syntax tree. The tree must not be changed."""
    return _parse(path.read_text(encoding="utf-8-sig"), path.name)


@functools.lru_cache(maxsize=128)  # methods are looked up several times in a process
def _parse(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


@functools.lru_cache(maxsize=128)
def _references(text: str, name: str) -> tuple[tuple[ast.Import | ast.ImportFrom | ast.Call, ...], frozenset[str]]:
    """Return the imports and calls of a source file, and its literal strings."""
    nodes, texts = [], set()
    for node in ast.walk(_parse(text, name)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            nodes.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return tuple(nodes), frozenset(texts)


def source_digest(path: Path, module: str = "", bases: Iterable[Path] = ()) -> str:
    """Return the sha256 of the names and contents of a method's files; `bases` are files of its base classes."""
    digest = hashlib.sha256()
    for name, file in sorted((_portable_name(file, path), file) for file in files(path, module, bases)):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def files(path: Path, module: str = "", bases: Iterable[Path] = ()) -> list[Path]:
    """Return a method's file and all files that it uses; `module` is its import name, "" for a plugin file."""
    queue = list(dict.fromkeys((path, *bases, *_packages(path, module))))
    found = dict.fromkeys(queue)
    while queue:
        file = queue.pop()
        if file.suffix == ".py":
            new = {used: None for used in _used_files(file, path, module) if used not in found}
            found |= new
            queue += new
    return list(found)


def attributes(path: Path, module: str = "") -> set[str]:
    """Return the names of all attributes that a method's files read, such as `text_tower`."""
    found: set[str] = set()
    for file in files(path, module):
        if file.suffix == ".py":
            with contextlib.suppress(SyntaxError, ValueError):  # reported when it is imported
                found |= {node.attr for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}
    return found


def module_file(name: str) -> Path | None:
    """Return the file of a module, without importing its parent packages, or None."""
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
        (file for folder in spec.submodule_search_locations or () for file in _source_file(Path(folder, *rest))), None
    )


def imported(path: Path, node: ast.Import | ast.ImportFrom, main: Path, module: str) -> list[Path]:
    """Return the files of the method that an import statement of one of its files executes."""
    if isinstance(node, ast.Import):
        return [file for alias in node.names for file in _module_files(alias.name, path, main, module)]
    names = [node.module or "", *(f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names)]
    return [file for name in names for file in _module_files("." * node.level + name, path, main, module)]


def _module_files(name: str, path: Path, main: Path, module: str) -> list[Path]:
    """Return the files of a dotted name as one of the method's files imports it, with its parent packages."""
    level = len(name) - len(name.lstrip("."))
    parts = [part for part in name.split(".") if part]
    if level:
        folder = path.parent
        for _ in range(level - 1):
            folder = folder.parent
        return _package_files(folder, parts)
    if not parts:
        return []
    package = _top_package(main, module)
    if package and parts[0] == (module.partition(".")[0] or main.stem):
        return _package_files(package, parts[1:])
    if parts[0] == BUILT_IN:
        return [file for folder in _built_in_folders() for file in _package_files(folder, parts[1:])]
    if not module and _package_files(main.parent, parts[:1]):
        found = module_file(parts[0])
        return _package_files(main.parent, parts) if found and main.parent in found.parents else []
    return []


def _package_files(folder: Path, parts: list[str]) -> list[Path]:
    """Return the files of each package and module along a dotted path below a folder."""
    found = []
    for part in parts:
        folder /= part
        found += _source_file(folder)
    return found


def _source_file(path: Path) -> list[Path]:
    """Return the file of a module or package, in a list, or an empty list."""
    return [file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()][:1]


def _top_package(main: Path, module: str) -> Path | None:
    """Return the folder of a method's top package; a plugin file is imported as a package of its own folder."""
    up = module.count(".") - (main.name != "__init__.py") if module else 0
    return main.parents[up] if up >= 0 else None


def _packages(path: Path, module: str) -> list[Path]:
    """Return the files that importing a module executes first: those of its parent packages."""
    folders = path.parents[: module.count(".") + (path.name == "__init__.py")]
    return [file for folder in folders if (file := folder / "__init__.py").is_file()]


@functools.cache
def _built_in_folders() -> tuple[Path, ...]:
    """Return the folders of the built-in methods."""
    spec = importlib.util.find_spec(BUILT_IN)
    return tuple(map(Path, (spec.submodule_search_locations or ()) if spec else ()))


def built_in_file(name: str) -> Path | None:
    """Return the file of a built-in method, or None."""
    return next((file for folder in _built_in_folders() for file in _source_file(folder / name)), None)


def _used_files(path: Path, main: Path, module: str) -> Iterator[Path]:
    """Iterate over the files that a source file imports or names."""
    try:
        nodes, texts = _references(path.read_text(encoding="utf-8-sig"), path.name)
    except (SyntaxError, ValueError):  # reported when it is imported
        return
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(path, node, main, module)
        elif _function_name(node) in ("import_module", "__import__"):
            for name in strings(node)[:1]:
                yield from _module_files(name, path, main, module)
        elif name := loaded(node):
            yield from filter(None, [built_in_file(name)])
    yield from _data_files(path.parent, texts)


def _function_name(node: ast.Call) -> str:
    """Return the last part of a called function's name."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def loaded(node: ast.expr) -> str:
    """Return the method that `registry.load(registry.methods()["mcm"])` loads, or "" for another expression."""
    if not isinstance(node, ast.Call) or _function_name(node) != "load":
        return ""
    names = [text for text in strings(node) if text.isidentifier() and built_in_file(text)]
    return names[0] if len(names) == 1 else ""


def strings(node: ast.AST) -> list[str]:
    """Return the literal strings of an expression."""
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def _data_files(folder: Path, names: Collection[str], depth: int = 0) -> Iterator[Path]:
    """Iterate over the files that a source file names, in its folder and in subfolders that it names."""
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
            yield from _data_files(path, names, depth + 1)


def _portable_name(file: Path, main: Path) -> str:
    """Return a name that is the same on every machine: relative to the method's file, or to the built-in methods."""
    for folder in _built_in_folders():
        if folder in file.parents and folder not in main.parents:
            return f"{BUILT_IN}/{file.relative_to(folder).as_posix()}"
    return Path(os.path.relpath(file, main.parent)).as_posix()
