"""Folders that the text side of an encoder reads from this machine: its tokenizer's, and its tower's config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.encoder.card import LOCAL_FOLDER, EncoderSpec
from oodbench.errors import UserError
from oodbench.storage.store import digest, file_digest

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
    local = Path(spec.text.removeprefix(LOCAL_FOLDER)).expanduser() if spec.text.startswith(LOCAL_FOLDER) else None
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
