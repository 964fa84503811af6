"""CLIP and SigLIP models saved by transformers, converted to open_clip's config and parameter names.

The converted model equals the original up to float32 rounding. Images are preprocessed in the order of transformers
(RGB first, the crop rounded down), with Pillow's resize, as these models were published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench.encoder.card import THIS_FOLDER, TOKENIZER_FILES
from oodbench.errors import UserError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FAMILIES = {"clip": "CLIPConfig", "siglip": "SiglipConfig"}  # fixed-resolution SigLIP 2 is a SiglipModel, too
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh")
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu", **dict.fromkeys(_TANH, "gelu_tanh")}
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's Resampling, by number
_EPS = 1e-5  # of torch's LayerNorm
_CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class TransformersModel:
    """A model folder of transformers: its weights, and its config and preprocessing in open_clip's format."""

    weights: Path
    config: dict[str, Any]
    preprocess: dict[str, Any]
    notes: tuple[str, ...]


def read_folder(folder: Path, what: str) -> TransformersModel:
    """Return the model in a folder. Raise UserError unless it is a CLIP or SigLIP that can be converted exactly."""
    raw = read_json(folder / "config.json", what)
    family = str(raw.get("model_type") or "")
    if family not in _FAMILIES:
        raise UserError(f"{what}: {_other_family(family, folder)}")
    if "quantization_config" in raw:
        raise UserError(f"{what}: its weights are quantised; use the model in float32, bf16 or fp16")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        lora = " (it holds a LoRA adapter: merge it, and save the whole model)" if _has_adapter(folder) else ""
        raise UserError(f"{what}: {folder} holds none of {', '.join(WEIGHTS)}{lora}")
    try:
        import transformers

        parsed = getattr(transformers, _FAMILIES[family]).from_dict(raw)
    except ImportError as error:
        raise UserError(f'{what}: models of transformers need: pip install "oodbench[hf]"') from error
    except Exception as error:  # transformers checks the values, and raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: transformers refuses {folder / 'config.json'}: {reason}") from error
    vision, text = parsed.vision_config, parsed.text_config
    side = _square(what, "image_size", vision.image_size)
    config = _clip(what, parsed) if family == "clip" else _siglip(what, parsed)
    notes = []
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        config["text_cfg"]["hf_tokenizer_name"] = THIS_FOLDER
    elif family == "clip" and text.vocab_size == _CLIP_VOCABULARY:
        notes.append("the folder holds no tokenizer: assuming CLIP's own")
    else:
        raise UserError(f"{what}: {folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); complete it")
    if vision.num_channels != 3:
        raise UserError(f"{what}: its images have {vision.num_channels} channels, not 3")
    processor = _processor(folder, what)
    if not processor:
        notes.append(f"the folder holds no preprocessor_config.json: assuming that of {family} at {side} pixels")
    preprocess = _preprocess(what, processor, family, side)
    return TransformersModel(weights, config, preprocess, tuple(notes))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raise UserError for any other content."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{what}: {path} holds a {type(raw).__name__}, not a JSON object")
    return raw


def _other_family(family: str, folder: Path) -> str:
    """Return why a model of another family cannot be an encoder."""
    own = "write its towers as a plugin: --encoder plugin:FILE (docs/encoders.md)"
    if family in ("clip_text_model", "siglip_text_model"):
        return f"{folder} holds only a text tower ({family}); images need the whole CLIPModel or SiglipModel"
    if family in ("clip_vision_model", "siglip_vision_model"):
        return f"{folder} holds only an image tower ({family}); class names need the whole CLIPModel or SiglipModel"
    if family == "siglip2":
        return f"siglip2 (NaFlex, any resolution) is not supported; use a variant with a fixed resolution, or {own}"
    known = " and ".join(_FAMILIES)
    return f"{folder / 'config.json'} has the model type '{family or 'none'}'; {known} are supported; {own}"


def _has_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _clip(what: str, parsed: Any) -> dict[str, Any]:
    """Return open_clip's config of a CLIP."""
    vision, text = parsed.vision_config, parsed.text_config
    activations = {_activation(what, tower) for tower in (vision, text)}
    if len(activations) > 1:
        raise UserError(f"{what}: its towers compute {' and '.join(sorted(activations))}; open_clip has one for both")
    [activation] = activations
    width = {"width": vision.hidden_size, "head_width": vision.hidden_size // vision.num_attention_heads}
    # transformers pools at the highest token if eos_token_id is 2, as in old configs; this is the end token if the
    # vocabulary ends with it.
    end = text.eos_token_id
    highest = end in (2, text.vocab_size - 1)
    if not isinstance(end, int):
        raise UserError(f"{what}: eos_token_id is {end}, not one token")
    return {
        "embed_dim": parsed.projection_dim,
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            **width,
            "layers": vision.num_hidden_layers,
            "mlp_ratio": _mlp_ratio(vision),
            "patch_size": _square(what, "patch_size", vision.patch_size),
            "image_size": _square(what, "image_size", vision.image_size),
            **_layers(vision, activation),
        },
        "text_cfg": {**_text(text, activation), **({} if highest else {"pool_type": "eos", "eos_id": end})},
    }


def _siglip(what: str, parsed: Any) -> dict[str, Any]:
    """Return open_clip's config of a SigLIP, with timm's image tower in the shape that build_model() reads."""
    vision, text = parsed.vision_config, parsed.text_config
    if not getattr(vision, "vision_use_head", True):
        raise UserError(f"{what}: its image tower has no pooling head, so it returns no embedding of an image")
    embed_dim = getattr(text, "projection_size", text.hidden_size)
    if embed_dim != vision.hidden_size:
        raise UserError(f"{what}: images have {vision.hidden_size} dimensions and texts {embed_dim}")
    activation = _activation(what, text)
    side = _square(what, "image_size", vision.image_size)
    return {
        "embed_dim": embed_dim,
        "init_logit_bias": -10,
        "custom_text": True,
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            "timm_model_name": "vit_siglip",
            "timm_model_kwargs": {
                "img_size": side,
                "patch_size": _square(what, "patch_size", vision.patch_size),
                "embed_dim": vision.hidden_size,
                "depth": vision.num_hidden_layers,
                "num_heads": vision.num_attention_heads,
                "mlp_ratio": _mlp_ratio(vision),
                "act_layer": _activation(what, vision),
                "eps": vision.layer_norm_eps,
            },
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": side,
        },
        "text_cfg": {**_text(text, activation), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


def _text(text: Any, activation: str) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": _mlp_ratio(text),
        **_layers(text, activation),
    }


def _layers(tower: Any, activation: str) -> dict[str, Any]:
    """Return the settings of a tower's layers that differ from open_clip's defaults."""
    found: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    return found if tower.layer_norm_eps == _EPS else {**found, "norm_kwargs": {"eps": tower.layer_norm_eps}}


def _activation(what: str, tower: Any) -> str:
    if tower.hidden_act not in _ACTIVATIONS:
        raise UserError(f"{what}: hidden_act is '{tower.hidden_act}', not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[tower.hidden_act]


def _mlp_ratio(tower: Any) -> float:
    """Return the ratio for which int(width * ratio), as in open_clip and timm, is the width of the MLP."""
    ratio = float(tower.intermediate_size / tower.hidden_size)
    exact = int(tower.hidden_size * ratio) == tower.intermediate_size
    return ratio if exact else (tower.intermediate_size + 0.5) / tower.hidden_size


def _square(what: str, name: str, value: Any) -> int:
    """Return the side of a square given as one or two numbers."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise UserError(f"{what}: {name} is {value}; transformers' CLIP and SigLIP take squares")
    return side


# Preprocessing


def _processor(folder: Path, what: str) -> dict[str, Any]:
    """Return the image processor of a folder, {} if it has none; the one in the whole processor comes first."""
    whole, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = read_json(whole, what).get("image_processor") if whole.is_file() else None
    if isinstance(nested, dict):
        return nested
    return read_json(alone, what) if alone.is_file() else {}


_DEFAULTS: dict[str, dict[str, Any]] = {  # of CLIPImageProcessor and SiglipImageProcessor, except the size
    "clip": {
        "do_center_crop": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "siglip": {"do_center_crop": False, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3},
}


def _preprocess(what: str, given: dict[str, Any], family: str, side: int) -> dict[str, Any]:
    """Return the preprocessing of an image processor. Raise UserError for steps other than resize, crop and mean."""
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    family = family if not kind else "clip" if "CLIP" in kind.upper() else "siglip"
    default = 224 if given else side  # transformers' default for a missing size
    values = {"resample": 3, "size": default, "crop_size": default, "do_normalize": True, **_DEFAULTS[family]}
    values |= {key: value for key, value in given.items() if value is not None}
    problems = [
        f"{step} is {values[step]}"
        for step, needed in (("do_resize", True), ("do_rescale", True), ("do_pad", False), ("do_convert_rgb", True))
        if values.get(step) not in (None, needed)
    ]
    if abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        problems.append(f"rescale_factor is {values['rescale_factor']}")
    if values["resample"] not in range(len(_FILTERS)):
        problems.append(f"resample is {values['resample']}")
    resize_to = _resize_to(values["size"], family == "clip")
    cropped = _crop(values["crop_size"]) if values["do_center_crop"] else resize_to
    if not resize_to:
        problems.append(f"size is {values['size']}")
    elif cropped != (side, side):
        problems.append(
            f"it returns images of {'x'.join(map(str, cropped)) or 'any'} pixels, the model takes {side}x{side}"
        )
    elif min(resize_to) < side:
        problems.append(f"it resizes to {min(resize_to)} pixels and crops {side}")
    if problems:
        raise UserError(f"{what}: its image preprocessing cannot be used: {'; '.join(problems)}")
    normal = values["do_normalize"]
    return {
        "mean": _three(values["image_mean"]) if normal else (0.0,) * 3,
        "std": _three(values["image_std"]) if normal else (1.0,) * 3,
        "resize_mode": "shortest" if len(resize_to) == 1 else "squash",
        "interpolation": _FILTERS[values["resample"]],
        "fill_color": 0,
        "resize_to": resize_to,
    }


def _resize_to(size: Any, shortest: bool) -> tuple[int, ...]:
    """Return (shorter side,) or (height, width) from transformers' `size`; () for anything else."""
    if isinstance(size, int):
        return (size,) if shortest else (size, size)
    named = {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}
    if set(named) == {"shortest_edge"}:
        return (int(named["shortest_edge"]),)
    return (int(named["height"]), int(named["width"])) if set(named) == {"height", "width"} else ()


def _crop(size: Any) -> tuple[int, ...]:
    return _resize_to(size, shortest=False)


def _three(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (float(value),) * 3


# Parameter names

_CLIP_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.head.": "text_projection.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.in_proj.": ".attn.in_proj_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_SIGLIP_VISION_NAMES = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.": "visual.trunk.attn_pool.",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
    ".self_attn.out_proj.": ".attn.proj.",
    ".self_attn.in_proj.": ".attn.qkv.",
}
_ANCHOR = "vision_model.embeddings."
_ATTENTION = ("q_proj", "k_proj", "v_proj")


def open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a transformers CLIP or SigLIP under open_clip's names; others are unchanged.

    A prefix before `vision_model.`, added by a training wrapper, is removed.
    """
    anchor = next((name for name in state if _ANCHOR in name), None)
    if anchor is None:
        return state
    prefix = anchor[: anchor.index(_ANCHOR)]
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".embeddings.position_ids")}
    siglip = "vision_model.head.probe" in state
    found: dict[str, Tensor] = {}
    for name, tensor in _joined(state).items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = tensor.T
        elif name == "vision_model.head.attention.in_proj_weight" or name == "vision_model.head.attention.in_proj_bias":
            kind, width = name.rpartition("_")[2], len(tensor) // 3
            found[f"visual.trunk.attn_pool.q.{kind}"] = tensor[:width]
            found[f"visual.trunk.attn_pool.kv.{kind}"] = tensor[width:]
        else:
            names = _SIGLIP_VISION_NAMES if siglip and name.startswith("vision_model.") else _CLIP_NAMES
            new = name
            for old, renamed in names.items():
                new = new.replace(old, renamed)
            new = f"text.{new}" if siglip and name.startswith("text_model.") else new  # open_clip's custom text tower
            found[new] = tensor[None] if new == "visual.trunk.pos_embed" else tensor
    return found


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the three projections of each attention concatenated to `in_proj`."""
    found = {}
    for name, tensor in state.items():
        parts = [name.replace("q_proj", part) for part in _ATTENTION]
        if ".self_attn.q_proj." in name and all(part in state for part in parts):
            found[parts[0].replace("q_proj", "in_proj")] = torch.cat([state[part] for part in parts])
        elif not (".self_attn.k_proj." in name or ".self_attn.v_proj." in name):
            found[name] = tensor
    return found
