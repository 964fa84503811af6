"""Files of trained weights.

Ours are safetensors whose header holds the recipe (method, hyper-parameters, encoder, captions, steps, versions) as
JSON. Anything else is taken for a release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.encoder.card import EncoderCard
from oodbench.errors import UserError
from oodbench.storage.files import atomic_write
from oodbench.storage.fingerprints import file_identity
from oodbench.storage.store import Store, file_digest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HEADER = "oodbench"
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself bounds it
SHIPPED = Path(__file__).parent.parent / "data" / "glyphs"


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, known without reading its tensors. `recipe` is empty for a release."""

    path: Path
    digest: str
    recipe: dict[str, Any]

    def card(self) -> dict[str, Any]:
        """What a row keeps: file name, digest and recipe."""
        recipe = {key: value for key, value in self.recipe.items() if key not in ("encoder", "training")}
        return {"name": self.path.name, "digest": self.digest, "recipe": recipe}

    def check(self) -> None:
        """UserError when the file is not the one that was examined any more."""
        if file_digest(self.path) != self.digest:
            raise UserError(f"weights {self.path} changed while they were in use; run again")

    def misfit(self, card: EncoderCard) -> str:
        """Why weights with a recipe are not of an encoder; "" when they are."""
        theirs = self.recipe["encoder"]
        if (theirs["weights"], theirs["config"]) != (card.weights, json.loads(json.dumps(card.config))):
            return (
                f"{self.path} was trained for {theirs['name']} (weights {theirs['weights'][:12]}), "
                f"not for {card.name} (weights {card.weights[:12]})"
            )
        same = theirs.get("text_files", "") == card.text_files
        return "" if same else f"{self.path} was trained with another tokenizer than that of {card.name}"


def write(path: Path, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> None:
    """Write weights with their recipe, whole or not at all. UserError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {HEADER: json.dumps({"format": FORMAT, **recipe}, sort_keys=True)}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as partial:
            save_file(held, partial, header)
            partial.chmod(0o644)  # safetensors makes files that only their owner can read
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or _first_line(error)
        raise UserError(f"weights {path} cannot be written: {why}") from error


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32. UserError when it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return in_float32(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"weights {path} cannot be read as safetensors: {error}") from error


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float32, others as they are."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe in a file's header; {} when it is not one of ours, whatever its name. Reads no tensor.

    UserError when the header is damaged, or of another format.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = int.from_bytes(start[:8], "little")
            if start[8:] != b"{" or size > _LONGEST:  # no safetensors; what reads the tensors says what is wrong
                return {}
            header = json.loads(start[8:] + file.read(size - 1))
        recipe = json.loads((header.get("__metadata__") or {}).get(HEADER, "{}"))
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"weights {path}: its header is damaged ({_first_line(error)}); fetch it again") from error
    if recipe == {}:
        return {}
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        stated = recipe.get("format") if isinstance(recipe, dict) else recipe
        raise UserError(f"weights {path} are of format {str(stated)[:40]}; this oodbench reads {FORMAT}")
    return recipe


def _check(path: Path, recipe: Mapping[str, Any]) -> None:
    """UserError when a recipe lacks what a run reads of it."""
    kinds = {"method": str, "parameters": dict, "encoder": dict}
    encoder = recipe.get("encoder")
    inner = {"name": str, "weights": str, "config": dict} if isinstance(encoder, dict) else {}
    lacking = [name for name, kind in kinds.items() if not isinstance(recipe.get(name), kind)]
    lacking += [f"encoder.{name}" for name, kind in inner.items() if not isinstance((encoder or {}).get(name), kind)]
    if lacking:
        raise UserError(f"weights {path}: the recipe in its header lacks {', '.join(lacking)}; train or fetch it again")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def examine(path: Path, store: Store, strict: bool = False) -> WeightsFile:
    """Digest and recipe of a file.

    The digest is remembered for as long as size, times and inode of the file stay; with `strict` it is made anew.
    UserError when the file cannot be read, or its recipe lacks what a run reads of it.
    """
    try:
        known = file_identity(path)
        entry = None if strict else store.find("weights-file", known)
        found = entry.facts["digest"] if entry else file_digest(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from error
    if entry is None and not strict:
        store.try_write("weights-file", known, {"digest": found})
    recipe = recipe_of(path)
    if recipe:
        _check(path, recipe)
    return WeightsFile(path, found, recipe)
