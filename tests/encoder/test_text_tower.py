"""The text tower with context vectors against its formula in float64, and gradients by finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oodbench.method.toy import ToyEncoder
from tests.encoder.test_encoder_families import FAMILIES, TEXT
from tests.encoder.test_patches import encoder, layer_norm

PROMPTS = ["x x x cat.", "x x x two large dogs.", "x x x tree."]


def reference_text(
    w: Mapping[str, Tensor], tokens: Tensor, context: Tensor, offset: Tensor | float = 0, quick: bool = False
) -> Tensor:
    """CLIP's text tower, prompt by prompt: token or context plus position, causal attention, and the end token."""
    heads, rows = TEXT["heads"], []
    for number, row in enumerate(tokens):
        x = w["token_embedding.weight"][row]
        own = context[number] if context.ndim == 3 else context
        x = torch.cat([x[:1], own, x[1 + len(own) :]]) + w["positional_embedding"] + offset
        n, width = x.shape
        later = torch.ones(n, n).triu(1).bool()
        for layer in range(TEXT["layers"]):
            p = f"transformer.resblocks.{layer}"
            mixed = layer_norm(x, w, f"{p}.ln_1") @ w[f"{p}.attn.in_proj_weight"].T + w[f"{p}.attn.in_proj_bias"]
            q, k, v = (one.view(n, heads, -1).transpose(0, 1) for one in mixed.chunk(3, -1))
            shares = (q @ k.mT / (width / heads) ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
            y = (shares @ v).transpose(0, 1).reshape(n, width)
            x = x + y @ w[f"{p}.attn.out_proj.weight"].T + w[f"{p}.attn.out_proj.bias"]
            y = layer_norm(x, w, f"{p}.ln_2") @ w[f"{p}.mlp.c_fc.weight"].T + w[f"{p}.mlp.c_fc.bias"]
            y = y * (1.702 * y).sigmoid() if quick else F.gelu(y)
            x = x + y @ w[f"{p}.mlp.c_proj.weight"].T + w[f"{p}.mlp.c_proj.bias"]
        rows.append(layer_norm(x, w, "ln_final")[row.argmax()] @ w["text_projection"])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "per_prompt", "offset"), [("vit", False, False), ("vit-quickgelu", True, False), ("vit", True, True)]
)
def test_context_follows_the_start_token(name: str, per_prompt: bool, offset: bool, tmp_path: Path) -> None:
    clip, _ = encoder(FAMILIES[name], tmp_path)
    tower, tokens = clip.text_tower().double().eval(), clip.tokenize(PROMPTS)
    random = torch.Generator().manual_seed(1)
    shape = (len(PROMPTS), 3, TEXT["width"]) if per_prompt else (3, TEXT["width"])
    context = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(True)
    added = torch.randn(TEXT["context_length"], TEXT["width"], generator=random, dtype=torch.float64)
    weights = {name: value.detach() for name, value in tower.state_dict().items()}

    tower.requires_grad_(False)  # as in methods: gradients pass through, but weights get none
    found = tower(tokens, added if offset else None, context)
    expected = reference_text(weights, tokens, context, added if offset else 0, name == "vit-quickgelu")
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()

    (gradient,) = torch.autograd.grad(found.square().sum(), context)
    with torch.no_grad():
        for _ in range(3):
            step = 1e-4 * torch.randn(shape, generator=random, dtype=torch.float64)
            up, down = (tower(tokens, added if offset else None, context + s).square().sum() for s in (step, -step))
            assert float(up - down) / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-6)
    assert all(weight.grad is None for weight in tower.parameters())


def test_token_embeddings_as_context_have_no_effect(tmp_path: Path) -> None:
    clip, _ = encoder(FAMILIES["vit"], tmp_path)
    tower, tokens = clip.text_tower().eval(), clip.tokenize(PROMPTS)
    with torch.no_grad():
        own = tower.get_parameter("token_embedding.weight")[tokens[:, 1:4]]
        assert torch.equal(tower(tokens, None, own), tower(tokens))
        assert torch.equal(tower(tokens, context=own[0]), tower(tokens))  # "x x x" in all of them
        toy = ToyEncoder()
        assert torch.equal(toy.text_tower()(toy.tokenize(["drum"]), None, None), toy.text(["drum"]))
        with pytest.raises(ValueError, match="11 context vectors do not fit into prompts of 9 tokens"):
            tower(tokens, None, torch.zeros(11, TEXT["width"]))
