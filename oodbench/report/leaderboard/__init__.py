"""The leaderboard: measured and published results on one static page, each row with the evidence for its numbers."""

from oodbench.report.leaderboard.page import TITLE, write
from oodbench.report.leaderboard.sources import CollectedResults, collect

__all__ = ["TITLE", "CollectedResults", "collect", "write"]
