"""oodbench leaderboard."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, note, print_errors
from oodbench.errors import UserError, has_credentials, raise_all, redact_url
from oodbench.storage.files import expand, real_path


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench leaderboard --output site",
        "oodbench leaderboard results submissions --output site",
        "oodbench leaderboard submissions --no-quoted --title 'OOD detection in our lab' --output site",
    ),
)
@click.argument("results", nargs=-1, type=FOLDER)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the page: index.html, leaderboard.json.")
@click.option("--quoted/--no-quoted", default=True, help="Include published numbers. Default: include.")
@click.option(
    "--reference/--no-reference",
    default=True,
    help="Include the project's own results on glyphs. Default: include.",
)
@click.option("--title", default="", help="Title of the page.")
@click.option(
    "--repository", default="", metavar="URL", help="Web page of the current folder, for links to submissions."
)
@click.option(
    "--allow-failed", is_flag=True, help="Exit with code 0 even if a result is damaged or fails verification."
)
@shared.VERBOSE
def leaderboard(
    results: tuple[Path, ...],
    output: Path,
    quoted: bool,
    reference: bool,
    title: str,
    repository: str,
    allow_failed: bool,
    verbose: bool,
) -> None:
    """Build a static page that ranks results and published numbers.

    RESULTS are folders of results or submissions. Every number of a result with scores per image is recomputed; a
    result whose numbers differ is listed as failed, without numbers, and the exit code is 1.
    docs/leaderboard.md explains the page.
    """
    configure_logging(verbose)
    from oodbench.cli.progress import spinner
    from oodbench.data.paths import reference as own
    from oodbench.report import leaderboard as board
    from oodbench.report.submission import web_host
    from oodbench.report.tables.published import quotes

    if has_credentials(repository):
        raise UserError(f"--repository {redact_url(repository)} has a user or password, or a token: leave it out")
    if repository and not web_host(repository):
        raise UserError(f"--repository {repository} is not an address such as https://github.com/me/board/tree/main")
    folder = real_path(output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {output} is a file; name a folder, such as --output site")
    shipped = own() if reference else None
    folders = [*map(expand, results), *([shipped] if shipped else [])]
    if not folders and not quoted:
        raise UserError("nothing to show: name a folder of results, or leave out --no-quoted")
    with spinner("verifying the results"):
        found = board.collect(folders, folder)
        published = list(quotes().values()) if quoted else []
        if not (found.results or found.unreadable or published):
            raise_all(found.empty)
        count = board.write(folder, found, published, title or board.TITLE, repository)
    for message in found.empty:
        note(f"note: {message}")
    print_errors(*found.failures)
    note(f"wrote {output / 'index.html'} with {count} rows")
    if found.failures:
        note(f"{len(found.failures)} files do not count; correct or remove them, or add --allow-failed")
        sys.exit(0 if allow_failed else 1)
