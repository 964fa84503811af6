"""Weights files, which training writes and methods read.

`oodbench train` writes safetensors whose header holds the recipe as JSON: method, hyper-parameters, encoder, captions,
steps and versions; for a few-shot method the labelled images and the class names instead of captions. Any other file is
read as a checkpoint that the authors of a method released.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.data.loaders.layout import first_few
from oodbench.data.prompts import TextList
from oodbench.encoder.card import EncoderCard
from oodbench.errors import UserError
from oodbench.storage.files import atomic_write
from oodbench.storage.fingerprints import file_identity
from oodbench.storage.store import Store, file_digest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HEADER = "oodbench"
_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors
SHIPPED = Path(__file__).parent.parent / "data" / "glyphs"


@dataclass(frozen=True)
class WeightsFile:
    """A weights file, described without reading its tensors; `recipe` is {} for a released checkpoint."""

    path: Path
    digest: str
    recipe: dict[str, Any]

    def card(self) -> dict[str, Any]:
        """Return the name, digest and recipe of the file, as results store them."""
        left_out = ("encoder", "training", "class_names")
        recipe = {key: value for key, value in self.recipe.items() if key not in left_out}
        return {"name": self.path.name, "digest": self.digest, "recipe": recipe}

    @property
    def images(self) -> dict[str, Any]:
        """Return the labelled images that the weights were trained on: set, shots, classes, ...; {} if none."""
        found: dict[str, Any] = self.recipe.get("id", {})
        return found

    @property
    def variant(self) -> str:
        """Return the part of a label for weights that were trained on labelled images, as `K=4,seed=2`."""
        return f"K={self.images['shots']},seed={self.recipe['seed']}"

    def check(self) -> None:
        """Raise UserError if the file changed since it was examined."""
        if file_digest(self.path) != self.digest:
            raise UserError(f"weights {self.path} changed while they were in use; run again")

    def misfit(self, card: EncoderCard) -> str:
        """Return why weights with a recipe do not belong to an encoder, or ""."""
        trained_for = self.recipe["encoder"]
        if (trained_for["weights"], trained_for["config"]) != (card.weights, json.loads(json.dumps(card.config))):
            return (
                f"{self.path} was trained for {trained_for['name']} (weights {trained_for['weights'][:12]}), "
                f"not for {card.name} (weights {card.weights[:12]})"
            )
        same = trained_for.get("text_files", "") == card.text_files
        return "" if same else f"{self.path} was trained with another tokenizer than that of {card.name}"

    def class_misfit(self, classes: TextList) -> str:
        """Return why weights that were trained on labelled images do not belong to these class names, or ""."""
        if not self.images or self.images["classes"]["digest"] == classes.digest:
            return ""
        ours, trained_for = classes.lines, self.recipe["class_names"]
        lacking = [name for name in ours if name not in set(trained_for)]
        more = [name for name in trained_for if name not in set(ours)]
        differences = [f"it lacks {first_few(lacking)}"] if lacking else []
        differences += [f"it also has {first_few(more)}"] if more else []
        how = "; ".join(differences)
        how = how or ("they are in another order" if len(ours) == len(trained_for) else "names occur more than once")
        return (
            f"{self.path} was trained for the {len(trained_for):,} class names of '{self.images['set']}', not for "
            f"these {len(ours):,}: {how}"
        )


def files_of(folder: Path, method: str) -> list[Path]:
    """Return the files in a folder that hold weights of a method."""
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if not _damage(path) and recipe_of(path).get("method") == method]


def damaged_files(folder: Path) -> list[str]:
    """Return a sentence on each file in a folder that cannot be read."""
    return [reason for path in sorted(folder.glob("*.safetensors")) if (reason := _damage(path))]


def _damage(path: Path) -> str:
    """Return why a file is incomplete, or its recipe invalid, or ""; tensors are not read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return f"weights {path} cannot be read: it is {'not a file' if path.exists() else 'a broken link'}"
    try:
        with safe_open(path, "np"):
            if recipe := recipe_of(path):
                _check(path, recipe)
    except (SafetensorError, OSError) as error:
        return f"weights {path} cannot be read: {getattr(error, 'strerror', None) or _first_line(error)}"
    except UserError as error:
        return str(error)
    return ""


def write(path: Path, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> None:
    """Write weights and their recipe to a file, atomically. Raise UserError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {HEADER: json.dumps({"format": FORMAT, **recipe}, sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as partial:
            save_file(contiguous, partial, header)
            partial.chmod(0o644)  # safetensors writes files that only their owner can read
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or _first_line(error)
        raise UserError(f"weights {path} cannot be written: {why}") from error


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, in float32. Raise UserError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return in_float32(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"weights {path} cannot be read as safetensors: {error}") from error


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return floating-point tensors in float32, others unchanged."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def recipe_of(path: Path) -> dict[str, Any]:
    """Return the recipe in a file's header; {} if `oodbench train` did not write it. Read no tensor.

    Raises UserError if the header is damaged, or of another format.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = int.from_bytes(start[:8], "little")
            if start[8:] != b"{" or size > _MAX_HEADER:  # not safetensors; read() reports what is wrong
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
    """Raise UserError if a recipe lacks a field that a run reads."""
    kinds = {"method": str, "parameters": dict, "encoder": dict}
    encoder = recipe.get("encoder")
    inner = {"name": str, "weights": str, "config": dict} if isinstance(encoder, dict) else {}
    missing = [name for name, kind in kinds.items() if not isinstance(recipe.get(name), kind)]
    missing += [f"encoder.{name}" for name, kind in inner.items() if not isinstance((encoder or {}).get(name), kind)]
    if "id" in recipe:  # of a few-shot method
        found = recipe["id"] if isinstance(recipe["id"], dict) else {}
        parts: dict[str, type] = {"set": str, "shots": int, "classes": dict}
        missing += [f"id.{name}" for name, kind in parts.items() if not isinstance(found.get(name), kind)]
        others: dict[str, type] = {"seed": int, "class_names": list}
        missing += [name for name, kind in others.items() if not isinstance(recipe.get(name), kind)]
        missing += [] if isinstance((found.get("classes") or {}).get("digest"), str) else ["id.classes.digest"]
    if missing:
        raise UserError(f"weights {path}: the recipe in its header lacks {', '.join(missing)}; train or fetch it again")


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


def examine(path: Path, store: Store, strict: bool = False) -> WeightsFile:
    """Return the digest and the recipe of a file.

    A stored digest is used if size, times and inode of the file are unchanged; `strict` computes it again. Raises
    UserError if the file cannot be read, or its recipe lacks a field that a run reads.
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
