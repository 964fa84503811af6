"""Texts in CSV files: no name starts a formula, breaks a row, or moves a terminal's cursor."""

from __future__ import annotations

from oodbench.printable import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a text


def csv_text(value: object) -> object:
    r"""A value for a cell: a text is printable, and one that a spreadsheet would take for a formula begins with `'`.

    A line break in a name would end the row for whoever reads lines, and csv.writer does not quote a lone `\r`.
    """
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)
