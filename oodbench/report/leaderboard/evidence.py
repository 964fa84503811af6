"""Evidence for the numbers of a row: how far they were checked when the page was built."""

from __future__ import annotations

from collections.abc import Collection

VERIFIED, MEASURED, IMPORTED = "verified", "measured", "imported"
SEVERAL, ONE, FAILED = "quoted: several sources", "quoted: one source", "failed verification"

MEANING = {  # the strongest evidence first
    VERIFIED: "A run of oodbench. Every number was computed again from its scores per image when this page was built.",
    MEASURED: "A run of oodbench. Its scores per image are not here, so that its numbers could not be computed again.",
    IMPORTED: "Scores of another program, read by oodbench import, which computed the metrics. A click on a number "
    "shows whether its scores per image are here, so that it was computed again.",
    SEVERAL: "Read in publications; two or more agree.",
    ONE: "Read in one publication. Nobody repeated it here.",
    FAILED: "The stored numbers are not those of the scores per image, or the result is damaged. No number is shown.",
}


def weakest(found: Collection[str]) -> str:
    """Return the weakest evidence of several results that are averaged."""
    return max(found, key=list(MEANING).index)
