"""The number of prompts that the methods of a plan have to encode, and an estimate of the time, for --dry-run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from oodbench.errors import UserError
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.task import encoder_loader, pick_device
from oodbench.pipeline.text_embeddings import missing_class_prompts

SAMPLE = 64  # prompts whose encoding is timed
WORTH_TIMING = 1000  # prompts; fewer take about as long as the timing


@dataclass(frozen=True)
class TextCount:
    """Prompts of one method.

    classes  prompts of class names that are not stored
    others   other texts that fit() encodes; None if the method does not say, or was fitted before
    """

    label: str
    classes: int
    others: int | None

    @property
    def total(self) -> int:
        """Return all prompts that may have to be encoded."""
        return self.classes + (self.others or 0)


def text_counts(plan: Plan, jobs: Iterable[tuple[Job, bool]]) -> list[TextCount]:
    """Return the prompts of some jobs; class prompts that several share are counted for the first of them.

    The bool of each job says whether it was fitted before, for another set, so that its texts are stored.
    """
    out, seen = [], set()
    for job, fitted in jobs:
        new = job.templates is not None and job.templates.digest not in seen
        classes = missing_class_prompts(plan, job.templates) if new and job.templates else 0
        seen |= {job.templates.digest} if job.templates else set()
        out.append(TextCount(job.label, classes, None if fitted else _others(job, len(plan.classes.lines))))
    return out


def _others(job: Job, classes: int) -> int | None:
    """Return the number of Method.text_encodings(), None if there is none or the method cannot be imported."""
    with contextlib.suppress(Exception):  # the run reports errors of plugins
        found = job.build().text_encodings(classes)
        return found if isinstance(found, int) and found >= 0 else None
    return None


def seconds_per_prompt(plan: Plan) -> float | None:
    """Load the encoder and return the seconds that it takes for one prompt here; None if it cannot run here."""
    import torch

    try:
        encoder = encoder_loader(plan, pick_device(plan.request.device))()
    except UserError:  # the plan is for another machine
        return None
    names = plan.classes.lines
    prompts = [f"a photo of a {names[i % len(names)]}." for i in range(SAMPLE)]
    with torch.no_grad():
        encoder.text(prompts).cpu()  # the first call allocates
        began = time.perf_counter()
        encoder.text(prompts).cpu()
    return (time.perf_counter() - began) / SAMPLE
