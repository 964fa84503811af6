"""Rows of the leaderboard: measured and published results; publications that agree share one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote as url_quote

from oodbench.data import catalog
from oodbench.method.access import TEST_TIME, UNKNOWN
from oodbench.report.html.record import Records
from oodbench.report.leaderboard.evidence import ONE, SEVERAL, weakest
from oodbench.report.leaderboard.sources import CollectedResult
from oodbench.report.options import TableOptions
from oodbench.report.submission import Submission
from oodbench.report.tables.access import card, group_of
from oodbench.report.tables.columns import column_groups
from oodbench.report.tables.grouping import PromptGroup, TableGroup, by_prompts, group, ordered
from oodbench.report.tables.published import Quote
from oodbench.report.tables.rows import line_cells, line_names, repeated
from oodbench.report.tables.streams import protocol
from oodbench.report.tables.table import TableLine
from oodbench.results import IdRow, Result, SetRow

METRICS = ("auroc", "fpr95", "fpr95_ood")
OPTIONS = TableOptions(metrics=METRICS, seeds=True)
NOT_STATED = "weights not stated"
AGREE = 0.1  # points: some sources print one decimal
_NO_CARD = "the access of the method is unknown"

Values = dict[str, dict[str, float]]  # OOD set, `mean` or `near mean` -> metric -> fraction


@dataclass(frozen=True)
class BoardRow:
    """One row: the average over the seeds of a measured result, or the numbers of publications.

    id        address of its provenance, the same in every page with this row
    group     access of the method, one of oodbench.method.access.GROUPS
    scope     settings that differ between rows of this benchmark and encoder; rows are ranked within one scope
    spread    OOD set or average -> metric -> `± 0.12` over seeds
    recomputed  whether its numbers were computed again from its scores per image
    unranked  why the row is not ranked, "" if it is
    by        author of the result: the handle of a submission, oodbench, the sources of a published result, else ""
    stated    statement of the submitter
    links     name -> address: the paper, the code, and the submission in its repository
    """

    id: str
    name: str
    benchmark: str
    encoder: str
    architecture: str
    group: str
    scope: str
    evidence: str
    values: Values
    records: tuple[str, ...]
    spread: dict[str, dict[str, str]] = field(default_factory=dict)
    recomputed: bool = False
    unranked: str = ""
    by: str = ""
    stated: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def measured(collected: Iterable[CollectedResult], records: Records, repository: str = "") -> list[BoardRow]:
    """Return the rows of results, and add their provenance to the records."""
    by_digest = {one.result.digest: one for one in collected}
    out: list[BoardRow] = []
    for comparable in group(ordered([one.result for one in by_digest.values()])):
        for prompts in by_prompts(comparable.results):
            out += _rows(comparable, prompts, by_digest, records.add, repository)
    return out


def _rows(
    comparable: TableGroup,
    prompts: PromptGroup,
    by_digest: Mapping[str, CollectedResult],
    add: Callable[[TableLine], str],
    repository: str,
) -> Iterator[BoardRow]:
    """Yield the rows of comparable results; seeds of one source are averaged, without failed results."""
    members: dict[tuple[str, str], list[Result]] = {}
    for row in prompts.results:
        one = by_digest[row.digest]
        members.setdefault((one.source, row.digest if one.problems else ""), []).append(row)
    lines = [line for found in members.values() for same in repeated(found, seeds=True) for line in _seeds(same)]
    by_owner: dict[str, list[list[Result]]] = {}
    for line_results in lines:
        by_owner.setdefault(by_digest[line_results[0].digest].by, []).append(line_results)
    named = [pair for found in by_owner.values() for pair in zip(line_names(found), found, strict=True)]
    settings = "; ".join(filter(None, (prompts.title, *comparable.differences, *comparable.sizes)))
    for name, results in named:
        first, evidence = results[0], [by_digest[row.digest] for row in results]
        line = TableLine(name, (), first, access=card(first), others=tuple(results[1:]))
        record = add(line)
        values: Values = {}
        spread: dict[str, dict[str, str]] = {}
        for columns in column_groups(first, OPTIONS) if not any(one.problems for one in evidence) else ():
            for column, cell in zip(columns.columns, line_cells(results, columns, OPTIONS), strict=True):
                if cell.value is not None:
                    values.setdefault(columns.name, {})[column.name] = cell.value
                if cell.extra:
                    spread.setdefault(columns.name, {})[column.name] = cell.extra
        stream = protocol(results).values() if first.stream else ()
        submission = evidence[0].submission
        yield BoardRow(
            id=record,
            name=name,
            benchmark=first.benchmark,
            encoder=str(first.encoder.get("name", "unknown")),
            architecture=str(first.encoder.get("architecture") or first.encoder.get("name", "unknown")),
            group=group_of(line),
            scope="; ".join(filter(None, (settings, ", ".join(stream)))),
            evidence=weakest([one.evidence for one in evidence]),
            values=values,
            records=(record,),
            spread=spread,
            recomputed=all(one.recomputed for one in evidence),
            unranked=_unranked(line, evidence),
            by=evidence[0].by,
            stated=_stated(submission) if submission else {},
            links=_links(submission, repository) if submission else {},
        )


def _seeds(results: list[Result]) -> list[list[Result]]:
    """Return the results of one method as one group to average, or one by one if a seed occurs twice."""
    drawn = {(row.run.get("seed"), row.stream.get("seed")) for row in results}
    return [results] if len(drawn) == len(results) else [[row] for row in results]


def _stated(one: Submission) -> dict[str, str]:
    """Return a submitter's statement; submissions tuned on test data were rejected before."""
    names = ("handle", "authors", "paper", "code", "licence", "hardware", "created")
    return {name: getattr(one, name) for name in names} | {"tuned on test data": "no"}


def _links(one: Submission, repository: str) -> dict[str, str]:
    """Return the addresses of a submission; `repository` is the address of the current folder."""
    folder, root = one.folder.resolve(), Path.cwd().resolve()
    inside = url_quote(folder.relative_to(root).as_posix()) if folder.is_relative_to(root) else ""
    found = {"paper": one.paper_url, "code": one.code}
    found["submission"] = f"{repository.rstrip('/')}/{inside}" if repository and inside else ""
    return {name: address for name, address in found.items() if address}


def _unranked(line: TableLine, collected: Sequence[CollectedResult]) -> str:
    """Return why a row is not ranked, "" if it is."""
    reasons: dict[str, None] = {}
    for one in collected:
        row = one.result
        if one.problems:
            return one.why_failed
        if row.status != "ok":
            return f"the method failed: {' '.join((row.error or 'no message').split())[:300]}"
        if row.run.get("limit") is not None:
            reasons[f"--limit {row.run['limit']}"] = None
        sets: tuple[IdRow | SetRow, ...] = (row.id, *row.ood)
        reasons |= dict.fromkeys(f"{s.title}: {s.partial}" for s in sets if s.partial)
        reasons |= dict.fromkeys(f"{s.title}: {s.skipped} images skipped" for s in sets if s.skipped)
        declared = catalog.benchmarks().get(row.benchmark)
        missing = [name for name, _ in declared.sets()] if declared else []
        missing = [name for name in missing if name not in {s.dataset for s in row.ood}]
        if missing:
            reasons[f"OOD sets are missing: {', '.join(missing)}"] = None
    known = line.access and (line.access.stream == bool(line.result and line.result.stream))
    if group_of(line) == UNKNOWN or not known:
        reasons[_NO_CARD] = None
    return "; ".join(reasons)


def published(quotes: Sequence[Quote], records: Records, rows: Sequence[BoardRow]) -> list[BoardRow]:
    """Return rows of published results.

    They are ranked with the ranked results of their encoder in `rows`, unless these have several settings: which of
    these a publication has is not known. Test-time adaptation is ranked within one source alone.
    """
    scopes: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if not row.unranked and row.group != TEST_TIME:
            scopes.setdefault((row.benchmark, row.encoder), set()).add(row.scope)
    out = []
    for same in agreeing(quotes):
        first = same[0]
        addresses = tuple(records.add_quote(one) for one in same)
        encoder = encoder_of(first)
        scope, *others = scopes.get((first.benchmark, encoder), {""})
        if first.card.stream:
            scope = f"protocol of {first.source}; order not stated"
        elif others:
            scope = "settings of the publications"
        values = {name: {m: v.value for m, v in found.items() if m in METRICS} for name, found in first.cells.items()}
        out.append(
            BoardRow(
                id=addresses[0],
                name=first.title,
                benchmark=first.benchmark,
                encoder=encoder,
                architecture=first.architecture or encoder,
                group=first.card.group,
                scope=scope,
                evidence=SEVERAL if several(same) else ONE,
                values={name: found for name, found in values.items() if found},
                records=addresses,
                by="; ".join(q.source for q in same),
            )
        )
    return out


def encoder_of(one: Quote) -> str:
    """Return the encoder that a publication states: `ViT-B-16/openai`, or that its weights are not stated."""
    if one.architecture in ("", one.weights):
        return one.weights or "encoder not stated"
    return f"{one.architecture}/{one.weights}" if one.weights else f"{one.architecture} ({NOT_STATED})"


def agreeing(quotes: Sequence[Quote]) -> list[list[Quote]]:
    """Group agreeing published results of one method, benchmark, encoder and settings, the most complete one first.

    Results agree if they come from different works, have at least one number in common, and no common number differs
    by more than AGREE points.
    """
    groups: list[list[Quote]] = []
    for one in sorted(quotes, key=lambda q: -sum(map(len, q.cells.values()))):
        fitting = (found for found in groups if all(_agree(one, other) for other in found))
        if (found := next(fitting, None)) is not None:
            found.append(one)
        else:
            groups.append([one])
    order = {one.key: place for place, one in enumerate(quotes)}
    return sorted(groups, key=lambda found: min(order[one.key] for one in found))


def _agree(one: Quote, other: Quote) -> bool:
    facts = ("method", "title", "benchmark", "architecture", "weights", "settings", "card", "order")
    if set(one.cite) & set(other.cite) or any(getattr(one, f) != getattr(other, f) for f in facts):
        return False
    common = [
        (found[metric].value, other.cells[name][metric].value)
        for name, found in one.cells.items()
        for metric in found
        if metric in other.cells.get(name, {})
    ]
    return bool(common) and all(abs(a - b) * 100 <= AGREE + 1e-9 for a, b in common)


def several(quotes: Sequence[Quote]) -> bool:
    """Return whether two or more publications state the numbers; a confidence of `two reprints agree` counts, too."""
    return len(quotes) > 1 or bool(re.search(r"\bagree\b", quotes[0].confidence))
