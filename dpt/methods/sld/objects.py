"""Objects to paste: sample each alone, detect it, cut it out, and recolour it if necessary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpt.backbone import Backbone
from dpt.claims.boxes import Box
from dpt.claims.detections import Detection, Detections
from dpt.claims.facts import Noun
from dpt.claims.parse import ParsedPrompt
from dpt.claims.words import COLOURS, with_article
from dpt.data.images import to_pil
from dpt.detect.base import Image
from dpt.detect.masks import Mask, Segmenter
from dpt.methods.sld.compose import Sprite
from dpt.sampling.draw import Request, SamplingSettings, calls_per_picture, draw

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
    from dpt.detect.masks import dilated

    return dilated(mask, 2) & ~mask
