"""The whole check: lists, looks at images, pairs of sets, calibration lists; and what was found as a Report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oodbench.data.catalog import Dataset
from oodbench.data.checks import calibration, pairs, single
from oodbench.data.checks.findings import CheckReport, Finding
from oodbench.data.checks.inspection import Done, inspect_images
from oodbench.data.checks.pairs import ImageSide
from oodbench.data.checks.scope import CheckScope
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import Missing, Unlabelled, UserError
from oodbench.storage.store import Store

Watch = Callable[[str, int], Done]  # (what is done, how many steps) -> a function that is told of steps


@dataclass(frozen=True)
class CheckSettings:
    """How to look: where data lie, threads (0: one per core), bits of near-duplicates, images of each set at most."""

    data: Path
    store: Store
    workers: int = 0
    hamming: int = 4
    limit: int | None = None


def check_sets(
    scope: CheckScope, settings: CheckSettings, watch: Watch = lambda what, n: lambda done: None
) -> CheckReport:
    """Check all of a scope. Data that are wrong are in the report; UserError when there are none at all."""
    report = CheckReport()
    sides: dict[str, ImageSide] = {}
    for name, dataset in scope.sets.items():
        role = scope.roles[name]
        dataset, digest, finding = single.check_list_digest(dataset, settings.data)
        report.findings += [finding] if finding else []
        listed = _list(dataset, role, settings, report, scope)
        if listed is None:
            continue
        card = single.summarize_list(listed, role)
        if digest:
            card.digest, card.declared_digest = digest
        report.cards.append(card)
        report.findings += single.list_findings(card, listed)
        looks = inspect_images(listed, settings.store, settings.workers, watch(f"look at {name}", len(listed)))
        single.add_looks(card, looks)
        report.findings += single.image_findings(listed, looks)
        if len(listed) < listed.total:
            message = f"only {len(listed):,} of {listed.total:,} images were looked at"
            report.findings.append(Finding("note", "limit", (name,), message))
        sides[name] = ImageSide(listed, looks)
    _compare(scope, sides, settings, report, watch)
    for name, dataset in scope.calibrations.items():
        if name in sides:
            _calibration(sides[name].listing, dataset, settings, report)
    if not report.cards and not report.findings:
        raise UserError(
            f"no dataset of the catalogue lies below {settings.data}; name the folder with --data, "
            "a set of your own with folder:PATH"
        )
    return report


def _list(
    dataset: Dataset, role: str, settings: CheckSettings, report: CheckReport, scope: CheckScope
) -> ImageSet | None:
    """The images of a set, labelled where it is an ID set; None and a finding when they cannot be listed.

    A set that has no role may be meant for either: what is wrong with its classes is a warning.
    """
    must = role == "ID" or (role != "OOD" and bool(dataset.train or dataset.benchmark))
    try:
        listed = _listing(dataset, must or bool(dataset.classes), settings)
        return listed if must or role else _with_classes(listed, settings, report)
    except UserError as problem:
        error = problem
    with contextlib.suppress(UserError):
        listed = _listing(dataset, False, settings)
        if must:
            report.findings.append(Finding("error", "classes", (dataset.name,), str(error)))
        return listed
    if isinstance(error, Missing):
        if scope.required:
            report.findings.append(Finding("error", "missing", (dataset.name,), str(error)))
    else:
        report.findings.append(Finding("error", "not-listed", (dataset.name,), str(error)))
    return None


def _with_classes(listed: ImageSet, settings: CheckSettings, report: CheckReport) -> ImageSet:
    """The same list with the remarks on its classes, where it has some."""
    try:
        labelled = _listing(listed.dataset, True, settings)
    except Unlabelled:
        return listed
    except UserError as error:
        report.findings.append(Finding("warning", "classes", (listed.dataset.name,), str(error)))
        return listed
    report.findings += single.class_name_findings(labelled)
    return dataclasses.replace(listed, remarks=labelled.remarks)


def _listing(dataset: Dataset, labelled: bool, settings: CheckSettings) -> ImageSet:
    return load_images(dataset, LoadOptions(settings.data, settings.store, limit=settings.limit), labelled=labelled)


def _compare(
    scope: CheckScope, sides: dict[str, ImageSide], settings: CheckSettings, report: CheckReport, watch: Watch
) -> None:
    there = [(sides[a], sides[b]) for a, b in scope.pairs if a in sides and b in sides]
    if not there:
        return
    place = pairs.find_wordnet()
    net = pairs.WordNet(place) if place else None
    done = watch("compare ID and OOD", len(there))
    for id_set, ood in there:
        report.findings += pairs.shared_images(id_set, ood, settings.hamming)
        report.findings += pairs.shortcut_features(id_set, ood)
        report.findings += pairs.class_overlap(id_set.listing, ood.listing, net)
        done(1)


def _calibration(test: ImageSet, dataset: Dataset, settings: CheckSettings, report: CheckReport) -> None:
    """Card and findings of a calibration set: its list and what of it is tested on. Its images are not decoded."""
    try:
        listed = _listing(dataset, True, dataclasses.replace(settings, limit=None))
    except UserError as error:
        report.findings.append(Finding("note", "no-calibration", (test.dataset.name, dataset.name), str(error)))
        return
    if dataset.name not in {card.name for card in report.cards}:
        card = single.summarize_list(listed, "calibration")
        report.cards.append(card)
        report.findings += single.list_findings(card, listed)
    try:
        report.findings += calibration.calibration_overlap(test, listed)
    except UserError as error:
        report.findings.append(Finding("error", "not-listed", (dataset.name,), str(error)))
