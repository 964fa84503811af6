"""CMA against an explicit softmax over class names and agents."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.method.toy import CLASSES, ToyWorld

AGENTS = (
    "a photo of a thing.",
    "a photo of an everyday object.",
    "a photo of a scene we live in.",
    "a photo highlighting different textures.",
    "a photo of a thing that we can see in nature.",
)


def made(**parameters: Any) -> Any:
    info = registry.methods()["cma"]
    return registry.make(info, registry.parameters(info, parameters))


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


def reference(world: ToyWorld, agents: list[str], temperature: float) -> Any:
    """The logarithm of the largest class probability, with a column for every agent, repeated ones as well."""

    def unit(x: torch.Tensor) -> Any:
        array = x.double().numpy()
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    texts = unit(world.encoder.text([*(f"a photo of a {name}" for name in CLASSES), *agents]))
    cosines = unit(world.encoder.pixels(torch.cat([world.id, world.ood]))) @ texts.T
    powers = np.exp(cosines / temperature)
    return np.log((powers[:, : len(CLASSES)] / powers.sum(1, keepdims=True)).max(1))


@pytest.mark.parametrize(
    ("parameters", "count"),
    [({}, 8), ({"ratio": 0.3}, 3), ({"ratio": 1.7}, 14), ({"ratio": 0.01}, 1), ({"temperature": 0.01}, 8)],
)
def test_the_score_is_the_paper_s_softmax(parameters: dict[str, Any], count: int, world: ToyWorld) -> None:
    method, task = made(**parameters), world.task()
    agents = list(itertools.islice(itertools.cycle(AGENTS), count))
    scores = method.score(world.batch(torch.cat([world.id, world.ood]), method.needs), task, method.fit(task))
    expected = reference(world, agents, parameters.get("temperature", 1.0))
    np.testing.assert_allclose(scores.double().numpy(), expected, rtol=2e-5, atol=2e-6)
    assert method.text_encodings(len(CLASSES)) == min(5, count)


def test_agents_are_read_from_the_option_or_from_a_file(world: ToyWorld, tmp_path: Path) -> None:
    (tmp_path / "agents.txt").write_text("a thing\n\na place\n")
    task = world.task()
    for given in ("a thing | a place", str(tmp_path / "agents.txt")):
        method = made(agents=given)
        scores = method.score(world.batch(torch.cat([world.id, world.ood]), method.needs), task, method.fit(task))
        expected = reference(world, ["a thing", "a place"] * 4, 1.0)
        np.testing.assert_allclose(scores.double().numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 0.0}, "must be above 0"),
        ({"agents": " | "}, "names no prompt"),
        ({"agents": "./absent.txt"}, "agents: no file absent.txt"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**parameters)
