"""Write the leaderboard: `index.html`, which loads nothing else, and its rows as `leaderboard.json`."""

from __future__ import annotations

import dataclasses
import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oodbench.data import catalog
from oodbench.errors import UserError, printable
from oodbench.method.access import GROUPS
from oodbench.report.formats import latex_text
from oodbench.report.html.page import encodable, environment, page_file, policy
from oodbench.report.html.record import Records, printable_json
from oodbench.report.leaderboard.evidence import MEANING
from oodbench.report.leaderboard.rows import NOT_STATED, BoardRow, measured, published
from oodbench.report.leaderboard.sources import CollectedResults
from oodbench.report.submission import iso_day
from oodbench.report.tables.build import conventions
from oodbench.report.tables.published import Quote
from oodbench.results import Result
from oodbench.storage.files import write_text

HERE = Path(__file__).parent
TITLE = "OOD detection leaderboard"


def write(
    output: Path, collected: CollectedResults, quotes: Sequence[Quote], title: str = TITLE, repository: str = ""
) -> int:
    """Write the page and its data to a folder and return the number of rows.

    Arguments:
        output      the folder, which is created if missing
        collected   measured results
        quotes      published results
        title       title of the page
        repository  address of the current folder on the web, for links to submissions; "" for none
    Raises:
        UserError  there is no row, or the folder cannot be written
    """
    paths = {one.result.digest: one.path for one in collected.results}
    folders = {one.result.digest: one.folder for one in collected.results}
    records = Records(paths, None, folders=folders)
    rows = measured(collected.results, records, repository)
    rows += published(quotes, records, rows)
    if not rows and not collected.unreadable:
        raise UserError("the leaderboard has no rows; name a folder of results, or leave out --no-quoted")
    board = printable_json(_board(rows, collected, title))
    try:
        write_text(output / "leaderboard.json", json.dumps(board, indent=1, ensure_ascii=False) + "\n")
        write_text(output / "index.html", _html(board, records))
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}") from error
    return len(rows)


def _board(rows: Sequence[BoardRow], collected: CollectedResults, title: str) -> dict[str, Any]:
    """Return everything that the page shows, except provenance."""
    results = [one.result for one in collected.results]
    count = Counter(row.benchmark for row in rows)
    encoders = {row.encoder: row.architecture for row in rows}
    used = Counter(row.encoder for row in rows)
    most = sorted(encoders, key=lambda name: (NOT_STATED in name, -used[name], name))
    days = sorted({day for row in results if (day := iso_day(row.created))})
    return {
        "title": title,
        "created": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "evidence": MEANING,
        "groups": list(GROUPS),
        "conventions": conventions({}, ("fpr95", "fpr95_ood")),
        "benchmarks": [_benchmark(name, rows, results) for name, _ in count.most_common()],
        "encoders": [{"name": name, "architecture": encoders[name]} for name in most],
        "rows": [_compact(row) for row in rows],
        "unreadable": list(collected.unreadable.values()),
    }


def _compact(row: BoardRow) -> dict[str, Any]:
    """Return the fields of a row, without empty ones."""
    return {name: value for name, value in dataclasses.asdict(row).items() if value}


def _benchmark(name: str, rows: Iterable[BoardRow], results: Iterable[Result]) -> dict[str, Any]:
    """Return the title of a benchmark, its OOD sets and its averages in the order of a table."""
    declared = catalog.benchmarks().get(name)
    own = [row for row in results if row.benchmark == name]
    on_id, _, on_ood = name.partition("-vs-")
    known = dict(declared.sets()) if declared else dict.fromkeys(filter(None, on_ood.split("+")), "")
    found = dict.fromkeys(block for row in rows if row.benchmark == name for block in row.values)
    stated = {s.dataset: (s.title, s.group) for row in own for s in row.ood}
    sets = {}
    for each in dict.fromkeys([*known, *stated, *(block for block in found if not block.endswith("mean"))]):
        title, group = stated.get(each, (each, ""))
        sets[each] = _title(each, title), known.get(each, group) if declared else group
    groups = dict.fromkeys(group for _, group in sets.values())
    blocks = []
    for group in groups:
        blocks += [{"name": each, "title": t, "group": g} for each, (t, g) in sets.items() if g == group]
        if f"{group} mean" in found:
            blocks.append({"name": f"{group} mean", "title": f"{group.capitalize()} average", "group": group})
    if "mean" in found:
        blocks.append({"name": "mean", "title": "Average", "group": ""})
    own_title = next((row.benchmark_title for row in own if row.benchmark_title), "")
    derived = f"{_title(on_id)} against {', '.join(title for title, _ in sets.values())}" if on_ood else name
    return {"name": name, "title": declared.title if declared else own_title or derived, "blocks": blocks}


def _title(name: str, stated: str = "") -> str:
    """Return the title of a set in the catalogue; of other sets, that of their results."""
    known = catalog.datasets().get(name)
    return known.title if known else stated or name


def _signs(text: str) -> dict[str, str]:
    """Return LaTeX of the characters that it does not print as they are; "" for those that pdflatex lacks."""
    found = {*latex_text.letters(text), *latex_text.letters(f"{string.printable.strip()}↑↓±×·")}
    escaped = {letter: latex_text.escape(letter) for letter in sorted(found) if letter != " "}
    commands = {c: "" if latex_text.unsupported(latex) else latex for c, latex in escaped.items()}
    return {c: latex for c, latex in commands.items() if c != latex}


def _html(board: Mapping[str, Any], records: Records) -> str:
    style = page_file("page.css") + (HERE / "leaderboard.css").read_text(encoding="utf-8")
    scripts = [page_file("provenance.js")]
    scripts += [(HERE / name).read_text(encoding="utf-8") for name in ("ranking.js", "copy.js", "leaderboard.js")]
    texts = {**records.texts, **records.shared}
    facts = ",\n".join(f"{json.dumps(address)}: {text}" for address, text in texts.items())
    template = environment(HERE).get_template("leaderboard.html")
    page = template.render(
        title=board["title"],
        policy=policy(style, scripts),
        style=style,
        scripts=scripts,
        data={
            "board": _inline(_json({**board, "latex": _signs(_json(board))})),
            "records": _inline(f"{{{facts}}}"),
            "titles": _inline(json.dumps({a: printable(t) for a, t in records.titles.items()}, ensure_ascii=False)),
        },
    )
    return encodable(page)


def _json(board: Mapping[str, Any]) -> str:
    return json.dumps(board, ensure_ascii=False, separators=(",", ":"))


def _inline(text: str) -> str:
    """Escape JSON so that an HTML parser finds no markup or end tag in it."""
    return text.replace("<", "\\u003c")
