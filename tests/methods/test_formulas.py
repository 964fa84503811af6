"""Each method against its textbook formula, in numpy and float64, at CLIP's scale."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oodbench.method import Batch, Needs, Sources, Task, registry
from oodbench.method.toy import ToyEncoder, ToyWorld

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


def react(world: ToyWorld, images: torch.Tensor, percentile: float, threshold: float | None) -> Cosines:
    """Clip at a percentile of all training activations, project, normalise, energy at the encoder's scale."""
    if threshold is None:
        threshold = float(np.percentile(world.encoder.activations(world.train).double().numpy(), percentile))
    clipped = np.minimum(world.encoder.activations(images).double().numpy(), threshold)
    embeddings = clipped @ world.encoder.project(torch.eye(clipped.shape[1])).double().numpy()
    features = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores: Cosines = np.log(np.exp(world.encoder.scale * features @ text(world).T).sum(1))
    return scores


def odin(world: ToyWorld, images: torch.Tensor, temperature: float, epsilon: float) -> Cosines:
    """One signed step against the gradient of -log of the largest probability, derived for the toy's linear tower."""
    back = (
        world.encoder.pixels(0.5 + torch.eye(192).view(192, 3, 8, 8)).double().numpy()
    )  # [192 d]: d embedding / d pixel
    factor = world.encoder.scale / temperature

    def log_probabilities(pixels: Cosines) -> tuple[Cosines, Cosines, Cosines]:
        embeddings = (pixels - 0.5) @ back
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        features = embeddings / norms
        return np.log(softmax(factor * features @ text(world).T)), features, norms

    pixels = images.flatten(1).double().numpy()
    logs, features, norms = log_probabilities(pixels)
    best = np.eye(logs.shape[1])[logs.argmax(1)]
    by_feature = factor * (best - np.exp(logs)) @ text(world)  # gradient of the log of the largest probability
    by_embedding = (by_feature - (by_feature * features).sum(1, keepdims=True) * features) / norms
    moved = pixels + epsilon * np.sign(by_embedding @ back.T)
    best_logs: Cosines = log_probabilities(moved)[0].max(1)
    return best_logs


def gl_mcm(world: ToyWorld, images: torch.Tensor, temperature: float, whole: float, local: float) -> Cosines:
    """Weighted sum of the largest softmax probability of the image, and of the largest one of its patches."""
    towers = {"whole": world.encoder.pixels(images)[:, None], "local": world.encoder.patches(images)}
    best = {}
    for name, embeddings in towers.items():
        rows = embeddings.double().numpy()
        units = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        shares = softmax((units @ text(world).T).reshape(-1, len(text(world))) / temperature)
        best[name] = shares.reshape(len(images), -1).max(1)
    scores: Cosines = whole * best["whole"] + local * best["local"]
    return scores


def text(world: ToyWorld) -> Cosines:
    vectors: Cosines = world.task().text("simple").double().numpy()
    return vectors


# The same for methods that read more than the cosines.
DEEPER: dict[str, list[tuple[dict[str, Any], Callable[[ToyWorld, torch.Tensor], Cosines]]]] = {
    "react": [
        ({}, lambda world, x: react(world, x, 90, None)),
        ({"percentile": 60.0}, lambda world, x: react(world, x, 60, None)),
        ({"threshold": 0.02}, lambda world, x: react(world, x, 0, 0.02)),
    ],
    "gl_mcm": [
        ({}, lambda world, x: gl_mcm(world, x, 1, 1, 0.5)),
        ({"preset": "release"}, lambda world, x: gl_mcm(world, x, 1, 1, 1)),
        ({"preset": "l-mcm"}, lambda world, x: gl_mcm(world, x, 1, 0, 1)),
        ({"lam": 0.25, "temperature": 0.01}, lambda world, x: gl_mcm(world, x, 0.01, 1, 0.25)),
    ],
    "odin": [
        ({}, lambda world, x: odin(world, x, 1000, 0.0014)),
        ({"temperature": 10.0, "epsilon": 0.01, "memory": 2e-6}, lambda world, x: odin(world, x, 10, 0.01)),
    ],
}
POSTHOC = ("fdbd", "gen", "klm", "knn", "mahalanobis", "nci", "nnguide", "residual", "rmd", "she", "temperature", "vim")
ADAPTERS = ("linear_probe", "tip_adapter")
STREAMS = ("adaneg", "oodd", "tanl")
ELSEWHERE = dict.fromkeys((*POSTHOC, *ADAPTERS), Path(__file__).with_name("test_posthoc.py"))
ELSEWHERE |= dict.fromkeys(STREAMS, Path(__file__).with_name("test_stream_methods.py"))
ELSEWHERE |= {
    "clipn": Path(__file__).with_name("test_clipn.py"),
    "cma": Path(__file__).with_name("test_cma.py"),
    "csp": Path(__file__).with_name("test_csp.py"),
    "cover": Path(__file__).with_name("test_cover.py"),
    "eoe": Path(__file__).with_name("test_eoe.py"),
    "neglabel": Path(__file__).with_name("test_neglabel.py"),
    "negrefine": Path(__file__).with_name("test_negrefine.py"),
    "zoc": Path(__file__).with_name("test_zoc.py"),
    "zoc_coca": Path(__file__).with_name("test_zoc_coca.py"),
    **dict.fromkeys(("coop", "locoop", "sct", "gallop"), Path(__file__).with_name("test_prompt_learning.py")),
}
DEEPER_CASES = [(name, number) for name, cases in DEEPER.items() for number in range(len(cases))]
CASES = [(name, number) for name, cases in FORMULAS.items() for number in range(len(cases))]


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


@pytest.mark.parametrize(("name", "number"), CASES)
def test_score_is_the_textbook_formula(name: str, number: int, world: ToyWorld) -> None:
    parameters, formula = FORMULAS[name][number]
    method = registry.make(registry.methods()[name], parameters)
    task = world.task()
    images = torch.cat([world.id, world.ood])
    scores = method.score(world.batch(images, method.needs), task, method.fit(task)).double().numpy()
    embeddings = world.encoder.pixels(images).double().numpy()
    features = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    text = task.text("simple").double().numpy()
    np.testing.assert_allclose(scores, formula(features @ text.T, world.encoder.scale), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "number"), DEEPER_CASES)
def test_score_is_the_formula_through_the_tower(name: str, number: int, world: ToyWorld) -> None:
    parameters, formula = DEEPER[name][number]
    method = registry.make(registry.methods()[name], parameters)
    task = world.task()
    images = torch.cat([world.id, world.ood])
    with torch.no_grad():
        scores = method.score(world.batch(images, method.needs), task, method.fit(task)).double().numpy()
    np.testing.assert_allclose(scores, formula(world, images), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("zero", "moved"), [("minus", -0.01), ("none", 0.0)])
def test_odin_at_a_zero_gradient(zero: str, moved: float, world: ToyWorld) -> None:
    """With one class its probability is 1 and every gradient 0."""
    seen = []

    class Recording(ToyEncoder):
        def pixels(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach())
            return super().pixels(images)

    def nothing(_: object) -> torch.Tensor:
        raise AssertionError

    sources = Sources(lambda templates: torch.ones(1, 16) / 4, nothing, Recording, list)
    method = registry.make(registry.methods()["odin"], {"zero": zero, "epsilon": 0.01})
    with torch.no_grad():
        task = Task(("one",), 100.0, sources)
        method.score(world.batch(world.id, method.needs), task, method.fit(task))
    before, after = seen[-2:]  # earlier ones measure memory
    assert len(before) == len(world.id)
    torch.testing.assert_close(after - before, torch.full_like(before, moved))


def test_odin_s_step_is_in_pixels_of_0_to_1(world: ToyWorld) -> None:
    """OpenOOD's postprocessor, which steps on normalised pixels and divides by their deviation, at its default step."""
    mean, std = torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1), torch.tensor([0.1, 0.25, 0.6]).view(3, 1, 1)
    towers = torch.randn(3 * 8 * 8, 16, generator=torch.Generator().manual_seed(0)).double()
    names = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), dim=-1)

    def tower(normalised: torch.Tensor) -> torch.Tensor:
        return normalised.flatten(1) @ towers.to(normalised)

    class Normalising(ToyEncoder):
        def pixels(self, images: torch.Tensor) -> torch.Tensor:
            return tower((images - mean) / std)

    encoder = Normalising()
    encoder.std = std

    def net(data: torch.Tensor) -> torch.Tensor:
        return 100.0 * torch.nn.functional.normalize(tower(data), dim=-1) @ names.to(data).T

    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    data = ((images - mean) / std).double().requires_grad_(True)
    output = net(data)
    labels = output.detach().argmax(1)
    torch.nn.functional.cross_entropy(output / 1000, labels).backward()  # type: ignore[no-untyped-call]
    assert data.grad is not None
    gradient = (torch.ge(data.grad, 0).double() - 0.5) * 2 / std
    released = (net(data.detach() - 0.0014 * gradient) / 1000).softmax(-1).amax(-1).log()

    def nothing(_: object) -> torch.Tensor:
        raise AssertionError

    task = Task([str(i) for i in range(8)], 100.0, Sources(lambda templates: names, nothing, lambda: encoder, list))
    method = registry.make(registry.methods()["odin"], {})
    batch = Batch(method.needs, len(images), _pixels=images)
    with torch.no_grad():
        scores = method.score(batch, task, method.fit(task)).double()
        still = registry.make(registry.methods()["odin"], {"epsilon": 0.0}).score(batch, task, 40).double()
    torch.testing.assert_close(scores, released, rtol=0, atol=2e-7)
    assert (scores - still).min() > 1e-4  # the step is seen


def test_odin_respects_its_memory_limit(world: ToyWorld) -> None:
    """The step on 96 images is divided into as many parts as the memory requires, with the same scores."""
    sizes = []

    class Counting(ToyEncoder):
        def pixels(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return super().pixels(images)

    def nothing(_: object) -> torch.Tensor:
        raise AssertionError

    task = Task(("a", "b"), 100.0, Sources(lambda templates: torch.eye(2, 16), nothing, Counting, list))
    scores = {}
    for memory in (2.0, 2e-6):
        method = registry.make(registry.methods()["odin"], {"memory": memory})
        sizes.clear()
        with torch.no_grad():
            scores[memory] = method.score(world.batch(world.id, method.needs), task, method.fit(task))
        parts = sizes[2:]
        assert sum(parts) == 2 * len(world.id)
        assert max(parts) == (len(world.id) if memory == 2.0 else parts[0])
    assert parts[0] < 20
    torch.testing.assert_close(scores[2.0], scores[2e-6])


def test_odin_counts_the_memory_of_a_weight_once(world: ToyWorld) -> None:
    """A weight that is saved for each image or token uses memory once."""
    sizes = []

    class Spread(ToyEncoder):
        def pixels(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            flat = images.flatten(1)[:, None]
            weight = torch.zeros(1, flat.shape[2], 4000).expand(len(images), -1, -1)
            return super().pixels(images) + torch.bmm(flat, weight).sum((1, 2))[:, None]

    def nothing(_: object) -> torch.Tensor:
        raise AssertionError

    task = Task(("a", "b"), 100.0, Sources(lambda templates: torch.eye(2, 16), nothing, Spread, list))
    batch = world.batch(world.id, Needs.FEATURES | Needs.PIXELS | Needs.ENCODER)
    weight = batch.pixels[0].nbytes * 4000
    method = registry.make(registry.methods()["odin"], {"memory": 5 * weight / 1e9})
    with torch.no_grad():
        method.score(batch, task, method.fit(task))
    assert sizes == [2, 1, batch.size, batch.size]


def test_every_method_has_a_formula() -> None:
    built_in = {name for name, info in registry.methods().items() if info.origin == "built-in"}
    assert built_in == set(FORMULAS) | set(DEEPER) | set(ELSEWHERE)
    for name, path in ELSEWHERE.items():
        assert re.search("def test_the_score_(is|equals)_the_", path.read_text()), name


def test_a_confident_softmax_does_not_tie(world: ToyWorld) -> None:
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


def test_predictions_are_the_best_class(world: ToyWorld) -> None:
    method = registry.make(registry.methods()["mcm"], {})
    predicted = method.predict(world.batch(world.id, Needs.FEATURES), world.task(), None)
    assert predicted is not None
    assert (predicted == torch.arange(96) % 8).float().mean() > 0.95
