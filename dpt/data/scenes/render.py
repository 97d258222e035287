"""Scenes to pixels: signed distances turned into anti-aliased coverage."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS
from dpt.data.scenes.world import BACKGROUNDS, Scene

Image = npt.NDArray[np.uint8]

Floats = npt.NDArray[np.floating[Any]]


ARM = 0.36  # width of a cross's arm, of its box

RIM = 0.24  # thickness of a ring, of its box

INNER = 0.42  # inner radius of a star, of its outer radius


def render(scene: Scene) -> Image:
    """A (size, size, 3) image of the scene."""
    size = scene.image_size
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        rows, columns = _window(thing.box, size)
        cover = coverage(thing.shape, thing.box, rows, columns)[..., None]
        patch = canvas[rows, columns]
        patch += cover * (np.asarray(COLOURS[thing.colour], np.float32) - patch)
    return (canvas + 0.5).astype(np.uint8)


def coverage(shape: str, box: Box, rows: slice, columns: slice) -> Floats:
    """Share of each pixel that the shape covers, from the distance of the pixel's centre to the outline."""
    (cx, cy), half = box.centre, box.width / 2
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - cx))[None, :]
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    return np.clip(0.5 - half * outline_distance(shape, x / half, y / half), 0.0, 1.0)


def _window(box: Box, size: int) -> tuple[slice, slice]:
    return (
        slice(max(0, int(box.y0) - 1), min(size, int(box.y1) + 2)),
        slice(max(0, int(box.x0) - 1), min(size, int(box.x1) + 2)),
    )


def outline_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance to the outline of a shape that fills the square from -1 to 1; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - (1 - RIM)) - RIM
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 1
    if shape == "cross":
        upright = np.maximum(np.abs(x) - ARM, np.abs(y) - 1)
        level = np.maximum(np.abs(x) - 1, np.abs(y) - ARM)
        return np.minimum(upright, level)
    return _distance_to_polygon(_corners(shape), x, y)


@cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    if shape == "triangle":
        return ((0.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
    angles = np.pi * np.arange(10) / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, INNER)
    points = np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1)
    low, high = points.min(0), points.max(0)
    points = 2 * (points - low) / (high - low) - 1
    return tuple((float(px), float(py)) for px, py in points)


def _distance_to_polygon(corners: tuple[tuple[float, float], ...], x: Floats, y: Floats) -> Floats:
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:  # even-odd rule: does the ray to the right cross this edge?
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ex * (y - ay) / ey + ax)
    return np.where(inside, -1, 1) * np.sqrt(nearest)
