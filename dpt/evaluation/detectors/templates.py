"""The renderer's shapes in a canonical frame, with what fitting needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from dpt.data.scenes.render import coverage
from dpt.data.scenes.world import SHAPES, Box

Floats = NDArray[np.float32]

GRID = np.linspace(-1.35, 1.35, 22, dtype=np.float32)
"""Where a shape is sampled along each axis; its box spans -1 to 1."""
HALVES = (5.5, 7.25, 9.0, 10.6, 13.0)
"""Half widths in pixels that have templates of their own: the blur matters more for a smaller object."""
FINE = 48
"""Half width, in fine pixels, at which templates are drawn before they are blurred and sampled."""
CANVAS = 160
SOFT_STEP = 0.8
"""Blur, in pixels, whose effect one unit of the softness coefficient stands for."""
DRAWN_BLUR = 0.4
"""Blur, in pixels, of anti-aliasing and resampling together."""


@dataclass(frozen=True)
class Bank:
    """Templates by (half width, shape); models are (value, d/dx, d/dy, x d/dx, y d/dy, softening)."""

    shapes: tuple[str, ...]
    values: Floats  # (halves, shapes, points)
    softenings: Floats  # (halves, shapes, points)
    solvers: Floats  # (halves, shapes, 6, points): residual -> x, y, width, height, strength, softness
    insets: Floats  # (halves, shapes, 4): left, top, right, bottom edges as `edges` measures them


@cache
def bank(smoothing: float) -> Bank:
    cells = [[_template(shape, half, smoothing) for shape in SHAPES] for half in HALVES]
    values, softenings, solvers, insets = (
        np.stack([np.stack([cell[part] for cell in row]) for row in cells]).astype(np.float32)
        for part in range(4)
    )
    return Bank(SHAPES, values, softenings, solvers, insets)


def edges(cover: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is more than half covered, to a fraction of a pixel."""
    left, right = _crossings(cover.max(0))
    top, bottom = _crossings(cover.max(1))
    return left, top, right, bottom


def _crossings(profile: NDArray[np.floating], level: float = 0.5) -> tuple[float, float]:
    """First and last place where a profile of pixels crosses the level, as a continuous coordinate."""
    padded = np.concatenate([[0.0], profile, [0.0]])
    above = np.flatnonzero(padded > level)
    first, last = int(above[0]), int(above[-1])
    rise = (level - padded[first - 1]) / (padded[first] - padded[first - 1])
    fall = (padded[last] - level) / (padded[last] - padded[last + 1])
    return first - 1 + rise - 0.5, last + fall - 0.5  # padded pixel i is pixel i - 1, centred at i - 0.5


def _template(shape: str, half: float, smoothing: float) -> tuple[NDArray[np.floating], ...]:
    scale = FINE / half
    middle = CANVAS / 2
    box = Box(middle - FINE, middle - FINE, middle + FINE, middle + FINE)
    sharp = coverage(shape, box, slice(0, CANVAS), slice(0, CANVAS))
    blur = float(np.hypot(smoothing, DRAWN_BLUR))
    drawn = gaussian_filter(sharp, blur * scale, mode="constant")
    softer = gaussian_filter(sharp, float(np.hypot(blur, SOFT_STEP)) * scale, mode="constant")
    down, across = np.gradient(drawn)

    at = GRID * FINE + middle - 0.5
    ys, xs = np.meshgrid(at, at, indexing="ij")
    value, softening, dy, dx = (
        map_coordinates(field, (ys, xs), order=1).ravel()
        for field in (drawn, softer - drawn, down * FINE, across * FINE)
    )
    y, x = (part.ravel() for part in np.meshgrid(GRID, GRID, indexing="ij"))
    jacobian = np.stack([dx, dy, x * dx, y * dy, value, softening], axis=1)
    inset = (np.array(edges(drawn)) - middle) / FINE
    return value, softening, np.linalg.pinv(jacobian), inset
