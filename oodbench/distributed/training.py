"""A training whose processes Ray Train starts: the same loop in each, started again from the last checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.distributed.cluster import Demand, Placement, WorkerFolder, connected, layout, nodes
from oodbench.distributed.payload import Code, SentFiles, check_code, code, plugin_files
from oodbench.errors import Diverged, UserError
from oodbench.storage.files import expand
from oodbench.storage.shared import local_root

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainOutcome, TrainWatch

POLL = 0.5  # seconds between looks


@dataclass(frozen=True)
class TrainingError:
    """Why a training ended that is of no use to start again; `diverged`: the loss is no number."""

    message: str
    diverged: bool


class StatusActor:
    """The actor where the first process writes what the driver shows."""

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._fault: TrainingError | None = None
        self._begun = False

    def tell(self, what: Any) -> None:
        """Add something that happened."""
        if isinstance(what, TrainingError):
            self._fault = self._fault or what
        else:
            self._begun = True
            self._told.append(what)

    def fault(self) -> TrainingError | None:
        """Why there is no use in going on."""
        return self._fault

    def begun(self) -> bool:
        """Whether a training is under way, so that starting again means to go on."""
        return self._begun

    def take(self) -> list[Any]:
        """What happened since the last call."""
        told, self._told = self._told, []
        return told


class StatusPoller:
    """What the board tells, passed on to the driver's own watch."""

    def __init__(self, plan: Any, watch: TrainWatch, board: Any) -> None:
        self.ended = threading.Event()
        self.outcome: TrainOutcome | None = None
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


FAILURES = 5  # lost workers, after each of which all start again from the last checkpoint
_TIMEOUT = 7 * 86_400  # seconds that processes wait for one another: one may embed its share of the corpus


@dataclass(frozen=True)
class Call:
    """What every process is given."""

    request: TrainRequest
    code: Code
    plugins: tuple[SentFiles, ...]
    folder: str
    threads: int
    gpu: bool


def train(request: TrainRequest, where: str, workers: int, watch: TrainWatch | None = None) -> TrainOutcome:
    """Train on a Ray cluster. UserError and Diverged as in one process; UserError when too many workers are lost."""
    import ray
    import torch
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from oodbench.training.plan import make_plan
    from oodbench.training.train import TrainWatch

    plan = make_plan(request)
    watch = watch or TrainWatch()
    with connected(where, workers):
        found = layout(Demand(request.device, workers, 1.0, torch.get_num_threads()), nodes())
        if workers > found.actors:
            raise UserError(f"--num-workers {workers}: the Ray cluster has room for {found.actors}; see ray status")
        folder = plan.store.root.absolute()
        sent = dataclasses.replace(request, out=plan.out, store=folder, shared=plan.store.url)
        plugins = tuple(plugin_files(expand(path)) for path in request.plugins)
        call = Call(sent, code(), plugins, os.getcwd(), found.threads, bool(found.gpus))
        # On the driver's node: a board on another one would take the training with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(StatusActor).options(num_cpus=0, scheduling_strategy=here).remote()
        shown = StatusPoller(plan, watch, board)
        follower = threading.Thread(target=shown.follow, daemon=True)
        follower.start()
        try:
            _fit(call, board, found, plan.out)
        except ray.train.TrainingFailedError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the training lost its workers {FAILURES + 1} times: {reason}; run it again") from error
        finally:
            shown.ended.set()
            follower.join()
            shown.look()
        fault: TrainingError | None = ray.get(board.fault.remote())
    if fault:
        raise Diverged(fault.message) if fault.diverged else UserError(fault.message)
    assert shown.outcome is not None  # the first process tells it last
    return shown.outcome


def _fit(call: Call, board: Any, found: Placement, out: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    notes = out.with_name(f"{out.name}.ray")  # what Ray Train writes for itself
    try:
        TorchTrainer(
            _process,
            train_loop_config={"call": call, "board": board},
            torch_config=TorchConfig(backend="nccl" if call.gpu else "gloo", timeout_s=_TIMEOUT),
            scaling_config=ScalingConfig(
                num_workers=found.actors,
                use_gpu=call.gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if call.gpu else {})},
            ),
            run_config=RunConfig(
                name="training",
                storage_path=str(notes),
                failure_config=FailureConfig(max_failures=FAILURES),
            ),
        ).fit()
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _process(config: dict[str, Any]) -> None:
    """One process of the training, in the group that Ray Train has made."""
    import ray
    import torch
    import torch.distributed as dist

    from oodbench.training import train as session

    call, board = config["call"], config["board"]
    if ray.get(board.fault.remote()):
        return
    scratch = WorkerFolder()
    try:
        check_code(call.code)
        if os.path.isdir(call.folder):
            os.chdir(call.folder)
        if call.gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        else:
            torch.set_num_threads(call.threads)
        plugins = tuple(files.write(scratch.path) / files.contents[0][0] for files in call.plugins)
        store = local_root(call.request.store, call.request.shared) if call.request.store else None
        # What is to be thrown away goes once: processes that are started again go on.
        restart = call.request.restart and not ray.get(board.begun.remote())
        request = dataclasses.replace(call.request, plugins=plugins, store=store, restart=restart)
        place = f"{socket.gethostname()}/{os.getpid()}"
        watch = session.TrainWatch(
            ready=lambda ready: board.tell.remote(("ready", _without_plan(ready), place)),
            step=lambda report: board.tell.remote(("step", report, place)),
        )
        outcome = session.train(request, watch)
        if dist.get_rank() == 0:
            ray.get(board.tell.remote(("outcome", outcome, place)))
    except (UserError, Diverged) as error:
        # Told, then raised: the others may wait for this process. All are started again, and find that it was told.
        ray.get(board.tell.remote(TrainingError(str(error), isinstance(error, Diverged))))
        raise
    finally:
        scratch.remove()


def _without_plan(ready: Ready) -> dict[str, Any]:
    """What the driver does not know: the plan holds a method of a file that it may not be able to load by name."""
    return {one.name: getattr(ready, one.name) for one in dataclasses.fields(ready) if one.name != "plan"}
