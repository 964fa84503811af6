"""The caption of a table: what a reader must know before comparing its numbers with others."""

from __future__ import annotations

from collections.abc import Sequence

from oodbench.result import IdRow, Result, SetRow


def caption(model: Result, apart: Sequence[str]) -> tuple[str, ...]:
    """Sentences on conventions, sets, encoder; `apart` is what other tables of the same benchmark have otherwise."""
    weights = str(model.encoder.get("weights") or "")
    sentences = [
        "AUROC, FPR95 and ID accuracy in %.",
        _fpr95(model.conventions.get("at95", "first")),
        f"ID: {_size(model.id)}.",
        *_ood(model),
        f"Encoder weights: {weights[:12]}." if weights else "",
        "Seconds: scoring only.",
        f"Not comparable with tables of other settings; here: {'; '.join(apart)}." if apart else "",
    ]
    return tuple(filter(None, sentences))


def _fpr95(rule: str) -> str:
    kept, said = ("at least 95 %", "") if rule == "first" else ("95 %", f"; at95 rule: {rule}")
    return f"FPR95: share of OOD images accepted when {kept} of ID images are kept (ID positive{said})."


def _ood(model: Result) -> list[str]:
    """One sentence on the OOD sets, or one for each group."""
    out = []
    for name in dict.fromkeys(s.group for s in model.ood):
        sizes = ", ".join(_size(s) for s in model.ood if s.group == name)
        out.append(f"{name.capitalize()} OOD: {sizes}." if name else f"OOD: {sizes}.")
    return out


def _size(images: IdRow | SetRow) -> str:
    remarks = [images.partial or f"n = {images.n:,}", f"{images.skipped:,} skipped" if images.skipped else ""]
    return f"{images.title} ({', '.join(filter(None, remarks))})"
