"""What a check of datasets found: one Finding per kind and set, one Card per set, a Report of all of them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from oodbench.errors import printable

LEVELS = ("error", "warning", "note")
EXAMPLES = 10  # examples that a finding keeps


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    level     "error": numbers would be wrong; "warning": numbers may mislead; "note": good to know
    kind      count, digest, unreadable, identical, ...: the same word for the same thing, for scripts
    sets      the datasets it is about, the ID set first
    message   one sentence
    count     how many images, pairs or names; `examples` shows the first of them
    """

    level: str
    kind: str
    sets: tuple[str, ...]
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass
class SetSummary:
    """One set: what it should be and what was seen. Sizes are the shorter side in pixels; grey is a share, 0..1."""

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
    shorter: tuple[int, int, int] | None = None  # least, median, greatest


@dataclass
class CheckReport:
    """All that was found; `ok` unless there is an error."""

    cards: list[SetSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.of("error")

    def of(self, level: str) -> list[Finding]:
        return [f for f in self.findings if f.level == level]

    def kinds(self) -> list[str]:
        """The kinds of all findings, sorted, each once."""
        return sorted({f.kind for f in self.findings})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": 1,
            "ok": self.ok,
            "errors": len(self.of("error")),
            "warnings": len(self.of("warning")),
            "sets": [asdict(card) for card in self.cards],
            "findings": [asdict(f) for level in LEVELS for f in self.of(level)],
        }


def first_examples(examples: list[str]) -> tuple[str, ...]:
    """The first few."""
    return tuple(examples[:EXAMPLES])


_HEAD = ("set", "role", "images", "expected", "unreadable", "modes", "grey", "shorter side", "list")


def format_report(report: CheckReport) -> str:
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


def _row(card: SetSummary) -> tuple[str, ...]:
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
