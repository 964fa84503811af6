"""The identity of an encoder, available without building it. This module imports neither torch nor open_clip."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.encoder.names import open_clip_name, tags
from oodbench.errors import UserError
from oodbench.results import slug
from oodbench.storage.fingerprints import file_identity
from oodbench.storage.store import digest, file_digest

EMBEDDED = "glyphs"
CLIP = "ViT-B-16/openai"
COCA = "coca_ViT-B-32/laion2b_s13b_b90k"
LOCAL_PREFIX = "local-dir:"
PLUGIN_PREFIX = "plugin:"
HUB_PREFIXES = ("hf-hub:", LOCAL_PREFIX)
_CUSTOM_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
RESIZE_FILTERS = ("bicubic", "bilinear")
THIS_FOLDER = "."  # as the name of a tokenizer: the tokenizer in the folder of the weights
# A folder with a tokenizer for transformers has at least one of these files.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class EncoderSpec:
    """A value of `--encoder`, such as `glyphs`, `arch/tag`, `arch/tag@path`, `arch@path` or `hf-hub:owner/model`.

    It may also be `local-dir:folder`, `plugin:FILE.py` or `plugin:NAME` (an entry point), and `architecture` may be a
    JSON file in the format of open_clip's model configs.
    """

    text: str
    architecture: str
    tag: str = ""
    path: Path | None = None

    @property
    def hub(self) -> bool:
        """Return whether the config and the weights come from one repository or folder."""
        return self.architecture.startswith(HUB_PREFIXES)

    @property
    def plugin(self) -> bool:
        """Return whether the encoder is a Python file or an entry point of the user."""
        return self.text.startswith(PLUGIN_PREFIX)

    @property
    def json(self) -> bool:
        """Return whether the architecture is a JSON file."""
        return self.architecture.endswith(".json")


def parse_encoder(text: str) -> EncoderSpec:
    """Parse a value of `--encoder`. Raise UserError with the accepted forms for anything else."""
    text = open_clip_name(text)
    if text == EMBEDDED:
        return EncoderSpec(text, text)
    if text.startswith((*HUB_PREFIXES, PLUGIN_PREFIX)):
        return EncoderSpec(text, text)
    if text and (prefix := _prefix_of(Path(text).expanduser())):
        raise UserError(f"encoder '{text}' needs a prefix:\n  --encoder {shlex.quote(prefix + text)}")
    if ".json@" in text:
        head, at, path = text.partition(".json@")
        architecture, tag, at = f"{head}.json", "", "@"
    else:
        head, at, path = text.partition("@")
        architecture, _, tag = (head, "", "") if head.endswith(".json") else head.partition("/")
    if not (at or tag) and (known := tags(architecture) if re.fullmatch(r"[\w-]+", text) else ()):
        commands = "\n  ".join(f"--encoder {architecture}/{tag}" for tag in known)
        raise UserError(f"encoder '{text}' names no weights; name one of its tags\n  {commands}")
    if not architecture or (at and not path) or not (at or tag):
        raise UserError(
            f"cannot read encoder '{text}'; write glyphs, ViT-B-16/openai (architecture/tag), "
            "ViT-B-16/openai@weights.pt, ViT-B-16@weights.pt, config.json@weights.pt, hf-hub:owner/model, "
            "local-dir:folder or plugin:file.py"
        )
    file = Path(path).expanduser() if at else None
    for what, needed in (("checkpoint", file), ("model config", Path(architecture))):
        if needed is None or (what == "model config" and not architecture.endswith(".json")):
            continue
        if needed.is_dir():
            raise UserError(f"encoder '{text}': {what} {needed} is a folder, not a file")
        if not needed.is_file():
            raise UserError(f"encoder '{text}': {what} {needed} does not exist")
    return EncoderSpec(text, architecture, tag, file)


def _prefix_of(path: Path) -> str:
    """Return the missing prefix of a path to a Python file or to a folder with a model config; else ""."""
    if path.suffix == ".py" and path.is_file():
        return PLUGIN_PREFIX
    configs = ("open_clip_config.json", "config.json")
    return LOCAL_PREFIX if any((path / name).is_file() for name in configs) else ""


@dataclass(frozen=True)
class EncoderCard:
    """A resolved encoder. Everything but `name` and `notes` is part of its identity.

    tokenizer    "clip" for CLIP's own tokenizer, else a repository on the Hugging Face Hub
    weights      sha256 of the checkpoint file
    config       open_clip's complete model config, with the activation (quick_gelu) that the weights were trained with
    size         height and width in pixels
    activation   kind of the image tower's last linear map, see oodbench/encoder/build.py
    width        width of the activations
    scale        exp(logit_scale)
    notes        assumptions that had to be made
    text_files   sha256 of the tokenizer's local files; "" if it reads none
    resize_to    (shorter side,) or (height, width) before the crop, for images that are preprocessed as in
                 transformers; () for open_clip's preprocessing, which resizes to `size`
    """

    name: str
    architecture: str
    tag: str
    weights: str
    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize_mode: str
    interpolation: str
    fill_color: int
    tokenizer: str
    embed_dim: int
    activation: str
    width: int
    scale: float
    notes: tuple[str, ...] = ()
    text_files: str = ""
    resize_to: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        """Return the sha256 of everything that embeddings depend on."""
        return digest({k: v for k, v in self._facts().items() if k not in ("name", "notes")})

    @property
    def plugin(self) -> bool:
        """Return whether the encoder is a Python file or an entry point of the user."""
        return self.name.startswith(PLUGIN_PREFIX)

    def lacks(self, part: str) -> bool:
        """Return whether the encoder is a plugin without an optional part, such as `text_tower`."""
        return self.plugin and part not in self.config["offers"]

    @property
    def caption_error(self) -> str:
        """Return why the encoder cannot write captions; "" for a CoCa, which can, or a plugin with a captioner."""
        coca = "multimodal_cfg" in self.config or (self.plugin and not self.lacks("captioner"))
        return "" if coca else f"{self.name} does not write captions; use a CoCa, such as --encoder {COCA}"

    @property
    def patch_error(self) -> str:
        """Return why the encoder has no patch features; "" for CLIP's own towers, or a plugin with patches()."""
        if self.plugin:
            return f"{self.name} has no patches()" if self.lacks("patches") else ""
        vision = self.config["vision_cfg"]
        if "timm_model_name" in vision:
            why = f"its image tower is timm's {vision['timm_model_name']}"
        elif vision.get("attentional_pool"):
            why = "it pools its patches by attention before it projects them, as a CoCa does"
        elif vision.get("block_type") == "custom" or any(vision.get(name) for name in _CUSTOM_BLOCKS):
            why = "the blocks of its image tower are not CLIP's"
        else:
            return ""
        return f"{self.name} has no patch features: {why}; use a CLIP with a ViT or ResNet, such as --encoder {CLIP}"

    @property
    def local(self) -> bool:
        """Return whether the weights are a file of the user, so that the name does not identify them."""
        return "@" in self.name or self.name.startswith((LOCAL_PREFIX, PLUGIN_PREFIX))

    @property
    def slug(self) -> str:
        """Return a folder name, such as `ViT-B-16-openai`; a file of the user adds the digest of the weights."""
        return slug(self._named().partition("@")[0].removesuffix(".json").removesuffix(".py")) + (
            f"-{self.weights[:8]}" if self.local else ""
        )

    def row(self) -> dict[str, Any]:
        """Return the fields for a result row, with paths in the name shortened to file names."""
        return {**self._facts(), "name": self._named(), "slug": self.slug, "identity": self.identity}

    def _facts(self) -> dict[str, Any]:
        """Return all fields except newer ones that are empty, so that the identities of older versions stay."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v or k not in ("text_files", "resize_to")}

    def _named(self) -> str:
        """Return the name with paths shortened to file names."""
        if self.name.startswith(LOCAL_PREFIX):
            return f"{LOCAL_PREFIX}{self.architecture}"
        if self.plugin:
            return f"{PLUGIN_PREFIX}{Path(self.name.removeprefix(PLUGIN_PREFIX)).name}"
        head, at, path = self.name.partition(".json@" if ".json@" in self.name else "@")
        head = Path(head).name if at == ".json@" else head
        return f"{head}{at}{Path(path).name}"


def card_from(facts: dict[str, Any]) -> EncoderCard:
    """Return a card from its JSON form."""
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return EncoderCard(**lists)


def weight_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint: the file itself, and the shards that an index (`*.index.json`) names."""
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        shards = [path.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {path} is not an index of shards: {error}") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"checkpoint {path} names missing files, {', '.join(missing)}; complete the folder")
    return [path, *shards]


def weights_digest(path: Path) -> str:
    """Return the sha256 of a checkpoint file; for an index, the sha256 of the names and contents of all its files."""
    files = weight_files(path)
    return file_digest(path) if len(files) == 1 else digest([[file.name, file_digest(file)] for file in files])


def weights_identity(path: Path) -> dict[str, Any]:
    """Return the attributes that identify the version of a checkpoint on this machine, including its shards."""
    shards = [file_identity(shard) for shard in weight_files(path)[1:]] if path.is_file() else []
    return {**file_identity(path), **({"shards": shards} if shards else {})}
