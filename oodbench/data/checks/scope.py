"""Which sets `oodbench datasets check` inspects: the named sets, pairs of ID and OOD sets, calibration sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from oodbench.data import catalog
from oodbench.data.catalog import Dataset, Protocol
from oodbench.errors import ProblemList, raise_all


@dataclass
class CheckScope:
    """Sets by name with their role ("ID", "OOD" or ""), pairs (ID, OOD), and calibration sets by ID set.

    required  whether a missing set is an error, because all were named, directly or through a benchmark
    """

    sets: dict[str, Dataset] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    calibrations: dict[str, Dataset] = field(default_factory=dict)
    required: bool = True

    def add(self, dataset: Dataset, role: str) -> None:
        """Add a set, with its training split as calibration set."""
        self.sets.setdefault(dataset.name, dataset)
        self.roles[dataset.name] = self.roles.get(dataset.name) or role
        if dataset.train and dataset.name not in self.calibrations:
            self.calibrations[dataset.name] = catalog.dataset(dataset.train)

    def add_pair(self, id_set: Dataset, ood: Dataset) -> None:
        """Add an ID set and an OOD set to compare."""
        self.add(id_set, "ID")
        self.add(ood, "OOD")
        if id_set.name != ood.name and (id_set.name, ood.name) not in self.pairs:
            self.pairs.append((id_set.name, ood.name))

    def add_protocol(self, protocol: Protocol) -> None:
        """Add the sets of a benchmark, with its calibration set."""
        if protocol.benchmark.calibration:
            self.calibrations[protocol.id.name] = catalog.dataset(protocol.benchmark.calibration)
        self.add(protocol.id, "ID")
        for ood, _ in protocol.ood:
            self.add_pair(protocol.id, ood)


def select_sets(names: Sequence[str], id_name: str = "") -> CheckScope:
    """Return the scope of a request. Raises UserError with every name that does not exist.

    Names are datasets, `folder:PATH` or benchmarks. With `id_name`, all are OOD sets for it. Without names, the scope
    is everything in the catalogue that exists below the data folder.
    """
    if not names and not id_name:
        return _everything()
    problems = ProblemList()
    result = CheckScope()
    id_set = problems.attempt(catalog.dataset, id_name) if id_name else None
    if id_set:
        result.add(id_set, "ID")
    for name in names:
        if name in catalog.benchmarks():
            protocol = catalog.protocol(name)
            if not id_name:
                result.add_protocol(protocol)
            elif id_set:
                for ood, _ in protocol.ood:
                    result.add_pair(id_set, ood)
        elif dataset := problems.attempt(catalog.dataset, name):
            if id_set:
                result.add_pair(id_set, dataset)
            else:
                result.add(dataset, "")
    raise_all(problems.problems)
    return result


def _everything() -> CheckScope:
    """Return all sets that may exist below the data folder, paired as in the benchmarks."""
    local = {d.name: d for d in catalog.datasets().values() if d.loader not in ("glyphs", "hf") and "://" not in d.path}
    result = CheckScope(required=False)
    for benchmark in catalog.benchmarks().values():
        if benchmark.id in local:
            for name, _ in benchmark.sets():
                if name in local:
                    result.add_pair(local[benchmark.id], local[name])
    for dataset in local.values():
        result.add(dataset, "")
    return result
