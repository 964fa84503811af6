"""The model and the tokenizer of an encoder, built from its config."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch

from oodbench.encoder import hub
from oodbench.encoder.card import EncoderCard
from oodbench.encoder.hub import quietly, reason
from oodbench.encoder.pretrained import Origin
from oodbench.errors import UserError


def model(source: Origin | EncoderCard, device: torch.device) -> Any:
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
        raise UserError(f"open_clip cannot build {source.architecture}: {reason(error)}{hint}") from error


def tokenizer(card: EncoderCard, folder: Path | None) -> Any:
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
            return quietly(lambda: open_clip.tokenizer.HFTokenizer(str(folder.absolute()), **options))
        except Exception as error:  # transformers raises many kinds
            hint = "`pip install transformers`" if isinstance(error, ImportError) else "complete it"
            raise UserError(
                f"encoder '{card.name}': the tokenizer in {folder} cannot be read ({reason(error)}); {hint}"
            ) from error
    found = hub.cached(card.tokenizer, "tokenizer_config.json", "tokenizer.json")
    if found is not None:
        try:  # as a folder, of which transformers asks no network
            return quietly(lambda: open_clip.tokenizer.HFTokenizer(str(found.parent), **options))
        except (OSError, ValueError):
            pass  # an incomplete one, as a broken download leaves it
    try:
        hub.require()
        return quietly(lambda: open_clip.tokenizer.HFTokenizer(card.tokenizer, **options))
    except Exception as error:
        raise UserError(
            f"encoder '{card.name}' needs the tokenizer {card.tokenizer}, which has to be downloaded once: "
            f"run with a network and `pip install transformers` ({reason(error)})"
        ) from error


def tokenizer_name(config: dict[str, Any]) -> str:
    """`clip` for CLIP's own byte pairs, else a repository of the Hugging Face Hub."""
    return str(config["text_cfg"].get("hf_tokenizer_name") or "clip")
