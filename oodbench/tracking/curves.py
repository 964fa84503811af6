"""Live curves of a training in MLflow, sent by a process of its own that follows the file of losses.

The file is the truth, and what arrived is noted beside it: a server that is down costs the training nothing, and what
it missed is sent when it answers again, at the latest by the next call of the same command.
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
from oodbench.tracking import runs
from oodbench.tracking.connection import Tracker, quiet_mlflow, unreachable_reason
from oodbench.tracking.database import connect
from oodbench.tracking.fields import cut, shortened
from oodbench.tracking.runs import TRAINING, experiment_id

EVERY = 3.0  # seconds between deliveries
PATIENCE = 60.0  # seconds between attempts when nothing answered
END = 20.0  # seconds that the end of a training waits for the last delivery
LINES = 200  # steps in one delivery
NOTE = "mlflow.json"
_URI = "OODBENCH_CURVES_URI"


@dataclass
class Sender:
    """What the run is marked with at the end, and afterwards why some curves did not arrive, or ""."""

    status: str = "FAILED"
    reason: str = ""


@contextmanager
def following(tracker: Tracker, folder: Path) -> Iterator[Sender]:
    """Send the curves of a training folder while the block runs, to one MLflow run however often it is resumed."""
    command = [sys.executable, "-m", "oodbench.tracking.curves", str(folder), str(tracker.results)]
    # The URI may hold a password, which a command line would show. A session of its own: Ctrl-C is not for it.
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, _URI: tracker.uri},
        start_new_session=True,
        text=True,
    )
    sender = Sender()
    try:
        yield sender
    finally:
        seconds = END if tracker.database is None else 4 * END  # a new sqlite store takes its time
        try:
            answer, _ = child.communicate(f"{sender.status}\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            answer = _reason(tracker, folder, f"no end after {seconds:.0f} seconds")
        sender.reason = "".join(answer.splitlines()[-1:])


def _reason(tracker: Tracker, folder: Path, why: object) -> str:
    """Why curves wait, and where they are."""
    text = str(why).replace(f"{tracker.secret}@", "") if tracker.secret else str(why)
    first = (text.strip().splitlines() or [type(why).__name__])[0][:300]
    return f"curves did not all reach {tracker.place} ({first}); they are in {folder}, and the same command sends them"


@dataclass
class Follower:
    """Reads the file from where the last delivery ended, and sends what is new to one MLflow run."""

    tracker: Tracker
    folder: Path
    run: str = ""
    sent: int = 0  # the last step that arrived
    client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError, KeyError):
            note = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
            if note["place"] == self.tracker.place:
                self.run, self.sent = note["run"], note["sent"]

    def deliver(self, status: str = "") -> str:
        """Send what is new, and the status at the end; why that did not work, or ""."""
        if self.client is None and (why := unreachable_reason(self.tracker)):
            return why
        try:
            new = [line for line in _lines(self.folder) if line["step"] > self.sent]
            if new or status:
                self._open()
            for start in range(0, len(new), LINES):
                self._send(new[start : start + LINES])
            if status and self.run:
                weights = self.folder.with_name(self.folder.name.removesuffix(".training"))
                if status == "FINISHED" and weights.is_file():  # so that a model that is registered finds its training
                    self.client.set_tag(self.run, "weights", _sha256(weights), synchronous=True)
                self.client.set_terminated(self.run, status)
        except Exception as error:  # MLflow's, sqlite's, the network's: none may matter to a training
            self.client = None
            return str(error) or type(error).__name__
        return ""

    def _open(self) -> None:
        """A client, and the run: that of before a resume, or a new one."""
        if self.client is not None:
            return
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        with runs.locked(self.tracker):  # two at once would both set up a new store
            client = connect(self.tracker)
            experiment = experiment_id(client, self.tracker, TRAINING)
        if self.run:
            with suppress(Exception):  # a run that somebody removed
                client.update_run(self.run, status="RUNNING")
                self.client = client
                return
        request = json.loads((self.folder / "request.json").read_text(encoding="utf-8"))
        tags = {"mlflow.source.name": "oodbench", "method": request["method"], "encoder": request["encoder"]["name"]}
        name = shortened(f"train {tags['method']} · {tags['encoder']}")
        run = client.create_run(experiment, tags=cut(tags, MAX_TAG_VAL_LENGTH), run_name=name).info.run_id
        plain = {key: str(value) for key, value in flatten(request).items()}
        params = [Param(key, value) for key, value in cut(plain, MAX_PARAM_VAL_LENGTH).items()]
        client.log_batch(run, [], params, synchronous=True)
        self.run, self.sent, self.client = run, 0, client
        self._note()

    def _send(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for line in lines:
            terms = {f"loss/{name}": value for name, value in line["terms"].items()}
            values = {"loss": line["loss"], "lr": line["lr"], "samples_per_second": line["samples_per_second"], **terms}
            moment = int(1000 * line["time"])
            metrics += [Metric(name, value, moment, line["step"]) for name, value in values.items()]
        self.client.log_batch(self.run, metrics, [], synchronous=True)
        self.sent = lines[-1]["step"]
        self._note()

    def _note(self) -> None:
        text = json.dumps({"place": self.tracker.place, "run": self.run, "sent": self.sent})
        write_text(self.folder / NOTE, text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(folder: Path) -> list[dict[str, Any]]:
    found = []
    with suppress(FileNotFoundError):
        for text in (folder / "losses.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # the line that is being written
                found.append(json.loads(text))
    return found


def main(folder: Path, results: Path, uri: str) -> None:
    """Follow a training until its process closes our input, which it does when it ends in whatever way."""
    follower = Follower(Tracker(uri, results), folder)
    wait = 0.0
    with quiet_mlflow():
        while True:
            ready, _, _ = select.select([sys.stdin], [], [], wait)
            if ready:
                break
            wait = PATIENCE if follower.deliver() else EVERY
        status = sys.stdin.readline().strip() or "KILLED"
        why = follower.deliver(status)
    if why:
        sys.stdout.write(_reason(follower.tracker, folder, why) + "\n")


if __name__ == "__main__":
    os.nice(10)  # the training comes first
    main(Path(sys.argv[1]), Path(sys.argv[2]), os.environ.pop(_URI))
