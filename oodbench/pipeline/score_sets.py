"""Match the scores of other programs to a benchmark: files to image sets, and scores to images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oodbench.data.catalog import Dataset, Protocol, datasets
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.errors import Missing, ProblemList, UserError, did_you_mean, raise_all
from oodbench.metrics.detection import Floats
from oodbench.metrics.score_files import SUFFIXES, Integers, ScorePart, check_file, read
from oodbench.storage.files import expand

ID = "id"  # stands for the ID set


@dataclass(frozen=True)
class SetFile:
    """The scores of one image set in a file."""

    path: Path
    scores: ScorePart


@dataclass(frozen=True, eq=False)
class SetScores:
    """The scores [n] of one image set, in the order of its list where the images are known.

    names        of the images [n]; "" where neither the file nor the list has them
    labels       class indices [n], -1 for none
    predictions  predicted class indices [n], -1 for none
    expected     images that the catalogue or the list counts, None if neither does
    list_digest  digest of the images if the file names them and they are on this disk, else ""
    checked      description of what the scores were compared with
    """

    dataset: Dataset
    group: str
    path: Path
    scores: Floats
    names: list[str]
    labels: Integers
    predictions: Integers
    expected: int | None
    list_digest: str
    checked: str


@dataclass(frozen=True)
class AssignedFiles:
    """The scores of each requested set, the ID set first, and the files of a folder whose sets are not requested."""

    sets: dict[str, SetFile]
    skipped: tuple[str, ...]


def assign(given: Sequence[str], protocol: Protocol) -> AssignedFiles:
    """Return the scores of each image set of a benchmark from files, folders and `SET=FILE`.

    The set is named before `=`, in a column `dataset` of the file, or in the name of the file. Raises UserError with
    all files without a set, sets with several files, sets that are not requested (in a folder they are skipped), and
    sets without a file.
    """
    sets = [protocol.id, *(dataset for dataset, _ in protocol.ood)]
    spelled = {ID: sets[0].name, **_spellings(sets)}
    problems = ProblemList()
    found: dict[str, SetFile] = {}
    skipped: list[str] = []
    for text in given:
        in_folder = expand(text).is_dir()
        for name, path in problems.attempt(_files, text, spelled) or ():
            for one, file in (problems.attempt(_sets_of, name, path, spelled, protocol) or {}).items():
                if one not in spelled.values() and in_folder:
                    skipped.append(f"{path} ({one})")
                elif one not in spelled.values():
                    several = f"name those to import, as in {ID}={path}"
                    other = several if file.scores.datasets is not None else f"if it is another set, write SET={path}"
                    problems.problems.append(
                        f"{path}: its set '{one}' is not among the requested ones; leave it out, or {other}"
                    )
                elif one in found:
                    problems.problems.append(
                        f"'{one}' has scores in {found[one].path} and in {path}; join them into one file, or give one"
                    )
                else:
                    found[one] = file
    missing = [one.name for one in sets if one.name not in found]
    if missing and not problems.problems:
        kept = ",".join(one.name for one in sets[1:] if one.name in found)
        without = (
            f"\n  or import the sets that have scores, with --ood {kept}" if sets[0].name in found and kept else ""
        )
        shown = " ".join(f"{ID if name == sets[0].name else name}=FILE" for name in missing)
        others = f" (other sets: {', '.join(skipped)})" if skipped else ""
        problems.problems.append(f"no scores of {', '.join(missing)}{others}; add {shown}{without}")
    raise_all(problems.problems)
    return AssignedFiles({one.name: found[one.name] for one in sets}, tuple(skipped))


def _spellings(sets: Collection[Dataset]) -> dict[str, str]:
    """Return the name of a set by each of its spellings in lower case; names go before aliases and titles."""
    titles = {_plain(one.title): one.name for one in sets}
    aliases = {_plain(alias): one.name for one in sets for alias in one.aliases}
    return {**titles, **aliases, **{_plain(one.name): one.name for one in sets}}


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def _files(text: str, spelled: Mapping[str, str]) -> list[tuple[str, Path]]:
    """Return (set or "", file) of one argument; for a folder, those of all its files of scores."""
    name, equals, rest = text.partition("=")
    path = expand(text)
    if equals and not path.exists():
        if _plain(name) not in spelled:
            raise UserError(f"'{name}' is not a set of this benchmark{did_you_mean(_plain(name), spelled)}")
        return [(spelled[_plain(name)], expand(rest))]
    if not path.is_dir():
        return [("", path)]
    inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not inside:
        raise UserError(f"{path}: the folder holds no file of scores ({', '.join(SUFFIXES)})")
    return [("", file) for file in inside]


def _sets_of(name: str, path: Path, spelled: Mapping[str, str], protocol: Protocol) -> dict[str, SetFile]:
    """Return the scores of each set in a file."""
    check_file(path)
    parts = read(path).by_dataset()
    if "" in parts:
        return {name or _named_in(path, spelled, protocol): SetFile(path, parts[""])}
    known = {spelled.get(_plain(one), one): part for one, part in parts.items()}
    if len(known) < len(parts):
        raise UserError(f"{path}: two of its names are the same set: {', '.join(parts)}")
    if name:
        if name not in known:
            raise UserError(f"{path} holds no scores of '{name}', only of {', '.join(parts)}")
        return {name: SetFile(path, known[name])}
    known_names = {*spelled.values(), *_spellings(datasets().values()).values()}
    if unknown := next((one for one in known if one not in known_names), None):
        close = did_you_mean(unknown, spelled.values())
        raise UserError(
            f"{path}: its set '{unknown}' is not among the requested ones{close}; to leave out sets of a file, "
            f"name those to import, as in {ID}={path}"
        )
    return {one: SetFile(path, part) for one, part in known.items()}


def _named_in(path: Path, spelled: Mapping[str, str], protocol: Protocol) -> str:
    """Return the set whose name equals the name of a file, is the only one that begins with it, or is a word of it.

    If one name contains another, the longer one counts. The set may be one of the catalogue that is not requested:
    glyphs-letters.npy is not glyphs, and cifar10.npy not cifar100.
    """
    stem = _plain(path.name.removesuffix(path.suffix))
    every = {**_spellings(datasets().values()), **spelled}
    if stem in spelled:
        return spelled[stem]
    start = f"{stem}-" if stem in every else stem
    begins = {name for text, name in spelled.items() if len(stem) > 2 and text.startswith(start)}
    if len(begins) == 1:  # imagenet.npy is imagenet1k, unless an OOD set is imagenet-o
        return begins.pop()
    spans = {
        (match.start(), match.end()): name
        for text, name in every.items()
        for match in re.finditer(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", stem)
    }
    longest = {
        name
        for span, name in spans.items()
        if not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in spans)
    }
    if len(longest) == 1:
        return longest.pop()
    sets = ", ".join([ID, *(one.name for one, _ in protocol.ood)])
    several = f"names {' and '.join(sorted(longest))}" if longest else "names no set"
    raise UserError(
        f"{path}: the file's name {several} of benchmark '{protocol.benchmark.name}'; write SET={path}, "
        f"where SET is one of {sets}"
    )


def matched(dataset: Dataset, group: str, file: SetFile, options: LoadOptions, *, is_id: bool) -> SetScores:
    """Return the scores of a set with its images, matched by name, or else by the order of the list.

    If not all images are on this disk, their number is compared with the catalogue's. Raises UserError for names that
    the set does not have or that occur twice, and, unless `options.allow_partial`, for missing images.
    """
    images = _listed(dataset, options, is_id)
    incomplete = images is not None and dataset.count not in (None, len(images))
    complete_scores = len(file.scores.scores) == dataset.count
    if images is None or (incomplete and (complete_scores or not options.allow_partial)):
        return _unlisted(dataset, group, file, options, is_id)
    where = f"{file.path}: {dataset.name}"
    scores, names, digest = file.scores, list(map(_utf8, images.names)), ""
    if scores.names is not None:
        positions = _positions(file, names, dataset.name)
        order = np.argsort(positions)
        scores, kept = scores.take(order), positions[order]
        absent = sorted(set(range(len(images))) - set(positions.tolist()))
        if absent and not options.allow_partial:
            raise UserError(
                f"{where}: {_of(len(kept), len(images))} images; without a score: "
                f"{_few([names[i] for i in absent])}; add them, or accept the subset with --allow-partial"
            )
        digest = images.digest if not absent else images.select(kept).digest
        checked = "names and number, with the images on this disk"
    elif len(scores.scores) == len(images):
        kept, checked = np.arange(len(images)), "number, with the images on this disk; taken in the order of the list"
    elif len(scores.scores) < len(images) and options.allow_partial:
        kept, checked = None, "nothing: which images they are of is not known"
    else:
        raise UserError(
            f"{where}: {_of(len(scores.scores), len(images))} images at {images.folder}; scores without names stand in "
            f"the order of the list, one for each image: {_few(names)}"
        )
    n = len(scores.scores)
    labels = scores.labels
    if labels is None:
        labels = images.labels[kept] if kept is not None else np.full(n, -1, dtype=np.int64)
    return SetScores(
        dataset,
        group,
        file.path,
        scores.scores,
        [names[i] for i in kept] if kept is not None else [""] * n,
        labels,
        _predictions(scores, labels, is_id),
        dataset.count or images.total,
        digest,
        checked,
    )


def _listed(dataset: Dataset, options: LoadOptions, is_id: bool) -> ImageSet | None:
    """Return the images of a set; None if a set of the catalogue is not on this disk."""
    try:
        return load_images(dataset, replace(options, allow_partial=True), labelled=is_id)
    except Missing:
        if not dataset.declared:
            raise
        return None


def _unlisted(dataset: Dataset, group: str, file: SetFile, options: LoadOptions, is_id: bool) -> SetScores:
    """Return the scores of a set that is not completely on this disk, sorted by name, or in the order of the file."""
    scores, n = file.scores, len(file.scores.scores)
    names = [""] * n
    if scores.names is not None:
        names = [_utf8(str(name)) for name in scores.names]
        _check_once(file, names)
        order = sorted(range(n), key=lambda i: names[i].replace("\\", "/"))  # as lists are, for paired tests
        scores, names = scores.take(np.array(order)), [names[i] for i in order]
    labels = np.full(n, -1, dtype=np.int64) if scores.labels is None else scores.labels
    if dataset.count is not None and n != dataset.count and not (options.allow_partial and n < dataset.count):
        fewer = ", or accept the subset with --allow-partial" if n < dataset.count else ""
        raise UserError(
            f"{file.path}: {dataset.name}: {_of(n, dataset.count)} images that the catalogue declares; give one for "
            f"each{fewer}"
        )
    how = "the order is the file's" if scores.names is None else "the order is that of the names"
    counted = f"number, with the catalogue; the images are not all on this disk, and {how}"
    return SetScores(
        dataset,
        group,
        file.path,
        scores.scores,
        names,
        labels,
        _predictions(scores, labels, is_id),
        dataset.count,
        "",
        "nothing: neither images nor their number are known" if dataset.count is None else counted,
    )


def _predictions(scores: ScorePart, labels: Integers, is_id: bool) -> Integers:
    """Return the predictions, or -1 for ID images without known classes, as they give no accuracy."""
    if scores.predictions is None or (is_id and not (labels >= 0).any()):
        return np.full(len(scores.scores), -1, dtype=np.int64)
    return scores.predictions


def _of(n: int, expected: int) -> str:
    return f"{n:,} score{'' if n == 1 else 's'} for {expected:,}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _positions(file: SetFile, listed: Sequence[str], dataset: str) -> Integers:
    """Return the position in the list of each image that a file names, by path, the end of a path, or file name."""
    by_path = {name: i for i, name in enumerate(listed)}
    names = map(str, file.scores.names if file.scores.names is not None else ())
    given = [name if name in by_path else name.replace("\\", "/") for name in names]
    counts = Counter(name.rpartition("/")[2] for name in listed)
    by_name = {file_name: i for name, i in by_path.items() if counts[file_name := name.rpartition("/")[2]] == 1}

    def position(name: str) -> int | None:
        while name not in by_path and "/" in name:
            name = name.partition("/")[2]
        return by_path.get(name, by_name.get(name))

    found = [position(name) for name in given]
    if None in found:
        i = found.index(None)
        twice = counts[given[i].rpartition("/")[2]] > 1
        why = "is the name of several images; write their paths" if twice else "is not one of its images"
        raise UserError(f"{file.path}, {file.scores.where(i)}: {dataset}: '{given[i]}' {why}, such as {_few(listed)}")
    positions = [i for i in found if i is not None]
    _check_once(file, [listed[i] for i in positions])
    return np.array(positions, dtype=np.int64)


def _check_once(file: SetFile, names: Sequence[str]) -> None:
    """Raise UserError for the first image that has a second score."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) != i:
            earlier = file.scores.where(first[name])
            raise UserError(f"{file.path}, {file.scores.where(i)}: '{name}' has a score already, in {earlier}")


def _utf8(name: str) -> str:
    """Return a name in the form of oodbench's files of scores: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
