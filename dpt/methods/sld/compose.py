"""Cut and paste in pixel space: fill removed objects from their surroundings, paste others at their goal boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpt.claims.boxes import Box
from dpt.detect.base import Image
from dpt.detect.masks import Mask, dilated

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sprite:
    """An object cut out of an image."""

    image: Image
    mask: Mask
    box: Box
    """In pixels of the image."""


@dataclass(frozen=True)
class Composition:
    image: Image
    erased: Mask
    """The filled pixels that no pasted object covers."""
    pasted: Mask


def compose(
    image: Image,
    removed: Sequence[Mask],
    placed: Sequence[tuple[Sprite, Box]],
    margin: int,
    kept: Sequence[Mask] = (),
) -> Composition:
    """Fill the removed objects, grown by `margin` pixels, then paste the others, large ones first.

    Objects that are kept are neither erased nor part of what a hole is filled from.
    """
    erased, preserved = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], bool)
    for mask in removed:
        erased |= dilated(mask, margin)
    for mask in kept:
        preserved |= mask
    erased &= ~preserved
    canvas = fill(image, erased, preserved)
    pasted = np.zeros_like(erased)
    for sprite, goal in sorted(placed, key=lambda each: -each[1].width * each[1].height):
        pixels, mask = fitted(sprite, goal, image.shape[0], image.shape[1])
        canvas = np.where(mask[..., None], pixels, canvas)
        pasted |= mask
    return Composition(canvas, erased & ~pasted, pasted)


def fitted(sprite: Sprite, goal: Box, height: int, width: int) -> tuple[Image, Mask]:
    """The sprite scaled to the goal box and centred in it, on a canvas of this size, and its mask there.

    A goal of the same size moves the pixels by whole steps, without resampling.
    """
    from scipy.ndimage import affine_transform

    scale_x, scale_y = goal.width / sprite.box.width, goal.height / sprite.box.height
    (gx, gy), (sx, sy) = goal.centre, sprite.box.centre
    if abs(scale_x - 1) < 0.02 and abs(scale_y - 1) < 0.02:
        scale_x = scale_y = 1.0
        gx, gy = sx + round(gx - sx), sy + round(gy - sy)
    matrix = np.array([1 / scale_y, 1 / scale_x])
    offset = np.array([sy - 0.5 - (gy - 0.5) / scale_y, sx - 0.5 - (gx - 0.5) / scale_x])

    def moved(channel: Floats, mode: str) -> Floats:
        return np.asarray(
            affine_transform(channel, matrix, offset, output_shape=(height, width), order=1, mode=mode), np.float32
        )

    channels = [moved(sprite.image[..., c].astype(np.float32), "nearest") for c in range(3)]
    mask = moved(sprite.mask.astype(np.float32), "constant") > 0.5
    return (np.stack(channels, -1) + 0.5).clip(0, 255).astype(np.uint8), np.asarray(mask)


def fill(image: Image, hole: Mask, avoid: Mask | None = None) -> Image:
    """The image with the hole filled smoothly from what surrounds it, except for the pixels to avoid."""
    source = ~hole if avoid is None else ~(hole | avoid)
    source = source if source.any() else ~hole
    if not hole.any() or not source.any():
        return image
    filled = _push_pull(image.astype(np.float32), source.astype(np.float32))
    return np.where(hole[..., None], (filled + 0.5).clip(0, 255).astype(np.uint8), image)


def _push_pull(values: Floats, weights: Floats) -> Floats:
    """Pull-push interpolation: fill values of weight 0 from the next coarser level that has any."""
    height, width = weights.shape
    if weights.min() > 0 or max(height, width) == 1:
        return values
    padded = ((0, height % 2), (0, width % 2))
    v = np.pad(values * weights[..., None], (*padded, (0, 0)))
    w = np.pad(weights, padded)
    sums = v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]
    counts = w[::2, ::2] + w[1::2, ::2] + w[::2, 1::2] + w[1::2, 1::2]
    coarse = _push_pull(sums / np.maximum(counts, 1e-6)[..., None], np.minimum(counts, 1))
    from scipy.ndimage import zoom

    fine = zoom(coarse, (2, 2, 1), order=1, grid_mode=True, mode="nearest")[:height, :width]
    return np.where(weights[..., None] > 0, values, fine)
