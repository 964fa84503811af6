"""`oodbench import`: scores that another program computed become a result, which is marked as imported."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.data import catalog, prompts
from oodbench.data.load import LoadOptions
from oodbench.data.paths import data_root
from oodbench.encoder.card import EMBEDDED, EncoderCard, parse_encoder, weights_digest
from oodbench.encoder.names import open_clip_name, tags
from oodbench.errors import ProblemList, UserError, did_you_mean, raise_all
from oodbench.method.access import Access, from_mapping
from oodbench.method.parameters import Choice, label, parse_choices, parse_value
from oodbench.metrics import detection as metrics
from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.delong import Scores
from oodbench.metrics.intervals import intervals
from oodbench.pipeline.evaluate import rounded, uncertainty
from oodbench.pipeline.plan import check_benchmark
from oodbench.pipeline.request import MAX_INTEGER, MAX_REPLICATES, choice_problems, is_writable, range_problems
from oodbench.pipeline.score_sets import SetScores, assign, matched
from oodbench.results import HIGHER, IdRow, Result, SetRow, commit, read, slug, versions
from oodbench.storage.files import atomic_write, expand, write_text
from oodbench.storage.store import Store, default_root, digest, file_digest

_LIBRARIES = ("oodbench", "numpy", "python")  # the numbers were computed with these; the scores were not
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class ImportRequest:
    """The request of an import. Every field is an option of `oodbench import`; `scores` are its arguments."""

    scores: tuple[str, ...]
    benchmark: str
    method: str
    encoder: str
    higher: str = ""
    force_sign: bool = False
    title: str = ""
    ood: tuple[str, ...] = ()
    access: str = ""
    templates: str = ""
    by: str = ""
    seed: int = 0
    at95: str = "first"
    aupr: str = "average_precision"
    bootstrap: int = 1000
    allow_partial: bool = False
    data: Path | None = None
    out: Path = Path("results")
    store: Path | None = None


@dataclass(frozen=True)
class Imported:
    """An imported result, its file, its scores by image set, and remarks on what the user may not expect."""

    path: Path
    result: Result
    sets: tuple[SetScores, ...]
    remarks: tuple[str, ...]


def import_scores(request: ImportRequest) -> Imported:
    """Write the result and the scores per image of files of scores. Raise UserError with every problem of a request."""
    problems = ProblemList()
    problems.attempt(_check, request)
    choice = problems.attempt(_choice, request.method)
    encoder = problems.attempt(_encoder, request.encoder)
    access = problems.attempt(parse_access, request.access)
    templates = problems.attempt(prompts.templates, request.templates) if request.templates else None
    protocol = problems.attempt(catalog.protocol, request.benchmark, request.ood)
    if protocol:
        problems.attempt(check_benchmark, protocol.benchmark)
    assigned = problems.attempt(assign, request.scores, protocol) if protocol else None
    raise_all(problems.problems)
    assert choice and encoder and protocol and assigned
    store = Store(expand(request.store or default_root()))
    options = LoadOptions(data_root(request.data), store, allow_partial=request.allow_partial)
    groups = {protocol.id.name: "", **{dataset.name: group for dataset, group in protocol.ood}}
    found = []
    for dataset in (protocol.id, *(dataset for dataset, _ in protocol.ood)):
        is_id = dataset is protocol.id
        one = problems.attempt(
            lambda d=dataset, i=is_id: matched(d, groups[d.name], assigned.sets[d.name], options, is_id=i)
        )
        found += [one] if one else []
    raise_all(problems.problems)
    sets = tuple(_signed(one, request.higher) for one in found)
    result = Result(
        method=choice.name,
        label=label(choice.name, choice.overrides, {}),
        title=request.title or choice.name,
        parameters=choice.overrides,
        benchmark=protocol.benchmark.name,
        benchmark_title=protocol.benchmark.title,
        encoder=encoder,
        id=_id_row(sets[0]),
        ood=(),
        conventions={"headline": "fpr95: ID positive", "at95": request.at95, "aupr": request.aupr},
        classes={},
        templates=templates.card() if templates else {"name": _UNKNOWN},
        files={},
        run={"seed": request.seed, "imported": _origin(request, sets, bool(choice.overrides), access is not None)},
        source="",
        versions={name: versions()[name] for name in _LIBRARIES},
        commit=commit(),
        scores={},
        access=access.plain() if access else {},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        warnings=(_remark(request, sets),),
    )
    result = _evaluated(result, sets, Settings(request.at95, request.aupr, request.bootstrap))
    _check_sign(result, request)
    path = _file(result, expand(request.out))
    old = _old(path)
    if old and old.digest == result.digest:
        result = dataclasses.replace(result, created=old.created)
    _write(result, sets, path)
    remarks = [_unknown_tag(encoder)]
    if assigned.skipped:
        remarks.append(f"skipped, as their sets are not requested: {', '.join(assigned.skipped)}")
    if old and old.digest != result.digest:
        remarks.append("this replaces an earlier import of the same method")
    return Imported(path, result, sets, tuple(filter(None, remarks)))


def _check(request: ImportRequest) -> None:
    """Raise UserError for unknown choices, numbers out of range, and a results folder that cannot be written."""
    problems = choice_problems(("--at95", request.at95, metrics.AT95), ("--aupr", request.aupr, metrics.AUPR))
    problems += range_problems(
        ("--bootstrap", request.bootstrap, 0, MAX_REPLICATES), ("--seed", request.seed, 0, MAX_INTEGER)
    )
    if request.higher not in HIGHER:
        given = f"--higher {request.higher}: give id or ood" if request.higher else "--higher is missing"
        problems.append(
            f"{given}: which images have the higher scores?\n  --higher id   ID images, as for confidences (MCM, MSP)\n"
            "  --higher ood  OOD images, as for distances and uncertainties"
        )
    if not is_writable(expand(request.out)):
        problems.append(f"the results folder {request.out} cannot be written; name another with --results")
    raise_all(problems)


def _choice(text: str) -> Choice:
    """Return name and hyper-parameters of `mine[k=10]`. Raise UserError for none or several methods."""
    if not text.strip():
        raise UserError("--method is empty; name the method, such as mine, or mine[k=10] with its hyper-parameters")
    choices = parse_choices(text)
    if len(choices) > 1:
        names = ", ".join(choice.name for choice in choices)
        raise UserError(f"--method {text}: scores are of one method, not of {names}; import each by itself")
    if not re.fullmatch(r"[\w.+-]+", choices[0].name):
        raise UserError(f"--method {text}: a name has letters, digits, _, . and - only; its name in tables is --title")
    return choices[0]


def _encoder(text: str) -> dict[str, Any]:
    """Return the fields of an encoder's card that follow from its name; an unknown name stays as it is.

    Raise UserError for an architecture without its weights, and a file that does not exist.
    """
    name = open_clip_name(text.strip())
    if not name:
        raise UserError("--encoder is empty; name the encoder of the images, such as ViT-B-16/openai")
    if re.fullmatch(r"[\w-]+", name) and tags(name):
        parse_encoder(name)  # raises, with the tags
    architecture, tag, weights = "", "", ""
    if name == EMBEDDED:
        architecture = name
    elif re.fullmatch(r"[\w.-]+/[\w.-]+|[\w./-]+@.+", name):
        spec = parse_encoder(name)
        architecture, tag = spec.architecture, spec.tag
        weights = weights_digest(spec.path) if spec.path else ""
    card = EncoderCard(name, architecture, tag, weights, {}, (), (), (0, 0), "", "", 0, "", 0, "", 0, 0.0)
    facts = {k: v for k, v in card.row().items() if k in ("name", "slug", "architecture", "tag", "weights") and v}
    folder = card.slug.removesuffix("-") or slug(name)
    # A slug is ASCII: without the digest, all Chinese names would have the slug x, and one folder.
    return {**facts, "slug": folder if name.isascii() else f"{folder}-{digest(name)[:8]}"}


def _unknown_tag(encoder: Mapping[str, Any]) -> str:
    """Return a remark on an encoder with an architecture of open_clip, but without weights of it; "" for others."""
    architecture, tag = (str(encoder.get(name, "")) for name in ("architecture", "tag"))
    if tag in ("", "openai"):  # known without open_clip, whose import takes seconds
        return ""
    known = tags(architecture)
    close = did_you_mean(tag, known)
    return f"encoder {encoder['name']}: open_clip has no weights '{tag}'{close}" if known and tag not in known else ""


def parse_access(text: str) -> Access | None:
    """Return the access card of `id_images,id_labels=16`; `none` gives a card without access, and "" gives None.

    Raise UserError for a field or value that a card does not have.
    """
    if not text.strip():
        return None
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))) if text.strip() != "none" else ():
        name, equals, value = part.partition("=")
        values[name.strip()] = parse_value(value) if equals else True
    try:
        card = from_mapping(values)
    except ValueError as error:
        fields = ", ".join(f.name for f in dataclasses.fields(Access))
        raise UserError(
            f"--access {text}: {error}; write some of {fields}, such as id_images,id_labels=16, or none"
        ) from error
    return dataclasses.replace(card, id_images=card.id_images or card.id_labels is not None)


def _signed(one: SetScores, higher: str) -> SetScores:
    """Return scores of which higher means more in-distribution. Subtracting from 0 gives no negative zero."""
    return one if higher == "id" else dataclasses.replace(one, scores=0.0 - one.scores)


def _origin(request: ImportRequest, sets: Sequence[SetScores], parameters: bool, access: bool) -> dict[str, Any]:
    """Return the origin of the scores, what was checked, and what is not known."""
    known = {"parameters": parameters, "templates": bool(request.templates), "access": access, "by": bool(request.by)}
    return {
        "by": request.by or _UNKNOWN,
        "higher": request.higher,
        "forced_sign": request.force_sign,
        "files": {s.dataset.name: {"file": s.path.name, "sha256": file_digest(s.path)} for s in sets},
        "checked": {s.dataset.name: s.checked for s in sets},
        "unknown": ", ".join([name for name, said in known.items() if not said] + ["classes", "versions", "device"]),
    }


def _remark(request: ImportRequest, sets: Sequence[SetScores]) -> str:
    """Return the sentence on an imported result that is printed below its tables."""
    files = ", ".join(dict.fromkeys(s.path.name for s in sets))
    whom = f"computed by {request.by}" if request.by else "it is not stated who computed them"
    sign = f"; sign as given (--higher {request.higher}), although the mean AUROC is below 50 %"
    unsure = [s.dataset.title for s in sets if not s.list_digest]
    order = f"; which image has which score was not checked: {', '.join(unsure)}" if unsure else ""
    return f"imported scores, {whom} ({files}){sign if request.force_sign else ''}{order}"


def _id_row(one: SetScores) -> IdRow:
    predicted = bool((one.predictions >= 0).any())
    return IdRow(
        dataset=one.dataset.name,
        title=one.dataset.title,
        n=len(one.scores),
        expected=one.expected,
        skipped=0,
        list_digest=one.list_digest,
        accuracy=float((one.predictions == one.labels).mean()) if predicted else None,
    )


def _evaluated(result: Result, sets: Sequence[SetScores], settings: Settings) -> Result:
    """Return the result with metrics and intervals of its OOD sets."""
    on_id, *on_ood = (metrics.score_set(one.scores, f"{one.path}: {one.dataset.name}") for one in sets)
    ood = {one.dataset.name: one.scores for one in sets[1:]}
    groups = {one.dataset.name: one.group for one in sets[1:]}
    bounds = intervals(Scores(sets[0].scores, ood, groups), settings, result.label)
    of_sets, rows = rounded(bounds.sets), []
    for one, scores in zip(sets[1:], on_ood, strict=True):
        values = dataclasses.asdict(metrics.evaluate(on_id, scores, at95=settings.at95, aupr=settings.aupr))
        del values["n_id"], values["n_ood"]
        rows.append(
            SetRow(
                dataset=one.dataset.name,
                title=one.dataset.title,
                group=one.group,
                n=len(one.scores),
                expected=one.expected,
                skipped=0,
                list_digest=one.list_digest,
                intervals=of_sets[one.dataset.name],
                **values,
            )
        )
    means, settled = rounded(bounds.means), uncertainty(settings)
    return dataclasses.replace(result, ood=tuple(rows), mean_intervals=means, uncertainty=settled)


def _check_sign(result: Result, request: ImportRequest) -> None:
    """Raise UserError if the scores rank OOD above ID images, or if --force-sign is not needed."""
    mean, other = result.mean("auroc"), next(one for one in HIGHER if one != request.higher)
    below = [f"{one.title} ({100 * one.auroc:.2f} %)" for one in result.ood if one.auroc < 0.5]
    only = f"\n  or, if only {', '.join(below)} has the other sign, negate its scores"
    single = only if len(below) < len(result.ood) else ""
    if mean < 0.5 and not request.force_sign:
        raise UserError(
            f"with --higher {request.higher} the mean AUROC is {100 * mean:.2f} %, so that the "
            f"{'OOD' if request.higher == 'id' else 'ID'} images have the higher scores; write --higher {other} "
            f"({100 * (1 - mean):.2f} %){single}\n  or, if the method really ranks them that way, --force-sign"
        )
    if mean >= 0.5 and request.force_sign:
        raise UserError(f"the mean AUROC is {100 * mean:.2f} %: the sign need not be forced; leave --force-sign out")


def _file(result: Result, out: Path) -> Path:
    """Return the file of a result; a second import of the same method with the same settings has the same one."""
    names = sorted([result.id.dataset, *(one.dataset for one in result.ood)])
    known = [result.label, result.templates, result.conventions, result.run["seed"], names]
    folder = out / "runs" / slug(result.benchmark)[:120] / str(result.encoder["slug"])
    return folder / f"{slug(result.method)[:120]}-imported-{digest(known)[:8]}.json"


def _write(result: Result, sets: Sequence[SetScores], path: Path) -> None:
    """Write a result and its scores."""
    columns = {
        "dataset": [s.dataset.name for s in sets for _ in s.names],
        "name": [name for s in sets for name in s.names],
        "label": np.concatenate([s.labels for s in sets]),
        "score": np.concatenate([s.scores for s in sets]),
        "prediction": np.concatenate([s.predictions for s in sets]),
    }
    _write_scores(columns, path.with_suffix(".parquet"))
    write_text(path, result.to_json())


def _old(path: Path) -> Result | None:
    try:
        return read(path)
    except UserError:
        return None


def _write_scores(columns: dict[str, Any], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({**columns, "dataset": pa.array(columns["dataset"]).dictionary_encode()})
    with atomic_write(path) as partial:
        parquet.write_table(table, partial)
