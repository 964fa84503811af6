"""Panels: a table too wide for its page is cut into several below each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from oodbench.report.tables.table import Block


def panels(blocks: Sequence[Block], widths: Sequence[float], limit: float) -> list[list[int]]:
    """Positions of the blocks of each panel, cut between groups where that fits; wider than the limit only when a
    single block is.
    """
    segments = [list(places) for _, places in groupby(range(len(blocks)), key=lambda i: blocks[i].group)]
    if len(segments) > 1 and not blocks[-1].group:
        # The mean and the ID side stand beside a set where they can.
        segments[-2:] = [segments[-2] + segments[-1]]
    out: list[list[int]] = []
    for segment in segments:
        if out and sum(widths[i] for i in out[-1] + segment) <= limit:
            out[-1] += segment
        else:
            out += _cut(segment, widths, limit)
    return out


def _cut(segment: Sequence[int], widths: Sequence[float], limit: float) -> list[list[int]]:
    """As few parts as the limit allows, and of these the most even ones."""
    fewest = len(_fill(segment, widths, limit))
    rooms = {sum(widths[i] for i in segment[a:b]) for b in range(1, len(segment) + 1) for a in range(b)}
    trials = (_fill(segment, widths, room) for room in sorted(rooms))
    return next(parts for parts in trials if len(parts) == fewest)


def _fill(segment: Sequence[int], widths: Sequence[float], room: float) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in segment:
        if parts and sum(widths[j] for j in parts[-1]) + widths[i] <= room:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts
