"""Collect the results of a leaderboard from folders of results and submissions, and verify each."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import UserError, printable, raise_all
from oodbench.report.leaderboard.evidence import FAILED, IMPORTED, MEASURED, VERIFIED
from oodbench.report.submission import FILE, Submission, read_submission
from oodbench.report.tables.access import access_problem
from oodbench.report.verify import verify
from oodbench.results import Result, read, row_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectedResult:
    """A result, its file and the given folder; `submission` has the submitter's statement.

    If its verification had `problems`, its numbers are not shown.
    """

    result: Result
    path: Path
    folder: Path
    evidence: str
    submission: Submission | None = None
    problems: tuple[str, ...] = ()

    @property
    def why_failed(self) -> str:
        """The problems as one text, with paths relative to the folder."""
        return "; ".join(_inside(problem, self.folder) for problem in self.problems)

    @property
    def by(self) -> str:
        """The handle of the submission, or ""."""
        return f"@{self.submission.handle}" if self.submission else ""

    @property
    def source(self) -> str:
        """The source of the result: its submitter, or its folder. Seeds of one source are averaged."""
        return self.by or str(self.path.parent)


@dataclass(frozen=True)
class CollectedResults:
    """The results of all folders; `unreadable` maps messages on damaged files to their texts for the page."""

    results: tuple[CollectedResult, ...]
    unreadable: dict[str, str]

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each file that is not counted."""
        failed = (f"{one.path}: {one.result.label}: {'; '.join(one.problems)}" for one in self.results if one.problems)
        return (*self.unreadable, *failed)


def collect(folders: Sequence[Path], output: Path | None = None) -> CollectedResults:
    """Read and verify the results below some folders; files below `output` are not read.

    A result found in several folders counts once, with its submission and the best evidence.
    Raises UserError for a folder that is missing, unreadable or without results.
    """
    raise_all([problem for folder in folders if (problem := _problem(folder))])
    best: dict[str, CollectedResult] = {}
    unreadable: dict[str, str] = {}
    for folder in folders:
        paths = [path for path in row_files(folder) if not (output and path.resolve().is_relative_to(output))]
        paths = [path for path in paths if _may_be_result(path)]
        if not paths:
            raise UserError(f"{folder} has no results; create some with: oodbench run --results {_quoted(folder)}")
        for path in paths:
            try:
                found = _collected(path, folder)
            except UserError as error:
                unreadable |= {problem: _inside(problem, folder) for problem in error.problems}
                continue
            other = best.get(found.result.digest)
            if other is None or _rank(found) > _rank(other):
                best[found.result.digest] = found
    return CollectedResults(tuple(best.values()), unreadable)


def _inside(text: str, folder: Path) -> str:
    """Make the paths in a text relative to a folder: the page shows no paths of the machine that built it."""
    return text.replace(f"{folder}/", "").replace(f"{folder.resolve()}/", "")


def _may_be_result(path: Path) -> bool:
    """Return whether a file may be a (damaged) result; other JSON files are logged and skipped."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    known = isinstance(found, dict) and "digest" in found
    if not known:
        log.warning("%s is JSON, but not a result: skipped", printable(str(path)))
    return known


def _problem(folder: Path) -> str:
    if not folder.exists():
        return f"no results folder {folder}; make one with: oodbench run --results {_quoted(folder)}"
    if not folder.is_dir():
        return f"{folder} is a file; name the folder: oodbench leaderboard {_quoted(folder.parent)}"
    return "" if os.access(folder, os.R_OK | os.X_OK) else f"{folder} cannot be read: permission denied"


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))


def _collected(path: Path, folder: Path) -> CollectedResult:
    """Read a result and its submission, and verify it if it has scores. Raise UserError if damaged."""
    result = read(path)
    submission = read_submission(path.parent) if os.path.lexists(path.parent / FILE) else None
    has_scores = result.status == "ok" and os.path.lexists(path.with_suffix(".parquet"))
    problems = next(verify(path)).problems if has_scores else tuple(filter(None, [access_problem(result)]))
    evidence = FAILED if problems else IMPORTED if result.imported else VERIFIED if has_scores else MEASURED
    return CollectedResult(result, path, folder, evidence, submission, problems)


def _rank(one: CollectedResult) -> tuple[bool, bool, bool]:
    return not one.problems, bool(one.submission), one.evidence == VERIFIED
