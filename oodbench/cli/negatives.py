"""What `oodbench methods neglabel --negatives` prints: the words a method mined, and which of them are class names.

A negative word that names an ID class takes mass from it; one that names an OOD class tells what is to be detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from oodbench.data import prompts
from oodbench.data.imageset import Listing
from oodbench.errors import UserError
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.run import Watch, loader, own, pick_device, task_of


def describe(plan: Plan) -> str:
    """Overlap with the class names of every set, then the words of the plan's first method, farthest first."""
    job = plan.jobs[0]
    state = _fitted(plan)
    words: Sequence[str] = getattr(state, "words", ())
    if not words:
        raise UserError(f"{job.label} mines no words; one that does is neglabel")
    similarity = [float(value) for value in state.similarity]
    known = {"ID": plan.classes.lines, **{one.listing.dataset.title: class_names(one.listing) for one in plan.ood}}
    lines = [
        f"{job.label}: {len(words):,} negative words for {plan.id.dataset.title}, encoder {plan.card.name}",
        f"similarity to the ID names: {min(similarity):.4f} to {max(similarity):.4f} (quantile "
        f"{job.parameters['quantile']:g} over {len(plan.classes.lines):,} classes)",
        "",
        "words that are class names, ignoring case",
        *(f"  {title}: {_overlap(words, names)}" for title, names in known.items()),
        "",
    ]
    folded = {title: {name.casefold() for name in names} for title, names in known.items()}
    for value, word in _farthest_first(similarity, words):
        of = ", ".join(title for title, names in folded.items() if word.casefold() in names)
        lines.append(f"{value:7.4f}  {word}" + (f"  [{of}]" if of else ""))
    return "\n".join(lines)


def _farthest_first(similarity: Sequence[float], words: Sequence[str]) -> list[tuple[float, str]]:
    """Similarities of four digits with their words; words of equal digits by text, for later digits are rounding's."""
    return sorted((round(value, 4) + 0.0, word) for value, word in zip(similarity, words, strict=True))  # -0 + 0 is 0


def class_names(listing: Listing) -> tuple[str, ...]:
    """What is known of the classes of an OOD set: its class list, else its folders; () when it is one folder."""
    if listing.dataset.classes:
        return prompts.class_names(listing.dataset.classes).lines
    if listing.dataset.loader == "glyphs":  # split/number-name-of-the-concept
        found = {name.partition("-")[2] for name in listing.names}
    else:
        found = {PurePosixPath(name).parent.name for name in listing.names}
    return tuple(sorted(name.replace("-", " ").replace("_", " ") for name in found)) if len(found) > 1 else ()


def _overlap(words: Sequence[str], names: Iterable[str]) -> str:
    mined = {word.casefold() for word in words}
    distinct = {name.casefold(): name for name in names}
    if not distinct:
        return "class names are not known"
    common = sorted(name for folded, name in distinct.items() if folded in mined)
    return f"{len(common)} of {len(distinct):,}" + (f": {', '.join(common)}" if common else "")


def _fitted(plan: Plan) -> Any:
    """What the first method of the plan learns; ValueError of a method is the user's to mend."""
    import torch

    job = plan.jobs[0]
    method = job.made()
    device = pick_device(plan.request.device)
    task = task_of(plan, loader(plan, device), device, Watch())
    torch.manual_seed(plan.request.seed)
    try:
        with torch.no_grad():
            return method.fit(task.seen_by(method.needs, own(plan, job, device)))
    except ValueError as error:
        raise UserError(f"{job.label}: {error}") from error
