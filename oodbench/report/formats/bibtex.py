"""BibTeX entries of the methods, datasets, benchmarks and published numbers in tables.

Built-in names are looked up in `references.bib`, whose entries have full author lists. Any other citation, such as that
of a user's own method, is parsed into an entry. A citation reads `Wang et al., ICCV 2023, arXiv:2308.12213` or ends in
`doi:...` or an address. Several are separated by `; `, and each may start with a reason: `subset by Huang & Li (MOS),
CVPR 2021, ...`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import UserError
from oodbench.report.formats.latex_text import escape
from oodbench.report.tables.published import quotes
from oodbench.report.tables.table import Table

REFERENCES = Path(__file__).with_name("references.bib")
OWN = "oodbench"  # cites nothing: made by this project
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_LINK = re.compile(r"\b(?:(?P<doi>doi:)|(?=https?://))(?P<address>\S+)")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_PREFIX = re.compile(r"^(?:[\w\s()./-]*? )?by (?=[A-Z])")
_ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n((?:  \w+ = \{.*\},\n)+)\}$", re.MULTILINE)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)


@dataclass(frozen=True)
class BibEntry:
    """One BibTeX entry; the values of its fields are LaTeX."""

    kind: str
    key: str
    fields: Mapping[str, str]

    def bibtex(self) -> str:
        """Return the entry as BibTeX."""
        lines = (f"  {name} = {{{value}}}," for name, value in self.fields.items())
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"]) + "\n"

    def latex(self) -> str:
        r"""Return the text of a `\bibitem`: authors, title, venue and year, arXiv number."""
        names = [_given_name_first(name) for name in self.fields.get("author", "").split(" and ")]
        if names[-1] == "others":
            names[-2:] = [f"{names[-2]} et al"]
        venue = next((self.fields[name] for name in _VENUES if name in self.fields), "")
        parts = [", ".join(filter(None, names)), self.fields.get("title", "").strip("{}")]
        parts += [" ".join(filter(None, (venue, self.fields.get("year", ""))))]
        number = f"arXiv:{self.fields['eprint']}" if "eprint" in self.fields else ""
        parts += [number] if number not in venue else []
        return "".join(f"{part}{'' if part.endswith(('?', '.')) else '.'} " for part in filter(None, parts)).strip()


_VENUES = ("booktitle", "journal", "institution", "howpublished")


def _given_name_first(name: str) -> str:
    family, _, given = name.partition(", ")
    return f"{given} {family}".strip()


@functools.cache
def references() -> dict[str, BibEntry]:
    """Return the entries of `references.bib` by key."""
    found = _ENTRY.findall(REFERENCES.read_text(encoding="utf-8"))
    return {key: BibEntry(kind, key, dict(_FIELD.findall(body))) for kind, key, body in found}


def works(citation: str, title: str = "") -> list[BibEntry]:
    """Return the entries of the works in a citation, none for the project's own.

    A work that is not in `references.bib` gets an entry parsed from the citation; `title` is that of the first work.
    """
    parts = [part for part in (p.strip() for p in citation.split(";")) if part and part != OWN]
    return [_known(_parsed(part, "" if number else title)) for number, part in enumerate(parts)]


def _known(entry: BibEntry) -> BibEntry:
    """Return the entry of `references.bib` with the same key or arXiv number, or else this entry."""
    if entry.key in references():
        return references()[entry.key]
    arxiv = entry.fields.get("eprint")
    return next((known for known in references().values() if arxiv and known.fields.get("eprint") == arxiv), entry)


def keys_of_method(name: str) -> tuple[str, ...]:
    """Return the BibTeX keys of a method; none if it cites nothing or is not installed."""
    return tuple(entry.key for entry in _of_method(name))


def keys_of_dataset(name: str) -> tuple[str, ...]:
    """Return the BibTeX keys of a dataset; none if it cites nothing or is not declared here."""
    return tuple(entry.key for entry in _of_dataset(name))


def keys_of_benchmark(name: str) -> tuple[str, ...]:
    """Return the BibTeX keys of a benchmark; none if it was named on the command line or cites nothing."""
    return tuple(entry.key for entry in _of_benchmark(name))


def entries(tables: Iterable[Table]) -> list[BibEntry]:
    """Return the works of all methods, datasets, benchmarks and published numbers in tables, sorted by key."""
    found: dict[str, BibEntry] = {}
    for line in (line for table in tables for line in table.lines):
        cited = [_of_quote(str(line.facts["quote"]))] if "quote" in line.facts else []
        if line.result is not None:
            datasets = [line.result.id.dataset, *(ood.dataset for ood in line.result.ood)]
            base = str(line.result.stream.get("base", "")).partition("[")[0]
            cited = [
                _of_method(line.result.method),
                _of_method(base),
                _of_benchmark(line.result.benchmark),
                *map(_of_dataset, datasets),
            ]
        found |= {entry.key: entry for several in cited for entry in several}
    return [found[key] for key in sorted(found)]


def bibtex(tables: Iterable[Table]) -> str:
    """Return the entries of all works in tables as one BibTeX file."""
    return "\n".join(entry.bibtex() for entry in entries(tables))


@functools.cache
def _of_method(name: str) -> tuple[BibEntry, ...]:
    from oodbench.method import registry

    info = registry.methods().get(name)
    return tuple(works(info.citation, info.title)) if info and _YEAR.search(info.citation) else ()


@functools.cache
def _of_dataset(name: str) -> tuple[BibEntry, ...]:
    from oodbench.data import catalog

    try:
        found = catalog.dataset(name)
    except UserError:  # the declaration was removed, or is on another machine
        return ()
    return tuple(works(found.cite, found.title))


@functools.cache
def _of_benchmark(name: str) -> tuple[BibEntry, ...]:
    from oodbench.data import catalog

    found = catalog.benchmarks().get(name)
    return tuple(works(found.cite, found.title)) if found else ()


def _of_quote(key: str) -> tuple[BibEntry, ...]:
    found = quotes().get(key)
    return tuple(references()[cited] for cited in found.cite) if found else ()


def _parsed(text: str, title: str) -> BibEntry:
    """Parse one citation: authors, then a venue that ends in the year, or else a title.

    Its key is the same in every table: `wang2023-2308.12213`, `xiao2010-cvpr`.
    """
    text = _PREFIX.sub("", text)
    found = _ARXIV.search(text)
    arxiv = found[1] if found else ""
    link = _LINK.search(text)
    parts = [p.strip() for p in _LINK.sub("", _ARXIV.sub("", text)).split(",") if p.strip()]
    authors = re.sub(r" \([^)]*\)$", "", parts[0]) if parts else ""
    rest = ", ".join(parts[1:])
    years = _YEAR.findall(rest)
    year = years[-1] if years else f"20{arxiv[:2]}" if arxiv else ""
    bare = re.sub(r"[,\s]*$", "", rest.replace(years[-1], "", 1) if years and rest.endswith(years[-1]) else rest)
    venue = bare if len(parts) == 2 else ""
    title = bare if bare and not venue else title
    first = re.sub(r"[^a-z]", "", (re.split(r",| &| et al", authors)[0]).lower()) or "anonymous"
    ending = arxiv or re.sub(r"[^a-z0-9]+", "-", (venue or title).lower())[:16].strip("-")
    fields = {
        "author": escape(re.sub(r" et al\.?$", " and others", authors).replace(" & ", " and ")),
        "title": f"{{{escape(title)}}}" if title else "",
        "booktitle": escape(venue),
        "howpublished": f"arXiv preprint arXiv:{arxiv}"
        if arxiv and not venue
        else "",  # a field that every style prints
        "year": year,
        "eprint": arxiv,
        "archivePrefix": "arXiv" if arxiv else "",
        "doi" if link and link["doi"] else "url": escape(link["address"]) if link else "",
    }
    kind = "inproceedings" if venue else "misc"
    return BibEntry(kind, f"{first}{year}-{ending}", {name: value for name, value in fields.items() if value})
