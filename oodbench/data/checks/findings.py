"""The results of a dataset check: Finding, SetSummary, CheckReport, and the report as text."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from oodbench.errors import printable

LEVELS = ("error", "warning", "note")
EXAMPLES = 10  # examples that a finding lists


@dataclass(frozen=True)
class Finding:
    """A problem or a note.

    level     "error": results would be wrong; "warning": results may mislead; "note": for information
    kind      count, digest, unreadable, identical, ...: identifies the check, for scripts
    sets      the datasets concerned, the ID set first
    message   a sentence
    count     number of images, pairs or names; `examples` are the first of them
    """

    level: str
    kind: str
    sets: tuple[str, ...]
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass
class SetSummary:
    """Declared and actual properties of an image set.

    `looked` is the number of inspected images, `modes` counts them by Pillow's mode, `grey` is the fraction without
    colour (0 to 1), and `shorter` has minimum, median and maximum of the shorter side in pixels.
    """

    name: str
    role: str  # ID, OOD, calibration or ""
    folder: str = ""
    images: int = 0
    expected: int | None = None
    digest: str = ""
    declared_digest: str = ""
    looked: int = 0
    unreadable: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    grey: float = 0.0
    shorter: tuple[int, int, int] | None = None  # minimum, median, maximum


@dataclass
class CheckReport:
    """The summaries of all sets, and all findings."""

    sets: list[SetSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def of(self, level: str) -> list[Finding]:
        """Return the findings of a level."""
        return [f for f in self.findings if f.level == level]

    def kinds(self) -> list[str]:
        """Return the kinds of all findings, sorted, each once."""
        return sorted({f.kind for f in self.findings})

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {
            "schema": 1,
            "ok": self.ok,
            "errors": len(self.of("error")),
            "warnings": len(self.of("warning")),
            "sets": [asdict(summary) for summary in self.sets],
            "findings": [asdict(f) for level in LEVELS for f in self.of(level)],
        }


def first_examples(examples: list[str]) -> tuple[str, ...]:
    """Return the first few examples, for a finding."""
    return tuple(examples[:EXAMPLES])


_COLUMNS = ("set", "role", "images", "expected", "unreadable", "modes", "grey", "shorter side", "list")


def format_report(report: CheckReport) -> str:
    """Return the report as plain text."""
    rows = [_COLUMNS, *(tuple(map(printable, _row(summary))) for summary in report.sets)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for level in LEVELS:
        for finding in report.of(level):
            first, *more = re.split(r"\n(?=  )", finding.message)  # as in UserError; other line breaks belong to names
            lines += ["", printable(f"{level}: {finding.kind}: {' / '.join(finding.sets)}: {first}")]
            lines += [f"  {printable(line.strip())}" for line in [*more, *finding.examples]]
            if finding.examples and finding.count > len(finding.examples):
                lines.append(f"  ... and {finding.count - len(finding.examples):,} more")
    totals = [f"{len(report.of(level)):,} {level}{'' if len(report.of(level)) == 1 else 's'}" for level in LEVELS]
    return "\n".join([*lines, "", ", ".join(totals)])


def _row(summary: SetSummary) -> tuple[str, ...]:
    digest = summary.digest[:12]
    if summary.declared_digest:
        digest += (
            " as declared" if summary.digest == summary.declared_digest else f", not {summary.declared_digest[:12]}"
        )
    else:
        digest += " (none declared)"
    return (
        summary.name,
        summary.role,
        f"{summary.images:,}",
        f"{summary.expected:,}" if summary.expected is not None else "unknown",
        f"{summary.unreadable:,}" if summary.looked else "not looked",
        " ".join(f"{mode}:{n:,}" for mode, n in summary.modes.items()),
        f"{summary.grey:.1%}" if summary.looked else "",
        "{}..{}..{}".format(*summary.shorter) if summary.shorter else "",
        digest,
    )
