"""oodbench store."""

from __future__ import annotations

from pathlib import Path

import click

from oodbench.cli import options as shared
from oodbench.cli.group import CommandGroup
from oodbench.cli.output import say
from oodbench.errors import UserError


@click.group(cls=CommandGroup)
def store() -> None:
    """List or shrink the store of embeddings and scores."""


@store.command("ls")
@shared.STORE
def store_ls(store: Path | None) -> None:
    """List what is stored, by kind, with sizes."""
    from oodbench.cli import listings
    from oodbench.storage.store import Store, default_root

    say(listings.store(Store(store or default_root())))


@store.command("gc")
@shared.STORE
@click.option("--max-size", help="Keep at most this much, removing the least recently used first: 500MB, 20GB.")
@click.option("--unused-days", type=float, help="Remove what has not been used for this many days.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
def store_gc(store: Path | None, max_size: str | None, unused_days: float | None, dry_run: bool) -> None:
    """Remove the least recently used entries. Anything removed is computed again when it is needed."""
    from oodbench.cli import listings
    from oodbench.storage.store import Store, default_root

    if max_size is None and unused_days is None:
        raise UserError("give a limit: --max-size 20GB, or --unused-days 30")
    limit = None if max_size is None else listings.parse_bytes(max_size)
    removed = Store(store or default_root()).collect(limit, unused_days, dry=dry_run)
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {len(removed)} entries, {listings.bytes_text(sum(entry.bytes for entry in removed))}")
