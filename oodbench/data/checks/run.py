"""All checks of a scope: sets, their images, pairs of ID and OOD sets, calibration sets."""

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
from oodbench.data.checks.pairs import InspectedSet
from oodbench.data.checks.scope import CheckScope
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import Missing, Unlabelled, UserError
from oodbench.storage.store import Store

StartProgress = Callable[
    [str, int], Done
]  # (description, number of steps) -> a function that is called with finished steps


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a check.

    data     the data folder
    store    keeps the properties of inspected images
    workers  number of threads, 0: one per core
    hamming  bits in which the hashes of near-duplicates may differ
    limit    maximum number of images per set
    """

    data: Path
    store: Store
    workers: int = 0
    hamming: int = 4
    limit: int | None = None


def check_sets(
    scope: CheckScope, settings: CheckSettings, watch: StartProgress = lambda what, n: lambda done: None
) -> CheckReport:
    """Check everything in a scope and return the report. Raise UserError if there are no data."""
    report = CheckReport()
    inspected: dict[str, InspectedSet] = {}
    for name, dataset in scope.sets.items():
        role = scope.roles[name]
        dataset, digest, finding = single.check_list_digest(dataset, settings.data)
        report.findings += [finding] if finding else []
        listed = _list(dataset, role, settings, report, scope)
        if listed is None:
            continue
        summary = single.summarize_list(listed, role)
        if digest:
            summary.digest, summary.declared_digest = digest
        report.sets.append(summary)
        report.findings += single.list_findings(summary, listed)
        report.findings += single.archive_findings(dataset, settings.data)
        images = inspect_images(listed, settings.store, settings.workers, watch(f"inspect {name}", len(listed)))
        single.summarize_images(summary, images)
        report.findings += single.image_findings(listed, images)
        if len(listed) < listed.total:
            message = f"only {len(listed):,} of {listed.total:,} images were inspected"
            report.findings.append(Finding("note", "limit", (name,), message))
        inspected[name] = InspectedSet(listed, images)
    _compare(scope, inspected, settings, report, watch)
    for name, dataset in scope.calibrations.items():
        if name in inspected:
            _calibration(inspected[name].listing, dataset, settings, report)
    if not report.sets and not report.findings:
        raise UserError(
            f"no dataset of the catalogue is in {settings.data}; name the folder with --data, "
            "or your own set with folder:PATH"
        )
    return report


def _list(
    dataset: Dataset, role: str, settings: CheckSettings, report: CheckReport, scope: CheckScope
) -> ImageSet | None:
    """Return the images of a set, labelled if it is an ID set. If this fails, add a finding and return None.

    A set without a role may be used as ID or OOD set: problems of its classes are warnings.
    """
    needs_labels = role == "ID" or (role != "OOD" and bool(dataset.train or dataset.benchmark))
    try:
        listed = _listing(dataset, needs_labels or bool(dataset.classes), settings)
        return listed if needs_labels or role else _with_classes(listed, settings, report)
    except UserError as problem:
        error = problem
    with contextlib.suppress(UserError):
        listed = _listing(dataset, False, settings)
        if needs_labels:
            report.findings.append(Finding("error", "classes", (dataset.name,), str(error)))
        return listed
    if isinstance(error, Missing):
        if scope.required:
            report.findings.append(Finding("error", "missing", (dataset.name,), str(error)))
    else:
        report.findings.append(Finding("error", "not-listed", (dataset.name,), str(error)))
    return None


def _with_classes(listed: ImageSet, settings: CheckSettings, report: CheckReport) -> ImageSet:
    """Return the same set with remarks on its classes, if it has classes."""
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
    scope: CheckScope,
    inspected: dict[str, InspectedSet],
    settings: CheckSettings,
    report: CheckReport,
    watch: StartProgress,
) -> None:
    available = [(inspected[a], inspected[b]) for a, b in scope.pairs if a in inspected and b in inspected]
    if not available:
        return
    folder = pairs.find_wordnet()
    net = pairs.WordNet(folder) if folder else None
    done = watch("compare ID and OOD", len(available))
    for id_set, ood in available:
        report.findings += pairs.shared_images(id_set, ood, settings.hamming)
        report.findings += pairs.shortcut_features(id_set, ood)
        report.findings += pairs.class_overlap(id_set.listing, ood.listing, net)
        done(1)


def _calibration(test: ImageSet, dataset: Dataset, settings: CheckSettings, report: CheckReport) -> None:
    """Add the summary and the findings of a calibration set (its list, test images in it) without decoding images."""
    try:
        listed = _listing(dataset, True, dataclasses.replace(settings, limit=None))
    except UserError as error:
        report.findings.append(Finding("note", "no-calibration", (test.dataset.name, dataset.name), str(error)))
        return
    if dataset.name not in {summary.name for summary in report.sets}:
        summary = single.summarize_list(listed, "calibration")
        report.sets.append(summary)
        report.findings += single.list_findings(summary, listed)
    try:
        report.findings += calibration.calibration_overlap(test, listed)
    except UserError as error:
        report.findings.append(Finding("error", "not-listed", (dataset.name,), str(error)))
