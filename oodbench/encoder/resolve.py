"""Resolve an encoder: find the architecture, the preprocessing and the weights of a spec, and check that they fit.

The card of a resolved encoder is stored and used while size, times and inode of the weights file are unchanged, so that
a later run needs neither torch nor open_clip to identify its encoder.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import (
    EMBEDDED,
    LOCAL_PREFIX,
    TOKENIZER_FILES,
    EncoderCard,
    EncoderSpec,
    card_from,
    weights_digest,
    weights_identity,
)
from oodbench.errors import UserError
from oodbench.storage.store import Store, digest, file_digest

if TYPE_CHECKING:
    from oodbench.encoder.build import ImageTower
    from oodbench.encoder.checkpoint import StateDict
    from oodbench.encoder.pretrained import PretrainedFiles

# No tokenizer reads these files. All others count, because each kind of tokenizer has other file names.
_OTHERS = frozenset(".safetensors .bin .pt .pth .ckpt .h5 .msgpack .onnx .gguf .md .png .jpg .jpeg .gif".split())


@dataclass(frozen=True)
class TextFiles:
    """The folders of the tokenizer and of the text tower's config; None if no local folder is read."""

    tokenizer: Path | None = None
    tower: Path | None = None

    def files(self) -> list[Path]:
        """Return all files that may be read."""
        folders = dict.fromkeys(folder for folder in (self.tokenizer, self.tower) if folder)
        return [path for folder in folders for path in sorted(folder.iterdir()) if _is_read(path)]

    def digest(self) -> str:
        """Return the sha256 of the names and contents of the files; "" if there is no folder."""
        found = self.files()
        return digest([[path.name, file_digest(path)] for path in found]) if found else ""


def text_files(spec: EncoderSpec, text: dict[str, Any], weights: Path) -> TextFiles:
    """Return the folders named in an encoder's `text_cfg`. Raise UserError if an absolute path does not exist.

    A relative path starts at the folder of the config, else at the working directory, as in transformers; an encoder
    from the Hub has its config next to its weights. If the folder of a `local-dir:` encoder has a tokenizer, that one
    is used.
    """
    local = Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser() if spec.text.startswith(LOCAL_PREFIX) else None
    base = local or (Path(spec.architecture).parent if spec.json else weights.parent if spec.hub else None)
    tower = _folder(spec, str(text.get("hf_model_name") or ""), None, "text tower's config")
    name = str(text.get("hf_tokenizer_name") or "")
    if not name:  # CLIP's own tokenizer, whatever else the folder holds
        return TextFiles(None, tower)
    if local and not (local / name).is_dir() and any((local / file).is_file() for file in TOKENIZER_FILES):
        return TextFiles(local, tower)
    return TextFiles(_folder(spec, name, base, "tokenizer"), tower)


def _folder(spec: EncoderSpec, name: str, base: Path | None, what: str) -> Path | None:
    """Return the folder of a name, None if there is none."""
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_absolute() and not path.is_dir():
        raise UserError(f"encoder '{spec.text}': the folder of its {what}, {path}, does not exist")
    return next((folder for folder in ([base / path] if base else []) + [path] if folder.is_dir()), None)


def _is_read(path: Path) -> bool:
    """Return whether a tokenizer may read a file."""
    hidden = path.name.startswith(".") or path.name == "open_clip_config.json"  # the card holds the config
    return path.is_file() and not hidden and path.suffix.lower() not in _OTHERS


_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")
CARD_VERSION = 1  # increment when the same files get a different card
GLYPHS_FOLDER = Path(__file__).parent.parent / "data" / "glyphs"


@dataclass(frozen=True)
class ResolvedEncoder:
    """The card of an encoder, the file of its weights on this machine, and its tokenizer folder if it has one."""

    card: EncoderCard
    path: Path
    tokenizer: Path | None = None


def resolve(
    spec: EncoderSpec, resize: str | None, store: Store, *, strict: bool = False, sent: Path | None = None
) -> ResolvedEncoder:
    """Return the encoder of a spec. `resize` overrides the filter of the weights ("bicubic", "bilinear").

    `strict` computes the digest of the weights again. `sent` is the file of a plugin that was sent to this machine. A
    plugin is created at each call, because its identity may depend on files that only it knows. Raises UserError if the
    architecture or tag is unknown, or if the weights cannot be read or downloaded, or do not fit the architecture.
    """
    if spec.plugin:
        if resize:
            raise UserError(f"--resize {resize}: encoder '{spec.text}' preprocesses images itself, in preprocess()")
        from oodbench.encoder import plugin

        return ResolvedEncoder(*plugin.describe(spec, sent))
    known = {
        "spec": spec.text,
        "resize": resize,
        "open_clip": version("open_clip_torch"),
        "examination": CARD_VERSION,
        "files": {str(file.resolve()): file_digest(file) for file in _config_files(spec) if file.is_file()},
        **_checkpoint_names(spec),
    }
    path = GLYPHS_FOLDER / "encoder.safetensors" if spec.text == EMBEDDED else spec.path or _stored_path(store, known)
    if path is not None:
        entry = store.find("encoder", {**known, **weights_identity(path)})
        if entry is not None:
            card = card_from(entry.facts["card"])
            texts = text_files(spec, card.config["text_cfg"], path)
            if texts.digest() == card.text_files and not (strict and weights_digest(path) != card.weights):
                return ResolvedEncoder(card, path, texts.tokenizer)
            store.remove("encoder", entry.inputs)
    from oodbench.encoder.pretrained import find_pretrained

    source = find_pretrained(spec)
    texts = text_files(spec, source.config["text_cfg"], source.path)
    stamp, words = weights_identity(source.path), texts.digest()
    card = _make_card(source, resize, texts)
    if (weights_identity(source.path), texts.digest()) != (stamp, words):
        raise UserError(f"encoder '{spec.text}': {source.path} or its tokenizer changed while it was read; run again")
    if spec.path is None:
        store.try_write("encoder-file", known, {"path": str(source.path)})
    store.try_write("encoder", {**known, **stamp}, {"card": dataclasses.asdict(card)})
    return ResolvedEncoder(card, source.path, texts.tokenizer)


def _config_files(spec: EncoderSpec) -> list[Path]:
    """Return the files, other than the weights, that the card depends on."""
    if spec.text == EMBEDDED:
        return [GLYPHS_FOLDER / "encoder.json", GLYPHS_FOLDER / "weights.py"]
    if spec.text.startswith(LOCAL_PREFIX):
        folder = Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser()
        names = ("open_clip_config.json", "config.json", "preprocessor_config.json", "processor_config.json")
        return [folder / name for name in names]
    return [Path(spec.architecture)] if spec.json else []


def _checkpoint_names(spec: EncoderSpec) -> dict[str, Any]:
    """Return the names of all checkpoints in a `local-dir:` folder, which determine the one that is read."""
    if not spec.text.startswith(LOCAL_PREFIX):
        return {}
    folder = Path(spec.text.removeprefix(LOCAL_PREFIX)).expanduser()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {"candidates": sorted(name for name in names if Path(name).suffix in _CHECKPOINTS)}


def _is_current(path: Path) -> bool:
    """Return whether a file exists and, if it is in the Hub's cache, belongs to the current revision of `main`."""
    main = path.parent.parent.parent / "refs" / "main"
    inside = path.parent.parent.name == "snapshots" and main.is_file()
    return path.is_file() and (not inside or main.read_text(encoding="utf-8").strip() == path.parent.name)


def _stored_path(store: Store, known: dict[str, Any]) -> Path | None:
    entry = store.find("encoder-file", known)
    path = Path(entry.facts["path"]) if entry else None
    if path is not None and not _is_current(path):
        store.remove("encoder-file", known)
        return None
    return path


def _make_card(source: PretrainedFiles, resize: str | None, texts: TextFiles) -> EncoderCard:
    """Build the model on the meta device, compare it with the weights, and return the card."""
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
        weights=weights_digest(source.path),
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
    build.build_tokenizer(card, texts.tokenizer)  # reports a missing vocabulary before the images are encoded
    return card


def _check_size(tower: ImageTower, size: tuple[int, int], architecture: str) -> None:
    """Raise UserError if the tower rejects images of this size; timm's towers may ignore the size in the config."""
    import torch

    try:
        tower(torch.zeros(1, 3, *size, device="meta"))
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"the image tower of {architecture} does not take {size[0]}x{size[1]} pixels: {reason}"
        ) from error


def load_state_dict(resolved: ResolvedEncoder) -> StateDict:
    """Return the encoder's state dict under its model's parameter names, without building the model in memory."""
    if resolved.card.plugin:
        raise UserError(
            f"{resolved.card.name} is a plugin, but converting a released checkpoint needs open_clip's weights; "
            "train the method for this encoder with oodbench train"
        )
    import torch

    from oodbench.encoder import build, checkpoint

    model = build.build_model(resolved.card, torch.device("meta"))
    state = checkpoint.load_weights(resolved.card.name, resolved.path, resolved.card.weights)
    return checkpoint.match_names(model, state, f"checkpoint {resolved.path}")
