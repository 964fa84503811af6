"""Draw docs/images/ from the project's own results on glyphs: the figures, and a picture of the HTML report page.

`make figures` runs it. The picture of the page needs Chromium.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from oodbench.cli import main as oodbench
from oodbench.report.figures import plots
from oodbench.report.tables.grouping import from_folder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results/reference/glyphs"
IMAGES = ROOT / "docs/images"
SHOWN = {"overview": "", "roc": "", "densities": "", "histogram": "maxlogit", "ranks": "", "mistakes": "maxlogit"}
DPI = 140
WINDOW = (1300, 1000)  # pixels of the picture of the HTML page
SIZE = 150_000  # bytes of the largest file


def main() -> None:
    """Write one figure of each kind, and html-report.png."""
    found = from_folder(RESULTS)
    IMAGES.mkdir(exist_ok=True)
    for kind, method in SHOWN.items():
        rows = [row for row in found.results if method in ("", row.method)]
        (plot,) = plots(rows, found.paths, kinds=[kind])
        save(io.BytesIO(plot.png(DPI)), plot.name)
    with tempfile.TemporaryDirectory() as folder:
        save(screenshot(Path(folder)), "html-report")


def screenshot(folder: Path) -> Path:
    """Open the page of `oodbench report --format html` in headless Chromium; return the picture of its upper part."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("no Chromium is installed; Debian: apt-get install chromium")
    page, picture = folder / "page.html", folder / "page.png"
    oodbench(
        ["report", "--results", str(RESULTS), "--format", "html", "--output", str(page), "--with-figures"],
        standalone_mode=False,
    )
    window = f"--window-size={WINDOW[0]},{WINDOW[1]}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window, f"--screenshot={picture}"]
    subprocess.run([chromium, *flags, page.as_uri()], check=True, capture_output=True)
    return picture


def save(source: io.BytesIO | Path, name: str) -> None:
    """Save an image with 256 colours; exit if the file is large."""
    path = IMAGES / f"{name}.png"
    with Image.open(source) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > SIZE:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {SIZE:,}")


if __name__ == "__main__":
    main()
