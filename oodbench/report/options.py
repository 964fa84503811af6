"""Options of a table: which results, sets and metrics it shows, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oodbench.errors import did_you_mean, raise_all
from oodbench.results import METRICS

CHOICES = (*METRICS, "accuracy", "seconds")
INTERVALS = ("half", "range")
SECTIONS = ("access", "trained", "none")
STYLES = ("full", "paper")
SHOWN = ("auroc", "fpr95", "accuracy", "seconds")
_PAPER = ("fpr95", "auroc", "accuracy", "seconds")


@dataclass(frozen=True)
class TableOptions:
    """What a table shows; the defaults show every result, in percent.

    methods    names or labels (`mcm`, `energy[scale=1]`) to show; empty: all
    sets       names of OOD sets to show; empty: all. Averages are over these
    metrics    columns in order, some of `CHOICES`
    decimals   None: two in percent, four as fractions
    intervals  "half": the value ± half the width; "range": [low, high]; "": none
    seeds      results that differ only in the seed become one line, average ± standard deviation; streams always are
    group      "access": methods in groups by what they see; "trained": training-free and trained; "none": one block.
               Best and second are marked among methods of the same access only
    transpose  a line for each column, and a column for each method
    stream_parts  streams have two more tables: their first 1,000 images, and the rest
    cite       names are followed by the keys of their BibTeX entries (LaTeX)
    encoders   names of encoders to show; empty: all
    ids        benchmarks or ID sets to show; empty: all
    sort       a metric: lines of a group are sorted by its average, the best first; "" is the order of the results
    top        of each group, only this many lines, the best by `sort`
    ours       methods or labels that come last in a table, and are shaded in LaTeX
    rename     (name or title, text to print) of metrics, sets, methods, groups, encoders and benchmarks
    style      "full", or "paper": FPR95 before AUROC unless `metrics` has an order of its own, and one panel in LaTeX
    """

    methods: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = SHOWN
    decimals: int | None = None
    percent: bool = True
    intervals: str = ""
    seeds: bool = False
    group: str = "access"
    transpose: bool = False
    stream_parts: bool = False
    cite: bool = False
    encoders: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    sort: str = ""
    top: int | None = None
    ours: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    style: str = "full"

    def __post_init__(self) -> None:
        if self.style == "paper" and self.metrics == SHOWN:
            object.__setattr__(self, "metrics", _PAPER)

    @property
    def default_metrics(self) -> bool:
        """Whether the metrics were not chosen."""
        return self.metrics == (_PAPER if self.style == "paper" else SHOWN)

    @property
    def digits(self) -> int:
        """Decimals with which a metric is printed."""
        return self.decimals if self.decimals is not None else 2 if self.percent else 4

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics of the OOD sets, without ID accuracy and seconds."""
        return tuple(m for m in self.metrics if m in METRICS)


def check(options: TableOptions, labels: Sequence[str], sets: Sequence[str]) -> None:
    """Raise UserError with all invalid options; `labels` (with method names) and `sets` are those that exist."""
    problems = [f"no metric '{m}'{did_you_mean(m, CHOICES)}" for m in options.metrics if m not in CHOICES]
    problems += [f"no results of method '{m}'{did_you_mean(m, labels)}" for m in options.methods if m not in labels]
    problems += [f"no results with OOD set '{s}'{did_you_mean(s, sets)}" for s in options.sets if s not in sets]
    if not options.metrics:
        problems.append(f"--metrics names none; known: {', '.join(CHOICES)}")
    if options.group not in SECTIONS:
        problems.append(f"no group '{options.group}'{did_you_mean(options.group, SECTIONS)}")
    if options.intervals not in ("", *INTERVALS):
        problems.append(f"no intervals '{options.intervals}'{did_you_mean(options.intervals, INTERVALS)}")
    if options.decimals is not None and not 0 <= options.decimals <= 10:
        problems.append(f"--decimals must be 0 to 10, not {options.decimals}")
    if options.intervals and options.seeds:
        problems.append("--intervals and --seeds both put a ± behind the numbers; choose one of them")
    if options.style not in STYLES:
        problems.append(f"no style '{options.style}'{did_you_mean(options.style, STYLES)}")
    for name in ("encoders", "ids", "sort", "top"):
        if getattr(options, name):
            problems.append(f"{name} is not built yet")
    raise_all(problems)
