"""Detects given nouns for the correction loop, each region once, in one reading of an image or in several.

A single reading of a detector drops and splits boxes. A plan that trusts it spoils right images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dpt.claims.facts import Box, Noun, overlap
from dpt.claims.judge import DetectConfig, Detection, Detections, Unreadable
from dpt.claims.layout import merge_passes
from dpt.detect.base import Detector, Image, check_finite, clip_boxes
from dpt.errors import UserError

if TYPE_CHECKING:
    from dpt.methods.sld.objects import Detect


ATTRIBUTE = "attribute"

QUERIES = DetectConfig("image of {a} {noun}", 0.20, thresholds=((ATTRIBUTE, 0.45),), nms=0.15)
"""For open-vocabulary detectors: as the published benchmark queries OWLv2."""


@dataclass(frozen=True)
class NounDetector:
    """Detects nouns by any detector.

    A closed-set detector reads everything it knows. An open-vocabulary detector is queried twice: for attributed
    phrases and for bare nouns.
    """

    detector: Detector
    config: DetectConfig = QUERIES

    def __call__(self, image: Image, nouns: Sequence[Noun]) -> Detections:
        if self.detector.classes is not None:
            (detections,) = self.detector.detect([image])
            check_finite(detections, self.detector.identity, "the picture")
            return clip_boxes(detections, image.shape[1], image.shape[0])
        attributed = [noun for noun in nouns if noun.colour or noun.size]
        bare = list(dict.fromkeys(Noun(shape=noun.shape) for noun in nouns))
        found = [d for d in self._pass(image, attributed) if self.config.counts(d.confidence, ATTRIBUTE)]
        return Detections(merge_passes(found, self._pass(image, bare)))

    def _pass(self, image: Image, nouns: Sequence[Noun]) -> list[Detection]:
        phrases = {self.config.phrase(noun): noun for noun in nouns}
        if not phrases:
            return []
        (detections,) = self.detector.detect([image], [list(phrases)])
        check_finite(detections, self.detector.identity, "the picture")
        detections = clip_boxes(detections, image.shape[1], image.shape[0])
        return [
            replace(d, label=noun.shape or "", colour=noun.colour or d.colour, size=noun.size)
            for d in detections.objects
            for noun in [phrases[d.label]]
        ]


STEP = 0.02
"""Shift of a view, as a fraction of the shorter side."""

SAME_OBJECT = 0.6
"""IoU from which boxes of two readings show one object: more than that of a box with its half."""


@dataclass(frozen=True)
class View:
    """The image shifted by whole steps, then mirrored left to right if `flip`."""

    flip: bool
    across: int = 0
    down: int = 0

    def apply(self, image: Image) -> Image:
        dx, dy = self._pixels(image)
        pad = max(abs(dx), abs(dy))
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        height, width = image.shape[:2]
        shifted = padded[pad - dy : pad - dy + height, pad - dx : pad - dx + width]
        return np.ascontiguousarray(shifted[:, ::-1] if self.flip else shifted)

    def restore(self, box: Box, image: Image) -> Box:
        """The box of the view in the image, clipped to it."""
        (dx, dy), (height, width) = self._pixels(image), image.shape[:2]
        x0, x1 = (width - box.x1, width - box.x0) if self.flip else (box.x0, box.x1)
        x0, x1 = (min(max(x - dx, 0.0), float(width)) for x in (x0, x1))
        y0, y1 = (min(max(y - dy, 0.0), float(height)) for y in (box.y0, box.y1))
        return Box(x0, y0, x1, y1)

    def _pixels(self, image: Image) -> tuple[int, int]:
        step = max(1, round(STEP * min(image.shape[:2])))
        return self.across * step, self.down * step


VIEWS = (
    View(False),
    View(True),
    View(False, 1, 1),
    View(True, -1, 1),
    View(False, -1, -1),
    View(True, 1, -1),
    View(False, 0, 1),
    View(True, 1, 0),
    View(False, 0, -1),
)
"""The first n are used for n readings; the first is the image itself."""


def check_readings(readings: int) -> None:
    if not 1 <= readings <= len(VIEWS):
        raise UserError(f"the number of readings must be from 1 to {len(VIEWS)}, not {readings}")


@dataclass(frozen=True)
class RepeatedReadings:
    """Detects in several views of the image; what fewer than half of them show does not count."""

    detect: Detect
    readings: int

    def __post_init__(self) -> None:
        check_readings(self.readings)

    def __call__(self, image: Image, nouns: Sequence[Noun]) -> Detections:
        if self.readings == 1:
            return self.detect(image, nouns)
        return consensus([self._read(view, image, nouns) for view in VIEWS[: self.readings]])

    def _read(self, view: View, image: Image, nouns: Sequence[Noun]) -> Detections:
        seen = self.detect(view.apply(image), nouns)
        objects = [replace(d, box=view.restore(d.box, image)) for d in seen.objects]
        unreadable = [replace(u, box=view.restore(u.box, image)) for u in seen.unreadable]
        return replace(
            seen,
            objects=tuple(d for d in objects if d.box.width > 0 and d.box.height > 0),
            unreadable=tuple(u for u in unreadable if u.box.width > 0 and u.box.height > 0),
        )


def consensus(readings: Sequence[Detections]) -> Detections:
    """The objects of more than half of the readings: boxes and scores are medians, colours and sizes by majority."""
    regions = [[Detection("", region.box, 1.0) for region in reading.unreadable] for reading in readings]
    why = next((region.why for reading in readings for region in reading.unreadable), "")
    return replace(
        readings[0],
        objects=_elected([reading.objects for reading in readings]),
        unreadable=tuple(Unreadable(region.box, why) for region in _elected(regions)),
    )


Group = dict[int, Detection]
"""The detections of one object, by reading."""


def _elected(readings: Sequence[Sequence[Detection]]) -> tuple[Detection, ...]:
    groups = _grouped(readings)
    least = len(readings) // 2 + 1
    for group in sorted(groups, key=len, reverse=True):
        rare = [other for other in groups if other is not group and len(other) < least and len(other) <= len(group)]
        _add_split_votes(group, rare)
    return tuple(_merged(group) for group in groups if len(group) >= least)


def _grouped(readings: Sequence[Sequence[Detection]]) -> list[Group]:
    """Detections of one object together, at most one of each reading, the best-overlapping pairs first."""
    groups: list[Group] = []
    for number, objects in enumerate(readings):
        boxes = [_median_box(group) for group in groups]
        pairs = sorted(
            (-iou, i, j)
            for i, detection in enumerate(objects)
            for j, group in enumerate(groups)
            if _label(group) == detection.label and (iou := overlap(detection.box, boxes[j])) >= SAME_OBJECT
        )
        group_of: dict[int, int] = {}
        for _, i, j in pairs:
            if i not in group_of and j not in group_of.values():
                group_of[i] = j
        for i, detection in enumerate(objects):
            if i in group_of:
                groups[group_of[i]][number] = detection
            else:
                groups.append({number: detection})
    return groups


def _add_split_votes(group: Group, rare: Sequence[Group]) -> None:
    """A reading that shows an object in parts votes for the whole: the box around the parts is that of the group."""
    box = _median_box(group)
    parts: dict[int, list[Detection]] = {}
    for other in rare:
        for number, detection in other.items():
            if detection.label == _label(group) and _inside(detection.box, box):
                parts.setdefault(number, []).append(detection)
    for number, own in parts.items():
        corners = np.array([(d.box.x0, d.box.y0, d.box.x1, d.box.y1) for d in own])
        around = Box(*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
        if number not in group and len(own) > 1 and overlap(around, box) >= SAME_OBJECT:
            group[number] = replace(own[0], box=around)


def _inside(box: Box, other: Box) -> bool:
    """Whether most of the box is in the other."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return width > 0 and height > 0 and width * height >= 0.7 * box.width * box.height


def _label(group: Group) -> str:
    return next(iter(group.values())).label


def _median_box(group: Group) -> Box:
    return Box(*np.median([(d.box.x0, d.box.y0, d.box.x1, d.box.y1) for d in group.values()], axis=0).tolist())


def _merged(group: Group) -> Detection:
    members = list(group.values())
    return replace(
        members[0],
        box=_median_box(group),
        confidence=float(np.median([d.confidence for d in members])),
        colour=Counter(d.colour for d in members).most_common(1)[0][0],
        size=Counter(d.size for d in members).most_common(1)[0][0],
    )
