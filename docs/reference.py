"""The reference pages: the command line from click, Python from docstrings, which are read without being imported."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]

# Package -> the names that users call; a class has its public methods with it.
USERS = {
    "oodbench": "run report Detector UserError",
    "oodbench.report.api": "Report",
    "oodbench.metrics": "Scores Settings Intervals intervals auroc_interval auroc_variance Difference Differences "
    "Marks compare indistinguishable holm",
    "oodbench.method": "Method logsumexp Needs Batch Task Encoder TextTower Captioner TrainedMethod FewShotMethod "
    "Weights Pairs StreamMethod Access View Optimiser templates",
}
ABOUT = {
    "oodbench": "The functions and classes for scripts and notebooks.",
    "oodbench.report.api": "The return value of `oodbench.report`.",
    "oodbench.metrics": "Intervals and tests on scores per image: [what they mean](conventions.md#uncertainty).",
    "oodbench.method": "For authors of methods: [a tutorial](adding-a-method.md).",
}
INTERNAL = {"for_method", "intact", "as_recorded", "versions"}  # public for the harness
OLD_NAMES = {"seen_by", "apart", "keep", "bare"}  # aliases with a DeprecationWarning


def cli() -> str:
    """Every command with its help and options, in the order of `oodbench --help`."""
    from oodbench.cli import main

    return "\n".join(_command(main, "oodbench")).strip()


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"{'###' if path.count(' ') == 2 else '##'} {path}\n\n```text\n{usage}\n```\n"
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        literal = text.startswith("\b\n")  # click's mark of lines that stay as they are
        yield f"```text\n{text[2:]}\n```\n" if literal else f"{prose(text)}\n"
    options = [
        _option(p, context) for p in command.params if isinstance(p, click.Option) and p.name != "help" and not p.hidden
    ]
    if options:
        columns = 3 if any(default for *_, default in options) else 2
        rows = [("option", "meaning", "default"), ("---", "---", "---"), *options]
        yield "\n".join(f"| {' | '.join(row[:columns])} |" for row in rows) + "\n"
    if command.epilog:  # examples
        yield "```text\n" + inspect.cleandoc(command.epilog.removeprefix("\b\nExamples:\n")) + "\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if not command.commands[name].hidden:
                yield from _command(command.commands[name], f"{path} {name}")


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """Its names and what it takes, its help, its default."""
    spelled = [names for names in (option.opts, option.secondary_opts) if names]
    names = " / ".join(", ".join(f"`{one}`" for one in names) for names in spelled)
    takes = "" if option.is_flag else f" {option.make_metavar(context)}"
    default = f"`{_plain(option.default)}`" if option.show_default and option.default is not None else ""
    meaning = prose(option.help or "")
    return f"{names}{takes}".replace("|", "&#124;"), meaning.replace("|", "&#124;"), default


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def python() -> str:
    """The public functions and classes, with signatures and docstrings as the sources have them."""
    parts = []
    for package, names in USERS.items():
        parts.append(f"## {package}\n\n{ABOUT[package]}\n")
        for name in names.split():
            parts += _entry(_definition(package, name))
    return "\n".join(parts).strip()


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """Where a name is defined, through the imports of packages; a class with the methods that it inherits."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    homes = {one.name: node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) for one in node.names}
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            if isinstance(node, ast.ClassDef):
                node.body += _inherited(node, homes)
            return node
    if name in homes:
        return _definition(homes[name], name)
    raise SystemExit(f"{module} has no '{name}'")


def _inherited(node: ast.ClassDef, homes: dict[str, str]) -> list[ast.stmt]:
    """Methods of bases that have no entry of their own; `homes`: the module that each name comes from."""
    entries = " ".join(USERS.values()).split()
    bases = [base for base in map(ast.unparse, node.bases) if base not in entries]
    ours = [base for base in bases if homes.get(base, "").startswith("oodbench.")]
    return [one for base in ours for one in _definition(homes[base], base).body if isinstance(one, ast.FunctionDef)]


def _entry(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield f"### {node.name}\n\n```python\n{_signature(node)}\n```\n\n{_doc(node)}\n"
        return
    body = [one for one in node.body if not isinstance(one, ast.Expr)]
    fields = [_written(one) for one in body if isinstance(one, ast.AnnAssign | ast.Assign) and not _private(one)]
    made = next((one for one in body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    lines = "\n".join([f"class {node.name}{bases}", *(f"    {line}" for line in fields)])
    head = _signature(made, node.name) if made else lines
    yield f"### {node.name}\n\n```python\n{head}\n```\n\n{_doc(node)}\n"
    for one in body:
        if isinstance(one, ast.FunctionDef) and (one.name == "__call__" or _shown(one)):
            yield f"#### {node.name}.{one.name}\n\n```python\n{_signature(one)}\n```\n\n{_doc(one)}\n"


def _shown(node: ast.FunctionDef) -> bool:
    return not node.name.startswith("_") and node.name not in INTERNAL | OLD_NAMES


def _private(node: ast.AnnAssign | ast.Assign) -> bool:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return ast.unparse(target).startswith("_")


def _signature(node: ast.FunctionDef, name: str = "") -> str:
    """As one line, or a parameter a line when it is long; `name` is that of the class whose constructor it is."""
    known = {"property": "property ", "classmethod": "classmethod "}
    kind = "".join(known.get(ast.unparse(one), "") for one in node.decorator_list)
    returns = "" if name else f" -> {_type(node.returns)}"
    if kind == "property ":
        return f"{node.name}: {_type(node.returns)}"
    parts = list(_parameters(node.args))
    line = f"{kind}{name or node.name}({', '.join(parts)}){returns}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{kind}{name or node.name}(", *(f"    {part}," for part in parts), f"){returns}"])


def _parameters(args: ast.arguments) -> Iterator[str]:
    """Each parameter as it is written, without self and cls."""
    given = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [*([None] * (len(given) - len(args.defaults))), *args.defaults]
    for one, default in zip(given, defaults, strict=True):
        if one.arg not in ("self", "cls"):
            yield _parameter(one, default)
    if args.vararg:
        yield f"*{_parameter(args.vararg, None)}"
    elif args.kwonlyargs:
        yield "*"
    for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _parameter(one, default)
    if args.kwarg:
        yield f"**{_parameter(args.kwarg, None)}"


def _parameter(one: ast.arg, default: ast.expr | None) -> str:
    text = f"{one.arg}: {_type(one.annotation)}" if one.annotation else one.arg
    return text if default is None else f"{text} = {_type(default)}"


def _type(node: ast.expr | None) -> str:
    return "None" if node is None else _written(node)


def _written(node: ast.AST) -> str:
    """Code as the sources write it, with double quotes."""
    text = ast.unparse(node)
    return text if '"' in text else text.replace("'", '"')


def _doc(node: ast.ClassDef | ast.FunctionDef) -> str:
    """Return a docstring as Markdown, its sections (`Arguments:` and an indented list) under bold headings."""
    text = ast.get_docstring(node)
    assert text, f"{node.name} has no docstring"
    parts = re.split(r"(?m)^(Arguments|Returns|Raises):\n((?: {4}.*\n?|\n(?= {4}))+)", text)
    written = [_paragraph(part) for part in parts[0].strip().split("\n\n")]
    for heading, body, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        written += [f"**{heading}**", _paragraph(textwrap.dedent(body).strip())]
        written += [_paragraph(part) for part in rest.strip().split("\n\n") if part]
    return "\n\n".join(written)


def _paragraph(part: str) -> str:
    """Return a paragraph; lines of a name, two spaces and a text are a list."""
    lines = re.sub(r"\n {2,}", " ", part).splitlines()  # what continues a line is indented
    items = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    if len(items[0]) == 1:
        return prose(part)
    listed = [f"- `{item[0]}`: {prose(item[1])}" for item in items if len(item) == 2]
    rest = [prose(item[0]) for item in items if len(item) == 1]
    return "\n".join(listed) + "".join(f"\n\n{one}" for one in rest)


def prose(text: str) -> str:
    """Text that Markdown takes literally, except code spans."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    literal = (re.sub(r"(\b_|_\b|\*)", r"\\\1", piece.replace("<", "&lt;")) for piece in pieces)
    return "".join(piece if piece.startswith("`") else new for piece, new in zip(pieces, literal, strict=True))
