"""Methods that are given as classes and instances, as notebooks and scripts define them, instead of as files."""

from __future__ import annotations

import dataclasses
import importlib.util
import linecache
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import oodbench
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.method.class_file import class_file
from oodbench.method.source_files import source_digest
from oodbench.pipeline.request import RunRequest, request_from
from oodbench.pipeline.run_options import RunOptions

Cell = Callable[[str], dict[str, Any]]

IMPORTS = """
import math
import torch
import torch.nn.functional as F
import scipy
import scipy.special
from dataclasses import dataclass
from typing import ClassVar
from functools import cache
from oodbench.method import Batch, Method as Base, Needs, Task
from oodbench_methods.mcm import MCM
"""
HELPERS = """
SHIFT = (0.5, [1, {"a": None}])
Vectors = dict[str, torch.Tensor]
batch = object()

@dataclass(frozen=True)
class Bank:
    vectors: torch.Tensor

@cache
def factor():
    return 2.0

def scaled(v: Vectors):
    return v * factor() + SHIFT[0]

negative = lambda v: -v
"""
CLASS = '''
def make(offset):
    @dataclass(frozen=True)
    class KNN(Base[Bank]):
        """KNN: distance to the k-th neighbour (Sun et al., ICML 2022, arXiv:2204.06507).

        k  which neighbour
        """

        k: int = 1
        needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION

        def fit(self, task: Task) -> Bank:
            return Bank(torch.cat([batch.features for batch in task.calibration()]))

        def score(self, batch: Batch, task: Task, state: Bank):
            distance = torch.cdist(F.normalize(batch.features, dim=-1), state.vectors)
            nearest = distance.topk(self.k, largest=False).values[:, -1]
            return scaled(negative(nearest)) + offset * math.pi + 0 * scipy.special.expit(0.0)

    return KNN

KNN = make(1)
'''
FILE = '''"""Plain: the same in a file (Doe et al., ICML 2020, arXiv:2001.00001)."""
from dataclasses import dataclass
import math
import torch
from oodbench.method import Method, Needs

@dataclass(frozen=True)
class Plain(Method[torch.Tensor]):
    """The same."""

    k: int = 1
    needs = Needs.FEATURES | Needs.CALIBRATION

    def fit(self, task):
        return torch.cat([batch.features for batch in task.calibration()])

    def score(self, batch, task, state):
        return 0.5 + math.pi - 2 * torch.cdist(batch.features, state).topk(self.k, largest=False).values[:, -1]
'''


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Run a cell as a notebook does: its module has no file, and only linecache knows its source."""
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)

    def run(source: str) -> dict[str, Any]:
        name = f"/nowhere/ipykernel_1/{len(vars(module))}-{abs(hash(source))}.py"
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(keepends=True), name))
        exec(compile(source, name, "exec"), vars(module))
        return vars(module)

    return run


def digest(kind: type) -> str:
    return source_digest(class_file(kind))


def test_a_class_of_a_notebook_is_written_to_a_file(cell: Cell) -> None:
    """The file has everything that the class refers to, and nothing else; it is imported without the notebook."""
    for source in (IMPORTS, HELPERS):
        cell(source)
    kind = cell(CLASS)["KNN"]
    info = registry.methods([class_file(kind)])["KNN"]
    assert (info.problem, info.title, info.citation) == ("", "KNN", "Sun et al., ICML 2022, arXiv:2204.06507")
    assert info.defaults() == {"k": 1} and info.needs == ("FEATURES", "CALIBRATION")
    loaded: Any = registry.make(info, {"k": 3})
    scored = loaded.score(
        types.SimpleNamespace(features=torch.eye(3)), None, types.SimpleNamespace(vectors=torch.eye(3))
    )
    assert torch.allclose(scored, torch.tensor(3 * [0.5 + torch.pi - 2 * 2**0.5])), "1, then two at the root of 2"
    assert "batch =" not in class_file(kind).read_text(), "a parameter's name, which the notebook has as well"


def test_the_digest_depends_on_everything_that_a_class_refers_to(cell: Cell) -> None:
    cell(IMPORTS), cell(HELPERS)
    first = digest(cell(CLASS)["KNN"])
    changes = {
        "another cell": ("other = 3", True),
        "the same again": (CLASS, True),
        "a value": ("SHIFT = (0.6,)", False),
        "a function": ("def scaled(v): return v", False),
        "a class": ("@dataclass(frozen=True)\nclass Bank:\n    vectors: object", False),
        "a closure": ("KNN = make(2)", False),
        "its own source": (CLASS.replace("k: int = 1", "k: int = 2"), False),
    }
    for what, (source, same) in changes.items():
        kind = cell(source)["KNN"]
        assert (digest(kind) == first) == same, what
        cell(HELPERS)
        kind = cell(CLASS)["KNN"]
    assert digest(kind) == first


def test_classes_of_a_script_and_subclasses(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "script_of_mine.py"
    path.write_text(IMPORTS + HELPERS + CLASS + "raise_if_run_again = 1\n")
    spec = importlib.util.spec_from_file_location("script_of_mine", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "script_of_mine", module)
    spec.loader.exec_module(module)
    cell(IMPORTS), cell(HELPERS)
    assert digest(module.KNN) == digest(cell(CLASS)["KNN"]), "wherever it is defined"
    assert "raise_if_run_again" not in class_file(module.KNN).read_text()
    vars(sys.modules["notebook"])["Above"] = module.KNN
    below = cell('@dataclass(frozen=True)\nclass Below(Above):\n    """Below."""\n    k: int = 4\n')["Below"]
    info = registry.methods([class_file(below)])["Below"]
    assert (info.problem, info.defaults(), info.needs) == ("", {"k": 4}, ("FEATURES", "CALIBRATION"))
    own = cell('@dataclass(frozen=True)\nclass Own(MCM):\n    """Own."""\n    temperature: float = 0.5\n')["Own"]
    info = registry.methods([class_file(own)])["Own"]
    assert info.defaults() == {"templates": "simple", "temperature": 0.5} and registry.load(info)


def test_methods_of_a_request_are_names_classes_and_instances(cell: Cell) -> None:
    cell(IMPORTS), cell(HELPERS)
    given = cell(CLASS)
    asked = request_from(methods=["mcm", given["KNN"], given["KNN"](k=3), given["MCM"](temperature=0.01), "energy,msp"])
    assert asked.methods == "mcm,KNN,KNN[k=3],mcm[temperature=0.01],energy,msp"
    assert [path.name for path in asked.plugins] == ["KNN.py"]
    assert request_from(methods=given["MCM"]).methods == "mcm" and not request_from(methods=given["MCM"]).plugins
    assert request_from(methods="all", plugins=given["KNN"]).plugins[0].name == "KNN.py"


REFUSED = {
    "no method": ("KNN = int", "classes and instances of oodbench.method.Method, not <class 'int'>"),
    "a tensor": (CLASS.replace("make(1)", "make(torch.zeros(2))"), "refers to offset, a Tensor: its source cannot be"),
    "an own module": ("import own_module\n" + CLASS.replace("offset *", "own_module.x *"), "your module own_module"),
    "a function without source": ("exec('def scaled(v): return v')\n" + CLASS, "refers to scaled, a function: its"),
    "a function of later": (CLASS + "KNN.score = lambda *given: 0", "class KNN: its source cannot be found"),
    "two of one name": ("from own_module import other\n" + CLASS.replace("offset *", "other() *"), "two objects named"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_class_that_cannot_be_written_is_refused(
    what: str, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_module.py").write_text("x = 1\nSHIFT = 3\ndef other():\n    return SHIFT\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    cell(IMPORTS), cell(HELPERS)
    source, said = REFUSED[what]
    with pytest.raises(UserError, match=said):
        request_from(methods=cell(source)["KNN"])


def test_classes_without_source_and_objects_that_are_not_literals_are_refused(cell: Cell) -> None:
    cell(IMPORTS), cell(HELPERS)
    kind = cell(CLASS)["KNN"]
    with pytest.raises(UserError, match="number, text, None or a tuple of these, unlike in make.<locals>.KNN"):
        request_from(methods=kind(k={"a": 1}))
    linecache.clearcache()
    with pytest.raises(UserError, match=r"class KNN: its source cannot be found; .* plugins=\['FILE.py'\]"):
        request_from(methods=[kind])


@pytest.mark.slow
def test_a_run_and_a_detector_take_a_class(cell: Cell, tmp_path: Path) -> None:
    """The digits are those of the same method in a file; a saved detector is loaded with the class."""
    cell(IMPORTS), cell(HELPERS)
    kind = cell(CLASS)["KNN"]
    (tmp_path / "plain.py").write_text(FILE)
    found = oodbench.run(
        [kind(k=3), "plain[k=3],mcm"],
        ood="glyphs-digits",
        limit=40,
        bootstrap=0,
        plugins=tmp_path / "plain.py",
        results=tmp_path / "results",
    )
    auroc = found[found.metric == "auroc"].set_index("label").value
    assert list(auroc.index) == ["KNN[k=3]", "plain[k=3]", "mcm"] and auroc["KNN[k=3]"] == auroc["plain[k=3]"]
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one = oodbench.Detector(kind(k=2), classes=["a", "b"]).fit(list(images.numpy()))
    one.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"the method 'KNN', which is not known here; .* plugins=\[CLASS\]"):
        oodbench.Detector.load(tmp_path / "saved")
    again = oodbench.Detector.load(tmp_path / "saved", plugins=[kind])
    new = list(images.flip(1).numpy())
    assert (again.score_samples(new) == one.score_samples(new)).all() and again.threshold_ == one.threshold_


def test_the_options_of_run_are_those_of_a_request_and_the_names_of_the_package_are_listed() -> None:
    fields = {field.name for field in dataclasses.fields(RunRequest)}
    assert set(RunOptions.__annotations__) == fields - {"methods", "id", "out"} | {"results", "tracking_uri"}
    assert {"Detector", "UserError", "run"} <= set(dir(oodbench))
