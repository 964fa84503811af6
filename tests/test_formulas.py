"""Each method against its textbook formula, in numpy and float64, at CLIP's scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oodbench import registry
from oodbench.contract import World
from oodbench.method import Needs

Cosines = npt.NDArray[np.float64]


def softmax(logits: Cosines) -> Cosines:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Cosines = powers / powers.sum(1, keepdims=True)
    return shares


# method -> (hyper-parameters, what the paper's formula gives for cosines [b k] and the encoder's scale)
FORMULAS: dict[str, list[tuple[dict[str, Any], Callable[[Cosines, float], Cosines]]]] = {
    "msp": [
        ({}, lambda c, s: np.log(softmax(s * c).max(1))),
        ({"scale": 1.0}, lambda c, s: np.log(softmax(c).max(1))),
    ],
    "maxlogit": [({}, lambda c, s: s * c.max(1))],
    "energy": [
        ({}, lambda c, s: np.log(np.exp(s * c).sum(1))),
        ({"scale": 1.0}, lambda c, s: np.log(np.exp(c).sum(1))),
        ({"scale": 10.0, "temperature": 2.0}, lambda c, s: 2 * np.log(np.exp(10 * c / 2).sum(1))),
    ],
    "mcm": [
        ({}, lambda c, s: np.log(softmax(c).max(1))),
        ({"temperature": 0.01}, lambda c, s: np.log(softmax(c / 0.01).max(1))),
    ],
}
CASES = [(name, number) for name, cases in FORMULAS.items() for number in range(len(cases))]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(("name", "number"), CASES)
def test_score_is_the_textbook_formula(name: str, number: int, world: World) -> None:
    parameters, formula = FORMULAS[name][number]
    method = registry.make(registry.methods()[name], parameters)
    task = world.task()
    images = torch.cat([world.id, world.ood])
    scores = method.score(world.batch(images, method.needs), task, method.fit(task)).double().numpy()
    embeddings = world.encoder.pixels(images).double().numpy()
    features = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    text = task.text("simple").double().numpy()
    np.testing.assert_allclose(scores, formula(features @ text.T, world.encoder.scale), rtol=2e-5, atol=2e-6)


def test_every_method_has_a_formula() -> None:
    built_in = {name for name, info in registry.methods().items() if info.origin == "built-in"}
    assert built_in == set(FORMULAS)


def test_a_confident_softmax_does_not_tie(world: World) -> None:
    """In float32 both images below have probability exactly 1; their order must survive."""
    from oodbench.method import logsumexp

    logits = torch.tensor([[40.0, 20.0, 0.0], [40.0, 15.0, 0.0]])
    assert (logits.softmax(-1).amax(-1) == 1).all()
    log_msp = logits.amax(-1) - logsumexp(logits)
    assert log_msp[0] < log_msp[1] < 0
    np.testing.assert_allclose(log_msp.numpy(), [-np.exp(-20.0), -np.exp(-25.0)], rtol=1e-3)


def test_raw_cosines_of_a_thousand_classes_keep_their_order() -> None:
    """Energy at scale 1 spreads over 0.02 around 7: in float32 a large part of the images would tie."""
    from oodbench.method import logsumexp

    rng = np.random.default_rng(0)
    cosines = rng.normal(0.2, 0.03, (2000, 1000)).astype(np.float32)
    exact = np.log(np.exp(cosines.astype(np.float64)).sum(1))
    ours = logsumexp(torch.from_numpy(cosines)).numpy()
    assert len(np.unique(ours)) == 2000
    assert len(np.unique(torch.from_numpy(cosines).logsumexp(-1).numpy())) < 1900
    assert np.abs(ours - exact).max() < 1e-7


def test_predictions_are_the_best_class(world: World) -> None:
    method = registry.make(registry.methods()["mcm"], {})
    predicted = method.predict(world.batch(world.id, Needs.FEATURES), world.task(), None)
    assert predicted is not None
    assert (predicted == torch.arange(96) % 8).float().mean() > 0.95
