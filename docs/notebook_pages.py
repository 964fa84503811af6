"""A page of the site for each notebook, with its text as it is and its code in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

NOTEBOOKS = Path(__file__).parent / "notebooks"


def page(notebook: Path) -> str:
    """Return a notebook as Markdown, with a link to the file below its title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in sources]
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, f"[Download this notebook]({notebook.name})", rest.strip(), *parts[1:]]) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the notebooks."""
    from mkdocs.structure.files import File

    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, uri := f"notebooks/{notebook.stem}.md", content=page(notebook)))
        files.src_uris[uri].edit_uri = f"notebooks/{notebook.name}"
    return files
