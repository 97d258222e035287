"""The Detector protocol, and post-processing that all detectors share.

`dpt.detect.registry.open_detector` opens a detector by name. A `DetectConfig` (query template, thresholds, NMS,
colours) sets which boxes count; each prompt suite has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from dpt.claims.facts import Box, overlap
from dpt.claims.judge import DetectConfig, Detection, Detections
from dpt.claims.words import with_article
from dpt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dpt.score.clip import Clip

Image = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""


class Detector(Protocol):
    @property
    def identity(self) -> str:
        """Name, version and config as a single line, stored with every result."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes it detects; None for an open-vocabulary detector, which takes queries."""
        ...

    def detect(self, images: Sequence[Image], queries: Sequence[Sequence[str]] | None = None) -> list[Detections]:
        """Return one `Detections` per image. `queries[i]` are the nouns to detect in image i; a closed-set detector
        ignores them."""
        ...


def check_finite(detections: Detections, detector: str, image_name: str) -> None:
    """Raise on NaN and infinite values: a comparison with a threshold would silently drop them."""
    for detection in detections.objects:
        box = detection.box
        if not all(map(isfinite, (box.x0, box.y0, box.x1, box.y1, detection.confidence))):
            raise UserError(
                f"{detector} returned a NaN or infinite box or score for {detection.label!r} in {image_name}"
            )
        if box.width < 0 or box.height < 0:
            raise UserError(f"{detector} returned a box with swapped corners for {detection.label!r} in {image_name}")


def clip_boxes(detections: Detections, width: int, height: int) -> Detections:
    """Clip boxes to the image and drop those outside it; both are counted."""
    kept: list[Detection] = []
    clipped = outside = 0
    for detection in detections.objects:
        box = _clip(detection.box, width, height)
        if box.width <= 0 or box.height <= 0:
            outside += 1
        else:
            clipped += box != detection.box
            kept.append(replace(detection, box=box))
    return replace(
        detections,
        objects=tuple(kept),
        clipped=detections.clipped + clipped,
        outside=detections.outside + outside,
    )


def nms(detections: Sequence[Detection], iou: float | None) -> tuple[Detection, ...]:
    """Sort by descending score and drop each detection whose IoU with a kept one of the same label exceeds `iou`.

    Ties keep their order. With `iou` None, all are kept.
    """
    ranked = sorted(detections, key=lambda detection: -detection.confidence)
    if iou is None:
        return tuple(ranked)
    kept: list[Detection] = []
    for detection in ranked:
        if all(detection.label != better.label or overlap(detection.box, better.box) <= iou for better in kept):
            kept.append(detection)
    return tuple(kept)


class ImageTextModel(Protocol):
    def nearest(self, images: Sequence[Image], texts: Sequence[str]) -> list[int]:
        """The text that fits each image best."""
        ...


def box_colour(model: ImageTextModel, image: Image, detection: Detection, colours: Sequence[str]) -> str:
    """The colour whose description fits the inside of the box best."""
    box = detection.box
    crop = image[floor(box.y0) : ceil(box.y1), floor(box.x0) : ceil(box.x1)]
    texts = [f"a photo of {with_article(f'{colour} {detection.label}')}" for colour in colours]
    return colours[model.nearest([crop], texts)[0]]


def detector_identity(name: str, config: DetectConfig, colours: Clip | None) -> str:
    identity = f"{name} {config.identity}"
    return identity if colours is None else f"{identity}; colours by {colours.identity}"


def read_boxes(
    image: Image,
    scores: Tensor,
    corners: Tensor,
    labels: Sequence[str | None],
    detector: str,
    config: DetectConfig,
    colours: Clip | None,
) -> Detections:
    """The boxes (n,4) whose best label has a score (n,labels) that counts, each with its colour. None is no label."""
    # Checked before thresholds: a comparison with NaN is false.
    if not (scores.isfinite().all() and corners.isfinite().all()):
        raise UserError(f"{detector} returned NaN or infinite scores or boxes")
    best_scores, best_labels = scores.max(-1)
    objects = [
        Detection(label, Box(*box), score)
        for score, number, box in zip(best_scores.tolist(), best_labels.tolist(), corners.tolist(), strict=True)
        if (label := labels[number]) is not None and config.counts(score)
    ]
    height, width = image.shape[:2]
    detections = clip_boxes(Detections(tuple(objects)), width, height)
    kept = nms(detections.objects, config.nms)
    if colours is not None:
        kept = tuple(replace(thing, colour=box_colour(colours, image, thing, config.colours)) for thing in kept)
    return replace(detections, objects=kept)


def _clip(box: Box, width: int, height: int) -> Box:
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)
