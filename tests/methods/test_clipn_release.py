"""A checkpoint in CLIPN's released layout at its real width, run as by a user; scores by independent code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from oodbench.data import prompts

pytestmark = pytest.mark.slow
Array = npt.NDArray[np.float64]
Cli = Callable[..., subprocess.CompletedProcess[str]]
TEXT = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
CLASSES = ("garden snail", "tractor")


def released(stock: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a released checkpoint: the stock model, a changed copy of its text tower as `_no`, and the offsets."""
    state = dict(stock)
    for name, tensor in stock.items():
        first, dot, rest = name.partition(".")
        if first in TEXT:
            state[f"{first}_no{dot}{rest}"] = tensor + 0.02 * torch.randn_like(tensor)
    return state | {"prompt_no": 0.02 * torch.randn(16, 77, 512)}


def folder_of_images(where: Path, names: tuple[str, ...], seed: int) -> list[Path]:
    rng = np.random.default_rng(seed)
    paths = []
    for name in names:
        for number in range(3):
            path = where / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
            coarse.resize((260, 240), Image.Resampling.BICUBIC).save(path)
            paths.append(path)
    return paths


def test_the_released_layout_at_the_width_of_vit_b_16(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = 2  # of 12: their names differ in nothing but the number
    (tmp_path / "vit.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**config).eval()
    stock = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = released(stock)
    torch.save(stock, tmp_path / "vit.pt")
    moments = {i: {"step": torch.tensor(10.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)} for i in (0, 1)}
    optimizer = {"state": moments, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.98), "params": [0, 1]}]}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    whole = {"epoch": 10, "name": "2023", "state_dict": wrapped, "optimizer": optimizer, "scaler": {"scale": 65536.0}}
    torch.save(whole, tmp_path / "CLIPN_ATD_Repeat2_epoch_10.pt")
    few = prompts.templates("clipn-128").lines[30:36]  # all 128 would take minutes
    (tmp_path / "few.txt").write_text("\n".join(few) + "\n")
    images = folder_of_images(tmp_path / "id", CLASSES, 0) + folder_of_images(tmp_path / "ood", ("x",), 1)

    done = cli(
        *("run", "--methods", "clipn,clipn[rule=ctw],msp[scale=100]", "--templates", tmp_path / "few.txt"),
        *("--encoder", f"{tmp_path / 'vit.json'}@{tmp_path / 'vit.pt'}"),
        *("--weights", f"clipn={tmp_path / 'CLIPN_ATD_Repeat2_epoch_10.pt'}"),
        *("--id", f"folder:{tmp_path / 'id'}", "--ood", f"folder:{tmp_path / 'ood'}"),
        *("--results", tmp_path / "out", "--store", tmp_path / "store", "--tracking-uri", "none"),
    )
    assert done.returncode == 0, done.stderr

    expected = reference_scores(model, state, images, few)
    found = [(json.loads(path.read_text()), path) for path in (tmp_path / "out/runs").rglob("*.json")]
    assert len(found) == 3
    for row, path in found:
        scores = pyarrow.parquet.read_table(path.with_suffix(".parquet"))["score"].to_numpy()
        wanted = expected[row["parameters"].get("rule", "msp")]
        np.testing.assert_allclose(scores, wanted, rtol=2e-3, atol=2e-4, err_msg=row["label"])

    other = {**stock, "visual.ln_post.weight": stock["visual.ln_post.weight"] * 1.1}
    torch.save(other, tmp_path / "other.pt")
    refused = cli(
        *("run", "--methods", "clipn", "--encoder", f"{tmp_path / 'vit.json'}@{tmp_path / 'other.pt'}"),
        *("--weights", f"clipn={tmp_path / 'CLIPN_ATD_Repeat2_epoch_10.pt'}"),
        *("--id", f"folder:{tmp_path / 'id'}", "--ood", f"folder:{tmp_path / 'ood'}"),
        *("--results", tmp_path / "out", "--store", tmp_path / "store"),
    )
    assert refused.returncode == 2
    assert "its frozen image tower is not the encoder's: visual.ln_post.weight differs" in refused.stderr


def reference_scores(
    model: open_clip.CLIP, state: dict[str, Tensor], images: list[Path], few: tuple[str, ...]
) -> dict[str, Array]:
    """Scores with open_clip's own code: an offset on all positions is a change of the position table."""
    stock = {name: tensor for name, tensor in state.items() if not name.partition(".")[0].endswith("_no")}
    model.load_state_dict(stock, strict=True)  # MSP is that of the CLIPN checkpoint itself
    preprocess = open_clip.image_transform(224, is_train=False)
    tokenize = open_clip.get_tokenizer("ViT-B-16")
    texts = [tokenize([template.replace("{}", name) for name in CLASSES]) for template in few]
    with torch.no_grad():
        x = normalize(model.encode_image(torch.stack([preprocess(Image.open(path)) for path in images])), dim=-1)
        yes = ensemble([model.encode_text(part) for part in texts])
        twin = {name.replace("_no", "", 1): t for name, t in state.items() if name.partition(".")[0].endswith("_no")}
        offset = twin.pop("prompt").mean(0)
        moved = {**stock, **twin, "positional_embedding": twin["positional_embedding"] + offset}
        model.load_state_dict(moved, strict=True)
        no = ensemble([model.encode_text(part) for part in texts])
    a, b = (100 * (x @ side.T).double().numpy() for side in (yes, no))
    p, p_yes = softmax(a), 1 / (1 + np.exp(b - a))
    return {
        "msp": np.log(p.max(1)),
        "atd": np.log((p * p_yes).sum(1)) - np.log((p * (1 - p_yes)).sum(1)),
        "ctw": (a - b)[np.arange(len(a)), a.argmax(1)],
    }


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def ensemble(parts: list[Tensor]) -> Tensor:
    return normalize(torch.stack([normalize(part, dim=-1) for part in parts]).sum(0), dim=-1)
