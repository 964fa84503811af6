"""A method class of a notebook or script as a plugin file: its source, and the source of everything it refers to.

The file is imported and hashed like any other plugin, so that stored scores, Ray workers and saved detectors identify
the class by its source. A name that the class refers to becomes an import if it comes from an
installed library, the source of the function or class if the user defined it, and a literal if it is a plain value.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import linecache
import re
import symtable
import sys
import sysconfig
import tempfile
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.storage.store import content_digest

_WAY_OUT = "or save the method as a file and give plugins=['FILE.py']"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset)
_KEPT = ("__annotations__", "__doc__")
_CITED = re.compile(r"[^:]+: .*\(.*\d{4}.*\)\.?")  # Title: what it is (Authors, Venue Year, URL)


def class_file(cls: type) -> Path:
    """Write a class as NAME.py to a folder of this process; raise UserError if its source or a name cannot be found."""
    found = _Sources(cls.__name__)
    found.add(cls.__name__, cls)
    cited = (inspect.getdoc(cls) or "").partition("\n")[0]
    head = [repr(cited)] if _CITED.fullmatch(cited) else []
    parts = [*head, "from __future__ import annotations", *found.imports, *found.definitions]
    text = "\n\n".join(parts) + "\n"
    # Scores depend on the files that it reads, which are in the current folder and not next to this one.
    text += "".join(f"# {name!r}: {content_digest(Path(name))}\n" for name in _files_named(text))
    path = Path(_folder().name, hashlib.sha256(text.encode()).hexdigest()[:16], f"{cls.__name__}.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _files_named(text: str) -> list[str]:
    """Return the strings of a source text that name files in the current folder."""
    literals = {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return sorted(
        name for name in literals if len(name) < 256 and name.strip("./ ") and "\0" not in name and Path(name).is_file()
    )


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of this process's class files, which is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="oodbench-classes-")


class _Sources:
    """The lines of a class file: imports, and definitions in the order in which they must be executed."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.imports: list[str] = []
        self.definitions: list[str] = []
        self._known: dict[str, object] = {}  # name in the file -> object

    def add(self, name: str, value: Any) -> None:
        """Add the object that a name refers to, after everything that its source refers to."""
        if name in self._known:
            if self._known[name] is not value:
                raise UserError(f"class {self.owner} refers to two objects named {name}; rename one, {_WAY_OUT}")
            return
        self._known[name] = value
        if isinstance(value, types.ModuleType):
            if _is_own(value):
                raise UserError(
                    f"class {self.owner} refers to your module {value.__name__}; write from {value.__name__} import "
                    f"with the names that it needs, {_WAY_OUT}"
                )
            self.imports.append(f"import {value.__name__} as {name}")
        elif line := _import_line(name, value):
            self.imports.append(line)
        elif _is_plain(value):
            self.definitions.append(f"{name} = {value!r}")
        else:
            self._add_definition(name, value)

    def _add_definition(self, name: str, value: Any) -> None:
        """Add the source of a function or class that the user defined, under its own name and under `name`."""
        own = getattr(value, "__name__", name).replace("<lambda>", name)
        text = _source(value)
        if own not in _bound(text):
            what = "" if name == self.owner else f"refers to {name}, a {type(value).__name__}: "
            raise UserError(
                f"class {self.owner}: {what}its source cannot be found; define it in a script or in one cell of a "
                f"notebook, make a value a hyper-parameter, {_WAY_OUT}"
            )
        required = _global_names(f"from __future__ import annotations\n{text}")
        namespace = _namespace(value)
        self.imports += sorted(set(_submodules(text, namespace)) - set(self.imports))
        for other in sorted(_global_names(text) - {own}):
            if other in namespace:
                try:
                    self.add(other, namespace[other])
                except UserError:  # an annotation is not evaluated
                    if other in required:
                        raise
                    self._known.pop(other)
        if name != own:
            self._known[own] = value
        self.definitions.append(text.rstrip("\n"))
        if name != own:
            self.definitions.append(f"{name} = {own}")


def _is_own(module: types.ModuleType | None) -> bool:
    """Return whether a module is the user's: not part of oodbench, of Python or of an installed package."""
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__":
        return True
    if file is None:  # of a notebook
        return module.__name__ not in sys.builtin_module_names and not hasattr(module, "__path__")
    if module.__name__.partition(".")[0] in ("oodbench", "oodbench_methods"):
        return False
    folders = Path(file).parents
    installed = any(folder.name in ("site-packages", "dist-packages") for folder in folders)
    return not installed and not any(Path(sysconfig.get_path(name)) in folders for name in ("stdlib", "platstdlib"))


def _import_line(name: str, value: Any) -> str:
    """Return the import of an object of a library under a name, from the outermost package that has it, or ""."""
    own, home = getattr(value, "__name__", ""), getattr(value, "__module__", None) or ""
    if not own or (_is_own(sys.modules.get(home)) and home):
        return ""
    packages = home.split(".") if home else []
    candidates = [".".join(packages[: i + 1]) for i in range(len(packages))] or sorted(sys.modules)
    for module in candidates:  # a function of C may not know its module
        if module in sys.modules and getattr(sys.modules[module], own, None) is value:
            return f"from {module} import {own} as {name}"
    return ""


def _is_plain(value: Any) -> bool:
    """Return whether a value's repr() is a literal that evaluates to the value."""
    if type(value) not in _PLAIN:
        return False
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _source(value: Any) -> str:
    """Return the source of a function or class with its decorators, "" if there is none."""
    try:
        if isinstance(value, type):
            return _class_source(value)
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError, SyntaxError):
        return ""


def _class_source(cls: type) -> str:
    """Return the source of a class.

    `inspect` looks for the file of its module, which a notebook does not have: the class is found through its
    functions, or, if it has none, as the only class in all cells with the same members.
    """
    linecache.checkcache()
    functions = [inspect.unwrap(each) for each in vars(cls).values() if inspect.isfunction(each)]
    codes = [each.__code__ for each in functions if each.__module__ == cls.__module__]
    written = [code for code in codes if linecache.getlines(code.co_filename)]
    if written:  # functions that dataclass() generates have no source
        file = written[0].co_filename
        for text, lines in _classes(cls.__name__, linecache.getlines(file)):
            if all(code.co_filename == file and code.co_firstlineno in lines for code in written):
                return text
        return ""  # a function was put into the class afterwards
    if hasattr(sys.modules.get(cls.__module__), "__file__"):
        return textwrap.dedent(inspect.getsource(cls))
    cells = [entry[2] for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    found = {text for cell in cells for text, _ in _classes(cls.__name__, cell) if _has_members(text, cls)}
    return found.pop() if len(found) == 1 else ""


def _classes(name: str, lines: list[str]) -> Iterator[tuple[str, range]]:
    """Yield the source and the line numbers of every class of that name; nothing for lines that are not Python."""
    try:
        nodes = list(ast.walk(ast.parse("".join(lines))))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == name:
            first, last = min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno or 0
            yield textwrap.dedent("".join(lines[first - 1 : last])), range(first, last + 1)


def _has_members(text: str, cls: type) -> bool:
    """Return whether a source text, executed in the namespace of a class's module, defines a class with its members."""
    names = dict(vars(sys.modules[cls.__module__]))
    try:
        exec(text, names)
        mine, theirs = (
            {name: repr(value) for name, value in vars(one).items() if name in _KEPT or not name.startswith("_")}
            for one in (names[cls.__name__], cls)
        )
    except Exception:  # the text is of another class of that name
        return False
    return mine == theirs


def _bound(text: str) -> set[str]:
    """Return the names that a source text defines, or an empty set if it is incomplete."""
    try:
        table = symtable.symtable(text, "source", "exec")
    except SyntaxError:
        return set()
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}


def _global_names(text: str) -> set[str]:
    """Return the names that a source text reads and does not define."""
    tables, names = [symtable.symtable(text, "source", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        names |= {each.get_name() for each in table.get_symbols() if each.is_global()}
    return names - set(vars(builtins))


def _submodules(text: str, namespace: Mapping[str, Any]) -> Iterator[str]:
    """Yield an import of every module that is read as an attribute of its package, as in `import a.b` and `a.b.c`."""
    for node in ast.walk(ast.parse(text)):
        root, *rest = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else [""]
        package = namespace.get(root)
        if isinstance(package, types.ModuleType) and ".".join([package.__name__, *rest]) in sys.modules:
            yield f"import {'.'.join([package.__name__, *rest])}"


def _namespace(value: Any) -> Mapping[str, Any]:
    """Return the objects that a function's or class's source can refer to, by name: globals and closure variables."""
    functions = [value, *vars(value).values()] if isinstance(value, type) else [value]
    module = sys.modules.get(value.__module__, types.ModuleType(""))
    found = dict(getattr(inspect.unwrap(value), "__globals__", vars(module)))
    for function in functions:
        inner = inspect.unwrap(getattr(function, "__func__", getattr(function, "fget", None) or function))
        if inspect.isfunction(inner):
            cells = zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True)
            filled = [(each, cell) for each, cell in cells if each != "__class__" and cell != types.CellType()]
            found |= {each: cell.cell_contents for each, cell in filled}
    return found
