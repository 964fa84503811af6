"""NegRefine against a literal implementation, image by image; every pair of texts is encoded once."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oodbench.errors import UserError
from oodbench.method import Needs, registry
from oodbench.method.averages import RecentTexts
from oodbench.method.toy import CLASSES, ToyEncoder, ToyWorld
from tests.methods.test_csp import NOUN_PROMPTS, PHRASE_PROMPTS, corpus, raw_mean

_wordnet: Any = importlib.import_module("oodbench_methods._wordnet")


def made(**parameters: Any) -> Any:
    info = registry.methods()["negrefine"]
    return registry.make(info, registry.parameters(info, parameters))


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> str:
    """NegRefine's two files: 21 nouns and 3 phrases, of which 20 fill 5 groups."""
    folder = tmp_path_factory.mktemp("negrefine")
    (folder / "neg_labels_noun.txt").write_text("".join(f"noun {i}\n" for i in range(19)))
    (folder / "neg_labels_adj.txt").write_text("gooey landscape\nrutted creature\nspoon-shaped vista\n")
    return f"{folder}/"


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("weight", "top_classes", "top_negatives"), [(2.0, 5, 5), (0.5, 100, 1), (0.0, 1, 3)])
def test_the_score_is_the_paper_s_sum(
    weight: float, top_classes: int, top_negatives: int, world: ToyWorld, refined: str
) -> None:
    settings = {"weight": weight, "top_classes": top_classes, "top_negatives": top_negatives}
    method, task = made(words=refined, groups=5, scale=20.0, **settings), world.task()
    task = task.for_method(method.needs)
    state = method.fit(task)
    images = torch.cat([world.id[:20], world.ood[:20]])
    scores = method.score(world.batch(images, method.needs), task, state).numpy()

    features = torch.nn.functional.normalize(world.encoder.pixels(images), dim=-1).double().numpy()
    classes = raw_mean(world, CLASSES, NOUN_PROMPTS)
    nouns = (Path(refined) / "neg_labels_noun.txt").read_text().split("\n")[:-1]
    phrases = (Path(refined) / "neg_labels_adj.txt").read_text().split("\n")[:-1]
    words = [*nouns, *phrases]
    vectors = np.concatenate([raw_mean(world, nouns, NOUN_PROMPTS), raw_mean(world, phrases, PHRASE_PROMPTS)])
    assert sorted(state.words) == sorted(words[:20]) and list(state.chosen) == words
    texts = raw_mean(world, [f"{name} and {word}" for name in CLASSES for word in words], NOUN_PROMPTS)
    texts = texts.reshape(len(CLASSES), len(words), -1)
    for feature, score in zip(features, scores, strict=True):
        id_logits, all_logits = 20 * classes @ feature, 20 * vectors @ feature
        parts = []
        for group in np.split(np.array([words.index(word) for word in state.words]), 5):
            inside = np.exp(id_logits).sum()
            parts.append(inside / (inside + np.exp(all_logits[group]).sum()))
        best = 0.0
        for p in np.argsort(-id_logits)[:top_classes]:
            for n in np.argsort(-all_logits)[:top_negatives]:
                pair = np.exp(20 * texts[p, n] @ feature)
                best = max(best, pair / (pair + np.exp(all_logits[n])))
        total = np.mean(parts) + weight * best
        assert sigmoid(score) * (1 + weight) == pytest.approx(total, rel=1e-5)


class Counting(ToyEncoder):
    """Counts the prompts that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        self.seen.update(prompts)
        return super().text(prompts)


def test_every_pair_is_encoded_once_and_scores_do_not_depend_on_the_batch(refined: str) -> None:
    world = ToyWorld()
    encoder = world.encoder = Counting()
    method = made(words=refined, groups=5)
    task = world.task().for_method(method.needs)
    state = method.fit(task)
    encoder.seen.clear()
    images = torch.cat([world.id[:12], world.ood[:12]])
    together = method.score(world.batch(images, method.needs), task, state)
    pairs = {prompt for prompt in encoder.seen if " and " in prompt}
    assert pairs and len(pairs) % 8 == 0 and set(encoder.seen.values()) == {1}
    before = sum(encoder.seen.values())
    alone = torch.cat([method.score(world.batch(image[None], method.needs), task, state) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert sum(encoder.seen.values()) == before, "they are in memory"
    with pytest.raises(Exception, match=r"add Needs\.ENCODER"):
        world.task().for_method(Needs.FEATURES).encode(["a and b"], "csp")


def test_the_text_cache_is_bounded_and_drops_the_oldest() -> None:
    encoder = Counting()
    recent = RecentTexts(encoder.text, limit=3)
    first = recent.vectors(["a", "b", "a"], ("the {}",), "raw")
    assert torch.equal(first[0], first[2]) and encoder.seen == {"the a": 1, "the b": 1}
    recent.vectors(["c"], ("the {}",), "raw")
    recent.vectors(["a", "d"], ("the {}",), "raw")  # b is the oldest
    recent.vectors(["a", "c", "d"], ("the {}",), "raw")
    assert encoder.seen == dict.fromkeys(("the a", "the b", "the c", "the d"), 1)
    again = recent.vectors(["b", "a", "e", "f", "g"], ("the {}",), "raw")  # more than the limit at once
    assert encoder.seen["the b"] == 2 and encoder.seen["the a"] == 1
    torch.testing.assert_close(again[0], first[1])
    other = recent.vectors(["g"], ("the {}", "a {}"), "normalised")
    assert encoder.seen["the g"] == 2 and other.shape == (1, 16), "other prompts are other texts"


def test_mined_words_leave_out_class_names_and_rank_by_the_largest_cosine(world: ToyWorld, tmp_path: Path) -> None:
    folder = corpus(tmp_path / "words")
    (folder / "noun.plant.txt").write_text("cactus\nmoss\n")
    method = made(words=f"{folder}/", share=0.5, groups=1)
    state = method.fit(world.task())
    nouns = [word for word in state.chosen if word in _wordnet.read_words(method.words).nouns]
    pool = _wordnet.read_words(method.words, method.exclude).nouns
    largest = (raw_mean(world, pool, NOUN_PROMPTS) @ raw_mean(world, CLASSES, NOUN_PROMPTS).T).max(1)
    largest[pool.index("cactus")] = 1.0
    expected = [pool[i] for i in np.argsort(largest, kind="stable")[: int(0.5 * (len(pool) - 1))]]
    assert set(nouns) == set(expected)


def test_the_released_list_is_read_and_explained(world: ToyWorld, refined: str) -> None:
    method = made(words=refined, groups=5)
    task = world.task().for_method(method.needs)
    state = method.fit(task)
    told = method.explain(world.batch(world.id[:1], method.needs), task, state)
    pairs = told["pairs against the negative word alone"]
    assert len(pairs) == 25 and pairs[0][1] == max(value for _, value in pairs)
    assert all(text.split(" and ")[0] in CLASSES for text, _ in pairs)


@pytest.mark.parametrize("parameters", [{"weight": -1.0}, {"top_classes": 0}, {"top_negatives": 0}])
def test_wrong_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(parameters))):
        made(**parameters)
