"""Pictures of what has no name, where a detector should say so: functions of (seed, index, world)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dpt.data.scenes.draws import Draws
from dpt.data.scenes.layout import EDGE
from dpt.data.scenes.render import coverage
from dpt.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Box, World
from dpt.evaluation.detectors.base import Image

Deformation = Callable[[int, int, World], Image]
Field = NDArray[np.float64]
Mask = NDArray[np.bool_]

FINE = 4
"""Outlines are blended on a raster this many times finer than the image."""
SAME_SHAPE = 0.93
"""An outline that shares this much of its area with a shape may fairly be called by its name."""
NAMEABLE = 60.0
"""A mixture this close to a third colour may fairly be called by its name."""


def between_shapes(seed: int, index: int, world: World) -> Image:
    """One object whose outline lies half way between two shapes, and is near no shape of its own."""
    draws = Draws("between shapes", seed, index)
    box = _box(draws, world)
    while True:
        first, second = draws.some(world.shapes, 2)
        middle = (_distance(first, box, world) + _distance(second, box, world)) / 2 < 0
        if all(_shared(middle, _distance(shape, box, world) < 0) < SAME_SHAPE for shape in SHAPES):
            break
    return _paint(_cover(middle), _colour(draws, world), draws, world)


def between_colours(seed: int, index: int, world: World) -> Image:
    """One object whose colour lies half way between two of the palette, and near no third."""
    draws = Draws("between colours", seed, index)
    return _paint(_plain_cover(draws, world), draws.pick(_mixtures(world)), draws, world)


def two_coloured(seed: int, index: int, world: World) -> Image:
    """One object, one half of it in another colour."""
    draws = Draws("two-coloured", seed, index)
    cover, half = _halved(draws, world)
    colours = [np.array(COLOURS[name], float) for name in draws.some(world.colours, 2)]
    return _paint(cover, np.where(half[..., None], *colours), draws, world)


def half_erased(seed: int, index: int, world: World) -> Image:
    draws = Draws("half erased", seed, index)
    cover, half = _halved(draws, world)
    return _paint(np.where(half, cover, 0), _colour(draws, world), draws, world)


def pure_noise(seed: int, index: int, world: World) -> Image:
    shape = (world.image_size, world.image_size, 3)
    return np.random.default_rng((seed, index)).integers(0, 256, shape, np.uint8)


DEFORMATIONS: dict[str, Deformation] = {
    "between two shapes": between_shapes,
    "between two colours": between_colours,
    "two-coloured": two_coloured,
    "half erased": half_erased,
    "pure noise": pure_noise,
}


def _mixtures(world: World) -> list[Field]:
    """Red and yellow make an orange: such mixtures have a name and are left out."""
    colours = [np.array(COLOURS[name], float) for name in world.colours]
    halves = [(first + second) / 2 for first, second in combinations(colours, 2)]
    sources = [{a, b} for a, b in combinations(world.colours, 2)]
    return [
        half
        for half, pair in zip(halves, sources, strict=True)
        if all(
            np.linalg.norm(half - np.array(rgb)) > NAMEABLE
            for name, rgb in COLOURS.items()
            if name not in pair
        )
    ]


def _box(draws: Draws, world: World) -> Box:
    extent = draws.between(*SIZES[draws.pick(world.sizes)])
    x0 = draws.between(EDGE, world.image_size - EDGE - extent)
    y0 = draws.between(EDGE, world.image_size - EDGE - extent)
    return Box(x0, y0, x0 + extent, y0 + extent)


def _colour(draws: Draws, world: World) -> Field:
    return np.array(COLOURS[draws.pick(world.colours)], float)


def _plain_cover(draws: Draws, world: World) -> Field:
    everywhere = slice(0, world.image_size)
    return coverage(draws.pick(world.shapes), _box(draws, world), everywhere, everywhere).astype(float)


def _halved(draws: Draws, world: World) -> tuple[Field, Mask]:
    """An object's cover, and where its left, right, upper or lower half is."""
    box = _box(draws, world)
    everywhere = slice(0, world.image_size)
    cover = coverage(draws.pick(world.shapes), box, everywhere, everywhere).astype(float)
    rows, columns = np.indices(cover.shape) + 0.5
    x, y = box.centre
    return cover, draws.pick((columns < x, columns > x, rows < y, rows > y))


def _distance(shape: str, box: Box, world: World) -> Field:
    """Signed distance to the outline in pixels, negative inside, on the fine raster."""
    everywhere = slice(0, world.image_size * FINE)
    fine = Box(box.x0 * FINE, box.y0 * FINE, box.x1 * FINE, box.y1 * FINE)
    inside = coverage(shape, fine, everywhere, everywhere) > 0.5
    return (distance_transform_edt(~inside) - distance_transform_edt(inside)) / FINE


def _shared(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _cover(inside: Mask) -> Field:
    size = inside.shape[0] // FINE
    return inside.reshape(size, FINE, size, FINE).mean((1, 3))


def _paint(cover: Field, colour: Field, draws: Draws, world: World) -> Image:
    ground = np.array(BACKGROUNDS[draws.pick(world.backgrounds)], float)
    return np.rint(ground + cover[..., None] * (colour - ground)).astype(np.uint8)
