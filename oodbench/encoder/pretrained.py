"""Find the config, the preprocessing and the weights file of a spec; download the file if it is not cached."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import open_clip
from huggingface_hub.errors import EntryNotFoundError
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg

from oodbench.encoder.card import EMBEDDED, LOCAL_PREFIX, TOKENIZER_FILES, EncoderSpec
from oodbench.encoder.transformers_models import WEIGHTS, read_folder
from oodbench.errors import UserError, did_you_mean

_TIMEOUT = 5  # seconds for the Hub to answer
_TEXT_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")  # the files of configs and tokenizers


def hub_weights(repository: str, name: str = "") -> Path:
    """Return the checkpoint of a repository, safetensors if it has one. Raise OSError if the Hub cannot be reached."""
    names = [f"{name.rpartition('.')[0]}.safetensors", name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return cached(repository, *names) or _download(repository, name or None)


def config_file(repository: str) -> Path:
    """Return open_clip's config file of a repository; transformers' `config.json` if it has none.

    Without a network, the file is taken from the Hub's cache.
    """
    found = cached(repository, HF_CONFIG_NAME)
    if found is not None:
        return found
    try:
        require_hub()
        return Path(huggingface_hub.hf_hub_download(repository, HF_CONFIG_NAME))
    except EntryNotFoundError:
        return cached(repository, "config.json") or Path(huggingface_hub.hf_hub_download(repository, "config.json"))
    except OSError:
        found = cached(repository, "config.json")
        if found is None:
            raise
        return found


def snapshot(repository: str, config: Path) -> Path:
    """Return the folder in the Hub's cache with transformers' files of a repository; download missing files."""
    processors = ("preprocessor_config.json", "processor_config.json")
    parts = (WEIGHTS, TOKENIZER_FILES, processors)
    complete = [any((config.parent / name).is_file() for name in names) for names in parts]
    if all(complete):
        return config.parent
    try:
        require_hub()
        listed = huggingface_hub.list_repo_files(repository)
        weights = next((name for name in WEIGHTS if name in listed), "none")
        shards = [f"{weights.partition('.')[0]}-*"] if weights.endswith(".index.json") else []
        wanted = [weights, *shards, *_TEXT_PATTERNS]
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted, ignore_patterns="*/*"))
    except OSError:
        if not complete[0]:
            raise
        return config.parent


def cached(repository: str, *names: str) -> Path | None:
    """Return the first of these files in the Hub's cache on this machine, or None."""
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def require_hub() -> None:
    """Raise ConnectionError if the Hub does not answer; its own client would retry each file for 23 seconds."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    if os.environ.get("ALL_PROXY") or os.environ.get("all_proxy"):
        return  # the Hub's client uses it, urllib does not
    address = huggingface_hub.constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()  # an error page is an answer
    except OSError as error:
        error_text = getattr(error, "reason", error)
        if not isinstance(error_text, ssl.SSLError):  # the Hub's client may trust other certificates
            raise ConnectionError(f"{address} cannot be reached ({error_text})") from error


def _download(repository: str, name: str | None) -> Path:
    require_hub()
    return Path(download_pretrained_from_hf(repository, filename=name))


def error_text(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def without_logs(call: Callable[[], T]) -> T:
    """Call a function without log lines of open_clip and the Hub's client."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return call()
    finally:
        logging.disable(previous)


_PREPROCESS = ("mean", "std", "resize_mode", "interpolation", "fill_color")
T = TypeVar("T")


@dataclass(frozen=True)
class PretrainedFiles:
    """The config of a model, its preprocessing, and the file of its weights."""

    name: str
    architecture: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    path: Path
    tag: str = ""
    notes: tuple[str, ...] = ()


def find_pretrained(spec: EncoderSpec) -> PretrainedFiles:
    """Return the config, preprocessing and file of a spec; download the weights of a tag if they are not cached."""
    if spec.text == EMBEDDED:
        return _embedded()
    if spec.hub:
        return _from_hub(spec)
    if spec.tag and not spec.json:
        return _tagged(spec)
    assert spec.path is not None  # parse_encoder refuses a spec without tag and file
    if spec.json:
        raw = _json(Path(spec.architecture))
        architecture, config_file = Path(spec.architecture).stem, raw.get("model_cfg", raw)
    else:
        raw, architecture, config_file = {}, spec.architecture, _known(spec)
    preprocess = _preprocess(raw.get("preprocess_cfg", {}))
    notes: tuple[str, ...] = ()
    if "preprocess_cfg" not in raw:
        notes = (
            f"{architecture} without a tag: assuming its default activation "
            f"({'QuickGELU' if config_file.get('quick_gelu') else 'GELU'}), CLIP's mean and std, "
            f"and {preprocess['interpolation']} resizing of the {preprocess['resize_mode']} side"
            + (f"; to use those of a tag, write {architecture}/TAG@FILE" if not spec.json else ""),
        )
    return PretrainedFiles(spec.text, architecture, config_file, preprocess, spec.path, notes=notes)


def _embedded() -> PretrainedFiles:
    from oodbench.data.glyphs import weights

    preprocess = _preprocess({"mean": weights.MEAN, "std": weights.STD})
    return PretrainedFiles(EMBEDDED, EMBEDDED, copy.deepcopy(weights.config()), preprocess, weights.FILE)


def _tagged(spec: EncoderSpec) -> PretrainedFiles:
    config_file = _known(spec)
    tags = open_clip.list_pretrained_tags_by_model(spec.architecture)
    tagged = open_clip.get_pretrained_cfg(spec.architecture, spec.tag)  # ignores case, and takes - for _
    if not tagged:
        hint = (
            did_you_mean(spec.tag, tags) if tags else f"; give a file: {spec.architecture}@path/to/weights.safetensors"
        )
        raise UserError(f"{spec.architecture} has no weights tagged '{spec.tag}'{hint}")
    tag = next(tag for tag in tags if open_clip.get_pretrained_cfg(spec.architecture, tag) is tagged)
    # open_clip itself uses the architecture's activation, and only warns if the tag was trained with the other one.
    config_file["quick_gelu"] = bool(tagged.get("quick_gelu") or config_file.get("quick_gelu"))
    name = f"{spec.architecture}/{tag}"
    path = spec.path or _fetched(lambda: _weights(tagged), spec, name)
    return PretrainedFiles(
        f"{name}@{spec.path}" if spec.path else name, spec.architecture, config_file, _preprocess(tagged), path, tag=tag
    )


def _from_hub(spec: EncoderSpec) -> PretrainedFiles:
    place = spec.text.partition(":")[2]
    what = f"encoder '{spec.text}'"
    local = spec.text.startswith(LOCAL_PREFIX)
    if local:
        config, architecture = _local_config(Path(place).expanduser(), what)
    else:
        config, architecture = _fetched(lambda: config_file(place), spec, "ARCHITECTURE/TAG"), spec.text
    if config.name != HF_CONFIG_NAME:
        folder = config.parent if local else _fetched(lambda: snapshot(place, config), spec, "ARCHITECTURE/TAG")
        found = read_folder(folder, what)
        return PretrainedFiles(
            spec.text, architecture, found.config, found.preprocess, found.weights, notes=found.notes
        )
    raw = _json(config)
    if local:
        checkpoint = open_clip.factory._find_checkpoint_in_dir(config.parent)
        if checkpoint is None:
            raise UserError(f"{what}: {config.parent} holds no checkpoint (.safetensors, .bin or .pth)")
        path = Path(checkpoint)
    else:
        path = _fetched(lambda: hub_weights(place), spec, "ARCHITECTURE/TAG")
    return PretrainedFiles(
        spec.text, architecture, raw.get("model_cfg", raw), _preprocess(raw.get("preprocess_cfg", {})), path
    )


def _local_config(folder: Path, what: str) -> tuple[Path, str]:
    """Return the config in a folder, of open_clip or transformers, and the folder's name. Raise UserError if none."""
    for name in (HF_CONFIG_NAME, "config.json"):
        if (folder / name).is_file():
            return folder / name, folder.resolve().name
    if not folder.is_dir():
        raise UserError(f"{what}: {folder} is not a folder")
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))  # sentence-transformers has 0_CLIPModel
    hint = f"; use {folder / below[0]}" if below else ""
    if (folder / "adapter_config.json").is_file():
        hint = "; it holds a LoRA adapter: merge it into its CLIP, and save the whole model"
    raise UserError(
        f"{what}: {folder} has neither {HF_CONFIG_NAME} nor the config.json of a transformers CLIP or SigLIP{hint}"
    )


def _known(spec: EncoderSpec) -> dict[str, Any]:
    found = open_clip.get_model_config(spec.architecture)
    if found is not None:
        return dict(found)
    known = open_clip.list_models()
    meant = {name.lower(): name for name in known}
    for guess in (spec.architecture, f"{spec.architecture}-{spec.tag}"):  # the paper writes ViT-B/16
        if guess.lower() in meant:
            raise UserError(f"no architecture '{spec.architecture}'; did you mean '{meant[guess.lower()]}'?")
    hint = did_you_mean(spec.architecture, known)
    if "did you mean" not in hint:
        hint = f"; see open_clip.list_models(), or write hf-hub:{spec.text} if it is a repository on the Hub"
    raise UserError(f"no architecture '{spec.architecture}'{hint}")


def _json(path: Path) -> dict[str, Any]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        config_file = raw.get("model_cfg", raw)
        complete = {"embed_dim", "vision_cfg", "text_cfg"} <= set(config_file)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"model config {path} is not a JSON object: {error_text(error)}") from error
    if not complete:
        raise UserError(f"model config {path} needs embed_dim, vision_cfg and text_cfg, as open_clip's have")
    return dict(raw)


def _preprocess(given: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of a config, with open_clip's defaults for missing keys."""
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
    return hub_weights(repository, name) if repository else Path(open_clip.download_pretrained(tagged))


def _fetched(fetch: Callable[[], T], spec: EncoderSpec, name: str) -> T:
    try:
        return without_logs(fetch)
    except Exception as error:  # of the network, the Hub's client or the disk
        raise UserError(
            f"encoder '{spec.text}': its weights are not on this machine and cannot be fetched: {error_text(error)}\n"
            f"  without a network, give a checkpoint file: --encoder {name}@path/to/weights.safetensors (or .pt)"
            + (", or the model's folder: --encoder local-dir:FOLDER" if spec.hub else "")
        ) from error
