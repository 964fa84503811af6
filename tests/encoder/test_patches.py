"""Patch features of image towers against the formula of GL-MCM and MaskCLIP in float64, on random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from oodbench.encoder.card import EncoderCard, parse_encoder
from oodbench.encoder.openclip import OpenClip
from oodbench.encoder.resolve import resolve
from oodbench.errors import UserError
from oodbench.storage.store import Store
from tests.encoder.test_encoder_families import FAMILIES, VIT, Family, config, random_model

TALL = {**VIT, "image_size": [64, 32]}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
TOWERS = {
    "plain": Family(VIT, "proj", 32, {}),
    "quickgelu": Family(VIT, "proj", 32, {"quick_gelu": True}),
    "layer-scale": Family({**VIT, "ls_init_value": 0.3}, "proj", 32, {}),
    "no-pre-norm": Family({**TALL, **CLIPA}, "proj", 32, {}),
    "patch-dropout": Family({**VIT, "patch_dropout": 0.5}, "proj", 32, {}),
}


def encoder(family: Family, folder: Path) -> tuple[OpenClip, Any]:
    """Our encoder and open_clip's own model with the same random weights."""
    described = config(family)
    model = random_model(described)
    (folder / "tower.json").write_text(json.dumps(described))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
    spec = f"{folder}/tower.json@{folder}/weights.safetensors"
    return OpenClip(resolve(parse_encoder(spec), None, Store(folder)), "cpu", "fp32"), model


def normalised(images: Tensor, card: EncoderCard) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    return (images - mean) / std


def layer_norm(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def reference_patches(images: Tensor, w: Mapping[str, Tensor], heads: int, quick: bool, size: int) -> Tensor:
    """The patches of a VisionTransformer, computed from its weights. `images` are normalised."""
    b, width = len(images), w["class_embedding"].shape[0]
    x = F.conv2d(images, w["conv1.weight"], stride=size).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(b, 1, width), x], 1) + w["positional_embedding"]
    x = layer_norm(x, w, "ln_pre") if "ln_pre.weight" in w else x
    last = max(int(name.split(".")[2]) for name in w if ".resblocks." in name)
    for number in range(last + 1):
        p = f"transformer.resblocks.{number}"
        q, k, v = (layer_norm(x, w, f"{p}.ln_1") @ w[f"{p}.attn.in_proj_weight"].T + w[f"{p}.attn.in_proj_bias"]).chunk(
            3, -1
        )
        if number < last:
            q, k, v = (one.view(b, -1, heads, width // heads).transpose(1, 2) for one in (q, k, v))
            mixed = (q @ k.mT / (width // heads) ** 0.5).softmax(-1) @ v
            v = mixed.transpose(1, 2).reshape(b, -1, width)
        y = v @ w[f"{p}.attn.out_proj.weight"].T + w[f"{p}.attn.out_proj.bias"]
        x = x + y * w.get(f"{p}.ls_1.gamma", torch.tensor(1.0))
        y = layer_norm(x, w, f"{p}.ln_2") @ w[f"{p}.mlp.c_fc.weight"].T + w[f"{p}.mlp.c_fc.bias"]
        y = y * (1.702 * y).sigmoid() if quick else F.gelu(y)
        y = y @ w[f"{p}.mlp.c_proj.weight"].T + w[f"{p}.mlp.c_proj.bias"]
        x = x + y * w.get(f"{p}.ls_2.gamma", torch.tensor(1.0))
    return layer_norm(x[:, 1:], w, "ln_post") @ w["proj"]


def check(ours: OpenClip, expected: Tensor, images: Tensor) -> None:
    """Patches are as expected and have gradients, and do not change the activations of the same pass."""
    images = images.clone().requires_grad_(True)
    found = ours.patches(images)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    (gradient,) = torch.autograd.grad(found.square().sum(), images)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    activations, of_patches = ours.activations_and_patches(images, ("patches", "patch_activations"))
    assert torch.equal(activations, ours.activations(images))
    assert torch.equal(of_patches["patches"], found)
    before = of_patches["patch_activations"]
    assert before.dtype == torch.float32
    assert before.shape == (*found.shape[:2], activations.shape[1])
    assert torch.equal(before, ours.patch_activations(images))
    assert torch.equal(ours.project(before), found)


@pytest.mark.parametrize("name", TOWERS)
def test_patches_of_a_vit_are_its_last_values_without_attention(name: str, tmp_path: Path) -> None:
    family = TOWERS[name]
    ours, model = encoder(family, tmp_path)
    images = torch.rand(2, 3, *ours.size)
    weights = {k: v.double() for k, v in model.visual.state_dict().items()}
    heads = family.vision["width"] // family.vision["head_width"]
    size = family.vision["patch_size"]
    expected = reference_patches(
        normalised(images, ours.card).double(), weights, heads, "quick_gelu" in family.more, size
    )
    assert expected.shape == (2, ours.size[0] * ours.size[1] // size**2, 24)
    check(ours, expected, images)
    theirs = model.encode_image(normalised(images, ours.card))
    assert (ours.pixels(images) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_patches_of_a_resnet_are_the_attention_pool_of_single_cells(tmp_path: Path) -> None:
    """For a single cell without position, the pool mixes the cell with its mean, which is the cell."""
    ours, model = encoder(FAMILIES["resnet"], tmp_path)
    images = torch.rand(2, 3, *ours.size)
    visual = model.visual
    with torch.no_grad():
        x = visual.stem(normalised(images, ours.card))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        visual.attnpool.positional_embedding = torch.nn.Parameter(torch.zeros(2, x.shape[1]))
        cells = [visual.attnpool(x[:, :, i : i + 1, j : j + 1]) for i in range(x.shape[2]) for j in range(x.shape[3])]
    assert len(cells) == 4
    check(ours, torch.stack(cells, 1), images)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("coca", "pools its patches by attention before it projects them, as a CoCa does"),
        ("siglip", "its image tower is timm's test_vit"),
        ("convnext", "its image tower is timm's test_convnext"),
        ("qk-norm", "the blocks of its image tower are not CLIP's"),
    ],
)
def test_other_towers_are_refused_by_name(name: str, why: str, tmp_path: Path) -> None:
    ours, _ = encoder({**FAMILIES, "qk-norm": Family({**VIT, "qk_norm": True}, "proj", 32, {})}[name], tmp_path)
    with pytest.raises(UserError, match=rf"tower\.json.* has no patch features: .*{why}.*--encoder ViT-B-16/openai"):
        ours.patches(torch.rand(1, 3, *ours.size))
    with pytest.raises(UserError, match=why):
        ours.patch_activations(torch.rand(1, 3, *ours.size))


def test_lower_precision_returns_float32_close_to_full_precision(tmp_path: Path) -> None:
    exact, _ = encoder(TOWERS["plain"], tmp_path)
    low = OpenClip(resolve(parse_encoder(exact.card.name), None, Store(tmp_path)), "cpu", "bf16")
    images = torch.rand(2, 3, *exact.size)
    with torch.no_grad():
        full, found = exact.patches(images), low.patches(images)
    assert found.dtype == torch.float32
    assert 0 < (full - found).abs().max() < 0.05 * full.abs().max()


QUARTERS = """
    def patches(self, images):
        whole = self.pixels(images)
        return torch.stack([whole, whole.roll(1, -1)], 1)
"""


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        (QUARTERS, ""),
        (QUARTERS.replace(", 1)\n", ", 0)\n"), r"UserError: .*patches\(\) returns \[2, 3, 6\], not \[3 n 6\]"),
        (QUARTERS.replace("whole.roll", "whole.detach().roll").replace("[whole,", "[whole.detach(),"), "no gradients"),
        (QUARTERS.replace("[whole,", "[whole * len(images),"), "changes by .* with the rest of the batch"),
        (QUARTERS.replace("[whole,", "[whole / 0,"), "returns NaN or infinity"),
    ],
)
def test_a_plugin_may_have_patches(patches: str, said: str, tmp_path: Path) -> None:
    from oodbench.encoder import contract
    from tests.encoder.test_plugin import SMALL, write

    trial = contract.trial(write(tmp_path, SMALL + patches))
    assert trial.card.patch_error == ""
    try:
        problem = contract.has_patches_in_the_joint_space(trial)
    except UserError as error:
        problem = f"UserError: {error}"
    assert re.search(said, problem) if said else problem == ""
    if not said:
        activations, found = trial.encoder.activations_and_patches(trial.images, ("patches",))
        torch.testing.assert_close(found["patches"][:, 0], trial.encoder.project(activations))


SPLIT = """
    def activations(self, images):
        return ((images - 0.5) / 0.5).flatten(1)

    def project(self, activations):
        assert activations.ndim == 2
        return activations @ W

    def patch_activations(self, images):
        whole = self.activations(images)
        return torch.stack([whole, 2 * whole], 1)

    def patches(self, images):
        whole = self.pixels(images)
        return torch.stack([whole, 2 * whole], 1)
"""


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (SPLIT, ""),
        (SPLIT.replace("2 * whole], 1)\n\n", "3 * whole], 1)\n\n"), "differs from patches\\(x\\) by"),
        (
            SPLIT.replace("return torch.stack([whole, 2 * whole], 1)\n\n", "return whole[:, None]\n\n"),
            "returns \\[3, 2, 6\\]",
        ),
        (SPLIT.replace("stack([whole, 2 * whole], 1)\n\n", "stack([whole / 0], 1)\n\n"), "NaN or infinity"),
        (
            SPLIT.replace("def project", "def other"),
            "has patch_activations\\(\\), but not activations\\(\\) and project",
        ),
    ],
)
def test_a_plugin_may_have_patch_activations(parts: str, said: str, tmp_path: Path) -> None:
    from oodbench.encoder import contract
    from tests.encoder.test_plugin import SMALL, write

    trial = contract.trial(write(tmp_path, SMALL + parts))
    problem = contract.patch_activations_match_patches(trial)
    assert re.search(said, problem) if said else problem == ""
    if not said:
        _, found = trial.encoder.activations_and_patches(trial.images, ("patch_activations",))
        assert found["patch_activations"].shape == (3, 2, 192)
