"""Damaged files of a results folder: one line for each, the other results are printed, a run replaces them."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from oodbench.errors import UserError
from oodbench.report.verify import read_scores
from oodbench.results import _digest, from_json, rows
from tests.report.test_report_trace import call, lay


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.unlink()
    path.symlink_to(path.with_name("pipe"))


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for place in random.Random(0).sample(range(len(raw)), 40):
        raw[place] ^= 1 << (place % 8)
    path.write_bytes(bytes(raw))


ANY: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "flipped": flipped,
    "folder": folder,
    "dangling": dangling,
    "pipe": pipe,
    "linked pipe": linked_pipe,
}
ROW: dict[str, Callable[[Path], object]] = {
    **ANY,
    "deep": lambda path: path.write_text("[" * 200_000),
    "deep object": lambda path: path.write_text('{"a":' * 200_000),
    "huge": lambda path: path.write_text('{"schema": 1, "n": ' + "9" * 5000 + "}"),
    "huge schema": lambda path: path.write_text('{"schema": ' + "9" * 4000 + "}"),
    "list": lambda path: path.write_text("[1]"),
    "utf-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}
SCORES: dict[str, Callable[[Path], object]] = {
    **ANY,
    "other file": lambda path: path.write_text("PAR1 is not enough PAR1"),
    "column": lambda path: parquet.write_table(parquet.read_table(path).drop_columns(["score"]), path),
    "texts": lambda path: rewritten(path, score="high"),
    "nulls": lambda path: rewritten(path, score=None),
    "fewer": lambda path: parquet.write_table(parquet.read_table(path).slice(1), path),
    "none": lambda path: parquet.write_table(parquet.read_table(path).slice(0, 0), path),
    "other scores": lambda path: rewritten(path, score=1.0),
    "NaN": lambda path: rewritten(path, score=float("nan")),
}


def rewritten(path: Path, **values: object) -> None:
    table = parquet.read_table(path).to_pydict()
    parquet.write_table(pa.table({k: [values[k]] * len(v) if k in values else v for k, v in table.items()}), path)


def three(results: Path) -> Path:
    """Three rows; the path of the one to damage."""
    lay(results, "mcm", 1.5)
    lay(results, "near", 1.5)
    return lay(results, "bad", 1.4)


@pytest.mark.parametrize("damage", ROW)
def test_a_damaged_row_is_one_line_and_the_others_are_printed(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = three(tmp_path)
    ROW[damage](path)
    done = call("--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert "MCM" in done.stdout and "NEAR" in done.stdout and "BAD" not in done.stdout
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert (
        "skipped: " in said and str(path) in said and len(said.splitlines()) == 1 and len(said) < 400 + len(str(path))
    )


@pytest.mark.parametrize("damage", ROW)
def test_verification_reports_a_damaged_result(damage: str, tmp_path: Path) -> None:
    path = three(tmp_path)
    ROW[damage](path)
    done = call("--results", tmp_path, "--verify")
    assert (done.exit_code, done.stdout.count("OK, "), done.stdout.count("DIFFERS")) == (1, 2, 1), done.output


@pytest.mark.parametrize("damage", SCORES)
def test_damaged_scores_are_one_line_and_the_row_is_printed(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = three(tmp_path).with_suffix(".parquet")
    SCORES[damage](path)
    done = call("--results", tmp_path, "--format", "markdown")
    assert done.exit_code == 0, done.output
    lines = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert "†" in lines["MCM"] + lines["NEAR"] and "†" not in lines["BAD"] and "9" in lines["BAD"]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and str(path) in said[0] and len(said[0].splitlines()) == 1
    caplog.clear()
    done = call("--results", tmp_path, "--verify")
    assert (done.exit_code, done.stdout.count("OK, "), done.stdout.count("DIFFERS")) == (1, 2, 1), done.output


@pytest.mark.parametrize("damage", SCORES)
def test_damaged_scores_are_refused(damage: str, tmp_path: Path) -> None:
    path = lay(tmp_path, n=50).with_suffix(".parquet")
    SCORES[damage](path)
    if damage not in ("fewer", "none", "other scores", "NaN", "flipped"):
        with pytest.raises(UserError, match=path.name):
            read_scores(path)


def places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value of nested dictionaries and lists."""
    inner = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@pytest.mark.parametrize(
    "wrong",
    [None, "text"]
    + [pytest.param(x, marks=pytest.mark.slow) for x in (10**400, -1, [], {}, [[1]], {"a": {"b": 1}}, True, 1e999)],
    ids=repr,
)
def test_wrong_types_with_a_right_digest_are_refused_or_printed(wrong: Any, tmp_path: Path) -> None:
    """No content of a result causes a traceback."""
    path = lay(tmp_path, n=20)
    lay(tmp_path, "zoc", n=20)
    plain = json.loads(path.read_text())
    for place in places(plain)[1:]:
        if place[0] in ("digest", "schema"):
            continue
        changed = json.loads(json.dumps(plain))
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = wrong
        changed.pop("digest")
        try:
            changed["digest"] = _digest(changed)
        except (TypeError, ValueError, AttributeError, KeyError):
            continue
        path.write_text(json.dumps(changed))
        forms = [["--no-tests"], ["--format", "csv"], ["--format", "latex", "--cite", "--no-tests"]]
        try:
            from_json(path.read_text(), "here")
        except UserError:
            forms = forms[:1]  # a refused row is left out before it is known what is written
        for flags in forms:
            done = call("--results", tmp_path, *flags)
            assert done.exit_code == 0 and "ZOC" in done.stdout, (place, flags, done.output, done.exception)


def test_integers_too_long_to_read_are_no_traceback() -> None:
    for text in ('{"schema": ' + "9" * 5000 + "}", "[" * 100_000, "", "null", '"row"'):
        with pytest.raises(UserError) as caught:
            from_json(text, "here")
        assert str(caught.value).startswith("here ") and len(str(caught.value)) < 300


def test_a_folder_named_as_a_row_is_looked_into(tmp_path: Path) -> None:
    path = lay(tmp_path)
    inner = path.with_name("more.json")
    inner.mkdir()
    path.with_suffix(".parquet").rename(inner / "x.parquet")
    path.rename(inner / "x.json")
    assert [found.name for found, _ in rows(tmp_path)] == ["x.json"]


@pytest.mark.slow
def test_a_run_replaces_damaged_results_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oodbench.api import run
    from oodbench.pipeline.plan import make_plan
    from oodbench.pipeline.request import request_from

    def once() -> None:
        run(make_plan(request_from(methods="mcm", limit=16, out=tmp_path / "out")))

    once()
    (path,) = (tmp_path / "out").rglob("*.parquet")
    row = path.with_suffix(".json")
    sound, written = parquet.read_table(path), row.read_bytes()
    stamp = path.stat().st_mtime_ns
    once()
    assert path.stat().st_mtime_ns == stamp and row.read_bytes() == written  # what is sound is kept
    for target, damages in ((path, SCORES), (row, ROW)):
        for name, damage in damages.items():
            damage(target)
            if name == "folder":
                with pytest.raises(UserError, match="is a folder"):
                    once()
                target.rmdir()
            once()
            assert parquet.read_table(path).equals(sound), name
            assert row.is_file() and call("--results", tmp_path / "out", "--verify").exit_code == 0, name
            path.with_name("pipe").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "form", ["markdown", "csv", pytest.param("html", marks=pytest.mark.slow), "parquet", "latex", "terminal"]
)
def test_an_unwritable_output_is_one_line_and_is_kept(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = lay(tmp_path / "r").parents[3]
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in ("folder", "file/below"):
        done = call("--results", results, "--format", form, "--output", tmp_path / target)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "cannot write --output" in done.stderr
    for name in ("write_text", "write_bytes"):

        def full(path: Path, *_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(Path, name, full)
    for target in ("pipe", "file"):
        done = call("--results", results, "--format", form, "--output", tmp_path / target)
        assert done.exit_code == 2 and done.stderr.endswith(f"{target}: No space left on device\n"), done.stderr
    assert pipe.is_fifo() and (tmp_path / "file").read_text() == "kept"
    os.close(reader)


def test_parquet_goes_into_a_pipe(tmp_path: Path) -> None:
    results = lay(tmp_path / "r").parents[3]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert call("--results", results, "--format", "parquet", "--output", pipe).exit_code == 0
    assert os.read(reader, 1 << 20)[:4] == b"PAR1" and pipe.is_fifo()
    os.close(reader)
