"""`oodbench diff`: which numbers and facts of two results differ, and by how much."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from oodbench.results import Result, read
from tests.conftest import Cli

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "glyphs" / "glyphs"


def written(path: Path, row: Result) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row.to_json())
    return path


def other(row: Result, fpr95: float = 0.01, **facts: Any) -> Result:
    """A result with another FPR95 on its second set, and other facts."""
    first, second, *rest = row.ood
    changed = dataclasses.replace(second, fpr95=second.fpr95 + fpr95)
    return dataclasses.replace(row, ood=(first, changed, *rest), **facts)


def test_numbers_and_facts_of_two_files(tmp_path: Path, cli: Cli) -> None:
    row = read(REFERENCE / "mcm.json")
    facts: dict[str, Any] = {
        "commit": "f" * 40,
        "run": {**row.run, "device": "cuda:0"},
        "classes": {**row.classes, "digest": "e" * 64},
    }
    theirs = written(tmp_path / "b.json", other(row, **facts))
    done = cli("diff", REFERENCE / "mcm.json", theirs)
    assert done.returncode == 1 and "of 119 numbers differ, by up to 1 points" in done.stdout
    assert re.search(
        r"glyphs-letters fpr95 +39\.066667 +40\.066667 +\+1\.000000\n +far mean fpr95 .* \+0\.3", done.stdout
    )
    shown = {line.split()[0] for line in done.stdout.partition("facts that differ")[2].splitlines()[2:]}
    assert shown == {"classes.digest", "run.device", "commit"} and "ffffffffffff\n" in done.stdout
    found = json.loads(cli("diff", REFERENCE / "mcm.json", theirs, "--json").stdout)
    (pair,) = found["pairs"]
    cells = {(cell["place"], cell["name"]): cell["difference"] for cell in pair["differing"]}
    assert cells == pytest.approx(
        {("glyphs-letters", "fpr95"): 0.01, ("far mean", "fpr95"): 0.01 / 3, ("mean", "fpr95"): 0.01 / 4}
    )
    assert not found["equal"] and {fact["name"] for fact in pair["facts"]} == shown


def test_equal_numbers_are_exit_code_0_whatever_the_facts(tmp_path: Path, cli: Cli) -> None:
    row = read(REFERENCE / "mcm.json")
    theirs = written(tmp_path / "b.json", dataclasses.replace(row, versions={**row.versions, "torch": "3.0"}))
    done = cli("diff", REFERENCE / "mcm.json", theirs)
    assert done.returncode == 0 and "119 numbers, equal in all digits" in done.stdout
    assert "facts that differ, without effect" in done.stdout and "versions.torch" in done.stdout


def test_the_last_digit_counts(tmp_path: Path, cli: Cli) -> None:
    theirs = written(tmp_path / "b.json", other(read(REFERENCE / "mcm.json"), 1e-16))
    done = cli("diff", REFERENCE / "mcm.json", theirs)
    assert done.returncode == 1 and re.search(r"\+\d\.\de-1[45]\n", done.stdout) and "no fact differs" in done.stdout


def test_folders(tmp_path: Path, cli: Cli) -> None:
    for name in ("mcm", "msp", "energy"):
        for lab in ("a", "b"):
            written(tmp_path / lab / "runs" / "glyphs" / f"{name}.json", read(REFERENCE / f"{name}.json"))
    assert cli("diff", "a", "b", cwd=tmp_path).returncode == 0
    msp, mcm = (read(REFERENCE / f"{name}.json") for name in ("msp", "mcm"))
    written(tmp_path / "b/runs/glyphs/msp.json", other(msp, 0.02))
    seeds = [dataclasses.replace(mcm, run={**mcm.run, "seed": seed}) for seed in (1, 2)]
    written(tmp_path / "a/runs/glyphs/seed1.json", seeds[0])
    written(tmp_path / "b/runs/x/seed2.json", seeds[1])
    written(tmp_path / "b/runs/glyphs/mcm.json", other(mcm, -0.01))
    done = cli("diff", "a", "b", "--cells", "1", cwd=tmp_path)
    heads = re.findall(r"^(\w+), glyphs, glyphs: (\d+ of)?", done.stdout, re.MULTILINE)
    assert done.returncode == 1 and heads == [("msp", "3 of"), ("mcm", "3 of"), ("energy", "")]
    assert "and 2 more; --cells 3 shows all" in done.stdout
    assert "only in A:\n  a/runs/glyphs/seed1.json\nonly in B:\n  b/runs/x/seed2.json\n" in done.stdout
    assert done.stdout.endswith("1 of 3 pairs of results are equal in all digits; 2 more in only one of A and B\n")


def test_pairs_of_one_name_are_told_apart(tmp_path: Path, cli: Cli) -> None:
    mcm = read(REFERENCE / "mcm.json")
    made = {
        "first": mcm,
        "nearest": dataclasses.replace(mcm, conventions={**mcm.conventions, "at95": "nearest"}),
        **{f"seed{seed}": dataclasses.replace(mcm, run={**mcm.run, "seed": seed}) for seed in (1, 2)},
    }
    for name, row in made.items():
        for lab in ("a", "b"):
            written(tmp_path / lab / "runs" / "glyphs" / f"{name}.json", row)
    done = cli("diff", "a", "b", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.rpartition(":")[0] for line in done.stdout.splitlines()[:-1]] == [
        "mcm, glyphs, glyphs (a/runs/glyphs/first.json and b/runs/glyphs/first.json)",
        "mcm, glyphs, glyphs (a/runs/glyphs/nearest.json and b/runs/glyphs/nearest.json)",
        "mcm, glyphs, glyphs, seed 1",
        "mcm, glyphs, glyphs, seed 2",
    ]


def test_a_failed_result_lacks_numbers(tmp_path: Path, cli: Cli) -> None:
    row = read(REFERENCE / "mcm.json")
    theirs = written(tmp_path / "b.json", dataclasses.replace(row, ood=(), status="failed", error="no memory"))
    done = cli("diff", REFERENCE / "mcm.json", theirs)
    assert done.returncode == 1 and "119 of 119 numbers differ\n" in done.stdout
    assert re.search(r"error +no memory\n", done.stdout)


def test_bad_input(tmp_path: Path, cli: Cli) -> None:
    shutil.copy(REFERENCE / "mcm.json", tmp_path)
    (tmp_path / "empty").mkdir()
    for words, message in (
        (("mcm.json", "none.json"), "none.json does not exist"),
        (("gone", "empty"), "gone does not exist"),
        (("mcm.json", "empty"), "empty is a folder, mcm.json is not; compare two results, or two folders"),
        (("empty", "."), "empty has no results; create some with: oodbench run --results empty"),
        (("mcm.json", "mcm.json", "--cells", "-1"), "--cells must be at least 0"),
    ):
        done = cli("diff", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
