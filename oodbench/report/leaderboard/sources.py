"""Collect the results of a leaderboard from folders of results and submissions, and verify each."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from oodbench.data.paths import reference
from oodbench.errors import UserError, raise_all
from oodbench.report.leaderboard.evidence import FAILED, IMPORTED, MEASURED, VERIFIED
from oodbench.report.submission import (
    FILE,
    Claim,
    Submission,
    contradictions,
    read_submission,
    wrong_files,
    wrong_place,
)
from oodbench.report.tables.access import access_problem
from oodbench.report.verify import verify
from oodbench.results import METRICS, Result, may_be_result, read, row_files


@dataclass(frozen=True)
class CollectedResult:
    """A result, its file and the folder that was named.

    submission  statement of the submitter
    problems    those of its verification; then its numbers are not shown
    recomputed  whether its numbers were computed again from its scores per image
    own         whether it is one of the project's own results, which are shipped with oodbench
    """

    result: Result
    path: Path
    folder: Path
    evidence: str
    submission: Submission | None = None
    problems: tuple[str, ...] = ()
    recomputed: bool = False
    own: bool = False

    @property
    def why_failed(self) -> str:
        """The problems as one text, with paths relative to the folder."""
        return "; ".join(_inside(problem, self.folder) for problem in self.problems)

    @property
    def by(self) -> str:
        """Whose result it is: the handle of the submission, oodbench, or ""."""
        return f"@{self.submission.handle}" if self.submission else "oodbench" if self.own else ""

    @property
    def source(self) -> str:
        """The source of the result: its submitter, or its folder. Seeds of one source are averaged."""
        return self.by or str(self.path.parent)


@dataclass(frozen=True)
class CollectedResults:
    """The results of all folders; `unreadable` maps messages on damaged files to their texts for the page.

    empty  a message on each folder without results
    """

    results: tuple[CollectedResult, ...]
    unreadable: dict[str, str]
    empty: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each file that is not counted."""
        failed = (f"{one.path}: {one.result.label}: {'; '.join(one.problems)}" for one in self.results if one.problems)
        return (*self.unreadable, *failed)


def collect(folders: Sequence[Path], output: Path | None = None) -> CollectedResults:
    """Read and verify the results below some folders; files below `output` are not read.

    A result found in several folders counts once, with its submission and the best evidence; that of a second
    submitter is refused. Raises UserError for a folder that is missing or unreadable, or below `output`.
    """
    raise_all([problem for folder in folders if (problem := _problem(folder))])
    found: list[CollectedResult] = []
    unreadable: dict[str, str] = {}
    files = {folder: _files(folder, output) for folder in folders}
    for folder, paths in files.items():
        for path in paths:
            try:
                found.append(_collected(path, folder))
            except UserError as error:
                unreadable |= {problem: _inside(problem, folder) for problem in error.problems}
    claims = {
        one.path: Claim(
            one.by,
            one.result.digest,
            one.submission.created if one.submission else "",
            one.path.relative_to(one.folder),
        )
        for one in found
        if one.by
    }
    wrong = contradictions(claims)
    best: dict[str, CollectedResult] = {}
    for one in sorted(found, key=lambda one: not one.own):
        if one.path in wrong:
            message = f"{one.path}: {wrong[one.path]}"
            unreadable[message] = _inside(message, one.folder)
            continue
        other = best.get(one.result.digest)
        if other is None or _rank(one) > _rank(other):
            best[one.result.digest] = one
    empty = (
        f"{folder} has no results; create some with: oodbench run --results {_quoted(folder)}"
        for folder, paths in files.items()
        if not paths
    )
    return CollectedResults(tuple(best.values()), unreadable, tuple(empty))


def _files(folder: Path, output: Path | None) -> list[Path]:
    """Return the files of a folder that may be results, sorted. Raise UserError if all are below the output."""
    submitted = (path for one in folder.rglob(FILE) for path in one.parent.glob("*.json"))  # a handle may be `runs`
    every = sorted({*row_files(folder), *submitted})
    outside = [path for path in every if not (output and path.resolve().is_relative_to(output))]
    found = [*filter(may_be_result, outside)]
    if not found and any(map(may_be_result, every)):
        raise UserError(f"all results of {folder} are below --output; name another folder, such as --output site")
    return found


def _inside(text: str, folder: Path) -> str:
    """Make the paths in a text relative to a folder: the page shows no paths of the machine that built it."""
    return text.replace(f"{folder}/", "").replace(f"{folder.resolve()}/", "")


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
    problems = list(next(verify(path)).problems) if has_scores else [*_without_scores(result)]
    if submission:
        problems += [*wrong_files(submission, {path.name, *submission.files}), wrong_place(submission, result)]
    problems = list(filter(None, problems))
    evidence = FAILED if problems else IMPORTED if result.imported else VERIFIED if has_scores else MEASURED
    own = (shipped := reference()) is not None and folder.resolve() == shipped.resolve()
    return CollectedResult(result, path, folder, evidence, submission, tuple(problems), has_scores, own)


def _without_scores(row: Result) -> Iterator[str]:
    """Yield what is wrong with a result by itself: an access that is not its method's, and impossible numbers."""
    yield access_problem(row)
    for one in row.ood:
        for metric in METRICS:
            if not 0 <= getattr(one, metric) <= 1:
                yield f"{one.dataset}: {metric} is {getattr(one, metric)}, not between 0 and 1"


def _rank(one: CollectedResult) -> tuple[bool, bool, bool]:
    return not one.problems, bool(one.submission), one.recomputed
