"""The model and the tokenizer of an encoder, built from its config."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from oodbench.encoder import pretrained
from oodbench.encoder.card import EncoderCard
from oodbench.encoder.pretrained import PretrainedFiles, error_text, without_logs
from oodbench.errors import UserError


def build_model(source: PretrainedFiles | EncoderCard, device: torch.device) -> Any:
    """The model with random weights (none at all on the meta device), in evaluation mode, frozen."""
    config = copy.deepcopy(source.config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    config["vision_cfg"].pop("timm_model_pretrained", None)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        with warnings.catch_warnings(), torch.device(device):
            # On the meta device there is nothing to initialise, which torch.nn.init remarks for some towers.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
            return kind(**config).eval().requires_grad_(False)
    except Exception as error:  # whatever a tower makes of a config it does not know
        needs = " (its text tower needs `pip install transformers`, and a network once)"
        hint = needs if "hf_model_name" in config["text_cfg"] else ""
        raise UserError(f"open_clip cannot build {source.architecture}: {error_text(error)}{hint}") from error


def build_tokenizer(card: EncoderCard, folder: Path | None) -> Any:
    """The tokenizer of an encoder, from its folder if it has one.

    UserError when the folder holds none that can be read, or when it would have to be fetched and cannot.
    """
    text = card.config["text_cfg"]
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if card.tokenizer == "clip":
        return open_clip.SimpleTokenizer(**options)
    options["tokenizer_mode"] = text.get("tokenizer_mode")
    if folder is not None:
        try:
            return without_logs(lambda: open_clip.tokenizer.HFTokenizer(str(folder.absolute()), **options))
        except Exception as error:  # transformers raises many kinds
            hint = "`pip install transformers`" if isinstance(error, ImportError) else "complete it"
            raise UserError(
                f"encoder '{card.name}': the tokenizer in {folder} cannot be read ({error_text(error)}); {hint}"
            ) from error
    found = pretrained.cached(card.tokenizer, "tokenizer_config.json", "tokenizer.json")
    if found is not None:
        try:  # as a folder, of which transformers asks no network
            return without_logs(lambda: open_clip.tokenizer.HFTokenizer(str(found.parent), **options))
        except (OSError, ValueError):
            pass  # an incomplete one, as a broken download leaves it
    try:
        pretrained.require_hub()
        return without_logs(lambda: open_clip.tokenizer.HFTokenizer(card.tokenizer, **options))
    except Exception as error:
        raise UserError(
            f"encoder '{card.name}' needs the tokenizer {card.tokenizer}, which has to be downloaded once: "
            f"run with a network and `pip install transformers` ({error_text(error)})"
        ) from error


def tokenizer_name(config: dict[str, Any]) -> str:
    """`clip` for CLIP's own byte pairs, else a repository of the Hugging Face Hub."""
    return str(config["text_cfg"].get("hf_tokenizer_name") or "clip")


class ImageTower(nn.Module):
    """An image tower of open_clip, taken over: `activations(x)` [b 3 h w] -> [b w], `project` [b w] -> [b d]."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.kind, last = _cut(visual)
        self.visual = visual
        self.last = last

    @property
    def width(self) -> int | None:
        """Width of the activations; None when they are the embedding."""
        return int(self.last.in_features) if isinstance(self.last, nn.Linear) else None

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.activations(images))

    def activations(self, images: Tensor) -> Tensor:
        out = self.visual(images)
        pooled = out[0] if isinstance(out, tuple) else out  # towers with output_tokens return tokens, too
        assert isinstance(pooled, Tensor)
        return pooled

    def project(self, activations: Tensor) -> Tensor:
        projected = self.last(activations)
        assert isinstance(projected, Tensor)
        return projected


def _cut(visual: Any) -> tuple[str, nn.Module]:
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        matrix = visual.proj
        visual.proj = None
        return "proj", _linear(matrix.T, None)
    if isinstance(getattr(getattr(visual, "attnpool", None), "c_proj", None), nn.Linear):
        last = visual.attnpool.c_proj
        eye = torch.eye(last.in_features, device=last.weight.device, dtype=last.weight.dtype)
        visual.attnpool.c_proj = _linear(eye, torch.zeros_like(last.weight[0]))
        return "c_proj", last
    head = getattr(visual, "head", None)
    if isinstance(getattr(head, "proj", None), nn.Linear):
        last, visual.head.proj = head.proj, nn.Identity()  # type: ignore[union-attr]
        return "head", last
    if isinstance(getattr(getattr(head, "mlp", None), "fc2", None), nn.Linear):
        last, visual.head.mlp.fc2 = head.mlp.fc2, nn.Identity()  # type: ignore[union-attr]
        return "fc2", last
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and isinstance(head, nn.Sequential) and len(head) == 0:
        for name, module in trunk.named_modules():
            if module is trunk.get_classifier() and isinstance(module, nn.Linear):
                owner = trunk.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], nn.Identity())
                return "head", module
    return "embedding", nn.Identity()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a frozen linear map with copies of a weight and a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")  # draws no random weights
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
