"""CSP against a literal implementation in numpy, against NegLabel where they agree, and the counts of its words."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.method.toy import CLASSES, ToyWorld

Floats = npt.NDArray[np.float64]
_wordnet: Any = importlib.import_module("oodbench_methods._wordnet")
NOUN_PROMPTS = (
    "{}",
    "the {}",
    "the good {}",
    "the nice {}",
    "a photo of the nice {}.",
    "a photo with the nice {}.",
    "a good photo with the nice {}.",
    "a close-up photo of the nice {}.",
)
PHRASE_PROMPTS = ("{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}")
EXCLUDED = ("noun.person", "noun.quantity", "noun.group", "adj.pert")
SUPERCLASSES = (
    "area creature environment item landscape object pattern place scene space structure thing view vista".split()
)


def made(name: str = "csp", **parameters: Any) -> Any:
    return registry.make(registry.methods()[name], registry.parameters(registry.methods()[name], parameters))


def corpus(where: Path, seed: int = 0) -> Path:
    """A folder of the layout of the 27 released files, nine words in each, in an order that depends on the seed."""
    where.mkdir()
    for name in _wordnet.FILES:
        words = [f"{name.partition('.')[2]} {i}" for i in range(9)]
        random.Random(seed).shuffle(words)
        (where / f"{name}.txt").write_text("\n".join(words) + "\n")
    return where


def raw_mean(world: ToyWorld, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
    """The mean of features that are not normalised, of unit length afterwards."""
    features = np.stack([world.encoder.text([p.format(text) for text in texts]).double().numpy() for p in prompts])
    mean = features.mean(0)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


@pytest.fixture(scope="module")
def features(world: ToyWorld) -> torch.Tensor:
    pixels = torch.cat([world.id, world.ood])
    return torch.nn.functional.normalize(world.encoder.pixels(pixels), dim=-1)


def batch(world: ToyWorld, method: Any) -> Any:
    return world.batch(torch.cat([world.id, world.ood]), method.needs)


@pytest.mark.parametrize(("share", "near"), [(0.6, 0.95), (0.7, 0.5), (0.3, 1.0)])
def test_the_score_is_the_softmax_over_the_mined_pool(
    share: float, near: float, world: ToyWorld, features: torch.Tensor, tmp_path: Path
) -> None:
    """Pool, mining and score word by word in numpy; only the permutation is the method's own."""
    folder = corpus(tmp_path / "words")
    kept = [name for name in sorted(_wordnet.FILES) if name not in EXCLUDED]
    lines = {name: (folder / f"{name}.txt").read_text().split("\n")[:-1] for name in kept}
    drawn: dict[str, str] = {}
    generator = random.Random(3)
    for name in kept:
        if name.startswith("adj"):
            drawn |= {word: f"{word} {generator.choice(SUPERCLASSES)}" for word in sorted(lines[name])}
    nouns = [word for name in kept if name.startswith("noun") for word in lines[name]]
    phrases = [drawn[word] for name in kept if name.startswith("adj") for word in lines[name]]

    classes = raw_mean(world, CLASSES, NOUN_PROMPTS)
    chosen: list[tuple[str, Floats]] = []
    for texts, prompts in ((nouns, NOUN_PROMPTS), (phrases, PHRASE_PROMPTS)):
        vectors = raw_mean(world, texts, prompts)
        cosines = vectors @ classes.T
        similarity = np.quantile(cosines, 0.95, axis=1)
        if near < 1:
            similarity[cosines.max(1) > near] = 1.0
            assert (similarity == 1).sum() <= len(texts) - int(share * len(texts)), "none of them need be chosen"
            assert (similarity == 1).any() or near == 0.95
        order = np.argsort(similarity, kind="stable")[: int(share * len(texts))]
        chosen += [(texts[i], vectors[i]) for i in order]
    chosen = chosen[: len(chosen) // 5 * 5]

    method = made(words=f"{folder}/", share=share, near=near, draw=3, groups=5)
    task = world.task()
    state = method.fit(task)
    assert set(state.words) == {word for word, _ in chosen}
    where = dict(chosen)
    negatives = np.stack([where[word] for word in state.words])
    np.testing.assert_allclose(state.vectors.numpy(), negatives, atol=1e-6)
    id_side = np.exp(100 * features.double().numpy() @ classes.T)
    parts = []
    for group in np.split(negatives, 5):
        mass = np.exp(100 * features.double().numpy() @ group.T).sum(1)
        parts.append((id_side.sum(1) / (id_side.sum(1) + mass), mass / (id_side.sum(1) + mass)))
    inside, outside = np.mean(parts, axis=0)
    scores = method.score(batch(world, method), task, state).numpy()
    np.testing.assert_allclose(scores, np.log(inside) - np.log(outside), rtol=1e-5, atol=1e-4)
    predicted = method.predict(batch(world, method), task, state).numpy()
    assert (predicted == id_side.argmax(1)).all()


def test_csp_without_its_steps_equals_neglabel(world: ToyWorld, tmp_path: Path) -> None:
    words = f"{corpus(tmp_path / 'words')}/"
    shared: dict[str, Any] = {"words": words, "groups": 7, "share": 0.4, "permutation": 2}
    task = world.task()
    neglabel = made("neglabel", **shared)
    same = made(
        **shared,
        templates="the nice {}",
        noun_templates="the nice {}",
        adjective_templates="This is a {} photo",
        average="normalised",
        exclude=(),
        superclasses=(),
        near=1.0,
    )
    theirs, ours = neglabel.fit(task), same.fit(task)
    assert ours.words == theirs.words
    expected = neglabel.score(batch(world, neglabel), task, theirs)
    torch.testing.assert_close(same.score(batch(world, same), task, ours), expected, rtol=1e-6, atol=1e-5)
    for changed in ({"average": "raw", "templates": "csp"}, {"exclude": ("noun.act",)}, {"superclasses": ("thing",)}):
        parameters = registry.parameters(registry.methods()["csp"], {**vars(same), **changed})
        other = registry.make(registry.methods()["csp"], parameters)
        assert not torch.allclose(other.score(batch(world, other), task, other.fit(task)), expected)


def test_superclasses_depend_only_on_words_and_seed(world: ToyWorld, tmp_path: Path) -> None:
    """The order of lines in the files, which differs between versions, has no effect."""
    pools = [
        set(made(words=f"{corpus(tmp_path / str(seed), seed)}/", share=1.0, near=1.0, groups=1).fit(world.task()).words)
        for seed in (0, 1)
    ]
    assert pools[0] == pools[1]
    folder = f"{tmp_path}/0/"
    first, second = (
        {word for word in made(words=folder, share=1.0, near=1.0, groups=1, draw=draw).fit(world.task()).words}
        for draw in (0, 1)
    )
    assert first == pools[0]
    moved = first ^ second
    assert moved and {word.split()[0] for word in moved} == {"all", "ppl"}


@pytest.mark.parametrize(("released", "nouns", "phrases"), [(True, 46_560, 10_060), (False, 46_421, 11_046)])
def test_counts_of_words_and_prompts(released: bool, nouns: int, phrases: int, shared: Path) -> None:
    folder = shared / "data/lists/neglabel/txtfiles"
    if released and not folder.is_dir():
        pytest.skip("NegLabel's released files are not there")
    method = made(words=f"{folder}/" if released else "release-wn30")
    assert method.text_encodings(1000) == 8 * nouns + 4 * phrases
    words = _wordnet.read_words(method.words, EXCLUDED)
    assert (len(words.nouns), len(words.adjectives)) == (nouns, phrases)
    chosen = int(0.15 * nouns) + int(0.15 * phrases)
    assert (chosen, chosen // 100 * 100) == ((8_493, 8_400) if released else (8_619, 8_600))


def test_selected_words_are_used_as_they_are(world: ToyWorld, tmp_path: Path) -> None:
    """NegRefine's two files, and a file of nouns: nothing is mined, and no superclass is drawn."""
    (tmp_path / "neg_labels_noun.txt").write_text("".join(f"noun {i}\n" for i in range(13)))
    (tmp_path / "neg_labels_adj.txt").write_text("gooey landscape\nrutted creature\n")
    task = world.task()
    both = made(words=f"{tmp_path}/", groups=5)
    assert set(both.fit(task).words) == {*(f"noun {i}" for i in range(13)), "gooey landscape", "rutted creature"}
    assert both.text_encodings(8) == 13 * 8 + 2 * 4
    assert set(made(words=f"{tmp_path}/", groups=6).fit(task).words) == {f"noun {i}" for i in range(12)}
    alone = made(words=f"{tmp_path}/neg_labels_noun.txt", groups=5).fit(task)
    assert set(alone.words) == {f"noun {i}" for i in range(10)}
    where = [both.fit(task).words.index("gooey landscape")]
    expected = raw_mean(world, ["gooey landscape"], PHRASE_PROMPTS)
    np.testing.assert_allclose(both.fit(task).vectors[where].numpy(), expected, atol=1e-6)


def test_id_names_can_be_left_out(world: ToyWorld, tmp_path: Path) -> None:
    folder = corpus(tmp_path / "words")
    (folder / "noun.plant.txt").write_text("cactus\nFern\nfern\nmoss\n")
    settings: dict[str, Any] = {"words": f"{folder}/", "near": 1.0, "groups": 1, "share": 0.99}
    kept, dropped = (set(made(**settings, drop_names=drop).fit(world.task()).words) for drop in (False, True))
    assert not {"cactus", "fern"} & dropped
    nouns = len(_wordnet.read_words(f"{folder}/", made().exclude).nouns)
    assert len(kept) - len(dropped) == int(0.99 * nouns) - int(0.99 * (nouns - 2))  # the fraction of the others


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"words": "lists"}, "written as a path: ./lists"),
        ({"words": "./absent/"}, "is not a folder"),
        ({"exclude": ("noun.persons",)}, "no lexicographer file noun.persons; there are adj.all"),
        ({"quantile": 1.5}, "between 0 and 1"),
        ({"groups": 0}, "at least 1"),
        ({"average": "mean"}, "average"),
    ],
)
def test_wrong_parameters_are_named_before_anything_is_encoded(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        made(**parameters)
