"""Submissions to a leaderboard: a folder with one result, its scores per image, and the submitter's statement.

submissions/HANDLE/BENCHMARK/ENCODER/METHOD/submission.toml, result.json, result.parquet
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from oodbench.data import catalog
from oodbench.errors import ProblemList, UserError, did_you_mean, has_credentials, printable, raise_all, redact_url
from oodbench.report import eligibility
from oodbench.results import Result, may_be_result, read, slug, versions
from oodbench.storage.files import read_text
from oodbench.storage.store import file_digest

FILE = "submission.toml"
RESULT, SCORES, SHOTS = "result.json", "result.parquet", "result.shots.txt"
TEXTS = ("handle", "authors", "paper", "code", "licence", "hardware")
NONE = "none"  # the paper of a method that has none yet
_LONGEST = 300  # characters of a statement
_HANDLE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,37}[A-Za-z0-9])?")
_ARXIV = re.compile(r"(?:arxiv:)?((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?)", re.IGNORECASE)
_DOI = re.compile(r"(?:doi:)?(10\.\d{4,9}/\S+)", re.IGNORECASE)
# Settings that tables state, with their defaults; for other values, the name of the folder ends in a digest.
_USUAL = {"precision": "fp32", "batch_size": 128, "seed": 0, "resize": None}
_RULES = {"at95": "first", "aupr": "average_precision"}


@dataclass(frozen=True)
class Statement:
    """Statement of a submitter.

    handle    folder of all submissions of one submitter, such as the name of an account
    authors   names and affiliations
    paper     URL, DOI or arXiv number of the method's paper; "none"
    code      URL of the code that computed the scores
    licence   of the submitted files, such as CC-BY-4.0
    hardware  such as `1x A100 80 GB`
    tuned_on_test_data  whether hyper-parameters were tuned on the test sets; must be false
    """

    handle: str
    authors: str
    paper: str
    code: str
    licence: str
    hardware: str
    tuned_on_test_data: bool

    @property
    def paper_url(self) -> str:
        """Return the address of the paper, "" if there is none."""
        return paper_url(self.paper)

    def problems(self) -> list[str]:
        """Return the problems of the statement."""
        found = [problem(name, getattr(self, name)) for name in TEXTS]
        if self.tuned_on_test_data:
            found.append("results whose hyper-parameters were tuned on the test data are not accepted")
        return [*filter(None, found)]


def problem(name: str, text: str) -> str:
    """Return the problem of one text of a statement, such as `paper`, or ""."""
    if name == "handle" and not _HANDLE.fullmatch(text):
        return f"the handle {text!r} is not valid: 1 to 39 letters, digits, - and _, such as the name of an account"
    if not text.strip() or text != printable(text) or len(text) > _LONGEST:
        return f"'{name}' is {text[:40]!r}, but must be one line of at most {_LONGEST} characters"
    if name in ("paper", "code") and has_credentials(text):
        return f"the {name} {redact_url(text)!r} has a user or password, or a token, which everybody could read"
    if name == "paper" and not (text == NONE or "." in web_host(paper_url(text))):
        return f"the paper {text!r} is not a URL, DOI (10.1000/182), arXiv number (2401.00001) or none"
    if name == "code" and "." not in web_host(text):
        return f"the code {text!r} is not a URL such as https://github.com/OWNER/NAME"
    return ""


def paper_url(paper: str) -> str:
    """Return the address of a paper from its URL, DOI or arXiv number; "" for none."""
    if arxiv := _ARXIV.fullmatch(paper):
        return f"https://arxiv.org/abs/{arxiv[1]}"
    if doi := _DOI.fullmatch(paper):
        return f"https://doi.org/{doi[1]}"
    return "" if paper == NONE else paper


@dataclass(frozen=True)
class Submission(Statement):
    """A submission as read from its folder.

    created   ISO 8601, UTC
    oodbench  version of oodbench that wrote it
    files     sha256 of each file by name
    folder    its folder
    """

    created: str
    oodbench: str
    files: Mapping[str, str]
    folder: Path = field(default=Path(), compare=False)

    @property
    def result(self) -> Path:
        """Return the file of the result, which is next to the scores per image."""
        return self.folder / RESULT


@dataclass(frozen=True)
class CheckedSubmission:
    """A checked submission: its folder, the label of its result if readable, and its problems."""

    folder: Path
    label: str
    problems: tuple[str, ...]


def place(handle: str, row: Result) -> Path:
    """Return HANDLE/BENCHMARK/ENCODER/METHOD of a result.

    METHOD is the name of the method if everything else is the default. Otherwise it also has hyper-parameters, seeds
    and the order of a stream, and ends in a digest of everything that distinguishes two results.
    """
    encoder = str(row.encoder.get("slug") or row.encoder.get("name", ""))
    stream = [f"{row.stream.get('order')}-{row.stream.get('seed')}"] if row.stream else []
    seed = [f"seed-{row.run['seed']}"] if row.run.get("seed") else []
    words = [row.label, *stream, *seed, *(["imported"] if row.imported else [])]
    if _is_usual(row) and len(words) == 1:
        return Path(handle, _part(row.benchmark), _part(encoder), _part(row.method))
    calibration = row.run.get("calibration")
    run = {name: row.run.get(name) for name in (*_USUAL, "patches", "base")}
    identity = [row.method, row.label, row.parameters, row.files, row.weights.get("digest"), row.templates, row.classes]
    identity += [row.encoder.get("identity"), row.conventions, row.stream, calibration, run, bool(row.imported)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path(handle, _part(row.benchmark), _part(encoder), f"{_part(slug('-'.join(words)), 80)}-{digest}")


def _is_usual(row: Result) -> bool:
    """Return whether settings, class names and calibration images are the defaults of the catalogue."""
    usual = row.label == row.method and not (row.weights or row.files or "patches" in row.run)
    usual &= all(row.run.get(name, default) == default for name, default in _USUAL.items())
    usual &= all(row.conventions.get(name, default) == default for name, default in _RULES.items())
    images, declared = catalog.datasets().get(row.id.dataset), catalog.benchmarks().get(row.benchmark)
    if images:
        own = "folders, as words" if images.clean_names else "folders"
        name = str(row.classes.get("name", own))
        usual &= name == (images.classes or own) or (not images.classes and name.startswith("of "))
    calibration = row.run.get("calibration")
    if not isinstance(calibration, dict):
        return usual
    if images and declared and (split := declared.calibration or images.train):
        usual &= calibration.get("dataset") == catalog.dataset(split).name
    return usual and "shot_seed" not in calibration and calibration.get("n") == calibration.get("of")


def _part(name: str, longest: int = 120) -> str:
    """Return a name for a folder; a long one is cut and ends in a digest."""
    safe = slug(name)
    return safe if len(safe) <= longest else f"{safe[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write(statement: Statement, found: Sequence[tuple[Path, Result]], output: Path, *, replace: bool) -> list[Path]:
    """Write a submission of each result below a folder, all or none, and return their folders.

    Raises UserError for a wrong statement, two results that belong in one folder, and folders that exist (unless
    `replace`). Whether the results may be submitted is checked by `eligibility.problems`.
    """
    problems, handle = statement.problems(), statement.handle
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if handle not in there and (other_case := [name for name in there if name.casefold() == handle.casefold()]):
        problems.append(f"the handle {handle} differs from {other_case[0]} in {output} in case only")
    folders: dict[Path, Path] = {}
    for path, row in found:
        folder = output / place(statement.handle, row)
        if other := folders.get(folder):
            problems.append(f"{other} and {path} both belong in {folder}: submit one of them")
        elif folder.exists() and not replace:
            problems.append(f"{folder} exists; replace it with --replace")
        folders.setdefault(folder, path)
    raise_all(problems)
    staged = output / f".submit-{secrets.token_hex(8)}.tmp"
    try:
        for number, path in enumerate(folders.values()):
            _fill(staged / str(number), statement, path)
        for number, folder in enumerate(folders):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                folder.rename(staged / f"{number}-old")
            (staged / str(number)).rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return list(folders)


def _fill(folder: Path, statement: Statement, path: Path) -> None:
    """Write the files of a submission into a new folder."""
    folder.mkdir(parents=True)
    sources = {RESULT: path, SCORES: path.with_suffix(".parquet"), SHOTS: path.with_suffix(".shots.txt")}
    for name, source in sources.items():
        if name != SHOTS or source.is_file():
            shutil.copyfile(source, folder / name)
    files = {name: file_digest(folder / name) for name in sources if (folder / name).is_file()}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    about = {**dataclasses.asdict(statement), "created": created, "oodbench": versions()["oodbench"]}
    # A JSON string is a valid TOML string, as control characters were refused.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in about.items()]
    lines = ["[submission]", *lines, "", "[files]", *(f'"{name}" = "{digest}"' for name, digest in files.items())]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_submission(folder: Path) -> Submission:
    """Return the submission in a folder. Raise UserError with all problems of its submission.toml."""
    path = folder / FILE
    try:
        raw = tomllib.loads(read_text(path, "the submission"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    about, files = raw.get("submission"), raw.get("files")
    if set(raw) != {"submission", "files"} or not isinstance(about, dict) or not isinstance(files, dict):
        raise UserError(f"{path} has the keys {', '.join(raw) or 'none'}; its tables are [submission] and [files]")
    if "who" in about and "authors" not in about:  # the key of `authors` in older submissions
        about = {("authors" if name == "who" else name): value for name, value in about.items()}
    kinds = {one.name: bool if one.name.startswith("tuned") else str for one in dataclasses.fields(Submission)[:-2]}
    problems = [f"{path}: no key '{name}'{did_you_mean(name, kinds)}" for name in about if name not in kinds]
    problems += [f"{path}: '{name}' is missing" for name in kinds if name not in about]
    problems += [
        f"{path}: '{name}' is {about[name]!r}, not a {kind.__name__}"
        for name, kind in kinds.items()
        if name in about and not isinstance(about[name], kind)
    ]
    problems += [
        f"{path}: the digest of '{name}' is not a sha256"
        for name, digest in files.items()
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest)
    ]
    raise_all(problems)
    found = Submission(**about, files=files, folder=folder)
    problems = found.problems()
    if not iso_day(found.created):
        problems.append(f"'created' is {found.created[:40]!r}, not a date such as 2026-11-28T12:00:00+00:00")
    raise_all([f"{path}: {wrong}" for wrong in problems])
    return found


def iso_day(created: str) -> str:
    """Return the day of a time in ISO 8601, "" if it is none."""
    try:
        return datetime.fromisoformat(created).date().isoformat()
    except ValueError:
        return ""


@dataclass(frozen=True)
class Claim:
    """A submitter's claim to a result, by the digest of the result; `path` is shown in messages."""

    handle: str
    digest: str
    created: str
    path: Path


def contradictions(claims: Mapping[Path, Claim]) -> dict[Path, str]:
    """Return how claims contradict those that were made before, by file.

    A result has one submitter, and two handles differ in more than case.
    """
    results: dict[str, Claim] = {}
    handles: dict[str, str] = {}
    found = {}
    for file, one in sorted(claims.items(), key=lambda claim: claim[1].created):
        other = handles.setdefault(one.handle.casefold(), one.handle)
        first = results.setdefault(one.digest, one)
        if other != one.handle:
            found[file] = f"the handle {one.handle} differs from {other} in case only"
        elif first.handle != one.handle:
            found[file] = f"{one.handle} submits the result of {first.handle} in {first.path}: keep one of them"
    return found


def submissions(root: Path) -> list[Path]:
    """Return the folders of the submissions below a folder, sorted; none if it does not exist.

    Raises UserError for a file.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is not a folder; create submissions with: oodbench submit results --handle NAME")
    return sorted(path.parent for path in root.rglob(FILE))


def check(root: Path) -> Iterator[CheckedSubmission]:
    """Check every submission below a folder: its statement, files and result, without GPU and torch.

    Results without a submission.toml are reported as problems.
    """
    folders = submissions(root)
    copied = _copied(folders)
    for folder in folders:
        yield _checked(folder, copied.get(folder, ""))
    loose = {path.parent for path in root.rglob("*.json") if path.parent not in folders and may_be_result(path)}
    for path in sorted(loose):
        yield CheckedSubmission(path, "", (f"it has results but no {FILE}",))


def _copied(folders: Sequence[Path]) -> dict[Path, str]:
    """Return how submissions contradict those that were made before them, by folder."""
    unread = ProblemList()
    found = [(unread.attempt(read_submission, one), unread.attempt(read, one / RESULT)) for one in folders]
    return contradictions(
        {one.folder: Claim(one.handle, row.digest, one.created, one.folder) for one, row in found if one and row}
    )


def _checked(folder: Path, copied: str) -> CheckedSubmission:
    problems = ProblemList()
    one = problems.attempt(read_submission, folder)
    row = problems.attempt(read, folder / RESULT)
    if one:
        there = {path.name for path in folder.iterdir()} - {FILE}
        problems.problems += wrong_files(one, {RESULT, SCORES, *one.files} | there)
    if one and row:
        problems.problems += filter(None, [wrong_place(one, row), copied])
    if row and not problems.problems:
        problems.problems += eligibility.problems(folder / RESULT, row)
    return CheckedSubmission(folder, row.label if row else "", tuple(problems.problems))


def wrong_place(one: Submission, row: Result) -> str:
    """Return where a submission belongs, "" if it is there."""
    expected = place(one.handle, row)
    inside = one.folder.resolve().parts[-len(expected.parts) :] == expected.parts
    return "" if inside else f"it belongs in the folder {expected.as_posix()}"


def wrong_files(one: Submission, names: Collection[str]) -> Iterator[str]:
    """Yield which of some files of a submission are missing, changed, or not named by it."""
    known = {RESULT, SCORES, SHOTS}
    for name in sorted(names):
        path = one.folder / name
        if name not in known:
            yield f"{name} does not belong to a submission, which has: {', '.join(sorted(known))}"
        elif name not in one.files:
            yield f"{name} is not listed in {FILE}"
        elif not os.path.lexists(path):
            yield f"{name} is missing"
        elif path.is_symlink() or not path.is_file():
            yield f"{name} is not a regular file"
        elif file_digest(path) != one.files[name]:
            yield f"{name} was changed: its sha256 differs from that in {FILE}"


def web_host(text: str) -> str:
    """Return the host of a URL of the web, "" for other texts."""
    try:
        parts = urlsplit(text)
        host = parts.hostname if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""
    return "" if re.search(r"\s", text) else host or ""
