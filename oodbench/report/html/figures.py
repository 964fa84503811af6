"""Gallery: the pictures below the tables, as data in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.report.tables.table import Table

if TYPE_CHECKING:
    from oodbench.report.figures import Heading, Picture

MOST = 12  # tables with pictures unless they are asked for: of more the page takes minutes, and many megabytes
SHOWN, FINE = 110, 165  # pixels per inch of the page, and of drawings, which stay sharp on fine screens
KINDS = {
    "overview": "Overview",
    "roc": "ROC curves",
    "histogram": "Histograms of the scores",
    "ranks": "Rank correlation",
    "mistakes": "What each method gets most wrong",
}


@dataclass(frozen=True)
class FigureSource:
    """Where rows come from: their files by digest, and the results folder; None: from MLflow.

    `data` is the folder of the datasets, for pictures of their images; None: where `oodbench run` looks.
    """

    paths: Mapping[str, Path]
    results: Path | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Framed:
    """A picture as a data: URI; size in pixels of the page."""

    title: str
    caption: str
    kind: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Wall:
    """The pictures of one kind below one table."""

    title: str
    pictures: tuple[Framed, ...]

    @property
    def small(self) -> bool:
        """Whether two fit beside each other and are still read."""
        return len(self.pictures) > 1 and all(one.width < 800 for one in self.pictures)

    @property
    def bytes(self) -> int:
        """What they add to the page."""
        return sum(len(one.source) for one in self.pictures)


@dataclass(frozen=True)
class FigureGallery:
    """Walls by number of the table; `reason` says why there are none."""

    walls: Mapping[int, tuple[Wall, ...]] = field(default_factory=dict)
    reason: str = ""

    @property
    def count(self) -> int:
        """All pictures."""
        return sum(len(wall.pictures) for walls in self.walls.values() for wall in walls)

    @property
    def bytes(self) -> int:
        """What the pictures add to the page."""
        return sum(wall.bytes for walls in self.walls.values() for wall in walls)


def gallery(tables: Sequence[Table], source: FigureSource, sets: Sequence[str], wanted: bool | None) -> FigureGallery:
    """Pictures of every table with scores per image, of some OOD sets; all when empty."""
    if wanted is False:
        return FigureGallery(reason="left out, as --no-figures asks")
    if wanted is None and len(tables) > MOST:
        return FigureGallery(reason=f"left out of a page with more than {MOST} tables; --with-figures puts them in")
    if not any(_there(table, source.paths) for table in tables):
        return FigureGallery(reason="there are none, as no row has its scores per image beside it")
    from oodbench.report.figures.write import headings

    walls = {
        number: tuple(_walls(table, heading, source, sets))
        for number, (table, heading) in enumerate(zip(tables, headings(tables), strict=True), 1)
        if _there(table, source.paths)
    }
    return FigureGallery({number: those for number, those in walls.items() if those})


def _there(table: Table, paths: Mapping[str, Path]) -> bool:
    rows = (row for line in table.lines for row in line.rows if row.digest in paths)
    return any(paths[row.digest].with_suffix(".parquet").is_file() for row in rows)


def _walls(table: Table, heading: Heading, source: FigureSource, sets: Sequence[str]) -> Iterator[Wall]:
    from oodbench.report.figures import pictures

    rows = [row for line in table.lines for row in line.rows]
    found = pictures(rows, source.paths, data=source.data, sets=sets, heading=heading)
    framed = [_framed(one) for one in found]
    for kind, those in groupby(framed, key=lambda one: one.kind):
        yield Wall(KINDS.get(kind, kind), tuple(those))


def _framed(one: Picture) -> Framed:
    """A drawing as PNG with a palette, photographs as WebP: a third of their size, and alike to the eye."""
    from PIL import Image

    photographs = one.kind == "mistakes"
    dpi = SHOWN if photographs else FINE
    out = io.BytesIO()
    with Image.open(io.BytesIO(one.png(dpi))) as image:
        plain = image.convert("RGB")
    if photographs:
        plain.save(out, "WEBP", quality=88)
    else:
        plain.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    source = f"data:image/{'webp' if photographs else 'png'};base64,{base64.b64encode(out.getvalue()).decode()}"
    width, height = (round(pixels * SHOWN / dpi) for pixels in plain.size)
    return Framed(one.title, one.caption, one.kind, source, width, height)
