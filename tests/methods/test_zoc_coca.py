"""ZOC (CoCa): captions and scores against open_clip's model, one image at a time; other encoders; the CLI."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.cli.run import plan_text
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.method import Batch, Needs, Sources, Task, registry
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.storage.store import Store

INFO = registry.methods()["zoc_coca"]
NEEDS = Needs.FEATURES | Needs.PIXELS | Needs.ENCODER | Needs.CAPTIONS
CONFIG: dict[str, Any] = {
    "embed_dim": 16,  # that of the multimodal tower: open_clip maps nothing between them
    "vision_cfg": {
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
        "image_size": 32,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "attn_pooler_heads": 2,
    },
    "custom_text": True,
}
START, END = 49406, 49407
PROMPT = "This is a photo of a {}"


def random_coca() -> Any:
    """open_clip's own, with seeded weights that make images differ and captions go on."""
    torch.manual_seed(1)
    model = open_clip.CoCa(**{k: v for k, v in CONFIG.items() if k != "custom_text"}).eval().requires_grad_(False)
    model.text_decoder.text_projection.normal_()  # open_clip leaves it as the memory was
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An --encoder of a JSON config and a checkpoint."""
    folder = tmp_path_factory.mktemp("coca")
    (folder / "small.json").write_text(json.dumps(CONFIG))
    save_file({k: v.contiguous() for k, v in random_coca().state_dict().items()}, folder / "small.safetensors")
    return f"{folder}/small.json@{folder}/small.safetensors"


@pytest.fixture(scope="module")
def ours(spec: str, tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return OpenClip(resolve(parse_encoder(spec), None, Store(tmp_path_factory.mktemp("s"))), "cpu", "fp32")


@pytest.fixture(scope="module")
def theirs(ours: OpenClip) -> Any:
    """The intact model, which takes normalised images."""
    return random_coca()


@pytest.fixture(scope="module")
def shown() -> Tensor:
    """Six images in [0, 1] that are not alike."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(6, 3, 1, 1, generator=generator) * torch.rand(6, 3, 32, 32, generator=generator)).sqrt()


@pytest.fixture(scope="module")
def words(ours: OpenClip) -> Callable[[tuple[str, ...]], Tensor]:
    """Unit vectors of prompts, each encoded once for all tests."""
    known: dict[str, Tensor] = {}

    def vectors(prompts: tuple[str, ...]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            known.update(zip(new, normalize(ours.text(new), dim=-1), strict=True))
        return torch.stack([known[prompt] for prompt in prompts])

    return vectors


def normalised(encoder: OpenClip, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.card.mean, encoder.card.std))
    return (images - mean) / std


def logits(model: Any, image: Tensor, tokens: list[int]) -> Tensor:
    """Return the logits of the next token from open_clip's complete model."""
    found: Tensor = model(image, torch.tensor([tokens]), output_labels=False)["logits"][0, -1]
    return found


def zoc_coca(**parameters: Any) -> Any:
    return registry.make(INFO, registry.parameters(INFO, parameters))


def task(encoder: OpenClip, classes: tuple[str, ...], words: Callable[[tuple[str, ...]], Tensor]) -> Task:
    def text(templates: str) -> Tensor:
        return words(tuple(templates.replace("{}", name) for name in classes))

    return Task(classes, encoder.scale, Sources(text, words, lambda: encoder, list))


def batch(encoder: OpenClip, images: Tensor) -> Batch:
    embeddings = encoder.pixels(images)
    return Batch(NEEDS, len(images), normalize(embeddings, dim=-1), embeddings, None, images)


def test_captions_are_those_of_the_intact_model(ours: OpenClip, theirs: Any, shown: Tensor) -> None:
    """The cut of the image tower's projection, and images taken together, change no logit."""
    captioner = ours.captioner()
    assert captioner.vocabulary == 49408
    encoded = captioner.encode(shown)
    # 0 is "!", which CoCa takes for padding
    rows = torch.tensor([[START, 320, 0, 1125], [START, 0, 0, 539], *([START, 1000 + i, i, END] for i in range(4))])
    for n in range(1, 5):
        found = captioner.next_token_logits(encoded, rows[:, :n])
        expected = torch.stack(
            [logits(theirs, normalised(ours, x[None]), r[:n].tolist()) for x, r in zip(shown, rows, strict=True)]
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert float(expected.std(0).max()) > 1e-2 * float(expected.abs().max())  # the images differ


def plain(
    method: Any, model: Any, encoder: OpenClip, image: Tensor, classes: tuple[str, ...]
) -> tuple[float, set[str]]:
    """One image, nothing kept, Python's sets: the mass on the candidates, and their strings."""
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    image = normalised(encoder, image[None])
    tokens, found = [START], []
    for _ in range(method.steps):
        values = logits(model, image, tokens).tolist()
        order = sorted(range(len(values)), key=lambda i: -values[i])[: method.k]
        found += order
        tokens.append(order[0])
    names = {tokenizer.decode([token]).strip() for token in found}
    if not method.specials:
        names -= {"<start_of_text>", "<end_of_text>", ""}
    if method.remove_seen:
        names -= set(classes)
    prompts = [PROMPT.replace("{}", name) for name in (*classes, *sorted(names))]
    text = model.encode_text(tokenizer(prompts), normalize=True).double().numpy()
    powers = np.exp(100 * (text @ model.encode_image(image, normalize=True)[0].double().numpy() - 1))
    return float(powers[len(classes) :].sum() / powers.sum()), names


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 3, "steps": 2},
        {},
        {"k": 6, "remove_seen": False},
        {"k": 200, "steps": 12, "specials": True},
    ],
)
@pytest.mark.slow
def test_the_score_equals_the_paper_s_formula(
    parameters: dict[str, Any], ours: OpenClip, theirs: Any, shown: Tensor, words: Callable[..., Tensor]
) -> None:
    first = logits(theirs, normalised(ours, shown[:1]), [START]).topk(2).indices.tolist()
    classes = ("cat", *(ours.detokenize(token).strip() for token in first))
    method, given = zoc_coca(**parameters), task(ours, classes, words)
    with torch.no_grad():
        state = method.fit(given)
        scores = method.score(batch(ours, shown), given, state).numpy()
        said = method.candidates(shown, given, state)
    sets = []
    for row, image in enumerate(shown):
        mass, names = plain(method, theirs, ours, image, classes)
        assert {state.strings[i] for i in said[row].nonzero()[:, 0].tolist()} == names
        np.testing.assert_allclose(1 / (1 + np.exp(scores[row])), mass, rtol=1e-3)
        sets.append(names)
    assert method.remove_seen or set(classes[1:]) <= sets[0]
    assert len({frozenset(names) for names in sets}) > 1


@pytest.mark.slow
def test_an_image_s_score_does_not_depend_on_the_others(
    ours: OpenClip, shown: Tensor, words: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given = zoc_coca(k=5), task(ours, ("cat", "dog"), words)
    with torch.no_grad():
        state = method.fit(given)
        whole = method.score(batch(ours, shown), given, state)
        alone = torch.cat([method.score(batch(ours, one[None]), given, state) for one in shown])
        monkeypatch.setitem(vars(sys.modules[type(method).__module__]), "IMAGES", 4)
        parts = method.score(batch(ours, shown), given, state)
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_stored_vectors_are_shared_by_all_class_lists(ours: OpenClip) -> None:
    """The prompts asked for are the same, in the same order, whatever the class names."""
    asked = []

    def words(prompts: tuple[str, ...]) -> Tensor:
        asked.append(prompts)
        return torch.ones(len(prompts), 2)

    states = [zoc_coca().fit(task(ours, classes, words)) for classes in (("cat",), ("dog", "tree"))]
    assert asked[0] == asked[1]
    assert "cat" not in states[0].strings and "cat" in states[1].strings
    assert not {"", "<start_of_text>", "<end_of_text>"} & set(states[0].strings)


@pytest.mark.slow
def test_a_caption_longer_than_the_context_is_named(
    ours: OpenClip, shown: Tensor, words: Callable[..., Tensor]
) -> None:
    method, given = zoc_coca(steps=13), task(ours, ("cat",), words)
    with pytest.raises(UserError, match="13 tokens is longer than the encoder's context of 12"):
        method.candidates(shown, given, method.fit(given))
    with pytest.raises(ValueError, match="k=0 and steps=9 must be at least 1"):
        zoc_coca(k=0).fit(given)


@pytest.mark.slow
def test_an_encoder_without_captions_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it is named, one line says which encoders can; in `all` it is skipped, as --dry-run and -v report."""
    said = "glyphs does not write captions; use a CoCa, such as --encoder coca_ViT-B-32/laion2b_s13b_b90k"
    with pytest.raises(UserError) as error:
        make_plan(RunRequest(methods="zoc_coca[k=3],mcm", limit=8, store=tmp_path))
    assert str(error.value) == f"zoc_coca[k=3]: {said}"
    with caplog.at_level(logging.INFO, "oodbench"):
        plan = make_plan(RunRequest(limit=8, store=tmp_path))
    assert plan.incompatible_methods == (("zoc_coca", said),) and not plan.skipped_methods
    assert "zoc_coca" not in {job.info.name for job in plan.jobs} and len(plan.jobs) > 8
    assert f"  skipped: zoc_coca: {said}" in plan_text(plan)
    assert [record.levelname for record in caplog.records if said in record.getMessage()] == ["INFO"]
    glyphs = OpenClip(resolve(parse_encoder("glyphs"), None, Store(tmp_path)), "cpu", "fp32")
    with pytest.raises(UserError, match="glyphs does not write captions"):
        glyphs.captioner()


@pytest.mark.slow
def test_a_run_from_a_config_and_a_checkpoint(
    spec: str, cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = ("run", "--encoder", spec, "--methods", "zoc_coca,mcm", "--limit", "10", "--tracking-uri", "none")
    done = cli(*arguments, cwd=tmp_path, OODBENCH_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert "ZOC (CoCa)" in done.stdout
    found = [json.loads(path.read_text()) for path in (tmp_path / "results/runs").rglob("*.json")]
    rows = {row["method"]: row for row in found}
    assert rows["zoc_coca"]["status"] == "ok" and 0 <= rows["zoc_coca"]["ood"][0]["auroc"] <= 1
    refused = cli("run", "--methods", "zoc_coca", "--limit", "10", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and refused.stderr.startswith("error: zoc_coca")
