"""Page: tables -> one self-contained HTML file that sorts, filters and tells where each cell comes from."""

from oodbench.page.gallery import Source
from oodbench.page.rendering import render

__all__ = ["Source", "render"]
