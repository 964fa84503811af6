"""oodbench metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, OneOf, examples
from oodbench.cli.output import configure_logging, note, print_tables, say
from oodbench.errors import raise_all
from oodbench.results import HIGHER, METRICS, Interval

if TYPE_CHECKING:
    from oodbench.metrics import Settings
    from oodbench.metrics.files import FileMetrics
    from oodbench.report.tables.table import Table


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench metrics id.npy sun.npy places.csv",
        'oodbench metrics id.npy "SUN=scores 1.txt" --higher ood --at95 nearest',
        "oodbench metrics results/runs/glyphs/glyphs/mcm.parquet --json",
    ),
)
@click.argument("id_", metavar="ID")
@click.argument("ood", metavar="[OOD]...", nargs=-1)
@click.option("--higher", type=OneOf(*HIGHER), default="id", help="Images with higher scores.", show_default=True)
@shared.AT95
@shared.AUPR
@shared.BOOTSTRAP
@click.option("--no-intervals", is_flag=True, help="Compute no intervals; files then need not fit into memory.")
@click.option("--json", "as_json", is_flag=True, help="JSON, in full precision.")
@shared.VERBOSE
def metrics(id_: str, ood: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Print the metrics of files of scores.

    ID has the scores of the ID images, and each OOD those of one OOD set.

    Files have the formats that `oodbench import` reads. NAME=FILE gives a set a name, or selects the set NAME from a
    file with a column `dataset`; if only such a file is given, its first set is the ID set. For more than 1,000,000
    scores, no intervals are computed. Files of any size are read in parts.
    """
    configure_logging(verbose)
    from oodbench.cli.progress import spinner
    from oodbench.metrics import Settings, bootstrap, files
    from oodbench.pipeline.request import MAX_REPLICATES, choice_problems, range_problems

    problems = choice_problems(("--higher", options["higher"], HIGHER))
    raise_all([*problems, *range_problems(("--bootstrap", options["bootstrap"], 0, MAX_REPLICATES))])
    settings = Settings(options["at95"], options["aupr"], options["bootstrap"])
    bootstrap.check(settings)
    sign = 1 if options["higher"] == "id" else -1
    with spinner("computing the metrics"):
        sources = files.sources(id_, ood, sign)
        found = files.metrics_of_files(sources, settings, with_intervals=not options["no_intervals"])
    if not (found.bounds or options["no_intervals"]):
        note(f"note: more than {files.IN_MEMORY:,} scores: no intervals")
    if options["as_json"]:
        say(json.dumps(_plain(found, settings), indent=1))
        return
    print_tables([_table(found, settings)])
    below = {
        source.name: one.auroc for source, one in zip(found.sources[1:], found.sets, strict=True) if one.auroc < 0.5
    }
    if len(below) == len(found.sets):
        other = next(one for one in HIGHER if one != options["higher"])
        note(f"note: the AUROC is below 50 %; if the scores have the other sign, add --higher {other}")
    elif below:
        listed = ", ".join(f"{name} ({100 * auroc:.2f} %)" for name, auroc in below.items())
        note(f"note: the AUROC is below 50 % for {listed}; if only these scores have the other sign, negate them")


def _plain(found: FileMetrics, settings: Settings) -> dict[str, Any]:
    """Return what --json prints: fractions, with the intervals of each set and of the mean."""
    on_id, *on_ood = found.sources
    sets = []
    for number, (source, one) in enumerate(zip(on_ood, found.sets, strict=True), 1):
        own = {"intervals": found.bounds.sets[str(number)]} if found.bounds else {}
        sets.append({"name": source.name, "file": str(source.path), **asdict(one), **own})
    means = {metric: found.mean(metric) for metric in METRICS}
    return {
        "id": {"name": on_id.name, "file": str(on_id.path), "n": found.sets[0].n_id},
        "ood": sets,
        "mean": {**means, **({"intervals": found.bounds.means[""]} if found.bounds else {})},
        "at95": settings.at95,
        "aupr": settings.aupr,
        **({"level": settings.level, "replicates": settings.replicates} if found.bounds else {}),
    }


def _table(found: FileMetrics, settings: Settings) -> Table:
    """Return a table with a line for each OOD set, and the average below several."""
    from oodbench.report.options import TableOptions
    from oodbench.report.tables.build import conventions
    from oodbench.report.tables.columns import COLUMNS, cell
    from oodbench.report.tables.table import ColumnGroup, Number, Table, TableLine

    options = TableOptions(metrics=METRICS, intervals="range" if found.bounds else "")

    def line(name: str, value: Callable[[str], float], bounds: Mapping[str, Interval]) -> TableLine:
        return TableLine(name, tuple((cell(Number(value(m), bounds.get(m)), options),) for m in METRICS), None)

    on_id, *on_ood = found.sources
    lines = []
    for number, (source, one) in enumerate(zip(on_ood, found.sets, strict=True), 1):
        own = found.bounds.sets[str(number)] if found.bounds else {}
        lines.append(line(f"{source.name} (n = {one.n_ood:,})", partial(getattr, one), own))
    if len(lines) > 1:
        lines.append(line("Average", found.mean, found.bounds.means[""] if found.bounds else {}))
    rules = {"at95": settings.at95, "aupr": settings.aupr}
    level = f"In brackets: the {100 * settings.level:g} % interval over images." if found.bounds else ""
    return Table(
        title=f"ID: {on_id.name} (n = {found.sets[0].n_id:,})",
        caption=tuple(filter(None, ("In %.", *conventions(rules, METRICS), level))),
        column_groups=tuple(ColumnGroup("", (COLUMNS[metric],)) for metric in METRICS),
        lines=tuple(lines),
        notes=(),
        first="OOD",
    )
