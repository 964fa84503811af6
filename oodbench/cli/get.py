"""oodbench get: fetch released weights, word lists and datasets to where runs find them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli import options as shared
from oodbench.cli.datasets import get as get_datasets
from oodbench.cli.group import CommandGroup
from oodbench.cli.help import Names, release_names
from oodbench.cli.options import FOLDER
from oodbench.cli.output import print_errors, say
from oodbench.errors import Missing, UserError, printable, raise_all

if TYPE_CHECKING:
    from oodbench.data.released import Release

FROM = click.option(
    "--from", "given", type=FOLDER, help="File or folder that you already have; it is checked and copied."
)


class _Kinds(CommandGroup):
    """One command per kind. For a name without its kind, the error shows the command to paste."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from oodbench.data import catalog
        from oodbench.data.released import KINDS, releases

        if args and args[0] not in self.commands:
            name = args[0]
            kinds = [kind for kind in KINDS for one in releases(kind).values() if name in (one.name, one.method)]
            kinds += ["datasets"] if name in {*catalog.datasets(), *catalog.benchmarks()} else []
            if kinds:
                commands = [f"\n  oodbench get {kind} {name}" for kind in dict.fromkeys(kinds)]
                raise UserError(f"say what {name} is:{''.join(commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Kinds)
def get() -> None:
    """Get released weights, word lists and image sets.

    Files are saved in the data folder, and the command that uses them is printed.
    """


get.add_command(get_datasets, "datasets")


@get.command()
@click.argument("names", type=Names(lambda: release_names("weights"), several=False), nargs=-1, metavar="[NAME]...")
@FROM
@shared.DATA
@shared.WIDE
def weights(names: tuple[str, ...], given: Path | None, data: Path | None, wide: bool) -> None:
    """Get weights that the authors of a method released; without NAME, list them.

    NAME is a method (its first training) or one of its trainings, such as clipn-2. Files are saved in weights/NAME of
    the data folder, where runs find them without --weights. Files in Google Drive need the package gdown (the extra
    `drive`); without it, or if Drive refuses, manual instructions are printed. Rerun the same command to resume. Exit
    code 1 if a download failed, 3 if a file must be downloaded manually.
    """
    _get("weights", names, given, data, wide)


@get.command()
@click.argument("names", type=Names(lambda: release_names("words"), several=False), nargs=-1, metavar="[NAME]...")
@FROM
@shared.DATA
@shared.WIDE
def words(names: tuple[str, ...], given: Path | None, data: Path | None, wide: bool) -> None:
    """Get word lists that the authors of a method released; without NAME, list them.

    Files are saved in words/NAME of the data folder. Exit codes are those of `get weights`.
    """
    _get("words", names, given, data, wide)


def _get(kind: str, names: tuple[str, ...], given: Path | None, data: Path | None, wide: bool) -> None:
    """Get releases of a kind, and print the path of each and a command that uses it."""
    from oodbench.cli import listings
    from oodbench.cli.progress import ProgressBars
    from oodbench.data.paths import data_root
    from oodbench.data.released import fetch_release, release

    root = data_root(data)
    if not names:
        say(listings.releases(kind, root, shared.width(wide)))
        return
    if given and len(names) > 1:
        raise UserError(f"--from {given} is one release, not {', '.join(names)}; name one")
    problems: list[str] = []
    wanted: dict[str, Release] = {}
    for name in names:
        try:
            found = release(kind, name)
            wanted[found.name] = found
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    codes = []
    with ProgressBars("bytes") as bars:
        for one in wanted.values():
            try:
                path = fetch_release(one, root, given, bars.count)
                say(printable(f"{one.name}: {one.title}: {path}"))
                say(f"  not read by a run: {one.unread}" if one.unread else f"  {_usage(one, path, data)}")
            except UserError as error:
                codes.append(3 if isinstance(error, Missing) else 1)
                print_errors(*(f"{one.name}: {problem}" for problem in error.problems))
    if codes:
        sys.exit(min(codes))


def _usage(one: Release, path: Path, data: Path | None) -> str:
    """Return a command that uses a release."""
    words = ["oodbench", "run", "--id", "imagenet1k", *(["--data", str(data)] if data else [])]
    if one.kind == "words":
        words += ["--methods", one.method, "--set", f"{one.method}.words={path.absolute()}"]
    else:
        words += ["--methods", f"{one.method},mcm"]
        if one.repeat > 1:
            words += ["--weights", f"{one.method}={one.name}"]
    return shlex.join(words)
