"""The live view: what it says of workers, as a terminal gets it, and its silence elsewhere."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oodbench.cli.progress import RunProgress, TrainProgress
from oodbench.pipeline.events import Event
from tests.processes import Command, command


def test_workers_are_told_with_their_speeds() -> None:
    with RunProgress() as progress:
        told = progress.watch.event
        for name in ("a/1", "b/2"):
            told(Event("joined", "worker", f"oodbench worker {name}", worker=name))
        assert progress.summary() == "2 workers"
        told(Event("done", "extract", "extract[x 1/3]", 2000, 4.0, "a/1"))
        told(Event("done", "extract", "extract[x 2/3]", 2000, 8.0, "b/2"))
        told(Event("retried", "extract", "extract[x 3/3]", worker="b/2", reason="gone"))
        assert progress.summary() == "2 workers, 250-500 images/s each, 1 retried"
        told(Event("lost", "worker", "oodbench worker b/2", worker="b/2"))
        told(Event("failed", "extract", "extract[x 3/3]", reason="gone"))
        assert progress.summary() == "1 workers, 500 images/s each, 1 retried, 1 failed"


def on_a_terminal(start: Callable[[int], Command | subprocess.Popen[bytes]]) -> str:
    """What a terminal, given as its file descriptor, gets from a command that ends well."""
    ours, theirs = pty.openpty()
    run = start(theirs)
    os.close(theirs)
    seen, end = b"", time.monotonic() + 300
    while time.monotonic() < end:
        if select.select([ours], [], [], 1.0)[0]:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other side has closed
                break
            if not more:
                break
            seen += more
    os.close(ours)
    text = seen.decode(errors="replace")
    assert run.wait(60) == 0, text
    return text


def python_on_a_terminal(code: str) -> str:
    def start(terminal: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TERM": "xterm"}
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=terminal
        )

    return on_a_terminal(start)


def test_names_are_shown_as_they_are() -> None:
    code = (
        "from oodbench.cli.progress import ProgressBars\n"
        "with ProgressBars('images') as bars:\n"
        "    bars.count('encode [/x]', 3)(1)\n"
        "    bars.add('starting', None)(description='score mcm[temperature=0.5]')\n"
        "    bars._progress.refresh()\n"
    )
    text = python_on_a_terminal(code)
    assert "encode [/x]" in text and "mcm[temperature=0.5]" in text


@pytest.mark.slow
def test_a_terminal_sees_bars_and_a_file_none(tmp_path: Path) -> None:
    words = ["run", "--methods", "mcm", "--limit", "300", "--tracking-uri", "none", "--batch-size", "4"]
    words += ["--store", str(tmp_path / "s"), "--results"]
    environment = {**os.environ, "TERM": "xterm"}
    text = on_a_terminal(lambda terminal: Command(*words, tmp_path / "a", env=environment, terminal=terminal))
    assert "encode glyphs" in text and "images/s" in text and "/300" in text
    plain = command(*words, tmp_path / "b")
    assert plain.returncode == 0, plain.stderr
    assert "encode" not in plain.stderr and "\x1b[" not in plain.stderr


def test_a_download_shows_bytes_and_its_speed() -> None:
    code = (
        "import time\n"
        "from oodbench.cli.progress import ProgressBars\n"
        "with ProgressBars('bytes') as bars:\n"
        "    advance = bars.count('set.tar', 5_000_000)\n"
        "    for _ in range(4):\n"
        "        advance(1_000_000)\n"
        "        time.sleep(0.05)\n"
        "    bars.count('size unknown', 0)(7)\n"
        "    bars._progress.refresh()\n"
    )
    text = python_on_a_terminal(code)
    assert "4.0/5.0 MB" in text and "MB/s" in text and "7/?" in text


def test_a_training_without_a_terminal_logs_lines(caplog: pytest.LogCaptureFixture) -> None:
    from oodbench.training.loop import StepReport

    caplog.set_level("INFO", logger="oodbench.training")
    with TrainProgress() as progress:
        progress.extracting("captions", 1200)(1200)
        progress.begin(0, 102)
        for step in range(1, 103):
            progress.step(StepReport(step, {"contrastive": 0.5}, 1e-3, 100.0 if step == 1 else 200.0))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "embedding captions: 1,200"
    assert [line.partition(":")[0] for line in lines[1:]] == [f"step {n} of 102" for n in (1, 50, 100, 102)]
    assert lines[1] == "step 1 of 102: loss 0.5000  100 samples/s, lr 0.001"
    assert "199 samples/s" in lines[-2] or "200 samples/s" in lines[-2]
