"""Build the model and the tokenizer of an encoder from its config, and split the image tower.

The image tower is split before its last linear map, so that one forward pass gives both the activations (the input of
that map) and the embeddings (its output):

| image tower                              | last linear map          | kind      | how it is removed                |
|------------------------------------------|--------------------------|-----------|----------------------------------|
| VisionTransformer (also of CoCa)         | `proj`, a matrix         | proj      | set to None                      |
| ModifiedResNet                           | `attnpool.c_proj`        | c_proj    | replaced by an identity matrix,  |
|                                          |                          |           | because its weight is read       |
| timm, linear head (ConvNeXt, ViTamin)    | `head.proj`              | head      | replaced by nn.Identity          |
| timm, MLP head (convnext_large_d)        | `head.mlp.fc2`           | fc2       | replaced by nn.Identity          |
| timm, the trunk's classifier projects    | `trunk.get_classifier()` | head      | replaced by nn.Identity          |
| (EVA, MobileCLIP, PE-Core)               |                          |           |                                  |
| timm without a linear map (SigLIP)       | none                     | embedding | activations are the embeddings   |

Patch features are computed from the input of the last block of a VisionTransformer, or of the attention pool of a
ModifiedResNet, in the same forward pass: see ImageTower.activations_and_patches.
"""

from __future__ import annotations

import copy
import functools
import warnings
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from oodbench.encoder import pretrained
from oodbench.encoder.card import THIS_FOLDER, EncoderCard
from oodbench.encoder.pretrained import PretrainedFiles, error_text, without_logs
from oodbench.errors import UserError


def build_model(source: PretrainedFiles | EncoderCard, device: torch.device) -> Any:
    """Return the model in evaluation mode, frozen, with random weights (without weights on the meta device)."""
    config = copy.deepcopy(source.config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    config["vision_cfg"].pop("timm_model_pretrained", None)
    shape = config["vision_cfg"].pop("timm_model_kwargs", None)  # for a SigLIP without a name in timm
    if shape:
        config["vision_cfg"]["timm_model_name"] = "test_vit"  # a small model, replaced below
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        with warnings.catch_warnings(), torch.device(device):
            # torch.nn.init warns about tensors on the meta device.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
            model = kind(**config)
            if shape:
                model.visual.trunk = _siglip_trunk(**shape)
            return model.eval().requires_grad_(False)
    except Exception as error:  # a config with unknown values may raise anything
        needs = " (its text tower needs `pip install transformers`, and a network once)"
        hint = needs if "hf_model_name" in config["text_cfg"] else ""
        raise UserError(f"open_clip cannot build {source.architecture}: {error_text(error)}{hint}") from error


def _siglip_trunk(eps: float, **shape: Any) -> nn.Module:
    """Return timm's image tower of a SigLIP; `eps` is for its layer norms."""
    from timm.layers import LayerNorm
    from timm.models.vision_transformer import VisionTransformer

    trunk: nn.Module = VisionTransformer(
        class_token=False,
        global_pool="map",
        num_classes=0,
        weight_init="skip",
        norm_layer=functools.partial(LayerNorm, eps=eps),
        **shape,
    )
    return trunk


def build_tokenizer(card: EncoderCard, folder: Path | None) -> Any:
    """Return the tokenizer of an encoder, read from its folder if it has one.

    Raises UserError if the tokenizer in the folder cannot be read, or a necessary download fails.
    """
    text = card.config["text_cfg"]
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if card.tokenizer == "clip":
        return open_clip.SimpleTokenizer(**options)
    options["tokenizer_mode"] = text.get("tokenizer_mode")
    if folder is not None:
        try:
            found = without_logs(lambda: open_clip.tokenizer.HFTokenizer(str(folder.absolute()), **options))
            if card.tokenizer == THIS_FOLDER:
                found.clean_fn = str  # transformers does not clean texts itself
            return found
        except Exception as error:  # transformers raises many kinds
            hint = 'pip install "oodbench[hf]"' if isinstance(error, ImportError) else "complete it"
            raise UserError(
                f"encoder '{card.name}': the tokenizer in {folder} cannot be read ({error_text(error)}); {hint}"
            ) from error
    cached = pretrained.cached(card.tokenizer, "tokenizer_config.json", "tokenizer.json")
    if cached is not None:
        try:  # given a folder, transformers does not access the network
            return without_logs(lambda: open_clip.tokenizer.HFTokenizer(str(cached.parent), **options))
        except (OSError, ValueError):
            pass  # an interrupted download is incomplete
    try:
        pretrained.require_hub()
        return without_logs(lambda: open_clip.tokenizer.HFTokenizer(card.tokenizer, **options))
    except Exception as error:
        raise UserError(
            f"encoder '{card.name}' needs the tokenizer {card.tokenizer}, which has to be downloaded once: "
            f"run with a network and `pip install transformers` ({error_text(error)})"
        ) from error


def tokenizer_name(config: dict[str, Any]) -> str:
    """Return `clip` for CLIP's own tokenizer, else a repository on the Hugging Face Hub."""
    return str(config["text_cfg"].get("hf_tokenizer_name") or "clip")


_RECORDED: ContextVar[list[Tensor] | None] = ContextVar("recorded", default=None)  # of the forward pass of this thread


def _record_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Record the input of a module if patches are computed in this pass."""
    if (recorded := _RECORDED.get()) is not None:
        recorded.append(inputs[0])


class ImageTower(nn.Module):
    """An image tower of open_clip, split into activations(x), [b 3 h w] -> [b w], and project(x), [b w] -> [b d].

    The given tower is modified: its last linear map is removed, see the table at the head of this module.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.kind, self.last = _split(visual)
        self.visual = visual
        if self.kind in ("proj", "c_proj"):
            source = visual.attnpool if self.kind == "c_proj" else visual.transformer.resblocks[-1]
            source.register_forward_pre_hook(_record_input)

    @property
    def width(self) -> int | None:
        """Return the width of the activations; None if they are the embedding."""
        return int(self.last.in_features) if isinstance(self.last, nn.Linear) else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of normalised images."""
        return self.project(self.activations(images))

    def activations(self, images: Tensor) -> Tensor:
        """Return the input of the last linear map."""
        output = self.visual(images)
        pooled = output[0] if isinstance(output, tuple) else output  # towers with output_tokens also return tokens
        assert isinstance(pooled, Tensor)
        return pooled

    def activations_and_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activations, and the patch features [b n w] before the last linear map, in one forward pass.

        They are CLIP's features of single patches as in MaskCLIP and GL-MCM: attention does not mix the values of the
        last block. With x the input of the last block, without the class token:

            y = x + ls_1(out_proj(value_proj(ln_1(x)))),    patches = ln_post(y + ls_2(mlp(ln_2(y))))

        For a ResNet, they are the values of the attention pool at each cell of the last feature map, without positions.
        """
        recorded: list[Tensor] = []
        token = _RECORDED.set(recorded)
        try:
            activations = self.activations(images)
        finally:
            _RECORDED.reset(token)
        (x,) = recorded
        if self.kind == "c_proj":
            return activations, self.visual.attnpool.v_proj(x.flatten(2).transpose(1, 2))
        block, x = self.visual.transformer.resblocks[-1], x[:, 1:]
        attention, width = block.attn, x.shape[-1]
        weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]  # of the values
        x = x + block.ls_1(attention.out_proj(nn.functional.linear(block.ln_1(x), weight, bias)))
        return activations, self.visual.ln_post(x + block.ls_2(block.mlp(block.ln_2(x))))

    def project(self, activations: Tensor) -> Tensor:
        """Apply the last linear map."""
        projected = self.last(activations)
        assert isinstance(projected, Tensor)
        return projected


def _split(visual: Any) -> tuple[str, nn.Module]:
    """Remove the last linear map of an image tower; return its kind and the map."""
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
