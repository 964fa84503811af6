"""OODD, TANL and AdaNeg against literal NumPy forms of the released loops, image by image, and their state."""

from __future__ import annotations

import copy
import importlib
import queue
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import softmax, xlogy
from torch.nn.functional import normalize

from oodbench.errors import UserError
from oodbench.method import Batch, Needs, Sources, StreamMethod, Task, registry
from oodbench.method.toy import ToyEncoder
from tests.elsewhere import elsewhere
from tests.methods.test_csp import corpus
from tests.methods.test_formulas import STREAMS

Array = npt.NDArray[np.float64]
IMAGES, CLASSES, WIDTH, BATCH = 2_000, 12, 20, 128
INFO = registry.methods()
TANL: Any = importlib.import_module("oodbench_methods.tanl")


def vector(prompt: str) -> torch.Tensor:
    """A unit vector that belongs to a text."""
    random = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
    return normalize(torch.randn(WIDTH, generator=random, dtype=torch.float64), dim=0)


def chunks(values: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    return values.tensor_split(tuple(range(size, len(values), size)))


class Tower(ToyEncoder):
    """An encoder of images of 6 x 6 that normalises pixels; `seen` are the inputs of its tower."""

    size = (6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = (
            torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1),
            torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1),
        )
        self.map = torch.randn(108, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.seen: list[torch.Tensor] = []

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((images - self.mean) / self.std)
        return self.seen[-1].double().flatten(1) @ self.map


class World:
    """A stream of ID images near class names and OOD images near words, mixed, with scores of a base method."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.names = tuple(f"class {i}" for i in range(CLASSES))
        self.words, self.encoder, self.device = f"{corpus(folder)}/", Tower(), device
        random = torch.Generator().manual_seed(1)
        near = [f"The nice {name}." for name in self.names] + [f"The nice plant {i}." for i in range(9)]
        centres = torch.stack([vector(text) for text in near])[torch.randint(len(near), (IMAGES,), generator=random)]
        noise = torch.randn(IMAGES, WIDTH, generator=random, dtype=torch.float64)
        self.features = normalize(centres + 0.25 * noise, dim=-1).to(device)
        self.base = -torch.rand(IMAGES, generator=random, dtype=torch.float64).to(device)

    def task(self, seed: int = 0, names: tuple[str, ...] = ()) -> Task:
        names = names or self.names

        def words(prompts: Sequence[str]) -> torch.Tensor:
            return torch.stack([vector(prompt) for prompt in prompts]).to(self.device)

        def text(templates: str) -> torch.Tensor:
            return words([templates.replace("{}", name) for name in names])

        return Task(names, 100.0, Sources(text, words, lambda: self.encoder, list), seed)

    def batches(self, size: int = BATCH) -> list[Batch]:
        parts = zip(chunks(self.features, size), chunks(self.base, size), strict=True)
        return [Batch(~Needs(0), len(v), v, v, _base=base) for v, base in parts]

    def method(self, name: str, **parameters: Any) -> StreamMethod[Any]:
        """The method with few words."""
        own: dict[str, Any] = {
            "oodd": {},
            "adaneg": {"words": self.words, "num_negatives": 60},
            "tanl": {"words": self.words},
        }
        made = registry.make(INFO[name], registry.parameters(INFO[name], {**own[name], **parameters}))
        assert isinstance(made, StreamMethod)
        return made

    def scores(self, method: StreamMethod[Any], batches: Sequence[Batch], seed: int = 0) -> Array:
        return self.run(method, batches, seed)[0]

    def run(self, method: StreamMethod[Any], batches: Sequence[Batch], seed: int = 0) -> tuple[Array, Any, Array]:
        """Scores, the last state, and predictions if the method gives any."""
        task, scores, predictions = self.task(seed), [], []
        state = method.begin(task)
        for batch in batches:
            found, state, *classes = method.step(batch, task, state)
            scores.append(found.cpu())
            predictions += [each.cpu() for each in classes]
        return torch.cat(scores).double().numpy(), state, torch.cat(predictions or [torch.empty(0)]).numpy()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("streams") / "words")


def word_lists(world: World) -> tuple[list[str], list[str]]:
    """Nouns, and adjectives that are not nouns, in the order of their files."""
    nouns: list[str] = []
    adjectives: list[str] = []
    for path in sorted(Path(world.words).iterdir()):
        (adjectives if path.name.startswith("adj") else nouns).extend(path.read_text().split("\n")[:-1])
    nouns = list(dict.fromkeys(nouns))
    return nouns, [word for word in dict.fromkeys(adjectives) if word not in nouns]


# --- OODD -------------------------------------------------------------------------------------------------------------


class Entry:
    """An image in the heap of the released code, which drops the largest score first."""

    def __init__(self, score: float, image: Array) -> None:
        self.score, self.image = score, image

    def __lt__(self, other: Entry) -> bool:
        return self.score > other.score


def oodd(world: World, s: Array, size: int, length: int, k: int) -> Array:
    heap: queue.PriorityQueue[Entry] = queue.PriorityQueue()
    features, scores = world.features.numpy(), []
    for start in range(0, IMAGES, size):
        part = slice(start, start + size)
        for score, image in zip(s[part], features[part], strict=True):
            heap.put(Entry(score, image))
            if heap.qsize() > length:
                heap.get()
        bank = np.stack([entry.image for entry in heap.queue])
        cosines = np.sort(bank @ features[part].T, axis=0)[::-1]
        scores.append(s[part] - cosines[min(k, len(bank)) - 1])
    return np.concatenate(scores)


def released(base: str, stored: Array) -> Array:
    """The score of a method's paper: a probability of its logarithm or log-odds, a cosine of a distance."""
    if base == "knn":
        return 1 - stored**2 / 2
    if base in {"mcm", "msp", "cover", "cma", "coop", "tip_adapter", "linear_probe"}:
        return np.exp(stored)
    return 1 / (1 + np.exp(-stored)) if base in {"neglabel", "csp", "clipn", "mine"} else stored


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        ({"queue": 100}, 64),
        ({"queue": 3, "k": 2, "base": "msp[scale=10]"}, 64),  # less than a batch
        ({"queue": 2048, "k": 40, "base": "neglabel[groups=10]"}, 7),  # fewer are queued at first
        ({"queue": 50, "base": "knn[k=1]"}, 37),
        ({"queue": 50, "base": "energy"}, IMAGES),
        ({"queue": 50, "base": "mine", "transform": "sigmoid"}, 64),
    ],
)
def test_the_score_is_the_paper_s_queue(parameters: dict[str, Any], size: int, world: World) -> None:
    s = released(parameters.get("base", "mcm").partition("[")[0], world.base.numpy())
    expected = oodd(world, s, size, parameters["queue"], parameters.get("k", 5))
    found = world.scores(world.method("oodd", **parameters), world.batches(size))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_every_base_score_equals_its_formula(world: World) -> None:
    """The dictionary holds one image, that of the lowest score."""
    features, stored = world.features[:64], world.base[:64]
    cosines = features @ features[stored.argmin()]
    for base in sorted(INFO):
        found = world.scores(world.method("oodd", base=base, queue=1, k=1), [world.batches(64)[0]])
        np.testing.assert_allclose(found, released(base, stored.numpy()) - cosines.numpy(), rtol=1e-9, err_msg=base)


# --- TANL -------------------------------------------------------------------------------------------------------------


def aware(logits: Array, k: int, gamma: int) -> Array:
    """M softmaxes, of growing length."""
    ends = range(k, logits.shape[1], gamma) if gamma else [logits.shape[1]]
    mean: Array = np.mean([softmax(logits[:, : i + (gamma or 0)], axis=1)[:, :k].sum(1) for i in ends], axis=0)
    return mean


def otsu(scores: Array) -> float:
    """One mask for every threshold."""
    criteria = []
    for t in np.arange(0, 1, 0.01):
        above = scores >= t
        if above.all() or not above.any():
            criteria.append(np.inf)
            continue
        parts = scores[above], scores[~above]
        criteria.append(sum(len(part) / len(scores) * float(np.var(part)) for part in parts))
    # Masks that are equal have equal criteria, but for rounding.
    candidates = np.flatnonzero(np.isclose(criteria, min(criteria), rtol=1e-12, atol=0))
    return float(candidates[len(candidates) // 2] / 100)


def tanl(
    world: World, scale: float, alpha: float, gap: float, gamma: int, chosen: int, length: int, last: int
) -> list[Any]:
    """Scores S_aa, and how many images each side admitted in each batch."""
    names = [f"The nice {name}." for name in world.names]
    nouns, adjectives = word_lists(world)
    prompts = [f"The nice {word}." for word in nouns] + [f"This is a {word} photo." for word in adjectives]
    texts, words = (np.stack([vector(text).numpy() for text in each]) for each in (names, prompts))
    k, every = len(texts), np.concatenate([texts, words])
    images = TANL.noise_images((6, 6), 0)
    noise = images.double().flatten(1).numpy() @ world.encoder.map.numpy()  # without mean and deviation
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)

    def activations(v: Array) -> Array:
        shares: Array = softmax(scale * v @ every.T, axis=1)[:, k:]
        return shares

    def logits(v: Array, difference: Array) -> Array:
        best = np.argsort(-difference, kind="stable")[:chosen]
        product: Array = scale * v @ np.concatenate([texts, words[best]]).T
        return product

    some = torch.randperm(k, generator=torch.Generator().manual_seed(0)).numpy()[:length]
    p, n = activations(texts)[some], activations(noise)[-length:]
    history = np.concatenate([aware(logits(v, n.mean(0) - p.mean(0)), k, gamma) for v in (texts, noise)])
    scores, admitted = [], []
    for v in np.split(world.features.numpy(), range(BATCH, IMAGES, BATCH)):
        acts = activations(v)
        s = aware(logits(v, n.mean(0) - p.mean(0)), k, gamma)
        history = np.concatenate([history, s])[-last:]
        t = otsu(history)
        id_, ood = s > t + gap * (1 - t), s < t - gap * t
        means = {}
        for side, rows, held in (("id", id_, p), ("ood", ood, n)):
            means[side] = held.mean(0)
            if rows.any():
                means[side] = alpha * held.mean(0) + (1 - alpha) * acts[rows].mean(0)
        scores.append(aware(logits(v, means["ood"] - means["id"]), k, gamma))
        p, n = np.concatenate([p, acts[id_]])[-length:], np.concatenate([n, acts[ood]])[-length:]
        admitted.append((int(id_.sum()), int(ood.sum())))
    return [np.concatenate(scores), np.array(admitted)]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"preset": "script", "gamma": 2},
        {"preset": "script", "gamma": 0, "queue": 30},
        {"alpha": 0.5, "gamma": 7, "queue": 8, "scale": 30.0},  # fewer than class names; terms that do not divide M
        {"gap": 1.0},  # nothing is admitted
        {"last": 150},  # the threshold is of fewer scores than the stream has
    ],
)
def test_the_score_is_the_paper_s_mean_of_softmaxes(
    parameters: dict[str, Any], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"scale": 12.0, "chosen": 25, **parameters}
    assert TANL.HISTORY == 20_000
    last = given.pop("last", 20_000)
    monkeypatch.setattr(TANL, "HISTORY", last)
    preset = {"alpha": 0.0, "gap": 0.5} if "preset" in given else {"alpha": 0.95, "gap": 0.2}
    full = {"gamma": 1, "queue": 300, **preset, **given}
    full.pop("preset", None)
    full["length"] = full.pop("queue")
    expected, admitted = tanl(world, **full, last=last)
    found = world.scores(world.method("tanl", **given), world.batches())
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, rtol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(found)), 1 - expected, rtol=1e-6, atol=1e-14)
    assert np.ptp(expected) > 0.5
    if given.get("gap") != 1.0:
        assert (admitted.sum(0) > 300).all()  # the queues overflow
    else:
        assert admitted.sum() == 0


def test_the_threshold_is_the_masks(world: World) -> None:
    random = np.random.default_rng(0)
    threshold = TANL.two_class_threshold
    cases = [random.beta(0.3, 0.3, size) for size in (2, 15, 4_000)]
    cases += [np.concatenate([random.normal(0.2, 0.05, 500), random.normal(0.9, 0.02, 50)]).clip(0, 1)]
    cases += [np.full(9, 0.3), np.ones(4), np.zeros(4), np.repeat([0.0, 1.0], 3), np.array([0.105, 0.995])]
    for scores in cases:
        assert threshold(torch.from_numpy(scores)) == pytest.approx(otsu(scores)), scores


def test_noise_goes_into_the_tower_as_it_is(world: World) -> None:
    """Raw noise is not normalised by the encoder; the five kinds have their distributions and the range [0, 1]."""
    draw = TANL.noise_images
    for noise in ("raw", "normalised"):
        world.encoder.seen.clear()
        world.method("tanl", noise=noise).begin(world.task(seed=5))
        images = draw((6, 6), 5)
        if noise == "normalised":
            images = (images - world.encoder.mean) / world.encoder.std
        torch.testing.assert_close(world.encoder.seen[0], images, atol=1e-6, rtol=1e-5)
    normal, uniform, poisson, gamma, pepper = draw((64, 64), 0).double().split(3)
    assert not torch.equal(draw((6, 6), 0), draw((6, 6), 1))
    for images in (normal, poisson, gamma):
        assert images.min() == 0 and images.max() == 1

    def skewness(x: torch.Tensor) -> float:
        return float(((x - x.mean()) / x.std()).pow(3).mean())

    assert abs(skewness(normal)) < 0.05 and abs(skewness(uniform)) < 0.05
    assert skewness(poisson) == pytest.approx(5**-0.5, abs=0.05)
    assert skewness(gamma) == pytest.approx(2 / 2**0.5, abs=0.1)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.var()) == pytest.approx(1 / 12, abs=0.002)
    assert set(pepper.unique().tolist()) == {0.0, 1.0} and float(pepper.mean()) == pytest.approx(0.5, abs=0.01)
    assert len(poisson[poisson < 1].unique()) < 20  # counts


# --- AdaNeg -----------------------------------------------------------------------------------------------------------


def adaneg(
    texts: Array, k: int, features: Array, scale: float, lam: float, slots: int, replace: bool
) -> tuple[Array, Array, int]:
    """Scores, predictions and how often an image was replaced, with the whole memory [c 1+slots d]."""
    groups = np.array_split(np.arange(k, len(texts)), 5)
    memory = np.zeros((len(texts), 1 + slots, texts.shape[1]))
    memory[:, 0] = texts
    entropies, pointers, replaced = np.zeros(memory.shape[:2]), np.ones(len(texts), int), 0

    def confidence(logits: Array) -> Array:
        mean: Array = np.mean([softmax(logits[:, [*range(k), *g]], axis=1)[:, :k].sum(1) for g in groups], axis=0)
        return mean

    scores, predictions = [], []
    for v in np.split(features, range(BATCH, len(features), BATCH)):
        logits = scale * v @ texts.T
        s = confidence(logits)
        for side, rows in ((slice(0, k), s > 0.75), (slice(k, None), s < 0.25)):
            for i in np.flatnonzero(rows):
                p = softmax(logits[i, side])
                c = int(np.argmax(logits[i, side])) + (side.start or 0)
                entropy = -xlogy(p, p + 1e-8).sum()
                if pointers[c] < slots:
                    memory[c, pointers[c]], entropies[c, pointers[c]] = v[i], entropy
                    pointers[c] += 1
                elif replace and (entropy < entropies[c]).any():
                    worst = int(np.argmax(entropies[c]))
                    memory[c, worst], entropies[c, worst] = v[i], entropy
                    replaced += 1
        proxies = memory.mean(1)
        proxies /= np.linalg.norm(proxies, axis=1, keepdims=True)
        adapted = scale * v @ proxies.T
        scores.append(confidence(adapted) + lam * s)
        both = softmax(logits, axis=1) + lam * softmax(adapted, axis=1)
        predictions.append(both[:, :k].argmax(1))
    return np.concatenate(scores), np.concatenate(predictions), replaced


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"replacement": "never"},
        {"slots": 4, "scale": 20.0},
        {"replacement": "never", "slots": 2, "lam": 0.0},
        {"slots": 3, "lam": 2.0, "num_negatives": 63},  # groups of two sizes
    ],
)
def test_the_score_is_the_paper_s_proxies(parameters: dict[str, Any], world: World) -> None:
    given = {"scale": 12.0, **parameters}
    method = world.method("adaneg", **given)
    begun = method.begin(world.task())
    # Class names, then negative labels in the order of the groups.
    texts = torch.cat([world.task().text("The nice {}."), begun.negatives]).numpy()
    found, state, classes = world.run(method, world.batches())
    slots, lam = given.get("slots", 10), given.get("lam", 0.1)
    replace = given.get("replacement") != "never"
    expected, predicted, replaced = adaneg(texts, CLASSES, world.features.numpy(), given["scale"], lam, slots, replace)
    np.testing.assert_allclose((1 + lam) / (1 + np.exp(-found)), expected, rtol=1e-6)
    np.testing.assert_array_equal(classes, predicted)
    assert (replaced > 20) == replace and np.ptp(expected) > 0.5
    assert max(state.counts.values()) == slots - 1 and len(state.counts) > CLASSES
    held = sum(len(each.vectors) for each in state.slots.values())
    assert held == (sum(state.counts.values()) if replace else 0)


@pytest.mark.parametrize(("first", "permutation"), [("class 0", 0), ("plant 3", 7)])
def test_adaneg_selects_the_farthest_words(first: str, permutation: int, world: World) -> None:
    """Of nouns and adjectives in proportion, by the cosine at index 0.95 K, in the order of a permutation of all words.

    Class names are not among the words.
    """
    method = world.method("adaneg", num_negatives=50, permutation=permutation)
    nouns, adjectives = word_lists(world)
    nouns = [word for word in nouns if word != first]
    task = world.task(names=(first, *(f"class {i}" for i in range(1, 41))))
    known = torch.stack([vector(f"The nice {name}.") for name in task.classes])
    prompts = [f"The nice {word}." for word in nouns] + [f"This is a {word} photo." for word in adjectives]
    vectors = torch.stack([vector(prompt) for prompt in prompts])
    near = (vectors @ known.T).sort().values[:, 38].tolist()  # int(0.95 * 41)
    every, n = range(len(prompts)), len(nouns)
    count = int(50 * len(adjectives) / len(prompts))
    used = {*sorted(every[:n], key=near.__getitem__)[: 50 - count], *sorted(every[n:], key=near.__getitem__)[:count]}
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(permutation)).tolist()
    expected = [prompts[i] for i in order if i in used]
    found = [prompts[int((vectors @ row).argmax())] for row in method.begin(task).negatives]
    assert found == expected


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_begin_resets_a_stream_and_later_images_change_nothing(name: str, world: World) -> None:
    """begin() resets the state; later images have no effect, earlier ones and the batch itself do."""
    method, batches = world.method(name), world.batches()[:7]
    first = world.scores(method, batches)
    np.testing.assert_array_equal(world.scores(method, batches), first)
    ends = world.scores(method, [*batches[:3], *batches[:2:-1]])
    np.testing.assert_array_equal(ends[: 3 * BATCH], first[: 3 * BATCH])
    after = world.scores(method, batches[3:])
    assert not np.allclose(after, first[3 * BATCH :])
    assert method.sees_itself
    state = method.begin(world.task())
    twin = copy.deepcopy(state)
    both = [method.step(batches[0], world.task(), each)[0] for each in (state, twin)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", STREAMS)
def test_inputs_are_not_modified(name: str, world: World) -> None:
    method, task, batches = world.method(name), world.task(), world.batches()[:3]
    state = method.begin(task)
    for batch in batches:
        _, state, *_ = method.step(batch, task, state)
    assert task.intact() and all(batch.intact() for batch in batches)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("oodd", {"queue": 0}, "at least 1"),
    ("oodd", {"k": 9, "queue": 8}, "k=9 is more than queue=8"),
    ("tanl", {"alpha": 1.5}, "between 0 and 1"),
    ("tanl", {"gap": -0.1}, "between 0 and 1"),
    ("tanl", {"gamma": -1}, "at least 0"),
    ("tanl", {"chosen": 0}, "at least"),
    ("tanl", {"queue": 0}, "at least"),
    ("tanl", {"words": "nowhere"}, "./nowhere"),
    ("tanl", {"words": "./nowhere"}, "is not a folder"),
    ("tanl", {"nouns": "the nice"}, "must contain {} once"),
    ("adaneg", {"thres": 2.0}, "between 0 and 1"),
    ("adaneg", {"gap": -1.0}, "between 0 and 1"),
    ("adaneg", {"lam": -1.0}, "at least 0"),
    ("adaneg", {"slots": 1}, "slots=1"),
    ("adaneg", {"groups": 0}, "groups=0"),
    ("adaneg", {"groups": 70}, "at least groups"),
    ("adaneg", {"num_negatives": 5_000}, "fewer than 5,000"),
    ("adaneg", {"words": "./nowhere"}, "is not a folder"),
    ("adaneg", {"adjectives": "{} and {}"}, "must contain {} once"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), WRONG)
def test_bad_hyper_parameters_are_refused(name: str, parameters: dict[str, Any], message: str, world: World) -> None:
    with pytest.raises(UserError) as error:
        world.method(name, **parameters)
    assert message in str(error.value)


@pytest.mark.slow  # the first use of the device takes seconds to import
def test_no_tensor_stays_on_the_cpu(world: World, tmp_path: Path) -> None:
    """On a device that refuses CPU tensors, as a GPU does."""
    with elsewhere() as device:
        there = World(tmp_path / "words", device)
        for part in ("mean", "std", "map"):
            setattr(there.encoder, part, getattr(there.encoder, part).to(device))
        for name in STREAMS:
            found = there.scores(there.method(name), there.batches()[:4])
            np.testing.assert_allclose(found, world.scores(world.method(name), world.batches()[:4]), rtol=1e-6)
