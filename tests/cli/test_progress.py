"""Progress bars: the summary of workers, output in a terminal, and none elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oodbench.cli.progress import RunProgress, TrainProgress
from oodbench.cli.run import _next_steps
from oodbench.pipeline.events import Event
from oodbench.tracking import Tracker
from oodbench.tracking.runs import record_sent
from tests.processes import Command, command
from tests.report.test_report import failed, result


def test_summary_of_workers_has_their_speeds() -> None:
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
    """The output of a successful command to a terminal."""
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


def test_names_are_not_parsed_as_markup() -> None:
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


def test_messages_are_above_bars_and_a_spinner_shows_slow_blocks() -> None:
    code = (
        "import logging, sys, time, warnings\n"
        "from oodbench.cli.output import configure_logging, note\n"
        "from oodbench.cli.progress import RunProgress, spinner\n"
        "from oodbench.pipeline.events import Event\n"
        "configure_logging(False)\n"
        "with spinner('importing torch'):\n"
        "    time.sleep(1.3)\n"
        "with spinner('a quick thing'):\n"
        "    pass\n"
        "with RunProgress(3) as progress:\n"
        "    progress.watch.event(Event('started', 'fit', 'fit[neglabel]'))\n"
        "    advance = progress.watch.prompts(70_768)\n"
        "    for _ in range(3):\n"
        "        advance(256)\n"
        "        time.sleep(0.05)\n"
        "    logging.getLogger('oodbench.text').warning('4 prompts are cut')\n"
        "    note('note: a line')\n"
        "    progress._progress.refresh()\n"
    )
    text = python_on_a_terminal(code)
    assert "importing torch" in text and "a quick thing" not in text
    assert "0/3" in text and "fit[neglabel]" in text
    lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))]
    assert any(re.search(r"768/70768 +[\d,]+ prompts/s \d:\d\d:\d\d", line) for line in lines), text
    assert lines.count("WARNING oodbench.text: 4 prompts are cut") == 1
    assert lines.count("note: a line") == 1


def test_without_a_terminal_stages_are_lines_of_the_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="oodbench.run")
    with RunProgress(2) as progress:
        progress.watch.event(Event("started", "fit", "fit[neglabel]"))
        progress.watch.prompts(70_768)(256)
        progress.watch.scoring("dtd", ["mcm"], 5640)(1024)
        progress.watch.event(Event("done", "fit", "fit[neglabel]"))
    assert [record.getMessage() for record in caplog.records] == ["fit[neglabel]", "encoding 70,768 prompts"]
    assert capsys.readouterr().err == ""


def test_the_end_of_a_run_names_the_next_commands(tmp_path: Path) -> None:
    from oodbench.cli import main

    good, local = result(), Tracker(f"sqlite:///{tmp_path}/my runs/mlflow.db", tmp_path)
    steps = _next_steps([good], tmp_path / "my runs", local)
    assert len(steps) == 3
    for step in steps[:2]:  # what click refuses raises
        words = shlex.split(step)
        assert words[0] == "oodbench"
        main.get_command(None, words[1]).make_context(words[1], words[2:])  # type: ignore[arg-type, union-attr]
    assert shlex.split(steps[2]) == ["mlflow", "ui", "--backend-store-uri", local.uri]
    assert _next_steps([good], Path("results"), None) == [
        "oodbench report --format html --output results/report.html",
        "oodbench report --format latex",
    ]
    server = Tracker("https://me:secret@host:5000", tmp_path)
    assert _next_steps([good], Path("results"), server)[2] == "open https://host:5000"
    record_sent(server, [good.digest], "7")
    (*_, last) = _next_steps([good], Path("results"), server)
    assert shlex.split(last) == ["open", server.link("7")] and "secret" not in last
    assert _next_steps([failed()], Path("results"), local) == []
