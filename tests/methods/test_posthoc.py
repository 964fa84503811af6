"""Methods that read ID images, against their papers' formulas in numpy, scipy and scikit-learn; edge cases."""

# mypy: disable-error-code="no-any-return"
# scipy and scikit-learn have no types
from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from oodbench.errors import UserError
from oodbench.method import Batch, Method, Needs, Sources, Task, registry
from tests.elsewhere import elsewhere
from tests.methods.test_formulas import ADAPTERS, POSTHOC

Array = npt.NDArray[np.float64]
SCALE = 100.0
INFO = registry.methods()


@dataclasses.dataclass(frozen=True)
class World:
    """Class vectors w, calibration images x with labels y, and test images, as a CLIP would embed them."""

    names: tuple[str, ...]
    w: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    test: torch.Tensor

    @classmethod
    def random(cls, images: int = 900, classes: int = 9, width: int = 24) -> World:
        """Draw images around class vectors, all of them off the origin in one direction (the modality gap)."""
        random = torch.Generator().manual_seed(0)
        w, gap, spread = (torch.randn(n, width, generator=random) for n in (classes, 1, width))
        w -= w @ gap.T / gap.square().sum() * gap
        y = torch.arange(images) % classes
        noise = torch.randn(images + 60, width, generator=random) @ spread * 0.15
        x = 3 * (w[y] + 8 * gap + noise[:images])
        near = w[torch.arange(30) % classes] + 8 * gap + noise[images : images + 30]
        far = 8 * gap + 0.5 * torch.randn(30, width, generator=random) + noise[images + 30 :]
        names = tuple(f"c{i}" for i in range(classes))
        return cls(names, torch.nn.functional.normalize(w, dim=-1), x, y, 3 * torch.cat([near, far]))

    def batch(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
        unit = torch.nn.functional.normalize(embeddings, dim=-1)
        return Batch(~Needs(0), len(unit), unit, embeddings, _labels=labels)

    def task(self, batches: int = 7, seed: int = 0) -> Task:
        def calibration() -> list[Batch]:
            parts = zip(self.x.tensor_split(batches), self.y.tensor_split(batches), strict=True)
            return [self.batch(x, y) for x, y in parts]

        def nothing(*_: object) -> Any:
            raise AssertionError("not asked for")

        return Task(self.names, SCALE, Sources(lambda templates: self.w, nothing, nothing, calibration), seed)

    def z(self, embeddings: torch.Tensor, normalise: bool) -> Array:
        raw = embeddings.double().numpy()
        # As features are given: of unit length in float32.
        unit = torch.nn.functional.normalize(embeddings, dim=-1).double().numpy()
        z: Array = unit if normalise else raw
        return z

    def logits(self, embeddings: torch.Tensor, scale: float = SCALE) -> Array:
        logits: Array = scale * self.z(embeddings, True) @ self.w.double().numpy().T
        return logits


def scores(name: str, world: World, task: Task | None = None, **parameters: Any) -> Array:
    """Fit a method on the calibration images and score the test images in two batches."""
    method: Method[Any] = registry.make(INFO[name], parameters)
    task = (task or world.task()).for_method(method.needs)
    state = method.fit(task)
    parts = [world.batch(part).for_method(method.needs) for part in world.test.tensor_split(2)]
    found: Array = torch.cat([method.score(part, task, state).double() for part in parts]).cpu().numpy()
    return found


def gen(w: World, gamma: float = 0.1, top: int = 100, scale: float = SCALE) -> Array:
    p = np.sort(softmax(w.logits(w.test, scale), axis=1), axis=1)[:, -top:]
    return -np.sum(p**gamma * (1 - p) ** gamma, axis=1)


def knn(w: World, k: int = 50, normalise: bool = True) -> Array:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(w.z(w.x, normalise))
    return -search.kneighbors(w.z(w.test, normalise))[0][:, -1]


def residual(w: World, dim: int = 12, normalise: bool = True, of: torch.Tensor | None = None) -> Array:
    """By singular values of the images instead of eigenvalues of a covariance."""
    principal = np.linalg.svd(w.z(w.x, normalise), full_matrices=False)[2][:dim]
    z = w.z(w.test if of is None else of, normalise)
    return -np.linalg.norm(z - z @ principal.T @ principal, axis=1)


def vim(w: World, dim: int = 12, normalise: bool = True, scale: float = SCALE) -> Array:
    def logits(of: torch.Tensor) -> Array:
        return scale * w.z(of, normalise) @ w.w.double().numpy().T

    alpha = logits(w.x).max(1).mean() / -residual(w, dim, normalise, w.x).mean()
    energy: Array = logsumexp(logits(w.test), axis=1)
    return energy + alpha * residual(w, dim, normalise)


def klm(w: World, scale: float = SCALE) -> Array:
    known, p = softmax(w.logits(w.x, scale), axis=1), softmax(w.logits(w.test, scale), axis=1)
    predicted = known.argmax(1)
    typical = [known[predicted == c].mean(0) for c in np.unique(predicted)]
    return -np.min([[entropy(row, d) for d in typical] for row in p], axis=1)


def fdbd(w: World, boundaries: str = "sum", regulariser: str = "distance", normalise: bool = True) -> Array:
    """Class by class, over the distances of points to planes."""
    z, mean, vectors = w.z(w.test, normalise), w.z(w.x, normalise).mean(0), w.w.double().numpy()
    found = []
    for row in z:
        p = int((vectors @ row).argmax())
        others = [v for name, v in zip(w.names, vectors, strict=True) if name != w.names[p]]
        to = [abs((vectors[p] - v) @ row) / np.linalg.norm(vectors[p] - v) for v in others]
        total = np.mean(to) if boundaries == "mean" else np.sum(to)
        found.append(total / np.linalg.norm(row - mean if regulariser == "distance" else row))
    return np.array(found)


def nci(w: World, alpha: float = 1e-4, normalise: bool = True, scale: float = SCALE) -> Array:
    z, mean = w.z(w.test, normalise), w.z(w.x, normalise).mean(0)
    vectors = scale * w.w.double().numpy()[w.logits(w.test).argmax(1)]
    towards: Array = np.einsum("nd,nd->n", vectors, z - mean) / np.linalg.norm(z - mean, axis=1)
    return towards + alpha * np.linalg.norm(z, ord=1, axis=1)


def distances(w: World, normalise: bool) -> Array:
    z, y = w.z(w.x, normalise), w.y.numpy()
    means = np.stack([z[y == c].mean(0) for c in range(len(w.names))])
    within = EmpiricalCovariance(assume_centered=True).fit(z - means[y])
    # The distance of scipy, which scikit-learn calls, is the root.
    found: Array = pairwise_distances(w.z(w.test, normalise), means, "mahalanobis", VI=within.precision_) ** 2
    return found.min(1)


def rmd(w: World, normalise: bool = True) -> Array:
    background = EmpiricalCovariance().fit(w.z(w.x, normalise))
    found: Array = background.mahalanobis(w.z(w.test, normalise)) - distances(w, normalise)
    return found


def nnguide(w: World, k: int = 100, share: float = 0.01, scale: float = SCALE, seed: int = 0) -> Array:
    order = torch.randperm(len(w.x), generator=torch.Generator().manual_seed(seed))
    drawn = w.x[order[: max(k, int(share * len(w.x)))]]
    similar = w.z(w.test, True) @ (w.z(drawn, True) * logsumexp(w.logits(drawn, scale), axis=1)[:, None]).T
    energy: Array = logsumexp(w.logits(w.test, scale), axis=1)
    return energy * np.sort(similar, axis=1)[:, -k:].mean(1)


def she(w: World, metric: str = "inner_product", normalise: bool = True) -> Array:
    z, y, test = w.z(w.x, normalise), w.y.numpy(), w.z(w.test, normalise)
    hit = w.logits(w.x).argmax(1) == y
    patterns = np.stack([z[hit & (y == c)].mean(0) for c in range(len(w.names))])
    pattern = patterns[w.logits(w.test).argmax(1)]
    if metric == "inner_product":
        return np.einsum("nd,nd->n", test, pattern)
    if metric == "euclidean":
        return -np.linalg.norm(test - pattern, axis=1)
    return np.einsum("nd,nd->n", test, pattern) / np.linalg.norm(test, axis=1) / np.linalg.norm(pattern, axis=1)


def scaled(w: World, best: float, base: str = "msp", scale: float = SCALE) -> Array:
    """MSP or energy of logits / T."""
    test = w.logits(w.test, scale) / best
    found: Array = best * logsumexp(test, axis=1) if base == "energy" else log_softmax(test, axis=1).max(1)
    return found


def temperature(w: World, preset: str, base: str = "msp", scale: float = SCALE) -> Array:
    logits = w.logits(w.x, scale)

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(logits)), w.y.numpy()].mean())

    best = minimize_scalar(loss, bounds=(-5, 8), method="bounded", options={"xatol": 1e-10}).x
    return scaled(w, float(np.exp(best)), base, scale)


def largest(logits: Array, rule: str, scale: float = SCALE) -> Array:
    """MSP, or MCM: the softmax at temperature 1 of logits that are 100 times the cosines."""
    return log_softmax(logits / scale if rule == "mcm" else logits, axis=1).max(1)


def tip_logits(w: World, alpha: float = 1.0, beta: float = 5.5, scale: float = SCALE) -> Array:
    """Image by image of the cache, as the paper's A = exp(-beta (1 - f F^T)), with one-hot labels."""
    test, keys = w.z(w.test, True), w.z(w.x, True)
    cache = np.zeros((len(test), len(w.names)))
    for key, label in zip(keys, w.y.numpy(), strict=True):
        cache[:, label] += np.exp(-beta * (1 - test @ key))
    return w.logits(w.test, scale) + alpha * cache


def tip(w: World, rule: str = "msp", preset: str = "paper", scale: float = SCALE, **given: float) -> Array:
    released = {"alpha": 1.17, "beta": 1.0} if preset == "release" else {}
    return largest(tip_logits(w, scale=scale, **(released | given)), rule, scale)


def fitted_probe(w: World, C: float, normalise: bool) -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=1000).fit(w.z(w.x, normalise), w.y.numpy())


def probe(w: World, rule: str = "msp", C: float = 1.0, normalise: bool = True) -> Array:
    known = fitted_probe(w, C, normalise)
    if rule == "msp":
        return known.predict_log_proba(w.z(w.test, normalise)).max(1)
    return largest(known.decision_function(w.z(w.test, normalise)), rule)


CASES: list[tuple[str, Callable[..., Array], dict[str, Any]]] = [
    ("gen", gen, {}),
    ("gen", gen, {"gamma": 0.5, "top": 4, "scale": 10.0}),
    ("knn", knn, {}),
    ("knn", knn, {"k": 1}),
    ("knn", knn, {"k": 900, "normalise": False}),
    ("knn", knn, {"k": 7, "normalise": False}),
    ("residual", residual, {}),
    ("residual", residual, {"dim": 23, "normalise": False}),
    ("vim", vim, {}),
    ("vim", vim, {"dim": 3, "scale": 10.0}),
    ("vim", vim, {"dim": 20, "normalise": False, "scale": 2.0}),
    ("klm", klm, {}),
    ("klm", klm, {"scale": 5.0}),
    ("fdbd", fdbd, {}),
    ("fdbd", fdbd, {"boundaries": "mean", "normalise": False}),
    ("fdbd", fdbd, {"regulariser": "norm", "normalise": False}),
    ("nci", nci, {}),
    ("nci", nci, {"alpha": 0.5, "normalise": False, "scale": 1.0}),
    ("mahalanobis", lambda w, normalise=True: -distances(w, normalise), {}),
    ("mahalanobis", lambda w, normalise=True: -distances(w, normalise), {"normalise": False}),
    ("rmd", rmd, {}),
    ("rmd", rmd, {"normalise": False}),
    ("nnguide", nnguide, {}),
    ("nnguide", nnguide, {"k": 10, "share": 0.5, "scale": 10.0}),
    ("she", she, {}),
    ("she", she, {"metric": "euclidean", "normalise": False}),
    ("she", she, {"metric": "cosine"}),
    ("temperature", temperature, {"preset": "paper"}),
    ("temperature", temperature, {"preset": "paper", "base": "energy", "scale": 10.0}),
    ("tip_adapter", tip, {}),
    ("tip_adapter", tip, {"preset": "release", "rule": "mcm"}),
    ("tip_adapter", tip, {"preset": "release", "alpha": 0.5, "scale": 10.0}),
    ("tip_adapter", tip, {"beta": 20.0, "rule": "mcm", "scale": 10.0}),
    ("linear_probe", probe, {}),
    ("linear_probe", probe, {"rule": "mcm"}),
    ("linear_probe", probe, {"C": 0.316, "normalise": False}),
]
READ_IMAGES = (*POSTHOC, *ADAPTERS)


@pytest.fixture(scope="module")
def world() -> World:
    return World.random()


@pytest.mark.parametrize(("name", "formula", "parameters"), CASES)
def test_the_score_equals_the_paper_s_formula(
    name: str, formula: Callable[..., Array], parameters: dict[str, Any], world: World
) -> None:
    expected = formula(world, **parameters)
    assert np.ptp(expected) > 1e-3  # scores that differ between images
    np.testing.assert_allclose(scores(name, world, **parameters), expected, rtol=1e-5, atol=1e-6 * np.ptp(expected))


def test_calibration_images_are_read_batch_by_batch(world: World) -> None:
    """Scores do not depend on the division of calibration images into batches, and batches are not kept."""
    for name in READ_IMAGES:
        few, many = (scores(name, world, world.task(batches)) for batches in (1, 10))
        np.testing.assert_allclose(few, many, rtol=1e-6, atol=1e-7 * np.ptp(few), err_msg=name)


@pytest.mark.slow  # the first use of the device takes seconds to import
def test_no_tensor_stays_on_the_cpu() -> None:
    """On a device that refuses CPU tensors, as a GPU does."""
    world = World.random(images=120, classes=4, width=12)
    with elsewhere() as device:
        there = dataclasses.replace(
            world, **{name: getattr(world, name).to(device) for name in ("w", "x", "y", "test")}
        )
        for name in READ_IMAGES:
            found = scores(name, there, there.task(batches=2))
            np.testing.assert_allclose(found, scores(name, world), rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_posthoc_method_is_tested_here() -> None:
    assert {name for name, _, _ in CASES} == set(READ_IMAGES)
    labelled = {name for name in READ_IMAGES if "LABELS" in INFO[name].needs}
    assert labelled == {"mahalanobis", "rmd", "she", "temperature", *ADAPTERS}
    assert {name for name in READ_IMAGES if "CALIBRATION" not in INFO[name].needs} == {"gen"}
    assert {name for name in READ_IMAGES if INFO[name].family == "few-shot"} == set(ADAPTERS)


def test_knn_searches_in_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for 90 products the bank of 900 is searched in many parts; half precision rounds it."""
    whole = scores("knn", world, k=60), scores("knn", world, k=60, normalise=False)
    module = __import__("sys").modules[
        type(registry.make(INFO["knn"], {})).__module__.rpartition(".")[0] + "._neighbours"
    ]
    sizes = []
    monkeypatch.setattr(module, "PRODUCTS", 900)
    topk = torch.Tensor.topk

    def counted(tensor: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        sizes.append(tensor.numel())
        return topk(tensor, *args, **keywords)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    np.testing.assert_allclose(scores("knn", world, k=60), whole[0], rtol=1e-6)
    np.testing.assert_allclose(scores("knn", world, k=60, normalise=False), whole[1], rtol=1e-6)
    assert max(sizes) <= 30 * (60 + 30)  # the 60 nearest so far of 30 images, and a chunk of 30
    halved = scores("knn", world, k=60, precision="fp16")
    np.testing.assert_allclose(halved, whole[0], rtol=0, atol=2**-11)  # rounding error of a unit vector
    assert (halved != whole[0]).any()


@pytest.mark.parametrize("classes", [2, 9])
def test_adapters_predict_their_own_classes(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a cache in parts that begin within a class, and a class without images; states can be pickled."""
    world = World.random(images=200, classes=classes)
    test, wrong = world.z(world.test, True), {}
    probe = fitted_probe(world, 1.0, True)
    cache = dataclasses.replace(world, y=torch.where(world.y == 0, 1, world.y)) if classes == 9 else world
    for name, w, expected in (
        ("linear_probe", world, probe.predict(test)),
        ("tip_adapter", cache, tip_logits(cache, alpha=5.0).argmax(1)),
    ):
        method: Method[Any] = registry.make(INFO[name], {"alpha": 5.0} if name == "tip_adapter" else {})
        if name == "tip_adapter":
            monkeypatch.setattr(f"{type(method).__module__}.CHUNK", 7)
        task = w.task().for_method(method.needs)
        state = pickle.loads(pickle.dumps(method.fit(task)))
        batch = w.batch(w.test).for_method(method.needs)
        found = method.predict(batch, task, state)
        assert found is not None and (found.numpy() == expected).all()
        zero_shot = w.logits(w.test).argmax(1)
        wrong[name] = int((zero_shot != expected).sum())
        scored = method.score(batch, task, state).numpy()
        by_probe = probe.predict_log_proba(test).max(1) if name == "linear_probe" else tip(w, alpha=5.0)
        np.testing.assert_allclose(scored, by_probe, rtol=1e-4, atol=1e-6 * np.ptp(by_probe))  # of 100 times a float32
    assert all(wrong.values())  # they are not CLIP's classes


@pytest.mark.parametrize(
    ("classes", "parameters"), [(9, {"C": 1.0}), (9, {"C": 0.316, "normalise": False}), (2, {"C": 0.1})]
)
def test_the_probe_minimises_the_penalised_loss(classes: int, parameters: dict[str, Any]) -> None:
    """Per image, the gradient of |w|^2 / 2C + the losses by weights w and intercepts, which have no penalty, is 0."""
    world = World.random(classes=classes)
    kept = (world.y == 0) | (torch.arange(len(world.y)) < 300)  # classes of different sizes have intercepts
    world = dataclasses.replace(world, x=world.x[kept], y=world.y[kept])
    probe = registry.make(INFO["linear_probe"], parameters).fit(world.task().for_method(~Needs(0))).numpy()
    z, n = world.z(world.x, parameters.get("normalise", True)), len(world.x)
    w, b = probe[:, :-1], probe[:, -1]
    missed = softmax(z @ w.T + b, axis=1) - np.eye(classes)[world.y.numpy()]
    learnt = slice(1 if classes == 2 else 0, None)  # with two classes one logit is learned, the other is 0
    penalty = w / (parameters["C"] * n)
    gradient = penalty + missed.T @ z / n
    assert np.abs(gradient[learnt]).max() < 1e-4  # tol of the solver
    assert np.abs(missed.mean(0)[learnt]).max() < 1e-4
    assert np.abs(penalty[learnt]).max() > 2e-3  # without it, or with another C, the gradient is not 0
    if parameters.get("normalise", True):  # far from the origin intercepts are small
        assert np.abs(b[learnt]).max() / (parameters["C"] * n) > 1e-3


def test_a_probe_that_does_not_converge_warns(world: World, caplog: pytest.LogCaptureFixture) -> None:
    scores("linear_probe", world, max_iter=3)
    assert "stopped after max_iter=3 iterations" in caplog.text
    with pytest.raises(UserError, match="tells classes apart, and there is only one"):
        scores("linear_probe", World.random(images=60, classes=1))


def test_mahalanobis_keeps_its_digits_far_from_the_origin(world: World) -> None:
    """Embeddings 1,000 deviations from 0, whose sums of squares in float32 would have no digits of the covariance."""
    offset = torch.full((24,), 1e4)
    far = dataclasses.replace(world, x=world.x.double() + offset, test=world.test.double() + offset)
    for name in ("mahalanobis", "rmd"):
        np.testing.assert_allclose(
            scores(name, far, normalise=False), scores(name, world, normalise=False), rtol=1e-5, err_msg=name
        )


def without_class(world: World, number: int, *, left_out: bool) -> World:
    """Remove a class's images, or move them to where another class is predicted."""
    of_class = world.y == number
    if left_out:
        return dataclasses.replace(world, x=world.x[~of_class], y=world.y[~of_class])
    return dataclasses.replace(world, x=torch.where(of_class[:, None], world.x[~of_class].mean(0) * 0.5, world.x))


@pytest.mark.parametrize("name", ["mahalanobis", "rmd", "she", "linear_probe"])
def test_a_class_without_images_is_an_error(name: str, world: World) -> None:
    with pytest.raises(UserError, match=r"1 of 9 classes have no calibration image, 'c3' first; take more images"):
        scores(name, without_class(world, 3, left_out=True))


def test_classes_that_are_never_predicted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """KL matching leaves them out; SHE takes all their images, and says so."""
    never = dataclasses.replace(world, w=torch.cat([world.w[:8], -world.x.mean(0, keepdim=True) / 100]))
    np.testing.assert_allclose(scores("klm", never), klm(never), rtol=1e-5, atol=1e-9)
    with caplog.at_level(logging.WARNING):
        patterns = registry.make(INFO["she"], {}).fit(never.task().for_method(~Needs(0)))
    assert "no calibration image of 1 of 9 classes is predicted correctly, 'c8' first" in caplog.text
    np.testing.assert_allclose(patterns[8], never.z(never.x[never.y == 8], True).mean(0), rtol=1e-6)


def test_a_singular_covariance_has_a_pseudo_inverse(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer images than dimensions, as scikit-learn's precision; with one image a class nothing is left."""
    few = dataclasses.replace(world, x=world.x[:27], y=world.y[:27])
    with caplog.at_level(logging.WARNING):
        for name, formula in (("mahalanobis", lambda w: -distances(w, True)), ("rmd", rmd)):
            np.testing.assert_allclose(scores(name, few), formula(few), rtol=1e-5)
    assert "has rank 18 of 24: its pseudo-inverse is used" in caplog.text
    with pytest.raises(UserError, match="no class has two different images; give at least two a class"):
        scores("mahalanobis", dataclasses.replace(world, x=world.x[:9], y=world.y[:9]))


@pytest.mark.parametrize(
    ("name", "parameters", "images", "message"),
    [
        ("vim", {"dim": 24}, 900, "dim=24 of 24 dimensions leaves no residual; set dim to 23 or less"),
        ("residual", {"dim": 300}, 900, "dim=300 of 24 dimensions leaves no residual"),
        (
            "residual",
            {"dim": 12},
            10,
            "span 10 of 24 dimensions, so that dim=12 leaves no residual; set dim to 9 or less",
        ),
        ("knn", {"k": 51}, 50, "k=51 neighbours of 50 calibration images; --set knn.k=50, or give more images"),
        ("nnguide", {}, 99, "k=100 neighbours of 99 calibration images; --set nnguide.k=99, or give"),
    ],
)
def test_errors_of_fit_say_what_to_do(
    name: str, parameters: dict[str, Any], images: int, message: str, world: World
) -> None:
    with pytest.raises(UserError, match=message):
        scores(name, dataclasses.replace(world, x=world.x[:images], y=world.y[:images]), **parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gen", {"gamma": 0.0}),
        ("gen", {"top": 0}),
        ("knn", {"k": 0}),
        ("nnguide", {"share": 0.0}),
        ("nnguide", {"share": 1.5}),
        ("vim", {"dim": 0}),
        ("residual", {"dim": -1}),
        ("tip_adapter", {"alpha": -1.0}),
        ("tip_adapter", {"scale": 0.0}),
        ("linear_probe", {"C": 0.0}),
        ("linear_probe", {"max_iter": 0}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises((UserError, ValueError), match=next(iter(parameters))):
        registry.make(INFO[name], parameters)


def test_one_class_gives_finite_scores(world: World) -> None:
    one = dataclasses.replace(world, names=("c0",), w=world.w[:1], y=torch.zeros_like(world.y))
    for name in (*POSTHOC, "tip_adapter"):
        assert np.isfinite(scores(name, one)).all(), name


def test_names_that_occur_twice_have_no_boundary(world: World) -> None:
    """Their vectors differ only by rounding, and 0 / 0 would determine the score."""
    for difference in (0.0, 1e-7, 1e-3):
        twice = dataclasses.replace(
            world, names=(*world.names, "c0"), w=torch.cat([world.w, world.w[:1] * (1 - difference)])
        )
        np.testing.assert_allclose(scores("fdbd", twice), fdbd(twice), rtol=1e-5)


def test_nnguide_draws_its_bank_by_the_seed(world: World) -> None:
    first, again, other = (scores("nnguide", world, world.task(seed=seed), k=10) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    np.testing.assert_allclose(other, nnguide(world, k=10, seed=2), rtol=1e-5)


def test_separable_labels_have_no_optimal_temperature(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """All calibration images right: the smaller the temperature, the better. All wrong: the larger."""
    fitted = registry.make(INFO["temperature"], {"preset": "paper"})
    right = dataclasses.replace(world, y=torch.from_numpy(world.logits(world.x).argmax(1)))
    wrong = dataclasses.replace(world, y=torch.from_numpy(world.logits(world.x).argmin(1)))
    with caplog.at_level(logging.WARNING):
        assert fitted.fit(right.task().for_method(fitted.needs)) == 1e-4
        assert fitted.fit(wrong.task().for_method(fitted.needs)) == 1e4
    assert "no temperature from 0.0001 to 10000 is best" in caplog.text


@pytest.mark.slow  # the first optimiser of torch takes seconds to import
@pytest.mark.parametrize("scale", [100.0, 20.0, 1.0])
def test_the_released_temperature_is_that_of_torch_s_l_bfgs(scale: float, world: World) -> None:
    """It is found by automatic differentiation, as in OpenOOD and the authors' code."""
    logits, t = world.logits(world.x, scale), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([t], lr=0.01, max_iter=50)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / t, world.y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert abs(float(t.detach()) - 1.5) > 0.01
    np.testing.assert_allclose(
        scores("temperature", world, scale=scale), scaled(world, float(t.detach()), scale=scale), rtol=1e-5, atol=1e-9
    )
