"""Checks of results for a leaderboard: complete, on the images of a declared benchmark, by committed code."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from oodbench.data import catalog
from oodbench.data.paths import reference
from oodbench.errors import ProblemList, UserError, did_you_mean
from oodbench.report.verify import read_columns, verify
from oodbench.results import IdRow, Result, SetRow, rows

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_UNKNOWN = "unknown"


def problems(path: Path, row: Result) -> list[str]:
    """Return the problems that exclude a result; its numbers are recomputed from the scores next to its file."""
    if row.status != "ok":
        return [f"it failed ({row.error}): run it again, or leave it out"]
    try:
        found = [*_incomplete(row), *_uncommitted(row), *_off_protocol(row)]
        wrong = [problem for one in verify(path) for problem in one.problems]
        return [*found, *(wrong or _other_lists(row, path.with_suffix(".parquet")))]
    except UserError as error:
        return [*error.problems]
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # a submitted file may contain anything
        return [f"its content does not have the form that oodbench writes: {type(error).__name__}: {error}"]


def _incomplete(row: Result) -> Iterator[str]:
    """Yield missing parts of a result: images, or the author of imported scores."""
    if row.run.get("limit") is not None:
        yield f"it was run with --limit {row.run['limit']}: run it again without --limit"
    for one in _sets(row):
        if one.skipped:
            yield f"{one.dataset}: {one.skipped} images could not be read and were skipped"
        if one.partial:
            yield f"{one.dataset}: {one.partial}"
    if skipped := (row.run.get("calibration") or {}).get("skipped"):
        yield f"{skipped} calibration images could not be read and were skipped"
    if row.imported.get("by") == _UNKNOWN:
        yield "its scores were imported, and it is not stated who computed them: import them again with --by"


def _uncommitted(row: Result) -> Iterator[str]:
    """Yield reasons why the code that computed a result cannot be looked up."""
    commits = {row.commit: "the result"}
    for stamp in row.run.get("extracted", ()):
        commits.setdefault(stamp.get("commit"), "its embeddings")
    for commit, what in commits.items():
        if not commit:
            yield f"the commit of oodbench for {what} is unknown: run it in a clone (git clone, pip install -e .)"
        elif commit.endswith("-dirty"):
            again = "import it again" if row.imported else "run it again with an empty --store"
            yield f"the code of {what} had uncommitted changes ({commit[:12]}-dirty): commit them, and {again}"
        elif not _COMMIT.fullmatch(commit):
            yield f"the commit of {what} is {commit[:40]!r}, not 40 hexadecimal digits"


def _off_protocol(row: Result) -> Iterator[str]:
    """Yield differences between a result's sets and its benchmark in the catalogue: names, groups, counts."""
    known = catalog.benchmarks()
    if row.benchmark not in known:
        yield f"its benchmark '{row.benchmark}' is not declared{did_you_mean(row.benchmark, known)}"
        return
    declared, missing = known[row.benchmark], ProblemList()
    wanted = [(missing.attempt(catalog.dataset, name), group) for name, group in ((declared.id, ""), *declared.sets())]
    if missing.problems:
        yield from missing.problems
        return
    found: dict[str, tuple[str, IdRow | SetRow]] = {row.id.dataset: ("", row.id)}
    found |= {one.dataset: (one.group, one) for one in row.ood}
    theirs = {one.name: (group, one) for one, group in wanted if one}
    for title, names in (("lacks", theirs.keys() - found.keys()), ("also has", found.keys() - theirs.keys())):
        if names:
            yield f"{row.benchmark}: the result {title} {', '.join(sorted(names))}"
    if row.id.dataset != declared.id and row.id.dataset in theirs:
        yield f"{row.benchmark}: its ID set is {declared.id}, not {row.id.dataset}"
    for name in theirs.keys() & found.keys():
        (group, one), (expected_group, dataset) = found[name], theirs[name]
        if group != expected_group:
            yield f"{name}: its group is '{group}', but '{expected_group}' in the catalogue"
        if dataset.count not in (None, one.n) and not one.partial and row.stream.get("ratio", "all") == "all":
            yield f"{name}: {one.n:,} images, but {dataset.count:,} in the catalogue"


def _other_lists(row: Result, scores: Path) -> Iterator[str]:
    """Yield the sets whose image lists differ from the known ones.

    The catalogue has the lists of sets that are read by a list; this project's own results have those of glyphs.
    """
    drawn = _drawn()
    complete = [one for one in _sets(row) if not one.partial]  # _incomplete names the others
    known = [one for one in complete if one.list_digest or not row.imported]  # imported scores may lack a list
    for one in known:
        if one.dataset in drawn and one.list_digest != drawn[one.dataset]:
            found = one.list_digest[:12] or "not named"
            yield f"{one.dataset}: its images are not those that oodbench renders (list {found})"
    listed = [one.dataset for one in known if catalog.is_reference(one.dataset)]
    sets = {name: catalog.dataset(name) for name in listed}
    digests = {name: d.digest for name, d in sets.items() if d.loader == "list" and d.digest != catalog.UNKNOWN}
    if not digests or row.stream.get("ratio", "all") != "all":
        return
    columns = read_columns(scores, ("dataset", "name", "label", *(("pair",) if row.stream else ())))
    for name, expected in digests.items():
        mask = columns["dataset"] == name
        if row.stream:  # the ID images are in each pair
            mask &= columns["pair"] == (row.ood[0].dataset if name == row.id.dataset else name)
        pairs = zip(columns["name"][mask], columns["label"][mask], strict=True)
        lines = "".join(f"{image} {label}\n" for image, label in pairs)
        if hashlib.sha256(lines.encode()).hexdigest() != expected:
            yield f"{name}: the names of its images differ from the list in the catalogue (sha256 {expected[:12]})"


@functools.cache
def _drawn() -> dict[str, str]:
    """Return the digests of the lists of the embedded benchmark, from this project's own results."""
    folder = reference()
    found = [row for _, row in rows(folder)] if folder else []
    return {one.dataset: one.list_digest for row in found for one in _sets(row)}


def _sets(row: Result) -> tuple[IdRow | SetRow, ...]:
    return (row.id, *row.ood)
