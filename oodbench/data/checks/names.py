"""Class names that an ID and an OOD set share: word by word, and by WordNet synonym."""

from __future__ import annotations

from collections.abc import Iterator

from oodbench.data import prompts
from oodbench.data.checks import wordnet
from oodbench.data.checks.findings import Finding, some
from oodbench.data.checks.single import plainly
from oodbench.data.checks.wordnet import WordNet
from oodbench.data.imageset import Listing
from oodbench.errors import UserError


def class_names(listing: Listing) -> dict[str, str]:
    """Class name -> what it is looked up by in WordNet: the folder where that is a synset's number, else the name.

    Names are those of the class list, or the folders that hold the images when there are several.
    """
    folders = listing.folders or tuple(sorted({n.rpartition("/")[0].rpartition("/")[2] for n in listing.names}))
    if listing.dataset.classes:
        try:
            named = prompts.class_names(listing.dataset.classes).lines
        except UserError:  # told elsewhere
            named = folders
        if len(named) != len(folders):
            return {name: name for name in named}
        return {n: f if wordnet.is_number(f) else n for n, f in zip(named, folders, strict=True)}
    if listing.named and len(listing.named) == len(folders):
        return {n: f if wordnet.is_number(f) else n for n, f in zip(listing.named, folders, strict=True)}
    return {folder: folder for folder in folders if folder} if len(folders) > 1 else {}


def overlap(id_set: Listing, ood: Listing, net: WordNet | None) -> Iterator[Finding]:
    """Findings about class names of both sets; nothing when one of them has no classes."""
    pair = (id_set.dataset.name, ood.dataset.name)
    ours, theirs = class_names(id_set), class_names(ood)
    plain = {plainly(name): name for name in ours}
    same = [f"{plain[plainly(name)]} = {name}" for name in theirs if plainly(name) in plain]
    if same:
        message = f"{len(same):,} class names of the OOD set are ID class names: their images may be ID"
        yield Finding("warning", "names", pair, message, len(same), some(same))
    if net is None:
        if ours and theirs:
            yield Finding("note", "no-wordnet", pair, "WordNet is not installed, so synonyms were not looked at")
        return
    meant: dict[int, str] = {}
    for name, looked_up in ours.items():
        for synset in net.synsets(looked_up):
            meant.setdefault(synset, name)
    alike = []
    for name, looked_up in theirs.items():
        common = sorted(net.synsets(looked_up) & meant.keys())
        if common and plainly(name) not in plain:
            alike.append(f"{meant[common[0]]} ~ {name} ({', '.join(net.words(common[0]))})")
    if alike:
        message = f"{len(alike):,} class names of the OOD set mean what an ID class name may mean, says WordNet"
        yield Finding("warning", "synonyms", pair, message, len(alike), some(alike))
