"""Loss curves of a training in MLflow, sent during the training by a separate process that reads the file of losses.

The last step that was sent is recorded next to that file. If the server is down, the training continues, and the
missing steps are sent when the server is reachable again, at the latest by the next call of the same command.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.results import flatten
from oodbench.storage.files import write_text
from oodbench.tracking.connection import Tracker, first_line, quiet_mlflow, unreachable_reason
from oodbench.tracking.database import connect
from oodbench.tracking.fields import shortened, truncated
from oodbench.tracking.runs import TRAINING, experiment_id, lock

INTERVAL = 3.0  # seconds between two uploads
RETRY_INTERVAL = 60.0  # seconds between attempts while the server does not answer
LAST_UPLOAD = 20.0  # seconds that the end of a training waits for the last upload
STEPS_PER_CALL = 200
STATE_FILE = "mlflow.json"
_URI = "OODBENCH_CURVES_URI"


@dataclass
class CurveStatus:
    """The final status of the MLflow run, set in the `with` block; after it `reason` says why steps are missing."""

    status: str = "FAILED"
    reason: str = ""


@contextmanager
def sending_curves(tracker: Tracker, folder: Path) -> Iterator[CurveStatus]:
    """While active, send the curves of a training folder, to the same MLflow run if the training was resumed."""
    command = [sys.executable, "-m", "oodbench.tracking.curves", str(folder), str(tracker.results)]
    # The URI may hold a password, which the command line would show. In a new session the process gets no Ctrl-C.
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, _URI: tracker.uri},
        start_new_session=True,
        text=True,
    )
    curves = CurveStatus()
    try:
        yield curves
    finally:
        seconds = LAST_UPLOAD if tracker.database is None else 4 * LAST_UPLOAD  # a new SQLite store takes longer
        try:
            answer, _ = child.communicate(f"{curves.status}\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            answer = _message(tracker, folder, f"not finished after {seconds:.0f} seconds")
        curves.reason = "".join(answer.splitlines()[-1:])


def _message(tracker: Tracker, folder: Path, reason: object) -> str:
    """Return a message: why steps were not sent, and where they are."""
    text = first_line(tracker.without_secret(reason), 300)
    return f"some curves were not sent to {tracker.place} ({text}); they are in {folder}; the same command sends them"


@dataclass
class CurveSender:
    """Reads the file of losses from the last step that was sent, and sends new steps to one MLflow run."""

    tracker: Tracker
    folder: Path
    run: str = ""
    sent: int = 0  # the last step that was sent
    client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
            if state["place"] == self.tracker.place:
                self.run, self.sent = state["run"], state["sent"]

    def send_new(self, status: str = "") -> str:
        """Send new steps and, at the end, the status of the run. Return why that failed, or ""."""
        if self.client is None and (reason := unreachable_reason(self.tracker)):
            return reason
        try:
            new = [step for step in _read_steps(self.folder) if step["step"] > self.sent]
            if new or status:
                self._open_run()
            for start in range(0, len(new), STEPS_PER_CALL):
                self._send(new[start : start + STEPS_PER_CALL])
            if status and self.run:
                weights = self.folder.with_name(self.folder.name.removesuffix(".training"))
                if status == "FINISHED" and weights.is_file():  # a registered model finds its training by this tag
                    self.client.set_tag(self.run, "weights", _sha256(weights), synchronous=True)
                self.client.set_terminated(self.run, status)
        except Exception as error:  # of MLflow, SQLite or the network: none may stop a training
            self.client = None
            return str(error) or type(error).__name__
        return ""

    def _open_run(self) -> None:
        """Connect, and reopen the run of a resumed training, or create one."""
        if self.client is not None:
            return
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        with lock(self.tracker):  # two processes at once would both set up a new store
            client = connect(self.tracker)
            experiment = experiment_id(client, self.tracker, TRAINING)
        if self.run:
            with suppress(Exception):  # if the run was removed, a new one is created
                client.update_run(self.run, status="RUNNING")
                self.client = client
                return
        request = json.loads((self.folder / "request.json").read_text(encoding="utf-8"))
        tags = {"mlflow.source.name": "oodbench", "method": request["method"], "encoder": request["encoder"]["name"]}
        if "id" in request:  # of a few-shot method
            tags |= {"id_set": request["id"]["set"], "shots": str(request["id"]["shots"]), "seed": str(request["seed"])}
        name = shortened(f"train {tags['method']} · {tags['encoder']}")
        run = client.create_run(experiment, tags=truncated(tags, MAX_TAG_VAL_LENGTH), run_name=name).info.run_id
        values = {key: str(value) for key, value in flatten(request).items()}
        params = [Param(key, value) for key, value in truncated(values, MAX_PARAM_VAL_LENGTH).items()]
        client.log_batch(run, [], params, synchronous=True)
        self.run, self.sent, self.client = run, 0, client
        self._write_state()

    def _send(self, steps: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for step in steps:
            terms = {f"loss/{name}": value for name, value in step["terms"].items()}
            values = {"loss": step["loss"], "lr": step["lr"], "samples_per_second": step["samples_per_second"], **terms}
            milliseconds = int(1000 * step["time"])
            metrics += [Metric(name, value, milliseconds, step["step"]) for name, value in values.items()]
        self.client.log_batch(self.run, metrics, [], synchronous=True)
        self.sent = steps[-1]["step"]
        self._write_state()

    def _write_state(self) -> None:
        text = json.dumps({"place": self.tracker.place, "run": self.run, "sent": self.sent})
        write_text(self.folder / STATE_FILE, text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the losses of all steps; a last line that is still being written is skipped."""
    steps = []
    with suppress(FileNotFoundError):
        for line in (folder / "losses.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                steps.append(json.loads(line))
    return steps


def main(folder: Path, results: Path, uri: str) -> None:
    """Send curves until the training process closes stdin, which happens however it ends."""
    sender = CurveSender(Tracker(uri, results), folder)
    wait = 0.0
    with quiet_mlflow():
        while True:
            ready, _, _ = select.select([sys.stdin], [], [], wait)
            if ready:
                break
            wait = RETRY_INTERVAL if sender.send_new() else INTERVAL
        status = sys.stdin.readline().strip() or "KILLED"
        reason = sender.send_new(status)
    if reason:
        sys.stdout.write(_message(sender.tracker, folder, reason) + "\n")


if __name__ == "__main__":
    os.nice(10)  # the training has priority
    main(Path(sys.argv[1]), Path(sys.argv[2]), os.environ.pop(_URI))
