"""Templates of the renderer's shapes, fitted to every blob at once by Gauss-Newton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from dpt.claims.boxes import Box
from dpt.claims.words import SHAPES
from dpt.data.scenes.render import coverage

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
        np.stack([np.stack([cell[part] for cell in row]) for row in cells]).astype(np.float32) for part in range(4)
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


STEPS = 6

LARGEST_STEP = 0.2
"""Most a frame moves or grows in a step, as a share of its half width: wrong shapes may not run away."""

SOFTEST = 1.5

SMALLEST_HALF = 3.0


@dataclass(frozen=True)
class Fit:
    """Of one blob, per shape of the bank."""

    boxes: Floats  # (shapes, 4): x0, y0, x1, y1 in the coordinates of the blob's window
    strengths: Floats  # (shapes,)
    residuals: Floats  # (shapes,): mean squared
    powers: Floats  # (shapes,): mean squared strength of the fitted template


def fit_shapes(covers: Floats, bank: Bank) -> list[Fit]:
    """`covers`: (blobs, height, width), how much of each pixel each blob covers."""
    measured = np.array([edges(cover) for cover in covers], np.float32)  # (blobs, 4)
    nominal = np.log(np.array(HALVES, np.float32))
    inset = bank.insets[len(HALVES) // 2]  # (shapes, 4)
    reach = (inset[:, 2:] - inset[:, :2])[None]  # of the half width, by shape
    half = (measured[:, None, 2:] - measured[:, None, :2]) / reach  # (blobs, shapes, 2)
    centre = measured[:, None, :2] - inset[None, :, :2] * half
    shape = np.arange(len(bank.shapes))[None]
    strength = np.ones(half.shape[:2], np.float32)
    softness = np.zeros(half.shape[:2], np.float32)

    for step in range(STEPS + 1):
        half = np.maximum(half, SMALLEST_HALF)
        level = np.abs(np.log(half).mean(-1, keepdims=True) - nominal).argmin(-1)  # (blobs, shapes)
        value = bank.values[level, shape]
        softening = bank.softenings[level, shape]
        model = strength[..., None] * value + softness[..., None] * softening
        difference = sample(covers, centre, half) - model
        if step == STEPS:
            break
        delta = (bank.solvers[level, shape] @ difference[..., None])[..., 0]
        geometry = delta[..., :4] / np.maximum(strength, 0.3)[..., None]
        geometry = np.clip(geometry, -LARGEST_STEP, LARGEST_STEP)
        centre = centre - geometry[..., :2] * half
        half = half / (1 + geometry[..., 2:])
        strength = np.clip(strength + delta[..., 4], 0.3, 2.0)
        softness = np.clip(softness + delta[..., 5], -0.5, SOFTEST)

    boxes = np.concatenate([centre - half, centre + half], axis=-1)
    residuals = np.einsum("...i,...i->...", difference, difference) / GRID.size**2
    powers = np.einsum("...i,...i->...", model, model) / GRID.size**2
    return [Fit(*parts) for parts in zip(boxes, strength, residuals, powers, strict=True)]


def sample(covers: Floats, centre: Floats, half: Floats) -> Floats:
    """Bilinear samples of (blobs, height, width) on the grid of each (blob, shape) frame."""
    height, width = covers.shape[1:]
    rows = _interpolation(centre[..., 1], half[..., 1], height)
    columns = _interpolation(centre[..., 0], half[..., 0], width)
    sampled = rows @ covers[:, None] @ columns.swapaxes(-1, -2)
    return np.asarray(sampled.reshape(*sampled.shape[:2], -1), np.float32)


def _interpolation(centre: Floats, half: Floats, length: int) -> Floats:
    """(blobs, shapes, grid, length): the weight of each pixel in the sample at each grid point."""
    at = centre[..., None] + half[..., None] * GRID - np.float32(0.5)
    weights = np.asarray(at[..., None] - np.arange(length, dtype=np.float32), np.float32)
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    return np.maximum(weights, 0, out=weights)
