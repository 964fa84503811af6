"""What a check looks at: the sets that were named, ID and OOD sets to compare, calibration lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Benchmark, Dataset
from oodbench.errors import UserError, raise_all


@dataclass
class CheckScope:
    """Sets by name with their role ("ID", "OOD" or ""), pairs (ID, OOD), and calibration sets by ID set.

    required  sets that must be there: all that were named, by themselves or through a benchmark
    """

    sets: dict[str, Dataset] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    calibrations: dict[str, Dataset] = field(default_factory=dict)
    required: bool = True

    def add(self, dataset: Dataset, role: str) -> None:
        self.sets.setdefault(dataset.name, dataset)
        self.roles[dataset.name] = self.roles.get(dataset.name) or role
        if dataset.train and dataset.name not in self.calibrations:
            self.calibrations[dataset.name] = catalogue.dataset(dataset.train)

    def hold(self, id_set: Dataset, ood: Dataset) -> None:
        """Compare an ID set with an OOD set."""
        self.add(id_set, "ID")
        self.add(ood, "OOD")
        if id_set.name != ood.name and (id_set.name, ood.name) not in self.pairs:
            self.pairs.append((id_set.name, ood.name))


def select_sets(names: Sequence[str], id_name: str = "") -> CheckScope:
    """The scope of a request; every name that does not exist is told at once, as a UserError.

    Names are datasets, `folder:PATH` or benchmarks. With `id_name` all of them are OOD sets of it. Without names it is
    everything of the catalogue that is found below the data folder.
    """
    if not names and not id_name:
        return _everything()
    problems: list[str] = []
    found = CheckScope()
    id_set = _or(problems, id_name) if id_name else None
    if id_set:
        found.add(id_set, "ID")
    for name in names:
        protocol = catalogue.benchmarks().get(name)
        if protocol and id_name:
            for other, _ in protocol.sets():
                if id_set:
                    found.hold(id_set, catalogue.dataset(other))
        elif protocol:
            _add(found, protocol)
        elif one := _or(problems, name):
            if id_set:
                found.hold(id_set, one)
            else:
                found.add(one, "")
    raise_all(problems)
    return found


def _everything() -> CheckScope:
    """All sets that may lie below the data folder, held against each other as the benchmarks do."""
    there = {
        d.name: d for d in catalogue.datasets().values() if d.loader not in ("glyphs", "hf") and "://" not in d.path
    }
    found = CheckScope(required=False)
    for protocol in catalogue.benchmarks().values():
        if protocol.id in there:
            for name, _ in protocol.sets():
                if name in there:
                    found.hold(there[protocol.id], there[name])
    for one in there.values():
        found.add(one, "")
    return found


def _add(found: CheckScope, protocol: Benchmark) -> None:
    id_set = catalogue.dataset(protocol.id)
    if protocol.calibration:
        found.calibrations[id_set.name] = catalogue.dataset(protocol.calibration)
    found.add(id_set, "ID")
    for name, _ in protocol.sets():
        found.hold(id_set, catalogue.dataset(name))


def _or(problems: list[str], name: str) -> Dataset | None:
    try:
        return catalogue.dataset(name)
    except UserError as error:
        problems += error.problems
        return None
