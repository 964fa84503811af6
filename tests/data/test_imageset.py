"""Image sets: order, labels, digests, samples; all kinds of image files are decoded to RGB."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oodbench.data import catalog as catalogue
from oodbench.data.decode import pillow_in_threads
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, load_images
from oodbench.encoder.card import EncoderCard
from oodbench.encoder.openclip import transform
from oodbench.errors import UserError
from oodbench.storage.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, with upper-case, non-ASCII, hidden and other files."""
    root = tmp_path / "photos"
    for number, name in enumerate(("b/2.png", "b/1.PNG", "a/ü.png", "a/.hidden.png", ".git/x.png", "a/deep/3.png")):
        save(root / name, number)
    (root / "a" / "notes.txt").write_text("no image")
    (root / "README.md").write_text("none either")
    return root


def save(path: Path, shade: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def listed(folder: Path, labelled: bool = True, strict: bool = False) -> ImageSet:
    dataset = catalogue.dataset(f"folder:{folder}")
    return load_images(dataset, LoadOptions(Path(), Store(folder.parent / "store"), strict=strict), labelled=labelled)


def test_an_id_set_is_labelled_by_its_sorted_folders(folder: Path) -> None:
    found = listed(folder)
    assert found.names == ("a/deep/3.png", "a/ü.png", "b/1.PNG", "b/2.png")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.folders == ("a", "b")
    assert len(found) == found.total == 4


def test_an_ood_set_may_be_nested_or_flat(folder: Path) -> None:
    save(folder / "loose.png")
    found = listed(folder, labelled=False)
    assert found.names == ("a/deep/3.png", "a/ü.png", "b/1.PNG", "b/2.png", "loose.png")
    assert found.labels.tolist() == [-1] * 5
    assert found.folders == ()


def test_an_id_image_outside_a_class_folder_is_named(folder: Path) -> None:
    save(folder / "loose.png")
    with pytest.raises(UserError, match=r"needs one folder per class, but .*loose\.png is in none"):
        listed(folder)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        listed(tmp_path / "empty")
    with pytest.raises(UserError, match="was not found at"):
        listed(tmp_path / "missing")
    with pytest.raises(UserError, match=r"was not found at \$OODBENCH_DATA/"):
        store = Store(tmp_path)
        load_images(catalogue.dataset("imagenet1k"), LoadOptions(tmp_path, store), labelled=True)


def test_a_link_to_a_parent_folder_is_not_followed(folder: Path) -> None:
    (folder / "a" / "again").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    assert len(listed(folder)) == 4


def test_linked_folders_and_files_are_followed(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "9.png")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "link.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    assert listed(folder).names[2:] == ("b/1.PNG", "b/2.png", "b/link.png", "c/9.png")


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    (folder / "b" / "gone.png").symlink_to(folder / "nowhere")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        listed(folder)


def test_a_fifo_is_not_an_image(folder: Path) -> None:
    os.mkfifo(folder / "b" / "pipe.png")
    assert len(listed(folder)) == 4


def test_names_that_are_not_utf8(folder: Path) -> None:
    raw = os.fsencode(folder / "b") + b"/\xe4\xff.png"
    with open(raw, "wb") as file:
        file.write((folder / "b" / "2.png").read_bytes())
    found = listed(folder)
    assert len(found.digest) == 64
    assert found.read(4).size == (8, 8)
    assert found.digest == listed(folder).digest


def test_the_digest_depends_on_names_and_sizes(folder: Path) -> None:
    digests = [listed(folder).digest]
    before = listed(folder).fingerprint
    os.utime(folder / "b" / "2.png", ns=(1, 1))
    assert listed(folder).digest == digests[0] and listed(folder).fingerprint != before
    with (folder / "b" / "2.png").open("ab") as file:
        file.write(b"x")
    os.utime(folder / "b" / "2.png", ns=(1, 1))
    digests.append(listed(folder).digest)
    (folder / "b" / "2.png").rename(folder / "b" / "3.png")
    digests.append(listed(folder).digest)
    (folder / "b" / "3.png").unlink()
    digests.append(listed(folder).digest)
    assert len(set(digests)) == 4
    assert listed(folder).digest == digests[-1]


def test_the_strict_digest_depends_on_content(folder: Path) -> None:
    before = listed(folder, strict=True).digest
    os.utime(folder / "b" / "2.png", ns=(1, 1))
    assert listed(folder, strict=True).digest == before
    raw = bytearray((folder / "b" / "2.png").read_bytes())
    raw[-1] ^= 1  # same size
    (folder / "b" / "2.png").write_bytes(raw)
    os.utime(folder / "b" / "2.png", ns=(1, 1))
    assert listed(folder, strict=True).digest != before


def test_a_limit_is_spread_over_the_classes(folder: Path) -> None:
    whole = many(folder, 1000, 10)
    some = whole.limit(50)
    assert len(some) == 50 and some.total == 1000
    assert np.bincount(some.labels).tolist() == [5] * 10
    assert some.names == whole.limit(50).names
    assert whole.limit(None) is whole and whole.limit(2000) is whole
    assert whole.limit(1).names == whole.names[:1]
    assert len(set(whole.limit(999).names)) == 999


def test_a_sample_depends_on_the_seed_alone(folder: Path) -> None:
    whole = many(folder, 1000, 10)
    some = whole.sample(100, seed=1)
    assert len(set(some.names)) == 100
    assert list(some.names) == sorted(some.names)
    assert some.names == whole.sample(100, seed=1).names != whole.sample(100, seed=2).names
    assert np.bincount(some.labels, minlength=10).min() > 0
    assert whole.sample(1000, seed=1) is whole
    assert all(f"{label}/" in name for label, name in zip(some.labels, some.names, strict=True))
    assert some.fingerprints == tuple(name[-7:] for name in some.names)


def many(folder: Path, n: int, classes: int) -> ImageSet:
    """A list without files."""
    names = tuple(f"{i * classes // n}/{i:03}.png" for i in range(n))
    labels = np.array([int(name[0]) for name in names])
    dataset = catalogue.dataset(f"folder:{folder}")
    return ImageSet(dataset, folder, names, tuple(name[-7:] for name in names), labels, tuple("0123456789"), n)


@pytest.mark.slow
def test_glyph_lists_are_computed_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    small = dataclasses.replace(catalogue.dataset("glyphs-digits"))
    first = load_images(small, LoadOptions(Path(), store), labelled=False)
    (entry,) = store.entries()
    os.utime(entry.path / "entry.json", (1, 1))
    again = load_images(small, LoadOptions(Path(), store, strict=True), labelled=False)
    assert again.digest == first.digest and again.names == first.names
    assert len(list(store.entries())) == 1
    assert next(store.entries()).used > 1  # found, not computed
    assert first.read(0).size == (32, 32)


@pytest.fixture(scope="module")
def pixels() -> Callable[[Image.Image], torch.Tensor]:
    card = EncoderCard(
        name="x", architecture="x", tag="", weights="", config={}, mean=(0.5,) * 3, std=(0.5,) * 3, size=(32, 32),
        resize_mode="shortest", interpolation="bicubic", fill_color=0, tokenizer="clip", embed_dim=1,
        activation="proj", width=1, scale=1.0,
    )  # fmt: skip
    return transform(card)


def decoded(folder: Path, name: str, pixels: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    found = listed(folder, labelled=False)
    with pillow_in_threads():
        return pixels(found.read(found.names.index(name)))


PATTERN = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("1", "png"), ("RGBA", "png"), ("I;16", "png"),
        ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "webp"), ("RGBA", "webp"), ("P", "gif"), ("RGB", "bmp"),
        ("RGB", "tif"), ("L", "tiff"), ("CMYK", "tif"), ("RGB", "ppm"), ("L", "pgm"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path: Path, pixels: Any, mode: str, kind: str) -> None:
    made = Image.fromarray(PATTERN[..., 0].astype(np.uint16) * 100) if mode == "I;16" else Image.fromarray(PATTERN)
    if made.mode != mode:
        made = made.convert(mode)
    made.save(tmp_path / f"x.{kind}")
    found = decoded(tmp_path, f"x.{kind}", pixels)
    assert found.shape == (3, 32, 32) and found.dtype == torch.uint8
    assert found.float().std() > 1 or mode == "I;16"  # 16 bits are clipped at 255, as in open_clip


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4000, 50), (50, 4000), (5000, 4000), (32, 32)])
def test_every_size_fits(tmp_path: Path, pixels: Any, size: tuple[int, int]) -> None:
    save(tmp_path / "x.png", 200, size)
    found = decoded(tmp_path, "x.png", pixels)
    assert found.shape == (3, 32, 32)
    assert bool((found[0] == 200).all())


def test_animations_and_multi_page_images_use_the_first_frame(tmp_path: Path, pixels: Any) -> None:
    frames = [Image.new("RGB", (20, 20), (shade, shade, shade)) for shade in (10, 100, 200)]
    for kind in ("gif", "tif", "webp", "png"):
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], **options)
        assert decoded(tmp_path, f"x.{kind}", pixels).float().mean() == pytest.approx(10, abs=1)


def test_the_format_is_detected_by_content_not_suffix(tmp_path: Path, pixels: Any) -> None:
    Image.fromarray(PATTERN).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.JPG")
    assert decoded(tmp_path, "x.JPG", pixels).float().std() > 1


def test_pillow_warnings_are_suppressed(tmp_path: Path, pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transparent palettes, images of many pixels, broken EXIF: pytest makes an error of any warning."""
    palette = Image.fromarray(PATTERN).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    decoded(tmp_path, "palette.png", pixels)
    Image.fromarray(PATTERN).save(tmp_path / "exif.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x0f\x01")
    decoded(tmp_path, "exif.jpg", pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # this one has 1920
    assert decoded(tmp_path, "palette.png", pixels).shape == (3, 32, 32)


def test_a_truncated_image_is_an_error(tmp_path: Path, pixels: Any) -> None:
    Image.fromarray(PATTERN).save(tmp_path / "x.jpg")
    raw = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(OSError, match="truncated"):
        decoded(tmp_path, "x.jpg", pixels)


def test_real_originals_are_all_decoded(shared: Path, tmp_path: Path, pixels: Any) -> None:
    dataset = catalogue.dataset(f"folder:{shared / 'data' / 'originals'}")
    found = load_images(dataset, LoadOptions(Path(), Store(tmp_path), strict=True), labelled=False)
    assert len(found) == 32
    modes, sides = set(), []
    with pillow_in_threads():
        for index in range(len(found)):
            image = found.read(index)
            modes.add(image.mode)
            sides.append(min(image.size))
            assert pixels(image).float().std() > 1
    assert "L" in modes and min(sides) < 100 and max(sides) > 1000
