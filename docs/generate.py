"""Writes the generated parts of README.md and docs/: own results, methods, protocols, published numbers, references.

A part stands between `<!-- generated: NAME ARGUMENTS -->` and `<!-- end -->`. --check compares instead.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

from reference import cli, python

from oodbench import report
from oodbench.data import catalog as catalogue
from oodbench.method import registry
from oodbench.method.access import FEW_SHOT, GROUPS, ID_IMAGES, TEST_TIME, TRAINED, ZERO_SHOT
from oodbench.report.tables.published import PublishedValue, quote
from oodbench.results import rows

ROOT = Path(__file__).resolve().parents[1]


def glyphs() -> str:
    """The averages of the project's own results on glyphs: method, AUROC, FPR95."""
    found = [result for _, result in rows(ROOT / "results" / "reference" / "glyphs")]
    (table,) = report.tables(found, report.TableOptions(metrics=("auroc", "fpr95")))
    place = next(i for i, group in enumerate(table.column_groups) if group.name == "mean")
    averages = replace(
        table,
        title="Average over four OOD sets, in %",
        caption=(),
        footnotes=(),
        column_groups=(replace(table.column_groups[place], title=""),),
        lines=tuple(replace(line, cells=(line.cells[place],)) for line in table.lines),
    )
    return report.markdown(averages).strip()


def row(*cells: str) -> str:
    """A row of a table in Markdown, where a bar would begin a cell."""
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def papers() -> str:
    """The built-in methods by group, each with its venue and a link to its paper."""
    lines = ["| a method sees | methods |", "|---|---|"]
    for group in GROUPS:
        named = [_paper(info) for info in _built_in() if info.card().group == group]
        lines += [row(SEEN[group], ", ".join(named))] if named else []
    return "\n".join(lines)


SEEN = {
    ZERO_SHOT: "class names (zero-shot)",
    ID_IMAGES: "also ID images",
    TRAINED: "also captions, in training",
    FEW_SHOT: "also a few labelled ID images of each class, in training (few-shot)",
    TEST_TIME: "also earlier test images (test-time adaptation)",
}
LINKS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def _paper(info: registry.MethodInfo) -> str:
    *_, venue, reference = info.citation.split(", ")
    scheme, _, name = reference.partition(":")
    return f"[{info.title}]({LINKS[scheme] + name if scheme in LINKS else reference}) ({venue})"


def _built_in() -> list[registry.MethodInfo]:
    return [info for info in registry.methods().values() if info.origin == "built-in"]


def group_of(info: registry.MethodInfo) -> str:
    """The group of a method in tables, and when it has another one."""
    few_shot = info.family == FEW_SHOT and info.card().group != FEW_SHOT
    return f"{info.card().group}{', few-shot with `--shots`' * few_shot}"


def methods() -> str:
    """One line per built-in method."""
    built_in = sorted(_built_in(), key=lambda info: GROUPS.index(info.card().group))
    lines = ["| method | score | group | also sees | paper |", "|---|---|---|---|---|"]
    for info in built_in:
        seen = "; ".join(info.card().facts)
        lines.append(
            row(f"[`{info.name}`](../methods/{info.name}.py)", info.summary, group_of(info), seen, info.citation)
        )
    return "\n".join(lines)


def benchmarks() -> str:
    """One line per declared benchmark; the splits of one (`zoc-cifar10-1`, `-2`, ...) share a line."""
    families: dict[str, list[catalogue.Benchmark]] = {}
    for one in catalogue.benchmarks().values():
        families.setdefault(re.sub(r"^(zoc-.*)-\d+$", r"\1", one.name), []).append(one)
    lines = ["| benchmark | ID | OOD | paper |", "|---|---|---|---|"]
    for family, (one, *more) in families.items():
        name = f"`{family}-1` ... `-{len(more) + 1}`" if more else f"`{family}`"
        sets = ", ".join(_set(reference) + (f" ({group})" if group else "") for reference, group in one.sets())
        lines.append(row(name, _set(one.id), sets, one.cite))
    return "\n".join(lines)


def _set(reference: str) -> str:
    """The title of a set; of a selection such as `cifar10[0 1 5-7]` the number of classes, not their list."""
    one = catalogue.dataset(reference)
    if "[" not in one.name:
        return one.title
    first, *others = one.keep
    ranges = [text.partition("-") for text in (others if first == "!" else one.keep)]
    number = sum(int(end) - int(start) + 1 if end else 1 for start, _, end in ranges)
    chosen = "all other classes" if first == "!" else f"{number} classes"
    return f"{catalogue.dataset(one.within).title} ({chosen})"


def expected(*keys: str) -> str:
    """Published rows, AUROC / FPR95 in %, and below them their sources."""
    quotes = [quote(key) for key in keys]
    sets = list(dict.fromkeys(name for one in quotes for name in one.cells))
    sets.sort(key=_is_mean)
    several = len({one.architecture for one in quotes}) > 1
    head = ["published", *(["encoder"] if several else []), *(_title(name) for name in sets)]
    lines = [row(*head), f"|---{'|---' * several}{'|---:' * len(sets)}|"]
    sources: dict[str, list[str]] = {}
    for one in quotes:
        cells = [_pair(one.cells.get(name, {})) for name in sets]
        lines.append(row(f"`{one.key}`", *([one.architecture] if several else []), *cells))
        sources.setdefault(f"{one.source} ({one.confidence})", []).append(f"`{one.key}`")
    lines += ["", "Sources: " + "; ".join(f"{', '.join(named)}: {source}" for source, named in sources.items()) + "."]
    return "\n".join(lines)


def averages(*keys: str) -> str:
    """The averages of published rows, AUROC and FPR95 in %, with what each method sees and its source."""
    lines = ["| method | group | AUROC | FPR95 | source |", "|---|---|---:|---:|---|"]
    for one in map(quote, keys):
        auroc, fpr95 = _pair(one.cells["mean"]).split("/")
        lines.append(row(f"{one.title} (`{one.key}`)", one.card.group, auroc, fpr95, one.source))
    return "\n".join(lines)


def _title(name: str) -> str:
    return name if _is_mean(name) else catalogue.dataset(name).title


def _is_mean(name: str) -> bool:
    return name.endswith("mean")  # `mean`, `near mean`


def _pair(cell: dict[str, PublishedValue]) -> str:
    found = [f"{100 * cell[metric].value:.2f}" if metric in cell else "-" for metric in ("auroc", "fpr95")]
    if "fpr95_ood" in cell and "fpr95" not in cell:
        found[1] = f"{100 * cell['fpr95_ood'].value:.2f} o"  # OOD positive
    return "" if found == ["-", "-"] else "/".join(found)


PARTS = {part.__name__: part for part in (glyphs, papers, methods, benchmarks, expected, averages, cli, python)}
MARK = re.compile(r"(<!-- generated: (\w+)([^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """A page with its generated parts written again."""

    def part(match: re.Match[str]) -> str:
        opening, name, arguments, closing = match.groups()
        return f"{opening}{PARTS[name](*arguments.split())}\n{closing}"

    return MARK.sub(part, text)


def main() -> None:
    """Write the files, or with --check fail when one is not what would be written."""
    os.environ["OODBENCH_CONFIG"] = str(ROOT / "docs")  # which holds no declarations of the user's own
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = generated(old)
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
        elif new != old:
            raise SystemExit(f"{path.relative_to(ROOT)} is out of date; run: make docs")


if __name__ == "__main__":
    main()
