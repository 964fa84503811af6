"""Training on a Ray cluster with Ray Train, which restarts the processes from the last checkpoint if one dies."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.distributed.cluster import Placement, ResourceRequest, WorkerFolder, cluster_nodes, connect, place_workers
from oodbench.distributed.payload import CodeVersion, FileBundle, bundle_plugin, check_code_version, code_version
from oodbench.errors import Diverged, UserError
from oodbench.storage.files import expand
from oodbench.storage.shared import local_root

if TYPE_CHECKING:
    from oodbench.training.plan import TrainRequest
    from oodbench.training.train import Ready, TrainOutcome, TrainWatch

POLL_SECONDS = 0.5  # between two requests for new reports
MAX_FAILURES = 5  # losses of a worker, after each of which all processes resume from the last checkpoint
_TIMEOUT_SECONDS = 7 * 86_400  # that processes wait for each other: one may embed its part of the corpus for days


@dataclass(frozen=True)
class TrainingError:
    """An error that ends a training because a retry would fail, too; `diverged` says that the loss is not finite."""

    message: str
    diverged: bool


class StatusActor:
    """The actor to which the training processes send reports, and from which the driver reads them."""

    def __init__(self) -> None:
        self._reports: list[Any] = []
        self._error: TrainingError | None = None
        self._started = False

    def add(self, report: Any) -> None:
        """Add a report: a TrainingError, or a pair (kind, content)."""
        if isinstance(report, TrainingError):
            self._error = self._error or report
        else:
            self._started = True
            self._reports.append(report)

    def error(self) -> TrainingError | None:
        """Return the error that ended the training, if there is one."""
        return self._error

    def started(self) -> bool:
        """Return whether the training has started, so that restarted processes resume it."""
        return self._started

    def take(self) -> list[Any]:
        """Return the reports that were added since the last call."""
        reports, self._reports = self._reports, []
        return reports


class StatusPoller:
    """Passes the reports of a StatusActor to the driver's TrainWatch."""

    def __init__(self, plan: Any, watch: TrainWatch, status: Any) -> None:
        self.ended = threading.Event()
        self.outcome: TrainOutcome | None = None
        self._plan, self._watch, self._status = plan, watch, status

    def run(self) -> None:
        """Poll until `ended` is set."""
        while not self.ended.wait(POLL_SECONDS):
            self.poll()

    def poll(self) -> None:
        """Pass on the new reports. If the actor died, the training fails, too, and reports the error."""
        import ray

        from oodbench.training.train import Ready

        try:
            reports = ray.get(self._status.take.remote())
        except ray.exceptions.RayError:
            return
        for kind, content in reports:
            if kind == "ready":
                self._watch.ready(Ready(plan=self._plan, **content))
            elif kind == "step":
                self._watch.step(content)
            else:
                self.outcome = content


@dataclass(frozen=True)
class TrainingPayload:
    """The data that every training process is sent.

    code_version       of the driver; the processes must run the same
    plugins            the files of the methods that the user gave by path
    working_directory  of the driver, for relative paths
    threads            threads of torch in a process on a CPU
    """

    request: TrainRequest
    code_version: CodeVersion
    plugins: tuple[FileBundle, ...]
    working_directory: str
    threads: int
    gpu: bool


def train(request: TrainRequest, address: str, workers: int, watch: TrainWatch | None = None) -> TrainOutcome:
    """Train on a Ray cluster, with the result of oodbench.training.train.train.

    Raise UserError and Diverged as that function does, and UserError if too many workers are lost.
    """
    import ray
    import torch
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from oodbench.training.plan import make_plan
    from oodbench.training.train import TrainWatch

    plan = make_plan(request)
    watch = watch or TrainWatch()
    with connect(address, workers):
        resources = ResourceRequest(request.device, workers, 1.0, torch.get_num_threads())
        placement = place_workers(resources, cluster_nodes())
        if workers > placement.actors:
            raise UserError(f"--num-workers {workers}: the Ray cluster has room for {placement.actors}; see ray status")
        store = plan.store.root.absolute()
        sent = dataclasses.replace(request, out=plan.out, store=store, shared=plan.store.url)
        plugins = tuple(bundle_plugin(expand(path)) for path in request.plugins)
        payload = TrainingPayload(sent, code_version(), plugins, os.getcwd(), placement.threads, bool(placement.gpus))
        # On the driver's node, so that the loss of another node does not lose the reports.
        driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        status = ray.remote(StatusActor).options(num_cpus=0, scheduling_strategy=driver_node).remote()
        poller = StatusPoller(plan, watch, status)
        thread = threading.Thread(target=poller.run, daemon=True)
        thread.start()
        try:
            _run_trainer(payload, status, placement, plan.out)
        except ray.train.TrainingFailedError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the training lost its workers {MAX_FAILURES + 1} times: {reason}; run it again to resume"
            ) from error
        finally:
            poller.ended.set()
            thread.join()
            poller.poll()
        final: TrainingError | None = ray.get(status.error.remote())
    if final:
        raise Diverged(final.message) if final.diverged else UserError(final.message)
    assert poller.outcome is not None  # the last report of the main process
    return poller.outcome


def _run_trainer(payload: TrainingPayload, status: Any, placement: Placement, out: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = out.with_name(f"{out.name}.ray")  # for the files that Ray Train writes
    try:
        TorchTrainer(
            _train_loop,
            train_loop_config={"payload": payload, "status": status},
            torch_config=TorchConfig(backend="nccl" if payload.gpu else "gloo", timeout_s=_TIMEOUT_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=placement.actors,
                use_gpu=payload.gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if payload.gpu else {})},
            ),
            run_config=RunConfig(
                name="training",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        ).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train_loop(config: dict[str, Any]) -> None:
    """Train in one process of the group that Ray Train created."""
    import ray
    import torch
    import torch.distributed as dist

    from oodbench.training import train as training

    payload, status = config["payload"], config["status"]
    if ray.get(status.error.remote()):
        return
    folder = WorkerFolder()
    try:
        check_code_version(payload.code_version)
        if os.path.isdir(payload.working_directory):
            os.chdir(payload.working_directory)
        if payload.gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        else:
            torch.set_num_threads(payload.threads)
        plugins = tuple(bundle.write(folder.path) / bundle.contents[0][0] for bundle in payload.plugins)
        store = local_root(payload.request.store, payload.request.shared) if payload.request.store else None
        # The earlier training is discarded once: processes that Ray restarts resume the new one.
        restart = payload.request.restart and not ray.get(status.started.remote())
        request = dataclasses.replace(payload.request, plugins=plugins, store=store, restart=restart)
        watch = training.TrainWatch(
            ready=lambda ready: status.add.remote(("ready", _without_plan(ready))),
            step=lambda report: status.add.remote(("step", report)),
        )
        outcome = training.train(request, watch)
        if dist.get_rank() == 0:
            ray.get(status.add.remote(("outcome", outcome)))
    except (UserError, Diverged) as error:
        # Reported, then raised, as other processes may be waiting for this one. Ray restarts all of them, and they
        # return at once because there is an error.
        ray.get(status.add.remote(TrainingError(str(error), isinstance(error, Diverged))))
        raise
    finally:
        folder.remove()


def _without_plan(ready: Ready) -> dict[str, Any]:
    """Return the fields except the plan, whose method may come from a plugin that the driver cannot unpickle."""
    fields = dataclasses.fields(ready)
    return {field.name: getattr(ready, field.name) for field in fields if field.name != "plan"}
