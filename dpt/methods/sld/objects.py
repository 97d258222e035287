"""Cut and paste in pixel space: remove objects, sample each new one alone, cut it out, paste it at its goal box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpt.backbone import Backbone
from dpt.claims.facts import Box, Noun
from dpt.claims.judge import Detection, Detections
from dpt.claims.parse import ParsedPrompt
from dpt.claims.words import COLOURS, with_article
from dpt.data.images import to_pil
from dpt.detect.base import Image
from dpt.detect.masks import Mask, Segmenter, dilated
from dpt.sampling.draw import Request, SamplingSettings, calls_per_picture, draw

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


COLOUR_VALUES: dict[str, tuple[int, int, int]] = {
    **COLOURS,
    "brown": (121, 78, 42),
    "black": (24, 24, 24),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "grey": (128, 128, 128),
}

Detect = Callable[[Image, Sequence[Noun]], Detections]
"""Finds objects of these nouns in an image."""


@dataclass(frozen=True)
class DrawnObjects:
    """Samples "a red circle" and cuts it out, from the first of several images in which the detector finds it.

    If none has the attribute but one shows the object, shifts its colour: models lack combinations, not colours.
    """

    backbone: Backbone
    detect: Detect
    segmenter: Segmenter
    settings: SamplingSettings
    tries: int = 3
    recolour: bool = True
    on_calls: Callable[[int], None] = lambda calls: None

    def make(self, noun: Noun, seed: int) -> Sprite | None:
        plain = replace(noun, colour=None, size=None)
        other: Sprite | None = None
        for attempt in range(self.tries + 1):
            exact = attempt < self.tries
            if not exact and (other is not None or not self._can_recolour(noun)):
                break
            image = self._draw(object_prompt(noun if exact else plain), seed, attempt)
            for detection in _largest_first(self.detect(image, [noun, plain])):
                if detection.label != noun.shape:
                    continue
                if noun.colour in (None, detection.colour):
                    return self._cut(image, detection.box)
                other = other or self._cut(image, detection.box)
        if other is None or not self._can_recolour(noun):
            return None
        return recoloured(other, COLOUR_VALUES[noun.colour or ""])

    def draw_prompt(self, parsed: ParsedPrompt, seed: int) -> Image:
        """Sample an image of the whole prompt from new noise."""
        return self._draw(parsed.text, seed, 0)

    def _can_recolour(self, noun: Noun) -> bool:
        return self.recolour and noun.colour in COLOUR_VALUES

    def _draw(self, prompt: str, seed: int, index: int) -> Image:
        rows = 1 if self.settings.guidance_scale == 1 else 2
        self.on_calls(rows * calls_per_picture(self.backbone, self.settings))
        (drawn,) = draw(self.backbone, [Request(prompt, seed, index)], self.settings)
        return np.asarray(to_pil(drawn))

    def _cut(self, image: Image, box: Box) -> Sprite:
        return Sprite(image, self.segmenter.masks(image, [box])[0], box)


def object_prompt(noun: Noun) -> str:
    return with_article(" ".join(word for word in (noun.colour, noun.shape) if word))


def _largest_first(detections: Detections) -> list[Detection]:
    return sorted(detections.objects, key=lambda d: -d.box.width * d.box.height)


def recoloured(sprite: Sprite, colour: tuple[int, int, int]) -> Sprite:
    """The sprite with its mean colour shifted to this one; edges keep their share of the background."""
    image, mask = sprite.image.astype(np.float32), sprite.mask
    around = _around(mask)
    background = np.median(image[around], axis=0) if around.any() else np.full(3, 255, np.float32)
    contrast = image - background
    strength = np.linalg.norm(contrast, axis=-1)
    core = mask & (strength >= 0.5 * np.quantile(strength[mask], 0.9))
    own = image[core].mean(0)
    direction = own - background
    share = np.clip(contrast @ direction / max(float(direction @ direction), 1.0), 0, 1)
    shifted = image + np.where(mask, share, 0)[..., None] * (np.asarray(colour, np.float32) - own)
    return replace(sprite, image=(shifted + 0.5).clip(0, 255).astype(np.uint8))


def _around(mask: Mask) -> Mask:

    return dilated(mask, 2) & ~mask
