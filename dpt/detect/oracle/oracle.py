"""Reads images of rendered scenes back into objects, with classical vision and no learned weights.

It judges what a small diffusion model draws, so the rule is: what cannot be named without guessing is
`Unreadable`. An image becomes blobs (one colour, connected), each blob is fitted with every shape the
renderer knows, and the best shape, the colour and the size are named only if each is clear of its rivals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from dpt.claims.facts import Box
from dpt.claims.judge import Detection, Detections, Unreadable
from dpt.claims.words import SHAPES
from dpt.data.scenes.render import coverage
from dpt.data.scenes.world import FULL_WORLD, SIZES, World
from dpt.detect.base import Image
from dpt.detect.oracle.blobs import (
    DEFAULT,
    HALF,
    Background,
    Blob,
    Thresholds,
    TooBusy,
    find_background,
    find_blobs,
    name_colour,
    squared_lengths,
)

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


VERSION = 1

WINDOW_MARGIN = 6
"""Pixels around a blob's outline that the fit looks at."""

STRONGEST_COVER = 1.3


@dataclass(frozen=True)
class Oracle:
    """A `Detector` for the scenes of one world; shapes and colours of other worlds only are unreadable."""

    world: World = FULL_WORLD
    limits: Thresholds = DEFAULT

    @property
    def identity(self) -> str:
        settings = hashlib.sha256(f"{self.world}{self.limits}".encode()).hexdigest()[:12]
        return f"oracle v{VERSION} {settings}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.world.shapes

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        return [self.read(image) for image in images]

    def read(self, image: Image) -> Detections:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is (height, width, 3) uint8, not {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        if not height or not width:
            return Detections()
        smooth = _smoothed(image, self.limits.smoothing)
        ground = find_background(smooth, self.limits)
        everything = Box(0.0, 0.0, float(width), float(height))
        if ground.share < self.limits.background_share:
            return Detections(unreadable=(Unreadable(everything, "no plain background"),))
        if ground.noise > self.limits.noise:
            return Detections(unreadable=(Unreadable(everything, "too much noise"),))
        try:
            blobs = find_blobs(smooth, ground, self.limits)
        except TooBusy as reason:
            return Detections(unreadable=(Unreadable(everything, str(reason)),))
        return self._name_all(blobs, smooth, ground)

    def _name_all(self, blobs: list[Blob], smooth: Floats, ground: Background) -> Detections:
        largest = max(SIZES[size][1] for size in self.world.sizes) * self.limits.size_slack + 2
        regions: list[Detection | Unreadable] = []
        fitted, covers, corners = [], [], []
        for blob in blobs:
            cover, corner = _cover(blob, smooth, ground, int(largest) + 2 * WINDOW_MARGIN)
            if max(blob.box.width, blob.box.height) > largest:
                regions.append(Unreadable(blob.box, "larger than any object"))
            elif cover.max() <= HALF:
                regions.append(Unreadable(blob.box, "of more than one colour"))
            else:
                fitted.append(blob)
                covers.append(cover)
                corners.append(corner)
        if fitted:
            fits = fit_shapes(np.stack(covers), bank(self.limits.smoothing))
            for blob, fit, corner in zip(fitted, fits, corners, strict=True):
                regions.append(self._name(blob, fit, corner, smooth, ground))
        return Detections(
            tuple(region for region in regions if isinstance(region, Detection)),
            tuple(region for region in regions if isinstance(region, Unreadable)),
        )

    def _name(
        self, blob: Blob, fit: Fit, corner: tuple[int, int], smooth: Floats, ground: Background
    ) -> Detection | Unreadable:
        limits = self.limits
        contrast = float(np.linalg.norm(blob.contrast))
        noise = (ground.noise / contrast) ** 2
        misfits = np.sqrt(np.maximum(fit.residuals - noise, 0) / fit.powers)
        best, second = (int(i) for i in np.argsort(misfits)[:2])
        shapes = bank(limits.smoothing).shapes
        x0, y0, x1, y1 = (float(v) for v in fit.boxes[best])
        box = Box(x0 + corner[0], y0 + corner[1], x1 + corner[0], y1 + corner[1])

        ratio = float(misfits[second] / max(misfits[best], limits.margin_floor))
        if misfits[best] > limits.misfit:
            return Unreadable(blob.box, f"no known shape, {shapes[best]} the nearest")
        if ratio < limits.margin:
            return Unreadable(blob.box, f"a shape between {shapes[best]} and {shapes[second]}")
        if not 1 / limits.aspect <= box.width / box.height <= limits.aspect:
            return Unreadable(blob.box, f"a stretched {shapes[best]}")
        if shapes[best] not in self.world.shapes:
            return Unreadable(blob.box, f"a {shapes[best]}, which this world does not have")
        size = self._size((box.width + box.height) / 2)
        if size is None:
            return Unreadable(blob.box, "of no known size")
        if _impurity(blob, smooth, ground) > limits.impurity:
            return Unreadable(blob.box, "of more than one colour")
        colour, sureness, why = name_colour(ground.colour + blob.contrast * fit.strengths[best], limits)
        if colour is None:
            return Unreadable(blob.box, why)
        if colour not in self.world.colours:
            return Unreadable(blob.box, f"{colour}, which this world does not have")
        slack = min(1 - float(misfits[best]) / limits.misfit, 1 - limits.margin / ratio, sureness)
        return Detection(shapes[best], box, 0.5 + 0.5 * max(0.0, slack), colour, size)

    def _size(self, width: float) -> str | None:
        sizes = sorted((SIZES[size], size) for size in self.world.sizes)
        lowest, highest = sizes[0][0][0] / self.limits.size_slack, sizes[-1][0][1] * self.limits.size_slack
        if not lowest <= width <= highest:
            return None
        for ((_, under), size), ((over, _), _) in pairwise(sizes):
            doubt = (over - under) * self.limits.size_gap / 2
            middle = (under + over) / 2
            if width < middle - doubt:
                return size
            if width <= middle + doubt:
                return None
        return sizes[-1][1]


def _smoothed(image: Image, sigma: float) -> Floats:
    rows = gaussian_filter1d(image.astype(np.float32), sigma, axis=0, mode="nearest", truncate=3.0)
    return gaussian_filter1d(rows, sigma, axis=1, mode="nearest", truncate=3.0)


def _cover(blob: Blob, smooth: Floats, ground: Background, side: int) -> tuple[Floats, tuple[int, int]]:
    """How much of each pixel the blob covers, in a (side, side) window, and the window's corner (x, y)."""
    x0 = max(0, int(blob.box.x0) - WINDOW_MARGIN)
    y0 = max(0, int(blob.box.y0) - WINDOW_MARGIN)
    window = (slice(y0, y0 + side), slice(x0, x0 + side))
    along = (smooth[window] - ground.colour) @ blob.contrast / np.maximum(blob.contrast @ blob.contrast, 1e-6)
    inside = np.where(blob.own[window], np.clip(along, 0, STRONGEST_COVER), 0)
    cover = np.zeros((side, side), np.float32)
    cover[: inside.shape[0], : inside.shape[1]] = inside
    return cover, (x0, y0)


def _impurity(blob: Blob, smooth: Floats, ground: Background) -> float:
    """RMS distance of the pixels from the line between background and blob colour, relative to the contrast."""
    rows = slice(int(blob.box.y0), int(blob.box.y1))
    columns = slice(int(blob.box.x0), int(blob.box.x1))
    difference = (smooth[rows, columns] - ground.colour)[blob.own[rows, columns]]
    power = float(blob.contrast @ blob.contrast)
    along = difference @ blob.contrast / power
    aside = difference - along[:, None] * blob.contrast
    inner = along > 0.7
    if not inner.any():
        return 1.0
    scatter = float(squared_lengths(aside[inner]).mean()) - 2 * ground.noise**2
    return float(np.sqrt(max(scatter, 0.0) / power))
