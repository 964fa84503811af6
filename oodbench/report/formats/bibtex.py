"""Bibliography: BibTeX of the methods and datasets in tables, from what their declarations cite.

A citation reads `Wang et al., ICCV 2023, arXiv:2308.12213`; of several, `; ` between them, each may say why it is there
(`subset by Huang & Li (MOS), CVPR 2021, ...`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from oodbench.report.formats.latex import escape
from oodbench.report.tables.table import Table

TITLES = {
    "1311.3618": "Describing Textures in the Wild",
    "1409.0575": "ImageNet Large Scale Visual Recognition Challenge",
    "1506.03365": "LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in the Loop",
    "1610.02136": "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
    "1706.02690": "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
    "1707.06642": "The iNaturalist Species Classification and Detection Dataset",
    "1902.10811": "Do ImageNet Classifiers Generalize to ImageNet?",
    "1903.12261": "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    "1905.13549": "Learning Robust Global Representations by Penalizing Local Predictive Power",
    "1907.07174": "Natural Adversarial Examples",
    "1911.11132": "Scaling Out-of-Distribution Detection for Real-World Settings",
    "2006.16241": "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution Generalization",
    "2010.03759": "Energy-based Out-of-distribution Detection",
    "2105.01879": "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space",
    "2109.02748": "Zero-Shot Out-of-Distribution Detection Based on the Pre-trained Model CLIP",
    "2110.06207": "Open-Set Recognition: a Good Closed-Set Classifier is All You Need?",
    "2111.12797": "ReAct: Out-of-distribution Detection With Rectified Activations",
    "2203.10807": "ViM: Out-Of-Distribution with Virtual-logit Matching",
    "2211.13445": "Delving into Out-of-Distribution Detection with Vision-Language Representations",
    "2306.00826": "In or Out? Fixing ImageNet Out-of-Distribution Detection Evaluation",
    "2306.09301": "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection",
    "2308.12213": "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No",
    "2403.20078": "Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
}


_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_PREFIX = re.compile(r"^(?:[\w\s()./-]*? )?by (?=[A-Z])")
OWN = "oodbench"


@dataclass(frozen=True)
class BibEntry:
    """What a citation says of one work; "" where it does not."""

    authors: str
    venue: str
    year: str
    arxiv: str
    title: str

    @property
    def key(self) -> str:
        """The same in every table: `wang2023-2308.12213`, `xiao2010-cvpr`."""
        first = re.sub(r"[^a-z]", "", (re.split(r",| &| et al", self.authors)[0]).lower()) or "anonymous"
        rest = self.arxiv or re.sub(r"[^a-z0-9]+", "-", (self.venue or self.title).lower())[:16].strip("-")
        return f"{first}{self.year}-{rest}"

    def bibtex(self) -> str:
        """One entry; `and others` where the citation says et al., a venue's name as it is cited."""
        authors = re.sub(r" et al\.?$", " and others", self.authors).replace(" & ", " and ")
        fields = {
            "author": escape(authors),
            "title": f"{{{escape(self.title)}}}" if self.title else "",
            "booktitle": escape(self.venue),
            "year": self.year,
            "eprint": self.arxiv,
            "archivePrefix": "arXiv" if self.arxiv else "",
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        kind = "inproceedings" if self.venue else "misc"
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"]) + "\n"


def works(citation: str, title: str = "") -> list[BibEntry]:
    """The works of a citation, none for the project's own; `title` is the first's where the paper's is not known."""
    out = []
    for number, part in enumerate(filter(None, (p.strip() for p in citation.split(";")))):
        if part != OWN:
            out.append(_work(_PREFIX.sub("", part), "" if number else title))
    return out


def keys_of_method(name: str) -> tuple[str, ...]:
    """BibTeX keys of a method; none for one that cites nothing or is not known here."""
    return tuple(work.key for work in _of_method(name))


def keys_of_dataset(name: str) -> tuple[str, ...]:
    """BibTeX keys of a dataset; none for the user's own."""
    return tuple(work.key for work in _of_dataset(name))


def entries(tables: Iterable[Table]) -> list[BibEntry]:
    """The works of all methods and datasets in tables, once each, sorted by key."""
    found: dict[str, BibEntry] = {}
    for table in tables:
        for row in (line.result for line in table.lines):
            if row is not None:
                datasets = [row.id.dataset, *(s.dataset for s in row.ood)]
                for several in (_of_method(row.method), *map(_of_dataset, datasets)):
                    found |= {work.key: work for work in several}
    return [found[key] for key in sorted(found)]


def bibtex(tables: Iterable[Table]) -> str:
    """The entries of all methods and datasets in tables."""
    return "\n".join(work.bibtex() for work in entries(tables))


@functools.cache
def _of_method(name: str) -> tuple[BibEntry, ...]:
    from oodbench.method import registry

    info = registry.methods().get(name)
    return tuple(works(info.citation, info.title)) if info and _YEAR.search(info.citation) else ()


@functools.cache
def _of_dataset(name: str) -> tuple[BibEntry, ...]:
    from oodbench.data import catalog as catalogue
    from oodbench.errors import UserError

    try:
        found = catalogue.dataset(name)
    except UserError:  # a declaration that is gone, or another machine's
        return ()
    return tuple(works(found.cite, found.title))


def _work(text: str, title: str) -> BibEntry:
    """Authors, then what lies between them and the year, which is a venue when it ends in it, else a title."""
    found = _ARXIV.search(text)
    arxiv = found[1] if found else ""
    parts = [p.strip() for p in _ARXIV.sub("", text).split(",") if p.strip()]
    authors = re.sub(r" \([^)]*\)$", "", parts[0]) if parts else ""
    rest = ", ".join(parts[1:])
    years = _YEAR.findall(rest)
    year = years[-1] if years else f"20{arxiv[:2]}" if arxiv else ""
    bare = re.sub(r"[,\s]*$", "", rest.replace(years[-1], "", 1) if years and rest.endswith(years[-1]) else rest)
    venue = bare if len(parts) == 2 else ""
    return BibEntry(authors, venue, year, arxiv, TITLES.get(arxiv) or (bare if bare and not venue else title))
