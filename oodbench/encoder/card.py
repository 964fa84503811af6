"""EncoderCard: all that identifies an encoder, known without building it. Imports neither torch nor open_clip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.results import slug
from oodbench.storage.store import digest

EMBEDDED = "glyphs"
COCA = "coca_ViT-B-32/laion2b_s13b_b90k"
LOCAL_PREFIX = "local-dir:"
HUB_PREFIXES = ("hf-hub:", LOCAL_PREFIX)
RESIZE_FILTERS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class EncoderSpec:
    """What `--encoder` says: `glyphs`, `arch/tag`, `arch/tag@path`, `arch@path` or `hf-hub:owner/model` (or
    `local-dir:folder`).

    `architecture` may be a JSON file in open_clip's model-config format.
    """

    text: str
    architecture: str
    tag: str = ""
    path: Path | None = None

    @property
    def hub(self) -> bool:
        return self.architecture.startswith(HUB_PREFIXES)

    @property
    def json(self) -> bool:
        return self.architecture.endswith(".json")


def parse_encoder(text: str) -> EncoderSpec:
    """Read an `--encoder` value; UserError with the accepted forms when it is none of them."""
    if text == EMBEDDED:
        return EncoderSpec(text, text)
    if text.startswith(HUB_PREFIXES):
        return EncoderSpec(text, text)
    if ".json@" in text:
        head, at, path = text.partition(".json@")
        architecture, tag, at = f"{head}.json", "", "@"
    else:
        head, at, path = text.partition("@")
        architecture, _, tag = (head, "", "") if head.endswith(".json") else head.partition("/")
    if not architecture or (at and not path) or not (at or tag):
        raise UserError(
            f"cannot read encoder '{text}'; write glyphs, ViT-B-16/openai (architecture/tag), "
            "ViT-B-16/openai@weights.pt, ViT-B-16@weights.pt, config.json@weights.pt or hf-hub:owner/model"
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


@dataclass(frozen=True)
class EncoderCard:
    """A resolved encoder. Everything but `name` and `notes` is part of its identity.

    tokenizer    "clip" for CLIP's own byte pairs, else a repository of the Hugging Face Hub
    weights      sha256 of the checkpoint file
    config       open_clip's model config in full, with the activation (quick_gelu) that the weights were trained with
    size         pixels, height and width
    activation   where the activations come from: "proj", "c_proj", "head", "fc2", or "embedding" for a tower that ends
                 in no linear map
    width        of the activations
    scale        exp(logit_scale)
    notes        what had to be assumed
    text_files   sha256 of the tokenizer's files in a folder of this machine; "" where it reads none
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

    @property
    def identity(self) -> str:
        """sha256 of what embeddings depend on."""
        return digest({k: v for k, v in self._facts().items() if k not in ("name", "notes")})

    @property
    def caption_error(self) -> str:
        """Why it cannot write captions; "" for a CoCa, which can."""
        coca = "multimodal_cfg" in self.config
        return "" if coca else f"{self.name} writes no captions; take a CoCa, such as --encoder {COCA}"

    @property
    def local(self) -> bool:
        """Whether the weights came from a file of the user's, so that the name does not tell them."""
        return "@" in self.name or self.name.startswith(LOCAL_PREFIX)

    @property
    def slug(self) -> str:
        """Folder name: `ViT-B-16-openai`; with the digest of the weights when they are a file of the user's."""
        return slug(self._named().partition("@")[0].removesuffix(".json")) + (
            f"-{self.weights[:8]}" if self.local else ""
        )

    def row(self) -> dict[str, Any]:
        """What a row keeps: everything, with the paths in the name cut to file names."""
        return {**self._facts(), "name": self._named(), "slug": self.slug, "identity": self.identity}

    def _facts(self) -> dict[str, Any]:
        """All fields; without `text_files` where there are none, so that identities of before it was known stay."""
        facts = dataclasses.asdict(self)
        return facts if self.text_files else {k: v for k, v in facts.items() if k != "text_files"}

    def _named(self) -> str:
        if self.name.startswith(LOCAL_PREFIX):
            return f"{LOCAL_PREFIX}{self.architecture}"
        head, at, path = self.name.partition(".json@" if ".json@" in self.name else "@")
        head = Path(head).name if at == ".json@" else head
        return f"{head}{at}{Path(path).name}"


def card_from(facts: dict[str, Any]) -> EncoderCard:
    """A card from its JSON form."""
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return EncoderCard(**lists)
