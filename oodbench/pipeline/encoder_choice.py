"""The encoder of a run without --encoder: that of trained weights, else the benchmark's; and the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oodbench.data.catalog import Benchmark, benchmarks, datasets
from oodbench.data.released import releases, releases_of
from oodbench.encoder.card import EMBEDDED, parse_encoder
from oodbench.errors import UserError
from oodbench.method import registry
from oodbench.pipeline.assign_weights import weights_files
from oodbench.pipeline.jobs import Job, Jobs, make_jobs
from oodbench.pipeline.request import RunRequest, command
from oodbench.pipeline.weights import files_of, recipe_of


@dataclass(frozen=True)
class EncoderChoice:
    """A value of --encoder, and the reason for it; "" if the user gave it, or for the embedded encoder."""

    text: str
    reason: str = ""


def choose_encoder(
    request: RunRequest, jobs: Jobs, files: Mapping[str, Path], benchmark: Benchmark, *, is_run: bool = True
) -> EncoderChoice:
    """Return the encoder of a run; `files` are the weights that the user named, by method.

    It is --encoder; else the one that the user's weights were trained for; else the one of the released weights of the
    named methods; else the benchmark's. Released weights do not count on a benchmark of the embedded encoder, for
    which weights are shipped. Raises UserError, with the commands to paste, if trained methods need different encoders,
    or if no encoder follows.
    """
    if request.encoder:
        return EncoderChoice(request.encoder)
    trained = [job for job in jobs.jobs if "WEIGHTS" in job.info.needs]
    needed = {
        job.label: encoder for job in trained if (encoder := _trained_for(files.get(job.info.name), job.info.name))
    }
    why = "which {} was trained for"
    if not needed and benchmark.encoder != EMBEDDED:
        named = [job for job in trained if job.named or job.info.name in files]
        needed = {job.label: encoder for job in named if (encoder := released_encoder(job))}
        why = "which the released weights of {} belong to"
    needed = {row.label: needed[label] for row in jobs.rows for label in (row.base, row.label) if label in needed}
    distinct = list(dict.fromkeys(needed.values()))
    if len(distinct) > 1:
        raise UserError(_conflict(request, jobs.rows, needed))
    if distinct:
        others = [job.label for job in jobs.rows if job.named and job.label not in needed]
        reason = f"encoder {distinct[0]}, {why.format(', '.join(needed))}"
        if others and benchmark.encoder not in ("", distinct[0]):
            alone = command(request, methods=",".join(others), encoder=benchmark.encoder, weights=())
            reason += f"; to run the other methods with the benchmark's encoder: {alone}"
        return EncoderChoice(distinct[0], "" if distinct[0] == EMBEDDED else reason)
    if not benchmark.encoder:
        known = ", ".join(known_encoders())
        example = f"\n  {command(request, encoder='ViT-B-16/openai')}" if is_run else ""
        raise UserError(
            f"benchmark '{benchmark.name}' needs an encoder; name one, e.g. --encoder ViT-B-16/openai\n"
            f"  encoders used in the papers: {known}{example}"
        )
    reason = f"encoder {benchmark.encoder}, the default of benchmark '{benchmark.name}'; --encoder selects another"
    return EncoderChoice(benchmark.encoder, "" if benchmark.encoder == EMBEDDED else reason)


def benchmark_of_classes(classes: str) -> Benchmark:
    """Return the benchmark of the ID set of this name; else one with the embedded encoder."""
    named = datasets().get(classes)
    benchmark = benchmarks().get(named.benchmark) if named else None
    return benchmark or Benchmark("images", "images", "images", encoder=EMBEDDED)


def encoder_without_run(request: RunRequest, benchmark: Benchmark) -> EncoderChoice:
    """Return the encoder that a run of the request on a benchmark uses."""
    files = weights_files(request, registry.methods(request.plugins))
    return choose_encoder(request, make_jobs(request), files, benchmark, is_run=False)


def released_encoder(job: Job) -> str:
    """Return the encoder that the released weights of a method belong to; "" if there are none, or for several."""
    encoders = {release.encoder for release in releases_of(job.info.name, job.parameters)}
    return encoders.pop() if len(encoders) == 1 else ""


def known_encoders() -> list[str]:
    """Return the encoders that benchmarks and released weights name, without the embedded one."""
    named = [one.encoder for one in benchmarks().values()] + [one.encoder for one in releases("weights").values()]
    return sorted(dict.fromkeys(name for name in named if name not in ("", EMBEDDED)))


def _trained_for(file: Path | None, method: str) -> str:
    """Return the encoder in the recipe of a weights file, or of all files in a folder; "" for none or several."""
    if file is not None and file.is_dir():
        encoders = {_trained_for(path, method) for path in files_of(file, method)}
        return encoders.pop() if len(encoders) == 1 else ""
    if file is None or not (recipe := recipe_of(file)):
        return ""
    encoder = recipe.get("encoder")
    name = encoder.get("name") if isinstance(encoder, dict) else None
    if not isinstance(name, str):
        return ""  # reported when the file is examined
    try:
        parse_encoder(name)
    except UserError as error:  # a checkpoint file of the user; the recipe holds only its name
        raise UserError(f"{file} was trained for {name}; name that encoder, with its path: --encoder {name}") from error
    return name


def _conflict(request: RunRequest, jobs: Iterable[Job], needed: Mapping[str, str]) -> str:
    """Return the error for methods whose weights need different encoders, with one command for each encoder."""
    free = [job.label for job in jobs if job.label not in needed]
    lines = ["the methods' weights need different encoders; run them one by one:"]
    for encoder in dict.fromkeys(needed.values()):
        with_it = [label for label, one in needed.items() if one == encoder]
        names = {name for label in with_it for name in re.findall(r"[\w-]+", label)}  # of bases, too
        weights = tuple(text for text in request.weights if text.partition("=")[0] in names)
        lines.append("  " + command(request, methods=",".join(with_it + free), encoder=encoder, weights=weights))
    return "\n".join(lines)
