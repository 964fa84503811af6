"""Mistakes: the ID images with a method's lowest scores and the OOD images with its highest scores."""

from __future__ import annotations

import dataclasses
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
from oodbench.data.decode import describe_error, pillow_in_threads
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names_of, load_images
from oodbench.data.loaders.tar import expand_pattern
from oodbench.data.paths import data_root
from oodbench.errors import UserError, is_url, redact_url
from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, stem
from oodbench.report.figures.layout import TALLEST, FigureLayout, add_title, new_figure
from oodbench.report.figures.style import (
    GREY,
    SIZE,
    SMALLEST,
    WRONG,
    add_text,
    pages,
    plot_style,
    shortened,
    width,
    wrapped,
)
from oodbench.results import IdRow, Result, SetRow
from oodbench.storage.files import expand
from oodbench.storage.remote import cached_path
from oodbench.storage.store import Store, default_root

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # height, width, 3

LARGEST = 192  # pixels; images with a longer side are scaled down


@dataclass
class MistakeGallery:
    """The images of a table's datasets, each listed once; `absent` has the reason for each unavailable one."""

    data: Path | None
    absent: dict[str, str] = field(default_factory=dict)
    _lists: dict[str, ImageSet] = field(default_factory=dict)
    _names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def images(self, row: Result, of: IdRow | SetRow, names: Sequence[str]) -> list[Pixels] | None:
        """Return images of a set by their names in the result's scores; if unavailable, log why and return None."""
        listing = self._listing(row, of)
        if listing is None:
            return None
        where: dict[str, int] = {}
        for i, name in enumerate(listing.names):
            where.setdefault(name.encode("utf-8", "backslashreplace").decode(), i)  # as results write names
        try:
            if len(where) < len(listing):
                raise UserError("several of its images have the same name")
            with pillow_in_threads():
                return [_pixels(listing, where[name]) for name in names]
        except KeyError as error:
            self._skip(of, f"its list has no image {error}")
        except UserError as error:
            self._skip(of, str(error))
        except Exception as error:  # decoders raise many types
            self._skip(of, f"an image cannot be read: {describe_error(error)}")
        return None

    def classes(self, row: Result) -> tuple[str, ...]:
        """Return the result's class names in label order; if unavailable, log it and return ()."""
        digest = str(row.classes.get("digest"))
        if digest not in self._names:
            self._names[digest] = self._found(row, digest)
        return self._names[digest]

    def _found(self, row: Result, digest: str) -> tuple[str, ...]:
        name = str(row.classes.get("name", "unknown"))
        if name in prompts.names("classes"):
            lines = prompts.class_names(name)
            if lines.digest == digest:
                return lines.lines
        listing = self._listing(row, row.id)
        try:
            for clean in (False, True) if listing else ():
                assert listing
                images = dataclasses.replace(listing, dataset=dataclasses.replace(listing.dataset, clean_names=clean))
                if (lines := class_names_of(images)).digest == digest:
                    return lines.lines
        except UserError as error:
            log.warning("no class names of '%s': %s", row.id.dataset, error)
        log.warning("the class names '%s' of the results are not available; figures show class numbers", name)
        return ()

    def _listing(self, row: Result, of: IdRow | SetRow) -> ImageSet | None:
        name = of.dataset
        if name not in self._lists and name not in self.absent:
            try:
                self._lists[name] = self._listed(row, of)
            except UserError as error:
                self._skip(of, str(error))
        return self._lists.get(name)

    def _listed(self, row: Result, of: IdRow | SetRow) -> ImageSet:
        store = Store(expand(default_root()))
        behind = [url for url in _urls(catalogue.dataset(of.dataset)) if not cached_path(url).is_file()]
        if behind:  # a figure does not download gigabytes
            raise UserError(f"{redact_url(behind[0])} was not downloaded to this machine")
        found = load_images(
            catalogue.dataset(of.dataset),
            LoadOptions(
                data_root(self.data),
                store,
                strict=row.run.get("lists") == "content",
                limit=row.run.get("limit"),
            ),
            labelled=isinstance(of, IdRow),
        )
        if found.digest != of.list_digest:
            why = f"the images at {found.folder} are not the list of images that was scored"
            if "time" in str(row.run.get("lists")) and not found.content:
                why = "its result is from an older oodbench, whose image digests included file times; run it again"
            raise UserError(f"dataset '{of.dataset}': {why} ({len(found):,} images; names and sizes count)")
        return found

    def _skip(self, of: IdRow | SetRow, why: str) -> None:
        self._lists.pop(of.dataset, None)
        if of.dataset not in self.absent:
            self.absent[of.dataset] = why
            log.warning("images of '%s' are not shown: %s", of.dataset, why)


def _urls(dataset: Dataset) -> list[str]:
    """Return the URLs of a set and of its parts."""
    made_of = [*dataset.parts, *([dataset.within] if dataset.within else [])]
    own = expand_pattern(dataset.path) if is_url(dataset.path) else []
    return [*own, *(url for name in made_of for url in _urls(catalogue.dataset(name)))]


def _pixels(listing: ImageSet, index: int) -> Pixels:
    """Return an image in RGB, scaled down if it is larger than LARGEST."""
    image = listing.read(index).convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return np.asarray(image)


IMAGES, STRIPS = 8, 6  # images of a set, sets in one figure
_CELL, _GAP, _PITCH = 0.92, 0.14, 0.115  # inches: an image, the gap to the next one, a line of text
_MARGIN = 0.05  # at the sides of a figure of a given width
_NARROW = 0.72  # inches: the smallest image and its gap


@dataclass(frozen=True)
class ShownImage:
    """One image of a strip. `wrong`: on the wrong side of the threshold that accepts 95 % of ID images."""

    pixels: Pixels
    lines: tuple[str, ...]
    wrong: bool


@dataclass(frozen=True)
class ImageStrip:
    """The worst images of one set, the worst first."""

    title: str
    subtitle: str
    images: tuple[ShownImage, ...]


def draw(figure_data: FigureData, data: Path | None = None) -> Iterator[Plot]:
    """Yield a figure for each method, with at most STRIPS sets; sets without available images are not shown."""
    gallery = MistakeGallery(data)
    for one in figure_data.scored:
        strips = _strips(figure_data, one, gallery)
        split = pages(strips, _most(figure_data.width))
        for number, part in enumerate(split, start=1):
            if part:
                yield _page(figure_data, one, (part, gallery), number if len(split) > 1 else 0)


def worst(scores: NDArray[np.float64], count: int, *, lowest: bool) -> NDArray[np.int64]:
    """Return positions of the lowest (or highest) scores, the worst first, ties in list order."""
    return np.argsort(scores if lowest else -scores, kind="stable")[:count]


def _strips(figure_data: FigureData, one: PlottedResult, gallery: MistakeGallery) -> list[ImageStrip]:
    images, names = figure_data.read(one), figure_data.image_names(one)
    on_id = metrics.score_set(images[one.result.id.dataset].scores, one.result.id.dataset)
    threshold = metrics.threshold_at_tpr(on_id)
    out = []
    sets: list[IdRow | SetRow] = [one.result.id, *(figure_data.of(one, s.dataset) for s in figure_data.sets)]
    for of in sets:
        found, is_id = images[of.dataset], isinstance(of, IdRow)
        places = worst(found.scores, _count(figure_data.width), lowest=is_id)
        pixel_arrays = gallery.images(one.result, of, [names[of.dataset][i] for i in places])
        if pixel_arrays is None:
            continue
        classes = gallery.classes(one.result)
        wrong = found.scores < threshold if is_id else found.scores >= threshold
        shown = []
        for place, pixels in zip(places, pixel_arrays, strict=True):
            truth = [f"is {_class(found.labels[place], classes)}"] if is_id else []
            chosen = found.predictions[place]
            lines = [*truth, f"CLIP: {_class(chosen, classes)}" if chosen >= 0 else "CLIP: none"]
            tail = names[of.dataset][place].rpartition("/")[2]
            shown.append(ShownImage(pixels, (*lines, f"{found.scores[place]:#.5g}", tail), bool(wrong[place])))
        what = "ID, lowest scores" if is_id else "OOD, highest scores"
        verdict = "rejected" if is_id else "accepted"
        subtitle = f"{what}; {wrong.sum():,} of {len(wrong):,} {verdict} where 95 % of ID are accepted"
        out.append(ImageStrip(of.title, subtitle, tuple(shown)))
    return out


def _count(wide: float | None) -> int:
    """Return the number of images per set in a figure of a width in inches."""
    return IMAGES if wide is None else min(IMAGES, int((wide - 2 * _MARGIN + _GAP) / _NARROW))


def _cell(wide: float | None) -> float:
    """Return the side of an image in inches."""
    return _CELL if wide is None else (wide - 2 * _MARGIN + _GAP) / _count(wide) - _GAP


def _most(wide: float | None) -> int:
    """Return the number of sets that fit in a figure of a width in inches: with an image, seven lines and gaps each."""
    return STRIPS if wide is None else min(STRIPS, int(TALLEST / (_cell(wide) + 7 * _PITCH + 0.28)))


def _class(number: int, classes: Sequence[str]) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"


def _page(
    figure_data: FigureData, one: PlottedResult, found: tuple[Sequence[ImageStrip], MistakeGallery], number: int
) -> Plot:
    strips, gallery = found
    title = f"What {one.name} gets most wrong" + (f" ({number})" if number else "")
    text = max(len(image.lines) for strip in strips for image in strip.images) * _PITCH
    wide, count = figure_data.width, _count(figure_data.width)
    cell = _cell(wide)
    across = count * (cell + _GAP) - _GAP
    above = [_above(strip, across) for strip in strips]
    head = (0.2 if wide else 0.25) + _PITCH * max(map(len, above))
    sides = (
        {"left": _MARGIN, "right": _MARGIN, "bottom": 0.04} if wide else {"left": 0.15, "right": 0.19, "bottom": 0.12}
    )
    layout = FigureLayout((across, cell + text), columns=1, gap=(0, head + 0.08), head=head, **sides)
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(strips), layout)
        for panel, strip, lines in zip(axes, strips, above, strict=True):
            _strip(panel, strip, lines, cell)
    titles = {one.result.id.dataset: one.result.id.title} | {s.dataset: s.title for s in figure_data.sets}
    gone = [title for name, title in titles.items() if name in gallery.absent]
    none = all(image.lines.count("CLIP: none") for strip in strips for image in strip.images)
    sentences = [
        f"The {count} images of each set that {one.name} scores worst: ID images with the lowest and OOD images with "
        "the highest scores. Below each: its class if known, the class predicted by CLIP, its score, its file. "
        "Framed: on the wrong side of the score that at least 95 % of ID images reach.",
        "The method predicts no class." if none else "",
        f"Images not available, so not shown: {', '.join(gone)}." if gone else "",
        figure_data.missing(),
    ]
    name = f"{figure_data.heading.stem}-{stem('mistakes', one.result.label)}" + (f"-{number}" if number else "")
    title = f"{title}: {figure_data.heading.title}"
    return Plot(name, "mistakes", title, " ".join(filter(None, sentences)), figure)


def _above(strip: ImageStrip, across: float) -> list[str]:
    """Return the lines below the title of a strip; none if the subtitle fits beside the title."""
    beside = across - width(strip.title, SIZE + 0.5) / 0.9 - 0.2
    return [] if width(strip.subtitle, SIZE - 0.5) <= beside else wrapped(strip.subtitle, 0.97 * across, SIZE - 0.5)


def _strip(panel: Axes, strip: ImageStrip, subtitle: Sequence[str], cell: float) -> None:
    """Draw images of `cell` inches with their texts; without lines in `subtitle`, it is written beside the title."""
    pixels = panel.get_window_extent()
    across, high = (float(side) / panel.figure.dpi for side in (pixels.width, pixels.height))
    panel.set(xlim=(0, across), ylim=(high, 0))  # inches from the upper left corner
    panel.axis("off")
    add_title(panel, strip.title, across, raised=72 * _PITCH * len(subtitle))
    small = {"fontsize": SIZE - 0.5, "color": GREY}
    for line, text in enumerate(reversed(subtitle)):
        add_text(panel, (0, -0.07 - _PITCH * line), text, **small)
    if not subtitle:
        add_text(panel, (across, -0.07), strip.subtitle, **small, ha="right")
    for place, image in enumerate(strip.images):
        left = place * (cell + _GAP)
        tall, broad = image.pixels.shape[:2]
        w, h = cell * broad / max(tall, broad), cell * tall / max(tall, broad)
        x, y = left + (cell - w) / 2, (cell - h) / 2
        panel.imshow(image.pixels, extent=(x, x + w, y + h, y), interpolation="none", aspect="auto", gid=strip.title)
        if image.wrong:
            edges = ([x, x + w, x + w, x, x], [y, y, y + h, y + h, y])
            panel.plot(*edges, color=WRONG, linewidth=1.6, solid_joinstyle="miter", clip_on=False, gid="wrong")
        for line, text in enumerate(image.lines):
            looks = {"color": "black" if line < len(image.lines) - 2 else GREY, "va": "center", "fontsize": SMALLEST}
            shown = shortened(text, cell + (_GAP - 0.06 if place < len(strip.images) - 1 else 0.02), SMALLEST)
            add_text(panel, (left, cell + 0.03 + (line + 0.5) * _PITCH), shown, **looks)
    panel.set(xlim=(0, across), ylim=(high, 0))
