"""The corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261), 18 types in five severities.

Types and constants are those of its released code, without frost, whose photographs we may not distribute. `pixels` is
a uint8 image [h w 3] of at most 256 pixels a side. A corruption returns such an image, or floats, which are clipped to
[0, 1] and rounded down to bytes as in ImageNet-C.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 224  # pixels of ImageNet-C's images
QUALITY = 85  # of the JPEG files in which ImageNet-C stores them

Array = npt.NDArray[Any]
Draws = np.random.Generator


def corrupted(image: Image, kind: str, severity: int, resize: int = SIDE) -> Image:
    """Return an image with a deterministic corruption, as ImageNet-C stores it.

    The shorter side is resized to `resize` pixels, bilinear; the centre of 224 x 224 is cropped, corrupted, and stored
    as JPEG of quality 85.
    """
    pixels = _prepared(image, resize)
    return _stored(_FIXED[kind](pixels, CONSTANTS[kind][severity - 1]))


def corrupted_at_random(image: Image, rng: Draws, kind: str, severity: int, resize: int = SIDE) -> Image:
    """Return an image with a random corruption, prepared and stored as by corrupted()."""
    pixels = _prepared(image, resize)
    return _stored(_DRAWN[kind](pixels, CONSTANTS[kind][severity - 1], rng))


def _prepared(image: Image, resize: int) -> Array:
    from torchvision.transforms.functional import InterpolationMode, center_crop
    from torchvision.transforms.functional import resize as resized

    smaller: Any = resized(image.convert("RGB"), [resize], InterpolationMode.BILINEAR)
    return np.asarray(center_crop(smaller, [SIDE, SIDE]))


def _stored(corruption: Array) -> Image:
    """Return the corrupted image after JPEG compression."""
    from PIL import Image

    pixels = corruption if corruption.dtype == np.uint8 else (np.clip(corruption, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(_as_jpeg(pixels, QUALITY))


def _as_jpeg(pixels: Array, quality: int) -> Array:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# --- noise ------------------------------------------------------------------------------------------------------------


def _gaussian_noise(pixels: Array, scale: float, rng: Draws) -> Array:
    return pixels / 255.0 + rng.normal(size=pixels.shape, scale=scale)


def _shot_noise(pixels: Array, photons: float, rng: Draws) -> Array:
    return rng.poisson(pixels / 255.0 * photons) / photons


def _impulse_noise(pixels: Array, amount: float, rng: Draws) -> Array:
    hit, white = rng.random(pixels.shape) <= amount, rng.random(pixels.shape) <= 0.5
    return np.where(hit, white, pixels / 255.0)


def _speckle_noise(pixels: Array, scale: float, rng: Draws) -> Array:
    x = pixels / 255.0
    return x + x * rng.normal(size=x.shape, scale=scale)


# --- blur -------------------------------------------------------------------------------------------------------------


def _gaussian_blur(pixels: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(pixels / 255.0, (sigma, sigma, 0), mode="nearest"))


def _glass_blur(pixels: Array, constants: tuple[float, int, int], rng: Draws) -> Array:
    """Replace pixels by neighbours, from the last row and column to the first, between two Gaussian blurs.

    The released code is meant to swap two pixels; as both are views of one array, it copies the neighbour instead.
    """
    sigma, delta, rounds = constants
    x = (_gaussian_blur(pixels, sigma) * 255).astype(np.uint8)
    height, width = x.shape[:2]
    source = list(range(height * width))  # the pixel that each pixel is copied from, row by row
    inner = np.arange(height * width).reshape(height, width)[delta + 1 : height - delta + 1, delta + 1 :]
    places = inner[::-1, : width - 2 * delta][:, ::-1].ravel()
    for _ in range(rounds):
        right, down = rng.integers(-delta, delta, size=(len(places), 2)).T
        for place, neighbour in zip(places.tolist(), (places + width * down + right).tolist(), strict=True):
            source[place] = source[neighbour]
    return _gaussian_blur(x.reshape(-1, 3)[source].reshape(x.shape), sigma)


def _defocus_blur(pixels: Array, constants: tuple[int, float]) -> Array:
    """Convolve with a disk whose border is softened by a small Gaussian kernel of 3 or 5 taps."""
    from scipy.ndimage import correlate1d
    from scipy.signal import fftconvolve

    radius, alias = constants
    side, taps = (8, 1) if radius <= 8 else (radius, 2)
    across = np.arange(-side, side + 1) ** 2
    disk = (across[:, None] + across <= radius**2).astype(np.float64)
    soft = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * alias**2))
    disk /= disk.sum()
    for axis in (0, 1):
        disk = correlate1d(disk, soft / soft.sum(), axis, mode="mirror")
    padded = np.pad(pixels / 255.0, ((side, side), (side, side), (0, 0)), "reflect")
    return np.asarray(fftconvolve(padded, disk[..., None], "valid", axes=(0, 1)))


def _motion_blur(pixels: Array, constants: tuple[int, float], rng: Draws) -> Array:
    return _moved(pixels, *constants, angle=rng.uniform(-45, 45))


def _moved(pixels: Array, radius: int, sigma: float, angle: float) -> Array:
    """Return ImageMagick's motion blur, in bytes: half a Gaussian along a line.

    The line has 2 radius + 1 points at `angle` degrees, rounded to whole pixels; the border is repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    height, width = pixels.shape[:2]
    margin = len(steps)
    padded = np.pad(pixels.astype(np.float64), [(margin, margin)] * 2 + [(0, 0)] * (pixels.ndim - 2), "edge")
    blurred = np.zeros(pixels.shape)
    for weight, y, x in zip(weights, margin + down, margin + right, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return np.clip(blurred + 0.5, 0, 255).astype(np.uint8)


def _zoom_blur(pixels: Array, constants: tuple[float, float]) -> Array:
    """Return the mean of the image and of its centre, enlarged step by step."""
    x = (pixels / 255.0).astype(np.float32)
    factors = np.arange(1, *constants)
    total = np.zeros_like(x)
    for factor in factors:
        total += _zoomed(x, factor)
    return (x + total) / (len(factors) + 1)


def _zoomed(image: Array, factor: float) -> Array:
    """Return the centre of an image, enlarged to the size of the image."""
    from scipy.ndimage import zoom

    side = image.shape[0]
    part = int(np.ceil(side / factor))
    top = (side - part) // 2
    larger = zoom(image[top : top + part, top : top + part], (factor, factor, 1), order=1)
    trim = (larger.shape[0] - side) // 2
    return np.asarray(larger[trim : trim + side, trim : trim + side])


# --- weather ----------------------------------------------------------------------------------------------------------


def _fog(pixels: Array, constants: tuple[float, float], rng: Draws) -> Array:
    amount, decay = constants
    x = pixels / 255.0
    largest = x.max()
    height, width = x.shape[:2]
    foggy = x + amount * _plasma(decay, rng)[:height, :width, None]
    return np.asarray(foggy * largest / (largest + amount))


def _plasma(decay: float, rng: Draws, side: int = 256) -> Array:
    """Return a cloud [side side] in 0..1 by the diamond-square algorithm, on a torus.

    The half-width of the draws begins at 10,000 and is divided by the square of `decay` whenever the step is halved.
    """
    cloud = np.zeros((side, side))
    step, spread = side, 100.0

    def near(total: Array) -> Array:
        return total / 4 + spread * rng.uniform(-spread, spread, total.shape)

    while step >= 2:
        half = step // 2
        corners, centres = cloud[::step, ::step], cloud[half::step, half::step]
        rows = corners + np.roll(corners, -1, 0)
        centres[:] = near(rows + np.roll(rows, -1, 1))
        cloud[::step, half::step] = near(centres + np.roll(centres, 1, 0) + (corners + np.roll(corners, -1, 1)))
        cloud[half::step, ::step] = near(centres + np.roll(centres, 1, 1) + (corners + np.roll(corners, -1, 0)))
        step, spread = half, spread / decay
    cloud -= cloud.min()
    return np.asarray(cloud / cloud.max())


def _snow(pixels: Array, constants: tuple[float, float, float, float, int, float, float], rng: Draws) -> Array:
    mean, scale, factor, threshold, radius, sigma, share = constants
    x = (pixels / 255.0).astype(np.float32)
    flakes = _zoomed(rng.normal(size=(*x.shape[:2], 1), loc=mean, scale=scale), factor)[..., 0]
    flakes = (np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255).astype(np.uint8)
    fallen = (_moved(flakes, radius, sigma, rng.uniform(-135, -45)) / 255.0)[..., None]
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
    whitened = share * x + (1 - share) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return np.asarray(whitened + fallen + np.rot90(fallen, 2))


def _spatter(pixels: Array, constants: tuple[float, float, float, float, float, int], rng: Draws) -> Array:
    """Cover the image with drops of water (severities 1 to 3) or with mud (4 and 5)."""
    from scipy.ndimage import gaussian_filter

    mean, scale, sigma, threshold, strength, is_mud = constants
    x = (pixels / 255.0).astype(np.float32)
    liquid = gaussian_filter(rng.normal(size=x.shape[:2], loc=mean, scale=scale), sigma, mode="nearest")
    if is_mud:
        mud = gaussian_filter((liquid > threshold).astype(np.float32), strength, mode="nearest")[..., None]
        mud[mud < 0.8] = 0
        return np.asarray(x * (1 - mud) + mud * np.array([63, 42, 20]) / 255)
    water = np.where(liquid < threshold, 0, liquid * 255).astype(np.uint8)
    shaded = water * _relief(water)
    drops = (strength * shaded / max(shaded.max(), 1e-12))[..., None]
    return np.asarray(x + drops * np.array([175, 238, 238]) / 255)


def _relief(water: Array) -> Array:
    """Return the brightness of drops, brightest on one side: the slope of their distance to the nearest edge."""
    from scipy.ndimage import correlate, uniform_filter

    distance = _distance(_edges(water, 50, 150), 20)
    depth = np.floor(uniform_filter(distance, 3, mode="mirror") + 1e-9).astype(np.uint8)
    slope = correlate(_equalised(depth).astype(int), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return np.asarray(np.rint(uniform_filter(np.clip(slope, 0, 255.0), 3, mode="mirror")))


def _distance(edges: Array, most: int) -> Array:
    """Return the length [h w] of the shortest path to an edge, at most `most`, in OpenCV's steps of a 5 x 5 mask."""
    steps = [
        (down, right, length)
        for down in range(-2, 3)
        for right in range(-2, 3)
        if (length := {1: 1.0, 2: 1.4, 5: 2.1969}.get(down**2 + right**2))
    ]
    height, width = edges.shape
    distance = np.where(edges, 0.0, most)
    for _ in range(most):  # no step is shorter than 1
        padded = np.pad(distance, 2, constant_values=most)
        for down, right, length in steps:
            distance = np.minimum(distance, padded[2 + down :, 2 + right :][:height, :width] + length)
    return np.asarray(distance)


def _edges(image: Array, low: float, high: float) -> Array:
    """Return Canny's edges [h w]: ridges of the gradient above `low` that are connected with one above `high`."""
    from scipy.ndimage import label, sobel

    x, y = (sobel(image.astype(int), axis, mode="nearest") for axis in (1, 0))
    size = np.abs(x) + np.abs(y)
    padded = np.pad(size, 1)

    def beside(down: int, right: int) -> Array:
        height, width = size.shape
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = np.abs(y) < np.abs(x) * np.tan(np.pi / 8), np.abs(y) > np.abs(x) * np.tan(3 * np.pi / 8)
    falling = (x < 0) == (y < 0)
    ridge = np.select(
        [flat, steep, falling],
        [
            (size > beside(0, -1)) & (size >= beside(0, 1)),
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            (size > beside(-1, -1)) & (size > beside(1, 1)),
        ],
        (size > beside(-1, 1)) & (size > beside(1, -1)),
    )
    parts, _ = label(ridge & (size > low), np.ones((3, 3)))
    return np.isin(parts, parts[ridge & (size > high)])


def _equalised(image: Array) -> Array:
    """Return bytes with an equalised histogram."""
    counts = np.bincount(image.ravel(), minlength=256)
    first = counts[np.flatnonzero(counts)[0]]
    if first == image.size:
        return image
    levels = np.rint(np.maximum(counts.cumsum() - first, 0) * 255 / (image.size - first))
    return np.asarray(levels.astype(np.uint8)[image])


# --- digital and colour -----------------------------------------------------------------------------------------------


def _contrast(pixels: Array, factor: float) -> Array:
    x = pixels / 255.0
    means = x.mean((0, 1), keepdims=True)
    return np.asarray((x - means) * factor + means)


def _brightness(pixels: Array, amount: float) -> Array:
    """Add to the value of HSV: all channels are scaled by one factor."""
    x = pixels / 255.0
    value = _largest(x)
    brighter = np.minimum(value + amount, 1)
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def _saturate(pixels: Array, constants: tuple[float, float]) -> Array:
    """Scale and shift the saturation of HSV: one factor scales how far each channel is below the largest.

    Grey has no hue and is treated as red.
    """
    factor, shift = constants
    x = pixels / 255.0
    value = _largest(x)
    lacking = value - x
    most = _largest(lacking)
    saturation = most / np.where(value > 0, value, 1)
    lacking = np.where(most > 0, lacking / np.where(most > 0, most, 1), [0, 1, 1])  # in units of the largest
    return np.asarray(value * (1 - np.clip(saturation * factor + shift, 0, 1) * lacking))


def _largest(x: Array) -> Array:
    """Return the largest channel [h w 1]; several times faster than x.max(-1)."""
    return np.asarray(np.maximum(np.maximum(x[..., :1], x[..., 1:2]), x[..., 2:]))


def _jpeg_compression(pixels: Array, quality: int) -> Array:
    return _as_jpeg(pixels, quality)


def _pixelate(pixels: Array, factor: float) -> Array:
    from PIL import Image

    height, width, _ = pixels.shape
    small = Image.fromarray(pixels).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _elastic_transform(pixels: Array, constants: tuple[float, float, float], rng: Draws) -> Array:
    """Move three corners of a square at random, and then all pixels by a smooth field."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    alpha, sigma, shift = constants
    x = (pixels / 255.0).astype(np.float32)
    height, width = x.shape[:2]
    centre, side = np.array([height, width]) // 2, min(height, width) // 3
    corners = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])  # as (x, y)
    moved = corners + rng.uniform(-shift, shift, size=corners.shape)
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], corners)  # [3 2]: from (x, y, 1) of the result to the image
    down, right = np.mgrid[:height, :width]
    x_from, y_from = np.moveaxis(np.stack([right, down, np.ones_like(down)], -1) @ affine, -1, 0)
    field = [
        alpha * gaussian_filter(rng.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    ]

    def sampled(image: Array, places: Array, mode: str) -> Array:
        return np.stack([map_coordinates(image[..., i], places, order=1, mode=mode) for i in range(3)], -1)

    turned = sampled(x, np.stack([y_from, x_from]), "mirror")
    return sampled(turned, np.stack([down + field[1], right + field[0]]), "reflect")


_FIXED: dict[str, Callable[[Array, Any], Array]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "defocus_blur": _defocus_blur,
    "gaussian_blur": _gaussian_blur,
    "jpeg_compression": _jpeg_compression,
    "pixelate": _pixelate,
    "saturate": _saturate,
    "zoom_blur": _zoom_blur,
}
_DRAWN: dict[str, Callable[[Array, Any, Draws], Array]] = {
    "elastic_transform": _elastic_transform,
    "fog": _fog,
    "gaussian_noise": _gaussian_noise,
    "glass_blur": _glass_blur,
    "impulse_noise": _impulse_noise,
    "motion_blur": _motion_blur,
    "shot_noise": _shot_noise,
    "snow": _snow,
    "spatter": _spatter,
    "speckle_noise": _speckle_noise,
}
KINDS = tuple(sorted((*_FIXED, *_DRAWN)))
SEVERITIES = (1, 2, 3, 4, 5)
RANDOM = frozenset(_DRAWN)  # the kinds that draw random numbers

# The arguments of the function of the same name, per type and severity. A value may be a tuple:
# defocus_blur: radius, softening; elastic_transform: field, its smoothness, affine; fog: amount, decay; glass_blur:
# sigma, distance, rounds; motion_blur: radius, sigma; saturate: factor, shift; snow: mean, scale, zoom, threshold,
# radius, sigma, image weight; spatter: mean, scale, sigma, threshold, strength, mud; zoom_blur: last factor, step
CONSTANTS: dict[str, tuple[Any, ...]] = {
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "elastic_transform": (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "shot_noise": (60, 25, 12, 5, 3),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
}
