"""Additional steps of `mkdocs`: a page for each method, pages from outside docs/, formulas, the version, and links."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import method_pages

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
os.environ["OODBENCH_CONFIG"] = str(ROOT / "docs")  # which holds no declarations of the user's own

JOINED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REPLACED = {"README.md": "index.md", **JOINED}  # index.md says what the README says, for readers who are there already
METHOD = re.compile(r"methods/([a-z]\w*)\.py")  # on the code host a method's page is its file
MATHJAX = "javascripts/mathjax.js"
SETTINGS = """<script>
MathJax = {
  tex: {inlineMath: [["\\\\(", "\\\\)"]], displayMath: [["\\\\[", "\\\\]"]]},
  options: {ignoreHtmlClass: ".*", processHtmlClass: "arithmatex", enableMenu: false}
};
</script>"""


def linked(text: str, *, inside: bool) -> str:
    """Markdown with its links as the site needs them; `inside`: the page is in docs/."""

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        outside = target.removeprefix("../") if inside else target
        is_outside = inside == target.startswith("../")
        if outside in REPLACED and is_outside:
            target = REPLACED[outside]
        elif (method := METHOD.fullmatch(outside)) and is_outside:
            target = f"methods/{method[1]}.md"
        elif not inside:
            target = target.removeprefix("docs/")
        return f"]({target}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", moved, text)


def on_config(config: MkDocsConfig) -> None:
    """Show the version, and list the methods' pages after their overview."""
    if not config.repo_url:
        config.edit_uri = None
    config.copyright = f"oodbench {version('oodbench')}"
    [section] = [entry for entry in config.nav or [] if "Methods" in entry]
    section["Methods"] += [
        {f"{group[0].upper()}{group[1:]}": [{info.title: f"methods/{info.name}.md"} for info in infos]}
        for group, infos in method_pages.built_in().items()
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of methods, the pages that the code host wants at the top, and MathJax."""
    import mathjax
    from mkdocs.structure.files import File

    for name, joined in JOINED.items():
        text = linked((ROOT / name).read_text(encoding="utf-8"), inside=False)
        files.append(File.generated(config, joined, content=text))
        files.src_uris[joined].edit_uri = f"../{name}"
    for infos in method_pages.built_in().values():
        for info in infos:
            files.append(File.generated(config, uri := f"methods/{info.name}.md", content=method_pages.page(info)))
            files.src_uris[uri].edit_uri = f"../methods/{info.name}.py"
    [folder] = mathjax.__path__
    files.append(File.generated(config, MATHJAX, abs_src_path=f"{folder}/static/mathjax/es5/tex-svg.js"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of docs/ lead to the pages that joined."""
    generated = page.file.src_uri in JOINED.values() or page.file.src_uri.startswith("methods/")
    return markdown if generated else linked(markdown, inside=True)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Load MathJax, two megabytes, where there are formulas."""
    from mkdocs.utils import get_relative_url

    if 'class="arithmatex"' not in html:
        return html
    return f'{html}{SETTINGS}<script src="{get_relative_url(MATHJAX, page.url)}" defer></script>'
