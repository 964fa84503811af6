"""Origin: config, preprocessing and weights file of a spec, which is fetched where it has to be."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import open_clip
from open_clip.transform import PreprocessCfg

from oodbench.encoder import hub
from oodbench.encoder.card import EMBEDDED, LOCAL_FOLDER, EncoderSpec
from oodbench.encoder.hub import quietly, reason
from oodbench.errors import UserError, did_you_mean

_PREPROCESS = ("mean", "std", "resize_mode", "interpolation", "fill_color")
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """How to build a model and where its weights are."""

    name: str
    architecture: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    path: Path
    tag: str = ""
    notes: tuple[str, ...] = ()


def origin(spec: EncoderSpec) -> Origin:
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
    preprocess = _preprocess(raw.get("preprocess_cfg", {}))
    notes: tuple[str, ...] = ()
    if "preprocess_cfg" not in raw:
        notes = (
            f"{architecture} without a tag: assuming its default activation "
            f"({'QuickGELU' if config.get('quick_gelu') else 'GELU'}), CLIP's mean and std, "
            f"and {preprocess['interpolation']} resizing of the {preprocess['resize_mode']} side"
            + (f"; for those of a tag write {architecture}/TAG@FILE" if not spec.json else ""),
        )
    return Origin(spec.text, architecture, config, preprocess, spec.path, notes=notes)


def _embedded() -> Origin:
    from oodbench.data.glyphs import weights

    preprocess = _preprocess({"mean": weights.MEAN, "std": weights.STD})
    return Origin(EMBEDDED, EMBEDDED, copy.deepcopy(weights.config()), preprocess, weights.FILE)


def _tagged(spec: EncoderSpec) -> Origin:
    config = _known(spec)
    tags = open_clip.list_pretrained_tags_by_model(spec.architecture)
    tagged = open_clip.get_pretrained_cfg(spec.architecture, spec.tag)  # in any case, - for _
    if not tagged:
        hint = (
            did_you_mean(spec.tag, tags) if tags else f"; give a file: {spec.architecture}@path/to/weights.safetensors"
        )
        raise UserError(f"{spec.architecture} has no weights tagged '{spec.tag}'{hint}")
    tag = next(tag for tag in tags if open_clip.get_pretrained_cfg(spec.architecture, tag) is tagged)
    # open_clip itself takes the architecture's activation, and only warns when the tag was trained with the other.
    config["quick_gelu"] = bool(tagged.get("quick_gelu") or config.get("quick_gelu"))
    name = f"{spec.architecture}/{tag}"
    path = spec.path or _fetched(lambda: _weights(tagged), spec, name)
    return Origin(
        f"{name}@{spec.path}" if spec.path else name, spec.architecture, config, _preprocess(tagged), path, tag=tag
    )


def _from_hub(spec: EncoderSpec) -> Origin:
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
        raw = _json(_fetched(lambda: hub.config(place), spec, "ARCHITECTURE/TAG"))
        path, architecture = _fetched(lambda: hub.weights(place), spec, "ARCHITECTURE/TAG"), spec.text
    return Origin(spec.text, architecture, raw.get("model_cfg", raw), _preprocess(raw.get("preprocess_cfg", {})), path)


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
        raise UserError(f"model config {path} is not a JSON object: {reason(error)}") from error
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


def _fetched(fetch: Callable[[], T], spec: EncoderSpec, name: str) -> T:
    try:
        return quietly(fetch)
    except Exception as error:  # of the network, the hub's client or the disk
        raise UserError(
            f"encoder '{spec.text}': its weights are not on this machine and cannot be fetched: {reason(error)}\n"
            f"  without a network, give a checkpoint file: --encoder {name}@path/to/weights.safetensors (or .pt)"
        ) from error
