"""Every model family of open_clip: our split encoder returns open_clip's own embeddings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from oodbench.data.decode import Decoded
from oodbench.encoder import build
from oodbench.encoder.build import ImageTower
from oodbench.encoder.card import parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.pretrained import PretrainedFiles
from oodbench.encoder.resolve import resolve
from oodbench.pipeline.extract import encode_batches
from oodbench.storage.store import Store

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PROMPTS = ["a photo of a cat", "a much longer prompt about two dogs in the snow", "x"]


@dataclass(frozen=True)
class Family:
    """A small model of one kind and the expected values of its card."""

    vision: dict[str, Any]
    activation: str
    width: int
    more: dict[str, Any]  # of the config, in addition to the towers


def _timm(name: str, pool: str, proj: str | None, size: int) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}


CUSTOM = {"custom_text": True}
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
COCA = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
SIGLIP = {**CUSTOM, "init_logit_bias": -10.0, "embed_dim": 64}
FAMILIES = {
    "vit": Family(VIT, "proj", 32, {}),
    "vit-quickgelu": Family(VIT, "proj", 32, {"quick_gelu": True}),
    "coca": Family(
        {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "proj",
        24,
        {**CUSTOM, "multimodal_cfg": COCA},
    ),
    "resnet": Family(
        {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None, "image_size": 64}, "c_proj", 256, {}
    ),
    "convnext": Family(_timm("test_convnext", "", "linear", 64), "head", 64, {}),
    "convnext-mlp": Family(_timm("test_convnext", "", "mlp", 64), "fc2", 48, {}),
    "eva02": Family(_timm("eva02_tiny_patch14_224", "token", None, 224), "head", 192, CUSTOM),
    "siglip": Family(_timm("test_vit", "map", "none", 160), "embedding", 64, SIGLIP),
    "pe-core": Family(_timm("test_vit", "map", None, 160), "head", 64, CUSTOM),
    "mobileclip": Family(_timm("fastvit_mci0", "avg", None, 64), "head", 1024, CUSTOM),
    "mobileclip-b": Family(_timm("test_vit", "token", None, 160), "head", 64, CUSTOM),
    "vitamin": Family(_timm("vitamin_small_224", "", "linear", 224), "head", 384, CUSTOM),
    "swin": Family(_timm("swin_tiny_patch4_window7_224", "", "linear", 224), "head", 768, {}),
    "relpos": Family(_timm("test_vit_relpos", "", "linear", 160), "head", 96, {}),
}
LARGE = {"eva02", "mobileclip", "vitamin", "swin"}


def config(family: Family) -> dict[str, Any]:
    """An open_clip model config."""
    text = {**TEXT, "output_tokens": True, "embed_cls": True} if "multimodal_cfg" in family.more else TEXT
    return {"embed_dim": 24, "vision_cfg": family.vision, "text_cfg": text, **family.more}


def random_model(config: dict[str, Any]) -> Any:
    """open_clip's own model with seeded weights, none of them exactly zero or one."""
    torch.manual_seed(0)
    kind = open_clip.CLIP
    plain = {k: v for k, v in config.items() if k != "custom_text"}
    if config.get("custom_text"):
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    model = kind(**plain).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in FAMILIES]
)
def test_embeddings_are_those_of_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    described = config(family)
    (tmp_path / f"{name}.json").write_text(json.dumps(described))
    state = random_model(described).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pt")

    known = {**open_clip.factory._MODEL_CONFIGS, name: described}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known)
    theirs = open_clip.create_model(name, pretrained=str(tmp_path / "weights.pt")).eval().requires_grad_(False)

    resolved = resolve(parse_encoder(f"{tmp_path}/{name}.json@{tmp_path}/weights.safetensors"), None, Store(tmp_path))
    ours = OpenClip(resolved, "cpu", "fp32")
    card = resolved.card
    assert (card.activation, card.width, card.embed_dim) == (family.activation, family.width, described["embed_dim"])
    assert card.size == (family.vision["image_size"],) * 2
    assert ours.scale == pytest.approx(float(theirs.logit_scale.exp()))
    assert not any(p.requires_grad for module in (ours._model, ours._tower) for p in module.parameters())

    images = torch.rand(2, 3, *card.size, requires_grad=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    expected = theirs.encode_image((images.detach() - mean) / std, normalize=False)
    embeddings = ours.pixels(images)
    assert_near(embeddings, expected)
    activations = ours.activations(images.detach())
    assert activations.shape == (2, family.width)
    assert_near(ours.project(activations), expected)
    embeddings.square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and images.grad.abs().amax((1, 2, 3)).min() > 0

    tokens = open_clip.SimpleTokenizer(context_length=16)(PROMPTS)
    assert_near(ours.text(PROMPTS), theirs.encode_text(tokens, normalize=False))


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-5 of the largest value."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.std(0).max()) > 1e-3 * float(expected.abs().max())  # the rows differ


def kinds() -> dict[tuple[Any, ...], str]:
    """One architecture that open_clip lists for every kind of image tower (those with a text tower of its own)."""
    found: dict[tuple[Any, ...], str] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        trunk = vision.get("timm_model_name", type(vision.get("layers")).__name__).split("_")[0]
        if "hf_model_name" not in config["text_cfg"]:
            options = ("timm_pool", "timm_proj", "attentional_pool", "pool_type")
            found.setdefault((trunk, *(vision.get(option) for option in options)), name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds().values())
def test_every_kind_of_tower_is_split_and_takes_its_image_size(name: str) -> None:
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"]
    visual = build.build_model(PretrainedFiles(name, name, config, {}, Path()), torch.device("meta")).visual
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    tower = ImageTower(visual)
    expected = "c_proj" if isinstance(vision.get("layers"), list) else "proj"
    if "timm_model_name" in vision:
        expected = {"none": "embedding", "mlp": "fc2"}.get(vision["timm_proj"], "head")
    activations = tower.activations(torch.zeros(1, 3, *size, device="meta"))
    assert (tower.kind, activations.shape) == (expected, (1, tower.width or config["embed_dim"]))
    assert tower.project(activations).shape == (1, config["embed_dim"])


def test_text_does_not_change_the_model(tmp_path: Path) -> None:
    ours = OpenClip(resolve(parse_encoder("glyphs"), None, Store(tmp_path)), "cpu", "fp32")
    before = ours._model.positional_embedding
    first = ours.text(PROMPTS)
    assert ours._model.positional_embedding is before and ours._model.attn_mask.shape == (16, 16)
    torch.testing.assert_close(ours.text(PROMPTS), first, rtol=0, atol=0)
    many = ours.text(PROMPTS * 100)  # more than one batch of prompts
    torch.testing.assert_close(many, first.repeat(100, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_returns_float32_close_to_full_precision(precision: str, tmp_path: Path) -> None:
    resolved = resolve(parse_encoder("glyphs"), None, Store(tmp_path))
    images = torch.rand(4, 3, 32, 32)
    full, low = (OpenClip(resolved, "cpu", chosen).pixels(images) for chosen in ("fp32", precision))
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, low).min() > 0.999


@pytest.mark.slow
def test_a_pass_over_many_batches_casts_weights_once_and_leaves_them_frozen(tmp_path: Path) -> None:
    """Only the towers use low precision: the last map stays in float32, and all weights stay frozen."""
    resolved = resolve(parse_encoder("glyphs"), None, Store(tmp_path))
    exact, low = (OpenClip(resolved, "cpu", chosen) for chosen in ("fp32", "bf16"))
    pixels = torch.randint(0, 256, (3, 4, 3, *resolved.card.size), dtype=torch.uint8)
    batches = [Decoded([4 * i + j for j in range(4)], part, []) for i, part in enumerate(pixels)]
    full, found = (encode_batches(batches, one, lambda n: None).arrays for one in (exact, low))
    plain = torch.cat([exact.pixels(part.float() / 255) for part in pixels]).numpy()
    assert (full["embeddings"] == plain).all()
    gap = abs(found["embeddings"] - plain).max() / abs(plain).max()
    assert 0 < gap < 0.02 and found["embeddings"].dtype == found["activations"].dtype == "float32"
    again = low.project(torch.from_numpy(found["activations"])).numpy()
    assert (again == found["embeddings"]).all()
    assert not any(weight.requires_grad for weight in low._model.parameters())
    assert not torch.is_autocast_enabled("cpu")
