"""The page of each built-in method: formula, docstring, hyper-parameters, commands and published results."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from generate import expected, group_of, row
from reference import prose

from oodbench.data import released
from oodbench.method import registry
from oodbench.method.access import GROUPS
from oodbench.method.introspection import MethodInfo
from oodbench.method.parameters import written
from oodbench.report.formats.bibtex import works
from oodbench.report.tables.published import quotes

READS = {
    "FEATURES": "image embeddings",
    "ACTIVATIONS": "activations before the last linear map of the image tower",
    "PIXELS": "pixels",
    "ENCODER": "the encoder itself",
    "CALIBRATION": "ID training images",
    "WEIGHTS": "trained weights",
    "CAPTIONS": "captions that the encoder writes",
    "LABELS": "labels of ID training images",
    "PATCHES": "patch embeddings",
    "VIEWS": "embeddings of transformed copies of the image",
    "STREAM": "the test images before it, in the order of a stream",
    "SHOTS": "a few labelled ID images of each class",
    "PATCH_ACTIVATIONS": "activations of patches before the last linear map of the image tower",
}
SECTIONS = {  # first words of a paragraph, which the heading replaces
    "": "What it computes",
    "Released code": "Paper and released code",
    "Released training": "Training",
}
LINKS = {
    r"arXiv:(\d{4}\.\d{4,5})": r"[arXiv:\1](https://arxiv.org/abs/\1)",
    r"doi:(\S+)": r"[doi:\1](https://doi.org/\1)",
    r"(?<!\()(https?://\S+)$": r"<\1>",
}


@functools.cache
def built_in() -> dict[str, list[MethodInfo]]:
    """Return the built-in methods by group, in the order of the tables."""
    found = [info for info in registry.methods().values() if info.origin == "built-in"]
    by_group = {group: [info for info in found if info.card().group == group] for group in GROUPS}
    return {group: infos for group, infos in by_group.items() if infos}


def page(info: MethodInfo) -> str:
    """Return the page of a method as Markdown, with formulas in dollars."""
    return "\n\n".join(_parts(info)) + "\n"


def _parts(info: MethodInfo) -> Iterator[str]:
    yield f"# {info.title}"
    yield f"`{info.name}`: {_linked(info.citation)}"
    yield _prose(info.summary, info)
    if info.formula:
        yield "## Formula"
        yield from _formula(info)
    sections: dict[str, list[str]] = {label: [] for label in SECTIONS}
    for paragraph in filter(None, info.details.split("\n\n")):
        label, _, rest = paragraph.partition(":")
        label, text = (label, rest.strip()) if label in SECTIONS else ("", paragraph)
        sections[label].append(_prose(text[0].upper() + text[1:], info))
    for label, paragraphs in sections.items():
        if paragraphs:
            yield f"## {SECTIONS[label]}"
            yield from paragraphs
    yield "## Hyper-parameters"
    rows = [(f"`{p.name}`", f"`{written(p.default) or chr(34) * 2}`", _prose(p.meaning, info)) for p in info.parameters]
    yield "\n".join(row(*cells) for cells in [("name", "default", "meaning"), ("---",) * 3, *rows])
    yield "## What it sees"
    yield "\n".join(_access(info))
    yield "## Run it"
    yield "```sh\n" + "\n".join(_commands(info)) + "\n```"
    yield from _published(info.name)
    if cited := works(info.citation):
        yield "## BibTeX"
        yield "```bibtex\n" + "\n".join(entry.bibtex() for entry in cited).strip() + "\n```"


def _formula(info: MethodInfo) -> Iterator[str]:
    """Return the formulas, one a paragraph, and the list of their symbols."""
    yield from (f"$$\n{formula}\n$$" for formula in info.formulas)
    yield "where\n\n" + "\n".join(f"- ${symbol}$: {_prose(meaning, info)}" for symbol, meaning in info.symbols.items())


def _access(info: MethodInfo) -> Iterator[str]:
    card = info.card()
    yield f"- Reads: {', '.join(READS[need] for need in info.needs)}."
    yield f"- In addition to class names and the image it sees: {'; '.join(card.facts) or 'nothing'}."
    yield f"- Group in tables: {group_of(info)} ([what groups mean](../reading-the-table.md))."
    yield f"- Groups of `--methods`: {', '.join(f'`{group}`' for group in registry.groups_of(info))}."
    if info.calibrated:
        yield f"- `{info.calibrated}` replaces the ID images: with a value for it, none are read."
    if info.trained:
        fixed = ", ".join(f"`{name}`" for name in info.trained)
        yield f"- [Training](../training.md) fixes {fixed}: weights belong to one value of each."


def _commands(info: MethodInfo) -> Iterator[str]:
    """Return commands that run the method on the embedded benchmark, and before them what it needs."""
    name, option = info.name, ""
    releases = [one for kind in released.KINDS for one in released.releases(kind).values() if one.method == name]
    for one in releases:
        if not one.unread:
            yield f"oodbench get {one.kind} {one.name}  # {one.title}; prints the run that reads it"
    if "SHOTS" in info.needs:
        short = f" --set {name}.context=8" if "context" in info.defaults() else ""  # the text tower of glyphs is short
        yield f"oodbench train {name} --shots 4 --seed 1,2,3{short}"
        option = f" --weights {name}=weights"
    elif "WEIGHTS" in info.needs:
        yield f"oodbench train {name} --encoder ViT-B-16/openai --captions captions.csv  # for another encoder"
    elif info.defaults().get("words") == "":
        option = f" --set {name}.words=FILE"
    elif info.family == "few-shot":
        option = " --shots 4"
    elif "CAPTIONS" in info.needs:
        option = " --encoder coca_ViT-B-32/laion2b_s13b_b90k"
    elif "STREAM" in info.needs:
        option = " --stream-order shuffled,id-first"
    names = name if name == "mcm" else f"{name},mcm"
    yield f"oodbench run --methods {names}{option}"
    got = {one.kind for one in releases if not one.unread}
    if "weights" in got:
        yield f"oodbench run --id imagenet1k --methods {names}  # with the released weights"
    if "words" in got and info.defaults()["words"]:  # of the shipped list
        yield f"oodbench run --id imagenet1k --methods {names} --set {name}.words=PATH  # with the released words"


def _published(name: str) -> Iterator[str]:
    """Return tables of the published results of a method, one a benchmark."""
    keys: dict[str, list[str]] = {}
    for key, one in quotes().items():
        if one.method == name:
            keys.setdefault(one.benchmark, []).append(key)
    if keys:
        yield "## Published results"
        yield "AUROC / FPR95 in %; [Reproducing a paper](../reproducing.md) compares them with runs of oodbench."
    for benchmark, some in keys.items():
        yield f"Benchmark `{benchmark}`:"
        yield expected(*some)


def _linked(citation: str) -> str:
    for pattern, link in LINKS.items():
        citation = re.sub(pattern, link, citation)
    return citation


def _prose(text: str, info: MethodInfo) -> str:
    """Return text for Markdown, with links to the other methods that it names; formulas in dollars stay as they are."""
    names = {one.name for infos in built_in().values() for one in infos} - {info.name, *info.defaults()}
    pieces = re.split(r"( ?\$[^$\n]+\$ ?)", " ".join(text.split()))
    out = "".join(piece if number % 2 else prose(piece) for number, piece in enumerate(pieces))
    return re.sub(r"`(\w+)`", lambda found: f"[{found[0]}]({found[1]}.md)" if found[1] in names else found[0], out)
