"""Draw docs/images/, the figures of the project's own results on glyphs, small enough for the pages: `make figures`."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from oodbench.report.figures import plots
from oodbench.report.tables.grouping import from_folder

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {"overview": "", "roc": "", "densities": "", "histogram": "maxlogit", "ranks": "", "mistakes": "maxlogit"}
DPI = 140
SIZE = 150_000  # bytes of the largest file


def main() -> None:
    """Write one figure of each kind."""
    found = from_folder(ROOT / "results/reference/glyphs")
    folder = ROOT / "docs/images"
    folder.mkdir(exist_ok=True)
    for kind, method in SHOWN.items():
        rows = [row for row in found.results if method in ("", row.method)]
        (plot,) = plots(rows, found.paths, kinds=[kind])
        path = folder / f"{plot.name}.png"
        with Image.open(io.BytesIO(plot.png(DPI))) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size > SIZE:
            raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {SIZE:,}")


if __name__ == "__main__":
    main()
