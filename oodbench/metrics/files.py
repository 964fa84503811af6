"""Metrics of score files: in memory with intervals, or streamed from files of any size."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oodbench.errors import ProblemList, UserError, did_you_mean, raise_all
from oodbench.metrics import score_files, streaming
from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.delong import Scores
from oodbench.metrics.detection import Floats, Metrics, evaluate, score_set
from oodbench.metrics.intervals import Intervals, intervals
from oodbench.storage.files import expand

IN_MEMORY = 1_000_000  # most scores for which intervals are computed, which takes half a minute


@dataclass(frozen=True)
class Source:
    """The scores of one image set: a file, or the set `dataset` in a file of several sets."""

    name: str
    path: Path
    dataset: str = ""
    sign: int = 1

    def arrays(self) -> Iterator[Floats]:
        """Yield the scores in parts; a higher score means more in-distribution."""
        part = None
        for part in score_files.parts(self.path):
            scores = part.by_dataset().get(self.dataset) if self.dataset else part
            if scores is not None:
                yield scores.scores if self.sign > 0 else 0.0 - scores.scores
        if part is None:
            raise UserError(f"{self.path} holds no scores")


@dataclass(frozen=True)
class FileMetrics:
    """Metrics of each OOD set, in the order of the OOD files.

    `bounds` are the intervals, with sets numbered from 1; None if they were not computed.
    """

    sources: tuple[Source, ...]
    sets: tuple[Metrics, ...]
    bounds: Intervals | None

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the OOD sets, a fraction."""
        return float(sum(getattr(one, metric) for one in self.sets)) / len(self.sets)


def metrics_of_files(sources: Sequence[Source], settings: Settings, *, with_intervals: bool = True) -> FileMetrics:
    """Return the metrics of score files, the ID set first.

    Intervals are computed for at most `IN_MEMORY` scores; more are streamed. Raises UserError for invalid scores.
    """
    loaded = _in_memory(sources) if with_intervals else None
    if loaded is None:
        return FileMetrics(tuple(sources), tuple(_streamed(sources, settings)), None)
    names = [str(number) for number in range(len(loaded))]  # two files may have one name
    sets = [score_set(one, source.name) for one, source in zip(loaded, sources, strict=True)]
    found = [evaluate(sets[0], one, settings.at95, settings.aupr) for one in sets[1:]]
    bounds = intervals(Scores(loaded[0], dict(zip(names[1:], loaded[1:], strict=True)), {}), settings)
    return FileMetrics(tuple(sources), tuple(found), bounds)


def sources(id: str, ood: Sequence[str], sign: int = 1) -> list[Source]:
    """Return the sources that FILE and NAME=FILE name, the ID set first; a single FILE may hold all sets.

    Sets of one name, such as a/scores.npy and b/scores.npy, are named by their paths. `sign` is -1 if OOD images have
    the higher scores. Raises UserError for files that cannot be read or hold several.
    """
    if not ood:
        path = expand(id)
        names = _sets(path)
        if len(names) < 2:
            raise UserError(f"{id}: no OOD scores; name their files after the ID file")
        names.sort(key=lambda name: name.lower() != "id")  # stable: without `id`, the first is the ID set
        return [Source(name, path, name, sign) for name in names]
    problems = ProblemList()
    found = [problems.attempt(_source, text, sign) for text in (id, *ood)]
    raise_all(problems.problems)
    kept = [one for one in found if one]
    counts = Counter(one.name for one in kept)
    return [replace(one, name=str(one.path)) if counts[one.name] > 1 else one for one in kept]


def _source(text: str, sign: int) -> Source:
    """Return the source of `FILE` or `NAME=FILE`. Raise UserError if the file holds several sets, or another one."""
    name, equals, file = text.partition("=")
    named = bool(equals) and not expand(text).exists()
    path = expand(file if named else text)
    names = _sets(path)
    if not names:
        return Source(name if named else path.stem, path, "", sign)
    if not named and len(names) > 1:
        raise UserError(f"{path} holds scores of {', '.join(names)}; name one, as in {names[0]}={path}")
    if named and name not in names:
        raise UserError(f"{path} holds no scores of '{name}'{did_you_mean(name, names)}")
    return Source(name if named else names[0], path, name if named else names[0], sign)


def _sets(path: Path) -> list[str]:
    """Return the image sets of a file with a column `dataset`, in order; [] for a file without."""
    names: dict[str, None] = {}
    for part in score_files.parts(path):
        if part.datasets is None:
            return []
        names |= dict.fromkeys(map(str, part.datasets.tolist()))
    return list(names)


def _in_memory(sources: Sequence[Source]) -> list[Floats] | None:
    """Return the scores of each set; None if there are more than `IN_MEMORY`."""
    total, out = 0, []
    for source in sources:
        arrays = []
        for array in source.arrays():
            total += array.size
            if total > IN_MEMORY:
                return None
            arrays.append(array)
        out.append(np.concatenate(arrays))
    return out


def _streamed(sources: Sequence[Source], settings: Settings) -> Iterator[Metrics]:
    """Yield the metrics of each OOD set; its scores are sorted on disk, and merged with the ID scores."""
    with tempfile.TemporaryDirectory(prefix="oodbench-metrics-") as folder:
        on_id = streaming.sort(sources[0].arrays(), Path(folder, "id"))
        for number, source in enumerate(sources[1:]):
            on_ood = streaming.sort(source.arrays(), Path(folder, str(number)))
            yield streaming.evaluate_shards(on_id, on_ood, at95=settings.at95, aupr=settings.aupr)
            for shard in on_ood:
                shard.unlink()
