"""Writes the generated parts of README.md: methods, benchmarks, the project's own rows. --check compares."""

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
    lines = ["| method | score | hyper-parameters | paper |", "|---|---|---|---|"]
    for info in built_in:
        values = ", ".join(f"`{p.name}={p.default}`" for p in info.parameters)
        lines.append(f"| `{info.name}` | {info.summary} | {values} | {info.citation} |")
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


def generated(text: str) -> str:
    """README.md with its generated parts made anew."""
    for part in (glyphs, methods, benchmarks):
        opening, closing = f"<!-- generated: {part.__name__} -->\n", "<!-- end -->"
        before, found, rest = text.partition(opening)
        _, ended, after = rest.partition(closing)
        if not found or not ended:
            raise SystemExit(f"README.md has no part '{part.__name__}'")
        text = f"{before}{opening}{part()}\n{closing}{after}"
    return text


def main() -> None:
    """Write README.md, or with --check fail when it is not what would be written."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = generated(old)
    if "--check" not in sys.argv:
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        raise SystemExit("README.md is out of date; run: make docs")


if __name__ == "__main__":
    main()
