"""Checkpoints of a training, written atomically; the last two are kept, and only the same request resumes them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError
from oodbench.storage.files import atomic_write

if TYPE_CHECKING:
    from oodbench.training.loop import Trainer

log = logging.getLogger(__name__)

KEEP = 2
IDENTITY_FILE = "request.json"


class Checkpoints:
    """The folder `FILE.training` next to a file of weights."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.training")

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise UserError, naming what differs, if the folder holds another training. `identity` may be incomplete."""
        try:
            stored = json.loads((self.folder / IDENTITY_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder / IDENTITY_FILE} cannot be read ({error}); start from step 0 with --restart"
            ) from error
        plain = json.loads(json.dumps(identity))
        differs = [line for key in plain for line in _differences(key, stored.get(key), plain[key])]
        if differs:
            raise UserError(
                f"{self.folder} holds another training: {'; '.join(differs)}\n"
                "  name another file with --output, or discard that training with --restart"
            )

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        """Write the identity of this training, unless it is written already."""
        if not (self.folder / IDENTITY_FILE).exists():
            _write_file(self.folder / IDENTITY_FILE, json.dumps(identity, indent=1, sort_keys=True).encode())

    def clear(self) -> None:
        """Delete the training."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.pt"))

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, trainer: Trainer, step: int) -> None:
        """Write a checkpoint after `step` steps and delete all but the last two."""
        import io

        import torch

        content = io.BytesIO()
        torch.save(
            {
                "step": step,
                "module": trainer.module.state_dict(),
                "optimiser": trainer.optimiser.state_dict(),
                "scaler": trainer.scaler.state_dict(),
                "rng": torch.get_rng_state(),
            },
            content,
        )
        _write_file(self.path(step), content.getbuffer())
        for old in self.steps()[:-KEEP]:
            self.path(old).unlink(missing_ok=True)

    def latest_step(self) -> int:
        """Return the last step whose checkpoint can be read, 0 if there is none."""
        import torch

        for step in reversed(self.steps()):
            try:
                # memory-mapped: restore() reads it
                checkpoint = torch.load(self.path(step), map_location="cpu", weights_only=True, mmap=True)
                if checkpoint["step"] == step:
                    return step
            except Exception as error:
                log.warning("checkpoint %s cannot be read (%s); an older one is used", self.path(step), error)
        return 0

    def restore(self, trainer: Trainer, step: int) -> None:
        """Restore module, optimiser, gradient scaler and random state from a checkpoint."""
        import torch

        checkpoint = torch.load(self.path(step), map_location="cpu", weights_only=True)
        trainer.module.load_state_dict(checkpoint["module"], strict=True)
        trainer.optimiser.load_state_dict(checkpoint["optimiser"])
        trainer.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["rng"])


def _differences(key: str, stored: Any, new: Any) -> list[str]:
    """Return a phrase for every plain value that differs between the stored identity and the new one."""
    if isinstance(stored, dict) and isinstance(new, dict):
        names = [*new, *(name for name in stored if name not in new)]
        return [line for name in names for line in _differences(f"{key}.{name}", stored.get(name), new.get(name))]
    return [] if stored == new else [f"{key} was {_short(stored)}, now it is {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}..."


def _write_file(path: Path, content: bytes | memoryview) -> None:
    try:
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
