"""Writes the generated parts of README.md and docs/benchmarks.md: methods, protocols, own rows. --check compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from oodbench import catalogue, registry, report
from oodbench.result import rows

ROOT = Path(__file__).resolve().parents[1]


def glyphs() -> str:
    """The table of the project's own rows on glyphs."""
    found = [result for _, result in rows(ROOT / "results" / "reference" / "glyphs")]
    return "\n".join(report.markdown(table) for table in report.tables(found)).strip()


def methods() -> str:
    """One line per built-in method."""
    built_in = [info for info in registry.methods().values() if info.origin == "built-in"]
    lines = ["| method | score | paper |", "|---|---|---|"]
    lines += [f"| `{info.name}` | {info.summary} | {info.citation} |" for info in built_in]
    return "\n".join(lines)


def benchmarks() -> str:
    """One line per declared benchmark; the splits of one (`zoc-cifar10-1`, `-2`, ...) share a line."""
    families: dict[str, list[catalogue.Benchmark]] = {}
    for one in catalogue.benchmarks().values():
        families.setdefault(re.sub(r"^(zoc-.*)-\d+$", r"\1", one.name), []).append(one)
    lines = ["| benchmark | ID | OOD | paper |", "|---|---|---|---|"]
    for family, (one, *more) in families.items():
        name = f"`{family}-1` ... `-{len(more) + 1}`" if more else f"`{family}`"
        sets = ", ".join(catalogue.dataset(name).title + (f" ({group})" if group else "") for name, group in one.sets())
        id_title = catalogue.dataset(one.id).title
        if more:
            id_title, sets = (re.sub(r" \(.*?\)|\[.*?\]", "", text) for text in (id_title, sets))
        lines.append(f"| {name} | {id_title} | {sets} | {one.cite} |")
    return "\n".join(lines)


FILES = {"README.md": (glyphs, methods), "docs/benchmarks.md": (benchmarks,)}


def generated(name: str, text: str) -> str:
    """A file with its generated parts made anew."""
    for part in FILES[name]:
        opening, closing = f"<!-- generated: {part.__name__} -->\n", "<!-- end -->"
        before, found, rest = text.partition(opening)
        _, ended, after = rest.partition(closing)
        if not found or not ended:
            raise SystemExit(f"{name} has no part '{part.__name__}'")
        text = f"{before}{opening}{part()}\n{closing}{after}"
    return text


def main() -> None:
    """Write the files, or with --check fail when one is not what would be written."""
    for name in FILES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = generated(name, old)
        if "--check" not in sys.argv:
            (ROOT / name).write_text(new, encoding="utf-8")
        elif new != old:
            raise SystemExit(f"{name} is out of date; run: make docs")


if __name__ == "__main__":
    main()
