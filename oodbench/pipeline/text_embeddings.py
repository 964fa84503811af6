"""Text embeddings: one vector per class under a prompt set, and vectors of any prompts, encoded once per encoder."""

from __future__ import annotations

import functools
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
    plan: Plan,
    templates: str,
    encoder: Callable[[], LoadedEncoder],
    progress: Progress = no_progress,
    average: str = "normalised",
) -> npt.NDArray[np.float32]:
    """Return unit class vectors [k d] under a prompt set; encode and store them if they are missing.

    Both averages are stored, so that methods which average differently encode the prompts once.
    """
    from oodbench.method.averages import AVERAGES

    lines = _planned_templates(plan, templates)
    stored = {name: plan.store.find("text", _class_inputs(plan, lines, name)) for name in AVERAGES}
    entry = stored[average]
    if entry is None:
        names = plan.classes.lines
        prompts_of = [[template.replace("{}", name) for name in names] for template in lines.lines]
        if truncated := [prompt for part in prompts_of for prompt in _truncated(plan, encoder(), part)]:
            count = f"{len(truncated)} of {len(lines.lines) * len(names):,} prompts are"
            log.warning(
                '%s truncated to the context length of %s; the first is "%s"', count, plan.card.name, truncated[0]
            )
        vectors = _averages(encoder(), lines.lines, names, progress(len(lines.lines) * len(names)))
        for name in AVERAGES:
            bad = np.flatnonzero(~np.isfinite(vectors[name]).all(1))
            if len(bad):
                raise encoder().not_finite(f"{len(bad)} class names, '{names[bad[0]]}' first")
        for name in (name for name in AVERAGES if stored[name] is None):
            inputs, facts = _class_inputs(plan, lines, name), {"templates": lines.name, "classes": plan.classes.name}
            stored[name] = plan.store.write("text", inputs, {"text": vectors[name]}, facts)
        entry = stored[average]
        assert entry is not None
    return np.array(entry.array("text"))


def missing_class_prompts(plan: Plan, lines: TextList) -> int:
    """Return how many prompts have to be encoded for the class vectors under a prompt set."""
    stored = plan.store.has("text", _class_inputs(plan, lines))
    return 0 if stored else len(lines.lines) * len(plan.classes.lines)


def _class_inputs(plan: Plan, lines: TextList, average: str = "normalised") -> dict[str, object]:
    """Return the key of stored class vectors."""
    inputs: dict[str, object] = {
        "engine": ENGINE,
        "encoder": plan.card.identity,
        "precision": plan.request.precision,
        "templates": lines.digest,
        "classes": plan.classes.digest,
    }
    return inputs if average == "normalised" else {**inputs, "average": average}


def _features(encoder: LoadedEncoder, texts: Sequence[str], done: Advance) -> torch.Tensor:
    """Encode prompts, and return their features [n d], not normalised."""
    import torch

    parts = []
    for start in range(0, len(texts), BATCH):
        parts.append(encoder.text(texts[start : start + BATCH]))
        done(len(parts[-1]))
    return torch.cat(parts)


def _averages(
    encoder: LoadedEncoder, templates: Sequence[str], texts: Sequence[str], done: Advance
) -> dict[str, npt.NDArray[np.float32]]:
    """Return both averages [n d] of n texts over the templates, by the name of the average."""
    import torch

    from oodbench.method.averages import averages

    with torch.no_grad():
        found = averages(lambda filled: _features(encoder, filled, done), templates, texts)
    return {name: vectors.cpu().numpy() for name, vectors in found.items()}


def _planned_templates(plan: Plan, templates: str) -> TextList:
    """Return the templates of a prompt set. Raise UserError if they are not those of the plan."""
    lines = prompts.templates(templates)
    if not _planned(plan, templates) <= {lines.digest}:  # the key of the scores has the planned digest
        raise UserError(f"the templates '{templates}' changed after the run was planned; run again")
    return lines


def _planned(plan: Plan, templates: str) -> set[str]:
    """Return the digests of a prompt set in the plan's jobs."""
    found = {job.templates.digest for job in plan.jobs if job.templates and job.parameters["templates"] == templates}
    for job in plan.jobs:
        named = [name for name, value in job.parameters.items() if name.endswith("_templates") and value == templates]
        found |= {job.files[name] for name in named if name in job.files}
    return found


def prompt_embeddings(
    plan: Plan,
    words: tuple[str, ...],
    encoder: Callable[[], LoadedEncoder],
    progress: Progress = no_progress,
    average: WordAverage | None = None,
) -> npt.NDArray[np.float32]:
    """Return unit vectors [n d] of any number of prompts or words, stored in parts, so that a killed run can resume."""
    empty = np.zeros((0, plan.card.embed_dim), np.float32)
    if average:
        _planned_templates(plan, average.templates)
    stored = PromptEmbeddings(plan.card.identity, plan.request.precision, plan.store, average)
    entries = stored.entries(words, encoder, progress)
    return np.concatenate([empty, *(entry.array("words") for entry in entries)])


@dataclass(frozen=True)
class WordAverage:
    """How the vector of a word is computed: the prompt set into which it is put, and the average over its templates."""

    templates: str
    average: str

    @functools.cached_property
    def lines(self) -> tuple[str, ...]:
        """Return the templates."""
        return prompts.templates(self.templates).lines


@dataclass(frozen=True)
class PromptEmbeddings:
    """The stored vectors of the prompts of one encoder, or of words with `average`.

    `encoder` is the identity of its card.
    """

    encoder: str
    precision: str
    store: Store
    average: WordAverage | None = None

    def missing(self, words: Sequence[str]) -> int:
        """Return how many prompts have to be encoded. Stored entries are not verified."""
        parts = [part for part in self._parts(words) if not self.store.has("words", self._inputs(part))]
        return sum(map(len, parts)) * self._prompts_per_word

    @property
    def _prompts_per_word(self) -> int:
        return len(self.average.lines) if self.average else 1

    def _parts(self, words: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield the words of one entry after the other, each with about PART prompts."""
        size = max(1, PART // self._prompts_per_word)
        return (words[start : start + size] for start in range(0, len(words), size))

    def _inputs(self, part: Sequence[str]) -> dict[str, object]:
        inputs: dict[str, object] = {
            "engine": ENGINE,
            "encoder": self.encoder,
            "precision": self.precision,
            "prompts": digest(part),
        }
        if self.average:
            inputs |= {"templates": digest(list(self.average.lines)), "average": self.average.average}
        return inputs

    def entries(
        self, words: Sequence[str], encoder: Callable[[], LoadedEncoder], progress: Progress = no_progress
    ) -> Iterator[Entry]:
        """Yield one entry per PART prompts, whose array `words` has their unit vectors; encode missing ones."""
        missing = self.missing(words)
        done = progress(missing) if missing else no_progress(0)
        for part in self._parts(words):
            inputs = self._inputs(part)
            entry = self.store.find("words", inputs)
            if entry is None:
                vectors = self._encoded(encoder(), part, done)
                bad = np.flatnonzero(~np.isfinite(vectors).all(1))
                if len(bad):
                    raise encoder().not_finite(f"{len(bad)} prompts, '{part[bad[0]]}' first")
                entry = self.store.write("words", inputs, {"words": vectors}, {"first": part[0], "count": len(part)})
            yield entry

    def _encoded(self, encoder: LoadedEncoder, part: Sequence[str], done: Advance) -> npt.NDArray[np.float32]:
        """Encode prompts or words, and return their vectors [n d] of unit length."""
        import torch

        if self.average is None:
            with torch.no_grad():
                return torch.nn.functional.normalize(_features(encoder, part, done), dim=-1).cpu().numpy()
        # Sorted by length: a batch takes as long as its longest prompt, and CSP has 400,000.
        order = sorted(range(len(part)), key=lambda i: len(part[i]))
        vectors = _averages(encoder, self.average.lines, [part[i] for i in order], done)[self.average.average]
        return vectors[np.argsort(order)]


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
                f"class names are cut off, as in '{lost[0]}'; use shorter templates"
            )
    return truncated
