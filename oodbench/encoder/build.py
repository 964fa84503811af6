"""What open_clip needs to build a model: config, preprocessing and weights file of a spec; and the model itself."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from oodbench.encoder import hub
from oodbench.encoder.card import EMBEDDED, LOCAL_FOLDER, EncoderCard, EncoderSpec
from oodbench.errors import UserError, did_you_mean

_PREPROCESS = ("mean", "std", "resize_mode", "interpolation", "fill_color")
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How to build a model and where its weights are."""

    name: str
    architecture: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    path: Path
    tag: str = ""
    notes: tuple[str, ...] = ()


def plan(spec: EncoderSpec) -> Plan:
    """Config, preprocessing and file of a spec; fetches the weights of a tag when they are not cached."""
    if spec.text == EMBEDDED:
        return _embedded()
    if spec.hub:
        return _from_hub(spec)
    if spec.tag and not spec.json:
        return _tagged(spec)
    assert spec.path is not None  # parse_encoder refuses a spec without tag and file
    if spec.json:
        raw = _json(Path(spec.architecture))
        architecture, config = Path(spec.architecture).stem, raw.get("model_cfg", raw)
    else:
        raw, architecture, config = {}, spec.architecture, _known(spec)
    preprocess, notes = _preprocess(raw.get("preprocess_cfg", {})), ()
    if "preprocess_cfg" not in raw:
        notes = (
            f"{architecture} without a tag: assuming its default activation "
            f"({'QuickGELU' if config.get('quick_gelu') else 'GELU'}), CLIP's mean and std, "
            f"and {preprocess['interpolation']} resizing of the {preprocess['resize_mode']} side",
        )
    return Plan(spec.text, architecture, config, preprocess, spec.path, notes=notes)


def model(plan: Plan | EncoderCard, device: torch.device) -> Any:
    """The model with random weights (none at all on the meta device), in evaluation mode, frozen."""
    config = copy.deepcopy(plan.config)
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
        raise UserError(f"open_clip cannot build {plan.architecture}: {_reason(error)}{hint}") from error


def tokenizer(card: EncoderCard, path: Path) -> Any:
    """The tokenizer of an encoder; UserError when it would have to be fetched and cannot."""
    text = card.config["text_cfg"]
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if card.tokenizer == "clip":
        return open_clip.SimpleTokenizer(**options)
    source: Any = path.parent if card.name.startswith(LOCAL_FOLDER) else card.tokenizer
    try:
        if source == card.tokenizer and not hub.cached(source, "tokenizer_config.json", "tokenizer.json"):
            hub.require()
        mode = text.get("tokenizer_mode")
        return _quietly(lambda: open_clip.tokenizer.HFTokenizer(source, tokenizer_mode=mode, **options))
    except Exception as error:
        raise UserError(
            f"encoder '{card.name}' needs the tokenizer {card.tokenizer}, which the Hugging Face Hub holds: run once with "
            f"a network and `pip install transformers` ({_reason(error)})"
        ) from error


def tokenizer_name(config: dict[str, Any]) -> str:
    """`clip` for CLIP's own byte pairs, else a repository of the Hugging Face Hub."""
    return str(config["text_cfg"].get("hf_tokenizer_name") or "clip")


def _embedded() -> Plan:
    from oodbench.glyphs import weights

    preprocess = _preprocess({"mean": weights.MEAN, "std": weights.STD})
    return Plan(EMBEDDED, EMBEDDED, copy.deepcopy(weights.config()), preprocess, weights.FILE)


def _tagged(spec: EncoderSpec) -> Plan:
    config = _known(spec)
    tags = open_clip.list_pretrained_tags_by_model(spec.architecture)
    tagged = open_clip.get_pretrained_cfg(spec.architecture, spec.tag)  # in any case, - for _
    if not tagged:
        hint = did_you_mean(spec.tag, tags) if tags else f"; give a file: {spec.architecture}@path/to/weights.safetensors"
        raise UserError(f"{spec.architecture} has no weights tagged '{spec.tag}'{hint}")
    tag = next(tag for tag in tags if open_clip.get_pretrained_cfg(spec.architecture, tag) is tagged)
    # open_clip itself takes the architecture's activation, and only warns when the tag was trained with the other.
    config["quick_gelu"] = bool(tagged.get("quick_gelu") or config.get("quick_gelu"))
    name = f"{spec.architecture}/{tag}"
    path = spec.path or _fetched(lambda: _weights(tagged), f"the weights of {name}", name)
    return Plan(
        f"{name}@{spec.path}" if spec.path else name, spec.architecture, config, _preprocess(tagged), path, tag=tag
    )


def _from_hub(spec: EncoderSpec) -> Plan:
    place = spec.text.partition(":")[2]
    what = f"encoder '{spec.text}'"
    if spec.text.startswith(LOCAL_FOLDER):
        folder = Path(place).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(f"{what}: {folder / 'open_clip_config.json'} does not exist")
        raw, found = _json(folder / "open_clip_config.json"), open_clip.factory._find_checkpoint_in_dir(folder)
        if found is None:
            raise UserError(f"{what}: {folder} holds no checkpoint (.safetensors, .bin or .pth)")
        path, architecture = Path(found), folder.resolve().name
    else:
        raw = _json(_fetched(lambda: hub.config(place), what, "ARCHITECTURE/TAG"))
        path, architecture = _fetched(lambda: hub.weights(place), what, "ARCHITECTURE/TAG"), spec.text
    return Plan(spec.text, architecture, raw.get("model_cfg", raw), _preprocess(raw.get("preprocess_cfg", {})), path)


def _known(spec: EncoderSpec) -> dict[str, Any]:
    found = open_clip.get_model_config(spec.architecture)
    if found is not None:
        return dict(found)
    known = open_clip.list_models()
    meant = {name.lower(): name for name in known}
    for guess in (spec.architecture, f"{spec.architecture}-{spec.tag}"):  # ViT-B/16 is how the paper writes it
        if guess.lower() in meant:
            raise UserError(f"no architecture '{spec.architecture}'; did you mean '{meant[guess.lower()]}'?")
    hint = did_you_mean(spec.architecture, known)
    raise UserError(
        f"no architecture '{spec.architecture}'{hint if 'did you mean' in hint else '; see open_clip.list_models()'}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        config = raw.get("model_cfg", raw)
        complete = {"embed_dim", "vision_cfg", "text_cfg"} <= set(config)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"model config {path} is not a JSON object: {_reason(error)}") from error
    if not complete:
        raise UserError(f"model config {path} needs embed_dim, vision_cfg and text_cfg, as open_clip's have")
    return dict(raw)


def _preprocess(given: dict[str, Any]) -> dict[str, Any]:
    """open_clip's defaults under what is given, spelled out."""
    found = {k: v for k, v in dataclasses.asdict(PreprocessCfg()).items() if k in _PREPROCESS}
    found |= {k: given[k] for k in _PREPROCESS if given.get(k) is not None}
    if found["interpolation"] == "random":  # random in training; open_clip evaluates with bicubic
        found["interpolation"] = "bicubic"
    for key, known in (("interpolation", ("bicubic", "bilinear")), ("resize_mode", ("shortest", "longest", "squash"))):
        if found[key] not in known:
            raise UserError(f"preprocessing of the encoder: {key} is '{found[key]}', not one of {', '.join(known)}")
    for key in ("mean", "std"):
        value = found[key]
        found[key] = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    return found


def _weights(tagged: dict[str, Any]) -> Path:
    repository, _, name = tagged.get("hf_hub", "").rpartition("/")
    return hub.weights(repository, name) if repository else Path(open_clip.download_pretrained(tagged))


def _fetched(fetch: Callable[[], T], what: str, name: str) -> T:
    try:
        return _quietly(fetch)
    except Exception as error:  # of the network, the hub's client or the disk
        raise UserError(
            f"{what} is not on this machine and cannot be fetched: {_reason(error)}\n"
            f"  without a network, give a checkpoint file: --encoder {name}@path/to/weights.safetensors (or .pt)"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _quietly(call: Callable[[], T]) -> T:
    """Run without open_clip's and the hub's log lines: what went wrong becomes one error."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return call()
    finally:
        logging.disable(previous)
