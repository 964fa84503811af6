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
from oodbench.store import Store, file_digest
from oodbench.whole import whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HEADER = "oodbench"
SHIPPED = Path(__file__).parent / "glyphs"


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

    def misfit(self, card: EncoderCard) -> str:
        """Why weights with a recipe are not of an encoder; "" when they are."""
        theirs = self.recipe["encoder"]
        if (theirs["weights"], theirs["config"]) == (card.weights, json.loads(json.dumps(card.config))):
            return ""
        return (
            f"{self.path} was trained for {theirs['name']} (weights {theirs['weights'][:12]}), "
            f"not for {card.name} (weights {card.weights[:12]})"
        )


def write(path: Path, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]) -> None:
    """Write weights with their recipe, whole or not at all."""
    from safetensors.torch import save_file

    header = {HEADER: json.dumps({"format": FORMAT, **recipe}, sort_keys=True)}
    with whole(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, header)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32."""
    from safetensors.torch import load_file

    return in_float32(load_file(path))


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float32, others as they are."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe in a file's header; {} when it is not one of ours. Reads no tensor."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100_000_000:
                raise ValueError("its header has no end")
            header = json.loads(file.read(size))
        recipe = json.loads(header.get("__metadata__", {}).get(HEADER, "{}"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"weights {path} cannot be read as safetensors: {error}") from error
    if recipe and recipe.get("format") != FORMAT:
        raise UserError(f"weights {path} are of format {recipe.get('format')!r}; this oodbench reads {FORMAT}")
    return dict(recipe)


def examine(path: Path, store: Store) -> WeightsFile:
    """Digest and recipe of a file; the digest is remembered for as long as the file keeps its size and time."""
    try:
        stat = path.stat()
        known = {"path": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}
        entry = store.find("weights-file", known)
        found = entry.facts["digest"] if entry else file_digest(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from error
    if entry is None:
        store.write("weights-file", known, {}, {"digest": found})
    return WeightsFile(path, found, recipe_of(path))
