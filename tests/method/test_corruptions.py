"""ImageNet-C's corruptions against scipy, colorsys and formulas, and their order: resize, crop, corrupt, JPEG."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from oodbench.method import corruptions
from oodbench.method.corruptions import CONSTANTS, KINDS, RANDOM, SIDE, corrupted, corrupted_at_random

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth image with edges, colours, grey and black, 300 x 260."""
    rows, columns = np.mgrid[:260, :300]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 17), np.sin((rows + columns) / 23)], -1) * 127 + 128
    waves[80:120, 100:200] = waves[80:120, 100:200].mean(-1, keepdims=True)
    waves[140:160, 100:200] = 0
    return Image.fromarray(waves.astype(np.uint8))


def apply(kind: str, severity: int, pixels: Array, seed: int = 0) -> Array:
    constants = CONSTANTS[kind][severity - 1]
    if kind in RANDOM:
        return corruptions._DRAWN[kind](pixels, constants, np.random.default_rng(seed))
    return corruptions._FIXED[kind](pixels, constants)


def in_hsv(change: Callable[[float, float, float], tuple[float, float, float]]) -> Callable[[Array], Array]:
    def changed(x: Array) -> Array:
        flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in x.reshape(-1, 3)]
        return np.array(flat).reshape(x.shape)

    return changed


def disk(x: Array, radius: int, alias: float, size: int) -> Array:
    across = np.arange(-max(radius, 8), max(radius, 8) + 1)
    kernel = (np.hypot(across[:, None], across) <= radius) / (np.hypot(across[:, None], across) <= radius).sum()
    soft = np.exp(-0.5 * ((np.arange(size) - size // 2) / alias) ** 2)
    kernel = ndimage.correlate(kernel, np.outer(soft, soft) / soft.sum() ** 2, mode="mirror")
    return np.stack([ndimage.convolve(x[..., i], kernel, mode="mirror") for i in range(3)], -1)


FORMULAS: list[tuple[str, int, Callable[[Array], Array]]] = [
    ("brightness", 2, in_hsv(lambda h, s, v: (h, s, min(v + 0.2, 1)))),
    ("saturate", 1, in_hsv(lambda h, s, v: (h, 0.3 * s, v))),
    ("saturate", 4, in_hsv(lambda h, s, v: (h, min(5 * s + 0.1, 1), v))),
    ("contrast", 1, lambda x: 0.4 * x + 0.6 * x.mean((0, 1))),
    (
        "gaussian_blur",
        2,
        lambda x: np.stack([ndimage.gaussian_filter(x[..., i], 2, mode="nearest") for i in range(3)], -1),
    ),
    ("defocus_blur", 2, lambda x: disk(x, 4, 0.5, 3)),
    ("defocus_blur", 5, lambda x: disk(x, 10, 0.5, 5)),
]


@pytest.mark.parametrize(("kind", "severity", "formula"), FORMULAS)
def test_corruption_equals_its_formula(
    kind: str, severity: int, formula: Callable[[Array], Array], photo: Image.Image
) -> None:
    pixels = np.asarray(photo)[70:166, 90:186]
    np.testing.assert_allclose(apply(kind, severity, pixels), formula(pixels / 255), atol=1e-9)


def test_motion_blur_is_a_mean_along_a_line() -> None:
    """To the right, half a Gaussian is a correlation along rows; downwards, along columns; the border is repeated."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    half = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    weights = np.concatenate([np.zeros(20), half / half.sum()])
    for angle, axis in ((0.0, 1), (90.0, 0)):
        expected = ndimage.correlate1d(pixels.astype(float), weights, axis, mode="nearest")
        assert np.abs(corruptions._moved(pixels, 10, 3, angle) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("kind", "severity", "mean", "deviation"),
    [
        ("gaussian_noise", 1, 0.5, 0.08),
        ("shot_noise", 1, 0.5, (0.5 / 60) ** 0.5),
        ("speckle_noise", 1, 0.5, 0.5 * 0.15),
        ("impulse_noise", 3, 0.5, (0.09 * 0.25) ** 0.5),
    ],
)
def test_noise_has_the_expected_moments(kind: str, severity: int, mean: float, deviation: float) -> None:
    grey = np.full((200, 200, 3), 127.5)
    noisy = apply(kind, severity, grey)
    assert noisy.mean() == pytest.approx(mean, abs=4 * deviation / noisy.size**0.5)
    assert noisy.std() == pytest.approx(deviation, rel=0.02)


def test_fog_lies_over_the_image(photo: Image.Image) -> None:
    """(x + c plasma) max / (max + c): its plasma is recovered, the same in all channels, and spans 0 to 1."""
    pixels = np.asarray(photo)[:224, :224]
    x, amount = pixels / 255, 2.5
    plasma = (apply("fog", 4, pixels) * (x.max() + amount) / x.max() - x) / amount
    np.testing.assert_allclose(plasma, plasma[..., :1].repeat(3, -1), atol=1e-9)
    assert -1e-9 < plasma.min() < 0.3 and 0.7 < plasma.max() < 1 + 1e-9
    near, far = (np.abs(plasma[step:] - plasma[:-step]).mean() for step in (1, 64))
    assert near < far / 2, "a cloud, not white noise"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_returns_an_image(kind: str, photo: Image.Image) -> None:
    """Severity 5 is further from the image than severity 1; random kinds follow their generator."""
    pixels = np.asarray(photo)[:SIDE, :SIDE]
    made = [
        np.clip(out if out.dtype != np.uint8 else out / 255, 0, 1) for out in (apply(kind, s, pixels) for s in (1, 5))
    ]
    distance = [float(np.abs(one - pixels / 255).mean()) for one in made]
    assert all(one.shape == pixels.shape for one in made)
    assert distance[0] > 0.001 and (distance[1] > distance[0] or kind in ("elastic_transform", "saturate"))
    if kind in RANDOM and kind != "glass_blur":
        again, other = (apply(kind, 1, pixels, seed) for seed in (0, 1))
        assert np.array_equal(again, apply(kind, 1, pixels, 0)) and not np.array_equal(again, other)


@pytest.mark.parametrize("resize", [224, 256])
def test_order_is_resize_crop_corrupt_jpeg(resize: int, photo: Image.Image) -> None:
    width = int(resize * 300 / 260)
    small = photo.resize((width, resize), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), (resize - 224) // 2
    pixels = np.asarray(small.crop((left, top, left + 224, top + 224)))
    changed = (np.clip(apply("contrast", 3, pixels), 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(changed).save(file, "JPEG", quality=85)
    made = corrupted(photo.convert("RGBA"), "contrast", 3, resize)
    assert made.size == (224, 224) and made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    "image", [Image.new("L", (3, 500), 7), Image.new("RGB", (1, 1)), Image.new("RGB", (224, 224), "white")]
)
def test_flat_images_can_be_corrupted(image: Image.Image) -> None:
    """Flat images have no edges, no hue and no contrast."""
    for kind in ("brightness", "saturate", "contrast", "pixelate"):
        assert corrupted(image, kind, 5).size == (224, 224)
    for kind, severity in (("fog", 3), ("spatter", 1), ("spatter", 5)):
        assert corrupted_at_random(image, np.random.default_rng(0), kind, severity).size == (224, 224)
