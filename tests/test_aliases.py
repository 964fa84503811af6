"""Old names stay importable and warn with their new names."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from oodbench import method, results
from oodbench.cli import main
from oodbench.method import Captioner, MethodResources, Needs, Optimiser, Undeclared, Weights, registry
from oodbench.method.toy import ToyWorld
from oodbench.pipeline.contract import run_checks


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("statistics", "metrics"),
        ("streaming", "metrics.streaming"),
        ("pictures", "report.figures"),
    ],
)
def test_old_modules_warn_and_give_the_same_objects(old: str, new: str) -> None:
    sys.modules.pop(f"oodbench.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"oodbench.{old} is now oodbench.{new}$"):
        alias = importlib.import_module(f"oodbench.{old}")
    home = importlib.import_module(f"oodbench.{new}")
    renamed = {"Picture": "Plot", "pictures": "plots"}
    assert alias.__all__
    assert all(getattr(alias, name) is getattr(home, renamed.get(name, name)) for name in alias.__all__)


def test_old_names_of_metrics_are_importable() -> None:
    from oodbench import metrics
    from oodbench.metrics import detection

    assert metrics.evaluate is detection.evaluate and metrics.score_set is detection.score_set


# A plugin in the old interface, with every name that has changed.
OLD_PLUGIN = '''"""Old: a method (Doe et al., ICML 2020, arXiv:2001.00001)."""
from __future__ import annotations
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
import torch
from oodbench.method import Batch, Captioner, Method, Needs, Optimiser, Own, Task

OPTIMISER = replace(Optimiser(lr=1e-3, bare=("bias",)), bare=("ln",))
CALLS = Path("calls").with_suffix(".log")  # a literal name of a file would make it part of the method


class Spelling(Captioner):
    vocabulary = 4

    def look(self, images):
        return images.flatten(2)[:, :, :4]

    def follow(self, looked, tokens):
        return looked.mean(1)


class Overridden(Spelling):
    def look(self, images):
        return 2 * super().look(images)


@dataclass(frozen=True)
class Old(Method[torch.Tensor]):
    """The largest cosine with class vectors that are made once."""

    templates: str = "simple"
    share: float = 1.0

    def fit(self, task: Task) -> torch.Tensor:
        assert OPTIMISER.bare == ("ln",) and Own is not None
        for captioner, factor in ((Spelling(), 1), (Overridden(), 2)):
            images = torch.rand(2, 3, 4, 4)
            looked = captioner.encode(images)
            assert torch.equal(looked, captioner.look(images))
            assert torch.equal(looked, factor * images.flatten(2)[..., :4])
            assert torch.equal(captioner.next_token_logits(looked, None), captioner.follow(looked, None))

        def bank():
            with CALLS.open("a") as log:
                log.write(f"{len(task.classes)}\\n")
            return task.apart().seen_by(Needs.FEATURES).text(self.templates) * self.share

        return task.keep(bank, templates=self.templates, share=self.share)

    def score(self, batch: Batch, task: Task, state: torch.Tensor) -> torch.Tensor:
        return (batch.seen_by(Needs.FEATURES).features @ state.T).amax(-1)
'''
NEW_SPELLING = (
    ("bare=", "no_decay="),
    (".bare", ".no_decay"),
    ("Own", "MethodResources"),
    ("def look", "def encode"),
    ("().look", "().encode"),
    ("captioner.look", "captioner.encode"),
    ("def follow", "def next_token_logits"),
    ("captioner.follow", "captioner.next_token_logits"),
    ("apart()", "for_thread()"),
    ("seen_by", "for_method"),
    ("task.keep", "task.cached"),
)
old_spelling = pytest.mark.filterwarnings("ignore:.* is now :DeprecationWarning")


def new_spelling(source: str) -> str:
    for old, new in NEW_SPELLING:
        assert old in source, old
        source = source.replace(old, new)
    return source


@old_spelling
def test_a_plugin_with_the_old_names_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = tmp_path / "old.py"
    plugin.write_text(OLD_PLUGIN)
    assert not {check: problem for check, problem in run_checks(registry.methods([plugin])["old"]) if problem}


def test_a_plugin_with_the_new_names_has_no_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = tmp_path / "new.py"
    plugin.write_text(new_spelling(OLD_PLUGIN))
    assert not {check: problem for check, problem in run_checks(registry.methods([plugin])["new"]) if problem}


@pytest.mark.slow
@old_spelling
def test_a_plugin_with_the_old_names_runs_and_finds_what_it_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores equal those of the same method with the new names, and stored class vectors are reused."""
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(OLD_PLUGIN)
    new.write_text(new_spelling(OLD_PLUGIN))
    call = ["run", "--plugin", old, "--plugin", new, "--ood", "glyphs-letters", "--limit", "100"]
    call += ["--bootstrap", "0", "--tracking-uri", ""]

    def scores(methods: str, *more: str) -> dict[str, list[float]]:
        outcome = CliRunner().invoke(main, [*map(str, call), "--methods", methods, *more])
        assert outcome.exit_code == 0, outcome.output
        found = {row.label: row for _, row in results.rows(tmp_path / "results")}
        return {label: [part.auroc for part in row.ood] for label, row in found.items()}

    def made() -> int:  # of the 50 glyphs; the checks before a run have other classes
        return (tmp_path / "calls.log").read_text().split().count("50")

    first = scores("old,new")
    assert first["old"] == first["new"] and made() == 2
    scores("old,old[share=2.0]")
    assert made() == 3


def test_old_names_of_the_interface_warn_and_give_the_same() -> None:
    world = ToyWorld()
    task, batch = world.task(), world.batch(world.id, ~Needs(0))
    with pytest.warns(DeprecationWarning, match=r"Task\.seen_by is now Task\.for_method$"):
        with pytest.raises(Undeclared):
            task.seen_by(Needs.FEATURES).calibration()
    with pytest.warns(DeprecationWarning, match=r"Batch\.seen_by is now Batch\.for_method$"):
        with pytest.raises(Undeclared):
            _ = batch.seen_by(Needs.FEATURES).pixels
    with pytest.warns(DeprecationWarning, match=r"Task\.apart is now Task\.for_thread$"):
        assert task.apart().text("simple") is task.text("simple")
    stored: list[object] = []

    def keep(depends: object, make: Callable[[], Tensor]) -> Tensor:
        stored.append(depends)
        return make()

    mine = task.for_method(~Needs(0), MethodResources(lambda: Weights({}, {}), keep))
    with pytest.warns(DeprecationWarning, match=r"Task\.keep is now Task\.cached$"):
        kept = mine.keep(make=lambda: torch.ones(2), compute=1)
    assert torch.equal(mine.cached(lambda: torch.ones(2), compute=1), kept) and stored == [{"compute": 1}] * 2
    with pytest.warns(DeprecationWarning, match=r"oodbench\.method\.Own is now oodbench\.method\.MethodResources$"):
        assert method.Own is MethodResources  # type: ignore[attr-defined]


def test_captioners_have_both_names_whichever_their_class_defines() -> None:
    ours: Any = ToyWorld().encoder.captioner()
    images, tokens = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, dtype=torch.long)
    encoded = ours.encode(images)
    expected = ours.next_token_logits(encoded, tokens)
    with pytest.warns(DeprecationWarning, match=r"Captioner\.look is now encode$"):
        assert torch.equal(ours.look(images), encoded)
    with pytest.warns(DeprecationWarning, match=r"Captioner\.follow is now next_token_logits$"):
        assert torch.equal(ours.follow(encoded, tokens), expected)
    with pytest.warns(DeprecationWarning, match=r"Captioner\.look is now encode: rename it$"):

        class Doubled(type(ours)):  # type: ignore[misc]
            def look(self, images: Tensor) -> Tensor:
                return 2 * super().look(images)  # type: ignore[no-any-return]

    with pytest.warns(DeprecationWarning, match=r"Captioner\.look is now encode$"):  # super().look()
        assert torch.equal(Doubled(ToyWorld().encoder).encode(images), 2 * encoded)
    assert isinstance(ours, Captioner) and not isinstance(ToyWorld().encoder, Captioner)


@old_spelling
def test_zoc_coca_reads_a_captioner_with_the_old_names() -> None:
    class Old(Captioner):
        def __init__(self) -> None:
            self.theirs = ToyWorld().encoder.captioner()

        vocabulary = 4096

        def look(self, images: Tensor) -> Tensor:
            return self.theirs.encode(images)

        def follow(self, looked: Tensor, tokens: Tensor) -> Tensor:
            return self.theirs.next_token_logits(looked, tokens)

    world = ToyWorld()
    info = registry.methods()["zoc_coca"]
    scorer = registry.make(info, info.defaults())
    task = world.task()
    state = scorer.fit(task)
    expected = scorer.score(world.batch(world.id, ~Needs(0)), task, state)
    world.encoder.captioner = Old  # type: ignore[assignment,method-assign]
    assert torch.equal(scorer.score(world.batch(world.id, ~Needs(0)), world.task(), state), expected)


def test_optimisers_accept_the_old_name_of_no_decay() -> None:
    with pytest.warns(DeprecationWarning, match=r"Optimiser\(bare=\.\.\.\) is now Optimiser\(no_decay=\.\.\.\)$"):
        old = Optimiser(lr=1.0, bare=("x",))  # type: ignore[call-arg]
    assert old == Optimiser(lr=1.0, no_decay=("x",))
    with pytest.warns(DeprecationWarning, match=r"Optimiser\.bare is now Optimiser\.no_decay$"):
        assert old.bare == ("x",)
    with pytest.warns(DeprecationWarning):
        assert dataclasses.replace(old, bare=()).no_decay == ()  # type: ignore[call-arg]
    assert [field.name for field in dataclasses.fields(old)][8:10] == ["no_decay", "epsilon_hat"]  # positions stay


def test_weight_files_and_checkpoints_record_the_optimiser_as_before() -> None:
    assert json.dumps(Optimiser().as_recorded()) == (
        '{"lr": 0.0003, "betas": [0.9, 0.98], "eps": 1e-06, "weight_decay": 0.2, "warmup": 0, "epochs": 10, '
        '"batch": 2048, "cosine": true, "bare": ["bn", "ln", "bias", "logit_scale"], "epsilon_hat": false}'
    )
