"""Provenance: a row from the store has a note if another device was requested."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from oodbench.cli import main
from oodbench.results import elsewhere


def row(label: str, device: str, *extracted: str, status: str = "ok") -> Any:
    stamps = [{"device": one} for one in extracted or (device,)]
    return SimpleNamespace(label=label, status=status, run={"device": device, "extracted": stamps})


@pytest.mark.parametrize(
    ("asked", "made", "said"),
    [
        ("cuda", "cpu", "mcm: from the store, computed on cpu; --device cuda was asked for"),
        ("mps", "cpu", "mcm: from the store, computed on cpu; --device mps was asked for"),
        ("cuda:7", "cuda", "mcm: from the store, computed on cuda; --device cuda:7 was asked for"),
        ("cpu", "cuda:1", "mcm: from the store, computed on cuda:1; --device cpu was asked for"),
        ("cuda", "cuda:3", ""),
        ("cuda:0", "cuda", ""),
        ("cpu", "cpu", ""),
        ("auto", "cpu", ""),
    ],
)
def test_rows_of_another_device_have_a_note(asked: str, made: str, said: str) -> None:
    assert elsewhere(asked, [row("mcm", made)]) == said


def test_every_device_and_row_is_named() -> None:
    rows = [row("mcm", "cuda", "cpu"), row("msp", "cuda"), row("knn", "cpu"), row("x", "cpu", status="failed")]
    rows += [row("both", "cuda, cpu", "cuda", "cpu:0", "mps")]
    assert elsewhere("cuda", rows) == (
        "mcm, knn: from the store, computed on cpu; both: from the store, computed on cpu and cpu:0 and mps; "
        "--device cuda was asked for"
    )


@pytest.mark.slow
def test_a_run_for_a_missing_gpu_names_the_device_of_stored_rows(tmp_path: Path) -> None:
    options = ["run", "--methods", "mcm", "--limit", "5", "--results", str(tmp_path / "out"), "--tracking-uri", "none"]
    first = CliRunner().invoke(main, [*options, "--device", "cpu"])
    assert first.exit_code == 0 and "from the store" not in first.stderr, first.output
    again = CliRunner().invoke(main, [*options, "--device", "cuda:7"])
    assert again.exit_code == 0
    assert "note: mcm: from the store, computed on cpu; --device cuda:7 was asked for" in again.stderr
