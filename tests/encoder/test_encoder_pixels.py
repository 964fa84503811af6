"""Preprocessing: our pixels, divided by 255 and normalised, equal open_clip's own transform exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from oodbench.encoder.card import EncoderCard, parse_encoder
from oodbench.encoder.openclip import disable_tf32, transform
from oodbench.encoder.resolve import resolve
from oodbench.storage.store import Store

ORIGINALS = Path(__file__).resolve().parents[3] / "shared" / "data" / "originals"
MODES = ("shortest", "squash", "longest")
FILTERS = ("bicubic", "bilinear")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> EncoderCard:
    return resolve(parse_encoder("glyphs"), None, Store(tmp_path_factory.mktemp("store"))).card


def noise(height: int, width: int, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def pictures() -> dict[str, Image.Image]:
    """One image of every mode and shape."""
    colour = Image.fromarray(noise(50, 70, 3))
    deep = (noise(40, 30, 1)[..., 0].astype(np.uint16) * 200) + 7
    return {
        "colour": colour,
        "portrait": Image.fromarray(noise(91, 40, 3)),
        "exact": Image.fromarray(noise(32, 32, 3)),
        "grey": colour.convert("L"),
        "grey with alpha": colour.convert("LA"),
        "bits": colour.convert("1"),
        "palette": colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
        "alpha": Image.fromarray(noise(50, 70, 4)),
        "cmyk": colour.convert("CMYK"),
        "ycbcr": colour.convert("YCbCr"),
        "16 bit": Image.fromarray(deep),
        "32 bit": Image.fromarray(deep.astype(np.int32)),
        "float": Image.fromarray(deep.astype(np.float32) / 300),
        "one pixel": Image.new("RGB", (1, 1), (200, 100, 5)),
        "line": Image.fromarray(noise(1, 300, 3)),
        "column": Image.fromarray(noise(301, 2, 3)),
    }


def assert_same(image: Image.Image, card: EncoderCard) -> None:
    theirs = open_clip.transform.image_transform(
        card.size,
        is_train=False,
        mean=card.mean,
        std=card.std,
        resize_mode=card.resize_mode,
        interpolation=card.interpolation,
        fill_color=card.fill_color,
    )
    try:
        expected = theirs(image.copy())
    except ValueError as error:  # a line, resized to the length of the square, has no width left
        assert "must be > 0" in str(error) and card.resize_mode == "longest" and min(image.size) < 3
        with pytest.raises(ValueError, match="must be > 0"):
            transform(card)(image.copy())
        return
    ours = transform(card)(image.copy())
    assert ours.dtype == torch.uint8 and ours.shape == (3, *card.size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    assert torch.equal((ours.float() / 255 - mean) / std, expected)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", pictures())
def test_pixels_are_those_of_open_clip(name: str, mode: str, interpolation: str, card: EncoderCard) -> None:
    assert_same(pictures()[name], dataclasses.replace(card, resize_mode=mode, interpolation=interpolation))


@pytest.mark.parametrize("mode", MODES)
def test_sizes_that_are_not_square(mode: str, card: EncoderCard) -> None:
    assert_same(pictures()["colour"], dataclasses.replace(card, resize_mode=mode, size=(32, 48), fill_color=127))


def test_the_recorded_filter_is_used(card: EncoderCard) -> None:
    for size in [(32, 32), (32, 48)]:  # open_clip always uses bicubic for the second
        cubic, linear = (
            transform(dataclasses.replace(card, size=size, interpolation=chosen))(pictures()["colour"])
            for chosen in FILTERS
        )
        assert not torch.equal(cubic, linear)


@pytest.mark.parametrize("mode", MODES)
def test_photographs(mode: str, card: EncoderCard) -> None:
    photographs = sorted(ORIGINALS.glob("*.JPEG"))[:8]
    if not photographs:
        pytest.skip(f"no photographs at {ORIGINALS}")
    for path in photographs:
        with Image.open(path) as image:
            assert_same(image, dataclasses.replace(card, resize_mode=mode, size=(224, 224)))


def test_float32_is_not_rounded_to_tf32_on_gpus() -> None:
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True  # cuDNN's default
        disable_tf32()
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
