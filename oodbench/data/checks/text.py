"""A report for people: a line per set, then every finding with examples, the worst first."""

from __future__ import annotations

import re

from oodbench.data.checks.findings import LEVELS, Card, Report
from oodbench.printable import printable

_HEAD = ("set", "role", "images", "expected", "unreadable", "modes", "grey", "shorter side", "list")


def text(report: Report) -> str:
    """The report as plain text."""
    rows = [_HEAD, *(tuple(map(printable, _row(card))) for card in report.cards)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for level in LEVELS:
        for finding in report.of(level):
            first, *more = re.split(r"\n(?=  )", finding.message)  # as in errors: other line breaks are those of names
            lines += ["", printable(f"{level}: {finding.kind}: {' / '.join(finding.sets)}: {first}")]
            lines += [f"  {printable(line.strip())}" for line in [*more, *finding.examples]]
            if finding.examples and finding.count > len(finding.examples):
                lines.append(f"  ... and {finding.count - len(finding.examples):,} more")
    told = [f"{len(report.of(level)):,} {level}{'' if len(report.of(level)) == 1 else 's'}" for level in LEVELS]
    return "\n".join([*lines, "", ", ".join(told)])


def _row(card: Card) -> tuple[str, ...]:
    digest = card.digest[:12]
    if card.declared_digest:
        digest += " as declared" if card.digest == card.declared_digest else f", not {card.declared_digest[:12]}"
    else:
        digest += " (none declared)"
    return (
        card.name,
        card.role,
        f"{card.images:,}",
        f"{card.expected:,}" if card.expected is not None else "unknown",
        f"{card.unreadable:,}" if card.looked else "not looked",
        " ".join(f"{mode}:{n:,}" for mode, n in card.modes.items()),
        f"{card.grey:.1%}" if card.looked else "",
        "{}..{}..{}".format(*card.shorter) if card.shorter else "",
        digest,
    )
