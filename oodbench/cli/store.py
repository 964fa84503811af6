"""oodbench store."""

from __future__ import annotations

from pathlib import Path

import click

from oodbench.cli.common import FOLDER, CommandGroup, say
from oodbench.errors import UserError


@click.group(cls=CommandGroup)
def store() -> None:
    """Show and bound the store of embeddings and scores."""


@store.command("ls")
@click.option("--store", "root", type=FOLDER, help="Default: $OODBENCH_STORE, else the user's cache folder.")
def store_ls(root: Path | None) -> None:
    """List what is stored, by kind, with sizes."""
    from oodbench.cli import listings
    from oodbench.storage.store import Store, default_root

    say(listings.store(Store(root or default_root())))


@store.command("gc")
@click.option("--store", "root", type=FOLDER, help="Default: $OODBENCH_STORE, else the user's cache folder.")
@click.option("--max-size", help="Keep at most this much, dropping what was used longest ago: 500MB, 20GB.")
@click.option("--unused-days", type=float, help="Drop what has not been used for so many days.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def store_gc(root: Path | None, max_size: str | None, unused_days: float | None, dry_run: bool) -> None:
    """Remove what was used longest ago. Anything removed is made again when it is needed."""
    from oodbench.cli import listings
    from oodbench.storage.store import Store, default_root

    if max_size is None and unused_days is None:
        raise UserError("say what to keep: --max-size 20GB, or --unused-days 30")
    limit = None if max_size is None else listings.parse_bytes(max_size)
    gone = Store(root or default_root()).collect(limit, unused_days, dry=dry_run)
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {len(gone)} entries, {listings.bytes_text(sum(e.bytes for e in gone))}")
