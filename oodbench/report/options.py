"""Options of a table: which results, sets and metrics it shows, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oodbench.encoder.names import open_clip_name
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method.parameters import parse_names, split
from oodbench.results import METRICS, Result

CHOICES = (*METRICS, "accuracy", "seconds")
INTERVALS = ("half", "range")
SECTIONS = ("access", "trained", "none")
STYLES = ("full", "paper")
SHOWN = ("auroc", "fpr95", "accuracy", "seconds")
_PAPER = ("fpr95", "auroc", "accuracy", "seconds")


@dataclass(frozen=True)
class TableOptions:
    """Options of tables; the defaults show every result, in percent.

    methods    names or labels (`mcm`, `energy[scale=1]`) to show; empty: all
    sets       names of OOD sets to show and to average over; empty: all
    metrics    columns in order, some of `CHOICES`
    decimals   None: two in percent, four as fractions
    intervals  "half": the value ± half the width; "range": [low, high]; "": none
    seeds      merge results that differ only in the seed into one line, average ± standard deviation; streams always
               are merged
    group      "access": group methods by the data that they see; "trained": training-free and trained; "none": no
               groups. Best and second are marked among methods of the same access only
    transpose  a line for each column, and a column for each method
    stream_parts  add two tables of streams: their first 1,000 images, and the rest
    cite       cite the BibTeX entries of names (LaTeX)
    encoders   names of encoders to show, or architectures; empty: all
    ids        benchmarks or ID sets to show; empty: all
    sort       a metric: lines of a group are sorted by its average over the sets shown, the best first; "" is the order
               of the results
    top        maximum number of lines of each group, the best by `sort`, or else by the first metric shown
    ours       methods or labels to put last in a table, shaded in LaTeX
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
        """Whether the metrics are the default ones."""
        return self.metrics == (_PAPER if self.style == "paper" else SHOWN)

    @property
    def digits(self) -> int:
        """Decimals with which a metric is printed."""
        return self.decimals if self.decimals is not None else 2 if self.percent else 4

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics of the OOD sets, without ID accuracy and seconds."""
        return tuple(m for m in self.metrics if m in METRICS)

    @property
    def sort_metric(self) -> str:
        """The metric by which lines are sorted, "" for the order of the results."""
        return self.sort or (self.metrics[0] if self.top and self.metrics else "")

    def chooses(self, row: Result) -> bool:
        """Return whether a result is shown, by its method, encoder and benchmark."""
        chosen = (("methods", self.methods), ("encoder", self.encoders), ("id", self.ids))
        return all(not given or any(is_named(row, option, name) for name in given) for option, given in chosen)


def parse(given: Mapping[str, Any]) -> TableOptions:
    """Parse texts such as "mcm,energy[scale=1]" into TableOptions; sequences and other values are kept.

    Raises UserError for a text that cannot be read.
    """
    words: dict[str, Any] = dict(given)
    for name in words.keys() & _NAMES:
        words[name] = names(words[name], labels=name in ("methods", "ours"))
    if "rename" in words:
        pairs = [words["rename"]] if isinstance(words["rename"], str) else words["rename"]
        pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        words["rename"] = tuple(_renamed(one) if isinstance(one, str) else one for one in pairs)
    return TableOptions(**words)


_NAMES = {"methods", "sets", "encoders", "ids", "metrics", "ours"}


def names(given: str | Sequence[str], *, labels: bool = False) -> tuple[str, ...]:
    """Return names given as a sequence or separated by commas; in `labels`, commas in brackets do not separate."""
    if isinstance(given, str):
        given = [one.strip() for one in split(given, ",")] if labels else parse_names(given)
    return tuple(dict.fromkeys(filter(None, given)))


def is_comparison(text: str) -> bool:
    """Return whether --compare requests published numbers. Raise UserError for another text."""
    if text not in ("", "published"):
        raise UserError(f"--compare '{text}' does not exist; known: published")
    return bool(text)


def _renamed(text: str) -> tuple[str, str]:
    """Parse NAME=TEXT. Raise UserError if there is no name."""
    text = text.strip()
    name = next(iter(split(text, "=")), "")  # signs in brackets are the name's: energy[scale=1]=Energy
    rest = text.removeprefix(name).lstrip()
    if text.startswith("=") or not rest.startswith("="):
        raise UserError(f"--rename '{text}' is not NAME=TEXT, such as --rename iNaturalist=iNat")
    return name, rest[1:].strip()


def names_of(row: Result, option: str) -> set[str]:
    """Return the names by which an option (methods, encoder, id) selects a result."""
    if option == "methods":
        return {row.method, row.label}
    if option == "id":
        return {row.benchmark, row.id.dataset}
    return {str(row.encoder[fact]) for fact in ("name", "slug", "architecture") if row.encoder.get(fact)}


def is_named(row: Result, option: str, name: str) -> bool:
    """Return whether a name given to an option selects a result; encoders also in OpenAI's spelling."""
    names = names_of(row, option)
    return name in names or (option == "encoder" and open_clip_name(name) in names)


def check(options: TableOptions, results: Sequence[Result]) -> None:
    """Raise UserError with all invalid options, with names that no result has, and for an empty selection."""
    metrics = dict.fromkeys((*options.metrics, *([options.sort] if options.sort else [])))
    problems = [f"no metric '{m}'{did_you_mean(m, CHOICES)}" for m in metrics if m not in CHOICES]
    if not options.metrics:
        problems.append(f"--metrics is empty; known: {', '.join(CHOICES)}")
    problems += _problems_of_choice(options, results)
    if options.group not in SECTIONS:
        problems.append(f"no group '{options.group}'{did_you_mean(options.group, SECTIONS)}")
    if options.intervals not in ("", *INTERVALS):
        problems.append(f"no intervals '{options.intervals}'{did_you_mean(options.intervals, INTERVALS)}")
    if options.decimals is not None and options.decimals not in range(11):
        problems.append(f"--decimals must be 0 to 10, not {options.decimals!r}")
    if options.top is not None and not (isinstance(options.top, int) and options.top > 0):
        problems.append(f"--top must be a whole number of at least 1, not {options.top!r}")
    if options.intervals and options.seeds:
        problems.append("--intervals and --seeds both add ± to the numbers; choose one of them")
    if options.style not in STYLES:
        problems.append(f"no style '{options.style}'{did_you_mean(options.style, STYLES)}")
    raise_all(problems)


def check_choice(options: TableOptions, results: Sequence[Result]) -> None:
    """Raise UserError for names of methods, encoders, benchmarks and OOD sets that no result has."""
    raise_all(_problems_of_choice(options, results))


def _problems_of_choice(options: TableOptions, results: Sequence[Result]) -> list[str]:
    return _unknown_names(options, results) or _unknown_together(options, results)


def _unknown_names(options: TableOptions, results: Sequence[Result]) -> list[str]:
    known = [
        ("of method", "methods", options.methods),
        ("of encoder", "encoder", options.encoders),
        ("with ID set or benchmark", "id", options.ids),
    ]
    problems = [
        f"no results {what} '{name}'{did_you_mean(name, set().union(*(names_of(row, option) for row in results)))}"
        for what, option, given in known
        for name in given
        if not any(is_named(row, option, name) for row in results)
    ]
    sets = {one.dataset for row in results for one in row.ood}
    return problems + [f"no results with OOD set '{n}'{did_you_mean(n, sets)}" for n in options.sets if n not in sets]


_LISTED = 5  # results in a message


def _unknown_together(options: TableOptions, results: Sequence[Result]) -> list[str]:
    """Return a problem if each given name has results, but no result has all of them."""
    rows = [row for row in results if options.chooses(row)]
    if any(not options.sets or row.status != "ok" or {s.dataset for s in row.ood} & set(options.sets) for row in rows):
        return []
    named = (("--methods", options.methods), ("--encoder", options.encoders), ("--id", options.ids))
    given = [f"{option} {','.join(names)}" for option, names in (*named, ("--ood", options.sets)) if names]
    near = [row for row in results if not options.methods or names_of(row, "methods") & set(options.methods)]
    found = dict.fromkeys(f"{row.label} on {row.benchmark}, {row.encoder.get('name', 'unknown')}" for row in near)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return (
        [f"no result matches {' '.join(given)}; there are: {'; '.join(list(found)[:_LISTED])}{more}"] if given else []
    )
