"""Metrics by encoder: the averages of every method, with encoders in the order of their cost per image."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, coincidence, stem, stem_words, told_apart
from oodbench.report.figures.layout import FigureLayout, add_key, add_title, new_figure
from oodbench.report.figures.style import SIZE, line_style, marker, pages, plot_style, shortened, width
from oodbench.report.tables.grouping import by_prompts, facts
from oodbench.report.tables.rows import distinguished, distinguishing
from oodbench.results import Result, flatten

log = logging.getLogger(__name__)

LINES = 14  # methods in one figure
_WIDE, _HIGH, _KEY = 2.9, 2.1, 2.3  # inches: a panel, and the width of the key
_DERIVED = ("identity", "notes")  # parts of the encoder's card that follow from others
_TITLES = {"auroc": "AUROC", "fpr95": "FPR95"}


@dataclass(frozen=True)
class EncoderLine:
    """The results of one method by the position of their encoder; `position` determines colour and marker."""

    position: int
    name: str
    results: Mapping[int, tuple[FigureData, PlottedResult]]


def draw(tables: Sequence[FigureData]) -> Iterator[Plot]:
    """Yield figures of each benchmark that has comparable tables of two encoders with a common method."""
    families: dict[str, list[FigureData]] = {}
    for table in tables:
        families.setdefault(_key(table), []).append(table)
    for family in families.values():
        family.sort(key=lambda table: _size_key(table.plotted[0].result.encoder))
        found = lines(family)
        if not found:
            log.info("no figure by encoder of %s: no method has results of two encoders", family[0].heading.title)
            continue
        names, numbers = told_apart([one.name for one in found], family[0].width)
        split = pages([replace(one, name=name) for one, name in zip(found, names, strict=True)], LINES)
        for number, part in enumerate(split, start=1):
            yield _page(family, part, number if len(split) > 1 else 0).explained(numbers)


def lines(family: Sequence[FigureData]) -> list[EncoderLine]:
    """Return the methods that have results of two encoders or more, in the order of the tables.

    A line has results of one setting; lines of equal names have the difference in their names.
    """
    found: dict[tuple[str, str], dict[int, tuple[FigureData, PlottedResult]]] = {}
    for place, table in enumerate(family):
        for one in table.plotted:
            found.setdefault((one.name, json.dumps(_settings(one.result), default=str)), {})[place] = (table, one)
    kept = [(name, results) for (name, _), results in found.items() if len(results) > 1]
    first = [next(iter(results.values()))[1].result for _, results in kept]
    names = distinguished(
        [name for name, _ in kept], _strings(map(_settings, first)), [row.digest[:8] for row in first]
    )
    return [EncoderLine(i, name, results) for i, (name, (_, results)) in enumerate(zip(names, kept, strict=True))]


def _settings(row: Result) -> dict[str, Any]:
    """Return what results of one name may differ in, which a table does not say if all of its results have it."""
    calibration = row.run.get("calibration") or {}
    parts = ["labels", "shot_seed", "n", *sorted(calibration)]
    known = {f"calibration_{name}": calibration[name] for name in parts if name in calibration}
    return {"scores": "imported" if row.imported else "measured", "seed": row.run.get("seed"), **known}


def _strings(facts: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return all facts as text, with the same keys."""
    known = list(facts)
    keys = list(dict.fromkeys(key for one in known for key in one))
    return [{key: str(one.get(key, "none")) for key in keys} for one in known]


def operations(encoder: Mapping[str, Any]) -> float | None:
    """Return the multiply-adds of the image tower for one image, from the encoder's card; None if unknown."""
    tower = (encoder.get("config") or {}).get("vision_cfg") or {}
    layers, wide, patch = tower.get("layers"), tower.get("width"), tower.get("patch_size")
    height, across = encoder.get("size") or (0, 0)
    if isinstance(layers, int) and wide and patch:
        patches = (height // patch) * (across // patch)
        tokens = patches + 1
        block = (4 + 2 * tower.get("mlp_ratio", 4.0)) * wide**2 * tokens + 2 * wide * tokens**2
        return float(layers * block + 3 * patch**2 * wide * patches)
    if isinstance(layers, list) and wide:
        return _resnet_operations(layers, wide, height * across)
    return None


def _resnet_operations(layers: Sequence[int], wide: int, pixels: int) -> float:
    """Return the multiply-adds of CLIP's ResNet: three convolutions, four stages of bottlenecks, attention pooling."""
    total = pixels / 4 * 9 * (3 * wide / 2 + wide**2 / 4 + wide**2 / 2)
    before, size = wide, pixels / 16
    for stage, blocks in enumerate(layers):
        inner = wide * 2**stage
        for block in range(blocks):
            shrinks = 4 if stage and not block else 1  # the first block averages 2 x 2 pixels after its second layer
            total += size * (before * inner + 9 * inner**2) + size / shrinks * 4 * inner**2
            total += size / shrinks * 4 * inner * before if not block else 0
            before, size = 4 * inner, size / shrinks
    return total + 3 * (size + 1) * before**2


def _size_key(encoder: Mapping[str, Any]) -> tuple[float, str]:
    return operations(encoder) or math.inf, str(encoder.get("name"))


def _key(table: FigureData) -> str:
    """Return a key of all facts, except the encoder, in which the tables of a figure must agree."""
    results = [row for one in table.plotted for row in (one.result, *one.others)]
    known = {k: v for k, v in facts(results[0]).items() if not k.startswith("encoder ")}
    prompts = [group.prompts for group in by_prompts(results) if len(group.results) == len(results)]
    return json.dumps([known, prompts, bool(results[0].stream)], sort_keys=True)


def encoder_names(encoders: Sequence[Mapping[str, Any]]) -> tuple[list[str], str, list[str]]:
    """Return names that differ, the tag of the weights if all have the same, and what was added to equal names.

    The names lack the common tag. Equal ones get their weights, or else other values of the encoders' cards.
    """
    names = [str(encoder.get("name", "unknown")) for encoder in encoders]
    tags = {name.rpartition("/")[2] if "/" in name and ":" not in name else "" for name in names}
    tag = tags.pop() if len(tags) == 1 else ""
    names = [name.removesuffix(f"/{tag}") if tag else name for name in names]
    added: list[str] = []
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        same = [i for i, other in enumerate(names) if other == name]
        cards = _strings(_card(encoders[i]) for i in same)
        keys = distinguishing(cards)
        for i, card in zip(same, cards, strict=True):
            names[i] = " ".join([name, *(card[key] for key in keys)])
        added += [key for key in keys if key not in added]
    return names, tag, added


def _card(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return what encoders of one name may differ in, the weights first."""
    known = {"weights": str(encoder.get("weights"))[:8]}
    return known | {k: v for k, v in flatten(encoder).items() if k not in ("name", "slug", "weights", *_DERIVED)}


def _page(family: Sequence[FigureData], methods: Sequence[EncoderLine], number: int) -> Plot:
    model = family[0]
    result = model.plotted[0].result
    encoders = [table.plotted[0].result.encoder for table in family]
    names, tag, added = encoder_names(encoders)
    title = "Metrics by encoder" + (f" ({number})" if number else "")
    heading = f"{result.benchmark_title or result.benchmark}, {len(family)} encoders"
    wide = model.width
    layout = FigureLayout((_WIDE, _HIGH), gap=(0.55, 0.5), right=_KEY + 0.25, head=0.3)
    if wide:
        layout = layout.fitted(2, wide, 1.05, gap=(0.42, 0.4), right=0.1, head=0.2)
    size = SIZE - 0.5
    shown = [shortened(name, 1.3, size) for name in names]
    longest = max(width(name, size) for name in shown)
    upright = longest + 0.08 > layout.panel[0] / len(shown)
    below = 0.32 + (longest if upright else 0.1)
    rows = -(-2 // layout.columns_of(2))
    layout = replace(layout, bottom=below, gap=(layout.gap[0], below + 0.25 if rows > 1 else layout.gap[1]))
    looks = {one.position: line_style(one.position) | {"marker": marker(one.position)} for one in methods}
    entries = [(one.name, looks[one.position]) for one in methods]
    label = f"Encoder (weights: {tag})" if tag else "Encoder"
    with plot_style():
        above = [] if wide else [title, heading]
        figure, axes = new_figure(above, 2, layout, entries if wide else ())
        bars = False
        for panel, metric in zip(axes, _TITLES, strict=True):
            for one in reversed(methods):
                bars |= _line(panel, one, metric, looks[one.position])
            panel.set_xticks(range(len(shown)), shown, rotation=90 if upright else 0)
            panel.set(xlim=(-0.35, len(shown) - 0.65))
            panel.set_xlabel(label if width(label, SIZE) < layout.panel[0] else "Encoder")
            add_title(panel, f"{_TITLES[metric]}, % {'↑' if metric == 'auroc' else '↓'}", layout.panel[0])
        if not wide:
            add_key(axes[-1], entries, layout.panel, _KEY)
    unknown = [name for name, encoder in zip(names, encoders, strict=True) if operations(encoder) is None]
    failed = [f"{method} on {name}" for name, table in zip(names, family, strict=True) for method in table.failed]
    streams = any(one.others for line in methods for _, one in line.results.values())
    of_first = " of the first stream seed" if streams else ""
    level = 100 * float(result.uncertainty.get("level", 0.95))
    titles = ", ".join(s.title for s in model.sets)
    sentences = [
        f"AUROC and FPR95 in %, plain averages over OOD sets ({titles}), by encoder.",
        "Encoders in ascending order of the multiply-adds of their image tower"
        + (f"; last, by name, those whose config does not tell: {', '.join(unknown)}." if unknown else "."),
        f"Weights of all: {tag}." if tag else "",
        f"Added to equal names: {', '.join(added)}." if added else "",
        f"Bars: {level:g} % intervals over images{of_first}, where the result has them."
        if bars
        else "No intervals are known.",
        max(coincidence([_points(one, metric) for one in methods], "lines") for metric in _TITLES),
        "Methods with results of one encoder only are not shown.",
        f"Failed, so not shown: {', '.join(failed)}." if failed else "",
    ]
    name = "-".join((stem(*stem_words(result)), "encoders")) + (f"-{number}" if number else "")
    return Plot(name, "encoders", f"{title}: {heading}", " ".join(filter(None, sentences)), figure)


def _points(line: EncoderLine, metric: str) -> tuple[tuple[int, float], ...]:
    """Return the positions of the encoders and the averages in percent."""
    return tuple(
        (place, 100 * table.average(one, table.sets, metric)) for place, (table, one) in sorted(line.results.items())
    )


def _line(panel: Axes, line: EncoderLine, metric: str, looks: Mapping[str, Any]) -> bool:
    """Draw the line of a method and return whether it has intervals."""
    places, values = zip(*_points(line, metric), strict=True)
    panel.plot(places, values, **looks, markersize=2.8, gid=line.name)
    spans = {i: table.interval(one, table.sets, metric) for i, (table, one) in line.results.items()}
    for place, span in spans.items():
        if span:
            ends = [100 * end for end in span]
            panel.plot([place, place], ends, color=looks["color"], linewidth=0.8, alpha=0.6, gid=f"{metric} interval")
    return any(spans.values())
