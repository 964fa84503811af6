"""Methods are found and described without being imported; allowed imports; modules that a listing must not load."""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from oodbench.cli import listings
from oodbench.errors import UserError
from oodbench.method import registry, source_files
from oodbench.method.introspection import NEEDS, MethodInfo, describe
from oodbench.pipeline.jobs import make_jobs
from oodbench.pipeline.request import RunRequest

ROOT = Path(__file__).resolve().parents[2]
HEAD = '''"""Mine: a method (Doe et al., ICML 2020, arXiv:2001.00001)."""
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from oodbench.method import Batch, Method, Needs, Task

'''
GOOD = '''
@dataclass(frozen=True)
class Mine(Method[None]):
    """Says how likely.

    More about it.
    """

    templates: str = "simple"
    shift: float = -1
    stateful: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs.PIXELS | Needs.ENCODER | Needs.FEATURES

    def score(self, batch: Batch, task: Task, state: None):
        return task.logits(batch.features, self.templates, None).amax(-1)
'''


def plugin(folder: Path, body: str = GOOD, name: str = "mine.py", head: str = HEAD) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(head + textwrap.dedent(body))
    return folder / name


def problem(folder: Path, body: str, head: str = HEAD) -> str:
    return registry.methods([plugin(folder, body, head=head)])["mine"].problem


def test_built_in_methods_are_described() -> None:
    known = registry.methods()
    assert {"mcm", "msp", "energy", "maxlogit"} <= set(known) and list(known) == sorted(known)
    assert not [name for name in known if name.startswith("_")]
    for name, info in known.items():
        if info.origin == "built-in":
            assert not info.problem and info.title and info.citation and info.summary and len(info.source) == 64
            assert set(info.needs) <= set(NEEDS)
            assert not [p.name for p in info.parameters if not p.meaning], f"{name} explains its hyper-parameters"
            shown = listings.method(info)
            assert all(p.name in shown and p.meaning[:60] in " ".join(shown.split()) for p in info.parameters)
            assert all("".join(part.split()) in "".join(shown.split()) for part in (*info.formulas, *info.symbols))
            assert max(map(len, shown.split("\n"))) <= 80, name
    assert known["mcm"].defaults() == {"templates": "simple", "temperature": 1.0}


BUILT_IN = [info for info in registry.methods().values() if info.origin == "built-in"]


@pytest.mark.parametrize("info", BUILT_IN, ids=lambda info: info.name)
def test_a_built_in_method_has_a_formula_and_says_what_its_symbols_are(info: MethodInfo) -> None:
    assert info.symbols and re.match(r"(S|\\text\{score\})\(x\) = ", info.formulas[0])
    for latex in (*info.formulas, *info.symbols):
        depth = list(itertools.accumulate({"{": 1, "}": -1}.get(char, 0) for char in re.sub(r"\\[{}]", "", latex)))
        assert not depth or (min(depth) >= 0 and depth[-1] == 0), latex
        assert "$" not in latex and latex.isascii()
    for name in re.findall(r"`(\w+)`", " ".join(info.symbols.values())):  # hyper-parameters, and pages of other methods
        assert name in info.defaults() or name in registry.methods(), name


@pytest.mark.parametrize(
    ("line", "formula", "problem"),
    [
        (
            'formula: ClassVar[str] = r"""\n    S = \\log p\n\n    p  a probability\n    """',
            "S = \\log p\n\np  a probability",
            "",
        ),
        ("formula = 'S = p'", "S = p", ""),
        ("formula: str = 'S = p'", "", ""),  # a hyper-parameter of this name
        ("formula: ClassVar[str] = 3", "", "formula = 3 must be a string"),
    ],
)
def test_a_formula_is_the_class_s_own(tmp_path: Path, line: str, formula: str, problem: str) -> None:
    body = GOOD.replace('    templates: str = "simple"', f'    {line}\n    templates: str = "simple"')
    known = registry.methods([plugin(tmp_path, body)])
    info = known["mine"]
    assert (info.formula, info.problem) == (formula, problem)
    assert info.formulas == ((formula.partition("\n")[0],) if formula else ())
    assert info.symbols == ({"p": "a probability"} if "\n" in formula else {})
    assert ("formula" in info.defaults()) == line.startswith("formula: str")
    plugin(tmp_path, "from .mine import Mine\n\n\nclass Other(Mine):\n    pass\n", name="other.py")
    assert registry.methods([tmp_path / "other.py"])["other"].formula == "", "another score may be another formula"


def test_a_list_of_hyper_parameters_is_read_from_the_docstring(tmp_path: Path) -> None:
    text = """More about it: shift  moves it.

    templates, shift  two of them,
                      continued
    unknown  is no hyper-parameter

    The end."""
    info = registry.methods([plugin(tmp_path, GOOD.replace("More about it.", text))])["mine"]
    assert {p.name: p.meaning for p in info.parameters} == dict.fromkeys(
        ("templates", "shift"), "two of them, continued"
    )
    assert info.details == "More about it: shift  moves it.\n\nunknown  is no hyper-parameter\n\nThe end."
    assert "      two of them, continued" in listings.method(info)


def test_a_plugin_is_described_without_being_imported(tmp_path: Path) -> None:
    info = registry.methods([plugin(tmp_path, "raise SystemExit\n" + GOOD)])["mine"]
    assert (info.title, info.citation) == ("Mine", "Doe et al., ICML 2020, arXiv:2001.00001")
    assert (info.summary, info.details, info.origin) == ("Says how likely.", "More about it.", "plugin")
    assert info.needs == ("FEATURES", "PIXELS", "ENCODER")
    assert info.defaults() == {"templates": "simple", "shift": -1.0} and type(info.defaults()["shift"]) is float


def test_the_needs_are_those_of_the_flag() -> None:
    from oodbench.method import Needs

    assert tuple(need.name for need in Needs) == NEEDS


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def f(:\n", "it cannot be read: invalid syntax (mine.py, line"),
        ("x = 1\n", "it must define one subclass of Method; it defines none"),
        ("class Mine(Mcm): pass\n", "it must define one subclass of Method; it defines none"),
        (
            "class A(Method): pass\nclass B(Method[int]): pass\n",
            "it must define one subclass of Method; it defines A, B",
        ),
        (GOOD.replace("-1\n", "1 / 255\n"), "the default of hyper-parameter 'shift' is not a literal: 1 / 255"),
        (GOOD.replace("-1\n", "field(default=1)\n"), "is not a literal"),
        (GOOD.replace(" = -1\n", "\n"), "hyper-parameter 'shift' has no default"),
        (GOOD.replace("-1\n", "None\n"), "hyper-parameter 'shift' does not fit: it takes float, not None"),
        (GOOD.replace("Needs.PIXELS", "Needs.PIXEL"), "must name flags of Needs, joined by |: FEATURES, ACTIVATIONS"),
        (GOOD.replace("Needs.PIXELS | Needs.ENCODER | Needs.FEATURES", "NEEDED"), "must name flags of Needs"),
        ("\0", "it cannot be read"),
    ],
)
def test_a_file_without_a_method_has_a_problem(body: str, said: str, tmp_path: Path) -> None:
    found = problem(tmp_path, body)
    assert said in found and "\n" not in found
    assert said in listings.methods(registry.methods([tmp_path / "mine.py"]).values())
    with pytest.raises(UserError, match=r"method 'mine' \(.*mine\.py\)"):
        listings.method(registry.methods([tmp_path / "mine.py"])["mine"])
    with pytest.raises(UserError, match=r"method 'mine' \(.*mine\.py\)"):
        registry.load(registry.methods([tmp_path / "mine.py"])["mine"])


def test_a_base_class_may_have_its_full_name(tmp_path: Path) -> None:
    assert not problem(tmp_path, GOOD.replace("(Method[None])", "(oodbench.method.Method[None])"))
    assert not problem(
        tmp_path, "class _Net(Module): pass\nclass MethodConfig: pass\nclass C(MethodConfig): pass" + GOOD
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import no_such_module\n", "does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('one\\ntwo')\n", "does not import: ValueError: one; -v"),
        ("raise SystemExit(3)\n", "does not import: SystemExit: 3"),
        ("Method = object\n", "does not import: TypeError"),
        ("class Method:\n    def __class_getitem__(cls, x): return cls\n", "Mine is not a subclass of oodbench.method"),
    ],
)
def test_a_failed_import_is_reported_when_loaded(line: str, said: str, tmp_path: Path) -> None:
    info = registry.methods([plugin(tmp_path, line + GOOD)])["mine"]
    assert not info.problem
    with pytest.raises(UserError) as error:
        registry.load(info)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_plugin_is_loaded_once(tmp_path: Path) -> None:
    info = registry.methods([plugin(tmp_path)])["mine"]
    assert registry.load(info) is registry.load(info)
    assert registry.make(info, {"shift": 2.0}).shift == 2.0  # type: ignore[attr-defined]


def test_a_value_that_a_method_refuses_is_a_user_error(tmp_path: Path) -> None:
    info = registry.methods()["clipn"]
    with pytest.raises(UserError, match=r"^clipn: offsets=0 must be at least 1$"):
        registry.make(info, {**info.defaults(), "offsets": 0})
    with pytest.raises(UserError, match=r"^clipn\[offsets=0\]: offsets=0 must be at least 1$"):
        make_jobs(RunRequest(methods="clipn[offsets=0]")).jobs[0].build()


def test_one_name_is_defined_once(tmp_path: Path) -> None:
    mine, again = plugin(tmp_path), plugin(tmp_path / "b")
    assert "mine" in registry.methods([mine, mine])
    with pytest.raises(UserError, match=r"'mine' is defined twice: in .*/mine\.py and in .*/b/mine\.py; rename one"):
        registry.methods([mine, again])
    with pytest.raises(UserError, match="'mcm' is defined twice"):
        registry.methods([plugin(tmp_path, name="mcm.py")])
    assert registry.methods([ROOT / "methods/mcm.py"])["mcm"].origin == "built-in"


def test_plugin_files_that_cannot_be_methods_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.b.py", "a,b.py", "mine.txt", "all.py"]
    paths = [tmp_path / "missing.py", tmp_path, *(plugin(tmp_path, name=name) for name in names)]
    with pytest.raises(UserError) as error:
        registry.methods(paths)
    assert len(str(error.value).splitlines()) == len(paths)
    monkeypatch.setenv("HOME", str(tmp_path))
    plugin(tmp_path)
    assert registry.methods([Path("~/mine.py")])["mine"].path == tmp_path / "mine.py"


def test_the_digest_depends_on_modules_next_to_the_file(tmp_path: Path) -> None:
    path = plugin(tmp_path, "from ._part import x\nimport json\n" + GOOD)
    (tmp_path / "_part.py").write_text("from mine._deep import y\n")
    (tmp_path / "_other.py").write_text("")
    digests = [describe("mine", path, "plugin", "").source]
    for name in ("_deep.py", "_part.py", "mine.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        digests.append(describe("mine", path, "plugin", "").source)
    assert len(set(digests)) == 4
    (tmp_path / "_other.py").write_text("# changed")
    assert describe("mine", path, "plugin", "").source == digests[-1]
    (tmp_path / "_part.py").write_text("def (:")  # importing it will say so
    assert describe("mine", path, "plugin", "").problem == ""


# A file of a method, and how the method refers to it.
PARTS = {
    "helper.py": "from .helper import x",
    "helper.py beside": "from . import helper",
    "sub/mod.py": "from .sub.mod import x",
    "sub/__init__.py": "from .sub.mod import x",
    "sub/deep/leaf.py": "from .sub import mod",
    "other.py": "from .sub import mod",
    "within.py": "def f():\n    from . import within",
    "late.py": "import importlib\nx = importlib.import_module('.late', __package__)",
    "words.json": "WORDS = 'words.json'",
    "_list.txt": "WORDS = '_list.txt'",
    "data/words/some.txt": "from pathlib import Path\nWORDS = Path(__file__).parent / 'data' / 'words' / 'some.txt'",
    "data/words/more.txt": "WORDS = 'data/words/more.txt'",
}


@pytest.mark.parametrize("part", PARTS)
def test_the_digest_depends_on_every_file_of_a_method(part: str, tmp_path: Path) -> None:
    path = plugin(tmp_path, PARTS[part] + "\n" + GOOD)
    (tmp_path / "sub/deep").mkdir(parents=True)
    (tmp_path / "sub/__init__.py").write_text("")
    (tmp_path / "sub/mod.py").write_text("from .deep import leaf\nfrom ..other import y\nx = 1\n")
    (tmp_path / "sub/deep/leaf.py").write_text("")
    changing = tmp_path / part.partition(" ")[0]
    changing.parent.mkdir(parents=True, exist_ok=True)
    for name in ("other.py", "unread.py", "unread.json"):
        (tmp_path / name).write_text("y = 1\n")
    changing.write_text(changing.read_text() if changing.exists() else "x = 1\n")
    before = describe("mine", path, "plugin", "").source
    with changing.open("a") as file:
        file.write("# changed\n")
    after = describe("mine", path, "plugin", "").source
    assert before != after
    for name in ("unread.py", "unread.json"):
        (tmp_path / name).write_text("y = 2\n")
    assert describe("mine", path, "plugin", "").source == after


def test_a_plugin_runs_with_the_current_version_of_its_modules(tmp_path: Path) -> None:
    path = plugin(tmp_path, "from .sub.mod import x\n" + GOOD.replace(".amax(-1)", ".amax(-1) * x"))
    (tmp_path / "sub").mkdir()
    found = []
    for sign in (1, -1):
        (tmp_path / "sub/mod.py").write_text("from ..helper import x\n")
        (tmp_path / "helper.py").write_text(f"x = {sign}\n")
        info = registry.methods([path])["mine"]
        found.append((info.source, sys.modules[registry.load(info).__module__].x))
    assert found[0][0] != found[1][0] and [x for _, x in found] == [1, -1]


def test_the_digest_of_an_installed_package_depends_on_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "pack_of_mine"
    plugin(home, "from .deep.helper import x\nfrom pack_of_mine import direct\nimport pack_of_mine.full\n" + GOOD)
    (home / "deep").mkdir()
    for name in ("__init__.py", "deep/__init__.py", "deep/helper.py", "direct.py", "full.py", "unread.py"):
        (home / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def digest() -> str:
        return describe("mine", home / "mine.py", "plugin", "pack_of_mine.mine").source

    seen = [digest()]
    for name in ("__init__.py", "deep/__init__.py", "deep/helper.py", "direct.py", "full.py"):
        (home / name).write_text("x = 2\n")
        seen.append(digest())
    assert len(set(seen)) == 6
    (home / "unread.py").write_text("x = 2\n")
    assert digest() == seen[-1]


SUBCLASS = '''
@dataclass(frozen=True)
class Better(Base):
    """Better."""

    turn: float = 2.0
    shift: float = 3.0

    def score(self, batch, task, state):
        return -super().score(batch, task, state)
'''
# The module that defines Base.
BASES = {
    "the same file": (GOOD.replace("class Mine", "class Base"), ""),
    "the same file, generic": (GOOD.replace("class Mine(Method[None])", "class Base(Method[State])"), ""),
    "a part": ("from .base import Base\n", "base.py"),
    "a part under another name": ("from .base import Mine as Base\n", "base.py"),
    "a module": ("from . import base\nBase = base.Mine\n", "base.py"),
    "a package": ("from .pack import Base\n", "pack/base.py"),
}


@pytest.mark.parametrize("where", BASES)
def test_a_subclass_in_one_file_is_the_method(where: str, tmp_path: Path) -> None:
    imports, part = BASES[where]
    head = HEAD + "from typing import TypeVar\nState = TypeVar('State')\n"
    if part:
        name = "Mine" if "Mine" in imports else "Base"
        plugin(tmp_path / part.rpartition("/")[0], GOOD.replace("class Mine", f"class {name}"), part.rpartition("/")[2])
        (tmp_path / "pack").mkdir(exist_ok=True)
        (tmp_path / "pack/__init__.py").write_text("from .base import Base\n")
    info = registry.methods([plugin(tmp_path, imports + SUBCLASS, head=head)])["mine"]
    assert (info.problem, info.subclass, info.summary) == ("", "Better", "Better.")
    assert info.defaults() == {"templates": "simple", "shift": 3.0, "turn": 2.0}
    assert info.needs == ("FEATURES", "PIXELS", "ENCODER")
    made = registry.make(info, info.defaults())
    assert type(made).__name__ == "Better" and [f.name for f in dataclasses.fields(made)] == [*info.defaults()]


@pytest.mark.parametrize(
    "imports",
    [
        "from oodbench_methods.react import ReAct as Base\n",
        "from oodbench_methods import react\nBase = react.ReAct\n",
        "import oodbench_methods.react\nBase = oodbench_methods.react.ReAct\n",
        "from oodbench.method import registry\nBase = registry.load(registry.methods()['react'])\n",
        "from oodbench.method import registry\n"
        "Base = registry.load(registry.method_info('react', registry.methods()))\n",
    ],
)
def test_a_subclass_of_a_built_in_method_inherits_its_description(imports: str, tmp_path: Path) -> None:
    react = registry.methods()["react"]
    bare = "from dataclasses import dataclass\n"
    body = imports + SUBCLASS.replace('    """Better."""\n', "").replace("    shift: float = 3.0\n", "")
    info = registry.methods(
        [plugin(tmp_path, body.replace("turn: float = 2.0", "percentile: float = 80.0"), head=bare)]
    )
    mine = info["mine"]
    assert mine.problem == "" and mine.subclass == "Better"
    assert mine.defaults() == {**react.defaults(), "percentile": 80.0} and [*mine.defaults()] == [*react.defaults()]
    assert (mine.needs, mine.calibrated, mine.citation) == (react.needs, react.calibrated, react.citation)
    assert (mine.title, mine.summary) == ("mine", react.summary)
    assert registry.make(mine, mine.defaults()).percentile == 80.0  # type: ignore[attr-defined]
    names = {path.name for path in source_files.files(mine.path)}
    assert names == {"mine.py", "react.py"}, "scores also depend on the source of the base"


def test_needs_may_add_to_those_that_are_inherited(tmp_path: Path) -> None:
    body = "from oodbench_methods.react import ReAct as Base\n" + SUBCLASS
    body = body.replace("    turn:", "    needs: ClassVar[Needs] = Base.needs | Needs.PIXELS\n    turn:")
    info = registry.methods([plugin(tmp_path, body)])["mine"]
    assert info.needs == ("FEATURES", "ACTIVATIONS", "PIXELS", "ENCODER", "CALIBRATION")
    assert "PIXELS" in str(registry.load(info).needs)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "from somewhere import Base\n" + SUBCLASS,
            r"defines none; no base of Better\(Base\) is one that can be found without importing it",
        ),
        (
            GOOD.replace("class Mine", "class Base") + SUBCLASS + SUBCLASS.replace("Better", "Best"),
            "it must define one subclass of Method; it defines Better, Best",
        ),
    ],
)
def test_an_ambiguous_method_is_an_error(body: str, said: str, tmp_path: Path) -> None:
    assert re.search(said, problem(tmp_path, body))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "@dataclass(frozen=True)\nclass Mixin:\n    hidden: int = 1\n\n"
            + GOOD.replace("(Method[None])", "(Method[None], *[Mixin])"),
            "hyper-parameters that cannot be read from its source: hidden; write them in the class",
        ),
        (GOOD + "Mine.needs = Needs.ACTIVATIONS\n", "its needs are ACTIVATIONS, of its source FEATURES | PIXELS"),
    ],
)
def test_attributes_that_the_source_does_not_state_are_refused(body: str, said: str, tmp_path: Path) -> None:
    info = registry.methods([plugin(tmp_path, body)])["mine"]
    assert not info.problem
    with pytest.raises(UserError, match=re.escape(said)):
        registry.load(info)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site folder with a distribution whose entry points are methods."""
    site = tmp_path / "site"
    about = site / "theirs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[oodbench.methods]\nfirst = theirs_mod:Mine\nsecond = theirs_mod:Other\ndeep = theirs_pkg.sub\n"
        "gone = theirs_missing\ndeeper = theirs_pkg.missing:X\nwrong = theirs_mod:None_Such\n"
    )
    two = GOOD + GOOD.replace("class Mine", "class Other").replace("shift", "turn")
    plugin(site, two, name="theirs_mod.py")
    (site / "theirs_pkg").mkdir()
    (site / "theirs_pkg/__init__.py").write_text("raise RuntimeError('imported')\n")
    plugin(site / "theirs_pkg", name="sub.py")
    monkeypatch.syspath_prepend(site)
    return site


def test_entry_points_are_methods(installed: Path) -> None:
    known = registry.methods()
    assert known["first"].origin == "entry point of theirs"
    assert "shift" in known["first"].defaults() and "turn" in known["second"].defaults()
    assert registry.load(known["second"]).__name__ == "Other"
    assert known["deep"].path == installed / "theirs_pkg/sub.py", "found without importing the package"
    with pytest.raises(UserError, match="method 'deep' .* does not import: RuntimeError: imported"):
        registry.load(known["deep"])
    assert known["gone"].problem == "its module theirs_missing does not exist"
    assert known["deeper"].problem == "its module theirs_pkg.missing does not exist"
    assert known["wrong"].problem == "it defines no subclass of Method named None_Such"
    assert "its module theirs_missing does not exist" in listings.methods(known.values())


def test_a_package_that_takes_the_name_of_a_method_fails_when_it_is_chosen(installed: Path) -> None:
    with (installed / "theirs-1.0.dist-info/entry_points.txt").open("a") as file:
        file.write("mcm = theirs_mod:Mine\n")
    assert [job.label for job in make_jobs(RunRequest(methods="msp,first")).jobs] == ["msp", "first"]
    with pytest.raises(UserError, match=r"method 'mcm' .*: it is defined twice: in .*mcm\.py and in .*theirs_mod\.py "):
        make_jobs(RunRequest(methods="mcm,msp"))
    everything = make_jobs(RunRequest(methods="all"))
    assert (
        "mcm" not in {job.label for job in everything.jobs}
        and "(entry point of theirs)" in dict(everything.skipped_methods)["mcm"]
    )
    assert dict(everything.skipped_methods)["oodd"].startswith("oodd.base: method 'mcm' ("), "its base is mcm"
    with pytest.raises(UserError, match=r"oodd\.base: method 'mcm' .*: it is defined twice"):
        make_jobs(RunRequest(methods="oodd"))


def test_parameters_are_checked(tmp_path: Path) -> None:
    energy = registry.methods()["energy"]
    assert registry.parameters(energy, {"scale": 1}) == {"templates": "simple", "scale": 1.0, "temperature": 1.0}
    with pytest.raises(UserError) as error:
        registry.parameters(energy, {"scala": 1, "scale": "big", "temperature": True})
    first, second, third = str(error.value).splitlines()
    assert first.startswith("energy has no hyper-parameter 'scala'; it has: templates ('simple'), scale (None)")
    assert first.endswith("; did you mean 'scale'?")
    assert (
        second == "energy.scale takes float | None, not 'big'" and third == "energy.temperature takes float, not True"
    )
    bare = MethodInfo("bare", tmp_path, "plugin", "")
    with pytest.raises(UserError, match="bare has no hyper-parameter 'x'; it has: none$"):
        registry.parameters(bare, {"x": 1})
    with pytest.raises(UserError, match="no method 'mcn'; did you mean 'mcm'"):
        registry.method_info("mcn", registry.methods())


# Allowed imports


@functools.cache  # several tests read all files
def imports(path: Path, *, top: bool) -> tuple[str, ...]:
    """Return the full names that a file imports; `top` excludes imports inside functions."""
    found: list[str] = []
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            part = node.level == 1 and path.parent.name == "methods"  # `from ._part import x`: also loads as a plugin
            assert node.level == 0 or part, f"{path}: imports are written in full"
            home = f"oodbench_methods.{node.module}" if part else node.module
            found += (f"{home}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)
    return tuple(found)


def importers(module: str, *, top: bool = False) -> set[str]:
    """Return the files of the checkout that import a module."""
    files = [p for folder in ("oodbench", "methods") for p in (ROOT / folder).rglob("*.py")]
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(name == module or name.startswith(f"{module}.") for name in imports(path, top=top))
    }


def test_methods_import_only_the_interface_of_oodbench() -> None:
    for path in (ROOT / "methods").rglob("*.py"):
        own = {name for name in imports(path, top=False) if name.split(".")[0].startswith("oodbench")}
        allowed = ("oodbench.method.", "oodbench_methods.")  # a method may be a subclass of another one
        assert all(name.startswith(allowed) for name in own), f"{path.name} imports {own}"


def test_methods_are_looked_up_by_name() -> None:
    assert not {name for name in importers("oodbench_methods") if name.startswith("oodbench/")}


def test_heavy_libraries_are_imported_by_one_package() -> None:
    assert {p for p in importers("open_clip") if not p.startswith("oodbench/encoder/")} <= {
        "tools/glyphs/train.py",
    }
    assert not {p for p in importers("mlflow") if not p.startswith("oodbench/tracking/")}
    assert not {p for p in importers("matplotlib") if not p.startswith("oodbench/report/figures/")}
    assert not {p for p in importers("ray") if not p.startswith("oodbench/distributed/")}
    assert not importers("ray", top=True), "ray is imported when a cluster is requested"


def test_torch_is_imported_late() -> None:
    """Only files that are imported late may import torch at the top: listings and warm runs need no torch."""
    rooms = ("methods/", "oodbench/method/", "oodbench/encoder/", "oodbench/data/glyphs/", "oodbench/training/")
    files = {f"oodbench/pipeline/{name}.py" for name in ("contract", "extract", "stream_contract", "trial")}
    light = {"card", "resolve", "world", "render", "textures", "concepts", "captions", "fonts"}
    light |= {
        "request",
        "plan",
        "corpus",
        "captions_csv",
        "captions_tar",
        "data",
        "schedule",
        "checkpoints",
        "losses",
    }
    light |= {"__init__", "registry", "introspection", "parameters"}
    found = importers("torch", top=True)
    assert not {p for p in found if not p.startswith(rooms) and p not in files}
    assert not {p for p in found if p.startswith(rooms[2:]) and Path(p).stem in light}


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["run", "--help"],
        ["methods"],
        ["methods", "mcm"],
        ["datasets"],
        ["datasets", "mos"],
        ["report", "--help"],
    ],
)
def test_listing_imports_no_heavy_library(command: list[str]) -> None:
    code = (
        "import json, sys\nfrom oodbench.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'open_clip', 'ray', 'sklearn', 'scipy', 'oodbench_methods'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [] and len(done.stdout) > 200
