"""Procedural textures: a function for each name that draws a mask in [0, 1] from random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SIZE = 32
Mask = npt.NDArray[np.float32]
Rng = np.random.Generator
_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE, 0:SIZE])


def _clip(value: npt.NDArray[np.floating]) -> Mask:
    return np.asarray(np.clip(value, 0.0, 1.0), np.float32)


def _wave(value: Mask, sharp: float) -> Mask:
    return _clip(0.5 + sharp * np.sin(value))


def _stripes(rng: Rng, angle: float) -> Mask:
    angle += rng.uniform(-0.12, 0.12)
    period = rng.uniform(4.0, 9.0)
    along = _X * np.float32(np.cos(angle)) + _Y * np.float32(np.sin(angle))
    return _wave(along * np.float32(2 * np.pi / period) + np.float32(rng.uniform(0, 6.3)), 1.5)


def _lattice(rng: Rng, low: float, high: float) -> tuple[Mask, Mask, float]:
    """Return both axes [32, 32] of a shifted, slightly rotated square lattice, and its period in pixels."""
    angle, period = rng.uniform(-0.15, 0.15), rng.uniform(low, high)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = _X * cos + _Y * sin + np.float32(rng.uniform(0, period))
    return across, _Y * cos - _X * sin + np.float32(rng.uniform(0, period)), period


def _checks(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 8.0, 15.0)
    k = np.float32(2 * np.pi / period)
    return _clip(0.5 + 3.0 * np.sin(a * k) * np.sin(b * k))


def _dots(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 7.0, 11.0)
    distance = np.hypot(a % period - period / 2, b % period - period / 2)
    return _clip(period * rng.uniform(0.22, 0.34) - distance + 0.5)


def _grid(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 6.0, 11.0)
    width = rng.uniform(1.0, 2.0)
    return _clip(width - np.minimum(a % period, b % period))


def _bricks(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 6.0, 8.0)
    shifted = a + (np.floor(b / period) % 2) * np.float32(period)
    return 1.0 - _clip(1.5 - np.minimum(shifted % (2 * period), b % period))


def _zigzag(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 8.0, 12.0)
    return _wave((b + np.abs(a % period - period / 2)) * np.float32(2 * np.pi / rng.uniform(6, 9)), 1.8)


def _waves(rng: Rng) -> Mask:
    a, b, period = _lattice(rng, 12.0, 20.0)
    bent = b + np.float32(rng.uniform(2, 3.5)) * np.sin(a * np.float32(2 * np.pi / period))
    return _wave(bent * np.float32(2 * np.pi / rng.uniform(6, 9)), 1.5)


def _plaid(rng: Rng) -> Mask:
    return np.float32(0.5) * (_stripes(rng, 0.0) + _stripes(rng, np.pi / 2))


def _crosshatch(rng: Rng) -> Mask:
    a, b = _stripes(rng, np.pi / 4), _stripes(rng, 3 * np.pi / 4)
    return _clip(3 * np.maximum(a, b) - 2)


def _centre(rng: Rng) -> tuple[Mask, Mask]:
    return _X - np.float32(rng.uniform(10, 22)), _Y - np.float32(rng.uniform(10, 22))


def _rings(rng: Rng) -> Mask:
    x, y = _centre(rng)
    return _wave(np.hypot(x, y) * np.float32(2 * np.pi / rng.uniform(5, 9)) + np.float32(rng.uniform(0, 6.3)), 1.5)


def _spiral(rng: Rng) -> Mask:
    x, y = _centre(rng)
    turn = rng.choice([-2.0, 2.0]) * np.arctan2(y, x)
    return _wave(np.hypot(x, y) * np.float32(2 * np.pi / rng.uniform(7, 10)) + turn.astype(np.float32), 1.5)


def _rays(rng: Rng) -> Mask:
    x, y = _centre(rng)
    return _wave(np.arctan2(y, x) * np.float32(rng.integers(6, 12)) + np.float32(rng.uniform(0, 6.3)), 2.0)


def _linear(rng: Rng) -> Mask:
    angle = rng.uniform(0, 2 * np.pi)
    along = (_X - 15.5) * np.float32(np.cos(angle)) + (_Y - 15.5) * np.float32(np.sin(angle))
    return _clip(0.5 + along / np.float32(rng.uniform(28, 40)))


def _radial(rng: Rng) -> Mask:
    x, y = _centre(rng)
    return _clip(1.0 - np.hypot(x, y) / np.float32(rng.uniform(14, 24)))


def _noise(rng: Rng) -> Mask:
    return rng.random((SIZE, SIZE), dtype=np.float32)


def _smooth(rng: Rng, cells: int) -> Mask:
    """Return random values on a coarse grid, linearly interpolated to [32, 32]."""
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    place = np.linspace(0, cells - 1e-3, SIZE, dtype=np.float32)
    low = place.astype(np.intp)
    part = place - low
    rows: Mask = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    smooth: Mask = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return smooth


def _blobs(rng: Rng) -> Mask:
    return _clip((_smooth(rng, 5) - np.float32(0.5)) * 8 + 0.5)


def _clouds(rng: Rng) -> Mask:
    return np.float32(0.6) * _smooth(rng, 3) + np.float32(0.4) * _smooth(rng, 8)


def _marble(rng: Rng) -> Mask:
    bent = _smooth(rng, 4) * np.float32(14.0) + (_X + _Y) * np.float32(0.25)
    return _clip(1.0 - np.abs(np.sin(bent)))


def _wood(rng: Rng) -> Mask:
    bent = _smooth(rng, 3) * np.float32(5.0) + _Y * np.float32(rng.uniform(0.7, 1.1))
    return _clip(0.5 + 0.5 * np.sin(bent) + np.float32(0.2) * (_noise(rng) - 0.5))


def _mosaic(rng: Rng) -> Mask:
    side = int(rng.integers(3, 6))
    tiles = rng.random((SIZE // side + 1, SIZE // side + 1), dtype=np.float32)
    return np.repeat(np.repeat(tiles, side, 0), side, 1)[:SIZE, :SIZE]


def _speckles(rng: Rng) -> Mask:
    return (_noise(rng) < rng.uniform(0.03, 0.08)).astype(np.float32)


def _cells(rng: Rng) -> Mask:
    points = rng.random((12, 2), dtype=np.float32) * SIZE
    far = np.hypot(_X[..., None] - points[:, 0], _Y[..., None] - points[:, 1])
    nearest = np.partition(far, 1, axis=-1)
    return _clip((nearest[..., 1] - nearest[..., 0]) / 2 - 0.2)


_FUNCTIONS: dict[str, Callable[[Rng], Mask]] = {
    "vertical stripes": lambda rng: _stripes(rng, 0.0),
    "horizontal stripes": lambda rng: _stripes(rng, np.pi / 2),
    "diagonal stripes": lambda rng: _stripes(rng, rng.choice([0.25, 0.75]) * np.pi),
    **{"checkerboard": _checks, "polka dots": _dots, "mesh": _grid, "bricks": _bricks, "zigzag pattern": _zigzag},
    **{"waves": _waves, "plaid": _plaid, "crosshatching": _crosshatch, "concentric rings": _rings, "spiral": _spiral},
    **{"sunburst pattern": _rays, "linear gradient": _linear, "radial gradient": _radial, "random noise": _noise},
    **{"blobs": _blobs, "fog": _clouds, "marble": _marble, "wood grain": _wood, "mosaic": _mosaic},
    **{"speckles": _speckles, "cracked cells": _cells},
}
NAMES = tuple(_FUNCTIONS)


def mask(name: str, rng: Rng) -> Mask:
    """Return a mask [32, 32] in [0, 1] of the named texture; all its parameters are drawn from `rng`."""
    return _FUNCTIONS[name](rng)
