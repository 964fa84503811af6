"""Checkpoints of a training: written whole or not at all, the last two kept, taken up by the same request alone."""

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

KEPT = 2
REQUEST = "request.json"


class Checkpoints:
    """The folder `FILE.training` beside a file of weights."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.training")

    def check(self, identity: Mapping[str, Any]) -> None:
        """UserError when the folder holds another training, naming what differs. `identity` may be a part of it."""
        try:
            known = json.loads((self.folder / REQUEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / REQUEST} cannot be read ({error}); start anew with --restart") from error
        plain = json.loads(json.dumps(identity))
        differs = [line for key in plain for line in _differences(key, known.get(key), plain[key])]
        if differs:
            raise UserError(
                f"{self.folder} holds another training: {'; '.join(differs)}\n"
                "  name another file with --output, or throw that training away with --restart"
            )

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write down which training this is."""
        if not (self.folder / REQUEST).exists():
            _write(self.folder / REQUEST, json.dumps(identity, indent=1, sort_keys=True).encode())

    def clear(self) -> None:
        """Forget the training."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.pt"))

    def path(self, step: int) -> Path:
        """The checkpoint after so many steps."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, trainer: Trainer, step: int) -> None:
        """Write a checkpoint after `step` steps, and remove those before the last two."""
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
        _write(self.path(step), content.getbuffer())
        for old in self.steps()[:-KEPT]:
            self.path(old).unlink(missing_ok=True)

    def newest(self) -> int:
        """The last step whose checkpoint can be read, 0 when there is none."""
        import torch

        for step in reversed(self.steps()):
            try:
                # mapped, not read: it is loaded when it is taken up
                found = torch.load(self.path(step), map_location="cpu", weights_only=True, mmap=True)
                if found["step"] == step:
                    return step
            except Exception as error:
                log.warning("checkpoint %s cannot be read (%s); an older one is used", self.path(step), error)
        return 0

    def take_up(self, trainer: Trainer, step: int) -> None:
        """Put module, optimiser, scaler and random numbers back to where they were."""
        import torch

        found = torch.load(self.path(step), map_location="cpu", weights_only=True)
        trainer.module.load_state_dict(found["module"], strict=True)
        trainer.optimiser.load_state_dict(found["optimiser"])
        trainer.scaler.load_state_dict(found["scaler"])
        torch.set_rng_state(found["rng"])


def _differences(key: str, there: Any, here: Any) -> list[str]:
    """`key: there, now here` for every plain value that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [*here, *(name for name in there if name not in here)]
        return [line for name in names for line in _differences(f"{key}.{name}", there.get(name), here.get(name))]
    return [] if there == here else [f"{key} was {_short(there)}, now it is {_short(here)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}..."


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
