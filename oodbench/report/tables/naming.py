"""Names of rows in print, no two of a table alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from oodbench.results import Result

_VARIATIONS = ("seed", "device", "batch_size")  # parts of `Result.run` that may differ within a table


def names(rows: Sequence[Result], unsaid: str = "") -> list[str]:
    """`Energy (scale=1)` from title and label, or `Energy (seed 2)` where rows of one name differ in the seed.

    `unsaid` is a hyper-parameter that the table's title tells.
    """
    out = [_name(row, unsaid) for row in rows]
    places: dict[str, list[int]] = {}
    for i, name in enumerate(out):
        places.setdefault(name, []).append(i)
    for name, twins in places.items():
        if len(twins) > 1:
            for i, remark in zip(twins, _remarks([rows[i] for i in twins]), strict=True):
                out[i] = f"{name[:-1]}, {remark})" if name.endswith(")") else f"{name} ({remark})"
    return out


def _name(row: Result, unsaid: str) -> str:
    title, bracket = row.title or row.method, row.label.removeprefix(row.method)
    settings = re.split(r",(?=[A-Za-z_]\w*=)", bracket.removeprefix("[").removesuffix("]"))
    said = ", ".join(s for s in settings if s and not (unsaid and s.startswith(f"{unsaid}=")))
    return f"{title} ({said})" if said else title


def _remarks(rows: Sequence[Result]) -> list[str]:
    """What differs between rows of one name, and their digests where that does not tell all of them apart."""
    known = [
        {k: str(row.run.get(k)) for k in _VARIATIONS}
        | {"weights": row.weights.get("digest", "none")[:8], "source": row.source[:8]}
        | {"commit": (row.commit or "none")[:8]}
        for row in rows
    ]
    differing: list[str] = []
    for k in known[0]:  # as few as tell all of them apart
        if len({tuple(facts[d] for d in differing) for facts in known}) < len(rows):
            differing += [k] if len({facts[k] for facts in known}) > 1 else []
    remarks = [", ".join(f"{k.replace('_', ' ')} {facts[k]}" for k in differing) for facts in known]
    counts = Counter(remarks)
    return [
        remark if counts[remark] == 1 else ", ".join(filter(None, (remark, f"row {row.digest[:8]}")))
        for remark, row in zip(remarks, rows, strict=True)
    ]
