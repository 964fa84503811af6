"""The live view: what it says of workers, as a terminal gets it, and its silence elsewhere."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oodbench.cli.progress import Progress
from oodbench.pipeline.events import Event


def test_workers_are_told_with_their_speeds() -> None:
    with Progress() as progress:
        told = progress.watch.told
        for name in ("a/1", "b/2"):
            told(Event("joined", "worker", f"oodbench worker {name}", worker=name))
        assert progress.words() == "2 workers"
        told(Event("done", "extract", "extract[x 1/3]", 2000, 4.0, "a/1"))
        told(Event("done", "extract", "extract[x 2/3]", 2000, 8.0, "b/2"))
        told(Event("retried", "extract", "extract[x 3/3]", worker="b/2", reason="gone"))
        assert progress.words() == "2 workers, 250-500 images/s each, 1 retried"
        told(Event("lost", "worker", "oodbench worker b/2", worker="b/2"))
        told(Event("failed", "extract", "extract[x 3/3]", reason="gone"))
        assert progress.words() == "1 workers, 500 images/s each, 1 retried, 1 failed"


def on_a_terminal(command: list[str]) -> str:
    """What a terminal gets on stderr from a command that ends well."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as run:
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
    assert run.returncode == 0, text
    return text


def test_names_are_shown_as_they_are() -> None:
    code = (
        "from oodbench.cli.progress import Live\n"
        "with Live() as live:\n"
        "    live.counting('encode [/x]', 3, 'images')(1)\n"
        "    live.line('starting', None)(description='score mcm[temperature=0.5]')\n"
        "    live._view.refresh()\n"
    )
    text = on_a_terminal([sys.executable, "-c", code])
    assert "encode [/x]" in text and "mcm[temperature=0.5]" in text


@pytest.mark.slow
def test_a_terminal_sees_bars_and_a_file_none(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("oodbench")), "run", "--methods", "mcm", "--limit", "300"]
    command += [
        "--tracking-uri",
        "none",
        "--batch-size",
        "4",
        "--store",
        str(tmp_path / "s"),
        "--results",
        str(tmp_path),
    ]
    text = on_a_terminal(command)
    assert "encode glyphs" in text and "images/s" in text and "/300" in text
    plain = subprocess.run([*command[:-1], str(tmp_path / "b")], capture_output=True, text=True, check=True)
    assert "encode" not in plain.stderr and "\x1b[" not in plain.stderr
