"""NegLabel against the released files, against independent numpy, on real CLIP geometry."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from oodbench.cli.methods import _farthest_first, describe_negatives
from oodbench.data import prompts
from oodbench.errors import UserError
from oodbench.method import Batch, Needs, Sources, Task, registry
from oodbench.method.toy import ToyEncoder
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from

_wordnet: Any = importlib.import_module("oodbench_methods._wordnet")
WORDNET = Path("/usr/share/wordnet")
Floats = npt.NDArray[np.float64]


@functools.cache
def known() -> registry.MethodInfo:
    return registry.methods()["neglabel"]


def neglabel(**parameters: Any) -> Any:
    return registry.make(known(), parameters)


def task(names: Sequence[str], text: Tensor, vectors: dict[str, Tensor] | None = None) -> Task:
    """Class vectors as given; words found by name in `vectors`, or else drawn from their number."""

    def words(asked: tuple[str, ...]) -> Tensor:
        if vectors is not None:
            bare = [p.removeprefix("the nice ").removeprefix("This is a ").removesuffix(" photo") for p in asked]
            return torch.stack([vectors[word] for word in bare])
        drawn = torch.randn(len(asked), text.shape[1], generator=torch.Generator().manual_seed(1))
        return torch.nn.functional.normalize(drawn, dim=-1)

    def nothing() -> Iterable[Batch]:
        return ()

    return Task(names, 100.0, Sources(lambda templates: text, words, ToyEncoder, nothing))


def random_task(k: int = 40) -> Task:
    text = torch.randn(k, 8, generator=torch.Generator().manual_seed(0))
    return task([f"class {i}" for i in range(k)], torch.nn.functional.normalize(text, dim=-1))


def folder(where: Path, nouns: Sequence[str], adjectives: Sequence[str]) -> Path:
    """27 word files: these words in two of them, one word more in each of the others."""
    where.mkdir()
    for name in _wordnet.FILES:
        words = {"noun.plant": nouns, "adj.all": adjectives}.get(name, [nouns[0] if name[0] == "n" else adjectives[0]])
        (where / f"{name}.txt").write_text("\n".join(words) + "\n")
    return where


@pytest.fixture
def released(shared: Path) -> Path:
    path = shared / "data/lists/neglabel"
    if not path.is_dir():
        pytest.skip("NegLabel's released files are not there")
    return path


@pytest.fixture(scope="module")
def lvis() -> Tensor:
    """Real CLIP ViT-B/32 vectors of 1203 names."""
    path = Path(__file__).resolve().parents[3] / "shared/data/embeddings/lvis-clip-vitb32-text.npy"
    if not path.is_file():
        pytest.skip("the embeddings in ../shared are not there")
    return torch.nn.functional.normalize(torch.from_numpy(np.load(path)).float(), dim=-1)


def test_the_released_files_have_the_published_numbers_of_words(released: Path) -> None:
    files = {name: _wordnet.read_lines(released / f"txtfiles/{name}.txt") for name in _wordnet.FILES}
    assert len(files) == len(list((released / "txtfiles").glob("*.txt"))) == 27
    assert sum(map(len, files.values())) == 79_455
    nouns = {word for name in files if name.startswith("noun") for word in files[name]}
    adjectives = {word for name in files if name.startswith("adj") for word in files[name]}
    assert (len(nouns), len(adjectives), len(nouns & adjectives)) == (58_546, 13_091, 1_637)
    corpus = _wordnet.read_words(str(released / "txtfiles"))
    assert set(corpus.adjectives) == adjectives
    assert len(corpus.nouns) + len(corpus.adjectives) == 70_000
    for n, a in ((len(nouns), 70_000 - len(nouns)), (len(corpus.nouns), len(adjectives))):  # either tie rule
        assert sum(neglabel()._counts(n, a)) == 10_499


def test_the_released_rule_selects_10499_words_and_uses_10400(released: Path) -> None:
    path = str(released / "txtfiles")
    assert len(neglabel(words=path, groups=1).fit(random_task()).words) == 10_499
    state = neglabel(words=path).fit(random_task())
    assert len(state.words) == 10_400 == len(set(state.words)) == len(state.vectors)


def test_the_released_selection_is_used_as_it_is(released: Path) -> None:
    path = next((released / "selected_neg_labels").glob("*.txt"))
    lines = path.read_text().splitlines()
    assert sum(line.startswith("the nice ") for line in lines) == 8_578
    assert sum(line.startswith("This is a ") and line.endswith(" photo") for line in lines) == 1_921
    names = {name.casefold() for name in prompts.class_names("imagenet1k").lines}
    nouns = [line.removeprefix("the nice ") for line in lines if line.startswith("the nice ")]
    assert len(names & set(nouns)) == 32
    assert len(neglabel(words=str(path), groups=1).fit(random_task()).words) == 10_499
    state = neglabel(words=str(path)).fit(random_task())
    assert len(state.words) == 10_400
    assert set(state.words[:104]) < {line[9:] for line in lines} | {line[10:-6] for line in lines}
    for parameters in ({"preset": "clean"}, {"num_negatives": 50}):
        with pytest.raises(ValueError, match="already selected"):
            neglabel(words=str(path), **parameters).fit(random_task())


def test_the_shipped_list_follows_from_wordnet() -> None:
    path = Path(_wordnet.__file__).with_name(_wordnet.SHIPPED)
    files = _wordnet.read_list(path)
    assert set(files) == set(_wordnet.FILES)
    assert all(len(words) == len(set(words)) for words in files.values())
    nouns = {word for name in files if name.startswith("noun") for word in files[name]}
    corpus = _wordnet.read_words("release-wn30")
    assert (sum(map(len, files.values())), len(nouns), len(corpus.adjectives)) == (80_356, 58_488, 14_005)
    assert len(corpus.nouns) + len(corpus.adjectives) == 70_768
    assert sum(neglabel()._counts(len(corpus.nouns), len(corpus.adjectives))) == 10_614
    if not (WORDNET / "data.noun").is_file():
        pytest.skip("Debian's wordnet-base is not installed")
    assert _wordnet.written(_wordnet.from_database(WORDNET)) == path.read_text(encoding="utf-8")
    assert _wordnet.read_words(str(WORDNET)) == corpus


def test_mining_on_real_clip_vectors_is_the_paper_s_formula(lvis: Tensor, tmp_path: Path) -> None:
    """Independent numpy: the 0.05 percentile of negative similarities, largest first."""
    k, split = 200, 900
    words = [f"w{i:04}" for i in range(k, len(lvis))]
    nouns, adjectives = words[: split - k], words[split - k :]
    path = folder(tmp_path / "words", nouns, adjectives)
    given = task(words[:k], lvis[:k], dict(zip(words, lvis[k:], strict=True)))
    state = neglabel(words=str(path), groups=10).fit(given)

    exact = lvis.double().numpy()
    distance: Floats = np.percentile(-(exact[k:] @ exact[:k].T), 5, axis=1)
    chosen: list[str] = []
    for part in (nouns, adjectives):
        first = words.index(part[0])
        order = np.argsort(-distance[first : first + len(part)], kind="stable")[: int(0.15 * len(part))]
        chosen += [part[i] for i in order]
    chosen = chosen[: len(chosen) // 10 * 10]
    corpus = _wordnet.read_words(str(path))
    listed = [*corpus.nouns, *corpus.adjectives]
    shuffled = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0)).tolist()
    assert list(state.words) == [listed[i] for i in shuffled if listed[i] in chosen]
    assert torch.equal(state.vectors, torch.stack([lvis[k + words.index(word)] for word in state.words]))
    np.testing.assert_allclose(state.similarity, [-distance[words.index(word)] for word in state.words], atol=1e-6)


@pytest.mark.parametrize("groups", [1, 100])
def test_the_score_is_the_paper_s_softmax(groups: int, lvis: Tensor) -> None:
    k = 203
    given = task([str(i) for i in range(k)], lvis[:k])
    method = neglabel(groups=groups)
    state = type(method.fit(random_task()))(lvis[k:], ("",) * 1000, torch.zeros(1000))
    noise = torch.randn(300, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5
    features = torch.nn.functional.normalize(lvis[::4][:300] + 0.6 * noise, dim=-1)
    score = method.score(Batch(Needs.FEATURES, 300, features), given, state).numpy()

    known = (features @ lvis[:k].T).mul(100).double().numpy()
    shares: list[Floats] = []
    for group in lvis[k:].tensor_split(groups):
        logits = np.concatenate([known, (features @ group.T).mul(100).double().numpy()], axis=1)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        shares.append(powers[:, k:].sum(1) / powers.sum(1))
    unknown: Floats = np.mean(shares, axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(score)), unknown, rtol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-score)), 1 - unknown, rtol=1e-6)


def test_scores_are_finite_and_distinct_at_probabilities_of_1_and_0() -> None:
    """Cosines of -1 and 1 at scale 100: e^-200 is 0 in float32, and S is exactly 1 or 0."""
    angles = torch.linspace(0, torch.pi, 50)
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)
    given = task(["one"], torch.tensor([[1.0, 0.0]]))
    method = neglabel(groups=1)
    state = type(method.fit(random_task()))(torch.tensor([[-1.0, 0.0]]), ("",), torch.zeros(1))
    score = method.score(Batch(Needs.FEATURES, 50, features), given, state)
    assert (score.diff() < 0).all()
    assert score[0].item() == pytest.approx(200)
    assert score[-1].item() == pytest.approx(-200)


def test_the_groups_depend_only_on_the_seed_of_the_permutation(tmp_path: Path) -> None:
    words = str(folder(tmp_path / "words", *([f"{kind} {i}" for i in range(1000)] for kind in ("noun", "adjective"))))
    torch.manual_seed(3)
    one, same, other = (neglabel(words=words, permutation=seed).fit(random_task()) for seed in (0, 0, 1))
    assert one.words == same.words
    assert one.words != other.words
    assert sorted(one.words) == sorted(other.words)


def test_a_file_of_prompts_keeps_its_order_under_the_released_permutation(tmp_path: Path) -> None:
    """As in the released code, columns beyond a multiple of the groups are dropped, and randperm permutes the rest."""
    lines = [f"the nice word {i:02}" for i in reversed(range(58))]
    (tmp_path / "selected.txt").write_text("\n".join(lines))
    state = neglabel(words=str(tmp_path / "selected.txt"), groups=10).fit(random_task())
    torch.manual_seed(0)
    assert list(state.words) == [lines[i].removeprefix("the nice ") for i in torch.randperm(50).tolist()]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], Tensor, Tensor]:
    """Word files, their words, and vectors of which eight are equal at each cut: 60 of 400 nouns, 24 of 160 adjectives.

    With 10 groups, 4 adjectives fall away, so that theirs are cut at 20.
    """
    generator = torch.Generator().manual_seed(4)
    names, vectors = (torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (30, 560))
    words = [f"word {i:03}" for i in torch.randperm(560, generator=generator).tolist()]
    similarity = (vectors @ names.T).quantile(0.95, dim=-1)
    for part, cut in ((slice(0, 400), 60), (slice(400, 560), 20)):
        order = similarity[part].argsort() + part.start
        vectors[order[cut - 4 : cut + 4]] = vectors[order[cut]].clone()
    path = folder(tmp_path_factory.mktemp("crowded") / "words", words[:400], words[400:])
    return str(path), words, names, vectors


def _fitted(crowded: tuple[str, list[str], Tensor, Tensor], moved: float, seed: int = 0) -> Any:
    path, words, *given = crowded
    generator = torch.Generator().manual_seed(seed)
    names, vectors = (one + moved * torch.randn(one.shape, generator=generator) for one in given)

    def nothing() -> Iterable[Batch]:
        return ()

    def in_order(asked: tuple[str, ...]) -> Tensor:
        assert all(word in prompt for word, prompt in zip(words, asked, strict=True))
        return vectors

    classes = [f"class {i}" for i in range(len(names))]
    return neglabel(words=path, groups=10).fit(
        Task(classes, 100.0, Sources(lambda templates: names, in_order, ToyEncoder, nothing))
    )


def test_rounding_moves_no_word_into_another_group(crowded: tuple[str, list[str], Tensor, Tensor]) -> None:
    _, words, names, vectors = crowded
    state = _fitted(crowded, 0.0)
    assert len(state.words) == 80
    for seed in range(50):
        assert _fitted(crowded, 1e-7, seed).words == state.words
    similarity = np.quantile((vectors.double() @ names.double().T).numpy(), 0.95, axis=1)
    for part, cut in ((slice(0, 400), 60), (slice(400, 560), 20)):
        order = np.argsort(similarity[part], kind="stable") + part.start
        equal = sorted(words[i] for i in order[cut - 4 : cut + 4])
        chosen = {words[i] for i in order[: cut - 4]} | set(equal[:4])
        assert set(state.words) & set(words[part]) == chosen, "equal words are taken by their text"


def test_one_more_word_at_the_cut_moves_few_others(crowded: tuple[str, list[str], Tensor, Tensor]) -> None:
    path, words, names, vectors = crowded
    before = _fitted(crowded, 0.0).words
    far = vectors.clone()
    gone = words.index(next(word for word in before if word in words[:400]))
    far[gone] = names.mean(0)
    after = _fitted((path, words, names, torch.nn.functional.normalize(far, dim=-1)), 0.0).words
    assert len(set(before) ^ set(after)) == 2
    for start in range(0, 80, 8):
        assert len(set(before[start : start + 8]) - set(after[start : start + 8])) <= 1


PROCESSOR = """
import dataclasses, json, pathlib, sys, torch
from oodbench.method import Sources, Task, registry
from oodbench.pipeline.events import Watch
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import request_from
from oodbench.pipeline.task import encoder_loader, make_task
from oodbench.storage.store import Store

store, words, threads, times = sys.argv[1:]
torch.set_num_threads(int(threads))
plan = dataclasses.replace(make_plan(request_from(methods="neglabel")), store=Store(pathlib.Path(store)))
task = make_task(plan, encoder_loader(plan, "cpu"), "cpu", Watch())
draw = torch.Generator().manual_seed(0)
kept = {}


def moved(source, asked):
    if asked not in kept:
        kept[asked] = source(asked)
    return kept[asked] + 1e-7 * torch.randn(kept[asked].shape, generator=draw)


method = registry.make(registry.methods()["neglabel"], {"words": words, "groups": 20})
found = [method.fit(task)]
for _ in range(int(times)):
    sources = Sources(lambda one: moved(task.text, one), lambda one: moved(task.words, one), None, None)
    found.append(method.fit(Task(task.classes, task.scale, sources)))
print(json.dumps([[state.words, state.similarity.tolist()] for state in found]))
"""


@pytest.mark.slow
def test_words_and_groups_do_not_depend_on_the_processor(tmp_path: Path) -> None:
    """Every 20th shipped word, encoded with other instructions and threads, and perturbed by 1e-7."""
    corpus = _wordnet.read_words(_wordnet.OWN_LIST)
    words = folder(tmp_path / "words", corpus.nouns[::20], corpus.adjectives[::20])
    found: list[tuple[list[str], list[float]]] = []
    for capability, threads, times in (("default", "1", "0"), ("avx2", "2", "50")):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-c", PROCESSOR, str(tmp_path / capability), str(words), threads, times]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found += json.loads(done.stdout)
    assert len(found) == 52 and len(found[0][0]) == 520
    assert all(chosen == found[0][0] for chosen, _ in found)
    rounding = np.abs(np.array([similarity for _, similarity in found]) - found[0][1]).max()
    tie = importlib.import_module("oodbench_methods._negatives").TIE
    assert 0 < rounding < tie / 5, "the encoder rounds by less than the rule allows"


def test_the_clean_preset_excludes_class_names_and_keeps_m_words(tmp_path: Path) -> None:
    nouns = ["Class 1", "class 2", *(f"noun {i}" for i in range(300))]
    path = str(folder(tmp_path / "words", nouns, ["class 3", *(f"adjective {i}" for i in range(100))]))
    clean = neglabel(preset="clean", words=path, num_negatives=400, groups=7).fit(random_task())
    assert set(clean.words) == {*(f"noun {i}" for i in range(300)), *(f"adjective {i}" for i in range(100))}
    with pytest.raises(ValueError, match="num_negatives=401 of 400 words"):
        neglabel(preset="clean", words=path, num_negatives=401).fit(random_task())
    release = neglabel(words=path, share=1.0, groups=7).fit(random_task())
    assert len(release.words) == 403 // 7 * 7


def test_the_presets_differ() -> None:
    release, clean = (neglabel(preset=preset).fit(random_task()) for preset in ("release", "clean"))
    assert len(release.words) == 10_600  # 8,514 nouns and 2,100 adjectives, without the last 14
    assert len(clean.words) == 10_000
    assert len(neglabel(num_negatives=1_234).fit(random_task()).words) == 1_200
    assert len(neglabel(preset="clean", num_negatives=1_234).fit(random_task()).words) == 1_234


def test_wrong_parameters_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "some").mkdir()
    (tmp_path / "some/adj.all.txt").write_text("good\n")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"words": str(tmp_path / "absent")}, "is not a folder"),
        ({"words": "lists"}, "written as a path: ./lists"),
        ({"words": str(tmp_path / "some")}, r"lacks adj\.pert, adj\.ppl, noun\.Tops, \.\.\. \(\.txt\): 26 of 27"),
        ({"words": str(tmp_path / "empty.txt")}, "is empty"),
        ({"groups": 0}, "at least 1"),
        ({"groups": 20_000}, "cannot fill groups=20000"),
        ({"quantile": 1.5}, "between 0 and 1"),
        ({"num_negatives": 10**6}, "num_negatives=1000000 of 70768 words"),
        ({"nouns": "the nice"}, "contain {} once"),
    ]
    for parameters, message in wrong:
        with pytest.raises(ValueError, match=message):
            neglabel(**parameters).fit(random_task())


def test_words_whose_printed_similarities_are_equal_are_listed_by_text() -> None:
    found = _farthest_first([0.50002, 0.49, 0.50001, 0.49996, -1e-9], ["b", "z", "c", "a", "y"])
    assert [f"{value:.4f} {word}" for value, word in found] == [
        "0.0000 y",
        "0.4900 z",
        "0.5000 a",
        "0.5000 b",
        "0.5000 c",
    ]


@pytest.mark.slow
def test_the_listing_names_the_words_that_are_class_names(tmp_path: Path) -> None:
    path = folder(tmp_path / "words", ["Anchor", "jupiter", "ordinary noun"], ["green", "spiral"])
    settings = [f"neglabel.words={path}", "neglabel.share=1.0", "neglabel.groups=1"]
    told = describe_negatives(make_plan(request_from(methods="neglabel", settings=settings))).splitlines()
    assert "5 negative words for Glyphs" in told[0]
    assert "  ID: 1 of 50: anchor" in told
    assert "  Textures: 1 of 24: spiral" in told
    assert "  Digits: class names are unknown" in told
    assert sum(line.endswith("  Anchor  [ID]") for line in told) == 1
    listed = [(float(line.split()[0]), line[9:]) for line in told[-5:]]
    assert listed == sorted(listed)
    with pytest.raises(UserError, match="mcm mines no words; neglabel does"):
        describe_negatives(make_plan(request_from(methods="mcm")))
