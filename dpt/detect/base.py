"""The Detector protocol, and post-processing that all detectors share.

`dpt.detect.registry.open_detector` opens one by name. What counts as a detection is set by its `DetectConfig`
(query template, thresholds, NMS, colours), which a suite states and passes on.
"""

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
        """Name, version and config in one line: stored with every result."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """All nouns it can detect; None for an open-vocabulary detector, which takes queries."""
        ...

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        """One `Detections` per image. `queries[i]` are the nouns to look for in image i; a detector with fixed classes
        ignores them."""
        ...


def check_finite(detections: Detections, detector: str, picture: str) -> None:
    """Refuse NaN and infinite values: compared with a threshold they would silently count as too low."""
    for each in detections.objects:
        sides = (each.box.x0, each.box.y0, each.box.x1, each.box.y1)
        if not all(map(isfinite, (*sides, each.confidence))):
            raise UserError(f"{detector} gave a {each.label} in {picture} a box or a score that is not a number")
        if each.box.width < 0 or each.box.height < 0:
            raise UserError(f"{detector} gave a {each.label} in {picture} a box whose corners are swapped")


def clip_boxes(detections: Detections, width: int, height: int) -> Detections:
    """Clip boxes to the image; counts those that were clipped and those that were outside and are dropped."""
    kept: list[Detection] = []
    clipped = outside = 0
    for each in detections.objects:
        box = _clip(each.box, width, height)
        if box.width <= 0 or box.height <= 0:
            outside += 1
        else:
            clipped += box != each.box
            kept.append(replace(each, box=box))
    return replace(
        detections,
        objects=tuple(kept),
        clipped=detections.clipped + clipped,
        outside=detections.outside + outside,
    )


def nms(detections: Sequence[Detection], iou: float | None) -> tuple[Detection, ...]:
    """By falling score, without those that overlap a better one of the same label by more than `iou`; None keeps all.

    Of equal scores, the first is the better one.
    """
    ranked = sorted(detections, key=lambda each: -each.confidence)
    if iou is None:
        return tuple(ranked)
    kept: list[Detection] = []
    for each in ranked:
        if all(each.label != better.label or overlap(each.box, better.box) <= iou for better in kept):
            kept.append(each)
    return tuple(kept)


def _clip(box: Box, width: int, height: int) -> Box:
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)
