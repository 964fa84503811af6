"""Text embeddings: one vector per class under a prompt set, and vectors of any prompts, encoded once per encoder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench.data import prompts
from oodbench.data.prompts import TextList
from oodbench.errors import UserError
from oodbench.pipeline.events import Advance
from oodbench.pipeline.plan import Plan
from oodbench.storage.store import Entry, Store, digest

if TYPE_CHECKING:
    import torch

    from oodbench.encoder.openclip import LoadedEncoder

log = logging.getLogger(__name__)

ENGINE = 1  # raise when encoding gives other numbers than before
PART = 8192  # prompts in one stored entry
# Prompts encoded between two reports of progress: the batch of LoadedEncoder.text, so that no digit changes.
BATCH = 256

Progress = Callable[[int], Advance]


def no_progress(count: int) -> Advance:
    """Report nothing."""
    return lambda n: None


def class_embeddings(
    plan: Plan, templates: str, encoder: Callable[[], LoadedEncoder], progress: Progress = no_progress
) -> npt.NDArray[np.float32]:
    """Return unit class vectors [k d] under a prompt set; encode and store them if they are missing."""
    lines = prompts.templates(templates)
    if not _planned(plan, templates) <= {lines.digest}:  # the key of the scores would hold the digest of other prompts
        raise UserError(f"the templates '{templates}' changed after the run was planned; run again")
    inputs = _class_inputs(plan, lines)
    entry = plan.store.find("text", inputs)
    if entry is None:
        import torch

        total, truncated = None, []
        done = progress(len(lines.lines) * len(plan.classes.lines))
        with torch.no_grad():
            for template in lines.lines:
                prompts_of = [template.replace("{}", name) for name in plan.classes.lines]
                unit = _unit_vectors(encoder(), prompts_of, done)
                truncated += _truncated(plan, encoder(), prompts_of)
                total = unit if total is None else total + unit
            assert total is not None
            if truncated:
                count = f"{len(truncated)} of {len(lines.lines) * len(plan.classes.lines):,} prompts are"
                log.warning('%s cut to the context of %s, "%s" first', count, plan.card.name, truncated[0])
            vectors = torch.nn.functional.normalize(total, dim=-1).cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(bad):
                raise encoder().not_finite(f"{len(bad)} class names, '{plan.classes.lines[bad[0]]}' first")
        entry = plan.store.write(
            "text", inputs, {"text": vectors}, {"templates": lines.name, "classes": plan.classes.name}
        )
    return np.array(entry.array("text"))


def missing_class_prompts(plan: Plan, lines: TextList) -> int:
    """Return how many prompts have to be encoded for the class vectors under a prompt set."""
    stored = plan.store.has("text", _class_inputs(plan, lines))
    return 0 if stored else len(lines.lines) * len(plan.classes.lines)


def _class_inputs(plan: Plan, lines: TextList) -> dict[str, object]:
    """Return the key of stored class vectors."""
    return {
        "engine": ENGINE,
        "encoder": plan.card.identity,
        "precision": plan.request.precision,
        "templates": lines.digest,
        "classes": plan.classes.digest,
    }


def _unit_vectors(encoder: LoadedEncoder, texts: Sequence[str], done: Advance) -> torch.Tensor:
    """Encode prompts, and return their vectors [n d] of unit length."""
    import torch

    parts = []
    for start in range(0, len(texts), BATCH):
        parts.append(encoder.text(texts[start : start + BATCH]))
        done(len(parts[-1]))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def _planned(plan: Plan, templates: str) -> set[str]:
    """Return the digests that the plan's methods hold for a prompt set."""
    found = {job.templates.digest for job in plan.jobs if job.templates and job.parameters["templates"] == templates}
    for job in plan.jobs:
        named = [name for name, value in job.parameters.items() if name.endswith("_templates") and value == templates]
        found |= {job.files[name] for name in named if name in job.files}
    return found


def prompt_embeddings(
    plan: Plan, words: tuple[str, ...], encoder: Callable[[], LoadedEncoder], progress: Progress = no_progress
) -> npt.NDArray[np.float32]:
    """Return unit vectors [n d] of any number of prompts, stored in parts, so that a killed run can resume."""
    empty = np.zeros((0, plan.card.embed_dim), np.float32)
    stored = PromptEmbeddings(plan.card.identity, plan.request.precision, plan.store)
    entries = stored.entries(words, encoder, progress)
    return np.concatenate([empty, *(entry.array("words") for entry in entries)])


@dataclass(frozen=True)
class PromptEmbeddings:
    """The stored vectors of prompts of one encoder; `encoder` is the identity of its card."""

    encoder: str
    precision: str
    store: Store

    def missing(self, words: Sequence[str]) -> int:
        """Return how many prompts have to be encoded. Stored entries are not verified."""
        parts = [words[start : start + PART] for start in range(0, len(words), PART)]
        return sum(len(part) for part in parts if not self.store.has("words", self._inputs(part)))

    def _inputs(self, part: Sequence[str]) -> dict[str, object]:
        return {
            "engine": ENGINE,
            "encoder": self.encoder,
            "precision": self.precision,
            "prompts": digest(part),
        }

    def entries(
        self, words: Sequence[str], encoder: Callable[[], LoadedEncoder], progress: Progress = no_progress
    ) -> Iterator[Entry]:
        """Yield one entry for every PART prompts, with their unit vectors in its array `words`; encode missing ones."""
        import torch

        missing = self.missing(words)
        done = progress(missing) if missing else no_progress(0)
        for start in range(0, len(words), PART):
            part = words[start : start + PART]
            inputs = self._inputs(part)
            entry = self.store.find("words", inputs)
            if entry is None:
                with torch.no_grad():
                    unit = _unit_vectors(encoder(), part, done).cpu().numpy()
                bad = np.flatnonzero(~np.isfinite(unit).all(1))
                if len(bad):
                    raise encoder().not_finite(f"{len(bad)} prompts, '{part[bad[0]]}' first")
                entry = self.store.write("words", inputs, {"words": unit}, {"first": part[0], "count": len(part)})
            yield entry


def _truncated(plan: Plan, encoder: LoadedEncoder, prompts_of: Sequence[str]) -> list[str]:
    """Return the prompts that the encoder truncates. Raise UserError if two prompts then have equal tokens."""
    truncated = encoder.truncated(prompts_of)
    if truncated:
        distinct = tuple(dict.fromkeys(prompts_of))
        encoded = [tuple(tokens) for tokens in encoder.tokenize(distinct).tolist()]
        times = Counter(encoded)
        lost = [
            prompt
            for prompt, tokens in zip(distinct, encoded, strict=True)
            if prompt in truncated and times[tokens] > 1
        ]
        if lost:
            raise UserError(
                f"{len(truncated)} of {len(distinct)} prompts are longer than the context of {plan.card.name}, and "
                f"class names get lost, as in '{lost[0]}'; use shorter templates"
            )
    return truncated
