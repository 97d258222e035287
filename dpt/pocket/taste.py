"""A stated taste for images of scenes, measured by the oracle, and choices that follow it with noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dpt.claims.facts import Prompt
from dpt.claims.judge import judge
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class Taste:
    """The utility of an image is the sum of these weights times what they measure.

    A chooser takes image i with probability softmax(utility / temperature)_i.
    """

    right: float = 1.0
    """1 if the oracle passes the image for its prompt."""
    readable: float = 0.5
    """1 if the oracle can read every object."""
    light: float = 80.0
    """Mean level of the pixels, from 0 to 1: an uncluttered image on a clean background."""
    centred: float = 0.0
    """1 for a composition in the middle of the image, 0 in its corner. The embedded CLIP hardly encodes it."""
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"--temperature must be positive, not {self.temperature}")


@dataclass(frozen=True)
class TastedPicture:
    right: bool
    readable: bool
    centred: float
    light: float

    def utility(self, taste: Taste) -> float:
        measured = ((taste.right, self.right), (taste.readable, self.readable), (taste.light, self.light))
        return sum(weight * value for weight, value in measured) + taste.centred * self.centred


def taste_picture(picture: Image.Image, prompt: Prompt, oracle: Oracle | None = None) -> TastedPicture:
    levels = np.asarray(picture.convert("RGB"))
    detections = (oracle or Oracle(POCKET_WORLD)).read(levels)
    boxes = [region.box for region in detections.objects] + [region.box for region in detections.unreadable]
    centred = 0.0
    if detections.objects:
        x, y = (sum(box.centre[axis] for box in boxes) / len(boxes) for axis in (0, 1))
        width, height = picture.size
        centred = 1 - min(1.0, math.hypot(x - width / 2, y - height / 2) / math.hypot(width / 2, height / 2))
    passed = judge(prompt, detections).passed
    readable = bool(detections.objects) and not detections.unreadable
    return TastedPicture(passed, readable, centred, float(levels.mean()) / 255)


def choose(pictures: Sequence[TastedPicture], taste: Taste, rng: KeyedRandom) -> int:
    """The index of the chosen image."""
    return rng.weighted_choice(list(enumerate(probabilities(pictures, taste))))


def probabilities(pictures: Sequence[TastedPicture], taste: Taste) -> list[float]:
    utilities = [picture.utility(taste) / taste.temperature for picture in pictures]
    weights = [math.exp(utility - max(utilities)) for utility in utilities]
    return [weight / sum(weights) for weight in weights]
