"""ZOC: scores against a plain re-implementation, decoders, training, weights, switches of the release."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Int64
from torch import Tensor

from oodbench.method import Batch, MethodResources, Needs, Pairs, Task, TrainedMethod, Weights, registry
from oodbench.method.toy import CLASSES, DEPTH, TOKENS, ToyEncoder, ToyWorld
from oodbench.pipeline import weights

INFO = registry.methods()["zoc"]
START, END = TOKENS - 2, TOKENS - 1
THINGS = 40  # named by captions in addition to the classes
TINY: dict[str, Any] = {"decoder": "bert", "width": 2 * DEPTH, "layers": 2, "heads": 4}


class Spelling(ToyEncoder):
    """A toy CLIP whose tokens have the same text in both directions: "a photo of a word9" has the subject token 9."""

    def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
        return torch.tensor([[START, self._word(p), END, 0] for p in prompts])

    @staticmethod
    def _word(prompt: str) -> int:
        last = prompt.split(" ")[-1]
        return CLASSES.index(last) if last in CLASSES else int(last.removeprefix("word").rpartition(">")[2] or 0)

    def text(self, prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            vectors: Tensor = self.text_tower().token_embedding(self.tokenize(prompts)[:, 1])
            return vectors

    def detokenize(self, token: int) -> str:
        return {START: "<start>", END: "<end>"}.get(token, super().detokenize(token) + " ")


def zoc(**parameters: Any) -> TrainedMethod[Any]:
    made = registry.make(INFO, registry.parameters(INFO, parameters))
    assert isinstance(made, TrainedMethod)
    return made


def pairs(encoder: ToyEncoder, step: int = 0) -> Pairs:
    """Every class and thing twice, images near their texts."""
    names = 2 * [*CLASSES, *(f"word{i}" for i in range(len(CLASSES), len(CLASSES) + THINGS))]
    noise = torch.randn(len(names), DEPTH, generator=torch.Generator().manual_seed(step))
    near = torch.nn.functional.normalize(encoder.text(names), dim=-1) + 0.05 * noise
    captions = tuple(f"a photo of a {name}" for name in names)
    return Pairs(3 * near, captions, torch.arange(len(names)), step, seed=0, size=len(names))


def train(
    method: TrainedMethod[Any], encoder: ToyEncoder, steps: int = 60, lr: float = 1e-2
) -> tuple[Any, list[float]]:
    torch.manual_seed(0)
    module = method.module(encoder).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        loss = sum(method.loss(method.embed(module, method.inputs(pairs(encoder, step), encoder))).values())
        assert isinstance(loss, Tensor)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    return module, losses


def task(encoder: ToyEncoder, given: Weights) -> Task:
    world = ToyWorld()
    world.encoder = encoder
    return world.task().for_method(~Needs(0), MethodResources(lambda: given, lambda depends, make: make()))


def batch(embeddings: Tensor) -> Batch:
    features = torch.nn.functional.normalize(embeddings, dim=-1)
    return Batch(INFO_NEEDS, len(embeddings), features, embeddings)


def images(encoder: ToyEncoder) -> Tensor:
    """One of each class, then one of each thing."""
    given = pairs(encoder, 1000)
    return given.embeddings[: len(given.captions) // 2]


INFO_NEEDS = Needs.FEATURES | Needs.WEIGHTS


@pytest.fixture(scope="module")
def trained() -> Any:
    return train(zoc(), Spelling())


@pytest.fixture(scope="module")
def fitted(trained: Any) -> Task:
    return task(Spelling(), Weights(trained[0].state_dict(), {}))


def plain(method: Any, module: Any, embedding: Tensor, given: Task) -> tuple[float, set[str]]:
    """The released algorithm: one image, no cache, every token decoded and every prompt encoded for it.

    Returns the mass on the candidates, and their strings.
    """
    encoder = given.encoder
    corrected = method.preset == "corrected"
    output = module.output_layer()
    tokens, found = [module.start], []
    for _ in range(method.steps):
        positions = torch.arange(len(tokens)) if corrected else torch.zeros(len(tokens), dtype=torch.int64)
        hidden = module.hidden(embedding[None], torch.tensor([tokens]), positions)[0, -1]
        logits = (output.matrix @ hidden + output.bias).tolist()
        order = sorted(range(len(logits)), key=lambda i: -logits[i])[: method.k]
        found += [int(output.ids[i]) for i in order]
        tokens.append(int(output.ids[order[0]]))
    names = {encoder.detokenize(token).strip() for token in found}
    if corrected:
        names -= {"<start>", "<end>", ""}
    if method.remove_seen:
        names -= set(given.classes)
    prompts = [f"This is a photo of a {name}" for name in (*given.classes, *(names - {"<end>"}))]
    text = torch.nn.functional.normalize(encoder.text(prompts), dim=-1).double().numpy()
    if "<end>" in names:
        text = np.concatenate([text, END_VECTOR])
    image = torch.nn.functional.normalize(embedding, dim=-1).double().numpy()
    powers = np.exp(100 * (text @ image - 1))
    return float(powers[len(given.classes) :].sum() / powers.sum()), names


END_VECTOR = np.eye(1, DEPTH)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"k": 3, "steps": 2}, {"k": 1000}, {"remove_seen": False, "k": 5}, {"preset": "release", "k": 2}],
)
def test_the_score_equals_the_paper_s_formula(
    parameters: dict[str, Any], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batched and cached against one by one, with Python's sets."""

    class Ending(Spelling):
        def text(self, prompts: Sequence[str]) -> Tensor:
            """A prompt of the end token has a vector of its own."""
            ends = [p.endswith("<end>") for p in prompts]
            vectors = super().text(["word9" if end else p for p, end in zip(prompts, ends, strict=True)])
            vectors[ends] = torch.from_numpy(END_VECTOR).float()
            return vectors

    method, given = zoc(**parameters), task(Ending(), Weights(trained[0].state_dict(), {}))
    shown = images(Spelling())[::3]
    with torch.no_grad():
        state = method.fit(given)
        scores = method.score(batch(shown), given, state).numpy()
        candidates = method.candidates(shown, state)  # type: ignore[attr-defined]
        for row, embedding in enumerate(shown):
            mass, names = plain(method, state.decoder, embedding, given)
            assert {state.names.strings[i] for i in candidates[row].nonzero()[:, 0].tolist()} == names
            np.testing.assert_allclose(1 / (1 + np.exp(scores[row])), mass, rtol=1e-4)
    assert ("<end>" in state.names.strings) == ("preset" in parameters)


class Scripted(torch.nn.Module):
    """A decoder with given logits: row 0 after the start, row i + 1 after token i."""

    start = 9

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(logits)

    def hidden(self, embeddings: Tensor, tokens: Tensor, positions: Tensor, memory: Any = None) -> Tensor:
        return self.rows[(tokens + 1) % 10]

    def output_layer(self) -> Any:
        OutputLayer = vars(sys.modules["oodbench_methods._label_decoder"])["OutputLayer"]
        m = self.rows.shape[1]
        return OutputLayer(torch.arange(m), torch.eye(m), torch.zeros(m))


def test_strings_are_merged_and_seen_names_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens 0 and 1 are "owl" twice, 2 is a class, 3 empty, 4 a comma, 5 another class's piece."""
    strings = ["owl ", "owl", "drum ", " ", ",", "anch", "never"]

    class Hand(Spelling):
        def detokenize(self, token: int) -> str:
            return strings[token] if token < len(strings) else super().detokenize(token)

        def text(self, prompts: Sequence[str]) -> Tensor:
            words = ["owl", "anch", ",", "never", "", "drum"]
            order = [p.split(" ")[-1] for p in prompts]
            return torch.stack([torch.eye(DEPTH)[words.index(w) if w in words else 10] for w in order])

    first = [5.0, 4.0, 3.0, 2.0, -1.0, -2.0, -9.0]
    after_owl = [0.0, 0.0, 1.0, 0.5, 3.0, 2.5, -9.0]
    after_comma = [4.0, 1.0, 0.0, 0.0, 2.0, 2.0, -9.0]
    rows = [first, after_owl, first, first, first, after_comma, first, first, first, first]
    decoder = Scripted(rows)
    zoc_module = sys.modules[type(zoc()).__module__]
    monkeypatch.setattr(zoc_module, "Decoder", torch.nn.Module)
    embedding = torch.zeros(1, DEPTH)
    embedding[0, :3] = torch.tensor([0.5, 0.2, 0.8])

    class Given(Weights):
        def load(self, module: torch.nn.Module) -> torch.nn.Module:
            return decoder

    given = task(Hand(), Given({}, {}))
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"k": 4, "steps": 1}, {"owl"}),
        ({"k": 2, "steps": 2}, {"owl", ",", "anch"}),
        ({"k": 2, "steps": 3}, {"owl", ",", "anch"}),
        ({"k": 4, "steps": 1, "specials": True}, {"owl", ""}),
        ({"k": 4, "steps": 1, "remove_seen": False}, {"owl", "drum"}),
        ({"k": 4, "steps": 1, "preset": "release", "remove_seen": False}, {"owl", "drum", ""}),
    ]
    for parameters, names in cases:
        method = zoc(**parameters)
        state = method.fit(given)
        candidates = method.candidates(embedding, state)[0]  # type: ignore[attr-defined]
        assert {state.names.strings[i] for i in candidates.nonzero()[:, 0].tolist()} == names, parameters
    state = (method := zoc(k=2, steps=2)).fit(given)
    image = (embedding[0] / embedding.norm()).double().numpy()
    seen = 7 * np.exp(100 * image[10]) + np.exp(100 * image[5])
    rivals = sum(np.exp(100 * image[i]) for i in (0, 1, 2))
    np.testing.assert_allclose(method.score(batch(embedding), given, state).item(), np.log(seen / rivals), rtol=1e-6)


def test_an_image_without_a_candidate_scores_highest(fitted: Task) -> None:
    """With one token per step the class name is often the only candidate; none is left, and the score is finite."""
    method = zoc(k=1, steps=1)
    state, shown = method.fit(fitted), images(Spelling())
    with torch.no_grad():
        empty = ~method.candidates(shown, state).any(-1)  # type: ignore[attr-defined]
        scores = method.score(batch(shown), fitted, state)
    assert 0 < empty.sum() < len(shown)
    assert scores.isfinite().all()
    assert scores[empty].min() > scores[~empty].max()


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{}, pytest.param(TINY, marks=pytest.mark.slow)])
def test_cached_keys_change_no_token(parameters: dict[str, Any]) -> None:
    """All images together with cached keys, and each alone, the whole sequence again: the same ids, step by step."""
    if parameters:
        pytest.importorskip("transformers", reason="decoder=bert needs the extra hf")
    encoder = Spelling()
    module = train(zoc(**parameters), encoder, 15)[0].eval()
    parts = vars(sys.modules["oodbench_methods._label_decoder"])
    for one_position in (False, True):
        with torch.no_grad():
            output, shown = module.output_layer(), images(encoder)[:12]
            cached = output.ids[parts["top_tokens"](module, output, shown, parts["GreedyDecoding"](9, 4, one_position))]
            for row, embedding in enumerate(shown):
                tokens = [module.start]
                for step in range(9):
                    positions = torch.arange(len(tokens)) * (not one_position)
                    hidden = module.hidden(embedding[None], torch.tensor([tokens]), positions)[0, -1]
                    top = output.ids[(output.matrix @ hidden + output.bias).topk(4).indices]
                    assert torch.equal(cached[row, 4 * step : 4 * step + 4], top)
                    tokens.append(int(top[0]))


def test_training_learns_the_names_of_other_things(trained: Any, fitted: Task) -> None:
    """The loss decreases towards ln 1; the word of an OOD image is then its best candidate."""
    losses, method, shown = trained[1], zoc(k=3), images(Spelling())
    assert losses[0] == pytest.approx(np.log(TOKENS), rel=0.2)
    assert losses[-1] < 0.5
    state = method.fit(fitted)
    assert set(state.names.strings) == {
        f"word{i}" for i in range(len(CLASSES), len(CLASSES) + THINGS)
    }  # no word unseen
    with torch.no_grad():
        candidates = method.candidates(shown, state)  # type: ignore[attr-defined]
        scores = method.score(batch(shown), fitted, state)
    things = [f"word{i}" for i in range(len(CLASSES), len(CLASSES) + THINGS)]
    hits = [candidates[len(CLASSES) + i, state.names.strings.index(word)].item() for i, word in enumerate(things)]
    assert np.mean(hits) > 0.9
    assert scores[: len(CLASSES)].min() > scores[len(CLASSES) :][torch.tensor(hits)].max()


def test_weights_written_and_read_score_the_same(trained: Any, fitted: Task, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "zoc.safetensors"
    weights.write(path, trained[0].state_dict(), {"method": "zoc"})
    assert weights.recipe_of(path)["method"] == "zoc"
    assert "table" not in load_file(path)  # CLIP's own is not saved
    back = task(Spelling(), Weights(load_file(path), {}))
    method, shown = zoc(), batch(images(Spelling()))
    assert torch.equal(
        method.score(shown, back, method.fit(back)),
        method.score(shown, fitted, method.fit(fitted)),
    )
    half = task(Spelling(), Weights({name: x.half().float() for name, x in trained[0].state_dict().items()}, {}))
    assert method.fit(half).names.strings == method.fit(fitted).names.strings
    with pytest.raises(ValueError, match="weights do not fit"):
        zoc(layers=3).fit(fitted)
    untrained = zoc().module(Spelling())
    with pytest.raises(ValueError, match="knows no name other than the class names"):
        zoc().fit(task(Spelling(), Weights(untrained.state_dict(), {})))


def test_an_image_s_score_does_not_depend_on_the_others(fitted: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    method, shown = zoc(), images(Spelling())
    state = method.fit(fitted)
    with torch.no_grad():
        whole = method.score(batch(shown), fitted, state)
        alone = torch.cat([method.score(batch(one[None]), fitted, state) for one in shown])
        monkeypatch.setattr(sys.modules[type(method).__module__], "CHUNK", 7 * len(state.output.ids))
        parts = method.score(batch(shown), fitted, state)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-4)


def test_the_loss_over_parts_is_cross_entropy() -> None:
    """In parts of two rows, against torch, with gradients of all three and rows weighted differently."""
    zoc()  # loads the package
    module = sys.modules["oodbench_methods._token_loss"]
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((11, 5), (30, 5), (30,))]
    targets, heavy = torch.randint(30, (11,)), torch.rand(11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", 60)
        ours = module.token_loss(*tensors, targets)
        found = torch.autograd.grad((ours * heavy).sum(), tensors)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    logits = exact[0] @ exact[1].T + exact[2]
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(ours.double(), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module.token_loss(*tensors, targets)
    torch.testing.assert_close(rough.double(), wanted, rtol=0.02, atol=0.1)
    (by_bias,) = torch.autograd.grad((rough * heavy).sum(), tensors[2])
    torch.testing.assert_close(by_bias, found[2], rtol=0, atol=0.05)
    for a, b in zip(found, torch.autograd.grad((wanted * heavy).sum(), exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_chunks_and_padding_change_nothing() -> None:
    """Captions of several lengths: each chunk is padded to its own longest; nll, loss and gradient are the whole's."""

    class Long(Spelling):
        def tokenize(self, prompts: Sequence[str]) -> Int64[Tensor, "k n"]:
            words = [[int(word) for word in prompt.split()] for prompt in prompts]
            return torch.tensor([[START, *ids, END, *[0] * (9 - len(ids))] for ids in words])

    encoder, method = Long(), zoc()
    captions: tuple[str, ...] = ("1 2 3", "4", "", "5 6 7 8 9", "1 1", "0 0 0")
    embeddings = torch.randn(6, DEPTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = method.module(encoder)

    def embedded(rows: slice) -> dict[str, Tensor]:
        given = Pairs(embeddings[rows], captions[rows], torch.arange(6)[rows], 0, 0, 6)
        inputs = method.inputs(given, encoder)
        longest = max(len(caption.split()) for caption in captions[rows]) + 2
        assert inputs["tokens"].shape == (len(captions[rows]), longest)
        return dict(method.embed(module, inputs))

    whole, parts = embedded(slice(0, 6)), [embedded(slice(0, 3)), embedded(slice(3, 6))]
    assert whole["count"].tolist() == [4, 2, 1, 6, 3, 4]
    joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
    torch.testing.assert_close(joined, whole)
    parameters = list(module.parameters())
    grads = [torch.autograd.grad(method.loss(x)["caption"], parameters, retain_graph=True) for x in (whole, joined)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert {int(i) for i in grads[0][[n for n, _ in module.named_parameters()].index("seen")].nonzero()[:, 0]} == {
        *range(10),
        END,
    }
    cut = zoc(length=10).inputs(Pairs(embeddings[3:4], ("1 2 3 4 5 6 7 8 9",), torch.arange(1), 0, 0, 1), encoder)
    assert cut["tokens"].tolist() == [[START, *range(1, 10)]]


def test_integers_truncates_only_the_embeddings_of_training(trained: Any, fitted: Task) -> None:
    given, encoder = pairs(Spelling()), Spelling()
    assert torch.equal(zoc().inputs(given, encoder)["embeddings"], given.embeddings)
    cut = zoc(integers=True).inputs(given, encoder)["embeddings"]
    assert torch.equal(cut, torch.from_numpy(given.embeddings.numpy().astype(np.int64)).float())
    assert "integers" in INFO.trained
    shown = batch(images(encoder))
    scores = [m.score(shown, fitted, m.fit(fitted)) for m in (zoc(), zoc(integers=True))]
    assert torch.equal(*scores)


def test_the_optimiser_follows_the_decoder() -> None:
    small, bert = zoc().optimisation(), zoc(decoder="bert").optimisation()
    assert (bert.lr, bert.batch, bert.epochs, bert.cosine, bert.warmup) == (1e-5, 128, 25, False, 0)
    assert (bert.betas, bert.eps, bert.weight_decay, bert.epsilon_hat) == ((0.9, 0.999), 1e-6, 0.0, True)
    assert (small.lr, small.epsilon_hat) == (2e-3, False)
    assert zoc().optimiser == small


def test_wrong_parameters_are_named(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "k=0 and steps=9 must be at least 1"),
        ({"length": 9}, "length=9 above steps"),
        ({"tokenizer": "/nowhere"}, "belong to decoder=bert"),
        ({"width": 30, "heads": 4}, "width=30 must be a multiple of heads=4"),
        ({"layers": -1}, "must not be negative"),
    ]
    for parameters, message in wrong:
        with pytest.raises(ValueError, match=message):
            zoc(**parameters).module(Spelling())


def test_bert_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'oodbench\[hf\]'"):
        zoc(**TINY).module(Spelling())


@pytest.mark.slow
def test_bert_learns_and_scores(tmp_path: Path) -> None:
    """A tiny BertGenerationDecoder over CLIP's byte pairs, through a file."""
    pytest.importorskip("transformers", reason="decoder=bert needs the extra hf")
    from safetensors.torch import load_file

    encoder, method = Spelling(), zoc(**TINY, k=3)
    module, losses = train(method, encoder, 60, 3e-3)
    assert losses[-1] < 0.5 * losses[0]
    weights.write(tmp_path / "bert.safetensors", module.state_dict(), {})
    given = task(encoder, Weights(load_file(tmp_path / "bert.safetensors"), {}))
    with torch.no_grad():
        state = method.fit(given)
        assert len(state.output.ids) == TOKENS  # it may generate any token
        scores = method.score(batch(images(encoder)), given, state)
    assert scores.isfinite().all()
    assert scores[: len(CLASSES)].mean() > scores[len(CLASSES) :].mean()


@pytest.mark.slow
def test_bert_starts_from_a_folder_and_reads_its_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="decoder=bert needs the extra hf")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "owl", "bell"])}
    pieces = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(tmp_path / "tokens")
    size = {"hidden_size": 2 * DEPTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8 * DEPTH}
    released = transformers.BertGenerationEncoder(transformers.BertGenerationConfig(vocab_size=len(words), **size))
    released.save_pretrained(tmp_path / "init")
    method = zoc(**TINY, tokenizer=str(tmp_path / "tokens"), init=str(tmp_path / "init"))
    encoder = Spelling()
    module = method.module(encoder)
    own, theirs = module.state_dict(), released.state_dict()
    assert all(torch.equal(own[f"bert.{name}"], x) for name, x in theirs.items())
    assert any("crossattention" in name for name in own)
    given = Pairs(torch.ones(2, DEPTH), ("a photo of a owl", "bell"), torch.arange(2), 0, 0, 2)
    inputs = method.inputs(given, encoder)
    assert inputs["tokens"].tolist() == [[1, 4, 5, 6, 4, 7, 2], [1, 8, 2, -1, -1, -1, -1]]
    assert method.loss(method.embed(module, inputs))["caption"].item() == pytest.approx(np.log(len(words)), rel=0.2)

    class Words(Spelling):
        def text(self, prompts: Sequence[str]) -> Tensor:
            return torch.stack([torch.eye(DEPTH)[len(p) % DEPTH] for p in prompts])

    state = method.fit(task(Words(), Weights(own, {})))
    assert set(state.names.strings) == {"a", "photo", "of", "owl"}  # "bell" is a class
    with pytest.raises(ValueError, match="does not fit"):
        zoc(**{**TINY, "layers": 3}, tokenizer=str(tmp_path / "tokens"), init=str(tmp_path / "init")).module(encoder)
    with pytest.raises(ValueError, match="not a multiple of the embedding's 16"):
        zoc(**{**TINY, "width": 24}).module(encoder)
    with pytest.raises(ValueError, match="is not a folder"):
        zoc(**TINY, tokenizer=str(tmp_path / "absent")).module(encoder)
