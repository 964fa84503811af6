"""The notebook runs offline from beginning to end, with the output that its text states."""

from __future__ import annotations

import json
import os
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOK = DOCS / "notebooks" / "first-run.ipynb"


def test_notebook_is_a_page() -> None:
    """The site shows the title, a link to the file, and the cells in their order."""
    page = runpy.run_path(str(DOCS / "notebook_pages.py"))["page"](NOTEBOOK)
    assert page.startswith("# ") and "](first-run.ipynb)" in page
    *texts, code = page.split("```python\n")
    assert len(texts) == sum(cell["cell_type"] == "code" for cell in json.loads(NOTEBOOK.read_text())["cells"])
    assert page.index("oodbench.run(") < page.index("oodbench.Detector(") < page.index("oodbench.report(")
    assert "## Next" in code


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder: no cell fails, both figures are drawn, and the numbers are those of README.md."""
    import nbformat
    from nbclient import NotebookClient

    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # a download fails
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": os.fspath(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) == 2
    assert "True" in [data.get("text/plain") for data in shown], "the loaded detector has other scores"
    [average] = [data["text/plain"] for data in shown if data.get("text/plain", "").startswith("metric ")]
    found = re.search(r"^maxlogit +(\d+\.\d+) +(\d+\.\d+)$", average, re.MULTILINE)
    assert found and [float(one) for one in found.groups()] == pytest.approx([97.85, 9.08], abs=0.3)
    [report] = [data["text/html"] for data in shown if "Average" in data.get("text/html", "")]
    assert "97.85" in report and "CLIPN" in report
    printed = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    accepted = {kind: float(percent) for kind, percent in re.findall(r"accepted (ID|OOD) images: ([\d.]+)%", printed)}
    assert accepted["ID"] > 90 > 50 > accepted["OOD"]
    assert "\\label{tab:glyphs}" in printed and (tmp_path / "results.html").stat().st_size > 10_000
    assert len(list((tmp_path / "results").rglob("*.json"))) == 7, "five methods and two scales of Energy"
