"""What `mkdocs` does besides: pages that lie outside docs/ join the site, and links to them follow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
JOINED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REPLACED = {"README.md": "index.md", **JOINED}  # index.md says what the README says, for who is there already


def linked(text: str, *, inside: bool) -> str:
    """Markdown with its links as the site needs them; `inside`: the page lies in docs/."""

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        outside = target.removeprefix("../") if inside else target
        if outside in REPLACED and (inside == target.startswith("../")):
            target = REPLACED[outside]
        elif not inside:
            target = target.removeprefix("docs/")
        return f"]({target}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", moved, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that the code host wants at the top."""
    from mkdocs.structure.files import File

    for name, page in JOINED.items():
        text = linked((ROOT / name).read_text(encoding="utf-8"), inside=False)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of docs/ lead to the pages that joined."""
    return markdown if page.file.src_uri in JOINED.values() else linked(markdown, inside=True)
