"""The board: where the processes of a training write what happens, and the driver reads it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.training.train import Outcome, TrainWatch

POLL = 0.5  # seconds between looks


@dataclass(frozen=True)
class Fault:
    """Why a training ended that is of no use to start again; `diverged`: the loss is no number."""

    message: str
    diverged: bool


class Board:
    """The actor where the first process writes what the driver shows."""

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._fault: Fault | None = None
        self._begun = False

    def tell(self, what: Any) -> None:
        """Add something that happened."""
        if isinstance(what, Fault):
            self._fault = self._fault or what
        else:
            self._begun = True
            self._told.append(what)

    def fault(self) -> Fault | None:
        """Why there is no use in going on."""
        return self._fault

    def begun(self) -> bool:
        """Whether a training is under way, so that starting again means to go on."""
        return self._begun

    def take(self) -> list[Any]:
        """What happened since the last call."""
        told, self._told = self._told, []
        return told


class Shown:
    """What the board tells, passed on to the driver's own watch."""

    def __init__(self, plan: Any, watch: TrainWatch, board: Any) -> None:
        self.ended = threading.Event()
        self.outcome: Outcome | None = None
        self._plan, self._watch, self._board = plan, watch, board

    def follow(self) -> None:
        """Look until the training has ended."""
        while not self.ended.wait(POLL):
            self.look()

    def look(self) -> None:
        """Pass on what is new. A board that is gone is told by what ended with it."""
        import ray

        from oodbench.training.train import Ready

        try:
            told = ray.get(self._board.take.remote())
        except ray.exceptions.RayError:
            return
        for kind, what, _ in told:
            if kind == "ready":
                self._watch.ready(Ready(plan=self._plan, **what))
            elif kind == "step":
                self._watch.step(what)
            else:
                self.outcome = what
