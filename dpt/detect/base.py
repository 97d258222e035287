"""The Detector protocol, and what every detector does with its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpt.claims.boxes import Box, overlap
from dpt.claims.detections import Detection, Detections
from dpt.errors import UserError

Image = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""


class Detector(Protocol):
    @property
    def identity(self) -> str:
        """Name, version and thresholds in one line: stored with every result it produced."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """All nouns it can name; None if it can look for any."""
        ...

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        """One `Detections` per image. `queries[i]` are the nouns to look for in image i, for detectors that
        must be told; those that know their world ignore them."""
        ...


def check_finite(seen: Detections, who: str, picture: str) -> None:
    """A number that is none cannot be compared with a threshold: whatever came of it would be a guess."""
    for one in seen.objects:
        sides = (one.box.x0, one.box.y0, one.box.x1, one.box.y1)
        if not all(map(isfinite, (*sides, one.confidence))):
            raise UserError(f"{who} gave a {one.label} in {picture} a box or a score that is not a number")
        if one.box.width < 0 or one.box.height < 0:
            raise UserError(f"{who} gave a {one.label} in {picture} a box whose corners are the wrong way round")


def clip_boxes(seen: Detections, width: int, height: int) -> Detections:
    """Every box within the picture; how many were cut, and how many were not in it, is counted."""
    kept: list[Detection] = []
    clipped = outside = 0
    for one in seen.objects:
        box = _within(one.box, width, height)
        if box.width <= 0 or box.height <= 0:
            outside += 1
        else:
            clipped += box != one.box
            kept.append(replace(one, box=box))
    return replace(seen, objects=tuple(kept), clipped=seen.clipped + clipped, outside=seen.outside + outside)


def nms(found: Sequence[Detection], most: float | None) -> tuple[Detection, ...]:
    """The best-scoring box first, then each that shares at most so much of its union with a better one of its label.

    Of equal scores, the one named first is the better one.
    """
    ranked = sorted(found, key=lambda one: -one.confidence)
    if most is None:
        return tuple(ranked)
    kept: list[Detection] = []
    for one in ranked:
        if all(one.label != better.label or overlap(one.box, better.box) <= most for better in kept):
            kept.append(one)
    return tuple(kept)


def _within(box: Box, width: int, height: int) -> Box:
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)
