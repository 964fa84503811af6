"""CoVer against its formula, its settings, and bad values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oodbench.errors import UserError
from oodbench.method import Method, Needs, registry
from oodbench.method.corruptions import KINDS
from oodbench.method.toy import ToyWorld
from tests.methods.test_formulas import softmax


def cover(**parameters: Any) -> Method[None]:
    return registry.make(registry.methods()["cover"], parameters)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_the_score_is_the_paper_s_mean_of_probabilities(temperature: float) -> None:
    method = cover(types=("fog", "contrast"), severities=(3,), temperature=temperature)
    world = ToyWorld(views=len(method.views))
    batch, task = world.batch(torch.cat([world.id, world.ood]), Needs.FEATURES | Needs.VIEWS), world.task()
    text = task.text("simple").double().numpy()
    images = [batch.features.double().numpy(), *batch.views.double().numpy().transpose(1, 0, 2)]
    assert len(images) == 3
    expected = np.mean([softmax(image @ text.T / temperature).max(1) for image in images], axis=0)
    np.testing.assert_allclose(method.score(batch, task, None), np.log(expected), rtol=2e-5, atol=2e-6)
    (named,) = method.explain(world.batch(world.id[:1], method.needs), task, None).values()
    assert [name for name, _ in named] == ["the image itself", "fog 3", "contrast 3"]
    assert np.log(np.mean([value for _, value in named])) == pytest.approx(np.log(expected[0]), rel=2e-5)


def test_the_recommended_views_are_12_and_those_of_the_release_90() -> None:
    def settings(method: Method[None]) -> set[tuple[object, object]]:
        return {(view.parameters["kind"], view.parameters["severity"]) for view in method.views}

    six = ("brightness", "defocus_blur", "fog", "gaussian_blur", "motion_blur", "saturate")
    assert settings(cover()) == {(kind, severity) for kind in six for severity in (1, 2)}
    assert settings(cover(preset="release")) == {(kind, severity) for kind in KINDS for severity in range(1, 6)}
    assert len(KINDS) == 18 and len(cover(preset="release").views) == 90
    assert settings(cover(types=("snow",))) == {("snow", 1), ("snow", 2)}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"types": ("fogg",)}, "no corruption 'fogg'; there are brightness, contrast"),
        ({"types": ("fog", "fog")}, "names a view twice: corrupted_at_random"),
        ({"types": ()}, "types and severities name at least one each"),
        ({"severities": (0, 1)}, "severities are 1 to 5"),
        ({"resize": 32}, "resize must be at least 224"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_bad_values_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cover(**parameters)
