"""Mistakes: contact sheets of the ID images a method finds most OOD, and of the OOD images it finds most ID."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from oodbench.data import catalog as catalogue
from oodbench.data import prompts
from oodbench.data.catalog import Dataset
from oodbench.data.decode import decoding, reason
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names, load_images
from oodbench.data.loaders.tar import expand as expand_pattern
from oodbench.errors import UserError, is_url, redact_url
from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import Entrant, Picture, Subject, stem
from oodbench.report.figures.style import GREY, SIZE, WRONG, FigureLayout, fitted, house, pages, put, sheet
from oodbench.results import IdRow, Result, SetRow
from oodbench.storage.files import expand
from oodbench.storage.remote import cached_path
from oodbench.storage.store import Store, default_root

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # height, width, 3

LARGEST = 192  # pixels of the longer side; larger images are scaled down


@dataclass
class MistakeGallery:
    """Lists of a table's images, each made once. `absent` says of every list that is not to be had why it is not."""

    data: Path | None
    absent: dict[str, str] = field(default_factory=dict)
    _lists: dict[str, ImageSet] = field(default_factory=dict)
    _names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def images(self, row: Result, of: IdRow | SetRow, names: Sequence[str]) -> list[Pixels] | None:
        """Images of a set by their names in the row's scores; None, which is logged, when they are not to be had."""
        listing = self._listing(row, of)
        if listing is None:
            return None
        where: dict[str, int] = {}
        for i, name in enumerate(listing.names):
            where.setdefault(name.encode("utf-8", "backslashreplace").decode(), i)  # as rows._text writes them
        try:
            if len(where) < len(listing):
                raise UserError("several of its images have one name")
            with decoding():
                return [_pixels(listing, where[name]) for name in names]
        except KeyError as error:
            self._leave_out(of, f"its list has no image {error}")
        except UserError as error:
            self._leave_out(of, str(error))
        except Exception as error:  # whatever a decoder raises
            self._leave_out(of, f"an image cannot be read: {reason(error)}")
        return None

    def classes(self, row: Result) -> tuple[str, ...]:
        """The row's class names in label order; () when they are not to be had, which is logged."""
        digest = str(row.classes.get("digest"))
        if digest not in self._names:
            self._names[digest] = self._found(row, digest)
        return self._names[digest]

    def _found(self, row: Result, digest: str) -> tuple[str, ...]:
        name = str(row.classes.get("name"))
        if name in prompts.names("classes"):
            lines = prompts.class_names(name)
            if lines.digest == digest:
                return lines.lines
        listing = self._listing(row, row.id)
        try:
            if listing is not None and (lines := class_names(listing)).digest == digest:
                return lines.lines
        except UserError as error:
            log.warning("no class names of '%s': %s", row.id.dataset, error)
        log.warning("the class names '%s' of the rows are not to be had; pictures give class numbers", name)
        return ()

    def _listing(self, row: Result, of: IdRow | SetRow) -> ImageSet | None:
        name = of.dataset
        if name not in self._lists and name not in self.absent:
            try:
                self._lists[name] = self._listed(row, of)
            except UserError as error:
                self._leave_out(of, str(error))
        return self._lists.get(name)

    def _listed(self, row: Result, of: IdRow | SetRow) -> ImageSet:
        store = Store(expand(default_root()))
        behind = [url for url in _urls(catalogue.dataset(of.dataset)) if not cached_path(url).is_file()]
        if behind:  # a picture is no reason to fetch gigabytes
            raise UserError(f"{redact_url(behind[0])} was not fetched on this machine")
        found = load_images(
            catalogue.dataset(of.dataset),
            LoadOptions(
                catalogue.data_root(self.data),
                store,
                strict=row.run.get("lists") == "content",
                limit=row.run.get("limit"),
            ),
            labelled=isinstance(of, IdRow),
        )
        if found.digest != of.list_digest:
            raise UserError(
                f"dataset '{of.dataset}': what lies at {found.folder} is not the list of images that was scored "
                f"({len(found):,} images; names, sizes and times count)"
            )
        return found

    def _leave_out(self, of: IdRow | SetRow, why: str) -> None:
        self._lists.pop(of.dataset, None)
        if of.dataset not in self.absent:
            self.absent[of.dataset] = why
            log.warning("images of '%s' are left out: %s", of.dataset, why)


def _urls(dataset: Dataset) -> list[str]:
    """What a set, or those that it is made of, has behind URLs."""
    made_of = [*dataset.parts, *([dataset.within] if dataset.within else [])]
    own = expand_pattern(dataset.path) if is_url(dataset.path) else []
    return [*own, *(url for name in made_of for url in _urls(catalogue.dataset(name)))]


def _pixels(listing: ImageSet, index: int) -> Pixels:
    """An image in RGB, scaled down when it is larger than LARGEST."""
    image = listing.read(index).convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image)


IMAGES, STRIPS = 8, 6  # of a set, and of a page
_CELL, _STEP, _PITCH = 0.92, 1.06, 0.115  # inches: an image, from one to the next, a line of text
_SMALL = SIZE - 1.5


@dataclass(frozen=True)
class ShownImage:
    """One image of a strip. `wrong`: on the wrong side of the threshold that keeps 95 % of ID."""

    pixels: Pixels
    lines: tuple[str, ...]
    wrong: bool


@dataclass(frozen=True)
class Strip:
    """The worst images of one set, the worst first."""

    title: str
    said: str
    images: tuple[ShownImage, ...]


def draw(subject: Subject, data: Path | None = None) -> Iterator[Picture]:
    """One picture for each method, of at most STRIPS sets; sets whose images are not to be had are left out."""
    gallery = MistakeGallery(data)
    for one in subject.scored:
        strips = _strips(subject, one, gallery)
        split = pages(strips, STRIPS)
        for number, part in enumerate(split, start=1):
            if part:
                yield _page(subject, one, (part, gallery), number if len(split) > 1 else 0)


def worst(scores: NDArray[np.float64], count: int, *, lowest: bool) -> NDArray[np.int64]:
    """Positions of the lowest (or highest) scores, the worst first, equal ones in list order."""
    return np.argsort(scores if lowest else -scores, kind="stable")[:count]


def _strips(subject: Subject, one: Entrant, gallery: MistakeGallery) -> list[Strip]:
    images, names = subject.read(one), subject.image_names(one)
    on_id = metrics.score_set(images[one.row.id.dataset].scores, one.row.id.dataset)
    threshold = metrics.threshold_at_tpr(on_id)
    out = []
    sets: list[IdRow | SetRow] = [one.row.id, *(subject.of(one, s.dataset) for s in subject.sets)]
    for of in sets:
        found, is_id = images[of.dataset], isinstance(of, IdRow)
        places = worst(found.scores, IMAGES, lowest=is_id)
        pictured = gallery.images(one.row, of, [names[of.dataset][i] for i in places])
        if pictured is None:
            continue
        classes = gallery.classes(one.row)
        wrong = found.scores < threshold if is_id else found.scores >= threshold
        shown = []
        for place, pixels in zip(places, pictured, strict=True):
            truth = [f"is {_class(found.labels[place], classes)}"] if is_id else []
            chosen = found.predictions[place]
            lines = [*truth, f"CLIP: {_class(chosen, classes)}" if chosen >= 0 else "CLIP: none"]
            tail = names[of.dataset][place].rpartition("/")[2]
            shown.append(ShownImage(pixels, (*lines, f"{found.scores[place]:#.5g}", tail), bool(wrong[place])))
        what = "ID, lowest scores" if is_id else "OOD, highest scores"
        verdict = "rejected" if is_id else "accepted"
        said = f"{what}; {wrong.sum():,} of {len(wrong):,} {verdict} where 95 % of ID are kept"
        out.append(Strip(of.title, said, tuple(shown)))
    return out


def _class(number: int, classes: Sequence[str]) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"


def _page(subject: Subject, one: Entrant, found: tuple[Sequence[Strip], MistakeGallery], number: int) -> Picture:
    strips, gallery = found
    title = f"What {one.name} gets most wrong" + (f" ({number})" if number else "")
    text = max(len(image.lines) for strip in strips for image in strip.images) * _PITCH
    layout = FigureLayout(
        (IMAGES * _STEP, _CELL + text), columns=1, gap=(0, 0.33), left=0.15, right=0.05, bottom=0.12, head=0.25
    )
    with house():
        figure, axes = sheet([title, subject.heading.title], len(strips), layout)
        for panel, strip in zip(axes, strips, strict=True):
            _strip(panel, strip, layout.panel)
    titles = {one.row.id.dataset: one.row.id.title} | {s.dataset: s.title for s in subject.sets}
    gone = [title for name, title in titles.items() if name in gallery.absent]
    none = all(image.lines.count("CLIP: none") for strip in strips for image in strip.images)
    said = [
        f"Of each set the {IMAGES} images that {one.name} scores worst: ID images of the lowest, OOD images of the "
        "highest scores. Below each: its class where it is known, the class that CLIP chose, its score, its file. "
        "Framed: on the wrong side of the score that at least 95 % of ID images reach.",
        "The method chooses no class." if none else "",
        f"Images not to be had, so not shown: {', '.join(gone)}." if gone else "",
        subject.missing(),
    ]
    name = f"{subject.heading.stem}-{stem('mistakes', one.row.label)}" + (f"-{number}" if number else "")
    title = f"{title}: {subject.heading.title}"
    return Picture(name, "mistakes", title, " ".join(filter(None, said)), figure)


def _strip(panel: Axes, strip: Strip, size: tuple[float, float]) -> None:
    wide, high = size
    panel.set(xlim=(0, wide), ylim=(high, 0))  # inches from the upper left corner
    panel.axis("off")
    name = fitted(strip.title, 3.5, SIZE + 0.5)
    heading = put(panel, (0, -0.07), name, fontsize=SIZE + 0.5, weight="bold")
    put(panel, (wide - _STEP + _CELL, -0.07), strip.said, fontsize=SIZE - 0.5, color=GREY, ha="right")
    heading.set_gid("set")
    for place, image in enumerate(strip.images):
        left = place * _STEP
        tall, broad = image.pixels.shape[:2]
        w, h = _CELL * broad / max(tall, broad), _CELL * tall / max(tall, broad)
        x, y = left + (_CELL - w) / 2, (_CELL - h) / 2
        panel.imshow(image.pixels, extent=(x, x + w, y + h, y), interpolation="none", aspect="auto", gid=strip.title)
        if image.wrong:
            edges = ([x, x + w, x + w, x, x], [y, y, y + h, y + h, y])
            panel.plot(*edges, color=WRONG, linewidth=1.6, solid_joinstyle="miter", clip_on=False, gid="wrong")
        for line, text in enumerate(image.lines):
            looks = {"color": "black" if line < len(image.lines) - 2 else GREY, "va": "center", "fontsize": _SMALL}
            put(panel, (left, _CELL + 0.03 + (line + 0.5) * _PITCH), fitted(text, _STEP - 0.05, _SMALL), **looks)
    panel.set(xlim=(0, wide), ylim=(high, 0))
