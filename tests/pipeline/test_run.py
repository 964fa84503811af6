"""A run reads each method's file once, loads each encoder once, and reaches score() in few calls."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oodbench import Detector
from oodbench.api import run
from oodbench.encoder import openclip
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip, load_encoder
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.method import introspection, registry
from oodbench.method.introspection import MethodInfo
from oodbench.pipeline.plan import make_plans
from oodbench.pipeline.weights import SHIPPED
from oodbench.storage.store import Store
from tests.pipeline.test_engine import images, request

__all__ = ["images"]  # the fixture

WRITES_ITS_CALLERS = """    needs = Needs.FEATURES | Needs.PIXELS
    def score(self, batch, task, state):
        import pathlib, traceback
        frames = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()]
        if batch.size > 4:  # not the sample
            pathlib.Path(__file__).with_suffix(".txt").write_text("\\n".join(frames))
        return batch.features[:, 0]
"""


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of every encoder that is loaded, in a process that has loaded none."""
    found: list[str] = []

    class Counted(OpenClip):
        def __init__(self, resolved: Any, device: str, precision: str) -> None:
            found.append(precision)
            super().__init__(resolved, device, precision)

    monkeypatch.setattr(openclip, "OpenClip", Counted)
    monkeypatch.setattr(openclip, "_CACHE", openclip._EncoderCache())
    return found


@pytest.mark.slow
def test_each_method_is_looked_up_once(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    describe = introspection.describe

    def counted(name: str, *place: Any) -> MethodInfo:
        asked[name] += 1
        return describe(name, *place)

    monkeypatch.setattr(registry, "describe", counted)
    weights = [f"clipn={SHIPPED / 'clipn.safetensors'}"]
    wanted = request(images, tmp_path, methods="clipn,mcm", weights=weights, store=tmp_path / "s")
    for plan in make_plans([dataclasses.replace(wanted, seed=seed) for seed in (0, 1, 2)]):
        assert [result.status for result in run(plan).results] == ["ok", "ok"]
    assert {"clipn", "mcm", "energy"} <= set(asked)
    assert set(asked.values()) == {1}, asked


@pytest.mark.slow
def test_an_encoder_is_loaded_once_for_seeds_and_detectors(images: Path, tmp_path: Path, loads: list[str]) -> None:
    wanted = request(images, tmp_path, methods="mcm")
    seeds = [dataclasses.replace(wanted, seed=seed, store=tmp_path / f"{seed}") for seed in (0, 1, 2)]
    digests = [run(plan).results[0].id.list_digest for plan in make_plans(seeds)]
    assert len(set(digests)) == 1 and loads == ["fp32"]
    Detector(classes=["a", "b"], store=tmp_path / "d").fit(images / "id")
    assert loads == ["fp32"]
    (other,) = make_plans([dataclasses.replace(wanted, precision="bf16", store=tmp_path / "b")])
    run(other)
    assert loads == ["fp32", "bf16"]


def test_only_the_last_encoder_is_cached(tmp_path: Path, loads: list[str]) -> None:
    resolved = resolve(parse_encoder("glyphs"), None, Store(tmp_path))
    first = load_encoder(resolved, "cpu", "fp32")
    assert load_encoder(dataclasses.replace(resolved), "cpu", "fp32") is first
    second = load_encoder(resolved, "cpu", "bf16")
    assert load_encoder(resolved, "cpu", "bf16") is second
    assert load_encoder(resolved, "cpu", "fp32") is not first
    assert loads == ["fp32", "bf16", "fp32"]


def test_an_encoder_whose_file_changed_is_loaded_again(tmp_path: Path, loads: list[str]) -> None:
    """The card holds the digest of the weights; what is in memory has another one."""
    resolved = resolve(parse_encoder("glyphs"), None, Store(tmp_path))
    load_encoder(resolved, "cpu", "fp32")
    changed = dataclasses.replace(resolved, card=dataclasses.replace(resolved.card, weights="0" * 64))
    with pytest.raises(UserError, match="is not the one that encoder 'glyphs' was found with"):
        load_encoder(changed, "cpu", "fp32")
    assert loads == ["fp32", "fp32"]


def test_loading_an_encoder_draws_no_random_numbers(tmp_path: Path) -> None:
    """A method that draws in fit() gets the same numbers whether its encoder is loaded then or was before."""
    import torch

    resolved = resolve(parse_encoder("glyphs"), None, Store(tmp_path))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    OpenClip(resolved, "cpu", "fp32")
    assert torch.equal(torch.rand(3), expected)


def test_score_is_reached_in_few_calls(images: Path, tmp_path: Path) -> None:
    """With the command, which calls api.run, that is eight calls from `oodbench run` to score()."""
    wanted = request(images, tmp_path, WRITES_ITS_CALLERS, methods="probe", limit=20)
    (plan,) = make_plans([wanted])
    assert run(plan).results[0].status == "ok"
    frames = (tmp_path / "probe.txt").read_text().splitlines()
    called = [frame.rpartition("/oodbench/")[2] for frame in frames if "/oodbench/" in frame]
    assert called == [
        "api.py:run",
        "pipeline/run.py:run",
        "pipeline/score.py:score",
        "pipeline/score.py:_outputs",
        "pipeline/batches.py:score_batches",
        "pipeline/batches.py:score_batch",
    ], called
