"""Resolving an encoder: architecture, preprocessing and weights of a spec, checked against each other -> EncoderCard.

A resolved card is kept in the store for as long as size, times and inode of the weights file stay, so that a later run
needs neither torch nor open_clip to know which encoder it talks about.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import EMBEDDED, LOCAL_PREFIX, EncoderCard, EncoderSpec, card_from
from oodbench.errors import UserError
from oodbench.storage.fingerprints import file_identity
from oodbench.storage.store import Store, digest, file_digest

if TYPE_CHECKING:
    from oodbench.encoder.build import ImageTower
    from oodbench.encoder.checkpoint import StateDict
    from oodbench.encoder.pretrained import PretrainedFiles

# One of these is in every folder that transformers reads a tokenizer from.
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
# What no tokenizer reads. All else is taken for its files: each kind of tokenizer has names of its own.
_OTHERS = frozenset((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".md"))


@dataclass(frozen=True)
class TextFiles:
    """Folders: of the tokenizer, and of the text tower's config; None where nothing is read from this machine."""

    tokenizer: Path | None = None
    tower: Path | None = None

    def files(self) -> list[Path]:
        """What is read, and what may be."""
        folders = dict.fromkeys(one for one in (self.tokenizer, self.tower) if one)
        return [path for folder in folders for path in sorted(folder.iterdir()) if _is_read(path)]

    def digest(self) -> str:
        """sha256 of the names and contents of the files; "" when there is no folder."""
        found = self.files()
        return digest([[path.name, file_digest(path)] for path in found]) if found else ""


def text_files(spec: EncoderSpec, text: dict[str, Any]) -> TextFiles:
    """The folders that an encoder's `text_cfg` names. UserError for an absolute one that is not there.

    A relative one starts from the folder of the config, else from the working folder, as transformers has it. The
    folder of a `local-dir:` encoder is the tokenizer's when it holds one.
    """
    local = Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser() if spec.text.startswith(LOCAL_PREFIX) else None
    base = local or (Path(spec.architecture).parent if spec.json else None)
    tower = _folder(spec, str(text.get("hf_model_name") or ""), None, "text tower's config")
    name = str(text.get("hf_tokenizer_name") or "")
    if not name:  # CLIP's own byte pairs, whatever else lies there
        return TextFiles(None, tower)
    if local and not (local / name).is_dir() and any((local / one).is_file() for one in _TOKENIZERS):
        return TextFiles(local, tower)
    return TextFiles(_folder(spec, name, base, "tokenizer"), tower)


def _folder(spec: EncoderSpec, name: str, base: Path | None, what: str) -> Path | None:
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_absolute() and not path.is_dir():
        raise UserError(f"encoder '{spec.text}': the folder of its {what}, {path}, is not there")
    return next((one for one in ([base / path] if base else []) + [path] if one.is_dir()), None)


def _is_read(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.name == "open_clip_config.json"  # the config is known in full
    return path.is_file() and not hidden and path.suffix.lower() not in _OTHERS


_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")
CARD_VERSION = 1  # raise when the same files give another card than before
GLYPHS_FOLDER = Path(__file__).parent.parent / "data" / "glyphs"


@dataclass(frozen=True)
class ResolvedEncoder:
    """A card, the file that holds its weights on this machine, and the folder of its tokenizer if it has one."""

    card: EncoderCard
    path: Path
    tokenizer: Path | None = None


def resolve(spec: EncoderSpec, resize: str | None, store: Store, *, strict: bool = False) -> ResolvedEncoder:
    """The card of a spec. `resize` overrides the filter ("bicubic", "bilinear") that the weights name.

    `strict` trusts no digest of the weights that is remembered.
    UserError when the architecture or tag is unknown, the weights cannot be read or fetched, or do not fit.
    """
    known = {
        "spec": spec.text,
        "resize": resize,
        "open_clip": version("open_clip_torch"),
        "examination": CARD_VERSION,
        "files": {str(file.resolve()): file_digest(file) for file in _declarations(spec) if file.is_file()},
        **_candidates(spec),
    }
    path = GLYPHS_FOLDER / "encoder.safetensors" if spec.text == EMBEDDED else spec.path or _remembered(store, known)
    if path is not None:
        entry = store.find("encoder", {**known, **file_identity(path)})
        if entry is not None:
            card = card_from(entry.facts["card"])
            texts = text_files(spec, card.config["text_cfg"])
            if texts.digest() == card.text_files and not (strict and file_digest(path) != card.weights):
                return ResolvedEncoder(card, path, texts.tokenizer)
            store.remove("encoder", entry.inputs)
    from oodbench.encoder.pretrained import find_pretrained

    source = find_pretrained(spec)
    texts = text_files(spec, source.config["text_cfg"])
    stamp, words = file_identity(source.path), texts.digest()
    card = _examine(source, resize, texts)
    if (file_identity(source.path), texts.digest()) != (stamp, words):
        raise UserError(f"encoder '{spec.text}': {source.path} or its tokenizer changed while it was read; run again")
    if spec.path is None:
        store.try_write("encoder-file", known, {"path": str(source.path)})
    store.try_write("encoder", {**known, **stamp}, {"card": dataclasses.asdict(card)})
    return ResolvedEncoder(card, source.path, texts.tokenizer)


def _declarations(spec: EncoderSpec) -> list[Path]:
    """Files beside the weights that the card depends on."""
    if spec.text == EMBEDDED:
        return [GLYPHS_FOLDER / "encoder.json", GLYPHS_FOLDER / "weights.py"]
    if spec.text.startswith(LOCAL_PREFIX):
        return [Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser() / "open_clip_config.json"]
    return [Path(spec.architecture)] if spec.json else []


def _candidates(spec: EncoderSpec) -> dict[str, Any]:
    """The names of the checkpoints in the folder of a `local-dir:` encoder: which is taken depends on all of them."""
    if not spec.text.startswith(LOCAL_PREFIX):
        return {}
    folder = Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {"candidates": sorted(name for name in names if Path(name).suffix in _CHECKPOINTS)}


def _is_current(path: Path) -> bool:
    """Whether a file is still there, and in the Hub's cache still of the revision that `main` means."""
    main = path.parent.parent.parent / "refs" / "main"
    inside = path.parent.parent.name == "snapshots" and main.is_file()
    return path.is_file() and (not inside or main.read_text(encoding="utf-8").strip() == path.parent.name)


def _remembered(store: Store, known: dict[str, Any]) -> Path | None:
    entry = store.find("encoder-file", known)
    path = Path(entry.facts["path"]) if entry else None
    if path is not None and not _is_current(path):
        store.remove("encoder-file", known)
        return None
    return path


def _examine(source: PretrainedFiles, resize: str | None, texts: TextFiles) -> EncoderCard:
    """Build the model without storage, compare it with the weights, and write down what was found."""
    import torch

    from oodbench.encoder import build, checkpoint
    from oodbench.encoder.build import ImageTower

    model = build.build_model(source, torch.device("meta"))
    state = checkpoint.match_names(
        model, checkpoint.load_weights(source.name, source.path), f"checkpoint {source.path}"
    )
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    tower = ImageTower(model.visual)
    embed_dim = int(source.config["embed_dim"])
    _check_size(tower, size, source.architecture)
    card = EncoderCard(
        name=source.name,
        architecture=source.architecture,
        tag=source.tag,
        weights=file_digest(source.path),
        config=json.loads(json.dumps(source.config)),
        size=size,
        **{**source.preprocess, **({"interpolation": resize} if resize else {})},
        tokenizer=build.tokenizer_name(source.config),
        embed_dim=embed_dim,
        activation=tower.kind,
        width=tower.width or embed_dim,
        scale=float(state["logit_scale"].float().exp()),
        notes=source.notes,
        text_files=texts.digest(),
    )
    build.build_tokenizer(card, texts.tokenizer)  # a missing vocabulary is told now, not after the images
    return card


def _check_size(tower: ImageTower, size: tuple[int, int], architecture: str) -> None:
    """Run the tower on shapes alone: timm's towers take the size they were made for, whatever a config says."""
    import torch

    try:
        tower(torch.zeros(1, 3, *size, device="meta"))
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"the image tower of {architecture} does not take {size[0]}x{size[1]} pixels: {reason}"
        ) from error


def load_state_dict(resolved: ResolvedEncoder) -> StateDict:
    """State dict as the model has it; no model is built in memory."""
    import torch

    from oodbench.encoder import build, checkpoint

    model = build.build_model(resolved.card, torch.device("meta"))
    state = checkpoint.load_weights(resolved.card.name, resolved.path, resolved.card.weights)
    return checkpoint.match_names(model, state, f"checkpoint {resolved.path}")
