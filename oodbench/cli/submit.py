"""oodbench submit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from oodbench.cli import options as shared
from oodbench.cli.help import Command, EncoderNames, Names, examples, method_names, set_names
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, note, say
from oodbench.errors import ProblemList, UserError, did_you_mean, raise_all
from oodbench.storage.files import expand

if TYPE_CHECKING:
    from oodbench.results import Result

# What a submitter states: option, the question in a terminal, and an example for the command to paste.
_ASKED = {
    "handle": ("Handle, the name of your folder in the leaderboard", "jane"),
    "authors": ("Names and affiliations", "Jane Doe, University of X"),
    "paper": ("Paper: URL, DOI, arXiv number, or none", "2401.00001"),
    "code": ("Code: URL", "https://github.com/OWNER/NAME"),
    "licence": ("Licence of the submitted scores", "CC-BY-4.0"),
    "hardware": ("Hardware", "1x A100 80 GB"),
}


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench submit results --methods mcm --handle jane",
        "oodbench submit --check submissions",
        "oodbench submit --workflow > .github/workflows/leaderboard.yml",
    ),
)
@click.argument("results", nargs=-1, type=FOLDER)
@click.option("--methods", default="", type=Names(method_names), help="Methods or labels to submit. Default: all.")
@click.option("--id", "ids", default="", type=Names(set_names), help="Benchmarks or ID sets to submit. Default: all.")
@click.option("--encoder", "encoders", default="", type=EncoderNames(), help="Encoders to submit. Default: all.")
@click.option("--handle", default="", help="Your folder in the leaderboard, such as the name of your account.")
@click.option("--authors", default="", help="Names and affiliations.")
@click.option("--who", "authors", default="", hidden=True)  # the former name
@click.option("--paper", default="", help="URL, DOI or arXiv number of the method's paper, or none.")
@click.option("--code", default="", help="URL of the code that computed the scores.")
@click.option("--licence", "--license", default="", help="Licence of the submitted files: CC-BY-4.0.")
@click.option("--hardware", default="", help="Hardware that computed the scores: '1x A100 80 GB'.")
@click.option("--not-tuned-on-test-data", is_flag=True, help="State that no hyper-parameter was tuned on test sets.")
@shared.PLUGINS
@click.option("-o", "--output", type=FOLDER, default="submissions", show_default=True, help="Folder of submissions.")
@click.option("--replace", is_flag=True, help="Replace existing submissions.")
@click.option("--check", "checked", type=FOLDER, help="Check the submissions in this folder instead.")
@click.option("--workflow", is_flag=True, help="Print a GitHub workflow that checks submissions and builds the page.")
@shared.VERBOSE
def submit(
    results: tuple[Path, ...],
    checked: Path | None,
    workflow: bool,
    output: Path,
    replace: bool,
    plugins: tuple[Path, ...],
    verbose: bool,
    **options: Any,
) -> None:
    """Check results and write them as submissions to a leaderboard.

    RESULTS are folders of results, or result files. Every number is recomputed from the scores per image. If a result
    has a problem, all problems are listed and nothing is written. docs/submitting.md explains the requirements.
    """
    configure_logging(verbose)
    if bool(results) + (checked is not None) + workflow != 1:
        raise UserError(
            "give one of: results to submit, --check FOLDER, --workflow; such as\n"
            "  oodbench submit results --handle jane"
        )
    if workflow:
        say((Path(__file__).parents[1] / "report" / "leaderboard-workflow.yml").read_text(encoding="utf-8").rstrip())
        return
    if checked is not None:
        sys.exit(_check(expand(checked)))
    from oodbench.report import submission

    found = _chosen(results, options)
    problems = ProblemList()
    problems.problems += _problems(found, plugins)
    if problems.problems or not sys.stdin.isatty():
        problems.attempt(_complete, results, options)
    raise_all(problems.problems)
    statement = submission.Statement(
        **{name: options[name] or _asked(name, question) for name, (question, _) in _ASKED.items()},
        tuned_on_test_data=not (
            options["not_tuned_on_test_data"]
            or click.confirm("Do you state that no hyper-parameter was tuned on test sets?")
        ),
    )
    written = submission.write(statement, found, expand(output), replace=replace)
    for folder in written:
        say(str(folder))
    note(
        f"wrote {len(written)} submission{'s' * (len(written) > 1)}; next: commit them in the leaderboard's repository"
    )


def _asked(name: str, question: str) -> str:
    """Ask a question in the terminal until the answer is valid."""
    from oodbench.report.submission import problem

    def checked(text: str) -> str:
        if wrong := problem(name, text):
            raise click.BadParameter(wrong)
        return text

    return str(click.prompt(question, value_proc=checked))


def _complete(results: Sequence[Path], options: dict[str, Any]) -> None:
    """Raise UserError, with the command to paste, if something that a submitter states is missing."""
    missing = [f"--{name}" for name in _ASKED if not options[name]]
    missing += [] if options["not_tuned_on_test_data"] else ["--not-tuned-on-test-data"]
    if missing:
        stated = [word for name, (_, example) in _ASKED.items() for word in (f"--{name}", options[name] or example)]
        command = ["oodbench", "submit", *map(str, results), *stated, *_other_options(), "--not-tuned-on-test-data"]
        raise UserError(f"missing: {', '.join(missing)}; write\n  {shlex.join(command)}")


def _other_options() -> Iterator[str]:
    """Yield the given options as command-line words, except those in _ASKED."""
    context = click.get_current_context()
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not given or name in (*_ASKED, "results", "not_tuned_on_test_data"):
            continue
        value = context.params[name]
        for one in value if isinstance(value, tuple) else (value,):
            yield from (param.opts[-1],) if one is True else (param.opts[-1], str(one))


def _chosen(results: Sequence[Path], options: dict[str, Any]) -> list[tuple[Path, Result]]:
    """Return the selected results. Raise UserError for damaged files, and for selections without results."""
    from oodbench.method.parameters import parse_names, split
    from oodbench.report.options import is_named, names_of
    from oodbench.results import may_be_result, read, row_files

    problems, found = ProblemList(), list[tuple[Path, "Result"]]()
    for place in map(expand, results):
        files = [*filter(may_be_result, row_files(place))] if place.is_dir() else [place] if place.exists() else []
        if not files:
            problems.problems.append(f"no results in {place}; make some with: oodbench run --results {place}")
        known = {path.resolve() for path, _ in found}  # a file and its folder may both be named
        found += [(p, row) for p in files if p.resolve() not in known and (row := problems.attempt(read, p))]
    raise_all(problems.problems)
    for option, wanted in (
        ("methods", {name.strip() for name in split(options["methods"], ",")}),
        ("id", {*parse_names(options["ids"])}),
        ("encoder", {*parse_names(options["encoders"])}),
    ):
        there = {name for _, row in found for name in names_of(row, option)}
        for name in sorted(wanted):
            if not any(is_named(row, option, name) for _, row in found):
                problems.problems.append(f"--{option}: no results of '{name}'{did_you_mean(name, there)}")
        found = [(p, row) for p, row in found if not wanted or any(is_named(row, option, name) for name in wanted)]
    raise_all(problems.problems)
    return found


def _problems(found: Sequence[tuple[Path, Result]], plugins: Sequence[Path]) -> Iterator[str]:
    """Yield the problems that exclude results from a leaderboard, each with its file."""
    from oodbench.cli.progress import spinner
    from oodbench.report import eligibility

    with spinner("recomputing every number from the scores"):
        for path, row in found:
            yield from (f"{path}: {row.label}: {problem}" for problem in eligibility.problems(path, row))
        yield from _contract_problems([row for _, row in found], plugins)


def _contract_problems(rows: Sequence[Result], plugins: Sequence[Path]) -> Iterator[str]:
    """Yield methods that break the contract or cannot be checked; built-in methods are checked by the test suite."""
    from oodbench.method import registry

    known = registry.methods(plugins)
    sources = {row.method: row.source for row in rows if not row.imported and row.status == "ok"}
    for name, source in sources.items():
        info = known.get(name)
        if info is None:
            yield f"{name} is not installed; give its file, so that its contract is checked: --plugin {name}.py"
        elif info.origin == "built-in":
            continue
        elif info.source != source:
            yield f"{name}: {info.path} is not the source that computed its result: run it again"
        else:
            from oodbench.pipeline.contract import run_checks

            broken = [f"{check}: {problem}" for check, problem in run_checks(info) if problem]
            yield from (f"{name} breaks the contract: {problem}" for problem in broken)


def _check(root: Path) -> int:
    """Check submissions, and print a line on each. Return exit code 1 if one fails."""
    from oodbench.report import submission

    checks = list(submission.check(root))
    if not checks:
        note(f"{root} has no submissions; create some with: oodbench submit results --handle NAME")
    for one in checks:
        label = f"{one.label}: " if one.label else ""
        say(f"{one.folder}: {label}{'FAILS' if one.problems else 'OK'}")
        for problem in one.problems:
            say(f"  {problem}")
    wrong = sum(bool(one.problems) for one in checks)
    say(f"{len(checks) - wrong} of {len(checks)} submissions OK")
    return 1 if wrong else 0
