"""Images on disk for tests: photos of known classes, new images, and the names of the classes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from oodbench.data.glyphs import render, world


def lay(folder: Path, known: int, new: int) -> Path:
    """Write photos/ with known images, new/ with known and unknown images, and names.txt; return the folder."""
    for name, split, n in (("photos", "id-train", known), ("new", "id-test", new), ("new", "letters", new)):
        (folder / name).mkdir(exist_ok=True)
        for i in range(n):
            Image.fromarray(render.image(split, i)).save(folder / name / f"{split}-{i:03d}.png")
    (folder / "names.txt").write_text("\n".join(world.CLASSES) + "\n")
    return folder
