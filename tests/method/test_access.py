"""The access card: fields that follow from the needs, declared fields, and the group of a method."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oodbench.errors import UserError
from oodbench.method import Access, registry
from oodbench.method.access import FEW_SHOT, ID_IMAGES, TEST_TIME, TRAINED, ZERO_SHOT, complete, from_mapping
from oodbench.method.introspection import MethodInfo

PLUGIN = '''"""Mine: a method (Doe et al., ICML 2026, arXiv:2601.00001)."""
from dataclasses import dataclass
from typing import ClassVar
import torch
from oodbench.method import Access, Batch, Method, Needs, Task


@dataclass(frozen=True)
class Mine(Method[None]):
    """Says how likely."""

    {body}
    threshold: float | None = None

    def score(self, batch: Batch, task: Task, state: None):
        return batch.features[:, 0]
'''


def described(folder: Path, body: str) -> MethodInfo:
    file = folder / "mine.py"
    file.write_text(PLUGIN.replace("{body}", body.replace("\n", "\n    ")))
    return registry.methods([file])["mine"]


def test_access_cards_of_built_in_methods() -> None:
    found = {name: (info.card().group, info.card().facts) for name, info in registry.methods().items()}
    captions = "training on captions or other data"
    expected: dict[str, tuple[str, tuple[str, ...]]] = {
        **dict.fromkeys(("energy", "maxlogit", "mcm", "msp", "neglabel"), (ZERO_SHOT, ())),
        "odin": (ZERO_SHOT, ("gradient at test time",)),
        "react": (ID_IMAGES, ("ID images",)),
        "clipn": (TRAINED, (captions,)),
        "zoc": (TRAINED, (captions,)),
    }
    assert {name: found[name] for name in expected} == expected


def test_a_given_calibrated_value_needs_no_id_images() -> None:
    react = registry.methods()["react"]
    assert react.card().id_images and not react.card({**react.defaults(), "threshold": 1.0}).id_images


@pytest.mark.parametrize(
    "body, group, facts",
    [
        ("", ZERO_SHOT, ()),
        ("access: ClassVar[Access] = Access(lm_words=True)", ZERO_SHOT, ("words from a language model",)),
        ("access = Access(stream=True, id_labels=16)", TEST_TIME, ("16 labelled ID images a class", "test stream")),
        ("access = Access(generated=True)", TRAINED, ("generated images",)),
        ("needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION", ID_IMAGES, ("ID images",)),
        ("needs = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS", ID_IMAGES, ("ID images", "ID labels")),
        ("needs = Needs.PIXELS | Needs.ENCODER\ngrad = torch.enable_grad", ZERO_SHOT, ("gradient at test time",)),
        ("grad = torch.enable_grad", ZERO_SHOT, ()),  # of a fit, as nothing at test time depends on pixels
    ],
)
def test_the_card_of_a_plugin(tmp_path: Path, body: str, group: str, facts: tuple[str, ...]) -> None:
    info = described(tmp_path, body)
    assert not info.problem and (info.card().group, info.card().facts) == (group, facts)
    registry.load(info)


def test_shots_are_the_number_of_labels() -> None:
    needs = ("FEATURES", "CALIBRATION", "LABELS")
    assert complete(Access(), needs, shots=4) == Access(id_images=True, id_labels=4)
    assert complete(Access(), needs, shots=4).group == FEW_SHOT
    assert complete(Access(), needs, calibrates=False, shots=4) == Access()


@pytest.mark.parametrize(
    "body, said",
    [
        ("access = Access(True)", "must be Access(NAME=VALUE, ...)"),
        ("access = None", "must be Access(NAME=VALUE, ...)"),
        ("access = Access(lm_word=True)", "no field 'lm_word'; did you mean 'lm_words'?"),
        ("access = Access(stream=1)", "stream is True or False, not 1"),
        ("access = Access(id_labels=0)", 'id_labels is "all", "few", a number above 0 or None, not 0'),
        ("access = Access(id_labels=True)", 'id_labels is "all", "few", a number above 0 or None, not True'),
        ("access = Access(**{})", "Access(**{})"),
        ("access = Access(stream=bool(1))", "access = Access(stream=bool(1))"),
        ("family = 'posthoc'", "must be one of zero-shot, post-hoc, trained, few-shot, test-time"),
    ],
)
def test_a_bad_card_is_refused_without_an_import(tmp_path: Path, body: str, said: str) -> None:
    assert said in described(tmp_path, body).problem


def test_a_subclass_inherits_the_card_and_may_replace_it(tmp_path: Path) -> None:
    text = PLUGIN.replace("{body}", "access = Access(lm_words=True)")
    head, _, body = text.partition("@dataclass")
    base = f"@dataclass{body.replace('Mine', 'Above')}"
    for own, card in (("", Access(lm_words=True)), ("access = Access()", Access())):
        file = tmp_path / "mine.py"
        file.write_text(f'{head}{base}\n\nclass Mine(Above):\n    """Mine."""\n    {own}\n')
        assert registry.methods([file])["mine"].card() == card


def test_a_card_that_the_source_does_not_state_is_refused(tmp_path: Path) -> None:
    info = described(tmp_path, "")
    with info.path.open("a") as file:
        file.write("\n\nMine.access = Access(stream=True)\n")
    with pytest.raises(UserError, match=r"its access is .*write access = Access"):
        registry.load(registry.methods([info.path])["mine"])


@pytest.mark.parametrize("values", [{}, {"id_labels": "all", "id_images": True}, {"id_labels": 16, "stream": True}])
def test_a_card_is_read_back_from_json(values: dict[str, Any]) -> None:
    assert from_mapping(Access(**values).plain()) == Access(**values)


def test_cards_are_read_without_torch() -> None:
    code = (
        "import sys\nfrom oodbench.method import registry, Access\n"
        "print([i.card().group for i in registry.methods().values()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False") and ast.literal_eval(done.stdout.rpartition(" ")[0])
