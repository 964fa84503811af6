"""Evidence for the numbers of a row: the checks they passed when the page was built."""

from __future__ import annotations

from collections.abc import Collection

VERIFIED, MEASURED, IMPORTED = "verified", "measured", "imported"
SEVERAL, ONE, FAILED = "quoted: several sources", "quoted: one source", "failed verification"

MEANING = {  # the strongest evidence first
    VERIFIED: "A run of oodbench. Every number was recomputed from its scores per image when this page was built.",
    MEASURED: "A run of oodbench. Its scores per image were not available, so its numbers could not be recomputed.",
    IMPORTED: "Scores of another program. The metrics were computed by oodbench import. A click on a number "
    "shows whether its scores per image are here, so that it was computed again.",
    SEVERAL: "Numbers from publications; two or more agree.",
    ONE: "Numbers from one publication, not reproduced here.",
    FAILED: "The stored numbers do not match the scores per image, or the result is damaged. No number is shown.",
}


def weakest(found: Collection[str]) -> str:
    """Return the weakest evidence of several results that are averaged."""
    return max(found, key=list(MEANING).index)
