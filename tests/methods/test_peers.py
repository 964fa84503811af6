"""Our scores against those of pytorch-ood on the same logits. Its sign is opposite: higher = more OOD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oodbench.method import registry
from oodbench.method.toy import ToyWorld

pytorch_ood = pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed (extra `dev`)")
detector = pytest.importorskip("pytorch_ood.detector")


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


def ours(name: str, world: ToyWorld, **parameters: Any) -> np.ndarray[Any, Any]:
    method = registry.make(registry.methods()[name], parameters)
    images = torch.cat([world.id, world.ood])
    task = world.task()
    with torch.no_grad():
        scores = method.score(world.batch(images, method.needs), task, method.fit(task))
    return scores.double().numpy()


def logits(world: ToyWorld, scale: float) -> torch.Tensor:
    features = torch.nn.functional.normalize(world.encoder.pixels(torch.cat([world.id, world.ood])), dim=-1)
    return scale * features @ world.task().text("simple").T


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_msp_and_energy(world: ToyWorld, scale: float) -> None:
    given = logits(world, scale)
    theirs = -detector.MaxSoftmax.score(given).numpy()
    np.testing.assert_allclose(np.exp(ours("msp", world, scale=scale)), theirs, rtol=2e-5)
    theirs = -detector.EnergyBased.score(given).numpy()
    np.testing.assert_allclose(ours("energy", world, scale=scale), theirs, rtol=1e-5, atol=1e-5)


def test_maxlogit(world: ToyWorld) -> None:
    theirs = -detector.MaxLogit.score(logits(world, world.encoder.scale)).numpy()
    np.testing.assert_allclose(ours("maxlogit", world), theirs, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_mcm(world: ToyWorld, temperature: float) -> None:
    """MCM is the softmax of cosines over a temperature."""
    theirs = -detector.MaxSoftmax.score(logits(world, 1.0), t=temperature).numpy()
    np.testing.assert_allclose(np.exp(ours("mcm", world, temperature=temperature)), theirs, rtol=2e-5)


@pytest.mark.parametrize(("temperature", "epsilon"), [(1000.0, 0.0014), (10.0, 0.02)])
def test_odin(world: ToyWorld, temperature: float, epsilon: float) -> None:
    """Theirs steps on the batch's mean loss, whose gradient has the same sign."""
    text = world.task().text("simple")

    class Model(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features = torch.nn.functional.normalize(world.encoder.pixels(pixels), dim=-1)
            return world.encoder.scale * features @ text.T

    images = torch.cat([world.id, world.ood])
    theirs = -detector.ODIN(Model(), eps=epsilon, temperature=temperature).predict(images).detach().numpy()
    mine = ours("odin", world, temperature=temperature, epsilon=epsilon)
    np.testing.assert_allclose(np.exp(mine), theirs, rtol=1e-4)


def test_react(world: ToyWorld) -> None:
    """Energy of the clipped activations, projected and normalised, at the same threshold."""
    text = world.task().text("simple")

    def head(activations: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.normalize(world.encoder.project(activations), dim=-1)
        return world.encoder.scale * features @ text.T

    threshold = 0.02
    backbone = world.encoder.activations
    theirs = detector.ReAct(backbone, head, threshold=threshold, detector=detector.EnergyBased.score)
    scores = -theirs.predict(torch.cat([world.id, world.ood])).detach().numpy()
    np.testing.assert_allclose(ours("react", world, threshold=threshold), scores, rtol=1e-4, atol=1e-4)
