"""--dry-run: the texts that methods encode, and the access of methods."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from oodbench.cli.run import _duration, plan_text
from oodbench.pipeline import text_counts
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.text_counts import TextCount, seconds_per_prompt


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    place = tmp_path_factory.mktemp("texts")
    for name in ("id/cat", "id/dog", "ood"):
        (place / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (len(name), 0, 0)).save(place / name / "one.png")
    methods = "mcm,msp,neglabel,odin,react[threshold=1],energy[templates=openai7]"
    sets = {"id": f"folder:{place / 'id'}", "ood": (f"folder:{place / 'ood'}",)}
    return make_plan(RunRequest(methods, **sets, encoder="glyphs", out=place / "results", store=place / "store"))  # type: ignore[arg-type]


def test_the_plan_counts_texts_and_estimates_the_time(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_counts, "seconds_per_prompt", lambda plan: 0.01)
    text = plan_text(plan)
    part = text[text.index("\ntexts\n") :].strip().splitlines()
    assert part[1:] == [
        "  mcm: 2 prompts of class names, about 1 s",
        "  neglabel: 2 prompts of class names and 70,768 other texts, about 12 min",  # words of WordNet 3.0's list
        "  energy[templates=openai7]: 14 prompts of class names, about 1 s",
        "  at most 70,786 to encode, about 12 min, at 100 per second on this machine; stored texts are not "
        "encoded again, and new ones are stored for later runs with this encoder",
    ]
    lines = text.splitlines()
    assert "    sees gradient at test time" in lines and "ID images" not in text  # the threshold is given


def test_few_texts_are_not_timed_and_a_fitted_method_has_none(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_counts, "seconds_per_prompt", lambda plan: pytest.fail("was timed"))
    jobs = [(job, True) for job in plan.jobs if job.info.name in ("mcm", "neglabel")]
    assert text_counts.text_counts(plan, jobs) == [TextCount("mcm", 2, None), TextCount("neglabel", 2, None)]
    few = dataclasses.replace(plan, jobs=plan.jobs[:1])
    assert "  mcm: 2 prompts of class names\n  at most 2 to encode; stored" in plan_text(few)


def test_prompts_are_timed_with_the_encoder(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, now = [], iter((10.0, 10.0 + 64 * 0.25))

    def encode(prompts: Any) -> torch.Tensor:
        seen.append(len(prompts))
        return torch.zeros(len(prompts), 2)

    monkeypatch.setattr(text_counts, "encoder_loader", lambda plan, device: lambda: SimpleNamespace(text=encode))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    assert seconds_per_prompt(plan) == 0.25 and seen == [64, 64]
    elsewhere = dataclasses.replace(plan, request=dataclasses.replace(plan.request, device="cuda:99"))
    assert seconds_per_prompt(elsewhere) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert _duration(seconds) == said
