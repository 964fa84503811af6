"""The caption of a table: what a reader must know before comparing its numbers with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import COLUMNS
from oodbench.results import IdRow, Result, SetRow


def caption(model: Result, apart: Sequence[str], options: TableOptions) -> tuple[str, ...]:
    """Sentences on conventions, sets, encoder; `apart` is what other tables of the same benchmark have otherwise."""
    weights = str(model.encoder.get("weights") or "")
    sentences = [
        _units(options),
        *_conventions(model.conventions, options.metrics),
        f"ID: {_size(model.id, model.classes.get('count'))}.",
        *_ood(model, options.sets),
        f"Encoder weights: {weights[:12]}." if weights else "",
        "Seconds: scoring only." if "seconds" in options.metrics else "",
        _uncertainty(model, options),
        f"Not comparable with tables of other settings; here: {'; '.join(apart)}." if apart else "",
    ]
    return tuple(filter(None, sentences))


def _units(options: TableOptions) -> str:
    names = [
        "ID accuracy" if m == "accuracy" else COLUMNS[m].title.removesuffix("-OOD")
        for m in options.metrics
        if m != "seconds"
    ]
    *most, last = dict.fromkeys(names) or ("Nothing",)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{listed} in %." if options.percent else f"{listed} as fractions."


def _conventions(rules: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    rule = rules.get("at95", "first")
    kept, said = ("at least 95 %", "") if rule == "first" else ("95 %", f"; at95 rule: {rule}")
    out = []
    if "fpr95" in metrics:
        out.append(f"FPR95: share of OOD images accepted when {kept} of ID images are kept (ID positive{said}).")
    if "fpr95_ood" in metrics:
        out.append(f"FPR95-OOD: share of ID images rejected when {kept} of OOD images are caught (OOD positive{said}).")
    if {"aupr_in", "aupr_out"} & set(metrics):
        area = str(rules.get("aupr", "average_precision")).replace("_", " ")
        out.append(f"AUPR-in has ID as its positive class, AUPR-out OOD ({area}).")
    return out


def _uncertainty(model: Result, options: TableOptions) -> str:
    if options.seeds:
        return "±: standard deviation over seeds, where there are several."
    if not options.intervals:
        return ""
    level = model.uncertainty.get("level", 0.95)
    what = "half the width of" if options.intervals == "half" else "in brackets"
    sign = "±: " if options.intervals == "half" else ""
    return f"{sign}{what} the {100 * float(level):g} % interval over images, where the row has one.".capitalize()


def _ood(model: Result, chosen: Sequence[str]) -> list[str]:
    """One sentence on the OOD sets, or one for each group; says so when they are a choice."""
    out = []
    kept = [s for s in model.ood if not chosen or s.dataset in chosen]
    for name in dict.fromkeys(s.group for s in kept):
        sizes = ", ".join(_size(s) for s in kept if s.group == name)
        out.append(f"{name.capitalize()} OOD: {sizes}." if name else f"OOD: {sizes}.")
    if len(kept) < len(model.ood):
        out.append(f"Shown: {len(kept)} of the {len(model.ood)} OOD sets of the benchmark; means are over these.")
    return out


def _size(images: IdRow | SetRow, classes: object = None) -> str:
    remarks = [images.partial or f"n = {images.n:,}", f"{images.skipped:,} skipped" if images.skipped else ""]
    remarks += [f"{classes:,} class{'' if classes == 1 else 'es'}"] if isinstance(classes, int) else []
    return f"{images.title} ({', '.join(filter(None, remarks))})"


ALIKE = (
    "not distinguishable from the best of its column (paired tests on the same images: DeLong for AUROC, bootstrap for"
    " the others; corrected for all pairs, level 0.05)."
)
BEYOND = "difference beyond the tolerance."
