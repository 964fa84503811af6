"""Access: what a method may see in addition to class names and the image, and the group of its rows.

This module imports no torch: tables and listings read the cards of methods that they do not import.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from oodbench.errors import did_you_mean

ZERO_SHOT, ID_IMAGES, TRAINED, FEW_SHOT, TEST_TIME = (
    "zero-shot",
    "uses ID images",
    "trained",
    "few-shot",
    "test-time adaptation",
)
UNKNOWN = "access not known"  # for a result without a card whose method is not installed
GROUPS = (ZERO_SHOT, ID_IMAGES, TRAINED, FEW_SHOT, TEST_TIME, UNKNOWN)  # in the order of tables, least access first

FAMILIES = {
    ZERO_SHOT: "zero-shot",
    ID_IMAGES: "post-hoc",
    TRAINED: "trained",
    FEW_SHOT: "few-shot",
    TEST_TIME: "test-time",
}  # the names of the same groups in `--methods`


@dataclass(frozen=True)
class Access:
    """The access card of a method: what it sees in addition to the class names and the image that it scores.

    A method declares `access: ClassVar[Access] = Access(lm_words=True)`, with literal values. Fields that follow from
    `needs` are filled in and need not be written: CALIBRATION gives id_images, unless the user sets the calibrated
    hyper-parameter; LABELS and SHOTS give id_labels; WEIGHTS without SHOTS gives other_data; STREAM gives stream; a
    gradient with respect to the pixels, or in a stream, gives test_gradient.

    Arguments:
        id_images       ID images, with or without labels
        id_labels       labels of ID images: "all", a number of labelled images a class, "few" if that number is not
                        known yet, or None
        other_data      training on captions or other data than ID images
        lm_words        words that a language model wrote or selected
        generated       generated or retrieved images
        ood_validation  OOD images from which hyper-parameters or weights were chosen
        knows_ood_kind  the kind of OOD that is tested (near, far, a data set)
        stream          other test images, in the order of a stream
        test_gradient   a gradient at test time
    Raises:
        ValueError  for a value of another type
    """

    id_images: bool = False
    id_labels: int | Literal["all", "few"] | None = None
    other_data: bool = False
    lm_words: bool = False
    generated: bool = False
    ood_validation: bool = False
    knows_ood_kind: bool = False
    stream: bool = False
    test_gradient: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "id_labels":
                is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
                if not (value is None or value in ("all", "few") or is_number):
                    raise ValueError(f'id_labels is "all", "few", a number above 0 or None, not {value!r}')
            elif not isinstance(value, bool):
                raise ValueError(f"{name} is True or False, not {value!r}")

    @property
    def group(self) -> str:
        """Return the group of `GROUPS` in which a table shows the method: the first that fits, most access first."""
        if self.stream:
            return TEST_TIME
        if self.id_labels == "few" or isinstance(self.id_labels, int):
            return FEW_SHOT
        if self.other_data or self.generated:
            return TRAINED
        return ID_IMAGES if self.id_images or self.id_labels else ZERO_SHOT

    @property
    def facts(self) -> tuple[str, ...]:
        """Return the fields that are set, as phrases; () if the method sees nothing more."""
        number = "a few" if self.id_labels == "few" else self.id_labels
        labels = "ID labels" if self.id_labels == "all" else f"{number} labelled ID images a class"
        said = {
            "ID images": self.id_images and self.id_labels in (None, "all"),
            labels: self.id_labels is not None,
            "training on captions or other data": self.other_data,
            "words from a language model": self.lm_words,
            "generated images": self.generated,
            "OOD validation images": self.ood_validation,
            "knows the kind of OOD": self.knows_ood_kind,
            "test stream": self.stream,
            "gradient at test time": self.test_gradient,
        }
        return tuple(text for text, holds in said.items() if holds)

    def plain(self) -> dict[str, Any]:
        """Return every field and the group, as a result stores them."""
        return {**dataclasses.asdict(self), "group": self.group}


def from_mapping(values: Mapping[str, Any]) -> Access:
    """Return a card from JSON or TOML; raise ValueError for unknown names and wrong values.

    The group, which follows from the other fields, is not read.
    """
    known = [field.name for field in dataclasses.fields(Access)]
    values = {name: value for name, value in values.items() if name != "group"}
    for name in values:
        if name not in known:
            raise ValueError(f"access has no field '{name}'{did_you_mean(name, known)}")
    return Access(**values)


def both(one: Access, other: Access) -> Access:
    """Return the union of two cards, such as those of a stream method and its base."""
    seen = {name: value or getattr(other, name) for name, value in vars(one).items()}
    return Access(**{**seen, "id_labels": "all" if "all" in (one.id_labels, other.id_labels) else seen["id_labels"]})


def complete(declared: Access, needs: Collection[str], *, calibrates: bool = True, shots: int | None = None) -> Access:
    """Return a declared card with the fields that follow from the needs.

    Arguments:
        declared    the card that the method declares
        needs       names of its needs
        calibrates  whether fit() reads ID images: not if the user set the value that it computes from them
        shots       labelled ID images a class that the run draws; None for all
    """
    reads = calibrates and "CALIBRATION" in needs
    labels = (shots or "all") if reads and "LABELS" in needs else declared.id_labels
    if "SHOTS" in needs:
        labels = shots or "few"
    return dataclasses.replace(
        declared,
        id_images=declared.id_images or reads or labels is not None,
        id_labels=labels,
        other_data=declared.other_data or ("WEIGHTS" in needs and "SHOTS" not in needs),
        stream=declared.stream or "STREAM" in needs,
    )
