"""Test images for a detector: disturbances of scenes, and deformed objects that have no name."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS, SHAPES
from dpt.data.scenes.render import coverage
from dpt.data.scenes.world import BACKGROUNDS, EDGE, SIZES, World
from dpt.detect.base import Image
from dpt.keyed_random import KeyedRandom

Deformation = Callable[[int, int, World], Image]

Field = NDArray[np.float64]

Mask = NDArray[np.bool_]


FINE = 4
"""Outlines are blended on a raster this many times finer than the image."""

SAME_SHAPE = 0.93
"""An outline whose IoU with a shape reaches this may rightly be detected as that shape."""

NAMEABLE = 60.0
"""A mixture this close to a third colour may rightly be detected as that colour."""


def between_shapes(seed: int, index: int, world: World) -> Image:
    """One object whose outline lies half way between two shapes, and is near no shape of its own."""
    rng = KeyedRandom("between shapes", seed, index)
    first, second = rng.choice(_distant_pairs(world))
    box = _box(rng, world)
    return _paint(_cover(_middle(first, second, box), box, world), _colour(rng, world), rng, world)


def between_colours(seed: int, index: int, world: World) -> Image:
    """One object whose colour lies half way between two of the palette, and near no third."""
    rng = KeyedRandom("between colours", seed, index)
    return _paint(_plain_cover(rng, world), rng.choice(_mixtures(world)), rng, world)


def two_coloured(seed: int, index: int, world: World) -> Image:
    """One object, one half of it in another colour."""
    rng = KeyedRandom("two-coloured", seed, index)
    cover, half = _halved(rng, world)
    colours = [np.array(COLOURS[name], float) for name in rng.sample(world.colours, 2)]
    return _paint(cover, np.where(half[..., None], *colours), rng, world)


def half_erased(seed: int, index: int, world: World) -> Image:
    rng = KeyedRandom("half erased", seed, index)
    cover, half = _halved(rng, world)
    return _paint(np.where(half, cover, 0), _colour(rng, world), rng, world)


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


@lru_cache(maxsize=8)
def _mixtures(world: World) -> list[Field]:
    """Colours half way between two of the palette, without those that have a name, as orange between red and yellow."""
    palette = {name: np.array(rgb, float) for name, rgb in COLOURS.items()}
    halves = {pair: (palette[pair[0]] + palette[pair[1]]) / 2 for pair in combinations(world.colours, 2)}
    return [
        half
        for pair, half in halves.items()
        if all(np.linalg.norm(half - palette[name]) > NAMEABLE for name in palette if name not in pair)
    ]


def _box(rng: KeyedRandom, world: World) -> Box:
    extent = rng.uniform(*SIZES[rng.choice(world.sizes)])
    x0 = rng.uniform(EDGE, world.image_size - EDGE - extent)
    y0 = rng.uniform(EDGE, world.image_size - EDGE - extent)
    return Box(x0, y0, x0 + extent, y0 + extent)


def _colour(rng: KeyedRandom, world: World) -> Field:
    return np.array(COLOURS[rng.choice(world.colours)], float)


def _plain_cover(rng: KeyedRandom, world: World) -> Field:
    everywhere = slice(0, world.image_size)
    return coverage(rng.choice(world.shapes), _box(rng, world), everywhere, everywhere).astype(float)


def _halved(rng: KeyedRandom, world: World) -> tuple[Field, Mask]:
    """An object's cover, and where its left, right, upper or lower half is."""
    box = _box(rng, world)
    everywhere = slice(0, world.image_size)
    cover = coverage(rng.choice(world.shapes), box, everywhere, everywhere).astype(float)
    rows, columns = np.indices(cover.shape) + 0.5
    x, y = box.centre
    return cover, rng.choice((columns < x, columns > x, rows < y, rows > y))


@lru_cache(maxsize=8)
def _distant_pairs(world: World) -> list[tuple[str, str]]:
    """Pairs whose half-way outline resembles no shape: that of a square and a cross is nearly a circle."""
    box = Box(10.0, 10.0, 30.0, 30.0)
    return [
        pair
        for pair in combinations(world.shapes, 2)
        if all(_iou(_middle(*pair, box), _distance(shape, box) < 0) < SAME_SHAPE for shape in SHAPES)
    ]


def _middle(first: str, second: str, box: Box) -> Mask:
    """The inside of the outline half way between two shapes, on the fine raster of the box's window."""
    return _distance(first, box) + _distance(second, box) < 0


@lru_cache(maxsize=64)
def _distance(shape: str, box: Box) -> Field:
    """Signed distance to the outline, negative inside, on the fine raster of the box's window."""
    rows, columns = _window(box)
    fine = Box(box.x0 * FINE, box.y0 * FINE, box.x1 * FINE, box.y1 * FINE)
    fine_rows = slice(rows.start * FINE, rows.stop * FINE)
    fine_columns = slice(columns.start * FINE, columns.stop * FINE)
    inside = coverage(shape, fine, fine_rows, fine_columns) > 0.5
    return distance_transform_edt(~inside) - distance_transform_edt(inside)


def _window(box: Box) -> tuple[slice, slice]:
    return slice(int(box.y0) - 1, int(box.y1) + 2), slice(int(box.x0) - 1, int(box.x1) + 2)


def _iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


def _cover(inside: Mask, box: Box, world: World) -> Field:
    height, width = inside.shape[0] // FINE, inside.shape[1] // FINE
    cover = np.zeros((world.image_size, world.image_size))
    cover[_window(box)] = inside.reshape(height, FINE, width, FINE).mean((1, 3))
    return cover


def _paint(cover: Field, colour: Field, rng: KeyedRandom, world: World) -> Image:
    ground = np.array(BACKGROUNDS[rng.choice(world.backgrounds)], float)
    return np.rint(ground + cover[..., None] * (colour - ground)).astype(np.uint8)


Disturbance = Callable[[Image, int], Image]


def noise(sigma: float) -> Disturbance:
    return lambda image, seed: _image(image + np.random.default_rng(seed).normal(0, sigma, image.shape))


def blur(sigma: float) -> Disturbance:
    return lambda image, seed: _image(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def jpeg(quality: int) -> Disturbance:
    def compress(image: Image, seed: int) -> Image:
        file = io.BytesIO()
        Pillow.fromarray(image).save(file, "jpeg", quality=quality)
        return np.array(Pillow.open(file).convert("RGB"))

    return compress


def colour_shift(levels: int) -> Disturbance:
    """Each channel of the whole image moves by its own amount, up or down by the given levels at most."""

    def shift(image: Image, seed: int) -> Image:
        return _image(image + np.random.default_rng(seed).uniform(-levels, levels, 3))

    return shift


def brightness(gain: float) -> Disturbance:
    return lambda image, seed: _image(image * gain)


DISTURBANCES: dict[str, Disturbance] = {
    "clean": lambda image, seed: image,
    "noise 8": noise(8),
    "noise 16": noise(16),
    "blur 0.6": blur(0.6),
    "blur 0.8": blur(0.8),
    "blur 1.0": blur(1.0),
    "jpeg 90": jpeg(90),
    "jpeg 75": jpeg(75),
    "jpeg 50": jpeg(50),
    "colour ±12": colour_shift(12),
    "brightness 0.8": brightness(0.8),
    "brightness 1.2": brightness(1.2),
}


def _image(values: np.ndarray) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
