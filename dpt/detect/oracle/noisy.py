"""The oracle with the errors of a learned detector, to test how robust a loop is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dpt.claims.facts import Box
from dpt.claims.judge import Detection, Detections
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.base import Image
from dpt.detect.oracle.oracle import Oracle
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class NoisyOracle:
    """Drops some boxes, splits some in two, and shifts every corner.

    The errors are a function of the pixels: the same image is read in the same way, a shifted one in another.
    """

    dropped: float = 0.10
    split: float = 0.05
    jitter: float = 0.02
    """Largest shift of a corner along each axis, as a fraction of the image."""
    seed: int = 0
    oracle: Oracle = field(default_factory=lambda: Oracle(POCKET_WORLD))

    @property
    def identity(self) -> str:
        return (
            f"{self.oracle.identity} with {self.dropped:g} of the boxes dropped, {self.split:g} split, "
            f"jitter {self.jitter:g}, seed {self.seed}"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.oracle.classes

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        return [
            self._with_errors(image, exact) for image, exact in zip(images, self.oracle.detect(images), strict=True)
        ]

    def _with_errors(self, image: Image, exact: Detections) -> Detections:
        rng = KeyedRandom("noisy oracle", self.seed, hashlib.sha256(image.tobytes()).hexdigest())
        objects: list[Detection] = []
        for detection in exact.objects:
            if rng.chance(self.dropped):
                continue
            box = self._shifted(detection.box, rng, image.shape[1], image.shape[0])
            middle = box.centre[0]
            halves = (Box(box.x0, box.y0, middle, box.y1), Box(middle, box.y0, box.x1, box.y1))
            objects += [replace(detection, box=part) for part in (halves if rng.chance(self.split) else (box,))]
        return replace(exact, objects=tuple(objects))

    def _shifted(self, box: Box, rng: KeyedRandom, width: int, height: int) -> Box:
        x0, y0, x1, y1 = (
            value + side * rng.uniform(-self.jitter, self.jitter)
            for value, side in ((box.x0, width), (box.y0, height), (box.x1, width), (box.y1, height))
        )
        return Box(min(x0, x1 - 1), min(y0, y1 - 1), x1, y1)
