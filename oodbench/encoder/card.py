"""EncoderCard: all that identifies an encoder, known without building it. Imports neither torch nor open_clip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.result import slug
from oodbench.store import digest

EMBEDDED = "glyphs"
SCHEMAS = ("hf-hub:", "local-dir:")
RESIZE_FILTERS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class EncoderSpec:
    """What `--encoder` says: `glyphs`, `arch/tag`, `arch/tag@path`, `arch@path` or `hf-hub:...`.

    `architecture` may be a JSON file in open_clip's model-config format.
    """

    text: str
    architecture: str
    tag: str = ""
    path: Path | None = None

    @property
    def hub(self) -> bool:
        return self.architecture.startswith(SCHEMAS)


def parse_encoder(text: str) -> EncoderSpec:
    """Read an `--encoder` value; UserError with the accepted forms when it is none of them."""
    if text == EMBEDDED:
        return EncoderSpec(text, text)
    if text.startswith(SCHEMAS):
        return EncoderSpec(text, text)
    head, at, path = text.partition("@")
    if head.endswith(".json"):
        architecture, tag = head, ""
    else:
        architecture, _, tag = head.partition("/")
    if not architecture or (at and not path) or not (at or tag):
        raise UserError(
            f"cannot read encoder '{text}'; write glyphs, ViT-B-16/openai (architecture/tag), "
            "ViT-B-16/openai@weights.pt, ViT-B-16@weights.pt or hf-hub:owner/model"
        )
    file = Path(path).expanduser() if at else None
    if file is not None and not file.is_file():
        raise UserError(f"encoder '{text}': checkpoint {file} does not exist")
    if head.endswith(".json") and not Path(architecture).is_file():
        raise UserError(f"encoder '{text}': model config {architecture} does not exist")
    return EncoderSpec(text, architecture, tag, file)


@dataclass(frozen=True)
class EncoderCard:
    """A resolved encoder. Everything but `name` and `notes` is part of its identity.

    weights      sha256 of the checkpoint file
    config       open_clip's model config in full, with the activation (quick_gelu) that the weights were trained with
    size         pixels, height and width
    activation   where the activations come from: "proj", "c_proj", "head", "fc2", or "embedding" for a tower that ends
                 in no linear map
    width        of the activations
    scale        exp(logit_scale)
    notes        what had to be assumed
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

    @property
    def identity(self) -> str:
        """sha256 of what embeddings depend on."""
        return digest({k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "notes")})

    @property
    def local(self) -> bool:
        """Whether the weights came from a file of the user's, so that the name does not tell them."""
        return "@" in self.name

    @property
    def slug(self) -> str:
        """Folder name: `ViT-B-16-openai`; with the digest of the weights when they are a file of the user's."""
        head = self.name.partition("@")[0]
        head = Path(head).stem if head.endswith(".json") else head
        return slug(head) + (f"-{self.weights[:8]}" if self.local else "")

    def row(self) -> dict[str, Any]:
        """What a row keeps: everything, with the path of a local checkpoint cut to its file name."""
        plain = dataclasses.asdict(self)
        head, at, path = self.name.partition("@")
        plain["name"] = f"{Path(head).name if head.endswith('.json') else head}{at}{Path(path).name if at else ''}"
        return {**plain, "slug": self.slug, "identity": self.identity}


def card_from(facts: dict[str, Any]) -> EncoderCard:
    """A card from its JSON form."""
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return EncoderCard(**lists)
