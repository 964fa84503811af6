"""oodbench encoders: check a plugin encoder."""

from __future__ import annotations

import click

from oodbench.cli import options as shared
from oodbench.cli.group import CommandGroup
from oodbench.cli.output import configure_logging, print_contract


@click.group(cls=CommandGroup)
def encoders() -> None:
    """Check an encoder of your own."""


@encoders.command()
@click.argument("encoder")
@shared.VERBOSE
def check(encoder: str, verbose: bool) -> None:
    """Run the contract tests on an encoder of your own: FILE.py, or the NAME of an entry point.

    Exit code 1 if a test fails.
    """
    configure_logging(verbose)
    from oodbench.encoder.contract import run_checks, spec_of

    print_contract(encoder, run_checks(spec_of(encoder)))
