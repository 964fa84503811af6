"""References: `references.bib` has every work that the project cites, with full author lists, and LaTeX compiles it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from oodbench.cli import main
from oodbench.data import catalog
from oodbench.method import registry
from oodbench.report.formats.bibtex import (
    REFERENCES,
    BibEntry,
    keys_of_benchmark,
    keys_of_dataset,
    keys_of_method,
    references,
    works,
)
from oodbench.report.tables.published import quotes

ROWS = Path(__file__).parents[2] / "results" / "reference" / "glyphs"
OWN = "oodbench"


def full_names(entry: BibEntry) -> list[str]:
    """Authors with a given name of more than an initial."""
    return [name for name in entry.fields["author"].split(" and ") if re.search(r", [A-Z][a-z-]+", name)]


def test_the_file_is_read_to_its_last_entry() -> None:
    text = REFERENCES.read_text(encoding="utf-8")
    assert len(references()) == len(re.findall(r"^@", text, re.MULTILINE)) >= 51
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    written = "\n".join(entry.bibtex() for entry in references().values())
    assert written == re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def test_every_entry_has_authors_title_and_year_and_a_key_made_of_them() -> None:
    for key, entry in references().items():
        assert entry.fields["author"] and "others" not in entry.fields["author"], key
        assert re.fullmatch(r"\{.+\}", entry.fields["title"]) and key.startswith(
            re.sub(r"[^a-z]", "", entry.fields["author"].split(",")[0].lower()) + entry.fields["year"]
        ), key
        assert key.endswith(entry.fields.get("eprint", "")), key


@pytest.mark.slow
def test_every_built_in_method_dataset_and_benchmark_has_full_authors() -> None:
    cited = {name: (info.citation, keys_of_method(name)) for name, info in registry.methods().items()}
    cited |= {name: (found.cite, keys_of_dataset(name)) for name, found in catalog.datasets().items()}
    cited |= {name: (found.cite, keys_of_benchmark(name)) for name, found in catalog.benchmarks().items()}
    assert len(cited) > 90
    for name, (citation, keys) in cited.items():
        assert keys or citation in ("", OWN), name
        for key in keys:
            assert key in references(), f"{name} cites {key}, which references.bib lacks"
            assert full_names(references()[key]), key


def test_every_published_number_names_its_source() -> None:
    assert len(quotes()) > 100
    for quote in quotes().values():
        assert quote.cite and set(quote.cite) <= set(references()), quote.key


def test_every_entry_has_a_venue() -> None:
    for key, entry in references().items():
        assert {"booktitle", "journal", "institution", "howpublished"} & set(entry.fields), key
        assert re.fullmatch(r"\d+--\d+", entry.fields.get("pages", "1--2")), key
        assert entry.latex().count("arXiv:") == ("eprint" in entry.fields), key
    (own,) = works("Doe et al., arXiv:3101.00001", "Mine")
    assert own.fields["howpublished"] == "arXiv preprint arXiv:3101.00001"


@pytest.mark.slow
def test_every_entry_is_cited() -> None:
    cited = {key for quote in quotes().values() for key in quote.cite}
    cited |= {key for name in registry.methods() for key in keys_of_method(name)}
    cited |= {key for name in catalog.datasets() for key in keys_of_dataset(name)}
    cited |= {key for name in catalog.benchmarks() for key in keys_of_benchmark(name)}
    assert cited == set(references())


def test_citations_get_the_known_entry_or_a_parsed_one() -> None:
    (known,) = works("Wang et al., ICCV 2023, arXiv:2308.12213", "Mine")
    assert known is references()["wang2023-2308.12213"] and "Teaching CLIP to Say No" in known.fields["title"]
    assert known.fields["author"].split(" and ") == ["Wang, Hualiang", "Li, Yi", "Yao, Huifeng", "Li, Xiaomeng"]
    (other_year,) = works("Wang et al., preprint 2024, arXiv:2308.12213")
    assert other_year is known
    (own,) = works("Doe et al., CVPR 2031, arXiv:3101.00001", "My & method")
    assert own.key == "doe2031-3101.00001"
    assert own.fields["author"] == "Doe and others" and own.fields["title"] == r"{My \& method}"


def test_a_reference_in_a_document_of_its_own() -> None:
    assert references()["lecun1998-proc-ieee"].latex() == (
        r"Yann LeCun, L{\'e}on Bottou, Yoshua Bengio, Patrick Haffner. Gradient-Based Learning Applied to Document "
        "Recognition. Proceedings of the IEEE 1998."
    )
    (own,) = works("Doe et al., CVPR 2031, arXiv:3101.00001", "Mine")
    assert own.latex() == "Doe et al. Mine. CVPR 2031. arXiv:3101.00001."
    assert references()["recht2019-1902.10811"].latex().count("ImageNet? International") == 1


@pytest.mark.slow
def test_bib_and_cite_compile_with_bibtex(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None or shutil.which("bibtex") is None:
        pytest.skip("pdflatex and bibtex are not installed (Debian: texlive-latex-base texlive-latex-recommended)")

    def report(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["report", "--results", str(ROWS), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    table = report("--format", "latex", "--cite")
    (tmp_path / "references.bib").write_text(report("--bib"), encoding="utf-8")
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\n\\usepackage[margin=2cm]{geometry}\n\\usepackage[T1]{fontenc}\n"
        f"\\usepackage{{booktabs}}\n\\begin{{document}}\n{table}\n"
        "\\bibliographystyle{plain}\n\\bibliography{references}\n\\end{document}\n",
        encoding="utf-8",
    )
    for command in (["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"], ["bibtex", "page"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Warning" not in done.stdout, done.stdout
    bibliography = (tmp_path / "page.bbl").read_text(encoding="utf-8")
    assert "Yifei Ming, Ziyang Cai, Jiuxiang Gu, Yiyou Sun, Wei Li, and Yixuan" in re.sub(r"\s+", " ", bibliography)
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout


@pytest.mark.slow
def test_every_entry_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None or shutil.which("bibtex") is None:
        pytest.skip("pdflatex and bibtex are not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    shutil.copy(REFERENCES, tmp_path / "references.bib")
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\n\\begin{document}\n\\nocite{*}\n"
        "\\bibliographystyle{plain}\n\\bibliography{references}\n\\end{document}\n",
        encoding="utf-8",
    )
    for command in (["pdflatex", "-halt-on-error", "page"], ["bibtex", "page"], ["pdflatex", "-halt-on-error", "page"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert command[0] != "bibtex" or "Warning" not in done.stdout, done.stdout
    assert (tmp_path / "page.bbl").read_text(encoding="utf-8").count("\\bibitem") == len(references())
