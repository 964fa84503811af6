"""EOE against its formulas in numpy, and the parsing of its list of outlier names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.method.toy import CLASSES, ToyWorld
from oodbench.pipeline.jobs import make_jobs, readable_jobs
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest

NAMES = ["Sunflower", "waterfall", "Waterfall", "Anchor", "church bell", "galaxy", "galaxy", "desert dunes"]
USED = ["sunflower", "waterfall", "church bell", "galaxy", "desert dunes"]


def made(**parameters: Any) -> Any:
    info = registry.methods()["eoe"]
    return registry.make(info, registry.parameters(info, parameters))


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "names.json").write_text(json.dumps({"far": NAMES}))
    return tmp_path / "names.json"


def cosines(world: ToyWorld, names: list[str]) -> tuple[Any, Any]:
    def unit(x: torch.Tensor) -> Any:
        array = x.double().numpy()
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    texts = unit(world.encoder.text([f"a photo of a {name}" for name in [*CLASSES, *names]]))
    every = unit(world.encoder.pixels(torch.cat([world.id, world.ood]))) @ texts.T
    return every[:, : len(CLASSES)], every[:, len(CLASSES) :]


def reference(preset: str, own: Any, other: Any, temperature: float, beta: float) -> Any:
    """The five scores of the released code, larger for ID; `max` and `msp` are probabilities there."""
    both = np.exp(np.concatenate([own, other], 1) / temperature)
    shares = both / both.sum(1, keepdims=True)
    inner = np.exp(own / temperature)
    scores = {
        "eoe": shares[:, : own.shape[1]].max(1) - beta * shares[:, own.shape[1] :].max(1),
        "msp": np.log(shares[:, : own.shape[1]].max(1)),
        "max": np.log(
            np.where(other.max(1) > own.max(1), 1 / own.shape[1], (inner / inner.sum(1, keepdims=True)).max(1))
        ),
        "energy": temperature * (np.log(inner.sum(1)) - np.log(np.exp(other / temperature).sum(1))),
        "max-logit": own.max(1) - other.max(1),
    }
    return scores[preset]


@pytest.mark.parametrize("preset", ["eoe", "max", "msp", "energy", "max-logit"])
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.25), (0.05, 1.0)])
def test_the_score_is_the_paper_s_formula(
    preset: str, temperature: float, beta: float, world: ToyWorld, file: Path
) -> None:
    method, task = made(words=str(file), preset=preset, temperature=temperature, beta=beta), world.task()
    scores = method.score(world.batch(torch.cat([world.id, world.ood]), method.needs), task, method.fit(task))
    expected = reference(preset, *cosines(world, USED), temperature, beta)
    np.testing.assert_allclose(scores.double().numpy(), expected, rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize(
    ("text", "parameters", "used"),
    [
        (json.dumps({"far": NAMES}), {}, USED),
        (json.dumps(NAMES), {}, USED),
        ("\n".join(NAMES), {}, USED),
        (json.dumps({"bell": ["church bell", "gong"], "drum": ["gong", "tuba"]}), {}, ["church bell", "gong", "tuba"]),
        (json.dumps({"bell": ["church bell", "gong"], "drum": ["tuba"]}), {"overlap": False}, ["gong", "tuba"]),
        (json.dumps({"far": NAMES}), {"duplicates": True}, [*USED[:2], "waterfall", *USED[2:4], "galaxy", USED[4]]),
    ],
)
def test_names_are_read_as_the_released_code_reads_them(
    text: str, parameters: dict[str, Any], used: list[str], world: ToyWorld, tmp_path: Path
) -> None:
    (tmp_path / "names").write_text(text)
    method = made(words=f"{tmp_path}/names", **parameters)
    assert list(method.fit(world.task()).names) == used


def test_names_near_a_class_are_left_out(world: ToyWorld, file: Path) -> None:
    texts = world.encoder.text([f"a photo of a {name}" for name in [*CLASSES, *USED]]).double().numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    largest = (texts[len(CLASSES) :] @ texts[: len(CLASSES)].T).max(1)
    limit = float(np.sort(largest)[2] + 1e-4)
    kept = [name for name, value in zip(USED, largest, strict=True) if value <= limit]
    assert 0 < len(kept) < len(USED)
    assert list(made(words=str(file), near=limit).fit(world.task()).names) == kept
    with pytest.raises(UserError, match=r"no outlier name is left; raise near=-1\.0"):
        made(words=str(file), near=-1.0).fit(world.task())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("", "is empty"),
        ('{"far": ["a", ', "looks like JSON but is not valid"),
        ('{"far": [1, 2]}', "must hold names"),
        ("{}", "must hold names"),
    ],
)
def test_a_file_without_names_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError, match=message):
        made(words=f"{tmp_path}/names.json")


def test_without_a_list_the_message_has_the_command_for_one() -> None:
    with pytest.raises(UserError, match=r"(?s)it needs words=FILE.*oodbench get words eoe\n.*--set eoe.words=FILE"):
        made()
    in_group = dict(readable_jobs(make_jobs(RunRequest(methods="zero-shot"))).skipped_methods)
    assert in_group["eoe"].startswith("it needs words=FILE"), "the note begins with the name"


def test_a_list_of_class_names_alone_is_refused(world: ToyWorld, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Anchor\nBELL\n")
    with pytest.raises(UserError, match="all 2 names are class names"):
        made(words=f"{tmp_path}/names.txt").fit(world.task())


def test_the_card_has_words_of_a_language_model() -> None:
    assert registry.methods()["eoe"].access.lm_words


LISTS = "eoe.words csp.words negrefine.words neglabel.words tanl.words adaneg.words cma.agents".split()


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_not_there_is_an_error_of_the_plan(name: str, tmp_path: Path) -> None:
    """Beside the other problems of the request, of any method that reads a list."""
    method, _, _ = name.partition(".")
    request = RunRequest(methods=f"{method},mcm", id="none-such", settings=(f"{name}={tmp_path}/absent",))
    with pytest.raises(UserError) as error:
        make_plan(request)
    lists, dataset = error.value.problems
    assert lists.startswith(f"{method}[") and "absent" in lists and "none-such" in dataset
