"""Atomic writes: two writers, errors, links, pipes and devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oodbench.report.options import TableOptions
from oodbench.report.output import OutputOptions, write
from oodbench.storage.files import atomic_write, write_text


def test_the_last_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # two containers have the same
    goal = tmp_path / "new/row.json"
    with atomic_write(goal) as first:
        first.write_text("A" * 10)
        with atomic_write(goal) as second:
            second.write_text("B" * 5)
        assert goal.read_text() == "B" * 5
    assert goal.read_text() == "A" * 10 and [path.name for path in goal.parent.iterdir()] == ["row.json"]


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    goal = tmp_path / f"{'n' * 200}.txt"
    goal.write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic_write(goal) as partial:
        partial.write_text("ne")
        raise RuntimeError("in the middle")
    assert goal.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_links_and_pipes_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.md").symlink_to("target.md")
    write([], TableOptions(), OutputOptions(form="markdown", output=tmp_path / "link.md"))
    assert (tmp_path / "link.md").is_symlink() and (tmp_path / "target.md").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write([], TableOptions(), OutputOptions(form="markdown", output=tmp_path / "pipe"), lambda: "")
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "null"
    place.symlink_to("/dev/null")
    write_text(place, "text")
    assert place.is_symlink() and place.is_char_device() and [one.name for one in tmp_path.iterdir()] == ["null"]
